/* A store by itself: what its answers depend on, its limits, and every way in which it refuses. */
#include "store_fixture.h"

#include "store/internal.h"
#include "sys/clock.h"

static bool is_durable(const struct fixture *f)
{
    return f->sw->depends_lsn < store_commit_lsn(f->store);
}

static void test_a_write_is_answered_when_it_is_durable(void **state)
{
    struct fixture f;
    fixture_init(&f, 1);
    assert_int_equal(put(f.sw, text("k"), text("v"), 0), STORE_OK);
    assert_false(is_durable(&f));
    assert_value(f.sw, "k", "v"); /* applied, but nobody may be told yet */
    assert_false(is_durable(&f));
    assert_absent(f.sw, "other");
    assert_true(is_durable(&f));
    fixture_flush(&f, 0);
    assert_value(f.sw, "k", "v");
    assert_true(is_durable(&f));
    (void)state;
    fixture_deinit(&f);
}

static void test_absence_waits_for_its_delete(void **state)
{
    struct fixture f;
    struct store_stats stats;
    (void)state;
    fixture_init(&f, 1);
    assert_int_equal(put(f.sw, text("k"), text("v"), 0), STORE_OK);
    fixture_flush(&f, 0);
    assert_int_equal(put(f.sw, text("k"), (struct slice){0}, 0), STORE_OK);
    assert_absent(f.sw, "k");
    assert_false(is_durable(&f));
    store_turn_begin(f.sw);
    assert_false(store_background(f.sw, 100, NULL)); /* must not forget it yet */
    store_turn_end(f.sw);
    assert_absent(f.sw, "k");
    assert_false(is_durable(&f));
    fixture_flush(&f, 0);
    store_turn_begin(f.sw);
    store_background(f.sw, 100, NULL);
    store_turn_end(f.sw);
    store_stats_get(f.store, &stats);
    assert_int_equal(stats.tombstones, 0);
    assert_absent(f.sw, "k");
    assert_int_equal(f.sw->depends_lsn, 0);
    fixture_deinit(&f);
}

static void test_sizes_survive_a_restart(void **state)
{
    static const size_t sizes[] = {0,    1,    7,    8,     60,    1000,      1015,    1016,
                                   1017, 4096, 9000, 65535, 65536, 300 << 10, 1 << 20, 5000000};
    enum { SIZES = sizeof sizes / sizeof sizes[0] };
    struct fixture f;
    char key[32], *long_key = malloc(STORE_KEY_BYTES_MAX), *value;
    (void)state;
    fixture_init(&f, 1);
    memset(long_key, 'k', STORE_KEY_BYTES_MAX);
    char *bytes = malloc(5000000);
    assert_true(bytes && long_key);
    for (size_t i = 0; i < 5000000; i++)
        bytes[i] = (char)(i * 7 + i / 251);
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < SIZES; i++) { /* every size replaces every other one in turn */
            snprintf(key, sizeof key, "size:%d", i);
            size_t len = sizes[(i + round * 5) % SIZES];
            put_surely(&f, text(key), slice_make(bytes, len));
        }
        assert_int_equal(put(f.sw, slice_make(long_key, STORE_KEY_BYTES_MAX), text("long"), 0), STORE_OK);
        fixture_reopen(&f);
        for (int i = 0; i < SIZES; i++) {
            size_t len, wanted = sizes[(i + round * 5) % SIZES];
            snprintf(key, sizeof key, "size:%d", i);
            assert_int_equal(get(f.sw, text(key), &value, &len), STORE_OK);
            assert_int_equal(len, wanted);
            assert_memory_equal(value, bytes, len);
            free(value);
        }
        assert_int_equal(count(f.sw), SIZES + 1);
    }
    free(bytes);
    free(long_key);
    fixture_deinit(&f);
}

