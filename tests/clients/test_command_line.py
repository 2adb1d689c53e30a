"""The command line: one-shot client, loader, load generator, log printer, help, exit codes."""

import json
import os
import re
import subprocess

import pytest
from kvasir_server import BINARY

pytestmark = pytest.mark.kvasir
sanitize = pytest.mark.sanitize


def run(*arguments, stdin=b"", timeout=60):
    return subprocess.run(
        [BINARY, *map(str, arguments)], input=stdin, capture_output=True, timeout=timeout, check=False
    )  # fmt: skip


@pytest.fixture
def kv(server, c):
    """Runs a tool against the server."""

    def call(tool, *arguments, **named):
        return run(tool, "--connect", f"127.0.0.1:{server.port}", *arguments, **named)

    return call


TOOLS = ["server", "get", "put", "del", "ls", "load", "bench", "log", "check"]
USAGE_CODES = {"check": 3}  # its 2 means damage


@pytest.mark.parametrize("tool", TOOLS)
def test_help(tool):
    result = run(tool, "--help")
    assert result.returncode == 0
    assert b"usage" in result.stdout.lower()


def test_help_and_version():
    result = run("--help")
    assert result.returncode == 0
    for tool in TOOLS:
        assert tool.encode() in result.stdout
    assert re.match(rb"kvasir \d+\.\d+\.\d+", run("--version").stdout)
    result = run("nosuchtool")
    assert result.returncode == 2 and b"nosuchtool" in result.stderr
    assert run().returncode == 2


@pytest.mark.parametrize("tool", TOOLS)
def test_unknown_option_is_named(tool):
    result = run(tool, "--nosuch-option", "x")
    assert result.returncode == USAGE_CODES.get(tool, 2)
    assert b"nosuch-option" in result.stderr


@sanitize
def test_put_get_del(kv, c):
    assert kv("put", "a/b", "value").returncode == 0
    assert kv("get", "a/b").stdout == b"value"
    blob = os.urandom(3 << 20)
    assert kv("put", "blob", "-", stdin=blob).returncode == 0
    result = kv("get", "blob")
    assert (result.returncode, result.stdout) == (0, blob)
    result = kv("get", "none")
    assert (result.returncode, result.stdout) == (1, b"")
    assert kv("put", "empty", "").returncode == 0
    assert kv("get", "empty").stdout == b""
    assert kv("del", "a/b", "empty", "none").returncode == 0
    assert kv("get", "a/b").returncode == 1
    assert kv("del", "none").returncode == 1
    result = kv("put", "k" * 65537, "v")
    assert result.returncode == 2 and b"65536" in result.stderr
    assert kv("get").returncode == 2
    assert kv("put", "k").returncode == 2


def test_ls(kv, c):
    c.pipeline(["SET", f"p/{i:05}/x", "v"] for i in range(2500))
    assert kv("ls", "p").stdout.split() == [b"%05d" % i for i in range(2500)]
    assert kv("ls").stdout == b"p\n"
    assert kv("ls", "p/00001").stdout == b"x\n"
    assert kv("ls", "none").stdout == b""


def test_no_server():
    for tool in (["get", "k"], ["put", "k", "v"], ["ls"], ["load"], ["bench", "--seconds", "1"]):
        result = run(tool[0], "--connect", "127.0.0.1:1", *tool[1:])
        assert result.returncode == 2
        assert b"127.0.0.1:1" in result.stderr
        result = run(tool[0], "--port", "1", *tool[1:])
        assert result.returncode == 2
        assert b"127.0.0.1:1:" in result.stderr


def test_port(server, c):
    c("SET", "k", "v")
    assert run("get", "--port", server.port, "k").stdout == b"v"
    assert run("get", "--connect", server.port, "k").stdout == b"v"
    assert run("get", "--connect", f":{server.port}", "k").stdout == b"v"
    for wrong in ("", "0", "x", "123456", server.port + 65536, f"127.0.0.1:{server.port}"):
        result = run("get", "--port", wrong, "k")
        assert result.returncode == 2 and b"--port: " in result.stderr and b"--connect" not in result.stderr
    for wrong in ("0", "x", server.port + 65536):
        for address in (wrong, f":{wrong}", f"127.0.0.1:{wrong}"):
            result = run("get", "--connect", address, "k")
            assert result.returncode == 2 and b"--connect: " in result.stderr and b"--port" not in result.stderr
    assert run("get", "--connect", f"127.0.0.1: {server.port}", "k").returncode == 2


def test_the_last_of_listen_and_port_counts(make_server):
    server = make_server("--port", 1)
    server.options += ["--listen", f"127.0.0.1:{server.port}"]
    assert server.start().stop() == 0
    server.options = ["--listen", "127.0.0.1:1", "--port", str(server.port)]
    assert server.start().stop() == 0


