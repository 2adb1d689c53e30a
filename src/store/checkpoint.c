/* A checkpoint: the index written to a toc file, beside the traffic, so that a start need not replay the log
 * from its beginning.
 *
 *  1. T = the log's tail. Every stripe of the key locks is then seen free once, or seen to change: a writer
 *     holds its stripe from before it takes an LSN until the index shows its write, so from then on every
 *     write below T is in the index. T becomes the toc's start: replay begins there.
 *  2. The index is walked in order, a few keys at a time. Newer writes may get in or not: replay compares
 *     versions.
 *  3. The file is completed and synced. E = the log's tail: nothing at or above it is in the file.
 *  4. When all below E is durable, the file gets its name. Before that, it might tell of writes that a crash
 *     takes back.
 *  5. Tocs older than the newest two go.
 *
 * Any failure gives the new file up; the old ones are as they were. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/logger.h"
#include "log/segment.h"
#include "store/internal.h"
#include "sys/clock.h"
#include "toc/toc_write.h"

enum {
    STEP_KEYS_TESTED = 3, /* so that others come in between */
    STEP_PAUSE_US_TESTED = 20,
    BYTES_PER_SECOND = 64 << 20,
    BYTES_PER_SECOND_CRITICAL = 256 << 20, /* writes wait for the room that it brings */
    /* Of log between two checkpoints made by themselves, and between such as follow closely: replaying that
     * much takes some seconds. */
    LOGGED_BYTES_LEAST = 512 << 20,
    CLOSELY_MS = 30000,
    RETRY_FIRST_MS = 10000,
    RETRY_FIRST_MS_TESTED = 100,
    RETRY_LAST_MS = 600000,
    DURABLE_POLL_US = 1000, /* how often it looks whether the log has come so far */
};

#define LOGGED_BYTES_CLOSELY (4ull << 30)

enum checkpoint_phase { PHASE_STRIPES, PHASE_WALK, PHASE_DURABLE };

struct checkpoint {
    enum checkpoint_phase phase;
    uint64_t start_lsn, end_lsn;
    uint32_t stripe;        /* the next to be seen */
    uint32_t stripe_locked; /* its sequence, seen locked before; 0: not yet */
    struct toc_writer *writer;
    char *position; /* key to go on at */
    size_t position_len;
    uint64_t start_us;
};

/* With what this start has replayed: it comes behind the checkpoint that the start has read. */
uint64_t checkpoint_logged_behind(struct store *store)
{
    return log_bytes(store->log) - store->keeper.logged_bytes;
}

/* ---- begin and end ---- */

bool checkpoint_may_retry(struct store *store)
{
    return backoff_is_over(&store->keeper.backoff, clock_monotonic_us() / 1000, store_lacks_room(store));
}

static bool is_due(struct store *store)
{
    struct keeper *k = &store->keeper;
    uint64_t least = LOGGED_BYTES_LEAST, now_ms = clock_monotonic_us() / 1000;
    uint64_t tested = store->config.checkpoint_bytes;
    pthread_mutex_lock(&k->mutex);
    bool wanted = k->requested > k->ended;
    pthread_mutex_unlock(&k->mutex);
    if (wanted)
        return true;
    if (store->config.no_threads || !checkpoint_may_retry(store))
        return false;
    if (k->backoff.delay_ms) /* the last one was given up */
        return true;
    if (k->begin_ms && now_ms < k->begin_ms + CLOSELY_MS)
        least = LOGGED_BYTES_CLOSELY;
    if (k->toc_count && k->tocs[0].bytes > least)
        least = k->tocs[0].bytes;
    return checkpoint_logged_behind(store) > (tested ? tested : least);
}

static void begin(struct store *store)
{
    struct keeper *k = &store->keeper;
    struct checkpoint *c = calloc(1, sizeof *c);
    CHECK(c != NULL);
    k->checkpoint = c;
    c->start_us = clock_monotonic_us();
    k->begin_ms = c->start_us / 1000;
    k->logged_bytes = log_bytes(store->log);
    c->start_lsn = log_tail_lsn(store->log);
    /* T before the stripes: pairs with the writers, who lock before they reserve. */
    atomic_thread_fence(memory_order_seq_cst);
    pthread_mutex_lock(&k->mutex);
    k->begun = k->requested;
    k->stats.running = true;
    k->stats.start_ms = clock_unix_ms();
    k->stats.keys_done = 0;
    k->stats.keys_total = atomic_load_explicit(&store->keys, memory_order_relaxed);
    pthread_mutex_unlock(&k->mutex);
}

