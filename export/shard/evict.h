// SPDX-License-Identifier: Apache-2.0
//
// Eviction: one unit leaves the worker. Reads its source tensors by pread (a set at a time in memory), quantizes the sites on all
// given threads, writes everything into packs and returns the E record to commit. No torch.
#pragma once

#include <atomic>
#include <functional>
#include <optional>
#include <vector>

#include "export/format/safetensors.h"
#include "ledger/pack/pack.h"
#include "ledger/records/records.h"

namespace holdfast {

// Weights that a worker still holds on a device, in the very values of the source. Called from several threads.
class ResidentWeights {
 public:
  virtual ~ResidentWeights() = default;
  virtual bool Holds(const std::string& tensor) const = 0;
  // As WeightAmax and QuantizeNvfp4, for a tensor that it holds; the result lies in host memory when they return.
  virtual Result<float> Amax(const std::string& tensor) = 0;
  virtual Status Quantize(const std::string& tensor, float weight_scale_2, std::span<uint8_t> packed, std::span<uint8_t> weight_scale) = 0;
};

// How tensors that stay as they are become chunks: pieces of whole elements of every type, encoded by the type.
inline constexpr uint64_t kCopyBytes = kChunkRawMax / 64 * 64;
constexpr Codec CopyCodec(DType dtype) { return dtype == DType::kBF16 ? Codec::kBf16Planes : dtype == DType::kF32 ? Codec::kF32Planes : Codec::kZstd; }

struct EvictOptions {
  uint32_t threads = 1;
  // Sites of a set that it holds whole, with digests that `expected` knows, are not read again. Null: everything is.
  ResidentWeights* resident = nullptr;
  Nonce incarnation;
  const std::atomic<bool>* stop = nullptr;                 // kStopped between tensors when it turns true
  // Digest that a source tensor must have (from J or W); absent: not known yet. A difference is kInvalidArgument "source changed",
  // naming file and tensor.
  std::function<std::optional<Digest>(const std::string& tensor)> expected;
};

// `input_amax`: one per site of the unit, joined over all samples; empty for weight-only recipes.
// Errors: NaN/Inf in a weight (kInvalidArgument, names tensor and index); NaN in input_amax (kInvalidArgument, names the site).
// A zero input amax gives input_scale 1 (reported by the caller). Codecs: U8 codes stored, e4m3 scales zstd, bf16 planes, f32 small.
Result<LayerRecord> EvictUnit(FileSystem& fs, const RunLayout& layout, const SourceModel& source, const Plan& plan,
                              const UnitPlan& unit, const std::vector<float>& input_amax, const EvictOptions& options);

}  // namespace holdfast
