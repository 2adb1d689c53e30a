/* The event loop. Every test runs on both backends and must see the same. */
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
#include <pthread.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <netinet/in.h>
#include <unistd.h>

#include "base/prng.h"
#include "sys/clock.h"
#include "sys/disk.h"
#include "sys/loop.h"
#include "sys/net.h"
#include "unit/sys/loop_fixture.h"
#include "unit/sys/net_fixture.h"

enum { EVENTS = 64, PATIENCE_US = 10000000 };

/* One stream and what happened to it. */
struct conn {
    struct loop_stream stream;
    char *received; /* NULL: only counted */
    size_t bytes;
    unsigned eofs, closes, sents;
    int eof_result, sent_result;
};

struct fixture {
    struct loop *loop;
    unsigned accepted, accept_failures, woken, files;
    int accepted_fd, accept_error, file_result;
    bool hold; /* keep data buffers in held */
    uint32_t held[8192];
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

static void on_data(struct fixture *f, const struct loop_event *e)
{
    struct conn *c = e->owner;
    assert_in_range(e->result, 1, LOOP_BUFFER_BYTES);
    assert_int_equal(c->eofs + c->closes, 0);
    if (c->received)
        memcpy(c->received + c->bytes, e->data, (size_t)e->result);
    c->bytes += (size_t)e->result;
    if (f->hold)
        f->held[f->held_count++] = e->buffer_id;
    else
        loop_buffer_release(f->loop, e->buffer_id);
}

static void on_event(struct fixture *f, const struct loop_event *e)
{
    struct conn *c = e->owner;
    switch (e->type) {
    case LOOP_DATA:
        on_data(f, e);
        break;
    case LOOP_EOF:
        c->eofs++;
        c->eof_result = e->result;
        break;
    case LOOP_SENT:
        assert_int_equal(c->closes, 0);
        c->sents++;
        c->sent_result = e->result;
        break;
    case LOOP_CLOSED:
        c->closes++;
        break;
    case LOOP_ACCEPTED:
        assert_ptr_equal(e->owner, f);
        if (e->result >= 0) {
            f->accepted++;
            f->accepted_fd = e->result;
        } else {
            f->accept_failures++;
            f->accept_error = e->result;
        }
        break;
    case LOOP_FILE_DONE:
        f->files++;
        f->file_result = e->result;
        break;
    case LOOP_WOKEN:
        f->woken++;
        break;
    }
}

static int turn(struct fixture *f, int64_t timeout_us)
{
    struct loop_event events[EVENTS];
    int n = loop_wait(f->loop, events, EVENTS, timeout_us);
    assert_in_range(n, 0, EVENTS);
    for (int i = 0; i < n; i++)
        on_event(f, &events[i]);
    return n;
}

/* Turns until the condition holds. */
#define TURN_UNTIL(f, condition)                                                                             \
    do {                                                                                                     \
        uint64_t end_us_ = clock_monotonic_us() + PATIENCE_US;                                               \
        while (!(condition)) {                                                                               \
            if (clock_monotonic_us() > end_us_)                                                              \
                fail_msg("never happened: %s", #condition);                                                  \
            turn((f), 100000);                                                                               \
        }                                                                                                    \
    } while (0)

static void start(struct fixture *f, struct conn *c, int fd)
{
    memset(c, 0, sizeof *c);
    c->stream.owner = c;
    loop_stream_start(f->loop, &c->stream, fd);
}

static void finish(struct fixture *f, struct conn *c)
{
    loop_stream_close(f->loop, &c->stream);
    TURN_UNTIL(f, c->closes == 1);
    free(c->received);
}

/* The test's end is non-blocking, the loop's end as it comes. */
static int start_pair(struct fixture *f, struct conn *c)
{
    int fds[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    assert_int_equal(fcntl(fds[1], F_SETFL, O_NONBLOCK), 0);
    start(f, c, fds[0]);
    return fds[1];
}

/* A TCP connection, accepted through the loop. */
static int start_tcp(struct fixture *f, struct conn *c)
{
    int port, listen_fd = listen_somewhere(&port);
    unsigned before = f->accepted;
    status_t s = loop_listen(f->loop, listen_fd, f);
    assert_true(status_is_ok(&s));
    int peer = connect_to(port);
    TURN_UNTIL(f, f->accepted == before + 1);
    assert_true(fcntl(f->accepted_fd, F_GETFD) & FD_CLOEXEC);
    loop_unlisten(f->loop, listen_fd);
    turn(f, 0);
    close(listen_fd);
    net_tune(f->accepted_fd);
    start(f, c, f->accepted_fd);
    assert_int_equal(fcntl(peer, F_SETFL, O_NONBLOCK), 0);
    return peer;
}

/* Sends bytes in arbitrary parts, has them echoed in arbitrary pieces, and compares. */
static void echo(struct fixture *f, struct conn *c, int peer, uint64_t seed)
{
    enum { BYTES = 1 << 20, PIECES = 5 };
    struct prng p;
    prng_seed(&p, seed);
    char *out = malloc(BYTES), *back = malloc(BYTES);
    c->received = malloc(BYTES);
    assert_true(out && back && c->received);
    for (size_t i = 0; i < BYTES; i++)
        out[i] = (char)prng_next(&p);
    size_t written = 0, returned = 0, echoed = 0;
    bool sending = false;
    struct iovec pieces[PIECES];
    uint64_t end_us = clock_monotonic_us() + PATIENCE_US;
    while (returned < BYTES) {
        assert_true(clock_monotonic_us() < end_us);
        size_t part = 1 + prng_below(&p, 40000);
        ssize_t n = send(peer, out + written, part < BYTES - written ? part : BYTES - written, MSG_NOSIGNAL);
        written += n > 0 ? (size_t)n : 0;
        if (sending && c->sents) {
            assert_true(c->sent_result > 0);
            echoed += (size_t)c->sent_result;
            c->sents = 0;
            sending = false;
        }
        if (!sending && echoed < c->bytes) {
            int count = 0;
            for (size_t at = echoed; at < c->bytes && count < PIECES; count++) {
                size_t len = 1 + prng_below(&p, 20000);
                len = len < c->bytes - at ? len : c->bytes - at;
                pieces[count] = (struct iovec){c->received + at, len};
                at += len;
            }
            loop_stream_send(f->loop, &c->stream, pieces, count);
            sending = true;
        }
        turn(f, 1000);
        n = recv(peer, back + returned, BYTES - returned, 0);
        returned += n > 0 ? (size_t)n : 0;
    }
    assert_memory_equal(out, back, BYTES);
    TURN_UNTIL(f, c->sents == 1);
    free(out);
    free(back);
}

static void test_timeout(void **state);

static void test_echo_unix(void **state)
{
    struct conn c;
    int peer = start_pair(*state, &c);
    echo(*state, &c, peer, 1);
    finish(*state, &c);
    close(peer);
}

static void test_echo_tcp(void **state)
{
    struct conn c;
    int peer = start_tcp(*state, &c);
    echo(*state, &c, peer, 2);
    finish(*state, &c);
    close(peer);
}

/* All data comes before the end, the end comes once, and what we send still arrives after it. */
static void test_end_of_stream(void **state)
{
    struct fixture *f = *state;
    struct conn c;
    int peer = start_tcp(f, &c);
    static const char text[50000];
    for (size_t done = 0; done < sizeof text;) {
        ssize_t n = send(peer, text + done, sizeof text - done, MSG_NOSIGNAL);
        if (n > 0)
            done += (size_t)n;
        else
            turn(f, 1000);
    }
    shutdown(peer, SHUT_WR);
    TURN_UNTIL(f, c.eofs == 1);
    assert_int_equal(c.eof_result, 0);
    assert_int_equal(c.bytes, sizeof text);
    turn(f, 10000);
    assert_int_equal(c.eofs, 1);
    char reply[4];
    struct iovec bye = {"bye", 3};
    loop_stream_send(f->loop, &c.stream, &bye, 1);
    TURN_UNTIL(f, c.sents == 1);
    assert_int_equal(c.sent_result, 3);
    assert_int_equal(recv(peer, reply, sizeof reply, 0), 3);
    finish(f, &c);
    close(peer);
}

static void test_reset_by_peer(void **state)
{
    struct fixture *f = *state;
    struct conn c;
    int peer = start_tcp(f, &c);
    struct linger hard = {.l_onoff = 1};
    assert_int_equal(setsockopt(peer, SOL_SOCKET, SO_LINGER, &hard, sizeof hard), 0);
    close(peer);
    TURN_UNTIL(f, c.eofs == 1);
    assert_int_equal(c.eof_result, -ECONNRESET);
    struct iovec late = {"x", 1}; /* an error, not a signal */
    loop_stream_send(f->loop, &c.stream, &late, 1);
    TURN_UNTIL(f, c.sents == 1);
    assert_true(c.sent_result < 0);
    finish(f, &c);
}

static void test_pause_loses_nothing(void **state)
{
    enum { BYTES = 300000 };
    struct fixture *f = *state;
    struct conn c;
    struct prng p;
    int peer = start_pair(f, &c);
    prng_seed(&p, 3);
    c.received = malloc(BYTES);
    assert_non_null(c.received);
    bool on = true;
    uint64_t end_us = clock_monotonic_us() + PATIENCE_US;
    for (size_t written = 0; c.bytes < BYTES;) {
        char part[5000];
        size_t want = 1 + prng_below(&p, sizeof part);
        want = want < BYTES - written ? want : BYTES - written;
        for (size_t i = 0; i < want; i++)
            part[i] = (char)((written + i) % 251);
        ssize_t n = send(peer, part, want, MSG_NOSIGNAL);
        written += n > 0 ? (size_t)n : 0;
        for (uint64_t flips = prng_below(&p, 4); flips; flips--) { /* also off and on within a turn */
            on = !on;
            loop_stream_read(f->loop, &c.stream, on);
        }
        turn(f, 500);
        assert_true(clock_monotonic_us() < end_us);
    }
    for (size_t i = 0; i < BYTES; i++)
        assert_int_equal((unsigned char)c.received[i], i % 251);
    finish(f, &c);
    close(peer);
}

static void test_paused_stays_quiet(void **state)
{
    struct fixture *f = *state;
    struct conn c;
    int peer = start_pair(f, &c);
    turn(f, 0);
    loop_stream_read(f->loop, &c.stream, false);
    turn(f, 0);
    turn(f, 0);
    assert_int_equal(send(peer, "hello", 5, 0), 5);
    turn(f, 20000);
    assert_int_equal(c.bytes, 0);
    loop_stream_read(f->loop, &c.stream, true);
    TURN_UNTIL(f, c.bytes == 5);
    finish(f, &c);
    close(peer);
}

/* A receive is armed and a send waits for room that never comes. */
static void test_close_in_flight(void **state)
{
    struct fixture *f = *state;
    struct conn c;
    int peer = start_tcp(f, &c);
    size_t bytes = 32 << 20;
    char *data = calloc(1, bytes);
    assert_non_null(data);
    struct iovec piece = {data, bytes};
    do { /* until one gets stuck */
        c.sents = 0;
        loop_stream_send(f->loop, &c.stream, &piece, 1);
        turn(f, 0);
        turn(f, 20000);
    } while (c.sents);
    finish(f, &c);
    for (int i = 0; i < 3; i++)
        turn(f, 1000);
    assert_int_equal(c.closes, 1);
    free(data);
    close(peer);
}

static void test_many_streams(void **state)
{
    enum { STREAMS = 2000 };
    struct fixture *f = *state;
    struct rlimit limit;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    limit.rlim_cur = limit.rlim_max;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
    assert_true(limit.rlim_cur > 2 * STREAMS + 100);
    struct conn *conns = calloc(STREAMS, sizeof *conns);
    int *peers = calloc(STREAMS, sizeof *peers);
    assert_true(conns && peers);
    for (int i = 0; i < STREAMS; i++)
        peers[i] = start_pair(f, &conns[i]);
    for (unsigned round = 1; round <= 3; round++) {
        for (int i = 0; i < STREAMS; i++)
            assert_int_equal(send(peers[i], "ping", 4, 0), 4);
        for (int i = 0; i < STREAMS; i++)
            TURN_UNTIL(f, conns[i].bytes == 4 * round);
        struct iovec pong = {"pong", 4};
        for (int i = 0; i < STREAMS; i++)
            loop_stream_send(f->loop, &conns[i].stream, &pong, 1);
        for (int i = 0; i < STREAMS; i++) {
            char back[8];
            TURN_UNTIL(f, conns[i].sents == round);
            assert_int_equal(recv(peers[i], back, sizeof back, 0), 4);
        }
    }
    for (int i = 0; i < STREAMS; i++)
        loop_stream_close(f->loop, &conns[i].stream);
    for (int i = 0; i < STREAMS; i++) {
        TURN_UNTIL(f, conns[i].closes == 1);
        close(peers[i]);
    }
    free(conns);
    free(peers);
}

/* The caller keeps every buffer until no more comes; when it gives them back the rest arrives. */
static void test_buffers_run_out(void **state)
{
    struct fixture *f = *state;
    struct conn c, other;
    int peer = start_pair(f, &c), other_peer = start_pair(f, &other);
    size_t written = 0;
    f->hold = true;
    for (;;) {
        assert_true(f->held_count + EVENTS < sizeof f->held / sizeof f->held[0]);
        assert_int_equal(send(peer, "x", 1, 0), 1);
        written++;
        uint64_t end_us = clock_monotonic_us() + 50000;
        while (c.bytes < written && clock_monotonic_us() < end_us)
            turn(f, 5000);
        if (c.bytes < written)
            break;
    }
    assert_int_equal(send(other_peer, "other", 5, 0), 5);
    f->hold = false;
    while (f->held_count)
        loop_buffer_release(f->loop, f->held[--f->held_count]);
    TURN_UNTIL(f, c.bytes == written && other.bytes == 5);
    finish(f, &c);
    finish(f, &other);
    close(peer);
    close(other_peer);
}

static void test_file_transfer(void **state)
{
    enum { BYTES = 65536 };
    struct fixture *f = *state;
    struct disk *disk = disk_real();
    char path[] = "/tmp/kvasir-test-loop-XXXXXX";
    assert_non_null(mkdtemp(path));
    int folder = disk->ops->folder_open(disk, path, false);
    assert_true(folder >= 0);
    int fd = disk->ops->create(disk, folder, "file", true);
    assert_true(fd >= 0);
    char *data = aligned_alloc(4096, BYTES), *back = aligned_alloc(4096, BYTES);
    assert_true(data && back);
    for (size_t i = 0; i < BYTES; i++)
        data[i] = (char)(i % 253);
    struct loop_file_op ops[16];
    for (unsigned i = 0; i < 16; i++) {
        ops[i] = (struct loop_file_op){.owner = f, .fd = fd, .write = true, .durable = true};
        ops[i].buffer = data + i * 4096;
        ops[i].len = 4096;
        ops[i].offset = i * 4096;
        loop_file(f->loop, &ops[i]);
    }
    TURN_UNTIL(f, f->files == 16);
    assert_int_equal(f->file_result, 4096);
    struct loop_file_op read = {.owner = f, .fd = fd, .buffer = back, .len = BYTES};
    loop_file(f->loop, &read);
    TURN_UNTIL(f, f->files == 17);
    assert_int_equal(f->file_result, BYTES);
    assert_memory_equal(data, back, BYTES);
    read.offset = BYTES; /* at the end: nothing */
    loop_file(f->loop, &read);
    TURN_UNTIL(f, f->files == 18);
    assert_int_equal(f->file_result, 0);
    read.fd = -1;
    loop_file(f->loop, &read);
    TURN_UNTIL(f, f->files == 19);
    assert_int_equal(f->file_result, -EBADF);
    disk->ops->close(disk, fd);
    assert_int_equal(disk->ops->remove(disk, folder, "file"), 0);
    disk->ops->close(disk, folder);
    rmdir(path);
    free(data);
    free(back);
}

static int
    woken_value; /* written before loop_wake, read after LOOP_WOKEN: a race if the loop does not order them */

static void *wake_main(void *context)
{
    woken_value = 42;
    for (int i = 0; i < 1000; i++)
        loop_wake(context);
    return NULL;
}

static void test_wake(void **state)
{
    struct fixture *f = *state;
    for (int i = 0; i < 1000; i++)
        loop_wake(f->loop);
    TURN_UNTIL(f, f->woken > 0);
    turn(f, 1000);
    assert_int_equal(f->woken, 1);
    f->woken = 0;
    woken_value = 0;
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, wake_main, f->loop), 0);
    TURN_UNTIL(f, f->woken > 0);
    assert_int_equal(woken_value, 42);
    pthread_join(thread, NULL);
    turn(f, 1000);
    /* Not one is lost: a wake-up after the last turn is reported by the next. */
    f->woken = 0;
    loop_wake(f->loop);
    TURN_UNTIL(f, f->woken == 1);
}

static void test_timeout(void **state)
{
    struct fixture *f = *state;
    turn(f, 0);
    /* A signal may end a wait early, and so may the kernel taking down an earlier test's ring (EINTR): a few
     * turns. */
    uint64_t start_us = clock_monotonic_us(), turns = f->loop->stats.turns;
    while (clock_monotonic_us() - start_us < 29000)
        assert_int_equal(turn(f, 30000), 0);
    assert_in_range(f->loop->stats.turns - turns, 1, 4);
    assert_in_range(clock_monotonic_us() - start_us, 29000, 2000000);
    start_us = clock_monotonic_us();
    for (int i = 0; i < 100; i++)
        assert_int_equal(turn(f, 0), 0);
    assert_in_range(clock_monotonic_us() - start_us, 0, 1000000);
    assert_true(f->loop->stats.turns >= 102);
}

/* Out of descriptors is reported without a busy loop, and accepting goes on when they are back. The limit is
 * set before listening: io_uring reads it when the accept is armed. */
static void test_accept_out_of_descriptors(void **state)
{
    enum { ROOM = 16 };
    struct fixture *f = *state;
    struct rlimit old, tight;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &old), 0);
    int port, listen_fd = listen_somewhere(&port), fillers[ROOM], count = 0;
    tight = old;
    tight.rlim_cur = (rlim_t)listen_fd + ROOM;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &tight), 0);
    status_t s = loop_listen(f->loop, listen_fd, f);
    assert_true(status_is_ok(&s));
    turn(f, 0);
    int peer = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(peer >= 0);
    while (count < ROOM && (fillers[count] = dup(0)) >= 0)
        count++;
    assert_true(count < ROOM);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    assert_int_equal(connect(peer, (struct sockaddr *)&a, sizeof a), 0);
    uint64_t turns = f->loop->stats.turns, end_us = clock_monotonic_us() + 350000;
    while (clock_monotonic_us() < end_us)
        turn(f, 100000);
    turns = f->loop->stats.turns - turns;
    assert_int_equal(f->accepted, 0);
    assert_true(f->accept_failures >= 1);
    assert_int_equal(f->accept_error, -EMFILE);
    assert_true(turns < 30);
    while (count)
        close(fillers[--count]);
    TURN_UNTIL(f, f->accepted == 1);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &old), 0);
    close(f->accepted_fd);
    close(peer);
    loop_unlisten(f->loop, listen_fd);
    turn(f, 1000);
    close(listen_fd);
}

