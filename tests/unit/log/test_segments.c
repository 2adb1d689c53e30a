/* The table of segment files: what is found, what stays open, what is counted; also while others add and
 * remove. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

#include "base/check.h"
#include "base/prng.h"
#include "log/segment.h"
#include "log/segments.h"
#include "sys/disk.h"

/* ---- a disk of descriptors only, that knows which are open ---- */

enum { FDS_MAX = 1 << 16 };

struct fd_disk {
    struct disk disk;
    int unit;
    _Atomic uint32_t next_fd;
    _Atomic uint64_t owners[FDS_MAX]; /* of an open descriptor: the address it was made for; 0: closed */
};

static void fd_close(struct disk *disk, int fd)
{
    struct fd_disk *d = (struct fd_disk *)disk;
    CHECK(atomic_exchange(&d->owners[fd], 0) != 0);
}

static int fd_direct_unit(struct disk *disk, int fd)
{
    return ((struct fd_disk *)disk)->unit;
}

static const struct disk_ops fd_ops = {.close = fd_close, .direct_unit = fd_direct_unit};

static struct fd_disk *fd_disk_create(int unit)
{
    struct fd_disk *d = calloc(1, sizeof *d);
    CHECK(d != NULL);
    d->disk.ops = &fd_ops;
    d->unit = unit;
    return d;
}

static unsigned fd_opens(struct fd_disk *d)
{
    unsigned n = 0;
    for (unsigned i = 0; i < FDS_MAX; i++)
        n += atomic_load(&d->owners[i]) != 0;
    return n;
}

static uint64_t address_of(bool data, uint64_t number, uint64_t offset)
{
    return (data ? SEGMENT_DATA_ADDRESS : 0) | segment_lsn(number, offset);
}

/* In one of many lanes. */
static void count(struct segments *s, unsigned index, uint64_t address, int64_t weight)
{
    struct segments_lane lane;
    segments_lane_attach(&lane, s, index);
    segments_live(&lane, address, weight);
}

static struct segment_file *add(struct fd_disk *d, struct segments *s, bool data, uint64_t number)
{
    int fd = (int)atomic_fetch_add(&d->next_fd, 1);
    CHECK(fd < FDS_MAX);
    atomic_store(&d->owners[fd], address_of(data, number, 1));
    return segments_add(s, data, number, number * 7, number * 4096, fd);
}

/* ---- one thread ---- */

static void test_find(void **state)
{
    (void)state;
    static const uint64_t numbers[] = {0, 1, 1023, 1024, 5000, SEGMENT_NUMBER_MAX};
    enum { N = sizeof numbers / sizeof *numbers };
    struct fd_disk *d = fd_disk_create(512);
    struct segments *s = segments_create(&d->disk);
    struct segment_file *files[2][N];
    for (unsigned data = 0; data < 2; data++)
        for (unsigned i = 0; i < N; i++) {
            assert_null(segments_find(s, address_of(data, numbers[i], 0)));
            files[data][i] = add(d, s, data, numbers[i]);
        }
    for (unsigned data = 0; data < 2; data++)
        for (unsigned i = 0; i < N; i++) {
            uint64_t last = ((uint64_t)1 << LOG_SEGMENT_SHIFT) - 1;
            assert_ptr_equal(segments_find(s, address_of(data, numbers[i], 0)), files[data][i]);
            assert_ptr_equal(segments_find(s, address_of(data, numbers[i], last)), files[data][i]);
            assert_int_equal(files[data][i]->number, numbers[i]);
            assert_int_equal(files[data][i]->generation, numbers[i] * 7);
            assert_int_equal(files[data][i]->data, data);
        }
    assert_null(segments_find(s, address_of(false, 2, 0)));
    assert_null(segments_find(s, address_of(true, 99999, 0)));
    assert_null(segments_acquire(s, address_of(true, 99999, 0)));
    segments_destroy(s);
    assert_int_equal(fd_opens(d), 0);
    free(d);
}

