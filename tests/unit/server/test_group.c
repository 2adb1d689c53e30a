/* Commands of connections that have to wait, on a worker without a thread: the test makes its turns. */
#include "unit/store/store_fixture.h"

#include <sys/socket.h>
#include <unistd.h>

#include "server/server.h"
#include "server/worker.h"
#include "store/internal.h"

enum { CONNECTIONS = 2, OUT_BYTES = 4096, BIG_BYTES = 3 << 20 };

struct harness {
    struct fixture f;
    struct server server;
    struct worker *worker;
    struct conn *conns[CONNECTIONS];
    int peers[CONNECTIONS];
};

static void harness_init(struct harness *h)
{
    char why[128];
    memset(h, 0, sizeof *h);
    fixture_init(&h->f, 1);
    h->server.config.io = LOOP_EPOLL;
    h->server.store = h->f.store;
    h->server.worker_count = 1;
    h->server.limits = (struct resp_limits){.bulk_bytes_max = 64 << 20, .request_bytes_max = 256 << 20};
    pthread_mutex_init(&h->server.registry_lock, NULL);
    status_t s = worker_create(&h->server, 0, &h->server.workers[0], why);
    assert_true(status_is_ok(&s));
    h->worker = h->server.workers[0];
    for (int i = 0; i < CONNECTIONS; i++) {
        int ends[2];
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
        h->peers[i] = ends[1];
        h->conns[i] = conn_create(h->worker, ends[0], false);
        assert_non_null(h->conns[i]);
    }
    store_turn_begin(h->f.sw);
}

static void harness_deinit(struct harness *h)
{
    store_turn_end(h->f.sw);
    worker_destroy(h->worker);
    for (int i = 0; i < CONNECTIONS; i++)
        close(h->peers[i]);
    pthread_mutex_destroy(&h->server.registry_lock);
    fixture_flush(&h->f, 0);
    fixture_deinit(&h->f);
}

/* The connection sends that, and it is run as far as it can. */
static void send_commands(struct harness *h, struct conn *conn, const char *data, size_t len)
{
    conn_input_append(conn, data, len);
    group_resume(&h->worker->group, conn);
    group_execute(&h->worker->group);
}

/* As the worker does it from its list. */
static void retry(struct harness *h, struct conn *conn)
{
    assert_true(conn->flags & CONN_PARKED);
    assert_non_null(conn->retry.next);
    conn_list_remove(&conn->retry);
    conn->flags &= ~(uint32_t)CONN_PARKED;
    group_retry(&h->worker->group, conn);
}

static void assert_replies(struct conn *conn, const char *expected)
{
    struct iovec pieces[LOOP_PIECES_MAX];
    char out[OUT_BYTES];
    size_t n = 0;
    int count = reply_sendable(&conn->reply, UINT64_MAX, pieces, LOOP_PIECES_MAX);
    for (int i = 0; i < count; i++) {
        assert_true(n + pieces[i].iov_len < OUT_BYTES);
        memcpy(out + n, pieces[i].iov_base, pieces[i].iov_len);
        n += pieces[i].iov_len;
    }
    out[n] = '\0';
    assert_string_equal(out, expected);
}

/* What stands behind a parked command is collected when that has run; the next connection's command comes in
 * a group that is full. */
