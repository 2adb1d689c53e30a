"""Records made from a seed: `load --generate`, `bench --workload cold` and `overwrite`."""

import json
import re
import signal
import socket
import subprocess
import threading

import pytest
from kvasir_server import BINARY

pytestmark = pytest.mark.kvasir
sanitize = pytest.mark.sanitize

N, SMALLEST, LARGEST, SEED = 1500, 8, 300, 42
SHAPE = ["--min-size", SMALLEST, "--max-size", LARGEST, "--seed", SEED]


class Records:
    """src/tools/bench_record.h, a second time."""

    @staticmethod
    def mix(x):
        x = (x + 0x9E3779B97F4A7C15) % 2**64
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    def __init__(self, number, seed=SEED):
        self.number = number
        self.base = self.mix(self.mix(seed) + number)

    def key(self):
        return b"".join(self.mix(self.base + i).to_bytes(8, "little") for i in (0, 1))

    def size(self):
        return SMALLEST + (self.mix(self.base + 2) * (LARGEST - SMALLEST + 1) >> 64)

    def value(self, generation=0):
        c = self.mix(self.mix(self.base + 3) + generation)
        words = [c >> 32 << 32 | generation] + [self.mix(c + j) for j in range(1, self.size() // 8 + 1)]
        return b"".join(word.to_bytes(8, "little") for word in words)[: self.size()]


def run(tool, port, *arguments):
    command = [BINARY, tool, "--connect", f"127.0.0.1:{port}", *map(str, arguments)]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)


def bench(port, workload, *arguments):
    """(exit code, the numbers)"""
    result = run("bench", port, "--workload", workload, "--json", "--seconds", 0.5, "--clients", 4, "--pipeline", 16, *arguments)
    assert result.stdout, result.stderr
    return result.returncode, json.loads(result.stdout)


@pytest.fixture
def loaded(server, c):
    """The server's port; it holds the records 0..N-1."""
    result = run("load", server.port, "--generate", N, *SHAPE)
    assert result.returncode == 0, result.stderr
    assert re.match(rb"stored %d keys, \d+ bytes in [\d.]+ s\n" % N, result.stdout)
    return server.port


@sanitize
def test_the_same_seed_makes_the_same_records(loaded, c):
    wanted = {record.key(): record.value() for record in map(Records, range(N))}
    found = c("RANGE", "-", "+")
    assert dict(zip(found[::2], found[1::2])) == wanted
    assert run("load", loaded, "--generate", N, *SHAPE, "--clients", 3, "--pipeline", 7).returncode == 0
    assert c("RANGE", "-", "+") == found
    assert run("load", loaded, "--generate", N, *SHAPE, "--seed", SEED + 1).returncode == 0
    assert c("DBSIZE") == 2 * N
    assert c("GET", Records(7, SEED + 1).key()) == Records(7, SEED + 1).value()


def test_stored_bytes_are_told(server, c):
    result = run("load", server.port, "--generate", 100, "--min-size", 50, "--key", "counter", "--clients", 1)
    assert result.stdout.startswith(b"stored 100 keys, 6600 bytes in ")
    assert c("KIDS", "") == [b"key:%012d" % i for i in range(100)]
    code, numbers = bench(server.port, "cold", "--keys", 100, "--min-size", 50, "--key", "counter", "--verify")
    assert code == 0 and numbers["ops"] > 100
    assert numbers["value_bytes"] == 50 * numbers["ops"]


@sanitize
@pytest.mark.parametrize("shape", [["--clients", 1, "--pipeline", 64], ["--clients", 64, "--pipeline", 1], ["--rate", 2000]])
def test_verify_accepts_what_was_loaded(loaded, shape):
    code, numbers = bench(loaded, "cold", "--keys", N, *SHAPE, "--verify", *shape)
    assert code == 0, numbers
    assert numbers["ops"] > 100
    assert (numbers["errors"], numbers["nils"], numbers["wrong"]) == (0, 0, 0)


@sanitize
@pytest.mark.parametrize("place", [0, 4, -1])
def test_verify_finds_a_changed_byte(loaded, c, place):
    record = Records(12)
    value = bytearray(record.value())
    value[place] ^= 1
    c("SET", record.key(), bytes(value))
    shape = ["--keys", 40, *SHAPE]
    code, numbers = bench(loaded, "cold", *shape, "--verify")
    assert code == 1
    assert numbers["errors"] == numbers["wrong"] > 0 and numbers["nils"] == 0
    assert numbers["first_error"] == "record 12 has another content"
    assert bench(loaded, "cold", *shape)[0] == 0  # contents are not looked at


def test_a_missing_or_cut_value_is_an_error(loaded, c):
    shape = ["--keys", 40, *SHAPE]
    c("SET", Records(12).key(), Records(12).value()[:-1])
    code, numbers = bench(loaded, "cold", *shape)
    assert code == 1 and numbers["errors"] == numbers["wrong"] > 0
    assert numbers["first_error"] == f"record 12 has {Records(12).size() - 1} bytes instead of {Records(12).size()}"
    c("DEL", Records(12).key())
    code, numbers = bench(loaded, "cold", *shape)
    assert code == 1 and numbers["errors"] == numbers["nils"] > 0
    assert numbers["first_error"] == "record 12 is missing"
    for other in (["--seed", SEED + 1], ["--key", "counter"]):
        code, numbers = bench(loaded, "cold", *shape, *other)
        assert code == 1 and numbers["nils"] >= numbers["ops"] > 0
    code, numbers = bench(loaded, "cold", *shape, "--max-size", LARGEST + 50)
    assert code == 1 and numbers["wrong"] > 0


@sanitize
def test_overwritten_records_are_fresh_and_verify(loaded, c):
    code, numbers = bench(loaded, "overwrite", "--keys", 40, *SHAPE)
    assert code == 0 and numbers["ops"] > 1000 and numbers["errors"] == 0
    seen = set()
    for record in map(Records, range(40)):
        value = c("GET", record.key())
        generation = int.from_bytes(value[:4], "little")
        seen.add(generation)
        assert value == record.value(generation)
    assert len(seen) > 20 and 0 not in seen
    assert c("DBSIZE") == N
    code, numbers = bench(loaded, "cold", "--keys", N, *SHAPE, "--verify")
    assert code == 0 and numbers["ops"] > 1000
    code, numbers = bench(loaded, "cold", "--keys", N, *SHAPE, "--verify", "--rate", 2000, "--beside", 2)
    assert code == 0 and numbers["beside_ops_per_second"] > 0


def test_cold_can_load_first(server, c):
    code, numbers = bench(server.port, "cold", "--load", "--keys", 500, *SHAPE, "--verify")
    assert code == 0 and numbers["ops"] > 500
    assert c("DBSIZE") == 500


@pytest.fixture
def answering():
    """Starts a server that answers every request with one line."""
    sockets = []

    def serve(connection, line):
        pending = b""
        with connection:
            while data := connection.recv(65536):
                pending += data
                requests = pending.count(b"*3\r\n$3\r\nSET\r\n")
                pending = pending[-12:] if requests == 0 else pending.rpartition(b"*3\r\n$3\r\nSET\r\n")[2][-12:]
                connection.sendall(line * requests)

    def accept(listener, line):
        try:
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0], line), daemon=True).start()
        except OSError:
            pass

    def start(line):
        listener = socket.create_server(("127.0.0.1", 0))
        sockets.append(listener)
        threading.Thread(target=accept, args=(listener, line), daemon=True).start()
        return listener.getsockname()[1]

    yield start
    for listener in sockets:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


