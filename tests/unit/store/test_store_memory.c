/* The memory cap: which values leave, which writes are refused, what the queues take. */
#include "store_fixture.h"

/* A store of one worker with that cap from its start. */
static void capped_init(struct fixture *f, uint64_t cap_bytes)
{
    fixture_init_with(f, (struct store_config){.memory_bytes_max = cap_bytes,
                                               .log_segment_bytes_max = 8 << 20,
                                               .no_threads = true});
}

static void assert_within(struct fixture *f, uint64_t cap_bytes)
{
    struct store_stats stats;
    store_stats_get(f->store, &stats);
    assert_true(stats.memory_index_bytes + stats.memory_value_bytes <= cap_bytes);
}

/* The key prefix:i gets len bytes of the value. */
static void put_numbered(struct fixture *f, const char *prefix, int i, const char *value, size_t len)
{
    char name[32];
    snprintf(name, sizeof name, "%s:%d", prefix, i);
    put_surely(f, text(name), slice_make(value, len));
}

/* How many of the keys prefix:from .. prefix:to-1 have their value only on disk. */
static unsigned count_cold(struct fixture *f, const char *prefix, int from, int to)
{
    struct store_view view;
    char name[32];
    unsigned cold = 0;
    for (int i = from; i < to; i++) {
        snprintf(name, sizeof name, "%s:%d", prefix, i);
        cold += is_cold(f, name, &view);
    }
    return cold;
}

/* With a cap: values leave by themselves, those that are read stay longer, all are there. */
static void test_the_cap_evicts(void **state)
{
    enum { KEYS = 400, BYTES = 50000, CAP = 8 << 20 };
    struct fixture f;
    struct store_view view;
    char name[32], *value = calloc(1, BYTES + 1);
    (void)state;
    capped_init(&f, CAP);
    for (int i = 0; i < KEYS; i++) {
        memset(value, 'a' + i % 26, BYTES);
        put_numbered(&f, "k", i, value, BYTES);
        assert_false(is_cold(&f, "k:0", &view)); /* touched again and again */
        assert_within(&f, CAP);
    }
    assert_in_range(count_cold(&f, "k", 0, KEYS), KEYS - CAP / BYTES, KEYS - 1);
    fixture_reopen(&f); /* replay too keeps within the cap */
    assert_within(&f, CAP);
    for (int i = 0; i < KEYS; i++) {
        memset(value, 'a' + i % 26, BYTES);
        snprintf(name, sizeof name, "k:%d", i);
        assert_value(f.sw, name, value);
    }
    assert_within(&f, CAP);
    free(value);
    fixture_deinit(&f);
}

/* Many small values that need not leave stand in nobody's way when a few large ones must. */
static void test_large_values_leave_beside_small_ones(void **state)
{
    enum { SMALL = 20000, LARGE_ONES = 200, BYTES = 50000, CAP = 8 << 20 };
    struct fixture f;
    char *value = calloc(1, BYTES);
    (void)state;
    capped_init(&f, CAP);
    for (int i = 0; i < SMALL; i++) {
        put_numbered(&f, "s", i, value, 150);
    }
    for (int i = 0; i < LARGE_ONES; i++) { /* they become large in place */
        put_numbered(&f, "l", i, value, 100);
    }
    for (int i = 0; i < SMALL / 2; i++) { /* so there is room in the arena: the others can stay */
        put_numbered(&f, "s", i, NULL, 0);
    }
    background(&f);
    for (int i = 0; i < LARGE_ONES; i++) {
        put_numbered(&f, "l", i, value, BYTES);
        assert_within(&f, CAP);
    }
    assert_true(count_cold(&f, "s", SMALL / 2, SMALL) < SMALL / 4);
    free(value);
    fixture_deinit(&f);
}

/* The index alone is too large: new keys are refused; overwrites, deletes and reads go on. */
static void test_the_index_does_not_fit(void **state)
{
    struct fixture f;
    char name[64];
    int stored = 0;
    (void)state;
    fixture_init(&f, 1);
    store_memory_max_set(f.store, 6 << 20);
    enum store_result r = STORE_OK;
    for (; r == STORE_OK && stored < 200000; stored += r == STORE_OK) {
        snprintf(name, sizeof name, "a key of some length, number %d", stored);
        r = put(f.sw, text(name), text("v"), 0);
        if (stored % 1000 == 0)
            fixture_flush(&f, 0);
        if (r == STORE_BUSY) {
            fixture_flush(&f, 0);
            r = put(f.sw, text(name), text("v"), 0);
        }
    }
    assert_int_equal(r, STORE_NO_MEMORY);
    assert_true(stored > 10000);
    put_surely(&f, text("a key of some length, number 0"), text("other"));
    assert_value(f.sw, "a key of some length, number 0", "other");
    for (int i = 1; i < stored / 2; i++) {
        snprintf(name, sizeof name, "a key of some length, number %d", i);
        put_surely(&f, text(name), (struct slice){0});
    }
    for (int turns = 0; turns < 1000; turns++) {
        store_turn_begin(f.sw);
        (void)store_background(f.sw, 1000, NULL);
        store_turn_end(f.sw);
    }
    put_surely(&f, text("new"), text("v"));
    fixture_deinit(&f);
}

