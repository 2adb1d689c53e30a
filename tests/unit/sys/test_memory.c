/* What the allocator gives back, and who does it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/types.h>

#include "sys/memory.h"

enum { THREADS_MAX = 64 };

/* The ids of this process's threads. */
static unsigned threads(pid_t ids[THREADS_MAX])
{
    unsigned n = 0;
    DIR *folder = opendir("/proc/self/task");
    assert_non_null(folder);
    for (struct dirent *e = readdir(folder); e; e = readdir(folder)) {
        pid_t id = (pid_t)strtol(e->d_name, NULL, 10); /* 0: not a thread */
        if (id == 0)
            continue;
        assert_true(n < THREADS_MAX);
        ids[n++] = id;
    }
    closedir(folder);
    return n;
}

/* Those of `now` that are not among `before`, moved to its front. */
static unsigned new_ones(pid_t *now, unsigned count, const pid_t *before, unsigned before_count)
{
    unsigned n = 0;
    for (unsigned i = 0; i < count; i++) {
        bool is_new = true;
        for (unsigned j = 0; j < before_count; j++)
            is_new &= before[j] != now[i];
        if (is_new)
            now[n++] = now[i];
    }
    return n;
}

static void *nothing(void *unused)
{
    return unused;
}

/* A sanitizer starts a thread of its own with the first that anybody starts: after this it is there. */
static void start_a_thread(void)
{
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, nothing, NULL), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
}

/* The allocator's thread, where it has one, keeps nobody from a core; the one that asked for it is as it was.
 */
static void test_memory_is_given_back_by_an_idle_thread(void **state)
{
    pid_t before[THREADS_MAX], now[THREADS_MAX];
    unsigned had, wanted = memory_resident_is_ours(), added;
    int own = sched_getscheduler(0);
    (void)state;
    start_a_thread();
    had = threads(before);
    memory_give_back_unasked();
    assert_int_equal(sched_getscheduler(0), own);
    /* One that has been joined can be seen for a moment. */
    while ((added = new_ones(now, threads(now), before, had)) != wanted)
        sched_yield();
    for (unsigned i = 0; i < added; i++)
        assert_int_equal(sched_getscheduler(now[i]), SCHED_IDLE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_memory_is_given_back_by_an_idle_thread),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
