// SPDX-License-Identifier: Apache-2.0
//
// NVFP4 numerics: the published vectors, every boundary of both casts, and all kernels of this CPU against the reference.
#include "export/nvfp4/nvfp4.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <random>

#include "export/nvfp4/nvfp4_kernel.h"
#include "tests/export/random_weights.h"

namespace holdfast {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

Bytes Encode(DType type, const std::vector<float>& values) {
  Bytes out;
  for (const float v : values) {
    if (type == DType::kF32) PutLe(&out, std::bit_cast<uint32_t>(v));
    if (type == DType::kBF16) PutLe(&out, FloatToBf16(v));
  }
  return out;
}

struct Quantized {
  std::string packed, scales;  // hex
  uint32_t scale2;
};

Quantized Quantize(DType type, const std::vector<float>& values, uint64_t cols, float amax = -1) {
  const Bytes data = Encode(type, values);
  if (amax < 0) amax = *WeightAmax(type, data, "w");
  const float scale2 = GlobalScale(amax);
  const uint64_t rows = values.size() / cols;
  Bytes packed(values.size() / 2), scales(values.size() / 16);
  QuantizeNvfp4(type, data, rows, cols, scale2, packed, scales);
  Bytes packed2(packed.size()), scales2(scales.size());
  QuantizeNvfp4Reference(type, data, rows, cols, scale2, packed2, scales2);
  EXPECT_EQ(HexEncode(packed), HexEncode(packed2));
  EXPECT_EQ(HexEncode(scales), HexEncode(scales2));
  return {HexEncode(packed), HexEncode(scales), std::bit_cast<uint32_t>(scale2)};
}

std::vector<float> Padded(std::vector<float> v, size_t n, float fill = 0) {
  v.resize(n, fill);
  return v;
}

std::vector<float> AfterTopBlock(std::vector<float> second) {
  std::vector<float> v = Padded({2688.0f}, 16);
  second.resize(16);
  v.insert(v.end(), second.begin(), second.end());
  return v;
}

// The tables of spec vectors: packed, scales, weight_scale_2.
void Expect(const Quantized& q, const char* packed, const char* scales, uint32_t scale2) {
  EXPECT_EQ(q.packed, packed);
  EXPECT_EQ(q.scales, scales);
  EXPECT_EQ(q.scale2, scale2);
}

TEST(Nvfp4Vectors, V1Ties) {
  for (const DType t : {DType::kBF16, DType::kF32}) {
    Expect(Quantize(t,
                    AfterTopBlock({.25f, -.25f, .75f, -.75f, 1.25f, -1.25f, 1.75f, -1.75f, 2.5f,
                                   -2.5f, 3.5f, -3.5f, 5, -5, 6, -0.0f}),
                    32),
           "070000000000000080a2a2c4c4e6e607", "7e38", 0x3f800000);
  }
}

TEST(Nvfp4Vectors, V2NeighboursOfTies) {
  std::vector<float> v = {std::nextafter(.25f, 1.0f), -std::nextafter(.25f, 0.0f)};
  for (const float tie : {.75f, 1.25f, 1.75f, 2.5f, 3.5f, 5.0f}) {
    v.push_back(std::nextafter(tie, 0.0f));
    v.push_back(std::nextafter(tie, 9.0f));
  }
  v.push_back(6);
  v.push_back(-6);
  Expect(Quantize(DType::kF32, AfterTopBlock(v), 32), "070000000000000081213243546576f7", "7e38",
         0x3f800000);
}

TEST(Nvfp4Vectors, V3SignedZeros) {
  std::vector<float> v(16);
  for (size_t i = 1; i < 16; i += 2) v[i] = -0.0f;
  Expect(Quantize(DType::kBF16, AfterTopBlock(v), 32), "07000000000000000000000000000000", "7e38",
         0x3f800000);
}

// Model-Optimizer writes NaN for an all-zero tensor (its V4); we write zeros with scale 1.
TEST(Nvfp4Vectors, V4AllZeroIsZeroNotNan) {
  Expect(Quantize(DType::kBF16, std::vector<float>(16), 16), "0000000000000000", "38", 0x3f800000);
}

TEST(Nvfp4Vectors, V5Underflow) {
  Expect(Quantize(DType::kBF16, AfterTopBlock({1e-3f, -1e-3f, 4e-4f, -6e-4f}), 32),
         "07000000000000009190000000000000", "7e01", 0x3f800000);
}

TEST(Nvfp4Vectors, V7Huge) {
  const float top = Bf16ToFloat(0x7f7f);
  Expect(Quantize(DType::kBF16, Padded({top, -1e38f, 1, -1}, 16, 2e37f), 16), "c780111111111111",
         "7e", 0x79c24925);
}

TEST(Nvfp4Vectors, V8SubnormalGlobalScale) {
  Expect(Quantize(DType::kBF16, Padded({1e-38f, -3e-39f, 2e-39f}, 16), 16), "c702000000000000",
         "7e", 0x00000a62);
}

TEST(Nvfp4Vectors, V11AmaxBelowTheTensor) {
  Expect(Quantize(DType::kBF16, Padded({8, -8, 4, 1}, 16, .5f), 16, 1.0f), "f777555555555555", "7e",
         0x39c30c31);
}

TEST(GlobalScale, IsAProductNotADivision) {
  int differ = 0;
  for (uint32_t bits = 1; bits < 0x7f80; ++bits) {
    const float amax = Bf16ToFloat(static_cast<uint16_t>(bits));
    differ += GlobalScale(amax) != amax / 2688.0f;
  }
  EXPECT_EQ(differ, 6818);  // of 32639: the share measured against CUDA
  EXPECT_EQ(GlobalScale(2688.0f), 1.0f);
  EXPECT_EQ(GlobalScale(0.0f), 1.0f);
  EXPECT_EQ(GlobalScale(0x1p-149f), 1.0f);  // the product would be zero
}

// ---- E4M3, against a search over the table of all values ----

std::vector<double> E4m3Values() {  // index = byte, positive finite
  std::vector<double> v;
  for (int b = 0; b < 0x7f; ++b) {
    const int e = b >> 3, m = b & 7;
    v.push_back(e == 0 ? m / 512.0 : std::ldexp(8 + m, e - 10));
  }
  return v;
}

uint8_t NearestE4m3(float x) {
  static const std::vector<double> values = E4m3Values();
  const uint8_t sign = std::signbit(x) ? 0x80 : 0;
  const double a = std::fabs(static_cast<double>(x));
  if (std::isnan(x) || a > 464) return sign | 0x7f;
  uint8_t best = 0;
  for (uint8_t b = 1; b < values.size(); ++b) {
    const double old_gap = std::fabs(a - values[best]), gap = std::fabs(a - values[b]);
    if (gap < old_gap || (gap == old_gap && b % 2 == 0)) best = b;
  }
  return sign | best;
}

std::vector<float> InterestingE4m3() {
  const std::vector<double> values = E4m3Values();
  std::vector<float> points = {0,         464,       448,   0x1p-9f, 0x1p-10f, 0x1p-6f,
                               0x1p-149f, 0x1p-126f, 3e38f, kInf,    kNan};
  for (size_t i = 0; i < values.size(); ++i) {
    points.push_back(static_cast<float>(values[i]));
    if (i + 1 < values.size())
      points.push_back(static_cast<float>((values[i] + values[i + 1]) / 2));
  }
  std::vector<float> all;
  for (const float p : points) {
    for (const float q : {p, std::nextafter(p, 0.0f), std::nextafter(p, kInf)}) {
      all.push_back(q);
      all.push_back(-q);
    }
  }
  return all;
}

TEST(E4m3, EveryValueMidpointAndNeighbour) {
  for (const float x : InterestingE4m3()) {
    if (std::isnan(x)) {
      EXPECT_EQ(FloatToE4m3(x) & 0x7f, 0x7f);
    } else {
      EXPECT_EQ(FloatToE4m3(x), NearestE4m3(x)) << std::hexfloat << x;
    }
  }
}

TEST(E4m3, NoSaturation) {
  EXPECT_EQ(FloatToE4m3(464.0f), 0x7e);
  EXPECT_EQ(FloatToE4m3(std::nextafter(464.0f, 1e9f)), 0x7f);
  EXPECT_EQ(FloatToE4m3(-kInf), 0xff);
  EXPECT_EQ(FloatToE4m3(0x1p-10f), 0x00);
  EXPECT_EQ(FloatToE4m3(std::nextafter(0x1p-10f, 1.0f)), 0x01);
}

TEST(E4m3, RoundTrip) {
  for (int b = 0; b < 256; ++b) {
    const float x = E4m3ToFloat(static_cast<uint8_t>(b));
    if ((b & 0x7f) == 0x7f) {
      EXPECT_TRUE(std::isnan(x));
    } else {
      EXPECT_EQ(FloatToE4m3(x), b);
    }
  }
}

TEST(E4m3, RandomFloats) {
  std::mt19937 random(11);
  std::uniform_real_distribution<float> exponent(-12.0f, 9.5f);
  for (int i = 0; i < 200000; ++i) {
    const float x = std::exp2(exponent(random));
    ASSERT_EQ(FloatToE4m3(x), NearestE4m3(x)) << std::hexfloat << x;
  }
}

// ---- E2M1 ----

TEST(E2m1, TiesNeighboursAndSpecials) {
  const struct {
    float tie;
    uint8_t below, at, above;
  } rows[] = {{.25f, 0, 0, 1}, {.75f, 1, 2, 2}, {1.25f, 2, 2, 3}, {1.75f, 3, 4, 4},
              {2.5f, 4, 4, 5}, {3.5f, 5, 6, 6}, {5, 6, 6, 7}};
  for (const auto& r : rows) {
    EXPECT_EQ(FloatToE2m1(std::nextafter(r.tie, 0.0f)), r.below);
    EXPECT_EQ(FloatToE2m1(r.tie), r.at);
    EXPECT_EQ(FloatToE2m1(std::nextafter(r.tie, 9.0f)), r.above);
    EXPECT_EQ(FloatToE2m1(-r.tie), r.at | 8);
  }
  EXPECT_EQ(FloatToE2m1(0.0f), 0);
  EXPECT_EQ(FloatToE2m1(-0.0f), 0);
  EXPECT_EQ(FloatToE2m1(-0.1f), 8);
  EXPECT_EQ(FloatToE2m1(-0x1p-149f), 8);
  EXPECT_EQ(FloatToE2m1(kInf), 7);
  EXPECT_EQ(FloatToE2m1(-kInf), 15);
  EXPECT_EQ(FloatToE2m1(kNan), 7);
  EXPECT_EQ(FloatToE2m1(-kNan), 7);
  for (uint8_t c = 0; c < 16; ++c) EXPECT_EQ(FloatToE2m1(E2m1ToFloat(c)), c == 8 ? 0 : c);
}

TEST(Halves, F16AllValues) {
  EXPECT_EQ(F16ToFloat(0x0001), 0x1p-24f);
  EXPECT_EQ(F16ToFloat(0x83ff), -1023 * 0x1p-24f);
  EXPECT_EQ(F16ToFloat(0x3c00), 1.0f);
  EXPECT_EQ(F16ToFloat(0x7bff), 65504.0f);
  EXPECT_EQ(F16ToFloat(0xfc00), -kInf);
  EXPECT_TRUE(std::isnan(F16ToFloat(0x7e01)));
}

TEST(Halves, Bf16RoundsToNearestEven) {
  EXPECT_EQ(FloatToBf16(1.0f), 0x3f80);
  EXPECT_EQ(FloatToBf16(std::bit_cast<float>(0x3f808000u)), 0x3f80);
  EXPECT_EQ(FloatToBf16(std::bit_cast<float>(0x3f818000u)), 0x3f82);
  EXPECT_EQ(FloatToBf16(std::bit_cast<float>(0x3f808001u)), 0x3f81);
  EXPECT_TRUE(std::isnan(Bf16ToFloat(FloatToBf16(kNan))));
}

// ---- amax ----

TEST(WeightAmax, RefusesNonFiniteAndNamesTheElement) {
  for (const DType t : {DType::kBF16, DType::kF32}) {
    std::vector<float> v(100, 0.5f);
    v[37] = kNan;
    auto r = WeightAmax(t, Encode(t, v), "model.layers.3.mlp.up_proj.weight");
    ASSERT_EQ(r.code(), ErrorCode::kInvalidArgument);
    EXPECT_NE(r.error().message.find("model.layers.3.mlp.up_proj.weight: element 37 is NaN"),
              std::string::npos)
        << r.error().message;
    v[12] = -kInf;
    r = WeightAmax(t, Encode(t, v), "w");
    EXPECT_NE(r.error().message.find("element 12 is infinite"), std::string::npos)
        << r.error().message;
  }
  const Bytes f16 = {0x00, 0x3c, 0x00, 0x7c};
  EXPECT_NE(WeightAmax(DType::kF16, f16, "w").error().message.find("element 1 is infinite"),
            std::string::npos);
  EXPECT_EQ(WeightAmax(DType::kF8E4M3, f16, "w").code(), ErrorCode::kInvalidArgument);
}

TEST(WeightAmax, ExactInItsOwnType) {
  EXPECT_EQ(*WeightAmax(DType::kF32, Encode(DType::kF32, {1, -3.0000002f, 2}), "w"), 3.0000002f);
  EXPECT_EQ(*WeightAmax(DType::kF16, Bytes{0x01, 0x80, 0x00, 0x00}, "w"), 0x1p-24f);
  EXPECT_EQ(*WeightAmax(DType::kBF16, Bytes{}, "w"), 0.0f);
}

// ---- every kernel of this CPU against the reference ----

void CompareKernels(DType type, uint64_t rows, uint64_t cols, const Bytes& data, float scale2) {
  const uint64_t n = rows * cols;
  const int index = type == DType::kBF16 ? 0 : type == DType::kF16 ? 1 : 2;
  Bytes packed(n / 2), scales(n / 16);
  QuantizeNvfp4Reference(type, data, rows, cols, scale2, packed, scales);
  for (const Nvfp4Kernel* kernel : Nvfp4Kernels()) {
    Bytes packed2(n / 2, 0xee), scales2(n / 16, 0xee);
    kernel->quantize[index](data.data(), n / 16, scale2, packed2.data(), scales2.data());
    ASSERT_EQ(scales, scales2) << kernel->name << " " << DTypeName(type) << " " << rows << "x"
                               << cols << " scale2 " << scale2;
    ASSERT_EQ(packed, packed2) << kernel->name << " " << DTypeName(type) << " " << rows << "x"
                               << cols << " scale2 " << scale2;
  }
}

class Kernels : public testing::TestWithParam<DType> {};

TEST_P(Kernels, EqualTheReference) {
  std::mt19937 random(5);
  const DType type = GetParam();
  for (const auto& [rows, cols] : std::vector<std::pair<uint64_t, uint64_t>>{{1, 16},
                                                                             {1, 32},
                                                                             {3, 48},
                                                                             {17, 16},
                                                                             {5, 240},
                                                                             {7, 272},
                                                                             {16, 256},
                                                                             {33, 512},
                                                                             {2, 4112}}) {
    for (int flavour = 0; flavour < 4; ++flavour) {
      const Bytes data = RandomWeights(type, rows * cols, flavour, &random);
      const float amax = *WeightAmax(type, data, "w");
      const float own = GlobalScale(amax);
      for (const float scale2 : {own, GlobalScale(std::fmin(amax * 4, 3e38f)),
                                 own / 16 > 0 ? own / 16 : own, 1.0f, 0x1p-149f, 3e38f, 0.0123f}) {
        CompareKernels(type, rows, cols, data, scale2);
      }
    }
  }
}

TEST_P(Kernels, AbsMaxAgreesAndKeepsNonFinite) {
  const DType type = GetParam();
  const int index = type == DType::kBF16 ? 0 : type == DType::kF16 ? 1 : 2;
  std::mt19937 random(6);
  for (uint64_t n : {0, 1, 15, 16, 17, 1000, 4097}) {
    const Bytes data = RandomWeights(type, n, 1, &random);
    for (const Nvfp4Kernel* kernel : Nvfp4Kernels()) {
      EXPECT_EQ(kernel->abs_max[index](data.data(), n),
                Nvfp4Kernels().back()->abs_max[index](data.data(), n));
    }
  }
}

TEST_P(Kernels, UnalignedInput) {
  const DType type = GetParam();
  const int index = type == DType::kBF16 ? 0 : type == DType::kF16 ? 1 : 2;
  std::mt19937 random(7);
  const Bytes data = RandomWeights(type, 320, 0, &random);
  Bytes shifted(1, 0);
  shifted.insert(shifted.end(), data.begin(), data.end());
  Bytes packed(160), scales(20);
  QuantizeNvfp4Reference(type, data, 1, 320, 1e-4f, packed, scales);
  for (const Nvfp4Kernel* kernel : Nvfp4Kernels()) {
    Bytes packed2(161), scales2(21);
    kernel->quantize[index](shifted.data() + 1, 20, 1e-4f, packed2.data() + 1, scales2.data() + 1);
    EXPECT_TRUE(std::equal(packed.begin(), packed.end(), packed2.begin() + 1)) << kernel->name;
    EXPECT_TRUE(std::equal(scales.begin(), scales.end(), scales2.begin() + 1)) << kernel->name;
  }
}

INSTANTIATE_TEST_SUITE_P(Types, Kernels, testing::Values(DType::kBF16, DType::kF16, DType::kF32),
                         [](const auto& info) { return std::string(DTypeName(info.param)); });

// Weights a few units in the last place around every boundary of the element format, under divisors of any mantissa: where counting
// thresholds instead of dividing would go wrong first.
TEST_P(Kernels, EqualTheReferenceAroundEveryBoundary) {
  std::mt19937 random(8);
  for (int round = 0; round < 300; ++round) {
    const BoundaryWeights w = WeightsAroundBoundaries(GetParam(), 16, &random);
    CompareKernels(GetParam(), 16, 16, w.data, w.scale2);
    if (HasFatalFailure()) return;
  }
}

// Divisors at and beyond the ends of the thresholds' range, and weights that only just keep their sign.
TEST(Kernels, DivisorsAtTheEndsOfTheRange) {
  for (const float d : {0x1p-100f, 0x1p-101f, 0x1.8p-126f, 0x1p-140f, 0x1p17f, 0x1.8p23f, 0x1p24f, 0x1p60f}) {
    Bytes data;
    for (const float v : {6 * d, -0x1p-133f, 0x1p-133f, -0x1p-149f, -0x1.8p-127f, -0.0f, -d * 0x1p-126f, d * 0.25f, -d * 0.25f, d, -d, 2 * d,
                          -3 * d, 4 * d, -5 * d, 5.5f * d}) {
      PutLe(&data, std::bit_cast<uint32_t>(v));
    }
    CompareKernels(DType::kF32, 1, 16, data, d);
  }
}

// Every bf16 value as a weight under a scale of 1: the whole input space of the element path.
TEST(Kernels, EveryBf16Value) {
  Bytes data;
  for (uint32_t b = 0; b < 0x10000; ++b) {
    if ((b & 0x7f80) != 0x7f80) PutLe(&data, static_cast<uint16_t>(b));
  }
  ASSERT_EQ(data.size() / 2 % 16, 0u);
  for (const float scale2 : {1.0f, 0.37f, 1e-6f, 1e20f})
    CompareKernels(DType::kBF16, 1, data.size() / 2, data, scale2);
}

// Block scales at both ends of the range: s lands on, just under and just over 448 and 2^-9.
TEST(Kernels, ScalesAtTheEnds) {
  for (const float top :
       {448.0f * 6, std::nextafter(448.0f * 6, 0.0f), std::nextafter(448.0f * 6, 1e9f), 470.0f * 6,
        0x1p-9f * 6, std::nextafter(0x1p-9f * 6, 0.0f), 0x1p-10f * 6, 0x1p-6f * 6, 0x1p-20f}) {
    std::vector<float> v(32, top / 2);
    v[3] = -top;
    v[19] = 0x1p-30f;
    CompareKernels(DType::kF32, 1, 32, Encode(DType::kF32, v), 1.0f);
  }
}

TEST(Dequantize, InvertsCodesAndScales) {
  const std::vector<float> v = {6, -4, 3, 2, 1.5f, 1, -.5f, 0, 6, -6, 4, -3, 2, -1, .5f, 0};
  const Bytes data = Encode(DType::kF32, v);
  Bytes packed(8), scales(1);
  QuantizeNvfp4(DType::kF32, data, 1, 16, 1.0f, packed, scales);
  std::vector<float> out(16);
  DequantizeNvfp4(packed, scales, 1, 16, 1.0f, out);
  EXPECT_EQ(out, v);
}

}  // namespace
}  // namespace holdfast
