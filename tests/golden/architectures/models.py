# SPDX-License-Identifier: Apache-2.0
"""The models of this directory: what config.json says, how the weights are drawn, and how each feature is switched off.

A config is spelled as the hub spells it (style "hub") or as transformers 5 saves it (style "v5", completed by its own defaults).
`without` names every feature that must show: an edit of the config, an edit of the loaded model, or a patch of transformers' module.
"""
import sys
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Callable

import torch
from torch import nn

SMALL = dict(vocab_size=256, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             max_position_embeddings=256, bos_token_id=1, eos_token_id=2)
HUB = dict(torch_dtype="bfloat16", transformers_version="4.50.0", use_cache=True, attention_dropout=0.0, initializer_range=0.02)


def of(*parts, **more):
    """One dict of several, the later ones win."""
    return {k: v for part in (*parts, more) for k, v in part.items()}


@dataclass
class Model:
    architecture: str
    style: str
    config: dict
    without: dict
    weights: dict = field(default_factory=dict)   # part of a name: (mean, deviation), before the general rules
    source: str = ""                              # "fp8", "fp8_block", "mxfp4": how the checkpoint stores its linears
    mtp: bool = False
    bias_dtype: torch.dtype = torch.float32       # of e_score_correction_bias in the checkpoint


def setting(**values) -> Callable:
    def edit(config):
        for key, value in values.items():
            setattr(config, key, value)
    return SimpleNamespace(config=edit)


def rope(layer_type=None, **values):
    def edit(config):
        p = config.rope_parameters[layer_type] if layer_type else config.rope_parameters
        p.update(values)
        if "original_max_position_embeddings" in values and hasattr(config, "original_max_position_embeddings"):
            config.original_max_position_embeddings = values["original_max_position_embeddings"]
    return SimpleNamespace(config=edit)


def module(*names, put=nn.Identity):
    """Replaces every submodule of that name."""
    def edit(model):
        for parent in list(model.modules()):
            for name in names:
                if getattr(parent, name, None) is not None and isinstance(getattr(parent, name), nn.Module):
                    setattr(parent, name, put())
    return SimpleNamespace(model=edit)


def parameter(*names, value):
    """Fills every parameter or buffer whose name ends so."""
    def edit(model):
        for name, p in list(model.named_parameters()) + list(model.named_buffers()):
            if name.endswith(names):
                p.data.fill_(value)
    return SimpleNamespace(model=edit)


def attribute(name, value, where="self_attn"):
    """Sets a plain attribute of every submodule of that name; value may be a function of the old one."""
    def edit(model):
        for path, part in model.named_modules():
            if path.endswith(where) and hasattr(part, name):
                setattr(part, name, value(getattr(part, name)) if callable(value) else value)
    return SimpleNamespace(model=edit)


def patch(*entries):
    """(model type, class or None, name, new): replaces a function of transformers' modelling code."""
    return SimpleNamespace(patch=entries)


def code(model_type):
    return sys.modules[f"transformers.models.{model_type}.modeling_{model_type}"]


class Zero(nn.Module):
    def forward(self, x, *a, **k):
        return torch.zeros_like(x)


def half_split(x):
    a, b = x.chunk(2, dim=-1)
    return torch.cat((-b, a), dim=-1)


def half_split_angles(self, x, position_ids):
    freqs = position_ids[..., None].float() * self.inv_freq.float()
    emb = torch.cat((freqs, freqs), dim=-1)
    return (emb.cos() * self.attention_scaling).to(x.dtype), (emb.sin() * self.attention_scaling).to(x.dtype)


def rms_not_layer_norm(self, x):
    y = x.float()
    return (self.weight.float() * y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)).to(x.dtype)


def weight_not_one_plus(self, x):
    return (self._norm(x.float()) * self.weight.float()).type_as(x)