static void test_expiry(void **state)
{
    struct fixture f;
    (void)state;
    fixture_init(&f, 1);
    uint64_t now_ms = clock_unix_ms();
    assert_int_equal(put(f.sw, text("past"), text("v"), 0), STORE_OK);
    assert_int_equal(put(f.sw, text("past"), text("v"), now_ms - 1), STORE_OK); /* is a delete */
    assert_absent(f.sw, "past");
    assert_int_equal(put(f.sw, text("soon"), text("v"), now_ms + 5), STORE_OK);
    assert_int_equal(put(f.sw, text("later"), text("v"), now_ms + 3600000), STORE_OK);
    assert_int_equal(count_expiring(f.store), 2);
    while (clock_unix_ms() <= now_ms + 5)
        ;
    fixture_flush(&f, 0);
    assert_absent(f.sw, "soon");
    assert_false(is_durable(&f)); /* that it is gone is in the log before anybody is told */
    assert_value(f.sw, "later", "v");
    fixture_reopen(&f);
    assert_absent(f.sw, "soon");
    assert_value(f.sw, "later", "v");
    assert_int_equal(count(f.sw), 1);
    fixture_deinit(&f);
}

/* The keys that a walk yields, up to three. */
static unsigned walk(struct store_worker *sw, struct slice *keys)
{
    struct store_cursor cursor;
    const struct node *node;
    unsigned n = 0;
    store_cursor_seek(&cursor, sw, text(""), false);
    while ((node = store_cursor_next(&cursor)) && n < 3)
        keys[n++] = store_node_key(node);
    return n;
}

/* Who walks over an expired key and does not show it says that it is gone: that is in the log first too. */
static void test_a_walk_over_an_expired_key(void **state)
{
    struct fixture f;
    struct slice keys[3];
    (void)state;
    fixture_init(&f, 1);
    uint64_t expire_ms = clock_unix_ms() + 5;
    assert_int_equal(put(f.sw, text("a"), text("v"), 0), STORE_OK);
    assert_int_equal(put(f.sw, text("soon"), text("v"), expire_ms), STORE_OK);
    assert_int_equal(put(f.sw, text("z"), text("v"), 0), STORE_OK);
    while (clock_unix_ms() <= expire_ms)
        ;
    fixture_flush(&f, 0);
    store_turn_begin(f.sw);
    uint32_t stripe = keylock_stripe(hash_table_hash(&f.store->hash, text("soon")));
    assert_true(keylock_try(&f.store->locks, stripe)); /* a writer is at it */
    assert_int_equal(walk(f.sw, keys), 1);
    assert_true(store_walk_stopped(f.sw));
    keylock_release(&f.store->locks, stripe);
    store_turn_end(f.sw);
    assert_int_equal(count(f.sw), 3);
    store_turn_begin(f.sw);
    f.sw->depends_lsn = 0;
    assert_int_equal(walk(f.sw, keys), 2);
    assert_true(slice_equal(keys[0], text("a")) && slice_equal(keys[1], text("z")));
    assert_false(store_walk_stopped(f.sw));
    store_turn_end(f.sw);
    assert_false(is_durable(&f));
    assert_int_equal(count(f.sw), 2);
    fixture_reopen(&f);
    assert_int_equal(count(f.sw), 2); /* by the log, not by the clock */
    fixture_deinit(&f);
}

/* A snapshot that has locked cannot log the delete of a key whose time has come: it is not answered then. */
static void test_a_locked_snapshot_over_an_expired_key(void **state)
{
    struct fixture f;
    struct store_key key;
    struct store_view view;
    (void)state;
    fixture_init(&f, 2);
    uint64_t expire_ms = clock_unix_ms() + 5;
    assert_int_equal(put(f.sw, text("soon"), text("v"), expire_ms), STORE_OK);
    while (clock_unix_ms() <= expire_ms)
        ;
    fixture_flush(&f, 0);
    store_turn_begin(f.sw);
    store_key_prepare(f.sw, &key, text("soon"));
    assert_int_equal(store_snapshot_begin(f.sw, &key, 1, 9), STORE_OK); /* locks */
    assert_int_equal(store_find(f.sw, &key, &view), STORE_BUSY);
    assert_true(store_snapshot_end(f.sw));
    assert_int_equal(store_snapshot_begin(f.sw, &key, 1, 0), STORE_OK);
    assert_int_equal(store_find(f.sw, &key, &view), STORE_ABSENT);
    assert_false(store_snapshot_end(f.sw));
    store_turn_end(f.sw);
    assert_false(is_durable(&f));
    fixture_reopen(&f);
    assert_int_equal(count(f.sw), 0);
    fixture_deinit(&f);
}

