/* Tocs: header, footer, list of segments; every block; and every entry against the segments. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "tools/check_internal.h"

void check_toc_headers(struct check *c)
{
    for (size_t i = 0; i < c->toc_count; i++) {
        struct check_toc *t = &c->tocs[i];
        status_t s = toc_open(c->disk, c->folder, c->path, t->number, &t->toc);
        if (!status_is_ok(&s)) {
            t->toc = NULL;
            check_status(c, &s);
            c->refuses |= s.code == STATUS_UNSUPPORTED;
            continue;
        }
        const struct toc_info *info = toc_info(t->toc);
        c->start_lsn = info->start_lsn; /* they come newest first */
        /* It got its name when all below its end was durable. (At a segment's first batch: nothing was logged
         * at all, and that segment may be gone.) */
        if (lsn_offset(info->end_lsn) > LOG_BLOCK_BYTES && info->end_lsn > c->durable_lsn)
            c->durable_lsn = info->end_lsn;
    }
}

/* ---- blocks ---- */

struct walk {
    struct check *c;
    struct check_toc *t;
    bool (*each)(void *context, const struct toc_entry *entry);
    void *context;
    bool first_of_block, unordered, stopped;
    bool any;
    size_t last_len;
    char last[RECORD_KEY_BYTES_MAX]; /* the key before */
};

static bool walk_entry(void *context, const struct toc_entry *entry)
{
    struct walk *w = context;
    /* Within a block toc_read has looked at the order. */
    if (w->first_of_block && w->any && slice_compare(slice_make(w->last, w->last_len), entry->key) >= 0) {
        w->unordered = true;
        return false;
    }
    w->first_of_block = false;
    w->any = true;
    w->last_len = entry->key.len;
    memcpy(w->last, entry->key.data, entry->key.len);
    w->stopped = !w->each(w->context, entry);
    return !w->stopped;
}

void check_toc_each(struct check *c, struct check_toc *t, bool tells,
                    bool (*each)(void *context, const struct toc_entry *entry), void *context)
{
    struct walk *w = malloc(sizeof *w);
    CHECK(w != NULL);
    w->c = c;
    w->t = t;
    w->each = each;
    w->context = context;
    w->any = w->stopped = false;
    status_t before = status_ok();
    for (uint64_t b = 0; b < toc_info(t->toc)->blocks && !w->stopped; b++) {
        w->first_of_block = true;
        w->unordered = false;
        status_t s = toc_read_blocks(t->toc, b, 1, walk_entry, w);
        if (w->unordered)
            s = status_error(STATUS_CORRUPT,
                             "the keys of toc %" PRIu64 " are not in order at offset %" PRIu64, t->number,
                             toc_block_offset(b));
        check_progress(c, TOC_BLOCK_BYTES);
        bool same = strcmp(s.text, before.text) == 0; /* a long entry's second block is met twice */
        before = s;
        if (status_is_ok(&s) || !tells)
            continue;
        t->bad_blocks++;
        if (!same)
            check_status(c, &s);
    }
    free(w);
}

/* ---- entries ---- */

struct entries {
    struct check *c;
    struct check_toc *t;
    bool first;
    const struct check_segment *segment; /* the last found */
};

static void lost(struct entries *e, const struct toc_entry *entry, const char *what)
{
    struct check *c = e->c;
    char key[CHECK_KEY_TEXT_BYTES], name[SEGMENT_NAME_BYTES];
    if (e->t->lost_keys++ >= CHECK_ENTRIES_MAX)
        return;
    check_damage(c, "toc %" PRIu64 ": the value of key '%s' should be in %s at offset %" PRIu64 ": %s",
                 e->t->number, check_key_text(entry->key, key), check_file_name(entry->address, name),
                 lsn_offset(entry->address), what);
}

