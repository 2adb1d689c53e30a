#include "proto/resp.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/check.h"
#include "base/parse.h"

enum { CRLF = '\r' | '\n' << 8 };

/* ---- complete commands ---- */

enum { FAST_DIGITS_MAX = 6 };

/* A number of up to FAST_DIGITS_MAX digits and CRLF at p. Returns what is behind; NULL with *result set. */
static const char *read_number(const char *p, const char *end, uint32_t *value, enum resp_result *result)
{
    uint32_t v = 0;
    const char *first = p;
    for (; p < end; p++) {
        unsigned digit = (unsigned char)*p - (unsigned)'0';
        if (digit > 9)
            break;
        if (p - first == FAST_DIGITS_MAX) {
            *result = RESP_UNUSUAL;
            return NULL;
        }
        v = v * 10 + digit;
    }
    if (p == first ? p < end : *first == '0' && p - first > 1) {
        *result = RESP_UNUSUAL;
        return NULL;
    }
    if (end - p < 2) {
        *result = p < end && *p != '\r' ? RESP_UNUSUAL : RESP_MORE;
        return NULL;
    }
    if (load_u16(p) != CRLF) {
        *result = RESP_UNUSUAL;
        return NULL;
    }
    *value = v;
    return p + 2;
}

/* A header too short to be looked at quickly: more is waited for only if it may still become a good one, so
 * that a client whose last bytes are bad is told at once. */
static enum resp_result more_digits(const char *p, const char *end)
{
    return end - p > 1 && (unsigned char)p[1] - (unsigned)'0' > 9 ? RESP_UNUSUAL : RESP_MORE;
}

/* The header of one argument: '$', length, CRLF. At least 5 bytes are there. Lengths of one and two digits,
 * nearly all of them, are read without a loop. */
static inline const char *read_bulk_header(const char *p, const char *end, uint32_t *len,
                                           enum resp_result *result)
{
    unsigned first = (unsigned char)p[1] - (unsigned)'0';
    if (LIKELY(p[0] == '$' && first <= 9)) {
        if (load_u16(p + 2) == CRLF) {
            *len = first;
            return p + 4;
        }
        unsigned second = (unsigned char)p[2] - (unsigned)'0';
        if (LIKELY(second <= 9 && first > 0 && load_u16(p + 3) == CRLF)) {
            *len = first * 10 + second;
            return p + 5;
        }
    }
    if (p[0] != '$') {
        *result = RESP_UNUSUAL;
        return NULL;
    }
    return read_number(p + 1, end, len, result);
}

enum resp_result resp_parse_complete(const char *data, const char *end, const struct resp_limits *limits,
                                     struct slice *argv, unsigned argv_max, unsigned *argc, const char **next)
{
    enum resp_result result;
    const char *p = data;
    uint32_t n;
    if (UNLIKELY(end - p < 4))
        return p < end && *p == '*' ? more_digits(p, end) : RESP_UNUSUAL;
    if (UNLIKELY(*p != '*'))
        return RESP_UNUSUAL;
    if (LIKELY(load_u16(p + 2) == CRLF)) {
        n = (unsigned char)p[1] - (unsigned)'0';
        p += 4;
    } else {
        p = read_number(p + 1, end, &n, &result);
        if (p == NULL)
            return result;
    }
    if (UNLIKELY(n - 1 >= argv_max)) /* none, too many, or not a digit */
        return RESP_UNUSUAL;
    if (UNLIKELY(n > 9 && data[3] == '\n')) /* ':' ... as the one digit */
        return RESP_UNUSUAL;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t len;
        if (UNLIKELY(end - p < 5))
            return p < end && *p != '$' ? RESP_UNUSUAL : more_digits(p, end);
        p = read_bulk_header(p, end, &len, &result);
        if (UNLIKELY(p == NULL))
            return result;
        if (UNLIKELY(len > limits->bulk_bytes_max))
            return RESP_UNUSUAL;
        if (UNLIKELY((size_t)(end - p) < (size_t)len + 2))
            return RESP_MORE;
        argv[i] = slice_make(p, len);
        p += len;
        if (UNLIKELY(load_u16(p) != CRLF))
            return RESP_UNUSUAL;
        p += 2;
    }
    if (UNLIKELY((size_t)(p - data) > limits->request_bytes_max))
        return RESP_UNUSUAL;
    *argc = n;
    *next = p;
    return RESP_COMMAND;
}

/* ---- commands in pieces ---- */

void resp_request_reset(struct resp_request *request)
{
    free(request->spans);
    memset(request, 0, sizeof *request);
}

