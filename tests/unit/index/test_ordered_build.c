/* An ordered index that was built at once is as good as one that grew: the index's own checker, lookups and
 * ranges both ways against the sorted keys, inserts and removes afterwards. */
#include <pthread.h>

#include "base/prng.h"
#include "index/ordered_build.h"
#include "index_fixture.h"

enum { KEYS = 5001, KEY_LEN_MAX = 12, RANGES_MAX = 6, NODES_PER_FIXTURE = 500 };

static char keys[KEYS][KEY_LEN_MAX];
static size_t key_lens[KEYS];

static struct slice key_at(unsigned i)
{
    return slice_make(keys[i], key_lens[i]);
}

static int compare_keys(const void *a, const void *b)
{
    const struct slice *x = a, *y = b;
    return slice_compare(*x, *y);
}

/* Sorted, different, the empty one first; few letters, zero and 255 among them, so that many are prefixes of
 * others. */
static void make_keys(void)
{
    static char text[4 * KEYS][KEY_LEN_MAX];
    static struct slice all[4 * KEYS];
    struct prng p;
    prng_seed(&p, 3);
    for (unsigned i = 0; i < 4 * KEYS; i++) {
        size_t len = i ? 1 + prng_below(&p, KEY_LEN_MAX) : 0;
        for (size_t j = 0; j < len; j++)
            text[i][j] = "\0a\xff/"[prng_below(&p, 4)];
        all[i] = slice_make(text[i], len);
    }
    qsort(all, 4 * KEYS, sizeof all[0], compare_keys);
    unsigned n = 0;
    for (unsigned i = 0; i < 4 * KEYS && n < KEYS; i++) {
        if (n && slice_equal(key_at(n - 1), all[i]))
            continue;
        memcpy(keys[n], all[i].data, all[i].len);
        key_lens[n++] = all[i].len;
    }
    assert_int_equal(n, KEYS);
}

/* A fixture with a node for each key; refs[i] is key i's. */
struct built {
    struct index_fixture *f;
    uint32_t refs[KEYS];
};

static struct built *built_create(void)
{
    struct built *b = calloc(1, sizeof *b);
    assert_non_null(b);
    b->f = index_fixture_create(1);
    for (unsigned i = 0; i < KEYS; i++)
        b->refs[i] = arena_ref(&b->f->arena, index_fixture_node(b->f, 0, key_at(i)));
    epoch_enter(&b->f->participants[0]);
    return b;
}

static void built_destroy(struct built *b)
{
    epoch_exit(&b->f->participants[0]);
    index_fixture_destroy(b->f);
    free(b);
}

/* A fresh tree of the keys 0, step, 2 * step .. below n * step, in ranges that end at ends[]. */
static void build(struct built *b, unsigned n, unsigned step, const unsigned *ends, unsigned ranges)
{
    struct ordered_builder *builders[RANGES_MAX];
    struct arena_cache *cache = &b->f->caches[0];
    status_t s = ordered_init(&b->f->ordered, &b->f->arena, cache);
    assert_true(status_is_ok(&s));
    unsigned i = 0;
    for (unsigned r = 0; r < ranges; r++) {
        builders[r] = ordered_builder_create(cache);
        for (; i < ends[r]; i++)
            ordered_builder_add(builders[r], b->refs[i * step]);
    }
    assert_int_equal(i, n);
    s = ordered_builders_join(&b->f->ordered, cache, builders, ranges);
    assert_true(status_is_ok(&s));
    for (unsigned r = 0; r < ranges; r++)
        ordered_builder_destroy(builders[r]);
    assert_int_equal(ordered_check(&b->f->ordered), n);
}

static uint32_t next_ref(struct built *b, struct ordered_cursor *c)
{
    struct node *node = ordered_next(c);
    return node ? arena_ref(&b->f->arena, node) : 0;
}

/* The tree has the keys 0, step .. below n * step: all of them both ways, and from every stride-th key on. */
static void check_content(struct built *b, unsigned n, unsigned step, unsigned stride)
{
    struct ordered_cursor c;
    ordered_seek(&c, &b->f->ordered, SLICE_LITERAL(""), false);
    for (unsigned i = 0; i < n; i++)
        assert_int_equal(next_ref(b, &c), b->refs[i * step]);
    assert_int_equal(next_ref(b, &c), 0);
    ordered_seek(&c, &b->f->ordered, slice_make(NULL, 0), true);
    for (unsigned i = n; i > 0; i--)
        assert_int_equal(next_ref(b, &c), b->refs[(i - 1) * step]);
    assert_int_equal(next_ref(b, &c), 0);
    for (unsigned i = 0; i < KEYS; i += stride) {
        unsigned at = (i + step - 1) / step; /* of the first key >= key i in the tree */
        ordered_seek(&c, &b->f->ordered, key_at(i), false);
        assert_int_equal(next_ref(b, &c), at < n ? b->refs[at * step] : 0);
        assert_int_equal(next_ref(b, &c), at + 1 < n ? b->refs[(at + 1) * step] : 0);
        ordered_seek(&c, &b->f->ordered, key_at(i), true);
        at = at < n ? at : n;
        assert_int_equal(next_ref(b, &c), at ? b->refs[(at - 1) * step] : 0);
    }
}

