"""Random and broken requests against a sanitizer build. The server must neither die nor stop serving others.

usage: fuzz_protocol.py [--binary build-asan/kvasir] [--seconds 60] [--seed N]"""

import argparse
import os
import random
import socket
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "clients"))

from kvasir_client import encode  # noqa: E402
from kvasir_server import Server  # noqa: E402

WORDS = """GET SET SETNX SETEX PSETEX GETSET GETDEL GETEX MGET MSET MSETNX APPEND STRLEN GETRANGE SETRANGE INCR DECR INCRBY
DECRBY INCRBYFLOAT DEL UNLINK EXISTS TOUCH TYPE KEYS SCAN RANDOMKEY EXPIRE PEXPIRE EXPIREAT PEXPIREAT TTL PTTL EXPIRETIME
PERSIST KIDS RANGE DELTREE DBSIZE FLUSHALL PING ECHO HELLO RESET SELECT COMMAND CLIENT CONFIG INFO TIME EX PX EXAT PXAT
KEEPTTL NX XX GT LT LIMIT FROM VALUES REV KEYS MATCH COUNT DOCS LIST ID KILL GETNAME SETNAME""".split()
VALUES = [b"", b"0", b"1", b"-1", b"2", b"3", b"9223372036854775807", b"-9223372036854775808", b"9223372036854775808", b"1e308",
          b"nan", b"a", b"a/b", b"a/", b"/", b"a/b/c", b"-", b"+", b"*", b"[a-", b"\\", b"\0", b"\xff", b"x" * 3000, b"k" * 65537]  # fmt: skip


def request(rng):
    words = [rng.choice(WORDS)] + [rng.choice([rng.choice(WORDS).encode(), rng.choice(VALUES)]) for _ in range(rng.randrange(6))]
    return encode(*words)


def broken(rng):
    data = bytearray(b"".join(request(rng) for _ in range(rng.randrange(1, 20))))
    for _ in range(rng.randrange(4)):
        at = rng.randrange(len(data))
        kind = rng.randrange(5)
        if kind == 0:
            data[at] = rng.randrange(256)
        elif kind == 1:
            del data[at : at + rng.randrange(20)]
        elif kind == 2:
            data[at:at] = rng.randbytes(rng.randrange(20))
        elif kind == 3:
            data[at:at] = rng.choice([b"\r\n", b"*", b"$", b"*-1\r\n", b"$-1\r\n", b"*99999999\r\n", b"$99999999999\r\n", b"'", b'"'])
        else:
            data[at:at] = data[: rng.randrange(len(data) + 1)]
        if not data:
            return b"\r\n"
    return bytes(data)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", default="build-asan/kvasir")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.randrange(1 << 32)
    rng = random.Random(seed)
    print(f"seed {seed}")
    count = 0
    for io in ("uring", "epoll"):
        server = Server("--io", io, "--threads", 2, binary=os.path.abspath(options.binary)).start()
        try:
            end = time.monotonic() + options.seconds / 2
            while time.monotonic() < end:
                count += 1
                with server.client(timeout=5) as c:
                    try:
                        for piece in range(rng.randrange(1, 5)):
                            c.send(broken(rng))
                        c.sock.shutdown(socket.SHUT_WR)
                        while c.sock.recv(1 << 16):
                            pass
                    except TimeoutError:  # whatever was sent, the end of it must be answered by a close
                        print(f"the server neither answers nor closes (seed {seed}, {io}, connection {count})")
                        return 1
                    except OSError:
                        pass  # the server has closed first
                if server.process.poll() is not None:
                    break
                if count % 50 == 0:
                    with server.client() as c:
                        assert c("PING") == "PONG"
            code = server.stop() if server.process.poll() is None else server.process.returncode
            if code != 0:
                print(server.log()[-8000:])
                print(f"the server ended with {code} (seed {seed}, {io})")
                return 1
        finally:
            server.destroy()
    print(f"{count} connections, no failure")
    return 0


sys.exit(main())
