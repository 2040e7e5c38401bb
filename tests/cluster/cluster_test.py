#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Daemons over one root, jobs in their queue, things that go wrong: in the end the bytes of an undisturbed run.

  cluster_test.py golden            three nodes, split as asked and split by themselves: the bytes of `jobctl run`
  cluster_test.py kills [N [SEED]]  kill -9 of random workers, daemons, coordinators and jobctl until N are dead
  cluster_test.py points [N [SEED]] N jobs, each with one fault at a fail-point of a daemon or its worker: killed, paused, ENOSPC, EIO, ...
  cluster_test.py devices           a daemon of two devices works on two stages at a time; workers die, a device breaks, it is started again with one
  cluster_test.py bad_device        every worker on the devices of one node dies: its stages go to another
  cluster_test.py lost              the tail node is gone for ever: its stage moves
  cluster_test.py streamed          a node dies for ever, and the one that is left is too small for its stage: it streams it
  cluster_test.py back              a lost node returns and works again; a paused one wakes, is fenced and works again
  cluster_test.py netns             three network namespaces, CURVE, one link cut and mended (77: no privileges)
  cluster_test.py allnodes          every daemon killed, page cache dropped, started again: nothing typed
  cluster_test.py queue             a night of jobs, one of them poisoned; --after, --priority, cancel, resume
  cluster_test.py renames           a file server without hard links: the root says so, every node dies, same bytes
  cluster_test.py twins             two daemons of one name
  cluster_test.py drain             SIGTERM, jobctl drain and undrain
  cluster_test.py zmqoff            nodes that never hear each other finish through the directory
  cluster_test.py refuse            bad input: a clear line, nothing lost
  cluster_test.py skip              samples that end workers on two nodes are left out, also when the coordinator dies meanwhile
  cluster_test.py words             a stage waits for space, a merge outlives its job: the log gives the true reasons
  cluster_test.py nosource          a node does not have the source: it says so, the others do its part (77: no privileges)
  cluster_test.py oom               a worker is OOM-killed in a memory cgroup (77: none here)

