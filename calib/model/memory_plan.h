// SPDX-License-Identifier: Apache-2.0
//
// What a worker will need, before it starts: printed by jobctl, held by the worker, refused when --memory lies below it.
//
// An upper bound of resident memory on the CPU, kept by tests/calib/memory_plan_test.cc to within 30 % of what a forward pass really uses:
//   weights     every linear of the resident layers in the matmul's dtype, norms and (from layer 0) the embedding in bf16
//   per_sample  the buffers of one forward pass, x = tokens: bf16 [x, 4 hidden + qkv + 2 q + k + 3 intermediate], the scores of one block
//               of queries, rotary tables, the result, f32 copies for f32 matmuls, and what oneDNN packs (a copy of the larger operand)
//   per_cut     bf16 [x, hidden]; a sample in flight has two, the one it came in and the one it leaves in
//   fixed       libraries (libtorch and what it draws in: their pages count once touched), plus `eviction`: the largest tensor in the
//               source's dtype, in bf16 planes or NVFP4, and pack buffers. Loading needs less than that.
//   cuts        so many more cuts wait between the groups of a streamed stage; each thread that writes cuts into packs holds two copies of one
// On a GPU the weights, the buffers of the samples that are computed (few at a time: one keeps it busy, the others wait for the host) and what
// eviction quantizes into lie in the device's memory, which is what Total then says; cuts, packs and pinned buffers lie in the host's: Host.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string_view>

#include "calib/model/decoder.h"
#include "calib/model/numerics.h"
#include "ledger/pack/pack.h"

namespace holdfast {

enum class Processor : uint8_t { kCpu, kGpu };
// "cuda", "cuda:1", or a numerics class of one: a GPU.
constexpr Processor ProcessorOf(std::string_view device) { return device.starts_with("cuda") ? Processor::kGpu : Processor::kCpu; }

// Groups of a streamed stage that are resident at a time; see GroupLayers.
constexpr uint32_t GroupsAtOnceMax(Processor p) { return p == Processor::kGpu ? 3 : 2; }
// Samples that a GPU computes at a time, and units that are evicted from it.
inline constexpr uint32_t kGpuSamplesMax = 8, kGpuUnitsMax = 4;
constexpr uint32_t SamplesAtOnce(Processor p, uint32_t threads) { return p == Processor::kGpu ? std::min(threads, kGpuSamplesMax) : threads; }
// Threads that write cuts into packs.
constexpr uint32_t CutWriters(uint32_t threads) { return std::clamp<uint32_t>(threads / 2, 1, 8); }

// Packs that are sealed and synced while eviction fills the next one, beyond the first, and what each of them holds.
constexpr uint64_t PacksBeside(uint32_t threads) { return (PacksClosing(threads) - 1) * (uint64_t{128} << 20); }

struct MemoryPlan {
  Processor processor = Processor::kCpu;
  uint32_t layers = 0;         // of the stage
  uint32_t layers_wanted = 0;  // resident at once where there is room and nobody waits for the stage: all of them, or on a GPU enough for it to load,
                               // compute and evict at the same time
  uint64_t layer = 0;          // weights of one, as the matmuls want them
  uint64_t embedding = 0;      // 0 unless the stage begins at layer 0
  uint64_t per_sample = 0;     // activations of one sample that is computed
  uint64_t per_cut = 0;        // one hidden state waiting in a queue
  uint64_t fixed = 0;          // libraries, buffers, eviction of the largest tensor; on a GPU its context, and what kGpuUnitsMax units are quantized into
  uint64_t eviction = 0;       // the part of `fixed` that only loading and eviction touch; on a GPU: the host's, of one unit
  uint64_t host_fixed = 0;     // of a GPU's worker: libraries, buffers

  uint64_t Weights(uint32_t resident) const { return embedding + (resident < layers ? resident : layers) * layer; }
  // In the memory that it computes in, with so many layers resident and cuts kept at once.
  uint64_t Total(uint32_t threads, uint32_t window, uint32_t resident, uint32_t cuts = 0) const {
    const uint64_t host = processor == Processor::kCpu ? Cuts(threads, window, cuts) + PacksBeside(threads) : 0;
    return fixed + Weights(resident) + SamplesAtOnce(processor, threads) * per_sample + host;
  }
  // Beside that, in the host's; 0 where that is the same.
  uint64_t Host(uint32_t threads, uint32_t window, uint32_t cuts) const;
  uint64_t Cuts(uint32_t threads, uint32_t window, uint32_t cuts) const { return (2 * uint64_t{window} + 2 * CutWriters(threads) + cuts) * per_cut; }
};

// Stacked query rows and minimum tokens of a block of attention on the CPU; the score buffer hangs on them.
inline constexpr uint64_t kAttentionRows = 256, kAttentionBlockMin = 32;

// Query rows that torch operations attend with at a time: the scores of all heads stay below 4 M values.
constexpr uint64_t OpsQueryBlock(uint64_t heads, uint64_t tokens) {
  return std::clamp<uint64_t>((uint64_t{1} << 22) / (heads * tokens), 16, 1024);
}

// For layers [first, last) and sequences of at most `seq_len` tokens.
MemoryPlan PlanMemory(const DecoderSpec& spec, const Plan& plan, uint32_t first_layer, uint32_t last_layer, uint32_t seq_len, MatmulDtype matmul,
                      Processor processor = Processor::kCpu);

}  // namespace holdfast
