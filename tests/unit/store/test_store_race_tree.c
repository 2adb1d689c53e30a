/* What has been answered holds for everybody at once, while deleted trees are cleared away, keys expire,
 * tombstones are unlinked, and values leave memory and come back: one thread writes and says what is done,
 * others read and compare. Without a log everything is durable at once, so that clearing away follows each
 * delete closely. */
#include "store_fixture.h"

#include <pthread.h>
#include <stdatomic.h>

#include "store/internal.h"
#include "unit/require.h"

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
enum { ROUNDS = 5000 };
#else
enum { ROUNDS = 50000 };
#endif

enum { READERS = 3, MOVER = READERS + 1, SIBLINGS = 3, VALUE_BYTES = 64 };

enum how { BY_TREE, BY_EXPIRY, BY_DELETE };

struct race {
    struct fixture f;
    enum how how;
    _Atomic uint64_t gone; /* values up to this one have been deleted, and that was answered */
    _Atomic uint64_t set;  /* values up to this one have been set, and that was answered */
    _Atomic int running;
    _Atomic uint64_t found, moved;
};

struct reader {
    struct race *race;
    struct store_worker *sw;
    pthread_t id;
    bool cursor;
};

static bool number_of(const struct store_view *view, uint64_t *n)
{
    REQUIRE(view->len == VALUE_BYTES);
    return store_view_copy(view, (char *)n, 0, sizeof *n);
}

/* Takes values out of memory and puts them back. */
static void *move_all(void *context)
{
    struct reader *r = context;
    struct race *race = r->race;
    struct store *store = race->f.store;
    char name[8], value[VALUE_BYTES];
    while (atomic_load_explicit(&race->running, memory_order_relaxed)) {
        store_turn_begin(r->sw);
        for (unsigned i = 0; i < SIBLINGS; i++) {
            struct store_key key;
            snprintf(name, sizeof name, "t/%u", i);
            store_key_prepare(r->sw, &key, text(name));
            uint32_t stripe = keylock_stripe(key.hash);
            if (!keylock_try(&store->locks, stripe))
                continue;
            struct node *node = hash_table_find(&store->hash, key.hash, key.name);
            if (node && payload_is_evictable(node_meta(node))) {
                memcpy(value, payload_get(node).value, VALUE_BYTES);
                if (payload_evict(store, r->sw->private, node, key.hash, 0)) {
                    node = hash_table_find(&store->hash, key.hash, key.name);
                    REQUIRE(payload_promote(store, r->sw->private, node, key.hash,
                                            slice_make(value, VALUE_BYTES)));
                    atomic_fetch_add_explicit(&race->moved, 1, memory_order_relaxed);
                }
            }
            keylock_release(&store->locks, stripe);
        }
        store_turn_end(r->sw);
    }
    return NULL;
}

/* 0: absent; false: busy. */
static bool find_one(struct reader *r, uint64_t *n)
{
    struct store_key key;
    struct store_view view;
    *n = 0;
    store_key_prepare(r->sw, &key, text("t/1"));
    enum store_result result = store_find(r->sw, &key, &view);
    if (result == STORE_COLD) /* for a moment */
        return false;
    return result == STORE_ABSENT || (result == STORE_OK && number_of(&view, n));
}

static bool walk_to_one(struct reader *r, uint64_t *n)
{
    struct store_cursor cursor;
    struct store_view view;
    *n = 0;
    store_cursor_seek(&cursor, r->sw, text("t/1"), false);
    const struct node *node = store_cursor_next(&cursor);
    if (node == NULL || !slice_equal(store_node_key(node), text("t/1")))
        return true;
    enum store_result result = store_node_view(r->sw, node, &view);
    return result == STORE_ABSENT || (result == STORE_OK && number_of(&view, n));
}

/* What was answered before the read began must be true in it. */
static void *read_all(void *context)
{
    struct reader *r = context;
    struct race *race = r->race;
    while (atomic_load_explicit(&race->running, memory_order_relaxed)) {
        store_turn_begin(r->sw);
        for (int i = 0; i < 16; i++) {
            uint64_t n, gone = atomic_load_explicit(&race->gone, memory_order_acquire);
            uint64_t set = atomic_load_explicit(&race->set, memory_order_acquire);
            if (!(r->cursor ? walk_to_one(r, &n) : find_one(r, &n)))
                continue;
            REQUIRE(n == 0 || (n > gone && n >= set));
            if (n)
                atomic_fetch_add_explicit(&race->found, 1, memory_order_relaxed);
        }
        store_turn_end(r->sw);
    }
    return NULL;
}

