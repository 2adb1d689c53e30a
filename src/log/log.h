/* log: one totally ordered, append-only, durable log in segment files. It is the data.
 *
 * The happy path. A worker that holds its key's lock reserves space (log_reserve: a few atomic instructions,
 * never blocks, gives the LSN), copies its record there and publishes it. Reservations fill the open batch, a
 * memory buffer. At the end of its turn any worker may take a flush (log_flush_take): the batch is closed,
 * padded to a block, and given out as one O_DIRECT + DSYNC write, which that worker's event loop performs;
 * meanwhile everything that arrives collects in the next batch. log_flush_done advances the commit point, in
 * log order only: several flushes may be in flight, but a later one that completes first waits for the
 * earlier. Nobody waits inside the log, ever.
 *
 * LSN: segment number << LOG_SEGMENT_SHIFT | byte offset in the segment's file. Strictly growing, with gaps
 * (block padding, the unused end of a segment). A record with LSN x is durable when x < log_commit_lsn().
 *
 * Failures. A failed or short write is final: the log is dead, log_failed says why, the commit point never
 * moves again. Disk full is foreseen: segments are allocated and zero-filled ahead, and when the next one
 * cannot be made and the current one runs low, log_reserve answers LOG_NO_SPACE (deletes have headroom left,
 * and small segments of their own); it resumes by itself.
 *
 * Thread safety: log_open, log_close: one thread. log_reserve, log_publish, log_flush_*, log_commit_lsn,
 * log_tail_lsn, stats: any. A store has one log; several logs can live in one process. */
#ifndef KVASIR_LOG_LOG_H
#define KVASIR_LOG_LOG_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/histogram.h"
#include "base/status.h"
#include "log/record.h"
#include "sys/disk.h"

enum {
    LOG_BLOCK_BYTES = 4096,
    LOG_BATCH_BYTES = 1 << 20,        /* capacity of an ordinary batch */
    LOG_REPLAY_RECORDS_MAX = 32,      /* handed to replay at a time */
    LOG_SMALL_BYTES_MAX = 1 << 17,    /* a longer reservation needs a batch of its own: log_large_create */
    LOG_LARGE_WAITING_MAX = 16 << 20, /* of batches with one long record: no further one beyond this */
    LOG_SEGMENT_SHIFT = 36,
    LOG_FLUSHES_MAX = 4, /* writes in flight */
};

struct log;
struct log_batch;
struct segment_file;
struct segments;

struct log_config {
    struct disk *disk;
    const char *path;             /* folder, created if missing */
    struct segments *segments;    /* where all segment files are listed, with their descriptors; must outlive
                                     the log. NULL: the log has a table of its own */
    uint64_t segment_bytes_first; /* size of the first segment after a start; 0: 4 MiB. Doubles to
                                     segment_bytes_max */
    uint64_t segment_bytes_max;   /* 0: 64 MiB */
    bool background;              /* a thread prepares segments ahead; else the caller calls log_prepare */
    uint64_t flush_interval_us;   /* 0: flush as soon as there is something (group commit); else at most this
                                     often */
    uint64_t
        flush_delay_us;  /* for disks with very dear flushes: collect this long before a flush. Default 0 */
    size_t replay_bytes; /* read at a time by replay, a multiple of LOG_BLOCK_BYTES; 0: 4 MiB */
    /* Where replay starts. 0: at the log's beginning. Else a checkpoint's start: an LSN that log_tail_lsn
     * answered and the commit point has reached, such that something else restores all that was logged below
     * it. Records below are not replayed; segment files that lie below it as a whole are listed and otherwise
     * left alone, some may be missing. */
    uint64_t start_lsn;
    /* What a checkpoint knows of the log: it was durable up to here. A log that ends before is damaged. */
    uint64_t known_lsn;
    /* Called during log_open when the folder is locked, before anything in it is looked at: the place to read
     * a checkpoint. It may set start_lsn and known_lsn, and may list segments (log_list_segment). A failure
     * ends log_open with it. May be NULL. */
    status_t (*on_locked)(void *context, int folder, struct log_config *config);
    /* Called during log_open with all records (from start_lsn on) in log order, up to LOG_REPLAY_RECORDS_MAX
     * at a time, so that their look-ups can overlap; the slices are valid during the call. A transaction's
     * records come without the frame. A failure ends log_open with it. May be NULL. */
    status_t (*replay)(void *context, const struct record *records, unsigned n);
    /* Before replay takes so much memory for a long batch; nothing of another one is used then. May be NULL.
     */
    void (*replay_room)(void *context, size_t bytes);
    /* Progress of replay, for a log line: bytes done of total. May be NULL. */
    void (*replay_progress)(void *context, uint64_t done_bytes, uint64_t total_bytes);
    /* May the folder grow by a segment of so many bytes? No is answered as a full disk is; after yes the room
     * is the log's until it calls `allocated`. for_deletes: one that only LOG_HEADROOM reservations may use,
     * out of what is kept back for them; asked for when there is no room for others. Called in
     * log_open, then by the background thread with no lock held. May be NULL. */
    bool (*may_allocate)(void *context, uint64_t bytes, bool for_deletes);
    /* The same of a spare file of so many bytes, which is on the disk already. NULL when may_allocate is. */
    bool (*may_reuse)(void *context, uint64_t bytes);
    /* The segment is listed, or was not made. Called as may_allocate, and NULL when that is. */
    void (*allocated)(void *context, uint64_t bytes);
    /* There is no room for a segment of so many bytes: will there be soon, by itself? Then writes (or
     * deletes) wait (LOG_WAIT) instead of being refused, and it is asked again some times a second. Called as
     * may_allocate. May be NULL. */
    bool (*may_wait)(void *context, uint64_t bytes, bool for_deletes);
    /* The commit point moved, or space came free, or the log died: whoever holds replies or parked operations
     * should look again. Called by log_flush_done's thread or the background thread, with no lock held. May
     * be NULL. */
    void (*on_progress)(void *context);
    void *context;
};

