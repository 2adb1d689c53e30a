/* The happy path of a cold GET: store_find answers STORE_COLD; store_fetch_want makes a landing, claimed by
 * the connection, in the wanted queue; at the end of the turn store_fetch_take gives its read out;
 * store_fetch_done checks the record and queues the waiter; the command runs again, fetch_look finds the
 * landing, the reply is written, and store_waiter_release lets it go at the end of that turn.
 *
 * Room. Claimed landings and those read ahead have half of the memory each, so that what was read ahead is
 * not dropped for want of room. A waiter that finds none is hungry and waits in a queue. Waiters hold claims
 * while they wait, so two large commands could wait for each other: one waiter at a time is privileged and
 * gets room beyond the limit. */
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

enum {
    BUCKETS_LEAST = 256,
    COMPLAINTS_PER_SECOND = 10,
    LANDINGS_PART = 16, /* of the cap, for those of all workers; and one waiter's beyond that */
    NO_ROOM_MS = 30000, /* for which one waits for room */
    TOUCH_BYTES = 4096,
    WANTED_LOOKS_MAX = 32, /* past some that there is no room for */
    LOST_MAX = 4,          /* look-ups of one command that may find an address whose file is gone */
};

enum landing_state {
    LANDING_WANTED,  /* in the wanted queue */
    LANDING_READING, /* given out */
    LANDING_THERE,
    LANDING_CORRUPT,
    LANDING_IO,
    LANDING_NO_ROOM,
};

/* Whose half of the memory it counts against. */
enum landing_account { ACCOUNT_CLAIMED, ACCOUNT_AHEAD, ACCOUNTS, ACCOUNT_NONE };

struct claim {
    struct landing *landing;
    struct store_waiter *waiter;
    struct claim *next;                       /* of the waiter's */
    struct claim *landing_next, **landing_at; /* of the landing's */
};

struct landing {
    struct landing *bucket_next;
    struct landing *next, *previous; /* in one of the lists; NULL: in none */
    uint64_t hash, version, address;
    struct segment_file *file; /* with a reference until it has landed; then NULL */
    struct claim *claims;
    char *buffer; /* aligned; from store_fetch_take on */
    const char *value;
    uint64_t start; /* offset in the file that the buffer is read from */
    size_t bytes;   /* of the buffer */
    uint32_t unit;  /* of direct reads; start and bytes are multiples */
    uint64_t landed_ms;
    uint32_t value_len, key_len;
    uint8_t state;       /* enum landing_state */
    uint8_t account;     /* enum landing_account */
    bool scan;           /* nobody but walks wants it */
    bool ahead;          /* read ahead, and never claimed */
    uint64_t refused_ms; /* since when there is no room for its buffer; 0: not refused */
    char key[];
};

/* Circular, with a head. */
struct landing_list {
    struct landing *first, *last;
};

struct waiter_list {
    struct store_waiter *first, *last;
};

/* Written by the worker with relaxed stores, read by anybody. */
struct numbers {
    _Atomic uint64_t hits, preads, bytes, joined, unused, errors, corrupt, depth, depth_max, memory;
};

struct fetch {
    struct store *store;
    struct fetch_config config;
    struct landing **buckets;
    size_t bucket_count, count; /* bucket_count: a power of two */
    struct landing_list wanted;
    struct landing_list kept;    /* read ahead and landed, oldest first */
    struct landing_list dropped; /* of no more use; views of this turn may point into them */
    uint64_t turn;               /* in which the dropped ones were dropped */
    uint64_t used[ACCOUNTS];     /* bytes */
    uint32_t in_flight;
    struct waiter_list ready, hungry;
    struct store_waiter *privileged;
    uint64_t complaint_s;
    unsigned complaints;
    struct numbers numbers;
};

#define NUMBER_GET(field)    atomic_load_explicit(&(field), memory_order_relaxed)
#define NUMBER_SET(field, v) atomic_store_explicit(&(field), (v), memory_order_relaxed)
#define NUMBER_ADD(field, v) NUMBER_SET(field, NUMBER_GET(field) + (v)) /* one writer */

/* ---- lists ---- */

static void list_add(struct landing_list *list, struct landing *l)
{
    l->next = NULL;
    l->previous = list->last;
    *(list->last ? &list->last->next : &list->first) = l;
    list->last = l;
}

static void list_remove(struct landing_list *list, struct landing *l)
{
    *(l->previous ? &l->previous->next : &list->first) = l->next;
    *(l->next ? &l->next->previous : &list->last) = l->previous;
    l->next = l->previous = NULL;
}

static struct waiter_list *queue_of(struct fetch *f, const struct store_waiter *w)
{
    return w->hungry ? &f->hungry : &f->ready;
}

/* Queues the waiter when nothing is pending any more. */
static void waiter_settle(struct fetch *f, struct store_waiter *w)
{
    if (w->pending || w->queued)
        return;
    struct waiter_list *queue = queue_of(f, w);
    w->queued = true;
    w->next = NULL;
    w->previous = queue->last;
    *(queue->last ? &queue->last->next : &queue->first) = w;
    queue->last = w;
}

