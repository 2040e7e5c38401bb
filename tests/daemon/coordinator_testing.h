// SPDX-License-Identifier: Apache-2.0
//
// A ledger that only counts, for tests of the coordinator: it commits what a coordinator proposes as the node's job driver would (a
// range that an earlier plan had keeps its stream), keeps per layer which samples are known, and gives the views back.
#pragma once

#include <algorithm>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "daemon/core/coordinator.h"

namespace holdfast::testing {

constexpr uint64_t kSecond = 1'000'000'000;
constexpr uint64_t kGb = 1'000'000'000;

class CountingLedger {
 public:
  CountingLedger(uint32_t layers, uint32_t samples, const std::vector<uint32_t>& cut, uint64_t layer_bytes = kGb)
      : layers_(layers), samples_(samples), layer_bytes_(layer_bytes), known_(layers, 0), sealed_layer_(layers, false) {
    std::vector<LayerRange> ranges;
    for (uint32_t at = 0; const uint32_t n : cut) {
      ranges.emplace_back(at, at + n);
      at += n;
    }
    SetPlan(ranges);
  }

  bool stages_given = false, reproducible = false, done = false;
  bool streams = false;            // layers need not be resident all at once
  std::vector<std::string> on;
  std::string numerics;

  // What view.memory says: layers, and a tenth of one for the activations. On a GPU with memory of its own half a layer for each and half a one besides;
  // and of its host a quarter, and half a one for each end.
  uint64_t Memory(uint32_t first, uint32_t last) const { return (last - first) * layer_bytes_ + layer_bytes_ / 10; }
  SeatMemory Needs() const {
    const auto least = [this](auto of) { return streams ? StageMemory::Function([of](uint32_t first, uint32_t) { return of(first, first + 1); }) : nullptr; };
    const auto on_cpu = [this](uint32_t first, uint32_t last) { return Memory(first, last); };
    const auto on_gpu = [this](uint32_t first, uint32_t last) { return (last - first + 1) * layer_bytes_ / 2; };
    const auto of_host = [this](uint32_t first, uint32_t last) { return layer_bytes_ / 4 + (first == 0 ? layer_bytes_ / 2 : 0) + (last == layers_ ? layer_bytes_ / 2 : 0); };
    const StageMemory cpu(on_cpu, least(on_cpu)), gpu(on_gpu, least(on_gpu), of_host);
    return SeatMemory([cpu, gpu](const NodeView& seat) { return seat.host_bytes > 0 ? gpu : cpu; });
  }

  JobView View() const {
    JobView v;
    v.layers = layers_;
    v.plan = plan_;
    for (const StagePlan& s : stages_) {
      const auto owner = owners_.find(s.stage);
      const auto tail = tails_.find(s.stage);
      v.stages.push_back({.stage = s.stage, .first_layer = s.first_layer, .last_layer = s.last_layer, .samples_done = Done(s), .samples_total = samples_,
                          .sealed = Sealed(s), .tail = tail == tails_.end() ? 0 : tail->second, .owner = owner == owners_.end() ? "" : owner->second});
    }
    v.stages_given = stages_given;
    v.on = on;
    v.reproducible = reproducible;
    v.numerics = numerics;
    v.done = done;
    v.memory = Needs();
    return v;
  }

  const Assignment& Commit(const Assign& assign) {
    if (!assign.ranges.empty()) SetPlan(assign.ranges);
    Assignment a;
    a.number = assignment_ ? assignment_->number + 1 : 0;
    a.plan = plan_;
    HOLDFAST_CHECK(assign.places.size() == stages_.size());
    for (size_t i = 0; i < stages_.size(); ++i) {
      const StagePlace& place = assign.places[i];
      if (!Sealed(stages_[i])) a.stages.push_back({stages_[i].stage, NodeOfSeat(place.node), place.note, DeviceOfSeat(place.node)});
    }
    a.merge_node = assign.merge_node;
    a.numerics = assign.numerics;
    a.why = assign.why;
    assignment_ = a;
    return *assignment_;
  }

  // What workers do.
  void Claim(StageId stage, const std::string& node) {
    owners_[stage] = node;
    ++tails_[stage];
  }
  // One more sample of the stage is known, or with all of them known it is sealed. Samples are done in order.
  void Work(const StagePlan& s) {
    ++tails_[s.stage];
    const uint64_t done = Done(s);
    for (uint32_t l = s.first_layer; l < s.last_layer; ++l) {
      if (done == samples_) sealed_layer_[l] = true;
      else known_[l] = std::max(known_[l], done + 1);
    }
  }
  void Seal(const StagePlan& s) {
    while (!Sealed(s)) Work(s);
  }
  bool CanWork(const StagePlan& s) const { return !Sealed(s) && (Done(s) == samples_ || s.first_layer == 0 || known_[s.first_layer - 1] > Done(s)); }

  const std::vector<StagePlan>& stages() const { return stages_; }
  const std::optional<Assignment>& assignment() const { return assignment_; }
  std::string NodeOf(const StagePlan& s) const { return EntryOf(s).node; }
  std::string SeatOf(size_t i) const { return SeatName(EntryOf(stages_[i]).node, EntryOf(stages_[i]).device); }
  Assignment::Entry EntryOf(const StagePlan& s) const {
    for (const auto& e : assignment_ ? assignment_->stages : std::vector<Assignment::Entry>{}) {
      if (e.stage == s.stage) return e;
    }
    return {};
  }
  std::string NodeOf(size_t i) const { return NodeOf(stages_[i]); }
  bool Sealed(const StagePlan& s) const {
    return std::all_of(sealed_layer_.begin() + s.first_layer, sealed_layer_.begin() + s.last_layer, [](bool b) { return b; });
  }
  bool AllSealed() const { return std::all_of(sealed_layer_.begin(), sealed_layer_.end(), [](bool b) { return b; }); }
  uint64_t Done(const StagePlan& s) const { return *std::min_element(known_.begin() + s.first_layer, known_.begin() + s.last_layer); }
  uint32_t layers() const { return layers_; }
  uint64_t layer_bytes() const { return layer_bytes_; }

 private:
  void SetPlan(const std::vector<LayerRange>& ranges) {
    if (!stages_.empty()) ++plan_;
    stages_.clear();
    for (const LayerRange& r : ranges) {
      const StageId id(streams_.try_emplace(r, static_cast<uint16_t>(streams_.size())).first->second);
      stages_.push_back({id, r.first, r.second});
    }
  }

  uint32_t layers_, samples_;
  uint64_t layer_bytes_;
  uint32_t plan_ = 0;
  std::map<LayerRange, uint16_t> streams_;
  std::vector<StagePlan> stages_;
  std::optional<Assignment> assignment_;
  std::map<StageId, std::string> owners_;
  std::map<StageId, uint32_t> tails_;
  std::vector<uint64_t> known_;        // per layer: samples
  std::vector<bool> sealed_layer_;
};

inline Nonce NonceOf(uint64_t value) {
  Nonce n;
  for (size_t i = 0; i < 8; ++i) n.bytes[i] = static_cast<uint8_t>(value >> 8 * i);
  return n;
}

}  // namespace holdfast::testing
