/* Values in nodes: which form a node takes, changing it in place, and putting another node in its place. */
#include <malloc.h>
#include <stdlib.h>

#include "base/check.h"
#include "store/internal.h"

enum {
    NODE_INLINE_BYTES_MAX = 1024, /* larger nodes keep their value in a block of its own */
    NODE_WASTE_BYTES = 64,        /* a block may be twice as large as needed and so many bytes more */
};

/* An external block: immutable once its address is in a node. */
struct value_block {
    uint64_t bytes; /* of the allocation, for the accounts */
    char payload[];
};

/* What a node is to hold. */
struct content {
    struct slice value; /* cold: only its length counts */
    uint64_t expire_ms; /* 0: none */
    uint64_t address;   /* 0: the version says it */
    bool cold;
};

/* ---- sizes ---- */

static size_t fixed_bytes(size_t key_len)
{
    return sizeof(struct node) + round_up(key_len, 8);
}

static size_t area_bytes(uint32_t meta)
{
    return arena_class_bytes(node_class(meta)) - fixed_bytes(node_key_len(meta));
}

static size_t prefix_bytes(const struct content *c)
{
    return (c->expire_ms ? 8 : 0) + (c->address ? 8 : 0);
}

static size_t payload_bytes(const struct content *c)
{
    return prefix_bytes(c) + (c->cold ? 0 : c->value.len);
}

/* The area of a node whose value has left memory, once the cleaner has moved it. */
static size_t cold_area_bytes(bool expires)
{
    return expires ? 16 : 8;
}

/* What the area of a node made for this content would have to hold. */
static inline size_t area_wanted(const struct store *store, size_t key_len, const struct content *c)
{
    size_t bytes = payload_bytes(c), most = NODE_INLINE_BYTES_MAX;
    if (UNLIKELY(store_evicts(store)))
        most = PAYLOAD_NODE_BYTES_EVICTED;
    return c->cold || bytes <= 8 || fixed_bytes(key_len) + bytes <= most ? bytes : 8;
}

/* What a node takes at most without its value. */
static size_t bare_bytes(size_t key_len, bool expires)
{
    return arena_class_bytes(arena_class(fixed_bytes(key_len) + cold_area_bytes(expires)));
}

/* May the node's block go on being used for the content? One without its value is never looked at again, as
 * one that could leave: it wastes nothing. */
static inline bool suits(const struct store *store, uint32_t meta, const struct content *c)
{
    size_t fixed = fixed_bytes(node_key_len(meta)), has = arena_class_bytes(node_class(meta));
    size_t wants = fixed + area_wanted(store, node_key_len(meta), c);
    size_t most = c->cold ? bare_bytes(node_key_len(meta), true) : 2 * wants + NODE_WASTE_BYTES;
    return wants <= has && has <= most;
}

/* Of a node with that one's key. */
static size_t node_bytes(const struct store *store, uint32_t meta, const struct content *c)
{
    return fixed_bytes(node_key_len(meta)) + area_wanted(store, node_key_len(meta), c);
}

size_t payload_node_bytes(const struct store *store, size_t key_len, size_t value_len, bool expires,
                          bool cold)
{
    struct content c = {
        .value = slice_make(NULL, value_len), .expire_ms = expires, .address = cold, .cold = cold};
    return fixed_bytes(key_len) + area_wanted(store, key_len, &c);
}

/* Bytes of a node's block that it would not have without its value, but with an address and an expiry. Less
 * than none: by so many it may come to grow, when the cleaner moves its value or it gets an expiry. */
static int64_t value_share(uint32_t meta)
{
    return (int64_t)arena_class_bytes(node_class(meta)) - (int64_t)bare_bytes(node_key_len(meta), true);
}

bool payload_is_evictable(uint32_t meta)
{
    size_t bare = bare_bytes(node_key_len(meta), meta & NODE_EXPIRES);
    return !(meta & (NODE_COLD | NODE_TOMBSTONE)) &&
           (meta & NODE_EXTERNAL || arena_class_bytes(node_class(meta)) > bare);
}

/* ---- reading and writing one node ---- */

/* The area is written while readers may be copying it: word by word, relaxed; the sequence tells them. */
static void area_write(char *area, const char *from, size_t len)
{
    _Atomic uint64_t *to = (_Atomic uint64_t *)(void *)area;
    for (; len >= 8; len -= 8, from += 8)
        atomic_store_explicit(to++, load_u64(from), memory_order_relaxed);
    if (len) {
        uint64_t last = 0;
        memcpy(&last, from, len);
        atomic_store_explicit(to, last, memory_order_relaxed);
    }
}