/* Locks the folder (STATUS_BUSY if another process has it), replays what is there, cuts a torn tail durably,
 * and starts a new segment. Whatever it answers, files that are listed in config->segments stay so until the
 * caller destroys that table. Damage below a point known to be durable, or a newer format version, is an
 * error that names file and offset. */
STATUS_MUST_USE status_t log_open(const struct log_config *config, struct log **out);

/* Everything must have been flushed (or given up). Joins the background thread, removes an unused prepared
 * segment. */
void log_close(struct log *log);

enum log_reserve_result {
    LOG_RESERVED,
    LOG_WAIT,     /* no buffer free: flush, step aside, try again after on_progress */
    LOG_NO_SPACE, /* the disk is full, or no segment can be made: log_refused_errno */
    LOG_DEAD,     /* a flush has failed */
};

struct log_slot {
    char *dst;           /* where to copy the record(s) */
    uint64_t lsn;        /* of the first byte at dst; a record at dst + n has lsn + n */
    uint64_t generation; /* for record_seal */
    size_t bytes;
    uint32_t records;
    struct log_batch *batch;
};

enum log_reserve_kind {
    LOG_NORMAL,
    LOG_HEADROOM /* deletes: may use the space kept back when the disk is full */
};

/* What records of their own batch take now. Any thread. */
uint64_t log_large_bytes(const struct log *log);
/* What would log_reserve answer now for a long record of so many bytes? It reserves nothing and costs as
 * little, so ask before the record is put together, and when it had to wait, before that is tried again:
 * log_reserve looks once more. As after a refused log_reserve a segment is made for it, if there can be one.
 * Any thread. */
enum log_reserve_result log_large_ask(struct log *log, size_t bytes, enum log_reserve_kind kind);

/* Reserves bytes (a multiple of 8, > 0, <= LOG_SMALL_BYTES_MAX unless large is given). Call it under the key
 * locks; on anything but LOG_RESERVED nothing was reserved. After LOG_RESERVED only copy, seal and
 * log_publish, at once. large: NULL, or a buffer from log_large_create of at least that size whose content is
 * already there (slot->dst points to it); on LOG_RESERVED the log owns it. records: how many records the
 * bytes hold (statistics, batch header). */
enum log_reserve_result log_reserve(struct log *log, size_t bytes, uint32_t records,
                                    enum log_reserve_kind kind, struct log_batch *large,
                                    struct log_slot *slot);

/* The reserved bytes are complete (release). */
void log_publish(struct log *log, const struct log_slot *slot);

/* A batch for one long reservation, allocated and touched before any lock is taken. NULL when out of memory.
 * The caller owns it until a log_reserve with it answers LOG_RESERVED. */
struct log_batch *log_large_create(struct log *log, size_t bytes);
char *log_large_data(struct log_batch *large);
void log_large_destroy(struct log_batch *large);

