// SPDX-License-Identifier: Apache-2.0
//
// How large a worker is, and what to do when one ends: pure decisions. Out of memory makes the next one smaller, one step at a time: no cuts kept
// in memory, fewer samples in flight (halved, down to one a thread), then fewer layers resident (halved: the stage is streamed through them in
// groups), then fewer threads. A crash or a signal restarts the same size. Three deaths without progress in between stop the stage with advice.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace holdfast {

struct WorkerSize {
  uint32_t window = 2, threads = 1;  // samples in flight; threads computing them, loading and evicting
  uint32_t layers = 1;               // resident at once; all of its stage or more: nothing is streamed
  uint32_t cuts = 0;                 // of a streamed stage: hidden states of so many samples stay in the host's memory from group to group
  friend bool operator==(const WorkerSize&, const WorkerSize&) = default;
};

// What a worker is given where there is memory for it: a sample computed on each thread, one more waiting for each, and some that are computed
// and wait until their upstream cut and they themselves are committed, which takes the storage's time and not the thread's.
inline constexpr uint32_t kAwaitingCommit = 6;
constexpr WorkerSize PreferredSize(uint32_t threads, uint32_t layers, uint32_t samples) {
  return {.window = 2 * threads + kAwaitingCommit, .threads = threads, .layers = layers, .cuts = samples};
}
// The next smaller one. One sample on one thread through one layer, no cut kept, stays as it is.
WorkerSize StepDown(WorkerSize size);

// How a stage that does not fit as it would like to is made to fit. A stage that others before or behind it wait for is kept resident as long as
// one sample on one thread fits beside its layers: streamed, it lets no sample through before all have passed its other groups.
enum class Neighbours : uint8_t { kNone, kSome };
// The largest size that `fits` (monotone: whatever is smaller fits, too); the smallest there is if none does. Cuts are kept in what is left: those
// of all samples, or none, and none where nothing is streamed (`stage_layers` are resident).
WorkerSize LargestThatFits(WorkerSize preferred, uint32_t stage_layers, Neighbours neighbours, const std::function<bool(WorkerSize)>& fits);

// Layers that are loaded together, and how many such groups are resident at a time: one is computed while the next one loads, and on a GPU, which
// evicts from its own memory, a third one is evicted.
struct Grouping {
  uint32_t layers = 1, at_once = 1;
};
constexpr Grouping GroupLayers(uint32_t resident, uint32_t stage_layers, uint32_t at_once_max) {
  if (resident >= stage_layers) return {stage_layers, 1};
  const uint32_t at_once = resident < at_once_max ? resident : at_once_max;
  return at_once < 2 ? Grouping{} : Grouping{resident / at_once, at_once};
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
