/* Damaged, truncated and newer logs, failing and full disks. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <xxhash.h>

#include "base/bytes.h"
#include "log/log.h"
#include "log/segment.h"
#include "log/segments.h"
#include "part.h"
#include "sim/log_fixture.h"
#include "sim/sim_disk.h"

static unsigned replayed;

static status_t on_record(void *context, const struct record *record)
{
    uint64_t id = load_u64(record->key.data);
    assert_int_equal(id, replayed); /* in order, none missing */
    replayed++;
    return status_ok();
}

static status_t on_replay(void *context, const struct record *records, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        TRY(on_record(context, &records[i]));
    return status_ok();
}

static status_t open_sized(struct sim_disk *sim, uint64_t first_bytes, struct log **log)
{
    struct log_config config = {.disk = &sim->disk,
                                .path = "sim",
                                .segment_bytes_first = first_bytes,
                                .segment_bytes_max = first_bytes,
                                .replay = on_replay};
    replayed = 0;
    return log_open(&config, log);
}

static status_t open_log(struct sim_disk *sim, struct log **log)
{
    return open_sized(sim, 64 << 10, log);
}

static struct log *opened_sized(struct sim_disk *sim, uint64_t first_bytes)
{
    struct log *log;
    status_t s = open_sized(sim, first_bytes, &log);
    assert_true(status_is_ok(&s));
    return log;
}

static struct log *opened(struct sim_disk *sim)
{
    return opened_sized(sim, 64 << 10);
}

/* As SIGKILL leaves it. */
static void kill_log(struct sim_disk *sim, struct log *log)
{
    sim->dead = true;
    log_close(log);
    sim_disk_restart(sim);
}

static void close_both(struct sim_disk *sim, struct log *log)
{
    log_close(log);
    sim_disk_destroy(sim);
}

static struct sim_disk *make_closed(unsigned records)
{
    struct sim_disk *sim = sim_disk_create(1);
    struct log *log = opened(sim);
    fill(sim, log, 0, records, 100);
    log_close(log);
    return sim;
}

/* A log that was killed. */
static struct sim_disk *make_killed(uint64_t seed, unsigned records)
{
    struct sim_disk *sim = sim_disk_create(seed);
    struct log *log = opened(sim);
    fill(sim, log, 0, records, 100);
    kill_log(sim, log);
    return sim;
}

static void expect_corrupt(struct sim_disk *sim, const char *what, uint64_t where)
{
    struct log *log;
    status_t s = open_log(sim, &log);
    if (s.code != STATUS_CORRUPT || strstr(s.text, "sim/log-00000000") == NULL) {
        fprintf(stderr, "%s at %llu: %d %s\n", what, (unsigned long long)where, s.code, s.text);
        fail();
    }
}

/* A log that was closed cleanly: every flipped byte that counts is found, in the headers of the file, of
 * batches and in records. */
static void test_flipped_bytes(void **state)
{
    (void)state;
    struct sim_disk *sim = make_closed(3), *copy = sim_disk_create(2);
    for (uint64_t at = 0; at < 4 * LOG_BLOCK_BYTES; at += PART) {
        uint64_t in_block = at % LOG_BLOCK_BYTES;
        bool counts = at < LOG_BLOCK_BYTES ? in_block < 56 : in_block < BATCH_HEADER_BYTES + 124;
        if (!counts)
            continue;
        sim_disk_copy(copy, sim);
        struct sim_file *f = sim_disk_file(copy, "log-0000000001.kv");
        f->data[at] ^= 0x10;
        expect_corrupt(copy, "flip", at);
    }
    sim_disk_destroy(sim);
    sim_disk_destroy(copy);
}

/* Truncated anywhere. Only where a batch ends is it not to be told from a log that ended there. */
static void test_truncations(void **state)
{
    (void)state;
    struct sim_disk *sim = make_closed(3), *copy = sim_disk_create(2);
    uint64_t size = sim_disk_file(sim, "log-0000000001.kv")->size;
    for (uint64_t at = 1; at < size; at += (at < 6 * LOG_BLOCK_BYTES ? 13 : 509) * PART) {
        sim_disk_copy(copy, sim);
        sim_disk_resize(sim_disk_file(copy, "log-0000000001.kv"), at);
        expect_corrupt(copy, "truncation", at);
    }
    sim_disk_destroy(sim);
    sim_disk_destroy(copy);
}

