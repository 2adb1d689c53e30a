/* residents: internal: a queue of values in memory, in the order in which they came. What memory.c takes its
 * candidates from.
 *
 * A pass goes once through all that is in the queue when it begins, and notes which nodes it has kept an
 * entry of: see "what is stale" in memory.c.
 *
 * Thread safety: any thread puts and takes, under a spin lock that is held for some items' copying; the count
 * is a hint for others. A pass is its owner's, a worker's. */
#ifndef KVASIR_STORE_RESIDENTS_H
#define KVASIR_STORE_RESIDENTS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* Of values in memory: in their node, or in a block of their own. */
enum resident_kind { RESIDENT_INTERNAL, RESIDENT_EXTERNAL, RESIDENT_KINDS };

enum { RESIDENTS_CHUNK = 8191 }; /* items that memory is taken for at once */

/* A value in memory, perhaps: the node may be gone or be another one by now. */
struct resident {
    uint32_t hash_high; /* the top bits of its hash: they tell bucket and lock */
    uint32_t ref;
};

/* A bit for each place in the arena. */
struct seen_refs {
    uint64_t refs;
    uint64_t words[];
};

struct resident_queue {
    _Atomic uint32_t lock;  /* of all but count */
    _Atomic uint64_t count; /* relaxed: a hint for who does not hold the lock */
    struct resident_chunk *head, *tail, *spare;
    unsigned head_at, tail_at;
    enum resident_kind kind;
    _Atomic uint64_t
        pass_left;          /* of the oldest, so many the pass has still to look at; written with the lock */
    struct seen_refs *seen; /* the owner's: what the pass has kept; malloc; NULL: no pass */
};

void residents_deinit(struct resident_queue *q);

void residents_put(struct resident_queue *q, const struct resident *items, unsigned n);
/* Up to n of the oldest, pass: of those that the caller's pass has still to look at; how many. */
unsigned residents_take(struct resident_queue *q, struct resident *items, unsigned n, bool pass);

/* Begins a pass over an arena of so many units. False: no memory. */
bool residents_pass_begin(struct resident_queue *q, uint64_t refs);
void residents_pass_end(struct resident_queue *q);
/* Was it seen in this pass? It is from now on. */
bool residents_was_seen(struct seen_refs *seen, uint32_t ref);

#endif
