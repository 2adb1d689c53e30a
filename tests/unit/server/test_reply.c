/* Replies: encodings, chunk borders, rollback, and marks against a simple model. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "server/reply.h"

enum { PIECES = 16 };

/* Takes everything that may leave. Returns its length. */
static size_t drain(struct reply *r, uint64_t commit_lsn, char *out)
{
    struct iovec pieces[PIECES];
    size_t n = 0;
    int count;
    while ((count = reply_sendable(r, commit_lsn, pieces, PIECES)) > 0) {
        size_t sent = 0;
        for (int i = 0; i < count; i++) {
            memcpy(out + n + sent, pieces[i].iov_base, pieces[i].iov_len);
            sent += pieces[i].iov_len;
        }
        reply_sent(r, sent);
        n += sent;
    }
    return n;
}

static void expect(struct reply *r, const char *text)
{
    char out[65536];
    size_t n = drain(r, UINT64_MAX, out);
    assert_int_equal(n, strlen(text));
    assert_memory_equal(out, text, n);
    assert_null(r->head);
}

static void test_encodings(void **state)
{
    (void)state;
    struct reply_pool *pool = reply_pool_create();
    struct reply r;
    reply_init(&r, pool);
    reply_ok(&r);
    reply_status(&r, "PONG");
    expect(&r, "+OK\r\n+PONG\r\n");
    reply_error(&r, "ERR no '%s'", "a\r\nb");
    expect(&r, "-ERR no 'a  b'\r\n");
    assert_int_equal(r.error_count, 1);
    reply_integer(&r, 0);
    reply_integer(&r, -12);
    reply_integer(&r, INT64_MIN);
    reply_integer(&r, INT64_MAX);
    expect(&r, ":0\r\n:-12\r\n:-9223372036854775808\r\n:9223372036854775807\r\n");
    reply_bulk(&r, SLICE_LITERAL("abc"));
    reply_bulk_text(&r, "");
    reply_bulk_integer(&r, -100);
    expect(&r, "$3\r\nabc\r\n$0\r\n\r\n$4\r\n-100\r\n");
    reply_null(&r);
    reply_map(&r, 2);
    reply_set(&r, 3);
    reply_verbatim(&r, SLICE_LITERAL("hi"));
    expect(&r, "$-1\r\n*4\r\n*3\r\n$2\r\nhi\r\n");
    r.resp = 3;
    reply_null(&r);
    reply_map(&r, 2);
    reply_set(&r, 3);
    reply_verbatim(&r, SLICE_LITERAL("hi"));
    reply_array(&r, 1234);
    expect(&r, "_\r\n%2\r\n~3\r\n=6\r\ntxt:hi\r\n*1234\r\n");
    reply_deinit(&r);
    reply_pool_destroy(pool);
}

static void test_long_and_rollback(void **state)
{
    (void)state;
    enum { LONG = 300000 };
    struct reply_pool *pool = reply_pool_create();
    struct reply r;
    char *out = malloc(LONG + 100);
    reply_init(&r, pool);
    struct reply_position start = reply_position(&r);
    reply_ok(&r);
    struct reply_position behind_ok = reply_position(&r);
    memset(reply_bulk_begin(&r, LONG), 'x', LONG);
    reply_bulk_end(&r, LONG);
    for (int i = 0; i < 10000; i++)
        reply_ok(&r);
    reply_rollback(&r, behind_ok);
    assert_int_equal(reply_pending_bytes(&r), 5);
    reply_rollback(&r, start);
    assert_int_equal(reply_pending_bytes(&r), 0);
    assert_null(r.head);
    memset(reply_bulk_begin(&r, LONG), 'y', LONG);
    reply_bulk_end(&r, LONG);
    assert_int_equal(drain(&r, 1, out), LONG + 11);
    assert_memory_equal(out, "$300000\r\nyyy", 12);
    assert_memory_equal(out + LONG + 8, "y\r\n", 3);
    reply_deinit(&r);
    reply_pool_destroy(pool);
    free(out);
}

/* Random appends, holds, sends and cuts of sends: bytes come out in order, none before its LSN is committed.
 */