static struct value_block *external_of(const struct node *node, uint32_t meta)
{
    _Atomic uint64_t *word = (_Atomic uint64_t *)(void *)node_area(node, node_key_len(meta));
    return (struct value_block *)(uintptr_t)atomic_load_explicit(word, memory_order_relaxed);
}

struct payload payload_get(const struct node *const_node)
{
    struct node *node = (struct node *)(uintptr_t)const_node;
    uint32_t meta = node_meta(node);
    const char *p =
        meta & NODE_EXTERNAL ? external_of(node, meta)->payload : node_area(node, node_key_len(meta));
    struct payload out = {
        .len = atomic_load_explicit(&node->value_len, memory_order_relaxed),
        .cold = meta & NODE_COLD,
        .address = atomic_load_explicit(&node->sequence, memory_order_relaxed) >> 1,
    };
    if (meta & NODE_EXPIRES) {
        out.expire_ms = load_u64(p);
        p += 8;
    }
    if (meta & NODE_MOVED) {
        out.address = load_u64(p);
        p += 8;
    }
    out.value = out.cold ? NULL : p;
    return out;
}

void node_begin(struct node *node)
{
    uint64_t s = atomic_load_explicit(&node->sequence, memory_order_relaxed);
    atomic_store_explicit(&node->sequence, s | 1, memory_order_relaxed);
    /* The odd sequence before any word of the change; pairs with the acquire fence of readers. */
    atomic_thread_fence(memory_order_release);
}

void node_publish(struct node *node, uint64_t lsn)
{
    /* Release: pairs with readers' acquire load of the sequence. */
    atomic_store_explicit(&node->sequence, lsn << 1, memory_order_release);
}

static void drop_external(struct store *store, struct store_worker_private *p, const struct node *node,
                          uint32_t meta)
{
    if (!(meta & NODE_EXTERNAL))
        return;
    struct value_block *block = external_of(node, meta);
    atomic_fetch_sub_explicit(&store->value_bytes, (int64_t)block->bytes, memory_order_relaxed);
    epoch_retire_malloc(&p->epoch, block, block->bytes);
}

static uint64_t external_create(struct store *store, const struct content *c)
{
    CHECK(!c->cold); /* then all of it is in the node */
    struct value_block *block = malloc(sizeof *block + payload_bytes(c));
    CHECK(block != NULL);
    block->bytes = malloc_usable_size(block);
    atomic_fetch_add_explicit(&store->value_bytes, (int64_t)block->bytes, memory_order_relaxed);
    char *at = block->payload;
    if (c->expire_ms) {
        store_u64(at, c->expire_ms);
        at += 8;
    }
    if (c->address) {
        store_u64(at, c->address);
        at += 8;
    }
    memcpy(at, c->value.data, c->value.len);
    return (uintptr_t)block;
}

/* Writes the content into the area or a new block; returns meta with the right flags. */
static inline uint32_t content_write(struct store *store, struct node *node, uint32_t meta,
                                     const struct content *c)
{
    char *area = node_area(node, node_key_len(meta));
    meta &= ~(uint32_t)(NODE_EXTERNAL | NODE_EXPIRES | NODE_TOMBSTONE | NODE_COLD | NODE_MOVED);
    meta |= (c->expire_ms ? NODE_EXPIRES : 0) | (c->address ? NODE_MOVED : 0) | (c->cold ? NODE_COLD : 0);
    if (payload_bytes(c) <= area_bytes(meta)) {
        if (c->expire_ms) {
            area_write(area, (const char *)&c->expire_ms, 8);
            area += 8;
        }
        if (c->address) {
            area_write(area, (const char *)&c->address, 8);
            area += 8;
        }
        if (!c->cold)
            area_write(area, c->value.data, c->value.len);
    } else {
        uint64_t block = external_create(store, c);
        area_write(area, (const char *)&block, 8);
        meta |= NODE_EXTERNAL;
    }
    atomic_store_explicit(&node->value_len, (uint32_t)c->value.len, memory_order_relaxed);
    return meta;
}

/* ---- whole nodes ---- */

/* Written by the owner only; read by any. */
static void count(_Atomic int64_t *number, int64_t bytes)
{
    atomic_store_explicit(number, atomic_load_explicit(number, memory_order_relaxed) + bytes,
                          memory_order_relaxed);
}

