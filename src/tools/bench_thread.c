#include "tools/bench.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "sys/thread.h"

enum {
    EVENTS_MAX = 512,
    IDLE_WAIT_MS = 100,
    DRAIN_NS = 2000000000, /* how long replies are awaited after the end */
    SPIN_NS = 30000,       /* open loop: a next start nearer than this is awaited by polling */
    SLICE_US = 100,        /* open loop: soon on its core again when something else has had it */
};

static uint64_t pick_id(struct bench_thread *t)
{
    const struct bench_config *config = t->config;
    if (config->dist == BENCH_UNIFORM)
        return prng_below(&t->prng, config->keys);
    uint64_t rank = zipf_next(&t->shared->zipf, &t->prng);
    if (config->dist == BENCH_ZIPF)
        return permutation_at(&t->shared->scramble, rank);
    uint64_t newest = config->keys + BENCH_LOAD(t->shared->inserted) - 1;
    return newest - rank;
}

/* The next new key; false when there is none left. Threads take numbers in lots, to meet rarely. */
static bool next_insert(struct bench_thread *t, uint64_t *id)
{
    enum { LOT = 64 };
    const struct bench_config *config = t->config;
    if (t->insert_next == t->insert_end) {
        uint64_t lot = config->insert_only ? LOT : 1;
        t->insert_next = atomic_fetch_add_explicit(&t->shared->next_insert, lot, memory_order_relaxed);
        t->insert_end = t->insert_next + lot;
        if (config->insert_only && t->insert_end > config->keys)
            t->insert_end = config->keys > t->insert_next ? config->keys : t->insert_next;
    }
    if (t->insert_next == t->insert_end) {
        t->insert_done = true;
        return false;
    }
    uint64_t i = t->insert_next++;
    if (!config->insert_only)
        *id = config->keys + i;
    else
        *id = config->order == BENCH_ORDER_RANDOM ? permutation_at(&t->shared->order, i) : i;
    return true;
}

static enum bench_op pick_op(struct bench_thread *t)
{
    const struct bench_mix *mix = &t->config->mix;
    if (mix->get == 1000)
        return BENCH_GET;
    unsigned r = (unsigned)prng_below(&t->prng, 1000);
    if (r < mix->get)
        return BENCH_GET;
    if ((r -= mix->get) < mix->set)
        return BENCH_SET;
    if ((r -= mix->set) < mix->insert)
        return BENCH_INSERT;
    return r - mix->insert < mix->range ? BENCH_RANGE : BENCH_RMW;
}

/* Formats one more operation on c. False when an insert run has no more keys. */
static bool put_next(struct bench_thread *t, struct bench_conn *c, uint64_t start_ns)
{
    uint64_t id;
    if (c->follow_count) {
        struct bench_request *next = &c->follow[--c->follow_count];
        bench_conn_put(t, c, BENCH_RMW_SET, next->op_id & ((1ull << 56) - 1), next->start_ns);
        return true;
    }
    enum bench_op op = c->beside ? BENCH_SET : pick_op(t);
    if (op == BENCH_INSERT) {
        if (!next_insert(t, &id))
            return false;
    } else if (op == BENCH_RANGE && t->config->range_limit) {
        id = c->range_next;
        c->range_next = (id + t->config->range_limit) % t->config->keys;
    } else {
        id = pick_id(t);
    }
    bench_conn_put(t, c, op, id, start_ns);
    return true;
}

/* The connection is lost: what the server said before is the reason. */
static status_t lost(struct bench_thread *t, struct bench_conn *c, const status_t *how)
{
    bool got = false;
    status_t s = bench_conn_receive(c, &got);
    if (status_is_ok(&s) && got)
        s = bench_reply_take(t, c, bench_now_ns());
    return t->error_text[0] ? status_error(how->code, "%s; it said: %s", how->text, t->error_text) : *how;
}

static status_t send_requests(struct bench_thread *t, struct bench_conn *c)
{
    status_t s = bench_conn_send(t, c);
    return status_is_ok(&s) ? s : lost(t, c, &s);
}

/* Closed loop: as much of the batch as fits. */
static status_t fill_and_send(struct bench_thread *t, struct bench_conn *c, uint64_t now_ns)
{
    while (c->quota && bench_conn_room(t, c)) {
        if (!put_next(t, c, now_ns)) {
            c->quota = 0;
            break;
        }
        c->quota--;
    }
    return send_requests(t, c);
}

/* One piece of one connection's batch, so that measured requests get their turn in between. *more: there is
 * something left to send. */
static status_t push_beside(struct bench_thread *t, uint64_t now_ns, bool *more)
{
    uint32_t count = t->conn_count - t->measured_count;
    *more = false;
    for (uint32_t i = 0; i < count; i++) {
        struct bench_conn *c = &t->conns[t->measured_count + t->beside_turn];
        t->beside_turn = (t->beside_turn + 1) % count;
        if (c->quota && !c->want_out && bench_conn_room(t, c)) {
            *more = true;
            return fill_and_send(t, c, now_ns);
        }
    }
    return status_ok();
}

