// SPDX-License-Identifier: Apache-2.0
//
// What a worker will need, before it starts: printed by jobctl, held by the worker, refused when --memory lies below it.
#pragma once

#include <cstdint>

#include "calib/model/decoder.h"
#include "calib/model/numerics.h"

namespace holdfast {

struct MemoryPlan {
  uint64_t weights = 0;        // resident layers of the stage, as the matmuls want them
  uint64_t per_sample = 0;     // activations of one sample in flight (times threads: each thread computes one)
  uint64_t per_cut = 0;        // one hidden state waiting in a queue
  uint64_t fixed = 0;          // libraries, buffers, eviction of the largest tensor
  uint64_t Total(uint32_t threads, uint32_t window) const { return fixed + weights + threads * per_sample + window * per_cut; }
};

// For layers [first, last) and sequences of at most `seq_len` tokens.
MemoryPlan PlanMemory(const DecoderSpec& spec, const Plan& plan, uint32_t first_layer, uint32_t last_layer, uint32_t seq_len, MatmulDtype matmul);

}  // namespace holdfast
