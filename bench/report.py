"""Prints rows, tables and plots of compare.py, and says what machine they were measured on."""

import os
import platform
import re
import subprocess
import sys

from servers import KVASIR, ROOT

NAMES = ["kvasir durable", "kvasir", "fio", "fio 4 KiB", "redis durable", "redis", "valkey durable", "valkey", "memcached",
         "memcached extstore", "rocksdb"]  # fmt: skip


def progress(text):
    print(f"  {text}", file=sys.stderr, flush=True)


def human(value, unit):
    if unit in ("x",):
        return f"{value:.2f}x"
    if unit == "us":
        return f"{value:,.0f} us"
    if unit == "bytes":
        return f"{value:,.0f} B"
    if unit == "s":
        return f"{value:,.1f} s"
    return f"{value / 1e6:.2f} M/s" if value >= 1e6 else f"{value:,.0f}/s"


def print_row(row):
    cells = [f"{name} {human(value, row['unit'])}" for name, value in row["medians"].items()]
    if row["unit"] != "x":
        cells += [f"kvasir / {name}: {ratio:.2f}" for name, ratio in row["ratios"].items() if not name.startswith("kvasir")]
    print(f"{row['title']}:")
    print("    " + "   ".join(cells))
    for check in row["checks"]:
        print(f"    must {check['must']}: {'met' if check['met'] else 'NOT MET'}")
    if row["note"]:
        print(f"    {row['note']}")
    sys.stdout.flush()


def table(rows, beside, guarantees=None):
    """A Markdown table. beside: how the name of the server begins that the column of ratios is about."""
    names = [name for name in NAMES if any(name in row["medians"] for row in rows)]
    lines = ["| work | " + " | ".join(names) + f" | kvasir / {beside} | must |", "|---" * (len(names) + 3) + "|"]
    for row in rows:
        medians = row["medians"]
        cells = [human(medians[name], row["unit"]) if name in medians else "" for name in names]
        ratio = next((f"{value:.2f}" for name, value in row["ratios"].items() if name.startswith(beside.lower())), "")
        checks = ", ".join(f"{c['must']}: {'met' if c['met'] else 'NOT MET'}" for c in row["checks"])
        lines.append(f"| {row['title']} | " + " | ".join(cells) + f" | {ratio} | {checks} |")
    if guarantees:
        lines.append("| what it guarantees | " + " | ".join(guarantees.get(name, "") for name in names) + " | | |")
    return "\n".join(lines)


# ---- what this was measured on ----


def output(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip().splitlines()[0]
    except (OSError, IndexError):
        return ""


def machine(folder):
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
        "file_system": output("stat", "-f", "-c", "%T", folder),
        "versions": {
            "kvasir": output(KVASIR, "--version"),
            "git": output("git", "-C", ROOT, "rev-parse", "--short", "HEAD"),
            "redis": output("redis-server", "--version"),
            "valkey": output("valkey-server", "--version"),
            "memcached": output("memcached", "--version"),
            "fio": output("fio", "--version"),
            "rocksdb": output("dpkg-query", "-W", "-f=${Version}", "rocksdb-tools"),
        },
    }


# ---- the plot ----

COLOURS = {"kvasir": "#d1495b", "redis": "#5b8e7d", "valkey": "#30638e", "memcached": "#8d99ae", "fio": "#3d405b", "rocksdb": "#e09f3e"}


def svg(rows, path, about, title="kvasir beside Redis, Valkey and memcached, one core each"):
    """One group of horizontal bars for each row, each group scaled to its longest bar."""
    width, left, bar, gap = 920, 330, 17, 30
    rows = [row for row in rows if row["medians"]]
    height = 60 + sum(gap + (bar + 3) * len(row["medians"]) for row in rows) + 20
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="13">',
           f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
           f'<text x="16" y="26" font-size="17" font-weight="bold">{escape(title)}</text>',
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
