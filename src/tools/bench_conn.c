#include "tools/bench.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/check.h"
#include "tools/client.h"

enum {
    OUT_BYTES_MAX = 1 << 18,    /* of an output buffer, unless one request is longer */
    BESIDE_BYTES_MAX = 1 << 12, /* small, so that the measured requests between are not late */
    IN_BYTES_MIN = 1 << 12,
    IN_BYTES_MAX = 1 << 17, /* of an input buffer at first; it grows for longer replies */
    REQUEST_OVERHEAD_BYTES = 128,
};

static size_t clamp(size_t n, size_t low, size_t high)
{
    return n < low ? low : n > high ? high : n;
}

static status_t allocate(struct bench_thread *t, struct bench_conn *c)
{
    const struct bench_config *config = t->config;
    size_t window = config->rate > 0 && !c->beside ? BENCH_OPEN_LOOP_WINDOW : config->pipeline;
    size_t out_max = c->beside ? BESIDE_BYTES_MAX : OUT_BYTES_MAX;
    uint32_t ring = 1;
    while (ring < window + 1)
        ring *= 2;
    t->request_bytes_max = REQUEST_OVERHEAD_BYTES + config->sizes.max;
    c->out_capacity = clamp(window * t->request_bytes_max, t->request_bytes_max,
                            out_max > t->request_bytes_max ? out_max : t->request_bytes_max);
    c->in_capacity = clamp(window * (config->sizes.max + 32), IN_BYTES_MIN, IN_BYTES_MAX);
    c->ring_mask = ring - 1;
    c->out = malloc(c->out_capacity);
    c->in = malloc(c->in_capacity);
    c->ring = malloc(ring * sizeof *c->ring);
    c->follow = config->mix.rmw ? malloc(ring * sizeof *c->follow) : NULL;
    if (!c->out || !c->in || !c->ring || (config->mix.rmw && !c->follow))
        return status_error(STATUS_NO_MEMORY, "out of memory for connections' buffers");
    return status_ok();
}

status_t bench_conn_open(struct bench_thread *t, struct bench_conn *c, uint32_t index)
{
    *c = (struct bench_conn){.fd = -1, .beside = index >= t->measured_count};
    TRY(allocate(t, c));
    TRY(client_connect(t->config->connect, &c->fd));
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = index};
    if (fcntl(c->fd, F_SETFL, O_NONBLOCK) != 0 || epoll_ctl(t->epoll, EPOLL_CTL_ADD, c->fd, &event) != 0)
        return status_errno(errno, "cannot watch a connection");
    return status_ok();
}

void bench_conn_close(struct bench_conn *c)
{
    if (c->fd >= 0)
        close(c->fd);
    free(c->out);
    free(c->in);
    free(c->ring);
    free(c->follow);
}

bool bench_conn_room(const struct bench_thread *t, const struct bench_conn *c)
{
    return c->out_capacity - c->out_tail >= t->request_bytes_max && bench_in_flight(c) <= c->ring_mask;
}

#define PUT_TEXT(p, text) (memcpy((p), (text), sizeof(text) - 1), (p) + sizeof(text) - 1)

/* Over the "key:000000000000" of a request. */
static inline void put_key(const struct bench_thread *t, char *dst, uint64_t id)
{
    if (t->config->generated)
        bench_record_key(&t->config->records, id, dst);
    else
        bench_put_digits(dst + BENCH_KEY_BYTES - BENCH_KEY_DIGITS, id);
}

static char *put_value(const struct bench_thread *t, char *p, enum bench_op op, uint64_t id, size_t len,
                       uint64_t start_ns)
{
    if (t->config->generated) {
        uint32_t fresh = (uint32_t)prng_mix(start_ns + prng_mix(id)) | 1;
        bench_record_fill(&t->config->records, p, len, id, op == BENCH_INSERT ? 0 : fresh);
    } else {
        bench_value_fill(p, len, id);
    }
    return PUT_TEXT(p + len, "\r\n");
}

static char *put_number(char *p, uint64_t v)
{
    char digits[20];
    int n = 0;
    do
        digits[n++] = (char)('0' + v % 10);
    while (v /= 10);
    while (n)
        *p++ = digits[--n];
    return p;
}

static char *put_get(const struct bench_thread *t, char *p, uint64_t id)
{
    char *q;
    if (t->config->protocol == BENCH_RESP) {
        q = PUT_TEXT(p, "*2\r\n$3\r\nGET\r\n$16\r\nkey:000000000000\r\n");
        put_key(t, q - BENCH_KEY_BYTES - 2, id);
    } else if (t->config->protocol == BENCH_MEMCACHED) {
        q = PUT_TEXT(p, "get key:000000000000\r\n");
        put_key(t, q - BENCH_KEY_BYTES - 2, id);
    } else {
        q = PUT_TEXT(p, "mg key:000000000000 v\r\n");
        put_key(t, q - BENCH_KEY_BYTES - 4, id);
    }
    return q;
}

