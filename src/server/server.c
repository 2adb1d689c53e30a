#include "server/server.h"

#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "base/check.h"
#include "base/logger.h"
#include "server/command.h"
#include "server/conn.h"
#include "server/loading.h"
#include "server/scan_cursor.h"
#include "server/worker.h"
#include "sys/clock.h"
#include "sys/net.h"

/* ---- the list of connections ---- */

void server_register(struct server *server, struct conn *conn)
{
    pthread_mutex_lock(&server->registry_lock);
    conn->id = ++server->connection_id;
    conn->registry_next = server->registry;
    if (server->registry)
        server->registry->registry_previous = conn;
    server->registry = conn;
    pthread_mutex_unlock(&server->registry_lock);
}

void server_unregister(struct server *server, struct conn *conn)
{
    pthread_mutex_lock(&server->registry_lock);
    if (conn->registry_previous)
        conn->registry_previous->registry_next = conn->registry_next;
    else
        server->registry = conn->registry_next;
    if (conn->registry_next)
        conn->registry_next->registry_previous = conn->registry_previous;
    pthread_mutex_unlock(&server->registry_lock);
    if (conn->flags & CONN_COUNTED)
        server_count_client(server, conn->worker, -1);
}

void server_count_client(struct server *server, struct worker *worker, int change)
{
    atomic_fetch_add_explicit(&server->clients, (uint32_t)change, memory_order_relaxed);
    atomic_fetch_add_explicit(&worker->connections, (uint32_t)change, memory_order_relaxed);
}

/* ---- events for all ---- */

void server_progress(void *context)
{
    struct server *server = context;
    if (!atomic_load_explicit(&server->ready, memory_order_acquire))
        return; /* still starting; pairs with server_run */
    /* Orders the new commit point before the looks at `waiting`; pairs with the fence in worker.c, may_sleep.
     */
    atomic_thread_fence(memory_order_seq_cst);
    for (unsigned i = 0; i < server->worker_count; i++) {
        struct worker *worker = server->workers[i];
        if (atomic_load_explicit(&worker->waiting, memory_order_relaxed))
            loop_wake(worker->loop);
    }
}

void server_request_stop(struct server *server, enum server_phase phase)
{
    uint32_t running = SERVER_RUNNING;
    if (phase == SERVER_FAILED)
        atomic_store_explicit(&server->phase, SERVER_FAILED, memory_order_release);
    else if (!atomic_compare_exchange_strong_explicit(&server->phase, &running, phase, memory_order_release,
                                                      memory_order_relaxed))
        return;
    for (unsigned i = 0; i < server->worker_count; i++)
        loop_wake(server->workers[i]->loop);
}

void server_worker_done(struct server *server)
{
    if (atomic_fetch_sub_explicit(&server->workers_running, 1, memory_order_relaxed) == 1)
        pthread_kill(server->main_thread, SIGUSR1);
}

/* ---- start ---- */

static void make_run_id(struct server *server)
{
    unsigned char bytes[20] = {0};
    ssize_t n = getrandom(bytes, sizeof bytes, 0);
    (void)n;
    for (size_t i = 0; i < sizeof bytes; i++)
        snprintf(server->run_id + 2 * i, 3, "%02x", bytes[i]);
}

/* The number behind a name in the list of faults; 0: it is not there. */
static uint64_t fault_number(const char *faults, const char *name)
{
    const char *at = strstr(faults, name);
    return at ? strtoull(at + strlen(name), NULL, 10) : 0;
}

/* KVASIR_FAULT=flush:N: the N-th flush fails; read:N: the N-th read of a value; checkpoint:BYTES: see
 * store_config.checkpoint_bytes; epoch:US: see struct epoch; or several of them with commas; load:PATH: see
 * wait_at_half. For tests. */
static void read_fault(struct server *server)
{
    const char *fault = getenv("KVASIR_FAULT");
    if (fault == NULL)
        return;
    if (strncmp(fault, "load:", 5) == 0) {
        server->fault_load = fault + 5;
    } else {
        server->fault_flush = fault_number(fault, "flush:");
        server->fault_read = fault_number(fault, "read:");
        server->checkpoint_bytes = fault_number(fault, "checkpoint:");
        server->epoch_hold_us = fault_number(fault, "epoch:");
    }
    LOG_WARNING("fault injection is on: KVASIR_FAULT=%s", fault);
}

/* load:PATH: loading stops at half until there is such a file. */
static void wait_at_half(const struct server *server, uint64_t done, uint64_t total)
{
    enum { LOOK_MS = 5 };
    while (server->fault_load && done >= total / 2 && access(server->fault_load, F_OK) != 0)
        poll(NULL, 0, LOOK_MS);
}

static void load_progress(void *context, uint64_t done_bytes, uint64_t total_bytes, uint64_t keys)
{
    struct server *server = context;
    loading_progress(server->loading, done_bytes, total_bytes, keys);
    wait_at_half(server, done_bytes, total_bytes);
}

static status_t open_store(struct server *server)
{
    const struct server_config *config = &server->config;
    struct store_config store_config = {
        .disk = disk_real(),
        .path = config->dir,
        .durability = (enum store_durability)config->durability,
        .memory_bytes_max = config->memory_bytes,
        .workers = server->worker_count,
        .disk_limit_bytes = config->disk_limit_bytes,
        .io_depth = (unsigned)config->io_depth,
        .checkpoint_bytes = server->checkpoint_bytes,
        .epoch_hold_us = server->epoch_hold_us,
        .on_progress = server_progress,
        .load_progress = load_progress,
        .context = server,
    };
    return store_open(&store_config, &server->store);
}

