"""Folders with files in them that no server has made: they are passed over, or refused with their name."""

import os
import subprocess

import pytest
from kvasir_server import BINARY

pytestmark = [pytest.mark.kvasir, pytest.mark.sanitize]

JUNK = bytes(range(256)) * 32


def write(data):
    def make(path):
        with open(path, "wb") as file:
            file.write(data)

    return make


def link(to):
    return lambda path: os.symlink(to, path)


PASSED_OVER = [  # name, how it is made, does it go with the next checkpoint
    ("toc-9999999999.kv", write(JUNK), True),
    ("toc-9999999999.kv", os.mkdir, False),
    ("toc-99999999999.kv", write(JUNK), False),
    ("toc-0000000003.kv", write(JUNK), True),
    ("toc-0000000003.kv", link("toc-0000000002.kv"), True),
    ("toc-0000000000.kv", link("toc-0000000002.kv"), True),
    ("toc-0000000003.kv", link("/dev/zero"), True),
    ("toc-0000000003.kv", os.mkfifo, True),
    ("data-0134217727.kv", write(JUNK), True),
    ("data-0134217727.kv", os.mkdir, False),
    ("data-18446744073709551615.kv", write(JUNK), False),
    ("data-0000000077.kv", link("log-0000000001.kv"), True),
    ("log-9999999999.kv", write(JUNK), False),
    ("log-18446744073709551615.kv", write(JUNK), False),
    ("log-0000000009.kv.bak", write(JUNK), False),
    ("spare-0000000001.kv", os.mkdir, False),
    ("spare-0000000001.kv", link("log-0000000001.kv"), True),
    ("toc-0000000003.tmp", link("log-0000000001.kv"), True),
    ("toc-0000000003.tmp", link("."), True),
    ("toc-0000000003.tmp", os.mkfifo, True),
    ("log--000000001.kv", write(JUNK), False),
    ("log-         1.kv", write(JUNK), False),
]

REFUSED = [
    ("log-0000000009.kv", os.mkdir),
    ("log-0000000009.kv", os.mkfifo),
    ("log-0000000009.kv", link("/dev/zero")),
    ("log-0000000009.kv", link("nowhere")),
    ("log-0000000009.kv", link("log-0000000001.kv")),
    ("log-0134217727.kv", write(JUNK)),
    ("toc-0000000003.tmp", os.mkdir),
    ("lock", os.mkdir),
]

A_FOLDER = "is a folder, where a file of the server's own belongs: move it away"


def check(*arguments):
    result = subprocess.run([BINARY, "check", *arguments], capture_output=True, text=True, timeout=60)
    return result.returncode, result.stdout + result.stderr


@pytest.fixture
def filled(make_server):
    server = make_server("--threads", 1).start()
    with server.client() as c:
        c.pipeline(["SET", f"k:{i}", "v"] for i in range(100))
        assert [c("SAVE"), c("SET", "later", "x"), c("SAVE")] == ["OK"] * 3
    assert server.stop() == 0
    return server


@pytest.mark.parametrize("name, make, goes", PASSED_OVER, ids=lambda v: v if isinstance(v, str) else "")
def test_is_passed_over(filled, tmp_path, name, make, goes):
    path = os.path.join(filled.data, name)
    make(path)
    code, text = check(filled.data)
    assert code in (0, 1, 3) and name in text, (code, text)
    repaired = str(tmp_path / "repaired")
    assert check(filled.data, "--repair", repaired)[0] == code
    for run in range(2):
        with filled.start().client() as c:
            assert c("DBSIZE") == 101 + run
            assert c("SET", f"run:{run}", "v") == "OK"
            assert [c("SAVE"), c("SAVE")] == ["OK", "OK"]
            assert c("BACKUP", str(tmp_path / f"copy{run}")).startswith("OK ")
        filled.kill()
        left = [entry for entry in os.listdir(filled.data) if os.path.islink(os.path.join(filled.data, entry))]
        assert not left, "a link is used as if it were a file of the server's own"
    tocs = {entry for entry in os.listdir(filled.data) if entry.startswith("toc-") and entry.endswith(".kv")} - {name}
    assert len(tocs) == 2 and all(entry < "toc-0000000020" for entry in tocs), tocs
    assert os.path.lexists(path) == (not goes)
    for folder in (repaired, str(tmp_path / "copy1")):
        assert check(folder)[0] == 0


@pytest.mark.parametrize("name, make", REFUSED, ids=lambda v: v if isinstance(v, str) else "")
def test_is_refused(filled, tmp_path, name, make):
    path = os.path.join(filled.data, name)
    if name == "lock":
        os.unlink(path)
    make(path)
    code, text = filled.run_to_end()
    assert code == 1 and name in text, (code, text)
    in_its_place = name in ("lock", "toc-0000000003.tmp")
    assert not in_its_place or f"{name} {A_FOLDER}" in text, text
    code, text = check(filled.data, "--repair", str(tmp_path / "repaired"))
    assert name in text, text
    if in_its_place:
        assert f"{name} {A_FOLDER}" in text and "would not start" in text and "removes it" not in text, text
        assert check(filled.data)[0] == 2
    assert check(str(tmp_path / "repaired"))[0] == 0
    os.rmdir(path) if os.path.isdir(path) and not os.path.islink(path) else os.unlink(path)
    with filled.start().client() as c:
        assert c("DBSIZE") == 101


def test_a_log_segment_with_the_last_number(filled):
    """Nothing was written to it, but nothing can come behind it."""
    write(b"")(os.path.join(filled.data, "log-0134217727.kv"))
    code, text = check(filled.data)
    assert code == 2 and "log-0134217727.kv has the highest number there is" in text, text
    code, text = filled.run_to_end()
    assert code == 1 and "has used up its segment numbers" in text, text
