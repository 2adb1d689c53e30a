"""Prints "PASSED FAILED" from a test report, for ./dev test. A report that is missing or cut short counts as one
failure, and a skipped test is a failed test.

usage: tally.py meson testlog.json | junit report.xml | line log (its last line "N passed, N failed")
"""

import json
import re
import sys
import xml.etree.ElementTree as ElementTree


def meson(path):
    """Counts cmocka's cases. A program without a summary, or that failed with none of them, counts as one failure."""
    passed = failed = 0
    for line in open(path, encoding="utf-8"):
        run = json.loads(line)
        text = run.get("stdout", "") + "\n" + run.get("stderr", "")
        good = sum(map(int, re.findall(r"^\[  PASSED  \] (\d+) test", text, re.M)))
        bad = sum(map(int, re.findall(r"^\[  FAILED  \] (\d+) test", text, re.M)))
        bad += sum(map(int, re.findall(r"^\[  SKIPPED \] (\d+) test", text, re.M)))
        if good + bad == 0:
            print(f"tally: {run['name']} ran no test", file=sys.stderr)
        if bad == 0 and (good == 0 or run["result"] not in ("OK", "EXPECTEDFAIL")):
            bad = 1
        passed, failed = passed + good, failed + bad
    return passed, failed if passed else max(failed, 1)


def junit(path):
    total = failed = 0
    for suite in ElementTree.parse(path).getroot().iter("testsuite"):
        total += int(suite.get("tests"))
        failed += sum(int(suite.get(name, 0)) for name in ("failures", "errors", "skipped"))
    if total == 0:
        failed = max(failed, 1)
    return max(total - failed, 0), failed


def line(path):
    last = open(path, encoding="utf-8", errors="replace").read().strip().splitlines()[-1]
    return tuple(map(int, re.fullmatch(r"(\d+) passed, (\d+) failed", last).groups()))


try:
    print(*{"meson": meson, "junit": junit, "line": line}[sys.argv[1]](sys.argv[2]))
except (OSError, ValueError, IndexError, AttributeError, ElementTree.ParseError) as error:
    print(f"tally: {sys.argv[2]}: {error}", file=sys.stderr)
    print("0 1")
