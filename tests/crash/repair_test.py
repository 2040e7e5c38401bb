#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Damages a run in every way that has a remedy, mends it, and demands the bytes of an undisturbed run.

  repair_test.py [N [SEED]]   every kind of damage N times at random places, in a half-done and in a finished run

Each time: damage -> `fsck --repair` -> `--undo` must restore the damaged directory byte for byte -> `--repair` again -> `jobctl resume` ->
the same SHA256SUMS, and nothing left for `fsck --deep` to find. Damaged slots also with `--repair --salvage`.
"""
import hashlib
import os
import random
import re
import shutil
import sys

import harness as h
import kill_test

FSCK = os.path.join(h.BIN, "fsck.holdfast")
STAGES = ["--shard-layers", "2,1,1"]
CORRECTED, REOPENED, LEFT, UNREADABLE, LOST = 1, 2, 4, 8, 64


def tree(*dirs):
    """Every file with its digest; what belongs to repair itself, and private files, aside."""
    found = {}
    for top in dirs:
        for folder, inner, names in os.walk(top):
            inner[:] = [d for d in inner if not (folder == top and d in ("quarantine", "tmp"))]
            for name in names:
                path = os.path.join(folder, name)
                with open(path, "rb") as f:
                    found[path] = hashlib.sha256(f.read()).hexdigest()
    return found


def files(top, suffix):
    return sorted(os.path.join(d, n) for d, _, names in os.walk(top) for n in names if n.endswith(suffix))


def rewrite(path, data):
    os.unlink(path)   # slots and packs are read-only
    with open(path, "wb") as f:
        f.write(data)


def read(path):
    with open(path, "rb") as f:
        return f.read()


def flip(rng, path):
    data = bytearray(read(path))
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    rewrite(path, data)


def a_slot(rng, run, last=True):
    """Any slot but that of the job record, without which nothing can be mended."""
    slots = [p for p in files(os.path.join(run, "log"), ".seg") if not p.endswith("log/job/00000000.seg")]
    if not last:   # a slot that is gone from the end of a stream was never there, as far as anybody can tell
        slots = [p for p in slots if os.path.exists(os.path.join(os.path.dirname(p), "%08x.seg" % (int(os.path.basename(p)[:8], 16) + 1)))]
    return rng.choice(slots)


def flip_slot(rng, run, out):
    flip(rng, a_slot(rng, run))


def cut_slot(rng, run, out):
    path = a_slot(rng, run)
    data = read(path)
    rewrite(path, data[:rng.randrange(len(data))])


def lose_slot(rng, run, out):
    os.unlink(a_slot(rng, run, last=False))


def exchange_slots(rng, run, out):
    a = a_slot(rng, run)
    b = a_slot(rng, run)
    while b == a:
        b = a_slot(rng, run)
    x, y = read(a), read(b)
    rewrite(a, y)
    rewrite(b, x)


def lose_many_slots(rng, run, out):
    for _ in range(6):
        flip_slot(rng, run, out)


def flip_unused_byte(rng, run, out):
    """Behind what LMDB uses of its second page: the slot fails as a whole, every record in it holds."""
    slots = [p for p in files(os.path.join(run, "log"), ".seg") if "/stage." in p]
    # Results: claims, farewells and what says how a phase began are not said again.
    inner = [p for p in slots if not p.endswith("/00000000.seg") and re.search(rb"HF\x01[SE]", read(p))]
    path = rng.choice(inner)
    data = bytearray(read(path))
    data[8000] ^= 0x10
    rewrite(path, data)


def flip_pack(rng, run, out):
    flip(rng, rng.choice(files(os.path.join(run, "pack"), ".pack")))


def lose_pack(rng, run, out):
    os.unlink(rng.choice(files(os.path.join(run, "pack"), ".pack")))


def cut_pack(rng, run, out):
    path = rng.choice(files(os.path.join(run, "pack"), ".pack"))
    rewrite(path, read(path)[:-rng.randrange(1, 4096)])


def misname_pack(rng, run, out):
    path = rng.choice(files(os.path.join(run, "pack"), ".pack"))
    shutil.copy(path, os.path.join(os.path.dirname(path), "copy of a pack"))


def strange_file(rng, run, out):
    with open(os.path.join(run, "log", "stage.00", "notes.txt"), "w") as f:
        f.write("mine\n")


def flip_output(rng, run, out):
    flip(rng, rng.choice(files(out, ".safetensors")))


def cut_output(rng, run, out):
    path = rng.choice(files(out, ".safetensors"))
    rewrite(path, read(path)[:-1])


def lose_output_file(rng, run, out):
    os.unlink(rng.choice(files(out, ".json")))


def lose_output(rng, run, out):
    shutil.rmtree(out)


def output_and_ledger(rng, run, out):
    """What the output would be written from is gone as well."""
    flip_output(rng, run, out)
    for _ in range(2):
        lose_pack(rng, run, out)
        flip_slot(rng, run, out)


LEDGER = [flip_slot, cut_slot, lose_slot, exchange_slots, lose_many_slots, flip_pack, lose_pack, cut_pack, misname_pack, strange_file]
SALVAGE = [flip_unused_byte, flip_slot, lose_many_slots]
OUTPUT = [flip_output, cut_output, lose_output_file, lose_output, output_and_ledger]


def fsck(run, *options):
    return h.run([FSCK, "--deep", "--threads=2", *options, run])


def one(w, rng, damage, name, *options):
    run, out = w.path(name + ".run"), w.path(name)
    damage(rng, run, out)
    before = tree(run, out)
    told = f"{damage.__name__} in a {name} run:\n"
    found = fsck(run)
    harmless = found.returncode == 0   # a pack that nobody needs any more may go
    mended = fsck(run, "--repair", *options)
    told += found.stdout + "---- repair\n" + mended.stdout + mended.stderr
    assert mended.returncode & (LEFT | UNREADABLE) == 0, told
    assert harmless or mended.returncode & CORRECTED, told
    ids = sorted(os.listdir(os.path.join(run, "quarantine"))) if os.path.exists(os.path.join(run, "quarantine")) else []
    if ids:
        undone = fsck(run, "--undo", ids[-1])
        assert undone.returncode == 0, told + "---- undo\n" + undone.stdout
        after = tree(run, out)
        changed = sorted(p for p in before.keys() | after.keys() if before.get(p) != after.get(p))
        assert not changed, f"{told}---- undo left other bytes in {changed}"
        again = fsck(run, "--repair", *options)
        assert again.returncode == mended.returncode, told + "---- again\n" + again.stdout
    resumed = h.run([h.JOBCTL, "resume", run, "--device", "cpu"])
    assert resumed.returncode == 0, f"{told}---- resume: exit {resumed.returncode}\n{resumed.stdout[-2000:]}{resumed.stderr[-3000:]}"
    w.assert_golden(name)
    last = fsck(run)
    assert last.returncode == 0, told + "---- after the resume\n" + last.stdout
    return mended


def beyond_repair(w):
    """A job record, a FORMAT: said so, nothing is touched, and what is advised works."""
    run, out = w.path("finished.run"), w.path("finished")
    form, first = os.path.join(run, "FORMAT"), os.path.join(run, "log/job/00000000.seg")
    for path, code in ((form, LEFT), (first, LEFT | LOST)):
        kept = read(path)
        for damage in (lambda: rewrite(path, kept[:-1]), lambda: os.unlink(path)):
            damage()
            before = tree(run, out)
            p = fsck(run, "--repair", "--salvage")
            assert p.returncode == code, f"{path}: {p.stdout}"
            assert tree(run, out) == before, f"{path}: a repair that cannot help has changed something"
            assert ("copy FORMAT from any other run directory" if path == form else f"mv {run} {run}.lost") in p.stdout, p.stdout
            resumed = h.run([h.JOBCTL, "resume", run, "--device", "cpu"])
            assert resumed.returncode in (1, 2) and resumed.stderr, resumed
            if os.path.exists(path):
                os.unlink(path)
            shutil.copy(os.path.join(w.path("golden.run"), "FORMAT"), path) if path == form else rewrite_new(path, kept)
            assert fsck(run).returncode == 0
    # Without a copy of the job record: as the advice says.
    os.unlink(first)
    os.rename(run, run + ".lost")
    shutil.rmtree(out)
    h.run(w.args("finished", *STAGES), check=0)
    w.assert_golden("finished")
    print("  a lost FORMAT and a lost job record: said so, and the advice works", flush=True)


def omissions(w):
    """The slot that leaves a sample out is damaged, and with it those in which the stage's workers announced and blamed it."""
    for name, options, expected in (("omitted", ["--salvage"], CORRECTED | LOST), ("forgotten", [], CORRECTED | REOPENED | LOST)):
        run = w.path(name + ".run")
        poison = kill_test.kill_samples(5)
        h.run(w.args(name, "--skip-samples", "1", *STAGES), env={**poison, "HOLDFAST_FAIL": "omit@5=kill"}, check=-9)
        left_out = [p for p in files(os.path.join(run, "log", "job"), ".seg") if re.search(rb"HF\x01O", read(p))]
        acts = [p for p in files(os.path.join(run, "log", "stage.00"), ".seg") if re.search(rb"HF\x01B", read(p)) and not re.search(rb"HF\x01[SEW]", read(p))]
        assert len(left_out) == 1 and len(acts) > 3, (left_out, acts)
        for path in left_out + acts:
            data = bytearray(read(path))
            data[8000] ^= 0x10
            rewrite(path, data)
        mended = fsck(run, "--repair", *options)
        assert mended.returncode == expected, f"exit {mended.returncode}\n{mended.stdout}"
        assert bool(options) == ("that sample 5 is left out" in mended.stdout), mended.stdout
        h.run([h.JOBCTL, "resume", run, "--device", "cpu"], check=0)      # nothing dies of it here, so that only the ledger can know
        if options:
            kill_test.assert_without(w, name, 5)
        else:
            w.assert_golden(name)
            w.fsck(name)
    print("  a sample that was left out: it stays so with --salvage, and counts again without", flush=True)


