// SPDX-License-Identifier: Apache-2.0
//
// The instruction-set variants behind QuantizeNvfp4, for the tests and benchmarks that run each of them. Others use nvfp4.h.
#pragma once

#include <cstdint>
#include <vector>

namespace holdfast {

struct Nvfp4Kernel {
  const char* name;  // "avx512", "avx2", "scalar"
  // By source type: bf16, f16, f32. Weights of `blocks` whole blocks of 16; no alignment needed.
  void (*quantize[3])(const uint8_t* weight, uint64_t blocks, float weight_scale_2, uint8_t* packed,
                      uint8_t* weight_scale);
  // Largest |w| of `n` elements as the bits of the source type; Inf and NaN come out as themselves.
  uint32_t (*abs_max[3])(const uint8_t* weight, uint64_t n);
};

// Those that this CPU can run, fastest first.
std::vector<const Nvfp4Kernel*> Nvfp4Kernels();

}  // namespace holdfast
