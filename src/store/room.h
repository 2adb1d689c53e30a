/* room: internal: memory is asked for before it is made. The public half is in store.h, "room".
 *
 * What holds: the process's resident size R stays at or under the cap. Let P be all that is promised:
 * granted, and perhaps not written to yet. A grant of n announces n in P first, then measures R, and stands
 * only if R + P <= limit; so of two that ask at once the later one sees the other. A promise ends only after
 * its memory has been written to (then R has it) or was not made after all. So without grants R + P never
 * grows but by what does not ask, and at each grant it is at most the limit. R is measured: values that
 * readers may still see (an epoch that a descheduled thread holds back), what the allocator keeps, its
 * fragments, the rounding to huge pages, all of it is in R as long as it is there; nothing is granted on the
 * strength of memory that will be free soon.
 *
 * Who asks: values and the log's buffers of a write (write.c), values that come back or move (payload.c),
 * reads of values (fetch.c), new keys for the regions of 2 MiB by which the index grows (memory.c); and in
 * the server requests, replies, and where commands put values together (server/budget.c). The small ones take
 * theirs from an allowance, for which their worker asks in steps: one look at R for each step.
 *
 * Who does not, and so has to fit between limit and cap (three eighths of the margin, a sixteenth of a small
 * cap): the index where a value changes that is there already, or is deleted, or leaves (and by a wider hash
 * table, which is made only where it fits: memory_measure), one receive buffer of each connection (bounded by
 * server/budget.c), replies that need not ask (bounded by a turn), the allocator's own rounding.
 *
 * Who gets no room tries again in a later turn. Meanwhile the allocator is made to give back what it keeps,
 * and values leave memory, as many as are missing beyond those that have left already (relieve_short). Writes
 * of small values are let through when nothing is left that could leave: what they may add is the business of
 * memory_refuses and memory_room.
 *
 * Thread safety: struct room_state belongs to its participant, but for short_bytes. */
#ifndef KVASIR_STORE_ROOM_H
#define KVASIR_STORE_ROOM_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct store;
struct store_worker_private;

struct room_state {
    uint64_t allowance;           /* of promised: not yet spent */
    uint64_t promised;            /* in this turn */
    uint64_t kept;                /* promised beyond turns: store_room_keep */
    uint64_t over;                /* by so much did not fit what was refused last */
    uint64_t purged_ms;           /* when the allocator was made to give back what it keeps */
    _Atomic uint64_t short_bytes; /* values of so many bytes must leave; the owner's, relaxed */
    bool refused;                 /* since the last store_room_refused */
};

/* So many bytes will be made, and written to, in this turn. False: not now. */
bool room_take(struct store *store, struct store_worker_private *p, uint64_t bytes);
/* What was taken has been written to already: it is promised no longer. Else the end of the turn does it. */
void room_made(struct store *store, struct store_worker_private *p, uint64_t bytes);
/* They will not, after all. */
void room_return(struct store_worker_private *p, uint64_t bytes);
/* The turn ends. */
void room_end(struct store *store, struct store_worker_private *p);

/* After a refusal: would it fit if all large values left? */
bool room_may_come(struct store *store, const struct store_worker_private *p);

/* R + P is not more after a grant. */
uint64_t room_limit(const struct store *store);
uint64_t room_limit_of(uint64_t cap);
/* Replaced and evicted values that readers may still see. */
uint64_t room_unsettled(const struct store *store);

#endif
