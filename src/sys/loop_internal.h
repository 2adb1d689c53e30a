/* loop_internal: the two production backends, for loop.c, and what they share. */
#ifndef KVASIR_SYS_LOOP_INTERNAL_H
#define KVASIR_SYS_LOOP_INTERNAL_H

#include "sys/loop.h"

STATUS_MUST_USE status_t loop_epoll_create(struct loop **out);
STATUS_MUST_USE status_t loop_uring_create(struct loop **out);

/* Most bytes that one receive may bring now. */
static inline size_t loop_receive_bytes(const struct loop *loop, const struct loop_stream *stream)
{
    return loop->careful && loop->receive_bytes && !stream->roomy ? loop->receive_bytes : LOOP_BUFFER_BYTES;
}

#endif
