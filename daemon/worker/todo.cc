// SPDX-License-Identifier: Apache-2.0
#include "daemon/worker/todo.h"

#include <algorithm>
#include <memory>
#include <set>
#include <unordered_map>

#include "ledger/pack/pack.h"

namespace holdfast {
namespace {

constexpr uint32_t kNothing = UINT32_MAX;

using Usable = std::function<bool(const Cut&)>;
using Held = std::function<bool(uint32_t sample, uint32_t layer)>;

// The lowest layer of the stage that this sample has to pass (its last one, if only the cut behind it is wanted), or kNothing.
uint32_t LowestMissing(const RunState& state, const StagePlan& stage, uint32_t sample) {
  const std::vector<StagePlan>& stages = state.plan().stages;
  bool needed = false, cut_missing = false;
  for (size_t k = stages.size(); k-- > 0;) {   // backwards from the last stage: does stage k have to compute this sample?
    const StagePlan& s = stages[k];
    cut_missing = needed && state.CutBefore(sample, s.last_layer) == nullptr;
    needed = cut_missing || !state.SampleCovers(sample, s.first_layer, s.last_layer);
    if (s.stage == stage.stage) break;
  }
  if (!needed) return kNothing;
  for (uint32_t layer = stage.first_layer; layer < stage.last_layer; ++layer) {
    if (state.Sample(sample, layer) == nullptr) return layer;
  }
  return stage.last_layer - 1;
}

// Where this sample goes on: the last boundary at or below `lowest` whose cut is usable; else where the stage begins.
uint32_t StartOf(const RunState& state, const StagePlan& stage, uint32_t sample, uint32_t lowest, const Usable& usable, const Held& held) {
  for (uint32_t layer = lowest; layer > stage.first_layer; --layer) {
    if (held && held(sample, layer)) return layer;
    const Cut* cut = state.CutBefore(sample, layer);
    if (cut != nullptr && usable(*cut)) return layer;
  }
  return stage.first_layer;
}

// Where each sample goes on that has to.
std::map<uint32_t, uint32_t> Starts(const RunState& state, const StagePlan& stage, const Usable& usable, const Held& held = nullptr) {
  std::map<uint32_t, uint32_t> starts;
  for (uint32_t sample = 0; sample < state.job().samples; ++sample) {
    const uint32_t lowest = state.Omitted(sample) ? kNothing : LowestMissing(state, stage, sample);
    if (lowest != kNothing) starts.emplace(sample, StartOf(state, stage, sample, lowest, usable, held));
  }
  return starts;
}

}  // namespace

std::optional<Todo> NextGroup(const RunState& state, const StagePlan& stage, uint32_t layers_at_once, const Usable& usable, const Held& held) {
  const std::map<uint32_t, uint32_t> starts = Starts(state, stage, usable, held);
  if (starts.empty()) return std::nullopt;
  Todo todo;
  todo.first_layer = std::min_element(starts.begin(), starts.end(), [](const auto& a, const auto& b) { return a.second < b.second; })->second;
  todo.last_layer = std::min(stage.last_layer, todo.first_layer + layers_at_once);
  for (const auto& [sample, start] : starts) {
    if (start > todo.first_layer) {
      todo.last_layer = std::min(todo.last_layer, start);
      continue;
    }
    todo.samples.push_back(sample);
    // Done again because its cut is lost: the same layers together, so that the same is said.
    const SampleRecord* before = state.Sample(sample, start);
    if (before != nullptr && before->first_layer == start) todo.last_layer = std::min(todo.last_layer, before->last_layer);
    if (start == 0) continue;
    if (start > stage.first_layer && held && held(sample, start)) {
      todo.held.push_back(sample);
    } else if (const Cut* cut = state.CutBefore(sample, start)) {
      todo.cuts.emplace(sample, *cut);
    } else {
      todo.upstream_wanted.push_back(sample);
    }
  }
  return todo;
}

uint64_t LayersPassed(const RunState& state, const StagePlan& stage) {
  uint64_t passed = 0;
  for (uint32_t sample = 0; sample < state.job().samples; ++sample) {
    for (uint32_t layer = stage.first_layer; layer < stage.last_layer; ++layer) passed += state.Sample(sample, layer) != nullptr;
  }
  return passed;
}

bool PassedBefore(const RunState& state, const Todo& todo) {
  return std::any_of(todo.samples.begin(), todo.samples.end(), [&](uint32_t sample) { return state.SampleCovers(sample, todo.first_layer, todo.last_layer); });
}

ConsumedCuts FindConsumedCuts(const RunState& state, const StagePlan& stage, uint32_t from) {
  ConsumedCuts consumed;
  consumed.below = stage.last_layer;
  for (const auto& [sample, start] : Starts(state, stage, [](const Cut&) { return true; })) consumed.below = std::min(consumed.below, start);
  std::map<Digest, PackManifest> packs;
  std::set<Digest> kept;
  for (uint32_t sample = 0; sample < state.job().samples; ++sample) {
    for (uint32_t layer = 1; layer < state.plan().layers; ++layer) {
      const Cut* cut = state.CutBefore(sample, layer);
      if (cut == nullptr) continue;
      const bool inside = stage.first_layer < layer && layer < stage.last_layer;
      for (const PackManifest& m : cut->packs) {
        if (inside && layer < consumed.below) {
          if (layer >= from) packs.emplace(m.root, m);
        } else {
          kept.insert(m.root);
        }
      }
    }
  }
  for (const auto& [root, manifest] : packs) {
    if (!kept.contains(root)) consumed.packs.push_back(manifest);
  }
  return consumed;
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

bool CutIsThere(FileSystem& fs, const RunLayout& layout, const Cut& cut) {
  return std::all_of(cut.packs.begin(), cut.packs.end(), [&](const PackManifest& m) {
    return fs.Stat(layout.Pack(m.root)).code() != ErrorCode::kNotFound;   // any other trouble shows when it is read
  });
}

}  // namespace holdfast
