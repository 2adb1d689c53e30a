#include "store/cleaner.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/logger.h"
#include "log/data_segment.h"
#include "log/segment.h"
#include "log/segment_scan.h"
#include "log/spare.h"
#include "store/internal.h"
#include "store/moving.h"
#include "store/victims.h"
#include "sys/clock.h"

enum {
    ROUND_BYTES = 64 << 20,
    ROUND_BYTES_LEAST = 256 << 10,
    ROUND_SHARE = 16, /* of the memory cap and of the disk limit */
    /* So that others come in between, in every other round. */
    STEP_KEYS_TESTED_FEW = 3,
    STEP_KEYS_TESTED_MANY = 40,
    SPLIT_BYTES = 4 << 20, /* fewer hot or cold ones do not get a file of their own */
    FULL_SHARE = 16,       /* a file that lacks less than this part of its full size gets it nevertheless */
    BYTES_PER_SECOND = 16 << 20,
    IDLE_MS = 100,
    FILL_LATELY_LOOKS = 64, /* by then most of what the log once took is forgotten */
    RETRY_FIRST_MS = 1000,
    RETRY_LAST_MS = 60000,
    EVICT_STEPS = 4096,
    PAUSE_US_MAX = 100000,
    /* While nobody writes and there is room: less than 1% of reads meet 25 to 40 us of work in 6 ms. */
    REST_US_QUIET = 6000,
    QUIET_BYTES_PER_SECOND = 1 << 20,
    QUIET_BYTES = QUIET_BYTES_PER_SECOND / 1000 * IDLE_MS, /* of log between two looks */
    BUSY_WAIT_US = 1000,                                   /* a key is locked, or there is no room */
    LONG_BYTES = 64 << 10, /* records that need more memory than is kept for a round */
    WINDOW_BYTES_KEPT = 1 << 20,
    PIECE_BYTES_URGENT = 256 << 10, /* while writes wait for room: fewer waits for the disk */
    PIECE_SHARE = 1024,             /* of the memory cap */
    LOOK_RECORDS = 8,               /* whose places in the index are prefetched together */
    MOVE_AHEAD = 16,                /* the same for values that have been written */
    LEVEL_US = 1000,                /* how often it is asked how much room there is, while cleaning */
    NO_ROOM_US = 10000000,          /* then the round is given up */
};

enum phase { PHASE_READ, PHASE_TELL, PHASE_WRITE, PHASE_MOVE };
enum { COLD, HOT, TEMPERATURES };

_Static_assert((int)TEMPERATURES == (int)VICTIMS_FILES, "room is taken for as many");

struct cleaner_round {
    enum phase phase;
    struct victims victims;
    unsigned victim_at;
    struct segment_scan scan;
    bool scanning;
    /* The victims' values in parts, so that not too many are in memory: read, written, moved, the next. */
    uint64_t file_room; /* bytes of records in a full file */
    struct moving values;
    size_t at;
    uint64_t bytes, largest_bytes; /* of the values' records, of one */
    bool splits;                   /* into hot and cold */
    uint64_t hot_version;          /* younger ones are hot */
    uint64_t bytes_of[TEMPERATURES];
    uint64_t buffer_bytes; /* what a file's buffer comes to take, in memory: the longest record */
    uint64_t refused_us;   /* monotonic; since when there is no memory for the next one; 0: there was */
    struct data_segment *targets[TEMPERATURES];
    uint64_t taken_bytes; /* space_take, for this part and those to come */
    uint64_t part_taken_bytes;
    /* For the rate: */
    uint64_t start_us, done_bytes;
};

static void add(_Atomic uint64_t *number, uint64_t n)
{
    atomic_store_explicit(number, atomic_load_explicit(number, memory_order_relaxed) + n,
                          memory_order_relaxed);
}

static bool is_tested(const struct store *store)
{
    return store->config.no_threads || store->config.checkpoint_bytes;
}

