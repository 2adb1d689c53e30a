/* internal: what the parts of the store share. Nobody outside src/store includes it. */
#ifndef KVASIR_STORE_INTERNAL_H
#define KVASIR_STORE_INTERNAL_H

#include <stdatomic.h>

#include "index/arena.h"
#include "index/epoch.h"
#include "index/hash_table.h"
#include "index/keylock.h"
#include "index/node.h"
#include "index/ordered.h"
#include "log/segments.h"
#include "store/keeper.h"
#include "store/residents.h"
#include "store/room.h"
#include "store/store.h"

enum {
    STORE_LOG_SEGMENTS =
        64, /* a small disk, or disk limit, has so many or more: room comes free by whole files */
    STORE_RANGES_MAX = 16,       /* deleted trees whose keys are still being unlinked */
    STORE_HINTS = 256,           /* remembered places in the ordered index, by hash */
    STORE_SWEEP_PERIOD_MS = 100, /* how often the sweeper for expired keys gets a budget */
    STORE_SWEEP_SLICE = 256,     /* keys it looks at without a break: some 30 us */
    STORE_ARENA_KEPT_BYTES =
        256 << 20, /* of the index's address space: for what a refused write does not stop */
};

/* A deleted tree. Readers honour it from lsn on; its maker's worker unlinks the keys. Freed by epoch. */
struct store_range {
    uint64_t lsn;
    size_t path_len;
    char path[];
};

struct tombstone {
    uint64_t lsn;
    uint64_t hash;
    uint32_t ref;
};

/* Unlinking of one deleted tree, step by step. */
struct range_job {
    struct store_range *range;
    unsigned slot;
    bool subtree;   /* the node itself is done; the keys below are under way */
    char *position; /* key to go on at; malloc */
    size_t position_len;
};

struct hint {
    uint64_t hash;
    uint64_t turn; /* hints are good within a turn */
    uint32_t leaf;
};

struct store_worker_private {
    unsigned index;
    bool alone;        /* nobody else changes nodes in place, but for addresses: payload_moves_in_place */
    bool walks;        /* what it reads is no sign that anybody wants it */
    bool walk_stopped; /* in this turn: see store_walk_stopped */
    uint64_t turn;
    struct arena_cache arena;
    struct epoch_participant epoch;
    struct segments_lane live; /* its counts of live bytes */
    struct hint hints[STORE_HINTS];
    /* The write under way. */
    struct store_entry *entries;
    unsigned entry_count;
    uint32_t *stripes; /* locked, ascending, when entry_count > 1 */
    unsigned stripe_count;
    size_t stripes_capacity;
    struct log_batch *large; /* made ahead for a long record */
    size_t large_bytes;
    uint64_t log_wait_bytes; /* for a long record of so many the log had no room; see store_log_wait */
    uint64_t *hashes;        /* contents of a long record's parts */
    size_t hashes_capacity;
    /* The snapshot under way. */
    uint32_t *sequences;
    size_t sequences_capacity;
    const struct store_key *snapshot_keys;
    unsigned snapshot_count;
    bool snapshot_locked;
    /* Deferred work. */
    struct tombstone *tombstones;                               /* ring, ascending LSN */
    size_t tombstone_head, tombstone_count, tombstone_capacity; /* capacity: a power of two */
    struct range_job jobs[STORE_RANGES_MAX];
    unsigned job_count;
    char *scratch; /* of old values in nodes while an expiry is changed */
    size_t scratch_capacity;
    /* Memory. */
    struct room_state room;
    uint64_t write_room;          /* taken for the values of the write under way */
    _Atomic int64_t share_bytes;  /* of values in the arena: made here less freed here; the owner writes */
    _Atomic int64_t growth_bytes; /* that nodes may come to grow by, counted so */
    struct resident_queue residents[RESIDENT_KINDS];
    uint64_t region_turn;               /* in which there was room for another region of the arena */
    uint64_t fruitless;                 /* looked at since the last eviction here */
    _Atomic uint64_t buffer_bytes;      /* store_buffers_set; the owner writes, relaxed */
    unsigned give_back_turns;           /* in so many turns memory is given back to the kernel */
    uint64_t buffers_level;             /* buffer_bytes when that was decided the last time */
    uint64_t unlooked_bytes;            /* written since the last look at how much is used */
    uint64_t returns_ms;                /* when returns_credit was reckoned; the owner's */
    uint32_t returns_credit;            /* values that may come back into a full memory now; the owner's */
    _Atomic uint64_t evicted, promoted; /* ever; the owner writes, relaxed; read by any */
};

