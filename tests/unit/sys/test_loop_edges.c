/* The event loop where it hurts: refused system calls, signals, short transfers, more completions than fit,
 * closing in every state. What both backends must do alike runs on both; test_loop.c has the plain cases. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/prng.h"
#include "sys/clock.h"
#include "sys/loop.h"
#include "sys/memory.h"
#include "sys/net.h"
#include "unit/sys/loop_fixture.h"
#include "unit/sys/net_fixture.h"

enum { EVENTS = 64, PATIENCE_US = 20000000, HELD_MAX = 8192 };

struct conn {
    struct loop_stream stream;
    size_t bytes;
    unsigned eofs, closes, sents;
    int eof_result, sent_result;
};

/* A listening socket's owner. */
struct door {
    unsigned accepted;
    int fd, error;
};

/* A file operation's owner. */
struct job {
    struct loop_file_op op;
    unsigned done;
    int result;
    char data[8];
};

struct fixture {
    struct loop *loop;
    unsigned files, woken;
    bool hold; /* keep data buffers in held */
    uint32_t held[HELD_MAX];
    unsigned held_count;
};

static int setup(void **state, enum loop_backend backend)
{
    struct fixture *f = calloc(1, sizeof *f);
    assert_non_null(f);
    f->loop = loop_fixture_create(backend);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    loop_destroy(f->loop);
    free(f);
    return 0;
}

static void on_stream_event(struct fixture *f, const struct loop_event *e)
{
    struct conn *c = e->owner;
    assert_int_equal(c->closes, 0);
    if (e->type == LOOP_DATA) {
        assert_in_range(e->result, 1, LOOP_BUFFER_BYTES);
        assert_int_equal(c->eofs, 0);
        c->bytes += (size_t)e->result;
        if (f->hold)
            f->held[f->held_count++] = e->buffer_id;
        else
            loop_buffer_release(f->loop, e->buffer_id);
    } else if (e->type == LOOP_EOF) {
        assert_int_equal(c->eofs++, 0);
        c->eof_result = e->result;
    } else if (e->type == LOOP_SENT) {
        c->sents++;
        c->sent_result = e->result;
    } else {
        c->closes++;
    }
}

static void on_event(struct fixture *f, const struct loop_event *e)
{
    if (e->type == LOOP_ACCEPTED) {
        struct door *door = e->owner;
        if (e->result < 0) {
            door->error = e->result;
        } else {
            door->accepted++;
            door->fd = e->result;
        }
    } else if (e->type == LOOP_FILE_DONE) {
        struct job *job = e->owner;
        job->done++;
        job->result = e->result;
        f->files++;
    } else if (e->type == LOOP_WOKEN) {
        f->woken++;
    } else {
        on_stream_event(f, e);
    }
}

static int turn_of(struct fixture *f, int capacity, int64_t timeout_us)
{
    struct loop_event events[EVENTS];
    int n = loop_wait(f->loop, events, capacity, timeout_us);
    assert_in_range(n, 0, capacity);
    for (int i = 0; i < n; i++)
        on_event(f, &events[i]);
    return n;
}

static void turns(struct fixture *f, int count)
{
    while (count--)
        turn_of(f, EVENTS, 1000);
}

