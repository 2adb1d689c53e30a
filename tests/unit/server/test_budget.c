/* Who gets room for input, and in which order: on workers without threads, the test makes their turns. */
#include "unit/store/store_fixture.h"

#include <sys/socket.h>
#include <unistd.h>

#include "server/budget.h"
#include "server/server.h"
#include "server/worker.h"
#include "store/internal.h"

enum {
    WORKERS = 2,
    CONNECTIONS = 24, /* more than are asked in one look */
    CAP = 64 << 20,
    SHARE = CAP / 16,
    LONG = SHARE + 1, /* never fits into the share */
    LOOKS = 5,
    CAP_SMALL = 4 << 20,
    SHARE_SMALL = CAP_SMALL / 16,
};

struct harness {
    struct fixture f;
    struct server server;
    struct conn *conns[CONNECTIONS]; /* of the workers in turn */
    int peers[CONNECTIONS];
};

static void harness_init(struct harness *h)
{
    char why[128];
    memset(h, 0, sizeof *h);
    fixture_init(&h->f, WORKERS);
    h->server.config.io = LOOP_EPOLL;
    h->server.store = h->f.store;
    h->server.worker_count = WORKERS;
    h->server.memory_bytes_max = CAP;
    h->server.limits = (struct resp_limits){.bulk_bytes_max = CAP, .request_bytes_max = CAP};
    pthread_mutex_init(&h->server.registry_lock, NULL);
    for (unsigned i = 0; i < WORKERS; i++) {
        status_t s = worker_create(&h->server, i, &h->server.workers[i], why);
        assert_true(status_is_ok(&s));
        store_turn_begin(h->server.workers[i]->sw);
    }
    for (unsigned i = 0; i < CONNECTIONS; i++) {
        int ends[2];
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
        h->peers[i] = ends[1];
        h->conns[i] = conn_create(h->server.workers[i % WORKERS], ends[0], false);
        assert_non_null(h->conns[i]);
    }
}

static void harness_deinit(struct harness *h)
{
    for (unsigned i = 0; i < WORKERS; i++) {
        store_turn_end(h->server.workers[i]->sw);
        worker_destroy(h->server.workers[i]);
    }
    for (unsigned i = 0; i < CONNECTIONS; i++)
        close(h->peers[i]);
    pthread_mutex_destroy(&h->server.registry_lock);
    fixture_flush(&h->f, 0);
    fixture_deinit(&h->f);
}

static void look(struct harness *h)
{
    for (unsigned i = WORKERS; i-- > 0;) /* the second worker first: the order is not the workers' */
        budget_turn(h->server.workers[i]);
}

static void assert_waiting(struct harness *h, unsigned from)
{
    for (unsigned i = 0; i < CONNECTIONS; i++)
        assert_int_equal(room_line_waits(h->conns[i]), i >= from);
}

/* One may have more than the share, and who has waited longest is the next: on whichever worker, and however
 * often others were asked in between. */
static void test_the_oldest_is_the_next_beyond_the_share(void **state)
{
    struct harness h;
    (void)state;
    harness_init(&h);
    for (unsigned i = 0; i < CONNECTIONS; i++)
        assert_int_equal(budget_reserve(h.conns[i], LONG), i == 0);
    for (unsigned i = 0; i + 1 < CONNECTIONS; i++) {
        for (unsigned looks = 0; looks < i % LOOKS; looks++)
            look(&h);
        assert_waiting(&h, i + 1);
        budget_release(h.conns[i]);
        look(&h);
        assert_waiting(&h, i + 2);
        assert_int_equal(h.conns[i + 1]->reserved, LONG);
    }
    budget_release(h.conns[CONNECTIONS - 1]);
    assert_int_equal(h.server.budget.input_bytes, 0);
    assert_int_equal(h.server.budget.beyond, 0);
    harness_deinit(&h);
}

