"""Commands whose replies depend on time, order or the server: what the transcripts can't hold."""

import fnmatch
import random
import re
import time

import pytest
import redis
from kvasir_client import Error, encode, wait_until
from kvasir_server import IS_REDIS

kvasir = pytest.mark.kvasir

# ---- expiry ----


def test_ttl_rounds_to_the_nearest_second(c):
    c("SET", "k", "v", "PX", 11900)  # the machine may be busy: 400 ms until it would be wrong
    assert c("TTL", "k") == 12
    c("SET", "k", "v", "PX", 11400)
    assert c("TTL", "k") == 11
    assert 10000 < c("PTTL", "k") <= 11400


def test_a_key_is_gone_when_its_time_comes(c):
    start = time.monotonic()
    c("SET", "k", "v", "PX", 60)
    c("SET", "stays", "v", "PX", 60000)
    assert c("GET", "k") == b"v" or time.monotonic() - start > 0.059
    wait_until(lambda: c("GET", "k") is None, 2, "the key's end")
    assert c("EXISTS", "k", "stays") == 1
    assert c("TTL", "k") == -2
    assert c("SET", "k", "new", "KEEPTTL") == "OK"
    assert c("TTL", "k") == -1


def test_a_key_is_not_gone_early(c):
    for _ in range(5):
        start = time.monotonic()
        c("SET", "k", "v", "PX", 50)
        while time.monotonic() - start < 0.045:
            seen, after = c("GET", "k"), time.monotonic()
            assert seen == b"v" or after - start >= 0.049


def test_expired_keys_leave_by_themselves(c):
    c.pipeline(["SET", f"gone:{i}", "v", "PX", 1 + i % 20] for i in range(2000))
    c("SET", "stays", "v")
    wait_until(lambda: c("DBSIZE") == 1, 10, "2,000 keys to expire")
    assert c("KEYS", "*") == [b"stays"]


def test_pexpireat_and_expiretime(c):
    now = int(time.time() * 1000)
    c("SET", "k", "v")
    assert c("PEXPIREAT", "k", now + 5000) == 1
    assert c("PEXPIRETIME", "k") == now + 5000
    assert c("EXPIRETIME", "k") == (now + 5000 + 500) // 1000
    assert 4000 < c("PTTL", "k") <= 5000


def test_writes_that_take_and_keep_the_expiry(c):
    for keep in (["APPEND", "k", "1"], ["INCR", "k"], ["INCRBYFLOAT", "k", "1"], ["SETRANGE", "k", "0", "1"],
                 ["DECRBY", "k", "1"], ["SET", "k", "1", "KEEPTTL"]):  # fmt: skip
        c("SET", "k", "1", "EX", 100)
        c(*keep)
        assert c("TTL", "k") == 100, keep
    for drop in (["SET", "k", "1"], ["MSET", "k", "1"], ["GETSET", "k", "1"], ["PERSIST", "k"], ["GETEX", "k", "PERSIST"]):
        c("SET", "k", "1", "EX", 100)
        c(*drop)
        assert c("TTL", "k") == -1, drop


@kvasir
def test_expiry_survives_a_restart(make_server):
    server = make_server().start()
    with server.client() as c:
        at = int(time.time() * 1000) + 100000
        c("SET", "k", "v", "PXAT", at)
        c("SET", "short", "v", "PX", 30)
        c("SET", "persisted", "v", "PX", 30000)
        c("PERSIST", "persisted")
    server.kill()
    time.sleep(0.05)  # the time between crash and restart counts too
    server.start()
    with server.client() as c:
        assert c("PEXPIRETIME", "k") == at
        assert c("GET", "short") is None
        assert c("TTL", "persisted") == -1


# ---- KEYS and SCAN ----

NAMES = ["", "a", "ab", "abc", "b", "bc", "c", "hello", "hallo", "hxllo", "h[llo", "h*llo", "a-c", "-", "^", "]", "[",
         "\\", "a\\b", "key:1", "key:10", "key:2", "x/y/z", "x/y", "é", "A", "Ab", "*", "?"]  # fmt: skip
