/* Segment files that are used again: on the simulated disk with failures and crashes at every step, and one
 * that another folder has too on the real one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/logger.h"
#include "log/data_segment.h"
#include "log/segment_scan.h"
#include "log/spare.h"
#include "sim/sim_disk.h"

enum { BYTES = 64 << 10, VALUE_BYTES = 1000 };

struct world {
    struct sim_disk *sim;
    struct segment_folder folder;
};

static struct world world_create(uint64_t seed)
{
    struct world w = {.sim = sim_disk_create(seed)};
    w.folder = (struct segment_folder){.disk = &w.sim->disk, .path = "sim"};
    w.folder.fd = w.sim->disk.ops->folder_open(&w.sim->disk, "sim", true);
    w.folder.segments = segments_create(&w.sim->disk);
    return w;
}

static void world_destroy(struct world *w)
{
    segments_destroy(w->folder.segments);
    assert_int_equal(sim_disk_opens(w->sim), 0);
    sim_disk_destroy(w->sim);
}

/* A segment of the log that is finished, with something in every block. */
static struct segment_file *make(struct world *w, uint64_t number, uint64_t bytes)
{
    struct segment s;
    status_t status = segment_create(w->folder.disk, w->folder.fd, "sim", number, 0, bytes, &s, NULL);
    assert_true(status_is_ok(&status));
    char *content = aligned_alloc(LOG_BLOCK_BYTES, bytes);
    assert_non_null(content);
    memset(content, (int)('a' + number), bytes);
    assert_int_equal(
        w->folder.disk->ops->write(w->folder.disk, s.fd, content, bytes - LOG_BLOCK_BYTES, LOG_BLOCK_BYTES),
        bytes - LOG_BLOCK_BYTES);
    assert_int_equal(w->folder.disk->ops->sync(w->folder.disk, s.fd), 0);
    free(content);
    segment_hand_over(&s, w->folder.segments);
    segments_seal(s.file);
    return s.file;
}

static void retire(struct world *w, struct segment_file *file)
{
    status_t s = spare_retire(&w->folder, file, true);
    assert_true(status_is_ok(&s));
}

static unsigned named_files(const struct sim_disk *sim, const char *prefix)
{
    unsigned n = 0;
    for (int i = 0; i < SIM_FILES_MAX; i++)
        n += sim->files[i].named && strncmp(sim->files[i].name, prefix, strlen(prefix)) == 0;
    return n;
}

/* It has another name, is not found, but is read by whoever reads it already; then it is the next segment. */
static void test_next_segment_of_the_log(void **state)
{
    (void)state;
    struct world w = world_create(1);
    struct segment next, header;
    bool found;
    uint64_t address = segment_lsn(1, LOG_BLOCK_BYTES);
    struct segment_file *file = make(&w, 1, BYTES);
    uint64_t generation = file->generation;
    assert_ptr_equal(segments_acquire(w.folder.segments, address), file);
    retire(&w, file);
    assert_null(segments_find(w.folder.segments, address));
    assert_null(sim_disk_file(w.sim, "log-0000000001.kv"));
    assert_non_null(sim_disk_file(w.sim, "spare-0000000001.kv"));
    assert_int_equal(segments_spare_size(w.folder.segments, 0, UINT64_MAX, UINT64_MAX), 0);
    status_t s = spare_use_for_log(&w.folder, 2, 1, 0, BYTES, &next, &found);
    assert_true(status_is_ok(&s) && !found);
    char byte;
    assert_int_equal(w.sim->disk.ops->read(&w.sim->disk, file->fd, &byte, 1, LOG_BLOCK_BYTES), 1);
    assert_int_equal(byte, 'b');
    segments_release(file);
    assert_int_equal(segments_reap(w.folder.segments), 0); /* it is not closed */
    assert_int_equal(segments_spare_size(w.folder.segments, 0, UINT64_MAX, UINT64_MAX), BYTES);
    assert_int_equal(segments_bytes_get(w.folder.segments).spare, BYTES);
    s = spare_use_for_log(&w.folder, 2, 1, BYTES + 1, BYTES + 1, &next, &found);
    assert_true(status_is_ok(&s) && !found); /* it is too small */
    s = spare_use_for_log(&w.folder, 2, 1, BYTES, BYTES, &next, &found);
    assert_true(status_is_ok(&s) && found);
    assert_int_equal(segments_bytes_get(w.folder.segments).all, 0);
    assert_true(next.reused && next.number == 2 && next.after == 1 && next.bytes == BYTES);
    assert_int_equal(named_files(w.sim, "spare-"), 0);
    assert_non_null(sim_disk_file(w.sim, "log-0000000002.kv"));
    s = segment_read_header(&w.sim->disk, next.fd, "sim", false, 2, &header);
    assert_true(status_is_ok(&s) && header.reused && header.after == 1);
    assert_int_equal(header.generation, next.generation);
    assert_true(next.generation != generation);
    struct segments_totals totals;
    segments_totals_get(w.folder.segments, &totals);
    assert_int_equal(totals.reused_segments, 1);
    segment_hand_over(&next, w.folder.segments);
    world_destroy(&w);
}

