#include "server/conn.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "server/budget.h"
#include "server/save.h"
#include "server/server.h"
#include "server/worker.h"
#include "sys/clock.h"
#include "sys/net.h"

enum {
    INPUT_BYTES_LEAST = 512,
};

static void input_free(struct conn *conn)
{
    free(conn->input);
    conn->input = NULL;
    conn->input_capacity = 0;
    if (UNLIKELY(budget_holds(conn)))
        budget_release(conn);
    else
        budget_count(conn);
}

struct conn *conn_create(struct worker *worker, int fd, bool counted)
{
    struct conn *conn = calloc(1, sizeof *conn);
    if (conn == NULL) {
        net_close(fd);
        return NULL;
    }
    reply_init(&conn->reply, worker->pool);
    conn->worker = worker;
    conn->flags = counted ? CONN_COUNTED : 0;
    conn->created_us = clock_monotonic_us();
    conn->last_command = UINT16_MAX;
    conn->resp = 2;
    atomic_store_explicit(&conn->active_us, conn->created_us, memory_order_relaxed);
    net_describe(fd, conn->address, conn->local_address, CONN_ADDRESS_BYTES, &conn->is_unix);
    conn_list_add(&worker->all, &conn->all);
    conn->stream.owner = conn;
    loop_stream_start(worker->loop, &conn->stream, fd);
    server_register(worker->server, conn); /* last: CLIENT LIST of any worker reads what was set above */
    return conn;
}

void conn_destroy(struct conn *conn)
{
    server_unregister(conn->worker->server, conn);
    resp_request_reset(&conn->request);
    input_free(conn);
    DCHECK(conn->worker->beyond != conn);
    conn_list_remove(&conn->dirty);
    conn_list_remove(&conn->held);
    conn_list_remove(&conn->retry);
    conn_list_remove(&conn->saving);
    conn_list_remove(&conn->all);
    reply_deinit(&conn->reply);
    free(conn);
}

void conn_close(struct conn *conn)
{
    if (conn->flags & CONN_CLOSED)
        return;
    conn->flags |= CONN_CLOSED;
    conn_list_remove(&conn->held);
    conn_list_remove(&conn->retry);
    conn_list_remove(&conn->saving);
    save_forget(conn);
    store_waiter_release(conn->worker->sw, &conn->waiter); /* reads under way land without it */
    loop_stream_close(conn->worker->loop, &conn->stream);
}

void conn_close_after_reply(struct conn *conn)
{
    conn->flags |= CONN_CLOSING;
    conn_list_remove(&conn->retry);
    conn_list_remove(&conn->saving);
    conn_list_add(&conn->worker->dirty, &conn->dirty);
}

/* ---- input ---- */

static void input_resize(struct conn *conn, size_t capacity)
{
    conn->input = realloc(conn->input, capacity);
    CHECK(conn->input);
    conn->input_capacity = capacity;
    budget_count(conn);
}

/* Room for len more bytes. Doubles, so that copying stays linear, but not beyond what the command in progress
 * has announced. With a memory cap a large command gets all of its room at once, or it waits for that with
 * what has come already. */
static void input_grow(struct conn *conn, size_t len)
{
    size_t needed = conn->input_len + len;
    if (needed <= conn->input_capacity)
        return;
    uint64_t announced = conn_announced(conn);
    uint64_t most = budget_request_max(conn->worker->server),
             small = budget_small_bytes(conn->worker->server);
    uint64_t behind = small == BUDGET_SMALL_BYTES ? LOOP_BUFFER_BYTES : BUDGET_LEAST_BYTES / 2;
    size_t capacity = conn->input_capacity * 2;
    if (announced > needed && capacity > announced + behind)
        capacity = announced + behind;
    uint64_t wanted = capacity < most ? capacity : most;
    if (wanted < needed)
        wanted = needed;
    if (wanted < announced + behind)
        wanted = announced + behind;
    if (UNLIKELY(wanted > small)) {
        if (!budget_reserve(conn, wanted))
            capacity = needed;
        else if (conn->reserved)
            capacity = conn->reserved;
    }
    if (capacity < needed)
        capacity = needed;
    if (capacity < INPUT_BYTES_LEAST)
        capacity = INPUT_BYTES_LEAST;
    input_resize(conn, capacity);
}

static void input_move_down(struct conn *conn)
{
    conn->input_len -= conn->input_position;
    memmove(conn->input, conn->input + conn->input_position, conn->input_len);
    conn->input_position = 0;
}

/* A connection that goes on in pieces may have a megabyte behind the position, and gets more with each
 * buffer: at most some times as much is moved as has been used up since. */
static bool is_worth_moving(const struct conn *conn, size_t len)
{
    size_t used = conn->input_position, waiting = conn->input_len - used;
    bool fits = conn->input_len + len <= conn->input_capacity;
    return used && (used >= waiting || (!fits && (conn->reserved || used >= waiting / 4)));
}

