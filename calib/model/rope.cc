// SPDX-License-Identifier: Apache-2.0
#include "calib/model/rope.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numbers>

namespace holdfast {
namespace {

constexpr double kTwoPi = 2 * std::numbers::pi;

// 1 / base^(2i / dim): one pair of a head turns by this angle per token.
double Plain(double base, uint64_t i, uint64_t dim) {
  return 1.0 / std::pow(base, 2.0 * static_cast<double>(i) / static_cast<double>(dim));
}

double DynamicBase(const RopeSpec& r, uint64_t max_positions, uint64_t tokens) {
  const double limit = static_cast<double>(max_positions);
  const double length = static_cast<double>(std::max(tokens, max_positions));
  const double dim = r.dims;
  return r.theta * std::pow(r.factor * length / limit - (r.factor - 1), dim / (dim - 2));
}

double Llama3(const RopeSpec& r, double plain) {
  const double context = static_cast<double>(r.original_max_positions);
  const double wavelength = kTwoPi / plain;
  if (wavelength < context / r.high_freq_factor) return plain;
  if (wavelength > context / r.low_freq_factor) return plain / r.factor;
  const double smooth = (context / wavelength - r.low_freq_factor) / (r.high_freq_factor - r.low_freq_factor);
  return (1 - smooth) * plain / r.factor + smooth * plain;
}

// Yarn: pairs below `low` keep their frequency, pairs above `high` are interpolated, a ramp between.
struct YarnRange {
  double low, high;
};
YarnRange FindYarnRange(const RopeSpec& r, double dim) {
  const auto pair_that_turns = [&](double times) {
    return dim * std::log(static_cast<double>(r.original_max_positions) / (times * kTwoPi)) / (2 * std::log(r.theta));
  };
  double low = pair_that_turns(r.beta_fast), high = pair_that_turns(r.beta_slow);
  if (r.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, dim - 1);
  if (low == high) high += 0.001;
  return {low, high};
}
double Yarn(const RopeSpec& r, const YarnRange& range, double plain, uint64_t i) {
  const double ramp = std::clamp((static_cast<double>(i) - range.low) / (range.high - range.low), 0.0, 1.0);
  return plain / r.factor * ramp + plain * (1 - ramp);
}

uint16_t Bf16(float x) {
  const uint32_t u = std::bit_cast<uint32_t>(x);
  return static_cast<uint16_t>((u + 0x7fff + ((u >> 16) & 1)) >> 16);   // never NaN here: cos and sin of finite angles
}

}  // namespace

std::vector<float> RopeInverseFrequencies(const RopeSpec& r, uint64_t max_positions, uint64_t tokens) {
  using Kind = RopeSpec::Kind;
  const double base = r.kind == Kind::kDynamic ? DynamicBase(r, max_positions, tokens) : r.theta;
  const YarnRange range = r.kind == Kind::kYarn ? FindYarnRange(r, r.dims) : YarnRange{0, 1};
  const std::vector<double>& stretch = tokens > r.original_max_positions ? r.long_factors : r.short_factors;
  std::vector<float> out(r.dims / 2);
  for (size_t i = 0; i < out.size(); ++i) {
    double f = Plain(base, i, r.dims);
    if (r.kind == Kind::kLinear) f /= r.factor;
    if (r.kind == Kind::kLlama3) f = Llama3(r, f);
    if (r.kind == Kind::kYarn) f = Yarn(r, range, f, i);
    if (r.kind == Kind::kLongRope) f /= stretch[i];
    out[i] = static_cast<float>(f);
  }
  return out;
}

RopeTable MakeRopeTable(const RopeSpec& rope, uint64_t max_positions, uint64_t tokens) {
  const std::vector<float> frequencies = RopeInverseFrequencies(rope, max_positions, tokens);
  const size_t half = frequencies.size();
  const float scale = static_cast<float>(rope.attention_factor);
  RopeTable table;
  table.cos.resize(tokens * half);
  table.sin.resize(tokens * half);
  for (uint64_t t = 0; t < tokens; ++t) {
    for (size_t i = 0; i < half; ++i) {
      const float angle = static_cast<float>(t) * frequencies[i];   // rounded to f32, as every implementation does
      table.cos[t * half + i] = Bf16(static_cast<float>(std::cos(static_cast<double>(angle))) * scale);
      table.sin[t * half + i] = Bf16(static_cast<float>(std::sin(static_cast<double>(angle))) * scale);
    }
  }
  return table;
}

}  // namespace holdfast
