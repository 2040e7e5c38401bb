#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Whole jobs on one machine in several ways, in turn, beside what the machine allows and beside a peer; the same bytes in the end. CPU or GPU.

  bench_gpu.py --source MODEL --calib TOKENS.jsonl --samples 128 --seq-len 1024 --device cuda
               --mode 'resident:' --mode 'streamed: --memory 22GiB' [--rounds 3] [--kill 3] [--ram-dir /dev/shm] [--peer 'COMMAND {src} {out}']
               [--cold] [--json FILE]

A mode is a name and more arguments of jobctl run. Of each: wall time, CPU time of all its processes, phases, samples a second of the phase
"calibrate", peak memory of the host (the largest sum of PSS over the process tree) and of the device (nvidia-smi, the most that was used of one).
First bench_limits says in the same run what the machine allows. Reading the source, the linears' matmuls and writing the output can overlap: the
limit is the slowest of the three. Then also: the first mode with its run directory on a RAM disk, where fsync is free (--ram-dir), and the last one
with a worker killed with SIGKILL at random instants (--kill). Every job must end in the same SHA256SUMS, else exit status 1. The JSON file is
written after each job; plot.py draws it.
"""
import argparse
import json
import os
import random
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

from bench_run import MEMORY, events, timed, tree

HERE = os.path.dirname(os.path.abspath(__file__))
PHASES = ("check", "load", "calibrate", "evict", "merge")


class DeviceMemory:
    """For timed(beside=...): the most memory that was in use on one device, less what was before; None where there is no nvidia-smi."""

    QUERY = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]

    def __init__(self):
        self.peak = None

    def __call__(self, pid, stop):
        if shutil.which("nvidia-smi") is None:
            return
        used = []
        while not stop.is_set():
            words = subprocess.run(self.QUERY, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout.split()
            if not words or not all(w.isdigit() for w in words):
                return
            used.append([int(w) * 2**20 for w in words])
            stop.wait(0.1)
        self.peak = max(now - before for row in used for now, before in zip(row, used[0]))


class Killer:
    """For timed(beside=...): SIGKILL for a worker of this jobctl, and of no other, at these seconds after the start."""

    def __init__(self, instants):
        self.instants, self.kills, self.begin = list(instants), 0, time.monotonic()

    @staticmethod
    def is_worker(pid):
        try:
            with open(f"/proc/{pid}/comm") as f:
                return f.read().strip() == "holdfast-worker"
        except OSError:
            return False

    def __call__(self, pid, stop):
        while self.instants and not stop.is_set():
            if time.monotonic() - self.begin < self.instants[0]:
                stop.wait(0.005)
                continue
            workers = [p for p in tree(pid)[1:] if self.is_worker(p)]
            if not workers:
                stop.wait(0.005)
                continue
            try:
                os.kill(workers[0], 9)
                self.kills += 1
            except ProcessLookupError:
                continue
            self.instants.pop(0)


def cpu_seconds():
    """Of all processes that were waited for, and theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def devices(args):
    """How many GPUs a mode's arguments name."""
    words = shlex.split(args)
    return len(words[words.index("--device") + 1].split(",")) if "--device" in words else 1


