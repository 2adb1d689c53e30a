/* What is written to a toc comes back, whole and by ranges. */
#include "toc_fixture.h"

/* Random keys over a small alphabet, of lengths around what matters: shared prefixes, prefixes of each other,
 * the empty key, the longest, and those that just fit a block or just don't. */
static void add_nasty(struct toc_set *set, struct prng *p, unsigned count)
{
    static char key[RECORD_KEY_BYTES_MAX];
    static const uint32_t long_ones[] = {65536, 65535, 65512, 65511, 65480,
                                         65475, 65474, 65473, 40000, 32700};
    for (unsigned i = 0; i < count; i++) {
        bool is_long = prng_below(p, 50) == 0;
        size_t len = is_long ? long_ones[prng_below(p, 10)] : prng_below(p, prng_below(p, 10) ? 24 : 700);
        /* Long ones share nearly everything, or the first byte only. */
        memset(key, is_long ? 'a' : 0, sizeof key);
        for (size_t j = is_long && prng_below(p, 2) ? len - 3 : 0; j < len; j++)
            key[j] = prng_below(p, 2) ? (char)prng_below(p, 3) : "\0a\x80\xff"[prng_below(p, 4)];
        set_add(set, fixture_entry(slice_make(key, len), p));
    }
    set_add(set, fixture_entry(slice_make("", 0), p));
    set_sort(set);
}

/* All ranges of so many blocks: together each entry once, in order. */
static void check_ranges(const struct toc *toc, const struct toc_set *set, uint64_t step)
{
    uint64_t blocks = toc_info(toc)->blocks;
    struct fixture_reading r = {.set = set};
    for (uint64_t first = 0; first < blocks; first += step)
        assert_ok(
            toc_read_blocks(toc, first, step < blocks - first ? step : blocks - first, fixture_each, &r));
    assert_false(r.wrong);
    assert_int_equal(r.at, set->count);
}

static void test_round_trip(void **state)
{
    (void)state;
    struct prng p;
    prng_seed(&p, 7);
    for (unsigned round = 0; round < 40; round++) {
        struct sim_disk *sim = sim_disk_create(round);
        struct toc_set set = {0};
        struct toc *toc;
        unsigned segments = round % 4 * 60;
        if (round)
            add_nasty(&set, &p, round * round);
        assert_ok(fixture_publish(sim, &set, round, segments));
        assert_ok(toc_open(&sim->disk, 1000, "folder", round, &toc));
        const struct toc_info *info = toc_info(toc);
        assert_int_equal(info->number, round);
        assert_int_equal(info->start_lsn, FIXTURE_START_LSN);
        assert_int_equal(info->end_lsn, FIXTURE_END_LSN);
        assert_int_equal(info->keys, set.count);
        assert_int_equal(info->key_bytes, set.key_bytes);
        assert_int_equal(info->index_bytes, FIXTURE_INDEX_BYTES);
        assert_int_equal(info->segment_count, segments);
        for (unsigned i = 0; i < segments; i++) {
            assert_int_equal(info->segments[i].number, i);
            assert_int_equal(info->segments[i].generation, i * 77);
        }
        check_ranges(toc, &set, 1);
        check_ranges(toc, &set, 2);
        check_ranges(toc, &set, 3);
        check_ranges(toc, &set, 17);
        check_ranges(toc, &set, info->blocks + 1);
        struct fixture_reading r = {.set = &set, .stop_at = set.count / 2};
        assert_ok(toc_read_blocks(toc, 0, info->blocks, fixture_each, &r));
        assert_int_equal(r.at, set.count / 2 ? set.count / 2 : set.count);
        toc_close(toc);
        set_free(&set);
        sim_disk_destroy(sim);
    }
}

/* Many small ones: several writes of 1 MiB, and the size that the format promises. */
static void test_many_small_keys(void **state)
{
    (void)state;
    enum { KEYS = 200000 };
    struct sim_disk *sim = sim_disk_create(1);
    struct toc_set set = {0};
    struct prng p;
    prng_seed(&p, 8);
    for (unsigned i = 0; i < KEYS; i++) {
        uint64_t key[2] = {prng_next(&p), prng_next(&p)}, version = prng_below(&p, 1ull << 43);
        set_add(&set, (struct toc_entry){.key = slice_make((const char *)key, sizeof key),
                                         .version = version,
                                         .address = version,
                                         .value_len = 32});
    }
    set_sort(&set);
    struct toc_writer *w;
    assert_ok(fixture_write(sim, &set, 3, 2, &w));
    assert_int_equal(toc_write_totals(w)->keys, KEYS);
    assert_in_range(toc_write_totals(w)->bytes / KEYS, 20, 32);
    assert_int_equal(toc_write_totals(w)->bytes, sim_disk_file(sim, "toc-0000000003.tmp")->size);
    assert_ok(toc_write_publish(w));
    assert_ok(fixture_read(sim, &set, 3));
    set_free(&set);
    sim_disk_destroy(sim);
}

