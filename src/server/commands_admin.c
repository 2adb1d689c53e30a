/* INFO, SHUTDOWN, LASTSAVE, and what the commands may ask of the worker and the server. */
#include "server/commands.h"
#include "server/conn.h"
#include "server/info.h"
#include "server/server.h"
#include "server/subcommand.h"
#include "server/worker.h"
#include "sys/clock.h"

#include <stdlib.h>

uint64_t server_value_bytes_max(const struct server *server)
{
    return server->config.value_bytes_max;
}

struct scan_cursors *server_scan_cursors(struct server *server)
{
    return server->scan_cursors;
}

void *command_scratch(struct command_call *call, size_t bytes)
{
    return worker_scratch(call->worker, bytes);
}

enum command_result command_info(struct command_call *call)
{
    size_t size;
    char *text = info_text(call, &size);
    reply_verbatim(call->reply, slice_make(text, size));
    free(text);
    return COMMAND_DONE;
}

/* Every acknowledged write is on disk, so this is always so. */
enum command_result command_lastsave(struct command_call *call)
{
    reply_integer(call->reply,
                  (int64_t)(call->server->config.durability == STORE_NONE ? call->server->started_unix_s
                                                                          : clock_unix_ms() / 1000));
    return COMMAND_DONE;
}

enum command_result command_shutdown(struct command_call *call)
{
    for (int i = 1; i < call->argc; i++) {
        struct slice option = call->argv[i];
        if (subcommand_is(option, "abort") && call->argc == 2) {
            reply_error(call->reply, "ERR No shutdown in progress.");
            return COMMAND_DONE;
        }
        if (!subcommand_is(option, "nosave") && !subcommand_is(option, "save") &&
            !subcommand_is(option, "now") && !subcommand_is(option, "force")) {
            reply_error(call->reply, "ERR syntax error");
            return COMMAND_DONE;
        }
    }
    server_request_stop(call->server, SERVER_STOPPING);
    return COMMAND_CLOSE; /* as Redis: no reply, the connection ends */
}