/* Turns until the condition holds. */
#define TURN_UNTIL(f, condition)                                                                             \
    do {                                                                                                     \
        uint64_t end_us_ = clock_monotonic_us() + PATIENCE_US;                                               \
        while (!(condition)) {                                                                               \
            if (clock_monotonic_us() > end_us_)                                                              \
                fail_msg("never happened: %s", #condition);                                                  \
            turn_of((f), EVENTS, 100000);                                                                    \
        }                                                                                                    \
    } while (0)

static int start_pair(struct fixture *f, struct conn *c)
{
    int fds[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    assert_int_equal(fcntl(fds[1], F_SETFL, O_NONBLOCK), 0);
    memset(c, 0, sizeof *c);
    c->stream.owner = c;
    loop_stream_start(f->loop, &c->stream, fds[0]);
    return fds[1];
}

static void finish(struct fixture *f, struct conn *c, int peer)
{
    loop_stream_close(f->loop, &c->stream);
    TURN_UNTIL(f, c->closes == 1);
    close(peer);
}

static void release_held(struct fixture *f)
{
    f->hold = false;
    while (f->held_count)
        loop_buffer_release(f->loop, f->held[--f->held_count]);
}

/* An unnamed file with the text in it. */
static int temporary_file(const char *text, size_t len)
{
    char path[] = "/tmp/kvasir-test-edges-XXXXXX";
    int fd = mkostemp(path, O_CLOEXEC);
    assert_true(fd >= 0);
    unlink(path);
    assert_int_equal(pwrite(fd, text, len, 0), len);
    return fd;
}

/* ---- listening ---- */

static void listen_at(struct loop *loop, int fd, struct door *door)
{
    status_t s = loop_listen(loop, fd, door);
    if (!status_is_ok(&s))
        fail_msg("%s", s.text);
}

/* Given up and taken again without a turn between: the kernel still holds the accept of before. */
static void test_listen_again(void **state)
{
    enum { TIMES = 30, ALL_US = 1500000 };
    struct fixture *f = *state;
    struct door doors[TIMES];
    memset(doors, 0, sizeof doors);
    int port, fd = listen_somewhere(&port);
    uint64_t start_us = clock_monotonic_us();
    for (int i = 0; i < TIMES; i++) {
        listen_at(f->loop, fd, &doors[i]);
        int peer = connect_to(port);
        TURN_UNTIL(f, doors[i].accepted == 1);
        close(doors[i].fd);
        close(peer);
        loop_unlisten(f->loop, fd);
    }
    assert_in_range(clock_monotonic_us() - start_us, 0, ALL_US); /* no pause of 100 ms each */
    turns(f, 3);
    for (int i = 0; i < TIMES; i++) {
        assert_int_equal(doors[i].accepted, 1);
        assert_int_equal(doors[i].error, 0);
    }
    close(fd);
}

/* What connects after an unlisten is left for others. */
static void test_unlisten_leaves_connections(void **state)
{
    struct fixture *f = *state;
    struct door first = {0}, second = {0};
    int port, fd = listen_somewhere(&port);
    listen_at(f->loop, fd, &first);
    turns(f, 2);
    loop_unlisten(f->loop, fd);
    turns(f, 2);
    int peer = connect_to(port);
    turns(f, 5);
    assert_int_equal(first.accepted, 0);
    assert_int_equal(first.error, 0);
    struct fixture *other = calloc(1, sizeof *other);
    assert_non_null(other);
    status_t s = loop_create(f->loop->backend, &other->loop, NULL);
    assert_true(status_is_ok(&s));
    listen_at(other->loop, fd, &second);
    TURN_UNTIL(other, second.accepted == 1);
    loop_destroy(other->loop);
    free(other);
    close(second.fd);
    close(peer);
    close(fd);
}

static void test_too_many_listeners(void **state)
{
    enum { MANY = 16 };
    struct fixture *f = *state;
    struct door doors[MANY];
    memset(doors, 0, sizeof doors);
    int fds[MANY], ports[MANY], count = 0;
    status_t s = status_ok();
    while (count < MANY) {
        fds[count] = listen_somewhere(&ports[count]);
        s = loop_listen(f->loop, fds[count], &doors[count]);
        if (!status_is_ok(&s))
            break;
        count++;
    }
    assert_in_range(count, 2, MANY - 1);
    assert_int_equal(s.code, STATUS_INVALID);
    turns(f, 2);
    loop_unlisten(f->loop, fds[0]); /* its place is free after a turn */
    turns(f, 2);
    listen_at(f->loop, fds[count], &doors[count]);
    for (int i = 1; i <= count; i++) {
        int peer = connect_to(ports[i]);
        TURN_UNTIL(f, doors[i].accepted == 1);
        close(doors[i].fd);
        close(peer);
    }
    for (int i = 0; i <= count; i++) {
        loop_unlisten(f->loop, fds[i]);
        close(fds[i]);
    }
}

/* ---- sending ---- */

/* Sends the data through a narrow socket to a slow reader, continuing after what each send says it did; the
 * reader must see every byte in order. job: a file read that is repeated all the while, or NULL. Returns the
 * number of short sends. */
static unsigned pump(struct fixture *f, const char *data, size_t bytes, struct job *job)
{
    struct conn c;
    int peer = start_pair(f, &c), narrow = 8192;
    assert_int_equal(setsockopt(c.stream.fd, SOL_SOCKET, SO_SNDBUF, &narrow, sizeof narrow), 0);
    size_t sent = 0, seen = 0, asked = 0;
    unsigned shorts = 0;
    struct iovec pieces[2];
    uint64_t end_us = clock_monotonic_us() + PATIENCE_US;
    while (seen < bytes) {
        char back[10000];
        assert_true(clock_monotonic_us() < end_us);
        if (c.sents) {
            assert_in_range(c.sent_result, 1, asked);
            shorts += (size_t)c.sent_result < asked;
            sent += (size_t)c.sent_result;
            c.sents = 0;
            asked = 0;
        }
        if (asked == 0 && sent < bytes) {
            asked = bytes - sent;
            pieces[0] = (struct iovec){(void *)(uintptr_t)(data + sent), (asked + 1) / 2};
            pieces[1] = (struct iovec){(void *)(uintptr_t)(data + sent + (asked + 1) / 2), asked / 2};
            loop_stream_send(f->loop, &c.stream, pieces, asked > 1 ? 2 : 1);
        }
        if (job && job->done) {
            assert_int_equal(job->result, sizeof job->data);
            job->done = 0;
            loop_file(f->loop, &job->op);
        }
        turn_of(f, EVENTS, 2000);
        ssize_t n = recv(peer, back, sizeof back, 0);
        if (n > 0) {
            assert_memory_equal(back, data + seen, (size_t)n);
            seen += (size_t)n;
        }
    }
    assert_int_equal(c.eofs, 0);
    finish(f, &c, peer);
    return shorts;
}

static void test_short_sends(void **state)
{
    enum { BYTES = 2 << 20 };
    char *data = malloc(BYTES);
    assert_non_null(data);
    for (size_t i = 0; i < BYTES; i++)
        data[i] = (char)(i % 251);
    assert_true(pump(*state, data, BYTES, NULL) > 0);
    free(data);
}

static atomic_uint signals; /* relaxed: only counted */

static void on_signal(int number)
{
    (void)number;
    atomic_fetch_add_explicit(&signals, 1, memory_order_relaxed);
}

/* Signals that interrupt system calls all the time change nothing. */
static void test_signals(void **state)
{
    enum { BYTES = 300000, ENOUGH = 100 };
    struct fixture *f = *state;
    static char data[BYTES];
    for (size_t i = 0; i < BYTES; i++)
        data[i] = (char)(i % 249);
    int fd = temporary_file("01234567", 8);
    struct job job = {.done = 1, .result = sizeof job.data};
    job.op = (struct loop_file_op){.owner = &job, .fd = fd, .buffer = job.data, .len = sizeof job.data};
    struct sigaction action = {.sa_handler = on_signal}, old; /* without SA_RESTART */
    struct itimerval often = {{0, 300}, {0, 300}}, never = {{0, 0}, {0, 0}};
    atomic_store_explicit(&signals, 0, memory_order_relaxed);
    assert_int_equal(sigaction(SIGALRM, &action, &old), 0);
    assert_int_equal(setitimer(ITIMER_REAL, &often, NULL), 0);
    while (atomic_load_explicit(&signals, memory_order_relaxed) < ENOUGH)
        pump(f, data, BYTES, &job);
    assert_int_equal(setitimer(ITIMER_REAL, &never, NULL), 0);
    TURN_UNTIL(f, job.done);
    assert_int_equal(job.result, sizeof job.data);
    assert_memory_equal(job.data, "01234567", 8);
    assert_int_equal(sigaction(SIGALRM, &old, NULL), 0);
    close(fd);
}

/* ---- more than fits ---- */

/* More transfers at once than io_uring's queues hold, taken out a few at a time: each comes once. */
static void test_completion_flood(void **state)
{
    enum { JOBS = 40000 };
    struct fixture *f = *state;
    int fd = temporary_file("kvasir!", 8);
    struct job *jobs = calloc(JOBS, sizeof *jobs);
    assert_non_null(jobs);
    for (unsigned i = 0; i < JOBS; i++) {
        jobs[i].op = (struct loop_file_op){.owner = &jobs[i], .fd = fd, .buffer = jobs[i].data, .len = 8};
        loop_file(f->loop, &jobs[i].op);
    }
    uint64_t end_us = clock_monotonic_us() + PATIENCE_US;
    while (f->files < JOBS) {
        turn_of(f, 7, 100000);
        assert_true(clock_monotonic_us() < end_us);
    }
    turns(f, 3);
    for (unsigned i = 0; i < JOBS; i++) {
        assert_int_equal(jobs[i].done, 1);
        assert_int_equal(jobs[i].result, 8);
        assert_memory_equal(jobs[i].data, "kvasir!", 8);
    }
    free(jobs);
    close(fd);
}

/* Takes every buffer the loop has: one stream's bytes, one to a buffer, until none comes any more. */
static size_t hold_all_buffers(struct fixture *f, struct conn *c, int peer)
{
    size_t before = c->bytes, written = 0;
    f->hold = true;
    for (;;) {
        assert_true(f->held_count + EVENTS < HELD_MAX);
        assert_int_equal(send(peer, "x", 1, 0), 1);
        written++;
        uint64_t end_us = clock_monotonic_us() + 50000;
        while (c->bytes < before + written && clock_monotonic_us() < end_us)
            turn_of(f, EVENTS, 5000);
        if (c->bytes < before + written)
            return written;
    }
}

/* Streams that found no buffer can be paused, lose their peer and be closed, and the rest get their data. */
static void test_starved_streams(void **state)
{
    enum { STREAMS = 40 };
    struct fixture *f = *state;
    struct conn hog, conns[STREAMS];
    int hog_peer = start_pair(f, &hog), peers[STREAMS];
    size_t written = hold_all_buffers(f, &hog, hog_peer);
    for (int i = 0; i < STREAMS; i++) {
        peers[i] = start_pair(f, &conns[i]);
        assert_int_equal(send(peers[i], "hello", 5, 0), 5);
    }
    turns(f, 5);
    for (int i = 0; i < STREAMS; i++) {
        assert_int_equal(conns[i].bytes + conns[i].eofs, 0);
        if (i % 4 == 0)
            loop_stream_close(f->loop, &conns[i].stream);
        else if (i % 4 == 1)
            loop_stream_read(f->loop, &conns[i].stream, false);
        else if (i % 4 == 2)
            close(peers[i]);
    }
    /* Closing must not wait for buffers. */
    for (int i = 0; i < STREAMS; i += 4)
        TURN_UNTIL(f, conns[i].closes == 1);
    uint64_t before = f->loop->stats.turns;
    turn_of(f, EVENTS, 30000);
    turn_of(f, EVENTS, 30000);
    assert_true(f->loop->stats.turns - before == 2);
    release_held(f);
    for (int i = 0; i < STREAMS; i++) {
        if (i % 4 == 2)
            TURN_UNTIL(f, conns[i].bytes == 5 && conns[i].eofs == 1);
        else if (i % 4 == 3)
            TURN_UNTIL(f, conns[i].bytes == 5);
    }
    turns(f, 3);
    for (int i = 1; i < STREAMS; i += 4) {
        assert_int_equal(conns[i].bytes, 0);
        loop_stream_read(f->loop, &conns[i].stream, true);
        TURN_UNTIL(f, conns[i].bytes == 5);
    }
    TURN_UNTIL(f, hog.bytes == written);
    finish(f, &hog, hog_peer);
    for (int i = 0; i < STREAMS; i++) {
        if (i % 4)
            finish(f, &conns[i], i % 4 == 2 ? -1 : peers[i]);
        else
            close(peers[i]);
        assert_int_equal(conns[i].closes, 1);
    }
}

/* Receives so often, releasing each time; how many buffers that took. */
static unsigned buffers_seen(struct fixture *f, struct conn *c, int peer, unsigned receives)
{
    bool seen[HELD_MAX] = {false};
    unsigned count = 0;
    f->hold = true;
    for (unsigned i = 0; i < receives; i++) {
        size_t before = c->bytes;
        assert_int_equal(send(peer, "x", 1, 0), 1);
        TURN_UNTIL(f, c->bytes > before);
        assert_int_equal(f->held_count, 1);
        count += !seen[f->held[0]];
        seen[f->held[0]] = true;
        release_held(f);
        f->hold = true;
    }
    f->hold = false;
    return count;
}

/* Few buffers are in use until they are needed; the limit can be moved, and memory goes back. */
static void test_uring_buffers_in_use(void **state)
{
    static char piece[LOOP_BUFFER_BYTES];
    struct fixture *f = *state;
    struct conn c;
    int peer = start_pair(f, &c);
    unsigned few = buffers_seen(f, &c, peer, 1000);
    assert_in_range(few, 1, 64);
    f->loop->buffers_max = 5;
    (void)buffers_seen(f, &c, peer, few);
    assert_int_equal(buffers_seen(f, &c, peer, 100), 5);
    f->loop->buffers_max = UINT32_MAX;
    f->hold = true;
    for (size_t want = c.bytes; f->held_count < 500;) {
        assert_int_equal(send(peer, piece, sizeof piece, 0), sizeof piece);
        want += sizeof piece;
        TURN_UNTIL(f, c.bytes == want);
    }
    uint64_t before = memory_resident_bytes();
    f->loop->buffers_max = 0; /* one */
    release_held(f);
    assert_true(memory_resident_bytes() + 400 * LOOP_BUFFER_BYTES < before);
    (void)buffers_seen(f, &c, peer, 600);
    assert_int_equal(buffers_seen(f, &c, peer, 10), 1);
    finish(f, &c, peer);
}

static void test_buffers_max(void **state)
{
    struct fixture *f = *state;
    struct conn c;
    int peer = start_pair(f, &c);
    f->loop->buffers_max = 5;
    (void)buffers_seen(f, &c, peer, 100);
    size_t before = c.bytes, written = hold_all_buffers(f, &c, peer);
    assert_int_equal(f->held_count, 5);
    f->loop->buffers_max = 7; /* more are there at once */
    TURN_UNTIL(f, f->held_count == 6);
    assert_int_equal(send(peer, "x", 1, 0), 1);
    TURN_UNTIL(f, f->held_count == 7);
    assert_int_equal(send(peer, "x", 1, 0), 1);
    f->loop->buffers_max = 0; /* one */
    turns(f, 5);
    assert_int_equal(f->held_count, 7);
    release_held(f);
    TURN_UNTIL(f, c.bytes == before + written + 2);
    (void)buffers_seen(f, &c, peer, 100);
    assert_int_equal(buffers_seen(f, &c, peer, 10), 1);
    finish(f, &c, peer);
}

/* More streams than buffers, all with data all the time: each gets its turn. */
static void test_starved_streams_take_turns(void **state)
{
    enum { STREAMS = 40 };
    static char piece[4 * LOOP_BUFFER_BYTES];
    struct fixture *f = *state;
    struct conn conns[STREAMS];
    int peers[STREAMS];
    f->loop->buffers_max = 2;
    for (int i = 0; i < STREAMS; i++)
        peers[i] = start_pair(f, &conns[i]);
    for (int turn = 0, without = STREAMS; without; turn++) {
        assert_true(turn < 10 * STREAMS);
        for (int i = 0; i < STREAMS; i++)
            (void)send(peers[i], piece, sizeof piece, MSG_DONTWAIT);
        turn_of(f, EVENTS, 1000);
        without = 0;
        for (int i = 0; i < STREAMS; i++)
            without += conns[i].bytes == 0;
    }
    for (int i = 0; i < STREAMS; i++)
        finish(f, &conns[i], peers[i]);
}

/* More ends than there are buffers: an end keeps none. */
static void test_ends_keep_no_buffer(void **state)
{
    enum { STREAMS = 5000 };
    struct fixture *f = *state;
    for (int i = 0; i < STREAMS; i++) {
        struct conn c;
        int peer = start_pair(f, &c);
        if (i % 2)
            assert_int_equal(send(peer, "bye", 3, 0), 3);
        close(peer);
        TURN_UNTIL(f, c.eofs == 1);
        assert_int_equal(c.bytes, i % 2 ? 3 : 0);
        finish(f, &c, -1);
    }
}

/* ---- files ---- */

static int write_result(struct fixture *f, int fd, bool durable, const char *data, size_t len,
                        uint64_t offset)
{
    struct job job = {.done = 0};
    job.op = (struct loop_file_op){.owner = &job, .fd = fd, .write = true, .durable = durable};
    job.op.buffer = (void *)(uintptr_t)data;
    job.op.len = len;
    job.op.offset = offset;
    loop_file(f->loop, &job.op);
    TURN_UNTIL(f, job.done == 1);
    return job.result;
}

/* What was not written is not reported as written. */
static void test_short_and_failed_writes(void **state)
{
    static const char data[8192];
    struct fixture *f = *state;
    struct rlimit old, tight;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    tight = old;
    tight.rlim_cur = 4096;
    void (*old_handler)(int) = signal(SIGXFSZ, SIG_IGN);
    int fd = temporary_file("", 0), full = open("/dev/full", O_WRONLY | O_CLOEXEC);
    int only_read = open("/dev/zero", O_RDONLY | O_CLOEXEC);
    assert_true(full >= 0 && only_read >= 0);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &tight), 0);
    int first = write_result(f, fd, true, data, sizeof data, 0);
    int second = write_result(f, fd, true, data, sizeof data, 4096);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    signal(SIGXFSZ, old_handler);
    assert_int_equal(first, 4096);
    assert_int_equal(second, -EFBIG);
    assert_int_equal(write_result(f, full, false, data, sizeof data, 0), -ENOSPC);
    assert_int_equal(write_result(f, only_read, true, data, sizeof data, 0), -EBADF);
    close(fd);
    close(full);
    close(only_read);
}

