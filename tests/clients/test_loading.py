"""Clients that come while the store is being opened: told so with a percentage, then served on the same socket."""

import glob
import os
import re
import select
import signal
import socket
import time

import pytest
from kvasir_client import Client, encode, wait_until

pytestmark = [pytest.mark.kvasir, pytest.mark.sanitize]

KEYS = 600
LOADING = re.compile(r"LOADING kvasir is loading: (\d+)%, (\d+) of (\d+) MiB, (\d+) keys\Z")


class Slow:
    """A server that has stopped at half of its loading."""

    def __init__(self, server, before=lambda server: None):
        self.server = server
        self.gate = os.path.join(server.directory, "gate")
        with server.start().client() as c:
            for start in range(0, KEYS, 100):
                c.pipeline(["SET", f"key:{i}", b"v" * 5000] for i in range(start, start + 100))
        assert server.stop() == 0
        before(server)
        server.env["KVASIR_FAULT"] = f"load:{self.gate}"
        server.spawn()
        self.clients = []
        wait_until(self.answers, what="the first answer")
        self.first = self.client()

        def at_half():
            percent, keys = self.progress(self.first)
            assert keys <= KEYS
            return percent >= 49 and keys > 0

        wait_until(at_half, what="half of the loading")

    def answers(self):
        assert self.server.process.poll() is None, self.server.log()
        try:
            client = self.client()
        except ConnectionError:
            return False
        try:
            return self.progress(client) is not None
        except (ConnectionError, EOFError):  # it was the old process's socket, which goes a little later
            self.clients.remove(client)
            client.close()
            return False

    def client(self, address=None):
        client = Client(address or self.server.address)
        self.clients.append(client)
        return client

    def progress(self, client, *command):
        match = LOADING.match(client.error(*(command or ("PING",))))
        assert match, "no LOADING error with its progress"
        percent, done, total = (int(match[i]) for i in (1, 2, 3))
        assert 0 <= percent <= 100 and done <= total
        return percent, int(match[4])

    def let_go(self):
        with open(self.gate, "wb"):
            pass


@pytest.fixture(params=[("uring", 1), ("uring", 2), ("epoll", 2)], ids=lambda p: f"{p[0]}-{p[1]}")
def slow(request, make_server):
    io, threads = request.param
    slow = Slow(make_server("--io", io, "--threads", threads, "--max-clients", 20))
    yield slow
    for client in slow.clients:
        client.close()
    assert slow.server.process.poll() is None, slow.server.log()
    assert slow.server.stop() == 0
    assert "ERROR" not in slow.server.log()


def served(client):
    """Answers on the same socket once it is loaded; a command that came before that may be told LOADING."""

    def pong():
        reply = client.raw("PING")
        assert reply == b"+PONG\r\n" or reply.startswith(b"-LOADING"), reply
        return reply == b"+PONG\r\n"

    wait_until(pong, what="the end of loading")


def test_told_and_then_served_on_the_same_socket(slow):
    over_unix = slow.client(slow.server.unix)
    for client in (slow.first, over_unix):
        for command in (["PING"], ["GET", "key:1"], ["SET", "key:1", "no"], ["INFO"], ["SHUTDOWN"], ["NOSUCH"]):
            assert slow.progress(client, *command)[0] >= 49
    over_unix.send(b"PING\r\n\r\nGET key:2\r\n" + encode("PING") * 1000)
    assert all(str(over_unix.reply()).startswith("LOADING ") for _ in range(1002))
    slow.let_go()
    for client in (slow.first, over_unix):
        served(client)
        assert client("GET", "key:1") == b"v" * 5000
        assert client("DBSIZE") == KEYS
    info = slow.first("INFO", "clients").decode()
    assert f"connected_clients:{len(slow.clients)}\r\n" in info
    assert "loading:0\r\n" in slow.first("INFO", "persistence").decode()
    assert f":{over_unix('CLIENT', 'ID')}" != f":{slow.first('CLIENT', 'ID')}"


@pytest.mark.parametrize("length", [5, 60000, 3000000])
def test_a_request_sent_by_half_is_served_after_loading(slow, length):
    """Whether or not it fits into the buffer of a client that waits; the three of them at any place."""
    command = encode("SET", "key:new", b"n" * length) + encode("GET", "key:new")
    client = slow.client()
    half = len(command) - 40
    client.sock.setblocking(False)
    sent = client.sock.send(command[:half])  # as much as the socket takes
    client.sock.settimeout(20)
    slow.progress(slow.first)
    client.sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        client.sock.recv(1)  # nothing is complete
    client.sock.settimeout(20)
    slow.let_go()
    served(slow.first)
    client.send(command[sent:])
    assert client.reply() == "OK"
    assert client.reply() == b"n" * length