uint64_t resp_request_announced(const struct resp_request *request)
{
    if (request->skipping)
        return 0; /* what is to come need not be kept */
    return request->position + (request->in_bulk ? request->bulk_bytes + 2 : 0);
}

static void add_span(struct resp_request *request, size_t offset, size_t len)
{
    if (request->argc == request->capacity) {
        request->capacity = request->capacity ? request->capacity * 2 : 8;
        request->spans = realloc(request->spans, request->capacity * sizeof *request->spans);
        CHECK(request->spans);
    }
    request->spans[request->argc++] = (struct resp_span){offset, len};
}

static enum resp_result fail(char error[RESP_ERROR_TEXT_BYTES], const char *text)
{
    snprintf(error, RESP_ERROR_TEXT_BYTES, "Protocol error: %s", text);
    return RESP_ERROR;
}

/* Finds the line at position that ends with `end_byte` and one more byte if it is '\r'. RESP_NOTHING: found,
 * *len its length without the ending. */
static enum resp_result find_line(struct resp_request *request, const char *data, size_t len, char end_byte,
                                  size_t *line_len)
{
    const char *line = data + request->position;
    size_t available = len - request->position;
    const char *found = available > request->scanned
                            ? memchr(line + request->scanned, end_byte, available - request->scanned)
                            : NULL;
    size_t n = found ? (size_t)(found - line) : available;
    if (n > RESP_INLINE_BYTES_MAX)
        return RESP_ERROR;
    request->scanned = n;
    if (found == NULL || (end_byte == '\r' && n + 1 >= available))
        return RESP_MORE;
    *line_len = n;
    return RESP_NOTHING;
}

/* The line "<type><number>\r\n" at position, which stays there until the number is good. */
static enum resp_result read_header(struct resp_request *request, const char *data, size_t len,
                                    int64_t *value)
{
    size_t n;
    enum resp_result result = find_line(request, data, len, '\r', &n);
    if (result != RESP_NOTHING)
        return result;
    if (!parse_i64(slice_make(data + request->position + 1, n - 1), value))
        *value = INT64_MIN;
    request->position += n + 2;
    request->scanned = 0;
    return RESP_NOTHING;
}

/* The line before an argument. RESP_NOTHING: read, the argument is awaited. */
static enum resp_result read_argument_header(struct resp_request *request, const char *data, size_t len,
                                             const struct resp_limits *limits,
                                             char error[RESP_ERROR_TEXT_BYTES])
{
    int64_t n;
    if (request->position >= len)
        return RESP_MORE;
    if (data[request->position] != '$') {
        char text[32];
        snprintf(text, sizeof text, "expected '$', got '%c'", data[request->position]);
        return fail(error, text);
    }
    enum resp_result result = read_header(request, data, len, &n);
    if (result == RESP_ERROR)
        return fail(error, "too big bulk count string");
    if (result != RESP_NOTHING)
        return result;
    uint64_t bytes = (uint64_t)n;
    if (n < 0 || (bytes > limits->bulk_bytes_max && bytes > RESP_BULK_BYTES_PASSED_MAX))
        return fail(error, "invalid bulk length");
    request->bulk_bytes = bytes;
    request->in_bulk = 1;
    if (request->skipping)
        return RESP_NOTHING;
    if (bytes > limits->bulk_bytes_max) {
        snprintf(error, RESP_ERROR_TEXT_BYTES, "an argument longer than --max-value, %" PRIu64 " bytes",
                 limits->bulk_bytes_max);
        return RESP_TOO_LONG;
    }
    if (request->position + bytes + 2 > limits->request_bytes_max) {
        snprintf(error, RESP_ERROR_TEXT_BYTES, "a request longer than %" PRIu64 " bytes: send less at once",
                 limits->request_bytes_max);
        return RESP_TOO_LONG;
    }
    return RESP_NOTHING;
}

/* One argument: RESP_NOTHING when it is complete. */
static enum resp_result read_argument(struct resp_request *request, const char *data, size_t len,
                                      const struct resp_limits *limits, char error[RESP_ERROR_TEXT_BYTES])
{
    if (!request->in_bulk) {
        enum resp_result result = read_argument_header(request, data, len, limits, error);
        if (result != RESP_NOTHING)
            return result;
    }
    if (len - request->position < request->bulk_bytes + 2)
        return RESP_MORE;
    add_span(request, request->position, request->bulk_bytes);
    request->position += request->bulk_bytes + 2; /* as Redis: the two bytes are not looked at */
    request->in_bulk = 0;
    return RESP_NOTHING;
}

