"""KIDS, RANGE and DELTREE: kvasir's own commands, against a model made of a Python dict."""

import random
import time

import pytest
from kvasir_client import encode
from test_concurrency import together, until

pytestmark = [pytest.mark.kvasir, pytest.mark.sanitize]


# ---- the model ----


def model_kids(store, path, start=None, limit=None, values=False):
    prefix = path if path == b"" or path.endswith(b"/") else path + b"/"
    names = {key[len(prefix) :].split(b"/", 1)[0] for key in store if key.startswith(prefix)}
    names = sorted(name for name in names if start is None or name >= start)[:limit]
    return [x for name in names for x in (name, store.get(prefix + name))] if values else names


def model_range(store, low, high, limit=None, rev=False, keys=False):
    inside = sorted((k for k in store if (low == b"-" or k >= low) and (high == b"+" or k < high)), reverse=rev)[:limit]
    return inside if keys else [x for key in inside for x in (key, store[key])]


def model_deltree(store, path):
    gone = [k for k in store if path == b"" or k == path or k.startswith(path + b"/")]
    for key in gone:
        del store[key]
    return len(gone)


# ---- by hand ----

DEBIAN = {
    b"deb/bash/Depends": b"1", b"deb/bash/Version": b"2", b"deb/bash-completion/Version": b"3", b"deb/bash": b"node",
    b"deb/lib/a": b"4", b"deb/lib.so/a": b"5", b"deb/a+b/x": b"6", b"deb/a/x": b"7", b"deb/a0/x": b"8", b"deb/a!": b"9",
    b"deb": b"root", b"debx": b"10", b"deb-x/y": b"11", b"other": b"12", b"/lead/ing": b"13", b"deb//empty": b"14",
    b"deb/a-/x": b"15", b"deb/a-b/x": b"16", b"deb/a-/": b"17",
}  # fmt: skip


@pytest.fixture
def debian(c):
    c("MSET", *[x for pair in DEBIAN.items() for x in pair])
    return c


def test_kids(debian):
    c = debian
    assert c("KIDS", "deb/bash") == [b"Depends", b"Version"]
    assert c("KIDS", "deb/bash", "VALUES") == [b"Depends", b"1", b"Version", b"2"]
    kids = [b"", b"a", b"a!", b"a+b", b"a-", b"a-b", b"a0", b"bash", b"bash-completion", b"lib", b"lib.so"]
    assert c("KIDS", "deb") == kids
    assert c("KIDS", "deb/") == kids
    assert c("KIDS", "deb", "LIMIT", 3) == kids[:3]
    assert c("KIDS", "deb", "FROM", "bash") == kids[7:]
    assert c("KIDS", "deb", "FROM", "bash\0") == kids[8:]
    assert c("KIDS", "deb", "FROM", "a-", "LIMIT", 2) == [b"a-", b"a-b"]
    assert c("KIDS", "deb", "LIMIT", 2, "VALUES", "FROM", "bas") == [b"bash", b"node", b"bash-completion", None]
    assert c("KIDS", "") == [b"", b"deb", b"deb-x", b"debx", b"other"]
    assert c("KIDS", "", "VALUES") == [b"", None, b"deb", b"root", b"deb-x", None, b"debx", b"10", b"other", b"12"]
    assert c("KIDS", "nothing") == []
    assert c("KIDS", "other") == []
    assert c("KIDS", "deb", "LIMIT", 0) == []
    assert c("kids", "deb", "from", "lib", "limit", "1", "values") == [b"lib", None]
    assert c("KIDS", "/") == [b"lead"]


def test_kids_follow_deletes(debian):
    c = debian
    c("DEL", "deb/bash", "deb/bash/Depends")
    assert c("KIDS", "deb/bash") == [b"Version"]
    c("DEL", "deb/bash/Version")
    assert b"bash" not in c("KIDS", "deb")
    assert b"bash-completion" in c("KIDS", "deb")
    c("SET", "deb/bash/Depends", "x", "PX", 1)
    while c("EXISTS", "deb/bash/Depends"):
        pass
    assert b"bash" not in c("KIDS", "deb")


def test_kids_pages(c):
    names = sorted({b"%s%d" % (random.choice([b"a", b"a-", b"a.b", b"x/y", b"x"]), random.randrange(500)) for _ in range(800)})
    c.pipeline(["SET", b"p/" + name + random.choice([b"", b"/deep", b"/deep/er"]), "v"] for name in names)
    expected = sorted({name.split(b"/")[0] for name in names})
    found, start = [], b""
    while page := c("KIDS", "p", "FROM", start, "LIMIT", 7):
        assert page[0] >= start
        found += page
        start = page[-1] + b"\0"
    assert found == expected


