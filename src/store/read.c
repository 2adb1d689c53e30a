/* Reading: find a node, take its state under the sequence lock, decide whether it is live, and note what the
 * answer depends on. */
#include "base/check.h"
#include "store/fetch.h"
#include "store/internal.h"

/* A result of this file's own: look the key up again. */
#define STORE_REPLACED ((enum store_result)100)

enum {
    BUSY_SPINS_MAX = 2000,
    OPTIMISTIC_ATTEMPTS = 4,
};

void store_key_prepare(struct store_worker *sw, struct store_key *key, struct slice name)
{
    key->name = name;
    key->hash = hash_table_hash(&sw->store->hash, name);
}

void store_keys_prefetch_places(struct store_worker *sw, const struct store_key *const *keys, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        hash_table_prefetch(&sw->store->hash, keys[i]->hash);
}

void store_node_prefetch(const struct node *node)
{
    __builtin_prefetch(node);
    __builtin_prefetch((const char *)node + 64);
}

void store_keys_prefetch_nodes(struct store_worker *sw, const struct store_key *const *keys, unsigned n)
{
    const struct node *nodes[STORE_PREFETCH_MAX];
    DCHECK(n <= STORE_PREFETCH_MAX);
    for (unsigned i = 0; i < n; i++)
        nodes[i] = hash_table_candidate(&sw->store->hash, keys[i]->hash);
    for (unsigned i = 0; i < n; i++)
        if (nodes[i])
            store_node_prefetch(nodes[i]);
}

void store_keys_prefetch_order(struct store_worker *sw, const struct store_key *const *keys, unsigned n)
{
    struct store_worker_private *p = sw->private;
    struct slice names[STORE_PREFETCH_MAX];
    uint32_t leaves[STORE_PREFETCH_MAX];
    uint64_t hashes[STORE_PREFETCH_MAX];
    while (n) {
        unsigned count = 0;
        for (; n && count < STORE_PREFETCH_MAX; n--, keys++) {
            if (hash_table_candidate(&sw->store->hash, (*keys)->hash))
                continue;
            names[count] = (*keys)->name;
            hashes[count++] = (*keys)->hash;
        }
        ordered_prefetch(&sw->store->ordered, names, leaves, count);
        for (unsigned i = 0; i < count; i++)
            p->hints[hashes[i] % STORE_HINTS] = (struct hint){hashes[i], p->turn, leaves[i]};
    }
}

bool range_covers(const struct store_range *range, struct slice key)
{
    if (range->path_len == 0)
        return true;
    return key.len >= range->path_len && memcmp(key.data, range->path, range->path_len) == 0 &&
           (key.len == range->path_len || key.data[range->path_len] == '/');
}

const struct store_range *store_covering_range(const struct store *store, struct slice key, uint64_t lsn)
{
    struct store *s = (struct store *)(uintptr_t)store;
    const struct store_range *newest = NULL;
    for (unsigned i = 0; i < STORE_RANGES_MAX; i++) {
        /* Acquire: pairs with store_delete_tree's release. */
        const struct store_range *r = atomic_load_explicit(&s->ranges[i], memory_order_acquire);
        if (r && r->lsn > lsn && (!newest || r->lsn > newest->lsn) && range_covers(r, key))
            newest = r;
    }
    return newest;
}

static inline bool has_ranges(const struct store *store)
{
    return UNLIKELY(
        atomic_load_explicit(&((struct store *)(uintptr_t)store)->range_count, memory_order_acquire) != 0);
}

static inline uint64_t load_u64_relaxed(const char *p)
{
    return atomic_load_explicit((_Atomic uint64_t *)(void *)(uintptr_t)p, memory_order_relaxed);
}

/* Where expiry, address and value of a node are that is not just a value behind its key. False: the node
 * changed meanwhile. */
static __attribute__((noinline)) bool take_payload(struct store_worker *sw, struct node *node, uint32_t meta,
                                                   struct store_view *view)
{
    const char *p = node_area(node, node_key_len(meta));
    if (meta & NODE_EXTERNAL)
        p = (const char *)(uintptr_t)(load_u64_relaxed(p) + 8);
    bool whole = sw->private->alone;
    if (meta & NODE_EXTERNAL && !whole) { /* is that a pointer? */
        atomic_thread_fence(memory_order_acquire);
        whole = atomic_load_explicit(&node->sequence, memory_order_relaxed) == view->sequence;
        if (!whole)
            return false;
    }
    view->address = view->sequence >> 1;
    if (meta & NODE_EXPIRES) {
        view->expire_ms = load_u64_relaxed(p);
        p += 8;
    }
    if (meta & NODE_MOVED) {
        view->address = load_u64_relaxed(p);
        p += 8;
    }
    /* The words above before the sequence again; pairs with node_begin's fence. */
    atomic_thread_fence(memory_order_acquire);
    if (!whole && atomic_load_explicit(&node->sequence, memory_order_relaxed) != view->sequence)
        return false;
    view->data = meta & NODE_COLD ? NULL : p;
    return true;
}

