/* Deleting a tree: one record, and a range that readers honour from its LSN on (store_covering_range). The
 * keys below are unlinked afterwards, step by step (background.c). */
#include <stdlib.h>

#include "base/check.h"
#include "store/internal.h"
#include "store/write_log.h"

/* Keys that the range covers. */
struct covered {
    uint64_t live;
    uint64_t counted; /* with those that have expired and are still in the number of keys */
};

static void count_node(struct store_worker *sw, const struct node *node, struct covered *covered)
{
    bool live;
    covered->counted += store_node_counts(sw, node, &live);
    covered->live += live;
}

/* The keys that start with the prefix. Each node is a miss: they are asked for some at a time. */
static void count_below(struct store_worker *sw, struct slice prefix, struct covered *covered)
{
    enum { AHEAD = 64 };
    struct ordered_cursor cursor;
    const struct node *nodes[AHEAD];
    unsigned n;
    ordered_seek(&cursor, &sw->store->ordered, prefix, false);
    do {
        for (n = 0; n < AHEAD && (nodes[n] = ordered_next(&cursor)); n++)
            __builtin_prefetch(nodes[n]);
        for (unsigned i = 0; i < n; i++) {
            if (!slice_starts_with(node_key(nodes[i]), prefix))
                return;
            count_node(sw, nodes[i], covered);
        }
    } while (n == AHEAD);
}

/* All locks are held. */
static struct covered count_covered(struct store_worker *sw, const struct store_range *range)
{
    struct covered covered = {0};
    struct store_key self;
    bool walks = sw->private->walks;
    sw->private->walks = true;
    store_key_prepare(sw, &self, slice_make(range->path, range->path_len));
    const struct node *own = hash_table_find(&sw->store->hash, self.hash, self.name);
    if (own)
        count_node(sw, own, &covered);
    char *below = malloc(range->path_len + 1);
    CHECK(below != NULL);
    memcpy(below, range->path, range->path_len);
    below[range->path_len] = '/';
    count_below(sw, slice_make(below, range->path_len + 1), &covered);
    free(below);
    sw->private->walks = walks;
    return covered;
}

enum store_result store_delete_tree(struct store_worker *sw, struct slice path, uint64_t *count)
{
    struct store *store = sw->store;
    struct store_worker_private *p = sw->private;
    struct store_range *range = malloc(sizeof *range + path.len);
    if (range == NULL)
        return STORE_NO_MEMORY;
    range->path_len = path.len;
    if (path.len)
        memcpy(range->path, path.data, path.len);
    if (!store_lock_all(store)) {
        free(range);
        return STORE_BUSY;
    }
    unsigned slot = 0;
    while (slot < STORE_RANGES_MAX && atomic_load_explicit(&store->ranges[slot], memory_order_relaxed))
        slot++;
    if (slot == STORE_RANGES_MAX) { /* some deleted tree must be cleared away first */
        store_unlock_all(store);
        free(range);
        return STORE_BUSY;
    }
    enum store_result result = STORE_OK;
    uint64_t all = atomic_load_explicit(&store->keys, memory_order_relaxed);
    struct covered covered = path.len ? count_covered(sw, range) : (struct covered){all, all};
    if (count)
        *count = covered.live;
    if (covered.counted)
        result = write_log_tree(sw, range);
    bool applied = result == STORE_OK && covered.counted;
    if (applied) {
        /* Release: pairs with store_covering_range. The slot before the count that makes readers look. */
        atomic_store_explicit(&store->ranges[slot], range, memory_order_release);
        atomic_fetch_add_explicit(&store->range_count, 1, memory_order_release);
        atomic_fetch_sub_explicit(&store->keys, covered.counted, memory_order_release);
        p->jobs[p->job_count++] = (struct range_job){.range = range, .slot = slot};
        store_depends(sw, range->lsn);
    } else if (result == STORE_OK && store->log) {
        store_depends(sw, log_tail_lsn(store->log) - 1);
    }
    store_unlock_all(store);
    if (!applied)
        free(range);
    return result;
}
