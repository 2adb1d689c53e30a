"""Values that are only on disk: each costs one read, whatever asks for it; damage is one key's own."""

import glob
import os
import random
import signal
import threading

import pytest
from kvasir_client import Error, encode, wait_until
from kvasir_server import Server

pytestmark = pytest.mark.kvasir

VALUES = 60000
NUMBERS = 2000


def key(i):
    return b"key:%06d" % i


def value(i):
    return (b"value-%06d-" % i * 220)[: 1500 + i % 1000]


def number(i):
    return 10**18 + i


class Cold:
    """A server with many times more values than memory. fresh(n): keys that nobody has asked for yet."""

    def __init__(self, *options, values=VALUES, env=None):
        self.server = Server("--memory", "64M", *options, env=env).start()
        self.next = 0
        try:
            self.fill(values)
        except BaseException:
            self.server.destroy()
            raise

    def fill(self, values):
        with self.server.client() as c:
            for start in range(0, NUMBERS, 500):
                c.pipeline(("SET", b"number:%06d" % i, number(i)) for i in range(start, start + 500))
            for start in range(0, values, 200):
                assert set(c.pipeline(("SET", key(i), value(i)) for i in range(start, start + 200))) == {"OK"}
            # Some were not yet durable when their turn to leave memory came: they get another.
            for start in range(0, values // 2, 200):
                c.pipeline(("SET", b"later:%06d" % i, value(i)) for i in range(start, start + 200))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.destroy()

    def fresh(self, n):
        self.next += n
        assert self.next < VALUES // 4, "of the oldest quarter nearly all are cold; not of more"
        return list(range(self.next - n, self.next))

    def client(self):
        return self.server.client()


@pytest.fixture(scope="module", params=["uring", "epoll"])
def cold(request):
    cold = Cold("--threads", 1, "--io", request.param)
    yield cold
    alive = cold.server.process.poll() is None
    log = cold.server.log()
    code = cold.server.stop() if alive else cold.server.process.returncode
    cold.server.destroy()
    assert alive and code == 0, f"{code}:\n{log[-6000:]}"


@pytest.fixture
def c(cold):
    with cold.client() as client:
        yield client


def counters(c):
    """INFO's numbers about values on disk."""
    lines = c("INFO", "kvasir").decode().split("\r\n")
    return {name: int(text) for name, _, text in (line.partition(":") for line in lines) if text.isdigit()}


class Reads:
    """with Reads(c) as reads: ...; reads.count: reads of values meanwhile."""

    def __init__(self, c):
        self.c = c

    def __enter__(self):
        self.before = counters(self.c)
        return self

    def __exit__(self, *_):
        after = counters(self.c)
        self.count = after["cold_preads"] - self.before["cold_preads"]
        self.hits = after["cold_hits"] - self.before["cold_hits"]
        self.bytes = after["cold_bytes"] - self.before["cold_bytes"]
        self.submissions = after["read_submissions"] - self.before["read_submissions"]
        self.corrupt = after["cold_corrupt"] - self.before["cold_corrupt"]
        self.errors = after["cold_errors"] - self.before["cold_errors"]


    def assert_one_for_each(self, n):
        """One read for each of n keys. A few may have stayed in memory, which nothing tells."""
        assert n * 3 // 4 <= self.count <= n


def test_a_cold_get_is_exactly_one_read(cold, c):
    with Reads(c) as all_reads:
        for i in cold.fresh(200):
            with Reads(c) as reads:
                assert c("GET", key(i)) == value(i)
            assert reads.count == reads.hits <= 1
            if reads.count:
                assert len(value(i)) < reads.bytes < len(value(i)) + 2 * 4096
    all_reads.assert_one_for_each(200)
    assert counters(c)["cold_unused"] == 0


def test_a_value_that_is_read_again_stays_in_memory(cold, c):
    for i in cold.fresh(20):
        with Reads(c) as reads:
            assert [c("GET", key(i)) for _ in range(6)] == [value(i)] * 6
        assert reads.count <= 2


def test_a_pipeline_reads_at_once_and_answers_in_order(cold, c):
    keys = cold.fresh(64)
    with Reads(c) as reads:
        assert c.pipeline(("GET", key(i)) for i in keys) == [value(i) for i in keys]
    reads.assert_one_for_each(64)
    assert reads.submissions <= 8
    assert counters(c)["io_depth_max"] >= 16
    keys = cold.fresh(1000)
    with Reads(c) as reads:
        assert c.pipeline(("GET", key(i)) for i in keys) == [value(i) for i in keys]
    reads.assert_one_for_each(1000)
    assert counters(c)["cold_unused"] == 0


def test_a_pipeline_that_names_a_key_often_reads_it_once(cold, c):
    keys = cold.fresh(20)
    with Reads(c) as reads:
        for i in keys:
            assert c.pipeline([("GET", key(i))] * 20) == [value(i)] * 20
    reads.assert_one_for_each(20)


def test_a_command_that_waited_for_its_value_counts_its_keys_once(cold, c):
    def counts():
        lines = c("INFO", "stats").decode().split("\r\n")
        fields = dict(line.split(":", 1) for line in lines if ":" in line)
        return int(fields["keyspace_hits"]), int(fields["keyspace_misses"])

    keys = [key(i) for i in cold.fresh(18)]
    hits, misses = counts()
    with Reads(c) as reads:
        c("GET", keys[0])
        c("GETRANGE", keys[1], 0, 9)
        c("GETDEL", keys[2])
        c("GETSET", keys[3], "x")
        c("GETEX", keys[4])
        c("GETEX", keys[5], "EX", 1000)
        c("SET", keys[6], "x", "GET")
        c("MGET", "absent", *keys[7:12])
        c.pipeline(("GET", k) for k in keys[12:])
    reads.assert_one_for_each(18)
    assert counts() == (hits + 18, misses + 1)


def test_a_pipeline_of_all_kinds_keeps_its_order(cold, c):
    a, b, d, e = cold.fresh(4)
    replies = c.pipeline(
        [
            ("SET", "warm", "w"),
            ("GET", key(a)),
            ("GET", "warm"),
            ("GET", "absent"),
            ("SET", key(b), "new"),
            ("GET", key(b)),
            ("APPEND", key(d), "+"),
            ("GET", key(d)),
            ("NOSUCH",),
            ("GET",),
            ("GETSET", key(e), "x"),
            ("GET", key(e)),
            ("DEL", key(a)),
            ("GET", key(a)),
            ("PING",),
        ]
    )
    texts = [str(r) if isinstance(r, Error) else r for r in replies]
    assert texts[8].startswith("ERR unknown command") and texts[9].startswith("ERR wrong number")
    del texts[8:10]
    assert texts == (
        ["OK", value(a), b"w", None, "OK", b"new", len(value(d)) + 1, value(d) + b"+"]
        + [value(e), b"x", 1, None, "PONG"]
    )


def test_what_needs_no_value_reads_none(cold, c):
    a, b, d = cold.fresh(3)
    with Reads(c) as reads:
        assert c("STRLEN", key(a)) == len(value(a))
        assert c("EXISTS", key(a), key(b), "absent", key(a)) == 3
        assert c("TYPE", key(a)) == "string"
        assert c("TTL", key(a)) == -1
        assert c("SET", key(a), "x", "NX") is None
        assert c("SETNX", key(a), "x") == 0
        assert c("MSETNX", "other", "x", key(a), "x") == 0
        assert c("EXPIRE", key(a), 1000) == 1
        assert 990 <= c("TTL", key(a)) <= 1000
        assert c("PERSIST", key(a)) == 1
        assert c("EXPIRE", key(a), 1000) == 1
        assert c("SETRANGE", key(a), 5, "") == len(value(a))
        assert c("GETRANGE", key(a), 100000, -1) == b""
        assert c("RANGE", key(a), key(a) + b"\0", "KEYS") == [key(a)]
        assert c("SET", key(b), "y", "KEEPTTL") == "OK"
        assert c("DEL", key(d)) == 1
    assert reads.count == 0
    assert c("GET", key(a)) == value(a)  # although its newest record has no value
    assert 900 <= c("TTL", key(a)) <= 1000
    assert c.pipeline([("GET", key(b)), ("GET", key(d))]) == [b"y", None]


def test_writes_that_need_the_old_value(cold, c):
    a, b, d, e, f, g, h, k = cold.fresh(8)
    with Reads(c) as reads:
        assert c("APPEND", key(a), "abc") == len(value(a)) + 3
        assert c("SETRANGE", key(b), 1, "XY") == len(value(b))
        assert c("GETSET", key(d), "new") == value(d)
        assert c("SET", key(e), "new", "GET", "EX", 100) == value(e)
        assert c("GETDEL", key(f)) == value(f)
        assert c("GETEX", key(g), "EX", 100) == value(g)
        assert c("GETRANGE", key(h), 3, -3) == value(h)[3:-2]
        assert c.error("INCR", key(k)) == "ERR value is not an integer or out of range"
    reads.assert_one_for_each(8)
    expected = [value(a) + b"abc", value(b)[:1] + b"XY" + value(b)[3:], b"new", b"new", None, value(g)]
    assert [c("GET", key(i)) for i in (a, b, d, e, f, g)] == expected
    assert 90 <= c("TTL", key(g)) <= 100


def test_numbers(cold, c):
    with Reads(c) as reads:
        for i in range(0, NUMBERS, 20):
            name = b"number:%06d" % i
            assert c.pipeline([("INCR", name), ("DECRBY", name, 5), ("GET", name)]) == [
                number(i) + 1,
                number(i) - 4,
                b"%d" % (number(i) - 4),
            ]
            assert c("INCRBYFLOAT", b"number:%06d" % (i + 1), 1) == b"%d" % (number(i + 1) + 1)
    assert reads.count <= NUMBERS // 10


def test_walks_read_all_they_need_at_once(cold, c):
    keys = cold.fresh(100)
    with Reads(c) as reads:
        assert c("MGET", *[key(i) for i in keys], "absent") == [value(i) for i in keys] + [None]
    reads.assert_one_for_each(100)
    assert reads.submissions <= 8
    keys = cold.fresh(300)
    with Reads(c) as reads:
        pairs = c("RANGE", key(keys[0]), key(keys[-1] + 1))
    assert pairs == [x for i in keys for x in (key(i), value(i))]
    reads.assert_one_for_each(300)
    assert reads.submissions < 200  # as the depth allows
    with Reads(c) as reads:
        pairs = c("KIDS", "", "FROM", key(keys[0]), "LIMIT", 50, "VALUES")
    assert pairs == [x for i in keys[:50] for x in (key(i), value(i))]
    reads.assert_one_for_each(50)  # the walk before has left nothing behind
    i = keys[0]
    assert c("MGET", key(i), key(i), key(i)) == [value(i)] * 3


def test_a_walk_over_more_than_memory_is_refused(cold, c):
    with Reads(c) as reads:
        for command in (("RANGE", "-", "+"), ("RANGE", "-", "+", "REV"), ("KIDS", "", "VALUES")):
            assert c.error(*command).startswith("OOM the values of this command"), command
    assert reads.count < VALUES // 2  # given up before
    wait_until(lambda: counters(c)["io_depth_now"] == 0, what="the reads to end")
    pairs = c("RANGE", "key:", "key;", "LIMIT", 100, "REV")
    assert pairs == [x for i in range(VALUES - 1, VALUES - 101, -1) for x in (key(i), value(i))]
    assert len(c("RANGE", "-", "+", "KEYS")) >= VALUES // 2


def place_of(server, text):
    """(path, offset) of these bytes in the data folder; they must be there once."""
    places = []
    for path in glob.glob(os.path.join(server.data, "*.kv")):
        with open(path, "rb") as file:
            data = file.read()
        at = data.find(text)
        while at >= 0:
            places.append((path, at))
            at = data.find(text, at + 1)
    assert len(places) == 1, places
    return places[0]


def flip(path, offset):
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 0x10]))
        file.flush()
        os.fsync(file.fileno())


