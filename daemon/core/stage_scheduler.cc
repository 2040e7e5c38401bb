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
  if (cut.size() > memory_bytes_free()) return false;
  memory_bytes_ += cut.size();
  held_.emplace(sample, Held{tokens, std::move(cut)});
  return true;
}

void StageScheduler::OnCutCommitted(uint32_t sample) {
  if (todo_.contains(sample) || in_flight_.contains(sample)) in_packs_.insert(sample);
}

void StageScheduler::OnCommitted(uint32_t sample) {
  in_flight_.erase(sample);
  todo_.erase(sample);
  in_packs_.erase(sample);
}

void StageScheduler::OnFailed(uint32_t sample) {
  if (in_flight_.erase(sample) > 0) todo_.insert(sample);
}

std::optional<StartSample> StageScheduler::Next() {
  if (in_flight_.size() >= options_.window || todo_.empty()) return std::nullopt;
  const auto start = [this](uint32_t sample, InputKind input) {
    todo_.erase(sample);
    in_flight_.insert(sample);
    return StartSample{.sample = sample, .input = input, .cut = {}, .tokens = 0};
  };
  if (options_.from_tokens) return start(*todo_.begin(), InputKind::kTokens);
  if (!held_.empty()) {  // memory first: it is what the bound is about
    auto node = held_.extract(held_.begin());
    memory_bytes_ -= node.mapped().cut.size();
    StartSample s = start(node.key(), InputKind::kMemory);
    s.tokens = node.mapped().tokens;
    s.cut = std::move(node.mapped().cut);
    return s;
  }
  const auto ready = std::find_if(in_packs_.begin(), in_packs_.end(), [this](uint32_t s) { return todo_.contains(s); });
  if (ready == in_packs_.end()) return std::nullopt;
  return start(*ready, InputKind::kPack);
}

}  // namespace holdfast
