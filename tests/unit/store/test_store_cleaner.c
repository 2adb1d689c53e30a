/* Getting disk space back: cleaning, removal, what damage does to it, the limit on the disk. */
#include "live_weights.h"
#include "log/segment.h"
#include "store_fixture.h"

enum { KEYS = 40, VALUE_BYTES = 20000, ROUNDS = 12 };

static struct slice value_of(int key, int round)
{
    static char value[VALUE_BYTES];
    memset(value, 'a' + (key + round) % 26, sizeof value);
    snprintf(value, sizeof value, "%d of %d", key, round);
    return slice_make(value, sizeof value);
}

static struct slice key_of(char name[16], int key)
{
    return slice_make(name, (size_t)snprintf(name, 16, "key:%03d", key));
}

static void check_value(struct fixture *f, int key, int round)
{
    char name[16], *value;
    size_t len;
    assert_int_equal(get(f->sw, key_of(name, key), &value, &len), STORE_OK);
    assert_true(slice_equal(slice_make(value, len), value_of(key, round)));
    free(value);
}

static void keep(struct fixture *f)
{
    fixture_flush(f, 0);
    for (int i = 0; i < 20000 && store_keep(f->store); i++)
        fixture_flush(f, 0);
}

static void checkpoint(struct fixture *f)
{
    by_hand_checkpoint(f->store, f->config.disk, fixture_write);
    keep(f);
}

/* Every key is written, and then all but each fourth again and again: so each segment keeps something. */
static void fill(struct fixture *f)
{
    char name[16];
    for (int round = 0; round < ROUNDS; round++)
        for (int key = 0; key < KEYS; key++)
            if (key % 4 || key % ROUNDS == round)
                put_surely(f, key_of(name, key), value_of(key, round));
}

static int newest_round(int key)
{
    return key % 4 ? ROUNDS - 1 : key % ROUNDS;
}

static void check_all(struct fixture *f)
{
    for (int key = 0; key < KEYS; key++)
        check_value(f, key, newest_round(key));
    assert_int_equal(count(f->sw), KEYS);
    assert_true(live_weights_are_exact(f->store));
}

static struct store_stats stats_of(struct fixture *f)
{
    struct store_stats stats;
    store_stats_get(f->store, &stats);
    return stats;
}

static void test_space_comes_back(void **state)
{
    struct fixture f;
    struct store_cleaner_stats cleaner;
    (void)state;
    fixture_init(&f, 1);
    fill(&f);
    uint64_t before = stats_of(&f).disk.log_bytes;
    for (int i = 0; i < 5; i++)
        checkpoint(&f);
    store_cleaner_stats_get(f.store, &cleaner);
    assert_true(cleaner.rounds > 0 && cleaner.moved > 0);
    assert_true(cleaner.removed_segments > 0);
    assert_int_equal(cleaner.failures + cleaner.damaged, 0);
    struct segments_totals after = stats_of(&f).disk;
    assert_true(after.data_segments > 0);
    assert_true(after.log_bytes + after.data_bytes < before);
    check_all(&f);
    fixture_reopen(&f); /* the log alone does not have it any more */
    check_all(&f);
    fixture_deinit(&f);
}

/* The bytes of the largest data segment. */
static uint64_t largest_data_file(struct fixture *f)
{
    uint64_t largest = 0;
    for (int i = 0; i < SIM_FILES_MAX; i++) {
        const struct sim_file *file = &f->sim->files[i];
        if (file->named && strncmp(file->name, "data-", 5) == 0 && file->size > largest)
            largest = file->size;
    }
    return largest;
}

/* With little memory a victim of many live bytes is moved in parts: no more of it is held, and written into
 * one file, than a round may move. */
