// SPDX-License-Identifier: Apache-2.0
//
// Written with the compilers' vector types: 16 lanes whatever the machine has, so that the order of every sum is part of the source and
// not of the build. On x86-64 each function is compiled for AVX-512, AVX2 and the baseline, and chosen when the program starts.
#include "calib/runner/kernels.h"

#include <cmath>
#include <cstring>

#if defined(__x86_64__) && !defined(HOLDFAST_KERNELS_ONE_VARIANT)
#define HOLDFAST_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define HOLDFAST_CLONES
#endif
#define HOLDFAST_INLINE __attribute__((always_inline)) inline

namespace holdfast::kernels {
namespace {

constexpr size_t kLanes = 16;
using F32 = float __attribute__((vector_size(64)));
using U32 = uint32_t __attribute__((vector_size(64)));
using I32 = int32_t __attribute__((vector_size(64)));
using U16 = uint16_t __attribute__((vector_size(32)));

HOLDFAST_INLINE F32 Splat(float x) { return F32{} + x; }

HOLDFAST_INLINE F32 Load(const uint16_t* p) {
  U16 h;
  std::memcpy(&h, p, sizeof h);
  return reinterpret_cast<F32>(__builtin_convertvector(h, U32) << 16);
}

HOLDFAST_INLINE U32 RoundBits(F32 f) {   // bf16 bits, nearest even; a NaN stays one
  const U32 u = reinterpret_cast<U32>(f);
  const U32 rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  const U32 nan = reinterpret_cast<U32>(f != f);
  return (rounded & ~nan) | (0x7fc0 & nan);
}
HOLDFAST_INLINE F32 Round(F32 f) { return reinterpret_cast<F32>(RoundBits(f) << 16); }
HOLDFAST_INLINE U16 Narrow(F32 f) { return __builtin_convertvector(RoundBits(f), U16); }

HOLDFAST_INLINE void Store(uint16_t* p, U16 h) { std::memcpy(p, &h, sizeof h); }

HOLDFAST_INLINE U16 MaxMagnitude(U16 so_far, U16 h) {
  const U16 magnitude = h & 0x7fff;
  const U16 greater = reinterpret_cast<U16>(magnitude > so_far);
  return (magnitude & greater) | (so_far & ~greater);
}
HOLDFAST_INLINE uint16_t Reduce(U16 v) {
  uint16_t out = 0;
  for (size_t i = 0; i < kLanes; ++i) out = v[i] > out ? v[i] : out;
  return out;
}
HOLDFAST_INLINE float Sum(F32 v) {   // a tree, always the same one
  float s[kLanes];
  std::memcpy(s, &v, sizeof s);
  for (size_t width = kLanes / 2; width > 0; width /= 2) {
    for (size_t i = 0; i < width; ++i) s[i] += s[i + width];
  }
  return s[0];
}

// A short tail, as a full vector padded with zeros.
struct Tail {
  alignas(64) uint16_t lanes[kLanes] = {};
  HOLDFAST_INLINE Tail(const uint16_t* p, size_t n) { std::memcpy(lanes, p, n * sizeof *p); }
};
HOLDFAST_INLINE F32 LoadTail(const uint16_t* p, size_t n) { return Load(Tail(p, n).lanes); }
HOLDFAST_INLINE void StoreTail(uint16_t* p, U16 h, size_t n) { std::memcpy(p, &h, n * sizeof *p); }

// exp(x) within 2 ulp, x clamped to [-87, 88]; NaN stays NaN. Range reduction by ln 2 in two parts, polynomial of degree 6.
HOLDFAST_INLINE F32 Exp(F32 x) {
  const F32 lo = Splat(-87.0f), hi = Splat(88.0f);
  x = x < lo ? lo : x;
  x = x > hi ? hi : x;
  const F32 magic = Splat(12582912.0f);   // 1.5 * 2^23: adding it rounds to an integer
  const F32 shifted = x * 1.44269504088896341f + magic;
  const F32 n = shifted - magic;
  const F32 r = (x - n * 0.693145751953125f) - n * 1.42860682030941723212e-6f;
  F32 p = Splat(1.3888889225e-3f);
  p = p * r + 8.3333337680e-3f;
  p = p * r + 4.1666667908e-2f;
  p = p * r + 1.6666667163e-1f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const I32 exponent = (reinterpret_cast<I32>(shifted) - 0x4b400000) << 23;
  return reinterpret_cast<F32>(reinterpret_cast<I32>(p) + exponent);
}

HOLDFAST_INLINE F32 Silu(F32 x) { return x / (Splat(1.0f) + Exp(-x)); }

// Applies `step(offset, lanes)` over n values in vectors, the last one perhaps short.
template <class Step>
HOLDFAST_INLINE void ForLanes(size_t n, Step step) {
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) step(i, kLanes);
  if (i < n) step(i, n - i);
}
HOLDFAST_INLINE F32 LoadSome(const uint16_t* p, size_t n) { return n == kLanes ? Load(p) : LoadTail(p, n); }
HOLDFAST_INLINE void StoreSome(uint16_t* p, U16 h, size_t n) { n == kLanes ? Store(p, h) : StoreTail(p, h, n); }

HOLDFAST_INLINE U16 NormRow(const uint16_t* x, const uint16_t* weight, float scale, size_t n, uint16_t* out, U16 amax) {
  ForLanes(n, [&](size_t i, size_t lanes) __attribute__((always_inline)) {
    const U16 h = Narrow(Round(LoadSome(x + i, lanes) * scale) * LoadSome(weight + i, lanes));
    amax = MaxMagnitude(amax, h);
    StoreSome(out + i, h, lanes);
  });
  return amax;
}

// Scores of one row, in place: scaled and rounded; returns their maximum (NaN if there is one).
HOLDFAST_INLINE float ScaleRow(uint16_t* row, size_t first, size_t last, float scale) {
  F32 top = Splat(-INFINITY);
  ForLanes(last - first, [&](size_t i, size_t lanes) __attribute__((always_inline)) {
    const F32 s = LoadSome(row + first + i, lanes) * scale;
    const U16 h = Narrow(s);
    StoreSome(row + first + i, h, lanes);
    F32 rounded = Round(s);
    if (lanes != kLanes) {
      for (size_t l = lanes; l < kLanes; ++l) rounded[l] = -INFINITY;
    }
    top = rounded <= top ? top : rounded;   // a NaN is not <=
  });
  float best = -INFINITY;
  for (size_t l = 0; l < kLanes; ++l) best = top[l] <= best ? best : top[l];
  return best;
}

HOLDFAST_INLINE float ExpRow(uint16_t* row, size_t first, size_t last, float top, float* exps) {
  F32 sum = Splat(0);
  ForLanes(last - first, [&](size_t i, size_t lanes) __attribute__((always_inline)) {
    F32 e = Exp(LoadSome(row + first + i, lanes) - top);
    if (lanes != kLanes) {
      for (size_t l = lanes; l < kLanes; ++l) e[l] = 0;
    }
    std::memcpy(exps + i, &e, sizeof e);
    sum += e;
  });
  return Sum(sum);
}

}  // namespace

