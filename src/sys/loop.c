#include <stdio.h>

#include "sys/loop.h"
#include "sys/loop_internal.h"

enum { WHY_BYTES = 128 };

status_t loop_create(enum loop_backend backend, struct loop **out, char *why)
{
    if (why)
        why[0] = '\0';
    if (backend == LOOP_EPOLL)
        return loop_epoll_create(out);
    status_t s = loop_uring_create(out);
    if (status_is_ok(&s) || backend == LOOP_URING)
        return s;
    if (why)
        snprintf(why, WHY_BYTES, "%.*s", WHY_BYTES - 1, s.text);
    return loop_epoll_create(out);
}
