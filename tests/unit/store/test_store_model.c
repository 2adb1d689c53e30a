/* A million random operations against a plain array of what should be there, with restarts in between, while
 * values leave memory, come back, and move to data segments. */
#include "live_weights.h"
#include "part.h"
#include "relocate.h"
#include "store_fixture.h"

enum {
    OPERATIONS = 1000000 / PART,
    UNIVERSE = 3000,
    RESTART_EVERY = OPERATIONS / 5,
    FLUSH_EVERY = 50,
    EVICT_EVERY = 5000,
    NAME_BYTES = 40,
    VALUE_BYTES_MAX = 3000
};

struct model {
    struct fixture f;
    struct prng prng;
    char names[UNIVERSE][NAME_BYTES]; /* ascending */
    uint32_t ids[UNIVERSE];           /* of the value; 0: absent */
    uint64_t live;
    uint32_t next_id;
    uint64_t evicted, relocated, data_segments;
    char value[VALUE_BYTES_MAX];
};

static int compare_names(const void *a, const void *b)
{
    return strcmp(a, b);
}

/* Paths of several depths, numbers, and prefixes of each other. */
static void make_names(struct model *m)
{
    for (int i = 0; i < UNIVERSE; i++) {
        int n = i / 3;
        if (i % 3 == 0)
            snprintf(m->names[i], NAME_BYTES, "tree/%d/leaf-%d", n / 25, n % 25);
        else if (i % 3 == 1)
            snprintf(m->names[i], NAME_BYTES, "key:%012d", n);
        else
            snprintf(m->names[i], NAME_BYTES, n % 2 ? "tree/%d" : "p%.*s", n % 2 ? n : n % 30,
                     "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa");
    }
    qsort(m->names, UNIVERSE, NAME_BYTES, compare_names);
}

static bool is_duplicate(const struct model *m, int i)
{
    return i > 0 && strcmp(m->names[i - 1], m->names[i]) == 0;
}

static int pick(struct model *m)
{
    int i;
    do
        i = (int)prng_below(&m->prng, UNIVERSE);
    while (is_duplicate(m, i));
    return i;
}

static struct slice value_of(struct model *m, uint32_t id)
{
    uint64_t r = prng_mix(id);
    uint32_t len = 4 + (uint32_t)(r >> 32) % (r % 30 == 0 ? VALUE_BYTES_MAX - 4 : 60);
    memset(m->value, (int)(id % 251), len);
    memcpy(m->value, &id, sizeof id);
    return slice_make(m->value, len);
}

static void check_one(struct model *m, int i)
{
    char *value;
    size_t len;
    enum store_result r = get(m->f.sw, text(m->names[i]), &value, &len);
    assert_int_equal(r, m->ids[i] ? STORE_OK : STORE_ABSENT);
    if (r != STORE_OK)
        return;
    struct slice wanted = value_of(m, m->ids[i]);
    assert_int_equal(len, wanted.len);
    assert_memory_equal(value, wanted.data, len);
    free(value);
}

/* Up to n live keys from the i-th name on, in either direction. */
static void check_order(struct model *m, int i, int n, bool reverse)
{
    struct store_cursor cursor;
    store_turn_begin(m->f.sw);
    store_cursor_seek(&cursor, m->f.sw, text(m->names[i]), reverse);
    int at = reverse ? i - 1 : i;
    for (; n > 0; n--) {
        while (at >= 0 && at < UNIVERSE && (m->ids[at] == 0 || is_duplicate(m, at)))
            at += reverse ? -1 : 1;
        const struct node *node = store_cursor_next(&cursor);
        if (at < 0 || at >= UNIVERSE) {
            assert_null(node);
            break;
        }
        assert_non_null(node);
        assert_true(slice_equal(store_node_key(node), text(m->names[at])));
        at += reverse ? -1 : 1;
    }
    store_turn_end(m->f.sw);
}

