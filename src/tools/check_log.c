/* The log's segments: headers, sizes, batches, records, and the chain that the batches form.
 *
 * Whether something that does not check is damage or what a crash left of a write under way is known at the
 * end only: it is damage when some batch or toc says that more of the log than that was durable. Therefore
 * such places are collected first (check_finding). */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "tools/check_internal.h"

const char *check_file_name(uint64_t address, char name[SEGMENT_NAME_BYTES])
{
    segment_file_name(name, address & SEGMENT_DATA_ADDRESS,
                      (address & ~SEGMENT_DATA_ADDRESS) >> LOG_SEGMENT_SHIFT);
    return name;
}

struct check_segment *check_segment_find(const struct check *c, uint64_t address)
{
    bool data = address & SEGMENT_DATA_ADDRESS;
    uint64_t number = (address & ~SEGMENT_DATA_ADDRESS) >> LOG_SEGMENT_SHIFT;
    size_t low = data ? c->log_count : 0, end = data ? c->segment_count : c->log_count, high = end;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (c->segments[middle].number < number)
            low = middle + 1;
        else
            high = middle;
    }
    return low < end && c->segments[low].number == number ? &c->segments[low] : NULL;
}

/* ---- where records begin ---- */

static bool bit_of(const struct check *c, uint64_t address, uint64_t *bit)
{
    const struct check_segment *s = check_segment_find(c, address);
    if (s == NULL || !s->in_group || lsn_offset(address) >= s->bytes || address % 8)
        return false;
    *bit = s->starts_at + lsn_offset(address) / 8;
    return true;
}

bool check_starts_get(const struct check *c, uint64_t address)
{
    uint64_t bit;
    return c->starts && bit_of(c, address, &bit) && c->starts[bit / 64] >> bit % 64 & 1;
}

void check_starts_set(struct check *c, uint64_t address)
{
    uint64_t bit;
    if (c->starts && bit_of(c, address, &bit))
        c->starts[bit / 64] |= (uint64_t)1 << bit % 64;
}

/* ---- batches and records ---- */

struct visit {
    struct check *c;
    struct check_segment *s;
};

/* A file may be missing below the start of the oldest toc. */
static bool may_follow_a_gap(const struct check *c, const struct batch_header *h)
{
    return h->lsn >> LOG_SEGMENT_SHIFT <= c->start_lsn >> LOG_SEGMENT_SHIFT &&
           lsn_offset(h->lsn) == LOG_BLOCK_BYTES;
}

/* It may have overtaken one that was lost in a crash; but not in the log's first file, nor in one that
 * recovery has cut, for then that one was there once. */
static bool is_surely_damage(const struct check *c, const struct check_segment *s,
                             const struct batch_header *h)
{
    bool follows = h->lsn == c->chain.end_lsn || lsn_offset(h->lsn) == LOG_BLOCK_BYTES;
    return follows && h->previous_lsn > c->chain.previous_lsn &&
           (s->bytes < s->made_bytes || (!c->chain.any && s == c->segments));
}

static void broken(struct check *c, const struct check_segment *s, const struct batch_header *h)
{
    char name[SEGMENT_NAME_BYTES], before[SEGMENT_NAME_BYTES];
    const struct check_chain *chain = &c->chain;
    uint64_t from = chain->any ? chain->end_lsn : segment_lsn(c->segments[0].number, LOG_BLOCK_BYTES);
    bool expected = may_follow_a_gap(c, h);
    if (!expected && is_surely_damage(c, s, h))
        from = 0;
    if (expected || c->damage_since) {
        size_t count = c->finding_count;
        check_finding(c, from, h->lsn, true, NULL);
        if (expected && c->finding_count > count)
            c->findings[c->finding_count - 1].expected = true;
        return;
    }
    check_finding(c, from, h->lsn, true,
                  "%s/%s at offset %" PRIu64 ": the batch there follows one at offset %" PRIu64
                  " of %s, which is missing",
                  c->path, check_file_name(h->lsn, name), lsn_offset(h->lsn), lsn_offset(h->previous_lsn),
                  check_file_name(h->previous_lsn, before));
}

static void on_batch(void *context, const struct batch_header *h, bool whole)
{
    struct check *c = ((struct visit *)context)->c;
    const struct check_segment *s = ((struct visit *)context)->s;
    struct check_chain *chain = &c->chain;
    if (h->durable_lsn > c->durable_lsn)
        c->durable_lsn = h->durable_lsn;
    c->batches++;
    if (!whole)
        return;
    if (!chain->any) {
        chain->any = true;
        chain->first_lsn = h->lsn;
        chain->before_first = h->previous_lsn;
        if (lsn_offset(h->lsn) > LOG_BLOCK_BYTES || c->damage_since)
            broken(c, s, h);
    } else if (h->previous_lsn != chain->previous_lsn) {
        if (!chain->gap_lsn)
            chain->gap_lsn = chain->end_lsn;
        broken(c, s, h);
    }
    chain->previous_lsn = h->lsn;
    chain->end_lsn = h->lsn + round_up(h->length, LOG_BLOCK_BYTES);
    c->damage_since = false;
}