def test_a_flipped_byte_is_that_keys_error_only(cold, c):
    while True:
        a, b, d = cold.fresh(3)
        path, offset = place_of(cold.server, key(b) + value(b))
        flip(path, offset + 700)
        with Reads(c) as reads:
            replies = c.pipeline(("GET", key(i)) for i in (a, b, d))
        assert [replies[0], replies[2]] == [value(a), value(d)]
        if isinstance(replies[1], Error):
            break
        assert replies[1] == value(b)  # one of the few that are in memory
    assert str(replies[1]).startswith("ERR corrupt record")
    assert os.path.basename(path) in str(replies[1]) and f"offset {offset - 16}" in str(replies[1])
    assert reads.corrupt == 1
    for command in (
        ("APPEND", key(b), "x"),
        ("GETSET", key(b), "x"),
        ("INCR", key(b)),
        ("MGET", key(a), key(b)),
        ("RANGE", key(a), key(d)),
        ("GETDEL", key(b)),
    ):
        assert c.error(*command).startswith("ERR corrupt record"), command
    assert c("STRLEN", key(b)) == len(value(b)) and c("EXISTS", key(b)) == 1
    flip(path, offset + 700)
    assert c("GET", key(b)) == value(b)  # nothing was kept of the bad one
    flip(path, offset + 700)
    assert c("SET", key(b), "whole again") == "OK"
    assert c("GET", key(b)) == b"whole again"


