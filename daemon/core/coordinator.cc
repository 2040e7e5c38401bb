// SPDX-License-Identifier: Apache-2.0
#include "daemon/core/coordinator.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "daemon/core/words.h"

namespace holdfast {

namespace {

// The input itself is bad: no node can do better.
bool HoldsOnEveryNode(const std::string& code) {
  return code == ErrorCodeName(ErrorCode::kInvalidArgument) || code == ErrorCodeName(ErrorCode::kUnsupported) ||
         code == ErrorCodeName(ErrorCode::kCorrupt);
}

}  // namespace

std::vector<CoordinatorAction> Coordinator::Step(const CoordinatorEvent& event, TimeNs now) {
  now_ = now;
  heard_.Begin(now);
  if (Is(CoordinatorPolicy::Mutant::kNoDoubt)) heard_.ForgetDoubt();
  const News news = std::visit([this](const auto& e) { return On(e); }, event);
  if (!over_ && news == News::kYes) Decide();
  return std::exchange(actions_, {});
}

Coordinator::News Coordinator::On(const BeatSeen& e) {
  const HeardNodes::Heard heard = heard_.OnBeat(e.node, now_);
  if (heard == HeardNodes::Heard::kOld || over_) return News::kNo;
  if (heard == HeardNodes::Heard::kBack) SayText("node " + e.node.name + " is back");
  HearTasks(*heard_.Find(e.node.name));
  return heard == HeardNodes::Heard::kSame ? News::kNo : News::kYes;
}

Coordinator::News Coordinator::On(const JobSeen& e) {
  for (const StageView& s : e.job.stages) {
    const auto [tail, first] = tails_.try_emplace(s.stage, s.tail);
    if (s.tail > tail->second && !s.owner.empty() && heard_.OnProgress(s.owner, now_)) SayText("node " + s.owner + " is back: it commits");
    if (first || s.tail > tail->second) moved_[s.stage] = now_;
    tail->second = s.tail;
  }
  for (const std::string& node : e.job.on) heard_.Name(node, now_);
  job_ = e.job;
  return News::kYes;
}

Coordinator::News Coordinator::On(const Assigned& e) {
  if (!assignment_ || assignment_->number != e.assignment.number) {
    proposed_.reset();
    noted_ = now_;
  }
  assignment_ = e.assignment;
  const TimeNs since = Is(CoordinatorPolicy::Mutant::kNoDoubt) ? 0 : now_;
  heard_.Name(assignment_->merge_node, since);
  for (const Assignment::Entry& s : assignment_->stages) {
    heard_.Name(s.node, since);
    Seat& seat = seats_[s.stage];
    if (const std::string name = SeatName(s.node, s.device); seat.since == 0 || seat.node != name) seat = {name, now_};
  }
  return News::kNo;  // the view of the job as it is now follows
}

bool Coordinator::Named(const std::string& node, StageId stage) const {
  if (!assignment_) return false;
  if (stage == kMergeStage) return assignment_->merge_node == node;
  return std::any_of(assignment_->stages.begin(), assignment_->stages.end(),
                     [&](const Assignment::Entry& e) { return e.stage == stage && e.node == node; });
}

// As long as nodes are still gathering, reports may be of an attempt that was over before this one began.
void Coordinator::HearTasks(HeardNode& node) {
  if (Is(CoordinatorPolicy::Mutant::kForgetsBars)) return;
  for (const TaskView& t : node.view.tasks) {
    const StageId stage = t.merge ? kMergeStage : t.stage;
    const Bar bar{node.view.incarnation, t.error};
    if (t.state == "refused" && !heard_.Refused(node)) node.refused = bar;
    if (t.state != "failed") continue;
    if (!HoldsOnEveryNode(t.error_code)) {
      node.gave_up[{stage, t.device}] = bar;
    } else if (Named(node.view.name, stage) && now_ - heard_.born() >= policy_.gather_ns) {
      const std::string what = t.merge ? "the merge" : "stage " + std::to_string(stage.value);
      Fail(what + " on " + node.view.name + ": " + t.error + " (" + t.error_code + "): the same on every node");
    }
  }
}

void Coordinator::Fail(std::string detail) {
  if (over_) return;
  over_ = true;
  actions_.emplace_back(FailJob{std::move(detail) + ". Next: repair that, then `jobctl resume " + policy_.job + "`"});
}

bool Coordinator::Settled() const {
  return now_ - heard_.born() >= kSettleGathers * policy_.gather_ns || heard_.KnowsAll(now_);
}

// Whether that ended the job: a stage (or the merge) given up by too many, or by everyone who could do it.
bool Coordinator::FailGivenUp(StageId stage, const std::string& what, bool placed, const std::function<bool(const NodeView& seat)>& fits, const Requirement& required) {
  std::string names, last;
  uint32_t gave_up = 0;
  bool hope = placed;
  for (const auto& [name, n] : heard_.nodes()) {
    for (const NodeView& seat : stage == kMergeStage ? std::vector<NodeView>{n.view} : SeatsOf(n.view)) {
      if (const std::string* why = GaveUp(seat.name, stage)) {
        names += (gave_up++ == 0 ? "" : ", ") + seat.name;
        last = *why;
      } else if (!n.lost && (!n.heard || (WhyNot(n, seat, required).empty() && fits(seat)))) {
        hope = true;
      }
    }
  }
  if (gave_up < kGiveUpsMax && (gave_up == 0 || hope || !Settled())) return false;
  Fail(what + " was given up by " + names + (hope ? "" : ", and no other node can take it") + "; the last reason: " + last);
  return true;
}

void Coordinator::Decide() {
  if (!job_ || job_->done || !job_->memory) return;
  if (assignment_ && assignment_->plan > job_->plan) return;  // the fold is behind our own commit
  if (proposed_ && now_ - *proposed_ < kRetryNs) return;
  if (DecideOmission()) return;
  if (!heard_.AnyFresh(now_)) return;                        // who hears nobody is in no position to judge
  for (const std::string& name : heard_.MarkLost(now_)) {
    const auto has = [&](const StageView& s) { return !s.sealed && Named(name, s.stage); };
    const bool idle = std::none_of(job_->stages.begin(), job_->stages.end(), has) && !Named(name, kMergeStage);
    if (idle && heard_.Find(name)->heard) SayText("node " + name + " lost (silent for " + SecondsText(policy_.suspect_ns) + "); it had nothing to do");
  }
  const bool sealed = std::all_of(job_->stages.begin(), job_->stages.end(), [](const StageView& s) { return s.sealed; });
  if (sealed && !job_->stages.empty()) DecideMerge();
  else DecideStages();
}

// true: one is on its way, and what there is to decide after it is another job. It follows from the ledger alone: no node has to be heard.
bool Coordinator::DecideOmission() {
  for (const StageView& s : job_->stages) {
    if (s.sealed || !s.blame || job_->skips_left == 0) continue;
    if (omitting_ && omitting_->first == s.blame->sample && now_ - omitting_->second < kRetryNs) return true;
    omitting_ = {s.blame->sample, now_};
    SayText("sample " + std::to_string(s.blame->sample) + " is left out: stage " + std::to_string(s.stage.value) + " says " + s.blame->why + " (" +
            std::to_string(job_->omitted.size() + 1) + " of " + std::to_string(job_->samples) + " left out, " + std::to_string(job_->skips_left - 1) + " more may be)");
    actions_.emplace_back(Omit{s.blame->sample, s.stage, s.blame->why});
    return true;
  }
  return false;
}

void Coordinator::DecideMerge() {
  const Requirement anything;  // merging computes nothing: any numerics will do
  const std::string now_at = assignment_ ? assignment_->merge_node : "";
  std::string reason = "all stages are sealed";
  if (const HeardNode* n = heard_.Find(now_at)) {
    const std::string why_not = n->heard ? WhyNot(*n, n->view, anything) : "";
    if (n->lost) reason = "node " + now_at + " lost (silent for " + SecondsText(policy_.suspect_ns) + ")";
    else if (const std::string* why = heard_.GaveUp(*n, kMergeStage)) reason = now_at + " gave up: " + *why;
    else if (!why_not.empty()) reason = why_not;
    else return;
  }
  const HeardNode* best = nullptr;
  const auto rank = [](const HeardNode& n) { return std::tuple(n.view.paused, ~n.view.speed, n.view.name); };
  for (const auto& [name, n] : heard_.nodes()) {
    const bool may = heard_.Fresh(n, now_) && !n.lost && WhyNot(n, n.view, anything).empty() && !heard_.GaveUp(n, kMergeStage);
    if (may && (!best || rank(n) < rank(*best))) best = &n;
  }
  if (FailGivenUp(kMergeStage, "the merge", best != nullptr, [](const NodeView&) { return true; }, anything)) return;
  if (!best) return;  // as it is: whoever has it may still come back
  SayText(reason + ": the merge goes to " + best->view.name);
  Assign assign{.ranges = {}, .places = std::vector<StagePlace>(job_->stages.size()), .merge_node = best->view.name,
                .numerics = assignment_ ? assignment_->numerics : "", .why = reason};
  Emit(std::move(assign));
}

// Says once, and again when it changes, why a node that is there gets nothing.
void Coordinator::SayWhyNot(const Requirement& required) {
  for (const auto& [name, n] : heard_.nodes()) {
    if (!heard_.Fresh(n, now_)) continue;
    std::string before;                        // what is said of a node is said once, not of each of its devices
    for (const NodeView& seat : SeatsOf(n.view)) {
      const std::string why = WhyNot(n, seat, required);
      std::string& said = said_[seat.name];
      if (said != why && (why.empty() || why != before)) SayText(why.empty() ? seat.name + " may take work again" : why + ": it gets nothing of this job");
      said = before = why;
    }
  }
}

void Coordinator::Emit(Assign assign) {
  proposed_ = now_;
  actions_.emplace_back(std::move(assign));
}

std::string Coordinator::StageText(const Item& item) const {
  const std::string layers = LayersText(item.layers);
  return item.stage ? "stage " + std::to_string(item.stage->value) + " (" + layers + ")" : layers;
}

}  // namespace holdfast
