/* The epoll backend, for kernels and containers without io_uring: level-triggered reading, sends tried at the
 * next wait, file transfers on helper threads. What happened is queued and handed out by loop_wait;
 * nothing is reported inside a call.
 *
 * File transfers: a helper thread is started when one is queued and no helper is idle, up to
 * FILE_THREADS_MAX, which is how many are under way at once. Writes go first: many replies wait for each, one
 * for a read. */
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/check.h"
#include "sys/clock.h"
#include "sys/loop_internal.h"

enum {
    READY_MAX = 512,
    RECEIVES_MAX = 4, /* of one stream in a turn */
    BUFFERS_MAX = 512,
    BUFFERS_KEPT = 128, /* of free ones; the others' memory goes back */
    LISTENERS_MAX = 4,
    ACCEPTS_MAX = 256,
    ACCEPT_RETRY_US = 100000,
    FILE_THREADS_MAX = 16,
};

enum {
    STATE_READ = 1,
    STATE_WRITE = 2,
    STATE_CLOSING = 4,
    STATE_ENDED = 8,
    STATE_SENDING = 16,
    STATE_WATCHED = 32, /* epoll knows the socket */
    STATE_STARVED = 64, /* in p->starved */
};

struct listener {
    int fd; /* -1: free */
    void *owner;
    bool paused;
};

struct op_list {
    struct loop_file_op *first, *last;
};

struct epoll_loop {
    struct loop base;
    int epoll_fd, wake_fd;
    _Atomic bool woken;
    struct listener listeners[LISTENERS_MAX];
    uint64_t accept_retry_us;
    struct loop_stream *sends;  /* to be tried at the next wait; next_ready */
    struct loop_stream *closes; /* to be closed at the next wait; next_ready */
    struct loop_event *queue;   /* events to hand out: queue_count from queue_head on */
    size_t queue_head, queue_count, queue_capacity;
    char *buffers[BUFFERS_MAX]; /* NULL: it has no memory now */
    /* Free ids: kept_count with memory from the beginning, bare_count without up to the end. */
    uint32_t free_buffers[BUFFERS_MAX];
    uint32_t kept_count, bare_count;
    bool had_buffers;             /* when this wait began */
    unsigned ready_left;          /* of those reported together */
    struct loop_stream **starved; /* had data when no buffer was free; not watched for reading until one is */
    size_t starved_count, starved_capacity;
    bool no_pwait2; /* the kernel or a container refuses epoll_pwait2 */
    /* The helper threads. */
    pthread_t threads[FILE_THREADS_MAX];
    unsigned thread_count;
    pthread_mutex_t mutex; /* everything below */
    pthread_cond_t work;
    struct op_list writes, reads; /* to do */
    struct op_list done;
    unsigned queued; /* in writes and reads */
    unsigned idle;   /* threads that wait for work */
    bool stop;
};

static struct epoll_loop *epoll_of(struct loop *loop)
{
    return (struct epoll_loop *)loop;
}

static void count_call(struct epoll_loop *p)
{
    __atomic_store_n(&p->base.stats.system_calls, p->base.stats.system_calls + 1, __ATOMIC_RELAXED);
}

static void push(struct epoll_loop *p, struct loop_event e)
{
    if (p->queue_head + p->queue_count == p->queue_capacity) {
        memmove(p->queue, p->queue + p->queue_head, p->queue_count * sizeof *p->queue);
        p->queue_head = 0;
        if (p->queue_count * 2 > p->queue_capacity) {
            p->queue_capacity *= 2;
            p->queue = realloc(p->queue, p->queue_capacity * sizeof *p->queue);
            CHECK(p->queue != NULL);
        }
    }
    p->queue[p->queue_head + p->queue_count++] = e;
}

/* ---- buffers ---- */

static uint32_t free_buffers(const struct epoll_loop *p)
{
    return p->kept_count + p->bare_count;
}

static uint32_t buffers_max(const struct epoll_loop *p)
{
    uint32_t most = p->base.buffers_max;
    return most == 0 ? 1 : most < BUFFERS_MAX ? most : BUFFERS_MAX;
}

/* How many more may be taken. */
static uint32_t buffers_left(const struct epoll_loop *p)
{
    uint32_t taken = BUFFERS_MAX - free_buffers(p), most = buffers_max(p);
    return taken < most ? most - taken : 0;
}

