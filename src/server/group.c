/* The happy path: group_feed gets a receive buffer, parse_source turns it into items (views, nothing copied),
 * and when the group is full or the turn's events are used up, group_execute runs them.
 *
 * What can interrupt a source: its last command is unfinished (the tail is copied into the connection's
 * input); a command must wait or the connection's output is full (source->at is set back to that command,
 * what follows is skipped, and the rest is kept in the connection's input, to be parsed again later). A
 * connection has at most one source in a group, so its commands stay in order. */
#include "server/group.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "server/budget.h"
#include "server/commands.h"
#include "server/conn.h"
#include "server/server.h"
#include "server/worker.h"

enum {
    ARGV_CAPACITY_LEAST = 1024,
    ARGV_CAPACITY_KEEP = 65536,
    FAST_ARGC_MAX = 512,
    GROUP_STEP = 32,          /* commands whose memory is asked for together */
    STATE_BYTES_LEAST = 4096, /* a shorter unfinished command is simply parsed again */
    LOOK_BEHIND_BYTES = 4096, /* of input behind a command that waits for its value */
};

void group_init(struct group *group, struct worker *worker)
{
    memset(group, 0, sizeof *group);
    group->worker = worker;
    group->argv_capacity = ARGV_CAPACITY_LEAST;
    group->argv = malloc(group->argv_capacity * sizeof *group->argv);
    group->inline_bytes = malloc(RESP_INLINE_BYTES_MAX);
    CHECK(group->argv && group->inline_bytes);
}

void group_deinit(struct group *group)
{
    free(group->argv);
    free(group->inline_bytes);
}

/* ---- running ---- */

static void set_back(struct group_item *item)
{
    if (item->start < item->source->at) {
        item->source->at = item->start;
        resp_request_reset(&item->conn->request);
    }
}

static void reply_unknown(struct reply *r, const struct slice *argv, uint32_t argc)
{
    char args[256];
    size_t n = 0;
    for (uint32_t i = 1; i < argc && n < 128; i++) {
        int len = (int)(argv[i].len < 128 - n ? argv[i].len : 128 - n);
        n += (size_t)snprintf(args + n, sizeof args - n, "'%.*s' ", len, argv[i].data);
    }
    args[n] = '\0';
    reply_error(r, "ERR unknown command '%.*s', with args beginning with: %s",
                (int)(argv[0].len < 128 ? argv[0].len : 128), argv[0].data, args);
}

static bool arity_fits(const struct command *command, uint32_t argc)
{
    return command->arity >= 0 ? argc == (uint32_t)command->arity : argc >= (uint32_t)-command->arity;
}

static enum command_result refuse(struct reply *r, const struct group_item *item, const struct slice *argv)
{
    if (item->command == NULL)
        reply_unknown(r, argv, item->argc);
    else if (!arity_fits(item->command, item->argc))
        reply_error(r, "ERR wrong number of arguments for '%s' command", item->command->name);
    else
        reply_error(r, "ERR key is longer than %d bytes", STORE_KEY_BYTES_MAX);
    return COMMAND_DONE;
}

static void count_call(struct worker *worker, const struct command_call *call, bool failed)
{
    struct worker_stats *stats = &worker->stats;
    unsigned index = call->command->index;
    STAT_ADD(stats->calls[index], 1);
    STAT_SET(call->conn->last_command, index);
    if (UNLIKELY(failed))
        return;
    if (call->hits)
        STAT_ADD(stats->hits, call->hits);
    if (call->misses)
        STAT_ADD(stats->misses, call->misses);
}

__attribute__((noinline)) static void count_error(struct worker *worker, const struct command *command,
                                                  bool called)
{
    struct worker_stats *stats = &worker->stats;
    STAT_ADD(stats->errors, 1);
    if (command == NULL)
        return;
    _Atomic uint64_t *counts = called ? stats->failed : stats->rejected;
    STAT_ADD(counts[command->index], 1);
}

