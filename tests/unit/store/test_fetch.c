/* Values on their way from disk: each is read once, whoever asks; what is damaged is told; room is kept. */
#include "store_fixture.h"

#include "base/prng.h"
#include "log/segment.h"
#include "log/segments.h"
#include "store/fetch.h"
#include "store/internal.h"

enum { VALUES = 64, NUMBER = 200, FILE_BYTES = 4 << 20, TURNS_MAX = 10000 };

struct place {
    char name[32];
    struct store_key key;
    uint64_t address;
    uint32_t len;
};

/* A file of records whose keys no store knows. */
struct bench {
    struct fixture f;
    struct store_worker *sw;
    struct segments *segments;
    int fd;
    struct place places[VALUES];
};

static char byte_of(const struct place *p, uint32_t at)
{
    return (char)(p->address / 8 * 31 + at * 7);
}

static void lay_records(struct bench *b, const uint32_t *lens, unsigned n, bool data)
{
    struct sim_disk *sim = b->f.sim;
    uint64_t at = 4096, base = (uint64_t)NUMBER << LOG_SEGMENT_SHIFT | (uint64_t)data << 63;
    char *file = calloc(1, FILE_BYTES);
    assert_non_null(file);
    for (unsigned i = 0; i < VALUES; i++) {
        struct place *p = &b->places[i];
        p->len = lens[i % n];
        p->address = base | at;
        snprintf(p->name, sizeof p->name, "key-of-%u", i);
        store_key_prepare(b->sw, &p->key, text(p->name));
        char *value = malloc(p->len + 1);
        assert_non_null(value);
        for (uint32_t j = 0; j < p->len; j++)
            value[j] = byte_of(p, j);
        enum record_type type = i % 2 ? RECORD_SET_EXPIRE : RECORD_SET;
        assert_true(at + record_bytes(type, p->key.name.len, p->len) <= FILE_BYTES);
        uint64_t hash = record_encode(file + at, type, p->key.name, slice_make(value, p->len), 77);
        record_seal(file + at, hash, p->address, 4711);
        at += record_bytes(type, p->key.name.len, p->len);
        free(value);
    }
    b->fd = sim->disk.ops->create(&sim->disk, 0, data ? "data" : "log", true);
    assert_true(b->fd >= 0);
    assert_int_equal(sim->disk.ops->write(&sim->disk, b->fd, file, FILE_BYTES, 0), FILE_BYTES);
    free(file);
    segments_add(b->segments, data, NUMBER, 4711, FILE_BYTES, b->fd);
}

static struct bench bench_open_unit(const uint32_t *lens, unsigned n, struct fetch_config config, int unit)
{
    static struct bench b;
    b = (struct bench){0};
    fixture_init(&b.f, 1);
    b.f.sim->direct_unit = unit;
    b.sw = b.f.sw;
    fetch_deinit(b.sw); /* the store's own */
    b.segments = segments_create(&b.f.sim->disk);
    lay_records(&b, lens, n, n % 2);
    config.segments = b.segments;
    fetch_init(b.sw, &config);
    store_turn_begin(b.sw);
    return b;
}

static struct bench bench_open(const uint32_t *lens, unsigned n, struct fetch_config config)
{
    return bench_open_unit(lens, n, config, 512);
}

static struct store_fetch_stats stats_of(struct bench *b)
{
    struct store_fetch_stats stats;
    store_fetch_stats_get(b->f.store, &stats);
    return stats;
}

static void next_turn(struct bench *b)
{
    store_turn_end(b->sw);
    store_turn_begin(b->sw);
}

static void bench_close(struct bench *b)
{
    store_turn_end(b->sw);
    fetch_deinit(b->sw);
    segments_destroy(b->segments);
    fixture_deinit(&b->f);
}

static enum store_result want(struct bench *b, unsigned i, struct store_waiter *w)
{
    const struct place *p = &b->places[i];
    return store_fetch_want(b->sw, &p->key, p->address, p->address + 8, p->len, w, false);
}

static enum store_result look(struct bench *b, unsigned i)
{
    const struct place *p = &b->places[i];
    const char *value = NULL;
    enum store_result r = fetch_look(b->sw, p->key.hash, p->key.name, p->address + 8, p->len, &value);
    for (uint32_t j = 0; r == STORE_OK && j < p->len; j++)
        assert_int_equal(value[j], byte_of(p, j));
    return r;
}