/* An unlisted file is found no more, but whoever holds a reference can go on reading. */
static void test_references(void **state)
{
    (void)state;
    struct fd_disk *d = fd_disk_create(512);
    struct segments *s = segments_create(&d->disk);
    struct segment_file *kept = add(d, s, false, 1);
    add(d, s, false, 2);
    struct segment_file *a = segments_acquire(s, address_of(false, 1, 77));
    struct segment_file *b = segments_acquire(s, address_of(false, 1, 0));
    assert_ptr_equal(a, kept);
    assert_ptr_equal(b, kept);
    segments_unlist(s, kept, 0);
    assert_null(segments_find(s, address_of(false, 1, 77)));
    assert_null(segments_acquire(s, address_of(false, 1, 77)));
    assert_int_equal(segments_reap(s), 1);
    assert_int_equal(fd_opens(d), 2);
    segments_release(a);
    assert_int_equal(segments_reap(s), 1);
    assert_int_equal(fd_opens(d), 2);
    segments_release(b);
    assert_int_equal(segments_reap(s), 0);
    assert_int_equal(fd_opens(d), 1);
    assert_non_null(segments_find(s, address_of(false, 2, 0)));
    /* The number can come back, with nothing of the old file. */
    struct segment_file *again = add(d, s, false, 1);
    assert_ptr_equal(segments_find(s, address_of(false, 1, 0)), again);
    assert_int_equal(atomic_load(&again->refs), 0);
    assert_false(atomic_load(&again->sealed));
    segments_destroy(s);
    assert_int_equal(fd_opens(d), 0);
    free(d);
}

static bool count_and_stop(void *context, struct segment_file *file)
{
    unsigned *n = context;
    assert_int_equal(file->number, 3 + *n); /* in the order they were added */
    return ++*n < 2;
}

static void test_numbers(void **state)
{
    (void)state;
    struct fd_disk *d = fd_disk_create(512);
    struct segments *s = segments_create(&d->disk);
    struct segments_totals totals;
    assert_int_equal(segments_direct_unit(s), 4096); /* nothing known yet */
    for (uint64_t number = 3; number < 6; number++)
        add(d, s, false, number);
    struct segment_file *data = add(d, s, true, 4);
    assert_int_equal(segments_direct_unit(s), 512);
    count(s, 0, address_of(false, 4, 100), 64);
    count(s, 0, address_of(false, 4, 200), 40);
    count(s, 1, address_of(true, 4, 200), 16);
    count(s, 64, address_of(false, 4, 100), -64);
    assert_int_equal(segments_live_bytes(s, segments_find(s, address_of(false, 4, 0))), 40);
    assert_int_equal(segments_live_bytes(s, data), 16);
    segments_totals_get(s, &totals);
    assert_int_equal(totals.log_segments, 3);
    assert_int_equal(totals.log_bytes, (3 + 4 + 5) * 4096);
    assert_int_equal(totals.data_segments, 1);
    assert_int_equal(totals.data_bytes, 4 * 4096);
    assert_int_equal(totals.live_bytes, 56);
    unsigned n = 0;
    segments_each(s, count_and_stop, &n);
    assert_int_equal(n, 2);
    struct segment_file *held = segments_acquire(s, address_of(false, 5, 0));
    segments_unlist(s, held, 0);
    segments_unlist(s, segments_find(s, address_of(false, 3, 0)), 0);
    segments_totals_get(s, &totals);
    assert_int_equal(totals.log_segments, 1);
    assert_int_equal(totals.log_bytes, 4 * 4096);
    assert_int_equal(totals.leaving_segments, 2);
    assert_int_equal(segments_reap(s), 1);
    segments_release(held);
    segments_destroy(s);
    assert_int_equal(fd_opens(d), 0);
    free(d);
}

static void test_weight(void **state)
{
    (void)state;
    for (size_t key = 0; key < 40; key++)
        for (size_t value = 0; value < 40; value++) {
            uint32_t weight = segment_weight(key, value);
            assert_true(weight % 8 == 0 && weight >= record_bytes(RECORD_SET_EXPIRE, key, value));
            assert_true(weight <= record_bytes(RECORD_SET, key, value) + 16);
        }
}

/* Whatever the disk says, the unit is one that works: too small is rounded up, anything strange is 4096. */
static void test_direct_unit(void **state)
{
    (void)state;
    static const int said[][2] = {{1, 512},     {512, 512},   {1024, 1024}, {4096, 4096},
                                  {8192, 4096}, {-EIO, 4096}, {0, 4096},    {1000, 4096}};
    for (unsigned i = 0; i < sizeof said / sizeof *said; i++) {
        struct fd_disk *d = fd_disk_create(said[i][0]);
        struct segments *s = segments_create(&d->disk);
        add(d, s, false, 1);
        assert_int_equal(segments_direct_unit(s), said[i][1]);
        segments_destroy(s);
        free(d);
    }
}

