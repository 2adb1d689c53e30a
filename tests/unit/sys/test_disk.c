#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include "sys/disk.h"

enum { PAGE = 4096 };

struct fixture {
    struct disk *disk;
    char path[64];
    int folder;
};

static int remove_entry(void *context, const char *name)
{
    struct fixture *f = context;
    f->disk->ops->remove(f->disk, f->folder, name);
    return 0;
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    f->disk = disk_real();
    snprintf(f->path, sizeof f->path,
             "disk-test-XXXXXX"); /* the build folder: /tmp may be a file system without O_DIRECT */
    if (mkdtemp(f->path) == NULL)
        return -1;
    f->folder = f->disk->ops->folder_open(f->disk, f->path, false);
    *state = f;
    return f->folder < 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    f->disk->ops->list(f->disk, f->folder, remove_entry, f);
    f->disk->ops->close(f->disk, f->folder);
    int r = rmdir(f->path);
    free(f);
    return r;
}

static void test_folder(void **state)
{
    struct fixture *f = *state;
    char path[128];
    snprintf(path, sizeof path, "%s/inner", f->path);
    assert_int_equal(f->disk->ops->folder_open(f->disk, path, false), -ENOENT);
    int fd = f->disk->ops->folder_open(f->disk, path, true);
    assert_true(fd >= 0);
    assert_int_equal(f->disk->ops->folder_sync(f->disk, fd), 0);
    assert_true(f->disk->ops->free_bytes(f->disk, fd) > 0);
    f->disk->ops->close(f->disk, fd);
    fd = f->disk->ops->folder_open(f->disk, path, true); /* one that exists is fine */
    assert_true(fd >= 0);
    f->disk->ops->close(f->disk, fd);
    assert_int_equal(rmdir(path), 0);

    fd = f->disk->ops->create(f->disk, f->folder, "file", false);
    assert_true(fd >= 0);
    f->disk->ops->close(f->disk, fd);
    snprintf(path, sizeof path, "%s/file", f->path);
    assert_int_equal(f->disk->ops->folder_open(f->disk, path, true), -ENOTDIR);
}

static void test_lock(void **state)
{
    struct fixture *f = *state;
    int fd = f->disk->ops->lock(f->disk, f->folder, "LOCK");
    assert_true(fd >= 0);
    assert_int_equal(f->disk->ops->lock(f->disk, f->folder, "LOCK"), -EWOULDBLOCK);
    f->disk->ops->close(f->disk, fd);
    fd = f->disk->ops->lock(f->disk, f->folder, "LOCK");
    assert_true(fd >= 0);
    f->disk->ops->close(f->disk, fd);
}

static void test_lock_shared(void **state)
{
    struct fixture *f = *state;
    int fd = f->disk->ops->create(f->disk, f->folder, "a", false);
    int readers[2];
    assert_true(fd >= 0 && disk_may_overwrite(f->disk, fd, 1));
    for (unsigned i = 0; i < 2; i++) {
        readers[i] = f->disk->ops->open(f->disk, f->folder, "a", false, false);
        assert_int_equal(f->disk->ops->is_locked(f->disk, fd), i > 0);
        assert_int_equal(f->disk->ops->lock_shared(f->disk, readers[i]), 0);
    }
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(f->disk->ops->is_locked(f->disk, fd), 1);
        assert_false(disk_may_overwrite(f->disk, fd, 1));
        f->disk->ops->close(f->disk, readers[i]);
    }
    assert_int_equal(f->disk->ops->is_locked(f->disk, fd), 0);
    assert_false(disk_may_overwrite(f->disk, fd, 0)); /* it has a name */
    assert_int_equal(f->disk->ops->remove(f->disk, f->folder, "a"), 0);
    assert_true(disk_may_overwrite(f->disk, fd, 0));
    f->disk->ops->close(f->disk, fd);
    int lock = f->disk->ops->lock(f->disk, f->folder, "LOCK");
    fd = f->disk->ops->open(f->disk, f->folder, "LOCK", false, false);
    assert_int_equal(f->disk->ops->lock_shared(f->disk, fd), -EWOULDBLOCK);
    f->disk->ops->close(f->disk, fd);
    f->disk->ops->close(f->disk, lock);
}

static void test_create_and_open(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(f->disk->ops->open(f->disk, f->folder, "a", true, false), -ENOENT);
    for (int direct = 0; direct < 2; direct++) {
        const char *name = direct ? "direct" : "buffered";
        int fd = f->disk->ops->create(f->disk, f->folder, name, direct);
        assert_true(fd >= 0);
        assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
        assert_int_equal(f->disk->ops->size(f->disk, fd), 0);
        f->disk->ops->close(f->disk, fd);
        assert_int_equal(f->disk->ops->create(f->disk, f->folder, name, direct), -EEXIST);
        fd = f->disk->ops->open(f->disk, f->folder, name, false, direct);
        assert_true(fd >= 0);
        assert_int_equal(f->disk->ops->write(f->disk, fd, "x", 1, 0), -EBADF); /* opened for reading */
        f->disk->ops->close(f->disk, fd);
    }
}

