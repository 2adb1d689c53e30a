/* Chunks are 16 KiB pieces of the output stream in a singly linked chain, head first. A chunk knows the
 * stream offset of its first byte, so that offsets and byte counts are subtractions. Only the tail is written
 * to; the number of bytes in the others is fixed. Sent chunks go back at once: an idle connection owns none.
 *
 * Marks say where held output begins: mark i holds every byte from its offset on until the commit point has
 * passed its LSN. They grow in both fields, so the first one alone decides what may leave. */
#include "server/reply.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/check.h"

struct reply_chunk {
    struct reply_chunk *next;
    uint64_t base;   /* stream offset of data[0] */
    size_t capacity; /* bytes of data */
    size_t used;     /* bytes in data; of the tail: stale, see cursor */
    char data[];
};

struct reply_mark {
    uint64_t from;
    uint64_t lsn;
};

struct reply_pool {
    struct reply_chunk *free;
    unsigned free_count, free_max;
    bool saves;                                 /* reply_pool_save */
    _Atomic uint64_t bytes;                     /* relaxed: a statistic, written by the pool's worker only */
    _Atomic uint64_t busy_bytes;                /* same; without the free ones */
    _Atomic uint64_t errors[REPLY_ERROR_KINDS]; /* same */
};

enum {
    CHUNK_DATA_BYTES = REPLY_CHUNK_BYTES - (int)sizeof(struct reply_chunk),
    SMALL_DATA_BYTES = 512 - (int)sizeof(struct reply_chunk), /* when memory is short */
    MARKS_MAX = 64, /* further ones merge into the last: held a little longer, never too short */
    INTEGER_BYTES_MAX = 24,
    ERROR_BYTES_MAX = 2048,
};

/* ---- chunks ---- */

/* One writer. */
static void change(_Atomic uint64_t *number, uint64_t by)
{
    uint64_t old = atomic_load_explicit(number, memory_order_relaxed);
    atomic_store_explicit(number, old + by, memory_order_relaxed);
}

static uint64_t chunk_bytes(const struct reply_chunk *chunk)
{
    return sizeof *chunk + chunk->capacity;
}

struct reply_pool *reply_pool_create(void)
{
    struct reply_pool *pool = calloc(1, sizeof *pool);
    CHECK(pool);
    pool->free_max = REPLY_POOL_FREE_MAX;
    return pool;
}

static struct reply_chunk *take_free(struct reply_pool *pool)
{
    struct reply_chunk *chunk = pool->free;
    pool->free = chunk->next;
    pool->free_count--;
    return chunk;
}

void reply_pool_keep(struct reply_pool *pool, unsigned count)
{
    pool->free_max = count;
    while (UNLIKELY(pool->free_count > count)) {
        struct reply_chunk *chunk = take_free(pool);
        change(&pool->bytes, 0 - chunk_bytes(chunk));
        free(chunk);
    }
}

void reply_pool_save(struct reply_pool *pool, bool on)
{
    pool->saves = on;
}

void reply_pool_destroy(struct reply_pool *pool)
{
    reply_pool_keep(pool, 0);
    free(pool);
}

uint64_t reply_pool_busy_bytes(const struct reply_pool *pool)
{
    return atomic_load_explicit(&pool->busy_bytes, memory_order_relaxed);
}

uint64_t reply_pool_bytes(const struct reply_pool *pool)
{
    return atomic_load_explicit(&pool->bytes, memory_order_relaxed);
}

const char *const reply_error_kinds[REPLY_ERROR_KINDS] = {"ERR", "IOERR",     "LOADING", "NOPROTO",
                                                          "OOM", "WRONGPASS", "OTHER"};

uint64_t reply_pool_errors(const struct reply_pool *pool, unsigned kind)
{
    return atomic_load_explicit(&pool->errors[kind], memory_order_relaxed);
}

static void count_error(struct reply_pool *pool, const char *text)
{
    size_t len = strcspn(text, " ");
    unsigned kind = 0;
    while (kind < REPLY_ERROR_KINDS - 1 &&
           (strncmp(text, reply_error_kinds[kind], len) != 0 || reply_error_kinds[kind][len] != '\0'))
        kind++;
    change(&pool->errors[kind], 1);
}

