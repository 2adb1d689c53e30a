#include "store/keeper.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "base/check.h"
#include "store/internal.h"
#include "sys/clock.h"

enum {
    IDLE_US = 100000, /* how often the keeper looks whether a checkpoint is due */
    KEEPER_NICE = 5,
    IDLE_US_TESTED = 1000,
};

void keeper_init(struct store *store)
{
    struct keeper *k = &store->keeper;
    pthread_condattr_t monotonic;
    k->sw = &store->workers[store->config.workers];
    k->folder = -1;
    k->next_number = 1;
    CHECK(pthread_mutex_init(&k->mutex, NULL) == 0);
    CHECK(pthread_condattr_init(&monotonic) == 0);
    CHECK(pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC) == 0);
    CHECK(pthread_cond_init(&k->wake, &monotonic) == 0);
    pthread_condattr_destroy(&monotonic);
}

void keeper_deinit(struct store *store)
{
    free(store->keeper.backup.path);
    pthread_cond_destroy(&store->keeper.wake);
    pthread_mutex_destroy(&store->keeper.mutex);
}

/* A backup begins when there is a checkpoint of what was there when it was asked for. */
static bool backup_step(struct store *store)
{
    struct keeper *k = &store->keeper;
    char text[STORE_BACKUP_TEXT_BYTES];
    pthread_mutex_lock(&k->mutex);
    bool ready = k->backup.pending && k->backup.checkpoint <= k->ended;
    bool failed = k->backup.checkpoint >= k->failed_first && k->backup.checkpoint <= k->failed_last;
    if (failed)
        snprintf(text, sizeof text, "%s", k->stats.error);
    if (ready)
        k->backup.pending = false;
    pthread_mutex_unlock(&k->mutex);
    if (!ready)
        return false;
    if (!failed) { /* the path is ours as long as the state is RUNNING */
        status_t s = backup_make(store, k->backup.path, text);
        failed = !status_is_ok(&s);
        if (failed)
            snprintf(text, sizeof text, "%s", s.text);
    }
    pthread_mutex_lock(&k->mutex);
    k->backup.state = failed ? STORE_CHECKPOINT_FAILED : STORE_CHECKPOINT_DONE;
    memcpy(k->backup.text, text, sizeof text);
    free(k->backup.path);
    k->backup.path = NULL;
    pthread_mutex_unlock(&k->mutex);
    if (store->config.on_progress)
        store->config.on_progress(store->config.context);
    return true;
}

/* One of two kinds of work, if it is due. *wait_us: until it is due again, at most what it is already. True
 * if there is some. */
static bool part_step(struct store *store, bool (*step)(struct store *store, uint64_t *wait_us),
                      uint64_t *due_us, uint64_t *wait_us)
{
    uint64_t now = clock_monotonic_us(), wait = 0;
    if (*due_us > now && !store->config.no_threads) {
        wait = *due_us - now;
    } else {
        if (!step(store, &wait))
            return false;
        *due_us = clock_monotonic_us() + wait;
    }
    if (wait < *wait_us)
        *wait_us = wait;
    return true;
}

bool keeper_step(struct store *store, uint64_t *wait_us)
{
    struct keeper *k = &store->keeper;
    *wait_us = UINT64_MAX;
    bool more = part_step(store, checkpoint_step, &k->checkpoint_due_us, wait_us);
    more |= part_step(store, cleaner_step, &k->cleaner_due_us, wait_us);
    more |= part_step(store, space_reap_step, &k->reap_due_us, wait_us);
    if (k->checkpoint == NULL && backup_step(store)) {
        *wait_us = 0;
        more = true;
    }
    return more;
}

/* Until somebody wakes the keeper, or so long. True: it is to stop. */
static bool keeper_wait(struct keeper *k, uint64_t us, bool idle)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    uint64_t ns = (uint64_t)until.tv_nsec + us * 1000;
    until.tv_sec += (time_t)(ns / 1000000000);
    until.tv_nsec = (long)(ns % 1000000000);
    pthread_mutex_lock(&k->mutex);
    int e = 0;
    while (!k->stop && e != ETIMEDOUT && us && !(idle && k->requested > k->ended))
        e = pthread_cond_timedwait(&k->wake, &k->mutex, &until);
    bool stop = k->stop;
    pthread_mutex_unlock(&k->mutex);
    return stop;
}

bool keeper_pause(struct store *store, uint64_t us)
{
    return !store->config.no_threads && keeper_wait(&store->keeper, us, false);
}