/* In a step; 0: by time. */
static unsigned step_items(struct store *store)
{
    if (!is_tested(store))
        return 0;
    uint64_t round = atomic_load_explicit(&store->keeper.cleaner.rounds, memory_order_relaxed);
    return round % 2 ? STEP_KEYS_TESTED_FEW : STEP_KEYS_TESTED_MANY;
}

static struct keeper_step step_begin(struct store *store)
{
    return keeper_step_begin(step_items(store), log_lacks_room(store->log));
}

uint64_t cleaner_round_bytes(const struct store *store)
{
    const struct cleaner *c = &store->keeper.cleaner;
    uint64_t bytes = ROUND_BYTES, limit = store->config.disk_limit_bytes;
    if (limit == 0)
        limit = atomic_load_explicit(&((struct cleaner *)(uintptr_t)c)->disk_bytes, memory_order_relaxed);
    uint64_t cap =
        atomic_load_explicit(&((struct store *)(uintptr_t)store)->memory_bytes_max, memory_order_relaxed);
    if (cap && bytes > cap / ROUND_SHARE)
        bytes = cap / ROUND_SHARE;
    if (limit && bytes > limit / STORE_LOG_SEGMENTS * TEMPERATURES)
        bytes = limit / STORE_LOG_SEGMENTS * TEMPERATURES;
    bytes = bytes < ROUND_BYTES_LEAST ? ROUND_BYTES_LEAST : bytes;
    return bytes & ~((uint64_t)LOG_BLOCK_BYTES * TEMPERATURES - 1);
}

/* Of one read or write. */
static size_t piece_bytes(struct store *store)
{
    uint64_t cap = atomic_load_explicit(&store->memory_bytes_max, memory_order_relaxed);
    size_t bytes = SEGMENT_PIECE_BYTES;
    while (log_lacks_room(store->log) && bytes < PIECE_BYTES_URGENT &&
           (cap == 0 || 2 * bytes <= cap / PIECE_SHARE))
        bytes *= 2;
    return bytes;
}

uint64_t cleaner_file_bytes(const struct store *store)
{
    return cleaner_round_bytes(store) / TEMPERATURES;
}

/* Of records, in a full file. */
static uint64_t file_room(const struct store *store)
{
    return cleaner_file_bytes(store) - LOG_BLOCK_BYTES;
}

/* ---- end ---- */

static void round_free(struct store *store)
{
    struct cleaner_round *r = store->keeper.cleaner.round;
    if (r->scanning)
        segment_scan_end(&r->scan);
    for (unsigned t = 0; t < TEMPERATURES; t++)
        data_segment_abandon(r->targets[t]);
    moving_free(&r->values);
    space_release(store, r->taken_bytes);
    store_room_keep(store->keeper.sw, 0);
    free(r);
    store->keeper.cleaner.round = NULL;
}

void cleaner_stop(struct store *store)
{
    if (store->keeper.cleaner.round)
        round_free(store);
}

static void give_up(struct store *store, const status_t *s)
{
    struct cleaner *c = &store->keeper.cleaner;
    uint64_t now_ms = clock_monotonic_us() / 1000;
    if (backoff_fail(&c->backoff, c->round->start_us / 1000, now_ms, store_lacks_room(store), RETRY_FIRST_MS,
                     RETRY_LAST_MS))
        LOG_WARNING("cleaning was given up for now, nothing is lost: %s", s->text);
    add(&c->failures, 1);
    round_free(store);
}

/* A victim that could not be read, in part or at all: it stays, and after some times it is left alone. */
static void blame(struct store *store, struct segment_file *file)
{
    char name[SEGMENT_NAME_BYTES];
    if (++file->clean_failures != VICTIMS_FAILURES_MAX)
        return;
    segment_file_name(name, file->data, file->number);
    LOG_WARNING("%s/%s has %" PRId64 " bytes of values that cannot be read: the file is kept",
                store->config.path, name, segments_live_bytes(store->segments, file));
    add(&store->keeper.cleaner.damaged, 1);
}

