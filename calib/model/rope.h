// SPDX-License-Identifier: Apache-2.0
//
// Rotary position embedding: the frequencies of every supported kind and the cos/sin table of one sequence. Computed here, in double
// and rounded once to f32, so that the table is the same on every device and does not hang on a library's vector math.
#pragma once

#include <cstdint>
#include <vector>

#include "calib/model/decoder.h"

namespace holdfast {

// head_dim / 2 inverse frequencies for a sequence of `tokens`. Only kDynamic looks at `tokens`: beyond max_positions its base grows,
// with the length of the sample alone (transformers remembers the longest sequence seen before; a sample must not).
std::vector<float> RopeInverseFrequencies(const DecoderSpec& spec, uint64_t tokens);

// cos and sin, [tokens, head_dim / 2] each, scaled by attention_factor, rounded to bf16 (bits).
struct RopeTable {
  std::vector<uint16_t> cos, sin;
};
RopeTable MakeRopeTable(const DecoderSpec& spec, uint64_t tokens);

}  // namespace holdfast
