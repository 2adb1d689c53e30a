/* The happy path of an insert: descend along inner pages, always choosing the last separator <= key; lock the
 * leaf's anchor; build the page with the entry added; publish it; unlock; retire the old page. When the page
 * is full it is split: the right half gets an anchor of its own, complete before the left page that points to
 * it is published, then its separator goes into the level above (until that has happened searches reach the
 * right half over the left one's next).
 *
 * A leaf that has become empty is absorbed: see absorb. Dead anchors lead to their left neighbour, which has
 * their keys now. */
#include "index/ordered.h"

#include "base/check.h"
#include "base/spin.h"
#include "index/ordered_page.h"

enum {
    NODES_AHEAD = 8, /* of a walk: some 10 reads of memory are in flight on a core */
    INNER_ABSORB_MAX = 4,
    INNER_KEY_BYTES_MAX =
        512 << 10, /* an inner page with longer separators is split early: a page must fit an arena block */
};

_Static_assert(INNER_KEY_BYTES_MAX + 4 * 65536 + 4096 <= ARENA_BLOCK_BYTES_MAX,
               "one more key and both bounds still fit");

static inline struct ordered_anchor *anchor_at(const struct ordered *tree, uint32_t ref)
{
    return arena_at(tree->arena, ref);
}

/* Acquire: the page is complete; pairs with publish. */
static inline const struct ordered_page *page_of(const struct ordered *tree, struct ordered_anchor *a)
{
    return arena_at(tree->arena, atomic_load_explicit(&a->page, memory_order_acquire));
}

static void publish(struct ordered *tree, struct epoch_participant *epoch, struct ordered_anchor *a,
                    uint32_t page)
{
    uint32_t old = atomic_load_explicit(&a->page, memory_order_relaxed);
    atomic_store_explicit(&a->page, page, memory_order_release);
    const struct ordered_page *p = arena_at(tree->arena, old);
    epoch_retire_block(epoch, old, p->class);
}

static uint32_t anchor_create(struct ordered *tree, struct arena_cache *cache, uint32_t level, uint32_t page)
{
    uint32_t ref = arena_alloc(cache, arena_class(sizeof(struct ordered_anchor)));
    CHECK(ref != 0);
    struct ordered_anchor *a = anchor_at(tree, ref);
    atomic_init(&a->page, page);
    atomic_init(&a->lock, 0);
    atomic_init(&a->back, 0);
    a->level = level;
    return ref;
}

status_t ordered_init(struct ordered *tree, struct arena *arena, struct arena_cache *cache)
{
    tree->arena = arena;
    atomic_init(&tree->root_lock, 0);
    struct ordered_draft empty = {.low = SLICE_LITERAL("")};
    atomic_init(&tree->root, anchor_create(tree, cache, 0, page_build(cache, &empty)));
    return status_ok();
}

/* ---- searching ---- */

/* Is key beyond the page? before: looking for the page of the largest key below key. */
static inline bool is_beyond(const struct ordered_page *p, struct slice key, bool before)
{
    if (!p->has_high)
        return false;
    int c = slice_compare(key, page_high(p));
    return before ? c > 0 : c >= 0;
}

/* From an anchor whose low bound is <= key to the one responsible for it. */
static uint32_t move_right(const struct ordered *tree, uint32_t ref, struct slice key, bool before,
                           const struct ordered_page **page)
{
    for (;;) {
        struct ordered_anchor *a = anchor_at(tree, ref);
        /* Acquire: pairs with absorb's release; the left neighbour has the keys. */
        uint32_t back = atomic_load_explicit(&a->back, memory_order_acquire);
        if (UNLIKELY(back != 0)) {
            ref = back;
            continue;
        }
        const struct ordered_page *p = page_of(tree, a);
        if (!is_beyond(p, key, before)) {
            *page = p;
            return ref;
        }
        ref = p->next;
    }
}

static uint32_t child_for(const struct ordered *tree, const struct ordered_page *p, struct slice key,
                          bool before)
{
    unsigned i = page_lower_bound(tree->arena, p, key, !before);
    return page_refs(p)[i ? i - 1 : 0];
}

