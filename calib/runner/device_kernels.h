// SPDX-License-Identifier: Apache-2.0
//
// The elementwise parts of a decoder layer on an NVIDIA GPU, fused, and the way of weights into its memory. Exists only in builds with
// HOLDFAST_HAVE_CUDA. Plain C++: no CUDA and no torch headers.
//
// Arithmetic is that of kernels.h (every operation rounds its f32 result to bf16); sums have a fixed order of their own, so that a row's
// bits depend on the row alone. Pointers are to device memory, rows of bf16 bits, 16-byte aligned, lengths of rows multiples of 8 (all
// of which ShapesFit asks once). Everything is queued on the legacy default stream of `device`, which is libtorch's too, and returns
// at once; errors of a launch come back with the next Synchronize of libtorch.
// amax: raised to max |x| of what was written, as bf16 bits without sign; NaN is above everything. Null: not wanted.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "ledger/base/result.h"

namespace holdfast::device {

bool ShapesFit(uint64_t hidden, uint64_t intermediate, uint64_t head_dim);
int RuntimeVersion();   // the CUDA that these kernels were built with: 13000 is 13.0
// What the calling thread does next happens on this device.
Status Use(int device);

// out[r] = bf16(bf16(x[r] / sqrt(mean(x[r]^2) + eps)) * weight). With `delta`, x += delta comes first (in place).
void RmsNorm(uint16_t* x, const uint16_t* delta, const uint16_t* weight, float eps, size_t rows, size_t n, uint16_t* out, uint32_t* amax);
// x += delta, rounded.
void Add(uint16_t* x, const uint16_t* delta, size_t count);
// In place: the first `heads` heads of each row (of `stride` values) turned by that row's (cos, sin), [rows, head_dim / 2], half-split.
void Rotate(uint16_t* x, size_t stride, const uint16_t* cos, const uint16_t* sin, size_t rows, size_t heads, size_t head_dim);
// out[r][i] = bf16(bf16(silu(gate)) * up), gate = gate_up[r][i], up = gate_up[r][n + i].
void SiluMul(const uint16_t* gate_up, size_t rows, size_t n, uint16_t* out, uint32_t* amax);
// out = bf16(a * up), where a [rows, n] is an activation already applied.
void MulUp(const uint16_t* activated, const uint16_t* gate_up, size_t rows, size_t n, uint16_t* out, uint32_t* amax);
void Amax(const uint16_t* x, size_t count, uint32_t* amax);

// Copies to the device through two pinned buffers on a stream of its own, so that reading the next piece overlaps the copy of the last.
// For one thread.
class Uploader {
 public:
  static constexpr size_t kBytes = 8u << 20;
  static Result<std::unique_ptr<Uploader>> New(int device);
  virtual ~Uploader() = default;
  // A buffer of kBytes that no copy reads any more. Waits for the copy before the last.
  virtual Result<std::span<uint8_t>> Buffer() = 0;
  // Queues a copy of the first `bytes` of the buffer that was handed out last.
  virtual Status Send(void* to, size_t bytes) = 0;
  // When this returns, everything that was sent has arrived.
  virtual Status Finish() = 0;
};

// The way of one sample's hidden states into the device's memory and of its results back, through pinned buffers and on a stream of its own, so
// that samples that are computed meanwhile do not wait for it. For one thread at a time: Send, Arrive, then whatever computes, Fetch, Take.
class CutLane {
 public:
  static Result<std::unique_ptr<CutLane>> New(int device);
  virtual ~CutLane() = default;
  // Begins to copy `bytes` (hidden states, token ids) into the lane's own buffer on the device, which is returned. Overwritten by the next Send.
  virtual Result<void*> Send(std::span<const uint8_t> bytes) = 0;
  // What is queued on the default stream from here on finds it there.
  virtual Status Arrive() = 0;
  // Behind what has been queued on the default stream so far: begins to copy both back. Waits for nothing.
  virtual Status Fetch(const void* hidden, size_t hidden_bytes, const void* amax, size_t amax_bytes) = 0;
  // Waits for them. Sizes as fetched.
  virtual Status Take(std::span<uint8_t> hidden, std::span<uint8_t> amax) = 0;
};

}  // namespace holdfast::device
