#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <stdio.h>

#include "tools/bench_data.h"

static void test_keys_are_as_printf_writes_them(void **state)
{
    (void)state;
    static const uint64_t ids[] = {0,     9,        10,        99,           12345,       9999,
                                   10000, 99999999, 100000000, 123456789012, 999999999999};
    char mine[BENCH_KEY_BYTES + 1] = "key:", wanted[32];
    struct prng p;
    prng_seed(&p, 1);
    for (unsigned i = 0; i < 100000; i++) {
        uint64_t id = i < sizeof ids / sizeof *ids ? ids[i] : prng_below(&p, 1000000000000);
        bench_put_digits(mine + 4, id);
        snprintf(wanted, sizeof wanted, "key:%012llu", (unsigned long long)id);
        assert_string_equal(mine, wanted);
    }
}

static void test_values_match_only_their_key(void **state)
{
    (void)state;
    char value[300];
    for (uint32_t len = 0; len < 200; len++) {
        struct bench_sizes sizes = {len, len};
        bench_value_fill(value, len, len);
        assert_true(bench_value_matches(slice_make(value, len), &sizes, len));
        if (len == 0)
            continue;
        assert_false(bench_value_matches(slice_make(value, len - 1), &sizes, len));
        for (uint32_t i = 0; i < len; i++) {
            assert_in_range(value[i], '0', 'o');
            value[i] ^= 1;
            assert_false(bench_value_matches(slice_make(value, len), &sizes, len));
            value[i] ^= 1;
        }
    }
    struct bench_sizes sizes = {10, 90};
    for (uint64_t id = 0; id < 1000; id++)
        assert_in_range(bench_value_bytes(&sizes, id), 10, 90);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_keys_are_as_printf_writes_them),
        cmocka_unit_test(test_values_match_only_their_key),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
