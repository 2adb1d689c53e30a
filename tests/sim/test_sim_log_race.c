/* Threads reserve and publish while another one flushes and prepares segments. Property: every record
 * reserved is replayed exactly once, with its content, at its LSN; each thread's records in its order; none
 * overlaps another.
 *
 *   KVASIR_MEASURE=1 measures an uncontended reserve and publish instead. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "log/internal.h"
#include "log/log.h"
#include "sim/sim_disk.h"
#include "sys/clock.h"

enum { THREADS = 4, RECORDS = 20000, LARGE_EVERY = 5000 };

struct shared {
    struct sim_disk *sim;
    struct log *log;
    _Atomic unsigned running;
    uint64_t lsn[THREADS][RECORDS]; /* each thread writes its own row; read after the join */
    uint64_t next[THREADS];         /* by replay */
    uint64_t end_lsn;
};

struct writer {
    struct shared *shared;
    unsigned index;
};

static size_t value_len(uint64_t thread, uint64_t i)
{
    if (i % LARGE_EVERY == LARGE_EVERY - 1)
        return 200000;
    return (size_t)(prng_mix(thread << 32 | i) % (i % 100 == 0 ? 3000 : 60));
}

static uint64_t encode(char *dst, const char *value, uint64_t thread, uint64_t i)
{
    char key[16];
    store_u64(key, thread);
    store_u64(key + 8, i);
    return record_encode(dst, RECORD_SET, slice_make(key, 16), slice_make(value, value_len(thread, i)), 0);
}

static void append(struct writer *w, const char *value, uint64_t i)
{
    struct log *log = w->shared->log;
    size_t len = value_len(w->index, i), bytes = record_bytes(RECORD_SET, 16, len);
    struct log_batch *large = len > 100000 ? log_large_create(log, bytes) : NULL;
    uint64_t hash = large ? encode(log_large_data(large), value, w->index, i) : 0;
    struct log_slot slot;
    enum log_reserve_result r;
    while ((r = log_reserve(log, bytes, 1, LOG_NORMAL, large, &slot)) == LOG_WAIT)
        sched_yield(); /* a worker would step aside and do other work */
    if (r != LOG_RESERVED)
        abort();
    if (!large)
        hash = encode(slot.dst, value, w->index, i);
    record_seal(slot.dst, hash, slot.lsn, slot.generation);
    log_publish(log, &slot);
    w->shared->lsn[w->index][i] = slot.lsn;
}

static void *writer_main(void *context)
{
    struct writer *w = context;
    char *value = malloc(200000);
    memset(value, 'a' + (int)w->index, 200000);
    for (uint64_t i = 0; i < RECORDS; i++)
        append(w, value, i);
    free(value);
    atomic_fetch_sub_explicit(&w->shared->running, 1,
                              memory_order_release); /* pairs with the flusher's load */
    return NULL;
}

static void flush_all(struct shared *s)
{
    struct log_flush f;
    while (log_flush_take(s->log, clock_monotonic_us(), true, &f, NULL)) {
        struct disk *disk = &s->sim->disk;
        assert_int_equal(disk->ops->write(disk, f.fd, f.buffer, f.len, f.offset), f.len);
        sim_disk_sync_range(s->sim, f.fd, f.offset, f.len);
        uint64_t before = log_commit_lsn(s->log);
        log_flush_done(s->log, &f, (int64_t)f.len, clock_monotonic_us());
        assert_true(log_commit_lsn(s->log) > before);
        assert_true(log_commit_lsn(s->log) <= log_tail_lsn(s->log) + LOG_BLOCK_BYTES);
    }
}

static status_t on_record(void *context, const struct record *r)
{
    struct shared *s = context;
    uint64_t thread = load_u64(r->key.data), i = load_u64(r->key.data + 8);
    assert_true(thread < THREADS && i == s->next[thread]++);
    assert_int_equal(r->lsn, s->lsn[thread][i]);
    assert_true(r->lsn >= s->end_lsn);
    s->end_lsn = r->lsn + record_bytes(r->type, r->key.len, r->value.len);
    assert_int_equal(r->value.len, value_len(thread, i));
    for (size_t n = 0; n < r->value.len; n++)
        assert_int_equal(r->value.data[n], 'a' + (int)thread);
    return status_ok();
}

