/* Model test: hash table and ordered index together against a plain array of what should be there. */
#include "base/prng.h"
#include "index_fixture.h"

enum { UNIVERSE = 20000, OPERATIONS = 1000000, CHECK_EVERY = 50000, LENGTH_MAX = 300 };

struct model {
    struct index_fixture *f;
    uint32_t refs[UNIVERSE]; /* of the node; 0: absent */
    char *keys[UNIVERSE];    /* ascending */
    size_t lens[UNIVERSE];
};

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Names of several shapes: numbers with long common prefixes, paths, long ones, prefixes of each other. */
static void make_names(struct model *m)
{
    char name[LENGTH_MAX + 64];
    for (int i = 0; i < UNIVERSE; i++) {
        int n = i / 5;
        switch (i % 5) {
        case 0:
            snprintf(name, sizeof name, "key:%012d", n);
            break;
        case 1:
            snprintf(name, sizeof name, "deb/package-%d/Field-%d", n / 20, n % 20);
            break;
        case 2:
            snprintf(name, sizeof name, "%0*d", 1 + n % LENGTH_MAX, n);
            break;
        case 3:
            snprintf(name, sizeof name, "p%.*s%d", n % 40, "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", n);
            break;
        default:
            snprintf(name, sizeof name, "%x", n * 7919);
        }
        m->keys[i] = strdup(name);
        assert_non_null(m->keys[i]);
    }
    qsort(m->keys, UNIVERSE, sizeof m->keys[0], compare_names);
    for (int i = 0; i < UNIVERSE; i++)
        m->lens[i] = strlen(m->keys[i]);
}

static struct slice model_key(const struct model *m, int i)
{
    return slice_make(m->keys[i], m->lens[i]);
}

static bool is_duplicate(const struct model *m, int i)
{
    return i > 0 && strcmp(m->keys[i - 1], m->keys[i]) == 0;
}

static void check_all(struct model *m)
{
    struct index_fixture *f = m->f;
    struct ordered_cursor forward, backward;
    int64_t present = 0;
    ordered_seek(&forward, &f->ordered, slice_make("", 0), false);
    for (int i = 0; i < UNIVERSE; i++) {
        if (m->refs[i] == 0)
            continue;
        present++;
        struct node *node = ordered_next(&forward);
        assert_non_null(node);
        assert_int_equal(arena_ref(&f->arena, node), m->refs[i]);
    }
    assert_null(ordered_next(&forward));
    ordered_seek(&backward, &f->ordered, slice_make(NULL, 0), true);
    for (int i = UNIVERSE - 1; i >= 0; i--) {
        if (m->refs[i])
            assert_int_equal(arena_ref(&f->arena, ordered_next(&backward)), m->refs[i]);
    }
    assert_null(ordered_next(&backward));
    assert_int_equal(ordered_check(&f->ordered), present);
    assert_int_equal(atomic_load(&f->hash.count), present);
}

static void check_seek(struct model *m, int i, bool reverse)
{
    struct ordered_cursor cursor;
    ordered_seek(&cursor, &m->f->ordered, model_key(m, i), reverse);
    struct node *node = ordered_next(&cursor);
    int step = reverse ? -1 : 1, at = reverse ? i - 1 : i;
    if (reverse)
        while (at >= 0 && strcmp(m->keys[at], m->keys[i]) == 0)
            at--;
    while (at >= 0 && at < UNIVERSE && m->refs[at] == 0)
        at += step;
    if (at < 0 || at >= UNIVERSE)
        assert_null(node);
    else
        assert_int_equal(node ? arena_ref(&m->f->arena, node) : 0, m->refs[at]);
}

static void toggle(struct model *m, int i, bool hint)
{
    struct index_fixture *f = m->f;
    struct arena_cache *cache = &f->caches[0];
    struct epoch_participant *epoch = &f->participants[0];
    struct slice key = model_key(m, i);
    uint64_t hash = hash_table_hash(&f->hash, key);
    struct node *found = hash_table_find(&f->hash, hash, key);
    assert_int_equal(found ? arena_ref(&f->arena, found) : 0, m->refs[i]);
    if (found) {
        hash_table_remove(&f->hash, hash, m->refs[i]);
        ordered_remove(&f->ordered, cache, epoch, m->refs[i]);
        epoch_retire_block(epoch, m->refs[i], node_class(node_meta(found)));
        m->refs[i] = 0;
        return;
    }
    struct node *node = index_fixture_node(f, 0, key);
    uint32_t leaf = 0;
    if (hint)
        ordered_prefetch(&f->ordered, &key, &leaf, 1);
    m->refs[i] = arena_ref(&f->arena, node);
    ordered_insert(&f->ordered, cache, epoch, m->refs[i], leaf);
    assert_true(keylock_try(&f->locks, keylock_stripe(hash)));
    hash_table_insert(&f->hash, cache, epoch, hash, m->refs[i]);
    keylock_release(&f->locks, keylock_stripe(hash));
}

