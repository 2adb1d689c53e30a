#include "server/budget.h"

#include "base/check.h"
#include "base/logger.h"
#include "server/conn.h"
#include "server/server.h"
#include "server/worker.h"
#include "sys/net.h"

enum {
    INPUT_PART = 16,                        /* of the cap, for all large requests but one */
    BURST_PART = 16,                        /* of the cap, kept for what a turn may bring */
    SPARING_BYTES = BUDGET_LEAST_BYTES / 2, /* least that a connection may bring in a turn */
    RECEIVE_PART = 32,                      /* of the cap, for the receive buffers of the loops */
    KEPT_PART = 128, /* of the cap, for chunks of replies that are kept for later ones */
    KEPT_CHUNKS_MIN = 2,
    CHUNKS_PART = 16, /* of the cap: if a chunk for each client is more, chunks are small */
    ROOMLESS_BYTES = 2 * BUDGET_SMALL_BYTES, /* of a worker's output: reads go on however full memory is */
    SMALL_PART = 32,    /* of the cap, that small ones may take before they must reserve */
    OUTPUT_PART = 4,    /* of the cap, for unsent replies */
    TURN_PART = 64,     /* of the cap, that output may grow by in a turn, on all workers */
    GROW_TURNS = 8,     /* for which that step is meant: evicted values' memory is free some turns later */
    AHEAD_US = 2000000, /* how long room is kept that nobody has come for: cold values take their time */
    AHEAD_FACTOR = 4,   /* a reply needs more than it had when it had to stop */
    WORK_PART = 8,      /* of the cap, for a value that is made from an old one */
    WORK_COPIES = 3,    /* of a value that is made from an old one: and where it is put together */
    REQUEST_COPIES = 2, /* of a request, when it runs: the log's and the value */
    REQUEST_EXTRA_BYTES = 1 << 20, /* so that a value of a quarter of the cap has room for its command */
    STILL_LOOKS_MAX = 5,           /* standing still in so many looks one after the other is too long */
    STILL_BYTES = 64 << 10,        /* received less between two looks is standing still */
    WANTED_RECENTLY_US = 2 * BUDGET_LOOK_US,
    NO_ROOM_US = 30000000,  /* for which a command or request waits for room at most */
    HOPELESS_US = 2000000,  /* the same, when none can come; the kernel has what was freed long before */
    HOPELESS_TRIES = 500,   /* and so often: what others use for a moment is not all there is */
    HOLDING_US = 3000000,   /* the same, for a command that holds several values from disk meanwhile */
    NO_ROOM_RETRY_US = 200, /* between tries */
    REFUSED_MAX = 16,       /* of them in one look: each one asks the kernel what is resident */
    CAREFUL_US = 100000,    /* how long receiving stays careful after there was little room */
};

static uint64_t cap_bytes(const struct server *server)
{
    return STAT_GET(((struct server *)(uintptr_t)server)->memory_bytes_max);
}

uint64_t budget_request_max(const struct server *server)
{
    uint64_t cap = cap_bytes(server);
    return cap ? cap / 4 + REQUEST_EXTRA_BYTES : UINT64_MAX;
}

uint64_t budget_work_max(const struct server *server)
{
    uint64_t cap = cap_bytes(server);
    return cap ? cap / WORK_PART : UINT64_MAX;
}

uint64_t budget_reply_max(const struct server *server)
{
    uint64_t cap = cap_bytes(server);
    return cap ? cap / 4 : UINT64_MAX;
}

/* ---- what the store is told ---- */

/* What a worker's buffers may grow by in a turn without notice. */
static uint64_t turn_step(const struct worker *worker, uint64_t cap)
{
    return cap / TURN_PART / worker->server->worker_count;
}

/* Each connection may bring a buffer in the next turn, before anything can be done about it. */
static uint64_t burst_bytes(struct worker *worker)
{
    uint64_t bytes = (uint64_t)STAT_GET(worker->connections) * LOOP_BUFFER_BYTES;
    uint64_t most = cap_bytes(worker->server) / BURST_PART / worker->server->worker_count;
    return bytes < most ? bytes : most;
}

/* What the connections take and will soon take. */
static void tell_store(struct worker *worker)
{
    worker->told_bytes = worker_buffer_bytes(worker);
    store_buffers_set(worker->sw,
                      worker->told_bytes + worker->loop->stats.buffer_bytes + burst_bytes(worker) +
                          STAT_GET(worker->reserved_bytes) * REQUEST_COPIES + worker->ahead_bytes);
}

