/* Room: memory is promised only where what is resident leaves room for it. What is resident is a number here.
 */
#include "store/room.h"

#include <pthread.h>
#include <stdatomic.h>

#include "store/internal.h"
#include "unit/store/store_fixture.h"

enum { CAP = 96 << 20, MIB = 1 << 20, THREADS = 4, ROUNDS = 20000 };

static _Atomic uint64_t resident;

static uint64_t tell_resident(void *context)
{
    (void)context;
    return atomic_load(&resident);
}

static void room_init(struct fixture *f, unsigned workers)
{
    atomic_store(&resident, 0);
    fixture_init_with(f, (struct store_config){.workers = workers,
                                               .log_segment_bytes_first = 8 << 20,
                                               .log_segment_bytes_max = 8 << 20,
                                               .no_threads = true,
                                               .resident_bytes = tell_resident,
                                               .memory_bytes_max = CAP});
}

static uint64_t promised(const struct fixture *f)
{
    return atomic_load(&f->store->promised_bytes);
}

static void test_a_promise_lasts_until_it_is_resident(void **state)
{
    struct fixture f;
    (void)state;
    room_init(&f, 1);
    uint64_t limit = room_limit(f.store);
    assert_in_range(limit, CAP - CAP / 8, CAP - CAP / 64);
    atomic_store(&resident, limit - 10 * MIB);
    store_turn_begin(f.sw);
    assert_false(store_room_refused(f.sw));
    assert_true(store_room_take(f.sw, 6 * MIB));
    assert_false(store_room_take(f.sw, 6 * MIB));
    assert_true(store_room_refused(f.sw));
    store_room_return(f.sw, 6 * MIB);
    assert_true(store_room_take(f.sw, 5 * MIB)); /* of what came back */
    assert_true(store_room_take(f.sw, MIB));
    assert_true(store_room_take(f.sw, 4 * MIB));
    assert_false(store_room_take(f.sw, 1));
    store_room_keep(f.sw, 3 * MIB);
    store_turn_end(f.sw);
    assert_int_equal(promised(&f), 3 * MIB);
    store_turn_begin(f.sw);
    assert_false(store_room_take(f.sw, 8 * MIB));
    assert_true(store_room_take(f.sw, 7 * MIB));
    store_room_keep(f.sw, 0);
    store_turn_end(f.sw);
    assert_int_equal(promised(&f), 0);
    fixture_deinit(&f);
}

static void test_small_ones_ask_in_steps(void **state)
{
    struct fixture f;
    (void)state;
    room_init(&f, 1);
    uint64_t step = CAP / 256;
    store_turn_begin(f.sw);
    for (int i = 0; i < 100; i++)
        assert_true(store_room_take(f.sw, step / 100));
    assert_int_equal(promised(&f), step);
    store_turn_end(f.sw);
    /* Near the limit for no more than is missing. */
    atomic_store(&resident, room_limit(f.store) - 1000);
    store_turn_begin(f.sw);
    assert_true(store_room_take(f.sw, 600));
    assert_int_equal(promised(&f), 600);
    assert_false(store_room_take(f.sw, 600));
    store_turn_end(f.sw);
    fixture_deinit(&f);
}

static enum store_result set(struct fixture *f, const char *name, const char *value, size_t len)
{
    struct store_entry entry = {0};
    store_key_prepare(f->sw, &entry.key, slice_make(name, strlen(name)));
    enum store_result r = store_write_begin(f->sw, &entry, 1, len);
    if (r != STORE_OK)
        return r;
    store_stage_set(f->sw, &entry, 0, slice_make(value, len), 0);
    return store_write_commit(f->sw);
}

static void test_writes_wait_for_room(void **state)
{
    struct fixture f;
    char *value = calloc(1, 4 * MIB);
    (void)state;
    assert_non_null(value);
    room_init(&f, 1);
    store_turn_begin(f.sw);
    atomic_store(&resident, room_limit(f.store) - 6 * MIB); /* for the log's or the value, not for both */
    assert_int_equal(set(&f, "large", value, 4 * MIB), STORE_BUSY);
    assert_null(f.sw->private->large); /* and it waits with empty hands */
    assert_int_equal(store_count(f.sw), 0);
    /* What cannot be had by making values leave keeps no small write from coming: see memory_refuses. */
    atomic_store(&resident, (uint64_t)CAP);
    assert_int_equal(set(&f, "small", value, 3000), STORE_OK);
    store_turn_end(f.sw);
    store_turn_begin(f.sw);
    atomic_store(&resident, room_limit(f.store) - 9 * MIB);
    assert_int_equal(set(&f, "large", value, 4 * MIB), STORE_OK);
    assert_int_equal(store_count(f.sw), 2);
    /* There is a large value now whose leaving would help. */
    atomic_store(&resident, room_limit(f.store) + MIB);
    store_turn_end(f.sw);
    store_turn_begin(f.sw);
    assert_int_equal(set(&f, "small", value, 3000), STORE_BUSY);
    store_turn_end(f.sw);
    fixture_flush(&f, 0);
    for (int i = 0; i < 10 && f.sw->private->evicted == 0; i++) {
        store_turn_begin(f.sw);
        (void)store_background(f.sw, 16, NULL);
        assert_int_not_equal(set(&f, "small", value, 3000), STORE_NO_MEMORY);
        store_turn_end(f.sw);
    }
    assert_int_not_equal(f.sw->private->evicted, 0);
    free(value);
    fixture_deinit(&f);
}

