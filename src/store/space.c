/* Disk space: how much is taken, what may go, who may take more.
 *
 * A file has died when nothing in it is live and nothing can become so: a log segment below the newest
 * checkpoint's start (all its writes are in the index), or a data segment. It is then not named by any
 * checkpoint that begins later. It goes when all kept checkpoints began later, and, for the log, when it lies
 * below the start of the oldest.
 *
 * Who makes a file takes its room first, and gives that back when the file counts: log and keeper are two
 * threads. Kept back from the log are room for the next toc, for a round of cleaning, and what deletes may
 * use; from deletes and the cleaner the next toc's: without a checkpoint nothing comes free.
 * Deletes may use what is kept for cleaning too: their segments hold nothing live, so checkpoints alone free
 * them.
 *
 * Spare files (spare.h) are room too, for the log and the cleaner; checkpoints and deletes need new files. So
 * what dies is kept as a spare file only where these have their room. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/logger.h"
#include "log/spare.h"
#include "store/internal.h"
#include "sys/clock.h"

enum {
    REMOVALS_STEP = 4, /* files; freeing their blocks takes some ms each */
    REQUEST_MS = 5000, /* between two checkpoints for the sake of space */
    REQUEST_MS_CRITICAL = 100,
    SAY_MS = 60000,
    TOC_KEY_BYTES = 24,        /* where there is no toc yet; short keys take 8, random ones of 16 bytes 32 */
    DELETES_BYTES = 3 << 20,   /* some segments for deletes: one in use, one that waits for checkpoints */
    GUESS_LOG_BYTES = 4 << 20, /* less log than that says nothing new about a checkpoint's size */
    DEAD_SHARE = 16,           /* less than this part of all bytes is not worth waiting for */
    AWAIT_MS = 10000,          /* how long writes wait for room while nothing happens that could bring some */
    AWAIT_ALL_MS = 60000,      /* and in all */
    AWAIT_LOOKS = 3,           /* and while so often nothing is found to do; the first may have been before */
    SPARE_SECONDS = 20,
    SPARE_RATE_LEAST = 64 << 10, /* bytes a second; less is as if nobody wrote */
    SPARE_BYTES_LEAST = 128 << 20,
    REAP_PAUSE_US = 8000, /* between two pieces of a removed file */
    WORTH_PERCENT = 15,   /* of a log segment that is dead: then it helps to get it below the replay */
    /* At the disk limit: values moved between two checkpoints, in bytes of a checkpoint. More make its share
     * of what is written smaller, and what waits for it larger. */
    ROUNDS_TOCS = 3,
};

#define SPARE_BYTES_MAX (4ull << 30)

static uint64_t get(const _Atomic uint64_t *number)
{
    return atomic_load_explicit((_Atomic uint64_t *)(uintptr_t)number, memory_order_relaxed);
}

static void set(_Atomic uint64_t *number, uint64_t n)
{
    atomic_store_explicit(number, n, memory_order_relaxed);
}

/* ---- how much ---- */

/* Of a checkpoint that would begin now, about. */
static uint64_t next_toc_bytes(const struct store *store)
{
    const struct keeper *k = &store->keeper;
    uint64_t keys = get(&store->keys), bytes = keys * TOC_KEY_BYTES;
    if (k->toc_count && k->tocs[0].keys) {
        bytes = k->tocs[0].bytes;
        if (keys > k->tocs[0].keys)
            bytes = (uint64_t)((double)bytes * (double)keys / (double)k->tocs[0].keys);
    }
    return bytes + bytes / 4;
}

/* Is so much dead that room is worth waiting for? */
static bool much_is_dead(struct store *store)
{
    struct segments_totals totals;
    segments_totals_get(store->segments, &totals);
    uint64_t all = totals.log_bytes + totals.data_bytes;
    return totals.live_bytes <= all && all - totals.live_bytes >= all / DEAD_SHARE;
}

/* Is that a guess still, which the next checkpoint would set right? What it promises may be far too much, and
 * is kept back from the log. Behind one it is a guess no longer, so none is asked for twice; nor beside
 * overwrites, where cleaning makes room, and checkpoints cost. */
