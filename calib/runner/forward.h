// SPDX-License-Identifier: Apache-2.0
//
// The ways through a layer range. CpuForward and GpuForward: torch for matmuls, our own fused kernels for the rest. OpsForward: torch operations
// throughout, for any device. All follow the bf16 forward pass of transformers operation by operation; only GpuForward's attention
// is fused (flash attention, which keeps in f32 what eager attention rounds to bf16).
#pragma once

#include <memory>

#include "calib/runner/weights.h"

namespace holdfast {

// What both need; owned by the runner.
struct Range {
  DecoderSpec spec;
  uint32_t first_layer = 0, last_layer = 0;
  RangeWeights weights;
  std::vector<SiteSlots> slots;
  size_t sites = 0;
  MatmulDtype matmul = MatmulDtype::kBf16;
  at::Device device = at::kCPU;
  std::shared_ptr<DeviceSession> session;
};

// One of `ids` (layer 0) and `hidden` (else) is given: [tokens, hidden] bf16 bits. Thrown exceptions are the caller's to catch.
struct ForwardInput {
  const std::vector<int32_t>* ids = nullptr;
  ByteSpan hidden;
  uint64_t tokens = 0;
  bool want_hidden = false;
};

ForwardResult CpuForward(const Range& range, const ForwardInput& input);
ForwardResult OpsForward(const Range& range, const ForwardInput& input);

// In builds with CUDA (HOLDFAST_HAVE_CUDA); for models whose rows are multiples of 16 bytes.
bool GpuForwardFits(const DecoderSpec& spec);
Result<ForwardResult> GpuForward(const Range& range, const ForwardInput& input);

}  // namespace holdfast
