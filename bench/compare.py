"""Compares kvasir with redis-server, valkey-server and memcached, and with the numbers it must reach.

Each server runs alone on core 0 (the others are stopped with SIGSTOP meanwhile), the generator, `kvasir bench`, on core 1 for
all of them; rounds are interleaved (A B C A B C). Ratios are medians of the ratios of a round: a virtual machine's cores may move
between rounds from sharing a cache to not sharing one, which changes what a loopback round trip costs by a factor of 2.5. Durable rows: kvasir as it is by default against
appendfsync always; the others against appendonly no. Data lies on this repository's file system.

usage: compare.py [--quick] [--rounds N] [--seconds S] [--only ROW[,ROW...]] [--list]
Writes bench/results/<date>.json and bench/results/compare.svg."""

import argparse
import datetime
import json
import os
import platform
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
KVASIR = os.path.join(ROOT, "build", "kvasir")
RESULTS = os.path.join(ROOT, "bench", "results")
SERVER_CORE, GENERATOR_CORE = 0, 1
VALUE_BYTES = 64


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    """A running server on its core. `kind` is kvasir, redis, valkey or memcached."""

    def __init__(self, kind, durable, base):
        self.kind, self.durable = kind, durable
        self.name = kind + (" durable" if durable else "")
        self.port = free_port()
        self.folder = tempfile.mkdtemp(prefix=f"{kind}-", dir=base)
        self.command = ["taskset", "-c", str(SERVER_CORE), *self._command()]
        self.log = open(os.path.join(self.folder, "server.log"), "wb")
        self.process = subprocess.Popen(self.command, stdout=self.log, stderr=self.log, cwd=self.folder)
        self._wait()

    def _command(self):
        port = str(self.port)
        if self.kind == "kvasir":
            return [KVASIR, "server", "--port", port, "--dir", os.path.join(self.folder, "data"), "--threads", "1",
                    "--durability", "fsync" if self.durable else "none"]  # fmt: skip
        if self.kind == "memcached":
            user = ["-u", "root"] if os.geteuid() == 0 else []
            return ["memcached", "-l", "127.0.0.1", "-p", port, "-U", "0", "-t", "1", "-m", "16384", "-c", "4096", *user]
        aof = ["--appendonly", "yes", "--appendfsync", "always", "--auto-aof-rewrite-percentage", "0"]
        return [f"{self.kind}-server", "--port", port, "--bind", "127.0.0.1", "--dir", self.folder, "--save", "",
                *(aof if self.durable else ["--appendonly", "no"])]  # fmt: skip

    def _wait(self):
        end = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > end:
                    sys.exit(f"{self.name} does not start: {' '.join(self.command)}; see {self.log.name}")
                time.sleep(0.02)

    def pause(self):
        self.process.send_signal(signal.SIGSTOP)

    def resume(self):
        self.process.send_signal(signal.SIGCONT)

    def rss_bytes(self):
        with open(f"/proc/{self.process.pid}/statm", encoding="ascii") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE")

    def cpu_seconds(self):
        with open(f"/proc/{self.process.pid}/stat", encoding="ascii") as stat:
            fields = stat.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self):
        self.process.kill()
        self.process.wait()
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def generator(server, *options):
    """The generator's command line."""
    protocol = ["--protocol", "memcached"] if server.kind == "memcached" else []
    command = [KVASIR, "bench", "--connect", f"127.0.0.1:{server.port}", "--json", "--pin", str(GENERATOR_CORE),
               "--value-size", str(VALUE_BYTES), *protocol, *map(str, options)]  # fmt: skip
    before = server.cpu_seconds()
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0 or not result.stdout.strip():
        raise RuntimeError(f"{' '.join(command)} ended with {result.returncode}: {result.stderr[-500:]}")
    numbers = json.loads(result.stdout)
    numbers["command"] = " ".join(command).replace(ROOT + "/", "")
    numbers["server_cpu_seconds"] = server.cpu_seconds() - before
    if numbers.get("errors") or numbers.get("wrong"):
        raise RuntimeError(f"{server.name}: {numbers.get('errors')} errors: {' '.join(command)}")
    return numbers