static int64_t perform(struct bench *b, const struct store_fetch *fetch)
{
    struct disk *disk = &b->f.sim->disk;
    assert_int_equal(fetch->offset % 512, 0);
    assert_int_equal(fetch->len % 512, 0);
    assert_int_equal((uintptr_t)fetch->buffer % 512, 0);
    return disk->ops->read(disk, fetch->fd, fetch->buffer, fetch->len, fetch->offset);
}

/* All that is wanted; returns how many reads it took. fault < 0: that happens to each. */
static unsigned read_all(struct bench *b, int64_t fault)
{
    struct store_fetch fetch;
    unsigned n = 0;
    for (; store_fetch_take(b->sw, &fetch); n++)
        store_fetch_done(b->sw, &fetch, fault < 0 ? fault : perform(b, &fetch));
    return n;
}

static const uint32_t small[] = {100, 0, 1000, 4000};

static void test_a_value_is_read_once_and_goes_with_its_turn(void **state)
{
    struct bench b = bench_open(small, 4, (struct fetch_config){0});
    struct store_waiter w = {0};
    (void)state;
    assert_int_equal(look(&b, 0), STORE_COLD);
    assert_int_equal(want(&b, 0, &w), STORE_COLD);
    assert_true(store_waiter_waits(&w));
    assert_null(store_waiter_next(b.sw));
    assert_int_equal(read_all(&b, 0), 1);
    assert_true(store_waiter_due(b.sw));
    assert_ptr_equal(store_waiter_next(b.sw), &w);
    assert_null(store_waiter_next(b.sw));
    assert_false(store_waiter_waits(&w));
    next_turn(&b);
    next_turn(&b);
    assert_int_equal(look(&b, 0), STORE_OK); /* claimed: it stays over turns */
    store_waiter_release(b.sw, &w);
    assert_int_equal(look(&b, 0), STORE_OK); /* and to the end of this one */
    next_turn(&b);
    assert_int_equal(look(&b, 0), STORE_COLD);
    struct store_fetch_stats s = stats_of(&b);
    assert_int_equal(s.preads, 1);
    assert_int_equal(s.bytes, 512);
    assert_int_equal(s.hits, 2);
    assert_int_equal(s.memory_bytes, 0);
    assert_int_equal(s.depth, 0);
    assert_int_equal(s.depth_max, 1);
    bench_close(&b);
}

static void test_every_length(void **state)
{
    static const uint32_t lens[] = {0, 1, 7, 8, 9, 470, 471, 472, 480, 512, 4000, 4096, 65535, 65536, 200001};
    struct bench b = bench_open(lens, 15, (struct fetch_config){.memory_bytes_max = 16 << 20});
    struct store_waiter w = {0};
    (void)state;
    for (unsigned i = 0; i < VALUES; i++)
        assert_int_equal(want(&b, i, &w), STORE_COLD);
    assert_int_equal(read_all(&b, 0), VALUES);
    assert_ptr_equal(store_waiter_next(b.sw), &w);
    for (unsigned i = 0; i < VALUES; i++)
        assert_int_equal(look(&b, i), STORE_OK);
    store_waiter_release(b.sw, &w);
    next_turn(&b);
    assert_int_equal(look(&b, 3), STORE_COLD);
    assert_int_equal(stats_of(&b).memory_bytes, 0);
    bench_close(&b);
}

static void test_a_disk_that_wants_whole_blocks(void **state)
{
    struct bench b = bench_open_unit(small, 4, (struct fetch_config){0}, 4096);
    struct store_waiter w = {0};
    struct store_fetch fetch;
    (void)state;
    assert_int_equal(want(&b, 3, &w), STORE_COLD);
    assert_true(store_fetch_take(b.sw, &fetch));
    assert_int_equal(fetch.len % 4096, 0);
    assert_int_equal(fetch.offset % 4096, 0);
    assert_int_equal((uintptr_t)fetch.buffer % 4096, 0);
    store_fetch_done(b.sw, &fetch, perform(&b, &fetch));
    assert_int_equal(look(&b, 3), STORE_OK);
    bench_close(&b); /* with a claim that nobody gave back */
}

