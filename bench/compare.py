"""Compares kvasir with redis-server, valkey-server, memcached, RocksDB and what fio gets from the disk, and with the numbers it must reach.

Each server runs alone on core 0 (the others are stopped with SIGSTOP meanwhile), the generator, `kvasir bench`, on core 1 for
all of them; rounds are interleaved (A B C A B C). Ratios are medians of the ratios of a round: a virtual machine's cores may move
between rounds from sharing a cache to not sharing one, which changes what a loopback round trip costs by a factor of 2.5.
Durable rows: kvasir as it is by default against appendfsync always; the others against appendonly no. Rows about more data
than memory: see disk_rows.py. Data lies on this repository's file system, or in --dir.

usage: compare.py [--quick] [--rounds N] [--seconds S] [--only ROW[,ROW...]] [--list] [--help: more]
Writes bench/results/<date>.json and bench/results/compare.svg and cold.svg."""

import argparse
import datetime
import json
import os
import shutil
import statistics
import sys
import tempfile
import time

from arithmetic import parse_size
from disk_rows import COLD_ROWS, DISK_ROWS, GUARANTEES, OVERWRITE_ROWS, RESTART_ROWS, DiskRows
from report import machine, print_row, progress, svg, table
from servers import ROOT, Server, fill, generator

RESULTS = os.path.join(ROOT, "bench", "results")


