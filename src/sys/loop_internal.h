/* loop_internal: the two production backends, for loop.c, and what they share. */
#ifndef KVASIR_SYS_LOOP_INTERNAL_H
#define KVASIR_SYS_LOOP_INTERNAL_H

#include <sched.h>

#include "sys/clock.h"
#include "sys/loop.h"

enum {
    YIELD_US_LONG = 1000, /* more than anybody needs who is meant */
    YIELD_PART = 16,      /* others have the core for this part of the time, at most, then */
};

STATUS_MUST_USE status_t loop_epoll_create(struct loop **out);
STATUS_MUST_USE status_t loop_uring_create(struct loop **out);

/* Most bytes that one receive may bring now. */
static inline size_t loop_receive_bytes(const struct loop *loop, const struct loop_stream *stream)
{
    return loop->careful && loop->receive_bytes && !stream->roomy ? loop->receive_bytes : LOOP_BUFFER_BYTES;
}

/* Gives the core up to who is ready on it, for as long as that one needs. Where that was long it was somebody
 * else, whom nobody here waits for: then not again for some time. */
static inline void loop_yield(struct loop *loop)
{
    uint64_t now_us = clock_monotonic_us();
    if (now_us < loop->yield_next_us)
        return;
    sched_yield();
    uint64_t took_us = clock_monotonic_us() - now_us;
    if (took_us > YIELD_US_LONG)
        loop->yield_next_us = now_us + YIELD_PART * took_us;
}

#endif