static bool has_deleted_trees(const struct store *store)
{
    /* Relaxed: one that has just come or gone may count wrongly, once. */
    return atomic_load_explicit(&((struct store *)(uintptr_t)store)->range_count, memory_order_relaxed) != 0;
}

static void judge_victims(struct store *store)
{
    struct cleaner_round *r = store->keeper.cleaner.round;
    for (unsigned i = 0; i < r->victim_at; i++) {
        struct segment_file *file = r->victims.items[i].file;
        /* What is live was not found, as a batch's header may be damaged, or was not good. But what a deleted
         * tree covers is still counted, and is not moved. */
        bool counts = r->victims.items[i].damaged || !has_deleted_trees(store);
        if (counts && segments_live_bytes(store->segments, file) > 0)
            blame(store, file);
    }
    add(&store->keeper.cleaner.segments, r->victim_at);
}

/* The victim that the last part was filled up with: the next round goes on with it where this one ends. */
static void leave_rest(struct store *store)
{
    struct cleaner *c = &store->keeper.cleaner;
    const struct cleaner_round *r = c->round;
    c->left = r->scanning ? r->scan : (struct segment_scan){.file = NULL};
    c->left_generation = r->scanning ? r->scan.file->generation : 0;
    c->left.window = NULL; /* goes with the round */
    c->left.window_len = c->left.window_capacity = 0;
}

bool cleaner_left(const struct store *store, const struct segment_file *file)
{
    const struct cleaner *c = &store->keeper.cleaner;
    return c->left.file == file && c->left_generation == file->generation;
}

/* All values of a part have moved. */
static void finish_part(struct store *store)
{
    struct cleaner_round *r = store->keeper.cleaner.round;
    if (r->victim_at < r->victims.whole) {
        moving_free(&r->values);
        r->values = (struct moving){0};
        r->at = r->bytes = r->largest_bytes = r->bytes_of[COLD] = r->bytes_of[HOT] = r->buffer_bytes = 0;
        store_room_keep(store->keeper.sw, 0);
        r->phase = PHASE_READ;
        return;
    }
    leave_rest(store);
    judge_victims(store);
    add(&store->keeper.cleaner.rounds, 1);
    store->keeper.cleaner.backoff = (struct backoff){0};
    store->keeper.cleaner.idle_ms = 0;
    round_free(store);
}

/* ---- begin ---- */

/* Begins a round if it is worth it. */
static bool begin_round(struct store *store, enum space_level level)
{
    struct cleaner_round *r = calloc(1, sizeof *r);
    CHECK(r != NULL);
    uint64_t most = file_room(store) * TEMPERATURES;
    uint64_t needed = victims_choose(store, level, most, &r->victims) ? r->victims.room : 0;
    bool waits = needed && space_waits_for_checkpoint(store, needed);
    if (needed == 0 || waits || !space_take(store, needed)) {
        free(r);
        return false;
    }
    r->taken_bytes = needed;
    r->file_room = file_room(store);
    r->start_us = clock_monotonic_us();
    store->keeper.cleaner.round = r;
    return true;
}

/* ---- reading ---- */

enum collected { COLLECTED, KEY_BUSY, NO_MEMORY, PART_FULL };

/* Memory for so many bytes, and for what a file's buffer will take. See room.h. */
static bool take_memory(struct store *store, struct cleaner_round *r, uint64_t bytes, uint64_t largest)
{
    uint64_t more = largest > r->buffer_bytes ? largest - r->buffer_bytes : 0;
    /* Those of a round are a sixteenth of the cap at most, come slowly, and values leave for them. They must
     * not wait: room on disk comes free by cleaning. */
    if (largest <= LONG_BYTES)
        return true;
    if (!room_take(store, store->keeper.sw->private, bytes + more)) {
        if (r->refused_us == 0)
            r->refused_us = clock_monotonic_us();
        return false;
    }
    r->buffer_bytes += more;
    r->refused_us = 0;
    return true;
}

