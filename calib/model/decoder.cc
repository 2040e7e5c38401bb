// SPDX-License-Identifier: Apache-2.0
//
// config.json -> DecoderSpec. Semantics are those of transformers 5 (which also reads the older hub style); where the two styles
// disagree inside one file the file is refused instead of guessed at. Every number is bounded before anybody multiplies it.
#include "calib/model/decoder.h"

#include <cmath>

#include "calib/model/architectures.h"

namespace holdfast {
namespace {

constexpr uint64_t kLayersMax = 2048;
constexpr uint64_t kHiddenMax = 1u << 17;
constexpr uint64_t kIntermediateMax = 1u << 20;
constexpr uint64_t kVocabMax = 1u << 24;
constexpr uint64_t kHeadsMax = 4096;
constexpr uint64_t kHeadDimMax = 1024;
constexpr uint64_t kPositionsMax = 1ull << 31;

std::string Join(const std::vector<std::string>& names) {
  std::string out;
  for (const std::string& n : names) out += (out.empty() ? "" : ", ") + n;
  return out;
}

// The fields of one JSON object: absent and null are the same unless a caller asks.
class Fields {
 public:
  Fields(const Json& object, std::string what) : object_(object), what_(std::move(what)) {}

  const std::string& what() const { return what_; }
  bool Has(const char* key) const { return object_.contains(key); }
  const Json* Find(const char* key) const {
    const auto it = object_.find(key);
    return it == object_.end() || it->is_null() ? nullptr : &*it;
  }

  Result<uint64_t> Count(const char* key, uint64_t max) const {   // required, 1..max
    if (Find(key) == nullptr) return InvalidArgument(what_ + ": field \"" + key + "\" is missing");
    return Count(key, max, 0);
  }
  Result<uint64_t> Count(const char* key, uint64_t max, uint64_t fallback) const {
    if (Find(key) == nullptr) return fallback;
    HOLDFAST_ASSIGN(const uint64_t value, GetUint(object_, key, what_));
    if (value < 1 || value > max) {
      return InvalidArgument(what_ + ": field \"" + key + "\" is " + std::to_string(value) + ", expected 1 to " + std::to_string(max));
    }
    return value;
  }
  Result<uint64_t> CountOrZero(const char* key, uint64_t max, uint64_t fallback) const {
    const Json* value = Find(key);
    return value != nullptr && *value == 0 ? Result<uint64_t>(0) : Count(key, max, fallback);
  }
  Result<double> Number(const char* key, double fallback, double above, double max) const {   // above < value <= max
    if (Find(key) == nullptr) return fallback;
    HOLDFAST_ASSIGN(const double value, GetNumber(object_, key, what_));
    if (!(value > above && value <= max)) {
      return InvalidArgument(what_ + ": field \"" + key + "\" is " + object_.at(key).dump() + ", expected a number above " +
                             Json(above).dump() + " and at most " + Json(max).dump());
    }
    return value;
  }
  Result<bool> Flag(const char* key, bool fallback) const {
    if (Find(key) == nullptr) return fallback;
    return GetBool(object_, key, what_);
  }
  Result<std::string> Text(const char* key, const std::string& fallback) const {
    if (Find(key) == nullptr) return fallback;
    return GetString(object_, key, what_);
  }

