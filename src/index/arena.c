#include "index/arena.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/check.h"
#include "base/spin.h"

enum {
    SPLIT_CLASSES = 64, /* up to 1 KiB: there every multiple of the unit is a class */
    MERGE_PIECES = 16384,
    MERGE_PAUSE = 10000,     /* allocations without another try when merging has given nothing */
    REGION_BYTES = 2 << 20,  /* what a cache takes at a time: one huge page */
    CACHE_BLOCKS_MAX = 4096, /* a cache with more free blocks of a class shares half of them */
};

_Static_assert(ARENA_CLASSES <= 256, "a class fits a byte");

/* A free block starts with the reference of the next free one; the head block of a shared list also has, in
 * its second word, the reference of the next shared list. */
static uint32_t *links(const struct arena *arena, uint32_t ref)
{
    return arena_at(arena, ref);
}

status_t arena_init(struct arena *arena)
{
    uint64_t physical = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    uint64_t limit = ((uint64_t)UINT32_MAX + 1) * ARENA_UNIT_BYTES;
    uint64_t want = round_up(physical * 2, REGION_BYTES);
    arena->reserved_bytes = want < limit ? want : limit;
    /* One region more, so that the base can be aligned to huge pages. */
    void *p = mmap(NULL, arena->reserved_bytes + REGION_BYTES, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return status_errno(errno,
                            "cannot reserve %llu MiB of address space for the index (raise `ulimit -v`)",
                            (unsigned long long)(arena->reserved_bytes >> 20));
    uint64_t aligned = round_up((uint64_t)(uintptr_t)p, REGION_BYTES);
    uint64_t front = aligned - (uint64_t)(uintptr_t)p;
    if (front)
        munmap(p, front);
    munmap((char *)p + front + arena->reserved_bytes, REGION_BYTES - front);
    arena->base = (char *)p + front;
    madvise(arena->base, arena->reserved_bytes, MADV_HUGEPAGE);
    atomic_init(&arena->used_bytes, 0);
    atomic_init(&arena->soft_bytes, UINT64_MAX);
    for (unsigned c = 0; c < ARENA_CLASSES; c++) {
        atomic_init(&arena->shared[c].lock, 0);
        atomic_init(&arena->shared[c].head, 0);
    }
    return status_ok();
}

void arena_deinit(struct arena *arena)
{
    munmap(arena->base, arena->reserved_bytes);
}

void arena_cache_init(struct arena_cache *cache, struct arena *arena)
{
    memset(cache, 0, sizeof *cache);
    cache->arena = arena;
}

static uint32_t alloc_fresh(struct arena_cache *cache, size_t bytes)
{
    if (cache->bump_end - cache->bump < bytes) {
        struct arena *arena = cache->arena;
        /* Relaxed: the region is this cache's alone once the addition is done. */
        uint64_t start = atomic_fetch_add_explicit(&arena->used_bytes, REGION_BYTES, memory_order_relaxed);
        if (start + REGION_BYTES > arena->reserved_bytes) {
            atomic_fetch_sub_explicit(&arena->used_bytes, REGION_BYTES, memory_order_relaxed);
            return 0;
        }
        if (cache->bump_end != start) /* else the old rest and the new region are one piece */
            cache->bump = start;
        cache->bump_end = start + REGION_BYTES;
        if (cache->bump == 0)
            cache->bump = ARENA_UNIT_BYTES; /* reference 0 means none */
    }
    uint32_t ref = (uint32_t)(cache->bump / ARENA_UNIT_BYTES);
    cache->bump += bytes;
    return ref;
}

static uint32_t take_shared(struct arena_cache *cache, unsigned class)
{
    struct arena *arena = cache->arena;
    /* Relaxed: a hint; looked at again under the lock. */
    if (atomic_load_explicit(&arena->shared[class].head, memory_order_relaxed) == 0)
        return 0;
    spin_lock(&arena->shared[class].lock);
    uint32_t list = atomic_load_explicit(&arena->shared[class].head, memory_order_relaxed);
    if (list)
        atomic_store_explicit(&arena->shared[class].head, links(arena, list)[1], memory_order_relaxed);
    spin_unlock(&arena->shared[class].lock);
    return list;
}

static inline void count_live(struct arena_cache *cache, int64_t bytes)
{
    atomic_store_explicit(&cache->live_bytes,
                          atomic_load_explicit(&cache->live_bytes, memory_order_relaxed) + bytes,
                          memory_order_relaxed);
}

/* A free block of the class from the cache's own list or the shared ones; 0: none. */
static inline uint32_t take_free(struct arena_cache *cache, unsigned class)
{
    uint32_t ref = cache->free[class].head;
    if (UNLIKELY(ref == 0)) {
        ref = take_shared(cache, class);
        if (ref == 0)
            return 0;
        cache->free[class].count = CACHE_BLOCKS_MAX / 2;
    }
    cache->free[class].head = links(cache->arena, ref)[0];
    cache->free[class].count--;
    return ref;
}

static void put_free(struct arena_cache *cache, uint32_t ref, unsigned class)
{
    links(cache->arena, ref)[0] = cache->free[class].head;
    cache->free[class].head = ref;
    cache->free[class].count++;
}

/* The front of a free block of the class `larger`; the rest becomes a free block of its own. */
static uint32_t split(struct arena_cache *cache, unsigned class, unsigned larger)
{
    uint32_t ref = take_free(cache, larger);
    if (ref == 0)
        return 0;
    put_free(cache, ref + class + 1, larger - class - 1); /* a small class has class + 1 units */
    return ref;
}

/* Blocks of at least twice the size come first: they leave a rest that is good for the same. */
static uint32_t take_split(struct arena_cache *cache, unsigned class)
{
    uint32_t ref = 0;
    unsigned twice = 2 * class + 1;
    for (unsigned larger = twice; larger < SPLIT_CLASSES && ref == 0; larger++)
        ref = split(cache, class, larger);
    for (unsigned larger = class + 1; larger < twice && larger < SPLIT_CLASSES && ref == 0; larger++)
        ref = split(cache, class, larger);
    return ref;
}

/* ---- merging ----
 *
 * What was allocated one after the other is often freed so too (values leave memory in the order in which
 * they came), and then lies side by side. */

struct piece {
    uint32_t ref, units;
};

static int compare_pieces(const void *a, const void *b)
{
    const struct piece *x = a, *y = b;
    return (x->ref > y->ref) - (x->ref < y->ref);
}

/* Takes the cache's free blocks of the small classes below `class`, up to MERGE_PIECES. */
static unsigned gather(struct arena_cache *cache, struct piece *pieces, unsigned class)
{
    unsigned n = 0;
    for (unsigned c = 0; c < class; c++) {
        for (uint32_t ref; n < MERGE_PIECES && (ref = take_free(cache, c)) != 0;)
            pieces[n++] = (struct piece){ref, c + 1};
    }
    return n;
}

/* Free memory of any length becomes free blocks, as many as possible of which `wanted` units can be split. */
static void put_run(struct arena_cache *cache, struct piece run, uint32_t wanted)
{
    uint32_t most = SPLIT_CLASSES / wanted * wanted;
    while (run.units) {
        uint32_t units = run.units < most ? run.units : most;
        put_free(cache, run.ref, units - 1);
        run.ref += units;
        run.units -= units;
    }
}

/* Neighbours among the cache's small free blocks become larger ones. */
static void merge(struct arena_cache *cache, unsigned class)
{
    struct piece *pieces = malloc(MERGE_PIECES * sizeof *pieces);
    if (pieces == NULL)
        return;
    unsigned n = gather(cache, pieces, class);
    qsort(pieces, n, sizeof *pieces, compare_pieces);
    for (unsigned i = 0; i < n;) {
        struct piece run = pieces[i++];
        while (i < n && pieces[i].ref == run.ref + run.units)
            run.units += pieces[i++].units;
        put_run(cache, run, class + 1);
    }
    free(pieces);
}

/* A block made of smaller free ones. Not tried again soon when there was none. */
static uint32_t take_merged(struct arena_cache *cache, unsigned class)
{
    if (cache->merge_pause) {
        cache->merge_pause--;
        return 0;
    }
    merge(cache, class);
    uint32_t ref = take_free(cache, class);
    if (ref == 0)
        ref = take_split(cache, class);
    if (ref == 0)
        cache->merge_pause = MERGE_PAUSE;
    return ref;
}

static bool is_short(const struct arena_cache *cache, size_t bytes)
{
    struct arena *arena = cache->arena;
    return cache->bump_end - cache->bump < bytes &&
           atomic_load_explicit(&arena->used_bytes, memory_order_relaxed) + REGION_BYTES >
               atomic_load_explicit(&arena->soft_bytes, memory_order_relaxed);
}

uint32_t arena_alloc(struct arena_cache *cache, unsigned class)
{
    DCHECK(class < ARENA_CLASSES);
    count_live(cache, (int64_t)arena_class_bytes(class));
    uint32_t ref = take_free(cache, class);
    if (LIKELY(ref != 0))
        return ref;
    if (UNLIKELY(is_short(cache, arena_class_bytes(class))) && class < SPLIT_CLASSES &&
        ((ref = take_split(cache, class)) || (ref = take_merged(cache, class))))
        return ref;
    return alloc_fresh(cache, arena_class_bytes(class));
}

static void share_half(struct arena_cache *cache, unsigned class)
{
    struct arena *arena = cache->arena;
    uint32_t first = cache->free[class].head, last = first;
    for (unsigned i = 1; i < CACHE_BLOCKS_MAX / 2; i++)
        last = links(arena, last)[0];
    cache->free[class].head = links(arena, last)[0];
    cache->free[class].count -= CACHE_BLOCKS_MAX / 2;
    links(arena, last)[0] = 0;
    spin_lock(&arena->shared[class].lock);
    links(arena, first)[1] = atomic_load_explicit(&arena->shared[class].head, memory_order_relaxed);
    atomic_store_explicit(&arena->shared[class].head, first, memory_order_relaxed);
    spin_unlock(&arena->shared[class].lock);
}

void arena_free(struct arena_cache *cache, uint32_t ref, unsigned class)
{
    DCHECK(ref != 0 && class < ARENA_CLASSES);
    count_live(cache, -(int64_t)arena_class_bytes(class));
    links(cache->arena, ref)[0] = cache->free[class].head;
    cache->free[class].head = ref;
    if (++cache->free[class].count > CACHE_BLOCKS_MAX)
        share_half(cache, class);
}
