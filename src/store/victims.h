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
    uint64_t bytes, live;
};

/* Those worth a round at this level of space, with about `most` live bytes (the first may have more) for
 * which there is room. False: none is. */
bool victims_choose(struct store *store, enum space_level level, uint64_t most, struct victims *out);

/* Of the files that so many bytes of records go into, with headers and padding. */
static inline uint64_t victims_files_bytes(uint64_t bytes)
{
    return bytes + VICTIMS_FILES * 2 * LOG_BLOCK_BYTES;
}

/* What moving so many live bytes may need. */
static inline uint64_t victims_room(uint64_t live)
{
    return victims_files_bytes(live + live / VICTIMS_MARGIN_SHARE);
}

#endif
