/* `kvasir server`: options, limits, signals, the line at start. Among the tools because it reads a command
 * line. */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/logger.h"
#include "server/server.h"
#include "server/worker.h"
#include "sys/memory.h"
#include "sys/net.h"
#include "tools/descriptors.h"
#include "tools/options.h"
#include "tools/tools.h"

static const char usage[] = "server [--listen HOST:PORT] [--dir DIR] [options]";
static const char about[] = "A durable key-value server that speaks the Redis protocol.";

struct settings {
    struct server_config config;
    char address[32];
};

static void block_signals(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGPIPE);
    sigaddset(&set, SIGHUP);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
}

static void log_start(const struct server *server)
{
    static const char *const durability[] = {"fsync", "interval", "none"};
    const struct server_config *config = &server->config;
    bool uring = server->workers[0]->loop->backend == LOOP_URING;
    bool fell_back = !uring && config->io == LOOP_AUTO && server->io_why[0];
    LOG_INFO("kvasir %s ready: %s%s%s, port %d, dir %s, %u thread%s, io %s%s%s%s, durability %s",
             KVASIR_VERSION, config->listen ? config->listen : "",
             config->listen && config->unix_path ? " and " : "", config->unix_path ? config->unix_path : "",
             server->port, config->dir, server->worker_count, server->worker_count == 1 ? "" : "s",
             uring ? "io_uring" : "epoll", fell_back ? " (" : "", fell_back ? server->io_why : "",
             fell_back ? ")" : "", durability[config->durability]);
    if (server->listen_fd >= 0 && !net_is_loopback(server->listen_fd))
        LOG_WARNING(
            "%s is reached from other machines, and there are no passwords: whoever reaches it can read and "
            "delete everything",
            config->listen);
}

/* The config file named on the command line is read first, so that the command line wins. */
static status_t read_config(const struct option_spec *specs, int argc, char **argv, char **buffer)
{
    const char *path = NULL;
    for (int i = 1; i < argc && argv[i]; i++) {
        const char *found = NULL;
        if (strcmp(argv[i], "--config") == 0 && i + 1 < argc)
            found = argv[++i];
        else if (strncmp(argv[i], "--config=", 9) == 0)
            found = argv[i] + 9;
        if (found && path)
            return status_error(STATUS_INVALID, "--config: there can be one file only, not also '%.60s'",
                                found);
        path = found ? found : path;
    }
    return path ? options_read_file(specs, path, buffer) : status_ok();
}

/* --port gives the port alone. */
static void complete_address(struct settings *s)
{
    if (strchr(s->config.listen, ':'))
        return;
    snprintf(s->address, sizeof s->address, "127.0.0.1:%s", s->config.listen);
    s->config.listen = s->address;
}

/* What can be told of the values without touching anything. */
static status_t check_settings(const struct server_config *config)
{
    TRY(status_wrap(net_check_tcp(config->listen), "--listen"));
    if (config->unix_path)
        TRY(status_wrap(net_check_unix(config->unix_path), "--unix"));
    uint64_t least = server_memory_least(config->threads);
    if (config->memory_bytes > 0 && config->memory_bytes < least)
        return status_error(STATUS_INVALID,
                            "--memory: %" PRIu64 " bytes are too little, the least with --threads %" PRIu64
                            " is %" PRIu64 "M (0: no cap)",
                            config->memory_bytes, config->threads, least >> 20);
    if (config->disk_limit_bytes > 0 && config->disk_limit_bytes < STORE_DISK_LIMIT_LEAST)
        return status_error(STATUS_INVALID,
                            "--disk-limit: %" PRIu64
                            " bytes are too little, the least is %dM (0: no limit but "
                            "the disk's)",
                            config->disk_limit_bytes, STORE_DISK_LIMIT_LEAST >> 20);
    return status_ok();
}

static int refuse(const status_t *status)
{
    fprintf(stderr, "kvasir server: %s\n", status->text);
    return SERVER_EXIT_USAGE;
}

/* -1 to go on, else the exit code. */
static int read_settings(struct settings *s, int argc, char **argv)
{
    struct server_config *c = &s->config;
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    *s = (struct settings){.config = {
                               .listen = "127.0.0.1:6379",
                               .dir = "./data",
                               .threads = cores < 1                   ? 1
                                          : cores > STORE_WORKERS_MAX ? STORE_WORKERS_MAX
                                                                      : (uint64_t)cores,
                               .clients_max = 10000,
                               .value_bytes_max = 64 << 20,
                               .io_depth = STORE_IO_DEPTH_DEFAULT,
                           }};
    const struct option_spec specs[] = {
        {"listen", OPTION_ADDRESS, &c->listen, "HOST:PORT", "where to listen (default 127.0.0.1:6379)", 0, 0},
        {"port", OPTION_PORT, &c->listen, "N", "short for --listen 127.0.0.1:N", 0, 0},
        {"unix", OPTION_TEXT, &c->unix_path, "PATH", "listen on a Unix socket too", 0, 0},
        {"dir", OPTION_TEXT, &c->dir, "DIR", "folder of the data (default ./data)", 0, 0},
        {"threads", OPTION_U64, &c->threads, "N", "worker threads (default: one a core)", 1,
         STORE_WORKERS_MAX},
        {"memory", OPTION_SIZE, &c->memory_bytes, "SIZE",
         "memory of the whole process: values leave it, 0: no cap (default)", 0, 0},
        {"disk-limit", OPTION_SIZE, &c->disk_limit_bytes, "SIZE",
         "the folder's files take no more, 0: no limit but the disk's (default)", 0, 0},
        {"durability", OPTION_CHOICE, &c->durability, "fsync|interval|none",
         "when a write is acknowledged (default fsync)", 0, 0},
        {"io", OPTION_CHOICE, &c->io, "auto|uring|epoll", "event loop (default auto)", 0, 0},
        {"io-depth", OPTION_U64, &c->io_depth, "N", "reads of one thread in flight at most (default 128)", 1,
         STORE_IO_DEPTH_MAX},
        {"config", OPTION_TEXT, &c->config_path, "FILE", "`name value` lines with these names", 0, 0},
        {"max-clients", OPTION_U64, &c->clients_max, "N", "connections at most (default 10000)", 1, 1000000},
        {"max-value", OPTION_SIZE, &c->value_bytes_max, "SIZE", "longest value (default 64M, at most 1G)",
         RESP_BULK_BYTES_MAX_LEAST, 1 << 30},
        {0},
    };
    int positional;
    char *buffer = NULL;
    status_t status = read_config(specs, argc, argv, &buffer);
    if (!status_is_ok(&status))
        return refuse(&status);
    int code = options_begin("server", usage, about, specs, argc, argv, 0, 0, &positional);
    if (code >= 0) {
        free(buffer);
        return code;
    } /* else its texts are used for as long as the process lives */
    complete_address(s);
    status = check_settings(c);
    return status_is_ok(&status) ? -1 : refuse(&status);
}

int tool_server(int argc, char **argv)
{
    struct settings settings;
    struct server *server;
    int code = read_settings(&settings, argc, argv);
    if (code >= 0)
        return code;
    block_signals();
    memory_give_back_unasked();
    const struct server_config *config = &settings.config;
    status_t status = descriptors_raise(config->durability == STORE_NONE ? NULL : config->dir,
                                        &settings.config.clients_max);
    if (status_is_ok(&status))
        status = server_create(config, &server);
    if (!status_is_ok(&status)) {
        LOG_ERROR("cannot start: %s", status.text);
        return SERVER_EXIT_START;
    }
    log_start(server);
    code = server_run(server);
    server_destroy(server);
    return code;
}