/* The same, in the middle of a turn in which that has grown much. */
static void tell_growth(struct worker *worker)
{
    uint64_t cap = cap_bytes(worker->server);
    if (UNLIKELY(cap && worker_buffer_bytes(worker) > worker->told_bytes + turn_step(worker, cap)))
        tell_store(worker);
}

/* ---- input ---- */

void budget_count(struct conn *conn)
{
    struct worker *worker = conn->worker;
    uint64_t bytes = conn->input_capacity > conn->reserved ? conn->input_capacity : conn->reserved;
    bytes += conn->request.capacity * sizeof *conn->request.spans;
    if (bytes == conn->counted)
        return;
    bool grows = bytes > conn->counted;
    STAT_ADD(worker->input_memory, bytes - conn->counted);
    conn->counted = bytes;
    if (grows) /* else perhaps not in a turn */
        tell_growth(worker);
}

/* Input of connections that have reserved nothing; about, as others change it. */
static uint64_t unreserved_bytes(const struct server *server)
{
    uint64_t bytes = 0;
    for (unsigned i = 0; i < server->worker_count; i++) {
        struct worker *worker = server->workers[i];
        uint64_t all = STAT_GET(worker->input_memory), reserved = STAT_GET(worker->reserved_bytes);
        bytes += all > reserved ? all - reserved : 0;
    }
    return bytes;
}

static bool small_are_many(const struct server *server, uint64_t cap)
{
    return cap && unreserved_bytes(server) > cap / SMALL_PART;
}

uint64_t budget_small_bytes(const struct server *server)
{
    return small_are_many(server, cap_bytes(server)) ? BUDGET_LEAST_BYTES : BUDGET_SMALL_BYTES;
}

/* What may be taken of the common share. Who holds a part of it and needs more, holds that part until it gets
 * more: while there are such, half of the share is theirs, or all of it would soon be parts. */
static uint64_t share_bytes(struct budget *budget, bool has_part, uint64_t cap)
{
    return cap / INPUT_PART / (has_part || atomic_load(&budget->growing) == 0 ? 1 : 2);
}

/* Takes more bytes of the common share. */
static bool take_share(struct budget *budget, uint64_t more, uint64_t most)
{
    uint64_t taken = atomic_load(&budget->input_bytes);
    do {
        if (taken + more > most)
            return false;
    } while (!atomic_compare_exchange_weak(&budget->input_bytes, &taken, taken + more));
    return true;
}

/* Room has been given back: wakes those who wait for it. Who begins to wait adds itself to `waiting` and
 * looks at the room once more before it sleeps (worker.c, may_sleep); here the room is free before `waiting`
 * is read. All are sequentially consistent, so one of the two sees the other. */
static void room_is_free(struct server *server)
{
    if (atomic_load(&server->budget.waiting))
        server_progress(server);
}

void budget_filled(struct conn *conn)
{
    uint64_t bytes = conn->reserved > conn->input_len ? conn->reserved - conn->input_len : 0;
    if (conn->flags & CONN_WORKS) /* reserved to be the only one, not for input */
        bytes = 0;
    conn->worker->untouched_bytes += bytes - conn->untouched;
    conn->untouched = bytes;
}

static void set_reserved(struct conn *conn, uint64_t bytes)
{
    STAT_ADD(conn->worker->reserved_bytes, bytes - conn->reserved);
    conn->reserved = bytes;
    conn->stream.roomy = bytes != 0;
    budget_filled(conn);
}

static void leave_beyond(struct conn *conn)
{
    conn->flags &= ~(uint32_t)CONN_BEYOND;
    conn->worker->beyond = NULL;
    atomic_store(&conn->worker->server->budget.beyond, 0);
}

static void give_back(struct conn *conn)
{
    struct server *server = conn->worker->server;
    if (conn->flags & CONN_BEYOND) {
        leave_beyond(conn);
    } else if (conn->reserved) {
        atomic_fetch_sub(&server->budget.input_bytes, conn->reserved);
    } else {
        return;
    }
    set_reserved(conn, 0);
    room_is_free(server);
}

