#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tools/bench_record.h"

enum { KEYS = 20000 };

static struct bench_records make(uint64_t seed, uint64_t min, uint64_t max, enum bench_key key)
{
    struct bench_record_options options = {seed, min, max, (int)key};
    struct bench_records records;
    status_t s = bench_records_init(&records, &options);
    assert_true(status_is_ok(&s));
    return records;
}

/* Pinned: a folder that an older build filled must still verify. */
static void test_records_stay_what_they_are(void **state)
{
    (void)state;
    static const unsigned char key[BENCH_KEY_BYTES] = {0x93, 0xad, 0x13, 0x47, 0x19, 0xae, 0x00, 0x6c,
                                                       0x83, 0x0d, 0x1d, 0x49, 0x64, 0xbb, 0x5f, 0x7a};
    static const unsigned char value[] = {0x00, 0x00, 0x00, 0x00, 0xa5, 0x72, 0x23, 0x05, 0x07, 0x84, 0x58,
                                          0x6a, 0x81, 0xc9, 0x6f, 0x90, 0x9d, 0x8a, 0x2b, 0x3f, 0x37};
    struct bench_records records = make(1, 21, 21, BENCH_KEY_UUID);
    char mine[64];
    bench_record_key(&records, 7, mine);
    assert_memory_equal(mine, key, sizeof key);
    bench_record_fill(&records, mine, 21, 7, 0);
    assert_memory_equal(mine, value, sizeof value);
    records = make(1, 1024, 4096, BENCH_KEY_COUNTER);
    assert_int_equal(bench_record_bytes(&records, 7), 3286);
    bench_record_key(&records, 7, mine);
    assert_memory_equal(mine, "key:000000000007", BENCH_KEY_BYTES);
}

static int compare_keys(const void *a, const void *b)
{
    return memcmp(a, b, BENCH_KEY_BYTES);
}

static void test_keys_differ(void **state)
{
    (void)state;
    static char keys[3 * KEYS][BENCH_KEY_BYTES];
    for (unsigned i = 0; i < 3 * KEYS; i++) { /* two seeds and a counter */
        struct bench_records records =
            make(1 + i / KEYS % 2, 8, 8, i < 2 * KEYS ? BENCH_KEY_UUID : BENCH_KEY_COUNTER);
        bench_record_key(&records, i % KEYS, keys[i]);
    }
    qsort(keys, 3 * KEYS, BENCH_KEY_BYTES, compare_keys);
    for (unsigned i = 1; i < 3 * KEYS; i++)
        assert_memory_not_equal(keys[i - 1], keys[i], BENCH_KEY_BYTES);
}

static void test_sizes_are_uniform(void **state)
{
    (void)state;
    unsigned counts[11] = {0};
    struct bench_records records = make(3, 10, 20, BENCH_KEY_UUID);
    for (uint64_t i = 0; i < 110000; i++) {
        uint32_t bytes = bench_record_bytes(&records, i);
        assert_in_range(bytes, 10, 20);
        counts[bytes - 10]++;
    }
    for (unsigned i = 0; i < 11; i++)
        assert_in_range(counts[i], 9500, 10500); /* five standard deviations */
}

static void test_contents_match_only_their_record(void **state)
{
    (void)state;
    char value[128], other[128];
    for (uint32_t len = BENCH_RECORD_BYTES_MIN; len < 100; len++) {
        struct bench_records records = make(5, len, len, BENCH_KEY_UUID);
        struct bench_records reseeded = make(6, len, len, BENCH_KEY_UUID);
        struct slice slice = slice_make(value, len);
        for (uint32_t generation = 0; generation < 3; generation++) {
            bench_record_fill(&records, value, len, len, generation * 0x7fffffff);
            assert_true(bench_record_matches(&records, slice, len));
            assert_false(bench_record_matches(&records, slice, len + 1));
            assert_false(bench_record_matches(&reseeded, slice, len));
            assert_false(bench_record_matches(&records, slice_make(value, len - 1), len));
            assert_false(bench_record_matches(&records, slice_make(value, 0), len));
        }
        bench_record_fill(&records, other, len, len, 1);
        assert_memory_not_equal(value, other, len);
        for (uint32_t i = 0; i < 8 * len; i++) {
            value[i / 8] ^= (char)(1 << i % 8);
            assert_false(bench_record_matches(&records, slice, len));
            value[i / 8] ^= (char)(1 << i % 8);
        }
    }
}

static void test_options(void **state)
{
    (void)state;
    struct bench_record_options options = BENCH_RECORD_UNSET;
    struct bench_records records;
    status_t s = bench_records_init(&records, &options);
    assert_true(status_is_ok(&s));
    assert_null(bench_record_option_named(&options));
    assert_int_equal(records.seed, 1);
    assert_int_equal(records.key, BENCH_KEY_UUID);
    assert_int_equal(records.sizes.min, 1024);
    assert_int_equal(records.sizes.max, 4096);
    options.max_bytes = 100;
    assert_string_equal(bench_record_option_named(&options), "max-size");
    s = bench_records_init(&records, &options);
    assert_true(status_is_ok(&s));
    assert_int_equal(records.sizes.min, 100);
    options.min_bytes = 101;
    s = bench_records_init(&records, &options);
    assert_non_null(strstr(s.text, "--min-size"));
    options.min_bytes = UINT64_MAX;
    options.max_bytes = 7;
    s = bench_records_init(&records, &options);
    assert_non_null(strstr(s.text, "--max-size"));
    options.min_bytes = 7;
    s = bench_records_init(&records, &options);
    assert_non_null(strstr(s.text, "--min-size"));
    options.min_bytes = options.max_bytes = BENCH_RECORD_BYTES_MAX + 1;
    s = bench_records_init(&records, &options);
    assert_non_null(strstr(s.text, "--max-size"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_records_stay_what_they_are),
        cmocka_unit_test(test_keys_differ),
        cmocka_unit_test(test_sizes_are_uniform),
        cmocka_unit_test(test_contents_match_only_their_record),
        cmocka_unit_test(test_options),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
