#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Plans against what comes of them: `jobctl plan` with a cache of its own, then the same job, phase by phase.

  bench_plan.py --source MODEL --calib TOKENS.jsonl [--rounds 1] [--options '--samples 8'] [--options '--samples 8 --memory 1G'] ...

For each set of options and round one line a phase: planned range, took, and whether it lies inside. At the end the share of phases that do, and for each
phase the smallest and the largest of took / low and took / high: what the factors in jobctl/cost_model.cc are chosen by (docs/adr/0026).
"""
import argparse
import json
import os
import shlex
import shutil
import subprocess
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))


def lines_of(args, env):
    p = subprocess.run(args, env={**os.environ, **env}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if p.returncode != 0:
        raise SystemExit(f"exit {p.returncode}: {' '.join(args)}\n{p.stderr[-2000:]}")
    return [json.loads(line) for line in p.stdout.splitlines()]


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--source", required=True)
    ap.add_argument("--calib", required=True)
    ap.add_argument("--rounds", type=int, default=1)
    ap.add_argument("--options", action="append", default=[])
    ap.add_argument("--bin", default=os.path.join(HERE, "../../build/bin"))
    a = ap.parse_args()
    jobctl = os.path.join(a.bin, "jobctl")
    inside = total = 0
    off = {}
    for options in a.options or [""]:
        for n in range(a.rounds):
            work = tempfile.mkdtemp(prefix="holdfast-bench-plan-", dir=os.environ.get("HOLDFAST_TMP"))
            env = {"XDG_CACHE_HOME": os.path.join(work, "cache")}
            job = ["--source", a.source, "--calib", a.calib, "--out", os.path.join(work, "out"), "--json", *shlex.split(options)]
            plan = lines_of([jobctl, "plan", *job], env)[-1]
            took = lines_of([jobctl, "run", *job], env)[-1]["report"]["phase_ms"]
            shutil.rmtree(work)
            load = os.getloadavg()[0]
            rows = [(phase, t["low_ms"], t["high_ms"], took.get(phase, 0)) for phase, t in plan["phase_ms"].items()]
            rows.append(("all", plan["total_ms"]["low_ms"], plan["total_ms"]["high_ms"], sum(r[3] for r in rows)))
            print(f"{os.path.basename(a.source)} {options} (round {n}, load {load:.1f})")
            for phase, low, high, ms in rows:
                ok = low <= ms <= high
                if phase != "all":
                    inside, total = inside + ok, total + 1
                off.setdefault(phase, []).append((ms / max(1, low), ms / max(1, high)))
                print(f"  {phase:10s} {low / 1000:8.2f} to {high / 1000:8.2f} s, took {ms / 1000:8.2f} s  {'' if ok else 'OUTSIDE'}", flush=True)
    print(f"{inside} of {total} phases inside their ranges")
    for phase, ratios in off.items():
        print(f"  {phase:10s} took / low {min(r[0] for r in ratios):.2f} at least, took / high {max(r[1] for r in ratios):.2f} at most")


if __name__ == "__main__":
    main()
