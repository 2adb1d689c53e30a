/* Both parsers must agree on every input, cut anywhere; errors are Redis's texts; nothing is quadratic. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "proto/resp.h"

static const struct resp_limits limits = {.bulk_bytes_max = 64 << 20, .request_bytes_max = 256 << 20};

/* Feeds text to a request in pieces of `step` bytes, as exact-size heap copies so that ASan sees every
 * overread. */
static enum resp_result feed(struct resp_request *request, const char *text, size_t len, size_t step,
                             size_t *used, char *error)
{
    enum resp_result result = RESP_MORE;
    for (size_t there = step < len ? step : len;; there = there + step < len ? there + step : len) {
        char *copy = malloc(there + 1);
        memcpy(copy + 1, text, there);
        result = resp_request_parse(request, copy + 1, there, &limits, used, error);
        free(copy);
        if (result != RESP_MORE || there == len)
            return result;
    }
}

static void expect_error(const char *text, size_t len, const char *expected)
{
    for (size_t step = 1; step <= len; step = step < 40 ? step + 1 : len + 1) {
        struct resp_request request = {0};
        char error[RESP_ERROR_TEXT_BYTES] = "";
        size_t used;
        assert_int_equal(feed(&request, text, len, step, &used, error), RESP_ERROR);
        assert_string_equal(error, expected);
        resp_request_reset(&request);
    }
    struct slice argv[16];
    unsigned argc;
    const char *next;
    enum resp_result fast = resp_parse_complete(text, text + len, &limits, argv, 16, &argc, &next);
    assert_true(fast == RESP_UNUSUAL || fast == RESP_MORE);
}

static void test_errors(void **state)
{
    (void)state;
#define EXPECT(text, error) expect_error(text, sizeof text - 1, "Protocol error: " error)
    EXPECT("*a\r\n", "invalid multibulk length");
    EXPECT("*1048577\r\n", "invalid multibulk length");
    EXPECT("*99999999999999999999\r\n", "invalid multibulk length");
    EXPECT("*01\r\n$1\r\na\r\n", "invalid multibulk length");
    EXPECT("*2\r\n$3\r\nGET\r\n:1\r\n", "expected '$', got ':'");
    EXPECT("*1\r\nx", "expected '$', got 'x'");
    EXPECT("*1\r\n$-1\r\n", "invalid bulk length");
    EXPECT("*1\r\n$\r\n", "invalid bulk length");
    EXPECT("*1\r\n$10000000000\r\n", "invalid bulk length");
    EXPECT("*1\r\n$536870913\r\n", "invalid bulk length");
    char *line = malloc(70000);
    memset(line, 'x', 70000);
    expect_error(line, 70000, "Protocol error: too big inline request");
    line[0] = '*';
    expect_error(line, 70000, "Protocol error: too big mbulk count string");
    memcpy(line, "*1\r\n$", 5);
    expect_error(line, 70000, "Protocol error: too big bulk count string");
    free(line);
}

static void test_too_large(void **state)
{
    (void)state;
    struct resp_limits small = {.bulk_bytes_max = 1000, .request_bytes_max = 1500};
    struct resp_request request = {0};
    char text[2100], error[RESP_ERROR_TEXT_BYTES];
    size_t used;
    int n = snprintf(text, sizeof text, "*2\r\n$1000\r\n%01000d\r\n$1000\r\n", 1);
    assert_int_equal(resp_request_parse(&request, text, (size_t)n, &small, &used, error), RESP_TOO_LONG);
    assert_string_equal(error, "a request longer than 1500 bytes: send less at once");
    resp_request_reset(&request);
}

/* What is longer than allowed is passed over, however it is cut, and the next command is found. */
static void test_too_long_argument(void **state)
{
    (void)state;
    struct resp_limits small = {.bulk_bytes_max = 1000, .request_bytes_max = 100000};
    char text[5000], error[RESP_ERROR_TEXT_BYTES];
    int header = snprintf(text, sizeof text, "*4\r\n$3\r\nSET\r\n$1001\r\n");
    int n = header + snprintf(text + header, sizeof text - (size_t)header,
                              "%01001d\r\n$2000\r\n%02000d\r\n$2\r\nNX\r\n", 1, 2);
    for (size_t step = 1; step <= (size_t)n; step = step * 2 + 1) {
        struct resp_request request = {0};
        size_t used = 0, at;
        assert_int_equal(resp_request_parse(&request, text, (size_t)header, &small, &used, error),
                         RESP_TOO_LONG);
        assert_string_equal(error, "an argument longer than --max-value, 1000 bytes");
        at = request.position;
        assert_int_equal(at, header);
        resp_request_skip_begin(&request);
        enum resp_result result = RESP_MORE;
        for (size_t end = at; result == RESP_MORE; at += used) {
            assert_true(end < (size_t)n);
            end = end + step < (size_t)n ? end + step : (size_t)n;
            result = resp_request_skip(&request, text + at, end - at, &small, &used, error);
        }
        assert_int_equal(result, RESP_NOTHING);
        assert_int_equal(at, n);
        resp_request_reset(&request);
    }
}

