/* moving: internal: the values that a round of cleaning moves.
 *
 * They are collected in the order in which they lie on disk and taken out in the order of their keys. Nothing
 * here takes long at a time, however many there are: short runs are sorted as they fill, and merged by a heap
 * as they are taken (replacement for one large sort; Knuth, "Sorting and Searching", 5.4.1).
 *
 * Thread safety: one thread at a time. */
#ifndef KVASIR_STORE_MOVING_H
#define KVASIR_STORE_MOVING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/bytes.h"

struct moving_value {
    char *data; /* malloc'd: key, then value; owned by the list */
    uint32_t key_len, value_len;
    uint64_t hash, version, expire_ms;
    uint64_t from, to; /* addresses */
    bool hot;
};

struct moving_run {
    uint32_t at, end; /* of values; at < end */
    uint64_t head;    /* of the key at `at`: its first 8 bytes, as a number that orders as they do */
};

struct moving {
    struct moving_value *values;
    size_t count, capacity;
    struct moving_run *runs; /* once sealed a heap, the least key first */
    size_t run_count;
};

static inline struct slice moving_key(const struct moving_value *v)
{
    return slice_make(v->data, v->key_len);
}

static inline struct slice moving_content(const struct moving_value *v)
{
    return slice_make(v->data + v->key_len, v->value_len);
}

/* Copies key and value; fields besides them are v's. */
void moving_add(struct moving *m, const struct moving_value *v, struct slice key, struct slice value);
/* No more come. */
void moving_seal(struct moving *m);
/* About half of them are younger than that; 0: there is none. */
uint64_t moving_median_version(const struct moving *m);
/* The one with the least key of those not taken; NULL: all are. */
struct moving_value *moving_first(const struct moving *m);
/* Takes that one. */
void moving_advance(struct moving *m);
/* Frees one value's key and content, which are not needed any more. */
void moving_drop(struct moving_value *v);
void moving_free(struct moving *m);

#endif
