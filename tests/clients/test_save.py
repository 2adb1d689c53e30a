"""SAVE, BGSAVE and LASTSAVE: checkpoints on demand; BACKUP."""

import fcntl
import glob
import os
import shutil
import signal
import subprocess
import threading
import time

import pytest
from kvasir_client import wait_until
from kvasir_server import BINARY

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


def test_what_is_replayed_counts(saver):
    """A tail that each run adds a little to, and each start replays again, gets its checkpoint."""
    saver.env["KVASIR_FAULT"] = "checkpoint:2000000"
    for run in range(3):
        with saver.start().client() as c:
            assert tocs(saver) == []
            for i in range(100):
                c.send(b"SET key:%d:%d %s\r\n" % (run, i, b"v" * 8000))
            assert {c.reply() for _ in range(100)} == {"OK"}
            if run == 2:
                wait_until(lambda: "toc-0000000001.kv" in tocs(saver), what="a checkpoint")
        saver.kill()
    with saver.start().client() as c:
        assert c("DBSIZE") == 300


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


def test_the_end_of_a_checkpoint_wakes_who_saves(saver):
    """Whichever worker it is on; none turns for any other reason."""
    with saver.start().client() as c, saver.client() as other:
        c("SET", "k", "v")
        seconds = []
        for client in (c, other) * 5:
            start = time.monotonic()
            assert client("SAVE") == "OK"
            seconds.append(time.monotonic() - start)
        assert sorted(seconds)[5] < 0.5, seconds


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


def copied(server, make_server, folder):
    """A server started from a backup, on another port."""
    copy = make_server(*server.options)
    os.rename(folder, copy.data)
    return copy.start()


def test_backup_while_it_is_written_to(saver, make_server, tmp_path):
    folder = str(tmp_path / "copy")
    with saver.start().client() as c:
        c.pipeline(["SET", f"key:{i}", b"v" * 3000] for i in range(2000))
        done = threading.Event()

        def write():
            with saver.client() as writer:
                i = 0
                while not done.is_set():
                    assert writer("SET", f"later:{i}", "x") == "OK"
                    i += 1

        thread = threading.Thread(target=write)
        thread.start()
        reply = c("BACKUP", folder + "//")
        done.set()
        thread.join()
        words = reply.split()
        assert words[0] == "OK" and words[2] == "files," and int(words[1]) >= 2, reply
        size = sum(os.path.getsize(os.path.join(folder, name)) for name in os.listdir(folder))
        assert size >= int(words[3]) + int(words[6]), reply
        assert os.listdir(tmp_path) == ["copy"]
        assert c.error("BACKUP", folder).startswith(f"ERR the backup failed: {folder} exists already")
        with copied(saver, make_server, folder).client() as other:
            assert other("MGET", *(f"key:{i}" for i in range(2000))) == [b"v" * 3000] * 2000
            assert other("DBSIZE") <= c("DBSIZE")
            other("SET", "key:1", "only there")
            assert c("GET", "key:1") == b"v" * 3000
        assert c("SET", "key:2", "only here") == "OK"
    saver.kill()
    with saver.start().client() as c:
        assert [c("GET", "key:1"), c("GET", "key:2")] == [b"v" * 3000, b"only here"]


@pytest.mark.parametrize("writes", [0, 10])
@pytest.mark.parametrize("end", ["stop", "kill"])
def test_backup_of_what_was_not_written_to_since_its_start(saver, make_server, tmp_path, end, writes):
    with saver.start().client() as c:
        for i in range(writes):
            c("SET", f"key:{i}", "v")
    getattr(saver, end)()
    with saver.start().client() as c:
        assert c("BACKUP", str(tmp_path / "copy")).startswith("OK ")
        assert c("SET", "key:1", "later") == "OK"
    with copied(saver, make_server, str(tmp_path / "copy")).client() as c:
        assert c("DBSIZE") == writes
        assert c("GET", "key:1") == (b"v" if writes else None)
        assert c("SET", "key:1", "only there") == "OK"


