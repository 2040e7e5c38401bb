#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What `jobctl gc` removes and what it leaves, with real programs; and jobs of a root that a repair has opened again.

  gc_test.py run       a run directory: refused while open, killed at every removal, done; then the output is lost and made again
  gc_test.py omitted   a run that leaves a sample out when layers were quantized with it already: open, sealed again, done
  gc_test.py root      a root with a job that is done, one cancelled, one queued and one that is being worked on
  gc_test.py noroot    ROOT is lost while a job is half-done: fsck says what is left to do, and it works
  gc_test.py reopened  a job of a root that is done is opened by `fsck --repair`: `jobctl resume JOB` and the daemons make the same bytes
"""
import json
import os
import shutil
import sys

from cluster_harness import Cluster, h, wait_for
import kill_test   # tests/crash

STAGES = ["--shard-layers", "2,1,1"]


def files(top, suffix=""):
    return sorted(os.path.join(d, n) for d, _, names in os.walk(top) for n in names if n.endswith(suffix))


def packs(run):
    return files(os.path.join(run, "pack"), ".pack")


def slots(run):
    return {p: os.path.getsize(p) for p in files(os.path.join(run, "log"), ".seg")}


def gc(where, *options, check=0, **more):
    p = h.run([h.JOBCTL, "gc", where, "--json", *options], check=check, **more)
    return json.loads(p.stdout) if p.stdout else None


def run_dir():
    with h.Workspace("gc") as w:
        w.make_golden()
        name, run = "a", w.path("a.run")
        # Stopped when all stages are sealed: the merge finds no space.
        h.run(w.args(name, *STAGES), env={"HOLDFAST_FAIL": "publish.P2@merge=enospc"}, check=75)
        before = slots(run)
        told = gc(run)
        assert told["jobs"][0]["state"] == "open", told
        assert told["jobs"][0]["packs"]["files"] == 0, told
        assert "neither done nor cancelled" in told["jobs"][0]["kept"], told
        assert all(slots(run)[p] == size for p, size in before.items()), "a slot is gone"
        early = told["jobs"][0]["cuts"]["files"]
        assert early > 0, told
        w.fsck(name)
        h.run([h.JOBCTL, "resume", run, "--device", "cpu"], check=0)
        w.assert_golden(name)
        would = gc(run, "--dry-run")
        assert would["jobs"][0]["state"] == "done" and would["files"] == len(packs(run)) > 0, would
        # Killed at each removal in turn: the same line again goes on.
        kills = 0
        while packs(run):
            p = h.run([h.JOBCTL, "gc", run], env={"HOLDFAST_FAIL": "gc.claimed" if kills == 0 else "gc.remove:2"})
            if p.returncode == 0:
                break
            assert p.returncode == -9, p
            kills += 1
            w.fsck(name)
        again = gc(run)
        assert again["files"] == 0, again
        assert not packs(run) and kills > 1
        w.fsck(name)
        p = h.run([h.JOBCTL, "resume", run, "--device", "cpu"], check=0)
        assert "already done" in p.stdout, p.stdout
        # What the output would be written from is gone: said clearly, and made again.
        shutil.rmtree(w.path(name))
        p = h.run([h.JOBCTL, "resume", run, "--device", "cpu"], check=2)
        assert "gc" in p.stderr and "--repair" in p.stderr, p.stderr
        assert h.run([h.JOBCTL, "gc", run]).returncode == 2, "gc must not touch a job whose output is gone"
        h.run([h.JOBCTL, "fsck", run, "--repair"], check=3)
        h.run([h.JOBCTL, "resume", run, "--device", "cpu"], check=0)
        w.assert_golden(name)
        w.fsck(name)
        assert gc(run, "--quarantine", "all")["jobs"][0]["quarantine"]["files"] > 0
        assert not os.listdir(os.path.join(run, "quarantine"))
        assert gc(run, "--quarantine", "all")["files"] == 0
        w.fsck(name)
    print(f"gc_test run: {early} cuts of an open job, then {would['files']} packs of a finished one in spite of {kills} kills; a lost output was made again")


def omitted():
    """Sample 3 overflows in the second stage: when that is found, the first one is sealed and has to quantize its layers again."""
    with h.Workspace("gc-omitted") as w:
        kill_test.overflow(w, sample=3)
        name, run = "a", w.path("a.run")
        resume = [h.JOBCTL, "resume", run, "--device", "cpu"]
        h.run(w.args(name, "--skip-samples", "1", *STAGES), env={"HOLDFAST_FAIL_ALWAYS": "publish.P2@stage.01=enospc"}, check=75)
        first = set(packs(run))
        # Said that it is left out, and nothing made again yet: nothing may go.
        h.run(resume, env={"HOLDFAST_FAIL": "omit@3=kill"}, check=-9)
        assert gc(run)["files"] == 0 and first <= set(packs(run))
        # Sealed again, not yet merged: the layers of the first time, and every cut, that of the sample as well.
        h.run(resume, env={"HOLDFAST_FAIL": "publish.P2@merge=enospc"}, check=75)
        before, would = slots(run), gc(run, "--dry-run")
        there = len(packs(run))
        told = gc(run)
        job = told["jobs"][0]
        assert told["files"] == would["files"] == there - len(packs(run)), (told, would)
        assert job["state"] == "open" and job["packs"]["files"] > 0, job    # of a layer of the first stage; where the sample had no say, it is the same pack
        assert job["cuts"]["files"] == 8 + 8, job                           # of eight samples, before layer 2 and before layer 3
        assert slots(run) == before and gc(run)["files"] == 0
        w.fsck(name)
        h.run(resume, check=0)
        kill_test.assert_without(w, name, 3)
        told = gc(run)
        assert told["jobs"][0]["state"] == "done" and told["files"] > 0 and not packs(run), told
        assert gc(run)["files"] == 0
        p = h.run(resume, check=0)
        assert "already done" in p.stdout, p.stdout
        kill_test.assert_without(w, name, 3)
    print(f"gc_test omitted: {would['files']} packs of layers and cuts that an omission had made worthless went from an open run, the bytes were those of a run without the sample")


def root():
    with Cluster("gc", layers=4, hidden=128, ffn=512) as c:
        c.golden()
        done = c.submit("done", *STAGES)
        n1, = c.nodes(1)
        c.wait_job(done)
        n1.kill()
        # Begun and cancelled; begun and left alone with its daemon; never begun.
        cancelled = c.submit("cancelled", *STAGES)
        n1.start()
        c.wait_progress(cancelled, 3)
        c.jobctl("cancel", cancelled)
        n1.kill()
        running = c.submit("running", *STAGES)
        queued = c.submit("queued", "--after", "running")
        n1.env = {"HOLDFAST_FAIL": "publish.P1@stage.02:4=pause"}   # it stands still half-way
        n1.start()
        c.wait_progress(running, 3)
        logs = {j: slots(c.run_dir(j)) for j in (done, cancelled, running, queued)}
        kept = {j: len(packs(c.run_dir(j))) for j in (cancelled, queued)}
        told = {j["id"]: j for j in gc(c.root)["jobs"]}
        assert told[done]["state"] == "done" and told[done]["packs"]["files"] > 0 and not packs(c.run_dir(done)), told[done]
        assert told[cancelled]["state"] == "cancelled" and told[cancelled]["packs"]["files"] == 0, told[cancelled]
        assert told[running]["state"] == "open" and told[running]["packs"]["files"] == 0, told[running]
        assert told[queued]["state"] == "open" and told[queued]["cuts"]["files"] == 0, told[queued]
        assert not any(j["refused"] for j in told.values()), told
        for j, before in logs.items():
            after = slots(c.run_dir(j))
            assert all(after.get(p) == size for p, size in before.items()), f"a slot of {j} is gone"
        assert len(packs(c.run_dir(queued))) == kept[queued]
        n1.kill()
        n1.env = {}
        n1.start()
        c.wait_job(running)
        c.wait_job(queued)
        c.jobctl("resume", cancelled)
        c.wait_job(cancelled)
        for j, name in ((done, "done"), (running, "running"), (queued, "queued"), (cancelled, "cancelled")):
            c.assert_same(j, name)
        n1.kill(sig=15)
        n1.end()
        assert sum(j["packs"]["files"] > 0 for j in gc(c.root)["jobs"]) == 3
        assert gc(c.root)["files"] == 0
        for j, name in ((done, "done"), (running, "running"), (queued, "queued"), (cancelled, "cancelled")):
            c.assert_same(j, name)
        h.run([h.JOBCTL, "fsck", c.root], check=0)
    print("gc_test root: one done, one cancelled, one queued, one running: what was needed stayed, and all ended in the same bytes")


def reopened():
    with Cluster("reopened", layers=4) as c:
        c.golden()
        job = c.submit("a", *STAGES)
        n1, = c.nodes(1)
        c.wait_job(job)
        wait_for("the queue says that it is done", lambda: "is done" in c.jobctl("resume", job).stdout)
        for round, alive in (("with the daemons running", True), ("with all daemons stopped", False)):
            if not alive:
                n1.kill(sig=15)
                n1.end()
            shutil.rmtree(c.w.path("a"))
            found = h.run([h.JOBCTL, "fsck", c.run_dir(job)])
            assert found.returncode == 4 and f"resume {job}" in found.stdout, found.stdout
            mended = h.run([h.JOBCTL, "fsck", c.run_dir(job), "--repair"], check=3)
            assert f"work is open again: jobctl --root {c.root} resume {job}" in mended.stdout, mended.stdout
            said = c.jobctl("resume", job).stdout
            assert "is in the queue again" in said, said
            if not alive:
                n1.start()
            c.wait_job(job)
            wait_for("the queue says that it is done", lambda: "is done" in c.jobctl("resume", job).stdout)
            c.assert_same(job, "a")
            print(f"  {round}: the same bytes", flush=True)
        # Damage of the ledger that reaches back to a sample, not the output alone.
        shutil.rmtree(c.w.path("a"))
        for p in packs(c.run_dir(job)):
            os.unlink(p)
        h.run([h.JOBCTL, "fsck", c.run_dir(job), "--repair"], check=3)
        c.jobctl("resume", job)
        c.wait_job(job)
        c.assert_same(job, "a")
        h.run([h.JOBCTL, "fsck", c.root], check=0)
    print("gc_test reopened: a job of a root that a repair opened again is finished by its daemons, three times, in the same bytes")


def noroot():
    with Cluster("noroot", layers=4, hidden=128, ffn=512) as c:
        c.golden()
        job = c.submit("a", *STAGES)
        n1, = c.nodes(1)
        c.wait_progress(job, 3)
        n1.kill()
        os.unlink(os.path.join(c.root, "ROOT"))
        run = c.run_dir(job)
        p = h.run([h.JOBCTL, "fsck", c.root])
        assert p.returncode & 4 and f"jobctl resume {c.root}/jobs/ID" in p.stdout, p.stdout
        h.run([h.JOBCTL, "fsck", c.root, "--repair"])
        assert not os.path.exists(os.path.join(c.root, "ROOT")), "fsck has made a ROOT up"
        h.run([h.JOBCTL, "resume", run, "--device", "cpu", "--threads", "1"], check=0)
        c.w.assert_golden("a")
        h.run([h.JOBCTL, "fsck", run, "--deep"], check=0)
    print("gc_test noroot: without ROOT the job was finished alone, in the same bytes")


{"noroot": noroot, "run": run_dir, "omitted": omitted, "root": root, "reopened": reopened}[sys.argv[1]]()
