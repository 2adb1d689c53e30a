/* Memory: what is used, which values leave it, and when writes are refused.
 *
 * With a cap (--memory) the process's whole resident size is kept below it. What the index, the values and
 * the connections' buffers take is counted exactly; everything else (the allocator's slack) is what the
 * kernel says beyond that, asked for ten times a second.
 *
 * Values leave by second chance: a queue of the values in memory in the order in which they came; one that
 * was read since the hand passed goes round once more (Corbato, "A paging experiment with the Multics
 * system", 1968). Each worker has queues of its own for what it brings; who must make room takes from the
 * longest one, whose worker may be idle. */
#include <stdlib.h>

#include "base/check.h"
#include "base/relaxed.h"
#include "store/fetch.h"
#include "store/internal.h"
#include "sys/memory.h"

enum {
    MARGIN_BYTES = 48 << 20, /* kept free of the cap, but no more than a sixth of it */
    MARGIN_SHARE = 50,       /* and at least this part of it */
    SLACK_STEP_SHARE = 64,   /* by this part of the budget the slack may grow in a measurement */
    MEASURE_PERIOD_MS = 100,
    WATCH_PERIOD_MS = 10, /* between looks whether the cap is near, while there is work */
    STEPS_OF_WRITE = 16,  /* candidates that a commit looks at when there is too much in memory */
    STEPS_BETWEEN_LOOKS = 16,
    LOOK_BYTES = 64 << 10, /* written by a worker until it looks again while there is room */
    ROOM_STEP_BYTES = 256, /* that buffers have grown by, for each candidate looked at */
    ROOM_STEPS_MAX = 16384,
    BUFFERS_OFTEN_SHARE = 8,
    BUFFERS_LAG_PART = 3, /* of buffers: memory of values that left for them, not yet free */
    BUFFERS_MANY_SHARE = 32,
    GIVE_BACK_TURNS = 16,
    GIVE_BACK_EVERY = 4,  /* of those turns */
    GIVE_BACK_SHARE = 64, /* when buffers have come to take so much of the cap more or less, near it */
    RETURNS_PER_MS = 16,  /* values that a worker brings back while others must go for them */
    RETURNS_AT_ONCE = 4096,
    NODES_KEPT = 64,     /* free in a full arena, for values that leave */
    PAGE_BYTES = 640,    /* of a usual page of the order */
    PAGES_KEPT = 4,      /* the same for them */
    FULL_MS = 100,       /* so long values leave after somebody has found no room in the arena */
    FULL_LONG_MS = 1000, /* after so long without another region new keys are refused */
    PENDING_LEAST = 256, /* blocks that the epochs keep from use: worth waiting for */
    FULL_REGIONS = 2,    /* or until so many of its regions fit */
    LEAVE_SHARE = 64,    /* of the arena's live bytes: values of fewer make no room for new keys */
    START_GIVE_BACK_BYTES = 1 << 20, /* for such a value the allocator is asked first */
    START_TRIES = 8,                 /* to make room: what leaves is free some turns later */
    UNSETTLED_SHARE = 32, /* of the cap, in replaced values that readers may still see, for each worker */
    UNSETTLED_BYTES_LEAST = 4 << 20,
    UNSETTLED_BYTES_MAX = 256 << 20, /* without a cap */
};

/* ---- how much is used ---- */

static void count_one(_Atomic uint64_t *number)
{
    atomic_store_explicit(number, relaxed_load(number) + 1, memory_order_relaxed);
}

uint64_t memory_margin_bytes(uint64_t cap)
{
    uint64_t most = cap / 6 < MARGIN_BYTES ? cap / 6 : MARGIN_BYTES, least = cap / MARGIN_SHARE;
    return most > least ? most : least;
}

uint64_t memory_cap_for(uint64_t index_bytes, uint64_t bare_bytes)
{
    uint64_t cap = (bare_bytes > index_bytes ? bare_bytes : index_bytes) >> 20 << 20;
    while (cap - memory_margin_bytes(cap) < index_bytes || room_limit_of(cap) < bare_bytes)
        cap += 1 << 20;
    return cap;
}

