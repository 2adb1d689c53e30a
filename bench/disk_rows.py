"""The rows of compare.py about more data than memory: cold reads, overwrites for long, restart.

Cold reads: records of 1 to 4 KiB and 16-byte keys, four times as many bytes as --cold-memory, asked for uniformly. Some of them are in memory
all the same; the rows count GETs that went to disk (rate x reads / GETs, from INFO's counters), and so do those of the others. In each round
kvasir, fio with blocks of the mean size of kvasir's reads, fio with 4 KiB, memcached and RocksDB take turns.

Overwrites: uniform, saturating, while 20,000 GETs a second run; the rate of each tenth of the time, and the GETs' p99 against the
same GETs alone. `--disk-limit` is set so that 70% of it is live where the server has that option; without it, nothing is cleaned
and the row ends early when --disk is used up."""

import os
import re
import shutil
import statistics
import subprocess

from arithmetic import amplification, block_bytes, cold_mean_us, cold_share, ends
from outside import KEY_BYTES, VALUE_BYTES_MAX, VALUE_BYTES_MIN, Fio, RocksDb
from report import progress
from servers import KVASIR, Server, drop_pages, folder_bytes, generate, generator_command, generator_result

RECORD_BYTES = KEY_BYTES + (VALUE_BYTES_MIN + VALUE_BYTES_MAX) // 2
LOG_RECORD_BYTES = RECORD_BYTES + 28  # with a header, to plan disk space
SIZES = ["--min-size", VALUE_BYTES_MIN, "--max-size", VALUE_BYTES_MAX]
MEMCACHED_SIZES = ["--value-size", f"{VALUE_BYTES_MIN}-{VALUE_BYTES_MAX}"]
MEMCACHED_LOAD_RATE = 30000  # quicker, it drops values instead of writing them to its file
GET_RATE, PARTS, FILL = 20000, 10, 0.7
COLD = {"cold64": (64, 1), "cold128": (128, 1), "cold256": (256, 1), "cold1x64": (1, 64), "cold-one": (1, 1)}
COLD_ROWS = [*COLD, "cold-rss"]
OVERWRITE_ROWS = ["overwrite"]
RESTART_ROWS = ["cold-key-bytes", "restart"]
DISK_ROWS = [*COLD_ROWS, *OVERWRITE_ROWS, *RESTART_ROWS]
OURS, FIO, FIO_4K, EXTSTORE, ROCKSDB = "kvasir durable", "fio", "fio 4 KiB", "memcached extstore", "rocksdb"
GUARANTEES = {
    OURS: "an acknowledged write is on disk (fsync) and survives kill -9 and power loss; each read checks the record's checksum; O_DIRECT",
    FIO: "nothing: blocks as they come, unchecked; what the disk gives at this depth and size; O_DIRECT",
    FIO_4K: "the same with 4 KiB blocks",
    EXTSTORE: "a cache: nothing survives a restart, values may be dropped; each read checks a CRC32C; through the page cache, which is emptied all the time",
    ROCKSDB: "overwrites are acknowledged after an fsync of its log (--sync; loading has no log); each block's checksum is checked; O_DIRECT; "
    "a library: no network, and both cores",
}


