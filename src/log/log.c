/* Opening, reserving, publishing, and moving from batch to batch. See log.h for the happy path. */
#include "log/log.h"

#include <errno.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/bytes.h"
#include "base/check.h"
#include "log/internal.h"
#include "log/spare.h"
#include "sys/clock.h"

#define WORD(turn, offset) ((uint64_t)(turn) << 32 | (offset))
enum { WORD_CLOSED = 0xffffffffu }; /* offset while no batch is open */

/* ---- lists ---- */

void batch_append(struct batch_list *list, struct log_batch *batch)
{
    batch->next = NULL;
    if (list->last)
        list->last->next = batch;
    else
        list->first = batch;
    list->last = batch;
}

struct log_batch *batch_pop(struct batch_list *list)
{
    struct log_batch *batch = list->first;
    list->first = batch->next;
    if (list->first == NULL)
        list->last = NULL;
    return batch;
}

/* ---- batches, under the lock ---- */

static struct log_batch *pool_batch(struct log *log, uint32_t turn)
{
    return &log->pool[turn % LOG_POOL_BATCHES];
}

static void roll(struct log *log)
{
    struct segment *next = log->prepared;
    log->prepared = NULL;
    log->current->next = next;
    log->current = next;
    if (next->for_deletes) /* the next one will be made at once */
        atomic_store_explicit(&log->deletes_wait, true, memory_order_relaxed);
    log->position = LOG_BLOCK_BYTES;
}

static uint64_t segment_room(const struct log *log)
{
    return log->current->bytes - log->position;
}

/* Is there a next segment for everything? */
static bool has_next(const struct log *log)
{
    return log->prepared && !log->prepared->for_deletes;
}

/* A record needs a segment with room for so many bytes. */
static void want_segment_of(struct log *log, uint64_t bytes)
{
    if (bytes + LOG_BLOCK_BYTES <= log->wanted_bytes)
        return;
    if (log->wanted_bytes == 0)
        log->wanted_since_us = clock_monotonic_us();
    log->wanted_bytes = bytes + LOG_BLOCK_BYTES;
}

/* Makes sure that the current segment has room for a batch with `need` bytes of records. */
static bool make_room(struct log *log, uint64_t need)
{
    uint64_t bytes = BATCH_HEADER_BYTES + (need ? need : LOG_SMALL_BYTES_MAX);
    if (segment_room(log) >= bytes)
        return true;
    if (log->prepared && log->prepared->bytes - LOG_BLOCK_BYTES >= bytes) {
        roll(log);
        return true;
    }
    if (need)
        want_segment_of(log, bytes);
    return need == 0 && segment_room(log) >= LOG_BLOCK_BYTES;
}

static void batch_open(struct log *log, struct log_batch *b)
{
    uint64_t limit = segment_room(log) < LOG_BATCH_BYTES ? segment_room(log) : LOG_BATCH_BYTES;
    b->segment = log->current;
    b->done = false;
    b->free = false;
    atomic_store_explicit(&b->base_lsn, segment_lsn(log->current->number, log->position),
                          memory_order_relaxed);
    atomic_store_explicit(&b->generation, log->current->generation, memory_order_relaxed);
    atomic_store_explicit(&b->limit, limit, memory_order_relaxed);
    atomic_store_explicit(&b->published, BATCH_HEADER_BYTES, memory_order_relaxed);
    bool scarce = !has_next(log) &&
                  (log->current->for_deletes || segment_room(log) < LOG_BATCH_BYTES + LOG_HEADROOM_BYTES);
    atomic_store_explicit(&log->scarce, scarce, memory_order_relaxed);
}

/* Takes the word from whoever reserves: afterwards no reservation succeeds until a batch is opened. Returns
 * the open batch's final length, 0 if none was open. */
static uint64_t close_word(struct log *log)
{
    uint64_t old = atomic_exchange_explicit(&log->word, WORD(log->turn, WORD_CLOSED), memory_order_acq_rel);
    return (uint32_t)old == WORD_CLOSED ? 0 : (uint32_t)old;
}

