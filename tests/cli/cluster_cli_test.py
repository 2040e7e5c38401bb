#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The commands about a root, with no daemon anywhere: what they say, what they refuse, what is left when they die half-way.

One function per case, each with a fresh tiny model and root. Usage: cluster_cli_test.py [case ...]
"""
import json
import os
import re
import stat
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../crash"))
import harness as h  # noqa: E402

CASES = []
ID = re.compile(r"^[0-9a-f]{12}$")


def case(f):
    CASES.append(f)
    return f


class Root:
    def __init__(self, w):
        self.w = w
        self.dir = w.path("root")

    def jobctl(self, *args, check=0, env=None):
        return h.run([h.JOBCTL, "--root", self.dir, *args], check=check, env=env)

    def submit_args(self, out, *extra, source=None, calib=None):
        return ["submit", "--source", source or self.w.model, "--calib", calib or self.w.calib, "--out", self.w.path(out), "--seq-len", "32", *extra]

    def submit(self, out, *extra, **more):
        lines = self.jobctl(*self.submit_args(out, *extra, **more)).stdout.splitlines()
        assert lines and ID.match(lines[-1]), f"the last line of submit is no id: {lines}"
        return lines[-1]

    def refused(self, *args, words, check=2, env=None):
        p = self.jobctl(*args, check=check, env=env)
        lines = p.stderr.splitlines()
        assert len(lines) == 1 and lines[0].startswith("jobctl: "), f"not one clear line:\n{p.stderr}"
        for word in words:
            assert word in p.stderr, f"the message does not say {word!r}:\n{p.stderr}"
        return p

    def status(self, *args):
        return json.loads(self.jobctl("status", *args, "--json").stdout)

    def jobs(self):
        return {j["name"]: j for j in self.status()["jobs"]}

    def slots(self):
        folder = os.path.join(self.dir, "log", "queue")
        return sorted(os.listdir(folder)) if os.path.isdir(folder) else []


@case
def submit_without_a_daemon_waits(r):
    p = r.jobctl(*r.submit_args("a", "--name", "first"))
    job = p.stdout.strip()
    assert ID.match(job) and p.stdout.count("\n") == 1, p.stdout
    for word in ("plan: 1 stage", "8 samples", "to read", "to write", "layers 0-3", "no daemon", "holdfastd --root " + r.dir):
        assert word in p.stderr, f"{word!r} is not in:\n{p.stderr}"
    text = r.jobctl("status").stdout
    for word in ("first", "queued", "waits for a daemon", "from the ledger alone: no daemon answers", "1 queued", job):
        assert word in text, f"{word!r} is not in:\n{text}"
    assert not os.path.exists(r.w.path("a")), "an output appeared"
    h.run([h.JOBCTL, "fsck", os.path.join(r.dir, "jobs", job), "--deep"], check=0)
    assert os.listdir(os.path.join(r.dir, "tmp")) == [], "submit left its temporary files"


@case
def run_directory_of_a_submitted_job(r):
    """It is an ordinary run directory: status of it and resume of it on one machine work, with the same result as run."""
    golden = r.w.make_golden("--seq-len", "32")
    job = r.submit("a")
    run_dir = os.path.join(r.dir, "jobs", job)
    one = json.loads(h.run([h.JOBCTL, "status", run_dir, "--json"], check=0).stdout)
    assert one["schema"] == 1 and one["out"] == r.w.path("a") and one["samples"] == 8, one
    h.run([h.JOBCTL, "resume", run_dir, "--device", "cpu"], check=0)
    assert h.sums(r.w.path("a")) == golden
    assert r.jobs()["a"]["state"] == "done", "the job's own ledger says so"


@case
def json_of_submit_and_status(r):
    p = r.jobctl(*r.submit_args("a", "--shard-layers", "3,1", "--priority", "-5", "--reproducible", "--json"))
    said = json.loads(p.stdout)
    assert said["event"] == "submitted" and ID.match(said["job"]) and said["name"] == "a", said
    assert [(s["first_layer"], s["last_layer"]) for s in said["plan"]["stages"]] == [(0, 3), (3, 4)], said
    assert said["plan"]["bytes_read"] > 0 and said["plan"]["bytes_written"] > 0 and said["plan"]["seconds"] is None, said
    doc = r.status()
    assert doc["schema"] == 2 and doc["root"] == r.dir and doc["answered_by"] == "" and doc["nodes"] == [], doc
    job = doc["jobs"][0]
    for key, kind in {"job": str, "name": str, "state": str, "detail": str, "next": str, "source": str, "out": str, "priority": int, "after": list,
                      "shard_layers": list, "on": list, "retries": int, "submitted_wall_ns": int, "ended_wall_ns": int, "folded": bool, "stages": list,
                      "phase": str, "moves": list, "merge": dict, "shares": list, "restarts": dict, "recipe": str, "numerics": str, "samples": int,
                      "seq_len": int, "stale_records": int, "nondeterminism": int}.items():
        assert isinstance(job[key], kind), f"{key}: {job.get(key)!r}"
    assert "eta_seconds" in job and job["priority"] == -5 and job["shard_layers"] == [3, 1] and job["state"] == "queued", job
    assert [(s["first_layer"], s["last_layer"], s["phase"], s["node"]) for s in job["stages"]] == [(0, 3, "waiting", ""), (3, 4, "waiting", "")], job["stages"]
    assert doc["summary"]["states"] == {"queued": 1}, doc["summary"]
    assert r.status("a")["jobs"] == r.status(said["job"])["jobs"] == r.status(said["job"][:6])["jobs"] == [job]
    nodes = json.loads(r.jobctl("nodes", "--json").stdout)
    assert nodes["schema"] == 2 and nodes["nodes"] == [], nodes


@case
def every_documented_field_is_there(r):
    """Names in backticks at the beginning of a row of the first two tables of docs/status-json.md."""
    r.submit("a")
    doc = r.status()
    page = open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../docs/status-json.md")).read()
    part = page.split("## Of a root: schema 2")[1].split("`stages[]`:")[0]
    top, jobs = part.split("\n`jobs[]`:\n")
    unfolded_too = {"report"}  # of a finished job only
    for where, text in ((doc, top), (doc["jobs"][0], jobs)):
        for row in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE):
            for name in re.findall(r"`([a-z_]+)(?:\[\])?`", row):
                assert name in where or name in unfolded_too, f"docs/status-json.md speaks of {name}, which is not there: {sorted(where)}"


@case
def root_from_the_environment_and_behind_the_command(r):
    env = {"HOLDFAST_ROOT": r.dir}
    p = h.run([h.JOBCTL, *r.submit_args("a")], env=env, check=0)
    assert ID.match(p.stdout.strip()), p.stdout
    assert "queued" in h.run([h.JOBCTL, "status"], env=env, check=0).stdout
    assert "queued" in h.run([h.JOBCTL, "status", "a", "--root", r.dir], check=0).stdout
    # The line says more than the environment.
    other = h.run([h.JOBCTL, "status", "--root", r.w.path("elsewhere")], env=env)
    assert other.returncode == 2 and "elsewhere" in other.stderr, other.stderr
    p = h.run([h.JOBCTL, "status"])
    assert p.returncode == 2 and "HOLDFAST_ROOT" in p.stderr, p.stderr


@case
def a_root_does_not_disturb_run(r):
    env = {"HOLDFAST_ROOT": r.dir}
    h.run(r.w.args("b"), env=env, check=0)
    assert not os.path.exists(r.dir), "run made a root"
    for args in (["status", r.w.path("b.run"), "--json"], ["resume", r.w.path("b.run")], ["fsck", r.w.path("b.run")]):
        h.run([h.JOBCTL, *args], env=env, check=0)
    r.submit("a")
    here = subprocess.run([h.JOBCTL, "status", "b.run", "--json"], cwd=r.w.dir, env={**os.environ, **env}, capture_output=True, text=True)
    assert here.returncode == 0 and json.loads(here.stdout)["schema"] == 1, (here.stdout, here.stderr)
    p = h.run([h.JOBCTL, "--root", r.dir, *r.w.args("c")[1:]])
    assert p.returncode == 2 and "submit" in p.stderr, p.stderr


@case
def names_are_unique(r):
    first = r.submit("a")
    before = r.slots()
    r.refused(*r.submit_args("a"), words=['"a"', first, "--name"])
    r.refused(*r.submit_args("b", "--name", "a"), words=['"a"', first])
    r.refused(*r.submit_args("a", "--name", "b"), words=["--out", r.w.path("a"), '"a"'])
    assert r.slots() == before, "a duplicate was written down"
    assert list(r.jobs()) == ["a"]


@case
def two_of_one_name_at_once(r):
    r.submit("z")  # the root is there
    args = [h.JOBCTL, "--root", r.dir, *r.submit_args("a")]
    both = [subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(6)]
    ends = [(p.communicate(), p.returncode) for p in both]
    assert sorted(rc for _, rc in ends) == [0, 2, 2, 2, 2, 2], ends
    assert len(r.status()["jobs"]) == 2
    assert len(os.listdir(os.path.join(r.dir, "jobs"))) == 2, "losers left their directories"


@case
def bad_input_is_refused_and_remembered(r):
    empty = r.w.path("empty.jsonl")
    open(empty, "w").close()
    os.makedirs(r.w.path("there"))
    r.submit("good")
    cases = {
        "nosource": (r.submit_args("nosource", source=r.w.path("nowhere")), ["nowhere", "config.json"]),
        "nocalib": (r.submit_args("nocalib", calib=empty), ["empty.jsonl"]),
        "split": (r.submit_args("split", "--shard-layers", "2,3"), ["5", "4"]),
        "unknown": (r.submit_args("unknown", "--shard-layers", "2,2", "--on", "n1,n9"), ["n1", "holdfastd", "shared"]),
        "length": (r.submit_args("length", "--shard-layers", "2,2", "--on", "n1"), ["--on", "1", "2"]),
        "after": (r.submit_args("after", "--after", "nobody"), ["--after", "nobody", "good"]),
        "recipe": (r.submit_args("recipe", "--recipe", "int3"), ["int3", "nvfp4"]),
        "there": (r.submit_args("there"), ["there", "exists"]),
    }
    for args, words in cases.values():
        r.refused(*args, words=words)
    jobs = r.jobs()
    for name, (_, words) in cases.items():
        assert jobs[name]["state"] == "refused" and words[0] in jobs[name]["detail"], jobs[name]
    text = r.jobctl("status").stdout
    assert "8 refused (nosource, " in text and "nowhere" in text, text
    assert len(os.listdir(os.path.join(r.dir, "jobs"))) == 1, "a refused job has a directory"
    # What was wrong is mended: the name is free.
    job = r.submit("split", "--shard-layers", "2,2")
    assert r.status("split")["jobs"][0]["job"] == job
    r.refused("resume", "nosource", words=["refused", "submit"])


@case
def usage_is_refused(r):
    for args, word in ((["submit", "--source", r.w.model], "--calib"), (r.submit_args("a", "--priority", "101"), "--priority"),
                       (r.submit_args("a", "--on", "n1"), "--shard-layers"), (["cancel"], "JOB"), ([], "subcommand")):
        p = r.jobctl(*args, check=2)
        assert word in p.stderr, (args, p.stderr)
    r.refused(*r.submit_args("a", "--name", "no good"), words=["no good", "letter"])
    assert not os.path.exists(r.dir), "a usage error made a root"
    r.refused("status", words=[r.dir, "no root", "submit"])


@case
def refusals_in_json(r):
    p = r.jobctl(*r.submit_args("a", "--shard-layers", "1,1", "--json"), check=2)
    said = json.loads(p.stdout)
    assert said["event"] == "error" and said["exit"] == 2 and p.stderr == "", (p.stdout, p.stderr)


@case
def things_that_are_no_root(r):
    os.makedirs(r.dir)
    with open(os.path.join(r.dir, "thesis.tex"), "w") as f:
        f.write("x")
    r.refused(*r.submit_args("a"), words=[r.dir, "thesis.tex"])
    assert os.listdir(r.dir) == ["thesis.tex"], "something was written beside it"
    h.run(r.w.args("b"), check=0)
    p = h.run([h.JOBCTL, "--root", r.w.path("b.run"), *r.submit_args("a")], check=2)
    assert "run directory" in p.stderr, p.stderr
    blocked = r.w.path("blocked")
    open(blocked, "w").close()
    p = h.run([h.JOBCTL, "--root", blocked, *r.submit_args("a")], check=2)
    assert "blocked" in p.stderr, p.stderr


@case
def read_only_root(r):
    # root may write anywhere, so a read-only mount is the honest test.
    os.makedirs(r.dir)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=10m", "none", r.dir], stderr=subprocess.DEVNULL).returncode != 0:
        return
    try:
        r.refused(*r.submit_args("a"), words=[r.dir, "written"])
    finally:
        subprocess.run(["umount", r.dir], check=True)


@case
def no_space(r):
    if subprocess.run(["sh", "-c", f"mkdir {r.dir} && mount -t tmpfs -o size=1m none {r.dir}"], stderr=subprocess.DEVNULL).returncode != 0:
        return
    try:
        big = r.w.path("big")
        h.make_model(big, layers=2, hidden=512, ffn=2048, heads=8, kv=8)
        r.refused(*r.submit_args("a", source=big), words=["space", r.dir])
    finally:
        subprocess.run(["umount", r.dir], check=True)


@case
def killed_half_way_leaves_no_job(r):
    r.submit("first")
    for point in ("publish.P4@job", "publish.P5@job:2", "publish.P0@queue", "publish.P3@queue"):
        p = r.jobctl(*r.submit_args("a"), env={"HOLDFAST_FAIL": point + "=kill"}, check=-9)
        assert p.stdout == "", p.stdout
        assert list(r.jobs()) == ["first"], f"{point}: {r.jobs()}"
    job = r.submit("a")
    assert r.jobs()["a"]["job"] == job


@case
def killed_after_the_commit_is_submitted(r):
    r.submit("first")
    r.jobctl(*r.submit_args("a"), env={"HOLDFAST_FAIL": "publish.P5@queue=kill"}, check=-9)
    assert r.jobs()["a"]["state"] == "queued", r.jobs()
    r.refused(*r.submit_args("a"), words=['"a"'])


@case
def after_and_priority(r):
    a = r.submit("a")
    r.submit("b", "--after", "a", "--after", a[:8])
    r.submit("c", "--after", "b", "--priority", "100")
    jobs = r.jobs()
    assert jobs["b"]["after"] == ["a"] or jobs["b"]["after"] == ["a", "a"], jobs["b"]
    assert jobs["b"]["detail"].startswith("waits for a") and jobs["c"]["detail"] == "waits for b", (jobs["b"], jobs["c"])
    r.jobctl("cancel", "a")
    detail = r.jobs()["b"]["detail"]
    assert "a was cancelled" in detail and "resume a" in detail and "cancel b" in detail, detail
    r.refused(*r.submit_args("d", "--after", "a"), words=["--after a", "cancelled"])


@case
def cancel_and_resume(r):
    job = r.submit("a")
    assert "no resume" in r.jobctl("resume", "a").stdout
    p = r.jobctl("cancel", "a")
    assert "cancelled" in p.stdout and "resume a" in p.stdout, p.stdout
    now = r.jobs()["a"]
    assert now["state"] == "cancelled" and "by" in now["detail"] and now["next"].endswith("resume a"), now
    before = r.slots()
    assert "already" in r.jobctl("cancel", job).stdout and r.slots() == before
    p = json.loads(r.jobctl("resume", job[:5], "--json").stdout)
    assert p["job"] == job and "no daemon is alive" in p["text"] and "holdfastd" in p["text"], p
    now = r.jobs()["a"]
    assert now["state"] == "queued" and now["retries"] == 1, now
    r.refused("resume", "a", "--threads", "2", words=["--threads", "run directory"])
    for command in ("cancel", "resume", "status", "logs"):
        r.refused(command, "nobody", words=["nobody", "a (" + job])


@case
def output_of_a_cancelled_job_may_be_given_away(r):
    r.submit("a")
    r.jobctl("cancel", "a")
    r.submit("a", "--name", "again")
    r.refused("resume", "a", words=["output directory", '"again"'])


@case
def drain_of_nobody(r):
    r.submit("a")
    for command in ("drain", "undrain"):
        r.refused(command, "n9", words=["n9", "known: none"])


def known_node(r, name, memory):
    """A node that was here and is gone: its daemon is killed as soon as the root knows it."""
    daemon = subprocess.Popen([os.path.join(h.BIN, "holdfastd"), "--root", r.dir, "--name", name, "--device", "cpu", "--memory", memory],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not (os.path.isdir(r.dir + "/log/node." + name) and os.listdir(r.dir + "/log/node." + name)):
            assert daemon.poll() is None and time.monotonic() < deadline, f"{name} did not come up"
            time.sleep(0.05)
    finally:
        daemon.kill()
        daemon.wait()


@case
def nodes_that_were_there(r):
    known_node(r, "small", "410MB")
    known_node(r, "tiny", "10MB")
    nodes = {n["node"]: n for n in json.loads(r.jobctl("nodes", "--json").stdout)["nodes"]}
    assert nodes["small"]["life"] == nodes["tiny"]["life"] == "silent", nodes
    assert nodes["small"]["memory_bytes"] == 410000000 and nodes["small"]["version"] and nodes["small"]["numerics"], nodes
    text = r.jobctl("nodes").stdout
    assert re.search(r"small +silent", text) and "410 MB" in text and "GFLOP/s" in text, text
    # The plan is made for the nodes that are known, and says that none of them lives.
    p = r.jobctl(*r.submit_args("a", "--shard-layers", "3,1", "--on", "small,small"))
    assert "layers 0-2 on small" in p.stderr and "of its 410 MB" in p.stderr and "roughly" in p.stderr and "no daemon is alive" in p.stderr, p.stderr
    r.refused(*r.submit_args("b", "--shard-layers", "3,1", "--on", "small,tiny"), words=["--on tiny", "bytes", "10.0 MB"])
    r.refused(*r.submit_args("c", "--shard-layers", "3,1", "--on", "small,n9"), words=["n9", "small, tiny"])
    assert "layers 3-3 on small" in r.jobctl(*r.submit_args("d", "--shard-layers", "3,1")).stderr


@case
def what_fits_no_node_is_refused(r):
    known_node(r, "tiny", "10MB")
    for extra in ([], ["--shard-layers", "2,2"]):
        p = r.refused(*r.submit_args("a", *extra), words=["tiny", "short"])
        assert re.search(r"\d", p.stderr), p.stderr
    assert [j["state"] for j in r.status()["jobs"]] == ["refused", "refused"]


@case
def drain_and_undrain(r):
    known_node(r, "n1", "410MB")
    p = r.jobctl("drain", "n1")
    assert "undrain n1" in p.stdout, p.stdout
    before = r.slots()
    assert "already" in r.jobctl("drain", "n1").stdout and r.slots() == before
    assert re.search(r"n1 .*drained", r.jobctl("nodes").stdout) and r.status()["nodes"][0]["drained"]
    said = json.loads(r.jobctl("undrain", "n1", "--json").stdout)
    assert said["event"] == "undrain" and said["node"] == "n1", said
    assert not r.status()["nodes"][0]["drained"]
    r.refused("drain", "n2", words=["n2", "known: n1"])


@case
def nodes_of_an_empty_root(r):
    r.submit("a")
    p = r.jobctl("nodes")
    assert "none yet" in p.stdout and "holdfastd" in p.stdout, p.stdout


@case
def logs_by_time(r):
    job = r.submit("a")
    r.refused("logs", "a", words=["no node has written a log", "status a"])
    folder = os.path.join(r.dir, "jobs", job, "logs")
    os.makedirs(folder)
    with open(os.path.join(folder, "n1.log"), "w") as f:
        f.write("2026-11-21T03:00:00Z one\n  more\n2026-11-21T03:00:09Z three\n")
    with open(os.path.join(folder, "n2.log"), "w") as f:
        f.write("2026-11-21T03:00:05Z two\n")
    assert [line.split()[-1] for line in r.jobctl("logs", "a").stdout.splitlines()] == ["one", "more", "two", "three"]
    r.refused("logs", "a", "--node", "n3", words=["n3", "known"])
    follow = subprocess.Popen([h.JOBCTL, "--root", r.dir, "logs", "a", "--follow"], stdout=subprocess.PIPE, text=True)
    try:
        for _ in range(4):
            follow.stdout.readline()
        with open(os.path.join(folder, "n2.log"), "a") as f:
            f.write("2026-11-21T03:00:11Z four\n")
        assert follow.stdout.readline() == "n2 2026-11-21T03:00:11Z four\n"
    finally:
        follow.kill()
        follow.wait()


@case
def keys(r):
    p = r.jobctl("keygen", "n1", "n2")
    folder = os.path.join(r.dir, "keys")
    assert sorted(os.listdir(folder)) == sorted(f"{n}.{k}" for n in ("jobctl", "n1", "n2") for k in ("public", "secret")), os.listdir(folder)
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    for name in os.listdir(folder):
        assert name.endswith(".public") or stat.S_IMODE(os.stat(os.path.join(folder, name)).st_mode) & 0o077 == 0, name
    assert "holdfastd --root " + r.dir + " --name n1" in p.stdout and "made" in p.stdout, p.stdout
    was = open(os.path.join(folder, "n1.secret")).read()
    assert "kept" in r.jobctl("keygen", "n1").stdout
    assert open(os.path.join(folder, "n1.secret")).read() == was, "a key was replaced"
    assert len(set(open(os.path.join(folder, f"{n}.secret")).read() for n in ("jobctl", "n1", "n2"))) == 3
    r.refused("keygen", "../x", words=["../x"])
    assert os.uname().nodename.split(".")[0] in r.jobctl("keygen").stdout


@case
def an_old_queue_is_listed_without_reading_every_job(r):
    first = r.submit("j0")
    for i in range(1, 18):
        r.submit(f"j{i}")
    for i in range(18):
        r.jobctl("cancel", f"j{i}")
    jobs = r.jobs()
    assert [j["folded"] for j in jobs.values()] == [False, False] + [True] * 16, [j["folded"] for j in jobs.values()]
    assert r.status(first)["jobs"][0]["folded"]


@case
def fsck_of_the_root(r):
    r.submit("a")
    r.submit("b")
    assert "2 jobs; clean" in r.jobctl("fsck").stdout
    assert "2 jobs; clean" in h.run([h.JOBCTL, "fsck", r.dir], check=0).stdout
    p = h.run([h.JOBCTL, "fsck"], check=16)
    assert "which directory" in p.stderr, p.stderr
    h.run([h.JOBCTL, "fsck", "--no-such-option"], check=16)
    h.run([h.JOBCTL, "--root", r.dir, "fsck", "--no-such-option"], check=16)


@case
def a_broken_ledger_hides_no_other_job(r):
    bad = r.submit("bad")
    r.submit("good")
    slot = os.path.join(r.dir, "jobs", bad, "log", "job", "00000000.seg")
    os.chmod(slot, 0o644)
    with open(slot, "r+b") as f:
        f.seek(100)
        f.write(b"garbage")
    jobs = r.jobs()
    assert "cannot be read" in jobs["bad"]["detail"] and jobs["good"]["folded"], jobs


def main():
    wanted = sys.argv[1:]
    if wanted == ["--list"]:
        print("\n".join(f.__name__ for f in CASES))
        return 0
    os.environ.pop("HOLDFAST_ROOT", None)
    failed = []
    for f in CASES:
        if wanted and f.__name__ not in wanted:
            continue
        try:
            with h.Workspace("cluster-cli") as w:
                f(Root(w))
            print("ok  ", f.__name__)
        except Exception as e:  # an odd answer breaks a case in many ways
            failed.append(f.__name__)
            print("FAIL", f.__name__, "-", type(e).__name__, e)
    print(f"{len(failed)} failed: {failed}" if failed else f"cluster_cli_test: {len(wanted) or len(CASES)} cases")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
