/* A store's workers over a disk that crashes, by seed. One thread plays all workers: each step is an
 * operation of one of them, a flush given out or completed (in any order), background work, values leaving
 * memory, or a write that has locked its keys and lets others go first.
 *
 * Properties. Every answer is that of the operations before it, in their order. After a crash the store is as
 * it was after some prefix of the writes; the prefix holds everything that an answer which had left (its
 * depends_lsn was below the commit point) depended on: writes, and writes whose effects, absence included,
 * were read. So several keys written together, and deleted trees, are there or not as a whole. Checkpoints
 * are made all the while, and damaged now and then; they change nothing of this.
 *
 *   KVASIR_SEED=n    runs this seed only     KVASIR_SEEDS=n   runs so many */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/logger.h"
#include "log/log.h"
#include "sim/sim_disk.h"
#include "sim/sim_seeds.h"
#include "store/store.h"
#include "unit/store/cold_values.h"
#include "unit/store/live_weights.h"

enum {
    KEYS = 24,
    WORKERS_MAX = 3,
    HISTORY_MAX = 600,
    ANSWERS_MAX = 4096,
    STEPS_MAX = 500,
    ROUNDS = 4,
    TOGETHER_MAX = 4,
    VALUE_BYTES_MAX = 300 << 10,
    DISK_LIMIT = 12 << 20,
    ROOM_WRITES = 60, /* of large values, so that they need room that has to be won */
    ROOM_VALUE_BYTES = 128 << 10,
    ROOM_STEPS_MAX = 100, /* of everybody, until a writer that can get room has it; 13 were seen */
};

/* Ascending. Paths whose siblings sort between a node and its children, and a long one. */
static const char *const names[KEYS] = {
    "a",   "a-b",   "a/",   "a/b",   "a/b!",  "a/b/c", "a/b/d", "a/c",   "a0",    "aa",  "b",   "b/x",
    "b/y", "b/y/z", "b/yy", "key:1", "key:2", "key:3", "key:4", "long/", "q/q/q", "u/v", "u/w", "z",
};

struct cell { /* a key's content; id 0: absent */
    uint32_t id;
    uint64_t expire_ms; /* 0: none */
};

struct state {
    struct cell cells[KEYS];
};

struct write { /* one record or frame in the log, and what was true behind it */
    struct state after;
    uint32_t touched; /* bit i: key i */
};

struct answer { /* held until the commit point has passed depends_lsn */
    uint64_t depends_lsn;
    size_t needs; /* so many writes must then be on disk */
};

struct open_write { /* begun, not committed: its keys are locked */
    struct store_entry entries[TOGETHER_MAX];
    int keys[TOGETHER_MAX];
    unsigned count;
    uint64_t depends_lsn; /* of what was seen at the begin */
};

struct world {
    uint64_t seed;
    struct prng prng;
    struct sim_disk *sim;
    struct store *store;
    unsigned workers;
    bool in_turn[WORKERS_MAX];
    struct open_write open[WORKERS_MAX];
    struct state first;
    struct write history[HISTORY_MAX];
    size_t count;
    struct answer answers[ANSWERS_MAX];
    size_t answer_count;
    size_t durable; /* writes that must survive */
    struct log_flush flights[LOG_FLUSHES_MAX];
    size_t flight_count;
    uint32_t next_id;
    char *scratch, *read_buffer;
    uint64_t base_ms;
    uint64_t crashes, operations, busy, lost, evicted, checkpoints, damaged, cleaned, moved, removed, refused,
        reused, room_waits;
    unsigned room_steps_max;
    bool limited, was_limited; /* there is a limit on the disk this time; there was one for this seed */
    bool prepare_failed;       /* a fault hit the making of a segment since the start */
};

#define REQUIRE(world, condition)                                                                            \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            fprintf(stderr, "seed %llu, line %d: %s\n", (unsigned long long)(world)->seed, __LINE__,         \
                    #condition);                                                                             \
            fail();                                                                                          \
        }                                                                                                    \
    } while (0)

