/* toc_write: writes a toc file.
 *
 * begin makes toc-N.tmp; add takes the keys in ascending order; finish writes what is left, the list of
 * segments, footer and header, and syncs; publish gives the file its name. The header is written last and the
 * name comes after the sync, so whatever is called toc-N.kv was complete once. A crash leaves a .tmp file at
 * most; whoever opens the folder removes those.
 *
 * Failures. When begin fails there is nothing to clear away. When add or finish fails, the only call left is
 * toc_write_abandon. publish ends the writer in any case; when it fails it removes the file.
 *
 * Thread safety: a writer belongs to one thread at a time. All calls block on the disk, add at most for one
 * write of 1 MiB. Ownership: disk and folder stay the caller's and must outlive the writer; path and keys are
 * copied. */
#ifndef KVASIR_TOC_TOC_WRITE_H
#define KVASIR_TOC_TOC_WRITE_H

#include <stdint.h>

#include "base/status.h"
#include "sys/disk.h"
#include "toc/toc_format.h"

struct toc_writer;

struct toc_totals {
    uint64_t blocks;    /* of 64 KiB */
    uint64_t keys;      /* entries */
    uint64_t key_bytes; /* uncompressed */
    uint64_t bytes;     /* of the file so far */
};

/* path: the folder's, for error texts. start_lsn: every write below it will be in the entries. A file with
 * the temporary name of this toc is written over. */
STATUS_MUST_USE status_t toc_write_begin(struct disk *disk, int folder, const char *path, uint64_t number,
                                         uint64_t start_lsn, struct toc_writer **out);

/* The key must be greater than the one before (CHECKed) and at most 65536 bytes. */
STATUS_MUST_USE status_t toc_write_add(struct toc_writer *w, const struct toc_entry *entry);

/* What has been added so far; bytes counts what has gone to the disk, for whoever limits the rate. */
const struct toc_totals *toc_write_totals(const struct toc_writer *w);

/* end_lsn: no write at or above it is in the entries; the caller publishes once that much of the log is
 * durable. index_bytes: memory that the index takes. */
STATUS_MUST_USE status_t toc_write_finish(struct toc_writer *w, uint64_t end_lsn, uint64_t index_bytes,
                                          const struct toc_segment *segments, unsigned segment_count);

/* After finish. No toc of this number may be there. */
STATUS_MUST_USE status_t toc_write_publish(struct toc_writer *w);

/* At any time before publish; NULL is fine. */
void toc_write_abandon(struct toc_writer *w);

#endif
