// SPDX-License-Identifier: Apache-2.0
//
// Compares the CUDA kernels with the CPU reference bit for bit and prints the kernel's speed. Exit 77: no GPU here (skipped).
#include <cuda_runtime.h>

#include <bit>
#include <cmath>
#include <cstdio>
#include <random>

#include "export/nvfp4/nvfp4.h"
#include "export/nvfp4/nvfp4_cuda.h"

namespace holdfast {
namespace {

constexpr int kSkipped = 77;

struct DeviceBuffer {
  explicit DeviceBuffer(size_t n) { HOLDFAST_CHECK(cudaMalloc(&p, n) == cudaSuccess); }
  ~DeviceBuffer() { cudaFree(p); }
  uint8_t* p = nullptr;
};

// flavour 0: like a model; 1: any finite bits with holes of zero; 2: on and beside the rounding boundaries; 3: subnormals.
Bytes RandomWeights(DType type, uint64_t n, int flavour, std::mt19937* random) {
  std::normal_distribution<float> normal(0, 0.02f);
  Bytes out;
  for (uint64_t i = 0; i < n; ++i) {
    uint32_t bits = (*random)();
    if (flavour == 0) bits = std::bit_cast<uint32_t>(normal(*random));
    if (flavour == 1 && bits % 3 == 0) bits = 0;
    if (flavour == 2)
      bits = std::bit_cast<uint32_t>(static_cast<float>(bits % 25) * 0.25f) + (bits >> 8) % 3;
    if (flavour == 3) bits &= 0x80ffffffu;
    if (type == DType::kF32) {
      if ((bits & 0x7f800000) == 0x7f800000) bits ^= 0x40000000;
      PutLe(&out, bits);
    } else {
      uint16_t half = static_cast<uint16_t>(bits >> 16);
      const uint16_t inf = type == DType::kBF16 ? 0x7f80 : 0x7c00;
      if ((half & inf) == inf) half ^= 0x4000;
      PutLe(&out, half);
    }
  }
  return out;
}

bool Compare(DType type, uint64_t rows, uint64_t cols, const Bytes& data, float scale2) {
  const uint64_t n = rows * cols;
  Bytes packed(n / 2), scales(n / 16), packed2(n / 2), scales2(n / 16);
  QuantizeNvfp4Reference(type, data, rows, cols, scale2, packed, scales);
  DeviceBuffer w(data.size()), p(n / 2), s(n / 16);
  cudaMemcpy(w.p, data.data(), data.size(), cudaMemcpyHostToDevice);
  const Status done = QuantizeNvfp4Cuda(type, w.p, rows, cols, scale2, p.p, s.p, nullptr);
  if (!done.ok()) std::printf("%s\n", done.error().message.c_str());
  cudaMemcpy(packed2.data(), p.p, n / 2, cudaMemcpyDeviceToHost);
  cudaMemcpy(scales2.data(), s.p, n / 16, cudaMemcpyDeviceToHost);
  const auto gpu = WeightAmaxCuda(type, w.p, n, "w", nullptr);
  const bool same = done.ok() && packed == packed2 && scales == scales2 && gpu.ok() &&
                    *gpu == *WeightAmax(type, data, "w");
  if (!same)
    std::printf("DIFFERS: %s %llux%llu scale2 %a\n", DTypeName(type), (unsigned long long)rows,
                (unsigned long long)cols, scale2);
  return same;
}

bool CompareAll() {
  std::mt19937 random(5);
  bool same = true;
  for (const DType type : {DType::kBF16, DType::kF16, DType::kF32}) {
    for (const auto& [rows, cols] : std::vector<std::pair<uint64_t, uint64_t>>{
             {1, 16}, {3, 48}, {17, 16}, {5, 240}, {64, 512}, {33, 4112}}) {
      for (int flavour = 0; flavour < 4; ++flavour) {
        const Bytes data = RandomWeights(type, rows * cols, flavour, &random);
        const float amax = *WeightAmax(type, data, "w");
        for (const float scale2 : {GlobalScale(amax), GlobalScale(std::fmin(amax * 4, 3e38f)), 1.0f,
                                   0x1p-149f, 1e-41f, 3e38f, .0123f}) {
          same &= Compare(type, rows, cols, data, scale2);
        }
      }
    }
  }
  Bytes every;
  for (uint32_t b = 0; b < 0x10000; ++b) {
    if ((b & 0x7f80) != 0x7f80) PutLe(&every, static_cast<uint16_t>(b));
  }
  for (const float scale2 : {1.0f, 0.37f, 1e-6f, 1e20f})
    same &= Compare(DType::kBF16, 1, every.size() / 2, every, scale2);
  return same;
}

bool RefusesNonFinite() {
  const uint16_t host[16] = {0, 0x7f80};
  DeviceBuffer w(sizeof host);
  cudaMemcpy(w.p, host, sizeof host, cudaMemcpyHostToDevice);
  return WeightAmaxCuda(DType::kBF16, w.p, 16, "w", nullptr).code() == ErrorCode::kInvalidArgument;
}

void PrintSpeed() {
  const uint64_t rows = 14336, cols = 4096, n = rows * cols;
  DeviceBuffer w(n * 2), p(n / 2), s(n / 16);
  cudaMemset(w.p, 0x3c, n * 2);
  cudaEvent_t begin, end;
  cudaEventCreate(&begin);
  cudaEventCreate(&end);
  float best = 1e9f;
  for (int i = 0; i < 20; ++i) {
    cudaEventRecord(begin);
    if (!QuantizeNvfp4Cuda(DType::kBF16, w.p, rows, cols, 1e-4f, p.p, s.p, nullptr).ok()) return;
    cudaEventRecord(end);
    cudaEventSynchronize(end);
    float ms = 0;
    cudaEventElapsedTime(&ms, begin, end);
    best = std::fmin(best, ms);
  }
  std::printf("14336x4096 bf16: %.3f ms, %.1f G weights/s\n", best,
              static_cast<double>(n) / best / 1e6);
}

}  // namespace
}  // namespace holdfast

int main() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("no CUDA device: skipped\n");
    return holdfast::kSkipped;
  }
  const bool same = holdfast::CompareAll() && holdfast::RefusesNonFinite();
  std::printf("CUDA NVFP4 %s the reference\n", same ? "equals" : "DIFFERS FROM");
  holdfast::PrintSpeed();
  return same ? 0 : 1;
}