/* What the log's callbacks get. */
struct replay {
    struct store *store;
    uint64_t records;
    uint64_t turn_bytes;
    uint64_t turns;
    bool full; /* further values stay on disk */
    /* Of the log's files so many bytes are read, of so many in all. */
    uint64_t done_bytes, total_bytes;
    /* The index before the first record: what the checkpoint had. */
    bool begun;
    uint64_t first_keys, first_node_bytes;
    /* Progress: a start reads a checkpoint's bytes, then the log's. */
    uint64_t toc_bytes;  /* of the checkpoint that was read; 0: none */
    uint64_t tail_bytes; /* of the log's files from its start on, as far as known */
};

struct store {
    struct store_config config;
    struct log *log;
    struct segments *segments; /* all files that values lie in; NULL with STORE_NONE */
    struct arena arena;
    struct epoch epoch;
    struct keylock locks;
    struct hash_table hash;
    struct ordered ordered;
    struct store_worker *workers; /* and, behind them, the keeper's */
    struct keeper keeper;
    _Atomic bool evicts; /* there are a cap and a log: values may leave memory */
    struct replay *replay;
    uint64_t load_us;
    _Atomic uint64_t memory_bytes_max;
    _Atomic uint64_t clock_ms; /* newest time any worker has seen */
    _Atomic uint64_t next_lsn; /* STORE_NONE: versions without a log */
    _Atomic uint64_t keys;
    _Atomic uint64_t expiring;
    _Atomic uint64_t expired;
    _Atomic int64_t value_bytes;
    _Atomic uint64_t tombstones;
    _Atomic uint32_t range_count;
    _Atomic(struct store_range *) ranges[STORE_RANGES_MAX];
    /* The sweeper: worker 0's. */
    uint64_t sweep_next_ms;
    uint64_t sweep_budget;
    char *sweep_position;
    size_t sweep_position_len;
    /* Memory: worker 0 measures. */
    _Atomic uint64_t slack_bytes;  /* resident beyond what is counted */
    _Atomic uint64_t urgent_bytes; /* resident too near to the cap: values must leave for it */
    _Atomic bool pressed;          /* nearly all of the budget is used */
    _Atomic uint64_t full_ms;      /* when somebody last found no room in the arena */
    /* New keys found no room the last time, and since when, with an arena of so many bytes: see memory_room.
     */
    _Atomic uint64_t full_last_ms, full_since_ms, full_used_bytes;
    _Atomic unsigned merging;      /* 1 + the worker that merges what is free in it; 0: none */
    struct arena_merge merge;      /* that worker's */
    _Atomic uint64_t merged_freed; /* blocks freed until the last merge began */
    _Atomic uint64_t merge_began_ms, merge_next_ms;
    _Atomic uint64_t promised_bytes;              /* room.h; seq_cst */
    _Atomic uint64_t landing_bytes;               /* fetch.c, landings.c: of all workers; seq_cst */
    _Atomic(struct store_waiter *) landing_owner; /* fetch.c, waiters.c: may have more than their share */
    bool measured;
    uint64_t measure_next_ms, watch_next_ms;
    _Atomic bool fill_wanted;
    char *fill_position;
    size_t fill_position_len;
};

static inline bool store_evicts(const struct store *store)
{
    /* Relaxed: whoever does not see it yet just leaves a value in memory. */
    return atomic_load_explicit(&((struct store *)(uintptr_t)store)->evicts, memory_order_relaxed);
}

/* Writes wait for room on the disk, or are refused. */
static inline bool store_lacks_room(const struct store *store)
{
    return log_lacks_room(store->log) || log_lacks_large(store->log);
}

/* Who takes part in the index: the workers and the keeper. */
static inline unsigned store_participants(const struct store *store)
{
    return store->config.workers + 1;
}

/* ---- store.c ---- */

/* Everything below is on stable storage, in every durability mode; STORE_NONE: everything. */
uint64_t store_durable_lsn(const struct store *store);
/* Empties the index of a store that is being opened. */
status_t store_index_reset(struct store *store);

/* ---- replay.c: log_config.replay; context: struct replay ---- */
status_t store_replay(void *context, const struct record *records, unsigned n);
/* log_config.replay_room */
void store_replay_room(void *context, size_t bytes);

/* ---- payload.c: values in nodes. Callers hold the key's lock; multi-word changes happen between node_begin
 * and node_publish ---- */

enum {
    /* Where values are evicted a larger node's value lies in a block of its own, whose memory the allocator
     * can use for others of any size. */
    PAYLOAD_NODE_BYTES_EVICTED = 192,
};

struct payload {
    const char *value; /* NULL: cold */
    uint32_t len;
    bool cold;
    uint64_t expire_ms;
    uint64_t address; /* of the record with the value */
};

