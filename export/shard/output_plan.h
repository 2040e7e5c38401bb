// SPDX-License-Identifier: Apache-2.0
//
// Which tensors the output has, in which file each lies and what it is made of: a pure function of the plan, the maximum file size and the layout.
// Module order: embed, layers, final norm, lm_head (Model-Optimizer's state-dict order); greedy filling, decimal bytes; a tensor larger
// than the limit gets its own file. One file: "model.safetensors" without an index; more: model-0000i-of-0000n.safetensors.
#pragma once

#include <string>
#include <vector>

#include "export/format/output_layout.h"
#include "export/format/safetensors.h"
#include "ledger/records/records.h"

namespace holdfast {

// What happens to the bytes of an evicted tensor on their way into a file.
enum class Change : uint8_t {
  kNone,
  kReciprocal,  // a scalar of float32: 1 / x, rounded once; its shape may change
};

struct TensorOrigin {
  uint32_t unit = 0;
  std::string name;     // in the unit's record
  Change change = Change::kNone;
};

struct OutputTensor {
  TensorInfo info;      // name, dtype, shape, bytes (offset unused)
  TensorOrigin origin;
};

// Output tensors of one unit in order: a site's "M.weight" becomes M.weight U8 [N, K/2], M.weight_scale F8_E4M3 [N, K/16],
// M.weight_scale_2 F32 [] and (unless weight-only) M.input_scale F32 []; all others pass through unchanged. That is also what its record holds.
// compressed-tensors: M.weight_packed, M.weight_scale, M.weight_global_scale F32 [1] and M.input_global_scale F32 [1], the last two reciprocals.
std::vector<OutputTensor> OutputTensorsOf(const Plan& plan, const UnitPlan& unit, OutputLayout layout = kStoredLayout);

struct OutputFile {
  std::string name;
  SafetensorsLayout layout;
  std::vector<TensorOrigin> origins;   // of each tensor of layout.tensors
};
struct OutputPlan {
  OutputLayout layout = OutputLayout::kModelopt;
  std::vector<OutputFile> files;
  uint64_t total_size = 0;        // bytes of all tensors
  uint64_t total_parameters = 0;  // elements of parameters as stored (a packed byte once), no scales
};
// Files, their number and all sums are the same in every layout, but for the length of the headers.
OutputPlan PlanOutput(const Plan& plan, uint64_t shard_bytes, OutputLayout layout = OutputLayout::kModelopt);

}  // namespace holdfast
