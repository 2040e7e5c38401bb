// SPDX-License-Identifier: Apache-2.0
//
// A sample that ends every worker that computes it (a kernel's bug, a length that does not fit) must not end the job's other samples with it, nor be
// tried for ever. After a death that committed nothing the next life computes what may have been in flight one at a time, each announced in the
// ledger beforehand; who was announced and is not committed is a suspect, comes last, and after kTriesMax lives is called by its name. Pure.
#pragma once

#include <cstdint>
#include <set>
#include <string>

#include "daemon/core/restart_ladder.h"
#include "ledger/fold/run_state.h"

namespace holdfast {

inline constexpr uint32_t kTriesMax = 2;

struct Caution {
  uint32_t alone = 0;             // so many samples are computed one at a time first
  std::set<uint32_t> suspects;    // of those that are left to do
};
// `state`: of the stage, our own claim included. `reason`: of that claim. A death for want of memory makes the worker smaller first; only when it can get
// no smaller is a sample to blame.
Caution CautionFor(const StageState& state, const std::string& reason, WorkerSize size, const std::vector<uint32_t>& todo);

// kInvalidArgument naming the sample, when nothing is left to do but suspects and one of them was tried kTriesMax times.
Status CheckPoison(const StageState& state, const Caution& caution, const std::vector<uint32_t>& todo);

}  // namespace holdfast
