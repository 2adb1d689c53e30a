"""Crash tests: SIGKILL under load, restart, and everything that anybody was told must still hold.

50 connections write (SET, INCR, DEL, MSET, APPEND, DELTREE, on keys of their own and on shared ones) and read; each
writes down what it was told. In most rounds there is memory for few of the values, so that most are only on disk, and
checkpoints are under way nearly all the time. Every second folder has a --disk-limit so small that the cleaner runs all the
time too; there writes may be refused, and then must have changed nothing. At a random moment the server is killed, now and then also while it
stops or starts, and in some rounds BACKUPs are made meanwhile: those that are complete must check. After the restart is checked:
  - every acknowledged write is there, or a later one of the same key;
  - nothing a reader saw is gone: no value, no count, no nil after a delete;
  - a MSET is there whole or not at all;
  - what was in flight is either done or not, never something else.
Rounds continue on the same folder, so that a recovered log is crashed again. Two runs of the same seed do the same,
but not at the same moments. The last line is "N passed, N failed".

usage: crash.py [--binary build/kvasir] [--rounds 50] [--seed N] [--keep] [--tight]"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "clients"))

from kvasir_client import Client, Error, encode  # noqa: E402
from kvasir_server import IS_REDIS, Server  # noqa: E402

CONNECTIONS = 50
READERS = 10
SHARED = 8
OWN = 150  # keys of a connection's own
SIZES = [0, 0, 10, 100, 500, 1000, 2000, 4000, 9000, 30000]
APPENDED_MAX = 20000
MEMORY = "32M"  # too little for the values
TIGHT_SIZES = [10, 1000, 9000, 30000, 30000]
DISK_LIMIT = "48M"  # where it is tight: a second's writes
FULL = "ERR disk full"


class Violation(Exception):
    """A promise was broken."""


def is_refusal(reply):
    return isinstance(reply, Error) and str(reply).startswith(FULL)


def surely(c, worker, *command):
    """Until it is not refused."""
    while True:
        (reply,) = c.pipeline([command])
        if not is_refusal(reply):
            if isinstance(reply, Error):
                raise Violation(f"{command[:2]!r} answered {reply!r}")
            return reply
        worker.refused += 1
        time.sleep(0.005)  # so that the cleaner has some of the processor


class Own:
    """A connection that alone writes its keys: it knows exactly what may be there.

    For each key: the list of values since the last acknowledged one, oldest first; after a crash one of them must be there."""

    def __init__(self, me, rng, tight):
        self.me = me
        self.rng = rng
        self.tight = tight
        self.refused = 0
        self.possible = {}  # key -> [value or None]: [0] is acknowledged, the rest in flight
        self.serial = 0
        self.acknowledged = 0

    def key(self):
        n = self.rng.randrange(OWN if self.rng.random() < 0.7 else 12)
        return b"own/%d/%d/%d" % (self.me, n % 5, n)

    def last(self, key):
        return self.possible.get(key, [None])[-1]

    def command(self):
        """A random command and what it does: (command, {key: new value}, reply expected)."""
        self.serial += 1
        kind = self.rng.random()
        value = b"%d:%d" % (self.me, self.serial)
        if kind < 0.15:
            key = self.key()
            return ["GET", key], {}, self.last(key)
        if kind < 0.2:
            return ["EXPIRE", key := self.key(), 100000], {}, int(self.last(key) is not None)
        if kind < 0.205 and not IS_REDIS:
            tree = b"own/%d/%d" % (self.me, self.rng.randrange(5))
            keys = [k for k in self.possible if k.startswith(tree + b"/") and self.last(k) is not None]
            return ["DELTREE", tree], dict.fromkeys(keys), len(keys)
        if kind < 0.4:
            pad = b"x" * self.rng.choice(TIGHT_SIZES if self.tight else SIZES)
            return ["SET", key := self.key(), value + pad], {key: value + pad}, "OK"
        if kind < 0.5:
            key = self.key()
            old = self.last(key)
            return ["DEL", key], {key: None}, int(old is not None)
        if kind < 0.65:
            key = b"own/%d/count" % self.me
            new = int(self.last(key) or 0) + 1
            return ["INCR", key], {key: b"%d" % new}, new
        if kind < 0.8:
            key = self.key()
            new = (self.last(key) or b"") + b"+" + value
            if len(new) > APPENDED_MAX:
                return ["SET", key, value], {key: value}, "OK"
            return ["APPEND", key, b"+" + value], {key: new}, len(new)
        keys = sorted({self.key() for _ in range(4)})
        return ["MSET", *[x for k in keys for x in (k, value)]], dict.fromkeys(keys, value), "OK"

    def work(self, address):
        with Client(address) as c:
            while True:
                batch = []
                # What follows a refused command in a pipeline would expect its effect.
                for _ in range(1 if self.tight else self.rng.choice([1, 1, 2, 5, 20])):
                    command, changes, expected = self.command()
                    for key, value in changes.items():
                        self.possible.setdefault(key, [None]).append(value)
                    batch.append((command, changes, expected))
                c.send(b"".join(encode(*command) for command, _, _ in batch))
                for command, changes, expected in batch:
                    reply = c.reply()
                    if self.tight and is_refusal(reply):
                        self.refused += 1
                        for key in changes:
                            self.possible[key].pop()
                        time.sleep(0.005)
                        continue
                    if isinstance(reply, Error) or reply != expected:
                        raise Violation(f"{command[:2]!r} answered {reply!r}, not {expected!r}")
                    self.acknowledged += 1
                    for key in changes:
                        self.possible[key].pop(0)

    def check(self, c):
        """After the restart. What is found becomes the only truth."""
        keys = list(self.possible)
        for start in range(0, len(keys), 50):
            part = keys[start : start + 50]
            for key, found in zip(part, c.pipeline(["GET", key] for key in part)):
                self.check_key(key, found)

    def check_key(self, key, found):
        possible = self.possible[key]
        if isinstance(found, Error) or found not in possible:
            raise Violation(f"{key!r} is {show(found)}; acknowledged was {show(possible[0])}, "
                            f"in flight {[show(v) for v in possible[1:]]}")  # fmt: skip
        # Values may repeat only as None, so this is unambiguous enough for the next round.
        self.possible[key] = [found]


class Shared:
    """Writers of shared keys: counters only grow; groups are written by MSET with one value for all members. What each
    was told is a lower bound for ever."""

    def __init__(self, me, rng, floor):
        self.me = me
        self.rng = rng
        self.floor = floor
        self.acknowledged = 0
        self.refused = 0
        self.serial = 0

    def work(self, address):
        with Client(address) as c:
            while True:
                n = self.rng.randrange(SHARED)
                self.serial += 1
                value = b"%d:%d" % (self.me, self.serial)
                if self.rng.random() < 0.5:
                    replies = c.pipeline([["INCR", f"shared/count/{n}"]] * self.rng.choice([1, 4]))
                    counts = [reply for reply in replies if not is_refusal(reply)]
                    self.refused += len(replies) - len(counts)
                    self.floor.count(n, max(counts, default=0))
                else:
                    names = [f"shared/group/{n}/{i}" for i in range(5)]
                    self.rng.shuffle(names)
                    surely(c, self, "MSET", *[x for name in names for x in (name, value)])
                    self.floor.group_written(n)
                self.acknowledged += 1


class Reader:
    """Reads shared keys and remembers everything."""

    def __init__(self, rng, floor):
        self.rng = rng
        self.floor = floor

    def work(self, address):
        with Client(address) as c:
            while True:
                n = self.rng.randrange(SHARED)
                kind = self.rng.random()
                if kind < 0.4:
                    self.floor.count(n, int(c("GET", f"shared/count/{n}") or 0))
                elif kind < 0.7:
                    values = c("MGET", *[f"shared/group/{n}/{i}" for i in range(5)])
                    if len(set(values)) != 1:
                        raise Violation(f"a reader saw a half MSET: {values!r}")
                    self.floor.group_seen(n, values[0])
                else:
                    serial = self.floor.once[n]
                    self.floor.once_seen(n, serial, c("EXISTS", f"once/{n}/{serial}"))


class Once:
    """Deletes keys that are never made again: a reader that saw one gone must never find it back."""

    def __init__(self, rng, floor):
        self.rng = rng
        self.floor = floor
        self.acknowledged = 0
        self.refused = 0

    def work(self, address):
        with Client(address) as c:
            while True:
                for n in range(SHARED):
                    serial = self.floor.once[n]
                    reply = c.pipeline([["SET", f"once/{n}/{serial + 1}", "v"], ["DEL", f"once/{n}/{serial}"]])
                    if is_refusal(reply[0]):
                        self.refused += 1
                        reply[0] = surely(c, self, "SET", f"once/{n}/{serial + 1}", "v")
                    if is_refusal(reply[1]):
                        reply[1] = surely(c, self, "DEL", f"once/{n}/{serial}")
                    if reply != ["OK", int(serial > 0)]:
                        raise Violation(f"SET and DEL answered {reply!r}")
                    self.floor.once_done(n, serial)
                    self.acknowledged += 2


class Floor:
    """What the server has ever told anybody about the shared keys."""

    def __init__(self):
        self.lock = threading.Lock()
        self.counts = [0] * SHARED
        self.groups_written = [False] * SHARED
        self.once = [0] * SHARED  # the serial that exists now, or is being deleted
        self.gone = [set() for _ in range(SHARED)]
        self.facts = 0

    def count(self, n, value):
        with self.lock:
            self.counts[n] = max(self.counts[n], value)
            self.facts += 1

    def group_written(self, n):
        with self.lock:
            self.groups_written[n] = True

    def group_seen(self, n, value):
        with self.lock:
            self.facts += 1
            if value is not None:
                self.groups_written[n] = True

    def once_seen(self, n, serial, exists):
        with self.lock:
            self.facts += 1
            if not exists:
                self.gone[n].add(serial)

    def once_done(self, n, serial):
        with self.lock:
            self.gone[n].add(serial)
            self.once[n] = serial + 1

    def check(self, c):
        for n in range(SHARED):
            count = int(c("GET", f"shared/count/{n}") or 0)
            if count < self.counts[n]:
                raise Violation(f"shared/count/{n} is {count}, but somebody was told {self.counts[n]}")
            values = c("MGET", *[f"shared/group/{n}/{i}" for i in range(5)])
            if len(set(values)) != 1:
                raise Violation(f"a MSET is there by half: {values!r}")
            if self.groups_written[n] and values[0] is None:
                raise Violation(f"shared/group/{n} is gone")
            back = [s for s in sorted(self.gone[n])[-200:] if c("EXISTS", f"once/{n}/{s}")]
            if back:
                raise Violation(f"deleted keys are back: once/{n}/{back}")
            if self.once[n] and not c("EXISTS", f"once/{n}/{self.once[n]}", f"once/{n}/{self.once[n] + 1}"):
                raise Violation(f"once/{n}/{self.once[n]} is gone")
            # What was in flight, SET of the next and DEL of this one, may be done; finish it.
            if c("EXISTS", f"once/{n}/{self.once[n] + 1}"):
                c("DEL", f"once/{n}/{self.once[n]}")
                self.gone[n].add(self.once[n])
                self.once[n] += 1


class Watcher:
    """Sees one key change without pause (value, nil, value, ...) and remembers the last it saw: after the crash the key
    must be at that state or a later one. The writer numbers the states."""

    def __init__(self, n):
        self.n = n
        self.state = 0  # even: value b"%d", odd: deleted
        self.sent = 0
        self.seen = 0
        self.acknowledged = 0
        self.refused = 0

    def work(self, address):
        with Client(address) as c:
            while True:
                self.sent = self.state + 1
                command = ["DEL", f"watch/{self.n}"] if self.sent % 2 else ["MSET", f"watch/{self.n}", self.sent, f"watched/{self.n}", self.sent]
                surely(c, self, *command)
                self.state = self.sent
                self.acknowledged += 1

    def look(self, address):
        with Client(address) as c:
            while True:
                value, twin = c("MGET", f"watch/{self.n}", f"watched/{self.n}")
                self.note(value, twin)

    def number(self, value, twin):
        """The state that shows this pair."""
        if value is not None:
            if value != twin:
                raise Violation(f"watch/{self.n} is {value!r}, its twin {twin!r}")
            return int(value)
        return int(twin or 0) + 1

    def note(self, value, twin):
        if value is None and twin is None:
            return  # before the first
        number = self.number(value, twin)
        if number < self.seen:
            raise Violation(f"watch/{self.n} went back from state {self.seen} to {number}")
        self.seen = number

    def check(self, c):
        value, twin = c("MGET", f"watch/{self.n}", f"watched/{self.n}")
        if value is None and twin is None:
            number = self.state if self.state < 2 else -1
        else:
            number = self.number(value, twin)
        if number < max(self.seen if self.seen > 1 else 0, self.state):
            raise Violation(f"watch/{self.n} is at state {number}; acknowledged {self.state}, seen {self.seen}")
        if number > self.sent:
            raise Violation(f"watch/{self.n} is at state {number}, but only {self.sent} was ever sent")
        self.state = self.sent = self.seen = number


def show(value):
    if isinstance(value, Error):
        return str(value)
    return "nil" if value is None else repr(value[:60] + b"..." if len(value) > 60 else value)


class Round:
    """Threads at work until the server dies."""

    def __init__(self, address):
        self.address = address
        self.violations = []
        self.dying = False
        self.threads = []

    def go(self, function):
        def guarded():
            try:
                function(self.address)
            except Violation as violation:
                self.violations.append(violation)
            except (OSError, EOFError) as error:
                if not self.dying:
                    self.violations.append(Violation(f"the connection broke before the kill: {error}"))
            except Exception as error:
                self.violations.append(error)

        thread = threading.Thread(target=guarded, daemon=True)
        thread.start()
        self.threads.append(thread)

    def join(self):
        for thread in self.threads:
            thread.join(20)
            if thread.is_alive():
                self.violations.append(Violation("a client still waits after the server's end"))
        if self.violations:
            raise self.violations[0]


class Tally:
    """What the rounds have met; a run that met too little of it proves nothing."""

    def __init__(self):
        self.in_checkpoint = 0  # kills while one was being written
        self.backups = 0  # complete ones, checked
        self.from_toc = 0  # starts
        self.cold = 0  # values read from disk
        self.in_cleaning = 0  # kills while the cleaner was at work
        self.cleaned = 0  # segments, between starts and kills
        self.refused = 0  # writes, the disk being full

    def __str__(self):
        return (f"{self.in_checkpoint} kills in a checkpoint, {self.from_toc} starts from one, "
                f"{self.cold} values read from disk, {self.in_cleaning} kills while cleaning, {self.cleaned} segments "
                f"cleaned, {self.refused} writes refused, {self.backups} backups checked")  # fmt: skip

    def is_enough(self):
        return self.in_checkpoint and self.backups and self.from_toc and self.cold and self.in_cleaning and self.cleaned


def choose(rng, number, tight):
    """Options and environment of a round's server."""
    options = ["--io", ["uring", "epoll"][number % 2], "--threads", rng.choice([1, 2, 2])]
    env = {}
    if IS_REDIS:
        return options, env
    if rng.random() < 0.8:
        options += ["--memory", MEMORY]
    if tight:
        options += ["--disk-limit", DISK_LIMIT]
    if rng.random() < 0.8:
        env["KVASIR_FAULT"] = f"checkpoint:{rng.choice([1, 1, 1, 100000, 1000000])}"
    return options, env


