// SPDX-License-Identifier: Apache-2.0
//
// The reference: NVFP4 spelt out one element at a time, as plainly as the format's definition reads. Slow on purpose; the fast
// kernels (nvfp4_kernel.cc, nvfp4_cuda.cu) are compared with it bit for bit and share no code with it.
#include <bit>
#include <cmath>
#include <limits>

#include "export/nvfp4/nvfp4.h"

namespace holdfast {
namespace {

constexpr float kE2m1Values[8] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};
constexpr float kE4m3Max = 448.0f;
constexpr float kE4m3Tiny = 0x1p-9f;     // smallest subnormal
constexpr float kE4m3Normal = 0x1p-6f;   // smallest normal
constexpr float kE4m3Overflow = 464.0f;  // a tie that still rounds to 448

float Element(DType dtype, ByteSpan data, uint64_t i) {
  if (dtype == DType::kF32) {
    uint32_t bits;
    std::memcpy(&bits, data.data() + 4 * i, 4);
    return std::bit_cast<float>(bits);
  }
  uint16_t bits;
  std::memcpy(&bits, data.data() + 2 * i, 2);
  return dtype == DType::kBF16 ? Bf16ToFloat(bits) : F16ToFloat(bits);
}

}  // namespace

uint8_t FloatToE4m3(float x) {
  const uint8_t sign = std::signbit(x) ? 0x80 : 0;
  const float a = std::fabs(x);
  if (!(a <= kE4m3Overflow)) return sign | 0x7f;
  if (a < kE4m3Normal)
    return sign | static_cast<uint8_t>(std::nearbyint(a * 512.0f));  // steps of 2^-9; 8 is 2^-6
  const int e = std::ilogb(a);
  const int eighths = static_cast<int>(
      std::nearbyint(std::ldexp(a, 3 - e)));  // 8..16; 16 carries into the exponent
  return static_cast<uint8_t>(sign | ((e + 7) * 8 + eighths - 8));
}

float E4m3ToFloat(uint8_t bits) {
  const int e = (bits >> 3) & 15, m = bits & 7;
  float a = e == 0 ? std::ldexp(static_cast<float>(m), -9)
                   : std::ldexp(static_cast<float>(8 + m), e - 10);
  if (e == 15 && m == 7) a = std::numeric_limits<float>::quiet_NaN();
  return bits & 0x80 ? -a : a;
}

uint8_t FloatToE2m1(float x) {
  if (std::isnan(x)) return 7;
  const float a = std::fabs(x);
  uint8_t code = 0;
  for (const float bound : {0.25f, 0.75f, 1.25f, 1.75f, 2.5f, 3.5f, 5.0f}) code += a > bound;
  if (a == 0.75f || a == 1.75f || a == 3.5f) ++code;  // ties to the even code
  return code | (x < 0 ? 8 : 0);
}

float E2m1ToFloat(uint8_t code) {
  return code & 8 ? -kE2m1Values[code & 7] : kE2m1Values[code & 7];
}

float Bf16ToFloat(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

uint16_t FloatToBf16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if (std::isnan(x)) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

float F16ToFloat(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
  const int e = (bits >> 10) & 31;
  const uint32_t m = bits & 0x3ff;
  if (e == 31) return std::bit_cast<float>(sign | 0x7f800000u | (m << 13));
  const float a = e == 0 ? std::ldexp(static_cast<float>(m), -24)
                         : std::ldexp(static_cast<float>(1024 + m), e - 25);
  return std::bit_cast<float>(std::bit_cast<uint32_t>(a) | sign);
}

float GlobalScale(float amax) {
  const float inverse =
      1.0f / 2688.0f;  // rounded once; then a product: what dividing a CUDA tensor by a number does
  const float scale = amax * inverse;
  return scale > 0 ? scale : 1.0f;
}

void QuantizeNvfp4Reference(DType dtype, ByteSpan weight, uint64_t rows, uint64_t cols,
                            float weight_scale_2, std::span<uint8_t> packed,
                            std::span<uint8_t> weight_scale) {
  HOLDFAST_CHECK(cols % kNvfp4Block == 0 && std::isfinite(weight_scale_2) && weight_scale_2 > 0);
  HOLDFAST_CHECK(dtype == DType::kBF16 || dtype == DType::kF16 || dtype == DType::kF32);
  HOLDFAST_CHECK(weight.size() == rows * cols * DTypeBytes(dtype));
  HOLDFAST_CHECK(packed.size() == rows * cols / 2 &&
                 weight_scale.size() == rows * cols / kNvfp4Block);
  const float six_scales = 6.0f * weight_scale_2;
  for (uint64_t block = 0; block < weight_scale.size(); ++block) {
    float block_max = 0;
    for (uint64_t i = 0; i < kNvfp4Block; ++i) {
      const float a = std::fabs(Element(dtype, weight, block * kNvfp4Block + i));
      if (a > block_max) block_max = a;   // not fmax: GCC 12 for ARM fails on that reduction
    }
    float s = block_max / six_scales;
    if (s == 0) s = 1.0f;
    if (s < kE4m3Tiny) s = kE4m3Tiny;
    if (s > kE4m3Max) s = kE4m3Max;
    weight_scale[block] = FloatToE4m3(s);
    const float d = E4m3ToFloat(weight_scale[block]) * weight_scale_2;
    for (uint64_t i = 0; i < kNvfp4Block; i += 2) {
      const uint8_t low = FloatToE2m1(Element(dtype, weight, block * kNvfp4Block + i) / d);
      const uint8_t high = FloatToE2m1(Element(dtype, weight, block * kNvfp4Block + i + 1) / d);
      packed[(block * kNvfp4Block + i) / 2] = static_cast<uint8_t>(low | high << 4);
    }
  }
}

void DequantizeNvfp4(ByteSpan packed, ByteSpan weight_scale, uint64_t rows, uint64_t cols,
                     float weight_scale_2, std::span<float> out) {
  HOLDFAST_CHECK(cols % kNvfp4Block == 0 && out.size() == rows * cols);
  HOLDFAST_CHECK(packed.size() == rows * cols / 2 &&
                 weight_scale.size() == rows * cols / kNvfp4Block);
  for (uint64_t block = 0; block < weight_scale.size(); ++block) {
    const float d = E4m3ToFloat(weight_scale[block]) * weight_scale_2;
    for (uint64_t i = 0; i < kNvfp4Block; ++i) {
      const uint64_t at = block * kNvfp4Block + i;
      out[at] = E2m1ToFloat(packed[at / 2] >> (4 * (at % 2)) & 15) * d;
    }
  }
}

}  // namespace holdfast