/* The one that fits best; a smaller one grows; of the rest of a larger one a little stays, and is not looked
 * at. */
static void test_data_segments(void **state)
{
    (void)state;
    static const uint64_t sizes[] = {40 << 10, 64 << 10, 80 << 10, 256 << 10};
    static const struct {
        unsigned values;
        uint64_t bytes; /* of the file */
    } made[] = {{58, 64 << 10}, {60, 68 << 10}, {45, 52 << 10}, {45, 52 << 10}};
    struct world w = world_create(2);
    char value[VALUE_BYTES] = {0};
    for (unsigned i = 0; i < 4; i++)
        retire(&w, make(&w, i + 1, sizes[i]));
    for (unsigned i = 0; i < 4; i++) {
        struct data_segment *d;
        struct segment_file *file;
        uint64_t address, expected = made[i].values * record_bytes(RECORD_MOVED, 8, VALUE_BYTES);
        status_t s = data_segment_begin(&w.folder, i + 1, expected, SEGMENT_PIECE_BYTES, &d);
        char name[SEGMENT_NAME_BYTES];
        segment_file_name(name, true, i + 1); /* no more than room was taken for, at once */
        uint64_t room = round_up(LOG_BLOCK_BYTES + expected, LOG_BLOCK_BYTES);
        assert_true(sim_disk_file(w.sim, name)->size <= room + room / 64);
        for (unsigned v = 0; v < made[i].values; v++) {
            char key[16];
            assert_true(status_is_ok(&s));
            snprintf(key, sizeof key, "key:%04u", v);
            s = data_segment_add(d, slice_make(key, 8), slice_make(value, VALUE_BYTES), v + 1, 0, &address);
        }
        s = data_segment_finish(d, &file);
        assert_true(status_is_ok(&s));
        assert_int_equal(file->bytes, made[i].bytes);
        struct segment_scan scan;
        struct record record;
        enum segment_scan_result result;
        unsigned records = 0;
        segment_scan_begin(&scan, &w.sim->disk, file);
        while ((result = segment_scan_next(&scan, &record)) != SEGMENT_SCAN_END) {
            if (result == SEGMENT_SCAN_READ)
                s = segment_scan_read(&scan, SEGMENT_PIECE_BYTES);
            assert_true(status_is_ok(&s));
            records += result == SEGMENT_SCAN_RECORD;
        }
        assert_int_equal(records, made[i].values);
        assert_false(scan.damaged);
        segment_scan_end(&scan);
    }
    assert_int_equal(segments_spare_size(w.folder.segments, 0, UINT64_MAX, UINT64_MAX),
                     256 << 10); /* far too large for any */
    assert_int_equal(named_files(w.sim, "spare-"), 1);
    world_destroy(&w);
}