static void test_large_victims_move_in_parts(void **state)
{
    enum { MORE_KEYS = 400, MEMORY = 3 << 20, LOG_SEGMENT = 4 << 20 };
    struct fixture f;
    struct store_cleaner_stats cleaner;
    char name[16];
    (void)state;
    fixture_init(&f, 1);
    f.config.memory_bytes_max = MEMORY;
    f.config.log_segment_bytes_first = f.config.log_segment_bytes_max = LOG_SEGMENT;
    fixture_reopen(&f);
    for (int round = 0; round < 2; round++)
        for (int key = 0; key < MORE_KEYS; key++)
            if (round == 0 || key % 2)
                put_surely(&f, key_of(name, key), value_of(key, round));
    uint64_t most = cleaner_round_bytes(f.store), largest = 0;
    assert_true(most < LOG_SEGMENT / 8);
    for (int i = 0; i < 5; i++) {
        checkpoint(&f);
        largest = largest_data_file(&f) > largest ? largest_data_file(&f) : largest;
    }
    store_cleaner_stats_get(f.store, &cleaner);
    assert_in_range(largest, most / 2 - VALUE_BYTES - LOG_BLOCK_BYTES, most + most / 8 + 2 * VALUE_BYTES);
    assert_true(cleaner.segments > 0 && cleaner.moved > MORE_KEYS / 8);
    assert_true(cleaner.copied_bytes > cleaner.rounds * most * 2); /* several parts each */
    assert_true(cleaner.removed_segments > 0);
    assert_int_equal(cleaner.failures + cleaner.damaged, 0);
    for (int key = 0; key < MORE_KEYS; key++)
        check_value(&f, key, key % 2);
    assert_true(live_weights_are_exact(f.store));
    fixture_reopen(&f);
    for (int key = 0; key < MORE_KEYS; key++)
        check_value(&f, key, key % 2);
    fixture_deinit(&f);
}

static bool note_failure(void *context, struct segment_file *file)
{
    *(unsigned *)context += file->clean_failures;
    return true;
}

/* Where a part is full in the middle of what is looked at together, the next one goes on there: nothing that
 * is live stays behind in a victim. */
static void test_parts_leave_nothing_behind(void **state)
{
    enum { MORE_KEYS = 3000, MEMORY = 4 << 20, LOG_SEGMENT = 4 << 20, SMALL = 900 };
    struct fixture f;
    struct store_cleaner_stats cleaner;
    char name[16];
    unsigned failures = 0;
    (void)state;
    fixture_init(&f, 1);
    f.config.memory_bytes_max = MEMORY;
    f.config.log_segment_bytes_first = f.config.log_segment_bytes_max = LOG_SEGMENT;
    fixture_reopen(&f);
    for (int round = 0; round < 3; round++) {
        for (int key = 0; key < MORE_KEYS; key++) {
            struct slice value = value_of(key, round);
            value.len = SMALL - (size_t)(key % 37);
            if (round == 0 || key % 3 == 0)
                put_surely(&f, key_of(name, key), value);
        }
        for (int i = 0; i < 3; i++)
            checkpoint(&f);
    }
    store_cleaner_stats_get(f.store, &cleaner);
    segments_each(f.store->segments, note_failure, &failures);
    assert_int_equal(failures, 0);
    assert_true(cleaner.rounds > 1 && cleaner.moved > MORE_KEYS / 3);
    assert_int_equal(cleaner.failures + cleaner.damaged, 0);
    assert_int_equal(count(f.sw), MORE_KEYS);
    assert_true(live_weights_are_exact(f.store));
    fixture_deinit(&f);
}

enum holder { NOBODY, A_LOCK, A_WRITE, HOLDERS };

/* Steps of the keeper while the key's lock is held, or its node is being written. */
static void keep_while_held(struct fixture *f, enum holder holder, struct slice key)
{
    enum { STEPS = 2000 };
    struct store_entry entry;
    store_turn_begin(f->sw);
    store_key_prepare(f->sw, &entry.key, key);
    struct node *node = hash_table_find(&f->store->hash, entry.key.hash, key);
    assert_non_null(node);
    uint64_t sequence = atomic_load(&node->sequence);
    assert_int_equal(store_write_begin(f->sw, &entry, 1, 0), STORE_OK);
    if (holder == A_WRITE)
        node_begin(node);
    for (int i = 0; i < STEPS; i++)
        (void)store_keep(f->store);
    atomic_store(&node->sequence, sequence);
    store_write_abort(f->sw);
    store_turn_end(f->sw);
}

/* A key cannot be had in the middle of what is looked at together, or moved: the cleaner waits for it and
 * goes on there. Nothing is left out, nothing taken twice. */
