/* Values that move to a data segment, by hand: what a cleaner does. */
#ifndef KVASIR_TESTS_RELOCATE_H
#define KVASIR_TESTS_RELOCATE_H

#include <stdlib.h>

#include "base/prng.h"
#include "log/data_segment.h"
#include "log/segment.h"
#include "store/internal.h"

struct relocation {
    struct slice key, value;
    uint64_t hash, from, to, version, expire_ms;
};

/* The value at an address. False: it is not (all) there. A copy of everything, for free(copy). */
static inline bool relocation_read(struct store *store, const struct node *node, struct relocation *r,
                                   char **copy)
{
    struct disk *disk = store->config.disk;
    struct payload payload = payload_get(node);
    struct segment_file *file = segments_find(store->segments, payload.address);
    size_t n = segment_weight(node_key(node).len, payload.len);
    struct record record;
    *copy = malloc(n);
    int64_t got = disk->ops->read(disk, file->fd, *copy, n, lsn_offset(payload.address));
    if (got <= 0 || record_decode(*copy, (size_t)got, payload.address, file->generation, &record) <= 0 ||
        !slice_equal(record.key, node_key(node)) || record.value.len != payload.len) {
        free(*copy);
        return false;
    }
    *r = (struct relocation){.key = record.key,
                             .value = record.value,
                             .hash = hash_table_hash(&store->hash, record.key),
                             .from = payload.address,
                             .expire_ms = payload.expire_ms};
    r->version = atomic_load_explicit(&((struct node *)(uintptr_t)node)->sequence, memory_order_relaxed) >> 1;
    return true;
}

/* Writes each durable value with probability share/256 into data segment `number`, lets `between` happen, and
 * moves those that are still where they were. Returns how many. Inside a turn of sw. */
static inline unsigned relocate_some(struct store_worker *sw, struct prng *prng, unsigned share,
                                     uint64_t number, int folder)
{
    enum { MOST = 4096 };
    struct store *store = sw->store;
    struct relocation *all = calloc(MOST, sizeof *all);
    char **copies = calloc(MOST, sizeof *copies);
    unsigned n = 0, moved = 0;
    struct data_segment *d;
    struct segment_file *file;
    struct ordered_cursor cursor;
    struct node *node;
    const struct segment_folder place = {store->config.disk, folder, "sim", store->segments};
    status_t s = data_segment_begin(&place, number, 0, SEGMENT_PIECE_BYTES, &d);
    ordered_seek(&cursor, &store->ordered, slice_make("", 0), false);
    while (status_is_ok(&s) && n < MOST && (node = ordered_next(&cursor))) {
        if (node_meta(node) & NODE_TOMBSTONE || prng_below(prng, 256) >= share ||
            !relocation_read(store, node, &all[n], &copies[n]))
            continue;
        s = data_segment_add(d, all[n].key, all[n].value, all[n].version, all[n].expire_ms, &all[n].to);
        n++;
    }
    if (status_is_ok(&s))
        s = data_segment_finish(d, &file);
    for (unsigned i = 0; i < n; i++) {
        if (status_is_ok(&s) && keylock_try(&store->locks, keylock_stripe(all[i].hash))) {
            node = hash_table_find(&store->hash, all[i].hash, all[i].key);
            if (node && payload_get(node).address == all[i].from)
                moved += payload_relocate(store, sw->private, node, all[i].hash, all[i].from, all[i].to, 0) ==
                         PAYLOAD_MOVED;
            keylock_release(&store->locks, keylock_stripe(all[i].hash));
        }
        free(copies[i]);
    }
    free(all);
    free(copies);
    return moved;
}

#endif