static void test_nothing(void **state)
{
    (void)state;
    static const char *const texts[] = {"*0\r\n", "*-1\r\n", "*-7\r\n"};
    for (size_t i = 0; i < 3; i++) {
        struct resp_request request = {0};
        char error[RESP_ERROR_TEXT_BYTES];
        size_t used = 0;
        assert_int_equal(feed(&request, texts[i], strlen(texts[i]), 1, &used, error), RESP_NOTHING);
        assert_int_equal(used, strlen(texts[i]));
        resp_request_reset(&request);
    }
}

/* Random commands: both parsers give the arguments back, also behind one another, for every cut. */
static void test_round_trip(void **state)
{
    (void)state;
    srand(1);
    for (int round = 0; round < 3000; round++) {
        char text[4096];
        size_t offsets[16], lens[16];
        unsigned argc = 1 + (unsigned)rand() % 15;
        size_t n = (size_t)snprintf(text, sizeof text, "*%u\r\n", argc);
        for (unsigned i = 0; i < argc; i++) {
            lens[i] = (size_t)(rand() % 3 ? rand() % 20 : rand() % 150);
            n += (size_t)snprintf(text + n, sizeof text - n, "$%zu\r\n", lens[i]);
            offsets[i] = n;
            for (size_t b = 0; b < lens[i]; b++)
                text[n++] = (char)rand();
            memcpy(text + n, "\r\n", 2);
            n += 2;
        }
        for (size_t cut = 0; cut <= n; cut++) {
            struct slice argv[16];
            unsigned count;
            const char *next;
            char *copy = malloc(cut ? cut : 1);
            memcpy(copy, text, cut);
            enum resp_result result = resp_parse_complete(copy, copy + cut, &limits, argv, 16, &count, &next);
            if (cut == n) {
                assert_int_equal(result, RESP_COMMAND);
                assert_int_equal(count, argc);
                assert_ptr_equal(next, copy + n);
                for (unsigned i = 0; i < argc; i++) {
                    assert_ptr_equal(argv[i].data, copy + offsets[i]);
                    assert_int_equal(argv[i].len, lens[i]);
                }
            } else {
                assert_true(result == RESP_MORE || (cut == 0 && result == RESP_UNUSUAL));
            }
            free(copy);
        }
        struct resp_request request = {0};
        char error[RESP_ERROR_TEXT_BYTES];
        size_t used = 0;
        assert_int_equal(feed(&request, text, n, 1 + (size_t)rand() % 50, &used, error), RESP_COMMAND);
        assert_int_equal(used, n);
        assert_int_equal(request.argc, argc);
        for (unsigned i = 0; i < argc; i++) {
            assert_int_equal(request.spans[i].offset, offsets[i]);
            assert_int_equal(request.spans[i].len, lens[i]);
        }
        resp_request_reset(&request);
    }
}

/* Any bytes: no overread (ASan), and a command that the fast parser takes is one for the careful parser too.
 */
static void test_noise(void **state)
{
    (void)state;
    static const char letters[] = "*$\r\n0123:-a \"'\\x";
    srand(2);
    for (int round = 0; round < 200000; round++) {
        size_t len = (size_t)rand() % 40;
        char *text = malloc(len + 1);
        for (size_t i = 0; i < len; i++)
            text[i] = letters[(size_t)rand() % (sizeof letters - 1)];
        if (rand() % 2 && len > 4)
            memcpy(text, "*1\r\n", 4);
        char *copy = malloc(len ? len : 1);
        memcpy(copy, text, len);
        struct slice argv[16];
        unsigned argc;
        const char *next;
        struct resp_request request = {0};
        char error[RESP_ERROR_TEXT_BYTES];
        size_t used = 0;
        enum resp_result fast = resp_parse_complete(copy, copy + len, &limits, argv, 16, &argc, &next);
        enum resp_result slow = resp_request_parse(&request, copy, len, &limits, &used, error);
        if (fast == RESP_COMMAND) {
            assert_int_equal(slow, RESP_COMMAND);
            assert_int_equal(used, (size_t)(next - copy));
            assert_int_equal(request.argc, argc);
        }
        if (slow == RESP_INLINE) {
            char *out = malloc(used);
            (void)resp_split_inline(&request, copy, used - 1, out);
            free(out);
        }
        resp_request_reset(&request);
        free(copy);
        free(text);
    }
}

static void expect_inline(const char *line, int argc, const char *const *expected)
{
    struct resp_request request = {0};
    char out[256];
    bool balanced = resp_split_inline(&request, line, strlen(line), out);
    assert_int_equal(balanced, argc >= 0);
    if (balanced) {
        assert_int_equal(request.argc, argc);
        for (int i = 0; i < argc; i++) {
            assert_int_equal(request.spans[i].len, strlen(expected[i]));
            assert_memory_equal(out + request.spans[i].offset, expected[i], strlen(expected[i]));
        }
    }
    resp_request_reset(&request);
}

