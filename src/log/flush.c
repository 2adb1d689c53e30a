/* Flushing: closing batches, giving their writes out, moving the commit point. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/bytes.h"
#include "base/check.h"
#include "base/logger.h"
#include "log/internal.h"
#include "sys/clock.h"

void log_die(struct log *log, const char *format, ...)
{
    spin_lock(&log->lock);
    bool first = atomic_load_explicit(&log->failed, memory_order_relaxed) == NULL;
    if (first) {
        va_list args;
        va_start(args, format);
        vsnprintf(log->failure, sizeof log->failure, format, args);
        va_end(args);
        /* Release: pairs with log_failed; the text is there. */
        atomic_store_explicit(&log->failed, log->failure, memory_order_release);
    }
    spin_unlock(&log->lock);
    if (first && log->config.on_progress)
        log->config.on_progress(log->config.context);
}

/* Is it time to close the open batch, which holds `bytes`? Under the lock. */
static bool is_due(struct log *log, uint64_t bytes, uint64_t now_us, bool force, uint64_t *due_us)
{
    uint64_t wait_us =
        log->config.flush_interval_us ? log->config.flush_interval_us : log->config.flush_delay_us;
    if (log->first_pending_us == 0)
        log->first_pending_us = now_us;
    if (log->flying_count > 0 && !force)
        return bytes >= LOG_EAGER_BYTES && wait_us == 0;
    if (force || wait_us == 0 || now_us - log->first_pending_us >= wait_us)
        return true;
    *due_us = log->first_pending_us + wait_us;
    return false;
}

/* Completes the header and the padding of a closed batch, all of whose bytes are published. */
static void batch_finish(struct log *log, struct log_batch *b, uint64_t published)
{
    uint64_t padded = round_up(b->length, LOG_BLOCK_BYTES);
    memset(b->buffer + b->length, 0, padded - b->length);
    struct batch_header header = {
        .record_count = (uint32_t)(published >> PUBLISHED_RECORD_SHIFT),
        .lsn = atomic_load_explicit(&b->base_lsn, memory_order_relaxed),
        .length = b->length,
        .durable_lsn = log->durable_lsn,
        .unix_ms = clock_unix_ms(),
        .previous_lsn = log->previous_lsn,
    };
    batch_header_seal(&header, b->segment->generation);
    memcpy(b->buffer, &header, sizeof header);
    log->previous_lsn = header.lsn;
    log->stats.records += header.record_count;
    log->stats.bytes += b->length - BATCH_HEADER_BYTES;
    log->stats.bytes_written += padded;
}

static bool take_closed(struct log *log, uint64_t now_us, struct log_flush *flush)
{
    struct log_batch *b = log->closed.first;
    /* Acquire: pairs with log_publish. */
    uint64_t published = atomic_load_explicit(&b->published, memory_order_acquire);
    if ((published & (((uint64_t)1 << PUBLISHED_RECORD_SHIFT) - 1)) != b->length)
        return false; /* somebody is still copying */
    batch_pop(&log->closed);
    batch_finish(log, b, published);
    batch_append(&log->flying, b);
    log->flying_count++;
    log->last_flush_us = now_us;
    *flush =
        (struct log_flush){.fd = b->segment->fd,
                           .buffer = b->buffer,
                           .len = round_up(b->length, LOG_BLOCK_BYTES),
                           .offset = lsn_offset(atomic_load_explicit(&b->base_lsn, memory_order_relaxed)),
                           .batch = b,
                           .started_us = now_us};
    return true;
}

bool log_flush_take(struct log *log, uint64_t now_us, bool force, struct log_flush *flush,
                    uint64_t *next_due_us)
{
    uint64_t due_us = UINT64_MAX;
    bool taken = false;
    if (next_due_us)
        *next_due_us = UINT64_MAX;
    if (log_failed(log))
        return false;
    spin_lock(&log->lock); /* not tried only: who is told that nothing is to do may go to sleep */
    bool want_segment = log->prepared == NULL || log->prepared->bytes < log->wanted_bytes;
    if (log->flying_count < LOG_FLUSHES_MAX) {
        uint32_t offset = (uint32_t)atomic_load_explicit(&log->word, memory_order_relaxed);
        bool open = offset != UINT32_MAX && offset > BATCH_HEADER_BYTES;
        if (log->closed.first == NULL && open && is_due(log, offset, now_us, force, &due_us))
            (void)log_switch(log, 0);
        if (log->closed.first)
            taken = take_closed(log, now_us, flush);
    }
    spin_unlock(&log->lock);
    if (next_due_us)
        *next_due_us = due_us;
    if (want_segment)
        log_prepare_wake(log);
    return taken;
}

/* Segments below the one that the commit point is in get no more writes. Returns them as a list. Under the
 * lock. */
static struct segment *pop_finished(struct log *log, const struct segment *in_use)
{
    struct segment *first = NULL, **end = &first;
    while (log->oldest != in_use) {
        *end = log->oldest;
        end = &log->oldest->next;
        log->oldest = log->oldest->next;
    }
    *end = NULL;
    return first;
}

/* Takes completed batches off the front. Returns segments that get no more writes; large batches to free go
 * to *large. Under the lock. */
static struct segment *advance(struct log *log, struct log_batch **large)
{
    struct segment *finished = NULL, **end = &finished;
    while (log->flying.first && log->flying.first->done) {
        struct log_batch *b = batch_pop(&log->flying);
        log->flying_count--;
        uint64_t lsn =
            atomic_load_explicit(&b->base_lsn, memory_order_relaxed) + round_up(b->length, LOG_BLOCK_BYTES);
        *end = pop_finished(log, b->segment);
        while (*end)
            end = &(*end)->next;
        if (b->large) {
            atomic_fetch_sub_explicit(&log->large_bytes, b->capacity, memory_order_relaxed);
            b->next = *large;
            *large = b;
        } else {
            b->free = true;
        }
        log->durable_lsn = lsn;
        /* Release: pairs with log_commit_lsn. */
        atomic_store_explicit(&log->commit_lsn, lsn, memory_order_release);
    }
    return finished;
}

void log_flush_done(struct log *log, const struct log_flush *flush, int64_t result, uint64_t now_us)
{
    if (result != (int64_t)flush->len) {
        if (result < 0)
            log_die(log, "a log write of %zu bytes failed: %s", flush->len, strerror((int)-result));
        else
            log_die(log, "a log write of %zu bytes stopped after %lld", flush->len, (long long)result);
        return;
    }
    struct log_batch *large = NULL;
    spin_lock(&log->lock);
    flush->batch->done = true;
    log->stats.flushes++;
    histogram_add(&log->stats.flush_us, now_us - flush->started_us);
    struct segment *finished =
        atomic_load_explicit(&log->failed, memory_order_relaxed) ? NULL : advance(log, &large);
    spin_unlock(&log->lock);
    while (finished) {
        struct segment *s = finished;
        finished = s->next;
        segments_seal(s->file);
        free(s);
    }
    while (large) {
        struct log_batch *b = large;
        large = b->next;
        log_large_destroy(b);
    }
    if (log->config.on_progress)
        log->config.on_progress(log->config.context);
}
