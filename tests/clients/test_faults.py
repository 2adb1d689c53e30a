"""Damaged logs, a full disk, a failed flush: what is lost, what is refused, and what goes on."""

import ctypes
import glob
import os
import shutil
import signal
import subprocess
import time

import pytest
from kvasir_client import Error, encode, wait_until
from kvasir_server import BINARY

pytestmark = pytest.mark.kvasir
sanitize = pytest.mark.sanitize


def segments(server):
    return sorted(glob.glob(os.path.join(server.data, "log-*.kv")))


def newest_with(server, text):
    """(path, offset) of the last place in the log where these bytes stand."""
    for path in reversed(segments(server)):
        with open(path, "rb") as file:
            at = file.read().rfind(text)
        if at >= 0:
            return path, at
    raise AssertionError(f"{text!r} is in no segment of {segments(server)}")


def overwrite(path, offset, data):
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def flip(path, offset, bit=0):
    with open(path, "rb") as file:
        file.seek(offset)
        (byte,) = file.read(1)
    overwrite(path, offset, bytes([byte ^ 1 << bit]))


def filled(make_server, keys=200, clean=True):
    """A stopped server with a log of `keys` keys, one flush each."""
    server = make_server("--threads", 1).start()
    with server.client() as c:
        for i in range(keys):
            c("SET", f"key:{i:04}", f"value-{i:04}-" + "x" * 50)
    if clean:
        assert server.stop() == 0
    else:
        server.kill()
    return server


def must_refuse(server, *texts):
    before = {path: open(path, "rb").read() for path in segments(server)}
    code, log = server.run_to_end()
    assert code == 1, (code, log)
    for text in texts:
        assert text in log, f"{text!r} is not in:\n{log}"
    assert {path: open(path, "rb").read() for path in segments(server)} == before, "a refused log was changed"
    return log


@sanitize
@pytest.mark.parametrize("key", [0, 1, 100, 198, 199])
@pytest.mark.parametrize("bit", [0, 7])
def test_a_flipped_bit_in_a_cleanly_closed_log(make_server, key, bit):
    server = filled(make_server)
    path, offset = newest_with(server, b"value-%04d-" % key)
    flip(path, offset + 3, bit)
    must_refuse(server, os.path.basename(path), "offset")


@sanitize
@pytest.mark.parametrize("key", [0, 1, 100, 190])
def test_a_flipped_bit_after_a_crash_below_what_was_durable(make_server, key):
    server = filled(make_server, clean=False)
    path, offset = newest_with(server, b"value-%04d-" % key)
    flip(path, offset)
    must_refuse(server, os.path.basename(path), "offset")


def test_a_damaged_header(make_server):
    server = filled(make_server)
    for offset in (0, 9, 20):
        path = newest_with(server, b"value-0000-")[0]
        flip(path, offset)
        must_refuse(server, os.path.basename(path))
        flip(path, offset)
    server.start()
    with server.client() as c:
        assert c("DBSIZE") == 200


def test_a_truncated_log_that_was_closed_cleanly(make_server):
    server = filled(make_server)
    path, offset = newest_with(server, b"value-0100-")
    os.truncate(path, offset)
    must_refuse(server, os.path.basename(path))


