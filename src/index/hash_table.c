#include "index/hash_table.h"

#include <errno.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif
#include <sys/mman.h>
#include <xxhash.h>

#include "base/check.h"

enum {
    BITS_FIRST = KEYLOCK_STRIPE_BITS, /* fewer would let a bucket span several stripes */
    LOAD_NUMERATOR = 15,              /* grow at 7.5 keys a bucket of 10 */
    LOAD_DENOMINATOR = 2,
    MOVES_PER_INSERT = 1,
};

/* ---- one bucket ---- */

static inline uint16_t tag_of(uint64_t hash)
{
    return (uint16_t)hash;
}

static inline uint64_t bucket_number(const struct hash_buckets *t, uint64_t hash)
{
    return hash >> (64 - t->bits);
}

static inline struct hash_bucket *overflow_of(const struct hash_table *table, const struct hash_bucket *b)
{
    /* Acquire: pairs with the release in bucket_insert; the new bucket's content is there. */
    uint32_t ref =
        atomic_load_explicit(&((struct hash_bucket *)(uintptr_t)b)->overflow, memory_order_acquire);
    return ref ? arena_at(table->arena, ref) : NULL;
}

#ifdef __SSE2__

/* Bits 0-9: slots whose tag matches. */
static inline unsigned match_words(uint64_t word0, uint64_t word1, uint32_t rest, uint16_t tag)
{
    __m128i wanted = _mm_set1_epi16((short)tag);
    __m128i first = _mm_cmpeq_epi16(_mm_set_epi64x((long long)word1, (long long)word0), wanted);
    __m128i last = _mm_cmpeq_epi16(_mm_cvtsi32_si128((int)rest), wanted);
    return (unsigned)_mm_movemask_epi8(_mm_packs_epi16(first, last)) & ((1u << HASH_BUCKET_SLOTS) - 1);
}

#else

/* Bit 16*i+15 of the result is set where the 16-bit lane i of word may equal tag (exact up to a borrow, which
 * only gives false positives above a true match; references are checked by key anyway). */
static inline uint64_t lanes_equal(uint64_t word, uint16_t tag)
{
    uint64_t x = word ^ (0x0001000100010001ull * tag);
    return (x - 0x0001000100010001ull) & ~x & 0x8000800080008000ull;
}

/* Bits 0-9: slots whose tag matches. */
static inline unsigned match_words(uint64_t word0, uint64_t word1, uint32_t rest, uint16_t tag)
{
    uint64_t m0 = lanes_equal(word0, tag), m1 = lanes_equal(word1, tag);
    uint64_t m2 = lanes_equal(rest, tag) & 0x80008000ull;
    /* Gathers bits 0, 16, 32, 48 into bits 48..51. */
    const uint64_t gather = 0x0001000200040008ull;
    unsigned g0 = (unsigned)(((m0 >> 15) * gather) >> 48) & 15;
    unsigned g1 = (unsigned)(((m1 >> 15) * gather) >> 48) & 15;
    unsigned g2 = (unsigned)((m2 >> 15 & 1) | (m2 >> 30 & 2));
    return g0 | g1 << 4 | g2 << 8;
}

#endif

static inline unsigned bucket_match(const struct hash_bucket *bucket, uint16_t tag)
{
    struct hash_bucket *b = (struct hash_bucket *)(uintptr_t)bucket;
    /* Acquire: a tag that is seen is followed by its reference; pairs with bucket_put. */
    return match_words(atomic_load_explicit(&b->tags[0], memory_order_acquire),
                       atomic_load_explicit(&b->tags[1], memory_order_acquire),
                       atomic_load_explicit(&b->tags_rest, memory_order_acquire), tag);
}

static void bucket_set_tag(struct hash_bucket *b, unsigned slot, uint16_t tag)
{
    if (slot < 8) {
        unsigned shift = slot % 4 * 16;
        uint64_t word = atomic_load_explicit(&b->tags[slot / 4], memory_order_relaxed);
        word = (word & ~(0xffffull << shift)) | (uint64_t)tag << shift;
        atomic_store_explicit(&b->tags[slot / 4], word, memory_order_release);
    } else {
        unsigned shift = (slot - 8) * 16;
        uint32_t word = atomic_load_explicit(&b->tags_rest, memory_order_relaxed);
        word = (word & ~(0xffffu << shift)) | (uint32_t)tag << shift;
        atomic_store_explicit(&b->tags_rest, word, memory_order_release);
    }
}

