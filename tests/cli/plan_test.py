#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""jobctl plan: what it prints, what it refuses, what it leaves behind, and that a run goes on whatever becomes of the measuring.

One function per case, on a fresh tiny model. No time is judged, only whether there is one. Usage: plan_test.py [case ...]
"""
import json
import os
import struct
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../crash"))
import harness as h  # noqa: E402

CASES = []
PHASES = ["check", "load", "calibrate", "evict", "merge"]


def case(f):
    CASES.append(f)
    return f


def plan(w, *extra, cache="cache", check=0, env=None):
    args = [h.JOBCTL, "plan", "--source", w.model, "--calib", w.calib, "--device", "cpu", *extra]
    return h.run(args, env={"XDG_CACHE_HOME": w.path(cache), **(env or {})}, check=check)


def break_weight(model, tensor):
    """Its first value becomes NaN."""
    path = os.path.join(model, "model.safetensors")
    with open(path, "r+b") as f:
        length = struct.unpack("<Q", f.read(8))[0]
        head = json.loads(f.read(length))
        f.seek(8 + length + head[tensor]["data_offsets"][0])
        f.write(struct.pack("<H", 0x7FC0))


def entries(w, cache="cache"):
    folder = w.path(cache + "/holdfast")
    return sorted(os.path.join(folder, n) for n in os.listdir(folder)) if os.path.isdir(folder) else []


def everything(w):
    return sorted(n for n in os.listdir(w.dir) if n != "cache")


@case
def says_what_run_would_do(w):
    before = everything(w)
    doc = json.loads(plan(w, "--out", w.path("o"), "--json").stdout)
    assert doc["event"] == "plan" and doc["samples"] == 8 and doc["device"] == "cpu" and not doc["rest"], doc
    stage = doc["stages"][0]
    assert len(doc["stages"]) == 1 and stage["first_layer"] == 0 and stage["last_layer"] == 4 and not stage["streamed"], doc
    assert stage["host_bytes"] == stage["memory_bytes"] > 0 and stage["device_bytes"] == 0, stage
    assert doc["bytes_read"] > 0 and doc["bytes_written"] > 0 and doc["network_bytes"] == 0, doc
    assert list(doc["phase_ms"]) == sorted(PHASES), doc["phase_ms"]
    for phase, t in doc["phase_ms"].items():
        assert 0 <= t["low_ms"] <= t["high_ms"], (phase, t)
    assert sum(t["high_ms"] for t in doc["phase_ms"].values()) <= doc["total_ms"]["high_ms"] + len(PHASES), doc
    assert doc["layer"]["forward_ns"] and doc["disk"]["write_bytes_per_s"] > 0 and doc["notes"] == [], doc
    assert everything(w) == before, "plan left something behind"
    assert len(entries(w)) == 2, entries(w)
    text = plan(w, "--out", w.path("o")).stdout
    for word in ("stage 0: layers 0-3, resident", "samples in flight", "plan: 8 samples", "bytes: ", "calibrate", "measured before"):
        assert word in text, f"no \"{word}\" in:\n{text}"


@case
def splits_and_streams_as_told(w):
    doc = json.loads(plan(w, "--shard-layers", "3,1", "--json", "--no-probe").stdout)
    assert [(s["first_layer"], s["last_layer"]) for s in doc["stages"]] == [(0, 3), (3, 4)], doc
    least = json.loads(plan(w, "--json", "--no-probe").stdout)["memory_minimum_bytes"]
    doc = json.loads(plan(w, "--json", "--no-probe", "--memory", str(least)).stdout)
    assert doc["stages"][0]["streamed"] and doc["stages"][0]["group_layers"] == 1 and doc["memory_bytes"] <= least, doc
    text = plan(w, "--no-probe", "--memory", str(least)).stdout
    assert "streamed 1 at a time" in text, text


@case
def without_measures_there_are_no_times(w):
    p = plan(w, "--no-probe")
    assert "time not measured" in p.stdout and "jobctl plan" in p.stdout, p.stdout
    doc = json.loads(plan(w, "--no-probe", "--json").stdout)
    assert doc["phase_ms"] is None and doc["total_ms"] is None and "time not measured" in doc["times_note"], doc
    assert entries(w) == []


@case
def refuses_what_run_refuses(w):
    for extra, words in ((["--memory", "1M"], ["--memory", "at least", "bytes"]), (["--recipe", "int3"], ["int3"]), (["--shard-layers", "1,2"], ["4"]),
                         (["--on", "n1", "--shard-layers", "4"], ["--root"])):
        p = plan(w, *extra, check=2)
        assert all(word in p.stderr for word in words), p.stderr
        q = h.run(w.args("o", *extra))
        if "--on" not in extra:
            assert q.returncode == 2 and q.stderr == p.stderr, f"run says:\n{q.stderr}plan says:\n{p.stderr}"
    p = plan(w, "--json", "--memory", "1M", check=2)
    assert json.loads(p.stdout)["event"] == "error", p.stdout
    os.remove(os.path.join(w.model, "model.safetensors"))
    assert "safetensors" in plan(w, check=2).stderr
    assert entries(w) == []


@case
def a_layer_that_cannot_be_measured_is_said_and_no_more(w):
    break_weight(w.model, "model.layers.2.mlp.up_proj.weight")
    doc = json.loads(plan(w, "--json").stdout)
    assert doc["phase_ms"] is None and "time not measured" in doc["times_note"] and "up_proj" in doc["times_note"], doc
    assert doc["stages"] and entries(w) == [], doc


@case
def an_output_that_is_there_is_not_ours(w):
    os.mkdir(w.path("o"))
    assert "--out" in plan(w, "--out", w.path("o"), check=2).stderr


@case
def what_lies_in_the_cache_is_not_believed_blindly(w):
    plan(w)
    files = entries(w)
    for damage in (b"", b"{", b"\x00" * 100, b'{"holdfast_probe":1}', b"[" * 100000):
        for path in files:
            with open(path, "wb") as f:
                f.write(damage)
        doc = json.loads(plan(w, "--json").stdout)
        assert len(doc["notes"]) == 2 and "is not used" in doc["notes"][0] and doc["phase_ms"], doc
        assert json.loads(plan(w, "--json").stdout)["notes"] == [], "what was measured anew was not kept"
    for path in files:   # sound JSON, but of no measure
        entry = json.load(open(path))
        field = sorted(entry["answer"])[0]
        entry["answer"][field] = 0
        json.dump(entry, open(path, "w"))
    doc = json.loads(plan(w, "--json").stdout)
    assert len(doc["notes"]) == 2 and "not used" in doc["notes"][0] and doc["phase_ms"], doc
    for path in files:
        entry = json.load(open(path))
        entry["machine"]["machine_id"] = "0" * 32
        json.dump(entry, open(path, "w"))
    doc = json.loads(plan(w, "--json").stdout)
    assert len(doc["notes"]) == 2 and "another machine" in doc["notes"][0] and doc["phase_ms"], doc


@case
def no_place_for_a_cache_is_no_failure(w):
    with open(w.path("file"), "w") as f:
        f.write("not a directory")
    doc = json.loads(plan(w, "--json", cache="file").stdout)
    assert doc["phase_ms"] and len(doc["notes"]) >= 1 and "is not kept" in doc["notes"][-1], doc
    env = {k: v for k, v in os.environ.items() if k not in ("HOME", "XDG_CACHE_HOME")}
    p = subprocess.run([h.JOBCTL, "plan", "--source", w.model, "--calib", w.calib, "--device", "cpu", "--json"], env=env, capture_output=True, text=True, cwd=w.dir)
    assert p.returncode == 0 and json.loads(p.stdout)["notes"] == [], (p.stdout, p.stderr)


@case
def run_prints_the_plan_and_compares(w):
    env = {"XDG_CACHE_HOME": w.path("cache")}
    first = h.run(w.args("a", "--json"), env=env, check=0)
    events = [json.loads(line) for line in first.stdout.splitlines()]
    event = next(e for e in events if e["event"] == "plan")
    assert event["phase_ms"] is None and "short job" in event["times_note"] and len(event["job"]) == 32, event
    assert "plan" not in events[-1]["report"] and entries(w) == [], "a short run measured"
    plan(w, "--out", w.path("b"))
    p = h.run(w.args("b"), env=env, check=0)
    assert "measured before" in p.stderr, p.stderr
    for phase in PHASES:
        assert any(line.split()[-7:] and phase in line and "planned" in line and "took" in line for line in p.stdout.splitlines()), p.stdout
    assert h.sums(w.path("a")) == h.sums(w.path("b"))
    assert events[-1]["report"]["rss_peak_bytes"] <= event["memory_bytes"], "a worker took more than was printed"
    done = h.run(w.args("b"), env=env, check=0)
    assert "already done" in done.stdout and "planned" not in done.stdout, done.stdout
    assert sorted(os.listdir(w.path("a"))) == sorted(os.listdir(w.path("b")))


@case
def after_a_kill_the_rest_is_planned(w):
    env = {"XDG_CACHE_HOME": w.path("cache")}
    h.run(w.args("golden"), env=env, check=0)
    plan(w)
    h.run(w.args("o"), env={**env, "HOLDFAST_FAIL_ALWAYS": "publish.P1@merge:1=eio"})
    p = h.run(w.args("o", "--json"), env=env, check=0)
    events = [json.loads(line) for line in p.stdout.splitlines()]
    event = next(e for e in events if e["event"] == "plan")
    assert event["rest"] and "calibrate" not in event["phase_ms"] and "merge" in event["phase_ms"], event
    report = events[-1]["report"]
    assert report["plan_rest"] is True and report["plan"] == event["phase_ms"], report
    assert h.sums(w.path("o")) == h.sums(w.path("golden"))


@case
def a_root_is_planned_for_without_being_written(w):
    root = w.path("root")
    p = h.run([h.JOBCTL, "--root", root, "plan", "--source", w.model, "--calib", w.calib])
    assert p.returncode == 2 and not os.path.exists(root), (p.returncode, p.stderr)
    h.run([h.JOBCTL, "--root", root, "submit", "--source", w.model, "--calib", w.calib, "--out", w.path("x")], check=0)
    before = sorted(os.path.join(d, n) for d, _, names in os.walk(root) for n in names)
    p = h.run([h.JOBCTL, "plan", "--root", root, "--source", w.model, "--calib", w.calib, "--out", w.path("y"), "--shard-layers", "2,2"], check=0)
    assert "plan: 2 stages" in p.stdout and "on a node still to come" in p.stdout, p.stdout
    doc = json.loads(h.run([h.JOBCTL, "plan", "--root", root, "--source", w.model, "--calib", w.calib, "--json"], check=0).stdout)
    assert doc["event"] == "plan" and doc["root"] == root and len(doc["plan"]["stages"]) == 1 and "network_bytes" in doc["plan"], doc
    assert sorted(os.path.join(d, n) for d, _, names in os.walk(root) for n in names) == before, "plan wrote into the root"
    p = h.run([h.JOBCTL, "plan", "--root", root, "--source", w.model, "--calib", w.calib, "--memory", "1G"])
    assert p.returncode == 2 and "--memory" in p.stderr, p.stderr


def main():
    wanted = sys.argv[1:]
    failed = []
    for f in CASES:
        if wanted and f.__name__ not in wanted:
            continue
        try:
            with h.Workspace("plan") as w:
                f(w)
            print("ok  ", f.__name__, flush=True)
        except AssertionError as e:
            failed.append(f.__name__)
            print("FAIL", f.__name__, "-", e, flush=True)
    print(f"{len(failed)} failed: {failed}" if failed else "plan_test: everything as it should be")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