/* While as many deleted trees as there may be are cleared away, another one is not even counted. */
static void test_too_many_deleted_trees(void **state)
{
    struct fixture f;
    uint64_t removed = 77;
    (void)state;
    fixture_init(&f, 1);
    for (unsigned i = 0; i <= STORE_RANGES_MAX; i++) {
        char name[16];
        snprintf(name, sizeof name, "t%u", i);
        assert_int_equal(put(f.sw, text(name), text("v"), 0), STORE_OK);
        enum store_result r = store_delete_tree(f.sw, text(name), i < STORE_RANGES_MAX ? NULL : &removed);
        assert_int_equal(r, i < STORE_RANGES_MAX ? STORE_OK : STORE_BUSY);
    }
    assert_int_equal(removed, 77);
    fixture_flush(&f, 0);
    background(&f);
    assert_int_equal(store_delete_tree(f.sw, text("t16"), &removed), STORE_OK);
    assert_int_equal(removed, 1);
    fixture_deinit(&f);
}

/* What writes keep of a key (APPEND, INCR, KEEPTTL) they must not take from one whose time has come. */
static void test_an_expired_key_leaves_no_expiry_to_the_next(void **state)
{
    struct fixture f;
    (void)state;
    fixture_init(&f, 1);
    uint64_t soon_ms = clock_unix_ms() + 5;
    assert_int_equal(put(f.sw, text("k"), text("old"), soon_ms), STORE_OK);
    while (clock_unix_ms() <= soon_ms)
        ;
    store_turn_begin(f.sw);
    struct store_entry entry;
    store_key_prepare(f.sw, &entry.key, text("k"));
    assert_int_equal(store_write_begin(f.sw, &entry, 1, 0), STORE_OK);
    assert_false(store_entry_live(&entry, 0));
    assert_int_equal(store_entry_expire_ms(&entry, 0), 0);
    store_stage_set(f.sw, &entry, 0, text("new"), store_entry_expire_ms(&entry, 0));
    assert_int_equal(store_write_commit(f.sw), STORE_OK);
    store_turn_end(f.sw);
    assert_value(f.sw, "k", "new");
    assert_int_equal(count_expiring(f.store), 0);
    fixture_flush(&f, 0);
    fixture_reopen(&f);
    assert_value(f.sw, "k", "new");
    fixture_deinit(&f);
}

static void test_the_sweeper_finds_what_nobody_asks_for(void **state)
{
    struct fixture f;
    struct store_stats stats;
    char key[32];
    (void)state;
    fixture_init(&f, 1);
    uint64_t soon_ms = clock_unix_ms() + 20;
    for (int i = 0; i < 500; i++) {
        snprintf(key, sizeof key, "k:%d", i);
        assert_int_equal(put(f.sw, text(key), text("v"), i % 2 ? soon_ms : 0), STORE_OK);
    }
    while (clock_unix_ms() <= soon_ms)
        ;
    for (uint64_t until_ms = soon_ms + 20000; clock_unix_ms() < until_ms;) {
        store_turn_begin(f.sw);
        store_background(f.sw, 64, NULL);
        store_turn_end(f.sw);
        fixture_flush(&f, 0);
        store_stats_get(f.store, &stats);
        if (stats.keys_expired == 250 && stats.tombstones == 0)
            break;
    }
    assert_int_equal(stats.keys_expired, 250);
    assert_int_equal(stats.tombstones, 0);
    assert_int_equal(stats.keys_expiring, 0);
    assert_int_equal(count(f.sw), 250);
    fixture_deinit(&f);
}

