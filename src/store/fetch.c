/* The happy path of a cold GET: store_find answers STORE_COLD; store_fetch_want makes a landing, claimed by
 * the connection, in the wanted queue; at the end of the turn store_fetch_take gives its read out;
 * store_fetch_done checks the record and queues the waiter; the command runs again, fetch_look finds the
 * landing, the reply is written, and store_waiter_release lets it go at the end of that turn.
 *
 * landings.c has the table of landings, waiters.c who waits for them and what room they may take. */
#include "store/fetch.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/logger.h"
#include "log/record.h"
#include "log/segment.h"
#include "store/internal.h"
#include "store/landings.h"

enum {
    COMPLAINTS_PER_SECOND = 10,
    LANDINGS_PART = 16, /* of the cap, for those of all workers; and one waiter's beyond that */
    NO_ROOM_MS = 30000, /* for which one waits for room */
    HOLDING_MS = 2000,  /* the same, for one that holds others of its values meanwhile */
    ROOMLESS_BYTES = 256 << 10,
    TOUCH_BYTES = 4096,
    WANTED_LOOKS_MAX = 32, /* past some that there is no room for */
    LOST_MAX = 4,          /* look-ups of one command that may find an address whose file is gone */
};

/* ---- looking ---- */

/* Frees what an earlier turn has dropped, and what was read ahead too long ago. */
static struct fetch *fetch_enter(struct store_worker *sw)
{
    struct fetch *f = sw->fetch;
    if (LIKELY(f->turn == sw->private->turn))
        return f;
    f->turn = sw->private->turn;
    while (f->dropped.first) {
        struct landing *l = f->dropped.first;
        landing_list_remove(&f->dropped, l);
        landing_free(f, l);
    }
    while (f->kept.first && f->kept.first->landed_ms + FETCH_AHEAD_MS <= sw->now_ms) {
        struct landing *l = f->kept.first;
        landing_list_remove(&f->kept, l);
        landing_free(f, l);
        NUMBER_ADD(f->numbers.unused, 1);
    }
    return f;
}

static enum store_result result_of(const struct landing *l)
{
    switch ((enum landing_state)l->state) {
    case LANDING_THERE:
        return STORE_OK;
    case LANDING_CORRUPT:
        return STORE_CORRUPT;
    case LANDING_IO:
        return STORE_IO;
    case LANDING_NO_ROOM:
        return STORE_NO_MEMORY;
    default:
        return STORE_COLD;
    }
}

enum store_result fetch_look(struct store_worker *sw, uint64_t hash, struct slice key, uint64_t version,
                             uint32_t len, const char **value)
{
    if (sw->fetch == NULL)
        return STORE_COLD;
    struct fetch *f = fetch_enter(sw);
    struct landing *l = landing_find(f, hash, key, version, len);
    if (l == NULL || l->state < LANDING_THERE)
        return STORE_COLD;
    if (l->account == ACCOUNT_AHEAD) {
        landing_list_remove(&f->kept, l);
        landing_drop(f, l);
    }
    NUMBER_ADD(f->numbers.hits, 1);
    *value = l->value;
    return result_of(l);
}

/* ---- wanting ---- */

static void complain(struct store_worker *sw, const char *what, uint64_t address)
{
    struct fetch *f = sw->fetch;
    char place[STORE_ADDRESS_TEXT_BYTES];
    if (f->complaint_s != sw->now_ms / 1000) {
        f->complaint_s = sw->now_ms / 1000;
        f->complaints = 0;
    }
    if (++f->complaints > COMPLAINTS_PER_SECOND)
        return;
    store_address_text(address, place);
    LOG_WARNING("%s: %s", what, place);
}

void store_address_text(uint64_t address, char text[STORE_ADDRESS_TEXT_BYTES])
{
    snprintf(text, STORE_ADDRESS_TEXT_BYTES, "%s-%010" PRIu64 ".kv at offset %" PRIu64,
             address >> 63 ? "data" : "log", (address & ~((uint64_t)1 << 63)) >> LOG_SEGMENT_SHIFT,
             lsn_offset(address));
}

/* Sets what to read for the record: whole units around it. False: it would not lie in the file. */
static bool window_set(const struct fetch *f, struct landing *l, const struct segment_file *file)
{
    uint64_t offset = lsn_offset(l->address), end = offset + segment_weight(l->key_len, l->value_len);
    uint64_t file_bytes = atomic_load_explicit(&file->bytes, memory_order_relaxed);
    if (offset + record_bytes(RECORD_SET, l->key_len, l->value_len) > file_bytes)
        return false;
    l->unit = segments_direct_unit(f->config.segments);
    l->start = offset & ~(uint64_t)(l->unit - 1);
    l->bytes = round_up(end < file_bytes ? end : file_bytes, l->unit) - l->start;
    return true;
}