/* One that gives up while it is the oldest is waited for by nobody. */
static void test_who_leaves_the_line_holds_nobody_up(void **state)
{
    struct harness h;
    (void)state;
    harness_init(&h);
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(budget_reserve(h.conns[i], LONG), i == 0);
    budget_release(h.conns[0]);
    budget_release(h.conns[1]);
    assert_true(budget_may_go_on(h.conns[2]->worker));
    assert_false(budget_may_go_on(h.conns[3]->worker));
    look(&h);
    assert_int_equal(h.conns[2]->reserved, LONG);
    assert_int_equal(h.conns[3]->reserved, 0);
    harness_deinit(&h);
}

/* Who waits for memory is asked again soon, whatever else makes turns in between. */
static void test_a_turn_without_a_look_does_not_forget_who_was_refused(void **state)
{
    struct harness h;
    (void)state;
    harness_init(&h);
    struct worker *worker = h.conns[0]->worker;
    assert_true(budget_reserve(h.conns[0], LONG));
    assert_false(budget_reserve(h.conns[2], LONG));
    worker->now_us = 1000000;
    budget_turn(worker);
    worker->no_room = true;
    worker->now_us += 100;
    budget_turn(worker);
    budget_turn_end(worker);
    assert_true(worker->no_room);
    worker->now_us += 100;
    budget_turn(worker);
    budget_turn_end(worker);
    assert_false(worker->no_room);
    harness_deinit(&h);
}

/* A request that turns out to be longer keeps its place in the order: it stands before all that came later.
 */
static void test_who_waits_again_waits_in_front(void **state)
{
    struct harness h;
    (void)state;
    harness_init(&h);
    assert_true(budget_reserve(h.conns[0], LONG));
    assert_true(budget_reserve(h.conns[2], SHARE - BUDGET_SMALL_BYTES));
    assert_false(budget_reserve(h.conns[4], SHARE / 2)); /* will get room, and want more */
    for (unsigned i = 6; i < CONNECTIONS; i += 2)
        assert_false(budget_reserve(h.conns[i], LONG));
    budget_release(h.conns[2]);
    look(&h);
    assert_int_equal(h.conns[4]->reserved, SHARE / 2);
    assert_false(budget_reserve(h.conns[4], LONG));
    budget_release(h.conns[0]);
    look(&h);
    assert_int_equal(h.conns[4]->reserved, LONG);
    assert_true(room_line_waits(h.conns[6]));
    harness_deinit(&h);
}

/* The number was the last request's, even if the connection waited with it when that had run. */
static void test_the_next_request_waits_anew(void **state)
{
    struct harness h;
    (void)state;
    harness_init(&h);
    struct conn *conn = h.conns[2];
    assert_true(budget_reserve(h.conns[0], LONG));
    conn_input_append(conn, "0123456789", 10);
    assert_false(budget_reserve(conn, LONG));
    assert_false(budget_reserve(h.conns[4], LONG));
    conn_input_consume(conn, 10); /* the rest came with what was under way */
    assert_false(room_line_waits(conn));
    assert_false(budget_reserve(conn, LONG));
    budget_release(h.conns[0]);
    look(&h);
    assert_int_equal(h.conns[4]->reserved, LONG);
    assert_true(room_line_waits(conn));
    harness_deinit(&h);
}

/* Parts of requests, each of which waits for more, must not take all of the share: who holds nothing finds
 * half of it, while there are such. */
static void test_half_of_the_share_is_for_those_who_hold_parts(void **state)
{
    struct harness h;
    (void)state;
    harness_init(&h);
    struct conn *beyond = h.conns[0], *whole = h.conns[1], *part = h.conns[2], *later = h.conns[3];
    assert_true(budget_reserve(beyond, LONG));
    assert_true(budget_reserve(whole, SHARE / 2));
    assert_true(budget_reserve(part, SHARE / 4));
    assert_false(budget_reserve(part, SHARE / 2 + 1)); /* does not fit beside the other one */
    assert_false(budget_reserve(later, SHARE / 8));    /* that would */
    look(&h);
    assert_true(room_line_waits(later));
    budget_release(whole);
    look(&h);
    assert_int_equal(part->reserved, SHARE / 2 + 1);
    assert_int_equal(later->reserved, SHARE / 8);
    assert_int_equal(h.server.budget.growing, 0);
    harness_deinit(&h);
}