static void test_a_held_key_is_waited_for(void **state)
{
    uint64_t moved[HOLDERS], copied[HOLDERS];
    (void)state;
    for (enum holder holder = NOBODY; holder < HOLDERS; holder++) {
        struct fixture f;
        struct store_cleaner_stats cleaner;
        char name[16];
        fixture_init(&f, 1);
        for (int round = 0; round < ROUNDS; round++)
            for (int key = 0; key < KEYS; key++)
                if (round == 0 || key % 2) /* every second record of the first ones stays live */
                    put_surely(&f, key_of(name, key), value_of(key, round));
        by_hand_checkpoint(f.store, f.config.disk, fixture_write);
        if (holder != NOBODY) {
            keep_while_held(&f, holder, key_of(name, 10));
            store_cleaner_stats_get(f.store, &cleaner);
            assert_true(cleaner.running && cleaner.moved < moved[NOBODY]);
        }
        keep(&f);
        store_cleaner_stats_get(f.store, &cleaner);
        assert_int_equal(cleaner.failures + cleaner.damaged, 0);
        moved[holder] = cleaner.moved;
        copied[holder] = cleaner.copied_bytes;
        assert_int_equal(moved[holder], moved[NOBODY]);
        assert_int_equal(copied[holder], copied[NOBODY]);
        assert_true(live_weights_are_exact(f.store));
        fixture_reopen(&f);
        for (int key = 0; key < KEYS; key++)
            check_value(&f, key, key % 2 ? ROUNDS - 1 : 0);
        fixture_deinit(&f);
    }
}

/* f->sim is set. */
static void open_limited(struct fixture *f, uint64_t limit)
{
    f->config = (struct store_config){.disk = &f->sim->disk,
                                      .path = "sim",
                                      .workers = 1,
                                      .log_segment_bytes_first = 1 << 20,
                                      .log_segment_bytes_max = 2 << 20,
                                      .disk_limit_bytes = limit,
                                      .no_threads = true};
    fixture_open(f);
    keep(f);
}

/* Near the limit, where cleaning goes on and on, its files are full and all of one size: a round is filled up
 * with a part of a victim, and the next one goes on there. */
static void test_files_are_full(void **state)
{
    enum { LIMIT = 24 << 20, PUTS = 5000 };
    struct fixture f = {.sim = sim_disk_create(1)};
    struct store_cleaner_stats cleaner;
    char name[16];
    unsigned lefts = 0, full = 0, others = 0;
    (void)state;
    open_limited(&f, LIMIT);
    int keys = LIMIT * 6 / 10 / VALUE_BYTES;
    for (int i = 0; i < PUTS; i++) {
        uint32_t key = i < keys ? (uint32_t)i : (uint32_t)((uint64_t)i * 2654435761u % (unsigned)keys);
        put_surely(&f, key_of(name, (int)key), value_of((int)key, 0));
        if (i % 16 == 0)
            keep(&f);
        const struct cleaner *c = &f.store->keeper.cleaner;
        lefts += c->left.file && cleaner_left(f.store, c->left.file);
    }
    store_cleaner_stats_get(f.store, &cleaner);
    assert_int_equal(cleaner.failures + cleaner.damaged, 0);
    for (int i = 0; i < SIM_FILES_MAX; i++) {
        const struct sim_file *file = &f.sim->files[i];
        bool data = file->named && strncmp(file->name, "data-", 5) == 0;
        bool is_full = file->size > cleaner_file_bytes(f.store) - 2 * VALUE_BYTES - LOG_BLOCK_BYTES;
        assert_true(!data || file->size <= cleaner_file_bytes(f.store));
        full += data && is_full;
        others += data && !is_full;
    }
    assert_true(cleaner.rounds > 10 && lefts > 0);
    assert_true(full > 10 * others); /* but for a value or two */
    for (int key = 0; key < keys; key++)
        check_value(&f, key, 0);
    assert_true(live_weights_are_exact(f.store));
    fixture_reopen(&f);
    for (int key = 0; key < keys; key++)
        check_value(&f, key, 0);
    fixture_deinit(&f);
}