static bool is_guess(struct store *store)
{
    const struct keeper *k = &store->keeper;
    if (store->config.no_threads) /* the caller says when checkpoints are made */
        return false;
    if (k->toc_count == 0)
        return get(&store->keys) != 0;
    return !much_is_dead(store) && checkpoint_logged_behind(store) > k->tocs[0].bytes + GUESS_LOG_BYTES;
}

struct room {
    uint64_t left;    /* for new files */
    uint64_t leaving; /* what will come free as soon as it is closed */
    uint64_t spare;   /* in spare files */
    uint64_t total;   /* with all that is taken */
};

static struct room room_now(struct store *store)
{
    struct disk *disk = store->config.disk;
    struct segments_bytes bytes = segments_bytes_get(store->segments);
    struct room r = {.leaving = bytes.leaving, .spare = bytes.spare};
    uint64_t used = bytes.all + get(&store->keeper.cleaner.other_bytes);
    uint64_t limit = store->config.disk_limit_bytes;
    int64_t of_disk = disk->ops->free_bytes(disk, store->keeper.folder);
    r.left = limit > used ? limit - used : 0;
    r.total = limit;
    if (of_disk >= 0 && (limit == 0 || (uint64_t)of_disk < r.left)) {
        r.left = (uint64_t)of_disk;
        r.total = used + r.left;
    }
    return r;
}

/* What else the folder holds, or will soon, and what must stay free. */
static void update(struct store *store)
{
    struct keeper *k = &store->keeper;
    uint64_t other = 0, next_toc = next_toc_bytes(store), rounds = 2 * cleaner_round_bytes(store);
    if (store->config.disk_limit_bytes && rounds < ROUNDS_TOCS * next_toc)
        rounds = ROUNDS_TOCS * next_toc;
    for (unsigned i = 0; i < k->toc_count; i++)
        other += k->tocs[i].bytes;
    /* There will be as many as are kept, and one that is being written: perhaps over an older one. */
    uint64_t tocs = (KEEPER_TOCS_KEPT + 1 - k->toc_count) * next_toc;
    uint64_t spare = k->spare_toc_bytes < next_toc ? k->spare_toc_bytes : next_toc;
    set(&k->cleaner.other_bytes, other + k->spare_toc_bytes);
    set(&k->cleaner.toc_bytes, next_toc - spare);
    set(&k->cleaner.disk_bytes, room_now(store).total);
    set(&k->cleaner.rounds_bytes, rounds);
    set(&k->cleaner.kept_bytes, tocs - spare + rounds + DELETES_BYTES);
}

void space_release(struct store *store, uint64_t bytes)
{
    /* Release: the file counts already. Pairs with take. */
    atomic_fetch_sub_explicit(&store->keeper.cleaner.taken_bytes, bytes, memory_order_release);
}

/* So many bytes, such that `kept` remain; of that, `shared` is for what others take. in_new: so much must
 * remain that is not in spare files; 0: the file is no new one. First it is taken, then looked whether it was
 * there: of two threads at least the later one sees what both have taken (sequentially consistent). What is
 * released meanwhile may count twice, never not at all. */
static bool take(struct store *store, uint64_t bytes, uint64_t kept, uint64_t shared, uint64_t in_new)
{
    uint64_t others =
        atomic_fetch_add_explicit(&store->keeper.cleaner.taken_bytes, bytes, memory_order_seq_cst);
    uint64_t needed = bytes + (others > shared ? others - shared : 0);
    struct room r = room_now(store);
    if (r.left + r.spare >= needed + kept && (in_new == 0 || r.left >= needed + in_new))
        return true;
    space_release(store, bytes);
    return false;
}

/* What new files of the log must leave: spare ones will do for the cleaner. */
static uint64_t kept_free(const struct store *store)
{
    const struct cleaner *c = &store->keeper.cleaner;
    uint64_t kept = get(&c->kept_bytes), rounds = get(&c->rounds_bytes);
    return kept > rounds ? kept - rounds : 0;
}

