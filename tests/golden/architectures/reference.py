#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The forward passes of README.md in plain float32, from config.json and model.safetensors alone; nothing of transformers is used.

    V/bin/python reference.py [NAME...]     compares with expected.json: every linear, expert, key, value, logit, frequency

It proves that the README's sections say all there is to say; where it and the README disagree, one of them is wrong.
"""
import json
import math
import os
import sys

import torch
from safetensors.torch import load_file
from torch.nn.functional import gelu, silu

HERE = os.path.dirname(os.path.abspath(__file__))
E2M1 = torch.tensor([0, .5, 1, 1.5, 2, 3, 4, 6, -0., -.5, -1, -1.5, -2, -3, -4, -6])


def dequantized(tensors, block):
    """Every tensor in float32, FP8 and MXFP4 rounded to bf16 on the way."""
    result = {}
    for name, t in tensors.items():
        if name.endswith(("_scale", "_scale_inv", "_scales", "input_scale")):
            continue
        if name.endswith("_blocks"):
            base = name.removesuffix("_blocks")
            value = E2M1[torch.stack((t & 15, t >> 4), -1).flatten(-2).long()]
            value = value * torch.exp2(tensors[base + "_scales"].float() - 127)[..., None]
            result[base] = value.flatten(-2).transpose(1, 2)
        elif name + "_scale_inv" in tensors:
            s = tensors[name + "_scale_inv"].repeat_interleave(block[0], 0)[:t.shape[0]].repeat_interleave(block[1], 1)[:, :t.shape[1]]
            result[name] = (t.float() * s).bfloat16().float()
        elif name + "_scale" in tensors:
            result[name] = (t.float() * tensors[name + "_scale"]).bfloat16().float()
        else:
            result[name] = t.float()
    return result


class Config:
    """config.json in either style, with the defaults that hub configs leave out."""
    def __init__(self, text):
        self.text, self.kind, get = text, text["model_type"], text.get
        gemma, cohere = self.kind.startswith("gemma"), self.kind.startswith("cohere")
        self.layers, self.hidden, self.heads = text["num_hidden_layers"], text["hidden_size"], text["num_attention_heads"]
        self.kv_heads = get("num_key_value_heads") or self.heads
        self.head_dim = get("head_dim") or self.hidden // self.heads
        self.tied = get("tie_word_embeddings", gemma or cohere)
        self.act = get("hidden_activation") or get("hidden_act", "silu")
        self.eps = text["layer_norm_eps"] if cohere else text["rms_norm_eps"]
        window = get("sliding_window") if get("use_sliding_window", True) else None
        pattern = {"gemma2": 2, "gemma3_text": get("sliding_window_pattern", 6), "cohere2": get("sliding_window_pattern", 4),
                   "gpt_oss": 2}.get(self.kind)
        default = [("sliding_attention" if (i + 1) % pattern else "full_attention") if pattern else
                   ("sliding_attention" if window else "full_attention") for i in range(self.layers)]
        self.types = get("layer_types") or default
        self.windows = [window if t == "sliding_attention" else None for t in self.types]

    def rope(self, layer_type):
        """(theta, parameters) of one layer."""
        text = self.text
        p = dict(text.get("rope_parameters") or {})
        if layer_type in p:
            return p[layer_type]["rope_theta"], dict(p[layer_type])
        if not p:
            p = dict(text.get("rope_scaling") or {})
            p["rope_theta"] = text["rope_theta"]
            p["partial_rotary_factor"] = text.get("partial_rotary_factor", 1.0)
            if self.kind == "gemma3_text" and layer_type == "sliding_attention":
                p = dict(rope_theta=text["rope_local_base_freq"])
        p["rope_type"] = p.get("rope_type") or p.get("type", "default")
        return p["rope_theta"], p


def frequencies(c, layer_type, length):
    theta, p = c.rope(layer_type)
    dim = int((c.text["qk_rope_head_dim"] if c.kind == "deepseek_v3" else c.head_dim) * p.get("partial_rotary_factor", 1.0))
    base = theta ** (torch.arange(0, dim, 2).float() / dim)
    kind = p.get("rope_type", "default")
    if kind == "default":
        return 1 / base, 1.0
    if kind == "linear":
        return 1 / base / p["factor"], 1.0
    original = c.text.get("original_max_position_embeddings") or p["original_max_position_embeddings"]
    factor = p.get("factor") or c.text["max_position_embeddings"] / original
    if kind == "longrope":
        own = torch.tensor(p["long_factor"] if length > original else p["short_factor"])
        return 1 / (own * base), p.get("attention_factor") or (math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0)
    assert kind == "yarn"

    def turns(n):
        return dim * math.log(original / (n * 2 * math.pi)) / (2 * math.log(theta))
    low, high = turns(p.get("beta_fast") or 32), turns(p.get("beta_slow") or 1)
    if p.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = ((torch.arange(dim // 2).float() - low) / ((high - low) or 0.001)).clamp(0, 1)
    a, b = p.get("mscale"), p.get("mscale_all_dim")
    scale = p.get("attention_factor") or (mscale(factor, a) / mscale(factor, b) if a and b else mscale(factor))
    return ramp / (factor * base) + (1 - ramp) / base, scale


def mscale(factor, by=1.0):
    return 0.1 * by * math.log(factor) + 1 if factor > 1 else 1.0


class Pass:
    def __init__(self, c, w, ids):
        self.c, self.w, self.amax, self.kv, self.latent = c, w, {}, [], []
        self.angles = {t: frequencies(c, t, len(ids)) for t in set(c.types)}
        self.run(ids)

    def see(self, name, x):
        self.amax[name] = max(self.amax.get(name, 0.0), x.abs().max().item())

    def linear(self, name, x):
        self.see(name, x)
        y = x @ self.w[name + ".weight"].T
        return y + self.w[name + ".bias"] if name + ".bias" in self.w else y

    def norm(self, name, x, eps=None):
        g = self.w[name + ".weight"]
        if self.c.kind.startswith("cohere"):
            x = x - x.mean(-1, keepdim=True)
        y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + (eps or self.c.eps))
        return y * (1 + g if self.c.kind.startswith("gemma") else g)

    def turn(self, x, layer_type, pairs, halves_out=False):
        """Rotary embedding of [token, head, dim]; pairs: neighbours belong together, else the two halves."""
        inv, scale = self.angles[layer_type]
        at = torch.arange(x.shape[0])[:, None].float() * inv
        cos, sin = at.cos()[:, None] * scale, at.sin()[:, None] * scale
        x, rest = x[..., :2 * len(inv)], x[..., 2 * len(inv):]
        a, b = (x[..., 0::2], x[..., 1::2]) if pairs else x.chunk(2, -1)
        a, b = a * cos - b * sin, b * cos + a * sin
        y = torch.stack((a, b), -1).flatten(-2) if pairs and not halves_out else torch.cat((a, b), -1)
        return torch.cat((y, rest), -1)

    def attend(self, q, k, v, layer, scale):
        c = self.c
        self.kv.append([k.abs().max().item(), v.abs().max().item()])
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
        s = torch.einsum("qhd,khd->hqk", q, k) * scale
        cap = c.text.get("attn_logit_softcapping")
        s = torch.tanh(s / cap) * cap if cap else s
        i = torch.arange(q.shape[0])
        seen = (i[None] <= i[:, None]) & (i[None] > i[:, None] - (c.windows[layer] or len(i)))
        s = s.masked_fill(~seen, float("-inf"))
        sinks = self.w.get(f"model.layers.{layer}.self_attn.sinks")
        if sinks is not None:
            s = torch.cat((s, sinks[:, None, None].expand(-1, len(i), 1)), -1)
        p = s.softmax(-1)[..., :len(i)]
        return torch.einsum("hqk,khd->qhd", p, v).flatten(1)

    def attention(self, layer, x):
        c, at = self.c, f"model.layers.{layer}.self_attn."
        if c.kind == "deepseek_v3":
            return self.latent_attention(layer, x, at)
        if c.kind == "phi3":
            y = self.linear(at + "qkv_proj", x)
            q, k, v = y.split([c.heads * c.head_dim, c.kv_heads * c.head_dim, c.kv_heads * c.head_dim], -1)
        else:
            q, k, v = (self.linear(at + n, x) for n in ("q_proj", "k_proj", "v_proj"))
        q, k, v = (t.unflatten(-1, (-1, c.head_dim)) for t in (q, k, v))
        if at + "q_norm.weight" in self.w:
            q, k = self.norm(at + "q_norm", q), self.norm(at + "k_norm", k)
        if not (c.kind == "cohere2" and c.windows[layer] is None):
            q, k = (self.turn(t, c.types[layer], c.kind.startswith("cohere")) for t in (q, k))
        scale = (c.text["query_pre_attn_scalar"] if c.kind.startswith("gemma") else c.head_dim) ** -0.5
        return self.linear(at + "o_proj", self.attend(q, k, v, layer, scale))

    def latent_attention(self, layer, x, at):
        t, c = self.c.text, self.c
        nope, turned, rank = t["qk_nope_head_dim"], t["qk_rope_head_dim"], t["kv_lora_rank"]
        if t["q_lora_rank"]:
            q = self.linear(at + "q_b_proj", self.norm(at + "q_a_layernorm", self.linear(at + "q_a_proj", x), 1e-6))
        else:
            q = self.linear(at + "q_proj", x)
        q = q.unflatten(-1, (c.heads, nope + turned))
        compressed, k_turned = self.linear(at + "kv_a_proj_with_mqa", x).split([rank, turned], -1)
        compressed = self.norm(at + "kv_a_layernorm", compressed, 1e-6)
        pairs = t.get("rope_interleave", True)
        k_turned = self.turn(k_turned[:, None], c.types[layer], pairs, True)
        self.latent.append([compressed.abs().max().item(), k_turned.abs().max().item()])
        q = torch.cat((q[..., :nope], self.turn(q[..., nope:], c.types[layer], pairs, True)), -1)
        k, v = self.linear(at + "kv_b_proj", compressed).unflatten(-1, (c.heads, -1)).split([nope, t["v_head_dim"]], -1)
        k = torch.cat((k, k_turned.expand(-1, c.heads, -1)), -1)
        _, p = c.rope(c.types[layer])
        scale = (nope + turned) ** -0.5
        if p["rope_type"] != "default" and p.get("mscale_all_dim"):
            scale *= mscale(p["factor"], p["mscale_all_dim"]) ** 2
        return self.linear(at + "o_proj", self.attend(q, k, v, layer, scale))

    def act(self, x):
        return silu(x) if self.c.act == "silu" else gelu(x, approximate="tanh")

    def dense(self, at, x):
        if at + "gate_up_proj.weight" in self.w:
            gate, up = self.linear(at + "gate_up_proj", x).chunk(2, -1)
        else:
            gate, up = self.linear(at + "gate_proj", x), self.linear(at + "up_proj", x)
        return self.linear(at + "down_proj", self.act(gate) * up)

    def route(self, at, x):
        """Chosen experts and their weights, [token, k]."""
        t, kind = self.c.text, self.c.kind
        k = t["num_experts_per_tok"]
        if kind == "gpt_oss":
            best, index = (x @ self.w[at + "router.weight"].T + self.w[at + "router.bias"]).topk(k, -1)
            return index, best.softmax(-1)
        logits = x @ self.w[at + "gate.weight"].T
        if kind != "deepseek_v3":
            best, index = logits.softmax(-1).topk(k, -1)
            return index, best / best.sum(-1, keepdim=True) if kind == "mixtral" or t["norm_topk_prob"] else best
        scores = logits.sigmoid()
        choice = scores + self.w[at + "gate.e_score_correction_bias"]
        grouped = choice.unflatten(-1, (t["n_group"], -1))
        groups = grouped.topk(2, -1)[0].sum(-1).topk(t["topk_group"], -1)[1]
        kept = torch.zeros(grouped.shape[:2]).scatter(1, groups, 1.0).bool()
        index = grouped.masked_fill(~kept[..., None], float("-inf")).flatten(1).topk(k, -1)[1]
        best = scores.gather(1, index)
        if t["norm_topk_prob"]:
            best = best / (best.sum(-1, keepdim=True) + 1e-20)
        return index, best * t["routed_scaling_factor"]

    def experts(self, at, x):
        index, weights = self.route(at, x)
        names = ("w1", "w3", "w2") if self.c.kind == "mixtral" else ("gate_proj", "up_proj", "down_proj")
        out = torch.zeros_like(x)
        for e in index.unique().tolist():
            token, slot = (index == e).nonzero(as_tuple=True)
            if self.c.kind == "gpt_oss":
                y = self.clamped_expert(at + "experts.", e, x[token])
            else:
                p = f"{at}experts.{e}."
                y = self.linear(p + names[2], self.act(self.linear(p + names[0], x[token])) * self.linear(p + names[1], x[token]))
            out.index_add_(0, token, y * weights[token, slot, None])
        return out + self.dense(at + "shared_experts.", x) if self.c.kind == "deepseek_v3" else out

    def clamped_expert(self, at, e, x):
        w, limit = self.w, self.c.text["swiglu_limit"]
        self.see(at + "gate_up_proj", x)
        y = x @ w[at + "gate_up_proj"][e] + w[at + "gate_up_proj_bias"][e]
        gate, up = y[..., 0::2].clamp(max=limit), y[..., 1::2].clamp(-limit, limit)
        y = (up + 1) * gate * torch.sigmoid(1.702 * gate)
        self.see(at + "down_proj", y)
        return y @ w[at + "down_proj"][e] + w[at + "down_proj_bias"][e]

    def mlp(self, layer, x):
        at = f"model.layers.{layer}."
        if at + "block_sparse_moe.gate.weight" in self.w:
            return self.experts(at + "block_sparse_moe.", x)
        if at + "mlp.gate.weight" in self.w or at + "mlp.router.weight" in self.w:
            return self.experts(at + "mlp.", x)
        return self.dense(at + "mlp.", x)

    def run(self, ids):
        c, w = self.c, self.w
        x = w["model.embed_tokens.weight"][ids]
        gemma, cohere = c.kind.startswith("gemma"), c.kind.startswith("cohere")
        x = x * c.hidden ** 0.5 if gemma else x
        for i in range(c.layers):
            at = f"model.layers.{i}."
            y = self.norm(at + "input_layernorm", x)
            if cohere:
                x = x + self.attention(i, y) + self.mlp(i, y)
                continue
            y = self.attention(i, y)
            x = x + (self.norm(at + "post_attention_layernorm", y) if gemma else y)
            y = self.mlp(i, self.norm(at + ("pre_feedforward_layernorm" if gemma else "post_attention_layernorm"), x))
            x = x + (self.norm(at + "post_feedforward_layernorm", y) if gemma else y)
        self.hidden = x
        y = self.norm("model.norm", x[-1])
        y = y @ w["model.embed_tokens.weight" if c.tied else "lm_head.weight"].T
        y = y * c.text["logit_scale"] if cohere else y
        cap = c.text.get("final_logit_softcapping")
        self.logits = torch.tanh(y / cap) * cap if cap else y


def compare(name):
    def load(file):
        with open(os.path.join(HERE, name, file)) as f:
            return json.load(f)
    text = load("config.json")
    c = Config(text)
    w = dequantized(load_file(os.path.join(HERE, name, "model.safetensors")), text.get("quantization_config", {}).get("weight_block_size"))
    worst = 0.0
    for ids, want in zip(load("tokens.json"), load("expected.json")["samples"]):
        got = Pass(c, w, ids)
        assert got.amax.keys() == want["amax_f32"].keys(), got.amax.keys() ^ want["amax_f32"].keys()
        pairs = [(got.amax[k], want["amax_f32"][k]) for k in got.amax]
        pairs += [p for a, b in ((got.kv, want["kv_f32"]), (got.latent, want.get("mla_latent_f32", []))) for s, t in zip(a, b, strict=True)
                  for p in zip(s, t)]
        pairs += [(got.logits.abs().max().item(), want["logits_f32"]["amax"]), (got.hidden.abs().max().item(), want["hidden_f32"]["amax"])]
        inv = want["inv_freq"] if isinstance(want["inv_freq"], dict) else {t: want["inv_freq"] for t in got.angles}
        pairs += [p for t in got.angles for p in zip(got.angles[t][0].tolist(), inv[t])]
        worst = max([worst] + [abs(a / b - 1) for a, b in pairs])
        first = torch.tensor(want["logits_f32"]["first"])
        worst = max(worst, ((got.logits[:16] - first).abs().max() / want["logits_f32"]["amax"]).item())
    print(f"{name}: differs from transformers' float32 by at most {worst:.1e}")
    return worst < 1e-4


if __name__ == "__main__":
    torch.set_num_threads(1)
    names = sys.argv[1:] or sorted(n for n in os.listdir(HERE) if os.path.exists(os.path.join(HERE, n, "expected.json")))
    sys.exit(0 if all([compare(n) for n in names]) else 1)