/* The record's value is copied if the index leads to it. The files of a part are full when another value may
 * not fit into either: one may end early by the largest. */
static enum collected collect(struct store *store, struct cleaner_round *r, const struct record *record,
                              uint64_t hash)
{
    struct store_view view;
    const struct node *node = hash_table_find(&store->hash, hash, record->key);
    if (node == NULL)
        return COLLECTED;
    enum store_result result = store_node_entry(store->keeper.sw, node, &view);
    if (result == STORE_BUSY)
        return KEY_BUSY;
    if (result == STORE_ABSENT || view.address != record->lsn || view.len != record->value.len)
        return COLLECTED;
    uint64_t bytes = record_bytes(RECORD_MOVED, record->key.len, record->value.len);
    uint64_t largest = bytes > r->largest_bytes ? bytes : r->largest_bytes;
    if (r->values.count && r->bytes + bytes + largest > r->file_room * TEMPERATURES)
        return PART_FULL;
    const struct moving_value v = {.hash = hash,
                                   .version = view.sequence >> 1,
                                   .expire_ms = view.expire_ms,
                                   .from = record->lsn,
                                   .hot = node_meta(node) & NODE_TOUCHED};
    if (!take_memory(store, r, bytes, bytes))
        return NO_MEMORY;
    moving_add(&r->values, &v, record->key, record->value);
    r->bytes += bytes;
    r->largest_bytes = largest;
    return COLLECTED;
}

/* Some records of what has been read, and where the scan was before each. */
struct looked {
    struct record records[LOOK_RECORDS];
    struct segment_scan before[LOOK_RECORDS];
    uint64_t hashes[LOOK_RECORDS];
    unsigned count;
};

/* The next ones; what the index has for them is on its way to the cache. */
static enum segment_scan_result look_ahead(const struct store *store, struct segment_scan *scan,
                                           struct keeper_step *step, struct looked *l)
{
    enum segment_scan_result result = SEGMENT_SCAN_RECORD;
    for (l->count = 0; l->count < LOOK_RECORDS && keeper_step_goes_on(step); l->count++) {
        l->before[l->count] = *scan;
        result = segment_scan_next(scan, &l->records[l->count]);
        if (result != SEGMENT_SCAN_RECORD)
            break;
        l->hashes[l->count] = hash_table_hash(&store->hash, l->records[l->count].key);
        hash_table_prefetch(&store->hash, l->hashes[l->count]);
    }
    for (unsigned i = 0; i < l->count; i++) {
        const struct node *node = hash_table_candidate(&store->hash, l->hashes[i]);
        if (node)
            store_node_prefetch(node);
    }
    return result;
}

/* Looks at what has been read. */
static enum segment_scan_result look(struct store *store, struct cleaner_round *r, enum collected *collected)
{
    struct store_worker *sw = store->keeper.sw;
    struct keeper_step step = step_begin(store);
    enum segment_scan_result result;
    struct looked looked;
    *collected = COLLECTED;
    store_turn_begin(sw);
    store_room_keep(sw, r->buffer_bytes); /* what is copied now asks for it */
    do {
        result = look_ahead(store, &r->scan, &step, &looked);
        for (unsigned i = 0; i < looked.count && *collected == COLLECTED; i++) {
            *collected = collect(store, r, &looked.records[i], looked.hashes[i]);
            if (*collected != COLLECTED) {
                r->scan = looked.before[i];
                result = SEGMENT_SCAN_RECORD;
            }
        }
    } while (*collected == COLLECTED && result == SEGMENT_SCAN_RECORD && looked.count == LOOK_RECORDS);
    /* With a long record's bytes in its hands it would wait for room that others wait for too: there must be
     * room for all that it will need, or it begins anew later. */
    uint64_t reading = result == SEGMENT_SCAN_READ ? r->scan.wanted : 0;
    if (reading && !take_memory(store, r, 2 * reading, reading)) {
        *collected = NO_MEMORY;
        result = SEGMENT_SCAN_RECORD;
        reading = 0;
    }
    if (r->refused_us && r->scan.window_capacity > WINDOW_BYTES_KEPT)
        segment_scan_forget(&r->scan);
    store_room_keep(sw, r->buffer_bytes + 2 * reading);
    store_turn_end(sw);
    return result;
}

