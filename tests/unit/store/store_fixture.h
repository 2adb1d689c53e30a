/* A store of one worker or more over the simulated disk, driven by hand. */
#ifndef KVASIR_TESTS_STORE_FIXTURE_H
#define KVASIR_TESTS_STORE_FIXTURE_H

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "sim/sim_disk.h"
#include "store/store.h"
#include "unit/store/by_hand.h"
#include "unit/store/cold_values.h"

struct fixture {
    struct sim_disk *sim;
    struct store_config config;
    struct store *store;
    struct store_worker *sw; /* of worker 0 */
};

static inline void fixture_open(struct fixture *f)
{
    status_t s = store_open(&f->config, &f->store);
    if (!status_is_ok(&s))
        fail_msg("%s", s.text);
    f->sw = store_worker_get(f->store, 0);
}

/* On a new simulated disk; config.disk and path are set here, workers if it has none. */
static inline void fixture_init_with(struct fixture *f, struct store_config config)
{
    *f = (struct fixture){.sim = sim_disk_create(1), .config = config};
    f->config.disk = &f->sim->disk;
    f->config.path = "sim";
    if (f->config.workers == 0)
        f->config.workers = 1;
    fixture_open(f);
}

static inline void fixture_init(struct fixture *f, unsigned workers)
{
    fixture_init_with(f, (struct store_config){.workers = workers,
                                               .log_segment_bytes_first = 1 << 20,
                                               .log_segment_bytes_max = 8 << 20,
                                               .no_threads = true});
}

/* As a DSYNC write. */
static inline int64_t fixture_write(struct disk *disk, const struct log_flush *flush)
{
    int64_t n = by_hand_write(disk, flush);
    sim_disk_sync_range((struct sim_disk *)(void *)disk, flush->fd, flush->offset, flush->len);
    return n;
}

/* Brings everything that was written to the disk. result < 0: the disk says so instead. */
static inline void fixture_flush(struct fixture *f, int64_t result)
{
    by_hand_flush(f->store, &f->sim->disk, fixture_write, result);
}

static inline void fixture_reopen(struct fixture *f)
{
    fixture_flush(f, 0);
    store_close(f->store);
    sim_disk_restart(f->sim);
    fixture_open(f);
}

static inline void fixture_deinit(struct fixture *f)
{
    if (f->store)
        store_close(f->store);
    sim_disk_destroy(f->sim);
}

static inline struct slice text(const char *s)
{
    return slice_make(s, strlen(s));
}

/* One key, one turn. value.data NULL: a delete. */
static inline enum store_result put(struct store_worker *sw, struct slice key, struct slice value,
                                    uint64_t expire_ms)
{
    return by_hand_commit(sw, 1, &key, &value, expire_ms);
}

/* As a worker does it: what is busy is tried again in later turns, with flushes between. */
static inline void put_surely(struct fixture *f, struct slice key, struct slice value)
{
    enum store_result r = STORE_BUSY;
    for (int turns = 0; r == STORE_BUSY && turns < BY_HAND_TRIES; turns++) {
        r = put(f->sw, key, value, 0);
        fixture_flush(f, 0);
    }
    assert_int_equal(r, STORE_OK);
}

/* STORE_OK with a copy of the value (for free()), which may have come from disk. */
static inline enum store_result get(struct store_worker *sw, struct slice key, char **value, size_t *len)
{
    struct store_key prepared;
    struct store_view view;
    *value = NULL;
    *len = 0;
    store_turn_begin(sw);
    sw->depends_lsn = 0;
    struct store_waiter waiter = {0};
    store_key_prepare(sw, &prepared, key);
    enum store_result r = cold_find(sw, &prepared, &view, &waiter);
    if (r == STORE_OK) {
        *len = view.len;
        *value = malloc(view.len + 1);
        assert_non_null(*value);
        assert_true(store_view_copy(&view, *value, 0, view.len));
        (*value)[view.len] = '\0';
    }
    store_waiter_release(sw, &waiter);
    store_turn_end(sw);
    return r;
}

static inline void assert_value(struct store_worker *sw, const char *key, const char *expected)
{
    char *value;
    size_t len;
    assert_int_equal(get(sw, text(key), &value, &len), STORE_OK);
    assert_int_equal(len, strlen(expected));
    assert_string_equal(value, expected);
    free(value);
}

static inline void assert_absent(struct store_worker *sw, const char *key)
{
    char *value;
    size_t len;
    assert_int_equal(get(sw, text(key), &value, &len), STORE_ABSENT);
}

static inline uint64_t count(struct store_worker *sw)
{
    store_turn_begin(sw);
    uint64_t n = store_count(sw);
    store_turn_end(sw);
    return n;
}

static inline uint64_t count_expiring(struct store *store)
{
    struct store_stats stats;
    store_stats_get(store, &stats);
    return stats.keys_expiring;
}

/* Is the value out of memory? */
static inline bool is_cold(struct fixture *f, const char *name, struct store_view *view)
{
    struct store_key key;
    store_turn_begin(f->sw);
    store_key_prepare(f->sw, &key, text(name));
    enum store_result r = store_find(f->sw, &key, view);
    store_turn_end(f->sw);
    return r == STORE_COLD;
}

static inline void background(struct fixture *f)
{
    by_hand_background(f->sw);
}

#endif