def test_backup_refuses(saver, tmp_path):
    with saver.start().client() as c:
        for path in ("", "/", "//", "relative/folder", "/tmp/with\0zero"):
            assert c.error("BACKUP", path) == "ERR BACKUP needs the absolute path of a folder that does not exist yet"
        assert c.error("BACKUP", "/" + "x" * 5000).startswith("ERR the path is longer than ")
        assert c.error("BACKUP", "/" + "x" * 4000).startswith("ERR the backup failed: ")
        missing = str(tmp_path / "no" / "folder")
        assert missing in c.error("BACKUP", missing)
        assert "wrong number" in c.error("BACKUP")
        assert os.listdir(tmp_path) == []
        assert c("BACKUP", str(tmp_path / "copy")).startswith("OK ")


def test_a_backup_into_the_own_folder_is_refused(saver, tmp_path):
    """It would lie where the next start looks for files."""
    (tmp_path / "link").symlink_to(saver.data)
    with saver.start().client() as c:
        c("SET", "k", "v")
        assert c("SAVE") == "OK"
        for folder in (saver.data, tmp_path / "link", os.path.join(saver.data, "..", os.path.basename(saver.data))):
            for name in ("log-0000000099.kv", "toc-0000000100", "copy/"):
                path = f"{folder}/{name}"
                assert "lies in the data folder" in c.error("BACKUP", path)
                done = subprocess.run(
                    [BINARY, "backup", "--connect", f"127.0.0.1:{saver.port}", path], capture_output=True, text=True, timeout=60
                )
                assert done.returncode != 0 and "lies in the data folder" in done.stdout + done.stderr
        assert c("BACKUP", saver.data + "-copy").startswith("OK ")
        assert not os.path.exists(os.path.join(saver.data, "log-0000000099.kv"))
    saver.kill()
    saver.start()


def test_backups_one_at_a_time(slow_saver, tmp_path):
    with slow_saver.client() as c, slow_saver.client() as other, slow_saver.client() as third:
        unflushed(c)
        number = c("CLIENT", "ID")
        c.send(b"BACKUP %s\r\nGET k\r\n" % str(tmp_path / "first").encode())
        wait_until(lambda: fields(third, "kvasir")["parked_commands"] == "1", what="the parked command")
        assert other.error("BACKUP", str(tmp_path / "second")) == "ERR another backup is in progress"
        assert c.reply().startswith("OK ")
        assert c.reply() == b"v"
        assert other("BACKUP", str(tmp_path / "second")).startswith("OK ")
        unflushed(other)
        c.send(b"BACKUP %s\r\n" % str(tmp_path / "third").encode())
        wait_until(lambda: fields(third, "kvasir")["parked_commands"] == "1", what="the parked command")
        assert third("CLIENT", "KILL", "ID", number) == 1
        assert c.at_end()
        assert other.error("BACKUP", str(tmp_path / "fourth")) == "ERR another backup is in progress"
        wait_until(lambda: "third" in os.listdir(tmp_path), what="the backup that nobody waits for")

        def possible():
            other.send(b"BACKUP %s\r\n" % str(tmp_path / "fourth").encode())
            return str(other.reply()).startswith("OK ")

        wait_until(possible, what="a fourth backup")
    assert sorted(os.listdir(tmp_path)) == ["first", "fourth", "second", "third"]


def test_a_killed_backup_blocks_no_other(saver, tmp_path):
    """Its copy of the log's last segment takes a fifth of a second; the kill comes when that has begun."""
    folder = str(tmp_path / "copy")
    with saver.start().client() as c:
        c.pipeline(["SET", f"key:{i}", b"v" * 10000] for i in range(5000))
        c.send(b"BACKUP %s\r\n" % folder.encode())
        wait_until(lambda: glob.glob(folder + ".tmp/log-*"), what="the copy's beginning")
        saver.kill()
    assert "unfinished-backup" in os.listdir(folder + ".tmp")
    with saver.start().client() as c:
        assert c("BACKUP", folder).startswith("OK ")
        assert c("DBSIZE") == 5000
    assert os.listdir(tmp_path) == ["copy"]
    assert "unfinished-backup" not in os.listdir(folder)


