#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/prng.h"
#include "log/record.h"

static const uint64_t LSN = 0x1000001040, GENERATION = 0x123456789abcdef;

static size_t write_record(char *dst, enum record_type type, struct slice key, struct slice value,
                           uint64_t expire_ms)
{
    record_seal(dst, record_encode(dst, type, key, value, expire_ms), LSN, GENERATION);
    return record_bytes(type, key.len, value.len);
}

/* Every type and all small lengths: what goes in comes out, and nothing beside the record is written. */
static void test_round_trip(void **state)
{
    (void)state;
    static char data[256], bytes[] = "0123456789abcdefghijklmnopqrstuvwxyz";
    for (enum record_type type = RECORD_SET; type <= RECORD_DELTREE; type++)
        for (size_t key_len = 0; key_len < 20; key_len++)
            for (size_t value_len = 0; value_len < 20; value_len++) {
                memset(data, 0xee, sizeof data);
                size_t n = write_record(data + 8, type, slice_make(bytes, key_len),
                                        slice_make(bytes + 9, value_len), 77);
                struct record r;
                assert_int_equal(record_decode(data + 8, n, LSN, GENERATION, &r), n);
                assert_int_equal(r.type, type);
                assert_int_equal(r.expire_ms, type == RECORD_SET_EXPIRE || type == RECORD_EXPIRE ? 77 : 0);
                assert_true(slice_equal(r.key, slice_make(bytes, key_len)));
                assert_true(slice_equal(r.value, slice_make(bytes + 9, value_len)));
                for (size_t i = 0; i < 8; i++)
                    assert_true((unsigned char)data[i] == 0xee && (unsigned char)data[8 + n + i] == 0xee);
            }
}

static void test_moved(void **state)
{
    (void)state;
    static char data[128], bytes[] = "0123456789abcdefghijklmnopqrstuvwxyz";
    uint64_t address = 1ull << 63 | LSN;
    for (size_t key_len = 0; key_len < 20; key_len++)
        for (size_t value_len = 0; value_len < 20; value_len++) {
            struct slice key = slice_make(bytes, key_len), value = slice_make(bytes + 9, value_len);
            struct record r;
            memset(data, 0xee, sizeof data);
            record_seal(data + 8, record_encode_moved(data + 8, key, value, 12345, 77), address, GENERATION);
            size_t n = record_bytes(RECORD_MOVED, key_len, value_len);
            assert_int_equal(record_decode(data + 8, n, address, GENERATION, &r), n);
            assert_int_equal(r.type, RECORD_MOVED);
            assert_int_equal(r.lsn, address);
            assert_int_equal(r.version, 12345);
            assert_int_equal(r.expire_ms, 77);
            assert_true(slice_equal(r.key, key) && slice_equal(r.value, value));
            assert_int_equal(record_decode(data + 8, n, LSN, GENERATION, &r), -1); /* not one of the log */
            for (size_t i = 0; i < 8; i++)
                assert_true((unsigned char)data[i] == 0xee && (unsigned char)data[8 + n + i] == 0xee);
        }
}

static void test_every_flipped_bit_is_found(void **state)
{
    (void)state;
    char data[128];
    struct record r;
    size_t n = write_record(data, RECORD_SET_EXPIRE, SLICE_LITERAL("a/b/c"), SLICE_LITERAL("value"), 1234567);
    for (size_t bit = 0; bit < n * 8; bit++) {
        data[bit / 8] ^= (char)(1 << bit % 8);
        assert_int_equal(record_decode(data, n, LSN, GENERATION, &r), -1);
        data[bit / 8] ^= (char)(1 << bit % 8);
    }
    assert_int_equal(record_decode(data, n, LSN, GENERATION, &r), n);
    assert_int_equal(record_decode(data, n, LSN + 4096, GENERATION, &r), -1); /* elsewhere */
    assert_int_equal(record_decode(data, n, LSN, GENERATION + 1, &r), -1);    /* of an older file */
    for (size_t shorter = 1; shorter < n; shorter++)
        assert_int_equal(record_decode(data, shorter, LSN, GENERATION, &r), -1);
}

static void test_transaction_frame(void **state)
{
    (void)state;
    char data[16];
    struct record r;
    struct slice count = slice_make(NULL, 1000000), bytes = slice_make(NULL, 64000000);
    record_seal(data, record_encode(data, RECORD_TXN, count, bytes, 0), LSN, GENERATION);
    assert_int_equal(record_decode(data, sizeof data, LSN, GENERATION, &r), 16);
    assert_int_equal(r.txn_count, 1000000);
    assert_int_equal(r.txn_bytes, 64000000);
}

/* Random bytes never decode to something outside of what may be looked at (AddressSanitizer watches). */
static void test_noise(void **state)
{
    (void)state;
    struct prng p;
    prng_seed(&p, 3);
    for (int i = 0; i < 100000; i++) {
        size_t n = prng_below(&p, 100);
        char *data = malloc(n + 1);
        for (size_t j = 0; j < n; j++)
            data[j] = (char)(prng_below(&p, 3) ? prng_next(&p) & 7 : prng_next(&p));
        struct record r;
        (void)record_decode(data, n, LSN, GENERATION, &r);
        free(data);
    }
    char zeros[64] = {0};
    struct record r;
    assert_int_equal(record_decode(zeros, sizeof zeros, LSN, GENERATION, &r), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_moved),
        cmocka_unit_test(test_every_flipped_bit_is_found),
        cmocka_unit_test(test_transaction_frame),
        cmocka_unit_test(test_noise),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