static void end(struct store *store, const status_t *failure)
{
    struct keeper *k = &store->keeper;
    struct checkpoint *c = k->checkpoint;
    k->checkpoint = NULL;
    k->cleaner.idle_ms = 0; /* it may have waited for this */
    if (failure)
        k->spare_toc_bytes = 0;
    toc_write_abandon(c->writer);
    pthread_mutex_lock(&k->mutex);
    k->stats.running = false;
    k->stats.last_failed = failure != NULL;
    if (failure) {
        k->stats.failures++;
        snprintf(k->stats.error, sizeof k->stats.error, "%s", failure->text);
        /* Perhaps nobody has looked yet how the one before went. (One that succeeds in between has what was
         * there when they were asked for.) */
        if (k->failed_last == 0 || k->failed_last != k->ended)
            k->failed_first = k->ended + 1;
        k->failed_last = k->begun;
    } else {
        k->stats.number = k->tocs[0].number;
        k->stats.keys = k->tocs[0].keys;
        k->stats.bytes = k->tocs[0].bytes;
        k->stats.bytes_written += k->tocs[0].bytes;
        k->stats.published_ms = clock_unix_ms();
        k->stats.duration_us = clock_monotonic_us() - c->start_us;
        k->stats.error[0] = '\0';
    }
    k->ended = k->begun;
    pthread_mutex_unlock(&k->mutex);
    free(c->position);
    free(c);
    if (store->config.on_progress)
        store->config.on_progress(store->config.context);
}

static void fail(struct store *store, const status_t *s)
{
    struct keeper *k = &store->keeper;
    uint64_t first_ms = store->config.checkpoint_bytes ? RETRY_FIRST_MS_TESTED : RETRY_FIRST_MS;
    uint64_t now_ms = clock_monotonic_us() / 1000;
    if (backoff_fail(&k->backoff, k->begin_ms, now_ms, store_lacks_room(store), first_ms, RETRY_LAST_MS))
        LOG_WARNING("the checkpoint was given up, the one before it stays: %s", s->text);
    end(store, s);
}

void checkpoint_abandon(struct store *store)
{
    status_t s = status_error(STATUS_BUSY, "the server is stopping");
    if (store->keeper.checkpoint)
        end(store, &s);
}

/* ---- 1: every write below T is in the index ---- */

static bool see_stripes(struct store *store, struct checkpoint *c)
{
    for (; c->stripe < KEYLOCK_STRIPES; c->stripe++) {
        uint32_t s = keylock_sequence(&store->locks, c->stripe);
        if (s & 1 && (c->stripe_locked == 0 || s == c->stripe_locked)) {
            c->stripe_locked = s;
            return false;
        }
        c->stripe_locked = 0;
    }
    return true;
}

/* ---- 2: the walk ---- */

static status_t add_node(struct store *store, struct checkpoint *c, const struct node *node, bool *busy)
{
    struct store_view view;
    struct store_worker *sw = store->keeper.sw;
    enum store_result r = store_node_entry(sw, node, &view);
    *busy = r == STORE_BUSY;
    if (r == STORE_ABSENT || r == STORE_BUSY)
        return status_ok();
    return toc_write_add(c->writer, &(struct toc_entry){
                                        .key = store_node_key(node),
                                        .version = view.sequence >> 1,
                                        .address = view.address,
                                        .expire_ms = view.expire_ms,
                                        .value_len = view.len,
                                    });
}

/* Some keys. *done: that was the last. */
static status_t walk(struct store *store, struct checkpoint *c, bool *done)
{
    struct ordered_cursor cursor;
    struct store_worker *sw = store->keeper.sw;
    const struct node *node;
    bool small = store->config.no_threads || store->config.checkpoint_bytes == 1;
    struct keeper_step step = keeper_step_begin(small ? STEP_KEYS_TESTED : 0, log_lacks_room(store->log));
    unsigned keys = 0;
    status_t s = status_ok();
    bool busy = false;
    store_turn_begin(sw);
    ordered_seek(&cursor, &store->ordered, slice_make(c->position, c->position_len), false);
    while ((node = ordered_next(&cursor)) && keeper_step_goes_on(&step)) {
        s = add_node(store, c, node, &busy);
        if (busy || !status_is_ok(&s))
            break;
        keys++;
    }
    *done = node == NULL;
    if (node)
        store_remember(&c->position, &c->position_len, node_key(node));
    store_turn_end(sw);
    pthread_mutex_lock(&store->keeper.mutex);
    store->keeper.stats.keys_done += keys;
    pthread_mutex_unlock(&store->keeper.mutex);
    return s;
}

/* ---- 3 to 5 ---- */