static void test_a_retry_behind_a_full_group(void **state)
{
    static const char set[] = "*3\r\n$3\r\nSET\r\n$4\r\nbusy\r\n$1\r\nv\r\n", ping[] = "*1\r\n$4\r\nPING\r\n";
    static const unsigned behind[] = {1, GROUP_COMMANDS_MAX - 1, GROUP_COMMANDS_MAX, GROUP_COMMANDS_MAX + 1,
                                      2 * GROUP_COMMANDS_MAX};
    (void)state;
    for (unsigned n = 0; n < sizeof behind / sizeof *behind; n++) {
        struct harness h;
        struct store_key key;
        char input[OUT_BYTES], expected[OUT_BYTES];
        harness_init(&h);
        size_t in = (size_t)snprintf(input, OUT_BYTES, "%s", set);
        size_t out = (size_t)snprintf(expected, OUT_BYTES, "+OK\r\n");
        for (unsigned i = 0; i < behind[n]; i++) {
            in += (size_t)snprintf(input + in, OUT_BYTES - in, "%s", ping);
            out += (size_t)snprintf(expected + out, OUT_BYTES - out, "+PONG\r\n");
        }
        store_key_prepare(h.f.sw, &key, text("busy"));
        uint32_t stripe = keylock_stripe(key.hash);
        assert_true(keylock_acquire(&h.f.store->locks, stripe));
        for (int i = 0; i < CONNECTIONS; i++) {
            send_commands(&h, h.conns[i], input, in);
            assert_replies(h.conns[i], "");
        }
        keylock_release(&h.f.store->locks, stripe);
        for (int i = 0; i < CONNECTIONS; i++) {
            retry(&h, h.conns[i]);
            assert_in_range(h.worker->group.item_count, 1, GROUP_COMMANDS_MAX);
        }
        group_execute(&h.worker->group);
        for (int i = 0; i < CONNECTIONS; i++)
            assert_replies(h.conns[i], expected);
        harness_deinit(&h);
    }
}

/* While others send single commands, a turn goes on with a piece of what has waited; without them, with all.
 */
static void test_waiting_input_goes_on_in_pieces(void **state)
{
    static const char set[] = "*3\r\n$3\r\nSET\r\n$4\r\nbusy\r\n$1\r\nv\r\n";
    static const char ping[] = "*2\r\n$4\r\nPING\r\n$40\r\n0123456789012345678901234567890123456789\r\n";
    enum { PINGS = 2000, PING_BYTES = sizeof ping - 1, PONG_BYTES = 5 + 40 + 2 };
    (void)state;
    for (int light = 0; light < 2; light++) {
        struct harness h;
        struct store_key key;
        harness_init(&h);
        struct conn *conn = h.conns[0];
        h.worker->now_us = 1000000;
        store_key_prepare(h.f.sw, &key, text("busy"));
        uint32_t stripe = keylock_stripe(key.hash);
        assert_true(keylock_acquire(&h.f.store->locks, stripe));
        send_commands(&h, conn, set, sizeof set - 1);
        assert_true(conn->flags & CONN_PARKED);
        for (unsigned i = 0; i < PINGS; i++)
            conn_input_append(conn, ping, PING_BYTES);
        keylock_release(&h.f.store->locks, stripe);
        h.worker->backlog.light_us = light ? h.worker->now_us : 0;
        size_t piece = backlog_piece_bytes(&h.worker->backlog), left = conn->input_len - conn->input_position;
        assert_int_equal(piece < left / 5, light);
        retry(&h, conn);
        group_execute(&h.worker->group);
        unsigned turns = 1;
        while (conn_has_input(conn)) {
            size_t now = conn->input_len - conn->input_position;
            assert_in_range(left - now, piece, piece + PING_BYTES);
            assert_non_null(conn->retry.next); /* the next turn goes on */
            assert_false(conn->flags & CONN_PARKED);
            left = now;
            assert_true(left >= piece); /* the last is not a small rest */
            conn_list_remove(&conn->retry);
            group_resume(&h.worker->group, conn);
            group_execute(&h.worker->group);
            turns++;
        }
        assert_null(conn->retry.next);
        assert_int_equal(turns, light ? (PINGS * PING_BYTES + sizeof set) / LOOP_BUFFER_BYTES : 1);
        assert_int_equal(reply_pending_bytes(&conn->reply), 5 + PINGS * PONG_BYTES);
        harness_deinit(&h);
    }
}

