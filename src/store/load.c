/* Starting from a toc: its entries become index nodes, whose values are on disk, on all cores. Keys come in
 * order, so the ordered index is built from the bottom up; the hash table has its size before the first. The
 * log's tail is replayed over it afterwards (replay.c).
 *
 * What cannot be used leads to the toc before it, then to a replay of the whole log, which says for itself if
 * its beginning is gone. */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/check.h"
#include "base/logger.h"
#include "index/ordered_build.h"
#include "log/segment.h"
#include "store/internal.h"
#include "toc/toc_read.h"

enum {
    LOADERS_MAX = 64,
    BATCH = 32, /* nodes whose places in the hash table are prefetched together */
    PROGRESS_BLOCKS = 64,
    REPLAY_BYTES = 1 << 20,         /* read of the log at a time, and what is in them */
    SLACK_VARIES_BYTES = 512 << 10, /* from one start to the next */
};

/* One thread's share: blocks first .. first + count - 1. */
struct loader {
    struct store *store;
    struct store_worker_private *p;
    const struct toc *toc;
    _Atomic uint64_t *blocks_done, *keys_done; /* of all threads; relaxed: only shown */
    uint64_t first, count;
    struct ordered_builder *builder;
    uint64_t hashes[BATCH];
    uint32_t refs[BATCH];
    unsigned pending;
    uint64_t keys, expiring;
    bool in_order;
    status_t status;
    pthread_t thread;
};

/* ---- one thread ---- */

static void insert_pending(struct loader *l)
{
    struct store *store = l->store;
    for (unsigned i = 0; i < l->pending; i++) {
        uint32_t stripe = keylock_stripe(l->hashes[i]);
        while (!keylock_acquire(&store->locks, stripe))
            sched_yield(); /* its holder, another loader, was preempted */
        hash_table_insert(&store->hash, &l->p->arena, &l->p->epoch, l->hashes[i], l->refs[i]);
        keylock_release(&store->locks, stripe);
    }
    l->pending = 0;
}

static bool load_entry(void *context, const struct toc_entry *e)
{
    struct loader *l = context;
    struct store *store = l->store;
    uint64_t hash = hash_table_hash(&store->hash, e->key);
    hash_table_prefetch(&store->hash, hash);
    struct node *node =
        payload_node_create_cold(store, l->p, e->key, e->value_len, e->expire_ms, e->address, e->version);
    node_publish(node, e->version);
    uint32_t ref = arena_ref(&store->arena, node);
    l->in_order = ordered_builder_add(l->builder, ref);
    if (!l->in_order)
        return false;
    l->hashes[l->pending] = hash;
    l->refs[l->pending++] = ref;
    if (l->pending == BATCH)
        insert_pending(l);
    l->keys++;
    l->expiring += e->expire_ms != 0;
    return true;
}

static void *loader_main(void *context)
{
    struct loader *l = context;
    const struct toc_info *info = toc_info(l->toc);
    bool entered = l->p->index != 0; /* worker 0 is in its section during the whole start */
    if (entered)
        epoch_enter(&l->p->epoch);
    for (uint64_t done = 0; done < l->count && status_is_ok(&l->status);) {
        uint64_t n = l->count - done < PROGRESS_BLOCKS ? l->count - done : PROGRESS_BLOCKS, had = l->keys;
        l->status = toc_read_blocks(l->toc, l->first + done, n, load_entry, l);
        if (status_is_ok(&l->status) &&
            !l->in_order) /* where one call's blocks end and the next one's begin */
            l->status = status_error(STATUS_CORRUPT, "its keys are not in order");
        done += n;
        had = l->keys - had;
        uint64_t all = atomic_fetch_add_explicit(l->blocks_done, n, memory_order_relaxed) + n;
        uint64_t keys = atomic_fetch_add_explicit(l->keys_done, had, memory_order_relaxed) + had;
        if (l->p->index == 0 && l->store->config.load_progress)
            l->store->config.load_progress(l->store->config.context, all * TOC_BLOCK_BYTES,
                                           info->bytes + l->store->replay->tail_bytes, keys);
    }
    insert_pending(l);
    if (entered)
        epoch_exit(&l->p->epoch);
    return NULL;
}