struct memory_use memory_use(const struct store *store)
{
    struct store *s = (struct store *)(uintptr_t)store;
    uint64_t buffers = 0;
    int64_t live = 0, share = 0, growth = 0,
            values = atomic_load_explicit(&s->value_bytes, memory_order_relaxed);
    for (unsigned i = 0; i < store_participants(s); i++) {
        const struct store_worker_private *p = s->workers[i].private;
        live += atomic_load_explicit(&((struct store_worker_private *)(uintptr_t)p)->arena.live_bytes,
                                     memory_order_relaxed);
        share += atomic_load_explicit(&((struct store_worker_private *)(uintptr_t)p)->share_bytes,
                                      memory_order_relaxed);
        growth += atomic_load_explicit(&((struct store_worker_private *)(uintptr_t)p)->growth_bytes,
                                       memory_order_relaxed);
        buffers += relaxed_load(&p->buffer_bytes);
    }
    if (s->log)
        buffers += log_large_bytes(s->log);
    struct memory_use use = {
        .arena_bytes = relaxed_load(&s->arena.used_bytes),
        .arena_live_bytes = live > 0 ? (uint64_t)live : 0,
        .value_bytes = values > 0 ? (uint64_t)values : 0,
        .hash_bytes = relaxed_load(&s->hash.mapped_bytes),
        .buffer_bytes = buffers,
        .slack_bytes = relaxed_load(&s->slack_bytes),
        .cap_bytes = relaxed_load(&s->memory_bytes_max),
    };
    use.growth_bytes = growth > 0 ? (uint64_t)growth : 0;
    use.share_bytes = share > 0 ? (uint64_t)share : 0;
    if (use.share_bytes > use.arena_live_bytes)
        use.share_bytes = use.arena_live_bytes;
    use.budget_bytes = use.cap_bytes - memory_margin_bytes(use.cap_bytes);
    return use;
}

/* What the process takes as far as we know. */
static uint64_t resident_bytes(const struct memory_use *use)
{
    return use->arena_bytes + use->value_bytes + use->hash_bytes + use->buffer_bytes + use->slack_bytes;
}

static uint64_t arena_free_bytes(const struct memory_use *use)
{
    return use->arena_bytes > use->arena_live_bytes ? use->arena_bytes - use->arena_live_bytes : 0;
}

/* Some is left free, so that the arena finds pieces that fit. */
static uint64_t memory_low_bytes(const struct memory_use *use)
{
    return use->budget_bytes - use->budget_bytes / 16;
}

uint64_t memory_bare_bytes(const struct memory_use *use)
{
    return use->arena_live_bytes - use->share_bytes + use->hash_bytes + use->buffer_bytes + use->slack_bytes;
}

/* ---- eviction ---- */

/* Which kinds of values should leave. The memory of external ones goes back to the allocator; that of others
 * stays the arena's, so for them counts what is not free in it. */
struct excess {
    bool external, internal;
};

/* Another region fits below the budget, and below the cap as the process is now. Asked for once a turn. */
static bool region_fits(struct store *store, struct store_worker_private *p, const struct memory_use *use)
{
    if (resident_bytes(use) + ARENA_REGION_BYTES > use->budget_bytes)
        return false;
    bool refused = p->room.refused,
         fits = p->region_turn == p->turn || room_take(store, p, ARENA_REGION_BYTES);
    p->room.refused = refused; /* whoever has to wait for it says so */
    if (fits)
        p->region_turn = p->turn;
    return fits;
}

/* A value leaves by its node's exchange for another one. Is there memory for some of those? If not, there
 * will be, without fresh memory: the epochs have not yet given back what has been replaced. */
static bool has_nodes(struct store *store, struct store_worker_private *p, const struct memory_use *use)
{
    return arena_has_free(&p->arena, arena_class(PAYLOAD_NODE_BYTES_EVICTED), STEPS_BETWEEN_LOOKS) ||
           p->epoch.pending < PENDING_LEAST || region_fits(store, p, use);
}

static struct excess excess_of(struct store *store, struct store_worker_private *p)
{
    struct memory_use use = memory_use(store);
    uint64_t resident = resident_bytes(&use) + relaxed_load(&store->urgent_bytes),
             low = memory_low_bytes(&use);
    resident += use.buffer_bytes / BUFFERS_LAG_PART;
    bool is_short = resident > low;
    atomic_store_explicit(&store->pressed, resident > use.budget_bytes / 8 * 7, memory_order_relaxed);
    arena_soften(&store->arena, is_short ? use.arena_bytes : UINT64_MAX);
    /* Somebody has just found no room for a node: what is free in the arena may be in pieces that are too
     * small. Until another region fits. */
    bool in_pieces = relaxed_load(&store->full_ms) + FULL_MS > relaxed_load(&store->clock_ms) &&
                     resident + FULL_REGIONS * ARENA_REGION_BYTES > use.budget_bytes;
    /* What is free is being merged: another node would be fresh memory. */
    bool merging = atomic_load_explicit(&store->merging, memory_order_relaxed) != 0;
    struct excess excess = {.external = in_pieces || resident > use.budget_bytes,
                            .internal = !merging && (in_pieces || resident - arena_free_bytes(&use) > low)};
    if ((excess.external || excess.internal) && !has_nodes(store, p, &use))
        return (struct excess){0};
    return excess;
}