static void test_a_full_disk_refuses_and_recovers(void **state)
{
    struct fixture f;
    char key[32], value[4000] = {1};
    (void)state;
    fixture_init(&f, 1);
    f.sim->capacity = 3 << 20;
    enum store_result r = STORE_OK;
    int stored = 0;
    for (int i = 0; i < 4000 && r != STORE_NO_SPACE; i++) {
        snprintf(key, sizeof key, "k:%d", stored);
        r = put(f.sw, text(key), slice_make(value, sizeof value), 0);
        stored += r == STORE_OK;
        fixture_flush(&f, 0);
    }
    assert_int_equal(r, STORE_NO_SPACE);
    assert_true(stored > 100);
    assert_int_equal(count(f.sw), stored); /* reading goes on, the refused one has left no trace */
    assert_absent(f.sw, key);
    assert_int_equal(put(f.sw, text("k:0"), (struct slice){0}, 0), STORE_OK); /* so do deletes */
    f.sim->capacity = 0;
    fixture_flush(&f, 0);
    for (int i = 0; i < 3 && r != STORE_OK; i++) {
        fixture_flush(&f, 0);
        r = put(f.sw, text(key), slice_make(value, sizeof value), 0);
    }
    assert_int_equal(r, STORE_OK);
    fixture_reopen(&f);
    assert_int_equal(count(f.sw), stored);
    assert_absent(f.sw, "k:0");
    fixture_deinit(&f);
}

static void test_a_failed_flush_ends_all_writing(void **state)
{
    struct fixture f;
    uint64_t removed;
    (void)state;
    fixture_init(&f, 1);
    assert_int_equal(put(f.sw, text("kept"), text("v"), 0), STORE_OK);
    fixture_flush(&f, 0);
    assert_int_equal(put(f.sw, text("lost"), text("v"), 0), STORE_OK);
    fixture_flush(&f, -EIO);
    assert_false(is_durable(&f));
    assert_non_null(log_failed(store_log(f.store)));
    assert_int_equal(put(f.sw, text("k"), text("v"), 0), STORE_DEAD);
    assert_int_equal(put(f.sw, text("kept"), (struct slice){0}, 0), STORE_DEAD);
    store_turn_begin(f.sw);
    assert_int_equal(store_delete_tree(f.sw, text("kept"), &removed), STORE_DEAD);
    store_turn_end(f.sw);
    assert_value(f.sw, "kept", "v");
    fixture_deinit(&f);
}

static void test_the_memory_cap(void **state)
{
    struct fixture f;
    struct store_stats stats;
    char key[32], *value = calloc(1, 100000);
    int stored = 0;
    (void)state;
    fixture_init(&f, 1);
    f.store->config.durability = STORE_NONE; /* no log, so that values have nowhere to go */
    store_stats_get(f.store, &stats);
    store_memory_max_set(f.store, stats.memory_index_bytes + (8 << 20));
    enum store_result r = STORE_OK;
    for (; r == STORE_OK && stored < 1000; stored += r == STORE_OK) {
        snprintf(key, sizeof key, "k:%d", stored);
        r = put(f.sw, text(key), slice_make(value, 100000), 0);
        fixture_flush(&f, 0);
    }
    assert_int_equal(r, STORE_NO_MEMORY);
    assert_true(stored > 10);
    assert_absent(f.sw, key);
    for (int i = 0; i < stored; i++) { /* deletes are never refused, and make room */
        snprintf(key, sizeof key, "k:%d", i);
        assert_int_equal(put(f.sw, text(key), (struct slice){0}, 0), STORE_OK);
        fixture_flush(&f, 0);
        store_turn_begin(f.sw);
        store_background(f.sw, 100, NULL);
        store_turn_end(f.sw);
    }
    assert_int_equal(put(f.sw, text("again"), slice_make(value, 100000), 0), STORE_OK);
    free(value);
    fixture_deinit(&f);
}