static void append_closed(struct log *log, struct log_batch *b, uint64_t length)
{
    b->length = length;
    log->position += round_up(length, LOG_BLOCK_BYTES);
    log->tail_lsn = segment_lsn(log->current->number, log->position);
    batch_append(&log->closed, b);
}

/* The closed open batch leaves the stage: to the closed list if it holds something. */
static void retire_open(struct log *log, uint64_t length)
{
    struct log_batch *b = pool_batch(log, log->turn);
    if (length > BATCH_HEADER_BYTES) {
        append_closed(log, b, length);
    } else if (length) {
        b->free = true;
    }
}

static bool open_next(struct log *log, uint64_t need)
{
    struct log_batch *b = pool_batch(log, log->turn + 1);
    if (!b->free || !make_room(log, need))
        return false;
    batch_open(log, b);
    log->turn++;
    log->first_pending_us = 0;
    /* Release: pairs with log_reserve's acquire; the batch's fields are set. */
    atomic_store_explicit(&log->word, WORD(log->turn, BATCH_HEADER_BYTES), memory_order_release);
    return true;
}

bool log_switch(struct log *log, uint64_t need)
{
    retire_open(log, close_word(log));
    return open_next(log, need);
}

/* ---- reserving ---- */

static enum log_reserve_result refused(struct log *log, enum log_reserve_kind kind)
{
    bool comes = kind == LOG_NORMAL
                     ? has_next(log)
                     : log->prepared || atomic_load_explicit(&log->deletes_wait, memory_order_relaxed);
    return atomic_load_explicit(&log->disk_full, memory_order_relaxed) && !comes ? LOG_NO_SPACE : LOG_WAIT;
}

/* Room behind the open batch, and how much of a segment's end is kept for deletes. */
static uint64_t room_behind_open(const struct log *log)
{
    uint64_t word = atomic_load_explicit(&log->word, memory_order_relaxed), room = segment_room(log);
    uint64_t used = (uint32_t)word == WORD_CLOSED ? 0 : (uint32_t)word;
    return used < room ? room - used : 0;
}

static uint64_t headroom(const struct log *log)
{
    uint64_t share = log->current->bytes / 8;
    return share < LOG_HEADROOM_BYTES ? share : LOG_HEADROOM_BYTES;
}

/* Only deletes may use what is left: no segment for others is prepared. The disk may be full, or it is not
 * known yet. */
static bool in_headroom(struct log *log, uint64_t bytes)
{
    spin_lock(&log->lock);
    bool low = room_behind_open(log) < bytes + headroom(log);
    bool in = !has_next(log) && (low || log->current->for_deletes);
    spin_unlock(&log->lock);
    return in;
}

bool log_headroom_is_low(struct log *log)
{
    spin_lock(&log->lock);
    uint64_t longest = BATCH_HEADER_BYTES + LOG_SMALL_BYTES_MAX + LOG_BLOCK_BYTES; /* about half of it */
    bool low = log->current->for_deletes || room_behind_open(log) < longest;
    spin_unlock(&log->lock);
    return low;
}

uint64_t log_large_bytes(const struct log *log)
{
    /* Relaxed: a hint, or read under the lock. */
    return atomic_load_explicit(&((struct log *)(uintptr_t)log)->large_bytes, memory_order_relaxed);
}

/* Is the open batch so far, when it is closed, and a batch of so many bytes behind it in the current or the
 * prepared segment? One for deletes is for short records. */
static bool large_fits(const struct log *log, uint64_t bytes)
{
    uint64_t offset =
        (uint32_t)atomic_load_explicit(&((struct log *)(uintptr_t)log)->word, memory_order_relaxed);
    bool open = offset != WORD_CLOSED && offset > BATCH_HEADER_BYTES;
    return segment_room(log) >= bytes + (open ? round_up(offset, LOG_BLOCK_BYTES) : 0) ||
           (has_next(log) && log->prepared->bytes - LOG_BLOCK_BYTES >= bytes);
}

