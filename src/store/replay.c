/* Recovery: from the log's records to index and values. */
#include <stdlib.h>

#include "base/check.h"
#include "store/internal.h"
#include "store/room.h"

enum {
    TURN_RECORDS = 1024, /* so often what was replaced may be freed */
    TURN_BYTES = 256 << 10,
    MEASURE_TURNS = 64,
    LARGE_BYTES = 32 << 10,
};

/* With a cap, values stay on disk once there are enough in memory. Of large ones few may be too many until
 * the next measurement: they ask. */
static bool stays_cold(const struct replay *replay, const struct record *r)
{
    if (UNLIKELY(replay->full))
        return r->value.len > 8;
    return UNLIKELY(r->value.len >= LARGE_BYTES) && store_evicts(replay->store) &&
           !memory_start_room(&replay->store->workers[0], r->value.len, false);
}

/* hint: a place in the ordered index near the key, or 0. */
static void replay_set(const struct replay *replay, const struct record *r, struct node *node, uint64_t hash,
                       uint32_t hint)
{
    struct store *store = replay->store;
    struct store_worker_private *p = store->workers[0].private;
    bool cold = stays_cold(replay, r);
    uint32_t len = (uint32_t)r->value.len;
    if (node) {
        uint64_t had = node_meta(node) & NODE_EXPIRES ? 1 : 0;
        node_begin(node);
        node = cold ? payload_set_cold(store, p, node, hash, len, r->expire_ms, r->lsn)
                    : payload_set(store, p, node, hash, r->value, r->expire_ms, r->lsn);
        node_publish(node, r->lsn);
        atomic_fetch_add_explicit(&store->expiring, (r->expire_ms != 0) - had, memory_order_relaxed);
        return;
    }
    node = cold ? payload_node_create_cold(store, p, r->key, len, r->expire_ms, r->lsn, r->lsn)
                : payload_node_create(store, p, r->key, hash, r->value, r->expire_ms, r->lsn);
    node_publish(node, r->lsn);
    uint32_t ref = arena_ref(&store->arena, node);
    ordered_insert(&store->ordered, &p->arena, &p->epoch, ref, hint);
    hash_table_insert(&store->hash, &p->arena, &p->epoch, hash, ref);
    atomic_fetch_add_explicit(&store->keys, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&store->expiring, r->expire_ms != 0, memory_order_relaxed);
}

static void replay_delete(struct store_worker *sw, struct node *node, uint64_t hash)
{
    struct store *store = sw->store;
    if (node_meta(node) & NODE_EXPIRES)
        atomic_fetch_sub_explicit(&store->expiring, 1, memory_order_relaxed);
    payload_clear(store, sw->private, node);
    store_unlink(store, sw->private, node, hash);
    atomic_fetch_sub_explicit(&store->keys, 1, memory_order_relaxed);
}

static void replay_expire(struct store *store, const struct record *r, struct node *node, uint64_t hash)
{
    struct store_worker_private *p = store->workers[0].private;
    uint64_t had = node_meta(node) & NODE_EXPIRES ? 1 : 0;
    node_begin(node);
    node = payload_expire(store, p, node, hash, r->expire_ms, r->lsn);
    node_publish(node, r->lsn);
    atomic_fetch_add_explicit(&store->expiring, (r->expire_ms != 0) - had, memory_order_relaxed);
}

static bool is_older(const struct node *node, uint64_t lsn)
{
    return atomic_load_explicit(&((struct node *)(uintptr_t)node)->sequence, memory_order_relaxed) >> 1 < lsn;
}

static void replay_tree(struct store_worker *sw, const struct record *r)
{
    struct store *store = sw->store;
    struct store_range *range = malloc(sizeof *range + r->key.len);
    CHECK(range != NULL);
    range->lsn = r->lsn;
    range->path_len = r->key.len;
    memcpy(range->path, r->key.data, r->key.len);
    struct node *node = hash_table_find(&store->hash, hash_table_hash(&store->hash, r->key), r->key);
    if (node && r->key.len && is_older(node, r->lsn))
        replay_delete(sw, node, hash_table_hash(&store->hash, r->key));
    struct ordered_cursor cursor;
    char *below = malloc(r->key.len + 1);
    CHECK(below != NULL);
    memcpy(below, r->key.data, r->key.len);
    below[r->key.len] = '/';
    ordered_seek(&cursor, &store->ordered, slice_make(below, r->key.len ? r->key.len + 1 : 0), false);
    while ((node = ordered_next(&cursor)) && range_covers(range, node_key(node)))
        if (is_older(node, r->lsn)) /* a checkpoint may have what was set again afterwards */
            replay_delete(sw, node, hash_table_hash(&store->hash, node_key(node)));
    free(below);
    free(range);
}

static void replay_record(struct replay *replay, const struct record *r, uint64_t hash, uint32_t hint)
{
    struct store_worker *sw = &replay->store->workers[0];
    if (r->type == RECORD_DELTREE) {
        replay_tree(sw, r);
        return;
    }
    struct node *node = hash_table_find(&sw->store->hash, hash, r->key);
    if (node && !is_older(node, r->lsn))
        return; /* versions decide, not positions */
    if (r->type == RECORD_SET || r->type == RECORD_SET_EXPIRE)
        replay_set(replay, r, node, hash, hint);
    else if (r->type == RECORD_DELETE && node)
        replay_delete(sw, node, hash);
    else if (r->type == RECORD_EXPIRE && node)
        replay_expire(sw->store, r, node, hash);
}