bool space_may_allocate(void *context, uint64_t bytes, bool for_deletes)
{
    struct store *store = ((struct replay *)context)->store;
    const struct cleaner *c = &store->keeper.cleaner;
    if (get(&c->kept_bytes) == 0) { /* in log_open: there is no other thread yet */
        update(store);
        update(store); /* a round's size depends on what the disk has */
    }
    uint64_t kept = get(&c->kept_bytes), toc = get(&c->toc_bytes);
    return for_deletes ? take(store, bytes, toc, 0, toc)
                       : take(store, bytes, kept, get(&c->rounds_bytes), kept_free(store));
}

bool space_may_reuse(void *context, uint64_t bytes)
{
    struct store *store = ((struct replay *)context)->store;
    const struct cleaner *c = &store->keeper.cleaner;
    return take(store, bytes, get(&c->kept_bytes), get(&c->rounds_bytes), 0);
}

void space_allocated(void *context, uint64_t bytes)
{
    space_release(((struct replay *)context)->store, bytes);
}

bool space_take(struct store *store, uint64_t bytes)
{
    update(store); /* there may be more keys than when the round began */
    return take(store, bytes, get(&store->keeper.cleaner.toc_bytes), 0, 0);
}

/* What waits for a checkpoint: one is worth it. */
static bool is_enough(struct store *store, uint64_t pending_bytes)
{
    uint64_t rounds = get(&store->keeper.cleaner.rounds_bytes);
    return pending_bytes >= rounds + rounds / 2;
}

bool space_waits_for_checkpoint(struct store *store, uint64_t bytes)
{
    const struct cleaner *c = &store->keeper.cleaner;
    const struct segment_folder folder = store_segment_folder(store);
    uint64_t pending = get(&c->pending_bytes);
    if (pending == 0 || space_level_now(store) != SPACE_CRITICAL)
        return false;
    uint64_t kept = kept_free(store), left = room_now(store).left;
    uint64_t spare = spare_for_data(&folder, cleaner_file_bytes(store));
    return spare + (left > kept ? left - kept : 0) < bytes ||
           (store->keeper.checkpoint && is_enough(store, pending));
}

uint64_t space_for_rounds(struct store *store)
{
    const struct cleaner *c = &store->keeper.cleaner;
    struct room r = room_now(store);
    uint64_t left = r.left + r.spare, used = get(&c->taken_bytes) + get(&c->toc_bytes);
    return left > used ? left - used : 0;
}

struct segment_folder store_segment_folder(const struct store *store)
{
    return (struct segment_folder){store->config.disk, store->keeper.folder, store->config.path,
                                   store->segments};
}

void space_clear(struct store *store, uint64_t bytes)
{
    const struct segment_folder folder = store_segment_folder(store);
    while (room_now(store).left < bytes && spare_drop(&folder, UINT64_MAX))
        (void)segments_reap(store->segments);
}

void space_for_checkpoint(struct store *store)
{
    struct keeper *k = &store->keeper;
    uint64_t needed = next_toc_bytes(store);
    needed -= k->spare_toc_bytes < needed ? k->spare_toc_bytes : needed;
    space_clear(store, needed);
    uint64_t left = room_now(store).left;
    if (k->toc_count < KEEPER_TOCS_KEPT || left >= needed || left + k->tocs[1].bytes < needed)
        return;
    LOG_INFO("space is short: only the newest checkpoint is kept until there is another");
    checkpoint_drop_older(store);
}

/* Changes with everything that brings room nearer. */
static uint64_t progress(struct store *store)
{
    struct store_checkpoint_stats s;
    const struct cleaner *c = &store->keeper.cleaner;
    store_checkpoint_stats_get(store, &s);
    return get(&c->removed_bytes) + get(&c->copied_bytes) + get(&c->rounds) + s.number + s.keys_done;
}

/* One segment with nothing live is enough. */
static bool note_dead_log(void *context, struct segment_file *file)
{
    struct store *store = ((void **)context)[0];
    bool dead = !file->data && atomic_load_explicit(&file->sealed, memory_order_acquire) &&
                segments_live_bytes(store->segments, file) == 0;
    *(bool *)((void **)context)[1] |= dead;
    return !dead;
}

/* Will checkpoints free a segment of the log? */
static bool deletes_will_go(struct store *store)
{
    struct store_checkpoint_stats s;
    struct segments_totals totals;
    bool found = false;
    void *context[] = {store, &found};
    store_checkpoint_stats_get(store, &s);
    if (s.last_failed)
        return false;
    segments_totals_get(store->segments, &totals);
    segments_each(store->segments, note_dead_log, context);
    return found || totals.leaving_segments > 0;
}