/* Keys are refused early enough for all to get an expiry: their nodes grow by that. */
static void fill_and_expire(const char *format)
{
    struct fixture f;
    char name[64];
    int stored = 0;
    fixture_init(&f, 1);
    store_memory_max_set(f.store, 8 << 20);
    enum store_result r = STORE_OK;
    for (int tries = 0; r != STORE_NO_MEMORY && tries < 400000; tries++) {
        snprintf(name, sizeof name, format, stored);
        r = put(f.sw, text(name), text(""), 0);
        stored += r == STORE_OK;
        if (r != STORE_OK || stored % 1000 == 0)
            fixture_flush(&f, 0);
    }
    assert_int_equal(r, STORE_NO_MEMORY);
    assert_true(stored > 10000);
    for (int i = 0; i < stored; i++) {
        snprintf(name, sizeof name, format, i);
        for (r = STORE_BUSY; r == STORE_BUSY; fixture_flush(&f, 0))
            r = put(f.sw, text(name), text(""), 1ull << 50);
        assert_int_equal(r, STORE_OK);
    }
    struct memory_use use = memory_use(f.store);
    assert_in_range(memory_bare_bytes(&use), 1, use.budget_bytes);
    fixture_deinit(&f);
}

static void test_a_full_index_gets_expiries(void **state)
{
    (void)state;
    fill_and_expire("k%07d");
    fill_and_expire("k%015d");
    fill_and_expire("k%019d");
}

/* In a replay a key's first value may come to memory and its second stay on disk: then the node has no more
 * than it needs without one, for it never leaves. */
static void test_a_node_without_its_value_wastes_nothing(void **state)
{
    struct fixture f;
    char value[64] = {0};
    (void)state;
    capped_init(&f, 8 << 20);
    struct store_worker_private *p = f.sw->private;
    for (unsigned expires = 0; expires < 2; expires++) {
        struct slice name = text(expires ? "key of 16 bytes2" : "key of 16 bytes1");
        uint64_t hash = hash_table_hash(&f.store->hash, name);
        put_surely(&f, name, slice_make(value, sizeof value));
        store_turn_begin(f.sw);
        struct node *node = hash_table_find(&f.store->hash, hash, name);
        assert_in_range(arena_class_bytes(node_class(node_meta(node))), 32 + sizeof value, 1024);
        uint64_t lsn = payload_get(node).address + 8;
        node_begin(node);
        node = payload_set_cold(f.store, p, node, hash, sizeof value, expires ? 1ull << 50 : 0, lsn);
        node_publish(node, lsn);
        assert_ptr_equal(hash_table_find(&f.store->hash, hash, name), node);
        assert_true(node_meta(node) & NODE_COLD);
        assert_in_range(arena_class_bytes(node_class(node_meta(node))), 32, 48);
        store_turn_end(f.sw);
    }
    fixture_deinit(&f);
}

/* A start with less than the index needs says what it needs. */
static void test_a_start_with_too_little(void **state)
{
    struct fixture f;
    char name[64];
    (void)state;
    fixture_init(&f, 1);
    for (int i = 0; i < 100000; i++) {
        snprintf(name, sizeof name, "a key of some length, number %d", i);
        if (put(f.sw, text(name), text("v"), 0) == STORE_BUSY)
            i--;
        if (i % 100 == 0)
            fixture_flush(&f, 0);
    }
    fixture_flush(&f, 0);
    store_close(f.store);
    sim_disk_restart(f.sim);
    f.config.memory_bytes_max = 4 << 20;
    f.store = NULL;
    status_t s = store_open(&f.config, &f.store);
    assert_int_equal(s.code, STATUS_INVALID);
    assert_non_null(strstr(s.text, "--memory 4 MiB is too little"));
    f.config.memory_bytes_max = 64 << 20;
    fixture_open(&f);
    assert_int_equal(count(f.sw), 100000);
    fixture_deinit(&f);
}

