// SPDX-License-Identifier: Apache-2.0
//
// The fast path: one set of plain loops over 16 blocks at a time, shaped for the vectorizer and compiled once for each instruction
// set (AVX-512, AVX2, the build's baseline); the CPU picks at run time. All of them run the same IEEE operations on every
// element, so their bits are those of the reference. Two tricks replace table walks:
//   rounding to a grid of step u (a power of two): bits(x + M) - bits(M) with M = 2^23 * u counts steps, ties to even;
//   |x| of a float compares like its bits as an integer, so maxima need no float arithmetic.
#include "export/nvfp4/nvfp4_kernel.h"

#include <bit>
#include <cmath>
#include <cstdint>

#include "export/nvfp4/nvfp4.h"

#define HOLDFAST_INLINE inline __attribute__((always_inline))

namespace holdfast {
namespace {

constexpr uint32_t kChunk = 16;  // blocks worked on together
constexpr uint32_t kExponent = 0x7f800000u;

// Words as they lie in a byte buffer: any alignment, any type behind them.
using Word16 __attribute__((may_alias, aligned(1))) = uint16_t;
using Word32 __attribute__((may_alias, aligned(1))) = uint32_t;

HOLDFAST_INLINE uint32_t Bits(float x) { return std::bit_cast<uint32_t>(x); }
HOLDFAST_INLINE float FromBits(uint32_t x) { return std::bit_cast<float>(x); }

struct Bf16 {
  using Word = uint16_t;
  using Loose = Word16;
  static constexpr Word kAbs = 0x7fff, kInf = 0x7f80;
  static HOLDFAST_INLINE float Load(Word w) { return FromBits(static_cast<uint32_t>(w) << 16); }
};

struct F16 {
  using Word = uint16_t;
  using Loose = Word16;
  static constexpr Word kAbs = 0x7fff, kInf = 0x7c00;
  // The exponent is rebased by a product with 2^112, which is exact and makes subnormals normal. Inf and NaN do not come here.
  static HOLDFAST_INLINE float Load(Word w) {
    const uint32_t sign = static_cast<uint32_t>(w & 0x8000) << 16;
    return FromBits(Bits(FromBits(static_cast<uint32_t>(w & 0x7fff) << 13) * 0x1p112f) | sign);
  }
};

struct F32 {
  using Word = uint32_t;
  using Loose = Word32;
  static constexpr Word kAbs = 0x7fffffff, kInf = kExponent;
  static HOLDFAST_INLINE float Load(Word w) { return FromBits(w); }
};

template <class T>
HOLDFAST_INLINE typename T::Word AbsMax(const uint8_t* data, uint64_t n) {
  const auto* w = reinterpret_cast<const typename T::Loose*>(data);
  using Signed = std::make_signed_t<
      typename T::Word>;  // signed: every x86 has that maximum; values are below the sign bit
  Signed m = 0;
  for (uint64_t i = 0; i < n; ++i) {
    const Signed a = static_cast<Signed>(w[i] & T::kAbs);
    m = a > m ? a : m;
  }
  return static_cast<typename T::Word>(m);
}

HOLDFAST_INLINE int32_t Min(int32_t a, int32_t b) { return a < b ? a : b; }
HOLDFAST_INLINE int32_t Max(int32_t a, int32_t b) { return a > b ? a : b; }

// Non-negative floats are compared as integers throughout: the same order, NaN above everything, and loops that every
// compiler turns into vectors without -fno-trapping-math.
struct Rounded {
  int32_t steps;  // x / step, ties to even
  float value;    // steps * step
  int32_t magic;  // its exponent tells the step
};
template <int kFloorExponent, int kMantissaBits>
HOLDFAST_INLINE Rounded RoundToGrid(int32_t x) {
  const int32_t floor = Max(x, (127 + kFloorExponent) << 23);
  const int32_t magic = (floor & static_cast<int32_t>(kExponent)) + ((23 - kMantissaBits) << 23);
  const float sum = FromBits(x) + FromBits(magic);
  return {static_cast<int32_t>(Bits(sum)) - magic, sum - FromBits(magic), magic};
}

// Block maxima -> e4m3 bytes and divisors.
HOLDFAST_INLINE void ScaleBlocks(const float* block_max, float six_scales, float scale2,
                                 uint8_t* bytes, float* divisor) {
  constexpr int32_t kOne = 127 << 23, kTiny = (127 - 9) << 23, kMax = 0x43e00000;  // 1, 2^-9, 448
  for (uint32_t i = 0; i < kChunk; ++i) {
    int32_t s = static_cast<int32_t>(Bits(block_max[i] / six_scales));
    s |= kOne & -static_cast<int32_t>(s == 0);
    s = Min(Max(s, kTiny), kMax);
    const Rounded r = RoundToGrid<-6, 3>(s);
    bytes[i] = static_cast<uint8_t>(r.steps + (r.magic >> 20) - ((127 + 20 - 6) << 3));
    divisor[i] = r.value * scale2;
  }
}

HOLDFAST_INLINE int32_t Code(float x) {
  constexpr int32_t kSix = 0x40c00000;
  const int32_t bits = static_cast<int32_t>(Bits(x));
  const int32_t a = bits & 0x7fffffff;
  const Rounded r = RoundToGrid<0, 1>(Min(a, kSix));
  const int32_t code = r.steps + (r.magic >> 22) - ((127 + 22) << 1);
  const bool below_zero =
      bits < 0 && a > 0 && a <= static_cast<int32_t>(kExponent);  // neither -0 nor NaN
  return code | (below_zero ? 8 : 0);
}

template <class T>
HOLDFAST_INLINE void QuantizeBlocks(const uint8_t* weight, uint64_t blocks, float scale2,
                                    uint8_t* packed, uint8_t* scales) {
  using Word = typename T::Word;
  const float six_scales = 6.0f * scale2;
  alignas(64) Word w[kChunk * kNvfp4Block];
  alignas(64) float block_max[kChunk] = {}, divisor[kChunk], spread[kChunk * kNvfp4Block];
  alignas(64) uint8_t bytes[kChunk], codes[kChunk * kNvfp4Block];
  for (uint64_t first = 0; first < blocks; first += kChunk) {
    const uint32_t n = blocks - first < kChunk ? static_cast<uint32_t>(blocks - first) : kChunk;
    std::memcpy(w, weight + first * sizeof(w) / kChunk, n * sizeof(w) / kChunk);
    for (uint32_t b = 0; b < n; ++b) {
      block_max[b] =
          T::Load(AbsMax<T>(reinterpret_cast<const uint8_t*>(w + b * kNvfp4Block), kNvfp4Block));
    }
    ScaleBlocks(block_max, six_scales, scale2, bytes, divisor);
    std::memcpy(scales + first, bytes, n);
    // Flat loops with one divisor an element: a loop of 16 would be unrolled before the vectorizer sees it.
    for (uint32_t i = 0; i < n * kNvfp4Block; ++i) spread[i] = divisor[i / kNvfp4Block];
    for (uint32_t i = 0; i < n * kNvfp4Block; ++i)
      codes[i] = static_cast<uint8_t>(Code(T::Load(w[i]) / spread[i]));
    uint8_t* out = packed + first * kNvfp4Block / 2;
    for (uint32_t i = 0; i < n * kNvfp4Block / 2; ++i)
      out[i] = static_cast<uint8_t>(codes[2 * i] | codes[2 * i + 1] << 4);
  }
}

// Instantiates the loops above for one instruction set.
#define HOLDFAST_NVFP4_KERNEL(suffix, attribute)                                   \
  template <class T>                                                               \
  attribute void Quantize##suffix(const uint8_t* w, uint64_t blocks, float scale2, \
                                  uint8_t* packed, uint8_t* scales) {              \
    QuantizeBlocks<T>(w, blocks, scale2, packed, scales);                          \
  }                                                                                \
  template <class T>                                                               \
  attribute uint32_t AbsMax##suffix(const uint8_t* w, uint64_t n) {                \
    return AbsMax<T>(w, n);                                                        \
  }                                                                                \
  constexpr Nvfp4Kernel k##suffix = {                                              \
      #suffix,                                                                     \
      {&Quantize##suffix<Bf16>, &Quantize##suffix<F16>, &Quantize##suffix<F32>},   \
      {&AbsMax##suffix<Bf16>, &AbsMax##suffix<F16>, &AbsMax##suffix<F32>}};

HOLDFAST_NVFP4_KERNEL(scalar, )
#if defined(__x86_64__)
HOLDFAST_NVFP4_KERNEL(avx2, __attribute__((target("avx2"))))
HOLDFAST_NVFP4_KERNEL(avx512, __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq"))))
#endif

const Nvfp4Kernel& Chosen() {
  static const Nvfp4Kernel* const chosen = Nvfp4Kernels().front();
  return *chosen;
}

// Position of a dtype in the kernel tables; -1: not a type that is quantized.
int TypeIndex(DType dtype) {
  return dtype == DType::kBF16 ? 0 : dtype == DType::kF16 ? 1 : dtype == DType::kF32 ? 2 : -1;
}

template <class T>
Error NonFinite(ByteSpan data, const std::string& name) {
  const auto* w = reinterpret_cast<const typename T::Loose*>(data.data());
  uint64_t i = 0;
  while ((w[i] & T::kAbs) < T::kInf) ++i;
  const bool nan = (w[i] & T::kAbs) > T::kInf;
  return InvalidArgument(
      name + ": element " + std::to_string(i) + " is " + (nan ? "NaN" : "infinite") +
      "; a weight that is not finite cannot be quantized. Repair the source checkpoint.");
}

}  // namespace

std::vector<const Nvfp4Kernel*> Nvfp4Kernels() {
  std::vector<const Nvfp4Kernel*> kernels;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
    kernels.push_back(&kavx512);
  }
  if (__builtin_cpu_supports("avx2")) kernels.push_back(&kavx2);
#endif
  kernels.push_back(&kscalar);
  return kernels;
}

const char* Nvfp4KernelName() { return Chosen().name; }

Result<float> WeightAmax(DType dtype, ByteSpan data, const std::string& name) {
  const int type = TypeIndex(dtype);
  if (type < 0) {
    return InvalidArgument(name + ": weights of type " + DTypeName(dtype) +
                           " cannot be quantized; expected BF16, F16 or F32");
  }
  const uint32_t word = Chosen().abs_max[type](data.data(), data.size() / DTypeBytes(dtype));
  if (dtype == DType::kBF16)
    return word < Bf16::kInf ? Result<float>(Bf16::Load(static_cast<uint16_t>(word)))
                             : NonFinite<Bf16>(data, name);
  if (dtype == DType::kF16)
    return word < F16::kInf ? Result<float>(F16::Load(static_cast<uint16_t>(word)))
                            : NonFinite<F16>(data, name);
  return word < F32::kInf ? Result<float>(F32::Load(word)) : NonFinite<F32>(data, name);
}

void QuantizeNvfp4(DType dtype, ByteSpan weight, uint64_t rows, uint64_t cols, float weight_scale_2,
                   std::span<uint8_t> packed, std::span<uint8_t> weight_scale) {
  HOLDFAST_CHECK(cols % kNvfp4Block == 0 && std::isfinite(weight_scale_2) && weight_scale_2 > 0);
  HOLDFAST_CHECK(TypeIndex(dtype) >= 0 && weight.size() == rows * cols * DTypeBytes(dtype));
  HOLDFAST_CHECK(packed.size() == rows * cols / 2 &&
                 weight_scale.size() == rows * cols / kNvfp4Block);
  Chosen().quantize[TypeIndex(dtype)](weight.data(), weight_scale.size(), weight_scale_2,
                                      packed.data(), weight_scale.data());
}

}  // namespace holdfast