/* Gets the room for a new landing. */
static enum store_result take_room(struct fetch *f, struct landing *l, struct store_waiter *waiter)
{
    if (waiter == NULL && !landing_has_room(f, ACCOUNT_AHEAD, l->bytes))
        return STORE_BUSY;
    if (waiter && waiter->claims && waiter->bytes + l->bytes > f->config.command_bytes_max)
        return STORE_NO_MEMORY;
    if (waiter && !waiter_may_claim(f, waiter, l->bytes))
        return STORE_COLD;
    landing_account(f, l, waiter ? ACCOUNT_CLAIMED : ACCOUNT_AHEAD);
    return STORE_OK;
}

/* The file is gone: the value has just been moved, the next look-up finds the new place. Nothing is moved
 * that often: after some times the address itself is bad. */
static enum store_result lost(struct store_worker *sw, uint64_t address, struct store_waiter *waiter)
{
    if (waiter == NULL || ++waiter->lost < LOST_MAX)
        return STORE_OK;
    complain(sw, "no such file", address);
    NUMBER_ADD(sw->fetch->numbers.corrupt, 1);
    return STORE_CORRUPT;
}

/* A new landing in the wanted queue, or why not. */
static enum store_result landing_create(struct store_worker *sw, const struct store_key *key,
                                        uint64_t address, uint64_t version, uint32_t value_len,
                                        struct store_waiter *waiter, struct landing **out)
{
    struct fetch *f = sw->fetch;
    struct segment_file *file = segments_acquire(f->config.segments, address);
    if (file == NULL)
        return lost(sw, address, waiter);
    struct landing *l = malloc(sizeof *l + key->name.len);
    CHECK(l);
    *l = (struct landing){.hash = key->hash,
                          .version = version,
                          .address = address,
                          .value_len = value_len,
                          .key_len = (uint32_t)key->name.len,
                          .state = LANDING_WANTED,
                          .account = ACCOUNT_NONE,
                          .scan = true};
    memcpy(l->key, key->name.data, key->name.len);
    enum store_result r = STORE_CORRUPT;
    if (window_set(f, l, file)) {
        r = take_room(f, l, waiter);
    } else {
        complain(sw, "no record can be here", address);
        NUMBER_ADD(f->numbers.corrupt, 1);
    }
    if (r != STORE_OK) {
        segments_release(file);
        free(l);
        return r;
    }
    l->file = file;
    landing_insert(f, l);
    *out = l;
    return STORE_COLD;
}

enum store_result store_fetch_want(struct store_worker *sw, const struct store_key *key, uint64_t address,
                                   uint64_t version, uint32_t value_len, struct store_waiter *waiter,
                                   bool scan)
{
    struct fetch *f = fetch_enter(sw);
    struct landing *l = landing_find(f, key->hash, key->name, version, value_len);
    if (l && l->state >= LANDING_THERE)
        return result_of(l);
    if (l == NULL) {
        enum store_result r = landing_create(sw, key, address, version, value_len, waiter, &l);
        if (l == NULL)
            return r;
    } else if (waiter) {
        NUMBER_ADD(f->numbers.joined, 1);
    }
    l->scan &= scan;
    l->ahead |= waiter == NULL && l->claims == NULL;
    if (waiter)
        waiter_claim(f, l, waiter);
    return STORE_COLD;
}

bool store_key_ahead(struct store_worker *sw, const struct store_key *key)
{
    struct store_view view;
    uint64_t depends = sw->depends_lsn;
    enum store_result r = store_find(sw, key, &view);
    sw->depends_lsn = depends;
    return r != STORE_COLD ||
           store_fetch_want(sw, key, view.address, view.sequence >> 1, view.len, NULL, false) != STORE_BUSY;
}

/* ---- reading ---- */

static bool is_owners(const struct landing *l, const struct store_waiter *owner)
{
    for (const struct claim *c = l->claims; c; c = c->landing_next)
        if (c->waiter == owner)
            return true;
    return false;
}

/* All workers' buffers have a share of the cap. Beyond it one waiter gets what it needs: so there is always
 * one that may complete, and not each worker holds a large value while it waits for room for its reply. */
