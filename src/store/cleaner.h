/* cleaner: internal: gets disk space back.
 *
 * Segments with much dead weight are victims: their live values are copied, in order of their keys, into new
 * data segments; the index follows, key by key, where a value still lies where the copy was taken from. What
 * has nothing live left is removed once no kept checkpoint can lead into it (space.c). The order, each made
 * stable before the next: data segment and its name; the index; two checkpoints; removal of the victim. So a
 * crash anywhere leaves every kept checkpoint with all files it names, and data segments that no checkpoint
 * names are of no use and go at the next start. Nothing is ever written to the log.
 *
 * Which segments are chosen: victims.h.
 *
 * Thread safety: all of it the keeper's thread, but space_may_allocate, space_allocated, space_will_come and
 * the numbers. */
#ifndef KVASIR_STORE_CLEANER_H
#define KVASIR_STORE_CLEANER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "log/segment.h"
#include "log/segment_scan.h"
#include "store/backoff.h"
#include "store/store.h"

struct cleaner_round; /* cleaner.c */

enum space_level {
    SPACE_FINE,
    SPACE_LOW,      /* less than a quarter is left */
    SPACE_CRITICAL, /* writes are refused, or soon will be */
};

struct cleaner {
    struct cleaner_round *round; /* under way */
    struct segment_scan left;    /* of the victim that the last round ended in; file NULL: none. No window */
    uint64_t left_generation;    /* of its file */
    uint64_t next_number;        /* of the next data segment; 0: the folder has not been looked at */
    struct backoff backoff;
    uint64_t request_ms;                         /* when it last asked for a checkpoint */
    uint64_t said_ms;                            /* when it last gave an older checkpoint up */
    uint64_t idle_ms;                            /* when it last looked for something to do */
    uint64_t logged_bytes, logged_ms, fill_rate; /* bytes a second that the log grows by */
    uint64_t logged_lsn;                         /* its tail at logged_ms */
    uint64_t fill_lately;                        /* the most lately; falls with time to 0 */
    enum space_level level;                      /* as it was at level_us, monotonic */
    uint64_t level_us;
    bool removal_failed;
    bool waits_for_checkpoint;     /* as space_step has seen it */
    uint64_t awaited, awaited_ms;  /* space_will_come: progress when it last changed, and when that was */
    uint64_t awaited_since_ms;     /* when the log began to lack room */
    uint64_t awaited_looks;        /* vain_looks then */
    _Atomic uint64_t guesses;      /* 1: a checkpoint may show that less has to be kept back. Relaxed */
    _Atomic uint64_t vain_looks;   /* so often there was nothing to do. Relaxed */
    _Atomic uint64_t other_bytes;  /* of tocs and of what is being written: space_may_allocate. Relaxed */
    _Atomic uint64_t kept_bytes;   /* of room that the log may not take */
    _Atomic uint64_t rounds_bytes; /* of that, for the cleaner, which can use spare files */
    _Atomic uint64_t toc_bytes;    /* of kept_bytes, what even deletes and the cleaner may not take */
    _Atomic uint64_t disk_bytes;   /* without a limit: what the folder could have. Relaxed */
    _Atomic uint64_t taken_bytes;  /* of room, by files that do not count yet; space_take */
    /* Relaxed numbers: the keeper writes, any reads. */
    _Atomic uint64_t state, rounds, segments, copied_bytes, moved, failures, damaged, removed_segments,
        removed_bytes, pending_segments, pending_bytes;
};

/* ---- cleaner.c ---- */

/* One step. False: there is nothing to do. *wait_us: how long to put off the next one. */
bool cleaner_step(struct store *store, uint64_t *wait_us);
/* Gives up a round under way. */
void cleaner_stop(struct store *store);
/* Bytes of values that one round moves, and holds in memory; of its first victim it moves all, in parts. */
uint64_t cleaner_round_bytes(const struct store *store);
/* Of a full data segment. */
uint64_t cleaner_file_bytes(const struct store *store);
/* Has the last round ended in the middle of this file? */
bool cleaner_left(const struct store *store, const struct segment_file *file);

/* ---- space.c ---- */

/* The first time: removes data segments that no kept checkpoint names, and finds the next number. */
status_t space_begin(struct store *store);
/* Notes what has died, removes what nothing needs, asks for checkpoints when room gets short. True if it
 * removed something. *level: how short room would be if all that has died were gone. Not while a round has
 * made data segments that the index does not lead to yet. */
bool space_step(struct store *store, enum space_level *level);
/* There is nothing more to clean, or no room for it. True: it has asked for the checkpoint that brings some.
 */
bool space_cleaned(struct store *store);
/* Room is short, and files of so many bytes would have to be new ones, of room that is kept for others, while
 * the next checkpoint brings some to be used again; or enough waits for the one under way. */
bool space_waits_for_checkpoint(struct store *store, uint64_t bytes);
/* Frees some blocks of removed files. As cleaner_step. */
bool space_reap_step(struct store *store, uint64_t *wait_us);
/* Where the segments lie, for those that make and remove them. */
struct segment_folder store_segment_folder(const struct store *store);
/* How short room is now. */
enum space_level space_level_now(struct store *store);
/* log_config.may_allocate; context: struct replay. */
bool space_may_allocate(void *context, uint64_t bytes, bool for_deletes);
/* log_config.may_reuse; context: struct replay. */
bool space_may_reuse(void *context, uint64_t bytes);
/* log_config.allocated. Any thread. */
void space_allocated(void *context, uint64_t bytes);
/* log_config.may_wait: is there enough that is dead, and is it being cleared away? The log's thread only. */
bool space_will_come(void *context, uint64_t bytes, bool for_deletes);
/* So much may rounds write: not the next checkpoint's room, without which nothing comes free. */
uint64_t space_for_rounds(struct store *store);
/* A file of a round needs so many bytes: false: there are not as many. They are taken until space_release,
 * which is called when the file is listed, or will not be. */
bool space_take(struct store *store, uint64_t bytes);
void space_release(struct store *store, uint64_t bytes);
/* Spare files go until a new file of so many bytes has room. */
void space_clear(struct store *store, uint64_t bytes);
/* A checkpoint begins. In need the older toc makes room for it. */
void space_for_checkpoint(struct store *store);

#endif