static void test_transfer(void **state)
{
    struct fixture *f = *state;
    char back[64];
    int fd = f->disk->ops->create(f->disk, f->folder, "data", false);
    assert_true(fd >= 0);
    assert_int_equal(f->disk->ops->write(f->disk, fd, "hello world", 11, 0), 11);
    assert_int_equal(f->disk->ops->write(f->disk, fd, "WORLD", 5, 6), 5);
    assert_int_equal(f->disk->ops->sync(f->disk, fd), 0);
    assert_int_equal(f->disk->ops->size(f->disk, fd), 11);
    assert_int_equal(f->disk->ops->read(f->disk, fd, back, sizeof back, 0), 11); /* end of file: shorter */
    assert_memory_equal(back, "hello WORLD", 11);
    assert_int_equal(f->disk->ops->read(f->disk, fd, back, 3, 6), 3);
    assert_memory_equal(back, "WOR", 3);
    assert_int_equal(f->disk->ops->read(f->disk, fd, back, sizeof back, 11), 0);
    assert_int_equal(f->disk->ops->read(f->disk, fd, back, sizeof back, 1 << 20), 0);
    assert_int_equal(f->disk->ops->truncate(f->disk, fd, 5), 0);
    assert_int_equal(f->disk->ops->size(f->disk, fd), 5);
    f->disk->ops->close(f->disk, fd);
    assert_int_equal(f->disk->ops->read(f->disk, -1, back, 1, 0), -EBADF);
    assert_int_equal(f->disk->ops->sync(f->disk, -1), -EBADF);
    assert_int_equal(f->disk->ops->size(f->disk, -1), -EBADF);
}

/* The end of a file need not be aligned: reading past it with O_DIRECT gives what is there, not an error. */
static void test_direct(void **state)
{
    struct fixture *f = *state;
    static const size_t ends[] = {2 * PAGE, 2 * PAGE - 1, PAGE + 512, PAGE + 100, 100, 0};
    char *page = aligned_alloc(PAGE, 4 * PAGE);
    assert_non_null(page);
    int fd = f->disk->ops->create(f->disk, f->folder, "direct", true);
    assert_true(fd >= 0);
    assert_int_equal(f->disk->ops->allocate(f->disk, fd, 2 * PAGE), 0);
    for (size_t i = 0; i < 2 * PAGE; i++)
        page[i] = (char)(i * 7 + i / 256);
    assert_int_equal(f->disk->ops->write(f->disk, fd, page, 2 * PAGE, 0), 2 * PAGE);
    for (size_t e = 0; e < sizeof ends / sizeof *ends; e++) {
        assert_int_equal(f->disk->ops->truncate(f->disk, fd, ends[e]), 0);
        memset(page, 0, 4 * PAGE);
        assert_int_equal(f->disk->ops->read(f->disk, fd, page, 4 * PAGE, 0), ends[e]);
        for (size_t i = 0; i < ends[e]; i++)
            assert_int_equal(page[i], (char)(i * 7 + i / 256));
    }
    f->disk->ops->close(f->disk, fd);
    free(page);
}

static void test_allocate(void **state)
{
    struct fixture *f = *state;
    int fd = f->disk->ops->create(f->disk, f->folder, "big", false);
    assert_true(fd >= 0);
    assert_int_equal(f->disk->ops->allocate(f->disk, fd, 1 << 20), 0);
    assert_int_equal(f->disk->ops->size(f->disk, fd), 1 << 20);
    assert_true(f->disk->ops->allocate(f->disk, fd, (uint64_t)1 << 62) < 0); /* no disk is that large */
    f->disk->ops->close(f->disk, fd);
}

struct names {
    unsigned count, stop_after, seen;
};

static int note_name(void *context, const char *name)
{
    struct names *n = context;
    assert_string_not_equal(name, ".");
    assert_string_not_equal(name, "..");
    n->count++;
    if (name[0] == 'n' && name[1] >= '0' && name[1] <= '9')
        n->seen |= 1u << (name[1] - '0');
    errno = EIO; /* a callback's leftover is not the listing's error */
    return n->count == n->stop_after;
}

static void test_names(void **state)
{
    struct fixture *f = *state;
    char name[3] = "n0";
    for (; name[1] < '5'; name[1]++)
        f->disk->ops->close(f->disk, f->disk->ops->create(f->disk, f->folder, name, false));
    struct names n = {0};
    assert_int_equal(f->disk->ops->list(f->disk, f->folder, note_name, &n), 0);
    assert_int_equal(n.count, 5);
    assert_int_equal(n.seen, 0x1f);
    n = (struct names){0}; /* again: a listing leaves no position behind */
    assert_int_equal(f->disk->ops->list(f->disk, f->folder, note_name, &n), 0);
    assert_int_equal(n.count, 5);
    n = (struct names){.stop_after = 2};
    assert_int_equal(f->disk->ops->list(f->disk, f->folder, note_name, &n), 0);
    assert_int_equal(n.count, 2);

    assert_int_equal(f->disk->ops->rename(f->disk, f->folder, "n0", "n1"), 0); /* replaces */
    assert_int_equal(f->disk->ops->rename(f->disk, f->folder, "n0", "n7"), -ENOENT);
    assert_int_equal(f->disk->ops->remove(f->disk, f->folder, "n2"), 0);
    assert_int_equal(f->disk->ops->remove(f->disk, f->folder, "n2"), -ENOENT);
    n = (struct names){0};
    assert_int_equal(f->disk->ops->list(f->disk, f->folder, note_name, &n), 0);
    assert_int_equal(n.seen, 0x1a);
    assert_int_equal(f->disk->ops->list(f->disk, -1, note_name, &n), -EBADF);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_folder, setup, teardown),
        cmocka_unit_test_setup_teardown(test_lock, setup, teardown),
        cmocka_unit_test_setup_teardown(test_lock_shared, setup, teardown),
        cmocka_unit_test_setup_teardown(test_create_and_open, setup, teardown),
        cmocka_unit_test_setup_teardown(test_transfer, setup, teardown),
        cmocka_unit_test_setup_teardown(test_direct, setup, teardown),
        cmocka_unit_test_setup_teardown(test_allocate, setup, teardown),
        cmocka_unit_test_setup_teardown(test_names, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
