/* Many file transfers at once: each is done once and right, however many helpers the backend has. */
#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "sys/clock.h"
#include "sys/disk.h"
#include "sys/loop.h"
#include "unit/sys/loop_fixture.h"

enum { BLOCK = 4096, BLOCKS = 256, TRANSFERS = 400, PATIENCE_US = 30000000 };

struct transfer {
    struct loop_file_op op;
    unsigned done;
    int result;
    uint32_t block;
    char *buffer;
};

struct fixture {
    struct loop *loop;
    struct disk *disk;
    int folder, fd;
    char path[64];
    struct transfer transfers[TRANSFERS];
    unsigned done;
};

static void fill(char *buffer, uint32_t block)
{
    for (uint32_t i = 0; i < BLOCK; i++)
        buffer[i] = (char)(block * 37 + i % 251);
}

static int setup(void **state, enum loop_backend backend)
{
    struct fixture *f = calloc(1, sizeof *f);
    assert_non_null(f);
    f->loop = loop_fixture_create(backend);
    f->disk = disk_real();
    snprintf(f->path, sizeof f->path, "/tmp/kvasir-test-files-XXXXXX");
    assert_non_null(mkdtemp(f->path));
    f->folder = f->disk->ops->folder_open(f->disk, f->path, false);
    f->fd = f->disk->ops->create(f->disk, f->folder, "file", true);
    assert_true(f->folder >= 0 && f->fd >= 0);
    char *block = aligned_alloc(BLOCK, BLOCK);
    assert_non_null(block);
    for (uint32_t i = 0; i < BLOCKS; i++) {
        fill(block, i);
        assert_int_equal(f->disk->ops->write(f->disk, f->fd, block, BLOCK, (uint64_t)i * BLOCK), BLOCK);
    }
    free(block);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    if (f->loop)
        loop_destroy(f->loop);
    for (unsigned i = 0; i < TRANSFERS; i++)
        free(f->transfers[i].buffer);
    f->disk->ops->close(f->disk, f->fd);
    assert_int_equal(f->disk->ops->remove(f->disk, f->folder, "file"), 0);
    f->disk->ops->close(f->disk, f->folder);
    assert_int_equal(rmdir(f->path), 0);
    free(f);
    return 0;
}

/* Writes rewrite what is there already, so that any order reads the same. */
static void queue(struct fixture *f, unsigned i, bool write)
{
    struct transfer *t = &f->transfers[i];
    if (t->buffer == NULL)
        t->buffer = aligned_alloc(BLOCK, BLOCK);
    assert_non_null(t->buffer);
    t->block = i * 7 % BLOCKS;
    t->done = 0;
    if (write)
        fill(t->buffer, t->block);
    else
        memset(t->buffer, 0, BLOCK);
    t->op = (struct loop_file_op){.owner = t,
                                  .fd = f->fd,
                                  .write = write,
                                  .durable = write,
                                  .buffer = t->buffer,
                                  .len = BLOCK,
                                  .offset = (uint64_t)t->block * BLOCK};
    loop_file(f->loop, &t->op);
}

static void wait_for(struct fixture *f, unsigned count)
{
    struct loop_event events[64];
    uint64_t end_us = clock_monotonic_us() + PATIENCE_US;
    while (f->done < count) {
        int n = loop_wait(f->loop, events, 64, 100000);
        for (int i = 0; i < n; i++) {
            assert_int_equal(events[i].type, LOOP_FILE_DONE);
            struct transfer *t = events[i].owner;
            t->done++;
            t->result = events[i].result;
            f->done++;
        }
        assert_true(clock_monotonic_us() < end_us);
    }
}

static void test_each_is_done_once(void **state)
{
    struct fixture *f = *state;
    char expected[BLOCK];
    for (unsigned round = 0; round < 5; round++) {
        f->done = 0;
        for (unsigned i = 0; i < TRANSFERS; i++)
            queue(f, i, i % 5 == round);
        wait_for(f, TRANSFERS);
        for (unsigned i = 0; i < TRANSFERS; i++) {
            const struct transfer *t = &f->transfers[i];
            assert_int_equal(t->done, 1);
            assert_int_equal(t->result, BLOCK);
            fill(expected, t->block);
            assert_memory_equal(t->buffer, expected, BLOCK);
        }
    }
}

