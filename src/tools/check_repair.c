/* The salvage: a new folder with a new log, written record by record.
 *
 *  1. A toc says what there was below its start, so that nothing deleted comes back: its keys' values, read
 *     in the order in which they lie in the segments, as SETs; then, in the order of keys, their expiries.
 *  2. The records of the log from the toc's start on, in order, over it. Those that do not check are left
 *     out; what a server would cut as a torn tail is, too.
 *
 * Without a toc all records of the log, in order, if all of it is there. Else what data segments hold comes
 * first, of each key the newest version, and the log's records over it, by version: those that are older than
 * the value from a data segment are left out, and so are all that a deletion of a tree above them came behind
 * (the deletion itself is then of no use). That takes memory for each value in data segments.
 *
 * The new log's records have new versions in the same order
 * as the old ones. Whoever starts a server there lets it replay them: memory is needed for nothing but what
 * check needs. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "log/log.h"
#include "sys/clock.h"
#include "tools/check_internal.h"
#include "tools/check_versions.h"

struct repair {
    struct check *c;
    struct log *log;
    struct check_toc *toc; /* NULL: there is none */
    uint64_t from_lsn;     /* the log's records from here on */
    struct check_chain chain;
    bool ended; /* behind here is the torn tail */
    uint64_t values, expiries, records, past;
    /* Merging data segments and log, by version: */
    bool merges, collects;       /* this time nothing is written */
    struct check_versions moved; /* of the keys in data segments */
    struct check_versions trees; /* LSN of the newest deletion of a path */
    status_t failure;
};

/* ---- writing ---- */

static status_t flush(struct repair *r)
{
    struct log_flush f;
    struct disk *disk = r->c->disk;
    while (log_flush_take(r->log, clock_monotonic_us(), true, &f, NULL)) {
        int64_t n = disk->ops->write(disk, f.fd, f.buffer, f.len, f.offset);
        int e = n == (int64_t)f.len ? disk->ops->sync(disk, f.fd) : 0;
        log_flush_done(r->log, &f, e < 0 ? e : n, clock_monotonic_us());
    }
    return log_failed(r->log) ? status_error(STATUS_IO, "%s", log_failed(r->log)) : status_ok();
}

static status_t reserve(struct repair *r, size_t bytes, struct log_batch *large, struct log_slot *slot)
{
    for (;;) {
        enum log_reserve_result result = log_reserve(r->log, bytes, 1, LOG_NORMAL, large, slot);
        if (result == LOG_RESERVED)
            return status_ok();
        if (result == LOG_NO_SPACE)
            return status_error(STATUS_NO_SPACE, "the disk is full");
        TRY(flush(r));
        (void)log_prepare(r->log);
    }
}

static status_t append(struct repair *r, enum record_type type, struct slice key, struct slice value,
                       uint64_t expire_ms)
{
    size_t bytes = record_bytes(type, key.len, value.len);
    struct log_batch *large = NULL;
    struct log_slot slot;
    if (bytes > LOG_SMALL_BYTES_MAX && (large = log_large_create(r->log, bytes)) == NULL)
        return status_error(STATUS_NO_MEMORY, "no memory for a record of %zu bytes", bytes);
    uint64_t content = large ? record_encode(log_large_data(large), type, key, value, expire_ms) : 0;
    status_t s = reserve(r, bytes, large, &slot);
    if (!status_is_ok(&s)) {
        if (large)
            log_large_destroy(large);
        return s;
    }
    if (large == NULL)
        content = record_encode(slot.dst, type, key, value, expire_ms);
    record_seal(slot.dst, content, slot.lsn, slot.generation);
    log_publish(r->log, &slot);
    return status_ok();
}

static bool put(struct repair *r, enum record_type type, struct slice key, struct slice value,
                uint64_t expire_ms)
{
    if (status_is_ok(&r->failure))
        r->failure = append(r, type, key, value, expire_ms);
    return status_is_ok(&r->failure);
}

/* ---- 1: what the toc names ---- */

static void put_if_named(void *context, const struct record *record, bool whole)
{
    (void)whole;
    struct repair *r = context;
    bool value =
        record->type == RECORD_SET || record->type == RECORD_SET_EXPIRE || record->type == RECORD_MOVED;
    if (value && check_starts_get(r->c, record->lsn))
        r->values += put(r, RECORD_SET, record->key, record->value, 0);
}

static void on_progress(void *context, uint64_t bytes)
{
    check_progress(((struct repair *)context)->c, bytes);
}

static bool mark_entry(void *context, const struct toc_entry *entry)
{
    check_starts_set(((struct repair *)context)->c, entry->address);
    return true;
}

