/* What a server does in its turns, by hand, on a store of any disk: writes, flushes, deferred work,
 * checkpoints. Single-threaded; a failure that no test expects ends the test. */
#ifndef KVASIR_TESTS_BY_HAND_H
#define KVASIR_TESTS_BY_HAND_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "log/log.h"
#include "store/store.h"

enum { BY_HAND_KEYS_MAX = 8, BY_HAND_TRIES = 4 };

/* Performs one write of the log. Returns its bytes, or -errno. */
typedef int64_t (*by_hand_writer)(struct disk *disk, const struct log_flush *flush);

static inline int64_t by_hand_write(struct disk *disk, const struct log_flush *flush)
{
    return disk->ops->write(disk, flush->fd, flush->buffer, flush->len, flush->offset);
}

/* Brings everything that was logged to the disk. result < 0: the disk says so instead. */
static inline void by_hand_flush(struct store *store, struct disk *disk, by_hand_writer write, int64_t result)
{
    struct log_flush flush;
    struct log *log = store_log(store);
    (void)log_prepare(log);
    while (log_flush_take(log, 1000, true, &flush, NULL)) {
        int64_t n = write(disk, &flush);
        log_flush_done(log, &flush, result < 0 ? result : n, 1000);
        (void)log_prepare(log);
    }
}

/* One write of n keys, one turn. values[i].data NULL: a delete. */
static inline enum store_result by_hand_commit(struct store_worker *sw, unsigned n, const struct slice *keys,
                                               const struct slice *values, uint64_t expire_ms)
{
    struct store_entry entries[BY_HAND_KEYS_MAX];
    uint64_t bytes = 0;
    assert_in_range(n, 1, BY_HAND_KEYS_MAX);
    store_turn_begin(sw);
    sw->depends_lsn = 0;
    for (unsigned i = 0; i < n; i++) {
        store_key_prepare(sw, &entries[i].key, keys[i]);
        bytes += values[i].len;
    }
    enum store_result r = store_write_begin(sw, entries, n, bytes);
    if (r == STORE_OK) {
        for (unsigned i = 0; i < n; i++) {
            if (values[i].data)
                store_stage_set(sw, entries, i, values[i], expire_ms);
            else
                store_stage_delete(entries, i);
        }
        r = store_write_commit(sw);
    }
    store_turn_end(sw);
    return r;
}

/* Deferred work until there is no more. */
static inline void by_hand_background(struct store_worker *sw)
{
    bool more = true;
    for (int turns = 0; turns < 10000 && more; turns++) {
        store_turn_begin(sw);
        more = store_background(sw, 64, NULL);
        store_turn_end(sw);
    }
    assert_false(more);
}

static inline void by_hand_checkpoint(struct store *store, struct disk *disk, by_hand_writer write)
{
    uint64_t ticket = store_checkpoint_request(store);
    while (store_checkpoint_state(store, ticket) == STORE_CHECKPOINT_RUNNING) {
        (void)store_keep(store);
        by_hand_flush(store, disk, write, 0);
    }
    assert_int_equal(store_checkpoint_state(store, ticket), STORE_CHECKPOINT_DONE);
}

#endif