static void test_missing_segments(void **state)
{
    (void)state;
    struct sim_disk *sim = make_closed(40), *copy = sim_disk_create(2); /* 14 or so to a segment */
    char name[SEGMENT_NAME_BYTES];
    for (unsigned number = 1; number <= 3; number++) {
        sim_disk_copy(copy, sim);
        segment_name(name, number);
        sim_disk_file(copy, name)->named = false;
        expect_corrupt(copy, "missing", number);
    }
    /* Also when only a restart divides them. */
    struct sim_disk *two = make_closed(2);
    struct log *log = opened(two);
    fill(two, log, 2, 1, 100);
    kill_log(two, log);
    sim_disk_file(two, "log-0000000001.kv")->named = false;
    expect_corrupt(two, "missing", 1);
    sim_disk_destroy(sim);
    sim_disk_destroy(copy);
    sim_disk_destroy(two);
}

/* The newest is gone, in a log that was not closed: the one made ahead names it. Without that one, and also
 * where its note of that is damaged, it looks like a log that ended before. */
static void test_missing_newest(void **state)
{
    (void)state;
    struct sim_disk *sim = make_killed(1, 40), *copy = sim_disk_create(2);
    assert_non_null(sim_disk_file(sim, "log-0000000004.kv")); /* made ahead */
    sim_disk_file(sim, "log-0000000003.kv")->named = false;
    sim_disk_copy(copy, sim);
    expect_corrupt(copy, "missing", 3);
    for (unsigned at = 56; at < 72; at++) {
        sim_disk_copy(copy, sim);
        sim_disk_file(copy, "log-0000000004.kv")->data[at] ^= 1;
        struct log *log = opened(copy);
        assert_true(replayed > 0 && replayed < 40);
        log_close(log);
    }
    sim_disk_destroy(sim);
    sim_disk_destroy(copy);
}

/* A start dies at each step of removing what was never used: the next one still takes the log for whole. */
static void test_dying_while_unused_files_go(void **state)
{
    (void)state;
    struct log *log;
    for (uint64_t step = 1, died = 1; died; step++) {
        struct sim_disk *sim = make_killed(step, 3);
        log = opened(sim); /* nothing is logged this time: two unused files */
        assert_true(log_prepare(log));
        kill_log(sim, log);
        sim->fail_op = SIM_ANY;
        sim->fail_after = step;
        sim->fail_errno = EIO;
        sim->fail_dies = true;
        status_t s = open_log(sim, &log);
        died = sim->dead;
        assert_int_equal(status_is_ok(&s), !died);
        if (!died)
            log_close(log);
        sim_disk_crash(sim);
        s = open_log(sim, &log);
        if (!status_is_ok(&s))
            fail_msg("died at step %llu, then: %s", (unsigned long long)step, s.text);
        assert_int_equal(replayed, 3);
        close_both(sim, log);
    }
}

static void test_newer_version(void **state)
{
    (void)state;
    struct sim_disk *sim = make_closed(3);
    struct log *log;
    char *header = sim_disk_file(sim, "log-0000000001.kv")->data;
    header[8] = 9;
    store_u64(header + 48, XXH3_64bits(header, 48));
    status_t s = open_log(sim, &log);
    assert_int_equal(s.code, STATUS_UNSUPPORTED);
    assert_non_null(strstr(s.text, "sim/log-0000000001.kv has format version 9"));
    sim_disk_destroy(sim);
}

static void test_second_open_is_refused(void **state)
{
    (void)state;
    struct sim_disk *sim = sim_disk_create(1);
    struct log *log = opened(sim), *second;
    status_t s = open_log(sim, &second);
    assert_int_equal(s.code, STATUS_BUSY);
    assert_non_null(strstr(s.text, "folder sim is in use by another kvasir process"));
    close_both(sim, log);
}

