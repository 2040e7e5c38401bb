// SPDX-License-Identifier: Apache-2.0
//
// Merge: the last phase. Streams the output files out of packs into a staging directory beside the output, then index, configs,
// tokenizer files, holdfast.json, SHA256SUMS, and publishes the directory by one exclusive rename. Memory is bounded by
// threads * a few chunks whatever the model's size (kStreamBytesMax, for each file that is written at a time). Everything is redone from where the merge stream says it stopped:
// files with M(written) whose digest still matches are linked over from the dead claim's staging, not rewritten.
#pragma once

#include <atomic>
#include <functional>

#include "export/shard/output_plan.h"
#include "ledger/base/clock.h"
#include "ledger/fold/run_state.h"

namespace holdfast {

inline constexpr uint32_t kMergeLanesMax = 4;  // files that are written at a time: one for two threads

struct MergeProgress {
  uint64_t bytes_done = 0, bytes_total = 0;
  uint32_t files_done = 0, files_total = 0;
};

struct MergeOptions {
  uint32_t threads = 1;
  Nonce incarnation;
  const std::atomic<bool>* stop = nullptr;              // returns kStopped soon after it turns true
  std::function<void(const MergeProgress&)> on_progress;  // from the calling thread, a few times a second
};

// Bytes that merge will write in all (for the space check), metadata included generously.
uint64_t OutputBytes(const OutputPlan& plan);

// Runs merge to the end and returns the digest of SHA256SUMS. Requires: every unit of the plan has its E record in `state`; `merge`
// owns the merge stream. Commits M(begun), M(written) per file, M(published). Idempotent: when the output directory is
// already published with the manifest that M says, only what is missing in the log is appended.
// Errors: kAlreadyExists: the output directory exists and is not ours; kInvalidArgument: a sidecar of the source changed (names it).
Result<Digest> RunMerge(FileSystem& fs, RunState& state, StreamWriter& merge, const MergeOptions& options);

// The same output once more, in another place or another layout: read from packs, published as merge does it, and not a word of it in the ledger.
// Nothing of an earlier attempt is used. Requires: every unit has its E record, and its packs are there. When `out` exists and is what this
// would write, as far as that can be known without writing it again, that is success. Errors as RunMerge's.
struct ExportTarget {
  std::string out;
  OutputLayout layout = OutputLayout::kModelopt;
  std::string staging_prefix;   // the staging is the hidden sibling of `out` of this name and the attempt's number; whoever calls removes it after
  uint64_t attempt = 0;         // an error
};
Result<Digest> RunExport(FileSystem& fs, RunState& state, const ExportTarget& target, const MergeOptions& options);

// A claim writes in a hidden sibling of the output, <dir of out>/.<name>.holdfast-<job>-<run>-<epoch>; this is its name up to the epoch.
// <run>: the inode of the run directory's FORMAT. The two copies of a run directory have one job and one output, and may not meet in one
// staging: each would take the other's files for those of a dead claim of its own.
Result<std::string> StagingPrefix(FileSystem& fs, const RunLayout& run, const JobSpec& job);

}  // namespace holdfast
