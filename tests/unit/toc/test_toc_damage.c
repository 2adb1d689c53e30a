/* Damaged, cut and forged tocs, and a disk that fails: a clear error or the same entries, never anything
 * else. */
#include <errno.h>

#include "toc_fixture.h"

/* A small set with every kind of block: two of entries, a long one between them. */
static void make_small(struct toc_set *set)
{
    static char key[RECORD_KEY_BYTES_MAX];
    struct prng p;
    prng_seed(&p, 5);
    memset(key, 'k', sizeof key);
    for (unsigned i = 0; i < 300; i++) {
        char text[32];
        int n = snprintf(text, sizeof text, "%c/name/%u", i % 2 ? 'a' : 'z', i * 7919 % 1000);
        set_add(set, fixture_entry(slice_make(text, (size_t)n), &p));
    }
    set_add(set, fixture_entry(slice_make(key, sizeof key), &p));
    set_add(set, fixture_entry(slice_make("", 0), &p));
    set_sort(set);
}

/* Reading gives STATUS_CORRUPT, naming file and an offset. */
static void assert_corrupt(status_t s)
{
    if (s.code != STATUS_CORRUPT)
        print_error("code %d: %s\n", s.code, s.text);
    assert_int_equal(s.code, STATUS_CORRUPT);
    assert_non_null(strstr(s.text, "folder/toc-0000000001.kv"));
    assert_non_null(strstr(s.text, "offset"));
}

/* Flips one bit in every step-th byte of a toc. */
static void check_flips(const struct toc_set *set, uint64_t size, uint64_t step)
{
    struct sim_disk *sim = sim_disk_create(1);
    struct prng p;
    prng_seed(&p, 6);
    assert_ok(fixture_publish(sim, set, 1, 3));
    struct sim_file *f = sim_disk_file(sim, "toc-0000000001.kv");
    assert_int_equal(f->size, size);
    for (uint64_t i = 0; i < f->size; i += step) {
        char flip = (char)(1u << prng_below(&p, 8));
        f->data[i] ^= flip;
        assert_corrupt(fixture_read(sim, set, 1));
        f->data[i] ^= flip;
    }
    assert_ok(fixture_read(sim, set, 1));
    sim_disk_destroy(sim);
}

static void test_every_byte_flipped(void **state)
{
    (void)state;
    struct toc_set set = {0}, one_block = {0};
    make_small(&set);
    for (unsigned i = 0; i < 100; i++)
        set_add(&one_block, set.entries[i]);
    check_flips(&one_block, 4096 + 65536 + 2 * 4096, 1);
    check_flips(&set, 4096 + 4 * 65536 + 2 * 4096,
                61); /* 61 and the sizes of blocks and pages share no factor */
    set_free(&set);
    set_free(&one_block);
}

static void test_cut_and_stretched(void **state)
{
    (void)state;
    struct sim_disk *sim = sim_disk_create(1);
    struct toc_set set = {0};
    make_small(&set);
    assert_ok(fixture_publish(sim, &set, 1, 3));
    struct sim_file *f = sim_disk_file(sim, "toc-0000000001.kv");
    uint64_t size = f->size;
    sim_disk_resize(f, size + 4096);
    assert_corrupt(fixture_read(sim, &set, 1));
    for (uint64_t cut = 1; cut <= size; cut += cut < 5000 ? 1 : 1021) {
        sim_disk_resize(f, size - cut);
        assert_corrupt(fixture_read(sim, &set, 1));
    }
    set_free(&set);
    sim_disk_destroy(sim);
}

/* Blocks of another toc at the same place, or of this one at another place, are found by their checksums. */
static void test_blocks_that_belong_elsewhere(void **state)
{
    (void)state;
    struct sim_disk *sim = sim_disk_create(1);
    struct toc_set set = {0};
    make_small(&set);
    assert_ok(fixture_publish(sim, &set, 1, 3));
    assert_ok(fixture_publish(sim, &set, 2, 3));
    struct sim_file *f = sim_disk_file(sim, "toc-0000000001.kv"),
                    *g = sim_disk_file(sim, "toc-0000000002.kv");
    static char saved[TOC_BLOCK_BYTES];
    memcpy(saved, f->data + 4096, sizeof saved);
    memcpy(f->data + 4096, g->data + 4096, sizeof saved);
    assert_corrupt(fixture_read(sim, &set, 1));
    memcpy(f->data + 4096, f->data + 4096 + 3 * TOC_BLOCK_BYTES, sizeof saved);
    assert_corrupt(fixture_read(sim, &set, 1));
    memcpy(f->data + 4096, saved, sizeof saved);
    assert_ok(fixture_read(sim, &set, 1));
    memcpy(f->data, g->data, f->size); /* toc 2 under toc 1's name */
    assert_corrupt(fixture_read(sim, &set, 1));
    set_free(&set);
    sim_disk_destroy(sim);
}

