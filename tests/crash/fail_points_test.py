#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Takes the real programs through every fail-point that a run passes, and demands the same bytes in the end.

  fail_points_test.py singles [N]     each place, one fault in a run: all of them, or N drawn so that every kind of place has its turn
  fail_points_test.py pairs N         two faults in one run: in one life, in a process's next life, or in the next attempt

  --seed S, --jobs J (runs at a time; default: the number of cores)

The places are not listed here: an undisturbed run says where it passes (HOLDFAST_FAIL_TRACE), so a new fail-point is tested from its first day.
A fault kills the process, stops it for up to two seconds, or makes the operation fail with ENOSPC, EDQUOT, EIO or ESTALE. The line that ended is
typed again until the run is done; every end must say which line that is, and only a process that was to be killed may die of a signal.
"""
import argparse
import collections
import concurrent.futures
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import time

import harness as h

STAGES = ["--shard-layers", "2,1,1"]
ERRNOS = ["enospc", "edquot", "eio", "estale"]
ATTEMPTS = 12
LINE = re.compile(r"^(\d+) (\d+) ([^@]+)@(.*?)(?: = (\w+))?$")

Arrival = collections.namedtuple("Arrival", "ns pid point subject action")
Place = collections.namedtuple("Place", "point subject hits")


def read_trace(path):
    if not os.path.exists(path):
        return []
    with open(path) as f:
        found = [LINE.match(line) for line in f.read().split("\n")[:-1]]
    return [Arrival(int(m[1]), int(m[2]), m[3], m[4], m[5]) for m in found]


def places(w):
    """Where an undisturbed run passes, and how often."""
    h.run(w.args("traced", *STAGES), env={"HOLDFAST_FAIL_TRACE": w.path("trace")}, check=0)
    w.assert_golden("traced")
    count = collections.Counter((a.point, a.subject.replace(w.path("traced"), "OUT")) for a in read_trace(w.path("trace")))
    assert len(count) > 100, f"a run passes {len(count)} places only"
    w.drop("traced")
    return [Place(point, subject, hits) for (point, subject), hits in sorted(count.items())]


def kind(place):
    """Places of one kind stand for each other in the short form: tensors, samples and packs differ in number only."""
    return (place.point, place.subject if place.point.startswith(("publish", "phase")) and not place.subject.startswith("layer") else "")


def fault(w, name, place, hit, action):
    return f"{place.point}@{place.subject.replace('OUT', w.path(name))}:{hit}={action}"


class Tally:
    def __init__(self):
        self.fired, self.runs, self.attempts, self.recovery_ms = collections.Counter(), 0, 0, []

    def merge(self, other):
        self.fired += other.fired
        self.runs += other.runs
        self.attempts += other.attempts
        self.recovery_ms += other.recovery_ms

    def add(self, trace, attempts):
        self.runs += 1
        self.attempts += attempts
        for i, a in enumerate(trace):
            if a.action is None:
                continue
            self.fired[a.action] += 1
            if a.action == "kill" and a.point.startswith("publish"):
                again = next((b for b in trace[i:] if b.pid != a.pid and b.point == "publish.P6" and b.subject == a.subject), None)
                self.recovery_ms += [(again.ns - a.ns) / 1e6] if again else []

    def text(self):
        what = ", ".join(f"{n} {action}" for action, n in sorted(self.fired.items()))
        times = f"; kill to the next slot of its stream: median {statistics.median(self.recovery_ms):.0f} ms, worst {max(self.recovery_ms):.0f} ms" \
            if self.recovery_ms else ""
        return f"{self.runs} runs in {self.attempts} attempts, faults: {what}{times}"


def wake_the_stopped(process, rng):
    """A process that stopped itself goes on after a while; the others notice what they may."""
    woken = 0
    while process.poll() is None:
        stopped = [p for p in [process.pid, *h.children(process.pid)] if h.state(p) == "T"]
        if stopped:
            time.sleep(rng.choice([0.05, 0.5, 2.0]))
        for p in stopped:
            woken += h.kill(p, signal.SIGCONT)
        time.sleep(0.02)
    return woken


def attempt(args, env, rng, log):
    with open(log, "w") as err:
        p = subprocess.Popen(args, stdout=subprocess.DEVNULL, stderr=err, env={**os.environ, **env})
        watchdog = time.monotonic() + 300
        try:
            wake_the_stopped(p, rng)
        finally:
            if p.poll() is None:
                p.kill()
            p.wait()
    assert time.monotonic() < watchdog, "a run stood still"
    with open(log) as f:
        return p.returncode, f.read()


def judge(code, said, faults):
    """An end that is not the end of the job: killed as asked for, or a stop that says what to type."""
    refused = code == 2 and "@FORMAT" in faults and "cannot write there" in said    # before anything was started
    assert refused or code in (75, 1, -signal.SIGKILL), f"{faults}: exit {code}\n{said[-3000:]}"
    assert not re.search(r"signal (6|11|4|8)\b|terminate called|Sanitizer", said), f"{faults}: a process crashed\n{said[-3000:]}"
    if code == -signal.SIGKILL:
        assert "kill" in faults, f"{faults}: killed, but not by us"
    elif not refused:
        assert re.search("`jobctl (resume|fsck)|the same line again", said), f"{faults}: exit {code} without a next command\n{said[-3000:]}"


def drive(w, name, by_attempt, seed):
    """Runs the job until it is done, `by_attempt[i]` the fail-points of attempt i; the trace and the number of attempts."""
    rng = random.Random(seed)
    trace = w.path(name + ".trace")
    faults = " then ".join(by_attempt)
    for i in range(ATTEMPTS):
        env = {"HOLDFAST_FAIL_TRACE": trace, "HOLDFAST_FAIL": by_attempt[i] if i < len(by_attempt) else ""}
        known = os.path.exists(os.path.join(w.path(name) + ".run", "log/job/00000000.seg"))
        args = [h.JOBCTL, "resume", w.path(name) + ".run"] if known and rng.random() < 0.5 else w.args(name, *STAGES)
        code, said = attempt(args, env, rng, w.path(name + ".err"))
        if code == 0 and i + 1 >= len(by_attempt):
            break
        if code != 0:
            judge(code, said, faults)
        h.assert_no_half_output(w.path(name))
    else:
        raise AssertionError(f"{faults}: not done after {ATTEMPTS} attempts\n{said[-3000:]}")
    w.assert_golden(name)
    w.fsck(name)
    found = read_trace(trace)
    w.drop(name)
    return found, i + 1


def drive_all(w, cases, jobs):
    """cases: [(name, [fail-points of each attempt], seed)]. The tally, and the names of cases whose faults were not reached."""
    tally, failed, missed = Tally(), [], []
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        running = {pool.submit(drive, w, *case): case for case in cases}
        for done in concurrent.futures.as_completed(running):
            try:
                trace, attempts = done.result()
                tally.add(trace, attempts)
                if not any(a.action for a in trace):
                    missed.append(running[done][0])
            except AssertionError as e:
                failed.append(f"{running[done]}: {e}")
    assert not failed, f"{len(failed)} of {len(cases)} runs failed:\n" + "\n\n".join(failed[:20])
    return tally, missed


def actions_at(place):
    """What may happen there: everything on the way of a commit, elsewhere what a process can suffer."""
    return ["kill", "pause", *ERRNOS] if place.point.startswith("publish") else ["kill", "pause"]


def singles(w, rng, budget, jobs):
    cases = []
    if budget is None:    # every arrival is killed once; every place sees every other fault once
        for p in places(w):
            cases += [(p, hit, "kill") for hit in range(1, p.hits + 1)]
            cases += [(p, rng.randint(1, p.hits), action) for action in actions_at(p)[1:]]
    else:
        by_kind = collections.defaultdict(list)
        for p in places(w):
            by_kind[kind(p)].append(p)
        kinds = sorted(by_kind)
        rng.shuffle(kinds)
        for k in kinds[:budget]:
            p = rng.choice(by_kind[k])
            cases.append((p, rng.randint(1, p.hits), "kill" if rng.random() < 0.7 else rng.choice(actions_at(p))))
    # How many records go into one commit depends on the moment, so a run may pass a place less often than the traced one: earlier hits then.
    whole, by_name = Tally(), {f"s{i}": case for i, case in enumerate(cases)}
    while by_name:
        tally, missed = drive_all(w, [(name, [fault(w, name, *case)], rng.random()) for name, case in by_name.items()], jobs)
        whole.merge(tally)
        assert all(by_name[name][1] > 1 for name in missed), f"never reached: {[by_name[name] for name in missed]}"
        by_name = {name: (p, hit // 2, action) for name, (p, hit, action) in by_name.items() if name in missed}
    return whole


def pairs(w, rng, budget, jobs):
    all_places = places(w)
    cases = []
    for i in range(budget):
        one, two = ((lambda p: fault(w, f"d{i}", p, rng.randint(1, p.hits), rng.choice(["kill", "kill", *actions_at(p)])))(rng.choice(all_places)) for _ in "ab")
        together = rng.choice(["life", "next life", "next attempt"])
        by_attempt = {"life": [f"{one};{two}"], "next life": [f"{one},{two}"], "next attempt": [one, two]}[together]
        cases.append((f"d{i}", by_attempt, rng.random()))
    return drive_all(w, cases, jobs)[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["singles", "pairs"])
    parser.add_argument("budget", type=int, nargs="?")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    a = parser.parse_args()
    if a.what == "pairs" and a.budget is None:
        parser.error("how many pairs?")
    with h.Workspace("points") as w:
        w.make_golden()
        tally = {"singles": singles, "pairs": pairs}[a.what](w, random.Random(a.seed), a.budget, a.jobs)
    print(f"fail_points_test {a.what}: {tally.text()} (seed {a.seed}); every run ended in the same bytes")


if __name__ == "__main__":
    main()
