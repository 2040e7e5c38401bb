#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A cluster on one host, measured. Prints, asserts nothing.

  bench_cluster.py worker [ROUNDS]        kill -9 of a worker to the next committed sample of its stage, with and without weight loading
  bench_cluster.py coordinator [ROUNDS]   kill -9 of the coordinator's daemon to the next claim of the job and to the next decision
  bench_cluster.py rest [NODES [SECONDS]] resident memory and share of a core of daemons that have nothing to do
  bench_cluster.py overlap [ROUNDS [STAGES]]   stages in pipeline on as many nodes, against each of them alone

Times of commits are those of the slot files (ctime: link(2) sets it), what a slot holds is read with mdb_dump -n. All daemons of a run are children of
this program and end with it. HOLDFAST_BIN names the programs, HOLDFAST_MODEL and HOLDFAST_TOKENS a real model (32 samples of 512 tokens are used).
"""
import os
import re
import statistics
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../cluster"))
import cluster_harness as ch  # noqa: E402

CORES = len(os.sched_getaffinity(0))
MODEL = dict(layers=12, hidden=256, ffn=1024, heads=8, kv=4, samples=96, length=1024)


class Slots:
    """The slots of one stream with the times of their commits."""

    def __init__(self, run_dir, stream):
        self.dir = os.path.join(run_dir, "log", stream)
        self.known = {}

    def read(self):
        """[(commit time, [(class letter, a), ...])] in order."""
        for name in os.listdir(self.dir) if os.path.isdir(self.dir) else []:
            if name.endswith(".seg") and name not in self.known:
                path = os.path.join(self.dir, name)
                lines = subprocess.run(["mdb_dump", "-n", path], stdout=subprocess.PIPE, text=True).stdout.splitlines()
                keys = [bytes.fromhex(x.strip()) for x in [x for x in lines if x.startswith(" ")][0::2]]
                self.known[name] = (os.stat(path).st_ctime, [(chr(k[0]), int.from_bytes(k[3:7], "big")) for k in keys])
        return [self.known[n] for n in sorted(self.known)]

    def first(self, cls, after, a=None):
        return next((t for t, keys in self.read() if t > after and any(c == cls and (a is None or x == a) for c, x in keys)), None)

    def commits(self, cls):
        return [t for t, keys in self.read() if any(c == cls for c, _ in keys)]


def figures(values, unit="s"):
    return f"median {statistics.median(values):.2f} {unit}, largest {max(values):.2f} {unit} of {len(values)}"


def cluster(name, **more):
    c = ch.Cluster(name, **{**MODEL, "suspect": 120, **more})
    if "HOLDFAST_MODEL" in os.environ:
        c.w.model, c.w.calib, c.length, c.samples = os.environ["HOLDFAST_MODEL"], os.environ["HOLDFAST_TOKENS"], 512, 32
    return c


def submit(c, out, *extra):
    return c.submit(out, "--samples", str(c.samples), *extra)


def worker(rounds):
    whole, without = [], []
    with cluster("bench-worker") as c:
        n1, = c.nodes(1, "--threads", str(CORES), "--memory", "8GiB")
        for i in range(rounds):
            job = submit(c, f"w{i}", "--shard-layers", "12" if "HOLDFAST_MODEL" not in os.environ else "30")
            slots = Slots(c.run_dir(job), "stage.00")
            ch.wait_for("a quarter of the samples", lambda: len(slots.commits("S")) >= c.samples // 4)
            victim = n1.workers()[0]
            killed = time.time()
            ch.h.kill(victim)
            ch.wait_for("the next sample", lambda: slots.first("S", killed))
            load = slots.first("B", killed, ord("c")) - slots.first("B", killed, ord("l"))
            whole.append(slots.first("S", killed) - killed)
            without.append(whole[-1] - load)
            print(f"  round {i}: {whole[-1]:.2f} s, of which the weights took {load:.2f} s to load", flush=True)
            c.jobctl("cancel", job)
            ch.wait_for("the worker is gone", lambda: not n1.workers())
    print(f"kill -9 of a worker to the next committed sample: {figures(whole)}; minus weight loading: {figures(without)}")


def coordinator(rounds):
    claims, decisions = [], []
    with cluster("bench-coordinator") as c:
        c.nodes(4)
        for i in range(rounds):
            job = submit(c, f"c{i}", "--shard-layers", "4,4,4" if "HOLDFAST_MODEL" not in os.environ else "10,10,10")
            slots = Slots(c.run_dir(job), "job")
            ch.wait_for("samples", lambda: Slots(c.run_dir(job), "stage.00").commits("S"))
            boss = c.wait_coordinator(job)
            other = next(d for d in c.daemons if d is not boss and d.workers())
            killed = time.time()
            boss.kill()
            c.jobctl("drain", other.name)      # something to decide
            ch.wait_for("the next decision", lambda: slots.first("A", killed))
            claims.append(slots.first("C", killed) - killed)
            decisions.append(slots.first("A", killed) - killed)
            print(f"  round {i}: claimed after {claims[-1]:.2f} s, decided after {decisions[-1]:.2f} s", flush=True)
            c.jobctl("cancel", job)
            c.jobctl("undrain", other.name)
            boss.start()
            ch.wait_for("all nodes speak", lambda: len(c.beats()) == 4)
    print(f"death of the coordinator to the next claim: {figures(claims)}; to the next decision (a node to be drained): {figures(decisions)}")


def ticks(pid):
    with open(f"/proc/{pid}/stat") as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


def memory(pid, what):
    with open(f"/proc/{pid}/smaps_rollup") as f:
        return next(int(x.split()[1]) * 1024 for x in f if x.startswith(what + ":"))


def rest(nodes, seconds):
    with cluster("bench-rest", layers=2, hidden=64, ffn=128, heads=4, kv=2, samples=4, length=32) as c:
        c.nodes(nodes)
        for i in range(3):                      # a root with a history
            c.wait_job(submit(c, f"r{i}"))
        ch.wait_for("all nodes speak", lambda: len(c.beats()) == nodes)
        time.sleep(10)
        before, start = [ticks(d.pid) for d in c.daemons], time.monotonic()
        time.sleep(seconds)
        hertz, wall = os.sysconf("SC_CLK_TCK"), time.monotonic() - start
        shares = [100 * (ticks(d.pid) - b) / hertz / wall for d, b in zip(c.daemons, before)]
        rss, pss = [memory(d.pid, "Rss") / 1e6 for d in c.daemons], [memory(d.pid, "Pss") / 1e6 for d in c.daemons]
    print(f"{nodes} daemons at rest on {CORES} cores, {seconds} s: {figures(shares, '% of a core')}; RSS {figures(rss, 'MB')}; PSS {figures(pss, 'MB')}")


def span(times):
    """Seconds between the first and the last commit."""
    return max(times) - min(times)


def samples_in(slots):
    return len({sample for _, keys in slots.read() for c, sample in keys if c == "S"})


def overlap(rounds, stages):
    """Alone: all stages on one node, one of them at a time (the others stand still), inputs from packs. Pipeline: as many nodes at once."""
    layers = 12 if "HOLDFAST_MODEL" not in os.environ else 30
    split = ",".join([str(layers // stages)] * stages)
    names = [f"n{i + 1}" for i in range(stages)]
    with cluster("bench-overlap") as c:
        for i in range(rounds):
            d = c.node("n1", "--memory", "16GiB")
            alone = []
            job = submit(c, f"a{i}", "--shard-layers", split, "--on", ",".join(["n1"] * stages))
            streams = [Slots(c.run_dir(job), f"stage.{k:02d}") for k in range(stages)]
            ch.wait_for("all workers", lambda: len(d.workers()) == stages and all(s.commits("C") for s in streams))
            order = sorted(d.workers(), key=lambda p: int(re.search(r"\"stage\":(\d+)", open(f"/proc/{p}/cmdline").read()).group(1)))
            for p in order[1:]:
                os.kill(p, ch.signal.SIGSTOP)
            for k, p in enumerate(order):
                os.kill(p, ch.signal.SIGCONT)
                ch.wait_for(f"stage {k}", lambda k=k: samples_in(streams[k]) >= c.samples)
                alone.append(span(streams[k].commits("S")))
            c.wait_job(job)
            d.kill()
            nodes = c.nodes(stages)
            job = submit(c, f"p{i}", "--shard-layers", split, "--on", ",".join(names))
            ch.wait_for("the output", lambda: os.path.exists(c.w.path(f"p{i}")))   # asking jobctl would take a part of a core
            each = [Slots(c.run_dir(job), f"stage.{k:02d}").commits("S") for k in range(stages)]
            wall = span([t for commits in each for t in commits])
            for d in nodes:
                d.kill()
            print(f"  round {i}: alone {', '.join(f'{x:.2f}' for x in alone)} s; in pipeline {wall:.2f} s (each of them {', '.join(f'{span(x):.2f}' for x in each)}): "
                  f"{sum(alone) / wall:.2f} stages at work at a time, {100 * max(alone) / wall:.0f} % of the throughput of the slowest alone", flush=True)
    print(f"{CORES} cores, {stages} stages of one thread each: at most {min(stages, CORES)} can be at work at a time")


MODES = {f.__name__: f for f in (worker, coordinator, rest, overlap)}
DEFAULTS = {"worker": [5], "coordinator": [5], "rest": [10, 30], "overlap": [3, 3]}

if __name__ == "__main__":
    what = sys.argv[1] if len(sys.argv) > 1 else ""
    if what not in MODES:
        sys.exit(__doc__)
    given = [int(x) for x in sys.argv[2:]]
    MODES[what](*given, *DEFAULTS[what][len(given):])
