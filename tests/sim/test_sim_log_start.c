/* Logs that are replayed from the middle (a checkpoint restores what is before), and whose oldest segments
 * are removed. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "log/log.h"
#include "log/segment.h"
#include "log/segments.h"
#include "sim/log_fixture.h"
#include "sim/remove_below.h"
#include "sim/sim_disk.h"

enum { RECORDS = 60, RUNS = 3, VALUE_LEN = 3000 };

/* tails[i]: a start that leaves records i and above to replay. */
static uint64_t tails[RECORDS + 8];
static uint64_t expected; /* the next record to be replayed */
static unsigned replayed;

static status_t on_replay(void *context, const struct record *records, unsigned n)
{
    for (unsigned i = 0; i < n; i++, expected++, replayed++)
        assert_int_equal(load_u64(records[i].key.data), expected); /* in order, none missing */
    return status_ok();
}

static struct log_config config_of(struct sim_disk *sim, uint64_t start_lsn, unsigned first_record)
{
    expected = first_record;
    replayed = 0;
    return (struct log_config){.disk = &sim->disk,
                               .path = "sim",
                               .segment_bytes_first = 64 << 10,
                               .segment_bytes_max = 64 << 10,
                               .start_lsn = start_lsn,
                               .replay = on_replay};
}

/* Opens with the start that leaves records `first` and above. */
static struct log *open_from(struct sim_disk *sim, unsigned first)
{
    struct log_config config = config_of(sim, tails[first], first);
    struct log *log;
    status_t s = log_open(&config, &log);
    if (!status_is_ok(&s))
        fprintf(stderr, "start %u: %s\n", first, s.text);
    assert_true(status_is_ok(&s));
    return log;
}

static struct log *open_whole(struct sim_disk *sim)
{
    uint64_t first = tails[0];
    tails[0] = 0;
    struct log *log = open_from(sim, 0);
    tails[0] = first;
    return log;
}

static void expect_corrupt(struct sim_disk *sim, unsigned first, const char *file)
{
    struct log_config config = config_of(sim, tails[first], first);
    struct log *log;
    status_t s = log_open(&config, &log);
    if (s.code != STATUS_CORRUPT || strstr(s.text, file) == NULL)
        fprintf(stderr, "start %u (LSN %llx), %s: %d %s\n", first, (unsigned long long)tails[first], file,
                s.code, s.text);
    assert_int_equal(s.code, STATUS_CORRUPT);
    assert_non_null(strstr(s.text, file)); /* the file is named */
    assert_int_equal(sim_disk_opens(sim), 0);
}

static void append_one(struct sim_disk *sim, struct log *log, unsigned id)
{
    assert_int_equal(append(log, id, VALUE_LEN, LOG_NORMAL), LOG_RESERVED);
    tails[id + 1] = log_tail_lsn(log); /* behind the record: in a batch, or in its padding */
    if (id % 3 != 1)                   /* batches of one and of two */
        flush(sim, log);
    (void)log_prepare(log);
}

/* A log of several runs and segments, closed cleanly. */
static struct sim_disk *make_log(void)
{
    struct sim_disk *sim = sim_disk_create(1);
    for (unsigned run = 0, id = 0; run < RUNS; run++) {
        struct log *log = open_whole(sim);
        assert_int_equal(replayed, id);
        if (run == 0)
            tails[0] = log_tail_lsn(log);
        for (; id < (run + 1) * RECORDS / RUNS; id++)
            append_one(sim, log, id);
        flush(sim, log);
        log_close(log);
    }
    return sim;
}

static uint64_t number_of(unsigned first)
{
    return tails[first] >> LOG_SEGMENT_SHIFT;
}

static struct sim_file *file_of(struct sim_disk *sim, uint64_t number)
{
    char name[SEGMENT_NAME_BYTES];
    segment_name(name, number);
    return sim_disk_file(sim, name);
}

static unsigned files(struct sim_disk *sim)
{
    unsigned n = 0;
    for (uint64_t number = 1; number < 100; number++)
        n += file_of(sim, number) != NULL;
    return n;
}

/* From every start: exactly what is above, twice, with writes between; and the log stays whole for an older
 * start, or none. */
