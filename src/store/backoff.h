/* backoff: internal: when the keeper tries again what has failed.
 *
 * After a while, which doubles with each failure. But while it is needed (writes wait for the room that it
 * brings) every second, or, if a try takes longer, so that half of the time at most is spent in vain.
 *
 * Thread safety: none; the keeper's. Times: monotonic, ms. */
#ifndef KVASIR_STORE_BACKOFF_H
#define KVASIR_STORE_BACKOFF_H

#include <stdbool.h>
#include <stdint.h>

enum { BACKOFF_NEEDED_MS = 1000 };

/* Nothing has failed when zeroed. */
struct backoff {
    uint64_t delay_ms; /* 0: the last try did not fail */
    uint64_t until_ms, needed_until_ms;
};

static inline bool backoff_is_over(const struct backoff *b, uint64_t now_ms, bool needed)
{
    return now_ms >= b->until_ms || (needed && now_ms >= b->needed_until_ms);
}

/* A try that began at begin_ms has failed. False: as the one before did, and it was made before its time
 * because it is needed; it says nothing new. */
static inline bool backoff_fail(struct backoff *b, uint64_t begin_ms, uint64_t now_ms, bool needed,
                                uint64_t first_ms, uint64_t last_ms)
{
    uint64_t took_ms = now_ms - begin_ms;
    b->needed_until_ms = now_ms + (took_ms > BACKOFF_NEEDED_MS ? took_ms : BACKOFF_NEEDED_MS);
    if (needed && b->delay_ms && now_ms < b->until_ms)
        return false;
    b->delay_ms = b->delay_ms ? b->delay_ms * 2 : first_ms;
    if (b->delay_ms > last_ms)
        b->delay_ms = last_ms;
    b->until_ms = now_ms + b->delay_ms;
    return true;
}

#endif
