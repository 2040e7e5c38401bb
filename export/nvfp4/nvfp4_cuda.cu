// SPDX-License-Identifier: Apache-2.0
//
// NVFP4 quantization on the device. One thread owns one block of 16: two or four 16-byte loads, one 8-byte store of codes and
// one scale byte, so a warp reads and writes contiguous memory and nothing is shared between threads. Every float operation
// that rounds is written as its _rn intrinsic; the file is compiled with --fmad=false -prec-div=true -ftz=false all the same.
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>

#include "export/nvfp4/nvfp4_cuda.h"

namespace holdfast {
namespace {

constexpr uint32_t kThreads = 256;
constexpr uint32_t kBlock = 16;

template <DType kType>
struct Loader;

template <>
struct Loader<DType::kBF16> {
  static constexpr uint32_t kBytes = 2, kAbs = 0x7fff;
  __device__ static float ToFloat(uint32_t bits) { return __uint_as_float(bits << 16); }
};
template <>
struct Loader<DType::kF16> {
  static constexpr uint32_t kBytes = 2, kAbs = 0x7fff;
  __device__ static float ToFloat(uint32_t bits) {  // rebased exponent: exact, subnormals included
    return __uint_as_float(
        __float_as_uint(__fmul_rn(__uint_as_float((bits & 0x7fff) << 13), 0x1p112f)) |
        (bits & 0x8000) << 16);
  }
};
template <>
struct Loader<DType::kF32> {
  static constexpr uint32_t kBytes = 4, kAbs = 0x7fffffff;
  __device__ static float ToFloat(uint32_t bits) { return __uint_as_float(bits); }
};

// Bits of the 16 elements of one block.
template <DType kType>
__device__ void LoadBlock(const uint4* from, uint32_t (&w)[kBlock]) {
  constexpr uint32_t kVectors = Loader<kType>::kBytes;  // 16 * bytes / 16
#pragma unroll
  for (uint32_t v = 0; v < kVectors; ++v) {
    const uint4 q = from[v];
    const uint32_t words[4] = {q.x, q.y, q.z, q.w};
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
      if constexpr (kVectors == 4) {
        w[4 * v + i] = words[i];
      } else {
        w[8 * v + 2 * i] = words[i] & 0xffff;
        w[8 * v + 2 * i + 1] = words[i] >> 16;
      }
    }
  }
}

// E4M3 of s in [2^-9, 448]: the byte and its value.
__device__ uint32_t RoundScale(float s, float* value) {
  const uint32_t magic = (__float_as_uint(fmaxf(s, 0x1p-6f)) & 0x7f800000u) + (20u << 23);
  const float sum = __fadd_rn(s, __uint_as_float(magic));
  *value = __fsub_rn(sum, __uint_as_float(magic));
  return __float_as_uint(sum) - magic + (magic >> 20) - ((127 + 20 - 6) << 3);
}

__device__ uint32_t Code(float x) {
  const float a = fabsf(x);
  uint32_t code = !(a <= 5.0f);  // 5 and below: the other thresholds; NaN ends at 7
  code += !(a <= 0.25f);
  code += !(a < 0.75f);
  code += !(a <= 1.25f);
  code += !(a < 1.75f);
  code += !(a <= 2.5f);
  code += !(a < 3.5f);
  return code | (x < 0 ? 8u : 0u);
}

template <DType kType>
__global__ void QuantizeKernel(const uint4* __restrict__ weight, uint64_t blocks, float scale2,
                               uint2* __restrict__ packed, uint8_t* __restrict__ scales) {
  const uint64_t block = static_cast<uint64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (block >= blocks) return;
  uint32_t w[kBlock];
  LoadBlock<kType>(weight + block * Loader<kType>::kBytes, w);
  uint32_t top = 0;
#pragma unroll
  for (uint32_t i = 0; i < kBlock; ++i) top = max(top, w[i] & Loader<kType>::kAbs);
  float s = __fdiv_rn(Loader<kType>::ToFloat(top), __fmul_rn(6.0f, scale2));
  if (s == 0) s = 1.0f;
  s = fminf(fmaxf(s, 0x1p-9f), 448.0f);
  float scale;
  scales[block] = static_cast<uint8_t>(RoundScale(s, &scale));
  const float d = __fmul_rn(scale, scale2);
  uint32_t out[2] = {0, 0};
#pragma unroll
  for (uint32_t i = 0; i < kBlock; ++i)
    out[i / 8] |= Code(__fdiv_rn(Loader<kType>::ToFloat(w[i]), d)) << (4 * (i % 8));
  packed[block] = make_uint2(out[0], out[1]);
}

template <class Word, uint32_t kAbs>
__global__ void AbsMaxKernel(const Word* __restrict__ weight, uint64_t n, uint32_t* out) {
  uint32_t top = 0;
  const uint64_t stride = static_cast<uint64_t>(gridDim.x) * kThreads;
  for (uint64_t i = static_cast<uint64_t>(blockIdx.x) * kThreads + threadIdx.x; i < n;
       i += stride) {
    top = max(top, static_cast<uint32_t>(weight[i]) & kAbs);
  }
  for (int lane = 16; lane > 0; lane /= 2) top = max(top, __shfl_xor_sync(0xffffffffu, top, lane));
  if (threadIdx.x % 32 == 0) atomicMax(out, top);
}

Status FromCuda(cudaError_t err, const char* doing) {
  if (err == cudaSuccess) return OkStatus();
  const std::string message = std::string("CUDA: ") + doing + ": " + cudaGetErrorString(err);
  return err == cudaErrorMemoryAllocation ? Exhausted(message) : Internal(message);
}

Error WrongType(DType dtype, const std::string& name) {
  return InvalidArgument(name + ": weights of type " + DTypeName(dtype) +
                         " cannot be quantized; expected BF16, F16 or F32");
}

template <DType kType>
Status Launch(const void* weight, uint64_t blocks, float scale2, uint8_t* packed, uint8_t* scales,
              cudaStream_t stream) {
  const uint64_t grid = (blocks + kThreads - 1) / kThreads;
  HOLDFAST_CHECK(grid <= 0x7fffffff);  // 2^39 blocks: no tensor is that large
  if (grid == 0) return OkStatus();
  QuantizeKernel<kType><<<static_cast<uint32_t>(grid), kThreads, 0, stream>>>(
      static_cast<const uint4*>(weight), blocks, scale2, reinterpret_cast<uint2*>(packed), scales);
  return FromCuda(cudaGetLastError(), "launching the NVFP4 kernel");
}

float HostFloat(DType dtype, uint32_t bits) {
  float f;
  if (dtype == DType::kF16) {
    const int e = static_cast<int>(bits >> 10);
    return e == 0 ? std::ldexp(static_cast<float>(bits), -24)
                  : std::ldexp(static_cast<float>(1024 + (bits & 0x3ff)), e - 25);
  }
  if (dtype == DType::kBF16) bits <<= 16;
  static_assert(sizeof f == sizeof bits);
  __builtin_memcpy(&f, &bits, sizeof f);
  return f;
}

}  // namespace