/* The anchor of a level that is responsible for key. */
static uint32_t descend(const struct ordered *tree, struct slice key, uint32_t level, bool before,
                        const struct ordered_page **page)
{
    uint32_t ref = atomic_load_explicit(&((struct ordered *)(uintptr_t)tree)->root, memory_order_acquire);
    for (;;) {
        ref = move_right(tree, ref, key, before, page);
        if ((*page)->level == level)
            return ref;
        ref = child_for(tree, *page, key, before);
    }
}

void ordered_prefetch(const struct ordered *tree, const struct slice *keys, uint32_t *hints, unsigned n)
{
    uint32_t root = atomic_load_explicit(&((struct ordered *)(uintptr_t)tree)->root, memory_order_acquire);
    const struct ordered_page *p;
    for (unsigned i = 0; i < n; i++)
        hints[i] = root;
    for (uint32_t level = anchor_at(tree, root)->level; level > 0; level--) {
        for (unsigned i = 0; i < n; i++) {
            hints[i] = move_right(tree, hints[i], keys[i], false, &p);
            hints[i] = child_for(tree, p, keys[i], false);
            __builtin_prefetch(anchor_at(tree, hints[i]));
        }
        for (unsigned i = 0; i < n; i++) {
            p = page_of(tree, anchor_at(tree, hints[i]));
            for (unsigned line = 0; line < 9; line++)
                __builtin_prefetch((const char *)p + line * 64);
        }
    }
}

/* ---- changing ---- */

/* Locks the anchor responsible for key at a level, starting at ref. */
static uint32_t lock_for(struct ordered *tree, uint32_t ref, struct slice key,
                         const struct ordered_page **page)
{
    for (;;) {
        ref = move_right(tree, ref, key, false, page);
        struct ordered_anchor *a = anchor_at(tree, ref);
        spin_lock(&a->lock);
        *page = page_of(tree, a);
        if (atomic_load_explicit(&a->back, memory_order_relaxed) == 0 && !is_beyond(*page, key, false))
            return ref;
        spin_unlock(&a->lock);
    }
}

static void insert_separator(struct ordered *tree, struct arena_cache *cache, struct epoch_participant *epoch,
                             uint32_t level, struct slice key, uint32_t left, uint32_t right);

/* Splits the draft (too large for one page) over the locked anchor and a new one, unlocks, tells the level
 * above. */
static void split(struct ordered *tree, struct arena_cache *cache, struct epoch_participant *epoch,
                  uint32_t ref, struct ordered_draft *draft, unsigned inserted_at)
{
    struct ordered_anchor *a = anchor_at(tree, ref);
    uint32_t count = draft->count, level = draft->level;
    /* Ascending keys leave full pages behind. */
    unsigned at = inserted_at == count - 1 ? count - 1 : count / 2;
    struct slice separator = level ? draft->keys[at] : page_separator(draft->keys[at - 1], draft->keys[at]);
    struct ordered_draft right = {
        .level = level, .next = draft->next, .count = count - at, .has_high = draft->has_high};
    right.low = separator;
    right.high = draft->high;
    memcpy(right.refs, draft->refs + at, right.count * sizeof right.refs[0]);
    memcpy(right.keys, draft->keys + at, right.count * sizeof right.keys[0]);
    uint32_t right_page = page_build(cache, &right);
    uint32_t right_ref = anchor_create(tree, cache, level, right_page);
    draft->count = at;
    draft->next = right_ref;
    draft->has_high = true;
    draft->high = separator;
    publish(tree, epoch, a, page_build(cache, draft));
    /* The new page's own copy: what the draft points to may go when the lock is released. */
    struct slice key = page_low(arena_at(tree->arena, right_page));
    spin_unlock(&a->lock);
    insert_separator(tree, cache, epoch, level + 1, key, ref, right_ref);
}

static void draft_from(struct ordered_draft *draft, const struct ordered *tree, const struct ordered_page *p)
{
    draft->level = p->level;
    draft->next = p->next;
    draft->count = 0;
    draft->has_high = p->has_high;
    draft->low = page_low(p);
    draft->high = page_high(p);
    draft_add_page(draft, tree->arena, p);
}

/* Do the draft's entries fit one page? */
static bool fits(const struct ordered_draft *draft, uint32_t count_max)
{
    size_t key_bytes = 0;
    for (unsigned i = 0; draft->level && i < draft->count; i++)
        key_bytes += draft->keys[i].len;
    return draft->count <= count_max && key_bytes <= INNER_KEY_BYTES_MAX;
}

