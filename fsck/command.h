// SPDX-License-Identifier: Apache-2.0
//
// The command that `jobctl fsck` and `fsck.holdfast` are: what to do with a directory, and how it is told.
#pragma once

#include <atomic>
#include <string>

#include "fsck/repair.h"

namespace holdfast {

struct FsckRequest {
  std::string dir;                      // absolute
  bool json = false;                    // one document instead of text
  bool repair = false, dry_run = false; // dry_run: the plan of a repair, and nothing else
  std::string undo;                     // id of a repair to take back; "" = none
  RepairOptions options;                // check.on_progress and on_line are set here
};

// Prints to standard output (progress to standard error, on a terminal) and returns the exit status. SIGINT and SIGTERM end a repair between
// two steps.
int RunFsckCommand(FsckRequest request);

// From now on SIGINT and SIGTERM only set what is returned.
const std::atomic<bool>* StopOnSignals();

}  // namespace holdfast
