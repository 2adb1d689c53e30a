"""Hostile and unlucky clients, limits, and start-ups that can't work: a clear error, and nobody else notices."""

import os
import resource
import socket
import subprocess
import threading
import time

import pytest
import redis
from kvasir_client import Client, Error, encode, wait_until
from kvasir_server import BINARY, IS_SANITIZED, free_port

pytestmark = pytest.mark.kvasir
sanitize = pytest.mark.sanitize


def rss_bytes(server):
    with open(f"/proc/{server.process.pid}/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * 4096


def peak_rss_bytes(server):
    with open(f"/proc/{server.process.pid}/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))


def info_number(c, name):
    return next(int(line.split(":")[1]) for line in c("INFO").decode().splitlines() if line.startswith(name + ":"))


# ---- limits ----


@sanitize
@pytest.mark.parametrize("command", [["SET", "KEY", "v"], ["GET", "KEY"], ["DEL", "KEY"], ["MSET", "a", "1", "KEY", "2"],
                                     ["MGET", "a", "KEY"], ["INCR", "KEY"], ["EXPIRE", "KEY", "1"], ["APPEND", "KEY", "x"],
                                     ["EXISTS", "a", "KEY"], ["SETRANGE", "KEY", "0", "x"]])  # fmt: skip
def test_key_length(c, command):
    long, too_long = "k" * 65536, "k" * 65537
    reply = c.raw(*[long if arg == "KEY" else arg for arg in command])
    assert not reply.startswith(b"-")
    c("FLUSHALL")
    assert c.error(*[too_long if arg == "KEY" else arg for arg in command]) == "ERR key is longer than 65536 bytes"
    assert c("DBSIZE") == 0
    assert c("PING") == "PONG"


def test_longest_key_survives(make_server):
    server = make_server().start()
    with server.client() as c:
        c("SET", "k" * 65536, "v")
    server.kill()
    server.start()
    with server.client() as c:
        assert c("GET", "k" * 65536) == b"v"


@sanitize
def test_max_value(make_server):
    server = make_server("--max-value", "1M").start()
    with server.client() as c:
        assert c("SET", "k", "x" * (1 << 20)) == "OK"
        assert c.error("APPEND", "k", "y") == "ERR string exceeds maximum allowed size (proto-max-bulk-len)"
        assert c.error("SETRANGE", "k", 1 << 20, "y") == "ERR string exceeds maximum allowed size (proto-max-bulk-len)"
        assert c("STRLEN", "k") == 1 << 20
        too_long = "ERR an argument longer than --max-value, 1048576 bytes"
        c.send(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$%d\r\n" % ((1 << 20) + 1))
        reply = c.reply()  # before the value is sent
        assert isinstance(reply, Error) and str(reply) == too_long
        c.send(b"x" * ((1 << 20) + 1) + b"\r\n")
        assert c("STRLEN", "k") == 1 << 20  # the same connection goes on
        assert c.error("SET", "k", "x" * (20 << 20)) == too_long
        assert c.error("MSET", "a", "1", "k", "x" * (2 << 20), "b", "y" * (3 << 20), "c", "2") == too_long
        assert c("MGET", "a", "b", "c") == [None] * 3
        replies = c.pipeline([["SET", "a", "1"], ["SET", "k", "x" * (2 << 20)], ["GET", "a"]])
        assert replies[0] == "OK" and str(replies[1]) == too_long and replies[2] == b"1"


def test_a_long_value_is_refused_in_words(server):
    """The client is busy sending when the server knows: it must come to read the answer."""
    with redis.Redis(port=server.port) as r:
        with pytest.raises(redis.ResponseError, match="longer than --max-value, 67108864 bytes"):
            r.set("k", b"x" * (70 << 20))
        assert r.ping()


@sanitize
def test_max_clients(make_server):
    server = make_server("--max-clients", 5).start()
    clients = []
    refused = None
    for _ in range(7):
        client = server.client()
        clients.append(client)
        client.send(b"PING\r\n")
        reply = client.reply()
        if isinstance(reply, Error):
            refused = refused or client
            assert str(reply) == "ERR max number of clients reached"
            assert client.at_end()
    assert refused
    assert len([x for x in clients[:5] if x("PING") == "PONG"]) == 5
    for client in clients:
        client.close()

    def serves_again():
        try:
            with server.client() as client:
                return client("PING") == "PONG"
        except (Error, OSError, EOFError):
            return False

    wait_until(serves_again, 5, "room for clients")


# ---- greedy clients ----


@sanitize
@pytest.mark.parametrize("head", [b"POST / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
                                  b"host: x\r\n", b"*2\r\n$4\r\nPOST\r\n$1\r\n/\r\n"])  # fmt: skip
def test_commands_in_a_http_request_do_nothing(server, c, head):
    """A web page can make a browser send this to a server on loopback."""
    c("SET", "k", "v")
    with server.client() as browser:
        browser.send(head + b"FLUSHALL\r\nSET k stolen\r\n")
        assert b"+OK" not in browser.rest()
    assert c("GET", "k") == b"v"
    assert b"post" not in c("COMMAND", "LIST") and c("COMMAND", "INFO", "post") == [None]


def test_mget_of_one_large_value_many_times(server, c):
    """A request of a few kilobytes must not make a reply that takes all memory."""
    c("SET", "large", "x" * (32 << 20))
    before = rss_bytes(server)
    assert c.error("MGET", *["large"] * 10000).startswith("ERR the reply would be longer than 1073741824 bytes")
    assert c("MGET", "none", "none") == [None, None]
    assert rss_bytes(server) - before < 256 << 20


def test_a_reply_takes_at_most_a_quarter_of_the_cap(make_server):
    server = make_server("--memory", "256M").start()
    with server.client() as c:
        c("SET", "large", "x" * (1 << 20))
        assert c.error("MGET", *["large"] * 600).startswith("ERR the reply would be longer than 67108864 bytes")
        assert [len(value) for value in c("MGET", *["large"] * 50)] == [1 << 20] * 50
    assert rss_bytes(server) < 256 << 20


@sanitize
def test_announced_but_never_sent_costs_nothing(make_server):
    server = make_server("--max-value", "512M").start()
    with server.client() as c:
        before = rss_bytes(server)
        idle = []
        for _ in range(50):
            client = server.client()
            client.send(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$500000000\r\nabc")
            idle.append(client)
        assert c("PING") == "PONG"
        assert rss_bytes(server) - before < 64 << 20
        huge = [server.client() for _ in range(20)]
        for client in huge:
            client.send(b"*1000000\r\n$3\r\nDEL\r\n")
        assert c("PING") == "PONG"
        assert rss_bytes(server) - before < 128 << 20


def test_memory_of_a_burst_is_given_back_while_idle(make_server):
    server = make_server().start()
    with server.client() as c:
        c("SET", "k", "x" * (4 << 20))
    clients = [server.client() for _ in range(100)]
    for client in clients:
        client.send(encode("GET", "k"))
    peak = 0

    def peaked():
        nonlocal peak
        peak = max(peak, rss_bytes(server))
        return peak > 200 << 20

    wait_until(peaked, 20, "the replies to be made")
    for client in clients:
        client.close()
    wait_until(lambda: rss_bytes(server) < 100 << 20, 20, "memory to come back")  # and no command is sent


@sanitize
@pytest.mark.parametrize("io", ["uring", "epoll"])
def test_a_client_that_sends_and_never_reads(make_server, io):
    server = make_server("--io", io, "--threads", 1).start()
    with server.client() as c, server.client(timeout=0.5) as greedy:
        c("SET", "big", "x" * 100000)
        before = rss_bytes(server)
        request = encode("GET", "big") * 500
        sent = 0
        try:
            while sent < 64 << 20:
                greedy.send(request)
                sent += len(request)
                assert c("PING") == "PONG"
        except socket.timeout:
            pass  # the server has stopped reading from it, as it should
        assert sent < 64 << 20, "the server reads requests without end"
        for _ in range(100):
            assert c("GET", "big") == b"x" * 100000
        assert rss_bytes(server) - before < 64 << 20


@sanitize
@pytest.mark.parametrize("io", ["uring", "epoll"])
def test_a_slow_reader_gets_everything(make_server, io):
    server = make_server("--io", io, "--threads", 1).start()
    with server.client() as c:
        c("SET", "big", "x" * 50000)
        n = 400
        sender = threading.Thread(target=c.send, args=((encode("GET", "big") + encode("INCR", "n")) * n,))
        sender.start()
        time.sleep(0.3)  # not synchronisation: this is the slowness
        for i in range(n):
            assert c.reply() == b"x" * 50000
            assert c.reply() == i + 1
        sender.join()


@pytest.mark.parametrize("io", ["uring", "epoll"])
def test_10000_idle_connections(make_server, io):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    want = min(10000, hard - 200)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, want + 200), hard))
    server = make_server("--io", io, "--threads", 2, "--max-clients", 12000).start()
    idle = []
    try:
        with server.client() as c:
            before = rss_bytes(server)
            for _ in range(want):
                client = socket.socket()
                client.connect(server.address)
                idle.append(client)
            for client in idle[::97]:
                client.sendall(b"PING\r\n")
            for client in idle[::97]:
                client.settimeout(20)
                assert client.recv(100) == b"+PONG\r\n"
            text = c("INFO", "clients").decode()
            assert int(text.split("connected_clients:")[1].split("\r\n")[0]) == want + 1
            assert rss_bytes(server) - before < want * 8192 * (4 if IS_SANITIZED else 1) + (32 << 20)
            start = time.monotonic()
            for _ in range(100):
                c("SET", "k", "v")
            assert time.monotonic() - start < 5
    finally:
        for client in idle:
            client.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def few_files(limit):
    """A command's prefix: at most so many open files, and no right to raise that."""
    prefix = ["prlimit", f"--nofile={limit}:{limit}"]
    return prefix + ["setpriv", "--bounding-set=-sys_resource", "--inh-caps=-all"] if os.geteuid() == 0 else prefix


@pytest.mark.kvasir
def test_clients_and_segments_share_the_open_files(make_server):
    server = make_server("--threads", 1, "--max-clients", 600, prefix=few_files(700)).start()
    with server.client() as c:
        clients = int(c("CONFIG", "GET", "maxclients")[1])
        assert (700 - 256) // 2 <= clients < 600
    assert f"--max-clients is lowered to {clients}" in server.log()
    assert server.stop() == 0
    for i in range(450):
        with open(os.path.join(server.data, f"data-{i:010}.kv"), "wb"):
            pass
    code, log = server.run_to_end()
    assert code == 1
    assert "the system allows 700 open files" in log and " segment files" in log and "ulimit -n" in log
    server.prefix = few_files(300)
    assert server.run_to_end()[0] == 1
    server.options += ["--durability", "none"]  # has no files
    server.start()
    assert server.stop() == 0


# ---- start-ups that can't work ----


def refused(server, *texts, code=(1, 2)):
    result, log = server.run_to_end()
    assert result in code, (result, log)
    for text in texts:
        assert text in log, f"{text!r} is not in:\n{log}"
    return log


def test_port_in_use(make_server):
    first = make_server().start()
    second = make_server()
    second.port = first.port
    refused(second, str(first.port), "in use", code=(1,))
    with first.client() as c:
        assert c("PING") == "PONG"


def test_folder_in_use(make_server):
    first = make_server().start()
    second = make_server()
    second.data = first.data
    refused(second, first.data, "in use", code=(1,))
    with first.client() as c:
        assert c("SET", "k", "v") == "OK"


def test_folder_is_a_file(make_server, tmp_path):
    server = make_server()
    server.data = str(tmp_path / "file")
    (tmp_path / "file").write_text("x")
    refused(server, server.data, code=(1,))


def test_folder_not_writable(make_server):
    server = make_server()
    # /proc refuses even root.
    server.data = "/proc/kvasir"
    refused(server, "/proc/kvasir", code=(1,))


def test_folder_below_a_file(make_server, tmp_path):
    (tmp_path / "file").write_text("x")
    server = make_server()
    server.data = str(tmp_path / "file" / "below")
    refused(server, server.data, code=(1,))


@pytest.mark.parametrize(
    "options, named",
    [
        (["--nosuch"], "nosuch"),
        (["--nosuch", "1"], "nosuch"),
        (["--memory", "12Q"], "memory"),
        (["--memory", "-1"], "memory"),
        (["--memory", "1", "--threads", "1"], "the least with --threads 1 is 32M"),
        (["--memory", "31M", "--threads", "2"], "the least with --threads 2 is 32M"),
        (["--memory", "67M", "--threads", "8"], "the least with --threads 8 is 68M"),
        (["--disk-limit", "1"], "--disk-limit: 1 bytes are too little, the least is 16M"),
        (["--disk-limit", "15M"], "the least is 16M"),
        (["--memory", ""], "memory"),
        (["--memory", "99999999999999999999G"], "memory"),
        (["--max-value", "x"], "max-value"),
        (["--threads", "0"], "threads"),
        (["--threads", "abc"], "threads"),
        (["--threads", "100000"], "threads"),
        (["--max-clients", "-5"], "max-clients"),
        (["--durability", "maybe"], "durability"),
        (["--io", "magic"], "io"),
        (["--listen", "nonsense"], "--listen: 'nonsense'"),
        (["--listen", ""], "--listen: "),
        (["--listen", "7104"], "--listen: "),
        (["--listen", "127.0.0.1:99999"], "--listen: "),
        (["--listen", "127.0.0.1: 7104"], "--listen: "),
        (["--listen", "h" * 300 + ":7104"], "--listen: "),
        (["--unix", ""], "--unix: "),
        (["--unix", "/tmp/" + "s" * 300], "is longer than 107 bytes"),
        (["--unix", "/tmp/" + "s" * 103], "--unix: "),
        (["--port", "abc"], "port"),
        (["--memory"], "memory"),
        (["stray"], "argument"),
        (["--config", "/nonexistent/file"], "/nonexistent/file"),
        (["--config", "/dev/null", "--config", "/dev/null"], "--config: "),
        (["--config=/dev/null", "--threads", "1", "--config=/nonexistent/file"], "--config: "),
    ],
)
def test_bad_options(tmp_path, options, named):
    result = subprocess.run(
        [BINARY, "server", "--dir", str(tmp_path / "data"), "--listen", f"127.0.0.1:{free_port()}", *options],
        capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    assert result.returncode == 2, result
    assert named in result.stderr, result.stderr
    assert not os.path.exists(tmp_path / "data"), "data was touched before the options were checked"


def test_http_is_told_once(make_server):
    server = make_server().start()
    for _ in range(50):
        with server.client() as browser:
            browser.send(b"POST / HTTP/1.1\r\n")
            assert browser.rest() == b""
    assert server.stop() == 0
    assert 1 <= server.log().count("speaks HTTP") <= 8  # each worker may once


def test_a_word_about_listening_to_everybody(make_server):
    for address, warned in [("0.0.0.0", True), ("[::]", True), ("127.0.0.2", False), ("[::1]", False), ("localhost", False)]:
        server = make_server("--listen", f"{address}:0")
        server.spawn()
        wait_until(lambda: "ready:" in server.log(), 20, "the server")
        assert server.stop() == 0
        assert ("passwords" in server.log()) == warned, address


def test_config_file(make_server, tmp_path):
    config = tmp_path / "kvasir.conf"
    config.write_text("# a comment\n\nmax-value 2M\nthreads 1\nmax-clients 7\n")
    server = make_server("--config", config, "--max-clients", 9).start()
    with server.client() as c:
        assert c("CONFIG", "GET", "maxclients") == [b"maxclients", b"9"]
        assert c("CONFIG", "GET", "proto-max-bulk-len") == [b"proto-max-bulk-len", b"2097152"]
    config.write_text("port 1\nthreads 1\n")  # make_server gives --listen
    server = make_server("--config", config).start()
    assert server.stop() == 0
    config.write_text("threads 1\nnosuch 3\n")
    log = refused(make_server("--config", config), "nosuch")
    assert "line 2: " in log
    config.write_text("memory 12Q\n")
    refused(make_server("--config", config), "memory")
    config.write_text("config other.conf\n")
    refused(make_server("--config", config), "line 1: config: ")


def test_start_line(make_server):
    server = make_server("--threads", 1, "--io", "epoll").start()
    (line,) = [x for x in server.log().splitlines() if str(server.port) in x][:1]
    for text in ("kvasir", server.data, "epoll", "fsync"):
        assert text in server.log().splitlines()[0] + line, line


def test_unix_socket_of_a_dead_server_is_replaced(make_server):
    server = make_server().start()
    server.kill()
    assert os.path.exists(server.unix)
    server.start()
    with Client(server.unix) as c:
        assert c("PING") == "PONG"


@pytest.mark.parametrize("durability", ["fsync", "interval", "none"])
def test_durability_modes(make_server, durability):
    server = make_server("--durability", durability).start()
    with server.client() as c:
        assert c.pipeline([["SET", "k", "v"], ["INCR", "n"], ["GET", "k"]]) == ["OK", 1, b"v"]
        expected = {"fsync": [b"yes", b"always"], "interval": [b"yes", b"everysec"], "none": [b"no"]}[durability]
        assert c("CONFIG", "GET", "appendonly")[1] == expected[0]
        if durability != "none":
            assert c("CONFIG", "GET", "appendfsync")[1] == expected[1]
    assert server.stop() == 0
    server.start()
    with server.client() as c:
        assert c("GET", "k") == (None if durability == "none" else b"v")


OOM = "OOM command not allowed when used memory > 'maxmemory': delete keys or raise --memory"


def fill_until_refused(c, size, most):
    for first in range(0, most, 1000):
        for i in range(first, first + 1000):
            c.send(encode("SET", f"a key of some length, number {i}", "x" * size))
        failures = [r for r in (c.reply() for _ in range(1000)) if isinstance(r, Error)]
        if failures:
            assert {str(f) for f in failures} == {OOM}
            return first
    raise AssertionError("nothing was refused")


# Without a log values cannot leave memory; with one the keys alone must not fit: also where values lie in the same
# block as their key and leave, block by block, for a smaller one; 112 MiB are just enough for a wider hash table, if it
# is not looked what else grows. (Not under sanitizers: their own memory counts too.)
@pytest.mark.parametrize(
    "durability, size, cap, most",
    [("none", 2000, 96, 100000), ("fsync", 1, 96, 2000000), ("fsync", 32, 96, 2000000), ("fsync", 32, 112, 2000000)],
)
def test_a_cap_on_memory_refuses_writes(make_server, durability, size, cap, most):
    server = make_server("--memory", f"{cap}M", "--threads", 1, "--durability", durability).start()
    with server.client(timeout=60) as c:
        stored = fill_until_refused(c, size, most)
        key = "a key of some length, number 0"
        assert c("GET", key) == b"x" * size
        if durability == "fsync":
            assert c("SET", key, "y") == "OK"
            assert peak_rss_bytes(server) <= cap << 20
            assert size == 1 or info_number(c, "values_evicted") > stored / 4
        for first in range(0, stored, 1000):
            keys = [f"a key of some length, number {j}" for j in range(first, first + 1000)]
            assert c("DEL", *keys) == 1000

        def writes_again():
            c.send(encode("SET", "again", "v"))
            return c.reply() == "OK"

        wait_until(writes_again, 5, "room in memory")
