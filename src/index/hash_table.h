/* hash_table: from a key's hash to its node: one cache line for nearly every look-up.
 *
 * A bucket is a cache line: ten 16-bit tags, ten 32-bit node references, and a reference to an overflow
 * bucket. The bucket number is the top bits of the hash, the tag its low 16 bits. The table doubles at three
 * quarters full; buckets move one by one, in order, one with every insert, while both tables serve: bucket
 * i of the old one has moved when i < moved. No operation pauses for a rehash.
 *
 * Thread safety: hash_table_find and _prefetch by anyone inside an epoch section, without locks. _insert,
 * _remove and _replace by the holder of the key's lock (keylock.h; a bucket belongs to one stripe). Nodes are
 * compared by the caller's key. */
#ifndef KVASIR_INDEX_HASH_TABLE_H
#define KVASIR_INDEX_HASH_TABLE_H

#include <stdatomic.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/status.h"
#include "index/arena.h"
#include "index/epoch.h"
#include "index/keylock.h"
#include "index/node.h"

enum { HASH_BUCKET_SLOTS = 10 };

struct hash_bucket {
    _Atomic uint64_t tags[2];                 /* slots 0-7, four to a word */
    _Atomic uint32_t tags_rest;               /* slots 8 and 9 */
    _Atomic uint32_t overflow;                /* 0: none */
    _Atomic uint32_t refs[HASH_BUCKET_SLOTS]; /* 0: free */
};

_Static_assert(sizeof(struct hash_bucket) == 64, "a bucket is a cache line");

/* A generation of the table: one mapping, header page first. */
struct hash_buckets {
    uint64_t mapping_bytes;   /* first word: epoch_retire_mapping */
    unsigned bits;            /* 2^bits buckets */
    struct hash_buckets *old; /* being moved from, or NULL; constant */
    _Atomic uint64_t moved;   /* buckets of old that have moved here; grows under move_lock */
    char padding[32];
    struct hash_bucket buckets[];
};

struct hash_table {
    struct arena *arena;
    struct keylock *locks;
    uint64_t seed;
    _Atomic(struct hash_buckets *) current;
    _Atomic uint64_t count;
    _Atomic uint64_t mapped_bytes;
    _Atomic uint64_t room_bytes; /* a wider table may take at most so many */
    _Atomic uint32_t move_lock;
};

STATUS_MUST_USE status_t hash_table_init(struct hash_table *table, struct arena *arena, struct keylock *locks,
                                         uint64_t seed);
void hash_table_deinit(struct hash_table *table);
/* What a table of the size that so many keys need takes. */
uint64_t hash_table_bytes_for(uint64_t keys);
/* Gives an empty table that nobody uses yet the size that so many keys need. */
STATUS_MUST_USE status_t hash_table_reserve(struct hash_table *table, uint64_t keys);

/* A table that would take more bytes is not made; the present one goes on with overflow buckets. Any thread.
 */
static inline void hash_table_set_room(struct hash_table *table, uint64_t bytes)
{
    atomic_store_explicit(&table->room_bytes, bytes, memory_order_relaxed); /* only a preference */
}

/* Of mapped_bytes, about: what a table that is being filled from its predecessor has not taken yet. Any
 * thread, inside an epoch. */
uint64_t hash_table_untouched_bytes(const struct hash_table *table);

uint64_t hash_table_hash(const struct hash_table *table, struct slice key);

/* Prefetches the bucket(s). */
void hash_table_prefetch(const struct hash_table *table, uint64_t hash);
/* The first node whose tag matches: to prefetch; not necessarily the key's. NULL if none. */
struct node *hash_table_candidate(const struct hash_table *table, uint64_t hash);
struct node *hash_table_find(const struct hash_table *table, uint64_t hash, struct slice key);

/* The key must not be there. cache and epoch: the calling worker's. May move some buckets of a growing table.
 */
void hash_table_insert(struct hash_table *table, struct arena_cache *cache, struct epoch_participant *epoch,
                       uint64_t hash, uint32_t ref);
/* The node must be there. */
void hash_table_remove(struct hash_table *table, uint64_t hash, uint32_t ref);

/* Puts another node with the same key in place of one that must be there: readers find one of the two. */
void hash_table_replace(struct hash_table *table, uint64_t hash, uint32_t old_ref, uint32_t new_ref);

/* The node, if the table holds this reference under this hash. The caller holds the key's lock. */
struct node *hash_table_holds(const struct hash_table *table, uint64_t hash, uint32_t ref);

/* The same, knowing only the top 32 bits of the hash: the node then is in the same bucket, perhaps another
 * key's that has got the block since. */
struct node *hash_table_holds_near(const struct hash_table *table, uint32_t hash_high, uint32_t ref);

/* The node in a random slot; often NULL. May be a tombstone. */
struct node *hash_table_random(const struct hash_table *table, uint64_t random);

#endif