def main():
    parser = argparse.ArgumentParser(description="SIGKILL under load, and what must survive it")
    parser.add_argument("--binary", default="build/kvasir")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--keep", action="store_true", help="keep the folder")
    parser.add_argument("--tight", action="store_true", help="a disk limit in every round")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.randrange(1 << 32)
    rng = random.Random(seed)
    sys.setswitchinterval(0.001)
    passed = failed = 0
    print(f"seed {seed}", flush=True)
    base = tempfile.mkdtemp(prefix="kvasir-crash-")
    state, tight = None, False
    tally = Tally()
    for number in range(options.rounds):
        # A new folder now and then; in between the same log is crashed again and again.
        if state is None or number % 10 == 0:
            tight = not IS_REDIS and (options.tight or not tight)
            state = fresh(rng, tight)
            folder = os.path.join(base, f"folder-{number}")
            os.makedirs(folder)
        what, env = choose(rng, number, tight)
        server = Server(*what, directory=folder, env=env, binary=os.path.abspath(options.binary))
        title = f"round {number + 1}: {' '.join(map(str, what))} {env.get('KVASIR_FAULT', '')}"
        before = sum(w.acknowledged for w in state if hasattr(w, "acknowledged"))
        try:
            one_round(server, state, rng, tally, tight)
            passed += 1
            done = sum(w.acknowledged for w in state if hasattr(w, "acknowledged")) - before
            print(f"{title}: {done} acknowledged, all there", flush=True)
        except (Violation, AssertionError, Error, OSError, EOFError) as failure:
            failed += 1
            print(f"{title}: FAILED (seed {seed}): {type(failure).__name__}: {failure}", flush=True)
            print(f"  folder kept: {folder}", flush=True)
            options.keep = True
            state = None
        finally:
            server.destroy()
        if failed >= 5:
            break
    print(tally)
    if not IS_REDIS and options.rounds >= 30 and not failed and not tally.is_enough():
        print("FAILED: the rounds did not meet what they are for")
        failed += 1
    if not options.keep:
        shutil.rmtree(base, ignore_errors=True)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


