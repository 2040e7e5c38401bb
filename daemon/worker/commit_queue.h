// SPDX-License-Identifier: Apache-2.0
//
// What makes the results of a stage durable, without a thread of its own. Of a sample, whose output cut is in packs by then if it is kept at all:
// waits until the cut that it was computed from is committed, then appends its S record; those that are ready together share a slot. Of an evicted
// unit: appends its E record. Steps are taken by whoever owns it: the Committer's thread, or a simulation. Reports what happened as events, in order, from
// inside the step.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <variant>
#include <vector>

#include "ledger/base/clock.h"
#include "ledger/fold/run_state.h"
#include "ledger/pack/pack.h"

namespace holdfast {

struct ComputedSample {
  SampleRecord record;
  std::shared_ptr<const Bytes> hidden;          // what leaves; null behind the last layer. Shared with the data edge and the next group
  bool from_memory = false;                     // computed from a cut that this life has committed and kept
};

struct SampleAnnounced { uint32_t sample; };                // that it is being computed alone is durable
struct SampleCommitted { uint32_t sample; };                // durable
struct UpstreamCommitted { std::map<uint32_t, Cut> cuts; };  // by the upstream stage
struct SampleRedo { uint32_t sample; };                     // was computed from a cut that upstream then committed otherwise
struct SamplesOmitted { std::vector<uint32_t> samples; };   // are left out since the last look: nobody computes them any more
struct SampleDropped { uint32_t sample; };                  // was computed, is left out: not committed
struct ConsumerFound { Incarnation consumer; };             // who takes our cuts now
struct PacksWritten { uint64_t bytes; };
struct UnitCommitted { uint32_t unit; };                    // durable
using CommitEvent =
    std::variant<SampleAnnounced, SampleCommitted, UpstreamCommitted, SampleRedo, SamplesOmitted, SampleDropped, ConsumerFound, PacksWritten, UnitCommitted>;

class CommitQueue {
 public:
  struct Options {
    FileSystem* fs = nullptr;
    const Clock* clock = nullptr;
    RunState* state = nullptr;                  // used by nobody else while steps are taken
    StreamWriter* writer = nullptr;             // likewise
    Nonce incarnation;
    StageId stage;
    uint32_t first_layer = 0, last_layer = 0;   // of the stage; 0: no upstream
    std::vector<uint32_t> upstream_wanted;      // samples whose cut is not committed yet
    std::vector<uint32_t> omitted;              // samples that are left out already
    std::function<void(CommitEvent)> on_event;
  };
  explicit CommitQueue(Options options);

  // Its record follows with a later step.
  void Add(ComputedSample sample);
  enum class Look : uint8_t { kWhenDue, kNow };  // into the ledger
  // Looks into the ledger, and appends what can be. An error is permanent: the stage must stop.
  Status Step(Look look);
  Status Commit(const LayerRecord& unit);
  // Says in the ledger that this sample is computed alone from now on: should it end this process, the next one knows.
  Status Announce(uint32_t sample);
  // How long to wait for the next step when nothing happens meanwhile.
  uint64_t PollNs() const;
  size_t waiting() const { return prepared_.size(); }

 private:
  enum class Verdict : uint8_t { kAppend, kWait, kRedo, kDrop };
  Verdict Judge(const ComputedSample& sample) const;
  Status CommitReady();
  Status LookAround(uint64_t now);
  void LookForOmissions();
  void LookUpstream();
  void LookDownstream();

  Options options_;
  std::vector<ComputedSample> prepared_;        // pack written, waiting for upstream
  std::vector<uint32_t> upstream_wanted_;
  std::vector<uint32_t> omitted_;               // those that were reported
  Nonce consumer_;                              // the latest that was reported
  uint64_t looked_ns_ = 0;                      // when there was last a look for cuts
  uint64_t looked_wide_ns_ = 0;                 // when everything around this stage was last folded
  uint32_t idle_looks_ = 0;                     // in a row, that brought nothing
};

}  // namespace holdfast