HOLDFAST_CLONES
uint16_t RmsNorm(uint16_t* x, const uint16_t* delta, const uint16_t* weight, float eps, size_t rows, size_t n, uint16_t* out) {
  U16 amax{};
  for (size_t r = 0; r < rows; ++r, x += n, out += n) {
    F32 squares = Splat(0);
    ForLanes(n, [&](size_t i, size_t lanes) __attribute__((always_inline)) {
      F32 v = LoadSome(x + i, lanes);
      if (delta != nullptr) {
        v = Round(v + LoadSome(delta + r * n + i, lanes));
        StoreSome(x + i, Narrow(v), lanes);
      }
      squares += v * v;
    });
    const float scale = 1.0f / std::sqrt(Sum(squares) / static_cast<float>(n) + eps);
    amax = NormRow(x, weight, scale, n, out, amax);
  }
  return Reduce(amax);
}

HOLDFAST_CLONES
void Add(uint16_t* x, const uint16_t* delta, size_t count) {
  ForLanes(count, [&](size_t i, size_t lanes) __attribute__((always_inline)) {
    StoreSome(x + i, Narrow(LoadSome(x + i, lanes) + LoadSome(delta + i, lanes)), lanes);
  });
}

HOLDFAST_CLONES
void Rotate(const uint16_t* x, size_t stride, const uint16_t* cos, const uint16_t* sin, size_t rows, size_t head_dim, uint16_t* out) {
  const size_t half = head_dim / 2;
  for (size_t t = 0; t < rows; ++t, x += stride, out += head_dim, cos += half, sin += half) {
    ForLanes(half, [&](size_t i, size_t lanes) __attribute__((always_inline)) {
      const F32 a = LoadSome(x + i, lanes), b = LoadSome(x + half + i, lanes);
      const F32 c = LoadSome(cos + i, lanes), s = LoadSome(sin + i, lanes);
      StoreSome(out + i, Narrow(Round(a * c) - Round(b * s)), lanes);
      StoreSome(out + half + i, Narrow(Round(b * c) + Round(a * s)), lanes);
    });
  }
}

