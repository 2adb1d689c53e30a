/* The log over a disk that crashes, by seed. Property: what recovery delivers is a prefix of what was
 * published, and contains everything that was below the commit point; also after several crashes, crashes
 * inside recovery, when replay starts in the middle, and when segments below such a start are removed.
 *
 *   KVASIR_SEED=n    runs this seed only     KVASIR_SEEDS=n   runs so many */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/logger.h"
#include "log/log.h"
#include "sim/remove_below.h"
#include "sim/sim_disk.h"
#include "sim/sim_seeds.h"

enum { RECORDS_MAX = 4000, STEPS_MAX = 250, ROUNDS = 4, FLIGHTS_MAX = LOG_FLUSHES_MAX };

struct entry {
    uint64_t id;
    uint64_t lsn;
    uint32_t value_len;
};

struct world {
    uint64_t seed;
    struct prng prng;
    struct sim_disk *sim;
    struct log *log;
    struct entry history[RECORDS_MAX];
    size_t count;    /* published or about to be, in log order */
    size_t durable;  /* of them certainly on disk */
    size_t replayed; /* by the open that is under way */
    uint64_t next_id;
    struct log_flush flights[FLIGHTS_MAX];
    size_t flights_count;
    /* Checkpoints: where replay may start, and the first record from there on. candidate: taken, but not all
     * below it is durable yet. */
    struct start {
        uint64_t lsn;
        size_t first;
    } newest, older, candidate;
    bool removed; /* segments below older are gone: only newest and older can be started from */
    struct log_slot unpublished; /* bytes > 0: one reservation is held back */
    char *scratch;
    uint64_t crashes, opens, batches, checkpoints, removed_bytes, reused;
};

#define REQUIRE(world, condition)                                                                            \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            fprintf(stderr, "seed %llu, line %d: %s\n", (unsigned long long)(world)->seed, __LINE__,         \
                    #condition);                                                                             \
            fail();                                                                                          \
        }                                                                                                    \
    } while (0)

static struct slice make_value(struct world *w, uint64_t id, uint32_t len)
{
    for (uint32_t i = 0; i < len; i++)
        w->scratch[i] = (char)(id * 31 + i * 7 + (i >> 8));
    return slice_make(w->scratch, len);
}

static status_t on_record(void *context, const struct record *record)
{
    struct world *w = context;
    REQUIRE(w, w->replayed < w->count);
    const struct entry *e = &w->history[w->replayed++];
    REQUIRE(w, record->lsn == e->lsn && record->key.len == 8 && load_u64(record->key.data) == e->id);
    REQUIRE(w, slice_equal(record->value, make_value(w, e->id, e->value_len)));
    return status_ok();
}

static status_t on_replay(void *context, const struct record *records, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        TRY(on_record(context, &records[i]));
    return status_ok();
}

/* Where this start replays from. */
static struct start pick_start(struct world *w)
{
    unsigned which = (unsigned)prng_below(&w->prng, 3);
    if (which == 0 && !w->removed)
        return (struct start){0};
    return which == 1 ? w->older : w->newest;
}

static status_t open_log(struct world *w)
{
    struct start start = pick_start(w);
    struct log_config config = {.disk = &w->sim->disk,
                                .path = "sim",
                                .segment_bytes_first = 256 << 10,
                                .segment_bytes_max = 1 << 20,
                                .start_lsn = start.lsn,
                                .replay = on_replay,
                                .context = w};
    w->replayed = start.first;
    w->opens++;
    return log_open(&config, &w->log);
}

static uint32_t pick_value_len(struct world *w)
{
    switch (prng_below(&w->prng, 12)) {
    case 0:
        return (uint32_t)prng_below(&w->prng, 100 << 10);
    case 1:
        return (uint32_t)prng_below(&w->prng, 10 << 10);
    default:
        return (uint32_t)prng_below(&w->prng, 400);
    }
}

static void publish_held(struct world *w)
{
    if (w->unpublished.bytes)
        log_publish(w->log, &w->unpublished);
    w->unpublished.bytes = 0;
}

