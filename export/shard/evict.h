// SPDX-License-Identifier: Apache-2.0
//
// Eviction: one unit leaves the worker. Reads its source tensors by pread (one at a time in memory), quantizes the sites on all
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

struct EvictOptions {
  uint32_t threads = 1;
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
