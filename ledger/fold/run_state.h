// SPDX-License-Identifier: Apache-2.0
//
// The fold: what a run directory says, taken together. Rules R1-R8 of ledger.md 3.2: verified slots in order, claims applied, stale
// epochs dropped, the first valid record of a key wins, VOID re-opens work. Knowledge is kept per layer, not per stage, so that a
// later plan that cuts the model differently still finds everything that was computed.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "ledger/log/stream.h"

namespace holdfast {

struct StageState {
  StageId stage;
  StreamState stream;
  std::vector<Claim> claims;                    // every claim in order, to count restarts and their reasons
  std::optional<PhaseBegin> phase;              // the latest
  std::optional<SealRecord> seal;
  uint64_t last_wall_ns = 0;
};

class RunState {
 public:
  RunState(FileSystem& fs, RunLayout layout);
  // Reads FORMAT (first call), then everything new in every stream. Errors: kNotFound (no job yet), kUnsupported, kCorrupt.
  Status Refresh();

  const RunLayout& layout() const { return layout_; }
  const JobSpec& job() const { return *job_; }
  const Plan& plan() const { return plans_.rbegin()->second; }      // the latest
  bool has_plan() const { return !plans_.empty(); }
  const std::map<uint32_t, Plan>& plans() const { return plans_; }
  const std::vector<std::vector<int32_t>>& tokens() const { return tokens_; }  // by sample

  // The effective sample record that covers `layer`, or null. Cuts: the record whose range ends at `layer`, with an output kept.
  const SampleRecord* Sample(uint32_t sample, uint32_t layer) const;
  const Cut* CutBefore(uint32_t sample, uint32_t layer) const;
  bool SampleCovers(uint32_t sample, uint32_t first_layer, uint32_t last_layer) const;
  const LayerRecord* Layer(uint32_t unit) const;
  // amax of every site of one layer, joined over all samples of the job; kNotFound naming a sample that is missing.
  Result<std::vector<float>> ReducedAmax(uint32_t layer) const;

  const std::map<StageId, StageState>& stages() const { return stages_; }
  const StreamState& job_stream() const;
  const StreamState& merge_stream() const;
  const std::map<uint32_t, MergeRecord>& merge_written() const { return merge_written_; }   // file -> latest kWritten
  const std::optional<MergeRecord>& published() const { return published_; }
  const std::optional<DoneRecord>& done() const { return done_; }
  const std::vector<Incarnation>& incarnations() const { return incarnations_; }
  const std::map<uint32_t, SourceRead>& source_reads() const { return source_reads_; }       // by unit, first wins
  uint32_t nondeterminism() const { return nondeterminism_; }  // later, different records for a key (R4)
  uint32_t stale_records() const;

  // For an owner that already folded its stream through its own reader: feeds one record of `stream`.
  Status Apply(const std::string& stream, const Record& record, const Slot& slot);
  // The reader of a stream, made on first use; a StreamWriter that is opened through it keeps this state current.
  StreamReader* ReaderOf(const std::string& stream);

 private:
  FileSystem& fs_;
  RunLayout layout_;
  bool format_checked_ = false;
  std::optional<JobSpec> job_;
  std::map<uint32_t, Plan> plans_;
  std::vector<std::vector<int32_t>> tokens_;
  std::map<std::string, std::unique_ptr<StreamReader>> readers_;
  std::map<StageId, StageState> stages_;
  std::map<std::pair<uint32_t, uint16_t>, SampleRecord> samples_;   // (sample, stage)
  std::map<uint32_t, LayerRecord> layers_;
  std::map<uint32_t, MergeRecord> merge_written_;
  std::optional<MergeRecord> published_;
  std::optional<DoneRecord> done_;
  std::vector<Incarnation> incarnations_;
  std::map<uint32_t, SourceRead> source_reads_;
  uint32_t nondeterminism_ = 0;
};

}  // namespace holdfast