static void test_the_end_of_the_address_space(void **state)
{
    struct fixture f;
    char key[32];
    int stored = 0;
    (void)state;
    fixture_init(&f, 1);
    uint64_t reserved = f.store->arena.reserved_bytes;
    f.store->arena.reserved_bytes = f.store->arena.used_bytes + STORE_ARENA_KEPT_BYTES + (4 << 20);
    enum store_result r = STORE_OK;
    for (; r == STORE_OK && stored < 200000; stored += r == STORE_OK) {
        snprintf(key, sizeof key, "k:%d", stored);
        r = put(f.sw, text(key), text("some value that lies in the node"), 0);
        if (stored % 1000 == 0)
            fixture_flush(&f, 0);
    }
    assert_int_equal(r, STORE_NO_MEMORY);
    assert_true(stored > 10000);
    assert_absent(f.sw, key);
    assert_int_equal(put(f.sw, text("k:0"), (struct slice){0}, 0), STORE_OK);
    assert_int_equal(count(f.sw), stored - 1);
    f.store->arena.reserved_bytes = reserved;
    assert_int_equal(put(f.sw, text(key), text("v"), 0), STORE_OK);
    fixture_flush(&f, 0);
    fixture_deinit(&f);
}

static void test_a_locked_key_is_busy_and_nothing_happens(void **state)
{
    struct fixture f;
    struct store_entry held, other[2];
    (void)state;
    fixture_init(&f, 2);
    struct store_worker *second = store_worker_get(f.store, 1);
    assert_int_equal(put(f.sw, text("a"), text("1"), 0), STORE_OK);
    store_turn_begin(f.sw);
    store_key_prepare(f.sw, &held.key, text("a"));
    assert_int_equal(store_write_begin(f.sw, &held, 1, 0), STORE_OK);

    uint64_t removed = 99;
    store_turn_begin(second);
    store_key_prepare(second, &other[0].key, text("b"));
    store_key_prepare(second, &other[1].key, text("a"));
    assert_int_equal(store_write_begin(second, other, 2, 0), STORE_BUSY);
    assert_int_equal(store_delete_tree(second, text("a"), &removed), STORE_BUSY);
    assert_int_equal(store_snapshot_begin(second, NULL, 0, 0), STORE_BUSY);
    assert_int_equal(store_snapshot_begin(second, NULL, 0, 9), STORE_BUSY);
    store_turn_end(second);
    assert_value(second, "a", "1"); /* reading never waits for a lock */

    store_write_abort(f.sw);
    store_turn_end(f.sw);
    store_turn_begin(second);
    assert_int_equal(store_write_begin(second, other, 2, 0), STORE_OK);
    store_stage_set(second, other, 0, text("2"), 0);
    store_stage_delete(other, 1);
    assert_int_equal(store_write_commit(second), STORE_OK);
    store_turn_end(second);
    assert_value(f.sw, "b", "2");
    assert_absent(f.sw, "a");
    fixture_deinit(&f);
}

static void test_a_snapshot_notices_a_write(void **state)
{
    struct fixture f;
    struct store_key keys[2];
    (void)state;
    fixture_init(&f, 2);
    struct store_worker *second = store_worker_get(f.store, 1);
    store_turn_begin(f.sw);
    store_key_prepare(f.sw, &keys[0], text("a"));
    store_key_prepare(f.sw, &keys[1], text("b"));
    assert_int_equal(store_snapshot_begin(f.sw, keys, 2, 0), STORE_OK);
    assert_true(store_snapshot_end(f.sw));
    assert_int_equal(store_snapshot_begin(f.sw, keys, 2, 0), STORE_OK);
    assert_int_equal(put(second, text("b"), text("new"), 0), STORE_OK);
    assert_false(store_snapshot_end(f.sw));
    assert_int_equal(store_snapshot_begin(f.sw, keys, 2, 9), STORE_OK); /* locks */
    assert_int_equal(put(second, text("b"), text("newer"), 0), STORE_BUSY);
    assert_true(store_snapshot_end(f.sw));
    assert_int_equal(put(second, text("b"), text("newer"), 0), STORE_OK);
    store_turn_end(f.sw);
    fixture_deinit(&f);
}

