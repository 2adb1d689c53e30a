/* loop_internal: the two production backends, for loop.c. */
#ifndef KVASIR_SYS_LOOP_INTERNAL_H
#define KVASIR_SYS_LOOP_INTERNAL_H

#include "sys/loop.h"

STATUS_MUST_USE status_t loop_epoll_create(struct loop **out);
STATUS_MUST_USE status_t loop_uring_create(struct loop **out);

#endif
