/* toc_read: reads a toc file, whole or by ranges of blocks.
 *
 * No byte of the file is trusted: checksums first, then every length and order. Whoever opens the folder
 * tries the newest toc and takes an older one if that is damaged; which one is the caller's choice.
 *
 * Errors: STATUS_CORRUPT (not what was written), STATUS_UNSUPPORTED (a newer format), STATUS_IO; the text
 * names the file and the offset.
 *
 * Thread safety: an open toc is read-only: toc_read_blocks by any number of threads, each with buffers of its
 * own. All calls block. Ownership: disk and folder stay the caller's and must outlive the toc. */
#ifndef KVASIR_TOC_TOC_READ_H
#define KVASIR_TOC_TOC_READ_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "sys/disk.h"
#include "toc/toc_format.h"

struct toc;

struct toc_info {
    uint64_t number, generation;
    uint64_t start_lsn;   /* every write below it is in the entries: replay begins here */
    uint64_t end_lsn;     /* no write at or above it is */
    uint64_t created_ms;  /* Unix time */
    uint64_t blocks;      /* of 64 KiB */
    uint64_t keys;        /* entries in all blocks: whoever has read them all should have met as many */
    uint64_t key_bytes;   /* uncompressed */
    uint64_t index_bytes; /* of memory that the index took then */
    uint64_t bytes;       /* of the file */
    const struct toc_segment *segments;
    uint32_t segment_count;
};

/* Opens toc-N.kv and checks header, footer and list of segments. path: the folder's, for error texts. */
STATUS_MUST_USE status_t toc_open(struct disk *disk, int folder, const char *path, uint64_t number,
                                  struct toc **out);

/* NULL is fine. */
void toc_close(struct toc *toc);

/* Valid until toc_close. */
const struct toc_info *toc_info(const struct toc *toc);

/* Calls each(context, entry) for the entries that begin in blocks first .. first + count - 1, keys strictly
 * ascending; the key is valid during the call. Stops, successfully, when each returns false. After a failure
 * entries may have been handed out already. */
STATUS_MUST_USE status_t toc_read_blocks(const struct toc *toc, uint64_t first, uint64_t count,
                                         bool (*each)(void *context, const struct toc_entry *entry),
                                         void *context);

#endif
