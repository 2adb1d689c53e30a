/* disk_io: a worker's share of the disk's work: its writes of the log and its reads of cold values.
 *
 * Both are queued in the worker's event loop during the turn and enter the kernel with everything else that
 * the turn has queued. The loop answers with a LOOP_FILE_DONE for each.
 *
 * Thread safety: belongs to the worker's thread. Memory: the loop holds pointers into struct disk_io while
 * something is in flight (disk_io_is_busy): until then it must stay where it is, also when the worker ends.
 */
#ifndef KVASIR_SERVER_DISK_IO_H
#define KVASIR_SERVER_DISK_IO_H

#include <stdbool.h>
#include <stdint.h>

#include "log/log.h"
#include "server/read_pace.h"
#include "store/store.h"
#include "sys/loop.h"

struct worker;

/* What a LOOP_FILE_DONE names: first in one of the two below. */
struct disk_op {
    enum { DISK_FLUSH, DISK_READ } kind;
    struct loop_file_op op;
};

struct flush_op {
    struct disk_op disk;
    struct log_flush flush;
    bool busy;
};

struct read_op {
    struct disk_op disk;
    struct store_fetch fetch;
    struct read_op *next_free;
};

struct disk_io {
    struct worker *worker;
    struct flush_op flushes[LOG_FLUSHES_MAX];
    unsigned flushes_in_flight;
    uint64_t flush_due_us;             /* monotonic: when to flush again; UINT64_MAX: nothing is pending */
    struct read_op *reads, *free_read; /* io_depth of them; made with the first read */
    unsigned reads_in_flight;
    struct read_pace pace;
};

void disk_io_init(struct disk_io *io, struct worker *worker);
/* Nothing may be in flight, or the loop must be gone. */
void disk_io_deinit(struct disk_io *io);

/* Queues what the log has to write now. Without a log: nothing. */
void disk_io_flush(struct disk_io *io);
/* At the beginning of a turn, before its events are handled: when reads are among them, others that were held
 * back are handed to the disk at once. */
void disk_io_begin(struct disk_io *io, const struct loop_event *events, int count);
/* Queues the reads that the commands of this turn have asked for. */
void disk_io_read(struct disk_io *io);
/* LOOP_FILE_DONE; result: bytes, or -errno. What a failure means is the log's and the store's business. */
void disk_io_done(struct disk_io *io, struct disk_op *op, int64_t result);

static inline bool disk_io_is_busy(const struct disk_io *io)
{
    return io->flushes_in_flight || io->reads_in_flight;
}

#endif