class Bench:
    def __init__(self, options):
        self.options = options
        self.rounds = options.rounds
        self.seconds = options.seconds
        self.keys = 200_000 if options.quick else 4_000_000
        self.many = 1_000_000 if options.quick else 10_000_000
        self.base = tempfile.mkdtemp(prefix="bench-", dir=options.dir)
        self.rows = []
        self.samples = []
        self.failures = []

    def add(self, row, title, unit, samples, must=None, better="more", note="", group="memory"):
        """samples: {server name: [numbers]}; must: [(text, function(medians, ratios) -> bool)]; ratios: kvasir's number
        divided by that server's, round by round, of which the median."""
        medians = {name: statistics.median(values) for name, values in samples.items() if values}
        ours = samples.get("kvasir durable") or samples.get("kvasir") or []
        ratios = {name: statistics.median(a / b for a, b in zip(ours, values)) for name, values in samples.items() if ours and values}
        checks = [{"must": text, "met": bool(test(medians, ratios))} for text, test in must or [] if can(test, medians, ratios)]
        self.rows.append(dict(row=row, title=title, unit=unit, better=better, note=note, group=group, medians=medians, ratios=ratios,
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


MEMORY_ROWS = ["get-pipelined", "get-50", "set-pipelined", "set-50", "set-50-to-1", "get-under-sets", "set-memory", "insert", "memory", "range"]
ROWS = [*MEMORY_ROWS, *DISK_ROWS]


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


def read_options():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few keys, short runs: a look, not a measurement")
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--seconds", type=int, default=None, help="of one measurement")
    parser.add_argument("--only", default=None, help="rows, with commas between them")
    parser.add_argument("--list", action="store_true", help="name the rows")
    parser.add_argument("--dir", default=os.path.join(ROOT, "build"), help="folder for the data, removed afterwards (build)")
    parser.add_argument("--cold-memory", type=parse_size, metavar="SIZE", help="memory for the cold and overwrite rows, data is four times that (2G; 96M)")
    parser.add_argument("--overwrite-seconds", type=int, metavar="S", help="of overwriting (600; 20)")
    parser.add_argument("--disk", type=parse_size, metavar="SIZE", help="overwriting without a cleaner ends beyond this (what is free, less 8G; 2G)")
    parser.add_argument("--restart-keys", type=int, metavar="N", help="keys of the rows restart and cold-key-bytes (100000000; 2000000)")
    parser.add_argument("--restart-threads", type=int, metavar="N", default=os.cpu_count(), help="of the server there (one a core)")
    parser.add_argument("--beside", default="fio,memcached,rocksdb", help="what else the cold and overwrite rows measure (fio,memcached,rocksdb)")
    options = parser.parse_args()
    quick = options.quick
    options.rounds = options.rounds or (2 if quick else 3)
    options.seconds = options.seconds or (3 if quick else 6)
    options.cold_memory = options.cold_memory or (96 << 20 if quick else 2 << 30)
    options.overwrite_seconds = options.overwrite_seconds or (20 if quick else 600)
    options.disk = options.disk or (2 << 30 if quick else 0)
    options.restart_keys = options.restart_keys or (2_000_000 if quick else 100_000_000)
    return options


def run(bench, wanted):
    """Every group that has a wanted row. A group that fails is named, and the next one goes on. True when none failed."""
    disk = DiskRows(bench)
    fine = True
    for rows, measure in (
        ({"get-pipelined", "get-50"}, lambda: bench.reads(wanted)),
        ({"set-pipelined", "set-50", "set-50-to-1", "get-under-sets"}, lambda: bench.writes(wanted)),
        ({"set-memory"}, bench.plain_sets),
        ({"insert", "memory", "range"}, lambda: bench.inserts(wanted)),
        (set(COLD_ROWS), lambda: disk.cold(wanted)),
        (set(OVERWRITE_ROWS), disk.overwrites),
        (set(RESTART_ROWS), lambda: disk.restart(wanted)),
    ):
        if wanted & rows:
            try:
                measure()
            except (RuntimeError, OSError) as error:
                fine = False
                print(f"FAILED: {', '.join(sorted(wanted & rows))}: {error}", flush=True)
                bench.failures.append({"rows": sorted(wanted & rows), "error": str(error)})
            finally:
                end(Server.running())
    return fine


def write(bench, options, wanted, started):
    os.makedirs(RESULTS, exist_ok=True)
    about = machine(options.dir)
    report = {
        "date": started.isoformat(timespec="seconds"),
        "quick": options.quick,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "command": "bench/compare.py " + " ".join(sys.argv[1:]),
        "machine": about,
        "guarantees": GUARANTEES,
        "rows": bench.rows,
        "failures": bench.failures,
        "samples": bench.samples,
    }
    path = os.path.join(RESULTS, started.strftime("%Y-%m-%d-%H%M%S") + ("-quick" if options.quick else "") + ".json")
    with open(path, "w", encoding="utf-8") as file:
        json.dump(report, file, indent=1)
        file.write("\n")
    text = f"{about['cpu']}, Linux {about['kernel']}, {started:%Y-%m-%d}, medians of {options.rounds} rounds" + (", quick run" if options.quick else "")
    for group, all_rows, beside, guarantees, plot, title in (
        ("memory", MEMORY_ROWS, "Redis", None, "compare.svg", "kvasir beside Redis, Valkey and memcached, one core each"),
        ("disk", DISK_ROWS, "fio", GUARANTEES, "cold.svg", "more data than memory: kvasir beside fio, memcached extstore and RocksDB"),
    ):
        rows = [row for row in bench.rows if row["group"] == group]
        if rows:
            print("\n" + table(rows, beside, guarantees))
            whole = set(all_rows) <= wanted and not options.quick
            part = path[:-5] + (".svg" if group == "memory" else "-disk.svg")
            svg(rows, os.path.join(RESULTS, plot) if whole else part, text, title)
    print(f"\nwritten: {os.path.relpath(path, ROOT)}")


def main():
    options = read_options()
    if options.list:
        print("\n".join(ROWS))
        return 0
    wanted = set(options.only.split(",")) if options.only else set(ROWS)
    if wanted - set(ROWS):
        sys.exit(f"no such row: {', '.join(sorted(wanted - set(ROWS)))}; there are: {', '.join(ROWS)}")
    if os.cpu_count() < 2:
        sys.exit("compare.py needs two cores: one for the server, one for the generator")
    bench = Bench(options)
    started = datetime.datetime.now(datetime.timezone.utc)
    try:
        fine = run(bench, wanted)
    finally:
        end(Server.running())
        shutil.rmtree(bench.base, ignore_errors=True)
    write(bench, options, wanted, started)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