static void begin_scan(struct store *store, struct cleaner_round *r)
{
    const struct cleaner *c = &store->keeper.cleaner;
    struct segment_file *file = r->victims.items[r->victim_at].file;
    if (cleaner_left(store, file))
        r->scan = c->left;
    else
        segment_scan_begin(&r->scan, store->config.disk, file);
    r->scanning = true;
}

/* A part is there. Few values go into one file. */
static void end_reading(struct cleaner_round *r)
{
    r->splits = r->bytes > r->file_room || r->bytes >= 2 * SPLIT_BYTES;
    r->hot_version = r->splits ? moving_median_version(&r->values) : 0;
    moving_seal(&r->values);
    r->phase = r->values.count ? PHASE_TELL : PHASE_MOVE;
}

static status_t read_step(struct store *store, struct cleaner_round *r, uint64_t *wait_us)
{
    enum collected collected;
    status_t s = status_ok();
    if (!r->scanning && r->victim_at == r->victims.count) {
        end_reading(r);
        return status_ok();
    }
    if (!r->scanning)
        begin_scan(store, r);
    switch (look(store, r, &collected)) {
    case SEGMENT_SCAN_READ:
        s = segment_scan_read(&r->scan, piece_bytes(store));
        store_room_keep(store->keeper.sw, r->buffer_bytes + r->scan.wanted); /* it will be copied */
        if (!status_is_ok(&s))
            blame(store, r->victims.items[r->victim_at].file);
        r->done_bytes += r->scan.window_len;
        break;
    case SEGMENT_SCAN_END:
        r->victims.items[r->victim_at].damaged = r->scan.damaged;
        segment_scan_end(&r->scan);
        r->scanning = false;
        r->victim_at++;
        break;
    case SEGMENT_SCAN_RECORD:
        if (collected == KEY_BUSY || collected == NO_MEMORY)
            *wait_us = BUSY_WAIT_US;
        else if (collected == PART_FULL)
            end_reading(r);
        if (collected == NO_MEMORY && clock_monotonic_us() - r->refused_us > NO_ROOM_US) {
            if (r->values.count == 0)
                return status_error(STATUS_NO_MEMORY, "there is no room below --memory to move values of %s",
                                    store->config.path);
            end_reading(r);
        }
        break;
    }
    return s;
}

/* ---- writing ---- */

/* Where a file is full the other one has room. True: all are told. */
static bool tell_step(struct store *store, struct cleaner_round *r)
{
    struct keeper_step step = step_begin(store);
    for (; r->at < r->values.count && keeper_step_goes_on(&step); r->at++) {
        struct moving_value *v = &r->values.values[r->at];
        uint64_t bytes = record_bytes(RECORD_MOVED, v->key_len, v->value_len);
        bool hot = r->splits && (v->hot || v->version > r->hot_version);
        if (r->splits && r->bytes_of[hot] + bytes > r->file_room)
            hot = !hot;
        v->hot = hot;
        r->bytes_of[hot] += bytes;
    }
    return r->at == r->values.count;
}

/* What a file of so many bytes of records has room for. Nearly full ones get the full size: so they will fit
 * when they are used again. */
static uint64_t room_of(const struct cleaner_round *r, uint64_t bytes)
{
    bool full = bytes <= r->file_room && bytes >= r->file_room - r->file_room / FULL_SHARE;
    return full ? r->file_room : round_up(bytes, LOG_BLOCK_BYTES);
}