def test_complete_requests_before_half_a_request(slow):
    client = slow.client()
    client.send(encode("PING") + encode("SET", "key:x", "lost") + encode("GET", "key:1")[:-3])
    assert [LOADING.match(str(client.reply())) is not None for _ in range(2)] == [True, True]
    slow.let_go()
    served(slow.first)
    client.send(encode("GET", "key:1")[-3:] + encode("EXISTS", "key:x"))
    assert client.reply() == b"v" * 5000
    assert client.reply() == 0


def test_who_sends_and_never_reads(slow):
    """It harms nobody while loading lasts, and is closed when that ends."""
    client = slow.client()
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.sock.setblocking(False)
    data = b"a\n" * 100000
    stuck = 0
    while stuck < 20:  # until the server has stopped reading, for sure
        try:
            client.sock.send(data)
            stuck = 0
        except BlockingIOError:
            stuck += 1
            slow.progress(slow.first)
    slow.let_go()
    served(slow.first)
    client.sock.settimeout(20)
    answers = client.rest()
    assert answers and answers.startswith(b"-LOADING ")
    assert b"PONG" not in answers
    assert slow.first("DBSIZE") == KEYS


def test_protocol_errors_and_http_end_the_connection(slow):
    for data, start in [(b"*1\r\n$x\r\n", b"-ERR Protocol error"), (b"POST / HTTP/1.1\r\nHost: x\r\n\r\nFLUSHALL\r\n", b""),
                        (encode("HOST:", "x") + encode("FLUSHALL"), b""), (b'"POST" /\r\nFLUSHALL\r\n', b"")]:  # fmt: skip
        client = slow.client()
        client.send(data)
        rest = client.rest()
        assert rest.startswith(start) and (start or not rest), (data, rest)
    client = slow.client()
    client.send(encode("PING") + encode("PING")[:5])
    client.sock.shutdown(socket.SHUT_WR)
    assert LOADING.match(client.rest().decode()[1:-2])
    slow.let_go()
    served(slow.first)
    assert slow.first("DBSIZE") == KEYS


def test_the_limit_of_clients_counts_the_early_ones(slow):
    """Those beyond it wait in the queue of the socket, and are refused when there is somebody who counts."""
    for client in slow.clients:
        if client is not slow.first:
            client.close()
    late = [slow.client() for _ in range(20)]
    for client in late:
        client.send(encode("PING"))
    told = []

    def nineteen_are_told():
        ready, _, _ = select.select([client.sock for client in late], [], [], 0.1)
        told[:] = [client for client in late if client.sock in ready]
        return len(told) >= 19

    wait_until(nineteen_are_told, what="19 to be told")
    assert len(told) == 19
    assert all(LOADING.match(str(client.reply())) for client in told)
    (left,) = [client for client in late if client not in told]
    slow.let_go()
    for client in [slow.first] + told:
        served(client)
    assert left.rest() == b"-ERR max number of clients reached\r\n"
    told[0].close()

    def one_more():
        with Client(slow.server.address) as again:
            return again.raw("PING") == b"+PONG\r\n"

    wait_until(one_more, what="room for one client")


def test_told_while_a_checkpoint_is_loaded(make_server):
    """Nothing is replayed: the whole start is reading the checkpoint."""

    def save(server):
        with server.start().client() as c:
            assert c("SAVE") == "OK"
        assert server.stop() == 0

    slow = Slow(make_server("--threads", 2), save)
    assert slow.progress(slow.first)[0] >= 49
    slow.let_go()
    served(slow.first)
    assert slow.first("GET", "key:599") == b"v" * 5000


def test_signals_end_loading(make_server):
    for number, name in ((signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "SIGINT")):
        slow = Slow(make_server("--threads", 1))
        slow.server.process.send_signal(number)
        assert slow.server.process.wait(20) == 0
        assert f"{name}: stops while loading" in slow.server.log()
        assert not os.path.exists(slow.server.unix)
        slow.let_go()
        with slow.server.start().client() as c:
            assert c("DBSIZE") == KEYS


def test_a_line_a_second(make_server):
    slow = Slow(make_server("--threads", 1))
    lines = re.compile(r"loading: (\d+)%, \d+ of \d+ MiB, \d+ keys$", re.M)
    before = len(lines.findall(slow.server.log()))  # a slow machine may have come here late
    start = time.monotonic()
    wait_until(lambda: len(lines.findall(slow.server.log())) >= before + 3, what="three lines")
    assert time.monotonic() - start > 1.5, "they come no faster"
    assert int(lines.findall(slow.server.log())[-1]) >= 49
    slow.let_go()
    served(slow.first)


def test_a_refused_start_closes_early_clients(make_server):
    def damage(server):
        for path in glob.glob(os.path.join(server.data, "log-*.kv")):
            with open(path, "r+b") as log:
                at = log.read().rfind(b"key:599")
                if at >= 0:
                    log.seek(at + 100)
                    log.write(b"x")

    slow = Slow(make_server("--threads", 1), damage)
    slow.let_go()
    assert slow.server.process.wait(20) == 1
    assert "cannot start" in slow.server.log()
    assert slow.first.at_end()
