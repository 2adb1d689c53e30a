/* Values that are only on disk: every operation on them, every form a node can take, the memory cap. */
#include "relocate.h"
#include "store_fixture.h"

enum { LONG_KEY = 300 };

static void evict_all(struct fixture *f)
{
    struct prng prng;
    prng_seed(&prng, 1);
    fixture_flush(f, 0);
    store_turn_begin(f->sw);
    (void)cold_evict(f->sw, &prng, 256);
    store_turn_end(f->sw);
}

static uint64_t preads(struct fixture *f)
{
    struct store_fetch_stats stats;
    store_fetch_stats_get(f->store, &stats);
    return stats.preads;
}

static const char LARGE[] = "a value that is long enough to leave its node: 0123456789 0123456789 0123456789";

static void test_a_cold_value_is_read_once(void **state)
{
    struct fixture f;
    struct store_view view;
    (void)state;
    fixture_init(&f, 1);
    put_surely(&f, text("k"), text(LARGE));
    assert_false(is_cold(&f, "k", &view));
    evict_all(&f);
    assert_true(is_cold(&f, "k", &view));
    assert_int_equal(view.len, strlen(LARGE));
    assert_int_equal(view.expire_ms, 0);
    assert_int_equal(view.address, view.sequence >> 1);
    assert_int_equal(preads(&f), 0);
    assert_value(f.sw, "k", LARGE);
    assert_int_equal(preads(&f), 1);
    assert_false(is_cold(&f, "k", &view)); /* without a cap it has come back */
    store_memory_max_set(f.store, 1ull << 40);
    evict_all(&f);
    assert_value(f.sw, "k", LARGE);
    assert_true(is_cold(&f, "k", &view)); /* with one it does at the second read */
    assert_value(f.sw, "k", LARGE);
    assert_int_equal(preads(&f), 3);
    assert_false(is_cold(&f, "k", &view));
    fixture_reopen(&f); /* the log has it in any case */
    assert_value(f.sw, "k", LARGE);
    fixture_deinit(&f);
}

/* What is not durable stays in memory, whoever asks. */
static void test_only_durable_values_leave(void **state)
{
    struct fixture f;
    struct store_view view;
    struct prng prng;
    (void)state;
    prng_seed(&prng, 1);
    fixture_init(&f, 1);
    assert_int_equal(put(f.sw, text("k"), text(LARGE), 0), STORE_OK);
    store_turn_begin(f.sw);
    assert_int_equal(cold_evict(f.sw, &prng, 256), 0);
    store_turn_end(f.sw);
    assert_false(is_cold(&f, "k", &view));
    evict_all(&f);
    assert_true(is_cold(&f, "k", &view));
    fixture_deinit(&f);
}

static void set_expiry(struct fixture *f, const char *name, uint64_t expire_ms)
{
    struct store_entry entry;
    store_turn_begin(f->sw);
    store_key_prepare(f->sw, &entry.key, text(name));
    assert_int_equal(store_write_begin(f->sw, &entry, 1, 0), STORE_OK);
    assert_true(store_entry_live(&entry, 0));
    store_stage_expire(f->sw, &entry, 0, expire_ms);
    assert_int_equal(store_write_commit(f->sw), STORE_OK);
    store_turn_end(f->sw);
    fixture_flush(f, 0);
}

/* An expiry is changed without the value, which then is where it was. */
static void test_expiry_of_a_cold_key(void **state)
{
    struct fixture f;
    struct store_view view;
    (void)state;
    fixture_init(&f, 1);
    store_memory_max_set(f.store, 1ull << 40);
    put_surely(&f, text("k"), text(LARGE));
    evict_all(&f);
    assert_true(is_cold(&f, "k", &view));
    uint64_t address = view.address, later = 1ull << 45;
    set_expiry(&f, "k", later);
    assert_true(is_cold(&f, "k", &view));
    assert_int_equal(view.expire_ms, later);
    assert_int_equal(view.address, address);
    assert_true(view.sequence >> 1 > address);
    assert_int_equal(preads(&f), 0);
    assert_value(f.sw, "k", LARGE);
    assert_value(f.sw, "k", LARGE); /* now it is in memory, with its address */
    assert_false(is_cold(&f, "k", &view));
    set_expiry(&f, "k", later + 1);
    evict_all(&f);
    assert_true(is_cold(&f, "k", &view));
    assert_int_equal(view.address, address);
    assert_int_equal(view.expire_ms, later + 1);
    set_expiry(&f, "k", 0);
    assert_value(f.sw, "k", LARGE);
    fixture_reopen(&f);
    assert_value(f.sw, "k", LARGE);
    assert_int_equal(count_expiring(f.store), 0);
    fixture_deinit(&f);
}