PATTERNS = {
    "*": None, "?": None, "??": None, "a*": None, "*c": None, "*b*": None, "h?llo": None, "h*llo": None,
    "key:*": None, "key:?": None, "x/*": None, "x*z": None, "abc": None, "nosuch": None,
    "h[ae]llo": {"hallo", "hello"},
    "h[^e]llo": {"hallo", "hxllo", "h[llo", "h*llo"},
    "[a-c]": {"a", "b", "c"},
    "[c-a]": {"a", "b", "c"},
    "[^a-c]": {"-", "^", "]", "[", "\\", "A", "*", "?"},
    "[a\\-c]": {"a", "-", "c"},
    "[\\]]": {"]"},
    "[^\\]a-z]": {"-", "^", "[", "\\", "A", "*", "?"},
    "h\\*llo": {"h*llo"},
    "h\\[llo": {"h[llo"},
    "\\*": {"*"},
    "\\?": {"?"},
    "\\\\": {"\\"},
    "a\\\\b": {"a\\b"},
    "\\a": {"a"},
    "[b": {"b"},
    "[]": set(),
    "key:[0-9]": {"key:1", "key:2"},
    "key:[0-9][0-9]": {"key:10"},
    "*[^a-z]": {"-", "^", "]", "[", "\\", "key:1", "key:10", "key:2", "é", "A", "*", "?"},
    "a\\": set(),
    "": {""},
}  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
def test_glob(c, pattern):
    for name in NAMES:
        c("SET", name, "v")
    expected = PATTERNS[pattern]
    if expected is None:
        # The simple ones, matched bytewise by Python.
        expected = {n for n in NAMES if fnmatch.fnmatchcase(n.encode().decode("latin1"), pattern)}
    expected = {name.encode() for name in expected}
    assert set(c("KEYS", pattern)) == expected
    assert set(scan(c, "MATCH", pattern)) == expected


def scan(c, *options, cursor="0"):
    names = []
    while True:
        cursor, page = c("SCAN", cursor, *options)
        names += page
        if cursor == b"0":
            return names


@pytest.mark.sanitize
def test_a_pathological_pattern_takes_no_time(c):
    c("SET", "a" * 2000, "v")
    start = time.monotonic()
    assert c("KEYS", "a*" * 200 + "b") == []
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("count", [1, 3, 10, 100, 100000])
def test_scan_finds_every_key_once(c, count):
    names = {b"k:%d" % random.randrange(10**9) for _ in range(1000)}
    c.pipeline(["SET", name, "v"] for name in names)
    found = scan(c, "COUNT", count)
    assert set(found) == names
    assert len(found) == len(names)
    if count == 10:
        assert len(c("SCAN", "0", "COUNT", 10)[1]) < 100


def test_scan_match_count_type(c):
    c.pipeline(["SET", f"p:{i}", "v"] for i in range(500))
    c.pipeline(["SET", f"q:{i}", "v"] for i in range(500))
    assert set(scan(c, "MATCH", "p:*", "COUNT", 7)) == {b"p:%d" % i for i in range(500)}
    assert set(scan(c, "TYPE", "string", "MATCH", "q:1?")) == {b"q:1%d" % i for i in range(10)}
    assert scan(c, "TYPE", "hash") == []
    assert scan(c, "TYPE", "nosuch") == []


def test_scan_goes_on_with_another_pattern(c):
    """A position of a scan without a pattern lies before all that the pattern can match."""
    c.pipeline(["SET", f"{letter}{i}", "v"] for letter in "ap" for i in range(30))
    cursor, seen = c("SCAN", "0", "COUNT", "5")[0], set()
    while cursor != b"0":
        cursor, keys = c("SCAN", cursor, "MATCH", "p*", "COUNT", "7")
        seen.update(keys)
    assert all(key.startswith(b"p") for key in seen)
    assert len(seen) == 30 or IS_REDIS  # there some were before the position


def test_scan_while_others_write(server, c):
    """A key that is there from start to end is found, whatever else comes and goes."""
    stays = {b"stays:%d" % i for i in range(2000)}
    c.pipeline(["SET", name, "v"] for name in stays)
    c.pipeline(["SET", f"goes:{i}", "v"] for i in range(2000))
    found, cursor, turn = [], b"0", 0
    with server.client() as writer:
        while True:
            cursor, page = c("SCAN", cursor, "COUNT", 50)
            found += page
            if cursor == b"0":
                break
            writer.pipeline([["DEL", f"goes:{turn % 2000}"], ["SET", f"stays:{turn % 2000}", "w"]] * 5)
            writer.pipeline(["SET", f"comes:{turn}:{i}", "v"] for i in range(5))
            turn += 1
    assert stays <= set(found)


def test_several_scans_at_once(c):
    c.pipeline(["SET", f"k:{i}", "v"] for i in range(300))
    scans = [[b"0", [], False] for _ in range(20)]
    while not all(done for _, _, done in scans):
        for one in scans:
            if not one[2]:
                one[0], page = c("SCAN", one[0], "COUNT", 10)
                one[1] += page
                one[2] = one[0] == b"0"
    assert all(len(set(found)) == 300 for _, found, _ in scans)