/* Where much waits and little of it is used up at a time, what comes is not paid for with a move of all. */
static void test_waiting_input_is_seldom_moved(void **state)
{
    enum { WAITING = 60000, STEP = 501, ROUNDS = 1000 };
    static char bytes[WAITING + ROUNDS * STEP];
    struct harness h;
    (void)state;
    harness_init(&h);
    struct conn *conn = h.conns[0];
    for (unsigned i = 0; i < sizeof bytes; i++)
        bytes[i] = (char)(i % 251);
    conn_input_append(conn, bytes, WAITING);
    size_t moved = 0;
    for (unsigned i = 0; i < ROUNDS; i++) {
        conn_input_consume(conn, conn->input_position + STEP);
        size_t before = conn->input_position;
        conn_input_append(conn, bytes + WAITING + (size_t)i * STEP, STEP);
        moved += conn->input_position < before ? WAITING : 0;
        assert_int_equal(conn->input_len - conn->input_position, WAITING);
    }
    assert_memory_equal(conn->input + conn->input_position, bytes + sizeof bytes - WAITING, WAITING);
    assert_true(moved <= 5 * ROUNDS * STEP);
    assert_true(conn->input_capacity <= 3 * WAITING);
    harness_deinit(&h);
}

/* A long value waits until the log has a segment for it: nothing is made of it before. */
static void test_a_long_write_waits_for_the_log(void **state)
{
    enum { RETRIES = 100 };
    struct harness h;
    (void)state;
    harness_init(&h);
    const struct store_worker_private *p = h.f.sw->private;
    char *input = malloc(BIG_BYTES + 64);
    assert_non_null(input);
    int at = snprintf(input, 64, "*3\r\n$3\r\nSET\r\n$3\r\nbig\r\n$%d\r\n", BIG_BYTES);
    memset(input + at, 'v', BIG_BYTES);
    memcpy(input + at + BIG_BYTES, "\r\n", 2);
    send_commands(&h, h.conns[0], input, (size_t)at + BIG_BYTES + 2);
    for (int i = 0; i < RETRIES; i++)
        retry(&h, h.conns[0]);
    assert_int_equal(h.worker->stats.retries, 0);
    assert_non_null(p->large);
    for (int i = 0; i < BIG_BYTES; i++)
        assert_int_equal(log_large_data(p->large)[i], 0);
    assert_replies(h.conns[0], "");
    send_commands(&h, h.conns[1], "PING\r\n", 6);
    assert_replies(h.conns[1], "+PONG\r\n");
    for (int i = 0; i < 2; i++) { /* makes a segment, and then one that is large enough */
        fixture_flush(&h.f, 0);
        retry(&h, h.conns[0]);
    }
    assert_int_equal(h.worker->stats.retries, 1);
    assert_replies(h.conns[0], "+OK\r\n");
    assert_null(p->large);
    free(input);
    harness_deinit(&h);
}

/* ---- what comes in ---- */

/* The peer sends that, and a turn takes it up. */
static void receive(struct harness *h, int from, const char *data, size_t len)
{
    struct loop_event events[8];
    assert_int_equal(write(h->peers[from], data, len), (ssize_t)len);
    for (size_t taken = 0; taken < len;) {
        int count = loop_wait(h->worker->loop, events, 8, -1);
        for (int i = 0; i < count; i++) {
            assert_int_equal(events[i].type, LOOP_DATA);
            taken += (size_t)events[i].result;
            backlog_take(&h->worker->backlog, &events[i]);
        }
    }
    group_execute(&h->worker->group);
}

static void receive_text(struct harness *h, int from, const char *text)
{
    receive(h, from, text, strlen(text));
}

/* As the worker does it when the value has come. */
static void resume(struct harness *h, struct conn *conn)
{
    assert_true(conn->flags & CONN_PARKED);
    conn->flags &= ~(uint32_t)CONN_PARKED;
    group_resume(&h->worker->group, conn);
    group_execute(&h->worker->group);
}

/* Keys a, b, .. with the values A.., B.. of so many bytes, none of them in memory. */
static void put_cold(struct harness *h, unsigned count, size_t len)
{
    struct prng prng;
    char *value = malloc(len);
    assert_non_null(value);
    prng_seed(&prng, 1);
    store_turn_end(h->f.sw);
    for (unsigned i = 0; i < count; i++) {
        char key = (char)('a' + i);
        memset(value, 'A' + (int)i, len);
        put_surely(&h->f, slice_make(&key, 1), slice_make(value, len));
    }
    free(value);
    store_turn_begin(h->f.sw);
    assert_int_equal(cold_evict(h->f.sw, &prng, 256), count);
}

