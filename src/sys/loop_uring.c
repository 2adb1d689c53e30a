/* The io_uring backend: multishot accept, multishot receive into a ring of provided buffers, sends and file
 * transfers as single operations, all submitted by the one system call of a turn, or by two when there are
 * both reads and sends.
 *
 * An operation's user data is the address of what it belongs to, with its kind in the low bits. A stream
 * counts the operations that the kernel still holds (kernel_refs); after loop_stream_close the socket is shut
 * down, which ends them all, and when the last has come back the stream is reported closed. */
#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/check.h"
#include "base/spin.h"
#include "sys/clock.h"
#include "sys/loop_internal.h"

enum {
    SQ_ENTRIES = 2048,
    CQ_ENTRIES = 16384,
    BUFFERS = 512,      /* the ring has places for; a power of two */
    BUFFERS_FIRST = 32, /* in use at first */
    BUFFER_GROUP = 0,
    LISTENERS_MAX = 4,
    ACCEPT_RETRY_US = 100000, /* after running out of descriptors */
    SPIN_US = 50,             /* see spin() */
    SPIN_FILE_US = 200,       /* while a file is read or written: longer than most disks take */
    SPIN_CHECKS = 64,         /* looks at the rings, 2 us, until others may have the core */
    SPIN_CREDIT_MAX = 16,
    SPIN_FAILURE_COST = 4,
    SPIN_PROBE_WAITS = 64, /* without credit one wait of so many spins */
};

enum kind { KIND_ACCEPT, KIND_RECV, KIND_SEND, KIND_FILE, KIND_WAKE, KIND_IGNORE, KIND_MASK = 7 };

enum { STATE_WANTS_READ = 1, STATE_CLOSING = 2, STATE_ENDED = 4, STATE_STARVED = 8 };

struct listener {
    int fd; /* -1: free */
    bool armed;
    void *owner;
};

/* Has spinning been worth it? */
struct spinner {
    int credit; /* grows with spins that met an event, shrinks with those in vain */
    unsigned waits;
};

struct uring_loop {
    struct loop base;
    struct io_uring ring;
    bool enabled;
    bool tells_task_work; /* the kernel flags deferred work in the ring: one can spin without entering it */
    struct spinner spinners[2]; /* without and with files_in_flight */
    unsigned files_in_flight;
    struct io_uring_buf_ring *buffer_ring;
    char *buffers;
    size_t buffer_ring_bytes;
    uint16_t idle_buffers[BUFFERS]; /* ids of those not in use, which take no memory */
    uint32_t idle_count;
    bool read_ended;       /* among the events of this wait */
    bool read_queued;      /* since the last submission: see uring_stream_send */
    uint32_t buffers_free; /* with the kernel, as far as completions have told: at most so many */
    bool lacked_buffers;   /* somebody has found none since the last wait */
    struct listener listeners[LISTENERS_MAX];
    uint64_t accept_retry_us;    /* 0: none waits */
    struct loop_stream *closed;  /* to be reported; linked by next_ready */
    struct loop_stream *starved; /* receive ended for want of buffers, or is careful; linked by next_ready, in
                                    the order in which they are armed again */
    struct loop_stream **starved_end;
    int wake_fd;
    _Atomic bool woken;
};

static struct uring_loop *uring_of(struct loop *loop)
{
    return (struct uring_loop *)loop;
}

static void count_call(struct uring_loop *u)
{
    __atomic_store_n(&u->base.stats.system_calls, u->base.stats.system_calls + 1, __ATOMIC_RELAXED);
}

static void enable(struct uring_loop *u);

/* Hands over what is queued, without waiting. */
static void submit(struct uring_loop *u)
{
    u->read_queued = false;
    if (io_uring_sq_ready(&u->ring) == 0)
        return;
    if (!u->enabled) /* a disabled ring takes nothing */
        enable(u);
    count_call(u);
    io_uring_submit(&u->ring);
}

static void uring_submit(struct loop *loop)
{
    submit(uring_of(loop));
}

static struct io_uring_sqe *take_sqe(struct uring_loop *u, void *object, enum kind kind)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);
    while (sqe == NULL) {
        submit(u);
        sqe = io_uring_get_sqe(&u->ring);
    }
    io_uring_prep_nop(sqe); /* a clean slate: the prep calls below keep user_data */
    io_uring_sqe_set_data64(sqe, (uint64_t)(uintptr_t)object | kind);
    return sqe;
}

