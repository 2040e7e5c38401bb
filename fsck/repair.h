// SPDX-License-Identifier: Apache-2.0
//
// Repair and its undoing (ledger.md 5.1). Repair adds: VOID records under a claim of its own, tombstones over lost slots, and moves by
// rename into quarantine/<id>/, whose manifest is stable before anything is changed. It edits nothing and unlinks nothing. Killed at any
// point, the same command again goes on from what it finds, and `undo` takes back whatever was done.
// The order: copies of the slots to be buried | manifest | tombstones of the job stream, its claim | the other tombstones | per stream
// one slot with claim, VOIDs and what is said again (salvage.h) | moves | releases, the job's last.
// While the job stream is claimed by a repair that lives, nobody else begins to work on the job.
#pragma once

#include <atomic>
#include <functional>
#include <string>
#include <vector>

#include "fsck/fsck.h"
#include "ledger/base/clock.h"

namespace holdfast {

struct RepairOptions {
  FsckOptions check;                    // how thoroughly to look, before and after
  bool dry_run = false;                 // say the plan and do nothing
  // How long the tails of a job are watched when its owner is on another machine and nobody can say whether it lives.
  uint64_t watch_ms = 150'000;
  // A private file younger than this may belong to somebody who has not said anything yet.
  uint64_t orphan_age_ms = 3'600'000;
  const std::atomic<bool>* stop = nullptr;                  // ends between two steps with kFsckInterrupted
  std::function<void(const std::string& line)> on_line;     // the plan, and what was done; may be null
};

struct RepairReport {
  FsckReport before, after;             // `after` only if something was done
  std::vector<std::string> quarantines; // paths of quarantine/<id>, one per directory that was repaired
  std::vector<std::string> refusals;    // why a directory was left alone, with the next command
  std::vector<std::string> next;        // what to type where work is open again, one per directory
  bool acted = false;
  uint64_t salvaged = 0;                // records that were said again (dry run: that would be)
  int exit_status = 0;                  // bits of fsck.h
};

// Checks `dir` (a run directory, or a root with all its jobs), mends what has a remedy, and checks again.
RepairReport RunRepair(FileSystem& fs, Clock& clock, const std::string& dir, const RepairOptions& options);

// Takes back the repair `id` of `dir`, byte for byte: what was moved lies where it lay, buried slots have their old content, the slots
// that the repair appended are moved to the quarantine. Refused when somebody has worked on since, or works now.
// kFsckUsage: no such id; kFsckErrorsLeft: refused; kFsckOperational: a step failed, the same command again goes on.
struct UndoReport {
  int exit_status = 0;
  std::vector<std::string> lines;
};
UndoReport RunUndo(FileSystem& fs, Clock& clock, const std::string& dir, const std::string& id, const RepairOptions& options);

}  // namespace holdfast
