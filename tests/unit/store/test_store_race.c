/* Several workers on the same keys, each on its thread; one more thread flushes. Made for ThreadSanitizer,
 * and for the promises that only hold if every lock, sequence and epoch does: no lost update, several keys
 * written together are seen together, a deleted tree is gone as a whole. */
#include "live_weights.h"
#include "store_fixture.h"
#include "unit/require.h"

#include <pthread.h>
#include <stdatomic.h>

enum { THREADS = 3, ROUNDS = 6000, COUNTERS = 4, PAIRS = 4, TREE_KEYS = 3 };

struct race {
    struct fixture f;
    _Atomic int running;
    _Atomic uint64_t added[COUNTERS];
    _Atomic uint64_t snapshots, trees, moved;
};

struct thread {
    struct race *race;
    struct store_worker *sw;
    struct prng prng;
    pthread_t id;
};

static uint64_t number(struct slice value)
{
    uint64_t n = 0;
    REQUIRE(value.len == 0 || value.len >= 8);
    if (value.len)
        memcpy(&n, value.data, 8);
    return n;
}

/* A value that holds n; of a size that makes nodes grow, shrink and move out. */
static struct slice value_with(char buffer[1500], uint64_t n)
{
    size_t len = 8 + prng_mix(n) % (n % 7 == 0 ? 1400 : 40);
    memset(buffer, (int)n, len);
    memcpy(buffer, &n, 8);
    return slice_make(buffer, len);
}

static void increment(struct thread *t)
{
    char key[16], buffer[1500];
    struct store_entry entry;
    int i = (int)prng_below(&t->prng, COUNTERS);
    snprintf(key, sizeof key, "counter:%d", i);
    store_key_prepare(t->sw, &entry.key, text(key));
    if (store_write_begin(t->sw, &entry, 1, 0) != STORE_OK)
        return;
    uint64_t n = number(store_entry_value(&entry, 0));
    store_stage_set(t->sw, &entry, 0, value_with(buffer, n + 1), 0);
    if (store_write_commit(t->sw) == STORE_OK)
        atomic_fetch_add_explicit(&t->race->added[i], 1, memory_order_relaxed);
}

static void pair_keys(struct thread *t, struct store_key keys[2], char names[2][16])
{
    int i = (int)prng_below(&t->prng, PAIRS);
    for (int j = 0; j < 2; j++) {
        snprintf(names[j], 16, "pair:%d:%c", i, "ab"[j]);
        store_key_prepare(t->sw, &keys[j], text(names[j]));
    }
}

static void write_pair(struct thread *t)
{
    char names[2][16], buffer[1500];
    struct store_key keys[2];
    struct store_entry entries[2];
    pair_keys(t, keys, names);
    entries[0].key = keys[1];
    entries[1].key = keys[0];
    if (store_write_begin(t->sw, entries, 2, 0) != STORE_OK)
        return;
    REQUIRE(store_entry_live(entries, 0) == store_entry_live(entries, 1));
    REQUIRE(number(store_entry_value(entries, 0)) == number(store_entry_value(entries, 1)));
    bool delete = prng_below(&t->prng, 5) == 0;
    struct slice value = value_with(buffer, prng_next(&t->prng));
    for (unsigned i = 0; i < 2; i++) {
        if (delete)
            store_stage_delete(entries, i);
        else
            store_stage_set(t->sw, entries, i, value, 0);
    }
    (void)store_write_commit(t->sw);
}

static bool read_number(struct thread *t, const struct store_key *key, uint64_t *n)
{
    struct store_view view;
    char buffer[1500];
    *n = 0;
    enum store_result r = store_find(t->sw, key, &view);
    if (r == STORE_ABSENT)
        return true;
    if (r != STORE_OK || !store_view_copy(&view, buffer, 0, view.len))
        return false;
    *n = number(slice_make(buffer, view.len));
    for (uint32_t i = 8; i < view.len; i++)
        REQUIRE(buffer[i] == (char)*n); /* not torn */
    return true;
}

static void read_pair(struct thread *t)
{
    char names[2][16];
    struct store_key keys[2];
    uint64_t n[2];
    pair_keys(t, keys, names);
    for (unsigned attempt = 0; attempt < 8; attempt++) {
        if (store_snapshot_begin(t->sw, keys, 2, attempt) != STORE_OK)
            return;
        bool whole = read_number(t, &keys[0], &n[0]) && read_number(t, &keys[1], &n[1]);
        if (!store_snapshot_end(t->sw) || !whole)
            continue;
        REQUIRE(n[0] == n[1]);
        atomic_fetch_add_explicit(&t->race->snapshots, 1, memory_order_relaxed);
        return;
    }
}