/* There was no room just now for a segment that this would need. */
static bool was_refused(const struct log *log, uint64_t bytes)
{
    return log->refused_bytes && bytes + LOG_BLOCK_BYTES >= log->refused_bytes &&
           clock_monotonic_us() - log->refused_us < LOG_REFUSED_US;
}

/* Under the lock. LOG_RESERVED: a batch of so many bytes of records may be opened. Else a segment for it is
 * wanted from now on, if it can have one. */
static enum log_reserve_result find_large(struct log *log, size_t records_bytes)
{
    uint64_t bytes = BATCH_HEADER_BYTES + records_bytes;
    if (log_large_bytes(log) >= LOG_LARGE_WAITING_MAX)
        return LOG_WAIT;
    if (large_fits(log, bytes))
        return LOG_RESERVED;
    if (was_refused(log, bytes))
        return LOG_NO_SPACE;
    if (log->prepared == NULL || has_next(log))
        want_segment_of(log, bytes);
    return refused(log, LOG_NORMAL);
}

static enum log_reserve_result reserve_large(struct log *log, size_t bytes, struct log_batch *large,
                                             struct log_slot *slot)
{
    spin_lock(&log->lock);
    enum log_reserve_result result = find_large(log, bytes);
    if (result == LOG_RESERVED) {
        retire_open(log, close_word(log)); /* others may have reserved there since */
        result = find_large(log, bytes);
    }
    if (result == LOG_RESERVED) {
        CHECK(make_room(log, bytes));
        atomic_fetch_add_explicit(&log->large_bytes, large->capacity, memory_order_relaxed);
        batch_open(log, large);
        append_closed(log, large, BATCH_HEADER_BYTES + bytes);
        slot->lsn = atomic_load_explicit(&large->base_lsn, memory_order_relaxed) + BATCH_HEADER_BYTES;
        slot->generation = atomic_load_explicit(&large->generation, memory_order_relaxed);
        slot->dst = large->buffer + BATCH_HEADER_BYTES;
        slot->batch = large;
    }
    if ((uint32_t)atomic_load_explicit(&log->word, memory_order_relaxed) == WORD_CLOSED)
        (void)open_next(log, 0); /* if not now, then when a batch has come free */
    spin_unlock(&log->lock);
    return result;
}

/* True when it is worth trying again. */
static bool make_way(struct log *log, uint64_t seen, size_t bytes, enum log_reserve_kind kind,
                     enum log_reserve_result *why)
{
    bool again = true;
    spin_lock(&log->lock);
    if (atomic_load_explicit(&log->word, memory_order_relaxed) == seen) { /* nobody else did it meanwhile */
        uint64_t need = bytes <= LOG_SMALL_BYTES_MAX ? bytes : 0;
        /* Keep the open batch when nothing can replace it. */
        bool possible = pool_batch(log, log->turn + 1)->free;
        if (possible)
            again = log_switch(log, need);
        else
            again = false;
        if (!again)
            *why = refused(log, kind);
    }
    spin_unlock(&log->lock);
    return again;
}

/* What nothing can be reserved for, however much it is; LOG_RESERVED: go on. */
static inline enum log_reserve_result refused_at_once(struct log *log, size_t bytes,
                                                      enum log_reserve_kind kind)
{
    if (UNLIKELY(atomic_load_explicit(&log->failed, memory_order_relaxed) != NULL))
        return LOG_DEAD;
    if (UNLIKELY(atomic_load_explicit(&log->scarce, memory_order_relaxed)) && kind == LOG_NORMAL &&
        in_headroom(log, bytes))
        return atomic_load_explicit(&log->disk_full, memory_order_relaxed) ? LOG_NO_SPACE : LOG_WAIT;
    return LOG_RESERVED;
}