/* Adds an entry to the locked anchor and unlocks it. */
static void add_entry(struct ordered *tree, struct arena_cache *cache, struct epoch_participant *epoch,
                      uint32_t ref, const struct ordered_page *p, struct slice key, uint32_t entry)
{
    struct ordered_anchor *a = anchor_at(tree, ref);
    unsigned at = page_lower_bound(tree->arena, p, key, false);
    if (p->level == 0 && p->count < ORDERED_ENTRIES_MAX) {
        publish(tree, epoch, a, page_with(cache, p, at, key, entry));
        spin_unlock(&a->lock);
        return;
    }
    struct ordered_draft draft;
    draft_from(&draft, tree, p);
    draft_insert(&draft, at, key, entry);
    if (fits(&draft, ORDERED_ENTRIES_MAX)) {
        publish(tree, epoch, a, page_build(cache, &draft));
        spin_unlock(&a->lock);
        return;
    }
    split(tree, cache, epoch, ref, &draft, at);
}

/* A new root over the old one and its new right neighbour; false if the tree has grown meanwhile. */
static bool grow_root(struct ordered *tree, struct arena_cache *cache, uint32_t level, struct slice key,
                      uint32_t left, uint32_t right)
{
    spin_lock(&tree->root_lock);
    uint32_t root = atomic_load_explicit(&tree->root, memory_order_relaxed);
    bool grows = anchor_at(tree, root)->level < level;
    if (grows) {
        CHECK(level < ORDERED_LEVELS_MAX && left == root);
        struct ordered_draft draft = {.level = level, .low = SLICE_LITERAL(""), .count = 2};
        draft.refs[0] = left;
        draft.keys[0] = SLICE_LITERAL("");
        draft.refs[1] = right;
        draft.keys[1] = key;
        uint32_t anchor = anchor_create(tree, cache, level, page_build(cache, &draft));
        /* Release: pairs with descend. */
        atomic_store_explicit(&tree->root, anchor, memory_order_release);
    }
    spin_unlock(&tree->root_lock);
    return grows;
}

static void insert_separator(struct ordered *tree, struct arena_cache *cache, struct epoch_participant *epoch,
                             uint32_t level, struct slice key, uint32_t left, uint32_t right)
{
    /* Only the leftmost anchor of the highest level can be the root; a neighbour's split waits for the root
     * to grow. */
    for (;;) {
        uint32_t root = atomic_load_explicit(&tree->root, memory_order_acquire);
        if (anchor_at(tree, root)->level >= level)
            break;
        if (left == root && grow_root(tree, cache, level, key, left, right))
            return;
        spin_pause();
    }
    const struct ordered_page *p;
    uint32_t ref = lock_for(tree, descend(tree, key, level, false, &p), key, &p);
    add_entry(tree, cache, epoch, ref, p, key, right);
}

void ordered_insert(struct ordered *tree, struct arena_cache *cache, struct epoch_participant *epoch,
                    uint32_t ref, uint32_t hint)
{
    struct slice key = node_key(arena_at(tree->arena, ref));
    const struct ordered_page *p;
    uint32_t leaf = hint ? hint : descend(tree, key, 0, false, &p);
    leaf = lock_for(tree, leaf, key, &p);
    add_entry(tree, cache, epoch, leaf, p, key, ref);
}

/* ---- taking away ---- */

/* Merges the anchor `right` into its left neighbour, when both have the same parent and there is room: left
 * takes over right's entries and bounds, right dies pointing back, the parent loses right's separator. Locks:
 * left, right, parent. */