static void test_every_count(void **state)
{
    (void)state;
    struct built *b = NULL;
    for (unsigned n = 0; n <= 5000; n++) {
        if (n % NODES_PER_FIXTURE == 0) {
            if (b)
                built_destroy(b);
            b = built_create();
        }
        build(b, n, 1, &n, 1);
        check_content(b, n, 1, n < 130 ? 1 : 53);
    }
    built_destroy(b);
}

/* The borders of full leaves and full inner pages, cut into ranges everywhere near them, empty ranges too. */
static void test_ranges(void **state)
{
    (void)state;
    static const unsigned counts[] = {0,   1,   2,    57,   58,   59,   60,   115,  116, 117,
                                      174, 175, 3306, 3363, 3364, 3365, 3422, 3423, 5000};
    struct prng p;
    prng_seed(&p, 4);
    struct built *b = built_create();
    for (unsigned i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        unsigned n = counts[i];
        for (unsigned cut = 0; cut <= n; cut += cut < 120 || cut + 120 > n ? 1 : 97) {
            build(b, n, 1, (unsigned[]){cut, n}, 2);
            if (cut % 19 == 0)
                check_content(b, n, 1, 31);
        }
        for (unsigned round = 0; round < 20; round++) {
            unsigned ends[RANGES_MAX] = {0}, last = 0;
            for (unsigned r = 0; r + 1 < RANGES_MAX; r++)
                ends[r] = last = last + (unsigned)(prng_below(&p, 3) ? prng_below(&p, n - last + 1) / 2 : 0);
            ends[RANGES_MAX - 1] = n;
            build(b, n, 1, ends, RANGES_MAX);
            check_content(b, n, 1, 31);
        }
    }
    built_destroy(b);
}

/* Then it lives on: the keys between are inserted, all are removed in another order. */
static void test_inserts_and_removes_afterwards(void **state)
{
    (void)state;
    static const unsigned counts[] = {0, 1, 57, 58, 59, 116, 117, 2500};
    static uint32_t order[KEYS];
    struct prng p;
    prng_seed(&p, fixture_seed());
    for (unsigned round = 0; round < sizeof counts / sizeof counts[0]; round++) {
        struct built *b = built_create();
        struct index_fixture *f = b->f;
        unsigned n = counts[round];
        build(b, n, 2, (unsigned[]){n / 3, n}, 2);
        check_content(b, n, 2, 7);
        for (unsigned i = 0; i < n; i++) {
            uint32_t leaf = 0;
            struct slice key = key_at(2 * i + 1);
            if (i % 2)
                ordered_prefetch(&f->ordered, &key, &leaf, 1);
            ordered_insert(&f->ordered, &f->caches[0], &f->participants[0], b->refs[2 * i + 1], leaf);
            if (i % 100 == 0)
                assert_int_equal(ordered_check(&f->ordered), n + i + 1);
        }
        assert_int_equal(ordered_check(&f->ordered), 2 * n);
        check_content(b, 2 * n, 1, 7);
        for (unsigned i = 0; i < 2 * n; i++) {
            unsigned j = (unsigned)prng_below(&p, i + 1);
            order[i] = order[j];
            order[j] = b->refs[i];
        }
        for (unsigned i = 0; i < 2 * n; i++) {
            ordered_remove(&f->ordered, &f->caches[0], &f->participants[0], order[i]);
            if (i % 100 == 0)
                assert_int_equal(ordered_check(&f->ordered), 2 * n - i - 1);
        }
        assert_int_equal(ordered_check(&f->ordered), 0);
        check_content(b, 0, 1, 7);
        built_destroy(b);
    }
}

/* Keys of the greatest length that share nearly everything: separators as long as keys, so inner pages of
 * few. */
