"""bench/: what compare.py reads from other programs, and what it computes."""

import json
import os
import subprocess
import sys

import pytest

BENCH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "bench")
sys.path.insert(0, BENCH)

import arithmetic  # noqa: E402
import disk_rows  # noqa: E402
import outside  # noqa: E402
import report  # noqa: E402
import servers  # noqa: E402

# db_bench 7.8, shortened
DB_BENCH = """\
Keys:       16 bytes each
DB path: [db]
readrandom   :     556.555 micros/op 112809 ops/sec 3.341 seconds 376936 operations;  276.8 MB/s (5998 of 5999 found)

Microseconds per read:
Count: 376936 Average: 557.8518  StdDev: 790.00
Min: 1  Median: 472.5213  Max: 34214
Percentiles: P50: 472.52 P75: 649.17 P99: 3430.66 P99.9: 11267.63 P99.99: 21581.03
rocksdb.block.cache.data.miss COUNT : 377487
rocksdb.number.keys.read COUNT : 376936
rocksdb.db.get.micros P50 : 472.172703 P95 : 1290.327708 P99 : 3390.762783 P100 : 34214.000000 COUNT : 376936 SUM : 209475329
"""


def fio_text(lat_ns=28760.5):
    read = {"iops": 34522.8, "lat_ns": {"mean": lat_ns}, "clat_ns": {"percentile": {"50.000000": 18048, "99.000000": 35072}}}
    return "fio: a warning\n" + json.dumps({"jobs": [{"jobname": "x", "read": read}]}) + "\n"


def test_fio():
    assert outside.parse_fio(fio_text()) == {
        "ops_per_second": 34522.8,
        "latency_us": {"mean": 28.7605, "p50": 18.048, "p99": 35.072},
    }


def test_db_bench():
    numbers = outside.parse_db_bench(DB_BENCH, "readrandom")
    assert numbers["ops_per_second"] == 112809 and numbers["ops"] == 376936
    assert numbers["latency_us"] == {"mean": 557.8518, "p50": 472.52, "p99": 3430.66}
    assert numbers["found_share"] == 5998 / 5999
    # Histograms are no tickers.
    assert numbers["tickers"] == {"rocksdb.block.cache.data.miss": 377487, "rocksdb.number.keys.read": 376936}


def test_db_bench_that_failed():
    with pytest.raises(RuntimeError, match="says nothing of overwrite"):
        outside.parse_db_bench(DB_BENCH, "overwrite")


def test_db_bench_report():
    assert outside.parse_report("secs_elapsed,interval_qps\n1,24531\n2,27150\n") == [24531, 27150]


def test_counters():
    text = "# Kvasir\r\ncold_preads:148056\r\nreads_per_submission:3.25\r\nio_backend:io_uring\r\ncmdstat_set:calls=12,usec=7\r\nempty:\r\n"
    assert servers.parse_counters(text) == {"cold_preads": 148056, "reads_per_submission": 3.25, "cmdstat_set": 12}


def test_load_rate():
    assert disk_rows.parse_load("stored 150000 keys, 386568955 bytes in 0.50 s\n") == 300000


def test_block_is_the_mean_read_in_sectors():
    assert arithmetic.block_bytes(461261824, 148056) == 3072  # mean 3115
    assert arithmetic.block_bytes(100, 1) == 512
    assert arithmetic.block_bytes(0, 0) == 0


def test_cold_share():
    assert arithmetic.cold_share(80, 100) == 0.8
    assert arithmetic.cold_share(101, 100) == 1
    assert arithmetic.cold_share(0, 0) == 0


def test_mean_of_cold_reads():
    # 80 of 100 take 50 us and 20 take 10 us: 42 us over all.
    assert arithmetic.cold_mean_us(42, 10, 0.8) == pytest.approx(50)
    with pytest.raises(RuntimeError, match="not larger than memory"):
        arithmetic.cold_mean_us(42, 10, 0)


def test_first_and_last_part():
    assert arithmetic.ends(list(range(100)), 10) == (4.5, 94.5)
    assert arithmetic.ends([8, 5, 4], 10) == (8, 4)  # the run ended early


def test_amplification():
    assert arithmetic.amplification(6000, 3, 1000) == 2
    assert arithmetic.amplification(6000, 0, 1000) == 0


@pytest.mark.parametrize("text, size", [("4096", 4096), ("64M", 64 << 20), ("2g", 2 << 30), ("1.5K", 1536)])
def test_sizes(text, size):
    assert arithmetic.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "5X", "x"])
def test_sizes_that_are_none(text):
    with pytest.raises(ValueError):
        arithmetic.parse_size(text)


def test_a_rate_that_is_not_reached_is_said():
    def run(behind_ms):
        return {"behind_ms": behind_ms, "latency_us": {"p99": 7 + behind_ms}}

    notes = []
    assert disk_rows.get_latencies(run(0), [run(1), run(5)], notes) == {"idle_p99_us": 7, "p99_us": [8, 12]}
    assert notes == []
    disk_rows.get_latencies(run(0), [run(1), run(2500)], notes)
    assert notes == ["20,000 GET/s beside overwrites not reached, 2.5 s behind"]


def test_table_says_what_each_guarantees():
    row = {
        "title": "cold GET",
        "unit": "ops/s",
        "medians": {"kvasir durable": 80000, "fio": 100000},
        "ratios": {"kvasir durable": 1, "fio": 0.8},
        "checks": [{"must": "80% of fio", "met": True}],
    }
    lines = report.table([row], "fio", disk_rows.GUARANTEES).splitlines()
    assert lines[0] == "| work | kvasir durable | fio | kvasir / fio | must |"
    assert lines[2] == "| cold GET | 80,000/s | 100,000/s | 0.80 | 80% of fio: met |"
    assert lines[3].startswith("| what it guarantees | an acknowledged write is on disk")
    assert len({line.count("|") for line in lines}) == 1


def test_every_row_has_a_name():
    listed = subprocess.run([sys.executable, os.path.join(BENCH, "compare.py"), "--list"], capture_output=True, text=True, check=True)
    rows = listed.stdout.split()
    assert set(disk_rows.DISK_ROWS) < set(rows) and "get-pipelined" in rows
    assert len(rows) == len(set(rows))
