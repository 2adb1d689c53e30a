/* Data segments: what goes in comes out by its address, in whatever sizes; what fails leaves nothing. */
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

#include "log/data_segment.h"
#include "log/segment.h"
#include "log/segment_scan.h"
#include "sim/sim_disk.h"

enum { RECORDS = 29, VALUE_BYTES_MAX = 3 << 20, FEW = 5, MANY = 20 }; /* less and more than expected */

/* Around blocks, around the writer's buffer, and beyond it. */
static const size_t sizes[RECORDS] = {
    0,    1,    7,    8,       9,         4000,          4047,    4048, 4049,  4096,
    100,  5000, 8192, 1 << 20, 100,       (1 << 20) - 1, 3 << 20, 50,   65537, 8191,
    8192, 8193, 1,    2,       (1 << 19), (1 << 19) + 8, 17,      33,   65536};

struct world {
    struct sim_disk *sim;
    struct segments *segments;
    int folder;
    struct segment_folder segment_folder;
    char *value;
    uint64_t addresses[RECORDS];
};

static struct slice key_of(char name[16], int i)
{
    return slice_make(name, (size_t)snprintf(name, 16, "key:%03d", i));
}

static struct slice value_of(struct world *w, int i)
{
    for (size_t at = 0; at < sizes[i]; at++)
        w->value[at] = (char)((size_t)i * 31 + at * 7 + (at >> 8));
    return slice_make(w->value, sizes[i]);
}

static struct world *world_create(void)
{
    struct world *w = calloc(1, sizeof *w);
    assert_non_null(w);
    w->sim = sim_disk_create(1);
    w->segments = segments_create(&w->sim->disk);
    w->folder = w->sim->disk.ops->folder_open(&w->sim->disk, "sim", true);
    w->segment_folder = (struct segment_folder){&w->sim->disk, w->folder, "sim", w->segments};
    w->value = malloc(VALUE_BYTES_MAX);
    assert_non_null(w->value);
    return w;
}

static void world_destroy(struct world *w)
{
    segments_destroy(w->segments);
    assert_int_equal(sim_disk_opens(w->sim), 0);
    sim_disk_destroy(w->sim);
    free(w->value);
    free(w);
}

/* All `n` records into data segment `number`. A failed call ends it. */
static status_t write_all(struct world *w, uint64_t number, int n, struct segment_file **file)
{
    struct data_segment *d;
    char name[16];
    TRY(data_segment_begin(&w->segment_folder, number, 1 << 20, SEGMENT_PIECE_BYTES, &d));
    for (int i = 0; i < n; i++) {
        status_t s = data_segment_add(d, key_of(name, i), value_of(w, i), 1000 + (uint64_t)i, (uint64_t)i % 3,
                                      &w->addresses[i]);
        if (!status_is_ok(&s)) {
            data_segment_abandon(d);
            return s;
        }
    }
    return data_segment_finish(d, file);
}

static void check_record(struct world *w, int i)
{
    char name[16];
    struct record r;
    struct segment_file *file = segments_acquire(w->segments, w->addresses[i]);
    assert_non_null(file);
    assert_true(file->data && file->sealed);
    uint64_t offset = lsn_offset(w->addresses[i]);
    size_t n = record_bytes(RECORD_MOVED, 7, sizes[i]);
    assert_true(offset + n <= file->bytes);
    assert_true(n <= segment_weight(7, sizes[i])); /* what a fetch reads */
    char *data = malloc(n);
    assert_non_null(data);
    assert_int_equal(w->sim->disk.ops->read(&w->sim->disk, file->fd, data, n, offset), n);
    assert_int_equal(record_decode(data, n, w->addresses[i], file->generation, &r), n);
    assert_int_equal(r.type, RECORD_MOVED);
    assert_int_equal(r.version, 1000 + i);
    assert_int_equal(r.expire_ms, i % 3);
    assert_true(slice_equal(r.key, key_of(name, i)) && slice_equal(r.value, value_of(w, i)));
    free(data);
    segments_release(file);
}

