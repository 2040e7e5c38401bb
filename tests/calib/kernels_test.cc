// SPDX-License-Identifier: Apache-2.0
//
// The fused kernels: every instruction set gives the same bits, and those bits are the function that the header names.
#include "calib/runner/kernels.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "export/nvfp4/nvfp4.h"

// The same declarations under the names of the variants.
#define HOLDFAST_DECLARE(ns)                                                                                                       \
  namespace holdfast::ns {                                                                                                         \
  struct SoftmaxShape {                                                                                                            \
    size_t rows, n, tokens, diagonal, window;                                                                                      \
    float scale;                                                                                                                   \
  };                                                                                                                               \
  uint16_t RmsNorm(uint16_t* x, const uint16_t* delta, const uint16_t* weight, float eps, size_t rows, size_t n, uint16_t* out);   \
  void Add(uint16_t* x, const uint16_t* delta, size_t count);                                                                      \
  void Rotate(const uint16_t* x, size_t stride, const uint16_t* cos, const uint16_t* sin, size_t rows, size_t dim, uint16_t* out); \
  void CausalSoftmax(uint16_t* scores, const SoftmaxShape& shape);                                                                 \
  uint16_t SiluMul(const uint16_t* gate_up, size_t rows, size_t n, uint16_t* out);                                                 \
  uint16_t MulUp(const uint16_t* activated, const uint16_t* gate_up, size_t rows, size_t n, uint16_t* out);                        \
  uint16_t Amax(const uint16_t* x, size_t count);                                                                                  \
  }
HOLDFAST_DECLARE(kernels_baseline)
#if defined(HOLDFAST_TEST_AVX2)
HOLDFAST_DECLARE(kernels_avx2)
#endif

