/* read_pace: how many reads of values a worker may have in flight.
 *
 * Some disks report reads only when all that is queued is done: virtual ones, which one thread of the host
 * serves. With everything in flight at once such a disk and the worker take turns, each idle while the other
 * works. So when reads come back in bursts, half of what is wanted may be in flight: while the disk has the
 * one half, the other is answered. A disk that reports each read as it is done never sees a limit.
 *
 * Thread safety: none; belongs to a worker. */
#ifndef KVASIR_SERVER_READ_PACE_H
#define KVASIR_SERVER_READ_PACE_H

#include <stdint.h>

enum {
    READ_PACE_LEAST = 8,  /* reads at once that make a burst; never fewer are let in flight */
    READ_PACE_TURNS = 16, /* in which reads come, but no burst: the limit goes */
};

struct read_pace {
    unsigned most; /* that may be in flight */
    unsigned turns_without;
};

static inline void read_pace_init(struct read_pace *pace)
{
    *pace = (struct read_pace){.most = UINT32_MAX};
}

/* `landed` of the `in_flight` reads have come at once, `held` more are wanted: sets pace->most. */
static inline void read_pace_look(struct read_pace *pace, unsigned landed, unsigned in_flight, unsigned held)
{
    unsigned half = (landed + held + 1) / 2;
    if (landed >= READ_PACE_LEAST && landed >= in_flight - in_flight / 4) {
        pace->most = half > READ_PACE_LEAST ? half : READ_PACE_LEAST;
        pace->turns_without = 0;
    } else if (++pace->turns_without >= READ_PACE_TURNS) {
        pace->most = UINT32_MAX;
    }
}

#endif
