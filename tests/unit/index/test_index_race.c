/* Race test: writers put and take keys, and exchange nodes, under the key locks while readers search and scan
 * without locks. Properties: a key that is never taken away is found by every search and every scan; a scan
 * is strictly ascending. */
#include <pthread.h>

#include "index_fixture.h"

enum { KEYS = 4000, ROUNDS = 30000, WRITERS = 2, READERS = 2, FIRST_WRITER = READERS };

struct race {
    struct index_fixture *f;
    _Atomic bool stop;
    _Atomic int failures;
};

struct race_thread {
    struct race *race;
    unsigned index;
};

/* Keys with i % 3 == 0 stay for ever. */
static struct slice key_of(char name[32], int i)
{
    return slice_make(name, (size_t)snprintf(name, 32, "key/%03d/%06d", i % 7, i));
}

static void put_or_take(struct index_fixture *f, unsigned worker, int i)
{
    char name[32];
    struct slice key = key_of(name, i);
    uint64_t hash = hash_table_hash(&f->hash, key);
    while (!keylock_acquire(&f->locks, keylock_stripe(hash)))
        ;
    struct node *node = hash_table_find(&f->hash, hash, key);
    if (node) {
        uint32_t ref = arena_ref(&f->arena, node);
        hash_table_remove(&f->hash, hash, ref);
        ordered_remove(&f->ordered, &f->caches[worker], &f->participants[worker], ref);
        epoch_retire_block(&f->participants[worker], ref, node_class(node_meta(node)));
    } else {
        node = index_fixture_node(f, worker, key);
        uint32_t ref = arena_ref(&f->arena, node);
        ordered_insert(&f->ordered, &f->caches[worker], &f->participants[worker], ref, 0);
        hash_table_insert(&f->hash, &f->caches[worker], &f->participants[worker], hash, ref);
    }
    keylock_release(&f->locks, keylock_stripe(hash));
}

/* Keys that stay get other nodes all the time. */
static void exchange(struct index_fixture *f, unsigned worker, int i)
{
    char name[32];
    struct slice key = key_of(name, i);
    uint64_t hash = hash_table_hash(&f->hash, key);
    while (!keylock_acquire(&f->locks, keylock_stripe(hash)))
        ;
    struct node *old = hash_table_find(&f->hash, hash, key);
    uint32_t old_ref = arena_ref(&f->arena, old);
    uint32_t ref = arena_ref(&f->arena, index_fixture_node(f, worker, key));
    ordered_replace(&f->ordered, old_ref, ref, 0);
    hash_table_replace(&f->hash, hash, old_ref, ref);
    epoch_retire_block(&f->participants[worker], old_ref, node_class(node_meta(old)));
    keylock_release(&f->locks, keylock_stripe(hash));
}

static void *race_writer(void *context)
{
    struct race_thread *t = context;
    uint64_t random = t->index;
    for (int round = 0; round < ROUNDS; round++) {
        epoch_enter(&t->race->f->participants[t->index]);
        int i = (int)(fixture_random(&random) % KEYS);
        if (i % 3 != 0)
            put_or_take(t->race->f, t->index, i);
        else
            exchange(t->race->f, t->index, i);
        epoch_exit(&t->race->f->participants[t->index]);
    }
    return NULL;
}

static void *race_reader(void *context)
{
    struct race_thread *t = context;
    struct index_fixture *f = t->race->f;
    char name[32];
    do {
        epoch_enter(&f->participants[t->index]);
        for (int i = 0; i < KEYS; i += 3) {
            struct slice key = key_of(name, i);
            if (!hash_table_find(&f->hash, hash_table_hash(&f->hash, key), key))
                atomic_fetch_add(&t->race->failures, 1);
        }
        struct ordered_cursor cursor;
        struct node *node, *last = NULL;
        int kept = 0;
        ordered_seek(&cursor, &f->ordered, slice_make("", 0), false);
        while ((node = ordered_next(&cursor))) {
            if (last && slice_compare(node_key(last), node_key(node)) >= 0)
                atomic_fetch_add(&t->race->failures, 1);
            last = node;
            struct slice key = node_key(node);
            char digits[8] = {0}; /* nodes do not end in NUL */
            memcpy(digits, key.data + key.len - 6, 6);
            kept += strtol(digits, NULL, 10) % 3 == 0;
        }
        if (kept != (KEYS + 2) / 3)
            atomic_fetch_add(&t->race->failures, 1);
        epoch_exit(&f->participants[t->index]);
    } while (!atomic_load(&t->race->stop));
    return NULL;
}

static void test_race(void **state)
{
    (void)state;
    struct race race = {.f = index_fixture_create(READERS + WRITERS)};
    for (int i = 0; i < KEYS; i += 3)
        put_or_take(race.f, 0, i);
    pthread_t threads[READERS + WRITERS];
    struct race_thread contexts[READERS + WRITERS];
    for (unsigned i = 0; i < READERS + WRITERS; i++) {
        contexts[i] = (struct race_thread){&race, i};
        assert_int_equal(
            pthread_create(&threads[i], NULL, i < FIRST_WRITER ? race_reader : race_writer, &contexts[i]), 0);
    }
    for (unsigned i = FIRST_WRITER; i < READERS + WRITERS; i++)
        pthread_join(threads[i], NULL);
    atomic_store(&race.stop, true);
    for (unsigned i = 0; i < FIRST_WRITER; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(atomic_load(&race.failures), 0);
    assert_int_equal(ordered_check(&race.f->ordered), atomic_load(&race.f->hash.count));
    index_fixture_destroy(race.f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_race)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
