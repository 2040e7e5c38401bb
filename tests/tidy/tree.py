# SPDX-License-Identifier: Apache-2.0
"""The source tree as the tidy tests see it: files, their text without comments and strings, and how findings are reported."""

import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BOXES = ("ledger", "export", "calib", "daemon", "jobctl", "fsck")
CXX = (".h", ".cc", ".cu")


def files(*tops):
    """Paths relative to the root, '/' separated, sorted. Build folders and hidden ones are not part of the tree."""
    found = []
    for top in tops or ("",):
        for folder, names, entries in os.walk(ROOT / top):
            names[:] = [n for n in names if not n.startswith(("build", ".git", ".deps", ".cache")) and n != "__pycache__"]
            found += [(Path(folder) / e).relative_to(ROOT).as_posix() for e in entries]
    return sorted(found)


def cxx_files(*tops):
    return [f for f in files(*tops) if f.endswith(CXX)]


def text(path):
    return (ROOT / path).read_text(encoding="utf-8")


_NOISE = re.compile(r'//[^\n]*|/\*.*?\*/|R"(\w*)\(.*?\)\1"|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'', re.DOTALL)


def code(path):
    """C++ text with comments and literals blanked out, line numbers kept."""
    def blank(match):
        return re.sub(r"[^\n]", " ", match.group(0))
    return re.sub(r"^#include[^\n]*", "", _NOISE.sub(blank, text(path)), flags=re.MULTILINE)


def line_of(source, offset):
    return source.count("\n", 0, offset) + 1


def report(name, checked, findings):
    """Prints what was found and ends the test."""
    for finding in findings:
        print(finding)
    print(f"{name}: {checked} checked, {len(findings)} findings")
    sys.exit(1 if findings or not checked else 0)
