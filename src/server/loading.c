/* One poll over the wake-up, the signals, the listeners and the sockets. It uses no event loop of sys/loop: a
 * loop keeps its sockets for good, these go on to others. */
#include "server/loading.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/check.h"
#include "base/logger.h"
#include "server/commands.h"
#include "sys/clock.h"
#include "sys/net.h"

enum {
    LINE_US = 1000000,
    TEXT_BYTES = 128,
    OUTPUT_BYTES =
        LOADING_INPUT_BYTES, /* of one socket; when they are used up it sends before it parses on */
    POLL_WAKE = 0,
    POLL_SIGNAL,
    POLL_LISTEN,
    POLL_CLIENTS = POLL_LISTEN + 2,
};

_Static_assert((int)RESP_INLINE_BYTES_MAX <= (int)LOADING_INPUT_BYTES, "an inline command must fit");

struct client {
    int fd;
    bool closing; /* after its output has been sent */
    char *input;  /* LOADING_INPUT_BYTES; NULL while empty */
    size_t input_len;
    char *output; /* OUTPUT_BYTES; NULL while empty */
    size_t output_len, output_sent;
    struct resp_request request; /* progress in the unfinished one at input */
};

struct loading {
    struct loading_config config;
    int wake_fd, signal_fd;
    bool deaf; /* accepting has failed: the workers will try again */
    bool running;
    unsigned sockets_max, client_count;
    struct client clients[LOADING_SOCKETS_MAX];
    uint64_t line_due_us;
    char *inline_bytes;
    pthread_t thread;
    /* any thread; relaxed: only shown */
    _Atomic uint64_t done_bytes, total_bytes, keys;
};

/* ---- progress ---- */

static void progress_text(struct loading *loading, char text[TEXT_BYTES])
{
    uint64_t done = atomic_load_explicit(&loading->done_bytes, memory_order_relaxed);
    uint64_t total = atomic_load_explicit(&loading->total_bytes, memory_order_relaxed);
    uint64_t keys = atomic_load_explicit(&loading->keys, memory_order_relaxed);
    if (done > total)
        done = total; /* they are not read at one instant */
    unsigned percent = total ? (unsigned)((double)done * 100 / (double)total) : 0;
    snprintf(text, TEXT_BYTES, "%u%%, %" PRIu64 " of %" PRIu64 " MiB, %" PRIu64 " keys", percent, done >> 20,
             total >> 20, keys);
}

void loading_progress(struct loading *loading, uint64_t done_bytes, uint64_t total_bytes, uint64_t keys)
{
    atomic_store_explicit(&loading->done_bytes, done_bytes, memory_order_relaxed);
    atomic_store_explicit(&loading->total_bytes, total_bytes, memory_order_relaxed);
    atomic_store_explicit(&loading->keys, keys, memory_order_relaxed);
}

/* ---- one client ---- */

static void client_close(struct loading *loading, struct client *client)
{
    net_close(client->fd);
    free(client->input);
    free(client->output);
    resp_request_reset(&client->request);
    *client = loading->clients[--loading->client_count];
}

static void answer(struct client *client, const char *text)
{
    if (client->output == NULL) {
        client->output = malloc(OUTPUT_BYTES);
        CHECK(client->output);
    }
    int n = snprintf(client->output + client->output_len, OUTPUT_BYTES - client->output_len, "-%s\r\n", text);
    CHECK(n > 0 && (size_t)n < OUTPUT_BYTES - client->output_len);
    client->output_len += (size_t)n;
}

/* An inline line becomes a command, or nothing, or an error. */
static enum resp_result split(struct loading *loading, struct resp_request *request, const char **data,
                              size_t used, char error[RESP_ERROR_TEXT_BYTES])
{
    if (!resp_split_inline(request, *data, used - 1, loading->inline_bytes)) {
        snprintf(error, RESP_ERROR_TEXT_BYTES, "Protocol error: unbalanced quotes in request");
        return RESP_ERROR;
    }
    *data = loading->inline_bytes;
    return request->argc ? RESP_COMMAND : RESP_NOTHING;
}

/* What a web page made a browser send is no request, and what follows must not become one: see command_http.
 */
static bool speaks_http(const struct resp_request *request, const char *data)
{
    const struct resp_span *name = &request->spans[0];
    const struct command *command = command_find(slice_make(data + name->offset, name->len));
    return command && command->handler == command_http;
}

