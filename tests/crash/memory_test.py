#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Real OOM kills.

  memory_test.py window   the whole run in a memory cgroup that is too small for several samples in flight
  memory_test.py layers   the whole run in a memory cgroup that is too small for all layers at once
  memory_test.py phases   in each of load, calibrate, evict and merge the memory is gone all of a sudden; once for one life, once for good

The kernel must kill a worker (not jobctl), the supervisor must call it by its name and restart one step smaller, or stop with advice where that
does not help; the bytes must be those of the undisturbed run. Needs root and a writable cgroup v1 memory controller (or v2); exit 77 = skipped, where
there is none.
"""
import os
import signal
import subprocess
import sys
import threading
import time

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


def under_limits(w, limits, args, whole_args, wanted):
    """Runs under one limit after the other until some run suffers OOM kills, says `wanted` and finishes all the same."""
    for limit in limits:
        group = make_group(limit)
        if group is None:
            print("SKIPPED: no writable memory cgroup")
            return None
        name = f"oom{limit}"
        try:
            p = subprocess.run(["/bin/sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh", *w.args(name, *args)],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=280)
        finally:
            try:
                os.rmdir(group)
            except OSError:
                pass
        ooms = p.stderr.count("worker died (out of memory")
        print(f"limit {limit >> 20} MiB: exit {p.returncode}, {ooms} OOM kills")
        if p.returncode == 0 and wanted in p.stderr:
            assert ooms > 0, p.stderr
            w.assert_golden(name)
            w.fsck(name)
            status = h.run([h.JOBCTL, "status", w.path(name) + ".run", "--json"], check=0).stdout
            assert "out_of_memory" in status, status
            return ooms, limit
        if p.returncode != 0:
            assert p.returncode in (1, 75), f"exit {p.returncode}: {p.stderr[-2000:]}"
            h.run(w.args(name, *whole_args), check=0)  # nothing is lost: without the limit it finishes
            w.assert_golden(name)
        w.drop(name)
    raise AssertionError("no limit led to an OOM kill and a finish")


def window():
    with h.Workspace("memory", layers=4, hidden=256, ffn=1024, heads=8, kv=4, vocab=512) as w:
        # Long sequences: attention scores make samples in flight expensive beside the small weights.
        h.make_tokens(w.calib, samples=12, length=2048, vocab=512)
        w.make_golden("--threads", "1", "--seq-len", "2048")
        # Find a limit that kills eight samples at a time and lets one through: start generous, come down.
        limits = [int(os.environ["HOLDFAST_OOM_LIMIT"])] if "HOLDFAST_OOM_LIMIT" in os.environ else [x << 20 for x in (420, 360, 320, 280, 250, 225, 200)]
        found = under_limits(w, limits, ["--threads", "8", "--seq-len", "2048", "--memory", "64G"], ["--threads", "1", "--seq-len", "2048"], "one step smaller")
    if found is None:
        return 77
    print(f"memory_test window: {found[0]} OOM kills under {found[1] >> 20} MiB, restarted smaller, same bytes")
    return 0


def layers():
    with h.Workspace("memory-layers", layers=8, hidden=1024, ffn=4096, heads=8, kv=4, vocab=256) as w:
        h.make_tokens(w.calib, samples=3, length=64, vocab=256)     # 30 MB of weights a layer, and next to nothing beside them
        w.make_golden("--threads", "1")
        found = under_limits(w, [x << 20 for x in (360, 320, 280, 240, 210)], ["--threads", "1", "--memory", "64G"], ["--threads", "1"], "layers at once")
    if found is None:
        return 77
    print(f"memory_test layers: {found[0]} OOM kills under {found[1] >> 20} MiB, came back with fewer resident layers, same bytes")
    return 0


class Group:
    """A memory cgroup without a limit at first."""

    def __init__(self):
        self.path = make_group(1 << 40)
        self.v1 = self.path is not None and self.path.startswith(V1)
        self.limit_file = "memory.limit_in_bytes" if self.v1 else "memory.max"

    def unreclaimable(self):
        with open(f"{self.path}/memory.stat") as f:
            fields = dict(line.split() for line in f)
        names = ("total_rss", "total_shmem") if self.v1 else ("anon", "shmem")
        return sum(int(fields.get(name, 0)) for name in names)

    def limit(self, value):
        try:
            with open(f"{self.path}/{self.limit_file}", "w") as f:
                f.write(str(value))
            return True
        except OSError:      # v1: what is in use cannot be reclaimed down to that
            return False

    def squeeze(self, room):
        """So little more than what is in use now."""
        os.sync()
        self.low, self.extra = self.unreclaimable() + room, 64
        self.press()
        assert self.extra < 64, "the limit cannot be lowered"

    def press(self):
        """As low as it goes: what waits for a busy disk is reclaimed only later."""
        for extra in range(self.extra):
            if self.limit(self.low + (extra << 20)):
                self.extra = extra
                return

    def remove(self):
        for _ in range(100):
            try:
                return os.rmdir(self.path)
            except OSError:
                time.sleep(0.05)


def paused_child(p):
    return next((c for c in h.children(p.pid) if h.state(c) == "T"), None)


def starve(w, group, name, point, squeezes, extra=()):
    """Runs the job; each life of a worker stops at `point`, where its memory is taken away for the first so many lives."""
    args = w.args(name, "--threads", "2", "--seq-len", "1024", "--memory", "64G", *extra)
    p = subprocess.Popen(["/bin/sh", "-c", f'echo $$ > {group.path}/cgroup.procs && exec "$@"', "sh", *args], stdout=subprocess.DEVNULL,
                         stderr=subprocess.PIPE, text=True, env={**os.environ, "HOLDFAST_FAIL_ALWAYS": f"{point}=pause"})
    said = []
    reader = threading.Thread(target=lambda: said.append(p.stderr.read()), daemon=True)
    reader.start()
    lives, deadline = 0, time.monotonic() + 250
    while p.poll() is None:
        assert time.monotonic() < deadline, f"{point}: does not end after {lives} lives"
        child = paused_child(p)
        if child is None:
            time.sleep(0.02)
            continue
        starved = lives < squeezes
        lives += 1
        if starved:
            h.kill(p.pid, signal.SIGSTOP)    # nobody starts the next life before there is memory again
            group.squeeze(512 << 10)
        h.kill(child, signal.SIGCONT)
        while starved and h.state(child) not in "ZX":
            group.press()
            time.sleep(0.01)
        group.limit(1 << 40)     # the next life begins with enough
        h.kill(p.pid, signal.SIGCONT)
        while h.state(child) == "T":
            time.sleep(0.01)
    reader.join()
    group.limit(1 << 40)
    return p.returncode, said[0], lives


def phases():
    kills = 0
    with h.Workspace("phases", layers=2, hidden=512, ffn=2048, heads=8, kv=4, vocab=512) as w:
        h.make_tokens(w.calib, samples=4, length=1024, vocab=512)
        w.make_golden("--threads", "1", "--seq-len", "1024")
        group = Group()
        if group.path is None:
            print("SKIPPED: no writable memory cgroup")
            return 77
        try:
            for phase, point in (("load", "phase.load@stage.00"), ("calibrate", "phase.calibrate@stage.00"), ("evict", "phase.evict@stage.00"), ("merge", "merge.begun")):
                status, said, lives = starve(w, group, f"once-{phase}", point, 1)
                assert status == 0 and lives >= 2, f"{phase}, once: exit {status} after {lives} lives\n{said[-3000:]}"
                assert said.count("(out of memory") == 1, f"{phase}, once: {said[-3000:]}"
                w.assert_golden(f"once-{phase}")
                w.fsck(f"once-{phase}")
                kills += 1
                status, said, lives = starve(w, group, f"always-{phase}", point, 1000)
                assert status == 1, f"{phase}, always: exit {status}\n{said[-3000:]}"
                assert said.count("(out of memory") >= 2 and "memory" in said.splitlines()[-1], f"{phase}, always: {said[-3000:]}"
                kills += lives
                h.run(w.args(f"always-{phase}", "--threads", "1", "--seq-len", "1024"), check=0)    # where there is memory it finishes
                w.assert_golden(f"always-{phase}")
                w.fsck(f"always-{phase}")
                print(f"{phase}: one OOM kill survived; {lives} in a row led to advice", flush=True)
        finally:
            group.remove()
    print(f"memory_test phases: {kills} OOM kills in load, calibrate, evict and merge; finished or stopped with advice, same bytes")
    return 0


if __name__ == "__main__":
    what = sys.argv[1] if len(sys.argv) > 1 else ""
    modes = {"window": window, "layers": layers, "phases": phases}
    if what not in modes:
        sys.exit(__doc__)
    sys.exit(modes[what]())