static void step_append(struct world *w)
{
    if (w->count == RECORDS_MAX)
        return;
    bool large = prng_below(&w->prng, 40) == 0;
    uint32_t value_len = large ? (uint32_t)prng_below(&w->prng, 900 << 10) : pick_value_len(w);
    size_t bytes = record_bytes(RECORD_SET, 8, value_len);
    char key[8];
    store_u64(key, w->next_id);
    struct slice value = make_value(w, w->next_id, value_len);
    struct log_batch *batch = large ? log_large_create(w->log, bytes) : NULL;
    struct log_slot slot;
    uint64_t hash = 0;
    if (large)
        hash = record_encode(log_large_data(batch), RECORD_SET, slice_make(key, 8), value, 0);
    enum log_reserve_result r = log_reserve(w->log, bytes, 1, LOG_NORMAL, batch, &slot);
    if (r != LOG_RESERVED) {
        if (large)
            log_large_destroy(batch);
        return;
    }
    if (!large)
        hash = record_encode(slot.dst, RECORD_SET, slice_make(key, 8), value, 0);
    record_seal(slot.dst, hash, slot.lsn, slot.generation);
    REQUIRE(w, w->count == 0 || slot.lsn > w->history[w->count - 1].lsn);
    REQUIRE(w, slot.lsn >= log_commit_lsn(w->log) && slot.lsn < log_tail_lsn(w->log));
    w->history[w->count++] = (struct entry){.id = w->next_id++, .lsn = slot.lsn, .value_len = value_len};
    publish_held(w);
    if (prng_below(&w->prng, 8) == 0)
        w->unpublished = slot;
    else
        log_publish(w->log, &slot);
}

static void step_take(struct world *w)
{
    while (w->flights_count < FLIGHTS_MAX &&
           log_flush_take(w->log, 1000, prng_below(&w->prng, 3) == 0, &w->flights[w->flights_count], NULL)) {
        struct log_flush *f = &w->flights[w->flights_count++];
        w->batches++;
        if (!w->sim->dead &&
            prng_below(&w->prng, 4)) /* else it has not reached the disk when the crash comes */
            (void)w->sim->disk.ops->write(&w->sim->disk, f->fd, f->buffer, f->len, f->offset);
    }
}

static void count_durable(struct world *w)
{
    uint64_t commit = log_commit_lsn(w->log);
    while (w->durable < w->count && w->history[w->durable].lsn < commit)
        w->durable++;
}

static void step_complete(struct world *w)
{
    if (w->flights_count == 0 || w->sim->dead)
        return;
    size_t i = prng_below(&w->prng, w->flights_count);
    struct log_flush f = w->flights[i];
    if (w->sim->disk.ops->write(&w->sim->disk, f.fd, f.buffer, f.len, f.offset) != (int64_t)f.len)
        return;
    sim_disk_sync_range(w->sim, f.fd, f.offset, f.len);
    w->flights[i] = w->flights[--w->flights_count];
    log_flush_done(w->log, &f, (int64_t)f.len, 1000);
    count_durable(w);
}

/* A checkpoint is begun, or published when all below its start is durable, or segments are removed that
 * neither of the two kept ones needs. */
static void step_checkpoint(struct world *w)
{
    if (w->candidate.lsn == 0) {
        w->candidate = (struct start){.lsn = log_tail_lsn(w->log), .first = w->count};
    } else if (w->candidate.lsn <= log_commit_lsn(w->log)) {
        w->older = w->newest;
        w->newest = w->candidate;
        w->candidate.lsn = 0;
        w->checkpoints++;
    }
    if (w->older.lsn && prng_below(&w->prng, 2)) {
        uint64_t bytes;
        status_t s = remove_below(w->log, w->older.lsn, prng_below(&w->prng, 2), &bytes);
        REQUIRE(w, status_is_ok(&s));
        w->removed |= bytes > 0;
        w->removed_bytes += bytes;
    }
}

static void run_steps(struct world *w)
{
    for (uint64_t n = prng_below(&w->prng, STEPS_MAX); n > 0; n--) {
        switch (prng_below(&w->prng, 11)) {
        case 10:
            step_checkpoint(w);
            break;
        case 0:
        case 1:
            step_take(w);
            break;
        case 2:
        case 3:
            step_complete(w);
            break;
        case 4:
            (void)log_prepare(w->log);
            break;
        case 5:
            publish_held(w);
            break;
        default:
            step_append(w);
        }
    }
}