@kvasir
def test_scan_is_in_order_and_refuses_strange_cursors(c):
    c.pipeline(["SET", f"k:{i:03}", "v"] for i in range(300))
    found = scan(c, "COUNT", 10)
    assert found == sorted(found)
    assert c.error("SCAN", "123456789") == "ERR invalid cursor"


def test_randomkey_reaches_every_key(c):
    c.pipeline(["SET", f"k:{i}", "v"] for i in range(20))
    assert {c("RANDOMKEY") for _ in range(2000)} == {b"k:%d" % i for i in range(20)}


# ---- the server about itself ----


def info(c, *sections):
    text = c("INFO", *sections).decode()
    return dict(line.split(":", 1) for line in text.splitlines() if line and not line.startswith("#"))


def test_info_has_the_usual_fields(server, c):
    fields = info(c)
    for name in """redis_version redis_mode os arch_bits process_id tcp_port uptime_in_seconds uptime_in_days
            connected_clients maxclients used_memory used_memory_human used_memory_rss maxmemory loading aof_enabled
            total_connections_received total_commands_processed instantaneous_ops_per_sec total_net_input_bytes
            total_net_output_bytes expired_keys evicted_keys keyspace_hits keyspace_misses role connected_slaves
            used_cpu_sys used_cpu_user redis_git_sha1 cluster_enabled""".split():
        assert name in fields, name
    assert fields["tcp_port"] == str(server.port)
    assert fields["role"] == "master"
    assert fields["loading"] == "0"
    assert int(fields["process_id"]) == server.process.pid
    assert re.fullmatch(r"7\.\d+\.\d+", fields["redis_version"])


def test_info_counts(c):
    before = info(c)
    c.pipeline([["SET", "k", "v", "EX", "100"], ["SET", "l", "v"], ["GET", "k"], ["GET", "none"], ["GET", "none"]])
    after = info(c)

    def change(name):
        return int(after[name]) - int(before[name])

    assert change("keyspace_hits") == 1
    assert change("keyspace_misses") == 2
    assert change("total_commands_processed") == 6  # INFO too
    assert after["db0"].startswith("keys=2,expires=1,avg_ttl=")
    assert int(after["used_memory"]) > 0
    assert int(after["used_memory_rss"]) > 1 << 20


def key_counts(c):
    fields = info(c, "stats")
    return int(fields["keyspace_hits"]), int(fields["keyspace_misses"])


KEY_COUNTS = [  # a command; the hits and misses it counts. a, b are there; x, y are not
    ("GET a", 1, 0), ("GET x", 0, 1), ("GET empty", 1, 0),
    ("MGET a", 1, 0), ("MGET a x y", 1, 2), ("MGET a a x", 2, 1), ("MGET x", 0, 1),
    ("STRLEN a", 1, 0), ("STRLEN x", 0, 1), ("STRLEN empty", 1, 0),
    ("GETRANGE a 0 -1", 1, 0), ("GETRANGE a 5 3", 1, 0), ("GETRANGE x 0 -1", 0, 1), ("GETRANGE a nan 1", 0, 0),
    ("SUBSTR a 0 0", 1, 0), ("SUBSTR x 0 0", 0, 1),
    ("TYPE a", 1, 0), ("TYPE x", 0, 1),
    ("TTL a", 1, 0), ("TTL b", 1, 0), ("TTL x", 0, 1), ("PTTL a", 1, 0), ("PTTL x", 0, 1),
    ("EXPIRETIME a", 1, 0), ("EXPIRETIME x", 0, 1), ("PEXPIRETIME b", 1, 0), ("PEXPIRETIME x", 0, 1),
    ("EXISTS a", 1, 0), ("EXISTS x", 0, 1), ("EXISTS a x y", 1, 2), ("EXISTS a a b x", 3, 1),
    ("TOUCH a", 1, 0), ("TOUCH x", 0, 1), ("TOUCH a x y", 1, 2),
    ("GETEX a", 1, 0), ("GETEX x", 0, 1), ("GETEX a EX 100", 1, 0), ("GETEX x EX 100", 0, 1),
    ("GETEX b PERSIST", 1, 0), ("GETEX x PERSIST", 0, 1), ("GETEX a EX", 0, 0),
    ("GETDEL a", 1, 0), ("GETDEL x", 0, 1), ("GETSET a 1", 1, 0), ("GETSET x 1", 0, 1),
    ("SET a 1 GET", 1, 0), ("SET x 1 GET", 0, 1), ("SET a 1 NX GET", 1, 0), ("SET x 1 NX GET", 0, 1),
    ("SET a 1 XX GET", 1, 0), ("SET x 1 XX GET", 0, 1), ("SET a 1 EX 0 GET", 0, 0),
    ("SET a 1", 0, 0), ("SET a 1 NX", 0, 0), ("SET x 1 XX", 0, 0), ("SETNX a 1", 0, 0), ("SETEX x 9 1", 0, 0),
    ("MSET a 1 x 1", 0, 0), ("MSETNX a 1 x 1", 0, 0), ("APPEND a 1", 0, 0), ("SETRANGE x 0 1", 0, 0),
    ("INCR a", 0, 0), ("INCR x", 0, 0), ("INCR b", 0, 0), ("DECRBY x 1", 0, 0), ("INCRBYFLOAT x 1", 0, 0),
    ("DEL a", 0, 0), ("DEL x", 0, 0), ("UNLINK a x", 0, 0),
    ("EXPIRE a 9", 0, 0), ("PEXPIREAT x 1", 0, 0), ("PERSIST b", 0, 0), ("PERSIST x", 0, 0),
    ("KEYS *", 0, 0), ("SCAN 0", 0, 0), ("RANDOMKEY", 0, 0), ("DBSIZE", 0, 0),
    ("GET", 0, 0), ("STRLEN a b", 0, 0), ("MGET", 0, 0), ("NOSUCH a", 0, 0),
]  # fmt: skip


