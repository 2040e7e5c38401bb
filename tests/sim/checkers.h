// SPDX-License-Identifier: Apache-2.0
//
// What must hold of every history, however it went. Each checker answers "" or what is wrong.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "tests/sim/cluster.h"

namespace holdfast::sim {

// While it runs: the file of a slot, once made, is never made again, replaced or removed.
class SlotWatch {
 public:
  explicit SlotWatch(Cluster& cluster);

 private:
  std::map<std::string, uint64_t> made_;
};

// Every stream of the log, read with none of the fold's code but the decoder of single slots: contiguous, chained, epochs rising by one,
// each record that counts written by the incarnation that claimed its epoch. Every acknowledged record is among those that count. And the
// fold agrees with that reading about what counts: nothing else, and of each key the first.
std::string CheckLog(Cluster& cluster);
// The published directory is, byte for byte, the one of a run without faults of the same job, over a calibration set that lacks what was left out. holdfast.json
// and SHA256SUMS, which say what was left out of which set, are compared only where nothing was.
std::string CheckOutput(Cluster& cluster, uint32_t* omitted);
// Innocent samples were left out (twice alone in a worker that a fault killed), and nothing is left of the budget: the job may fail.
bool BudgetLost(Cluster& cluster);
// fsck's exit status is 0.
std::string CheckFsck(Cluster& cluster, bool deep);

}  // namespace holdfast::sim