/* Crash with the first two flushes after a restart in flight: a torn one, and a whole one behind it. That is
 * a torn tail, not damage. */
static void test_torn_right_after_restart(void **state)
{
    (void)state;
    struct sim_disk *sim = make_closed(2);
    struct log_flush a, b;
    struct log *log = opened_sized(sim, 1 << 20);
    append(log, 2, 5000, LOG_NORMAL);
    assert_true(log_flush_take(log, 1, true, &a, NULL));
    append(log, 3, 100, LOG_NORMAL);
    assert_true(log_flush_take(log, 1, true, &b, NULL));
    write_flush(sim, &a);
    write_flush(sim, &b);
    memset(sim->files[a.fd].data + a.offset + LOG_BLOCK_BYTES, 0x55, 512); /* its header is whole */
    kill_log(sim, log);
    log = opened(sim);
    assert_int_equal(replayed, 2);
    close_both(sim, log);
}

/* Flushes complete in any order: the commit point advances over the complete ones at the front only. */
static void test_completion_order(void **state)
{
    (void)state;
    struct sim_disk *sim = sim_disk_create(1);
    struct log_flush f[4];
    struct log *log = opened_sized(sim, 1 << 20);
    uint64_t start = log_commit_lsn(log);
    for (unsigned i = 0; i < 4; i++) {
        append(log, i, 100, LOG_NORMAL);
        assert_true(log_flush_take(log, 1, true, &f[i], NULL));
    }
    append(log, 4, 100, LOG_NORMAL);
    struct log_flush none;
    assert_false(log_flush_take(log, 1, true, &none, NULL)); /* enough in flight */
    log_flush_done(log, &f[2], (int64_t)f[2].len, 1);
    log_flush_done(log, &f[1], (int64_t)f[1].len, 1);
    assert_int_equal(log_commit_lsn(log), start);
    log_flush_done(log, &f[0], (int64_t)f[0].len, 1);
    assert_int_equal(log_commit_lsn(log), start + 3 * LOG_BLOCK_BYTES);
    /* A short write is final: the commit point stays for good. */
    log_flush_done(log, &f[3], 512, 1);
    assert_non_null(log_failed(log));
    assert_int_equal(append(log, 5, 10, LOG_NORMAL), LOG_DEAD);
    assert_false(log_flush_take(log, 1, true, &none, NULL));
    assert_int_equal(log_commit_lsn(log), start + 3 * LOG_BLOCK_BYTES);
    close_both(sim, log);
}

static void test_failed_write_names_the_error(void **state)
{
    (void)state;
    struct sim_disk *sim = sim_disk_create(1);
    struct log_flush f;
    struct log *log = opened(sim);
    append(log, 0, 100, LOG_NORMAL);
    assert_true(log_flush_take(log, 1, false, &f, NULL));
    log_flush_done(log, &f, -EIO, 1);
    assert_non_null(strstr(log_failed(log), "Input/output error"));
    close_both(sim, log);
}

/* Appends as many records as go, from number *n on. What the next one is answered. */
static enum log_reserve_result fill_up(struct sim_disk *sim, struct log *log, unsigned *n,
                                       enum log_reserve_kind kind)
{
    enum log_reserve_result r;
    while ((r = append(log, *n, 1000, kind)) == LOG_RESERVED) {
        ++*n;
        flush(sim, log);
    }
    return r;
}

/* Deletes have some room more, and then none. */
static void use_headroom(struct sim_disk *sim, struct log *log, unsigned *n)
{
    unsigned before = *n;
    assert_int_equal(fill_up(sim, log, n, LOG_HEADROOM), LOG_NO_SPACE);
    assert_true(*n > before + 20);
}

/* Full: normal writes stop first, deletes go on for a while, reading back works, and all resumes by itself.
 */