static unsigned wanted(const struct harness *h)
{
    return store_fetch_wanted(h->f.sw, 100);
}

/* A client that sends its commands one by one without waiting: what comes behind one that waits for its value
 * is read beside that, not after it, each value once. */
static void test_values_are_read_for_what_comes_later(void **state)
{
    enum { KEYS = 4, LEN = 300 };
    struct harness h;
    (void)state;
    harness_init(&h);
    put_cold(&h, KEYS, LEN);
    receive_text(&h, 0, "*2\r\n$3\r\nGET\r\n$1\r\na\r\n");
    assert_true(conn_awaits_values(h.conns[0]));
    assert_int_equal(wanted(&h), 1);
    receive_text(&h, 0, "*2\r\n$3\r\nGET\r\n$1\r\nb\r\n");
    assert_int_equal(wanted(&h), 2);
    receive_text(&h, 0, "*1\r\n$4\r\nPING\r\n*2\r\n$3\r\nGET\r\n$1\r\nc\r\n*2\r\n$3\r\nGE");
    assert_int_equal(wanted(&h), 3);
    receive_text(&h, 0, "T\r\n$1\r\n");
    assert_int_equal(wanted(&h), 3);
    receive_text(&h, 0, "d\r\n");
    assert_int_equal(wanted(&h), KEYS);
    assert_replies(h.conns[0], "");
    assert_int_equal(cold_read_all(h.f.sw), KEYS);
    struct store_waiter *waiter = store_waiter_next(h.f.sw);
    assert_ptr_equal(waiter, &h.conns[0]->waiter);
    resume(&h, h.conns[0]);
    assert_int_equal(wanted(&h), 0);
    char expected[OUT_BYTES];
    int n = 0;
    for (int i = 0; i < KEYS; i++) {
        char value[LEN];
        memset(value, 'A' + i, LEN);
        n += snprintf(expected + n, OUT_BYTES - (size_t)n, "%s$%d\r\n%.*s\r\n", i == 2 ? "+PONG\r\n" : "",
                      LEN, LEN, value);
    }
    assert_replies(h.conns[0], expected);
    assert_false(conn_has_input(h.conns[0]));
    harness_deinit(&h);
}

/* What cannot be a command is told when its turn comes, behind the reply that is waited for. */
static void test_nonsense_behind_a_value_that_is_read(void **state)
{
    struct harness h;
    (void)state;
    harness_init(&h);
    put_cold(&h, 1, 300);
    receive_text(&h, 0, "*2\r\n$3\r\nGET\r\n$1\r\na\r\n");
    receive_text(&h, 0, "*1\r\n!\r\n");
    assert_replies(h.conns[0], "");
    assert_int_equal(cold_read_all(h.f.sw), 1);
    assert_non_null(store_waiter_next(h.f.sw));
    resume(&h, h.conns[0]);
    char expected[OUT_BYTES], value[300];
    memset(value, 'A', sizeof value);
    snprintf(expected, OUT_BYTES, "$300\r\n%.300s\r\n-ERR Protocol error: expected '$', got '!'\r\n", value);
    assert_replies(h.conns[0], expected);
    assert_true(h.conns[0]->flags & CONN_CLOSING);
    harness_deinit(&h);
}

/* While heavy data waits, a small request is run at once: also if its connection's last reply has not left,
 * or its last command waits for a value. Not if that would put it before its own connection's data. */