def rewrite_new(path, data):
    with open(path, "wb") as f:
        f.write(data)


SALVAGED = re.compile(r"^salvaged: (\d+) records of lost slots", re.M)


def main():
    times = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.SystemRandom().randrange(1 << 30)
    print(f"repair_test: seed {seed}")
    rng = random.Random(seed)
    done = salvaged = 0
    with h.Workspace("repair") as w:
        w.make_golden()
        # Half-done: stage 2 finds no space for its third sample (behind a claim and two phases), so that everything stops there.
        h.run(w.args("half-done", *STAGES), env={"HOLDFAST_FAIL": "publish.P2@stage.02:6=enospc"}, check=75)
        h.run(w.args("finished", *STAGES), check=0)
        for name, kinds in (("half-done", LEDGER), ("finished", LEDGER + OUTPUT)):
            kept = [(w.path(name + end), w.path("kept-" + name + end)) for end in (".run", "")]
            for path, copy in kept:
                if os.path.exists(path):
                    shutil.copytree(path, copy)
            for damage, *options in [(k,) for k in kinds * times] + [(k, "--salvage") for k in SALVAGE * times]:
                mended = one(w, rng, damage, name, *options)
                again = SALVAGED.search(mended.stdout)
                assert options or not again, f"{damage.__name__}: salvaged unasked\n{mended.stdout}"
                assert damage is not flip_unused_byte or again, f"nothing was salvaged in a {name} run\n{mended.stdout}"
                salvaged += int(again[1]) if again else 0
                print(f"  {name}: {' '.join([damage.__name__, *options])}: repair said {mended.returncode}, resumed to the same bytes", flush=True)
                done += 1
                for path, copy in kept:
                    shutil.rmtree(path, ignore_errors=True)
                    if os.path.exists(copy):
                        shutil.copytree(copy, path)
        omissions(w)
        beyond_repair(w)
    print(f"repair_test: {done} damages mended, taken back byte for byte, mended again and resumed to the same bytes; {salvaged} records of lost slots salvaged")


main()