@pytest.mark.parametrize("io", ["uring", "epoll"])
def test_a_read_error_is_one_answer(io):
    with Cold("--threads", 1, "--io", io, env={"KVASIR_FAULT": "read:3"}) as cold, cold.client() as c:
        keys = cold.fresh(20)
        with Reads(c) as reads:
            replies = [c.pipeline([("GET", key(i))])[0] for i in keys]
        assert reads.errors == 1
        (failed,) = [i for i, reply in zip(keys, replies) if isinstance(reply, Error)]
        error = str(replies.pop(keys.index(failed)))
        assert error.startswith("ERR") and "I/O error" in error and ".kv at offset" in error
        assert replies == [value(i) for i in keys if i != failed]
        assert c("GET", key(failed)) == value(failed)


def test_clients_that_leave_while_their_reads_are_under_way(cold, c):
    for _ in range(100):
        keys = random.sample(range(VALUES // 2), 50)
        client = cold.client()
        client.send(b"".join(encode("GET", key(i)) for i in keys) + encode("MGET", *map(key, keys[:20])))
        client.close()
    wait_until(lambda: counters(c)["io_depth_now"] == 0, what="the reads to end")
    i = cold.fresh(1)[0]
    assert c("GET", key(i)) == value(i)


def test_a_client_that_reads_slowly(cold, c):
    """More answers than its output may hold: its reading ahead stops and goes on."""
    keys = list(range(VALUES // 4, VALUES // 4 + 3000))
    with cold.client() as slow:
        slow.send(b"".join(encode("GET", key(i)) for i in keys))
        wait_until(lambda: counters(c)["io_depth_now"] == 0, what="the reads to end")
        assert [slow.reply() for _ in keys] == [value(i) for i in keys]


def test_reads_under_way_at_the_end():
    """SIGTERM: what was begun is answered, in order, and nothing else."""
    with Cold("--threads", 2, values=30000) as server, server.client() as c:
        c.send(b"".join(encode("GET", key(i)) for i in range(1000)))
        assert c.reply() == value(0)
        server.server.process.send_signal(signal.SIGTERM)
        for i in range(1, 1000):
            try:
                assert c.reply() == value(i)
            except (EOFError, ConnectionResetError):
                break
        assert server.server.process.wait(20) == 0, server.server.log()


def test_io_depth_is_a_limit():
    with Cold("--threads", 1, "--io-depth", 2, values=30000) as cold, cold.client() as c:
        assert c.pipeline(("GET", key(i)) for i in range(300)) == [value(i) for i in range(300)]
        assert c("MGET", *map(key, range(300, 400))) == [value(i) for i in range(300, 400)]
        numbers = counters(c)
        assert numbers["io_depth_max"] == numbers["io_depth"] == 2


@pytest.mark.parametrize("options", [("--io", "uring", "--threads", 2), ("--io", "epoll", "--threads", 2)])
def test_many_clients_against_a_model(options):
    failures = []

    def work(cold, seed):
        rng = random.Random(seed)
        mine = {key(i): value(i) for i in range(seed, VALUES, 4)}
        names = list(mine)
        try:
            with cold.client() as c:
                for _ in range(60):
                    commands, expected = [], []
                    for _ in range(50):
                        name = rng.choice(names)
                        kind = rng.randrange(6)
                        if kind < 3:
                            commands.append(("GET", name))
                            expected.append(mine[name])
                        elif kind == 3:
                            mine[name] += b"+"
                            commands.append(("APPEND", name, "+"))
                            expected.append(len(mine[name]))
                        elif kind == 4:
                            new = b"%d" % rng.randrange(10**9) * rng.randrange(1, 100)
                            commands.append(("GETSET", name, new))
                            expected.append(mine[name])
                            mine[name] = new
                        else:
                            some = [rng.choice(names) for _ in range(5)]
                            commands.append(("MGET", *some))
                            expected.append([mine[n] for n in some])
                    replies = c.pipeline(commands)
                    for command, got, wanted in zip(commands, replies, expected):
                        assert got == wanted, (command, got, wanted)
        except BaseException as error:
            failures.append(repr(error)[:500])

    with Cold(*options) as cold:
        threads = [threading.Thread(target=work, args=(cold, seed)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures, failures
        with cold.client() as c:
            assert counters(c)["cold_corrupt"] == counters(c)["cold_errors"] == 0
        assert cold.server.stop() == 0
