/* One store: putting the parts together, recovery, turns, numbers. */
#include "store/store.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/random.h>

#include "base/check.h"
#include "base/logger.h"
#include "log/segment.h"
#include "store/fetch.h"
#include "store/internal.h"
#include "sys/clock.h"

void *store_grow(void *array, size_t *capacity, size_t n, size_t element_bytes)
{
    if (n <= *capacity && array)
        return array;
    size_t wider = *capacity ? *capacity * 2 : 64;
    while (wider < n)
        wider *= 2;
    array = realloc(array, wider * element_bytes);
    CHECK(array != NULL);
    *capacity = wider;
    return array;
}

/* ---- life ---- */

static void store_replay_progress(void *context, uint64_t done_bytes, uint64_t total_bytes)
{
    struct replay *replay = context;
    struct store *store = replay->store;
    replay->done_bytes = done_bytes;
    replay->total_bytes = total_bytes;
    if (store->config.load_progress)
        store->config.load_progress(store->config.context, replay->toc_bytes + done_bytes,
                                    replay->toc_bytes + total_bytes,
                                    atomic_load_explicit(&store->keys, memory_order_relaxed));
}

static status_t init_index(struct store *store)
{
    uint64_t seed;
    if (getrandom(&seed, sizeof seed, 0) != sizeof seed)
        return status_errno(errno, "cannot get a random seed for hashing");
    TRY(arena_init(&store->arena));
    epoch_init(&store->epoch, store_participants(store));
    store->epoch.hold_us = store->config.epoch_hold_us;
    for (unsigned i = 0; i < store_participants(store); i++) {
        struct store_worker_private *p = store->workers[i].private;
        arena_cache_init(&p->arena, &store->arena);
        epoch_participant_init(&p->epoch, &store->epoch, i, &p->arena);
        atomic_store_explicit(&p->share_bytes, 0, memory_order_relaxed);
        atomic_store_explicit(&p->growth_bytes, 0, memory_order_relaxed);
    }
    TRY(ordered_init(&store->ordered, &store->arena, &store->workers[0].private->arena));
    return hash_table_init(&store->hash, &store->arena, &store->locks, seed);
}

static void deinit_index(struct store *store)
{
    for (unsigned i = 0; i < store_participants(store) && store->arena.base; i++)
        epoch_participant_deinit(&store->workers[i].private->epoch);
    if (atomic_load_explicit(&store->hash.current, memory_order_relaxed))
        hash_table_deinit(&store->hash);
    if (store->arena.base)
        arena_deinit(&store->arena);
}

status_t store_index_reset(struct store *store)
{
    epoch_exit(&store->workers[0].private->epoch); /* of the whole start: see open_log */
    deinit_index(store);
    store->arena.base = NULL;
    store->hash = (struct hash_table){0};
    segments_live_clear(store->segments);
    atomic_store_explicit(&store->keys, 0, memory_order_relaxed);
    atomic_store_explicit(&store->expiring, 0, memory_order_relaxed);
    TRY(init_index(store));
    epoch_enter(&store->workers[0].private->epoch);
    return status_ok();
}

static void store_log_progress(void *context)
{
    struct store *store = ((struct replay *)context)->store;
    if (store->config.on_progress)
        store->config.on_progress(store->config.context);
}

/* Under a disk limit files are as large as the cleaner's, so that each can be used again for either; and they
 * are many, as room comes free by whole files. */
static uint64_t log_segment_bytes_max(const struct store *store)
{
    enum { LEAST = 4 << 20 };
    const struct store_config *c = &store->config;
    if (c->log_segment_bytes_max || c->disk_limit_bytes == 0)
        return c->log_segment_bytes_max;
    uint64_t bytes = cleaner_file_bytes(store);
    return bytes < LEAST ? LEAST : bytes;
}

/* Replay's buffer beside an index that may fill the cap. */
static size_t replay_bytes(uint64_t cap)
{
    enum { LEAST = 512 << 10, MOST = 4 << 20, PART = 64 };
    uint64_t bytes = cap / PART / LOG_BLOCK_BYTES * LOG_BLOCK_BYTES;
    return cap == 0 || bytes > MOST ? MOST : bytes < LEAST ? LEAST : (size_t)bytes;
}

static int find_log(void *found, const char *name)
{
    uint64_t number;
    *(bool *)found |= segment_parse_name(name, &number);
    return 0;
}