/* Answers one request of the input from *at on. False: there is no complete one, or no other shall follow. */
static bool answer_next(struct loading *loading, struct client *client, size_t *at, const char *text)
{
    char error[RESP_ERROR_TEXT_BYTES], line[RESP_ERROR_TEXT_BYTES + 8];
    const char *data = client->input + *at;
    size_t used = 0;
    enum resp_result result = resp_request_parse(&client->request, data, client->input_len - *at,
                                                 &loading->config.limits, &used, error);
    if (result == RESP_INLINE)
        result = split(loading, &client->request, &data, used, error);
    if (result == RESP_MORE)
        return false;
    if (result == RESP_ERROR || result == RESP_TOO_LONG) {
        snprintf(line, sizeof line, "ERR %s", error);
        answer(client, line);
        client->closing = true;
        return false;
    }
    if (result == RESP_COMMAND) {
        client->closing = speaks_http(&client->request, data);
        if (client->closing)
            return false;
        answer(client, text);
    }
    resp_request_reset(&client->request);
    *at += used;
    return true;
}

/* Answers what has come, as far as there is room for the answers. */
static void answer_input(struct loading *loading, struct client *client)
{
    char progress[TEXT_BYTES], text[TEXT_BYTES + 32];
    size_t at = 0;
    progress_text(loading, progress);
    snprintf(text, sizeof text, "LOADING kvasir is loading: %s", progress);
    while (at < client->input_len && OUTPUT_BYTES - client->output_len > 2 * sizeof text &&
           answer_next(loading, client, &at, text))
        ;
    if (client->closing)
        at = client->input_len;
    client->input_len -= at;
    if (client->input_len) {
        memmove(client->input, client->input + at, client->input_len);
        return;
    }
    free(client->input);
    client->input = NULL;
}

/* Answers and sends by turns until one of them cannot go on. Afterwards there is output to send, or no
 * complete request in the input. False: the client is gone. */
static bool serve(struct loading *loading, struct client *client)
{
    for (;;) {
        if (client->output_len == 0 && client->input_len && !client->closing)
            answer_input(loading, client);
        if (client->output_len == 0)
            return !client->closing;
        ssize_t n = send(client->fd, client->output + client->output_sent,
                         client->output_len - client->output_sent, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0)
            return errno == EAGAIN || errno == EINTR;
        client->output_sent += (size_t)n;
        if (client->output_sent < client->output_len)
            continue;
        free(client->output);
        client->output = NULL;
        client->output_len = client->output_sent = 0;
    }
}

/* False: the client is gone. */
static bool receive(struct loading *loading, struct client *client)
{
    if (client->input == NULL) {
        client->input = malloc(LOADING_INPUT_BYTES);
        CHECK(client->input);
    }
    ssize_t n = recv(client->fd, client->input + client->input_len, LOADING_INPUT_BYTES - client->input_len,
                     MSG_DONTWAIT);
    if (n < 0)
        return errno == EAGAIN || errno == EINTR;
    if (n == 0)
        return false; /* everything complete has been answered */
    client->input_len += (size_t)n;
    return serve(loading, client);
}

static bool client_event(struct loading *loading, struct client *client, short events)
{
    if (events & POLLIN)
        return receive(loading, client);
    if (events & (POLLERR | POLLHUP | POLLNVAL))
        return false;
    return events & POLLOUT ? serve(loading, client) : true;
}

static short client_interest(const struct client *client)
{
    if (client->output_len)
        return POLLOUT;
    return client->input_len < LOADING_INPUT_BYTES ? POLLIN : 0;
}

/* ---- the thread ---- */

static void take_client(struct loading *loading, int listen_fd)
{
    int fd = accept4(listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd >= 0) {
        net_tune(fd);
        loading->clients[loading->client_count++] = (struct client){.fd = fd};
    } else if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED) {
        LOG_WARNING("cannot accept a connection while loading: %s", strerror(errno));
        loading->deaf = true;
    }
}

static _Noreturn void leave(const struct loading *loading)
{
    struct signalfd_siginfo info = {0};
    ssize_t n = read(loading->signal_fd, &info, sizeof info);
    LOG_INFO("%s: stops while loading", n > 0 && info.ssi_signo == SIGINT ? "SIGINT" : "SIGTERM");
    if (loading->config.unix_path)
        unlink(loading->config.unix_path);
    _exit(0);
}