/* The prep helpers overwrite user data in some versions: set it after. */
static void set_data(struct io_uring_sqe *sqe, void *object, enum kind kind)
{
    io_uring_sqe_set_data64(sqe, (uint64_t)(uintptr_t)object | kind);
}

static void arm_accept(struct uring_loop *u, struct listener *l)
{
    struct io_uring_sqe *sqe = take_sqe(u, l, KIND_ACCEPT);
    io_uring_prep_multishot_accept(sqe, l->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    set_data(sqe, l, KIND_ACCEPT);
    l->armed = true;
}

/* once: for one buffer only. */
static void arm_recv(struct uring_loop *u, struct loop_stream *s, bool once)
{
    struct io_uring_sqe *sqe = take_sqe(u, s, KIND_RECV);
    if (once || u->base.careful)
        io_uring_prep_recv(sqe, s->fd, NULL, loop_receive_bytes(&u->base, s), 0);
    else
        io_uring_prep_recv_multishot(sqe, s->fd, NULL, 0, 0);
    sqe->flags |= IOSQE_BUFFER_SELECT;
    sqe->buf_group = BUFFER_GROUP;
    set_data(sqe, s, KIND_RECV);
    s->reading = 1;
    s->kernel_refs++;
}

static void arm_wake(struct uring_loop *u)
{
    struct io_uring_sqe *sqe = take_sqe(u, NULL, KIND_WAKE);
    io_uring_prep_poll_multishot(sqe, u->wake_fd, POLLIN);
    set_data(sqe, NULL, KIND_WAKE);
}

/* ---- streams ---- */

static void uring_stream_start(struct loop *loop, struct loop_stream *s, int fd)
{
    s->fd = fd;
    s->state = STATE_WANTS_READ;
    s->reading = 0;
    s->kernel_refs = 0;
    s->message = NULL;
    s->next_ready = NULL;
    arm_recv(uring_of(loop), s, false);
}

static void uring_stream_read(struct loop *loop, struct loop_stream *s, bool on)
{
    struct uring_loop *u = uring_of(loop);
    if (on == !!(s->state & STATE_WANTS_READ) || s->state & (STATE_CLOSING | STATE_ENDED))
        return;
    s->state ^= STATE_WANTS_READ;
    if (!on && s->reading) {
        struct io_uring_sqe *sqe = take_sqe(u, NULL, KIND_IGNORE);
        io_uring_prep_cancel64(sqe, (uint64_t)(uintptr_t)s | KIND_RECV, 0);
        set_data(sqe, NULL, KIND_IGNORE);
    } else if (on && !s->reading && !(s->state & STATE_STARVED)) {
        arm_recv(u, s, false);
    }
}

static void uring_stream_send(struct loop *loop, struct loop_stream *s, const struct iovec *pieces, int count)
{
    struct uring_loop *u = uring_of(loop);
    /* The kernel keeps the reads of one submission back until all of it is issued, while sends are made at
     * once, a few microseconds each: behind them, the disk would be idle that long. */
    if (u->read_queued)
        submit(u);
    struct io_uring_sqe *sqe = take_sqe(u, s, KIND_SEND);
    if (count == 1) {
        io_uring_prep_send(sqe, s->fd, pieces[0].iov_base, pieces[0].iov_len, MSG_NOSIGNAL);
    } else {
        if (s->message == NULL) {
            s->message = calloc(1, sizeof *s->message);
            CHECK(s->message != NULL);
        }
        s->message->msg_iov = (struct iovec *)(uintptr_t)pieces;
        s->message->msg_iovlen = (size_t)count;
        io_uring_prep_sendmsg(sqe, s->fd, s->message, MSG_NOSIGNAL);
    }
    set_data(sqe, s, KIND_SEND);
    s->kernel_refs++;
}

static void queue_closed(struct uring_loop *u, struct loop_stream *s)
{
    s->next_ready = u->closed;
    u->closed = s;
}

static void uring_stream_close(struct loop *loop, struct loop_stream *s)
{
    struct uring_loop *u = uring_of(loop);
    if (s->state & STATE_CLOSING)
        return;
    s->state |= STATE_CLOSING;
    count_call(u);
    shutdown(s->fd, SHUT_RDWR);
    if (s->kernel_refs == 0 && !(s->state & STATE_STARVED))
        queue_closed(u, s);
}

static void uring_file(struct loop *loop, struct loop_file_op *op)
{
    struct uring_loop *u = uring_of(loop);
    struct io_uring_sqe *sqe = take_sqe(u, op, KIND_FILE);
    u->read_queued |= !op->write;
    u->files_in_flight++;
    if (op->write)
        io_uring_prep_write(sqe, op->fd, op->buffer, (unsigned)op->len, op->offset);
    else
        io_uring_prep_read(sqe, op->fd, op->buffer, (unsigned)op->len, op->offset);
    sqe->rw_flags = op->write && op->durable ? RWF_DSYNC : 0;
    set_data(sqe, op, KIND_FILE);
}

/* ---- receive buffers ----
 *
 * The kernel takes buffers in the order in which they were given to it, so all that are in use become
 * resident, and go through the caches, however little comes in. So there are few, until a receive finds none.
 */

static char *buffer_at(const struct uring_loop *u, uint32_t id)
{
    return u->buffers + (size_t)id * LOOP_BUFFER_BYTES;
}

static void give_buffer(struct uring_loop *u, uint32_t id)
{
    io_uring_buf_ring_add(u->buffer_ring, buffer_at(u, id), LOOP_BUFFER_BYTES, (unsigned short)id,
                          io_uring_buf_ring_mask(BUFFERS), 0);
    io_uring_buf_ring_advance(u->buffer_ring, 1);
    u->buffers_free++;
}

static uint32_t buffers_max(const struct uring_loop *u)
{
    uint32_t most = u->base.buffers_max;
    return most == 0 ? 1 : most < BUFFERS ? most : BUFFERS;
}

static uint32_t buffers_in_use(const struct uring_loop *u)
{
    return BUFFERS - u->idle_count;
}

/* So many in all. */
static void use_buffers(struct uring_loop *u, uint32_t count)
{
    while (buffers_in_use(u) < count)
        give_buffer(u, u->idle_buffers[--u->idle_count]);
}

static void use_more_buffers(struct uring_loop *u)
{
    uint32_t twice = 2 * buffers_in_use(u), most = buffers_max(u);
    use_buffers(u, twice < most ? twice : most);
    u->lacked_buffers = false;
}

static void uring_buffer_release(struct loop *loop, uint32_t buffer_id)
{
    struct uring_loop *u = uring_of(loop);
    if (LIKELY(buffers_in_use(u) <= buffers_max(u))) {
        give_buffer(u, buffer_id);
        return;
    }
    count_call(u);
    madvise(buffer_at(u, buffer_id), LOOP_BUFFER_BYTES, MADV_DONTNEED);
    u->idle_buffers[u->idle_count++] = (uint16_t)buffer_id;
}

/* ---- listeners ---- */

static status_t uring_listen(struct loop *loop, int listen_fd, void *owner)
{
    struct uring_loop *u = uring_of(loop);
    for (unsigned i = 0; i < LISTENERS_MAX; i++) {
        if (u->listeners[i].fd < 0 &&
            !u->listeners[i].armed) { /* armed: the kernel still has the one before */
            u->listeners[i] = (struct listener){.fd = listen_fd, .owner = owner};
            return status_ok(); /* armed by the next wait, on the loop's own thread */
        }
    }
    return status_error(STATUS_INVALID, "a loop listens on at most %d sockets", LISTENERS_MAX);
}

static void uring_unlisten(struct loop *loop, int listen_fd)
{
    struct uring_loop *u = uring_of(loop);
    for (unsigned i = 0; i < LISTENERS_MAX; i++) {
        struct listener *l = &u->listeners[i];
        if (l->fd != listen_fd)
            continue;
        if (l->armed) {
            struct io_uring_sqe *sqe = take_sqe(u, NULL, KIND_IGNORE);
            io_uring_prep_cancel64(sqe, (uint64_t)(uintptr_t)l | KIND_ACCEPT, 0);
            set_data(sqe, NULL, KIND_IGNORE);
        }
        l->fd = -1;
    }
}

/* ---- completions ---- */

static void release_ref(struct uring_loop *u, struct loop_stream *s)
{
    CHECK(s->kernel_refs > 0);
    if (--s->kernel_refs == 0 && s->state & STATE_CLOSING && !(s->state & STATE_STARVED))
        queue_closed(u, s);
}

static bool on_accept(struct uring_loop *u, const struct io_uring_cqe *cqe, struct listener *l,
                      struct loop_event *e)
{
    if (!(cqe->flags & IORING_CQE_F_MORE)) {
        l->armed = false;
        if (cqe->res < 0)
            u->accept_retry_us = clock_monotonic_us() + ACCEPT_RETRY_US;
    }
    if (cqe->res == -ECANCELED)
        return false;
    *e = (struct loop_event){.type = LOOP_ACCEPTED, .result = cqe->res, .owner = l->owner};
    return true;
}

/* Before the next wait, if it is still wanted then. */
static void rearm_later(struct uring_loop *u, struct loop_stream *s)
{
    s->state |= STATE_STARVED;
    s->next_ready = NULL;
    *u->starved_end = s;
    u->starved_end = &s->next_ready;
}

static bool on_recv(struct uring_loop *u, const struct io_uring_cqe *cqe, struct loop_stream *s,
                    struct loop_event *e)
{
    bool more = cqe->flags & IORING_CQE_F_MORE, reported = false;
    int result = cqe->res;
    if (result > 0) {
        uint32_t id = cqe->flags >> IORING_CQE_BUFFER_SHIFT;
        u->buffers_free--;
        *e = (struct loop_event){LOOP_DATA, result, s->owner, buffer_at(u, id), id};
        reported = true;
    } else if (result == -ENOBUFS) {
        u->lacked_buffers = true;
        rearm_later(u, s);
    } else if (result != -ECANCELED && !(s->state & STATE_ENDED)) {
        s->state |= STATE_ENDED;
        *e = (struct loop_event){.type = LOOP_EOF, .result = result, .owner = s->owner};
        reported = !(s->state & STATE_CLOSING);
    }
    if (more)
        return reported;
    s->reading = 0;
    if (result > 0 && (u->base.careful || u->starved) && !(s->state & STATE_CLOSING))
        rearm_later(u, s); /* behind those that wait */
    else if (result != -ENOBUFS &&
             (s->state & (STATE_WANTS_READ | STATE_ENDED | STATE_CLOSING)) == STATE_WANTS_READ)
        arm_recv(u, s, false);
    release_ref(u, s);
    return reported;
}

static bool on_wake(struct uring_loop *u, const struct io_uring_cqe *cqe, struct loop_event *e)
{
    uint64_t count;
    count_call(u);
    ssize_t ignored = read(u->wake_fd, &count, sizeof count);
    (void)ignored;
    /* Acquire and release: what was done before loop_wake is seen after this event; the next call writes
     * again. */
    atomic_exchange_explicit(&u->woken, false, memory_order_acq_rel);
    if (!(cqe->flags & IORING_CQE_F_MORE))
        arm_wake(u);
    *e = (struct loop_event){.type = LOOP_WOKEN};
    return true;
}

static bool on_completion(struct uring_loop *u, const struct io_uring_cqe *cqe, struct loop_event *e)
{
    void *object = (void *)(uintptr_t)(cqe->user_data & ~(uint64_t)KIND_MASK);
    switch ((enum kind)(cqe->user_data & KIND_MASK)) {
    case KIND_ACCEPT:
        return on_accept(u, cqe, object, e);
    case KIND_RECV:
        return on_recv(u, cqe, object, e);
    case KIND_SEND: {
        struct loop_stream *s = object;
        *e = (struct loop_event){.type = LOOP_SENT, .result = cqe->res, .owner = s->owner};
        release_ref(u, s);
        return true;
    }
    case KIND_FILE: {
        struct loop_file_op *op = object;
        u->read_ended |= !op->write;
        u->files_in_flight--;
        *e = (struct loop_event){.type = LOOP_FILE_DONE, .result = cqe->res, .owner = op->owner};
        return true;
    }
    case KIND_WAKE:
        return on_wake(u, cqe, e);
    default:
        return false;
    }
}

/* ---- the turn ---- */

static void enable(struct uring_loop *u)
{
    u->enabled = true;
    /* Directly: Debian 12's shared liburing does not export io_uring_enable_rings. */
    CHECK(io_uring_register(u->ring.ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0) >= 0);
    io_uring_register_ring_fd(&u->ring); /* cheaper entries; fine without */
    arm_wake(u);
}

/* As many as there are free buffers for, one for each: without one a receive would only fail again, and
 * loop_wait would spin. Those that close need none. */
static void arm_starved(struct uring_loop *u)
{
    uint32_t most = u->buffers_free;
    struct loop_stream *s = u->starved;
    u->starved = NULL;
    u->starved_end = &u->starved;
    for (struct loop_stream *next; s; s = next) {
        next = s->next_ready;
        bool arm = s->state & STATE_WANTS_READ && !s->reading && !(s->state & STATE_CLOSING);
        if (arm && most == 0) {
            u->lacked_buffers = true;
            rearm_later(u, s);
            continue;
        }
        s->state &= (uint8_t)~STATE_STARVED;
        if (arm) {
            arm_recv(u, s, true);
            most--;
        } else if (s->state & STATE_CLOSING && s->kernel_refs == 0) {
            queue_closed(u, s);
        }
    }
}

static void arm_waiting(struct uring_loop *u)
{
    bool retry = u->accept_retry_us && clock_monotonic_us() >= u->accept_retry_us;
    if (retry)
        u->accept_retry_us = 0;
    for (unsigned i = 0; i < LISTENERS_MAX; i++) {
        struct listener *l = &u->listeners[i];
        if (l->fd >= 0 && !l->armed && !u->accept_retry_us)
            arm_accept(u, l);
    }
    if (UNLIKELY(u->lacked_buffers || (u->starved && u->buffers_free == 0)))
        use_more_buffers(u);
    arm_starved(u);
}

static bool has_task_work(const struct uring_loop *u)
{
    /* Relaxed: what the flag announces is fetched by entering the kernel. */
    return __atomic_load_n(u->ring.sq.kflags, __ATOMIC_RELAXED) & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW);
}