/* Another node with the same key takes the place of one. */
static void exchange(struct model *m, int i)
{
    struct index_fixture *f = m->f;
    struct node *old = arena_at(&f->arena, m->refs[i]), *node = index_fixture_node(f, 0, model_key(m, i));
    uint32_t ref = arena_ref(&f->arena, node);
    hash_table_replace(&f->hash, hash_table_hash(&f->hash, node_key(node)), m->refs[i], ref);
    struct slice key = model_key(m, i);
    uint32_t hint = 0;
    if (i % 2)
        ordered_prefetch(&f->ordered, &key, &hint, 1);
    ordered_replace(&f->ordered, m->refs[i], ref, hint);
    epoch_retire_block(&f->participants[0], m->refs[i], node_class(node_meta(old)));
    m->refs[i] = ref;
}

static void test_model(void **state)
{
    (void)state;
    struct model *m = calloc(1, sizeof *m);
    assert_non_null(m);
    m->f = index_fixture_create(1);
    make_names(m);
    uint64_t random = fixture_seed();
    for (int op = 0; op < OPERATIONS; op++) {
        if (op % 100 == 0) {
            epoch_exit(&m->f->participants[0]);
            epoch_enter(&m->f->participants[0]);
        }
        uint64_t r = fixture_random(&random);
        /* Phases: mixed; a window that fills in order; a window that empties. */
        int phase = op / 100000 % 4, i = (int)(r >> 16) % UNIVERSE;
        if (i < 0)
            i += UNIVERSE;
        if (phase == 1)
            i = op % UNIVERSE;
        while (is_duplicate(m, i))
            i--;
        bool skip = (phase == 2 && m->refs[i] == 0) || (phase == 1 && m->refs[i]);
        if (m->refs[i] && op % 5 == 0)
            exchange(m, i);
        else if (!skip)
            toggle(m, i, r & 1);
        if (op % 7 == 0)
            check_seek(m, i, r & 2);
        if (op % CHECK_EVERY == 0)
            check_all(m);
    }
    check_all(m);
    for (int i = 0; i < UNIVERSE; i++) {
        if (m->refs[i])
            toggle(m, i, false);
    }
    check_all(m);
    epoch_exit(&m->f->participants[0]);
    index_fixture_destroy(m->f);
    for (int i = 0; i < UNIVERSE; i++)
        free(m->keys[i]);
    free(m);
}

/* Keys of the greatest length that share nearly everything: the separators are as long as keys. */
static void test_longest_keys(void **state)
{
    (void)state;
    enum { KEYS = 1000, LENGTH = 65536 };
    struct index_fixture *f = index_fixture_create(1);
    char *key = malloc(LENGTH);
    assert_non_null(key);
    memset(key, 'a', LENGTH);
    for (int i = 0; i < KEYS; i++) {
        epoch_enter(&f->participants[0]);
        char digits[8];
        snprintf(digits, sizeof digits, "%04d", i * 37 % KEYS);
        memcpy(key + LENGTH - 4, digits, 4);
        struct node *node = index_fixture_node(f, 0, slice_make(key, LENGTH));
        ordered_insert(&f->ordered, &f->caches[0], &f->participants[0], arena_ref(&f->arena, node), 0);
        epoch_exit(&f->participants[0]);
    }
    assert_int_equal(ordered_check(&f->ordered), KEYS);
    free(key);
    index_fixture_destroy(f);
}

