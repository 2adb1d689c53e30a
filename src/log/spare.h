/* spare: segment files that nothing needs any more, used again for the next ones.
 *
 * Making a log segment ahead of its use writes all of it once, with zeros; and where the file system discards
 * what it frees, removing a file holds up the disk's other work (docs/performance.md has figures). So a dead
 * segment, of the log or of data, takes the name of a spare file and keeps its blocks. When nobody reads it
 * any more it is the next segment's file, with a new header, and its old bytes lie behind what is written.
 * One that another folder has too, or that somebody has locked (kvasir check), is removed. They check with
 * nothing there: generation and address are in every checksum.
 *
 * What a crash leaves: the old name is made durable to be gone before the file gets other bytes, and the
 * header of a log segment before the file gets its name. Spare files themselves do not outlive the process:
 * the next start removes them.
 *
 * Thread safety: any thread, one at a time for each file. All calls block. */
#ifndef KVASIR_LOG_SPARE_H
#define KVASIR_LOG_SPARE_H

#include "log/segment.h"

bool spare_parse_name(const char *name);

/* Removes what an earlier run has left. A failure is logged: such files only take space. */
void spare_clear(struct disk *disk, int folder, const char *path);

/* A finished segment (sealed, nothing live in it, needed by no checkpoint that may still be used) leaves the
 * folder; with keep it becomes a spare file, if no other folder has it too. When it fails the file stays
 * listed. The folder needs no sync: should a crash bring the name back, the file is listed and leaves again.
 */
STATUS_MUST_USE status_t spare_retire(const struct segment_folder *folder, struct segment_file *file,
                                      bool keep);

/* The next segment of the log, as segment_create makes it, from a spare file of at least so many bytes, if
 * there is one the smallest with the wanted bytes. *found: there was one. It is gone if this fails. */
STATUS_MUST_USE status_t spare_use_for_log(const struct segment_folder *folder, uint64_t number,
                                           uint64_t after, uint64_t least, uint64_t wanted,
                                           struct segment *out, bool *found);

/* Is there a spare file that suits a data segment with so many bytes of records? Not by much smaller or
 * larger. */
bool spare_suits_data(const struct segment_folder *folder, uint64_t bytes_expected);

/* Bytes of all spare files that suit data segments of so many bytes. */
uint64_t spare_for_data(const struct segment_folder *folder, uint64_t bytes);

/* A spare file that suits a data segment of so many bytes, under that name. Its bytes are what they are. -1:
 * there is none; else the descriptor, the caller's. *file_bytes: its size. */
STATUS_MUST_USE status_t spare_use_for_data(const struct segment_folder *folder, const char *name,
                                            uint64_t bytes, int *fd, uint64_t *file_bytes);

/* One spare file of at most so many bytes becomes room on the disk, once it is reaped. False: there is none.
 */
bool spare_drop(const struct segment_folder *folder, uint64_t most);

#endif
