/* scan_cursor: where SCANs go on. Clients want numbers, the index has keys: a bounded table from number to
 * key, least recently made out first.
 *
 * Thread safety: any (a mutex; SCAN is not a hot path). */
#ifndef KVASIR_SERVER_SCAN_CURSOR_H
#define KVASIR_SERVER_SCAN_CURSOR_H

#include <stdbool.h>
#include <stdint.h>

#include "base/bytes.h"

enum {
    SCAN_CURSORS_MAX = 16384,
    SCAN_CURSORS_BYTES_MAX = 16 << 20, /* of keys */
};

struct scan_cursors;

struct scan_cursors *scan_cursors_create(void);
void scan_cursors_destroy(struct scan_cursors *c);
/* Remembers a key; the number is never 0. */
uint64_t scan_cursors_put(struct scan_cursors *c, struct slice key);
/* Copies the key into out (STORE_KEY_BYTES_MAX long). False: unknown, or forgotten. */
bool scan_cursors_get(struct scan_cursors *c, uint64_t number, char *out, size_t *len);

#endif