static void test_every_start(void **state)
{
    (void)state;
    struct sim_disk *sim = make_log(), *copy = sim_disk_create(2);
    assert_true(number_of(RECORDS) > 4);
    for (unsigned first = 0; first <= RECORDS; first++) {
        sim_disk_copy(copy, sim);
        struct log *log = open_from(copy, first);
        assert_int_equal(replayed, RECORDS - first);
        append_one(copy, log, RECORDS);
        flush(copy, log);
        log_close(log);
        log = open_from(copy, first);
        assert_int_equal(replayed, RECORDS + 1 - first);
        log_close(log);
        log = open_from(copy, first / 2);
        assert_int_equal(replayed, RECORDS + 1 - first / 2);
        log_close(log);
        log = open_whole(copy);
        assert_int_equal(replayed, RECORDS + 1);
        log_close(log);
        assert_int_equal(sim_disk_opens(copy), 0);
    }
    sim_disk_destroy(sim);
    sim_disk_destroy(copy);
}

/* A start taken when nothing is logged yet, or nothing since the last start, is as good, whatever becomes of
 * the file that was made ahead. */
static void test_start_of_an_idle_log(void **state)
{
    (void)state;
    struct sim_disk *sim = sim_disk_create(1);
    tails[0] = 0;
    struct log *log = open_from(sim, 0);
    tails[0] = log_tail_lsn(log);
    log_close(log);
    log = open_from(sim, 0);
    log_close(log);
    log = open_from(sim, 0); /* the file in which the start lies is gone by now */
    append_one(sim, log, 0);
    flush(sim, log);
    log_close(log);
    log = open_from(sim, 0);
    assert_int_equal(replayed, 1);
    assert_true(log_tail_lsn(log) < log_commit_lsn(log));
    tails[1] = log_tail_lsn(log);
    log_close(log);
    for (int i = 0; i < 2; i++) {
        log = open_from(sim, 1);
        assert_int_equal(replayed, 0);
        log_close(log);
    }
    log = open_from(sim, 1);
    append_one(sim, log, 1);
    flush(sim, log);
    log_close(log);
    for (unsigned first = 0; first < 2; first++) {
        log = open_from(sim, first);
        assert_int_equal(replayed, 2 - first);
        log_close(log);
    }
    log = open_whole(sim);
    assert_int_equal(replayed, 2);
    log_close(log);
    sim_disk_destroy(sim);
}

/* As open_from, with the table of the segments. */
static struct log *open_with(struct sim_disk *sim, struct segments *table, uint64_t first)
{
    struct log *log;
    struct log_config config = config_of(sim, tails[first], first);
    config.segments = table;
    status_t s = log_open(&config, &log);
    assert_true(status_is_ok(&s));
    return log;
}

/* Segments below the start are listed as they are, and not changed. */
static void test_below_is_listed(void **state)
{
    (void)state;
    struct sim_disk *sim = make_log();
    struct segments *table = segments_create(&sim->disk);
    struct log *log = open_with(sim, table, RECORDS - 1);
    for (uint64_t number = 1; number <= number_of(RECORDS); number++) {
        struct segment_file *f = segments_find(table, segment_lsn(number, 4096));
        assert_non_null(f);
        assert_ptr_equal(&sim->files[f->fd], file_of(sim, number));
        assert_int_equal(atomic_load(&f->bytes), file_of(sim, number)->size);
        assert_int_equal(f->generation, load_u64(file_of(sim, number)->data + 24));
        assert_true(atomic_load(&f->sealed));
    }
    log_close(log);
    segments_destroy(table);
    sim_disk_destroy(sim);
}