enum { NODE_UNUSUAL = NODE_EXTERNAL | NODE_EXPIRES | NODE_COLD | NODE_MOVED };

/* Takes the node's state. STORE_OK, STORE_COLD: *view and expiry are one consistent state of a live node
 * (expired or not). STORE_REPLACED: the key has another node now. */
static inline __attribute__((always_inline)) enum store_result
node_state(struct store_worker *sw, const struct node *const_node, struct store_view *view)
{
    struct node *node = (struct node *)(uintptr_t)const_node;
    for (unsigned tries = 0; tries < BUSY_SPINS_MAX; tries++) {
        /* Acquire: pairs with node_publish. */
        uint64_t sequence = atomic_load_explicit(&node->sequence, memory_order_acquire);
        if (UNLIKELY(sequence & 1)) {
            spin_pause();
            continue;
        }
        uint32_t meta = node_meta(node);
        view->len = atomic_load_explicit(&node->value_len, memory_order_relaxed);
        view->node = node;
        view->expire_ms = 0;
        view->sequence = sequence;
        view->data = node_area(node, node_key_len(meta));
        /* The words above before the sequence again; pairs with node_begin's fence. */
        atomic_thread_fence(memory_order_acquire);
        if (!sw->private->alone && atomic_load_explicit(&node->sequence, memory_order_relaxed) != sequence)
            continue;
        if (UNLIKELY(meta & NODE_UNUSUAL) && !take_payload(sw, node, meta, view))
            continue;
        if (meta & NODE_EXTERNAL || sw->private->alone)
            view->sequence |= 1; /* an external block does not change any more, nor what this is asked about
                                    when we are alone */
        store_depends(sw, sequence >> 1);
        if (UNLIKELY(meta & (NODE_TOMBSTONE | NODE_REPLACED)))
            return meta & NODE_REPLACED ? STORE_REPLACED : STORE_ABSENT;
        if (has_ranges(sw->store)) {
            const struct store_range *range = store_covering_range(sw->store, node_key(node), sequence >> 1);
            if (range) {
                store_depends(sw, range->lsn);
                return STORE_ABSENT;
            }
        }
        if (UNLIKELY(meta & NODE_COLD))
            return STORE_COLD;
        if (UNLIKELY(store_evicts(sw->store)) && !(meta & NODE_TOUCHED) && !sw->private->walks)
            /* Relaxed: a hint for the second chance. */
            atomic_fetch_or_explicit(&node->meta, NODE_TOUCHED, memory_order_relaxed);
        return STORE_OK;
    }
    return STORE_BUSY;
}

static inline bool is_expired(const struct store_worker *sw, const struct store_view *view)
{
    return UNLIKELY(view->expire_ms != 0) && view->expire_ms <= sw->now_ms;
}

/* A write has put another node in the place of this one. */
static __attribute__((noinline)) enum store_result
replaced_state(struct store_worker *sw, const struct node *node, struct store_view *view)
{
    struct slice name = node_key(node);
    uint64_t hash = hash_table_hash(&sw->store->hash, name);
    for (unsigned tries = 0; tries < OPTIMISTIC_ATTEMPTS; tries++) {
        const struct node *now = hash_table_find(&sw->store->hash, hash, name);
        enum store_result r = now ? node_state(sw, now, view) : STORE_ABSENT;
        if (r != STORE_REPLACED)
            return r;
    }
    return STORE_BUSY;
}

/* As node_state, of the key's node of now. */
static inline enum store_result current_state(struct store_worker *sw, const struct node *node,
                                              struct store_view *view)
{
    enum store_result r = node_state(sw, node, view);
    return UNLIKELY(r == STORE_REPLACED) ? replaced_state(sw, node, view) : r;
}

/* The value of a cold node may have come from disk. */
static __attribute__((noinline)) enum store_result landed_state(struct store_worker *sw, uint64_t hash,
                                                                struct store_view *view)
{
    enum store_result r =
        fetch_look(sw, hash, node_key(view->node), view->sequence >> 1, view->len, &view->data);
    if (r == STORE_OK)
        view->sequence |= 1; /* it does not change */
    return r;
}