enum resp_result resp_request_parse(struct resp_request *request, const char *data, size_t len,
                                    const struct resp_limits *limits, size_t *used,
                                    char error[RESP_ERROR_TEXT_BYTES])
{
    if (len == 0)
        return RESP_MORE;
    if (data[0] != '*') {
        size_t n;
        enum resp_result result = find_line(request, data, len, '\n', &n);
        if (result == RESP_ERROR)
            return fail(error, "too big inline request");
        if (result == RESP_NOTHING) {
            *used = n + 1;
            return RESP_INLINE;
        }
        return result;
    }
    if (request->argc_wanted == 0) {
        int64_t n;
        enum resp_result result = read_header(request, data, len, &n);
        if (result == RESP_ERROR)
            return fail(error, "too big mbulk count string");
        if (result != RESP_NOTHING)
            return result;
        if (n == INT64_MIN || n > RESP_ARGUMENTS_MAX)
            return fail(error, "invalid multibulk length");
        *used = request->position;
        if (n <= 0)
            return RESP_NOTHING;
        request->argc_wanted = (uint32_t)n;
    }
    while (request->argc < request->argc_wanted) {
        enum resp_result result = read_argument(request, data, len, limits, error);
        if (result != RESP_NOTHING)
            return result;
    }
    *used = request->position;
    return RESP_COMMAND;
}

/* ---- passing over ---- */

void resp_request_skip_begin(struct resp_request *request)
{
    free(request->spans);
    request->spans = NULL;
    request->capacity = 0;
    request->skipping = 1;
    request->position = 0;
    if (request->in_bulk)
        request->bulk_bytes += 2;
}

/* As much of the awaited argument as there is. False: more of it is to come. */
static bool skip_bulk(struct resp_request *request, size_t len)
{
    uint64_t there = len - request->position;
    uint64_t n = there < request->bulk_bytes ? there : request->bulk_bytes;
    request->position += n;
    request->bulk_bytes -= n;
    return request->bulk_bytes == 0;
}

enum resp_result resp_request_skip(struct resp_request *request, const char *data, size_t len,
                                   const struct resp_limits *limits, size_t *used,
                                   char error[RESP_ERROR_TEXT_BYTES])
{
    enum resp_result result = RESP_NOTHING;
    request->position = 0;
    while (request->argc < request->argc_wanted && result == RESP_NOTHING) {
        if (!request->in_bulk) {
            result = read_argument_header(request, data, len, limits, error);
            if (result == RESP_NOTHING)
                request->bulk_bytes += 2;
        } else if (skip_bulk(request, len)) {
            request->in_bulk = 0;
            request->argc++;
        } else {
            result = RESP_MORE;
        }
    }
    *used = request->position;
    request->position = 0;
    return result;
}

/* ---- inline ---- */

static bool is_blank(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 32;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* The escape behind a backslash at p (p < end). Writes one byte, returns what is behind the escape. */
static const char *unescape(const char *p, const char *end, char *out)
{
    static const char from[] = "nrtba", to[] = "\n\r\t\b\a";
    if (*p == 'x' && end - p >= 3 && hex_digit(p[1]) >= 0 && hex_digit(p[2]) >= 0) {
        *out = (char)(hex_digit(p[1]) << 4 | hex_digit(p[2]));
        return p + 3;
    }
    const char *known = *p ? strchr(from, *p) : NULL;
    *out = known ? to[known - from] : *p;
    return p + 1;
}

/* The quoted text behind the quote at p[-1]. Returns what is behind the closing quote, NULL when it is
 * missing or not at the end of a word. */
static const char *split_quoted(const char *p, const char *end, char quote, char **out)
{
    for (; p < end; p++) {
        if (*p == quote)
            return p + 1 == end || is_blank(p[1]) ? p + 1 : NULL;
        if (*p == '\\' && p + 1 < end) {
            if (quote == '"') {
                p = unescape(p + 1, end, (*out)++) - 1;
                continue;
            }
            if (p[1] == '\'')
                p++;
        }
        *(*out)++ = *p;
    }
    return NULL;
}

bool resp_split_inline(struct resp_request *request, const char *line, size_t len, char *out)
{
    const char *p = line, *end = line + len;
    char *o = out;
    request->argc = 0;
    for (;;) {
        while (p < end && is_blank(*p))
            p++;
        if (p == end)
            return true;
        char *start = o;
        while (p < end && !is_blank(*p)) {
            if (*p == '"' || *p == '\'') {
                p = split_quoted(p + 1, end, *p, &o);
                if (p == NULL)
                    return false;
            } else {
                *o++ = *p++;
            }
        }
        add_span(request, (size_t)(start - out), (size_t)(o - start));
    }
}
