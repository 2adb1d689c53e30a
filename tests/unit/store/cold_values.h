/* Values that leave memory and come back, by hand: what a server does between its turns. */
#ifndef KVASIR_TESTS_COLD_VALUES_H
#define KVASIR_TESTS_COLD_VALUES_H

#include "base/prng.h"
#include "store/internal.h"

/* Performs all reads that are wanted. */
static inline unsigned cold_read_all(struct store_worker *sw)
{
    struct disk *disk = sw->store->config.disk;
    struct store_fetch fetch;
    unsigned reads = 0;
    for (; store_fetch_take(sw, &fetch); reads++)
        store_fetch_done(sw, &fetch, disk->ops->read(disk, fetch.fd, fetch.buffer, fetch.len, fetch.offset));
    return reads;
}

/* Brings the value that the view stands for; as a command that is run again, look it up afterwards. Other
 * waiters that get what they wanted meanwhile do not matter to the tests. */
static inline enum store_result cold_fetch(struct store_worker *sw, const struct store_key *key,
                                           const struct store_view *view, struct store_waiter *waiter)
{
    enum store_result r =
        store_fetch_want(sw, key, view->address, view->sequence >> 1, view->len, waiter, false);
    (void)cold_read_all(sw);
    while (store_waiter_next(sw))
        ;
    return r;
}

/* As store_find, but the value is there. Release the waiter when the view is done with. */
static inline enum store_result cold_find(struct store_worker *sw, const struct store_key *key,
                                          struct store_view *view, struct store_waiter *waiter)
{
    enum store_result r;
    while ((r = store_find(sw, key, view)) == STORE_COLD && cold_fetch(sw, key, view, waiter) == STORE_COLD)
        ;
    return r;
}

static inline enum store_result cold_node_view(struct store_worker *sw, const struct node *node,
                                               struct store_view *view, struct store_waiter *waiter)
{
    struct store_key key;
    enum store_result r = store_node_view(sw, node, view);
    if (r != STORE_COLD)
        return r;
    store_key_prepare(sw, &key, store_node_key(node));
    return cold_find(sw, &key, view, waiter);
}

/* Each value that can leave memory does so with probability share/256. Returns how many. */
static inline unsigned cold_evict(struct store_worker *sw, struct prng *prng, unsigned share)
{
    struct store *store = sw->store;
    struct ordered_cursor cursor;
    struct node *node;
    unsigned evicted = 0;
    ordered_seek(&cursor, &store->ordered, slice_make("", 0), false);
    while ((node = ordered_next(&cursor))) {
        uint64_t hash = hash_table_hash(&store->hash, node_key(node));
        if (prng_below(prng, 256) >= share || !keylock_try(&store->locks, keylock_stripe(hash)))
            continue;
        if (hash_table_holds(&store->hash, hash, arena_ref(&store->arena, node)))
            evicted += payload_evict(store, sw->private, node, hash, 0);
        keylock_release(&store->locks, keylock_stripe(hash));
    }
    return evicted;
}

#endif
