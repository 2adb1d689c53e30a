/* One run: its threads, its end by a signal, its result. */
#include "tools/bench.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

/* The run that SIGINT and SIGTERM end; NULL between runs. */
static struct bench_shared *_Atomic interruptible;

static void on_signal(int number)
{
    (void)number;
    /* acquire: pairs with the release store in bench_run, so that a set pointer's target is there */
    struct bench_shared *shared = atomic_load_explicit(&interruptible, memory_order_acquire);
    if (shared)
        atomic_store_explicit(&shared->stop, true, memory_order_relaxed); /* only a request to end */
    else
        _exit(130);
}

static void shared_init(struct bench_shared *shared, const struct bench_config *config)
{
    memset(shared, 0, sizeof *shared);
    shared->config = config;
    permutation_init(&shared->order, config->keys, 1); /* fixed seeds: every run names the same keys */
    permutation_init(&shared->scramble, config->keys, 2);
    if (config->dist != BENCH_UNIFORM)
        zipf_init(&shared->zipf, config->keys, 0.99);
}

struct starter {
    struct bench_thread *thread;
    _Atomic unsigned *running;
};

static void *run_thread(void *context)
{
    struct starter *s = context;
    bench_thread_run(s->thread);
    atomic_fetch_sub_explicit(s->running, 1,
                              memory_order_relaxed); /* results are published by pthread_join */
    return NULL;
}

static status_t run_threads(struct bench_thread *threads, unsigned count, const char *phase)
{
    struct bench_shared *shared = threads[0].shared;
    struct starter starters[64];
    _Atomic unsigned running = count;
    unsigned started = 0;
    status_t s = status_ok();
    shared->start_ns = bench_now_ns();
    for (; started < count; started++) {
        starters[started] = (struct starter){&threads[started], &running};
        int rc = pthread_create(&threads[started].thread, NULL, run_thread, &starters[started]);
        if (rc != 0) {
            s = status_errno(rc, "cannot start a thread");
            atomic_store_explicit(&shared->stop, true, memory_order_relaxed); /* only a request to end */
            break;
        }
    }
    if (status_is_ok(&s))
        bench_report_progress(threads, count, phase, &running);
    for (unsigned i = 0; i < started; i++)
        pthread_join(threads[i].thread, NULL);
    for (unsigned i = 0; i < started && status_is_ok(&s); i++)
        s = threads[i].failure;
    return s;
}

status_t bench_run(const struct bench_config *config, const char *phase, struct bench_totals *totals)
{
    static char error_text[sizeof((struct bench_thread *)0)->error_text];
    unsigned count = (unsigned)config->threads, opened = 0;
    struct bench_shared *shared = malloc(sizeof *shared);
    struct bench_thread *threads = calloc(count, sizeof *threads);
    status_t s = status_ok();
    if (shared == NULL || threads == NULL) {
        s = status_error(STATUS_NO_MEMORY, "out of memory");
        goto done;
    }
    shared_init(shared, config);
    while (opened < count && status_is_ok(&s)) {
        s = bench_thread_open(&threads[opened], shared, opened);
        opened++;
    }
    if (!status_is_ok(&s))
        goto done;
    /* release: pairs with on_signal's acquire */
    atomic_store_explicit(&interruptible, shared, memory_order_release);
    s = run_threads(threads, count, phase);
    atomic_store_explicit(&interruptible, NULL, memory_order_release);
    bench_totals_collect(totals, threads, count, false);
    if (totals->error_text) {
        snprintf(error_text, sizeof error_text, "%s", totals->error_text);
        totals->error_text = error_text;
    }
done:
    for (unsigned i = 0; i < opened; i++)
        bench_thread_close(&threads[i]);
    free(threads);
    free(shared);
    return s;
}

void bench_prepare_process(const struct bench_config *config)
{
    struct rlimit files;
    signal(SIGPIPE, SIG_IGN);
    signal(SIGINT, on_signal);
    signal(SIGTERM, on_signal);
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    if (config->pin >= 0) { /* the progress thread too, away from the server's core */
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET((unsigned)config->pin, &set);
        if (sched_setaffinity(0, sizeof set, &set) != 0)
            fprintf(stderr, "kvasir bench: --pin %lld: %s\n", (long long)config->pin, strerror(errno));
    }
}
