#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A real OOM kill: the whole run in a memory cgroup that is too small for several samples in flight.

The kernel must kill a worker (not jobctl), the supervisor must call it by its name, restart one step smaller, and the bytes must be
those of the undisturbed run. Needs root and a writable cgroup v1 memory controller (or v2); exit 77 = skipped, where there is none.
"""
import os
import subprocess
import sys

import harness as h

V1 = "/sys/fs/cgroup/memory"


def make_group(limit):
    name = f"holdfast-test-{os.getpid()}"
    if os.path.exists(f"{V1}/memory.limit_in_bytes"):
        path = f"{V1}/{name}"
        files = [("memory.limit_in_bytes", limit)]
        if os.path.exists(f"{V1}/memory.memsw.limit_in_bytes"):
            files.append(("memory.memsw.limit_in_bytes", limit))
    elif os.path.exists("/sys/fs/cgroup/memory.max") or os.path.exists("/sys/fs/cgroup/cgroup.controllers"):
        path = f"/sys/fs/cgroup/{name}"
        files = [("memory.max", limit), ("memory.swap.max", 0)]
    else:
        return None
    try:
        os.makedirs(path, exist_ok=True)
        for f, value in files:
            try:
                with open(f"{path}/{f}", "w") as out:
                    out.write(str(value))
            except OSError:
                if "swap" not in f and "memsw" not in f:
                    raise
        return path
    except OSError as e:
        print("no memory cgroup here:", e)
        return None


def peak_of(args):
    """Largest resident size of a run's processes, from the worker's own accounting in the report."""
    p = h.run(args, check=0)
    return p


def main():
    with h.Workspace("memory", layers=4, hidden=256, ffn=1024, heads=8, kv=4, vocab=512) as w:
        # Long sequences: attention scores make samples in flight expensive beside the small weights.
        h.make_tokens(w.calib, samples=12, length=2048, vocab=512)
        w.make_golden("--threads", "1", "--seq-len", "2048")
        # Find a limit that kills eight samples at a time and lets one through: start generous, come down.
        for limit in [int(os.environ["HOLDFAST_OOM_LIMIT"])] if "HOLDFAST_OOM_LIMIT" in os.environ else [x << 20 for x in (420, 360, 320, 280, 250, 225, 200)]:
            group = make_group(limit)
            if group is None:
                print("SKIPPED: no writable memory cgroup")
                return 77
            name = f"oom{limit}"
            args = w.args(name, "--threads", "8", "--seq-len", "2048", "--memory", "64G")
            try:
                p = subprocess.run(["/bin/sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh", *args],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=280)
            finally:
                try:
                    os.rmdir(group)
                except OSError:
                    pass
            ooms = p.stderr.count("worker died (out of memory")
            print(f"limit {limit >> 20} MiB: exit {p.returncode}, {ooms} OOM kills")
            if p.returncode == 0 and ooms > 0:
                assert "one step smaller" in p.stderr, p.stderr
                w.assert_golden(name)
                w.fsck(name)
                status = h.run([h.JOBCTL, "status", w.path(name) + ".run", "--json"], check=0).stdout
                assert "out_of_memory" in status, status
                print("memory_test: OOM-killed, restarted smaller, same bytes")
                return 0
            if p.returncode != 0:
                assert p.returncode in (1, 75), f"exit {p.returncode}: {p.stderr[-2000:]}"
                h.run(w.args(name, "--threads", "1", "--seq-len", "2048"), check=0)  # nothing is lost: without the limit it finishes
                w.assert_golden(name)
            w.drop(name)
        raise AssertionError("no limit led to an OOM kill and a finish")


if __name__ == "__main__":
    sys.exit(main())
