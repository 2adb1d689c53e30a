/* PING, ECHO, TIME, and COMMAND, which tells about the others. */
#include <sys/time.h>

#include "server/command_syntax.h"
#include "server/commands.h"
#include "server/subcommand.h"

enum command_result command_ping(struct command_call *call)
{
    if (call->argc > 2)
        reply_error(call->reply, "ERR wrong number of arguments for 'ping' command");
    else if (call->argc == 2)
        reply_bulk(call->reply, call->argv[1]);
    else
        reply_status(call->reply, "PONG");
    return COMMAND_DONE;
}

enum command_result command_echo(struct command_call *call)
{
    reply_bulk(call->reply, call->argv[1]);
    return COMMAND_DONE;
}

enum command_result command_time(struct command_call *call)
{
    struct timeval now;
    gettimeofday(&now, NULL);
    reply_array(call->reply, 2);
    reply_bulk_integer(call->reply, now.tv_sec);
    reply_bulk_integer(call->reply, now.tv_usec);
    return COMMAND_DONE;
}

static const struct command *find_listed(struct slice name)
{
    const struct command *c = command_find(name);
    return c && c->index < command_count ? c : NULL;
}

static void reply_flags(struct reply *r, uint32_t flags)
{
    static const struct {
        uint32_t flag;
        const char *name;
    } names[] = {{COMMAND_READONLY, "readonly"},
                 {COMMAND_WRITE, "write"},
                 {COMMAND_FAST, "fast"},
                 {COMMAND_ADMIN, "admin"}};
    unsigned count = 0;
    for (unsigned i = 0; i < 4; i++)
        count += (flags & names[i].flag) != 0;
    reply_set(r, count);
    for (unsigned i = 0; i < 4; i++) {
        if (flags & names[i].flag)
            reply_status(r, names[i].name);
    }
}

static void reply_info(struct reply *r, const struct command *c)
{
    reply_array(r, 10);
    reply_bulk_text(r, c->name);
    reply_integer(r, c->arity);
    reply_flags(r, c->flags);
    reply_integer(r, c->first_key);
    reply_integer(r, c->last_key);
    reply_integer(r, c->key_step);
    for (unsigned i = 0; i < 4; i++) /* ACL categories, tips, key specifications, subcommands */
        reply_set(r, 0);
}

static void reply_docs(struct reply *r, const struct command *c)
{
    const char *syntax = command_syntax_find(c->name);
    reply_bulk_text(r, c->name);
    reply_map(r, syntax ? 4 : 3);
    reply_bulk_text(r, "summary");
    reply_bulk_text(r, c->summary);
    reply_bulk_text(r, "since");
    reply_bulk_text(r, c->since);
    reply_bulk_text(r, "group");
    reply_bulk_text(r, c->group);
    if (syntax) {
        reply_bulk_text(r, "arguments");
        command_syntax_reply(r, syntax);
    }
}

static enum command_result command_docs(struct command_call *call)
{
    uint64_t count = 0;
    if (call->argc == 2) {
        reply_map(call->reply, command_count);
        for (unsigned i = 0; i < command_count; i++)
            reply_docs(call->reply, command_table[i]);
        return COMMAND_DONE;
    }
    for (int i = 2; i < call->argc; i++)
        count += find_listed(call->argv[i]) != NULL;
    reply_map(call->reply, count);
    for (int i = 2; i < call->argc; i++) {
        const struct command *c = find_listed(call->argv[i]);
        if (c)
            reply_docs(call->reply, c);
    }
    return COMMAND_DONE;
}

static void command_infos(struct command_call *call, int first)
{
    if (call->argc <= first) {
        reply_array(call->reply, command_count);
        for (unsigned i = 0; i < command_count; i++)
            reply_info(call->reply, command_table[i]);
        return;
    }
    reply_array(call->reply, (uint64_t)(call->argc - first));
    for (int i = first; i < call->argc; i++) {
        const struct command *c = find_listed(call->argv[i]);
        if (c)
            reply_info(call->reply, c);
        else
            reply_null(call->reply);
    }
}

static enum command_result command_count_all(struct command_call *call)
{
    reply_integer(call->reply, command_count);
    return COMMAND_DONE;
}

static enum command_result command_info_some(struct command_call *call)
{
    command_infos(call, 2);
    return COMMAND_DONE;
}

static enum command_result command_list(struct command_call *call)
{
    reply_array(call->reply, command_count);
    for (unsigned i = 0; i < command_count; i++)
        reply_bulk_text(call->reply, command_table[i]->name);
    return COMMAND_DONE;
}

enum command_result command_command(struct command_call *call)
{
    static const struct subcommand table[] = {
        {"count", 2, command_count_all, "COUNT\n    Return the number of commands."},
        {"docs", -2, command_docs,
         "DOCS [<command-name> ...]\n    Return documentation of the commands, or of all."},
        {"info", -2, command_info_some,
         "INFO [<command-name> ...]\n    Return details of the commands, or of all."},
        {"list", 2, command_list, "LIST\n    Return the names of all commands."},
        {0},
    };
    if (call->argc > 1)
        return subcommand_run(call, table);
    command_infos(call, 1);
    return COMMAND_DONE;
}