/* Asks for all the memory that the records will need; hashes and hints are for replay_record. */
static void prefetch(struct store *store, const struct record *records, unsigned n, uint64_t *hashes,
                     uint32_t *hints)
{
    const struct node *nodes[LOG_REPLAY_RECORDS_MAX];
    struct slice names[LOG_REPLAY_RECORDS_MAX];
    uint32_t leaves[LOG_REPLAY_RECORDS_MAX];
    unsigned indexes[LOG_REPLAY_RECORDS_MAX], absent = 0;
    for (unsigned i = 0; i < n; i++)
        hashes[i] = hash_table_hash(&store->hash, records[i].key);
    for (unsigned i = 0; i < n; i++)
        hash_table_prefetch(&store->hash, hashes[i]);
    for (unsigned i = 0; i < n; i++)
        nodes[i] = hash_table_candidate(&store->hash, hashes[i]);
    for (unsigned i = 0; i < n; i++) {
        hints[i] = 0;
        if (nodes[i]) {
            store_node_prefetch(nodes[i]);
        } else if (records[i].type == RECORD_SET || records[i].type == RECORD_SET_EXPIRE) {
            indexes[absent] = i;
            names[absent++] = records[i].key;
        }
    }
    ordered_prefetch(&store->ordered, names, leaves, absent);
    for (unsigned i = 0; i < absent; i++)
        hints[indexes[i]] = leaves[i];
}

static uint64_t node_bytes(const struct memory_use *use)
{
    return use->arena_live_bytes - use->share_bytes;
}

/* n at the end of the log, if it goes on to grow with each byte as it has since the first record. */
static uint64_t at_the_end(const struct replay *replay, uint64_t first, uint64_t n)
{
    if (n <= first || replay->done_bytes == 0 || replay->done_bytes >= replay->total_bytes)
        return n;
    return first + (uint64_t)((double)(n - first) * (double)replay->total_bytes / (double)replay->done_bytes);
}

/* What the whole index will need at most. The log's files are longer than what is in them: it may be less. */
static status_t too_little(const struct replay *replay, const struct memory_use *use, uint64_t keys)
{
    uint64_t nodes = at_the_end(replay, replay->first_node_bytes, node_bytes(use));
    uint64_t all_keys = at_the_end(replay, replay->first_keys, keys), hash = hash_table_bytes_for(all_keys);
    if (hash < use->hash_bytes)
        hash = use->hash_bytes;
    uint64_t needed = memory_cap_for(nodes + hash, nodes + hash + use->buffer_bytes + use->slack_bytes);
    if (needed <= use->cap_bytes)
        needed = use->cap_bytes + (1 << 20);
    return status_error(STATUS_INVALID,
                        "--memory %llu MiB is too little for the index of what is stored: it was full with "
                        "%llu keys; all, at most %llu by the length of the log's files, need at most about "
                        "%llu MiB; give more memory",
                        (unsigned long long)(use->cap_bytes >> 20), (unsigned long long)keys,
                        (unsigned long long)all_keys, (unsigned long long)needed >> 20);
}

/* Keeps replaying within the cap. */
static status_t replay_memory(struct replay *replay)
{
    struct store *store = replay->store;
    if (!store_evicts(store))
        return status_ok();
    if (replay->turns++ % MEASURE_TURNS == 0 && !store->config.no_threads)
        memory_measure(store);
    struct memory_use use = memory_use(store);
    uint64_t keys = atomic_load_explicit(&store->keys, memory_order_relaxed);
    if (!replay->begun) {
        replay->begun = true;
        replay->first_keys = keys;
        replay->first_node_bytes = node_bytes(&use);
    }
    uint64_t all = use.arena_bytes + use.value_bytes + use.hash_bytes + use.slack_bytes;
    bool near = !memory_start_turn(&store->workers[0]);
    replay->full = near || all > use.budget_bytes - use.budget_bytes / 16;
    (void)memory_relieve(&store->workers[0], TURN_RECORDS);
    /* More than a running server lets come: what that has stored must be there again, with whatever a start
     * needs beside it. */
    if (memory_bare_bytes(&use) <= room_limit(store) + hash_table_untouched_bytes(&store->hash))
        return status_ok();
    return too_little(replay, &use, keys);
}

void store_replay_room(void *context, size_t bytes)
{
    const struct replay *replay = context;
    if (store_evicts(replay->store))
        (void)memory_start_room(&replay->store->workers[0], bytes, true);
}

status_t store_replay(void *context, const struct record *records, unsigned n)
{
    struct replay *replay = context;
    struct store_worker *sw = &replay->store->workers[0];
    uint64_t hashes[LOG_REPLAY_RECORDS_MAX];
    uint32_t hints[LOG_REPLAY_RECORDS_MAX];
    uint64_t bytes = 0;
    for (unsigned i = 0; i < n; i++)
        bytes += records[i].value.len;
    replay->records += n;
    replay->turn_bytes += bytes;
    bool turn_ends = replay->records / TURN_RECORDS != (replay->records - n) / TURN_RECORDS ||
                     replay->turn_bytes >= TURN_BYTES;
    if (turn_ends || replay->full) {
        epoch_exit(&sw->private->epoch);
        epoch_enter(&sw->private->epoch);
    }
    if (turn_ends) {
        replay->turn_bytes = 0;
        TRY(replay_memory(replay));
    }
    prefetch(replay->store, records, n, hashes, hints);
    for (unsigned i = 0; i < n; i++)
        replay_record(replay, &records[i], hashes[i], hints[i]);
    return status_ok();
}