@pytest.mark.parametrize("how", ["emptied", "zeroed"])
def test_the_log_in_use_is_emptied(make_server, how):
    """It looks like a file that a crash left while it was made, but the next file knows that it was written to."""
    server = filled(make_server, clean=False)
    path = newest_with(server, b"value-0100-")[0]
    size = os.path.getsize(path)
    with open(path, "r+b") as file:
        file.truncate(0)
        file.truncate(size if how == "zeroed" else 0)
    must_refuse(server, os.path.basename(path) + " is empty")
    result = subprocess.run([BINARY, "check", server.data], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 2, result
    assert f"{os.path.basename(path)} is empty" in result.stdout


def test_a_zeroed_block_in_the_middle(make_server):
    server = filled(make_server)
    path, offset = newest_with(server, b"value-0100-")
    overwrite(path, offset & ~4095, bytes(4096))
    must_refuse(server, os.path.basename(path), "offset")


def test_a_missing_segment(make_server):
    server = make_server("--threads", 1)
    for i in range(3):
        server.start()
        with server.client() as c:
            c("SET", f"run:{i}", f"value-of-run-{i}")
        assert server.stop() == 0
    path = newest_with(server, b"value-of-run-1")[0]
    os.rename(path, path + ".away")
    must_refuse(server)
    os.rename(path + ".away", path)
    server.start()
    with server.client() as c:
        assert c("DBSIZE") == 3


@sanitize
@pytest.mark.parametrize("how", ["zeros", "half"])
def test_a_torn_tail_is_cut(make_server, how):
    """The last flush of a killed server may be half written, if nobody was told of it."""
    server = filled(make_server, keys=50, clean=False)
    path, offset = newest_with(server, b"value-0049-")
    if how == "zeros":
        overwrite(path, offset & ~4095, bytes(4096))
    else:
        overwrite(path, offset + 8, bytes(200))
    server.start()
    with server.client() as c:
        assert c("DBSIZE") == 49
        assert c("GET", "key:0048") == b"value-0048-" + b"x" * 50
        c("SET", "key:0049", "again")
    server.kill()
    server.start()
    with server.client() as c:
        assert c("DBSIZE") == 50
        assert c("GET", "key:0049") == b"again"


def checksum(data):
    xxh3 = ctypes.CDLL("libxxhash.so.0").XXH3_64bits
    xxh3.restype, xxh3.argtypes = ctypes.c_uint64, [ctypes.c_char_p, ctypes.c_size_t]
    return xxh3(data, len(data))


def version_two(path, sealed):
    """The version is the 32-bit number behind the 8 bytes of magic in a segment's header (docs/disk-format.md);
    a newer kvasir writes a checksum that fits."""
    with open(path, "rb") as file:
        header = bytearray(file.read(56))
    assert int.from_bytes(header[8:12], "little") == 1
    header[8:12] = (2).to_bytes(4, "little")
    if sealed:
        header[48:56] = checksum(bytes(header[:48])).to_bytes(8, "little")
    overwrite(path, 0, bytes(header))


def test_a_newer_format_version(make_server):
    server = filled(make_server, keys=3)
    path = newest_with(server, b"value-0000-")[0]
    version_two(path, sealed=True)
    must_refuse(server, os.path.basename(path), "version 2", "newer kvasir")


def test_a_damaged_version_is_not_called_newer(make_server):
    server = filled(make_server, keys=3)
    path = newest_with(server, b"value-0000-")[0]
    version_two(path, sealed=False)
    log = must_refuse(server, os.path.basename(path), "damaged at offset 0")
    assert "newer" not in log, log


def test_other_files_in_the_folder_do_no_harm(make_server):
    server = filled(make_server, keys=3)
    for name in ("notes.txt", "log-abc.kv", "log-0000000001.kv.bak"):
        with open(os.path.join(server.data, name), "wb") as file:
            file.write(b"mine")
    server.start()
    with server.client() as c:
        assert c("DBSIZE") == 3
    assert server.stop() == 0
    assert os.path.exists(os.path.join(server.data, "notes.txt"))


def test_an_empty_folder_and_many_restarts(make_server):
    server = make_server("--threads", 1)
    for i in range(6):
        server.start()
        with server.client() as c:
            assert c("INCR", "n") == i + 1
        if i % 2:
            server.kill()
        else:
            assert server.stop() == 0
    # Starts that wrote nothing leave nothing behind.
    for _ in range(4):
        server.start()
        server.kill()
    assert len(segments(server)) < 12


# ---- a failed flush ----


@sanitize
@pytest.mark.parametrize("io", ["uring", "epoll"])
@pytest.mark.parametrize("n", [1, 5])
def test_a_failed_flush_ends_the_server(make_server, io, n):
    server = make_server("--io", io, "--threads", 2, env={"KVASIR_FAULT": f"flush:{n}"}).start()
    acknowledged = []
    with server.client() as c, server.client() as reader:
        i = 0
        try:
            while True:
                c.send(encode("SET", f"k:{i}", i))
                reply = c.reply()
                if isinstance(reply, Error):
                    assert str(reply).startswith("IOERR"), reply
                    assert c.at_end()
                    break
                acknowledged.append(i)
                i += 1
                assert i <= n, "a write was acknowledged after the failed flush"
        except (EOFError, ConnectionResetError):
            raise AssertionError("the client was not told") from None
        reader.send(encode("GET", f"k:{i}"))
        try:
            got = reader.reply()
            assert isinstance(got, Error), f"a reader saw {got!r}, which was never durable"
        except (EOFError, OSError):
            pass
    assert server.process.wait(10) == 5
    assert "log" in server.log()
    server.env.pop("KVASIR_FAULT")
    server.start()
    with server.client() as c:
        for i in acknowledged:
            assert c("GET", f"k:{i}") == b"%d" % i


# ---- a full disk ----


def on_small_disk(size, folder):
    """What to put before a command so that folder is a tmpfs of that size, in a mount namespace of its own."""
    mount = f'mount -t tmpfs -o size={size} none "$0"'
    own = "-m" if os.geteuid() == 0 else "-rm"
    return ["unshare", own, "sh", "-c", f'{mount} && exec "$@"', folder]


@pytest.fixture
def small_disk(make_server):
    """A server whose data folder is a file system of 64 MB of its own."""

    def make(*options):
        server = make_server(*options)
        os.makedirs(server.data)
        server.prefix = on_small_disk("64m", server.data)
        return server.start()

    return make


@pytest.mark.parametrize("io", ["uring", "epoll"])
def test_disk_full(small_disk, io):
    server = small_disk("--io", io, "--threads", 2)
    inside = f"/proc/{server.process.pid}/root{server.data}"
    ballast = os.path.join(inside, "ballast")
    with open(ballast, "wb") as file:
        file.write(bytes(24 << 20))
    stored = []
    with server.client() as c, server.client() as other:
        failure = None
        for i in range(20000):
            c.send(encode("SET", f"k:{i}", "x" * 20000))
            reply = c.reply()
            if isinstance(reply, Error):
                failure = str(reply)
                break
            stored.append(i)
        assert failure and failure.startswith("ERR disk full"), failure
        assert len(stored) > 200
        # Reads and deletes go on, for everybody; nothing of the refused write is there.
        assert c("EXISTS", f"k:{len(stored)}") == 0
        assert other("GET", "k:0") == b"x" * 20000
        assert other("STRLEN", f"k:{stored[-1]}") == 20000
        assert other("DEL", "k:0", "k:1") == 2
        assert other("GET", "k:1") is None
        assert other.error("SET", "other", "x" * 20000).startswith("ERR disk full")
        assert c("PING") == "PONG"
        assert "disk_full:1" in c("INFO", "kvasir").decode()
        # With room it resumes by itself.
        os.unlink(ballast)

        def writes_again():
            c.send(encode("SET", "again", "x" * 20000))
            return c.reply() == "OK"

        wait_until(writes_again, 10, "writes to resume")
        for i in range(50):
            assert c("SET", f"more:{i}", "x" * 20000) == "OK"
        count = c("DBSIZE")
        assert count == len(stored) - 2 + 1 + 50


def test_a_removed_folder_is_not_called_a_full_disk(make_server):
    server = make_server("--disk-limit", "256M", "--threads", 1).start()  # a limit: small segments
    shutil.rmtree(server.data)
    with server.client() as c:
        replies = (c.pipeline([("SET", f"k:{i}", "x" * 20000)])[0] for i in range(5000))
        failure = next(reply for reply in replies if reply != "OK")
        assert str(failure).startswith("ERR another log segment cannot be made: No such file or directory"), failure
        assert c("GET", "k:0") == b"x" * 20000
        assert c("DEL", "k:0") == 1
    assert "No such file or directory" in server.log()


@pytest.mark.parametrize("size", [40, 1000])
def test_a_small_full_disk_does_not_get_stuck(make_server, size):
    """Nobody else takes room: checkpoints succeed while log and cleaner fill the disk, and what is deleted comes free."""
    server = make_server("--threads", 2)
    os.makedirs(server.data)
    server.prefix = on_small_disk("48m", server.data)
    server.start()
    value, stored, batch = b"x" * size, 0, 500
    with server.client(timeout=60) as c:
        while True:
            assert stored < 1000000
            new = [("SET", b"k:%07d" % i, value) for i in range(stored, stored + batch)]
            old = [("SET", b"k:%07d" % (i * 7 % (stored + 1)), value) for i in range(stored, stored + batch)]
            replies = c.pipeline(new + old)
            assert all(r == "OK" or str(r).startswith("ERR disk full") for r in replies), replies
            refused = any(r != "OK" for r in replies[:batch])
            stored += 0 if refused else batch
            if refused:
                break
        for first in range(0, stored, batch):
            assert set(c.pipeline(("DEL", b"k:%07d" % i) for i in range(first, first + batch) if i % 4)) == {1}

        def writes_again():
            return c.pipeline([("SET", b"again", value)]) == ["OK"]

        for first in range(0, stored // 4, batch):
            keys = [b"new:%07d" % i for i in range(first, first + batch)]
            left = keys
            while left:
                wait_until(writes_again, 30, "writes to resume")
                replies = c.pipeline(("SET", key, value) for key in left)
                left = [key for key, r in zip(left, replies) if r != "OK"]
        c("SAVE")
        assert "was given up" not in server.log(), server.log()


def test_no_room_at_the_start(make_server):
    server = make_server()
    os.makedirs(server.data)
    server.prefix = on_small_disk("64k", server.data)
    code, log = server.run_to_end()
    assert code == 1
    assert server.data in log and ("space" in log or "full" in log), log


# ---- what a reader saw ----


@sanitize
def test_nothing_seen_is_taken_back(make_server):
    """A reader sees a value, a nil after a delete, and a failed SET NX; then the server is killed at once."""
    server = make_server("--threads", 2).start()
    for n in range(12):
        with server.client() as writer, server.client() as reader:
            writer.send(encode("SET", "seen", n) + encode("DEL", "gone") + encode("SET", "lock", n))
            seen, gone, lock = reader.pipeline([["GET", "seen"], ["EXISTS", "gone"], ["SET", "lock", "no", "NX"]])
            server.kill()
        server.start()
        with server.client() as c:
            if seen is not None:
                assert int(c("GET", "seen")) >= int(seen)
            if n and gone == 0:
                assert c("EXISTS", "gone") == 0
            if lock is None:
                assert c("EXISTS", "lock") == 1
            c.pipeline([["SET", "gone", "v"], ["DEL", "lock"]])


def test_a_start_takes_no_time(make_server):
    """A log of some hundred thousand records is replayed in moments."""
    server = make_server("--threads", 1).start()
    with server.client() as c:
        for start in range(0, 100000, 1000):
            assert set(c.pipeline(["SET", f"key:{i}", "v" * 20] for i in range(start, start + 1000))) == {"OK"}
    server.kill()
    start = time.monotonic()
    server.start()
    assert time.monotonic() - start < 10
    with server.client() as c:
        assert c("DBSIZE") == 100000


def blocks_sigterm(server):
    with open(f"/proc/{server.process.pid}/status", encoding="ascii") as status:
        mask = next(line for line in status if line.startswith("SigBlk:"))
    return int(mask.split()[1], 16) >> (signal.SIGTERM - 1) & 1


def test_sigterm_while_loading(make_server):
    """A long load is left at once, and harms nothing."""
    keys = 1000000
    server = make_server("--threads", 1).start()
    subprocess.run([BINARY, "bench", "--connect", f"127.0.0.1:{server.port}", "--workload", "insert", "--keys", str(keys),
                    "--clients", "8", "--pipeline", "500"], check=True, capture_output=True)  # fmt: skip
    server.kill()
    server.spawn()
    wait_until(lambda: blocks_sigterm(server), what="the server to take its signals itself")
    assert server.stop() == 0
    assert "stops while loading" in server.log()
    assert not os.path.exists(server.unix)
    server.start()
    with server.client() as c:
        assert c("DBSIZE") == keys


@sanitize
def test_two_signals_at_once_are_one(make_server):
    """timeout(1) sends two. Both are pending before the first is taken; a third comes a moment later."""
    server = make_server("--threads", 1, "--durability", "interval").start()
    with server.client() as c:
        assert c("SET", "k", "v") == "OK"
    server.process.send_signal(signal.SIGSTOP)
    server.process.send_signal(signal.SIGTERM)
    server.process.send_signal(signal.SIGINT)
    server.process.send_signal(signal.SIGCONT)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(20) == 0, server.log()
    with server.start().client() as c:
        assert c("GET", "k") == b"v"


def cpu_ticks(server):
    with open(f"/proc/{server.process.pid}/stat", encoding="ascii") as stat:
        return int(stat.read().rsplit(")", 1)[1].split()[11])


def test_a_later_second_signal_ends_at_once(make_server):
    """The only worker is long at one command: matching each key takes 2^30 steps."""
    server = make_server("--threads", 1).start()
    with server.client() as c:
        for i in range(10):
            c("SET", "a" * 65535 + str(i), "v")
        before = cpu_ticks(server)
        c.send(encode("KEYS", "*" + "a" * 32768 + "b"))
        wait_until(lambda: cpu_ticks(server) >= before + 10, what="the command to be at work")
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "SIGTERM: stops" in server.log(), what="the first signal")
        time.sleep(1.1)  # the time in which signals count as one
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(20) == 128 + signal.SIGINT
    assert "second signal: ends at once" in server.log()
