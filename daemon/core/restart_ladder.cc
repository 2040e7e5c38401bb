// SPDX-License-Identifier: Apache-2.0
#include "daemon/core/restart_ladder.h"

namespace holdfast {

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
            ? "one sample on one thread does not fit either: free memory, shorten --seq-len (a new job), or cut the model into more "
              "stages with --stages"
            : "it died " + std::to_string(barren_) + " times in a row without committing anything: see the messages above, then run "
              "`jobctl fsck` and `jobctl resume`";
    return {false, size_, advice};
  }
  ++restarts_;
  return {true, size_, ""};
}

}  // namespace holdfast
