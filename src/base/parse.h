/* parse: numbers and sizes from text, strictly: all of the text must be the number, nothing is rounded,
 * clipped or skipped.
 *
 * Every call answers false for anything else and leaves *value alone then. The text needs no NUL at its end.
 * Thread safety: pure functions. */
#ifndef KVASIR_BASE_PARSE_H
#define KVASIR_BASE_PARSE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/bytes.h"

enum { PARSE_I64_BYTES_MAX = 20 }; /* "-9223372036854775808" */

/* A decimal integer exactly as it would be printed: no sign but '-', no leading zeros, no "-0", no blanks
 * (Redis's rule). */
bool parse_i64(struct slice text, int64_t *value);
bool parse_u64(struct slice text, uint64_t *value);

/* A floating-point number as strtod reads it, "inf" and exponents included; not NaN, no blanks, no overflow
 * to infinity. */
bool parse_double(struct slice text, double *value);

/* A number of bytes: digits and an optional unit K, M, G or T (powers of 1024, any case, "KB" and "KiB" too),
 * or B: "64M", "2GiB". */
bool parse_size(struct slice text, uint64_t *bytes);

#endif