/* Too large a one becomes room; what an earlier run has left goes, or is told of. */
static void test_dropping(void **state)
{
    (void)state;
    struct world w = world_create(3);
    assert_false(spare_drop(&w.folder, UINT64_MAX));
    retire(&w, make(&w, 1, BYTES));
    retire(&w, make(&w, 2, BYTES));
    assert_int_equal(segments_spare_sum(w.folder.segments, 1, UINT64_MAX), 2 * BYTES);
    assert_int_equal(segments_spare_sum(w.folder.segments, 1, BYTES - 1), 0);
    assert_int_equal(segments_spare_sum(w.folder.segments, BYTES + 1, UINT64_MAX), 0);
    assert_int_equal(spare_for_data(&w.folder, BYTES), 2 * BYTES);
    assert_false(spare_drop(&w.folder, BYTES - 1));
    assert_true(spare_drop(&w.folder, BYTES));
    assert_int_equal(segments_spare_sum(w.folder.segments, 1, UINT64_MAX), BYTES);
    assert_int_equal(named_files(w.sim, "spare-"), 1);
    assert_int_equal(segments_bytes_get(w.folder.segments).leaving, BYTES);
    assert_int_equal(segments_reap(w.folder.segments), 0);
    assert_int_equal(segments_bytes_get(w.folder.segments).all, BYTES);
    make(&w, 3, BYTES);
    w.sim->fail_op = SIM_REMOVE;
    w.sim->fail_errno = EACCES;
    w.sim->fail_after = 1;
    retire(&w, make(&w, 4, BYTES));
    spare_clear(&w.sim->disk, w.folder.fd, "sim"); /* says so and goes on */
    assert_int_equal(named_files(w.sim, "spare-"), 1);
    spare_clear(&w.sim->disk, w.folder.fd, "sim");
    assert_int_equal(named_files(w.sim, "spare-"), 0);
    assert_int_equal(named_files(w.sim, "log-"), 1);
    world_destroy(&w);
    assert_true(spare_parse_name("spare-0000000012.kv"));
    assert_false(spare_parse_name("spare-12.kv"));
    assert_false(spare_parse_name("spare-0000000012.kv~"));
}

/* Whatever fails: the files that are there are whole, and those that are not wanted are gone. */
static void test_failures(void **state)
{
    (void)state;
    static const enum sim_op ops[] = {SIM_WRITE, SIM_SYNC, SIM_RENAME};
    for (size_t op = 0; op < sizeof ops / sizeof ops[0]; op++) {
        for (uint64_t after = 1;; after++) {
            struct world w = world_create(4);
            struct segment_file *file = make(&w, 1, BYTES);
            struct segment next;
            bool found;
            w.sim->fail_op = ops[op];
            w.sim->fail_errno = EIO;
            w.sim->fail_after = after;
            status_t s = spare_retire(&w.folder, file, true);
            assert_true(status_is_ok(&s)); /* without a new name it is removed */
            assert_null(sim_disk_file(w.sim, "log-0000000001.kv"));
            s = spare_use_for_log(&w.folder, 2, 1, 0, BYTES, &next, &found);
            bool was_reached = w.sim->fail_after == 0, made = status_is_ok(&s) && found;
            assert_int_equal(made, !was_reached);
            if (was_reached) {
                assert_int_equal(named_files(w.sim, ""), 0);
                (void)segments_reap(w.folder.segments);
            } else {
                segment_hand_over(&next, w.folder.segments);
            }
            world_destroy(&w);
            if (!was_reached)
                break;
            assert_true(after < 10);
        }
    }
}

/* A crash after any number of steps: a file has a log segment's name only with its header and content. */
static void test_crashes(void **state)
{
    (void)state;
    unsigned old = 0, fresh = 0, none = 0;
    for (uint64_t seed = 1; seed <= 400; seed++) {
        struct world w = world_create(seed);
        struct segment_file *file = make(&w, 1, BYTES);
        struct segment next, header;
        bool found = false;
        w.sim->fail_op = SIM_ANY;
        w.sim->fail_errno = EIO;
        w.sim->fail_dies = true;
        w.sim->fail_after = 1 + seed % 9;
        status_t s = spare_retire(&w.folder, file, true);
        if (status_is_ok(&s))
            s = spare_use_for_log(&w.folder, 2, 1, 0, BYTES, &next, &found);
        if (status_is_ok(&s) && found)
            segment_hand_over(&next, w.folder.segments);
        w.sim->dead = true;
        segments_destroy(w.folder.segments);
        sim_disk_crash(w.sim);
        spare_clear(&w.sim->disk, w.folder.fd, "sim");
        assert_int_equal(named_files(w.sim, "spare-"), 0);
        none += named_files(w.sim, "log-") == 0;
        for (uint64_t number = 1; number <= 2; number++) {
            char name[SEGMENT_NAME_BYTES], byte;
            segment_name(name, number);
            int fd = w.sim->disk.ops->open(&w.sim->disk, w.folder.fd, name, false, false);
            if (fd < 0)
                continue;
            s = segment_read_header(&w.sim->disk, fd, "sim", false, number, &header);
            assert_true(status_is_ok(&s));
            assert_int_equal(header.reused, number == 2);
            assert_int_equal(w.sim->disk.ops->read(&w.sim->disk, fd, &byte, 1, BYTES - 1), 1);
            assert_int_equal(byte, 'b');
            *(number == 1 ? &old : &fresh) += 1;
            w.sim->disk.ops->close(&w.sim->disk, fd);
        }
        w.folder.segments = segments_create(&w.sim->disk);
        world_destroy(&w);
    }
    assert_true(old > 20 && fresh > 20 && none > 20);
}

