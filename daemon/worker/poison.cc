// SPDX-License-Identifier: Apache-2.0
#include "daemon/worker/poison.h"

#include <algorithm>
#include <cmath>

namespace holdfast {
namespace {

// The first site of the layers at which this sample's amax is not finite; "" = none.
std::string NotFiniteAt(const RunState& state, uint32_t sample, const StagePlan& stage) {
  const Plan& plan = state.plan();
  for (uint32_t layer = stage.first_layer; layer < stage.last_layer; ++layer) {
    const SampleRecord* r = state.Sample(sample, layer);
    if (r == nullptr) continue;
    const size_t skip = plan.SitesOf(r->first_layer, layer).size();
    const auto& sites = plan.units[layer].sites;
    for (size_t i = 0; i < sites.size() && skip + i < r->amax.size(); ++i) {
      if (!std::isfinite(r->amax[skip + i])) return sites[i].module;
    }
  }
  return "";
}

// Why no (further) sample may be left out.
std::string BudgetText(const RunState& state) {
  const uint32_t budget = state.job().skip_samples;
  if (budget == 0) return "leave it out of the calibration file and begin a new job, or begin one with `--skip-samples 1`, which leaves such a sample out";
  std::string by;
  for (const auto& [sample, omit] : state.omitted()) by += (by.empty() ? "" : ", ") + std::to_string(sample);
  if (state.omitted().size() == budget) {
    return "the budget of " + std::to_string(budget) + " skipped sample" + (budget == 1 ? "" : "s") + " is used up by sample" + (budget == 1 ? " " : "s ") + by +
           ": leave it out of the calibration file, or give more with --skip-samples, and begin a new job";
  }
  return "no sample is left out once the output was begun: leave it out of the calibration file and begin a new job";
}

}  // namespace

Caution CautionFor(const StageState& state, const std::string& reason, WorkerSize size, const std::vector<uint32_t>& todo) {
  Caution c;
  for (const uint32_t sample : todo) {
    if (state.suspicion.tries.contains(sample)) c.suspects.insert(sample);
  }
  const Suspicion::Life& before = state.suspicion.before;
  c.after_death = before.Died();
  if (todo.size() == 1 && before.Died()) c.alone = 1;   // alone anyhow: it shall be known
  if (before.Barren() && (reason != kReasonOutOfMemory || StepDown(size) == size)) c.alone = size.window;
  return c;
}

std::optional<Blame> FindPoison(const StageState& state, const Caution& caution, const std::vector<uint32_t>& todo) {
  const bool all = std::all_of(todo.begin(), todo.end(), [&](uint32_t s) { return caution.suspects.contains(s); });
  for (const uint32_t sample : caution.suspects) {
    const uint32_t tries = state.suspicion.tries.at(sample);
    if (all && tries >= kTriesMax) return Blame{sample, "ended " + std::to_string(tries) + " workers"};
  }
  return std::nullopt;
}

std::optional<Blame> FindNotFinite(const RunState& state, const StagePlan& stage) {
  if (!state.plan().input_scales) return std::nullopt;
  for (uint32_t sample = 0; sample < state.job().samples; ++sample) {
    const std::string site = state.Omitted(sample) ? "" : NotFiniteAt(state, sample, stage);
    if (!site.empty()) return Blame{sample, "not finite at " + site};
  }
  return std::nullopt;
}

Record BlameRecord(StageId stage, uint64_t epoch, const Blame& blame) {
  PhaseBegin b;
  b.phase = kPhaseBlame;
  b.window = b.threads = 1;
  b.sample = blame.sample;
  b.why = blame.why;
  return MakeControl({.cls = RecordClass::kPhase, .stage = stage.value, .a = static_cast<uint32_t>('x'), .b = static_cast<uint32_t>(epoch), .part = blame.sample}, b.ToJson());
}

uint32_t TriesThatCount(const StageState& state, const Caution& caution, size_t todo, uint32_t skips_left) {
  if (caution.suspects.size() > skips_left && todo > size_t{skips_left} + 1) return 0;
  uint32_t tries = 0;
  for (const auto& [sample, n] : state.suspicion.tries) tries += n;
  return tries;
}

Error CannotDoWithout(const RunState& state, const Blame& blame) {
  const bool ended = blame.why.starts_with("ended");
  return Error{ErrorCode::kInvalidArgument,
               "sample " + std::to_string(blame.sample) + " of the calibration set (counted from 0) " +
                   (ended ? blame.why + ", each time alone; every other sample of this stage is done. Resume where it may work (more memory, other libraries); else "
                          : "is " + blame.why + ": it overflows there, and every scale that it takes part in would be lost. ") +
                   BudgetText(state)};
}

}  // namespace holdfast
