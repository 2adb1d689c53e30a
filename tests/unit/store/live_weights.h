/* What each segment's count of live bytes must be: a walk over the whole index. */
#ifndef KVASIR_TESTS_LIVE_WEIGHTS_H
#define KVASIR_TESTS_LIVE_WEIGHTS_H

#include <stdio.h>
#include <stdlib.h>

#include "store/internal.h"

enum { LIVE_FILES_MAX = 1024 };

struct live_walk {
    struct {
        struct segment_file *file;
        int64_t weight;
    } files[LIVE_FILES_MAX];
    unsigned count;
};

static inline bool live_collect(void *context, struct segment_file *file)
{
    struct live_walk *walk = context;
    if (walk->count == LIVE_FILES_MAX)
        return false;
    walk->files[walk->count].file = file;
    walk->files[walk->count++].weight = 0;
    return true;
}

/* True when every count is exact. Nothing may be under way. */
static inline bool live_weights_are_exact(struct store *store)
{
    struct live_walk *walk = calloc(1, sizeof *walk);
    struct ordered_cursor cursor;
    struct node *node;
    bool exact = true;
    segments_each(store->segments, live_collect, walk);
    ordered_seek(&cursor, &store->ordered, slice_make("", 0), false);
    while ((node = ordered_next(&cursor))) {
        if (node_meta(node) & NODE_TOMBSTONE)
            continue;
        struct payload payload = payload_get(node);
        struct segment_file *file = segments_find(store->segments, payload.address);
        unsigned i = 0;
        while (i < walk->count && walk->files[i].file != file)
            i++;
        if (i < walk->count)
            walk->files[i].weight += segment_weight(node_key(node).len, payload.len);
        else
            exact = false; /* an address that leads nowhere */
    }
    for (unsigned i = 0; i < walk->count; i++) {
        struct segment_file *file = walk->files[i].file;
        int64_t counted = segments_live_bytes(store->segments, file);
        if (counted == walk->files[i].weight)
            continue;
        fprintf(stderr, "%s segment %llu counts %lld live bytes, the index says %lld\n",
                file->data ? "data" : "log", (unsigned long long)file->number, (long long)counted,
                (long long)walk->files[i].weight);
        exact = false;
    }
    free(walk);
    return exact;
}

#endif
