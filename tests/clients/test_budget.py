"""The connections' buffers count against --memory: bursts of large requests and replies stay below it, and everybody
gets on who does not stand still."""

import contextlib
import resource
import signal
import socket
import threading
import time

import pytest
from kvasir_client import Error, encode, wait_until
from kvasir_server import IS_SANITIZED, Server

pytestmark = pytest.mark.kvasir

MIB = 1 << 20
CAP = 256 * MIB
SMALL_CAP = 128 * MIB
BACKENDS = {"uring-1": ("uring", 1), "epoll-2": ("epoll", 2)}
# What has left memory is free only some tenths of a second later, as on a machine where a thread gets no processor.
EPOCH_HELD = {"KVASIR_FAULT": "epoch:100000"}
EPOCH_SLOW = {"KVASIR_FAULT": "epoch:20000"}
# Checkpoints and cleaning every 20 MB of log.
CLEANS = {"KVASIR_FAULT": "checkpoint:20000000"}
CLEANS_HELD = {"KVASIR_FAULT": "epoch:20000,checkpoint:20000000"}


def full_server(name, memory, keys, env=None):
    """Full of values, so that buffers must push some out."""
    backend, threads = BACKENDS[name]
    server = Server("--memory", memory, "--io", backend, "--threads", threads, env=env).start()
    with server.client() as c:
        for start in range(0, keys, 500):
            c.pipeline(("SET", "key:%06d" % i, b"v" * 3000) for i in range(start, start + 500))
    yield server
    assert server.process.poll() is None, server.log()[-6000:]
    server.destroy()


@pytest.fixture(params=BACKENDS)
def server(request):
    yield from full_server(request.param, CAP, 90000)


@pytest.fixture(params=BACKENDS)
def small_server(request):
    yield from full_server(request.param, SMALL_CAP, 45000)


@pytest.fixture(params=BACKENDS)
def held_server(request):
    yield from full_server(request.param, CAP, 90000, EPOCH_HELD)


@pytest.fixture(params=[(name, env) for name in BACKENDS for env in (None, EPOCH_SLOW)],
                ids=lambda p: p[0] + ("-held" if p[1] else ""))  # fmt: skip
def slow_small_server(request):
    yield from full_server(request.param[0], SMALL_CAP, 45000, request.param[1])


@pytest.fixture(params=[(name, env) for name in BACKENDS for env in (CLEANS, CLEANS_HELD)],
                ids=lambda p: p[0] + ("-held" if p[1] is CLEANS_HELD else ""))  # fmt: skip
def cleaning_server(request):
    yield from full_server(request.param[0], SMALL_CAP, 45000, request.param[1])