static void test_many_waiters_share_one_read(void **state)
{
    struct bench b = bench_open(small, 4, (struct fetch_config){0});
    struct store_waiter w[8] = {0};
    (void)state;
    assert_int_equal(want(&b, 5, NULL), STORE_COLD); /* ahead of need */
    for (unsigned i = 0; i < 8; i++)
        assert_int_equal(want(&b, 5, &w[i]), STORE_COLD);
    assert_int_equal(want(&b, 5, &w[7]), STORE_COLD); /* named twice in one command */
    assert_int_equal(want(&b, 6, &w[3]), STORE_COLD);
    struct store_fetch first, second;
    assert_true(store_fetch_take(b.sw, &first));
    assert_true(store_fetch_take(b.sw, &second));
    assert_false(store_fetch_take(b.sw, &(struct store_fetch){0}));
    store_fetch_done(b.sw, &first, perform(&b, &first));
    for (unsigned named = 0; named < 7; named++)
        assert_ptr_not_equal(store_waiter_next(b.sw), &w[3]); /* it still waits for the other */
    assert_null(store_waiter_next(b.sw));
    store_fetch_done(b.sw, &second, perform(&b, &second));
    assert_ptr_equal(store_waiter_next(b.sw), &w[3]);
    for (unsigned i = 0; i < 8; i++) {
        next_turn(&b);
        assert_int_equal(look(&b, 5), STORE_OK);
        store_waiter_release(b.sw, &w[i]);
    }
    next_turn(&b);
    assert_int_equal(look(&b, 5), STORE_COLD);
    assert_int_equal(stats_of(&b).preads, 2);
    assert_int_equal(stats_of(&b).joined, 9);
    bench_close(&b);
}

static void flip(struct bench *b, unsigned i)
{
    char byte;
    struct disk *disk = &b->f.sim->disk;
    uint64_t offset = lsn_offset(b->places[i].address) + 20;
    assert_int_equal(disk->ops->read(disk, b->fd, &byte, 1, offset), 1);
    byte ^= 4;
    assert_int_equal(disk->ops->write(disk, b->fd, &byte, 1, offset), 1);
}

static void test_damage_is_told_and_read_again_next_time(void **state)
{
    struct bench b = bench_open(small, 4, (struct fetch_config){0});
    struct store_waiter w = {0};
    (void)state;
    flip(&b, 2);
    assert_int_equal(want(&b, 2, &w), STORE_COLD);
    assert_int_equal(want(&b, 3, &w), STORE_COLD);
    assert_int_equal(read_all(&b, 0), 2);
    assert_ptr_equal(store_waiter_next(b.sw), &w);
    assert_int_equal(look(&b, 2), STORE_CORRUPT);
    assert_int_equal(want(&b, 2, &w), STORE_CORRUPT);
    assert_int_equal(look(&b, 3), STORE_OK);
    assert_int_equal(want(&b, 3, &w), STORE_OK);
    assert_false(store_waiter_waits(&w));
    store_waiter_release(b.sw, &w);
    next_turn(&b);
    flip(&b, 2);
    assert_int_equal(want(&b, 2, &w), STORE_COLD);
    assert_int_equal(read_all(&b, 0), 1);
    assert_int_equal(look(&b, 2), STORE_OK);
    store_waiter_release(b.sw, &w);
    assert_int_equal(stats_of(&b).corrupt, 1);
    bench_close(&b);
}

static void test_what_is_not_the_record_asked_for(void **state)
{
    struct bench b = bench_open(small, 4, (struct fetch_config){0});
    struct store_waiter w = {0};
    struct place *p = b.places;
    (void)state;
    /* another key's record; another length; the middle of a record; no such file; behind the file's end */
    p[0].address = p[4].address;
    p[1].len = 3;
    p[2].address += 8;
    assert_int_equal(want(&b, 0, &w), STORE_COLD);
    assert_int_equal(want(&b, 1, &w), STORE_COLD);
    assert_int_equal(want(&b, 2, &w), STORE_COLD);
    assert_int_equal(read_all(&b, 0), 3);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(look(&b, i), STORE_CORRUPT);
    assert_ptr_equal(store_waiter_next(b.sw), &w);
    p[5].address += FILE_BYTES;
    assert_int_equal(want(&b, 5, NULL), STORE_CORRUPT);
    p[3].address += (uint64_t)1 << LOG_SEGMENT_SHIFT;
    assert_int_equal(want(&b, 3, NULL), STORE_OK);
    assert_int_equal(want(&b, 3, &w), STORE_OK); /* it may just have been moved: look again */
    assert_false(store_waiter_waits(&w));
    enum store_result r = STORE_OK;
    for (unsigned i = 0; r == STORE_OK && i < 10; i++)
        r = want(&b, 3, &w);
    assert_int_equal(r, STORE_CORRUPT);
    store_waiter_release(b.sw, &w);
    bench_close(&b);
}