enum log_reserve_result log_large_ask(struct log *log, size_t bytes, enum log_reserve_kind kind)
{
    enum log_reserve_result result = refused_at_once(log, bytes, kind);
    if (result != LOG_RESERVED)
        return result;
    spin_lock(&log->lock);
    result = find_large(log, bytes);
    spin_unlock(&log->lock);
    return result;
}

enum log_reserve_result log_reserve(struct log *log, size_t bytes, uint32_t records,
                                    enum log_reserve_kind kind, struct log_batch *large,
                                    struct log_slot *slot)
{
    DCHECK(bytes > 0 && bytes % 8 == 0);
    enum log_reserve_result result = refused_at_once(log, bytes, kind);
    if (UNLIKELY(result != LOG_RESERVED))
        return result;
    slot->bytes = bytes;
    slot->records = records;
    if (large)
        return reserve_large(log, bytes, large, slot);
    CHECK(bytes <= LOG_SMALL_BYTES_MAX);
    /* Acquire: pairs with open_next. */
    uint64_t word = atomic_load_explicit(&log->word, memory_order_acquire);
    for (;;) {
        struct log_batch *b = pool_batch(log, (uint32_t)(word >> 32));
        uint64_t offset = (uint32_t)word;
        if (UNLIKELY(offset + bytes > atomic_load_explicit(&b->limit, memory_order_relaxed))) {
            enum log_reserve_result why = LOG_WAIT;
            if (!make_way(log, word, bytes, kind, &why))
                return why;
            word = atomic_load_explicit(&log->word, memory_order_acquire);
            continue;
        }
        /* Success means that the turn is still the same: the batch is open, and stays until these bytes are
         * published. */
        if (atomic_compare_exchange_weak_explicit(&log->word, &word, word + bytes, memory_order_acq_rel,
                                                  memory_order_acquire)) {
            slot->batch = b;
            slot->dst = b->buffer + offset;
            slot->lsn = atomic_load_explicit(&b->base_lsn, memory_order_relaxed) + offset;
            slot->generation = atomic_load_explicit(&b->generation, memory_order_relaxed);
            return LOG_RESERVED;
        }
    }
}

void log_publish(struct log *log, const struct log_slot *slot)
{
    (void)log;
    /* Release: the copied bytes; pairs with log_flush_take's acquire. */
    atomic_fetch_add_explicit(&slot->batch->published,
                              (uint64_t)slot->records << PUBLISHED_RECORD_SHIFT | slot->bytes,
                              memory_order_release);
}

