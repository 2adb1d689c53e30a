"""Starts, measures and ends the servers that compare.py compares, and runs the generator, `kvasir bench`, against them."""

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
KVASIR = os.path.abspath(os.environ.get("KVASIR_BINARY", os.path.join(ROOT, "build", "kvasir")))
SERVER_CORE, GENERATOR_CORE = 0, 1
VALUE_BYTES = 64
START_SECONDS_MAX = 900


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    """A running server. `kind` is kvasir, redis, valkey or memcached. Without `pinned` it may use every core.
    memory_bytes: kvasir's --memory, memcached's -m; with it memcached keeps values in a file of extstore_bytes."""

    all_running = []  # those that were started and not ended

    @classmethod
    def running(cls):
        return list(cls.all_running)

    def __init__(self, kind, durable, base, memory_bytes=None, options=(), extstore_bytes=None, threads=1, pinned=True):
        self.kind, self.durable = kind, durable
        self.memory_bytes, self.options, self.extstore_bytes, self.threads = memory_bytes, list(options), extstore_bytes, threads
        self.name = kind + (" durable" if durable else "") + (" extstore" if extstore_bytes else "")
        self.port = free_port()
        self.folder = tempfile.mkdtemp(prefix=f"{kind}-", dir=base)
        self.data = os.path.join(self.folder, "data")
        self.command = [*(["taskset", "-c", str(SERVER_CORE)] if pinned else []), *self._command()]
        self.log = open(os.path.join(self.folder, "server.log"), "ab")
        self.dropper = PageDropper(self.data) if extstore_bytes else None
        self.process = None
        Server.all_running.append(self)
        self.start()

    def start(self):
        """Starts it, waits until it serves. Returns the seconds that took."""
        began = time.monotonic()
        self.process = subprocess.Popen(self.command, stdout=self.log, stderr=self.log, cwd=self.folder)
        self._wait()
        return time.monotonic() - began

    def _command(self):
        port = str(self.port)
        if self.kind == "kvasir":
            memory = ["--memory", str(self.memory_bytes)] if self.memory_bytes else []
            return [KVASIR, "server", "--port", port, "--dir", self.data, "--threads", str(self.threads),
                    "--durability", "fsync" if self.durable else "none", *memory, *self.options]  # fmt: skip
        if self.kind == "memcached":
            user = ["-u", "root"] if os.geteuid() == 0 else []
            megabytes = (self.memory_bytes or 16384 << 20) >> 20
            if self.extstore_bytes:
                # As many reads in flight as kvasir has; every value over 512 bytes goes to the file at once.
                user += ["-o", f"ext_path={self.data}:{(self.extstore_bytes >> 20) + 1}M,ext_threads=64,ext_item_age=0"]
            return ["memcached", "-l", "127.0.0.1", "-p", port, "-U", "0", "-t", str(self.threads), "-m", str(megabytes),
                    "-c", "4096", *user]  # fmt: skip
        aof = ["--appendonly", "yes", "--appendfsync", "always", "--auto-aof-rewrite-percentage", "0"]
        return [f"{self.kind}-server", "--port", port, "--bind", "127.0.0.1", "--dir", self.folder, "--save", "",
                *(aof if self.durable else ["--appendonly", "no"])]  # fmt: skip

    def _wait(self):
        end = time.monotonic() + START_SECONDS_MAX
        while True:
            try:
                if self.kind != "kvasir":
                    socket.create_connection(("127.0.0.1", self.port), 1).close()
                    return
                if self.ask("PING") == "PONG":  # before that: LOADING
                    return
            except OSError:
                pass
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{self.name} does not start: {' '.join(self.command)}: {self.log_tail()}")
            time.sleep(0.02)

    def log_tail(self):
        with open(self.log.name, encoding="utf-8", errors="replace") as log:
            return log.read()[-500:]

    def ask(self, *words, seconds=10):
        """The text of a Redis server's reply; an error's begins with '-'. Not for arrays."""
        with socket.create_connection(("127.0.0.1", self.port), seconds) as s:
            s.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w.encode()) for w in words))
            with s.makefile("rb") as replies:
                line = replies.readline().decode().rstrip("\r\n")
                if line.startswith("$") and line != "$-1":
                    return replies.read(int(line[1:])).decode()
        if not line:
            raise ConnectionResetError("no reply")
        return line if line.startswith("-") else line[1:]

    def counters(self):
        """INFO's or stats' numbers."""
        if self.kind != "memcached":
            return parse_counters(self.ask("INFO", "everything"))
        with socket.create_connection(("127.0.0.1", self.port), 10) as s:
            s.sendall(b"stats\r\n")
            with s.makefile("r", encoding="ascii") as replies:
                lines = iter(replies.readline, "END\n")
                return parse_counters("\n".join(line.removeprefix("STAT ").replace(" ", ":", 1) for line in lines))

    def pause(self):
        self.process.send_signal(signal.SIGSTOP)

    def resume(self):
        self.process.send_signal(signal.SIGCONT)

    def kill(self):
        if self.process:  # None: its program is not there
            self.process.kill()
            self.process.wait()

    def rss_bytes(self):
        with open(f"/proc/{self.process.pid}/statm", encoding="ascii") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE")

    def cpu_seconds(self):
        with open(f"/proc/{self.process.pid}/stat", encoding="ascii") as stat:
            fields = stat.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def io_bytes(self):
        """(read from, written to the disk) by this process, as the kernel counts."""
        with open(f"/proc/{self.process.pid}/io", encoding="ascii") as io:
            numbers = parse_counters(io.read())
        return numbers["read_bytes"], numbers["write_bytes"]

    def disk_bytes(self):
        return folder_bytes(self.folder)

    def end(self):
        if self.dropper:
            self.dropper.end()
        self.kill()
        Server.all_running.remove(self)
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class PageDropper:
    """Keeps a file's clean pages out of the page cache while it lives: for programs that know no direct reads, whose cold values
    would otherwise lie in memory beyond their limit."""

    def __init__(self, path):
        self.path = path
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        while not self.ended.wait(0.05):
            if os.path.exists(self.path):
                drop_pages(self.path)

    def end(self):
        self.ended.set()
        self.thread.join()


