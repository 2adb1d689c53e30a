#include "tools/client.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/parse.h"

enum {
    SEND_AT_BYTES = 1 << 16,
    IN_BYTES_FIRST = 1 << 16,
};

struct client {
    int fd;
    char *out;
    size_t out_len, out_capacity;
    char *in;
    size_t in_head, in_tail, in_capacity;
};

static status_t connect_error(int error, const char *address)
{
    if (error == ECONNREFUSED || error == ENOENT)
        return status_error(
            STATUS_IO,
            "no server at %s: start one with `kvasir server`, or name another with --connect or --port",
            address);
    return status_errno(error, "cannot connect to %s", address);
}

static status_t connect_unix(const char *path, int *out)
{
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof to.sun_path)
        return status_error(STATUS_INVALID, "--connect: path %.120s is too long for a Unix socket", path);
    memcpy(to.sun_path, path, strlen(path) + 1);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return status_errno(errno, "socket");
    if (connect(fd, (const struct sockaddr *)&to, sizeof to) != 0) {
        int error = errno;
        close(fd);
        return connect_error(error, path);
    }
    *out = fd;
    return status_ok();
}

static bool is_port(const char *text)
{
    uint64_t port;
    return parse_u64(slice_make(text, strlen(text)), &port) && port >= 1 && port <= UINT16_MAX;
}

/* Splits HOST:PORT; brackets around an IPv6 address are taken off. */
static bool split_address(const char *address, char host[256], const char **port)
{
    const char *colon = strrchr(address, ':');
    if (colon == NULL || !is_port(colon + 1))
        return false;
    size_t len = (size_t)(colon - address);
    if (len >= 2 && address[0] == '[' && colon[-1] == ']') {
        address++;
        len -= 2;
    }
    if (len >= 256)
        return false;
    memcpy(host, address, len);
    host[len] = '\0';
    if (len == 0)
        memcpy(host, "127.0.0.1", sizeof "127.0.0.1");
    *port = colon + 1;
    return true;
}

status_t client_connect(const char *address, int *out)
{
    char host[256];
    const char *port;
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found;
    char local[32];
    if (strchr(address, '/'))
        return connect_unix(address, out);
    if (is_port(address)) {
        snprintf(local, sizeof local, "127.0.0.1:%s", address);
        address = local;
    }
    if (!split_address(address, host, &port))
        return status_error(
            STATUS_INVALID,
            "--connect: '%.100s' is not HOST:PORT, a port (1 to 65535) or the path of a Unix socket",
            address);
    int rc = getaddrinfo(host, port, &hints, &found);
    if (rc != 0)
        return status_error(STATUS_INVALID, "--connect: cannot find %.100s: %s", address, gai_strerror(rc));
    int fd = -1, error = ECONNREFUSED, one = 1;
    for (const struct addrinfo *a = found; a && fd < 0; a = a->ai_next) {
        fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd >= 0 && connect(fd, a->ai_addr, a->ai_addrlen) != 0) {
            error = errno;
            close(fd);
            fd = -1;
        } else if (fd < 0) {
            error = errno;
        }
    }
    freeaddrinfo(found);
    if (fd < 0)
        return connect_error(error, address);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    *out = fd;
    return status_ok();
}

status_t client_open(const char *address, struct client **out)
{
    int fd = -1;
    TRY(client_connect(address, &fd));
    struct client *c = calloc(1, sizeof *c);
    char *in = malloc(IN_BYTES_FIRST);
    if (c == NULL || in == NULL) {
        free(c);
        free(in);
        close(fd);
        return status_error(STATUS_NO_MEMORY, "out of memory");
    }
    c->fd = fd;
    c->in = in;
    c->in_capacity = IN_BYTES_FIRST;
    *out = c;
    return status_ok();
}

void client_close(struct client *c)
{
    if (c == NULL)
        return;
    close(c->fd);
    free(c->out);
    free(c->in);
    free(c);
}

static status_t send_all(struct client *c)
{
    for (size_t sent = 0; sent < c->out_len;) {
        ssize_t n = send(c->fd, c->out + sent, c->out_len - sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return status_errno(errno, "connection lost");
        sent += (size_t)n;
    }
    c->out_len = 0;
    return status_ok();
}

status_t client_send(struct client *c, int argc, const struct slice *argv)
{
    size_t need = 32;
    for (int i = 0; i < argc; i++)
        need += argv[i].len + 32;
    if (c->out_len + need > c->out_capacity) {
        size_t capacity = 2 * c->out_capacity + need;
        char *out = realloc(c->out, capacity);
        if (out == NULL)
            return status_error(STATUS_NO_MEMORY, "out of memory for a request of %zu bytes", need);
        c->out = out;
        c->out_capacity = capacity;
    }
    char *p = c->out + c->out_len;
    p += snprintf(p, 32, "*%d\r\n", argc);
    for (int i = 0; i < argc; i++) {
        p += snprintf(p, 32, "$%zu\r\n", argv[i].len);
        if (argv[i].len)
            memcpy(p, argv[i].data, argv[i].len);
        p += argv[i].len;
        *p++ = '\r';
        *p++ = '\n';
    }
    c->out_len = (size_t)(p - c->out);
    return c->out_len >= SEND_AT_BYTES ? send_all(c) : status_ok();
}

/* Room for more input: moves what is there to the front, or doubles the buffer. */
static status_t make_room(struct client *c)
{
    if (c->in_head > 0) {
        memmove(c->in, c->in + c->in_head, c->in_tail - c->in_head);
        c->in_tail -= c->in_head;
        c->in_head = 0;
    }
    if (c->in_tail < c->in_capacity)
        return status_ok();
    char *in = realloc(c->in, 2 * c->in_capacity);
    if (in == NULL)
        return status_error(STATUS_NO_MEMORY, "out of memory for a reply of over %zu bytes", c->in_capacity);
    c->in = in;
    c->in_capacity *= 2;
    return status_ok();
}

status_t client_receive(struct client *c, struct slice *reply)
{
    struct reply_scan scan = {0};
    TRY(send_all(c));
    for (;;) {
        int64_t n = reply_scan_continue(&scan, c->in + c->in_head, c->in_tail - c->in_head);
        if (n < 0)
            return status_error(STATUS_CORRUPT, "the server's answer is not in the Redis protocol");
        if (n > 0) {
            *reply = slice_make(c->in + c->in_head, (size_t)n);
            c->in_head += (size_t)n;
            return status_ok();
        }
        if (c->in_tail == c->in_capacity)
            TRY(make_room(c));
        ssize_t got = recv(c->fd, c->in + c->in_tail, c->in_capacity - c->in_tail, 0);
        if (got == 0)
            return status_error(STATUS_IO, "the server closed the connection");
        if (got < 0 && errno != EINTR)
            return status_errno(errno, "connection lost");
        if (got > 0)
            c->in_tail += (size_t)got;
    }
}
