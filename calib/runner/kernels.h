// SPDX-License-Identifier: Apache-2.0
//
// The elementwise parts of a decoder layer on the CPU, fused, on raw bf16 (uint16 bits, row-major). No torch.
//
// Rounding follows the bf16 forward pass of transformers: every operation computes in f32 and rounds its result to bf16, so that what
// is fused here gives the bits that separate operations would give. One caveat: sums and exp are our own, in a fixed order and with
// multiplications and additions only (no fma, no library), so that every instruction set gives the same bits.
//
// amax: max |x| of what a function wrote, as bf16 bits without sign; NaN is above everything. Shapes are the caller's business.
#pragma once

#include <cstddef>
#include <cstdint>

namespace holdfast::kernels {

// out[r] = bf16(bf16(x[r] / sqrt(mean(x[r]^2) + eps)) * weight), rows of n values. With `delta`, x += delta comes first (in place).
uint16_t RmsNorm(uint16_t* x, const uint16_t* delta, const uint16_t* weight, float eps, size_t rows, size_t n, uint16_t* out);

// x += delta, rounded.
void Add(uint16_t* x, const uint16_t* delta, size_t count);

// One head of `rows` tokens: out[t] = x[t] turned by (cos[t], sin[t]), half-split layout: bf16(bf16(a*cos) + bf16(-b*sin)) and
// bf16(bf16(b*cos) + bf16(a*sin)). x has `stride` values from token to token, out has head_dim, cos and sin have head_dim / 2.
void Rotate(const uint16_t* x, size_t stride, const uint16_t* cos, const uint16_t* sin, size_t rows, size_t head_dim, uint16_t* out);

// Row r of scores [rows, n] becomes softmax(bf16(score * scale)) over columns [first(r), last(r)), zeros elsewhere. Row r belongs to
// token r % tokens of a block that starts at column `diagonal`: last = diagonal + token + 1, first = max(0, last - window);
// window 0: no limit.
struct SoftmaxShape {
  size_t rows, n, tokens, diagonal, window;
  float scale;
};
void CausalSoftmax(uint16_t* scores, const SoftmaxShape& shape);

// out[r][i] = bf16(bf16(silu(gate)) * up), gate = gate_up[r][i], up = gate_up[r][n + i].
uint16_t SiluMul(const uint16_t* gate_up, size_t rows, size_t n, uint16_t* out);
// out = bf16(a * b), where a is an activation already applied; b = gate_up[r][n + i].
uint16_t MulUp(const uint16_t* activated, const uint16_t* gate_up, size_t rows, size_t n, uint16_t* out);

uint16_t Amax(const uint16_t* x, size_t count);

// bf16 <-> f32 for matmuls in f32.
void ToF32(const uint16_t* x, size_t count, float* out);
void ToBf16(const float* x, size_t count, uint16_t* out);

}  // namespace holdfast::kernels
