/* write_log: internal: the log's part of a write: what a commit logs, and how it gets there.
 *
 * Thread safety: a call is for the worker that writes, with the locks of all keys concerned held. On anything
 * but STORE_OK nothing was logged, and the caller may change nothing. */
#ifndef KVASIR_STORE_WRITE_LOG_H
#define KVASIR_STORE_WRITE_LOG_H

#include "log/record.h"
#include "store/internal.h"

/* What a commit writes. */
struct write_plan {
    size_t bytes;        /* of all records, with the frame */
    size_t value_bytes;  /* of values and keys that it makes in memory, at most */
    size_t copied_bytes; /* of these, values that are no part of the records */
    unsigned records;    /* without the frame */
    bool only_deletes;   /* may use the headroom of a full disk, and memory beyond the cap */
    bool creates;        /* adds keys */
};

/* The record of an entry that is staged. */

static inline enum record_type write_record_type(const struct store_entry *e)
{
    switch (e->staged) {
    case STAGED_SET:
        return e->new_expire_ms ? RECORD_SET_EXPIRE : RECORD_SET;
    case STAGED_DELETE:
        return RECORD_DELETE;
    default:
        return RECORD_EXPIRE;
    }
}

static inline struct slice write_record_value(const struct store_entry *e)
{
    return e->staged == STAGED_SET ? e->new_value : slice_make("", 0);
}

static inline size_t write_record_bytes(const struct store_entry *e)
{
    return record_bytes(write_record_type(e), e->key.name.len, write_record_value(e).len);
}

/* Logs the staged entries of the write under way, with a frame when there are several, so that all or none
 * of them survive; *lsn: of the first entry's record, the others' follow each other. A plan of more than
 * LOG_SMALL_BYTES_MAX needs p->large, of at least its size, and gives that away. STORE_BUSY: no buffer, or no
 * segment yet: try again in a later turn; STORE_NO_SPACE: the disk is full; STORE_DEAD: the log has failed.
 */
enum store_result write_log(struct store_worker *sw, const struct write_plan *plan, uint64_t *lsn);

/* Logs that the range's tree is deleted and sets range->lsn. All keys are locked. Failures as above. */
enum store_result write_log_tree(struct store_worker *sw, struct store_range *range);

#endif
