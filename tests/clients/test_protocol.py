"""RESP itself: versions, inline commands, pipelines, requests in pieces, big values, and everything malformed."""

import os
import random
import select
import socket
import threading
import time

import pytest
from kvasir_client import Error, encode, wait_until

pytestmark = pytest.mark.sanitize

# ---- versions ----


def test_hello_2(c):
    fields = c("HELLO", "2")
    fields = dict(zip(fields[0::2], fields[1::2]))
    assert set(fields) == {b"server", b"version", b"proto", b"id", b"mode", b"role", b"modules"}
    assert fields[b"server"] == b"redis"
    assert fields[b"proto"] == 2
    assert fields[b"mode"] == b"standalone"
    assert fields[b"role"] == b"master"
    assert fields[b"modules"] == []
    assert fields[b"id"] == c("CLIENT", "ID")


def test_hello_3(server):
    with server.client() as c:
        assert c.raw("HELLO", "3", "SETNAME", "me").startswith(b"%7\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n")
        assert c("CLIENT", "GETNAME") == b"me"
        assert c("HELLO")[b"proto"] == 3
        assert isinstance(c("COMMAND", "DOCS", "get"), dict)
        assert isinstance(c("CONFIG", "GET", "maxmemory"), dict)
        assert c.raw("INFO", "server")[:1] in (b"=", b"$")
        assert c("HELLO", "2")[1::2][2] == 2
        assert c.raw("GET", "nothing-here") == b"$-1\r\n"


def test_resp3_is_per_connection(server):
    with server.client() as three, server.client() as two:
        three("HELLO", "3")
        assert three.raw("GET", "nothing-here") == b"_\r\n"
        assert two.raw("GET", "nothing-here") == b"$-1\r\n"


# ---- inline commands ----

INLINE = [
    (b"PING\r\n", b"+PONG\r\n"),
    (b"PING\n", b"+PONG\r\n"),
    (b"  PING  \r\n", b"+PONG\r\n"),
    (b"ping hello\r\n", b"$5\r\nhello\r\n"),
    (b'ECHO "a b"\r\n', b"$3\r\na b\r\n"),
    (b"ECHO 'a b'\r\n", b"$3\r\na b\r\n"),
    (b'ECHO "\\x41\\n\\r\\t\\a\\b\\"\\\\"\r\n', b'$8\r\nA\n\r\t\a\b"\\\r\n'),
    (b"ECHO 'it\\'s'\r\n", b"$4\r\nit's\r\n"),
    (b"ECHO 'a\\nb'\r\n", b"$4\r\na\\nb\r\n"),
    (b'ECHO ""\r\n', b"$0\r\n\r\n"),
    (b"ECHO\ttab\r\n", b"$3\r\ntab\r\n"),
    (b'ECHO "\\x4"\r\n', b"$2\r\nx4\r\n"),
    (b"\r\n\r\n\r\nPING\r\n", b"+PONG\r\n"),
    (b"NOSUCH a\r\n", b"-ERR unknown command 'NOSUCH', with args beginning with: 'a' \r\n"),
]


@pytest.mark.parametrize("request_bytes, reply", INLINE, ids=[repr(i[0]) for i in INLINE])
def test_inline(c, request_bytes, reply):
    c.send(request_bytes)
    assert c.raw_reply() == reply
    assert c("PING") == "PONG"


# ---- malformed: the error, then the connection closes ----

