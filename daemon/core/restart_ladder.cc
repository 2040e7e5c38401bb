// SPDX-License-Identifier: Apache-2.0
#include "daemon/core/restart_ladder.h"

#include <algorithm>
#include <utility>

namespace holdfast {

WorkerSize StepDown(WorkerSize size) {
  if (size.cuts > 0) {
    size.cuts = 0;
  } else if (size.window > size.threads) {
    size.window = std::max(size.threads, size.window / 2);
  } else if (size.layers > 1) {
    size.layers /= 2;
  } else if (size.threads > 1) {
    size.threads /= 2;
    size.window = size.threads;
  } else {
    size.window = 1;
  }
  return size;
}

namespace {

WorkerSize LargestWithoutCuts(WorkerSize preferred, Neighbours neighbours, const std::function<bool(WorkerSize)>& fits) {
  WorkerSize size = preferred;
  while (!fits(size) && size.window > size.threads) size.window = std::max(size.threads, size.window / 2);
  if (fits(size)) return size;
  const auto fewer_threads = [](WorkerSize s) {
    s.window = s.threads = s.threads / 2;
    return s;
  };
  if (neighbours == Neighbours::kSome) {
    WorkerSize resident = size;
    while (!fits(resident) && resident.threads > 1) resident = fewer_threads(resident);
    if (fits(resident)) return resident;
  }
  size.layers = 1;
  while (!fits(size) && size.threads > 1) size = fewer_threads(size);
  const auto with = [&size](uint32_t layers) {
    WorkerSize s = size;
    s.layers = layers;
    return s;
  };
  for (uint32_t step = preferred.layers; step > 0; step /= 2) {   // as many layers as there is room for
    while (size.layers + step < preferred.layers && fits(with(size.layers + step))) size.layers += step;
  }
  return size;
}

}  // namespace

WorkerSize LargestThatFits(WorkerSize preferred, uint32_t stage_layers, Neighbours neighbours, const std::function<bool(WorkerSize)>& fits) {
  const uint32_t cuts = std::exchange(preferred.cuts, 0);
  WorkerSize size = LargestWithoutCuts(preferred, neighbours, fits);
  if (size.layers >= stage_layers) return size;
  size.cuts = cuts;
  if (!fits(size)) size.cuts = 0;
  return size;
}

RestartLadder::Decision RestartLadder::OnDeath(DeathCause cause, bool progress) {
  if (progress) barren_ = 0;
  if (cause == DeathCause::kOutOfMemory) {
    ++out_of_memory_;
    const WorkerSize before = size_;
    size_ = StepDown(size_);
    if (size_ != before) {  // a smaller worker deserves its own tries
      barren_ = 0;
      ++restarts_;
      return {true, size_, ""};
    }
  }
  if (!progress && ++barren_ >= kDeathsWithoutProgressMax) {
    const std::string advice =
        cause == DeathCause::kOutOfMemory
            ? "one sample on one thread, one layer at a time, does not fit either: free memory, or shorten --seq-len (a new job)"
            : "it died " + std::to_string(barren_) + " times in a row without committing anything: see the messages above, then run "
              "`jobctl fsck` and `jobctl resume`";
    return {false, size_, advice};
  }
  ++restarts_;
  return {true, size_, ""};
}

}  // namespace holdfast