def test_kids_of_long_names_take_no_time(c):
    """Each beginning of a name that is followed by a byte below '/' may be a name too, with its keys further on."""
    length = 60000
    names = [b"%c%c" % (33 + i % 14, 33 + i // 14) + b"-" * length for i in range(150)]
    shorter = [b"!", names[20][:1000], names[20][:1001], names[20][:40000]]
    c.pipeline(["SET", b"p/" + name, "v"] for name in names)
    c.pipeline(["SET", b"p/" + name + b"/x", "v"] for name in shorter)
    start = time.monotonic()
    assert c("KIDS", "p") == sorted(names + shorter)
    assert time.monotonic() - start < 5
    assert c("KIDS", "p", "FROM", names[20][:1001], "LIMIT", 3) == sorted([*shorter[2:], names[20]])


@pytest.mark.parametrize(
    "command, error",
    [
        (["KIDS"], "ERR wrong number of arguments for 'kids' command"),
        (["KIDS", "p", "LIMIT"], "ERR syntax error"),
        (["KIDS", "p", "FROM"], "ERR syntax error"),
        (["KIDS", "p", "BOGUS"], "ERR syntax error"),
        (["KIDS", "p", "LIMIT", "x"], "ERR value is not an integer or out of range"),
        (["KIDS", "p", "LIMIT", "1.5"], "ERR value is not an integer or out of range"),
        (["KIDS", "p", "LIMIT", "-1"], "ERR LIMIT can't be negative"),
        (["RANGE"], "ERR wrong number of arguments for 'range' command"),
        (["RANGE", "a"], "ERR wrong number of arguments for 'range' command"),
        (["RANGE", "a", "b", "LIMIT"], "ERR syntax error"),
        (["RANGE", "a", "b", "BOGUS"], "ERR syntax error"),
        (["RANGE", "a", "b", "LIMIT", ""], "ERR value is not an integer or out of range"),
        (["RANGE", "a", "b", "LIMIT", "-1"], "ERR LIMIT can't be negative"),
        (["DELTREE"], "ERR wrong number of arguments for 'deltree' command"),
        (["DELTREE", "a", "b"], "ERR wrong number of arguments for 'deltree' command"),
    ],
)
def test_tree_errors(c, command, error):
    assert c.error(*command) == error


def test_range(debian):
    c = debian
    for low in (b"-", b"deb", b"deb/a", b"deb/bash/", b"z"):
        for high in (b"+", b"deb", b"deb0", b"deb/b", b"a"):
            for rev in (False, True):
                for limit in (None, 0, 1, 3, 100):
                    for keys in (False, True):
                        options = ["REV"] * rev + ["KEYS"] * keys + (["LIMIT", limit] if limit is not None else [])
                        expected = model_range(DEBIAN, low, high, limit, rev, keys)
                        assert c("RANGE", low, high, *options) == expected, (low, high, options)
    assert c("range", "deb/bash", "deb/bash0", "limit", 1, "keys") == [b"deb/bash"]


def test_deltree(debian):
    c = debian
    assert c("DELTREE", "deb/bash") == 3
    assert c("KIDS", "deb/bash") == []
    assert c("EXISTS", "deb/bash", "deb/bash-completion/Version", "deb/bash/Depends") == 1
    assert c("DELTREE", "deb/bash") == 0
    assert c("DELTREE", "nothing") == 0
    store = dict(DEBIAN)
    model_deltree(store, b"deb/bash")
    assert c("DELTREE", "deb") == model_deltree(store, b"deb")
    assert c("RANGE", "-", "+", "KEYS") == sorted(store)
    assert c("SET", "deb/bash/new", "v") == "OK"
    assert c("KIDS", "deb") == [b"bash"]
    assert c("DELTREE", "") == len(store) + 1
    assert c("DBSIZE") == 0
    assert c("RANGE", "-", "+") == []


def test_deltree_survives_a_crash(make_server):
    server = make_server().start()
    store = {}
    with server.client() as c:
        for i in range(3000):
            store[b"t/%d/x" % (i % 300) + b"/%d" % i] = b"v"
        c.pipeline(["SET", key, "v"] for key in store)
        assert c("DELTREE", "t/7") == model_deltree(store, b"t/7")
        c("SET", "t/7/x/again", "w")
        store[b"t/7/x/again"] = b"w"
    server.kill()
    server.start()
    with server.client() as c:
        assert c("RANGE", "-", "+", "KEYS") == sorted(store)
        assert c("DELTREE", "") == len(store)
    server.kill()
    server.start()
    with server.client() as c:
        assert c("DBSIZE") == 0


# ---- at random ----


def random_name(rng):
    return b"".join(rng.choice([b"a", b"b", b"ab", b"-", b".", b"+", b"0", b"!", b"\xff", b"\0", b""]) for _ in range(rng.randrange(1, 4)))


def random_key(rng):
    return b"/".join(random_name(rng) for _ in range(rng.randrange(1, 4)))


@pytest.mark.parametrize("round_number", range(6))
def test_model(server, c, round_number):
    seed = random.randrange(1 << 32)
    print("seed", seed)
    rng = random.Random(seed)
    store = {}
    commands, expected = [], []
    for step in range(3000):
        kind = rng.random()
        if kind < 0.5:
            key, value = random_key(rng), b"%d" % step
            store[key] = value
            commands.append(["SET", key, value])
            expected.append("OK")
        elif kind < 0.65:
            key = rng.choice(sorted(store)) if store and rng.random() < 0.7 else random_key(rng)
            commands.append(["DEL", key])
            expected.append(int(store.pop(key, None) is not None))
        elif kind < 0.67:
            path = random_key(rng)
            commands.append(["DELTREE", path])
            expected.append(model_deltree(store, path))
        elif kind < 0.85:
            path = rng.choice([b"", random_name(rng), random_key(rng)])
            start = rng.choice([None, random_name(rng)])
            limit = rng.choice([None, rng.randrange(10)])
            values = rng.random() < 0.5
            options = (["FROM", start] if start is not None else []) + (["LIMIT", limit] if limit is not None else [])
            commands.append(["KIDS", path, *options, *["VALUES"] * values])
            expected.append(model_kids(store, path, start, limit, values))
        else:
            low, high = rng.choice([b"-", random_key(rng)]), rng.choice([b"+", random_key(rng)])
            if low == b"+" or high == b"-":
                continue  # what the ends mean on the other side is nobody's business
            limit, rev, keys = rng.choice([None, rng.randrange(20)]), rng.random() < 0.5, rng.random() < 0.5
            options = (["LIMIT", limit] if limit is not None else []) + ["REV"] * rev + ["KEYS"] * keys
            commands.append(["RANGE", low, high, *options])
            expected.append(model_range(store, low, high, limit, rev, keys))
    for start in range(0, len(commands), 100):
        replies = c.pipeline(commands[start : start + 100])
        for command, reply, want in zip(commands[start:], replies, expected[start:]):
            assert reply == want, command
    assert c("RANGE", "-", "+") == model_range(store, b"-", b"+")
    assert c("DBSIZE") == len(store)


# ---- at once with others ----


def test_deltree_takes_all_at_once(server2, c2):
    names = [f"tree/{i % 7}/{i}" for i in range(60)]

    def write():
        with server2.client() as c:
            for _ in until(1.0):
                replies = c.pipeline([["MSET", *[x for name in names for x in (name, "v")]], ["DELTREE", "tree"]])
                assert replies == ["OK", 60]

    def read(*commands):
        with server2.client() as c:
            for _ in until(1.0):
                for reply in c.pipeline(list(commands) * 4):
                    count = reply if isinstance(reply, int) else sum(x is not None for x in reply)
                    assert count in (0, 60, 7), reply

    together(write, lambda: read(["MGET", *names]), lambda: read(["RANGE", "tree/", "tree0", "KEYS"], ["KIDS", "tree"]),
             lambda: read(["EXISTS", *names]))  # fmt: skip


def test_ranges_are_one_instant(server2, c2):
    """Two keys that always change together are never seen apart, in any reading command."""
    c2("MSET", "r/a", 0, "r/z", 0)
    c2.pipeline(["SET", f"r/m{i}", "x"] for i in range(300))

    def write():
        with server2.client() as c:
            for n, _ in enumerate(until(1.0)):
                c.send(b"".join(encode("MSET", "r/a", f"{n}:{k}", "r/z", f"{n}:{k}") for k in range(10)))
                assert [c.reply() for _ in range(10)] == ["OK"] * 10

    def read():
        with server2.client() as c:
            for _ in until(1.0):
                for reply in (c("RANGE", "r/", "r0"), c("KIDS", "r", "VALUES"), c("RANGE", "r/", "r0", "REV")):
                    assert len(reply) == 604
                    assert reply[reply.index(b"r/a" if b"r/a" in reply else b"a") + 1] == reply[reply.index(b"r/z" if b"r/z" in reply else b"z") + 1]

    together(write, write, read, read)
