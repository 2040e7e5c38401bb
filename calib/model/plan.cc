// SPDX-License-Identifier: Apache-2.0
//
// DecoderSpec -> Plan: units, tensors, sites, sets, exclude list.
#include <algorithm>
#include <cmath>

#include "calib/model/decoder.h"
#include "calib/model/exclude.h"

namespace holdfast {
namespace {

constexpr struct { const char* name; Recipe recipe; } kRecipes[] = {
    {"nvfp4", Recipe::kNvfp4}, {"nvfp4-mlp-only", Recipe::kNvfp4MlpOnly}, {"nvfp4-w4a16", Recipe::kNvfp4W4A16}};

bool IsQuantized(Recipe recipe, LinearRole role) {
  using Role = LinearRole;
  return recipe != Recipe::kNvfp4MlpOnly || role == Role::kGate || role == Role::kUp || role == Role::kGateUp || role == Role::kDown;
}

TensorPlan Tensor(std::string name, std::vector<uint64_t> shape) {
  TensorPlan t;
  t.name = std::move(name);
  t.shape = std::move(shape);
  return t;
}

Result<SitePlan> DescribeSite(const std::string& prefix, const LinearSpec& linear) {
  if (linear.cols % 16 != 0) {
    return InvalidArgument(prefix + linear.module + " has " + std::to_string(linear.cols) +
                           " inputs, which is not a multiple of 16: NVFP4 cannot hold it. Choose a recipe that leaves it alone");
  }
  SitePlan site;
  site.module = prefix + linear.module;
  site.set = static_cast<uint32_t>(linear.input);
  site.rows = linear.rows;
  site.cols = linear.cols;
  return site;
}

Result<UnitPlan> DescribeLayer(const DecoderSpec& spec, Recipe recipe, uint32_t layer) {
  UnitPlan unit;
  unit.id = layer;
  unit.label = "layer " + std::to_string(layer);
  const std::string prefix = LayerPrefix(layer);
  for (const LinearSpec& linear : LayerLinears(spec)) {
    unit.tensors.push_back(Tensor(prefix + linear.module + ".weight", {linear.rows, linear.cols}));
    if (linear.bias) unit.tensors.push_back(Tensor(prefix + linear.module + ".bias", {linear.rows}));
    if (!IsQuantized(recipe, linear.role)) continue;
    HOLDFAST_ASSIGN(SitePlan site, DescribeSite(prefix, linear));
    unit.sites.push_back(std::move(site));
  }
  for (const NormTensor& norm : LayerNorms(spec)) unit.tensors.push_back(Tensor(prefix + norm.name, norm.shape));
  return unit;
}

UnitPlan OuterUnit(uint32_t id, const char* label, std::vector<TensorPlan> tensors) {
  UnitPlan unit;
  unit.id = id;
  unit.label = label;
  unit.tensors = std::move(tensors);
  return unit;
}

// Every linear and the embedding carry a quantizer in Model-Optimizer; those that stay as they are get listed.
std::vector<std::string> Excludes(const DecoderSpec& spec, Recipe recipe) {
  std::vector<std::string> quantized, unquantized = {"lm_head"};
  if (spec.excludes_embedding) unquantized.push_back("model.embed_tokens");
  const std::vector<LinearSpec> linears = LayerLinears(spec);
  for (uint32_t layer = 0; layer < spec.layers; ++layer) {
    for (const LinearSpec& linear : linears) {
      (IsQuantized(recipe, linear.role) ? quantized : unquantized).push_back(LayerPrefix(layer) + linear.module);
    }
  }
  return SummarizeExcludes(quantized, unquantized);
}

}  // namespace

std::string LayerPrefix(uint32_t layer) { return "model.layers." + std::to_string(layer) + "."; }

std::vector<LinearSpec> LayerLinears(const DecoderSpec& s) {
  using In = LinearInput;
  using Role = LinearRole;
  const uint64_t q = static_cast<uint64_t>(s.heads) * s.head_dim, kv = static_cast<uint64_t>(s.kv_heads) * s.head_dim;
  const In mlp = s.block == BlockShape::kParallel ? In::kAttention : In::kMlp;   // reads what attention reads
  std::vector<LinearSpec> linears;
  if (s.fused_qkv) {
    linears.push_back({"self_attn.qkv_proj", Role::kQkv, In::kAttention, q + 2 * kv, s.hidden, s.qkv_bias});
  } else {
    linears.push_back({"self_attn.q_proj", Role::kQ, In::kAttention, q, s.hidden, s.qkv_bias});
    linears.push_back({"self_attn.k_proj", Role::kK, In::kAttention, kv, s.hidden, s.qkv_bias});
    linears.push_back({"self_attn.v_proj", Role::kV, In::kAttention, kv, s.hidden, s.qkv_bias});
  }
  linears.push_back({"self_attn.o_proj", Role::kO, In::kAttentionOut, s.hidden, q, s.o_bias});
  if (s.fused_gate_up) {
    linears.push_back({"mlp.gate_up_proj", Role::kGateUp, mlp, 2 * s.intermediate, s.hidden, s.mlp_bias});
  } else {
    linears.push_back({"mlp.gate_proj", Role::kGate, mlp, s.intermediate, s.hidden, s.mlp_bias});
    linears.push_back({"mlp.up_proj", Role::kUp, mlp, s.intermediate, s.hidden, s.mlp_bias});
  }
  linears.push_back({"mlp.down_proj", Role::kDown, In::kMlpOut, s.hidden, s.intermediate, s.mlp_bias});
  return linears;
}

std::vector<NormTensor> LayerNorms(const DecoderSpec& s) {
  const std::vector<uint64_t> hidden = {s.hidden};
  std::vector<NormTensor> norms;
  if (s.qk_norm != QkNorm::kNone) {
    const auto shape = [&](uint32_t heads) { return s.qk_norm == QkNorm::kOne ? std::vector<uint64_t>{s.head_dim} : std::vector<uint64_t>{heads, s.head_dim}; };
    norms.push_back({"self_attn.q_norm.weight", NormRole::kQuery, shape(s.heads)});
    norms.push_back({"self_attn.k_norm.weight", NormRole::kKey, shape(s.kv_heads)});
  }
  norms.push_back({kInputNormName, NormRole::kAttention, hidden});
  if (s.block == BlockShape::kSequential) norms.push_back({kMlpNormName, NormRole::kMlp, hidden});
  if (s.block == BlockShape::kSandwich) {
    norms.push_back({"post_attention_layernorm.weight", NormRole::kAfterAttention, hidden});
    norms.push_back({"pre_feedforward_layernorm.weight", NormRole::kMlp, hidden});
    norms.push_back({"post_feedforward_layernorm.weight", NormRole::kAfterMlp, hidden});
  }
  return norms;
}

bool IsPlain(const DecoderSpec& s) {
  const bool one_rope = std::all_of(s.rope_of.begin(), s.rope_of.end(), [](RopeUse use) { return use == RopeUse::kGlobal; });
  return s.norm == NormKind::kRms && s.qk_norm == QkNorm::kNone && s.block == BlockShape::kSequential && !s.fused_qkv && !s.fused_gate_up &&
         s.attention_scale == 1.0 / std::sqrt(static_cast<double>(s.head_dim)) && s.attention_softcap == 0 && s.embedding_scale == 1 && one_rope &&
         s.rope.dims == s.head_dim && !s.rope.interleaved;
}

Result<Recipe> ParseRecipe(const std::string& name) {
  std::string names;
  for (const auto& known : kRecipes) {
    if (name == known.name) return known.recipe;
    names += (names.empty() ? "" : ", ") + std::string(known.name);
  }
  return InvalidArgument("recipe \"" + name + "\" is not known; known are " + names);
}

Result<Plan> DescribeModel(const DecoderSpec& spec, Recipe recipe) {
  Plan plan;
  plan.layers = spec.layers;
  plan.hidden_size = spec.hidden;
  plan.input_scales = recipe != Recipe::kNvfp4W4A16;
  plan.units.reserve(spec.layers + 2);
  for (uint32_t layer = 0; layer < spec.layers; ++layer) {
    HOLDFAST_ASSIGN(UnitPlan unit, DescribeLayer(spec, recipe, layer));
    plan.units.push_back(std::move(unit));
  }
  plan.units.push_back(OuterUnit(spec.layers, "embed", {Tensor(kEmbeddingName, {spec.vocab, spec.hidden})}));
  std::vector<TensorPlan> head = {Tensor(kFinalNormName, {spec.hidden})};
  if (!spec.tied_embeddings) head.push_back(Tensor(kHeadName, {spec.vocab, spec.hidden}));
  plan.units.push_back(OuterUnit(spec.layers + 1, "head", std::move(head)));
  plan.ignore = Excludes(spec, recipe);
  return plan;
}

Result<std::vector<std::pair<uint32_t, uint32_t>>> CutStages(uint32_t layers, const std::vector<uint32_t>& shard_layers, uint32_t stages) {
  std::vector<uint32_t> sizes = shard_layers;
  if (sizes.empty()) {
    if (stages == 0 || stages > layers) {
      return InvalidArgument("cannot cut " + std::to_string(layers) + " layers into " + std::to_string(stages) + " stages");
    }
    for (uint32_t i = 0; i < stages; ++i) sizes.push_back(layers / stages + (i < layers % stages ? 1 : 0));
  }
  std::vector<std::pair<uint32_t, uint32_t>> cuts;
  uint64_t begin = 0;
  for (const uint32_t n : sizes) {
    if (n == 0) return InvalidArgument("--shard-layers: a stage of 0 layers");
    if (begin + n <= layers) cuts.emplace_back(static_cast<uint32_t>(begin), static_cast<uint32_t>(begin + n));
    begin += n;
  }
  if (begin != layers) {
    return InvalidArgument("--shard-layers adds up to " + std::to_string(begin) + ", but the model has " + std::to_string(layers) + " layers");
  }
  return cuts;
}

}  // namespace holdfast
