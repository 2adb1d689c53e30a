/* worker: one thread with an event loop, its connections, and its share of flushing the log.
 *
 * A turn: wait; take everything that has arrived through the group; queue log writes; queue replies whose
 * state is durable. Replies that are not yet durable stay in their connection, which is in the held list
 * until the commit point has passed.
 *
 * Waking. Another worker may advance the commit point, the store's thread may end a checkpoint. Before it
 * sleeps, a worker that holds replies or has parked commands sets `waiting` and then looks at the commit
 * point and the checkpoints once more; whoever advances them looks at `waiting` afterwards (server_progress).
 * Both are sequentially consistent, so one of the two sees the other.
 *
 * Thread safety: all of it belongs to the worker's thread, except what is marked. */
#ifndef KVASIR_SERVER_WORKER_H
#define KVASIR_SERVER_WORKER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "server/arrivals.h"
#include "server/backlog.h"
#include "server/conn.h"
#include "server/disk_io.h"
#include "server/group.h"
#include "server/room_line.h"
#include "store/store.h"
#include "sys/loop.h"

enum {
    WORKER_EVENTS_MAX = 512,
    WORKER_COMMANDS_MAX = 160, /* at least command_count: checked at start */
};

/* Written by the worker with relaxed stores, read by INFO anywhere. */
struct worker_stats {
    _Atomic uint64_t turns_busy; /* turns in which commands ran */
    _Atomic uint64_t operations;
    _Atomic uint64_t errors;
    _Atomic uint64_t hits, misses;
    _Atomic uint64_t input_bytes, output_bytes;
    _Atomic uint64_t accepted, refused;
    _Atomic uint64_t held;       /* connections with held replies now */
    _Atomic uint64_t parked;     /* connections with a command that waits now */
    _Atomic uint64_t retries;    /* of parked commands, but for those that were only asked whether they may */
    _Atomic uint64_t reads;      /* of cold values */
    _Atomic uint64_t read_turns; /* turns that queued any: each was one submission */
    _Atomic uint64_t calls[WORKER_COMMANDS_MAX];
    _Atomic uint64_t rejected[WORKER_COMMANDS_MAX]; /* not called: wrong number of arguments, a long key */
    _Atomic uint64_t failed[WORKER_COMMANDS_MAX];   /* called, and the reply was an error */
};

#define STAT_GET(field)    atomic_load_explicit(&(field), memory_order_relaxed)
#define STAT_SET(field, v) atomic_store_explicit(&(field), (v), memory_order_relaxed)
#define STAT_ADD(field, v) STAT_SET(field, STAT_GET(field) + (v)) /* one writer */

struct worker {
    struct server *server;
    struct store_worker *sw;
    struct loop *loop;
    struct reply_pool *pool;
    unsigned index;
    uint32_t turn;
    uint64_t now_us;      /* monotonic, taken at the start of a turn */
    uint64_t retried_us;  /* when parked commands were last tried again */
    bool retries_left;    /* there was more to go on with than a turn may take */
    uint64_t commit_seen; /* commit point at the last look through the held list */
    struct group group;
    struct backlog backlog;
    struct conn_link dirty;  /* have output to look at, this turn */
    struct conn_link held;   /* have held replies */
    struct conn_link retry;  /* have input to go on with next turn */
    struct conn_link saving; /* have a parked command that waits for a checkpoint or backup */
    struct conn_link all;
    struct disk_io disk_io;
    bool failure_told;
    uint64_t stop_deadline_us; /* 0: not stopping */
    struct conn *beyond;       /* the one of all that may have more (budget.h), if it is of this worker */
    /* budget.c */
    uint64_t told_bytes;       /* worker_buffer_bytes when the store was last told */
    uint64_t untouched_bytes;  /* of input that has room and has not come */
    uint64_t paid_output;      /* bytes of unsent output that room was taken for */
    bool no_room;              /* somebody was refused room in this turn */
    uint64_t seen_output;      /* bytes of unsent output some turns ago */
    uint32_t seen_output_turn; /* in which */
    uint64_t ahead_bytes;      /* for which room is made, for long replies */
    uint64_t ahead_us;         /* monotonic: when somebody wanted that */
    uint64_t room_tried_us;    /* monotonic: the last look at those that wait */
    uint64_t looked_us;        /* monotonic: the last look who stands still */
    uint64_t crowded_us;       /* monotonic: when there was little room for input the last time */
    uint64_t sparing_us;       /* the same, when small requests took much */
    uint64_t output_max;       /* unsent output of a connection beyond which it runs no command */
    uint64_t reply_bytes_free; /* a reply that is shorter need not ask for room */
    void *scratch;             /* worker_scratch; malloc */
    size_t scratch_bytes;
    pthread_t thread;
    struct loop_event events[WORKER_EVENTS_MAX];

    /* any thread */
    _Alignas(64) _Atomic bool waiting; /* see above */
    _Atomic uint32_t connections;      /* relaxed: for choosing a worker and statistics */
    _Atomic uint64_t input_memory;     /* relaxed: connections' memory for input; the worker writes it */
    _Atomic uint64_t reserved_bytes;   /* relaxed, same: of that, what was reserved (conn->reserved) */
    struct room_line room_line;        /* wait for room for their input; of it others read `oldest` */
    struct mailbox mailbox;

    _Alignas(64) struct worker_stats stats;
};

STATUS_MUST_USE status_t worker_create(struct server *server, unsigned index, struct worker **out, char *why);
void worker_destroy(struct worker *worker);

STATUS_MUST_USE status_t worker_start(struct worker *worker);
void worker_join(struct worker *worker);

/* What its connections' input and output take. Any thread. */
uint64_t worker_buffer_bytes(const struct worker *worker);

/* Memory that lives until the next call or the end of the command. */
void *worker_scratch(struct worker *worker, size_t bytes);

#endif