/* nodes: 1, or -1 for one that goes. */
static void count_share(struct store_worker_private *p, uint32_t meta, int nodes)
{
    int64_t share = value_share(meta);
    count(share >= 0 ? &p->share_bytes : &p->growth_bytes, (share >= 0 ? share : -share) * nodes);
}

static struct node *content_node(struct store *store, struct store_worker_private *p, struct slice key,
                                 const struct content *c, uint64_t sequence)
{
    unsigned class = arena_class(fixed_bytes(key.len) + area_wanted(store, key.len, c));
    uint32_t ref = arena_alloc(&p->arena, class);
    CHECK(ref != 0);
    struct node *node = arena_at(&store->arena, ref);
    uint32_t meta = (uint32_t)key.len | (uint32_t) class << NODE_CLASS_SHIFT;
    atomic_store_explicit(&node->sequence, sequence, memory_order_relaxed);
    memcpy(node->data, key.data, key.len);
    meta = content_write(store, node, meta, c);
    atomic_store_explicit(&node->meta, meta, memory_order_relaxed);
    count_share(p, meta, 1);
    return node;
}

void payload_retire(struct store_worker_private *p, const struct node *node, uint32_t ref)
{
    uint32_t meta = node_meta(node);
    count_share(p, meta, -1);
    epoch_retire_block(&p->epoch, ref, node_class(meta));
}

/* Takes the index's references to a node over for another one with the same key. The old one stays readable
 * until no reader has it. */
static void exchange(struct store *store, struct store_worker_private *p, struct node *old, uint64_t hash,
                     struct node *node, uint32_t hint)
{
    uint32_t old_ref = arena_ref(&store->arena, old), ref = arena_ref(&store->arena, node);
    ordered_replace(&store->ordered, old_ref, ref, hint);
    hash_table_replace(&store->hash, hash, old_ref, ref);
    drop_external(store, p, old, node_meta(old));
    payload_retire(p, old, old_ref);
    if (UNLIKELY(store_evicts(store)) && payload_is_evictable(node_meta(node)))
        memory_resident(store, p, hash, ref, node_meta(node));
}

/* ---- how much of each segment is live ---- */

/* The node's value goes. */
static void count_gone(const struct store *store, struct store_worker_private *p, const struct node *node)
{
    uint32_t meta = node_meta(node);
    if (store->segments == NULL || meta & NODE_TOMBSTONE)
        return;
    struct payload old = payload_get(node);
    segments_live(&p->live, old.address, -(int64_t)segment_weight(node_key_len(meta), old.len));
}

/* The record lsn has a value for the node, in place of what it has had. */
static inline void count_set(const struct store *store, struct store_worker_private *p,
                             const struct node *node, size_t value_len, uint64_t lsn)
{
    if (UNLIKELY(store->segments == NULL))
        return;
    count_gone(store, p, node);
    segments_live(&p->live, lsn, segment_weight(node_key_len(node_meta(node)), value_len));
}

/* ---- making and changing nodes ---- */

struct node *payload_node_create(struct store *store, struct store_worker_private *p, struct slice key,
                                 uint64_t hash, struct slice value, uint64_t expire_ms, uint64_t lsn)
{
    struct content c = {.value = value, .expire_ms = expire_ms};
    if (LIKELY(store->segments != NULL))
        segments_live(&p->live, lsn, segment_weight(key.len, value.len));
    struct node *node = content_node(store, p, key, &c, lsn << 1 | 1);
    if (UNLIKELY(store_evicts(store)) && payload_is_evictable(node_meta(node)))
        memory_resident(store, p, hash, arena_ref(&store->arena, node), node_meta(node));
    return node;
}

struct node *payload_node_create_cold(struct store *store, struct store_worker_private *p, struct slice key,
                                      uint32_t value_len, uint64_t expire_ms, uint64_t address, uint64_t lsn)
{
    struct content c = {.value = slice_make(NULL, value_len), .expire_ms = expire_ms, .cold = true};
    c.address = address == lsn ? 0 : address;
    if (LIKELY(store->segments != NULL))
        segments_live(&p->live, address, segment_weight(key.len, value_len));
    return content_node(store, p, key, &c, lsn << 1 | 1);
}

