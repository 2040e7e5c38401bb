#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Takes the real programs through every fail-point that a run passes, and demands the same bytes in the end.

  fail_points_test.py singles [N]     each place, one fault in a run: all of them, or N drawn so that every kind of place has its turn
  fail_points_test.py pairs N         two faults in one run: in one life, in a process's next life, or in the next attempt

  --seed S, --jobs J (runs at a time; default: the number of cores)

The places are not listed here: an undisturbed run says where it passes (HOLDFAST_FAIL_TRACE), so a new fail-point is tested from its first day.
Those that only a run with a poison sample passes, it says: blames and omissions (each in every form), and the commits of workers' later lives.
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
import kill_test

STAGES = ["--shard-layers", "2,1,1"]
ERRNOS = ["enospc", "edquot", "eio", "estale"]
ATTEMPTS = 12
LINE = re.compile(r"^(\d+) (\d+) ([^@]+)@(.*?)(?: = (\w+))?$")

Arrival = collections.namedtuple("Arrival", "ns pid point subject action")
Place = collections.namedtuple("Place", "point subject hits lives", defaults=[(0,)])   # lives of the process in which a fault may be armed there
Job = collections.namedtuple("Job", "options env judge")                                # what is typed, and what must be there in the end


def assert_golden(w, name):
    w.assert_golden(name)
    w.fsck(name)


POISON, LIVES = 5, 8
SOUND = Job([], {}, assert_golden)
POISONED = Job(["--skip-samples", "1"], kill_test.kill_samples(POISON), lambda w, name: kill_test.assert_without(w, name, POISON))


def read_trace(path):
    if not os.path.exists(path):
        return []
    with open(path) as f:
        found = [LINE.match(line) for line in f.read().split("\n")[:-1]]
    return [Arrival(int(m[1]), int(m[2]), m[3], m[4], m[5]) for m in found]


def trace_of(w, job):
    """A run without faults of ours."""
    h.run(w.args("traced", *job.options, *STAGES), env={**job.env, "HOLDFAST_FAIL_TRACE": w.path("trace")}, check=0)
    job.judge(w, "traced")
    found = read_trace(w.path("trace"))
    os.unlink(w.path("trace"))
    w.drop("traced")
    return [a._replace(subject=a.subject.replace(w.path("traced"), "OUT")) for a in found if a.action is None]


def places(w):
    """Where an undisturbed run passes, and how often."""
    count = collections.Counter((a.point, a.subject) for a in trace_of(w, SOUND))
    assert len(count) > 100, f"a run passes {len(count)} places only"
    return [Place(point, subject, hits) for (point, subject), hits in sorted(count.items())]


def poisoned_places(w, known):
    """What a run with a poison sample passes beyond these: places of its own, armed in every life, as nobody knows which one comes there; and the
    commits of lives that are not the first."""
    trace = trace_of(w, POISONED)
    lives, count = collections.defaultdict(list), collections.Counter()
    for a in trace:      # who commits to a stage's stream is a life of its worker
        if a.point.startswith("publish") and a.subject.startswith("stage.") and a.pid not in lives[a.subject]:
            lives[a.subject].append(a.pid)
    for a in trace:
        if a.point not in {p.point for p in known}:
            count[a.point, a.subject, tuple(range(LIVES))] += 1
        elif a.pid in lives[a.subject][1:]:
            count[a.point, a.subject, (lives[a.subject].index(a.pid),)] += 1
    own = {point for point, _, _ in count if not point.startswith("publish")}
    assert {"blame", "omit"} <= own, f"a run with a poison sample passes {own} only"
    return [Place(point, subject, hits, where) for (point, subject, where), hits in sorted(count.items())]


def kind(place):
    """Places of one kind stand for each other in the short form: tensors, samples and packs differ in number only."""
    return (place.point, place.subject if place.point.startswith(("publish", "phase")) and not place.subject.startswith("layer") else "")


