/* server: one running instance: store, workers, listeners, and the list of connections.
 *
 * The way of it: server_create opens the store (recovery) and the listeners and makes the workers; server_run
 * starts their threads and waits for a signal, SHUTDOWN or a failed log; server_destroy takes everything
 * down. No state is global.
 *
 * Thread safety: create, run and destroy belong to the main thread. The rest is marked. Lock order:
 * registry_lock, then the lock of a mailbox; both are leaves otherwise. */
#ifndef KVASIR_SERVER_SERVER_H
#define KVASIR_SERVER_SERVER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "proto/resp.h"
#include "server/budget.h"
#include "store/store.h"
#include "sys/loop.h"

#ifndef KVASIR_VERSION
#define KVASIR_VERSION "0.1.0"
#endif
#define SERVER_REDIS_VERSION "7.2.4" /* whose behaviour clients may expect */

enum server_exit {
    SERVER_EXIT_OK = 0,
    SERVER_EXIT_START = 1, /* could not start; the text says why */
    SERVER_EXIT_USAGE = 2,
    SERVER_EXIT_LOG_FAILED = 5, /* a flush failed: what was acknowledged is safe, nothing more could be */
};

enum server_phase { SERVER_RUNNING, SERVER_STOPPING, SERVER_FAILED };

/* The least cap. Code, log buffers and what each worker has (a region of the index, receive buffers, rings)
 * take this much. With less nothing could be stored, and the cap be kept by no means. */
static inline uint64_t server_memory_least(uint64_t threads)
{
    return ((uint64_t)32 << 20) + (threads > 2 ? threads - 2 : 0) * ((uint64_t)6 << 20);
}

/* Of a request. With all its records' headers it is a write to the log that Linux makes in one piece. */
#define SERVER_REQUEST_BYTES_MAX (LOOP_FILE_BYTES_MAX - (64u << 20))

struct server_config {
    const char *listen;    /* HOST:PORT; NULL: no TCP */
    const char *unix_path; /* NULL: none */
    const char *dir;
    const char *config_path; /* for INFO; may be NULL */
    uint64_t threads;
    uint64_t memory_bytes; /* 0: no cap */
    uint64_t clients_max;
    uint64_t value_bytes_max;
    uint64_t disk_limit_bytes; /* 0: none */
    uint64_t io_depth;         /* reads of one worker in flight at most */
    int durability;            /* enum store_durability */
    int io;                    /* enum loop_backend */
};

struct worker;
struct conn;

struct server {
    struct server_config config; /* set at start; texts belong to the caller of server_create */
    struct resp_limits limits;
    struct store *store;
    struct scan_cursors *scan_cursors;
    struct worker *workers[STORE_WORKERS_MAX];
    unsigned worker_count;
    int listen_fd, unix_fd; /* -1: none */
    int port;               /* 0: no TCP */
    char io_why[128];       /* why LOOP_AUTO did not become io_uring; "" */
    char run_id[41];
    uint64_t started_us; /* monotonic */
    uint64_t started_unix_s;
    struct loading *loading; /* while the store is being opened; else NULL */
    const char *fault_load;  /* injection: see server.c; NULL: none */
    pthread_t main_thread;

    /* any thread */
    _Atomic uint32_t
        phase; /* enum server_phase; release/acquire: pairs with every worker's look once a turn */
    _Atomic uint64_t clients_max;      /* relaxed; CONFIG SET */
    _Atomic uint64_t memory_bytes_max; /* relaxed; CONFIG SET */
    _Atomic bool ready;                /* workers may be woken; release, pairs with server_progress */
    _Atomic uint32_t clients;          /* relaxed: counted connections */
    _Atomic uint32_t workers_running;  /* relaxed count; the last one to leave wakes the main thread */
    _Atomic uint64_t http_told_us;     /* relaxed; the last warning about HTTP; 0: none */
    struct budget budget;              /* of the connections' buffers */
    _Atomic uint64_t save_ticket;      /* relaxed; the newest checkpoint that a client has asked for */
    _Atomic bool backup_awaited;  /* a connection waits for one. acq_rel: taken and given back by workers */
    _Atomic uint64_t fault_flush; /* relaxed; injection: flushes until one fails; 0: none */
    _Atomic uint64_t fault_read;  /* the same for reads of values */
    uint64_t epoch_hold_us;       /* injection: store_config.epoch_hold_us; never changes */
    uint64_t checkpoint_bytes;    /* injection: store_config.checkpoint_bytes; never changes */
    _Atomic uint64_t operations_second;      /* relaxed; sampled by worker 0 */
    uint64_t sampled_us, sampled_operations; /* worker 0's */

    pthread_mutex_t registry_lock;
    struct conn *registry;       /* under registry_lock: all connections, newest first */
    uint64_t connection_id;      /* under registry_lock: the last one given */
    struct info_base *info_base; /* under registry_lock: what CONFIG RESETSTAT subtracts (info.c); malloc */
};

STATUS_MUST_USE status_t server_create(const struct server_config *config, struct server **out);
/* Serves until told to stop. Returns the process's exit code. SIGTERM, SIGINT and SIGUSR1 must be blocked. */
int server_run(struct server *server);
void server_destroy(struct server *server);

/* ---- any thread ---- */

/* Ends the service in an orderly way: what is under way is finished, flushed and answered. */
void server_request_stop(struct server *server, enum server_phase phase);
/* Wakes the workers that wait for the commit point, or for room in the log. */
void server_progress(void *server);
/* A worker's thread is about to end. */
void server_worker_done(struct server *server);

void server_register(struct server *server, struct conn *conn);
void server_unregister(struct server *server, struct conn *conn);
/* Counts a client (+1, -1) from the moment it is accepted, so that a burst cannot pass --max-clients.
 * server_unregister counts a counted connection out. */
void server_count_client(struct server *server, struct worker *worker, int change);

static inline const struct resp_limits *server_limits(const struct server *server)
{
    return &server->limits;
}

static inline enum server_phase server_phase(const struct server *server)
{
    return (enum server_phase)atomic_load_explicit(&server->phase, memory_order_acquire);
}

#endif
