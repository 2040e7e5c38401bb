// SPDX-License-Identifier: Apache-2.0
//
// One seed, one history: a cluster drawn by the seed, faults drawn by the seed while they last, then quiet, then the checkers.
#pragma once

#include <cstdint>
#include <string>

#include "tests/sim/faults.h"
#include "tests/sim/mutants.h"

namespace holdfast::sim {

struct RunOptions {
  uint64_t seed = 1;
  bool trace = false;
  Mutant mutant = Mutant::kNone;
  bool deep = false;             // fsck reads everything
};

struct RunResult {
  std::string wrong;             // "" or what is
  uint64_t digest = 0;           // of the whole history
  uint64_t virtual_ns = 0, events = 0, messages = 0, deaths = 0, claims = 0, acks = 0, server_crashes = 0, clones = 0, forked = 0;
  uint32_t omitted = 0;          // samples left out
  bool budget_lost = false;      // the job may fail, see BudgetLost
  bool async = false;
  FaultCounts faults;
};

RunResult RunSeed(const RunOptions& options);

}  // namespace holdfast::sim
