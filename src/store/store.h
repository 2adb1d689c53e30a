/* store: the engine: durable, linearizable operations on ordered keys, from index + log. One instance = one
 * folder.
 *
 * Threads. A store has a fixed number of workers; each worker thread uses its own struct store_worker and
 * nobody else's. Between store_turn_begin and store_turn_end (one turn of the worker's event loop) what was
 * found stays readable: views, cursors and old values point into the index and live until store_turn_end, not
 * longer.
 *
 * Nothing blocks. An operation that cannot go on now (a key's lock is held by another worker, the log's
 * buffers are full) answers STORE_BUSY, has changed nothing, and is tried again in a later turn.
 *
 * Durability. Writes are applied at once. Every call below raises store_worker.depends_lsn to the newest LSN
 * that its answer depends on, including answers of absence. The reply may leave the server only when
 * store_commit_lsn() > depends_lsn. The caller resets depends_lsn to 0 before a command. */
#ifndef KVASIR_STORE_STORE_H
#define KVASIR_STORE_STORE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/status.h"
#include "log/log.h"
#include "log/segments.h"
#include "sys/disk.h"

enum store_durability { STORE_FSYNC, STORE_INTERVAL, STORE_NONE };

struct store_config {
    struct disk *disk;
    const char *path;
    enum store_durability durability;
    uint64_t memory_bytes_max; /* 0: no cap */
    unsigned workers;
    uint64_t log_segment_bytes_first, log_segment_bytes_max; /* 0: the log's default */
    unsigned io_depth;         /* reads of one worker in flight at most; 0: STORE_IO_DEPTH_DEFAULT */
    uint64_t disk_limit_bytes; /* the folder's files take no more; 0: no limit but the disk's */
    /* Simulations: no thread prepares log segments or keeps the store: the caller calls log_prepare and
     * store_keep. */
    bool no_threads;
    uint64_t checkpoint_bytes; /* tests: of log between two checkpoints, which then don't wait long; 1: and
                                  are written in small steps; 0: as documented */
    /* As log_config.on_progress: any thread; wake the workers that hold replies or parked operations. */
    void (*on_progress)(void *context);
    /* During store_open: of the bytes of checkpoint and log together so many are read, and there are so many
     * keys. By one thread at a time. May be NULL. */
    void (*load_progress)(void *context, uint64_t done_bytes, uint64_t total_bytes, uint64_t keys);
    uint64_t epoch_hold_us; /* tests: see struct epoch */
    /* Tests: what is resident, in place of what the kernel says; or NULL. Any thread. */
    uint64_t (*resident_bytes)(void *context);
    void *context;
};

enum {
    STORE_KEY_BYTES_MAX = RECORD_KEY_BYTES_MAX,
    STORE_WORKERS_MAX = 64,
    STORE_PREFETCH_MAX = 64,
    STORE_IO_DEPTH_DEFAULT = 128,
    STORE_IO_DEPTH_MAX = 1024,
    /* What is kept back and the first segments take some 8 MiB: overwrites and deletes need some more. */
    STORE_DISK_LIMIT_LEAST = 16 << 20,
};

enum store_result {
    STORE_OK,
    STORE_ABSENT,
    STORE_BUSY,      /* nothing happened; try again next turn */
    STORE_NO_SPACE,  /* disk full, or no log segment can be made: refused before anything was changed */
    STORE_NO_MEMORY, /* memory cap reached: same */
    STORE_DEAD,      /* the log has failed; the process is about to end */
    STORE_COLD,      /* the key is there, its value only on disk: see "values on disk" */
    STORE_CORRUPT,   /* the key is there, its value was read from disk and does not check */
    STORE_IO,        /* the key is there, its value could not be read */
    /* STORE_NO_MEMORY of a look-up: the key is there, there was no room to read its value */
};

