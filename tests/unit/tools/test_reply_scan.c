#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tools/reply_scan.h"

/* Whole replies, and how many items each has. */
static const struct {
    const char *text;
    uint64_t items;
} replies[] = {
    {"+OK\r\n", 1},
    {"-ERR no\r\n", 1},
    {":-12\r\n", 1},
    {"$-1\r\n", 1},
    {"$0\r\n\r\n", 1},
    {"$4\r\na\r\nb\r\n", 1},
    {"*0\r\n", 1},
    {"*-1\r\n", 1},
    {"*2\r\n$1\r\na\r\n*2\r\n:1\r\n$-1\r\n", 5},
    {"%1\r\n+a\r\n*1\r\n_\r\n", 4},
    {"~2\r\n#t\r\n,1.5\r\n", 3},
    {"=5\r\ntxt:x\r\n", 1},
    {"(123456789012345678901234567890\r\n", 1},
};

static void test_found_only_when_whole(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof replies / sizeof *replies; i++) {
        size_t len = strlen(replies[i].text);
        struct reply_scan pieces = {0};
        for (size_t n = 0; n <= len; n++) {
            /* exactly n bytes on the heap, so that a sanitizer sees a read behind them */
            char *copy = malloc(n + 1);
            memcpy(copy, replies[i].text, n);
            copy = realloc(copy, n ? n : 1);
            struct reply_scan fresh = {0};
            assert_int_equal(reply_scan_continue(&fresh, copy, n), n == len ? (int64_t)len : 0);
            assert_int_equal(reply_scan_continue(&pieces, copy, n), n == len ? (int64_t)len : 0);
            free(copy);
        }
        assert_int_equal(pieces.items, replies[i].items);
    }
}

static void test_nonsense_is_refused(void **state)
{
    (void)state;
    static const char *const bad[] = {"x\r\n",
                                      "$-2\r\n",
                                      "$1x\r\n",
                                      "$\r\n",
                                      ":a\r\n",
                                      "*-2\r\n",
                                      "$1\r\nabc",
                                      "+a\n",
                                      "*99999999999999999999\r\n",
                                      "$99999999999\r\n",
                                      "\r\n",
                                      "VALUE\r\n",
                                      "*2\r\n:1\r\nz\r\n"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct reply_scan scan = {0};
        assert_int_equal(reply_scan_continue(&scan, bad[i], strlen(bad[i])), -1);
    }
    char *endless = malloc(1 << 17);
    struct reply_scan scan = {0};
    memset(endless, '+', 1 << 17);
    assert_int_equal(reply_scan_continue(&scan, endless, 1 << 17), -1);
    free(endless);
}

static void test_item_values(void **state)
{
    (void)state;
    struct reply_item item;
    assert_int_equal(reply_item_read("$3\r\na\0b\r\n+", 10, &item), 9);
    assert_true(slice_equal(item.text, slice_make("a\0b", 3)));
    assert_int_equal(reply_item_read(":-7\r\n", 5, &item), 5);
    assert_int_equal(item.number, -7);
    assert_int_equal(reply_item_read("%3\r\n", 4, &item), 4);
    assert_int_equal(item.number, 6);
    assert_int_equal(reply_item_read("*-1\r\n", 5, &item), 5);
    assert_true(item.nil && item.number == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_found_only_when_whole),
        cmocka_unit_test(test_nonsense_is_refused),
        cmocka_unit_test(test_item_values),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
