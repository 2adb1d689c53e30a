"""Every command, byte for byte: the transcripts hold commands (>) and Redis 7's exact replies (<).

A command after @ is sent, but its reply isn't compared. A case starts with `## title` and an empty store. Arguments are split at spaces; "..." quotes, with \\xNN, \\r, \\n, \\t.
The replies were recorded from redis-server: KVASIR_TEST_SERVER=redis pytest --record test_transcripts.py"""

import glob
import os
import re

import pytest
from kvasir_server import IS_REDIS

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "transcripts")


def arguments(line):
    out = []
    for quoted, plain in re.findall(r'"((?:[^"\\]|\\.)*)"|(\S+)', line):
        if plain:
            out.append(plain.encode())
        else:
            out.append(quoted.encode().decode("unicode_escape").encode("latin1"))
    return out


def reply_lines(raw):
    """A reply's bytes, one line for each CRLF, printable."""
    assert raw.endswith(b"\r\n")
    lines = raw[:-2].split(b"\r\n")
    return [line.decode("latin1").encode("unicode_escape").decode() for line in lines]


def cases():
    for path in sorted(glob.glob(os.path.join(FOLDER, "*.txt"))):
        name = os.path.basename(path)[:-4]
        title, steps = None, []
        for line in open(path, encoding="utf-8").read().splitlines():
            if line.startswith("## "):
                if title:
                    yield pytest.param(steps, id=f"{name}: {title}")
                title, steps = line[3:], []
            elif line.startswith("> "):
                steps.append((line[2:], []))
            elif line.startswith("@ "):
                steps.append((line[2:], None))
            elif line.startswith("< ") or line == "<":
                steps[-1][1].append(line[2:])
        yield pytest.param(steps, id=f"{name}: {title}")


@pytest.mark.sanitize
@pytest.mark.parametrize("steps", cases())
def test_transcript(server, c, steps, request):
    if request.config.getoption("--record"):
        pytest.skip("recording")
    with server.client() as client:
        for number, (line, expected) in enumerate(steps):
            got = reply_lines(client.raw(*arguments(line)))
            assert expected is None or got == expected, f"step {number}: {line}"


def test_record(server, c, request):
    if not request.config.getoption("--record"):
        return
    assert IS_REDIS, "only redis-server's replies may be recorded"
    for path in glob.glob(os.path.join(FOLDER, "*.txt")):
        out, client = [], None
        for line in open(path, encoding="utf-8").read().splitlines():
            if line.startswith("<"):
                continue
            out.append(line)
            if line.startswith("## "):
                client = server.client()
                client("FLUSHALL")
            elif line.startswith("@ "):
                client.raw(*arguments(line[2:]))
            elif line.startswith("> "):
                out += ["< " + text if text else "<" for text in reply_lines(client.raw(*arguments(line[2:])))]
        open(path, "w", encoding="utf-8").write("\n".join(out) + "\n")