Result<float> WeightAmaxCuda(DType dtype, const void* weight, uint64_t elements,
                             const std::string& name, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  if (dtype != DType::kBF16 && dtype != DType::kF16 && dtype != DType::kF32)
    return WrongType(dtype, name);
  uint32_t* device = nullptr;
  HOLDFAST_TRY(FromCuda(cudaMalloc(&device, sizeof(uint32_t)), "allocating 4 bytes"));
  uint32_t bits = 0;
  const uint32_t grid =
      static_cast<uint32_t>(std::clamp<uint64_t>(elements / kThreads / 16, 1, 4096));
  const Status done = [&]() -> Status {
    HOLDFAST_TRY(FromCuda(cudaMemsetAsync(device, 0, sizeof bits, s), "clearing memory"));
    if (dtype == DType::kF32) {
      AbsMaxKernel<uint32_t, 0x7fffffff>
          <<<grid, kThreads, 0, s>>>(static_cast<const uint32_t*>(weight), elements, device);
    } else {
      AbsMaxKernel<uint16_t, 0x7fff>
          <<<grid, kThreads, 0, s>>>(static_cast<const uint16_t*>(weight), elements, device);
    }
    HOLDFAST_TRY(FromCuda(cudaGetLastError(), "launching the amax kernel"));
    HOLDFAST_TRY(FromCuda(cudaMemcpyAsync(&bits, device, sizeof bits, cudaMemcpyDeviceToHost, s),
                          "copying amax back"));
    return FromCuda(cudaStreamSynchronize(s), "computing amax");
  }();
  cudaFree(device);
  HOLDFAST_TRY(done);
  const uint32_t inf = dtype == DType::kBF16 ? 0x7f80 : dtype == DType::kF16 ? 0x7c00 : 0x7f800000;
  if (bits >= inf) {
    return InvalidArgument(name +
                           ": holds a value that is not finite; it cannot be quantized. Repair the "
                           "source checkpoint.");
  }
  return HostFloat(dtype, bits);
}

Status QuantizeNvfp4Cuda(DType dtype, const void* weight, uint64_t rows, uint64_t cols,
                         float weight_scale_2, uint8_t* packed, uint8_t* weight_scale,
                         void* stream) {
  HOLDFAST_CHECK(cols % kBlock == 0 && std::isfinite(weight_scale_2) && weight_scale_2 > 0);
  const auto s = static_cast<cudaStream_t>(stream);
  const uint64_t blocks = rows * cols / kBlock;
  if (dtype == DType::kBF16)
    return Launch<DType::kBF16>(weight, blocks, weight_scale_2, packed, weight_scale, s);
  if (dtype == DType::kF16)
    return Launch<DType::kF16>(weight, blocks, weight_scale_2, packed, weight_scale, s);
  if (dtype == DType::kF32)
    return Launch<DType::kF32>(weight, blocks, weight_scale_2, packed, weight_scale, s);
  return WrongType(dtype, "weight");
}

}  // namespace holdfast
