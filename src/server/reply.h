/* reply: a connection's output: RESP2/RESP3 encoding into chunks, and the marks that hold replies until they
 * are durable.
 *
 * One reply belongs to one connection, hence to one worker; not thread-safe. Output is a byte stream in a
 * chain of chunks from the worker's pool; nothing once written moves, so that a send may be in flight while
 * more is appended. Offsets are absolute positions in the connection's output stream. */
#ifndef KVASIR_SERVER_REPLY_H
#define KVASIR_SERVER_REPLY_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/bytes.h"

enum {
    REPLY_CHUNK_BYTES = 16384, /* of an ordinary chunk, header included; a longer value gets its own */
    REPLY_POOL_FREE_MAX = 256, /* 4 MiB */
};

struct reply_chunk; /* reply.c */
struct reply_pool;  /* free chunks of a worker */

struct reply {
    char *cursor; /* where the next byte goes */
    char *limit;  /* end of the current chunk */
    uint8_t resp; /* 2 or 3 */
    /* the rest is reply.c's and the worker's: see reply.c */
    struct reply_pool *pool;
    struct reply_chunk *head, *tail;
    uint64_t head_offset; /* stream offset of the first unsent byte */
    struct reply_mark *marks;
    uint32_t mark_count, mark_capacity;
    uint64_t error_count;
};

struct reply_pool *reply_pool_create(void);
void reply_pool_destroy(struct reply_pool *pool);
/* Shall new chunks be small, as there is little memory for them? */
void reply_pool_save(struct reply_pool *pool, bool on);
/* How many free ones to keep for the next burst: REPLY_POOL_FREE_MAX at first. */
void reply_pool_keep(struct reply_pool *pool, unsigned count);
/* Memory of free chunks and of those in use. Any thread. */
uint64_t reply_pool_bytes(const struct reply_pool *pool);
/* Of those in use alone: of output that has not been sent. Any thread. */
uint64_t reply_pool_busy_bytes(const struct reply_pool *pool);

/* Error replies that were written, by the first word of their text. Any thread. */
enum { REPLY_ERROR_KINDS = 7 };
extern const char *const reply_error_kinds[REPLY_ERROR_KINDS]; /* the last stands for all others */
uint64_t reply_pool_errors(const struct reply_pool *pool, unsigned kind);

void reply_init(struct reply *r, struct reply_pool *pool);
void reply_deinit(struct reply *r); /* gives every chunk back */

/* Room for n contiguous bytes at r->cursor; the caller writes and then advances r->cursor by what it used. */
char *reply_room_slow(struct reply *r, size_t n);
static inline char *reply_room(struct reply *r, size_t n)
{
    return (size_t)(r->limit - r->cursor) >= n ? r->cursor : reply_room_slow(r, n);
}

/* RESP values, in the form of r->resp. A status has no CRLF in it. An error's text begins with its kind ("ERR
 * ..."); control bytes in it become spaces, and it is cut at 2 KiB. */
void reply_ok(struct reply *r);
void reply_status(struct reply *r, const char *text);
void reply_error(struct reply *r, const char *format, ...) __attribute__((format(printf, 2, 3)));
void reply_integer(struct reply *r, int64_t value);
void reply_bulk(struct reply *r, struct slice bytes);
void reply_bulk_text(struct reply *r, const char *text);
void reply_bulk_integer(struct reply *r, int64_t value);
void reply_verbatim(struct reply *r, struct slice text); /* RESP3 "=len\r\ntxt:...", RESP2 bulk */
void reply_null(struct reply *r);                        /* "$-1" or "_" */
void reply_array(struct reply *r, uint64_t count);
void reply_map(struct reply *r, uint64_t pairs); /* RESP3 "%pairs", RESP2 "*2*pairs" */
void reply_set(struct reply *r, uint64_t count); /* RESP3 "~count", RESP2 "*count" */

/* Opens a bulk of exactly len bytes: returns where the caller must put them all, then reply_bulk_end. */
char *reply_bulk_begin(struct reply *r, size_t len);
void reply_bulk_end(struct reply *r, size_t len);

/* Position, to undo: reply_rollback drops everything appended since. Only within one command. */
struct reply_position {
    struct reply_chunk *tail;
    char *cursor;
};
struct reply_position reply_position(const struct reply *r);
void reply_rollback(struct reply *r, struct reply_position to);

/* ---- for the worker ---- */

uint64_t reply_end_offset(const struct reply *r);
uint64_t reply_pending_bytes(const struct reply *r);
/* Everything appended from stream offset `from` on depends on lsn. Coalesces: call it once a command or once
 * a batch. */
void reply_hold(struct reply *r, uint64_t from, uint64_t lsn);
/* Fills up to max pieces with what may leave now (marks with lsn < commit_lsn are dropped). Returns the
 * count, 0 if nothing. */
int reply_sendable(struct reply *r, uint64_t commit_lsn, struct iovec *pieces, int max);
/* n bytes have been sent: frees chunks. */
void reply_sent(struct reply *r, size_t n);
bool reply_is_held(const struct reply *r); /* bytes wait for the commit point */
/* The log has failed: takes back every byte that waits for the commit point. They have never left. */
void reply_drop_held(struct reply *r);

#endif
