#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""docs/failure-matrix.md has its 44 rows, and every test that it names exists.

    failure_matrix_test.py BUILD     BUILD: the build directory, whose tests `ctest -N` lists

A row must name a test of CTest or a script of the tree ("by hand"), or begin its last column with "not covered: " or "does not apply".
"""
import os
import re
import subprocess
import sys

from tree import ROOT, report, text

PAGE = "docs/failure-matrix.md"
ROWS = 44


def tests_of(build):
    listed = subprocess.run(["ctest", "--test-dir", build, "-N"], capture_output=True, text=True, timeout=120, check=True).stdout
    return {m.group(1) for m in re.finditer(r"^ *Test *#\d+: (\S+)", listed, re.MULTILINE)}


def exists(name, tests):
    if "/" in name and os.path.exists(os.path.join(ROOT, name)):
        return True
    if name.endswith("*"):
        return any(t.startswith(name[:-1]) or ("/" in t and t.split("/", 1)[1].startswith(name[:-1])) for t in tests)
    return name in tests


def names_in(cell):
    """`A/B/P0`, `.../P1` means A/B/P1."""
    last = ""
    for name in re.findall(r"`([^`]+)`", cell):
        if name.startswith(".../"):
            name = last.rsplit("/", 1)[0] + name[3:]
        last = name
        yield name


def main():
    tests = tests_of(sys.argv[1])
    wrong, seen = [], []
    for line in text(PAGE).splitlines():
        cells = [c.strip() for c in line.strip().strip("|").split(" | ")]
        if not line.startswith("| ") or not cells[0].isdigit():
            continue
        seen.append(int(cells[0]))
        if len(cells) != 4:
            wrong.append(f"{PAGE}: row {cells[0]} has {len(cells)} columns, not 4")
            continue
        names = list(names_in(cells[3]))
        plain = cells[3].startswith(("not covered: ", "does not apply"))
        if not names and not plain:
            wrong.append(f"{PAGE}: row {cells[0]} names no test and does not say why")
        if not plain:
            wrong += [f"{PAGE}: row {cells[0]} names {n}, which does not exist" for n in names if not exists(n, tests)]
    if seen != list(range(1, ROWS + 1)):
        wrong.append(f"{PAGE}: rows {seen}, not 1 to {ROWS}")
    report("failure matrix", len(seen), wrong)


if __name__ == "__main__":
    main()
