/* A page is immutable and names its right neighbour's anchor and both bounds, so a leaf can be built only
 * when the first key behind it has come: that gives the high bound, and the neighbour's anchor is allocated
 * ahead of its page. The first leaf's low bound and the last one's high bound depend on the neighbouring
 * ranges; these two stay drafts until the join. */
#include "index/ordered_build.h"

#include <stdlib.h>

#include "base/check.h"
#include "index/ordered_page.h"

enum {
    /* Of separators in an inner page: half of what ordered.c lets it grow to. The longest separators have 64
     * KiB, so four children fit at least. */
    INNER_KEY_BYTES = 256 << 10,
    ANCHORS_AHEAD = 16, /* prefetched in the join: anchors, and pages half as far */
};

/* Anchors of one level, from left to right. */
struct anchors {
    uint32_t *refs;
    size_t count, capacity;
};

struct ordered_builder {
    struct arena_cache *cache;
    struct anchors leaves;
    struct ordered_draft draft; /* the last leaf; its anchor is the last of leaves */
    struct ordered_draft first; /* the first leaf, once there are more */
};

struct ordered_builder *ordered_builder_create(struct arena_cache *cache)
{
    struct ordered_builder *b = calloc(1, sizeof *b);
    CHECK(b != NULL);
    b->cache = cache;
    return b;
}

void ordered_builder_destroy(struct ordered_builder *b)
{
    if (b == NULL)
        return;
    free(b->leaves.refs);
    free(b);
}

/* ---- leaves ---- */

/* A new anchor without a page at the right end. */
static uint32_t anchors_add(struct anchors *anchors, struct arena_cache *cache, uint32_t level)
{
    if (anchors->count == anchors->capacity) {
        anchors->capacity = anchors->capacity * 2 + 64;
        anchors->refs = realloc(anchors->refs, anchors->capacity * sizeof *anchors->refs);
        CHECK(anchors->refs != NULL);
    }
    uint32_t ref = arena_alloc(cache, arena_class(sizeof(struct ordered_anchor)));
    CHECK(ref != 0);
    struct ordered_anchor *a = arena_at(cache->arena, ref);
    atomic_init(&a->page, 0);
    atomic_init(&a->lock, 0);
    atomic_init(&a->back, 0);
    a->level = level;
    anchors->refs[anchors->count++] = ref;
    return ref;
}

static void build_page(struct arena_cache *cache, uint32_t anchor, const struct ordered_draft *draft)
{
    struct ordered_anchor *a = arena_at(cache->arena, anchor);
    /* Relaxed: everything is published together, by the join's release store of the root. */
    atomic_store_explicit(&a->page, page_build(cache, draft), memory_order_relaxed);
}

/* Ends the draft where `key` follows, and leaves it empty for what begins there. */
static void end_leaf(struct ordered_builder *b, struct slice key)
{
    struct ordered_draft *draft = &b->draft;
    uint32_t anchor = b->leaves.refs[b->leaves.count - 1];
    draft->high = page_separator(draft->keys[draft->count - 1], key);
    draft->has_high = true;
    draft->next = anchors_add(&b->leaves, b->cache, 0);
    if (b->leaves.count == 2)
        b->first = *draft;
    else
        build_page(b->cache, anchor, draft);
    draft->low = draft->high;
    draft->count = 0;
    draft->next = 0;
    draft->has_high = false;
    draft->high = slice_make(NULL, 0);
}

bool ordered_builder_add(struct ordered_builder *b, uint32_t ref)
{
    struct ordered_draft *draft = &b->draft;
    struct slice key = node_key(arena_at(b->cache->arena, ref));
    if (UNLIKELY(b->leaves.count == 0))
        anchors_add(&b->leaves, b->cache, 0);
    else if (UNLIKELY(slice_compare(draft->keys[draft->count - 1], key) >= 0))
        return false;
    if (UNLIKELY(draft->count == ORDERED_BUILD_ENTRIES))
        end_leaf(b, key);
    draft->refs[draft->count] = ref;
    draft->keys[draft->count++] = key;
    return true;
}

/* ---- joining ---- */

static struct ordered_draft *first_leaf(struct ordered_builder *b)
{
    return b->leaves.count > 1 ? &b->first : &b->draft;
}

static struct slice first_key(struct ordered_builder *b)
{
    return first_leaf(b)->keys[0];
}

static struct slice last_key(const struct ordered_builder *b)
{
    return b->draft.keys[b->draft.count - 1];
}