HOLDFAST_MODEL and HOLDFAST_TOKENS: a real model and its token lines for `kills`, cut by HOLDFAST_SPLIT (default 14,14,2).
"""
import collections
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import cluster_harness as ch
import fail_points_test as fp
from cluster_harness import Cluster, Net, h

# Long enough that things happen while it runs, short enough for a test: some five seconds of computing on one core.
BUSY = dict(layers=6, hidden=128, ffn=512, samples=64, length=1024)


def stage_nodes(job):
    return [s["node"] for s in job["stages"]]


def golden():
    with Cluster("golden", layers=5) as c:
        c.golden()
        c.nodes(3)
        a = c.submit("a", "--shard-layers", "2,2,1", "--on", "n1,n2,n3")
        b = c.submit("b")
        done = c.wait_job(a)
        assert stage_nodes(done) == ["n1", "n2", "n3"], done["stages"]
        assert [s["last_layer"] - s["first_layer"] for s in done["stages"]] == [2, 2, 1], done["stages"]
        c.assert_same(a, "a")
        c.wait_job(b)
        c.assert_same(b, "b")
        c.node("n4")   # said to be there before it is
        d = c.submit("d", "--shard-layers", "3,2", "--on", "n1,n4")
        assert stage_nodes(c.wait_job(d)) == ["n1", "n4"], c.job(d)
        c.assert_same(d, "d")
        assert all(d.running() and d.starts == 1 for d in c.daemons), "a daemon ended"
    print("cluster_test golden: three nodes, two splits, the bytes of one node")


class Killer:
    """Chooses who dies next, and counts."""

    def __init__(self, c, seed):
        self.c, self.rng = c, random.Random(seed)
        self.count = {"worker": 0, "daemon": 0, "coordinator": 0, "jobctl": 0}

    @property
    def total(self):
        return sum(self.count.values())

    def strike(self, job, watcher):
        kind = self.rng.choice(["worker", "worker", "daemon", "coordinator", "jobctl"])
        with self.c.lock:
            if kind == "worker":
                all_workers = self.c.workers()
                hit = bool(all_workers) and h.kill(self.rng.choice(all_workers)[1])
            elif kind == "jobctl":
                hit = watcher.poll() is None and h.kill(watcher.pid)
            else:
                d = self.c.coordinator(job) if kind == "coordinator" else self.rng.choice(self.c.daemons)
                hit = d is not None and d.kill()
        self.count[kind] += bool(hit)

    def submit(self, out, *extra):
        """Submits; now and then jobctl is killed in the middle of it. Either the job is there then, or it can be submitted."""
        if self.rng.random() < 0.3:
            p = subprocess.Popen([h.JOBCTL, "--root", self.c.root, *self.c.submit_args(out, *extra)], stdout=subprocess.DEVNULL,
                                 stderr=subprocess.DEVNULL, preexec_fn=ch.dies_with_us())
            time.sleep(self.rng.uniform(0, 0.4))
            self.count["jobctl"] += h.kill(p.pid) and p.wait() == -signal.SIGKILL
            there = [j["job"] for j in self.c.status()["jobs"] if j["name"] == out]
            if there:
                return there[0]
        return self.c.submit(out, *extra)


def kills(budget, seed):
    jobs = 0
    with Cluster("kills", **BUSY) as c:
        split = "3,2,1"
        if "HOLDFAST_MODEL" in os.environ:
            c.w.model, c.w.calib = os.environ["HOLDFAST_MODEL"], os.environ["HOLDFAST_TOKENS"]
            c.length, split = 512, os.environ.get("HOLDFAST_SPLIT", "14,14,2")
        c.golden()
        c.keep(*c.nodes(3))
        killer = Killer(c, seed)
        while killer.total < budget:
            out = f"k{jobs}"
            job = killer.submit(out, *killer.rng.choice([["--shard-layers", split], ["--shard-layers", split, "--on", "n1,n2,n3"], []]))
            watcher = None
            deadline = time.monotonic() + ch.DEADLINE
            while True:
                if watcher is None or watcher.poll() is not None:
                    watcher = subprocess.Popen([h.JOBCTL, "--root", c.root, "status", job, "--follow"], stdout=subprocess.DEVNULL,
                                               stderr=subprocess.DEVNULL, preexec_fn=ch.dies_with_us())
                    c.helpers.append(watcher)
                state = c.job(job)
                if state["state"] == "done":
                    break
                assert state["state"] in ("queued", "waiting", "running", "merging"), f"seed {seed}, job {jobs}: {state}"
                assert time.monotonic() < deadline, f"seed {seed}, job {jobs} does not end: {state}"
                if killer.total < budget:
                    killer.strike(job, watcher)
                time.sleep(killer.rng.uniform(0, 2.0))
            c.assert_same(job, out)
            c.forget(out)
            jobs += 1
    print(f"cluster_test kills: {killer.total} kills ({', '.join(f'{n} of a {k}' for k, n in killer.count.items())}) in {jobs} jobs "
          f"(seed {seed}), every job ended in the same bytes")


def wake_later(c, stop, rng):
    """Processes that stopped themselves go on after a while; long enough at times that others took their place."""
    while not stop.wait(0.05):
        for d in list(c.daemons):
            for pid in [d.pid, *h.children(d.pid)] if d.running() else []:
                if h.state(pid) == "T":
                    stop.wait(rng.choice([0.1, 1.0, 1.5 * c.suspect]))
                    h.kill(pid, signal.SIGCONT)


def end_of(c, job, seed):
    """Until the job is done; one that an errno ended is asked for again, as its message says."""
    for _ in range(5):
        state = ch.wait_for(f"the end of {job} (seed {seed})", lambda: (lambda j: j if j["state"] in ("done", "failed") else None)(c.job(job)), every=0.25)
        if state["state"] == "done":
            return
        assert "resume" in c.jobctl("status", job).stdout, "a failed job says how to go on"
        c.jobctl("resume", job)
    raise AssertionError(f"seed {seed}: failed five times: {state}")


def points(budget, seed):
    rng, fired = random.Random(seed), []
    with Cluster("points", layers=4) as c:
        c.golden()
        trace = c.w.path("trace")
        nodes = [c.node(f"n{i + 1}", env={"HOLDFAST_FAIL_TRACE": trace}) for i in range(3)]
        c.wait_spoken(*nodes)
        split = ["--shard-layers", "2,1,1", "--on", "n1,n2,n3"]
        c.wait_job(c.submit("traced", *split))
        count = collections.Counter((a.point, a.subject.replace(c.w.path("traced"), "OUT")) for a in fp.read_trace(trace))
        assert any(s.startswith("node.") for _, s in count), f"no place of a daemon's own: {sorted(count)[:5]}"
        c.end_all()
        stop = threading.Event()
        waker = threading.Thread(target=wake_later, args=(c, stop, random.Random(seed)), daemon=True)
        waker.start()
        places = [fp.Place(point, subject, hits) for (point, subject), hits in sorted(count.items())]
        by_subject = collections.defaultdict(list)
        for p in places:
            by_subject[fp.kind(p)[1]].append(p)
        for i in range(budget):
            place = rng.choice(by_subject[rng.choice(sorted(by_subject))])
            out, action = f"p{i}", rng.choice(["kill", "kill", *fp.actions_at(place)])
            what = f"{place.point}@{place.subject.replace('OUT', c.w.path(out))}:{rng.randint(1, place.hits)}={action}"
            for d in nodes:     # in one life of each; a keeper's restart knows nothing of it
                d.env = {"HOLDFAST_FAIL_TRACE": trace + out, "HOLDFAST_FAIL": what}
                d.start()
                d.env = {"HOLDFAST_FAIL_TRACE": trace + out}
            c.keep(*nodes)
            job = c.submit(out, *split)
            end_of(c, job, f"{seed}, {what}")
            c.assert_same(job, out)
            c.forget(out)
            fired += [a.action for a in fp.read_trace(trace + out) if a.action]
            with c.lock:
                for d in nodes:
                    d.kept = False
                    d.kill()
        stop.set()
        waker.join()
        crashed = [d.name for d in c.daemons if re.search(r"signal (6|11|4|8)\b|terminate called", d.said())]
        assert not crashed, crashed
    print(f"cluster_test points: {budget} jobs, faults: {dict(collections.Counter(fired))} (seed {seed}), every job ended in the same bytes")


def lost():
    with Cluster("lost", suspect=3, **BUSY) as c:
        c.golden()
        n1, n2, n3 = c.nodes(3)
        job = c.submit("a", "--shard-layers", "2,2,2", "--on", "n1,n2,n3")
        before = c.wait_progress(job, 24)
        assert stage_nodes(before)[2] == "n3", before["stages"]
        n3.kill()
        done = c.wait_job(job)
        assert stage_nodes(done)[2] in ("n1", "n2"), f"the stage of the dead node stayed: {done['stages']}"
        assert "n3" in c.jobctl("status", job).stdout, "status does not say which node was lost"
        c.assert_same(job, "a")
    print("cluster_test lost: the tail node died for ever, its stage moved, same bytes")


def streamed():
    with Cluster("streamed", suspect=3, **BUSY) as c:
        c.golden()
        args = c.w.args("none", "--threads", "1", "--seq-len", str(c.length), "--memory", "1M")
        floor = int(re.search(r"at least .*?\((\d+) bytes\)", h.run(args, check=2).stderr)[1])
        layer = 2 * (BUSY["hidden"] * (3 * BUSY["ffn"] + 3 * BUSY["hidden"]) + 2 * BUSY["hidden"])     # at least: q, o, half as many k and v
        n1, n2 = c.node("n1"), c.node("n2", "--memory", str(floor + layer + (1 << 10)))
        c.wait_spoken(n1, n2)
        job = c.submit("a", "--shard-layers", "4,2", "--on", "n1,n2")
        assert stage_nodes(c.wait_progress(job, 24)) == ["n1", "n2"]
        n1.kill()
        n2.wait_said("stage 0 .*fits no node whole and is streamed")
        n2.wait_said(r"stage 0 .*: started \(streamed 1 at a time")
        done = c.wait_job(job)
        assert stage_nodes(done) == ["n2", "n2"], done["stages"]
        c.assert_same(job, "a")
    print("cluster_test streamed: the stage of a dead node was streamed through a smaller one, same bytes")


def moved_away(c, job, name):
    """Waits until no unfinished stage of the job lies on that node; what status says then."""
    def look():
        j = c.job(job)
        return j if j["state"] == "done" or all(s["node"] != name or s["phase"] == "done" for s in j["stages"]) else None
    return ch.wait_for(f"the stages of {name} move", look)


def back():
    with Cluster("back", suspect=3, **BUSY) as c:
        c.golden()
        n1, n2, n3 = c.nodes(3)
        job = c.submit("a", "--shard-layers", "2,2,2", "--on", "n1,n2,n3")
        c.wait_progress(job, 24)
        n3.kill()
        moved_away(c, job, "n3")
        n3.start()
        c.wait_spoken(n3)
        c.wait_job(job)
        c.assert_same(job, "a")
        # It is a node like the others again.
        job = c.submit("b", "--shard-layers", "2,2,2", "--on", "n1,n2,n3")
        assert stage_nodes(c.wait_job(job))[2] == "n3", "the node that came back gets no work"
        c.assert_same(job, "b")

        # The daemon finds the assignment changed, or its worker finds the claim of another at its next commit, whichever comes first.
        for out, workers_first, line in (("y", 0, r"not this node's any more|fenced: "), ("z", 2, r"fenced: .* has taken over")):
            job = c.submit(out, "--shard-layers", "2,2,2", "--on", "n1,n2,n3")
            c.wait_progress(job, 24)
            said = len(n3.said())
            n3.pause()
            moved_away(c, job, "n3")
            if workers_first > 0:      # what its worker finds is the claim itself
                ch.wait_for("the stage of n3 is claimed by another", lambda: c.job(job)["stages"][2]["claims"][-1]["node"] != "n3")
            n3.wake(workers_first)
            n3.wait_said(line, since=said)
            c.wait_job(job)
            c.assert_same(job, out)
        job = c.submit("again", "--shard-layers", "2,2,2", "--on", "n1,n2,n3")
        assert stage_nodes(c.wait_job(job))[2] == "n3", "the fenced node offers itself no more"
        c.assert_same(job, "again")
        assert n3.starts == 2, "being fenced from a stage ended the daemon"
    print("cluster_test back: a lost node came back, a paused one was fenced; both took work again, same bytes")


def stage_seats(job):
    return [f"{s['node']}/{s['device']}" for s in job["stages"]]


def devices():
    """`cpu,cpu`: two devices that are both the CPU."""
    with Cluster("devices", layers=6, hidden=128, ffn=512, samples=32, length=512) as c:
        c.golden()
        n1 = c.node("n1", "--device", "cpu,cpu", "--memory", "4GiB")
        c.wait_spoken(n1)
        a = c.submit("a")
        planned = c.status(a)
        two = ch.wait_for("a worker on each of its devices", lambda: len(n1.workers()) == 2 and n1.workers(), every=0.02)
        job = c.job(a)
        assert stage_seats(job) == ["n1/cpu:0", "n1/cpu:1"], (job["stages"], planned)
        assert h.kill(two[0])                                    # both, one after the other: each comes back on its device
        c.wait_progress(a, 8)
        for worker in n1.workers()[-1:]:
            h.kill(worker)
        done = c.wait_job(a)
        assert stage_seats(done) == ["n1/cpu:0", "n1/cpu:1"], done["stages"]
        assert sum(s["restarts"] for s in done["stages"]) >= 1, done["stages"]
        c.assert_same(a, "a")
        nodes = json.loads(c.jobctl("nodes", "--json").stdout)["nodes"]
        assert [d["device"] for d in nodes[0]["devices"]] == ["cpu:0", "cpu:1"], nodes
        assert nodes[0]["memory_bytes"] == 4 << 30 and nodes[0]["devices"][0]["memory_bytes"] == 2 << 30, nodes
        assert "device cpu:1" in c.jobctl("nodes").stdout, c.jobctl("nodes").stdout

        # A daemon that comes back with one device: what lay on two is placed anew, and ends the same.
        b = c.submit("b", "--shard-layers", "3,3", "--on", "n1,n1")
        c.wait_progress(b, 8)
        assert c.job(b)["state"] == "done" or stage_seats(c.job(b)) == ["n1/cpu:0", "n1/cpu:1"], c.job(b)["stages"]
        n1.kill()
        n2 = c.node("n1", "--device", "cpu", "--memory", "4GiB")
        c.wait_spoken(n2)
        c.wait_job(b)
        c.assert_same(b, "b")
        n2.kill(signal.SIGTERM)
        n2.end()
    print("cluster_test devices: two stages at a time in one daemon, the bytes of one device")


def bad_device():
    """Both devices of one node end every worker that computes on them: three deaths each, and another node takes the stages."""
    with Cluster("bad_device", layers=4, samples=8, length=64) as c:
        c.golden()
        n1 = c.node("n1", "--device", "cpu,cpu", "--memory", "4GiB", env={"HOLDFAST_FAIL_ALWAYS": "compute.sample=fault"})
        c.wait_spoken(n1, c.node("n2"))
        a = c.submit("a", "--shard-layers", "2,2", "--on", "n1,n1")
        n1.wait_said(r"worker on cpu:\d died \(exit 1: fail-point compute.sample: unspecified launch failure\)")
        done = c.wait_job(a)
        assert set(stage_nodes(done)) == {"n2"}, done["stages"]
        assert any("n1/cpu:0 gave up" in m["why"] for m in done["moves"]), done["moves"]
        c.assert_same(a, "a")
    print("cluster_test bad_device: stages that break their workers on one node end on another, same bytes")


def netns():
    if not Net.available():
        print("SKIPPED: no network namespaces with bridge and veth here")
        return 77
    with Cluster("netns", suspect=3, **BUSY) as c:
        c.golden()
        net = Net(c, 3)
        for name in ("n1", "n2", "n3"):
            c.jobctl("keygen", name)
        for i in (1, 2, 3):
            c.node(f"n{i}", "--listen", net.address(i), ns_pid=net.pid(i))
        c.wait_spoken(*c.daemons)
        heard = c.beats()
        for i in (1, 2, 3):
            assert net.address(i) in heard[f"n{i}"]["endpoint"], heard[f"n{i}"]
            assert len(heard[f"n{i}"]["public_key"]) == 40, f"n{i} listens beyond loopback without a key: {heard[f'n{i}']}"
        job = c.submit("a", "--shard-layers", "2,2,2", "--on", "n1,n2,n3")
        received = [0]

        def cuts():
            received[0] = max([received[0]] + [t.get("cuts_received", 0) for b in c.beats().values() for t in b["tasks"]])
            return c.job(job)["state"] == "done" or received[0] > 4
        ch.wait_for("hidden states cross the bridge", cuts)
        assert received[0] > 4, "every cut came from packs: the data edges do not work between namespaces"
        net.link(2, up=False)
        time.sleep(2.5 * c.suspect)
        net.link(2, up=True)
        c.wait_job(job)
        c.assert_same(job, "a")
        # A link that is cut for a whole job.
        net.link(3, up=False)
        job = c.submit("b", "--shard-layers", "2,2,2", "--on", "n1,n2,n3")
        c.wait_job(job)
        c.assert_same(job, "b")
    print("cluster_test netns: three namespaces, CURVE, a link cut and mended, same bytes")
    return 0


def drop_page_cache():
    subprocess.run(["sync"])
    try:
        with open("/proc/sys/vm/drop_caches", "w") as f:
            f.write("3")
        return True
    except OSError:
        return False


def allnodes():
    with Cluster("allnodes", **BUSY) as c:
        c.golden()
        c.nodes(3)
        job = c.submit("a", "--shard-layers", "2,2,2")
        waiting = c.submit("b")
        c.wait_progress(job, 30)
        c.end_all()
        before = c.job(job)
        assert before["state"] != "done", "the job was over before the lights went out; make it longer"
        dropped = drop_page_cache()
        for d in c.daemons:
            d.start()
        c.wait_job(job)
        c.assert_same(job, "a")
        c.wait_job(waiting)
        c.assert_same(waiting, "b")
    print(f"cluster_test allnodes: every daemon killed, page cache {'dropped' if dropped else 'kept (no permission)'}, started again, same bytes")


def poison(model):
    """A weight that is not a number."""
    path = os.path.join(model, "model.safetensors")
    with open(path, "r+b") as f:
        size = int.from_bytes(f.read(8), "little")
        f.seek(8 + size + 4096)
        f.write(b"\xc0\x7f" * 64)


def queue():
    with Cluster("queue", layers=4) as c:
        c.golden()
        bad, worse = c.w.path("bad"), c.w.path("worse")
        for path in (bad, worse):
            h.make_model(path, layers=4)
        poison(bad)
        # Before: submit itself says so, and the night remembers it.
        p = c.jobctl(*c.submit_args("refused", source=bad), check=2)
        assert "model.safetensors" in p.stderr, p.stderr
        # Nobody is up yet: everything waits.
        first = c.submit("first")
        middle = c.submit("middle", source=worse)
        third = c.submit("third")
        child = c.submit("child", "--after", "third")
        orphan = c.submit("orphan", "--after", "middle")
        urgent = c.submit("urgent", "--priority", "50")
        gone = c.submit("gone")
        c.jobctl("cancel", gone)
        poison(worse)
        c.nodes(2)
        for job, out in ((first, "first"), (third, "third"), (child, "child"), (urgent, "urgent")):
            c.wait_job(job)
            c.assert_same(job, out)
        c.wait_job(middle, "failed")
        night = {j["job"]: j for j in c.status()["jobs"]}
        assert "worse" in night[middle]["detail"] and "model.safetensors" in night[middle]["detail"], night[middle]
        assert night[gone]["state"] == "cancelled", night[gone]
        assert night[orphan]["state"] == "queued", night[orphan]
        text = c.jobctl("status").stdout
        for word in ("first", "middle", "third", "refused", "model.safetensors", "middle failed"):
            assert word in text, f"the summary of the night does not say {word}:\n{text}"
        assert not os.path.exists(c.w.path("middle")), "a poisoned source has an output"
        # The source is mended: the job and the one behind it finish after all.
        for f in os.listdir(c.w.model):
            with open(os.path.join(c.w.model, f), "rb") as a, open(os.path.join(worse, f), "wb") as b:
                b.write(a.read())
        c.jobctl("resume", middle)
        for job, out in ((middle, "middle"), (orphan, "orphan")):
            c.wait_job(job)
            c.assert_same(job, out)
    print("cluster_test queue: two poisoned sources said so, everything else finished")


def renames():
    with Cluster("renames", **BUSY) as c:
        c.golden()
        maker = c.node("n1", env={"HOLDFAST_FAIL": "root.link_probe=eio"})   # stands for a server that knows no link(2)
        c.wait_spoken(maker)
        assert c.status()["commit"] == "rename" and "commits are renames" in c.jobctl("nodes").stdout + maker.said(), maker.said()
        maker.env = {}
        c.node("n2")
        c.node("n3")
        c.wait_spoken(*c.daemons)
        job = c.submit("a", "--shard-layers", "2,2,2", "--on", "n1,n2,n3")
        c.wait_progress(job, 30)
        c.end_all()
        links = [f for at, _, files in os.walk(c.root) for f in files if os.stat(os.path.join(at, f)).st_nlink > 1]
        assert not links, f"hard links in a root that must have none: {links}"
        for d in c.daemons:
            d.start()
        c.wait_spoken(*c.daemons)
        ch.wait_for("workers", c.workers)[0][0].kill()
        c.wait_job(job)
        c.assert_same(job, "a")
    print("cluster_test renames: without hard links, every daemon killed, same bytes")


def twins():
    with Cluster("twins", **BUSY) as c:
        c.golden()
        a = c.node("n1")
        c.wait_spoken(a)
        b = c.node("n1")
        assert b.end() == 2, f"the second of one name ended with {b.process.returncode}: {b.said()}"
        assert "n1" in b.said() and "--takeover" in b.said() and str(a.pid) in b.said(), b.said()
        assert a.running(), a.said()
        job = c.submit("a", "--shard-layers", "3,3")
        c.wait_progress(job, 16)
        said = len(a.said())
        b = c.node("n1", "--takeover")
        assert a.end() == 75, f"the first ended with {a.process.returncode}: {a.said()}"
        assert re.search(r"(?i)took over|taken over|takeover", a.said()[said:]), a.said()[said:]
        c.wait_job(job)
        c.assert_same(job, "a")
        assert b.running(), b.said()
    print("cluster_test twins: the second refused; with --takeover the first stopped with 75, same bytes")


def drain():
    with Cluster("drain", **BUSY) as c:
        c.golden()
        n1, n2 = c.nodes(2)
        job = c.submit("a", "--shard-layers", "3,3", "--on", "n1,n2")
        c.wait_progress(job, 16)
        asked = time.monotonic()
        n2.kill(signal.SIGTERM)
        assert n2.end() == 75, f"exit {n2.process.returncode}: {n2.said()}"
        assert time.monotonic() - asked < 40, "a drain must end within 30 s"
        done = c.wait_job(job)
        assert stage_nodes(done)[1] == "n1", f"the stage of a node that said goodbye stayed there: {done['stages']}"
        c.assert_same(job, "a")
        n2.start()

        c.wait_spoken(n2)
        job = c.submit("b", "--shard-layers", "3,3", "--on", "n1,n2")
        c.wait_progress(job, 16)
        c.jobctl("drain", "n2")
        moved_away(c, job, "n2")
        c.wait_job(job)
        c.assert_same(job, "b")
        assert n2.running(), f"a drained daemon stays: {n2.said()}"
        assert re.search(r"n2.*drain", c.jobctl("nodes").stdout), c.jobctl("nodes").stdout
        c.jobctl("undrain", "n2")
        job = c.submit("c", "--shard-layers", "3,3", "--on", "n1,n2")
        assert stage_nodes(c.wait_job(job)) == ["n1", "n2"], c.job(job)
        c.assert_same(job, "c")
    print("cluster_test drain: SIGTERM ends with 75, drained nodes keep out, undrained ones work; same bytes")


def zmqoff():
    with Cluster("zmqoff", suspect=6, **BUSY) as c:
        c.golden()
        c.nodes(3, "--listen", "off")
        job = c.submit("a", "--shard-layers", "2,2,2", "--on", "n1,n2,n3")
        c.wait_progress(job, 24)
        assert all(b["endpoint"] == "" for b in c.beats().values()), c.beats()
        assert stage_nodes(c.wait_job(job)) == ["n1", "n2", "n3"]
        c.assert_same(job, "a")
    print("cluster_test zmqoff: nodes without a voice finished through the directory, same bytes")


def garbage(endpoint, rng):
    """What a port scanner, a browser or an old peer might send."""
    host, port = re.fullmatch(r"tcp://\[?([^\]]*)\]?:(\d+)", endpoint).groups()
    greeting = b"\xff" + b"\0" * 8 + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + b"\0" * 32
    ready = b"\x04\x26\x05READY\x0bSocket-Type\0\0\0\6DEALER"
    for data in (b"GET / HTTP/1.0\r\n\r\n", b"\0" * 4096, rng.randbytes(65536), greeting + rng.randbytes(4096), greeting,
                 greeting + ready + b"\0\x20" + rng.randbytes(32), greeting + ready + b"\2" + (1 << 40).to_bytes(8, "big") + b"x" * 512):
        with socket.create_connection((host, int(port)), 5) as s:
            try:
                s.sendall(data)
                s.settimeout(0.2)
                s.recv(4096)
            except OSError:
                pass


def refuse():
    with Cluster("refuse", layers=4, suspect=3) as c:
        c.golden()
        n1, n2 = c.nodes(2)

        def refused(*args, words):
            p = c.jobctl(*args, check=2)
            for word in words:
                assert word in p.stderr, f"{' '.join(args)}: the message does not say {word!r}:\n{p.stderr}"
        refused(*c.submit_args("a", "--shard-layers", "2,2", "--on", "n1,n9"), words=["n9", "n1", "n2"])
        refused(*c.submit_args("a", "--shard-layers", "2,3"), words=["5", "4"])
        refused(*c.submit_args("a", "--shard-layers", "2,2", "--on", "n1"), words=["--on"])
        refused(*c.submit_args("a", "--after", "nobody"), words=["nobody"])
        refused(*c.submit_args("a", source=c.w.path("nowhere")), words=["nowhere"])
        refused("status", "nobody", words=["nobody"])
        refused("cancel", "nobody", words=["nobody"])
        refused("drain", "n9", words=["n9"])
        p = h.run([h.JOBCTL, "--root", c.w.path("no-root"), "status"], check=2)
        assert "no-root" in p.stderr, p.stderr

        rng = random.Random(4)
        for beat in c.beats().values():
            garbage(beat["endpoint"], rng)
        job = c.submit("a", "--shard-layers", "2,2", "--on", "n1,n2")
        refused(*c.submit_args("a"), words=['"a"'])
        c.wait_job(job)
        c.assert_same(job, "a")
        assert n1.running() and n2.running() and n1.starts == n2.starts == 1, "garbage on the port ended a daemon"

        blocked = c.w.path("blocked")
        with open(blocked, "w") as f:
            f.write("not a directory\n")
        d = c.node("n3", root=blocked)
        assert d.end() == 2 and "blocked" in d.said(), (d.process.returncode, d.said())
        d = c.node("bad name!")
        assert d.end() == 2 and "bad name!" in d.said(), (d.process.returncode, d.said())
    print("cluster_test refuse: every bad input got its line, nothing was lost")


def skip():
    """Sample 5 ends the workers of the first stage's node, sample 3 those of the second's."""
    with Cluster("skip", layers=4, suspect=3) as c:
        with open(c.w.calib) as f, open(c.w.path("fewer.jsonl"), "w") as out:
            out.writelines(line for i, line in enumerate(f) if i not in (3, 5))
        h.run(h.run_args(c.w.model, c.w.path("fewer.jsonl"), c.w.path("fewer")), check=0)
        c.node("n1", env={"HOLDFAST_FAIL_ALWAYS": "compute.sample@5=kill"})
        c.node("n2", env={"HOLDFAST_FAIL_ALWAYS": "compute.sample@3=kill"})
        split = ["--shard-layers", "2,2", "--on", "n1,n2"]

        def omitted(job):
            return [o["sample"] for o in c.job(job).get("omitted", [])]

        def assert_fewer(job, out):
            assert omitted(job) == [3, 5], c.job(job)
            assert all(s["samples_total"] == s["samples_done"] == 6 for s in c.job(job)["stages"]), c.job(job)
            for name in os.listdir(c.w.path("fewer")):
                if name in ("holdfast.json", "SHA256SUMS"):
                    continue
                with open(os.path.join(c.w.path("fewer"), name), "rb") as a, open(os.path.join(c.w.path(out), name), "rb") as b:
                    assert a.read() == b.read(), f"{out}: {name} differs from that of a run without samples 3 and 5"
            h.sums(c.w.path(out))
            h.run([h.JOBCTL, "fsck", c.run_dir(job), "--deep"], check=0)

        a = c.submit("a", *split, "--skip-samples", "2")
        c.wait_job(a)
        assert_fewer(a, "a")
        text = c.jobctl("status", a).stdout
        assert "2 of 8 samples left out: 3 (ended 2 workers), 5 (ended 2 workers)" in text, text

        b = c.submit("b", *split, "--skip-samples", "2")
        ch.wait_for("an omission", lambda: omitted(b))
        coordinator = c.coordinator(b)
        assert coordinator is not None, "nobody coordinates although a sample was left out a moment ago"
        coordinator.kill()
        coordinator.start()
        c.wait_job(b)
        assert_fewer(b, "b")

        few = c.submit("few", *split, "--skip-samples", "1")
        failed = c.wait_job(few, state="failed")
        assert "the budget of 1 skipped sample is used up by sample" in failed["detail"], failed
        assert len(omitted(few)) == 1, failed
    print("cluster_test skip: two samples left out by one coordinator and by its successor, and a budget that was too small")


def words():
    """What a log says of a stage that waited for space, and of a merge that is still there when its job is done."""
    with Cluster("words", layers=4) as c:
        c.golden()
        trace = c.w.path("trace")
        n1 = c.node("n1", env={"HOLDFAST_FAIL_TRACE": trace, "HOLDFAST_FAIL": "publish.P2@stage.00:4=enospc"})
        c.wait_spoken(n1)
        job = c.submit("a", "--shard-layers", "2,2")
        done = c.wait_job(job)
        n1.wait_said(r"stage 0 .*; trying again in 30 s: make room")
        assert [claim["reason"] for claim in done["stages"][0]["claims"]] == ["start", "no space"], done["stages"][0]
        c.assert_same(job, "a")
        n1.kill()
        with open(trace) as f:
            commits = sum(line.endswith(" publish.P6@merge\n") for line in f)
        # It stands still right behind its last word but one: the job is done, and its release is not said yet.
        n1.env = {"HOLDFAST_FAIL": f"publish.P6@merge:{commits - 1}=pause"}
        n1.start()
        job = c.submit("b", "--shard-layers", "2,2")
        c.wait_job(job)
        said = len(n1.said())
        c.wait_job(c.submit("c"))   # the daemon goes on beside it, and looks again and again
        for p in n1.workers():
            h.kill(p, signal.SIGCONT)
        c.assert_same(job, "b")
        assert "not this node's any more" not in n1.said(), n1.said()[said - 2000:]
        ch.wait_for("the merge to end", lambda: not n1.workers())
    print("cluster_test words: a stage that waited for space says so, a merge that is done is left alone, same bytes")


def nosource():
    if os.geteuid() != 0:
        print("SKIPPED: hiding a directory from a node needs root")
        return 77
    with Cluster("nosource", layers=4, suspect=5) as c:
        c.golden()
        n1 = c.node("n1")
        n2 = c.node("n2", hidden=c.w.model)
        c.wait_spoken(n1, n2)
        job = c.submit("a", "--shard-layers", "2,2", "--on", "n1,n2")
        done = c.wait_job(job)
        assert stage_nodes(done) == ["n1", "n1"], done["stages"]
        for text in (n2.said(), c.jobctl("status", job).stdout):
            assert c.w.model in text and "n2" in text, f"not a word about the source that n2 does not have:\n{text}"
        c.assert_same(job, "a")
    print("cluster_test nosource: a node without the source said so and got nothing more, same bytes")
    return 0


def oom():
    import memory_test
    # Long sequences: attention scores make samples in flight expensive beside the small weights.
    with Cluster("oom", layers=4, hidden=256, ffn=1024, heads=8, kv=4, vocab=512, samples=12, length=2048) as c:
        c.golden()
        for limit in [x << 20 for x in (420, 360, 320, 280, 250, 225, 200)]:
            group = memory_test.make_group(limit)
            if group is None:
                print("SKIPPED: no writable memory cgroup")
                return 77
            d = c.node("n1", "--threads", "8", "--memory", "64GiB", cgroup=group)
            out = f"oom{limit >> 20}"
            job = c.submit(out)
            ch.wait_for("the job to end", lambda: c.job(job)["state"] in ("done", "failed") or not d.running(), every=0.5)
            survived, ooms = d.running(), len(re.findall(r"worker died \(out of memory", d.said()))
            state = c.job(job)
            print(f"limit {limit >> 20} MiB: job {state['state']}, daemon {'alive' if survived else 'dead'}, {ooms} OOM kills", flush=True)
            d.kill(signal.SIGTERM)
            d.end()
            os.rmdir(group)
            assert survived, "the kernel chose the daemon, not its worker"
            if state["state"] == "done" and ooms > 0:
                assert "one step smaller" in d.said(), d.said()
                assert state["restarts"].get("out_of_memory", 0) >= 1, state
                c.assert_same(job, out)
                print("cluster_test oom: OOM-killed, started again smaller, same bytes")
                return 0
            if state["state"] == "failed":      # nothing is lost: where there is memory it finishes
                c.jobctl("resume", job)
                other = c.node("n2")
                c.wait_job(job)
                c.assert_same(job, out)
                other.kill()
        raise AssertionError("no limit led to an OOM kill and a finish")


MODES = {f.__name__: f for f in (golden, devices, bad_device, lost, streamed, back, netns, allnodes, queue, renames, twins, drain, zmqoff, refuse, skip, words, nosource, oom)}

if __name__ == "__main__":
    what = sys.argv[1] if len(sys.argv) > 1 else ""
    if what in ("kills", "points"):
        {"kills": kills, "points": points}[what](int(sys.argv[2]) if len(sys.argv) > 2 else 12, int(sys.argv[3]) if len(sys.argv) > 3 else random.SystemRandom().randrange(1 << 30))
    elif what in MODES:
        sys.exit(MODES[what]())
    else:
        sys.exit(__doc__)
