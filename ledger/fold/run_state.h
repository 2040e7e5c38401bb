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
#include <tuple>
#include <utility>
#include <vector>

#include "ledger/log/stream.h"

namespace holdfast {

// What the lives of a stage's workers left behind about samples that may end them. A sample that is tried alone is announced first.
struct Suspicion {
  struct Life {
    bool calibrating = false, progress = false, released = false;
    bool Died() const { return calibrating && !released; }
    bool Barren() const { return Died() && !progress; }
  };
  Life before, now;                             // the life before the latest claim, and since
  std::map<uint32_t, uint32_t> tries;           // by sample: announced in so many lives since it last came through. Forgotten after a release that blames one
};

// A life of a stage's worker says that it can do nothing without this sample. Stands until the sample is left out, or another life begins.
struct Blame {
  uint32_t sample = 0;
  std::string why;
};

struct StageState {
  StageId stage;
  StreamState stream;                           // as of the last Refresh
  std::vector<Claim> claims;                    // every claim in order, to count restarts and their reasons
  std::optional<PhaseBegin> phase;              // the latest
  Suspicion suspicion;
  std::optional<Blame> blame;
  std::optional<SealRecord> seal;               // while everything that it sealed is still there (R6)
  uint64_t last_wall_ns = 0;
};

// What one node contributed, in one numerics class: sample records (one per sample and stage) and evicted units that count.
struct Share {
  uint64_t samples = 0, units = 0;
};

// Single-threaded. Stays where it was made: the readers that it hands out refer to it.
class RunState {
 public:
  RunState(FileSystem& fs, RunLayout layout);
  ~RunState();
  RunState(const RunState&) = delete;
  RunState& operator=(const RunState&) = delete;
  // Reads FORMAT (first call), then everything new in every stream. Errors: kNotFound (no job yet), kUnsupported, kCorrupt.
  Status Refresh();
  // The same for who works on some layers, [first, last) each, and need not know what goes on elsewhere: of the stages' streams only those are
  // read that a plan lets say something about one of these layers, or that no plan knows. What is asked about these layers is then answered as
  // if everything had been read.
  using Layers = std::pair<uint32_t, uint32_t>;
  Status RefreshLayers(const std::vector<Layers>& layers);
  // Only the streams of stages that end before `layer`, as far as they are known: whether there are new cuts. Cheap enough for ten times a second.
  Status RefreshCutsBefore(uint32_t layer);

  const RunLayout& layout() const { return layout_; }
  const JobSpec& job() const { return *job_; }
  const Plan& plan() const { return plans_.rbegin()->second; }      // the latest
  bool has_plan() const { return !plans_.empty(); }
  const std::map<uint32_t, Plan>& plans() const { return plans_; }
  const std::vector<std::vector<int32_t>>& tokens() const { return tokens_; }  // by sample

  // Samples that are left out, and what was said of each: by the owner of the job, at most as many as the job allows, and none after a merge was
  // given to a node. They count nowhere; layers and seals that were made with them do not count either. So what comes out follows from the source, the
  // calibration set and these alone.
  const std::map<uint32_t, OmitRecord>& omitted() const { return omitted_; }
  bool Omitted(uint32_t sample) const { return omitted_.contains(sample); }
  std::vector<uint32_t> OmittedSamples() const;                     // ascending
  uint32_t samples_in() const;                                      // those of the job that are not left out
  uint32_t skips_left() const;                                      // so many more may be left out

  // Pointers that the following return live until the next Refresh or Apply.
  // Where several records cover one layer, the lowest stage number counts, then the earliest slot: the same on every node.
  // The effective sample record that covers `layer`, or null. Cuts: the record whose range ends at `layer`, with an output kept.
  const SampleRecord* Sample(uint32_t sample, uint32_t layer) const;
  const Cut* CutBefore(uint32_t sample, uint32_t layer) const;
  bool SampleCovers(uint32_t sample, uint32_t first_layer, uint32_t last_layer) const;
  // How far layers [first, last) are, in samples: those that are left out do not count, parts of the way add up.
  uint64_t SamplesThrough(uint32_t first_layer, uint32_t last_layer) const;
  const LayerRecord* Layer(uint32_t unit) const;                    // made with the samples that are in now
  // amax of every site of one layer, joined over all samples of the job that are not left out; kNotFound naming a sample that is missing.
  Result<std::vector<float>> ReducedAmax(uint32_t layer) const;

  const std::map<StageId, StageState>& stages() const { return stages_; }
  const StreamState& job_stream() const;
  const StreamState& merge_stream() const;
  const std::map<uint32_t, MergeRecord>& merge_written() const { return merge_written_; }   // file -> latest kWritten
  const std::optional<MergeRecord>& published() const { return published_; }
  const std::optional<DoneRecord>& done() const { return done_; }
  const std::vector<Incarnation>& incarnations() const { return incarnations_; }
  // From any stream of the run, workers included. Null: nobody introduced it. Lives until the next Refresh or Apply.
  const Incarnation* IncarnationOf(const Nonce& nonce) const;
  // Who is to work on what, as the job stream says: the latest number, of equal numbers the first.
  const std::optional<Assignment>& assignment() const { return assignment_; }
  // Why the job stream was given up ("done", "failed: ...", "drain"); "" while it is claimed, or was never.
  const std::string& job_release_reason() const { return job_release_reason_; }
  // By (node, numerics class). The node is the one whose claim stood in the stream when the record was written.
  std::map<std::pair<std::string, std::string>, Share> Shares() const;
  // Numerics classes of the sample records that count, sorted.
  std::set<std::string> SampleNumerics() const;
  const std::map<uint32_t, SourceRead>& source_reads() const { return source_reads_; }       // by unit, first wins
  uint32_t nondeterminism() const { return nondeterminism_; }  // later, different records for a key (R4)
  uint32_t stale_records() const;
  // Records that do not decode although their slot is sound: they count as not there (fsck: RECORD_BAD).
  uint32_t invalid_records() const { return invalid_; }