/* Without durability the folder is left alone: who has started with data there should know. */
static void warn_of_log(const struct store_config *c)
{
    bool found = false;
    int folder = c->disk ? c->disk->ops->folder_open(c->disk, c->path, false) : -1;
    if (folder < 0)
        return;
    if (c->disk->ops->list(c->disk, folder, find_log, &found) >= 0 && found)
        LOG_WARNING(
            "%s holds a log: what is stored there is not read, and stays as it is, with --durability none",
            c->path);
    c->disk->ops->close(c->disk, folder);
}

static status_t open_log(struct store *store)
{
    const struct store_config *c = &store->config;
    if (c->durability == STORE_NONE) {
        warn_of_log(c);
        return status_ok();
    }
    store->segments = segments_create(c->disk);
    for (unsigned i = 0; i < store_participants(store); i++)
        segments_lane_attach(&store->workers[i].private->live, store->segments, i);
    struct log_config config = {
        .disk = c->disk,
        .segments = store->segments,
        .path = c->path,
        .segment_bytes_first = c->log_segment_bytes_first,
        .segment_bytes_max = log_segment_bytes_max(store),
        .background = !c->no_threads,
        .replay_bytes = replay_bytes(c->memory_bytes_max),
        .flush_interval_us = c->durability == STORE_INTERVAL ? 1000000 : 0,
        .on_locked = store_load,
        .replay = store_replay,
        .replay_room = store_replay_room,
        .replay_progress = store_replay_progress,
        .may_allocate = space_may_allocate,
        .may_reuse = space_may_reuse,
        .allocated = space_allocated,
        .may_wait = space_will_come,
        .on_progress = store_log_progress,
        .context = store->replay,
    };
    struct store_worker *sw = &store->workers[0];
    uint64_t start_us = clock_monotonic_us();
    epoch_enter(&sw->private->epoch);
    status_t s = log_open(&config, &store->log);
    epoch_exit(&sw->private->epoch);
    store->load_us = clock_monotonic_us() - start_us;
    return s;
}

/* Values on their way from disk may take a part of the memory that is small beside the cap. */
static void init_fetch(struct store *store)
{
    enum { PART = 16, COMMAND_PART = 4, BYTES_LEAST = 1 << 20 };
    uint64_t cap = store->config.memory_bytes_max, bytes = FETCH_MEMORY_DEFAULT;
    if (cap && cap / PART < bytes)
        bytes = cap / PART;
    bytes /= store->config.workers;
    struct fetch_config config = {
        .segments = store->segments,
        .memory_bytes_max = bytes < BYTES_LEAST ? BYTES_LEAST : bytes,
        .command_bytes_max = cap ? cap / COMMAND_PART : FETCH_COMMAND_BYTES_DEFAULT,
        .io_depth = store->config.io_depth,
    };
    for (unsigned i = 0; store->segments && i < store->config.workers; i++)
        fetch_init(&store->workers[i], &config);
}

status_t store_open(const struct store_config *config, struct store **out)
{
    if (config->workers == 0 || config->workers > STORE_WORKERS_MAX)
        return status_error(STATUS_INVALID, "a store has 1 to %d workers, not %u", STORE_WORKERS_MAX,
                            config->workers);
    struct store *store = calloc(1, sizeof *store);
    CHECK(store != NULL);
    store->config = *config;
    atomic_init(&store->memory_bytes_max, config->memory_bytes_max);
    atomic_init(&store->evicts, config->memory_bytes_max && config->durability != STORE_NONE);
    atomic_init(&store->next_lsn, 8);
    store->workers = calloc(store_participants(store), sizeof *store->workers);
    store->replay = calloc(1, sizeof *store->replay);
    store->sweep_position = malloc(1);
    CHECK(store->workers && store->replay && store->sweep_position);
    store->replay->store = store;
    for (unsigned i = 0; i < store_participants(store); i++) {
        struct store_worker_private *p = calloc(1, sizeof *p);
        CHECK(p != NULL);
        store->workers[i].store = store;
        store->workers[i].private = p;
        p->index = i;
        p->walks = i == config->workers;
        p->residents[RESIDENT_EXTERNAL].kind = RESIDENT_EXTERNAL;
        p->alone = config->workers == 1 && !p->walks;
    }
    keeper_init(store);
    status_t s = init_index(store);
    if (status_is_ok(&s))
        s = open_log(store);
    if (!status_is_ok(&s)) {
        store_close(store);
        return s;
    }
    init_fetch(store);
    memory_prepare(store);
    if (store->log)
        keeper_start(store);
    *out = store;
    return status_ok();
}