static uint64_t spin_us(const struct uring_loop *u)
{
    return u->files_in_flight ? SPIN_FILE_US : SPIN_US;
}

/* Looks for events a while instead of going to sleep. Under load the next request or the end of a read or a
 * flush is some microseconds away, while to sleep and be woken costs this thread about as much (on a virtual
 * machine, whose idle core the host gives to others, much more), and the one that wakes it an interrupt to
 * this core. True: an event is there. Spins only while that has been worth it. */
static bool spin(struct uring_loop *u)
{
    struct spinner *s = &u->spinners[u->files_in_flight != 0];
    if (u->base.dozes || (s->credit <= 0 && ++s->waits % SPIN_PROBE_WAITS != 0))
        return false;
    uint64_t end_us = clock_monotonic_us() + spin_us(u);
    do {
        for (unsigned i = 0; i < SPIN_CHECKS; i++) {
            if (io_uring_cq_ready(&u->ring) > 0 || has_task_work(u)) {
                s->credit += s->credit < SPIN_CREDIT_MAX;
                return true;
            }
            spin_pause();
        }
        sched_yield(); /* to who is ready, or is woken, on this core: a client, perhaps, or the keeper */
    } while (clock_monotonic_us() < end_us);
    s->credit -= s->credit > 0 ? SPIN_FAILURE_COST : 0;
    return false;
}