static void test_round_trip(void **state)
{
    (void)state;
    struct world *w = world_create();
    struct segment_file *file;
    status_t s = write_all(w, 7, RECORDS, &file);
    assert_true(status_is_ok(&s));
    assert_int_equal(file->number, 7);
    assert_int_equal(file->bytes % LOG_BLOCK_BYTES, 0);
    for (int i = 0; i < RECORDS; i++)
        check_record(w, i);
    /* After a crash it is all there, and can be listed by what its header says. */
    uint64_t bytes = file->bytes, generation = file->generation;
    segments_destroy(w->segments);
    sim_disk_crash(w->sim);
    w->segments = segments_create(&w->sim->disk);
    s = segment_list(&w->sim->disk, w->folder, "sim", w->segments, true, 7, &file);
    assert_true(status_is_ok(&s));
    assert_int_equal(file->bytes, bytes);
    assert_int_equal(file->generation, generation);
    for (int i = 0; i < RECORDS; i++)
        check_record(w, i);
    world_destroy(w);
}

static void test_an_empty_one(void **state)
{
    (void)state;
    struct world *w = world_create();
    struct segment_file *file;
    status_t s = write_all(w, SEGMENT_NUMBER_MAX, 0, &file);
    assert_true(status_is_ok(&s));
    assert_int_equal(file->bytes, LOG_BLOCK_BYTES);
    s = write_all(w, (uint64_t)SEGMENT_NUMBER_MAX + 1, 0, &file);
    assert_int_equal(s.code, STATUS_UNSUPPORTED);
    world_destroy(w);
}

/* A file that is nearly full keeps the size that was reserved, so that others like it can be made of it; one
 * with much left does not. */
static void test_a_full_one_keeps_its_size(void **state)
{
    enum { ROOM = 64 << 10, VALUE = 1000 };
    (void)state;
    struct world *w = world_create();
    size_t record = record_bytes(RECORD_MOVED, 7, VALUE);
    for (uint64_t number = 1; number < 3; number++) {
        struct data_segment *d;
        struct segment_file *file;
        char name[16];
        size_t used = ROOM / (number == 1 ? 1 : 2) / record * record;
        status_t s = data_segment_begin(&w->segment_folder, number, ROOM, SEGMENT_PIECE_BYTES, &d);
        for (size_t at = 0; at < used; at += record) {
            assert_true(status_is_ok(&s));
            s = data_segment_add(d, key_of(name, 1), slice_make(w->value, VALUE), 1, 0, w->addresses);
        }
        assert_true(status_is_ok(&s));
        s = data_segment_finish(d, &file);
        assert_true(status_is_ok(&s));
        size_t bytes = LOG_BLOCK_BYTES + (number == 1 ? ROOM : round_up(used, LOG_BLOCK_BYTES));
        assert_int_equal(file->bytes, bytes);
        assert_int_equal(w->sim->disk.ops->size(&w->sim->disk, file->fd), bytes);
        struct segment_scan scan;
        struct record r;
        enum segment_scan_result result;
        segment_scan_begin(&scan, &w->sim->disk, file);
        while ((result = segment_scan_next(&scan, &r)) != SEGMENT_SCAN_END) {
            if (result == SEGMENT_SCAN_READ)
                s = segment_scan_read(&scan, SEGMENT_PIECE_BYTES);
            assert_true(status_is_ok(&s));
            used -= result == SEGMENT_SCAN_RECORD ? record : 0;
        }
        assert_int_equal(used, 0);
        assert_false(scan.damaged);
        segment_scan_end(&scan);
    }
    world_destroy(w);
}

/* A file that is as long as its records is not cut: the file system would work for it. */
static void test_a_full_file_is_not_cut(void **state)
{
    static const int records[] = {FEW, MANY};
    (void)state;
    for (int i = 0; i < 2; i++) {
        struct world *w = world_create();
        struct segment_file *file;
        w->sim->fail_op = SIM_TRUNCATE;
        w->sim->fail_after = 1;
        w->sim->fail_errno = EIO;
        status_t s = write_all(w, 1, records[i], &file);
        assert_int_equal(status_is_ok(&s), records[i] == MANY);
        assert_int_equal(w->sim->fail_after, records[i] == MANY);
        world_destroy(w);
    }
}