/* The reply is there: notes what it depends on. */
static void after_reply(struct conn *conn, struct reply_position before, uint64_t from, uint64_t commit_lsn)
{
    struct worker *worker = conn->worker;
    uint64_t depends_lsn = worker->sw->depends_lsn;
    if (UNLIKELY(conn->flags & CONN_REPLY_MUTE)) {
        bool skip_next = conn->flags & CONN_REPLY_SKIP_NEXT;
        reply_rollback(&conn->reply, before);
        conn->flags &= ~(uint32_t)(CONN_REPLY_SKIP | CONN_REPLY_SKIP_NEXT);
        conn->flags |= skip_next ? CONN_REPLY_SKIP : 0;
    } else if (depends_lsn >= commit_lsn) {
        if (conn->hold_lsn == 0)
            conn->hold_from = from;
        if (depends_lsn > conn->hold_lsn)
            conn->hold_lsn = depends_lsn;
    }
    conn_list_add(&worker->dirty, &conn->dirty);
}

/* The connection's command waits for a cold value: those of the commands behind it are read meanwhile. Each
 * is asked for once, although the group sees them again whenever the connection goes on. */
static void ask_ahead(struct group *group, const struct group_item *item)
{
    struct conn *conn = item->conn;
    if (conn->ahead_seen != conn->ahead) { /* asked already; or there was no room for one before it */
        conn->ahead_seen += conn->ahead_seen < conn->ahead;
        return;
    }
    bool wants = item->has_key && item->command->flags & COMMAND_READS_VALUE &&
                 arity_fits(item->command, item->argc) && item->key.name.len <= STORE_KEY_BYTES_MAX;
    conn->ahead_seen++;
    if (!wants || store_key_ahead(group->worker->sw, &item->key))
        conn->ahead++;
}

static void park(struct group_item *item, uint64_t log_wait_bytes)
{
    struct conn *conn = item->conn;
    conn->flags |= CONN_PARKED;
    conn->log_wait_bytes = log_wait_bytes;
    conn->ahead_seen = 0;
    set_back(item);
    budget_parked(conn);
    store_waiter_let_go(conn->worker->sw, &conn->waiter);
}

/* A command has been run to its end that has waited for memory, or values from disk were asked for, for it or
 * for those behind it. */
static void end_waiting(struct worker *worker, struct conn *conn)
{
    store_waiter_release(worker->sw, &conn->waiter);
    if (conn->ahead)
        conn->ahead--;
    if (conn->ahead == 0)
        conn->flags &= ~(uint32_t)CONN_FETCHING;
    conn->work_bytes = 0;
    conn->work_granted = false;
    conn->flags &= ~(uint32_t)(CONN_WORKS | CONN_NO_ROOM);
    conn->room_us = 0;
    if (conn->input_len == 0) /* else conn_input_consume gives the room back */
        budget_release(conn);
}

static void refuse_for_room(struct conn *conn)
{
    if (store_waiter_holds_several(&conn->waiter))
        reply_error(&conn->reply, COMMAND_VALUES_TEXT);
    else
        reply_error(&conn->reply, "OOM there is no room below --memory for what this command needs");
}

static void run_item(struct group *group, struct group_item *item, uint64_t commit_lsn)
{
    struct worker *worker = group->worker;
    struct conn *conn = item->conn;
    struct reply *r = &conn->reply;
    if (UNLIKELY(conn->flags & CONN_STOPPED)) {
        if (item->start > item->source->at && conn_awaits_values(conn))
            ask_ahead(group, item);
        set_back(item);
        return;
    }
    uint64_t from = reply_end_offset(r);
    if (UNLIKELY(from - r->head_offset > worker->output_max)) {
        conn->flags |= CONN_FULL;
        store_waiter_release(worker->sw, &conn->waiter); /* its reader may take long */
        set_back(item);
        return;
    }
    struct slice *argv = group->argv + item->argv;
    struct reply_position before = reply_position(r);
    enum command_result result;
    uint64_t errors = r->error_count;
    bool called = true;
    worker->sw->depends_lsn = 0;
    if (UNLIKELY(item->command == NULL || !arity_fits(item->command, item->argc) ||
                 (item->has_key && item->key.name.len > STORE_KEY_BYTES_MAX))) {
        result = refuse(r, item, argv);
        called = false;
    } else {
        struct command_call call = {
            .command = item->command,
            .worker = worker,
            .conn = conn,
            .server = worker->server,
            .sw = worker->sw,
            .reply = r,
            .argv = argv,
            .argc = (int)item->argc,
            .keys = &item->key,
            .key_count = item->has_key,
            .cold_entry = -1,
        };
        result = item->command->handler(&call);
        if (UNLIKELY(result == COMMAND_AGAIN)) {
            uint64_t log_wait_bytes = store_log_wait(worker->sw);
            if (!budget_gives_up(conn)) {
                park(item, log_wait_bytes);
                return;
            }
            refuse_for_room(conn);
        }
        count_call(worker, &call, r->error_count != errors);
    }
    if (UNLIKELY(conn->flags & (CONN_FETCHING | CONN_WORKS | CONN_NO_ROOM)))
        end_waiting(worker, conn);
    if (UNLIKELY(r->error_count != errors))
        count_error(worker, item->command, called);
    after_reply(conn, before, from, commit_lsn);
    group->executed++;
    if (UNLIKELY(result == COMMAND_CLOSE))
        conn_close_after_reply(conn);
}