static void test_disk_full(void **state)
{
    (void)state;
    struct sim_disk *sim = sim_disk_create(1);
    unsigned n = 0;
    sim->capacity = 5 << 19; /* one segment of 2 MiB, and 1/2 MiB: less than the smallest segment */
    struct log *log = opened_sized(sim, 2 << 20);
    assert_false(log_prepare(log));
    assert_true(log_disk_full(log));
    assert_int_equal(fill_up(sim, log, &n, LOG_NORMAL), LOG_NO_SPACE);
    use_headroom(sim, log, &n);
    sim->capacity = 0;
    assert_true(log_prepare(log));
    assert_false(log_disk_full(log));
    assert_int_equal(append(log, n, 1000, LOG_NORMAL), LOG_RESERVED);
    flush(sim, log);
    n++;
    log_close(log);
    log = opened(sim);
    assert_int_equal(replayed, n);
    close_both(sim, log);
}

/* The segment is used up before it is known that the disk is full: what is kept back for deletes is left. */
static void test_disk_full_found_late(void **state)
{
    (void)state;
    struct sim_disk *sim = sim_disk_create(1);
    unsigned n = 0;
    sim->capacity = 5 << 19;
    struct log *log = opened_sized(sim, 2 << 20);
    assert_int_equal(fill_up(sim, log, &n, LOG_NORMAL), LOG_WAIT);
    assert_false(log_prepare(log));
    assert_int_equal(append(log, n, 1000, LOG_NORMAL), LOG_NO_SPACE);
    use_headroom(sim, log, &n);
    sim->capacity = 0;
    assert_true(log_prepare(log));
    assert_int_equal(append(log, n, 1000, LOG_NORMAL), LOG_RESERVED);
    flush(sim, log);
    close_both(sim, log);
}

/* Not for lack of room: why is told. It may be another reason the next time. */
static void test_segment_not_made(void **state)
{
    (void)state;
    struct sim_disk *sim = sim_disk_create(1);
    unsigned n = 0;
    struct log *log = opened_sized(sim, 2 << 20);
    assert_int_equal(log_refused_errno(log), 0);
    sim->fail_op = SIM_CREATE;
    sim->fail_after = 1;
    sim->fail_errno = EMFILE;
    assert_false(log_prepare(log));
    assert_int_equal(log_refused_errno(log), EMFILE);
    assert_int_equal(fill_up(sim, log, &n, LOG_NORMAL), LOG_NO_SPACE);
    sim->capacity = 5 << 19;
    assert_false(log_prepare(log));
    assert_int_equal(log_refused_errno(log), 0);
    sim->capacity = 0;
    assert_true(log_prepare(log));
    assert_int_equal(append(log, n, 1000, LOG_NORMAL), LOG_RESERVED);
    flush(sim, log);
    close_both(sim, log);
}

/* Room as the store gives it: none now, for nothing but what only deletes may use; more to come. */
struct given_room {
    bool has_room, comes;
    unsigned asked_for_deletes;
};

static bool room_for(void *context, uint64_t bytes, bool for_deletes)
{
    struct given_room *room = context;
    (void)bytes;
    room->asked_for_deletes += for_deletes;
    return room->has_room || for_deletes;
}

static bool no_spare(void *context, uint64_t bytes)
{
    (void)context, (void)bytes;
    return false;
}

static void room_used(void *context, uint64_t bytes)
{
    (void)context, (void)bytes;
}

static bool room_comes(void *context, uint64_t bytes, bool for_deletes)
{
    (void)bytes, (void)for_deletes;
    return ((struct given_room *)context)->comes;
}

static struct log *opened_with_room(struct sim_disk *sim, struct given_room *room, uint64_t bytes)
{
    struct log_config config = {.disk = &sim->disk,
                                .path = "sim",
                                .segment_bytes_first = bytes,
                                .segment_bytes_max = bytes,
                                .replay = on_replay,
                                .may_allocate = room_for,
                                .may_reuse = no_spare,
                                .allocated = room_used,
                                .may_wait = room_comes,
                                .context = room};
    struct log *log;
    replayed = 0;
    status_t s = log_open(&config, &log);
    assert_true(status_is_ok(&s));
    return log;
}

