// SPDX-License-Identifier: Apache-2.0
#include "daemon/core/stage_scheduler.h"

#include <algorithm>

#include "ledger/base/result.h"

namespace holdfast {

StageScheduler::StageScheduler(Options options) : options_(std::move(options)) {
  HOLDFAST_CHECK(options_.window > 0);
  todo_.insert(options_.todo.begin(), options_.todo.end());
}

bool StageScheduler::OnCutReceived(uint32_t sample, uint64_t tokens, Bytes cut) {
  if (!todo_.contains(sample) || held_.contains(sample)) return false;
  if (options_.suspects.contains(sample)) return false;   // its turn is far away: it is in packs by then
  if (cut.size() > memory_bytes_free()) return false;
  memory_bytes_ += cut.size();
  held_.emplace(sample, Held{tokens, std::move(cut)});
  return true;
}

void StageScheduler::OnCutCommitted(uint32_t sample) {
  if (todo_.contains(sample) || computing_.contains(sample) || awaiting_.contains(sample)) in_packs_.insert(sample);
}

void StageScheduler::OnWritten(uint32_t sample) {
  if (auto done = computing_.extract(sample)) awaiting_.insert(std::move(done));
}

void StageScheduler::OnCommitted(uint32_t sample) {
  if (options_.alone > 0) --options_.alone;
  ++committed_;
  computing_.erase(sample);
  awaiting_.erase(sample);
  todo_.erase(sample);
  in_packs_.erase(sample);
}

void StageScheduler::OnFailed(uint32_t sample) {
  if (computing_.erase(sample) + awaiting_.erase(sample) > 0) todo_.insert(sample);
}

uint64_t StageScheduler::OnOmitted(uint32_t sample) {
  todo_.erase(sample);
  in_packs_.erase(sample);
  const auto held = held_.extract(sample);
  const uint64_t bytes = held ? held.mapped().cut.size() : 0;
  memory_bytes_ -= bytes;
  return bytes;
}

bool StageScheduler::OnlySuspectsLeft() const {
  return std::all_of(todo_.begin(), todo_.end(), [this](uint32_t s) { return options_.suspects.contains(s); });
}

std::optional<StartSample> StageScheduler::Next() {
  if (todo_.empty()) return std::nullopt;
  const bool suspects = OnlySuspectsLeft(), alone = suspects || options_.alone > 0;
  const size_t awaiting_max = committed_ < options_.awaiting_after ? 0 : options_.awaiting_max;
  if (alone ? in_flight() > 0 : computing_.size() >= options_.window || in_flight() >= options_.window + awaiting_max) return std::nullopt;
  const auto start = [&](uint32_t sample, InputKind input) {
    todo_.erase(sample);
    computing_.insert(sample);
    return StartSample{.sample = sample, .input = input, .cut = {}, .tokens = 0, .alone = alone};
  };
  const auto eligible = [&](uint32_t s) { return todo_.contains(s) && (suspects || !options_.suspects.contains(s)); };
  if (options_.from_tokens) return start(*std::find_if(todo_.begin(), todo_.end(), eligible), InputKind::kTokens);
  // Memory first: it is what the bound is about.
  if (const auto held = std::find_if(held_.begin(), held_.end(), [&](const auto& h) { return eligible(h.first); }); held != held_.end()) {
    auto node = held_.extract(held);
    memory_bytes_ -= node.mapped().cut.size();
    StartSample s = start(node.key(), InputKind::kMemory);
    s.tokens = node.mapped().tokens;
    s.cut = std::move(node.mapped().cut);
    return s;
  }
  const auto ready = std::find_if(in_packs_.begin(), in_packs_.end(), eligible);
  if (ready == in_packs_.end()) return std::nullopt;
  return start(*ready, InputKind::kPack);
}

}  // namespace holdfast
