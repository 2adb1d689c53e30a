/* kvasir load: a file of pairs goes to the server as pipelined SETs over one connection.
 *
 * One loop polls three things: the input while the window has room, the socket for replies always, and the
 * socket for writing while something waits. So neither side can block the other, whatever the buffers between
 * them hold. A key counts as stored, and goes to the --acked file, when its reply has come. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/check.h"
#include "sys/clock.h"
#include "tools/client.h"
#include "tools/load_formats.h"
#include "tools/load_generate.h"
#include "tools/options.h"
#include "tools/progress.h"
#include "tools/tools.h"

enum {
    WINDOW = 8192,           /* requests in flight; one input piece more may come on top */
    OUT_BYTES_MAX = 4 << 20, /* waiting to be sent; same */
    IN_BYTES = 1 << 16,
    REPORTS_MAX = 10,   /* problems and error replies that are printed */
    ERRORS_MAX = 10000, /* then loading ends */
};

/* A queue of bytes: head..len is in it. */
struct queue {
    char *data;
    size_t head, len, capacity;
};

struct loader {
    const char *name; /* of the input */
    int input, fd;
    bool ended; /* no more input */
    struct load_parser *parser;
    struct queue out;     /* requests */
    struct queue keys;    /* of the requests in flight: uint32_t length, bytes */
    struct queue replies; /* received, not looked at */
    uint64_t in_flight;
    FILE *acked;
    uint64_t stored, stored_bytes, problems, errors;
    uint64_t input_bytes, input_bytes_total; /* total 0: not known */
    uint64_t started_us, reported_us, reported_stored;
    bool terminal, bar_shown;
};

static void queue_reserve(struct queue *q, size_t n)
{
    if (q->head == q->len)
        q->head = q->len = 0;
    if (q->len + n <= q->capacity)
        return;
    if (q->head > q->len / 2) { /* moving less than was taken: linear in all */
        memmove(q->data, q->data + q->head, q->len - q->head);
        q->len -= q->head;
        q->head = 0;
    }
    if (q->len + n > q->capacity) {
        q->capacity = 2 * q->capacity + n;
        q->data = realloc(q->data, q->capacity);
        CHECK(q->data != NULL);
    }
}

static void queue_add(struct queue *q, const void *data, size_t n)
{
    queue_reserve(q, n);
    if (n)
        memcpy(q->data + q->len, data, n);
    q->len += n;
}

static void clear_bar(struct loader *l)
{
    if (l->bar_shown)
        fputs("\r\033[K", stderr);
    l->bar_shown = false;
}

/* load_sink.pair */
static void on_pair(void *context, struct slice key, struct slice value)
{
    struct loader *l = context;
    char head[64], middle[32];
    uint32_t key_len = (uint32_t)key.len;
    int n = snprintf(head, sizeof head, "*3\r\n$3\r\nSET\r\n$%zu\r\n", key.len);
    int m = snprintf(middle, sizeof middle, "\r\n$%zu\r\n", value.len);
    queue_add(&l->out, head, (size_t)n);
    queue_add(&l->out, key.data, key.len);
    queue_add(&l->out, middle, (size_t)m);
    queue_add(&l->out, value.data, value.len);
    queue_add(&l->out, "\r\n", 2);
    uint64_t bytes = key.len + value.len;
    queue_add(&l->keys, &key_len, sizeof key_len);
    queue_add(&l->keys, &bytes, sizeof bytes);
    queue_add(&l->keys, key.data, key.len);
    l->in_flight++;
}

/* load_sink.problem */
static void on_problem(void *context, uint64_t line, const char *text)
{
    struct loader *l = context;
    clear_bar(l);
    if (l->problems++ < REPORTS_MAX)
        fprintf(stderr, "kvasir load: %s line %" PRIu64 ": %s\n", l->name, line, text);
}