def fill(server, keys):
    """Puts keys 0..keys-1 there, each once. Returns the generator's numbers."""
    return generator(server, "--workload", "insert", "--keys", keys, "--clients", 8, "--pipeline", 500, "--seconds", 3600)


class Bench:
    def __init__(self, options):
        self.options = options
        self.rounds = options.rounds
        self.seconds = options.seconds
        self.keys = 200_000 if options.quick else 4_000_000
        self.many = 1_000_000 if options.quick else 10_000_000
        self.base = tempfile.mkdtemp(prefix="bench-", dir=os.path.join(ROOT, "build"))
        self.rows = []
        self.samples = []

    def add(self, row, title, unit, samples, must=None, better="more", note=""):
        """samples: {server name: [numbers]}; must: [(text, function(medians, ratios) -> bool)]; ratios: kvasir's number
        divided by that server's, round by round, of which the median."""
        medians = {name: statistics.median(values) for name, values in samples.items() if values}
        ours = samples.get("kvasir durable") or samples.get("kvasir") or []
        ratios = {name: statistics.median(a / b for a, b in zip(ours, values)) for name, values in samples.items() if ours and values}
        checks = [{"must": text, "met": bool(test(medians, ratios))} for text, test in must or [] if can(test, medians, ratios)]
        self.rows.append(dict(row=row, title=title, unit=unit, better=better, note=note, medians=medians, ratios=ratios,
                              samples=samples, checks=checks))  # fmt: skip
        print_row(self.rows[-1])

    # Without pipelining the round trip decides, which the machine changes now and then: many short rounds.

    def rounds_of(self, pipeline):
        return self.rounds * 3 if pipeline == 1 else self.rounds

    def seconds_of(self, pipeline):
        return 3 if pipeline == 1 else self.seconds

    def servers(self, kinds):
        return [Server(kind, durable, self.base) for kind, durable in kinds]

    def interleaved(self, servers, measure, rounds=None):
        """{name: [numbers of each round]}; one server runs at a time."""
        rounds = rounds or self.rounds
        samples = {server.name: [] for server in servers}
        for server in servers:
            server.pause()
        for round_number in range(rounds):
            for server in servers:
                server.resume()
                time.sleep(0.3)  # its timers catch up before it is measured
                numbers = measure(server)
                server.pause()
                samples[server.name].append(numbers)
                self.samples.append({"server": server.name, "round": round_number, **numbers})
                progress(f"{server.name}: round {round_number + 1} of {rounds}: {numbers['ops_per_second']:,.0f}/s")
        for server in servers:
            server.resume()
        return samples

    def loaded(self, kinds, keys):
        servers = []
        for kind in kinds:
            for server in servers:
                server.pause()
            server = self.servers([kind])[0]
            servers.append(server)
            progress(f"loading {keys:,} keys into {server.name}")
            fill(server, keys)
            server.pause()
        for server in servers:
            server.resume()
        return servers

    # ---- the rows ----

    def reads(self, wanted):
        servers = self.loaded([("kvasir", True), ("redis", False), ("valkey", False), ("memcached", False)], self.keys)
        for row, title, clients, pipeline, must in (
            ("get-pipelined", "GET, 8 connections x pipeline 500", 8, 500,
             [("6.5 M/s", lambda m, r: m["kvasir durable"] >= 6.5e6), ("5x Redis", lambda m, r: r["redis"] >= 5)]),
            ("get-50", "GET, 50 connections, no pipelining", 50, 1,
             [("1.1x Redis", lambda m, r: r["redis"] >= 1.1)]),
        ):  # fmt: skip
            if row in wanted:
                got = self.interleaved(servers, lambda s, c=clients, p=pipeline: generator(
                    s, "--workload", "get", "--keys", self.keys, "--clients", c, "--pipeline", p, "--seconds", self.seconds_of(p)),
                    self.rounds_of(pipeline))  # fmt: skip
                self.add(row, title, "ops/s", rates(got), must)
        end(servers)

    def writes(self, wanted):
        servers = self.loaded([("kvasir", True), ("redis", True), ("valkey", True)], self.keys)

        def run(clients, pipeline):
            return self.interleaved(servers, lambda s: generator(
                s, "--workload", "set", "--keys", self.keys, "--clients", clients, "--pipeline", pipeline, "--seconds", self.seconds_of(pipeline)),
                self.rounds_of(pipeline))  # fmt: skip

        if "set-pipelined" in wanted:
            self.add("set-pipelined", "durable SET of existing keys, 8 x 500", "ops/s", rates(run(8, 500)),
                     [("1.5 M/s", lambda m, r: m["kvasir durable"] >= 1.5e6), ("4x Redis always", lambda m, r: r["redis durable"] >= 4)])  # fmt: skip
        if "set-50" in wanted or "set-50-to-1" in wanted:
            fifty = rates(run(50, 1))
            self.add("set-50", "durable SET, 50 connections, no pipelining", "ops/s", fifty,
                     [("2x Redis always", lambda m, r: r["redis durable"] >= 2)])  # fmt: skip
            if "set-50-to-1" in wanted:
                one = rates(run(1, 1))
                ratio = {name: [a / b for a, b in zip(fifty[name], one[name])] for name in fifty}
                self.add("set-1", "durable SET, 1 connection, no pipelining", "ops/s", one)
                self.add("set-50-to-1", "durable SET: 50 connections against 1", "x", ratio, [("25x", lambda m, r: m["kvasir durable"] >= 25)])
        if "get-under-sets" in wanted:
            self.open_loop(servers)
        end(servers)

    def open_loop(self, servers):
        """GET p99 at 50,000/s from the intended start, idle and while 8 connections beside saturate the server with
        durable SETs. One generator thread does both: two of them would measure how they share core 1."""
        options = ["--workload", "get", "--keys", self.keys, "--clients", 50, "--rate", 50000, "--seconds", self.seconds]

        idle = self.interleaved(servers, lambda s: generator(s, *options))
        busy = self.interleaved(servers, lambda s: generator(s, *options, "--beside", 8, "--pipeline", 500))
        p99 = [{n: [x["latency_us"]["p99"] for x in v] for n, v in got.items()} for got in (idle, busy)]
        seen = {name: [b / a for a, b in zip(p99[0][name], p99[1][name])] for name in p99[0]}
        self.add("get-idle-p99", "GET p99 at 50,000/s, idle server", "us", p99[0], better="less")
        self.add("get-busy-p99", "GET p99 at 50,000/s beside saturating durable SETs", "us", p99[1], better="less")
        self.add("get-under-sets", "GET p99 beside durable SETs / idle p99", "x", seen,
                 [("3x the idle p99", lambda m, r: m["kvasir durable"] <= 3)], better="less")  # fmt: skip

    def plain_sets(self):
        servers = self.loaded([("kvasir", False), ("redis", False), ("valkey", False), ("memcached", False)], self.keys)
        got = self.interleaved(servers, lambda s: generator(
            s, "--workload", "set", "--keys", self.keys, "--clients", 8, "--pipeline", 500, "--seconds", self.seconds))  # fmt: skip
        self.add("set-memory", "SET without durability, 8 x 500", "ops/s", rates(got))
        end(servers)

    def inserts(self, wanted):
        """New keys, on fresh servers each round; memory and RANGE use those of the last."""
        kinds = [("kvasir", True), ("redis", True), ("valkey", True)]
        rate, memory, kept = {}, {}, []
        for round_number in range(self.rounds):
            last = round_number == self.rounds - 1
            for kind in kinds:
                server = self.servers([kind])[0]
                numbers = fill(server, self.many)
                self.samples.append({"server": server.name, "round": round_number, **numbers})
                rate.setdefault(server.name, []).append(numbers["ops_per_second"])
                memory.setdefault(server.name, []).append(server.rss_bytes())
                progress(f"{server.name}: {numbers['ops_per_second']:,.0f}/s, {server.rss_bytes() / 1e6:,.0f} MB")
                if last and kind[0] == "kvasir":
                    kept.append(server)
                    server.pause()
                else:
                    server.end()
        if "insert" in wanted:
            self.add("insert", f"durable SET of new keys, 8 x 500, {self.many:,} keys", "ops/s", rate,
                     [("0.6 M/s", lambda m, r: m["kvasir durable"] >= 0.6e6)])  # fmt: skip
        if "memory" in wanted:
            server = self.servers([("memcached", False)])[0]
            fill(server, self.many)
            memory[server.name] = [server.rss_bytes()]
            server.end()
            per_key = {name: [value / self.many for value in values] for name, values in memory.items()}
            self.add("memory", f"memory a key, {self.many:,} keys with 64-byte values", "bytes", per_key,
                     [("Redis's", lambda m, r: r["redis durable"] <= 1)], better="less")  # fmt: skip
        if "range" in wanted:
            kept[0].resume()
            got = self.interleaved(kept, lambda s: generator(
                s, "--workload", "range", "--keys", self.many, "--clients", 8, "--pipeline", 1, "--seconds", self.seconds))  # fmt: skip
            keys = {name: [keys_per_second(x) for x in values] for name, values in got.items()}
            self.add("range", f"RANGE - + over {self.many:,} keys, pages of 1,000", "keys/s", keys,
                     [("2 M/s", lambda m, r: m["kvasir durable"] >= 2e6)])  # fmt: skip
        end(kept)


