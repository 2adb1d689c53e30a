/* check_versions: of many keys the highest version of each, or of something about them. For repairs without a
 * toc.
 *
 * Keys are known by a hash of 128 bits. Memory: 24 bytes an entry, the table at least 3/8 full.
 * Thread safety: none needed; one thread. */
#ifndef KVASIR_TOOLS_CHECK_VERSIONS_H
#define KVASIR_TOOLS_CHECK_VERSIONS_H

#include <stddef.h>
#include <stdint.h>

#include "base/bytes.h"

struct check_version;

/* Empty when zeroed. */
struct check_versions {
    struct check_version *slots;
    size_t count, capacity; /* a power of two, or 0 */
};

/* Version > 0. */
void check_versions_raise(struct check_versions *v, struct slice key, uint64_t version);
/* 0: it has none. */
uint64_t check_versions_get(const struct check_versions *v, struct slice key);
void check_versions_deinit(struct check_versions *v);

#endif