static struct reply_chunk *chunk_get(struct reply_pool *pool, size_t capacity)
{
    struct reply_chunk *chunk;
    if (capacity <= CHUNK_DATA_BYTES && pool->free) {
        chunk = take_free(pool);
        change(&pool->busy_bytes, chunk_bytes(chunk));
        return chunk;
    }
    size_t least = pool->saves ? SMALL_DATA_BYTES : CHUNK_DATA_BYTES;
    if (capacity < least)
        capacity = least;
    chunk = malloc(sizeof *chunk + capacity);
    CHECK(chunk);
    chunk->capacity = capacity;
    change(&pool->bytes, chunk_bytes(chunk));
    change(&pool->busy_bytes, chunk_bytes(chunk));
    return chunk;
}

static void chunk_put(struct reply_pool *pool, struct reply_chunk *chunk)
{
    change(&pool->busy_bytes, 0 - chunk_bytes(chunk));
    if (chunk->capacity == CHUNK_DATA_BYTES && pool->free_count < pool->free_max) {
        chunk->next = pool->free;
        pool->free = chunk;
        pool->free_count++;
        return;
    }
    change(&pool->bytes, 0 - chunk_bytes(chunk));
    free(chunk);
}

static void chunks_put(struct reply_pool *pool, struct reply_chunk *chunk)
{
    while (chunk) {
        struct reply_chunk *next = chunk->next;
        chunk_put(pool, chunk);
        chunk = next;
    }
}

static size_t chunk_used(const struct reply *r, const struct reply_chunk *chunk)
{
    return chunk == r->tail ? (size_t)(r->cursor - chunk->data) : chunk->used;
}

void reply_init(struct reply *r, struct reply_pool *pool)
{
    memset(r, 0, sizeof *r);
    r->resp = 2;
    r->pool = pool;
}

void reply_deinit(struct reply *r)
{
    chunks_put(r->pool, r->head);
    free(r->marks);
    memset(r, 0, sizeof *r);
}

char *reply_room_slow(struct reply *r, size_t n)
{
    struct reply_chunk *chunk = chunk_get(r->pool, n);
    chunk->base = reply_end_offset(r);
    chunk->next = NULL;
    chunk->used = 0;
    if (r->tail) {
        r->tail->used = chunk_used(r, r->tail);
        r->tail->next = chunk;
    } else {
        r->head = chunk;
    }
    r->tail = chunk;
    r->cursor = chunk->data;
    r->limit = chunk->data + chunk->capacity;
    return r->cursor;
}

struct reply_position reply_position(const struct reply *r)
{
    return (struct reply_position){r->tail, r->cursor};
}

/* Makes chunk (NULL: none) the tail, with the cursor at the given place. */
static void cut_behind(struct reply *r, struct reply_chunk *chunk, char *cursor)
{
    if (chunk == NULL) {
        chunks_put(r->pool, r->head);
        r->head = r->tail = NULL;
        r->cursor = r->limit = NULL;
        return;
    }
    chunks_put(r->pool, chunk->next);
    chunk->next = NULL;
    r->tail = chunk;
    r->cursor = cursor;
    r->limit = chunk->data + chunk->capacity;
}

void reply_rollback(struct reply *r, struct reply_position to)
{
    cut_behind(r, to.tail, to.cursor);
}

/* ---- numbers ---- */

static const char digit_pairs[] =
    "00010203040506070809101112131415161718192021222324252627282930313233343536373839"
    "40414243444546474849505152535455565758596061626364656667686970717273747576777879"
    "8081828384858687888990919293949596979899";

/* For put_u64. */
static char *put_long(char *p, uint64_t value)
{
    char digits[20];
    char *d = digits + sizeof digits;
    while (value >= 100) {
        d -= 2;
        memcpy(d, digit_pairs + value % 100 * 2, 2);
        value /= 100;
    }
    if (value >= 10) {
        d -= 2;
        memcpy(d, digit_pairs + value * 2, 2);
    } else {
        *--d = (char)('0' + value);
    }
    size_t n = (size_t)(digits + sizeof digits - d);
    memcpy(p, d, n);
    return p + n;
}