static void count_buffers(struct epoll_loop *p)
{
    uint64_t bytes = (uint64_t)(BUFFERS_MAX - p->bare_count) * LOOP_BUFFER_BYTES;
    __atomic_store_n(&p->base.stats.buffer_bytes, bytes, __ATOMIC_RELAXED);
}

static bool take_buffer(struct epoll_loop *p, uint32_t *id)
{
    if (buffers_left(p) == 0)
        return false;
    if (p->kept_count) {
        *id = p->free_buffers[--p->kept_count];
        return true;
    }
    char *memory = malloc(LOOP_BUFFER_BYTES);
    if (memory == NULL)
        return false;
    *id = p->free_buffers[BUFFERS_MAX - p->bare_count--];
    p->buffers[*id] = memory;
    count_buffers(p);
    return true;
}

static void epoll_buffer_release(struct loop *loop, uint32_t buffer_id)
{
    struct epoll_loop *p = epoll_of(loop);
    DCHECK(free_buffers(p) < BUFFERS_MAX);
    p->free_buffers[p->kept_count++] = buffer_id;
    while (p->kept_count > BUFFERS_KEPT || p->kept_count > buffers_max(p)) {
        uint32_t id = p->free_buffers[--p->kept_count];
        free(p->buffers[id]);
        p->buffers[id] = NULL;
        p->free_buffers[BUFFERS_MAX - ++p->bare_count] = id;
        count_buffers(p);
    }
}

/* ---- streams ---- */

/* Tells epoll what the state asks for. A socket that nothing is wanted of is taken out: EPOLLHUP and EPOLLERR
 * are always reported, and a paused or ended stream whose peer is gone would keep the loop spinning. */
static void watch(struct epoll_loop *p, struct loop_stream *s)
{
    bool read = s->state & STATE_READ && !(s->state & (STATE_ENDED | STATE_STARVED));
    struct epoll_event e = {.events =
                                (read ? EPOLLIN | EPOLLRDHUP : 0u) | (s->state & STATE_WRITE ? EPOLLOUT : 0u),
                            .data.ptr = s};
    int op = s->state & STATE_WATCHED ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
    if (e.events == 0) {
        if (op == EPOLL_CTL_ADD)
            return;
        op = EPOLL_CTL_DEL;
    }
    count_call(p);
    if (epoll_ctl(p->epoll_fd, op, s->fd, &e) == 0) {
        s->state = (uint8_t)(op == EPOLL_CTL_DEL ? s->state & ~STATE_WATCHED : s->state | STATE_WATCHED);
        return;
    }
    /* No memory or no watches left: nothing more would ever be heard of this stream. */
    int e_watch = errno;
    if (s->state & STATE_WRITE) {
        s->state &= (uint8_t) ~(STATE_WRITE | STATE_SENDING);
        push(p, (struct loop_event){.type = LOOP_SENT, .result = -e_watch, .owner = s->owner});
    }
    if (!(s->state & STATE_ENDED)) {
        s->state |= STATE_ENDED;
        push(p, (struct loop_event){.type = LOOP_EOF, .result = -e_watch, .owner = s->owner});
    }
}

static void starve(struct epoll_loop *p, struct loop_stream *s)
{
    if (p->starved_count == p->starved_capacity) {
        p->starved_capacity = p->starved_capacity ? p->starved_capacity * 2 : 64;
        p->starved = realloc(p->starved, p->starved_capacity * sizeof(struct loop_stream *));
        CHECK(p->starved != NULL);
    }
    p->starved[p->starved_count++] = s;
    s->state |= STATE_STARVED;
    watch(p, s);
}

/* Buffers are free again: all may try, those that get none come back to the list. */
static void feed_starved(struct epoll_loop *p)
{
    p->had_buffers = buffers_left(p) > 0;
    if (!p->had_buffers)
        return;
    while (p->starved_count) {
        struct loop_stream *s = p->starved[--p->starved_count];
        s->state &= (uint8_t)~STATE_STARVED;
        watch(p, s);
    }
}

static void forget_starved(struct epoll_loop *p, const struct loop_stream *s)
{
    for (size_t i = 0; i < p->starved_count; i++) {
        if (p->starved[i] == s) {
            p->starved[i] = p->starved[--p->starved_count];
            return;
        }
    }
}