static void test_hash_grows(void **state)
{
    (void)state;
    enum { KEYS = 200000 };
    struct index_fixture *f = index_fixture_create(1);
    char name[32];
    for (int i = 0; i < KEYS; i++) {
        epoch_enter(&f->participants[0]);
        struct slice key = slice_make(name, (size_t)snprintf(name, sizeof name, "key:%012d", i));
        struct node *node = index_fixture_node(f, 0, key);
        uint64_t hash = hash_table_hash(&f->hash, key);
        hash_table_insert(&f->hash, &f->caches[0], &f->participants[0], hash, arena_ref(&f->arena, node));
        key = slice_make(name, (size_t)snprintf(name, sizeof name, "key:%012d", i / 2));
        assert_non_null(hash_table_find(&f->hash, hash_table_hash(&f->hash, key), key));
        epoch_exit(&f->participants[0]);
    }
    for (int i = 0; i < KEYS; i++) {
        struct slice key = slice_make(name, (size_t)snprintf(name, sizeof name, "key:%012d", i));
        assert_non_null(hash_table_find(&f->hash, hash_table_hash(&f->hash, key), key));
    }
    int hits = 0;
    uint64_t random = 1;
    for (int i = 0; i < 1000; i++)
        hits += hash_table_random(&f->hash, fixture_random(&random)) != NULL;
    assert_in_range(hits, 200, 900); /* the table is between 3/8 and 3/4 full */
    index_fixture_destroy(f);
}

/* A block of 96 bytes that was freed serves three of 32, and the rest of one of 80 serves one of 48. */
static void test_arena_splits(void **state)
{
    (void)state;
    struct index_fixture *f = index_fixture_create(1);
    struct arena_cache *cache = &f->caches[0];
    uint32_t large = arena_alloc(cache, arena_class(96)), medium = arena_alloc(cache, arena_class(80));
    arena_free(cache, large, arena_class(96));
    arena_free(cache, medium, arena_class(80));
    int64_t live = atomic_load(&cache->live_bytes);
    cache->bump = cache->bump_end; /* no fresh memory but in a new region */
    arena_soften(&f->arena, atomic_load(&f->arena.used_bytes));
    uint32_t parts[3];
    for (int i = 0; i < 3; i++)
        parts[i] = arena_alloc(cache, arena_class(32));
    uint32_t rest = arena_alloc(cache, arena_class(48));
    /* Which of the two is split for what is the arena's: together they hold all four, and nothing overlaps.
     */
    uint32_t refs[4] = {parts[0], parts[1], parts[2], rest};
    unsigned units[4] = {2, 2, 2, 3};
    uint64_t used = atomic_load(&f->arena.used_bytes);
    for (int i = 0; i < 4; i++) {
        bool in_large = refs[i] >= large && refs[i] + units[i] <= large + 6;
        bool in_medium = refs[i] >= medium && refs[i] + units[i] <= medium + 5;
        assert_true(in_large || in_medium);
        for (int j = 0; j < i; j++)
            assert_true(refs[i] + units[i] <= refs[j] || refs[j] + units[j] <= refs[i]);
    }
    assert_int_equal(atomic_load(&cache->live_bytes), live + 3 * 32 + 48);
    /* Nothing is left that could be split: fresh memory again. */
    (void)arena_alloc(cache, arena_class(1024));
    assert_true(atomic_load(&f->arena.used_bytes) > used);
    index_fixture_destroy(f);
}

/* Fresh memory that is prepared is what the next blocks are taken from. */
static void test_arena_prepares(void **state)
{
    struct index_fixture *f = index_fixture_create(2);
    (void)state;
    uint64_t used = atomic_load(&f->arena.used_bytes);
    arena_prepare(&f->caches[1]);
    assert_int_equal(atomic_load(&f->arena.used_bytes), used + ARENA_REGION_BYTES);
    arena_prepare(&f->caches[1]); /* it has some */
    assert_int_not_equal(arena_alloc(&f->caches[1], arena_class(64)), 0);
    assert_int_equal(atomic_load(&f->arena.used_bytes), used + ARENA_REGION_BYTES);
    index_fixture_destroy(f);
}

/* Neighbours that were freed serve something larger. */
static void test_arena_merges(void **state)
{
    (void)state;
    enum { BLOCKS = 1000 };
    struct index_fixture *f = index_fixture_create(1);
    struct arena_cache *cache = &f->caches[0];
    uint32_t refs[BLOCKS];
    for (int i = 0; i < BLOCKS; i++)
        refs[i] = arena_alloc(cache, arena_class(i % 2 ? 64 : 32));
    for (int i = 0; i < BLOCKS; i++)
        arena_free(cache, refs[i], arena_class(i % 2 ? 64 : 32));
    cache->bump = cache->bump_end;
    uint64_t used = atomic_load(&f->arena.used_bytes);
    arena_soften(&f->arena, used);
    for (int i = 0; i < BLOCKS * 48 / 512 - 10; i++)
        assert_in_range(arena_alloc(cache, arena_class(512)), refs[0], refs[BLOCKS - 1]);
    assert_int_equal(atomic_load(&f->arena.used_bytes), used);
    index_fixture_destroy(f);
}

