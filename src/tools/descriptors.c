#include "tools/descriptors.h"

#include <inttypes.h>
#include <string.h>
#include <sys/resource.h>

#include "base/logger.h"
#include "sys/disk.h"

enum {
    RESERVE = 256,    /* rings, wake-ups, tocs, backups, clients that are being refused */
    SEGMENT_MIB = 64, /* of a segment file; the first ones are smaller, and few */
};

uint64_t descriptors_wanted(const struct descriptors_need *need)
{
    return need->clients + RESERVE + need->files_max;
}

struct descriptors_plan descriptors_divide(uint64_t limit, const struct descriptors_need *need)
{
    uint64_t reserve = limit > 2 * RESERVE ? RESERVE : limit / 2;
    if (limit <= reserve + need->files_now)
        return (struct descriptors_plan){0, need->files_now};
    uint64_t rest = limit - reserve - need->files_now, growth = need->files_max - need->files_now;
    uint64_t half = (rest + 1) / 2;
    uint64_t clients = rest > growth && rest - growth > half ? rest - growth : half;
    if (clients > need->clients)
        clients = need->clients;
    return (struct descriptors_plan){clients, need->files_now + rest - clients};
}

static int count_segment(void *context, const char *name)
{
    uint64_t *count = context;
    *count += strncmp(name, "log-", 4) == 0 || strncmp(name, "data-", 5) == 0;
    return 0;
}

/* A folder that is not there yet, or cannot be listed, needs nothing now: opening the store says why. */
static void look_at_folder(const char *dir, struct descriptors_need *need)
{
    struct disk *disk = disk_real();
    int folder = disk->ops->folder_open(disk, dir, false);
    if (folder < 0)
        folder = disk->ops->folder_open(disk, ".", false);
    else
        (void)disk->ops->list(disk, folder, count_segment, &need->files_now);
    if (folder < 0)
        return;
    int64_t free_bytes = disk->ops->free_bytes(disk, folder);
    need->files_max = need->files_now;
    if (free_bytes > 0)
        need->files_max += (uint64_t)free_bytes / ((uint64_t)SEGMENT_MIB << 20);
    disk->ops->close(disk, folder);
}

uint64_t descriptors_raise_limit(uint64_t wanted)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= wanted)
        return wanted;
    rlim_t old_max = limit.rlim_max;
    limit.rlim_cur = wanted;
    if (limit.rlim_max < wanted)
        limit.rlim_max = wanted; /* works for root */
    if (setrlimit(RLIMIT_NOFILE, &limit) == 0)
        return wanted;
    limit.rlim_cur = limit.rlim_max = old_max;
    if (setrlimit(RLIMIT_NOFILE, &limit) == 0)
        return old_max;
    return getrlimit(RLIMIT_NOFILE, &limit) == 0 ? limit.rlim_cur : old_max;
}

status_t descriptors_raise(const char *dir, uint64_t *clients)
{
    struct descriptors_need need = {.clients = *clients};
    if (dir)
        look_at_folder(dir, &need);
    uint64_t wanted = descriptors_wanted(&need), limit = descriptors_raise_limit(wanted);
    if (limit >= wanted)
        return status_ok();
    struct descriptors_plan plan = descriptors_divide(limit, &need);
    if (plan.clients == 0)
        return status_error(STATUS_INVALID,
                            "the system allows %" PRIu64 " open files, but %s has %" PRIu64
                            " segment files, and each stays open: allow at least %" PRIu64
                            " (ulimit -n, or LimitNOFILE= of a service)",
                            limit, dir, need.files_now, need.files_now + 2 * RESERVE);
    if (plan.clients < need.clients)
        LOG_WARNING("the system allows %" PRIu64 " open files: --max-clients is lowered to %" PRIu64
                    " (see ulimit -n)",
                    limit, plan.clients);
    if (plan.files < need.files_max)
        LOG_WARNING("the system allows %" PRIu64 " open files: the data can grow to about %" PRIu64
                    " GiB, although the disk has room for %" PRIu64 " GiB (see ulimit -n)",
                    limit, plan.files * SEGMENT_MIB >> 10, need.files_max * SEGMENT_MIB >> 10);
    *clients = plan.clients;
    return status_ok();
}
