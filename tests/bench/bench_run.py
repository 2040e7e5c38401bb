#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The whole job against a peer doing the same job in the same minutes: wall time and peak memory, run in turn, ratios pair by pair.

  bench_run.py --source MODEL --calib TOKENS.jsonl [--samples 32] [--seq-len 512] [--rounds 3] [--peer 'COMMAND with {src} {out} {calib}']
               [--run-dir-memory]

Without --peer it prints our own figures and the price of durability: the same job with its run directory on a RAM disk (/dev/shm), where
fsync is free. Memory is the largest sum of PSS over the process tree, sampled 50 times a second. Timings of a shared machine mean nothing
by themselves; the ratios do.
"""
import argparse
import json
import os
import shlex
import shutil
import statistics
import subprocess
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))


# Not every kernel has these files (gVisor): then parents are looked up one by one, and memory is resident memory, shared pages counted each time.
HAS_CHILDREN = os.path.exists("/proc/thread-self/children")
MEMORY = "PSS" if os.path.exists("/proc/self/smaps_rollup") else "RSS"


def tree(pid):
    """A process and all below it."""
    if HAS_CHILDREN:
        return [pid] + [d for c in children(pid) for d in tree(c)]
    parents = {int(p): parent(p) for p in os.listdir("/proc") if p.isdigit()}
    out = [pid]
    for p in out:       # grows meanwhile
        out += [c for c, its in parents.items() if its == p]
    return out


def children(pid):
    out = []
    try:
        for t in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{t}/children") as f:
                out += [int(c) for c in f.read().split()]
    except OSError:
        pass
    return out


def parent(pid):
    try:
        with open(f"/proc/{pid}/stat") as f:
            return int(f.read().rsplit(")", 1)[1].split()[1])
    except OSError:
        return 0


def pss(pid):
    """Bytes of memory of a process: its share of shared pages counted, or see above."""
    try:
        if MEMORY == "RSS":
            with open(f"/proc/{pid}/statm") as f:
                return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        with open(f"/proc/{pid}/smaps_rollup") as f:
            return next(int(x.split()[1]) * 1024 for x in f if x.startswith("Pss:"))
    except (OSError, StopIteration):
        return 0


def timed(args, env=None, every=0.02, beside=None):
    """(wall, largest sum of PSS over the process tree, what it printed); beside(pid, stop) runs in a thread of its own while it does."""
    peak = [0]
    start = time.monotonic()
    p = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **(env or {})})
    stop = threading.Event()

    def sample():
        while not stop.is_set():
            peak[0] = max(peak[0], sum(pss(x) for x in tree(p.pid)))
            stop.wait(every)

    threads = [threading.Thread(target=sample)] + ([threading.Thread(target=beside, args=(p.pid, stop))] if beside else [])
    for t in threads:
        t.start()
    text = p.communicate()[0]
    wall = time.monotonic() - start
    stop.set()
    for t in threads:
        t.join()
    if p.returncode != 0:
        raise SystemExit(f"exit {p.returncode}: {' '.join(args)}\n{text[-3000:]}")
    return wall, peak[0], text


def events(text):
    """What jobctl --json said."""
    return [json.loads(x) for x in text.splitlines() if x.startswith("{")]


def ours(a, work, n, run_dir=None, extra=()):
    out = os.path.join(work, f"ours{n}")
    run_dir = run_dir or out + ".run"
    args = [os.path.join(a.bin, "jobctl"), "run", "--source", a.source, "--calib", a.calib, "--out", out, "--run-dir", run_dir,
            "--samples", str(a.samples), "--seq-len", str(a.seq_len), "--json", *shlex.split(a.extra), *extra]
    wall, peak, text = timed(args)
    report = events(text)[-1]["report"]
    shutil.rmtree(out)
    shutil.rmtree(run_dir)
    return wall, peak, report


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--source", required=True)
    ap.add_argument("--calib", required=True)
    ap.add_argument("--samples", type=int, default=32)
    ap.add_argument("--seq-len", type=int, default=512)
    ap.add_argument("--rounds", type=int, default=3)
    ap.add_argument("--peer", default="")
    ap.add_argument("--extra", default="", help="more options for jobctl run")
    ap.add_argument("--bin", default=os.path.join(HERE, "../../build/bin"))
    a = ap.parse_args()
    work = tempfile.mkdtemp(prefix="holdfast-bench-")
    ratios, memory, durable = [], [], []
    for n in range(a.rounds):
        wall, peak, report = ours(a, work, n)
        line = f"round {n}: ours {wall:.2f} s, peak {peak / 1e9:.2f} GB, phases {json.dumps(report['phase_ms'])}"
        ram = tempfile.mkdtemp(prefix="holdfast-bench-", dir="/dev/shm")
        soft, _, _ = ours(a, work, n, run_dir=os.path.join(ram, "run"))
        shutil.rmtree(ram)
        durable.append(wall / soft - 1)
        line += f"; run directory in RAM {soft:.2f} s"
        if a.peer:
            out = os.path.join(work, f"peer{n}")
            cmd = shlex.split(a.peer.format(src=a.source, out=out, calib=a.calib, samples=a.samples, seq_len=a.seq_len))
            theirs, their_peak, _ = timed(cmd, {"HF_HUB_OFFLINE": "1"})
            shutil.rmtree(out, ignore_errors=True)
            ratios.append(theirs / wall)
            memory.append(peak / their_peak)
            line += f"; peer {theirs:.2f} s, peak {their_peak / 1e9:.2f} GB; {ratios[-1]:.2f} x faster, memory ratio {memory[-1]:.2f}"
        print(line, flush=True)
    print(f"durability: {100 * statistics.median(durable):+.1f} % of wall time (median of {a.rounds})")
    if ratios:
        print(f"against the peer: {statistics.median(ratios):.2f} x faster (median), memory {statistics.median(memory):.2f} of theirs")
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
