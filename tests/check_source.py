"""The rules that a tool can check: include directions, banned functions, sizes. Exit code 1 when one is broken.

Long functions are warnings; everything else is an error."""

import os
import re
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# Lowest first: nothing includes anything above itself. proto knows no store and no log; index knows no log and no disk.
LAYERS = ["base", "sys", "index", "log", "toc", "store", "proto", "server", "tools", "main"]
FORBIDDEN = {("proto", "store"), ("proto", "log"), ("proto", "index"), ("index", "log"), ("log", "index"), ("toc", "index"), ("tools", "store")}
FORBIDDEN_HEADERS = {"index": {"sys/disk.h", "sys/loop.h", "sys/socket.h"}, "proto": {"sys/disk.h"}}
BANNED = {
    "strcpy": "memcpy with a known length",
    "strcat": "snprintf",
    "strncpy": "memcpy with a known length",
    "strncat": "snprintf",
    "sprintf": "snprintf",
    "vsprintf": "vsnprintf",
    "gets": "fgets",
    "strtok": "a loop over a slice",
    "atoi": "parse_i64",
    "atol": "parse_i64",
    "atoll": "parse_i64",
    "atof": "parse_double",
    "volatile": "an atomic with a memory order",
    "rand": "prng.h",
    "alloca": "a buffer of known size",
    "fork": "nothing: no fork, no pause",
}
FINE_IN_TESTS = {"fork", "rand", "strncat", "strcpy"}
LINES_MAX = 1000
FUNCTION_LINES_MAX = 70


def c_files():
    for top in ("src", "tests", "bench"):
        for folder, _, names in os.walk(os.path.join(ROOT, top)):
            for name in sorted(names):
                if name.endswith((".c", ".h")):
                    yield os.path.relpath(os.path.join(folder, name), ROOT)


def without_comments_and_strings(text):
    """The same text with comments and strings blanked, line breaks kept."""
    pattern = r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\''
    return re.sub(pattern, lambda m: re.sub(r"[^\n]", " ", m.group(0)), text, flags=re.S)


def layer(path):
    parts = path.split("/")
    if parts[0] != "src":
        return None
    return "main" if parts[1] == "main.c" else parts[1]


def check_includes(path, text):
    mine = layer(path)
    if mine is None:
        return
    if mine not in LAYERS:
        yield f"{path}: src/{mine} is no layer (tests/check_source.py knows them)"
        return
    for number, line in enumerate(text.splitlines(), 1):
        match = re.match(r'\s*#\s*include\s+"([^"]+)"', line)
        if not match:
            continue
        header = match.group(1)
        theirs = header.split("/")[0]
        where = f"{path}:{number}"
        if "/" not in header or theirs not in LAYERS:
            yield f'{where}: includes "{header}": name it from src/, like "base/status.h"'
        elif LAYERS.index(theirs) > LAYERS.index(mine):
            yield f'{where}: {mine} must not include "{header}": {theirs} stands above it'
        elif (mine, theirs) in FORBIDDEN or header in FORBIDDEN_HEADERS.get(mine, ()):
            yield f'{where}: {mine} must not know "{header}"'


def check_banned(path, code):
    for number, line in enumerate(code.splitlines(), 1):
        for word in re.findall(r"\b[a-z]+\b(?=\s*\()|\bvolatile\b", line):
            if word not in BANNED:
                continue
            if word == "volatile" and re.search(r"\b(__asm__|asm)\s+volatile\b", line):
                continue
            if word in FINE_IN_TESTS and path.startswith("tests/"):
                continue
            yield f"{path}:{number}: {word} is banned; use {BANNED[word]}"


def long_functions(path, code):
    start = None
    lines = code.splitlines()
    for number, line in enumerate(lines):
        if line == "{":
            start = number
        elif line == "}" and start is not None:
            if number - start - 1 > FUNCTION_LINES_MAX:
                yield f"{path}:{start + 1}: a function of {number - start - 1} lines (a screen has {FUNCTION_LINES_MAX})"
            start = None


def main():
    errors, warnings = [], []
    count = 0
    for path in c_files():
        count += 1
        text = open(os.path.join(ROOT, path), encoding="utf-8").read()
        code = without_comments_and_strings(text)
        errors += check_includes(path, text)
        errors += check_banned(path, code)
        length = text.count("\n")
        if length > LINES_MAX:
            errors.append(f"{path}: {length} lines: two concepts (limit {LINES_MAX})")
        if re.search(r"[ \t]+$", text, re.M):
            errors.append(f"{path}: spaces at a line's end")
        if path.startswith("src/") and path.endswith(".h") and "#ifndef KVASIR_" not in text:
            errors.append(f"{path}: no include guard KVASIR_..._H")
        warnings += long_functions(path, code)
    for line in warnings:
        print("warning:", line, file=sys.stderr)
    for line in errors:
        print(line, file=sys.stderr)
    print(f"source rules: {count} files, {len(errors)} errors, {len(warnings)} warnings", file=sys.stderr)
    return 1 if errors else 0


sys.exit(main())
