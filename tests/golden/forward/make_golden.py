#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes the golden forward passes in this directory: tiny random models, and what transformers observes in them.

Per model: config.json (hub style or transformers 5 style), model.safetensors (bf16), tokens.json (two sequences) and expected.json:
for each sequence the largest |input| of every linear of the decoder, computed in bf16 and in float32, statistics of the hidden state
behind the last layer, and the rotary frequencies. Weights are data, nothing of transformers is copied.

    python3 -m venv V && V/bin/pip install torch==2.11.0 'transformers==5.*' safetensors
    V/bin/python make_golden.py [NAME...]

A seed counts as good when bf16 and float32 agree within 1.5 % at every linear: two correct forward passes must agree well before a
tolerance of 2.5 % says anything.
"""
import json
import os
import sys

import torch
from safetensors.torch import save_file
from transformers import (LlamaConfig, LlamaForCausalLM, MinistralConfig, MinistralForCausalLM, MistralConfig, MistralForCausalLM,
                          Qwen2Config, Qwen2ForCausalLM)

HERE = os.path.dirname(os.path.abspath(__file__))
LENGTHS = (96, 57)
BASE = dict(vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=256, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2)


def rope(kind, **kw):
    return dict(rope_type=kind, rope_theta=10000.0, **kw)


# name: (config class, model class, config, style)
MODELS = {
    "llama_default": (LlamaConfig, LlamaForCausalLM, dict(), "v5"),
    "llama_llama3": (LlamaConfig, LlamaForCausalLM, dict(rope_parameters=rope(
        "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)), "v5"),
    "llama_linear": (LlamaConfig, LlamaForCausalLM, dict(rope_parameters=rope("linear", factor=4.0)), "hub"),
    "llama_dynamic": (LlamaConfig, LlamaForCausalLM, dict(rope_parameters=rope("dynamic", factor=4.0), max_position_embeddings=16), "hub"),
    "llama_yarn": (LlamaConfig, LlamaForCausalLM, dict(rope_parameters=rope(
        "yarn", factor=8.0, original_max_position_embeddings=32)), "hub"),
    "llama_yarn_mscale": (LlamaConfig, LlamaForCausalLM, dict(rope_parameters=rope(
        "yarn", factor=8.0, original_max_position_embeddings=32, mscale=1.0, mscale_all_dim=0.5, beta_fast=16.0, beta_slow=2.0,
        truncate=False)), "v5"),
    "llama_bias": (LlamaConfig, LlamaForCausalLM, dict(attention_bias=True, mlp_bias=True), "v5"),
    "llama_head_dim": (LlamaConfig, LlamaForCausalLM, dict(head_dim=32, num_attention_heads=2, num_key_value_heads=2), "v5"),
    "llama_tied": (LlamaConfig, LlamaForCausalLM, dict(tie_word_embeddings=True, num_key_value_heads=1), "hub"),
    "llama_gelu": (LlamaConfig, LlamaForCausalLM, dict(hidden_act="gelu_pytorch_tanh", num_key_value_heads=4), "v5"),
    "mistral_window": (MistralConfig, MistralForCausalLM, dict(sliding_window=16), "hub"),
    "mistral_layer_types": (MinistralConfig, MinistralForCausalLM, dict(
        sliding_window=12, head_dim=16, num_hidden_layers=3, layer_types=["full_attention", "sliding_attention", "full_attention"]), "v5"),
    "qwen2_window": (Qwen2Config, Qwen2ForCausalLM, dict(use_sliding_window=True, sliding_window=16, max_window_layers=1), "v5"),
}


def fill(model, generator):
    """Weights that make attention selective and every feature matter."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if "norm" in name:
                p.copy_(1 + 0.2 * noise)
            elif "embed_tokens" in name:
                p.copy_(noise)
            elif name.endswith("bias"):
                p.copy_(0.5 * noise)
            elif "q_proj" in name or "k_proj" in name:
                p.copy_(0.16 * noise)
            else:
                p.copy_(0.12 * noise)
            p.copy_(p.to(torch.bfloat16).float())
    return model