HOLDFAST_CLONES
void CausalSoftmax(uint16_t* scores, const SoftmaxShape& shape) {
  constexpr size_t kRowOnStack = 4096;
  alignas(64) float on_stack[kRowOnStack];
  float* exps = shape.n + kLanes <= kRowOnStack ? on_stack : new float[shape.n + kLanes];
  for (size_t r = 0; r < shape.rows; ++r) {
    uint16_t* row = scores + r * shape.n;
    const size_t last = shape.diagonal + r % shape.tokens + 1;
    const size_t first = shape.window != 0 && last > shape.window ? last - shape.window : 0;
    const float top = ScaleRow(row, first, last, shape.scale);
    const float inverse = 1.0f / ExpRow(row, first, last, top, exps);
    ForLanes(last - first, [&](size_t i, size_t lanes) __attribute__((always_inline)) {
      F32 e;
      std::memcpy(&e, exps + i, sizeof e);
      StoreSome(row + first + i, Narrow(e * inverse), lanes);
    });
    std::memset(row, 0, first * sizeof *row);
    std::memset(row + last, 0, (shape.n - last) * sizeof *row);
  }
  if (exps != on_stack) delete[] exps;
}

HOLDFAST_CLONES
uint16_t SiluMul(const uint16_t* gate_up, size_t rows, size_t n, uint16_t* out) {
  U16 amax{};
  for (size_t r = 0; r < rows; ++r, gate_up += 2 * n, out += n) {
    ForLanes(n, [&](size_t i, size_t lanes) __attribute__((always_inline)) {
      const U16 h = Narrow(Round(Silu(LoadSome(gate_up + i, lanes))) * LoadSome(gate_up + n + i, lanes));
      amax = MaxMagnitude(amax, h);
      StoreSome(out + i, h, lanes);
    });
  }
  return Reduce(amax);
}

HOLDFAST_CLONES
uint16_t MulUp(const uint16_t* activated, const uint16_t* gate_up, size_t rows, size_t n, uint16_t* out) {
  U16 amax{};
  for (size_t r = 0; r < rows; ++r, activated += n, gate_up += 2 * n, out += n) {
    ForLanes(n, [&](size_t i, size_t lanes) __attribute__((always_inline)) {
      const U16 h = Narrow(LoadSome(activated + i, lanes) * LoadSome(gate_up + n + i, lanes));
      amax = MaxMagnitude(amax, h);
      StoreSome(out + i, h, lanes);
    });
  }
  return Reduce(amax);
}

HOLDFAST_CLONES
uint16_t Amax(const uint16_t* x, size_t count) {
  U16 amax{};
  size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    U16 h;
    std::memcpy(&h, x + i, sizeof h);
    amax = MaxMagnitude(amax, h);
  }
  uint16_t out = Reduce(amax);
  for (; i < count; ++i) out = (x[i] & 0x7fff) > out ? (x[i] & 0x7fff) : out;
  return out;
}

HOLDFAST_CLONES
void ToF32(const uint16_t* x, size_t count, float* out) {
  ForLanes(count, [&](size_t i, size_t lanes) __attribute__((always_inline)) {
    const F32 f = LoadSome(x + i, lanes);
    std::memcpy(out + i, &f, lanes * sizeof *out);
  });
}

HOLDFAST_CLONES
void ToBf16(const float* x, size_t count, uint16_t* out) {
  ForLanes(count, [&](size_t i, size_t lanes) __attribute__((always_inline)) {
    F32 f{};
    std::memcpy(&f, x + i, lanes * sizeof *x);
    StoreSome(out + i, Narrow(f), lanes);
  });
}

}  // namespace holdfast::kernels