static uint64_t resident_bytes;

static uint64_t resident(void *context)
{
    (void)context;
    return resident_bytes;
}

/* The store is under a cap, and so much is resident. cap: 0: no more. */
static void set_memory(struct harness *h, uint64_t cap, uint64_t bytes)
{
    struct store *store = h->f.store;
    resident_bytes = bytes;
    atomic_store(&store->memory_bytes_max, cap);
    atomic_store(&store->evicts, cap != 0);
    store->config.resident_bytes = cap ? resident : NULL;
    for (unsigned i = 0; i < WORKERS; i++)
        h->server.workers[i]->sw->private->room.allowance = 0;
}

/* A look at a time so many microseconds after the last one. */
static void look_later(struct harness *h, struct worker *worker, uint64_t us)
{
    worker->now_us += us;
    h->f.store->clock_ms += us / 1000;
    budget_turn(worker);
    budget_turn_end(worker);
}

/* Where no room can come, a request is refused two seconds after that was seen first; while others hold some,
 * or values may leave, after thirty. */
static void test_who_waits_for_nothing_does_not_wait_long(void **state)
{
    enum { SECOND = 1000000, TRIES_A_SECOND = 1000 };
    enum { NOTHING, OTHERS_HOLD, VALUES_MAY_LEAVE, CASES };
    struct harness h;
    (void)state;
    for (int hope = NOTHING; hope < CASES; hope++) {
        harness_init(&h);
        struct conn *conn = h.conns[0], *other = h.conns[1];
        struct worker *worker = conn->worker;
        if (hope == OTHERS_HOLD)
            assert_true(budget_reserve(other, SHARE / 2));
        if (hope == VALUES_MAY_LEAVE)
            atomic_fetch_add(&h.f.store->value_bytes, CAP);
        set_memory(&h, CAP, CAP);
        worker->now_us = SECOND;
        assert_false(budget_reserve(conn, LONG));
        for (int tries = 0; tries < (hope == NOTHING ? 2 : 30) * TRIES_A_SECOND; tries++) {
            look_later(&h, worker, SECOND / TRIES_A_SECOND);
            assert_false(conn->flags & CONN_CLOSING);
        }
        look_later(&h, worker, SECOND);
        assert_true(conn->flags & CONN_CLOSING);
        assert_false(room_line_waits(conn));
        if (hope == VALUES_MAY_LEAVE)
            atomic_fetch_sub(&h.f.store->value_bytes, CAP);
        set_memory(&h, 0, 0);
        harness_deinit(&h);
    }
}

/* Room may come again, and go: it was hopeless for too short a time. Or it was looked at too seldom. */
static void test_hope_comes_back(void **state)
{
    enum { SECOND = 1000000, TRIES = 300, SELDOM = 8 };
    struct harness h;
    (void)state;
    harness_init(&h);
    struct conn *conn = h.conns[0], *other = h.conns[1];
    struct worker *worker = conn->worker;
    set_memory(&h, CAP, CAP);
    worker->now_us = SECOND;
    assert_false(budget_reserve(conn, LONG));
    for (int tries = 0; tries < SELDOM; tries++)
        look_later(&h, worker, SECOND);
    assert_false(conn->flags & CONN_CLOSING);
    for (int i = 0; i < 8; i++) {
        set_memory(&h, 0, 0);
        if (i % 2)
            budget_release(other);
        else
            assert_true(budget_reserve(other, SHARE / 2));
        set_memory(&h, CAP, CAP);
        for (int tries = 0; tries < TRIES; tries++)
            look_later(&h, worker, SECOND * 3 / 2 / TRIES);
        assert_false(conn->flags & CONN_CLOSING);
    }
    resident_bytes = 0; /* there is room */
    look_later(&h, worker, SECOND / 2);
    assert_false(room_line_waits(conn));
    assert_int_equal(conn->reserved, LONG);
    set_memory(&h, 0, 0);
    harness_deinit(&h);
}

