/* When free blocks of the arena are merged (arena.h): where memory is short and much has been freed since the
 * last time. In a worker's background, by one worker at a time; writes that need nodes wait meanwhile
 * (memory_room). */
#include "base/check.h"
#include "base/relaxed.h"
#include "store/internal.h"

enum {
    MERGE_SHARE = 512, /* of the arena's units: when so many blocks have been freed since the last merge */
    MERGE_BLOCKS_LEAST = 4096,
    STEPS_OF_MERGE = 4,     /* steps of the background that a step of merging counts as */
    START_MERGE_SHARE = 64, /* of the arena's units, freed since the last merge */
};

static uint64_t blocks_freed(const struct store *store)
{
    uint64_t freed = 0;
    for (unsigned i = 0; i < store_participants(store); i++)
        freed += relaxed_load(&store->workers[i].private->arena.freed);
    return freed;
}

bool memory_merges(struct store *store, struct store_worker_private *p)
{
    uint64_t freed = blocks_freed(store), units = relaxed_load(&store->arena.used_bytes) / ARENA_UNIT_BYTES;
    uint64_t enough = units / MERGE_SHARE > MERGE_BLOCKS_LEAST ? units / MERGE_SHARE : MERGE_BLOCKS_LEAST;
    uint64_t now_ms = relaxed_load(&store->clock_ms);
    unsigned none = 0;
    /* Acquire: pairs with the release of merge_some; the struct is this worker's then. */
    bool is_worth_it = freed - relaxed_load(&store->merged_freed) >= enough;
    if (is_worth_it && now_ms >= relaxed_load(&store->merge_next_ms) &&
        atomic_compare_exchange_strong_explicit(&store->merging, &none, 1 + p->index, memory_order_acquire,
                                                memory_order_relaxed)) {
        atomic_store_explicit(&store->merged_freed, freed, memory_order_relaxed);
        atomic_store_explicit(&store->merge_began_ms, now_ms, memory_order_relaxed);
        status_t s = arena_merge_begin(&p->arena, &store->merge);
        if (!status_is_ok(&s))
            atomic_store_explicit(&store->merging, 0, memory_order_release);
    }
    return is_worth_it || atomic_load_explicit(&store->merging, memory_order_relaxed) != 0;
}

bool memory_merge_some(struct store *store, struct store_worker_private *p, unsigned steps)
{
    if (LIKELY(atomic_load_explicit(&store->merging, memory_order_relaxed) != 1 + p->index))
        return false;
    for (unsigned i = 0; i < steps; i += STEPS_OF_MERGE) {
        if (!arena_merge_step(&p->arena, &store->merge)) {
            /* Writes wait meanwhile: so they have as long until the next one. */
            uint64_t now_ms = relaxed_load(&store->clock_ms);
            atomic_store_explicit(&store->merge_next_ms, 2 * now_ms - relaxed_load(&store->merge_began_ms),
                                  memory_order_relaxed);
            atomic_store_explicit(&store->merging, 0, memory_order_release);
            return false;
        }
    }
    return true;
}

void memory_merge_all(struct store *store, struct store_worker_private *p)
{
    uint64_t freed = blocks_freed(store), units = relaxed_load(&store->arena.used_bytes) / ARENA_UNIT_BYTES;
    struct arena_merge merge;
    if (!memory_is_pressed(store) || freed - relaxed_load(&store->merged_freed) < units / START_MERGE_SHARE)
        return;
    atomic_store_explicit(&store->merged_freed, freed, memory_order_relaxed);
    status_t s = arena_merge_begin(&p->arena, &merge);
    while (status_is_ok(&s) && arena_merge_step(&p->arena, &merge))
        ;
}
