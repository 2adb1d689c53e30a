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

static void *policy_of_this(void *out)
{
    *(int *)out = sched_getscheduler(0);
    return NULL;
}

struct idle_told {
    bool set;
    int own, made;
};

static void *become_idle(void *context)
{
    struct idle_told *t = context;
    pthread_t made;
    t->set = thread_idle_set();
    t->own = sched_getscheduler(0);
    if (pthread_create(&made, NULL, policy_of_this, &t->made) == 0)
        pthread_join(made, NULL);
    return NULL;
}

/* The thread and those that it makes, not the one that made it. */
static void test_an_idle_thread_makes_idle_ones(void **state)
{
    struct idle_told t = {.made = -1};
    pthread_t thread;
    int own = sched_getscheduler(0);
    (void)state;
    assert_int_equal(pthread_create(&thread, NULL, become_idle, &t), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_true(t.set);
    assert_int_equal(t.own, SCHED_IDLE);
    assert_int_equal(t.made, SCHED_IDLE);
    assert_int_equal(sched_getscheduler(0), own);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_slice_is_the_threads_own),
        cmocka_unit_test(test_an_idle_thread_makes_idle_ones),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
