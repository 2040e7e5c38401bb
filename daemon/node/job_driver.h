// SPDX-License-Identifier: Apache-2.0
//
// One job as a node sees it: its folded ledger, which of its tasks are this node's, and - while this process holds the claim on the job
// stream - its coordinator. The I/O around daemon/core/coordinator.h; the same in `jobctl run` (one node) and in holdfastd. Single-threaded.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "calib/model/decoder.h"
#include "calib/model/memory_plan.h"
#include "daemon/core/coordinator.h"
#include "daemon/node/device.h"
#include "ledger/base/clock.h"
#include "ledger/fold/run_state.h"

namespace holdfast {

class JobDriver {
 public:
  struct Options {
    Incarnation self;                     // of this process: its claims carry it
    CoordinatorPolicy policy;
    bool stages_given = false;            // how the submitter wants it, see JobView
    std::vector<std::string> on;
    bool reproducible = false;
    std::function<void(const std::string&)> on_say;   // one line for the log
  };
  JobDriver(FileSystem& fs, const Clock& clock, RunLayout layout, Options options);

  // Folds what is new. true: something was. kOwn: only what concerns this node's own stages, as long as it neither coordinates nor merges and no
  // stage waits for a node. Then the whole job is not known: AllSealed, Blocked and stages of others are not to be asked for.
  enum class Scope : uint8_t { kAll, kOwn };
  Result<bool> Refresh(Scope scope = Scope::kAll);
  RunState& state() { return state_; }
  const RunState& state() const { return state_; }
  void set_self(const Incarnation& self) { options_.self = self; }   // before the first claim
  bool AllSealed() const;
  bool Done() const { return state_.done().has_value(); }
  // Every unsealed stage waits for a node: the job holds nobody up.
  bool Blocked() const;
  bool Merging() const { return state_.assignment() && !state_.assignment()->merge_node.empty(); }

  // Stages of the latest plan that the latest assignment gives to `node`, unsealed, by layer.
  std::vector<StagePlan> StagesOf(const std::string& node) const;
  // The device of its node on which the latest assignment wants it; "": the only one.
  std::string DeviceOf(StageId stage) const;
  bool MergeOf(const std::string& node) const;
  uint64_t SamplesDone(const StagePlan& stage) const;
  // Memory of layers [first, last) on this device. The model's description comes from the job record, or from the source.
  Result<MemoryPlan> Memory(uint32_t first_layer, uint32_t last_layer, const Device& device);
  Result<StageMemory> LeastMemory(const Device& device);   // valid as long as this is

  // ---- as coordinator ----
  bool coordinates() const { return writer_ != nullptr; }
  // Claims the job stream. `may_take_over` as in StreamWriter. kFenced, kTransient...: somebody else has it, or storage gave no answer.
  Status Claim(const std::string& reason, const std::function<Status(const Claim&)>& may_take_over);
  void Adopt(std::unique_ptr<StreamWriter> writer);     // it was claimed already, through state().ReaderOf
  // Hears the nodes, decides, commits what was decided. Returns why the job failed for good, if it did.
  // kFenced: another coordinator took over; this one has forgotten its claim.
  Result<std::optional<std::string>> Coordinate(const std::vector<NodeView>& nodes);
  Status Release(const std::string& reason);
  uint64_t epoch() const { return writer_ == nullptr ? 0 : writer_->epoch(); }
  const Incarnation& self() const { return options_.self; }

 private:
  Status LoadDecoder();
  Status Read(Scope scope);
  bool OwnIsEnough() const;
  std::vector<LayerRange> Given(const std::string& node) const;
  JobView View();
  Result<Assignment> Commit(const Assign& assign);
  Status Commit(const Omit& omit);
  Status Renew();
  Status Lost(Status status);               // forgets the claim when it is gone

  FileSystem& fs_;
  const Clock& clock_;
  Options options_;
  RunState state_;
  std::optional<DecoderSpec> decoder_;
  std::unique_ptr<StreamWriter> writer_;
  std::unique_ptr<Coordinator> coordinator_;
  uint64_t renewed_ns_ = 0, tails_ = 0;
  bool view_stale_ = true;
  bool whole_ = false;                       // the last refresh left nothing out
};

// The least memory of the layers of this model, one sample on one thread, on each seat as its numerics class computes and its memory lies: a GPU with
// memory of its own must hold its part there and the rest in what it may take of the host's, one without holds both. `decoder` and `plan` outlive it.
SeatMemory LeastMemoryOf(const DecoderSpec& decoder, const Plan& plan, uint32_t seq_len);

// Ranges -> stream numbers: a range that an earlier plan had keeps its stream, others get new ones.
std::vector<StagePlan> NumberStages(const RunState* state, const std::vector<LayerRange>& ranges);

}  // namespace holdfast
