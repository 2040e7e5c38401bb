#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""No space left: refused before the start when it can be known, survived when it happens. Needs root (a small tmpfs); exit 77 = skipped.
"""
import os
import subprocess
import sys

import harness as h


def mount(path, size):
    os.makedirs(path)
    return subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", path], stderr=subprocess.DEVNULL).returncode == 0


def main():
    with h.Workspace("space") as w:
        w.make_golden()
        small = w.path("small")
        if not mount(small, "1m"):
            print("SKIPPED: cannot mount a tmpfs here")
            return 77
        try:
            p = h.run(w.args("a", "--run-dir", small + "/run"))
            assert p.returncode == 2, p
            assert "not enough space" in p.stderr and "free" in p.stderr, p.stderr
            assert os.listdir(small) == [], "a refusal starts nothing"
        finally:
            subprocess.run(["umount", small], check=True)

        # It happens later: every publish point of a worker may meet ENOSPC. The run stops with 75 and the same line continues.
        for point in ("publish.P2@stage.00:5=enospc", "publish.P3@stage.01:3=enospc", "publish.P1@merge:2=enospc", "publish.P3@job:1=eio"):
            p = h.run(w.args("b", "--shard-layers", "2,2"), env={"HOLDFAST_FAIL": point})
            assert p.returncode in (75, 1, 0), f"{point}: exit {p.returncode}: {p.stderr[-1500:]}"
            if point.endswith("enospc"):
                assert p.returncode == 75, f"{point}: exit {p.returncode}: {p.stderr[-1500:]}"
                assert "No space" in p.stderr and "resume" in p.stderr, p.stderr
            h.run(w.args("b", "--shard-layers", "2,2"), check=0)
            w.assert_golden("b")
            w.fsck("b")
            w.drop("b")

        # A disk that is really full while the run goes on.
        real = w.path("real")
        assert mount(real, "200m")
        try:
            args = w.args("c", "--run-dir", real + "/run")
            os.makedirs(real + "/run/tmp")
            with open(real + "/ballast", "wb") as f:
                f.write(b"\0" * (8 << 20))
            h.run(args, check=0)
            w.assert_golden("c")
        finally:
            subprocess.run(["umount", real], check=True)
    print("space_test: refused before the start, stopped with 75 when it happened, same bytes after")
    return 0


if __name__ == "__main__":
    sys.exit(main())
