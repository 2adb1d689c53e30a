/* Preparing the next segment ahead of its use, on a thread of its own (or step by step, in tests). */
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>

#include "base/check.h"
#include "base/logger.h"
#include "log/internal.h"
#include "log/spare.h"
#include "sys/clock.h"

enum { FILL_REST_US_MAX = 2000 };

/* What to make. */
struct plan {
    uint64_t number, after;
    uint64_t bytes;
    uint64_t wanted; /* by a large record: bytes are not less */
    uint64_t taken;  /* of the room */
};

/* Is there a next segment for everything? Under the lock. */
static bool has_ordinary(const struct log *log)
{
    return log->prepared && !log->prepared->for_deletes;
}

/* From the state under the lock. False: nothing is wanted. A prepared segment that is too small for a waiting
 * record stays until there is a larger one: others go on meanwhile. */
static bool next_plan(struct log *log, struct plan *plan)
{
    spin_lock(&log->lock);
    bool is_wanted = !has_ordinary(log) || log->prepared->bytes < log->wanted_bytes;
    *plan = (struct plan){
        .number = log->next_number,
        .after = log->current->number, /* and stays it, but when one for deletes comes between */
        .bytes = log->next_bytes > log->wanted_bytes ? log->next_bytes : log->wanted_bytes,
        .wanted = log->wanted_bytes,
    };
    spin_unlock(&log->lock);
    return is_wanted;
}

static bool has_wanted(struct log *log)
{
    spin_lock(&log->lock);
    bool has = log->wanted_bytes > 0;
    spin_unlock(&log->lock);
    return has;
}

void log_discard(struct log *log, struct segment *s)
{
    char name[SEGMENT_NAME_BYTES];
    segment_name(name, s->number);
    (void)log->config.disk->ops->remove(log->config.disk, log->folder, name);
    segments_unlist(log->config.segments, s->file, 0);
    (void)segments_reap(log->config.segments);
    free(s);
}

void log_leave_witness(struct log *log)
{
    struct segment s;
    uint64_t last = log->current->number; /* those made ahead behind it are gone */
    status_t status =
        segment_create(log->config.disk, log->folder, log->path, last + 1, last, LOG_BLOCK_BYTES, &s, NULL);
    if (status_is_ok(&status))
        log->config.disk->ops->close(log->config.disk, s.fd);
    /* else the log is as complete without it */
}

static void take_prepared(struct log *log, struct segment *s)
{
    segment_hand_over(s, log->config.segments); /* before anybody gets an LSN in it */
    spin_lock(&log->lock);
    struct segment *before = log->prepared; /* for deletes or too small: needed no longer */
    log->prepared = s;
    log->next_number = s->number + 1;
    uint64_t twice = log->next_bytes * 2, max = log->config.segment_bytes_max;
    log->next_bytes = twice < max ? twice : max;
    if (s->bytes >= log->wanted_bytes) {
        log->wanted_bytes = 0;
        atomic_store_explicit(&log->large_waits, false, memory_order_relaxed);
    }
    atomic_store_explicit(&log->scarce, false, memory_order_relaxed);
    spin_unlock(&log->lock);
    if (before)
        log_discard(log, before);
    atomic_store_explicit(&log->waits, false, memory_order_relaxed);
    atomic_store_explicit(&log->deletes_wait, false, memory_order_relaxed);
    bool was_full = atomic_exchange_explicit(&log->disk_full, false, memory_order_relaxed);
    if (was_full)
        LOG_INFO("log segments can be made again: writes resume");
    if (log->config.on_progress)
        log->config.on_progress(log->config.context);
}

static bool take_room(struct log *log, uint64_t bytes, bool for_deletes)
{
    return !log->config.may_allocate || log->config.may_allocate(log->config.context, bytes, for_deletes);
}

static void release_room(struct log *log, uint64_t bytes)
{
    if (log->config.may_allocate)
        log->config.allocated(log->config.context, bytes);
}

/* There is no room for a segment: one that only deletes may use. Only this thread makes segments, so what is
 * prepared can only go meanwhile. */