/* The bits of a group say this time which records are wanted. */
static void put_group(struct check *c, bool first, void *context)
{
    (void)first;
    struct repair *r = context;
    const struct scan_sink sink = {.context = r, .record = put_if_named, .progress = on_progress};
    check_toc_each(c, r->toc, false, mark_entry, r);
    for (size_t i = 0; i < c->segment_count && status_is_ok(&r->failure); i++)
        if (c->segments[i].in_group)
            check_scan(c, &c->segments[i], &sink);
}

static bool put_expiry(void *context, const struct toc_entry *entry)
{
    struct repair *r = context;
    if (entry->expire_ms)
        r->expiries += put(r, RECORD_EXPIRE, entry->key, slice_make(NULL, 0), entry->expire_ms);
    return status_is_ok(&r->failure);
}

/* ---- without a toc: by version ---- */

/* Was the key, or a tree that it is in, deleted as such after that version? */
static bool tree_is_gone(const struct repair *r, struct slice key, uint64_t version)
{
    if (r->trees.count == 0)
        return false;
    if (check_versions_get(&r->trees, slice_make("", 0)) > version ||
        check_versions_get(&r->trees, key) > version)
        return true;
    for (size_t i = 0; i < key.len; i++)
        if (key.data[i] == '/' && check_versions_get(&r->trees, slice_make(key.data, i)) > version)
            return true;
    return false;
}

static void collect_moved(void *context, const struct record *record, bool whole)
{
    (void)whole;
    if (record->type == RECORD_MOVED)
        check_versions_raise(&((struct repair *)context)->moved, record->key, record->version);
}

static void put_moved(void *context, const struct record *record, bool whole)
{
    (void)whole;
    struct repair *r = context;
    if (record->type != RECORD_MOVED || check_versions_get(&r->moved, record->key) != record->version ||
        tree_is_gone(r, record->key, record->version))
        return;
    r->values += put(r, record->expire_ms ? RECORD_SET_EXPIRE : RECORD_SET, record->key, record->value,
                     record->expire_ms);
}

static void scan_data(struct repair *r, void (*each)(void *context, const struct record *record, bool whole))
{
    struct check *c = r->c;
    const struct scan_sink sink = {.context = r, .record = each, .progress = on_progress};
    for (size_t i = c->log_count; i < c->segment_count && status_is_ok(&r->failure); i++)
        if (c->segments[i].usable)
            check_scan(c, &c->segments[i], &sink);
}

/* True if the record of the log is to be written. */
static bool take_by_version(struct repair *r, const struct record *record)
{
    if (r->collects && record->type == RECORD_DELTREE)
        check_versions_raise(&r->trees, record->key, record->lsn);
    return !r->collects && record->type != RECORD_DELTREE &&
           record->lsn > check_versions_get(&r->moved, record->key) &&
           !tree_is_gone(r, record->key, record->lsn);
}

/* ---- 2: the log ---- */

/* The server's rule: where the chain ends and nothing durable is said to be behind, there is the end. */
static void follow_chain(void *context, const struct batch_header *h, bool whole)
{
    struct repair *r = context;
    struct check_chain *chain = &r->chain;
    bool next = !chain->any || h->previous_lsn == chain->previous_lsn;
    uint64_t end = chain->any ? chain->end_lsn : 0;
    if ((!whole || !next) && end >= r->c->durable_lsn)
        r->ended = true;
    if (!whole)
        return;
    chain->any = true;
    chain->previous_lsn = h->lsn;
    chain->end_lsn = h->lsn + round_up(h->length, LOG_BLOCK_BYTES);
}

static void put_record(void *context, const struct record *record, bool whole)
{
    struct repair *r = context;
    bool durable = record->lsn < r->c->durable_lsn;
    if (record->lsn < r->from_lsn)
        return;
    if (!durable && (r->ended || !whole)) {
        r->past += !r->collects;
        return;
    }
    if (r->merges && !take_by_version(r, record))
        return;
    r->records += put(r, record->type, record->key, record->value, record->expire_ms);
}

static void put_log(struct repair *r)
{
    struct check *c = r->c;
    const struct scan_sink sink = {
        .context = r, .batch = follow_chain, .record = put_record, .progress = on_progress};
    r->chain = (struct check_chain){0};
    r->ended = false;
    for (size_t i = 0; i < c->log_count && status_is_ok(&r->failure); i++)
        if (c->segments[i].usable && c->segments[i].number >= r->from_lsn >> LOG_SEGMENT_SHIFT)
            check_scan(c, &c->segments[i], &sink);
}

/* ---- all of it ---- */

static int count_name(void *context, const char *name)
{
    (void)name;
    ++*(unsigned *)context;
    return 1;
}

