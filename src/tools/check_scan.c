#include "tools/check_scan.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"

enum {
    WINDOW_BYTES = 4 << 20,
    /* Bytes that may be hashed for each byte searched, so that made-up lengths cannot keep it busy. */
    SEARCH_WORK = 64,
    SEARCH_SMALL_BYTES = 4096, /* records up to this are tried even then */
};

struct scan {
    struct disk *disk;
    int fd;
    bool data, reused;
    uint64_t base; /* address of the file's first byte */
    uint64_t generation, end;
    const struct scan_sink *sink;
    char *window;
    uint64_t window_capacity, window_offset, window_len;
    bool told_unreadable;
    bool counts; /* progress */
    uint64_t counted;
};

/* ---- reading ---- */

static void tell_unreadable(struct scan *s, uint64_t offset, int error)
{
    if (!s->told_unreadable && s->sink->unreadable)
        s->sink->unreadable(s->sink->context, offset, error);
    s->told_unreadable = true;
}

/* After a failed read: block by block, with zeros for what cannot be read. */
static uint64_t read_blocks(struct scan *s, uint64_t offset, uint64_t len)
{
    for (uint64_t at = 0; at < len; at += LOG_BLOCK_BYTES) {
        int64_t n = s->disk->ops->read(s->disk, s->fd, s->window + at, LOG_BLOCK_BYTES, offset + at);
        if (n < 0) {
            tell_unreadable(s, offset + at, (int)-n);
            memset(s->window + at, 0, LOG_BLOCK_BYTES);
        } else if (n < LOG_BLOCK_BYTES) {
            return at + (uint64_t)n;
        }
    }
    return len;
}

/* Makes [offset, offset + len) available; NULL when the file is shorter, or memory is. */
static const char *window_at(struct scan *s, uint64_t offset, uint64_t len)
{
    if (len > s->end || offset > s->end - len)
        return NULL;
    if (offset >= s->window_offset && offset + len <= s->window_offset + s->window_len)
        return s->window + (offset - s->window_offset);
    uint64_t start = offset - offset % LOG_BLOCK_BYTES;
    uint64_t want = round_up(offset + len - start, LOG_BLOCK_BYTES);
    s->window_len = 0;
    if (want > s->window_capacity) {
        char *wider = aligned_alloc(LOG_BLOCK_BYTES, want);
        if (wider == NULL) {
            tell_unreadable(s, offset, ENOMEM);
            return NULL;
        }
        free(s->window);
        s->window = wider;
        s->window_capacity = want;
    }
    uint64_t rest = round_up(s->end - start, LOG_BLOCK_BYTES);
    uint64_t bytes = rest < s->window_capacity ? rest : s->window_capacity;
    if (bytes > WINDOW_BYTES && want <= WINDOW_BYTES)
        bytes = WINDOW_BYTES; /* a buffer that was grown for one long batch */
    int64_t n = s->disk->ops->read(s->disk, s->fd, s->window, bytes, start);
    s->window_offset = start;
    s->window_len = n < 0 ? read_blocks(s, start, bytes) : (uint64_t)n;
    if (start + s->window_len > s->end)
        s->window_len = s->end - start;
    if (s->counts && s->sink->progress && start + s->window_len > s->counted) {
        s->sink->progress(s->sink->context, start + s->window_len - s->counted);
        s->counted = start + s->window_len;
    }
    return offset + len <= start + s->window_len ? s->window + (offset - start) : NULL;
}

static bool header_at(struct scan *s, uint64_t offset, struct batch_header *h)
{
    const char *data = window_at(s, offset, BATCH_HEADER_BYTES);
    return data && batch_header_read(data, s->base + offset, s->generation, h) &&
           h->length <= s->end - offset;
}

static bool is_zero(const char *data, uint64_t len)
{
    return len == 0 || (data[0] == 0 && memcmp(data, data + 1, len - 1) == 0);
}

/* ---- searching for records ---- */

/* What a record's first bytes claim. */
struct claim {
    enum record_type type;
    uint32_t key_len, value_len;
    uint64_t bytes; /* with header and padding */
};

/* False: no record begins like this. */
static bool claim_read(const struct scan *s, const char *data, uint64_t available, struct claim *c)
{
    uint32_t word = load_u32(data + 12);
    c->type = (enum record_type)(word >> 24);
    c->key_len = word & 0xffffff;
    c->value_len = load_u32(data + 8);
    if (c->type == RECORD_TXN && !s->data) {
        c->bytes = RECORD_HEADER_BYTES;
        return true;
    }
    bool possible = s->data ? c->type == RECORD_MOVED : c->type > RECORD_NONE && c->type < RECORD_TXN;
    if (!possible || c->key_len > RECORD_KEY_BYTES_MAX)
        return false;
    c->bytes = record_bytes(c->type, c->key_len, c->value_len);
    return c->bytes <= available;
}