def test_info_counts_the_keys_that_are_read(c):
    for command, *expected in KEY_COUNTS:
        c("FLUSHALL")
        c.pipeline([["SET", "a", "1"], ["SET", "b", "text", "EX", 100], ["SET", "empty", ""]])
        hits, misses = key_counts(c)
        c.pipeline([command.split()])
        after = key_counts(c)
        assert [after[0] - hits, after[1] - misses] == expected, command


def test_info_counts_a_key_that_has_expired_as_a_miss(c):
    c("SET", "k", "v", "PX", 1)
    time.sleep(0.02)
    hits, misses = key_counts(c)
    c.pipeline([["GET", "k"], ["STRLEN", "k"], ["EXISTS", "k"], ["SET", "k", "v", "GET"]])
    assert key_counts(c) == (hits, misses + 4)


def test_info_errorstats_and_reset(c):
    assert c("CONFIG", "RESETSTAT") == "OK"
    assert "errorstat_" not in c("INFO", "errorstats").decode()
    c.pipeline([["NOSUCH"], ["GET"], ["HELLO", "9"], ["SET", "k", "x"], ["INCR", "k"], ["AUTH", "nobody", "x"]])
    text = c("INFO", "errorstats").decode()
    assert text.startswith("# Errorstats\r\n")
    assert "errorstat_ERR:count=3\r\n" in text
    assert "errorstat_NOPROTO:count=1\r\n" in text
    assert "errorstat_WRONGPASS:count=1\r\n" in text
    assert info(c)["total_error_replies"] == "5"
    assert "# Errorstats" in c("INFO").decode()
    assert "cmdstat_incr:calls=1" in c("INFO", "commandstats").decode()
    assert c("CONFIG", "RESETSTAT") == "OK"
    assert info(c, "commandstats").keys() <= {"cmdstat_config", "cmdstat_config|resetstat", "cmdstat_info"}
    assert info(c, "errorstats") == {}


def test_info_commandstats_tell_calls_from_failures(c):
    """redis-py 4 and the Prometheus exporter read a line only when it has Redis's five fields."""
    assert c("CONFIG", "RESETSTAT") == "OK"
    c.pipeline([["SET", "k", "x"], ["INCR", "k"], ["INCR"], ["INCR", "n"], ["STRLEN"], ["NOSUCH"]])
    stats = {name: dict(f.split("=") for f in line.split(",")) for name, line in info(c, "commandstats").items()}
    for fields in stats.values():
        assert list(fields) == ["calls", "usec", "usec_per_call", "rejected_calls", "failed_calls"]

    def counts(name):
        return tuple(int(stats["cmdstat_" + name][field]) for field in ("calls", "rejected_calls", "failed_calls"))

    assert counts("set") == (1, 0, 0)
    assert counts("incr") == (2, 1, 1)
    assert counts("strlen") == (0, 1, 0)
    assert "cmdstat_nosuch" not in stats
    assert c("CONFIG", "RESETSTAT") == "OK"
    assert "cmdstat_strlen" not in info(c, "commandstats")