static enum resident_kind kind_of(uint32_t meta)
{
    return meta & NODE_EXTERNAL ? RESIDENT_EXTERNAL : RESIDENT_INTERNAL;
}

/* The candidate leaves memory, stays in a queue (true), or is dropped. *kind: which queue it is from, and
 * belongs to. seen: see drop_stale, or NULL. */
static bool keeps(struct store *store, struct store_worker_private *p, struct resident item,
                  struct excess excess, uint32_t hint, struct seen_refs *seen, enum resident_kind *kind)
{
    uint64_t hash = (uint64_t)item.hash_high << 32; /* all that is needed of it here */
    uint32_t stripe = keylock_stripe(hash);
    bool keep = true;
    if (!keylock_try(&store->locks, stripe))
        return true;
    struct node *node = hash_table_holds_near(&store->hash, item.hash_high, item.ref);
    if (node == NULL || !payload_is_evictable(node_meta(node))) {
        keep = false;
    } else if (seen && residents_was_seen(seen, item.ref)) {
        keep = false;
    } else if (node_meta(node) & NODE_TOUCHED) {
        /* Relaxed: only a hint, and writers may overwrite it. */
        atomic_fetch_and_explicit(&node->meta, ~NODE_TOUCHED, memory_order_relaxed);
    } else if (node_meta(node) & NODE_EXTERNAL ? excess.external : excess.internal) {
        keep = !payload_evict(store, p, node, hash, hint);
        if (!keep)
            count_one(&p->evicted);
    }
    if (keep)
        *kind = kind_of(node_meta(node)); /* writes may have changed it */
    keylock_release(&store->locks, stripe);
    return keep;
}

/* Asks for the leaves of those that will probably go. They may all have changed until their locks are taken:
 * these are only hints. */
static void prefetch_leaves(struct store *store, const struct resident *items, unsigned n, uint32_t *hints)
{
    struct slice names[STEPS_BETWEEN_LOOKS];
    uint32_t leaves[STEPS_BETWEEN_LOOKS];
    unsigned indexes[STEPS_BETWEEN_LOOKS], count = 0;
    for (unsigned i = 0; i < n; i++) {
        const struct node *node = hash_table_holds_near(&store->hash, items[i].hash_high, items[i].ref);
        hints[i] = 0;
        if (node == NULL || node_meta(node) & (NODE_TOUCHED | NODE_TOMBSTONE))
            continue;
        indexes[count] = i;
        names[count++] = node_key(node);
    }
    ordered_prefetch(&store->ordered, names, leaves, count);
    for (unsigned i = 0; i < count; i++)
        hints[indexes[i]] = leaves[i];
}

/* The oldest of a queue, which may be another worker's. seen: as for keeps. False: there is none. */
static bool consider_some(struct store *store, struct store_worker_private *p, struct resident_queue *q,
                          struct excess excess, struct seen_refs *seen)
{
    struct resident items[STEPS_BETWEEN_LOOKS], kept[RESIDENT_KINDS][STEPS_BETWEEN_LOOKS];
    uint32_t hints[STEPS_BETWEEN_LOOKS] = {0};
    unsigned n = residents_take(q, items, STEPS_BETWEEN_LOOKS, seen != NULL), counts[RESIDENT_KINDS] = {0};
    uint64_t evicted = relaxed_load(&p->evicted);
    for (unsigned i = 0; i < n; i++) {
        hash_table_prefetch(&store->hash, (uint64_t)items[i].hash_high << 32);
        __builtin_prefetch(arena_at(&store->arena, items[i].ref));
    }
    if (excess.external || excess.internal)
        prefetch_leaves(store, items, n, hints);
    for (unsigned i = 0; i < n; i++) {
        enum resident_kind kind = q->kind;
        if (keeps(store, p, items[i], excess, hints[i], seen, &kind))
            kept[kind][counts[kind]++] = items[i];
    }
    for (unsigned kind = 0; kind < RESIDENT_KINDS; kind++)
        if (counts[kind])
            residents_put(kind == (unsigned)q->kind ? q : &p->residents[kind], kept[kind], counts[kind]);
    if (seen == NULL)
        p->fruitless = relaxed_load(&p->evicted) == evicted ? p->fruitless + n : 0;
    return n > 0;
}