static void enter(struct uring_loop *u, int64_t timeout_us)
{
    struct io_uring_cqe *cqe;
    u->read_queued = false;
    if (u->accept_retry_us && (timeout_us < 0 || timeout_us > ACCEPT_RETRY_US))
        timeout_us = ACCEPT_RETRY_US;
    if (u->tells_task_work && (timeout_us < 0 || timeout_us > (int64_t)spin_us(u))) {
        submit(u);
        if (io_uring_cq_ready(&u->ring) > 0 || spin(u))
            timeout_us = 0;
        if (timeout_us == 0 && !has_task_work(u))
            return;
    }
    count_call(u);
    if (timeout_us == 0) {
        io_uring_submit_and_get_events(&u->ring);
    } else if (timeout_us < 0) {
        io_uring_submit_and_wait(&u->ring, 1);
    } else {
        struct __kernel_timespec t = {timeout_us / 1000000, timeout_us % 1000000 * 1000};
        io_uring_submit_and_wait_timeout(&u->ring, &cqe, 1, &t, NULL);
    }
}

static int report_closed(struct uring_loop *u, struct loop_event *events, int n, int capacity)
{
    while (u->closed && n < capacity) {
        struct loop_stream *s = u->closed;
        u->closed = s->next_ready;
        count_call(u);
        close(s->fd);
        free(s->message);
        events[n++] = (struct loop_event){.type = LOOP_CLOSED, .owner = s->owner};
    }
    return n;
}