/* A torn last write is cut off, whether the start is close to it or not. */
static void test_torn_tail(void **state)
{
    (void)state;
    struct sim_disk *sim = make_log(), *copy = sim_disk_create(2);
    struct log *log = open_whole(sim);
    struct log_flush f;
    append_one(sim, log, RECORDS);
    flush(sim, log);
    assert_int_equal(append(log, RECORDS + 1, 9000, LOG_NORMAL), LOG_RESERVED);
    assert_true(log_flush_take(log, 1, true, &f, NULL));
    write_flush(sim, &f);
    memset(sim->files[f.fd].data + f.offset + LOG_BLOCK_BYTES, 0x55, SIM_SECTOR_BYTES);
    sim->dead = true;
    log_close(log);
    sim_disk_restart(sim);
    for (unsigned first = RECORDS / 2; first <= RECORDS + 1; first++) {
        sim_disk_copy(copy, sim);
        log = open_from(copy, first);
        assert_int_equal(replayed, RECORDS + 1 - first);
        struct log_stats *stats = malloc(sizeof *stats);
        log_stats_get(log, stats);
        assert_true(stats->cut_bytes > 0);
        free(stats);
        log_close(log);
        log = open_from(copy, first);
        assert_int_equal(replayed, RECORDS + 1 - first);
        log_close(log);
    }
    sim_disk_destroy(sim);
    sim_disk_destroy(copy);
}

/* A damaged record: in a segment below the start it is for the one who reads it; in the start's own segment
 * or above, the log is refused. */
static void test_damaged_record(void **state)
{
    (void)state;
    struct sim_disk *sim = make_log(), *copy = sim_disk_create(2);
    unsigned first = RECORDS / 2;
    while (lsn_offset(tails[first]) < 3 * LOG_BLOCK_BYTES || number_of(first) != number_of(first + 1))
        first++;
    uint64_t number = number_of(first);
    sim_disk_copy(copy, sim);
    file_of(copy, number - 1)->data[LOG_BLOCK_BYTES + 100] ^= 1;
    struct log *log = open_from(copy, first);
    assert_int_equal(replayed, RECORDS - first);
    log_close(log);
    char name[SEGMENT_NAME_BYTES];
    segment_name(name, number);
    sim_disk_copy(copy, sim);
    file_of(copy, number)->data[LOG_BLOCK_BYTES + 100] ^= 1; /* first batch: below the start */
    expect_corrupt(copy, first, name);
    sim_disk_copy(copy, sim);
    file_of(copy, number)->data[round_up(lsn_offset(tails[first]), LOG_BLOCK_BYTES) + 100] ^= 1;
    expect_corrupt(copy, first, "sim/log-");
    sim_disk_copy(copy, sim);
    file_of(copy, number + 1)->data[LOG_BLOCK_BYTES + 100] ^= 1;
    expect_corrupt(copy, first, "sim/log-");
    sim_disk_copy(copy, sim);
    memset(file_of(copy, number)->data, 0, file_of(copy, number)->size); /* as if never used */
    expect_corrupt(copy, first, name);
    sim_disk_destroy(sim);
    sim_disk_destroy(copy);
}

static void test_missing_files(void **state)
{
    (void)state;
    struct sim_disk *sim = make_log(), *copy = sim_disk_create(2);
    for (unsigned first = 0; first <= RECORDS; first++) {
        for (uint64_t missing = 1; missing <= number_of(RECORDS); missing++) {
            sim_disk_copy(copy, sim);
            file_of(copy, missing)->named = false;
            if (missing >= number_of(first)) {
                expect_corrupt(copy, first, "sim/log-");
                continue;
            }
            struct log *log = open_from(copy, first);
            assert_int_equal(replayed, RECORDS - first);
            log_close(log);
        }
    }
    sim_disk_destroy(sim);
    sim_disk_destroy(copy);
}

/* What is torn off to before the start was durable once: that is damage. So is a start behind the end. */
static void test_end_before_the_start(void **state)
{
    (void)state;
    struct sim_disk *sim = make_log();
    uint64_t number = number_of(RECORDS);
    tails[RECORDS + 1] = segment_lsn(number, file_of(sim, number)->size + LOG_BLOCK_BYTES);
    expect_corrupt(sim, RECORDS + 1, "sim/log-");
    tails[RECORDS + 1] = segment_lsn(number + 7, 2 * LOG_BLOCK_BYTES);
    expect_corrupt(sim, RECORDS + 1, "sim/log-");
    /* The farewell and the last batch are gone, as after a torn write. */
    struct sim_file *f = file_of(sim, number);
    memset(f->data + lsn_offset(tails[RECORDS]) - LOG_BLOCK_BYTES, 0, 2 * LOG_BLOCK_BYTES);
    expect_corrupt(sim, RECORDS, "sim/log-");
    sim_disk_destroy(sim);
}