/* ---- keys and values ---- */

static struct slice key_of(int key)
{
    return slice_make(names[key], strlen(names[key]));
}

/* A third of the seeds write so much that segments fill up, are cleaned and removed. */
static bool heavy;

/* At least the four bytes that tell values apart. */
static uint32_t value_bytes(uint32_t id)
{
    uint64_t r = prng_mix(id);
    if (heavy)
        return 4 + (uint32_t)(r >> 32) % (r % 5 == 0 ? 200000 : 60000);
    if (r % 50 == 0)
        return 4 + (uint32_t)(r >> 32) % (VALUE_BYTES_MAX - 4);
    return 4 + (uint32_t)(r >> 32) % (r % 5 == 0 ? 6000 : 90);
}

static struct slice value_of(char *buffer, uint32_t id)
{
    uint32_t len = value_bytes(id);
    for (uint32_t i = 0; i < len; i++)
        buffer[i] = (char)(id * 31 + i * 7 + (i >> 8));
    store_u32(buffer, id);
    return slice_make(buffer, len);
}

static bool covers(int path, int key)
{
    struct slice p = key_of(path), k = key_of(key);
    return slice_equal(p, k) || (k.len > p.len && slice_starts_with(k, p) && k.data[p.len] == '/');
}

/* ---- the model ---- */

static const struct state *now(const struct world *w)
{
    return w->count ? &w->history[w->count - 1].after : &w->first;
}

static bool same_cell(const struct cell *a, const struct cell *b)
{
    return a->id == b->id && a->expire_ms == b->expire_ms;
}

/* What has changed nothing (also: set and deleted again at once) is not a write. */
static void note_write(struct world *w, const struct state *after)
{
    uint32_t touched = 0;
    for (int key = 0; key < KEYS; key++)
        touched |= same_cell(&now(w)->cells[key], &after->cells[key]) ? 0 : 1u << key;
    REQUIRE(w, w->count < HISTORY_MAX);
    if (touched)
        w->history[w->count++] = (struct write){.after = *after, .touched = touched};
}

/* How many writes must be known for key's content to be what it is: up to the last one that touched it. */
static size_t needs_of(const struct world *w, uint32_t keys)
{
    for (size_t i = w->count; i > 0; i--)
        if (w->history[i - 1].touched & keys)
            return i;
    return 0;
}

static void hold(struct world *w, struct store_worker *sw, size_t needs)
{
    if (w->answer_count == ANSWERS_MAX) /* this client has gone away */
        return;
    w->answers[w->answer_count++] = (struct answer){sw->depends_lsn, needs};
}

static void release(struct world *w)
{
    uint64_t commit = store_commit_lsn(w->store);
    size_t kept = 0;
    for (size_t i = 0; i < w->answer_count; i++) {
        if (w->answers[i].depends_lsn >= commit)
            w->answers[kept++] = w->answers[i];
        else if (w->answers[i].needs > w->durable)
            w->durable = w->answers[i].needs;
    }
    w->answer_count = kept;
}

/* ---- checking what is there ---- */

static void check_view(struct world *w, const struct store_view *view, int key)
{
    const struct cell *cell = &now(w)->cells[key];
    struct slice wanted = value_of(w->scratch, cell->id);
    REQUIRE(w, cell->id != 0 && view->len == wanted.len && view->expire_ms == cell->expire_ms);
    REQUIRE(w, store_view_copy(view, w->read_buffer, 0, view->len));
    REQUIRE(w, memcmp(w->read_buffer, wanted.data, wanted.len) == 0);
}