static uint16_t bucket_tag(const struct hash_bucket *bucket, unsigned slot)
{
    struct hash_bucket *b = (struct hash_bucket *)(uintptr_t)bucket;
    if (slot < 8)
        return (uint16_t)(atomic_load_explicit(&b->tags[slot / 4], memory_order_relaxed) >> slot % 4 * 16);
    return (uint16_t)(atomic_load_explicit(&b->tags_rest, memory_order_relaxed) >> (slot - 8) * 16);
}

/* Acquire: the node behind the reference is complete; pairs with bucket_put. */
static inline uint32_t bucket_ref(const struct hash_bucket *b, unsigned slot)
{
    return atomic_load_explicit(&((struct hash_bucket *)(uintptr_t)b)->refs[slot], memory_order_acquire);
}

static inline struct node *bucket_find(const struct hash_table *table, const struct hash_bucket *b,
                                       uint64_t hash, struct slice key)
{
    do {
        for (unsigned m = bucket_match(b, tag_of(hash)); m; m &= m - 1) {
            uint32_t ref = bucket_ref(b, (unsigned)__builtin_ctz(m));
            if (ref == 0)
                continue;
            struct node *node = arena_at(table->arena, ref);
            if (slice_equal(node_key(node), key))
                return node;
        }
        b = overflow_of(table, b);
    } while (UNLIKELY(b != NULL));
    return NULL;
}

static void bucket_put(struct hash_bucket *b, unsigned slot, uint16_t tag, uint32_t ref)
{
    atomic_store_explicit(&b->refs[slot], ref, memory_order_release);
    bucket_set_tag(b, slot, tag);
}

static void bucket_insert(struct hash_table *table, struct arena_cache *cache, struct hash_bucket *b,
                          uint16_t tag, uint32_t ref)
{
    for (;;) {
        for (unsigned slot = 0; slot < HASH_BUCKET_SLOTS; slot++) {
            if (bucket_ref(b, slot) == 0) {
                bucket_put(b, slot, tag, ref);
                return;
            }
        }
        struct hash_bucket *more = overflow_of(table, b);
        if (more == NULL) {
            uint32_t more_ref = arena_alloc(cache, arena_class(sizeof *more));
            CHECK(more_ref != 0);
            more = arena_at(table->arena, more_ref);
            memset(more, 0, sizeof *more);
            bucket_put(more, 0, tag, ref);
            atomic_store_explicit(&b->overflow, more_ref, memory_order_release);
            return;
        }
        b = more;
    }
}

/* ---- generations ---- */

/* The old generation has half as many buckets. It is unmapped some time after the last one has moved, so
 * t->old may only be followed while a bucket that has not moved is wanted. */
static inline uint64_t old_bucket_number(const struct hash_buckets *t, uint64_t hash)
{
    return hash >> (64 - (t->bits - 1));
}

static inline uint64_t old_bucket_count(const struct hash_buckets *t)
{
    return (uint64_t)1 << (t->bits - 1);
}

static struct hash_buckets *buckets_create(struct hash_table *table, unsigned bits, struct hash_buckets *old)
{
    uint64_t bytes = round_up(sizeof(struct hash_buckets) + ((uint64_t)64 << bits), 4096);
    struct hash_buckets *t =
        mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (t == MAP_FAILED)
        return NULL;
    madvise(t, bytes, MADV_HUGEPAGE);
    t->mapping_bytes = bytes;
    t->bits = bits;
    t->old = old;
    atomic_init(&t->moved, 0);
    atomic_fetch_add_explicit(&table->mapped_bytes, bytes, memory_order_relaxed);
    return t;
}

status_t hash_table_init(struct hash_table *table, struct arena *arena, struct keylock *locks, uint64_t seed)
{
    *table = (struct hash_table){.arena = arena, .locks = locks, .seed = seed, .room_bytes = UINT64_MAX};
    struct hash_buckets *t = buckets_create(table, BITS_FIRST, NULL);
    if (t == NULL)
        return status_errno(errno, "cannot map the hash table");
    atomic_init(&table->current, t);
    return status_ok();
}