/* A write moves the key to another node. */
static struct node *content_elsewhere(struct store *store, struct store_worker_private *p, struct node *node,
                                      uint64_t hash, const struct content *c, uint64_t lsn)
{
    struct node *other = content_node(store, p, node_key(node), c, lsn << 1 | 1);
    exchange(store, p, node, hash, other, 0);
    /* Whoever found the old node before the exchange must not take its state for one of after the write. */
    atomic_store_explicit(&node->meta, node_meta(node) | NODE_REPLACED, memory_order_relaxed);
    node_publish(node, lsn);
    return other;
}

/* Would the content make a value in memory another kind of value, in a node that is queued as what it was? */
static bool changes_queue(const struct store *store, uint32_t meta, const struct content *c)
{
    if (LIKELY(!store_evicts(store)) || !payload_is_evictable(meta) || c->cold)
        return false;
    return (payload_bytes(c) > area_bytes(meta)) != ((meta & NODE_EXTERNAL) != 0);
}

/* A write gives the busy node new content, here or in another node, which then is what is returned: busy too,
 * and in the index. */
static inline struct node *content_set(struct store *store, struct store_worker_private *p, struct node *node,
                                       uint64_t hash, const struct content *c, uint64_t lsn)
{
    uint32_t old = node_meta(node);
    if (LIKELY(suits(store, old, c) && !changes_queue(store, old, c))) {
        drop_external(store, p, node, old);
        uint32_t meta = content_write(store, node, old, c);
        atomic_store_explicit(&node->meta, meta, memory_order_relaxed);
        if (UNLIKELY(store_evicts(store)) && !payload_is_evictable(old) && payload_is_evictable(meta))
            memory_resident(store, p, hash, arena_ref(&store->arena, node), meta);
        return node;
    }
    return content_elsewhere(store, p, node, hash, c, lsn);
}

struct node *payload_set(struct store *store, struct store_worker_private *p, struct node *node,
                         uint64_t hash, struct slice value, uint64_t expire_ms, uint64_t lsn)
{
    struct content c = {.value = value, .expire_ms = expire_ms};
    count_set(store, p, node, value.len, lsn);
    return content_set(store, p, node, hash, &c, lsn);
}

struct node *payload_set_cold(struct store *store, struct store_worker_private *p, struct node *node,
                              uint64_t hash, uint32_t value_len, uint64_t expire_ms, uint64_t lsn)
{
    struct content c = {.value = slice_make(NULL, value_len), .expire_ms = expire_ms, .cold = true};
    count_set(store, p, node, value_len, lsn);
    return content_set(store, p, node, hash, &c, lsn);
}

struct node *payload_expire(struct store *store, struct store_worker_private *p, struct node *node,
                            uint64_t hash, uint64_t expire_ms, uint64_t lsn)
{
    struct payload old = payload_get(node);
    struct content c = {.value = slice_make(old.value, old.len), .expire_ms = expire_ms, .cold = old.cold};
    if (store->config.durability != STORE_NONE)
        c.address = old.address;
    if (!old.cold && !(node_meta(node) & NODE_EXTERNAL)) { /* it moves within its area: through a copy */
        p->scratch = store_grow(p->scratch, &p->scratch_capacity, old.len, 1);
        memcpy(p->scratch, old.value, old.len);
        c.value.data = p->scratch;
    }
    return content_set(store, p, node, hash, &c, lsn);
}

void payload_clear(struct store *store, struct store_worker_private *p, struct node *node)
{
    uint32_t old = node_meta(node);
    uint32_t forms = NODE_EXTERNAL | NODE_EXPIRES | NODE_COLD | NODE_MOVED;
    count_gone(store, p, node);
    drop_external(store, p, node, old);
    atomic_store_explicit(&node->meta, (old & ~forms) | NODE_TOMBSTONE, memory_order_relaxed);
    atomic_store_explicit(&node->value_len, 0, memory_order_relaxed);
}

/* ---- in memory or not: the same version in another node ---- */

/* What a deleted tree covers is not exchanged any more: who clears it away finds nodes in the ordered index
 * first and looks whether they are current later, and makes just the current one a tombstone for readers that
 * have found it. Exact, because a tree is deleted under all locks. */
static bool is_deleted(const struct store *store, const struct node *node, uint64_t lsn)
{
    return atomic_load_explicit(&((struct store *)(uintptr_t)store)->range_count, memory_order_acquire) &&
           store_covering_range(store, node_key(node), lsn);
}

