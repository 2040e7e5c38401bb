// SPDX-License-Identifier: Apache-2.0
//
// A sample that ends every worker that computes it (a kernel's bug, a length that does not fit) must not end the job's other samples with it, nor be
// tried for ever. After a death that committed nothing the next life computes what may have been in flight one at a time, each announced in the
// ledger beforehand; who was announced and is not committed is a suspect, comes last, and after kTriesMax lives is called by its name. What follows is for the owner of the
// job to say: the sample is left out (OmitRecord) or, without a budget for that, the job fails. Pure.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>

#include "daemon/core/restart_ladder.h"
#include "ledger/fold/run_state.h"

namespace holdfast {

inline constexpr uint32_t kTriesMax = 2;

struct Caution {
  uint32_t alone = 0;             // so many samples are computed one at a time first
  std::set<uint32_t> suspects;    // of those that are left to do
  bool after_death = false;       // the life before was cut short: little may be under way at first
};
// `state`: of the stage, our own claim included. `reason`: of that claim. A death for want of memory makes the worker smaller first; only when it can get
// no smaller is a sample to blame.
Caution CautionFor(const StageState& state, const std::string& reason, WorkerSize size, const std::vector<uint32_t>& todo);

// The sample to blame, when nothing is left to do but suspects and one of them was tried kTriesMax times.
std::optional<Blame> FindPoison(const StageState& state, const Caution& caution, const std::vector<uint32_t>& todo);
// The first sample of the stage with an amax that is not finite, where the recipe needs one: it would spoil every scale that it takes part in.
std::optional<Blame> FindNotFinite(const RunState& state, const StagePlan& stage);

// What the stage's worker says in the ledger before it waits for the sample to be left out.
Record BlameRecord(StageId stage, uint64_t epoch, const Blame& blame);

// How often samples were tried alone, where that tells: when there are no more suspects than could be left out, or nothing but them and one is left to
// do. Each try is a step towards the end then, for whoever counts deaths without progress; elsewhere a crash that has nothing to do with samples
// would go on for long.
uint32_t TriesThatCount(const StageState& state, const Caution& caution, size_t todo, uint32_t skips_left);

// kInvalidArgument: what is said of a sample that a stage cannot do, and that may not be left out.
Error CannotDoWithout(const RunState& state, const Blame& blame);

}  // namespace holdfast
