"""The crash demonstration: loads Debian's package catalogue, kills the server with SIGKILL midway, starts it again, and
looks for every acknowledged key. Exit code 1 if one is lost.

usage: demo.py [--binary build/kvasir] [--after SECONDS]"""

import argparse
import os
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "clients"))

from kvasir_server import Server  # noqa: E402


def catalogue(path):
    """Debian's package catalogue as a file; fetched with apt-get update where the machine has none."""
    for attempt in range(2):
        with open(path, "wb") as file:
            subprocess.run(["apt-cache", "dumpavail"], stdout=file, check=True)
        if os.path.getsize(path) > 1 << 20:
            return
        if attempt == 0:
            print("This machine has no package lists yet: apt-get update", flush=True)
            root = [] if os.geteuid() == 0 else ["sudo"]
            subprocess.run([*root, "apt-get", "update", "-q"], check=False)
    sys.exit("demo: apt has no package catalogue here; check the machine's sources (/etc/apt)")


def lines(path):
    """Complete lines only."""
    try:
        with open(path, "rb") as file:
            return file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return []


def missing_keys(client, keys):
    missing = []
    for start in range(0, len(keys), 500):
        part = keys[start : start + 500]
        missing += [key for key, there in zip(part, client.pipeline(["EXISTS", key] for key in part)) if there != 1]
    return missing


def start_load(server, source, acked):
    command = [server.binary, "load", "--connect", f"127.0.0.1:{server.port}", "--format", "deb822", "--prefix", "deb",
               "--acked", acked, source]  # fmt: skip
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def main():
    parser = argparse.ArgumentParser(description="load, kill -9, restart, count")
    parser.add_argument("--binary", default="build/kvasir")
    parser.add_argument("--after", type=int, default=None, help="kill after so many acknowledged keys")
    options = parser.parse_args()
    server = Server(binary=os.path.abspath(options.binary))
    try:
        return demonstrate(server, options.after)
    finally:
        server.destroy()


def demonstrate(server, after):
    source = os.path.join(server.directory, "catalogue")
    acked = os.path.join(server.directory, "acked")
    catalogue(source)
    with open(source, "rb") as file:
        packages = file.read().count(b"\nPackage: ") + 1
    size = os.path.getsize(source)
    print(f"The catalogue: {packages:,} packages, {size / 1e6:.0f} MB.", flush=True)
    server.start()
    load = start_load(server, source, acked)
    # Midway: about 22 fields to a package.
    midway = after if after is not None else packages * 8
    while load.poll() is None and not (os.path.exists(acked) and len(lines(acked)) >= midway):
        time.sleep(0.02)
    if load.poll() is not None:
        print("The load was over before the kill; killing the server now.", flush=True)
    server.process.send_signal(signal.SIGKILL)
    server.process.wait()
    load.communicate()
    keys = lines(acked)
    print(f"Killed the server (SIGKILL) after {len(keys):,} acknowledged keys.", flush=True)
    began = time.monotonic()
    server.start()
    print(f"Started again in {time.monotonic() - began:.2f} s.", flush=True)
    with server.client() as client:
        missing = missing_keys(client, keys)
        print(f"Stored keys found: {client('DBSIZE'):,}. Acknowledged: {len(keys):,}. Lost: {len(missing):,}.", flush=True)
        for key in missing[:10]:
            print("  lost:", key.decode(errors="replace"))
        if missing or not keys:
            return 1
    print("Loading it whole now ...", flush=True)
    load = start_load(server, source, acked)
    text, _ = load.communicate()
    if load.returncode != 0:
        print(text.decode(errors="replace")[-2000:])
        return 1
    with server.client(timeout=60) as client:
        print(text.decode(errors="replace").strip().splitlines()[-1])
        print(f"KIDS deb/bash: {b' '.join(client('KIDS', 'deb/bash')).decode()}")
        print(f"GET deb/bash/Depends: {(client('GET', 'deb/bash/Depends') or b'(nil)').decode()}")
        kids = client("KIDS", "deb", "LIMIT", 5, "FROM", "python3")
        print(f"KIDS deb FROM python3 LIMIT 5: {b' '.join(kids).decode()}")
    print("Nothing acknowledged was lost.")
    return 0


sys.exit(main())