bool space_will_come(void *context, uint64_t bytes, bool for_deletes)
{
    struct store *store = ((struct replay *)context)->store;
    if (for_deletes)
        return deletes_will_go(store);
    struct cleaner *c = &store->keeper.cleaner;
    uint64_t now_ms = clock_monotonic_us() / 1000, now = progress(store);
    if (store->config.no_threads || !(much_is_dead(store) || get(&c->guesses)))
        return false;
    if (bytes > SEGMENT_BYTES_MIN &&
        bytes > room_now(store).total / STORE_LOG_SEGMENTS) /* rather a smaller one */
        return false;
    if (!log_lacks_room(store->log))
        c->awaited_since_ms = now_ms;
    if (!log_lacks_room(store->log) || now != c->awaited) { /* it begins to wait, or there is progress */
        c->awaited = now;
        c->awaited_ms = now_ms;
        c->awaited_looks = get(&c->vain_looks);
    }
    return now_ms < c->awaited_ms + AWAIT_MS && now_ms < c->awaited_since_ms + AWAIT_ALL_MS &&
           get(&c->vain_looks) < c->awaited_looks + AWAIT_LOOKS;
}

/* With so many more bytes free than there are now. */
static enum space_level level_of(struct store *store, uint64_t more)
{
    struct room r = room_now(store);
    uint64_t kept = get(&store->keeper.cleaner.kept_bytes), left = r.left + r.spare + more;
    if (store_lacks_room(store) && more == 0)
        return SPACE_CRITICAL;
    if (store->config.disk_limit_bytes && left < kept + r.total / 16)
        return SPACE_CRITICAL;
    return left < r.total / 4 ? SPACE_LOW : SPACE_FINE;
}

enum space_level space_level_now(struct store *store)
{
    return level_of(store, 0);
}

/* ---- what may go ---- */

struct survey {
    struct store *store;
    uint64_t dead_number;   /* what dies now is in no checkpoint from this one on */
    uint64_t newest_number; /* log segments below: all their writes are in the index */
    uint64_t oldest_number; /* log segments below: no replay needs them */
    uint64_t oldest_toc;
    bool may_remove;
    struct segment_file *removable[REMOVALS_STEP];
    unsigned removable_count;
    uint64_t pending, pending_bytes; /* dead */
    bool waits;                      /* another checkpoint would bring something nearer to its end */
    bool would_go;                   /* without the older toc */
};

static bool survey_file(void *context, struct segment_file *file)
{
    struct survey *s = context;
    const struct keeper *k = &s->store->keeper;
    if (!atomic_load_explicit(&file->sealed, memory_order_acquire))
        return true;
    uint64_t bytes = atomic_load_explicit(&file->bytes, memory_order_relaxed);
    bool indexed = file->data || file->number < s->newest_number;
    int64_t live = segments_live_bytes(s->store->segments, file);
    if (file->dead_since == 0 && indexed && live == 0)
        file->dead_since = s->dead_number;
    if (file->dead_since == 0) {
        /* Small records weigh more than they have bytes. */
        s->waits |= !file->data && file->number >= s->oldest_number && live < (int64_t)bytes &&
                    ((int64_t)bytes - live) * 100 > (int64_t)bytes * WORTH_PERCENT;
        return true;
    }
    s->pending++;
    s->pending_bytes += bytes;
    bool goes = s->oldest_toc >= file->dead_since && (file->data || file->number < s->oldest_number);
    s->waits |= !goes;
    if (goes && s->may_remove && s->removable_count < REMOVALS_STEP)
        s->removable[s->removable_count++] = file;
    s->would_go |= k->toc_count > 1 && k->tocs[0].number >= file->dead_since && indexed;
    return true;
}

/* So much in spare files is worth keeping: what the log has lately taken in some seconds. While nobody writes
 * they go. */
