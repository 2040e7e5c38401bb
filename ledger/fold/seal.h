// SPDX-License-Identifier: Apache-2.0
//
// The root that a Z record seals a stage with: one digest over everything the stage contributed, recomputable by anybody.
//   SHA-256 over, in order:  for every sample 0..n-1 that is not left out, for every layer of [first, last): the layer's amax as f32 LE bit patterns;
//                            then for every unit of `units` ascending: u32 LE unit, u32 LE count of tensors, and per tensor the
//                            32-byte digest of its raw bytes.
#pragma once

#include <vector>

#include "ledger/fold/run_state.h"

namespace holdfast {

// kNotFound names the sample or unit that is missing.
Result<Digest> SealRoot(const RunState& state, uint32_t first_layer, uint32_t last_layer, std::vector<uint32_t> units);

// Units that a stage of `plan` owns: its layers; the first stage also "embed", the last also "head".
std::vector<uint32_t> UnitsOf(const Plan& plan, const StagePlan& stage);

}  // namespace holdfast