status_t check_repair_target(const struct check *c, const char *new_path)
{
    struct disk *disk = c->disk;
    unsigned names = 0;
    int inside = disk->ops->folder_holds ? disk->ops->folder_holds(disk, c->folder, new_path) : 0;
    if (inside < 0)
        return status_errno(-inside, "cannot tell whether %s lies in %s", new_path, c->path);
    if (inside)
        return status_error(STATUS_INVALID, "%s lies in %s: a repair wants a folder outside of it", new_path,
                            c->path);
    int folder = disk->ops->folder_open(disk, new_path, true);
    if (folder < 0)
        return status_errno(-folder, "cannot open the folder %s", new_path);
    int e = disk->ops->list(disk, folder, count_name, &names);
    disk->ops->close(disk, folder);
    if (e < 0)
        return status_errno(-e, "cannot list the folder %s", new_path);
    return names
               ? status_error(STATUS_INVALID, "%s is not empty: a repair wants a folder of its own", new_path)
               : status_ok();
}

/* How much of its keys a toc can still tell of: 0 to 1. */
static double share_left(const struct check_toc *t)
{
    uint64_t keys = toc_info(t->toc)->keys, left = t->keys > t->lost_keys ? t->keys - t->lost_keys : 0;
    return keys ? (double)left / (double)keys : 1;
}

static bool log_is_whole(const struct check *c)
{
    const struct check_chain *chain = &c->chain;
    return chain->any && chain->before_first == 0 &&
           (chain->gap_lsn == 0 || chain->gap_lsn >= c->durable_lsn);
}

/* The newest that is good; else the log, if all of that is there, or if no toc has half of its keys. */
static struct check_toc *best_toc(struct check *c)
{
    bool all = log_is_whole(c);
    struct check_toc *best = NULL;
    for (size_t i = 0; i < c->toc_count; i++) {
        struct check_toc *t = &c->tocs[i];
        if (t == c->chosen)
            return t;
        if (t->toc && share_left(t) >= 0.5 && (best == NULL || share_left(t) > share_left(best)))
            best = t;
    }
    return all ? NULL : best;
}

static void say_how_it_was(const struct repair *r)
{
    struct check *c = r->c;
    if (r->toc)
        fprintf(c->out,
                "%" PRIu64 " values and %" PRIu64 " expiries of toc %" PRIu64 ", then %" PRIu64
                " records of the log\n",
                r->values, r->expiries, r->toc->number, r->records);
    else if (r->merges)
        fprintf(c->out,
                "%" PRIu64 " values of data segments and %" PRIu64 " records of the log, by version\n",
                r->values, r->records);
    else
        fprintf(c->out, "%" PRIu64 " records of the log\n", r->records);
    if (r->past)
        fprintf(c->out, "%" PRIu64 " records behind the log's end were left out, as the server would\n",
                r->past);
    if (c->damages)
        fprintf(c->out,
                "what was damaged is missing: of a key whose last write was, an older value may have come "
                "back, or a deleted one\n");
    if (r->toc == NULL && (c->chain.before_first || c->chain.gap_lsn))
        fprintf(c->out, "parts of the log were missing and no toc could stand in for them: keys that were "
                        "deleted may have come back\n");
}

static status_t write_all(struct repair *r)
{
    struct check *c = r->c;
    if (r->toc) {
        r->from_lsn = toc_info(r->toc->toc)->start_lsn;
        check_groups(c, NULL, put_group, r);
        if (status_is_ok(&r->failure))
            check_toc_each(c, r->toc, false, put_expiry, r);
    } else if (r->merges) {
        r->collects = true;
        c->total_bytes *= 2;
        scan_data(r, collect_moved);
        put_log(r);
        r->collects = false;
        scan_data(r, put_moved);
    }
    put_log(r);
    TRY(r->failure);
    return flush(r);
}

enum check_code check_repair(struct check *c, const char *new_path)
{
    struct repair r = {.c = c, .toc = best_toc(c), .failure = status_ok()};
    r.merges = r.toc == NULL && c->segment_count > c->log_count && !log_is_whole(c);
    c->done_bytes = 0;
    c->began_us = clock_monotonic_us();
    const struct log_config config = {.disk = c->disk, .path = new_path};
    status_t s = log_open(&config, &r.log);
    if (status_is_ok(&s)) {
        s = write_all(&r);
        log_close(r.log);
    }
    check_versions_deinit(&r.moved);
    check_versions_deinit(&r.trees);
    check_progress_end(c);
    if (!status_is_ok(&s)) {
        fprintf(stderr, "kvasir check: cannot write the repaired log, remove %s: %s\n", new_path, s.text);
        return CHECK_UNREADABLE;
    }
    say_how_it_was(&r);
    fprintf(c->out, "%s is complete: start a server with --dir %s\n", new_path, new_path);
    if (c->unreadables)
        return CHECK_UNREADABLE;
    return c->damages ? CHECK_STARTS : CHECK_WELL;
}
