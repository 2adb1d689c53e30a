/* SAVE, BGSAVE, LASTSAVE: checkpoints; BACKUP. The connection of SAVE or BACKUP is parked until that has
 * ended: its ticket stands in the connection, which is in the worker's list `saving` meanwhile. */
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "server/commands.h"
#include "server/conn.h"
#include "server/save.h"
#include "server/server.h"
#include "server/worker.h"
#include "sys/clock.h"

void save_status_get(struct server *server, struct save_status *out)
{
    struct store_checkpoint_stats s;
    uint64_t ticket = atomic_load_explicit(&server->save_ticket, memory_order_relaxed);
    store_checkpoint_stats_get(server->store, &s);
    *out = (struct save_status){
        .in_progress = s.running ||
                       (ticket && store_checkpoint_state(server->store, ticket) == STORE_CHECKPOINT_RUNNING),
        .last_failed = s.last_failed,
        .last_unix_s = s.number ? s.published_ms / 1000 : server->started_unix_s,
        .last_duration_s = s.number ? (int64_t)(s.duration_us / 1000000) : -1,
        .current_s = -1,
    };
    if (!s.running)
        return;
    uint64_t now_ms = clock_unix_ms();
    out->current_s = now_ms > s.start_ms ? (int64_t)((now_ms - s.start_ms) / 1000) : 0;
    out->keys_done = s.keys_done;
    out->keys_total = s.keys_total;
}

/* Answers and returns false when there is nothing to write to. */
static bool has_disk(struct command_call *call)
{
    if (call->server->config.durability != STORE_NONE)
        return true;
    reply_error(call->reply, "ERR nothing is kept on disk with --durability none");
    return false;
}

static uint64_t request(struct server *server)
{
    uint64_t ticket = store_checkpoint_request(server->store);
    uint64_t newest = atomic_load_explicit(&server->save_ticket, memory_order_relaxed);
    while (newest < ticket &&
           !atomic_compare_exchange_weak_explicit(&server->save_ticket, &newest, ticket, memory_order_relaxed,
                                                  memory_order_relaxed))
        ;
    return ticket;
}

bool save_has_ended(const struct conn *conn)
{
    struct store *store = conn->worker->server->store;
    char text[STORE_BACKUP_TEXT_BYTES];
    enum store_checkpoint_state state = conn->save_is_backup
                                            ? store_backup_state(store, conn->save_ticket, text)
                                            : store_checkpoint_state(store, conn->save_ticket);
    return state != STORE_CHECKPOINT_RUNNING;
}

void save_forget(struct conn *conn)
{
    if (conn->save_ticket && conn->save_is_backup)
        atomic_store_explicit(&conn->worker->server->backup_awaited, false, memory_order_release);
    conn->save_ticket = 0;
    conn->save_is_backup = false;
}

static void reply_stopping(struct command_call *call)
{
    reply_error(call->reply, "ERR the server is stopping; the log has everything that was acknowledged");
}

static void reply_failed(struct command_call *call)
{
    struct store_checkpoint_stats s;
    store_checkpoint_stats_get(call->server->store, &s);
    reply_error(call->reply, "ERR the checkpoint failed: %s",
                s.error[0] ? s.error : "the server's log says why"); /* a later one has succeeded */
}

enum command_result command_save(struct command_call *call)
{
    struct conn *conn = call->conn;
    if (!has_disk(call))
        return COMMAND_DONE;
    if (conn->save_ticket == 0)
        conn->save_ticket = request(call->server);
    enum store_checkpoint_state state = store_checkpoint_state(call->server->store, conn->save_ticket);
    if (state == STORE_CHECKPOINT_RUNNING && server_phase(call->server) == SERVER_RUNNING)
        return COMMAND_AGAIN;
    save_forget(conn);
    if (state == STORE_CHECKPOINT_DONE)
        reply_ok(call->reply);
    else if (state == STORE_CHECKPOINT_FAILED)
        reply_failed(call);
    else
        reply_stopping(call);
    return COMMAND_DONE;
}

