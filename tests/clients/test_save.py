"""SAVE, BGSAVE and LASTSAVE: checkpoints on demand."""

import glob
import os
import signal
import threading
import time

import pytest
from kvasir_client import wait_until

pytestmark = [pytest.mark.kvasir, pytest.mark.sanitize]


def fields(c, section):
    lines = c("INFO", section).decode().split("\r\n")
    return dict(line.split(":", 1) for line in lines if ":" in line)


def tocs(server):
    return sorted(os.path.basename(path) for path in glob.glob(os.path.join(server.data, "toc-*")))


@pytest.fixture(params=[("uring", 1), ("epoll", 2)], ids=lambda p: f"{p[0]}-{p[1]}")
def saver(request, make_server):
    io, threads = request.param
    return make_server("--io", io, "--threads", threads)


@pytest.fixture
def slow_saver(saver):
    """A server whose checkpoints take about a second after `unflushed`: they wait for the log's flush."""
    saver.options += ["--durability", "interval"]
    return saver.start()


def unflushed(c):
    """SET k v right behind a flush, so that the next one comes in a second."""
    c("SET", "k", "0")

    def flushed():
        info = fields(c, "kvasir")
        return int(info["commit_lsn"]) >= int(info["tail_lsn"])

    wait_until(flushed, what="a flush")
    c("SET", "k", "v")


def test_save_then_a_start_without_replay(saver):
    start_s = int(time.time())
    with saver.start().client() as c:
        assert abs(c("LASTSAVE") - start_s) <= 2  # of the start
        for i in range(1000):
            c.send(b"SET key:%d value\r\n" % i)
        assert {c.reply() for _ in range(1000)} == {"OK"}
        assert tocs(saver) == []
        before_s = int(time.time())
        assert c("SAVE") == "OK"
        assert before_s <= c("LASTSAVE") <= time.time()
        assert tocs(saver) == ["toc-0000000001.kv"]
        info = fields(c, "persistence")
        assert info["rdb_bgsave_in_progress"] == "0"
        assert info["rdb_last_bgsave_status"] == "ok"
        assert info["rdb_last_save_time"] == str(c("LASTSAVE"))
        assert info["rdb_last_bgsave_time_sec"] == "0"
        assert info["rdb_current_bgsave_time_sec"] == "-1"
        c("SET", "key:1", "newer")
    saver.kill()
    with saver.start().client() as c:
        assert c("DBSIZE") == 1000
        assert c("GET", "key:1") == b"newer"
        assert c("GET", "key:999") == b"value"
        assert int(fields(c, "kvasir")["log_replayed_records"]) <= 2


def test_save_holds_its_place_in_a_pipeline(saver):
    with saver.start().client() as c:
        replies = c.pipeline([["SET", "k", "1"], ["SAVE"], ["INCR", "k"], ["SAVE"], ["GET", "k"], ["SAVE", "now"]])
        assert replies[:5] == ["OK", "OK", 2, "OK", b"2"]
        assert "wrong number of arguments" in str(replies[5])
        assert len(tocs(saver)) == 2


def test_who_saves_waits_without_turning(slow_saver):
    with slow_saver.client() as c, slow_saver.client() as other, slow_saver.client() as third:
        unflushed(c)
        before = int(fields(other, "kvasir")["loop_turns"])
        start = time.monotonic()
        c.send(b"SAVE\r\nGET k\r\n")
        wait_until(lambda: fields(other, "kvasir")["parked_commands"] == "1", what="the parked command")
        assert fields(other, "persistence")["rdb_bgsave_in_progress"] == "1"
        assert int(fields(other, "persistence")["rdb_current_bgsave_time_sec"]) <= 1
        assert other("GET", "k") == b"v"  # nobody else waits
        assert third("SAVE") == "OK"
        assert [c.reply(), c.reply()] == ["OK", b"v"]
        seconds = time.monotonic() - start
        turns = int(fields(other, "kvasir")["loop_turns"]) - before
        assert turns < 500 + 100 * seconds, f"{turns} turns in {seconds} s"