static unsigned bits_for(uint64_t keys, unsigned least)
{
    unsigned bits = least;
    while (bits < 40 && keys * LOAD_DENOMINATOR > (uint64_t)LOAD_NUMERATOR << bits)
        bits++;
    return bits;
}

uint64_t hash_table_bytes_for(uint64_t keys)
{
    return (uint64_t)64 << bits_for(keys, 0);
}

status_t hash_table_reserve(struct hash_table *table, uint64_t keys)
{
    struct hash_buckets *t = atomic_load_explicit(&table->current, memory_order_relaxed);
    unsigned bits = bits_for(keys, t->bits);
    CHECK(atomic_load_explicit(&table->count, memory_order_relaxed) == 0 && t->old == NULL);
    if (bits == t->bits)
        return status_ok();
    struct hash_buckets *wider = buckets_create(table, bits, NULL);
    if (wider == NULL)
        return status_errno(errno, "cannot map a hash table for %llu keys", (unsigned long long)keys);
    atomic_store_explicit(&table->current, wider, memory_order_relaxed);
    atomic_fetch_sub_explicit(&table->mapped_bytes, t->mapping_bytes, memory_order_relaxed);
    munmap(t, t->mapping_bytes);
    return status_ok();
}

void hash_table_deinit(struct hash_table *table)
{
    struct hash_buckets *t = atomic_load_explicit(&table->current, memory_order_relaxed);
    if (t->old && atomic_load_explicit(&t->moved, memory_order_relaxed) < old_bucket_count(t))
        munmap(t->old, t->old->mapping_bytes);
    munmap(t, t->mapping_bytes);
}

uint64_t hash_table_hash(const struct hash_table *table, struct slice key)
{
    return XXH3_64bits_withSeed(key.data, key.len, table->seed);
}

static inline struct hash_buckets *current_of(const struct hash_table *table)
{
    /* Acquire: pairs with the release in grow. */
    return atomic_load_explicit(&((struct hash_table *)(uintptr_t)table)->current, memory_order_acquire);
}

/* Has the bucket for hash moved from t->old to t? Acquire: pairs with the release in move_one; its entries
 * are in t. */
static inline bool has_moved(struct hash_buckets *t, uint64_t hash)
{
    return old_bucket_number(t, hash) < atomic_load_explicit(&t->moved, memory_order_acquire);
}

void hash_table_prefetch(const struct hash_table *table, uint64_t hash)
{
    struct hash_buckets *t = current_of(table);
    if (UNLIKELY(t->old != NULL) && !has_moved(t, hash))
        t = t->old;
    __builtin_prefetch(&t->buckets[bucket_number(t, hash)]);
}

struct node *hash_table_candidate(const struct hash_table *table, uint64_t hash)
{
    struct hash_buckets *t = current_of(table);
    if (UNLIKELY(t->old != NULL) && !has_moved(t, hash))
        t = t->old;
    const struct hash_bucket *b = &t->buckets[bucket_number(t, hash)];
    do {
        unsigned m = bucket_match(b, tag_of(hash));
        if (m) {
            uint32_t ref = bucket_ref(b, (unsigned)__builtin_ctz(m));
            return ref ? arena_at(table->arena, ref) : NULL;
        }
        b = overflow_of(table, b);
    } while (UNLIKELY(b != NULL));
    return NULL;
}

struct node *hash_table_find(const struct hash_table *table, uint64_t hash, struct slice key)
{
    struct hash_buckets *t = current_of(table);
    if (UNLIKELY(t->old != NULL) && !has_moved(t, hash)) {
        struct node *node = bucket_find(table, &t->old->buckets[old_bucket_number(t, hash)], hash, key);
        /* Not there: it was absent then, unless the bucket has moved since and the key was added to the new
         * one. */
        if (node || !has_moved(t, hash))
            return node;
    }
    return bucket_find(table, &t->buckets[bucket_number(t, hash)], hash, key);
}

/* ---- growing ---- */