/* A data segment that no checkpoint names is of no use, and its number means nothing. */
static void test_orphans_go(void **state)
{
    struct fixture f;
    (void)state;
    fixture_init(&f, 1);
    put_surely(&f, text("k"), text("v"));
    struct disk *disk = &f.sim->disk;
    disk->ops->close(disk, disk->ops->create(disk, f.store->keeper.folder, "data-0134217727.kv", true));
    disk->ops->close(disk, disk->ops->create(disk, f.store->keeper.folder, "data-004.kv", true));
    fixture_reopen(&f);
    keep(&f);
    assert_null(sim_disk_file(f.sim, "data-0134217727.kv"));
    assert_non_null(sim_disk_file(f.sim, "data-004.kv")); /* not one of ours */
    assert_int_equal(f.store->keeper.cleaner.next_number, 1);
    fixture_deinit(&f);
}

/* All values leave memory; the address of the key's. */
static uint64_t evict_and_find(struct fixture *f, struct slice name)
{
    struct store_view view;
    struct store_key key;
    struct prng prng;
    prng_seed(&prng, 1);
    store_turn_begin(f->sw);
    (void)cold_evict(f->sw, &prng, 256);
    store_key_prepare(f->sw, &key, name);
    assert_int_equal(store_find(f->sw, &key, &view), STORE_COLD);
    store_turn_end(f->sw);
    return view.address;
}

/* One live record of a victim is damaged: the file stays, the rest moves, and that is the end of it. */
static void test_damage_keeps_a_victim(void **state)
{
    struct fixture f;
    struct store_cleaner_stats cleaner;
    char name[SEGMENT_NAME_BYTES], *value;
    size_t len;
    (void)state;
    fixture_init(&f, 1);
    fill(&f);
    uint64_t address = evict_and_find(&f, text("key:004"));
    segment_name(name, address >> LOG_SEGMENT_SHIFT);
    sim_disk_file(f.sim, name)->data[lsn_offset(address) + 100] ^= 1;
    for (int i = 0; i < 6; i++)
        checkpoint(&f);
    store_cleaner_stats_get(f.store, &cleaner);
    assert_int_equal(cleaner.damaged, 1);
    assert_true(cleaner.moved > 0 && cleaner.removed_segments > 0);
    assert_non_null(sim_disk_file(f.sim, name));
    assert_int_equal(get(f.sw, text("key:004"), &value, &len), STORE_CORRUPT);
    uint64_t rounds = cleaner.rounds;
    checkpoint(&f);
    store_cleaner_stats_get(f.store, &cleaner);
    assert_int_equal(cleaner.rounds, rounds);
    assert_true(live_weights_are_exact(f.store));
    fixture_deinit(&f);
}

/* A live record lies in a batch with a damaged header: it can be read, but the file is not cleaned for ever.
 */
static void test_a_damaged_batch_keeps_a_victim(void **state)
{
    struct fixture f;
    struct store_cleaner_stats cleaner;
    char name[SEGMENT_NAME_BYTES];
    (void)state;
    fixture_init(&f, 1);
    fill(&f);
    uint64_t address = evict_and_find(&f, text("key:004"));
    segment_name(name, address >> LOG_SEGMENT_SHIFT);
    sim_disk_file(f.sim, name)->data[lsn_offset(address) / LOG_BLOCK_BYTES * LOG_BLOCK_BYTES + 8] ^= 1;
    for (int i = 0; i < 6; i++)
        checkpoint(&f);
    store_cleaner_stats_get(f.store, &cleaner);
    assert_int_equal(cleaner.damaged, 1);
    assert_true(cleaner.moved > 0 && cleaner.removed_segments > 0);
    uint64_t rounds = cleaner.rounds;
    checkpoint(&f);
    store_cleaner_stats_get(f.store, &cleaner);
    assert_int_equal(cleaner.rounds, rounds);
    check_all(&f);
    fixture_deinit(&f);
}

/* Each checkpoint that failed is told of, also when the next has failed before anybody asked. */
static void test_every_failure_is_told(void **state)
{
    struct fixture f;
    uint64_t tickets[3];
    (void)state;
    fixture_init(&f, 1);
    put_surely(&f, text("k"), text("v"));
    for (unsigned i = 0; i < 3; i++) {
        f.sim->fail_op = SIM_CREATE;
        f.sim->fail_after = i < 2;
        f.sim->fail_errno = ENOSPC;
        tickets[i] = store_checkpoint_request(f.store);
        keep(&f);
        assert_int_equal(store_checkpoint_state(f.store, tickets[0]), STORE_CHECKPOINT_FAILED);
    }
    assert_int_equal(store_checkpoint_state(f.store, tickets[2]), STORE_CHECKPOINT_DONE);
    fixture_deinit(&f);
}