struct listing {
    const struct segments *table;
    uint64_t number; /* of the toc */
    struct toc_segment *segments;
    unsigned count, capacity;
    uint64_t first, last; /* segments of the log that are needed */
};

/* Which files a start needs: all that values lie in, and the log from T on. */
static bool list_segment(void *context, struct segment_file *file)
{
    struct listing *l = context;
    int64_t live = segments_live_bytes(l->table, file);
    if (!file->data && file->number > l->last)
        return true;
    /* Died before this checkpoint began: nothing in it can lead there. */
    if (file->dead_since && file->dead_since <= l->number)
        return true;
    if (l->count == l->capacity) {
        l->capacity = l->capacity * 2 + 64;
        l->segments = realloc(l->segments, l->capacity * sizeof *l->segments);
        CHECK(l->segments != NULL);
    }
    l->segments[l->count++] = (struct toc_segment){
        .kind = file->data ? TOC_SEGMENT_DATA : TOC_SEGMENT_LOG,
        .number = file->number,
        .generation = file->generation,
        .bytes = atomic_load_explicit(&file->bytes, memory_order_relaxed),
        .live_bytes = live > 0 ? (uint64_t)live : 0,
    };
    return true;
}

static status_t finish(struct store *store, struct checkpoint *c)
{
    c->end_lsn = log_tail_lsn(store->log);
    struct listing l = {.table = store->segments,
                        .number = store->keeper.next_number,
                        .last = c->end_lsn >> LOG_SEGMENT_SHIFT};
    segments_each(store->segments, list_segment, &l);
    struct memory_use use = memory_use(store);
    status_t s =
        toc_write_finish(c->writer, c->end_lsn, memory_bare_bytes(&use) - use.slack_bytes - use.buffer_bytes,
                         l.segments, l.count);
    free(l.segments);
    return s;
}

struct superfluous {
    const struct keeper *keeper;
    char before[TOC_NAME_BYTES]; /* has been tried */
    char name[TOC_NAME_BYTES];   /* the first behind it; empty: none */
    bool was_kept;
};

static int find_superfluous(void *context, const char *name)
{
    struct superfluous *s = context;
    uint64_t number;
    bool temporary;
    if (!toc_parse_name(name, &number, &temporary))
        return 0;
    for (unsigned i = 0; i < s->keeper->toc_count; i++)
        if (s->keeper->tocs[i].number == number && !temporary)
            return 0;
    if (temporary && number == s->keeper->next_number && s->keeper->spare_toc_bytes)
        return 0;
    if (strcmp(name, s->before) > 0 && (s->name[0] == '\0' || strcmp(name, s->name) < 0)) {
        toc_name(s->name, number, temporary);
        s->was_kept = !temporary && number == s->keeper->superseded;
    }
    return 0;
}

/* The next toc will be written over this one: its file gets that name. Only a good one is used so: anything
 * may be named like a toc, also a link to what is needed. */
static bool keep_for_next(struct store *store, const char *name)
{
    struct keeper *k = &store->keeper;
    struct disk *disk = store->config.disk;
    char next[TOC_NAME_BYTES];
    if (k->spare_toc_bytes)
        return false;
    int fd = disk->ops->open(disk, k->folder, name, false, false);
    if (fd < 0)
        return false;
    int64_t bytes = disk->ops->size(disk, fd);
    disk->ops->close(disk, fd);
    toc_name(next, k->next_number, true);
    if (bytes <= 0 || disk->ops->rename(disk, k->folder, name, next) < 0)
        return false;
    k->spare_toc_bytes = (uint64_t)bytes;
    return true;
}

/* The blocks of a large file are freed bit by bit. */
static int remove_gently(struct store *store, const char *name)
{
    struct disk *disk = store->config.disk;
    int folder = store->keeper.folder, fd = disk->ops->open(disk, folder, name, true, false);
    int64_t bytes = fd >= 0 ? disk->ops->size(disk, fd) : 0;
    int e = disk->ops->remove(disk, folder, name);
    if (fd >= 0 && e >= 0 && bytes > 0)
        segments_leave(store->segments, (uint64_t)bytes, fd);
    else if (fd >= 0)
        disk->ops->close(disk, fd);
    return e;
}