namespace holdfast {
namespace {

using Bits = std::vector<uint16_t>;

Bits Values(size_t n, uint32_t seed, float scale = 1, bool odd_ones = false) {
  std::mt19937 random(seed);
  Bits out(n);
  for (uint16_t& v : out) {
    const float u = static_cast<float>(random()) * 0x1p-31f - 1.0f;
    v = FloatToBf16(u * u * u * scale);
    if (odd_ones && random() % 64 == 0) {
      static constexpr uint16_t kOdd[] = {0x7f80, 0xff80, 0x7fc0, 0x7f7f, 0xff7f, 0x0001, 0x8000, 0x0080};
      v = kOdd[random() % 8];
    }
  }
  return out;
}

// Everything that the kernels compute from one seed, in one vector.
#define HOLDFAST_RUN_ALL(ns)                                                                                   \
  [](size_t n, uint32_t seed, bool odd) {                                                                      \
    const size_t rows = 3;                                                                                     \
    Bits x = Values(rows * n, seed, 4, odd), out(rows * n), all;                                               \
    const Bits delta = Values(rows * n, seed + 1, 2, odd), weight = Values(n, seed + 2);                       \
    const auto keep = [&all](const Bits& b) { all.insert(all.end(), b.begin(), b.end()); };                    \
    all.push_back(ns::RmsNorm(x.data(), delta.data(), weight.data(), 1e-5f, rows, n, out.data()));             \
    keep(out), keep(x);                                                                                        \
    ns::Add(x.data(), delta.data(), x.size());                                                                 \
    keep(x);                                                                                                   \
    const Bits gate_up = Values(rows * 2 * n, seed + 3, 30, odd);                                              \
    all.push_back(ns::SiluMul(gate_up.data(), rows, n, out.data()));                                           \
    keep(out);                                                                                                 \
    all.push_back(ns::MulUp(x.data(), gate_up.data(), rows, n, out.data()));                                   \
    keep(out);                                                                                                 \
    all.push_back(ns::Amax(gate_up.data(), gate_up.size()));                                                   \
    const size_t dim = 2 * n;                                                                                  \
    Bits turned(rows * dim);                                                                                   \
    ns::Rotate(gate_up.data(), dim, x.data(), delta.data(), rows, dim, turned.data());                         \
    keep(turned);                                                                                              \
    for (const size_t window : {size_t{0}, size_t{5}}) {                                                       \
      Bits scores = Values(6 * n, seed + 4, 20, odd);                                                          \
      ns::CausalSoftmax(scores.data(), {6, n, 3, n - 3, window, 0.125f});                                      \
      keep(scores);                                                                                            \
    }                                                                                                          \
    return all;                                                                                                \
  }

TEST(Kernels, EveryInstructionSetGivesTheSameBits) {
  const auto dispatched = HOLDFAST_RUN_ALL(kernels);
  const auto baseline = HOLDFAST_RUN_ALL(kernels_baseline);
  for (const size_t n : {3, 15, 16, 17, 64, 100, 576, 4100}) {
    for (uint32_t seed = 0; seed < 12; ++seed) {
      const Bits a = dispatched(n, seed, seed >= 6), b = baseline(n, seed, seed >= 6);
      ASSERT_EQ(a, b) << n << " " << seed;
#if defined(HOLDFAST_TEST_AVX2)
      if (__builtin_cpu_supports("avx2")) {
        ASSERT_EQ(a, (HOLDFAST_RUN_ALL(kernels_avx2)(n, seed, seed >= 6))) << n << " " << seed;
      }
#endif
    }
  }
}

float Round(double x) { return Bf16ToFloat(FloatToBf16(static_cast<float>(x))); }

// A step of bf16 at most: the sums of the reference are exact, those of the kernel are not.
void ExpectClose(uint16_t bits, double want, const char* what) {
  EXPECT_NEAR(Bf16ToFloat(bits), want, std::abs(want) * 0x1p-7 + 1e-30) << what;
}

TEST(Kernels, RmsNormIsTheFormula) {
  const size_t n = 100;
  const Bits x = Values(n, 1, 4), weight = Values(n, 2);
  Bits in = x, out(n);
  const uint16_t amax = kernels::RmsNorm(in.data(), nullptr, weight.data(), 1e-5f, 1, n, out.data());
  double squares = 0;
  for (const uint16_t v : x) squares += std::pow(static_cast<double>(Bf16ToFloat(v)), 2);
  const double scale = 1 / std::sqrt(squares / n + 1e-5);
  for (size_t i = 0; i < n; ++i) ExpectClose(out[i], Round(Bf16ToFloat(x[i]) * scale) * Bf16ToFloat(weight[i]), "norm");
  EXPECT_EQ(amax, kernels::Amax(out.data(), n));
}

TEST(Kernels, SiluMulIsTheFormula) {
  const size_t n = 4000;
  const Bits gate_up = Values(2 * n, 3, 60);
  Bits out(n);
  kernels::SiluMul(gate_up.data(), 1, n, out.data());
  for (size_t i = 0; i < n; ++i) {
    const double gate = Bf16ToFloat(gate_up[i]);
    ExpectClose(out[i], Round(gate / (1 + std::exp(-gate))) * Bf16ToFloat(gate_up[n + i]), "silu");
  }
}

TEST(Kernels, SoftmaxIsCausalAndWindowed) {
  const size_t n = 40, tokens = 8, diagonal = 32, window = 10;
  const Bits scores = Values(2 * tokens * n, 4, 30);
  Bits out = scores;
  kernels::CausalSoftmax(out.data(), {2 * tokens, n, tokens, diagonal, window, 0.25f});
  for (size_t r = 0; r < 2 * tokens; ++r) {
    const size_t last = diagonal + r % tokens + 1, first = last - window;
    double sum = 0;
    for (size_t i = first; i < last; ++i) sum += std::exp(Round(Bf16ToFloat(scores[r * n + i]) * 0.25));
    for (size_t i = 0; i < n; ++i) {
      if (i < first || i >= last) EXPECT_EQ(out[r * n + i], 0);
      else ExpectClose(out[r * n + i], std::exp(Round(Bf16ToFloat(scores[r * n + i]) * 0.25)) / sum, "softmax");
    }
  }
}

TEST(Kernels, AmaxKeepsNan) {
  Bits x = Values(33, 5);
  x[32] = 0xffc0;
  EXPECT_TRUE(std::isnan(Bf16ToFloat(kernels::Amax(x.data(), x.size()))));
  x[32] = 0xff80;
  EXPECT_TRUE(std::isinf(Bf16ToFloat(kernels::Amax(x.data(), x.size()))));
}

}  // namespace
}  // namespace holdfast
