#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""docs/failure-matrix.md has its 46 rows, every test that it names exists, and each says when it last ran.

    failure_matrix_test.py BUILD               BUILD: the build directory, whose tests `ctest -N` lists
    failure_matrix_test.py BUILD --counts      prints what the tests of the last ./check counted
    failure_matrix_test.py BUILD --update      writes the column "last run" and the counts below the table from BUILD/tests.xml, which
                                               ./check left there, and from the page of evidence of the scenarios over NFS

A row must name a test of CTest or a script of the tree ("by hand"), or begin its column "shown by" with "does not apply".
"""
import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

from tree import ROOT, report, text

PAGE = "docs/failure-matrix.md"
NFS_PAGE = "docs/evidence/nfs-cluster.md"
ROWS = 46
COUNTS = "<!-- counts of the last ./check: written by failure_matrix_test.py --update -->\n"
# What a row may rest on, by the names of its tests; the rest are unit tests.
KINDS = {"the simulator": r"^(sim\.|CoordinatorSim)", "real processes": r"^(crash|cluster|disk|cli)\.", "real NFS": r"nfs_test\.sh"}


def tests_of(build):
    listed = subprocess.run(["ctest", "--test-dir", build, "-N"], capture_output=True, text=True, timeout=120, check=True).stdout
    return {m.group(1) for m in re.finditer(r"^ *Test *#\d+: (\S+)", listed, re.MULTILINE)}


def matching(name, tests):
    """The tests that a name of the page stands for; `Suite.*` may also be a parametrized suite, `Prefix/Suite.*`."""
    if not name.endswith("*"):
        return [name] if name in tests else []
    return [t for t in tests if t.startswith(name[:-1]) or ("/" in t and t.split("/", 1)[1].startswith(name[:-1]))]


def is_script(name):
    return "/" in name and os.path.exists(os.path.join(ROOT, name))


def names_in(cell):
    """`A/B/P0`, `.../P1` means A/B/P1."""
    last = ""
    for name in re.findall(r"`([^`]+)`", cell):
        if name.startswith(".../"):
            name = last.rsplit("/", 1)[0] + name[3:]
        last = name
        yield name


def rows():
    """(line number, cells) of each row of the table."""
    for i, line in enumerate(text(PAGE).splitlines()):
        cells = [c.strip() for c in line.strip().strip("|").split(" | ")]
        if line.startswith("| ") and cells[0].isdigit():
            yield i, cells


def results(build):
    """Date, and by test its status and output, of the last run of ./check."""
    suite = ElementTree.parse(os.path.join(build, "tests.xml")).getroot()
    cases = {c.get("name"): (c.get("status"), c.findtext("system-out") or "") for c in suite.iter("testcase")}
    return suite.get("timestamp", "")[:10], cases


def nfs_runs():
    """By scenario: the date and the versions of its last run."""
    page = text(NFS_PAGE)
    date = re.search(r"Run on (\d{4}-\d\d-\d\d)", page).group(1)
    runs = {}
    for scenario, version in re.findall(r"^\| `(\w+)` \| ([\d., and]+) \|", page, re.MULTILINE):
        runs.setdefault(scenario, []).append(version.strip())
    return date, runs


def last_run(cell, date, cases, nfs_date, nfs):
    if cell.startswith("does not apply"):
        return "-"
    names = [t for name in names_in(cell) for t in matching(name, cases)]
    bad = [t for t in names if cases[t][0] not in ("run", "notrun")]
    skipped = sum(cases[t][0] == "notrun" for t in names)
    said = f"{date}: {len(names) - skipped - len(bad)} passed" + (f", {skipped} skipped" if skipped else "") + "".join(f", FAILED {t}" for t in bad)
    by_hand = re.search(r"nfs_test\.sh` \(([^)]*)\)", cell)
    for scenario in by_hand.group(1).split(", ") if by_hand else []:
        versions = nfs.get(scenario)
        said += f"; {nfs_date}: NFS `{scenario}` {', '.join(versions)}" if versions else f"; NFS `{scenario}` not run yet"
    return said


def in_words(line):
    """The simulator ends with one line of JSON."""
    if not line.startswith("{"):
        return line
    d = json.loads(line)
    return (f"{d['seeds']} seeds, {d['wrong']} wrong: {d['virtual_hours']:.1f} h of virtual time, {d['deaths']} deaths, {d['server_crashes']} crashes of the server, "
            f"{d['clones']} clones, {d['acknowledged']} acknowledged records; {d['seeds_a_second']} seeds a second")


def counts(cases):
    """What the tests with counts of their own said last: the last line of a program, or a line of a unit test that begins with a number."""
    for name in sorted(cases):
        lines = [line.strip() for line in cases[name][1].splitlines() if line.strip()]
        if re.match(r"(crash|cluster|disk|sim)\.", name):
            lines = [in_words(line) for line in lines[-1:] if not line.startswith(("SKIPPED", "[This part of the test output was removed"))]
        else:
            lines = [line for line in lines if re.match(r"\d+ (bytes|seeds:)", line)]
        if cases[name][0] == "run":
            yield from (f"- `{name}`: {line}" for line in lines)


def update(build):
    date, cases = results(build)
    nfs_date, nfs = nfs_runs()
    lines = text(PAGE).splitlines()
    for i, cells in rows():
        lines[i] = "| " + " | ".join([*cells[:4], last_run(cells[3], date, cases, nfs_date, nfs)]) + " |"
    page = "\n".join(lines).split(COUNTS.strip())[0].rstrip() + "\n\n" + COUNTS + "\n" + "\n".join(counts(cases)) + "\n"
    with open(os.path.join(ROOT, PAGE), "w") as out:
        out.write(page)


def judge(cells, tests):
    """What is wrong with a row."""
    if len(cells) != 5:
        yield f"row {cells[0]} has {len(cells)} columns, not 5"
        return
    names = list(names_in(cells[3]))
    if cells[3].startswith("does not apply"):
        return
    if not names:
        yield f"row {cells[0]} names no test and does not say why"
    for n in names:
        if not matching(n, tests) and not is_script(n):
            yield f"row {cells[0]} names {n}, which does not exist"
    if not re.match(r"\d{4}-\d\d-\d\d: \d+ passed", cells[4]) or "FAILED" in cells[4] or ": 0 passed" in cells[4].split(";")[0]:
        yield f"row {cells[0]} does not say when its tests last passed: \"{cells[4]}\" (run ./check, then {sys.argv[0]} BUILD --update)"


def main():
    if sys.argv[2:] == ["--counts"]:
        print("\n".join(counts(results(sys.argv[1])[1])))
        return
    if sys.argv[2:] == ["--update"]:
        update(sys.argv[1])
    tests = tests_of(sys.argv[1])
    found = [cells for _, cells in rows()]
    wrong = [f"{PAGE}: {w}" for cells in found for w in judge(cells, tests)]
    if [cells[0] for cells in found] != [str(i + 1) for i in range(ROWS)]:
        wrong.append(f"{PAGE}: rows {[cells[0] for cells in found]}, not 1 to {ROWS}")
    for kind, pattern in KINDS.items():
        print(f"rows shown by {kind}: {sum(any(re.search(pattern, n) for n in names_in(cells[3])) for cells in found)} of {ROWS}")
    report("failure matrix", len(found), wrong)


if __name__ == "__main__":
    main()
