# SPDX-License-Identifier: Apache-2.0
"""What the crash tests share: tiny random models, calibration token files, running jobctl, comparing results.

Standard library only. Everything lives in a temporary directory that the caller removes.
"""
import hashlib
import json
import math
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time

BIN = os.environ.get("HOLDFAST_BIN", os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../build/bin"))
JOBCTL = os.path.join(BIN, "jobctl")


def bf16(x):
    bits = struct.unpack("<I", struct.pack("<f", x))[0]
    return (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 & 0xFFFF


def llama(layers, hidden, ffn, heads, kv, vocab, tied=False):
    """config.json in hub style, and the shape of every tensor."""
    dim = hidden // heads
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "intermediate_size": ffn,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv, "vocab_size": vocab,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": tied, "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2,
    }
    shapes = {"model.embed_tokens.weight": [vocab, hidden], "model.norm.weight": [hidden]}
    if not tied:
        shapes["lm_head.weight"] = [vocab, hidden]
    for i in range(layers):
        p = f"model.layers.{i}."
        shapes.update({
            p + "input_layernorm.weight": [hidden], p + "post_attention_layernorm.weight": [hidden],
            p + "self_attn.q_proj.weight": [heads * dim, hidden], p + "self_attn.k_proj.weight": [kv * dim, hidden],
            p + "self_attn.v_proj.weight": [kv * dim, hidden], p + "self_attn.o_proj.weight": [hidden, heads * dim],
            p + "mlp.gate_proj.weight": [ffn, hidden], p + "mlp.up_proj.weight": [ffn, hidden], p + "mlp.down_proj.weight": [hidden, ffn],
        })
    return config, shapes


def safetensors_header(shapes):
    """(what a file of these BF16 tensors begins with, where each of them lies in the file)."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, {n: 8 + len(text) + t["data_offsets"][0] for n, t in header.items()}


def write_model(path, config, files, write):
    """The directory around the weights. `files` holds the shapes of each safetensors file, write(path, shapes) writes one."""
    os.makedirs(path)
    weight_map = {}
    for f, shapes in enumerate(files):
        name = "model.safetensors" if len(files) == 1 else f"model-{f + 1:05d}-of-{len(files):05d}.safetensors"
        write(os.path.join(path, name), shapes)
        weight_map.update(dict.fromkeys(shapes, name))
    if len(files) > 1:
        with open(os.path.join(path, "model.safetensors.index.json"), "w") as out:
            json.dump({"metadata": {}, "weight_map": weight_map}, out)
    with open(os.path.join(path, "config.json"), "w") as out:
        json.dump(config, out, indent=2)
    with open(os.path.join(path, "generation_config.json"), "w") as out:
        json.dump({"bos_token_id": 1, "eos_token_id": 2}, out)


def make_model(path, layers=4, hidden=64, ffn=128, heads=4, kv=2, vocab=256, seed=1, tied=False, files=1):
    """A random Llama checkpoint in hub style; returns its config. For large ones there is tests/bench/make_model.py."""
    rng = random.Random(seed)
    config, shapes = llama(layers, hidden, ffn, heads, kv, vocab, tied)

    def fill(name, count):
        one = 1.0 if "norm" in name else 0.0
        # A pool of normal values, drawn at random: fast, and no two tensors are alike.
        pool = [bf16(one + rng.gauss(0, 0.08)) for _ in range(997)]
        return struct.pack(f"<{count}H", *rng.choices(pool, k=count))

    def write(to, mine):
        with open(to, "wb") as out:
            out.write(safetensors_header(mine)[0])
            for name, shape in mine.items():
                out.write(fill(name, math.prod(shape)))

    names = sorted(shapes)
    write_model(path, config, [{n: shapes[n] for n in names[f::files]} for f in range(files)], write)
    return config


def make_tokens(path, samples=8, length=32, vocab=256, seed=2):
    rng = random.Random(seed)
    with open(path, "w") as out:
        for _ in range(samples):
            out.write(json.dumps({"input_ids": [rng.randrange(vocab) for _ in range(length)]}) + "\n")


def run_args(model, calib, out, *extra):
    device = [] if "--device" in extra else ["--device", "cpu"]
    return [JOBCTL, "run", "--source", model, "--calib", calib, "--out", out, *device, *extra]


def run(args, env=None, timeout=300, check=None):
    e = dict(os.environ)
    e.update(env or {})
    p = subprocess.run(args, env=e, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=timeout)
    if check is not None and p.returncode != check:
        raise AssertionError(f"exit {p.returncode}, expected {check}: {' '.join(args)} {env or ''}\n{p.stdout[-2000:]}\n{p.stderr[-3000:]}")
    return p


def children(pid):
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as f:
            return [int(x) for x in f.read().split()]
    except OSError:
        return []


def sums(out):
    with open(os.path.join(out, "SHA256SUMS"), "rb") as f:
        text = f.read()
    for line in text.decode().splitlines():
        digest, name = line.split("  ", 1)
        h = hashlib.sha256()
        with open(os.path.join(out, name), "rb") as f:
            for part in iter(lambda: f.read(1 << 20), b""):
                h.update(part)
        assert h.hexdigest() == digest, f"{name} does not match SHA256SUMS"
    return text


def assert_no_half_output(out):
    """Under the final name there is either nothing or a whole directory."""
    if os.path.exists(out):
        sums(out)


def assert_no_orphans(pids, seconds=5):
    deadline = time.time() + seconds
    while True:
        left = [p for p in pids if os.path.exists(f"/proc/{p}") and state(p) not in "ZX"]
        if not left:
            return
        assert time.time() < deadline, f"workers {left} outlived their jobctl"
        time.sleep(0.02)


def state(pid):
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[0]
    except OSError:
        return "X"


def kill(pid, sig=signal.SIGKILL):
    try:
        os.kill(pid, sig)
        return True
    except ProcessLookupError:
        return False


def attempt_with_kills(args, rng, within, then_within):
    """Starts this jobctl and, within so many seconds, kills a worker of it, itself, both or nobody: (kills, exit status or None if it was killed, words)."""
    p = subprocess.Popen(args, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    time.sleep(rng.uniform(0, within))
    workers, kills = children(p.pid), 0
    if workers and rng.random() < 0.5:
        kills += kill(rng.choice(workers))
        time.sleep(rng.uniform(0, then_within))
    if rng.random() < 0.6 and p.poll() is None:
        workers = children(p.pid)
        kills += kill(p.pid)
        p.communicate()
        assert_no_orphans(workers)
        return kills, None, ""
    said = p.communicate(timeout=300)[1]
    return kills, p.returncode, said


class Workspace:
    def __init__(self, name, **model):
        self.dir = tempfile.mkdtemp(prefix=f"holdfast-{name}-", dir=os.environ.get("HOLDFAST_TMP"))
        self.model = os.path.join(self.dir, "model")
        self.calib = os.path.join(self.dir, "tokens.jsonl")
        make_model(self.model, **model)
        make_tokens(self.calib)
        self.golden = None

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if exc[0] is None:
            shutil.rmtree(self.dir, ignore_errors=True)
        else:
            print("left for inspection:", self.dir, file=sys.stderr)

    def path(self, name):
        return os.path.join(self.dir, name)

    def args(self, name, *extra):
        return run_args(self.model, self.calib, self.path(name), *extra)

    def make_golden(self, *extra):
        run(self.args("golden", *extra), check=0)
        self.golden = sums(self.path("golden"))
        return self.golden

    def assert_golden(self, name):
        assert sums(self.path(name)) == self.golden, f"{name}: SHA256SUMS differ from the undisturbed run"

    def fsck(self, name, *extra):
        return run([JOBCTL, "fsck", self.path(name + ".run"), "--deep", *extra], check=0)

    def drop(self, name):
        for p in (self.path(name), self.path(name) + ".run"):
            shutil.rmtree(p, ignore_errors=True)
