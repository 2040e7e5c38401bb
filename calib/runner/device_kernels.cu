// SPDX-License-Identifier: Apache-2.0
//
// Bound by memory, all of them: 16 bytes a load, values in registers in between, one atomic maximum a block. Compiled with --fmad=false,
// so that a product and a sum round twice, as separate operations of torch do.
#include <cuda_runtime.h>

#include <algorithm>
#include <string>

#include "calib/runner/device_kernels.h"
#include "export/nvfp4/cuda_status.h"

namespace holdfast::device {
namespace {

constexpr uint32_t kThreads = 256, kWarps = kThreads / 32, kEach = 8;
constexpr uint32_t kBlocksMax = 2048;   // of the kernels that walk: each ends in one atomic

__device__ float Float(uint32_t bf16) { return __uint_as_float(bf16 << 16); }
__device__ uint32_t Bits(float f) {   // nearest even; a NaN stays one
  const uint32_t u = __float_as_uint(f);
  return f != f ? 0x7fc0u : (u + 0x7fff + ((u >> 16) & 1)) >> 16;
}
__device__ float Round(float f) { return Float(Bits(f)); }

// Eight bf16 values.
struct Eight {
  float v[kEach];
};
__device__ Eight Load(const uint16_t* p) {
  const uint4 q = *reinterpret_cast<const uint4*>(p);
  const uint32_t words[4] = {q.x, q.y, q.z, q.w};
  Eight out;
#pragma unroll
  for (uint32_t i = 0; i < 4; ++i) {
    out.v[2 * i] = Float(words[i] & 0xffff);
    out.v[2 * i + 1] = Float(words[i] >> 16);
  }
  return out;
}
// Rounds and stores; returns the largest magnitude so far.
__device__ uint32_t Store(uint16_t* p, const Eight& e, uint32_t top = 0) {
  uint32_t words[4];
#pragma unroll
  for (uint32_t i = 0; i < 4; ++i) words[i] = Bits(e.v[2 * i]) | Bits(e.v[2 * i + 1]) << 16;
#pragma unroll
  for (uint32_t i = 0; i < 4; ++i) top = __vmaxu2(top, words[i] & 0x7fff7fffu);
  *reinterpret_cast<uint4*>(p) = make_uint4(words[0], words[1], words[2], words[3]);
  return top;
}

// `top`: two magnitudes a thread. All threads of the block call it.
__device__ void RaiseAmax(uint32_t top, uint32_t* amax) {
  if (amax == nullptr) return;
  __shared__ uint32_t of_warp[kWarps];
  top = max(top & 0xffff, top >> 16);
  for (int lane = 16; lane > 0; lane /= 2) top = max(top, __shfl_xor_sync(0xffffffffu, top, lane));
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = top;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (uint32_t w = 1; w < kWarps; ++w) top = max(top, of_warp[w]);
  atomicMax(amax, top);
}

// The same order of additions whatever else runs: a thread's own values, its warp's tree, the warps in turn.
__device__ float BlockSum(float sum) {
  __shared__ float of_warp[kWarps];
  for (int lane = 16; lane > 0; lane /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lane);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sum;
  __syncthreads();
  float all = 0;
  for (uint32_t w = 0; w < kWarps; ++w) all += of_warp[w];
  return all;
}

__global__ void __launch_bounds__(kThreads) RmsNormKernel(uint16_t* x, const uint16_t* delta, const uint16_t* weight, float eps, uint32_t n,
                                                          uint16_t* out, uint32_t* amax) {
  const size_t row = static_cast<size_t>(blockIdx.x) * n;
  float squares = 0;
  for (uint32_t i = threadIdx.x * kEach; i < n; i += kThreads * kEach) {
    Eight e = Load(x + row + i);
    if (delta != nullptr) {
      const Eight d = Load(delta + row + i);
#pragma unroll
      for (uint32_t k = 0; k < kEach; ++k) e.v[k] = Round(e.v[k] + d.v[k]);
      Store(x + row + i, e);   // read again below, by this thread
    }
#pragma unroll
    for (uint32_t k = 0; k < kEach; ++k) squares += e.v[k] * e.v[k];
  }
  const float scale = 1.0f / sqrtf(BlockSum(squares) / static_cast<float>(n) + eps);
  uint32_t top = 0;
  for (uint32_t i = threadIdx.x * kEach; i < n; i += kThreads * kEach) {
    Eight e = Load(x + row + i);
    const Eight w = Load(weight + i);
#pragma unroll
    for (uint32_t k = 0; k < kEach; ++k) e.v[k] = Round(e.v[k] * scale) * w.v[k];
    top = Store(out + row + i, e, top);
  }
  RaiseAmax(top, amax);
}

__global__ void __launch_bounds__(kThreads) AddKernel(uint16_t* x, const uint16_t* delta, size_t vectors) {
  for (size_t i = static_cast<size_t>(blockIdx.x) * kThreads + threadIdx.x; i < vectors; i += static_cast<size_t>(gridDim.x) * kThreads) {
    Eight a = Load(x + i * kEach);
    const Eight b = Load(delta + i * kEach);
#pragma unroll
    for (uint32_t k = 0; k < kEach; ++k) a.v[k] += b.v[k];
    Store(x + i * kEach, a);
  }
}

// One thread turns eight pairs (a, b) of one head: a from its first half, b from its second.
__global__ void __launch_bounds__(kThreads) RotateKernel(uint16_t* x, size_t stride, const uint16_t* cos, const uint16_t* sin, size_t rows,
                                                         uint32_t heads, uint32_t head_dim) {
  const uint32_t half = head_dim / 2, of_head = half / kEach;
  const size_t all = rows * heads * of_head;
  for (size_t i = static_cast<size_t>(blockIdx.x) * kThreads + threadIdx.x; i < all; i += static_cast<size_t>(gridDim.x) * kThreads) {
    const size_t row = i / (heads * of_head);
    const uint32_t in_row = static_cast<uint32_t>(i % (heads * of_head)), at = in_row % of_head * kEach;
    uint16_t* head = x + row * stride + in_row / of_head * head_dim;
    const Eight a = Load(head + at), b = Load(head + half + at), c = Load(cos + row * half + at), s = Load(sin + row * half + at);
    Eight first, second;
#pragma unroll
    for (uint32_t k = 0; k < kEach; ++k) {
      first.v[k] = Round(a.v[k] * c.v[k]) - Round(b.v[k] * s.v[k]);
      second.v[k] = Round(b.v[k] * c.v[k]) + Round(a.v[k] * s.v[k]);
    }
    Store(head + at, first);
    Store(head + half + at, second);
  }
}

__device__ float Silu(float x) { return x / (1.0f + expf(-x)); }

// kSilu: `a` is gate_up's own first half, still to be activated; else it is [rows, n].
template <bool kSilu>
__global__ void __launch_bounds__(kThreads) MulUpKernel(const uint16_t* activated, const uint16_t* gate_up, size_t rows, uint32_t n, uint16_t* out,
                                                        uint32_t* amax) {
  const uint32_t of_row = n / kEach;
  uint32_t top = 0;
  for (size_t i = static_cast<size_t>(blockIdx.x) * kThreads + threadIdx.x; i < rows * of_row; i += static_cast<size_t>(gridDim.x) * kThreads) {
    const size_t row = i / of_row, at = i % of_row * kEach;
    const uint16_t* gate = gate_up + row * 2 * n + at;
    Eight e = Load(kSilu ? gate : activated + row * n + at);
    const Eight up = Load(gate + n);
#pragma unroll
    for (uint32_t k = 0; k < kEach; ++k) e.v[k] = (kSilu ? Round(Silu(e.v[k])) : e.v[k]) * up.v[k];
    top = Store(out + row * n + at, e, top);
  }
  RaiseAmax(top, amax);
}

__global__ void __launch_bounds__(kThreads) AmaxKernel(const uint4* x, size_t vectors, uint32_t* amax) {
  uint32_t top = 0;
  for (size_t i = static_cast<size_t>(blockIdx.x) * kThreads + threadIdx.x; i < vectors; i += static_cast<size_t>(gridDim.x) * kThreads) {
    const uint4 q = x[i];
    for (const uint32_t w : {q.x, q.y, q.z, q.w}) top = __vmaxu2(top, w & 0x7fff7fffu);
  }
  RaiseAmax(top, amax);
}

uint32_t Blocks(size_t threads) { return static_cast<uint32_t>(std::clamp<size_t>((threads + kThreads - 1) / kThreads, 1, kBlocksMax)); }

class TwoBuffers final : public Uploader {
 public:
  explicit TwoBuffers(int device) : device_(device) {}
  ~TwoBuffers() override {
    if (stream_ != nullptr) cudaStreamSynchronize(stream_);
    for (Half& h : halves_) {
      if (h.arrived != nullptr) cudaEventDestroy(h.arrived);
      cudaFreeHost(h.bytes);
    }
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }
  Status Open() {
    HOLDFAST_TRY(FromCuda(cudaSetDevice(device_), "choosing the device"));
    HOLDFAST_TRY(FromCuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "making a stream"));
    for (Half& h : halves_) {
      HOLDFAST_TRY(FromCuda(cudaHostAlloc(reinterpret_cast<void**>(&h.bytes), kBytes, cudaHostAllocDefault), "allocating pinned memory"));
      HOLDFAST_TRY(FromCuda(cudaEventCreateWithFlags(&h.arrived, cudaEventDisableTiming), "making an event"));
    }
    return OkStatus();
  }
  Result<std::span<uint8_t>> Buffer() override {
    now_ ^= 1;
    HOLDFAST_TRY(FromCuda(cudaEventSynchronize(halves_[now_].arrived), "copying to the device"));
    return std::span(halves_[now_].bytes, kBytes);
  }
  Status Send(void* to, size_t bytes) override {
    HOLDFAST_CHECK(bytes <= kBytes);
    HOLDFAST_TRY(FromCuda(cudaMemcpyAsync(to, halves_[now_].bytes, bytes, cudaMemcpyHostToDevice, stream_), "copying to the device"));
    return FromCuda(cudaEventRecord(halves_[now_].arrived, stream_), "copying to the device");
  }
  Status Finish() override { return FromCuda(cudaStreamSynchronize(stream_), "copying to the device"); }

