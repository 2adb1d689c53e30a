#include "index/arena.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/check.h"
#include "base/spin.h"

enum {
    SPLIT_CLASSES = ARENA_SMALL_CLASSES,
    MERGE_PIECES = 1024,   /* some 100 us */
    MERGE_PAUSE_PIECE = 2, /* allocations without another try when merging gave nothing, for each piece */
    REGION_BYTES = ARENA_REGION_BYTES,
    CACHE_BLOCKS_MAX = 1024,              /* a cache with more free blocks of a class shares half of them */
    SHARED_BLOCKS = CACHE_BLOCKS_MAX / 2, /* in each shared list */
    MERGE_STEP_WORDS = 512,               /* of marks, that a step looks at */
    SHARE_LOOK = 256, /* where memory is short, one that has so many more than that shares them */
};

_Static_assert(ARENA_CLASSES <= 256, "a class fits a byte");

/* A free block starts with the reference of the next free one; the head block of a shared list also has, in
 * its second word, the reference of the next shared list. Those are taken in the order in which they came. */
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
        atomic_init(&arena->shared[c].count, 0);
        arena->shared[c].last = 0;
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

/* Fresh memory for the cache. False: the address space is used up. */
static bool take_region(struct arena_cache *cache)
{
    struct arena *arena = cache->arena;
    /* Relaxed: the region is this cache's alone once the addition is done. */
    uint64_t start = atomic_fetch_add_explicit(&arena->used_bytes, REGION_BYTES, memory_order_relaxed);
    if (start + REGION_BYTES > arena->reserved_bytes) {
        atomic_fetch_sub_explicit(&arena->used_bytes, REGION_BYTES, memory_order_relaxed);
        return false;
    }
    if (cache->bump_end != start) /* else the old rest and the new region are one piece */
        cache->bump = start;
    cache->bump_end = start + REGION_BYTES;
    if (cache->bump == 0)
        cache->bump = ARENA_UNIT_BYTES; /* reference 0 means none */
    return true;
}

void arena_prepare(struct arena_cache *cache)
{
    if (cache->bump == cache->bump_end && take_region(cache))
        memset(cache->arena->base + cache->bump, 0, cache->bump_end - cache->bump);
}

static uint32_t alloc_fresh(struct arena_cache *cache, size_t bytes)
{
    if (cache->bump_end - cache->bump < bytes && !take_region(cache))
        return 0;
    uint32_t ref = (uint32_t)(cache->bump / ARENA_UNIT_BYTES);
    cache->bump += bytes;
    return ref;
}

/* Under the lock. Relaxed: others take it for a hint. */
static void count_shared(struct arena *arena, unsigned class, uint32_t more)
{
    uint32_t count = atomic_load_explicit(&arena->shared[class].count, memory_order_relaxed);
    atomic_store_explicit(&arena->shared[class].count, count + more, memory_order_relaxed);
}

static uint32_t take_shared(struct arena_cache *cache, unsigned class)
{
    struct arena *arena = cache->arena;
    /* Relaxed: a hint; looked at again under the lock. */
    if (atomic_load_explicit(&arena->shared[class].head, memory_order_relaxed) == 0)
        return 0;
    spin_lock(&arena->shared[class].lock);
    uint32_t list = atomic_load_explicit(&arena->shared[class].head, memory_order_relaxed);
    if (list) {
        atomic_store_explicit(&arena->shared[class].head, links(arena, list)[1], memory_order_relaxed);
        count_shared(arena, class, (uint32_t)-1);
    }
    if (arena->shared[class].last == list)
        arena->shared[class].last = 0;
    spin_unlock(&arena->shared[class].lock);
    return list;
}

static inline uint64_t freed_of(const struct arena_cache *cache)
{
    return atomic_load_explicit(&((struct arena_cache *)(uintptr_t)cache)->freed, memory_order_relaxed);
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
        cache->free[class].count = SHARED_BLOCKS;
    }
    cache->free[class].head = links(cache->arena, ref)[0];
    cache->free[class].count--;
    return ref;
}

/* Half of the cache's blocks become the last shared list. */
static void share_half(struct arena_cache *cache, unsigned class)
{
    struct arena *arena = cache->arena;
    uint32_t first = cache->free[class].head, last = first;
    for (unsigned i = 1; i < SHARED_BLOCKS; i++)
        last = links(arena, last)[0];
    cache->free[class].head = links(arena, last)[0];
    cache->free[class].count -= SHARED_BLOCKS;
    links(arena, last)[0] = 0;
    links(arena, first)[1] = 0;
    spin_lock(&arena->shared[class].lock);
    if (arena->shared[class].last)
        links(arena, arena->shared[class].last)[1] = first;
    else
        atomic_store_explicit(&arena->shared[class].head, first, memory_order_relaxed);
    arena->shared[class].last = first;
    count_shared(arena, class, 1);
    spin_unlock(&arena->shared[class].lock);
}