def fault(w, name, place, hit, action):
    one = f"{place.point}@{place.subject.replace('OUT', w.path(name))}:{hit}={action}"
    return ",".join(one if life in place.lives else "" for life in range(max(place.lives) + 1))


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


def drive(w, name, by_attempt, seed, job=SOUND):
    """Runs the job until it is done, `by_attempt[i]` the fail-points of attempt i; the trace and the number of attempts."""
    rng = random.Random(seed)
    trace = w.path(name + ".trace")
    faults = " then ".join(by_attempt)
    for i in range(ATTEMPTS):
        env = {**job.env, "HOLDFAST_FAIL_TRACE": trace, "HOLDFAST_FAIL": by_attempt[i] if i < len(by_attempt) else ""}
        known = os.path.exists(os.path.join(w.path(name) + ".run", "log/job/00000000.seg"))
        args = [h.JOBCTL, "resume", w.path(name) + ".run"] if known and rng.random() < 0.5 else w.args(name, *job.options, *STAGES)
        code, said = attempt(args, env, rng, w.path(name + ".err"))
        if code == 0 and i + 1 >= len(by_attempt):
            break
        if code != 0:
            judge(code, said, faults)
        h.assert_no_half_output(w.path(name))
    else:
        raise AssertionError(f"{faults}: not done after {ATTEMPTS} attempts\n{said[-3000:]}")
    job.judge(w, name)
    ours = {a.split("=")[0] for a in job.env.get("HOLDFAST_FAIL_ALWAYS", "").split(";")}
    found = [a._replace(action=None) if f"{a.point}@{a.subject}" in ours else a for a in read_trace(trace)]   # the poison is no fault
    w.drop(name)
    return found, i + 1


def drive_all(w, cases, jobs):
    """cases: [(name, [fail-points of each attempt], seed[, job])]. The tally, and the names of cases whose faults were not reached."""
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


def every_fault(rng, where):
    """Every place sees every fault once."""
    return [(p, rng.randint(1, p.hits), action) for p in where for action in actions_at(p)]


def all_of(rng, where):
    """Every arrival is killed once, and every place sees every other fault once."""
    kills = [(p, hit, "kill") for p in where for hit in range(1, p.hits + 1)]
    return kills + [case for case in every_fault(rng, where) if case[2] != "kill"]


def some_of(rng, where, budget):
    by_kind = collections.defaultdict(list)
    for p in where:
        by_kind[kind(p)].append(p)
    kinds = sorted(by_kind)
    rng.shuffle(kinds)
    chosen = [rng.choice(by_kind[k]) for k in kinds[:budget]]
    return [(p, rng.randint(1, p.hits), "kill" if rng.random() < 0.7 else rng.choice(actions_at(p))) for p in chosen]


def singles(w, rng, budget, jobs):
    where = places(w)
    beyond = poisoned_places(w, where)
    own, later = [p for p in beyond if len(p.lives) > 1], [p for p in beyond if len(p.lives) == 1]
    cases = [(SOUND, case) for case in (all_of(rng, where) if budget is None else some_of(rng, where, budget))]
    cases += [(POISONED, case) for case in every_fault(rng, own) + (every_fault(rng, later) if budget is None else some_of(rng, later, budget // 50))]
    # How many records go into one commit, and in which life, depends on the moment, so a run may pass a place less often than the traced one: earlier
    # hits then, and earlier lives.
    whole, by_name = Tally(), {f"s{i}": case for i, case in enumerate(cases)}
    while by_name:
        tally, missed = drive_all(w, [(name, [fault(w, name, *case)], rng.random(), job) for name, (job, case) in by_name.items()], jobs)
        whole.merge(tally)
        by_name = {name: (by_name[name][0], earlier(*by_name[name][1])) for name in missed}
    return whole


def earlier(place, hit, action):
    if hit > 1:
        return place, hit // 2, action
    assert len(place.lives) == 1 and place.lives[0] > 0, f"never reached: {place}, {action}"
    return place._replace(lives=(place.lives[0] - 1,)), place.hits, action


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