static void seal_block(struct sim_file *f, uint64_t block, uint64_t generation)
{
    char *data = f->data + toc_block_offset(block);
    store_u64(data, toc_block_checksum(data, toc_block_offset(block), generation));
}

/* Forged blocks, whose checksums are right: an error or ascending keys. AddressSanitizer watches. */
static void test_forged_blocks(void **state)
{
    (void)state;
    struct sim_disk *sim = sim_disk_create(1);
    struct toc_set set = {0};
    struct prng p;
    prng_seed(&p, 9);
    make_small(&set);
    assert_ok(fixture_publish(sim, &set, 1, 3));
    struct sim_file *f = sim_disk_file(sim, "toc-0000000001.kv");
    uint64_t generation = load_u64(f->data + offsetof(struct toc_header, generation));
    unsigned good = 0, bad = 0;
    static char saved[TOC_BLOCK_BYTES];
    for (unsigned i = 0; i < 20000; i++) {
        uint64_t block = prng_below(&p, 4);
        char *data = f->data + toc_block_offset(block);
        memcpy(saved, data, sizeof saved);
        for (unsigned n = 1 + (unsigned)prng_below(&p, 4); n > 0; n--) {
            uint64_t at = prng_below(&p, 3) ? 24 + prng_below(&p, load_u32(data + 20) % TOC_PAYLOAD_BYTES + 1)
                                            : 8 + prng_below(&p, 60);
            data[at] =
                prng_below(&p, 2) ? (char)prng_next(&p) : (char)(data[at] + (prng_below(&p, 2) ? 1 : -1));
        }
        if (i % 16 == 0) /* a whole other block */
            memcpy(data, f->data + toc_block_offset(prng_below(&p, 4)), sizeof saved);
        seal_block(f, block, generation);
        status_t s = fixture_read(sim, NULL, 1);
        if (status_is_ok(&s))
            good++;
        else
            assert_corrupt(s);
        bad += !status_is_ok(&s);
        memcpy(data, saved, sizeof saved);
    }
    assert_true(good > 100 && bad > 100);
    assert_ok(fixture_read(sim, &set, 1));
    set_free(&set);
    sim_disk_destroy(sim);
}

/* Forged header and footer: each number in turn is extreme, checksums right. */
static void test_forged_numbers(void **state)
{
    (void)state;
    struct sim_disk *sim = sim_disk_create(1);
    struct toc_set set = {0};
    make_small(&set);
    assert_ok(fixture_publish(sim, &set, 1, 3));
    struct sim_file *f = sim_disk_file(sim, "toc-0000000001.kv");
    uint64_t generation = load_u64(f->data + offsetof(struct toc_header, generation)),
             footer = f->size - 4096;
    static const uint64_t extremes[] = {0,          1,          2,          5,          1ull << 20,
                                        1ull << 31, 1ull << 32, 1ull << 48, 1ull << 63, UINT64_MAX / 40 + 1,
                                        UINT64_MAX};
    for (uint64_t field = 16; field < sizeof(struct toc_footer); field += 8)
        for (unsigned i = 0; i < sizeof extremes / sizeof extremes[0]; i++) {
            char saved[16];
            memcpy(saved, f->data + footer + 8, 8);
            memcpy(saved + 8, f->data + footer + field, 8);
            store_u64(f->data + footer + field, extremes[i]);
            store_u64(f->data + footer + 8, toc_page_checksum(f->data + footer, footer, generation));
            status_t s = fixture_read(sim, &set, 1);
            bool told =
                field == offsetof(struct toc_footer, keys) ||
                field == offsetof(struct toc_footer, key_bytes) ||
                field == offsetof(struct toc_footer, index_bytes) ||
                (field == offsetof(struct toc_footer, segments) && toc_list_bytes(extremes[i]) == 4096);
            if (!told || !status_is_ok(&s)) /* nothing in the file says otherwise */
                assert_corrupt(s);
            memcpy(f->data + footer + 8, saved, 8);
            memcpy(f->data + footer + field, saved + 8, 8);
        }
    store_u32(f->data + 16, TOC_VERSION + 1);
    store_u64(f->data + 8, toc_page_checksum(f->data, 0, 0));
    status_t s = fixture_read(sim, &set, 1);
    assert_int_equal(s.code, STATUS_UNSUPPORTED);
    assert_non_null(strstr(s.text, "newer kvasir"));
    set_free(&set);
    sim_disk_destroy(sim);
}

