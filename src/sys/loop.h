/* loop: the event loop of one worker: sockets, accepted connections, file writes and reads, wake-ups.
 *
 * One loop belongs to one thread. Everything but loop_wake must be called by that thread.
 * The loop reports what happened as an array of events; it never calls back. A turn is
 *
 *     n = loop_wait(loop, events, capacity, timeout_us);      one kernel entry, submits all that was queued
 *     for each event: handle; queue sends, writes, ...         no kernel entry (io_uring) in here, but
 *                                                              one before the sends when there are reads,
 *                                                              and loop_submit's
 *
 * Implementations: io_uring (loop_uring.c), epoll (loop_epoll.c; file operations run on helper threads),
 * and a simulated one in the tests. They behave alike; struct loop_ops is the narrow waist.
 *
 * Memory: struct loop_stream and struct loop_file_op live inside the caller's own structures and must stay
 * where they are from start until LOOP_CLOSED, respectively until LOOP_FILE_DONE. Event data (LOOP_DATA) lies
 * in a buffer of the loop until loop_buffer_release. */
#ifndef KVASIR_SYS_LOOP_H
#define KVASIR_SYS_LOOP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/status.h"

enum loop_backend { LOOP_AUTO, LOOP_URING, LOOP_EPOLL };

enum loop_event_type {
    LOOP_ACCEPTED, /* result: the new socket (non-blocking, close-on-exec, caller owns it) or -errno; owner:
                      the listener's */
    LOOP_DATA,     /* result: > 0 bytes at data, in buffer buffer_id; owner: the stream's */
    LOOP_EOF,  /* the peer has shut down its sending side (result 0), or reading failed (result -errno); no
                  more DATA */
    LOOP_SENT, /* result: bytes sent by the one outstanding loop_send (may be fewer than asked), or -errno */
    LOOP_CLOSED,    /* after loop_stream_close: the kernel no longer refers to the stream; its memory is the
                       caller's */
    LOOP_FILE_DONE, /* result: bytes transferred, or -errno; owner: the file operation's */
    LOOP_WOKEN,     /* somebody called loop_wake since the last turn (many calls may be reported as one) */
};

struct loop_event {
    enum loop_event_type type;
    int result;
    void *owner;
    char *data;
    uint32_t buffer_id;
};

/* A connected stream socket under the care of a loop. Fields are the loop's own, except owner. */
struct loop_stream {
    void *owner; /* set by the caller before loop_stream_start; comes back in events */
    int fd;
    uint8_t state;                  /* backend's flags */
    uint8_t reading;                /* backend's: a receive is armed */
    bool roomy;                     /* set by the caller at any time: see loop->receive_bytes */
    uint16_t kernel_refs;           /* operations that the kernel still holds (io_uring) */
    struct loop_stream *next_ready; /* backend's list links */
    struct loop_stream *previous_ready;
    struct msghdr *message;     /* backend's, for sends of several pieces */
    const struct iovec *pieces; /* backend's: the outstanding send */
    int piece_count;
};

/* Linux makes longer transfers in several, so that a write would come out short. */
#define LOOP_FILE_BYTES_MAX 0x7ffff000u

/* One file transfer in flight. */
struct loop_file_op {
    void *owner; /* set by the caller; comes back in the event */
    int fd;
    bool write;   /* else read */
    bool durable; /* writes: RWF_DSYNC, complete only when the data is on stable storage */
    void
        *buffer; /* caller's; untouched until LOOP_FILE_DONE. Aligned as the file needs (4096 for O_DIRECT) */
    size_t len;  /* bytes, at most LOOP_FILE_BYTES_MAX */
    uint64_t offset;
    struct loop_file_op *next; /* backend's */
    int result;                /* backend's */
};

struct loop_stats {
    uint64_t turns;        /* calls of loop_wait */
    uint64_t system_calls; /* made by this loop's thread, all kinds but sched_yield */
    uint64_t events;
    uint64_t buffer_bytes; /* of receive buffers, where they come and go (epoll) */
};

struct loop;

struct loop_ops {
    void (*destroy)(struct loop *loop);
    status_t (*listen)(struct loop *loop, int listen_fd, void *owner);
    void (*unlisten)(struct loop *loop, int listen_fd);
    void (*stream_start)(struct loop *loop, struct loop_stream *stream, int fd);
    void (*stream_read)(struct loop *loop, struct loop_stream *stream, bool on);
    void (*stream_send)(struct loop *loop, struct loop_stream *stream, const struct iovec *pieces, int count);
    void (*stream_close)(struct loop *loop, struct loop_stream *stream);
    void (*file)(struct loop *loop, struct loop_file_op *op);
    void (*submit)(struct loop *loop);
    void (*buffer_release)(struct loop *loop, uint32_t buffer_id);
    int (*wait)(struct loop *loop, struct loop_event *events, int capacity, int64_t timeout_us);
    void (*wake)(struct loop *loop);
};