static void write_one(struct model *m, int i, bool delete)
{
    uint32_t id = delete ? 0 : ++m->next_id;
    struct slice value = delete ? (struct slice){0} : value_of(m, id);
    enum store_result r = put(m->f.sw, text(m->names[i]), value, 0);
    if (r == STORE_BUSY) { /* the log's buffers are full */
        fixture_flush(&m->f, 0);
        r = put(m->f.sw, text(m->names[i]), value, 0);
    }
    assert_int_equal(r, STORE_OK);
    m->live += (id != 0) - (m->ids[i] != 0);
    m->ids[i] = id;
}

static void delete_tree(struct model *m)
{
    char path[NAME_BYTES];
    uint64_t removed, expected = 0;
    snprintf(path, sizeof path, "tree/%d", (int)prng_below(&m->prng, 50));
    for (int i = 0; i < UNIVERSE; i++) {
        size_t len = strlen(path);
        if (is_duplicate(m, i) || strncmp(m->names[i], path, len) != 0 ||
            (m->names[i][len] && m->names[i][len] != '/'))
            continue;
        expected += m->ids[i] != 0;
        m->ids[i] = 0;
    }
    enum store_result r = STORE_BUSY;
    for (int turns = 0; r == STORE_BUSY && turns < 50;
         turns++) { /* earlier trees may have to be cleared away first */
        store_turn_begin(m->f.sw);
        r = store_delete_tree(m->f.sw, text(path), &removed);
        if (r == STORE_BUSY)
            (void)store_background(m->f.sw, 1000, NULL);
        store_turn_end(m->f.sw);
        if (r == STORE_BUSY)
            fixture_flush(&m->f, 0);
    }
    assert_int_equal(r, STORE_OK);
    assert_int_equal(removed, expected);
    m->live -= expected;
}

static void check_everything(struct model *m)
{
    check_order(m, 0, UNIVERSE, false);
    check_order(m, UNIVERSE - 1, UNIVERSE, true);
    for (int i = 0; i < UNIVERSE; i++)
        if (!is_duplicate(m, i))
            check_one(m, i);
    assert_int_equal(count(m->f.sw), m->live);
    assert_true(live_weights_are_exact(m->f.store));
}

static void test_random_operations(void **state)
{
    struct model *m = calloc(1, sizeof *m);
    (void)state;
    assert_non_null(m);
    fixture_init(&m->f, 1);
    prng_seed(&m->prng, 42);
    make_names(m);
    for (int n = 1; n <= OPERATIONS; n++) {
        uint64_t what = prng_below(&m->prng, 1000);
        if (what < 500)
            check_one(m, pick(m));
        else if (what < 850)
            write_one(m, pick(m), false);
        else if (what < 960)
            write_one(m, pick(m), true);
        else if (what < 962)
            delete_tree(m);
        else
            check_order(m, pick(m), 1 + (int)prng_below(&m->prng, 40), what % 2);
        if (n % FLUSH_EVERY == 0) {
            fixture_flush(&m->f, 0);
            store_turn_begin(m->f.sw);
            (void)store_background(m->f.sw, (unsigned)prng_below(&m->prng, 60), NULL);
            store_turn_end(m->f.sw);
        }
        if (n % EVICT_EVERY == 0) {
            store_turn_begin(m->f.sw);
            m->evicted += cold_evict(m->f.sw, &m->prng, (unsigned)prng_below(&m->prng, 257));
            m->relocated += relocate_some(m->f.sw, &m->prng, (unsigned)prng_below(&m->prng, 257),
                                          ++m->data_segments, m->f.store->keeper.folder);
            assert_true(live_weights_are_exact(m->f.store));
            store_turn_end(m->f.sw);
        }
        if (n % RESTART_EVERY == 0) {
            check_everything(m);
            fixture_reopen(&m->f);
            check_everything(m);
        }
    }
    assert_true(m->evicted > 10000);
    assert_true(m->relocated > 10000);
    fixture_deinit(&m->f);
    free(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_random_operations)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