enum store_result store_find(struct store_worker *sw, const struct store_key *key, struct store_view *view)
{
    const struct node *node = hash_table_find(&sw->store->hash, key->hash, key->name);
    if (node == NULL)
        return STORE_ABSENT;
    enum store_result r = current_state(sw, node, view);
    if ((r == STORE_OK || r == STORE_COLD) && is_expired(sw, view)) {
        /* That it is gone must be in the log before anybody is told: the clock may be set back. */
        if (sw->private->snapshot_locked || store_expire_key(sw, key) == STORE_BUSY)
            return STORE_BUSY;
        return STORE_ABSENT;
    }
    return UNLIKELY(r == STORE_COLD) ? landed_state(sw, key->hash, view) : r;
}

static enum store_result unexpired_state(struct store_worker *sw, const struct node *node,
                                         struct store_view *view)
{
    enum store_result r = current_state(sw, node, view);
    return (r == STORE_OK || r == STORE_COLD) && is_expired(sw, view) ? STORE_ABSENT : r;
}

enum store_result store_node_view(struct store_worker *sw, const struct node *node, struct store_view *view)
{
    enum store_result r = unexpired_state(sw, node, view);
    if (UNLIKELY(r == STORE_COLD))
        return landed_state(sw, hash_table_hash(&sw->store->hash, node_key(node)), view);
    return r;
}

bool store_node_counts(struct store_worker *sw, const struct node *node, bool *live)
{
    struct store_view view;
    enum store_result r = current_state(sw, node, &view);
    bool counts = r == STORE_OK || r == STORE_COLD;
    *live = counts && !is_expired(sw, &view);
    return counts;
}

enum store_result store_node_entry(struct store_worker *sw, const struct node *node, struct store_view *view)
{
    view->address = 0;
    enum store_result r = current_state(sw, node, view);
    if (view->address == 0) /* nothing unusual */
        view->address = view->sequence >> 1;
    return r;
}

struct slice store_node_key(const struct node *node)
{
    return node_key(node);
}

bool store_view_copy(const struct store_view *view, char *dst, uint32_t offset, uint32_t len)
{
    DCHECK((uint64_t)offset + len <= view->len);
    if (view->sequence & 1) {
        memcpy(dst, view->data + offset, len);
        return true;
    }
    /* Words, relaxed: a writer may be at it; the sequence tells. The area is a whole number of words. */
    _Atomic uint64_t *from = (_Atomic uint64_t *)(void *)(uintptr_t)(view->data + offset / 8 * 8);
    uint32_t skip = offset % 8;
    while (len) {
        uint64_t word = atomic_load_explicit(from++, memory_order_relaxed);
        uint32_t n = 8 - skip < len ? 8 - skip : len;
        memcpy(dst, (char *)&word + skip, n);
        dst += n;
        len -= n;
        skip = 0;
    }
    atomic_thread_fence(memory_order_acquire);
    return atomic_load_explicit(&((struct node *)(uintptr_t)view->node)->sequence, memory_order_relaxed) ==
           view->sequence;
}

/* ---- several keys at one instant ---- */

static bool take_sequences(struct store *store, struct store_worker_private *p)
{
    bool all = p->snapshot_keys == NULL;
    unsigned n = all ? KEYLOCK_STRIPES : p->snapshot_count;
    p->sequences = store_grow(p->sequences, &p->sequences_capacity, n, sizeof *p->sequences);
    for (unsigned i = 0; i < n; i++) {
        uint32_t stripe = all ? i : keylock_stripe(p->snapshot_keys[i].hash);
        p->sequences[i] = keylock_sequence(&store->locks, stripe);
        for (unsigned spins = 0; p->sequences[i] & 1; spins++) {
            if (spins == BUSY_SPINS_MAX)
                return false;
            spin_pause();
            p->sequences[i] = keylock_sequence(&store->locks, stripe);
        }
    }
    return true;
}

enum store_result store_snapshot_begin(struct store_worker *sw, const struct store_key *keys, unsigned n,
                                       unsigned attempt)
{
    struct store_worker_private *p = sw->private;
    p->snapshot_keys = keys;
    p->snapshot_count = n;
    p->snapshot_locked = false;
    if (keys == NULL && sw->store->log)
        store_depends(sw, log_tail_lsn(sw->store->log) - 1);
    if (p->alone)
        return STORE_OK;
    if (attempt < OPTIMISTIC_ATTEMPTS)
        return take_sequences(sw->store, p) ? STORE_OK : STORE_BUSY;
    /* So many others write that it must be locked. All stripes: simple, and rare. */
    if (!store_lock_all(sw->store))
        return STORE_BUSY;
    p->snapshot_locked = true;
    return STORE_OK;
}