  // For an owner that already folded its stream through its own reader: feeds one record of `stream`.
  Status Apply(const std::string& stream, const Record& record, const Slot& slot);
  // The reader of a stream, made on first use; a StreamWriter that is opened through it keeps this state current: what it appends
  // is applied at once. Null before the first successful Refresh (the job's uuid is not known yet).
  StreamReader* ReaderOf(const std::string& stream);

 private:
  // Everything that was said about one thing, each with where it was said. The first in (stream, slot) order is what counts; what
  // comes later is kept, because a VOID of the first makes the next one count.
  struct Origin {
    uint32_t order = 0;        // stage number, or kNoStage
    uint32_t seq = 0;
    std::string stream;
    RecordKey key;
    Digest payload;            // of the record's payload (S: of both parts), to tell a repetition from a contradiction
    uint64_t epoch = 0;        // in force there: whose claim it was
    bool Before(const Origin& o) const { return std::tie(order, stream, seq, key) < std::tie(o.order, o.stream, o.seq, o.key); }
  };
  template <class T>
  struct Said {
    Origin origin;
    T value;
  };
  template <class K, class T>
  using Ledger = std::map<K, std::vector<Said<T>>>;

  Status RefreshIf(const std::function<bool(const std::string& stream)>& wanted);
  Status RefreshStream(const std::string& stream);
  std::vector<Layers> RangesOf(StageId stage) const;
  Status CheckTokens();
  Status Fold(const Origin& origin, const Record& record);   // one record; errors: it does not decode
  void NoteProgress(const Origin& origin);
  Status FoldStage(const Origin& origin, const Record& record);
  Status FoldResult(const Origin& origin, const Record& record);
  Status FoldMerge(const Origin& origin, const Record& record);
  Status FoldSample(Origin origin, const Record& record);
  Status FoldVoid(const Origin& origin, const Record& record);
  template <class K, class T>
  void Add(Ledger<K, T>* ledger, const K& key, const Origin& origin, T value, bool must_repeat);
  void ViewJob();
  void ViewPlan(uint32_t number);
  void ViewTokens(uint32_t sample);
  void ViewMerge();
  void ViewAssignment();
  void ViewOmitted();
  void FoldJobStream(const Record& record);
  // Each sample record that counts for at least one layer, once.
  void EachSample(const std::function<void(const Said<SampleRecord>&)>& visit) const;
  const Claim* ClaimOf(const Origin& origin) const;
  void ViewSource(uint32_t unit);
  void ViewSeals();
  bool Holds(const SealRecord& seal) const;
  const Said<LayerRecord>* LayerSaid(uint32_t unit) const;

  FileSystem& fs_;
  RunLayout layout_;
  std::optional<Nonce> job_id_;
  std::map<std::string, std::unique_ptr<StreamReader>> readers_;
  bool tokens_checked_ = false;
  bool seals_open_ = false;                   // some Z does not hold, or something was voided: look again
  std::optional<Record> sample_control_;      // part 0, until part 1 of the same slot comes
  Ledger<uint8_t, JobSpec> said_job_;
  Ledger<uint32_t, Plan> said_plans_;
  Ledger<uint32_t, std::vector<int32_t>> said_tokens_;
  Ledger<uint32_t, SampleRecord> samples_;    // by sample: all stages and layer groups
  Ledger<uint32_t, LayerRecord> layers_;      // by unit
  Ledger<StageId, SealRecord> said_seals_;
  Ledger<uint32_t, MergeRecord> said_merges_;
  Ledger<uint8_t, MergeRecord> said_published_;
  Ledger<uint8_t, DoneRecord> said_done_;
  Ledger<uint32_t, SourceRead> said_sources_;
  Ledger<uint32_t, Assignment> said_assignments_;
  Ledger<uint32_t, OmitRecord> said_omits_;   // by sample
  // What counts of the above, for the accessors.
  std::optional<JobSpec> job_;
  std::map<uint32_t, Plan> plans_;
  std::vector<std::vector<int32_t>> tokens_;
  std::map<StageId, StageState> stages_;
  std::map<uint32_t, MergeRecord> merge_written_;
  std::optional<MergeRecord> published_;
  std::optional<DoneRecord> done_;
  std::map<uint32_t, SourceRead> source_reads_;
  std::vector<Incarnation> incarnations_;
  std::optional<Assignment> assignment_;
  std::map<uint32_t, OmitRecord> omitted_;
  bool merge_given_ = false;                  // some assignment named a node for the merge
  std::string job_release_reason_;
  uint32_t nondeterminism_ = 0, invalid_ = 0;
};

// The numerics class that a job's result is made of: the one that its sample records have, "mixed: a, b" if they have several, and what
// the job pins while there are none.
std::string EffectiveNumerics(const RunState& state);

}  // namespace holdfast
