"""Damaged and missing files, full disks and failing reads where values are only on disk and starts begin at a checkpoint."""

import errno
import glob
import json
import os
import random
import re
import shutil
import subprocess
import threading

import pytest
from kvasir_client import Error, wait_until
from kvasir_server import BINARY, Server
from test_bad_input import info_number, peak_rss_bytes
from test_faults import checksum, flip, newest_with, on_small_disk

pytestmark = pytest.mark.kvasir
sanitize = pytest.mark.sanitize

KEYS = 2000
TAIL = 300


def value(i, run):
    """Of mixed sizes, 30 bytes to 20 KB, about 1.5 KB."""
    size = [30, 100, 700, 900, 1500, 2000, 5000][i % 7] if i % 100 else 20000
    return (b"value-%d-%04d-" % (run, i) * (size // 13 + 1))[:size]


class Folder:
    """The data folder of a killed server, and what is in it. Two runs wrote one checkpoint each, when two thirds of their
    writes were logged (what a start replays counts too); the third only logged. What the first wrote is below the start
    of the second's checkpoint."""

    def __init__(self):
        self.server = Server("--threads", 1)
        self.expected = {}
        try:
            self.write(1, "checkpoint:2000000")
            self.write(2, "checkpoint:3000000")
            self.write(3, None)
        except BaseException:
            self.server.destroy()
            raise

    def write(self, run, fault):
        server = self.server
        server.env.pop("KVASIR_FAULT", None)
        if fault:
            server.env["KVASIR_FAULT"] = fault
        server.start()
        with server.client() as c:
            numbers = range(KEYS) if fault else range(TAIL)
            for start in range(0, len(numbers), 50):
                self.store(c, {b"run:%d:%04d" % (run, i): value(i, run) for i in numbers[start : start + 50]})
            if fault:
                wait_until(lambda: len(tocs(server)) == run, what="the checkpoint")
            else:  # on what is below the checkpoint
                self.store(c, {b"run:1:%04d" % i: b"overwritten %d" % i for i in range(50, 100)})
                gone = [b"run:1:%04d" % i for i in range(100, 150)]
                assert c("DEL", *gone) == 50
                for key in gone:
                    del self.expected[key]
                assert c("APPEND", "run:1:0160", "+") == len(value(160, 1)) + 1
                self.expected[b"run:1:0160"] += b"+"
                assert c("EXPIRE", "run:1:0170", 100000) == 1
        server.kill()
        assert len(tocs(server)) == min(run, 2)

    def store(self, c, pairs):
        assert set(c.pipeline(("SET", key, text) for key, text in pairs.items())) == {"OK"}
        self.expected.update(pairs)


def tocs(server):
    """Paths, oldest first."""
    return sorted(glob.glob(os.path.join(server.data, "toc-*.kv")))


def segments(server):
    return sorted(glob.glob(os.path.join(server.data, "log-*.kv")))


@pytest.fixture(scope="module")
def folder():
    folder = Folder()
    yield folder
    folder.server.destroy()


@pytest.fixture
def stopped(folder, make_server):
    """A server, not started, on a copy of the folder."""
    server = make_server("--threads", 2)
    server.expected = folder.expected
    shutil.copytree(folder.server.data, server.data)
    return server


def check_all(server, wrong=()):
    """All is there but the wrong keys, which answer with errors: {key: text}."""
    with server.client() as c:
        keys = list(server.expected)
        assert c("DBSIZE") == len(keys)
        errors = {}
        for start in range(0, len(keys), 50):
            part = keys[start : start + 50]
            for key, found in zip(part, c.pipeline(("GET", key) for key in part)):
                if isinstance(found, Error):
                    errors[key] = str(found)
                else:
                    assert found == server.expected[key], (key, found[:50])
        assert set(errors) == set(wrong), errors
        assert c("RANGE", "-", "+", "KEYS") == sorted(keys)
        assert c.pipeline(("EXISTS", "run:1:%04d" % i) for i in range(100, 150)) == [0] * 50
        assert c("TTL", "run:1:0170") > 90000
        return errors


def info(server):
    with server.client() as c:
        lines = c("INFO", "kvasir").decode().split("\r\n")
    return {name: int(text) for name, _, text in (line.partition(":") for line in lines) if text.isdigit()}


def writes_and_checkpoints_go_on(server):
    """Restarts it so that checkpoints come soon; two of them replace those that were there."""
    server.kill()
    before = tocs(server)
    server.env["KVASIR_FAULT"] = "checkpoint:1"
    server.start()
    with server.client() as c:
        for i in range(2):
            count = len(server.log().split(" info checkpoint "))
            assert c("SET", b"more", str(i)) == "OK"
            wait_until(lambda n=count: len(server.log().split(" info checkpoint ")) > n, what="a checkpoint")
    assert len(tocs(server)) == 2 and not set(tocs(server)) & set(before)
    server.kill()
    server.env.pop("KVASIR_FAULT")
    server.start()
    server.expected = dict(server.expected, more=b"1")
    server.expected[b"more"] = server.expected.pop("more")


def must_refuse(server, *texts):
    def content():
        return {path: open(path, "rb").read() for path in segments(server) + tocs(server)}

    before = content()
    code, log = server.run_to_end()
    assert code == 1, (code, log)
    for text in texts:
        assert text in log, f"{text!r} is not in:\n{log}"
    assert content() == before, "a refused folder was changed"


# ---- checkpoints ----


@sanitize
def test_a_start_from_a_checkpoint(stopped):
    stopped.start()
    numbers = info(stopped)
    assert TAIL < numbers["log_replayed_records"] < KEYS
    check_all(stopped)
    numbers = info(stopped)
    # What is not in the log's tail is on disk; without a cap it stays in memory once it was read.
    assert KEYS < numbers["cold_preads"] < 2 * KEYS and numbers["cold_corrupt"] == numbers["cold_errors"] == 0
    check_all(stopped)
    assert info(stopped)["cold_preads"] == numbers["cold_preads"]
    writes_and_checkpoints_go_on(stopped)
    check_all(stopped)


def places(path):
    """Offsets in a toc, with names."""
    size = os.path.getsize(path)
    return {"magic": 0, "header": 40, "first block": 4096 + 5000, "last block": size - 3 * 4096, "list": size - 2 * 4096 + 8,
            "footer": size - 4096 + 20}  # fmt: skip


@sanitize
@pytest.mark.parametrize("place", ["magic", "header", "first block", "last block", "list", "footer", "cut", "empty"])
def test_a_damaged_checkpoint_leads_to_the_one_before(stopped, place):
    older, newest = tocs(stopped)
    if place == "cut":
        os.truncate(newest, os.path.getsize(newest) - 4096)
    elif place == "empty":
        os.truncate(newest, 0)
    else:
        flip(newest, places(newest)[place], 3)
    stopped.start()
    log = stopped.log()
    assert "cannot be used" in log and f"{newest} is damaged" in log and "offset" in log, log
    assert os.path.basename(older) not in log
    assert info(stopped)["log_replayed_records"] > KEYS
    check_all(stopped)
    writes_and_checkpoints_go_on(stopped)
    check_all(stopped)


def test_flips_anywhere_in_a_checkpoint(stopped):
    newest = tocs(stopped)[-1]
    rng = random.Random(7)
    for _ in range(25):
        offset, bit = rng.randrange(os.path.getsize(newest)), rng.randrange(8)
        flip(newest, offset, bit)
        stopped.start()
        assert f"{newest} is damaged" in stopped.log(), (offset, bit)
        with stopped.client() as c:
            assert c("DBSIZE") == len(stopped.expected), (offset, bit)
        stopped.kill()
        os.unlink(stopped.log_path)
        flip(newest, offset, bit)
    stopped.start()
    assert "damaged" not in stopped.log()
    check_all(stopped)


def test_a_damaged_older_checkpoint_is_not_needed(stopped):
    flip(tocs(stopped)[0], 20)
    stopped.start()
    assert TAIL < info(stopped)["log_replayed_records"] < KEYS
    check_all(stopped)
    writes_and_checkpoints_go_on(stopped)
    check_all(stopped)


@sanitize
@pytest.mark.parametrize("place", ["header", "last block"])
def test_both_checkpoints_damaged_and_the_log_whole(stopped, place):
    for path in tocs(stopped):
        flip(path, places(path)[place])
    stopped.start()
    for path in tocs(stopped):
        assert f"{path} is damaged" in stopped.log()
    assert info(stopped)["log_replayed_records"] > 2 * KEYS
    check_all(stopped)
    writes_and_checkpoints_go_on(stopped)
    check_all(stopped)


@sanitize
@pytest.mark.parametrize("how", ["damaged", "removed"])
def test_no_checkpoint_and_the_logs_beginning_missing(stopped, how):
    for path in tocs(stopped):
        flip(path, 20) if how == "damaged" else os.unlink(path)
    first, second = segments(stopped)[:2]
    os.rename(first, os.path.join(stopped.directory, "away"))
    must_refuse(stopped, f"{second} goes on behind LSN", f"in {os.path.basename(first)}, which is missing")


def test_a_newer_checkpoint_format_is_refused(stopped):
    """The version is the 32-bit number behind magic and checksum; a newer kvasir writes a checksum that fits."""
    newest = tocs(stopped)[-1]
    with open(newest, "r+b") as file:
        page = bytearray(file.read(4096))
        assert int.from_bytes(page[16:20], "little") == 1
        page[16:20] = (2).to_bytes(4, "little")
        page[8:16] = checksum(bytes(page[16:])).to_bytes(8, "little")
        file.seek(0)
        file.write(page)
    must_refuse(stopped, os.path.basename(newest), "version 2", "newer kvasir")


@pytest.mark.parametrize("name", ["toc-0000000002.tmp", "toc-0000000003.tmp", "toc-4000000000.tmp"])
def test_unfinished_checkpoints_are_removed(stopped, name):
    path = os.path.join(stopped.data, name)
    with open(tocs(stopped)[0], "rb") as file:
        half = file.read()[:70000]
    mine = ["notes.tmp", "toc-abc.tmp", "toc-0000000001.kv.tmp"]
    for other in [path, *(os.path.join(stopped.data, m) for m in mine)]:
        with open(other, "wb") as file:
            file.write(half)
    stopped.start()
    assert not os.path.exists(path)
    check_all(stopped)
    writes_and_checkpoints_go_on(stopped)
    check_all(stopped)
    assert set(mine) <= set(os.listdir(stopped.data))


# ---- segments ----


@sanitize
def test_damage_in_what_only_values_need(stopped):
    """The start does not read it; each damaged value is its key's own error."""
    damaged = {}
    for i in (3, 1000, 1999):
        path, offset = newest_with(stopped, value(i, 1))
        assert path == segments(stopped)[0]
        flip(path, offset + 20)
        damaged[b"run:1:%04d" % i] = (os.path.basename(path), f"offset {offset - 16 - 10}")
    stopped.start()
    errors = check_all(stopped, wrong=damaged)
    for key, texts in damaged.items():
        assert errors[key].startswith("ERR corrupt record")
        assert all(text in errors[key] for text in texts), (errors[key], texts)
        assert all(text in stopped.log() for text in texts)
    first, second, third = damaged
    with stopped.client() as c:
        assert c.error("MGET", "run:1:0002", first).startswith("ERR corrupt record")
        assert c("STRLEN", first) == len(value(3, 1))
        assert c("SET", first, "whole") == "OK" and c("DEL", second) == 1
        assert c("GET", first) == b"whole" and c("EXISTS", second) == 0
    stopped.expected = dict(stopped.expected)
    stopped.expected[first] = b"whole"
    del stopped.expected[second]
    # A checkpoint leaves it as it is: a key with an error, never another value.
    writes_and_checkpoints_go_on(stopped)
    check_all(stopped, wrong=[third])


@sanitize
def test_damage_in_the_logs_tail_is_refused(stopped):
    path, offset = newest_with(stopped, value(125, 3))  # not in the file's first batch: then the one before is named
    flip(path, offset + 5)
    must_refuse(stopped, os.path.basename(path), "offset")


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("how", ["missing", "header", "of another log"])
def test_a_segment_that_is_not_there(stopped, make_server, number, how):
    """0: only values need it; in 1 the newest checkpoint's tail begins."""
    path = segments(stopped)[number]
    away = os.path.join(stopped.directory, "away")
    shutil.copyfile(path, away)
    if how == "missing":
        os.unlink(path)
    elif how == "header":
        flip(path, 20)
    else:
        other = make_server("--threads", 1)
        for run in range(number + 1):
            other.start()
            with other.client() as c:
                c("SET", "a", run)
            other.kill()
        shutil.copyfile(segments(other)[number], path)
    must_refuse(stopped, os.path.basename(path))
    shutil.copyfile(away, path)
    stopped.start()
    check_all(stopped)


def test_a_read_error_is_that_keys_error(stopped):
    stopped.env["KVASIR_FAULT"] = "read:5"
    stopped.start()
    with stopped.client() as c:
        replies = [c.pipeline([("GET", b"run:1:%04d" % i)])[0] for i in range(1000, 1010)]
        (failed,) = [i for i, reply in enumerate(replies) if isinstance(reply, Error)]
        assert "I/O error" in str(replies[failed]) and "log-0000000001.kv at offset" in str(replies[failed])
    stopped.env.pop("KVASIR_FAULT")
    check_all(stopped)


# ---- one folder, several servers ----


def test_a_copied_folder_started_twice_at_once(stopped, make_server):
    copy = make_server("--threads", 1)
    copy.expected = dict(stopped.expected)
    shutil.copytree(stopped.data, copy.data)
    stopped.start()
    copy.start()
    thief = make_server(directory=stopped.directory)
    thief.unix += "-2"
    thief.log_path += "-2"
    code, log = thief.run_to_end()
    assert code == 1 and stopped.data in log and "use" in log, log
    with stopped.client() as a, copy.client() as b:
        for i in range(0, KEYS, 10):
            assert a("SET", f"run:2:{i:04}", "a") == "OK" and b("SET", f"run:2:{i:04}", "b") == "OK"
            stopped.expected = dict(stopped.expected)
            stopped.expected[b"run:2:%04d" % i] = b"a"
            copy.expected[b"run:2:%04d" % i] = b"b"
    for server in (stopped, copy):
        check_all(server)
        writes_and_checkpoints_go_on(server)
        check_all(server)


# ---- full disks ----


def on_tmpfs(server, size="64m", beside=False):
    """The server's folder becomes a file system of its own, or with beside a folder in one; returns the file system's path as we see it,
    once the server runs."""
    root = server.data
    os.makedirs(root)
    server.prefix = on_small_disk(size, root)
    if beside:
        server.data = os.path.join(root, "data")
    server.start()
    return f"/proc/{server.process.pid}/root{root}"


def fill_disk(folder):
    """A file that takes all that is left."""
    ballast = os.path.join(folder, "ballast")
    with open(ballast, "wb", buffering=0) as file:
        for size in (1 << 20, 4096):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError as error:
                assert error.errno == errno.ENOSPC
    return ballast


@pytest.mark.parametrize("io", ["uring", "epoll"])
def test_disk_full_while_a_checkpoint_is_written(make_server, io):
    """The log has room in its last segment, the checkpoint has none: it is given up, and comes when there is room."""
    server = make_server("--io", io, "--threads", 2, env={"KVASIR_FAULT": "checkpoint:10000"})
    folder = on_tmpfs(server)
    with server.client() as c:
        assert set(c.pipeline(("SET", b"k:%04d" % i, value(i, 1)) for i in range(500))) == {"OK"}
        wait_until(lambda: glob.glob(folder + "/toc-*.kv"), what="the first checkpoint")
        ballast = fill_disk(folder)
        links = [path + ".linked" for path in glob.glob(folder + "/toc-*")]
        for path in links:  # none of them can be written over
            os.link(path.removesuffix(".linked"), path)
        stored = []
        failed = "checkpoint was given up, the one before it stays"

        def write_one():
            (reply,) = c.pipeline([("SET", b"more:%04d" % len(stored), b"x" * 3000)])
            assert not isinstance(reply, Error), reply  # there is room in the segment
            stored.append(reply)
            return failed in server.log()

        wait_until(write_one, what="a checkpoint to fail")
        assert "No space left" in server.log()
        before = glob.glob(folder + "/toc-*.kv")
        assert before and c("SET", "after", "x") == "OK" and c("DEL", "k:0001") == 1
        assert [c("GET", b"k:%04d" % i) for i in (0, 1, 2)] == [value(0, 1), None, value(2, 1)]
        for path in [ballast, *links]:
            os.unlink(path)
        wait_until(lambda: set(glob.glob(folder + "/toc-*.kv")) - set(before), what="a checkpoint")

        def unfinished():
            """But the file that the next one will be written over, an older one's."""
            newest = max(int(path[-13:-3]) for path in glob.glob(folder + "/toc-*.kv"))
            return [path for path in glob.glob(folder + "/*.tmp") if int(path[-14:-4]) <= newest]

        wait_until(lambda: not unfinished(), what="the unfinished one to go")
        assert c("DBSIZE") == 500 + len(stored)


def test_disk_full_while_a_backup_is_made(make_server):
    """There is room for its checkpoint, not for the copy of the last segment: an error, nothing is left, all goes on."""
    server = make_server("--threads", 2)
    folder, path = on_tmpfs(server, beside=True), os.path.join(os.path.dirname(server.data), "backup")
    with server.client() as c:
        assert set(c.pipeline(("SET", b"k:%04d" % i, b"x" * 10000) for i in range(300))) == {"OK"}
        ballast = fill_disk(folder)
        os.truncate(ballast, os.path.getsize(ballast) - (1 << 20))
        error = c.error("BACKUP", path)
        assert "No space left" in error, error
        assert not [name for name in os.listdir(folder) if "backup" in name]
        assert "the backup" in server.log() and "was given up" in server.log()
        assert c("SET", "after", "x") == "OK" and c("DEL", "k:0001") == 1
        assert c("GET", "k:0000") == b"x" * 10000 and c("GET", "k:0001") is None
        # Without room for its checkpoint either.
        fill_disk(folder)
        error = c.error("BACKUP", path)
        assert "No space left" in error, error
        assert not [name for name in os.listdir(folder) if "backup" in name]
        assert not [name for name in os.listdir(folder + "/data") if name.endswith(".tmp")]
        assert c("SET", "after", "y") == "OK" and c("DEL", "k:0002") == 1
        os.unlink(ballast)
        c("BACKUP", path)
        assert any(name.startswith("log-") for name in os.listdir(folder + "/backup"))
        assert c("DBSIZE") == 299


@pytest.mark.parametrize("io", ["uring", "epoll"])
def test_disk_full_while_values_are_on_disk(make_server, io):
    server = make_server("--io", io, "--threads", 2, "--memory", "32M", env={"KVASIR_FAULT": "checkpoint:1000000"})
    folder = on_tmpfs(server, "96m")
    ballast = os.path.join(folder, "ballast")
    with open(ballast, "wb") as file:
        file.write(bytes(24 << 20))
    stored, size = [], 9000
    with server.client() as c, server.client() as other:
        failure = None
        while failure is None:
            assert len(stored) < 12000
            batch = range(len(stored), len(stored) + 20)
            replies = c.pipeline(("SET", b"k:%05d" % i, b"%05d" % i * (size // 5)) for i in batch)
            failure = next((str(reply) for reply in replies if isinstance(reply, Error)), None)
            stored += [i for i, reply in zip(batch, replies) if reply == "OK"]
        assert failure.startswith("ERR disk full"), failure
        assert len(stored) * size > 40 << 20
        # Every value is still readable, most from disk; keys can be deleted.
        for start in range(0, len(stored), 100):
            part = stored[start : start + 100]
            assert other.pipeline(("GET", b"k:%05d" % i) for i in part) == [b"%05d" % i * (size // 5) for i in part]
        assert info(server)["cold_preads"] > len(stored) // 2
        assert other("DEL", *(b"k:%05d" % i for i in stored[:100])) == 100
        assert other("GET", b"k:%05d" % stored[0]) is None
        assert other.error("SET", "other", b"x" * size).startswith("ERR disk full")
        assert other("GET", b"k:%05d" % stored[100]) == b"%05d" % stored[100] * (size // 5)
        os.unlink(ballast)
        wait_until(lambda: other.pipeline([("SET", "again", b"x" * size)]) == ["OK"], what="writes to resume")
        assert set(c.pipeline(("SET", b"more:%d" % i, b"x" * size) for i in range(100))) == {"OK"}
        assert c("DBSIZE") == len(stored) - 100 + 101
        before = len(server.log().split(" info checkpoint "))

        def checkpoint_after_writes():
            assert c("SET", "again", b"x" * size) == "OK"
            return len(server.log().split(" info checkpoint ")) > before

        wait_until(checkpoint_after_writes, what="a checkpoint")


# ---- memory ----


class Resident:
    """with Resident(server) as resident: ...; resident.most: bytes that the process took at most meanwhile."""

    def __init__(self, server):
        self.path = f"/proc/{server.process.pid}/status"
        self.most = 0
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.sample)

    def sample(self):
        while not self.done.wait(0.02):
            with open(self.path, encoding="ascii") as status:
                kb = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
            self.most = max(self.most, kb * 1024)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        self.thread.join()


@pytest.mark.parametrize("io", ["uring", "epoll"])
@pytest.mark.parametrize("threads, cap", [(2, "32M"), (8, "68M")])
def test_the_least_memory_is_enough(make_server, io, threads, cap):
    """Every worker has many busy connections, then a few with large values: the cap is kept, and all get on."""
    server = make_server("--io", io, "--threads", threads, "--memory", cap).start()

    def run(*load):
        command = [BINARY, "bench", "--connect", f"127.0.0.1:{server.port}", "--seconds", "1", "--json", *map(str, load)]
        result = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        assert result["errors"] == 0 and result["ops_per_second"] > 0
        assert peak_rss_bytes(server) <= int(cap[:-1]) << 20

    run("--workload", "set", "--keys", 20000, "--value-size", 1000, "--clients", 300, "--pipeline", 20)
    run("--workload", "mixed:0.5", "--keys", 40, "--value-size", 500000, "--clients", 8, "--pipeline", 2)


@pytest.mark.parametrize("io", ["uring", "epoll"])
def test_values_stay_while_the_index_grows(make_server, io):
    """Under a cap each further region of the index takes the place of as many values, not of all."""
    server = make_server("--io", io, "--threads", 1, "--memory", "64M").start()
    most, least_after = 0, 1 << 30
    with server.client() as c:
        for start in range(0, 90000, 100):
            assert set(c.pipeline(("SET", b"key:%08d" % i, b"x" * 2000) for i in range(start, start + 100))) == {"OK"}
            values = info_number(c, "memory_value_bytes")
            most = max(most, values)
            if most > 24 << 20:
                least_after = min(least_after, values)
        assert most > 24 << 20 and info_number(c, "memory_index_bytes") > 6 << 20, "else there is nothing to see here"
    assert least_after > most / 4, f"{least_after} of {most} bytes"


@pytest.mark.parametrize("threads, cap", [(1, "40M"), (2, "64M")])
def test_a_full_index_starts_again_and_takes_new_keys(make_server, threads, cap):
    """Keys until -OOM; the same memory is enough for a start; of what keys leave that are deleted others are made."""
    server = make_server("--threads", threads, "--memory", cap).start()
    count, refused = 0, False
    with server.client(60) as c:
        while not refused:
            assert count < 2000000
            replies = c.pipeline(("SET", f"a key of some length, number {i}", "x" * 8) for i in range(count, count + 1000))
            refused = any(isinstance(reply, Error) for reply in replies)
            count += 1000 - refused * 1000
    server.kill()
    server.start()
    keys = [f"a key of some length, number {i}" for i in range(count)]
    random.Random(2).shuffle(keys)
    gone = keys[: len(keys) * 2 // 5]
    with server.client(60) as c:
        assert c("DBSIZE") >= count
        for first in range(0, len(gone), 500):
            assert c("DEL", *gone[first : first + 500]) == len(gone[first : first + 500])
        wanted = [f"another key, number {i}" for i in range(len(gone) // 8)]

        def all_are_stored():
            replies = c.pipeline(("SET", key, "y" * 8) for key in wanted)
            wanted[:] = [key for key, reply in zip(wanted, replies) if reply != "OK"]
            return not wanted

        wait_until(all_are_stored, what="room for new keys")
    assert peak_rss_bytes(server) <= int(cap[:-1]) << 20


def test_overwrites_go_on_between_new_keys_at_a_full_index(make_server):
    """New keys for which the order's pages find no memory are refused; what comes behind them does not wait."""
    count, batch, cap = 332000, 2000, 48
    server = make_server("--memory", f"{cap}M", "--durability", "interval").start()
    names = [b"%08x" % (i * 2654435761 % (1 << 32)) for i in range(count)]
    rng = random.Random(1)
    with server.client(20) as c:  # some seconds of CPU for all, so many batches' worth

        def sets(keys, *options):
            return c.pipeline(("SET", key, b"v" * rng.randrange(20), *options) for key in keys)

        for first in range(3 * batch, count, batch):
            assert set(sets(names[first : first + batch])) == {"OK"}
        new, order = set(names[: 3 * batch]), names[:]
        rng.shuffle(order)
        for first in range(0, count, batch):
            keys = order[first : first + batch]
            for key, reply in zip(keys, sets(keys, "EX", 100000)):
                assert reply == "OK" or (str(reply).startswith("OOM") and key in new), reply
    assert peak_rss_bytes(server) <= cap << 20


@pytest.mark.parametrize("length, sets, saves", [(8, True, True), (16, False, True), (24, False, False)])
def test_a_full_index_gets_expiries(make_server, length, sets, saves):
    """Keys until -OOM, then all get an expiry, by which their nodes grow: within the cap, which a restart keeps too."""
    cap = 48
    server = make_server("--threads", 2, "--memory", f"{cap}M").start()
    name = random.Random(5).randbytes
    keys = []
    with server.client(60) as c:
        while True:
            more = [name(length) for _ in range(1000)]
            if any(isinstance(reply, Error) for reply in c.pipeline(("SET", key, "x" * 32) for key in more)):
                break
            keys += more
        assert len(keys) > 100000
        for first in range(0, len(keys), 1000):
            some = keys[first : first + 1000]
            if sets:
                assert set(c.pipeline(("SET", key, "y" * 32, "EX", 100000) for key in some)) == {"OK"}
            else:
                assert set(c.pipeline(("EXPIRE", key, 100000) for key in some)) == {1}
        if saves:
            assert c("SAVE") == "OK"
    assert peak_rss_bytes(server) <= cap << 20
    server.kill()
    server.start()
    with server.client(60) as c:
        assert c("DBSIZE") >= len(keys)
        assert c("SET", keys[0], "other") == "OK"
    assert peak_rss_bytes(server) <= cap << 20


@pytest.mark.parametrize("count, length, cap", [(200000, 200, 44), (200000, 80, 46), (100000, 300, 33)])
def test_small_values_are_replayed_within_the_cap(make_server, count, length, cap):
    """What leaves memory stays with the allocator for a moment: that counts too."""
    server = make_server().start()
    with server.client(60) as c:
        for _ in range(2):
            for first in range(0, count, 1000):
                pairs = (f"key{i:037d}" for i in range(first, first + 1000))
                assert set(c.pipeline(("SET", key, "v" * length) for key in pairs)) == {"OK"}
    server.kill()
    capped = make_server("--memory", f"{cap}M")
    os.rename(server.data, capped.data)
    capped.start()
    assert peak_rss_bytes(capped) <= cap << 20
    with capped.client(60) as c:
        assert c("DBSIZE") == count
        assert c("GET", f"key{count - 1:037d}") == b"v" * length


@pytest.mark.parametrize("threads, cap, size, count", [(1, 64, 8, 30), (1, 128, 16, 25), (4, 48, 5, 30), (1, 32, 3, 60)])
def test_large_values_are_replayed_within_the_cap(make_server, threads, cap, size, count):
    server = make_server("--threads", threads, "--memory", f"{cap}M").start()
    length = (size << 20) - 100
    with server.client(60) as c:
        for i in range(count):
            assert c("SET", b"k%d" % i, bytes([65 + i % 26]) * length) == "OK"
    server.kill()
    server.start(60)
    assert peak_rss_bytes(server) <= cap << 20
    with server.client(60) as c:
        for i in range(count):
            assert c("GET", b"k%d" % i) == bytes([65 + i % 26]) * length
    assert peak_rss_bytes(server) <= cap << 20


@pytest.mark.parametrize("saved", [True, False])
def test_a_start_with_too_little_says_how_much_it_needs(make_server, saved):
    """It starts with that; from a checkpoint not with much less."""
    server = make_server("--threads", 1).start()
    count = 600000
    with server.client(60) as c:
        for first in range(0, count, 1000):
            c.pipeline(("SET", b"k%015d" % i, b"x" * 32) for i in range(first, first + 1000))
        assert not saved or c("SAVE") == "OK"
    server.kill()

    def needed(cap):
        server.options = ["--threads", "1", "--memory", f"{cap}M"]
        code, output = server.run_to_end()
        assert code == 1 and f"--memory {cap} MiB is too little" in output, output
        return int(re.findall(r"needs?(?: at most about)? (\d+) MiB", output)[-1])

    said = needed(32)
    assert said > 32
    if saved:
        assert abs(needed(said * 19 // 20) - said) <= 1
    server.options = ["--threads", "1", "--memory", f"{said}M"]
    server.start()
    with server.client(60) as c:
        assert c("DBSIZE") == count
    assert peak_rss_bytes(server) <= said << 20


@pytest.mark.parametrize("io", ["uring", "epoll"])
def test_resident_memory_stays_below_the_cap(make_server, io):
    """While loading, reading, walking and writing checkpoints, of data three times larger; and after a restart."""
    cap, records = 192 << 20, 240000
    server = make_server("--io", io, "--threads", 2, "--memory", cap, env={"KVASIR_FAULT": "checkpoint:20000000"}).start()

    def run(*arguments):
        return subprocess.run([BINARY, *arguments, "--connect", f"127.0.0.1:{server.port}"], check=True, capture_output=True)

    most = {}
    sizes = ["--min-size", "1000", "--max-size", "4000", "--seed", "3"]
    with Resident(server) as resident:
        run("load", "--generate", str(records), *sizes, "--clients", "4", "--pipeline", "16")
    most["load"] = resident.most
    assert sum(os.path.getsize(path) for path in segments(server)) > 3 * cap
    with Resident(server) as resident:
        run("bench", "--workload", "cold", "--verify", "--keys", str(records), *sizes, "--clients", "64", "--seconds", "2")
    most["reads"] = resident.most
    with Resident(server) as resident, server.client(60) as c:
        assert len(c("RANGE", "-", "+", "KEYS")) == records
        first = b"-"
        for _ in range(60):
            page = c("RANGE", first, "+", "LIMIT", 1000)
            assert len(page) == 2000
            first = page[-2]
    most["walks"] = resident.most
    assert server.log().count(" info checkpoint ") > 5
    server.kill()
    server.start()
    with Resident(server) as resident:
        run("bench", "--workload", "cold", "--verify", "--keys", str(records), *sizes, "--clients", "64", "--seconds", "2")
    most["reads after a restart"] = resident.most
    assert max(most.values()) <= cap, {what: f"{bytes_ / cap:.3f}" for what, bytes_ in most.items()}
