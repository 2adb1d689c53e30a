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
    uint64_t max = t->config->errors_max;
    if (max && BENCH_LOAD(t->current->errors) > max)
        atomic_store_explicit(&t->shared->stop, true, memory_order_relaxed); /* only a request to end */
}

static bool is_set(enum bench_op op)
{
    return op == BENCH_SET || op == BENCH_RMW_SET || op == BENCH_INSERT;
}

/* A generated record was read: it has to be there, of its length, and with --verify of its content. */
static void settle_record(struct bench_thread *t, uint64_t id, enum found found, const struct reply *r)
{
    const struct bench_config *config = t->config;
    uint32_t bytes = bench_record_bytes(&config->records, id);
    char text[100];
    int n;
    if (found == FOUND_NIL) {
        BENCH_COUNT(t->current->nils, 1);
        n = snprintf(text, sizeof text, "record %llu is missing", (unsigned long long)id);
    } else if (r->value.len != bytes) {
        BENCH_COUNT(t->current->wrong, 1);
        n = snprintf(text, sizeof text, "record %llu has %zu bytes instead of %u", (unsigned long long)id,
                     r->value.len, bytes);
    } else if (config->verify && !bench_record_matches(&config->records, r->value, id)) {
        BENCH_COUNT(t->current->wrong, 1);
        n = snprintf(text, sizeof text, "record %llu has another content", (unsigned long long)id);
    } else {
        BENCH_COUNT(t->current->value_bytes, bytes);
        return;
    }
    note_error(t, slice_make(text, (size_t)n));
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
    else if (is_set(op) && t->config->protocol == BENCH_RESP && !slice_equal(r->value, SLICE_LITERAL("OK")))
        note_error(t, SLICE_LITERAL("a SET was not answered with OK"));
    else if (op == BENCH_GET && t->config->generated)
        settle_record(t, id, found, r);
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

/* A generated record as it should be, with its value_bytes. Returns the bytes, 0 for "look closer". */
static size_t record_reply(const struct bench_config *config, uint64_t id, const char *p, size_t len,
                           uint32_t *value_bytes)
{
    char head[16];
    uint32_t bytes = bench_record_bytes(&config->records, id), rest = bytes;
    char *q = head + sizeof head;
    *--q = '\n';
    *--q = '\r';
    do
        *--q = (char)('0' + rest % 10);
    while (rest /= 10);
    *--q = '$';
    size_t head_bytes = (size_t)(head + sizeof head - q), n = head_bytes + bytes + 2;
    if (len < n || memcmp(p, q, head_bytes) != 0 || load_u16(p + n - 2) != ('\r' | '\n' << 8))
        return 0;
    if (config->verify && !bench_record_matches(&config->records, slice_make(p + head_bytes, bytes), id))
        return 0;
    *value_bytes = bytes;
    return n;
}

/* The usual replies at their fixed places. Returns the bytes, 0 for "look closer". */
static inline size_t usual_reply(const struct bench_thread *t, const struct bench_request *request,
                                 const char *p, size_t len, uint32_t *value_bytes)
{
    enum bench_op op = (enum bench_op)(request->op_id >> 56);
    const struct bench_config *config = t->config;
    uint64_t id = request->op_id & ((1ull << 56) - 1);
    if (op == BENCH_GET && config->generated)
        return config->protocol == BENCH_RESP ? record_reply(config, id, p, len, value_bytes) : 0;
    if (op == BENCH_GET) {
        size_t n = t->get_reply_bytes;
        if (!t->get_fixed || len < n || (load_u64(p) & t->get_head_mask) != t->get_head_word ||
            load_u16(p + n - 2) != ('\r' | '\n' << 8))
            return 0;
        return n;
    }
    bool set = is_set(op) && (op != BENCH_INSERT || config->insert_only);
    if (set && len >= 5 && memcmp(p, "+OK\r\n", 5) == 0) {
        *value_bytes = config->generated ? bench_record_bytes(&config->records, id) : 0;
        return 5;
    }
    return 0;
}

status_t bench_reply_take(struct bench_thread *t, struct bench_conn *c, uint64_t now_ns)
{
    struct bench_stats *stats = t->current;
    uint64_t ops = 0, bytes = 0;
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
        uint32_t value_bytes = 0;
        size_t n = c->scan.done ? 0 : usual_reply(t, &request, p, len, &value_bytes);
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
            bytes += value_bytes;
            histogram_add(&stats->latency, now_ns > request.start_ns ? now_ns - request.start_ns : 0);
        }
    }
    BENCH_COUNT(stats->ops, ops);
    BENCH_COUNT(stats->value_bytes, bytes);
    return status;
}
