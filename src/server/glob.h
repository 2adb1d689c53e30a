/* glob: Redis's patterns: * ? [abc] [^abc] [a-c] and \ before a literal character. Pure. */
#ifndef KVASIR_SERVER_GLOB_H
#define KVASIR_SERVER_GLOB_H

#include <stdbool.h>

#include "base/bytes.h"

bool glob_matches(struct slice pattern, struct slice text);
/* The literal beginning of a pattern, unescaped into out (pattern.len bytes). */
struct slice glob_prefix(struct slice pattern, char *out);

#endif
