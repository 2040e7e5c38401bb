#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""`jobctl export`: both layouts out of one run directory, whatever happens to the process that writes them, and without a word in that directory.

  export_test.py [N] [--seed S]     N places of all that an export passes, one fault at each (kill, or an error of the file system), and N/4 kills at random instants
"""
import collections
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import harness as h

LINE = re.compile(r"^\d+ \d+ ([^@]+)@(.*?)(?: = \w+)?$")
ACTIONS = ["kill", "kill", "enospc", "eio", "estale"]


def tree(path):
    """Every file below, by name, with its bytes."""
    found = {}
    for at, _, names in os.walk(path):
        for name in names:
            with open(os.path.join(at, name), "rb") as f:
                found[os.path.relpath(os.path.join(at, name), path)] = hashlib.sha256(f.read()).hexdigest()
    return found


def hidden(w):
    return [n for n in os.listdir(w.dir) if n.startswith(".")]


def export(w, name, layout, *extra, run="golden.run"):
    return [h.JOBCTL, "export", w.path(run), "--layout", layout, "--out", w.path(name), *extra]


def places(w):
    """Where an undisturbed export passes: (point, subject, hit)."""
    h.run(export(w, "ct", "compressed-tensors"), env={"HOLDFAST_FAIL_TRACE": w.path("trace")}, check=0)
    with open(w.path("trace")) as f:
        count = collections.Counter(LINE.match(line).groups() for line in f.read().split("\n")[:-1])
    assert {"export.owner", "merge.file", "merge.metadata", "merge.before_rename", "merge.after_rename"} <= {point for point, _ in count}, count
    return [(point, subject, hit) for (point, subject), hits in sorted(count.items()) for hit in range(1, hits + 1)]


def finish(w, name, expected, run_files, where):
    """After whatever happened: nothing half-done under the name, and the same line again ends in the same bytes."""
    h.assert_no_half_output(w.path(name))
    h.run(export(w, name, "compressed-tensors"), check=0)
    assert h.sums(w.path(name)) == expected, f"{where}: SHA256SUMS differ from the undisturbed export"
    assert hidden(w) == [], f"{where}: left {hidden(w)}"
    assert tree(w.path("golden.run")) == run_files, f"{where}: the run directory changed"
    w.drop(name)


def faults(w, rng, budget, expected, run_files):
    known, done = places(w), collections.Counter()
    assert h.sums(w.path("ct")) == expected
    w.drop("ct")
    rng.shuffle(known)
    firsts, rest = [], []     # every kind of place has its turn
    for place in known:
        (rest if any(f[0] == place[0] for f in firsts) else firsts).append(place)
    for i, (point, subject, hit) in enumerate((firsts + rest)[:budget]):
        name, action = f"f{i}", "kill" if i < len(firsts) else rng.choice(ACTIONS)
        where = f"{point}@{subject.replace(w.path('ct'), w.path(name))}:{hit}={action}"
        p = h.run(export(w, name, "compressed-tensors"), env={"HOLDFAST_FAIL": where})
        assert p.returncode == (-signal.SIGKILL if action == "kill" else p.returncode) and p.returncode != 0, f"{where}: exit {p.returncode}\n{p.stderr}"
        if action != "kill":
            assert point == "merge.after_rename" or hidden(w) == [], f"{where}: an error left {hidden(w)}"
            assert p.returncode in (1, 75), f"{where}: exit {p.returncode}\n{p.stderr}"
        done[action] += 1
        finish(w, name, expected, run_files, where)
    return done


def twice(w, expected, run_files):
    """Killed, and killed again while the remains of the first are cleared away."""
    for second in ("export.aside", "export.owner", "merge.before_rename"):
        h.run(export(w, "t", "compressed-tensors"), env={"HOLDFAST_FAIL": "merge.file=kill"}, check=-signal.SIGKILL)
        h.run(export(w, "t", "compressed-tensors"), env={"HOLDFAST_FAIL": second + "=kill"}, check=-signal.SIGKILL)
        finish(w, "t", expected, run_files, "merge.file, then " + second)


def random_kills(w, rng, budget, expected, run_files):
    started = time.time()
    h.run(export(w, "timed", "compressed-tensors"), check=0)
    whole = time.time() - started
    w.drop("timed")
    for i in range(budget):
        p = subprocess.Popen(export(w, "r", "compressed-tensors"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        time.sleep(rng.uniform(0, whole))
        p.send_signal(signal.SIGKILL if i % 3 else signal.SIGTERM)
        said = p.communicate()[1]
        assert p.returncode in (0, -signal.SIGKILL) if i % 3 else p.returncode in (0, 75, -signal.SIGTERM), f"exit {p.returncode}\n{said}"
        finish(w, "r", expected, run_files, f"random kill {i}")


def living(w):
    """Two at a time on one output: the second is told who writes, and harms nobody."""
    p = subprocess.Popen(export(w, "both", "compressed-tensors"), env={**os.environ, "HOLDFAST_FAIL": "merge.before_rename=pause"}, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.time() + 60
    while h.state(p.pid) != "T" and time.time() < deadline:
        time.sleep(0.01)
    refused(w, export(w, "both", "compressed-tensors"), f"process {p.pid}")
    p.send_signal(signal.SIGCONT)
    assert p.wait() == 0
    h.sums(w.path("both"))
    assert hidden(w) == [], hidden(w)
    w.drop("both")


def refused(w, args, *words):
    p = h.run(args, check=2)
    for word in words:
        assert word in p.stderr, f"the message does not say \"{word}\":\n{p.stderr}"


def refusals(w):
    h.run(w.args("begun", "--stages", "2"), env={"HOLDFAST_FAIL_ALWAYS": "evict.tensor@model.layers.2.mlp.up_proj.weight=kill"})
    refused(w, export(w, "no", "modelopt", run="begun.run"), "layers are not quantized yet", "jobctl resume " + w.path("begun.run"))
    refused(w, export(w, "no", "modelopt", run="model"), "no run here")
    refused(w, export(w, "no", "gguf"), "--layout", "modelopt and compressed-tensors")
    refused(w, export(w, "golden", "compressed-tensors"), "the job's own output")
    refused(w, export(w, "golden/x", "modelopt"), "choose another --out")
    refused(w, export(w, "golden.run/x", "modelopt"), "choose another --out")
    os.mkdir(w.path("taken"))
    with open(os.path.join(w.path("taken"), "precious"), "w") as f:
        f.write("mine")
    refused(w, export(w, "taken", "modelopt"), "exists and is not the output of this job", "choose another --out")
    assert os.listdir(w.path("taken")) == ["precious"]
    refused(w, w.args("golden", "--layout", "compressed-tensors"), "--layout", "jobctl export")
    h.run([h.JOBCTL, "gc", w.path("golden.run")], check=0)
    refused(w, export(w, "no", "modelopt"), "are gone", "jobctl gc", "--repair")
    assert not os.path.exists(w.path("no")) and hidden(w) == [], hidden(w)


def main(budget, seed):
    rng = random.Random(seed)
    small = ["--max-shard-size", "40kB"]
    with h.Workspace("export") as w:
        w.make_golden(*small)
        run_files = tree(w.path("golden.run"))

        # The run's own layout: its own bytes. The other one: those of a run that wrote it itself.
        h.run(export(w, "again", "modelopt"), check=0)
        assert h.sums(w.path("again")) == w.golden
        h.run(w.args("own", *small, "--layout", "compressed-tensors"), check=0)
        expected = h.sums(w.path("own"))
        said = h.run(export(w, "x", "compressed-tensors", "--json"), check=0)
        last = json.loads(said.stdout.splitlines()[-1])
        assert last["event"] == "exported" and last["layout"] == "compressed-tensors" and not last["already"] and last["files"] > 2, last
        assert h.sums(w.path("x")) == expected
        assert "already there" in h.run(export(w, "x", "compressed-tensors"), check=0).stdout
        h.run(export(w, "back", "modelopt", run="own.run"), check=0)
        assert h.sums(w.path("back")) == w.golden
        assert tree(w.path("golden.run")) == run_files and hidden(w) == []
        for name in ("golden", "again", "own", "x", "back"):
            h.run([h.JOBCTL, "verify", w.path(name), "--source", w.model], check=0)
        for name in ("golden", "own"):
            w.fsck(name)

        done = faults(w, rng, budget, expected, run_files)
        twice(w, expected, run_files)
        random_kills(w, rng, budget // 4, expected, run_files)
        living(w)
        refusals(w)
    print(f"export_test: {sum(done.values())} faults ({dict(done)}), {budget // 4} random kills, 3 double kills (seed {seed}): the same bytes each time, the run directory as it was")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    chosen = random.SystemRandom().randrange(1 << 30)
    if "--seed" in arguments:
        at = arguments.index("--seed")
        chosen = int(arguments[at + 1])
        del arguments[at:at + 2]
    main(int(arguments[0]) if arguments else 24, chosen)