/* ---- what is stale in a queue ---- */

/* Deletes leave entries behind, and a key that is deleted and set again has one more each time, perhaps of
 * the same node or of another one in the same place. They go when they come to the front, which may be never
 * while there is enough memory. So a queue that is too long is gone through once, some entries with each
 * write: what has left goes, and of several entries of one node all but the first.
 *
 * An entry goes only when its pass has kept another one of the node since the pass began, behind all that the
 * pass looks at; so one always stays, whoever else takes from the queue. */
static void drop_stale(struct store *store, struct store_worker_private *p, struct resident_queue *q)
{
    uint64_t refs = relaxed_load(&store->arena.used_bytes) / ARENA_UNIT_BYTES;
    if (q->seen == NULL && !residents_pass_begin(q, refs))
        return; /* with the next value */
    if (!consider_some(store, p, q, (struct excess){0}, q->seen))
        residents_pass_end(q);
}

static bool has_stale(const struct store *store, const struct resident_queue *q)
{
    return q->seen || relaxed_load(&q->count) > 2 * relaxed_load(&store->keys) + RESIDENTS_CHUNK;
}

/* So many steps of passes over the worker's own queues. The caller holds no key's lock. True: a pass is under
 * way. */
static bool drop_some_stale(struct store_worker *sw, unsigned steps)
{
    bool more = false;
    for (unsigned kind = 0; kind < RESIDENT_KINDS; kind++) {
        struct resident_queue *q = &sw->private->residents[kind];
        for (unsigned i = 0; i < steps && has_stale(sw->store, q); i += STEPS_BETWEEN_LOOKS)
            drop_stale(sw->store, sw->private, q);
        more |= q->seen != NULL;
    }
    return more;
}

/* Of the worker that has brought most. */
static struct resident_queue *longest_queue(struct store *store, enum resident_kind kind)
{
    struct resident_queue *longest = &store->workers[0].private->residents[kind];
    for (unsigned i = 1; i < store_participants(store); i++) {
        struct resident_queue *q = &store->workers[i].private->residents[kind];
        if (relaxed_load(&q->count) > relaxed_load(&longest->count))
            longest = q;
    }
    return longest;
}

/* Of all queues; about, as others work on them. */
static uint64_t resident_count(const struct store *store)
{
    uint64_t count = 0;
    for (unsigned i = 0; i < store_participants(store); i++)
        for (unsigned kind = 0; kind < RESIDENT_KINDS; kind++)
            count += relaxed_load(&store->workers[i].private->residents[kind].count);
    return count;
}

/* True: there is still too much, and more to look at. */
bool memory_relieve(struct store_worker *sw, unsigned steps)
{
    struct store *store = sw->store;
    struct store_worker_private *p = sw->private;
    if (!store_evicts(store))
        return false;
    (void)drop_some_stale(sw, steps);
    for (unsigned i = 0; i < steps; i += STEPS_BETWEEN_LOOKS) {
        struct excess excess = excess_of(store, p);
        bool any =
            excess.external && consider_some(store, p, longest_queue(store, RESIDENT_EXTERNAL), excess, NULL);
        any |=
            excess.internal && consider_some(store, p, longest_queue(store, RESIDENT_INTERNAL), excess, NULL);
        if (!any)
            return false;
    }
    return true;
}

void memory_resident(struct store *store, struct store_worker_private *p, uint64_t hash, uint32_t ref,
                     uint32_t meta)
{
    struct resident item = {.hash_high = (uint32_t)(hash >> 32), .ref = ref};
    residents_put(&p->residents[kind_of(meta)], &item, 1);
}

/* ---- what comes back ---- */

/* In a full memory a return costs another value its place: two exchanges in the index. When more is read
 * again and again than memory holds, that is work for nothing at every other read: so many a millisecond. */
