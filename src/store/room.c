/* Room: what the process will take next fits below the cap, measured, not reckoned. See room.h. */
#include "base/check.h"
#include "base/relaxed.h"
#include "store/internal.h"
#include "store/room.h"
#include "sys/memory.h"

enum {
    RESERVE_PARTS = 3, /* of eight of the margin: what takes memory without asking */
    STEP_SHARE = 256,  /* of the cap, asked for at once by many small ones */
    STEP_BYTES_MAX = 1 << 20,
};

/* Without threads (simulations) only where a test says what is resident. */
static bool is_asked(const struct store *store)
{
    return store_evicts(store) &&
           (store->config.resident_bytes || (memory_resident_is_ours() && !store->config.no_threads));
}

static uint64_t resident(const struct store *store)
{
    return store->config.resident_bytes ? store->config.resident_bytes(store->config.context)
                                        : memory_resident_bytes();
}

uint64_t room_limit(const struct store *store)
{
    return room_limit_of(relaxed_load(&store->memory_bytes_max));
}

uint64_t room_limit_of(uint64_t cap)
{
    return cap - memory_margin_bytes(cap) / 8 * RESERVE_PARTS;
}

uint64_t room_unsettled(const struct store *store)
{
    uint64_t bytes = 0;
    for (unsigned i = 0; i < store_participants(store); i++)
        bytes += relaxed_load(&store->workers[i].private->epoch.bytes);
    return bytes;
}

/* Promises so many bytes more if they fit. Announce, then measure: of two that ask at the same time the one
 * that measures later sees the other's promise. *over: by how much they do not fit. Sequentially consistent,
 * as room_end's and room_keep's: what a promise is given back for has been written to before. */
static bool promise(struct store *store, struct room_state *room, uint64_t bytes, uint64_t *over)
{
    uint64_t all = atomic_fetch_add(&store->promised_bytes, bytes) + bytes + resident(store);
    uint64_t limit = room_limit(store);
    if (all <= limit) {
        room->promised += bytes;
        room->allowance += bytes;
        return true;
    }
    atomic_fetch_sub(&store->promised_bytes, bytes);
    *over = all - limit;
    return false;
}

/* Room is short. Freed memory may be the allocator's still. If it is not that, values must leave, but for
 * those that have left already and are not free yet. */
static bool make_room(struct store *store, struct store_worker_private *p, uint64_t bytes, uint64_t over)
{
    struct room_state *room = &p->room;
    uint64_t now_ms = relaxed_load(&store->clock_ms);
    if (now_ms == room->purged_ms) /* often enough */
        return false;
    room->purged_ms = now_ms;
    memory_give_back();
    if (promise(store, room, bytes, &over))
        return true;
    uint64_t unsettled = room_unsettled(store);
    atomic_store_explicit(&room->short_bytes, over > unsettled ? over - unsettled : 0, memory_order_relaxed);
    return false;
}

static __attribute__((noinline)) bool ask(struct store *store, struct store_worker_private *p, uint64_t bytes)
{
    struct room_state *room = &p->room;
    uint64_t over = 0, missing = bytes - room->allowance,
             step = relaxed_load(&store->memory_bytes_max) / STEP_SHARE;
    if (!is_asked(store))
        return true;
    if (step > STEP_BYTES_MAX)
        step = STEP_BYTES_MAX;
    if (missing < step && promise(store, room, step, &over))
        missing = 0;
    if (missing && !promise(store, room, missing, &over) && !make_room(store, p, missing, over)) {
        room->refused = true;
        room->over = over;
        return false;
    }
    room->allowance -= bytes;
    return true;
}

/* What could leave. */
static uint64_t values_bytes(struct store *store)
{
    int64_t values = atomic_load_explicit(&store->value_bytes, memory_order_relaxed);
    return (values > 0 ? (uint64_t)values : 0) + room_unsettled(store);
}

bool room_may_come(struct store *store, const struct store_worker_private *p)
{
    return p->room.over <= values_bytes(store);
}

bool room_take(struct store *store, struct store_worker_private *p, uint64_t bytes)
{
    if (LIKELY(p->room.allowance >= bytes)) {
        p->room.allowance -= bytes;
        return true;
    }
    return ask(store, p, bytes);
}

void room_return(struct store_worker_private *p, uint64_t bytes)
{
    uint64_t most = p->room.promised - p->room.allowance; /* less, when nothing was asked */
    p->room.allowance += bytes < most ? bytes : most;
}

void room_made(struct store *store, struct store_worker_private *p, uint64_t bytes)
{
    uint64_t most = p->room.promised - p->room.allowance;
    if (bytes > most)
        bytes = most;
    atomic_fetch_sub(&store->promised_bytes, bytes);
    p->room.promised -= bytes;
}

void room_end(struct store *store, struct store_worker_private *p)
{
    if (LIKELY(p->room.promised == 0))
        return;
    atomic_fetch_sub(&store->promised_bytes, p->room.promised);
    p->room.promised = p->room.allowance = 0;
}

/* ---- for the workers ---- */

bool store_unsettled(const struct store_worker *sw)
{
    return relaxed_load(&sw->private->epoch.bytes) != 0;
}

bool store_room_take(struct store_worker *sw, uint64_t bytes)
{
    return room_take(sw->store, sw->private, bytes);
}

void store_room_return(struct store_worker *sw, uint64_t bytes)
{
    room_return(sw->private, bytes);
}

void store_room_keep(struct store_worker *sw, uint64_t bytes)
{
    struct room_state *room = &sw->private->room;
    if (LIKELY(bytes == room->kept))
        return;
    atomic_fetch_add(&sw->store->promised_bytes, bytes - room->kept);
    room->kept = bytes;
}

bool store_room_may_come(const struct store_worker *sw)
{
    struct store *store = sw->store;
    uint64_t held = atomic_load(&store->promised_bytes) + atomic_load(&store->landing_bytes);
    if (store->log)
        held += log_large_bytes(store->log);
    return sw->private->room.over <= held + values_bytes(store);
}

bool store_room_refused(struct store_worker *sw)
{
    bool refused = sw->private->room.refused;
    sw->private->room.refused = false;
    return refused;
}