@pytest.mark.parametrize("line, text", [
    (b"-OOM no memory is left\r\n", b"OOM no memory is left"),
    (b"+QUEUED\r\n", b"a SET was not answered with OK"),
    (b"$-1\r\n", b"a SET was not answered with OK"),
])  # fmt: skip
def test_every_reply_to_a_load_is_checked(answering, line, text):
    result = run("load", answering(line), "--generate", 100, "--min-size", 8)
    assert result.returncode == 2
    assert b"100 errors, the first: " + text in result.stderr
    assert result.stdout.startswith(b"stored 0 keys, 0 bytes in ")


def test_a_load_that_only_fails_ends_early(answering):
    result = run("load", answering(b"-OOM no memory is left\r\n"), "--generate", 10**9, "--min-size", 8)
    assert result.returncode == 2
    assert 10000 < int(re.search(rb"(\d+) errors", result.stderr)[1]) < 100000


@sanitize
def test_progress_and_interruption(server, c):
    command = [BINARY, "load", "--connect", f"127.0.0.1:{server.port}", "--generate", str(10**10), "--min-size", "8", "--key", "counter", "--clients", "1", "--pipeline", "1"]  # fmt: skip
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as load:
        line = load.stderr.readline()
        load.send_signal(signal.SIGINT)
        out, errors = load.communicate(timeout=30)
    assert re.fullmatch(rb"\[\.{30}\]   0%  \d+ keys  \d+ keys/s  [\d.]+ MB/s  \d+ s left\n", line)
    assert load.returncode == 2 and b"interrupted" in errors
    stored = int(re.match(rb"stored (\d+) keys", out)[1])
    assert 0 < stored <= c("DBSIZE")


@pytest.mark.parametrize("arguments, named", [
    ("load --generate 0", "--generate"),
    ("load --generate 5 --format tsv", "--format"),
    ("load --generate 5 --prefix p", "--prefix"),
    ("load --generate 5 --sep /", "--sep"),
    ("load --generate 5 --acked f", "--acked"),
    ("load --generate 5 file.tsv", "file.tsv"),
    ("load --min-size 5", "--min-size"),
    ("load --max-size 5", "--max-size"),
    ("load --seed 5", "--seed"),
    ("load --key uuid", "--key"),
    ("load --clients 5", "--clients"),
    ("load --pipeline 5", "--pipeline"),
    ("load --generate 5 --key text", "--key"),
    ("load --generate 5 --min-size 10 --max-size 9", "--min-size"),
    ("load --generate 5 --min-size 7", "--min-size"),
    ("load --generate 5 --max-size 1G", "--max-size"),
    ("load --generate 5 --clients 0", "--clients"),
    ("bench --workload get --min-size 5", "--min-size"),
    ("bench --workload get --max-size 5", "--max-size"),
    ("bench --workload set --key uuid", "--key"),
    ("bench --workload cold --value-size 5", "--value-size"),
    ("bench --workload overwrite --value-size 5", "--value-size"),
    ("bench --workload cold --protocol memcached", "--key"),
    ("bench --workload cold --min-size 10 --max-size 9", "--min-size"),
    ("bench --workload warm", "--workload"),
    ("bench --workload mixed:2", "--workload"),
    ("bench --workload mixed:90", "--workload"),
    ("bench --workload mixed:101%", "--workload"),
])  # fmt: skip
def test_what_does_not_go_together_is_named(arguments, named):
    tool, *rest = arguments.split()
    result = run(tool, 1, *rest)
    assert result.returncode == 2 and result.stdout == b""
    assert named.encode() in result.stderr
