/* Nothing is freed while a section can still find it. */
#include "index_fixture.h"

#include <pthread.h>
#include <stdatomic.h>

#include "base/prng.h"
#include "base/spin.h"

enum {
    BLOCK_BYTES = 64,
    COLD_BYTES = 64 << 20,
    COLD_STORES = 16, /* whose memory is not in the cache: so the store that unlinks comes late */
    LOOKS = 400,
#ifdef __SANITIZE_THREAD__
    ROUNDS = 100000,
#else
    ROUNDS = 1000000,
#endif
};

struct race {
    struct index_fixture *f;
    _Atomic char *cold;
    _Atomic uint32_t link __attribute__((aligned(64)));
    _Atomic bool done __attribute__((aligned(64)));
    uint64_t reused; /* blocks that a reader saw change */
};

/* Blocks begin with their number, never 0; a free one begins with something else. */
static _Atomic uint64_t *number_of(struct race *race, uint32_t ref)
{
    return arena_at(&race->f->arena, ref);
}

static uint32_t make(struct race *race, uint64_t number)
{
    uint32_t ref = arena_alloc(&race->f->caches[0], arena_class(BLOCK_BYTES));
    atomic_store_explicit(number_of(race, ref), number << 32 | 0xffffffff, memory_order_relaxed);
    return ref;
}

static void *retirer(void *context)
{
    struct race *race = context;
    struct epoch_participant *epoch = &race->f->participants[0];
    struct prng p;
    prng_seed(&p, 1);
    for (uint64_t n = 1; n < ROUNDS; n++) {
        epoch_enter(epoch);
        uint32_t ref = make(race, n);
        for (unsigned i = 0; i < COLD_STORES; i++)
            atomic_store_explicit(&race->cold[prng_below(&p, COLD_BYTES)], 1, memory_order_relaxed);
        uint32_t old = atomic_load_explicit(&race->link, memory_order_relaxed);
        atomic_store_explicit(&race->link, ref, memory_order_release);
        epoch_retire_block(epoch, old, arena_class(BLOCK_BYTES));
        epoch_exit(epoch);
    }
    atomic_store_explicit(&race->done, true, memory_order_relaxed);
    return NULL;
}

static void *reader(void *context)
{
    struct race *race = context;
    struct epoch_participant *epoch = &race->f->participants[1];
    uint32_t own = arena_alloc(&race->f->caches[1], arena_class(BLOCK_BYTES));
    for (uint64_t n = 0; !atomic_load_explicit(&race->done, memory_order_relaxed); n++) {
        epoch_enter(epoch);
        _Atomic uint64_t *number = number_of(race, atomic_load_explicit(&race->link, memory_order_acquire));
        uint64_t seen = atomic_load_explicit(number, memory_order_relaxed);
        bool same = (uint32_t)seen == 0xffffffff;
        for (unsigned i = 0; i < LOOKS && n % 4 == 0 && same; i++) {
            same = atomic_load_explicit(number, memory_order_relaxed) == seen;
            spin_pause();
        }
        race->reused += !same;
        /* Who has something to free moves the epoch on. */
        epoch_retire_block(epoch, own, arena_class(BLOCK_BYTES));
        own = arena_alloc(&race->f->caches[1], arena_class(BLOCK_BYTES));
        epoch_exit(epoch);
    }
    return NULL;
}

static void test_nothing_is_freed_early(void **state)
{
    (void)state;
    struct race race = {.f = index_fixture_create(2), .cold = calloc(1, COLD_BYTES)};
    pthread_t threads[2];
    assert_non_null(race.cold);
    atomic_init(&race.link, make(&race, 1));
    assert_int_equal(pthread_create(&threads[0], NULL, retirer, &race), 0);
    assert_int_equal(pthread_create(&threads[1], NULL, reader, &race), 0);
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_join(threads[i], NULL), 0);
    assert_int_equal(race.reused, 0);
    free(race.cold);
    index_fixture_destroy(race.f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_nothing_is_freed_early)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