static bool may_return(const struct store_worker *sw)
{
    struct store_worker_private *p = sw->private;
    if (!memory_is_pressed(sw->store))
        return true;
    uint64_t passed_ms = sw->now_ms - p->returns_ms;
    uint64_t credit =
        p->returns_credit + (passed_ms < RETURNS_AT_ONCE ? passed_ms : RETURNS_AT_ONCE) * RETURNS_PER_MS;
    p->returns_ms = sw->now_ms;
    p->returns_credit = credit < RETURNS_AT_ONCE ? (uint32_t)credit : RETURNS_AT_ONCE;
    if (p->returns_credit == 0)
        return false;
    p->returns_credit--;
    return true;
}

bool store_value_arrived(struct store_worker *sw, const struct store_key *key, uint64_t address,
                         struct slice value, bool scan)
{
    struct store *store = sw->store;
    uint32_t stripe = keylock_stripe(key->hash);
    bool promoted = false, evicts = store_evicts(store);
    if ((scan && evicts) || !keylock_try(&store->locks, stripe))
        return false;
    struct node *node = hash_table_find(&store->hash, key->hash, key->name);
    if (node && node_meta(node) & NODE_COLD && payload_get(node).address == address) {
        /* Without a cap there is room for all: a start has left them on disk. Relaxed: see keeps. */
        if (!evicts ||
            (atomic_fetch_or_explicit(&node->meta, NODE_TOUCHED, memory_order_relaxed) & NODE_TOUCHED &&
             may_return(sw)))
            promoted = payload_promote(store, sw->private, node, key->hash, value);
    }
    keylock_release(&store->locks, stripe);
    if (promoted) {
        count_one(&sw->private->promoted);
        (void)memory_relieve(sw, STEPS_OF_WRITE);
    }
    return promoted;
}

/* ---- writes ---- */

bool memory_refuses(const struct store *store, uint64_t bytes, bool creates)
{
    if (store_evicts(store) && !(creates && memory_is_pressed(store)))
        return false;
    struct memory_use use = memory_use(store);
    if (use.cap_bytes == 0)
        return false;
    if (store->config.durability == STORE_NONE)
        return use.arena_live_bytes + use.value_bytes + use.hash_bytes + use.buffer_bytes + bytes >
               use.cap_bytes;
    /* Buffers come and go: they refuse nothing that would stay for longer, but for the part they often have.
     */
    uint64_t often = use.cap_bytes / BUFFERS_OFTEN_SHARE;
    uint64_t spared = use.buffer_bytes > often ? use.buffer_bytes - often : 0;
    bytes += memory_bare_bytes(&use) - spared;
    return bytes > memory_low_bytes(&use) || bytes + use.growth_bytes > use.budget_bytes;
}

/* Of what is free in the arena there are no pieces in which the nodes fit, or, of new keys, the pages of the
 * order that name them (each is copied for a new name), and fresh memory would be too much. Nodes with values
 * move to others when their values leave: see arena.h, where memory is short. Some pieces stay for those
 * others. */
static bool is_full(struct store *store, struct store_worker_private *p, uint64_t nodes, uint64_t bytes,
                    bool creates)
{
    uint64_t most = PAYLOAD_NODE_BYTES_EVICTED, each = bytes / nodes < most ? bytes / nodes : most;
    struct memory_use use = memory_use(store);
    if (use.cap_bytes == 0)
        return false;
    if (atomic_load_explicit(&store->merging, memory_order_relaxed) == 0 &&
        (!creates || arena_has_free(&p->arena, arena_class(PAGE_BYTES), nodes + PAGES_KEPT)) &&
        arena_has_free(&p->arena, arena_class(each), nodes + NODES_KEPT))
        return false;
    return !region_fits(store, p, &use);
}

bool memory_has_node(struct store *store, struct store_worker_private *p, size_t bytes)
{
    if (LIKELY(!memory_is_pressed(store)) || !store_evicts(store) || store->config.no_threads)
        return true;
    if (arena_has_free(&p->arena, arena_class(bytes), 1))
        return true;
    struct memory_use use = memory_use(store);
    return region_fits(store, p, &use);
}

bool memory_gets_nodes(const struct store_worker_private *p)
{
    return p->epoch.pending >= PENDING_LEAST;
}

/* Could values leave, so many that a piece can come of it? Those in the arena are between nodes that stay, so
 * a few of them give nodes, but no page. */
