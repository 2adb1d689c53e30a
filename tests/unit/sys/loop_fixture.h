/* What the tests of the event loop share: a loop of either backend, and listing a test for both. Who includes
 * it defines setup and teardown. */
#ifndef KVASIR_TESTS_LOOP_FIXTURE_H
#define KVASIR_TESTS_LOOP_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "sys/loop.h"

static inline struct loop *loop_fixture_create(enum loop_backend backend)
{
    struct loop *loop = NULL;
    status_t s = loop_create(backend, &loop, NULL);
    if (!status_is_ok(&s))
        fail_msg("%s", s.text);
    assert_int_equal(loop->backend, backend);
    return loop;
}

static int setup(void **state, enum loop_backend backend);
static int teardown(void **state);

static int setup_uring(void **state)
{
    return setup(state, LOOP_URING);
}

static int setup_epoll(void **state)
{
    return setup(state, LOOP_EPOLL);
}

#define BOTH(test)                                                                                           \
    {#test " (io_uring)", test, setup_uring, teardown, NULL},                                                \
    {                                                                                                        \
#test " (epoll)", test, setup_epoll, teardown, NULL                                                  \
    }

#endif