/* Builds the leaves at the ends of the ranges and lists all leaves. parts: builders with keys. */
static struct anchors join_leaves(struct arena_cache *cache, struct ordered_builder **parts, unsigned n)
{
    struct anchors all = {0};
    for (unsigned i = 0; i < n; i++)
        all.capacity += parts[i]->leaves.count;
    all.refs = malloc(all.capacity * sizeof *all.refs);
    CHECK(all.refs != NULL);
    first_leaf(parts[0])->low = SLICE_LITERAL("");
    for (unsigned i = 0; i < n; i++) {
        struct ordered_builder *b = parts[i];
        if (i + 1 < n) {
            struct slice separator = page_separator(last_key(b), first_key(parts[i + 1]));
            b->draft.high = separator;
            b->draft.has_high = true;
            b->draft.next = parts[i + 1]->leaves.refs[0];
            first_leaf(parts[i + 1])->low = separator;
        }
        if (b->leaves.count > 1)
            build_page(cache, b->leaves.refs[0], &b->first);
        build_page(cache, b->leaves.refs[b->leaves.count - 1], &b->draft);
        memcpy(all.refs + all.count, b->leaves.refs, b->leaves.count * sizeof *all.refs);
        all.count += b->leaves.count;
    }
    return all;
}

static const struct ordered_page *page_of(const struct arena *arena, uint32_t anchor)
{
    struct ordered_anchor *a = arena_at(arena, anchor);
    /* Relaxed: built by this thread, or by one that has ended since. */
    return arena_at(arena, atomic_load_explicit(&a->page, memory_order_relaxed));
}

static void prefetch(const struct arena *arena, const struct anchors *anchors, size_t i)
{
    if (i + ANCHORS_AHEAD >= anchors->count)
        return;
    __builtin_prefetch(arena_at(arena, anchors->refs[i + ANCHORS_AHEAD]));
    const struct ordered_page *p = page_of(arena, anchors->refs[i + ANCHORS_AHEAD / 2]);
    __builtin_prefetch(p);
    /* The bounds, behind the entries of a full leaf. */
    __builtin_prefetch(p->heads + (size_t)2 * ORDERED_BUILD_ENTRIES);
}

/* The level above children. */
static struct anchors build_level(struct arena_cache *cache, const struct anchors *children, uint32_t level)
{
    struct anchors anchors = {0};
    struct ordered_draft draft = {.level = level, .low = SLICE_LITERAL("")};
    uint32_t anchor = anchors_add(&anchors, cache, level);
    size_t key_bytes = 0;
    for (size_t i = 0; i < children->count; i++) {
        prefetch(cache->arena, children, i);
        struct slice key = page_low(page_of(cache->arena, children->refs[i]));
        if (draft.count == ORDERED_BUILD_ENTRIES || key_bytes + key.len > INNER_KEY_BYTES) {
            draft.high = key;
            draft.has_high = true;
            draft.next = anchors_add(&anchors, cache, level);
            build_page(cache, anchor, &draft);
            anchor = draft.next;
            draft.low = key;
            draft.count = 0;
            key_bytes = 0;
        }
        draft.refs[draft.count] = children->refs[i];
        draft.keys[draft.count++] = key;
        key_bytes += key.len;
    }
    draft.next = 0;
    draft.has_high = false;
    draft.high = slice_make(NULL, 0);
    build_page(cache, anchor, &draft);
    return anchors;
}

/* Frees the one empty leaf of a tree without keys. */
static void free_empty_root(struct ordered *tree, struct arena_cache *cache)
{
    /* Relaxed: nobody else uses the tree. */
    uint32_t root = atomic_load_explicit(&tree->root, memory_order_relaxed);
    struct ordered_anchor *a = arena_at(tree->arena, root);
    const struct ordered_page *p = page_of(tree->arena, root);
    CHECK(a->level == 0 && p->count == 0 && p->next == 0);
    arena_free(cache, arena_ref(tree->arena, p), p->class);
    arena_free(cache, root, arena_class(sizeof *a));
}

status_t ordered_builders_join(struct ordered *tree, struct arena_cache *cache,
                               struct ordered_builder *const *builders, unsigned n)
{
    struct ordered_builder **parts = calloc(n + 1, sizeof(struct ordered_builder *));
    unsigned count = 0;
    status_t s = status_ok();
    CHECK(parts != NULL);
    for (unsigned i = 0; i < n; i++)
        if (builders[i]->leaves.count)
            parts[count++] = builders[i];
    for (unsigned i = 1; i < count && status_is_ok(&s); i++)
        if (slice_compare(last_key(parts[i - 1]), first_key(parts[i])) >= 0)
            s = status_error(STATUS_CORRUPT, "keys of neighbouring ranges are not in ascending order");
    if (count == 0 || !status_is_ok(&s)) {
        free(parts);
        return s;
    }
    free_empty_root(tree, cache);
    struct anchors level = join_leaves(cache, parts, count);
    for (uint32_t l = 1; level.count > 1; l++) {
        CHECK(l < ORDERED_LEVELS_MAX);
        struct anchors above = build_level(cache, &level, l);
        free(level.refs);
        level = above;
    }
    /* Release: pairs with descend's load; the tree is complete. */
    atomic_store_explicit(&tree->root, level.refs[0], memory_order_release);
    free(level.refs);
    free(parts);
    return s;
}
