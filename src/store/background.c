/* Deferred work: unlinking what is durably deleted, clearing away deleted trees, sweeping expired keys. */
#include <stdlib.h>

#include "base/check.h"
#include "store/internal.h"

void store_tombstone_add(struct store_worker *sw, uint64_t lsn, uint64_t hash, uint32_t ref)
{
    struct store_worker_private *p = sw->private;
    if (p->tombstone_count == p->tombstone_capacity) {
        size_t capacity = p->tombstone_capacity ? p->tombstone_capacity * 2 : 1024;
        struct tombstone *wider = malloc(capacity * sizeof *wider);
        CHECK(wider != NULL);
        for (size_t i = 0; i < p->tombstone_count; i++)
            wider[i] = p->tombstones[(p->tombstone_head + i) & (p->tombstone_capacity - 1)];
        free(p->tombstones);
        p->tombstones = wider;
        p->tombstone_head = 0;
        p->tombstone_capacity = capacity;
    }
    size_t at = (p->tombstone_head + p->tombstone_count++) & (p->tombstone_capacity - 1);
    p->tombstones[at] = (struct tombstone){lsn, hash, ref};
    atomic_fetch_add_explicit(&sw->store->tombstones, 1, memory_order_relaxed);
}

void store_unlink(struct store *store, struct store_worker_private *p, struct node *node, uint64_t hash)
{
    uint32_t ref = arena_ref(&store->arena, node);
    hash_table_remove(&store->hash, hash, ref);
    ordered_remove(&store->ordered, &p->arena, &p->epoch, ref);
    payload_retire(p, node, ref);
}

/* A tombstone whose delete is durable goes, unless the key was set again. The node may even be gone and its
 * memory be another node: only what the hash table still holds under this hash, with this version, is ours.
 */
static bool unlink_tombstone(struct store_worker *sw, const struct tombstone *t)
{
    struct store *store = sw->store;
    uint32_t stripe = keylock_stripe(t->hash);
    if (!keylock_try(&store->locks, stripe))
        return false;
    struct node *node = hash_table_holds(&store->hash, t->hash, t->ref);
    if (node && atomic_load_explicit(&node->sequence, memory_order_relaxed) == t->lsn << 1 &&
        node_meta(node) & NODE_TOMBSTONE)
        store_unlink(store, sw->private, node, t->hash);
    keylock_release(&store->locks, stripe);
    return true;
}

static unsigned unlink_tombstones(struct store_worker *sw, unsigned steps)
{
    struct store_worker_private *p = sw->private;
    uint64_t commit = store_durable_lsn(sw->store);
    unsigned done = 0;
    while (p->tombstone_count && done < steps) {
        const struct tombstone *t = &p->tombstones[p->tombstone_head];
        if (t->lsn >= commit || !unlink_tombstone(sw, t))
            break;
        p->tombstone_head = (p->tombstone_head + 1) & (p->tombstone_capacity - 1);
        p->tombstone_count--;
        atomic_fetch_sub_explicit(&sw->store->tombstones, 1, memory_order_relaxed);
        done++;
    }
    return done;
}

/* ---- deleted trees ---- */

/* Unlinks the node if the range covers it. False if its lock is busy. */
static bool unlink_covered(struct store_worker *sw, const struct store_range *range, struct node *node)
{
    struct store *store = sw->store;
    struct store_worker_private *p = sw->private;
    uint64_t hash = hash_table_hash(&store->hash, node_key(node));
    uint32_t stripe = keylock_stripe(hash);
    if (!keylock_try(&store->locks, stripe))
        return false;
    if (hash_table_holds(&store->hash, hash, arena_ref(&store->arena, node)) &&
        atomic_load_explicit(&node->sequence, memory_order_relaxed) >> 1 < range->lsn) {
        if (node_meta(node) & NODE_EXPIRES)
            atomic_fetch_sub_explicit(&store->expiring, 1, memory_order_relaxed);
        node_begin(node);
        payload_clear(store, p, node);
        node_publish(node, range->lsn);
        store_unlink(store, p, node, hash);
    }
    keylock_release(&store->locks, stripe);
    return true;
}

void store_remember(char **position, size_t *position_len, struct slice key)
{
    char *copy = malloc(key.len + 1);
    CHECK(copy != NULL);
    memcpy(copy, key.data, key.len);
    free(*position);
    *position = copy;
    *position_len = key.len;
}

static void job_start(struct store_worker *sw, struct range_job *job)
{
    const struct store_range *range = job->range;
    struct slice path = slice_make(range->path, range->path_len);
    store_remember(&job->position, &job->position_len, path);
    if (path.len) {
        job->position[job->position_len++] = '/'; /* store_remember leaves room for it */
        job->subtree = true;
    }
    struct node *own = hash_table_find(&sw->store->hash, hash_table_hash(&sw->store->hash, path), path);
    if (path.len && own && !unlink_covered(sw, range, own)) {
        free(job->position);
        job->position = NULL; /* again next time */
    }
}

