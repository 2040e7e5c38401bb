// SPDX-License-Identifier: Apache-2.0
//
// The weights of a layer range as the matmuls want them: q/k/v and gate/up each as one matrix, in bf16 (or f32 where the matmuls are
// f32), on the device. Read tensor by tensor, hashed and checked on the way in.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <map>
#include <string>
#include <vector>

#include "calib/runner/runner.h"

namespace holdfast {

struct LayerWeights {
  struct Linear {
    at::Tensor weight, bias;   // [out, in]; bias undefined when there is none
  };
  Linear qkv, o, gate_up, down;
  at::Tensor input_norm, mlp_norm;   // bf16
};

struct RangeWeights {
  at::Tensor embedding;              // bf16 [vocab, hidden]; undefined unless the range begins at layer 0
  std::vector<LayerWeights> layers;
  // On a GPU: the matrices that have the source's own values (bf16), by the name of the source tensor. Views of the above.
  std::map<std::string, at::Tensor> source_values;
};

Result<RangeWeights> LoadWeights(const SourceModel& source, const DecoderSpec& spec, const Plan& plan, const RunnerOptions& options,
                                 at::Device device, MatmulDtype matmul, std::vector<LoadedDigest>* digests);

// For each layer of the range: the positions in the amax vector that observe what linears of each LinearInput read.
using SiteSlots = std::array<std::vector<uint32_t>, 4>;
std::vector<SiteSlots> FindSlots(const DecoderSpec& spec, const Plan& plan, uint32_t first_layer, uint32_t last_layer);

}  // namespace holdfast