/* Asks for the places in the order of keys that are about to be added. */
static void prefetch_order(struct group *group)
{
    const struct store_key *writes[GROUP_COMMANDS_MAX];
    unsigned n = 0;
    for (uint32_t i = 0; i < group->item_count; i++)
        if (group->items[i].has_key && group->items[i].command->flags & COMMAND_WRITE)
            writes[n++] = &group->items[i].key;
    if (n >= 2)
        store_keys_prefetch_order(group->worker->sw, writes, n);
}

/* The keys of items from..to-1. */
static unsigned keys_of(const struct group *group, uint32_t from, uint32_t to, const struct store_key **keys)
{
    unsigned n = 0;
    for (uint32_t i = from; i < to; i++)
        if (group->items[i].has_key)
            keys[n++] = &group->items[i].key;
    return n;
}

static void prefetch_places(struct group *group)
{
    const struct store_key *keys[GROUP_COMMANDS_MAX];
    unsigned n = keys_of(group, group->places_asked, group->item_count, keys);
    store_keys_prefetch_places(group->worker->sw, keys, n);
    group->places_asked = group->item_count;
}

static void prefetch_nodes(struct group *group, uint32_t to)
{
    const struct store_key *keys[GROUP_COMMANDS_MAX];
    if (to > group->item_count)
        to = group->item_count;
    if (to <= group->nodes_asked)
        return;
    unsigned n = keys_of(group, group->nodes_asked, to, keys);
    store_keys_prefetch_nodes(group->worker->sw, keys, n);
    group->nodes_asked = to;
}

static void run_items(struct group *group)
{
    uint64_t commit_lsn = store_commit_lsn(group->worker->sw->store);
    uint32_t n = group->item_count;
    group->executed = 0;
    budget_output_look(group->worker);
    prefetch_places(group);
    prefetch_order(group);
    prefetch_nodes(group, GROUP_STEP);
    for (uint32_t i = 0; i < n; i++) {
        if (i % GROUP_STEP == 0)
            prefetch_nodes(group, i + 2 * GROUP_STEP);
        run_item(group, &group->items[i], commit_lsn);
    }
    STAT_ADD(group->worker->stats.operations, group->executed);
}

/* What remains of a source goes into the connection's input; a receive buffer goes back to the loop. */
static void source_finish(struct group *group, struct source *source)
{
    struct conn *conn = source->conn;
    struct worker *worker = group->worker;
    bool drop = conn->flags & (CONN_CLOSING | CONN_CLOSED);
    const char *at = drop ? source->end : source->at;
    if (source->buffer_id == GROUP_NO_BUFFER) {
        conn_input_consume(conn, (size_t)(at - conn->input));
    } else {
        if (at < source->end)
            conn_input_append(conn, at, (size_t)(source->end - at));
        loop_buffer_release(worker->loop, source->buffer_id);
    }
    conn->source = NULL;
    if (conn_awaits_values(conn))
        conn_list_remove(&conn->retry);
    else if (UNLIKELY(conn_awaits_saving(conn) && !drop))
        conn_list_add(&worker->saving, &conn->saving);
    else if (conn->flags & CONN_PARKED && !drop)
        conn_list_add(&worker->retry, &conn->retry);
    if (conn->flags & CONN_STOPPED)
        conn_list_add(&worker->dirty, &conn->dirty);
}

