// SPDX-License-Identifier: Apache-2.0
//
// What to do when a worker ends: a pure decision. Out of memory makes the next one smaller, one step at a time: fewer samples in flight
// (halved), then one thread. (Layers streamed in groups will be the next rung.) A crash or a signal restarts the same size. Three
// deaths without progress in between stop the stage with advice.
#pragma once

#include <cstdint>
#include <string>

namespace holdfast {

struct WorkerSize {
  uint32_t window = 2, threads = 1;  // samples in flight; threads computing them, loading and evicting
  friend bool operator==(const WorkerSize&, const WorkerSize&) = default;
};

enum class DeathCause : uint8_t { kOutOfMemory, kSignal, kCrash };

inline constexpr uint32_t kDeathsWithoutProgressMax = 3;

class RestartLadder {
 public:
  explicit RestartLadder(WorkerSize size) : size_(size) {}
  // `progress`: the worker committed something since it was started.
  struct Decision {
    bool restart = true;
    WorkerSize size;
    std::string advice;  // when restart == false
  };
  Decision OnDeath(DeathCause cause, bool progress);
  const WorkerSize& size() const { return size_; }
  uint32_t restarts() const { return restarts_; }
  uint32_t out_of_memory() const { return out_of_memory_; }

 private:
  WorkerSize size_;
  uint32_t barren_ = 0;  // deaths in a row without progress and without a step down
  uint32_t restarts_ = 0;
  uint32_t out_of_memory_ = 0;
};

}  // namespace holdfast