def test_a_backup_removes_only_what_is_its_own(saver, tmp_path):
    folder, temporary = str(tmp_path / "copy"), str(tmp_path / "copy.tmp")
    with saver.start().client() as c:
        c("SET", "k", "v")
        shutil.copytree(saver.data, temporary)  # somebody's folder
        assert c.error("BACKUP", folder).endswith(f"{temporary} exists already and is no unfinished backup: remove it")
        marker = os.path.join(temporary, "unfinished-backup")
        with open(marker, "w"):
            pass
        assert c.error("BACKUP", folder).endswith(f"{temporary}/lock is no file of a backup: remove it")
        os.unlink(os.path.join(temporary, "lock"))
        with open(marker, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            assert c.error("BACKUP", folder).endswith(f"another server makes a backup in {temporary}")
        assert os.path.exists(marker)
        assert c("BACKUP", folder).startswith("OK ")
        assert os.listdir(tmp_path) == ["copy"]
        os.mkdir(temporary)  # what a crash right at the beginning leaves
        os.rename(folder, folder + "-1")
        assert c("BACKUP", folder).startswith("OK ")
        with open(temporary, "w"):
            pass
        os.rename(folder, folder + "-2")
        assert "remove it" in c.error("BACKUP", folder)
        os.unlink(temporary)
        os.symlink(folder + "-2", temporary)  # complete: not to be touched
        assert "remove it" in c.error("BACKUP", folder)
        assert len(os.listdir(folder + "-2")) >= 2


def test_stopping_gives_a_backup_up(slow_saver, tmp_path):
    with slow_saver.client() as c, slow_saver.client() as other:
        unflushed(c)
        c.send(b"BACKUP %s\r\n" % str(tmp_path / "copy").encode())
        wait_until(lambda: fields(other, "kvasir")["parked_commands"] == "1", what="the parked command")
        slow_saver.process.send_signal(signal.SIGTERM)
        reply = str(c.reply())
        assert reply.startswith(("OK ", "ERR the server is stopping", "ERR the backup failed: ")), reply
    assert slow_saver.process.wait(20) == 0
    assert os.listdir(tmp_path) in ([], ["copy"])
    assert (os.listdir(tmp_path) == ["copy"]) or not reply.startswith("OK ")


def test_the_tool_backup(saver, make_server, tmp_path):
    with saver.start().client() as c:
        c("SET", "k", "v")

    def backup(path):
        return subprocess.run([BINARY, "backup", "--connect", f"127.0.0.1:{saver.port}", path], cwd=tmp_path,
                              capture_output=True, text=True, timeout=60)  # fmt: skip

    result = backup("copy")  # counts from the tool's folder, not from the server's
    assert result.returncode == 0 and " files, " in result.stdout and result.stderr == "", result
    with copied(saver, make_server, str(tmp_path / "copy")).client() as c:
        assert c("GET", "k") == b"v"
    result = backup("no/copy")
    assert result.returncode == 2 and result.stdout == "" and "the backup failed" in result.stderr, result


def test_without_a_disk(make_server):
    server = make_server("--durability", "none").start()
    with server.client() as c:
        for command in (["SAVE"], ["BGSAVE"], ["BACKUP", "/tmp/kvasir-none"]):
            assert c.error(*command) == "ERR nothing is kept on disk with --durability none"
        assert abs(c("LASTSAVE") - time.time()) < 20
        assert fields(c, "persistence")["rdb_bgsave_in_progress"] == "0"


def test_lastsave_and_info_survive_a_restart(make_server):
    server = make_server().start()
    with server.client() as c:
        c.pipeline(["SET", f"k:{i}", "v"] for i in range(1000))
        assert c("SAVE") == "OK"
        saved = c("LASTSAVE")
    server.kill()
    server.start()
    with server.client() as c:
        assert saved - 1 <= c("LASTSAVE") <= saved  # when it was begun
        info = dict(line.split(":", 1) for line in c("INFO", "kvasir").decode().splitlines() if ":" in line)
        assert (info["checkpoint_number"], info["checkpoint_keys"]) == ("1", "1000")