static char *put_set(const struct bench_thread *t, char *p, enum bench_op op, uint64_t id, uint64_t start_ns)
{
    const struct bench_config *config = t->config;
    uint32_t len =
        config->generated ? bench_record_bytes(&config->records, id) : bench_value_bytes(&config->sizes, id);
    char *q;
    if (t->config->protocol == BENCH_RESP) {
        q = PUT_TEXT(p, "*3\r\n$3\r\nSET\r\n$16\r\nkey:000000000000\r\n$");
        put_key(t, q - BENCH_KEY_BYTES - 3, id);
    } else if (t->config->protocol == BENCH_MEMCACHED) {
        q = PUT_TEXT(p, "set key:000000000000 0 0 ");
        put_key(t, q - BENCH_KEY_BYTES - 5, id);
    } else {
        q = PUT_TEXT(p, "ms key:000000000000 ");
        put_key(t, q - BENCH_KEY_BYTES - 1, id);
    }
    q = PUT_TEXT(put_number(q, len), "\r\n");
    return put_value(t, q, op, id, len, start_ns);
}

static char *put_range(char *p, uint64_t id, uint64_t limit)
{
    char *q = PUT_TEXT(p, "*5\r\n$5\r\nRANGE\r\n$16\r\nkey:000000000000\r\n$1\r\n+\r\n$5\r\nLIMIT\r\n$");
    bench_put_digits(p + 25, id);
    char digits[20];
    size_t n = (size_t)(put_number(digits, limit) - digits);
    q = PUT_TEXT(put_number(q, n), "\r\n");
    memcpy(q, digits, n);
    return PUT_TEXT(q + n, "\r\n");
}

void bench_conn_put(const struct bench_thread *t, struct bench_conn *c, enum bench_op op, uint64_t id,
                    uint64_t start_ns)
{
    char *p = c->out + c->out_tail;
    uint64_t limit = t->config->range_limit;
    switch (op) {
    case BENCH_GET:
    case BENCH_RMW:
        p = put_get(t, p, id);
        break;
    case BENCH_RANGE:
        p = put_range(p, id, limit ? limit : 1 + (prng_mix(start_ns + id) % BENCH_SCAN_KEYS_MAX));
        break;
    default:
        p = put_set(t, p, op, id, start_ns);
    }
    c->out_tail = (size_t)(p - c->out);
    DCHECK(c->out_tail <= c->out_capacity);
    c->ring[c->ring_tail++ & c->ring_mask] = (struct bench_request){bench_op_id(op, id), start_ns};
}

static status_t arm(struct bench_thread *t, struct bench_conn *c, bool want_out)
{
    if (c->want_out == want_out)
        return status_ok();
    c->want_out = want_out;
    struct epoll_event event = {.events = want_out ? EPOLLIN | EPOLLOUT : EPOLLIN,
                                .data.u32 = (uint32_t)(c - t->conns)};
    if (epoll_ctl(t->epoll, EPOLL_CTL_MOD, c->fd, &event) != 0)
        return status_errno(errno, "epoll_ctl");
    return status_ok();
}

status_t bench_conn_send(struct bench_thread *t, struct bench_conn *c)
{
    c->dirty = false;
    while (c->out_head < c->out_tail) {
        ssize_t n = send(c->fd, c->out + c->out_head, c->out_tail - c->out_head, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN)
            break;
        if (n < 0 && errno != EINTR)
            return status_errno(errno, "the server closed a connection");
        if (n > 0)
            c->out_head += (size_t)n;
    }
    if (c->out_head == c->out_tail) {
        c->out_head = c->out_tail = 0;
    } else if (c->out_head > c->out_capacity / 2) {
        memmove(c->out, c->out + c->out_head, c->out_tail - c->out_head);
        c->out_tail -= c->out_head;
        c->out_head = 0;
    }
    return arm(t, c, c->out_head < c->out_tail);
}

/* Moves a partial reply to the front; doubles the buffer when that does not help. */
static status_t make_room(struct bench_conn *c)
{
    memmove(c->in, c->in + c->in_head, c->in_tail - c->in_head);
    c->in_tail -= c->in_head;
    c->in_head = 0;
    if (c->in_capacity - c->in_tail >= c->in_capacity / 4)
        return status_ok();
    char *in = realloc(c->in, 2 * c->in_capacity);
    if (in == NULL)
        return status_error(STATUS_NO_MEMORY, "out of memory for a reply of over %zu bytes", c->in_tail);
    c->in = in;
    c->in_capacity *= 2;
    return status_ok();
}

status_t bench_conn_receive(struct bench_conn *c, bool *got)
{
    if (c->in_head == c->in_tail)
        c->in_head = c->in_tail = 0;
    if (c->in_capacity - c->in_tail < c->in_capacity / 4)
        TRY(make_room(c));
    ssize_t n = recv(c->fd, c->in + c->in_tail, c->in_capacity - c->in_tail, 0);
    *got = n > 0;
    if (n == 0)
        return status_error(STATUS_IO, "the server closed a connection");
    if (n < 0 && errno != EAGAIN && errno != EINTR)
        return status_errno(errno, "connection lost");
    if (n > 0)
        c->in_tail += (size_t)n;
    return status_ok();
}