/* Where room comes soon nothing is made for deletes until most of what is kept back for them is used up. */
static void test_deletes_use_what_is_kept_first(void **state)
{
    (void)state;
    struct sim_disk *sim = sim_disk_create(1);
    struct given_room room = {.has_room = true};
    unsigned n = 0;
    struct log *log = opened_with_room(sim, &room, 2 << 20);
    room = (struct given_room){.comes = true};
    assert_int_equal(fill_up(sim, log, &n, LOG_NORMAL), LOG_WAIT);
    assert_false(log_prepare(log));
    assert_true(log_lacks_room(log));
    assert_false(log_disk_full(log));
    assert_int_equal(room.asked_for_deletes, 0);
    assert_int_equal(fill_up(sim, log, &n, LOG_HEADROOM), LOG_WAIT);
    assert_false(log_prepare(log));
    assert_int_equal(room.asked_for_deletes, 1);
    assert_int_equal(append(log, n, 1000, LOG_HEADROOM), LOG_RESERVED);
    flush(sim, log);
    n++;
    assert_int_equal(append(log, n, 1000, LOG_NORMAL), LOG_WAIT);
    room.has_room = true;
    assert_true(log_prepare(log));
    assert_int_equal(append(log, n, 1000, LOG_NORMAL), LOG_RESERVED);
    flush(sim, log);
    n++;
    log_close(log);
    log = opened(sim);
    assert_int_equal(replayed, n);
    close_both(sim, log);
}

/* A long one that no longer fits is not refused for what shorter ones could still use. */
static void test_a_long_delete_gets_room(void **state)
{
    (void)state;
    for (size_t before = 0; before <= 100 << 10; before += 10 << 10) {
        struct sim_disk *sim = sim_disk_create(1);
        struct given_room room = {.has_room = true};
        unsigned n = 0;
        struct log *log = opened_with_room(sim, &room, 1 << 20);
        room = (struct given_room){.comes = true};
        assert_int_equal(fill_up(sim, log, &n, LOG_NORMAL), LOG_WAIT);
        assert_false(log_prepare(log));
        assert_int_equal(append(log, n, before, LOG_HEADROOM), LOG_RESERVED);
        flush(sim, log);
        if (append(log, n + 1, 100 << 10, LOG_HEADROOM) == LOG_WAIT) {
            assert_false(log_prepare(log));
            assert_int_equal(append(log, n + 1, 100 << 10, LOG_HEADROOM), LOG_RESERVED);
        }
        flush(sim, log);
        close_both(sim, log);
    }
}

/* Where none will come it is made at once. */
static void test_deletes_get_their_own_segment(void **state)
{
    (void)state;
    struct sim_disk *sim = sim_disk_create(1);
    struct given_room room = {.has_room = true};
    unsigned n = 0;
    struct log *log = opened_with_room(sim, &room, 2 << 20);
    room = (struct given_room){.comes = false};
    assert_false(log_prepare(log));
    assert_int_equal(room.asked_for_deletes, 1);
    assert_int_equal(fill_up(sim, log, &n, LOG_NORMAL), LOG_NO_SPACE);
    unsigned before = n;
    assert_int_equal(fill_up(sim, log, &n, LOG_HEADROOM), LOG_WAIT); /* the next one is made at once */
    assert_true(n > before + 200);                                   /* each in a block of its own */
    assert_false(log_prepare(log));
    assert_int_equal(room.asked_for_deletes, 2);
    assert_int_equal(append(log, n, 1000, LOG_HEADROOM), LOG_RESERVED);
    flush(sim, log);
    close_both(sim, log);
}

static void test_start_on_a_full_disk(void **state)
{
    (void)state;
    struct sim_disk *sim = sim_disk_create(1);
    struct log *log;
    sim->capacity = 512 << 10;
    status_t s = open_sized(sim, 4 << 20, &log);
    assert_int_equal(s.code, STATUS_NO_SPACE);
    assert_non_null(strstr(s.text, "No space left"));
    sim->capacity = 3 << 20; /* enough for a smaller one */
    log = opened_sized(sim, 4 << 20);
    close_both(sim, log);
}

static bool count_record(void *context, const struct record *record)
{
    return ++*(unsigned *)context < 2;
}

static void test_read(void **state)
{
    (void)state;
    struct sim_disk *sim = make_closed(40);
    unsigned seen = 0;
    char note[256];
    status_t s = log_read(&sim->disk, "sim", 0, count_record, &seen, note);
    assert_true(status_is_ok(&s));
    assert_int_equal(seen, 2); /* stopped when told to */
    sim_disk_destroy(sim);
}

