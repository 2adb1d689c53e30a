/* CONFIG: the settings that exist, under Redis's names. Most are decided at start and can only be read. */
#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/parse.h"
#include "server/commands.h"
#include "server/glob.h"
#include "server/info.h"
#include "server/server.h"
#include "server/subcommand.h"
#include "server/worker.h"
#include "sys/net.h"

enum { VALUE_BYTES = 512 };

struct setting {
    const char *name;
    const char *fixed; /* its value, when it is always the same; else get */
    void (*get)(const struct server *server, char *out);
    bool (*set)(struct server *server, struct slice value); /* NULL: decided at start. False: a bad value */
};

static void get_maxmemory(const struct server *server, char *out)
{
    snprintf(out, VALUE_BYTES, "%" PRIu64, STAT_GET(server->memory_bytes_max));
}

static bool set_maxmemory(struct server *server, struct slice value)
{
    uint64_t bytes;
    if (!parse_size(value, &bytes) || (bytes > 0 && bytes < server_memory_least(server->worker_count)))
        return false;
    STAT_SET(server->memory_bytes_max, bytes);
    store_memory_max_set(server->store, bytes);
    server_progress(server); /* who waits for room may have it now */
    return true;
}

static void get_maxclients(const struct server *server, char *out)
{
    snprintf(out, VALUE_BYTES, "%" PRIu64, STAT_GET(server->clients_max));
}

static bool set_maxclients(struct server *server, struct slice value)
{
    uint64_t n;
    if (!parse_u64(value, &n) || n == 0 || n > server->config.clients_max)
        return false; /* descriptors were reserved for config.clients_max */
    STAT_SET(server->clients_max, n);
    return true;
}

static void get_appendonly(const struct server *server, char *out)
{
    snprintf(out, VALUE_BYTES, "%s", server->config.durability == STORE_NONE ? "no" : "yes");
}

static void get_appendfsync(const struct server *server, char *out)
{
    static const char *const names[] = {"always", "everysec", "no"};
    snprintf(out, VALUE_BYTES, "%s", names[server->config.durability]);
}

static void get_port(const struct server *server, char *out)
{
    snprintf(out, VALUE_BYTES, "%d", server->port);
}

static void get_bind(const struct server *server, char *out)
{
    const char *listen = server->config.listen ? server->config.listen : "";
    const char *colon = strrchr(listen, ':');
    snprintf(out, VALUE_BYTES, "%.*s", (int)(colon ? colon - listen : 0), listen);
}

static void get_unixsocket(const struct server *server, char *out)
{
    snprintf(out, VALUE_BYTES, "%s", server->config.unix_path ? server->config.unix_path : "");
}

static void get_dir(const struct server *server, char *out)
{
    snprintf(out, VALUE_BYTES, "%s", server->config.dir);
}

static void get_bulk_max(const struct server *server, char *out)
{
    snprintf(out, VALUE_BYTES, "%" PRIu64, server->config.value_bytes_max);
}

static void get_keepalive(const struct server *server, char *out)
{
    (void)server;
    snprintf(out, VALUE_BYTES, "%d", NET_KEEPALIVE_S);
}

static void get_threads(const struct server *server, char *out)
{
    snprintf(out, VALUE_BYTES, "%u", server->worker_count);
}

static const struct setting settings[] = {
    {"appendfsync", NULL, get_appendfsync, NULL},
    {"appendonly", NULL, get_appendonly, NULL},
    {"bind", NULL, get_bind, NULL},
    {"databases", "1", NULL, NULL},
    {"dir", NULL, get_dir, NULL},
    {"io-threads", NULL, get_threads, NULL},
    {"maxclients", NULL, get_maxclients, set_maxclients},
    {"maxmemory", NULL, get_maxmemory, set_maxmemory},
    {"maxmemory-policy", "noeviction", NULL, NULL},
    {"port", NULL, get_port, NULL},
    {"proto-max-bulk-len", NULL, get_bulk_max, NULL},
    {"save", "", NULL, NULL},
    {"tcp-keepalive", NULL, get_keepalive, NULL},
    {"timeout", "0", NULL, NULL},
    {"unixsocket", NULL, get_unixsocket, NULL},
};

enum { SETTING_COUNT = sizeof settings / sizeof settings[0] };

static void read_setting(const struct server *server, const struct setting *setting, char *out)
{
    if (setting->fixed)
        snprintf(out, VALUE_BYTES, "%s", setting->fixed);
    else
        setting->get(server, out);
}

/* Patterns are Redis's, in either case; the names are in lower case. */
static bool is_asked_for(struct command_call *call, const char *name)
{
    for (int i = 2; i < call->argc; i++) {
        struct slice arg = call->argv[i];
        char *pattern = command_scratch(call, arg.len + 1);
        for (size_t k = 0; k < arg.len; k++)
            pattern[k] = (char)tolower((unsigned char)arg.data[k]);
        if (glob_matches(slice_make(pattern, arg.len), slice_make(name, strlen(name))))
            return true;
    }
    return false;
}