def sequential_block(self, hidden_states, **kw):
    hidden_states = hidden_states + self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kw)[0]
    return hidden_states + self.mlp(self.input_layernorm(hidden_states))


def gate_behind_up(self, x):
    up, gate = self.gate_up_proj(x).chunk(2, dim=-1)
    return self.down_proj(up * self.activation_fn(gate))


def router(change):
    """Wraps a router's forward: change(module, logits, weights, indices) -> weights, indices."""
    def edit(model):
        for path, part in model.named_modules():
            if path.endswith(("mlp.gate", "mlp.router")):
                inner = part.forward
                part.forward = (lambda p, f: lambda x: (lambda r: (r[0], *change(p, *r)))(f(x)))(part, inner)
    return SimpleNamespace(model=edit)


def second_left_out(p, logits, weights, indices):
    first = weights.clone()
    first[:, 1:] = 0
    return first, indices


def not_renormalized(p, logits, weights, indices):
    return logits.float().softmax(-1).gather(1, indices).to(weights.dtype), indices


def softmax_over_all(p, logits, weights, indices):
    return logits.softmax(-1).gather(1, indices), indices


def biased_weights(p, logits, weights, indices):
    w = (logits.sigmoid() + p.e_score_correction_bias).gather(1, indices)
    return w / w.sum(-1, keepdim=True) * p.routed_scaling_factor, indices


def softmax_scores(p, logits, weights, indices):
    w = logits.softmax(-1).gather(1, indices)
    return w / w.sum(-1, keepdim=True) * p.routed_scaling_factor, indices


def gate_then_up(self, gate_up):
    gate, up = gate_up.chunk(2, dim=-1)
    gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
    return (up + 1) * gate * torch.sigmoid(gate * self.alpha)


def up_without_one(self, gate_up):
    gate, up = gate_up[..., ::2].clamp(max=self.limit), gate_up[..., 1::2].clamp(-self.limit, self.limit)
    return up * gate * torch.sigmoid(gate * self.alpha)


def rope_everywhere(model):
    for layer in model.model.layers:
        layer.self_attn.sliding_window = layer.self_attn.sliding_window or 4096


def rope_nowhere(model):
    for layer in model.model.layers:
        layer.self_attn.sliding_window = None


WIDE = 4096
NO_WINDOW = setting(sliding_window=WIDE)
WINDOWS_EVERYWHERE = SimpleNamespace(config=lambda c: setattr(c, "layer_types", ["sliding_attention"] * c.num_hidden_layers))
QK_NORMS = {"q_norm": module("q_norm"), "k_norm": module("k_norm")}


def cohere(**kw):
    return {**HUB, **SMALL, "model_type": "cohere", "hidden_act": "silu", "layer_norm_eps": 1e-5, "rope_theta": 10000.0,
            "attention_bias": False, "pad_token_id": 0, **kw}


def cohere_without(kind):
    name = "Cohere2" if kind == "cohere2" else "Cohere"
    return {
        "logit_scale": setting(logit_scale=1.0),
        "interleaved rope": patch((kind, None, "rotate_half", half_split),
                                  (kind, name + "RotaryEmbedding", "forward", half_split_angles)),
        "mean of LayerNorm": patch((kind, name + "LayerNorm", "forward", rms_not_layer_norm)),
        "parallel block": patch((kind, name + "DecoderLayer", "forward", sequential_block)),
    }


GEMMA = of(SMALL, hidden_size=80, intermediate_size=128, head_dim=32, hidden_activation="gelu_pytorch_tanh", rms_norm_eps=1e-6,
             pad_token_id=0)


def gemma_without(kind):
    return {
        "1 + w": patch((kind, kind.capitalize() + "RMSNorm", "forward", weight_not_one_plus)),
        "embedding scale": parameter("embed_scale", value=1.0),
        "query_pre_attn_scalar": attribute("scaling", 32 ** -0.5),
        "window": NO_WINDOW,
        "full layers": WINDOWS_EVERYWHERE,
        "norm behind attention": module("post_attention_layernorm"),
        "norm behind mlp": module("post_feedforward_layernorm"),
        "tanh gelu": setting(hidden_activation="silu"),
    }