/* Neighbours are found though more blocks than a try looks at, which have none, were freed after them, of two
 * sizes. */
static void test_arena_merges_what_lies_below(void **state)
{
    (void)state;
    enum { BLOCKS = 60000, ALONE = 30000, WANTED = 8000 };
    struct index_fixture *f = index_fixture_create(1);
    struct arena_cache *cache = &f->caches[0];
    static uint32_t refs[BLOCKS], alone[2 * ALONE];
    for (int i = 0; i < BLOCKS; i++)
        refs[i] = arena_alloc(cache, arena_class(i % 2 ? 48 : 64));
    for (int i = 0; i < 2 * ALONE; i++)
        alone[i] = arena_alloc(cache, arena_class(i % 4 ? 48 : 64));
    for (int i = 0; i < BLOCKS; i++)
        arena_free(cache, refs[i], arena_class(i % 2 ? 48 : 64));
    for (int i = 0; i < 2 * ALONE; i += 2)
        arena_free(cache, alone[i], arena_class(i % 4 ? 48 : 64));
    cache->bump = cache->bump_end;
    arena_soften(&f->arena, atomic_load(&f->arena.used_bytes));
    int tries = 0;
    while (!arena_has_free(cache, arena_class(96), WANTED) && tries < 1000000)
        tries++;
    assert_in_range(tries, 1, 999999);
    index_fixture_destroy(f);
}

/* Values leave their nodes: block by block something smaller comes, and some blocks later the old one is
 * free. All of it fits into what was there, and the rest is good for large blocks again. */
static void test_arena_makes_small_of_large(void **state)
{
    (void)state;
    enum { BLOCKS = 19200, BATCH = 16, LAG = 6 * BATCH };
    struct index_fixture *f = index_fixture_create(1);
    struct arena_cache *cache = &f->caches[0];
    static uint32_t refs[BLOCKS];
    uint32_t first[LAG + BATCH];
    for (int i = 0; i < LAG + BATCH; i++)
        first[i] = arena_alloc(cache, arena_class(48));
    for (int i = 0; i < BLOCKS; i++)
        refs[i] = arena_alloc(cache, arena_class(64));
    for (int i = 0; i < LAG + BATCH; i++)
        arena_free(cache, first[i], arena_class(48));
    cache->bump = cache->bump_end;
    uint64_t used = atomic_load(&f->arena.used_bytes);
    arena_soften(&f->arena, used);
    for (int i = 0; i < BLOCKS + LAG; i += BATCH) {
        for (int j = i; j < i + BATCH && i < BLOCKS; j++)
            (void)arena_alloc(cache, arena_class(48));
        for (int j = i - LAG; j >= 0 && j < i - LAG + BATCH; j++)
            arena_free(cache, refs[j], arena_class(64));
    }
    assert_int_equal(atomic_load(&f->arena.used_bytes), used);
    int tries = 0;
    while (!arena_has_free(cache, arena_class(64), BLOCKS / 5) && tries < 100000) /* of a fourth */
        tries++;
    assert_true(tries < 100000);
    for (int i = 0; i < BLOCKS / 5; i++)
        (void)arena_alloc(cache, arena_class(64));
    assert_int_equal(atomic_load(&f->arena.used_bytes), used);
    assert_false(arena_has_free(cache, arena_class(64), BLOCKS / 15));
    index_fixture_destroy(f);
}

