#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A large random Llama checkpoint in BF16, fast and in little memory, and token ids to calibrate it with. Standard library only.

  make_model.py DIR --layers 32 --hidden 4096 --inner 14336 --heads 32 --kv 8 --vocab 32768 [--tokens 128x1024]

Weights look like N(0, 0.02), norms like 1; the same arguments give the same bytes. Files hold --layers-per-file layers each and are written by
as many processes as there are cores, a piece of a tensor at a time, so memory stays small. The tokens go to DIR.jsonl. A directory that is there already, made
with the same arguments, is left as it is. Tests use the small models of tests/crash/harness.py; names and shapes come from there.
"""
import argparse
import json
import math
import multiprocessing
import os
import random
import shutil
import statistics
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../crash"))
import harness as h  # noqa: E402

PIECE = 1 << 16         # values made at a time: they stay in a core's cache
JOB = 256 * PIECE       # values of one tensor that one process makes

# The middles of 256 equally likely cells of the normal distribution, as bf16; the lower half of the mantissa is drawn for each value.
CELLS = [h.bf16(statistics.NormalDist(0, 0.02).inv_cdf((i + 0.5) / 256)) for i in range(256)]
HIGH, LOW = bytes(c >> 8 for c in CELLS), bytes(c & 0xF0 for c in CELLS)


def normal(rng, count):
    """Bytes of so many bf16 values: the operations of bytes and int do the work, none of them value by value."""
    cells, noise = rng.randbytes(count), int.from_bytes(rng.randbytes(count), "little") & int.from_bytes(b"\x0f" * count, "little")
    out = bytearray(2 * count)
    out[0::2] = (int.from_bytes(cells.translate(LOW), "little") | noise).to_bytes(count, "little")
    out[1::2] = cells.translate(HIGH)
    return out


def write_values(job):
    """Values [first, first + count) of a tensor, at this offset of the file."""
    path, offset, name, first, count, seed = job
    rng = random.Random(f"{seed} {name} {first}")
    with open(path, "r+b", buffering=0) as out:
        out.seek(offset)
        if "norm" in name:
            out.write(b"".join(h.bf16(1 + rng.gauss(0, 0.02)).to_bytes(2, "little") for _ in range(count)))
            return
        for at in range(0, count, PIECE):
            out.write(normal(rng, min(PIECE, count - at)))


def begin_file(path, shapes, seed):
    """Writes the header and returns the jobs that fill the rest."""
    header, offsets = h.safetensors_header(shapes)
    with open(path, "wb") as out:
        out.write(header)
    return [(path, offsets[name] + 2 * first, name, first, min(JOB, math.prod(shape) - first), seed)
            for name, shape in shapes.items() for first in range(0, math.prod(shape), JOB)]


def groups(shapes, layers, per_file):
    """The shapes of each file: embedding and head, then so many layers each."""
    prefixes = [[f"model.layers.{i}." for i in range(at, min(at + per_file, layers))] for at in range(0, layers, per_file)]
    outer = {n: s for n, s in shapes.items() if not n.startswith("model.layers.")}
    return [outer] + [{n: s for n, s in shapes.items() if n.startswith(tuple(p))} for p in prefixes]


def make(a, stamp):
    config, shapes = h.llama(a.layers, a.hidden, a.inner, a.heads, a.kv, a.vocab)
    config["max_position_embeddings"] = max(2048, a.positions)
    jobs, partial = [], a.dir + ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    h.write_model(partial, config, groups(shapes, a.layers, a.layers_per_file), lambda path, mine: jobs.extend(begin_file(path, mine, a.seed)))
    with multiprocessing.Pool(a.processes) as pool:
        pool.map(write_values, jobs, chunksize=1)
    with open(os.path.join(partial, "made_by.json"), "w") as out:
        json.dump(stamp, out)
    os.rename(partial, a.dir)


def made_already(a, stamp):
    try:
        with open(os.path.join(a.dir, "made_by.json")) as f:
            return json.load(f) == stamp
    except OSError:
        return False


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("dir")
    ap.add_argument("--layers", type=int, required=True)
    ap.add_argument("--hidden", type=int, required=True)
    ap.add_argument("--inner", type=int, required=True, help="width of the feed-forward part")
    ap.add_argument("--heads", type=int, required=True)
    ap.add_argument("--kv", type=int, required=True, help="key and value heads")
    ap.add_argument("--vocab", type=int, required=True)
    ap.add_argument("--positions", type=int, default=8192, help="max_position_embeddings")
    ap.add_argument("--layers-per-file", type=int, default=2)
    ap.add_argument("--dtype", choices=["bf16"], default="bf16")
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    ap.add_argument("--tokens", metavar="NxLEN", help="also write DIR.jsonl: N samples of LEN token ids")
    a = ap.parse_args()
    a.dir = a.dir.rstrip("/")
    stamp = {k: v for k, v in vars(a).items() if k not in ("dir", "processes", "tokens")}
    begin = time.monotonic()
    if made_already(a, stamp):
        print(f"{a.dir} is there already")
    elif os.path.exists(a.dir):
        sys.exit(f"make_model.py: {a.dir} exists and was not made with these arguments; remove it: rm -r {a.dir}")
    else:
        make(a, stamp)
        size = sum(os.path.getsize(os.path.join(a.dir, n)) for n in os.listdir(a.dir))
        print(f"{a.dir}: {size / 2e9:.2f} G weights, {size / 1e9:.1f} GB in {time.monotonic() - begin:.1f} s")
    if a.tokens:
        samples, length = (int(x) for x in a.tokens.split("x"))
        h.make_tokens(a.dir + ".jsonl", samples=samples, length=length, vocab=a.vocab, seed=a.seed + 1)
        print(f"{a.dir}.jsonl: {samples} samples of {length} tokens")


if __name__ == "__main__":
    main()
