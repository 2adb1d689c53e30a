"""kvasir check and --repair, on folders that servers have written. What exactly is found where, against what a store
does with the same folder, is tested in tests/unit/tools/test_check.c."""

import itertools
import os
import pty
import resource
import shutil
import subprocess
import threading

import pytest
from kvasir_client import wait_until
from kvasir_server import BINARY, Server

pytestmark = [pytest.mark.kvasir, pytest.mark.sanitize]

WELL, STARTS, DAMAGED, UNREADABLE = 0, 1, 2, 3


def check(*arguments, **named):
    result = subprocess.run(
        [BINARY, "check", *map(str, arguments)], capture_output=True, text=True, timeout=80, check=False, **named
    )
    assert "Sanitizer" not in result.stderr, result.stderr
    return result


def value(i):
    return b"%06d-" % i * (1 + i % 40)


def fill(client, first, last):
    for i in range(first, last):
        client("SET", f"k/{i:06d}", value(i))


def log_files(folder):
    return sorted(name for name in os.listdir(folder) if name.startswith("log-"))


def contents(server):
    """All keys and values of a server."""
    with server.client() as client:
        flat = client("RANGE", "-", "+")
    return dict(zip(flat[::2], flat[1::2], strict=True))


def started_on(folder, make_server):
    server = make_server(directory=os.path.dirname(folder))
    assert server.data == folder
    return server.start()


@pytest.fixture
def folder(make_server):
    """A stopped server's data: 3000 keys, some overwritten, deleted, with expiry."""
    server = make_server().start()
    with server.client() as client:
        fill(client, 0, 3000)
        client("DEL", *(f"k/{i:06d}" for i in range(100, 200)))
        client("SET", "gone/a", "1")
        client("SET", "gone/b", "2")
        client("DELTREE", "gone")
        client("SET", "later", "x", "EX", 100000)
        for i in range(50):
            client("SET", f"k/{i:06d}", value(i + 1))
    assert server.stop() == 0
    return server.data


def expected():
    keys = {b"k/%06d" % i: value(i + 1 if i < 50 else i) for i in range(3000) if not 100 <= i < 200}
    keys[b"later"] = b"x"
    return keys


def test_well(folder):
    before = {name: os.stat(os.path.join(folder, name)).st_mtime_ns for name in os.listdir(folder)}
    result = check(folder)
    assert result.returncode == WELL, result.stdout
    assert result.stdout.rstrip().endswith("well")
    assert result.stderr == ""
    assert before == {name: os.stat(os.path.join(folder, name)).st_mtime_ns for name in os.listdir(folder)}


def test_repair_of_a_whole_folder(folder, tmp_path, make_server):
    new = str(tmp_path / "data")
    result = check(folder, "--repair", new)
    assert result.returncode == WELL, result.stdout
    assert check(new).returncode == WELL
    server = started_on(new, make_server)
    assert contents(server) == expected()
    with server.client() as client:
        assert 99000 < client("TTL", "later") <= 100000
        assert client("TTL", "k/000001") == -1
    assert server.stop() == 0


def test_running_server(make_server, tmp_path):
    server = make_server().start()
    with server.client() as client:
        client("SET", "first", "v")
        assert "with 1 valid records in 1 batches" in check(server.data).stdout  # as `kvasir log` shows
        fill(client, 0, 200)
        result = check(server.data)
        assert result.returncode == WELL, result.stdout
        assert "a server has" in result.stdout
        result = check(server.data, "--repair", tmp_path / "new")
        assert result.returncode == UNREADABLE
        assert "stop it" in result.stderr
        assert not (tmp_path / "new").exists()
        client("SET", "still", "works")
    assert server.stop() == 0


def test_running_server_that_is_written_to(make_server, tmp_path):
    """Nothing that is just being written is taken for damage; neither is a copy of it more than cut short."""
    server = make_server("--threads", 2).start()
    stop = threading.Event()
    written = []

    def write():
        with server.client() as client:
            i = 0
            while not stop.is_set():
                client("SET", f"w/{i % 500}", os.urandom(3000))
                i += 1
            written.append(i)

    writers = [threading.Thread(target=write) for _ in range(3)]
    for writer in writers:
        writer.start()
    try:
        for _ in range(5):
            result = check(server.data)
            assert result.returncode == WELL, result.stdout
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert len(written) == 3 and min(written) > 0
    copy = tmp_path / "data"
    shutil.copytree(server.data, copy)
    result = check(copy)
    assert result.returncode == WELL, result.stdout
    assert "a server has" not in result.stdout
    keys = contents(server)
    server.kill()
    second = started_on(str(copy), make_server)
    assert contents(second) == keys
    assert second.stop() == 0