/* Up to `steps` keys of one job. True when it is finished. */
static bool job_step(struct store_worker *sw, struct range_job *job, unsigned steps)
{
    if (job->position == NULL)
        job_start(sw, job);
    if (job->position == NULL)
        return false;
    struct ordered_cursor cursor;
    struct node *node;
    ordered_seek(&cursor, &sw->store->ordered, slice_make(job->position, job->position_len), false);
    while ((node = ordered_next(&cursor))) {
        if (!range_covers(job->range, node_key(node)))
            return true;
        if (steps-- == 0 || !unlink_covered(sw, job->range, node)) {
            store_remember(&job->position, &job->position_len, node_key(node));
            return false;
        }
    }
    return true;
}

static bool run_jobs(struct store_worker *sw, unsigned steps)
{
    struct store_worker_private *p = sw->private;
    struct store *store = sw->store;
    uint64_t commit = store_durable_lsn(store);
    bool more = false;
    for (unsigned i = 0; i < p->job_count;) {
        struct range_job *job = &p->jobs[i];
        if (job->range->lsn >= commit) {
            i++;
            continue;
        }
        if (!job_step(sw, job, steps)) {
            more = true;
            i++;
            continue;
        }
        atomic_store_explicit(&store->ranges[job->slot], NULL, memory_order_release);
        atomic_fetch_sub_explicit(&store->range_count, 1, memory_order_release);
        epoch_retire_malloc(&p->epoch, job->range, 0);
        free(job->position);
        *job = p->jobs[--p->job_count];
    }
    return more;
}

/* ---- expired keys ---- */

static void sweep_slice(struct store_worker *sw, unsigned steps)
{
    struct store *store = sw->store;
    struct ordered_cursor cursor;
    struct node *node;
    sw->private->walks = true;
    ordered_seek(&cursor, &store->ordered, slice_make(store->sweep_position, store->sweep_position_len),
                 false);
    while ((node = ordered_next(&cursor)) && steps-- > 0) {
        uint32_t meta = node_meta(node);
        if (!(meta & NODE_EXPIRES) || meta & NODE_TOMBSTONE)
            continue;
        struct store_key key;
        struct store_view view;
        store_key_prepare(sw, &key, node_key(node));
        enum store_result ignored = store_find(sw, &key, &view); /* deletes it when its time has come */
        (void)ignored;
    }
    sw->private->walks = false;
    if (node)
        store_remember(&store->sweep_position, &store->sweep_position_len, node_key(node));
    else
        store->sweep_position_len = 0;
}

/* How many keys to look at in a period: all of them in 5 s when a tenth of them or more have an expiry, less
 * often when there is less to be found, at least in 100 s. */
static uint64_t sweep_share(struct store *store)
{
    uint64_t keys = atomic_load_explicit(&store->keys, memory_order_relaxed);
    uint64_t tenfold = 10 * atomic_load_explicit(&store->expiring, memory_order_relaxed);
    uint64_t most = tenfold < keys ? tenfold : keys, least = keys / 20;
    return (most > least ? most : least) / 50;
}

/* Worker 0 looks at all keys in some seconds, in slices, while any has an expiry. True if the budget is not
 * used up. */
static bool sweep(struct store_worker *sw, uint64_t *due_ms)
{
    struct store *store = sw->store;
    if (sw->private->index != 0 || atomic_load_explicit(&store->expiring, memory_order_relaxed) == 0)
        return false;
    if (sw->now_ms >= store->sweep_next_ms) {
        store->sweep_next_ms = sw->now_ms + STORE_SWEEP_PERIOD_MS;
        store->sweep_budget = STORE_SWEEP_SLICE + sweep_share(store);
    }
    if (due_ms && store->sweep_next_ms < *due_ms)
        *due_ms = store->sweep_next_ms;
    if (store->sweep_budget == 0)
        return false;
    unsigned slice =
        store->sweep_budget < STORE_SWEEP_SLICE ? (unsigned)store->sweep_budget : STORE_SWEEP_SLICE;
    store->sweep_budget -= slice;
    sweep_slice(sw, slice);
    return store->sweep_budget > 0;
}

bool store_background(struct store_worker *sw, unsigned steps, uint64_t *due_ms)
{
    if (due_ms)
        *due_ms = UINT64_MAX;
    uint64_t depends = sw->depends_lsn;
    unsigned unlinks = memory_unlinks(sw->store, sw->private, steps);
    bool more = sw->private->tombstone_count && unlink_tombstones(sw, unlinks) == unlinks;
    if (sw->private->job_count)
        more |= run_jobs(sw, unlinks);
    more |= sweep(sw, due_ms);
    more |= memory_background(sw, steps, due_ms);
    sw->depends_lsn = depends;
    return more;
}
