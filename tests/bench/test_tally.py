"""tests/tally.py: what `./dev test` counts."""

import json
import os
import subprocess
import sys

import pytest

TALLY = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tally.py")


def tally(kind, path):
    result = subprocess.run([sys.executable, TALLY, kind, path], capture_output=True, text=True, timeout=60, check=True)
    return tuple(map(int, result.stdout.split())), result.stderr


def program(name, stderr, result="OK"):
    return {"name": name, "result": result, "stdout": "[==========] Running 3 test(s).\n", "stderr": stderr}


@pytest.mark.parametrize("programs, counts", [
    ([program("a", "[  PASSED  ] 3 test(s).\n"), program("b", "[  PASSED  ] 2 test(s).\n[  PASSED  ] 1 test(s).\n")], (6, 0)),
    ([program("a", "[  PASSED  ] 2 test(s).\n[  FAILED  ] 1 test(s), listed below:\n", "FAIL")], (2, 1)),
    ([program("a", "[  PASSED  ] 2 test(s).\n[  SKIPPED ] 1 test(s), listed below:\n")], (2, 1)),
    ([program("a", "[  PASSED  ] 3 test(s).\n", "FAIL")], (3, 1)),  # a sanitizer's word at its end
    ([program("a", "", "FAIL")], (0, 1)),
    ([program("a", "[  PASSED  ] 3 test(s).\n"), program("silent", "")], (3, 1)),
    ([program("a", "[  PASSED  ] 3 test(s).\n"), program("silent", "[  PASSED  ] 0 test(s).\n")], (3, 1)),
    ([], (0, 1)),
])  # fmt: skip
def test_unit_programs(tmp_path, programs, counts):
    (tmp_path / "log").write_text("".join(json.dumps(p) + "\n" for p in programs))
    found, text = tally("meson", tmp_path / "log")
    assert found == counts
    assert ("silent ran no test" in text) == any(p["name"] == "silent" for p in programs)


def test_a_report_that_is_missing_or_cut_short(tmp_path):
    assert tally("meson", tmp_path / "none")[0] == (0, 1)
    (tmp_path / "log").write_text(json.dumps(program("a", "[  PASSED  ] 3 test(s).\n"))[:-5])
    assert tally("meson", tmp_path / "log")[0] == (0, 1)
