/* ordered_page: the immutable pages of the ordered index: layout, building, searching inside one. (Immutable
 * but for one thing: a leaf's reference may become that of another node with the same key.)
 *
 * Layout in one arena block: struct ordered_page, heads[count], refs[count], then (level > 0) key
 * ends[count], then low, high and the separator keys' bytes. In a leaf refs are nodes, in an inner page
 * anchors of the level below. A separator equals the low bound of the child it leads to; the first one equals
 * the page's own low bound. Thread safety: immutable once published. */
#ifndef KVASIR_INDEX_ORDERED_PAGE_H
#define KVASIR_INDEX_ORDERED_PAGE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/bytes.h"
#include "index/arena.h"
#include "index/node.h"
#include "index/ordered.h"

struct ordered_anchor {
    _Atomic uint32_t page;
    _Atomic uint32_t lock;
    _Atomic uint32_t back; /* != 0: this anchor's keys have gone to that left neighbour; it is dead */
    uint32_t level;        /* 0: leaves. Constant */
};

_Static_assert(sizeof(struct ordered_anchor) == 16, "an anchor is one arena unit");

struct ordered_page {
    uint32_t next; /* anchor to the right; 0: none */
    uint32_t low_len, high_len;
    uint32_t prefix_len; /* bytes that low and high share: all keys here begin with them */
    uint16_t count;
    uint8_t level;
    uint8_t has_high; /* else: no upper bound */
    uint8_t class;    /* of the arena */
    uint8_t padding[3];
    uint32_t heads[];
};

/* What a page is to be built from. */
struct ordered_draft {
    uint32_t level, next, count;
    bool has_high;
    struct slice low, high;
    uint32_t refs[2 * ORDERED_ENTRIES_MAX + 1];
    struct slice keys[2 * ORDERED_ENTRIES_MAX + 1];
};

static inline const uint32_t *page_refs(const struct ordered_page *p)
{
    return p->heads + p->count;
}

/* A reference in a leaf, by who does not hold the anchor's lock. Acquire: the node is complete; pairs with
 * ordered_replace. */
static inline uint32_t page_ref(const struct ordered_page *p, unsigned i)
{
    _Atomic uint32_t *refs = (_Atomic uint32_t *)(uintptr_t)page_refs(p);
    return atomic_load_explicit(&refs[i], memory_order_acquire);
}

static inline const uint32_t *page_ends(const struct ordered_page *p)
{
    return p->heads + 2 * p->count;
}

static inline const char *page_bytes(const struct ordered_page *p)
{
    return (const char *)(p->heads + (p->level ? 3 : 2) * p->count);
}

static inline struct slice page_low(const struct ordered_page *p)
{
    return slice_make(page_bytes(p), p->low_len);
}

static inline struct slice page_high(const struct ordered_page *p)
{
    return slice_make(page_bytes(p) + p->low_len, p->high_len);
}

static inline struct slice page_key(const struct arena *arena, const struct ordered_page *p, unsigned i)
{
    if (p->level == 0)
        return node_key(arena_at(arena, page_ref(p, i)));
    const char *keys = page_bytes(p) + p->low_len + p->high_len;
    uint32_t start = i ? page_ends(p)[i - 1] : 0;
    return slice_make(keys + start, page_ends(p)[i] - start);
}

/* First entry with key >= (or_equal: > ) key; key lies within the page's bounds. */
unsigned page_lower_bound(const struct arena *arena, const struct ordered_page *p, struct slice key,
                          bool after_equal);

/* Builds a page; 0 never (CHECKs for memory). */
uint32_t page_build(struct arena_cache *cache, const struct ordered_draft *draft);
/* The leaf with one more or one less entry, the same bounds: the quick way. */
uint32_t page_with(struct arena_cache *cache, const struct ordered_page *p, unsigned at, struct slice key,
                   uint32_t ref);
uint32_t page_without(struct arena_cache *cache, const struct ordered_page *p, unsigned at);
/* Appends a page's entries to a draft. */
void draft_add_page(struct ordered_draft *draft, const struct arena *arena, const struct ordered_page *p);
void draft_insert(struct ordered_draft *draft, unsigned at, struct slice key, uint32_t ref);
/* Shortest key that is > left and <= right; a prefix of right. */
struct slice page_separator(struct slice left, struct slice right);

#endif