struct log_batch *log_large_create(struct log *log, size_t bytes)
{
    (void)log;
    struct log_batch *b = calloc(1, sizeof *b);
    if (b == NULL)
        return NULL;
    b->large = true;
    b->capacity = round_up(BATCH_HEADER_BYTES + bytes, LOG_BLOCK_BYTES);
    b->buffer =
        mmap(NULL, b->capacity, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (b->buffer == MAP_FAILED) {
        free(b);
        return NULL;
    }
    return b;
}

char *log_large_data(struct log_batch *large)
{
    return large->buffer + BATCH_HEADER_BYTES;
}

void log_large_destroy(struct log_batch *large)
{
    munmap(large->buffer, large->capacity);
    free(large);
}

/* ---- numbers ---- */

uint64_t log_commit_lsn(const struct log *log)
{
    /* Acquire: pairs with log_flush_done's release. */
    return atomic_load_explicit(&((struct log *)(uintptr_t)log)->commit_lsn, memory_order_acquire);
}

uint64_t log_tail_lsn(const struct log *const_log)
{
    struct log *log = (struct log *)(uintptr_t)const_log;
    for (;;) {
        uint64_t word = atomic_load_explicit(&log->word, memory_order_acquire);
        if ((uint32_t)word == WORD_CLOSED || (uint32_t)word == BATCH_HEADER_BYTES) {
            /* Nothing in the open batch: all that was reserved ends behind the batch before it, which may be
             * in the segment before it. */
            spin_lock(&log->lock);
            uint64_t lsn = log->tail_lsn;
            bool same = atomic_load_explicit(&log->word, memory_order_relaxed) == word;
            spin_unlock(&log->lock);
            if (same)
                return lsn;
            continue;
        }
        struct log_batch *b = pool_batch(log, (uint32_t)(word >> 32));
        /* Acquire: the word is looked at again after it. Still the same turn: it was this one's base. */
        uint64_t base = atomic_load_explicit(&b->base_lsn, memory_order_acquire);
        if (atomic_load_explicit(&log->word, memory_order_acquire) >> 32 == word >> 32)
            return base + (uint32_t)word;
    }
}

bool log_has_unflushed(const struct log *const_log)
{
    struct log *log = (struct log *)(uintptr_t)const_log;
    uint32_t offset = (uint32_t)atomic_load_explicit(&log->word, memory_order_relaxed);
    if (offset != WORD_CLOSED && offset > BATCH_HEADER_BYTES)
        return true;
    spin_lock(&log->lock);
    bool has = log->closed.first != NULL;
    spin_unlock(&log->lock);
    return has;
}

const char *log_failed(const struct log *log)
{
    return atomic_load_explicit(&((struct log *)(uintptr_t)log)->failed, memory_order_acquire);
}

bool log_disk_full(const struct log *log)
{
    return atomic_load_explicit(&((struct log *)(uintptr_t)log)->disk_full, memory_order_relaxed);
}

int log_refused_errno(const struct log *log)
{
    return atomic_load_explicit(&((struct log *)(uintptr_t)log)->refused_errno, memory_order_relaxed);
}

bool log_lacks_room(const struct log *log)
{
    return log_disk_full(log) ||
           atomic_load_explicit(&((struct log *)(uintptr_t)log)->waits, memory_order_relaxed);
}

bool log_lacks_large(const struct log *log)
{
    return atomic_load_explicit(&((struct log *)(uintptr_t)log)->large_waits, memory_order_relaxed);
}

void log_stats_get(struct log *log, struct log_stats *out)
{
    struct segments_totals totals;
    histogram_init(&out->flush_us); /* that is long, and needs no lock: see histogram.h */
    histogram_merge(&out->flush_us, &log->stats.flush_us);
    spin_lock(&log->lock);
    memcpy(out, &log->stats, offsetof(struct log_stats, flush_us));
    spin_unlock(&log->lock);
    segments_totals_get(log->config.segments, &totals);
    out->segments = totals.log_segments;
    out->files_bytes = totals.log_bytes;
    out->segments_reused = totals.reused_segments;
}

uint64_t log_bytes(struct log *log)
{
    spin_lock(&log->lock);
    uint64_t bytes = log->stats.replayed_bytes + log->stats.bytes_written;
    spin_unlock(&log->lock);
    return bytes;
}

/* ---- life ---- */

static status_t open_folder(struct log *log)
{
    struct disk *disk = log->config.disk;
    log->folder = disk->ops->folder_open(disk, log->path, true);
    if (log->folder < 0)
        return status_errno(-log->folder, "cannot open the data folder %s (choose another with --dir)",
                            log->path);
    log->lock_fd = disk->ops->lock(disk, log->folder, "lock");
    if (log->lock_fd == -EWOULDBLOCK)
        return status_error(STATUS_BUSY,
                            "folder %s is in use by another kvasir process; stop it or choose another --dir",
                            log->path);
    if (log->lock_fd == -EISDIR)
        return status_error(STATUS_INVALID,
                            "%s/lock is a folder, where a file of the server's own belongs: move it away",
                            log->path);
    if (log->lock_fd < 0)
        return status_errno(-log->lock_fd, "cannot write in the data folder %s (choose another with --dir)",
                            log->path);
    return status_ok();
}

struct segment_folder log_segment_folder(const struct log *log)
{
    return (struct segment_folder){log->config.disk, log->folder, log->path, log->config.segments};
}

static status_t init_pool(struct log *log)
{
    size_t bytes = (size_t)LOG_POOL_BATCHES * LOG_BATCH_BYTES;
    log->pool_memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (log->pool_memory == MAP_FAILED) {
        log->pool_memory = NULL;
        return status_errno(errno, "no memory for the log's buffers");
    }
    madvise(log->pool_memory, bytes, MADV_HUGEPAGE);
    memset(log->pool_memory, 0, bytes); /* no page fault between reserving and publishing */
    for (unsigned i = 0; i < LOG_POOL_BATCHES; i++) {
        log->pool[i].buffer = log->pool_memory + (size_t)i * LOG_BATCH_BYTES;
        log->pool[i].capacity = LOG_BATCH_BYTES;
        log->pool[i].free = true;
    }
    return status_ok();
}

static bool take_room(const struct log *log, uint64_t bytes, bool for_deletes)
{
    return !log->config.may_allocate || log->config.may_allocate(log->config.context, bytes, for_deletes);
}

/* The first segment, of so many bytes or half of it and so on; where there is no room for it only deletes go
 * there. *taken: of the room. Something must be there: the smallest is made in any case, if the disk can. */
static status_t make_first(struct log *log, uint64_t last_number, struct segment *s, uint64_t *taken)
{
    for (uint64_t bytes = log->next_bytes;; bytes /= 2) {
        bool is_last = bytes / 2 < SEGMENT_BYTES_MIN;
        status_t status = status_error(STATUS_NO_SPACE, "%s may not grow", log->path);
        bool may = take_room(log, bytes, false), for_deletes = !may && is_last;
        if (for_deletes)
            may = take_room(log, bytes, true);
        if (may || is_last)
            status = segment_create(log->config.disk, log->folder, log->path, log->next_number, last_number,
                                    bytes, s, NULL);
        s->for_deletes = for_deletes;
        *taken = may ? bytes : 0;
        if (status_is_ok(&status) || status.code != STATUS_NO_SPACE || is_last)
            return status;
        if (may && log->config.may_allocate)
            log->config.allocated(log->config.context, bytes);
    }
}

/* last_number: of the segment that the log goes on behind; 0: none. */
static status_t first_segment(struct log *log, uint64_t last_number)
{
    uint64_t taken = 0;
    struct segment *s = calloc(1, sizeof *s);
    CHECK(s != NULL);
    status_t status = make_first(log, last_number, s, &taken);
    if (status_is_ok(&status)) {
        uint64_t twice = s->bytes * 2, max = log->config.segment_bytes_max;
        log->next_number++;
        log->next_bytes = twice < max ? twice : max;
        log->current = log->oldest = s;
        log->position = LOG_BLOCK_BYTES;
        segment_hand_over(s, log->config.segments);
    } else {
        free(s);
        status = status_wrap(status, "the log cannot start (free space, or choose another --dir)");
    }
    if (taken && log->config.may_allocate)
        log->config.allocated(log->config.context, taken);
    return status;
}

static status_t open_parts(struct log *log)
{
    struct replay_end end;
    TRY(open_folder(log));
    TRY(init_pool(log));
    spare_clear(log->config.disk, log->folder, log->path);
    if (log->config.on_locked)
        TRY(log->config.on_locked(log->config.context, log->folder, &log->config));
    TRY(log_replay(&log->config, log->folder, &end));
    log->previous_lsn = end.previous_lsn;
    log->next_number = end.last_number + 1;
    log->stats.replayed_records = end.records;
    log->stats.replayed_bytes = end.bytes;
    log->stats.cut_bytes = end.cut_bytes;
    TRY(first_segment(log, end.previous_lsn >> LOG_SEGMENT_SHIFT));
    log->durable_lsn = end.lsn;
    uint64_t here = segment_lsn(log->current->number, LOG_BLOCK_BYTES);
    /* As long as nothing is logged the tail is where the log ended, not this file, which goes again if
     * nothing will be: a replay that starts at the tail finds there which batch the next one follows. */
    log->tail_lsn = end.lsn ? end.lsn : here;
    atomic_store_explicit(&log->commit_lsn, here, memory_order_relaxed);
    atomic_store_explicit(&log->word, WORD(log->turn, WORD_CLOSED), memory_order_relaxed);
    CHECK(open_next(log, 0));
    return status_ok();
}

static void free_large(struct batch_list *list)
{
    while (list->first) {
        struct log_batch *b = batch_pop(list);
        if (b->large)
            log_large_destroy(b);
    }
}

static void log_free(struct log *log)
{
    struct disk *disk = log->config.disk;
    free_large(&log->closed); /* of a dead log */
    free_large(&log->flying);
    while (log->oldest) {
        struct segment *s = log->oldest;
        log->oldest = s->next;
        free(s); /* its file stays in the table */
    }
    segments_destroy(log->own_segments);
    if (log->lock_fd >= 0)
        disk->ops->close(disk, log->lock_fd);
    if (log->folder >= 0)
        disk->ops->close(disk, log->folder);
    if (log->pool_memory)
        munmap(log->pool_memory, (size_t)LOG_POOL_BATCHES * LOG_BATCH_BYTES);
    free(log->path);
    free(log);
}

status_t log_open(const struct log_config *config, struct log **out)
{
    struct log *log = calloc(1, sizeof *log);
    CHECK(log != NULL);
    log->config = *config;
    log->folder = log->lock_fd = -1;
    log->path = strdup(config->path);
    CHECK(log->path != NULL);
    log->config.path = log->path;
    if (config->segments == NULL)
        log->config.segments = log->own_segments = segments_create(config->disk);
    if (log->config.segment_bytes_first == 0)
        log->config.segment_bytes_first = 4 << 20;
    if (log->config.segment_bytes_max == 0)
        log->config.segment_bytes_max = 64 << 20;
    log->next_bytes = log->config.segment_bytes_first;
    histogram_init(&log->stats.flush_us);
    status_t s = open_parts(log);
    if (status_is_ok(&s)) {
        *out = log; /* the thread's callbacks may ask it */
        s = log_prepare_start(log);
    }
    if (!status_is_ok(&s)) {
        *out = NULL;
        log_free(log);
    }
    return s;
}

/* An empty last batch that vouches for everything before it: damage there is then never taken for a torn
 * tail. */
static void write_farewell(struct log *log)
{
    struct log_flush flush;
    struct log_batch *b = pool_batch(log, log->turn);
    if (log_failed(log) || log->closed.first || log->flying.first || log->previous_lsn == 0)
        return;
    if ((uint32_t)atomic_load_explicit(&log->word, memory_order_relaxed) != BATCH_HEADER_BYTES)
        return;
    struct batch_header header = {.lsn = atomic_load_explicit(&b->base_lsn, memory_order_relaxed),
                                  .length = BATCH_HEADER_BYTES,
                                  .unix_ms = clock_unix_ms(),
                                  .durable_lsn = log->durable_lsn,
                                  .previous_lsn = log->previous_lsn};
    batch_header_seal(&header, b->segment->generation);
    memset(b->buffer, 0, LOG_BLOCK_BYTES);
    memcpy(b->buffer, &header, sizeof header);
    flush = (struct log_flush){.fd = b->segment->fd, .offset = lsn_offset(header.lsn)};
    struct disk *disk = log->config.disk;
    if (disk->ops->write(disk, flush.fd, b->buffer, LOG_BLOCK_BYTES, flush.offset) == LOG_BLOCK_BYTES)
        (void)disk->ops->sync(disk, flush.fd);
}

void log_close(struct log *log)
{
    log_prepare_stop(log);
    write_farewell(log);
    if (log->prepared)
        log_discard(log, log->prepared);
    if (log->current && log->previous_lsn && !log_failed(log))
        log_leave_witness(log);
    spare_clear(log->config.disk, log->folder, log->path);
    log_free(log);
}
