#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The real programs on a disk that fails (faulty_disk.cc, preloaded): in the end the bytes of an undisturbed run, never others.

  disk_test.py errors [N [SEED]]    ENOSPC, EDQUOT, EIO, ESTALE, short writes, fsyncs that lose data, at random calls; the same line until it is done
  disk_test.py reads [N [SEED]]     reads that fail or return a flipped bit
  disk_test.py powercut [N [SEED]]  everything killed and what was not synced is gone, N times
  disk_test.py liar [N [SEED]]      a disk that says "synced" and did not: nothing of it is believed after a power cut, the loss is named

FAULTY_DISK: the library, if not the one of the build that HOLDFAST_BIN belongs to.
"""
import os
import random
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../crash"))
import harness as h  # noqa: E402

LIBRARY = os.environ.get("FAULTY_DISK", os.path.join(h.BIN, "../tests/disk/faulty_disk.so"))
TRIES = 60
RULES = {
    "errors": ["write:enospc", "write:edquot", "write:eio", "write:short", "fsync:eio", "fsync:enospc", "fsync:lose", "link:eio", "link:enospc",
               "rename:eio", "open:enospc", "open:estale", "open:edquot"],
    "reads": ["read:eio", "read:estale", "read:flip"],
}


def faults(w, rules, seed, most=None, journal=None):
    env = {"LD_PRELOAD": LIBRARY, "FAULTY_DIR": w.path("disk"), "FAULTY_RULES": rules, "FAULTY_SEED": str(seed)}
    if most is not None:
        env["FAULTY_MAX"] = str(most)
    if journal is not None:
        env["FAULTY_JOURNAL"] = journal
    return env


def job(w, out):
    return w.args(out, "--shard-layers", "2,2", "--run-dir", w.path(out + ".run"))


def workspace(name):
    w = h.Workspace(name)
    os.makedirs(w.path("disk"))
    return w


def random_faults(kind, rounds, seed):
    rng = random.Random(seed)
    attempts = {0: 0, 1: 0, 2: 0, 75: 0}
    with workspace(kind) as w:
        w.make_golden()
        for i in range(rounds):
            out = f"disk/{kind}{i}"
            chosen = rng.sample(RULES[kind], rng.randint(1, 3))
            rules = ",".join(f"{r}:{rng.choice([0.3, 0.05, 0.01])}" for r in chosen)
            for attempt in range(TRIES):
                # Disks do recover: each attempt meets fewer faults, the last ones none.
                p = h.run(job(w, out), env=faults(w, rules, seed * 1000 + i * 100 + attempt, most=max(0, 8 - attempt // 2)))
                what = f"{kind} round {i}, attempt {attempt}, seed {seed}, {rules}: exit {p.returncode}"
                assert p.returncode in attempts, f"{what}\n{p.stderr[-3000:]}"
                attempts[p.returncode] += 1
                assert p.returncode == 0 or p.stderr.strip(), f"{what} without a word"
                if p.returncode == 0:
                    break
            else:
                raise AssertionError(f"{kind} round {i}, seed {seed}, {rules}: not done after {TRIES} attempts: {p.stderr[-3000:]}")
            w.assert_golden(out)
            h.run([h.JOBCTL, "fsck", w.path(out + ".run"), "--deep"], check=0)
            w.drop(out)
    said = ", ".join(f"{n} with exit {code}" for code, n in attempts.items() if n)
    print(f"disk_test {kind}: {rounds} jobs on a failing disk (seed {seed}): {sum(attempts.values())} attempts ({said}), all the same bytes")


class Journal:
    """What faulty_disk.cc wrote down, and the power cut that follows from it."""

    def __init__(self, path):
        self.path = path
        self.lost_bytes = self.lost_names = 0

    def cut(self, root, rng):
        synced, dirty, names = {}, set(), []
        with open(self.path, errors="replace") as f:
            lines = f.read().split("\n")
        for number, line in enumerate(lines):
            kind, _, rest = line.partition(" ")
            if kind == "D":
                dirty.add(int(rest))
            elif kind == "S":
                ino, size = map(int, rest.split())
                synced[ino] = size
                dirty.discard(ino)
            elif kind in ("N", "R"):
                names.append((kind, rest))
            elif kind == "Y":
                names = [n for n in names if os.path.dirname(n[1].split("\t")[-1]) != rest]
        self.lose_data(root, dirty, synced, rng)
        self.lose_names(names[rng.randint(0, len(names)):])
        os.unlink(self.path)

    def lose_data(self, root, dirty, synced, rng):
        for at, _, files in os.walk(root):
            for name in files:
                path = os.path.join(at, name)
                st = os.stat(path)
                if st.st_ino not in dirty:
                    continue
                dirty.discard(st.st_ino)   # once, however many names it has
                kept = min(synced.get(st.st_ino, 0), st.st_size)
                fate = rng.choice(["all", "zeros", "short"])
                if fate != "all":
                    self.lost_bytes += st.st_size - kept
                    os.truncate(path, kept)
                    if fate == "zeros":
                        os.truncate(path, st.st_size)

    def lose_names(self, names):
        for kind, rest in reversed(names):
            if kind == "R":
                old, new = rest.split("\t")
                if os.path.exists(new) and not os.path.exists(old):
                    os.rename(new, old)
                    self.lost_names += 1
            elif os.path.isfile(rest):
                os.unlink(rest)
                self.lost_names += 1


def run_and_cut(w, out, journal, rng, rules=""):
    """Starts the job and cuts the power after a moment. The exit status if it was over before."""
    p = subprocess.Popen(job(w, out), env={**os.environ, **faults(w, rules, rng.randrange(1 << 30), journal=journal.path)}, stdout=subprocess.DEVNULL,
                         stderr=subprocess.PIPE, text=True)
    try:
        _, said = p.communicate(timeout=rng.uniform(0.3, 6))
        return p.returncode, said
    except subprocess.TimeoutExpired:
        workers = h.children(p.pid)
        p.send_signal(signal.SIGKILL)
        p.communicate()
        h.assert_no_orphans(workers)
        time.sleep(0.05)
        journal.cut(w.path("disk"), rng)
        return None, ""


def powercut(cuts, seed):
    rng = random.Random(seed)
    done = jobs = 0
    with workspace("powercut") as w:
        w.make_golden()
        journal = Journal(w.path("journal"))
        while done < cuts:
            out = f"disk/p{jobs}"
            for _ in range(TRIES):
                status, said = run_and_cut(w, out, journal, rng, rules="fsync:slow:0.5") if done < cuts else (h.run(job(w, out)).returncode, "")
                assert status in (None, 0), f"seed {seed}, job {jobs}: exit {status} after a power cut: {said[-3000:]}"
                if status == 0:
                    break
                done += 1
            w.assert_golden(out)
            h.run([h.JOBCTL, "fsck", w.path(out + ".run"), "--deep"], check=0)
            w.drop(out)
            jobs += 1
            if os.path.exists(journal.path):
                os.unlink(journal.path)
    assert journal.lost_bytes + journal.lost_names > 0, "no power cut lost anything: this tests nothing"
    print(f"disk_test powercut: {done} power cuts in {jobs} jobs (seed {seed}), {journal.lost_bytes} bytes and {journal.lost_names} names that were not synced "
          "lost, all the same bytes")


def liar(rounds, seed):
    """Nobody can work on such a disk. What must not happen is a wrong result, or silence."""
    rng = random.Random(seed)
    outcomes = {"finished": 0, "refused": 0}
    with workspace("liar") as w:
        w.make_golden()
        journal = Journal(w.path("journal"))
        for i in range(rounds):
            out = f"disk/l{i}"
            status = None
            for _ in range(TRIES):
                status, _ = run_and_cut(w, out, journal, rng, rules="fsync:lie:1")
                if status is not None or rng.random() < 0.4:
                    break
            p = h.run(job(w, out))
            if p.returncode == 0:
                w.assert_golden(out)
                outcomes["finished"] += 1
            else:
                assert p.returncode in (1, 2) and "fsck" in p.stderr, f"round {i}, seed {seed}: exit {p.returncode}: {p.stderr[-2000:]}"
                found = h.run([h.JOBCTL, "fsck", w.path(out + ".run"), "--deep"])
                assert found.returncode & (4 | 64), f"round {i}, seed {seed}: fsck finds nothing: {found.stdout[-2000:]}"
                outcomes["refused"] += 1
            w.drop(out)
            if os.path.exists(journal.path):
                os.unlink(journal.path)
    print(f"disk_test liar: {rounds} jobs on a disk that lies about fsync (seed {seed}): {outcomes['finished']} finished in the same bytes, {outcomes['refused']} "
          "were refused, and fsck said why")


MODES = {"errors": lambda n, s: random_faults("errors", n, s), "reads": lambda n, s: random_faults("reads", n, s), "powercut": powercut, "liar": liar}

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in MODES:
        sys.exit(__doc__)
    MODES[sys.argv[1]](int(sys.argv[2]) if len(sys.argv) > 2 else 5, int(sys.argv[3]) if len(sys.argv) > 3 else random.SystemRandom().randrange(1 << 30))