GEMMA3_WITHOUT = {
    **gemma_without("gemma3"), **QK_NORMS,
    "local theta": rope("sliding_attention", rope_theta=1000000.0),
    "global theta": rope("full_attention", rope_theta=100.0),
    "global rope scaling": rope("full_attention", factor=1.0),
}
GEMMA_WEIGHTS = {"q_norm": (0.4, 0.2), "k_norm": (0.4, 0.2), "norm": (0.1, 0.3), "embed_tokens": (0.0, 0.15)}
# 16 dimensions of a head, or 12 of 16 with the partial factor
SHORT = [1.0, 1.02, 1.05, 1.1, 1.2, 1.3, 1.5, 2.0]
LONG = [1.0, 1.4, 2.2, 3.1, 4.5, 6.0, 7.5, 8.0]

PHI3 = of(HUB, SMALL, model_type="phi3", hidden_act="silu", rms_norm_eps=1e-5, rope_theta=10000.0, pad_token_id=0, resid_pdrop=0.0,
            embd_pdrop=0.0, attention_bias=False, tie_word_embeddings=False)
MOE_WITHOUT = {"second expert": router(second_left_out)}

QWEN3_MOE = of(SMALL, model_type="qwen3_moe", head_dim=32, hidden_act="silu", num_experts=8, num_experts_per_tok=2,
                 moe_intermediate_size=32, decoder_sparse_step=1, mlp_only_layers=[], rms_norm_eps=1e-6, attention_bias=False,
                 use_sliding_window=False, tie_word_embeddings=False)
QK_NORM_WEIGHTS = {"q_norm": (1.4, 0.3), "k_norm": (1.4, 0.3)}

DEEPSEEK = of(SMALL, model_type="deepseek_v3", vocab_size=128, num_key_value_heads=4, num_hidden_layers=3, moe_intermediate_size=16,
                n_shared_experts=1,
                n_routed_experts=8, num_experts_per_tok=2, n_group=4, topk_group=2, routed_scaling_factor=2.5, kv_lora_rank=32,
                qk_rope_head_dim=16, v_head_dim=16, qk_nope_head_dim=24, first_k_dense_replace=1, hidden_act="silu", rms_norm_eps=1e-6,
                attention_bias=False, tie_word_embeddings=False)
DEEPSEEK_HUB = of(HUB, rope_theta=10000.0, ep_size=1, moe_layer_freq=1, scoring_func="sigmoid", topk_method="noaux_tc")


def deepseek_without(norm, attention_factor):
    return {
        "e_score_correction_bias": parameter("e_score_correction_bias", value=0.0),
        "weights without the bias": router(biased_weights),
        "sigmoid": router(softmax_scores),
        "groups": setting(n_group=1, topk_group=1),
        "routed_scaling_factor": setting(routed_scaling_factor=1.0),
        "norm_topk_prob": setting(norm_topk_prob=not norm),
        "shared experts": module("shared_experts", put=Zero),
        "mscale in the softmax scale": attribute("scaling", 40 ** -0.5),
        **({"yarn attention factor": rope(attention_factor=1.0)} if attention_factor else {}),
        "yarn": rope(rope_type="default"),
        "interleaved rope": setting(rope_interleave=False),
        "kv_a_layernorm": module("kv_a_layernorm"),
    }


GPT_OSS = of(SMALL, model_type="gpt_oss", head_dim=32, intermediate_size=64, num_local_experts=4, num_experts_per_tok=2,
               sliding_window=16, rms_norm_eps=1e-5, hidden_act="silu", attention_bias=True, tie_word_embeddings=False,
               layer_types=["sliding_attention", "full_attention"])
