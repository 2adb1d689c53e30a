/* segment: the files of a log: names, header block, making them ahead of use. docs/disk-format.md describes
 * the bytes.
 *
 * A segment is allocated and zero-filled before its first record, because the first write into fresh extents
 * costs the file system a journal commit with every flush (measured: 61 us against 25 us for 4 KiB).
 *
 * Thread safety: pure functions on their arguments; blocking. */
#ifndef KVASIR_LOG_SEGMENT_H
#define KVASIR_LOG_SEGMENT_H

#include <stdint.h>

#include "base/status.h"
#include "log/log.h"
#include "log/segments.h"
#include "sys/disk.h"

/* A folder of segment files, and the table that lists them. Borrowed: all of it must outlive the struct. */
struct segment_folder {
    struct disk *disk;
    int fd;
    const char *path;
    struct segments *segments;
};

enum {
    SEGMENT_VERSION = 1,
    SEGMENT_NAME_BYTES = 32,
    SEGMENT_BYTES_MIN = 1 << 20, /* the smallest that a nearly full disk gets */
    BATCH_HEADER_BYTES = 64,
    SEGMENT_PIECE_BYTES =
        128 << 10, /* of one read or write of the cleaner: a read of somebody else waits for it */
};

struct segment {
    uint64_t number;
    uint64_t generation; /* random; mixed into every checksum of the segment */
    uint64_t bytes;      /* file size */
    uint64_t after; /* number of the log segment that was written to when this one was made; 0: not known */
    int fd;
    bool reused;               /* the file had other bytes before: what is not written to now is not zero */
    bool for_deletes;          /* the disk is full: only deletes go there */
    struct segment_file *file; /* the table's entry, which owns fd; NULL: fd is the caller's */
    struct segment *next;      /* log.c's list of segments with writes to come or under way */
};

/* The head of a batch, which is what one flush writes; at a multiple of LOG_BLOCK_BYTES. Little-endian, as it
 * is on disk. */
struct batch_header {
    uint64_t checksum; /* of the rest, mixed with LSN and generation as a record's is */
    uint32_t magic;
    uint32_t record_count;
    uint64_t lsn;    /* of this header */
    uint64_t length; /* bytes with this header, before padding */
    uint64_t
        durable_lsn; /* end of the last batch known to be on stable storage when it was written; 0: none */
    uint64_t unix_ms;
    uint64_t previous_lsn; /* of the batch before it, in whatever segment; 0: the log's first */
    uint64_t reserved;     /* 0 */
};

_Static_assert(sizeof(struct batch_header) == BATCH_HEADER_BYTES, "a batch header is 64 bytes on disk");

enum { BATCH_MAGIC = 0x3162766b /* "kvb1" */ };

static inline uint64_t segment_lsn(uint64_t number, uint64_t offset)
{
    return number << LOG_SEGMENT_SHIFT | offset;
}

static inline uint64_t lsn_offset(uint64_t lsn)
{
    return lsn & (((uint64_t)1 << LOG_SEGMENT_SHIFT) - 1);
}

/* Of a log segment. */
void segment_name(char name[SEGMENT_NAME_BYTES], uint64_t number);
/* Of a log or data segment. */
void segment_file_name(char name[SEGMENT_NAME_BYTES], bool data, uint64_t number);
/* True and the number if name is a segment's (of a number up to SEGMENT_NUMBER_MAX). */
bool segment_parse_name(const char *name, uint64_t *number);
bool segment_parse_data_name(const char *name, uint64_t *number);

/* Number, a new generation and the size, of a segment to be made. */
STATUS_MUST_USE status_t segment_begin(struct segment *segment, const char *path, uint64_t number,
                                       uint64_t after, uint64_t bytes);

/* Called after each piece of a segment that was filled, in so many microseconds: others want the disk too. */
struct segment_rest {
    void (*wait)(void *context, uint64_t spent_us);
    void *context;
};

/* Makes and opens segment `number`: allocates, zero-fills, writes the header, syncs file and folder. after:
 * the segment that is written to now, whose name is durable; 0: none. On failure nothing is left. rest: may
 * be NULL. */
STATUS_MUST_USE status_t segment_create(struct disk *disk, int folder, const char *path, uint64_t number,
                                        uint64_t after, uint64_t bytes, struct segment *out,
                                        const struct segment_rest *rest);

/* Lists it in the table, which owns the descriptor from then on. */
void segment_hand_over(struct segment *segment, struct segments *segments);

/* Reads and checks the header of an open segment file. STATUS_CORRUPT: not (or not completely) a header;
 * STATUS_UNSUPPORTED: a newer version, with a checksum that is right. */
STATUS_MUST_USE status_t segment_read_header(struct disk *disk, int fd, const char *path, bool data,
                                             uint64_t number, struct segment *out);

/* Writes the header block of a segment, of which number, generation, bytes, after and reused count. block:
 * LOG_BLOCK_BYTES, of which the rest is left alone. */
void segment_header_write(char *block, bool data, const struct segment *segment);

/* Lists a finished segment file of the folder in the table, with the generation and size that it has; nothing
 * but its header is read. It must not be listed yet. A failure (STATUS_CORRUPT, STATUS_UNSUPPORTED,
 * STATUS_IO; ENOENT: there is none) names the file. *out may be NULL. */
STATUS_MUST_USE status_t segment_list(struct disk *disk, int folder, const char *path,
                                      struct segments *segments, bool data, uint64_t number,
                                      struct segment_file **out);

void batch_header_seal(struct batch_header *h, uint64_t generation);
/* True when the bytes at data are the valid header of a batch at this LSN. */
bool batch_header_read(const char *data, uint64_t lsn, uint64_t generation, struct batch_header *out);

#endif
