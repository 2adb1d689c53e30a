/* Replies are recognised without being taken apart: the reply that is expected is compared at its fixed
 * places (head and last CRLF), and only when it is something else does the full scanner look at it. */
#include "tools/bench.h"

#include "base/check.h"
#include "base/parse.h"

/* What a look at the input found. */
enum found { FOUND_OK, FOUND_NIL, FOUND_ERROR, FOUND_MORE /* not all there yet */, FOUND_NONSENSE };

struct reply {
    size_t bytes;
    struct slice value; /* of a GET */
    uint64_t items;     /* of a RANGE: array items */
};

void bench_reply_init(struct bench_thread *t)
{
    const struct bench_config *config = t->config;
    t->get_fixed =
        config->protocol == BENCH_RESP && config->sizes.min == config->sizes.max && !config->verify;
    int n = snprintf(t->get_head, sizeof t->get_head, "$%u\r\n", config->sizes.min);
    CHECK(n > 0 && (size_t)n < sizeof t->get_head);
    t->get_head_bytes = (uint32_t)n;
    t->get_reply_bytes = t->get_head_bytes + config->sizes.min + 2;
    memcpy(&t->get_head_word, t->get_head, sizeof t->get_head_word);
    t->get_head_mask = n >= 8 ? UINT64_MAX : (1ull << (8 * n)) - 1;
    t->get_head_word &= t->get_head_mask;
    /* A head of more than 8 bytes, or a reply shorter than 8, is left to the scanner. */
    if (n > 8 || t->get_reply_bytes < 8)
        t->get_fixed = false;
}

static enum found look_resp(struct bench_conn *c, const char *p, size_t len, struct reply *r)
{
    struct reply_item item;
    int64_t n = reply_scan_continue(&c->scan, p, len);
    if (n == 0)
        return FOUND_MORE;
    if (n < 0 || reply_item_read(p, len, &item) < 0)
        return FOUND_NONSENSE;
    r->bytes = (size_t)n;
    r->value = item.text;
    r->items = c->scan.items - 1;
    c->scan = (struct reply_scan){0};
    if (item.type == '-' || item.type == '!')
        return FOUND_ERROR;
    return item.nil ? FOUND_NIL : FOUND_OK;
}

/* "VALUE key flags len" or "VA len": the value behind the line, then tail ("\r\nEND\r\n" or "\r\n"). */
static enum found look_memcached_value(const char *p, size_t len, size_t line, const char *tail,
                                       size_t tail_bytes, struct reply *r)
{
    size_t at = line - 2, end = line - 2;
    uint64_t bytes;
    while (at > 0 && p[at - 1] != ' ')
        at--;
    if (!parse_u64(slice_make(p + at, end - at), &bytes) || bytes > 1u << 30)
        return FOUND_NONSENSE;
    if (len < line + bytes + tail_bytes)
        return FOUND_MORE;
    if (memcmp(p + line + bytes, tail, tail_bytes) != 0)
        return FOUND_NONSENSE;
    r->value = slice_make(p + line, bytes);
    r->bytes = line + bytes + tail_bytes;
    return FOUND_OK;
}

static enum found look_memcached(const char *p, size_t len, struct reply *r)
{
    const char *newline = memchr(p, '\n', len < 4096 ? len : 4096);
    if (newline == NULL)
        return len < 4096 ? FOUND_MORE : FOUND_NONSENSE;
    size_t line = (size_t)(newline - p) + 1;
    struct slice text = slice_make(p, line);
    if (line < 4 || newline[-1] != '\r')
        return FOUND_NONSENSE;
    r->bytes = line;
    if (slice_starts_with(text, SLICE_LITERAL("VALUE ")))
        return look_memcached_value(p, len, line, "\r\nEND\r\n", 7, r);
    if (slice_starts_with(text, SLICE_LITERAL("VA ")))
        return look_memcached_value(p, len, line, "\r\n", 2, r);
    if (slice_equal(text, SLICE_LITERAL("STORED\r\n")) || slice_equal(text, SLICE_LITERAL("HD\r\n")))
        return FOUND_OK;
    if (slice_equal(text, SLICE_LITERAL("END\r\n")) || slice_equal(text, SLICE_LITERAL("EN\r\n")))
        return FOUND_NIL;
    r->value = slice_make(p, line - 2);
    return FOUND_ERROR;
}