/* Runs the items. Sources are finished, but for `open`, which moves to the first place if it can go on:
 * returns it, else NULL. */
static struct source *execute(struct group *group, struct source *open)
{
    if (group->item_count)
        run_items(group);
    group->item_count = group->places_asked = group->nodes_asked = 0;
    group->argv_used = 0;
    for (uint32_t i = 0; i < group->source_count; i++) {
        struct source *source = &group->sources[i];
        if (source != open || source->conn->flags & CONN_STOPPED)
            source_finish(group, source);
    }
    group->source_count = 0;
    if (open == NULL || open->conn->flags & CONN_STOPPED)
        return NULL;
    if (open != &group->sources[0])
        group->sources[0] = *open;
    group->source_count = 1;
    open = &group->sources[0];
    open->conn->source = open;
    return open;
}

void group_execute(struct group *group)
{
    execute(group, NULL);
    if (group->argv_capacity > ARGV_CAPACITY_KEEP) {
        group->argv_capacity = ARGV_CAPACITY_LEAST;
        group->argv = realloc(group->argv, group->argv_capacity * sizeof *group->argv);
        CHECK(group->argv);
    }
}

/* ---- parsing ---- */

static struct slice *argv_room(struct group *group, uint32_t count)
{
    if (group->argv_capacity - group->argv_used < count) {
        uint32_t capacity = group->argv_capacity * 2;
        group->argv_capacity = capacity > group->argv_used + count ? capacity : group->argv_used + count;
        group->argv = realloc(group->argv, group->argv_capacity * sizeof *group->argv);
        CHECK(group->argv);
    }
    return group->argv + group->argv_used;
}

static inline void add_item(struct group *group, struct source *source, const char *start, uint32_t argc)
{
    DCHECK(group->item_count < GROUP_COMMANDS_MAX);
    struct group_item *item = &group->items[group->item_count++];
    const struct slice *argv = group->argv + group->argv_used;
    const struct command *command = command_find(argv[0]);
    item->conn = source->conn;
    item->source = source;
    item->command = command;
    item->start = start;
    item->argv = group->argv_used;
    item->argc = argc;
    item->has_key = false;
    if (LIKELY(command && command->first_key == 1 && command->last_key == 1 && argc > 1)) {
        item->has_key = true;
        item->key.name = argv[1];
        if (LIKELY(argv[1].len <= STORE_KEY_BYTES_MAX))
            store_key_prepare(group->worker->sw, &item->key, argv[1]);
        else
            item->key.hash = 0;
    }
    group->argv_used += argc;
    source->conn->turn_commands++;
    if (group->item_count % GROUP_STEP == 0)
        prefetch_places(group);
}

static void protocol_error(struct conn *conn, const char *text)
{
    reply_error(&conn->reply, "ERR %s", text);
    STAT_ADD(conn->worker->stats.errors, 1);
    conn_close_after_reply(conn);
}

/* The arguments of the request, which count from base, become the next item. */
static void add_request(struct group *group, struct source *source, const char *base)
{
    struct resp_request *request = &source->conn->request;
    struct slice *argv = argv_room(group, request->argc);
    for (uint32_t i = 0; i < request->argc; i++)
        argv[i] = slice_make(base + request->spans[i].offset, request->spans[i].len);
    add_item(group, source, source->at, request->argc);
}

/* The command that has been announced needs more than it may: an error, and the rest is passed over. NULL:
 * the source has come to its end. */
__attribute__((noinline)) static struct source *refuse_long(struct group *group, struct source *source,
                                                            const char *text)
{
    source = execute(group, source); /* replies are in order */
    if (source == NULL)
        return NULL;
    struct conn *conn = source->conn;
    struct reply *r = &conn->reply;
    struct reply_position before = reply_position(r);
    uint64_t from = reply_end_offset(r);
    reply_error(r, "%s", text);
    STAT_ADD(conn->worker->stats.errors, 1);
    conn->worker->sw->depends_lsn = 0;
    after_reply(conn, before, from, UINT64_MAX);
    source->at += conn->request.position;
    resp_request_skip_begin(&conn->request);
    return source;
}

