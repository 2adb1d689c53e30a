"""Starts and stops servers for tests: build/kvasir, or redis-server to prove the expectations right."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time

from kvasir_client import Client, Error

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BINARY = os.path.abspath(os.environ.get("KVASIR_BINARY", os.path.join(ROOT, "build", "kvasir")))
IS_REDIS = os.environ.get("KVASIR_TEST_SERVER") == "redis"
IS_SANITIZED = "asan" in BINARY or "tsan" in BINARY


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    """One server process with a folder of its own. start() may be called again after it ended: same folder, same port."""

    def __init__(self, *options, directory=None, env=None, binary=None, prefix=()):
        self.options = [str(option) for option in options]
        self.own_directory = directory is None
        self.directory = directory or tempfile.mkdtemp(prefix="kvasir-test-")
        self.data = os.path.join(self.directory, "data")
        self.unix = os.path.join(self.directory, "socket")
        self.log_path = os.path.join(self.directory, "server.log")
        self.port = free_port()
        self.env = dict(os.environ, **(env or {}))
        self.binary = binary or BINARY
        self.prefix = list(prefix)
        self.process = None

    def command(self):
        if IS_REDIS:
            os.makedirs(self.data, exist_ok=True)
            return ["redis-server", "--port", str(self.port), "--unixsocket", self.unix, "--dir", self.data,
                    "--save", "", "--appendonly", "no", "--databases", "1", *os.environ.get("KVASIR_REDIS_OPTIONS", "").split()]  # fmt: skip
        return [self.binary, "server", "--listen", f"127.0.0.1:{self.port}", "--unix", self.unix,
                "--dir", self.data, *self.options]  # fmt: skip

    def spawn(self):
        """Starts the process without waiting for it to serve."""
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                self.prefix + self.command(), stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=self.env
            )
        return self.process

    def start(self, timeout=20):
        self.spawn()
        end = time.monotonic() + timeout
        while True:
            try:
                with Client(self.address, timeout=timeout) as client:
                    client("PING")
                    return self
            except (OSError, EOFError):
                pass
            except Error as error:
                if not str(error).startswith("LOADING"):
                    raise
            code = self.process.poll()
            assert code is None, f"the server ended with {code}:\n{self.log()}"
            assert time.monotonic() < end, f"the server does not answer:\n{self.log()}"
            time.sleep(0.005)

    def run_to_end(self, timeout=20):
        """For starts that must fail: (exit code, what was printed)."""
        process = self.spawn()
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"the server should have refused to start:\n{self.log()}") from None
        return code, self.log()

    @property
    def address(self):
        return ("127.0.0.1", self.port)

    def client(self, timeout=20):
        return Client(self.address, timeout)

    def log(self):
        with open(self.log_path, encoding="utf-8", errors="replace") as log:
            return log.read()

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self, timeout=20):
        """SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)

    def destroy(self):
        """Ends the process, in any state, and removes the folder."""
        if self.process and self.process.poll() is None:
            self.kill()
        if self.own_directory:
            shutil.rmtree(self.directory, ignore_errors=True)
