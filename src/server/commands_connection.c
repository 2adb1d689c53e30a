/* Commands about the connection itself: HELLO, AUTH, QUIT, RESET, SELECT. CLIENT has a file of its own. */
#include "base/logger.h"
#include "base/parse.h"
#include "server/commands.h"
#include "server/commands_client.h"
#include "server/conn.h"
#include "server/server.h"
#include "server/worker.h"

static const char no_password[] =
    "ERR AUTH <password> called without any password configured for the default "
    "user. Are you sure your configuration is correct?";
static const char wrong_password[] = "WRONGPASS invalid username-password pair or user is disabled.";

/* There are no passwords: the default user may name any. False: error replied. */
static bool log_in(struct command_call *call, struct slice user)
{
    if (slice_equal(user, SLICE_LITERAL("default")))
        return true;
    reply_error(call->reply, "%s", wrong_password);
    return false;
}

enum command_result command_auth(struct command_call *call)
{
    if (call->argc > 3)
        return command_syntax_error(call);
    if (call->argc == 2)
        reply_error(call->reply, "%s", no_password);
    else if (log_in(call, call->argv[1]))
        reply_ok(call->reply);
    return COMMAND_DONE;
}

static void resp_set(struct command_call *call, uint8_t version)
{
    call->reply->resp = version;
    atomic_store_explicit(&call->conn->resp, version, memory_order_relaxed); /* for CLIENT LIST */
}

static void hello_reply(struct command_call *call)
{
    struct reply *r = call->reply;
    reply_map(r, 7);
    reply_bulk_text(r, "server");
    reply_bulk_text(r, "redis");
    reply_bulk_text(r, "version");
    reply_bulk_text(r, SERVER_REDIS_VERSION);
    reply_bulk_text(r, "proto");
    reply_integer(r, r->resp);
    reply_bulk_text(r, "id");
    reply_integer(r, (int64_t)call->conn->id);
    reply_bulk_text(r, "mode");
    reply_bulk_text(r, "standalone");
    reply_bulk_text(r, "role");
    reply_bulk_text(r, "master");
    reply_bulk_text(r, "modules");
    reply_array(r, 0);
}

enum command_result command_hello(struct command_call *call)
{
    int64_t version = call->reply->resp;
    int i = 1;
    struct slice name = {NULL, 0};
    if (call->argc > 1) {
        if (!parse_i64(call->argv[1], &version)) {
            reply_error(call->reply, "ERR Protocol version is not an integer or out of range");
            return COMMAND_DONE;
        }
        if (version < 2 || version > 3) {
            reply_error(call->reply, "NOPROTO unsupported protocol version");
            return COMMAND_DONE;
        }
        i = 2;
    }
    for (; i < call->argc; i++) {
        if (command_word_is(call->argv[i], "auth") && i + 2 < call->argc) {
            if (!log_in(call, call->argv[i + 1]))
                return COMMAND_DONE;
            i += 2;
        } else if (command_word_is(call->argv[i], "setname") && i + 1 < call->argc) {
            name = call->argv[++i];
            if (!client_name_check(call, name))
                return COMMAND_DONE;
        } else {
            reply_error(call->reply, "ERR Syntax error in HELLO option '%.*s'", (int)call->argv[i].len,
                        call->argv[i].data);
            return COMMAND_DONE;
        }
    }
    if (name.data)
        client_name_set(call, name);
    resp_set(call, (uint8_t)version);
    hello_reply(call);
    return COMMAND_DONE;
}

/* A browser can be made to POST here by any page that it shows, and commands could stand in the body. So the
 * connection ends before those are read, as in Redis. */
enum command_result command_http(struct command_call *call)
{
    enum { TELL_EVERY_US = 60000000 };
    uint64_t now_us = call->worker->now_us;
    uint64_t told_us = atomic_load_explicit(&call->server->http_told_us, memory_order_relaxed);
    /* Once a minute. Relaxed: nothing else depends on it, and two workers may both say it. */
    if (told_us == 0 || now_us > told_us + TELL_EVERY_US) {
        atomic_store_explicit(&call->server->http_told_us, now_us, memory_order_relaxed);
        LOG_WARNING(
            "%s speaks HTTP: the connection is closed (a web page may have made a browser try commands "
            "here)",
            call->conn->address);
    }
    return COMMAND_CLOSE;
}

enum command_result command_quit(struct command_call *call)
{
    reply_ok(call->reply);
    return COMMAND_CLOSE;
}

enum command_result command_reset(struct command_call *call)
{
    client_name_set(call, slice_make("", 0));
    resp_set(call, 2);
    call->conn->flags &= ~(uint32_t)CONN_REPLY_OFF; /* CLIENT REPLY SKIP holds for this reply too */
    reply_status(call->reply, "RESET");
    return COMMAND_DONE;
}

enum command_result command_select(struct command_call *call)
{
    int64_t n;
    if (!parse_i64(call->argv[1], &n))
        reply_error(call->reply, "ERR value is not an integer or out of range");
    else if (n < INT32_MIN || n > INT32_MAX)
        reply_error(call->reply, "ERR value is out of range, value must between -2147483648 and 2147483647");
    else if (n != 0)
        reply_error(call->reply, "ERR DB index is out of range");
    else
        reply_ok(call->reply);
    return COMMAND_DONE;
}
