// SPDX-License-Identifier: Apache-2.0
#include "daemon/worker/poison.h"

#include <algorithm>

namespace holdfast {
namespace {

Error Blame(uint32_t sample, uint32_t lives) {
  return Error{ErrorCode::kInvalidArgument,
               "sample " + std::to_string(sample) + " of the calibration set (counted from 0) ended " + std::to_string(lives) +
                   " workers, each time alone; every other sample of this stage is done. Resume where it may work (more memory, other libraries), or leave it out of "
                   "the calibration file and begin a new job"};
}

}  // namespace

Caution CautionFor(const StageState& state, const std::string& reason, WorkerSize size, const std::vector<uint32_t>& todo) {
  Caution c;
  for (const uint32_t sample : todo) {
    if (state.suspicion.tries.contains(sample)) c.suspects.insert(sample);
  }
  const Suspicion::Life& before = state.suspicion.before;
  if (todo.size() == 1 && before.Died()) c.alone = 1;   // alone anyhow: it shall be known
  if (before.Barren() && (reason != kReasonOutOfMemory || size.window == 1)) c.alone = size.window;
  return c;
}

Status CheckPoison(const StageState& state, const Caution& caution, const std::vector<uint32_t>& todo) {
  const bool all = std::all_of(todo.begin(), todo.end(), [&](uint32_t s) { return caution.suspects.contains(s); });
  for (const uint32_t sample : caution.suspects) {
    const uint32_t tries = state.suspicion.tries.at(sample);
    if (all && tries >= kTriesMax) return Blame(sample, tries);
  }
  return OkStatus();
}

}  // namespace holdfast
