/* One turn, in order: what waited from the last turn, events, commands whose values have come from disk,
 * backlog, the group's rest, log writes, reads of values, replies, background work. Log writes and reads are
 * queued before replies, so that the disk starts on them with the same kernel entry. */
#include "server/worker.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/logger.h"
#include "server/budget.h"
#include "server/save.h"
#include "server/server.h"
#include "sys/clock.h"
#include "sys/thread.h"

enum {
    UNSETTLED_LOOK_US = 1000,
    PARKED_RETRY_US = 200, /* a busy key gives no notice when it is free */
    STOPPING_LOOK_US = 10000,
    STOP_US_MAX = 1000000, /* how long the last replies may take to leave */
    CLOSE_US_MAX = 200000,
    SAMPLE_US = 1000000,
    SLICE_US = 100, /* requests come sooner than a keeper, or a stranger, has used up its slice */
    BACKGROUND_STEPS_BUSY = 16,
    BACKGROUND_STEPS_IDLE = 256,
    SCRATCH_BYTES_LEAST = 64 << 10,
    SCRATCH_BYTES_KEEP = 1 << 20,
};

/* ---- making and taking down ---- */

status_t worker_create(struct server *server, unsigned index, struct worker **out, char *why)
{
    struct worker *worker = aligned_alloc(64, (sizeof *worker + 63) / 64 * 64);
    CHECK(worker);
    memset(worker, 0, sizeof *worker);
    worker->server = server;
    worker->index = index;
    status_t s = loop_create((enum loop_backend)server->config.io, &worker->loop, why);
    if (!status_is_ok(&s)) {
        free(worker);
        return s;
    }
    worker->sw = store_worker_get(server->store, index);
    worker->pool = reply_pool_create();
    worker->output_max = CONN_OUTPUT_BYTES_MAX;
    worker->reply_bytes_free = BUDGET_SMALL_BYTES;
    conn_list_init(&worker->dirty);
    conn_list_init(&worker->held);
    conn_list_init(&worker->retry);
    conn_list_init(&worker->saving);
    room_line_init(&worker->room_line);
    conn_list_init(&worker->all);
    mailbox_init(&worker->mailbox);
    disk_io_init(&worker->disk_io, worker);
    group_init(&worker->group, worker);
    backlog_init(&worker->backlog, worker);
    *out = worker;
    return s;
}

void worker_destroy(struct worker *worker)
{
    loop_destroy(worker->loop);
    while (!conn_list_empty(&worker->all))
        conn_destroy(CONN_OF(worker->all.next, all));
    mailbox_deinit(&worker->mailbox);
    group_deinit(&worker->group);
    disk_io_deinit(&worker->disk_io);
    reply_pool_destroy(worker->pool);
    free(worker->scratch);
    free(worker);
}

uint64_t worker_buffer_bytes(const struct worker *worker)
{
    return STAT_GET(((struct worker *)(uintptr_t)worker)->input_memory) + reply_pool_bytes(worker->pool);
}

void *worker_scratch(struct worker *worker, size_t bytes)
{
    if (bytes > worker->scratch_bytes) {
        free(worker->scratch);
        worker->scratch_bytes = bytes < SCRATCH_BYTES_LEAST ? SCRATCH_BYTES_LEAST : bytes;
        worker->scratch = malloc(worker->scratch_bytes);
        CHECK(worker->scratch);
    }
    return worker->scratch;
}

/* What a large command needed. */
static void free_scratch(struct worker *worker)
{
    if (LIKELY(worker->scratch_bytes <= SCRATCH_BYTES_KEEP))
        return;
    free(worker->scratch);
    worker->scratch = NULL;
    worker->scratch_bytes = 0;
}

/* ---- the log's state ---- */

/* The log is dead: whoever waits for it is told, then everybody is sent away. */
static void tell_failure(struct worker *worker)
{
    const char *text = log_failed(store_log(worker->server->store));
    if (worker->failure_told)
        return;
    worker->failure_told = true;
    for (struct conn_link *link = worker->all.next; link != &worker->all; link = link->next) {
        struct conn *conn = CONN_OF(link, all);
        bool waits = conn->hold_lsn || reply_is_held(&conn->reply) || conn->flags & CONN_PARKED;
        if (conn->hold_lsn)
            reply_hold(&conn->reply, conn->hold_from, conn->hold_lsn);
        conn->hold_lsn = 0;
        reply_drop_held(&conn->reply);
        if (waits)
            reply_error(&conn->reply, "IOERR the log could not be written: %s", text ? text : "unknown");
        if (!(conn->flags & CONN_CLOSED))
            conn_close_after_reply(conn);
    }
}