/* Room for its input would be for what stands behind its command, which waits for something else. */
static bool is_behind_parked(const struct conn *conn)
{
    return (conn->flags & (CONN_PARKED | CONN_WORKS)) == CONN_PARKED;
}

/* The connection becomes the one that may have more, if nobody is that and nobody has waited longer; what it
 * holds of the common share is free. */
static bool take_beyond(struct conn *conn)
{
    struct budget *budget = &conn->worker->server->budget;
    uint64_t none = 0;
    if (is_behind_parked(conn) || atomic_load(&budget->beyond) || !room_line_is_first(conn) ||
        !atomic_compare_exchange_strong(&budget->beyond, &none, conn->id))
        return false;
    room_line_grows(conn, false);
    give_back(conn);
    conn->flags |= CONN_BEYOND;
    conn->worker->beyond = conn;
    return true;
}

/* Unsent, of all workers. */
static uint64_t output_bytes(const struct server *server)
{
    uint64_t bytes = 0;
    for (unsigned i = 0; i < server->worker_count; i++)
        bytes += reply_pool_busy_bytes(server->workers[i]->pool);
    return bytes;
}

static void begin_room_wait(struct conn *conn)
{
    conn->room_us = conn->worker->now_us;
    conn->hopeless_tries = 0;
}

/* It has just been refused room. Could any come: do others hold some, or values that may leave? */
static bool room_may_come(const struct conn *conn)
{
    struct server *server = conn->worker->server;
    uint64_t beyond = atomic_load(&server->budget.beyond), input = atomic_load(&server->budget.input_bytes);
    bool others_hold = input > (conn->flags & CONN_BEYOND ? 0 : conn->reserved) ||
                       (beyond && beyond != conn->id) || output_bytes(server) > BUDGET_SMALL_BYTES;
    return others_hold || store_room_may_come(conn->worker->sw);
}

/* It has just been refused room, as always since room_us. Is that long enough? */
static bool has_waited_enough(struct conn *conn, uint64_t most_us)
{
    uint64_t now_us = conn->worker->now_us;
    if (room_may_come(conn))
        conn->hopeless_tries = 0;
    else if (conn->hopeless_tries++ == 0)
        conn->hopeless_us = now_us;
    return now_us - conn->room_us > most_us ||
           (conn->hopeless_tries > HOPELESS_TRIES && now_us - conn->hopeless_us > HOPELESS_US);
}

/* The share is there: is memory? A larger buffer is made before the present one goes. */
static bool take_room(struct conn *conn, uint64_t bytes)
{
    if (conn->flags & CONN_WORKS || store_room_take(conn->worker->sw, bytes)) {
        conn->room_us = 0;
        return true;
    }
    if (conn->room_us == 0)
        begin_room_wait(conn);
    return false;
}

static bool take_share_and_room(struct conn *conn, uint64_t bytes, uint64_t cap)
{
    struct budget *budget = &conn->worker->server->budget;
    uint64_t more = bytes - conn->reserved;
    if (!(conn->flags & CONN_BEYOND) && take_share(budget, more, share_bytes(budget, conn->reserved, cap))) {
        if (take_room(conn, bytes))
            return true;
        atomic_fetch_sub(&budget->input_bytes, more);
        return false;
    }
    /* It stays the one beyond while it waits for memory: smaller ones must not always be quicker. */
    return (conn->flags & CONN_BEYOND || take_beyond(conn)) && take_room(conn, bytes);
}

static bool try_reserve(struct conn *conn, uint64_t bytes)
{
    struct worker *worker = conn->worker;
    uint64_t cap = cap_bytes(worker->server);
    if (cap == 0 || bytes <= conn->reserved || bytes <= budget_small_bytes(worker->server)) {
        if (conn->reserved == 0) /* it may have waited as the one beyond: nobody else would be that again */
            give_back(conn);
        return true;
    }
    if (!take_share_and_room(conn, bytes, cap))
        return false;
    set_reserved(conn, bytes);
    conn->seen_input = conn->input_len;
    conn->still_looks = 0;
    budget_count(conn);
    return true;
}

static void wait_no_longer(struct conn *conn)
{
    struct server *server = conn->worker->server;
    if (!room_line_waits(conn))
        return;
    room_line_leave(conn);
    room_is_free(server); /* another one may be the oldest now, or who holds nothing may have more */
    conn_list_add(&conn->worker->dirty, &conn->dirty); /* conn_flush turns reading on */
}