static bool may_leave(const struct store *store, bool creates)
{
    struct memory_use use = memory_use(store);
    return resident_count(store) != 0 && (!creates || use.share_bytes > use.arena_live_bytes / LEAVE_SHARE ||
                                          use.value_bytes > ARENA_REGION_BYTES);
}

/* New keys have found no room, again. What has left memory goes back to the kernel within half a second, and
 * then a region may fit. Has none for a second? Relaxed, and of several workers' any order: only times. */
static bool is_full_for_long(struct store *store)
{
    uint64_t now_ms = relaxed_load(&store->clock_ms), used = relaxed_load(&store->arena.used_bytes);
    if (used != relaxed_load(&store->full_used_bytes) ||
        now_ms > relaxed_load(&store->full_last_ms) + FULL_LONG_MS) {
        atomic_store_explicit(&store->full_used_bytes, used, memory_order_relaxed);
        atomic_store_explicit(&store->full_since_ms, now_ms, memory_order_relaxed);
    }
    atomic_store_explicit(&store->full_last_ms, now_ms, memory_order_relaxed);
    return now_ms > relaxed_load(&store->full_since_ms) + FULL_LONG_MS;
}

enum memory_room memory_room(struct store *store, struct store_worker_private *p, uint64_t nodes,
                             uint64_t bytes, bool creates)
{
    if (LIKELY(!memory_is_pressed(store)) || !store_evicts(store) || store->config.no_threads ||
        !is_full(store, p, nodes, bytes,
                 creates)) /* without threads (simulations) a cap is a few of its regions */
        return MEMORY_ROOM;
    /* Relaxed: only a time. */
    atomic_store_explicit(&store->full_ms, relaxed_load(&store->clock_ms), memory_order_relaxed);
    bool lasts = !creates || is_full_for_long(store);
    if (!memory_merges(store, p) && lasts && !may_leave(store, creates))
        return MEMORY_FULL;
    p->room.refused = true; /* it waits, but not for ever */
    return MEMORY_ROOM_LATER;
}

unsigned memory_unlinks(const struct store *store, const struct store_worker_private *p, unsigned most)
{
    if (LIKELY(!memory_is_pressed(store)) || !store_evicts(store))
        return most;
    /* Some in any case: writes alone may keep as many pending. */
    uint64_t pending = p->epoch.pending, least = STEPS_BETWEEN_LOOKS;
    uint64_t left = pending + least < PENDING_LEAST ? PENDING_LEAST - pending : least;
    return left < most ? (unsigned)left : most;
}

bool memory_must_settle(const struct store *store, const struct store_worker_private *p)
{
    uint64_t bytes = relaxed_load(&p->epoch.bytes);
    if (LIKELY(bytes < UNSETTLED_BYTES_LEAST))
        return false;
    uint64_t cap = relaxed_load(&store->memory_bytes_max),
             most = cap ? cap / UNSETTLED_SHARE : UNSETTLED_BYTES_MAX;
    return bytes > (most > UNSETTLED_BYTES_LEAST ? most : UNSETTLED_BYTES_LEAST);
}

/* Candidates to look at when so many bytes have come at once. */
static unsigned steps_for(uint64_t bytes)
{
    uint64_t steps = bytes / ROOM_STEP_BYTES + 1;
    return steps < ROOM_STEPS_MAX ? (unsigned)steps : ROOM_STEPS_MAX;
}

void memory_after_write(struct store_worker *sw, uint64_t bytes)
{
    struct store_worker_private *p = sw->private;
    p->unlooked_bytes += bytes;
    (void)drop_some_stale(sw, STEPS_BETWEEN_LOOKS);
    if (p->unlooked_bytes < LOOK_BYTES && !memory_is_pressed(sw->store))
        return;
    p->unlooked_bytes = 0;
    (void)memory_relieve(sw, bytes <= LOOK_BYTES ? STEPS_OF_WRITE : steps_for(bytes));
}