ROWS = ["get-pipelined", "get-50", "set-pipelined", "set-50", "set-50-to-1", "get-under-sets", "set-memory", "insert", "memory", "range"]


def can(test, medians, ratios):
    """Whether the servers a check speaks of were measured."""
    try:
        test(medians, ratios)
        return True
    except KeyError:
        return False


def rates(samples):
    return {name: [numbers["ops_per_second"] for numbers in values] for name, values in samples.items()}


def keys_per_second(numbers):
    """RANGE: keys delivered a second."""
    return numbers["range_keys_per_second"]


def end(servers):
    for server in servers:
        server.end()


def progress(text):
    print(f"  {text}", file=sys.stderr, flush=True)


def human(value, unit):
    if unit in ("x",):
        return f"{value:.2f}x"
    if unit == "us":
        return f"{value:,.0f} us"
    if unit == "bytes":
        return f"{value:,.0f} B"
    return f"{value / 1e6:.2f} M/s" if value >= 1e6 else f"{value:,.0f}/s"


def print_row(row):
    cells = [f"{name} {human(value, row['unit'])}" for name, value in row["medians"].items()]
    if row["unit"] != "x":
        cells += [f"kvasir / {name}: {ratio:.2f}" for name, ratio in row["ratios"].items() if not name.startswith("kvasir")]
    print(f"{row['title']}:")
    print("    " + "   ".join(cells))
    for check in row["checks"]:
        print(f"    must {check['must']}: {'met' if check['met'] else 'NOT MET'}")
    sys.stdout.flush()