bool budget_reserve(struct conn *conn, uint64_t bytes)
{
    if (try_reserve(conn, bytes)) {
        wait_no_longer(conn);
        return true;
    }
    conn_list_add(&conn->worker->dirty, &conn->dirty); /* conn_flush turns reading off */
    if (conn->flags & CONN_PARKED) {                   /* only input behind its command asks then */
        conn->flags |= CONN_ROOM_LATER;
        return false;
    }
    conn->wanted = bytes;
    if (!room_line_waits(conn))
        room_line_join(conn);
    room_line_grows(conn, conn->reserved && !(conn->flags & CONN_BEYOND));
    return false;
}

void budget_parked(struct conn *conn)
{
    if (!is_behind_parked(conn))
        return;
    wait_no_longer(conn);
    if (conn->reserved == 0)
        give_back(conn); /* it may have been beyond the share, and found no memory */
}

bool budget_holds(const struct conn *conn)
{
    return conn->reserved || conn->flags & CONN_BEYOND || room_line_waits(conn);
}

void budget_release(struct conn *conn)
{
    wait_no_longer(conn);
    give_back(conn);
    budget_count(conn);
}

void budget_shrink(struct conn *conn, uint64_t bytes)
{
    struct server *server = conn->worker->server;
    struct budget *budget = &server->budget;
    if (bytes >= conn->reserved)
        return;
    if (!(conn->flags & CONN_BEYOND)) {
        atomic_fetch_sub(&budget->input_bytes, conn->reserved - bytes);
    } else if (take_share(budget, bytes, cap_bytes(server) / INPUT_PART)) {
        leave_beyond(conn);
    }
    set_reserved(conn, bytes);
    budget_count(conn);
    room_is_free(server);
}

bool budget_gives_way(const struct conn *conn)
{
    struct budget *budget = &conn->worker->server->budget;
    uint32_t own = room_line_waits(conn);
    return conn->flags & CONN_BEYOND && !(conn->flags & CONN_WORKS) && atomic_load(&budget->waiting) > own;
}

bool budget_work_fits(struct conn *conn, uint64_t bytes)
{
    struct worker *worker = conn->worker;
    uint64_t cap = cap_bytes(worker->server);
    if (cap == 0 || bytes <= BUDGET_SMALL_BYTES)
        return true;
    if (conn->work_granted && conn->work_turn == worker->turn && bytes <= conn->work_bytes)
        return true; /* it is put together again */
    conn->flags |= CONN_WORKS;
    conn->work_bytes = conn->work_bytes < bytes ? bytes : conn->work_bytes;
    conn->work_granted = false;
    bool has_share = budget_reserve(conn, bytes + BUDGET_SMALL_BYTES);
    tell_store(worker);
    if (!has_share || !store_room_take(worker->sw, bytes * WORK_COPIES))
        return false;
    store_room_return(worker->sw, bytes * (WORK_COPIES - 1)); /* the write takes that again */
    conn->work_granted = true;
    conn->work_turn = worker->turn;
    return true;
}

bool budget_gives_up(struct conn *conn)
{
    struct worker *worker = conn->worker;
    if (!store_room_refused(worker->sw)) {
        conn->flags &= ~(uint32_t)CONN_NO_ROOM;
        return false;
    }
    worker->no_room = true;
    if (!(conn->flags & CONN_NO_ROOM) || conn->room_us == 0) { /* input that got room may have ended it */
        conn->flags |= CONN_NO_ROOM;
        begin_room_wait(conn);
    }
    return has_waited_enough(conn, store_waiter_holds_several(&conn->waiter) ? HOLDING_US : NO_ROOM_US);
}

/* ---- output ---- */

/* Output that is taken at once never counts as growth. */
static void note_output(struct worker *worker)
{
    uint64_t busy = reply_pool_busy_bytes(worker->pool);
    if (busy >= worker->seen_output && worker->turn - worker->seen_output_turn < GROW_TURNS)
        return;
    worker->seen_output = busy;
    worker->seen_output_turn = worker->turn;
}

/* What the worker's output has grown by in the last few turns. */
static uint64_t turn_grown(const struct worker *worker)
{
    uint64_t busy = reply_pool_busy_bytes(worker->pool);
    return busy > worker->seen_output ? busy - worker->seen_output : 0;
}