/* What was freed in no order becomes large blocks again, also what another cache has shared. */
static void test_arena_merges_all(void **state)
{
    enum { PAIRS = 100000, KEEP = 20, WANTED = 336, BLOCKS = PAIRS / 4 }; /* three pairs make one of those */
    (void)state;
    struct index_fixture *f = index_fixture_create(2);
    struct arena_cache *cache = &f->caches[0];
    struct arena_merge merge;
    struct prng prng;
    uint32_t(*pairs)[2] = calloc(PAIRS, sizeof *pairs);
    uint8_t *units = calloc(PAIRS, 16);
    assert_true(pairs && units);
    prng_seed(&prng, 3);
    for (int i = 0; i < PAIRS; i++) {
        pairs[i][0] = arena_alloc(cache, arena_class(32));
        pairs[i][1] = arena_alloc(cache, arena_class(80));
    }
    cache->bump = cache->bump_end;
    uint64_t used = atomic_load(&f->arena.used_bytes);
    arena_soften(&f->arena, used);
    for (int i = PAIRS - 1; i > 0; i--) {
        int j = (int)prng_below(&prng, (uint64_t)i + 1);
        uint32_t small = pairs[i][0], large = pairs[i][1];
        memcpy(pairs[i], pairs[j], sizeof *pairs);
        pairs[j][0] = small;
        pairs[j][1] = large;
    }
    for (int i = 0; i < PAIRS; i++) {
        if (i % KEEP == 0) {
            memset(units + pairs[i][0], 1, 7);
            continue;
        }
        arena_free(&f->caches[i & 1], pairs[i][0], arena_class(32));
        arena_free(&f->caches[i & 1], pairs[i][1], arena_class(80));
    }
    assert_false(arena_has_free(cache, arena_class(WANTED), BLOCKS));
    status_t s = arena_merge_begin(cache, &merge);
    assert_true(status_is_ok(&s));
    unsigned steps = 1;
    while (arena_merge_step(cache, &merge))
        steps++;
    assert_in_range(steps, 100, 1000);
    assert_null(merge.bits);
    for (int i = 0; i < BLOCKS; i++) {
        uint32_t ref = arena_alloc(cache, arena_class(WANTED));
        for (uint32_t unit = ref; unit < ref + WANTED / 16; unit++)
            assert_int_equal(units[unit]++, 0);
    }
    assert_int_equal(atomic_load(&f->arena.used_bytes), used);
    free(pairs);
    free(units);
    index_fixture_destroy(f);
}

/* A table that may not grow goes on with overflow buckets. */
static void test_hash_without_room(void **state)
{
    (void)state;
    enum { KEYS = 200000 };
    struct index_fixture *f = index_fixture_create(1);
    uint64_t mapped = atomic_load(&f->hash.mapped_bytes);
    char name[32];
    hash_table_set_room(&f->hash, mapped);
    for (int i = 0; i < 2 * KEYS; i++) {
        struct slice key = slice_make(name, (size_t)snprintf(name, sizeof name, "key:%d", i % KEYS));
        uint64_t hash = hash_table_hash(&f->hash, key);
        struct node *found = hash_table_find(&f->hash, hash, key);
        assert_true((found != NULL) == (i >= KEYS));
        if (found)
            continue;
        uint32_t ref = arena_ref(&f->arena, index_fixture_node(f, 0, key));
        hash_table_insert(&f->hash, &f->caches[0], &f->participants[0], hash, ref);
    }
    assert_int_equal(atomic_load(&f->hash.mapped_bytes), mapped);
    index_fixture_destroy(f);
}

/* A wider table takes its memory while keys move there. */
static void test_hash_untouched(void **state)
{
    (void)state;
    struct index_fixture *f = index_fixture_create(1);
    char name[32];
    uint64_t mapped = atomic_load(&f->hash.mapped_bytes), before = 0;
    unsigned falls = 0;
    assert_int_equal(hash_table_untouched_bytes(&f->hash), 0);
    for (int i = 0; falls == 0 || before; i++) {
        struct slice key = slice_make(name, (size_t)snprintf(name, sizeof name, "key:%d", i));
        uint32_t ref = arena_ref(&f->arena, index_fixture_node(f, 0, key));
        hash_table_insert(&f->hash, &f->caches[0], &f->participants[0], hash_table_hash(&f->hash, key), ref);
        uint64_t untouched = hash_table_untouched_bytes(&f->hash);
        if (before == 0 && untouched) /* about twice the size, all of it untouched */
            assert_in_range(untouched, mapped, 2 * mapped + 4096);
        else if (before)
            assert_true(untouched <= before);
        falls += untouched < before;
        before = untouched;
    }
    assert_true(falls > 10);
    index_fixture_destroy(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_model),
        cmocka_unit_test(test_longest_keys),
        cmocka_unit_test(test_hash_grows),
        cmocka_unit_test(test_hash_untouched),
        cmocka_unit_test(test_arena_splits),
        cmocka_unit_test(test_arena_prepares),
        cmocka_unit_test(test_arena_merges),
        cmocka_unit_test(test_arena_merges_all),
        cmocka_unit_test(test_arena_merges_what_lies_below),
        cmocka_unit_test(test_arena_makes_small_of_large),
        cmocka_unit_test(test_hash_without_room),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