/* A file below with a damaged header is not listed: who needs it finds it missing. */
static void test_damaged_header_below(void **state)
{
    (void)state;
    struct sim_disk *sim = make_log();
    struct segments *table = segments_create(&sim->disk);
    file_of(sim, 2)->data[20] ^= 1;
    struct log *log = open_with(sim, table, RECORDS - 1);
    assert_int_equal(replayed, 1);
    assert_non_null(segments_find(table, segment_lsn(1, 4096)));
    assert_null(segments_find(table, segment_lsn(2, 4096)));
    status_t s = log_list_segment(&sim->disk, 0, "sim", table, 2, NULL);
    assert_int_equal(s.code, STATUS_CORRUPT);
    assert_non_null(strstr(s.text, "sim/log-0000000002.kv"));
    s = log_list_segment(&sim->disk, 0, "sim", table, 77, NULL);
    assert_int_equal(s.sys_errno, ENOENT);
    log_close(log);
    segments_destroy(table);
    assert_int_equal(sim_disk_opens(sim), 0);
    sim_disk_destroy(sim);
}

/* ---- a checkpoint is read when the folder is locked ---- */

struct checkpoint {
    struct sim_disk *sim;
    struct segments *table;
    uint64_t start_lsn, known_lsn;
    bool fails;
};

static struct checkpoint *checkpoint;

/* In one of many lanes. */
static void count(struct segments *s, unsigned index, uint64_t address, int64_t weight)
{
    struct segments_lane lane;
    segments_lane_attach(&lane, s, index);
    segments_live(&lane, address, weight);
}

static status_t read_checkpoint(void *context, int folder, struct log_config *config)
{
    struct checkpoint *c = checkpoint;
    struct segment_file *file;
    assert_true(c->sim->locked);
    assert_int_equal(config->start_lsn, 0);
    config->start_lsn = c->start_lsn;
    config->known_lsn = c->known_lsn;
    if (c->fails)
        return status_error(STATUS_INVALID, "no checkpoint fits");
    TRY(log_list_segment(&c->sim->disk, folder, "sim", c->table, 1, &file));
    count(c->table, 0, segment_lsn(1, 4096), 40);
    /* The start's own segment too: replay finds it listed. */
    return log_list_segment(&c->sim->disk, folder, "sim", c->table, c->start_lsn >> LOG_SEGMENT_SHIFT, &file);
}

static void test_on_locked(void **state)
{
    (void)state;
    struct sim_disk *sim = make_log();
    struct checkpoint c = {
        .sim = sim, .table = segments_create(&sim->disk), .start_lsn = tails[RECORDS - 4], .fails = true};
    struct log_config config = config_of(sim, 0, RECORDS - 4);
    struct log *log;
    checkpoint = &c;
    config.segments = c.table;
    config.on_locked = read_checkpoint;
    status_t s = log_open(&config, &log);
    assert_int_equal(s.code, STATUS_INVALID);
    assert_false(sim->locked);
    c.fails = false;
    s = log_open(&config, &log);
    assert_true(status_is_ok(&s));
    assert_int_equal(replayed, 4);
    assert_int_equal(segments_live_bytes(c.table, segments_find(c.table, segment_lsn(1, 0))), 40);
    assert_non_null(segments_find(c.table, segment_lsn(2, 0)));
    log_close(log);
    segments_destroy(c.table);
    assert_int_equal(sim_disk_opens(sim), 0);
    sim_disk_destroy(sim);
}

/* A log whose last segment is gone shows it by the empty one that a stop leaves behind it. Without that it
 * does not, but a checkpoint that was written behind it does. */
