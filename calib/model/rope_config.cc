// SPDX-License-Identifier: Apache-2.0
//
// The rotary embeddings that config.json describes, in both styles.
#include <cmath>

#include "calib/model/config_fields.h"

namespace holdfast {
namespace {

// The object that describes rotary embedding, or null. Both styles in one file must say the same.
Result<const Json*> RopeObject(const ConfigFields& f) {
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

Result<RopeSpec::Kind> RopeKind(const ConfigFields& rope, const ArchitectureRow& row) {
  using Kind = RopeSpec::Kind;
  HOLDFAST_ASSIGN(const std::string old_style, rope.Text("type", "default"));
  HOLDFAST_ASSIGN(const std::string name, rope.Text("rope_type", old_style));
  if (name == "default") return Kind::kDefault;
  if (row.rope == RopeRule::kPhi && (name == "longrope" || name == "su" || name == "yarn")) return Kind::kLongRope;   // older names of one thing
  if (name == "linear") return Kind::kLinear;
  if (name == "dynamic") return Kind::kDynamic;
  if (name == "yarn") return Kind::kYarn;
  if (name == "llama3") return Kind::kLlama3;
  return Unsupported(rope.what() + ": rope type \"" + name + "\" is not supported; supported are default, linear, dynamic, yarn, llama3, and longrope of Phi-3");
}

double YarnMscale(double scale, double mscale) { return scale <= 1 ? 1.0 : 0.1 * mscale * std::log(scale) + 1.0; }

Status ParseYarn(const ConfigFields& rope, uint64_t max_positions, RopeSpec* out) {
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

Status ParseLlama3(const ConfigFields& rope, RopeSpec* out) {
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

// One positive number for each pair.
Result<std::vector<double>> ParseFactors(const ConfigFields& rope, const char* key, uint32_t dims) {
  const Json* list = rope.Find(key);
  if (list == nullptr || !list->is_array() || list->size() != dims / 2) {
    return InvalidArgument(rope.what() + ": field \"" + key + "\" is not a list of " + std::to_string(dims / 2) + " numbers, one for each pair that is turned");
  }
  std::vector<double> factors;
  for (const Json& item : *list) {
    if (!item.is_number() || !(item.get<double>() > 0 && item.get<double>() < 1e9)) {
      return InvalidArgument(rope.what() + ": field \"" + key + "\" holds " + item.dump() + ", which is no positive number");
    }
    factors.push_back(item.get<double>());
  }
  return factors;
}

// Formula of the attention factor: LongRoPE, sqrt(1 + ln(factor) / ln(original)).
Status ParseLongRope(const ConfigFields& rope, uint64_t max_positions, RopeSpec* out) {
  HOLDFAST_ASSIGN(out->short_factors, ParseFactors(rope, "short_factor", out->dims));
  HOLDFAST_ASSIGN(out->long_factors, ParseFactors(rope, "long_factor", out->dims));
  const double original = static_cast<double>(out->original_max_positions);
  if (rope.Find("factor") == nullptr) out->factor = static_cast<double>(max_positions) / original;
  if (original < 2) return InvalidArgument(rope.what() + ": original_max_position_embeddings is below 2 (rope type longrope)");
  const double inferred = out->factor <= 1 ? 1.0 : std::sqrt(1 + std::log(out->factor) / std::log(original));
  HOLDFAST_ASSIGN(out->attention_factor, rope.Number("attention_factor", inferred, 0, 1e6));
  return OkStatus();
}

Result<uint32_t> ParseDims(const ConfigFields& f, const ConfigFields& rope, const ArchitectureRow& row, uint32_t head_dim) {
  HOLDFAST_ASSIGN(const double outside, f.Number("partial_rotary_factor", 1.0, 0, 1));
  HOLDFAST_ASSIGN(const double partial, rope.Number("partial_rotary_factor", outside, 0, 1));
  if (partial == 1.0) return head_dim;
  if (row.rope != RopeRule::kPhi) return Unsupported(f.what() + ": partial_rotary_factor other than 1 is not supported for " + row.name);
  const auto dims = static_cast<uint32_t>(head_dim * partial);
  if (dims < 2 || dims % 2 != 0) {
    return InvalidArgument(f.what() + ": partial_rotary_factor leaves " + std::to_string(dims) + " of " + std::to_string(head_dim) + " dimensions of a head to turn; expected an even number");
  }
  return dims;
}

// One embedding. `object`: what describes it; `theta`: unless that says otherwise.
Result<RopeSpec> ParseOne(const ConfigFields& f, const Json& object, const ArchitectureRow& row, const DecoderSpec& spec, double theta) {
  const ConfigFields rope(object, f.what() + ": rope parameters");
  RopeSpec out;
  out.interleaved = row.interleaved;
  HOLDFAST_ASSIGN(out.dims, ParseDims(f, rope, row, spec.head_dim));
  HOLDFAST_ASSIGN(out.theta, rope.Number("rope_theta", theta, 0, 1e15));
  HOLDFAST_ASSIGN(out.kind, RopeKind(rope, row));
  using Kind = RopeSpec::Kind;
  if (out.kind == Kind::kDefault) return out;
  if (out.kind != Kind::kYarn && out.kind != Kind::kLongRope && rope.Find("factor") == nullptr) {
    return InvalidArgument(rope.what() + ": field \"factor\" is missing");
  }
  HOLDFAST_ASSIGN(out.factor, rope.Number("factor", 1.0, 0, 1e6));
  HOLDFAST_ASSIGN(const uint64_t original, rope.Count("original_max_position_embeddings", kPositionsMax,
                                                      row.rope == RopeRule::kPhi ? row.max_positions_default : spec.max_positions));
  // A field of the config itself goes before the one inside (Phi-3's habit, kept by transformers for all).
  HOLDFAST_ASSIGN(out.original_max_positions, f.Count("original_max_position_embeddings", kPositionsMax, original));
  if (out.kind == Kind::kYarn) HOLDFAST_TRY(ParseYarn(rope, spec.max_positions, &out));
  if (out.kind == Kind::kLlama3) HOLDFAST_TRY(ParseLlama3(rope, &out));
  if (out.kind == Kind::kLongRope) HOLDFAST_TRY(ParseLongRope(rope, spec.max_positions, &out));
  if (out.kind == Kind::kDynamic && out.dims <= 2) return InvalidArgument(rope.what() + ": rope type dynamic needs a head_dim above 2");
  return out;
}

const Json& Nothing() {
  static const Json nothing = Json::object();
  return nothing;
}

// Global and local embedding: rope_parameters by layer type, or rope_theta with rope_scaling for the global and rope_local_base_freq for the local one.
Status ParseTwo(const ConfigFields& f, const ArchitectureRow& row, DecoderSpec* spec) {
  constexpr double kLocalTheta = 10000.0;
  HOLDFAST_ASSIGN(const double theta, f.Number("rope_theta", row.theta_default, 0, 1e15));
  HOLDFAST_ASSIGN(const double local_theta, f.Number("rope_local_base_freq", kLocalTheta, 0, 1e15));
  const Json* v5 = f.Find("rope_parameters");
  const Json* hub = f.Find("rope_scaling");
  const auto part = [&](const char* type) -> Result<const Json*> {
    const Json* found = v5 != nullptr && v5->is_object() && v5->contains(type) ? &v5->at(type) : nullptr;
    if (found == nullptr || found->is_null()) return &Nothing();
    if (!found->is_object()) return InvalidArgument(f.what() + ": field \"" + type + "\" of rope_parameters is not an object");
    return found;
  };
  HOLDFAST_ASSIGN(const Json* global, part("full_attention"));
  HOLDFAST_ASSIGN(const Json* local, part("sliding_attention"));
  if (hub != nullptr && !hub->is_object()) return InvalidArgument(f.what() + ": field \"rope_scaling\" is not an object");
  if (hub != nullptr && !hub->empty() && !global->empty()) {
    return InvalidArgument(f.what() + ": rope_scaling and rope_parameters both describe the layers of full attention; remove one");
  }
  HOLDFAST_ASSIGN(spec->rope, ParseOne(f, hub != nullptr ? *hub : *global, row, *spec, theta));
  HOLDFAST_ASSIGN(spec->local_rope, ParseOne(f, *local, row, *spec, local_theta));
  for (uint32_t i = 0; i < spec->layers; ++i) spec->rope_of[i] = spec->window[i] != 0 ? RopeUse::kLocal : RopeUse::kGlobal;
  return OkStatus();
}

}  // namespace

Status ParseRope(const ConfigFields& f, const ArchitectureRow& row, DecoderSpec* spec) {
  spec->rope_of.assign(spec->layers, RopeUse::kGlobal);
  if (row.rope == RopeRule::kTwo) return ParseTwo(f, row, spec);
  HOLDFAST_ASSIGN(const double theta, f.Number("rope_theta", row.theta_default, 0, 1e15));
  HOLDFAST_ASSIGN(const Json* object, RopeObject(f));
  HOLDFAST_ASSIGN(spec->rope, ParseOne(f, object == nullptr ? Nothing() : *object, row, *spec, theta));
  for (uint32_t i = 0; i < spec->layers && row.rope == RopeRule::kSlidingOnly; ++i) {
    if (spec->window[i] == 0) spec->rope_of[i] = RopeUse::kNone;
  }
  return OkStatus();
}

}  // namespace holdfast
