// SPDX-License-Identifier: Apache-2.0
//
// NVFP4 quantization on the device. One thread owns one block of 16: two or four 16-byte loads, one 8-byte store of codes, one scale byte.
// What bounds it, once memory does not, are integer operations; so codes are found by comparing with exact thresholds
// (nvfp4_thresholds.h) instead of dividing, two 16-bit weights in one subtraction. Every float operation that rounds is written as its
// _rn intrinsic; the file is compiled with --fmad=false -prec-div=true -ftz=false all the same.
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>

#include "export/nvfp4/cuda_status.h"
#include "export/nvfp4/nvfp4_cuda.h"
#include "export/nvfp4/nvfp4_thresholds.h"

namespace holdfast {
namespace {

constexpr uint32_t kThreads = 256;
constexpr uint32_t kBlock = 16;

// A source type. Two 16-bit values lie in one word, the even column in its low half. Floors: the largest value of the type that is not
// above a float >= 0, given by its bits, in both halves.
template <DType kType>
struct Element;

template <>
struct Element<DType::kBF16> {
  static constexpr uint32_t kBytes = 2;
  static constexpr float kDivisorEnd = 0x1p17f;   // below it, no bf16 has a quotient that rounds to zero
  __device__ static float ToFloat(uint32_t bits) { return __uint_as_float(bits << 16); }
  __device__ static uint32_t Floors(int32_t bits) { return __byte_perm(static_cast<uint32_t>(bits), 0, 0x3232); }
};
template <>
struct Element<DType::kF16> {
  static constexpr uint32_t kBytes = 2;
  static constexpr float kDivisorEnd = 0x1p24f;
  __device__ static float ToFloat(uint32_t bits) {  // rebased exponent: exact, subnormals included
    return __uint_as_float(
        __float_as_uint(__fmul_rn(__uint_as_float((bits & 0x7fff) << 13), 0x1p112f)) |
        (bits & 0x8000) << 16);
  }
  __device__ static uint32_t Floors(int32_t bits) {   // towards zero; 65504 above the largest
    uint32_t halves;
    asm("cvt.rz.f16x2.f32 %0, %1, %1;" : "=r"(halves) : "f"(__int_as_float(bits)));
    return halves;
  }
};
template <>
struct Element<DType::kF32> {
  static constexpr uint32_t kBytes = 4;
  static constexpr float kDivisorEnd = 0x1p24f;
  __device__ static float ToFloat(uint32_t bits) { return __uint_as_float(bits); }
};

// E4M3 of s in [2^-9, 448]: the byte and its value.
__device__ uint32_t RoundScale(float s, float* value) {
  const uint32_t magic = (__float_as_uint(fmaxf(s, 0x1p-6f)) & 0x7f800000u) + (20u << 23);
  const float sum = __fadd_rn(s, __uint_as_float(magic));
  *value = __fsub_rn(sum, __uint_as_float(magic));
  return __float_as_uint(sum) - magic + (magic >> 20) - ((127 + 20 - 6) << 3);
}

// What a block with this maximum is divided by; its scale's byte.
__device__ float Divisor(float block_max, float scale2, uint32_t* byte) {
  float s = __fdiv_rn(block_max, __fmul_rn(6.0f, scale2));
  if (s == 0) s = 1.0f;
  float scale;
  *byte = RoundScale(fminf(fmaxf(s, 0x1p-9f), 448.0f), &scale);
  return __fmul_rn(scale, scale2);
}

// By division: for divisors whose thresholds are no ordinary floats.
__device__ uint32_t CodeByDivision(float w, float divisor) {
  const float x = __fdiv_rn(w, divisor), a = fabsf(x);
  const uint32_t code = !(a <= 0.25f) + !(a < 0.75f) + !(a <= 1.25f) + !(a < 1.75f) + !(a <= 2.5f) + !(a < 3.5f) + !(a <= 5.0f);
  return code | (x < 0 ? 8u : 0u);
}

// Bytes 1 and 3 of `a`, then of `b`, each as its highest bit repeated.
__device__ uint32_t HighBits(uint32_t a, uint32_t b) {
  uint32_t out;   // __byte_perm knows no repetition of signs
  asm("prmt.b32 %0, %1, %2, 0xfdb9;" : "=r"(out) : "r"(a), "r"(b));
  return out;
}

// Codes of two pairs, in the low nibbles of four bytes. In each half of at_most[k], bit 15 tells that |w| is at most threshold k. The
// thresholds rise, so the number of those that |w| exceeds has as bit 2 the fourth, as bit 1 (second and not fourth, or sixth), as bit
// 0 the parity of all.
struct PairBits {
  uint32_t sign, four, two, one;
};
__device__ PairBits BitsOfPair(uint32_t pair, const uint32_t (&thresholds)[7]) {
  const uint32_t a = pair & 0x7fff7fffu;
  uint32_t at_most[7];
#pragma unroll
  for (uint32_t k = 0; k < 7; ++k) at_most[k] = thresholds[k] - a;   // bit 15 of a threshold is set: no half borrows from the other
  const uint32_t is_zero = 0x80008000u - a;
  return {pair & ~is_zero, ~at_most[3], (~at_most[1] & at_most[3]) | ~at_most[5],
          ~(at_most[0] ^ at_most[1] ^ at_most[2] ^ at_most[3] ^ at_most[4] ^ at_most[5] ^ at_most[6])};
}
__device__ uint32_t CodesOfTwoPairs(uint32_t first, uint32_t second, const uint32_t (&thresholds)[7]) {
  const PairBits x = BitsOfPair(first, thresholds), y = BitsOfPair(second, thresholds);
  return (HighBits(x.sign, y.sign) & 0x08080808u) | (HighBits(x.four, y.four) & 0x04040404u) |
         (HighBits(x.two, y.two) & 0x02020202u) | (HighBits(x.one, y.one) & 0x01010101u);
}

template <DType kType>
__device__ uint2 CodesOfPairs(const uint32_t (&w)[8], float divisor) {
  const CodeThresholds exact = ThresholdsOf(__float_as_int(divisor), 0);
  uint32_t t[7];
#pragma unroll
  for (uint32_t k = 0; k < 7; ++k) t[k] = Element<kType>::Floors(exact.code[k]) | 0x80008000u;
  uint32_t c[4];
#pragma unroll
  for (uint32_t i = 0; i < 4; ++i) {
    c[i] = CodesOfTwoPairs(w[2 * i], w[2 * i + 1], t);
    c[i] |= c[i] >> 4;   // bytes 0 and 2 are whole
  }
  return make_uint2(__byte_perm(c[0], c[1], 0x6420), __byte_perm(c[2], c[3], 0x6420));
}

__device__ uint32_t CodeOfFloat(uint32_t w, const CodeThresholds& t) {
  const int32_t a = static_cast<int32_t>(w & 0x7fffffffu);
  const bool four = a > t.code[3];
  const bool two = a > (four ? t.code[5] : t.code[1]);
  const bool one = a > (four ? (two ? t.code[6] : t.code[4]) : (two ? t.code[2] : t.code[0]));
  return (four ? 4u : 0u) | (two ? 2u : 0u) | (one ? 1u : 0u) | (a > t.zero ? w >> 28 & 8u : 0u);
}

__device__ uint2 CodesOfFloats(const uint32_t (&w)[kBlock], float divisor) {
  const CodeThresholds t = ThresholdsOf(__float_as_int(divisor), static_cast<int32_t>(__fmul_rn(divisor, 0.5f)));
  uint32_t out[2] = {0, 0};
#pragma unroll
  for (uint32_t i = 0; i < kBlock; ++i) out[i / 8] |= CodeOfFloat(w[i], t) << (4 * (i % 8));
  return make_uint2(out[0], out[1]);
}

template <DType kType>
__device__ uint2 CodesByDivision(const uint32_t* w, float divisor) {
  constexpr bool kPairs = Element<kType>::kBytes == 2;
  uint32_t out[2] = {0, 0};
  for (uint32_t i = 0; i < kBlock; ++i) {
    const uint32_t bits = kPairs ? w[i / 2] >> (16 * (i % 2)) & 0xffffu : w[i];
    out[i / 8] |= CodeByDivision(Element<kType>::ToFloat(bits), divisor) << (4 * (i % 8));
  }
  return make_uint2(out[0], out[1]);
}

template <DType kType>
__device__ float BlockMax(const uint32_t* w) {
  if constexpr (Element<kType>::kBytes == 2) {
    uint32_t top = 0;
#pragma unroll
    for (uint32_t i = 0; i < kBlock / 2; ++i) top = __vmaxu2(top, w[i] & 0x7fff7fffu);
    return Element<kType>::ToFloat(max(top & 0xffffu, top >> 16));
  } else {
    uint32_t top = 0;
#pragma unroll
    for (uint32_t i = 0; i < kBlock; ++i) top = max(top, w[i] & 0x7fffffffu);
    return __uint_as_float(top);
  }
}

template <DType kType>
__global__ void __launch_bounds__(kThreads) QuantizeKernel(const uint4* __restrict__ weight, uint64_t blocks, float scale2,
                                                           uint2* __restrict__ packed, uint8_t* __restrict__ scales) {
  constexpr uint32_t kVectors = Element<kType>::kBytes;   // 16 elements of them in vectors of 16 bytes
  const uint64_t block = static_cast<uint64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (block >= blocks) return;
  uint32_t w[4 * kVectors];
#pragma unroll
  for (uint32_t i = 0; i < kVectors; ++i) {
    const uint4 v = __ldcs(weight + block * kVectors + i);
    w[4 * i] = v.x;
    w[4 * i + 1] = v.y;
    w[4 * i + 2] = v.z;
    w[4 * i + 3] = v.w;
  }
  uint32_t byte;
  const float divisor = Divisor(BlockMax<kType>(w), scale2, &byte);
  scales[block] = static_cast<uint8_t>(byte);
  const bool usual = divisor >= __int_as_float(kDivisorMin) && divisor < Element<kType>::kDivisorEnd;
  if (!usual) {
    packed[block] = CodesByDivision<kType>(w, divisor);
  } else if constexpr (kVectors == 2) {
    __stcs(packed + block, CodesOfPairs<kType>(w, divisor));
  } else {
    __stcs(packed + block, CodesOfFloats(w, divisor));
  }
}

// Largest |x| of the halves or the whole of four words.
template <uint32_t kBytes>
__device__ uint32_t LargestOf(uint32_t top, const uint4& v) {
  const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (uint32_t i = 0; i < 4; ++i) {
    top = kBytes == 2 ? __vmaxu2(top, words[i] & 0x7fff7fffu) : max(top, words[i] & 0x7fffffffu);
  }
  return top;
}

// Of `n` values from `weight`: 16 bytes at a time between the first and the last 16-byte boundary, the ends one by one.
template <class Word>
__global__ void __launch_bounds__(kThreads) AbsMaxKernel(const Word* __restrict__ weight, uint64_t n, uint32_t* out) {
  constexpr uint32_t kBytes = sizeof(Word), kEach = 16 / kBytes, kUnroll = 4;
  const uint64_t thread = static_cast<uint64_t>(blockIdx.x) * kThreads + threadIdx.x, stride = static_cast<uint64_t>(gridDim.x) * kThreads;
  const uint64_t head = min(n, (16 - reinterpret_cast<uintptr_t>(weight) % 16) % 16 / kBytes), vectors = (n - head) / kEach;
  const auto* body = reinterpret_cast<const uint4*>(weight + head);
  uint32_t top = 0;
  uint64_t i = thread;
  for (; i + (kUnroll - 1) * stride < vectors; i += kUnroll * stride) {
    uint4 v[kUnroll];
#pragma unroll
    for (uint32_t k = 0; k < kUnroll; ++k) v[k] = __ldg(body + i + k * stride);
#pragma unroll
    for (uint32_t k = 0; k < kUnroll; ++k) top = LargestOf<kBytes>(top, v[k]);
  }
  for (; i < vectors; i += stride) top = LargestOf<kBytes>(top, __ldg(body + i));
  if (kBytes == 2) top = max(top & 0xffffu, top >> 16);
  const uint64_t tail = head + vectors * kEach;
  for (uint64_t k = thread; k < head; k += stride) top = max(top, static_cast<uint32_t>(weight[k]) & (0x7fffffffu >> (32 - 8 * kBytes)));
  for (uint64_t k = tail + thread; k < n; k += stride) top = max(top, static_cast<uint32_t>(weight[k]) & (0x7fffffffu >> (32 - 8 * kBytes)));
  for (int lane = 16; lane > 0; lane /= 2) top = max(top, __shfl_xor_sync(0xffffffffu, top, lane));
  if (threadIdx.x % 32 == 0 && top != 0) atomicMax(out, top);
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

// With one word of device memory to work in.
Result<float> AmaxThrough(uint32_t* device, DType dtype, const void* weight, uint64_t elements, const std::string& name, cudaStream_t s) {
  if (dtype != DType::kBF16 && dtype != DType::kF16 && dtype != DType::kF32) return WrongType(dtype, name);
  uint32_t bits = 0;
  const uint32_t grid = static_cast<uint32_t>(std::clamp<uint64_t>(elements / kThreads / 64, 1, 2048));
  HOLDFAST_TRY(FromCuda(cudaMemsetAsync(device, 0, sizeof bits, s), "clearing memory"));
  if (dtype == DType::kF32) {
    AbsMaxKernel<uint32_t><<<grid, kThreads, 0, s>>>(static_cast<const uint32_t*>(weight), elements, device);
  } else {
    AbsMaxKernel<uint16_t><<<grid, kThreads, 0, s>>>(static_cast<const uint16_t*>(weight), elements, device);
  }
  HOLDFAST_TRY(FromCuda(cudaGetLastError(), "launching the amax kernel"));
  HOLDFAST_TRY(FromCuda(cudaMemcpyAsync(&bits, device, sizeof bits, cudaMemcpyDeviceToHost, s), "copying amax back"));
  HOLDFAST_TRY(FromCuda(cudaStreamSynchronize(s), "computing amax"));
  const uint32_t inf = dtype == DType::kBF16 ? 0x7f80 : dtype == DType::kF16 ? 0x7c00 : 0x7f800000;
  if (bits < inf) return HostFloat(dtype, bits);
  return InvalidArgument(name + ": holds a value that is not finite; it cannot be quantized. Repair the source checkpoint.");
}

// Two pieces in turn: while the host takes one out of pinned memory, the device makes the other.
class PiecewiseQuantizer final : public CudaQuantizer {
 public:
  explicit PiecewiseQuantizer(int device) : device_(device) {}
  ~PiecewiseQuantizer() override {
    if (stream_ != nullptr) cudaStreamSynchronize(stream_);
    for (Half& h : halves_) {
      if (h.done != nullptr) cudaEventDestroy(h.done);
      cudaFree(h.on_device);
      cudaFreeHost(h.on_host);
    }
    cudaFree(amax_);
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }
  Status Open() {
    HOLDFAST_TRY(FromCuda(cudaSetDevice(device_), "choosing the device"));
    HOLDFAST_TRY(FromCuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "making a stream"));
    HOLDFAST_TRY(FromCuda(cudaMalloc(&amax_, sizeof *amax_), "allocating 4 bytes"));
    for (Half& h : halves_) {
      HOLDFAST_TRY(FromCuda(cudaMalloc(&h.on_device, kPieceBytes), "allocating a piece"));
      HOLDFAST_TRY(FromCuda(cudaHostAlloc(&h.on_host, kPieceBytes, cudaHostAllocDefault), "allocating pinned memory"));
      HOLDFAST_TRY(FromCuda(cudaEventCreateWithFlags(&h.done, cudaEventDisableTiming), "making an event"));
    }
    return OkStatus();
  }
  Result<float> Amax(DType dtype, const void* weight, uint64_t elements, const std::string& name) override {
    HOLDFAST_TRY(FromCuda(cudaSetDevice(device_), "choosing the device"));
    return AmaxThrough(amax_, dtype, weight, elements, name, stream_);
  }
  Status Quantize(DType dtype, const void* weight, uint64_t rows, uint64_t cols, float weight_scale_2, std::span<uint8_t> packed,
                  std::span<uint8_t> weight_scale) override {
    HOLDFAST_CHECK(packed.size() == rows * cols / 2 && weight_scale.size() == rows * cols / kBlock);
    HOLDFAST_TRY(FromCuda(cudaSetDevice(device_), "choosing the device"));
    const uint64_t row_bytes = cols / 2 + cols / kBlock, step = kPieceBytes / std::max<uint64_t>(1, row_bytes);
    if (step == 0) return Unsupported("a weight of " + std::to_string(cols) + " columns is too wide to be quantized on the device");
    for (Half& h : halves_) h.codes = 0;   // of a call that failed half-way
    uint32_t turn = 0;
    for (uint64_t row = 0; row < rows; row += step, turn ^= 1) {
      HOLDFAST_TRY(Take(halves_[turn], packed, weight_scale));
      HOLDFAST_TRY(Begin(halves_[turn], dtype, weight, row, std::min(step, rows - row), cols, weight_scale_2));
    }
    HOLDFAST_TRY(Take(halves_[turn], packed, weight_scale));
    return Take(halves_[turn ^ 1], packed, weight_scale);
  }

 private:
  static constexpr size_t kPieceBytes = 10u << 20;
  struct Half {
    uint8_t* on_device = nullptr;   // codes, then scales
    uint8_t* on_host = nullptr;
    cudaEvent_t done = nullptr;
    uint64_t codes_at = 0, codes = 0, scales_at = 0, scales = 0;   // where the host wants them; 0 codes: nothing under way
  };

  Status Begin(Half& h, DType dtype, const void* weight, uint64_t row, uint64_t rows, uint64_t cols, float scale2) {
    h.codes_at = row * cols / 2;
    h.codes = rows * cols / 2;
    h.scales_at = row * cols / kBlock;
    h.scales = rows * cols / kBlock;
    const auto* from = static_cast<const uint8_t*>(weight) + row * cols * DTypeBytes(dtype);
    HOLDFAST_TRY(QuantizeNvfp4Cuda(dtype, from, rows, cols, scale2, h.on_device, h.on_device + h.codes, stream_));
    HOLDFAST_TRY(FromCuda(cudaMemcpyAsync(h.on_host, h.on_device, h.codes + h.scales, cudaMemcpyDeviceToHost, stream_), "copying codes back"));
    return FromCuda(cudaEventRecord(h.done, stream_), "copying codes back");
  }
  static Status Take(Half& h, std::span<uint8_t> packed, std::span<uint8_t> weight_scale) {
    if (h.codes == 0) return OkStatus();
    HOLDFAST_TRY(FromCuda(cudaEventSynchronize(h.done), "quantizing"));
    std::copy_n(h.on_host, h.codes, packed.data() + h.codes_at);
    std::copy_n(h.on_host + h.codes, h.scales, weight_scale.data() + h.scales_at);
    h.codes = 0;
    return OkStatus();
  }

  const int device_;
  cudaStream_t stream_ = nullptr;
  uint32_t* amax_ = nullptr;
  Half halves_[2];
};

}  // namespace

Result<std::unique_ptr<CudaQuantizer>> CudaQuantizer::New(int device) {
  auto quantizer = std::make_unique<PiecewiseQuantizer>(device);
  HOLDFAST_TRY(quantizer->Open());
  return std::unique_ptr<CudaQuantizer>(std::move(quantizer));
}

Result<float> WeightAmaxCuda(DType dtype, const void* weight, uint64_t elements,
                             const std::string& name, void* stream) {
  uint32_t* device = nullptr;
  HOLDFAST_TRY(FromCuda(cudaMalloc(&device, sizeof(uint32_t)), "allocating 4 bytes"));
  Result<float> amax = AmaxThrough(device, dtype, weight, elements, name, static_cast<cudaStream_t>(stream));
  cudaFree(device);
  return amax;
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