static void test_writes_to_cold_keys(void **state)
{
    struct fixture f;
    struct store_entry entry;
    struct store_view view;
    (void)state;
    fixture_init(&f, 1);
    put_surely(&f, text("set"), text(LARGE));
    put_surely(&f, text("del"), text(LARGE));
    put_surely(&f, text("look"), text(LARGE));
    put_surely(&f, text("t/1"), text(LARGE));
    evict_all(&f);
    put_surely(&f, text("set"), text("short"));
    assert_value(f.sw, "set", "short");
    put_surely(&f, text("del"), (struct slice){0});
    assert_absent(f.sw, "del");
    put_surely(&f, text("del"), text(LARGE));
    assert_value(f.sw, "del", LARGE);
    store_turn_begin(f.sw);
    store_key_prepare(f.sw, &entry.key, text("look"));
    assert_int_equal(store_write_begin(f.sw, &entry, 1, 0), STORE_OK);
    assert_true(store_entry_live(&entry, 0) && store_entry_cold(&entry, 0));
    assert_int_equal(store_entry_value(&entry, 0).len, strlen(LARGE));
    assert_null(store_entry_value(&entry, 0).data);
    store_stage_set(f.sw, &entry, 0, text("x"), 0);
    assert_false(store_entry_cold(&entry, 0));
    store_write_abort(f.sw);
    uint64_t removed;
    assert_int_equal(store_delete_tree(f.sw, text("t"), &removed), STORE_OK);
    assert_int_equal(removed, 1);
    store_turn_end(f.sw);
    fixture_flush(&f, 0);
    assert_absent(f.sw, "t/1");
    assert_true(is_cold(&f, "look", &view));
    assert_int_equal(count(f.sw), 3);
    fixture_reopen(&f);
    assert_value(f.sw, "set", "short");
    assert_absent(f.sw, "t/1");
    fixture_deinit(&f);
}

/* While a deleted tree is cleared away, values leave as ever: but not its own, which only clearing away may
 * touch. */
static void test_values_leave_beside_a_deleted_tree(void **state)
{
    struct fixture f;
    struct store_view view;
    uint64_t removed;
    (void)state;
    fixture_init(&f, 1);
    put_surely(&f, text("k"), text(LARGE));
    put_surely(&f, text("t/1"), text(LARGE));
    put_surely(&f, text("t/2"), text(LARGE));
    store_turn_begin(f.sw);
    assert_int_equal(store_delete_tree(f.sw, text("t"), &removed), STORE_OK);
    store_turn_end(f.sw);
    put_surely(&f, text("t/2"), text(LARGE)); /* newer than the tree */
    evict_all(&f);
    assert_true(is_cold(&f, "k", &view));
    assert_true(is_cold(&f, "t/2", &view));
    assert_absent(f.sw, "t/1");
    store_turn_begin(f.sw);
    (void)store_background(f.sw, 1000, NULL);
    store_turn_end(f.sw);
    assert_absent(f.sw, "t/1");
    assert_int_equal(count(f.sw), 2);
    assert_value(f.sw, "t/2", LARGE);
    fixture_deinit(&f);
}

/* Every form becomes every other, at the borders of the size classes: values of a..b bytes, with and without
 * expiry, in memory and not. */