/* The reply to the oldest request in flight. */
static void take_reply(struct loader *l, const struct reply_item *reply)
{
    uint32_t key_len;
    uint64_t bytes;
    const char *entry = l->keys.data + l->keys.head;
    memcpy(&key_len, entry, sizeof key_len);
    memcpy(&bytes, entry + sizeof key_len, sizeof bytes);
    const char *key = entry + sizeof key_len + sizeof bytes;
    l->keys.head += sizeof key_len + sizeof bytes + key_len;
    l->in_flight--;
    if (reply->type == '-') {
        clear_bar(l);
        if (l->errors++ < REPORTS_MAX)
            fprintf(stderr, "kvasir load: %.*s: %.*s\n", (int)(key_len < 100 ? key_len : 100), key,
                    (int)reply->text.len, reply->text.data);
        return;
    }
    l->stored++;
    l->stored_bytes += bytes;
    if (l->acked) {
        fwrite(key, 1, key_len, l->acked);
        putc('\n', l->acked);
    }
}

static status_t receive(struct loader *l)
{
    struct reply_item item;
    queue_reserve(&l->replies, IN_BYTES);
    ssize_t n = recv(l->fd, l->replies.data + l->replies.len, IN_BYTES, MSG_DONTWAIT);
    if (n == 0)
        return status_error(STATUS_IO, "the server closed the connection");
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return status_ok();
    if (n < 0)
        return status_errno(errno, "connection lost");
    l->replies.len += (size_t)n;
    for (;;) {
        int64_t used =
            reply_item_read(l->replies.data + l->replies.head, l->replies.len - l->replies.head, &item);
        if (used == 0)
            break;
        if (used < 0 || (item.type != '+' && item.type != '-'))
            return status_error(STATUS_CORRUPT, "the server's answer is not in the Redis protocol");
        if (l->in_flight == 0)
            return status_error(STATUS_IO, "the server says: %.*s",
                                (int)(item.text.len < 180 ? item.text.len : 180), item.text.data);
        take_reply(l, &item);
        l->replies.head += (size_t)used;
    }
    if (l->acked && fflush(l->acked) != 0)
        return status_errno(errno, "cannot write the --acked file");
    if (l->errors > ERRORS_MAX)
        return status_error(STATUS_INVALID, "too many errors");
    return status_ok();
}