/* A file of the real disk: the unit is true, and a removed file can be read as long as somebody reads it. */
static void test_real_file(void **state)
{
    (void)state;
    struct disk *disk = disk_real();
    char path[] = "segments-test-XXXXXX"; /* the build folder: /tmp may be a file system without O_DIRECT */
    assert_non_null(mkdtemp(path));
    int folder = disk->ops->folder_open(disk, path, false);
    struct segments *s = segments_create(disk);
    struct segment segment;
    status_t status = segment_create(disk, folder, path, 5, 0, 1 << 20, &segment, NULL);
    assert_true(status_is_ok(&status));
    segment_hand_over(&segment, s);
    uint32_t unit = segments_direct_unit(s);
    assert_true(unit == 512 || unit == 1024 || unit == 2048 || unit == 4096);
    struct segment_file *file = segments_acquire(s, segment_lsn(5, 0));
    assert_non_null(file);
    assert_int_equal(disk->ops->remove(disk, folder, "log-0000000005.kv"), 0);
    segments_unlist(s, file, 0);
    assert_int_equal(segments_reap(s), 1);
    char *buffer = aligned_alloc(4096, 4096);
    assert_int_equal(pread(file->fd, buffer, unit, 0), unit);
    assert_memory_equal(buffer, "kvasirlg", 8);
    assert_int_equal(pread(file->fd, buffer, unit, unit), unit);
    int fd = file->fd;
    segments_release(file);
    assert_int_equal(segments_reap(s), 0);
    assert_int_equal(fcntl(fd, F_GETFD), -1);
    segments_destroy(s);
    free(buffer);
    disk->ops->close(disk, folder);
    assert_int_equal(rmdir(path), 0);
}

/* ---- many threads. Property: whoever has a reference finds the descriptor open, and it is that file's ----
 */

static void test_counts_of_lanes(void **state)
{
    (void)state;
    struct fd_disk *d = fd_disk_create(512);
    struct segments *s = segments_create(&d->disk);
    count(s, SEGMENT_LANES_MAX - 1, address_of(false, 3000, 4096), 88); /* not listed yet */
    count(s, 0, address_of(false, 3000, 8192), -80);
    count(s, 0, address_of(true, SEGMENT_NUMBER_MAX, 8192), 16);
    struct segment_file *file = add(d, s, false, 3000);
    assert_int_equal(segments_live_bytes(s, file), 8);
    segments_live_clear(s);
    assert_int_equal(segments_live_bytes(s, file), 0);
    count(s, 1, address_of(false, 3000, 4096), 24);
    assert_int_equal(segments_live_bytes(s, file), 24);
    segments_destroy(s);
    free(d);
}

enum { RACE_FILES = 8, RACE_READERS = 3, RACE_TURNS = 3000 };

struct race {
    struct fd_disk *disk;
    struct segments *segments;
    _Atomic bool stop;
    _Atomic uint64_t read, missed, wrong;
};

struct race_reader {
    struct race *race;
    unsigned lane;
};

static void *race_reader(void *context)
{
    struct race_reader *reader = context;
    struct race *r = reader->race;
    struct prng prng;
    prng_seed(&prng, (uint64_t)(uintptr_t)&prng);
    while (!atomic_load_explicit(&r->stop, memory_order_relaxed)) {
        uint64_t number = prng_below(&prng, RACE_FILES);
        struct segment_file *f = segments_acquire(r->segments, address_of(false, number, 3));
        if (f == NULL) {
            atomic_fetch_add(&r->missed, 1);
            continue;
        }
        for (int i = 0; i < 3; i++)
            if (f->number != number || f->generation != number * 7 ||
                atomic_load(&r->disk->owners[f->fd]) != address_of(false, number, 1))
                atomic_fetch_add(&r->wrong, 1);
        segments_release(f);
        atomic_fetch_add(&r->read, 1);
        count(r->segments, reader->lane, address_of(true, 1, 0), 8);
    }
    return NULL;
}