/* One write to perform: exactly len bytes from buffer at offset of fd, durable. */
struct log_flush {
    int fd;
    const void *buffer;
    size_t len;
    uint64_t offset;
    struct log_batch *batch;
    uint64_t started_us;
};

/* If a flush is due: closes the open batch (when it is that one's turn) and gives out one write; false if
 * there is nothing to do, the batch still has unpublished reservations of other threads, or enough writes are
 * in flight. Call repeatedly until false. force: also when the interval or delay is not over (shutdown).
 * next_due_us (may be NULL): with an interval or delay, when to call again (monotonic clock), UINT64_MAX if
 * nothing is pending. now_us: monotonic. */
bool log_flush_take(struct log *log, uint64_t now_us, bool force, struct log_flush *flush,
                    uint64_t *next_due_us);

/* The write completed with result bytes (or -errno). Any other result than flush->len kills the log. */
void log_flush_done(struct log *log, const struct log_flush *flush, int64_t result, uint64_t now_us);

/* Everything below is on stable storage. Acquire. One load. */
uint64_t log_commit_lsn(const struct log *log);

/* Everything reserved so far is below. A reply that depends on "all that happened" is released at commit >=
 * this. */
uint64_t log_tail_lsn(const struct log *log);

/* True when something is reserved that no flush has been given out for. */
bool log_has_unflushed(const struct log *log);

/* NULL while the log is well, else the text of the failure; stays valid. */
const char *log_failed(const struct log *log);

/* True while the disk has no room for the next segment and normal writes are (about to be) refused. Cheap. */
bool log_disk_full(const struct log *log);
/* Why the next segment could not be made, where it was not for lack of room: an errno value; else 0. */
int log_refused_errno(const struct log *log);
/* True while the disk is full, or writes wait for room that is expected. */
bool log_lacks_room(const struct log *log);
/* True while a long record waits for a segment that there is no room for. Others may go on. */
bool log_lacks_large(const struct log *log);

/* One step of segment preparation for configurations without background thread (tests). True if it did
 * something. */
bool log_prepare(struct log *log);

/* Room has come free: a segment that was refused is tried again now, not at the next second. */
void log_room_freed(struct log *log);

/* Lists a segment file of a folder in a table, with the generation and size that it has; nothing but its
 * header is read. It must not be listed yet. A failure (STATUS_CORRUPT, STATUS_UNSUPPORTED, STATUS_IO;
 * ENOENT: there is none) names the file. *out may be NULL. */
STATUS_MUST_USE status_t log_list_segment(struct disk *disk, int folder, const char *path,
                                          struct segments *segments, uint64_t number,
                                          struct segment_file **out);

/* Removes the file of a finished segment, of the log or of data (sealed, nothing live in it), that no
 * checkpoint which may still be used needs: none names it, and no replay begins at or below it. That is for
 * the caller to know. The space is free once nobody reads it any more: see segments_reap. With keep it
 * becomes a spare file, if it can (spare.h). Blocks; any thread but one at a time. When it fails the file
 * stays listed. */
STATUS_MUST_USE status_t log_remove_segment(struct log *log, struct segment_file *file, bool keep);

struct log_stats {
    uint64_t flushes;
    uint64_t records;
    uint64_t bytes;         /* of records */
    uint64_t bytes_written; /* with headers and padding */
    uint64_t segments;
    uint64_t files_bytes;     /* on disk, all segments */
    uint64_t segments_reused; /* files that were used again, for the log or for data */
    uint64_t replayed_records;
    uint64_t replayed_bytes;   /* that these took in the log */
    uint64_t cut_bytes;        /* torn tail removed at start */
    struct histogram flush_us; /* latency of a flush */
};
void log_stats_get(struct log *log, struct log_stats *out);
/* replayed_bytes and bytes_written. Cheap. */
uint64_t log_bytes(struct log *log);

/* Reads the records of a folder without opening it for writing (a running server's too): calls each record
 * with lsn >= from in order, until each returns false or the end. *note says in words where the log
 * ends, or why it could not be read. A log whose oldest segments were removed is read from the first
 * that is there. STATUS_BUSY: the server has removed some meanwhile. */
STATUS_MUST_USE status_t log_read(struct disk *disk, const char *path, uint64_t from,
                                  bool (*each)(void *context, const struct record *record), void *context,
                                  char note[256]);

#endif