/* Writes value in decimal, returns the end. Room for 20 bytes. */
static inline char *put_u64(char *p, uint64_t value)
{
    if (value < 10) {
        *p = (char)('0' + value);
        return p + 1;
    }
    if (LIKELY(value < 100)) {
        memcpy(p, digit_pairs + value * 2, 2);
        return p + 2;
    }
    return put_long(p, value);
}

static char *put_i64(char *p, int64_t value)
{
    if (value >= 0)
        return put_u64(p, (uint64_t)value);
    *p = '-';
    return put_u64(p + 1, 0 - (uint64_t)value);
}

static char *put_crlf(char *p)
{
    memcpy(p, "\r\n", 2);
    return p + 2;
}

/* Type byte, number, CRLF. */
static void put_header(struct reply *r, char type, uint64_t n)
{
    char *p = reply_room(r, INTEGER_BYTES_MAX);
    *p = type;
    r->cursor = put_crlf(put_u64(p + 1, n));
}

/* ---- RESP values ---- */

static void put_raw(struct reply *r, struct slice bytes)
{
    if (bytes.len == 0)
        return;
    memcpy(reply_room(r, bytes.len), bytes.data, bytes.len);
    r->cursor += bytes.len;
}

void reply_ok(struct reply *r)
{
    memcpy(reply_room(r, 5), "+OK\r\n", 5);
    r->cursor += 5;
}

void reply_status(struct reply *r, const char *text)
{
    size_t n = strlen(text);
    char *p = reply_room(r, n + 3);
    *p = '+';
    memcpy(p + 1, text, n);
    r->cursor = put_crlf(p + 1 + n);
}

void reply_error(struct reply *r, const char *format, ...)
{
    char text[ERROR_BYTES_MAX];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    size_t len = n < 0 ? 0 : (size_t)n < sizeof text ? (size_t)n : sizeof text - 1;
    char *p = reply_room(r, len + 3);
    *p++ = '-';
    for (size_t i = 0; i < len; i++)
        *p++ = (unsigned char)text[i] < ' ' || text[i] == 127 ? ' ' : text[i];
    r->cursor = put_crlf(p);
    r->error_count++;
    count_error(r->pool, text);
}

void reply_integer(struct reply *r, int64_t value)
{
    char *p = reply_room(r, INTEGER_BYTES_MAX);
    *p = ':';
    r->cursor = put_crlf(put_i64(p + 1, value));
}

char *reply_bulk_begin(struct reply *r, size_t len)
{
    char *p = reply_room(r, INTEGER_BYTES_MAX + len + 2);
    *p = '$';
    r->cursor = put_crlf(put_u64(p + 1, len));
    return r->cursor;
}

void reply_bulk_end(struct reply *r, size_t len)
{
    r->cursor = put_crlf(r->cursor + len);
}

void reply_bulk(struct reply *r, struct slice bytes)
{
    char *p = reply_bulk_begin(r, bytes.len);
    if (bytes.len)
        memcpy(p, bytes.data, bytes.len);
    reply_bulk_end(r, bytes.len);
}

void reply_bulk_text(struct reply *r, const char *text)
{
    reply_bulk(r, slice_make(text, strlen(text)));
}

void reply_bulk_integer(struct reply *r, int64_t value)
{
    char digits[INTEGER_BYTES_MAX];
    reply_bulk(r, slice_make(digits, (size_t)(put_i64(digits, value) - digits)));
}

void reply_verbatim(struct reply *r, struct slice text)
{
    if (r->resp < 3) {
        reply_bulk(r, text);
        return;
    }
    put_header(r, '=', text.len + 4);
    put_raw(r, SLICE_LITERAL("txt:"));
    put_raw(r, text);
    put_raw(r, SLICE_LITERAL("\r\n"));
}

