/* histogram: counts of values in log-linear buckets, for latencies. Relative error below 1/32 (five
 * significant bits).
 *
 * Thread safety: one writer; a copy taken by another thread while it is written is a little stale, not torn
 * (relaxed atomic counters). Source: the bucket scheme of HdrHistogram (Gil Tene). */
#ifndef KVASIR_BASE_HISTOGRAM_H
#define KVASIR_BASE_HISTOGRAM_H

#include <stdatomic.h>
#include <stdint.h>

enum {
    HISTOGRAM_SUB_BITS = 5,
    HISTOGRAM_BUCKETS = (64 - HISTOGRAM_SUB_BITS + 1) << HISTOGRAM_SUB_BITS,
};

struct histogram {
    _Atomic uint64_t counts[HISTOGRAM_BUCKETS];
    _Atomic uint64_t count;
    _Atomic uint64_t sum;
    _Atomic uint64_t max;
};

void histogram_init(struct histogram *h);
void histogram_add(struct histogram *h, uint64_t value);
void histogram_merge(struct histogram *into, const struct histogram *from);
/* Value below or at which a fraction (0..1) of all values lie: the upper bound of its bucket, at most max. 0
 * if empty. */
uint64_t histogram_quantile(const struct histogram *h, double fraction);
double histogram_mean(const struct histogram *h);

#endif
