#include "store/victims.h"

#include <math.h>
#include <stdlib.h>

#include "base/bytes.h"
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

/* Of a file's bytes those that moving can win back, with what is live: the next file has a header and a last
 * block too. Else a small file would be copied for ever, and each time into one that is no smaller. */
static uint64_t emptiable(const struct victim *v)
{
    uint64_t frame = v->file->data ? 2 * LOG_BLOCK_BYTES : 0;
    return v->bytes > frame ? v->bytes - frame : 0;
}

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
    if (v.live == 0 || v.live * 100 > emptiable(&v) * c->live_percent_max)
        return true;
    double u = (double)v.live / (double)v.bytes, age = (double)(c->now_ms - file->since_ms + 1000);
    v.score = (1 - u) * (c->is_critical ? 1 : age) / (1 + u);
    if (cleaner_left(c->store, file)) /* it has cost room already, and gives it back when it is empty */
        v.score = INFINITY;
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

/* Of files with headers and padding: full ones, or such as hold what is live. */
static uint64_t room_of(uint64_t live, uint64_t wanted, uint64_t most)
{
    return live < wanted ? live + live / VICTIMS_MARGIN_SHARE + VICTIMS_FILES * 2 * LOG_BLOCK_BYTES
                         : wanted + wanted / most * VICTIMS_FILES * LOG_BLOCK_BYTES;
}

static void take_best(struct choice *c, uint64_t most, struct victims *out)
{
    uint64_t room = space_for_rounds(c->store), wanted = most;
    if (c->count)
        qsort(c->victims, c->count, sizeof *c->victims, best_first);
    for (size_t i = 0; i < c->count && out->count < VICTIMS_MAX; i++) {
        const struct victim *v = &c->victims[i];
        uint64_t now_wanted = out->count == 0 && v->live > most ? round_up(v->live, most) : wanted;
        if (room_of(out->live + v->live, now_wanted, most) > room) /* perhaps another one fits */
            continue;
        wanted = now_wanted;
        out->items[out->count++] = *v;
        out->live += v->live;
        out->bytes += v->bytes;
        if (out->live >= wanted || out->bytes >= BYTES_MAX)
            break;
    }
    out->room = room_of(out->live, wanted, most);
    out->whole = out->count - (out->count > 1 && out->live > wanted);
}

bool victims_choose(struct store *store, enum space_level level, uint64_t most, struct victims *out)
{
    struct keeper *k = &store->keeper;
    struct choice c = {.store = store, .now_ms = clock_monotonic_us() / 1000};
    *out = (struct victims){.count = 0};
    if (k->toc_count == 0)
        return false;
    c.is_critical = space_level_now(store) == SPACE_CRITICAL;
    c.live_percent_max = c.is_critical ? LIVE_PERCENT_MAX_CRITICAL : LIVE_PERCENT_MAX;
    c.replay_number = k->tocs[k->toc_count - 1].start_lsn >> LOG_SEGMENT_SHIFT;
    segments_each(store->segments, consider, &c);
    if (level != SPACE_FINE || (c.bytes - c.live) * 100 > c.bytes * DEAD_PERCENT)
        take_best(&c, most, out);
    free(c.victims);
    return out->count > 0;
}