static void test_failures_leave_nothing(void **state)
{
    (void)state;
    static const enum sim_op ops[] = {SIM_CREATE, SIM_ALLOCATE, SIM_WRITE, SIM_TRUNCATE, SIM_SYNC};
    struct segment_file *file;
    for (size_t op = 0; op < sizeof ops / sizeof ops[0]; op++) {
        unsigned failures = 0;
        for (uint64_t after = 1;; after++) {
            struct world *w = world_create();
            w->sim->fail_op = ops[op];
            w->sim->fail_after = after;
            w->sim->fail_errno = ops[op] == SIM_ALLOCATE ? ENOSPC : EIO;
            status_t s = write_all(w, 1, ops[op] == SIM_TRUNCATE ? FEW : MANY, &file);
            bool was_reached = w->sim->fail_after == 0;
            assert_int_equal(status_is_ok(&s), !was_reached);
            failures += was_reached;
            if (was_reached) {
                assert_int_equal(s.code, ops[op] == SIM_ALLOCATE ? STATUS_NO_SPACE : STATUS_IO);
                assert_null(segments_find(w->segments, w->addresses[0] | SEGMENT_DATA_ADDRESS));
                assert_null(sim_disk_file(w->sim, "data-0000000001.kv"));
            }
            world_destroy(w);
            if (!was_reached)
                break;
        }
        assert_true(failures >= 1);
    }
}

static void test_damaged_files_are_not_listed(void **state)
{
    (void)state;
    struct world *w = world_create();
    struct segment_file *file;
    status_t s = write_all(w, 1, 20, &file);
    assert_true(status_is_ok(&s));
    segments_destroy(w->segments);
    w->segments = segments_create(&w->sim->disk);
    struct sim_file *f = sim_disk_file(w->sim, "data-0000000001.kv");
    for (unsigned at = 0; at < 56; at++) {
        f->data[at] ^= 1;
        s = segment_list(&w->sim->disk, w->folder, "sim", w->segments, true, 1, NULL);
        assert_int_equal(s.code, STATUS_CORRUPT); /* a damaged version is no newer one */
        f->data[at] ^= 1;
    }
    char header[56];
    memcpy(header, f->data, sizeof header);
    for (uint32_t version = 0; version < 3; version += 2) {
        store_u32(f->data + 8, version);
        store_u64(f->data + 48, XXH3_64bits(f->data, 48));
        s = segment_list(&w->sim->disk, w->folder, "sim", w->segments, true, 1, NULL);
        assert_int_equal(s.code, version ? STATUS_UNSUPPORTED : STATUS_CORRUPT);
    }
    memcpy(f->data, header, sizeof header);
    f->size -= 512;
    s = segment_list(&w->sim->disk, w->folder, "sim", w->segments, true, 1, NULL);
    assert_int_equal(s.code, STATUS_CORRUPT);
    f->size += 512;
    s = segment_list(&w->sim->disk, w->folder, "sim", w->segments, true, 2, NULL);
    assert_false(status_is_ok(&s));
    s = segment_list(&w->sim->disk, w->folder, "sim", w->segments, true, 1, NULL);
    assert_true(status_is_ok(&s));
    world_destroy(w);
}

static void test_names(void **state)
{
    (void)state;
    char name[SEGMENT_NAME_BYTES];
    uint64_t number;
    segment_file_name(name, true, 12);
    assert_string_equal(name, "data-0000000012.kv");
    assert_true(segment_parse_data_name(name, &number));
    assert_int_equal(number, 12);
    assert_false(segment_parse_name(name, &number));
    assert_false(segment_parse_data_name("log-0000000012.kv", &number));
    assert_false(segment_parse_data_name("data-12.kv", &number));
    assert_false(segment_parse_data_name("data-0000000012.kvx", &number));
    assert_false(segment_parse_data_name("data-9999999999.kv", &number));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_an_empty_one),
        cmocka_unit_test(test_a_full_one_keeps_its_size),
        cmocka_unit_test(test_a_full_file_is_not_cut),
        cmocka_unit_test(test_failures_leave_nothing),
        cmocka_unit_test(test_damaged_files_are_not_listed),
        cmocka_unit_test(test_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
