"""--disk-limit: the folder stays below it, cleaning makes room, a start finds everything."""

import glob
import os
import subprocess
import threading
import time

import pytest
from kvasir_client import Error, wait_until
from kvasir_server import BINARY

pytestmark = [pytest.mark.kvasir]

LIMIT = 64 << 20
KEYS = 8000
VALUE_BYTES = 2000
ROUNDS = 8


def fields(c):
    lines = c("INFO", "kvasir").decode().split("\r\n")
    return dict(line.split(":", 1) for line in lines if ":" in line)


def folder_bytes(server):
    total = 0
    for entry in os.scandir(server.data):
        try:
            total += entry.stat().st_size
        except FileNotFoundError:  # removed meanwhile
            pass
    return total


def value(key, n):
    text = b"%d of %d " % (n, key)
    return text + b"x" * (VALUE_BYTES - len(text))


def set_surely(c, keys, n):
    """SETs them all; what is refused is sent again when there is room."""
    left = list(keys)
    refused = 0
    while left:
        for key in left:
            c.send(b"*3\r\n$3\r\nSET\r\n$8\r\nkey:%04d\r\n$%d\r\n%s\r\n" % (key, VALUE_BYTES, value(key, n)))
        replies = [c.reply() for _ in left]
        for reply in replies:
            assert reply == "OK" or (isinstance(reply, Error) and str(reply).startswith("ERR disk full")), reply
        left = [key for key, reply in zip(left, replies) if reply != "OK"]
        refused += len(left)
        if left:
            wait_until(lambda: fields(c)["disk_full"] == "0", timeout=30, what="room on the disk")
    return refused


def overwrite(c):
    """Writes all keys and then three quarters of them again and again. The last round of each key."""
    rounds = {}
    for n in range(ROUNDS):
        for first in range(0, KEYS, 500):
            keys = [key for key in range(first, first + 500) if n == 0 or key % 4]
            set_surely(c, keys, n)
            rounds.update((key, n) for key in keys)
    return rounds


@pytest.mark.parametrize("threads", [1, 2])
def test_overwrites_within_a_limit(make_server, threads):
    server = make_server("--threads", threads, "--disk-limit", LIMIT).start()
    most, stop = [0], threading.Event()

    def watch():
        while not stop.wait(0.01):
            most[0] = max(most[0], folder_bytes(server))

    watcher = threading.Thread(target=watch)
    watcher.start()
    with server.client(timeout=60) as c:
        rounds = overwrite(c)
        info = fields(c)
    stop.set()
    watcher.join()
    assert int(info["disk_limit"]) == LIMIT
    assert int(info["log_bytes_written"]) > LIMIT  # without getting space back it could not have been
    assert int(info["segments_removed"]) > 0
    assert float(info["write_amplification"]) > 1 and float(info["space_amplification"]) > 1
    assert int(info["segments_reused"]) > 0
    assert most[0] <= LIMIT
    server.kill()
    # Files that were used again have old bytes behind what they hold now: that is no damage.
    done = subprocess.run([BINARY, "check", server.data], capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout, done.stderr)
    with server.start().client() as c:
        assert c("DBSIZE") == KEYS
        for key in range(KEYS):
            c.send(b"GET key:%04d\r\n" % key)
        for key in range(KEYS):
            assert c.reply() == value(key, rounds[key])


def test_the_least_limit(make_server):
    """Overwrites and deletes go on and on there."""
    server = make_server("--threads", 1, "--disk-limit", "16M").start()
    with server.client(timeout=60) as c:
        for n in range(20):
            set_surely(c, range(500), n)
            assert c("DEL", *[f"key:{key:04}" for key in range(0, 500, 50)]) == 10
        assert int(fields(c)["log_bytes_written"]) > 16 << 20
        assert folder_bytes(server) <= 16 << 20


def test_repair_of_a_cleaned_folder_without_checkpoints(make_server):
    """The log's beginning is gone, both tocs too: data segments and the rest of the log make the whole."""
    server = make_server("--threads", 1, "--disk-limit", LIMIT).start()
    with server.client(timeout=60) as c:
        rounds = overwrite(c)
        for key in range(0, KEYS, 10):
            assert c("DEL", "key:%04d" % key) == 1
            del rounds[key]
    assert server.stop() == 0
    logs = sorted(os.path.basename(path) for path in glob.glob(os.path.join(server.data, "log-*.kv")))
    assert logs[0] != "log-0000000001.kv" and glob.glob(os.path.join(server.data, "data-*.kv"))
    for path in glob.glob(os.path.join(server.data, "toc-*.kv")):
        os.unlink(path)
    saved = os.path.join(server.directory, "saved")
    done = subprocess.run([BINARY, "check", server.data, "--repair", saved], capture_output=True, text=True)
    assert done.returncode == 1 and "by version" in done.stdout, (done.returncode, done.stdout, done.stderr)
    os.rename(server.data, server.data + ".damaged")
    os.rename(saved, server.data)
    server.options = ["--threads", "1"]
    with server.start().client() as c:
        for key in range(KEYS):
            c.send(b"GET key:%04d\r\n" % key)
        for key in range(KEYS):
            assert c.reply() == (value(key, rounds[key]) if key in rounds else None), key


