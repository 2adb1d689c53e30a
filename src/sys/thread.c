#include "sys/thread.h"

#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/check.h"

/* struct sched_attr of sched_setattr(2), its first version. The C library of Debian 12 has no functions for
 * these calls, and the kernel's header does not go with the library's. */
struct attributes {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime_ns, deadline_ns, period_ns;
};

_Static_assert(sizeof(struct attributes) == 48, "SCHED_ATTR_SIZE_VER0");

static bool get(struct attributes *a)
{
    return syscall(SYS_sched_getattr, 0, a, sizeof *a, 0) == 0 && a->policy == SCHED_OTHER;
}

bool thread_slice_set(uint64_t us)
{
    struct attributes a;
    DCHECK(us >= 100 && us <= 100000);
    if (!get(&a))
        return false;
    a = (struct attributes){.size = sizeof a, .policy = SCHED_OTHER, .nice = a.nice, .runtime_ns = us * 1000};
    return syscall(SYS_sched_setattr, 0, &a, 0) == 0 && thread_slice_us() == us;
}

uint64_t thread_slice_us(void)
{
    struct attributes a;
    return get(&a) ? a.runtime_ns / 1000 : 0;
}

bool thread_idle_set(void)
{
    struct sched_param none = {0};
    return sched_setscheduler(0, SCHED_IDLE, &none) == 0; /* 0: the calling thread, not the process */
}