static void check_all(struct world *w, struct store_worker *sw)
{
    struct store_cursor cursor;
    const struct node *node;
    int key = 0;
    uint64_t live = 0;
    store_cursor_seek(&cursor, sw, slice_make("", 0), false);
    while ((node = store_cursor_next(&cursor))) {
        struct store_view view;
        while (key < KEYS && now(w)->cells[key].id == 0)
            key++;
        REQUIRE(w, key < KEYS && slice_equal(store_node_key(node), key_of(key)));
        struct store_waiter waiter = {0};
        REQUIRE(w, cold_node_view(sw, node, &view, &waiter) == STORE_OK);
        check_view(w, &view, key++);
        store_waiter_release(sw, &waiter);
        live++;
    }
    for (; key < KEYS; key++)
        REQUIRE(w, now(w)->cells[key].id == 0);
    REQUIRE(w, store_count(sw) == live);
    REQUIRE(w, live_weights_are_exact(w->store));
}

/* ---- operations ---- */

static struct store_worker *in_turn(struct world *w, unsigned index)
{
    struct store_worker *sw = store_worker_get(w->store, index);
    if (!w->in_turn[index]) {
        store_turn_begin(sw);
        w->in_turn[index] = true;
    }
    sw->depends_lsn = 0;
    w->operations++;
    return sw;
}

static struct store_worker *pick_worker(struct world *w, unsigned *index)
{
    *index = (unsigned)prng_below(&w->prng, w->workers);
    return in_turn(w, *index);
}

static void end_turn(struct world *w, unsigned index)
{
    if (w->in_turn[index] && w->open[index].count == 0) {
        store_turn_end(store_worker_get(w->store, index));
        w->in_turn[index] = false;
    }
}

static bool is_locked(const struct world *w)
{
    for (unsigned i = 0; i < w->workers; i++)
        if (w->open[i].count)
            return true;
    return false;
}

/* Whatever the store answers but OK: nothing has happened, and there must be a reason. */
static bool refused(struct world *w, enum store_result r)
{
    if (r == STORE_OK)
        return false;
    REQUIRE(w, r == STORE_BUSY || (r == STORE_NO_SPACE && (w->limited || w->prepare_failed)));
    w->busy += r == STORE_BUSY;
    w->refused += r == STORE_NO_SPACE;
    return true;
}

static void commit(struct world *w, struct store_worker *sw, struct open_write *open)
{
    struct state after = *now(w);
    uint32_t staged = 0, seen = 0;
    char *buffer = w->scratch;
    for (unsigned i = 0; i < open->count; i++) {
        int key = open->keys[i];
        struct cell *cell = &after.cells[key];
        REQUIRE(w, store_entry_live(open->entries, i) == (cell->id != 0));
        if (cell->id) {
            REQUIRE(w, store_entry_expire_ms(open->entries, i) == cell->expire_ms);
            REQUIRE(w, store_entry_value(open->entries, i).len == value_bytes(cell->id));
        }
        seen |= 1u << key;
        switch (prng_below(&w->prng, 8)) {
        case 0:
        case 1:
            store_stage_delete(open->entries, i);
            *cell = (struct cell){0};
            break;
        case 2:
            if (cell->id == 0 || staged & 1u << key)
                break;
            cell->expire_ms = prng_below(&w->prng, 2) ? w->base_ms + ++w->next_id : 0;
            store_stage_expire(sw, open->entries, i, cell->expire_ms);
            staged |= 1u << key;
            break;
        case 3:
            break; /* only looks */
        default:
            *cell = (struct cell){++w->next_id, prng_below(&w->prng, 4) ? 0 : w->base_ms + w->next_id};
            struct slice value = value_of(buffer, cell->id);
            buffer += value.len;
            store_stage_set(sw, open->entries, i, value, cell->expire_ms);
            staged |= 1u << key;
        }
    }
    enum store_result r = store_write_commit(sw);
    open->count = 0;
    if (open->depends_lsn > sw->depends_lsn)
        sw->depends_lsn = open->depends_lsn;
    if (refused(w, r))
        return;
    note_write(w, &after);
    hold(w, sw, needs_of(w, seen));
}

