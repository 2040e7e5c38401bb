// SPDX-License-Identifier: Apache-2.0
//
// Prints a digest of what each vectorized kernel computes from fixed input: the same lines on every processor. Depends on the kernels
// and the standard library alone, so that a cross compiler can build it; kernel_bits_test.py compares this machine with an emulated one.
#include <cstdio>
#include <cstring>
#include <vector>

#include "calib/runner/kernels.h"
#include "export/nvfp4/nvfp4_kernel.h"
#include "tests/export/random_weights.h"

namespace holdfast {
namespace {

class Digest64 {   // FNV-1a
 public:
  void Add(const void* data, size_t n) {
    const auto* p = static_cast<const uint8_t*>(data);
    for (size_t i = 0; i < n; ++i) hash_ = (hash_ ^ p[i]) * 1099511628211ull;
  }
  template <class T>
  void Add(const std::vector<T>& v) {
    Add(v.data(), v.size() * sizeof(T));
  }
  unsigned long long value() const { return hash_; }

 private:
  uint64_t hash_ = 14695981039346656037ull;
};

// Quantizes with every kernel of this processor, each against the reference.
bool Nvfp4Bits(DType type, int index) {
  std::mt19937 random(3);
  Digest64 all;
  bool same = true;
  for (int round = 0; round < 40; ++round) {
    const uint64_t blocks = 1 + static_cast<uint64_t>(round) * 7;
    BoundaryWeights w = WeightsAroundBoundaries(type, static_cast<int>(blocks), &random);
    // Flavours 1 to 3: a normal distribution takes its logarithms from the C library of the processor.
    if (round % 2 == 0) w.data = RandomWeights(type, blocks * 16, 1 + round / 2 % 3, &random);
    Bytes packed(blocks * 8), scales(blocks), packed2(blocks * 8), scales2(blocks);
    QuantizeNvfp4Reference(type, w.data, 1, blocks * 16, w.scale2, packed, scales);
    for (const Nvfp4Kernel* kernel : Nvfp4Kernels()) {
      kernel->quantize[index](w.data.data(), blocks, w.scale2, packed2.data(), scales2.data());
      same = same && packed == packed2 && scales == scales2 &&
             kernel->abs_max[index](w.data.data(), blocks * 16) == Nvfp4Kernels().back()->abs_max[index](w.data.data(), blocks * 16);
    }
    all.Add(packed);
    all.Add(scales);
  }
  std::printf("nvfp4 %s %016llx%s\n", DTypeName(type), all.value(), same ? "" : " A KERNEL DIFFERS FROM THE REFERENCE");
  return same;
}

std::vector<uint16_t> Activations(size_t n, std::mt19937* random) {
  std::vector<uint16_t> out(n);
  for (uint16_t& h : out) {   // finite, magnitudes from 2^-20 to 2^7
    const auto r = static_cast<uint32_t>((*random)());
    h = static_cast<uint16_t>((r & 0x8000u) | ((107 + r % 27) << 7) | (r >> 20 & 0x7f));
  }
  return out;
}

void ForwardBits() {
  std::mt19937 random(4);
  const size_t rows = 5, n = 173, heads = 3, dim = 32;   // no multiples of a vector
  std::vector<uint16_t> x = Activations(rows * n, &random), delta = Activations(rows * n, &random), weight = Activations(n, &random), out(rows * n);
  Digest64 norm;
  const uint16_t amax = kernels::RmsNorm(x.data(), delta.data(), weight.data(), 1e-5f, rows, n, out.data());
  kernels::Add(x.data(), delta.data(), x.size());
  norm.Add(&amax, sizeof amax);
  norm.Add(out);
  norm.Add(x);
  std::printf("norm %016llx\n", norm.value());

  const std::vector<uint16_t> q = Activations(rows * heads * dim, &random), cos = Activations(rows * dim / 2, &random), sin = Activations(rows * dim / 2, &random);
  std::vector<uint16_t> turned(rows * dim);
  Digest64 rotate;
  for (size_t h = 0; h < heads; ++h) {
    kernels::Rotate(q.data() + h * dim, heads * dim, cos.data(), sin.data(), rows, dim, turned.data());
    rotate.Add(turned);
  }
  std::printf("rotate %016llx\n", rotate.value());

  Digest64 softmax;
  for (const size_t window : {size_t{0}, size_t{7}}) {
    std::vector<uint16_t> scores = Activations(64 * 96, &random);
    kernels::CausalSoftmax(scores.data(), {.rows = 64, .n = 96, .tokens = 32, .diagonal = 64, .window = window, .scale = 0.17f});
    softmax.Add(scores);
  }
  std::printf("softmax %016llx\n", softmax.value());

  const std::vector<uint16_t> gate_up = Activations(rows * 2 * n, &random);
  const uint16_t top = kernels::SiluMul(gate_up.data(), rows, n, out.data());
  const uint16_t seen = kernels::Amax(out.data(), out.size());
  Digest64 silu;
  silu.Add(&top, sizeof top);
  silu.Add(&seen, sizeof seen);
  silu.Add(out);
  std::printf("silu %016llx\n", silu.value());
}

}  // namespace
}  // namespace holdfast

int main() {
  using holdfast::DType;
  const bool same = holdfast::Nvfp4Bits(DType::kBF16, 0) & holdfast::Nvfp4Bits(DType::kF16, 1) & holdfast::Nvfp4Bits(DType::kF32, 2);
  holdfast::ForwardBits();
  return same ? 0 : 1;
}