/* The example of docs/disk-format.md: what was written then must be readable for ever. */
static void test_documented_example(void **state)
{
    (void)state;
    static const struct {
        uint64_t offset;
        const char *hex;
    } lines[] = {
        {0x0, "6b76 6173 6972 7463 fd77 322d 55ed 17a8"},
        {0x10, "0100 0000 0000 0100 0700 0000 0000 0000"},
        {0x20, "0030 0000 1000 0000 0030 0000 1000 0000"},
        {0x30, "9267 95c8 d75b e1c0 bcfb 21fd a101 0000"},
        {0x1000, "9da3 0a17 2440 ea08 6b76 7462 0000 0000"},
        {0x1010, "0200 0000 2900 0000 0006 7573 6572 3a31"},
        {0x1020, "80c1 8080 8004 0001 0502 3232 8040 0358"},
        {0x1030, "1000 0010 0000 00ac 0200 0000 00a2 0100"},
        {0x11000, "0000 0000 0000 0000 0100 0000 0000 0000"},
        {0x11010, "16b3 66ce 3d99 57e6 0000 4000 0000 0000"},
        {0x11020, "8001 0000 0000 0000 0000 0000 0000 0000"},
        {0x12000, "6b76 6173 6972 7466 ec0e cd5d c008 70da"},
        {0x12010, "0100 0000 0000 0000 0200 0000 0000 0000"},
        {0x12020, "0d00 0000 0000 0000 0000 2000 0000 0000"},
        {0x12030, "0010 0100 0000 0000 0100 0000 0000 0000"},
        {0x12040, "d970 0080 ca52 dd7b 0000 0000 0000 0000"},
    };
    struct sim_disk *sim = sim_disk_create(1);
    int fd = sim->disk.ops->create(&sim->disk, 1000, "toc-0000000007.kv", true);
    sim_disk_resize(&sim->files[fd], TOC_PAGE_BYTES + TOC_BLOCK_BYTES + 2 * TOC_PAGE_BYTES);
    for (unsigned i = 0; i < sizeof lines / sizeof lines[0]; i++) {
        char *out = sim->files[fd].data + lines[i].offset, *end;
        for (const char *p = lines[i].hex; *p; p = end) {
            char two[3] = {p[0], p[1], 0};
            *out++ = (char)strtoul(two, NULL, 16);
            end = (char *)(uintptr_t)p + (p[2] == ' ' ? 3 : 2);
        }
    }
    struct toc_set set = {0};
    set_add(&set, (struct toc_entry){.key = SLICE_LITERAL("user:1"),
                                     .version = 0x1000001040,
                                     .address = 0x1000001040,
                                     .value_len = 1});
    set_add(&set, (struct toc_entry){.key = SLICE_LITERAL("user:22"),
                                     .version = 0x1000002040,
                                     .address = 0x1000001058,
                                     .expire_ms = 0x1a200000000,
                                     .value_len = 300});
    assert_ok(fixture_read(sim, &set, 7));
    set_free(&set);
    sim_disk_destroy(sim);
}

static void test_names(void **state)
{
    (void)state;
    char name[TOC_NAME_BYTES];
    uint64_t number;
    bool temporary;
    toc_name(name, 12, false);
    assert_string_equal(name, "toc-0000000012.kv");
    assert_true(toc_parse_name(name, &number, &temporary));
    assert_true(number == 12 && !temporary);
    toc_name(name, 9999999999, true);
    assert_string_equal(name, "toc-9999999999.tmp");
    assert_true(toc_parse_name(name, &number, &temporary));
    assert_true(number == 9999999999 && temporary);
    static const char *const others[] = {"",
                                         "toc-",
                                         "toc-1.kv",
                                         "toc-0000000001.kvx",
                                         "toc-0000000001.k",
                                         "log-0000000001.kv",
                                         "toc- 000000001.kv",
                                         "toc--000000001.kv",
                                         "toc-00000000001.kv"};
    for (unsigned i = 0; i < sizeof others / sizeof others[0]; i++)
        assert_false(toc_parse_name(others[i], &number, &temporary));
}

static void test_varints(void **state)
{
    (void)state;
    for (unsigned shift = 0; shift < 64; shift++)
        for (int add = -1; add <= 1; add++) {
            uint64_t v = ((uint64_t)1 << shift) + (uint64_t)(int64_t)add, back;
            char bytes[10];
            char *end = toc_put_varint(bytes, v);
            assert_ptr_equal(toc_get_varint(bytes, end, &back), end);
            assert_int_equal(back, v);
            for (const char *shorter = bytes; shorter < end; shorter++)
                assert_null(toc_get_varint(bytes, shorter, &back));
            assert_int_equal(toc_unzigzag(toc_zigzag((int64_t)v)), v);
        }
    uint64_t v;
    static const char too_long[] = "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02",
                      endless[] = "\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01";
    assert_null(toc_get_varint(too_long, too_long + 10, &v));
    assert_null(toc_get_varint(endless, endless + 11, &v));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_many_small_keys),
        cmocka_unit_test(test_documented_example),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_varints),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