static void step_write(struct world *w)
{
    unsigned index;
    struct store_worker *sw = pick_worker(w, &index);
    struct open_write *open = &w->open[index];
    if (open->count) { /* goes on with what it has locked */
        commit(w, sw, open);
        return;
    }
    unsigned n = prng_below(&w->prng, 3) ? 1 : 1 + (unsigned)prng_below(&w->prng, TOGETHER_MAX);
    for (unsigned i = 0; i < n; i++) {
        open->keys[i] = (int)prng_below(&w->prng, KEYS);
        store_key_prepare(sw, &open->entries[i].key, key_of(open->keys[i]));
    }
    uint64_t hint = prng_below(&w->prng, 10) ? 100 : VALUE_BYTES_MAX;
    if (refused(w, store_write_begin(sw, open->entries, n, hint))) {
        REQUIRE(w, is_locked(w));
        return;
    }
    open->count = n;
    open->depends_lsn = sw->depends_lsn;
    if (w->workers > 1 && prng_below(&w->prng, 6) == 0)
        return; /* others first */
    if (prng_below(&w->prng, 20) == 0) {
        store_write_abort(sw);
        open->count = 0;
        return;
    }
    commit(w, sw, open);
}

static void step_delete_tree(struct world *w)
{
    unsigned index;
    struct store_worker *sw = pick_worker(w, &index);
    int path = (int)prng_below(&w->prng, KEYS + 1);
    uint64_t removed = 0, expected = 0;
    struct state after = *now(w);
    uint32_t seen = 0;
    if (w->open[index].count)
        return;
    for (int key = 0; key < KEYS; key++) {
        if (path < KEYS && !covers(path, key))
            continue;
        seen |= 1u << key;
        expected += after.cells[key].id != 0;
        after.cells[key] = (struct cell){0};
    }
    if (refused(w, store_delete_tree(sw, path < KEYS ? key_of(path) : slice_make("", 0), &removed)))
        return;
    REQUIRE(w, removed == expected);
    note_write(w, &after);
    hold(w, sw, needs_of(w, seen));
}

static void step_read(struct world *w)
{
    unsigned index;
    struct store_worker *sw = pick_worker(w, &index);
    int key = (int)prng_below(&w->prng, KEYS);
    struct store_key prepared;
    struct store_view view;
    store_key_prepare(sw, &prepared, key_of(key));
    struct store_waiter waiter = {0};
    enum store_result r = cold_find(sw, &prepared, &view, &waiter);
    if (r == STORE_ABSENT)
        REQUIRE(w, now(w)->cells[key].id == 0);
    else if (!refused(w, r))
        check_view(w, &view, key);
    store_waiter_release(sw, &waiter);
    if (r != STORE_BUSY)
        hold(w, sw, needs_of(w, 1u << key));
}

static void step_read_all(struct world *w)
{
    unsigned index;
    struct store_worker *sw = pick_worker(w, &index);
    if (w->open[index].count)
        return;
    unsigned attempt = (unsigned)prng_below(&w->prng, 6);
    if (refused(w, store_snapshot_begin(sw, NULL, 0, attempt))) {
        REQUIRE(w, is_locked(w));
        return;
    }
    struct store_fetch_stats before, after;
    store_fetch_stats_get(w->store, &before);
    check_all(w, sw);
    store_fetch_stats_get(w->store, &after);
    if (!store_snapshot_end(sw)) { /* values that came back took the locks: a command would run again */
        REQUIRE(w, after.preads > before.preads);
        return;
    }
    hold(w, sw, needs_of(w, UINT32_MAX));
}

static void step_background(struct world *w)
{
    unsigned index;
    struct store_worker *sw = pick_worker(w, &index);
    if (w->open[index].count == 0)
        (void)store_background(sw, 1 + (unsigned)prng_below(&w->prng, 20), NULL);
}