/* The room for the part's files. */
static status_t take_room(struct store *store, struct cleaner_round *r)
{
    uint64_t needed = 0;
    for (unsigned t = 0; t < TEMPERATURES; t++)
        needed += r->bytes_of[t] ? room_of(r, r->bytes_of[t]) + LOG_BLOCK_BYTES : 0;
    /* Seldom: more is live than was counted, or there are many parts. */
    if (needed > r->taken_bytes && !space_take(store, needed - r->taken_bytes))
        return status_error(STATUS_NO_SPACE, "%s has no room for data segments of %" PRIu64 " KiB",
                            store->config.path, needed >> 10);
    if (needed > r->taken_bytes)
        r->taken_bytes = needed;
    r->part_taken_bytes = needed;
    return status_ok();
}

static status_t begin_targets(struct store *store, struct cleaner_round *r)
{
    struct keeper *k = &store->keeper;
    const struct segment_folder folder = store_segment_folder(store);
    TRY(take_room(store, r));
    for (unsigned t = 0; t < TEMPERATURES; t++) {
        uint64_t bytes = room_of(r, r->bytes_of[t]);
        if (bytes == 0)
            continue;
        if (!spare_suits_data(&folder, bytes))
            space_clear(store, bytes + LOG_BLOCK_BYTES);
        TRY(data_segment_begin(&folder, k->cleaner.next_number++, bytes, piece_bytes(store), &r->targets[t]));
    }
    return status_ok();
}

static status_t finish_targets(struct store *store, struct cleaner_round *r)
{
    for (unsigned t = 0; t < TEMPERATURES; t++) {
        struct data_segment *d = r->targets[t];
        struct segment_file *file;
        if (d == NULL)
            continue;
        r->targets[t] = NULL;
        add(&store->keeper.cleaner.copied_bytes, data_segment_bytes(d));
        TRY(data_segment_finish(d, &file));
        file->since_ms = clock_monotonic_us() / 1000;
    }
    r->taken_bytes -= r->part_taken_bytes;
    space_release(store, r->part_taken_bytes);
    return status_ok();
}

static status_t write_step(struct store *store, struct cleaner_round *r)
{
    struct moving_value *v;
    struct keeper_step step = step_begin(store);
    while ((v = moving_first(&r->values)) && keeper_step_goes_on(&step)) {
        TRY(data_segment_add(r->targets[v->hot], moving_key(v), moving_content(v), v->version, v->expire_ms,
                             &v->to));
        r->done_bytes += record_bytes(RECORD_MOVED, v->key_len, v->value_len);
        moving_advance(&r->values);
    }
    if (v)
        return status_ok();
    TRY(finish_targets(store, r));
    r->phase = PHASE_MOVE;
    return status_ok();
}

/* ---- the index follows ---- */

/* False: not now. hint: from ordered_prefetch, or 0. */
static bool move_one(struct store *store, const struct moving_value *v, uint32_t hint)
{
    uint32_t stripe = keylock_stripe(v->hash);
    if (!keylock_acquire(&store->locks, stripe))
        return false;
    struct node *node = hash_table_find(&store->hash, v->hash, moving_key(v));
    enum payload_moved moved = PAYLOAD_ELSEWHERE;
    if (node)
        moved = payload_relocate(store, store->keeper.sw->private, node, v->hash, v->from, v->to, hint);
    keylock_release(&store->locks, stripe);
    if (moved == PAYLOAD_MOVED)
        add(&store->keeper.cleaner.moved, 1);
    return moved != PAYLOAD_NOT_NOW;
}

