// SPDX-License-Identifier: Apache-2.0
//
// config.json -> DecoderSpec. Semantics are those of transformers 5 (which also reads the older hub style); where the two styles
// disagree inside one file the file is refused instead of guessed at. Every number is bounded before anybody multiplies it.
#include "calib/model/decoder.h"

#include <cmath>

#include "calib/model/architectures.h"
#include "calib/model/config_fields.h"

namespace holdfast {
namespace {

std::string Join(const std::vector<std::string>& names) {
  std::string out;
  for (const std::string& n : names) out += (out.empty() ? "" : ", ") + n;
  return out;
}

Result<const ArchitectureRow*> ParseArchitecture(const ConfigFields& f) {
  const Json* list = f.Find("architectures");
  if (list == nullptr) return InvalidArgument(f.what() + ": field \"architectures\" is missing");
  if (!list->is_array() || list->size() != 1 || !list->front().is_string()) {
    return InvalidArgument(f.what() + ": field \"architectures\" is not a list of one name");
  }
  const std::string name = list->front().get<std::string>();
  const ArchitectureRow* row = FindArchitecture(name);
  if (row == nullptr) {
    return Unsupported(f.what() + ": architecture " + name + " is not supported; supported are " + Join(SupportedArchitectures()));
  }
  HOLDFAST_ASSIGN(const std::string model_type, f.Text("model_type", row->model_types[0]));
  for (const char* allowed : row->model_types) {
    if (allowed != nullptr && model_type == allowed) return row;
  }
  return InvalidArgument(f.what() + ": model_type \"" + model_type + "\" does not belong to architecture " + name);
}

Status RefuseQuantized(const ConfigFields& f) {
  const Json* q = f.Find("quantization_config");
  if (q == nullptr) return {};
  const std::string method = q->is_object() ? q->value("quant_method", Json("unknown")).dump() : "unknown";
  return Unsupported(f.what() + ": this checkpoint is already quantized (quantization_config, quant_method " + method +
                     "); give the original BF16, FP16 or FP32 model directory instead");
}

Status ParseDimensions(const ConfigFields& f, const ArchitectureRow& row, DecoderSpec* spec) {
  HOLDFAST_ASSIGN(spec->hidden, f.Count("hidden_size", kHiddenMax));
  HOLDFAST_ASSIGN(spec->intermediate, f.Count("intermediate_size", kIntermediateMax));
  HOLDFAST_ASSIGN(spec->vocab, f.Count("vocab_size", kVocabMax));
  HOLDFAST_ASSIGN(spec->max_positions, f.Count("max_position_embeddings", kPositionsMax, row.max_positions_default));
  HOLDFAST_ASSIGN(const uint64_t layers, f.Count("num_hidden_layers", kLayersMax));
  HOLDFAST_ASSIGN(const uint64_t heads, f.Count("num_attention_heads", kHeadsMax));
  const uint64_t kv_default = row.kv_heads_default == 0 || f.Has("num_key_value_heads") ? heads : row.kv_heads_default;
  HOLDFAST_ASSIGN(const uint64_t kv_heads, f.Count("num_key_value_heads", kHeadsMax, kv_default));
  if (heads % kv_heads != 0) {
    return InvalidArgument(f.what() + ": num_attention_heads " + std::to_string(heads) + " is not a multiple of num_key_value_heads " +
                           std::to_string(kv_heads));
  }
  const bool computed = row.head_dim_is_computed || (f.Find("head_dim") == nullptr && row.head_dim_default == 0);
  if (computed && spec->hidden % heads != 0) {
    return InvalidArgument(f.what() + ": hidden_size " + std::to_string(spec->hidden) + " is not a multiple of num_attention_heads " +
                           std::to_string(heads) + ", and head_dim is not given");
  }
  uint64_t head_dim = spec->hidden / heads;
  if (!computed) {
    HOLDFAST_ASSIGN(head_dim, f.Count("head_dim", kHeadDimMax, row.head_dim_default));
  }
  if (head_dim == 0 || head_dim > kHeadDimMax || head_dim % 2 != 0) {
    return InvalidArgument(f.what() + ": head_dim " + std::to_string(head_dim) + " is not an even number up to " +
                           std::to_string(kHeadDimMax) + ": rotary embedding turns pairs");
  }
  if (heads * head_dim > kIntermediateMax) {
    return InvalidArgument(f.what() + ": num_attention_heads * head_dim is " + std::to_string(heads * head_dim) + ", more than " +
                           std::to_string(kIntermediateMax));
  }
  spec->layers = static_cast<uint32_t>(layers);
  spec->heads = static_cast<uint32_t>(heads);
  spec->kv_heads = static_cast<uint32_t>(kv_heads);
  spec->head_dim = static_cast<uint32_t>(head_dim);
  return {};
}

Status ParseActivation(const ConfigFields& f, const ArchitectureRow& row, DecoderSpec* spec) {
  using Activation = DecoderSpec::Activation;
  static constexpr struct { const char* name; Activation value; } kNames[] = {
      {"silu", Activation::kSilu}, {"swish", Activation::kSilu}, {"gelu", Activation::kGelu},
      {"gelu_pytorch_tanh", Activation::kGeluTanh}, {"gelu_new", Activation::kGeluTanh},
  };
  HOLDFAST_ASSIGN(const std::string name, f.Text(row.activation_key, row.activation_default));
  for (const auto& known : kNames) {
    if (name == known.name) {
      spec->activation = known.value;
      return {};
    }
  }
  return Unsupported(f.what() + ": activation \"" + name + "\" (" + row.activation_key + ") is not supported; supported are silu, gelu, gelu_pytorch_tanh");
}

Status ParseBiases(const ConfigFields& f, const ArchitectureRow& row, DecoderSpec* spec) {
  HOLDFAST_ASSIGN(const bool attention, f.Flag("attention_bias", false));
  HOLDFAST_ASSIGN(const bool mlp, f.Flag("mlp_bias", false));
  const bool asked = attention && (row.bias == BiasRule::kConfig || row.bias == BiasRule::kAttention);
  spec->qkv_bias = row.bias == BiasRule::kQkv || asked;
  spec->o_bias = asked;
  spec->mlp_bias = row.bias == BiasRule::kConfig && mlp;
  return {};
}

Status ParseDtype(const ConfigFields& f, DecoderSpec* spec) {
  HOLDFAST_ASSIGN(const std::string old_style, f.Text("torch_dtype", "bfloat16"));
  HOLDFAST_ASSIGN(const std::string name, f.Text("dtype", old_style));
  if (name == "bfloat16") spec->dtype = DType::kBF16;
  else if (name == "float16") spec->dtype = DType::kF16;
  else if (name == "float32") spec->dtype = DType::kF32;
  else return Unsupported(f.what() + ": dtype \"" + name + "\" is not supported; supported are bfloat16, float16, float32");
  return {};
}

// One entry per layer: whether it slides. Empty: layer_types is not given.
Result<std::vector<bool>> ParseLayerTypes(const ConfigFields& f, uint32_t layers) {
  std::vector<bool> sliding;
  const Json* list = f.Find("layer_types");
  if (list == nullptr) return sliding;
  if (!list->is_array() || list->size() != layers) {
    return InvalidArgument(f.what() + ": field \"layer_types\" is not a list of num_hidden_layers = " + std::to_string(layers) + " names");
  }
  for (const Json& item : *list) {
    if (!item.is_string()) return InvalidArgument(f.what() + ": field \"layer_types\" holds something that is not a name");
    const std::string type = item.get<std::string>();
    if (type != "full_attention" && type != "sliding_attention") {
      return Unsupported(f.what() + ": layer type \"" + type + "\" is not supported; supported are full_attention, sliding_attention");
    }
    sliding.push_back(type == "sliding_attention");
  }
  return sliding;
}

Status ParseWindows(const ConfigFields& f, const ArchitectureRow& row, DecoderSpec* spec) {
  spec->window.assign(spec->layers, 0);
  HOLDFAST_ASSIGN(const std::vector<bool> sliding, ParseLayerTypes(f, spec->layers));
  if (row.window == WindowRule::kFull) {
    for (const bool slides : sliding) {
      if (slides) return Unsupported(f.what() + ": layer_types names sliding_attention, which " + row.name + " does not have");
    }
    return {};
  }
  HOLDFAST_ASSIGN(uint64_t window, f.Count("sliding_window", kPositionsMax, f.Has("sliding_window") ? 0 : row.window_default));
  uint64_t first = 0;
  if (row.window == WindowRule::kUseSliding) {
    HOLDFAST_ASSIGN(const bool use, f.Flag("use_sliding_window", false));
    if (!use) window = 0;
    HOLDFAST_ASSIGN(first, f.CountOrZero("max_window_layers", kLayersMax, 28));
  }
  uint64_t pattern = row.pattern_default;
  if (row.pattern_key != nullptr) {
    HOLDFAST_ASSIGN(pattern, f.Count(row.pattern_key, kLayersMax, pattern));
  }
  for (uint32_t i = 0; i < spec->layers; ++i) {
    const bool by_rule = row.window == WindowRule::kPattern ? (i + 1) % pattern != 0 : window != 0 && i >= first;
    const bool slides = sliding.empty() ? by_rule : sliding[i];
    if (slides && window == 0) {
      return InvalidArgument(f.what() + ": layer_types says that layer " + std::to_string(i) + " slides, but there is no sliding_window");
    }
    if (slides) spec->window[i] = window;
  }
  return {};
}

// A cap as transformers reads it: null, and 0, mean none.
Result<double> Cap(const ConfigFields& f, const char* key, double fallback) {
  if (f.Has(key) && f.Find(key) == nullptr) return 0.0;
  return f.Number(key, fallback, -1e-300, 1e6);
}

// Norms, scales and caps: what stands around the matmuls.
Status ParseBlock(const ConfigFields& f, const ArchitectureRow& row, DecoderSpec* spec) {
  spec->norm = row.norm;
  spec->block = row.block;
  spec->fused_qkv = spec->fused_gate_up = row.fused;
  spec->excludes_embedding = row.excludes_embedding;
  HOLDFAST_ASSIGN(const bool use_qk_norm, f.Flag("use_qk_norm", false));
  if (row.qk_norm == QkNormRule::kAlways) spec->qk_norm = QkNorm::kOne;
  if (row.qk_norm == QkNormRule::kConfig && use_qk_norm) spec->qk_norm = QkNorm::kEach;
  double scalar = spec->head_dim;
  if (row.query_scalar) {
    HOLDFAST_ASSIGN(scalar, f.Number("query_pre_attn_scalar", 256, 0, 1e9));
  }
  spec->attention_scale = 1.0 / std::sqrt(scalar);
  if (row.scaled_embedding) spec->embedding_scale = std::sqrt(static_cast<double>(spec->hidden));
  if (row.logit_scale) {
    HOLDFAST_ASSIGN(spec->logit_scale, f.Number("logit_scale", 0.0625, 0, 1e6));
  }
  HOLDFAST_ASSIGN(const double attention_cap, Cap(f, "attn_logit_softcapping", row.attention_softcap_default));
  if (attention_cap != 0 && !row.attention_softcap) {
    return Unsupported(f.what() + ": attn_logit_softcapping is set, which the attention of " + row.name + " does not have");
  }
  spec->attention_softcap = attention_cap;
  HOLDFAST_ASSIGN(spec->logit_softcap, Cap(f, "final_logit_softcapping", row.logit_softcap_default));
  HOLDFAST_ASSIGN(const bool both_ways, f.Flag("use_bidirectional_attention", false));
  if (both_ways) return Unsupported(f.what() + ": use_bidirectional_attention is not supported; a decoder looks back only");
  return OkStatus();
}

}  // namespace

std::vector<std::string> SupportedArchitectures() {
  std::vector<std::string> names;
  for (const ArchitectureRow& row : Architectures()) names.emplace_back(row.name);
  return names;
}

Result<DecoderSpec> ParseDecoder(const Json& config, const std::string& what) {
  if (!config.is_object()) return InvalidArgument(what + ": expected a JSON object");
  const ConfigFields f(config, what);
  HOLDFAST_ASSIGN(const ArchitectureRow* row, ParseArchitecture(f));
  HOLDFAST_TRY(RefuseQuantized(f));
  DecoderSpec spec;
  spec.architecture = row->name;
  HOLDFAST_ASSIGN(spec.model_type, f.Text("model_type", row->model_types[0]));
  HOLDFAST_TRY(ParseDimensions(f, *row, &spec));
  HOLDFAST_ASSIGN(spec.norm_eps, f.Number(row->eps_key, row->eps_default, 0, 1));
  HOLDFAST_TRY(ParseActivation(f, *row, &spec));
  HOLDFAST_TRY(ParseBiases(f, *row, &spec));
  HOLDFAST_ASSIGN(spec.tied_embeddings, f.Flag("tie_word_embeddings", row->tied_default));
  HOLDFAST_TRY(ParseDtype(f, &spec));
  HOLDFAST_TRY(ParseWindows(f, *row, &spec));
  HOLDFAST_TRY(ParseBlock(f, *row, &spec));
  HOLDFAST_TRY(ParseRope(f, *row, &spec));
  return spec;
}

}  // namespace holdfast