def test_info_sections(c):
    text = c("INFO", "server").decode()
    assert text.startswith("# Server\r\n")
    assert "# Clients" not in text
    text = c("INFO", "clients", "memory").decode()
    assert "# Clients\r\n" in text and "# Memory\r\n" in text and "# Server" not in text
    assert "# Keyspace" in c("INFO", "KEYSPACE").decode()
    assert c("INFO", "nosuch") == b""
    for section in ("all", "everything", "default"):
        assert "# Server\r\n" in c("INFO", section).decode()


@kvasir
def test_info_of_kvasir(c):
    c.pipeline(["SET", f"k{i}", "v"] for i in range(100))
    fields = info(c, "kvasir")
    for name in """durability io_backend threads flushes records_flushed records_per_flush flush_us_p50 flush_us_p99
            flush_us_max commit_lsn tail_lsn log_bytes held_replies loop_turns operations_per_turn
            system_calls""".split():
        assert name in fields, name
    assert fields["durability"] == "fsync"
    assert fields["io_backend"] in ("uring", "io_uring", "epoll")
    assert int(fields["flushes"]) > 0
    assert int(fields["records_flushed"]) >= 100
    assert int(fields["commit_lsn"]) > 0
    assert "kvasir_version" in info(c, "server")
    assert info(c, "server")["redis_version"] == "7.2.4"


def test_commands_that_wait_count_once(c):
    before = int(info(c)["total_commands_processed"])
    assert c.pipeline([["SET", "k", "v"], ["SAVE"], *[["PING"]] * 50]) == ["OK", "OK", *["PONG"] * 50]
    assert int(info(c)["total_commands_processed"]) - before == 53


def test_time(c):
    seconds, us = map(int, c("TIME"))
    assert abs(seconds + us / 1e6 - time.time()) < 5
    assert abs(c("LASTSAVE") - time.time()) < 100000


def test_command(c):
    count = c("COMMAND", "COUNT")
    assert count >= 56
    table = c("COMMAND")
    assert len(table) == count
    (get,) = c("COMMAND", "INFO", "get")
    assert get[:2] == [b"get", 2]
    assert get[3:6] == [1, 1, 1]
    assert set(get[2]) >= {"readonly", "fast"}
    (mset,) = c("COMMAND", "INFO", "MSET")
    assert mset[:2] == [b"mset", -3]
    assert mset[3:6] == [1, -1, 2]
    assert "write" in mset[2]
    one, none = c("COMMAND", "INFO", "set", "nosuch")
    assert one[0] == b"set" and one[1] == -3 and none is None
    docs = c("COMMAND", "DOCS", "get", "set")
    assert docs[0::2] == [b"get", b"set"]
    fields = dict(zip(docs[1][0::2], docs[1][1::2]))
    assert fields[b"group"] == b"string"
    assert b"summary" in fields and b"since" in fields
    assert len(c("COMMAND", "DOCS")) == 2 * count


def test_command_info_has_sets_in_resp3(server):
    with server.client() as c:
        c("HELLO", "3")
        raw = c.raw("COMMAND", "INFO", "time")  # of which Redis too has no tips, keys and subcommands
        assert raw.startswith(b"*1\r\n*10\r\n$4\r\ntime\r\n:1\r\n~")
        assert b"\r\n:0\r\n:0\r\n:0\r\n~" in raw and raw.endswith(b"~0\r\n~0\r\n")


def argument(described):
    """An argument that COMMAND DOCS describes, as nested tuples: name, type, token, flags, parts."""
    parts = [argument(part) for part in described.get(b"arguments", [])]
    return described[b"name"], described[b"type"], described.get(b"token"), sorted(described.get(b"flags", [])), parts


def words(described):
    """The fewest and the most words that may be typed for an argument."""
    parts = [words(part) for part in described.get(b"arguments", [])]
    flags, kind = described.get(b"flags", []), described[b"type"]
    assert kind in b"key string integer double pattern unix-time pure-token oneof block".split(), described
    assert bool(parts) == (kind in (b"oneof", b"block")) and (kind != b"pure-token" or b"token" in described), described
    assert described[b"name"] and described.get(b"token", b"X").isupper(), described
    least, most = 1 + (b"token" in described and kind != b"pure-token"), None
    if kind == b"oneof":
        least, most = min(part[0] for part in parts), max(part[1] for part in parts)
    elif kind == b"block":
        least, most = sum(part[0] for part in parts), sum(part[1] for part in parts)
    return 0 if "optional" in flags else least, 999 if "multiple" in flags else most or least


