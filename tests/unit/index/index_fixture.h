/* index_fixture: an index without a store: arena, epochs, locks, hash table, ordered index, for some
 * participants. */
#ifndef KVASIR_TESTS_INDEX_FIXTURE_H
#define KVASIR_TESTS_INDEX_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "index/hash_table.h"
#include "index/ordered.h"

enum { FIXTURE_WORKERS = 4 };

struct index_fixture {
    struct arena arena;
    struct arena_cache caches[FIXTURE_WORKERS];
    struct epoch epoch;
    struct epoch_participant participants[FIXTURE_WORKERS];
    struct keylock locks;
    struct hash_table hash;
    struct ordered ordered;
};

static inline struct index_fixture *index_fixture_create(unsigned workers)
{
    struct index_fixture *f = calloc(1, sizeof *f);
    assert_non_null(f);
    status_t s = arena_init(&f->arena);
    assert_true(status_is_ok(&s));
    epoch_init(&f->epoch, workers);
    for (unsigned i = 0; i < workers; i++) {
        arena_cache_init(&f->caches[i], &f->arena);
        epoch_participant_init(&f->participants[i], &f->epoch, i, &f->caches[i]);
    }
    s = ordered_init(&f->ordered, &f->arena, &f->caches[0]);
    assert_true(status_is_ok(&s));
    s = hash_table_init(&f->hash, &f->arena, &f->locks, 42);
    assert_true(status_is_ok(&s));
    return f;
}

static inline void index_fixture_destroy(struct index_fixture *f)
{
    for (unsigned i = 0; i < f->epoch.count; i++)
        epoch_participant_deinit(&f->participants[i]);
    hash_table_deinit(&f->hash);
    arena_deinit(&f->arena);
    free(f);
}

static inline struct node *index_fixture_node(struct index_fixture *f, unsigned worker, struct slice key)
{
    unsigned class = arena_class(sizeof(struct node) + ((key.len + 7) & ~(size_t)7) + 8);
    struct node *node = arena_at(&f->arena, arena_alloc(&f->caches[worker], class));
    atomic_store_explicit(&node->sequence, 2, memory_order_relaxed);
    atomic_store_explicit(&node->meta, (uint32_t)key.len | (uint32_t) class << NODE_CLASS_SHIFT,
                          memory_order_relaxed);
    atomic_store_explicit(&node->value_len, 0, memory_order_relaxed);
    memcpy(node->data, key.data, key.len);
    return node;
}

static inline uint64_t fixture_random(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15ull);
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

/* Seed from the environment, or a fixed one; printed, so that a failure can be replayed. */
static inline uint64_t fixture_seed(void)
{
    const char *text = getenv("KVASIR_TEST_SEED");
    uint64_t seed = text ? strtoull(text, NULL, 0) : 1;
    printf("seed %llu (KVASIR_TEST_SEED)\n", (unsigned long long)seed);
    return seed;
}

#endif
