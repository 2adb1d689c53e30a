#include "store/victims.h"

#include <stdlib.h>

#include "base/check.h"
#include "store/internal.h"
#include "sys/clock.h"

enum {
    BYTES_MAX = 1 << 30,   /* of all, to be read */
    DEAD_PERCENT = 25,     /* of what could be cleaned: then it begins */
    LIVE_PERCENT_MAX = 85, /* fuller segments are not worth it */
    LIVE_PERCENT_MAX_CRITICAL = 97,
};

struct choice {
    struct store *store;
    uint64_t replay_number; /* log segments from here on are needed for a replay: not worth it yet */
    uint64_t now_ms;
    unsigned live_percent_max;
    bool is_critical; /* room now counts, not what a segment will still lose by itself */
    struct victim *victims;
    size_t count, capacity;
    uint64_t bytes, live; /* of all that could be cleaned */
};

static bool consider(void *context, struct segment_file *file)
{
    struct choice *c = context;
    if (!atomic_load_explicit(&file->sealed, memory_order_acquire))
        return true;
    if (file->since_ms == 0)
        file->since_ms = c->now_ms;
    if ((!file->data && file->number >= c->replay_number) || file->dead_since ||
        file->clean_failures >= VICTIMS_FAILURES_MAX)
        return true;
    int64_t live = segments_live_bytes(c->store->segments, file);
    struct victim v = {.file = file, .live = live > 0 ? (uint64_t)live : 0};
    v.bytes = atomic_load_explicit(&file->bytes, memory_order_relaxed);
    c->bytes += v.bytes;
    c->live += v.live < v.bytes ? v.live : v.bytes;
    if (v.live == 0 || v.live * 100 > v.bytes * c->live_percent_max)
        return true;
    double u = (double)v.live / (double)v.bytes, age = (double)(c->now_ms - file->since_ms + 1000);
    v.score = (1 - u) * (c->is_critical ? 1 : age) / (1 + u);
    c->victims = store_grow(c->victims, &c->capacity, c->count + 1, sizeof *c->victims);
    c->victims[c->count++] = v;
    return true;
}

static int best_first(const void *a, const void *b)
{
    const struct victim *x = a, *y = b;
    if (x->score != y->score)
        return x->score < y->score ? 1 : -1;
    return (x->file->number > y->file->number) - (x->file->number < y->file->number);
}

static void take_best(struct choice *c, uint64_t most, struct victims *out)
{
    uint64_t room = space_for_rounds(c->store);
    if (c->count)
        qsort(c->victims, c->count, sizeof *c->victims, best_first);
    for (size_t i = 0; i < c->count && out->count < VICTIMS_MAX; i++) {
        const struct victim *v = &c->victims[i];
        if (victims_room(out->live + v->live) > room) /* perhaps another one fits */
            continue;
        if (out->count && (out->live + v->live > most || out->bytes >= BYTES_MAX))
            break;
        out->items[out->count++] = *v;
        out->live += v->live;
        out->bytes += v->bytes;
    }
}

bool victims_choose(struct store *store, enum space_level level, uint64_t most, struct victims *out)
{
    struct keeper *k = &store->keeper;
    struct choice c = {.store = store, .now_ms = clock_monotonic_us() / 1000};
    *out = (struct victims){.count = 0};
    if (k->toc_count == 0)
        return false;
    c.is_critical = level == SPACE_CRITICAL;
    c.live_percent_max = c.is_critical ? LIVE_PERCENT_MAX_CRITICAL : LIVE_PERCENT_MAX;
    c.replay_number = k->tocs[k->toc_count - 1].start_lsn >> LOG_SEGMENT_SHIFT;
    segments_each(store->segments, consider, &c);
    if (level != SPACE_FINE || (c.bytes - c.live) * 100 > c.bytes * DEAD_PERCENT)
        take_best(&c, most, out);
    free(c.victims);
    return out->count > 0;
}
