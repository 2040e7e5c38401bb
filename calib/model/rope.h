// SPDX-License-Identifier: Apache-2.0
//
// Rotary position embedding: the frequencies of every supported kind and the cos/sin table of one sequence. Computed here, in double
// and rounded once to f32, so that the table is the same on every device and does not hang on a library's vector math.
#pragma once

#include <cstdint>
#include <vector>

#include "calib/model/decoder.h"

namespace holdfast {

// dims / 2 inverse frequencies for a sequence of `tokens`. kDynamic and kLongRope look at `tokens`: beyond max_positions the base of one grows, beyond
// the original positions the other has its long factors, by the length of the sample alone (transformers remembers the longest sequence seen before;
// a sample must not).
std::vector<float> RopeInverseFrequencies(const RopeSpec& rope, uint64_t max_positions, uint64_t tokens);

// cos and sin, [tokens, dims / 2] each, scaled by attention_factor, rounded to bf16 (bits).
struct RopeTable {
  std::vector<uint16_t> cos, sin;
};
RopeTable MakeRopeTable(const RopeSpec& rope, uint64_t max_positions, uint64_t tokens);

}  // namespace holdfast