def test_command_docs_tell_the_arguments(server):
    key, value = (b"key", b"key", None, [], []), (b"value", b"string", None, [], [])
    condition = [(b"nx", b"pure-token", b"NX", [], []), (b"xx", b"pure-token", b"XX", [], [])]
    expiration = [
        (b"seconds", b"integer", b"EX", [], []),
        (b"milliseconds", b"integer", b"PX", [], []),
        (b"unix-time-seconds", b"unix-time", b"EXAT", [], []),
        (b"unix-time-milliseconds", b"unix-time", b"PXAT", [], []),
        (b"keepttl", b"pure-token", b"KEEPTTL", [], []),
    ]
    with server.client() as c:
        c("HELLO", "3")
        docs = c("COMMAND", "DOCS", "set", "mget", "dbsize")
    assert b"arguments" not in docs[b"dbsize"]
    assert [argument(a) for a in docs[b"mget"][b"arguments"]] == [(b"key", b"key", None, ["multiple"], [])]
    assert [argument(a) for a in docs[b"set"][b"arguments"]] == [
        key,
        value,
        (b"condition", b"oneof", None, ["optional"], condition),
        (b"get", b"pure-token", b"GET", ["optional"], []),
        (b"expiration", b"oneof", None, ["optional"], expiration),
    ]


@kvasir
def test_command_docs_fit_what_the_commands_take(server):
    with server.client() as c:
        c("HELLO", "3")
        docs, arities = c("COMMAND", "DOCS"), {row[0]: row[1] for row in c("COMMAND")}
    for name, doc in docs.items():
        counts = [words(a) for a in doc.get(b"arguments", [])]
        least, most = 1 + sum(count[0] for count in counts), 1 + sum(count[1] for count in counts)
        assert least == abs(arities[name]), (name, doc)
        assert (most == least) == (arities[name] > 0) or name == b"quit", (name, doc)


def test_config(c):
    assert c("CONFIG", "GET", "maxmemory") == [b"maxmemory", b"0"]
    assert c("CONFIG", "SET", "maxmemory", "1gb") == "OK"
    assert c("CONFIG", "GET", "maxmemory") == [b"maxmemory", b"1073741824"]
    assert c("CONFIG", "SET", "maxmemory", "0") == "OK"
    pairs = c("CONFIG", "GET", "max*")
    assert dict(zip(pairs[0::2], pairs[1::2]))[b"maxmemory"] == b"0"
    assert b"maxclients" in pairs
    pairs = c("CONFIG", "GET", "save", "appendonly")
    assert set(pairs[0::2]) == {b"save", b"appendonly"}
    everything = c("CONFIG", "GET", "*")
    assert len(everything) % 2 == 0 and b"port" in everything
    assert c("CONFIG", "RESETSTAT") == "OK"


def test_config_get_takes_redis_patterns(c):
    def names(*patterns):
        return sorted(c("CONFIG", "GET", *patterns)[0::2])

    assert names("MaxMemor?") == [b"maxmemory"]
    assert names("[^a-lo-z]axmemory") == [b"maxmemory"]  # fnmatch would know [!...] only
    assert names("[!m]axmemory") == [b"maxmemory"]  # '!' is a character like others
    assert names("max*\\memory") == [b"maxmemory"]
    assert names("*" * 500 + "xmemory-policy") == [b"maxmemory-policy"]
    assert names("nosuch*", "") == []


def test_config_set_is_all_or_nothing(c):
    (clients,) = c("CONFIG", "GET", "maxclients")[1:]
    try:
        assert c.error("CONFIG", "SET", "maxmemory", "5gb", "maxclients", "nonsense").startswith("ERR CONFIG SET failed")
        assert c("CONFIG", "GET", "maxmemory") == [b"maxmemory", b"0"]
        assert c("CONFIG", "GET", "maxclients") == [b"maxclients", clients]
    finally:
        c("CONFIG", "SET", "maxmemory", "0")