static bool share_allows(struct store_worker *sw, const struct landing *l)
{
    struct store *store = sw->store;
    struct fetch *f = sw->fetch;
    uint64_t cap = atomic_load_explicit(&store->memory_bytes_max, memory_order_relaxed);
    struct store_waiter *none = NULL;
    if (cap == 0 || atomic_load(&store->landing_bytes) + l->bytes <= cap / LANDINGS_PART)
        return true;
    if (f->owner || l->claims == NULL)
        return is_owners(l, f->owner);
    if (!atomic_compare_exchange_strong(&store->landing_owner, &none, l->claims->waiter))
        return false;
    waiter_owns(f, l->claims->waiter);
    return true;
}

/* Commands' short reads need none while the worker has little from disk in memory: what is there can be read
 * however full that is, some values at a time. */
static bool needs_room(struct fetch *f, const struct landing *l)
{
    return l->claims == NULL || NUMBER_GET(f->numbers.memory) + l->bytes > ROOMLESS_BYTES;
}

/* The buffer, written to: its read may end turns later. False: there is no room now. */
static bool make_buffer(struct store_worker *sw, struct landing *l)
{
    struct store *store = sw->store;
    if (!share_allows(sw, l)) {
        sw->private->room.refused = true;
        return false;
    }
    if (!room_take(store, sw->private, l->bytes) && needs_room(sw->fetch, l))
        return false;
    l->buffer = aligned_alloc(l->unit, l->bytes);
    CHECK(l->buffer);
    atomic_fetch_add(&store->landing_bytes, l->bytes);
    if (store_evicts(store)) {
        for (size_t at = 0; at < l->bytes; at += TOUCH_BYTES)
            l->buffer[at] = 0;
    }
    return true;
}

/* It has waited too long: its waiters are told. */
static void give_up(struct fetch *f, struct landing *l)
{
    landing_list_remove(&f->wanted, l);
    l->state = LANDING_NO_ROOM;
    segments_release(l->file);
    l->file = NULL;
    for (struct claim *c = l->claims; c; c = c->landing_next)
        waiter_landed(f, c->waiter);
    if (l->claims == NULL)
        landing_free(f, l);
}

/* Does whoever wants it hold other values, which may be what there is no room beside? */
static bool is_held_with_others(const struct landing *l)
{
    return l->claims && l->claims->waiter->bytes > l->bytes;
}

/* The first that is wanted and that there is room for, with its buffer. NULL: none. */
static struct landing *next_wanted(struct store_worker *sw)
{
    struct fetch *f = sw->fetch;
    unsigned looks = 0;
    for (struct landing *l = f->wanted.first, *next; l && looks++ < WANTED_LOOKS_MAX; l = next) {
        next = l->next;
        if (make_buffer(sw, l))
            return l;
        if (l->refused_ms == 0)
            l->refused_ms = sw->now_ms;
        else if (sw->now_ms - l->refused_ms > (is_held_with_others(l) ? HOLDING_MS : NO_ROOM_MS))
            give_up(f, l);
    }
    return NULL;
}

unsigned store_fetch_wanted(const struct store_worker *sw, unsigned most)
{
    const struct fetch *f = sw->fetch;
    unsigned count = 0;
    if (f == NULL)
        return 0;
    for (const struct landing *l = f->wanted.first; l && count < most; l = l->next)
        count++;
    return count;
}

bool store_fetch_take(struct store_worker *sw, struct store_fetch *fetch)
{
    if (sw->fetch == NULL)
        return false;
    struct fetch *f = fetch_enter(sw);
    if (f->wanted.first == NULL || f->in_flight >= f->config.io_depth)
        return false;
    struct landing *l = next_wanted(sw);
    if (l == NULL)
        return false;
    landing_list_remove(&f->wanted, l);
    l->state = LANDING_READING;
    *fetch = (struct store_fetch){
        .fd = l->file->fd,
        .buffer = l->buffer,
        .len = l->bytes,
        .offset = l->start,
        .landing = l,
    };
    f->in_flight++;
    NUMBER_ADD(f->numbers.memory, l->bytes);
    NUMBER_ADD(f->numbers.preads, 1);
    NUMBER_SET(f->numbers.depth, f->in_flight);
    if (f->in_flight > NUMBER_GET(f->numbers.depth_max))
        NUMBER_SET(f->numbers.depth_max, f->in_flight);
    return true;
}