/* What moving the next n values will touch. hints: of those whose node will be exchanged; else 0. */
static void move_ahead(const struct store *store, const struct moving_value *v, uint32_t *hints, unsigned n)
{
    const struct node *nodes[MOVE_AHEAD];
    struct slice keys[MOVE_AHEAD];
    uint32_t leaves[MOVE_AHEAD];
    unsigned places[MOVE_AHEAD], count = 0;
    for (unsigned i = 0; i < n; i++)
        hash_table_prefetch(&store->hash, v[i].hash);
    for (unsigned i = 0; i < n; i++) {
        nodes[i] = hash_table_candidate(&store->hash, v[i].hash);
        if (nodes[i])
            store_node_prefetch(nodes[i]);
    }
    for (unsigned i = 0; i < n; i++) {
        hints[i] = 0;
        if (nodes[i] == NULL || payload_moves_in_place(node_meta(nodes[i])))
            continue;
        keys[count] = moving_key(&v[i]);
        places[count++] = i;
    }
    ordered_prefetch(&store->ordered, keys, leaves, count);
    for (unsigned i = 0; i < count; i++)
        hints[places[i]] = leaves[i];
}

/* True: all are done. */
static bool move_step(struct store *store, struct cleaner_round *r, uint64_t *wait_us)
{
    struct store_worker *sw = store->keeper.sw;
    struct keeper_step step = step_begin(store);
    uint32_t hints[MOVE_AHEAD] = {0};
    size_t first = r->at, ahead = r->at; /* hints are for the values from first on, before ahead */
    store_turn_begin(sw);
    for (; r->at < r->values.count && keeper_step_goes_on(&step); r->at++) {
        struct moving_value *v = &r->values.values[r->at];
        if (r->at == ahead) {
            size_t left = r->values.count - ahead;
            unsigned n = left < MOVE_AHEAD ? (unsigned)left : MOVE_AHEAD;
            move_ahead(store, v, hints, n);
            first = ahead;
            ahead += n;
        }
        if (!move_one(store, v, hints[r->at - first])) {
            *wait_us = BUSY_WAIT_US;
            break;
        }
        moving_drop(v);
    }
    store_turn_end(sw);
    return r->at == r->values.count;
}

/* ---- steps ---- */

static void measure_fill(struct store *store)
{
    struct cleaner *c = &store->keeper.cleaner;
    uint64_t now_ms = clock_monotonic_us() / 1000;
    if (now_ms < c->logged_ms + IDLE_MS)
        return;
    uint64_t bytes = log_bytes(store->log);
    if (c->logged_ms && now_ms > c->logged_ms)
        c->fill_rate = (bytes - c->logged_bytes) * 1000 / (now_ms - c->logged_ms);
    c->logged_ms = now_ms;
    c->logged_bytes = bytes;
    c->logged_lsn = log_tail_lsn(store->log);
    c->fill_lately -= c->fill_lately / FILL_LATELY_LOOKS;
    if (c->fill_lately < c->fill_rate)
        c->fill_lately = c->fill_rate;
}

/* Hardly anything was written lately, nor since then: that shows at the next step already. */
static bool is_quiet(const struct store *store)
{
    const struct cleaner *c = &store->keeper.cleaner;
    return c->fill_rate < QUIET_BYTES_PER_SECOND && log_tail_lsn(store->log) - c->logged_lsn < QUIET_BYTES;
}

/* While nobody writes and there is room. What a round is late by now need not be made good later. */
static uint64_t pause_us_quiet(struct cleaner_round *r)
{
    uint64_t planned = r->done_bytes * 1000000 / BYTES_PER_SECOND;
    uint64_t spent = clock_monotonic_us() - r->start_us;
    if (planned <= spent + REST_US_QUIET) {
        r->start_us += spent > planned ? spent - planned : 0;
        return REST_US_QUIET;
    }
    return planned - spent < PAUSE_US_MAX ? planned - spent : PAUSE_US_MAX;
}

/* Asking costs a system call: the answer of a moment ago will do. */
static enum space_level level_lately(struct store *store)
{
    struct cleaner *c = &store->keeper.cleaner;
    uint64_t now_us = clock_monotonic_us();
    if (now_us >= c->level_us + LEVEL_US || (store_lacks_room(store) && c->level != SPACE_CRITICAL)) {
        c->level = space_level_now(store);
        c->level_us = now_us;
    }
    return c->level;
}

