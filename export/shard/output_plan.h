// SPDX-License-Identifier: Apache-2.0
//
// Which tensors the output has and in which file each lies: a pure function of the plan and the maximum file size.
// Module order: embed, layers, final norm, lm_head (Model-Optimizer's state-dict order); greedy filling, decimal bytes; a tensor larger
// than the limit gets its own file. One file: "model.safetensors" without an index; more: model-0000i-of-0000n.safetensors.
#pragma once

#include <string>
#include <vector>

#include "export/format/safetensors.h"
#include "ledger/records/records.h"

namespace holdfast {

struct OutputTensor {
  TensorInfo info;      // name, dtype, shape, bytes (offset unused)
  uint32_t unit = 0;
};

// Output tensors of one unit in order: a site's "M.weight" becomes M.weight U8 [N, K/2], M.weight_scale F8_E4M3 [N, K/16],
// M.weight_scale_2 F32 [] and (unless weight-only) M.input_scale F32 []; all others pass through unchanged.
std::vector<OutputTensor> OutputTensorsOf(const Plan& plan, const UnitPlan& unit);

struct OutputFile {
  std::string name;
  SafetensorsLayout layout;
  std::vector<uint32_t> units;   // unit of each tensor of layout.tensors
};
struct OutputPlan {
  std::vector<OutputFile> files;
  uint64_t total_size = 0;        // bytes of all tensors
  uint64_t total_parameters = 0;  // elements of parameters as stored (a packed byte once), no scales
};
OutputPlan PlanOutput(const Plan& plan, uint64_t shard_bytes);

}  // namespace holdfast