static void write_tree(struct thread *t)
{
    char names[TREE_KEYS][16], buffer[1500];
    struct store_entry entries[TREE_KEYS];
    uint64_t removed;
    if (prng_below(&t->prng, 4) == 0) {
        enum store_result r = store_delete_tree(t->sw, text("tree"), &removed);
        REQUIRE(r == STORE_BUSY || (r == STORE_OK && (removed == 0 || removed == TREE_KEYS)));
        return;
    }
    for (int i = 0; i < TREE_KEYS; i++) {
        snprintf(names[i], sizeof names[i], "tree/%d/x", i);
        store_key_prepare(t->sw, &entries[i].key, text(names[i]));
    }
    if (store_write_begin(t->sw, entries, TREE_KEYS, 0) != STORE_OK)
        return;
    for (unsigned i = 1; i < TREE_KEYS; i++)
        REQUIRE(store_entry_live(entries, i) == store_entry_live(entries, 0));
    for (unsigned i = 0; i < TREE_KEYS; i++)
        store_stage_set(t->sw, entries, i, value_with(buffer, 5), 0);
    (void)store_write_commit(t->sw);
}

static void read_tree(struct thread *t)
{
    for (unsigned attempt = 0; attempt < 8; attempt++) {
        struct store_cursor cursor;
        const struct node *node;
        int found = 0;
        if (store_snapshot_begin(t->sw, NULL, 0, attempt) != STORE_OK)
            return;
        store_cursor_seek(&cursor, t->sw, text("tree/"), false);
        while ((node = store_cursor_next(&cursor)) && slice_starts_with(store_node_key(node), text("tree/")))
            found++;
        if (!store_snapshot_end(t->sw))
            continue;
        REQUIRE(found == 0 || found == TREE_KEYS);
        atomic_fetch_add_explicit(&t->race->trees, 1, memory_order_relaxed);
        return;
    }
}

/* On a busy machine some thread may get its turn late. */
static bool all_took_part(struct race *race)
{
    return atomic_load_explicit(&race->snapshots, memory_order_relaxed) > 100 &&
           atomic_load_explicit(&race->trees, memory_order_relaxed) > 100 &&
           atomic_load_explicit(&race->moved, memory_order_relaxed) > 100;
}

static void *work(void *context)
{
    struct thread *t = context;
    for (int round = 0; round < ROUNDS || !all_took_part(t->race); round++) {
        store_turn_begin(t->sw);
        for (uint64_t n = prng_below(&t->prng, 8); n > 0; n--) {
            switch (prng_below(&t->prng, 6)) {
            case 0:
                increment(t);
                break;
            case 1:
                write_pair(t);
                break;
            case 2:
                write_tree(t);
                break;
            case 3:
                read_tree(t);
                break;
            default:
                read_pair(t);
            }
        }
        (void)store_background(t->sw, 4, NULL);
        store_turn_end(t->sw);
    }
    /* Release: pairs with flush_all. */
    atomic_fetch_sub_explicit(&t->race->running, 1, memory_order_release);
    return NULL;
}

/* The only thread that touches the disk. */
static void *flush_all(void *context)
{
    struct race *race = context;
    while (atomic_load_explicit(&race->running, memory_order_acquire) > 0)
        fixture_flush(&race->f, 0);
    fixture_flush(&race->f, 0);
    return NULL;
}

/* In the keeper's place: every value moves all the while, to addresses that nobody reads. The listed
 * file is only there for the counts. */
static void *move_all(void *context)
{
    struct race *race = context;
    struct store *store = race->f.store;
    struct store_worker *sw = store->keeper.sw;
    uint64_t next = 1;
    while (atomic_load_explicit(&race->running, memory_order_acquire) > 0) {
        struct ordered_cursor cursor;
        struct node *node;
        uint64_t moved = 0;
        store_turn_begin(sw);
        ordered_seek(&cursor, &store->ordered, slice_make("", 0), false);
        while ((node = ordered_next(&cursor))) {
            uint64_t hash = hash_table_hash(&store->hash, node_key(node));
            uint64_t to = SEGMENT_DATA_ADDRESS | 1ull << LOG_SEGMENT_SHIFT | (next++ & 0xffffff) * 8;
            if (!keylock_acquire(&store->locks, keylock_stripe(hash)))
                continue;
            struct node *current = hash_table_find(&store->hash, hash, node_key(node));
            if (current && !(node_meta(current) & NODE_TOMBSTONE))
                moved += payload_relocate(store, sw->private, current, hash, payload_get(current).address, to,
                                          0) == PAYLOAD_MOVED;
            keylock_release(&store->locks, keylock_stripe(hash));
        }
        store_turn_end(sw);
        atomic_fetch_add_explicit(&race->moved, moved, memory_order_relaxed);
    }
    return NULL;
}

