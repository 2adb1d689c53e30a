/* internal: what log.c, flush.c, prepare.c and replay.c share. */
#ifndef KVASIR_LOG_INTERNAL_H
#define KVASIR_LOG_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/spin.h"
#include "log/log.h"
#include "log/segment.h"

enum {
    LOG_POOL_BATCHES = LOG_FLUSHES_MAX + 2, /* those in flight, one queued full, one open */
    LOG_EAGER_BYTES = 256 << 10, /* an open batch this long is flushed although another flush is in flight */
    LOG_HEADROOM_BYTES = 256 << 10,
    LOG_RETRY_SECONDS = 1,
    LOG_WAIT_NS = 20000000,   /* between two tries while room is expected */
    LOG_WANTED_US = 10000000, /* how long a large record waits for a segment at most */
    LOG_REFUSED_US = 1000000, /* so long others of its size are refused unasked */
};

struct log_batch {
    char *buffer;              /* LOG_BLOCK_BYTES aligned */
    _Atomic uint64_t base_lsn; /* of buffer[0]. Changed only between uses, when no reservation is out */
    _Atomic uint64_t limit;    /* bytes that may be reserved up to */
    _Atomic uint64_t generation;
    /* Bytes published (low 40 bits, header included) and records (high 24). Release by publishers, acquire by
     * the flusher. */
    _Atomic uint64_t published;
    /* Under log->lock: */
    uint64_t length; /* final, once closed; header included */
    struct segment *segment;
    struct log_batch *next; /* closed or in-flight list */
    size_t capacity;
    bool large; /* made by log_large_create; freed after its flush */
    bool free;  /* pool only */
    bool done;  /* its write has completed */
};

enum { PUBLISHED_RECORD_SHIFT = 40 };

struct batch_list {
    struct log_batch *first, *last;
};

struct log {
    struct log_config config;
    char *path;
    int folder, lock_fd;
    struct segments *own_segments; /* NULL: config.segments is the caller's */

    /* The open batch: pool index + turn (high 32 bits: a number that grows by one with each batch) and offset
     * (low 32 bits). */
    _Atomic uint64_t word;
    char padding0[56];
    _Atomic uint64_t commit_lsn;
    _Atomic bool disk_full;
    _Atomic bool waits;        /* there is no room for a segment, and will be soon. Relaxed, as disk_full */
    _Atomic bool large_waits;  /* the same of one for a long record. Relaxed */
    _Atomic bool deletes_wait; /* the same of one for deletes, or one is about to be made. Relaxed */
    _Atomic bool scarce;       /* the segment nears its end and none is prepared; relaxed: the lock decides */
    _Atomic int refused_errno; /* why disk_full, if not for lack of room; else 0. Relaxed, as that */
    _Atomic(const char *) failed;
    char padding1[32];

    _Atomic uint32_t lock; /* short: everything below */
    struct log_batch pool[LOG_POOL_BATCHES];
    char *pool_memory;
    uint32_t turn;            /* of the open batch */
    struct batch_list closed; /* waiting for their flush, in LSN order */
    struct batch_list flying; /* given out, in LSN order */
    unsigned flying_count;
    _Atomic uint64_t large_bytes; /* of large batches, closed or flying; written under the lock */
    struct segment *current;      /* new batches go here */
    struct segment *prepared;     /* the next one, or NULL */
    struct segment *oldest;       /* list up to current: those whose batches are not all durable */
    uint64_t position;            /* offset in current where the open batch starts */
    uint64_t tail_lsn;     /* behind the last batch that holds something: what commit_lsn reaches next */
    uint64_t durable_lsn;  /* end of the last durable batch, also of an earlier run; 0: there is none. Always
                              the end of a batch, unlike commit_lsn, which starts at the new segment */
    uint64_t previous_lsn; /* of the last batch given out */
    uint64_t wanted_bytes; /* a large record needs a segment of at least this size; 0: none does */
    uint64_t wanted_since_us;
    uint64_t refused_bytes, refused_us; /* there was no room for one of that size, then */
    uint64_t next_number;
    uint64_t next_bytes;
    uint64_t last_flush_us;
    uint64_t first_pending_us; /* when the open batch was first seen to hold something; 0: not yet */
    struct log_stats stats;
    char failure[STATUS_TEXT_BYTES];

    pthread_t thread;
    bool has_thread;
    pthread_mutex_t mutex; /* for the condition variable only */
    pthread_cond_t wake;
    bool stop;         /* under mutex */
    bool want_segment; /* under mutex: prepare one */
};

/* log.c, under lock: closes the open batch if it holds something (it goes to the closed list), and opens the
 * next. need: bytes that must fit (without header), 0: any. False if none could be opened. */
bool log_switch(struct log *log, uint64_t need);
/* What is kept for deletes at the current segment's end is used up so far that not every one would fit. */
bool log_headroom_is_low(struct log *log);
void batch_append(struct batch_list *list, struct log_batch *batch);
struct log_batch *batch_pop(struct batch_list *list);
/* flush.c */
void log_die(struct log *log, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Where its files lie. */
struct segment_folder log_segment_folder(const struct log *log);
/* prepare.c */
/* Takes a segment that was never used out of table and folder, and frees it. */
void log_discard(struct log *log, struct segment *segment);
/* For the time until the next start: leaves an empty segment that names the one written to last, as a
 * prepared one does while the log is open. So it shows if that one is missing. */
void log_leave_witness(struct log *log);
status_t log_prepare_start(struct log *log);
void log_prepare_stop(struct log *log);
void log_prepare_wake(struct log *log);

/* replay.c: what recovery found. */
struct replay_end {
    uint64_t lsn;          /* end of the last valid batch: where the log was cut or ends; 0: no batch */
    uint64_t previous_lsn; /* start of the last valid batch */
    uint64_t last_number;  /* highest segment number seen, also of removed ones */
    uint64_t records;
    uint64_t bytes; /* of the batches from the start on */
    uint64_t cut_bytes;
};
/* Replays, cuts, lists what stays. */
STATUS_MUST_USE status_t log_replay(const struct log_config *config, int folder, struct replay_end *end);

#endif