def many_sockets(server, n):
    """Cheaper than so many clients, and they never block."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, n + 500)), hard))
    sockets = [socket.create_connection(("127.0.0.1", server.port), timeout=60) for _ in range(n)]
    for sock in sockets:
        sock.setblocking(False)
    return sockets


def send_what_fits(sock, data):
    try:
        return sock.send(data)
    except (BlockingIOError, ConnectionError):
        return 0


def info(c):
    return dict(line.split(":", 1) for line in c("INFO").decode().splitlines() if ":" in line)


def status(server, name):
    with open(f"/proc/{server.process.pid}/status") as file:
        for line in file:
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024


def store_values(server, n, size):
    with server.client(timeout=60) as c:
        for i in range(n):
            assert c("SET", "big:%d" % i, value(i, size)) == "OK"


def assert_below_cap(server, cap=CAP):
    """The highest of all times."""
    if not IS_SANITIZED:
        assert status(server, "VmHWM") <= cap


def value(i, size):
    return b"%08d" % i * (size // 8)


def run_all(functions):
    failures = []

    def guard(function, *args):
        try:
            function(*args)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guard, args=call) for call in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures


def test_half_sent_requests(server):
    """They wait in the kernel; small requests go on; the other halves make all of them complete."""
    n, size = 200, MIB
    clients = [server.client() for _ in range(n)]
    requests = [encode("SET", "big:%d" % i, value(i, size)) for i in range(n)]
    rests = []
    for client, request in zip(clients, requests):
        client.sock.setblocking(False)
        try:
            sent = client.sock.send(request[: size // 2])
        except BlockingIOError:
            sent = 0
        client.sock.settimeout(30)
        rests.append(request[sent:])
    with server.client() as c:
        wait_until(lambda: info(c)["clients_waiting_for_room"] != "0")
        assert c("SET", "small", "x") == "OK" and c("GET", "small") == b"x"
        assert int(info(c)["memory_input_bytes"]) < CAP // 16 + 8 * MIB + n * (80 << 10)
    run_all((client.send, rest) for client, rest in zip(clients, rests))
    replies = [client.reply() for client in clients]
    assert set(replies) == {"OK"}, [str(reply) for reply in replies if reply != "OK"][:3]
    assert_below_cap(server)
    with server.client() as c:
        for i in range(0, n, 17):
            assert c("GET", "big:%d" % i) == value(i, size)
        assert info(c)["clients_waiting_for_room"] == "0"
    for client in clients:
        client.close()
    with server.client() as c:
        wait_until(lambda: int(info(c)["memory_input_bytes"]) == 0)


def test_many_halves_of_small_requests(small_server):
    """Each needs no room for itself; all together they would take more than there is."""
    n, size = 3000, 60000
    sockets = many_sockets(small_server, n)
    requests = [encode("SET", "big:%d" % i, value(i, size)) for i in range(n)]
    sent = [send_what_fits(sock, request[:-500]) for sock, request in zip(sockets, requests)]
    with small_server.client() as c:
        wait_until(lambda: int(info(c)["clients_waiting_for_room"]) > n // 2)
        assert c("SET", "small", "x") == "OK" and c("GET", "small") == b"x"
    for sock, request, done in zip(sockets, requests, sent):
        sock.settimeout(30)
        sock.sendall(request[done:])
    assert all(sock.recv(100) == b"+OK\r\n" for sock in sockets)
    assert_below_cap(small_server, SMALL_CAP)
    with small_server.client() as c:
        for i in range(0, n, 97):
            assert c("GET", "big:%d" % i) == value(i, size)
        for sock in sockets:
            sock.close()
        wait_until(lambda: int(info(c)["memory_input_bytes"]) == 0)


@pytest.mark.parametrize("size", [3000, 60000])
def test_many_that_never_read(small_server, size):
    """Replies that need no room for themselves, and what has been sent behind."""
    with small_server.client() as c:
        for i in range(50):
            assert c("SET", "big:%d" % i, value(i, size)) == "OK"
    request = b"".join(encode("GET", "big:%d" % i) for i in range(50))
    sockets = many_sockets(small_server, 2000)
    for _ in range(20):
        for sock in sockets:
            send_what_fits(sock, request)
    with small_server.client(timeout=60) as c:
        assert c("SET", "small", "x") == "OK" and c("GET", "small") == b"x"
        assert len(c("CLIENT", "LIST")) > 1000
    assert_below_cap(small_server, SMALL_CAP)
    for sock in sockets:
        sock.close()
    with small_server.client() as c:
        wait_until(lambda: info(c)["connected_clients"] == "1")


def test_values_made_from_old_ones(slow_small_server):
    """They are there three or four times while they are made."""
    n, size = 4, 15 * MIB
    small_server = slow_small_server

    def work(i):
        with small_server.client(timeout=60) as c:
            assert c("SET", "big:%d" % i, value(i, size)) == "OK"
            for k in range(1, 4):
                assert c("APPEND", "big:%d" % i, "x") == size + k
            for k in range(3):
                assert c("SETRANGE", "made:%d" % i, size - 1, "y") == size
            assert c.error("SETRANGE", "made:%d" % i, size + 2 * MIB, "y").startswith("OOM the value would be longer")

    run_all((work, i) for i in range(n))
    with small_server.client(timeout=60) as c:
        for i in range(n):
            assert c("GET", "big:%d" % i) == value(i, size) + b"xxx"
    assert_below_cap(small_server, SMALL_CAP)


def test_many_arguments(small_server):
    """Each takes more while the command runs than it has bytes."""
    with small_server.client(timeout=60) as c:
        for n in (20_000, 100_000):
            assert c("EXISTS", *["abcd"] * n) == 0 and c("DEL", *["abcd"] * n) == 0
        assert c.error("EXISTS", *["abcd"] * 500_000).startswith("OOM a request longer than ")
        assert c("PING") == "PONG"
    assert_below_cap(small_server, SMALL_CAP)


@pytest.mark.parametrize("size", [3000, 60000, 20 * MIB], ids=str)
def test_expiries_of_values_in_memory(slow_small_server, size):
    """Each copies the value; the old ones are not free at once, and need not wait for a log."""
    small_server = slow_small_server
    n = 20 if size > MIB else 500 if "KVASIR_FAULT" in small_server.env else 2000
    with small_server.client(timeout=60) as c:
        assert c("SET", "v", value(1, size)) == "OK"
        assert c.pipeline(("EXPIRE", "v", 1000 + i) for i in range(n)) == [1] * n
        assert c.pipeline(("PERSIST" if i % 2 else "PEXPIRE", "v", *([] if i % 2 else [10**6])) for i in range(n)) == [1] * n
        assert c("GET", "v") == value(1, size)
    assert_below_cap(small_server, SMALL_CAP)


def burst(server, n, size):
    def work(i):
        with server.client(timeout=60) as c:
            for round_ in range(2):
                assert c("SET", "big:%d" % i, value(i + round_, size)) == "OK"
                assert c("GET", "big:%d" % i) == value(i + round_, size)

    run_all((work, i) for i in range(n))


def test_bursts_of_large_values(server):
    burst(server, 6, 24 * MIB)
    assert_below_cap(server)


def test_bursts_while_memory_is_free_late(held_server):
    burst(held_server, 6, 24 * MIB)
    assert_below_cap(held_server)


def test_bursts_of_values_that_fill_much_of_the_memory(slow_small_server):
    burst(slow_small_server, 8, 20 * MIB)
    assert_below_cap(slow_small_server, SMALL_CAP)


def test_many_want_large_values_from_disk(slow_small_server):
    """Each is there as it was read, and in its reply; with more connections than there is room for."""
    n, size = 8, 21 * MIB
    store_values(slow_small_server, n, size)

    def work(i):
        with slow_small_server.client(timeout=60) as c:
            for k in range(4):
                assert c("GET", "big:%d" % ((i + k) % n)) == value((i + k) % n, size)

    run_all((work, i) for i in range(n))
    assert_below_cap(slow_small_server, SMALL_CAP)


def test_many_want_several_values_from_disk(make_server):
    """What one has read must not stay in memory for all others who want some of it too, and find no room for the rest."""
    server = make_server("--memory", 64 * MIB, "--threads", 2).start()
    n, values, each, size = 60, 120, 10, 500_000
    store_values(server, values, size)

    def work(i):
        with server.client(timeout=60) as c:
            for k in range(4):
                which = [(i * 7 + k * 31 + j * (i % 5 + 1)) % values for j in range(each)]
                assert c("MGET", *["big:%d" % j for j in which]) == [value(j, size) for j in which]

    run_all((work, i) for i in range(n))
    assert_below_cap(server, 64 * MIB)


def test_the_cleaner_moves_large_values(cleaning_server):
    """It holds them too, several times, beside those of the clients."""
    n, size = 6, 20 * MIB

    def work(i):
        with cleaning_server.client(timeout=60) as c:
            for k in range(4):
                assert c("SET", "big:%d" % (2 * i + k % 2), value(i, size)) == "OK"
                assert set(c.pipeline(("SET", "key:%06d" % j, b"w" * 3000) for j in range(i, 45000, 90))) == {"OK"}

    run_all((work, i) for i in range(n))
    with cleaning_server.client(timeout=60) as c:
        wait_until(lambda: int(info(c)["cleaner_rounds"]) > 0, 60, "a round, after some tries")
        for i in range(n):
            assert c("GET", "big:%d" % (2 * i)) == value(i, size)
    assert_below_cap(cleaning_server, SMALL_CAP)


def test_many_large_and_growing_requests(server):
    """A MSET shows only little by little how long it is: all may have begun before one has its end."""
    n = 24

    def one(i):
        with server.client(timeout=60) as c:
            c.send(encode("SET", "one:%d" % i, value(i, 5 * MIB)))
            assert c.reply() == "OK"

    def many(i):
        with server.client(timeout=60) as c:
            pairs = [part for k in range(40) for part in ("many:%d:%d" % (i, k), value(k, 300_000))]
            assert c("MSET", *pairs) == "OK"
            assert c("GET", "many:%d:%d" % (i, 39)) == value(39, 300_000)

    run_all([(one, i) for i in range(n)] + [(many, i) for i in range(n)])
    assert_below_cap(server)
    with server.client() as c:
        assert c("STRLEN", "one:%d" % (n - 1)) == 5 * MIB // 8 * 8


@pytest.mark.parametrize("backend", ["uring", "epoll"])
def test_too_long_a_request_is_passed_over(make_server, backend):
    """An error at once, and the connection stays in sync, whatever is behind the long argument."""
    server = make_server("--memory", "128M", "--io", backend).start()
    with server.client(timeout=60) as c:
        c.send(encode("SET", "a", "1") + encode("SET", "big", value(1, 40 * MIB), "EX", 100) + encode("GET", "a"))
        assert c.reply() == "OK"
        refused = c.reply()
        assert isinstance(refused, Error) and str(refused).startswith("OOM a request longer than ")
        assert c.reply() == b"1"
        assert c("EXISTS", "big") == 0
        pairs = [part for k in range(40) for part in ("m:%d" % k, value(k, MIB))]
        assert c.error("MSET", *pairs).startswith("OOM a request longer than ")
        assert c("EXISTS", "m:0") == 0 and c("SET", "big", value(1, 20 * MIB)) == "OK"
        assert c("CONFIG", "SET", "maxmemory", 0) == "OK"
        assert c("SET", "big", value(1, 40 * MIB)) == "OK"


@pytest.mark.parametrize("backend", ["uring", "epoll"])
def test_what_never_finds_room_is_refused_soon(make_server, backend):
    """A quarter of the least cap: in memory once, but not three times. The connection stays, and shorter ones go on."""
    server = make_server("--memory", "32M", "--io", backend, "--threads", 1).start()
    with server.client(timeout=20) as c, server.client(timeout=20) as other:
        for _ in range(2):
            c.send(encode("SET", "big", value(1, 8 * MIB)))
            assert other("SET", "small", "1") == "OK"
            if IS_SANITIZED:  # their allocators are not measured
                assert c.reply() == "OK"
            else:
                assert str(c.reply()) == "OOM there is no room below --memory for what this command needs"
                assert c("EXISTS", "big") == 0
        assert c("SET", "big", value(1, 4 * MIB)) == "OK"
        assert other("STRLEN", "big") == 4 * MIB


def test_readers_that_do_not_take_their_replies(server):
    """Their output is bounded together; others get on; they get theirs when they read."""
    with server.client() as c:
        for i in range(16):
            assert c("SET", "big:%d" % i, value(i, MIB)) == "OK"
    n, gets = 60, 10  # more than sockets hold: 4 MiB and the little that is received
    slow = [server.client(timeout=30) for _ in range(n)]
    for i, client in enumerate(slow):
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        client.send(b"".join(encode("GET", "big:%d" % ((i + k) % 16)) for k in range(gets)))
    with server.client() as c:
        wait_until(lambda: int(info(c)["memory_buffer_bytes"]) > CAP // 8)
        assert c("GET", "key:000001") == b"v" * 3000
    run_all((lambda i=i: [check_reply(slow[i], (i + k) % 16) for k in range(gets)],) for i in range(n))
    assert_below_cap(server)
    for client in slow:
        client.close()


def check_reply(client, i):
    assert client.reply() == value(i, MIB)


@pytest.mark.parametrize("command", [("RANGE", "-", "+"), ("KIDS", "", "VALUES"), ("KIDS", ""), ("KEYS", "*"),
                                     ("RANGE", "-", "+", "KEYS")], ids=" ".join)  # fmt: skip
def test_long_replies_name_the_way_out(server, command):
    with server.client(timeout=60) as c:
        names = len(command) < 3 or "KEYS" in command
        if names:  # so many that their names alone are too long
            for start in range(0, 50000, 200):
                c.pipeline(("SET", "%01500d" % i, "") for i in range(start, start + 200))
        error = c.error(*command)
        too_long = error.startswith("ERR the reply would be longer than 67108864 bytes; use ")
        assert too_long or (not names and error.startswith("OOM the values of this command do not fit in memory")), error
        assert "LIMIT" in error
        if command[0] != "KEYS":
            assert len(c(*command, "LIMIT", 20)) == (20 if names else 40)
    assert_below_cap(server)


def test_a_scan_comes_in_pieces(server):
    with server.client(timeout=60) as c:
        for start in range(0, 30000, 200):
            assert set(c.pipeline(("SET", "%01500d" % i, "") for i in range(start, start + 200))) == {"OK"}
        cursor, found, calls = b"0", 0, 0
        while True:
            cursor, keys = c("SCAN", cursor, "COUNT", 1_000_000)
            found += len(keys)
            calls += 1
            if cursor == b"0":
                break
        assert found == 120000 and calls > 1
    assert_below_cap(server)


def test_who_stands_still_is_sent_away(server):
    """Half of a request that never goes on must not keep the others out for ever."""
    size = 20 * MIB
    still = [server.client() for _ in range(3)]
    for i, client in enumerate(still):
        client.sock.setblocking(False)
        try:
            client.sock.send(encode("SET", "still:%d" % i, value(i, 2 * size))[:MIB])
        except BlockingIOError:
            pass
    begin = time.monotonic()
    with server.client(timeout=60) as c:
        assert c("SET", "live", value(7, size)) == "OK"
        assert c("GET", "live") == value(7, size)
    assert time.monotonic() - begin < 40
    assert "neither sends nor takes" in server.log()
    for client in still:
        client.close()
    assert_below_cap(server)


@pytest.mark.parametrize("name", BACKENDS)
def test_room_of_a_value_made_from_an_old_one_is_given_back(name, make_server):
    """Else whoever made one and now has nothing to say is sent away as one who stands still."""
    backend, threads = BACKENDS[name]
    server = make_server("--memory", SMALL_CAP, "--io", backend, "--threads", threads).start()
    with server.client() as idle, server.client() as c:
        for i in range(6):  # sometimes there is room at once, sometimes the command waits for it
            assert idle("SET", "grows", value(i, 7 * MIB)) == "OK"
            assert idle("APPEND", "grows", "x") == 7 * MIB + 1
            assert int(info(c)["memory_input_bytes"]) < MIB


def test_who_ends_without_taking_replies_is_sent_away(make_server):
    """Replies behind which a connection ends hold memory as others do."""
    server = make_server("--memory", 64 * MIB, "--threads", 1).start()
    with server.client(timeout=60) as c:
        assert c("SET", "many", value(1, MIB - 2048)) == "OK" and c("SET", "one", value(2, 3 * MIB)) == "OK"
        server.process.send_signal(signal.SIGSTOP)  # all in one turn, before any can be told to wait
        silent = [socket.socket(socket.AF_UNIX) for _ in range(20)]
        for sock in silent:
            sock.connect(server.unix)
            sock.send(encode("GET", "many") + encode("QUIT"))
        server.process.send_signal(signal.SIGCONT)
        wait_until(lambda: int(info(c)["mem_clients_normal"]) > 14 * MIB)
        begin = time.monotonic()
        assert c("GET", "one") == value(2, 3 * MIB)
        assert time.monotonic() - begin < 30
        for sock in silent:
            sock.close()


def test_the_place_of_the_largest_request_is_given_back(make_server):
    """It waits for memory in that place, and needs none any more: another one gets it."""
    server = make_server("--memory", 64 * MIB, "--threads", 1).start()
    with server.client(timeout=60) as c:
        keys = 0
        while not any(isinstance(r, Error) for r in c.pipeline(("SET", "key:%d" % (keys + i), "") for i in range(5000))):
            keys += 5000
        # What the keys take differs: now they leave less than the request needs.
        assert c("CONFIG", "SET", "maxmemory", int(info(c)["used_memory_rss"]) + 8 * MIB) == "OK"
        with server.client(timeout=60) as waits:
            request = encode("SET", "large", value(1, 11 * MIB))
            waits.send(request[:8000])
            wait_until(lambda: info(c)["clients_waiting_for_room"] == "1")
            assert c("CONFIG", "SET", "maxmemory", 0) == "OK"
            waits.send(request[8000:])
            assert waits.reply() == "OK"
        assert c("CONFIG", "SET", "maxmemory", 256 * MIB) == "OK"
        assert c("SET", "larger", value(2, 20 * MIB)) == "OK"


@pytest.mark.parametrize("name", BACKENDS)
def test_who_waits_behind_many_gets_room(name, make_server):
    """Many wait for more than there is; one behind them waits for what is given back meanwhile."""
    backend, threads = BACKENDS[name]
    server = make_server("--memory", 64 * MIB, "--io", backend, "--threads", threads).start()
    part, many = encode("SET", "part", value(1, 900 << 10)), 24 * threads
    with contextlib.ExitStack() as stack:
        c, largest, last, *holders = (stack.enter_context(server.client(timeout=20)) for _ in range(7))
        largest.send(encode("SET", "largest", value(2, 15 * MIB))[: 200 << 10])  # the one beyond the share
        wait_until(lambda: int(info(c)["memory_input_bytes"]) >= 15 * MIB)
        for holder in holders:
            holder.send(part[: 100 << 10])
        wait_until(lambda: int(info(c)["memory_input_bytes"]) >= 15 * MIB + len(holders) * len(part))
        for _ in range(many):
            stack.enter_context(server.client()).send(encode("SET", "waits", value(3, 12 * MIB))[: 70 << 10])
        wait_until(lambda: int(info(c)["clients_waiting_for_room"]) == many)
        last.send(part[: 100 << 10])
        wait_until(lambda: int(info(c)["clients_waiting_for_room"]) == many + 1)
        for holder in holders:
            holder.send(part[100 << 10 :])
            assert holder.reply() == "OK"
        last.send(part[100 << 10 :])
        assert last.reply() == "OK"
        assert int(info(c)["clients_waiting_for_room"]) == many


@pytest.mark.parametrize("name", BACKENDS)
def test_the_oldest_request_is_the_next(name, make_server):
    """Of those that want more than the share: whoever else got that place would keep the rest waiting for what it sends."""
    backend, threads = BACKENDS[name]
    server = make_server("--memory", 64 * MIB, "--io", backend, "--threads", threads).start()
    n, first = 20 * threads, 200 << 10
    with contextlib.ExitStack() as stack:
        c, largest, *others = (stack.enter_context(server.client(timeout=30)) for _ in range(2 + n))
        request = encode("SET", "largest", value(2, 8 * MIB))
        largest.send(request[:first])
        wait_until(lambda: int(info(c)["memory_input_bytes"]) >= 8 * MIB)
        for i, other in enumerate(others):
            other.send(encode("SET", "other:%d" % i, value(i, 5 * MIB))[: 70 << 10])
            wait_until(lambda i=i: int(info(c)["clients_waiting_for_room"]) == i + 1)
        largest.send(request[first:])
        assert largest.reply() == "OK"
        for i, other in enumerate(others):
            other.send(encode("SET", "other:%d" % i, value(i, 5 * MIB))[70 << 10 :])
            assert other.reply() == "OK"
        assert "neither sends nor takes" not in server.log()


@pytest.mark.parametrize("name", BACKENDS)
def test_who_leaves_while_it_waits_is_forgotten(name, make_server):
    """Nobody reads from those that wait for room: they must be noticed all the same, and hold nothing."""
    backend, threads = BACKENDS[name]
    server = make_server("--memory", 64 * MIB, "--io", backend, "--threads", threads).start()
    with server.client() as c, server.client() as holds:
        holds.send(encode("SET", "holds", value(1, 15 * MIB))[:MIB])
        request, done = encode("SET", "waits", value(2, 5 * MIB)), threading.Event()
        drips = threading.Thread(target=lambda: [done.wait(0.2) or holds.send(b"v" * (64 << 10)) for _ in range(60)])
        drips.start()  # never still for long
        for _ in range(100):
            with server.client() as client:
                client.send(request[:20000])
        with server.client() as stays:
            stays.send(request[:20000])
            wait_until(lambda: int(info(c)["clients_waiting_for_room"]) > 0)
            wait_until(lambda: info(c)["connected_clients"] == "3", timeout=6)
            assert info(c)["clients_waiting_for_room"] == "1"
        done.set()
        drips.join()