static void absorb(struct ordered *tree, struct arena_cache *cache, struct epoch_participant *epoch,
                   uint32_t left_ref, uint32_t right_ref, uint32_t parent_ref)
{
    struct ordered_anchor *left = anchor_at(tree, left_ref), *right = anchor_at(tree, right_ref);
    struct ordered_anchor *parent = anchor_at(tree, parent_ref);
    spin_lock(&left->lock);
    spin_lock(&right->lock);
    spin_lock(&parent->lock);
    const struct ordered_page *l = page_of(tree, left), *r = page_of(tree, right), *p = page_of(tree, parent);
    unsigned at = 0;
    while (at < p->count && page_refs(p)[at] != right_ref)
        at++;
    bool possible = !left->back && !right->back && !parent->back && l->next == right_ref && at > 0 &&
                    at < p->count && page_refs(p)[at - 1] == left_ref;
    struct ordered_draft draft;
    if (possible) {
        draft_from(&draft, tree, l);
        draft_add_page(&draft, tree->arena, r);
        possible = fits(&draft, ORDERED_ENTRIES_MAX);
    }
    if (possible) {
        draft.next = r->next;
        draft.has_high = r->has_high;
        draft.high = page_high(r);
        publish(tree, epoch, left, page_build(cache, &draft));
        /* Release: pairs with move_right; whoever sees it finds the keys in left. */
        atomic_store_explicit(&right->back, left_ref, memory_order_release);
        draft_from(&draft, tree, p);
        draft.count--;
        memmove(draft.refs + at, draft.refs + at + 1, (draft.count - at) * sizeof draft.refs[0]);
        memmove(draft.keys + at, draft.keys + at + 1, (draft.count - at) * sizeof draft.keys[0]);
        publish(tree, epoch, parent, page_build(cache, &draft));
        epoch_retire_block(epoch, atomic_load_explicit(&right->page, memory_order_relaxed), r->class);
        epoch_retire_block(epoch, right_ref, arena_class(sizeof *right));
    }
    spin_unlock(&parent->lock);
    spin_unlock(&right->lock);
    spin_unlock(&left->lock);
}

/* Tries to merge a thin anchor with a neighbour under the same parent, and then the parent with one of its
 * own. */
static void thin_out(struct ordered *tree, struct arena_cache *cache, struct epoch_participant *epoch,
                     struct slice key, uint32_t level)
{
    for (; level < ORDERED_LEVELS_MAX; level++) {
        uint32_t root = atomic_load_explicit(&tree->root, memory_order_acquire);
        if (anchor_at(tree, root)->level <= level)
            return;
        const struct ordered_page *p, *c;
        uint32_t ref = descend(tree, key, level, false, &c);
        if (c->count > (level ? INNER_ABSORB_MAX : 0))
            return;
        uint32_t parent = descend(tree, key, level + 1, false, &p);
        unsigned at = 0;
        while (at < p->count && page_refs(p)[at] != ref)
            at++;
        if (at == p->count)
            return;
        if (at > 0)
            absorb(tree, cache, epoch, page_refs(p)[at - 1], ref, parent);
        else if (p->count > 1)
            absorb(tree, cache, epoch, ref, page_refs(p)[1], parent);
    }
}

void ordered_remove(struct ordered *tree, struct arena_cache *cache, struct epoch_participant *epoch,
                    uint32_t ref)
{
    struct slice key = node_key(arena_at(tree->arena, ref));
    const struct ordered_page *p;
    uint32_t leaf = lock_for(tree, descend(tree, key, 0, false, &p), key, &p);
    struct ordered_anchor *a = anchor_at(tree, leaf);
    unsigned at = page_lower_bound(tree->arena, p, key, false);
    CHECK(at < p->count && page_refs(p)[at] == ref);
    bool empties = p->count == 1;
    publish(tree, epoch, a, page_without(cache, p, at));
    spin_unlock(&a->lock);
    if (empties)
        thin_out(tree, cache, epoch, key, 0);
}

/* ---- exchanging ---- */

void ordered_replace(struct ordered *tree, uint32_t old_ref, uint32_t new_ref, uint32_t hint)
{
    struct slice key = node_key(arena_at(tree->arena, old_ref));
    const struct ordered_page *p;
    uint32_t leaf = lock_for(tree, hint ? hint : descend(tree, key, 0, false, &p), key, &p);
    unsigned at = page_lower_bound(tree->arena, p, key, false);
    CHECK(at < p->count && page_refs(p)[at] == old_ref);
    /* In place: the key is the same, so are head and order. Release: pairs with page_ref. */
    atomic_store_explicit((_Atomic uint32_t *)(uintptr_t)&page_refs(p)[at], new_ref, memory_order_release);
    spin_unlock(&anchor_at(tree, leaf)->lock);
}

/* ---- cursors ---- */