def fresh(rng, tight):
    floor = Floor()
    watchers = [Watcher(n) for n in range(4)]
    owners = CONNECTIONS - READERS - 2 * len(watchers) - 9
    return [
        floor,
        *watchers,
        *[Own(me, random.Random(rng.random()), tight) for me in range(owners)],
        *[Shared(me, random.Random(rng.random()), floor) for me in range(8)],
        Once(random.Random(rng.random()), floor),
        *[Reader(random.Random(rng.random()), floor) for _ in range(READERS)],
    ]


def has_toc(server):
    return any(name.startswith("toc-") and name.endswith(".kv") for name in os.listdir(server.data))


def kill_somehow(server, round_, rng):
    """SIGKILL, sometimes while it is stopping already."""
    round_.dying = True
    died = server.process.poll()
    if rng.random() < 0.15:
        server.process.send_signal(signal.SIGTERM)
        time.sleep(rng.uniform(0, 0.03))
    server.process.send_signal(signal.SIGKILL)
    server.process.wait()
    round_.join()
    if died is not None:
        raise Violation(f"the server died by itself with {died}: {server.log()[-2000:]}")


def start_again(server, rng, tally):
    """Sometimes with kills while it is starting."""
    while rng.random() < 0.3:
        server.spawn()
        time.sleep(rng.uniform(0, 0.08))
        server.kill()
    tally.from_toc += has_toc(server)
    server.start()