/* A set of several writes of 1 MiB. */
static void make_large(struct toc_set *set)
{
    struct prng p;
    prng_seed(&p, 11);
    for (unsigned i = 0; i < 100000; i++) {
        uint64_t key[2] = {prng_next(&p), prng_next(&p)};
        set_add(set, fixture_entry(slice_make((const char *)key, sizeof key), &p));
    }
    set_sort(set);
}

/* Each operation of writing a toc fails in turn: an error that names the file, no .kv, no .tmp, and the toc
 * before is untouched. */
static void test_failing_disk(void **state)
{
    (void)state;
    struct toc_set set = {0}, before = {0};
    make_large(&set);
    make_small(&before);
    struct sim_disk *sim = sim_disk_create(1);
    assert_ok(fixture_publish(sim, &before, 1, 3));
    unsigned failures = 0;
    for (;; failures++) {
        sim->fail_op = SIM_ANY;
        sim->fail_after = failures + 1;
        sim->fail_errno = failures % 2 ? ENOSPC : EIO;
        status_t s = fixture_publish(sim, &set, 2, 3);
        assert_ok(fixture_read(sim, &before, 1));
        if (status_is_ok(&s))
            break;
        assert_int_equal(s.code, failures % 2 ? STATUS_NO_SPACE : STATUS_IO);
        assert_non_null(strstr(s.text, "folder/toc-0000000002.tmp"));
        assert_null(sim_disk_file(sim, "toc-0000000002.kv"));
        assert_null(sim_disk_file(sim, "toc-0000000002.tmp"));
    }
    sim->fail_after = 0;
    assert_true(failures >=
                8); /* create, at least 2 writes, list, footer, header, sync, rename, folder_sync */
    assert_ok(fixture_read(sim, &set, 2));
    set_free(&set);
    set_free(&before);
    sim_disk_destroy(sim);
}

/* The machine stops at each operation in turn: what is called toc-2.kv afterwards is whole, and if it was
 * published, it is there. A left .tmp is in nobody's way. */
static void test_crash_at_every_operation(void **state)
{
    (void)state;
    struct toc_set set = {0}, before = {0};
    make_large(&set);
    make_small(&before);
    unsigned survived = 0;
    for (unsigned seed = 0; seed < 20; seed++) {
        bool published = false;
        for (unsigned at = 1; !published; at++) {
            struct sim_disk *sim = sim_disk_create(seed * 100 + at);
            assert_ok(fixture_publish(sim, &before, 1, 3));
            sim->fail_op = SIM_ANY;
            sim->fail_after = at;
            sim->fail_errno = EIO;
            sim->fail_dies = true;
            status_t s = fixture_publish(sim, &set, 2, 3);
            published = status_is_ok(&s);
            sim_disk_crash(sim);
            assert_ok(fixture_read(sim, &before, 1));
            bool there = sim_disk_file(sim, "toc-0000000002.kv") != NULL;
            survived += there && !published;
            assert_true(there || !published);
            if (there)
                assert_ok(fixture_read(sim, &set, 2));
            else
                assert_ok(fixture_publish(sim, &set, 2, 3));
            sim_disk_destroy(sim);
        }
    }
    assert_true(survived > 0);
    set_free(&set);
    set_free(&before);
}

static void test_failing_reads(void **state)
{
    (void)state;
    struct toc_set set = {0};
    make_large(&set);
    struct sim_disk *sim = sim_disk_create(1);
    assert_ok(fixture_publish(sim, &set, 1, 3));
    unsigned failures = 0;
    for (;; failures++) {
        sim->fail_op = SIM_READ;
        sim->fail_after = failures + 1;
        sim->fail_errno = EIO;
        status_t s = fixture_read(sim, &set, 1);
        if (status_is_ok(&s))
            break;
        assert_int_equal(s.code, STATUS_IO);
        assert_non_null(strstr(s.text, "folder/toc-0000000001.kv at offset"));
    }
    assert_true(failures >= 5); /* header, footer, list, at least 2 of blocks */
    struct toc *toc;
    status_t s = toc_open(&sim->disk, 1000, "folder", 9, &toc);
    assert_int_equal(s.code, STATUS_IO);
    assert_non_null(strstr(s.text, "folder/toc-0000000009.kv"));
    set_free(&set);
    sim_disk_destroy(sim);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_byte_flipped),
        cmocka_unit_test(test_cut_and_stretched),
        cmocka_unit_test(test_blocks_that_belong_elsewhere),
        cmocka_unit_test(test_forged_blocks),
        cmocka_unit_test(test_forged_numbers),
        cmocka_unit_test(test_failing_disk),
        cmocka_unit_test(test_crash_at_every_operation),
        cmocka_unit_test(test_failing_reads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