static status_t on_replay(void *context, const struct record *records, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        TRY(on_record(context, &records[i]));
    return status_ok();
}

static struct shared *shared_create(void)
{
    struct shared *s = calloc(1, sizeof *s);
    struct log_config config = {.path = "sim", .segment_bytes_first = 1 << 20, .segment_bytes_max = 4 << 20};
    s->sim = sim_disk_create(1);
    config.disk = &s->sim->disk;
    status_t status = log_open(&config, &s->log);
    assert_true(status_is_ok(&status));
    atomic_store_explicit(&s->running, THREADS, memory_order_relaxed);
    return s;
}

static void test_threads(void **state)
{
    (void)state;
    struct shared *s = shared_create();
    pthread_t threads[THREADS];
    struct writer writers[THREADS];
    for (unsigned i = 0; i < THREADS; i++) {
        writers[i] = (struct writer){s, i};
        pthread_create(&threads[i], NULL, writer_main, &writers[i]);
    }
    /* Acquire: pairs with the writers' release. */
    while (atomic_load_explicit(&s->running, memory_order_acquire)) {
        (void)log_prepare(s->log);
        flush_all(s);
        sched_yield();
    }
    for (unsigned i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    flush_all(s);
    assert_false(log_has_unflushed(s->log));
    assert_true(log_commit_lsn(s->log) >= log_tail_lsn(s->log));
    log_close(s->log);
    struct log_config config = {.disk = &s->sim->disk, .path = "sim", .replay = on_replay, .context = s};
    status_t status = log_open(&config, &s->log);
    assert_true(status_is_ok(&status));
    for (unsigned i = 0; i < THREADS; i++)
        assert_int_equal(s->next[i], RECORDS);
    log_close(s->log);
    sim_disk_destroy(s->sim);
    free(s);
}

struct holder {
    struct shared *shared;
    _Atomic bool holds, asks;
};

/* Holds the log's lock until somebody is about to ask for a flush, and some time longer. */
static void *holder_main(void *context)
{
    struct holder *h = context;
    spin_lock(&h->shared->log->lock);
    atomic_store(&h->holds, true);
    while (!atomic_load(&h->asks))
        sched_yield();
    for (unsigned i = 0; i < 1000; i++)
        sched_yield();
    spin_unlock(&h->shared->log->lock);
    return NULL;
}

/* Whoever is told that there is no flush to make may go to sleep: not because another thread looked. */
static void test_a_flush_is_not_missed(void **state)
{
    (void)state;
    struct shared *s = shared_create();
    struct holder h = {.shared = s};
    struct log_slot slot;
    struct log_flush f;
    pthread_t thread;
    assert_int_equal(log_reserve(s->log, 104, 1, LOG_NORMAL, NULL, &slot), LOG_RESERVED);
    log_publish(s->log, &slot);
    assert_int_equal(pthread_create(&thread, NULL, holder_main, &h), 0);
    while (!atomic_load(&h.holds))
        sched_yield();
    atomic_store(&h.asks, true);
    assert_true(log_flush_take(s->log, 1, false, &f, NULL));
    log_flush_done(s->log, &f, (int64_t)f.len, 1);
    pthread_join(thread, NULL);
    log_close(s->log);
    sim_disk_destroy(s->sim);
    free(s);
}

static void measure(void)
{
    struct shared *s = shared_create();
    uint64_t spent_us = 0, count = 0;
    for (int round = 0; round < 60; round++) {
        (void)log_prepare(s->log);
        uint64_t start = clock_monotonic_us();
        for (int i = 0; i < 8000; i++, count++) {
            struct log_slot slot;
            if (log_reserve(s->log, 104, 1, LOG_NORMAL, NULL, &slot) != LOG_RESERVED)
                abort();
            log_publish(s->log, &slot);
        }
        spent_us += clock_monotonic_us() - start;
        struct log_flush f;
        while (log_flush_take(s->log, 1, true, &f, NULL))
            log_flush_done(s->log, &f, (int64_t)f.len, 1);
    }
    printf("reserve + publish: %.1f ns\n", (double)spent_us * 1000 / (double)count);
    log_close(s->log);
    sim_disk_destroy(s->sim);
    free(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_threads),
                                       cmocka_unit_test(test_a_flush_is_not_missed)};
    if (getenv("KVASIR_MEASURE")) {
        measure();
        return 0;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
