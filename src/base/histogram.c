#include "base/histogram.h"

#include <string.h>

#define LOAD(field)       atomic_load_explicit(&(field), memory_order_relaxed)
#define STORE(field, val) atomic_store_explicit(&(field), (val), memory_order_relaxed)

static unsigned bucket_of(uint64_t value)
{
    if (value < (1u << HISTOGRAM_SUB_BITS))
        return (unsigned)value;
    unsigned shift = 63u - (unsigned)__builtin_clzll(value) - HISTOGRAM_SUB_BITS;
    unsigned sub = (unsigned)(value >> shift) & ((1u << HISTOGRAM_SUB_BITS) - 1);
    return ((shift + 1) << HISTOGRAM_SUB_BITS) + sub;
}

static uint64_t bucket_upper(unsigned bucket)
{
    if (bucket < (1u << HISTOGRAM_SUB_BITS))
        return bucket;
    unsigned shift = (bucket >> HISTOGRAM_SUB_BITS) - 1;
    uint64_t sub = (bucket & ((1u << HISTOGRAM_SUB_BITS) - 1)) | (1u << HISTOGRAM_SUB_BITS);
    return (sub << shift) + ((1ull << shift) - 1);
}

void histogram_init(struct histogram *h)
{
    memset(h, 0, sizeof *h);
}

void histogram_add(struct histogram *h, uint64_t value)
{
    unsigned b = bucket_of(value);
    STORE(h->counts[b], LOAD(h->counts[b]) + 1);
    STORE(h->count, LOAD(h->count) + 1);
    STORE(h->sum, LOAD(h->sum) + value);
    if (value > LOAD(h->max))
        STORE(h->max, value);
}

void histogram_merge(struct histogram *into, const struct histogram *from)
{
    for (unsigned b = 0; b < HISTOGRAM_BUCKETS; b++)
        STORE(into->counts[b], LOAD(into->counts[b]) + LOAD(from->counts[b]));
    STORE(into->count, LOAD(into->count) + LOAD(from->count));
    STORE(into->sum, LOAD(into->sum) + LOAD(from->sum));
    if (LOAD(from->max) > LOAD(into->max))
        STORE(into->max, LOAD(from->max));
}

uint64_t histogram_quantile(const struct histogram *h, double fraction)
{
    uint64_t count = LOAD(h->count), seen = 0, max = LOAD(h->max);
    if (count == 0)
        return 0;
    uint64_t rank = (uint64_t)(fraction * (double)count);
    if (rank >= count)
        rank = count - 1;
    for (unsigned b = 0; b < HISTOGRAM_BUCKETS; b++) {
        seen += LOAD(h->counts[b]);
        if (seen > rank)
            return bucket_upper(b) < max ? bucket_upper(b) : max;
    }
    return max;
}

double histogram_mean(const struct histogram *h)
{
    uint64_t count = LOAD(h->count);
    return count ? (double)LOAD(h->sum) / (double)count : 0.0;
}