static uint64_t spare_bytes_max(const struct store *store)
{
    uint64_t rate = store->keeper.cleaner.fill_lately;
    if (rate < SPARE_RATE_LEAST)
        return 0;
    uint64_t bytes = rate * SPARE_SECONDS, most = SPARE_BYTES_MAX;
    return bytes < SPARE_BYTES_LEAST ? SPARE_BYTES_LEAST : bytes < most ? bytes : most;
}

static bool is_worth_keeping(struct store *store, const struct segment_file *file)
{
    struct room r = room_now(store);
    uint64_t bytes =
        atomic_load_explicit(&((struct segment_file *)(uintptr_t)file)->bytes, memory_order_relaxed);
    bool tested = store->config.no_threads; /* where no time passes */
    return (tested || bytes >= SEGMENT_BYTES_MIN) && r.left + r.leaving >= kept_free(store) &&
           (tested || r.spare + bytes <= spare_bytes_max(store));
}

/* Too many spare files, or new ones need their room. */
static bool drop_spare(struct store *store)
{
    const struct segment_folder folder = store_segment_folder(store);
    struct room r = room_now(store);
    bool too_many = !store->config.no_threads && r.spare > spare_bytes_max(store);
    return r.spare && (too_many || r.left + r.leaving < kept_free(store)) && spare_drop(&folder, UINT64_MAX);
}

/* With a thread it is done bit by bit: space_reap_step. */
static void reap_all(struct store *store)
{
    if (store->config.no_threads)
        (void)segments_reap(store->segments);
}

bool space_reap_step(struct store *store, uint64_t *wait_us)
{
    if (store->config.no_threads || !segments_reap_step(store->segments))
        return false;
    log_room_freed(store->log);
    *wait_us = REAP_PAUSE_US;
    return true;
}

static bool remove_some(struct store *store, const struct survey *survey)
{
    struct cleaner *c = &store->keeper.cleaner;
    bool removed = false;
    for (unsigned i = 0; i < survey->removable_count; i++) {
        struct segment_file *file = survey->removable[i];
        uint64_t bytes = atomic_load_explicit(&file->bytes, memory_order_relaxed);
        status_t s = log_remove_segment(store->log, file, is_worth_keeping(store, file));
        if (!status_is_ok(&s)) {
            if (!c->removal_failed)
                LOG_WARNING("%s", s.text);
            c->removal_failed = true;
            continue;
        }
        c->removal_failed = false;
        removed = true;
        set(&c->removed_segments, get(&c->removed_segments) + 1);
        set(&c->removed_bytes, get(&c->removed_bytes) + bytes);
    }
    reap_all(store);
    if (removed)
        log_room_freed(store->log);
    return removed;
}

/* Room is short, and only checkpoints let files go. */
static bool ask_for_checkpoint(struct store *store, enum space_level level)
{
    struct keeper *k = &store->keeper;
    uint64_t now_ms = clock_monotonic_us() / 1000;
    uint64_t pause = level == SPACE_CRITICAL ? REQUEST_MS_CRITICAL : REQUEST_MS;
    if (k->checkpoint || (!store->config.no_threads &&
                          (now_ms < k->cleaner.request_ms + pause || !checkpoint_may_retry(store))))
        return false;
    k->cleaner.request_ms = now_ms;
    (void)store_checkpoint_request(store);
    return true;
}

/* What is kept back may be less than before. */
static void update_and_tell(struct store *store)
{
    struct cleaner *c = &store->keeper.cleaner;
    uint64_t before = get(&c->kept_bytes);
    update(store);
    if (store->keeper.checkpoint == NULL) /* else it is being set right */
        set(&c->guesses, is_guess(store) && store->keeper.backoff.delay_ms == 0);
    if (get(&c->kept_bytes) < before)
        log_room_freed(store->log);
}

