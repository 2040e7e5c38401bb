// SPDX-License-Identifier: Apache-2.0
//
// gc: gives back the space of what a job no longer needs. The only part of Holdfast that deletes what others wrote, so each deletion rests on
// a fact of the ledger that nothing can take back (rule F5 of ledger.md):
//   any job            cuts behind which every stage is sealed with the sample, or without it because it is left out; packs of layers that were made
//                      before a sample was left out, and made again since
//   done               every pack. Before that the bytes of the output are compared with the merge's records, and an X record in the job
//                      stream, under a claim, says that packs may be missing from here on
//   done or cancelled  private files of the dead in tmp/, packs that no record refers to, staging directories of the output that no record
//                      refers to. Of a cancelled job under claims of the gc, so that nobody who was thought dead can still refer to them
//   on request         quarantine/ID: then that repair cannot be taken back any more
// Slots stay for ever. A gc that was killed is continued by the same line; a second one finds nothing to do.
#pragma once

#include <atomic>
#include <functional>
#include <string>
#include <vector>

#include "ledger/base/clock.h"
#include "ledger/base/file_system.h"
#include "ledger/base/json.h"

namespace holdfast {

struct GcOptions {
  bool dry_run = false;
  std::string quarantine;               // id, or "all"; "" = none
  uint32_t threads = 1;
  uint64_t watch_ms = 150'000;          // as for a repair
  uint64_t orphan_age_ms = 3'600'000;   // private files of somebody unknown are left alone until they are that old
  const std::atomic<bool>* stop = nullptr;
  std::function<void(const std::string& line)> on_line;   // what it waits for, reads or claims; may be null
};

struct GcTally {
  uint64_t files = 0, bytes = 0;
};

struct GcJob {
  std::string dir, id, name;            // id and name: of a job of a root
  std::string state;                    // "done", "cancelled", "open", "nothing here"; of a root itself "root"
  GcTally packs, cuts, orphans, staging, tmp, quarantine;   // removed, or with dry_run: that would be
  std::string kept;                     // why nothing more, with the next command; "" = nothing to say
  bool refused = false;                 // `kept` is a refusal: something is wrong, or somebody works here
  GcTally total() const;
};

struct GcReport {
  std::vector<GcJob> jobs;
  bool failed = false, stopped = false; // a file could not be removed; a signal came. The same line again goes on
  GcTally total() const;
  bool refused() const;
};

// `dir`: a run directory, or a root with all its jobs. kInvalidArgument, kNotFound: neither, or no quarantine of that id.
Result<GcReport> RunGc(FileSystem& fs, Clock& clock, const std::string& dir, const GcOptions& options);

// {"schema": 1, "dir", "dry_run", "files", "bytes", "jobs": [{"dir", "id", "name", "state", "packs": {"files", "bytes"}, ..., "kept", "refused"}]}
Json GcReportToJson(const std::string& dir, bool dry_run, const GcReport& report);
std::string GcReportToText(bool dry_run, const GcReport& report);

}  // namespace holdfast