static void test_race(void **state)
{
    static struct race race;
    struct thread threads[THREADS];
    pthread_t flusher, mover;
    (void)state;
    fixture_init(&race.f, THREADS);
    struct disk *disk = &race.f.sim->disk;
    int fd = disk->ops->create(disk, race.f.store->keeper.folder, "data-0000000001.kv", true);
    segments_seal(segments_add(race.f.store->segments, true, 1, 1, 1 << 20, fd));
    race.running = THREADS;
    assert_int_equal(pthread_create(&flusher, NULL, flush_all, &race), 0);
    assert_int_equal(pthread_create(&mover, NULL, move_all, &race), 0);
    for (unsigned i = 0; i < THREADS; i++) {
        threads[i] = (struct thread){.race = &race, .sw = store_worker_get(race.f.store, i)};
        prng_seed(&threads[i].prng, i + 1);
        assert_int_equal(pthread_create(&threads[i].id, NULL, work, &threads[i]), 0);
    }
    for (unsigned i = 0; i < THREADS; i++)
        pthread_join(threads[i].id, NULL);
    pthread_join(flusher, NULL);
    pthread_join(mover, NULL);
    for (int round = 0; round < 2; round++) { /* as the threads left it, and as the log says */
        for (int i = 0; i < COUNTERS; i++) {
            char key[16], *value;
            size_t len;
            snprintf(key, sizeof key, "counter:%d", i);
            assert_int_equal(get(race.f.sw, text(key), &value, &len), STORE_OK);
            assert_int_equal(number(slice_make(value, len)), race.added[i]);
            free(value);
        }
        assert_true(live_weights_are_exact(race.f.store));
        fixture_reopen(&race.f);
    }
    fixture_deinit(&race.f);
}

enum { SEEN_LEAST = 1000 };

struct place {
    struct fixture f;
    struct store_worker *reader;
    uint64_t addresses[2];
    _Atomic bool over;
    uint64_t seen[2];
};

static void *read_place(void *context)
{
    struct place *p = context;
    struct store_key key;
    store_key_prepare(p->reader, &key, text("k"));
    while (p->seen[0] < SEEN_LEAST || p->seen[1] < SEEN_LEAST) {
        struct store_view view;
        store_turn_begin(p->reader);
        const struct node *node = hash_table_find(&p->f.store->hash, key.hash, key.name);
        REQUIRE(node && store_node_view(p->reader, node, &view) == STORE_COLD);
        REQUIRE(view.address == p->addresses[0] || view.address == p->addresses[1]);
        p->seen[view.address == p->addresses[1]]++;
        store_turn_end(p->reader);
    }
    atomic_store_explicit(&p->over, true, memory_order_relaxed);
    return NULL;
}

/* The value of a node that says where it is moves: readers find it at one of the two places. */
static void test_a_place_changes_beside_readers(void **state)
{
    static struct place p;
    pthread_t reader;
    struct store_key key;
    (void)state;
    fixture_init(&p.f, 2);
    p.reader = store_worker_get(p.f.store, 1);
    put_surely(&p.f, text("k"), text("a value that is too long for a node that is small"));
    struct store_worker *sw = p.f.sw;
    store_key_prepare(sw, &key, text("k"));
    store_turn_begin(sw);
    struct node *node = hash_table_find(&p.f.store->hash, key.hash, key.name);
    uint64_t from = payload_get(node).address;
    for (int i = 0; i < 2; i++)
        p.addresses[i] = from + 8 * ((uint64_t)i + 1);
    assert_true(keylock_acquire(&p.f.store->locks, keylock_stripe(key.hash)));
    assert_true(payload_evict(p.f.store, sw->private, node, key.hash, 0));
    node = hash_table_find(&p.f.store->hash, key.hash, key.name);
    assert_int_equal(payload_relocate(p.f.store, sw->private, node, key.hash, from, p.addresses[0], 0),
                     PAYLOAD_MOVED);
    node = hash_table_find(&p.f.store->hash, key.hash, key.name);
    keylock_release(&p.f.store->locks, keylock_stripe(key.hash));
    store_turn_end(sw);
    assert_int_equal(pthread_create(&reader, NULL, read_place, &p), 0);
    for (unsigned i = 0; !atomic_load_explicit(&p.over, memory_order_relaxed); i++) {
        store_turn_begin(sw);
        assert_true(keylock_acquire(&p.f.store->locks, keylock_stripe(key.hash)));
        assert_ptr_equal(hash_table_find(&p.f.store->hash, key.hash, key.name), node);
        assert_int_equal(payload_relocate(p.f.store, sw->private, node, key.hash, p.addresses[i % 2],
                                          p.addresses[(i + 1) % 2], 0),
                         PAYLOAD_MOVED);
        keylock_release(&p.f.store->locks, keylock_stripe(key.hash));
        store_turn_end(sw);
    }
    pthread_join(reader, NULL);
    fixture_deinit(&p.f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_race),
                                       cmocka_unit_test(test_a_place_changes_beside_readers)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