static void prepare_for_deletes(struct log *log, uint64_t number, uint64_t after)
{
    spin_lock(&log->lock);
    bool has = log->prepared != NULL;
    spin_unlock(&log->lock);
    if (has || !log->config.may_allocate)
        return;
    struct segment *s = calloc(1, sizeof *s);
    CHECK(s != NULL);
    bool may = take_room(log, SEGMENT_BYTES_MIN, true);
    status_t status = may ? segment_create(log->config.disk, log->folder, log->path, number, after,
                                           SEGMENT_BYTES_MIN, s, NULL)
                          : status_error(STATUS_NO_SPACE, "the room kept back is used up");
    if (!status_is_ok(&status)) {
        free(s);
        bool waits =
            log->config.may_wait && log->config.may_wait(log->config.context, SEGMENT_BYTES_MIN, true);
        atomic_store_explicit(&log->deletes_wait, waits, memory_order_relaxed);
    } else {
        s->for_deletes = true;
        segment_hand_over(s, log->config.segments);
        spin_lock(&log->lock);
        log->prepared = s;
        log->next_number = number + 1;
        atomic_store_explicit(&log->scarce, true, memory_order_relaxed);
        spin_unlock(&log->lock);
        atomic_store_explicit(&log->deletes_wait, false, memory_order_relaxed);
    }
    if (may)
        release_room(log, SEGMENT_BYTES_MIN);
    if (log->config.on_progress)
        log->config.on_progress(log->config.context);
}

/* Half of the disk's time is for others while a segment is filled, unless writes are about to wait for it
 * and for nothing else. */
static void rest_between(void *context, uint64_t spent_us)
{
    struct log *log = context;
    bool urgent = atomic_load_explicit(&log->scarce, memory_order_relaxed) && !log_lacks_room(log);
    if (!log->config.background || urgent)
        return;
    uint64_t us = spent_us < FILL_REST_US_MAX ? spent_us : FILL_REST_US_MAX;
    struct timespec time = {0, (long)us * 1000};
    nanosleep(&time, NULL);
}

static bool room_will_come(const struct log *log, uint64_t bytes)
{
    return log->config.may_wait && !log_disk_full(log) &&
           log->config.may_wait(log->config.context, bytes, false);
}

/* A spare file must not be much smaller than planned. */
static uint64_t spare_least(const struct plan *p)
{
    uint64_t most_of_it = p->bytes - p->bytes / 4;
    return most_of_it > p->wanted ? most_of_it : p->wanted;
}

/* Of a spare file, if there is one and it may be used. */
static bool make_of_spare(struct log *log, struct segment *s, struct plan *p)
{
    const struct segment_folder folder = log_segment_folder(log);
    uint64_t least = spare_least(p);
    uint64_t bytes = segments_spare_size(folder.segments, least, UINT64_MAX, p->bytes);
    bool found;
    if (bytes == 0 || (log->config.may_allocate && !log->config.may_reuse(log->config.context, bytes)))
        return false;
    p->taken = bytes;
    status_t status = spare_use_for_log(&folder, p->number, p->after, least, p->bytes, s, &found);
    if (status_is_ok(&status) && found)
        return true;
    if (!status_is_ok(&status))
        LOG_WARNING("%s; a new file is made instead", status.text);
    release_room(log, bytes);
    return false;
}

static status_t make_new(struct log *log, struct segment *s, struct plan *p)
{
    const struct segment_rest rest = {rest_between, log};
    if (!take_room(log, p->bytes, false))
        return status_error(STATUS_NO_SPACE, "%s may not grow by a log segment of %" PRIu64 " KiB", log->path,
                            p->bytes >> 10);
    p->taken = p->bytes;
    status_t status =
        segment_create(log->config.disk, log->folder, log->path, p->number, p->after, p->bytes, s, &rest);
    if (!status_is_ok(&status))
        release_room(log, p->taken);
    return status;
}

/* As large as planned, or half of it and so on when there is not so much room and none will come by itself.
 */
static status_t make(struct log *log, struct segment *s, struct plan *p)
{
    const struct segment_folder folder = log_segment_folder(log);
    for (;;) {
        if (make_of_spare(log, s, p))
            return status_ok();
        status_t status = make_new(log, s, p);
        uint64_t half = p->bytes / 2;
        if (status.code != STATUS_NO_SPACE)
            return status;
        if (half >= SEGMENT_BYTES_MIN && half >= p->wanted && !room_will_come(log, p->bytes))
            p->bytes = half;
        else if (spare_drop(&folder, spare_least(p) - 1)) /* what is too small is room too */
            (void)segments_reap(folder.segments);
        else
            return status;
    }
}

/* There is no room for the segment that a large record wants. It may come for a while; then that record is
 * refused, and others never wait for it. The plan is without it from now on. False: nothing else is needed.
 */
static bool plan_without_wanted(struct log *log, struct plan *plan)
{
    bool may_come = room_will_come(log, SEGMENT_BYTES_MIN);
    uint64_t now_us = clock_monotonic_us();
    spin_lock(&log->lock);
    bool refuses = !may_come || now_us - log->wanted_since_us >= LOG_WANTED_US;
    if (refuses) {
        log->refused_bytes = plan->wanted;
        log->refused_us = now_us;
        if (log->wanted_bytes <= plan->wanted)
            log->wanted_bytes = 0;
    }
    atomic_store_explicit(&log->large_waits, log->wanted_bytes > 0, memory_order_relaxed);
    bool has = has_ordinary(log);
    plan->bytes = log->next_bytes;
    plan->wanted = 0;
    spin_unlock(&log->lock);
    if (refuses && log->config.on_progress)
        log->config.on_progress(log->config.context);
    return !has;
}