/* Is there room for it now? If not, room is made for later turns. */
static bool reply_has_room(struct worker *worker, uint64_t own, uint64_t len)
{
    uint64_t busy = reply_pool_busy_bytes(worker->pool);
    uint64_t after = busy + len, unpaid = after > worker->paid_output ? after - worker->paid_output : 0;
    if (store_room_take(worker->sw, unpaid)) {
        worker->paid_output += unpaid;
        if (own)
            worker->ahead_us = worker->now_us;
        return true;
    }
    if (after <= ROOMLESS_BYTES)
        return true;
    if (own + len > worker->ahead_bytes) {
        uint64_t ahead = (own + len) * AHEAD_FACTOR, ahead_max = budget_reply_max(worker->server) + len;
        worker->ahead_bytes = ahead < ahead_max ? ahead : ahead_max;
    }
    worker->ahead_us = worker->now_us;
    return false;
}

bool budget_reply_fits(struct worker *worker, uint64_t own, uint64_t len)
{
    struct server *server = worker->server;
    uint64_t cap = cap_bytes(server);
    if (cap == 0)
        return true;
    uint64_t all = output_bytes(server), others = all > own ? all - own : 0;
    tell_store(worker);
    if ((others + own + len <= cap / OUTPUT_PART || others <= cap / 16) && reply_has_room(worker, own, len))
        return true;
    STAT_SET(server->budget.wanted_us, worker->now_us);
    return false;
}

/* Replies of one group that do not ask must not be more than a step. */
static uint64_t small_reply_bytes(const struct worker *worker, uint64_t cap)
{
    uint64_t share = turn_step(worker, cap) / GROUP_COMMANDS_MAX;
    if (cap == 0 || share >= BUDGET_SMALL_BYTES)
        return BUDGET_SMALL_BYTES;
    return share < BUDGET_LEAST_BYTES ? BUDGET_LEAST_BYTES : share;
}

/* Room for what replies have taken that need not ask. False: there is none, nobody should add to it. */
static bool output_has_room(struct worker *worker)
{
    uint64_t busy = reply_pool_busy_bytes(worker->pool);
    if (busy > worker->paid_output && !store_room_take(worker->sw, busy - worker->paid_output))
        return false;
    worker->paid_output = busy;
    return true;
}

static uint64_t client_count(struct server *server)
{
    return atomic_load_explicit(&server->clients, memory_order_relaxed);
}

/* Would a chunk for each client be much? Most use little of it. */
static bool many_chunks(struct server *server, uint64_t cap)
{
    return cap && client_count(server) * REPLY_CHUNK_BYTES > cap / CHUNKS_PART;
}

void budget_output_look(struct worker *worker)
{
    uint64_t cap = cap_bytes(worker->server), all = cap ? output_bytes(worker->server) : 0;
    bool grows = cap && (turn_grown(worker) > turn_step(worker, cap) || !output_has_room(worker));
    bool many = grows || (cap && all >= cap / 8), crowded = cap && all >= cap / 16 * 3;
    tell_growth(worker);
    worker->output_max = CONN_OUTPUT_BYTES_MAX;
    worker->reply_bytes_free = many ? BUDGET_LEAST_BYTES : small_reply_bytes(worker, cap);
    if (crowded)
        worker->output_max = all < cap / OUTPUT_PART ? REPLY_CHUNK_BYTES : 0;
    else if (many)
        worker->output_max = BUDGET_SMALL_BYTES;
    reply_pool_save(worker->pool, crowded || many_chunks(worker->server, cap));
}

/* ---- who stands still ---- */

/* Holds room for input that it does not fill, or output that it does not take. A command that waits, waits
 * for us; so does one whose connection ends, unless its output is not taken. */
static bool stands_still(struct conn *conn, bool input, bool output)
{
    bool ends = conn->flags & CONN_CLOSING && !(conn->flags & CONN_SENDING);
    bool holds = input && conn->reserved && !room_line_waits(conn) && !(conn->flags & CONN_PARKED) && !ends;
    holds |= output && conn->flags & CONN_SENDING && reply_pending_bytes(&conn->reply) > BUDGET_LEAST_BYTES;
    bool moves = conn->input_len < conn->seen_input || conn->input_len >= conn->seen_input + STILL_BYTES ||
                 conn->reply.head_offset != conn->seen_output;
    conn->seen_input = conn->input_len;
    conn->seen_output = conn->reply.head_offset;
    conn->still_looks = holds && !moves ? conn->still_looks + 1 : 0;
    return conn->still_looks >= STILL_LOOKS_MAX;
}

