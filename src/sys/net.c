#include "sys/net.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/parse.h"

enum {
    BACKLOG = 4096,
    HOST_BYTES = 256,
    /* A killed process's io_uring is taken down by the kernel after the process is gone; until then its
     * accept keeps the listening socket. So "in use" is believed only when it lasts. */
    IN_USE_WAIT_US = 1000000,
    IN_USE_STEP_US = 5000,
};

/* Nothing tells when the kernel is done: it can only be asked again. */
static void wait_a_step(void)
{
    poll(NULL, 0, IN_USE_STEP_US / 1000);
}

static status_t split_address(const char *address, char host[HOST_BYTES], const char **port)
{
    const char *colon = strrchr(address, ':');
    size_t len = colon ? (size_t)(colon - address) : 0;
    uint64_t number;
    if (colon == NULL || colon[1] == '\0' || len >= HOST_BYTES)
        return status_error(STATUS_INVALID, "'%.100s' is not an address: write HOST:PORT", address);
    if (!parse_u64(slice_make(colon + 1, strlen(colon + 1)), &number) || number > UINT16_MAX)
        return status_error(STATUS_INVALID, "'%.100s' has no port from 0 to %d: write HOST:PORT", address,
                            UINT16_MAX);
    if (len >= 2 && address[0] == '[' && address[len - 1] == ']') {
        address++;
        len -= 2;
    }
    memcpy(host, address, len);
    host[len] = '\0';
    *port = colon + 1;
    return status_ok();
}

status_t net_check_tcp(const char *address)
{
    char host[HOST_BYTES];
    const char *port;
    return split_address(address, host, &port);
}

static status_t make_unix_address(const char *path, struct sockaddr_un *address)
{
    *address = (struct sockaddr_un){.sun_family = AF_UNIX};
    size_t bytes = strlen(path) + 1;
    if (bytes == 1)
        return status_error(STATUS_INVALID, "the path of the socket is empty");
    if (bytes > sizeof address->sun_path)
        return status_error(STATUS_INVALID, "the socket path %.100s... is longer than %zu bytes", path,
                            sizeof address->sun_path - 1);
    memcpy(address->sun_path, path, bytes);
    return status_ok();
}

status_t net_check_unix(const char *path)
{
    struct sockaddr_un address;
    return make_unix_address(path, &address);
}

static status_t listen_on(const struct addrinfo *info, const char *address, int *out)
{
    int fd = socket(info->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;
    if (fd < 0)
        return status_errno(errno, "cannot make a socket for %s", address);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    int e = EADDRINUSE;
    for (unsigned waited_us = 0; e == EADDRINUSE && waited_us <= IN_USE_WAIT_US;
         waited_us += IN_USE_STEP_US) {
        if (waited_us > 0)
            wait_a_step();
        e = bind(fd, info->ai_addr, info->ai_addrlen) < 0 || listen(fd, BACKLOG) < 0 ? errno : 0;
    }
    if (e == 0) {
        *out = fd;
        return status_ok();
    }
    close(fd);
    if (e == EADDRINUSE)
        return status_error(
            STATUS_BUSY, "address %s is in use: another server runs there, or choose another with --listen",
            address);
    return status_errno(e, "cannot listen on %s", address);
}

status_t net_listen_tcp(const char *address, int *fd, int *port)
{
    char host[HOST_BYTES] = "";
    const char *service = "";
    TRY(split_address(address, host, &service));
    *fd = -1;
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV}, *info;
    int r = getaddrinfo(host[0] ? host : NULL, service, &hints, &info);
    if (r != 0)
        return status_error(STATUS_INVALID, "cannot listen on '%s': %s", address, gai_strerror(r));
    status_t s = status_ok();
    for (const struct addrinfo *i = info; i;
         i = i->ai_next) { /* a name may stand for several: the first that works */
        s = listen_on(i, address, fd);
        if (status_is_ok(&s))
            break;
    }
    freeaddrinfo(info);
    TRY(s);
    struct sockaddr_in6 bound = {0}; /* the port lies at the same place in both families */
    socklen_t len = sizeof bound;
    getsockname(*fd, (struct sockaddr *)&bound, &len);
    *port = ntohs(bound.sin6_port);
    return status_ok();
}