/* Appends the events of all completions there are to the n in `events`; the number then. */
static int reap(struct uring_loop *u, struct loop_event *events, int n, int capacity)
{
    struct io_uring_cqe *cqe;
    unsigned head, seen = 0;
    io_uring_for_each_cqe(&u->ring, head, cqe)
    {
        if (n == capacity)
            break;
        seen++;
        n += on_completion(u, cqe, &events[n]);
    }
    io_uring_cq_advance(&u->ring, seen);
    return n;
}

static int uring_wait(struct loop *loop, struct loop_event *events, int capacity, int64_t timeout_us)
{
    struct uring_loop *u = uring_of(loop);
    if (!u->enabled)
        enable(u);
    arm_waiting(u);
    if (u->closed || (u->starved && u->buffers_free) || io_uring_cq_ready(&u->ring) > 0)
        timeout_us = 0;
    enter(u, timeout_us);
    __atomic_store_n(&u->base.stats.turns, u->base.stats.turns + 1, __ATOMIC_RELAXED);
    u->read_ended = false;
    int n = reap(u, events, 0, capacity);
    /* The kernel hands over some 20 at a time: the others of a burst of reads belong to this turn as well.
     * Not so without reads: in smaller lots requests and replies go through the caches better. */
    for (int before = -1; u->read_ended && n > before && n < capacity && has_task_work(u);) {
        before = n;
        count_call(u);
        io_uring_get_events(&u->ring);
        n = reap(u, events, n, capacity);
    }
    n = report_closed(u, events, n, capacity);
    __atomic_store_n(&u->base.stats.events, u->base.stats.events + (uint64_t)n, __ATOMIC_RELAXED);
    return n;
}