static void on_record(void *context, const struct record *record, bool whole)
{
    (void)whole;
    struct check *c = ((struct visit *)context)->c;
    c->records++;
    if (record->type == RECORD_SET || record->type == RECORD_SET_EXPIRE || record->type == RECORD_MOVED)
        check_starts_set(c, record->lsn);
}

static void on_damage(void *context, const struct scan_damage *d)
{
    struct check *c = ((struct visit *)context)->c;
    const struct check_segment *s = ((struct visit *)context)->s;
    /* What is no log was complete and synced before anybody named it: any damage to it counts. */
    uint64_t lsn = s->data ? 0 : segment_lsn(s->number, d->offset);
    char name[SEGMENT_NAME_BYTES], key[CHECK_KEY_TEXT_BYTES];
    static const char *const names[] = {
        [RECORD_SET] = "SET",       [RECORD_SET_EXPIRE] = "SET",  [RECORD_DELETE] = "DELETE",
        [RECORD_EXPIRE] = "EXPIRE", [RECORD_DELTREE] = "DELTREE", [RECORD_MOVED] = "value",
    };
    segment_file_name(name, s->data, s->number);
    c->damage_since |= d->kind != SCAN_PADDING && !s->data;
    switch (d->kind) {
    case SCAN_NO_BATCH:
        check_finding(c, lsn, lsn + d->bytes, false,
                      "%s/%s at offset %" PRIu64 ": %" PRIu64 " bytes are no valid batch; %" PRIu64
                      " records in them are valid",
                      c->path, name, d->offset, d->bytes, d->records);
        break;
    case SCAN_RECORD:
        if (d->type == RECORD_NONE)
            check_finding(c, lsn, lsn + d->bytes, false,
                          "%s/%s at offset %" PRIu64 ": %" PRIu64 " bytes are no valid record", c->path, name,
                          d->offset, d->bytes);
        else
            check_finding(c, lsn, lsn + d->bytes, false,
                          "%s/%s at offset %" PRIu64
                          ": the record does not check, a %s of key '%s' as it seems",
                          c->path, name, d->offset, names[d->type], check_key_text(d->key, key));
        break;
    case SCAN_COUNT:
        check_finding(c, lsn, lsn + d->bytes, false,
                      "%s/%s at offset %" PRIu64 ": the batch has other records than its header says",
                      c->path, name, d->offset);
        break;
    case SCAN_PADDING:
        check_finding(c, lsn, lsn + d->bytes, false,
                      "%s/%s at offset %" PRIu64 ": %" PRIu64 " bytes should all be zero", c->path, name,
                      d->offset, d->bytes);
        break;
    }
}

static void on_unreadable(void *context, uint64_t offset, int error)
{
    struct visit *v = context;
    char name[SEGMENT_NAME_BYTES];
    segment_file_name(name, v->s->data, v->s->number);
    check_unreadable(v->c, "%s/%s at offset %" PRIu64 ": %s", v->c->path, name, offset, strerror(error));
}

static void on_progress(void *context, uint64_t bytes)
{
    check_progress(((struct visit *)context)->c, bytes);
}

void check_scan(struct check *c, const struct check_segment *s, const struct scan_sink *sink)
{
    char name[SEGMENT_NAME_BYTES];
    uint64_t end = s->bytes, limit_number = c->limit_lsn >> LOG_SEGMENT_SHIFT;
    if (!s->data && s->number > limit_number)
        return;
    if (!s->data && s->number == limit_number && end > lsn_offset(c->limit_lsn))
        end = lsn_offset(c->limit_lsn);
    segment_file_name(name, s->data, s->number);
    int fd = check_segment_open(c, s);
    if (fd < 0) {
        check_unreadable(c, "%s/%s cannot be opened: %s", c->path, name, strerror(-fd));
        return;
    }
    struct scan_file f = {c->disk, fd, s->data, s->number, s->generation, end, s->reused};
    scan_segment(&f, sink);
    check_segment_close(c, s, fd);
}

void check_log_segment(struct check *c, struct check_segment *s)
{
    struct visit v = {c, s};
    char name[SEGMENT_NAME_BYTES];
    const struct scan_sink sink = {.context = &v,
                                   .batch = on_batch,
                                   .record = on_record,
                                   .damage = on_damage,
                                   .unreadable = on_unreadable,
                                   .progress = on_progress};
    check_scan(c, s, &sink);
    if (s->data)
        return;
    /* It has its full size from the beginning; recovery cuts it exactly behind its last batch. */
    bool cut = s->bytes > LOG_BLOCK_BYTES && segment_lsn(s->number, s->bytes) == c->chain.end_lsn;
    s->truncated = s->bytes < s->made_bytes && !cut && s->number < c->limit_lsn >> LOG_SEGMENT_SHIFT;
    segment_name(name, s->number);
    if (s->truncated)
        check_damage(c, "%s/%s at offset %" PRIu64 ": the file ends there; it had %" PRIu64 " bytes", c->path,
                     name, s->bytes, s->made_bytes);
}

