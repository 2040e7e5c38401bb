#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A stage larger than its memory, streamed in groups of layers: the bytes are those of a resident run, whatever is killed.

  streamed_test.py sizes            one, two, ... layers at once; the cuts between groups are gone in the end
  streamed_test.py memory           a streamed run needs less than a resident one by the layers that it does not hold, and no more than it said
  streamed_test.py kills [N [SEED]] N kills at random instants, of a worker or of jobctl; each attempt has memory for another number of layers
  streamed_test.py points [N]       each kind of fail-point that a streamed run passes (N of them), as in fail_points_test.py
  streamed_test.py lost             cuts that are still needed disappear between two attempts: they are made again
"""
import glob
import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import fail_points_test
import harness as h

LAYERS, HIDDEN, FFN, HEADS, KV = 6, 64, 128, 4, 2
THREADS = ["--threads", "1"]
SHORT = [*THREADS, "--seq-len", "32"]                # so that the cuts of all samples need less room than one more layer


class Streamed(h.Workspace):
    """A model of LAYERS layers, and how much memory so many of them need."""

    def __init__(self, name, options=SHORT):
        self.options = options
        super().__init__(name, layers=LAYERS, hidden=HIDDEN, ffn=FFN, heads=HEADS, kv=KV)
        refused = h.run(self.args("none", *options, "--memory", "1M"), check=2).stderr
        self.floor = int(re.search(r"at least .*?\((\d+) bytes\)", refused)[1])
        linears = HIDDEN * (HIDDEN + 2 * HIDDEN * KV // HEADS) + HIDDEN * HIDDEN + 3 * HIDDEN * FFN
        self.layer = 2 * (linears + 2 * HIDDEN)

    def memory(self, layers):
        """So that this many are resident at once (all: also a few samples more in flight), and no cut stays in memory."""
        return [*self.options, "--memory", str(self.floor + (layers - 1) * self.layer)] if layers < LAYERS else self.options

    def with_cuts(self, layers):
        """The same, and the cuts of all samples stay there."""
        return [*self.options, "--memory", str(self.floor + layers * self.layer - 1)]

    def packs(self, name):
        return glob.glob(self.path(name) + ".run/pack/*/*.pack")


def sizes():
    with Streamed("sizes") as w:
        w.make_golden(*SHORT)
        whole = len(w.packs("golden"))
        for layers in range(1, LAYERS):
            for name, limit in ((f"l{layers}", w.memory(layers)), (f"c{layers}", w.with_cuts(layers))):
                run = h.run(w.args(name, *limit, "--json"), check=0)
                said = [json.loads(line) for line in run.stdout.splitlines()]
                stage = next(e for e in said if e["event"] == "plan")["stages"][0]
                assert stage["streamed"] and stage["layers_at_once"] == layers and (stage["cuts_in_memory"] > 0) == (name[0] == "c"), stage
                w.assert_golden(name)
                w.fsck(name)
                left = len(w.packs(name))
                assert left == whole, f"{layers} layers at once: {left} packs are left, {whole} after a resident run"
    print(f"streamed_test sizes: 1 to {LAYERS - 1} of {LAYERS} layers at once, cuts in packs and in memory, same bytes, no cut left")


def memory():
    layers, hidden, ffn = 12, 1024, 4096
    layer = 2 * (hidden * 3 * hidden + 3 * hidden * ffn + 2 * hidden)
    with h.Workspace("streamed-memory", layers=layers, hidden=hidden, ffn=ffn, heads=8, kv=4, vocab=256) as w:
        h.make_tokens(w.calib, samples=3, length=64, vocab=256)
        w.make_golden(*THREADS)
        floor = int(re.search(r"at least .*?\((\d+) bytes\)", h.run(w.args("none", *THREADS, "--memory", "1M"), check=2).stderr)[1])
        peaks = {}
        for resident in (layers, 4, 2, 1):
            name = f"m{resident}"
            limit = THREADS if resident == layers else [*THREADS, "--memory", str(floor + (resident - 1) * layer)]
            said = [json.loads(line) for line in h.run(w.args(name, *limit, "--json"), check=0).stdout.splitlines()]
            planned = next(e for e in said if e["event"] == "plan")["stages"][0]
            peaks[resident] = next(e for e in said if e["event"] == "done")["report"]["rss_peak_bytes"]
            assert planned["layers_at_once"] == resident, planned
            assert peaks[resident] <= planned["memory_bytes"], f"{resident} layers at once: {peaks[resident]} bytes, {planned['memory_bytes']} were planned"
            w.assert_golden(name)
        # Not all of it: a streamed run evicts beside its layers, a resident one after them.
        assert peaks[layers] - peaks[1] > layers // 2 * layer, f"{peaks} bytes at the peak, a layer has {layer}"
    print("streamed_test memory: peak of " + ", ".join(f"{p >> 20} MiB with {r} of {layers} layers resident" for r, p in peaks.items()) +
          f"; a layer has {layer >> 20} MiB; never more than planned")


def kills(budget, seed):
    rng = random.Random(seed)
    done = runs = 0
    with Streamed("streamed") as w:
        w.make_golden(*SHORT)
        begin = time.time()
        h.run(w.args("timed", *w.memory(1)), check=0)
        whole = time.time() - begin
        w.drop("timed")
        while done < budget:
            name, sizes_used = f"r{runs}", []
            for _ in range(1000):
                sizes_used.append(rng.randint(1, LAYERS))
                killed, status, said = h.attempt_with_kills(w.args(name, *rng.choice([w.memory, w.with_cuts])(sizes_used[-1])), rng, whole * rng.choice([0.5, 1.0, 1.5]), whole / 2)
                done += killed
                h.assert_no_half_output(w.path(name))
                if status is not None:
                    break
            assert status == 0, f"seed {seed}, run {runs}, layers at once {sizes_used}: exit {status}\n{said[-3000:]}"
            w.assert_golden(name)
            w.fsck(name)
            w.drop(name)
            runs += 1
    print(f"streamed_test kills: {done} kills in {runs} streamed runs, each attempt with another number of layers at once (seed {seed}), same bytes")


def points(budget):
    with Streamed("streamed-points", THREADS) as w:
        w.make_golden(*THREADS)
        fail_points_test.STAGES = w.memory(2)
        tally = fail_points_test.singles(w, random.Random(1), budget, os.cpu_count())
    print(f"streamed_test points: {tally.text()}; every run ended in the same bytes")


def lost():
    rng = random.Random(7)
    with Streamed("lost-cuts") as w:
        w.make_golden(*SHORT)
        for group, repair in ((2, True), (2, False), (3, True), (3, False)):
            name = f"g{group}{repair}"
            # The worker stops for good in the middle of its second, or third, group of two layers, and jobctl with it.
            point = f"compute.sample@3:{group}=pause"
            p = subprocess.Popen(w.args(name, *w.memory(4)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "HOLDFAST_FAIL": point})
            deadline = time.monotonic() + 120
            while not any(h.state(c) == "T" for c in h.children(p.pid)):
                assert time.monotonic() < deadline and p.poll() is None, "the worker does not come there"
                time.sleep(0.02)
            for victim in [p.pid, *h.children(p.pid)]:
                h.kill(victim, signal.SIGKILL)
            p.wait()
            packs = sorted(w.packs(name), key=os.path.getmtime)
            gone = rng.sample(packs, len(packs) // 2)
            assert gone, "no pack is there yet"
            for pack in gone:
                os.rename(pack, w.path(os.path.basename(pack)))
            found = h.run([h.JOBCTL, "fsck", w.path(name) + ".run"]).stdout
            assert "F050" in found and "the cut of sample" in found, found
            if repair:
                h.run([h.JOBCTL, "fsck", w.path(name) + ".run", "--repair"])
            else:                                   # a worker notices itself what cuts are gone; evicted layers are for fsck
                for pack in gone:
                    if re.search(os.path.basename(pack) + ".*unit", found):
                        os.rename(w.path(os.path.basename(pack)), pack)
            h.run(w.args(name, *w.memory(4)), check=0)
            w.assert_golden(name)
            w.fsck(name)
    print("streamed_test lost: half of all packs gone in the middle, four times: made again, same bytes")


if __name__ == "__main__":
    what, rest = (sys.argv[1] if len(sys.argv) > 1 else ""), [int(x) for x in sys.argv[2:]]
    if what == "kills":
        kills(rest[0] if rest else 8, rest[1] if len(rest) > 1 else random.SystemRandom().randrange(1 << 30))
    elif what == "points":
        points(rest[0] if rest else None)
    elif what in ("sizes", "memory", "lost"):
        {"sizes": sizes, "memory": memory, "lost": lost}[what]()
    else:
        sys.exit(__doc__)