/* A table that outlives the log: what the log makes, reads, finishes and discards is listed, or not, and its
 * sizes are those of the files. */
static void test_table(void **state)
{
    (void)state;
    struct sim_disk *sim = make_closed(40); /* 14 or so to a segment */
    struct segments *table = segments_create(&sim->disk);
    struct log_config config = {.disk = &sim->disk,
                                .path = "sim",
                                .segments = table,
                                .segment_bytes_first = 64 << 10,
                                .segment_bytes_max = 64 << 10};
    struct log *log;
    struct log_slot slot;
    status_t s = log_open(&config, &log);
    assert_true(status_is_ok(&s));
    char name[SEGMENT_NAME_BYTES];
    for (unsigned number = 1; number <= 3; number++) {
        struct segment_file *f = segments_find(table, segment_lsn(number, 5000));
        segment_name(name, number);
        assert_ptr_equal(sim_disk_file(sim, name), &sim->files[f->fd]);
        assert_int_equal(atomic_load(&f->bytes), sim->files[f->fd].size);
        assert_true(atomic_load(&f->sealed));
    }
    assert_false(atomic_load(&segments_find(table, segment_lsn(4, 0))->sealed)); /* new */
    assert_null(segments_find(table, segment_lsn(5, 0)));
    assert_true(log_prepare(log));
    assert_non_null(segments_find(table, segment_lsn(5, 0)));
    /* The one made ahead is too small for this record: it goes. */
    struct log_batch *large = log_large_create(log, 200 << 10);
    assert_int_equal(log_reserve(log, 200 << 10, 1, LOG_NORMAL, large, &slot), LOG_WAIT);
    log_large_destroy(large);
    assert_true(log_prepare(log));
    assert_null(segments_find(table, segment_lsn(5, 0)));
    assert_null(sim_disk_file(sim, "log-0000000005.kv"));
    struct segment_file *next = segments_find(table, segment_lsn(6, 0));
    assert_true(atomic_load(&next->bytes) > 200 << 10);
    /* Used up and flushed: sealed, and still open. */
    for (unsigned i = 40; i < 60; i++) {
        assert_int_equal(append(log, i, 100, LOG_NORMAL), LOG_RESERVED);
        flush(sim, log);
    }
    assert_true(atomic_load(&segments_find(table, segment_lsn(4, 0))->sealed));
    struct log_stats *stats = malloc(sizeof *stats);
    log_stats_get(log, stats);
    assert_int_equal(stats->segments, 5);
    assert_int_equal(sim_disk_opens(sim), 5);
    free(stats);
    log_close(log);
    assert_int_equal(sim_disk_opens(sim), 5);
    segments_destroy(table);
    assert_int_equal(sim_disk_opens(sim), 0);
    sim_disk_destroy(sim);
}

static enum log_reserve_result append_large(struct log *log, size_t bytes)
{
    struct log_slot slot;
    struct log_batch *large = log_large_create(log, bytes);
    assert_non_null(large);
    enum log_reserve_result r = log_reserve(log, bytes, 1, LOG_NORMAL, large, &slot);
    if (r == LOG_RESERVED)
        log_publish(log, &slot);
    else
        log_large_destroy(large);
    return r;
}