static void test_known_end(void **state)
{
    (void)state;
    struct sim_disk *sim = make_log(), *copy = sim_disk_create(2);
    uint64_t last = number_of(RECORDS);
    char name[SEGMENT_NAME_BYTES];
    for (unsigned first = 0; first <= RECORDS; first++) {
        for (int known = 0; known < 2; known++) {
            struct log_config config = config_of(copy, first ? tails[first] : 0, first);
            struct log *log;
            sim_disk_copy(copy, sim);
            config.known_lsn = tails[RECORDS];
            status_t s = log_open(&config, &log);
            assert_true(status_is_ok(&s)); /* the whole log */
            assert_int_equal(replayed, RECORDS - first);
            log_close(log);
            if (number_of(first) == last)
                break;
            sim_disk_copy(copy, sim);
            segment_name(name, last);
            assert_int_equal(copy->disk.ops->remove(&copy->disk, 0, name), 0);
            config = config_of(copy, first ? tails[first] : 0, first);
            s = log_open(&config, &log);
            assert_int_equal(s.code, STATUS_CORRUPT);
            assert_non_null(strstr(s.text, name));
            segment_name(name, last + 1);
            assert_int_equal(copy->disk.ops->remove(&copy->disk, 0, name), 0);
            config = config_of(copy, first ? tails[first] : 0, first);
            config.known_lsn = known ? tails[RECORDS] : 0;
            s = log_open(&config, &log);
            assert_int_equal(s.code, known ? STATUS_CORRUPT : STATUS_OK);
            if (!known)
                log_close(log);
        }
    }
    sim_disk_destroy(copy);
    sim_disk_destroy(sim);
}

/* ---- removing ---- */

static void test_remove(void **state)
{
    (void)state;
    struct sim_disk *sim = make_log(), *copy = sim_disk_create(2);
    for (unsigned first = 0; first <= RECORDS; first++) {
        sim_disk_copy(copy, sim);
        struct log *log = open_from(copy, first);
        unsigned before = files(copy);
        uint64_t bytes, sizes = 0;
        for (uint64_t number = 1; number < number_of(first); number++)
            sizes += file_of(copy, number)->size;
        status_t s = remove_below(log, tails[first], false, &bytes);
        assert_true(status_is_ok(&s));
        assert_int_equal(bytes, sizes);
        assert_int_equal(files(copy), before - (number_of(first) - 1));
        assert_null(file_of(copy, number_of(first) - 1));
        append_one(copy, log, RECORDS);
        flush(copy, log);
        log_close(log);
        log = open_from(copy, first);
        assert_int_equal(replayed, RECORDS + 1 - first);
        log_close(log);
        if (number_of(first) > 1) { /* without its start the log is not taken for a whole one */
            struct log_config config = config_of(copy, 0, 0);
            s = log_open(&config, &log);
            assert_int_equal(s.code, STATUS_CORRUPT);
            assert_int_equal(replayed, 0);
        }
    }
    sim_disk_destroy(sim);
    sim_disk_destroy(copy);
}

/* Also everything that is finished, in a log that goes on; the current segment stays. */
static void test_remove_while_running(void **state)
{
    (void)state;
    struct sim_disk *sim = make_log();
    struct log *log = open_whole(sim);
    for (unsigned i = 0; i < 200; i++) {
        unsigned id = RECORDS + i;
        assert_int_equal(append(log, id, VALUE_LEN, LOG_NORMAL), LOG_RESERVED);
        flush(sim, log);
        (void)log_prepare(log);
        tails[0] = log_tail_lsn(log);
        status_t s = remove_below(log, tails[0], false, NULL);
        assert_true(status_is_ok(&s));
        assert_true(files(sim) <= 2); /* and the one made ahead */
    }
    log_close(log);
    expected = RECORDS + 200;
    struct log_config config = config_of(sim, tails[0], RECORDS + 200);
    status_t s = log_open(&config, &log);
    assert_true(status_is_ok(&s));
    assert_int_equal(replayed, 0);
    log_close(log);
    sim_disk_destroy(sim);
}

