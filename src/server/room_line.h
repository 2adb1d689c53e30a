/* room_line: a worker's connections that wait for room for their input (budget.h), the oldest request first.
 *
 * All requests that have to wait are numbered in one order. A request keeps its number until it has run, so
 * one that waits again, because it is longer than it said, waits in front of younger ones.
 *
 * Thread safety: a line belongs to its worker; `oldest` is read by all. */
#ifndef KVASIR_SERVER_ROOM_LINE_H
#define KVASIR_SERVER_ROOM_LINE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "server/conn.h"

struct room_line {
    struct conn_link conns;  /* conn->waiting_room; the oldest first */
    struct conn_link *at;    /* where the next look goes on; &conns: at the oldest */
    _Atomic uint64_t oldest; /* number of the first; UINT64_MAX: nobody waits. seq_cst, see budget.c */
};

void room_line_init(struct room_line *line);

/* The connection waits in its worker's line; its request gets a number if it has none. */
void room_line_join(struct conn *conn);
/* It waits no longer. */
void room_line_leave(struct conn *conn);
/* Does it hold a part of the share and waits for more? */
void room_line_grows(struct conn *conn, bool grows);
/* Its request has run: the next one is younger than all that wait now. */
void room_line_request_done(struct conn *conn);
/* Is its request older than all that wait? */
bool room_line_is_first(const struct conn *conn);

static inline bool room_line_is_empty(const struct room_line *line)
{
    return conn_list_empty(&line->conns);
}

static inline bool room_line_waits(const struct conn *conn)
{
    return conn->waiting_room.next != NULL;
}

#endif