static void send_away(struct conn *conn)
{
    LOG_INFO("client %llu at %s closed: it holds memory that others wait for, and neither sends nor takes",
             (unsigned long long)conn->id, conn->address);
    if (conn->flags & CONN_SENDING) {
        conn_close(conn);
        return;
    }
    reply_error(&conn->reply, "OOM this request came too slowly while others waited for memory");
    conn_close_after_reply(conn);
}

/* Its request finds no room, though all values have left that could. */
static void refuse_room(struct conn *conn)
{
    LOG_INFO("client %llu at %s closed: no room below --memory for its request of %llu bytes",
             (unsigned long long)conn->id, conn->address, (unsigned long long)conn->wanted);
    budget_release(conn);
    if (!(conn->flags & CONN_SENDING))
        reply_error(&conn->reply, "OOM there is no room below --memory for so long a request");
    conn_close_after_reply(conn);
}

static void look(struct worker *worker)
{
    struct budget *budget = &worker->server->budget;
    uint64_t wanted_us = STAT_GET(budget->wanted_us);
    bool input = atomic_load_explicit(&budget->waiting, memory_order_relaxed) != 0;
    bool output = wanted_us && worker->now_us < wanted_us + WANTED_RECENTLY_US;
    for (struct conn_link *link = worker->all.next; link != &worker->all; link = link->next) {
        struct conn *conn = CONN_OF(link, all);
        if (!(conn->flags & CONN_CLOSED) && stands_still(conn, input, output))
            send_away(conn);
    }
}

/* Nobody reads from those that wait, so nobody is told when a client leaves. Who comes again and again, and
 * gives up each time, must not be many clients that hold and want memory. */
static void look_who_has_left(struct worker *worker)
{
    struct conn_link *line = &worker->room_line.conns;
    for (struct conn_link *link = line->next; link != line; link = link->next) {
        struct conn *conn = CONN_OF(link, waiting_room);
        uint64_t there = conn->input_len - conn->input_position, announced = conn_announced(conn);
        if (!(conn->flags & (CONN_CLOSED | CONN_PARKED)) &&
            net_peer_has_left(conn->stream.fd, announced > there ? announced - there : 0))
            conn_close(conn);
    }
}

/* ---- for the worker ---- */

static bool is_recent(const struct worker *worker, uint64_t us)
{
    return us && worker->now_us - us < CAREFUL_US;
}

/* How many of such a size the worker may have of what all may have, but `least` in any case. bytes: 0:
 * without a cap. */
static uint32_t share_of(const struct worker *worker, uint64_t bytes, uint64_t size, uint32_t least)
{
    uint64_t most = bytes / worker->server->worker_count / size;
    return bytes == 0 || most > UINT32_MAX ? UINT32_MAX : most < least ? least : (uint32_t)most;
}

/* While there is little room, or where there are many connections for so much memory, one must not bring much
 * before it can be told to wait. */
static void take_care(struct worker *worker)
{
    struct budget *budget = &worker->server->budget;
    struct loop *loop = worker->loop;
    uint64_t cap = cap_bytes(worker->server);
    uint64_t each = cap ? cap / BURST_PART / (client_count(worker->server) + 1) : LOOP_BUFFER_BYTES;
    if (small_are_many(worker->server, cap))
        worker->sparing_us = worker->now_us;
    if (each < LOOP_BUFFER_BYTES ||
        (cap && (atomic_load_explicit(&budget->input_bytes, memory_order_relaxed) > cap / 32 ||
                 atomic_load_explicit(&budget->beyond, memory_order_relaxed))))
        worker->crowded_us = worker->now_us;
    bool was_sparing = loop->receive_bytes == SPARING_BYTES, sparing = is_recent(worker, worker->sparing_us);
    bool careful = sparing || is_recent(worker, worker->crowded_us);
    bool stricter = careful > loop->careful || sparing > was_sparing;
    if (sparing || each < SPARING_BYTES)
        each = SPARING_BYTES;
    loop->careful = careful;
    loop->buffers_max = share_of(worker, cap / RECEIVE_PART, LOOP_BUFFER_BYTES, BUDGET_RECEIVE_BUFFERS_MIN);
    uint32_t chunks = share_of(worker, cap / KEPT_PART, REPLY_CHUNK_BYTES, KEPT_CHUNKS_MIN);
    reply_pool_keep(worker->pool, chunks < REPLY_POOL_FREE_MAX ? chunks : REPLY_POOL_FREE_MAX);
    loop->receive_bytes = each < LOOP_BUFFER_BYTES ? (uint32_t)each : 0;
    if (!stricter)
        return;
    for (struct conn_link *link = worker->all.next; link != &worker->all; link = link->next)
        conn_read_anew(CONN_OF(link, all));
}