@kvasir
def test_config_set_says_what_is_wrong(c):
    failed = "ERR CONFIG SET failed (possibly related to argument '%s') - "
    assert c.error("CONFIG", "SET", "maxmemory", "1gb", "maxclients") == "ERR syntax error"
    assert c.error("CONFIG", "SET", "maxclients", "many") == failed % "maxclients" + "argument couldn't be parsed into an integer"
    for number in ("0", "-1"):
        text = c.error("CONFIG", "SET", "maxclients", number)
        assert re.fullmatch(re.escape(failed % "maxclients") + r"argument must be between 1 and \d+ inclusive", text)
    assert c.error("CONFIG", "SET", "maxmemory", "lots") == failed % "maxmemory" + "argument must be a memory value"
    text = c.error("CONFIG", "SET", "maxmemory", "31mb")
    assert re.fullmatch(re.escape(failed % "maxmemory") + r"the least with --threads [12] is 32M \(0: no cap\)", text)
    assert c.error("CONFIG", "SET", "databases", "4") == failed % "databases" + "can't set immutable config"


def test_config_set_refuses_a_name_twice(c):
    before = c("CONFIG", "GET", "max*")
    twice = "ERR CONFIG SET failed (possibly related to argument '%s') - duplicate parameter"
    assert c.error("CONFIG", "SET", "maxmemory", "64mb", "maxmemory", "128mb") == twice % "maxmemory"
    assert c.error("CONFIG", "SET", "maxmemory", "64mb", "maxclients", "9", "maxclients", "9") == twice % "maxclients"
    assert "Unknown option" in c.error("CONFIG", "SET", "nosuch", "1", "nosuch", "1")
    assert c("CONFIG", "GET", "max*") == before


def client_lines(c, *options):
    return [dict(field.split("=", 1) for field in line.split(" ")) for line in c("CLIENT", "LIST", *options).decode().splitlines()]


def test_client_list_and_info(server, c):
    with server.client() as other:
        other("CLIENT", "SETNAME", "the-other")
        ids = c("CLIENT", "ID"), other("CLIENT", "ID")
        assert ids[0] != ids[1]
        lines = {int(line["id"]): line for line in client_lines(c)}
        assert set(ids) <= set(lines)
        host, port = other.sock.getsockname()
        assert lines[ids[1]]["addr"] == f"{host}:{port}"
        assert lines[ids[1]]["laddr"] == f"127.0.0.1:{server.port}"
        assert lines[ids[1]]["name"] == "the-other"
        for field in "fd name age idle flags db cmd resp".split():
            assert field in lines[ids[1]], field
        assert lines[ids[0]]["cmd"] == "client|list"
        mine = dict(f.split("=", 1) for f in other("CLIENT", "INFO").decode().strip().split(" "))
        assert mine["id"] == str(ids[1]) and mine["cmd"] == "client|info"
        assert [line["id"] for line in client_lines(c, "ID", ids[1])] == [str(ids[1])]
        assert len(client_lines(c, "TYPE", "normal")) >= 2
        assert client_lines(c, "TYPE", "pubsub") == []
    wait_until(lambda: ids[1] not in {int(line["id"]) for line in client_lines(c)}, 5, "the closed client to leave the list")


def test_client_list_by_ids(server, c):
    with server.client() as other:
        ids = [c("CLIENT", "ID"), other("CLIENT", "ID")]
        assert [int(line["id"]) for line in client_lines(c, "ID", ids[1], 999999999, ids[0])] in (ids, ids[::-1])
        assert [int(line["id"]) for line in client_lines(c, "ID", ids[1], 7777777)] == ids[1:]
        assert client_lines(c, "ID", 999999999) == []


def test_client_setinfo(server, c):
    if IS_REDIS:
        return  # CLIENT SETINFO is of Redis 7.2, newer than Debian's
    assert c("CLIENT", "SETINFO", "LIB-NAME", "pytest") == "OK"
    assert c("CLIENT", "SETINFO", "lib-ver", "1.0") == "OK"
    assert "lib-name=pytest" in c("CLIENT", "INFO").decode()
    assert isinstance(Error(c.error("CLIENT", "SETINFO", "bogus", "x")), Error)


@pytest.mark.sanitize
@pytest.mark.parametrize("how", ["id", "addr", "old", "type"])
def test_client_kill(server2, c2, how):
    c, victims = c2, [server2.client() for _ in range(4)]
    for victim in victims:
        name = "%s:%d" % victim.sock.getsockname()
        victim("PING")  # until it is served, a connection may not be in the list
        if how == "id":
            assert c("CLIENT", "KILL", "ID", victim("CLIENT", "ID")) == 1
        elif how == "addr":
            assert c("CLIENT", "KILL", "ADDR", name) == 1
        elif how == "old":
            assert c("CLIENT", "KILL", name) == "OK"
    if how == "type":
        assert c("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes") >= 4
    for victim in victims:
        assert victim.at_end()
        victim.close()
    assert c("PING") == "PONG"


