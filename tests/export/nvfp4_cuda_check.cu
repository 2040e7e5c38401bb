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
#include "tests/export/random_weights.h"

namespace holdfast {
namespace {

constexpr int kSkipped = 77;

struct DeviceBuffer {
  explicit DeviceBuffer(size_t n) { HOLDFAST_CHECK(cudaMalloc(&p, n) == cudaSuccess); }
  ~DeviceBuffer() { cudaFree(p); }
  uint8_t* p = nullptr;
};

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
    for (int round = 0; round < 60; ++round) {
      const BoundaryWeights w = WeightsAroundBoundaries(type, 1000 + round, &random);
      same &= Compare(type, 1, w.data.size() / DTypeBytes(type), w.data, w.scale2);
    }
    const Bytes many = RandomWeights(type, 1u << 24, 1, &random);
    for (const float scale2 : {0x1p-60f, 0.37f, 1e-30f, 0x1p17f}) same &= Compare(type, 4096, 4096, many, scale2);
  }
  Bytes every;
  for (uint32_t b = 0; b < 0x10000; ++b) {
    if ((b & 0x7f80) != 0x7f80) PutLe(&every, static_cast<uint16_t>(b));
  }
  for (const float scale2 : {1.0f, 0.37f, 1e-6f, 1e20f})
    same &= Compare(DType::kBF16, 1, every.size() / 2, every, scale2);
  return same;
}

// Rows in pieces, through pinned memory: the same bytes, also where the last piece is short.
bool PiecesAreEqual() {
  std::mt19937 random(10);
  auto quantizer = CudaQuantizer::New(0);
  if (!quantizer.ok()) return false;
  bool same = true;
  for (const auto& [rows, cols] : std::vector<std::pair<uint64_t, uint64_t>>{{1, 16}, {33, 4112}, {5000, 4096}, {8192, 5120}, {1000, 28672}}) {
    const Bytes data = RandomWeights(DType::kBF16, rows * cols, 0, &random);
    Bytes packed(rows * cols / 2), scales(rows * cols / 16), packed2(packed.size()), scales2(scales.size());
    DeviceBuffer w(data.size());
    cudaMemcpy(w.p, data.data(), data.size(), cudaMemcpyHostToDevice);
    const auto amax = (*quantizer)->Amax(DType::kBF16, w.p, rows * cols, "w");
    if (!amax.ok() || *amax != *WeightAmax(DType::kBF16, data, "w")) return false;
    QuantizeNvfp4(DType::kBF16, data, rows, cols, GlobalScale(*amax), packed, scales);
    same &= (*quantizer)->Quantize(DType::kBF16, w.p, rows, cols, GlobalScale(*amax), packed2, scales2).ok() && packed == packed2 && scales == scales2;
  }
  return same;
}

bool RefusesNonFinite() {
  const uint16_t host[16] = {0, 0x7f80};
  DeviceBuffer w(sizeof host);
  cudaMemcpy(w.p, host, sizeof host, cudaMemcpyHostToDevice);
  return WeightAmaxCuda(DType::kBF16, w.p, 16, "w", nullptr).code() == ErrorCode::kInvalidArgument;
}

// The best of several runs, in seconds.
template <class Work>
double BestSeconds(Work work) {
  cudaEvent_t begin, end;
  cudaEventCreate(&begin);
  cudaEventCreate(&end);
  float best = 1e9f;
  for (int i = 0; i < 20; ++i) {
    cudaEventRecord(begin);
    work();
    cudaEventRecord(end);
    cudaEventSynchronize(end);
    float ms = 0;
    cudaEventElapsedTime(&ms, begin, end);
    best = std::fmin(best, ms);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  return best / 1e3;
}

// Bytes read and written a second, over those of a copy on the device in the same run.
void PrintSpeed(DType type, uint64_t rows, uint64_t cols) {
  const uint64_t n = rows * cols, bytes = n * DTypeBytes(type);
  DeviceBuffer w(bytes), copy(bytes), p(n / 2), s(n / 16);
  std::mt19937 random(9);
  const Bytes some = RandomWeights(type, 1u << 20, 0, &random);   // repeated: the kernel does not care
  for (uint64_t at = 0; at < bytes; at += some.size())
    cudaMemcpy(w.p + at, some.data(), std::min<uint64_t>(some.size(), bytes - at), cudaMemcpyHostToDevice);
  const double copied = 2.0 * bytes / BestSeconds([&] { cudaMemcpyAsync(copy.p, w.p, bytes, cudaMemcpyDeviceToDevice); });
  const double seconds = BestSeconds([&] { (void)QuantizeNvfp4Cuda(type, w.p, rows, cols, 1e-4f, p.p, s.p, nullptr).ok(); });
  const double amax = BestSeconds([&] { (void)WeightAmaxCuda(type, w.p, n, "w", nullptr).ok(); });
  std::printf("%-4s %llu x %llu: quantize %.0f G weights/s, %.0f GB/s, %.0f %% of copy (%.0f GB/s); amax %.0f GB/s\n", DTypeName(type),
              (unsigned long long)rows, (unsigned long long)cols, n / seconds / 1e9, (bytes + n / 2 + n / 16) / seconds / 1e9,
              100 * (bytes + n / 2 + n / 16) / seconds / copied, copied / 1e9, bytes / amax / 1e9);
}

}  // namespace
}  // namespace holdfast

int main() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("no CUDA device: skipped\n");
    return holdfast::kSkipped;
  }
  const bool same = holdfast::CompareAll() && holdfast::RefusesNonFinite() && holdfast::PiecesAreEqual();
  std::printf("CUDA NVFP4 %s the reference\n", same ? "equals" : "DIFFERS FROM");
  for (const auto type : {holdfast::DType::kBF16, holdfast::DType::kF16, holdfast::DType::kF32}) {
    holdfast::PrintSpeed(type, 14336, 4096);
    holdfast::PrintSpeed(type, 28672, 12288);
  }
  return same ? 0 : 1;
}
