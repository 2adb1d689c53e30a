/* Writing. The happy path of a commit, all under the keys' locks: reserve log space (nothing has been changed
 * yet, so a refusal costs nothing), copy the records, publish them to the log, mark the nodes busy, change
 * them, publish them. A reader that sees the new state also sees its LSN, and its reply waits until that is
 * durable.
 *
 * Several keys become visible together: all nodes are busy before the first is published, so who reads one of
 * them new cannot then read another one old. */
#include <stdlib.h>

#include "base/check.h"
#include "store/fetch.h"
#include "store/internal.h"
#include "store/write_log.h"

/* ---- locks ---- */

bool store_lock_all(struct store *store)
{
    for (uint32_t i = 0; i < KEYLOCK_STRIPES; i++) {
        if (keylock_acquire(&store->locks, i))
            continue;
        while (i-- > 0)
            keylock_release(&store->locks, i);
        return false;
    }
    return true;
}

void store_unlock_all(struct store *store)
{
    for (uint32_t i = 0; i < KEYLOCK_STRIPES; i++)
        keylock_release(&store->locks, i);
}

static void unlock_entries(struct store_worker *sw)
{
    struct store_worker_private *p = sw->private;
    if (p->entry_count == 1)
        keylock_release(&sw->store->locks, p->entries[0].stripe);
    else
        for (unsigned i = 0; i < p->stripe_count; i++)
            keylock_release(&sw->store->locks, p->stripes[i]);
    p->entries = NULL;
    p->entry_count = 0;
}