static void uring_wake(struct loop *loop)
{
    struct uring_loop *u = uring_of(loop);
    uint64_t one = 1;
    /* Pairs with on_wake. */
    if (!atomic_exchange_explicit(&u->woken, true, memory_order_acq_rel)) {
        ssize_t ignored = write(u->wake_fd, &one, sizeof one);
        (void)ignored;
    }
}

/* ---- life ---- */

static void uring_destroy(struct loop *loop)
{
    struct uring_loop *u = uring_of(loop);
    io_uring_queue_exit(&u->ring);
    if (u->buffer_ring)
        munmap(u->buffer_ring, u->buffer_ring_bytes);
    if (u->buffers)
        munmap(u->buffers, (size_t)BUFFERS * LOOP_BUFFER_BYTES);
    if (u->wake_fd >= 0)
        close(u->wake_fd);
    free(u);
}

static status_t init_buffers(struct uring_loop *u)
{
    size_t bytes = (size_t)BUFFERS * LOOP_BUFFER_BYTES;
    u->buffer_ring_bytes = BUFFERS * sizeof(struct io_uring_buf);
    void *ring = mmap(NULL, u->buffer_ring_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    u->buffer_ring = ring == MAP_FAILED ? NULL : ring;
    u->buffers = memory == MAP_FAILED ? NULL : memory;
    if (!u->buffer_ring || !u->buffers)
        return status_errno(errno, "no memory for receive buffers");
    madvise(u->buffers, bytes, MADV_NOHUGEPAGE); /* where all memory has them: one buffer would take 2 MiB */
    struct io_uring_buf_reg reg = {
        .ring_addr = (uint64_t)(uintptr_t)u->buffer_ring, .ring_entries = BUFFERS, .bgid = BUFFER_GROUP};
    int r = io_uring_register_buf_ring(&u->ring, &reg, 0);
    if (r < 0)
        return status_error(STATUS_UNSUPPORTED, "io_uring has no provided buffer rings here: %s",
                            strerror(-r));
    io_uring_buf_ring_init(u->buffer_ring);
    for (uint32_t id = BUFFERS; id-- > 0;)
        u->idle_buffers[u->idle_count++] = (uint16_t)id;
    use_buffers(u, BUFFERS_FIRST);
    return status_ok();
}

static int init_ring(struct uring_loop *u)
{
    struct io_uring_params params = {.cq_entries = CQ_ENTRIES};
    unsigned base = IORING_SETUP_CQSIZE | IORING_SETUP_R_DISABLED | IORING_SETUP_CLAMP;
    params.flags = base | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG;
    int r = io_uring_queue_init_params(SQ_ENTRIES, &u->ring, &params);
    u->tells_task_work = r == 0;
    if (r != -EINVAL)
        return r;
    params = (struct io_uring_params){.cq_entries = CQ_ENTRIES, .flags = base};
    return io_uring_queue_init_params(SQ_ENTRIES, &u->ring, &params);
}

/* Multishot receives into provided buffers came with Linux 6.0; older kernels refuse them only when one is
 * tried. 0 or -errno. */
static int try_multishot_receive(void)
{
    struct io_uring ring;
    struct io_uring_cqe *cqe = NULL;
    struct __kernel_timespec second = {.tv_sec = 1};
    char byte = 'x';
    int pair[2], r = io_uring_queue_init(4, &ring, 0);
    if (r < 0)
        return r;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0) {
        r = -errno;
        io_uring_queue_exit(&ring);
        return r;
    }
    struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);
    io_uring_prep_provide_buffers(sqe, &byte, 1, 1, BUFFER_GROUP, 0);
    sqe->flags |= IOSQE_IO_LINK | IOSQE_CQE_SKIP_SUCCESS;
    sqe = io_uring_get_sqe(&ring);
    io_uring_prep_recv_multishot(sqe, pair[0], NULL, 0, 0);
    sqe->flags |= IOSQE_BUFFER_SELECT;
    sqe->buf_group = BUFFER_GROUP;
    r = write(pair[1], &byte, 1) == 1 ? io_uring_submit(&ring) : -EIO;
    if (r >= 0)
        r = io_uring_wait_cqe_timeout(&ring, &cqe, &second);
    if (r == 0)
        r = cqe->res == 1 ? 0 : cqe->res < 0 ? cqe->res : -EINVAL;
    close(pair[0]);
    close(pair[1]);
    io_uring_queue_exit(&ring);
    return r;
}

