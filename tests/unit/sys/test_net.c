#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "sys/net.h"
#include "unit/sys/net_fixture.h"

enum { TEXT = 128 };

static int connect_path(const char *path)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    snprintf(a.sun_path, sizeof a.sun_path, "%s", path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    if (connect(fd, (struct sockaddr *)&a, sizeof a) == 0)
        return fd;
    close(fd);
    return -1;
}

static void test_bad_addresses(void **state)
{
    (void)state;
    static const char *const cases[] = {"",
                                        "localhost",
                                        "6379",
                                        "127.0.0.1:",
                                        "127.0.0.1:port",
                                        "[::1]",
                                        "127.0.0.1: 1",
                                        "127.0.0.1:65536",
                                        "127.0.0.1:-1"};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int fd = -1, port = -1;
        status_t s = net_listen_tcp(cases[i], &fd, &port);
        assert_int_equal(s.code, STATUS_INVALID);
        assert_int_equal(fd, -1);
        s = net_check_tcp(cases[i]);
        assert_int_equal(s.code, STATUS_INVALID);
    }
    char *host = malloc(1000);
    memset(host, 'h', 1000);
    memcpy(host + 994, ":6379", 6);
    int fd = -1, port = -1;
    status_t s = net_listen_tcp(host, &fd, &port);
    assert_int_equal(s.code, STATUS_INVALID);
    free(host);
}

static void test_tcp(void **state)
{
    (void)state;
    int fd = -1, port = 0, other = -1, other_port = 0;
    status_t s = net_listen_tcp("127.0.0.1:0", &fd, &port);
    assert_true(status_is_ok(&s));
    assert_in_range(port, 1, 65535);
    assert_true(fcntl(fd, F_GETFL) & O_NONBLOCK);
    assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);

    char address[TEXT], expected[TEXT], peer[TEXT], local[TEXT];
    snprintf(address, sizeof address, "127.0.0.1:%d", port);
    s = net_listen_tcp(address, &other, &other_port);
    assert_int_equal(s.code, STATUS_BUSY);
    assert_non_null(strstr(s.text, address));
    assert_non_null(strstr(s.text, "--listen"));

    int client = connect_to(port);
    int server = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
    assert_true(server >= 0);
    net_tune(server);
    int value = 0;
    socklen_t len = sizeof value;
    assert_int_equal(getsockopt(server, IPPROTO_TCP, TCP_NODELAY, &value, &len), 0);
    assert_true(value);
    assert_int_equal(getsockopt(server, SOL_SOCKET, SO_KEEPALIVE, &value, &len), 0);
    assert_true(value);
    assert_int_equal(getsockopt(server, IPPROTO_TCP, TCP_KEEPIDLE, &value, &len), 0);
    assert_int_equal(value, NET_KEEPALIVE_S);
    assert_true(net_is_loopback(fd));

    bool is_unix = true;
    net_describe(server, peer, local, TEXT, &is_unix);
    assert_false(is_unix);
    assert_string_equal(local, address);
    net_describe(client, expected, local, TEXT, &is_unix);
    assert_string_equal(peer, local);
    assert_string_equal(expected, address);
    char small[8], small_local[8];
    net_describe(server, small, small_local, sizeof small, &is_unix); /* cut, not overrun */
    assert_string_equal(small_local, "127.0.0");

    /* The server closes first: the port is in TIME_WAIT, and a restart must get it nevertheless. */
    net_close(server);
    close(client);
    net_close(fd);
    s = net_listen_tcp(address, &fd, &other_port);
    assert_true(status_is_ok(&s));
    assert_int_equal(other_port, port);
    net_close(fd);
}

static void test_tcp6(void **state)
{
    (void)state;
    int fd = -1, port = 0;
    status_t s = net_listen_tcp("[::1]:0", &fd, &port);
    if (!status_is_ok(&s))
        skip(); /* a machine without IPv6 */
    char peer[TEXT], local[TEXT], expected[TEXT];
    bool is_unix = true;
    net_describe(fd, peer, local, TEXT, &is_unix);
    snprintf(expected, sizeof expected, "[::1]:%d", port);
    assert_string_equal(local, expected);
    assert_false(is_unix);
    net_close(fd);
}

static void test_unix(void **state)
{
    (void)state;
    char folder[] = "net-test-XXXXXX", path[TEXT];
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/s", folder);
    int fd = -1, other = -1;
    status_t s = net_listen_unix(path, &fd);
    assert_true(status_is_ok(&s));
    s = net_listen_unix(path, &other); /* a live one is refused, and goes on living */
    assert_int_equal(s.code, STATUS_BUSY);
    assert_non_null(strstr(s.text, path));
    int client = connect_path(path);
    assert_true(client >= 0);
    /* First in line is the probe that found the server alive. */
    int probe = accept4(fd, NULL, NULL, SOCK_CLOEXEC), server = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
    assert_true(probe >= 0 && server >= 0);
    net_tune(server);
    char peer[TEXT], local[TEXT], expected[TEXT];
    bool is_unix = false;
    net_describe(server, peer, local, TEXT, &is_unix);
    assert_true(is_unix);
    snprintf(expected, sizeof expected, "%s:0", path);
    assert_string_equal(local, expected);
    assert_string_equal(peer, expected);
    close(probe);
    close(server);
    close(client);
    net_close(fd);

    assert_int_equal(connect_path(path), -1); /* dead, but its file is there: replaced */
    s = net_listen_unix(path, &fd);
    assert_true(status_is_ok(&s));
    client = connect_path(path);
    assert_true(client >= 0);
    close(client);
    net_close(fd);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(rmdir(folder), 0);
}

static void test_unix_errors(void **state)
{
    (void)state;
    char path[300];
    int fd = -1;
    memset(path, 'p', sizeof path);
    path[108] = '\0'; /* one more than sun_path takes with its end */
    status_t s = net_listen_unix(path, &fd);
    assert_int_equal(s.code, STATUS_INVALID);
    s = net_listen_unix("", &fd);
    assert_int_equal(s.code, STATUS_INVALID);
    s = net_listen_unix("no-such-folder/socket", &fd);
    assert_int_equal(s.code, STATUS_IO);
    assert_int_equal(fd, -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bad_addresses), cmocka_unit_test(test_tcp),         cmocka_unit_test(test_tcp6),
        cmocka_unit_test(test_unix),          cmocka_unit_test(test_unix_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