static bool fits_memory(const struct conn *conn)
{
    return LIKELY(conn_announced(conn) <= budget_request_max(conn->worker->server)) ||
           conn->request.argc_wanted == 0;
}

static struct source *refuse_for_memory(struct group *group, struct source *source)
{
    char text[160];
    snprintf(
        text, sizeof text,
        "OOM a request longer than %llu bytes, a quarter of --memory (an argument counts as %d at least): "
        "send less at once",
        (unsigned long long)budget_request_max(group->worker->server), (int)CONN_ARGUMENT_BYTES);
    return refuse_long(group, source, text);
}

static struct source *refuse_for_limit(struct group *group, struct source *source, const char *error)
{
    char text[RESP_ERROR_TEXT_BYTES + 8];
    snprintf(text, sizeof text, "ERR %s", error);
    return refuse_long(group, source, text);
}

/* The rest of a refused command, as far as it is there. NULL: as below. */
__attribute__((noinline)) static struct source *pass_over(struct group *group, struct source *source)
{
    struct conn *conn = source->conn;
    char error[RESP_ERROR_TEXT_BYTES];
    size_t used;
    enum resp_result result =
        resp_request_skip(&conn->request, source->at, (size_t)(source->end - source->at),
                          server_limits(group->worker->server), &used, error);
    source->at += used;
    if (result == RESP_ERROR)
        protocol_error(conn, error);
    if (result != RESP_NOTHING)
        return NULL;
    resp_request_reset(&conn->request);
    return source;
}

/* One command the careful way. NULL: the source has come to its end. Not inlined: the fast way needs the
 * registers. */
__attribute__((noinline)) static struct source *parse_slow(struct group *group, struct source *source)
{
    struct conn *conn = source->conn;
    struct resp_request *request = &conn->request;
    char error[RESP_ERROR_TEXT_BYTES];
    size_t used = 0;
    bool big = false;
    if (UNLIKELY(request->skipping))
        return pass_over(group, source);
    enum resp_result result = resp_request_parse(request, source->at, (size_t)(source->end - source->at),
                                                 server_limits(group->worker->server), &used, error);
    switch (result) {
    case RESP_MORE:
    default:
        return fits_memory(conn) ? NULL : refuse_for_memory(group, source);
    case RESP_TOO_LONG:
        return refuse_for_limit(group, source, error);
    case RESP_ERROR:
        source = execute(group, source);
        if (source)
            protocol_error(conn, error);
        return NULL;
    case RESP_INLINE:
        if (!resp_split_inline(request, source->at, used - 1, group->inline_bytes)) {
            source = execute(group, source);
            if (source)
                protocol_error(conn, "Protocol error: unbalanced quotes in request");
            return NULL;
        }
        big = request->argc > 0; /* inline_bytes holds one */
        if (big)
            add_request(group, source, group->inline_bytes);
        break;
    case RESP_COMMAND:
        big = request->argc > FAST_ARGC_MAX;
        add_request(group, source, source->at);
        break;
    case RESP_NOTHING:
        break;
    }
    resp_request_reset(request);
    source->at += used;
    return big ? execute(group, source) : source;
}

static bool request_in_progress(const struct resp_request *request)
{
    return request->position || request->scanned || request->skipping;
}

/* While there is little room, it is asked for a whole request, not for what has come of it. */
static bool learns_length(const struct group *group)
{
    return group->worker->loop->careful;
}