static void test_race(void **state)
{
    (void)state;
    struct race r = {.disk = fd_disk_create(512)};
    r.segments = segments_create(&r.disk->disk);
    struct segment_file *files[RACE_FILES] = {0};
    struct segment_file *data = add(r.disk, r.segments, true, 1);
    pthread_t threads[RACE_READERS];
    struct race_reader readers[RACE_READERS];
    for (unsigned i = 0; i < RACE_READERS; i++) {
        readers[i] = (struct race_reader){&r, i};
        assert_int_equal(pthread_create(&threads[i], NULL, race_reader, &readers[i]), 0);
    }
    struct prng prng;
    prng_seed(&prng, 1);
    /* Until the readers have been at it too: on a busy machine they may start late. */
    for (unsigned turn = 0;
         turn < RACE_TURNS || (atomic_load(&r.read) < 1000 && atomic_load(&r.disk->next_fd) < FDS_MAX - 1);
         turn++) {
        uint64_t number = prng_below(&prng, RACE_FILES);
        if (files[number]) {
            segments_unlist(r.segments, files[number], 0);
            files[number] = NULL;
        } else {
            files[number] = add(r.disk, r.segments, false, number);
        }
        (void)segments_reap(r.segments);
        if (prng_below(&prng, 16) == 0 || turn >= RACE_TURNS)
            sched_yield();
    }
    atomic_store(&r.stop, true);
    for (int i = 0; i < RACE_READERS; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(segments_reap(r.segments), 0);
    assert_int_equal(atomic_load(&r.wrong), 0);
    assert_true(atomic_load(&r.read) > 0);
    assert_int_equal(segments_live_bytes(r.segments, data), 8 * atomic_load(&r.read));
    segments_destroy(r.segments);
    assert_int_equal(fd_opens(r.disk), 0);
    printf("%llu references, %llu misses, %u files\n", (unsigned long long)r.read,
           (unsigned long long)r.missed, atomic_load(&r.disk->next_fd));
    free(r.disk);
}

/* A removed file goes piece by piece, but never under somebody who has it by another name. */
static void test_reap_step(void **state)
{
    (void)state;
    enum { MIB = 1 << 20 };
    char path[] = "/tmp/kvasir-segments-XXXXXX";
    assert_non_null(mkdtemp(path));
    struct disk *disk = disk_real();
    int folder = disk->ops->folder_open(disk, path, false);
    struct segments *s = segments_create(disk);
    int fds[2], kept[2];
    for (int i = 0; i < 2; i++) {
        const char *name = i ? "linked" : "alone";
        fds[i] = disk->ops->create(disk, folder, name, false);
        assert_true(fds[i] >= 0);
        assert_int_equal(disk->ops->truncate(disk, fds[i], 10 * MIB), 0);
        if (i)
            assert_int_equal(linkat(folder, name, folder, "other name", 0), 0);
        kept[i] = dup(fds[i]);
        struct segment_file *file = segments_add(s, false, (uint64_t)i, 1, 10 * MIB, fds[i]);
        segments_seal(file);
        assert_int_equal(disk->ops->remove(disk, folder, name), 0);
        segments_unlist(s, file, 0);
    }
    assert_int_equal(segments_bytes_get(s).all, 20 * MIB);
    assert_true(segments_reap_step(s)); /* the first: a piece; the second: closed, it is not ours alone */
    assert_true(segments_reap_step(s));
    assert_int_equal(disk->ops->size(disk, kept[0]), 6 * MIB);
    assert_int_equal(disk->ops->size(disk, kept[1]), 10 * MIB);
    assert_int_equal(segments_bytes_get(s).all, 6 * MIB);
    assert_true(segments_reap_step(s));
    assert_int_equal(disk->ops->size(disk, kept[0]), 2 * MIB);
    assert_true(segments_reap_step(s));
    assert_false(segments_reap_step(s));
    assert_int_equal(segments_bytes_get(s).all, 0);
    assert_int_equal(disk->ops->size(disk, kept[1]), 10 * MIB);
    int fd = disk->ops->create(disk, folder, "never listed", false);
    assert_int_equal(disk->ops->truncate(disk, fd, 5 * MIB), 0);
    assert_int_equal(disk->ops->remove(disk, folder, "never listed"), 0);
    segments_leave(s, 5 * MIB, fd);
    assert_int_equal(segments_bytes_get(s).leaving, 5 * MIB);
    assert_true(segments_reap_step(s));
    assert_int_equal(segments_bytes_get(s).all, MIB);
    assert_true(segments_reap_step(s));
    assert_false(segments_reap_step(s));
    assert_int_equal(fcntl(fd, F_GETFD), -1);
    fd = disk->ops->create(disk, folder, "read", false);
    int reader = disk->ops->open(disk, folder, "read", false, false);
    assert_int_equal(disk->ops->truncate(disk, fd, 5 * MIB), 0);
    assert_int_equal(disk->ops->lock_shared(disk, reader), 0);
    assert_int_equal(disk->ops->remove(disk, folder, "read"), 0);
    segments_leave(s, 5 * MIB, fd);
    assert_true(segments_reap_step(s)); /* closed, as a whole: somebody else reads it */
    assert_false(segments_reap_step(s));
    assert_int_equal(disk->ops->size(disk, reader), 5 * MIB);
    close(reader);
    segments_destroy(s);
    assert_int_equal(disk->ops->remove(disk, folder, "other name"), 0);
    for (int i = 0; i < 2; i++)
        close(kept[i]);
    close(folder);
    assert_int_equal(rmdir(path), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_find),      cmocka_unit_test(test_references),
        cmocka_unit_test(test_numbers),   cmocka_unit_test(test_counts_of_lanes),
        cmocka_unit_test(test_weight),    cmocka_unit_test(test_direct_unit),
        cmocka_unit_test(test_real_file), cmocka_unit_test(test_race),
        cmocka_unit_test(test_reap_step),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
