"""Several connections at once: atomicity, no lost updates, and a linearizability check."""

import random
import socket
import threading
import time

import pytest
from kvasir_client import Error, encode

pytestmark = pytest.mark.sanitize


def together(*functions):
    """Runs the functions in threads; raises the first failure."""
    failures = []

    def guarded(function):
        try:
            function()
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=guarded, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def until(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield


def test_incr_from_20_connections(server2, c2):
    def work():
        with server2.client() as c:
            for _ in range(5):
                replies = c.pipeline([["INCR", "n"], ["INCRBY", "m", 3]] * 50)
                assert replies[0::2] == sorted(set(replies[0::2]))

    together(*[work] * 20)
    assert c2("GET", "n") == b"5000"
    assert c2("GET", "m") == b"15000"


def test_setnx_has_one_winner(server2, c2):
    wins = []

    def work(me):
        with server2.client() as c:
            for i in range(100):
                if c("SET", f"lock:{i}", me, "NX"):
                    wins.append((i, me))

    together(*[lambda me=me: work(me) for me in range(8)])
    assert sorted(i for i, _ in wins) == list(range(100))
    for i, me in wins:
        assert c2("GET", f"lock:{i}") == str(me).encode()


def test_msetnx_is_all_or_nothing(server2, c2):
    wins = []

    def work(me):
        with server2.client() as c:
            for i in range(100):
                wins.append(c("MSETNX", f"{i}:a", me, f"{i}:b", me))

    together(*[lambda me=me: work(me) for me in range(6)])
    assert sum(wins) == 100
    for i in range(100):
        a, b = c2("MGET", f"{i}:a", f"{i}:b")
        assert a == b is not None


def test_mget_sees_no_half_mset(server2, c2):
    names = [f"m:{i}" for i in range(10)]
    c2("MSET", *[x for name in names for x in (name, "0")])

    def write(me):
        with server2.client() as c:
            for n, _ in enumerate(until(1.0)):
                order = random.sample(names, len(names))
                c.pipeline([["MSET", *[x for name in order for x in (name, f"{me}:{n}:{k}")]] for k in range(5)])

    def read():
        with server2.client() as c:
            for _ in until(1.0):
                for values in c.pipeline([["MGET", *names]] * 10):
                    assert len(set(values)) == 1, values

    together(*[lambda me=me: write(me) for me in range(3)], read, read, read)


def test_exists_and_del_of_several_are_atomic(server2, c2):
    def write():
        with server2.client() as c:
            for _ in until(0.7):
                assert c.pipeline([["MSET", "a", 1, "b", 1, "c", 1], ["DEL", "c", "a", "b"]]) == ["OK", 3]

    def read():
        with server2.client() as c:
            for _ in until(0.7):
                for n in c.pipeline([["EXISTS", "a", "b", "c"]] * 10):
                    assert n in (0, 3)

    together(write, read, read)


def test_append_loses_nothing(server2, c2):
    def work(me):
        with server2.client() as c:
            for _ in range(4):
                c.pipeline([["APPEND", "k", me]] * 50)

    together(*[lambda me=me: work(me) for me in "abcdefgh"])
    value = c2("GET", "k").decode()
    assert {me: value.count(me) for me in "abcdefgh"} == {me: 200 for me in "abcdefgh"}


def test_getdel_gives_a_value_to_one(server2, c2):
    c2.pipeline(["SET", f"k:{i}", i] for i in range(500))
    got = []

    def work():
        with server2.client() as c:
            got.extend(value for value in c.pipeline(["GETDEL", f"k:{i}"] for i in range(500)) if value)

    together(*[work] * 6)
    assert sorted(map(int, got)) == list(range(500))


def test_big_values_are_never_torn(server2, c2):
    def write(me):
        with server2.client() as c:
            for n, _ in enumerate(until(1.0)):
                c("SET", "big", bytes([97 + (me * 7 + n) % 26]) * random.randrange(1, 200000))

    def read():
        with server2.client() as c:
            for _ in until(1.0):
                value = c("GET", "big")
                assert value is None or value == value[:1] * len(value)

    together(*[lambda me=me: write(me) for me in range(2)], read, read)


def test_your_own_writes_are_there(server2, c2):
    def work(me):
        with server2.client() as c, server2.client() as d:
            for i in range(150):
                c("SET", f"own:{me}", i)
                assert d("GET", f"own:{me}") == str(i).encode()
                c("DEL", f"own:{me}")
                assert d("GET", f"own:{me}") is None

    together(*[lambda me=me: work(me) for me in range(6)])


class History:
    """Operations on one register, with the times between which each took effect."""

    def __init__(self):
        self.operations = []

    def run(self, c, kind, *command):
        start = time.monotonic_ns()
        reply = c(*command)
        self.operations.append((start, time.monotonic_ns(), kind, command, reply))


def linearizable(operations):
    """True if some order of the operations explains every reply (Wing & Gong's search, with memory of dead ends)."""
    operations = sorted(operations)
    n = len(operations)
    seen = set()
    stack = [(0, None)]
    while stack:
        done, value = stack.pop()
        if done == (1 << n) - 1:
            return True
        if (done, value) in seen:
            continue
        seen.add((done, value))
        first_end = min(end for i, (_, end, _, _, _) in enumerate(operations) if not done >> i & 1)
        for i, (start, _, kind, command, reply) in enumerate(operations):
            if done >> i & 1:
                continue
            if start > first_end:
                break
            if kind == "get":
                if reply == value:
                    stack.append((done | 1 << i, value))
            elif kind == "set":
                stack.append((done | 1 << i, command[2]))
            elif kind == "getset":
                if reply == value:
                    stack.append((done | 1 << i, command[2]))
            elif kind == "del":
                if reply == (value is not None):
                    stack.append((done | 1 << i, None))
            elif kind == "setnx":
                if (reply == 1) == (value is None):
                    stack.append((done | 1 << i, command[2] if value is None else value))
    return False


def test_the_checker_itself():
    assert linearizable([(0, 9, "set", ("SET", "k", b"1"), "OK"), (1, 5, "get", ("GET", "k"), None), (6, 8, "get", ("GET", "k"), b"1")])
    assert not linearizable([(0, 9, "set", ("SET", "k", b"1"), "OK"), (1, 5, "get", ("GET", "k"), b"1"), (6, 8, "get", ("GET", "k"), None)])


def test_linearizable(server2, c2):
    seed = random.randrange(1 << 32)
    print("seed", seed)
    rng = random.Random(seed)
    for round_number in range(25):
        key, history = f"r:{round_number}", History()

        def work(me, seed):
            mine = random.Random(seed)
            with server2.client() as c:
                for i in range(8):
                    value = b"%d:%d" % (me, i)
                    kind = mine.choice(["get", "get", "get", "set", "getset", "del", "setnx"])
                    command = {"get": ("GET", key), "set": ("SET", key, value), "getset": ("GETSET", key, value),
                               "del": ("DEL", key), "setnx": ("SETNX", key, value)}[kind]  # fmt: skip
                    history.run(c, kind, *command)

        together(*[lambda me=me, s=rng.random(): work(me, s) for me in range(5)])
        assert linearizable(history.operations), sorted(history.operations)


def test_flushall_takes_all_at_once(server2, c2):
    names = [f"f:{i}" for i in range(50)]

    def write():
        with server2.client() as c:
            for _ in until(0.7):
                assert c.pipeline([["MSET", *[x for name in names for x in (name, "v")]], ["FLUSHALL"]]) == ["OK", "OK"]

    def read():
        with server2.client() as c:
            for _ in until(0.7):
                reply = c("MGET", *names)
                assert not isinstance(reply, Error)
                assert len(set(reply)) == 1

    together(write, read, read)


def pings(server, stop):
    """A light connection: one small request at a time, until told to stop. Returns how many."""
    count = 0
    with server.client() as c:
        while not stop.is_set():
            assert c("PING") == "PONG"
            count += 1
    return count


def test_pipelines_beside_a_light_connection_stay_in_order(server2, c2):
    stop = threading.Event()

    def heavy(me):
        with server2.client() as c:
            for _ in range(4):
                replies = c.pipeline([["INCR", f"count:{me}"], ["SET", f"value:{me}", "x" * 200], ["GET", f"count:{me}"]] * 700)
                assert replies[2::3] == [b"%d" % n for n in replies[0::3]]

    def all_heavy():
        try:
            together(*[lambda me=me: heavy(me) for me in range(6)])
        finally:
            stop.set()

    together(all_heavy, lambda: pings(server2, stop))
    assert [c2("GET", f"count:{me}") for me in range(6)] == [b"2800"] * 6


def test_a_pipeline_that_ends_beside_a_light_connection_is_answered_in_full(server2):
    stop = threading.Event()

    def send_and_end():
        try:
            for _ in range(5):
                with server2.client() as c:
                    c.send(encode("SET", "k", "v" * 500) * 1000 + b"*1\r\n$4\r\nPI")  # the last one never ends
                    c.sock.shutdown(socket.SHUT_WR)
                    assert [c.reply() for _ in range(1000)] == ["OK"] * 1000
                    with pytest.raises(EOFError):
                        c.reply()
        finally:
            stop.set()

    together(send_and_end, lambda: pings(server2, stop))


def test_pipelines_that_are_cut_off_beside_a_light_connection(server2, c2):
    stop = threading.Event()

    def cut_off():
        try:
            for i in range(30):
                with server2.client() as c:
                    c.send(encode("INCR", "n") * 3000)
                    if i % 2:  # a reset instead of an end
                        c.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        finally:
            stop.set()

    together(cut_off, cut_off, lambda: pings(server2, stop))
    assert c2("PING") == "PONG"
    assert 0 <= int(c2("GET", "n") or 0) <= 2 * 30 * 3000


def test_client_list_while_clients_come_and_go(server2, c2):
    def come_and_go():
        for _ in until(0.7):
            with server2.client() as c:
                assert c("PING") == "PONG"

    def look():
        with server2.client() as c:
            for _ in until(0.7):
                for line in c("CLIENT", "LIST").decode().splitlines():
                    fields = dict(field.split("=", 1) for field in line.split(" "))
                    assert int(fields["fd"]) > 2 and int(fields["age"]) < 10000 and int(fields["idle"]) < 10000

    together(come_and_go, come_and_go, look, look)