static void test_failures_lose_nothing(void **state)
{
    static const enum sim_op ops[] = {SIM_CREATE, SIM_ALLOCATE, SIM_WRITE, SIM_TRUNCATE, SIM_SYNC, SIM_READ};
    struct store_cleaner_stats cleaner;
    uint64_t failures = 0;
    (void)state;
    for (size_t op = 0; op < sizeof ops / sizeof ops[0]; op++) {
        for (uint64_t after = 1; after <= 6; after++) {
            struct fixture f;
            fixture_init(&f, 1);
            fill(&f);
            for (int i = 0; i < 2; i++) {
                uint64_t ticket = store_checkpoint_request(f.store);
                while (store_checkpoint_state(f.store, ticket) == STORE_CHECKPOINT_RUNNING) {
                    fixture_flush(&f, 0);
                    assert_true(store_keep(f.store));
                }
            }
            f.sim->fail_op = ops[op];
            f.sim->fail_after = (after + 1) / 2;
            f.sim->fail_errno = after % 2 ? ENOSPC : EIO;
            for (int i = 0; i < 20000 && store_keep(f.store) && f.sim->fail_after; i++)
                ;
            f.sim->fail_after = 0;
            store_cleaner_stats_get(f.store, &cleaner);
            failures += cleaner.failures;
            check_all(&f);
            put_surely(&f, text("further"), text("write")); /* writes and deletes go on */
            assert_int_equal(put(f.sw, text("further"), (struct slice){0}, 0), STORE_OK);
            for (int i = 0; i < 3; i++)
                checkpoint(&f);
            check_all(&f);
            fixture_reopen(&f);
            check_all(&f);
            fixture_deinit(&f);
        }
    }
    assert_true(failures > 12);
}

/* Each operation of a checkpoint fails in turn, for good while it is under way: it is given up and says so,
 * the one before stays and is good for a start, reads, writes and deletes go on, and the next one succeeds.
 */
static void test_failing_checkpoints(void **state)
{
    static const enum sim_op ops[] = {SIM_CREATE, SIM_ALLOCATE, SIM_WRITE, SIM_SYNC, SIM_RENAME};
    struct store_checkpoint_stats stats;
    unsigned failures = 0;
    (void)state;
    for (size_t op = 0; op < sizeof ops / sizeof ops[0]; op++) {
        for (int full = 0; full < 2; full++) {
            struct fixture f;
            fixture_init(&f, 1);
            put_surely(&f, text("old"), text("value"));
            checkpoint(&f);
            put_surely(&f, text("new"), text("value"));
            fixture_flush(&f, 0);
            uint64_t ticket = store_checkpoint_request(f.store);
            f.sim->fail_op = ops[op];
            f.sim->fail_after = 1;
            f.sim->fail_errno = full ? ENOSPC : EIO;
            for (int i = 0; i < 1000 && store_checkpoint_state(f.store, ticket) == STORE_CHECKPOINT_RUNNING;
                 i++)
                (void)store_keep(f.store);
            bool reached = f.sim->fail_after == 0;
            f.sim->fail_after = 0;
            assert_int_equal(store_checkpoint_state(f.store, ticket),
                             reached ? STORE_CHECKPOINT_FAILED : STORE_CHECKPOINT_DONE);
            store_checkpoint_stats_get(f.store, &stats);
            assert_int_equal(stats.failures, reached);
            assert_int_equal(stats.number, reached ? 1 : 2);
            assert_int_equal(stats.error[0] != '\0', reached);
            assert_non_null(sim_disk_file(f.sim, "toc-0000000001.kv"));
            assert_null(sim_disk_file(f.sim, "toc-0000000002.tmp"));
            failures += reached;
            assert_value(f.sw, "old", "value");
            put_surely(&f, text("further"), text("write"));
            assert_int_equal(put(f.sw, text("old"), (struct slice){0}, 0), STORE_OK);
            fixture_reopen(&f); /* from the one before */
            assert_value(f.sw, "new", "value");
            checkpoint(&f);
            fixture_reopen(&f);
            assert_value(f.sw, "further", "write");
            assert_absent(f.sw, "old");
            fixture_deinit(&f);
        }
    }
    assert_true(failures >= 8);
}