static void look_at_log(struct worker *worker)
{
    struct server *server = worker->server;
    struct log *log = store_log(server->store);
    if (log == NULL)
        return;
    worker->loop->dozes = log_lacks_room(log); /* those who make room may need this core */
    if (log_failed(log) == NULL)
        return;
    if (server_phase(server) != SERVER_FAILED) {
        LOG_ERROR("the log has failed: %s", log_failed(log));
        server_request_stop(server, SERVER_FAILED);
    }
    tell_failure(worker);
}

/* ---- a turn ---- */

static void on_eof(struct conn *conn, int result)
{
    if (conn->flags & CONN_CLOSED)
        return;
    conn->flags |= CONN_EOF;
    if (result < 0)
        conn_close(conn);
    else
        conn_list_add(&conn->worker->dirty, &conn->dirty);
}

static void handle_event(struct worker *worker, const struct loop_event *event)
{
    switch (event->type) {
    case LOOP_DATA:
        backlog_take(&worker->backlog, event);
        break;
    case LOOP_SENT:
        conn_sent(event->owner, event->result);
        break;
    case LOOP_FILE_DONE:
        disk_io_done(&worker->disk_io, event->owner, event->result);
        break;
    case LOOP_ACCEPTED:
        arrivals_accept(worker, event->result);
        break;
    case LOOP_EOF:
        on_eof(event->owner, event->result);
        break;
    case LOOP_CLOSED:
        backlog_forget(&worker->backlog, event->owner);
        conn_destroy(event->owner);
        break;
    case LOOP_WOKEN:
        arrivals_read_mail(worker);
        break;
    }
}

static void unpark(struct worker *worker, struct conn *conn)
{
    conn_list_remove(&conn->retry);
    conn_list_remove(&conn->saving);
    conn->flags &= ~(uint32_t)CONN_PARKED;
    if (!conn_has_input(conn))
        conn_list_add(&worker->dirty, &conn->dirty);
}

static void resume(struct worker *worker, struct conn *conn)
{
    unpark(worker, conn);
    group_resume(&worker->group, conn);
}

/* Connections whose command has got its values. */
static void resume_landed(struct worker *worker)
{
    struct store_waiter *waiter;
    while ((waiter = store_waiter_next(worker->sw)))
        resume(worker, CONN_OF(waiter, waiter));
}

/* Connections whose checkpoint or backup has ended; all when the server stops, which waits for none. */
static void resume_saved(struct worker *worker)
{
    for (struct conn_link *link = worker->saving.next, *next; link != &worker->saving; link = next) {
        struct conn *conn = CONN_OF(link, saving);
        next = link->next;
        if (worker->stop_deadline_us || save_has_ended(conn))
            resume(worker, conn);
    }
}

static bool is_saved(const struct worker *worker)
{
    for (struct conn_link *link = worker->saving.next; link != &worker->saving; link = link->next)
        if (save_has_ended(CONN_OF(link, saving)))
            return true;
    return false;
}

/* Writes wait for room on disk, or replies until others are taken: that comes later than with the next turn.
 */
static bool is_crowded(const struct worker *worker)
{
    return worker->output_max == 0 || worker->no_room || worker->loop->dozes;
}

/* Connections with input that could not run to its end last turn. While there are light ones, not much more
 * in a turn than a piece: what waited for room goes on all at once, and can be megabytes. */
static void retry_connections(struct worker *worker)
{
    struct conn_link end = {NULL, NULL}; /* those that come back this turn stand behind it */
    size_t piece = backlog_piece_bytes(&worker->backlog), taken = 0;
    if (conn_list_empty(&worker->retry)) {
        worker->retries_left = false;
        return;
    }
    if (is_crowded(worker) && !worker->retries_left && worker->now_us < worker->retried_us + PARKED_RETRY_US)
        return;
    worker->retried_us = worker->now_us;
    conn_list_add(&worker->retry, &end);
    while (worker->retry.next != &end && taken < piece) {
        struct conn *conn = CONN_OF(worker->retry.next, retry);
        size_t waiting = conn->input_len - conn->input_position;
        bool parked = conn->flags & CONN_PARKED;
        unpark(worker, conn);
        if (parked)
            group_retry(&worker->group, conn);
        else
            group_resume(&worker->group, conn);
        if (!(conn->flags & CONN_PARKED))
            taken += waiting < piece ? waiting : piece;
    }
    conn_list_remove(&end);
    worker->retries_left = taken >= piece && !conn_list_empty(&worker->retry);
}

static void flush_dirty(struct worker *worker)
{
    uint64_t commit_lsn = store_commit_lsn(worker->server->store);
    while (!conn_list_empty(&worker->dirty)) {
        struct conn *conn = CONN_OF(worker->dirty.next, dirty);
        conn_list_remove(&conn->dirty);
        conn_flush(conn, commit_lsn);
    }
}