static bool holds_value(enum record_type type)
{
    return type == RECORD_SET || type == RECORD_SET_EXPIRE || type == RECORD_MOVED;
}

/* What the bytes are worth. */
static enum landing_state check(struct store_worker *sw, struct landing *l, int64_t result)
{
    struct fetch *f = sw->fetch;
    uint64_t skip = lsn_offset(l->address) - l->start;
    struct record record;
    if (result >= 0 && (uint64_t)result > skip &&
        record_decode(l->buffer + skip, (size_t)result - skip, l->address, l->file->generation, &record) >
            0 &&
        holds_value(record.type) && slice_equal(record.key, slice_make(l->key, l->key_len)) &&
        record.value.len == l->value_len) {
        l->value = record.value.data;
        return LANDING_THERE;
    }
    if (result < 0 || (uint64_t)result < skip + record_bytes(RECORD_SET, l->key_len, l->value_len)) {
        complain(sw, result < 0 ? strerror((int)-result) : "a read of a value ended early", l->address);
        NUMBER_ADD(f->numbers.errors, 1);
        return LANDING_IO;
    }
    complain(sw, "corrupt record of a value", l->address);
    NUMBER_ADD(f->numbers.corrupt, 1);
    return LANDING_CORRUPT;
}

void store_fetch_done(struct store_worker *sw, const struct store_fetch *fetch, int64_t result)
{
    struct fetch *f = fetch_enter(sw);
    struct landing *l = fetch->landing;
    bool in_memory = false;
    CHECK(l->state == LANDING_READING && f->in_flight > 0);
    NUMBER_SET(f->numbers.depth, --f->in_flight);
    if (result > 0)
        NUMBER_ADD(f->numbers.bytes, (uint64_t)result);
    l->state = (uint8_t)check(sw, l, result);
    l->landed_ms = sw->now_ms;
    segments_release(l->file);
    l->file = NULL;
    if (l->state == LANDING_THERE) {
        struct store_key key = {slice_make(l->key, l->key_len), l->hash};
        in_memory = store_value_arrived(sw, &key, l->address, slice_make(l->value, l->value_len), l->scan);
    }
    for (struct claim *c = l->claims; c; c = c->landing_next)
        waiter_landed(f, c->waiter);
    if (l->claims)
        return;
    if (l->ahead && !in_memory)
        landing_list_add(&f->kept, l);
    else
        landing_free(f, l);
}

/* ---- life and numbers ---- */

void fetch_init(struct store_worker *sw, const struct fetch_config *config)
{
    struct fetch *f = calloc(1, sizeof *f);
    CHECK(f && sw->fetch == NULL);
    f->config = *config;
    f->store = sw->store;
    if (f->config.memory_bytes_max == 0)
        f->config.memory_bytes_max = FETCH_MEMORY_DEFAULT;
    if (f->config.command_bytes_max == 0)
        f->config.command_bytes_max = FETCH_COMMAND_BYTES_DEFAULT;
    if (f->config.io_depth == 0)
        f->config.io_depth = STORE_IO_DEPTH_DEFAULT;
    f->bucket_count = LANDING_BUCKETS_LEAST;
    f->buckets = calloc(f->bucket_count, sizeof(struct landing *));
    CHECK(f->buckets);
    sw->fetch = f;
}

void fetch_deinit(struct store_worker *sw)
{
    struct fetch *f = sw->fetch;
    if (f == NULL)
        return;
    CHECK(f->in_flight == 0);
    landings_deinit(f);
    free(f);
    sw->fetch = NULL;
}

void store_fetch_stats_get(struct store *store, struct store_fetch_stats *out)
{
    *out = (struct store_fetch_stats){0};
    for (unsigned i = 0; i < store->config.workers; i++) {
        const struct fetch *f = store->workers[i].fetch;
        if (f == NULL)
            continue;
        const struct numbers *n = &f->numbers;
        out->hits += NUMBER_GET(n->hits);
        out->preads += NUMBER_GET(n->preads);
        out->bytes += NUMBER_GET(n->bytes);
        out->joined += NUMBER_GET(n->joined);
        out->unused += NUMBER_GET(n->unused);
        out->errors += NUMBER_GET(n->errors);
        out->corrupt += NUMBER_GET(n->corrupt);
        out->depth += NUMBER_GET(n->depth);
        out->memory_bytes += NUMBER_GET(n->memory);
        if (NUMBER_GET(n->depth_max) > out->depth_max)
            out->depth_max = NUMBER_GET(n->depth_max);
    }
}