static void epoll_stream_start(struct loop *loop, struct loop_stream *s, int fd)
{
    s->fd = fd;
    s->state = STATE_READ;
    s->message = NULL;
    watch(epoll_of(loop), s);
}

static void epoll_stream_read(struct loop *loop, struct loop_stream *s, bool on)
{
    if (on == !!(s->state & STATE_READ) || s->state & (STATE_CLOSING | STATE_ENDED))
        return;
    s->state ^= STATE_READ;
    watch(epoll_of(loop), s);
}

static void epoll_stream_send(struct loop *loop, struct loop_stream *s, const struct iovec *pieces, int count)
{
    struct epoll_loop *p = epoll_of(loop);
    s->pieces = pieces;
    s->piece_count = count;
    s->state |= STATE_SENDING;
    s->next_ready = p->sends;
    p->sends = s;
}

static void epoll_stream_close(struct loop *loop, struct loop_stream *s)
{
    struct epoll_loop *p = epoll_of(loop);
    if (s->state & STATE_CLOSING)
        return;
    s->state |= STATE_CLOSING;
    s->previous_ready = p->closes;
    p->closes = s;
}

static void try_send(struct epoll_loop *p, struct loop_stream *s)
{
    struct msghdr m = {.msg_iov = (struct iovec *)(uintptr_t)s->pieces, .msg_iovlen = (size_t)s->piece_count};
    ssize_t n;
    if (s->state & STATE_CLOSING)
        return;
    do {
        count_call(p);
        n = s->piece_count == 1
                ? send(s->fd, s->pieces[0].iov_base, s->pieces[0].iov_len, MSG_NOSIGNAL | MSG_DONTWAIT)
                : sendmsg(s->fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT);
    } while (n < 0 && errno == EINTR);
    bool full = n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK);
    int result = n < 0 ? -errno : (int)n;
    if (full != !!(s->state & STATE_WRITE)) {
        s->state ^= STATE_WRITE;
        watch(p, s);
    }
    if (full)
        return;
    s->state &= (uint8_t)~STATE_SENDING;
    push(p, (struct loop_event){.type = LOOP_SENT, .result = result, .owner = s->owner});
}

static void receive(struct epoll_loop *p, struct loop_stream *s)
{
    const size_t most = loop_receive_bytes(&p->base, s);
    for (unsigned i = 0; i < (p->base.careful ? 1u : RECEIVES_MAX); i++) {
        uint32_t id;
        uint32_t left = buffers_left(p);
        if (i && (left < buffers_max(p) / 2 || left <= p->ready_left)) /* others' first ones come before */
            return;
        if (s->state & (STATE_CLOSING | STATE_ENDED | STATE_STARVED) || !(s->state & STATE_READ))
            return;
        if (!take_buffer(p, &id)) {
            if (!p->had_buffers) /* else they will be back soon, and this stream is reported again */
                starve(p, s);
            return;
        }
        ssize_t n;
        do {
            count_call(p);
            n = recv(s->fd, p->buffers[id], most, MSG_DONTWAIT);
        } while (n < 0 && errno == EINTR);
        if (n > 0) {
            push(p, (struct loop_event){LOOP_DATA, (int)n, s->owner, p->buffers[id], id});
            if ((size_t)n < most)
                return;
            continue;
        }
        int e = n < 0 ? errno : 0;
        epoll_buffer_release(&p->base, id);
        if (e == EAGAIN || e == EWOULDBLOCK)
            return;
        s->state |= STATE_ENDED;
        watch(p, s);
        push(p, (struct loop_event){.type = LOOP_EOF, .result = -e, .owner = s->owner});
        return;
    }
}

/* Unsubscribes and closes; LOOP_CLOSED comes behind all earlier events of the stream. */
static void close_streams(struct epoll_loop *p)
{
    while (p->closes) {
        struct loop_stream *s = p->closes;
        p->closes = s->previous_ready;
        if (s->state & STATE_STARVED)
            forget_starved(p, s);
        count_call(p);
        close(s->fd);
        push(p, (struct loop_event){.type = LOOP_CLOSED, .owner = s->owner});
    }
}

/* ---- accepting ---- */