static status_t on_event(struct bench_thread *t, struct bench_conn *c, uint32_t events, bool issue)
{
    bool got = false;
    bool open_loop = t->config->rate > 0 && !c->beside;
    if (events & (EPOLLIN | EPOLLERR | EPOLLHUP)) {
        status_t s = bench_conn_receive(c, &got);
        if (!status_is_ok(&s))
            return lost(t, c, &s);
        if (got) {
            uint64_t now_ns = bench_now_ns();
            TRY(bench_reply_take(t, c, now_ns));
            bool due = t->config->generated && !c->beside ? bench_in_flight(c) < t->config->pipeline
                                                          : bench_in_flight(c) == 0;
            if (!open_loop && issue && due && c->quota == 0) {
                c->quota = t->config->pipeline - bench_in_flight(c);
                return c->beside ? status_ok() : fill_and_send(t, c, now_ns);
            }
            if (open_loop && c->follow_count) {
                while (c->follow_count && bench_conn_room(t, c))
                    put_next(t, c, now_ns);
                return send_requests(t, c);
            }
        }
    }
    if (c->quota && !c->beside && (events & EPOLLOUT || got))
        return fill_and_send(t, c, bench_now_ns());
    return events & EPOLLOUT ? send_requests(t, c) : status_ok();
}

/* Open loop: starts everything that is due. Each request's start is its place in the schedule, also when it
 * is late. */
static status_t issue_due(struct bench_thread *t, uint64_t now_ns, uint64_t *next_ns)
{
    double gap_ns = 1e9 * (double)t->config->threads / t->config->rate;
    double offset_ns = gap_ns * t->index / (double)t->config->threads;
    uint64_t start_ns = t->shared->start_ns, issued = t->issued;
    for (;;) {
        uint64_t due = start_ns + (uint64_t)(offset_ns + gap_ns * (double)t->issued);
        *next_ns = due;
        if (due > now_ns)
            break;
        struct bench_conn *c = NULL;
        for (uint32_t tried = 0; tried < t->measured_count && c == NULL; tried++) {
            struct bench_conn *candidate = &t->conns[t->turn];
            t->turn = t->turn + 1 == t->measured_count ? 0 : t->turn + 1;
            if (bench_conn_room(t, candidate) && bench_in_flight(candidate) < BENCH_OPEN_LOOP_WINDOW)
                c = candidate;
        }
        atomic_store_explicit(&t->current->behind_ns, now_ns - due, memory_order_relaxed);
        if (c == NULL) {
            *next_ns = UINT64_MAX; /* every window is full: replies come first */
            break;
        }
        if (!put_next(t, c, due))
            break;
        t->issued++;
        c->dirty = true;
    }
    for (uint32_t i = 0; i < t->measured_count && t->issued > issued; i++)
        if (t->conns[i].dirty)
            TRY(send_requests(t, &t->conns[i]));
    return status_ok();
}

static int wait_events(struct bench_thread *t, struct epoll_event *events, uint64_t now_ns, uint64_t next_ns)
{
    if (t->config->rate <= 0 || next_ns == UINT64_MAX)
        return epoll_wait(t->epoll, events, EVENTS_MAX, IDLE_WAIT_MS);
    if (next_ns <= now_ns + SPIN_NS) {
        /* Where the kernel completes the disk's writes on this core, a server waits for that: a thread that
         * never sleeps would let it wait for the next timer tick. */
        int count = epoll_wait(t->epoll, events, EVENTS_MAX, 0);
        if (count == 0)
            sched_yield();
        return count;
    }
    uint64_t wait_ns = next_ns - now_ns - SPIN_NS / 2;
    if (wait_ns > IDLE_WAIT_MS * 1000000ull)
        wait_ns = IDLE_WAIT_MS * 1000000ull;
    struct timespec timeout = {0, (long)wait_ns};
    return epoll_pwait2(t->epoll, events, EVENTS_MAX, &timeout, NULL);
}

static bool all_answered(const struct bench_thread *t)
{
    for (uint32_t i = 0; i < t->conn_count; i++)
        if (bench_in_flight(&t->conns[i]) || t->conns[i].quota)
            return false;
    return true;
}

/* The measured connections first, then one of those beside: the others are reported again. */
static status_t handle(struct bench_thread *t, const struct epoll_event *events, int count, bool issue)
{
    int beside = -1;
    for (int i = 0; i < count; i++) {
        if (t->conns[events[i].data.u32].beside)
            beside = beside < 0 || (t->issued + (uint64_t)i) % (unsigned)count == 0 ? i : beside;
        else
            TRY(on_event(t, &t->conns[events[i].data.u32], events[i].events, issue));
    }
    return beside < 0 ? status_ok()
                      : on_event(t, &t->conns[events[beside].data.u32], events[beside].events, issue);
}

