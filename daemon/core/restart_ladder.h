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

// What a worker is given where there is memory for it: a sample computed on each thread, one more waiting for each, and some that are computed
// and wait until their upstream cut and they themselves are committed, which takes the storage's time and not the thread's.
inline constexpr uint32_t kAwaitingCommit = 6;
constexpr WorkerSize PreferredSize(uint32_t threads) { return {.window = 2 * threads + kAwaitingCommit, .threads = threads}; }
// The next smaller one: fewer samples in flight (half), then one thread. One sample on one thread stays as it is.
constexpr WorkerSize StepDown(WorkerSize size) {
  if (size.window <= 1) return {.window = 1, .threads = 1};
  const uint32_t window = size.window / 2;
  return {.window = window, .threads = size.threads < window ? size.threads : window};
}

enum class DeathCause : uint8_t { kOutOfMemory, kSignal, kCrash };

inline constexpr uint32_t kDeathsWithoutProgressMax = 3;
inline constexpr const char* kReasonOutOfMemory = "out_of_memory";   // of the claim that follows such a death

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