def test_flipped_byte(folder, tmp_path, make_server):
    for name in log_files(folder):
        path = os.path.join(folder, name)
        with open(path, "r+b") as f:
            offset = f.read().find(value(2500))
            if offset >= 0:
                f.seek(offset)
                f.write(b"#")
                break
    result = check(folder)
    assert result.returncode == DAMAGED, result.stdout
    assert f"{os.path.basename(path)} at offset" in result.stdout
    assert "a SET of key 'k/002500' as it seems" in result.stdout
    assert "--repair" in result.stdout
    refused = Server(directory=os.path.dirname(folder))
    code, text = refused.run_to_end()
    assert code != 0 and "damaged" in text
    new = str(tmp_path / "data")
    result = check(folder, "--repair", new)
    assert result.returncode == STARTS, result.stdout
    keys = expected()
    del keys[b"k/002500"]
    server = started_on(new, make_server)
    assert contents(server) == keys
    assert server.stop() == 0


def test_flips_everywhere(folder, tmp_path, make_server):
    """Many at once: what can be saved has no wrong value, and a server starts on it."""
    for name in log_files(folder):
        path = os.path.join(folder, name)
        with open(path, "r+b") as f:
            for at in range(4096 + 77, os.path.getsize(path), 50021):
                f.seek(at)
                byte = f.read(1)
                f.seek(at)
                f.write(bytes([byte[0] ^ 16]))
    result = check(folder)
    assert result.returncode == DAMAGED, result.stdout
    new = str(tmp_path / "data")
    assert check(folder, "--repair", new).returncode == STARTS
    server = started_on(new, make_server)
    keys = contents(server)
    assert server.stop() == 0
    assert len(keys) > 2000
    for key, found in keys.items():
        if key.startswith(b"k/"):
            i = int(key[2:])
            assert found in (value(i), value(i + 1))


def test_missing_and_truncated_files(make_server, tmp_path):
    server = make_server("--durability", "fsync").start()
    with server.client() as client:
        for i in range(12):
            client("SET", f"big/{i}", os.urandom(1 << 20))
    assert server.stop() == 0
    names = log_files(server.data)
    assert len(names) > 2
    copy = tmp_path / "missing"
    shutil.copytree(server.data, copy)
    os.remove(copy / names[1])
    result = check(copy)
    assert result.returncode == DAMAGED, result.stdout
    assert f"of {names[1]}, which is missing" in result.stdout
    assert check(copy, "--repair", tmp_path / "data").returncode == STARTS
    second = started_on(str(tmp_path / "data"), make_server)
    kept = contents(second)
    assert 0 < len(kept) < 12
    assert second.stop() == 0
    whole = contents(server.start())
    assert all(whole[key] == found for key, found in kept.items())
    server.kill()
    os.remove(copy / names[0])
    result = check(copy)
    assert result.returncode == DAMAGED and "the log's beginning is missing" in result.stdout
    copy = tmp_path / "truncated"
    shutil.copytree(server.data, copy)
    os.truncate(copy / names[0], 100000)
    result = check(copy)
    assert result.returncode == DAMAGED
    assert f"{names[0]} at offset 100000: the file ends there" in result.stdout


def flip(path, offset):
    with open(path, "r+b") as f:
        f.seek(offset)
        byte = f.read(1)
        f.seek(offset)
        f.write(bytes([byte[0] ^ 1]))


def test_checkpoints(make_server, tmp_path):
    """Of two the older serves; with both damaged the whole log; check and repair know it before the server does."""
    server = make_server().start()
    with server.client() as client:
        fill(client, 0, 500)
        client("DEL", "k/000007")
        assert client("SAVE") == "OK"
        fill(client, 400, 600)
        client("EXPIRE", "k/000001", 100000)
        assert client("SAVE") == "OK"
        client("DEL", "k/000008")
        result = check(server.data)
        assert result.returncode == WELL, result.stdout
        assert "2 tocs, 2 of them good" in result.stdout
    keys = contents(server)
    assert len(keys) == 598
    server.kill()
    tocs = sorted(name for name in os.listdir(server.data) if name.startswith("toc-"))
    for damaged, name in enumerate(reversed(tocs), 1):
        flip(os.path.join(server.data, name), 5000)
        new = tmp_path / str(damaged) / "data"
        new.parent.mkdir()
        result = check(server.data, "--repair", new)
        assert result.returncode == STARTS, result.stdout
        assert f"{name} is damaged at offset 4096" in result.stdout
        assert f"2 tocs, {2 - damaged} of them good" in result.stdout
        assert "the server would start" in result.stdout
        second = started_on(str(new), make_server)
        assert contents(second) == keys
        assert second.stop() == 0
    assert contents(server.start()) == keys


