/* check: what is right and what is not in a data folder, and how much of it can be saved.
 *
 * It only reads the folder. The server may be running: then what lies behind the last point that the log
 * itself calls durable is not looked at. The files are held: opened when they are listed, all of them, with a
 * shared lock on each that keeps the server from using them again after it has removed them. When none has
 * come or gone meanwhile, they are what the folder was at that moment; else they are listed anew.
 *
 * Memory: 256 MiB at most for one bit a place at which a record may begin, in 16 GiB of segments at a time
 * (for more the tocs are read again), 32 bytes a segment file, and the largest batch of the log.
 *
 * Thread safety: none needed; one thread. */
#ifndef KVASIR_TOOLS_CHECK_H
#define KVASIR_TOOLS_CHECK_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "sys/disk.h"

enum check_code {
    CHECK_WELL = 0,
    CHECK_STARTS = 1,     /* damaged, but the server would start */
    CHECK_DAMAGED = 2,    /* it would not */
    CHECK_UNREADABLE = 3, /* not all could be read */
};

struct check_options {
    struct disk *disk;
    const char *path;     /* the folder */
    const char *new_path; /* salvage into this one, which is empty or absent; NULL: don't */
    FILE *out;            /* what was found, in words */
    FILE *progress;       /* a line that is drawn over and over; NULL: none */
};

/* The whole of `kvasir check`. With new_path the code is about the salvage: CHECK_WELL: all is in the new
 * folder; CHECK_STARTS: what was damaged is missing in it; CHECK_UNREADABLE: it could not be made, or some
 * file not be read. */
enum check_code check_run(const struct check_options *options);

#endif