static struct node *same_version(struct store *store, struct store_worker_private *p, struct node *node,
                                 uint64_t hash, const struct content *c, uint32_t hint)
{
    uint64_t sequence = atomic_load_explicit(&node->sequence, memory_order_relaxed);
    struct node *other = content_node(store, p, node_key(node), c, sequence);
    exchange(store, p, node, hash, other, hint);
    return other;
}

bool payload_evict(struct store *store, struct store_worker_private *p, struct node *node, uint64_t hash,
                   uint32_t hint)
{
    uint64_t sequence = atomic_load_explicit(&node->sequence, memory_order_relaxed);
    uint32_t meta = node_meta(node);
    /* Only a value that is surely on disk can be read from there. */
    if (sequence & 1 || !payload_is_evictable(meta) || sequence >> 1 >= store_durable_lsn(store) ||
        is_deleted(store, node, sequence >> 1))
        return false;
    struct payload old = payload_get(node);
    struct content c = {.value = slice_make(NULL, old.len), .expire_ms = old.expire_ms, .cold = true};
    c.address = meta & NODE_MOVED ? old.address : 0;
    same_version(store, p, node, hash, &c, hint);
    return true;
}

bool payload_promote(struct store *store, struct store_worker_private *p, struct node *node, uint64_t hash,
                     struct slice value)
{
    uint64_t sequence = atomic_load_explicit(&node->sequence, memory_order_relaxed);
    uint32_t meta = node_meta(node);
    struct payload old = payload_get(node);
    if (sequence & 1 || !old.cold || old.len != value.len || is_deleted(store, node, sequence >> 1))
        return false;
    if (!room_take(store, p, value.len))
        return false;
    struct content c = {.value = value, .expire_ms = old.expire_ms};
    c.address = meta & NODE_MOVED ? old.address : 0;
    same_version(store, p, node, hash, &c, 0);
    return true;
}

static void count_moved(struct store_worker_private *p, uint32_t meta, uint32_t len, uint64_t from,
                        uint64_t to)
{
    int64_t weight = segment_weight(node_key_len(meta), len);
    segments_live(&p->live, from, -weight);
    segments_live(&p->live, to, weight);
}

/* A value that is not in memory lies at another place: who reads meanwhile gets one of the two addresses, and
 * either will do. */
static void address_set(struct node *node, uint32_t meta, uint64_t address)
{
    char *area = node_area(node, node_key_len(meta)) + (meta & NODE_EXPIRES ? 8 : 0);
    area_write(area, (const char *)&address, sizeof address);
}

enum payload_moved payload_relocate(struct store *store, struct store_worker_private *p, struct node *node,
                                    uint64_t hash, uint64_t from, uint64_t to, uint32_t hint)
{
    uint64_t sequence = atomic_load_explicit(&node->sequence, memory_order_relaxed);
    uint32_t meta = node_meta(node);
    struct payload old = payload_get(node);
    if (meta & NODE_TOMBSTONE || old.address != from || is_deleted(store, node, sequence >> 1))
        return PAYLOAD_ELSEWHERE;
    if (sequence & 1)
        return PAYLOAD_NOT_NOW;
    if (payload_moves_in_place(meta)) {
        address_set(node, meta, to);
        count_moved(p, meta, old.len, from, to);
        return PAYLOAD_MOVED;
    }
    struct content c = {
        .value = slice_make(old.value, old.len), .expire_ms = old.expire_ms, .address = to, .cold = old.cold};
    /* It is copied. Where there is no room for that it leaves memory, which its record at `to` allows. */
    bool taken = meta & NODE_EXTERNAL && room_take(store, p, old.len);
    if (payload_is_evictable(meta) &&
        !(meta & NODE_EXTERNAL ? taken : memory_has_node(store, p, node_bytes(store, meta, &c))))
        c.cold = true;
    /* And the node without its value waits for those that have been replaced, if it is that. */
    if (!memory_has_node(store, p, node_bytes(store, meta, &c)) && memory_gets_nodes(p)) {
        if (taken)
            room_return(p, old.len);
        return PAYLOAD_NOT_NOW;
    }
    struct node *other = same_version(store, p, node, hash, &c, hint);
    /* Relaxed: see keeps in memory.c. */
    if (meta & NODE_TOUCHED)
        atomic_fetch_or_explicit(&other->meta, NODE_TOUCHED, memory_order_relaxed);
    count_moved(p, meta, old.len, from, to);
    return PAYLOAD_MOVED;
}
