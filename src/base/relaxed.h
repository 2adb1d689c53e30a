/* relaxed: a relaxed load through a pointer to const, which C11's generic functions of this compiler do not
 * take. For counters and hints. */
#ifndef KVASIR_BASE_RELAXED_H
#define KVASIR_BASE_RELAXED_H

#include <stdatomic.h>
#include <stdint.h>

static inline uint64_t relaxed_load(const _Atomic uint64_t *value)
{
    return atomic_load_explicit((_Atomic uint64_t *)(uintptr_t)value, memory_order_relaxed);
}

#endif