/* Removes all tocs but those that are kept; damaged ones too. What cannot be removed keeps no other one. */
static void remove_others(struct store *store)
{
    struct disk *disk = store->config.disk;
    int folder = store->keeper.folder;
    struct superfluous s = {.keeper = &store->keeper};
    for (;;) {
        s.name[0] = '\0';
        int e = disk->ops->list(disk, folder, find_superfluous, &s);
        bool listed = e >= 0;
        if (listed && s.name[0] == '\0')
            return;
        if (listed && s.was_kept && keep_for_next(store, s.name))
            continue;
        if (listed)
            e = s.was_kept ? remove_gently(store, s.name) : disk->ops->remove(disk, folder, s.name);
        if (e < 0) /* the next checkpoint tries again */
            LOG_WARNING("cannot remove the old checkpoint %s/%s: %s", store->config.path, s.name,
                        strerror(-e));
        if (!listed)
            return;
        memcpy(s.before, s.name, sizeof s.before);
    }
}

void checkpoint_drop_spare(struct store *store)
{
    struct keeper *k = &store->keeper;
    char name[TOC_NAME_BYTES];
    toc_name(name, k->next_number, true);
    if (k->spare_toc_bytes)
        (void)store->config.disk->ops->remove(store->config.disk, k->folder,
                                              name); /* or the next start will */
    k->spare_toc_bytes = 0;
}

/* The newest stays. */
static void drop_others(struct keeper *k)
{
    while (k->toc_count > 1)
        k->superseded = k->tocs[--k->toc_count].number;
}

void checkpoint_drop_older(struct store *store)
{
    drop_others(&store->keeper);
    remove_others(store);
}

static status_t publish(struct store *store, struct checkpoint *c)
{
    struct keeper *k = &store->keeper;
    struct toc_totals totals = *toc_write_totals(c->writer);
    status_t s = toc_write_publish(c->writer);
    c->writer = NULL;
    if (!status_is_ok(&s))
        return s;
    if (k->toc_count == KEEPER_TOCS_KEPT)
        k->superseded = k->tocs[--k->toc_count].number;
    memmove(k->tocs + 1, k->tocs, k->toc_count * sizeof k->tocs[0]);
    k->tocs[0] = (struct kept_toc){k->next_number++, c->start_lsn, totals.keys, totals.bytes};
    k->toc_count++;
    k->spare_toc_bytes = 0; /* it was this one */
    remove_others(store);
    k->cleaner.idle_ms = 0; /* it may have something to do now */
    k->backoff = (struct backoff){0};
    LOG_INFO("checkpoint %" PRIu64 ": %" PRIu64 " keys, %" PRIu64 " MiB, %.1f s", k->tocs[0].number,
             totals.keys, totals.bytes >> 20, (double)(clock_monotonic_us() - c->start_us) / 1e6);
    return status_ok();
}

/* How long to pause so that no more than so many bytes a second are written. */
static uint64_t pause_us(const struct store *store, const struct checkpoint *c)
{
    if (store->config.checkpoint_bytes == 1)
        return STEP_PAUSE_US_TESTED;
    uint64_t bytes = toc_write_totals(c->writer)->bytes, spent = clock_monotonic_us() - c->start_us;
    bool critical = store_lacks_room(store);
    uint64_t planned = bytes * 1000000 / (critical ? BYTES_PER_SECOND_CRITICAL : BYTES_PER_SECOND);
    uint64_t least = critical ? KEEPER_REST_US_CRITICAL : KEEPER_REST_US;
    return planned > spent + least ? planned - spent : least;
}

bool checkpoint_step(struct store *store, uint64_t *wait_us)
{
    struct keeper *k = &store->keeper;
    struct checkpoint *c = k->checkpoint;
    status_t s = status_ok();
    bool done = false;
    if (c == NULL) {
        if (!is_due(store))
            return false;
        space_for_checkpoint(store);
        begin(store);
        return true;
    }
    switch (c->phase) {
    case PHASE_STRIPES:
        if (!see_stripes(store, c))
            break;
        s = toc_write_begin(store->config.disk, k->folder, store->config.path, k->next_number, c->start_lsn,
                            &c->writer);
        c->phase = PHASE_WALK;
        break;
    case PHASE_WALK:
        s = walk(store, c, &done);
        *wait_us = status_is_ok(&s) ? pause_us(store, c) : 0;
        if (!done || !status_is_ok(&s))
            break;
        s = finish(store, c);
        c->phase = PHASE_DURABLE;
        break;
    case PHASE_DURABLE:
        if (log_failed(store->log)) {
            s = status_error(STATUS_IO, "the log has failed");
            break;
        }
        *wait_us = DURABLE_POLL_US;
        if (store_durable_lsn(store) < c->end_lsn)
            break;
        *wait_us = 0;
        s = publish(store, c);
        if (status_is_ok(&s))
            end(store, NULL);
        break;
    }
    if (!status_is_ok(&s))
        fail(store, &s);
    return true;
}