/* ---- wake-ups ---- */

struct storm {
    struct loop *loop;
    atomic_uint count; /* relaxed adds: loop_wake orders them before the LOOP_WOKEN that reports them */
};

enum { STORM_THREADS = 4, STORM_WAKES = 3000 };

static void *storm_main(void *context)
{
    struct storm *storm = context;
    for (int i = 0; i < STORM_WAKES; i++) {
        atomic_fetch_add_explicit(&storm->count, 1, memory_order_relaxed);
        loop_wake(storm->loop);
    }
    return NULL;
}

/* After the last wake-up of all threads comes an event: none gets lost between reporting and waking again. */
static void test_wake_storm(void **state)
{
    struct fixture *f = *state;
    for (int round = 0; round < 5; round++) {
        struct storm storm = {.loop = f->loop};
        pthread_t threads[STORM_THREADS];
        unsigned seen = 0;
        for (int i = 0; i < STORM_THREADS; i++)
            assert_int_equal(pthread_create(&threads[i], NULL, storm_main, &storm), 0);
        uint64_t end_us = clock_monotonic_us() + PATIENCE_US;
        while (seen < STORM_THREADS * STORM_WAKES) {
            f->woken = 0;
            turn_of(f, EVENTS, 100000);
            if (f->woken)
                seen = atomic_load_explicit(&storm.count, memory_order_relaxed);
            assert_true(clock_monotonic_us() < end_us);
        }
        for (int i = 0; i < STORM_THREADS; i++)
            pthread_join(threads[i], NULL);
        turns(f, 2);
    }
}