static void test_destroying_waits_for_what_is_under_way(void **state)
{
    struct fixture *f = *state;
    char expected[BLOCK];
    for (unsigned i = 0; i < TRANSFERS; i++)
        queue(f, i, false);
    wait_for(f, 1); /* so all have been submitted */
    loop_destroy(f->loop);
    f->loop = NULL;
    for (unsigned i = 0; i < TRANSFERS; i++) { /* nothing writes into freed memory; whole or untouched */
        const struct transfer *t = &f->transfers[i];
        fill(expected, t->block);
        if (t->buffer[1] == 0 && t->buffer[BLOCK - 1] == 0)
            memset(expected, 0, BLOCK);
        assert_memory_equal(t->buffer, expected, BLOCK);
    }
}

static unsigned helpers(void)
{
    unsigned n = 0;
    DIR *dir = opendir("/proc/self/task");
    assert_non_null(dir);
    for (struct dirent *e; (e = readdir(dir));) {
        char name[300], text[32] = "";
        snprintf(name, sizeof name, "/proc/self/task/%s/comm", e->d_name);
        FILE *file = fopen(name, "re");
        if (file == NULL)
            continue;
        n += fgets(text, sizeof text, file) && strcmp(text, "loop-files\n") == 0;
        fclose(file);
    }
    closedir(dir);
    return n;
}

/* Helpers come as they are needed, up to a limit: that many reads are under way at once. */
static void test_epoll_has_several_helpers(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(helpers(), 0);
    queue(f, 0, true);
    wait_for(f, 1);
    assert_int_equal(helpers(), 1);
    f->done = 0;
    for (unsigned i = 0; i < TRANSFERS; i++)
        queue(f, i, false);
    wait_for(f, TRANSFERS);
    assert_in_range(helpers(), 2, 16);
}

/* Reads are handed over before the first reply of their turn is sent, with one call; a write waits for the
 * turn's end, and so does what is sent. */
static void test_uring_reads_go_before_sends(void **state)
{
    struct fixture *f = *state;
    struct loop_stream stream = {.owner = &stream};
    const struct iovec piece = {"pong", 4};
    struct loop_event events[8];
    int pair[2];
    char got[4];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    queue(f, 0, true);
    wait_for(f, 1);
    loop_stream_start(f->loop, &stream, pair[0]);
    queue(f, 1, true);
    uint64_t before = f->loop->stats.system_calls;
    loop_stream_send(f->loop, &stream, &piece, 1);
    assert_int_equal(f->loop->stats.system_calls, before);
    queue(f, 2, false);
    queue(f, 3, false);
    unsigned files = 0;
    for (unsigned sends = 0; files < 3 || sends < 2;) {
        int n = loop_wait(f->loop, events, 8, PATIENCE_US);
        assert_true(n > 0);
        for (int i = 0; i < n; i++) {
            files += events[i].type == LOOP_FILE_DONE;
            if (events[i].type != LOOP_SENT || ++sends == 2)
                continue;
            queue(f, 4, false);
            queue(f, 5, false);
            before = f->loop->stats.system_calls;
            loop_stream_send(f->loop, &stream, &piece, 1);
            assert_int_equal(f->loop->stats.system_calls, before + 1);
        }
    }
    assert_int_equal(read(pair[1], got, 4), 4);
    assert_memory_equal(got, "pong", 4);
    loop_stream_close(f->loop, &stream);
    for (bool closed = false; !closed || files < 5;) {
        int n = loop_wait(f->loop, events, 8, PATIENCE_US);
        assert_true(n > 0);
        for (int i = 0; i < n; i++) {
            closed |= events[i].type == LOOP_CLOSED;
            files += events[i].type == LOOP_FILE_DONE;
        }
    }
    close(pair[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        BOTH(test_each_is_done_once),
        cmocka_unit_test_setup_teardown(test_destroying_waits_for_what_is_under_way, setup_epoll, teardown),
        cmocka_unit_test_setup_teardown(test_epoll_has_several_helpers, setup_epoll, teardown),
        cmocka_unit_test_setup_teardown(test_uring_reads_go_before_sends, setup_uring, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