static void move_bucket(struct hash_table *table, struct arena_cache *cache, struct epoch_participant *epoch,
                        struct hash_buckets *t, struct hash_bucket *from, bool is_overflow)
{
    for (unsigned slot = 0; slot < HASH_BUCKET_SLOTS; slot++) {
        uint32_t ref = bucket_ref(from, slot);
        if (ref == 0)
            continue;
        uint64_t hash = hash_table_hash(table, node_key(arena_at(table->arena, ref)));
        bucket_insert(table, cache, &t->buckets[bucket_number(t, hash)], bucket_tag(from, slot), ref);
    }
    struct hash_bucket *more = overflow_of(table, from);
    if (more)
        move_bucket(table, cache, epoch, t, more, true);
    if (is_overflow)
        epoch_retire_block(epoch, arena_ref(table->arena, from), arena_class(sizeof *from));
}

static void prefetch_nodes(const struct hash_table *table, const struct hash_bucket *b)
{
    for (unsigned slot = 0; slot < HASH_BUCKET_SLOTS; slot++) {
        uint32_t ref = bucket_ref(b, slot);
        if (ref)
            __builtin_prefetch(arena_at(table->arena, ref));
    }
}

/* Moves the next bucket, unless its stripe is held by somebody (they will come by again). held: the caller's
 * own stripe. */
static void move_one(struct hash_table *table, struct arena_cache *cache, struct epoch_participant *epoch,
                     struct hash_buckets *t, uint32_t held)
{
    struct hash_buckets *old = t->old;
    uint64_t i = atomic_load_explicit(&t->moved, memory_order_relaxed), n = old_bucket_count(t);
    if (i >= n)
        return;
    uint32_t stripe = (uint32_t)(i >> (t->bits - 1 - KEYLOCK_STRIPE_BITS));
    if (stripe != held && !keylock_try(table->locks, stripe))
        return;
    move_bucket(table, cache, epoch, t, &old->buckets[i], false);
    if (i + 2 < n) { /* the next insert's work: by then it is in the cache */
        __builtin_prefetch(&old->buckets[i + 2]);
        prefetch_nodes(table, &old->buckets[i + 1]);
    }
    /* Release: pairs with has_moved. */
    atomic_store_explicit(&t->moved, i + 1, memory_order_release);
    if (stripe != held)
        keylock_release(table->locks, stripe);
    if (i + 1 == n) {
        atomic_fetch_sub_explicit(&table->mapped_bytes, old->mapping_bytes, memory_order_relaxed);
        epoch_retire_mapping(epoch, old);
    }
}

static bool is_moving(const struct hash_buckets *t)
{
    return t->old && atomic_load_explicit(&((struct hash_buckets *)(uintptr_t)t)->moved,
                                          memory_order_relaxed) < old_bucket_count(t);
}

uint64_t hash_table_untouched_bytes(const struct hash_table *table)
{
    const struct hash_buckets *t = current_of(table);
    if (!is_moving(t))
        return 0;
    uint64_t n = old_bucket_count(t), moved = atomic_load_explicit(&t->moved, memory_order_relaxed);
    return t->mapping_bytes / n * (n - (moved < n ? moved : n));
}

static void grow_or_move(struct hash_table *table, struct arena_cache *cache, struct epoch_participant *epoch,
                         uint32_t held)
{
    if (!spin_try_lock(&table->move_lock))
        return;
    struct hash_buckets *t = current_of(table);
    if (is_moving(t)) {
        for (unsigned i = 0; i < MOVES_PER_INSERT; i++)
            move_one(table, cache, epoch, t, held);
    } else if ((uint64_t)64 << (t->bits + 1) <=
               atomic_load_explicit(&table->room_bytes, memory_order_relaxed)) {
        struct hash_buckets *wider = buckets_create(table, t->bits + 1, t);
        if (wider) /* else it goes on fuller, with overflow buckets, and tries again */
            atomic_store_explicit(&table->current, wider, memory_order_release);
    }
    spin_unlock(&table->move_lock);
}