void store_buffers_set(struct store_worker *sw, uint64_t bytes)
{
    struct store_worker_private *p = sw->private;
    uint64_t before = relaxed_load(&p->buffer_bytes);
    if (UNLIKELY(p->give_back_turns)) {
        if (--p->give_back_turns % GIVE_BACK_EVERY == 0)
            memory_give_back();
    }
    if (bytes == before)
        return;
    atomic_store_explicit(&p->buffer_bytes, bytes, memory_order_relaxed);
    if (!store_evicts(sw->store))
        return;
    uint64_t grown = bytes > before ? bytes - before : 0;
    if (grown >= LOOK_BYTES || (grown && memory_is_pressed(sw->store)))
        (void)memory_relieve(sw, steps_for(grown));
    /* Values' memory is in other sizes than buffers need, and the allocator keeps it for some time. It gets
     * it some turns from now. */
    uint64_t level = p->buffers_level, moved = bytes > level ? bytes - level : level - bytes;
    if (memory_is_pressed(sw->store) &&
        moved > relaxed_load(&sw->store->memory_bytes_max) / GIVE_BACK_SHARE) {
        p->buffers_level = bytes;
        p->give_back_turns = GIVE_BACK_TURNS;
    }
}

/* ---- from time to time ---- */

void memory_prepare(struct store *store)
{
    for (unsigned i = 0; i < store_participants(store); i++) {
        struct store_worker_private *p = store->workers[i].private;
        if (store_evicts(store) && !store->config.no_threads && room_take(store, p, ARENA_REGION_BYTES))
            arena_prepare(&p->arena);
        room_end(store, p);
    }
}

/* Somebody has found no room: values leave, whatever is counted. */
static void relieve_short(struct store_worker *sw, struct room_state *room)
{
    struct store *store = sw->store;
    uint64_t bytes = relaxed_load(&room->short_bytes);
    if (LIKELY(bytes == 0))
        return;
    atomic_store_explicit(&room->short_bytes, 0, memory_order_relaxed);
    int64_t until = atomic_load_explicit(&store->value_bytes, memory_order_relaxed) - (int64_t)bytes;
    struct excess excess = {.external = true};
    for (unsigned i = 0; i < steps_for(bytes); i += STEPS_BETWEEN_LOOKS) {
        if (atomic_load_explicit(&store->value_bytes, memory_order_relaxed) <= until ||
            !consider_some(store, sw->private, longest_queue(store, RESIDENT_EXTERNAL), excess, NULL))
            return;
    }
}

bool memory_start_room(struct store_worker *sw, uint64_t bytes, bool make)
{
    struct store *store = sw->store;
    struct room_state *room = &sw->private->room;
    if (store->config.no_threads || !memory_resident_is_ours())
        return true;
    unsigned most = make ? START_TRIES : bytes >= START_GIVE_BACK_BYTES ? 1 : 0;
    for (unsigned tries = 0;; tries++) {
        uint64_t all = memory_resident_bytes() + bytes, limit = room_limit(store);
        if (all <= limit)
            return true;
        if (tries == most)
            return false;
        if (make && all - limit > room_unsettled(store)) {
            atomic_store_explicit(&room->short_bytes, all - limit - room_unsettled(store),
                                  memory_order_relaxed);
            relieve_short(sw, room);
        }
        if (make) {
            epoch_exit(&sw->private->epoch);
            epoch_enter(&sw->private->epoch);
        }
        memory_give_back();
    }
}

static uint64_t many_buffers(const struct memory_use *use)
{
    return use->budget_bytes / BUFFERS_MANY_SHARE;
}

/* Between two measurements the allocator may take much more than is counted. What comes near the cap makes
 * values leave at once; but no write is refused for it. */
static void watch(struct store *store, const struct memory_use *use, uint64_t rss)
{
    uint64_t high = use->budget_bytes + room_unsettled(store); /* those have left already */
    atomic_store_explicit(&store->urgent_bytes, rss > high ? rss - high : 0, memory_order_relaxed);
    if (rss > high && use->buffer_bytes > many_buffers(use))
        memory_give_back();
}

/* A hash table that would not fit is not made, for it would be the end of new keys; the present one gets
 * overflow buckets. Only values of their own could make room for it: what is the arena's stays so, and nodes
 * may grow. */
static void set_table_room(struct store *store, const struct memory_use *use)
{
    uint64_t fixed = resident_bytes(use) - use->value_bytes + use->growth_bytes;
    uint64_t low = memory_low_bytes(use);
    hash_table_set_room(&store->hash, fixed < low ? low - fixed : 0);
}

bool memory_start_turn(struct store_worker *sw)
{
    struct store *store = sw->store;
    if (store->config.no_threads || !memory_resident_is_ours())
        return true;
    struct memory_use use = memory_use(store);
    uint64_t rss = memory_resident_bytes();
    if (rss > use.budget_bytes) {
        memory_give_back();
        rss = memory_resident_bytes();
    }
    watch(store, &use, rss);
    set_table_room(store, &use);
    memory_merge_all(store, sw->private);
    return rss <= use.budget_bytes;
}