/* Results of looking for a key that mean that it exists. */
static inline bool store_result_exists(enum store_result r)
{
    return r == STORE_OK || r == STORE_COLD || r == STORE_CORRUPT || r == STORE_IO || r == STORE_NO_MEMORY;
}

struct store;
struct fetch; /* store/landings.h */
struct node;  /* index/node.h */

/* One worker's side of a store. Public fields first. */
struct store_worker {
    struct store *store;
    uint64_t depends_lsn; /* see above */
    uint64_t now_ms;      /* the store's clock (Unix ms, never goes back), taken at store_turn_begin */
    struct store_worker_private *private;
    struct fetch *fetch; /* values on their way from disk; NULL: nothing is ever cold */
};

/* Reads what is in the folder, which is made if there is none. The texts and the disk of the config belong to
 * the caller, until store_close. Errors: as log_open; STATUS_INVALID when the index alone is beyond the cap.
 * After an error there is nothing to close. */
STATUS_MUST_USE status_t store_open(const struct store_config *config, struct store **out);
/* No worker may be inside a turn. With durability fsync or interval everything must have been flushed before.
 */
void store_close(struct store *store);
struct store_worker *store_worker_get(struct store *store, unsigned index);

/* A turn is an epoch's read section. end: no view or cursor of the turn may be used any more; call it before
 * sleeping. */
void store_turn_begin(struct store_worker *sw);
void store_turn_end(struct store_worker *sw);

/* Does it wait for readers until it can free large values? Only its own turns free them: it must not sleep.
 */
bool store_unsettled(const struct store_worker *sw);

/* So many bytes the caller holds now for this worker's connections. They count against the memory cap: when
 * it is too much, values leave memory. Inside a turn; a few ns while nothing has changed. */
void store_buffers_set(struct store_worker *sw, uint64_t bytes);

/* Deferred work: unlinks durable tombstones, expires keys, frees what no reader can see. Inside a turn, with
 * a budget of about `steps` keys. True if more is waiting now. *due_ms (may be NULL): store clock time when
 * to call again at the latest (next expiry). */
bool store_background(struct store_worker *sw, unsigned steps, uint64_t *due_ms);

/* ---- room ----
 *
 * Under a cap memory is asked for before it is made; see store/room.h for what holds then. Inside a turn. */

/* So many bytes will be made in this turn, and written to before it ends. False: there is no room now; values
 * leave, try again in a later turn. */
bool store_room_take(struct store_worker *sw, uint64_t bytes);
/* They will not, after all. */
void store_room_return(struct store_worker *sw, uint64_t bytes);
/* Of all that this worker has taken, so many bytes have not been written to. Before the turn ends. */
void store_room_keep(struct store_worker *sw, uint64_t bytes);
/* Has anybody of this worker been refused room since the last call? */
bool store_room_refused(struct store_worker *sw);
/* Would there be room for who was refused last, if all values left and others gave back what they hold for a
 * while: promises, values from disk, long records of the log? */
bool store_room_may_come(const struct store_worker *sw);

/* ---- keys: hashing and prefetching in groups ---- */

struct store_key {
    struct slice name; /* caller's memory */
    uint64_t hash;
};

/* Hashes the name. */
void store_key_prepare(struct store_worker *sw, struct store_key *key, struct slice name);
/* Both optional, for up to STORE_PREFETCH_MAX keys: first ask for the hash buckets, later, when those have
 * come, for the nodes. In batches, because a prefetch does not retire before its address is translated:
 * between other work a core waits for one page walk after the other, side by side it overlaps them. */
void store_keys_prefetch_places(struct store_worker *sw, const struct store_key *const *keys, unsigned n);
void store_keys_prefetch_nodes(struct store_worker *sw, const struct store_key *const *keys, unsigned n);
/* For n keys about to be written that may be new: walks the ordered index for all of them in step, so that
 * the misses overlap. Optional. */
void store_keys_prefetch_order(struct store_worker *sw, const struct store_key *const *keys, unsigned n);