@sanitize
def test_a_wrong_option_beside_a_file_with_an_address(tmp_path):
    for line in ("listen 127.0.0.1:7104", "port 7104"):
        (tmp_path / "config").write_text(line + "\n")
        result = run("server", "--config", tmp_path / "config", "--nonsense")
        assert result.returncode == 2 and result.stderr.count(b"\n") <= 2 and b"nonsense" in result.stderr, result.stderr


def test_durability_none_tells_of_a_log(make_server):
    server = make_server("--durability", "none").start()
    assert server.stop() == 0 and "warning" not in server.log()
    server.options = []
    server.start()
    with server.client() as c:
        c("SET", "k", "v")
    assert server.stop() == 0
    server.options = ["--durability", "none"]
    server.start()
    with server.client() as c:
        assert c("DBSIZE") == 0
    assert server.stop() == 0
    assert f"warning {server.data} holds a log" in server.log()


def test_bench_says_why_it_was_sent_away(make_server):
    server = make_server("--max-clients", 5).start()
    result = run("bench", "--connect", server.port, "--clients", 20, "--seconds", 1)
    assert result.returncode == 2
    assert b"closed a connection" in result.stderr and b"max number of clients reached" in result.stderr


DEB822 = b"""Package: bash
Version: 5.2
Description: GNU shell
 It is long.
 .
 Really.

Package: zsh
Version: 5.9
"""


@sanitize
def test_load_deb822(kv, c, tmp_path):
    assert kv("load", "--format", "deb822", "--prefix", "deb", stdin=DEB822).returncode == 0
    assert c("KIDS", "deb") == [b"bash", b"zsh"]
    assert c("GET", "deb/bash/Version") == b"5.2"
    assert c("GET", "deb/zsh/Version") == b"5.9"
    description = c("GET", "deb/bash/Description")
    assert description.startswith(b"GNU shell\n") and b"Really." in description
    (tmp_path / "catalogue").write_bytes(DEB822)
    acked = tmp_path / "acked"
    result = kv("load", "--format", "deb822", "--prefix", "two", "--acked", acked, tmp_path / "catalogue")
    assert result.returncode == 0
    assert re.search(rb"stored \d+ keys, \d+ bytes in [\d.]+ s", result.stderr + result.stdout)
    keys = acked.read_bytes().split()
    assert set(keys) == set(c("RANGE", "two/", "two0", "KEYS"))


@sanitize
def test_load_tsv_and_ndjson(kv, c):
    assert kv("load", "--format", "tsv", "--prefix", "t", stdin=b"a\t1\nb/c\ttwo words\n").returncode == 0
    assert c("MGET", "t/a", "t/b/c") == [b"1", b"two words"]
    lines = b'{"key": "a", "value": "1"}\n{"key": "b", "value": "\\u00e9\\n"}\n'
    assert kv("load", "--format", "ndjson", "--prefix", "j", stdin=lines).returncode == 0
    assert c("MGET", "j/a", "j/b") == [b"1", "é\n".encode()]
    assert kv("load", "--format", "bogus", stdin=b"").returncode == 2
    assert kv("load", "/nonexistent/file").returncode == 2


@pytest.mark.parametrize("text, format, code, keys", [
    (b"foo", "tsv", 1, 0),
    (b"[1]\n{}\n", "ndjson", 1, 0),
    (b"Version: 1\n", "deb822", 1, 0),
    (b"foo\nk\tv\n", "tsv", 0, 1),
    (b"", "tsv", 0, 0),
    (b"\n", "tsv", 0, 0),
])  # fmt: skip
def test_load_of_what_cannot_be_used(kv, c, text, format, code, keys):
    result = kv("load", "--format", format, stdin=text)
    assert result.returncode == code, result.stderr
    assert result.stdout.startswith(b"stored %d keys" % keys)
    assert (b"line 1: " in result.stderr) == (text.strip() != b"")
    assert c("DBSIZE") == keys


