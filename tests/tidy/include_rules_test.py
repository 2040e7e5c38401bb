#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Which folder may include which, and which folder owns which library.

    ledger <- export <- calib <- daemon;   ledger, export <- fsck;   jobctl as docs/adr/0005 says
Every header of a library from outside is included by one box only. Tests may include everything.
"""

import re

from tree import BOXES, cxx_files, line_of, report, text

# The first prefix that fits a file decides; it may include what starts with one of the names behind it, and itself.
ALLOWED = [
    ("ledger/base/", ()),
    ("ledger/", ("ledger/",)),
    ("export/", ("ledger/", "export/")),
    ("calib/tokens/", ("ledger/base/",)),
    ("calib/model/", ("ledger/", "export/", "calib/model/")),
    ("calib/", ("ledger/", "export/", "calib/")),
    ("daemon/wire/", ("ledger/base/", "ledger/records/")),
    ("daemon/core/", ("ledger/base/", "ledger/records/")),
    ("daemon/transport/", ("ledger/base/", "ledger/codec/", "ledger/records/", "daemon/wire/")),
    ("daemon/node/", ("ledger/", "export/", "calib/model/", "calib/tokens/", "daemon/wire/", "daemon/transport/", "daemon/core/")),
    ("daemon/", ("ledger/", "export/", "calib/", "daemon/")),
    ("fsck/", ("ledger/", "export/")),
    ("jobctl/", ("ledger/", "export/", "fsck/", "calib/model/", "calib/tokens/",
                 "daemon/wire/", "daemon/transport/", "daemon/core/", "daemon/node/")),
    ("tests/", BOXES + ("tests/",)),
    ("cmake/", ()),
]

# Library headers and the one place that includes them.
OWNERS = [
    (r"lmdb\.h", "ledger/segment/"),
    (r"zstd\w*\.h", "ledger/codec/"),
    (r"nlohmann/.*", "ledger/base/json.h"),
    (r"openssl/.*", "ledger/base/checksum.cc"),
    (r"spdlog/.*", "ledger/base/"),
    (r"(torch|ATen|c10)/.*", "calib/runner/"),
    (r"(cuda\w*|nv\w+)\.h(pp)?|cuda/.*", ("export/nvfp4/", "calib/runner/device_kernels.cu")),
    (r"zmq\.h(pp)?|zmq_addon\.hpp", "daemon/transport/"),
    (r"CLI/.*", ("jobctl/", "daemon/holdfastd/options.cc")),
    (r"(gtest|gmock)/.*", "tests/"),
]

# Of the rest: the standard library has no dot, the system's headers are few.
SYSTEM = re.compile(r"[a-z_]+|(sys|linux|arpa|netinet|net)/\w+\.h|(cpuid|\w+intrin|getopt|malloc|ifaddrs|dirent|dlfcn|errno|fcntl|limits|poll|pthread|sched|"
                    r"signal|stdint|stdio|stdlib|string|time|unistd|pwd|spawn|netdb|termios|ucontext)\.h")
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)


def own_include(path, name):
    """What is wrong with an include of one of our files, or None."""
    for prefix, allowed in ALLOWED:
        if path.startswith(prefix):
            if name.startswith((prefix,) + allowed):
                return None
            return f"{prefix} may not include {name} (allowed: {', '.join(sorted({prefix, *allowed}))})"
    return f"no rule for files like this one; add it to {__file__}"


def library_include(path, name):
    for pattern, owner in OWNERS:
        if re.fullmatch(pattern, name):
            owners = owner if isinstance(owner, tuple) else (owner,)
            if path.startswith(owners + ("tests/",)):
                return None
            return f"<{name}> belongs to {' and '.join(owners)}; use what that box offers"
    if SYSTEM.fullmatch(name):
        return None
    return f"<{name}> is a library that no box owns; name its owner in {__file__}"


def main():
    findings, checked = [], 0
    for path in cxx_files():
        source = text(path)
        checked += 1
        for match in INCLUDE.finditer(source):
            wrong = (own_include if match.group(1) == '"' else library_include)(path, match.group(2))
            if wrong:
                findings.append(f"{path}:{line_of(source, match.start(1))}: {wrong}")
    report("include rules", checked, findings)


main()