static void parse_source(struct group *group, struct source *source)
{
    struct conn *conn = source->conn;
    const struct resp_limits *limits = server_limits(group->worker->server);
    while (source->at < source->end) {
        if (group->item_count == GROUP_COMMANDS_MAX) {
            source = execute(group, source);
            if (source == NULL)
                return;
        }
        if (UNLIKELY(conn->turn_commands >= CONN_TURN_COMMANDS_MAX || source->at >= source->pause)) {
            conn_list_add(&group->worker->retry, &conn->retry);
            return;
        }
        enum resp_result result = RESP_UNUSUAL;
        if (LIKELY(!request_in_progress(&conn->request))) {
            const char *next;
            unsigned argc;
            struct slice *argv = argv_room(group, FAST_ARGC_MAX);
            result = resp_parse_complete(source->at, source->end, limits, argv, FAST_ARGC_MAX, &argc, &next);
            if (LIKELY(result == RESP_COMMAND)) {
                add_item(group, source, source->at, argc);
                source->at = next;
                continue;
            }
        }
        if (result == RESP_MORE && source->end - source->at < STATE_BYTES_LEAST && !learns_length(group))
            return;
        source = parse_slow(group, source);
        if (source == NULL)
            return;
    }
}

static struct source *open_source(struct group *group, struct conn *conn, const char *data, size_t len,
                                  uint32_t buffer_id)
{
    if (group->source_count == GROUP_SOURCES_MAX)
        group_execute(group);
    if (conn->turn != group->worker->turn) {
        conn->turn = group->worker->turn;
        conn->turn_commands = 0;
    }
    struct source *source = &group->sources[group->source_count++];
    *source = (struct source){conn, data, data + len, data + len, buffer_id};
    conn->source = source;
    return source;
}

/* NULL: there is nothing to go on with. */
static struct source *open_input(struct group *group, struct conn *conn)
{
    if (conn->source)
        group_execute(group);
    if (conn->flags & CONN_STOPPED || !conn_has_input(conn))
        return NULL;
    size_t len = conn->input_len - conn->input_position;
    size_t piece = backlog_piece_bytes(&group->worker->backlog);
    struct source *source =
        open_source(group, conn, conn->input + conn->input_position, len, GROUP_NO_BUFFER);
    if (len / 2 >= piece)
        source->pause = source->at + piece;
    return source;
}

void group_resume(struct group *group, struct conn *conn)
{
    struct source *source = open_input(group, conn);
    if (source)
        parse_source(group, source);
}

void group_retry(struct group *group, struct conn *conn)
{
    struct worker *worker = group->worker;
    if (conn->log_wait_bytes && !store_log_may_go_on(worker->sw, conn->log_wait_bytes)) {
        conn->flags |= CONN_PARKED;
        conn_list_add(&worker->retry, &conn->retry);
        return;
    }
    STAT_ADD(worker->stats.retries, 1);
    group_execute(group); /* parse_slow needs a place among the items */
    struct source *source = open_input(group, conn);
    if (source)
        source = parse_slow(group, source);
    if (source)
        source = execute(group, source);
    if (source)
        parse_source(group, source);
}

/* More has come behind a command that waits for its value: what that wants is read meanwhile. The parked
 * command stands first, and all is set back to it. */
static void look_behind(struct group *group, struct conn *conn)
{
    size_t len = conn->input_len - conn->input_position;
    if (len > LOOK_BEHIND_BYTES)
        return;
    conn->ahead_seen = 0;
    parse_source(group, open_source(group, conn, conn->input + conn->input_position, len, GROUP_NO_BUFFER));
}

void group_feed(struct group *group, struct conn *conn, const char *data, size_t len, uint32_t buffer_id)
{
    struct loop *loop = group->worker->loop;
    STAT_ADD(group->worker->stats.input_bytes, len);
    if (conn->source)
        group_execute(group);
    if (conn->flags & (CONN_CLOSING | CONN_CLOSED)) {
        loop_buffer_release(loop, buffer_id);
        return;
    }
    if (LIKELY(!conn_has_input(conn) && !(conn->flags & CONN_STOPPED))) {
        parse_source(group, open_source(group, conn, data, len, buffer_id));
        return;
    }
    conn_input_append(conn, data, len);
    loop_buffer_release(loop, buffer_id);
    if (!(conn->flags & CONN_STOPPED)) {
        group_resume(group, conn);
        return;
    }
    conn_list_add(&group->worker->dirty, &conn->dirty); /* conn_flush paces the reading */
    if (conn_awaits_values(conn))
        look_behind(group, conn);
}
