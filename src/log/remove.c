/* Removing segment files that nothing needs any more. */
#include <stdlib.h>

#include "base/check.h"
#include "log/internal.h"
#include "log/spare.h"

status_t log_remove_segment(struct log *log, struct segment_file *file, bool keep)
{
    const struct segment_folder folder = log_segment_folder(log);
    return spare_retire(&folder, file, keep);
}

struct collection {
    const struct segments *segments;
    uint64_t number_end;
    struct segment_file **files;
    size_t count, capacity;
};

static bool collect(void *context, struct segment_file *file)
{
    struct collection *c = context;
    if (file->data || file->number >= c->number_end ||
        !atomic_load_explicit(&file->sealed, memory_order_acquire) ||
        segments_live_bytes(c->segments, file) != 0)
        return true;
    if (c->count == c->capacity) {
        c->capacity = c->capacity ? c->capacity * 2 : 64;
        c->files = realloc(c->files, c->capacity * sizeof(struct segment_file *));
        CHECK(c->files != NULL);
    }
    c->files[c->count++] = file;
    return true;
}

status_t log_remove_segments_below(struct log *log, uint64_t lsn, bool keep, uint64_t *bytes)
{
    CHECK(lsn <= log_commit_lsn(log));
    struct collection c = {.segments = log->config.segments, .number_end = lsn >> LOG_SEGMENT_SHIFT};
    uint64_t removed = 0;
    status_t s = status_ok();
    segments_each(log->config.segments, collect, &c);
    for (size_t i = 0; i < c.count && status_is_ok(&s); i++) {
        uint64_t size = atomic_load_explicit(&c.files[i]->bytes, memory_order_relaxed);
        s = log_remove_segment(log, c.files[i], keep);
        if (status_is_ok(&s))
            removed += size;
    }
    (void)segments_reap(log->config.segments);
    free(c.files);
    if (bytes)
        *bytes = removed;
    return s;
}