static void test_errors_and_short_reads(void **state)
{
    struct bench b = bench_open(small, 4, (struct fetch_config){0});
    struct store_waiter w = {0};
    struct store_fetch fetch;
    (void)state;
    assert_int_equal(want(&b, 0, &w), STORE_COLD);
    assert_int_equal(read_all(&b, -EIO), 1);
    assert_int_equal(look(&b, 0), STORE_IO);
    for (int64_t len = 0; len < 4096; len += 512) {
        store_waiter_release(b.sw, &w);
        next_turn(&b);
        assert_int_equal(want(&b, 3, &w), STORE_COLD);
        assert_true(store_fetch_take(b.sw, &fetch));
        assert_true(len < perform(&b, &fetch));
        store_fetch_done(b.sw, &fetch, len);
        assert_int_equal(look(&b, 3), STORE_IO);
    }
    store_waiter_release(b.sw, &w);
    assert_int_equal(stats_of(&b).errors, 9);
    bench_close(&b);
}

static void test_a_waiter_may_leave_at_any_time(void **state)
{
    struct bench b = bench_open(small, 4, (struct fetch_config){0});
    struct store_waiter w = {0}, other = {0};
    struct store_fetch fetch[3];
    (void)state;
    assert_int_equal(want(&b, 0, &w), STORE_COLD);
    store_waiter_release(b.sw, &w); /* before the read was given out: it never is */
    assert_false(store_fetch_take(b.sw, &fetch[0]));
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(want(&b, i, &w), STORE_COLD);
        assert_true(store_fetch_take(b.sw, &fetch[i]));
    }
    assert_int_equal(want(&b, 1, &other), STORE_COLD);
    store_waiter_release(b.sw, &w);                  /* while they are under way */
    assert_int_equal(want(&b, 2, NULL), STORE_COLD); /* and somebody takes it over */
    for (unsigned i = 0; i < 3; i++)
        store_fetch_done(b.sw, &fetch[i], perform(&b, &fetch[i]));
    assert_int_equal(look(&b, 0), STORE_COLD);
    assert_int_equal(look(&b, 1), STORE_OK);
    assert_int_equal(look(&b, 2), STORE_OK);
    store_waiter_release(b.sw, &other); /* named, but not asked for its name */
    assert_null(store_waiter_next(b.sw));
    next_turn(&b);
    assert_int_equal(look(&b, 1), STORE_COLD);
    assert_int_equal(stats_of(&b).memory_bytes, 0);
    bench_close(&b);
}

static void test_reading_ahead(void **state)
{
    struct bench b = bench_open(small, 4, (struct fetch_config){.memory_bytes_max = 32 << 10});
    unsigned n = 0;
    (void)state;
    while (want(&b, n, NULL) == STORE_COLD)
        n++;
    assert_in_range(n, 4, 16);
    assert_int_equal(want(&b, n, NULL), STORE_BUSY);
    assert_int_equal(read_all(&b, 0), n);
    assert_int_equal(want(&b, n, NULL), STORE_BUSY); /* landed and not looked at: it keeps its room */
    next_turn(&b);
    assert_int_equal(look(&b, 3), STORE_OK);
    next_turn(&b);
    assert_int_equal(look(&b, 3), STORE_COLD); /* once is what it was read for */
    assert_int_equal(want(&b, n, NULL), STORE_COLD);
    assert_int_equal(read_all(&b, 0), 1);
    assert_int_equal(stats_of(&b).unused, 0);
    next_turn(&b);
    b.sw->now_ms += FETCH_AHEAD_MS;
    assert_int_equal(look(&b, 0), STORE_COLD); /* nobody came */
    assert_int_equal(stats_of(&b).unused, n);
    assert_int_equal(stats_of(&b).memory_bytes, 0);
    bench_close(&b);
}

static void test_io_depth_bounds_what_is_under_way(void **state)
{
    struct bench b = bench_open(small, 4, (struct fetch_config){.io_depth = 3});
    struct store_waiter w = {0};
    struct store_fetch fetch[4];
    (void)state;
    for (unsigned i = 0; i < 5; i++)
        assert_int_equal(want(&b, i, &w), STORE_COLD);
    for (unsigned i = 0; i < 3; i++)
        assert_true(store_fetch_take(b.sw, &fetch[i]));
    assert_false(store_fetch_take(b.sw, &fetch[3]));
    store_fetch_done(b.sw, &fetch[1], perform(&b, &fetch[1]));
    assert_true(store_fetch_take(b.sw, &fetch[1]));
    assert_false(store_fetch_take(b.sw, &fetch[3]));
    assert_int_equal(stats_of(&b).depth, 3);
    for (unsigned i = 0; i < 3; i++)
        store_fetch_done(b.sw, &fetch[i], perform(&b, &fetch[i]));
    assert_int_equal(read_all(&b, 0), 1);
    assert_ptr_equal(store_waiter_next(b.sw), &w);
    store_waiter_release(b.sw, &w);
    bench_close(&b);
}

