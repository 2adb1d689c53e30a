/* arena: memory for the index, addressed by 32-bit references.
 *
 * One contiguous reservation of address space, handed out in units of 16 bytes, so that a reference has 32
 * bits and an arena reaches 64 GiB. Half-size references halve the hash table's slots and the ordered index's
 * entries. Memory is backed by huge pages where the kernel gives them: a random access then costs no page
 * walk.
 *
 * Blocks come in size classes: steps of 16 bytes to 1 KiB, then four to a doubling, to 1 MiB. Freed blocks go
 * to lists by class, first of the worker's cache, then shared. Memory never goes back to the system before
 * arena_deinit; where it is short (arena_soften), free blocks side by side are merged, and larger ones
 * split: first such as leave a rest that is of use.
 *
 * Thread safety: an arena is shared; a cache belongs to one thread. Reference 0 is never handed out. */
#ifndef KVASIR_INDEX_ARENA_H
#define KVASIR_INDEX_ARENA_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

enum {
    ARENA_UNIT_BYTES = 16,
    ARENA_SMALL_CLASSES = 64,     /* up to 1 KiB: every multiple of the unit is one */
    ARENA_REGION_BYTES = 2 << 20, /* fresh memory that a cache takes at a time: one huge page */
    ARENA_CLASSES = ARENA_SMALL_CLASSES + 4 * 10,
    ARENA_BLOCK_BYTES_MAX = 1 << 20,
};

struct arena {
    char *base;
    uint64_t reserved_bytes;
    _Atomic uint64_t used_bytes; /* handed to caches, from the front; never shrinks */
    _Atomic uint64_t soft_bytes; /* beyond so many used bytes, larger free blocks are split first */
    struct {
        _Atomic uint32_t lock;
        _Atomic uint32_t head;  /* list of lists: see arena.c; written under lock */
        _Atomic uint32_t count; /* of lists; written under lock */
        uint32_t last;          /* of them; under lock */
    } shared[ARENA_CLASSES];
};

struct arena_cache {
    struct arena *arena;
    uint64_t bump, bump_end; /* bytes from base: fresh memory of this cache */
    _Atomic int64_t
        live_bytes; /* allocated here less freed here; written by the owner, read by any (relaxed) */
    struct {
        uint32_t head;
        uint32_t count;
    } free[ARENA_CLASSES];
    uint16_t merge_pause[ARENA_SMALL_CLASSES]; /* allocations until merging is tried again */
    _Atomic uint64_t freed;                    /* blocks; written by the owner, read by any (relaxed) */
    unsigned merge_at; /* counts the classes whose free blocks merging has looked at */
};

STATUS_MUST_USE status_t arena_init(struct arena *arena);
void arena_deinit(struct arena *arena);
void arena_cache_init(struct arena_cache *cache, struct arena *arena);

static inline unsigned arena_class(size_t bytes)
{
    if (bytes <= 1024)
        return bytes ? (unsigned)((bytes - 1) / 16) : 0;
    unsigned shift = 63u - (unsigned)__builtin_clzll(bytes - 1); /* 2^shift < bytes <= 2^(shift+1) */
    unsigned quarter = (unsigned)((bytes - 1) >> (shift - 2)) & 3;
    return 64 + (shift - 10) * 4 + quarter;
}

static inline size_t arena_class_bytes(unsigned class)
{
    if (class < 64)
        return (class + 1) * 16;
    unsigned shift = 10 + (class - 64) / 4;
    return ((size_t)1 << shift) + ((size_t)((class - 64) % 4 + 1) << (shift - 2));
}

static inline void *arena_at(const struct arena *arena, uint32_t ref)
{
    return arena->base + (uint64_t)ref * ARENA_UNIT_BYTES;
}

static inline uint32_t arena_ref(const struct arena *arena, const void *block)
{
    return (uint32_t)((uint64_t)((const char *)block - arena->base) / ARENA_UNIT_BYTES);
}

/* Address space that no cache has yet; blocks on free lists come on top. Relaxed: a hint. */
static inline uint64_t arena_room(const struct arena *arena)
{
    return arena->reserved_bytes -
           atomic_load_explicit(&((struct arena *)(uintptr_t)arena)->used_bytes, memory_order_relaxed);
}

/* From so many used bytes on, free blocks are split before fresh memory is taken. UINT64_MAX (as at the
 * start): never. Any thread. */
static inline void arena_soften(struct arena *arena, uint64_t bytes)
{
    /* Relaxed: only a preference. */
    atomic_store_explicit(&arena->soft_bytes, bytes, memory_order_relaxed);
}

/* A region for the cache, written to, if it has no fresh memory: so that its first block does not take one.
 */
void arena_prepare(struct arena_cache *cache);
/* A block of the class, content undefined, aligned to 16. 0 when the arena's address space is used up. */
uint32_t arena_alloc(struct arena_cache *cache, unsigned class);
void arena_free(struct arena_cache *cache, uint32_t ref, unsigned class);
/* Are there so many blocks of a small class in what the cache can have without fresh memory? If not, merges
 * some of what is free side by side; so the next answer may be another one. */
bool arena_has_free(struct arena_cache *cache, unsigned class, uint64_t count);

/* Makes all small free blocks that lie side by side larger ones, but those in other caches; in steps of some
 * 100 us. Meanwhile they are not free. Takes 1/128 of the arena's size. One at a time, by the cache's owner.
 */
struct arena_merge {
    uint64_t *bits; /* a bit for each unit that is free; NULL: none is under way */
    uint64_t units, lists_left;
    uint64_t at; /* word of bits that is looked at next */
    unsigned class, own_taken;
    uint32_t run_ref, run_units; /* found, and perhaps not at its end yet */
};

STATUS_MUST_USE status_t arena_merge_begin(struct arena_cache *cache, struct arena_merge *merge);
/* False: that was the last one. */
bool arena_merge_step(struct arena_cache *cache, struct arena_merge *merge);
/* For the end of the arena: what has been taken out is lost. */
void arena_merge_cancel(struct arena_merge *merge);

#endif