enum { SET_BYTES = 64 }; /* of a SET, at most, but for the value */

static size_t set_command(char *to, const char *key, size_t len)
{
    size_t at =
        (size_t)snprintf(to, SET_BYTES, "*3\r\n$3\r\nSET\r\n$%zu\r\n%s\r\n$%zu\r\n", strlen(key), key, len);
    memset(to + at, 'v', len);
    memcpy(to + at + len, "\r\n", 2);
    return at + len + 2;
}

static void run(struct conn *conn)
{
    group_resume(&conn->worker->group, conn);
    group_execute(&conn->worker->group);
}

/* What stands behind a request in the place beyond the share has not waited for that place. */
static void test_the_place_beyond_is_for_one_request(void **state)
{
    enum { BYTES = 400 << 10, BEHIND = 10 << 10, FLUSHES = 4 };
    struct harness h;
    (void)state;
    harness_init(&h);
    h.server.memory_bytes_max = CAP_SMALL;
    struct conn *conn = h.conns[0], *other = h.conns[1];
    char *input = malloc(2 * (BYTES + SET_BYTES));
    assert_non_null(input);
    size_t one = set_command(input, "one", BYTES);
    set_command(input + one, "two", BYTES);
    conn_input_append(conn, input, BEHIND);
    run(conn);
    conn_input_append(conn, input + BEHIND, BYTES / 2);
    assert_true(conn->flags & CONN_BEYOND);
    assert_false(budget_reserve(other, BYTES));
    conn_input_append(conn, input + BEHIND + BYTES / 2, one - BYTES / 2);
    run(conn);
    for (unsigned i = 0; i < FLUSHES && conn->flags & CONN_PARKED; i++) { /* the log makes a segment for it */
        fixture_flush(&h.f, 0);
        conn_list_remove(&conn->retry);
        conn->flags &= ~(uint32_t)CONN_PARKED;
        run(conn);
    }
    assert_int_equal(conn->worker->stats.operations, 1);
    assert_false(conn->flags & CONN_BEYOND);
    assert_int_equal(conn->reserved, 0);
    look(&h);
    assert_true(other->flags & CONN_BEYOND);
    assert_int_equal(other->reserved, BYTES);
    conn_input_append(conn, input + one + BEHIND, BYTES / 2);
    assert_true(room_line_waits(conn));
    budget_release(other);
    look(&h);
    assert_true(conn->flags & CONN_BEYOND);
    free(input);
    harness_deinit(&h);
}

/* A command that waits does not keep the place for what stands behind it: that asks when the command has run.
 */
static void test_what_stands_behind_a_parked_command_waits_for_it(void **state)
{
    enum { BYTES = 400 << 10, PIECE = 40 << 10 };
    static const char set[] = "*3\r\n$3\r\nSET\r\n$4\r\nbusy\r\n$1\r\nv\r\n";
    struct harness h;
    struct store_key key;
    (void)state;
    harness_init(&h);
    h.server.memory_bytes_max = CAP_SMALL;
    struct conn *conn = h.conns[0];
    char *input = malloc(BYTES + SET_BYTES);
    assert_non_null(input);
    set_command(input, "behind", BYTES);
    store_key_prepare(h.f.sw, &key, text("busy"));
    uint32_t stripe = keylock_stripe(key.hash);
    assert_true(keylock_acquire(&h.f.store->locks, stripe));
    conn_input_append(conn, set, sizeof set - 1);
    run(conn);
    assert_true(conn->flags & CONN_PARKED);
    assert_true(budget_reserve(h.conns[2], SHARE_SMALL)); /* nothing is left of the share */
    for (size_t at = 0; at < 2 * PIECE; at += PIECE)
        conn_input_append(conn, input + at, PIECE);
    conn_flush(conn, UINT64_MAX);
    assert_false(room_line_waits(conn));
    assert_int_equal(h.server.budget.beyond, 0);
    assert_true(conn->flags & CONN_READ_OFF);
    keylock_release(&h.f.store->locks, stripe);
    conn_list_remove(&conn->retry);
    conn->flags &= ~(uint32_t)CONN_PARKED;
    run(conn);
    assert_int_equal(conn->worker->stats.operations, 1);
    conn_flush(conn, UINT64_MAX);
    assert_false(conn->flags & CONN_READ_OFF);
    conn_input_append(conn, input + 2 * PIECE, PIECE);
    assert_true(conn->flags & CONN_BEYOND);
    free(input);
    harness_deinit(&h);
}