class Bench:
    def __init__(self, a):
        self.a = a
        self.modes = [tuple(x.strip() for x in m.split(":", 1)) for m in a.mode or ["resident:"]]
        self.work = tempfile.mkdtemp(prefix="holdfast-bench-", dir=a.dir)
        self.sums = {}      # text of SHA256SUMS: the jobs that ended in it
        self.runs = 0
        with open(os.path.join(a.source, "config.json")) as f:
            config = json.load(f)
        self.files = [os.path.join(a.source, n) for n in os.listdir(a.source) if n.endswith(".safetensors")]
        self.out = {"date": time.strftime("%Y-%m-%d"), "host": host(), "load_before": os.getloadavg()[0], "samples": a.samples,
                    "seq_len": a.seq_len, "device": a.device, "cold": a.cold, "note": a.note, "peer_name": a.peer_name, "source_bytes": sum(map(os.path.getsize, self.files)),
                    "shape": {k: config[k] for k in ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size")},
                    "modes": {name: {"args": args, "runs": []} for name, args in self.modes}}

    def save(self):
        """After each job, so that a run that is cut off leaves what it has."""
        self.judge()
        self.out["load_after"] = os.getloadavg()[0]
        self.out["sums_identical"] = len(self.sums) == 1
        if self.a.json:
            with open(self.a.json + ".new", "w") as f:
                json.dump(self.out, f, indent=1)
            os.replace(self.a.json + ".new", self.a.json)

    def settle(self):
        os.sync()
        if self.a.cold:
            for path in self.files:
                with open(path, "rb") as f:
                    os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def limits(self):
        args = [self.a.bench_limits, "--source", self.a.source, "--dir", self.work, "--device", self.a.device, "--seq-len", str(self.a.seq_len),
                "--threads", str(self.a.threads)] + (["--cold"] if self.a.cold else [])
        self.out["limits"] = json.loads(subprocess.run(args, check=True, stdout=subprocess.PIPE, text=True).stdout)
        self.save()

    def typed(self, line, watch, attempts):
        """Runs the same line until it ends well: (seconds of all attempts, memory peak, what the last one printed)."""
        spent = 0
        while True:
            begin = time.monotonic()
            try:
                wall, peak, text = timed(line, every=self.a.every, beside=watch)
                return spent + wall, peak, text
            except SystemExit:
                attempts -= 1
                spent += time.monotonic() - begin
                if attempts == 0:
                    raise

    def job(self, name, args, run_dir=None, killer=None):
        """One whole job from nothing: what was measured of it. One that was killed may need the same line again."""
        self.runs += 1
        out = os.path.join(self.work, f"out{self.runs}")
        run_dir = run_dir or out + ".run"
        line = [os.path.join(self.a.bin, "jobctl"), "run", "--source", self.a.source, "--calib", self.a.calib, "--out", out, "--run-dir", run_dir,
                "--samples", str(self.a.samples), "--seq-len", str(self.a.seq_len), "--json", *shlex.split(args)]
        if "--device" not in args:
            line += ["--device", self.a.device]
        self.settle()
        watch = killer or DeviceMemory()
        cpu = cpu_seconds()
        wall, peak, text = self.typed(line, watch, attempts=5 if killer else 1)
        cpu = cpu_seconds() - cpu
        said = events(text)
        report, plan = said[-1]["report"], [e for e in said if e["event"] == "plan"][-1]
        with open(os.path.join(out, "SHA256SUMS")) as f:
            self.sums.setdefault(f.read(), []).append(f"{name} (run {self.runs})")
        shutil.rmtree(out)
        shutil.rmtree(run_dir)
        phases = {p: report["phase_ms"].get(p, 0) / 1e3 for p in PHASES}
        return {"wall": wall, "cpu": cpu, "phases": phases, "host_peak": peak, "device_peak": getattr(watch, "peak", None), "tokens": report["tokens"],
                "output_bytes": report["output_bytes"], "restarts": report["restarts"], "numerics": plan["numerics"],
                "stages": [{k: s[k] for k in ("streamed", "layers_at_once", "threads", "memory_bytes")} for s in plan["stages"]],
                "samples_per_s": self.a.samples / max(phases["calibrate"], 1e-3)}

    def peer(self):
        out = os.path.join(self.work, "peer")
        self.settle()
        watch = DeviceMemory()
        command = self.a.peer.format(src=self.a.source, out=out, calib=self.a.calib, samples=self.a.samples, seq_len=self.a.seq_len)
        cpu = cpu_seconds()
        wall, peak, text = timed(shlex.split(command), {"HF_HUB_OFFLINE": "1"}, self.a.every, watch)
        cpu = cpu_seconds() - cpu
        shutil.rmtree(out, ignore_errors=True)
        said = last_object(text)
        wall -= sum(said.get(key, 0) for key in self.a.peer_without.split(",") if key)
        return {"wall": wall, "cpu": cpu, "said": said, "host_peak": peak, "device_peak": watch.peak,
                "phases": {p: said[p] for p in self.a.peer_phases.split(",") if isinstance(said.get(p), (int, float))}}

    def round(self, number):
        for name, args in self.modes:
            r = self.job(name, args)
            self.out["modes"][name]["runs"].append(r)
            print(f"round {number}, {name}: {r['wall']:.2f} s, CPU {r['cpu']:.1f} s, host {r['host_peak'] / 1e9:.2f} GB{device_text(r)}, "
                  f"{', '.join(f'{p} {s:.1f}' for p, s in r['phases'].items())}, {r['samples_per_s']:.2f} samples/s", flush=True)
            self.save()
        if self.a.ram_dir:
            ram = tempfile.mkdtemp(prefix="holdfast-bench-", dir=self.a.ram_dir)
            r = self.job(self.modes[0][0] + ", run directory in RAM", self.modes[0][1], run_dir=os.path.join(ram, "run"))
            shutil.rmtree(ram)
            self.out.setdefault("ram", []).append(r)
            print(f"round {number}, run directory in RAM: {r['wall']:.2f} s", flush=True)
            self.save()
        if self.a.peer:
            r = self.peer()
            self.out.setdefault("peer", []).append(r)
            print(f"round {number}, peer: {r['wall']:.2f} s, CPU {r['cpu']:.1f} s, host {r['host_peak'] / 1e9:.2f} GB{device_text(r)}, "
                  f"{', '.join(f'{p} {s:.1f}' for p, s in r['phases'].items())}", flush=True)
            self.save()

    def kills(self):
        """Draws the instants within the time of an undisturbed job up to its merge; every kill makes the job longer, so that all of them find a worker."""
        name, args = self.modes[-1]
        one = self.out["modes"][name]["runs"][-1]
        rng = random.Random(self.a.seed)
        instants = sorted(rng.uniform(one["phases"]["check"], one["wall"] - one["phases"]["merge"]) for _ in range(self.a.kill))
        killer = Killer(instants)
        r = self.job(name + ", killed", args, killer=killer)
        self.out["kills"] = {"mode": name, "seed": self.a.seed, "asked": self.a.kill, "kills": killer.kills, "restarts": r["restarts"], "wall": r["wall"]}
        print(f"killed {killer.kills} times of {self.a.kill} (mode {name}, seed {self.a.seed}): {r['wall']:.2f} s, undisturbed {one['wall']:.2f} s", flush=True)
        self.save()

    def judge(self):
        """The medians, and what they are of the limits."""
        modes = self.out["modes"]
        first = modes[self.modes[0][0]]["runs"]
        for name, args in self.modes:
            m, runs = modes[name], modes[name]["runs"]
            if not runs:
                continue
            m["wall"] = statistics.median(r["wall"] for r in runs)
            m["cpu"] = statistics.median(r["cpu"] for r in runs)
            m["phases"] = {p: statistics.median(r["phases"][p] for r in runs) for p in PHASES}
            m["host_peak"] = max(r["host_peak"] for r in runs)
            m["device_peak"] = max((r["device_peak"] for r in runs if r["device_peak"] is not None), default=None)
            m["samples_per_s"] = statistics.median(r["samples_per_s"] for r in runs)
            m["samples_per_s_of_first"] = statistics.median(r["samples_per_s"] / f["samples_per_s"] for r, f in zip(runs, first))
            if "limits" in self.out:
                m["limit"] = self.limit(runs[0], devices(args))
                m["share"] = m["limit"]["max"] / m["wall"]
                m["share_of_sum"] = m["limit"]["sum"] / m["wall"]
                if self.a.device == "cpu":      # also holds where others use the cores, too: CPU time of the matmuls alone over that of the job
                    m["cpu_share"] = m["limit"]["matmul"] * self.out["limits"]["threads"] / m["cpu"]
                m["calibrate_share"] = m["limit"]["matmul"] / max(m["phases"]["calibrate"], 1e-3)
            if "peer" in self.out:
                m["faster_than_peer"] = statistics.median(p["wall"] / r["wall"] for r, p in zip(runs, self.out["peer"]))
                m["cpu_of_peer"] = statistics.median(r["cpu"] / p["cpu"] for r, p in zip(runs, self.out["peer"]))
                m["memory_of_peer"] = statistics.median(r["host_peak"] / p["host_peak"] for r, p in zip(runs, self.out["peer"]))
        if "ram" in self.out:
            self.out["durability"] = statistics.median(r["wall"] / s["wall"] - 1 for r, s in zip(first, self.out["ram"]))

    def limit(self, run, gpus):
        """Seconds that a job needs at least for its reading, its matmuls and its writing."""
        rates = self.out["limits"]
        seconds = {"read": self.out["source_bytes"] / rates["read_cold_bytes_per_s" if self.a.cold else "read_bytes_per_s"],
                   "matmul": run["tokens"] * rates["linear_flops_per_token"] / rates["matmul_flops_per_s"] / gpus,
                   "write": run["output_bytes"] / rates["write_bytes_per_s"]}
        return {**seconds, "max": max(seconds.values()), "sum": sum(seconds.values())}


def host():
    with open("/proc/cpuinfo") as f:
        cpu = next((x.split(":")[1].strip() for x in f if x.startswith("model name")), "")
    with open("/proc/meminfo") as f:
        memory = int(f.readline().split()[1]) * 1024
    gpus = []
    if shutil.which("nvidia-smi"):
        gpus = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], stdout=subprocess.PIPE, text=True).stdout.split("\n")
    return {"cpu": cpu, "cores": len(os.sched_getaffinity(0)), "memory_bytes": memory, "memory_measured": MEMORY, "gpus": [g for g in gpus if g]}