 private:
  struct Half {
    uint8_t* bytes = nullptr;
    cudaEvent_t arrived = nullptr;
  };
  const int device_;
  cudaStream_t stream_ = nullptr;
  Half halves_[2];
  uint32_t now_ = 0;
};

// Memory that grows when more is asked for: pinned, or the device's.
class Grown {
 public:
  enum class Where : uint8_t { kPinned, kDevice };
  explicit Grown(Where where) : where_(where) {}
  ~Grown() { Free(); }
  Grown(const Grown&) = delete;
  Grown& operator=(const Grown&) = delete;
  Result<void*> Of(size_t bytes) {
    if (bytes <= bytes_) return at_;
    Free();
    HOLDFAST_TRY(where_ == Where::kPinned ? FromCuda(cudaHostAlloc(&at_, bytes, cudaHostAllocDefault), "allocating pinned memory")
                                          : FromCuda(cudaMalloc(&at_, bytes), "allocating memory for hidden states"));
    bytes_ = bytes;
    return at_;
  }
  void* get() const { return at_; }

 private:
  void Free() {
    where_ == Where::kPinned ? cudaFreeHost(at_) : cudaFree(at_);
    at_ = nullptr;
    bytes_ = 0;
  }
  const Where where_;
  void* at_ = nullptr;
  size_t bytes_ = 0;
};

class PinnedLane final : public CutLane {
 public:
  explicit PinnedLane(int device) : device_(device) {}
  ~PinnedLane() override {
    if (stream_ != nullptr) cudaStreamSynchronize(stream_);
    for (const cudaEvent_t event : {arrived_, computed_}) {
      if (event != nullptr) cudaEventDestroy(event);
    }
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }
  Status Open() {
    HOLDFAST_TRY(Use(device_));
    HOLDFAST_TRY(FromCuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "making a stream"));
    HOLDFAST_TRY(FromCuda(cudaEventCreateWithFlags(&arrived_, cudaEventDisableTiming), "making an event"));
    return FromCuda(cudaEventCreateWithFlags(&computed_, cudaEventDisableTiming), "making an event");
  }
  Result<void*> Send(std::span<const uint8_t> bytes) override {
    HOLDFAST_TRY(Use(device_));
    HOLDFAST_ASSIGN(void* const pinned, in_.Of(bytes.size()));
    HOLDFAST_ASSIGN(void* const to, on_device_.Of(bytes.size()));
    std::copy_n(bytes.data(), bytes.size(), static_cast<uint8_t*>(pinned));
    HOLDFAST_TRY(FromCuda(cudaMemcpyAsync(to, pinned, bytes.size(), cudaMemcpyHostToDevice, stream_), "copying a sample to the device"));
    HOLDFAST_TRY(FromCuda(cudaEventRecord(arrived_, stream_), "copying a sample to the device"));
    return to;
  }
  Status Arrive() override { return FromCuda(cudaStreamWaitEvent(cudaStreamLegacy, arrived_, 0), "copying hidden states to the device"); }
  Status Fetch(const void* hidden, size_t hidden_bytes, const void* amax, size_t amax_bytes) override {
    HOLDFAST_ASSIGN(void* const hidden_to, hidden_.Of(hidden_bytes));
    HOLDFAST_ASSIGN(void* const amax_to, amax_.Of(amax_bytes));
    HOLDFAST_TRY(FromCuda(cudaEventRecord(computed_, cudaStreamLegacy), "computing a sample"));
    HOLDFAST_TRY(FromCuda(cudaStreamWaitEvent(stream_, computed_, 0), "computing a sample"));
    HOLDFAST_TRY(FromCuda(cudaMemcpyAsync(amax_to, amax, amax_bytes, cudaMemcpyDeviceToHost, stream_), "copying maxima back"));
    if (hidden_bytes == 0) return OkStatus();
    return FromCuda(cudaMemcpyAsync(hidden_to, hidden, hidden_bytes, cudaMemcpyDeviceToHost, stream_), "copying hidden states back");
  }
  Status Take(std::span<uint8_t> hidden, std::span<uint8_t> amax) override {
    HOLDFAST_TRY(FromCuda(cudaStreamSynchronize(stream_), "computing a sample"));
    std::copy_n(static_cast<const uint8_t*>(amax_.get()), amax.size(), amax.data());
    std::copy_n(static_cast<const uint8_t*>(hidden_.get()), hidden.size(), hidden.data());
    return OkStatus();
  }