void budget_turn_end(struct worker *worker)
{
    store_room_keep(worker->sw, worker->untouched_bytes);
    if (store_room_refused(worker->sw))
        worker->no_room = true;
    else if ((conn_list_empty(&worker->retry) || worker->retried_us == worker->now_us) &&
             (room_line_is_empty(&worker->room_line) || worker->room_tried_us == worker->now_us))
        worker->no_room = false; /* all were asked in this turn */
}

/* It waits. Is there room now? Then it is read from again. */
static bool look_at_one(struct conn *conn)
{
    if (try_reserve(conn, conn->wanted)) {
        wait_no_longer(conn);
        return true;
    }
    if (conn->room_us && !(conn->flags & (CONN_CLOSED | CONN_CLOSING | CONN_WORKS)) &&
        has_waited_enough(conn, NO_ROOM_US))
        refuse_room(conn);
    return false;
}

/* Those that wait. Room is given back by the one beyond the share when it completes, so that is asked first;
 * then the oldest requests, one of which will be the next beyond, while others hold parts; then others that
 * may fit into the share: each look goes on where the last one has ended. */
static void look_at_waiting(struct worker *worker)
{
    struct room_line *line = &worker->room_line;
    if (room_line_is_empty(line) ||
        (worker->no_room && worker->now_us - worker->room_tried_us < NO_ROOM_RETRY_US))
        return;
    worker->room_tried_us = worker->now_us;
    unsigned refused = 0;
    if (worker->beyond && room_line_waits(worker->beyond))
        look_at_one(worker->beyond);
    for (struct conn_link *link = line->conns.next, *next; link != &line->conns && refused < REFUSED_MAX;
         link = next) {
        next = link->next;
        refused += !look_at_one(CONN_OF(link, waiting_room));
    }
    if (line->at == &line->conns) /* the end */
        line->at = line->conns.next;
    for (refused = 0; line->at != &line->conns && refused < REFUSED_MAX;) {
        struct conn *conn = CONN_OF(line->at, waiting_room);
        line->at = line->at->next;
        refused += !look_at_one(conn);
    }
}

bool budget_must_look(const struct worker *worker)
{
    uint64_t cap = cap_bytes(worker->server);
    return cap && (STAT_GET(((struct worker *)(uintptr_t)worker)->reserved_bytes) ||
                   worker_buffer_bytes(worker) > cap / 64 || !room_line_is_empty(&worker->room_line));
}

void budget_turn(struct worker *worker)
{
    look_at_waiting(worker);
    take_care(worker);
    if (worker->now_us - worker->looked_us >= BUDGET_LOOK_US && budget_must_look(worker)) {
        worker->looked_us = worker->now_us;
        look(worker);
        look_who_has_left(worker);
    }
    if (worker->ahead_bytes && worker->now_us - worker->ahead_us > AHEAD_US)
        worker->ahead_bytes = 0;
    note_output(worker);
    tell_store(worker);
}

bool budget_may_go_on(struct worker *worker)
{
    struct budget *budget = &worker->server->budget;
    struct conn_link *line = &worker->room_line.conns;
    uint64_t cap = cap_bytes(worker->server);
    if (room_line_is_empty(&worker->room_line) || worker->no_room)
        return false;
    if (cap == 0 ||
        (atomic_load(&budget->beyond) == 0 && room_line_is_first(CONN_OF(line->next, waiting_room))))
        return true;
    uint64_t taken = atomic_load(&budget->input_bytes);
    for (struct conn_link *link = line->next; link != line; link = link->next) {
        const struct conn *conn = CONN_OF(link, waiting_room);
        if (taken + conn->wanted - conn->reserved <= share_bytes(budget, conn->reserved, cap))
            return true;
    }
    return false;
}
