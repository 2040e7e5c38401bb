// SPDX-License-Identifier: Apache-2.0
//
// The fast path: plain loops over 16 blocks at a time, shaped for the vectorizer and compiled once for each instruction set
// (AVX-512, AVX2, the build's baseline: SSE2 or NEON); the CPU picks at run time. No weight is divided: its code is the number of
// thresholds below it, and those are exact (nvfp4_thresholds.h). Two tricks besides:
//   rounding to a grid of step u (a power of two): bits(x + M) - bits(M) with M = 2^23 * u counts steps, ties to even;
//   |x| of a float compares like its bits as an integer, so maxima and codes need no float arithmetic.
#include "export/nvfp4/nvfp4_kernel.h"

#include <bit>
#include <cmath>
#include <cstdint>

#include "export/nvfp4/nvfp4.h"
#include "export/nvfp4/nvfp4_thresholds.h"

#define HOLDFAST_INLINE inline __attribute__((always_inline))

namespace holdfast {
namespace {

constexpr uint32_t kChunk = 64;  // blocks worked on together: loops long enough that they are not unrolled before the vectorizer sees them
constexpr uint32_t kExponent = 0x7f800000u;

// Words as they lie in a byte buffer: any alignment, any type behind them.
using Word16 __attribute__((may_alias, aligned(1))) = uint16_t;
using Word32 __attribute__((may_alias, aligned(1))) = uint32_t;

HOLDFAST_INLINE uint32_t Bits(float x) { return std::bit_cast<uint32_t>(x); }
HOLDFAST_INLINE float FromBits(uint32_t x) { return std::bit_cast<float>(x); }
HOLDFAST_INLINE int32_t Min(int32_t a, int32_t b) { return a < b ? a : b; }
HOLDFAST_INLINE int32_t Max(int32_t a, int32_t b) { return a > b ? a : b; }

// A source type. Floor: bits of its largest value that is not above a float >= 0, given by its bits.
struct Bf16 {
  using Word = uint16_t;
  using Pair = uint32_t;
  using Loose = Word16;
  static constexpr Word kAbs = 0x7fff, kInf = 0x7f80;
  static constexpr DType kType = DType::kBF16;
  static HOLDFAST_INLINE float Load(Word w) { return FromBits(static_cast<uint32_t>(w) << 16); }
  static HOLDFAST_INLINE int32_t Floor(int32_t bits) { return bits >> 16; }
};

struct F16 {
  using Word = uint16_t;
  using Pair = uint32_t;
  using Loose = Word16;
  static constexpr Word kAbs = 0x7fff, kInf = 0x7c00;
  // The exponent is rebased by a product with 2^112, which is exact and makes subnormals normal. Inf and NaN do not come here.
  static HOLDFAST_INLINE float Load(Word w) {
    const uint32_t sign = static_cast<uint32_t>(w & 0x8000) << 16;
    return FromBits(Bits(FromBits(static_cast<uint32_t>(w & 0x7fff) << 13) * 0x1p112f) | sign);
  }
  static constexpr DType kType = DType::kF16;
  static HOLDFAST_INLINE int32_t Floor(int32_t bits) {
    constexpr int32_t kNormal = (127 - 14) << 23, kBeyond = (127 + 16) << 23;
    const int32_t subnormal = static_cast<int32_t>(FromBits(static_cast<uint32_t>(Min(bits, kNormal))) * 0x1p24f);
    const int32_t normal = (Min(bits, kBeyond) - (112 << 23)) >> 13;
    return bits < kNormal ? subnormal : normal;
  }
};

struct F32 {
  using Word = uint32_t;
  using Pair = uint64_t;
  using Loose = Word32;
  static constexpr Word kAbs = 0x7fffffff, kInf = kExponent;
  static constexpr DType kType = DType::kF32;
  static HOLDFAST_INLINE float Load(Word w) { return FromBits(w); }
  static HOLDFAST_INLINE int32_t Floor(int32_t bits) { return bits; }
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

// Maxima of blocks, 16 bytes at a time whatever the machine has: each step pairs the lanes of two vectors, so that the last vector
// holds one maximum a lane, in order. Lanes are below the sign bit.
template <class Signed>
using Vector16 __attribute__((vector_size(16))) = Signed;
using Lanes8 = Vector16<int16_t>;
using Lanes4 = Vector16<int32_t>;
using Lanes2 = Vector16<int64_t>;

template <class V>
HOLDFAST_INLINE V Larger(V a, V b) {
  return a > b ? a : b;
}
template <class V>
HOLDFAST_INLINE V Pair64(V a, V b) {
  const auto x = reinterpret_cast<Lanes2>(a), y = reinterpret_cast<Lanes2>(b);
  return Larger(reinterpret_cast<V>(__builtin_shufflevector(x, y, 0, 2)),
                reinterpret_cast<V>(__builtin_shufflevector(x, y, 1, 3)));
}
template <class V>
HOLDFAST_INLINE V Pair32(V a, V b) {
  const auto x = reinterpret_cast<Lanes4>(a), y = reinterpret_cast<Lanes4>(b);
  return Larger(reinterpret_cast<V>(__builtin_shufflevector(x, y, 0, 4, 1, 5)),
                reinterpret_cast<V>(__builtin_shufflevector(x, y, 2, 6, 3, 7)));
}
HOLDFAST_INLINE Lanes8 Pair16(Lanes8 a, Lanes8 b) {
  return Larger(__builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11),
                __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15));
}

template <class V, class T>
HOLDFAST_INLINE V BlockLanes(const uint8_t* block) {
  constexpr size_t kVectors = kNvfp4Block * sizeof(typename T::Word) / sizeof(V);
  V top{};
  for (size_t i = 0; i < kVectors; ++i) {
    V v;
    std::memcpy(&v, block + i * sizeof v, sizeof v);
    top = Larger(top, v & T::kAbs);
  }
  return top;
}

template <class T>
HOLDFAST_INLINE void BlockMaxima(const uint8_t* weight, float* out) {
  constexpr size_t kLanes = 16 / sizeof(typename T::Word), kBlockBytes = kNvfp4Block * sizeof(typename T::Word);
  using V = std::conditional_t<kLanes == 8, Lanes8, Lanes4>;
  typename T::Word words[kChunk];
  for (size_t group = 0; group < kChunk; group += kLanes) {
    V v[kLanes];
    for (size_t b = 0; b < kLanes; ++b) v[b] = BlockLanes<V, T>(weight + (group + b) * kBlockBytes);
    if constexpr (kLanes == 8) {
      for (size_t b = 0; b < 4; ++b) v[b] = Pair16(v[2 * b], v[2 * b + 1]);
    }
    for (size_t b = 0; b < 2; ++b) v[b] = Pair32(v[2 * b], v[2 * b + 1]);
    const V all = Pair64(v[0], v[1]);
    std::memcpy(words + group, &all, sizeof all);
  }
  for (size_t b = 0; b < kChunk; ++b) out[b] = T::Load(words[b]);
}

// thresholds[k][block], k as in CodeThresholds: 0 for the sign, then the codes.
template <class T, class Signed>
HOLDFAST_INLINE void Thresholds(const float* divisor, Signed (*thresholds)[kChunk]) {
  for (size_t b = 0; b < kChunk; ++b) {
    const CodeThresholds t = ThresholdsOf(static_cast<int32_t>(Bits(divisor[b])), static_cast<int32_t>(divisor[b] * 0.5f));
    thresholds[0][b] = static_cast<Signed>(T::Floor(t.zero));
    for (size_t k = 0; k < 7; ++k) thresholds[k + 1][b] = static_cast<Signed>(T::Floor(t.code[k]));
  }
}

// What thresholds are good for: finite weights, divisors in their range.
HOLDFAST_INLINE bool Usual(const float* block_max, const float* divisor) {
  int32_t low = INT32_MAX, high = 0, top = 0;
  for (size_t b = 0; b < kChunk; ++b) {
    low = Min(low, static_cast<int32_t>(Bits(divisor[b])));
    high = Max(high, static_cast<int32_t>(Bits(divisor[b])));
    top = Max(top, static_cast<int32_t>(Bits(block_max[b])));
  }
  return low >= kDivisorMin && high < kDivisorEnd && top < static_cast<int32_t>(kExponent);
}

template <class T>
HOLDFAST_INLINE void QuantizeChunk(const uint8_t* weight, float scale2, uint8_t* packed, uint8_t* scales) {
  using Word = typename T::Word;
  using Signed = std::make_signed_t<Word>;
  constexpr size_t kElements = kChunk * kNvfp4Block;
  alignas(64) float block_max[kChunk], divisor[kChunk];
  alignas(64) Signed thresholds[8][kChunk];
  alignas(64) Word codes[kElements];
  alignas(64) uint8_t bytes[kChunk];
  BlockMaxima<T>(weight, block_max);
  ScaleBlocks(block_max, 6.0f * scale2, scale2, bytes, divisor);
  if (!Usual(block_max, divisor)) {
    QuantizeNvfp4Reference(T::kType, {weight, kElements * sizeof(Word)}, 1, kElements, scale2, {packed, kElements / 2}, {scales, kChunk});
    return;
  }
  std::memcpy(scales, bytes, kChunk);
  Thresholds<T>(divisor, thresholds);
  const auto* words = reinterpret_cast<const typename T::Loose*>(weight);
  for (size_t b = 0; b < kChunk; ++b) {
    for (size_t i = 0; i < kNvfp4Block; ++i) {
      const Signed w = static_cast<Signed>(words[b * kNvfp4Block + i]), a = static_cast<Signed>(w & T::kAbs);
      Signed code = 0;
      for (size_t k = 1; k < 8; ++k) code = static_cast<Signed>(code + (a > thresholds[k][b]));
      const Signed negative = static_cast<Signed>(-static_cast<Signed>((w < 0) & (a > thresholds[0][b])));
      codes[b * kNvfp4Block + i] = static_cast<Word>(code | (negative & 8));
    }
  }
  for (size_t i = 0; i < kElements / 2; ++i) {
    typename T::Pair pair;   // the even column in its low half
    std::memcpy(&pair, codes + 2 * i, sizeof pair);
    packed[i] = static_cast<uint8_t>(pair | pair >> (4 * sizeof pair - 4));
  }
}

template <class T>
HOLDFAST_INLINE void QuantizeBlocks(const uint8_t* weight, uint64_t blocks, float scale2, uint8_t* packed, uint8_t* scales) {
  constexpr size_t kBlockBytes = kNvfp4Block * sizeof(typename T::Word), kPackedBytes = kNvfp4Block / 2;
  uint64_t first = 0;
  for (; first + kChunk <= blocks; first += kChunk) {
    QuantizeChunk<T>(weight + first * kBlockBytes, scale2, packed + first * kPackedBytes, scales + first);
  }
  if (first == blocks) return;
  const size_t rest = blocks - first;
  alignas(64) uint8_t last[kChunk * kBlockBytes] = {}, last_packed[kChunk * kPackedBytes], last_scales[kChunk];
  std::memcpy(last, weight + first * kBlockBytes, rest * kBlockBytes);
  QuantizeChunk<T>(last, scale2, last_packed, last_scales);
  std::memcpy(packed + first * kPackedBytes, last_packed, rest * kPackedBytes);
  std::memcpy(scales + first, last_scales, rest);
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