GPT_OSS_YARN = dict(rope_type="yarn", factor=8.0, beta_fast=32.0, beta_slow=1.0, truncate=False, original_max_position_embeddings=32)
GPT_OSS_WITHOUT = {
    "sinks": parameter("sinks", value=-1e9),
    "window": NO_WINDOW,
    "full layers": WINDOWS_EVERYWHERE,
    "softmax over the chosen": router(softmax_over_all),
    "router bias": parameter("router.bias", value=0.0),
    "gate_up_proj_bias": parameter("gate_up_proj_bias", value=0.0),
    "down_proj_bias": parameter("down_proj_bias", value=0.0),
    "biases of attention": parameter("q_proj.bias", "k_proj.bias", "v_proj.bias", "o_proj.bias", value=0.0),
    "swiglu_limit": attribute("limit", 1e9, where="experts"),
    "alpha": attribute("alpha", 1.0, where="experts"),
    "up + 1": patch(("gpt_oss", "GptOssExperts", "_apply_gate", up_without_one)),
    "gate and up by turns": patch(("gpt_oss", "GptOssExperts", "_apply_gate", gate_then_up)),
    "yarn": rope(rope_type="default"),
    "yarn attention factor": rope(attention_factor=1.0),
}
GPT_OSS_WEIGHTS = {"sinks": (1.0, 1.0), "router.weight": (0.0, 0.25), "experts.gate_up_proj_bias": (0.0, 0.5),
                   "experts.down_proj_bias": (0.0, 0.5), "experts.gate_up_proj": (0.0, 0.3), "experts.down_proj": (0.0, 0.1)}

