// SPDX-License-Identifier: Apache-2.0
#include "daemon/worker/todo.h"

#include <memory>
#include <unordered_map>

#include "ledger/pack/pack.h"

namespace holdfast {

Todo TodoOf(const RunState& state, const StagePlan& stage) {
  const std::vector<StagePlan>& stages = state.plan().stages;
  Todo todo;
  for (uint32_t sample = 0; sample < state.job().samples; ++sample) {
    if (state.Omitted(sample)) continue;
    // Backwards from the last stage: does stage k have to compute this sample?
    bool needed = false;
    for (size_t k = stages.size(); k-- > 0;) {
      const StagePlan& s = stages[k];
      const bool cut_missing = needed && state.CutBefore(sample, s.last_layer) == nullptr;
      needed = cut_missing || !state.SampleCovers(sample, s.first_layer, s.last_layer);
      if (s.stage == stage.stage) break;
    }
    if (!needed) continue;
    todo.samples.push_back(sample);
    if (stage.first_layer == 0) continue;
    if (const Cut* cut = state.CutBefore(sample, stage.first_layer)) {
      todo.cuts.emplace(sample, *cut);
    } else {
      todo.upstream_wanted.push_back(sample);
    }
  }
  return todo;
}

std::function<std::optional<Digest>(const std::string&)> KnownDigests(const RunState& state) {
  auto known = std::make_shared<std::unordered_map<std::string, Digest>>();  // shared: std::function must be copyable
  for (const auto& [unit, read] : state.source_reads()) {
    for (const auto& [name, digest] : read.tensors) known->emplace(name, digest);
  }
  return [known](const std::string& name) -> std::optional<Digest> {
    const auto it = known->find(name);
    if (it == known->end()) return std::nullopt;
    return it->second;
  };
}

Result<Bytes> ReadCut(FileSystem& fs, const RunLayout& layout, const Cut& cut) {
  const PackReader reader(fs, layout, cut.packs);
  Bytes raw(cut.tokens * cut.hidden * 2);
  size_t at = 0;
  for (uint32_t pack = 0; pack < cut.packs.size(); ++pack) {
    for (uint32_t chunk = 0; chunk < cut.packs[pack].chunks.size(); ++chunk) {
      const uint64_t len = reader.RawLen(pack, chunk);
      if (len > raw.size() - at) return Corrupt("cut is longer than its shape says");
      HOLDFAST_TRY(reader.ReadChunk(pack, chunk, std::span(raw).subspan(at, len)));
      at += len;
    }
  }
  if (at != raw.size() || Sha256(raw) != cut.digest) return Corrupt("cut does not match its digest; run `jobctl fsck --deep`");
  return raw;
}

}  // namespace holdfast
