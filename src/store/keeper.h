/* keeper: internal: the store's own thread, which does what blocks: it writes checkpoints, and frees what
 * they make superfluous.
 *
 * The keeper is a participant of the index like a worker, with a struct store_worker of its own (index ==
 * config.workers), so it may walk it and take key locks, briefly. Its work is cut into steps; where nobody is
 * to be disturbed (simulations: config.no_threads) the owner calls keeper_step instead of having a thread.
 *
 * Thread safety: keeper_step and everything in checkpoint.c: the keeper's thread. What others ask (requests,
 * numbers) lies under keeper.mutex, which nobody holds for long and under which nothing else is locked. */
#ifndef KVASIR_STORE_KEEPER_H
#define KVASIR_STORE_KEEPER_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "store/backoff.h"
#include "store/cleaner.h"
#include "store/store.h"
#include "sys/clock.h"
#include "toc/toc_format.h"

enum { KEEPER_TOCS_KEPT = 2 };

/* A toc in the folder that is good for a start. */
struct kept_toc {
    uint64_t number, start_lsn, keys, bytes;
};

struct keeper {
    struct store_worker *sw;
    int folder; /* the log's; -1: the store is not open yet */
    pthread_t thread;
    bool has_thread;
    struct kept_toc tocs[KEEPER_TOCS_KEPT]; /* newest first */
    unsigned toc_count;
    uint64_t superseded; /* number of the last that went from tocs; 0: none has */
    uint64_t
        spare_toc_bytes; /* of an older one's file, which has the name of the next to be written; 0: none */
    uint64_t next_number;
    uint64_t logged_bytes;         /* replayed and written by the log in all when the newest toc began */
    uint64_t begin_ms;             /* when the last checkpoint began; monotonic; 0: none has */
    struct backoff backoff;        /* of checkpoints that begin by themselves */
    struct checkpoint *checkpoint; /* under way */
    struct cleaner cleaner;
    uint64_t checkpoint_due_us, cleaner_due_us, reap_due_us; /* not before; monotonic */
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    /* Under the mutex: */
    bool stop;
    uint64_t requested;                 /* newest ticket given out */
    uint64_t begun;                     /* the checkpoint under way answers tickets up to this */
    uint64_t ended;                     /* tickets up to this are answered */
    uint64_t failed_first, failed_last; /* these in vain */
    struct store_checkpoint_stats stats;
    struct {
        uint64_t ticket;     /* of the newest; 0: there was none */
        uint64_t checkpoint; /* the ticket of the one that it is made from */
        enum store_checkpoint_state state;
        bool pending; /* asked for, not begun */
        char *path;
        char text[STORE_BACKUP_TEXT_BYTES];
    } backup;
};

/* Before the log is opened; nothing runs yet. */
void keeper_init(struct store *store);
/* The log is open: starts the thread unless config.no_threads. */
void keeper_start(struct store *store);
/* Ends what is under way (an unfinished checkpoint is given up) and joins the thread. Before log_close. */
void keeper_stop(struct store *store);
void keeper_deinit(struct store *store);

/* One step of what is to be done. False: there is nothing to do now. *wait_us: how long the next one should
 * be put off to keep the disk free for others. */
bool keeper_step(struct store *store, uint64_t *wait_us);

/* How much is done in one step: by time, as a worker may have the same core and the kernel need not let it
 * have it back before the next timer tick; or, in tests, by number, so that others come in between. */
enum {
    KEEPER_STEP_US = 25,
    /* Writes wait for room: each rest costs two switches, and then a wait for the core. */
    KEEPER_STEP_US_CRITICAL = 200,
    KEEPER_REST_US = 100,         /* at least, between two steps */
    KEEPER_REST_US_CRITICAL = 30, /* writes wait for room */
    KEEPER_STEP_LOOK = 2,         /* items between two looks at the clock */
};

struct keeper_step {
    uint64_t end_us;
    unsigned items, items_max; /* items_max 0: by time */
};

static inline struct keeper_step keeper_step_begin(unsigned items_max, bool critical)
{
    unsigned us = critical ? KEEPER_STEP_US_CRITICAL : KEEPER_STEP_US;
    return (struct keeper_step){.end_us = clock_monotonic_us() + us, .items_max = items_max};
}

/* Asked before each item. */
static inline bool keeper_step_goes_on(struct keeper_step *step)
{
    unsigned n = step->items++;
    if (step->items_max)
        return n < step->items_max;
    return n % KEEPER_STEP_LOOK != 0 || n == 0 || clock_monotonic_us() < step->end_us;
}

/* Waits, unless the keeper is to stop: true. */
bool keeper_pause(struct store *store, uint64_t us);

/* ---- backup.c ---- */

/* Makes a backup from the newest checkpoint. text: what it consists of. */
status_t backup_make(struct store *store, const char *path, char text[STORE_BACKUP_TEXT_BYTES]);

/* ---- checkpoint.c ---- */

/* Begins, goes on with, or ends a checkpoint. As keeper_step. */
bool checkpoint_step(struct store *store, uint64_t *wait_us);
/* Has the time come to try again, if the last one was given up? */
bool checkpoint_may_retry(struct store *store);
/* How much was logged since the newest began. */
uint64_t checkpoint_logged_behind(struct store *store);
void checkpoint_abandon(struct store *store);
/* The file for the next toc goes: there will be none. */
void checkpoint_drop_spare(struct store *store);
/* Only the newest toc is kept from now on, until the next one. */
void checkpoint_drop_older(struct store *store);

/* ---- load.c ---- */

/* log_config.on_locked: removes what a crash has left, and fills the index from the newest toc that is good.
 * context: struct replay. */
status_t store_load(void *context, int folder, struct log_config *config);

#endif
