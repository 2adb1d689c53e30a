/* What the tests of the event loop share: a loop of either backend, and listing a test for both. */
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

#endif
