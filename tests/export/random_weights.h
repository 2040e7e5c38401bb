// SPDX-License-Identifier: Apache-2.0
//
// Weights that a kernel may get wrong: for the tests that compare kernels with the reference, on the CPU and on the GPU.
#pragma once

#include <bit>
#include <cmath>
#include <random>

#include "export/nvfp4/nvfp4.h"

namespace holdfast {

// Stores v in `type`, truncated. f16: v within its normal range.
inline void PutWeight(DType type, float v, Bytes* out) {
  const uint32_t bits = std::bit_cast<uint32_t>(v);
  if (type == DType::kF32) PutLe(out, bits);
  if (type == DType::kBF16) PutLe(out, static_cast<uint16_t>(bits >> 16));
  if (type == DType::kF16) PutLe(out, static_cast<uint16_t>((bits - (112u << 23)) >> 13));
}

// flavour 0: like a model; 1: any finite bits, with holes of zero; 2: codes' values and just above them; 3: subnormals mostly.
inline Bytes RandomWeights(DType type, uint64_t n, int flavour, std::mt19937* random) {
  std::normal_distribution<float> normal(0, 0.02f);
  Bytes out;
  for (uint64_t i = 0; i < n; ++i) {
    uint32_t bits = static_cast<uint32_t>((*random)());
    if (flavour == 0) bits = std::bit_cast<uint32_t>(normal(*random));
    if (flavour == 1 && bits % 3 == 0) bits = 0;
    if (flavour == 2) bits = std::bit_cast<uint32_t>(E2m1ToFloat(bits & 15) * (bits & 16 ? 1 : 1.0000001f) * 0.25f);
    if (flavour == 3) bits = bits & 0x80000000u ? bits & 0x80ffffffu : bits & 0x00ffffffu;
    if (type == DType::kF32) {
      if ((bits & 0x7f800000) == 0x7f800000) bits ^= 0x40000000;
      PutLe(&out, bits);
    } else {
      uint16_t half = static_cast<uint16_t>(bits >> 16);
      const uint16_t inf = type == DType::kBF16 ? 0x7f80 : 0x7c00;
      if ((half & inf) == inf) half ^= 0x4000;
      PutLe(&out, half);
    }
  }
  return out;
}

// Blocks of 16 under one random weight_scale_2; every block's divisor is another, and its weights lie within two units in the last place
// of a boundary of the element format.
struct BoundaryWeights {
  float scale2 = 1;
  Bytes data;
};
inline BoundaryWeights WeightsAroundBoundaries(DType type, int blocks, std::mt19937* random) {
  constexpr float kBoundaries[] = {0.25f, 0.75f, 1.25f, 1.75f, 2.5f, 3.5f, 5.0f};
  std::uniform_real_distribution<float> mantissa(1.0f, 2.0f);
  BoundaryWeights out;
  const float m = mantissa(*random);   // one draw a line: the order of a call's arguments is the compiler's choice
  const int exponent = type == DType::kF16 ? -6 : static_cast<int>((*random)() % 120) - 90;
  out.scale2 = std::ldexp(m, exponent);
  for (int b = 0; b < blocks; ++b) {
    float top = mantissa(*random);   // the block's scale, before it is rounded to e4m3
    top *= static_cast<float>(1 << (*random)() % 3);
    const float divisor = E4m3ToFloat(FloatToE4m3(top)) * out.scale2;
    PutWeight(type, top * (6.0f * out.scale2), &out.data);
    for (int i = 1; i < 16; ++i) {
      const uint32_t bits = std::bit_cast<uint32_t>(kBoundaries[(*random)() % 7] * divisor);
      const uint32_t step = type == DType::kF32 ? 1 : type == DType::kBF16 ? 1u << 16 : 1u << 13;
      const uint32_t away = static_cast<uint32_t>((*random)() % 5);
      PutWeight(type, std::bit_cast<float>(bits + away * step - 2 * step), &out.data);
    }
  }
  return out;
}

}  // namespace holdfast
