// SPDX-License-Identifier: Apache-2.0
//
// DecoderSpec -> Plan: units, tensors, sites, sets, exclude list.
#include "calib/model/decoder.h"
#include "calib/model/exclude.h"

namespace holdfast {
namespace {

constexpr struct { const char* name; Recipe recipe; } kRecipes[] = {
    {"nvfp4", Recipe::kNvfp4}, {"nvfp4-mlp-only", Recipe::kNvfp4MlpOnly}, {"nvfp4-w4a16", Recipe::kNvfp4W4A16}};

bool IsQuantized(Recipe recipe, LinearInput input) {
  return recipe != Recipe::kNvfp4MlpOnly || input == LinearInput::kMlp || input == LinearInput::kMlpOut;
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
    if (!IsQuantized(recipe, linear.input)) continue;
    HOLDFAST_ASSIGN(SitePlan site, DescribeSite(prefix, linear));
    unit.sites.push_back(std::move(site));
  }
  unit.tensors.push_back(Tensor(prefix + kInputNormName, {spec.hidden}));
  unit.tensors.push_back(Tensor(prefix + kMlpNormName, {spec.hidden}));
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
  std::vector<std::string> quantized, unquantized = {"lm_head", "model.embed_tokens"};
  const std::vector<LinearSpec> linears = LayerLinears(spec);
  for (uint32_t layer = 0; layer < spec.layers; ++layer) {
    for (const LinearSpec& linear : linears) {
      (IsQuantized(recipe, linear.input) ? quantized : unquantized).push_back(LayerPrefix(layer) + linear.module);
    }
  }
  return SummarizeExcludes(quantized, unquantized);
}

}  // namespace

std::string LayerPrefix(uint32_t layer) { return "model.layers." + std::to_string(layer) + "."; }

std::vector<LinearSpec> LayerLinears(const DecoderSpec& s) {
  const uint64_t q = static_cast<uint64_t>(s.heads) * s.head_dim, kv = static_cast<uint64_t>(s.kv_heads) * s.head_dim;
  return {
      {"self_attn.q_proj", LinearInput::kAttention, q, s.hidden, s.qkv_bias},
      {"self_attn.k_proj", LinearInput::kAttention, kv, s.hidden, s.qkv_bias},
      {"self_attn.v_proj", LinearInput::kAttention, kv, s.hidden, s.qkv_bias},
      {"self_attn.o_proj", LinearInput::kAttentionOut, s.hidden, q, s.o_bias},
      {"mlp.gate_proj", LinearInput::kMlp, s.intermediate, s.hidden, s.mlp_bias},
      {"mlp.up_proj", LinearInput::kMlp, s.intermediate, s.hidden, s.mlp_bias},
      {"mlp.down_proj", LinearInput::kMlpOut, s.hidden, s.intermediate, s.mlp_bias},
  };
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
