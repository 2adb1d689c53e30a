#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <math.h>

#include "base/parse.h"

static struct slice text(const char *s)
{
    return slice_make(s, strlen(s));
}

static void test_i64(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        bool fine;
        int64_t value;
    } cases[] = {
        {"0", true, 0},
        {"7", true, 7},
        {"-1", true, -1},
        {"9223372036854775807", true, INT64_MAX},
        {"-9223372036854775808", true, INT64_MIN},
        {"9223372036854775808", false, 0},
        {"-9223372036854775809", false, 0},
        {"18446744073709551616", false, 0},
        {"99999999999999999999999", false, 0},
        {"", false, 0},
        {"-", false, 0},
        {"-0", false, 0},
        {"00", false, 0},
        {"01", false, 0},
        {"+1", false, 0},
        {" 1", false, 0},
        {"1 ", false, 0},
        {"1.0", false, 0},
        {"1e3", false, 0},
        {"0x10", false, 0},
        {"--1", false, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int64_t v = 42;
        assert_int_equal(parse_i64(text(cases[i].text), &v), cases[i].fine);
        assert_true(v == (cases[i].fine ? cases[i].value : 42));
    }
    int64_t v;
    assert_false(parse_i64(slice_make("1\0", 2), &v));
    assert_true(parse_i64(slice_make("123", 2), &v)); /* no NUL needed */
    assert_true(v == 12);
}

static void test_u64(void **state)
{
    (void)state;
    uint64_t v;
    assert_true(parse_u64(text("18446744073709551615"), &v) && v == UINT64_MAX);
    assert_false(parse_u64(text("18446744073709551616"), &v));
    assert_false(parse_u64(text("-1"), &v));
    assert_false(parse_u64(text(""), &v));
}

static void test_double(void **state)
{
    (void)state;
    static const char *const bad[] = {"", " 1", "1 ", "nan", "-nan", "1e999", "1.2.3", "abc", "1e", "\n1"};
    double v;
    assert_true(parse_double(text("1.5"), &v) && v == 1.5);
    assert_true(parse_double(text("-2e3"), &v) && v == -2000);
    assert_true(parse_double(text("inf"), &v) && isinf(v));
    assert_true(parse_double(slice_make("1.55", 3), &v) && v == 1.5);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_false(parse_double(text(bad[i]), &v));
    char longest[1000];
    memset(longest, '1', sizeof longest);
    assert_false(parse_double(slice_make(longest, sizeof longest), &v));
}

static void test_size(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        uint64_t bytes;
    } good[] = {{"0", 0},           {"4096", 4096},
                {"1K", 1024},       {"64M", 64u << 20},
                {"2g", 2ull << 30}, {"1T", 1ull << 40},
                {"8kb", 8192},      {"3MiB", 3u << 20},
                {"5b", 5},          {"16777215T", 16777215ull << 40}};
    static const char *const bad[] = {"",     "M",    "-1",   "1.5G",      "64X",
                                      "64MM", "64 M", "1Kx",  "16777216T", "18446744073709551616",
                                      "0x10", "1Mi",  "64M ", "010"};
    uint64_t v;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        assert_true(parse_size(text(good[i].text), &v) && v == good[i].bytes);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_false(parse_size(text(bad[i]), &v));
    assert_false(parse_size(slice_make("1\0", 2), &v));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_i64),
        cmocka_unit_test(test_u64),
        cmocka_unit_test(test_double),
        cmocka_unit_test(test_size),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