static void test_inline(void **state)
{
    (void)state;
    expect_inline("SET a b\r", 3, (const char *const[]){"SET", "a", "b"});
    expect_inline("  \t \r", 0, NULL);
    expect_inline("a \"b c\" 'd e'", 3, (const char *const[]){"a", "b c", "d e"});
    expect_inline("\"\\x41\\n\\t\\\"\\q\" 'it\\'s \\n'", 2, (const char *const[]){"A\n\t\"q", "it's \\n"});
    expect_inline("a\"b c\"", 1, (const char *const[]){"ab c"});
    expect_inline("a \"\"", 2, (const char *const[]){"a", ""});
    expect_inline("a \"b", -1, NULL);
    expect_inline("a 'b", -1, NULL);
    expect_inline("a \"b\"c", -1, NULL);
    expect_inline("a \"b\\", -1, NULL);
}

static void test_linear(void **state)
{
    (void)state;
    enum { ARGC = 1000000, PIECE = 16384 };
    size_t n = 0, used = 0;
    char *text = malloc(ARGC * 7 + 32), error[RESP_ERROR_TEXT_BYTES];
    n += (size_t)snprintf(text, 32, "*%d\r\n", ARGC);
    for (int i = 0; i < ARGC; i++) {
        memcpy(text + n, "$1\r\na\r\n", 7);
        n += 7;
    }
    struct resp_request request = {0};
    enum resp_result result = RESP_MORE;
    for (size_t there = PIECE; result == RESP_MORE; there += PIECE)
        result = resp_request_parse(&request, text, there < n ? there : n, &limits, &used, error);
    assert_int_equal(result, RESP_COMMAND);
    assert_int_equal(request.argc, ARGC);
    assert_int_equal(used, n);
    resp_request_reset(&request);
    free(text);
}

static void test_announced(void **state)
{
    (void)state;
    struct resp_request request = {0};
    char error[RESP_ERROR_TEXT_BYTES];
    size_t used;
    static const char text[] = "*1\r\n$1000000\r\nabc";
    assert_int_equal(resp_request_parse(&request, text, sizeof text - 1, &limits, &used, error), RESP_MORE);
    assert_int_equal(resp_request_announced(&request), 14 + 1000000 + 2);
    resp_request_reset(&request);
}

/* A command that is given up in the middle is passed over exactly, however it is cut. */
static void test_skip(void **state)
{
    (void)state;
    static const char head[] = "*4\r\n$3\r\nSET\r\n$1\r\nk\r\n$20\r\n0123",
                      rest[] = "456789*1\r\n$4ab\r\n\r\n$2\r\nEX\r\n";
    static const char next[] = "*1\r\n$4\r\nPING\r\n";
    char text[sizeof rest + sizeof next], error[RESP_ERROR_TEXT_BYTES];
    size_t n = sizeof rest - 1, all = n + sizeof next - 1;
    memcpy(text, rest, n);
    memcpy(text + n, next, sizeof next - 1);
    for (size_t piece = 1; piece <= all; piece++) {
        struct resp_request request = {0};
        size_t used, at = 0, there = 0, begun = sizeof head - 1 - 4;
        assert_int_equal(resp_request_parse(&request, head, sizeof head - 1, &limits, &used, error),
                         RESP_MORE);
        assert_int_equal(request.position, begun);
        resp_request_skip_begin(&request);
        assert_int_equal(resp_request_announced(&request), 0);
        assert_int_equal(resp_request_skip(&request, head + begun, 4, &limits, &used, error), RESP_MORE);
        assert_int_equal(used, 4);
        enum resp_result result = RESP_MORE;
        while (result == RESP_MORE && there < all) {
            there = there + piece < all ? there + piece : all;
            result = resp_request_skip(&request, text + at, there - at, &limits, &used, error);
            at += used;
        }
        assert_int_equal(result, RESP_NOTHING);
        assert_int_equal(at, n);
        resp_request_reset(&request);
    }
}

static void test_skip_noise(void **state)
{
    (void)state;
    static const char head[] = "*3\r\n$3\r\nSET\r\n$9\r\n", bad[] = "123456789\r\nx";
    struct resp_request request = {0};
    char error[RESP_ERROR_TEXT_BYTES];
    size_t used;
    assert_int_equal(resp_request_parse(&request, head, sizeof head - 1, &limits, &used, error), RESP_MORE);
    resp_request_skip_begin(&request);
    assert_int_equal(resp_request_skip(&request, bad, sizeof bad - 1, &limits, &used, error), RESP_ERROR);
    assert_string_equal(error, "Protocol error: expected '$', got 'x'");
    resp_request_reset(&request);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_errors),
        cmocka_unit_test(test_too_large),
        cmocka_unit_test(test_too_long_argument),
        cmocka_unit_test(test_nothing),
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_noise),
        cmocka_unit_test(test_inline),
        cmocka_unit_test(test_linear),
        cmocka_unit_test(test_announced),
        cmocka_unit_test(test_skip),
        cmocka_unit_test(test_skip_noise),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