struct loop {
    const struct loop_ops *ops;
    struct loop_stats stats; /* written by the loop's thread with relaxed atomic stores; read by any (INFO) */
    enum loop_backend backend; /* which one it became; never LOOP_AUTO */
    bool careful; /* its thread sets it: a stream brings at most one buffer in a turn, so that turning its
                     reading off comes in time. Does not concern a receive that is armed already: turn reading
                     off and on again. Costs a little */
    uint32_t receive_bytes; /* the same, with careful: most that a stream that is not roomy brings in a turn;
                               0: a buffer */
    uint32_t buffers_max; /* its thread sets it: receive buffers in use at most, those not released included;
                             at least one. The backend may have fewer. Takes effect as buffers are released */
    bool dozes; /* its thread sets it: others may want this core, so it sleeps at once when there is nothing
                   to do, instead of looking for events a while */
};

enum {
    LOOP_BUFFER_BYTES = 16384, /* size of a receive buffer: the most that one LOOP_DATA carries */
    LOOP_PIECES_MAX = 16,      /* most iovecs of one send */
};

/* Creates a loop. LOOP_AUTO tries io_uring and falls back to epoll; *why (may be NULL, else >= 128 bytes)
 * then says why. LOOP_URING fails with STATUS_UNSUPPORTED where the kernel or a container forbids io_uring.
 * For io_uring the thread that first calls loop_wait (or anything else) becomes the ring's single issuer:
 * create on any thread, use on one. */
STATUS_MUST_USE status_t loop_create(enum loop_backend backend, struct loop **out, char *why);

static inline void loop_destroy(struct loop *loop)
{
    loop->ops->destroy(loop);
}

/* Starts accepting on a listening socket (caller keeps owning the socket); each connection is one
 * LOOP_ACCEPTED. Goes on until unlisten. Out of descriptors is reported as LOOP_ACCEPTED with -EMFILE and
 * accepting continues when descriptors are back, without a busy loop. */
static inline status_t loop_listen(struct loop *loop, int listen_fd, void *owner)
{
    return loop->ops->listen(loop, listen_fd, owner);
}

/* Stops accepting; events already queued may still arrive. */
static inline void loop_unlisten(struct loop *loop, int listen_fd)
{
    loop->ops->unlisten(loop, listen_fd);
}

/* Takes a connected socket; the loop owns fd from here and closes it after loop_stream_close. Reading is on.
 */
static inline void loop_stream_start(struct loop *loop, struct loop_stream *stream, int fd)
{
    loop->ops->stream_start(loop, stream, fd);
}

/* Turns reading off (back-pressure) or on again. After "off", a few LOOP_DATA that were under way may still
 * arrive. */
static inline void loop_stream_read(struct loop *loop, struct loop_stream *stream, bool on)
{
    loop->ops->stream_read(loop, stream, on);
}

/* Queues one send of count pieces (1..LOOP_PIECES_MAX). At most one send per stream is outstanding: the next
 * only after its LOOP_SENT. The iovec array and the memory stay untouched by the caller until then. Signals
 * (SIGPIPE) are suppressed. */
static inline void loop_stream_send(struct loop *loop, struct loop_stream *stream, const struct iovec *pieces,
                                    int count)
{
    loop->ops->stream_send(loop, stream, pieces, count);
}

/* Gives the stream up: cancels what is in flight, closes the socket, then reports LOOP_CLOSED exactly once,
 * in a later turn. Other events of this stream may still come before it (DATA buffers must still be
 * released), none after. */
static inline void loop_stream_close(struct loop *loop, struct loop_stream *stream)
{
    loop->ops->stream_close(loop, stream);
}

/* Queues a file read or write. Any number may be in flight; completions come in any order. */
static inline void loop_file(struct loop *loop, struct loop_file_op *op)
{
    loop->ops->file(loop, op);
}

/* Hands over now what is queued, instead of with the next wait: where a disk is to begin at once. */
static inline void loop_submit(struct loop *loop)
{
    loop->ops->submit(loop);
}

/* Gives a LOOP_DATA buffer back. Every such event's buffer must be given back once. */
static inline void loop_buffer_release(struct loop *loop, uint32_t buffer_id)
{
    loop->ops->buffer_release(loop, buffer_id);
}

/* Submits what was queued and waits for at least one event, at most timeout_us (0: do not wait; < 0: no
 * limit). Fills events, oldest first, returns how many (0 on timeout or signal). What does not fit comes next
 * time, without waiting. */
static inline int loop_wait(struct loop *loop, struct loop_event *events, int capacity, int64_t timeout_us)
{
    return loop->ops->wait(loop, events, capacity, timeout_us);
}

/* Makes the loop's current or next loop_wait return with LOOP_WOKEN. Any thread; async-signal-safe. */
static inline void loop_wake(struct loop *loop)
{
    loop->ops->wake(loop);
}

#endif
