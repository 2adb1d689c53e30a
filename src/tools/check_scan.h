/* check_scan: reads one segment file from front to back and goes on behind what does not check.
 *
 * What is whole comes as batches with their records. Where no batch is whole, every place is tried at which a
 * record may begin: a record has a checksum of its own, with its place and the file's random generation mixed
 * in, so that one which checks is one that was written there.
 *
 * Memory: a window of 4 MiB, or the largest batch if that is longer. Work is bounded whatever the bytes are.
 *
 * Thread safety: none needed. The sink's slices are valid during the call. */
#ifndef KVASIR_TOOLS_CHECK_SCAN_H
#define KVASIR_TOOLS_CHECK_SCAN_H

#include <stdbool.h>
#include <stdint.h>

#include "log/record.h"
#include "log/segment.h"
#include "sys/disk.h"

enum scan_damage_kind {
    SCAN_NO_BATCH, /* bytes where a batch should begin */
    SCAN_RECORD,   /* bytes where records should be: in a batch whose header is valid, or a data segment */
    SCAN_COUNT,    /* the records are valid, but not those that the batch's header counts */
    SCAN_PADDING,  /* bytes in a whole batch's padding that should be zero */
};

struct scan_damage {
    enum scan_damage_kind kind;
    uint64_t offset, bytes;
    uint64_t records;      /* SCAN_NO_BATCH: valid ones in it */
    enum record_type type; /* SCAN_RECORD: what it was, as it seems; RECORD_NONE: there is no telling */
    struct slice key;      /* SCAN_RECORD, unless type is RECORD_NONE */
};

struct scan_sink {
    void *context;
    /* A valid batch header; its records follow. whole: the batch is valid as a whole. */
    void (*batch)(void *context, const struct batch_header *h, bool whole);
    /* A valid record but no frame of a transaction. whole: its batch is. */
    void (*record)(void *context, const struct record *record, bool whole);
    void (*damage)(void *context, const struct scan_damage *damage);
    /* The first place of a file that could not be read; error: errno. It counts as zeros. */
    void (*unreadable)(void *context, uint64_t offset, int error);
    void (*progress)(void *context, uint64_t bytes);
};

/* One file. */
struct scan_file {
    struct disk *disk;
    int fd; /* open for reading, O_DIRECT or not */
    bool data;
    uint64_t number, generation; /* as in its header */
    uint64_t end;                /* bytes that are to be looked at */
    bool reused;                 /* what is behind the last batch may be of an earlier use */
};

/* Any sink function may be NULL. A data segment has no batches: its records come as in a whole one. */
void scan_segment(const struct scan_file *file, const struct scan_sink *sink);

/* Does anything in the file check with this generation? A batch of the log; a data segment's first record. */
bool scan_is_generation(const struct scan_file *file);

#endif