/* Whoever writes long records faster than the disk takes them must wait: they lie in memory until then. */
static void test_long_records_wait(void **state)
{
    enum { BYTES = SIM_FILE_BYTES_MAX - (16 << 10) };
    (void)state;
    struct sim_disk *sim = sim_disk_create(1);
    struct log_config config = {.disk = &sim->disk,
                                .path = "sim",
                                .segment_bytes_first = SIM_FILE_BYTES_MAX,
                                .segment_bytes_max = SIM_FILE_BYTES_MAX,
                                .flush_interval_us = 1000000};
    struct log *log;
    struct log_flush f;
    status_t s = log_open(&config, &log);
    assert_true(status_is_ok(&s));
    for (uint64_t bytes = 0; bytes < LOG_LARGE_WAITING_MAX; bytes += BYTES) {
        assert_int_equal(log_large_ask(log, BYTES, LOG_NORMAL), LOG_RESERVED);
        assert_int_equal(append_large(log, BYTES), LOG_RESERVED);
        assert_true(log_prepare(log));
    }
    assert_int_equal(log_large_ask(log, BYTES, LOG_NORMAL), LOG_WAIT);
    assert_int_equal(append_large(log, BYTES), LOG_WAIT);
    assert_int_equal(append(log, 1, 100, LOG_NORMAL), LOG_RESERVED); /* short ones go on */
    /* They are due at once, whatever the interval. */
    assert_true(log_flush_take(log, 1, false, &f, NULL));
    assert_int_equal(append_large(log, BYTES), LOG_WAIT);
    write_flush(sim, &f);
    log_flush_done(log, &f, (int64_t)f.len, 2);
    assert_int_equal(append_large(log, BYTES), LOG_RESERVED);
    flush(sim, log);
    assert_int_equal(log_large_ask(log, BYTES, LOG_NORMAL), LOG_WAIT); /* for a segment */
    assert_true(log_prepare(log));
    assert_int_equal(log_large_ask(log, BYTES, LOG_NORMAL), LOG_RESERVED);
    close_both(sim, log);
}

/* A long record waits for a segment of its own; shorter ones go on in what there is. */
static void test_a_long_record_waits_alone(void **state)
{
    enum { SEGMENT = 1 << 20, LONG = 2 * SEGMENT };
    (void)state;
    struct sim_disk *sim = sim_disk_create(1);
    struct given_room room = {.has_room = true};
    struct log *log = opened_with_room(sim, &room, SEGMENT);
    assert_int_equal(append(log, 0, 1000, LOG_NORMAL), LOG_RESERVED);
    (void)log_prepare(log);
    room = (struct given_room){.comes = true};
    assert_int_equal(append_large(log, LONG), LOG_WAIT);
    assert_false(log_lacks_large(log)); /* whether there is room is not known yet */
    assert_false(log_prepare(log));
    assert_true(log_lacks_large(log));
    assert_false(log_lacks_room(log));
    assert_int_equal(append(log, 1, 1000, LOG_NORMAL), LOG_RESERVED);
    flush(sim, log);
    room.has_room = true;
    assert_true(log_prepare(log));
    assert_false(log_lacks_large(log));
    assert_int_equal(append_large(log, LONG), LOG_RESERVED);
    flush(sim, log);
    room = (struct given_room){.comes = true};
    assert_int_equal(append_large(log, LONG), LOG_WAIT);
    assert_false(log_prepare(log));
    assert_true(log_lacks_large(log));
    room.comes = false; /* refused, and nobody waits for it any longer */
    assert_false(log_prepare(log));
    assert_false(log_lacks_large(log));
    assert_int_equal(append_large(log, LONG), LOG_NO_SPACE);
    close_both(sim, log);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_long_records_wait),
        cmocka_unit_test(test_a_long_record_waits_alone),
        cmocka_unit_test(test_flipped_bytes),
        cmocka_unit_test(test_truncations),
        cmocka_unit_test(test_missing_segments),
        cmocka_unit_test(test_missing_newest),
        cmocka_unit_test(test_dying_while_unused_files_go),
        cmocka_unit_test(test_newer_version),
        cmocka_unit_test(test_second_open_is_refused),
        cmocka_unit_test(test_torn_right_after_restart),
        cmocka_unit_test(test_completion_order),
        cmocka_unit_test(test_failed_write_names_the_error),
        cmocka_unit_test(test_disk_full),
        cmocka_unit_test(test_disk_full_found_late),
        cmocka_unit_test(test_segment_not_made),
        cmocka_unit_test(test_deletes_use_what_is_kept_first),
        cmocka_unit_test(test_a_long_delete_gets_room),
        cmocka_unit_test(test_deletes_get_their_own_segment),
        cmocka_unit_test(test_start_on_a_full_disk),
        cmocka_unit_test(test_read),
        cmocka_unit_test(test_table),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