MODELS = {
    "qwen3": Model("Qwen3ForCausalLM", "hub", {
        **HUB, **SMALL, "model_type": "qwen3", "head_dim": 32, "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
        "rope_scaling": None, "attention_bias": False, "max_window_layers": 2, "sliding_window": None, "use_sliding_window": False,
        "tie_word_embeddings": False}, {**QK_NORMS, "rope theta": rope(rope_theta=10000.0)}, QK_NORM_WEIGHTS),

    "cohere": Model("CohereForCausalLM", "hub", cohere(logit_scale=0.0625, num_key_value_heads=4), cohere_without("cohere"),
                    {"embed_tokens": (0.5, 1.0), "layernorm": (1.0, 0.3)}),
    "cohere_qk_norm": Model("CohereForCausalLM", "v5", of(
        SMALL, model_type="cohere", hidden_act="silu", layer_norm_eps=1e-5, use_qk_norm=True, logit_scale=0.25, pad_token_id=0,
        rope_parameters=dict(rope_type="default", rope_theta=10000.0)), {**cohere_without("cohere"), **QK_NORMS},
        {"embed_tokens": (0.5, 1.0), **QK_NORM_WEIGHTS}),
    "cohere2": Model("Cohere2ForCausalLM", "hub", {
        **cohere(model_type="cohere2", logit_scale=0.25, num_hidden_layers=3), "head_dim": 16, "sliding_window": 16,
        "sliding_window_pattern": 2, "layer_switch": 2, "order_of_interleaved_layers": "local_attn_first", "rotary_pct": 1.0,
        "cache_implementation": "hybrid", "position_embedding_type": "rope_gptj", "use_embedding_sharing": True,
        "use_gated_activation": True, "use_parallel_block": True, "use_parallel_embedding": False}, {
        **cohere_without("cohere2"), "no rope in full layers": SimpleNamespace(model=rope_everywhere),
        "rope in sliding layers": SimpleNamespace(model=rope_nowhere), "window": NO_WINDOW, "full layers": WINDOWS_EVERYWHERE},
        {"embed_tokens": (0.5, 1.0)}),

    "gemma2": Model("Gemma2ForCausalLM", "v5", of(
        GEMMA, model_type="gemma2", query_pre_attn_scalar=20, attn_logit_softcapping=3.0, final_logit_softcapping=4.0, sliding_window=16,
        rope_parameters=dict(rope_type="default", rope_theta=10000.0)), {
        **gemma_without("gemma2"), "attn_logit_softcapping": setting(attn_logit_softcapping=None),
        "final_logit_softcapping": setting(final_logit_softcapping=None)},
        {**GEMMA_WEIGHTS, "model.norm": (1.0, 0.3), "q_proj": (0.0, 0.2), "k_proj": (0.0, 0.2)}),
    "gemma3": Model("Gemma3ForCausalLM", "hub", of(
        HUB, GEMMA, model_type="gemma3_text", num_hidden_layers=3, query_pre_attn_scalar=20, sliding_window=16, sliding_window_pattern=3,
        rope_theta=1000000.0, rope_local_base_freq=10000.0, rope_scaling=dict(rope_type="linear", factor=8.0), attention_bias=False,
        attn_logit_softcapping=None, final_logit_softcapping=None, cache_implementation="hybrid"), GEMMA3_WITHOUT, GEMMA_WEIGHTS),
    "gemma3_layer_types": Model("Gemma3ForCausalLM", "v5", of(
        GEMMA, model_type="gemma3_text", num_hidden_layers=3, query_pre_attn_scalar=20, sliding_window=12,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"], rope_parameters=dict(
            sliding_attention=dict(rope_type="default", rope_theta=10000.0),
            full_attention=dict(rope_type="linear", factor=8.0, rope_theta=1000000.0))), GEMMA3_WITHOUT, GEMMA_WEIGHTS),

    "phi3": Model("Phi3ForCausalLM", "hub", of(
        PHI3, sliding_window=16, original_max_position_embeddings=256, rope_scaling=None),
        {"window": NO_WINDOW, "gate before up": patch(("phi3", "Phi3MLP", "forward", gate_behind_up))}),
    "phi3_longrope": Model("Phi3ForCausalLM", "hub", of(
        PHI3, sliding_window=WIDE, original_max_position_embeddings=64,
        rope_scaling=dict(type="longrope", short_factor=SHORT, long_factor=LONG)),
        {"long factors": rope(long_factor=SHORT), "short factors": rope(short_factor=[1.0] * 8),
         "attention factor": rope(attention_factor=1.0)}),
    "phi3_partial": Model("Phi3ForCausalLM", "v5", of(
        SMALL, model_type="phi3", hidden_act="silu", rms_norm_eps=1e-5, pad_token_id=0, original_max_position_embeddings=64,
        tie_word_embeddings=True, rope_parameters=dict(rope_type="longrope", rope_theta=10000.0, partial_rotary_factor=0.75,
                                                       short_factor=SHORT[:6], long_factor=LONG[:6])),
        {"partial_rotary_factor": rope(partial_rotary_factor=1.0, short_factor=SHORT, long_factor=LONG),
         "long factors": rope(long_factor=SHORT[:6]), "attention factor": rope(attention_factor=1.0)}, {"embed_tokens": (0.0, 0.5)}),

    "mixtral": Model("MixtralForCausalLM", "hub", of(
        HUB, SMALL, intermediate_size=48, model_type="mixtral", hidden_act="silu", rms_norm_eps=1e-5, rope_theta=1000000.0,
        num_local_experts=4, num_experts_per_tok=2, output_router_logits=False, router_aux_loss_coef=0.02, sliding_window=None,
        tie_word_embeddings=False), {**MOE_WITHOUT, "weights made to sum to 1": router(not_renormalized)},
        {"experts": (0.0, 0.2)}),
    "qwen3_moe": Model("Qwen3MoeForCausalLM", "hub", of(
        HUB, QWEN3_MOE, num_hidden_layers=4, intermediate_size=48, decoder_sparse_step=2, mlp_only_layers=[3],
        norm_topk_prob=True, rope_theta=1000000.0, rope_scaling=None, sliding_window=None, max_window_layers=4,
        output_router_logits=False, router_aux_loss_coef=0.001), {
        **QK_NORMS, **MOE_WITHOUT, "norm_topk_prob": setting(norm_topk_prob=False)}, QK_NORM_WEIGHTS),
    "qwen3_moe_no_norm": Model("Qwen3MoeForCausalLM", "v5", of(
        QWEN3_MOE, norm_topk_prob=False, rope_parameters=dict(rope_type="default", rope_theta=10000.0)), {
        **QK_NORMS, **MOE_WITHOUT, "no norm_topk_prob": setting(norm_topk_prob=True)},
        {**QK_NORM_WEIGHTS, "experts": (0.0, 0.2)}),

    "deepseek_v3": Model("DeepseekV3ForCausalLM", "hub", of(
        DEEPSEEK_HUB, DEEPSEEK, q_lora_rank=32, norm_topk_prob=True, num_nextn_predict_layers=1, rope_scaling=dict(
            type="yarn", factor=8, beta_fast=32, beta_slow=1, mscale=1.0, mscale_all_dim=1.0, original_max_position_embeddings=32)),
        {**deepseek_without(True, False), "q_a_layernorm": module("q_a_layernorm")}, mtp=True),
    "deepseek_v3_no_q_lora": Model("DeepseekV3ForCausalLM", "v5", of(
        DEEPSEEK, q_lora_rank=None, norm_topk_prob=False, num_mtp_layers=0, rope_parameters=dict(
            rope_type="yarn", rope_theta=10000.0, factor=8.0, mscale=1.0, mscale_all_dim=0.4, original_max_position_embeddings=32)),
        deepseek_without(False, True), bias_dtype=torch.bfloat16),

    "gpt_oss": Model("GptOssForCausalLM", "v5", of(
        GPT_OSS, swiglu_limit=3.0, rope_parameters=of(GPT_OSS_YARN, rope_theta=150000.0)), GPT_OSS_WITHOUT, GPT_OSS_WEIGHTS),

    "llama_fp8": Model("LlamaForCausalLM", "hub", of(
        HUB, SMALL, model_type="llama", hidden_act="silu", rms_norm_eps=1e-5, rope_theta=10000.0, rope_scaling=None, head_dim=16,
        attention_bias=False, mlp_bias=False, tie_word_embeddings=False, quantization_config=dict(
            quant_method="fp8", activation_scheme="static", ignored_layers=["lm_head"])), {}, source="fp8"),
    "deepseek_v3_fp8": Model("DeepseekV3ForCausalLM", "hub", of(
        DEEPSEEK_HUB, DEEPSEEK, num_hidden_layers=2, vocab_size=64, hidden_size=256, intermediate_size=144, num_attention_heads=2,
        num_key_value_heads=2, kv_lora_rank=144, qk_rope_head_dim=8, qk_nope_head_dim=16, n_routed_experts=4, n_group=2, topk_group=1,
        moe_intermediate_size=32, q_lora_rank=None, norm_topk_prob=True, num_nextn_predict_layers=0, rope_scaling=dict(
            type="yarn", factor=8, beta_fast=32, beta_slow=1, mscale=1.0, mscale_all_dim=1.0, original_max_position_embeddings=32),
        quantization_config=dict(activation_scheme="dynamic", fmt="e4m3", quant_method="fp8", weight_block_size=[128, 128])),
        {}, source="fp8_block"),
    "gpt_oss_mxfp4": Model("GptOssForCausalLM", "hub", of(
        HUB, GPT_OSS, swiglu_limit=7.0, experts_per_token=2, initial_context_length=32, output_router_logits=False,
        router_aux_loss_coef=0.9, rope_theta=150000, rope_scaling=GPT_OSS_YARN, quantization_config=dict(
            modules_to_not_convert=["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"],
            quant_method="mxfp4")), {}, GPT_OSS_WEIGHTS, source="mxfp4"),
}
