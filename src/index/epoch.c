#include "index/epoch.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/check.h"
#include "sys/clock.h"

/* An item is one word: kind in the top two bits, then a pointer, or class and reference. */
enum { KIND_SHIFT = 62 };
#define KIND_BLOCK   ((uint64_t)0 << KIND_SHIFT)
#define KIND_MALLOC  ((uint64_t)1 << KIND_SHIFT)
#define KIND_MAPPING ((uint64_t)2 << KIND_SHIFT)
#define KIND_MASK    ((uint64_t)3 << KIND_SHIFT)

void epoch_init(struct epoch *epoch, unsigned participants)
{
    CHECK(participants <= EPOCH_PARTICIPANTS_MAX);
    memset(epoch, 0, sizeof *epoch);
    atomic_init(&epoch->global, 1);
    epoch->count = participants;
}

void epoch_participant_init(struct epoch_participant *p, struct epoch *epoch, unsigned index,
                            struct arena_cache *cache)
{
    *p = (struct epoch_participant){.epoch = epoch, .index = index, .cache = cache};
}

static void free_item(struct epoch_participant *p, uint64_t item)
{
    void *memory = (void *)(uintptr_t)(item & ~KIND_MASK);
    switch (item & KIND_MASK) {
    case KIND_BLOCK:
        arena_free(p->cache, (uint32_t)item, (unsigned)(item >> 32) & 0xff);
        break;
    case KIND_MALLOC:
        free(memory);
        break;
    default:
        munmap(memory, *(uint64_t *)memory);
    }
}

/* Relaxed: others read it as a number. */
static void count_bytes(struct epoch_participant *p, uint64_t more)
{
    uint64_t bytes = atomic_load_explicit(&p->bytes, memory_order_relaxed);
    atomic_store_explicit(&p->bytes, bytes + more, memory_order_relaxed);
}

static void free_list(struct epoch_participant *p, struct epoch_list *list)
{
    for (size_t i = 0; i < list->count; i++)
        free_item(p, list->items[i]);
    p->pending -= list->count;
    count_bytes(p, 0 - list->bytes);
    list->count = 0;
    list->bytes = 0;
}

void epoch_participant_deinit(struct epoch_participant *p)
{
    for (unsigned i = 0; i < EPOCH_LISTS; i++) {
        free_list(p, &p->lists[i]);
        free(p->lists[i].items);
    }
}

static void try_advance(struct epoch *epoch, uint64_t global)
{
    for (unsigned i = 0; i < epoch->count; i++) {
        /* Sequentially consistent: pairs with epoch_enter's store, so that a participant which has just
         * entered with an old epoch is seen. */
        uint64_t local = atomic_load_explicit(&epoch->participants[i].local, memory_order_seq_cst);
        if (local != 0 && local != global)
            return;
    }
    if (UNLIKELY(epoch->hold_us)) {
        uint64_t now_us = clock_monotonic_us();
        if (now_us - atomic_load_explicit(&epoch->moved_us, memory_order_relaxed) < epoch->hold_us)
            return;
        atomic_store_explicit(&epoch->moved_us, now_us, memory_order_relaxed);
    }
    /* Failing is fine: somebody else moved it. */
    atomic_compare_exchange_strong_explicit(&epoch->global, &global, global + 1, memory_order_seq_cst,
                                            memory_order_relaxed);
}

void epoch_enter(struct epoch_participant *p)
{
    struct epoch *epoch = p->epoch;
    _Atomic uint64_t *local = &epoch->participants[p->index].local;
    uint64_t global = atomic_load_explicit(&epoch->global, memory_order_seq_cst);
    /* Announce, then look again: a section must not start in an epoch that has already been left behind. */
    for (;;) {
        atomic_store_explicit(local, global, memory_order_seq_cst);
        uint64_t again = atomic_load_explicit(&epoch->global, memory_order_seq_cst);
        if (again == global)
            break;
        global = again;
    }
    if (p->pending == 0)
        return;
    try_advance(epoch, global);
    for (unsigned i = 0; i < EPOCH_LISTS; i++) {
        if (p->lists[i].count && p->lists[i].tag + 2 <= global)
            free_list(p, &p->lists[i]);
    }
}

void epoch_exit(struct epoch_participant *p)
{
    /* Release: reads of the section come before; pairs with try_advance's load. */
    atomic_store_explicit(&p->epoch->participants[p->index].local, 0, memory_order_release);
}

static void retire(struct epoch_participant *p, uint64_t item, uint64_t bytes)
{
    /* The store that unlinked comes first: pairs with epoch_enter's store, which a reader's loads follow. */
    atomic_thread_fence(memory_order_seq_cst);
    uint64_t tag = atomic_load_explicit(&p->epoch->global, memory_order_seq_cst);
    struct epoch_list *list = &p->lists[tag % EPOCH_LISTS];
    if (list->tag != tag) {
        free_list(p, list); /* at least three epochs old */
        list->tag = tag;
    }
    if (list->count == list->capacity) {
        list->capacity = list->capacity ? list->capacity * 2 : 1024;
        list->items = realloc(list->items, list->capacity * sizeof *list->items);
        CHECK(list->items != NULL);
    }
    list->items[list->count++] = item;
    list->bytes += bytes;
    if (bytes)
        count_bytes(p, bytes);
    p->pending++;
}

void epoch_retire_block(struct epoch_participant *p, uint32_t ref, unsigned class)
{
    retire(p, KIND_BLOCK | (uint64_t) class << 32 | ref, 0);
}

void epoch_retire_malloc(struct epoch_participant *p, void *memory, uint64_t bytes)
{
    retire(p, KIND_MALLOC | (uint64_t)(uintptr_t)memory, bytes);
}

void epoch_retire_mapping(struct epoch_participant *p, void *mapping)
{
    retire(p, KIND_MAPPING | (uint64_t)(uintptr_t)mapping, 0);
}