static void release_held(struct worker *worker)
{
    uint64_t commit_lsn = store_commit_lsn(worker->server->store);
    if (commit_lsn == worker->commit_seen)
        return;
    worker->commit_seen = commit_lsn;
    for (struct conn_link *link = worker->held.next, *next; link != &worker->held; link = next) {
        next = link->next;
        conn_flush(CONN_OF(link, held), commit_lsn);
    }
}

static void count_lists(struct worker *worker)
{
    uint64_t held = 0, parked = 0;
    for (struct conn_link *link = worker->held.next; link != &worker->held; link = link->next)
        held++;
    for (struct conn_link *link = worker->retry.next; link != &worker->retry; link = link->next)
        parked += (CONN_OF(link, retry)->flags & CONN_PARKED) != 0;
    for (struct conn_link *link = worker->saving.next; link != &worker->saving; link = link->next)
        parked++;
    STAT_SET(worker->stats.held, held);
    STAT_SET(worker->stats.parked, parked);
}

static void sample(struct worker *worker)
{
    struct server *server = worker->server;
    uint64_t operations = 0;
    if (worker->index != 0 || worker->now_us - server->sampled_us < SAMPLE_US)
        return;
    for (unsigned i = 0; i < server->worker_count; i++)
        operations += STAT_GET(server->workers[i]->stats.operations);
    uint64_t us = worker->now_us - server->sampled_us;
    if (server->sampled_us)
        STAT_SET(server->operations_second, (operations - server->sampled_operations) * 1000000 / us);
    server->sampled_us = worker->now_us;
    server->sampled_operations = operations;
}

/* ---- sleeping ---- */

static void lower(int64_t *timeout_us, int64_t to)
{
    if (*timeout_us < 0 || to < *timeout_us)
        *timeout_us = to < 0 ? 0 : to;
}

static bool has_runnable(const struct worker *worker)
{
    for (struct conn_link *link = worker->retry.next; link != &worker->retry; link = link->next)
        if (!(CONN_OF(link, retry)->flags & CONN_PARKED))
            return true;
    return false;
}

/* How long the loop may wait at most; < 0: for ever. */
static int64_t wait_us(struct worker *worker, bool background_more, uint64_t background_due_ms)
{
    int64_t timeout_us = worker->index == 0 ? SAMPLE_US : -1;
    if (background_more || !conn_list_empty(&worker->dirty) || !backlog_is_empty(&worker->backlog) ||
        worker->retries_left || (has_runnable(worker) && !is_crowded(worker)) || store_waiter_due(worker->sw))
        return 0;
    if (!conn_list_empty(&worker->retry) || worker->no_room)
        lower(&timeout_us, PARKED_RETRY_US);
    if (store_unsettled(worker->sw))
        lower(&timeout_us, UNSETTLED_LOOK_US);
    if (worker->stop_deadline_us)
        lower(&timeout_us, STOPPING_LOOK_US);
    if (budget_must_look(worker))
        lower(&timeout_us, BUDGET_LOOK_US);
    if (worker->disk_io.flush_due_us != UINT64_MAX)
        lower(&timeout_us, (int64_t)(worker->disk_io.flush_due_us - worker->now_us));
    if (background_due_ms && background_due_ms != UINT64_MAX) {
        int64_t ms = (int64_t)(background_due_ms - worker->sw->now_ms);
        lower(&timeout_us, ms < 1000000 ? ms * 1000 : 1000000000);
    }
    return timeout_us;
}

/* Announces that this worker waits for progress, and looks once more. False: the commit point has moved
 * since, a checkpoint or backup has ended, or there is room for input: go on. */
static bool may_sleep(struct worker *worker)
{
    bool waits = !conn_list_empty(&worker->held) || !conn_list_empty(&worker->retry) ||
                 !conn_list_empty(&worker->saving) || !room_line_is_empty(&worker->room_line) ||
                 worker->stop_deadline_us;
    atomic_store_explicit(&worker->waiting, waits, memory_order_relaxed);
    if (!waits)
        return true;
    /* Orders the flag before the look; pairs with the fence in server_progress. */
    atomic_thread_fence(memory_order_seq_cst);
    return store_commit_lsn(worker->server->store) == worker->commit_seen && !is_saved(worker) &&
           !budget_may_go_on(worker);
}

/* ---- the end ---- */

static bool begin_stop(struct worker *worker)
{
    struct server *server = worker->server;
    if (worker->stop_deadline_us || server_phase(server) == SERVER_RUNNING)
        return worker->stop_deadline_us != 0;
    worker->stop_deadline_us = worker->now_us + STOP_US_MAX;
    if (worker->index == 0) {
        if (server->listen_fd >= 0)
            loop_unlisten(worker->loop, server->listen_fd);
        if (server->unix_fd >= 0)
            loop_unlisten(worker->loop, server->unix_fd);
    }
    return true;
}