def table(rows):
    names = ["kvasir durable", "kvasir", "redis durable", "redis", "valkey durable", "valkey", "memcached"]
    names = [name for name in names if any(name in row["medians"] for row in rows)]
    lines = ["| work | " + " | ".join(names) + " | kvasir / Redis | must |", "|---" * (len(names) + 3) + "|"]
    for row in rows:
        medians = row["medians"]
        cells = [human(medians[name], row["unit"]) if name in medians else "" for name in names]
        ratio = next((f"{value:.2f}" for name, value in row["ratios"].items() if name.startswith("redis")), "")
        checks = ", ".join(f"{c['must']}: {'met' if c['met'] else 'NOT MET'}" for c in row["checks"])
        lines.append(f"| {row['title']} | " + " | ".join(cells) + f" | {ratio} | {checks} |")
    return "\n".join(lines)


# ---- what this was measured on ----


def output(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip().splitlines()[0]
    except (OSError, IndexError):
        return ""


def machine():
    with open("/proc/cpuinfo", encoding="utf-8") as cpuinfo:
        text = cpuinfo.read()
    model = re.search(r"model name\s*: (.*)", text)
    with open("/proc/meminfo", encoding="ascii") as meminfo:
        memory_kb = int(re.search(r"MemTotal:\s+(\d+)", meminfo.read()).group(1))
    return {
        "cpu": model.group(1) if model else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gb": round(memory_kb / 1e6, 1),
        "kernel": platform.release(),
        "file_system": output("stat", "-f", "-c", "%T", ROOT),
        "versions": {
            "kvasir": output(KVASIR, "--version"),
            "git": output("git", "-C", ROOT, "rev-parse", "--short", "HEAD"),
            "redis": output("redis-server", "--version"),
            "valkey": output("valkey-server", "--version"),
            "memcached": output("memcached", "--version"),
        },
    }


# ---- the plot ----

COLOURS = {"kvasir": "#d1495b", "redis": "#5b8e7d", "valkey": "#30638e", "memcached": "#8d99ae"}


def svg(rows, path, about):
    """One group of horizontal bars for each row, each group scaled to its longest bar."""
    width, left, bar, gap = 920, 330, 17, 30
    rows = [row for row in rows if row["medians"]]
    height = 60 + sum(gap + (bar + 3) * len(row["medians"]) for row in rows) + 20
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="13">',
           f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
           '<text x="16" y="26" font-size="17" font-weight="bold">kvasir beside Redis, Valkey and memcached, one core each</text>',
           f'<text x="16" y="46" fill="#555555" font-size="12">{escape(about)}</text>']  # fmt: skip
    y = 60
    for row in rows:
        y += gap - 10
        better = "" if row["better"] == "more" else " (less is better)"
        out.append(f'<text x="16" y="{y}" font-weight="bold">{escape(row["title"] + better)}</text>')
        y += 8
        longest = max(row["medians"].values()) or 1
        for name, value in row["medians"].items():
            length = max(2, round((width - left - 130) * value / longest))
            out.append(f'<text x="{left - 8}" y="{y + bar - 4}" text-anchor="end">{escape(name)}</text>')
            out.append(f'<rect x="{left}" y="{y}" width="{length}" height="{bar}" fill="{COLOURS[name.split()[0]]}"/>')
            out.append(f'<text x="{left + length + 6}" y="{y + bar - 4}">{escape(human(value, row["unit"]))}</text>')
            y += bar + 3
        y += 2
    out.append("</svg>")
    with open(path, "w", encoding="utf-8") as file:
        file.write("\n".join(out) + "\n")


