/* Connections on loopback, for tests. Include it behind cmocka.h. */
#ifndef KVASIR_TESTS_NET_FIXTURE_H
#define KVASIR_TESTS_NET_FIXTURE_H

#include <netinet/in.h>
#include <sys/socket.h>

#include "sys/net.h"

static inline int connect_to(int port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof a), 0);
    return fd;
}

static inline int listen_somewhere(int *port)
{
    int fd = -1;
    status_t s = net_listen_tcp("127.0.0.1:0", &fd, port);
    if (!status_is_ok(&s))
        fail_msg("%s", s.text);
    return fd;
}

#endif