/* ---- any order ---- */

/* A stream of the random test. Freed when LOOP_CLOSED comes: what comes later is a use after free. */
struct life {
    struct conn conn;
    struct iovec pieces[2];
    int peer; /* -1: closed */
    size_t sent_to_it;
    bool sending, reading, closing;
};

static void live(struct fixture *f, struct life *life, struct prng *p)
{
    static char text[60000];
    struct loop_stream *stream = &life->conn.stream;
    size_t len = 1 + prng_below(p, sizeof text);
    ssize_t n;
    switch (prng_below(p, 8)) {
    case 0:
    case 1:
        n = life->peer < 0 ? -1 : send(life->peer, text, len, MSG_NOSIGNAL);
        life->sent_to_it += n > 0 ? (size_t)n : 0;
        break;
    case 2:
        if (life->peer >= 0 && prng_below(p, 4) == 0) {
            close(life->peer);
            life->peer = -1;
        }
        break;
    case 3: /* several in a turn, too */
        for (uint64_t flips = 1 + prng_below(p, 4); flips && !life->closing; flips--) {
            life->reading = !life->reading;
            loop_stream_read(f->loop, stream, life->reading);
        }
        break;
    case 4:
        if (!life->sending && !life->closing) {
            life->pieces[0] = life->pieces[1] = (struct iovec){text, len};
            life->sending = true;
            loop_stream_send(f->loop, stream, life->pieces, 1 + (int)prng_below(p, 2));
        }
        break;
    case 5:
        if (prng_below(p, 3) == 0) {
            life->closing = true;
            loop_stream_close(f->loop, stream); /* also a second time */
        }
        break;
    default: /* the peer reads */
        if (life->peer >= 0)
            while (recv(life->peer, text, sizeof text, 0) > 0)
                continue;
        break;
    }
}