static void assert_within_limit(struct fixture *f)
{
    struct segments_totals disk = stats_of(f).disk;
    uint64_t limit = f->config.disk_limit_bytes;
    assert_true(limit == 0 || disk.log_bytes + disk.data_bytes + disk.spare_bytes <= limit);
}

/* Stores the value under one key after the other until the disk is full, and overwrites some of them so many
 * times for each. Returns how many there are. */
static int fill_up(struct fixture *f, struct slice value, int overwrites)
{
    char name[16];
    int stored = 0;
    enum store_result r = STORE_OK;
    for (int tries = 0; r != STORE_NO_SPACE && tries < 1000000; tries++) {
        r = put(f->sw, key_of(name, stored), value, 0);
        stored += r == STORE_OK;
        if (r != STORE_OK || tries % 1000 == 0)
            keep(f);
        assert_within_limit(f);
        for (int i = 0; r == STORE_OK && i < overwrites; i++)
            (void)put(f->sw, key_of(name, (stored * 7 + i) % stored), value, 0);
    }
    assert_int_equal(r, STORE_NO_SPACE);
    return stored;
}

/* Within a limit writes are refused before it is passed, deletes are not, and room that comes free is used.
 */
static void test_disk_limit(void **state)
{
    enum { LIMIT = 24 << 20 };
    struct fixture f = {.sim = sim_disk_create(1)};
    char name[16];
    (void)state;
    open_limited(&f, LIMIT);
    int stored = fill_up(&f, value_of(0, 0), 0);
    assert_in_range(stored, LIMIT / 2 / VALUE_BYTES, LIMIT / VALUE_BYTES); /* all of it is live */
    for (int key = 0; key < stored; key++)
        if (key % 3)
            assert_int_equal(put(f.sw, key_of(name, key), (struct slice){0}, 0), STORE_OK);
    store_turn_begin(f.sw);
    fixture_flush(&f, 0);
    while (store_background(f.sw, 100, NULL))
        ;
    store_turn_end(f.sw);
    keep(&f); /* it asks for checkpoints itself */
    keep(&f);
    for (int key = 0; key < stored / 3; key++) {
        put_surely(&f, key_of(name, 2000 + key), value_of(2000 + key, 1));
        keep(&f);
        assert_within_limit(&f);
    }
    fixture_reopen(&f);
    for (int key = 0; key < stored / 3; key++)
        check_value(&f, 2000 + key, 1);
    fixture_deinit(&f);
}

/* A full folder of small values: each delete is a block of the log and frees hardly anything, but all of them
 * must go through, in room that checkpoints give back. */
static void test_deletes_go_on_when_it_is_full(void **state)
{
    enum { LIMIT = 16 << 20, DELETES = 6000 };
    struct fixture f = {.sim = sim_disk_create(1)};
    char name[16];
    (void)state;
    open_limited(&f, LIMIT);
    int stored = fill_up(&f, text("a value of some thirty bytes or so"), 0);
    assert_in_range(stored, DELETES, 1000000);
    for (int key = 0; key < DELETES; key++) {
        enum store_result r = STORE_BUSY;
        for (int turns = 0; r == STORE_BUSY && turns < 4; turns++) {
            r = put(f.sw, key_of(name, key), (struct slice){0}, 0);
            keep(&f);
        }
        assert_int_equal(r, STORE_OK);
        assert_within_limit(&f);
    }
    assert_int_equal(count(f.sw), stored - DELETES);
    fixture_reopen(&f);
    assert_int_equal(count(f.sw), stored - DELETES);
    fixture_deinit(&f);
}

/* As a worker does it, while the keeper is at work. */
static enum store_result put_with_keeper(struct fixture *f, int key, struct slice value)
{
    char name[16];
    enum store_result r = STORE_BUSY;
    for (int turns = 0; r != STORE_OK && turns < 8; turns++) {
        r = put(f->sw, key_of(name, key), value, 0);
        if (r != STORE_OK || key % 100 == 0)
            keep(f);
    }
    return r;
}

/* When there is nothing to be won: small files are not copied again and again. */
static void assert_cleaning_ends(struct fixture *f)
{
    struct store_cleaner_stats before = {0}, after;
    for (int i = 0;; i++) {
        keep(f);
        store_cleaner_stats_get(f->store, &after);
        if (after.rounds == before.rounds)
            return;
        before = after;
        assert_true(i < 100);
    }
}

