#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Bad input gets a clear refusal that names file and field, exit code 2, nothing started and nothing lost.

One function per case; each damages a fresh copy of a sound tiny model or calibration file. Usage: refusal_test.py [case ...]
"""
import json
import os
import shutil
import struct
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../crash"))
import harness as h  # noqa: E402

CASES = []


def case(f):
    CASES.append(f)
    return f


def refused(w, *words, args=None, name="o"):
    p = h.run(args or w.args(name))
    assert p.returncode == 2, f"exit {p.returncode}, expected a refusal (2)\n{p.stderr[-1500:]}"
    for word in words:
        assert word in p.stderr, f"the message does not say \"{word}\":\n{p.stderr}"
    assert not os.path.exists(w.path(name)), "an output directory appeared"
    assert not os.path.exists(w.path(name) + ".run"), "a run directory was begun"


def weights(w):
    return os.path.join(w.model, "model.safetensors")


def read(path):
    with open(path, "rb") as f:
        return f.read()


def write(path, data):
    with open(path, "wb") as f:
        f.write(data)


def header(data):
    n = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8:8 + n]), data[8 + n:]


def rebuild(path, head, blob):
    text = (head if isinstance(head, str) else json.dumps(head)).encode()
    write(path, struct.pack("<Q", len(text)) + text + blob)


def config(w, **change):
    path = os.path.join(w.model, "config.json")
    c = json.load(open(path))
    for k, v in change.items():
        if v is None:
            c.pop(k, None)
        else:
            c[k] = v
    json.dump(c, open(path, "w"))


@case
def truncated_weights(w):
    write(weights(w), read(weights(w))[:-100])
    refused(w, "model.safetensors")


@case
def header_longer_than_file(w):
    write(weights(w), struct.pack("<Q", 1 << 40) + read(weights(w))[8:])
    refused(w, "model.safetensors", "header")


@case
def overlapping_tensors(w):
    head, blob = header(read(weights(w)))
    a, b = sorted(head, key=lambda k: head[k]["data_offsets"][0])[:2]
    head[b]["data_offsets"][0] -= 2
    head[b]["data_offsets"][1] -= 2
    rebuild(weights(w), head, blob)
    refused(w, "model.safetensors")


@case
def duplicate_key_in_header(w):
    head, blob = header(read(weights(w)))
    text = json.dumps(head)
    first = json.dumps({"model.norm.weight": head["model.norm.weight"]})[1:-1]
    rebuild(weights(w), "{" + first + "," + text[1:], blob)
    refused(w, "model.safetensors", "duplicate")


@case
def wrong_dtype(w):
    head, blob = header(read(weights(w)))
    head["model.layers.0.mlp.up_proj.weight"]["dtype"] = "I16"
    rebuild(weights(w), head, blob)
    refused(w, "up_proj", "I16")


@case
def unknown_dtype(w):
    head, blob = header(read(weights(w)))
    head["model.norm.weight"]["dtype"] = "Q4_K"
    rebuild(weights(w), head, blob)
    refused(w, "model.norm.weight", "Q4_K")


@case
def tensor_missing(w):
    head, blob = header(read(weights(w)))
    head["model.layers.1.mlp.surprise.weight"] = head.pop("model.layers.1.mlp.down_proj.weight")
    rebuild(weights(w), head, blob)
    refused(w, "model.layers.1.mlp.")


@case
def index_names_missing_file(w):
    head, _ = header(read(weights(w)))
    index = {"metadata": {}, "weight_map": {k: "model-00001-of-00001.safetensors" for k in head}}
    json.dump(index, open(os.path.join(w.model, "model.safetensors.index.json"), "w"))
    os.remove(weights(w))
    refused(w, "model-00001-of-00001.safetensors")


@case
def index_names_missing_tensor(w):
    head, _ = header(read(weights(w)))
    index = {"metadata": {}, "weight_map": {k: "model.safetensors" for k in head}}
    index["weight_map"]["model.layers.9.ghost"] = "model.safetensors"
    json.dump(index, open(os.path.join(w.model, "model.safetensors.index.json"), "w"))
    refused(w, "model.layers.9.ghost")


@case
def no_weights(w):
    os.remove(weights(w))
    refused(w, "safetensors")


@case
def no_config(w):
    os.remove(os.path.join(w.model, "config.json"))
    refused(w, "config.json")


@case
def broken_config(w):
    write(os.path.join(w.model, "config.json"), b'{"architectures": [')
    refused(w, "config.json", "JSON")


@case
def unknown_architecture(w):
    config(w, architectures=["FooForCausalLM"])
    refused(w, "FooForCausalLM", "LlamaForCausalLM", "MistralForCausalLM")


@case
def config_disagrees_with_shapes(w):
    config(w, intermediate_size=256)
    refused(w, "proj.weight", "128")


@case
def more_layers_than_weights(w):
    config(w, num_hidden_layers=6)
    refused(w, "model.layers.4")


@case
def negative_layers(w):
    config(w, num_hidden_layers=-1)
    refused(w, "num_hidden_layers")


@case
def absurd_layers(w):
    config(w, num_hidden_layers=10**15)
    refused(w, "num_hidden_layers")


@case
def heads_do_not_divide(w):
    config(w, num_key_value_heads=3)
    refused(w, "num_key_value_heads")


@case
def unknown_rope(w):
    config(w, rope_scaling={"rope_type": "spiral", "factor": 2.0})
    refused(w, "spiral")


@case
def quantized_source(w):
    config(w, quantization_config={"quant_method": "gptq"})
    refused(w, "quantiz")


@case
def input_dimension_not_divisible_by_16(w):
    shutil.rmtree(w.model)
    h.make_model(w.model, hidden=40, ffn=72, heads=5, kv=5)
    refused(w, "16")


@case
def nan_weight(w):
    head, blob = header(read(weights(w)))
    blob = bytearray(blob)
    at = head["model.layers.2.mlp.gate_proj.weight"]["data_offsets"][0] + 20
    blob[at:at + 2] = struct.pack("<H", 0x7FC0)
    rebuild(weights(w), head, bytes(blob))
    refused(w, "model.layers.2.mlp.gate_proj.weight")


@case
def inf_norm(w):
    head, blob = header(read(weights(w)))
    blob = bytearray(blob)
    at = head["model.layers.2.input_layernorm.weight"]["data_offsets"][0]
    blob[at:at + 2] = struct.pack("<H", 0x7F80)
    rebuild(weights(w), head, bytes(blob))
    refused(w, "model.layers.2.input_layernorm.weight")


@case
def missing_calibration_file(w):
    os.remove(w.calib)
    refused(w, "tokens.jsonl")


@case
def empty_calibration_file(w):
    write(w.calib, b"")
    refused(w, "tokens.jsonl")


@case
def too_few_samples(w):
    refused(w, "tokens.jsonl", "8", args=w.args("o", "--samples", "9"))


@case
def bad_json_line(w):
    lines = read(w.calib).split(b"\n")
    lines[2] = b'{"input_ids": [1, 2'
    write(w.calib, b"\n".join(lines))
    refused(w, "tokens.jsonl", "line 3")


@case
def line_without_fields(w):
    write(w.calib, b'{"input_ids": [1, 2]}\n{"foo": 1}\n')
    refused(w, "tokens.jsonl", "line 2")


@case
def token_beyond_vocabulary(w):
    write(w.calib, b'{"input_ids": [1, 2]}\n{"input_ids": [3, 256]}\n')
    refused(w, "tokens.jsonl", "line 2", "256")


@case
def negative_token(w):
    write(w.calib, b'{"input_ids": [1, -2]}\n')
    refused(w, "tokens.jsonl", "line 1")


@case
def output_exists(w):
    os.makedirs(w.path("o"))
    write(w.path("o") + "/precious", b"x")
    p = h.run(w.args("o"))
    assert p.returncode == 2 and "exists" in p.stderr, p.stderr
    assert os.listdir(w.path("o")) == ["precious"]


@case
def run_dir_is_something_else(w):
    os.makedirs(w.path("o.run"))
    write(w.path("o.run") + "/thesis.tex", b"x")
    p = h.run(w.args("o"))
    assert p.returncode == 2 and "not a run directory" in p.stderr, p.stderr
    assert os.listdir(w.path("o.run")) == ["thesis.tex"]


@case
def newer_format(w):
    h.run(w.args("o"), check=0)
    path = w.path("o.run") + "/FORMAT"
    text = read(path).decode()
    body = [l for l in text.splitlines() if not l.startswith("crc32c")]
    changed = text
    for line in body:
        if "format" in line and line.rstrip().endswith("1"):
            changed = text.replace(line, line.rstrip()[:-1] + "999")
            break
    assert changed != text, text
    changed = recrc(changed)
    os.chmod(path, 0o644)
    write(path, changed.encode())
    p = h.run(w.args("o"))
    assert p.returncode == 2 and "newer" in p.stderr, (p.returncode, p.stderr)


def recrc(text):
    """FORMAT ends with a line that holds the CRC-32C of all bytes before it."""
    lines = text.splitlines(keepends=True)
    if "crc" not in lines[-1]:
        return text
    crc = 0xFFFFFFFF
    for b in "".join(lines[:-1]).encode():
        crc ^= b
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    key = lines[-1].split()[0] if " " in lines[-1].strip() else lines[-1].split("=")[0]
    sep = " " if " " in lines[-1].strip() else "="
    return "".join(lines[:-1]) + f"{key}{sep}{crc ^ 0xFFFFFFFF:08x}\n"


@case
def memory_below_the_plan(w):
    refused(w, "--memory", "needs at least", args=w.args("o", "--memory", "1M"))


@case
def unknown_recipe(w):
    refused(w, "int3", "nvfp4", args=w.args("o", "--recipe", "int3"))


@case
def unknown_layout(w):
    refused(w, "--layout", "gguf", "modelopt and compressed-tensors", args=w.args("o", "--layout", "gguf"))


@case
def shard_layers_do_not_add_up(w):
    refused(w, "4", args=w.args("o", "--shard-layers", "1,2"))


@case
def cuda_without_cuda(w):
    if os.path.exists("/dev/nvidiactl"):
        return
    refused(w, "--device", args=w.args("o")[:-1] + ["cuda"])


@case
def usage_error(w):
    p = h.run([h.JOBCTL, "run", "--source", w.model])
    assert p.returncode == 2 and "--calib" in p.stderr, p
    p = h.run([h.JOBCTL, "run", "--no-such-option"])
    assert p.returncode == 2, p


def interrupted(w, *extra):
    """A job that was killed in the middle."""
    h.make_tokens(w.calib, samples=24, length=64)
    proc = subprocess.Popen(w.args("o", *extra), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                            env={**os.environ, "HOLDFAST_FAIL": "publish.P1@stage.00:12=pause"})
    deadline = time.time() + 120
    slots = w.path("o.run") + "/log/stage.00"
    while time.time() < deadline and not (os.path.isdir(slots) and len(os.listdir(slots)) >= 8):
        time.sleep(0.05)
    workers = h.children(proc.pid)
    h.kill(proc.pid)
    proc.wait()
    h.assert_no_orphans(workers)


def resume_refused(w, *words, extra=()):
    before = sorted(os.listdir(w.path("o.run") + "/log/stage.00"))
    p = h.run(w.args("o", *extra))
    assert p.returncode == 2, f"exit {p.returncode}: {p.stderr[-1500:]}"
    for word in words:
        assert word in p.stderr, f"the message does not say \"{word}\":\n{p.stderr}"
    assert before == sorted(os.listdir(w.path("o.run") + "/log/stage.00")), "something was started"


@case
def changed_arguments_are_named(w):
    interrupted(w)
    resume_refused(w, "--recipe", "nvfp4-w4a16", extra=["--recipe", "nvfp4-w4a16"])
    resume_refused(w, "--layout", "modelopt", "jobctl export", extra=["--layout", "compressed-tensors"])
    resume_refused(w, "--seq-len", extra=["--seq-len", "16"])
    resume_refused(w, "--samples", extra=["--samples", "4"])
    h.make_tokens(w.calib, samples=24, length=64, seed=99)
    resume_refused(w, "--calib", "SHA-256")
    h.make_tokens(w.calib, samples=24, length=64)
    h.run(w.args("o", "--threads", "1"), check=0)


@case
def source_changed_since_the_job_began(w):
    interrupted(w)
    data = bytearray(read(weights(w)))
    data[-3] ^= 1
    write(weights(w), bytes(data))
    resume_refused(w, "model.safetensors", "source changed")
    data[-3] ^= 1
    write(weights(w), bytes(data))
    h.run(w.args("o"), check=0)


@case
def source_changed_behind_an_old_time_stamp(w):
    interrupted(w)
    st = os.stat(weights(w))
    data = bytearray(read(weights(w)))
    head, _ = header(bytes(data))
    base = 8 + struct.unpack("<Q", data[:8])[0]
    data[base + head["model.layers.3.mlp.up_proj.weight"]["data_offsets"][0]] ^= 1
    write(weights(w), bytes(data))
    os.utime(weights(w), ns=(st.st_atime_ns, st.st_mtime_ns))
    p = h.run(w.args("o"))
    assert p.returncode in (1, 2) and "source changed" in p.stderr and "up_proj" in p.stderr, (p.returncode, p.stderr)
    assert not os.path.exists(w.path("o"))


@case
def second_run_is_told_who_works(w):
    h.make_tokens(w.calib, samples=64, length=512)
    first = subprocess.Popen(w.args("o"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not os.path.isdir(w.path("o.run") + "/log/stage.00") and first.poll() is None:
        time.sleep(0.02)
    p = h.run(w.args("o"))
    assert p.returncode == 2 and str(first.pid) in p.stderr and "working" in p.stderr, (p.returncode, p.stderr)
    assert first.wait(timeout=200) == 0, "the first run was disturbed"
    p = h.run(w.args("o"), check=0)
    assert "already done" in p.stdout


@case
def read_only_run_directory(w):
    # Root may write anywhere, so a read-only mount is the honest test.
    os.makedirs(w.path("ro"))
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=100m", "none", w.path("ro")], stderr=subprocess.DEVNULL).returncode != 0:
        return
    try:
        p = h.run(w.args("o", "--run-dir", w.path("ro") + "/run"))
        assert p.returncode == 2 and w.path("ro") in p.stderr, (p.returncode, p.stderr)
    finally:
        subprocess.run(["umount", w.path("ro")], check=True)


@case
def status_and_fsck_of_nothing(w):
    p = h.run([h.JOBCTL, "status", w.path("nowhere")])
    assert p.returncode == 2, p
    p = h.run([h.JOBCTL, "resume", w.path("nowhere")])
    assert p.returncode == 2, p
    p = h.run([h.JOBCTL, "fsck", w.path("nowhere")])
    assert p.returncode in (8, 16), p


def main():
    wanted = sys.argv[1:]
    if wanted == ["--list"]:
        print("\n".join(f.__name__ for f in CASES))
        return 0
    failed = []
    for f in CASES:
        if wanted and f.__name__ not in wanted:
            continue
        try:
            with h.Workspace("refusal") as w:
                f(w)
            print("ok  ", f.__name__)
        except AssertionError as e:
            failed.append(f.__name__)
            print("FAIL", f.__name__, "-", e)
    print(f"{len(failed)} failed: {failed}" if failed else "refusal_test: all cases refused as they should")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
