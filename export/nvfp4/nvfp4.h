// SPDX-License-Identifier: Apache-2.0
//
// NVFP4 numerics: bit-identical to NVIDIA Model-Optimizer 0.47 as it runs on CUDA (dynamic-block path of max calibration).
// CPU code here; the CUDA kernel (nvfp4_cuda.cu) keeps the same contract. Compiled without fma contraction and without fast-math.
//
//   weight          [rows, cols] bf16, f16 or f32, row-major, cols % 16 == 0
//   weight_scale_2  f32 > 0                     = GlobalScale(amax of the whole set) = amax * RN32(1/2688)   (never a division)
//   weight_scale    [rows, cols/16] e4m3 bits   = E4M3(clamp(s, 2^-9, 448)), s = blockmax / RN32(6 * weight_scale_2), s == 0 -> 1
//   packed          [rows, cols/2] two e2m1     low nibble = even column; code = E2M1(w / RN32(scale * weight_scale_2))
//
// Deliberate differences: a set whose amax is 0 gets weight_scale_2 = 1 (scales 0x38, codes 0) where Model-Optimizer writes NaN;
// non-finite weights are refused by WeightAmax before anything is quantized.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "ledger/base/coding.h"
#include "ledger/base/result.h"
#include "ledger/records/dtype.h"

namespace holdfast {

inline constexpr uint32_t kNvfp4Block = 16;

// max |w| of a tensor in its own dtype, exact as f32. Errors: kInvalidArgument naming `name` and the first element that is NaN or Inf,
// or a dtype other than bf16, f16, f32.
Result<float> WeightAmax(DType dtype, ByteSpan data, const std::string& name);

// weight_scale_2 of a set with this weight amax, input_scale of a site with this input amax: RN32(amax * RN32(1/2688)).
// An amax of 0 gives 1 (see above), and so does one so small that the product is 0 (f32 sources below 1e-42).
float GlobalScale(float amax);

// Quantizes rows [0, rows) of `weight`. Rows are independent: callers cut a matrix into row ranges to use several cores.
// Preconditions (CHECKed): sizes fit, cols % 16 == 0, weight_scale_2 finite and > 0, dtype bf16/f16/f32.
void QuantizeNvfp4(DType dtype, ByteSpan weight, uint64_t rows, uint64_t cols, float weight_scale_2,
                   std::span<uint8_t> packed, std::span<uint8_t> weight_scale);

// Plain scalar twin of QuantizeNvfp4: the reference that SIMD and CUDA are compared with, bit for bit.
void QuantizeNvfp4Reference(DType dtype, ByteSpan weight, uint64_t rows, uint64_t cols, float weight_scale_2,
                            std::span<uint8_t> packed, std::span<uint8_t> weight_scale);

// value = e2m1 * RN32(scale * weight_scale_2), to f32.
void DequantizeNvfp4(ByteSpan packed, ByteSpan weight_scale, uint64_t rows, uint64_t cols, float weight_scale_2, std::span<float> out);

uint8_t FloatToE4m3(float x);   // RNE, no saturation above 464: NaN = 0x7f / 0xff
float E4m3ToFloat(uint8_t bits);
uint8_t FloatToE2m1(float x);   // code with sign in bit 3; -0.0 -> 0, NaN -> 7
float E2m1ToFloat(uint8_t code);
float Bf16ToFloat(uint16_t bits);
uint16_t FloatToBf16(float x);  // RNE
float F16ToFloat(uint16_t bits);

// "avx512", "avx2" or "scalar": which QuantizeNvfp4 this CPU runs. Bits are the same.
const char* Nvfp4KernelName();

}  // namespace holdfast