/* ---- reading one key ---- */

struct store_view {
    const char *data;   /* do not read directly: store_view_copy */
    uint32_t len;       /* bytes of the value */
    uint64_t expire_ms; /* 0: none */
    const struct node *node;
    uint64_t sequence; /* >> 1: the version */
    uint64_t address;  /* of the value's record; set with STORE_COLD, STORE_CORRUPT and STORE_IO */
};

/* STORE_OK with a view, STORE_ABSENT, or STORE_BUSY. STORE_COLD, STORE_CORRUPT, STORE_IO, STORE_NO_MEMORY:
 * the view has no data, but len, expire_ms, sequence and address are valid. */
enum store_result store_find(struct store_worker *sw, const struct store_key *key, struct store_view *view);

/* Copies bytes [offset, offset + len) of the value. False if the value was overwritten meanwhile by another
 * worker: start again with store_find (a few times, then answer busy). */
bool store_view_copy(const struct store_view *view, char *dst, uint32_t offset, uint32_t len);

/* ---- reading several keys, or all, at one instant ---- */

/* Brackets reads that must be atomic together:
 *     for (attempt = 0; ; attempt++) {
 *         if (store_snapshot_begin(sw, keys, n, attempt) == STORE_BUSY) -> park, try in a later turn
 *         ...store_find / cursors...
 *         if (store_snapshot_end(sw)) break;      // true: all reads happened at one instant
 *         ...undo the reply...
 *     }
 * n == 0 with keys NULL: everything (ranges, counts). Never loops long: from the fourth attempt on it locks.
 */
enum store_result store_snapshot_begin(struct store_worker *sw, const struct store_key *keys, unsigned n,
                                       unsigned attempt);
bool store_snapshot_end(struct store_worker *sw);

/* Number of live keys (expired ones that nobody noticed yet included). */
uint64_t store_count(struct store_worker *sw);

/* ---- ordered access ---- */

struct store_cursor {
    struct store_worker *sw;
    uint64_t internal[4];
};

/* Positions before the first live key >= from (forward), or before the last live key < from (reverse;
 * from.data == NULL: the very end). store_cursor_next then yields keys in order, one a call; NULL at the end.
 * Tombstones and expired keys are skipped; those that nobody has noticed are deleted (so nothing may be
 * between store_write_begin and its commit). Keys put or removed by others while the cursor walks may or may
 * not be seen, unless inside a snapshot. */
void store_cursor_seek(struct store_cursor *cursor, struct store_worker *sw, struct slice from, bool reverse);
const struct node *store_cursor_next(struct store_cursor *cursor);
/* Did a walk of this turn end early, because an expired key could not be deleted now? Whoever walked has seen
 * too little and tries again in a later turn. */
bool store_walk_stopped(const struct store_worker *sw);
/* Prefetches a node that was collected from a cursor. */
void store_node_prefetch(const struct node *node);
struct slice store_node_key(const struct node *node); /* valid until store_turn_end */
/* View of a node from a cursor. STORE_ABSENT if it was deleted meanwhile. */
enum store_result store_node_view(struct store_worker *sw, const struct node *node, struct store_view *view);
/* A live key at random; NULL when there is none. */
const struct node *store_random(struct store_worker *sw, uint64_t random);

/* ---- writing ---- */

/* A write locks its keys, looks at what is there, stages what shall be, and commits: one log record, one
 * instant, also in a crash. store_write_begin -> store_entry_live / value / expire_ms -> store_stage_* ->
 * store_write_commit (or _abort). Everything between begin and commit must be short: other workers may be
 * waiting for the locks. */
