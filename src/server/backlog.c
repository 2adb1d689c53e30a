#include "server/backlog.h"

#include "server/conn.h"
#include "server/worker.h"

void backlog_init(struct backlog *backlog, struct worker *worker)
{
    *backlog = (struct backlog){.worker = worker};
}

static void feed(struct backlog *backlog, const struct loop_event *event)
{
    struct worker *worker = backlog->worker;
    if (worker->stop_deadline_us) /* no new commands */
        loop_buffer_release(worker->loop, event->buffer_id);
    else
        group_feed(&worker->group, event->owner, event->data, (size_t)event->result, event->buffer_id);
}

static void run_oldest(struct backlog *backlog)
{
    struct loop_event event = backlog->pieces[backlog->head];
    struct conn *conn = event.owner;
    backlog->head = (backlog->head + 1) % BACKLOG_PIECES_MAX;
    backlog->count--;
    conn->waiting_pieces--;
    feed(backlog, &event);
    if (conn->flags & CONN_EOF) /* its end came earlier: whether that was all is looked at now */
        conn_list_add(&backlog->worker->dirty, &conn->dirty);
}

/* Light connections need buffers meanwhile. */
static uint32_t pieces_max(const struct backlog *backlog)
{
    uint32_t most = backlog->worker->loop->buffers_max / BACKLOG_BUFFERS_PART;
    return most < BACKLOG_PIECES_MAX ? most : BACKLOG_PIECES_MAX;
}

static void put_off(struct backlog *backlog, const struct loop_event *event)
{
    struct conn *conn = event->owner;
    while (backlog->count && backlog->count >= pieces_max(backlog))
        run_oldest(backlog);
    backlog->pieces[(backlog->head + backlog->count++) % BACKLOG_PIECES_MAX] = *event;
    conn->waiting_pieces++;
}

static bool light_is_active(const struct backlog *backlog)
{
    return backlog->light_us && backlog->worker->now_us - backlog->light_us < BACKLOG_LIGHT_ACTIVE_US;
}

size_t backlog_piece_bytes(const struct backlog *backlog)
{
    return light_is_active(backlog) ? LOOP_BUFFER_BYTES : SIZE_MAX;
}

void backlog_take(struct backlog *backlog, const struct loop_event *event)
{
    const struct conn *conn = event->owner;
    size_t waiting = conn->input_len - conn->input_position;
    /* Little work, so nobody need wait for it, nor it for others: that its connection's last command waits
     * for the disk, or its last reply is on its way, makes it no heavier. */
    bool small = waiting + (size_t)event->result <= BACKLOG_LIGHT_BYTES && !conn->waiting_pieces;
    /* But it does not show that there are light clients: a pipeline's last piece is small, too. */
    bool light = small && !waiting && !reply_pending_bytes(&conn->reply);
    if (light) {
        backlog->light_us = backlog->worker->now_us;
        backlog->ran_light = true;
    }
    if (conn->waiting_pieces || (!small && light_is_active(backlog)))
        put_off(backlog, event);
    else
        feed(backlog, event);
}

void backlog_run(struct backlog *backlog)
{
    bool yield = backlog->ran_light && !backlog->waited; /* first their replies leave */
    backlog->ran_light = false;
    backlog->waited = false;
    if (backlog->count == 0)
        return;
    if (!light_is_active(backlog)) {
        while (backlog->count)
            run_oldest(backlog);
    } else if (yield) {
        backlog->waited = true;
    } else {
        for (int bytes = 0; backlog->count && bytes < BACKLOG_TURN_BYTES;) {
            bytes += backlog->pieces[backlog->head].result;
            run_oldest(backlog);
        }
    }
}

void backlog_forget(struct backlog *backlog, struct conn *conn)
{
    uint32_t kept = 0, count = backlog->count;
    if (conn->waiting_pieces == 0)
        return;
    for (uint32_t i = 0; i < count; i++) {
        struct loop_event event = backlog->pieces[(backlog->head + i) % BACKLOG_PIECES_MAX];
        if (event.owner == conn)
            loop_buffer_release(backlog->worker->loop, event.buffer_id);
        else
            backlog->pieces[(backlog->head + kept++) % BACKLOG_PIECES_MAX] = event;
    }
    backlog->count = kept;
    conn->waiting_pieces = 0;
}
