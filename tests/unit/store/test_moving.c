/* What a round of cleaning collects comes out in the order of its keys, all of it, whatever the number. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/prng.h"
#include "store/moving.h"

/* Keys that differ late, early, that end before eight bytes, and that differ by zeros at their end. */
static int key_make(char key[32], unsigned form, uint32_t i)
{
    if (form == 3) {
        int len = snprintf(key, 32, "%04u", i / 4);
        memset(key + len, 0, 4);
        return len + (int)(i % 4);
    }
    static const char *const prefixes[] = {"key:", "", ""};
    static const char *const suffixes[] = {"", "-and-more", ""};
    return snprintf(key, 32, "%s%0*u%s", prefixes[form], form == 0 ? 8 : 5, i, suffixes[form]);
}

enum { FORMS = 4 };

/* n values with keys in random order; the version is the number in the key. */
static void fill(struct moving *m, struct prng *prng, unsigned form, uint32_t n)
{
    uint32_t *order = test_calloc(n + 1, sizeof *order);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t j = (uint32_t)prng_below(prng, i + 1);
        order[i] = order[j];
        order[j] = i;
    }
    for (uint32_t i = 0; i < n; i++) {
        char key[32], value[64];
        int key_len = key_make(key, form, order[i]);
        int value_len = snprintf(value, sizeof value, "value of %u", order[i]);
        const struct moving_value v = {
            .version = order[i] + 1, .from = order[i] * 8ull, .hot = order[i] == 0};
        moving_add(m, &v, slice_make(key, (size_t)key_len), slice_make(value, (size_t)value_len));
    }
    test_free(order);
}

static void check_order(struct moving *m, unsigned form, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        char key[32], value[64];
        struct moving_value *v = moving_first(m);
        assert_non_null(v);
        int key_len = key_make(key, form, i);
        int value_len = snprintf(value, sizeof value, "value of %u", i);
        assert_int_equal(slice_compare(moving_key(v), slice_make(key, (size_t)key_len)), 0);
        assert_int_equal(slice_compare(moving_content(v), slice_make(value, (size_t)value_len)), 0);
        assert_int_equal(v->version, i + 1);
        assert_int_equal(v->from, i * 8ull);
        moving_advance(m);
        if (i % 3 == 0)
            moving_drop(v);
    }
    assert_null(moving_first(m));
}

static void test_order(void **state)
{
    (void)state;
    struct prng prng;
    prng_seed(&prng, 1);
    for (uint32_t n = 0; n < 5000; n = n < 300 ? n + 1 : n * 3 / 2) {
        struct moving m = {0};
        fill(&m, &prng, n % FORMS, n);
        moving_seal(&m);
        check_order(&m, n % FORMS, n);
        moving_free(&m);
    }
}

static void test_median(void **state)
{
    (void)state;
    struct prng prng;
    prng_seed(&prng, 2);
    for (uint32_t n = 1; n < 20000; n = n * 3 + 1) {
        struct moving m = {0};
        uint64_t younger = 0, median;
        fill(&m, &prng, 0, n);
        median = moving_median_version(&m);
        for (size_t i = 0; i < m.count; i++)
            younger += m.values[i].version > median;
        assert_true(younger < n);
        if (n > 1000)
            assert_in_range(younger, n * 4ull / 10, n * 6ull / 10);
        moving_free(&m);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_order), cmocka_unit_test(test_median)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