MALFORMED = [
    (b"*abc\r\n", b"-ERR Protocol error: invalid multibulk length\r\n"),
    (b"*99999999999999999999999\r\n", b"-ERR Protocol error: invalid multibulk length\r\n"),
    (b"*2147483648\r\n", b"-ERR Protocol error: invalid multibulk length\r\n"),
    (b"*1 \r\n", b"-ERR Protocol error: invalid multibulk length\r\n"),
    (b"*+1\r\n", b"-ERR Protocol error: invalid multibulk length\r\n"),
    (b"*1\r\nx\r\n", b"-ERR Protocol error: expected '$', got 'x'\r\n"),
    (b"*1\r\n*1\r\n", b"-ERR Protocol error: expected '$', got '*'\r\n"),
    (b"*1\r\n$x\r\n", b"-ERR Protocol error: invalid bulk length\r\n"),
    (b"*1\r\n$\r\n", b"-ERR Protocol error: invalid bulk length\r\n"),
    (b"*1\r\n$abc\r\n", b"-ERR Protocol error: invalid bulk length\r\n"),
    (b"*1\r\n$-1\r\n", b"-ERR Protocol error: invalid bulk length\r\n"),
    (b"*1\r\n$-2147483648\r\n", b"-ERR Protocol error: invalid bulk length\r\n"),
    (b"*1\r\n$9223372036854775808\r\n", b"-ERR Protocol error: invalid bulk length\r\n"),
    (b"*1\r\n$10737418240\r\n", b"-ERR Protocol error: invalid bulk length\r\n"),
    (b"*1\r\n$4 \r\nPING\r\n", b"-ERR Protocol error: invalid bulk length\r\n"),
    (b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$10737418240\r\n", b"-ERR Protocol error: invalid bulk length\r\n"),
    (b'ECHO "a\r\n', b"-ERR Protocol error: unbalanced quotes in request\r\n"),
    (b"ECHO 'a\r\n", b"-ERR Protocol error: unbalanced quotes in request\r\n"),
    (b'ECHO "a"b\r\n', b"-ERR Protocol error: unbalanced quotes in request\r\n"),
    (b"x" * (1 << 20), b"-ERR Protocol error: too big inline request\r\n"),
    (b"*" + b"1" * 70000, b"-ERR Protocol error: too big mbulk count string\r\n"),
    (b"*1\r\n$" + b"1" * 70000, b"-ERR Protocol error: too big bulk count string\r\n"),
]


@pytest.mark.parametrize("request_bytes, reply", MALFORMED, ids=[repr(i[0][:40]) for i in MALFORMED])
def test_malformed(server, c, request_bytes, reply):
    with server.client() as bad:
        try:
            bad.send(request_bytes)
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert bad.rest() in (reply, b"" if len(request_bytes) > 100000 else reply)
    assert c("PING") == "PONG"


@pytest.mark.parametrize("request_bytes, reply", MALFORMED[:17], ids=[repr(i[0][:40]) for i in MALFORMED[:17]])
def test_what_came_before_the_malformed_is_answered(server, c, request_bytes, reply):
    with server.client() as bad:
        bad.send(encode("SET", "before", "1") + encode("GET", "before") + request_bytes + encode("SET", "after", "1"))
        assert bad.rest() == b"+OK\r\n$1\r\n1\r\n" + reply
    assert c("EXISTS", "before", "after") == 1


@pytest.mark.kvasir
def test_more_arguments_than_allowed(server):
    with server.client() as bad:
        bad.send(b"*1048577\r\n")
        assert bad.rest() == b"-ERR Protocol error: invalid multibulk length\r\n"


@pytest.mark.parametrize("nothing", [b"*0\r\n", b"*-1\r\n", b"*-10\r\n", b"\r\n", b"*0\r\n" * 1000])
def test_empty_requests_are_skipped(c, nothing):
    c.send(nothing + encode("PING"))
    assert c.raw_reply() == b"+PONG\r\n"


def test_random_bytes(server, c):
    seed = random.randrange(1 << 32)
    print("seed", seed)
    rng = random.Random(seed)
    for _ in range(60):
        with server.client() as bad:
            try:
                for _ in range(rng.randrange(1, 6)):
                    bad.send(rng.randbytes(rng.randrange(1, 3000)))
                bad.sock.shutdown(socket.SHUT_WR)
                bad.rest()
            except OSError:
                pass
    c("SET", "k", "v")
    assert c("GET", "k") == b"v"


def test_a_client_that_leaves_in_the_middle(server, c):
    request = encode("SET", "half", "x" * 1000)
    for cut in (1, 3, 5, 10, 20, 30, 500, len(request) - 1):
        with server.client() as bad:
            bad.send(request[:cut])
    assert c("EXISTS", "half") == 0


# ---- pieces ----


def test_split_at_every_byte(c):
    request = (encode("SET", "k", "value\r\n$5\r\n") + encode("GET", "k") + b'ECHO "in line"\r\n'
               + encode("MGET", *["k"] * 12) + encode("PING"))  # fmt: skip
    reply = b"+OK\r\n$11\r\nvalue\r\n$5\r\n\r\n$7\r\nin line\r\n*12\r\n" + b"$11\r\nvalue\r\n$5\r\n\r\n" * 12 + b"+PONG\r\n"
    for cut in range(1, len(request)):
        c.send(request[:cut])
        if cut % 3 == 0:
            c.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # The other half may only come when the server has seen the first: it answers what is complete.
        select.select([c.sock], [], [], 0.001)
        c.send(request[cut:])
        assert b"".join(c.raw_reply() for _ in range(5)) == reply, cut


def test_one_byte_at_a_time(c):
    for byte in encode("SET", "key", "value") + b"PING\r\n":
        c.send(bytes([byte]))
    assert c.reply() == "OK"
    assert c.reply() == "PONG"


def exchange(c, data):
    """Sends and reads at the same time; returns nothing: the caller reads on. For more than the sockets' buffers hold."""
    sender = threading.Thread(target=c.send, args=(data,))
    sender.start()
    return sender


def test_pipeline_of_10000(c):
    sender = exchange(c, b"".join(encode("SET", f"k:{i}", i) + encode("GET", f"k:{i}") for i in range(10000)))
    for i in range(10000):
        assert c.reply() == "OK"
        assert c.reply() == str(i).encode()
    sender.join()
    assert c("DBSIZE") == 10000


def test_pipeline_of_errors_stays_in_step(c):
    commands = [["GET"], ["NOSUCH"], ["SET", "k", "v", "EX", "x"], ["PING"], ["GET", "k"], ["INCR", "k", "k"], ["SET", "k", "v"], ["INCR", "k"]]
    for reply in zip(*[iter(c.pipeline(commands * 200))] * len(commands)):
        kinds = [isinstance(r, Error) for r in reply]
        assert kinds == [True, True, True, False, False, True, False, True]


def test_a_hundred_thousand_arguments(c):
    names = [f"key:{i}" for i in range(50000)]
    pairs = [x for name in names for x in (name, name)]
    sender = exchange(c, encode("MSET", *pairs))
    assert c.reply() == "OK"
    sender.join()
    sender = exchange(c, encode("MGET", *names))
    assert c.reply() == [name.encode() for name in names]
    sender.join()
    sender = exchange(c, encode("DEL", *names))
    assert c.reply() == 50000
    sender.join()


def test_a_million_arguments_in_pieces(c):
    """Linear, not quadratic: this takes a second or so, or forever."""
    start = time.monotonic()
    data = encode("EXISTS", *["k"] * 1000000)
    sender = threading.Thread(target=lambda: [c.send(data[i : i + 16384]) for i in range(0, len(data), 16384)])
    sender.start()
    assert c.reply() == 0
    sender.join()
    assert time.monotonic() - start < 30


# ---- big values ----


@pytest.mark.parametrize("size", [1 << 14, (1 << 16) - 1, 1 << 16, 100001, 1 << 20, 16 << 20])
def test_big_values(c, size):
    value = os.urandom(size)
    sender = exchange(c, encode("SET", "big", value) + encode("STRLEN", "big") + encode("GET", "big"))
    assert c.reply() == "OK"
    assert c.reply() == size
    assert c.reply() == value
    sender.join()
    assert c("GETRANGE", "big", size - 5, -1) == value[-5:]
    assert c("APPEND", "big", "tail") == size + 4
    assert c("GETRANGE", "big", size - 1, -1) == value[-1:] + b"tail"
    assert c("SETRANGE", "big", 0, "HEAD") == size + 4
    assert c("GET", "big") == b"HEAD" + value[4:] + b"tail"


def test_many_big_values_in_one_pipeline(c):
    values = [os.urandom(300000 + i) for i in range(30)]
    sender = exchange(c, b"".join(encode("SET", f"b:{i}", v) for i, v in enumerate(values)) + encode("MGET", *[f"b:{i}" for i in range(30)]))
    assert [c.reply() for _ in values] == ["OK"] * 30
    assert c.reply() == values
    sender.join()


def test_a_big_value_arrives_slowly_while_others_are_served(server, c):
    value = os.urandom(2 << 20)
    data = encode("SET", "slow", value)
    with server.client() as slow:
        for start in range(0, len(data), 100000):
            slow.send(data[start : start + 100000])
            assert c("PING") == "PONG"
        assert slow.reply() == "OK"
    assert c("GET", "slow") == value


def test_binary_keys(c):
    keys = [bytes([a, b]) for a in (0, 10, 13, 32, 47, 127, 128, 255) for b in (0, 10, 13, 255)] + [b"\0", b"\xff" * 300]
    for key in keys:
        c("SET", key, key + b"!")
    assert c("MGET", *keys) == [key + b"!" for key in keys]
    assert set(c("KEYS", "*")) == set(keys)


# ---- ends ----


def test_quit(server):
    with server.client() as c:
        c.send(encode("SET", "k", "v") + encode("QUIT") + encode("SET", "k", "after"))
        assert c.rest() == b"+OK\r\n+OK\r\n"
    with server.client() as c:
        assert c("GET", "k") == b"v"


def test_half_close_still_gets_its_replies(server, c):
    with server.client() as half:
        half.send(encode("SET", "half", "v") + encode("PING"))
        half.sock.shutdown(socket.SHUT_WR)
        # Redis may drop the connection at once; what was executed must not be half an answer.
        assert half.rest() in (b"+OK\r\n+PONG\r\n", b"+OK\r\n", b"")


def test_clients_go_away(server, c):
    def connected():
        text = c("INFO", "clients").decode()
        return int(text.split("connected_clients:")[1].split("\r\n")[0])

    before = connected()
    others = [server.client() for _ in range(50)]
    wait_until(lambda: connected() == before + 50, 5, "50 clients")
    for other in others:
        other.send(b"*2\r\n$3\r\nGET")
        other.close()
    wait_until(lambda: connected() == before, 5, "the clients to leave")