def escape(text):
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few keys, short runs: a look, not a measurement")
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--seconds", type=int, default=None)
    parser.add_argument("--only", default=None, help="rows, with commas between them")
    parser.add_argument("--list", action="store_true", help="name the rows")
    options = parser.parse_args()
    if options.list:
        print("\n".join(ROWS))
        return 0
    options.rounds = options.rounds or (2 if options.quick else 3)
    options.seconds = options.seconds or (3 if options.quick else 6)
    wanted = set(options.only.split(",")) if options.only else set(ROWS)
    if wanted - set(ROWS):
        sys.exit(f"no such row: {', '.join(sorted(wanted - set(ROWS)))}; there are: {', '.join(ROWS)}")
    if os.cpu_count() < 2:
        sys.exit("compare.py needs two cores: one for the server, one for the generator")
    bench = Bench(options)
    started = datetime.datetime.now(datetime.timezone.utc)
    try:
        if wanted & {"get-pipelined", "get-50"}:
            bench.reads(wanted)
        if wanted & {"set-pipelined", "set-50", "set-50-to-1", "get-under-sets"}:
            bench.writes(wanted)
        if "set-memory" in wanted:
            bench.plain_sets()
        if wanted & {"insert", "memory", "range"}:
            bench.inserts(wanted)
    finally:
        shutil.rmtree(bench.base, ignore_errors=True)
    os.makedirs(RESULTS, exist_ok=True)
    about = machine()
    report = {
        "date": started.isoformat(timespec="seconds"),
        "quick": options.quick,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "command": "bench/compare.py " + " ".join(sys.argv[1:]),
        "machine": about,
        "rows": bench.rows,
        "samples": bench.samples,
    }
    path = os.path.join(RESULTS, started.strftime("%Y-%m-%d-%H%M%S") + ("-quick" if options.quick else "") + ".json")
    with open(path, "w", encoding="utf-8") as file:
        json.dump(report, file, indent=1)
        file.write("\n")
    print()
    print(table(bench.rows))
    text = f"{about['cpu']}, Linux {about['kernel']}, {started:%Y-%m-%d}, medians of {options.rounds} rounds" + (", quick run" if options.quick else "")
    if wanted == set(ROWS):
        svg(bench.rows, os.path.join(RESULTS, "compare.svg"), text)
    else:
        svg(bench.rows, path[:-5] + ".svg", text)
    print(f"\nwritten: {os.path.relpath(path, ROOT)}")
    return 0


sys.exit(main())