void memory_measure(struct store *store)
{
    struct memory_use use = memory_use(store);
    uint64_t counted = resident_bytes(&use) - use.slack_bytes - hash_table_untouched_bytes(&store->hash);
    uint64_t rss = memory_resident_bytes();
    watch(store, &use, rss);
    uint64_t slack = rss > counted ? rss - counted : 0;
    /* Evicted values' memory is the allocator's for some time: that alone must not evict more. */
    uint64_t step = use.budget_bytes / SLACK_STEP_SHARE;
    if (store->measured && slack > use.slack_bytes + step)
        slack = use.slack_bytes + step;
    /* Buffers count before they are resident: what they hide is there all the same, for some time. */
    if (use.buffer_bytes > many_buffers(&use) && slack + step < use.slack_bytes)
        slack = use.slack_bytes - step;
    store->measured = true;
    atomic_store_explicit(&store->slack_bytes, slack, memory_order_relaxed);
    use.slack_bytes = slack;
    set_table_room(store, &use);
}

/* A cap was set while the store was running: values that came before must be in a queue. */
static bool fill_queue(struct store_worker *sw, unsigned steps)
{
    struct store *store = sw->store;
    struct ordered_cursor cursor;
    struct node *node;
    ordered_seek(&cursor, &store->ordered, slice_make(store->fill_position, store->fill_position_len), false);
    while ((node = ordered_next(&cursor)) && steps-- > 0) {
        if (payload_is_evictable(node_meta(node)))
            memory_resident(store, sw->private, hash_table_hash(&store->hash, node_key(node)),
                            arena_ref(&store->arena, node), node_meta(node));
    }
    if (node) {
        store_remember(&store->fill_position, &store->fill_position_len, node_key(node));
        return true;
    }
    free(store->fill_position);
    store->fill_position = NULL;
    store->fill_position_len = 0;
    /* Relaxed: both ends of it are hints; a second walk does no harm. */
    atomic_store_explicit(&store->fill_wanted, false, memory_order_relaxed);
    return false;
}

bool memory_background(struct store_worker *sw, unsigned steps, uint64_t *due_ms)
{
    struct store *store = sw->store;
    if (!store_evicts(store))
        return false;
    bool more = drop_some_stale(sw, steps);
    more |= memory_merge_some(store, sw->private, steps);
    relieve_short(sw, &sw->private->room);
    if (sw->private->index == 0) {
        relieve_short(sw, &store->keeper.sw->private->room);
        if (sw->now_ms >= store->measure_next_ms && !store->config.no_threads) {
            memory_measure(store);
            store->measure_next_ms = sw->now_ms + MEASURE_PERIOD_MS;
            store->watch_next_ms = sw->now_ms + WATCH_PERIOD_MS;
        } else if (sw->now_ms >= store->watch_next_ms && !store->config.no_threads) {
            struct memory_use use = memory_use(store);
            watch(store, &use, memory_resident_bytes());
            store->watch_next_ms = sw->now_ms + WATCH_PERIOD_MS;
        }
        if (due_ms && store->measure_next_ms < *due_ms)
            *due_ms = store->measure_next_ms;
        if (atomic_load_explicit(&store->fill_wanted, memory_order_relaxed))
            more |= fill_queue(sw, steps);
    }
    /* Twice round the queues: who was read since the last time leaves in the second. When that has helped
     * nothing, at the next measurement. */
    struct store_worker_private *p = sw->private;
    bool excess = memory_relieve(sw, steps);
    if (excess && p->fruitless <= 2 * resident_count(store))
        return true;
    p->fruitless = 0;
    return more;
}

void store_memory_max_set(struct store *store, uint64_t bytes)
{
    bool had = atomic_exchange_explicit(&store->memory_bytes_max, bytes, memory_order_relaxed) != 0;
    bool evicts = bytes && store->config.durability != STORE_NONE;
    if (!had && evicts)
        atomic_store_explicit(&store->fill_wanted, true, memory_order_relaxed);
    atomic_store_explicit(&store->evicts, evicts, memory_order_relaxed);
    if (bytes == 0) {
        arena_soften(&store->arena, UINT64_MAX);
        hash_table_set_room(&store->hash, UINT64_MAX);
    }
}
