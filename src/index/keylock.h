/* keylock: locks of keys, striped by hash. A stripe is a sequence lock: odd while held, so readers of several
 * keys can check that none of them was written in between.
 *
 * The stripe of a key is the top bits of its hash, as the hash table's bucket is: every bucket lies in one
 * stripe, so the holder of a key's lock may change its bucket too.
 *
 * Lock order: stripes ascending; then locks of the ordered index; then the log's. A holder never waits for
 * anything but those. */
#ifndef KVASIR_INDEX_KEYLOCK_H
#define KVASIR_INDEX_KEYLOCK_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/spin.h"

enum {
    KEYLOCK_STRIPE_BITS = 12,
    KEYLOCK_STRIPES = 1 << KEYLOCK_STRIPE_BITS,
    KEYLOCK_SPINS_MAX =
        2000, /* some microseconds: longer than any section that runs; shorter than a time slice */
};

struct keylock {
    _Atomic uint32_t sequence[KEYLOCK_STRIPES];
};

static inline uint32_t keylock_stripe(uint64_t hash)
{
    return (uint32_t)(hash >> (64 - KEYLOCK_STRIPE_BITS));
}

static inline bool keylock_try(struct keylock *locks, uint32_t stripe)
{
    uint32_t s = atomic_load_explicit(&locks->sequence[stripe], memory_order_relaxed);
    /* Acquire: pairs with keylock_release. */
    return !(s & 1) && atomic_compare_exchange_strong_explicit(&locks->sequence[stripe], &s, s + 1,
                                                               memory_order_acquire, memory_order_relaxed);
}

/* False when the holder takes too long (it was preempted): step aside. */
static inline bool keylock_acquire(struct keylock *locks, uint32_t stripe)
{
    for (unsigned i = 0; i < KEYLOCK_SPINS_MAX; i++) {
        if (keylock_try(locks, stripe))
            return true;
        spin_pause();
    }
    return false;
}

static inline void keylock_release(struct keylock *locks, uint32_t stripe)
{
    uint32_t s = atomic_load_explicit(&locks->sequence[stripe], memory_order_relaxed);
    atomic_store_explicit(&locks->sequence[stripe], s + 1, memory_order_release);
}

/* For optimistic readers: the sequence before (acquire), to be compared after a fence. */
static inline uint32_t keylock_sequence(struct keylock *locks, uint32_t stripe)
{
    return atomic_load_explicit(&locks->sequence[stripe], memory_order_acquire);
}

#endif
