/* segments: the table of all segment files of a store. It owns their descriptors, finds the file that an
 * address lies in, and counts the live bytes of each.
 *
 * An address names a record: bit 63 clear: its LSN, in the log; bit 63 set: in a data segment, number <<
 * LOG_SEGMENT_SHIFT | offset in the low bits.
 *
 * Finding takes no lock. Who wants to read the file, or only to look at its entry while it might be removed,
 * takes a reference: segments_acquire answers NULL once the file is unlisted, and what it returned stays,
 * with its descriptor open, until segments_release. NULL means: look the key up again, it has moved. (An
 * entry's memory is never given back while the table lives, only used again for another file: so a look-up
 * that comes too late counts up and down in somebody else's entry, and harms nothing.)
 *
 * Leaving. Who removes a file takes its name from the folder, unlists it (no new reference from then on), and
 * calls segments_reap now and later: it closes what nobody reads any more. Only a file in which nothing is
 * live may be unlisted, so that no index node holds an address in it. Instead of its name being taken it may
 * get that of a spare file (spare.h), to be used again when nobody reads it any more.
 *
 * Thread safety: create and destroy: one thread. find, acquire, release, seal: any, wait-free. live:
 * wait-free, see there. The others: any, under a mutex, and may make system calls: not for a worker's turn,
 * but for segments_totals. */
#ifndef KVASIR_LOG_SEGMENTS_H
#define KVASIR_LOG_SEGMENTS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "log/log.h"
#include "sys/disk.h"

enum {
    SEGMENT_NUMBER_MAX = (1 << (63 - LOG_SEGMENT_SHIFT)) - 1,
    SEGMENT_LANES_MAX = 65, /* threads that count what is live: the workers and the keeper of a store */
};

#define SEGMENT_DATA_ADDRESS ((uint64_t)1 << 63)

struct segment_file {
    /* Set by segments_add, then constant: */
    uint64_t number;
    uint64_t generation; /* mixed into the checksum of every record in it */
    int fd;              /* O_DIRECT where the file system can, read and write; the table's. Use it only with
                            a reference, or while the file cannot be unlisted */
    bool data;           /* a data segment; else one of the log */
    bool listed;         /* under the table's mutex */
    uint64_t spare;      /* under the table's mutex; of one that leaves: the number of the spare file that it
                            is now; 0: it is none */
    _Atomic uint64_t bytes; /* file size. Relaxed: recovery and the maker of a data segment change it */
    _Atomic bool sealed;    /* gets no more writes. Release / acquire: whoever sees it sees the final size */
    /* The keeper's: the first checkpoint that began when nothing in the file was live any more (0: something
     * is); how often cleaning has left something live in it; since when it gets no more writes (ms). */
    uint64_t dead_since;
    unsigned clean_failures;
    uint64_t since_ms;
    struct segment_file *next; /* under the table's mutex: in one of its lists */
    /* Written by many threads: a cache line of its own. */
    _Alignas(64) _Atomic uint32_t refs; /* reads in flight. See segments_acquire */
};

struct segments;

/* The disk must outlive the table. */
struct segments *segments_create(struct disk *disk);
/* Closes all files. Nothing may hold a reference. NULL: nothing happens. */
void segments_destroy(struct segments *segments);

/* Lists a file; the table owns fd from then on. number: 0 to SEGMENT_NUMBER_MAX, not listed yet. The entry is
 * valid until it is unlisted and reaped. */
struct segment_file *segments_add(struct segments *segments, bool data, uint64_t number, uint64_t generation,
                                  uint64_t bytes, int fd);
/* No more writes are to come. */
void segments_seal(struct segment_file *file);
/* The file must be listed. It can no longer be found. spare: the number of the spare file that it is now; 0:
 * none, it has no name any more. */
void segments_unlist(struct segments *segments, struct segment_file *file, uint64_t spare);
/* A file without a name that was never listed is to be closed like those that were; the table owns fd from
 * then on. */
void segments_leave(struct segments *segments, uint64_t bytes, int fd);
/* Closes unlisted files without references, but spare ones; returns how many are left to be closed later. */
unsigned segments_reap(struct segments *segments);

/* The gentle way: shortens or closes one of them. Freeing the blocks of a whole file at once stops disks
 * under a file system that discards, so 4 MiB go at a time, if no other folder has the file too. False: there
 * is none. */
bool segments_reap_step(struct segments *segments);

/* For the next spare file; they begin at 1. */
uint64_t segments_spare_number(struct segments *segments);
struct segments_spare {
    uint64_t number, bytes; /* of the file */
    int fd;
};
/* Of the spare files of at least `least` and at most `most` bytes that nobody reads any more, the smallest
 * that has the wanted bytes, or else the largest. The caller owns its descriptor from then on. False: there
 * is none. */