static void waiter_unqueue(struct fetch *f, struct store_waiter *w)
{
    if (!w->queued)
        return;
    struct waiter_list *queue = queue_of(f, w);
    *(w->previous ? &w->previous->next : &queue->first) = w->next;
    *(w->next ? &w->next->previous : &queue->last) = w->previous;
    w->next = w->previous = NULL;
    w->queued = false;
}

/* ---- landings ---- */

static struct landing **place_of(const struct fetch *f, uint64_t hash, uint64_t version)
{
    return &f->buckets[(hash ^ version * 0x9e3779b97f4a7c15ull) >> 20 & (f->bucket_count - 1)];
}

static struct landing *landing_find(const struct fetch *f, uint64_t hash, struct slice key, uint64_t version,
                                    uint32_t value_len)
{
    for (struct landing *l = *place_of(f, hash, version); l; l = l->bucket_next) {
        if (l->hash == hash && l->version == version && l->value_len == value_len &&
            slice_equal(slice_make(l->key, l->key_len), key))
            return l;
    }
    return NULL;
}

static void buckets_grow(struct fetch *f)
{
    struct landing **old = f->buckets;
    size_t count = f->bucket_count;
    f->bucket_count *= 2;
    f->buckets = calloc(f->bucket_count, sizeof(struct landing *));
    CHECK(f->buckets);
    for (size_t i = 0; i < count; i++) {
        for (struct landing *l = old[i], *next; l; l = next) {
            next = l->bucket_next;
            struct landing **place = place_of(f, l->hash, l->version);
            l->bucket_next = *place;
            *place = l;
        }
    }
    free(old);
}

static void account(struct fetch *f, struct landing *l, enum landing_account to)
{
    if (l->account != ACCOUNT_NONE)
        f->used[l->account] -= l->bytes;
    if (to != ACCOUNT_NONE)
        f->used[to] += l->bytes;
    l->account = (uint8_t)to;
}

static void landing_destroy(struct fetch *f, struct landing *l)
{
    if (l->file)
        segments_release(l->file);
    if (l->buffer) {
        NUMBER_ADD(f->numbers.memory, -(uint64_t)l->bytes);
        atomic_fetch_sub(&f->store->landing_bytes, l->bytes);
    }
    free(l->buffer);
    free(l);
}

/* In no list, without claims. */
static void landing_free(struct fetch *f, struct landing *l)
{
    struct landing **at = place_of(f, l->hash, l->version);
    while (*at != l)
        at = &(*at)->bucket_next;
    *at = l->bucket_next;
    f->count--;
    account(f, l, ACCOUNT_NONE);
    landing_destroy(f, l);
}

/* It was looked at, or will not be: goes when the turn is over. */
static void landing_drop(struct fetch *f, struct landing *l)
{
    account(f, l, ACCOUNT_NONE);
    list_add(&f->dropped, l);
}