void ordered_seek(struct ordered_cursor *cursor, const struct ordered *tree, struct slice from, bool reverse)
{
    cursor->tree = tree;
    cursor->reverse = reverse;
    if (!reverse || from.data != NULL) {
        descend(tree, from, 0, reverse, &cursor->page);
        cursor->position = (int32_t)page_lower_bound(tree->arena, cursor->page, from, false);
        return;
    }
    /* The very last leaf: along the right edge. */
    uint32_t ref = atomic_load_explicit(&((struct ordered *)(uintptr_t)tree)->root, memory_order_acquire);
    for (;;) {
        const struct ordered_page *p = page_of(tree, anchor_at(tree, ref));
        while (p->has_high)
            p = page_of(tree, anchor_at(tree, p->next));
        cursor->page = p;
        cursor->position = p->count;
        if (p->level == 0)
            return;
        ref = page_refs(p)[p->count - 1];
    }
}

static struct node *next_reverse(struct ordered_cursor *cursor)
{
    while (cursor->position == 0) {
        struct slice low = page_low(cursor->page);
        if (low.len == 0)
            return NULL;
        ordered_seek(cursor, cursor->tree, low, true);
    }
    return arena_at(cursor->tree->arena, page_ref(cursor->page, (unsigned)--cursor->position));
}

/* The nodes lie anywhere: whoever walks wants each of them. */
static inline void prefetch_node(const struct ordered_cursor *cursor, int32_t position)
{
    if (position >= cursor->page->count)
        return;
    const char *node = arena_at(cursor->tree->arena, page_ref(cursor->page, (unsigned)position));
    __builtin_prefetch(node);
    __builtin_prefetch(node + 64);
}

struct node *ordered_next(struct ordered_cursor *cursor)
{
    const struct ordered *tree = cursor->tree;
    if (cursor->reverse)
        return next_reverse(cursor);
    while (cursor->position >= cursor->page->count) {
        const struct ordered_page *p = cursor->page;
        if (!p->has_high)
            return NULL;
        /* The right neighbour may have grown to the left of our bound since; then find the place by key. A
         * dead one's last page is as good as any: it is from this epoch. */
        const struct ordered_page *q = page_of(tree, anchor_at(tree, p->next));
        if (UNLIKELY(!slice_equal(page_low(q), page_high(p)))) {
            ordered_seek(cursor, tree, page_high(p), false);
            continue;
        }
        cursor->page = q;
        cursor->position = 0;
        if (q->has_high) { /* one page ahead */
            const char *ahead = (const char *)page_of(tree, anchor_at(tree, q->next));
            for (unsigned line = 0; line < 9; line++)
                __builtin_prefetch(ahead + line * 64);
        }
        for (int32_t i = 0; i < NODES_AHEAD; i++)
            prefetch_node(cursor, i);
    }
    prefetch_node(cursor, cursor->position + NODES_AHEAD);
    return arena_at(tree->arena, page_ref(cursor->page, (unsigned)cursor->position++));
}

/* ---- checking ---- */

static int64_t check_level(const struct ordered *tree, uint32_t ref, uint32_t level)
{
    int64_t keys = 0;
    struct slice low = SLICE_LITERAL("");
    for (;;) {
        struct ordered_anchor *a = anchor_at(tree, ref);
        const struct ordered_page *p = page_of(tree, a);
        if (a->level != level || p->level != level || a->back || !slice_equal(page_low(p), low))
            return -1;
        for (unsigned i = 0; i < p->count; i++) {
            struct slice key = page_key(tree->arena, p, i);
            if (slice_compare(key, low) < 0 || (p->has_high && slice_compare(key, page_high(p)) >= 0))
                return -1;
            if (i && slice_compare(page_key(tree->arena, p, i - 1), key) >= 0)
                return -1;
            if (level && !slice_equal(page_low(page_of(tree, anchor_at(tree, page_refs(p)[i]))), key))
                return -1;
        }
        keys += p->count;
        if (!p->has_high)
            return p->next ? -1 : keys;
        low = page_high(p);
        ref = p->next;
    }
}

int64_t ordered_check(const struct ordered *tree)
{
    uint32_t ref = atomic_load_explicit(&((struct ordered *)(uintptr_t)tree)->root, memory_order_acquire);
    for (uint32_t level = anchor_at(tree, ref)->level;; level--) {
        int64_t keys = check_level(tree, ref, level);
        if (level == 0 || keys < 0)
            return keys;
        ref = page_refs(page_of(tree, anchor_at(tree, ref)))[0];
    }
}