struct search {
    struct scan *scan;
    uint64_t from, to;
    uint64_t lost_from; /* the bytes that do not check begin here */
    uint64_t records;   /* valid ones */
    uint64_t work_left;
    bool tells; /* of each place with bytes that do not check: they should all be records */
    bool told;
};

/* The bytes from lost_from up to `end`, where something valid begins, do not check. */
static void search_tell(struct search *q, uint64_t end)
{
    struct scan *s = q->scan;
    const struct scan_sink *sink = s->sink;
    if (!q->tells || end <= q->lost_from || sink->damage == NULL)
        return;
    q->told = true;
    struct scan_damage d = {.kind = SCAN_RECORD, .offset = q->lost_from, .bytes = end - q->lost_from};
    struct claim c;
    const char *data = window_at(s, q->lost_from, RECORD_HEADER_BYTES);
    /* When its length leads just to what comes next, the lengths are right, and probably the key. */
    if (data && claim_read(s, data, end - q->lost_from, &c) && c.bytes == end - q->lost_from &&
        c.type != RECORD_TXN && (data = window_at(s, q->lost_from, c.bytes)) != NULL) {
        d.type = c.type;
        d.key = slice_make(data + record_bytes(c.type, 0, 0), c.key_len);
    }
    sink->damage(sink->context, &d);
}

/* A valid record at an offset? Its length, or 0. */
static uint64_t search_try(struct search *q, uint64_t at, struct record *record)
{
    struct scan *s = q->scan;
    struct claim c;
    const char *data = window_at(s, at, RECORD_HEADER_BYTES);
    if (data == NULL || !claim_read(s, data, q->to - at, &c))
        return 0;
    bool far = at < s->window_offset || at + c.bytes > s->window_offset + s->window_len;
    uint64_t cost = c.bytes + (far ? 2 * WINDOW_BYTES : 0);
    if (cost > q->work_left) {
        if (c.bytes > SEARCH_SMALL_BYTES)
            return 0;
        cost = q->work_left;
    }
    q->work_left -= cost;
    data = window_at(s, at, c.bytes);
    int64_t n = data ? record_decode(data, c.bytes, s->base + at, s->generation, record) : 0;
    return n > 0 ? (uint64_t)n : 0;
}

/* The end of a data segment: less than a block. */
static bool ends_in_zeros(struct scan *s, uint64_t from, uint64_t to)
{
    const char *data = to - from < LOG_BLOCK_BYTES ? window_at(s, from, to - from) : NULL;
    return data && is_zero(data, to - from);
}

/* Hands out the valid records in [from, to), which no whole batch covers. */
static void search_records(struct search *q)
{
    struct scan *s = q->scan;
    q->work_left = (q->to - q->from) * SEARCH_WORK + 16 * (uint64_t)WINDOW_BYTES;
    q->lost_from = q->from;
    for (uint64_t at = q->from; at + RECORD_HEADER_BYTES <= q->to;) {
        struct record record;
        uint64_t n = search_try(q, at, &record);
        if (n == 0) {
            at += 8;
            continue;
        }
        search_tell(q, at);
        at += n;
        q->lost_from = at;
        if (record.type == RECORD_TXN)
            continue;
        q->records++;
        if (s->sink->record)
            s->sink->record(s->sink->context, &record, s->data);
    }
    if (!s->data || !ends_in_zeros(s, q->lost_from, q->to))
        search_tell(q, q->to);
}

/* ---- batches ---- */

/* All records of a batch, to the sink if it is there. True when they are what the header says. */
static bool batch_records(const struct scan *s, const struct batch_header *h, const char *data,
                          const struct scan_sink *sink)
{
    uint64_t at = BATCH_HEADER_BYTES;
    uint32_t count = 0, txn_rest = 0;
    struct record record;
    while (at < h->length) {
        int64_t n = record_decode(data + at, h->length - at, h->lsn + at, s->generation, &record);
        if (n <= 0 || record.type == RECORD_MOVED)
            return false;
        at += (uint64_t)n;
        if (record.type == RECORD_TXN) {
            txn_rest = record.txn_count;
            continue;
        }
        count++;
        txn_rest -= txn_rest != 0;
        if (sink && sink->record)
            sink->record(sink->context, &record, true);
    }
    return count == h->record_count && txn_rest == 0;
}

