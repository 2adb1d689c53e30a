/* What a checkpoint does to the log: the segments that it makes superfluous go. Include it behind cmocka.h.
 */
#ifndef KVASIR_TESTS_REMOVE_BELOW_H
#define KVASIR_TESTS_REMOVE_BELOW_H

#include "log/internal.h"

/* Removes all finished log segments with nothing live in them below the one that lsn lies in. *bytes: of
 * their files; may be NULL. */
struct removal {
    const struct segments *segments;
    uint64_t number_end;
    struct segment_file *files[4096];
    size_t count;
};

static inline bool note_removable(void *context, struct segment_file *file)
{
    struct removal *r = context;
    if (!file->data && file->number < r->number_end &&
        atomic_load_explicit(&file->sealed, memory_order_acquire) &&
        segments_live_bytes(r->segments, file) == 0) {
        assert_true(r->count < sizeof r->files / sizeof r->files[0]);
        r->files[r->count++] = file;
    }
    return true;
}

static inline status_t remove_below(struct log *log, uint64_t lsn, bool keep, uint64_t *bytes)
{
    static struct removal r;
    assert_true(lsn <= log_commit_lsn(log));
    r = (struct removal){.segments = log->config.segments, .number_end = lsn >> LOG_SEGMENT_SHIFT};
    uint64_t removed = 0;
    status_t s = status_ok();
    segments_each(log->config.segments, note_removable, &r);
    for (size_t i = 0; i < r.count && status_is_ok(&s); i++) {
        uint64_t size = atomic_load_explicit(&r.files[i]->bytes, memory_order_relaxed);
        s = log_remove_segment(log, r.files[i], keep);
        if (status_is_ok(&s))
            removed += size;
    }
    (void)segments_reap(log->config.segments);
    if (bytes)
        *bytes = removed;
    return s;
}

#endif