static void test_longest_keys(void **state)
{
    (void)state;
    enum { COUNT = 1200, LENGTH = 65536 }; /* 21 leaves: more separators than a page could hold */
    struct index_fixture *f = index_fixture_create(1);
    struct ordered_builder *builders[2];
    static uint32_t refs[COUNT];
    char *key = malloc(LENGTH);
    assert_non_null(key);
    memset(key, 'a', LENGTH);
    for (unsigned r = 0; r < 2; r++) {
        builders[r] = ordered_builder_create(&f->caches[0]);
        for (unsigned i = r * COUNT / 2; i < (r + 1) * COUNT / 2; i++) {
            char digits[8];
            snprintf(digits, sizeof digits, "%04u", i);
            memcpy(key + LENGTH - 4, digits, 4);
            refs[i] = arena_ref(&f->arena, index_fixture_node(f, 0, slice_make(key, LENGTH)));
            ordered_builder_add(builders[r], refs[i]);
        }
    }
    status_t s = ordered_builders_join(&f->ordered, &f->caches[0], builders, 2);
    assert_true(status_is_ok(&s));
    assert_int_equal(ordered_check(&f->ordered), COUNT);
    epoch_enter(&f->participants[0]);
    for (unsigned i = 0; i < COUNT; i++) {
        struct ordered_cursor c;
        ordered_seek(&c, &f->ordered, node_key(arena_at(&f->arena, refs[i])), false);
        assert_int_equal(arena_ref(&f->arena, ordered_next(&c)), refs[i]);
    }
    epoch_exit(&f->participants[0]);
    ordered_builder_destroy(builders[0]);
    ordered_builder_destroy(builders[1]);
    free(key);
    index_fixture_destroy(f);
}

/* Ranges that overlap or touch: an error, and the tree is still an empty one. */
static void test_ranges_out_of_order(void **state)
{
    (void)state;
    struct built *b = built_create();
    static const unsigned starts[][3] = {{100, 0, 1000}, {0, 99, 1000}, {0, 1000, 1000}, {0, 1000, 100}};
    for (unsigned i = 0; i < sizeof starts / sizeof starts[0]; i++) {
        struct ordered_builder *builders[3];
        for (unsigned r = 0; r < 3; r++) {
            builders[r] = ordered_builder_create(&b->f->caches[0]);
            for (unsigned k = 0; k < 100; k++)
                ordered_builder_add(builders[r], b->refs[starts[i][r] + k]);
        }
        status_t s = ordered_builders_join(&b->f->ordered, &b->f->caches[0], builders, 3);
        assert_int_equal(s.code, STATUS_CORRUPT);
        assert_int_equal(ordered_check(&b->f->ordered), 0);
        for (unsigned r = 0; r < 3; r++)
            ordered_builder_destroy(builders[r]);
    }
    built_destroy(b);
}

/* ---- threads ---- */

enum { THREADS = 4, PER_THREAD = 100000 };

struct part {
    struct index_fixture *f;
    unsigned index;
    struct ordered_builder *builder;
};

static void *build_part(void *argument)
{
    struct part *part = argument;
    part->builder = ordered_builder_create(&part->f->caches[part->index]);
    for (unsigned i = 0; i < PER_THREAD; i++) {
        char name[32];
        int n = snprintf(name, sizeof name, "key:%08u", part->index * PER_THREAD + i);
        struct node *node = index_fixture_node(part->f, part->index, slice_make(name, (size_t)n));
        ordered_builder_add(part->builder, arena_ref(&part->f->arena, node));
    }
    return NULL;
}

static void test_threads(void **state)
{
    (void)state;
    struct index_fixture *f = index_fixture_create(THREADS);
    struct part parts[THREADS];
    struct ordered_builder *builders[THREADS];
    pthread_t threads[THREADS];
    for (unsigned i = 0; i < THREADS; i++) {
        parts[i] = (struct part){.f = f, .index = i};
        assert_int_equal(pthread_create(&threads[i], NULL, build_part, &parts[i]), 0);
    }
    for (unsigned i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
        builders[i] = parts[i].builder;
    }
    status_t s = ordered_builders_join(&f->ordered, &f->caches[0], builders, THREADS);
    assert_true(status_is_ok(&s));
    assert_int_equal(ordered_check(&f->ordered), THREADS * PER_THREAD);
    for (unsigned i = 0; i < THREADS; i++)
        ordered_builder_destroy(builders[i]);
    index_fixture_destroy(f);
}

int main(void)
{
    make_keys();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_count),
        cmocka_unit_test(test_ranges),
        cmocka_unit_test(test_inserts_and_removes_afterwards),
        cmocka_unit_test(test_longest_keys),
        cmocka_unit_test(test_ranges_out_of_order),
        cmocka_unit_test(test_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