static void check_padding(struct scan *s, const struct batch_header *h, uint64_t offset)
{
    uint64_t end = offset + h->length, rest = round_up(end, LOG_BLOCK_BYTES) - end;
    const char *data = window_at(s, end, rest);
    struct scan_damage d = {.kind = SCAN_PADDING, .offset = end, .bytes = rest};
    if (data && !is_zero(data, rest) && s->sink->damage)
        s->sink->damage(s->sink->context, &d);
}

static void take_batch(struct scan *s, const struct batch_header *h, uint64_t offset)
{
    const struct scan_sink *sink = s->sink;
    const char *data = window_at(s, offset, h->length);
    bool whole = data && batch_records(s, h, data, NULL);
    if (sink->batch)
        sink->batch(sink->context, h, whole);
    if (whole) {
        (void)batch_records(s, h, data, sink);
        check_padding(s, h, offset);
        return;
    }
    struct search q = {
        .scan = s, .from = offset + BATCH_HEADER_BYTES, .to = offset + h->length, .tells = true};
    search_records(&q);
    struct scan_damage d = {.kind = SCAN_COUNT, .offset = offset, .bytes = BATCH_HEADER_BYTES};
    if (!q.told && sink->damage)
        sink->damage(sink->context, &d);
}

/* No batch begins in [from, to), and not all is zero there. Behind the last batch of a file that is used
 * again only valid records count. */
static void take_gap(struct scan *s, uint64_t from, uint64_t to, uint64_t used_until, bool is_last)
{
    struct search q = {.scan = s, .from = from, .to = to};
    search_records(&q);
    struct scan_damage d = {
        .kind = SCAN_NO_BATCH, .offset = from, .bytes = used_until - from, .records = q.records};
    if (s->sink->damage && (q.records || !is_last || !s->reused))
        s->sink->damage(s->sink->context, &d);
}

static struct scan scan_begin(const struct scan_file *f, const struct scan_sink *sink)
{
    struct scan s = {.disk = f->disk,
                     .fd = f->fd,
                     .data = f->data,
                     .reused = f->reused,
                     .base = segment_lsn(f->number, 0) | (f->data ? SEGMENT_DATA_ADDRESS : 0),
                     .generation = f->generation,
                     .end = f->end,
                     .sink = sink,
                     .window_capacity = WINDOW_BYTES};
    s.window = aligned_alloc(LOG_BLOCK_BYTES, WINDOW_BYTES);
    CHECK(s.window != NULL);
    return s;
}

static void scan_batches(struct scan *s)
{
    uint64_t offset = LOG_BLOCK_BYTES, gap = 0, used_until = 0; /* 0: none */
    while (offset < s->end) {
        struct batch_header h;
        if (header_at(s, offset, &h)) {
            if (used_until)
                take_gap(s, gap, offset, used_until, false);
            gap = used_until = 0;
            take_batch(s, &h, offset);
            offset += round_up(h.length, LOG_BLOCK_BYTES);
            continue;
        }
        uint64_t len = s->end - offset < LOG_BLOCK_BYTES ? s->end - offset : LOG_BLOCK_BYTES;
        const char *data = window_at(s, offset, len);
        if (data == NULL)
            break;
        gap = gap ? gap : offset;
        if (!is_zero(data, len))
            used_until = offset + len;
        offset += len;
    }
    if (used_until)
        take_gap(s, gap, offset < s->end ? offset : s->end, used_until, true);
}

void scan_segment(const struct scan_file *file, const struct scan_sink *sink)
{
    struct scan s = scan_begin(file, sink);
    s.counts = true;
    struct search q = {.scan = &s, .from = LOG_BLOCK_BYTES, .to = s.end, .tells = true};
    if (!s.data)
        scan_batches(&s);
    else if (q.from < q.to)
        search_records(&q);
    free(s.window);
}

bool scan_is_generation(const struct scan_file *file)
{
    static const struct scan_sink nobody;
    struct scan s = scan_begin(file, &nobody);
    struct search q = {.scan = &s, .to = s.end, .work_left = UINT64_MAX};
    struct record record;
    struct batch_header h;
    bool found = s.data && search_try(&q, LOG_BLOCK_BYTES, &record) > 0;
    for (uint64_t offset = LOG_BLOCK_BYTES; offset < s.end && !s.data && !found; offset += LOG_BLOCK_BYTES)
        found = header_at(&s, offset, &h);
    free(s.window);
    return found;
}