static void test_marks_model(void **state)
{
    (void)state;
    enum { BYTES = 200000 };
    uint64_t *needs = calloc(BYTES, sizeof *needs); /* LSN that a byte waits for */
    for (unsigned seed = 1; seed <= 200; seed++) {
        struct reply_pool *pool = reply_pool_create();
        struct reply r;
        uint64_t written = 0, sent = 0, lsn = 1, commit = 1, newest = 0;
        srand(seed);
        reply_init(&r, pool);
        while (written < BYTES - 30000) {
            size_t n = rand() % 50 ? 1 + (size_t)rand() % 60 : 1 + (size_t)rand() % 25000;
            char *p = reply_room(&r, n);
            uint64_t from = reply_end_offset(&r);
            assert_int_equal(from, written);
            for (size_t i = 0; i < n; i++)
                p[i] = (char)((written + i) % 251);
            r.cursor += n;
            if (rand() % 3 == 0) {
                lsn += (uint64_t)rand() % 5;
                if (lsn >= commit) {
                    reply_hold(&r, from, lsn);
                    newest = lsn;
                }
            }
            for (size_t i = 0; i < n; i++)
                needs[written++] = newest;
            if (rand() % 10 == 0)
                commit += (uint64_t)rand() % (lsn + 2 - commit + 1);
            struct iovec pieces[3];
            int count = reply_sendable(&r, commit, pieces, 3);
            size_t sendable = 0;
            for (int i = 0; i < count; i++) {
                for (size_t b = 0; b < pieces[i].iov_len; b++, sendable++) {
                    assert_true(needs[sent + sendable] < commit);
                    assert_int_equal(((char *)pieces[i].iov_base)[b], (char)((sent + sendable) % 251));
                }
            }
            size_t part = sendable ? (size_t)rand() % (sendable + 1) : 0;
            reply_sent(&r, part);
            sent += part;
            assert_int_equal(reply_pending_bytes(&r), written - sent);
        }
        if (seed % 2) {
            reply_drop_held(&r);
            assert_false(reply_is_held(&r));
        }
        uint64_t end = reply_end_offset(&r);
        static char out[BYTES];
        assert_int_equal(drain(&r, UINT64_MAX, out), end - sent);
        assert_null(r.head);
        reply_deinit(&r);
        reply_pool_destroy(pool);
    }
    free(needs);
}

/* The pool keeps as many free chunks as it is told, at once; small ones when it saves. */
static void test_pool_keeps(void **state)
{
    enum { REPLIES = 40 };
    (void)state;
    struct reply_pool *pool = reply_pool_create();
    struct reply r[REPLIES];
    for (int keep = 10; keep >= 0; keep -= 10) {
        for (int i = 0; i < REPLIES; i++) {
            reply_init(&r[i], pool);
            reply_ok(&r[i]);
        }
        assert_int_equal(reply_pool_busy_bytes(pool), REPLIES * REPLY_CHUNK_BYTES);
        reply_pool_keep(pool, keep ? 20 : 5);
        for (int i = 0; i < REPLIES; i++) {
            expect(&r[i], "+OK\r\n");
            reply_deinit(&r[i]);
        }
        assert_int_equal(reply_pool_bytes(pool), (keep ? 20 : 5) * REPLY_CHUNK_BYTES);
        reply_pool_keep(pool, (unsigned)keep);
        assert_int_equal(reply_pool_bytes(pool), (keep < 5 ? keep : 10) * REPLY_CHUNK_BYTES);
        assert_int_equal(reply_pool_busy_bytes(pool), 0);
    }
    reply_pool_save(pool, true);
    reply_init(&r[0], pool);
    reply_ok(&r[0]);
    assert_in_range(reply_pool_bytes(pool), 1, 1024);
    expect(&r[0], "+OK\r\n");
    assert_int_equal(reply_pool_bytes(pool), 0); /* those are not kept */
    reply_deinit(&r[0]);
    reply_pool_destroy(pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_encodings),
        cmocka_unit_test(test_long_and_rollback),
        cmocka_unit_test(test_marks_model),
        cmocka_unit_test(test_pool_keeps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
