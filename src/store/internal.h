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
#include "store/store.h"

enum {
    STORE_RANGES_MAX = 16,       /* deleted trees whose keys are still being unlinked */
    STORE_HINTS = 256,           /* remembered places in the ordered index, by hash */
    STORE_SWEEP_PERIOD_MS = 100, /* how often the sweeper for expired keys gets a budget */
    STORE_SWEEP_SLICE = 2048,    /* keys it looks at without a break */
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
    uint64_t turn;
    struct arena_cache arena;
    struct epoch_participant epoch;
    struct hint hints[STORE_HINTS];
    /* The write under way. */
    struct store_entry *entries;
    unsigned entry_count;
    uint32_t *stripes; /* locked, ascending, when entry_count > 1 */
    unsigned stripe_count;
    size_t stripes_capacity;
    struct log_batch *large; /* made ahead for a long record */
    size_t large_bytes;
    uint64_t *hashes; /* contents of a long record's parts */
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
    char *scratch; /* of old values while an expiry is changed */
    size_t scratch_capacity;
};

/* What the log's callbacks get. */
struct replay {
    struct store *store;
    uint64_t records;
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
    struct store_worker *workers;
    bool alone; /* one worker: nobody else can change what is being read */
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
};

/* ---- replay.c: log_config.replay; context: struct replay ---- */
status_t store_replay(void *context, const struct record *records, unsigned n);

/* ---- payload.c: values in nodes. Callers hold the key's lock; multi-word changes happen between node_begin
 * and node_publish ---- */

struct payload {
    const char *value;
    uint32_t len;
    uint64_t expire_ms;
};

/* Plain read by the holder of the key's lock. */
struct payload payload_get(const struct node *node);
/* A new node with key and payload, not yet in the index, busy (odd sequence). */
struct node *payload_node_create(struct store *store, struct store_worker_private *p, struct slice key,
                                 struct slice value, uint64_t expire_ms, uint64_t lsn);
/* Replaces value and expiry of a busy node. */
void payload_set(struct store *store, struct store_worker_private *p, struct node *node, struct slice value,
                 uint64_t expire_ms);
/* Makes a busy node a tombstone. */
void payload_clear(struct store *store, struct store_worker_private *p, struct node *node);
void node_begin(struct node *node);
void node_publish(struct node *node, uint64_t lsn);

/* ---- read.c ---- */

/* The newest deleted tree that covers a node of that version, or NULL. */
const struct store_range *store_covering_range(const struct store *store, struct slice key, uint64_t lsn);
/* Is the node in the number of keys? Also when its time has come and nobody has noticed. */
bool store_node_counts(struct store_worker *sw, const struct node *node);
bool range_covers(const struct store_range *range, struct slice key);

/* ---- write.c ---- */

static inline void store_depends(struct store_worker *sw, uint64_t lsn)
{
    if (lsn > sw->depends_lsn)
        sw->depends_lsn = lsn;
}

/* Deletes a key because its time has come. STORE_OK also when somebody else was quicker. */
enum store_result store_expire_key(struct store_worker *sw, const struct store_key *key);
uint64_t store_memory_bytes(const struct store *store);
bool store_lock_all(struct store *store);
void store_unlock_all(struct store *store);

/* Everything below is on stable storage, in every durability mode; STORE_NONE: everything. */
uint64_t store_durable_lsn(const struct store *store);

/* ---- background.c ---- */

void store_tombstone_add(struct store_worker *sw, uint64_t lsn, uint64_t hash, uint32_t ref);
/* Takes a node out of hash table and ordered index and retires it. The caller holds its key's lock. */
void store_unlink(struct store *store, struct store_worker_private *p, struct node *node, uint64_t hash);

/* Grows an array to at least n elements of the given size; content is kept. */
void *store_grow(void *array, size_t *capacity, size_t n, size_t element_bytes);

#endif