def test_client_kills_itself(server):
    with server.client() as c:
        me = c("CLIENT", "ID")
        assert c("CLIENT", "KILL", "ID", me, "SKIPME", "yes") == 0
        c.send(b"CLIENT KILL ID %d SKIPME no\r\n" % me)
        assert c.rest() == b":1\r\n"


REPLY_ON, REPLY_OFF, REPLY_SKIP = (encode("CLIENT", "REPLY", how) for how in ("ON", "OFF", "SKIP"))


@pytest.mark.parametrize("pieces", [False, True], ids=["together", "one by one"])
@pytest.mark.parametrize(
    "commands, answered",
    [
        ([REPLY_SKIP, "a", "b"], [b"b"]),
        ([REPLY_SKIP, REPLY_ON, "a"], ["OK", b"a"]),
        ([REPLY_SKIP, REPLY_SKIP, "a", "b"], [b"b"]),
        ([REPLY_SKIP, REPLY_OFF, "a", REPLY_ON, "b"], ["OK", b"b"]),
        ([REPLY_OFF, "a", REPLY_SKIP, "b", "c", REPLY_ON, "d"], ["OK", b"d"]),
        ([REPLY_SKIP, encode("bogus"), "a"], [b"a"]),
        ([REPLY_SKIP, encode("RESET"), "a"], [b"a"]),
        ([REPLY_OFF, encode("RESET"), "a"], ["RESET", b"a"]),
    ],
)
def test_client_reply(server, commands, answered, pieces):
    requests = [one if isinstance(one, bytes) else encode("ECHO", one) for one in commands]
    with server.client() as c:
        for piece in requests if pieces else [b"".join(requests)]:
            c.send(piece)
        assert [c.reply() for _ in answered] == answered
        assert c("PING") == "PONG"


def test_reset(server):
    with server.client() as c:
        assert c("HELLO", "3")[b"proto"] == 3
        c("CLIENT", "SETNAME", "x")
        assert c("RESET") == "RESET"
        assert c("CLIENT", "GETNAME") is None
        assert c.raw("GET", "none:" + "x" * 9) == b"$-1\r\n"


# ---- redis-py, as people use it ----


def test_redis_py(r):
    assert r.set("k", "v", ex=100, nx=True)
    assert r.get("k") == b"v"
    assert r.mset({"a": 1, "b": 2})
    assert r.mget("a", "b", "none") == [b"1", b"2", None]
    assert r.incr("n", 5) == 5
    assert r.incrbyfloat("f", 1.25) == 1.25
    assert r.ttl("k") == 100
    assert sorted(r.scan_iter(match="[ab]")) == [b"a", b"b"]
    assert r.info()["role"] == "master"
    assert r.delete("a", "b", "none") == 2
    assert r.dbsize() == 3
    with r.pipeline(transaction=False) as pipe:
        pipe.set("x", 1).incr("x").get("x")
        assert pipe.execute() == [True, 2, b"2"]
    with pytest.raises(redis.ResponseError, match="not an integer"):
        r.incr("k")
    assert r.client_list()
    assert r.config_get("maxmemory")
    assert r.command_count() >= 56
    assert r.type("k") == b"string"
    assert r.getex("k", px=5000) == b"v"
    assert r.time()[0] > 10**9


def test_redis_py_unix_socket(server):
    client = redis.Redis(unix_socket_path=server.unix)
    assert client.ping()
    client.set("k", "over unix")
    assert redis.Redis("127.0.0.1", server.port).get("k") == b"over unix"


# ---- the end ----


@kvasir
@pytest.mark.parametrize("how", [["SHUTDOWN"], ["SHUTDOWN", "NOSAVE"], ["SHUTDOWN", "SAVE"], ["SHUTDOWN", "NOW"]])
def test_shutdown(make_server, how):
    server = make_server().start()
    with server.client() as c:
        c("SET", "k", "v")
        from kvasir_client import encode

        c.send(encode(*how))
        assert c.rest() == b""
    assert server.process.wait(10) == 0
    server.start()
    with server.client() as c:
        assert c("GET", "k") == b"v"
    assert server.stop() == 0


@kvasir
def test_sigterm_keeps_what_was_answered(make_server):
    server = make_server().start()
    with server.client() as c:
        c.pipeline(["SET", f"k:{i}", i] for i in range(5000))
        assert server.stop() == 0
    server.start()
    with server.client() as c:
        assert c("DBSIZE") == 5000
        assert c("MGET", "k:0", "k:4999") == [b"0", b"4999"]