/* SCHEDULE: one behind the one under way, if there is one. */
enum command_result command_bgsave(struct command_call *call)
{
    bool schedule = call->argc == 2 && command_word_is(call->argv[1], "schedule");
    struct save_status status;
    if (call->argc > 1 && !schedule)
        return command_syntax_error(call);
    if (!has_disk(call))
        return COMMAND_DONE;
    save_status_get(call->server, &status);
    if (status.in_progress && !schedule) {
        reply_error(call->reply, "ERR Background save already in progress");
        return COMMAND_DONE;
    }
    request(call->server);
    reply_status(call->reply,
                 status.in_progress ? "Background saving scheduled" : "Background saving started");
    return COMMAND_DONE;
}

enum command_result command_lastsave(struct command_call *call)
{
    struct save_status status;
    save_status_get(call->server, &status);
    reply_integer(call->reply, (int64_t)status.last_unix_s);
    return COMMAND_DONE;
}

/* The argument as a path without slashes at its end. False: it is none; the error is written. */
static bool backup_path(struct command_call *call, char path[PATH_MAX])
{
    enum { SUFFIX_BYTES = 16 }; /* of names that are made of it */
    struct slice arg = call->argv[1];
    while (arg.len > 1 && arg.data[arg.len - 1] == '/')
        arg.len--;
    if (arg.len < 2 || arg.data[0] != '/' || memchr(arg.data, '\0', arg.len)) {
        reply_error(call->reply, "ERR BACKUP needs the absolute path of a folder that does not exist yet");
        return false;
    }
    if (arg.len > PATH_MAX - SUFFIX_BYTES) {
        reply_error(call->reply, "ERR the path is longer than %d bytes", PATH_MAX - SUFFIX_BYTES);
        return false;
    }
    memcpy(path, arg.data, arg.len);
    path[arg.len] = '\0';
    return true;
}

/* Asks for the backup. False: that cannot be; the error is written. One at a time, until its answer has been
 * fetched: the store knows how the newest went only. */
static bool backup_begin(struct command_call *call)
{
    struct conn *conn = call->conn;
    char path[PATH_MAX];
    bool awaited = false;
    if (!has_disk(call) || !backup_path(call, path))
        return false;
    /* Acquire: pairs with save_forget. */
    if (atomic_compare_exchange_strong_explicit(&call->server->backup_awaited, &awaited, true,
                                                memory_order_acquire, memory_order_relaxed)) {
        conn->save_ticket = store_backup_request(call->server->store, path);
        conn->save_is_backup = true;
        if (conn->save_ticket)
            return true;
        conn->save_is_backup = false; /* one that nobody waits for any more */
        atomic_store_explicit(&call->server->backup_awaited, false, memory_order_release);
    }
    reply_error(call->reply, "ERR another backup is in progress");
    return false;
}

enum command_result command_backup(struct command_call *call)
{
    struct conn *conn = call->conn;
    char text[STORE_BACKUP_TEXT_BYTES], line[STORE_BACKUP_TEXT_BYTES + 8];
    if (conn->save_ticket == 0 && !backup_begin(call))
        return COMMAND_DONE;
    enum store_checkpoint_state state = store_backup_state(call->server->store, conn->save_ticket, text);
    if (state == STORE_CHECKPOINT_RUNNING && server_phase(call->server) == SERVER_RUNNING)
        return COMMAND_AGAIN;
    save_forget(conn);
    if (state == STORE_CHECKPOINT_DONE) {
        snprintf(line, sizeof line, "OK %s", text);
        reply_status(call->reply, line);
    } else if (state == STORE_CHECKPOINT_FAILED) {
        reply_error(call->reply, "ERR the backup failed: %s", text);
    } else {
        reply_stopping(call);
    }
    return COMMAND_DONE;
}