static bool check_entry(void *context, const struct toc_entry *entry)
{
    struct entries *e = context;
    struct check *c = e->c;
    uint64_t number = (entry->address & ~SEGMENT_DATA_ADDRESS) >> LOG_SEGMENT_SHIFT;
    e->t->keys += e->first;
    if (entry->address >= c->limit_lsn && !(entry->address & SEGMENT_DATA_ADDRESS))
        return true;
    bool data = entry->address & SEGMENT_DATA_ADDRESS;
    if (e->segment == NULL || e->segment->number != number || e->segment->data != data)
        e->segment = check_segment_find(c, entry->address);
    const struct check_segment *s = e->segment;
    if (s == NULL || !s->usable) {
        if (e->first)
            lost(e, entry, s ? "nothing in that file can be read" : "there is no such file");
    } else if (e->first && entry->version >= toc_info(e->t->toc)->end_lsn) {
        lost(e, entry, "its version lies behind the toc's end");
    } else if (e->first && lsn_offset(entry->address) >= s->bytes) {
        lost(e, entry, "the file ends before that");
    } else if (s->in_group && lsn_offset(entry->address) < s->bytes && !check_starts_get(c, entry->address)) {
        lost(e, entry, "no valid record begins there");
    }
    return true;
}

static void check_list(struct check *c, struct check_toc *t)
{
    const struct toc_info *info = toc_info(t->toc);
    char name[SEGMENT_NAME_BYTES];
    for (uint32_t i = 0; i < info->segment_count; i++) {
        const struct toc_segment *listed = &info->segments[i];
        bool data = listed->kind == TOC_SEGMENT_DATA;
        if (listed->number > SEGMENT_NUMBER_MAX) {
            check_unreadable(c, "toc %" PRIu64 " names segment %" PRIu64 ": use a newer kvasir", t->number,
                             listed->number);
            c->refuses = true;
            continue;
        }
        uint64_t address = segment_lsn(listed->number, 0) | (data ? SEGMENT_DATA_ADDRESS : 0);
        check_file_name(address, name);
        const struct check_segment *s = check_segment_find(c, address);
        /* What is replayed may be gone, if unused. */
        bool replayed = !data && listed->number >= info->start_lsn >> LOG_SEGMENT_SHIFT;
        bool wrong = s && s->usable && s->generation != listed->generation;
        bool good = s && s->usable && !s->bad_header && !(data && s->truncated);
        if (!wrong && ((s == NULL && replayed) || good || (s && replayed)))
            continue;
        t->missing_files++;
        if (s == NULL || s->unused)
            check_damage(c, "%s/%s is %s, toc %" PRIu64 " names it", c->path, name, s ? "empty" : "missing",
                         t->number);
        else if (wrong)
            check_damage(c, "%s/%s is not the file that toc %" PRIu64 " names: it has another generation",
                         c->path, name, t->number);
    }
}

void check_toc_group(struct check *c, struct check_toc *t, bool first)
{
    if (t->toc == NULL)
        return;
    uint64_t lost_before = t->lost_keys;
    struct entries e = {.c = c, .t = t, .first = first};
    if (first)
        check_list(c, t);
    check_toc_each(c, t, first, check_entry, &e);
    const struct toc_info *info = toc_info(t->toc);
    if (first && t->bad_blocks == 0 && t->keys != info->keys) {
        check_damage(c, "toc %" PRIu64 " has %" PRIu64 " keys and should have %" PRIu64, t->number, t->keys,
                     info->keys);
        t->bad_blocks++;
    }
    if (t->lost_keys > CHECK_ENTRIES_MAX && t->lost_keys > lost_before)
        check_damage(c, "toc %" PRIu64 ": so far the values of %" PRIu64 " keys are not where it says",
                     t->number, t->lost_keys);
}

void check_toc_choose(struct check *c)
{
    for (size_t i = 0; i < c->toc_count; i++) {
        struct check_toc *t = &c->tocs[i];
        t->whole = t->toc && t->bad_blocks == 0 && t->missing_files == 0;
        if (!t->whole || c->chosen)
            continue;
        c->chosen = t;
        c->chosen_lsn = toc_info(t->toc)->start_lsn;
    }
}