void hash_table_insert(struct hash_table *table, struct arena_cache *cache, struct epoch_participant *epoch,
                       uint64_t hash, uint32_t ref)
{
    struct hash_buckets *t = current_of(table);
    if (t->old && !has_moved(t, hash))
        bucket_insert(table, cache, &t->old->buckets[old_bucket_number(t, hash)], tag_of(hash), ref);
    else
        bucket_insert(table, cache, &t->buckets[bucket_number(t, hash)], tag_of(hash), ref);
    uint64_t count = atomic_fetch_add_explicit(&table->count, 1, memory_order_relaxed) + 1;
    if (is_moving(t) || UNLIKELY(count * LOAD_DENOMINATOR > (uint64_t)LOAD_NUMERATOR << t->bits))
        grow_or_move(table, cache, epoch, keylock_stripe(hash));
}

static bool bucket_remove(struct hash_table *table, struct hash_bucket *b, uint32_t ref)
{
    for (; b; b = overflow_of(table, b)) {
        for (unsigned slot = 0; slot < HASH_BUCKET_SLOTS; slot++) {
            if (bucket_ref(b, slot) == ref) {
                atomic_store_explicit(&b->refs[slot], 0, memory_order_release);
                bucket_set_tag(b, slot, 0);
                return true;
            }
        }
    }
    return false;
}

void hash_table_remove(struct hash_table *table, uint64_t hash, uint32_t ref)
{
    struct hash_buckets *t = current_of(table);
    if (t->old && !has_moved(t, hash))
        t = t->old;
    CHECK(bucket_remove(table, &t->buckets[bucket_number(t, hash)], ref));
    atomic_fetch_sub_explicit(&table->count, 1, memory_order_relaxed);
}

/* The slot that holds ref, in the bucket of hash or behind it. False: none does. */
static bool find_slot(const struct hash_table *table, uint64_t hash, uint32_t ref,
                      struct hash_bucket **bucket, unsigned *slot)
{
    struct hash_buckets *t = current_of(table);
    if (t->old && !has_moved(t, hash))
        t = t->old;
    struct hash_bucket *b = &t->buckets[bucket_number(t, hash)];
    for (; b; b = overflow_of(table, b)) {
        for (*slot = 0; *slot < HASH_BUCKET_SLOTS; (*slot)++) {
            if (bucket_ref(b, *slot) == ref) {
                *bucket = b;
                return true;
            }
        }
    }
    return false;
}

void hash_table_replace(struct hash_table *table, uint64_t hash, uint32_t old_ref, uint32_t new_ref)
{
    struct hash_bucket *b;
    unsigned slot;
    CHECK(find_slot(table, hash, old_ref, &b, &slot));
    /* Release: pairs with bucket_ref. */
    atomic_store_explicit(&b->refs[slot], new_ref, memory_order_release);
}

struct node *hash_table_holds(const struct hash_table *table, uint64_t hash, uint32_t ref)
{
    struct hash_bucket *b;
    unsigned slot;
    if (!find_slot(table, hash, ref, &b, &slot) || bucket_tag(b, slot) != tag_of(hash))
        return NULL;
    return arena_at(table->arena, ref);
}

struct node *hash_table_holds_near(const struct hash_table *table, uint32_t hash_high, uint32_t ref)
{
    struct hash_bucket *b;
    unsigned slot;
    return find_slot(table, (uint64_t)hash_high << 32, ref, &b, &slot) ? arena_at(table->arena, ref) : NULL;
}

struct node *hash_table_random(const struct hash_table *table, uint64_t random)
{
    struct hash_buckets *t = current_of(table);
    uint64_t number = random >> 8 & (((uint64_t)1 << t->bits) - 1);
    if (is_moving(t) && number >> 1 >= atomic_load_explicit(&t->moved, memory_order_acquire)) {
        t = t->old;
        number >>= 1;
    }
    const struct hash_bucket *b = &t->buckets[number];
    /* Which of the chain: the slot decides, or an empty one sends the caller elsewhere. */
    struct hash_bucket *more = overflow_of(table, b);
    if (more && random & 0x80)
        b = more;
    uint32_t ref = bucket_ref(b, (unsigned)random % 128 % HASH_BUCKET_SLOTS);
    return ref ? arena_at(table->arena, ref) : NULL;
}