static enum command_result config_get(struct command_call *call)
{
    bool wanted[SETTING_COUNT];
    unsigned count = 0;
    char value[VALUE_BYTES];
    for (unsigned i = 0; i < SETTING_COUNT; i++)
        count += wanted[i] = is_asked_for(call, settings[i].name);
    reply_map(call->reply, count);
    for (unsigned i = 0; i < SETTING_COUNT; i++) {
        if (!wanted[i])
            continue;
        read_setting(call->server, &settings[i], value);
        reply_bulk_text(call->reply, settings[i].name);
        reply_bulk_text(call->reply, value);
    }
    return COMMAND_DONE;
}

static const struct setting *find_setting(struct slice name)
{
    for (unsigned i = 0; i < SETTING_COUNT; i++)
        if (command_word_is(name, settings[i].name))
            return &settings[i];
    return NULL;
}

static void refuse_setting(struct command_call *call, const char *name, const char *why)
{
    reply_error(call->reply, "ERR CONFIG SET failed (possibly related to argument '%s') - %s", name, why);
}

/* All names are known, and none comes twice. False: the error is the reply. */
static bool check_names(struct command_call *call)
{
    bool named[SETTING_COUNT] = {false};
    for (int i = 2; i < call->argc; i += 2) {
        const struct setting *setting = find_setting(call->argv[i]);
        if (setting == NULL) {
            reply_error(call->reply, "ERR Unknown option or number of arguments for CONFIG SET - '%.*s'",
                        (int)(call->argv[i].len < 128 ? call->argv[i].len : 128), call->argv[i].data);
            return false;
        }
        if (named[setting - settings]) {
            refuse_setting(call, setting->name, "duplicate parameter");
            return false;
        }
        named[setting - settings] = true;
    }
    return true;
}

/* True when applied, or when it is the value it has already. */
static bool apply_setting(struct command_call *call, const struct setting *setting, struct slice value)
{
    char now[VALUE_BYTES]; /* then why not */
    int64_t number;
    uint64_t bytes;
    read_setting(call->server, setting, now);
    if (command_word_is(value, now))
        return true;
    if (setting->set == NULL)
        snprintf(now, sizeof now, "can't set immutable config");
    else if (setting->set(call->server, value))
        return true;
    else if (setting->set == set_maxmemory && parse_size(value, &bytes))
        snprintf(now, sizeof now, "the least with --threads %u is %" PRIu64 "M (0: no cap)",
                 call->server->worker_count, server_memory_least(call->server->worker_count) >> 20);
    else if (setting->set == set_maxmemory)
        snprintf(now, sizeof now, "argument must be a memory value");
    else if (!parse_i64(value, &number))
        snprintf(now, sizeof now, "argument couldn't be parsed into an integer");
    else
        snprintf(now, sizeof now, "argument must be between 1 and %" PRIu64 " inclusive",
                 call->server->config.clients_max);
    refuse_setting(call, setting->name, now);
    return false;
}

static enum command_result config_set(struct command_call *call)
{
    if (call->argc % 2)
        return command_syntax_error(call);
    if (!check_names(call))
        return COMMAND_DONE;
    char before[SETTING_COUNT][VALUE_BYTES];
    for (unsigned i = 0; i < SETTING_COUNT; i++)
        read_setting(call->server, &settings[i], before[i]);
    for (int i = 2; i < call->argc; i += 2) {
        if (apply_setting(call, find_setting(call->argv[i]), call->argv[i + 1]))
            continue;
        for (unsigned k = 0; k < SETTING_COUNT; k++) /* all or nothing */
            if (settings[k].set)
                (void)settings[k].set(call->server, slice_make(before[k], strlen(before[k])));
        return COMMAND_DONE;
    }
    reply_ok(call->reply);
    return COMMAND_DONE;
}

static enum command_result config_resetstat(struct command_call *call)
{
    info_reset(call->server);
    reply_ok(call->reply);
    return COMMAND_DONE;
}

static enum command_result config_rewrite(struct command_call *call)
{
    if (call->server->config.config_path)
        reply_error(call->reply, "ERR kvasir does not write its config file; edit %s",
                    call->server->config.config_path);
    else
        reply_error(call->reply, "ERR The server is running without a config file");
    return COMMAND_DONE;
}

enum command_result command_config(struct command_call *call)
{
    static const struct subcommand table[] = {
        {"get", -3, config_get,
         "GET <pattern>\n    Return parameters matching the glob-like <pattern> and their values."},
        {"set", -4, config_set, "SET <directive> <value>\n    Set the configuration <directive> to <value>."},
        {"resetstat", 2, config_resetstat, "RESETSTAT\n    Reset statistics reported by the INFO command."},
        {"rewrite", 2, config_rewrite, "REWRITE\n    Not supported: edit the configuration file."},
        {0},
    };
    return subcommand_run(call, table);
}