static void test_every_form(void **state)
{
    static const uint32_t lengths[] = {0,  1,  7,   8,   9,   15,  16,  17,  40,  47,  48,
                                       49, 63, 111, 112, 113, 500, 983, 984, 985, 2000};
    enum { LENGTHS = sizeof lengths / sizeof lengths[0] };
    static const unsigned key_lens[] = {1, 8, 9, 16, LONG_KEY};
    struct fixture f;
    struct prng prng;
    char key[LONG_KEY + 1], value[2001];
    (void)state;
    fixture_init(&f, 1);
    prng_seed(&prng, 5);
    memset(key, 'k', sizeof key);
    for (unsigned k = 0; k < 5; k++) {
        for (unsigned n = 0; n < 2000; n++) {
            uint32_t len = lengths[prng_below(&prng, LENGTHS)];
            memset(value, 'a' + (int)(n % 26), len);
            value[len] = '\0';
            key[key_lens[k]] = '\0';
            put_surely(&f, text(key), text(value));
            if (prng_below(&prng, 3) == 0)
                set_expiry(&f, key, (1ull << 45) + n);
            if (prng_below(&prng, 3) == 0)
                evict_all(&f);
            if (prng_below(&prng, 3) == 0)
                set_expiry(&f, key, prng_below(&prng, 2) ? (1ull << 45) + n : 0);
            for (uint64_t times = prng_below(&prng, 4); times > 0; times--)
                assert_value(f.sw, key, value);
            key[key_lens[k]] = 'k';
        }
    }
    fixture_deinit(&f);
}

static bool is_touched(struct fixture *f, const char *name)
{
    struct store_key key;
    store_turn_begin(f->sw);
    store_key_prepare(f->sw, &key, text(name));
    bool touched = node_meta(hash_table_find(&f->store->hash, key.hash, key.name)) & NODE_TOUCHED;
    store_turn_end(f->sw);
    return touched;
}

/* Who looks for keys, or for expired ones, does not want the values: they may leave as before. */
static void test_walks_touch_nothing(void **state)
{
    struct fixture f;
    struct store_view view;
    struct store_cursor cursor;
    (void)state;
    fixture_init(&f, 1);
    store_memory_max_set(f.store, 1ull << 40);
    assert_int_equal(put(f.sw, text("a"), text(LARGE), 1ull << 45), STORE_OK);
    assert_int_equal(put(f.sw, text("b"), text(LARGE), 1ull << 45), STORE_OK);
    store_turn_begin(f.sw);
    store_cursor_seek(&cursor, f.sw, text(""), false);
    unsigned keys = 0;
    while (store_cursor_next(&cursor))
        keys++;
    assert_int_equal(keys, 2);
    f.store->sweep_next_ms = 0;
    (void)store_background(f.sw, 16, NULL);
    assert_true(f.store->sweep_next_ms > 0);
    store_turn_end(f.sw);
    assert_false(is_touched(&f, "a"));
    assert_false(is_cold(&f, "b", &view)); /* a read */
    assert_false(is_touched(&f, "a"));
    assert_true(is_touched(&f, "b"));
    fixture_deinit(&f);
}

static struct node *node_of(struct fixture *f, const char *name)
{
    struct store_key key;
    store_key_prepare(f->sw, &key, text(name));
    return hash_table_find(&f->store->hash, key.hash, key.name);
}

static enum payload_moved relocate(struct fixture *f, const char *name, uint64_t from, uint64_t to)
{
    struct store_key key;
    store_turn_begin(f->sw);
    store_key_prepare(f->sw, &key, text(name));
    struct node *node = hash_table_find(&f->store->hash, key.hash, key.name);
    enum payload_moved r = payload_relocate(f->store, f->sw->private, node, key.hash, from, to, 0);
    store_turn_end(f->sw);
    return r;
}