static void step_evict(struct world *w)
{
    unsigned index;
    struct store_worker *sw = pick_worker(w, &index);
    if (w->open[index].count == 0)
        w->evicted += cold_evict(sw, &w->prng, (unsigned)prng_below(&w->prng, 257));
}

/* Now and then one of the next operations of the disk fails, and sometimes that is the end. */
static void arm_fault(struct world *w, uint64_t seldom, uint64_t operations)
{
    static const enum sim_op ops[] = {SIM_ANY,    SIM_WRITE, SIM_SYNC,   SIM_ALLOCATE, SIM_TRUNCATE,
                                      SIM_CREATE, SIM_READ,  SIM_REMOVE, SIM_RENAME};
    if (prng_below(&w->prng, seldom) != 0)
        return;
    w->sim->fail_op = ops[prng_below(&w->prng, sizeof ops / sizeof ops[0])];
    w->sim->fail_after = 1 + prng_below(&w->prng, operations);
    w->sim->fail_errno = prng_below(&w->prng, 2) ? EIO : ENOSPC;
    w->sim->fail_dies = prng_below(&w->prng, 4) == 0;
}

/* The log's own thread: the next segment, new or from a spare file. */
static void step_prepare(struct world *w)
{
    arm_fault(w, 4, 6);
    bool armed = w->sim->fail_after > 0;
    (void)log_prepare(store_log(w->store));
    w->prepare_failed |= armed && w->sim->fail_after == 0;
    w->sim->fail_after = 0;
}

/* The store's own thread: checkpoints, now and then asked for, cleaning, removal. Sometimes something fails
 * under it; sometimes that is the end. */
static void step_keep(struct world *w)
{
    if (prng_below(&w->prng, heavy ? 4 : 10) == 0)
        (void)store_checkpoint_request(w->store);
    arm_fault(w, 6, 12);
    for (uint64_t n = 1 + prng_below(&w->prng, heavy ? 60 : 4); n > 0 && store_keep(w->store); n--)
        ;
    w->sim->fail_after = 0;
}

/* ---- the disk ---- */

static void step_take(struct world *w)
{
    struct log *log = store_log(w->store);
    struct log_flush *f = &w->flights[w->flight_count];
    while (w->flight_count < LOG_FLUSHES_MAX &&
           log_flush_take(log, 1000, prng_below(&w->prng, 3) == 0, f, NULL)) {
        w->flight_count++;
        if (!w->sim->dead && prng_below(&w->prng, 4)) /* else it is still on its way when the crash comes */
            (void)w->sim->disk.ops->write(&w->sim->disk, f->fd, f->buffer, f->len, f->offset);
        f = &w->flights[w->flight_count];
    }
}

static void step_complete(struct world *w)
{
    if (w->flight_count == 0)
        return;
    size_t i = prng_below(&w->prng, w->flight_count);
    struct log_flush f = w->flights[i];
    REQUIRE(w, w->sim->disk.ops->write(&w->sim->disk, f.fd, f.buffer, f.len, f.offset) == (int64_t)f.len);
    sim_disk_sync_range(w->sim, f.fd, f.offset, f.len);
    w->flights[i] = w->flights[--w->flight_count];
    log_flush_done(store_log(w->store), &f, (int64_t)f.len, 1000);
    release(w);
}

static void run_steps(struct world *w)
{
    for (uint64_t n = prng_below(&w->prng, STEPS_MAX); n > 0 && w->count < HISTORY_MAX - 1; n--) {
        switch (prng_below(&w->prng, 20)) {
        case 0:
        case 1:
            step_take(w);
            break;
        case 2:
        case 3:
            step_complete(w);
            break;
        case 4:
            step_prepare(w);
            if (w->sim->dead)
                return;
            break;
        case 5:
        case 6:
            step_background(w);
            break;
        case 7:
            step_delete_tree(w);
            break;
        case 8:
            step_read_all(w);
            break;
        case 10:
            step_evict(w);
            break;
        case 11:
            step_keep(w);
            if (w->sim->dead)
                return;
            break;
        case 9:
            end_turn(w, (unsigned)prng_below(&w->prng, w->workers));
            break;
        case 12:
        case 13:
            step_read(w);
            break;
        default:
            step_write(w);
        }
        release(w);
    }
}

