/* CLIENT and its subcommands. Connections of all workers are in server->registry. */
#include "server/commands_client.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/parse.h"
#include "server/commands.h"
#include "server/conn.h"
#include "server/server.h"
#include "server/subcommand.h"
#include "server/worker.h"

/* ---- names ---- */

static bool is_printable(struct slice text)
{
    for (size_t i = 0; i < text.len; i++)
        if (text.data[i] < '!' || text.data[i] > '~')
            return false;
    return true;
}

/* For texts of the registry. */
static void set_text(struct command_call *call, char *into, size_t size, struct slice text)
{
    size_t n = text.len < size ? text.len : size - 1;
    pthread_mutex_lock(&call->server->registry_lock);
    if (n)
        memcpy(into, text.data, n);
    into[n] = '\0';
    pthread_mutex_unlock(&call->server->registry_lock);
}

bool client_name_check(struct command_call *call, struct slice name)
{
    if (!is_printable(name))
        reply_error(call->reply, "ERR Client names cannot contain spaces, newlines or special characters.");
    else if (name.len >= CONN_NAME_BYTES)
        reply_error(call->reply, "ERR client name is longer than %d bytes", CONN_NAME_BYTES - 1);
    else
        return true;
    return false;
}

void client_name_set(struct command_call *call, struct slice name)
{
    set_text(call, call->conn->name, CONN_NAME_BYTES, name);
}

static enum command_result client_setname(struct command_call *call)
{
    if (client_name_check(call, call->argv[2])) {
        client_name_set(call, call->argv[2]);
        reply_ok(call->reply);
    }
    return COMMAND_DONE;
}

static enum command_result client_getname(struct command_call *call)
{
    if (call->conn->name[0])
        reply_bulk_text(call->reply, call->conn->name);
    else
        reply_null(call->reply);
    return COMMAND_DONE;
}

static enum command_result client_setinfo(struct command_call *call)
{
    struct conn *conn = call->conn;
    bool name = command_word_is(call->argv[2], "lib-name");
    if (!name && !command_word_is(call->argv[2], "lib-ver")) {
        reply_error(call->reply, "ERR Unrecognized option '%.*s'", (int)call->argv[2].len,
                    call->argv[2].data);
    } else if (!is_printable(call->argv[3])) {
        reply_error(call->reply, "ERR %s cannot contain spaces, newlines or special characters.",
                    name ? "lib-name" : "lib-ver");
    } else {
        if (name)
            set_text(call, conn->library, sizeof conn->library, call->argv[3]);
        else
            set_text(call, conn->library_version, sizeof conn->library_version, call->argv[3]);
        reply_ok(call->reply);
    }
    return COMMAND_DONE;
}

static enum command_result client_id(struct command_call *call)
{
    reply_integer(call->reply, (int64_t)call->conn->id);
    return COMMAND_DONE;
}

/* ---- LIST, INFO ---- */

enum { LINE_BYTES = 1024 };

/* One line without its end. registry_lock is held. */
static int print_line(const struct command_call *call, const struct conn *conn, const char *own_command,
                      char *line)
{
    uint64_t now_us = call->worker->now_us;
    uint64_t active_us = STAT_GET(conn->active_us);
    unsigned last = STAT_GET(conn->last_command);
    const char *command = conn == call->conn     ? own_command
                          : last < command_count ? command_table[last]->name
                                                 : "NULL";
    uint64_t output = STAT_GET(conn->output_bytes);
    uint32_t input = STAT_GET(conn->input_bytes);
    return snprintf(
        line, LINE_BYTES,
        "id=%llu addr=%s laddr=%s fd=%d name=%s age=%llu idle=%llu flags=%s db=0 sub=0 psub=0 ssub=0 "
        "multi=-1 qbuf=%u qbuf-free=0 argv-mem=0 multi-mem=0 rbs=0 rbp=0 obl=%llu oll=0 omem=%llu "
        "tot-mem=%llu events=r cmd=%s user=default redir=-1 resp=%d lib-name=%s lib-ver=%s",
        (unsigned long long)conn->id, conn->address, conn->local_address, conn->stream.fd, conn->name,
        (unsigned long long)(now_us > conn->created_us ? (now_us - conn->created_us) / 1000000 : 0),
        (unsigned long long)(now_us > active_us ? (now_us - active_us) / 1000000 : 0),
        conn->is_unix ? "U" : "N", input, (unsigned long long)output, (unsigned long long)output,
        (unsigned long long)sizeof *conn + input + output, command, STAT_GET(conn->resp), conn->library,
        conn->library_version);
}

