// SPDX-License-Identifier: Apache-2.0
//
// The coordinator of one job, as a pure state machine: Step(Event, Time) -> Actions. It holds nothing that cannot be had again from the
// ledger and the beats; a new one, started at any time from the current fold, goes on.
//
// What it decides:
//   - the first cut and placement (CutAndPlace, or the ranges given), once at least one fit node was heard for `gather`, or all of `on`
//   - a stage whose node is lost (no beat and no tail progress for `suspect`), draining, refusing or giving up goes to another node that
//     fits; a range that fits no single node is split (SplitRange) unless nothing fits: then it waits, with a note by how much
//   - a stage whose node has been short of memory for `suspect` without any progress goes to another that fits and is not; else it stays
//   - a stage that waits, or that queues behind or runs beside another on one node, goes to a fit node that has nothing to do: one
//     that came back, or a new one. Not before a stage's `tenure` on its node is over (against ping-pong), unless it waits
//   - when all stages are sealed: the merge, on a live node; moved when that node is lost or fails
//   - a sample that a stage blames is left out, as long as the job allows it: by the coordinator alone, so that the budget is kept by one. A blame
//     that may not be followed is answered by the stage's worker, which fails
//   - failure for good: a worker refused its input for reasons that hold on every node (error_code invalid_argument, unsupported, corrupt),
//     or a stage was given up on by kGiveUpsMax nodes or by every fit one
//
// Stages lie on seats (cluster.h): a node, or one device of a node that has several. A name of a node below is that of a seat where a place is meant;
// who lives, is lost, drains or merges is a node.
//
// What nodes report (NodeView::tasks) counts as long as the node's incarnation lives. "refused" bars it from the job, "failed" (that device of it) from that stage
// or the merge, "fenced" and the rest are no failure. Input that is bad everywhere ends the job only if the reporting node has the task
// by the latest assignment and `gather` has passed since this coordinator was born: a report of an attempt before `jobctl resume` is none.
// Nodes of another holdfast version, or another libtorch than the first that worked on this job, get nothing; the note names both.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "daemon/core/cluster.h"
#include "daemon/core/election.h"
#include "daemon/core/placement.h"
#include "daemon/core/heard_nodes.h"
#include "ledger/records/records.h"

namespace holdfast {

struct CoordinatorPolicy {
  uint64_t suspect_ns = 120'000'000'000;   // T_suspect
  uint64_t tenure_ns = 60'000'000'000;     // T_min
  uint64_t gather_ns = 3'000'000'000;      // how long the first placement waits for more nodes to speak up
  std::string version;                     // holdfast's, of this program; nodes must have the same
  std::string job = "JOB";                 // how commands name it, for texts that end in one
  // One rule less than there should be, for tests of the tests. Never set elsewhere.
  enum class Mutant : uint8_t { kNone, kNoDoubt, kNoTenure, kForgetsBars, kMovesTheHealthy, kLeavesTheWaiting, kRepeatsItself } mutant = Mutant::kNone;
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
struct Omit {                              // to be committed in the job stream: this sample counts nowhere from then on
  uint32_t sample = 0;
  StageId stage;
  std::string why;
};
struct FailJob { std::string detail; };    // what happened, to what, the next command
struct Say { std::string text; };          // one line for the log: a node was lost, came back, ...
using CoordinatorAction = std::variant<Assign, Omit, FailJob, Say>;

class Coordinator {
 public:
  explicit Coordinator(CoordinatorPolicy policy) : policy_(std::move(policy)), heard_(policy_.suspect_ns) {}
  std::vector<CoordinatorAction> Step(const CoordinatorEvent& event, TimeNs now);

 private:
  static constexpr uint64_t kRetryNs = 5'000'000'000;  // a proposal that nobody committed is made again, from what is known then
  static constexpr uint64_t kSettleGathers = 10;       // a job is given up for want of nodes no sooner than this many `gather`

  // What every node must have. Empty fields ask for nothing.
  struct Requirement {
    std::string numerics, torch;
  };
  // A range, where it lies (a seat), and where this decision puts it.
  struct Item {
    LayerRange layers;
    std::optional<StageId> stage;          // nullopt: newly cut
    bool sealed = false, entered = false;  // entered: the assignment has an entry for it
    bool pinned = false, held = false;     // stays where it is; waits for the node that --on names
    std::string before, old_note, reason;  // reason: why it cannot stay there
    StagePlace place;
  };
  struct Seat {
    std::string node;
    TimeNs since = 0;
  };