def test_load_many(kv, c):
    lines = b"".join(b"key/%d\tvalue-%d\n" % (i % 1000 * 100 + i // 1000, i) for i in range(100000))
    assert kv("load", "--format", "tsv", stdin=lines).returncode == 0
    assert c("DBSIZE") == 100000


@pytest.mark.parametrize("workload", ["get", "set", "insert", "mixed:0.5", "mixed:90%", "ycsb-a", "ycsb-b", "ycsb-c", "ycsb-d", "ycsb-e", "ycsb-f"])
def test_bench(kv, c, workload):
    result = kv("bench", "--json", "--load", "--keys", 2000, "--seconds", 2, "--clients", 4, "--pipeline", 8, "--workload", workload, "--verify")
    assert result.returncode == 0, result.stderr
    numbers = json.loads(result.stdout)
    assert numbers["errors"] == 0
    assert numbers["ops"] > 0
    if workload in ("get", "ycsb-c"):
        assert numbers["nils"] == 0
    assert {"mean", "p50", "p99", "max"} <= set(numbers["latency_us"])


def test_bench_beside(kv, c):
    result = kv("bench", "--json", "--load", "--keys", 1000, "--seconds", 2, "--clients", 4, "--rate", 5000, "--beside", 2, "--pipeline", 50)
    numbers = json.loads(result.stdout)
    assert result.returncode == 0 and numbers["errors"] == 0 and numbers["nils"] == 0
    assert numbers["ops"] >= 1000 and numbers["beside_ops_per_second"] > 0
    refused = kv("bench", "--beside", 2)
    assert refused.returncode == 2 and b"--rate" in refused.stderr


def test_bench_open_loop(kv, c):
    result = kv("bench", "--json", "--load", "--keys", 1000, "--seconds", 3, "--clients", 4, "--rate", 5000)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["ops_per_second"] == pytest.approx(5000, rel=0.1)


def test_log(make_server):
    server = make_server("--threads", 1).start()
    with server.client() as c:
        c("SET", "key", "a\tb\n\x00")
        c("SET", "timed", "v", "PXAT", 33177117420123)
        c("DEL", "key")
        c("DELTREE", "tree")
        c("SET", "tree/a", "1")
        c("DELTREE", "tree")
    assert server.stop() == 0
    result = run("log", server.data)
    assert result.returncode == 0, result.stderr
    lines = [line.split(b"\t") for line in result.stdout.splitlines()]
    lsns = [int(line[0]) for line in lines]
    assert lsns == sorted(set(lsns))
    found = [line[1:] for line in lines]
    assert [b"WRITE", b"key", b"a\\tb\\n\\x00"] in found
    assert [b"WRITE", b"timed", b"v", b"33177117420123"] in found
    assert any(line[:2] == [b"DELETE", b"key"] for line in found)
    assert any(line[:2] == [b"DELTREE", b"tree"] for line in found)
    rest = run("log", server.data, "--from", lsns[2]).stdout.splitlines()
    assert len(rest) == len(lines) - 2
    result = run("log", "/nonexistent/folder")
    assert result.returncode == 2 and b"/nonexistent/folder" in result.stderr
    result = run("log", os.path.dirname(server.data))
    assert result.returncode == 2 and result.stderr.count(b"has no log") == 1


def run_closed(closed, *arguments, **named):
    """Runs a tool without some of its standard streams: "<&-", ">&-", "2>&-"."""
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", BINARY, *map(str, arguments)],
        capture_output=True, timeout=60, check=False, **named,
    )  # fmt: skip


def test_closed_streams_of_get_and_put(server, c):
    """Nothing is written to the socket in their place, and what is lost is told."""
    c("SET", "k", "PING\r\n")
    for closed in (">&-", "<&- >&-"):
        result = run_closed(closed, "get", "--port", server.port, "k")
        assert result.returncode == 2 and b"stdout" in result.stderr
    for closed in ("<&-", "2>&-", "<&- 2>&-"):
        result = run_closed(closed, "get", "--port", server.port, "k")
        assert (result.returncode, result.stdout, result.stderr) == (0, b"PING\r\n", b"")
    result = run_closed("<&-", "put", "--port", server.port, "k", "-")
    assert result.returncode == 2 and b"stdin" in result.stderr
    assert c("GET", "k") == b"PING\r\n"


def test_closed_streams_of_load(server, c):
    load = ["load", "--port", server.port, "--format", "tsv"]
    result = run_closed("2>&-", *load, input=b"not a pair\nk\tv\n")
    assert result.returncode == 0 and result.stdout.startswith(b"stored 1 keys")
    assert run_closed(">&- 2>&-", *load, input=b"not a pair\nl\tv\n").returncode == 2
    assert c("MGET", "k", "l") == [b"v", b"v"]
    result = run_closed("<&-", *load)
    assert result.returncode == 2 and b"stdin" in result.stderr


@sanitize
def test_closed_streams_of_a_server(make_server):
    server = make_server("--threads", 1, prefix=["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"]).start()
    for fd in range(3):
        assert os.readlink(f"/proc/{server.process.pid}/fd/{fd}") == "/dev/null"
    with server.client() as c:
        c("SET", "k", "v")
    assert server.stop() == 0
    server.start()
    with server.client() as c:
        assert c("GET", "k") == b"v"
    assert server.stop() == 0
    assert run("check", server.data).returncode == 0