 private:
  const Json& object_;
  std::string what_;
};

Result<const ArchitectureRow*> ParseArchitecture(const Fields& f) {
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

Status RefuseQuantized(const Fields& f) {
  const Json* q = f.Find("quantization_config");
  if (q == nullptr) return {};
  const std::string method = q->is_object() ? q->value("quant_method", Json("unknown")).dump() : "unknown";
  return Unsupported(f.what() + ": this checkpoint is already quantized (quantization_config, quant_method " + method +
                     "); give the original BF16, FP16 or FP32 model directory instead");
}

Status ParseDimensions(const Fields& f, const ArchitectureRow& row, DecoderSpec* spec) {
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
  if (f.Find("head_dim") == nullptr && spec->hidden % heads != 0) {
    return InvalidArgument(f.what() + ": hidden_size " + std::to_string(spec->hidden) + " is not a multiple of num_attention_heads " +
                           std::to_string(heads) + ", and head_dim is not given");
  }
  HOLDFAST_ASSIGN(const uint64_t head_dim, f.Count("head_dim", kHeadDimMax, spec->hidden / heads));
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

Status ParseActivation(const Fields& f, DecoderSpec* spec) {
  using Activation = DecoderSpec::Activation;
  static constexpr struct { const char* name; Activation value; } kNames[] = {
      {"silu", Activation::kSilu}, {"swish", Activation::kSilu}, {"gelu", Activation::kGelu},
      {"gelu_pytorch_tanh", Activation::kGeluTanh}, {"gelu_new", Activation::kGeluTanh},
  };
  HOLDFAST_ASSIGN(const std::string name, f.Text("hidden_act", "silu"));
  for (const auto& known : kNames) {
    if (name == known.name) {
      spec->activation = known.value;
      return {};
    }
  }
  return Unsupported(f.what() + ": activation \"" + name + "\" (hidden_act) is not supported; supported are silu, gelu, gelu_pytorch_tanh");
}

Status ParseBiases(const Fields& f, const ArchitectureRow& row, DecoderSpec* spec) {
  HOLDFAST_ASSIGN(const bool attention, f.Flag("attention_bias", false));
  HOLDFAST_ASSIGN(const bool mlp, f.Flag("mlp_bias", false));
  spec->qkv_bias = row.bias == BiasRule::kQkv || (row.bias == BiasRule::kConfig && attention);
  spec->o_bias = row.bias == BiasRule::kConfig && attention;
  spec->mlp_bias = row.bias == BiasRule::kConfig && mlp;
  return {};
}

Status ParseDtype(const Fields& f, DecoderSpec* spec) {
  HOLDFAST_ASSIGN(const std::string old_style, f.Text("torch_dtype", "bfloat16"));
  HOLDFAST_ASSIGN(const std::string name, f.Text("dtype", old_style));
  if (name == "bfloat16") spec->dtype = DType::kBF16;
  else if (name == "float16") spec->dtype = DType::kF16;
  else if (name == "float32") spec->dtype = DType::kF32;
  else return Unsupported(f.what() + ": dtype \"" + name + "\" is not supported; supported are bfloat16, float16, float32");
  return {};
}

// One entry per layer: whether it slides. Empty: layer_types is not given.
Result<std::vector<bool>> ParseLayerTypes(const Fields& f, uint32_t layers) {
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

Status ParseWindows(const Fields& f, const ArchitectureRow& row, DecoderSpec* spec) {
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
  for (uint32_t i = 0; i < spec->layers; ++i) {
    const bool slides = sliding.empty() ? window != 0 && i >= first : sliding[i];
    if (slides && window == 0) {
      return InvalidArgument(f.what() + ": layer_types says that layer " + std::to_string(i) + " slides, but there is no sliding_window");
    }
    if (slides) spec->window[i] = window;
  }
  return {};
}

// The object that describes rotary embedding, or null. Both styles in one file must say the same.
Result<const Json*> RopeObject(const Fields& f) {
  const Json* hub = f.Find("rope_scaling");
  const Json* v5 = f.Find("rope_parameters");
  for (const auto& [name, value] : {std::pair{"rope_scaling", hub}, std::pair{"rope_parameters", v5}}) {
    if (value != nullptr && !value->is_object()) return InvalidArgument(f.what() + ": field \"" + name + "\" is not an object");
  }
  if (hub == nullptr || hub->empty()) return v5;
  if (v5 == nullptr || v5->empty()) return hub;
  for (const auto& [key, value] : v5->items()) {
    if (hub->contains(key) && hub->at(key) != value) {
      return InvalidArgument(f.what() + ": rope_scaling and rope_parameters disagree about \"" + key + "\"; remove the wrong one");
    }
  }
  return hub;
}

Result<RopeSpec::Kind> RopeKind(const Fields& rope) {
  using Kind = RopeSpec::Kind;
  HOLDFAST_ASSIGN(const std::string old_style, rope.Text("type", "default"));
  HOLDFAST_ASSIGN(const std::string name, rope.Text("rope_type", old_style));
  if (name == "default") return Kind::kDefault;
  if (name == "linear") return Kind::kLinear;
  if (name == "dynamic") return Kind::kDynamic;
  if (name == "yarn") return Kind::kYarn;
  if (name == "llama3") return Kind::kLlama3;
  return Unsupported(rope.what() + ": rope type \"" + name + "\" is not supported; supported are default, linear, dynamic, yarn, llama3");
}

double YarnMscale(double scale, double mscale) { return scale <= 1 ? 1.0 : 0.1 * mscale * std::log(scale) + 1.0; }

Status ParseYarn(const Fields& rope, uint64_t max_positions, RopeSpec* out) {
  if (rope.Find("factor") == nullptr) {
    out->factor = static_cast<double>(max_positions) / static_cast<double>(out->original_max_positions);
  }
  HOLDFAST_ASSIGN(const double mscale, rope.Number("mscale", 0, -1e-300, 1e6));
  HOLDFAST_ASSIGN(const double mscale_all_dim, rope.Number("mscale_all_dim", 0, -1e-300, 1e6));
  const double inferred = mscale != 0 && mscale_all_dim != 0 ? YarnMscale(out->factor, mscale) / YarnMscale(out->factor, mscale_all_dim)
                                                             : YarnMscale(out->factor, 1);
  HOLDFAST_ASSIGN(out->attention_factor, rope.Number("attention_factor", inferred, 0, 1e6));
  HOLDFAST_ASSIGN(out->beta_fast, rope.Number("beta_fast", 32, 0, 1e9));
  HOLDFAST_ASSIGN(out->beta_slow, rope.Number("beta_slow", 1, 0, 1e9));
  HOLDFAST_ASSIGN(out->truncate, rope.Flag("truncate", true));
  if (out->theta <= 1) return InvalidArgument(rope.what() + ": yarn needs a rope_theta above 1");
  return {};
}

Status ParseLlama3(const Fields& rope, RopeSpec* out) {
  for (const char* key : {"low_freq_factor", "high_freq_factor"}) {
    if (rope.Find(key) == nullptr) return InvalidArgument(rope.what() + ": field \"" + key + "\" is missing (rope type llama3)");
  }
  HOLDFAST_ASSIGN(out->low_freq_factor, rope.Number("low_freq_factor", 1, 0, 1e9));
  HOLDFAST_ASSIGN(out->high_freq_factor, rope.Number("high_freq_factor", 4, 0, 1e9));
  if (out->high_freq_factor <= out->low_freq_factor) {
    return InvalidArgument(rope.what() + ": high_freq_factor is not above low_freq_factor");
  }
  return {};
}

Status ParseRope(const Fields& f, DecoderSpec* spec) {
  HOLDFAST_ASSIGN(spec->rope.theta, f.Number("rope_theta", 10000.0, 0, 1e15));
  HOLDFAST_ASSIGN(const double partial, f.Number("partial_rotary_factor", 1.0, 0, 1));
  HOLDFAST_ASSIGN(const Json* object, RopeObject(f));
  static const Json kNothing = Json::object();
  const Fields rope(object == nullptr ? kNothing : *object, f.what() + ": rope parameters");
  HOLDFAST_ASSIGN(const double rope_partial, rope.Number("partial_rotary_factor", partial, 0, 1));
  if (rope_partial != 1.0) return Unsupported(f.what() + ": partial_rotary_factor other than 1 is not supported");
  HOLDFAST_ASSIGN(spec->rope.theta, rope.Number("rope_theta", spec->rope.theta, 0, 1e15));
  HOLDFAST_ASSIGN(spec->rope.kind, RopeKind(rope));
  using Kind = RopeSpec::Kind;
  if (spec->rope.kind == Kind::kDefault) return {};
  if (spec->rope.kind != Kind::kYarn && rope.Find("factor") == nullptr) {
    return InvalidArgument(rope.what() + ": field \"factor\" is missing");
  }
  HOLDFAST_ASSIGN(spec->rope.factor, rope.Number("factor", 1.0, 0, 1e6));
  HOLDFAST_ASSIGN(const uint64_t original,
                  rope.Count("original_max_position_embeddings", kPositionsMax, spec->max_positions));
  // A field of the config itself goes before the one inside (Phi-3's habit, kept by transformers for all).
  HOLDFAST_ASSIGN(spec->rope.original_max_positions, f.Count("original_max_position_embeddings", kPositionsMax, original));
  if (spec->rope.kind == Kind::kYarn) return ParseYarn(rope, spec->max_positions, &spec->rope);
  if (spec->rope.kind == Kind::kLlama3) return ParseLlama3(rope, &spec->rope);
  if (spec->rope.kind == Kind::kDynamic && spec->head_dim <= 2) {
    return InvalidArgument(rope.what() + ": rope type dynamic needs a head_dim above 2");
  }
  return {};
}

}  // namespace

std::vector<std::string> SupportedArchitectures() {
  std::vector<std::string> names;
  for (const ArchitectureRow& row : Architectures()) names.emplace_back(row.name);
  return names;
}

Result<DecoderSpec> ParseDecoder(const Json& config, const std::string& what) {
  if (!config.is_object()) return InvalidArgument(what + ": expected a JSON object");
  const Fields f(config, what);
  HOLDFAST_ASSIGN(const ArchitectureRow* row, ParseArchitecture(f));
  HOLDFAST_TRY(RefuseQuantized(f));
  DecoderSpec spec;
  spec.architecture = row->name;
  HOLDFAST_ASSIGN(spec.model_type, f.Text("model_type", row->model_types[0]));
  HOLDFAST_TRY(ParseDimensions(f, *row, &spec));
  HOLDFAST_ASSIGN(spec.norm_eps, f.Number("rms_norm_eps", 1e-6, 0, 1));
  HOLDFAST_TRY(ParseActivation(f, &spec));
  HOLDFAST_TRY(ParseBiases(f, *row, &spec));
  HOLDFAST_ASSIGN(spec.tied_embeddings, f.Flag("tie_word_embeddings", false));
  HOLDFAST_TRY(ParseDtype(f, &spec));
  HOLDFAST_TRY(ParseWindows(f, *row, &spec));
  HOLDFAST_TRY(ParseRope(f, &spec));
  return spec;
}

}  // namespace holdfast