  // coordinator.cc: events, reports of failure, the merge, what is emitted.
  enum class News : uint8_t { kNo, kYes };   // whether there may be something to decide before the next tick
  News On(const BeatSeen& e);
  News On(const JobSeen& e);
  News On(const Assigned& e);
  News On(const Tick&) { return News::kYes; }
  void HearTasks(HeardNode& node);
  void Decide();
  bool DecideOmission();
  void DecideMerge();
  void SayWhyNot(const Requirement& required);
  bool Is(CoordinatorPolicy::Mutant mutant) const { return policy_.mutant == mutant; }
  void SayText(std::string text) { actions_.emplace_back(Say{std::move(text)}); }
  void Fail(std::string detail);
  bool FailGivenUp(StageId stage, const std::string& what, bool placed, const std::function<bool(const NodeView& seat)>& fits, const Requirement& required);
  void Emit(Assign assign);
  bool Named(const std::string& node, StageId stage) const;
  bool Settled() const;
  std::string StageText(const Item& item) const;

  // coordinator_stages.cc: who works on what.
  void DecideStages();
  bool MayBegin(const std::vector<NodeView>& usable);
  bool Untouched() const;
  bool Begun() const;
  Requirement Required() const;
  Requirement MostCapable() const;
  std::string WhyNot(const HeardNode& node, const NodeView& seat, const Requirement& required) const;
  std::optional<NodeView> FindSeat(const std::string& seat) const;
  const std::string* GaveUp(const std::string& seat, StageId stage) const;
  std::vector<NodeView> Usable(const Requirement& required) const;
  std::vector<Item> Items(const Requirement& required) const;
  bool Stuck(const Item& item, const HeardNode& node, const Requirement& required) const;
  std::string WhyLeave(const Item& item, const Requirement& required) const;
  std::vector<Item> FirstCut(const std::vector<NodeView>& usable, std::vector<Item> items) const;
  void Place(std::vector<Item>& items, const std::vector<NodeView>& usable, const Requirement& required) const;
  StageWish WishOf(const Item& item, size_t index, size_t items, const std::vector<NodeView>& usable) const;
  std::string NotAsAsked(const StageWish& wish, const Item& item, const Requirement& required) const;
  std::string WaitNote(const Item& item, const std::string& note, const Requirement& required) const;
  bool Split(std::vector<Item>& items, const std::vector<NodeView>& usable, const Requirement& required);
  bool FitsSomeone(const Item& item, const Requirement& required) const;
  void Propose(std::vector<Item> items, const Requirement& required);

  // coordinator_balance.cc: work for who has none.
  using Lying = std::map<std::string, std::vector<Item*>>;   // what lies on which node
  void Rebalance(std::vector<Item>& items, const std::vector<NodeView>& usable) const;
  std::vector<const NodeView*> Idle(const Lying& at, const std::vector<NodeView>& usable) const;
  Item* BestMove(std::vector<Item>& items, const Lying& at, const NodeView& to, const std::vector<NodeView>& usable) const;
  bool Movable(const Item& item, size_t index, size_t items) const;
  bool RunsBeside(const Item& item, const NodeView& node, const std::vector<Item*>& others) const;
  double LoadOf(const NodeView& node, const std::vector<Item*>& items) const;
  uint64_t WorkLeft(const Item& item) const;

  CoordinatorPolicy policy_;
  HeardNodes heard_;
  TimeNs now_ = 0;
  bool over_ = false;                                // the job failed: nothing more is decided
  std::optional<JobView> job_;
  std::optional<Assignment> assignment_;
  std::optional<TimeNs> gathering_;                  // since when a node that may work is there, until the first placement
  std::optional<TimeNs> proposed_;                   // an Assign is on its way into the ledger since
  std::optional<std::pair<uint32_t, TimeNs>> omitting_;   // so is an Omit of this sample
  TimeNs noted_ = 0;                                 // when the notes in the ledger were last written
  std::map<StageId, uint32_t> tails_;
  std::map<StageId, TimeNs> moved_;                  // when its tail last did
  std::map<StageId, Seat> seats_;
  std::map<StageId, TimeNs> unfit_since_;            // fits no node that is there
  std::map<std::string, std::string> said_;          // per seat: why it gets nothing
  std::string torch_;                                // as of the last proposal
  std::vector<CoordinatorAction> actions_;
};

}  // namespace holdfast