/* Is the time over that stopping may take? */
static bool is_late(const struct worker *worker)
{
    return worker->stop_deadline_us && worker->now_us >= worker->stop_deadline_us;
}

/* Everything that was begun is finished: replies sent, log on disk, reads ended. Replies have a limit of
 * time, the disk has none (but for a dead log). */
static bool all_done(struct worker *worker)
{
    struct log *log = store_log(worker->server->store);
    if (disk_io_is_busy(&worker->disk_io))
        return false;
    if (log && !log_failed(log) && log_has_unflushed(log))
        return false;
    if (is_late(worker))
        return true;
    if (!conn_list_empty(&worker->retry) || !conn_list_empty(&worker->held) ||
        !conn_list_empty(&worker->saving))
        return false;
    for (struct conn_link *link = worker->all.next; link != &worker->all; link = link->next) {
        struct conn *conn = CONN_OF(link, all);
        bool busy =
            conn->flags & CONN_SENDING || reply_pending_bytes(&conn->reply) || conn_awaits_values(conn);
        if (!(conn->flags & CONN_CLOSED) && busy)
            return false;
    }
    return true;
}

static void worker_turn(struct worker *worker, int count, bool *background_more, uint64_t *due_ms)
{
    worker->now_us = clock_monotonic_us();
    worker->turn++;
    uint64_t operations = STAT_GET(worker->stats.operations);
    store_turn_begin(worker->sw);
    budget_turn(worker);
    if (!is_late(worker))
        disk_io_begin(&worker->disk_io, worker->events, count);
    retry_connections(worker);
    for (int i = 0; i < count; i++)
        handle_event(worker, &worker->events[i]);
    resume_landed(worker);
    resume_saved(worker);
    backlog_run(&worker->backlog);
    group_execute(&worker->group);
    if (STAT_GET(worker->stats.operations) != operations)
        STAT_ADD(worker->stats.turns_busy, 1);
    disk_io_flush(&worker->disk_io);
    if (!is_late(worker))
        disk_io_read(&worker->disk_io);
    look_at_log(worker);
    flush_dirty(worker);
    release_held(worker);
    *due_ms = 0;
    budget_turn_end(worker);
    *background_more =
        store_background(worker->sw, count ? BACKGROUND_STEPS_BUSY : BACKGROUND_STEPS_IDLE, due_ms);
    store_turn_end(worker->sw);
    free_scratch(worker);
    count_lists(worker);
    sample(worker);
}

/* Gives every connection up and waits, not for long, until the kernel has let go of them. */
static void close_connections(struct worker *worker)
{
    uint64_t deadline_us = clock_monotonic_us() + CLOSE_US_MAX;
    for (struct conn_link *link = worker->all.next; link != &worker->all; link = link->next)
        conn_close(CONN_OF(link, all));
    while (!conn_list_empty(&worker->all) && clock_monotonic_us() < deadline_us) {
        int count = loop_wait(worker->loop, worker->events, WORKER_EVENTS_MAX, STOPPING_LOOK_US);
        for (int i = 0; i < count; i++)
            handle_event(worker, &worker->events[i]);
    }
}

static void *worker_run(void *context)
{
    struct worker *worker = context;
    struct server *server = worker->server;
    int64_t timeout_us = 0;
    (void)thread_slice_set(SLICE_US); /* where the kernel has none, it is as it was */
    if (worker->index == 0) {
        status_t s = status_ok();
        if (server->listen_fd >= 0)
            s = loop_listen(worker->loop, server->listen_fd, server);
        if (status_is_ok(&s) && server->unix_fd >= 0)
            s = loop_listen(worker->loop, server->unix_fd, server);
        if (!status_is_ok(&s)) {
            LOG_ERROR("cannot listen: %s", s.text);
            server_request_stop(server, SERVER_STOPPING);
        }
    }
    for (;;) {
        bool background_more;
        uint64_t due_ms;
        int count = loop_wait(worker->loop, worker->events, WORKER_EVENTS_MAX, timeout_us);
        worker_turn(worker, count, &background_more, &due_ms);
        if (begin_stop(worker) && all_done(worker))
            break;
        timeout_us = wait_us(worker, background_more, due_ms);
        if (timeout_us != 0 && !may_sleep(worker))
            timeout_us = 0;
    }
    close_connections(worker);
    server_worker_done(server);
    return NULL;
}

status_t worker_start(struct worker *worker)
{
    char name[16];
    int error = pthread_create(&worker->thread, NULL, worker_run, worker);
    if (error)
        return status_errno(error, "cannot start worker thread %u", worker->index);
    snprintf(name, sizeof name, "worker-%u", worker->index);
    pthread_setname_np(worker->thread, name);
    return status_ok();
}

void worker_join(struct worker *worker)
{
    pthread_join(worker->thread, NULL);
}
