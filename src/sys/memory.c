#include "sys/memory.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <unistd.h>

#include "sys/thread.h"

#ifdef KVASIR_JEMALLOC
#include <jemalloc/jemalloc.h>
#endif

/* Read by jemalloc. Freed memory goes back to the kernel within half a second, not ten: under a cap it could
 * be used for values. By those who allocate and free, so not while nothing happens: see
 * memory_give_back_unasked. */
extern const char *malloc_conf;
const char *malloc_conf = "dirty_decay_ms:500,muzzy_decay_ms:0";

/* The allocator's thread comes to be here and takes over how this one is scheduled: it gives pages back one
 * by one, for milliseconds, and a worker on its core need not wait for that. */
static void *begin_giving_back(void *unused)
{
    (void)thread_idle_set();
#ifdef KVASIR_JEMALLOC
    bool on = true;
    size_t threads = 1;
    (void)mallctl("max_background_threads", NULL, NULL, &threads, sizeof threads);
    (void)mallctl("background_thread", NULL, NULL, &on, sizeof on);
#endif
    return unused;
}

void memory_give_back_unasked(void)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, begin_giving_back, NULL) == 0)
        pthread_join(thread, NULL);
}

void memory_give_back(void)
{
#ifdef KVASIR_JEMALLOC
    char name[32];
    snprintf(name, sizeof name, "arena.%d.purge", MALLCTL_ARENAS_ALL);
    (void)mallctl(name, NULL, NULL, NULL, 0);
#endif
}

bool memory_resident_is_ours(void)
{
#ifdef KVASIR_JEMALLOC
    return true;
#else
    return false;
#endif
}

/* Stays open: under a cap it is read thousands of times a second, and opening it costs three times as much.
 * -1: tried again with the next call. */
static int statm(void)
{
    static _Atomic int kept = -1;
    int fd = atomic_load_explicit(&kept, memory_order_relaxed), none = -1; /* only a number */
    if (fd >= 0)
        return fd;
    fd = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
    if (fd < 0 ||
        atomic_compare_exchange_strong_explicit(&kept, &none, fd, memory_order_relaxed, memory_order_relaxed))
        return fd;
    close(fd); /* another thread was first */
    return none;
}

uint64_t memory_resident_bytes(void)
{
    char text[128];
    unsigned long long all, resident;
    int fd = statm();
    ssize_t n = fd < 0 ? -1 : pread(fd, text, sizeof text - 1, 0);
    if (n <= 0)
        return 0;
    text[n] = '\0';
    if (sscanf(text, "%llu %llu", &all, &resident) != 2)
        return 0;
    return (uint64_t)resident * (uint64_t)sysconf(_SC_PAGESIZE);
}