bool space_step(struct store *store, enum space_level *level)
{
    struct keeper *k = &store->keeper;
    update_and_tell(store);
    enum space_level now = space_level_now(store);
    struct survey s = {.store = store, .dead_number = k->next_number + (k->checkpoint != NULL)};
    if (k->toc_count) {
        s.newest_number = k->tocs[0].start_lsn >> LOG_SEGMENT_SHIFT;
        s.oldest_number = k->tocs[k->toc_count - 1].start_lsn >> LOG_SEGMENT_SHIFT;
        s.oldest_toc = k->tocs[k->toc_count - 1].number;
        s.may_remove = k->toc_count == KEEPER_TOCS_KEPT || now == SPACE_CRITICAL;
    }
    segments_each(store->segments, survey_file, &s);
    (void)drop_spare(store);
    *level = level_of(store, s.pending_bytes); /* what has died comes free without cleaning */
    set(&k->cleaner.pending_segments, s.pending);
    set(&k->cleaner.pending_bytes, s.pending_bytes);
    if (s.removable_count)
        return remove_some(store, &s);
    reap_all(store);
    if (now == SPACE_CRITICAL && s.would_go && k->checkpoint == NULL) {
        uint64_t now_ms = clock_monotonic_us() / 1000;
        if (k->cleaner.said_ms == 0 || now_ms >= k->cleaner.said_ms + SAY_MS)
            LOG_INFO("space is short: only the newest checkpoint is kept, so that old segments can go");
        k->cleaner.said_ms = now_ms;
        checkpoint_drop_older(store);
        return true;
    }
    bool enough = store->config.no_threads || is_enough(store, s.pending_bytes);
    bool guesses = is_guess(store) && store_lacks_room(store);
    if (guesses || (s.waits && (now == SPACE_LOW || (now == SPACE_CRITICAL && enough))))
        (void)ask_for_checkpoint(store, now);
    k->cleaner.waits_for_checkpoint = s.waits || guesses;
    return false;
}

bool space_cleaned(struct store *store)
{
    return store->keeper.cleaner.waits_for_checkpoint && space_level_now(store) == SPACE_CRITICAL &&
           ask_for_checkpoint(store, SPACE_CRITICAL);
}

/* ---- the start ---- */

struct orphans {
    struct store *store;
    uint64_t next_number;
    char before[SEGMENT_NAME_BYTES]; /* has been tried */
    char name[SEGMENT_NAME_BYTES];   /* the first behind it; empty: none */
};

static int find_orphan(void *context, const char *name)
{
    struct orphans *o = context;
    uint64_t number;
    if (!segment_parse_data_name(name, &number))
        return 0;
    if (segments_find(o->store->segments, segment_lsn(number, 0) | SEGMENT_DATA_ADDRESS)) {
        if (number >= o->next_number)
            o->next_number = number + 1;
    } else if (strcmp(name, o->before) > 0 && (o->name[0] == '\0' || strcmp(name, o->name) < 0)) {
        segment_file_name(o->name, true, number);
    }
    return 0;
}

/* What no checkpoint names goes. Its number counts for nothing, for it may be any; one that stays is met when
 * its number's turn comes, and costs that round. */
status_t space_begin(struct store *store)
{
    struct disk *disk = store->config.disk;
    struct orphans o = {.store = store, .next_number = 1};
    for (;;) {
        o.name[0] = '\0';
        int e = disk->ops->list(disk, store->keeper.folder, find_orphan, &o);
        if (e < 0)
            return status_errno(-e, "cannot list the folder %s", store->config.path);
        if (o.name[0] == '\0')
            break;
        e = disk->ops->remove(disk, store->keeper.folder, o.name);
        if (e < 0)
            LOG_WARNING("cannot remove %s/%s, which no checkpoint names: %s", store->config.path, o.name,
                        strerror(-e));
        memcpy(o.before, o.name, sizeof o.before);
    }
    store->keeper.cleaner.next_number = o.next_number;
    return status_ok();
}

/* ---- numbers ---- */

void store_cleaner_stats_get(struct store *store, struct store_cleaner_stats *out)
{
    const struct cleaner *c = &store->keeper.cleaner;
    *out = (struct store_cleaner_stats){
        .running = get(&c->state),
        .rounds = get(&c->rounds),
        .segments = get(&c->segments),
        .moved = get(&c->moved),
        .copied_bytes = get(&c->copied_bytes),
        .failures = get(&c->failures),
        .damaged = get(&c->damaged),
        .removed_segments = get(&c->removed_segments),
        .removed_bytes = get(&c->removed_bytes),
        .pending_segments = get(&c->pending_segments),
        .pending_bytes = get(&c->pending_bytes),
        .tocs_bytes = get(&c->other_bytes),
    };
}