status_t loop_uring_create(struct loop **out)
{
    static const struct loop_ops ops = {
        .destroy = uring_destroy,
        .listen = uring_listen,
        .unlisten = uring_unlisten,
        .stream_start = uring_stream_start,
        .stream_read = uring_stream_read,
        .stream_send = uring_stream_send,
        .stream_close = uring_stream_close,
        .file = uring_file,
        .submit = uring_submit,
        .buffer_release = uring_buffer_release,
        .wait = uring_wait,
        .wake = uring_wake,
    };
    int r = try_multishot_receive();
    if (r < 0)
        return status_error(STATUS_UNSUPPORTED, "io_uring is not available here, or too old: %s",
                            strerror(-r));
    struct uring_loop *u = calloc(1, sizeof *u);
    CHECK(u != NULL);
    r = init_ring(u);
    if (r < 0) {
        free(u);
        return status_error(STATUS_UNSUPPORTED, "io_uring is not available here: %s", strerror(-r));
    }
    u->base.ops = &ops;
    u->base.backend = LOOP_URING;
    u->base.buffers_max = BUFFERS;
    u->starved_end = &u->starved;
    for (unsigned i = 0; i < LISTENERS_MAX; i++)
        u->listeners[i].fd = -1;
    u->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    status_t s = u->wake_fd < 0 ? status_errno(errno, "cannot make an eventfd") : init_buffers(u);
    if (!status_is_ok(&s)) {
        uring_destroy(&u->base);
        return s;
    }
    *out = &u->base;
    return status_ok();
}