/* Plain read by the holder of the key's lock. */
struct payload payload_get(const struct node *node);
/* A new node with key and payload, not yet in the index, busy (odd sequence). Cold: the value is only on
 * disk, in the record at address. */
struct node *payload_node_create(struct store *store, struct store_worker_private *p, struct slice key,
                                 uint64_t hash, struct slice value, uint64_t expire_ms, uint64_t lsn);
struct node *payload_node_create_cold(struct store *store, struct store_worker_private *p, struct slice key,
                                      uint32_t value_len, uint64_t expire_ms, uint64_t address, uint64_t lsn);
/* The write `lsn` replaces value and expiry of a busy node, or only the expiry. Each returns the key's node
 * from now on: this one, or another that has taken its place in the index; busy, to be published. */
struct node *payload_set(struct store *store, struct store_worker_private *p, struct node *node,
                         uint64_t hash, struct slice value, uint64_t expire_ms, uint64_t lsn);
struct node *payload_set_cold(struct store *store, struct store_worker_private *p, struct node *node,
                              uint64_t hash, uint32_t value_len, uint64_t expire_ms, uint64_t lsn);
struct node *payload_expire(struct store *store, struct store_worker_private *p, struct node *node,
                            uint64_t hash, uint64_t expire_ms, uint64_t lsn);
/* Makes a busy node a tombstone. */
void payload_clear(struct store *store, struct store_worker_private *p, struct node *node);
/* Retires the block of a node that is no longer in the index. */
void payload_retire(struct store_worker_private *p, const struct node *node, uint32_t ref);
/* Would the node be smaller without its value? */
/* Bytes that the node of such a key needs. cold: its value is on disk, and it says where. */
size_t payload_node_bytes(const struct store *store, size_t key_len, size_t value_len, bool expires,
                          bool cold);
bool payload_is_evictable(uint32_t meta);
/* The value leaves memory, or comes back to it: another node takes the place of this one (not busy). False:
 * not now. hint: the key's leaf, from ordered_prefetch, or 0. */
bool payload_evict(struct store *store, struct store_worker_private *p, struct node *node, uint64_t hash,
                   uint32_t hint);
bool payload_promote(struct store *store, struct store_worker_private *p, struct node *node, uint64_t hash,
                     struct slice value);
/* The value lies at `to` from now on, if it was at `from`: the node says so where it has said before that the
 * value has moved, else another one takes its place, with the same version. hint: as above. Elsewhere: also
 * what a deleted tree covers, it only has to be cleared away. */
enum payload_moved { PAYLOAD_MOVED, PAYLOAD_ELSEWHERE, PAYLOAD_NOT_NOW };
enum payload_moved payload_relocate(struct store *store, struct store_worker_private *p, struct node *node,
                                    uint64_t hash, uint64_t from, uint64_t to, uint32_t hint);
/* Of a node with these flags payload_relocate changes the address, and nothing else. */
static inline bool payload_moves_in_place(uint32_t meta)
{
    return (meta & (NODE_COLD | NODE_MOVED)) == (NODE_COLD | NODE_MOVED);
}
void node_begin(struct node *node);
void node_publish(struct node *node, uint64_t lsn);

/* ---- memory.c ---- */

struct memory_use {
    uint64_t arena_bytes, arena_live_bytes; /* taken from the system; in use */
    uint64_t share_bytes;                   /* of live ones, what values take */
    uint64_t growth_bytes; /* that nodes would take if all had got an address and an expiry */
    uint64_t value_bytes;  /* large values */
    uint64_t hash_bytes;
    uint64_t buffer_bytes; /* store_buffers_set, and the log's of large records */
    uint64_t slack_bytes;  /* everything else that is resident */
    uint64_t cap_bytes;    /* 0: none */
    uint64_t budget_bytes;
};

struct memory_use memory_use(const struct store *store);
/* Kept free of a cap. */
uint64_t memory_margin_bytes(uint64_t cap);
/* The least cap below which a start with such an index is tried (its budget has room for that) and goes on
 * (what cannot leave is within room_limit). A whole number of MiB. */
uint64_t memory_cap_for(uint64_t index_bytes, uint64_t bare_bytes);
/* What would be left if all values had left memory. */
uint64_t memory_bare_bytes(const struct memory_use *use);
/* Asks the kernel what is resident. Worker 0's. */
void memory_measure(struct store *store);
/* At the start: the participants' first regions of the arena, where there is room for them. */
void memory_prepare(struct store *store);
/* A value that could leave memory has come. */
void memory_resident(struct store *store, struct store_worker_private *p, uint64_t hash, uint32_t ref,
                     uint32_t meta);