static enum store_result want(struct fixture *f, const char *name, struct store_waiter *waiter)
{
    struct store_key key;
    struct store_view view;
    store_key_prepare(f->sw, &key, slice_make(name, strlen(name)));
    enum store_result r = store_find(f->sw, &key, &view);
    if (r != STORE_COLD)
        return r;
    return store_fetch_want(f->sw, &key, view.address, view.sequence >> 1, view.len, waiter, false);
}

static void done(struct fixture *f, const struct store_fetch *fetch)
{
    struct disk *disk = f->config.disk;
    store_fetch_done(f->sw, fetch,
                     disk->ops->read(disk, fetch->fd, fetch->buffer, fetch->len, fetch->offset));
}

/* However full memory is, short values come from disk, one after the other. */
static void test_short_reads_need_no_room(void **state)
{
    enum { LARGE = 300 << 10, SHORT = 200 << 10 };
    static const char *const names[] = {"large", "short", "other"};
    struct fixture f;
    struct prng prng;
    struct store_waiter waiters[3] = {{0}};
    struct store_fetch fetch;
    char *value = calloc(1, LARGE);
    (void)state;
    assert_non_null(value);
    room_init(&f, 1);
    prng_seed(&prng, 1);
    store_turn_begin(f.sw);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(set(&f, names[i], value, i ? SHORT : LARGE), STORE_OK);
    fixture_flush(&f, 0);
    assert_int_equal(cold_evict(f.sw, &prng, 256), 3);
    store_turn_end(f.sw);
    store_turn_begin(f.sw); /* what was promised in the last turn is over */
    atomic_store(&resident, (uint64_t)CAP);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(want(&f, names[i], &waiters[i]), STORE_COLD);
    for (unsigned i = 1; i < 3; i++) {
        assert_true(store_fetch_take(f.sw, &fetch));
        assert_in_range(fetch.len, SHORT, LARGE - 1);
        assert_false(store_fetch_take(f.sw, &(struct store_fetch){0}));
        assert_true(store_room_refused(f.sw));
        done(&f, &fetch);
        assert_ptr_equal(store_waiter_next(f.sw), &waiters[i]);
        assert_false(store_fetch_take(f.sw, &(struct store_fetch){0})); /* its value is there still */
        store_waiter_release(f.sw, &waiters[i]);
        store_turn_end(f.sw);
        store_turn_begin(f.sw);
        assert_int_equal(want(&f, names[0], &waiters[0]),
                         STORE_COLD); /* a look of the turn: what was dropped goes */
    }
    assert_false(store_fetch_take(f.sw, &fetch));
    assert_null(store_waiter_next(f.sw));
    store_turn_end(f.sw);
    atomic_store(&resident, 0);
    store_turn_begin(f.sw);
    assert_true(store_fetch_take(f.sw, &fetch));
    done(&f, &fetch);
    assert_ptr_equal(store_waiter_next(f.sw), &waiters[0]);
    store_waiter_release(f.sw, &waiters[0]);
    store_turn_end(f.sw);
    free(value);
    fixture_deinit(&f);
}

/* ---- several at once ---- */

struct taker {
    struct fixture *f;
    unsigned index;
    _Atomic bool *over;
    uint64_t granted;
};

/* Takes, makes resident what was granted, gives it back to the system. */
static void *take_and_release(void *context)
{
    struct taker *t = context;
    struct store_worker *sw = store_worker_get(t->f->store, t->index);
    for (unsigned i = 0; i < ROUNDS || t->granted == 0; i++) { /* others may have it all for a long time */
        uint64_t bytes = (uint64_t)(i * 7 + t->index * 13) % 40 * MIB + 1;
        store_turn_begin(sw);
        bool granted = store_room_take(sw, bytes);
        if (granted && atomic_fetch_add(&resident, bytes) + bytes > room_limit(t->f->store))
            atomic_store(t->over, true);
        store_turn_end(sw);
        if (granted) {
            t->granted++;
            atomic_fetch_sub(&resident, bytes);
        }
    }
    return NULL;
}

static void test_several_at_once_stay_below_the_limit(void **state)
{
    struct fixture f;
    struct taker takers[THREADS];
    pthread_t threads[THREADS];
    _Atomic bool over = false;
    (void)state;
    room_init(&f, THREADS);
    for (unsigned i = 0; i < THREADS; i++) {
        takers[i] = (struct taker){.f = &f, .index = i, .over = &over};
        assert_int_equal(pthread_create(&threads[i], NULL, take_and_release, &takers[i]), 0);
    }
    for (unsigned i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    assert_false(over);
    assert_int_equal(promised(&f), 0);
    fixture_deinit(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_promise_lasts_until_it_is_resident),
        cmocka_unit_test(test_small_ones_ask_in_steps),
        cmocka_unit_test(test_writes_wait_for_room),
        cmocka_unit_test(test_short_reads_need_no_room),
        cmocka_unit_test(test_several_at_once_stay_below_the_limit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