bool net_is_loopback(int fd)
{
    struct sockaddr_storage a = {0};
    socklen_t len = sizeof a;
    if (getsockname(fd, (struct sockaddr *)&a, &len) < 0)
        return false;
    if (a.ss_family == AF_INET6) {
        const struct in6_addr *ip = &((const struct sockaddr_in6 *)&a)->sin6_addr;
        return IN6_IS_ADDR_LOOPBACK(ip) || (IN6_IS_ADDR_V4MAPPED(ip) && ip->s6_addr[12] == IN_LOOPBACKNET);
    }
    return a.ss_family != AF_INET ||
           ntohl(((const struct sockaddr_in *)&a)->sin_addr.s_addr) >> 24 == IN_LOOPBACKNET;
}

/* Only a refusal says that nobody is there: a full queue or a lack of rights does not. */
static bool is_answering(const struct sockaddr_un *address)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    bool alive = fd < 0 || connect(fd, (const struct sockaddr *)address, sizeof *address) == 0 ||
                 (errno != ECONNREFUSED && errno != ENOENT);
    if (fd >= 0)
        close(fd);
    return alive;
}

/* See IN_USE_WAIT_US. */
static bool somebody_listens(const struct sockaddr_un *address)
{
    bool answering = is_answering(address);
    for (unsigned waited_us = 0; answering && waited_us < IN_USE_WAIT_US; waited_us += IN_USE_STEP_US) {
        wait_a_step();
        answering = is_answering(address);
    }
    return answering;
}

status_t net_listen_unix(const char *path, int *out)
{
    struct sockaddr_un address;
    TRY(make_unix_address(path, &address));
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return status_errno(errno, "cannot make a socket for %s", path);
    int r = bind(fd, (struct sockaddr *)&address, sizeof address);
    if (r < 0 && errno == EADDRINUSE) {
        if (somebody_listens(&address)) {
            close(fd);
            return status_error(STATUS_BUSY,
                                "socket %s is in use by another server; choose another with --unix", path);
        }
        struct stat what;
        if (lstat(path, &what) < 0 || !S_ISSOCK(what.st_mode)) {
            close(fd);
            return status_error(STATUS_INVALID, "%s exists and is not a socket; choose another with --unix",
                                path);
        }
        (void)unlink(path);
        r = bind(fd, (struct sockaddr *)&address, sizeof address);
    }
    if (r < 0 || listen(fd, BACKLOG) < 0) {
        int e = errno;
        close(fd);
        return status_errno(e, "cannot listen on the socket %s", path);
    }
    *out = fd;
    return status_ok();
}

void net_tune(int fd)
{
    int on = 1, idle_s = NET_KEEPALIVE_S, step_s = NET_KEEPALIVE_S / 3, steps = 3;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on) != 0)
        return;
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof idle_s);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &step_s, sizeof step_s);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &steps, sizeof steps);
}

static void describe(const struct sockaddr_storage *a, char *text, size_t bytes)
{
    char ip[INET6_ADDRSTRLEN] = "";
    if (a->ss_family == AF_INET) {
        const struct sockaddr_in *v4 = (const struct sockaddr_in *)a;
        inet_ntop(AF_INET, &v4->sin_addr, ip, sizeof ip);
        snprintf(text, bytes, "%s:%u", ip, ntohs(v4->sin_port));
    } else if (a->ss_family == AF_INET6) {
        const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)a;
        inet_ntop(AF_INET6, &v6->sin6_addr, ip, sizeof ip);
        snprintf(text, bytes, "[%s]:%u", ip, ntohs(v6->sin6_port));
    } else {
        const char *path = ((const struct sockaddr_un *)a)->sun_path;
        snprintf(text, bytes, "%.*s:0", (int)sizeof(((struct sockaddr_un *)0)->sun_path), path);
    }
}

void net_describe(int fd, char *peer, char *local, size_t bytes, bool *is_unix)
{
    struct sockaddr_storage here, there;
    memset(&here, 0, sizeof here);
    memset(&there, 0, sizeof there);
    socklen_t here_len = sizeof here, there_len = sizeof there;
    getsockname(fd, (struct sockaddr *)&here, &here_len);
    getpeername(fd, (struct sockaddr *)&there, &there_len);
    *is_unix = here.ss_family == AF_UNIX;
    describe(&here, local, bytes);
    describe(*is_unix ? &here : &there, peer, bytes);
}

bool net_peer_has_left(int fd, uint64_t lacking)
{
    struct pollfd p = {.fd = fd, .events = POLLRDHUP};
    int queued = 0;
    if (poll(&p, 1, 0) <= 0)
        return false;
    if (p.revents & POLLERR) /* what was on the way is lost */
        return true;
    return p.revents & (POLLRDHUP | POLLHUP) && ioctl(fd, FIONREAD, &queued) == 0 &&
           (uint64_t)queued < lacking;
}

void net_close(int fd)
{
    close(fd);
}