/* At the start, in worker 0's section: is there room for so many bytes more, as measured? make: large values
 * leave for it, and what was replaced is freed. */
bool memory_start_room(struct store_worker *sw, uint64_t bytes, bool make);
/* The same: between some hundred records. False: the cap is near, values should stay on disk. */
bool memory_start_turn(struct store_worker *sw);
/* Looks at up to so many values, while there is too much in memory. True: there still is. */
bool memory_relieve(struct store_worker *sw, unsigned steps);
/* Of so many nodes that are to be unlinked, how many may be in this turn? Each takes a copy of a page, and
 * memory comes back when the epochs move on: where it is short that is waited for, instead of taking more. */
unsigned memory_unlinks(const struct store *store, const struct store_worker_private *p, unsigned most);
/* Are so many old values' blocks not free yet that no more may be replaced in this turn? */
bool memory_must_settle(const struct store *store, const struct store_worker_private *p);
void memory_after_write(struct store_worker *sw, uint64_t bytes);
/* Is there no room for a write of so many bytes? creates: it adds keys. */
bool memory_refuses(const struct store *store, uint64_t bytes, bool creates);
/* Is there room for so many nodes that take so many bytes in all? LATER: some values can still leave. */
enum memory_room { MEMORY_ROOM, MEMORY_ROOM_LATER, MEMORY_FULL };
enum memory_room memory_room(struct store *store, struct store_worker_private *p, uint64_t nodes,
                             uint64_t bytes, bool creates);
/* Is there a block of so many bytes for a node that takes another one's place, or room for another region? */
bool memory_has_node(struct store *store, struct store_worker_private *p, size_t bytes);
/* If not: will there be, by what the caller has replaced? */
bool memory_gets_nodes(const struct store_worker_private *p);
/* As store_background. */
bool memory_background(struct store_worker *sw, unsigned steps, uint64_t *due_ms);
/* Is so much used that each write must look whether it is too much? Relaxed: it was so a moment ago. */
static inline bool memory_is_pressed(const struct store *store)
{
    return atomic_load_explicit(&((struct store *)(uintptr_t)store)->pressed, memory_order_relaxed);
}

/* ---- memory_merge.c ---- */

/* When enough has been freed, all that is free in the arena is merged, in the worker's background. True: that
 * is under way, perhaps in another worker, or will be soon. */
bool memory_merges(struct store *store, struct store_worker_private *p);
/* True: there is more to do. */
bool memory_merge_some(struct store *store, struct store_worker_private *p, unsigned steps);
/* In a start nobody waits for what is being merged: all at once, when so much is free that it is worth it. */
void memory_merge_all(struct store *store, struct store_worker_private *p);

/* ---- read.c ---- */

/* The newest deleted tree that covers a node of that version, or NULL. */
const struct store_range *store_covering_range(const struct store *store, struct slice key, uint64_t lsn);
/* Is the node in the number of keys? Also when its time has come and nobody has noticed: then it is not live.
 */
bool store_node_counts(struct store_worker *sw, const struct node *node, bool *live);
/* As a cursor's node is seen by a walk over everything: STORE_OK or STORE_COLD with len, expiry, version and
 * address (expired or not), STORE_ABSENT, STORE_BUSY. Takes no locks, touches nothing. */
enum store_result store_node_entry(struct store_worker *sw, const struct node *node, struct store_view *view);
bool range_covers(const struct store_range *range, struct slice key);

/* ---- write.c ---- */

static inline void store_depends(struct store_worker *sw, uint64_t lsn)
{
    if (lsn > sw->depends_lsn)
        sw->depends_lsn = lsn;
}

/* Deletes a key because its time has come. STORE_OK also when somebody else was quicker. */
enum store_result store_expire_key(struct store_worker *sw, const struct store_key *key);
/* All keys. False: somebody holds one too long, and none is locked. */
bool store_lock_all(struct store *store);
void store_unlock_all(struct store *store);

/* ---- background.c ---- */

void store_tombstone_add(struct store_worker *sw, uint64_t lsn, uint64_t hash, uint32_t ref);
/* Takes a node out of hash table and ordered index and retires it. The caller holds its key's lock. */
void store_unlink(struct store *store, struct store_worker_private *p, struct node *node, uint64_t hash);

/* Keeps a copy of the key as a position. */
void store_remember(char **position, size_t *position_len, struct slice key);

/* Grows an array to at least n elements of the given size; content is kept. */
void *store_grow(void *array, size_t *capacity, size_t n, size_t element_bytes);

#endif
