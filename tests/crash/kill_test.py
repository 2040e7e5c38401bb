#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Kills processes of a run and demands the same bytes in the end.

  kill_test.py random [N [SEED]] N kills at random instants, of a worker or of jobctl, as often as needed to finish
  kill_test.py orphans           workers die with their jobctl
  kill_test.py drain             SIGTERM: exit 75 within 30 s, resumable
  kill_test.py devices           a run on two devices: without memory for a moment, broken for a moment, broken for good
  kill_test.py poison            one sample ends every worker that computes it: the others are done, it is called by its name
  kill_test.py skip              with --skip-samples such a sample is left out: the result is that of a calibration file without it
  kill_test.py infinite          the same for a sample that overflows
  kill_test.py replan            threads, stages and memory change between attempts, bytes do not
  kill_test.py copy              a run directory is copied while somebody works in it, and both go on
"""
import json
import os
import random
import re
import signal
import struct
import subprocess
import sys
import time

import harness as h

STAGES = ["--shard-layers", "2,1,1"]


def random_kills(budget, seed):
    rng = random.Random(seed)
    kills = runs = 0
    with h.Workspace("random") as w:
        started = time.time()
        w.make_golden()
        whole = time.time() - started
        while kills < budget:
            name = f"r{runs}"
            extra = rng.choice([[], STAGES, ["--stages", "2"], ["--device", "cpu,cpu"]])
            for attempt in range(1000):
                if kills >= budget:
                    last = h.run(w.args(name, *extra))
                    status, err = last.returncode, last.stderr
                    break
                killed, status, err = h.attempt_with_kills(w.args(name, *extra), rng, whole * rng.choice([0.3, 1.0, 1.6]), whole / 2)
                kills += killed
                if status is not None:
                    break
                h.assert_no_half_output(w.path(name))
            assert status == 0, f"seed {seed}, run {runs}: exit {status}\n{err[-3000:]}"
            w.assert_golden(name)
            w.fsck(name)
            w.drop(name)
            runs += 1
    print(f"kill_test random: {kills} kills in {runs} runs (seed {seed}), every run ended in the same bytes")


def orphans():
    with h.Workspace("orphans") as w:
        h.make_tokens(w.calib, samples=64, length=256)
        p = subprocess.Popen(w.args("o", *STAGES), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.time() + 60
        while len(h.children(p.pid)) < 3 and time.time() < deadline:
            time.sleep(0.01)
        workers = h.children(p.pid)
        assert len(workers) == 3, "three stages, three workers"
        h.kill(p.pid)
        p.wait()
        h.assert_no_orphans(workers)
    print("kill_test orphans: no worker outlived its jobctl")


def drain():
    with h.Workspace("drain") as w:
        h.make_tokens(w.calib, samples=48, length=512)
        w.make_golden()
        for sig in (signal.SIGTERM, signal.SIGINT):
            name = f"d{int(sig)}"
            p = subprocess.Popen(w.args(name, *STAGES), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            deadline = time.time() + 60
            while len(h.children(p.pid)) < 3 and time.time() < deadline:
                time.sleep(0.01)
            time.sleep(1.0)
            asked = time.time()
            p.send_signal(sig)
            err = p.communicate(timeout=60)[1]
            assert p.returncode == 75, f"exit {p.returncode} after {sig!r}\n{err}"
            assert "resume" in err, err
            assert time.time() - asked < 40, "a stop must end within 30 s"
            h.run([h.JOBCTL, "resume", w.path(name) + ".run"], check=0)
            w.assert_golden(name)
            w.fsck(name)
    print("kill_test drain: SIGTERM and SIGINT end with 75 and resume to the same bytes")


def devices():
    """`cpu,cpu`: two devices that are both the CPU. oom and fault are what a GPU ends in (DeviceError)."""
    two = ["--device", "cpu,cpu"]
    with h.Workspace("devices") as w:
        w.make_golden()
        p = h.run(w.args("plain", *two), check=0)
        assert "stage 0: layers 0-1 on cpu:0" in p.stderr and "stage 1: layers 2-3 on cpu:1" in p.stderr, p.stderr
        w.assert_golden("plain")
        stages = json.loads(h.run([h.JOBCTL, "status", w.path("plain") + ".run", "--json"], check=0).stdout)["stages"]
        assert [s["device"] for s in stages] == ["cpu:0", "cpu:1"], stages

        for point in ("phase.load@stage.01", "compute.sample@2", "compute.sample@5", "evict.tensor", "phase.evict@stage.00"):
            name = "oom-" + point.replace("@", "-")
            p = h.run(w.args(name, *two), env={"HOLDFAST_FAIL": point + "=oom"}, check=0)
            assert "out of memory" in p.stderr and "one step smaller" in p.stderr, f"{point}: {p.stderr[-2000:]}"
            w.assert_golden(name)
            stages = json.loads(h.run([h.JOBCTL, "status", w.path(name) + ".run", "--json"], check=0).stdout)["stages"]
            assert any(c["reason"] == "out_of_memory" for s in stages for c in s["claims"]), stages
            w.fsck(name)
            w.drop(name)

        p = h.run(w.args("once", *two), env={"HOLDFAST_FAIL": "compute.sample@1=fault"}, check=0)
        assert re.search(r"worker on cpu:\d died \(exit 1: .*unspecified launch failure\); restarting", p.stderr), p.stderr
        w.assert_golden("once")
        p = h.run(w.args("broken", *two), env={"HOLDFAST_FAIL_ALWAYS": "compute.sample=fault"})
        assert p.returncode == 1 and "stage 0 worker on cpu:0 died" in p.stderr and "3 times in a row" in p.stderr, f"exit {p.returncode}\n{p.stderr}"
        h.run([h.JOBCTL, "resume", w.path("broken") + ".run", "--device", "cpu"], check=0)   # elsewhere it works
        w.assert_golden("broken")
        w.fsck("broken")
    print("kill_test devices: two devices, 5 without memory, 2 that broke: the bytes of one device")


def poison():
    with h.Workspace("poison") as w:
        w.make_golden()
        for i, (sample, extra) in enumerate([(0, []), (5, []), (3, STAGES), (7, ["--threads", "1"])]):
            name = f"x{i}"
            p = h.run(w.args(name, *extra), env={"HOLDFAST_FAIL_ALWAYS": f"compute.sample@{sample}=kill"})
            assert p.returncode in (1, 2), f"sample {sample}: exit {p.returncode}\n{p.stderr[-2000:]}"
            assert f"sample {sample} of the calibration set" in p.stderr, f"sample {sample} is not named:\n{p.stderr[-2000:]}"
            stages = json.loads(h.run([h.JOBCTL, "status", w.path(name) + ".run", "--json"], check=0).stdout)["stages"]
            assert stages[0]["samples_done"] == 7, f"sample {sample} took others with it: {stages}"
            h.run([h.JOBCTL, "resume", w.path(name) + ".run"], check=0)     # where it does not die it is done
            w.assert_golden(name)
            w.fsck(name)
    print("kill_test poison: four poison samples called by their names, all others done, resumed to the same bytes")


def kill_samples(*samples):
    return {"HOLDFAST_FAIL_ALWAYS": ";".join(f"compute.sample@{s}=kill" for s in samples)}


def without(w, *samples):
    """The files of an undisturbed run over a calibration file that lacks these lines; its holdfast.json apart."""
    name = "without" + "".join(f"-{s}" for s in samples)
    if not os.path.exists(w.path(name)):
        with open(w.calib) as f, open(w.path(name) + ".jsonl", "w") as out:
            out.writelines(line for i, line in enumerate(f) if i not in samples)
        h.run(h.run_args(w.model, w.path(name) + ".jsonl", w.path(name)), check=0)
    return files_of(w, name)


def files_of(w, name):
    h.sums(w.path(name))
    files = {n: open(os.path.join(w.path(name), n), "rb").read() for n in os.listdir(w.path(name)) if n != "SHA256SUMS"}
    return files, json.loads(files.pop("holdfast.json"))


def assert_without(w, name, *samples):
    """Same bytes of every file; where they come from names another calibration file, and the samples that were left out."""
    (files, said), (expected, reference) = files_of(w, name), without(w, *samples)
    assert files == expected, f"{name}: files differ from those of a run without samples {samples}: {[n for n in expected if files.get(n) != expected[n]]}"
    assert said["calibration"].pop("left_out") == list(samples), said
    for key in ("file_sha256", "tokens_sha256"):
        del said["calibration"][key], reference["calibration"][key]
    assert said == reference, (said, reference)
    status = json.loads(h.run([h.JOBCTL, "status", w.path(name) + ".run", "--json"], check=0).stdout)
    assert [o["sample"] for o in status["omitted"]] == list(samples), status
    assert all(s["samples_done"] == s["samples_total"] == 8 - len(samples) for s in status["stages"]), status
    assert [o["sample"] for o in status["report"]["omitted"]] == list(samples), status
    w.fsck(name)
    h.run([h.JOBCTL, "verify", w.path(name), "--source", w.model], check=0)


def overflow(w, sample, layer=2, token=255, column=0):
    """A model in which one token, that only this sample has, overflows in the MLP of a layer: a direction of its own, and a large weight of a norm along it."""
    with open(os.path.join(w.model, "model.safetensors"), "r+b") as f:
        size, = struct.unpack("<Q", f.read(8))
        header = json.loads(f.read(size))

        def put(name, row, col, value):
            at, columns = header[name]["data_offsets"][0], header[name]["shape"][-1]
            f.seek(8 + size + at + 2 * (row * columns + col))
            f.write(struct.pack("<H", h.bf16(value)))
        for name, tensor in header.items():
            if name.endswith(("embed_tokens.weight",)):
                for row in range(tensor["shape"][0]):
                    put(name, row, column, float(row == token))
            elif name.endswith(("o_proj.weight", "down_proj.weight")):     # nothing else gets into this direction
                for col in range(tensor["shape"][1]):
                    put(name, column, col, 0.0)
            elif name.startswith(f"model.layers.{layer}.mlp") and name.endswith(("gate_proj.weight", "up_proj.weight")):
                for row in range(tensor["shape"][0]):
                    put(name, row, column, 10.0)
            elif name == f"model.layers.{layer}.post_attention_layernorm.weight":
                put(name, 0, column, 1e19)
    h.make_tokens(w.calib, vocab=token)
    with open(w.calib) as f:
        lines = [json.loads(line) for line in f]
    lines[sample]["input_ids"][4] = token
    with open(w.calib, "w") as f:
        f.writelines(json.dumps(line) + "\n" for line in lines)


def infinite():
    with h.Workspace("infinite") as w:
        overflow(w, sample=3)
        for i, extra in enumerate([[], STAGES]):
            p = h.run(w.args(f"f{i}", *extra), check=1)
            assert "sample 3 of the calibration set" in p.stderr and "not finite at model.layers.2.mlp.down_proj" in p.stderr, p.stderr[-2000:]
            p = h.run(w.args(f"s{i}", "--skip-samples", "1", *extra), check=0)
            assert "1 of 8 samples left out: 3 (not finite at model.layers." in p.stdout, p.stdout
            assert_without(w, f"s{i}", 3)
    print("kill_test infinite: a sample that overflows is named, or left out")


def skip():
    with h.Workspace("skip") as w:
        for i, (samples, extra) in enumerate([((5,), []), ((5,), STAGES), ((0, 1), STAGES), ((6, 7), ["--threads", "1"])]):
            name = f"s{i}"
            p = h.run(w.args(name, "--skip-samples", "2", *extra), env=kill_samples(*samples), check=0)
            assert f"{len(samples)} of 8 samples left out: {samples[0]} (ended 2 workers)" in p.stdout, p.stdout
            assert_without(w, name, *samples)
            p = h.run(w.args(name, "--skip-samples", "1", *extra), check=2)      # it decides the result: not to be changed
            assert "--skip-samples" in p.stderr, p.stderr
        # More poison than budget: fails as without one, and says by what the budget is used up. What was left out stays so.
        p = h.run(w.args("b", "--skip-samples", "1"), env=kill_samples(2, 5))
        assert p.returncode == 1 and "the budget of 1 skipped sample is used up by sample" in p.stderr, f"exit {p.returncode}\n{p.stderr[-2000:]}"
        out = [o["sample"] for o in json.loads(h.run([h.JOBCTL, "status", w.path("b") + ".run", "--json"], check=0).stdout)["omitted"]]
        assert out in ([2], [5]), out
        h.run([h.JOBCTL, "resume", w.path("b") + ".run"], check=0)
        assert_without(w, "b", *out)
        # Each worker killed right behind its blame; and jobctl right behind the omission, resumed where nothing dies, so that only the ledger can know.
        poisoned = kill_samples(5)["HOLDFAST_FAIL_ALWAYS"]
        for name, env, end in [("k0", {"HOLDFAST_FAIL_ALWAYS": poisoned + ";blame@5=kill"}, 0),
                               ("k1", {"HOLDFAST_FAIL_ALWAYS": poisoned, "HOLDFAST_FAIL": "omit@5=kill"}, -signal.SIGKILL)]:
            h.run(w.args(name, "--skip-samples", "1", *STAGES), env=env, check=end)
            h.run([h.JOBCTL, "resume", w.path(name) + ".run"], check=0)
            assert_without(w, name, 5)
        p = h.run(w.args("many", "--skip-samples", "8"), check=2)
        assert "--skip-samples 8" in p.stderr and not os.path.exists(w.path("many") + ".run/log/job/00000000.seg"), p.stderr
    print("kill_test skip: poison samples left out of four runs, two kills between blame and end, and a budget that was too small")


def replan():
    attempts = [["--stages", "3", "--threads", "1"], ["--threads", "4"], ["--shard-layers", "1,3"], ["--stages", "1", "--threads", "2"]]
    with h.Workspace("replan") as w:
        h.make_tokens(w.calib, samples=32, length=256)
        w.make_golden()
        for extra in attempts:
            p = subprocess.Popen(w.args("r", *extra), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(1.5)
            h.kill(p.pid)
            p.wait()
        h.run(w.args("r", "--stages", "2"), check=0)
        w.assert_golden("r")
        w.fsck("r")
    print("kill_test replan: stages and threads changed four times, the bytes did not")


def copy():
    """Matrix row 37. While an owner lives on this machine its copy is refused; afterwards both are jobs of their own with one output name."""
    with h.Workspace("copy") as w:
        h.make_tokens(w.calib, samples=32, length=256)
        w.make_golden()
        for i, wait in enumerate((0.8, 1.6, 2.4)):
            name, twin = f"c{i}", w.path(f"c{i}.copy.run")
            p = subprocess.Popen(w.args(name, *STAGES), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(wait)
            subprocess.run(["cp", "-a", w.path(name) + ".run", twin], check=False, stderr=subprocess.DEVNULL)   # files come and go under it
            h.run([h.JOBCTL, "fsck", twin])
            if p.poll() is None and os.path.exists(twin + "/log/job/00000000.seg"):
                refused = h.run([h.JOBCTL, "resume", twin], check=2)
                assert f"process {p.pid}" in refused.stderr, refused.stderr
            h.kill(p.pid)
            p.wait()
            both = [subprocess.Popen([h.JOBCTL, "resume", d], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for d in (w.path(name) + ".run", twin)]
            said = [b.communicate(timeout=300)[1] for b in both]
            ends = [b.returncode for b in both]
            assert 0 in ends, said
            for end, text in zip(ends, said):    # who comes second finds an output that its own ledger does not know
                assert end == 0 or (end == 1 and "exists and is not the output of this job" in text and "jobctl resume" in text), (end, text)
            w.assert_golden(name)
            left = [n for n in os.listdir(w.dir) if n.startswith(f".{name}.") and ends == [0, 0]]
            assert not left, left
            for d in (w.path(name) + ".run", twin):
                h.run([h.JOBCTL, "fsck", d, "--deep"], check=0)
    print("kill_test copy: three runs copied while they worked, both copies went on, one output of the same bytes each")


if __name__ == "__main__":
    what = sys.argv[1] if len(sys.argv) > 1 else ""
    if what == "random":
        random_kills(int(sys.argv[2]) if len(sys.argv) > 2 else 12, int(sys.argv[3]) if len(sys.argv) > 3 else random.SystemRandom().randrange(1 << 30))
    elif what in ("orphans", "drain", "devices", "poison", "skip", "infinite", "replan", "copy"):
        {"orphans": orphans, "drain": drain, "devices": devices, "poison": poison, "skip": skip, "infinite": infinite, "replan": replan, "copy": copy}[what]()
    else:
        sys.exit(__doc__)