def drop_pages(path):
    """Of one file, or of every file in a folder."""
    names = [os.path.join(path, name) for name in os.listdir(path)] if os.path.isdir(path) else [path]
    for name in names:
        if os.path.isfile(name):
            fd = os.open(name, os.O_RDONLY)
            try:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)


def folder_bytes(path):
    """What the files in it take on disk."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                total += os.stat(os.path.join(folder, name)).st_blocks * 512
            except FileNotFoundError:  # removed meanwhile
                pass
    return total


def parse_counters(text):
    """{name: number} of lines "name:number" and "name:calls=number..."; other lines are left out."""
    numbers = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        value = value.strip().removeprefix("calls=").split(",")[0]
        try:
            numbers[name.strip()] = float(value) if "." in value else int(value)
        except ValueError:
            pass
    return numbers


def generator_command(server, *options):
    protocol = ["--protocol", "memcached"] if server.kind == "memcached" else []
    return [KVASIR, "bench", "--connect", f"127.0.0.1:{server.port}", "--json", "--pin", str(GENERATOR_CORE),
            *protocol, *map(str, options)]  # fmt: skip


def generator_result(command, result, server):
    if result.returncode != 0 or not result.stdout.strip():
        raise RuntimeError(f"{' '.join(command)} ended with {result.returncode}: {result.stderr[-500:]}")
    numbers = json.loads(result.stdout)
    numbers["command"] = " ".join(command).replace(ROOT + "/", "")
    if numbers.get("errors") or numbers.get("wrong"):
        raise RuntimeError(f"{server.name}: {numbers.get('errors')} errors: {' '.join(command)}")
    return numbers


def generate(server, *options):
    """Runs the generator against it, with its own default sizes. Its numbers."""
    command = generator_command(server, *options)
    before = server.cpu_seconds()
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    numbers = generator_result(command, result, server)
    numbers["server_cpu_seconds"] = server.cpu_seconds() - before
    return numbers


def generator(server, *options):
    """The same with values of VALUE_BYTES."""
    return generate(server, "--value-size", VALUE_BYTES, *options)


def fill(server, keys):
    """Puts keys 0..keys-1 there, each once. Returns the generator's numbers."""
    return generator(server, "--workload", "insert", "--keys", keys, "--clients", 8, "--pipeline", 500, "--seconds", 3600)
