// SPDX-License-Identifier: Apache-2.0
#include "calib/model/memory_plan.h"

#include <algorithm>
#include <string_view>

#ifndef HOLDFAST_TORCH_VERSION
#define HOLDFAST_TORCH_VERSION "unknown"
#endif

namespace holdfast {
namespace {

constexpr uint64_t kMiB = 1u << 20;
// Measured after a first matmul, with the program itself: Debian's libtorch 1.13; pip's 2.11, whose CUDA libraries count on a CPU too.
constexpr bool kTorch1 = std::string_view(HOLDFAST_TORCH_VERSION).starts_with("1.");
constexpr uint64_t kLibraries = (kTorch1 ? 190 : 380) * kMiB;
constexpr uint64_t kThread = 8 * kMiB;           // measured: allocator arena, oneDNN's generated kernels, stack
constexpr uint64_t kPackBuffers = 160 * kMiB;    // one pack of 64 MiB being built, the previous one being synced, codec buffers

// Of a GPU: what a context, cuBLAS and the kernels take of its memory, and the libraries of the host's. A group of layers is so large that what
// happens between two groups does not count, and no larger, so that the first one is there soon.
constexpr uint64_t kGpuContext = 1'200 * kMiB, kGpuLibraries = 1'200 * kMiB;
constexpr uint64_t kPinnedOfLoader = 16 * kMiB, kGpuQuantizer = 20 * kMiB;
constexpr uint64_t kGpuGroupBytes = 6'000'000'000, kGpuGroups = 8;

struct Sizes {
  uint64_t q, kv, qkv, largest_weight, layer_linears = 0, layer_biases = 0;
};
Sizes SizesOf(const DecoderSpec& s) {
  Sizes z{};
  z.q = static_cast<uint64_t>(s.heads) * s.head_dim;
  z.kv = static_cast<uint64_t>(s.kv_heads) * s.head_dim;
  z.qkv = z.q + 2 * z.kv;
  for (const LinearSpec& l : LayerLinears(s)) {
    z.layer_linears += l.rows * l.cols;
    z.layer_biases += l.bias ? l.rows : 0;
  }
  return z;
}

uint64_t LayerBytes(const DecoderSpec& s, const Sizes& z, MatmulDtype matmul) {
  const uint64_t width = matmul == MatmulDtype::kBf16 ? 2 : 4;
  return (z.layer_linears + z.layer_biases) * width + 2 * s.hidden * 2;
}

uint64_t SampleBytes(const DecoderSpec& s, const Sizes& z, uint64_t tokens, MatmulDtype matmul) {
  const uint64_t group = s.heads / s.kv_heads;
  const uint64_t block = std::min(tokens, std::max<uint64_t>(1, kAttentionRows / group / kAttentionBlockMin) * kAttentionBlockMin);
  uint64_t bytes = tokens * (4 * s.hidden + z.qkv + 2 * z.q + z.kv + 3 * s.intermediate) * 2;
  bytes += group * block * (tokens + s.head_dim) * 2;
  bytes += tokens * s.head_dim * 2 * 2;   // rotary tables
  const uint64_t in = std::max({s.hidden, z.q, s.intermediate}), out = std::max({2 * s.intermediate, s.hidden, z.qkv});
  // What a matmul packs for itself: measured as one copy of an operand, never of a whole large matrix.
  bytes += std::min<uint64_t>(in * out * 2, 8 * kMiB);
  if (!kTorch1) bytes += tokens * (in + out) * 2;   // measured: oneDNN 3 copies operands
  if (!IsPlain(s)) {   // torch operations: each result is a tensor of its own, norms and softmax in f32
    const uint64_t scores = s.heads * std::min(tokens, OpsQueryBlock(s.heads, tokens)) * tokens;
    bytes += tokens * (s.hidden * 8 + (in + out) * 2) + scores * (matmul == MatmulDtype::kF32 ? 10 : 12);
  }
  if (matmul == MatmulDtype::kF32) bytes += tokens * (in + out) * 4 + group * block * (2 * tokens + 4 * s.head_dim) * 4;
  return bytes + bytes / 10 + kThread;   // a tenth for what the allocator keeps back
}

uint64_t LargestTensor(const Plan& plan, uint32_t first, uint32_t last) {
  uint64_t largest = 0;
  for (const UnitPlan& unit : plan.units) {
    const bool ours = unit.id < plan.layers ? unit.id >= first && unit.id < last
                                            : (unit.id == plan.layers ? first == 0 : last == plan.layers);
    if (!ours) continue;
    for (const TensorPlan& t : unit.tensors) {
      uint64_t elements = 1;
      for (const uint64_t d : t.shape) elements *= d;
      largest = std::max(largest, t.bytes != 0 ? t.bytes : elements * 2);
    }
  }
  return largest;
}

}  // namespace

uint64_t MemoryPlan::Host(uint32_t threads, uint32_t window, uint32_t cuts) const {
  if (processor == Processor::kCpu) return 0;
  const uint64_t pinned = threads * kPinnedOfLoader + 2 * SamplesAtOnce(processor, threads) * per_cut;
  return host_fixed + pinned + std::min(threads, kGpuUnitsMax) * eviction + PacksBeside(threads) + Cuts(threads, window, cuts);
}

MemoryPlan PlanMemory(const DecoderSpec& spec, const Plan& plan, uint32_t first_layer, uint32_t last_layer, uint32_t seq_len,
                      MatmulDtype matmul, Processor processor) {
  const Sizes sizes = SizesOf(spec);
  const uint64_t largest = LargestTensor(plan, first_layer, last_layer);
  MemoryPlan m;
  m.processor = processor;
  m.layers = m.layers_wanted = last_layer - first_layer;
  m.layer = LayerBytes(spec, sizes, matmul);
  m.embedding = first_layer == 0 ? spec.vocab * spec.hidden * 2 : 0;
  m.per_sample = SampleBytes(spec, sizes, seq_len, matmul);
  m.per_cut = seq_len * spec.hidden * 2;
  m.eviction = 2 * largest + kPackBuffers;
  m.fixed = kLibraries + m.eviction;
  if (processor == Processor::kGpu) {
    // Two at least: the tensors of one are too few for all threads to load and to evict them.
    const uint64_t group = std::clamp<uint64_t>(kGpuGroupBytes / std::max<uint64_t>(1, m.layer), 1, std::max<uint64_t>(2, m.layers / kGpuGroups));
    m.layers_wanted = static_cast<uint32_t>(std::min<uint64_t>(m.layers, group * GroupsAtOnceMax(processor)));
    m.fixed = kGpuContext + kGpuUnitsMax * kGpuQuantizer;
    m.host_fixed = kGpuLibraries;
  }
  return m;
}

}  // namespace holdfast