def observe(model_class, config, state, ids, dtype):
    model = model_class(config)
    model.load_state_dict(state)
    rotary = model.model.rotary_emb   # from_pretrained keeps the frequencies in float32; a plain .to(bfloat16) would not
    frequencies = rotary.inv_freq.clone()
    model = model.to(dtype).eval()
    rotary.inv_freq, rotary.original_inv_freq = frequencies, frequencies.clone()
    seen, hidden = {}, {}

    def hook(name):
        def run(module, args):
            seen[name] = args[0].abs().max().float().item()
        return run

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name.startswith("model.layers."):
            module.register_forward_pre_hook(hook(name))
    last = model.model.layers[-1]
    last.register_forward_hook(lambda m, a, out: hidden.update(x=(out[0] if isinstance(out, tuple) else out)))
    with torch.no_grad():
        model(torch.tensor([ids]), use_cache=False)
    x = hidden["x"].double()
    return seen, dict(rms=x.pow(2).mean().sqrt().item(), amax=x.abs().max().item(), mean=x.mean().item(),
                      last=[v.item() for v in x.reshape(-1, x.shape[-1])[-1][:8]]), rotary.inv_freq.float().tolist()


def hub_style(config):
    """The spelling of config.json before transformers 5."""
    parameters = config.pop("rope_parameters", None) or {}
    config["rope_theta"] = parameters.pop("rope_theta", 10000.0)
    kind = parameters.pop("rope_type", "default")
    config["rope_scaling"] = None if kind == "default" else {"type": kind, **parameters}
    config["torch_dtype"] = config.pop("dtype", "bfloat16")
    return config


def make(name):
    config_class, model_class, extra, style = MODELS[name]
    for seed in range(100):
        config = config_class(**{**BASE, **extra}, dtype="bfloat16")
        generator = torch.Generator().manual_seed(seed)
        state = fill(model_class(config), generator).state_dict()
        tokens = [torch.randint(3, 256, (n,), generator=generator).tolist() for n in LENGTHS]
        samples, worst = [], 0.0
        for ids in tokens:
            low, low_hidden, inv_freq = observe(model_class, config, state, ids, torch.bfloat16)
            full, full_hidden, inv_freq = observe(model_class, config, state, ids, torch.float32)
            worst = max(worst, max(abs(low[k] / full[k] - 1) for k in full))
            samples.append(dict(amax_bf16=low, amax_f32=full, hidden_bf16=low_hidden, hidden_f32=full_hidden, inv_freq=inv_freq))
        if worst < 0.015:
            break
    else:
        raise SystemExit(f"{name}: no seed is good")
    out = os.path.join(HERE, name)
    os.makedirs(out, exist_ok=True)
    keep = {k: v.to(torch.bfloat16).contiguous() for k, v in state.items() if not (config.tie_word_embeddings and k == "lm_head.weight")}
    save_file(keep, os.path.join(out, "model.safetensors"), metadata={"format": "pt"})
    text = config.to_dict()
    text["architectures"] = [model_class.__name__ if model_class is not MinistralForCausalLM else "MistralForCausalLM"]
    if model_class is MinistralForCausalLM:
        text["model_type"] = "mistral"   # as on the hub; transformers recognizes it by layer_types
    text["dtype"] = "bfloat16"
    text = hub_style(text) if style == "hub" else text
    for path, value in (("config.json", text), ("tokens.json", tokens), ("expected.json", dict(seed=seed, worst=worst, samples=samples))):
        with open(os.path.join(out, path), "w") as f:
            json.dump(value, f, indent=None if path == "tokens.json" else 2)
            f.write("\n")
    print(f"{name}: seed {seed}, bf16 and float32 differ by at most {100 * worst:.2f} %")


if __name__ == "__main__":
    for model_name in sys.argv[1:] or MODELS:
        make(model_name)
