/* INFO, SHUTDOWN, and what the commands may ask of the worker and the server. */
#include "server/commands.h"
#include "server/info.h"
#include "server/server.h"
#include "server/worker.h"

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

enum command_result command_shutdown(struct command_call *call)
{
    static const char *const words[] = {"nosave", "save", "now", "force", "abort"};
    enum { NOSAVE = 1, SAVE = 2, ABORT = 16 };
    unsigned given = 0;
    for (int i = 1; i < call->argc; i++) {
        unsigned w = 0;
        while (w < 5 && !command_word_is(call->argv[i], words[w]))
            w++;
        if (w == 5)
            return command_syntax_error(call);
        given |= 1u << w;
    }
    if ((given & ABORT && given != ABORT) || (given & NOSAVE && given & SAVE))
        return command_syntax_error(call);
    if (given & ABORT) {
        reply_error(call->reply, "ERR No shutdown in progress.");
        return COMMAND_DONE;
    }
    server_request_stop(call->server, SERVER_STOPPING);
    return COMMAND_CLOSE; /* as Redis: no reply, the connection ends */
}