static status_t send_some(struct loader *l)
{
    ssize_t n = send(l->fd, l->out.data + l->out.head, l->out.len - l->out.head, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return status_ok();
    if (n < 0 && (errno == EPIPE || errno == ECONNRESET))
        return receive(l); /* what the server said before it went; tells of the end itself */
    if (n < 0)
        return status_errno(errno, "connection lost");
    l->out.head += (size_t)n;
    return status_ok();
}

static status_t read_input(struct loader *l)
{
    static char piece[IN_BYTES];
    ssize_t n = read(l->input, piece, sizeof piece);
    if (n < 0 && (errno == EINTR || errno == EAGAIN))
        return status_ok();
    if (n < 0)
        return status_errno(errno, "cannot read %s", l->name);
    if (n == 0) {
        l->ended = true;
        load_parser_finish(l->parser);
        return status_ok();
    }
    l->input_bytes += (uint64_t)n;
    return status_wrap(load_parser_feed(l->parser, piece, (size_t)n), "%s", l->name);
}

/* A bar when the size is known, else counts; redrawn on a terminal, one line a second elsewhere. */
static void report(struct loader *l)
{
    uint64_t now_us = clock_monotonic_us(), every_us = l->terminal ? 200000 : 1000000;
    if (now_us - l->reported_us < every_us)
        return;
    double seconds = (double)(now_us - l->started_us) / 1e6;
    double keys_per_s = (double)(l->stored - l->reported_stored) * 1e6 / (double)(now_us - l->reported_us);
    l->reported_us = now_us;
    l->reported_stored = l->stored;
    if (l->terminal)
        fputs("\r\033[K", stderr);
    if (l->input_bytes_total)
        progress_bar(stderr, (double)l->input_bytes / (double)l->input_bytes_total, l->stored, keys_per_s,
                     (double)l->input_bytes / 1e6 / seconds, seconds);
    else
        fprintf(stderr, "%" PRIu64 " keys  %.0f keys/s  %.1f MB read", l->stored, keys_per_s,
                (double)l->input_bytes / 1e6);
    if (!l->terminal)
        fputc('\n', stderr);
    l->bar_shown = l->terminal;
    fflush(stderr);
}

static status_t run(struct loader *l)
{
    while (!l->ended || l->in_flight) {
        size_t waiting = l->out.len - l->out.head;
        bool want_input = !l->ended && l->in_flight < WINDOW && waiting < OUT_BYTES_MAX;
        struct pollfd polled[2] = {
            {.fd = l->fd, .events = (short)(waiting ? POLLIN | POLLOUT : POLLIN)},
            {.fd = want_input ? l->input : -1, .events = POLLIN},
        };
        if (poll(polled, 2, 200) < 0 && errno != EINTR)
            return status_errno(errno, "poll");
        if (polled[0].revents & (POLLIN | POLLERR | POLLHUP))
            TRY(receive(l));
        if (polled[1].revents)
            TRY(read_input(l));
        if (l->out.len > l->out.head)
            TRY(send_some(l));
        report(l);
    }
    return status_ok();
}

/* Reads until the format can be seen: a line's end, or enough of it. The bytes go to the parser afterwards.
 */
static status_t begin_input(struct loader *l, int format, struct slice prefix, struct slice sep)
{
    static char first[IN_BYTES];
    size_t len = 0;
    enum load_format found = (enum load_format)format;
    while (format < 0 && len < sizeof first) {
        ssize_t n = read(l->input, first + len, sizeof first - len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return status_errno(errno, "cannot read %s", l->name);
        len += (size_t)n;
        bool whole_lines = len && memchr(first, '\n', len);
        found = n > 0 && !whole_lines ? LOAD_UNKNOWN : load_format_guess(slice_make(first, len));
        if (n == 0 || found != LOAD_UNKNOWN)
            break;
    }
    if (format < 0 && found == LOAD_UNKNOWN && len)
        return status_error(STATUS_INVALID,
                            "%s: cannot tell its format; name it with --format deb822|tsv|ndjson", l->name);
    struct load_sink sink = {on_pair, on_problem, l};
    TRY(load_parser_create(found, prefix, sep, sink, &l->parser));
    l->input_bytes = len;
    return status_wrap(load_parser_feed(l->parser, first, len), "%s", l->name);
}

static status_t open_files(struct loader *l, const char *path, const char *acked)
{
    struct stat info;
    if (path && strcmp(path, "-") != 0) {
        l->name = path;
        l->input = open(path, O_RDONLY | O_CLOEXEC);
        if (l->input < 0)
            return status_errno(errno, "cannot open %s", path);
    }
    if (fstat(l->input, &info) == 0 && S_ISREG(info.st_mode) && info.st_size > 0)
        l->input_bytes_total = (uint64_t)info.st_size;
    if (acked && (l->acked = fopen(acked, "ae")) == NULL)
        return status_errno(errno, "--acked: cannot open %s", acked);
    return status_ok();
}

static int finish(struct loader *l, const status_t *s)
{
    double seconds = (double)(clock_monotonic_us() - l->started_us) / 1e6;
    clear_bar(l);
    if (l->problems > REPORTS_MAX)
        fprintf(stderr, "kvasir load: %" PRIu64 " problems in all\n", l->problems);
    if (l->errors > REPORTS_MAX)
        fprintf(stderr, "kvasir load: %" PRIu64 " errors in all\n", l->errors);
    if (!status_is_ok(s))
        fprintf(stderr, "kvasir load: %s\n", s->text);
    int code = !status_is_ok(s) || l->errors   ? TOOL_ERROR
               : l->problems && l->stored == 0 ? TOOL_NOTHING
                                               : TOOL_OK;
    printf("stored %" PRIu64 " keys, %" PRIu64 " bytes in %.2f s\n", l->stored, l->stored_bytes, seconds);
    if (fflush(stdout) != 0)
        code = TOOL_ERROR;
    if (l->acked && fclose(l->acked) != 0) {
        fprintf(stderr, "kvasir load: cannot write the --acked file: %s\n", strerror(errno));
        code = TOOL_ERROR;
    }
    load_parser_destroy(l->parser);
    free(l->out.data);
    free(l->keys.data);
    free(l->replies.data);
    if (l->fd >= 0)
        close(l->fd);
    if (l->input > STDERR_FILENO)
        close(l->input);
    return code;
}

static const char about[] =
    "Stores many keys quickly, from FILE or stdin. Formats (seen from the content when not named):\n"
    "  deb822  Debian control files: field F of package P at PREFIX/P/F\n"
    "  tsv     key TAB value\n"
    "  ndjson  a JSON object a line: {\"key\":K,\"value\":V}, or members flattened to paths\n"
    "Or makes them: --generate N random records over many connections; `kvasir bench --workload cold` with "
    "the "
    "same\n"
    "--keys N, --seed, --min-size, --max-size and --key reads and checks them.\n"
    "What cannot be used is reported with its line and skipped. Exit code 1 when nothing could be used,\n"
    "2 when the server refused a key.";

int tool_load(int argc, char **argv)
{
    const char *connect = TOOL_CONNECT_DEFAULT, *prefix = NULL, *sep = NULL, *acked = NULL;
    struct load_generate generate = {.records = BENCH_RECORD_UNSET};
    int format = -1, count;
    struct loader l = {.name = "stdin", .input = STDIN_FILENO, .fd = -1};
    const struct option_spec specs[] = {
        TOOL_CONNECT_OPTIONS(&connect),
        {"format", OPTION_CHOICE, &format, "deb822|tsv|ndjson", "of the input (seen from its content)", 0, 0},
        {"prefix", OPTION_TEXT, &prefix, "P", "path that all keys begin with (none)", 0, 0},
        {"sep", OPTION_TEXT, &sep, "S", "what joins the parts of a key (/)", 0, 0},
        {"acked", OPTION_TEXT, &acked, "FILE", "append every acknowledged key to FILE, one a line", 0, 0},
        {"generate", OPTION_U64, &generate.count, "N", "make N records instead of reading any", 1,
         100000000000},
        {"min-size", OPTION_SIZE, &generate.records.min_bytes, "B", "of a made value, in bytes (1024)", 0, 0},
        {"max-size", OPTION_SIZE, &generate.records.max_bytes, "B",
         "(4096; one of the two alone: all of that size)", 0, 0},
        {"key", OPTION_CHOICE, &generate.records.key, "uuid|counter",
         "16 random bytes, or key:%012d in order (uuid)", 0, 0},
        {"seed", OPTION_U64, &generate.records.seed, "N", "other numbers make other records (1)", 0,
         UINT64_MAX - 1},
        {"clients", OPTION_U64, &generate.clients, "N", "connections of --generate (16)", 1, 100000},
        {"pipeline", OPTION_U64, &generate.pipeline, "N", "requests in flight on each of them (64)", 1,
         100000},
        {0},
    };
    int rc = options_begin("load", "load [OPTIONS] [FILE]", about, specs, argc, argv, 0, 1, &count);
    if (rc >= 0)
        return rc;
    const struct load_file_options file = {format >= 0, prefix, sep, acked, count ? argv[1] : NULL};
    status_t s = load_generate_check(&generate, &file);
    if (!status_is_ok(&s)) {
        fprintf(stderr, "kvasir load: %s\n", s.text);
        return TOOL_ERROR;
    }
    if (generate.count)
        return load_generate(connect, &generate);
    prefix = prefix ? prefix : "";
    sep = sep ? sep : "/";
    signal(SIGPIPE, SIG_IGN);
    l.terminal = isatty(STDERR_FILENO);
    l.started_us = l.reported_us = clock_monotonic_us();
    s = open_files(&l, count ? argv[1] : NULL, acked);
    if (status_is_ok(&s))
        s = client_connect(connect, &l.fd);
    if (status_is_ok(&s))
        s = begin_input(&l, format, slice_make(prefix, strlen(prefix)), slice_make(sep, strlen(sep)));
    if (status_is_ok(&s))
        s = run(&l);
    return finish(&l, &s);
}