/* ---- room ---- */

static bool write_large(struct world *w, struct store_worker *sw, int key)
{
    struct state after = *now(w);
    struct store_entry entry;
    store_key_prepare(sw, &entry.key, key_of(key));
    if (refused(w, store_write_begin(sw, &entry, 1, VALUE_BYTES_MAX)))
        return false;
    while (value_bytes(++w->next_id) < ROOM_VALUE_BYTES)
        ;
    after.cells[key] = (struct cell){w->next_id, 0};
    store_stage_set(sw, &entry, 0, value_of(w->scratch, w->next_id), 0);
    if (refused(w, store_write_commit(sw)))
        return false;
    note_write(w, &after);
    hold(w, sw, needs_of(w, 1u << key));
    return true;
}

/* What everybody does by itself. */
static void go_on(struct world *w)
{
    (void)log_prepare(store_log(w->store));
    step_take(w);
    while (w->flight_count)
        step_complete(w);
    for (unsigned i = 0; i < w->workers; i++) {
        (void)store_background(in_turn(w, i), 100, NULL);
        end_turn(w, i);
    }
    for (unsigned n = 0; n < 20 && store_keep(w->store); n++)
        ;
}

static bool is_room_to_win(struct world *w)
{
    struct store_cleaner_stats cleaner;
    uint64_t live = 0;
    store_cleaner_stats_get(w->store, &cleaner);
    for (int key = 0; key < KEYS; key++)
        live += now(w)->cells[key].id ? value_bytes(now(w)->cells[key].id) : 0;
    return live < DISK_LIMIT / 4 && cleaner.damaged == 0; /* what cannot be read keeps its room */
}

/* Where cleaning can win room, each write gets it after so many steps: nobody waits for each other in a ring.
 */
static void must_get_room(struct world *w)
{
    for (unsigned i = 0; i < w->workers; i++) {
        if (w->open[i].count)
            store_write_abort(store_worker_get(w->store, i));
        w->open[i].count = 0;
    }
    for (int n = 0; n < ROOM_WRITES && w->count < HISTORY_MAX - 1; n++) {
        unsigned steps = 0;
        while (is_room_to_win(w) && !write_large(w, in_turn(w, 0), n % 4)) {
            go_on(w);
            REQUIRE(w, ++steps <= ROOM_STEPS_MAX);
        }
        if (steps > w->room_steps_max)
            w->room_steps_max = steps;
        w->room_waits += steps > 0;
    }
}

/* ---- starting and stopping ---- */

static void stop(struct world *w)
{
    bool clean = prng_below(&w->prng, 6) == 0 && !w->sim->dead;
    for (unsigned i = 0; i < w->workers; i++) {
        if (w->open[i].count)
            store_write_abort(store_worker_get(w->store, i));
        w->open[i].count = 0;
        end_turn(w, i);
    }
    while (clean && (log_has_unflushed(store_log(w->store)) || w->flight_count)) {
        (void)log_prepare(store_log(w->store));
        step_take(w);
        while (w->flight_count)
            step_complete(w);
    }
    if (clean) {
        REQUIRE(w, w->answer_count == 0); /* nothing waits for ever */
        w->durable = w->count;
    } else {
        w->sim->dead = true;
        w->crashes++;
    }
    w->flight_count = 0;
    w->answer_count = 0;
    struct store_checkpoint_stats checkpoint;
    store_checkpoint_stats_get(w->store, &checkpoint);
    w->checkpoints += checkpoint.number;
    struct store_cleaner_stats cleaner;
    store_cleaner_stats_get(w->store, &cleaner);
    w->cleaned += cleaner.segments;
    w->moved += cleaner.moved;
    w->removed += cleaner.removed_segments;
    struct log_stats log;
    log_stats_get(w->store->log, &log);
    w->reused += log.segments_reused;
    store_close(w->store);
    if (!clean && prng_below(&w->prng, 4))
        sim_disk_crash(w->sim);
    else
        sim_disk_restart(w->sim);
}