/* Looks after the events of a turn; true: gone. */
static bool bury(struct life *life)
{
    struct conn *c = &life->conn;
    assert_true(c->bytes <= life->sent_to_it);
    if (c->eofs) {
        assert_int_equal(life->peer, -1);
        if (c->eof_result == 0)
            assert_int_equal(c->bytes, life->sent_to_it);
    }
    if (c->sents) {
        assert_true(life->sending);
        life->sending = false;
        c->sents = 0;
    }
    if (!c->closes)
        return false;
    assert_true(life->closing);
    if (life->peer >= 0)
        close(life->peer);
    free(life);
    return true;
}

static void test_any_order(void **state)
{
    enum { LIVES = 30, STEPS = 30000 };
    struct fixture *f = *state;
    struct life *lives[LIVES] = {NULL};
    struct prng p;
    prng_seed(&p, 20);
    unsigned ended = 0;
    for (int step = 0; step < STEPS; step++) {
        struct life **life = &lives[prng_below(&p, LIVES)];
        if (*life == NULL) {
            *life = calloc(1, sizeof **life);
            assert_non_null(*life);
            (*life)->peer = start_pair(f, &(*life)->conn);
            (*life)->reading = true;
        } else {
            live(f, *life, &p);
        }
        if (prng_below(&p, 4))
            continue;
        turn_of(f, 1 + (int)prng_below(&p, EVENTS), (int64_t)prng_below(&p, 2) * 100);
        for (int i = 0; i < LIVES; i++) {
            if (lives[i] && bury(lives[i])) {
                lives[i] = NULL;
                ended++;
            }
        }
    }
    for (int i = 0; i < LIVES; i++) {
        if (lives[i] == NULL)
            continue;
        lives[i]->closing = true;
        loop_stream_close(f->loop, &lives[i]->conn.stream);
        TURN_UNTIL(f, lives[i]->conn.closes == 1);
        assert_true(bury(lives[i]));
    }
    assert_true(ended > 100);
}