bool segments_spare_take(struct segments *segments, uint64_t least, uint64_t most, uint64_t wanted,
                         struct segments_spare *out);
/* Size of the one that it would take; 0: there is none. */
uint64_t segments_spare_size(struct segments *segments, uint64_t least, uint64_t most, uint64_t wanted);
/* Of all that it could take. */
uint64_t segments_spare_sum(struct segments *segments, uint64_t least, uint64_t most);
/* One spare file of at most so many bytes is none any more, but to be closed; returns its number, 0: there is
 * none. */
uint64_t segments_spare_drop(struct segments *segments, uint64_t most);

/* The file of that address; NULL: none is listed. */
struct segment_file *segments_find(const struct segments *segments, uint64_t address);
/* The same with a reference. */
struct segment_file *segments_acquire(const struct segments *segments, uint64_t address);
void segments_release(struct segment_file *file);

/* What a value counts in its segment: about its record's bytes, from what an index node knows. Both ends use
 * this one formula, so that the count of a segment is exact. */
static inline uint32_t segment_weight(size_t key_len, size_t value_len)
{
    return (uint32_t)((32 + key_len + value_len + 7) & ~(size_t)7);
}

/* One thread's counts: a file's count is the sum of all lanes. Zeroed at first, attached before use. */
struct segments_lane {
    struct segments *segments;
    unsigned index;
    struct { /* the page of counts that was used last, for log and for data segments */
        uint64_t number;
        _Atomic int64_t *bytes;
    } page[2];
};

enum { SEGMENTS_PAGE_SHIFT = 10 };

/* index: below SEGMENT_LANES_MAX; one lane each. */
void segments_lane_attach(struct segments_lane *lane, struct segments *segments, unsigned index);
/* Internal. */
_Atomic int64_t *segments_lane_page(struct segments_lane *lane, uint64_t address);

/* Adds the weight of a value that an index node addresses from now on (or takes it away: negative). The file
 * need not be listed (yet): counts go by its number, and numbers are never used again. */
static inline void segments_live(struct segments_lane *lane, uint64_t address, int64_t weight)
{
    unsigned kind = (unsigned)(address >> 63);
    uint64_t number = address >> LOG_SEGMENT_SHIFT;
    _Atomic int64_t *bytes = lane->page[kind].bytes;
    if (__builtin_expect(bytes == NULL || lane->page[kind].number != number >> SEGMENTS_PAGE_SHIFT, 0))
        bytes = segments_lane_page(lane, address);
    bytes += number & ((1u << SEGMENTS_PAGE_SHIFT) - 1);
    /* Relaxed; no read-modify-write: nobody else writes here. */
    atomic_store_explicit(bytes, atomic_load_explicit(bytes, memory_order_relaxed) + weight,
                          memory_order_relaxed);
}

/* The weights of what is live in the file. Exact when nothing is under way; 0 is the truth for a file that
 * gets nothing new, if everything that was ever added happened before this call (see keylock.h). */
int64_t segments_live_bytes(const struct segments *segments, const struct segment_file *file);
/* Sets all counts to 0. Nobody may be counting. */
void segments_live_clear(struct segments *segments);

/* Offset and length of a read must be multiples of this (a power of two, 512 to 4096); the buffer's address
 * of 4096 is enough. Known from the first listed file on; before: 4096. */
uint32_t segments_direct_unit(const struct segments *segments);

struct segments_totals {
    uint64_t log_segments, log_bytes; /* with the one made ahead */
    uint64_t data_segments, data_bytes;
    uint64_t live_bytes;       /* weights */
    uint64_t dead_bytes;       /* of sealed files, what is not live */
    uint64_t leaving_segments; /* unlisted, still being read */
    uint64_t spare_segments, spare_bytes;
    uint64_t reused_segments; /* files that were taken to be used again, since the table was created */
};
void segments_totals_get(struct segments *segments, struct segments_totals *out);

struct segments_bytes {
    uint64_t all;     /* of listed files and of those that are leaving */
    uint64_t spare;   /* of that, of spare ones */
    uint64_t leaving; /* of that, of those that will be closed */
};
struct segments_bytes segments_bytes_get(struct segments *segments);

/* Calls each listed file, in the order they were added, until each returns false; under the table's mutex: it
 * must call nothing above that needs it. */
void segments_each(struct segments *segments, bool (*each)(void *context, struct segment_file *file),
                   void *context);

#endif
