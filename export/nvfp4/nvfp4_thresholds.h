// SPDX-License-Identifier: Apache-2.0
//
// Where the code of a weight changes, without dividing it: code(|w|) = how many of seven thresholds |w| exceeds. For the CPU and CUDA
// kernels; the reference divides.
//
// The code is E2M1(RN32(w / d)). Its boundaries b are 1/4, 3/4, 5/4, 7/4, 5/2, 7/2, 5; a tie goes to the even code, so a quotient must
// exceed 1/4, 5/4, 5/2, 5 and must reach 3/4, 7/4, 7/2. Rounding moves each boundary by half a unit in the last place of the quotient:
//   RN32(w / d) > b   iff  w / d >  b + ulp(b)/2        RN32(w / d) >= b   iff  w / d >= b - ulp(pred(b))/2
// With d = m * 2^e (m of 24 bits) the right sides, times d, are multiples of m apart by a fraction, and the largest float that does
// not satisfy the condition comes out in integers:
//   5/4 (and 5/2, 5, by exponent):  floor(5 m + m / 2^22), in quarters of a unit of m
//   3/4:                            3 m - 2, in halves
//   7/4 (and 7/2):                  7 m - 1 - floor(m / 2^22), in quarters
//   1/4:                            m: d / 4 itself
// each rounded down to 24 bits. A quotient below 2^-150 rounds to zero, which has no sign: |w| must exceed d * 2^-150 to be negative.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define HOLDFAST_ANYWHERE __host__ __device__ __forceinline__
#else
#define HOLDFAST_ANYWHERE inline __attribute__((always_inline))
#endif

namespace holdfast {

// d within [2^-100, 2^24): no threshold is subnormal or infinite. Weights whose divisor lies elsewhere take the reference's way.
inline constexpr int32_t kDivisorMin = (127 - 100) << 23, kDivisorEnd = (127 + 24) << 23;

// Bits of the largest float >= 0 ...
struct CodeThresholds {
  int32_t zero;      // ... whose quotient rounds to zero
  int32_t code[7];   // ... whose code is at most k
};

// `bits`: of d; `half`: d / 2 truncated to an integer, which is d * 2^-150 in units of the smallest subnormal.
HOLDFAST_ANYWHERE CodeThresholds ThresholdsOf(int32_t bits, int32_t half) {
  constexpr int32_t kOne = 1 << 23;
  const int32_t m = (bits & (kOne - 1)) | kOne, exponent = bits - m;   // bits = exponent + m
  const int32_t up = m >> 22;                                          // 2 or 3
  const int32_t five = 5 * m + up, three = 3 * m - 2, seven = 7 * m - 1 - up;
  const int32_t carry5 = five >> 26, carry3 = three >> 25, carry7 = seven >> 26;   // 1: the next power of two is reached
  const int32_t t5 = (five >> (2 + carry5)) + exponent + (carry5 << 23);
  const int32_t t3 = (three >> (1 + carry3)) + exponent - kOne + (carry3 << 23);
  const int32_t t7 = (seven >> (2 + carry7)) + exponent + (carry7 << 23);
  return {half, {bits - 2 * kOne, t3, t5, t7, t5 + kOne, t7 + kOne, t5 + 2 * kOne}};
}

}  // namespace holdfast