static int watch_listener(struct epoll_loop *p, struct listener *l, int op)
{
    struct epoll_event e = {.events = EPOLLIN, .data.u64 = (uint64_t)(uintptr_t)l | 1};
    count_call(p);
    return epoll_ctl(p->epoll_fd, op, l->fd, &e);
}

static status_t epoll_listen(struct loop *loop, int listen_fd, void *owner)
{
    struct epoll_loop *p = epoll_of(loop);
    for (unsigned i = 0; i < LISTENERS_MAX; i++) {
        if (p->listeners[i].fd >= 0)
            continue;
        p->listeners[i] = (struct listener){.fd = listen_fd, .owner = owner};
        if (watch_listener(p, &p->listeners[i], EPOLL_CTL_ADD) < 0) {
            p->listeners[i].fd = -1;
            return status_errno(errno, "cannot wait for connections");
        }
        return status_ok();
    }
    return status_error(STATUS_INVALID, "a loop listens on at most %d sockets", LISTENERS_MAX);
}

static void epoll_unlisten(struct loop *loop, int listen_fd)
{
    struct epoll_loop *p = epoll_of(loop);
    for (unsigned i = 0; i < LISTENERS_MAX; i++) {
        if (p->listeners[i].fd != listen_fd)
            continue;
        if (!p->listeners[i].paused)
            (void)watch_listener(p, &p->listeners[i], EPOLL_CTL_DEL);
        p->listeners[i].fd = -1;
    }
}