/* ---- the end ---- */

static void end_of_chain(struct check *c)
{
    char name[SEGMENT_NAME_BYTES];
    uint64_t end = c->chain.end_lsn;
    if (end >= c->durable_lsn)
        return;
    if (end == 0 && c->log_count)
        end = segment_lsn(c->segments[0].number, LOG_BLOCK_BYTES);
    if (c->damage_since || end >= c->durable_lsn)
        check_finding(c, c->chain.end_lsn, c->durable_lsn, true, NULL);
    else
        check_finding(c, end, c->durable_lsn, true,
                      "%s/%s at offset %" PRIu64 ": the log ends there, but all up to LSN %" PRIu64
                      " was durable: batches or whole files are missing",
                      c->path, check_file_name(end, name), lsn_offset(end), c->durable_lsn);
}

/* The start of a replay must be there. */
static void check_beginning(struct check *c)
{
    char name[SEGMENT_NAME_BYTES];
    uint64_t start = c->chosen_lsn;
    bool reached = c->chain.any && c->chain.first_lsn < start;
    if (start && lsn_offset(start) > LOG_BLOCK_BYTES && start <= c->limit_lsn && !reached) {
        check_damage(c, "%s/%s is missing or empty: the log must be read from it on", c->path,
                     check_file_name(start, name));
        c->refuses = true;
    }
    if (start || !c->chain.any || c->chain.before_first == 0)
        return;
    if (lsn_offset(c->chain.first_lsn) == LOG_BLOCK_BYTES)
        check_damage(c,
                     "%s/%s at offset %d: the log's beginning is missing, from the first batch to the one at "
                     "LSN %" PRIu64,
                     c->path, check_file_name(c->chain.first_lsn, name), LOG_BLOCK_BYTES,
                     c->chain.before_first);
    c->refuses = true;
}

/* A file that nothing was written to yet names the one that was in use when it was made. */
static void check_last(struct check *c)
{
    uint64_t end = c->chain.gap_lsn ? c->chain.gap_lsn : c->chain.end_lsn;
    char name[SEGMENT_NAME_BYTES], missing[SEGMENT_NAME_BYTES];
    for (size_t i = 0; i < c->log_count && !c->live; i++) {
        uint64_t after = c->segments[i].after;
        if (after <= end >> LOG_SEGMENT_SHIFT || after < c->chosen_lsn >> LOG_SEGMENT_SHIFT)
            continue;
        const struct check_segment *s = check_segment_find(c, segment_lsn(after, 0));
        if (s && !s->unused)
            continue;
        segment_name(name, c->segments[i].number);
        segment_name(missing, after);
        check_damage(c, "%s/%s is %s: the log was written to it when %s was made", c->path, missing,
                     s ? "empty" : "missing", name);
        c->refuses = true;
    }
}

void check_log_end(struct check *c)
{
    uint64_t from = c->chosen_lsn >> LOG_SEGMENT_SHIFT;
    const struct check_finding *tail = NULL;
    char name[SEGMENT_NAME_BYTES];
    if (c->durable_lsn > c->limit_lsn)
        c->durable_lsn = c->limit_lsn; /* a toc of a running server may know of more than was looked at */
    check_beginning(c);
    check_last(c);
    end_of_chain(c);
    for (size_t i = 0; i < c->finding_count; i++) {
        const struct check_finding *f = &c->findings[i];
        if (f->expected && f->to_lsn <= segment_lsn(from, LOG_BLOCK_BYTES))
            continue;
        if (f->from_lsn && f->from_lsn >= c->durable_lsn) {
            tail = tail ? tail : f;
            continue;
        }
        if (f->text)
            check_damage(c, "%s", f->text);
        c->refuses |= f->breaks && f->to_lsn > segment_lsn(from, LOG_BLOCK_BYTES);
    }
    c->damages += c->finding_more;
    c->refuses |= c->more_breaks_to > segment_lsn(from, LOG_BLOCK_BYTES);
    for (size_t i = 0; i < c->log_count; i++) {
        const struct check_segment *s = &c->segments[i];
        c->refuses |= s->number >= from && (s->bad_header || s->truncated);
    }
    if (tail)
        check_note(c,
                   "%s/%s at offset %" PRIu64
                   ": behind the last write that is known to be durable there is something that does not "
                   "check: what a crash left of writes under way, or damage to the log's very last writes; "
                   "the server cuts it",
                   c->path, check_file_name(tail->from_lsn, name), lsn_offset(tail->from_lsn));
    for (size_t i = 0; i < c->finding_count; i++)
        free(c->findings[i].text);
    free(c->findings);
}