/* A small disk without a limit is filled with values of one size, some of them overwritten all the while, and
 * then most are deleted. Nobody else uses it: so each checkpoint finds its room whatever log and cleaner
 * take, deletes go through, and in the end new values find room. */
static void fill_a_small_disk(size_t bytes, uint64_t capacity)
{
    struct fixture f = {.sim = sim_disk_create(1)};
    struct store_checkpoint_stats stats;
    static const char content[VALUE_BYTES];
    struct slice value = slice_make(content, bytes);
    f.sim->capacity = capacity;
    open_limited(&f, 0);
    int stored = fill_up(&f, value, 2);
    assert_cleaning_ends(&f);
    for (int key = 0; key < stored; key++)
        if (key % 4)
            assert_int_equal(put_with_keeper(&f, key, (struct slice){0}), STORE_OK);
    background(&f);
    for (int key = stored; key < stored + stored / 4; key++)
        assert_int_equal(put_with_keeper(&f, key, value), STORE_OK);
    store_checkpoint_stats_get(f.store, &stats);
    assert_int_equal(stats.failures, 0);
    uint64_t keys = count(f.sw);
    fixture_reopen(&f);
    assert_int_equal(count(f.sw), keys);
    fixture_deinit(&f);
}

static void test_a_small_disk_does_not_get_stuck(void **state)
{
    static const struct {
        size_t bytes;
        uint64_t capacity;
    } disks[] = {{30, 24 << 20}, {VALUE_BYTES, 40 << 20}};
    (void)state;
#ifdef __SANITIZE_THREAD__
    size_t first = 1; /* so many small values take minutes there */
#else
    size_t first = 0;
#endif
    for (size_t i = first; i < sizeof disks / sizeof disks[0]; i++)
        fill_a_small_disk(disks[i].bytes, disks[i].capacity);
}

/* What one has been given, and has not made a file of yet, nobody else gets: log and keeper are two threads.
 */
static void test_room_is_given_once(void **state)
{
    enum { CAPACITY = 32 << 20 };
    struct fixture f = {.sim = sim_disk_create(1)};
    (void)state;
    f.sim->capacity = CAPACITY;
    open_limited(&f, 0);
    put_surely(&f, text("k"), text("v"));
    checkpoint(&f);
    uint64_t bytes = space_for_rounds(f.store);
    assert_in_range(bytes, CAPACITY / 2, CAPACITY);
    assert_true(space_may_allocate(f.store->replay, bytes / 2, false));
    assert_int_equal(space_for_rounds(f.store), bytes - bytes / 2);
    assert_false(space_take(f.store, bytes / 2 + 2)); /* the disk has as much */
    assert_true(space_take(f.store, bytes / 4));
    assert_false(space_may_allocate(f.store->replay, bytes / 2, true));
    space_allocated(f.store->replay, bytes / 2); /* not made */
    assert_true(space_may_allocate(f.store->replay, bytes / 2, true));
    space_allocated(f.store->replay, bytes / 2);
    space_release(f.store, bytes / 4);
    assert_int_equal(space_for_rounds(f.store), bytes);
    assert_true(space_take(f.store, bytes));
    assert_false(space_take(f.store, 1)); /* that is the next checkpoint's */
    space_release(f.store, bytes);
    fixture_deinit(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_space_comes_back),
        cmocka_unit_test(test_large_victims_move_in_parts),
        cmocka_unit_test(test_parts_leave_nothing_behind),
        cmocka_unit_test(test_a_held_key_is_waited_for),
        cmocka_unit_test(test_orphans_go),
        cmocka_unit_test(test_a_small_disk_does_not_get_stuck),
        cmocka_unit_test(test_room_is_given_once),
        cmocka_unit_test(test_damage_keeps_a_victim),
        cmocka_unit_test(test_failures_lose_nothing),
        cmocka_unit_test(test_failing_checkpoints),
        cmocka_unit_test(test_disk_limit),
        cmocka_unit_test(test_files_are_full),
        cmocka_unit_test(test_a_damaged_batch_keeps_a_victim),
        cmocka_unit_test(test_every_failure_is_told),
        cmocka_unit_test(test_deletes_go_on_when_it_is_full),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
