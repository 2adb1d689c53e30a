/* What a start tells of its progress: once from 0 to 100%, over checkpoint and log. */
#include "store_fixture.h"
#include "toc/toc_format.h"

enum { OLD = 40000, NEW = 3000 };

struct told {
    unsigned times;
    uint64_t done_first, done, total, keys;
};

static void on_progress(void *context, uint64_t done_bytes, uint64_t total_bytes, uint64_t keys)
{
    struct told *t = context;
    assert_true(done_bytes >= t->done && done_bytes <= total_bytes && keys >= t->keys);
    if (t->times++ == 0) {
        t->done_first = done_bytes;
        t->total = total_bytes;
    }
    assert_int_equal(total_bytes, t->total);
    t->done = done_bytes;
    t->keys = keys;
}

static void put_many(struct fixture *f, unsigned first, unsigned end)
{
    char name[64];
    for (unsigned i = first; i < end; i++) {
        size_t len = (size_t)snprintf(name, sizeof name, "%08x-a key that takes room in a checkpoint",
                                      i * 2654435761u);
        enum store_result r = put(f->sw, slice_make(name, len), text("value"), 0);
        assert_int_equal(r, STORE_OK);
        if (i % 100 == 0)
            fixture_flush(f, 0);
    }
    fixture_flush(f, 0);
}

static void test_progress(void **state)
{
    (void)state;
    struct fixture f;
    struct told told = {0};
    fixture_init(&f, 1);
    put_many(&f, 0, OLD);
    by_hand_checkpoint(f.store, f.config.disk, fixture_write);
    put_many(&f, OLD, OLD + NEW);
    struct store_checkpoint_stats stats;
    store_checkpoint_stats_get(f.store, &stats);
    f.config.load_progress = on_progress;
    f.config.context = &told;
    fixture_reopen(&f);
    assert_int_equal(count(f.sw), OLD + NEW);
    assert_true(told.times > 2);
    assert_true(told.done_first <= stats.bytes && stats.bytes < told.total);
    assert_int_equal(told.done, told.total);
    assert_true(told.keys > OLD && told.keys <= OLD + NEW);
    /* Without the checkpoint it is the log alone. */
    assert_int_equal(f.sim->disk.ops->remove(&f.sim->disk, 0, "toc-0000000001.kv"), 0);
    told = (struct told){0};
    fixture_reopen(&f);
    assert_int_equal(count(f.sw), OLD + NEW);
    assert_true(told.times > 2 && told.done_first < told.total / 2 && told.done > told.total / 2);
    fixture_deinit(&f);
}

static void exchange_blocks(struct sim_file *file, uint64_t block)
{
    static char a[TOC_BLOCK_BYTES], b[TOC_BLOCK_BYTES];
    uint64_t at = toc_block_offset(block), next = toc_block_offset(block + 1);
    uint64_t generation = load_u64(file->data + offsetof(struct toc_header, generation));
    memcpy(a, file->data + at, sizeof a);
    memcpy(b, file->data + next, sizeof b);
    store_u64(a, toc_block_checksum(a, next, generation));
    store_u64(b, toc_block_checksum(b, at, generation));
    memcpy(file->data + at, b, sizeof b);
    memcpy(file->data + next, a, sizeof a);
}

/* Blocks in a wrong order, with right checksums, wherever they are: the log is replayed instead. */
static void test_blocks_out_of_order(void **state)
{
    enum { KEYS = 5000, KEY_BYTES = 2000, BLOCKS = 65 };
    struct fixture f;
    char key[KEY_BYTES];
    (void)state;
    fixture_init(&f, 1);
    for (unsigned i = 0; i < KEYS; i++) {
        memset(key, 'a' + (int)(i % 23), sizeof key);
        for (unsigned digit = 0, rest = i; digit < 4; digit++, rest /= 10)
            key[3 - digit] = (char)('0' + rest % 10);
        assert_int_equal(put(f.sw, slice_make(key, sizeof key), text("v"), 0), STORE_OK);
        if (i % 50 == 0)
            fixture_flush(&f, 0);
    }
    fixture_flush(&f, 0);
    for (unsigned block = BLOCKS - 3; block < BLOCKS; block++) {
        by_hand_checkpoint(f.store, f.config.disk, fixture_write);
        struct store_checkpoint_stats stats;
        store_checkpoint_stats_get(f.store, &stats);
        char name[TOC_NAME_BYTES];
        toc_name(name, stats.number, false);
        struct sim_file *file = sim_disk_file(f.sim, name);
        assert_true(file && file->size > 2 * BLOCKS * TOC_BLOCK_BYTES);
        exchange_blocks(file, block);
        fixture_reopen(&f);
        assert_int_equal(count(f.sw), KEYS);
    }
    fixture_deinit(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_progress),
                                       cmocka_unit_test(test_blocks_out_of_order)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
