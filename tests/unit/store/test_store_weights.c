/* How much of each segment is live: counted write by write, always as a walk over the index would find it. */
#include "live_weights.h"
#include "store_fixture.h"

static int64_t live_bytes(struct fixture *f)
{
    struct store_stats stats;
    assert_true(live_weights_are_exact(f->store));
    store_stats_get(f->store, &stats);
    return (int64_t)stats.disk.live_bytes;
}

static void expire(struct fixture *f, const char *name, uint64_t expire_ms)
{
    struct store_entry entry;
    store_turn_begin(f->sw);
    store_key_prepare(f->sw, &entry.key, text(name));
    assert_int_equal(store_write_begin(f->sw, &entry, 1, 0), STORE_OK);
    store_stage_expire(f->sw, &entry, 0, expire_ms);
    assert_int_equal(store_write_commit(f->sw), STORE_OK);
    store_turn_end(f->sw);
    fixture_flush(f, 0);
}

static void settle(struct fixture *f)
{
    fixture_flush(f, 0);
    background(f);
}

static void evict_all(struct fixture *f)
{
    struct prng prng;
    prng_seed(&prng, 1);
    store_turn_begin(f->sw);
    assert_true(cold_evict(f->sw, &prng, 256) > 0);
    store_turn_end(f->sw);
}

static const char LARGE[] = "a value that is long enough to leave its node: 0123456789 0123456789 0123456789";

static void test_every_operation(void **state)
{
    struct fixture f;
    uint64_t later = 33177117420123ull, removed;
    (void)state;
    fixture_init(&f, 1);
    int64_t small = segment_weight(3, 5), large = segment_weight(3, strlen(LARGE));
    assert_int_equal(live_bytes(&f), 0);
    put_surely(&f, text("a/1"), text("value"));
    assert_int_equal(live_bytes(&f), small);
    put_surely(&f, text("a/1"), text(LARGE));
    put_surely(&f, text("a/2"), text(LARGE));
    put_surely(&f, text("b/1"), text("value"));
    assert_int_equal(live_bytes(&f), 2 * large + small);
    evict_all(&f);
    expire(&f, "a/1", later); /* cold or not, the value stays where it was */
    expire(&f, "b/1", later);
    assert_int_equal(live_bytes(&f), 2 * large + small);
    put_surely(&f, text("a/1"), text(LARGE)); /* and goes from there */
    assert_int_equal(live_bytes(&f), 2 * large + small);
    fixture_reopen(&f);
    assert_int_equal(live_bytes(&f), 2 * large + small);
    put_surely(&f, text("a/2"), text("value")); /* in another segment */
    assert_int_equal(live_bytes(&f), large + 2 * small);
    assert_int_equal(put(f.sw, text("b/1"), (struct slice){0}, 0), STORE_OK);
    assert_int_equal(live_bytes(&f), large + small);
    settle(&f);
    assert_int_equal(live_bytes(&f), large + small);
    put_surely(&f, text("b/1"), text("value"));
    store_turn_begin(f.sw);
    assert_int_equal(store_delete_tree(f.sw, text("a"), &removed), STORE_OK);
    store_turn_end(f.sw);
    assert_int_equal(live_bytes(&f), large + 2 * small); /* until it is cleared away */
    settle(&f);
    assert_int_equal(live_bytes(&f), small);
    fixture_reopen(&f);
    assert_int_equal(live_bytes(&f), small);
    expire(&f, "b/1", 1);
    assert_int_equal(live_bytes(&f), 0);
    fixture_deinit(&f);
}

static void test_dead_and_used(void **state)
{
    struct fixture f;
    struct store_stats stats;
    (void)state;
    fixture_init(&f, 1);
    for (int i = 0; i < 30000; i++)
        put_surely(&f, text("key"), text(LARGE));
    store_stats_get(f.store, &stats);
    assert_int_equal(stats.disk.live_bytes, segment_weight(3, strlen(LARGE)));
    assert_true(stats.disk.log_segments >= 3);
    assert_true(stats.disk.dead_bytes >= 1 << 20); /* of those that are full */
    assert_true(stats.disk.dead_bytes + stats.disk.live_bytes <= stats.disk.log_bytes);
    assert_int_equal(stats.disk.data_segments, 0);
    fixture_deinit(&f);
}

static void test_without_a_log_nothing_is_counted(void **state)
{
    struct fixture f;
    struct store_stats stats;
    (void)state;
    fixture_init_with(&f, (struct store_config){.durability = STORE_NONE, .no_threads = true});
    assert_int_equal(put(f.sw, text("k"), text(LARGE), 0), STORE_OK);
    assert_int_equal(put(f.sw, text("k"), text("v"), 0), STORE_OK);
    assert_int_equal(put(f.sw, text("k"), (struct slice){0}, 0), STORE_OK);
    store_stats_get(f.store, &stats);
    assert_int_equal(stats.disk.log_segments + stats.disk.live_bytes + stats.disk.log_bytes, 0);
    fixture_deinit(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_operation),
        cmocka_unit_test(test_dead_and_used),
        cmocka_unit_test(test_without_a_log_nothing_is_counted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