/* ---- refused system calls ---- */

static int forbid(int call, int error)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)call, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)error),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = sizeof code / sizeof code[0], .filter = code};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ? -1
                                                      : prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

/* 0 when the loop waits as long as it should (the end of a ring may interrupt it) and wakes up. */
static int try_loop(struct loop *loop)
{
    struct loop_event events[EVENTS];
    uint64_t end_us = clock_monotonic_us() + 19000;
    for (int waits = 0; clock_monotonic_us() < end_us; waits++) {
        if (loop_wait(loop, events, EVENTS, 20000) != 0)
            return 20;
        if (waits == 5)
            return 21;
    }
    loop_wake(loop);
    if (loop_wait(loop, events, EVENTS, 1000000) != 1 || events[0].type != LOOP_WOKEN)
        return 22;
    return 0;
}

static int child_without(int call, int error)
{
    struct loop *loop = NULL;
    char why[128] = "";
    bool epoll = call == SYS_epoll_pwait2;
    if (forbid(call, error) < 0)
        return 10;
    status_t s = loop_create(LOOP_URING, &loop, NULL);
    if (!epoll && (s.code != STATUS_UNSUPPORTED || strstr(s.text, "io_uring") == NULL))
        return 11;
    if (status_is_ok(&s))
        loop_destroy(loop);
    s = loop_create(epoll ? LOOP_EPOLL : LOOP_AUTO, &loop, why);
    if (!status_is_ok(&s))
        return 12;
    if (loop->backend != LOOP_EPOLL || (!epoll && strstr(why, strerror(error)) == NULL))
        return 13;
    int result = try_loop(loop);
    loop_destroy(loop);
    return result;
}

