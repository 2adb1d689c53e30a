"""fio and RocksDB's db_bench: how they are run beside kvasir, and what their output says.

fio: random reads with O_DIRECT of a file of its own that was written once. Depth 1 uses its default engine, psync, the
quickest there; more uses io_uring, as kvasir does. One thread, on the core that servers have.
db_bench: a library in one process with its load, so nothing goes over a network, and it may use both cores. Direct reads, no
compression, bloom filters; index and filters count in its cache, so that cache and two memtables stay within the limit."""

import json
import os
import re
import subprocess

from servers import SERVER_CORE

MEMTABLE_BYTES = 16 << 20
KEY_BYTES, VALUE_BYTES_MIN, VALUE_BYTES_MAX = 16, 1024, 4096


def run(command):
    """(standard output, bytes written to disk by the process)."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        text = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {text[-500:]}")
    return text, used.ru_oublock * 512


# ---- fio ----


class Fio:
    def __init__(self, base, size_bytes):
        self.path = os.path.join(base, "fio.data")
        self.size_bytes = size_bytes
        run([*self._common("layout"), "--rw=write", "--bs=1M", "--iodepth=8", "--refill_buffers", "--end_fsync=1"])

    def _common(self, name, engine="io_uring"):
        return ["fio", f"--name={name}", f"--filename={self.path}", f"--size={self.size_bytes >> 20}M", "--direct=1",
                f"--ioengine={engine}", "--output-format=json"]  # fmt: skip

    def reads(self, depth, block_bytes, seconds):
        command = [*self._common("read", "io_uring" if depth > 1 else "psync"), "--rw=randread", f"--bs={block_bytes}",
                   f"--iodepth={depth}", "--time_based", f"--runtime={seconds}", "--norandommap", "--randrepeat=0",
                   f"--cpus_allowed={SERVER_CORE}"]  # fmt: skip
        return {**parse_fio(run(command)[0]), "command": " ".join(command), "block_bytes": block_bytes}

    def end(self):
        os.unlink(self.path)


def parse_fio(text):
    """fio may print warnings around its JSON."""
    read = json.loads(text[text.index("{") : text.rindex("}") + 1])["jobs"][0]["read"]
    percentile = read["clat_ns"]["percentile"]
    return {
        "ops_per_second": read["iops"],
        "latency_us": {
            "mean": read["lat_ns"]["mean"] / 1e3,
            "p50": percentile["50.000000"] / 1e3,
            "p99": percentile["99.000000"] / 1e3,
        },
    }


# ---- RocksDB ----


class RocksDb:
    def __init__(self, base, keys, memory_bytes):
        self.folder = os.path.join(base, "rocksdb")
        self.keys = keys
        self.cache_bytes = max(memory_bytes - 2 * MEMTABLE_BYTES, 8 << 20)
        self.run("filluniquerandom,waitforcompaction", "--disable_wal=1", "--use_existing_db=0")

    def command(self, benchmarks, *options):
        return ["db_bench", f"--db={self.folder}", f"--benchmarks={benchmarks}", f"--num={self.keys}", f"--key_size={KEY_BYTES}",
                "--value_size_distribution_type=uniform", f"--value_size_min={VALUE_BYTES_MIN}", f"--value_size_max={VALUE_BYTES_MAX}",
                "--compression_type=none", "--bloom_bits=10", f"--cache_size={self.cache_bytes}", "--cache_index_and_filter_blocks=1",
                f"--write_buffer_size={MEMTABLE_BYTES}", "--use_direct_reads=1", "--use_direct_io_for_flush_and_compaction=1",
                "--max_background_jobs=2", "--statistics=1", "--histogram=1", "--use_existing_db=1", *options]  # fmt: skip

    def run(self, benchmark, *options):
        command = self.command(benchmark, *options)
        text, written = run(command)
        numbers = parse_db_bench(text, benchmark.split(",")[0])
        return {**numbers, "command": " ".join(command), "disk_bytes_written": written}

    def reads(self, clients, pipeline, seconds, *options):
        if pipeline > 1:  # one thread that asks for many at once
            return self.run("multireadrandom", "--threads=1", f"--batch_size={pipeline}", "--multiread_batched=1", f"--duration={seconds}", *options)
        return self.run("readrandom", f"--threads={clients}", f"--duration={seconds}", *options)

    def reads_beside_writer(self, threads, per_second, seconds):
        return self.run("readwhilewriting", "--sync=1", f"--threads={threads}", f"--benchmark_read_rate_limit={per_second}", f"--duration={seconds}")

    def overwrites(self, threads, seconds):
        report = os.path.join(self.folder, "report.csv")
        numbers = self.run("overwrite", "--sync=1", f"--threads={threads}", f"--duration={seconds}",
                           "--report_interval_seconds=1", f"--report_file={report}")  # fmt: skip
        with open(report, encoding="ascii") as file:
            numbers["per_second"] = parse_report(file.read())
        return numbers


def parse_db_bench(text, benchmark):
    """Rate, latencies, how many were found, and the tickers of --statistics."""
    line = re.search(rf"^{benchmark}\s*:\s*([\d.]+) micros/op (\d+) ops/sec .*?(\d+) operations;", text, re.M)
    if not line:
        raise RuntimeError(f"db_bench says nothing of {benchmark}: {text[-500:]}")
    numbers = {"ops_per_second": float(line.group(2)), "ops": int(line.group(3)), "latency_us": {}}
    after = text[line.start() :]
    mean = re.search(r"Average: ([\d.]+)", after)
    quantiles = re.search(r"Percentiles: P50: ([\d.]+) P75: [\d.]+ P99: ([\d.]+)", after)
    if mean and quantiles:
        numbers["latency_us"] = {"mean": float(mean.group(1)), "p50": float(quantiles.group(1)), "p99": float(quantiles.group(2))}
    found = re.search(r"\((\d+) of (\d+) found\)", after)
    if found:
        numbers["found_share"] = int(found.group(1)) / max(int(found.group(2)), 1)
    numbers["tickers"] = {name: int(count) for name, count in re.findall(r"^(rocksdb\.[\w.-]+) COUNT : (\d+)$", text, re.M)}
    return numbers


def parse_report(text):
    """--report_file: operations of each second."""
    return [int(line.split(",")[1]) for line in text.splitlines()[1:] if "," in line]