def test_checkpoints_come_and_go_meanwhile(make_server):
    server = make_server().start()
    with server.client() as client:
        fill(client, 0, 300)
        stop = threading.Event()

        def save():
            with server.client() as other:
                while not stop.is_set():
                    other("SAVE")

        saver = threading.Thread(target=save)
        saver.start()
        try:
            for i in range(20):
                client("SET", f"k/{i:06d}", value(i + 1))
                result = check(server.data)
                assert result.returncode == WELL, result.stdout
        finally:
            stop.set()
            saver.join()
        assert int(client("LASTSAVE")) > 0


def test_beside_cleaning_and_checkpoints(make_server):
    """At a disk limit files go all the time: each check has what it opened to its end."""
    server = make_server("--threads", 1, "--disk-limit", "64M", env={"KVASIR_FAULT": "checkpoint:1000000"}).start()
    stop = threading.Event()

    def removed(client):
        return int(client("INFO", "kvasir").decode().split("segments_removed:")[1].split()[0])

    def write():
        with server.client(timeout=60) as other:
            for round_ in itertools.count():
                if stop.is_set():
                    return
                keys = (i * 7919 % 7000 for i in range(round_ * 100, round_ * 100 + 100))
                other.pipeline(("SET", f"k{key}", "x" * 2000) for key in keys)  # may be refused

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with server.client() as client:
            wait_until(lambda: removed(client) > 0, timeout=60, what="removed segments")
            before = removed(client)
            for _ in range(5):
                result = check(server.data)
                assert result.returncode == WELL, result.stdout
            assert removed(client) > before
    finally:
        stop.set()
        writer.join()


def test_too_few_open_files(make_server):
    """Where the process may not raise its limit, it says what it needs, once."""
    server = make_server().start()
    with server.client() as client:
        fill(client, 0, 300)

    def limit():
        resource.setrlimit(resource.RLIMIT_NOFILE, (12, 12))

    done = check(server.data, preexec_fn=limit)
    assert done.returncode in (WELL, UNREADABLE), done.stdout
    if done.returncode == UNREADABLE:
        assert done.stderr.count("\n") == 1
        assert "ulimit -n" in done.stderr


def test_not_a_folder(folder, tmp_path):
    for path in (tmp_path / "nowhere", tmp_path, os.path.join(folder, "lock")):
        result = check(path)
        assert result.returncode == UNREADABLE
        assert str(path) in result.stderr
    assert check().returncode == UNREADABLE
    assert check(folder, folder).returncode == UNREADABLE
    assert check(folder, "--nosuch-option").returncode == UNREADABLE
    os.mkdir(os.path.join(folder, "log-0000000099.kv"))
    result = check(folder)
    assert result.returncode == UNREADABLE
    assert "log-0000000099.kv" in result.stdout


def test_target_must_be_empty(folder, tmp_path):
    for target in (folder, tmp_path):
        (tmp_path / "something").touch()
        names = sorted(os.listdir(target))
        result = check(folder, "--repair", target)
        assert result.returncode == UNREADABLE
        assert ("lies in" if target == folder else "not empty") in result.stderr
        assert sorted(os.listdir(target)) == names
    (tmp_path / "empty").mkdir()
    assert check(folder, "--repair", tmp_path / "empty").returncode == WELL
    result = check(folder, "--repair", tmp_path / "no" / "parent")
    assert result.returncode == UNREADABLE
    assert "parent" in result.stderr


def test_target_must_lie_outside(folder, tmp_path):
    """A folder in the data folder may stop the next start, and a repair is never made in place."""
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "here").mkdir()
    names = sorted(os.listdir(folder))
    relative = os.path.relpath(os.path.join(folder, "new"), tmp_path)
    for target in (f"{folder}/log-0000000099.kv", tmp_path / "link" / "new", relative, f"{tmp_path}/here/../link/new/"):
        result = check(folder, "--repair", target, cwd=tmp_path)
        assert result.returncode == UNREADABLE, (target, result.stdout)
        assert "lies in" in result.stderr
        assert sorted(os.listdir(folder)) == names
    assert check(folder, "--repair", folder + "-new").returncode == WELL


def test_progress_is_for_terminals(folder):
    reader, terminal = pty.openpty()
    process = subprocess.Popen([BINARY, "check", folder], stdout=subprocess.DEVNULL, stderr=terminal)
    os.close(terminal)
    drawn = b""
    try:
        while chunk := os.read(reader, 4096):
            drawn += chunk
    except OSError:  # the terminal is gone
        pass
    os.close(reader)
    assert process.wait() == WELL
    assert b"%" in drawn and b"MB/s" in drawn
