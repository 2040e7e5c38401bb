#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Calls with a better replacement, file headers, leftovers and dead files."""

import re

from tree import BOXES, code, cxx_files, files, line_of, report, text

# What may not be called, what to use instead, and the files where it lives.
BANNED = [
    (r"std::filesystem\b", "FileSystem (ledger/base/file_system.h)", r"ledger/base/"),
    (r"\b(fopen|freopen)\s*\(|std::[oi]?fstream\b", "FileSystem (ledger/base/file_system.h)", r"ledger/base/|daemon/node/process\.cc"),
    (r"::now\s*\(\s*\)", "Clock (ledger/base/clock.h)", r"ledger/base/clock\.cc"),
    (r"\b(clock_gettime|gettimeofday|time)\s*\(\s*(NULL|nullptr|CLOCK_|0\s*\))", "Clock (ledger/base/clock.h)", r"ledger/base/clock\.cc"),
    (r"\bsleep_(for|until)\b|\b(sleep|usleep|nanosleep)\s*\(", "Clock::SleepMs, or a deadline in the loop", r"ledger/base/clock\.cc"),
    (r"\b(s?rand|random|drand48)\s*\(|std::(random_device|mt19937)", "Nonce::Random, or a seed that comes in", r"ledger/base/"),
    (r"\bgetenv\s*\(", "an argument; environment is read in main and in the files named here",
     r"ledger/base/|jobctl/|.*/main\.cc|fsck/command\.cc|calib/tokens/helper_process\.cc|calib/model/numerics\.cc|calib/runner/"),
    (r"(?<![\w.>])(link|linkat|rename|renameat2?|fsync|fdatasync)\s*\(", "FileSystem: one publish function in the whole program",
     r"ledger/base/posix_file_system\.cc"),
    (r"(?<![\w.>])(system|popen)\s*\(", "RunProcess (calib/tokens/helper_process.h): no shell between us and a program", r"(?!)"),
    (r"\bthrow\b", "Result<T> (ledger/base/result.h)", r"(?!)"),
    (r"\bassert\s*\(", "HOLDFAST_CHECK (ledger/base/result.h): stays on in release builds", r"(?!)"),
]
LEFTOVER = re.compile(r"\b(FIX" r"ME|X" r"XX|HA" r"CK)\b")  # split, so that this file is clean itself
SPDX = "SPDX-License-Identifier: Apache-2.0"
NEEDS_SPDX = (".h", ".cc", ".cu", ".py", ".sh", ".cmake", "CMakeLists.txt")


def banned_calls(findings):
    for path in cxx_files(*BOXES):
        source = code(path)
        for pattern, instead, homes in BANNED:
            if re.match(homes, path):
                continue
            for match in re.finditer(pattern, source):
                findings.append(f"{path}:{line_of(source, match.start())}: {match.group(0).strip()}: use {instead}")


def file_headers(every, findings):
    for path in every:
        is_script = "." not in path.rsplit("/", 1)[-1] and text_or_none(path, 2) == "#!"
        if not path.endswith(NEEDS_SPDX) and not is_script:
            continue
        lines = text(path).split("\n")
        if not any(SPDX in line for line in lines[:2]):
            findings.append(f"{path}:1: the first line is not the licence line ({SPDX})")
        elif path.endswith((".h", ".cc", ".cu")) and not has_purpose(path, lines, every):
            findings.append(f"{path}:2: no comment says what this file is for")


def has_purpose(path, lines, every):
    """A comment behind the licence line. A source file whose first include of ours is a header beside it is part of what that says."""
    if not path.endswith(".h"):
        ours = [line.split('"')[1] for line in lines if line.startswith('#include "')]
        if ours and ours[0].rsplit("/", 1)[0] == path.rsplit("/", 1)[0] and ours[0] in every:
            return True
    said = [line.lstrip("/ ") for line in lines[1:6] if line.startswith("//")]
    return len(" ".join(said)) >= 30 or path == "cmake/link_test_main.cc"


def leftovers(every, findings):
    for path in every:
        if path.endswith((".h", ".cc", ".cu", ".py", ".sh", ".md", ".cmake", ".txt", ".1", ".8")):
            for number, line in enumerate(text(path).split("\n"), 1):
                if LEFTOVER.search(line):
                    findings.append(f"{path}:{number}: leftover: {line.strip()[:80]}")


def dead_files(every, findings):
    """Every .cc and .cu is named by a CMakeLists.txt in its folder or one above."""
    lists = {path.rsplit("/", 1)[0]: text(path) for path in every if path.endswith("/CMakeLists.txt")}
    lists["cmake"] = text("cmake/HoldfastLibrary.cmake")
    for path in every:
        if not path.endswith((".cc", ".cu")):
            continue
        folders, name = path.split("/")[:-1], path.rsplit("/", 1)[-1]
        above = ["/".join(folders[:i]) for i in range(1, len(folders) + 1)]
        if not any(re.search(rf"(?<![\w-]){re.escape(name)}", lists.get(f, "")) for f in above):
            stem = name.rsplit(".", 1)[0]
            if not any(re.search(rf"(?<![\w-]){re.escape(stem)}(?![\w.])", lists.get(f, "")) for f in above):
                findings.append(f"{path}: no CMakeLists.txt builds this file")


def text_or_none(path, length):
    try:
        return text(path)[:length]
    except UnicodeDecodeError:
        return None


def main():
    findings, every = [], files()
    banned_calls(findings)
    file_headers(every, findings)
    leftovers(every, findings)
    dead_files(every, findings)
    report("source rules", len(every), findings)


main()