def info(c):
    return dict(line.split(":", 1) for line in c("INFO", "kvasir").decode().split("\r\n") if ":" in line)


def sleep_until_busy(server, seconds, tally, tight):
    """Where the cleaner is at work nearly always: the next moment that it is."""
    time.sleep(seconds)
    end = time.monotonic() + 0.3
    with server.client() as c:
        while True:
            fields = info(c)
            if not tight or fields["cleaner_running"] == "1" or time.monotonic() > end:
                break
    tally.in_checkpoint += fields["checkpoint_running"] == "1"
    tally.in_cleaning += tight and fields["cleaner_running"] == "1"
    tally.cleaned += int(fields["cleaner_segments"]) if tight else 0


class Backups:
    """One after the other, until the server is killed."""

    def __init__(self, server):
        self.server = server
        self.paths = []

    def work(self, address):
        with Client(address) as c:
            while True:
                self.paths.append(os.path.join(self.server.directory, f"backup-{len(self.paths)}"))
                try:
                    reply = str(c("BACKUP", self.paths[-1]))
                except Error as error:
                    reply = str(error)
                if "the server is stopping" in reply:
                    return
                if not reply.startswith("OK "):
                    raise Violation(f"BACKUP answered {reply}")
                time.sleep(0.1)

    def check(self, tally):
        """Behind the kill. What has its name is complete, also when nobody was told."""
        for path in self.paths:
            if os.path.exists(path):
                done = subprocess.run([self.server.binary, "check", path], capture_output=True, text=True, check=False)
                if done.returncode:
                    raise Violation(f"the backup {path} is not well, {done.returncode}: {done.stdout}{done.stderr}")
                tally.backups += 1
            shutil.rmtree(path, ignore_errors=True)
            shutil.rmtree(path + ".tmp", ignore_errors=True)


def one_round(server, state, rng, tally, tight):
    refused = sum(getattr(w, "refused", 0) for w in state)
    server.start()
    round_ = Round(server.address)
    for worker in state:
        if isinstance(worker, Watcher):
            round_.go(worker.look)
        if hasattr(worker, "work"):
            round_.go(worker.work)
    backups = Backups(server)
    if not IS_REDIS and rng.random() < 0.3:
        round_.go(backups.work)
    seconds = rng.uniform(0.05, 0.8)  # the random moment
    if IS_REDIS:
        time.sleep(seconds)
    else:
        sleep_until_busy(server, seconds, tally, tight)
    kill_somehow(server, round_, rng)
    tally.refused += sum(getattr(w, "refused", 0) for w in state) - refused
    backups.check(tally)
    start_again(server, rng, tally)
    with server.client() as c:
        for worker in state:
            if hasattr(worker, "check"):
                worker.check(c)
        if not IS_REDIS:
            tally.cold += int(info(c)["cold_preads"])
    # The second kill comes right after the restart: what recovery wrote must hold too.
    server.kill()


sys.exit(main())