static void drain(struct world *w)
{
    publish_held(w);
    do {
        (void)log_prepare(w->log);
        step_take(w);
        while (w->flights_count)
            step_complete(w);
    } while (log_has_unflushed(w->log));
    REQUIRE(w, log_commit_lsn(w->log) >= log_tail_lsn(w->log));
    REQUIRE(w, w->durable == w->count);
}

/* The process ends, one way or another; the disk is ready to be opened again. */
static void stop(struct world *w)
{
    unsigned how = (unsigned)prng_below(&w->prng, 6);
    struct log_stats stats;
    log_stats_get(w->log, &stats);
    w->reused += stats.segments_reused;
    if (how == 0) {
        drain(w);
        log_close(w->log);
        REQUIRE(w, sim_disk_opens(w->sim) == 0);
        return;
    }
    w->sim->dead = true;
    w->unpublished.bytes = 0;
    w->flights_count = 0;
    log_close(w->log);
    REQUIRE(w, sim_disk_opens(w->sim) == 0);
    w->crashes++;
    if (how == 1)
        sim_disk_restart(w->sim); /* kill -9: what was written stays */
    else
        sim_disk_crash(w->sim);
}

/* Opens, now and then with crashes in the middle of opening. */
static void start(struct world *w)
{
    for (int tries = 0; tries < 3 && prng_below(&w->prng, 2) == 0; tries++) {
        w->sim->fail_op = SIM_ANY;
        w->sim->fail_errno = EIO;
        w->sim->fail_dies = true;
        w->sim->fail_after = 1 + prng_below(&w->prng, 12);
        status_t s = open_log(w);
        if (status_is_ok(&s)) {
            w->sim->fail_after = 0;
            return;
        }
        REQUIRE(w, s.code == STATUS_IO && sim_disk_opens(w->sim) == 0);
        sim_disk_crash(w->sim);
    }
    status_t s = open_log(w);
    if (!status_is_ok(&s))
        fprintf(stderr, "%s\n", s.text);
    REQUIRE(w, status_is_ok(&s));
}

static void run_seed(struct world *w, uint64_t seed)
{
    w->seed = seed;
    prng_seed(&w->prng, seed);
    w->sim = sim_disk_create(seed + 1);
    w->count = w->durable = w->flights_count = 0;
    w->newest = w->older = (struct start){0};
    w->removed = false;
    for (int round = 0; round < ROUNDS; round++) {
        start(w);
        REQUIRE(w, w->replayed >= w->durable);
        w->count = w->durable = w->replayed; /* what was replayed is now seen by clients */
        REQUIRE(w, w->count == 0 || w->history[w->count - 1].lsn < log_commit_lsn(w->log));
        w->candidate.lsn = 0;
        run_steps(w);
        stop(w);
    }
    sim_disk_destroy(w->sim);
}

static void test_crashes(void **state)
{
    (void)state;
    struct sim_seeds seeds = sim_seeds_get(300);
    logger_set_level(LOGGER_ERROR);
    struct world *w = calloc(1, sizeof *w);
    w->scratch = malloc(1 << 20);
    for (uint64_t seed = seeds.first; seed < seeds.end; seed++)
        run_seed(w, seed);
    printf("%llu seeds from %llu: %llu opens, %llu crashes, %llu records, %llu batches, %llu checkpoints, "
           "%llu KiB removed, %llu files used again\n",
           (unsigned long long)(seeds.end - seeds.first), (unsigned long long)seeds.first,
           (unsigned long long)w->opens, (unsigned long long)w->crashes, (unsigned long long)w->next_id,
           (unsigned long long)w->batches, (unsigned long long)w->checkpoints,
           (unsigned long long)w->removed_bytes >> 10, (unsigned long long)w->reused);
    assert_true(w->reused > 0 || seeds.end - seeds.first == 1);
    free(w->scratch);
    free(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_crashes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