/* Half of the time with so little memory that values leave it all the time. */
static status_t open_store(struct world *w)
{
    uint64_t memory = prng_below(&w->prng, 2) ? (2 * (uint64_t)w->workers + 1) << 20 : 0;
    w->limited = heavy && prng_below(&w->prng, 2);
    w->prepare_failed = false;
    w->was_limited |= w->limited;
    struct store_config config = {.disk = &w->sim->disk,
                                  .path = "sim",
                                  .workers = w->workers,
                                  .memory_bytes_max = memory,
                                  .disk_limit_bytes = w->limited ? DISK_LIMIT : 0,
                                  .log_segment_bytes_first = 512 << 10,
                                  .log_segment_bytes_max = 2 << 20,
                                  .no_threads = true};
    return store_open(&config, &w->store);
}

/* A byte of the newest checkpoint goes bad: the one before it and the log have all there is. (Where space was
 * short there may be no other.) */
static void damage_checkpoint(struct world *w)
{
    struct sim_file *newest = NULL;
    for (int i = 0; i < SIM_FILES_MAX; i++) {
        struct sim_file *f = &w->sim->files[i];
        if (f->named && strncmp(f->name, "toc-", 4) == 0 && (!newest || strcmp(f->name, newest->name) > 0))
            newest = f;
    }
    if (newest == NULL || newest->size == 0)
        return;
    uint64_t at = prng_below(&w->prng, newest->size);
    newest->data[at] = (char)(newest->data[at] ^ (1 << prng_below(&w->prng, 8)));
    newest->stable[at] = newest->data[at];
    w->damaged++;
}

/* Opens, now and then with crashes in the middle of it, on which of the workers depends the number this time.
 */
static void start(struct world *w)
{
    w->workers = 1 + (unsigned)prng_below(&w->prng, WORKERS_MAX);
    if (prng_below(&w->prng, 4) == 0 && !w->was_limited)
        damage_checkpoint(w);
    while (prng_below(&w->prng, 3) == 0) {
        w->sim->fail_op = SIM_ANY;
        w->sim->fail_errno = EIO;
        w->sim->fail_dies = true;
        w->sim->fail_after = 1 + prng_below(&w->prng, 12);
        status_t s = open_store(w);
        w->sim->fail_after = 0;
        if (status_is_ok(&s))
            return;
        REQUIRE(w, s.code == STATUS_IO);
        sim_disk_crash(w->sim);
    }
    status_t s = open_store(w);
    if (!status_is_ok(&s))
        fprintf(stderr, "%s\n", s.text);
    REQUIRE(w, status_is_ok(&s));
}

/* The id of the value that was read, among those that key has ever had. 0: none of them. */
static uint32_t id_of(struct world *w, const struct store_view *view, int key)
{
    for (size_t i = w->count + 1; i-- > 0;) {
        const struct state *state = i ? &w->history[i - 1].after : &w->first;
        uint32_t id = state->cells[key].id;
        if (id && value_bytes(id) == view->len &&
            memcmp(w->read_buffer, value_of(w->scratch, id).data, view->len) == 0)
            return id;
    }
    return 0;
}

