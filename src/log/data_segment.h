/* data_segment: writes files of values that were moved out of segments with much dead weight, so that those
 * can be removed. docs/disk-format.md describes the bytes.
 *
 * A data segment is written once, from front to back, and never again: header block, then records
 * (RECORD_MOVED) one behind the other. The header is written last. A record's address is the segment's number
 * and the record's offset, with SEGMENT_DATA_ADDRESS; it may be given to others once finish has succeeded:
 * then file and name are on stable storage. A crash before leaves a file that nothing names.
 *
 * Failures. When begin fails there is nothing to clear away; when add fails, the only call left is abandon;
 * finish ends the writer in any case. abandon, and finish when it fails, remove the file.
 *
 * Thread safety: a writer belongs to one thread at a time. All calls block. Ownership: what the
 * folder names stays the caller's and must outlive the writer; keys and values are copied. */
#ifndef KVASIR_LOG_DATA_SEGMENT_H
#define KVASIR_LOG_DATA_SEGMENT_H

#include <stdint.h>

#include "base/bytes.h"
#include "base/status.h"
#include "log/segment.h"
#include "sys/disk.h"

struct data_segment;

/* bytes_expected: of all records (record_bytes of RECORD_MOVED); as much is reserved on the disk now
 * (STATUS_NO_SPACE), or a spare file taken (spare.h). More may be added. piece_bytes: of one write (whole
 * blocks; SEGMENT_PIECE_BYTES unless there is need for more), and of the buffer. */
STATUS_MUST_USE status_t data_segment_begin(const struct segment_folder *folder, uint64_t number,
                                            uint64_t bytes_expected, size_t piece_bytes,
                                            struct data_segment **out);

/* *address: where the record will be. */
STATUS_MUST_USE status_t data_segment_add(struct data_segment *d, struct slice key, struct slice value,
                                          uint64_t version, uint64_t expire_ms, uint64_t *address);

/* Bytes of the file so far, with its header. */
uint64_t data_segment_bytes(const struct data_segment *d);

/* Completes and syncs the file and lists it, sealed, in the folder's table. */
STATUS_MUST_USE status_t data_segment_finish(struct data_segment *d, struct segment_file **out);

/* NULL is fine. */
void data_segment_abandon(struct data_segment *d);

#endif