bool store_snapshot_end(struct store_worker *sw)
{
    struct store_worker_private *p = sw->private;
    if (p->alone)
        return true;
    if (p->snapshot_locked) {
        p->snapshot_locked = false;
        store_unlock_all(sw->store);
        return true;
    }
    bool all = p->snapshot_keys == NULL;
    unsigned n = all ? KEYLOCK_STRIPES : p->snapshot_count;
    atomic_thread_fence(memory_order_acquire); /* the reads before the sequences again */
    for (unsigned i = 0; i < n; i++) {
        uint32_t stripe = all ? i : keylock_stripe(p->snapshot_keys[i].hash);
        if (atomic_load_explicit(&sw->store->locks.sequence[stripe], memory_order_relaxed) != p->sequences[i])
            return false;
    }
    return true;
}

uint64_t store_count(struct store_worker *sw)
{
    uint64_t keys = atomic_load_explicit(&sw->store->keys, memory_order_acquire);
    if (sw->store->log)
        store_depends(sw, log_tail_lsn(sw->store->log) - 1);
    return keys;
}

/* ---- ordered access ---- */

_Static_assert(sizeof(struct ordered_cursor) <= sizeof(((struct store_cursor *)0)->internal),
               "the cursor's room");

void store_cursor_seek(struct store_cursor *cursor, struct store_worker *sw, struct slice from, bool reverse)
{
    cursor->sw = sw;
    ordered_seek((struct ordered_cursor *)(void *)cursor->internal, &sw->store->ordered, from, reverse);
}

/* A walk passes over a key whose time has come: as in store_find, its delete is logged first. False: not now.
 */
static __attribute__((noinline)) bool pass_expired(struct store_worker *sw, const struct node *node)
{
    struct store_key key;
    store_key_prepare(sw, &key, node_key(node));
    return !sw->private->snapshot_locked && store_expire_key(sw, &key) != STORE_BUSY;
}

const struct node *store_cursor_next(struct store_cursor *cursor)
{
    struct store_view view;
    const struct node *node;
    struct store_worker_private *p = cursor->sw->private;
    bool walks = p->walks;
    p->walks = true; /* whoever wants the value too reads it afterwards */
    while ((node = ordered_next((struct ordered_cursor *)(void *)cursor->internal))) {
        /* Busy, its writer was preempted: whoever asks for one instant will be told so at the end. */
        enum store_result r = current_state(cursor->sw, node, &view);
        bool expired = (r == STORE_OK || r == STORE_COLD) && is_expired(cursor->sw, &view);
        if (expired && !pass_expired(cursor->sw, node)) {
            p->walk_stopped = true;
            node = NULL;
            break;
        }
        if (!expired && r != STORE_ABSENT)
            break;
    }
    p->walks = walks;
    return node;
}

bool store_walk_stopped(const struct store_worker *sw)
{
    return sw->private->walk_stopped;
}

static const struct node *random_of_few(struct store_worker *sw, uint64_t steps)
{
    struct store_cursor cursor;
    store_cursor_seek(&cursor, sw, slice_make("", 0), false);
    const struct node *node = store_cursor_next(&cursor), *next = node;
    for (; next && steps > 0; steps--) {
        node = next;
        next = store_cursor_next(&cursor);
    }
    return next ? next : node;
}

const struct node *store_random(struct store_worker *sw, uint64_t random)
{
    enum { TRIES = 256, FEW = 1024 }; /* few keys leave most buckets empty */
    struct store_view view;
    uint64_t keys = atomic_load_explicit(&sw->store->keys, memory_order_relaxed);
    random = (random ^ random >> 31) * 0xbf58476d1ce4e5b9ull;
    for (unsigned i = 0; i < TRIES && keys >= FEW; i++) {
        random = random * 6364136223846793005ull + 1442695040888963407ull;
        const struct node *node = hash_table_random(&sw->store->hash, random >> 16);
        if (node && store_result_exists(unexpired_state(sw, node, &view)))
            return node;
    }
    return random_of_few(sw, keys ? (random >> 33) % (keys < FEW ? keys : FEW) : 0);
}