/* ---- one toc ---- */

static status_t check_segment(struct store *store, int folder, const struct toc_info *info,
                              const struct toc_segment *listed)
{
    bool data = listed->kind == TOC_SEGMENT_DATA;
    uint64_t address = segment_lsn(listed->number, 0) | (data ? SEGMENT_DATA_ADDRESS : 0);
    const char *path = store->config.path;
    char name[TOC_NAME_BYTES], segment[SEGMENT_NAME_BYTES];
    toc_name(name, info->number, false);
    if (listed->kind > TOC_SEGMENT_DATA || listed->number > SEGMENT_NUMBER_MAX)
        return status_error(STATUS_UNSUPPORTED,
                            "%s/%s names a segment %" PRIu64 " of kind %" PRIu32
                            ", which only a newer kvasir has",
                            path, name, listed->number, listed->kind);
    if (!data && listed->number >= info->start_lsn >> LOG_SEGMENT_SHIFT)
        return status_ok(); /* the replay reads it */
    struct segment_file *file = segments_find(store->segments, address);
    if (file == NULL)
        TRY(segment_list(store->config.disk, folder, path, store->segments, data, listed->number, &file));
    segment_file_name(segment, data, listed->number);
    if (file->generation != listed->generation)
        return status_error(STATUS_CORRUPT, "%s/%s is not the file that %s names: it has another generation",
                            path, segment, name);
    return status_ok();
}

static status_t check_memory(struct store *store, const struct toc_info *info)
{
    if (!store_evicts(store))
        return status_ok();
    if (!store->config.no_threads)
        memory_measure(store);
    struct memory_use use = memory_use(store);
    uint64_t all = info->index_bytes + use.slack_bytes + REPLAY_BYTES;
    if (memory_cap_for(info->index_bytes, all) <= use.cap_bytes)
        return status_ok();
    uint64_t needed = memory_cap_for(info->index_bytes, all + SLACK_VARIES_BYTES);
    return status_error(STATUS_INVALID,
                        "--memory %" PRIu64 " MiB is too little: the index of %" PRIu64 " keys needs %" PRIu64
                        " MiB; give more memory",
                        use.cap_bytes >> 20, info->keys, needed >> 20);
}

/* The hash table gets the size that its keys need if that fits, else half of it and overflow buckets: as it
 * was perhaps when the checkpoint was written. */
static status_t reserve_table(struct store *store, const struct toc_info *info)
{
    struct memory_use use = memory_use(store);
    uint64_t more = hash_table_bytes_for(info->keys) / 2;
    bool fits = !store_evicts(store) || info->index_bytes + more <= use.budget_bytes;
    return hash_table_reserve(&store->hash, fits ? info->keys : info->keys / 2);
}

static unsigned loader_count(const struct store *store, const struct toc_info *info)
{
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    uint64_t n = store_participants(store);
    if (cores > 0 && (uint64_t)cores < n && !store->config.no_threads)
        n = (uint64_t)cores;
    if (n > info->blocks)
        n = info->blocks;
    return n > LOADERS_MAX ? LOADERS_MAX : (unsigned)n;
}

static void run_loaders(struct store *store, struct loader *loaders, unsigned n)
{
    for (unsigned i = 1; i < n; i++) {
        if (store->config.no_threads)
            loader_main(&loaders[i]);
        else
            CHECK(pthread_create(&loaders[i].thread, NULL, loader_main, &loaders[i]) == 0);
    }
    loader_main(&loaders[0]); /* itself: it is worker 0's thread */
    for (unsigned i = 1; i < n && !store->config.no_threads; i++)
        pthread_join(loaders[i].thread, NULL);
}

