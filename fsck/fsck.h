// SPDX-License-Identifier: Apache-2.0
//
// fsck: holds a run directory, or a root with all its jobs, against its invariants, one code each (docs/fsck.md). Changes nothing. It reads every slot itself and goes
// on behind damage, because a reader that stops at the first bad slot - as the fold rightly does - cannot say what else is wrong.
// No byte reaches LMDB before its digest is checked. May run beside a working job: streams are read downstream first, so that
// whatever a record refers to is there by the time it is looked for.
#pragma once

#include <atomic>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "fsck/remedy.h"
#include "fsck/repair_plan.h"
#include "ledger/base/clock.h"
#include "ledger/base/file_system.h"
#include "ledger/base/json.h"

namespace holdfast {

enum class FsckSeverity : uint8_t { kError, kWarning, kInfo };

struct FsckFinding {
  std::string code;     // "F012"
  FsckSeverity severity = FsckSeverity::kError;
  std::string object;   // file, record or tensor
  std::string message;  // what is wrong
  std::string advice;   // what to type, or what to know; may be empty for kInfo
  Remedies remedies;    // what `--repair` does about it
  bool planned = false; // they stand in the plan of the job already
};

// Exit status of fsck: the sum of these bits. 0 = clean (infos and warnings allowed).
inline constexpr int kFsckCorrected = 1;     // repair: something was wrong and is not any more
inline constexpr int kFsckReopened = 2;      // repair: work of the job is open again, `jobctl resume` does it
inline constexpr int kFsckErrorsLeft = 4;    // at least one error
inline constexpr int kFsckOperational = 8;   // something could not be read, so the answer is incomplete
inline constexpr int kFsckUsage = 16;        // bad command line
inline constexpr int kFsckInterrupted = 32;  // stopped by a signal: a repair between two steps, a deep check while it read
inline constexpr int kFsckDataLost = 64;     // committed data is gone: a slot is missing, damaged or out of its chain

struct FsckOptions {
  bool deep = false;            // also read every pack, every source file and every output file
  bool salvage = false;         // of slots that fail as a whole, take the records for said that hold by their own checksums
  uint32_t threads = 1;
  uint32_t reproduce = 0;       // evict this many layers once more and compare (F062)
  std::string scratch = "/tmp"; // where: room for one layer
  uint64_t rate = 0;            // deep: bytes read a second, over all threads; 0: as fast as it goes
  const std::atomic<bool>* stop = nullptr;   // deep: ends the reading with kFsckInterrupted
  Clock* clock = nullptr;       // for `rate` and `cache_dir`; null: neither
  std::string cache_dir = {};   // deep: where what was found right is remembered for a check that goes on (memory.h); "": nowhere
  std::string mount_table = {}; // text of /proc/self/mountinfo, for F093; "": not judged
  std::string host_name = {};   // of this machine; F093
  std::optional<std::string> nfs4_unique_id = {};   // the NFS client's; nullopt: there is none
  std::string export_table = {};                    // text of /var/lib/nfs/etab, of a machine that serves the directory itself
  std::function<void(uint64_t bytes_done, uint64_t bytes_total)> on_progress;  // deep only; from the calling thread
};

// One job of a root, as its line in the report.
struct FsckJob {
  std::string id, name;                // name: "" = none, or the queue cannot be read
  std::string state;                   // of its ledger, as below; "missing": no run directory; "not checked": interrupted before
  std::string queued_as;               // of the queue: "queued", "done", "failed", "cancelled", "refused", "" = not in it
  int exit_status = 0;
  uint64_t findings = 0;               // errors and warnings
};

struct FsckReport {
  std::vector<FsckFinding> findings;   // errors first, then warnings, infos; by code and object
  int exit_status = 0;
  bool deep = false;
  std::string state;                   // "no job yet", "running or stopped", "published", "done"; of a root: "root"
  std::vector<FsckJob> jobs;           // of a root, in order of submission
  uint64_t streams = 0, slots = 0, records = 0, packs = 0, bytes_read = 0, reproduced = 0;
  uint64_t bytes_known = 0;            // deep: not read, because a check that was interrupted had found them right
  std::vector<std::string> memories;   // files from which an interrupted check goes on
  std::vector<RepairPlan> plans;       // of each directory in which something could be mended
};

// `dir`: a run directory, or a root; then the counts and the exit status are those of all.
FsckReport RunFsck(FileSystem& fs, const std::string& dir, const FsckOptions& options);

// {"schema": 1, "run", "deep", "state", "exit_status", "checked": {...}, "findings": [{"code", "severity", "object", "message", "advice"}]}
// and for a root "jobs": [{"id", "name", "state", "queue", "exit_status", "findings"}].
Json FsckReportToJson(const std::string& run_dir, const FsckReport& report);
// The same for people: one line a finding, its advice below, one line of summary.
std::string FsckReportToText(const std::string& run_dir, const FsckReport& report);

// Name of a code ("BITROT"); null for a code that does not exist. All codes, for the docs' test.
const char* FsckCodeName(const std::string& code);
std::vector<std::string> FsckCodes();

}  // namespace holdfast