/* As in a container whose seccomp profile has no io_uring. */
static int child_without_uring(void)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_io_uring_setup, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = sizeof code / sizeof code[0], .filter = code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ||
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0)
        return 10;
    struct loop *loop = NULL;
    char why[128];
    status_t s = loop_create(LOOP_URING, &loop, why);
    if (s.code != STATUS_UNSUPPORTED)
        return 11;
    s = loop_create(LOOP_AUTO, &loop, why);
    if (!status_is_ok(&s))
        return 12;
    bool good = loop->backend == LOOP_EPOLL && strstr(why, "io_uring") != NULL;
    loop_destroy(loop);
    return good ? 0 : 13;
}

static void test_auto_without_uring(void **state)
{
    (void)state;
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0)
        _exit(child_without_uring());
    int status = 0;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        BOTH(test_echo_unix),
        BOTH(test_echo_tcp),
        BOTH(test_end_of_stream),
        BOTH(test_reset_by_peer),
        BOTH(test_pause_loses_nothing),
        BOTH(test_paused_stays_quiet),
        BOTH(test_close_in_flight),
        BOTH(test_many_streams),
        BOTH(test_buffers_run_out),
        BOTH(test_file_transfer),
        BOTH(test_wake),
        BOTH(test_timeout),
        BOTH(test_accept_out_of_descriptors),
        cmocka_unit_test(test_auto_without_uring),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