static bool set_all(struct race *race, uint64_t n)
{
    struct store_worker *sw = race->f.sw;
    struct store_entry entries[SIBLINGS];
    char names[SIBLINGS][8], value[VALUE_BYTES] = {0};
    memcpy(value, &n, sizeof n);
    for (unsigned i = 0; i < SIBLINGS; i++) {
        snprintf(names[i], sizeof names[i], "t/%u", i);
        store_key_prepare(sw, &entries[i].key, text(names[i]));
    }
    if (store_write_begin(sw, entries, SIBLINGS, 0) != STORE_OK)
        return false;
    uint64_t expire_ms = race->how == BY_EXPIRY ? sw->now_ms + 1 : 0;
    for (unsigned i = 0; i < SIBLINGS; i++) {
        REQUIRE(!store_entry_live(entries, i));
        store_stage_set(sw, entries, i, slice_make(value, VALUE_BYTES), expire_ms);
    }
    return store_write_commit(sw) == STORE_OK;
}

static bool delete_all(struct race *race)
{
    struct store_worker *sw = race->f.sw;
    struct store_key key;
    struct store_view view;
    uint64_t removed;
    if (race->how == BY_TREE) {
        enum store_result r = store_delete_tree(sw, text("t"), &removed);
        REQUIRE(r == STORE_BUSY || (r == STORE_OK && removed == SIBLINGS));
        return r == STORE_OK;
    }
    if (race->how == BY_EXPIRY) { /* the time has come: in a turn of its own */
        store_turn_end(sw);
        atomic_fetch_add_explicit(&sw->store->clock_ms, 1, memory_order_relaxed);
        store_turn_begin(sw);
    }
    for (unsigned i = 0; i < SIBLINGS; i++) {
        char name[8];
        snprintf(name, sizeof name, "t/%u", i);
        if (race->how == BY_DELETE) {
            struct store_entry entry;
            store_key_prepare(sw, &entry.key, text(name));
            while (store_write_begin(sw, &entry, 1, 0) != STORE_OK)
                ;
            store_stage_delete(&entry, 0);
            REQUIRE(store_write_commit(sw) == STORE_OK);
        } else {
            store_key_prepare(sw, &key, text(name));
            enum store_result r;
            while ((r = store_find(sw, &key, &view)) == STORE_BUSY)
                ;
            REQUIRE(r == STORE_ABSENT);
        }
    }
    return true;
}

static void write_all(struct race *race)
{
    struct store_worker *sw = race->f.sw;
    struct prng prng;
    prng_seed(&prng, 7);
    /* On a busy machine the others may come late. */
    for (uint64_t n = 1; n <= ROUNDS || race->found <= 100 || race->moved <= 100; n++) {
        store_turn_begin(sw);
        while (!set_all(race, n))
            ;
        atomic_store_explicit(&race->set, n, memory_order_release);
        while (!delete_all(race))
            ;
        atomic_store_explicit(&race->gone, n, memory_order_release);
        for (uint64_t spins = prng_below(&prng, 300); spins > 0; spins--)
            spin_pause();
        (void)store_background(sw, 1 + (unsigned)prng_below(&prng, 8), NULL);
        store_turn_end(sw);
    }
}

static void run_race(enum how how)
{
    static struct race race;
    struct reader readers[READERS + 1];
    race = (struct race){.how = how, .f.sim = sim_disk_create(1)};
    race.f.config = (struct store_config){
        .disk = &race.f.sim->disk, .path = "sim", .workers = READERS + 2, .durability = STORE_NONE};
    fixture_open(&race.f);
    /* A clock that only the test moves. */
    atomic_store_explicit(&race.f.store->clock_ms, 1ull << 45, memory_order_relaxed);
    atomic_store_explicit(&race.running, 1, memory_order_relaxed);
    for (unsigned i = 0; i < MOVER; i++) {
        readers[i] =
            (struct reader){.race = &race, .sw = store_worker_get(race.f.store, i + 1), .cursor = i == 2};
        assert_int_equal(pthread_create(&readers[i].id, NULL, i < READERS ? read_all : move_all, &readers[i]),
                         0);
    }
    write_all(&race);
    atomic_store_explicit(&race.running, 0, memory_order_relaxed);
    for (unsigned i = 0; i < MOVER; i++)
        pthread_join(readers[i].id, NULL);
    assert_true(race.found > 100 && race.moved > 100);
    assert_int_equal(count(race.f.sw), 0);
    fixture_deinit(&race.f);
}

static void test_a_deleted_tree_stays_deleted(void **state)
{
    (void)state;
    run_race(BY_TREE);
}

static void test_an_expired_key_stays_expired(void **state)
{
    (void)state;
    run_race(BY_EXPIRY);
}

static void test_a_deleted_key_stays_deleted(void **state)
{
    (void)state;
    run_race(BY_DELETE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_deleted_tree_stays_deleted),
        cmocka_unit_test(test_an_expired_key_stays_expired),
        cmocka_unit_test(test_a_deleted_key_stays_deleted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
