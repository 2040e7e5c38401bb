// SPDX-License-Identifier: Apache-2.0
//
// The coordinator of one job, as a pure state machine: Step(Event, Time) -> Actions. It holds nothing that cannot be had again from the
// ledger and the beats; a new one, started at any time from the current fold, goes on.
//
// What it decides:
//   - the first cut and placement (CutAndPlace, or the ranges given), once at least one fit node was heard for `gather`, or all of `on`
//   - a stage whose node is lost (no beat and no tail progress for `suspect`), draining, refusing or giving up goes to another node that
//     fits; a range that fits no single node is split (SplitRange) unless nothing fits: then it waits, with a note by how much
//   - a stage that waits, or that queues behind another on one node, goes to a fit node that has nothing to do: one that came back,
//     or a new one. Not before a stage's `tenure` on its node is over (against ping-pong), unless it waits
//   - when all stages are sealed: the merge, on a live node; moved when that node is lost or fails
//   - failure for good: a worker refused its input for reasons that hold on every node (error_code invalid_argument, unsupported, corrupt),
//     or a stage was given up on by kGiveUpsMax nodes or by every fit one
// Nodes of another holdfast version, or another libtorch than the first that worked on this job, get nothing; the note names both.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>
#include <variant>
#include <vector>

#include "daemon/core/cluster.h"
#include "daemon/core/placement.h"
#include "ledger/records/records.h"

namespace holdfast {

struct CoordinatorPolicy {
  uint64_t suspect_ns = 120'000'000'000;   // T_suspect
  uint64_t tenure_ns = 60'000'000'000;     // T_min
  uint64_t gather_ns = 3'000'000'000;      // how long the first placement waits for more nodes to speak up
  std::string version;                     // holdfast's, of this program; nodes must have the same
};
inline constexpr uint32_t kGiveUpsMax = 3;

struct BeatSeen { NodeView node; };                   // also for the coordinator's own node
struct JobSeen { JobView job; };                      // after every fold that brought something
struct Assigned { Assignment assignment; };           // the latest in the ledger: at birth, and after our own was committed
struct Tick {};
using CoordinatorEvent = std::variant<BeatSeen, JobSeen, Assigned, Tick>;

// To be committed as one slot of the job stream: a new plan if the ranges changed, and the assignment.
struct Assign {
  std::vector<LayerRange> ranges;          // of every stage, by layer; empty: the plan stays as it is
  // Per range (or per stage of the plan that stays): its node and note, and which are sealed already and need none.
  std::vector<StagePlace> places;
  std::string merge_node, numerics, why;
};
struct FailJob { std::string detail; };    // what happened, to what, the next command
struct Say { std::string text; };          // one line for the log: a node was lost, came back, ...
using CoordinatorAction = std::variant<Assign, FailJob, Say>;

class Coordinator {
 public:
  explicit Coordinator(CoordinatorPolicy policy) : policy_(std::move(policy)) {}
  std::vector<CoordinatorAction> Step(const CoordinatorEvent& event, TimeNs now);

 private:
  CoordinatorPolicy policy_;
  // private state is the implementer's
};

// Who becomes coordinator of a job that has none. Pure. A live owner of the job stream is left alone. Otherwise the first live, not draining
// node by name claims at once, the second after `step_ns`, and so on: a dead first one costs seconds, and two at once cost one lost race.
class Election {
 public:
  Election(std::string self, uint64_t silence_ns, uint64_t step_ns) : self_(std::move(self)), silence_ns_(silence_ns), step_ns_(step_ns) {}
  void OnBeat(const std::string& node, const Nonce& incarnation, uint64_t count, bool draining, TimeNs now);
  // The job stream as last folded: who claimed it, whether it was released, its tail.
  void OnJob(const std::string& owner, const Nonce& incarnation, bool released, uint32_t tail, TimeNs now);
  bool ShouldClaim(TimeNs now);            // true again and again until OnJob says that it was done

 private:
  std::string self_;
  uint64_t silence_ns_, step_ns_;          // silence: how long an owner without any sign of life is still believed to live
};

}  // namespace holdfast