static void test_remove_keeps_what_is_needed(void **state)
{
    (void)state;
    struct sim_disk *sim = make_log();
    struct segments *table = segments_create(&sim->disk);
    struct log *log = open_with(sim, table, RECORDS);
    assert_true(number_of(RECORDS) > 4);
    struct segment_file *read = segments_acquire(table, segment_lsn(1, 4096));
    count(table, 0, segment_lsn(2, 4096), 40);
    sim->fail_op = SIM_REMOVE;
    sim->fail_errno = EIO;
    sim->fail_after = 1;
    status_t s = remove_below(log, tails[RECORDS], false, NULL);
    assert_int_equal(s.code, STATUS_IO);
    assert_non_null(strstr(s.text, "sim/log-0000000001.kv"));
    assert_non_null(segments_find(table, segment_lsn(1, 4096)));
    s = remove_below(log, tails[RECORDS], false, NULL);
    assert_true(status_is_ok(&s));
    assert_null(file_of(sim, 1));
    assert_non_null(file_of(sim, 2)); /* something lives in it */
    assert_null(file_of(sim, 3));
    char byte;
    assert_int_equal(sim->disk.ops->read(&sim->disk, read->fd, &byte, 1, 0), 1);
    assert_int_equal(byte, 'k');
    assert_int_equal(segments_reap(table), 1);
    segments_release(read);
    assert_int_equal(segments_reap(table), 0);
    count(table, 0, segment_lsn(2, 4096), -40);
    s = remove_below(log, tails[RECORDS], false, NULL);
    assert_true(status_is_ok(&s));
    assert_null(file_of(sim, 2));
    log_close(log);
    segments_destroy(table);
    sim_disk_destroy(sim);
}

static bool count_record(void *context, const struct record *record)
{
    ++*(unsigned *)context;
    return true;
}

/* The server goes on beside the tool that prints its log: its files get other names, and then other bytes. */
static bool take_files_away(void *context, const struct record *record)
{
    struct sim_disk *sim = context;
    for (uint64_t number = 1; number < 4; number++) {
        struct sim_file *f = file_of(sim, number);
        if (f)
            memset(f->data + LOG_BLOCK_BYTES, 'x', f->size - LOG_BLOCK_BYTES);
        if (f)
            snprintf(f->name, sizeof f->name, "spare-%010u.kv", (unsigned)number);
    }
    return true;
}

static void test_read_beside_a_server(void **state)
{
    (void)state;
    struct sim_disk *sim = make_log();
    char note[256];
    status_t s = log_read(&sim->disk, "sim", 0, take_files_away, sim, note);
    assert_int_equal(s.code, STATUS_BUSY);
    assert_non_null(strstr(note, "the server has removed segments of sim"));
    sim_disk_destroy(sim);
}

/* The tool that prints a log says what is not there. */
static void test_read(void **state)
{
    (void)state;
    struct sim_disk *sim = make_log();
    unsigned whole = 0, rest = 0;
    char note[256];
    status_t s = log_read(&sim->disk, "sim", 0, count_record, &whole, note);
    assert_true(status_is_ok(&s));
    assert_int_equal(whole, RECORDS);
    assert_null(strstr(note, "oldest"));
    file_of(sim, 1)->named = false;
    s = log_read(&sim->disk, "sim", 0, count_record, &rest, note);
    assert_true(status_is_ok(&s));
    assert_true(rest > 0 && rest < whole);
    assert_non_null(strstr(note, "its oldest segments are not there any more"));
    file_of(sim, 2)->data[LOG_BLOCK_BYTES + 100] ^= 1;
    s = log_read(&sim->disk, "sim", 0, count_record, &rest, note);
    assert_int_equal(s.code, STATUS_CORRUPT);
    sim_disk_destroy(sim);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_start),
        cmocka_unit_test(test_start_of_an_idle_log),
        cmocka_unit_test(test_below_is_listed),
        cmocka_unit_test(test_torn_tail),
        cmocka_unit_test(test_damaged_record),
        cmocka_unit_test(test_missing_files),
        cmocka_unit_test(test_end_before_the_start),
        cmocka_unit_test(test_damaged_header_below),
        cmocka_unit_test(test_on_locked),
        cmocka_unit_test(test_known_end),
        cmocka_unit_test(test_remove),
        cmocka_unit_test(test_remove_while_running),
        cmocka_unit_test(test_remove_keeps_what_is_needed),
        cmocka_unit_test(test_read),
        cmocka_unit_test(test_read_beside_a_server),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