/* While there is little room a request's length is known from its first bytes, and asked for at once. */
static void test_a_whole_request_is_asked_for(void **state)
{
    enum { BYTES = 400 << 10, FIRST = 1000 };
    struct harness h;
    (void)state;
    harness_init(&h);
    struct conn *conn = h.conns[0];
    char *input = malloc(BYTES + SET_BYTES);
    assert_non_null(input);
    size_t len = set_command(input, "key", BYTES);
    conn->worker->loop->careful = true;
    conn_input_append(conn, input, FIRST);
    run(conn);
    conn_input_append(conn, input + FIRST, FIRST);
    assert_int_equal(conn_announced(conn), len);
    assert_true(conn->reserved >= len);
    free(input);
    harness_deinit(&h);
}

/* Nor does it keep the place beyond the share that it got for what stands behind, when there was no memory.
 */
static void test_who_parks_gives_the_place_beyond_back(void **state)
{
    enum { BYTES = 400 << 10, PIECE = 80 << 10, FIRST = 10 };
    static const char set[] = "*3\r\n$3\r\nSET\r\n$4\r\nbusy\r\n$1\r\nv\r\n";
    struct harness h;
    struct store_key key;
    (void)state;
    harness_init(&h);
    struct store *store = h.f.store;
    struct conn *conn = h.conns[0];
    struct worker *worker = conn->worker;
    h.server.memory_bytes_max = CAP_SMALL;
    set_memory(&h, CAP_SMALL, CAP_SMALL);
    atomic_store(&h.server.budget.input_bytes, SHARE_SMALL); /* others hold the share */
    store_key_prepare(h.f.sw, &key, text("busy"));
    uint32_t stripe = keylock_stripe(key.hash);
    assert_true(keylock_acquire(&store->locks, stripe));
    char *input = malloc(sizeof set + BYTES + SET_BYTES);
    assert_non_null(input);
    memcpy(input, set, sizeof set - 1);
    set_command(input + sizeof set - 1, "behind", BYTES);
    conn_input_append(conn, input, FIRST);
    conn_input_append(conn, input + FIRST, PIECE);
    assert_true(conn->flags & CONN_BEYOND && room_line_waits(conn));
    assert_int_equal(conn->reserved, 0);
    run(conn);
    assert_true(conn->flags & CONN_PARKED);
    assert_false(budget_holds(conn));
    assert_int_equal(h.server.budget.beyond, 0);
    assert_null(worker->beyond);
    keylock_release(&store->locks, stripe);
    atomic_store(&h.server.budget.input_bytes, 0);
    set_memory(&h, 0, 0);
    free(input);
    harness_deinit(&h);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_oldest_is_the_next_beyond_the_share),
        cmocka_unit_test(test_who_leaves_the_line_holds_nobody_up),
        cmocka_unit_test(test_a_turn_without_a_look_does_not_forget_who_was_refused),
        cmocka_unit_test(test_who_waits_again_waits_in_front),
        cmocka_unit_test(test_the_next_request_waits_anew),
        cmocka_unit_test(test_half_of_the_share_is_for_those_who_hold_parts),
        cmocka_unit_test(test_who_waits_for_nothing_does_not_wait_long),
        cmocka_unit_test(test_hope_comes_back),
        cmocka_unit_test(test_the_place_beyond_is_for_one_request),
        cmocka_unit_test(test_what_stands_behind_a_parked_command_waits_for_it),
        cmocka_unit_test(test_who_parks_gives_the_place_beyond_back),
        cmocka_unit_test(test_a_whole_request_is_asked_for),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