/* What the store holds, as the model would say it. */
static struct state read_state(struct world *w)
{
    struct state state = {0};
    struct store_worker *sw = store_worker_get(w->store, 0);
    store_turn_begin(sw);
    for (int key = 0; key < KEYS; key++) {
        struct store_key prepared;
        struct store_view view;
        struct store_waiter waiter = {0};
        store_key_prepare(sw, &prepared, key_of(key));
        enum store_result r = cold_find(sw, &prepared, &view, &waiter);
        REQUIRE(w, r == STORE_OK || r == STORE_ABSENT);
        if (r == STORE_ABSENT)
            continue;
        REQUIRE(w, store_view_copy(&view, w->read_buffer, 0, view.len));
        state.cells[key] = (struct cell){id_of(w, &view, key), view.expire_ms};
        REQUIRE(w, state.cells[key].id != 0);
        store_waiter_release(sw, &waiter);
    }
    store_turn_end(sw);
    return state;
}

static bool same(const struct state *a, const struct state *b)
{
    for (int key = 0; key < KEYS; key++)
        if (!same_cell(&a->cells[key], &b->cells[key]))
            return false;
    return true;
}

/* Finds the prefix that was recovered; it becomes the history. */
static void recover(struct world *w)
{
    struct state state = read_state(w);
    size_t prefix = w->count;
    for (;; prefix--) {
        if (same(&state, prefix ? &w->history[prefix - 1].after : &w->first))
            break;
        REQUIRE(w, prefix > w->durable); /* else something that an answer told of is gone */
    }
    w->lost += w->count - prefix;
    w->first = state;
    w->count = w->durable = 0;
    store_turn_begin(store_worker_get(w->store, 0));
    check_all(w, store_worker_get(w->store, 0));
    store_turn_end(store_worker_get(w->store, 0));
}

static void run_seed(struct world *w, uint64_t seed)
{
    w->seed = seed;
    heavy = seed % 3 == 0;
    w->was_limited = false;
    prng_seed(&w->prng, seed);
    w->sim = sim_disk_create(seed + 1);
    w->first = (struct state){0};
    w->count = w->durable = 0;
    for (int round = 0; round < ROUNDS; round++) {
        start(w);
        recover(w);
        run_steps(w);
        if (w->limited && !w->sim->dead)
            must_get_room(w);
        stop(w);
    }
    sim_disk_destroy(w->sim);
}

static void test_crashes(void **state)
{
    (void)state;
    struct sim_seeds seeds = sim_seeds_get(150);
    struct world *w = calloc(1, sizeof *w);
    w->scratch = malloc((size_t)TOGETHER_MAX * VALUE_BYTES_MAX);
    w->read_buffer = malloc(VALUE_BYTES_MAX);
    w->base_ms = 33177117420123ull;
    logger_set_level(LOGGER_ERROR);
    for (uint64_t seed = seeds.first; seed < seeds.end; seed++)
        run_seed(w, seed);
    printf(
        "%llu seeds from %llu: %llu crashes, %llu operations, %llu busy, %llu unanswered writes gone, %llu "
        "values evicted, %llu segments cleaned, %llu values moved, %llu segments removed, %llu refused, %llu "
        "checkpoints, "
        "%llu damaged, %llu files used again, %llu waited for room, %u steps at most\n",
        (unsigned long long)(seeds.end - seeds.first), (unsigned long long)seeds.first,
        (unsigned long long)w->crashes, (unsigned long long)w->operations, (unsigned long long)w->busy,
        (unsigned long long)w->lost, (unsigned long long)w->evicted, (unsigned long long)w->cleaned,
        (unsigned long long)w->moved, (unsigned long long)w->removed, (unsigned long long)w->refused,
        (unsigned long long)w->checkpoints, (unsigned long long)w->damaged, (unsigned long long)w->reused,
        (unsigned long long)w->room_waits, w->room_steps_max);
    assert_true(w->reused > 0 || seeds.end - seeds.first == 1);
    assert_true(w->room_waits > 0 || seeds.end - seeds.first == 1);
    assert_true(w->crashes > 0 || seeds.end - seeds.first == 1);
    free(w->scratch);
    free(w->read_buffer);
    free(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_crashes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