def test_a_value_too_large_for_the_limit(make_server):
    """It alone is refused: others neither wait for it nor are refused, then or later."""
    server = make_server("--threads", 1, "--disk-limit", LIMIT, "--memory", "256M").start()
    done = []

    def set_large():
        with server.client(timeout=60) as c:
            with pytest.raises(Error, match="^ERR disk full"):
                c("SET", "large", b"x" * (60 << 20))
        done.append(True)

    thread = threading.Thread(target=set_large)
    thread.start()
    with server.client(timeout=30) as c:
        wait_until(lambda: int(fields(c)["log_segments"]) > 1 or done, timeout=30, what="a segment ahead")
        n = 0
        while not done or n < 3000:  # more than the segment that was there
            assert c("SET", f"key:{n % 100:04}", value(0, n) * 4) == "OK"
            n += 1
    thread.join()
    with server.client(timeout=30) as c:
        with pytest.raises(Error, match="^ERR disk full"):
            c("SET", "large", b"x" * (60 << 20))
        assert c("SET", "key:0000", b"last") == "OK"


def test_large_values_are_overwritten(make_server):
    """The room that the next one needs is there behind a checkpoint, and nobody else waits for one."""
    server = make_server("--disk-limit", "64M").start()
    with server.client(60) as c:
        for n in range(60):
            assert c("SET", f"k{n % 4}", b"%d" % n + b"x" * 8000000) == "OK"
        for key in range(4):
            assert c("GETRANGE", f"k{key}", 0, 1) == b"%d" % (56 + key)
        assert int(fields(c)["checkpoint_number"]) > 0


def test_starts_with_a_full_folder(make_server):
    """Each start needs a segment of the log, and may not take more than the limit for it."""
    server = make_server("--threads", 1, "--disk-limit", LIMIT).start()
    written = 0
    for _ in range(4):
        with server.client() as c:
            for _ in range(100000):
                try:
                    c("SET", f"key:{written}", value(written, 0))
                except Error as error:
                    assert str(error).startswith("ERR disk full")
                    break
                written += 1
        assert written > 15000
        assert folder_bytes(server) <= LIMIT
        server.kill()
        server.start()
        assert folder_bytes(server) <= LIMIT
    with server.client() as c:
        assert c("DBSIZE") == written
        assert c("DEL", *[f"key:{n}" for n in range(written)]) == written
        wait_until(lambda: fields(c)["disk_full"] == "0", timeout=30, what="room on the disk")
        assert c("SET", "key", "value") == "OK"


def test_filling_up_ends(make_server):
    """The last segments that are worth cleaning are: but not again and again, while a write waits."""
    server = make_server("--threads", 1, "--disk-limit", LIMIT).start()
    written = 0
    with server.client(timeout=30) as c:  # so long no write waits
        with pytest.raises(Error, match="^ERR disk full"):
            while True:
                c("SET", f"key:{written}", value(written, 0))
                written += 1
        assert written > 20000
        assert int(fields(c)["cleaner_bytes_copied"]) < 10 * LIMIT


def test_small_values_fill_the_limit(make_server):
    """What is kept back for checkpoints is a guess until there is one: that must not refuse what has room."""
    server = make_server("--threads", 1, "--disk-limit", "200M", "--memory", "256M").start()
    with server.client(timeout=60) as c:
        written = 0
        while int(fields(c)["disk_used_bytes"]) < 100 << 20:
            replies = c.pipeline(("SET", f"k{n:015}", "v" * 32) for n in range(written, written + 20000))
            assert set(replies) == {"OK"}, (written, set(map(str, replies)), fields(c)["disk_used_bytes"])
            written += 20000
        assert fields(c)["checkpoint_number"] != "0"
        for first in range(0, written, 20000):  # there is something to clean from now on
            assert set(c.pipeline(("SET", f"k{n:015}", "w" * 32) for n in range(first, first + 20000))) == {"OK"}
        # Refused at last, new keys bring no checkpoint after another.
        replies = ["OK"]
        while set(replies) == {"OK"}:
            replies = c.pipeline(("SET", f"k{n:015}", "v" * 32) for n in range(written, written + 20000))
            written += 20000
        number = int(fields(c)["checkpoint_number"])
        time.sleep(2)
        assert int(fields(c)["checkpoint_number"]) - number < 5


def test_writes_resume_soon_after_failing_checkpoints(make_server):
    """While writes wait or are refused, a checkpoint that fails is tried again every second, and not all of it is said."""
    server = make_server("--threads", 1, "--disk-limit", LIMIT).start()
    in_its_way = os.path.join(server.data, "toc-0000000001.tmp")
    os.mkdir(in_its_way)
    stop, done = threading.Event(), []

    def write():
        with server.client(timeout=80) as c:
            while not stop.is_set():
                replies = c.pipeline(("SET", f"key:{key}", value(key, 0)) for key in range(1000))
                done.extend(reply for reply in replies if reply == "OK")

    writer = threading.Thread(target=write)
    writer.start()
    with server.client(timeout=80) as c:
        wait_until(lambda: fields(c)["checkpoint_failures"] != "0", timeout=30, what="a checkpoint that fails")
        time.sleep(13)  # behind the second try of those that are made when there is room
        assert int(fields(c)["checkpoint_failures"]) >= 6
        assert server.log().count("the checkpoint was given up") <= 4
        before = len(done)
        os.rmdir(in_its_way)
        wait_until(lambda: len(done) > before + 3000, timeout=8, what="writes that go on")
    stop.set()
    writer.join()
