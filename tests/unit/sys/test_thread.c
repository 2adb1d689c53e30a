/* What a thread asks of the scheduler. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>

#include "sys/thread.h"

struct told {
    bool set, as_batch;
    uint64_t before, after, under_batch;
    int nice;
};

static void *ask(void *context)
{
    struct told *t = context;
    struct sched_param none = {0};
    t->before = thread_slice_us();
    t->set = thread_slice_set(100);
    t->after = thread_slice_us();
    t->nice = getpriority(PRIO_PROCESS, 0);
    pthread_setschedparam(pthread_self(), SCHED_BATCH, &none);
    t->as_batch = thread_slice_set(200);
    t->under_batch = thread_slice_us();
    return NULL;
}

/* The thread that asks has it, no other; its nice value stays, and so does another policy. */
static void test_a_slice_is_the_threads_own(void **state)
{
    struct told t;
    pthread_t thread;
    uint64_t own = thread_slice_us();
    (void)state;
    assert_int_equal(pthread_create(&thread, NULL, ask, &t), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_int_equal(t.after, t.set ? 100 : t.before);
    assert_int_equal(t.nice, getpriority(PRIO_PROCESS, 0));
    assert_int_equal(thread_slice_us(), own);
    assert_false(t.as_batch);
    assert_int_equal(t.under_batch, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_slice_is_the_threads_own),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
