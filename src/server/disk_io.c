#include "server/disk_io.h"

#include <errno.h>
#include <stdlib.h>

#include "base/check.h"
#include "server/server.h"
#include "server/worker.h"
#include "sys/clock.h"

enum {
    READS_FIRST = 8, /* so many are handed over before the others are made: the disk begins sooner */
};

void disk_io_init(struct disk_io *io, struct worker *worker)
{
    *io = (struct disk_io){.worker = worker, .flush_due_us = UINT64_MAX};
    read_pace_init(&io->pace);
}

void disk_io_deinit(struct disk_io *io)
{
    free(io->reads);
}

/* Counts down an injected fault. True for the operation that shall fail. */
static bool fault_due(_Atomic uint64_t *fault)
{
    uint64_t left = atomic_load_explicit(fault, memory_order_relaxed);
    while (left && !atomic_compare_exchange_weak_explicit(fault, &left, left - 1, memory_order_relaxed,
                                                          memory_order_relaxed))
        ;
    return left == 1;
}

/* ---- the log ---- */

static void on_flushed(struct disk_io *io, struct flush_op *flush, int64_t result)
{
    flush->busy = false;
    io->flushes_in_flight--;
    /* It looks at the commit point later this turn anyway: no wake-up of itself. */
    atomic_store_explicit(&io->worker->waiting, false, memory_order_relaxed);
    log_flush_done(store_log(io->worker->server->store), &flush->flush, result, clock_monotonic_us());
}

static void start_flush(struct disk_io *io, struct flush_op *flush)
{
    flush->busy = true;
    io->flushes_in_flight++;
    if (fault_due(&io->worker->server->fault_flush)) {
        on_flushed(io, flush, -EIO);
        return;
    }
    flush->disk = (struct disk_op){
        .kind = DISK_FLUSH,
        .op = {.owner = &flush->disk,
               .fd = flush->flush.fd,
               .write = true,
               .durable = true,
               .buffer = (void *)(uintptr_t)flush->flush.buffer, /* only read */
               .len = flush->flush.len,
               .offset = flush->flush.offset},
    };
    loop_file(io->worker->loop, &flush->disk.op);
}

static struct flush_op *free_flush(struct disk_io *io)
{
    for (unsigned i = 0; i < LOG_FLUSHES_MAX; i++)
        if (!io->flushes[i].busy)
            return &io->flushes[i];
    return NULL;
}

void disk_io_flush(struct disk_io *io)
{
    struct worker *worker = io->worker;
    struct log *log = store_log(worker->server->store);
    struct flush_op *flush;
    if (log == NULL)
        return;
    /* Values leave memory when they are on disk, so whoever has found no room would wait for --durability
     * interval's second. */
    bool soon = worker->no_room && io->flushes_in_flight == 0;
    while ((flush = free_flush(io)) != NULL &&
           log_flush_take(log, worker->now_us, soon || worker->stop_deadline_us != 0, &flush->flush,
                          &io->flush_due_us))
        start_flush(io, flush);
}

/* ---- values from disk ---- */

static void on_read(struct disk_io *io, struct read_op *read, int64_t result)
{
    io->reads_in_flight--;
    store_fetch_done(io->worker->sw, &read->fetch, result);
    read->next_free = io->free_read;
    io->free_read = read;
}

static void make_reads(struct disk_io *io)
{
    unsigned n = io->worker->server->config.io_depth;
    io->reads = calloc(n, sizeof *io->reads);
    CHECK(io->reads);
    for (unsigned i = 0; i < n; i++) {
        io->reads[i].next_free = io->free_read;
        io->free_read = &io->reads[i];
    }
}

/* landed: of those in flight, that have ended. */
static void start_reads(struct disk_io *io, unsigned landed, bool at_once)
{
    struct worker *worker = io->worker;
    struct store_fetch fetch;
    unsigned count = 0;
    while (io->reads_in_flight - landed < io->pace.most && store_fetch_take(worker->sw, &fetch)) {
        if (io->reads == NULL)
            make_reads(io);
        struct read_op *read = io->free_read;
        CHECK(read); /* the store gives out io_depth at most */
        io->free_read = read->next_free;
        io->reads_in_flight++;
        count++;
        read->fetch = fetch;
        if (fault_due(&worker->server->fault_read)) {
            on_read(io, read, -EIO);
            continue;
        }
        read->disk = (struct disk_op){
            .kind = DISK_READ,
            .op = {.owner = &read->disk,
                   .fd = fetch.fd,
                   .buffer = fetch.buffer,
                   .len = fetch.len,
                   .offset = fetch.offset},
        };
        loop_file(worker->loop, &read->disk.op);
        if (at_once && count == READS_FIRST)
            loop_submit(worker->loop);
    }
    if (count) {
        STAT_ADD(worker->stats.reads, count);
        STAT_ADD(worker->stats.read_turns, 1);
    }
    if (at_once && count)
        loop_submit(worker->loop);
}

void disk_io_read(struct disk_io *io)
{
    start_reads(io, 0, false);
}

void disk_io_begin(struct disk_io *io, const struct loop_event *events, int count)
{
    unsigned landed = 0;
    if (io->reads_in_flight == 0)
        return;
    for (int i = 0; i < count; i++)
        landed += events[i].type == LOOP_FILE_DONE && ((struct disk_op *)events[i].owner)->kind == DISK_READ;
    if (landed == 0)
        return;
    unsigned held = store_fetch_wanted(io->worker->sw, io->worker->server->config.io_depth);
    if (io->worker->loop->dozes) /* others have the core meanwhile: a burst says nothing of the disk */
        read_pace_init(&io->pace);
    else
        read_pace_look(&io->pace, landed, io->reads_in_flight, held);
    if (held)
        start_reads(io, landed, true);
}

void disk_io_done(struct disk_io *io, struct disk_op *op, int64_t result)
{
    if (op->kind == DISK_FLUSH)
        on_flushed(io, (struct flush_op *)(void *)op, result);
    else
        on_read(io, (struct read_op *)(void *)op, result);
}
