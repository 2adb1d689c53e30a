/* segment_scan: all records with values of a finished segment file, log or data, one after the other, by the
 * order on disk; for whoever moves them elsewhere.
 *
 * Nothing is trusted: what does not check is passed over (in the log up to the end of its batch, in a data
 * segment to the end of the file) and noted in `damaged`.
 *
 * Reading is apart from looking, so that the caller chooses when to block: segment_scan_next never does.
 * Thread safety: a scan belongs to one thread. The file must stay listed meanwhile. */
#ifndef KVASIR_LOG_SEGMENT_SCAN_H
#define KVASIR_LOG_SEGMENT_SCAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "log/record.h"
#include "log/segments.h"
#include "sys/disk.h"

struct segment_scan {
    struct disk *disk;
    const struct segment_file *file;
    uint64_t bytes;     /* of the file */
    uint64_t offset;    /* of what comes next */
    uint64_t batch_end; /* log: of the batch that offset is in */
    char *window;       /* [window_offset, + window_len) of the file */
    size_t window_capacity, window_len, wanted;
    uint64_t window_offset;
    bool damaged;
};

void segment_scan_begin(struct segment_scan *scan, struct disk *disk, const struct segment_file *file);
void segment_scan_end(struct segment_scan *scan);
/* What has been read is let go: it will be read again when it is wanted. */
void segment_scan_forget(struct segment_scan *scan);

enum segment_scan_result {
    SEGMENT_SCAN_RECORD, /* of type SET, SET_EXPIRE or MOVED; record.lsn is its address. Valid until the next
                            segment_scan_read */
    SEGMENT_SCAN_READ,   /* call segment_scan_read */
    SEGMENT_SCAN_END,
};
enum segment_scan_result segment_scan_next(struct segment_scan *scan, struct record *record);

/* Blocks for one read, of piece_bytes (whole blocks; SEGMENT_PIECE_BYTES unless there is need for more) or
 * one longer record. */
STATUS_MUST_USE status_t segment_scan_read(struct segment_scan *scan, size_t piece_bytes);

#endif