/* After the end: replies under way are read, so that the server is left in peace; they no longer count. */
static status_t drain(struct bench_thread *t)
{
    struct epoll_event events[EVENTS_MAX];
    uint64_t give_up_ns = bench_now_ns() + DRAIN_NS;
    for (uint32_t i = 0; i < t->conn_count; i++)
        t->conns[i].quota = 0;
    while (!all_answered(t) && bench_now_ns() < give_up_ns)
        TRY(handle(t, events, epoll_wait(t->epoll, events, EVENTS_MAX, IDLE_WAIT_MS), false));
    return status_ok();
}

static status_t run(struct bench_thread *t)
{
    const struct bench_config *config = t->config;
    struct epoll_event events[EVENTS_MAX];
    uint64_t now_ns = bench_now_ns(), next_ns = 0;
    uint64_t count_ns = t->shared->start_ns + (uint64_t)(config->warmup_seconds * 1e9);
    uint64_t end_ns =
        config->seconds > 0 ? t->shared->start_ns + (uint64_t)(config->seconds * 1e9) : UINT64_MAX;
    bool counting = config->warmup_seconds <= 0;
    t->current = counting ? &t->stats : &t->warmup;
    t->count_start_ns = now_ns;
    for (uint32_t i = 0; i < t->conn_count; i++) {
        struct bench_conn *c = &t->conns[i];
        c->quota = config->rate > 0 && !c->beside ? 0 : config->pipeline;
        if (c->quota && !c->beside)
            TRY(fill_and_send(t, c, bench_now_ns()));
    }
    while (!atomic_load_explicit(&t->shared->stop, memory_order_relaxed)) {
        now_ns = bench_now_ns();
        if (!counting && now_ns >= count_ns) {
            t->current = &t->stats;
            t->count_start_ns = now_ns;
            counting = true;
        }
        if (now_ns >= end_ns || (t->insert_done && all_answered(t)))
            break;
        if (config->rate > 0)
            TRY(issue_due(t, now_ns, &next_ns));
        bool more = false;
        if (config->beside)
            TRY(push_beside(t, now_ns, &more));
        if (more)
            next_ns = now_ns; /* looks, but does not wait */
        int count = wait_events(t, events, now_ns, t->insert_done ? UINT64_MAX : next_ns);
        if (count < 0 && errno != EINTR)
            return status_errno(errno, "epoll_wait");
        TRY(handle(t, events, count, true));
    }
    t->count_end_ns = bench_now_ns();
    t->draining = true;
    return drain(t);
}

static void pin(const struct bench_thread *t)
{
    if (t->config->pin < 0)
        return;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(((unsigned)t->config->pin + t->index) % (unsigned)sysconf(_SC_NPROCESSORS_ONLN), &set);
    sched_setaffinity(0, sizeof set, &set);
}

void *bench_thread_run(void *thread)
{
    struct bench_thread *t = thread;
    pin(t);
    prctl(PR_SET_TIMERSLACK, 1);
    if (t->config->rate > 0)
        (void)thread_slice_set(SLICE_US);
    t->failure = run(t);
    if (t->count_end_ns == 0)
        t->count_end_ns = bench_now_ns();
    if (!status_is_ok(&t->failure))
        atomic_store_explicit(&t->shared->stop, true,
                              memory_order_relaxed); /* a request to end, carries no data */
    return NULL;
}

status_t bench_thread_open(struct bench_thread *t, struct bench_shared *shared, unsigned index)
{
    const struct bench_config *config = shared->config;
    memset(t, 0, sizeof *t);
    t->shared = shared;
    t->config = config;
    t->index = index;
    t->failure = status_ok();
    t->current = &t->stats;
    t->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (t->epoll < 0)
        return status_errno(errno, "epoll_create");
    prng_seed(&t->prng, config->seed + index);
    bench_reply_init(t);
    uint32_t wanted =
        (uint32_t)(config->clients / config->threads + (index < config->clients % config->threads));
    t->measured_count = wanted;
    wanted += (uint32_t)config->beside;
    t->conns = calloc(wanted, sizeof *t->conns);
    if (t->conns == NULL)
        return status_error(STATUS_NO_MEMORY, "out of memory");
    for (uint32_t i = 0; i < wanted; i++) {
        t->conn_count++;
        TRY(bench_conn_open(t, &t->conns[i], i));
        t->conns[i].range_next = prng_below(&t->prng, config->keys);
    }
    return status_ok();
}

void bench_thread_close(struct bench_thread *t)
{
    for (uint32_t i = 0; i < t->conn_count; i++)
        bench_conn_close(&t->conns[i]);
    free(t->conns);
    if (t->epoll > 0)
        close(t->epoll);
}