class DiskRows:
    """bench: compare.py's Bench, which keeps rows and samples and has the options."""

    def __init__(self, bench):
        self.bench, self.base, options = bench, bench.base, bench.options
        self.seconds = options.seconds
        self.beside = set(options.beside.split(","))
        self.memory_bytes = options.cold_memory
        self.keys = 4 * self.memory_bytes // RECORD_BYTES
        self.overwrite_seconds = options.overwrite_seconds
        self.restart_keys = options.restart_keys
        self.restart_threads = options.restart_threads
        self.disk_bytes_max = options.disk or shutil.disk_usage(self.base).free - (8 << 30)
        self.cold_options = ["--workload", "cold", "--keys", self.keys, "--seed", 1, *SIZES]

    def sample(self, name, numbers, round_number=0):
        self.bench.samples.append({"server": name, "round": round_number, **numbers})
        return numbers

    # ---- starting and loading ----

    def wants(self, name, program, package):
        """Whether this one is asked for, and is installed."""
        there = shutil.which(program) is not None
        if name in self.beside and not there:
            progress(f"{program} is not installed (Debian: {package}): left out")
        return name in self.beside and there

    def kvasir(self, *options):
        server = Server("kvasir", True, self.base, memory_bytes=self.memory_bytes, options=options)
        load(server, self.keys, *SIZES)
        numbers = generate(server, *self.cold_options, "--clients", 64, "--seconds", 2, "--verify")
        if numbers["nils"]:
            raise RuntimeError(f"{server.name}: {numbers['nils']} records are missing after loading")
        return server

    def extstore(self):
        if not self.wants("memcached", "memcached", "memcached"):
            return None
        server = Server("memcached", False, self.base, memory_bytes=self.memory_bytes, extstore_bytes=2 * self.keys * RECORD_BYTES)
        progress(f"loading {self.keys:,} records into {server.name}")
        generate(server, "--workload", "insert", "--keys", self.keys, *MEMCACHED_SIZES, "--clients", 8, "--pipeline", 8,
                 "--rate", MEMCACHED_LOAD_RATE, "--seconds", 36000)  # fmt: skip
        return server

    def rocksdb(self):
        if not self.wants("rocksdb", "db_bench", "rocksdb-tools"):
            return None
        progress(f"loading {self.keys:,} records into RocksDB")
        return RocksDb(self.base, self.keys, self.memory_bytes)

    def fio(self):
        if not self.wants("fio", "fio", "fio"):
            return None
        progress(f"writing fio's file of {self.keys * RECORD_BYTES / 1e9:.1f} GB")
        return Fio(self.base, self.keys * RECORD_BYTES)

    # ---- cold reads ----

    def cold(self, wanted):
        servers = [server for server in (self.kvasir(), self.extstore()) if server]
        for server in servers:
            server.pause()
        fio, rocksdb = self.fio(), self.rocksdb()
        os.sync()  # what loading left to be written is not to be measured
        got = {}
        # The row of one pipelined connection is compared with 64 connections, so it needs both.
        needed = [row for row in COLD if row in wanted or (row == "cold64" and wanted & {"cold1x64", "cold-rss"})]
        for row in needed:
            got[row] = self.cold_rounds(servers, fio, rocksdb, *COLD[row])
        for row in ("cold64", "cold128", "cold256"):
            if row not in wanted:
                continue
            self.add_rates(row, f"cold GET from disk, {COLD[row][0]} connections", got[row],
                           [("80% of fio", share_of_fio(0.8)), ("95% of fio (aim)", share_of_fio(0.95))])  # fmt: skip
        if "cold1x64" in wanted:
            self.add_rates("cold1x64", "cold GET from disk, 1 connection x pipeline 64", got["cold1x64"])
            self.add_ratio(got["cold1x64"], got["cold64"])
        if "cold-one" in wanted:
            self.add_latency(got["cold-one"])
        if "cold-rss" in wanted:
            shares = {server.name: [server.rss_bytes() / self.memory_bytes] for server in servers}
            self.bench.add("cold-rss", "resident memory after cold reads / its limit", "x", shares,
                           [("at most --memory", lambda m, r: m[OURS] <= 1)], better="less", group="disk")  # fmt: skip
        for server in servers:
            server.end()
        if fio:
            fio.end()
        if rocksdb:
            shutil.rmtree(rocksdb.folder)

    def cold_rounds(self, servers, fio, rocksdb, clients, pipeline):
        """{name: [numbers of each round]}, interleaved, one at a time."""
        got = {}
        load_options = ["--clients", clients, "--pipeline", pipeline]
        depth = clients * pipeline
        block = 0
        for round_number in range(self.bench.rounds):
            for server in servers:
                server.resume()
                numbers = self.cold_server(server, load_options, depth)
                server.pause()
                if server.kind == "kvasir":
                    block = block or numbers["read_bytes_mean"]
                got.setdefault(server.name, []).append(self.sample(server.name, numbers, round_number))
            others = {FIO: lambda: fio.reads(depth, block, self.seconds), FIO_4K: lambda: fio.reads(depth, 4096, self.seconds)} if fio else {}
            if rocksdb:
                others[ROCKSDB] = lambda: cold_rocksdb(rocksdb, clients, pipeline, self.seconds)
            for name, measure in others.items():
                numbers = measure()
                got.setdefault(name, []).append(self.sample(name, {"depth": depth, **numbers}, round_number))
            progress(f"depth {depth}, round {round_number + 1} of {self.bench.rounds}: " + ", ".join(
                f"{name} {v[-1].get('cold_per_second', v[-1]['ops_per_second']):,.0f}/s" for name, v in got.items()))  # fmt: skip
        return got

    def cold_server(self, server, load_options, depth):
        """GETs of one server, with what share went to disk; from memory as well when the latency counts."""
        kvasir = server.kind == "kvasir"
        options = self.cold_options if kvasir else ["--workload", "get", "--keys", self.keys, *MEMCACHED_SIZES]
        gets, reads = ("keyspace_hits", "cold_preads") if kvasir else ("get_hits", "get_extstore")
        numbers = {}
        if depth == 1:
            # Keys that kvasir does not have; memcached's first one, which it takes back into memory when it was read often.
            warm = generate(server, "--workload", "get", "--keys", 1000 if kvasir else 1, "--clients", 1, "--seconds", 3)
            numbers["latency_memory_us"] = warm["latency_us"]
        before, read_before = server.counters(), server.io_bytes()[0]
        numbers |= generate(server, *options, *load_options, "--seconds", self.seconds)
        after, read_after = server.counters(), server.io_bytes()[0]
        delta = {name: after[name] - before[name] for name in after if name in before}
        numbers["depth"] = depth
        numbers["cold_share"] = cold_share(delta[reads], delta[gets])
        numbers["cold_per_second"] = numbers["ops_per_second"] * numbers["cold_share"] * hit_share(numbers)
        numbers["disk_bytes_a_read"] = (read_after - read_before) / delta[reads] if delta[reads] else 0
        if kvasir:
            numbers["read_bytes_mean"] = block_bytes(delta["cold_bytes"], delta["cold_preads"])
        if depth == 1:
            numbers["cold_mean_us"] = cold_mean_us(numbers["latency_us"]["mean"], numbers["latency_memory_us"]["mean"], numbers["cold_share"])
        return numbers

    def add_rates(self, row, title, got, must=()):
        rates = {name: [x.get("cold_per_second", x["ops_per_second"]) for x in values] for name, values in got.items()}
        block = got[FIO][0]["block_bytes"] if FIO in got else 0
        shares = ", ".join(f"{name} {statistics.median(x['cold_share'] for x in v):.0%}" for name, v in got.items() if "cold_share" in v[0])
        totals = ", ".join(f"{name} {statistics.median(x['ops_per_second'] for x in v):,.0f}" for name, v in got.items() if "cold_share" in v[0])
        note = f"fio's blocks: {block} bytes. Share of GETs that went to disk: {shares}. All GETs a second, those from memory too: {totals}"
        self.bench.add(row, title, "ops/s", rates, list(must), note=note, group="disk")

    def add_ratio(self, one, many):
        pairs = {name: (one[name], many[name]) for name in one if name in many}
        ratios = {name: [a.get("cold_per_second", a["ops_per_second"]) / b.get("cold_per_second", b["ops_per_second"]) for a, b in zip(*pair)]
                  for name, pair in pairs.items() if not name.startswith("fio")}  # fmt: skip
        self.bench.add("cold1x64-to-64", "cold GET: 1 connection x 64 against 64 connections", "x", ratios,
                       [("85%", lambda m, r: m[OURS] >= 0.85), ("100% (aim)", lambda m, r: m[OURS] >= 1)], group="disk")  # fmt: skip

    def add_latency(self, got):
        means = {name: [x.get("cold_mean_us", x["latency_us"]["mean"]) for x in values] for name, values in got.items()}
        must = [(f"fio + {us} us", lambda m, r, us=us: m[OURS] <= m[FIO] + us) for us in (40, 15)]
        must[1] = (must[1][0] + " (aim)", must[1][1])
        halves = ", ".join(f"{name} {statistics.median(x['latency_us']['p50'] for x in values):,.1f}" for name, values in got.items())
        self.bench.add("cold-one", "one cold GET at a time, mean latency", "us", means, must, better="less", group="disk",
                       note=f"GETs from memory are taken out of the means of kvasir and memcached. Medians of all, us: {halves}")  # fmt: skip

    # ---- overwrites ----

    def overwrites(self):
        rates, latency, written, notes = {}, {}, {}, []
        for name, measure in ((OURS, self.overwrite_kvasir), (EXTSTORE, self.overwrite_extstore), (ROCKSDB, self.overwrite_rocksdb)):
            numbers = measure()
            if not numbers:
                continue
            self.sample(name, numbers)
            rates[name] = numbers["sets_per_second"]
            latency[name] = [numbers["idle_p99_us"], statistics.median(numbers["p99_us"])]
            written[name] = [numbers["write_amplification"]]
            notes += [f"{name}: {note}" for note in numbers["notes"]]
            progress(f"{name}: {rates[name][0]:,.0f}/s at first, {rates[name][-1]:,.0f}/s at last, p99 {latency[name][0]:,.0f} and "
                     f"{latency[name][1]:,.0f} us, {written[name][0]:.2f} bytes written for one")  # fmt: skip
        add, parts = self.bench.add, {name: ends(v, PARTS) for name, v in rates.items()}
        minutes = "minute" if self.overwrite_seconds == 60 * PARTS else f"{self.overwrite_seconds / PARTS:g} s"
        note = "; ".join(notes)
        add("overwrite-first", f"uniform overwrites, first {minutes}", "ops/s", {n: [v[0]] for n, v in parts.items()}, group="disk")
        add("overwrite-last", f"uniform overwrites, last {minutes}", "ops/s", {n: [v[1]] for n, v in parts.items()}, group="disk")
        add("overwrite", f"overwrites: last {minutes} / first", "x", {n: [v[1] / v[0]] for n, v in parts.items()},
            [("60%", lambda m, r: m[OURS] >= 0.6), ("90% (aim)", lambda m, r: m[OURS] >= 0.9)], group="disk")  # fmt: skip
        add("overwrite-p99-idle", f"GET p99 at {GET_RATE:,}/s, alone", "us", {n: [v[0]] for n, v in latency.items()}, better="less", group="disk")
        add("overwrite-p99", f"GET p99 at {GET_RATE:,}/s beside overwrites", "us", {n: [v[1]] for n, v in latency.items()}, better="less", group="disk")
        add("overwrite-p99-ratio", "GET p99 beside overwrites / alone", "x", {n: [v[1] / v[0]] for n, v in latency.items()},
            [("2x", lambda m, r: m[OURS] <= 2), ("1.2x (aim)", lambda m, r: m[OURS] <= 1.2)], better="less", group="disk")  # fmt: skip
        add("overwrite-amplification", "bytes written to disk for a byte overwritten", "x", written,
            [("3", lambda m, r: m[OURS] <= 3), ("2 (aim)", lambda m, r: m[OURS] <= 2)], better="less", group="disk", note=note)  # fmt: skip

    def overwrite_kvasir(self):
        limit = int(self.keys * LOG_RECORD_BYTES / FILL)
        limited = "--disk-limit" in subprocess.run([KVASIR, "server", "--help"], capture_output=True, text=True, check=False).stdout
        server = self.kvasir(*(["--disk-limit", str(limit)] if limited else []))
        gets = [*self.cold_options, "--clients", 50, "--rate", GET_RATE]
        part = self.overwrite_seconds / PARTS
        idle = generate(server, *gets, "--seconds", max(part, 3))
        before, written_before = server.counters(), server.io_bytes()[1]
        chunks, notes = [], [] if limited else ["no --disk-limit in this version, so nothing is cleaned"]
        for number in range(PARTS):
            chunk = generate(server, *gets, "--beside", 8, "--pipeline", 64, "--seconds", part)
            chunks.append(self.sample(server.name, chunk, number))
            used = server.disk_bytes()
            progress(f"{server.name}: {chunk['beside_ops_per_second']:,.0f} SET/s, GET p99 {chunk['latency_us']['p99']:,.0f} us, "
                     f"{used / 1e9:.1f} GB on disk")  # fmt: skip
            if not limited and used > self.disk_bytes_max and number < PARTS - 1:
                notes.append(f"ended after {(number + 1) * part:g} s, when {used / 1e9:.1f} GB were on disk")
                break
        after = server.counters()
        info = {name: after[name] for name in after if name.startswith(("disk_", "cleaner_", "toc_", "space_amp", "write_amp"))}
        if "disk_live_bytes" in info and limited:
            notes.append(f"{info['disk_live_bytes'] / limit:.0%} of --disk-limit is live")
        if "write_amplification" in info:
            notes.append(f"INFO's write amplification since the start is {info['write_amplification']:.2f}")
        numbers = {
            "sets_per_second": [x["beside_ops_per_second"] for x in chunks],
            "write_amplification": amplification(
                server.io_bytes()[1] - written_before, after["cmdstat_set"] - before["cmdstat_set"], RECORD_BYTES
            ),
            "info": info,
            "log_bytes_written": after["log_bytes_written"] - before["log_bytes_written"],
            "notes": notes,
            **get_latencies(idle, chunks, notes),
        }
        server.end()
        return numbers

    def overwrite_extstore(self):
        """Two generators, as ours sends sets beside in the Redis protocol only: they share a core, which its p99 pays for."""
        server = self.extstore()
        if not server:
            return None
        common = ["--keys", self.keys, *MEMCACHED_SIZES]
        gets = ["--workload", "get", *common, "--clients", 50, "--rate", GET_RATE]
        part = self.overwrite_seconds / PARTS
        idle = generate(server, *gets, "--seconds", max(part, 3))
        before, written_before, chunks = server.counters(), server.io_bytes()[1], []
        for number in range(PARTS):
            command = generator_command(server, "--workload", "set", *common, "--clients", 8, "--pipeline", 64, "--seconds", part)
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
                reads = generate(server, *gets, "--seconds", part)
                out, errors = process.communicate()
            sets = generator_result(command, subprocess.CompletedProcess(command, process.returncode, out, errors), server)
            chunks.append((self.sample(server.name, sets, number), self.sample(server.name, reads, number)))
        # The generator counts after its warm-up; the server has counted all.
        after = server.counters()
        reads, notes = [x for _, x in chunks], []
        missing = sum(x["nils"] for x in reads) / max(sum(x["ops"] for x in reads), 1)
        if missing:
            notes.append(f"{missing:.0%} of the values asked for had been dropped")
        numbers = {
            "sets_per_second": [x["ops_per_second"] for x, _ in chunks],
            "write_amplification": amplification(server.io_bytes()[1] - written_before, after["cmd_set"] - before["cmd_set"], RECORD_BYTES),
            "extstore": {name: after[name] for name in after if name.startswith(("extstore_", "evict"))},
            "notes": notes,
            **get_latencies(idle, reads, notes),
        }
        server.end()
        return numbers

    def overwrite_rocksdb(self):
        """Overwrites by 64 threads that share fsyncs, and then GETs beside its one writer thread: db_bench has not both at once."""
        rocksdb = self.rocksdb()
        if not rocksdb:
            return None
        part = max(self.overwrite_seconds // PARTS, 3)
        idle = rocksdb.reads(8, 1, part, f"--benchmark_read_rate_limit={GET_RATE}")
        writes = rocksdb.overwrites(64, self.overwrite_seconds)
        reads = rocksdb.reads_beside_writer(8, GET_RATE, part)
        shutil.rmtree(rocksdb.folder)
        return {
            "sets_per_second": writes["per_second"],
            "p99_us": [reads["latency_us"]["p99"]],
            "idle_p99_us": idle["latency_us"]["p99"],
            "write_amplification": amplification(writes["disk_bytes_written"], writes["ops"], RECORD_BYTES),
            "gets_per_second": [idle["ops_per_second"], reads["ops_per_second"]],
            "notes": [f"64 threads overwrite; {reads['ops_per_second']:,.0f} GET/s beside one writer, timed from when each began"],
            "commands": [idle["command"], writes["command"], reads["command"]],
        }

    # ---- memory for a key, restart ----

    def restart(self, wanted):
        """Loads keys with 32-byte values, SAVE, SIGKILL, start: all values are cold then, and what is resident is what a cold key costs."""
        keys, sizes = self.restart_keys, ["--min-size", 32, "--max-size", 32]
        server = Server("kvasir", True, self.base, memory_bytes=72 * keys + (256 << 20), threads=self.restart_threads, pinned=False)
        loaded = load(server, keys, *sizes)
        saved = server.ask("SAVE", seconds=3600)
        note = f"{self.restart_threads} threads, page cache emptied"
        if saved != "OK":
            note += f"; SAVE answered {saved.split(',')[0]}, so the log since the last checkpoint was replayed"
        disk = folder_bytes(server.data)
        server.kill()
        drop_pages(server.data)
        seconds = server.start()
        resident = server.rss_bytes()
        there = int(server.ask("DBSIZE"))
        checked = generate(server, "--workload", "cold", "--keys", keys, "--seed", 1, *sizes, "--clients", 64, "--seconds", 3, "--verify")
        if there != keys or checked["nils"]:
            raise RuntimeError(f"{there} keys after the restart, {checked['nils']} of the asked for missing; there were {keys}")
        self.sample(server.name, {"keys": keys, "load_per_second": loaded, "restart_seconds": seconds, "rss_bytes": resident,
                                  "disk_bytes": disk, "note": note, "counters": server.counters()})  # fmt: skip
        server.end()
        if "cold-key-bytes" in wanted:
            self.bench.add("cold-key-bytes", f"memory for a cold key, {keys:,} keys of 16 bytes", "bytes", {OURS: [resident / keys]},
                           [("56", lambda m, r: m[OURS] <= 56), ("40 (aim)", lambda m, r: m[OURS] <= 40)], better="less", group="disk")  # fmt: skip
        if "restart" in wanted:
            self.bench.add("restart", f"restart after SIGKILL, {keys:,} keys", "s", {OURS: [seconds]},
                           [("60 s", lambda m, r: m[OURS] <= 60), ("20 s (aim)", lambda m, r: m[OURS] <= 20)],
                           better="less", group="disk", note=note)  # fmt: skip


def share_of_fio(least):
    return lambda medians, ratios: ratios[FIO] >= least


def get_latencies(idle, chunks, notes):
    """p99 alone and of each chunk; adds to notes when the rate was not reached."""
    for what, runs in (("alone", [idle]), ("beside overwrites", chunks)):
        behind_ms = max(x["behind_ms"] for x in runs)
        if behind_ms > 100:
            notes.append(f"{GET_RATE:,} GET/s {what} not reached, {behind_ms / 1e3:.1f} s behind")
    return {"idle_p99_us": idle["latency_us"]["p99"], "p99_us": [x["latency_us"]["p99"] for x in chunks]}


def hit_share(numbers):
    """A cache may have dropped what is asked for; only what it delivers counts."""
    return 1 - numbers["nils"] / numbers["ops"] if numbers["ops"] else 0


def cold_rocksdb(rocksdb, clients, pipeline, seconds):
    numbers = rocksdb.reads(clients, pipeline, seconds)
    tickers = numbers["tickers"]
    keys_read = tickers.get("rocksdb.number.keys.read", 0) or tickers.get("rocksdb.number.multiget.keys.read", 0)
    numbers["cold_share"] = cold_share(tickers["rocksdb.block.cache.data.miss"], max(keys_read, numbers["ops"]))
    numbers["cold_per_second"] = numbers["ops_per_second"] * numbers["cold_share"]
    return numbers


def load(server, keys, *sizes):
    """`kvasir load --generate`. Records a second."""
    progress(f"loading {keys:,} records into {server.name}")
    command = [KVASIR, "load", "--connect", f"127.0.0.1:{server.port}", "--generate", keys, "--seed", 1, *sizes]
    result = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"load ended with {result.returncode}: {result.stderr[-500:]}")
    return parse_load(result.stdout)


def parse_load(text):
    stored, seconds = re.search(r"stored (\d+) keys, \d+ bytes in ([\d.]+) s", text).groups()
    return int(stored) / max(float(seconds), 0.01)