def test_bgsave(slow_saver):
    with slow_saver.client() as c:
        unflushed(c)
        assert c("BGSAVE") == "Background saving started"
        assert fields(c, "persistence")["rdb_bgsave_in_progress"] == "1"
        assert c.error("BGSAVE") == "ERR Background save already in progress"
        running = lambda: fields(c, "persistence")["rdb_current_bgsave_time_sec"] != "-1"  # noqa: E731
        wait_until(running, what="the first one's beginning")
        assert c("BGSAVE", "Schedule") == "Background saving scheduled"
        assert c.error("BGSAVE", "now") == "ERR syntax error"
        assert c.error("BGSAVE", "SCHEDULE", "SCHEDULE") == "ERR syntax error"
        wait_until(lambda: fields(c, "persistence")["rdb_bgsave_in_progress"] == "0", what="the end of both")
        assert len(tocs(slow_saver)) == 2
        c("SET", "k", "w")
        assert c("BGSAVE", "SCHEDULE") == "Background saving started"


def test_a_checkpoint_that_fails(saver):
    with saver.start().client() as c:
        c("SET", "k", "v")
        assert c("SAVE") == "OK"
        in_its_way = os.path.join(saver.data, "toc-0000000002.tmp")
        os.mkdir(in_its_way)
        os.chmod(in_its_way, 0)
        saved_s = c("LASTSAVE")
        error = c.error("SAVE")
        assert error.startswith("ERR the checkpoint failed: ") and "toc-0000000002.tmp" in error
        assert fields(c, "persistence")["rdb_last_bgsave_status"] == "err"
        assert c("LASTSAVE") == saved_s
        assert c("GET", "k") == b"v"
        os.rmdir(in_its_way)
        assert c("SAVE") == "OK"
        assert fields(c, "persistence")["rdb_last_bgsave_status"] == "ok"
        assert "toc-0000000002.kv" in tocs(saver)


@pytest.mark.parametrize("kill", [False, True])
def test_who_saves_and_goes(slow_saver, kill):
    with slow_saver.client() as c, slow_saver.client() as other:
        unflushed(c)
        number = c("CLIENT", "ID")
        c.send(b"SAVE\r\n")
        wait_until(lambda: fields(other, "kvasir")["parked_commands"] == "1", what="the parked command")
        if kill:
            assert other("CLIENT", "KILL", "ID", number) == 1
            assert c.at_end()
        else:
            c.close()
        assert other("SAVE") == "OK"
        wait_until(lambda: fields(other, "clients")["connected_clients"] == "1", what="its end")
        assert fields(other, "kvasir")["parked_commands"] == "0"


def test_stopping_waits_for_no_checkpoint(slow_saver):
    with slow_saver.client() as c, slow_saver.client() as other:
        unflushed(c)
        c.send(b"SAVE\r\n")
        wait_until(lambda: fields(other, "kvasir")["parked_commands"] == "1", what="the parked command")
        slow_saver.process.send_signal(signal.SIGTERM)
        reply = c.reply()
        assert reply == "OK" or str(reply).startswith("ERR the server is stopping"), reply
    assert slow_saver.process.wait(20) == 0
    with slow_saver.start().client() as c:
        assert c("GET", "k") == b"v"


def test_saves_beside_writes(saver):
    """Several clients save while others write; nothing is lost by a kill."""
    saver.start()
    done = threading.Event()
    counts = [0, 0]
    errors = []

    def write(which):
        with saver.client() as c:
            while not done.is_set():
                if c("SET", f"{which}:{counts[which]}", "v") != "OK":
                    errors.append("SET")
                counts[which] += 1

    def save():
        with saver.client() as c:
            for _ in range(20):
                if c("SAVE") != "OK":
                    errors.append("SAVE")

    writers = [threading.Thread(target=write, args=(i,)) for i in range(2)]
    savers = [threading.Thread(target=save) for _ in range(3)]
    for thread in writers + savers:
        thread.start()
    for thread in savers:
        thread.join()
    done.set()
    for thread in writers:
        thread.join()
    assert errors == []
    saver.kill()
    with saver.start().client() as c:
        assert c("DBSIZE") == sum(counts)
        assert c("GET", f"1:{counts[1] - 1}") == b"v"


def test_without_a_disk(make_server):
    server = make_server("--durability", "none").start()
    with server.client() as c:
        for command in ("SAVE", "BGSAVE"):
            assert c.error(command) == "ERR nothing is kept on disk with --durability none"
        assert abs(c("LASTSAVE") - time.time()) < 20
        assert fields(c, "persistence")["rdb_bgsave_in_progress"] == "0"