struct store_entry {
    struct store_key key; /* set by the caller (store_key_prepare) */
    /* The rest is the store's. */
    struct node *node;
    struct slice value; /* old value; valid until the commit */
    uint64_t expire_ms; /* old expiry */
    struct slice
        new_value; /* caller's memory until the commit; may not be the old value's (use store_stage_expire) */
    uint64_t new_expire_ms;
    uint64_t lsn;     /* of its record, at the commit */
    uint32_t primary; /* index of the first entry with the same key */
    uint32_t stripe;
    uint8_t live;    /* existed at begin */
    uint8_t expired; /* existed, but its time has come */
    uint8_t staged;  /* enum store_staged */
    uint8_t cold;    /* existed at begin, and its value is only on disk: value has a length and no data */
    uint64_t address, version; /* when cold: for store_fetch_want */
};

enum store_staged { STAGED_NOTHING, STAGED_SET, STAGED_DELETE, STAGED_EXPIRE };

/* Locks the n keys and fills entries. STORE_OK; or STORE_BUSY, or STORE_NO_MEMORY for a long write: nothing
 * is locked. The array is the caller's until commit or abort. bytes_hint: about how many value bytes will be
 * written (large values get their memory before the lock). Entries may repeat a key: what is staged for a
 * later one is seen through, and replaces, what was staged for the first. */
enum store_result store_write_begin(struct store_worker *sw, struct store_entry *entries, unsigned n,
                                    uint64_t bytes_hint);

/* State of entry i as staged so far: */
bool store_entry_live(const struct store_entry *entries, unsigned i);
struct slice store_entry_value(const struct store_entry *entries, unsigned i);
uint64_t store_entry_expire_ms(const struct store_entry *entries, unsigned i);
/* Is entry i's value wanted from disk? Then store_entry_value has its length but no data: who needs the data
 * aborts, asks for it (store_fetch_want) and begins again when it is there. */
bool store_entry_cold(const struct store_entry *entries, unsigned i);

/* expire_ms 0: none. A time at or before now makes it a delete. */
void store_stage_set(struct store_worker *sw, struct store_entry *entries, unsigned i, struct slice value,
                     uint64_t expire_ms);
void store_stage_delete(struct store_entry *entries, unsigned i);
/* Changes only the expiry (0: takes it away) of a live entry with nothing staged. */
void store_stage_expire(struct store_worker *sw, struct store_entry *entries, unsigned i, uint64_t expire_ms);

/* Logs and applies what was staged and unlocks. With nothing staged it only unlocks (and STORE_OK: what was
 * seen counts as read). On any other result nothing was changed; STORE_BUSY: begin again in a later turn (or
 * now, at most twice: a larger log buffer may have been made meanwhile). */
enum store_result store_write_commit(struct store_worker *sw);
void store_write_abort(struct store_worker *sw);

/* After a commit's STORE_BUSY: bytes of a long record that the log has no room for yet; 0: it waits for
 * something else. Answers once. */
uint64_t store_log_wait(struct store_worker *sw);
/* Is it worth beginning such a write again? Also when it would end with an error now. Much cheaper than
 * beginning it. */
bool store_log_may_go_on(struct store_worker *sw, uint64_t bytes);

/* Deletes the key `path` and all keys below `path/`; an empty path is everything. One log record, one
 * instant. *count: keys removed; NULL: not wanted. The tree is counted with all keys locked: some 20 ns a
 * key in which nobody else writes. STORE_BUSY: some trees must be cleared away first. */
enum store_result store_delete_tree(struct store_worker *sw, struct slice path, uint64_t *count);

/* ---- values on disk ----
 *
 * A command that meets STORE_COLD asks for the value with store_fetch_want, gives up for now, and is run
 * again when store_waiter_next names its waiter; then the same look-up finds the value. The caller performs
 * the reads: store_fetch_take, one read, store_fetch_done. A value that has landed stays until the end of the
 * turn in which it is looked up, with a claim (a waiter that asked for it) until store_waiter_release.
 * Everything here belongs to the worker and is called inside its turns. */

struct landing;
struct claim;

/* Who waits: one for each connection, zeroed at first. It must stay where it is until store_waiter_release.
 */