bool log_prepare(struct log *log)
{
    struct plan plan;
    if (!next_plan(log, &plan))
        return false;
    struct segment *s = calloc(1, sizeof *s);
    CHECK(s != NULL);
    status_t status = make(log, s, &plan);
    if (status.code == STATUS_NO_SPACE && plan.wanted > SEGMENT_BYTES_MIN) {
        if (!plan_without_wanted(log, &plan)) {
            free(s);
            return false;
        }
        status = make(log, s, &plan);
    }
    if (status_is_ok(&status)) {
        take_prepared(log, s);
        release_room(log, plan.taken);
        return true;
    }
    free(s);
    bool waits = status.code == STATUS_NO_SPACE && room_will_come(log, SEGMENT_BYTES_MIN);
    /* Where room comes soon, what is kept back lasts so long: at the limit this happens with every segment,
     * and making and removing one more each time would hold up reads (docs/performance.md). */
    if (status.code == STATUS_NO_SPACE && (!waits || log_headroom_is_low(log)))
        prepare_for_deletes(log, plan.number, plan.after);
    int refused_errno = status.code == STATUS_NO_SPACE ? 0 : status.sys_errno;
    bool is_new =
        atomic_exchange_explicit(&log->refused_errno, refused_errno, memory_order_relaxed) != refused_errno;
    atomic_store_explicit(&log->waits, waits, memory_order_relaxed);
    if (waits)
        return false;
    if (!atomic_exchange_explicit(&log->disk_full, true, memory_order_relaxed) || is_new) {
        LOG_WARNING("%s; writes are refused when the current segment is used up, until one can be made",
                    status.text);
        if (log->config.on_progress)
            log->config.on_progress(log->config.context);
    }
    return false;
}

static void *prepare_thread(void *context)
{
    struct log *log = context;
    pthread_mutex_lock(&log->mutex);
    while (!log->stop) {
        if (log->want_segment) {
            log->want_segment = false;
            pthread_mutex_unlock(&log->mutex);
            (void)log_prepare(log);
            pthread_mutex_lock(&log->mutex);
        } else if (log_lacks_room(log) || has_wanted(log)) {
            struct timespec until;
            clock_gettime(CLOCK_MONOTONIC, &until);
            if (!log_disk_full(log) || atomic_load_explicit(&log->waits, memory_order_relaxed) ||
                atomic_load_explicit(&log->deletes_wait, memory_order_relaxed))
                until.tv_nsec += LOG_WAIT_NS;
            else
                until.tv_sec += LOG_RETRY_SECONDS;
            until.tv_sec += until.tv_nsec / 1000000000;
            until.tv_nsec %= 1000000000;
            pthread_cond_timedwait(&log->wake, &log->mutex, &until);
            log->want_segment = true;
        } else {
            pthread_cond_wait(&log->wake, &log->mutex);
        }
    }
    pthread_mutex_unlock(&log->mutex);
    return NULL;
}

status_t log_prepare_start(struct log *log)
{
    pthread_mutex_init(&log->mutex, NULL);
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&log->wake, &attributes);
    pthread_condattr_destroy(&attributes);
    if (!log->config.background)
        return status_ok();
    log->want_segment = true;
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old); /* signals are for other threads */
    int r = pthread_create(&log->thread, NULL, prepare_thread, log);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (r != 0)
        return status_errno(r, "cannot start the log's background thread");
    pthread_setname_np(log->thread, "log-prepare");
    log->has_thread = true;
    return status_ok();
}

void log_prepare_wake(struct log *log)
{
    if (!log->has_thread ||
        (log_lacks_room(log) && !atomic_load_explicit(&log->deletes_wait, memory_order_relaxed)))
        return; /* it is asked from time to time anyway */
    pthread_mutex_lock(
        &log->mutex); /* held for some instructions only; a missed wake would never be repeated */
    log->want_segment = true;
    pthread_cond_signal(&log->wake);
    pthread_mutex_unlock(&log->mutex);
}

void log_room_freed(struct log *log)
{
    if (!log->has_thread || !log_lacks_room(log))
        return;
    pthread_mutex_lock(&log->mutex);
    log->want_segment = true;
    pthread_cond_signal(&log->wake);
    pthread_mutex_unlock(&log->mutex);
}

void log_prepare_stop(struct log *log)
{
    if (!log->has_thread)
        return;
    pthread_mutex_lock(&log->mutex);
    log->stop = true;
    pthread_cond_signal(&log->wake);
    pthread_mutex_unlock(&log->mutex);
    pthread_join(log->thread, NULL);
    log->has_thread = false;
}
