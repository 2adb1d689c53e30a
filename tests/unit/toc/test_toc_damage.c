/* Damaged, cut and forged tocs, and a disk that fails: a clear error or the same entries, never anything
 * else. */
#include <errno.h>

#include "part.h"
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

/* Checkpoint 1 of the small set on a disk of its own. */
struct small {
    struct sim_disk *sim;
    struct toc_set set;
    struct sim_file *f;
    uint64_t generation;
};

static struct small small_create(void)
{
    struct small t = {.sim = sim_disk_create(1)};
    make_small(&t.set); /* blocks: entries, long, rest, entries */
    assert_ok(fixture_publish(t.sim, &t.set, 1, 3));
    t.f = sim_disk_file(t.sim, "toc-0000000001.kv");
    t.generation = load_u64(t.f->data + offsetof(struct toc_header, generation));
    return t;
}

static void small_destroy(struct small *t)
{
    set_free(&t->set);
    sim_disk_destroy(t->sim);
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
    for (uint64_t i = 0; i < f->size; i += step * PART) {
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
    struct small t = small_create();
    struct sim_disk *sim = t.sim;
    struct sim_file *f = t.f;
    uint64_t size = f->size;
    sim_disk_resize(f, size + 4096);
    assert_corrupt(fixture_read(sim, &t.set, 1));
    for (uint64_t cut = 1; cut <= size; cut += cut < 5000 ? PART : 1021) {
        sim_disk_resize(f, size - cut);
        assert_corrupt(fixture_read(sim, &t.set, 1));
    }
    small_destroy(&t);
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
    struct small t = small_create();
    struct prng p;
    prng_seed(&p, 9);
    struct sim_disk *sim = t.sim;
    struct sim_file *f = t.f;
    uint64_t generation = t.generation;
    unsigned good = 0, bad = 0;
    static char saved[TOC_BLOCK_BYTES];
    for (unsigned i = 0; i < 20000 / PART; i++) {
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
    assert_ok(fixture_read(sim, &t.set, 1));
    small_destroy(&t);
}

/* Puts a block with right checksums, of entries at the end of which lies what is given, into the toc; what
 * stands before it is one entry with a long key, so that these are the last bytes of the block. */
static void forge(struct sim_file *f, uint64_t block, enum toc_block_kind kind, struct slice bytes)
{
    char *data = f->data + toc_block_offset(block), *p = data + TOC_BLOCK_HEADER_BYTES;
    uint32_t filler = TOC_PAYLOAD_BYTES - (uint32_t)bytes.len;
    struct toc_block_header h = {
        .magic = TOC_BLOCK_MAGIC, .kind = kind, .count = 2, .bytes = TOC_PAYLOAD_BYTES};
    memcpy(data, &h, sizeof h);
    memset(p, 'm', filler);
    p = toc_put_varint(toc_put_varint(p, 0),
                       filler - 7); /* with shared 1, rest 3, version 1, flags 1, length 1 */
    memset(data + TOC_BLOCK_HEADER_BYTES + filler - 3, 0, 3);
    memcpy(data + TOC_BLOCK_HEADER_BYTES + filler, bytes.data, bytes.len);
    seal_block(f, block, load_u64(f->data + offsetof(struct toc_header, generation)));
}

static status_t read_block_alone(struct sim_disk *sim, uint64_t block)
{
    struct toc *toc;
    TRY(toc_open(&sim->disk, 1000, "folder", 1, &toc));
    struct fixture_reading r = {0};
    status_t s = toc_read_blocks(toc, block, 1, fixture_each, &r);
    assert_false(r.wrong);
    free(r.last);
    toc_close(toc);
    return s;
}

/* Every rule of an entry broken on its own, at the very end of the buffer. The key before is "mm..m", of at
 * least 60000. */
static void test_forged_entries(void **state)
{
    (void)state;
    static const struct {
        struct slice bytes;
        bool good;
    } cases[] = {
        {SLICE_LITERAL("\x00\x01n\x00\x00\x00"), true},
        {SLICE_LITERAL("\x02\x01n\x00\x00\x00"), true},
        {SLICE_LITERAL("\x00\x01n\x00\x01"
                       "12345678"
                       "\x00"),
         true},
        {SLICE_LITERAL("\x00\x01n\x00\x02\x00"
                       "12345678"),
         true},
        {SLICE_LITERAL("\x00\x01n\x00\x00\xff\xff\xff\xff\x0f"), true},
        {SLICE_LITERAL("\x00\x01l\x00\x00\x00"), false},  /* descends */
        {SLICE_LITERAL("\x01\x01m\x00\x00\x00"), false},  /* descends: a prefix of the one before */
        {SLICE_LITERAL("\x00\x02mn\x00\x00\x00"), false}, /* shares less than it could */
        {SLICE_LITERAL("\x01\x00\x7e\x00\x00"), false},   /* a prefix of the one before, nothing further */
        {SLICE_LITERAL("\xff\xff\x03\x01n\x00\x00\x00"), false}, /* shares more than there is */
        {SLICE_LITERAL("\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x01n\x00\x00\x00"), false},
        {SLICE_LITERAL("\x00\x80\x10n\x00\x00\x00"), false}, /* further bytes behind the buffer */
        {SLICE_LITERAL("\x00\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01n"), false},
        {SLICE_LITERAL("\x00\x01n\x00\x04\x00"), false},                 /* a flag that there is not */
        {SLICE_LITERAL("\x00\x01n\x00\x00\x80\x80\x80\x80\x10"), false}, /* value length 2^32 */
        {SLICE_LITERAL("\x00\x01n\x00\x01"
                       "1234567"),
         false}, /* the address is cut */
        {SLICE_LITERAL("\x00\x01n\x00\x02\x00"
                       "1234567"),
         false},                                             /* the expiry is cut */
        {SLICE_LITERAL("\x00\x01n\x80"), false},             /* the version is cut */
        {SLICE_LITERAL("\x00\x01n\x00"), false},             /* no flags */
        {SLICE_LITERAL("\x00\x01n\x00\x00"), false},         /* no value length */
        {SLICE_LITERAL("\x00\x01n\x00\x00\x00\x00"), false}, /* more bytes than entries */
        {SLICE_LITERAL("\x00"), false},                      /* fewer */
        {SLICE_LITERAL(""), false},
    };
    struct small t = small_create();
    struct sim_disk *sim = t.sim;
    struct sim_file *f = t.f;
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        forge(f, 3, TOC_BLOCK_ENTRIES, cases[i].bytes);
        if (cases[i].good)
            assert_ok(read_block_alone(sim, 3));
        else
            assert_corrupt(read_block_alone(sim, 3));
    }
    small_destroy(&t);
}

/* Two blocks for a long entry that do not belong together, or hold more than a key may have. */
static void test_forged_long_entries(void **state)
{
    (void)state;
    struct small t = small_create();
    struct sim_disk *sim = t.sim;
    struct sim_file *f = t.f;
    uint64_t generation = t.generation;
    static const struct {
        uint64_t block;
        enum toc_block_kind kind;
        bool alone_good; /* read as a range of its own */
    } kinds[] = {{0, TOC_BLOCK_REST, false},        {0, TOC_BLOCK_LONG, false}, {1, TOC_BLOCK_REST, true},
                 {2, TOC_BLOCK_LONG, false},        {3, TOC_BLOCK_REST, true},  {3, TOC_BLOCK_LONG, false},
                 {3, (enum toc_block_kind)3, false}};
    for (unsigned i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        char *kind = f->data + toc_block_offset(kinds[i].block) + offsetof(struct toc_block_header, kind);
        uint32_t saved = load_u32(kind);
        store_u32(kind, kinds[i].kind);
        seal_block(f, kinds[i].block, generation);
        assert_corrupt(fixture_read(sim, NULL, 1));
        if (kinds[i].alone_good)
            assert_ok(read_block_alone(sim, kinds[i].block));
        else
            assert_corrupt(read_block_alone(sim, kinds[i].block));
        store_u32(kind, saved);
        seal_block(f, kinds[i].block, generation);
    }
    char *first = f->data + toc_block_offset(1), *rest = f->data + toc_block_offset(2);
    store_u32(first + offsetof(struct toc_block_header, bytes), TOC_PAYLOAD_BYTES - 1);
    seal_block(f, 1, generation);
    assert_corrupt(read_block_alone(sim, 1)); /* long, but not full */
    store_u32(first + offsetof(struct toc_block_header, bytes), TOC_PAYLOAD_BYTES);
    for (uint32_t more = 0; more <= 40000; more += more ? 39999 : 1) { /* a key of 65536 and more bytes */
        memset(rest + TOC_BLOCK_HEADER_BYTES, 0, TOC_PAYLOAD_BYTES);
        toc_put_varint(first + TOC_BLOCK_HEADER_BYTES + 1, RECORD_KEY_BYTES_MAX + more);
        store_u32(rest + offsetof(struct toc_block_header, bytes),
                  4 + RECORD_KEY_BYTES_MAX + more - TOC_PAYLOAD_BYTES + 3);
        seal_block(f, 1, generation);
        seal_block(f, 2, generation);
        if (more)
            assert_corrupt(read_block_alone(sim, 1));
        else
            assert_ok(read_block_alone(sim, 1));
    }
    small_destroy(&t);
}

/* Forged header and footer: each number in turn is extreme, checksums right. */
static void test_forged_numbers(void **state)
{
    (void)state;
    struct small t = small_create();
    struct sim_disk *sim = t.sim;
    struct sim_file *f = t.f;
    uint64_t generation = t.generation, footer = f->size - 4096;
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
            status_t s = fixture_read(sim, &t.set, 1);
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
    static const struct {
        uint64_t offset, value; /* of 8 bytes of the header */
    } headers[] = {{16, 1ull | 4096ull << 32},
                   {16, 0ull | 65536ull << 32},
                   {offsetof(struct toc_header, number), 2},
                   {offsetof(struct toc_header, end_lsn), FIXTURE_START_LSN - 1},
                   {offsetof(struct toc_header, generation), 1}};
    for (unsigned i = 0; i < sizeof headers / sizeof headers[0]; i++) {
        uint64_t saved = load_u64(f->data + headers[i].offset);
        store_u64(f->data + headers[i].offset, headers[i].value);
        store_u64(f->data + 8, toc_page_checksum(f->data, 0, 0));
        assert_corrupt(fixture_read(sim, &t.set, 1));
        store_u64(f->data + headers[i].offset, saved);
    }
    char *list = f->data + toc_block_offset(4);
    store_u32(list + sizeof(struct toc_segment), 2); /* no such kind */
    store_u64(f->data + footer + offsetof(struct toc_footer, list_checksum),
              toc_list_checksum(list, 4096, toc_block_offset(4), generation));
    store_u64(f->data + footer + 8, toc_page_checksum(f->data + footer, footer, generation));
    store_u64(f->data + 8, toc_page_checksum(f->data, 0, 0));
    assert_corrupt(fixture_read(sim, &t.set, 1));
    store_u32(f->data + 16, TOC_VERSION + 1);
    store_u64(f->data + 8, toc_page_checksum(f->data, 0, 0));
    status_t s = fixture_read(sim, &t.set, 1);
    assert_int_equal(s.code, STATUS_UNSUPPORTED);
    assert_non_null(strstr(s.text, "newer kvasir"));
    small_destroy(&t);
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
    enum { SEEDS = 20 / PART };
    (void)state;
    struct toc_set set = {0}, before = {0};
    make_large(&set);
    make_small(&before);
    unsigned survived = 0;
    for (unsigned seed = 0; seed < SEEDS; seed++) {
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
    assert_true(survived > 0 || SEEDS == 1);
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
        cmocka_unit_test(test_forged_entries),
        cmocka_unit_test(test_forged_long_entries),
        cmocka_unit_test(test_forged_numbers),
        cmocka_unit_test(test_failing_disk),
        cmocka_unit_test(test_crash_at_every_operation),
        cmocka_unit_test(test_failing_reads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