void reply_null(struct reply *r)
{
    put_raw(r, r->resp < 3 ? SLICE_LITERAL("$-1\r\n") : SLICE_LITERAL("_\r\n"));
}

void reply_array(struct reply *r, uint64_t count)
{
    put_header(r, '*', count);
}

void reply_map(struct reply *r, uint64_t pairs)
{
    put_header(r, r->resp < 3 ? '*' : '%', r->resp < 3 ? pairs * 2 : pairs);
}

void reply_set(struct reply *r, uint64_t count)
{
    put_header(r, r->resp < 3 ? '*' : '~', count);
}

/* ---- for the worker ---- */

uint64_t reply_end_offset(const struct reply *r)
{
    return r->tail ? r->tail->base + (uint64_t)(r->cursor - r->tail->data) : r->head_offset;
}

uint64_t reply_pending_bytes(const struct reply *r)
{
    return reply_end_offset(r) - r->head_offset;
}

void reply_hold(struct reply *r, uint64_t from, uint64_t lsn)
{
    if (r->mark_count) {
        struct reply_mark *last = &r->marks[r->mark_count - 1];
        if (lsn <= last->lsn)
            return; /* held at least as long already */
        if (from <= last->from || r->mark_count == MARKS_MAX) {
            last->lsn = lsn;
            return;
        }
    }
    if (r->mark_count == r->mark_capacity) {
        r->mark_capacity = r->mark_capacity ? MARKS_MAX : 4;
        r->marks = realloc(r->marks, r->mark_capacity * sizeof *r->marks);
        CHECK(r->marks);
    }
    r->marks[r->mark_count++] = (struct reply_mark){from, lsn};
}

static void drop_marks(struct reply *r, uint64_t commit_lsn)
{
    uint32_t n = 0;
    while (n < r->mark_count && r->marks[n].lsn < commit_lsn)
        n++;
    if (n == 0)
        return;
    r->mark_count -= n;
    memmove(r->marks, r->marks + n, r->mark_count * sizeof *r->marks);
    if (r->mark_count == 0 && r->mark_capacity == MARKS_MAX) {
        free(r->marks);
        r->marks = NULL;
        r->mark_capacity = 0;
    }
}

int reply_sendable(struct reply *r, uint64_t commit_lsn, struct iovec *pieces, int max)
{
    int count = 0;
    uint64_t at = r->head_offset;
    drop_marks(r, commit_lsn);
    uint64_t limit = r->mark_count ? r->marks[0].from : reply_end_offset(r);
    for (struct reply_chunk *c = r->head; c && at < limit && count < max; c = c->next) {
        uint64_t end = c->base + chunk_used(r, c);
        if (end > limit)
            end = limit;
        if (end <= at)
            continue; /* an empty chunk: rolled back to its start */
        pieces[count++] = (struct iovec){c->data + (at - c->base), (size_t)(end - at)};
        at = end;
    }
    return count;
}

void reply_sent(struct reply *r, size_t n)
{
    r->head_offset += n;
    DCHECK(r->head_offset <= reply_end_offset(r));
    while (r->head && r->head->base + chunk_used(r, r->head) <= r->head_offset) {
        struct reply_chunk *chunk = r->head;
        r->head = chunk->next;
        if (chunk == r->tail) {
            r->tail = NULL;
            r->cursor = r->limit = NULL;
        }
        chunk_put(r->pool, chunk);
    }
}

bool reply_is_held(const struct reply *r)
{
    return r->mark_count && r->marks[0].from < reply_end_offset(r);
}

void reply_drop_held(struct reply *r)
{
    if (!reply_is_held(r)) {
        r->mark_count = 0;
        return;
    }
    uint64_t from = r->marks[0].from;
    struct reply_chunk *chunk = r->head;
    while (chunk->base + chunk_used(r, chunk) < from)
        chunk = chunk->next;
    cut_behind(r, chunk, chunk->data + (from - chunk->base));
    r->mark_count = 0;
    reply_sent(r, 0); /* a chunk that held nothing else goes back */
}