static status_t load_blocks(struct store *store, const struct toc *toc)
{
    const struct toc_info *info = toc_info(toc);
    unsigned n = loader_count(store, info);
    struct loader *loaders = calloc(n + 1, sizeof *loaders);
    struct ordered_builder *builders[LOADERS_MAX];
    _Atomic uint64_t blocks_done = 0, keys_done = 0;
    uint64_t keys = 0, expiring = 0;
    CHECK(loaders != NULL);
    for (unsigned i = 0; i < n; i++) {
        struct store_worker_private *p = store->workers[i].private;
        uint64_t first = info->blocks * i / n;
        builders[i] = ordered_builder_create(&p->arena);
        loaders[i] = (struct loader){.store = store,
                                     .p = p,
                                     .toc = toc,
                                     .blocks_done = &blocks_done,
                                     .keys_done = &keys_done,
                                     .first = first,
                                     .count = info->blocks * (i + 1) / n - first,
                                     .builder = builders[i],
                                     .in_order = true,
                                     .status = status_ok()};
    }
    if (n)
        run_loaders(store, loaders, n);
    status_t s = status_ok();
    for (unsigned i = 0; i < n; i++) {
        if (status_is_ok(&s))
            s = loaders[i].status;
        keys += loaders[i].keys;
        expiring += loaders[i].expiring;
    }
    if (status_is_ok(&s) && keys != info->keys)
        s = status_error(STATUS_CORRUPT, "it has %" PRIu64 " keys and should have %" PRIu64, keys,
                         info->keys);
    if (status_is_ok(&s))
        s = ordered_builders_join(&store->ordered, &store->workers[0].private->arena, builders, n);
    for (unsigned i = 0; i < n; i++)
        ordered_builder_destroy(builders[i]);
    atomic_store_explicit(&store->keys, keys, memory_order_relaxed);
    atomic_store_explicit(&store->expiring, expiring, memory_order_relaxed);
    free(loaders);
    return s;
}

/* Lists all files that the toc names. Those that only the older toc names are kept as long as that is. */
static status_t check_segments(struct store *store, int folder, const struct toc_info *info)
{
    for (uint32_t i = 0; i < info->segment_count; i++)
        TRY(check_segment(store, folder, info, &info->segments[i]));
    return status_ok();
}

struct tail {
    struct disk *disk;
    int folder;
    uint64_t first_number, bytes;
};

static int add_to_tail(void *context, const char *name)
{
    struct tail *t = context;
    uint64_t number;
    if (!segment_parse_name(name, &number) || number < t->first_number)
        return 0;
    int fd = t->disk->ops->open(t->disk, t->folder, name, false, false);
    if (fd < 0)
        return 0;
    int64_t size = t->disk->ops->size(t->disk, fd);
    t->bytes += size > 0 ? (uint64_t)size : 0;
    t->disk->ops->close(t->disk, fd);
    return 0;
}

/* What the replay will have to read: for the progress only. */
static uint64_t tail_bytes(const struct store *store, int folder, uint64_t start_lsn)
{
    struct tail t = {
        .disk = store->config.disk, .folder = folder, .first_number = start_lsn >> LOG_SEGMENT_SHIFT};
    return store->config.load_progress && t.disk->ops->list(t.disk, folder, add_to_tail, &t) >= 0 ? t.bytes
                                                                                                  : 0;
}

static status_t load_toc(struct store *store, int folder, const struct toc *toc)
{
    const struct toc_info *info = toc_info(toc);
    store->replay->tail_bytes = tail_bytes(store, folder, info->start_lsn);
    TRY(check_segments(store, folder, info));
    TRY(check_memory(store, info));
    TRY(reserve_table(store, info));
    return load_blocks(store, toc);
}

/* ---- which one ---- */

struct found {
    struct disk *disk;
    int folder;
    uint64_t *numbers;
    size_t count, capacity;
    char temporary[TOC_NAME_BYTES]; /* one that is to be removed */
};

static int note_toc(void *context, const char *name)
{
    struct found *f = context;
    uint64_t number;
    bool temporary;
    if (!toc_parse_name(name, &number, &temporary))
        return 0;
    if (temporary) {
        toc_name(f->temporary, number, true);
        return 1; /* listed again without it */
    }
    f->numbers = store_grow(f->numbers, &f->capacity, f->count + 1, sizeof *f->numbers);
    f->numbers[f->count++] = number;
    return 0;
}