static void *keeper_main(void *context)
{
    struct store *store = context;
    /* Where a worker has the same core it comes first. Linux takes a thread for a process here. */
    (void)setpriority(PRIO_PROCESS, (id_t)gettid(), KEEPER_NICE);
    (void)prctl(PR_SET_TIMERSLACK, 1000ul); /* ns: its rests are short */
    (void)prctl(PR_SET_NAME, "keeper");
    uint64_t idle_us = store->config.checkpoint_bytes ? IDLE_US_TESTED : IDLE_US;
    uint64_t least_us = store->config.checkpoint_bytes ? 0 : KEEPER_REST_US_CRITICAL;
    for (;;) {
        uint64_t wait_us;
        bool more = keeper_step(store, &wait_us);
        if (more && wait_us < least_us) /* a worker may have the same core */
            wait_us = least_us;
        if (keeper_wait(&store->keeper, more ? wait_us : idle_us, !more))
            return NULL;
    }
}

void keeper_start(struct store *store)
{
    struct keeper *k = &store->keeper;
    if (store->config.no_threads)
        return;
    CHECK(pthread_create(&k->thread, NULL, keeper_main, store) == 0);
    k->has_thread = true;
}

void keeper_stop(struct store *store)
{
    struct keeper *k = &store->keeper;
    if (k->has_thread) {
        pthread_mutex_lock(&k->mutex);
        k->stop = true;
        pthread_cond_signal(&k->wake);
        pthread_mutex_unlock(&k->mutex);
        pthread_join(k->thread, NULL);
        k->has_thread = false;
    }
    checkpoint_abandon(store);
    checkpoint_drop_spare(store);
    cleaner_stop(store);
}

bool store_keep(struct store *store)
{
    uint64_t wait_us;
    return store->log && keeper_step(store, &wait_us);
}

/* ---- what others ask ---- */

uint64_t store_checkpoint_request(struct store *store)
{
    struct keeper *k = &store->keeper;
    pthread_mutex_lock(&k->mutex);
    uint64_t ticket = ++k->requested;
    pthread_cond_signal(&k->wake);
    pthread_mutex_unlock(&k->mutex);
    return ticket;
}

enum store_checkpoint_state store_checkpoint_state(struct store *store, uint64_t ticket)
{
    struct keeper *k = &store->keeper;
    enum store_checkpoint_state state = STORE_CHECKPOINT_RUNNING;
    pthread_mutex_lock(&k->mutex);
    if (ticket <= k->ended)
        state = ticket >= k->failed_first && ticket <= k->failed_last ? STORE_CHECKPOINT_FAILED
                                                                      : STORE_CHECKPOINT_DONE;
    pthread_mutex_unlock(&k->mutex);
    return state;
}

uint64_t store_backup_request(struct store *store, const char *path)
{
    struct keeper *k = &store->keeper;
    uint64_t ticket = 0;
    char *copy = strdup(path);
    CHECK(copy != NULL);
    pthread_mutex_lock(&k->mutex);
    if (k->backup.path == NULL) {
        k->backup.path = copy;
        k->backup.pending = true;
        k->backup.state = STORE_CHECKPOINT_RUNNING;
        k->backup.checkpoint = ++k->requested;
        ticket = ++k->backup.ticket;
        copy = NULL;
        pthread_cond_signal(&k->wake);
    }
    pthread_mutex_unlock(&k->mutex);
    free(copy);
    return ticket;
}

enum store_checkpoint_state store_backup_state(struct store *store, uint64_t ticket,
                                               char text[STORE_BACKUP_TEXT_BYTES])
{
    struct keeper *k = &store->keeper;
    enum store_checkpoint_state state = STORE_CHECKPOINT_FAILED;
    pthread_mutex_lock(&k->mutex);
    snprintf(text, STORE_BACKUP_TEXT_BYTES, "another backup was made since");
    if (ticket == k->backup.ticket) {
        state = k->backup.state;
        memcpy(text, k->backup.text, STORE_BACKUP_TEXT_BYTES);
    }
    pthread_mutex_unlock(&k->mutex);
    return state;
}

void store_checkpoint_stats_get(struct store *store, struct store_checkpoint_stats *out)
{
    struct keeper *k = &store->keeper;
    pthread_mutex_lock(&k->mutex);
    *out = k->stats;
    pthread_mutex_unlock(&k->mutex);
}
