#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The vectorized kernels give the same bits on ARM (NEON, emulated) as here.

  kernel_bits_test.py SOURCE_DIR NATIVE_PROGRAM

Builds kernel_bits.cc for aarch64, runs it under qemu-aarch64, compares its lines with those of the native program. Exit 77 (skipped) without
the cross compiler or the emulator.
"""
import os
import shutil
import subprocess
import sys
import tempfile

SOURCES = ["tests/portable/kernel_bits.cc", "export/nvfp4/nvfp4_kernel.cc", "export/nvfp4/nvfp4_reference.cc", "calib/runner/kernels.cc",
           "ledger/records/dtype.cc", "ledger/base/coding.cc", "ledger/base/result.cc"]
COMPILER, EMULATOR, SYSROOT = "aarch64-linux-gnu-g++", "qemu-aarch64", "/usr/aarch64-linux-gnu"


def main():
    source_dir, native = sys.argv[1:3]
    missing = [tool for tool in (COMPILER, EMULATOR) if shutil.which(tool) is None]
    here = subprocess.run([native], stdout=subprocess.PIPE, text=True, check=True).stdout
    assert len(here.splitlines()) == 7, here
    if missing:
        print(f"skipped: no {' and no '.join(missing)}; apt install g++-aarch64-linux-gnu qemu-user")
        return 77
    with tempfile.TemporaryDirectory() as tmp:
        program = os.path.join(tmp, "kernel_bits")
        subprocess.run([COMPILER, "-std=c++20", "-O3", "-ffp-contract=off", "-Wno-psabi", "-I", source_dir, "-o", program] +
                       [os.path.join(source_dir, s) for s in SOURCES], check=True)
        there = subprocess.run([EMULATOR, "-L", SYSROOT, program], stdout=subprocess.PIPE, text=True, check=True).stdout
    for ours, theirs in zip(here.splitlines(), there.splitlines()):
        assert ours == theirs, f"this machine: {ours}\naarch64:      {theirs}"
    assert here == there
    print("kernel_bits_test: NVFP4 and forward kernels give the same bits on aarch64, emulated")
    return 0


sys.exit(main())