static int compare_u32(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static bool lock_entries(struct store_worker *sw, struct store_entry *entries, unsigned n)
{
    struct store_worker_private *p = sw->private;
    p->stripes = store_grow(p->stripes, &p->stripes_capacity, n, sizeof *p->stripes);
    for (unsigned i = 0; i < n; i++)
        p->stripes[i] = entries[i].stripe = keylock_stripe(entries[i].key.hash);
    qsort(p->stripes, n, sizeof *p->stripes, compare_u32);
    p->stripe_count = 0;
    for (unsigned i = 0; i < n; i++) {
        if (i == 0 || p->stripes[i] != p->stripes[p->stripe_count - 1])
            p->stripes[p->stripe_count++] = p->stripes[i];
    }
    for (unsigned i = 0; i < p->stripe_count; i++) {
        if (keylock_acquire(&sw->store->locks, p->stripes[i]))
            continue;
        while (i-- > 0)
            keylock_release(&sw->store->locks, p->stripes[i]);
        return false;
    }
    return true;
}

/* ---- what is there ---- */

static void entry_fill(struct store_worker *sw, struct store_entry *e)
{
    struct store *store = sw->store;
    e->live = e->expired = e->cold = false;
    e->staged = STAGED_NOTHING;
    e->value = slice_make("", 0);
    e->expire_ms = 0;
    e->node = hash_table_find(&store->hash, e->key.hash, e->key.name);
    if (e->node == NULL)
        return;
    uint64_t lsn = atomic_load_explicit(&e->node->sequence, memory_order_relaxed) >> 1;
    store_depends(sw, lsn);
    if (node_meta(e->node) & NODE_TOMBSTONE)
        return;
    if (UNLIKELY(atomic_load_explicit(&store->range_count, memory_order_acquire) != 0)) {
        const struct store_range *range = store_covering_range(store, e->key.name, lsn);
        if (range) {
            store_depends(sw, range->lsn);
            return;
        }
    }
    struct payload payload = payload_get(e->node);
    e->value = slice_make(payload.value, payload.len);
    e->expire_ms = payload.expire_ms;
    if (UNLIKELY(payload.cold)) {
        e->version = lsn;
        e->address = payload.address;
        e->cold = fetch_look(sw, e->key.hash, e->key.name, lsn, payload.len, &e->value.data) != STORE_OK;
    }
    e->expired = payload.expire_ms && payload.expire_ms <= sw->now_ms;
    e->live = !e->expired;
}

struct by_hash {
    uint64_t hash;
    uint32_t index;
};

static int compare_by_hash(const void *a, const void *b)
{
    const struct by_hash *x = a, *y = b;
    if (x->hash != y->hash)
        return x->hash > y->hash ? 1 : -1;
    return (x->index > y->index) - (x->index < y->index);
}

/* Points entries that repeat a key to the first one with it. */
static void find_repeated(struct store_worker *sw, struct store_entry *entries, unsigned n)
{
    struct store_worker_private *p = sw->private;
    _Static_assert(sizeof(struct by_hash) == 2 * sizeof *p->hashes, "borrowed scratch");
    p->hashes = store_grow(p->hashes, &p->hashes_capacity, 2 * (size_t)n, sizeof *p->hashes);
    struct by_hash *order = (struct by_hash *)(void *)p->hashes;
    for (unsigned i = 0; i < n; i++) {
        entries[i].primary = i;
        order[i] = (struct by_hash){entries[i].key.hash, i};
    }
    qsort(order, n, sizeof *order, compare_by_hash);
    for (unsigned i = 1; i < n; i++) {
        for (unsigned j = i; j-- > 0 && order[j].hash == order[i].hash;) {
            struct store_entry *first = &entries[order[j].index];
            if (slice_equal(first->key.name, entries[order[i].index].key.name)) {
                entries[order[i].index].primary = first->primary;
                break;
            }
        }
    }
}

static void forget_large(struct store_worker_private *p)
{
    if (UNLIKELY(p->large != NULL)) {
        log_large_destroy(p->large);
        p->large = NULL;
        p->large_bytes = 0;
    }
}

/* What was taken for values that are not made now. */
static void return_room(struct store_worker_private *p)
{
    room_return(p, p->write_room);
    p->write_room = 0;
}

/* A long record's memory is made and touched before any lock; there must be room for its values too, so that
 * it does not wait with that memory in its hands. */
static enum store_result prepare_large(struct store_worker *sw, uint64_t bytes, uint64_t value_bytes)
{
    struct store_worker_private *p = sw->private;
    bool has = p->large && p->large_bytes >= bytes;
    if (!has)
        forget_large(p);
    if (!room_take(sw->store, p, (has ? 0 : bytes) + value_bytes)) {
        forget_large(p);
        return STORE_BUSY;
    }
    p->write_room = value_bytes;
    if (has)
        return STORE_OK;
    p->large = log_large_create(sw->store->log, bytes);
    p->large_bytes = p->large ? bytes : 0;
    room_made(sw->store, p, bytes); /* it is populated, or was not made */
    if (p->large)
        return STORE_OK;
    return_room(p);
    return STORE_NO_MEMORY;
}

/* Room for the values that a commit makes. Small ones are not kept from coming when nothing could leave for
 * them: see memory_room. */
static bool take_value_room(struct store *store, struct store_worker_private *p, uint64_t bytes)
{
    if (bytes <= p->write_room) {
        room_return(p, p->write_room - bytes);
    } else if (!room_take(store, p, bytes - p->write_room)) {
        if (bytes > LOG_SMALL_BYTES_MAX || room_may_come(store, p))
            return false;
    }
    p->write_room = bytes;
    return true;
}

enum store_result store_write_begin(struct store_worker *sw, struct store_entry *entries, unsigned n,
                                    uint64_t bytes_hint)
{
    struct store_worker_private *p = sw->private;
    CHECK(n > 0 && p->entry_count == 0);
    p->log_wait_bytes = 0;
    if (UNLIKELY(bytes_hint > LOG_SMALL_BYTES_MAX / 2) && sw->store->log) {
        uint64_t bytes = bytes_hint + RECORD_HEADER_BYTES;
        for (unsigned i = 0; i < n; i++)
            bytes += record_bytes(RECORD_SET_EXPIRE, entries[i].key.name.len, 0) + 8;
        if (bytes > LOG_SMALL_BYTES_MAX) {
            enum store_result r = prepare_large(sw, bytes, bytes); /* a bit more than the values */
            if (r != STORE_OK)
                return r;
        }
    }
    if (LIKELY(n == 1)) {
        entries[0].stripe = keylock_stripe(entries[0].key.hash);
        entries[0].primary = 0;
        if (!keylock_acquire(&sw->store->locks, entries[0].stripe)) {
            return_room(p);
            return STORE_BUSY;
        }
    } else {
        find_repeated(sw, entries, n);
        if (!lock_entries(sw, entries, n)) {
            return_room(p);
            return STORE_BUSY;
        }
    }
    p->entries = entries;
    p->entry_count = n;
    for (unsigned i = 0; i < n; i++)
        entry_fill(sw, &entries[i]);
    return STORE_OK;
}

/* ---- staging ---- */

bool store_entry_live(const struct store_entry *entries, unsigned i)
{
    const struct store_entry *e = &entries[entries[i].primary];
    return e->staged == STAGED_NOTHING || e->staged == STAGED_EXPIRE ? e->live : e->staged == STAGED_SET;
}

struct slice store_entry_value(const struct store_entry *entries, unsigned i)
{
    const struct store_entry *e = &entries[entries[i].primary];
    return e->staged == STAGED_SET ? e->new_value : e->value;
}

uint64_t store_entry_expire_ms(const struct store_entry *entries, unsigned i)
{
    const struct store_entry *e = &entries[entries[i].primary];
    if (e->staged == STAGED_SET || e->staged == STAGED_EXPIRE)
        return e->new_expire_ms;
    return e->live ? e->expire_ms : 0; /* what has expired leaves its expiry to nobody */
}

bool store_entry_cold(const struct store_entry *entries, unsigned i)
{
    const struct store_entry *e = &entries[entries[i].primary];
    return e->cold && e->live && (e->staged == STAGED_NOTHING || e->staged == STAGED_EXPIRE);
}

void store_stage_set(struct store_worker *sw, struct store_entry *entries, unsigned i, struct slice value,
                     uint64_t expire_ms)
{
    if (expire_ms && expire_ms <= sw->now_ms) {
        store_stage_delete(entries, i);
        return;
    }
    struct store_entry *e = &entries[entries[i].primary];
    e->staged = STAGED_SET;
    e->new_value = value;
    e->new_expire_ms = expire_ms;
}

void store_stage_delete(struct store_entry *entries, unsigned i)
{
    struct store_entry *e = &entries[entries[i].primary];
    /* Nothing there and nothing to take back: no record. */
    e->staged = e->live || e->expired ? STAGED_DELETE : STAGED_NOTHING;
}

void store_stage_expire(struct store_worker *sw, struct store_entry *entries, unsigned i, uint64_t expire_ms)
{
    struct store_entry *e = &entries[entries[i].primary];
    if (expire_ms && expire_ms <= sw->now_ms) {
        store_stage_delete(entries, i);
        return;
    }
    if (e->staged == STAGED_NOTHING)
        e->staged = STAGED_EXPIRE;
    e->new_expire_ms = expire_ms;
}

/* ---- the index's part ---- */

static void count_expiry(struct store *store, bool before, bool after)
{
    if (before != after)
        atomic_fetch_add_explicit(&store->expiring, after ? 1 : (uint64_t)-1, memory_order_relaxed);
}

static uint32_t take_hint(struct store_worker_private *p, uint64_t hash)
{
    const struct hint *h = &p->hints[hash % STORE_HINTS];
    return h->hash == hash && h->turn == p->turn ? h->leaf : 0;
}

/* Makes the entry's node busy; a new node goes into the index, busy. */
static void apply_begin(struct store_worker *sw, struct store_entry *e, uint64_t lsn)
{
    struct store_worker_private *p = sw->private;
    struct store *store = sw->store;
    if (e->node) {
        node_begin(e->node);
        return;
    }
    e->node = payload_node_create(store, p, e->key.name, e->key.hash, e->new_value, e->new_expire_ms, lsn);
    uint32_t ref = arena_ref(&store->arena, e->node);
    ordered_insert(&store->ordered, &p->arena, &p->epoch, ref, take_hint(p, e->key.hash));
    hash_table_insert(&store->hash, &p->arena, &p->epoch, e->key.hash, ref);
    e->staged = STAGED_NOTHING; /* content is complete: only publish */
    count_expiry(store, false, e->new_expire_ms != 0);
}

static void apply_end(struct store_worker *sw, struct store_entry *e, uint64_t lsn)
{
    struct store_worker_private *p = sw->private;
    struct store *store = sw->store;
    bool had_expiry = node_meta(e->node) & NODE_EXPIRES;
    switch (e->staged) {
    case STAGED_SET:
        e->node = payload_set(store, p, e->node, e->key.hash, e->new_value, e->new_expire_ms, lsn);
        count_expiry(store, had_expiry, e->new_expire_ms != 0);
        break;
    case STAGED_EXPIRE:
        e->node = payload_expire(store, p, e->node, e->key.hash, e->new_expire_ms, lsn);
        count_expiry(store, had_expiry, e->new_expire_ms != 0);
        break;
    case STAGED_DELETE:
        payload_clear(store, p, e->node);
        count_expiry(store, had_expiry, false);
        store_tombstone_add(sw, lsn, e->key.hash, arena_ref(&store->arena, e->node));
        if (e->expired)
            atomic_fetch_add_explicit(&store->expired, 1, memory_order_relaxed);
        break;
    default:
        break;
    }
    node_publish(e->node, lsn);
}

/* How the number of keys changes. A key that has expired is counted until its delete. */
static int64_t count_change(const struct store_entry *e)
{
    bool counted = e->live || e->expired;
    if (e->staged == STAGED_SET)
        return !counted;
    return e->staged == STAGED_DELETE ? -1 : 0;
}

static void apply(struct store_worker *sw, unsigned records, uint64_t lsn)
{
    struct store_worker_private *p = sw->private;
    int64_t change = 0;
    uint64_t at = lsn;
    for (unsigned i = 0; i < p->entry_count; i++) {
        struct store_entry *e = &p->entries[i];
        if (e->staged == STAGED_NOTHING || e->primary != i)
            continue;
        e->lsn = at;
        at += write_record_bytes(e);
        change += count_change(e);
        apply_begin(sw, e, e->lsn);
    }
    if (change)
        atomic_fetch_add_explicit(&sw->store->keys, (uint64_t)change, memory_order_release);
    for (unsigned i = 0; i < p->entry_count && records; i++) {
        struct store_entry *e = &p->entries[i];
        if (e->lsn == 0)
            continue;
        apply_end(sw, e, e->lsn);
        store_depends(sw, e->lsn);
        records--;
    }
}

/* ---- commit ---- */

static struct write_plan make_plan(struct store_worker_private *p)
{
    struct write_plan plan = {.only_deletes = true};
    for (unsigned i = 0; i < p->entry_count; i++) {
        struct store_entry *e = &p->entries[i];
        e->lsn = 0;
        if (e->primary != i)
            continue;
        if (e->staged == STAGED_NOTHING && e->expired)
            e->staged = STAGED_DELETE; /* it was seen to be gone: so it must stay */
        if (e->staged == STAGED_NOTHING)
            continue;
        plan.records++;
        plan.bytes += write_record_bytes(e);
        if (e->staged == STAGED_SET)
            plan.value_bytes += e->new_value.len + (e->node ? 0 : e->key.name.len);
        else if (UNLIKELY(e->staged == STAGED_EXPIRE) && !e->cold)
            plan.copied_bytes += e->value.len;
        plan.only_deletes &= e->staged == STAGED_DELETE;
        plan.creates |= e->node == NULL;
    }
    if (plan.records > 1)
        plan.bytes += record_bytes(RECORD_TXN, 0, 0);
    plan.value_bytes += plan.copied_bytes;
    return plan;
}

/* Of all nodes that the write may make. Asked for only where memory is short. */
static uint64_t node_bytes(const struct store *store, const struct store_worker_private *p)
{
    uint64_t bytes = 0;
    for (unsigned i = 0; i < p->entry_count; i++) {
        const struct store_entry *e = &p->entries[i];
        bool sets = e->staged == STAGED_SET;
        if (e->primary == i && (sets || e->staged == STAGED_EXPIRE))
            bytes += payload_node_bytes(store, e->key.name.len, sets ? e->new_value.len : e->value.len,
                                        e->new_expire_ms != 0, !sets && e->cold);
    }
    return bytes;
}

/* Would the write go beyond the cap, or beyond what the index can address? Deletes may always go on. */
static bool is_over_memory(const struct store *store, const struct write_plan *plan)
{
    uint64_t cap =
        atomic_load_explicit(&((struct store *)(uintptr_t)store)->memory_bytes_max, memory_order_relaxed);
    if (plan->only_deletes)
        return false;
    if (UNLIKELY(arena_room(&store->arena) < STORE_ARENA_KEPT_BYTES + plan->bytes))
        return true;
    return UNLIKELY(cap != 0) && memory_refuses(store, plan->bytes, plan->creates);
}

enum store_result store_write_commit(struct store_worker *sw)
{
    struct store_worker_private *p = sw->private;
    struct store *store = sw->store;
    CHECK(p->entry_count > 0);
    struct write_plan plan = make_plan(p);
    enum store_result result = STORE_OK;
    uint64_t lsn = 0;
    bool grow_large = false, no_room = false;
    if (plan.records == 0)
        goto done;
    if (UNLIKELY(is_over_memory(store, &plan))) {
        result = STORE_NO_MEMORY;
        goto done;
    }
    if (UNLIKELY(memory_must_settle(store, p)) && !plan.only_deletes) {
        result = STORE_BUSY;
        goto done;
    }
    enum memory_room room = MEMORY_ROOM;
    if (UNLIKELY(memory_is_pressed(store)) && !plan.only_deletes)
        room = memory_room(store, p, plan.records, node_bytes(store, p), plan.creates);
    if (UNLIKELY(room == MEMORY_FULL) && plan.creates) {
        result = STORE_NO_MEMORY;
        goto done;
    }
    if (UNLIKELY(store_evicts(store)) && !plan.only_deletes &&
        (room == MEMORY_ROOM_LATER || !take_value_room(store, p, plan.value_bytes))) {
        no_room = true;
        result = STORE_BUSY;
        goto done;
    }
    if (UNLIKELY(plan.bytes > LOG_SMALL_BYTES_MAX) && store->log &&
        (!p->large || p->large_bytes < plan.bytes)) {
        grow_large = true;
        result = STORE_BUSY;
        goto done;
    }
    result = write_log(sw, &plan, &lsn);
    if (result == STORE_OK) {
        apply(sw, plan.records, lsn);
        p->write_room = 0;
    }
done:
    return_room(p);
    unlock_entries(sw);
    if (UNLIKELY(store_evicts(store)))
        memory_after_write(sw, plan.bytes);
    if (UNLIKELY(grow_large)) {
        if (prepare_large(sw, plan.bytes, plan.value_bytes) == STORE_NO_MEMORY)
            result = STORE_NO_MEMORY;
        return_room(p); /* the next try takes it again */
    } else if (result != STORE_BUSY || no_room) {
        forget_large(p);
    }
    return result;
}

uint64_t store_log_wait(struct store_worker *sw)
{
    uint64_t bytes = sw->private->log_wait_bytes;
    sw->private->log_wait_bytes = 0;
    return bytes;
}

bool store_log_may_go_on(struct store_worker *sw, uint64_t bytes)
{
    return log_large_ask(sw->store->log, bytes, LOG_NORMAL) != LOG_WAIT;
}

void store_write_abort(struct store_worker *sw)
{
    unlock_entries(sw);
    return_room(sw->private);
    forget_large(sw->private);
}

enum store_result store_expire_key(struct store_worker *sw, const struct store_key *key)
{
    if (sw->private->entry_count)
        return STORE_OK; /* inside a write: its commit takes care of it */
    struct store_entry entry = {.key = *key};
    if (store_write_begin(sw, &entry, 1, 0) == STORE_BUSY)
        return STORE_BUSY;
    enum store_result r = store_write_commit(sw);
    return r == STORE_BUSY ? STORE_BUSY : STORE_OK;
}