def last_object(text):
    """The last JSON object that begins a line: what a peer says of itself."""
    found, decoder = {}, json.JSONDecoder()
    for at in [0] + [i + 1 for i, c in enumerate(text) if c == "\n"]:
        if text[at:at + 1] == "{":
            try:
                found = decoder.raw_decode(text, at)[0]
            except ValueError:
                pass
    return found


def device_text(r):
    return f", device {r['device_peak'] / 1e9:.2f} GB" if r["device_peak"] is not None else ""


def table(out):
    rows = [["mode", "wall s", "CPU s", "samples/s", "of the first", "host GB", "device GB", "limit s", "of limit", "sum s", "of sum",
             "matmuls of calibrate", "of CPU", "x peer", "CPU of peer", "memory of peer"]]
    for name, m in out["modes"].items():        # the peer's columns: ours over theirs, but for "x peer"
        limit = m.get("limit", {})
        cells = [(m["wall"], ".2f"), (m["cpu"], ".1f"), (m["samples_per_s"], ".2f"), (m["samples_per_s_of_first"], ".2f"), (m["host_peak"] / 1e9, ".2f"),
                 (m["device_peak"] and m["device_peak"] / 1e9, ".2f"), (limit.get("max"), ".2f"), (m.get("share"), ".0%"), (limit.get("sum"), ".2f"),
                 (m.get("share_of_sum"), ".0%"), (m.get("calibrate_share"), ".0%"), (m.get("cpu_share"), ".0%"),
                 (m.get("faster_than_peer"), ".2f"), (m.get("cpu_of_peer"), ".2f"),
                 (m.get("memory_of_peer"), ".2f")]
        rows.append([name] + ["-" if v is None else format(v, f) for v, f in cells])
    widths = [max(len(r[c]) for r in rows) for c in range(len(rows[0]))]
    print("\n" + "\n".join("  ".join(cell.rjust(w) if c else cell.ljust(w) for c, (cell, w) in enumerate(zip(r, widths))) for r in rows))
    for name, m in out["modes"].items():
        if "limit" in m:
            print(f"{name}: at least " + ", ".join(f"{k} {m['limit'][k]:.2f} s" for k in ("read", "matmul", "write")))
    if "durability" in out:
        print(f"durability: {out['durability']:+.1%} of wall time against a run directory in RAM")
    print(f"load {out['load_before']:.1f} before, {out['load_after']:.1f} after")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--source", required=True, help="model directory")
    ap.add_argument("--calib", required=True, help=".jsonl with input_ids")
    ap.add_argument("--samples", type=int, required=True)
    ap.add_argument("--seq-len", type=int, required=True)
    ap.add_argument("--device", default="cpu", help="of bench_limits, and of every mode that names none: cpu (default), cuda, cuda:N")
    ap.add_argument("--mode", action="append", help="'NAME: more arguments of jobctl run'; several times (default 'resident:')")
    ap.add_argument("--rounds", type=int, default=3)
    ap.add_argument("--peer", default="", help="a command that does the same job; {src} {out} {calib} {samples} {seq_len} are filled in")
    ap.add_argument("--peer-name", default="Model-Optimizer")
    ap.add_argument("--peer-phases", default="imports,load,calib,quantize,export", help="keys of the JSON object that the peer prints, in seconds")
    ap.add_argument("--peer-without", default="", metavar="KEYS", help="of the same object: seconds that are no part of the job, taken off its wall time")
    ap.add_argument("--kill", type=int, default=0, metavar="N", help="one more job of the last mode, with N kills of a worker")
    ap.add_argument("--seed", type=int, default=1, help="of the instants of the kills")
    ap.add_argument("--ram-dir", default="", help="a directory on a RAM disk, e.g. /dev/shm: the price of durability")
    ap.add_argument("--cold", action="store_true", help="the source is dropped from the page cache before each job")
    ap.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of bench_limits (default: all cores)")
    ap.add_argument("--every", type=float, default=0.2, help="seconds between two looks at the memory of the host (default 0.2; each takes milliseconds)")
    ap.add_argument("--dir", default=None, help="where run directories and outputs go (default: TMPDIR)")
    ap.add_argument("--no-limits", action="store_true")
    ap.add_argument("--note", default="", help="goes into the JSON file")
    ap.add_argument("--json", default="", metavar="FILE")
    ap.add_argument("--bin", default=os.path.join(HERE, "../../build/bin"))
    ap.add_argument("--bench-limits", default=None, help="default: bench/bench_limits beside --bin")
    a = ap.parse_args()
    a.bench_limits = a.bench_limits or os.path.join(a.bin, "../bench/bench_limits")
    bench = Bench(a)
    try:
        if not a.no_limits:
            bench.limits()
        for number in range(1, a.rounds + 1):
            bench.round(number)
        if a.kill:
            bench.kills()
    finally:
        shutil.rmtree(bench.work, ignore_errors=True)
    table(bench.out)
    print(f"SHA256SUMS of all {bench.runs} jobs identical: {'yes' if len(bench.sums) == 1 else 'no'}")
    for text, names in bench.sums.items():
        if len(bench.sums) > 1:
            print(f"  {len(text.splitlines())} files, first {text[:16]}...: {', '.join(names)}")
    sys.exit(0 if len(bench.sums) == 1 else 1)


if __name__ == "__main__":
    main()
