// SPDX-License-Identifier: Apache-2.0
//
// What a worker will need, before it starts: printed by jobctl, held by the worker, refused when --memory lies below it.
//
// An upper bound of resident memory on the CPU, kept by tests/calib/memory_plan_test.cc to within 30 % of what a forward pass really uses:
//   weights     every linear of the resident layers in the matmul's dtype, norms and (from layer 0) the embedding in bf16
//   per_sample  the buffers of one forward pass, x = tokens: bf16 [x, 4 hidden + qkv + 2 q + k + 3 intermediate], the scores of one block
//               of queries, rotary tables, the result, f32 copies for f32 matmuls, and what oneDNN packs (a copy of the larger operand)
//   per_cut     bf16 [x, hidden]; a sample in flight has two, the one it came in and the one it leaves in
//   fixed       libraries (libtorch and what it draws in: their pages count once touched), plus `eviction`: the largest tensor in the
//               source's dtype, in bf16 planes or NVFP4, and pack buffers. Loading needs less than that.
// On a GPU, weights and samples lie on the device and the same sums hold there, except that attention takes larger blocks.
#pragma once

#include <cstdint>

#include "calib/model/decoder.h"
#include "calib/model/numerics.h"

namespace holdfast {

struct MemoryPlan {
  uint32_t layers = 0;         // of the stage
  uint64_t layer = 0;          // weights of one, as the matmuls want them
  uint64_t embedding = 0;      // 0 unless the stage begins at layer 0
  uint64_t per_sample = 0;     // activations of one sample in flight (times threads: each thread computes one)
  uint64_t per_cut = 0;        // one hidden state waiting in a queue
  uint64_t fixed = 0;          // libraries, buffers, eviction of the largest tensor
  uint64_t eviction = 0;       // the part of `fixed` that only loading and eviction touch
  uint64_t Weights(uint32_t resident) const { return embedding + (resident < layers ? resident : layers) * layer; }
  // With so many layers resident at once.
  uint64_t Total(uint32_t threads, uint32_t window, uint32_t resident) const {
    return fixed + Weights(resident) + threads * per_sample + 2 * window * per_cut;
  }
};

// Stacked query rows and minimum tokens of a block of attention on the CPU; the score buffer hangs on them.
inline constexpr uint64_t kAttentionRows = 256, kAttentionBlockMin = 32;

// For layers [first, last) and sequences of at most `seq_len` tokens.
MemoryPlan PlanMemory(const DecoderSpec& spec, const Plan& plan, uint32_t first_layer, uint32_t last_layer, uint32_t seq_len, MatmulDtype matmul);

}  // namespace holdfast
