/* ordered_build: fills an empty ordered index from keys that come in ascending order, without searching.
 *
 * Each builder takes one range of the keys and makes leaves of 58 entries (of 64: room for some inserts
 * before the first splits) as they come; several builders work at the same time on neighbouring ranges.
 * ordered_builders_join then builds what needs to know the neighbours, which is each range's first and last
 * leaf, and the inner levels from the bottom up.
 *
 * Thread safety: a builder and its cache belong to one thread at a time. Join is called by one thread after
 * the others have finished (pthread_join or the like), while nobody else uses the tree. Memory for 100 M
 * keys: 4 bytes a leaf while building, 7 MB. The index's memory comes from the arena and CHECKs for it, as
 * everywhere in the index. */
#ifndef KVASIR_INDEX_ORDERED_BUILD_H
#define KVASIR_INDEX_ORDERED_BUILD_H

#include <stdint.h>

#include "base/status.h"
#include "index/arena.h"
#include "index/ordered.h"

enum { ORDERED_BUILD_ENTRIES = 58 };

struct ordered_builder;

/* cache: of the arena in which the nodes are; must outlive the builder. */
struct ordered_builder *ordered_builder_create(struct arena_cache *cache);

/* What it has built stays in the arena; part of a tree only if it was joined. NULL is fine. */
void ordered_builder_destroy(struct ordered_builder *b);

/* ref is a node whose key is complete. The node must stay. False, and nothing is added: its key is not
 * greater than the one before. */
bool ordered_builder_add(struct ordered_builder *b, uint32_t ref);

/* Makes the builders' keys, in this order, the content of the tree, which must be empty (CHECKed) and of the
 * same arena. Builders without keys are fine. Afterwards the builders can only be destroyed. STATUS_CORRUPT:
 * a range does not begin behind the one before; the tree is as it was, but what was built takes up memory
 * until the arena's end. */
STATUS_MUST_USE status_t ordered_builders_join(struct ordered *tree, struct arena_cache *cache,
                                               struct ordered_builder *const *builders, unsigned n);

#endif
