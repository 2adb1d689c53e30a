/* victims: internal: which segments a round of cleaning empties.
 *
 * Choice: cost-benefit, (1 - u) * age / (1 + u), u being the live part; without the age when writes are about
 * to wait for room. Source: Rosenblum and Ousterhout, "The design and implementation of a log-structured file
 * system", 1992.
 *
 * Thread safety: the keeper's thread. */
#ifndef KVASIR_STORE_VICTIMS_H
#define KVASIR_STORE_VICTIMS_H

#include <stdbool.h>
#include <stdint.h>

#include "log/log.h"
#include "store/cleaner.h"

enum {
    VICTIMS_MAX = 256,
    VICTIMS_FAILURES_MAX = 3, /* then a file that cannot be cleaned is left alone */
    VICTIMS_MARGIN_SHARE = 8, /* more that their records may have than counted, of what was */
    VICTIMS_FILES = 2,        /* that the values of one part may go into */
};

struct victim {
    struct segment_file *file; /* the table's; stays listed during the round */
    uint64_t bytes, live;
    double score;
    bool damaged;
};

struct victims {
    struct victim items[VICTIMS_MAX]; /* best first */
    unsigned count;
    unsigned whole; /* so many are emptied; what the last one has fills the round's files up */
    uint64_t bytes, live;
    uint64_t room; /* that their values' new files may need */
};

/* Those worth a round at this level of space, with `most` live bytes or more (a multiple, where the first has
 * more) for which there is room. False: none is. */
bool victims_choose(struct store *store, enum space_level level, uint64_t most, struct victims *out);

#endif