/* How long to pause: room must come free faster than the log takes it, and otherwise reads come first. */
static uint64_t pause_us(struct store *store, struct cleaner_round *r)
{
    if (is_tested(store))
        return 0;
    enum space_level level = level_lately(store);
    if (level == SPACE_CRITICAL)
        return KEEPER_REST_US_CRITICAL;
    if (level == SPACE_FINE && is_quiet(store))
        return pause_us_quiet(r);
    uint64_t rate = BYTES_PER_SECOND, dead = r->victims.bytes - r->victims.live;
    uint64_t wanted = dead ? store->keeper.cleaner.fill_rate * r->victims.bytes / dead * 2 : rate;
    rate = wanted > rate ? wanted : rate;
    rate *= level == SPACE_LOW ? 4 : 1;
    uint64_t planned = r->done_bytes * 1000000 / rate, spent = clock_monotonic_us() - r->start_us;
    uint64_t wait = planned > spent + KEEPER_REST_US ? planned - spent : KEEPER_REST_US;
    return wait < PAUSE_US_MAX ? wait : PAUSE_US_MAX; /* room may get short meanwhile */
}

/* Values in memory that have moved are in the keeper's queue of those that may leave; where nobody writes
 * only the keeper comes by. */
static void evict_some(struct store *store)
{
    if (!store_evicts(store))
        return;
    store_turn_begin(store->keeper.sw);
    (void)memory_relieve(store->keeper.sw, EVICT_STEPS);
    store_turn_end(store->keeper.sw);
}

static bool may_retry(const struct store *store, uint64_t now_ms)
{
    const struct cleaner *c = &store->keeper.cleaner;
    return store->config.no_threads || backoff_is_over(&c->backoff, now_ms, store_lacks_room(store));
}

/* Nothing is under way: is there something to do? */
static bool idle_step(struct store *store)
{
    struct cleaner *c = &store->keeper.cleaner;
    enum space_level level;
    uint64_t now_ms = clock_monotonic_us() / 1000;
    if (!is_tested(store) && now_ms < c->idle_ms + IDLE_MS)
        return false;
    c->idle_ms = now_ms;
    evict_some(store);
    if (c->next_number == 0) {
        status_t s = space_begin(store);
        if (!status_is_ok(&s)) {
            LOG_WARNING("%s", s.text);
            return false;
        }
    }
    if (space_step(store, &level)) {
        c->idle_ms = 0;
        return true;
    }
    if (may_retry(store, now_ms) && begin_round(store, level))
        return true;
    bool asked = space_cleaned(store);
    bool waits = c->waits_for_checkpoint || store->keeper.checkpoint || now_ms < c->backoff.until_ms ||
                 segments_bytes_get(store->segments).leaving;
    if (!asked && !waits)
        add(&c->vain_looks, 1);
    return asked;
}

bool cleaner_step(struct store *store, uint64_t *wait_us)
{
    struct cleaner *c = &store->keeper.cleaner;
    struct cleaner_round *r = c->round;
    status_t s = status_ok();
    measure_fill(store);
    if (r == NULL) {
        bool more = idle_step(store);
        atomic_store_explicit(&c->state, c->round != NULL, memory_order_relaxed);
        return more;
    }
    switch (r->phase) {
    case PHASE_READ:
        s = read_step(store, r, wait_us);
        break;
    case PHASE_TELL:
        if (!tell_step(store, r))
            break;
        s = begin_targets(store, r);
        r->at = 0;
        r->phase = PHASE_WRITE;
        break;
    case PHASE_WRITE:
        s = write_step(store, r);
        break;
    case PHASE_MOVE:
        if (move_step(store, r, wait_us)) {
            finish_part(store);
            return true;
        }
        break;
    }
    if (!status_is_ok(&s)) {
        give_up(store, &s);
        return true;
    }
    if (*wait_us == 0)
        *wait_us = pause_us(store, r);
    return true;
}
