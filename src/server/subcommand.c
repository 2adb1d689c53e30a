#include "server/subcommand.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "server/commands.h"

static void upper(const char *name, char out[32])
{
    size_t i = 0;
    for (; name[i] && i < 31; i++)
        out[i] = (char)toupper((unsigned char)name[i]);
    out[i] = '\0';
}

static enum command_result reply_help(struct command_call *call, const struct subcommand *table)
{
    char name[32], text[160];
    uint64_t lines = 3;
    upper(call->command->name, name);
    for (const struct subcommand *s = table; s->name; s++)
        lines += s->help ? 2 : 0;
    reply_array(call->reply, lines);
    snprintf(text, sizeof text, "%s <subcommand> [<arg> [value] [opt] ...]. Subcommands are:", name);
    reply_status(call->reply, text);
    for (const struct subcommand *s = table; s->name; s++) {
        if (s->help == NULL)
            continue;
        const char *line_end = strchr(s->help, '\n');
        snprintf(text, sizeof text, "%.*s", (int)(line_end - s->help), s->help);
        reply_status(call->reply, text);
        reply_status(call->reply, line_end + 1);
    }
    reply_status(call->reply, "HELP");
    reply_status(call->reply, "    Print this help.");
    return COMMAND_DONE;
}

enum command_result subcommand_run(struct command_call *call, const struct subcommand *table)
{
    struct slice name = call->argv[1];
    char command[32];
    if (command_word_is(name, "help")) {
        if (call->argc == 2)
            return reply_help(call, table);
        reply_error(call->reply, "ERR wrong number of arguments for '%s|help' command", call->command->name);
        return COMMAND_DONE;
    }
    for (const struct subcommand *s = table; s->name; s++) {
        if (!command_word_is(name, s->name))
            continue;
        if (s->arity >= 0 ? call->argc == s->arity : call->argc >= -s->arity)
            return s->handler(call);
        reply_error(call->reply, "ERR wrong number of arguments for '%s|%s' command", call->command->name,
                    s->name);
        return COMMAND_DONE;
    }
    upper(call->command->name, command);
    reply_error(call->reply, "ERR unknown subcommand '%.*s'. Try %s HELP.",
                (int)(name.len < 128 ? name.len : 128), name.data, command);
    return COMMAND_DONE;
}