 private:
  const int device_;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t arrived_ = nullptr, computed_ = nullptr;
  Grown in_{Grown::Where::kPinned}, hidden_{Grown::Where::kPinned}, amax_{Grown::Where::kPinned}, on_device_{Grown::Where::kDevice};
};

}  // namespace

bool ShapesFit(uint64_t hidden, uint64_t intermediate, uint64_t head_dim) {
  return hidden % kEach == 0 && intermediate % kEach == 0 && head_dim % (2 * kEach) == 0;
}

int RuntimeVersion() {
  int version = 0;
  return cudaRuntimeGetVersion(&version) == cudaSuccess ? version : 0;
}
Status Use(int device) { return FromCuda(cudaSetDevice(device), "choosing the device"); }

void RmsNorm(uint16_t* x, const uint16_t* delta, const uint16_t* weight, float eps, size_t rows, size_t n, uint16_t* out, uint32_t* amax) {
  RmsNormKernel<<<static_cast<uint32_t>(rows), kThreads>>>(x, delta, weight, eps, static_cast<uint32_t>(n), out, amax);
}
void Add(uint16_t* x, const uint16_t* delta, size_t count) { AddKernel<<<Blocks(count / kEach), kThreads>>>(x, delta, count / kEach); }
void Rotate(uint16_t* x, size_t stride, const uint16_t* cos, const uint16_t* sin, size_t rows, size_t heads, size_t head_dim) {
  RotateKernel<<<Blocks(rows * heads * head_dim / 2 / kEach), kThreads>>>(x, stride, cos, sin, rows, static_cast<uint32_t>(heads),
                                                                          static_cast<uint32_t>(head_dim));
}
void SiluMul(const uint16_t* gate_up, size_t rows, size_t n, uint16_t* out, uint32_t* amax) {
  MulUpKernel<true><<<Blocks(rows * n / kEach), kThreads>>>(nullptr, gate_up, rows, static_cast<uint32_t>(n), out, amax);
}
void MulUp(const uint16_t* activated, const uint16_t* gate_up, size_t rows, size_t n, uint16_t* out, uint32_t* amax) {
  MulUpKernel<false><<<Blocks(rows * n / kEach), kThreads>>>(activated, gate_up, rows, static_cast<uint32_t>(n), out, amax);
}
void Amax(const uint16_t* x, size_t count, uint32_t* amax) {
  AmaxKernel<<<Blocks(count / kEach), kThreads>>>(reinterpret_cast<const uint4*>(x), count / kEach, amax);
}

Result<std::unique_ptr<Uploader>> Uploader::New(int device) {
  auto uploader = std::make_unique<TwoBuffers>(device);
  HOLDFAST_TRY(uploader->Open());
  return std::unique_ptr<Uploader>(std::move(uploader));
}

Result<std::unique_ptr<CutLane>> CutLane::New(int device) {
  auto lane = std::make_unique<PinnedLane>(device);
  HOLDFAST_TRY(lane->Open());
  return std::unique_ptr<CutLane>(std::move(lane));
}

}  // namespace holdfast::device