/* Frees what an earlier turn has dropped, and what was read ahead too long ago. */
static struct fetch *fetch_enter(struct store_worker *sw)
{
    struct fetch *f = sw->fetch;
    if (LIKELY(f->turn == sw->private->turn))
        return f;
    f->turn = sw->private->turn;
    while (f->dropped.first) {
        struct landing *l = f->dropped.first;
        list_remove(&f->dropped, l);
        landing_free(f, l);
    }
    while (f->kept.first && f->kept.first->landed_ms + FETCH_AHEAD_MS <= sw->now_ms) {
        struct landing *l = f->kept.first;
        list_remove(&f->kept, l);
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
        list_remove(&f->kept, l);
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

static bool has_room(const struct fetch *f, enum landing_account which, uint64_t bytes)
{
    return f->used[which] + bytes <= f->config.memory_bytes_max / 2;
}

/* May this waiter claim so much more? If not, it is hungry. */
static bool may_claim(struct fetch *f, struct store_waiter *w, uint64_t bytes)
{
    if (f->used[ACCOUNT_CLAIMED] == 0 || has_room(f, ACCOUNT_CLAIMED, bytes))
        return true;
    if (f->privileged == NULL)
        f->privileged = w;
    if (f->privileged == w)
        return true;
    if (!w->hungry) {
        waiter_unqueue(f, w);
        w->hungry = true;
        w->hungry_bytes = bytes;
        waiter_settle(f, w);
    }
    return false;
}

/* Gets the room for a new landing. */
static enum store_result take_room(struct fetch *f, struct landing *l, struct store_waiter *waiter)
{
    if (waiter == NULL && !has_room(f, ACCOUNT_AHEAD, l->bytes))
        return STORE_BUSY;
    if (waiter && waiter->claims && waiter->bytes + l->bytes > f->config.command_bytes_max)
        return STORE_NO_MEMORY;
    if (waiter && !may_claim(f, waiter, l->bytes))
        return STORE_COLD;
    account(f, l, waiter ? ACCOUNT_CLAIMED : ACCOUNT_AHEAD);
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
    if (f->count >= f->bucket_count * 2)
        buckets_grow(f);
    struct landing **place = place_of(f, l->hash, l->version);
    l->bucket_next = *place;
    *place = l;
    f->count++;
    list_add(&f->wanted, l);
    *out = l;
    return STORE_COLD;
}

static void claim(struct fetch *f, struct landing *l, struct store_waiter *w)
{
    if (l->claims && l->claims->waiter == w) /* one command that names a key twice */
        return;
    struct claim *c = malloc(sizeof *c);
    CHECK(c);
    *c = (struct claim){l, w, w->claims, l->claims, &l->claims};
    if (l->claims)
        l->claims->landing_at = &c->landing_next;
    l->claims = c;
    w->claims = c;
    w->bytes += l->bytes;
    w->pending++;
    l->ahead = false;
    if (l->account != ACCOUNT_CLAIMED)
        account(f, l, ACCOUNT_CLAIMED);
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
        claim(f, l, waiter);
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
static bool share_allows(struct store *store, const struct landing *l)
{
    uint64_t cap = atomic_load_explicit(&store->memory_bytes_max, memory_order_relaxed);
    struct store_waiter *none = NULL;
    if (cap == 0 || atomic_load(&store->landing_bytes) + l->bytes <= cap / LANDINGS_PART)
        return true;
    if (l->claims == NULL)
        return false;
    struct store_waiter *owner = atomic_load(&store->landing_owner);
    return owner ? is_owners(l, owner)
                 : atomic_compare_exchange_strong(&store->landing_owner, &none, l->claims->waiter);
}

/* The buffer, written to: its read may end turns later. False: there is no room now. */
static bool make_buffer(struct store_worker *sw, struct landing *l)
{
    struct store *store = sw->store;
    if (!share_allows(store, l)) {
        sw->private->room.refused = true;
        return false;
    }
    if (!room_take(store, sw->private, l->bytes))
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
    list_remove(&f->wanted, l);
    l->state = LANDING_NO_ROOM;
    segments_release(l->file);
    l->file = NULL;
    for (struct claim *c = l->claims; c; c = c->landing_next) {
        c->waiter->pending--;
        waiter_settle(f, c->waiter);
    }
    if (l->claims == NULL)
        landing_free(f, l);
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
        else if (sw->now_ms - l->refused_ms > NO_ROOM_MS)
            give_up(f, l);
    }
    return NULL;
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
    list_remove(&f->wanted, l);
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
    for (struct claim *c = l->claims; c; c = c->landing_next) {
        c->waiter->pending--;
        waiter_settle(f, c->waiter);
    }
    if (l->claims)
        return;
    if (l->ahead && !in_memory)
        list_add(&f->kept, l);
    else
        landing_free(f, l);
}

/* ---- waiters ---- */

static bool hungry_may_go(const struct fetch *f)
{
    const struct store_waiter *w = f->hungry.first;
    return w && (f->privileged == NULL || f->used[ACCOUNT_CLAIMED] == 0 ||
                 has_room(f, ACCOUNT_CLAIMED, w->hungry_bytes));
}

bool store_waiter_due(const struct store_worker *sw)
{
    const struct fetch *f = sw->fetch;
    return f && (f->ready.first || hungry_may_go(f));
}

struct store_waiter *store_waiter_next(struct store_worker *sw)
{
    struct fetch *f = sw->fetch;
    struct store_waiter *w = f ? f->ready.first : NULL;
    if (w) {
        waiter_unqueue(f, w);
        return w;
    }
    while (f && hungry_may_go(f)) {
        w = f->hungry.first;
        waiter_unqueue(f, w);
        if (w->pending) /* it comes back when that has landed */
            continue;
        w->hungry = false;
        return w;
    }
    return NULL;
}

static void unclaim(struct fetch *f, struct claim *c)
{
    struct landing *l = c->landing;
    *c->landing_at = c->landing_next;
    if (c->landing_next)
        c->landing_next->landing_at = c->landing_at;
    free(c);
    if (l->claims)
        return;
    switch ((enum landing_state)l->state) {
    case LANDING_WANTED:
        list_remove(&f->wanted, l);
        landing_free(f, l);
        break;
    case LANDING_READING: /* goes when it has landed */
        account(f, l, ACCOUNT_AHEAD);
        break;
    default:
        landing_drop(f, l);
        break;
    }
}

void store_waiter_release(struct store_worker *sw, struct store_waiter *waiter)
{
    struct fetch *f = sw->fetch;
    if (f == NULL)
        return;
    waiter_unqueue(f, waiter);
    if (f->privileged == waiter)
        f->privileged = NULL;
    if (UNLIKELY(atomic_load(&sw->store->landing_owner) == waiter))
        atomic_store(&sw->store->landing_owner, NULL);
    while (waiter->claims) {
        struct claim *c = waiter->claims;
        waiter->claims = c->next;
        unclaim(f, c);
    }
    *waiter = (struct store_waiter){0};
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
    f->bucket_count = BUCKETS_LEAST;
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
    for (size_t i = 0; i < f->bucket_count; i++) {
        for (struct landing *l = f->buckets[i], *next; l; l = next) {
            next = l->bucket_next;
            for (struct claim *c = l->claims, *other; c; c = other) {
                other = c->landing_next;
                free(c);
            }
            landing_destroy(f, l);
        }
    }
    free(f->buckets);
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