static void worker_deinit(struct store_worker_private *p)
{
    for (unsigned i = 0; i < p->job_count; i++) {
        free(p->jobs[i].range);
        free(p->jobs[i].position);
    }
    if (p->large)
        log_large_destroy(p->large);
    free(p->stripes);
    free(p->hashes);
    free(p->sequences);
    free(p->tombstones);
    free(p->scratch);
    for (unsigned kind = 0; kind < RESIDENT_KINDS; kind++)
        residents_deinit(&p->residents[kind]);
}

/* Large values live outside the arena. */
static void free_large_values(struct store *store)
{
    struct ordered_cursor cursor;
    struct node *node;
    ordered_seek(&cursor, &store->ordered, slice_make("", 0), false);
    while ((node = ordered_next(&cursor))) {
        if (node_meta(node) & NODE_EXTERNAL)
            payload_clear(store, store->workers[0].private, node);
    }
}

void store_close(struct store *store)
{
    keeper_stop(store);
    if (store->log)
        log_close(store->log);
    for (unsigned i = 0; i < store->config.workers; i++)
        fetch_deinit(&store->workers[i]);
    segments_destroy(store->segments);
    store->segments = NULL; /* nothing is counted any more */
    if (store->arena.base && atomic_load_explicit(&store->value_bytes, memory_order_relaxed) > 0)
        free_large_values(store);
    deinit_index(store);
    keeper_deinit(store);
    for (unsigned i = 0; i < store_participants(store); i++) {
        worker_deinit(store->workers[i].private);
        free(store->workers[i].private);
    }
    free(store->sweep_position);
    free(store->fill_position);
    arena_merge_cancel(&store->merge);
    free(store->workers);
    free(store->replay);
    free(store);
}

struct store_worker *store_worker_get(struct store *store, unsigned index)
{
    CHECK(index < store->config.workers);
    return &store->workers[index];
}

/* ---- turns ---- */

/* The store's clock: the newest time that any worker has seen, so that a clock set back revives nothing. */
static uint64_t clock_forward(struct store *store)
{
    uint64_t now = clock_unix_ms(), newest = atomic_load_explicit(&store->clock_ms, memory_order_relaxed);
    while (now > newest) {
        if (atomic_compare_exchange_weak_explicit(&store->clock_ms, &newest, now, memory_order_relaxed,
                                                  memory_order_relaxed))
            return now;
    }
    return newest;
}

void store_turn_begin(struct store_worker *sw)
{
    epoch_enter(&sw->private->epoch);
    sw->private->turn++;
    sw->private->walk_stopped = false;
    sw->now_ms = clock_forward(sw->store);
}

void store_turn_end(struct store_worker *sw)
{
    room_end(sw->store, sw->private);
    epoch_exit(&sw->private->epoch);
}

/* ---- durability and numbers ---- */

uint64_t store_commit_lsn(const struct store *store)
{
    return store->config.durability == STORE_FSYNC ? log_commit_lsn(store->log) : UINT64_MAX;
}

uint64_t store_durable_lsn(const struct store *store)
{
    return store->log ? log_commit_lsn(store->log) : UINT64_MAX;
}

struct log *store_log(struct store *store)
{
    return store->log;
}

void store_stats_get(struct store *store, struct store_stats *out)
{
    *out = (struct store_stats){
        .keys = atomic_load_explicit(&store->keys, memory_order_relaxed),
        .keys_expiring = atomic_load_explicit(&store->expiring, memory_order_relaxed),
        .keys_expired = atomic_load_explicit(&store->expired, memory_order_relaxed),
        .tombstones = atomic_load_explicit(&store->tombstones, memory_order_relaxed),
        .memory_index_bytes = atomic_load_explicit(&store->arena.used_bytes, memory_order_relaxed) +
                              atomic_load_explicit(&store->hash.mapped_bytes, memory_order_relaxed),
        .memory_value_bytes = (uint64_t)atomic_load_explicit(&store->value_bytes, memory_order_relaxed),
        .memory_max_bytes = atomic_load_explicit(&store->memory_bytes_max, memory_order_relaxed),
        .memory_slack_bytes = atomic_load_explicit(&store->slack_bytes, memory_order_relaxed),
        .load_us = store->load_us,
    };
    for (unsigned i = 0; i < store->config.workers; i++) {
        struct store_worker_private *p = store->workers[i].private;
        out->values_evicted += atomic_load_explicit(&p->evicted, memory_order_relaxed);
        out->values_promoted += atomic_load_explicit(&p->promoted, memory_order_relaxed);
    }
    if (store->segments)
        segments_totals_get(store->segments, &out->disk);
}