/* A backup has the file too: it must not get other bytes. */
static void test_a_file_of_two_folders(void **state)
{
    (void)state;
    char path[] = "/tmp/kvasir-spare-XXXXXX";
    assert_non_null(mkdtemp(path));
    struct disk *disk = disk_real();
    struct segment_folder folder = {.disk = disk, .path = path, .segments = segments_create(disk)};
    folder.fd = disk->ops->folder_open(disk, path, false);
    for (uint64_t number = 1; number <= 2; number++) {
        struct segment s;
        status_t status = segment_create(disk, folder.fd, path, number, 0, BYTES, &s, NULL);
        assert_true(status_is_ok(&status));
        segment_hand_over(&s, folder.segments);
        segments_seal(s.file);
        if (number == 1)
            assert_int_equal(linkat(folder.fd, "log-0000000001.kv", folder.fd, "backup", 0), 0);
        status = spare_retire(&folder, s.file, true);
        assert_true(status_is_ok(&status));
        assert_int_equal(segments_bytes_get(folder.segments).spare, number == 1 ? 0 : BYTES);
    }
    segments_destroy(folder.segments);
    spare_clear(disk, folder.fd, path);
    assert_int_equal(disk->ops->remove(disk, folder.fd, "backup"), 0);
    close(folder.fd);
    assert_int_equal(rmdir(path), 0);
}

/* Somebody reads it and has locked it, before it lost its name or behind that: it must not get other bytes.
 */
static void test_a_locked_file(void **state)
{
    (void)state;
    char path[] = "/tmp/kvasir-spare-XXXXXX", name[SEGMENT_NAME_BYTES];
    assert_non_null(mkdtemp(path));
    struct disk *disk = disk_real();
    struct segment_folder folder = {.disk = disk, .path = path, .segments = segments_create(disk)};
    folder.fd = disk->ops->folder_open(disk, path, false);
    int reader[4];
    for (uint64_t number = 1; number <= 3; number++) {
        struct segment s;
        status_t status = segment_create(disk, folder.fd, path, number, 0, BYTES, &s, NULL);
        assert_true(status_is_ok(&status));
        segment_hand_over(&s, folder.segments);
        segments_seal(s.file);
        segment_name(name, number);
        reader[number] = disk->ops->open(disk, folder.fd, name, false, false);
        if (number == 1)
            assert_int_equal(disk->ops->lock_shared(disk, reader[number]), 0);
        status = spare_retire(&folder, s.file, true);
        assert_true(status_is_ok(&status));
        assert_int_equal(segments_bytes_get(folder.segments).spare, (number - 1) * BYTES);
        if (number == 2)
            assert_int_equal(disk->ops->lock_shared(disk, reader[number]), 0);
    }
    struct segment next;
    bool found;
    status_t status = spare_use_for_log(&folder, 4, 3, 0, BYTES, &next, &found);
    assert_true(status_is_ok(&status) && found); /* the third; the second has gone */
    assert_int_equal(segments_bytes_get(folder.segments).spare, 0);
    for (uint64_t number = 1; number <= 3; number++) {
        assert_int_equal(disk->ops->links(disk, reader[number]), number == 3);
        assert_int_equal(disk->ops->size(disk, reader[number]), BYTES);
        disk->ops->close(disk, reader[number]);
    }
    segment_hand_over(&next, folder.segments);
    segments_destroy(folder.segments);
    assert_int_equal(disk->ops->remove(disk, folder.fd, "log-0000000004.kv"), 0);
    close(folder.fd);
    assert_int_equal(rmdir(path), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_next_segment_of_the_log),
        cmocka_unit_test(test_data_segments),
        cmocka_unit_test(test_dropping),
        cmocka_unit_test(test_failures),
        cmocka_unit_test(test_crashes),
        cmocka_unit_test(test_a_file_of_two_folders),
        cmocka_unit_test(test_a_locked_file),
    };
    logger_set_level(LOGGER_ERROR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