static void test_repeated_keys_see_each_other(void **state)
{
    struct fixture f;
    struct store_entry e[3];
    (void)state;
    fixture_init(&f, 1);
    store_turn_begin(f.sw);
    for (int i = 0; i < 3; i++)
        store_key_prepare(f.sw, &e[i].key, text(i == 1 ? "other" : "same"));
    assert_int_equal(store_write_begin(f.sw, e, 3, 0), STORE_OK);
    store_stage_set(f.sw, e, 0, text("first"), 0);
    store_stage_set(f.sw, e, 1, text("second"), 0);
    assert_true(store_entry_live(e, 2));
    assert_memory_equal(store_entry_value(e, 2).data, "first", 5);
    store_stage_delete(e, 2);
    assert_false(store_entry_live(e, 0));
    assert_int_equal(store_write_commit(f.sw), STORE_OK);
    store_turn_end(f.sw);
    assert_absent(f.sw, "same");
    assert_value(f.sw, "other", "second");
    assert_int_equal(count(f.sw), 1);
    fixture_reopen(&f);
    assert_int_equal(count(f.sw), 1);
    fixture_deinit(&f);
}

static void test_random_keys(void **state)
{
    struct fixture f;
    char key[32];
    int seen[20] = {0};
    (void)state;
    fixture_init(&f, 1);
    store_turn_begin(f.sw);
    assert_null(store_random(f.sw, 1));
    store_turn_end(f.sw);
    for (int i = 0; i < 20; i++) {
        snprintf(key, sizeof key, "%02d", i);
        assert_int_equal(put(f.sw, text(key), text("v"), 0), STORE_OK);
    }
    store_turn_begin(f.sw);
    for (uint64_t i = 0; i < 2000; i++) {
        const struct node *node = store_random(f.sw, prng_mix(i));
        assert_non_null(node);
        const char *digits = store_node_key(node).data;
        seen[(digits[0] - '0') * 10 + digits[1] - '0']++;
    }
    store_turn_end(f.sw);
    for (int i = 0; i < 20; i++)
        assert_true(seen[i] > 0);
    fixture_deinit(&f);
}

static void test_without_a_log(void **state)
{
    struct fixture f;
    (void)state;
    fixture_init_with(&f, (struct store_config){.durability = STORE_NONE});
    assert_null(store_log(f.store));
    assert_int_equal(put(f.sw, text("k"), text("v"), 0), STORE_OK);
    assert_true(is_durable(&f)); /* never holds anything */
    assert_value(f.sw, "k", "v");
    assert_int_equal(put(f.sw, text("k"), (struct slice){0}, 0), STORE_OK);
    assert_absent(f.sw, "k");
    fixture_deinit(&f);
}

static void test_what_open_refuses(void **state)
{
    struct fixture f;
    struct store *other;
    (void)state;
    fixture_init(&f, 1);
    status_t s = store_open(&f.config, &other); /* the folder is locked */
    assert_int_equal(s.code, STATUS_BUSY);
    struct store_config none = f.config;
    none.workers = 0;
    s = store_open(&none, &other);
    assert_int_equal(s.code, STATUS_INVALID);
    none.workers = STORE_WORKERS_MAX + 1;
    s = store_open(&none, &other);
    assert_int_equal(s.code, STATUS_INVALID);
    fixture_deinit(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_write_is_answered_when_it_is_durable),
        cmocka_unit_test(test_absence_waits_for_its_delete),
        cmocka_unit_test(test_sizes_survive_a_restart),
        cmocka_unit_test(test_expiry),
        cmocka_unit_test(test_a_walk_over_an_expired_key),
        cmocka_unit_test(test_a_locked_snapshot_over_an_expired_key),
        cmocka_unit_test(test_too_many_deleted_trees),
        cmocka_unit_test(test_an_expired_key_leaves_no_expiry_to_the_next),
        cmocka_unit_test(test_the_sweeper_finds_what_nobody_asks_for),
        cmocka_unit_test(test_a_full_disk_refuses_and_recovers),
        cmocka_unit_test(test_a_failed_flush_ends_all_writing),
        cmocka_unit_test(test_the_memory_cap),
        cmocka_unit_test(test_the_end_of_the_address_space),
        cmocka_unit_test(test_a_locked_key_is_busy_and_nothing_happens),
        cmocka_unit_test(test_a_snapshot_notices_a_write),
        cmocka_unit_test(test_repeated_keys_see_each_other),
        cmocka_unit_test(test_random_keys),
        cmocka_unit_test(test_without_a_log),
        cmocka_unit_test(test_what_open_refuses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
