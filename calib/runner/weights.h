// SPDX-License-Identifier: Apache-2.0
//
// The weights of a layer range as the matmuls want them, in bf16 (or f32 where the matmuls are f32), on the device: q/k/v and gate/up each as one
// matrix for the fused kernels, matrix by matrix for torch operations. Read tensor by tensor, hashed and checked on the way in.
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

// The same, as the checkpoint has them. What the model does not have is undefined.
struct SeparateWeights {
  std::array<LayerWeights::Linear, 9> linears;   // by LinearRole
  std::array<at::Tensor, 6> norms;               // by NormRole; bf16
  const LayerWeights::Linear& operator[](LinearRole role) const { return linears[static_cast<size_t>(role)]; }
  const at::Tensor& operator[](NormRole role) const { return norms[static_cast<size_t>(role)]; }
};

enum class WeightLayout : uint8_t { kFused, kSeparate };

struct RangeWeights {
  at::Tensor embedding;              // bf16 [vocab, hidden]; undefined unless the range begins at layer 0
  std::vector<LayerWeights> layers;            // kFused
  std::vector<SeparateWeights> separate;       // kSeparate
  // On a GPU: the matrices that have the source's own values (bf16), by the name of the source tensor. Views of the above.
  std::map<std::string, at::Tensor> source_values;
};

Result<RangeWeights> LoadWeights(const SourceModel& source, const DecoderSpec& spec, const Plan& plan, const RunnerOptions& options,
                                 at::Device device, MatmulDtype matmul, WeightLayout layout, std::vector<LoadedDigest>* digests);

// For each layer of the range: the positions in the amax vector that observe what linears of each LinearInput read.
using SiteSlots = std::array<std::vector<uint32_t>, 4>;
std::vector<SiteSlots> FindSlots(const DecoderSpec& spec, const Plan& plan, uint32_t first_layer, uint32_t last_layer);

}  // namespace holdfast