static void test_one_command_may_not_have_all_memory(void **state)
{
    struct bench b = bench_open(small, 4, (struct fetch_config){.command_bytes_max = 8192});
    struct store_waiter w = {0};
    enum store_result r = STORE_COLD;
    unsigned n = 0;
    (void)state;
    for (; r == STORE_COLD; n++)
        r = want(&b, n, &w);
    assert_int_equal(r, STORE_NO_MEMORY);
    assert_in_range(n, 3, 9);
    assert_true(w.bytes <= 8192);
    store_waiter_release(b.sw, &w);
    assert_false(store_fetch_take(b.sw, &(struct store_fetch){0}));
    bench_close(&b);
}

/* Commands that want several values each, and need all at once, with room for few: all get done. */
static void crowd(uint64_t cap, bool lets_go, uint64_t least, uint64_t most)
{
    enum { COMMANDS = 12, EACH = 16 };
    struct bench b = bench_open(small, 4, (struct fetch_config){.memory_bytes_max = 64 << 10, .io_depth = 5});
    struct store_waiter w[COMMANDS] = {0};
    bool started[COMMANDS] = {0}, done[COMMANDS] = {0};
    unsigned left = COMMANDS, turns = 0;
    uint64_t memory_max = 0;
    atomic_store(&b.f.store->memory_bytes_max, cap);
    for (; left; turns++) {
        struct store_waiter *named = store_waiter_next(b.sw);
        assert_true(turns < TURNS_MAX);
        for (unsigned c = 0; c < COMMANDS; c++) {
            if (done[c] || (started[c] && named != &w[c]))
                continue;
            bool cold = false;
            started[c] = true;
            for (unsigned i = 0; i < EACH; i++) {
                unsigned value = (c * 5 + i) % VALUES;
                if (look(&b, value) == STORE_COLD) {
                    cold = true;
                    assert_int_equal(want(&b, value, &w[c]), STORE_COLD);
                }
            }
            if (cold && lets_go)
                store_waiter_let_go(b.sw, &w[c]);
            if (cold)
                continue;
            store_waiter_release(b.sw, &w[c]);
            done[c] = true;
            left--;
        }
        read_all(&b, 0);
        if (stats_of(&b).memory_bytes > memory_max)
            memory_max = stats_of(&b).memory_bytes;
        next_turn(&b);
    }
    assert_in_range(memory_max, least, most);
    atomic_store(&b.f.store->memory_bytes_max, 0);
    bench_close(&b);
}

static void test_commands_with_too_little_room_do_not_wait_for_each_other(void **state)
{
    (void)state;
    crowd(0, true, 16 << 10, 80 << 10);
    crowd(0, false, 16 << 10, 160 << 10); /* half of 64K, one command, and what goes next turn */
}

/* A sixteenth of the cap is less than what one command needs, and who has it may wait for the other's claims.
 */
static void test_nor_with_a_small_share_for_buffers(void **state)
{
    (void)state;
    for (uint64_t share = 1; share <= 32 << 10; share *= 2)
        crowd(16 * share, share & 0x5555, 1024, 160 << 10);
}