struct store_waiter {
    struct claim *claims;
    uint64_t bytes;        /* of memory that the claims hold */
    uint64_t hungry_bytes; /* that it could not get, or has let go */
    uint32_t pending;      /* claims whose value has not landed */
    uint32_t lost;         /* times that a value's file was gone */
    bool hungry, queued;   /* waits for room; is in one of the two queues */
    struct store_waiter *next, *previous;
};

/* True while store_waiter_next has yet to name it: running its command again is of no use before. */
static inline bool store_waiter_waits(const struct store_waiter *waiter)
{
    return waiter->pending || waiter->hungry || waiter->queued;
}

/* Does it keep more than one value that it has asked for in memory? */
bool store_waiter_holds_several(const struct store_waiter *waiter);

/* Asks for the value of `key` in the given version (view->sequence >> 1) and length, whose record lies at
 * address; joins a read that is under way. scan: a walk over many keys, which says nothing about this one's
 * future. STORE_COLD: it will come, store_waiter_next tells. STORE_OK: look again, it is there or has moved.
 * STORE_CORRUPT, STORE_IO: it came, and is no good; asked again after the release it is read again.
 * STORE_NO_MEMORY: the waiter holds all that one command may. Without a waiter it is only read ahead, and
 * kept for a second or so: STORE_BUSY when there is no room for that. */
enum store_result store_fetch_want(struct store_worker *sw, const struct store_key *key, uint64_t address,
                                   uint64_t version, uint32_t value_len, struct store_waiter *waiter,
                                   bool scan);
/* Reads the key's value ahead of need if it is cold. False if there was no room for it. */
bool store_key_ahead(struct store_worker *sw, const struct store_key *key);

/* One read to perform: up to len bytes at offset of fd into buffer. */
struct store_fetch {
    int fd;
    void *buffer;
    size_t len;
    uint64_t offset;
    struct landing *landing;
};

/* How many reads are wanted that store_fetch_take has not given out; counted up to `most`. */
unsigned store_fetch_wanted(const struct store_worker *sw, unsigned most);
/* The next read to perform; false: nothing is wanted, or io_depth reads are under way. */
bool store_fetch_take(struct store_worker *sw, struct store_fetch *fetch);
/* It ended with result bytes, or -errno. */
void store_fetch_done(struct store_worker *sw, const struct store_fetch *fetch, int64_t result);

/* A waiter whose values have all landed (or that got room), each once; NULL: none now. */
struct store_waiter *store_waiter_next(struct store_worker *sw);
/* Would store_waiter_next name one? */
bool store_waiter_due(const struct store_worker *sw);
/* The command has asked for all that it needs, and waits. If there was no room for some of that, it holds
 * nothing while it waits for room: many that each hold a part would leave none for anybody. */
void store_waiter_let_go(struct store_worker *sw, struct store_waiter *waiter);
/* The command is done, or its connection gone: what was claimed may go. */
void store_waiter_release(struct store_worker *sw, struct store_waiter *waiter);

/* Where a record lies, in words: "log-0000000001.kv at offset 4096". */
enum { STORE_ADDRESS_TEXT_BYTES = 64 };
void store_address_text(uint64_t address, char text[STORE_ADDRESS_TEXT_BYTES]);

struct store_fetch_stats {
    uint64_t hits;   /* look-ups of cold keys that found the value landed */
    uint64_t preads; /* reads begun */
    uint64_t bytes;  /* read */
    uint64_t joined; /* asked for what was already on its way */
    uint64_t unused; /* read ahead and dropped without being looked at */
    uint64_t errors, corrupt;
    uint64_t depth, depth_max; /* reads under way now, and at most so far (of one worker) */
    uint64_t memory_bytes;     /* of values under way and landed */
};
/* Sums over the workers. Any thread. */
void store_fetch_stats_get(struct store *store, struct store_fetch_stats *out);

