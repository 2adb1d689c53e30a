#include "store/internal.h"

#include <malloc.h>
#include <stdlib.h>

#include "base/check.h"

enum { NODE_INLINE_BYTES_MAX = 1024 }; /* larger nodes keep their value in a block of its own */

/* An external block: immutable once its address is in a node. */
struct value_block {
    uint64_t bytes; /* of the allocation, for the accounts */
    char payload[];
};

static size_t area_bytes(uint32_t meta)
{
    return arena_class_bytes(node_class(meta)) - sizeof(struct node) - round_up(node_key_len(meta), 8);
}

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

struct payload payload_get(const struct node *node)
{
    uint32_t meta = node_meta(node);
    const char *p =
        meta & NODE_EXTERNAL ? external_of(node, meta)->payload : node_area(node, node_key_len(meta));
    struct payload out = {
        p, atomic_load_explicit(&((struct node *)(uintptr_t)node)->value_len, memory_order_relaxed), 0};
    if (meta & NODE_EXPIRES) {
        out.expire_ms = load_u64(p);
        out.value += 8;
    }
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
    epoch_retire_malloc(&p->epoch, block);
}

/* Writes expiry and value into the area or a new block; returns meta with the right flags. */
static uint32_t payload_write(struct store *store, struct node *node, uint32_t meta, struct slice value,
                              uint64_t expire_ms)
{
    size_t expire_bytes = expire_ms ? 8 : 0, need = expire_bytes + value.len;
    char *area = node_area(node, node_key_len(meta));
    meta &= ~(uint32_t)(NODE_EXTERNAL | NODE_EXPIRES | NODE_TOMBSTONE);
    if (expire_ms)
        meta |= NODE_EXPIRES;
    if (need <= area_bytes(meta)) {
        if (expire_ms)
            area_write(area, (const char *)&expire_ms, 8);
        area_write(area + expire_bytes, value.data, value.len);
    } else {
        struct value_block *block = malloc(sizeof *block + need);
        CHECK(block != NULL);
        block->bytes = malloc_usable_size(block);
        atomic_fetch_add_explicit(&store->value_bytes, (int64_t)block->bytes, memory_order_relaxed);
        store_u64(block->payload, expire_ms);
        memcpy(block->payload + expire_bytes, value.data, value.len);
        uint64_t address = (uintptr_t)block;
        area_write(area, (const char *)&address, 8);
        meta |= NODE_EXTERNAL;
    }
    atomic_store_explicit(&node->value_len, (uint32_t)value.len, memory_order_relaxed);
    return meta;
}

struct node *payload_node_create(struct store *store, struct store_worker_private *p, struct slice key,
                                 struct slice value, uint64_t expire_ms, uint64_t lsn)
{
    size_t fixed = sizeof(struct node) + round_up(key.len, 8), need = value.len + (expire_ms ? 8 : 0);
    bool internal = fixed + need <= NODE_INLINE_BYTES_MAX && need > 8;
    unsigned class = arena_class(fixed + (internal ? need : 8));
    uint32_t ref = arena_alloc(&p->arena, class);
    CHECK(ref != 0);
    struct node *node = arena_at(&store->arena, ref);
    uint32_t meta = (uint32_t)key.len | (uint32_t) class << NODE_CLASS_SHIFT;
    atomic_store_explicit(&node->sequence, lsn << 1 | 1, memory_order_relaxed);
    memcpy(node->data, key.data, key.len);
    meta = payload_write(store, node, meta, value, expire_ms);
    atomic_store_explicit(&node->meta, meta, memory_order_relaxed);
    return node;
}

void payload_set(struct store *store, struct store_worker_private *p, struct node *node, struct slice value,
                 uint64_t expire_ms)
{
    uint32_t old = node_meta(node);
    drop_external(store, p, node, old);
    atomic_store_explicit(&node->meta, payload_write(store, node, old, value, expire_ms),
                          memory_order_relaxed);
}

void payload_clear(struct store *store, struct store_worker_private *p, struct node *node)
{
    uint32_t old = node_meta(node);
    drop_external(store, p, node, old);
    atomic_store_explicit(&node->meta, (old & ~(uint32_t)(NODE_EXTERNAL | NODE_EXPIRES)) | NODE_TOMBSTONE,
                          memory_order_relaxed);
    atomic_store_explicit(&node->value_len, 0, memory_order_relaxed);
}
