/* bench-sink: a server that does as little as possible, the yardstick of `kvasir bench`: what the generator
 * reaches against it is what the generator (and the kernel's loopback) can do. One thread, epoll. The first
 * request on a connection tells the length of all of them; for every so many bytes it answers one 64-byte
 * bulk, or to requests of three parts (SET) an OK. Nothing is stored or looked up.
 *
 * usage: bench-sink PORT      e.g. taskset -c 0 bench-sink 7777 & kvasir bench --connect :7777 --pin 1
 * --clients 8 --pipeline 500 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    VALUE_BYTES = 64,
    REPLY_BYTES = 5 + VALUE_BYTES + 2,
    OK_BYTES = 5,
    REPLIES = 1024,
    IN_BYTES = 1 << 16,
    FDS_MAX = 20000
};

struct conn {
    uint64_t request_bytes; /* 0: not known yet */
    uint64_t partial_bytes; /* of the last request */
    uint64_t owed_bytes;    /* of replies not sent */
    uint64_t phase;         /* where in the replies sending goes on */
    bool set;               /* requests have three parts */
    bool want_out;
};

static struct conn conns[FDS_MAX];
static char replies[REPLIES * REPLY_BYTES];
static char oks[REPLIES * OK_BYTES];
static char in[IN_BYTES];

/* Length of the first request: a whole one must have arrived in one piece. */
static uint64_t request_length(const char *p, size_t len)
{
    char *end;
    if (len < 4 || p[0] != '*')
        return 0;
    long args = strtol(p + 1, &end, 10);
    for (end += 2; args > 0 && end < p + len; args--) {
        long n = strtol(end + 1, &end, 10);
        end += 2 + n + 2;
    }
    return args == 0 && end <= p + len ? (uint64_t)(end - p) : 0;
}

static void send_owed(int epoll, int fd)
{
    struct conn *c = &conns[fd];
    while (c->owed_bytes) {
        size_t size = c->set ? sizeof oks : sizeof replies, n = size - c->phase;
        ssize_t sent = send(fd, (c->set ? oks : replies) + c->phase, n < c->owed_bytes ? n : c->owed_bytes,
                            MSG_NOSIGNAL);
        if (sent <= 0)
            break;
        c->owed_bytes -= (uint64_t)sent;
        c->phase = (c->phase + (uint64_t)sent) % (c->set ? OK_BYTES : REPLY_BYTES);
    }
    bool want_out = c->owed_bytes > 0;
    if (want_out != c->want_out) {
        struct epoll_event event = {.events = EPOLLIN | (want_out ? EPOLLOUT : 0u), .data.fd = fd};
        epoll_ctl(epoll, EPOLL_CTL_MOD, fd, &event);
        c->want_out = want_out;
    }
}

static void serve(int epoll, int fd)
{
    struct conn *c = &conns[fd];
    ssize_t n = recv(fd, in, sizeof in - 1, 0);
    if (n <= 0) {
        if (n == 0 || errno != EAGAIN)
            close(fd);
        return;
    }
    in[n] = '\0';
    if (c->request_bytes == 0) {
        c->request_bytes = request_length(in, (size_t)n);
        c->set = in[1] == '3';
    }
    if (c->request_bytes == 0) {
        close(fd);
        return;
    }
    c->partial_bytes += (uint64_t)n;
    c->owed_bytes += c->partial_bytes / c->request_bytes * (c->set ? OK_BYTES : REPLY_BYTES);
    c->partial_bytes %= c->request_bytes;
    send_owed(epoll, fd);
}

static void accept_one(int epoll, int listener)
{
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC), one = 1;
    if (fd < 0)
        return;
    if (fd >= FDS_MAX) {
        close(fd);
        return;
    }
    conns[fd] = (struct conn){0};
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
}

int main(int argc, char **argv)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    at.sin_port = htons((uint16_t)(argc > 1 ? strtol(argv[1], NULL, 10) : 7777));
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (const struct sockaddr *)&at, sizeof at) != 0 || listen(listener, 1024) != 0) {
        perror("bench-sink");
        return 2;
    }
    for (int i = 0; i < REPLIES; i++) {
        char *p = replies + i * REPLY_BYTES;
        memcpy(p, "$64\r\n", 5);
        memset(p + 5, 'x', VALUE_BYTES);
        memcpy(p + 5 + VALUE_BYTES, "\r\n", 2);
        memcpy(oks + i * OK_BYTES, "+OK\r\n", OK_BYTES);
    }
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event events[256], event = {.events = EPOLLIN, .data.fd = listener};
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int n = epoll_wait(epoll, events, 256, -1);
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            if (fd == listener)
                accept_one(epoll, fd);
            else if (events[i].events & EPOLLOUT)
                send_owed(epoll, fd);
            else
                serve(epoll, fd);
        }
    }
}