/* Which connections are meant. */
struct filter {
    const int64_t *ids; /* any of them, when id_count; ascending */
    int id_count;
    struct slice address, local_address; /* data NULL: any */
    bool none;                           /* a type of which there are none */
    bool skip_me;
};

static int compare_ids(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static bool matches(const struct filter *filter, const struct command_call *call, const struct conn *conn)
{
    int64_t id = (int64_t)conn->id;
    bool named = filter->id_count == 0 ||
                 bsearch(&id, filter->ids, (size_t)filter->id_count, sizeof id, compare_ids) != NULL;
    if (!named || filter->none || (filter->skip_me && conn == call->conn))
        return false;
    if (filter->address.data && !command_word_is(filter->address, conn->address))
        return false;
    return !filter->local_address.data || command_word_is(filter->local_address, conn->local_address);
}

static enum command_result reply_lines(struct command_call *call, const struct filter *filter)
{
    enum { LINE_BYTES_USUAL = 256 };
    char line[LINE_BYTES], *text = NULL;
    size_t size = 0;
    uint64_t clients = atomic_load_explicit(&call->server->clients, memory_order_relaxed);
    if (!command_reply_fits(call, clients * LINE_BYTES_USUAL))
        return COMMAND_AGAIN;
    FILE *out = open_memstream(&text, &size);
    CHECK(out);
    pthread_mutex_lock(&call->server->registry_lock);
    const struct conn *conn = call->server->registry;
    while (conn && conn->registry_next) /* oldest first */
        conn = conn->registry_next;
    for (; conn; conn = conn->registry_previous) {
        if (!matches(filter, call, conn))
            continue;
        print_line(call, conn, "client|list", line);
        fprintf(out, "%s\n", line);
    }
    pthread_mutex_unlock(&call->server->registry_lock);
    fclose(out);
    reply_verbatim(call->reply, slice_make(text, size));
    free(text);
    return COMMAND_DONE;
}

static enum command_result client_info(struct command_call *call)
{
    char line[LINE_BYTES + 1];
    pthread_mutex_lock(&call->server->registry_lock);
    int n = print_line(call, call->conn, "client|info", line);
    pthread_mutex_unlock(&call->server->registry_lock);
    if (n >= LINE_BYTES)
        n = LINE_BYTES - 1;
    line[n++] = '\n';
    reply_verbatim(call->reply, slice_make(line, (size_t)n));
    return COMMAND_DONE;
}

/* Only normal clients exist. False: unknown type, and the error is the reply. */
static bool parse_type(struct command_call *call, struct slice type, struct filter *filter)
{
    if (command_word_is(type, "normal"))
        return true;
    filter->none = true;
    if (command_word_is(type, "master") || command_word_is(type, "replica") ||
        command_word_is(type, "slave") || command_word_is(type, "pubsub"))
        return true;
    reply_error(call->reply, "ERR Unknown client type '%.*s'", (int)type.len, type.data);
    return false;
}

static enum command_result client_list(struct command_call *call)
{
    struct filter filter = {0};
    if (call->argc == 4 && command_word_is(call->argv[2], "type")) {
        if (!parse_type(call, call->argv[3], &filter))
            return COMMAND_DONE;
    } else if (call->argc > 3 && command_word_is(call->argv[2], "id")) {
        int64_t *ids = worker_scratch(call->worker, (size_t)call->argc * sizeof *ids);
        for (int i = 3; i < call->argc; i++) {
            if (!parse_i64(call->argv[i], &ids[i - 3])) {
                reply_error(call->reply, "ERR Invalid client ID");
                return COMMAND_DONE;
            }
        }
        filter.ids = ids;
        filter.id_count = call->argc - 3;
        qsort(ids, (size_t)filter.id_count, sizeof *ids, compare_ids);
    } else if (call->argc != 2) {
        return command_syntax_error(call);
    }
    return reply_lines(call, &filter);
}

/* ---- KILL ---- */

/* Closes what matches; the connection itself only after the reply. */
static int64_t kill_matching(struct command_call *call, const struct filter *filter, bool *me)
{
    int64_t count = 0;
    pthread_mutex_lock(&call->server->registry_lock);
    for (struct conn *conn = call->server->registry; conn; conn = conn->registry_next) {
        if (!matches(filter, call, conn))
            continue;
        count++;
        if (conn == call->conn)
            *me = true;
        else
            arrivals_post(conn->worker, (struct mail){.kind = MAIL_KILL, .id = conn->id});
    }
    pthread_mutex_unlock(&call->server->registry_lock);
    return count;
}

/* One pair of the new syntax. False: the error is the reply. */
static bool parse_kill_option(struct command_call *call, int i, struct filter *filter, int64_t *id)
{
    struct slice name = call->argv[i], value = call->argv[i + 1];
    if (command_word_is(name, "id")) {
        if (!parse_i64(value, id) || *id < 1) {
            reply_error(call->reply, "ERR client-id should be greater than 0");
            return false;
        }
        filter->ids = id;
        filter->id_count = 1;
    } else if (command_word_is(name, "addr")) {
        filter->address = value;
    } else if (command_word_is(name, "laddr")) {
        filter->local_address = value;
    } else if (command_word_is(name, "type")) {
        return parse_type(call, value, filter);
    } else if (command_word_is(name, "user")) {
        if (!slice_equal(value, SLICE_LITERAL("default"))) {
            reply_error(call->reply, "ERR No such user '%.*s'", (int)value.len, value.data);
            return false;
        }
    } else if (command_word_is(name, "skipme") && command_word_is(value, "yes")) {
        filter->skip_me = true;
    } else if (command_word_is(name, "skipme") && command_word_is(value, "no")) {
        filter->skip_me = false;
    } else {
        command_syntax_error(call);
        return false;
    }
    return true;
}

static enum command_result client_kill(struct command_call *call)
{
    struct filter filter = {.skip_me = call->argc > 3};
    int64_t id = 0;
    bool me = false;
    if (call->argc == 3) {
        filter.address = call->argv[2];
        if (kill_matching(call, &filter, &me))
            reply_ok(call->reply);
        else
            reply_error(call->reply, "ERR No such client");
        return me ? COMMAND_CLOSE : COMMAND_DONE;
    }
    for (int i = 2; i < call->argc; i += 2) {
        if (i + 1 == call->argc)
            return command_syntax_error(call);
        if (!parse_kill_option(call, i, &filter, &id))
            return COMMAND_DONE;
    }
    reply_integer(call->reply, kill_matching(call, &filter, &me));
    return me ? COMMAND_CLOSE : COMMAND_DONE;
}

/* ---- small ones ---- */

static enum command_result client_reply(struct command_call *call)
{
    struct conn *conn = call->conn;
    if (command_word_is(call->argv[2], "on")) {
        conn->flags &= ~(uint32_t)CONN_REPLY_MUTE;
        reply_ok(call->reply);
    } else if (command_word_is(call->argv[2], "off")) {
        conn->flags |= CONN_REPLY_OFF;
    } else if (command_word_is(call->argv[2], "skip")) {
        if (!(conn->flags & CONN_REPLY_OFF))
            conn->flags |= CONN_REPLY_SKIP_NEXT;
    } else {
        return command_syntax_error(call);
    }
    return COMMAND_DONE;
}

/* NO-EVICT and NO-TOUCH, without effect: no connection is ever closed for others' sake, and every read counts
 * when values leave memory. */
static enum command_result client_switch(struct command_call *call)
{
    if (!command_word_is(call->argv[2], "on") && !command_word_is(call->argv[2], "off"))
        return command_syntax_error(call);
    reply_ok(call->reply);
    return COMMAND_DONE;
}

static enum command_result client_getredir(struct command_call *call)
{
    reply_integer(call->reply, -1);
    return COMMAND_DONE;
}

static enum command_result client_unpause(struct command_call *call)
{
    reply_ok(call->reply);
    return COMMAND_DONE;
}

enum command_result command_client(struct command_call *call)
{
    static const struct subcommand table[] = {
        {"getname", 2, client_getname, "GETNAME\n    Return the name of the current connection."},
        {"getredir", 2, client_getredir, NULL},
        {"id", 2, client_id, "ID\n    Return the ID of the current connection."},
        {"info", 2, client_info, "INFO\n    Return information about the current client connection."},
        {"kill", -3, client_kill,
         "KILL <ip:port>|<option> <value> ...\n    Kill connections by ID, ADDR, LADDR, TYPE."},
        {"list", -2, client_list,
         "LIST [TYPE <type>|ID <id> ...]\n    Return information about client connections."},
        {"no-evict", 3, client_switch, NULL},
        {"no-touch", 3, client_switch, NULL},
        {"reply", 3, client_reply,
         "REPLY (ON|OFF|SKIP)\n    Control the replies sent to the current connection."},
        {"setinfo", 4, client_setinfo,
         "SETINFO <option> <value>\n    Set client meta attr: lib-name or lib-ver."},
        {"setname", 3, client_setname,
         "SETNAME <name>\n    Assign the name <name> to the current connection."},
        {"unpause", 2, client_unpause, NULL},
        {0},
    };
    return subcommand_run(call, table);
}
