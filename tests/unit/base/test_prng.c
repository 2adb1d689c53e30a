#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/prng.h"

static void test_same_seed_same_numbers(void **state)
{
    (void)state;
    struct prng a, b;
    prng_seed(&a, 7);
    prng_seed(&b, 7);
    for (int i = 0; i < 1000; i++)
        assert_true(prng_next(&a) == prng_next(&b));
}

static void test_below_is_even(void **state)
{
    (void)state;
    struct prng p;
    unsigned counts[10] = {0};
    prng_seed(&p, 1);
    for (int i = 0; i < 100000; i++)
        counts[prng_below(&p, 10)]++;
    for (int i = 0; i < 10; i++)
        assert_in_range(counts[i], 9500, 10500);
}

static void test_permutation_is_a_bijection(void **state)
{
    (void)state;
    for (uint64_t n = 1; n < 3000; n = n * 3 / 2 + 1) {
        struct permutation p;
        char *seen = calloc(n, 1);
        permutation_init(&p, n, n);
        for (uint64_t i = 0; i < n; i++) {
            uint64_t v = permutation_at(&p, i);
            assert_true(v < n && !seen[v]);
            seen[v] = 1;
        }
        free(seen);
    }
}

/* The share of the first ranks follows 1/rank^theta. */
static void test_zipf_shares(void **state)
{
    (void)state;
    enum { N = 100000, DRAWS = 1000000 };
    struct prng p;
    struct zipf z;
    unsigned first = 0, second = 0, head = 0;
    prng_seed(&p, 3);
    zipf_init(&z, N, 0.99);
    for (int i = 0; i < DRAWS; i++) {
        uint64_t rank = zipf_next(&z, &p);
        assert_true(rank < N);
        first += rank == 0;
        second += rank == 1;
        head += rank < 1000;
    }
    double expected = DRAWS / z.zeta;
    assert_in_range(first, (uint64_t)(expected * 0.97), (uint64_t)(expected * 1.03));
    assert_in_range(second, (uint64_t)(expected * 0.48), (uint64_t)(expected * 0.53));
    assert_in_range(head, DRAWS * 55 / 100, DRAWS * 70 / 100);
    for (uint64_t n = 1; n < 4; n++) {
        zipf_init(&z, n, 0.99);
        for (int i = 0; i < 1000; i++)
            assert_true(zipf_next(&z, &p) < n);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_seed_same_numbers),
        cmocka_unit_test(test_below_is_even),
        cmocka_unit_test(test_permutation_is_a_bijection),
        cmocka_unit_test(test_zipf_shares),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
