"""A raw RESP client that hides nothing: it knows the exact bytes of every reply."""

import socket
import time


class Error(Exception):
    """An error reply as a value: str(e) is its text."""


class Status(str):
    """A simple string (+OK)."""


def encode(*args):
    """A command as RESP bytes. Strings and numbers become UTF-8 text."""
    parts = [b"*%d\r\n" % len(args)]
    for arg in args:
        if not isinstance(arg, (bytes, bytearray, memoryview)):
            arg = str(arg).encode()
        parts += [b"$%d\r\n" % len(arg), bytes(arg), b"\r\n"]
    return b"".join(parts)


class Client:
    """One connection. Every wait ends after `timeout` seconds with an exception."""

    def __init__(self, address, timeout=20):
        if isinstance(address, str):
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(timeout)
            self.sock.connect(address)
        else:
            self.sock = socket.create_connection(address, timeout)
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = bytearray()
        self.position = 0

    def close(self):
        self.sock.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def send(self, data):
        self.sock.sendall(data)

    def _fill(self):
        data = self.sock.recv(1 << 20)
        if not data:
            raise EOFError("the server closed the connection")
        if self.position > 1 << 20:
            del self.buffer[: self.position]
            self.position = 0
        self.buffer += data

    def _line(self):
        start = self.position
        while True:
            end = self.buffer.find(b"\r\n", start)
            if end >= 0:
                line = bytes(self.buffer[self.position : end])
                self.position = end + 2
                return line
            start = max(self.position, len(self.buffer) - 1)
            shift = self.position
            self._fill()
            if self.position == 0 and shift:
                start -= shift

    def _bytes(self, n):
        while len(self.buffer) - self.position < n:
            self._fill()
        data = bytes(self.buffer[self.position : self.position + n])
        self.position += n
        return data

    def _read(self, raw):
        line = self._line()
        raw.append(line + b"\r\n")
        kind, rest = line[:1], line[1:]
        if kind == b"+":
            return Status(rest.decode("latin1"))
        if kind == b"-":
            return Error(rest.decode("latin1"))
        if kind == b":":
            return int(rest)
        if kind in b"$=":
            n = int(rest)
            if n < 0:
                return None
            data = self._bytes(n + 2)
            assert data[-2:] == b"\r\n", f"a bulk of {n} bytes is not ended by CRLF: {data[-20:]!r}"
            raw.append(data)
            return data[:-2]
        if kind in b"*~>":
            n = int(rest)
            return None if n < 0 else [self._read(raw) for _ in range(n)]
        if kind == b"%":
            pairs = [(self._read(raw), self._read(raw)) for _ in range(int(rest))]
            return {key: value for key, value in pairs}
        if kind == b"_":
            return None
        if kind == b",":
            return float(rest)
        if kind == b"#":
            return rest == b"t"
        raise AssertionError(f"no RESP type starts with {line[:60]!r}")

    def reply(self):
        """The next reply as a value; errors are values too."""
        return self._read([])

    def raw_reply(self):
        """The exact bytes of the next reply."""
        raw = []
        self._read(raw)
        return b"".join(raw)

    def __call__(self, *args):
        """Sends one command and returns its reply as a value; raises Error for an error reply."""
        self.send(encode(*args))
        reply = self.reply()
        if isinstance(reply, Error):
            raise reply
        return reply

    def raw(self, *args):
        """Sends one command and returns the exact bytes of its reply."""
        self.send(encode(*args))
        return self.raw_reply()

    def error(self, *args):
        """Sends one command that must fail and returns the error's text."""
        self.send(encode(*args))
        reply = self.reply()
        assert isinstance(reply, Error), f"{args!r} answered {reply!r}, not an error"
        return str(reply)

    def pipeline(self, commands):
        """Sends all at once (reading while writing is the caller's worry: keep it below a megabyte) and
        returns the replies as values."""
        commands = list(commands)
        self.send(b"".join(encode(*command) for command in commands))
        return [self.reply() for _ in commands]

    def at_end(self):
        """True if the server has closed the connection (waits for it), after any unread bytes."""
        if self.position < len(self.buffer):
            return False
        try:
            return self.sock.recv(1) == b""
        except ConnectionResetError:
            return True

    def rest(self):
        """Everything up to the server's close."""
        data = bytes(self.buffer[self.position :])
        try:
            while chunk := self.sock.recv(1 << 16):
                data += chunk
        except ConnectionResetError:
            pass
        return data


def wait_until(condition, timeout=10, what="the condition"):
    """Polls for something that another process does; fails loudly when it does not come."""
    end = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"waited {timeout} s for {what}"
        time.sleep(0.005)