static int newest_first(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x < y) - (x > y);
}

/* Lists the tocs, after what a crash has left of unfinished ones is gone. */
static status_t find_tocs(struct store *store, struct found *f)
{
    for (;;) {
        f->count = 0;
        f->temporary[0] = '\0';
        int e = f->disk->ops->list(f->disk, f->folder, note_toc, f);
        if (e < 0)
            return status_errno(-e, "cannot list the folder %s", store->config.path);
        if (f->temporary[0] == '\0')
            break;
        e = f->disk->ops->remove(f->disk, f->folder, f->temporary);
        if (e == -EISDIR)
            return status_error(STATUS_INVALID,
                                "%s/%s is a folder, where a file of the server's own belongs: move it away",
                                store->config.path, f->temporary);
        if (e < 0)
            return status_errno(-e, "cannot remove the unfinished checkpoint %s/%s", store->config.path,
                                f->temporary);
    }
    if (f->count)
        qsort(f->numbers, f->count, sizeof *f->numbers, newest_first);
    return status_ok();
}

/* Nobody else is there yet to ask for numbers. */
static void keep(struct keeper *k, const struct toc_info *info)
{
    if (k->toc_count == 0) {
        k->stats.number = info->number;
        k->stats.keys = info->keys;
        k->stats.bytes = info->bytes;
        k->stats.published_ms = info->created_ms;
    }
    if (k->toc_count < KEEPER_TOCS_KEPT)
        k->tocs[k->toc_count++] = (struct kept_toc){info->number, info->start_lsn, info->keys, info->bytes};
}

/* Damage leads to the next older one; what more memory or a newer kvasir would mend does not. */
static bool is_damage(const status_t *s)
{
    return s->code != STATUS_INVALID && s->code != STATUS_UNSUPPORTED;
}

static status_t load_newest(struct store *store, struct found *f, struct log_config *config)
{
    struct keeper *k = &store->keeper;
    for (size_t i = 0; i < f->count && k->toc_count < KEEPER_TOCS_KEPT; i++) {
        struct toc *toc = NULL;
        bool first = k->toc_count == 0;
        status_t s = toc_open(f->disk, f->folder, store->config.path, f->numbers[i], &toc);
        if (status_is_ok(&s))
            s = first ? load_toc(store, f->folder, toc) : check_segments(store, f->folder, toc_info(toc));
        if (status_is_ok(&s)) {
            keep(k, toc_info(toc));
            if (first) {
                config->start_lsn = toc_info(toc)->start_lsn;
                store->replay->toc_bytes = toc_info(toc)->bytes;
            }
            if (config->known_lsn < toc_info(toc)->end_lsn)
                config->known_lsn = toc_info(toc)->end_lsn;
        }
        toc_close(toc);
        if (status_is_ok(&s))
            continue;
        if (!is_damage(&s))
            return s;
        LOG_WARNING("checkpoint %" PRIu64 " cannot be used, trying without it: %s", f->numbers[i], s.text);
        if (first)
            TRY(store_index_reset(store));
    }
    return status_ok();
}

/* The first that is free behind the newest good one. Not behind all names: a damaged file may have any. */
static uint64_t next_number(const struct store *store, const struct found *f)
{
    const struct keeper *k = &store->keeper;
    uint64_t next = k->toc_count ? k->tocs[0].number + 1 : 1;
    for (size_t i = f->count; i-- > 0;)
        next += f->numbers[i] == next;
    return next;
}

status_t store_load(void *context, int folder, struct log_config *config)
{
    struct store *store = ((struct replay *)context)->store;
    struct found f = {.disk = store->config.disk, .folder = folder};
    store->keeper.folder = folder;
    status_t s = find_tocs(store, &f);
    if (status_is_ok(&s) && f.count) {
        s = load_newest(store, &f, config);
        store->keeper.next_number = next_number(store, &f);
    }
    free(f.numbers);
    return s;
}