/* Who finds no room for all that it wants holds nothing of it: what others have read goes with them. */
static void test_who_waits_for_room_holds_nothing(void **state)
{
    enum { MANY = 24, LAST = VALUES - 1 };
    struct bench b = bench_open(small, 4, (struct fetch_config){.memory_bytes_max = 32 << 10});
    struct store_waiter all = {0}, both = {0};
    (void)state;
    for (unsigned i = 0; i < MANY; i++)
        assert_int_equal(want(&b, i, &all), STORE_COLD); /* beyond the limit: it is the privileged one */
    assert_false(all.hungry);
    assert_int_equal(want(&b, 0, &both), STORE_COLD);
    assert_int_equal(want(&b, LAST, &both), STORE_COLD);
    assert_true(both.hungry);
    store_waiter_let_go(b.sw, &all);
    store_waiter_let_go(b.sw, &both);
    assert_non_null(all.claims);
    assert_null(both.claims);
    assert_true(store_waiter_waits(&both));
    assert_int_equal(read_all(&b, 0), MANY);
    assert_ptr_equal(store_waiter_next(b.sw), &all);
    assert_null(store_waiter_next(b.sw));
    store_waiter_release(b.sw, &all);
    next_turn(&b);
    assert_ptr_equal(store_waiter_next(b.sw), &both);
    assert_int_equal(look(&b, 0), STORE_COLD);
    assert_int_equal(stats_of(&b).memory_bytes, 0);
    assert_int_equal(want(&b, 0, &both), STORE_COLD);
    assert_int_equal(want(&b, LAST, &both), STORE_COLD);
    assert_false(both.hungry);
    assert_int_equal(read_all(&b, 0), 2);
    assert_ptr_equal(store_waiter_next(b.sw), &both);
    store_waiter_release(b.sw, &both);
    bench_close(&b);
}

/* Everything at random, reads ending in any order and any way: who waits is named in the end. */
static void test_any_order(void **state)
{
    enum { WAITERS = 16, STEPS = 20000, DEPTH = 8 };
    struct bench b =
        bench_open(small, 4, (struct fetch_config){.memory_bytes_max = 48 << 10, .io_depth = DEPTH});
    struct store_waiter w[WAITERS] = {0};
    struct store_fetch flying[DEPTH];
    unsigned count = 0, named = 0;
    struct prng prng;
    (void)state;
    prng_seed(&prng, 3);
    for (unsigned step = 0; step < STEPS + 1000; step++) {
        unsigned i = (unsigned)prng_below(&prng, WAITERS), v = (unsigned)prng_below(&prng, VALUES);
        bool ending = step >= STEPS;
        switch (ending ? 4 + prng_below(&prng, 2) : prng_below(&prng, 8)) {
        case 0:
            if (!store_waiter_waits(&w[i]))
                (void)want(&b, v, &w[i]);
            break;
        case 1:
            (void)want(&b, v, NULL);
            break;
        case 2:
            if (prng_below(&prng, 4) == 0)
                store_waiter_release(b.sw, &w[i]);
            break;
        case 3:
            (void)look(&b, v);
            next_turn(&b);
            b.sw->now_ms += prng_below(&prng, 100);
            break;
        default:
            if (count < DEPTH && store_fetch_take(b.sw, &flying[count]))
                count++;
            if (count && prng_below(&prng, 2)) {
                unsigned at = (unsigned)prng_below(&prng, count);
                store_fetch_done(b.sw, &flying[at], prng_below(&prng, 10) ? perform(&b, &flying[at]) : -EIO);
                flying[at] = flying[--count];
            }
            for (struct store_waiter *next; (next = store_waiter_next(b.sw)); named++) {
                assert_false(store_waiter_waits(next));
                store_waiter_release(b.sw, next);
            }
            break;
        }
    }
    assert_int_equal(count, 0);
    assert_true(named > 500);
    for (unsigned i = 0; i < WAITERS; i++) {
        assert_false(store_waiter_waits(&w[i]));
        store_waiter_release(b.sw, &w[i]);
    }
    next_turn(&b);
    b.sw->now_ms += 100 * STEPS;
    assert_int_equal(look(&b, 0), STORE_COLD);
    assert_int_equal(stats_of(&b).memory_bytes, 0);
    bench_close(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_value_is_read_once_and_goes_with_its_turn),
        cmocka_unit_test(test_every_length),
        cmocka_unit_test(test_a_disk_that_wants_whole_blocks),
        cmocka_unit_test(test_many_waiters_share_one_read),
        cmocka_unit_test(test_damage_is_told_and_read_again_next_time),
        cmocka_unit_test(test_what_is_not_the_record_asked_for),
        cmocka_unit_test(test_errors_and_short_reads),
        cmocka_unit_test(test_a_waiter_may_leave_at_any_time),
        cmocka_unit_test(test_reading_ahead),
        cmocka_unit_test(test_io_depth_bounds_what_is_under_way),
        cmocka_unit_test(test_one_command_may_not_have_all_memory),
        cmocka_unit_test(test_commands_with_too_little_room_do_not_wait_for_each_other),
        cmocka_unit_test(test_who_waits_for_room_holds_nothing),
        cmocka_unit_test(test_nor_with_a_small_share_for_buffers),
        cmocka_unit_test(test_any_order),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
