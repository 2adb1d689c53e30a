/* budget: what connections may hold of --memory, so that a burst of large requests or replies cannot pass it.
 * Without a cap everything is only counted.
 *
 * Requests. One that needs more than BUDGET_SMALL_BYTES of input reserves room before it is received: all of
 * them together a sixteenth of the cap, and one more connection whatever its request needs. Whoever gets
 * neither is not read from (its data stays in the kernel) until room is given back. A request may be a
 * quarter of the cap long; a longer one is refused at once (group.c).
 *
 * Small requests reserve nothing, until all that have not come to their end take a thirty-second of the cap.
 * Then those beyond BUDGET_LEAST_BYTES must reserve too, and connections without room are received from in
 * small pieces: what many thousands of them hold is little.
 *
 * No deadlock. Room is given back by requests that complete; the one beyond the share waits for nobody's
 * room, so there is always one that may complete. Then the one that has waited longest, of all workers',
 * takes its place (room_line.h): a large request cannot starve behind small ones, and nobody waits for more
 * than those who came before.
 * The place is for one request: what stands behind it waits like others' requests, and what stands behind a
 * command that waits for something else does not ask.
 *
 * Parts. How long a request is shows little by little, if it has many arguments; one that has room and needs
 * more holds what it has until it gets that. While there is little room, the length of an argument is read
 * from the first bytes that come of it, so that room is asked for all of it at once.
 * Were the share full of parts all the same, requests would complete one at a time, in the place beyond it:
 * so half of it is for those who hold a part, while such wait.
 *
 * What can stand still is a client: one that holds room while others wait for it, and neither sends nor takes
 * anything for some seconds, is sent away. One that has left while it waits, before its request was complete,
 * is noticed within a second.
 *
 * Replies. Unsent output of all connections may be a quarter of the cap; the fuller that is, the less a
 * connection may have before its next command runs. A reply that would pass it waits (COMMAND_AGAIN) until
 * others have been taken. One reply may be a quarter of the cap long, and a value. When an eighth is used,
 * also a reply beyond BUDGET_LEAST_BYTES must ask, and chunks become small.
 *
 * The bound. Shares only say who comes first. That it all stays below the cap is the store's business: each
 * request with room reserved, each reply that must ask, each value that a command puts together, and in the
 * store each write, asks for its memory before it is made, and gets it only when what the kernel says is
 * resident and all that is promised leave room for it (store/room.h has the argument). Whoever is refused
 * tries again in a later turn, and after half a minute gets an error; after two seconds when none can come,
 * as nobody else holds any and what may leave is not enough. So that values have left by then, what a request
 * will take when it runs (its log record, the new value) counts as a buffer from the time when it reserves,
 * and so does what replies were refused. Small replies are paid for afterwards, once a group.
 *
 * Thread safety: struct budget is shared by all workers; calls are for the connection's worker. */
#ifndef KVASIR_SERVER_BUDGET_H
#define KVASIR_SERVER_BUDGET_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct conn;
struct server;
struct worker;

enum {
    BUDGET_SMALL_BYTES = 64 << 10,  /* of input or of one reply: need no room */
    BUDGET_RECEIVE_BUFFERS_MIN = 8, /* of a worker, whatever the cap is */
    BUDGET_LEAST_BYTES = 2 << 10,   /* the same, when many connections have small ones */
    BUDGET_LOOK_US = 1000000,       /* between looks who stands still */
};

struct budget {
    _Atomic uint64_t input_bytes; /* reserved. seq_cst: given back before `waiting` is read, see give_back */
    _Atomic uint64_t beyond;      /* id of the connection that may have more; 0: none. seq_cst, same */
    _Atomic uint32_t waiting;     /* connections that wait for room for input. seq_cst, same */
    _Atomic uint32_t growing;     /* of those, that hold a part of the share and need more. seq_cst, same */
    _Atomic uint64_t numbers;     /* relaxed: given to requests that had to wait (room_line.h) */
    _Atomic uint64_t wanted_us;   /* relaxed: when a reply had to wait the last time; monotonic */
};

/* Longest request, or reply of many values, in bytes; UINT64_MAX: no cap. */
uint64_t budget_request_max(const struct server *server);
uint64_t budget_work_max(const struct server *server); /* longest value that budget_work_fits is asked for */
uint64_t budget_reply_max(const struct server *server);

/* ---- input ---- */

/* Input that needs no room now. */
uint64_t budget_small_bytes(const struct server *server);
/* Raises what the connection has reserved to `bytes`. False: there is no room; it is in the worker's line of
 * those that wait, and must not be read from, until budget_turn finds room for it. But a parked connection,
 * whose room would be for what stands behind its command, asks again when that has run. */
bool budget_reserve(struct conn *conn, uint64_t bytes);
/* Its command has come, and waits: it waits for no room but what the command needs. */
void budget_parked(struct conn *conn);
/* Has it room that is to be given back, or waits for some? */
bool budget_holds(const struct conn *conn);
/* It needs no more room than a small request: gives back, waits no longer. */
void budget_release(struct conn *conn);
/* Its request has run. Is it the one beyond the share, and do others wait for that place? Then what stands
 * behind the request waits like theirs. */
bool budget_gives_way(const struct conn *conn);
/* It needs no more than so many bytes of what it has reserved. */
void budget_shrink(struct conn *conn, uint64_t bytes);
/* Its command makes a value of so many bytes from an old one (APPEND, EXPIRE): the value, a copy of it and
 * the log's. Is memory free for that? False: room is reserved, or waited for; try again in a later turn. */
bool budget_work_fits(struct conn *conn, uint64_t bytes);
/* After its memory for input has changed: counts it. */
void budget_count(struct conn *conn);
/* Input has come for which room is reserved. */
void budget_filled(struct conn *conn);
/* Its command must try again. Has it been refused room for too long? Then it ends with an error. */
bool budget_gives_up(struct conn *conn);

/* ---- output ---- */

/* May a reply, so far `own` bytes long, become len bytes longer? False: others must be sent first, or values
 * leave memory: try again in a later turn. */
bool budget_reply_fits(struct worker *worker, uint64_t own, uint64_t len);
/* Before commands run: sets the worker's limits of output, by what is unsent now. */
void budget_output_look(struct worker *worker);

/* ---- for the worker ---- */

/* Once a turn: connections for whose input there is room now are read from again; looks who stands still. */
void budget_turn(struct worker *worker);
/* Before the store's turn ends. */
void budget_turn_end(struct worker *worker);
/* Does one of those that wait have room now? */
bool budget_may_go_on(struct worker *worker);
/* Must it look at its connections from time to time? */
bool budget_must_look(const struct worker *worker);

#endif
