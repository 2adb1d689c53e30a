/* spin: a word-sized lock for sections of some tens of nanoseconds that make no system call.
 *
 * Thread safety: any. A waiter whose lock holder was preempted gives its time slice away after a while. */
#ifndef KVASIR_BASE_SPIN_H
#define KVASIR_BASE_SPIN_H

#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

static inline void spin_pause(void)
{
    __builtin_ia32_pause();
}

/* Acquire; pairs with spin_unlock's release. */
static inline bool spin_try_lock(_Atomic uint32_t *lock)
{
    return atomic_load_explicit(lock, memory_order_relaxed) == 0 &&
           atomic_exchange_explicit(lock, 1, memory_order_acquire) == 0;
}

static inline void spin_lock(_Atomic uint32_t *lock)
{
    for (unsigned tries = 1; !spin_try_lock(lock); tries++) {
        spin_pause();
        if (tries % 1024 == 0)
            sched_yield();
    }
}

static inline void spin_unlock(_Atomic uint32_t *lock)
{
    atomic_store_explicit(lock, 0, memory_order_release);
}

#endif