/* Fresh memory that is there already is kept too, for what no pieces are large enough for. */
static bool is_short(const struct arena *arena)
{
    return atomic_load_explicit(&((struct arena *)(uintptr_t)arena)->used_bytes, memory_order_relaxed) +
               REGION_BYTES >
           atomic_load_explicit(&((struct arena *)(uintptr_t)arena)->soft_bytes, memory_order_relaxed);
}

static inline void put_free(struct arena_cache *cache, uint32_t ref, unsigned class)
{
    links(cache->arena, ref)[0] = cache->free[class].head;
    cache->free[class].head = ref;
    uint32_t count = ++cache->free[class].count;
    if (UNLIKELY(count > SHARED_BLOCKS && count % SHARE_LOOK == 0) &&
        (count > CACHE_BLOCKS_MAX || is_short(cache->arena)))
        share_half(cache, class);
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

/* From the smallest that there is, of the classes from `least` up to below `end`. */
static uint32_t take_split(struct arena_cache *cache, unsigned class, unsigned least, unsigned end)
{
    uint32_t ref = 0;
    for (unsigned larger = least; larger < end && larger < SPLIT_CLASSES && ref == 0; larger++)
        ref = split(cache, class, larger);
    return ref;
}

/* Blocks from here on leave a rest that is good for the same. */
static inline unsigned twice(unsigned class)
{
    return 2 * class + 1;
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

/* Takes a shared list of the class or, where there is none, the cache's own blocks. */
static unsigned gather_class(struct arena_cache *cache, struct piece *pieces, unsigned most, unsigned class)
{
    unsigned n = 0;
    uint32_t shared = take_shared(cache, class);
    for (uint32_t ref = shared; ref; ref = links(cache->arena, ref)[0])
        pieces[n++] = (struct piece){ref, class + 1};
    while (shared == 0 && n < most && cache->free[class].head)
        pieces[n++] = (struct piece){take_free(cache, class), class + 1};
    return n;
}

/* Takes free blocks of less than twice the size, up to MERGE_PIECES; others each time: what is not of use
 * goes behind the other shared lists. */
static unsigned gather(struct arena_cache *cache, struct piece *pieces, unsigned class)
{
    unsigned n = 0, classes = twice(class) < SPLIT_CLASSES ? twice(class) : SPLIT_CLASSES;
    for (unsigned i = 0; i < classes && n + SHARED_BLOCKS <= MERGE_PIECES; i++)
        n += gather_class(cache, pieces + n, MERGE_PIECES - n, cache->merge_at++ % classes);
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

/* Neighbours among the cache's small free blocks become larger ones. How many blocks were looked at; none
 * soon after it was in vain. */
static unsigned merge(struct arena_cache *cache, unsigned class)
{
    if (cache->merge_pause[class]) {
        cache->merge_pause[class]--;
        return 0;
    }
    struct piece *pieces = malloc(MERGE_PIECES * sizeof *pieces);
    if (pieces == NULL)
        return 0;
    unsigned n = gather(cache, pieces, class);
    qsort(pieces, n, sizeof *pieces, compare_pieces);
    for (unsigned i = 0; i < n;) {
        struct piece run = pieces[i++];
        while (i < n && pieces[i].ref == run.ref + run.units)
            run.units += pieces[i++].units;
        put_run(cache, run, class + 1);
    }
    free(pieces);
    return n;
}

static void merged_in_vain(struct arena_cache *cache, unsigned class, unsigned pieces)
{
    cache->merge_pause[class] = (uint16_t)(pieces * MERGE_PAUSE_PIECE);
}

/* A block made of free ones side by side. */
static uint32_t take_merged(struct arena_cache *cache, unsigned class)
{
    unsigned pieces = merge(cache, class);
    if (pieces == 0)
        return 0;
    uint32_t ref = take_free(cache, class);
    if (ref == 0)
        ref = take_split(cache, class, twice(class), SPLIT_CLASSES);
    if (ref == 0)
        merged_in_vain(cache, class, pieces);
    return ref;
}

/* Without fresh memory: in the order in which the least is left over that is too small for others. */
static uint32_t take_piece(struct arena_cache *cache, unsigned class)
{
    uint32_t ref = take_split(cache, class, twice(class), SPLIT_CLASSES);
    if (ref == 0)
        ref = take_merged(cache, class);
    if (ref == 0)
        ref = take_split(cache, class, class + 1, twice(class));
    return ref;
}

/* ---- merging all that is free ----
 *
 * Of much that was freed in no order, samples have few neighbours. So, in steps, small free blocks are taken
 * out of the shared lists and the cache's own, each unit of them marked by a bit, and what is marked side by
 * side is made blocks of again. */

status_t arena_merge_begin(struct arena_cache *cache, struct arena_merge *merge)
{
    struct arena *arena = cache->arena;
    *merge = (struct arena_merge){.units = atomic_load_explicit(&arena->used_bytes, memory_order_relaxed) /
                                           ARENA_UNIT_BYTES};
    merge->bits = calloc(merge->units / 64 + 1, sizeof *merge->bits);
    merge->lists_left = 1;
    return merge->bits ? status_ok() : status_error(STATUS_NO_SPACE, "no memory to merge free blocks");
}

void arena_merge_cancel(struct arena_merge *merge)
{
    free(merge->bits);
    merge->bits = NULL;
}

/* Marks a list's blocks. Those of regions that have come since the beginning go back. */
static void mark_list(struct arena_cache *cache, struct arena_merge *merge, uint32_t ref, unsigned class)
{
    for (uint32_t next; ref; ref = next) {
        next = links(cache->arena, ref)[0];
        if (ref + class >= merge->units) {
            put_free(cache, ref, class);
            continue;
        }
        for (uint32_t unit = ref; unit <= ref + class; unit++)
            merge->bits[unit / 64] |= (uint64_t)1 << unit % 64;
    }
}

/* The next list of the class: first the cache's own, then shared ones, as many as there can have been. False:
 * there is none. */
static bool mark_next(struct arena_cache *cache, struct arena_merge *merge)
{
    unsigned class = merge->class;
    uint32_t list;
    if (merge->own_taken != class + 1) {
        list = cache->free[class].head;
        cache->free[class].head = cache->free[class].count = 0;
        merge->own_taken = class + 1;
        merge->lists_left = merge->units / (class + 1) / SHARED_BLOCKS + 1;
    } else {
        list = merge->lists_left-- ? take_shared(cache, class) : 0;
        if (list == 0)
            return false;
    }
    mark_list(cache, merge, list, class);
    return true;
}

static void end_run(struct arena_cache *cache, struct arena_merge *merge)
{
    if (merge->run_units)
        put_run(cache, (struct piece){merge->run_ref, merge->run_units}, 1);
    merge->run_units = 0;
}

static void scan_word(struct arena_cache *cache, struct arena_merge *merge, uint64_t word)
{
    if (word == 0) {
        end_run(cache, merge);
        return;
    }
    for (unsigned bit = 0; bit < 64; bit++) {
        if (!(word >> bit & 1)) {
            end_run(cache, merge);
        } else {
            if (merge->run_units == 0)
                merge->run_ref = (uint32_t)(merge->at * 64 + bit);
            merge->run_units++;
        }
    }
}

bool arena_merge_step(struct arena_cache *cache, struct arena_merge *merge)
{
    if (merge->class < SPLIT_CLASSES) {
        if (!mark_next(cache, merge))
            merge->class += 1;
        return true;
    }
    for (unsigned i = 0; i < MERGE_STEP_WORDS && merge->at <= merge->units / 64; i++, merge->at++)
        scan_word(cache, merge, merge->bits[merge->at]);
    if (merge->at <= merge->units / 64)
        return true;
    end_run(cache, merge);
    memset(cache->merge_pause, 0, sizeof cache->merge_pause);
    arena_merge_cancel(merge);
    return false;
}

uint32_t arena_alloc(struct arena_cache *cache, unsigned class)
{
    DCHECK(class < ARENA_CLASSES);
    count_live(cache, (int64_t)arena_class_bytes(class));
    uint32_t ref = take_free(cache, class);
    if (LIKELY(ref != 0))
        return ref;
    if (UNLIKELY(is_short(cache->arena)) && class < SPLIT_CLASSES && (ref = take_piece(cache, class)) != 0)
        return ref;
    return alloc_fresh(cache, arena_class_bytes(class));
}

/* Are there so many bytes of free blocks that such ones can be made from? */
static bool has_free(const struct arena_cache *cache, unsigned class, uint64_t wanted)
{
    uint64_t bytes = cache->bump_end - cache->bump;
    for (unsigned c = class; c < SPLIT_CLASSES && bytes < wanted; c++) {
        /* Relaxed: a hint. */
        uint64_t lists = atomic_load_explicit(&cache->arena->shared[c].count, memory_order_relaxed);
        uint64_t blocks = cache->free[c].count + lists * SHARED_BLOCKS;
        if (blocks)
            bytes += blocks * ((c + 1) / (class + 1)) * arena_class_bytes(class);
    }
    return bytes >= wanted;
}

bool arena_has_free(struct arena_cache *cache, unsigned class, uint64_t count)
{
    uint64_t wanted = count * arena_class_bytes(class);
    DCHECK(class < SPLIT_CLASSES);
    if (has_free(cache, class, wanted))
        return true;
    unsigned pieces = merge(cache, class);
    if (pieces == 0)
        return false;
    bool has = has_free(cache, class, wanted);
    if (!has)
        merged_in_vain(cache, class, pieces);
    return has;
}

void arena_free(struct arena_cache *cache, uint32_t ref, unsigned class)
{
    DCHECK(ref != 0 && class < ARENA_CLASSES);
    count_live(cache, -(int64_t)arena_class_bytes(class));
    atomic_store_explicit(&cache->freed, freed_of(cache) + 1, memory_order_relaxed);
    put_free(cache, ref, class);
}