static void test_small_requests_do_not_wait_behind_heavy_data(void **state)
{
    enum { HEAVY_BYTES = 4000 };
    struct harness h;
    char heavy[HEAVY_BYTES];
    (void)state;
    harness_init(&h);
    put_cold(&h, 2, 300);
    struct backlog *backlog = &h.worker->backlog;
    h.worker->now_us = 1000000;
    for (unsigned i = 0; i < HEAVY_BYTES; i++)
        heavy[i] = "PING\r\n\r\n"[i % 8];
    receive_text(&h, 0, "PING\r\n");
    receive(&h, 1, heavy, HEAVY_BYTES);
    assert_int_equal(backlog->count, 1);
    receive_text(&h, 0, "PING\r\n");
    assert_replies(h.conns[0], "+PONG\r\n+PONG\r\n");
    receive_text(&h, 0, "*2\r\n$3\r\nGET\r\n$1\r\na\r\n");
    receive_text(&h, 0, "*2\r\n$3\r\nGET\r\n$1\r\nb\r\n");
    assert_int_equal(wanted(&h), 2);
    assert_int_equal(backlog->count, 1);
    assert_replies(h.conns[1], "");
    receive_text(&h, 1, "PING\r\n");
    assert_int_equal(backlog->count, 2);
    receive(&h, 0, heavy, HEAVY_BYTES); /* its connection waits, but this is much */
    assert_int_equal(backlog->count, 3);
    receive_text(&h, 0, "PING\r\n");
    assert_int_equal(backlog->count, 4);
    assert_int_equal(wanted(&h), 2);
    harness_deinit(&h);
}

/* Some KiB behind the command that waits are looked at, all of them again with each piece that comes. */
static void test_much_input_is_not_looked_at(void **state)
{
    enum { LOOKED_AT = 4096, PING_BYTES = 23 };
    static const char get[2][21] = {"*2\r\n$3\r\nGET\r\n$1\r\na\r\n", "*2\r\n$3\r\nGET\r\n$1\r\nb\r\n"};
    (void)state;
    for (int beyond = 0; beyond < 2; beyond++) {
        struct harness h;
        char between[LOOKED_AT];
        int text = LOOKED_AT + beyond - PING_BYTES - 2 * ((int)sizeof get[0] - 1);
        harness_init(&h);
        put_cold(&h, 2, 300);
        receive_text(&h, 0, get[0]);
        snprintf(between, sizeof between, "*2\r\n$4\r\nPING\r\n$%d\r\n%0*d\r\n", text, text, 0);
        receive_text(&h, 0, between);
        assert_int_equal(wanted(&h), 1);
        receive_text(&h, 0, get[1]);
        assert_int_equal(h.conns[0]->input_len - h.conns[0]->input_position, LOOKED_AT + beyond);
        assert_int_equal(wanted(&h), beyond ? 1 : 2);
        harness_deinit(&h);
    }
}

/* A client sends much and closes: its end is looked at when what waits in the backlog has been run, also if
 * that has no reply. */
static void test_the_end_comes_behind_what_waits(void **state)
{
    enum { HEAVY_BYTES = 4000 };
    struct harness h;
    char heavy[HEAVY_BYTES];
    (void)state;
    harness_init(&h);
    struct backlog *backlog = &h.worker->backlog;
    struct conn *conn = h.conns[1];
    h.worker->now_us = 1000000;
    for (unsigned i = 0; i < HEAVY_BYTES; i++)
        heavy[i] = "\r\n"[i % 2];
    receive_text(&h, 0, "PING\r\n");
    receive(&h, 1, heavy, HEAVY_BYTES);
    assert_int_equal(backlog->count, 1);
    conn->flags |= CONN_EOF; /* as the worker does it */
    conn_flush(conn, UINT64_MAX);
    assert_false(conn->flags & CONN_CLOSED);
    h.worker->now_us += BACKLOG_LIGHT_ACTIVE_US;
    backlog_run(backlog);
    group_execute(&h.worker->group);
    assert_int_equal(backlog->count, 0);
    assert_non_null(conn->dirty.next);
    conn_flush(conn, UINT64_MAX);
    assert_true(conn->flags & CONN_CLOSED);
    harness_deinit(&h);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_retry_behind_a_full_group),
        cmocka_unit_test(test_waiting_input_goes_on_in_pieces),
        cmocka_unit_test(test_waiting_input_is_seldom_moved),
        cmocka_unit_test(test_a_long_write_waits_for_the_log),
        cmocka_unit_test(test_values_are_read_for_what_comes_later),
        cmocka_unit_test(test_nonsense_behind_a_value_that_is_read),
        cmocka_unit_test(test_small_requests_do_not_wait_behind_heavy_data),
        cmocka_unit_test(test_much_input_is_not_looked_at),
        cmocka_unit_test(test_the_end_comes_behind_what_waits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
