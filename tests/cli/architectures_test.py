#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Each architecture from a model directory to a verified result: the tiny models of tests/golden/architectures, as one stage and as two with a worker
killed at a random place between them; both must end in the same SHA256SUMS and be sound for `verify --source`.

Usage: architectures_test.py [model ...]
"""
import json
import os
import random
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../crash"))
import harness as h  # noqa: E402

MODELS = ("cohere", "cohere2", "cohere_qk_norm", "gemma2", "gemma3", "gemma3_layer_types", "phi3", "phi3_longrope", "phi3_partial", "qwen3")
GOLDEN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../golden/architectures")
POINTS = ("compute.sample@0", "compute.sample@1", "publish.P4@stage.00:2", "publish.P2@stage.01:1", "evict.tensor:7")


def run(w, model, name, *extra, env=None):
    with open(os.path.join(GOLDEN, model, "tokens.json")) as f:
        tokens = json.load(f)
    calib = w.path(model + ".jsonl")
    with open(calib, "w") as f:
        f.writelines(json.dumps({"input_ids": ids}) + "\n" for ids in tokens)
    out = w.path(f"{model}-{name}")
    h.run([h.JOBCTL, "run", "--source", os.path.join(GOLDEN, model), "--calib", calib, "--out", out, "--device", "cpu", "--seq-len", "128", *extra], check=0, env=env)
    h.run([h.JOBCTL, "verify", out, "--source", os.path.join(GOLDEN, model)], check=0)
    with open(os.path.join(out, "SHA256SUMS")) as f:
        return f.read()


def main():
    rng = random.Random(7)
    with h.Workspace("architectures") as w:
        for model in sys.argv[1:] or MODELS:
            point = rng.choice(POINTS)
            one, two = run(w, model, "one"), run(w, model, "two", "--stages", "2", env={"HOLDFAST_FAIL": point + "=kill"})
            assert one == two, f"{model}: one stage and two with a worker killed at {point} differ:\n{one}\n{two}"
            print(f"{model}: sound, the same bytes with a worker killed at {point}")


if __name__ == "__main__":
    main()
