// SPDX-License-Identifier: Apache-2.0
//
// Speed of one core that finds amax and quantizes to NVFP4, in GB of source weights a second, beside a memcpy of the same bytes in
// the same run. Usage: bench_pack [MiB, default 512]
#include <algorithm>
#include <bit>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>

#include "export/nvfp4/nvfp4.h"
#include "export/nvfp4/nvfp4_kernel.h"

namespace holdfast {
namespace {

constexpr int kRounds = 5;
constexpr uint64_t kCols = 4096;

double BestSeconds(const std::function<void()>& work) {
  double best = 1e9;
  for (int i = 0; i < kRounds; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    work();
    best = std::min(
        best, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  return best;
}

Bytes GaussianWeights(DType type, uint64_t bytes) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0, 0.02f);
  Bytes out(bytes);
  const uint64_t seeded = std::min<uint64_t>(bytes, 8u << 20);  // the rest repeats it
  for (uint64_t at = 0; at < seeded;) {
    const uint32_t bits = std::bit_cast<uint32_t>(normal(random));
    const uint16_t half = type == DType::kBF16
                              ? static_cast<uint16_t>(bits >> 16)
                              : static_cast<uint16_t>(0x2000 + (bits >> 16) % 0x800);
    const uint64_t n = DTypeBytes(type);
    std::memcpy(out.data() + at, n == 4 ? static_cast<const void*>(&bits) : &half, n);
    at += n;
  }
  for (uint64_t at = seeded; at < bytes; at += seeded)
    std::memcpy(out.data() + at, out.data(), std::min(seeded, bytes - at));
  return out;
}

void Measure(DType type, uint64_t bytes, double copy_seconds) {
  const Bytes weight = GaussianWeights(type, bytes);
  const uint64_t rows = bytes / DTypeBytes(type) / kCols;
  Bytes packed(rows * kCols / 2), scales(rows * kCols / 16);
  const double gb = static_cast<double>(bytes) / 1e9;
  const float scale2 = GlobalScale(*WeightAmax(type, weight, "w"));
  const double amax = BestSeconds([&] { (void)WeightAmax(type, weight, "w").ok(); });
  const double quantize = BestSeconds([&] { QuantizeNvfp4(type, weight, rows, kCols, scale2, packed, scales); });
  const double both = BestSeconds([&] {
    QuantizeNvfp4(type, weight, rows, kCols, GlobalScale(*WeightAmax(type, weight, "w")), packed, scales);
  });
  std::printf("%-4s  %-6s  amax %6.2f GB/s   quantize %5.2f GB/s, %4.1f %% of memcpy   amax + quantize %5.2f GB/s, %4.1f %% of memcpy\n", DTypeName(type),
              Nvfp4KernelName(), gb / amax, gb / quantize, 100 * copy_seconds / quantize, gb / both, 100 * copy_seconds / both);
}

void MeasureKernels(uint64_t bytes) {
  const Bytes weight = GaussianWeights(DType::kBF16, bytes);
  Bytes packed(bytes / 4), scales(bytes / 32);
  for (const Nvfp4Kernel* k : Nvfp4Kernels()) {
    const double s = BestSeconds(
        [&] { k->quantize[0](weight.data(), bytes / 32, 1e-4f, packed.data(), scales.data()); });
    std::printf("      %-6s  quantize alone %5.2f GB/s\n", k->name,
                static_cast<double>(bytes) / 1e9 / s);
  }
}

int Run(uint64_t mib) {
  const uint64_t bytes = std::max<uint64_t>(mib, 1) << 20;
  const Bytes from = GaussianWeights(DType::kBF16, bytes);
  Bytes to(bytes);
  const double copy = BestSeconds([&] { std::memcpy(to.data(), from.data(), bytes); });
  std::printf("memcpy of %llu MiB: %.2f GB/s\n", static_cast<unsigned long long>(mib),
              static_cast<double>(bytes) / 1e9 / copy);
  to = {};
  for (const DType type : {DType::kBF16, DType::kF16, DType::kF32}) Measure(type, bytes, copy);
  MeasureKernels(bytes);
  return 0;
}

}  // namespace
}  // namespace holdfast

int main(int argc, char** argv) {
  return holdfast::Run(argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 512);
}