static int until_line_ms(struct loading *loading)
{
    uint64_t now_us = clock_monotonic_us();
    if (now_us >= loading->line_due_us) {
        char text[TEXT_BYTES];
        progress_text(loading, text);
        LOG_INFO("loading: %s", text);
        loading->line_due_us = now_us + LINE_US;
    }
    return (int)((loading->line_due_us - now_us) / 1000) + 1;
}

static void *loading_run(void *context)
{
    struct loading *loading = context;
    struct pollfd polled[POLL_CLIENTS + LOADING_SOCKETS_MAX];
    for (;;) {
        unsigned n = loading->client_count;
        bool room = n < loading->sockets_max && !loading->deaf;
        polled[POLL_WAKE] = (struct pollfd){.fd = loading->wake_fd, .events = POLLIN};
        polled[POLL_SIGNAL] = (struct pollfd){.fd = loading->signal_fd, .events = POLLIN};
        for (unsigned i = 0; i < 2; i++)
            polled[POLL_LISTEN + i] =
                (struct pollfd){.fd = room ? loading->config.listen_fds[i] : -1, .events = POLLIN};
        for (unsigned i = 0; i < n; i++)
            polled[POLL_CLIENTS + i] = (struct pollfd){.fd = loading->clients[i].fd,
                                                       .events = client_interest(&loading->clients[i])};
        if (poll(polled, POLL_CLIENTS + n, until_line_ms(loading)) <= 0)
            continue;
        if (polled[POLL_SIGNAL].revents)
            leave(loading);
        if (polled[POLL_WAKE].revents)
            return NULL;
        for (unsigned i = n; i-- > 0;) /* from the end: closing moves the last one into the gap */
            if (!client_event(loading, &loading->clients[i], polled[POLL_CLIENTS + i].revents))
                client_close(loading, &loading->clients[i]);
        for (unsigned i = 0; i < 2; i++)
            if (polled[POLL_LISTEN + i].revents && loading->client_count < loading->sockets_max)
                take_client(loading, loading->config.listen_fds[i]);
    }
}

static status_t start_thread(struct loading *loading)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    loading->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    loading->signal_fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    if (loading->wake_fd < 0 || loading->signal_fd < 0)
        return status_errno(errno, "cannot make descriptors for the time of loading");
    int error = pthread_create(&loading->thread, NULL, loading_run, loading);
    if (error)
        return status_errno(error, "cannot start the thread that answers while loading");
    pthread_setname_np(loading->thread, "loading");
    loading->running = true;
    return status_ok();
}

status_t loading_start(const struct loading_config *config, struct loading **out)
{
    struct loading *loading = calloc(1, sizeof *loading);
    CHECK(loading);
    loading->config = *config;
    loading->sockets_max = config->sockets_max < LOADING_SOCKETS_MAX ? (unsigned)config->sockets_max
                                                                     : (unsigned)LOADING_SOCKETS_MAX;
    loading->inline_bytes = malloc(LOADING_INPUT_BYTES);
    CHECK(loading->inline_bytes);
    loading->line_due_us = clock_monotonic_us() + LINE_US;
    status_t s = start_thread(loading);
    if (status_is_ok(&s))
        *out = loading;
    else
        loading_destroy(loading);
    return s;
}

void loading_stop(struct loading *loading)
{
    uint64_t one = 1;
    if (!loading->running)
        return;
    CHECK(write(loading->wake_fd, &one, sizeof one) == sizeof one);
    pthread_join(loading->thread, NULL);
    loading->running = false;
}

bool loading_next(struct loading *loading, struct loading_socket *out)
{
    while (loading->client_count) {
        struct client *client = &loading->clients[loading->client_count - 1];
        if (client->output_len || client->closing) {
            client_close(loading, client);
            continue;
        }
        *out = (struct loading_socket){client->fd, client->input, client->input_len};
        resp_request_reset(&client->request);
        loading->client_count--;
        return true;
    }
    return false;
}

void loading_destroy(struct loading *loading)
{
    if (loading == NULL)
        return;
    loading_stop(loading);
    while (loading->client_count)
        client_close(loading, &loading->clients[loading->client_count - 1]);
    if (loading->wake_fd >= 0)
        close(loading->wake_fd);
    if (loading->signal_fd >= 0)
        close(loading->signal_fd);
    free(loading->inline_bytes);
    free(loading);
}