/* ---- checkpoints ----
 *
 * A checkpoint is the index written to a file, so that a start need not read the whole log. It is made beside
 * the traffic, by itself when the log has grown enough, or when asked. Any thread may call these. */

/* Asks for a checkpoint of (at least) everything that is there now. The answer names it below. */
uint64_t store_checkpoint_request(struct store *store);

enum store_checkpoint_state { STORE_CHECKPOINT_RUNNING, STORE_CHECKPOINT_DONE, STORE_CHECKPOINT_FAILED };
/* When one ends, config.on_progress is called. */
enum store_checkpoint_state store_checkpoint_state(struct store *store, uint64_t ticket);

struct store_checkpoint_stats {
    bool running, last_failed;
    uint64_t number, keys, bytes;    /* of the newest; number 0: there is none */
    uint64_t start_ms, published_ms; /* Unix time; of the one under way or the last one; of the newest */
    uint64_t duration_us;            /* of the newest */
    uint64_t bytes_written;          /* of all that this process has completed */
    uint64_t keys_done, keys_total, failures; /* of the one under way; ever */
    char error[256];                          /* of the last failure */
};
void store_checkpoint_stats_get(struct store *store, struct store_checkpoint_stats *out);

/* Asks for a backup: a consistent copy in a new folder `path` (absolute), by hard links where possible, of
 * all that is there now. One at a time: 0 while another is under way. The answer names it below. */
enum { STORE_BACKUP_TEXT_BYTES = 512 };
uint64_t store_backup_request(struct store *store, const char *path);
/* text: how it went, in words, when it is done or has failed. on_progress is called when it ends. Of an older
 * ticket than the newest nothing is known any more: FAILED. */
enum store_checkpoint_state store_backup_state(struct store *store, uint64_t ticket,
                                               char text[STORE_BACKUP_TEXT_BYTES]);

/* ---- disk space ---- */

struct store_cleaner_stats {
    bool running;                             /* a round is under way */
    uint64_t rounds, segments, moved;         /* finished; cleaned; values moved */
    uint64_t copied_bytes;                    /* written to data segments */
    uint64_t failures, damaged;               /* rounds given up; segments that cannot be cleaned */
    uint64_t removed_segments, removed_bytes; /* ever */
    uint64_t pending_segments, pending_bytes; /* nothing live in them: go when no checkpoint needs them */
    uint64_t tocs_bytes;
};
void store_cleaner_stats_get(struct store *store, struct store_cleaner_stats *out);

/* Simulations (config.no_threads): one step of what the store's own thread would do. True if there was
 * something to do. */
bool store_keep(struct store *store);

/* ---- durability ---- */

/* Replies with depends_lsn below this may go. UINT64_MAX when the durability mode doesn't hold replies. Any
 * thread. */
uint64_t store_commit_lsn(const struct store *store);
/* The log, for flushing by the workers; NULL with STORE_NONE. */
struct log *store_log(struct store *store);

/* ---- numbers ---- */

struct store_stats {
    uint64_t keys;
    uint64_t keys_expiring;
    uint64_t keys_expired;       /* removed because their time had come, ever */
    uint64_t tombstones;         /* waiting for their delete to be durable */
    uint64_t memory_index_bytes; /* nodes with small values, hash table, ordered index, all with slack */
    uint64_t memory_value_bytes; /* large values */
    uint64_t memory_max_bytes;   /* the cap */
    uint64_t memory_slack_bytes; /* what else is resident; 0 without a cap */
    uint64_t values_evicted, values_promoted; /* left memory, came back; ever */
    uint64_t load_us;                         /* duration of recovery */
    struct segments_totals disk;              /* of the files that values lie in; all 0 with STORE_NONE */
};
void store_stats_get(struct store *store, struct store_stats *out);
/* For CONFIG SET maxmemory. */
void store_memory_max_set(struct store *store, uint64_t bytes);

#endif
