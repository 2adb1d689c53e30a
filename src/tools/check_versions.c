#include "tools/check_versions.h"

#include <stdlib.h>
#include <xxhash.h>

#include "base/check.h"

enum { CAPACITY_FIRST = 1024 };

struct check_version {
    uint64_t low, high; /* hash of the key */
    uint64_t version;   /* 0: free */
};

/* The key's, or a free one. */
static struct check_version *slot_of(const struct check_versions *v, uint64_t low, uint64_t high)
{
    for (size_t i = low & (v->capacity - 1);; i = (i + 1) & (v->capacity - 1)) {
        struct check_version *slot = &v->slots[i];
        if (slot->version == 0 || (slot->low == low && slot->high == high))
            return slot;
    }
}

static void grow(struct check_versions *v)
{
    struct check_versions wider = {.count = v->count,
                                   .capacity = v->capacity ? v->capacity * 2 : CAPACITY_FIRST};
    wider.slots = calloc(wider.capacity, sizeof *wider.slots);
    CHECK(wider.slots != NULL);
    for (size_t i = 0; i < v->capacity; i++)
        if (v->slots[i].version)
            *slot_of(&wider, v->slots[i].low, v->slots[i].high) = v->slots[i];
    free(v->slots);
    *v = wider;
}

void check_versions_raise(struct check_versions *v, struct slice key, uint64_t version)
{
    XXH128_hash_t hash = XXH3_128bits(key.data, key.len);
    if (v->count * 4 >= v->capacity * 3)
        grow(v);
    struct check_version *slot = slot_of(v, hash.low64, hash.high64);
    v->count += slot->version == 0;
    if (slot->version < version)
        *slot = (struct check_version){hash.low64, hash.high64, version};
}

uint64_t check_versions_get(const struct check_versions *v, struct slice key)
{
    if (v->count == 0)
        return 0;
    XXH128_hash_t hash = XXH3_128bits(key.data, key.len);
    return slot_of(v, hash.low64, hash.high64)->version;
}

void check_versions_deinit(struct check_versions *v)
{
    free(v->slots);
    *v = (struct check_versions){0};
}