static status_t open_listeners(struct server *server)
{
    if (server->config.listen)
        TRY(net_listen_tcp(server->config.listen, &server->listen_fd, &server->port));
    if (server->config.unix_path)
        TRY(net_listen_unix(server->config.unix_path, &server->unix_fd));
    return status_ok();
}

/* Early clients, who were answered that it is loading. */
static void adopt_clients(struct server *server)
{
    struct loading_socket early;
    loading_stop(server->loading);
    while (loading_next(server->loading, &early)) {
        struct worker *worker = arrivals_choose(server, NULL);
        server_count_client(server, worker, 1);
        STAT_ADD(worker->stats.accepted, 1); /* its thread has not been started */
        arrivals_post(worker, (struct mail){.kind = MAIL_SOCKET,
                                            .fd = early.fd,
                                            .input = early.input,
                                            .input_len = early.input_len});
    }
    loading_destroy(server->loading);
    server->loading = NULL;
}

static status_t set_up(struct server *server)
{
    /* Before recovery, which can take long: a port in use is said at once, and early clients are told. */
    TRY(open_listeners(server));
    const struct loading_config loading = {.listen_fds = {server->listen_fd, server->unix_fd},
                                           .unix_path = server->config.unix_path,
                                           .sockets_max = server->config.clients_max,
                                           .limits = server->limits};
    TRY(loading_start(&loading, &server->loading));
    TRY(open_store(server));
    for (unsigned i = 0; i < server->worker_count; i++)
        TRY(worker_create(server, i, &server->workers[i], server->io_why));
    adopt_clients(server);
    return status_ok();
}

status_t server_create(const struct server_config *config, struct server **out)
{
    struct server *server = calloc(1, sizeof *server);
    CHECK(server && command_index_end <= WORKER_COMMANDS_MAX);
    server->config = *config;
    server->worker_count = (unsigned)config->threads;
    server->listen_fd = server->unix_fd = -1;
    server->limits.bulk_bytes_max = config->value_bytes_max;
    server->limits.request_bytes_max = config->value_bytes_max * 4;
    if (server->limits.request_bytes_max < 256 << 20)
        server->limits.request_bytes_max = 256 << 20;
    if (server->limits.request_bytes_max > SERVER_REQUEST_BYTES_MAX)
        server->limits.request_bytes_max = SERVER_REQUEST_BYTES_MAX;
    server->clients_max = config->clients_max;
    server->memory_bytes_max = config->memory_bytes;
    server->started_us = clock_monotonic_us();
    server->started_unix_s = clock_unix_ms() / 1000;
    server->main_thread = pthread_self();
    pthread_mutex_init(&server->registry_lock, NULL);
    server->scan_cursors = scan_cursors_create();
    make_run_id(server);
    read_fault(server);
    status_t s = set_up(server);
    if (status_is_ok(&s)) {
        *out = server;
        return s;
    }
    server_destroy(server);
    return s;
}

/* ---- running and stopping ---- */

/* One wish to stop may come as several signals: timeout(1) sends two. */
enum { SAME_WISH_US = 1000000 };

/* Signals are taken here, by the main thread, in ordinary code. */
static void wait_for_end(struct server *server)
{
    sigset_t set;
    uint64_t first_us = 0;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGUSR1);
    while (atomic_load_explicit(&server->workers_running, memory_order_relaxed)) {
        int signal_number = sigwaitinfo(&set, NULL);
        if (signal_number != SIGTERM && signal_number != SIGINT)
            continue;
        if (first_us && clock_monotonic_us() - first_us < SAME_WISH_US)
            continue;
        if (server_phase(server) != SERVER_RUNNING) {
            LOG_WARNING("second signal: ends at once");
            _exit(128 + signal_number);
        }
        first_us = clock_monotonic_us();
        LOG_INFO("%s: stops", signal_number == SIGTERM ? "SIGTERM" : "SIGINT");
        server_request_stop(server, SERVER_STOPPING);
    }
}

int server_run(struct server *server)
{
    server->workers_running = server->worker_count;
    atomic_store_explicit(&server->ready, true, memory_order_release);
    for (unsigned i = 0; i < server->worker_count; i++) {
        status_t s = worker_start(server->workers[i]);
        if (!status_is_ok(&s)) {
            LOG_ERROR("%s", s.text);
            _exit(SERVER_EXIT_START);
        }
    }
    wait_for_end(server);
    for (unsigned i = 0; i < server->worker_count; i++)
        worker_join(server->workers[i]);
    if (server_phase(server) == SERVER_FAILED) {
        LOG_ERROR("ends because the log failed; every acknowledged write is in the log. Check the disk, then "
                  "start again");
        return SERVER_EXIT_LOG_FAILED;
    }
    LOG_INFO(server->config.durability == STORE_NONE ? "stopped" : "stopped, all is on disk");
    return SERVER_EXIT_OK;
}

void server_destroy(struct server *server)
{
    loading_destroy(server->loading);
    /* Nobody is woken any more. Relaxed: the workers' threads have ended. */
    atomic_store_explicit(&server->ready, false, memory_order_relaxed);
    if (server->store)
        store_close(server->store); /* first: its log's thread may still call server_progress */
    for (unsigned i = 0; i < server->worker_count; i++)
        if (server->workers[i])
            worker_destroy(server->workers[i]);
    if (server->listen_fd >= 0)
        net_close(server->listen_fd);
    if (server->unix_fd >= 0) {
        net_close(server->unix_fd);
        unlink(server->config.unix_path);
    }
    scan_cursors_destroy(server->scan_cursors);
    free(server->info_base);
    pthread_mutex_destroy(&server->registry_lock);
    free(server);
}