static void accept_all(struct epoll_loop *p, struct listener *l)
{
    for (unsigned i = 0; i < ACCEPTS_MAX && l->fd >= 0; i++) {
        count_call(p);
        int fd = accept4(l->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            return;
        if (fd < 0 && (errno == EINTR || errno == ECONNABORTED))
            continue;
        int result = fd < 0 ? -errno : fd;
        push(p, (struct loop_event){.type = LOOP_ACCEPTED, .result = result, .owner = l->owner});
        if (fd < 0) { /* out of descriptors: the waiting connection would wake us at once again */
            (void)watch_listener(p, l, EPOLL_CTL_DEL);
            l->paused = true;
            p->accept_retry_us = clock_monotonic_us() + ACCEPT_RETRY_US;
            return;
        }
    }
}

static void resume_listeners(struct epoll_loop *p)
{
    if (!p->accept_retry_us || clock_monotonic_us() < p->accept_retry_us)
        return;
    p->accept_retry_us = 0;
    for (unsigned i = 0; i < LISTENERS_MAX; i++) {
        struct listener *l = &p->listeners[i];
        if (l->fd < 0 || !l->paused)
            continue;
        l->paused = watch_listener(p, l, EPOLL_CTL_ADD) < 0;
        if (l->paused)
            p->accept_retry_us = clock_monotonic_us() + ACCEPT_RETRY_US;
    }
}

/* ---- files ---- */

static int transfer(const struct loop_file_op *op)
{
    struct iovec piece = {op->buffer, op->len};
    ssize_t n;
    do {
        n = op->write ? pwritev2(op->fd, &piece, 1, (off_t)op->offset, op->durable ? RWF_DSYNC : 0)
                      : preadv(op->fd, &piece, 1, (off_t)op->offset);
    } while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : (int)n;
}

static void signal_loop(struct epoll_loop *p)
{
    uint64_t one = 1;
    ssize_t ignored = write(p->wake_fd, &one, sizeof one);
    (void)ignored;
}

static void op_append(struct op_list *list, struct loop_file_op *op)
{
    op->next = NULL;
    *(list->last ? &list->last->next : &list->first) = op;
    list->last = op;
}

static struct loop_file_op *op_pop(struct op_list *list)
{
    struct loop_file_op *op = list->first;
    list->first = op->next;
    if (list->first == NULL)
        list->last = NULL;
    return op;
}

static void *file_thread(void *context)
{
    struct epoll_loop *p = context;
    pthread_mutex_lock(&p->mutex);
    for (;;) {
        p->idle++;
        while (p->queued == 0 && !p->stop)
            pthread_cond_wait(&p->work, &p->mutex);
        p->idle--;
        if (p->queued == 0)
            break;
        struct loop_file_op *op = op_pop(p->writes.first ? &p->writes : &p->reads);
        p->queued--;
        pthread_mutex_unlock(&p->mutex);
        op->result = transfer(op);
        pthread_mutex_lock(&p->mutex);
        if (p->done.first == NULL) /* else the loop has been told and has not come yet */
            signal_loop(p);
        op_append(&p->done, op);
    }
    pthread_mutex_unlock(&p->mutex);
    return NULL;
}

/* 0 or an errno. */
static int start_file_thread(struct epoll_loop *p)
{
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int e = pthread_create(&p->threads[p->thread_count], NULL, file_thread, p);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (e == 0)
        pthread_setname_np(p->threads[p->thread_count++], "loop-files");
    return e;
}

static void epoll_file(struct loop *loop, struct loop_file_op *op)
{
    struct epoll_loop *p = epoll_of(loop);
    pthread_mutex_lock(&p->mutex);
    op_append(op->write ? &p->writes : &p->reads, op);
    p->queued++;
    bool more_threads = p->queued > p->idle && p->thread_count < FILE_THREADS_MAX;
    pthread_cond_signal(&p->work);
    pthread_mutex_unlock(&p->mutex);
    int e = more_threads ? start_file_thread(p) : 0;
    if (e == 0 || p->thread_count > 0)
        return; /* those that are there will do it */
    op_pop(op->write ? &p->writes : &p->reads);
    p->queued--;
    push(p, (struct loop_event){.type = LOOP_FILE_DONE, .result = -e, .owner = op->owner});
}

static void collect_files(struct epoll_loop *p)
{
    pthread_mutex_lock(&p->mutex);
    struct loop_file_op *op = p->done.first;
    p->done = (struct op_list){0};
    pthread_mutex_unlock(&p->mutex);
    while (op) {
        struct loop_file_op *next = op->next;
        push(p, (struct loop_event){.type = LOOP_FILE_DONE, .result = op->result, .owner = op->owner});
        op = next;
    }
}

/* ---- the turn ---- */

static void on_wake(struct epoll_loop *p)
{
    uint64_t count;
    count_call(p);
    ssize_t ignored = read(p->wake_fd, &count, sizeof count);
    (void)ignored;
    /* Acquire and release: pairs with epoll_wake; what was done before it is seen after the event. */
    if (atomic_exchange_explicit(&p->woken, false, memory_order_acq_rel))
        push(p, (struct loop_event){.type = LOOP_WOKEN});
    collect_files(p);
}

static void on_ready(struct epoll_loop *p, const struct epoll_event *e)
{
    if (e->data.ptr == NULL) {
        on_wake(p);
    } else if (e->data.u64 & 1) {
        accept_all(p, (struct listener *)(uintptr_t)(e->data.u64 & ~(uint64_t)1));
    } else {
        struct loop_stream *s = e->data.ptr;
        if (s->state & STATE_WRITE && e->events & (EPOLLOUT | EPOLLERR | EPOLLHUP))
            try_send(p, s);
        if (e->events & (EPOLLIN | EPOLLRDHUP | EPOLLERR | EPOLLHUP))
            receive(p, s);
    }
}

/* No more than there are buffers for: the kernel puts whoever was reported behind the others. */
static int poll_kernel(struct epoll_loop *p, struct epoll_event *ready, int64_t timeout_us)
{
    int most = p->had_buffers ? (int)buffers_left(p) : READY_MAX;
    if (!p->no_pwait2) {
        struct timespec t = {timeout_us / 1000000, timeout_us % 1000000 * 1000};
        count_call(p);
        int n = epoll_pwait2(p->epoll_fd, ready, most, timeout_us < 0 ? NULL : &t, NULL);
        /* Before Linux 5.11; and seccomp filters that don't know the call answer EPERM. */
        if (n >= 0 || (errno != ENOSYS && errno != EPERM))
            return n;
        p->no_pwait2 = true;
    }
    int64_t ms = timeout_us < 0 ? -1 : timeout_us / 1000 + (timeout_us % 1000 != 0);
    count_call(p);
    return epoll_wait(p->epoll_fd, ready, most, ms > INT_MAX ? INT_MAX : (int)ms);
}

static int epoll_loop_wait(struct loop *loop, struct loop_event *events, int capacity, int64_t timeout_us)
{
    struct epoll_loop *p = epoll_of(loop);
    struct epoll_event ready[READY_MAX];
    resume_listeners(p);
    while (p->sends) {
        struct loop_stream *s = p->sends;
        p->sends = s->next_ready;
        try_send(p, s);
    }
    close_streams(p);
    feed_starved(p);
    if (p->queue_count)
        timeout_us = 0;
    if (p->accept_retry_us && (timeout_us < 0 || timeout_us > ACCEPT_RETRY_US))
        timeout_us = ACCEPT_RETRY_US;
    /* A full turn is waiting already: reading more would only pile up buffers. */
    int n = p->queue_count >= (size_t)capacity ? 0 : poll_kernel(p, ready, timeout_us);
    for (int i = 0; i < n; i++) {
        p->ready_left = (unsigned)(n - 1 - i);
        on_ready(p, &ready[i]);
    }
    int count = p->queue_count < (size_t)capacity ? (int)p->queue_count : capacity;
    memcpy(events, p->queue + p->queue_head, (size_t)count * sizeof *events);
    p->queue_head += (size_t)count;
    p->queue_count -= (size_t)count;
    if (p->queue_count == 0)
        p->queue_head = 0;
    __atomic_store_n(&p->base.stats.turns, p->base.stats.turns + 1, __ATOMIC_RELAXED);
    __atomic_store_n(&p->base.stats.events, p->base.stats.events + (uint64_t)count, __ATOMIC_RELAXED);
    return count;
}

/* File operations go to the helper threads when they are queued, sends have time until the next wait. */
static void epoll_submit(struct loop *loop)
{
    (void)loop;
}

static void epoll_wake(struct loop *loop)
{
    struct epoll_loop *p = epoll_of(loop);
    /* Pairs with on_wake. */
    if (!atomic_exchange_explicit(&p->woken, true, memory_order_acq_rel))
        signal_loop(p);
}

/* ---- life ---- */

static void epoll_destroy(struct loop *loop)
{
    struct epoll_loop *p = epoll_of(loop);
    pthread_mutex_lock(&p->mutex);
    p->stop = true;
    pthread_cond_broadcast(&p->work);
    pthread_mutex_unlock(&p->mutex);
    for (unsigned i = 0; i < p->thread_count; i++)
        pthread_join(p->threads[i], NULL);
    for (uint32_t i = 0; i < BUFFERS_MAX; i++)
        free(p->buffers[i]);
    free(p->queue);
    free(p->starved);
    if (p->epoll_fd >= 0)
        close(p->epoll_fd);
    if (p->wake_fd >= 0)
        close(p->wake_fd);
    free(p);
}

status_t loop_epoll_create(struct loop **out)
{
    static const struct loop_ops ops = {
        .destroy = epoll_destroy,
        .listen = epoll_listen,
        .unlisten = epoll_unlisten,
        .stream_start = epoll_stream_start,
        .stream_read = epoll_stream_read,
        .stream_send = epoll_stream_send,
        .stream_close = epoll_stream_close,
        .file = epoll_file,
        .submit = epoll_submit,
        .buffer_release = epoll_buffer_release,
        .wait = epoll_loop_wait,
        .wake = epoll_wake,
    };
    struct epoll_loop *p = calloc(1, sizeof *p);
    CHECK(p != NULL);
    p->base.ops = &ops;
    p->base.backend = LOOP_EPOLL;
    p->base.buffers_max = BUFFERS_MAX;
    p->queue_capacity = 1024;
    p->queue = malloc(p->queue_capacity * sizeof *p->queue);
    CHECK(p->queue);
    for (uint32_t i = 0; i < BUFFERS_MAX; i++)
        p->free_buffers[p->bare_count++] = i;
    for (unsigned i = 0; i < LISTENERS_MAX; i++)
        p->listeners[i].fd = -1;
    pthread_mutex_init(&p->mutex, NULL);
    pthread_cond_init(&p->work, NULL);
    p->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    p->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    struct epoll_event wake = {.events = EPOLLIN, .data.ptr = NULL};
    if (p->epoll_fd < 0 || p->wake_fd < 0 || epoll_ctl(p->epoll_fd, EPOLL_CTL_ADD, p->wake_fd, &wake) < 0) {
        status_t s = status_errno(errno, "cannot make an event loop");
        epoll_destroy(&p->base);
        return s;
    }
    *out = &p->base;
    return status_ok();
}
