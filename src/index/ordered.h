/* ordered: the keys in byte order: ranges, prefixes, children of a path.
 *
 * A B-link tree (Lehman and Yao, "Efficient locking for concurrent operations on B-trees", 1981) whose nodes
 * are copied on write. Every tree node is a small fixed anchor that points to an immutable page: sorted
 * entries, the bounds [low, high) of the keys it is responsible for, and the next anchor to the right. A
 * change builds a new page and swaps the pointer. So searches take no lock, never block and never retry:
 * whoever arrives at a page that has been split goes right. It plays the part of the skip list with fat
 * nodes: the lowest level is a linked list of fat nodes, the upper ones only make finding quick.
 *
 * A page's keys share the prefix of its bounds; an entry keeps the four bytes behind it (its head), so that a
 * search compares integers within a page's own cache lines and follows references only where heads are equal.
 * An entry costs 8 bytes.
 *
 * Thread safety: searches and cursors by anyone inside an epoch section. ordered_insert/_remove by the holder
 * of the key's lock; they take anchors' spin locks, from low levels to high and from left to right, for the
 * copying of a page. */
#ifndef KVASIR_INDEX_ORDERED_H
#define KVASIR_INDEX_ORDERED_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/status.h"
#include "index/arena.h"
#include "index/epoch.h"
#include "index/node.h"

enum {
    ORDERED_ENTRIES_MAX = 64,
    ORDERED_LEVELS_MAX = 16,
};

struct ordered_page; /* ordered_page.h */

struct ordered {
    struct arena *arena;
    _Atomic uint32_t root;      /* anchor: leftmost of the highest level */
    _Atomic uint32_t root_lock; /* one grows the tree at a time */
};

/* cache and epoch below are always those of the calling worker. */
STATUS_MUST_USE status_t ordered_init(struct ordered *tree, struct arena *arena, struct arena_cache *cache);

/* The key must not be there; ref is its node, whose key is complete. hint: from ordered_prefetch, or 0. */
void ordered_insert(struct ordered *tree, struct arena_cache *cache, struct epoch_participant *epoch,
                    uint32_t ref, uint32_t hint);
void ordered_remove(struct ordered *tree, struct arena_cache *cache, struct epoch_participant *epoch,
                    uint32_t ref);

/* Puts another node with the same key in place of one that must be there. By the holder of the key's lock.
 * hint: from ordered_prefetch, or 0. */
void ordered_replace(struct ordered *tree, uint32_t old_ref, uint32_t new_ref, uint32_t hint);

/* Walks down for n keys in step and prefetches their leaves; hints[i] makes an insert of the same epoch
 * section start there. */
void ordered_prefetch(const struct ordered *tree, const struct slice *keys, uint32_t *hints, unsigned n);

struct ordered_cursor {
    const struct ordered *tree;
    const struct ordered_page *page;
    int32_t position;
    bool reverse;
};

/* Before the first key >= from; in reverse: behind the last key < from, or behind the last of all when
 * from.data is NULL. */
void ordered_seek(struct ordered_cursor *cursor, const struct ordered *tree, struct slice from, bool reverse);
/* The next node, NULL at the end. */
struct node *ordered_next(struct ordered_cursor *cursor);

/* Walks the whole structure and checks its invariants (tests; nobody may write meanwhile). Number of keys, -1
 * if broken. */
int64_t ordered_check(const struct ordered *tree);

#endif
