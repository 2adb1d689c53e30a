/* backlog: received data that waits, so that connections with a few commands do not wait behind those with
 * thousands.
 *
 * A turn answers everybody at its end, so its length is everybody's latency. While light connections are
 * active (one small request at a time), a worker takes heavy data (pipelines, bulk loads) piece by piece: at
 * most one receive buffer or BACKLOG_TURN_BYTES of smaller ones in a turn, and in alternating turns when
 * light commands come all the time. Without light connections nothing is put off, and throughput is what it
 * would be without this.
 *
 * A connection's data stays in order: behind a waiting piece all later pieces wait. Waiting pieces keep their
 * receive buffers, so there is a limit on them; beyond it the oldest runs at once.
 *
 * The same goes for data that a connection already has when it may go on, after its write has waited for
 * room or its value has come: group.c takes it in pieces of backlog_piece_bytes.
 *
 * Belongs to one worker; single-threaded. */
#ifndef KVASIR_SERVER_BACKLOG_H
#define KVASIR_SERVER_BACKLOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "sys/loop.h"

struct conn;
struct worker;

enum {
    BACKLOG_PIECES_MAX = 128,       /* a power of two */
    BACKLOG_BUFFERS_PART = 4,       /* of the loop's receive buffers, that may wait */
    BACKLOG_LIGHT_BYTES = 512,      /* a request of at most so many is light */
    BACKLOG_TURN_BYTES = 4096,      /* of heavy data in a turn; a larger piece runs whole */
    BACKLOG_LIGHT_ACTIVE_US = 2000, /* how long one light request counts as activity */
};

struct backlog {
    struct worker *worker;
    struct loop_event pieces[BACKLOG_PIECES_MAX]; /* ring; LOOP_DATA events */
    uint32_t head, count;
    uint64_t light_us; /* monotonic: when a light request was last seen; 0: never */
    bool ran_light;    /* this turn has fed a light request */
    bool waited;       /* the last turn left the backlog alone */
};

void backlog_init(struct backlog *backlog, struct worker *worker);

/* A LOOP_DATA event: goes to the worker's group now or waits. */
void backlog_take(struct backlog *backlog, const struct loop_event *event);
/* After a turn's events: what of the waiting data runs in this turn. */
void backlog_run(struct backlog *backlog);
/* The connection is gone: gives its waiting buffers back. */
void backlog_forget(struct backlog *backlog, struct conn *conn);

/* How much waiting input a turn runs, of each connection and in all; SIZE_MAX: all of it. As much as a
 * receive buffer; the beginning of a command that has come before the buffer does not make it more. */
size_t backlog_piece_bytes(const struct backlog *backlog);

static inline bool backlog_is_empty(const struct backlog *backlog)
{
    return backlog->count == 0;
}

#endif