/* A cap that is set later finds the values that were there before. */
static void test_a_cap_set_later(void **state)
{
    enum { KEYS = 100, BYTES = 50000 };
    struct fixture f;
    char *value = calloc(1, BYTES);
    (void)state;
    fixture_init(&f, 1);
    for (int i = 0; i < KEYS; i++) {
        put_numbered(&f, "k", i, value, BYTES);
    }
    store_memory_max_set(f.store, 4 << 20);
    background(&f);
    assert_in_range(count_cold(&f, "k", 0, KEYS), KEYS / 3, KEYS);
    free(value);
    fixture_deinit(&f);
}

/* Keys that are deleted and set over and over leave no more behind than there are keys; and every value can
 * still leave. With turns: the deleted nodes go in between, so others come in their places. */
static struct store_stats stats_of(struct fixture *f)
{
    struct store_stats stats;
    store_stats_get(f->store, &stats);
    return stats;
}

/* What values leave behind comes back when the epoch moves on. Until then others stay, instead of leaving for
 * nodes in fresh memory. */
static void test_values_wait_for_what_others_left(void **state)
{
    enum { KEYS = 80000, BYTES = 150 };
    struct fixture f;
    char value[BYTES] = {0};
    (void)state;
    fixture_init_with(&f, (struct store_config){.workers = 2,
                                                .memory_bytes_max = 64 << 20,
                                                .log_segment_bytes_max = 8 << 20,
                                                .no_threads = true});
    for (int i = 0; i < KEYS; i++) {
        put_numbered(&f, "k", i, value, BYTES);
    }
    struct store_worker *other = store_worker_get(f.store, 1);
    store_turn_begin(other); /* a reader who does not go on */
    uint64_t before = stats_of(&f).memory_index_bytes;
    store_memory_max_set(f.store, 8 << 20);
    background(&f);
    uint64_t evicted = stats_of(&f).values_evicted;
    assert_in_range(evicted, 1, KEYS - KEYS / 8);
    assert_int_equal(stats_of(&f).memory_index_bytes, before);
    store_turn_end(other);
    for (int turns = 0; turns < 1000; turns++)
        background(&f);
    assert_in_range(stats_of(&f).values_evicted, evicted + KEYS / 16, KEYS);
    assert_int_equal(stats_of(&f).memory_index_bytes, before);
    fixture_deinit(&f);
}

static void set_and_delete_again(bool turns)
{
    enum { KEYS = 2000, ROUNDS = 30, CHUNK = 8191, BYTES = 300, TURN = 51 };
    struct fixture f;
    char value[BYTES] = {0};
    fixture_init(&f, 1);
    store_memory_max_set(f.store, 1ull << 40);
    const struct resident_queue *queues = f.sw->private->residents;
    for (int i = 0; i < KEYS * ROUNDS; i++) {
        int key = i % KEYS / 2 * (i % 2); /* k:0 each second time */
        size_t len = i % 3 ? BYTES : 50;  /* outside of its node, or inside */
        put_numbered(&f, "k", key, NULL, 0);
        if (turns && i % TURN == 0)
            background(&f);
        put_numbered(&f, "k", key, value, len);
        assert_true(queues[RESIDENT_INTERNAL].count <= 2 * KEYS + CHUNK + 16);
        assert_true(queues[RESIDENT_EXTERNAL].count <= 2 * KEYS + CHUNK + 16);
    }
    background(&f);
    assert_null(queues[RESIDENT_INTERNAL].seen); /* a pass ends by itself */
    assert_null(queues[RESIDENT_EXTERNAL].seen);
    store_memory_max_set(f.store, 1 << 12); /* less than the index alone: all must leave */
    for (int i = 0; i < 10; i++) {
        store_turn_begin(f.sw);
        (void)store_background(f.sw, 100000, NULL);
        store_turn_end(f.sw);
    }
    assert_int_equal(count_cold(&f, "k", 0, KEYS / 2), KEYS / 2);
    fixture_deinit(&f);
}

static void test_set_and_delete_again(void **state)
{
    (void)state;
    set_and_delete_again(false);
    set_and_delete_again(true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_cap_evicts),
        cmocka_unit_test(test_large_values_leave_beside_small_ones),
        cmocka_unit_test(test_the_index_does_not_fit),
        cmocka_unit_test(test_a_full_index_gets_expiries),
        cmocka_unit_test(test_a_node_without_its_value_wastes_nothing),
        cmocka_unit_test(test_a_start_with_too_little),
        cmocka_unit_test(test_a_cap_set_later),
        cmocka_unit_test(test_values_wait_for_what_others_left),
        cmocka_unit_test(test_set_and_delete_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