/* What came behind a large command that has run must not keep its memory, nor its place if others wait. */
static void input_settle(struct conn *conn, bool has_run)
{
    size_t there = conn->input_len - conn->input_position, needed = there;
    uint64_t announced = conn_announced(conn);
    if (needed < announced)
        needed = announced;
    if (needed < conn->work_bytes)
        needed = conn->work_bytes;
    bool small = needed <= budget_small_bytes(conn->worker->server);
    bool gives_way = has_run && budget_gives_way(conn);
    if (!small && !gives_way && needed > conn->input_capacity / 4)
        return;
    if (gives_way)
        needed = there;
    input_move_down(conn);
    input_resize(conn, needed < INPUT_BYTES_LEAST ? INPUT_BYTES_LEAST : needed);
    if (small || gives_way)
        budget_release(conn);
    else
        budget_shrink(conn, needed);
}

void conn_input_append(struct conn *conn, const char *data, size_t len)
{
    if (is_worth_moving(conn, len))
        input_move_down(conn);
    input_grow(conn, len);
    memcpy(conn->input + conn->input_len, data, len);
    conn->input_len += len;
    if (UNLIKELY(conn->reserved))
        budget_filled(conn);
    atomic_store_explicit(&conn->input_bytes, (uint32_t)conn->input_len, memory_order_relaxed);
}

void conn_input_consume(struct conn *conn, size_t position)
{
    bool has_run = position > conn->input_position;
    conn->input_position = position;
    if (position < conn->input_len) {
        if (UNLIKELY(budget_holds(conn)))
            input_settle(conn, has_run);
    } else {
        conn->input_position = conn->input_len = 0;
        atomic_store_explicit(&conn->input_bytes, 0, memory_order_relaxed);
        input_free(conn);
    }
    if (has_run) {
        conn->flags &= ~(uint32_t)CONN_ROOM_LATER;
        room_line_request_done(conn);
    }
}

/* ---- output ---- */

static void read_switch(struct conn *conn, bool on)
{
    bool is_on = !(conn->flags & CONN_READ_OFF);
    if (on == is_on || conn->flags & (CONN_EOF | CONN_CLOSED))
        return;
    conn->flags ^= CONN_READ_OFF;
    loop_stream_read(conn->worker->loop, &conn->stream, on);
}

void conn_read_anew(struct conn *conn)
{
    if (conn->flags & (CONN_READ_OFF | CONN_EOF | CONN_CLOSED))
        return;
    loop_stream_read(conn->worker->loop, &conn->stream, false);
    loop_stream_read(conn->worker->loop, &conn->stream, true);
}

/* Reading goes on exactly while there is room for what it brings. */
static void pace_reading(struct conn *conn)
{
    size_t waiting = conn->input_len - conn->input_position;
    bool stopped = conn->flags & CONN_STOPPED || conn->retry.next;
    bool no_room = conn->flags & CONN_PARKED && conn->flags & CONN_ROOM_LATER;
    bool crowded = stopped && (waiting > CONN_INPUT_BYTES_PAUSE || no_room);
    read_switch(conn, !crowded && !room_line_waits(conn) && !(conn->flags & (CONN_FULL | CONN_CLOSING)));
}

static void close_when_done(struct conn *conn)
{
    if (conn->flags & CONN_SENDING || reply_pending_bytes(&conn->reply))
        return;
    bool more_to_run =
        conn->retry.next != NULL || conn->waiting_pieces || conn->flags & (CONN_PARKED | CONN_FULL);
    if (conn->flags & CONN_CLOSING || (conn->flags & CONN_EOF && !more_to_run))
        conn_close(conn);
}

void conn_flush(struct conn *conn, uint64_t commit_lsn)
{
    struct worker *worker = conn->worker;
    if (conn->flags & CONN_CLOSED)
        return;
    if (conn->hold_lsn) {
        reply_hold(&conn->reply, conn->hold_from, conn->hold_lsn);
        conn->hold_lsn = 0;
    }
    if (!(conn->flags & CONN_SENDING)) {
        int count = reply_sendable(&conn->reply, commit_lsn, conn->pieces, LOOP_PIECES_MAX);
        if (count) {
            conn->flags |= CONN_SENDING;
            loop_stream_send(worker->loop, &conn->stream, conn->pieces, count);
        }
    }
    if (reply_is_held(&conn->reply))
        conn_list_add(&worker->held, &conn->held);
    else
        conn_list_remove(&conn->held);
    STAT_SET(conn->active_us, worker->now_us);
    atomic_store_explicit(&conn->output_bytes, reply_pending_bytes(&conn->reply), memory_order_relaxed);
    pace_reading(conn);
    close_when_done(conn);
}

void conn_sent(struct conn *conn, int result)
{
    conn->flags &= ~(uint32_t)CONN_SENDING;
    if (conn->flags & CONN_CLOSED)
        return;
    if (result < 0) {
        conn_close(conn);
        return;
    }
    struct worker *worker = conn->worker;
    STAT_ADD(worker->stats.output_bytes, (uint64_t)result);
    reply_sent(&conn->reply, (size_t)result);
    if (conn->flags & CONN_FULL && reply_pending_bytes(&conn->reply) < CONN_OUTPUT_BYTES_MAX / 2) {
        conn->flags &= ~(uint32_t)CONN_FULL;
        if (conn_has_input(conn) && !(conn->flags & CONN_CLOSING))
            conn_list_add(&worker->retry, &conn->retry);
    }
    if (reply_pending_bytes(&conn->reply) || conn->flags & (CONN_EOF | CONN_CLOSING | CONN_READ_OFF))
        conn_list_add(&worker->dirty, &conn->dirty);
    else
        STAT_SET(conn->output_bytes, 0);
}