/* A value that moves keeps everything but its place, in memory or not. */
static void test_relocation(void **state)
{
    struct fixture f;
    struct store_view view;
    struct data_segment *d;
    struct segment_file *file;
    uint64_t to, removed, later = 1ull << 45;
    (void)state;
    fixture_init(&f, 1);
    store_memory_max_set(f.store, 1ull << 40); /* values come back at their second read only */
    put_surely(&f, text("k"), text(LARGE));
    put_surely(&f, text("t/1"), text(LARGE));
    set_expiry(&f, "k", later);
    evict_all(&f);
    assert_true(is_cold(&f, "t/1", &view));
    uint64_t tree = view.address;
    assert_true(is_cold(&f, "k", &view));
    uint64_t from = view.address, version = view.sequence >> 1;
    const struct segment_folder folder = {&f.sim->disk, f.store->keeper.folder, "sim", f.store->segments};
    status_t s = data_segment_begin(&folder, 1, 4096, SEGMENT_PIECE_BYTES, &d);
    assert_true(status_is_ok(&s));
    s = data_segment_add(d, text("k"), text(LARGE), version, later, &to);
    assert_true(status_is_ok(&s));
    s = data_segment_finish(d, &file);
    assert_true(status_is_ok(&s));
    assert_int_equal(relocate(&f, "k", version, to), PAYLOAD_ELSEWHERE);
    assert_int_equal(relocate(&f, "k", from, to), PAYLOAD_MOVED);
    assert_int_equal(relocate(&f, "k", from, to), PAYLOAD_ELSEWHERE);
    assert_true(is_cold(&f, "k", &view));
    assert_int_equal(view.address, to);
    assert_int_equal(view.expire_ms, later);
    assert_int_equal(view.sequence >> 1, version);
    assert_value(f.sw, "k", LARGE); /* from there */
    assert_int_equal(preads(&f), 1);
    set_expiry(&f, "k", later + 1);
    evict_all(&f);
    assert_true(is_cold(&f, "k", &view));
    assert_int_equal(view.address, to);
    store_turn_begin(f.sw);
    assert_int_equal(store_delete_tree(f.sw, text("t"), &removed), STORE_OK);
    store_turn_end(f.sw);
    assert_int_equal(relocate(&f, "t/1", tree, to), PAYLOAD_ELSEWHERE); /* it has been deleted */
    assert_int_equal(relocate(&f, "k", to, from), PAYLOAD_MOVED);       /* not covered */
    fixture_flush(&f, 0);
    background(&f);
    assert_int_equal(put(f.sw, text("k"), (struct slice){0}, 0), STORE_OK);
    assert_int_equal(relocate(&f, "k", version, to), PAYLOAD_ELSEWHERE);
    put_surely(&f, text("k"), text(LARGE));
    assert_false(is_cold(&f, "k", &view));
    from = view.sequence >> 1;
    assert_int_equal(relocate(&f, "k", from, to), PAYLOAD_MOVED); /* it stays in memory */
    assert_false(is_cold(&f, "k", &view));
    evict_all(&f);
    assert_true(is_cold(&f, "k", &view));
    assert_int_equal(view.address, to);
    assert_value(f.sw, "k", LARGE);
    fixture_deinit(&f);
}

/* Once its node says where it is, the next move changes that alone: no other node, nothing to free. */
static void test_a_second_move_is_in_place(void **state)
{
    struct fixture f;
    struct store_view view;
    (void)state;
    for (int expires = 0; expires < 2; expires++) {
        fixture_init(&f, 1);
        put_surely(&f, text("k"), text(LARGE));
        if (expires)
            set_expiry(&f, "k", 1ull << 45);
        evict_all(&f);
        assert_true(is_cold(&f, "k", &view));
        uint64_t from = view.address, version = view.sequence >> 1;
        struct node *nodes[4];
        for (uint64_t i = 0; i < 4; i++) {
            uint64_t to = from + 8 * (i + 1);
            assert_int_equal(relocate(&f, "k", from + 8 * i, to), PAYLOAD_MOVED);
            assert_true(is_cold(&f, "k", &view));
            assert_int_equal(view.address, to);
            assert_int_equal(view.sequence >> 1, version);
            assert_int_equal(view.expire_ms, expires ? 1ull << 45 : 0);
            nodes[i] = node_of(&f, "k");
        }
        for (int i = 1; i < 4; i++)
            assert_ptr_equal(nodes[0], nodes[i]);
        assert_int_equal(relocate(&f, "k", from + 32, from), PAYLOAD_MOVED);
        assert_value(f.sw, "k", LARGE);
        fixture_deinit(&f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_cold_value_is_read_once),
        cmocka_unit_test(test_only_durable_values_leave),
        cmocka_unit_test(test_expiry_of_a_cold_key),
        cmocka_unit_test(test_writes_to_cold_keys),
        cmocka_unit_test(test_values_leave_beside_a_deleted_tree),
        cmocka_unit_test(test_every_form),
        cmocka_unit_test(test_relocation),
        cmocka_unit_test(test_a_second_move_is_in_place),
        cmocka_unit_test(test_walks_touch_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