/* Containers refuse io_uring in whole or in part, and calls that are newer than their filters. */
static void test_refused_calls(void **state)
{
    static const int calls[] = {SYS_io_uring_setup, SYS_io_uring_enter, SYS_io_uring_register,
                                SYS_epoll_pwait2};
    static const int errors[] = {EPERM, ENOSYS};
    (void)state;
    for (unsigned i = 0; i < 8; i++) {
        fflush(NULL);
        pid_t pid = fork();
        assert_true(pid >= 0);
        if (pid == 0)
            _exit(child_without(calls[i / 2], errors[i % 2]));
        int status = 0;
        assert_int_equal(waitpid(pid, &status, 0), pid);
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
            fail_msg("without call %d (%s): wait status %d", calls[i / 2], strerror(errors[i % 2]), status);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        BOTH(test_listen_again),
        BOTH(test_unlisten_leaves_connections),
        BOTH(test_too_many_listeners),
        BOTH(test_short_sends),
        BOTH(test_signals),
        BOTH(test_completion_flood),
        BOTH(test_starved_streams),
        BOTH(test_starved_streams_take_turns),
        BOTH(test_buffers_max),
        cmocka_unit_test_setup_teardown(test_uring_buffers_in_use, setup_uring, teardown),
        BOTH(test_ends_keep_no_buffer),
        BOTH(test_short_and_failed_writes),
        BOTH(test_wake_storm),
        BOTH(test_any_order),
        cmocka_unit_test(test_refused_calls),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