static void note_error(struct bench_thread *t, struct slice text)
{
    BENCH_COUNT(t->current->errors, 1);
    if (t->error_text[0] == '\0')
        snprintf(t->error_text, sizeof t->error_text, "%.*s", (int)(text.len < 180 ? text.len : 180),
                 text.data);
}

/* Everything that a reply to this request means, but the latency. True when it ended an operation. */
static bool settle(struct bench_thread *t, struct bench_conn *c, const struct bench_request *request,
                   enum found found, const struct reply *r)
{
    enum bench_op op = (enum bench_op)(request->op_id >> 56);
    uint64_t id = request->op_id & ((1ull << 56) - 1);
    if (t->draining)
        return true;
    if (found == FOUND_ERROR)
        note_error(t, r->value);
    else if (found == FOUND_NIL)
        BENCH_COUNT(t->current->nils, 1);
    else if (op == BENCH_RANGE)
        BENCH_COUNT(t->current->range_keys, r->items / 2);
    else if (t->config->verify && (op == BENCH_GET || op == BENCH_RMW) &&
             !bench_value_matches(r->value, &t->config->sizes, id))
        BENCH_COUNT(t->current->wrong, 1);
    if (op == BENCH_INSERT)
        atomic_fetch_add_explicit(&t->shared->inserted, 1,
                                  memory_order_relaxed); /* a hint for BENCH_LATEST */
    if (op != BENCH_RMW || found == FOUND_ERROR)
        return true;
    c->follow[c->follow_count++] = (struct bench_request){bench_op_id(BENCH_RMW_SET, id), request->start_ns};
    return false;
}

/* The usual replies at their fixed places. Returns the bytes, 0 for "look closer". */
static inline size_t usual_reply(const struct bench_thread *t, enum bench_op op, const char *p, size_t len)
{
    if (op == BENCH_GET) {
        size_t n = t->get_reply_bytes;
        if (!t->get_fixed || len < n || (load_u64(p) & t->get_head_mask) != t->get_head_word ||
            load_u16(p + n - 2) != ('\r' | '\n' << 8))
            return 0;
        return n;
    }
    bool set = op == BENCH_SET || op == BENCH_RMW_SET || (op == BENCH_INSERT && t->config->insert_only);
    if (set && len >= 5 && memcmp(p, "+OK\r\n", 5) == 0)
        return 5;
    return 0;
}

status_t bench_reply_take(struct bench_thread *t, struct bench_conn *c, uint64_t now_ns)
{
    struct bench_stats *stats = t->current;
    uint64_t ops = 0;
    status_t status = status_ok();
    while (c->in_head < c->in_tail) {
        const char *p = c->in + c->in_head;
        size_t len = c->in_tail - c->in_head;
        if (bench_in_flight(c) == 0) {
            status = status_error(STATUS_CORRUPT, "the server sent a reply too many");
            break;
        }
        struct bench_request request = c->ring[c->ring_head & c->ring_mask];
        bool ended = true;
        size_t n = c->scan.done ? 0 : usual_reply(t, (enum bench_op)(request.op_id >> 56), p, len);
        if (UNLIKELY(n == 0)) {
            struct reply reply = {0};
            enum found found = t->config->protocol == BENCH_RESP ? look_resp(c, p, len, &reply)
                                                                 : look_memcached(p, len, &reply);
            if (found == FOUND_MORE)
                break;
            if (found == FOUND_NONSENSE) {
                status = status_error(STATUS_CORRUPT, "the server's answer is not in the protocol: '%.*s'",
                                      (int)(len < 20 ? len : 20), p);
                break;
            }
            ended = settle(t, c, &request, found, &reply);
            n = reply.bytes;
        }
        c->in_head += n;
        c->ring_head++;
        if (ended && !t->draining && c->beside) {
            BENCH_COUNT(stats->beside_ops, 1);
        } else if (ended && !t->draining) {
            ops++;
            histogram_add(&stats->latency, now_ns > request.start_ns ? now_ns - request.start_ns : 0);
        }
    }
    BENCH_COUNT(stats->ops, ops);
    return status;
}
