// SPDX-License-Identifier: Apache-2.0
//
// A cluster in one process, by seed: unequal nodes die, stop and wake, come back, drain, refuse, give up, are cut off, and coordinators are
// replaced with all they knew. Beats are late or lost. Checkers look at every assignment as it is made and at the end:
//   A  every unsealed stage is named exactly once, by ranges that cover the model; sealed ranges stay
//   B  what is given to a node fits it, and the node may have it
//   C  nothing is taken from a node without cause: silence of `suspect` as that coordinator heard it, a drain, a refusal, giving up, lack of
//      memory without progress for as long, or an idle node that takes from one with several after the tenure
//   D  assignments are bounded by what happened
//   E  when the faults end the job ends: finished; or failed, given up by all who could; or waiting, fitting nobody, by the right amount
// Mutants of the coordinator show that the checkers notice.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <set>

#include "daemon/core/coordinator.h"
#include "daemon/core/cutter.h"
#include "daemon/core/words.h"
#include "tests/daemon/coordinator_testing.h"

namespace holdfast {
namespace {

using testing::CountingLedger;
using testing::kGb;
using testing::kSecond;
using testing::NonceOf;

constexpr uint64_t kSuspect = 12 * kSecond, kTenure = 6 * kSecond, kGather = kSecond;
constexpr uint32_t kFaultTicks = 90, kQuietTicks = 500;

struct SimNode {
  NodeView view;
  bool alive = true, stopped = false, cut_off = false, refuses = false;
  std::set<LayerRange> cannot;          // gives up on these
  TimeNs stopped_until = 0, cut_until = 0;
  bool Speaks() const { return alive && !stopped && !cut_off; }
  bool Works() const { return alive && !stopped; }
};

// Words of the coordinator that prove that the runs reached its rarer paths.
constexpr const char* kPaths[] = {"lost (silent for", " is back", "is back: it commits", " drains: stage", " refused: source is missing: stage", " gave up: ", "is cut: ",
                                  "has nothing to do: stage", ": the merge goes to", "has holdfast 0.9", "has libtorch-2.1.0, this job", "is pinned to", " waits: needs",
                                  "--on asks for"};

// What one coordinator was told, kept by the checkers apart from its own books.
struct Told {
  struct Life {
    TimeNs sign = 0;
    TimeNs unpaused = 0;   // when it last said that it takes samples
    Nonce incarnation;
    bool draining = false, refuses = false;
    std::map<Nonce, uint64_t> counts;
    std::set<StageId> gave_up;
  };
  TimeNs born = 0;
  std::map<std::string, Life> nodes;
  std::map<StageId, std::pair<std::string, TimeNs>> seats;   // who has a stage, since when
  std::map<StageId, uint32_t> tails;
  std::map<StageId, TimeNs> moved;                           // when its tail last did
};

class Sim {
 public:
  Sim(uint32_t seed, CoordinatorPolicy::Mutant mutant, bool aloud = false) : seed_(seed), aloud_(aloud), rng_(seed), ledger_(MakeLedger()) {
    policy_ = {.suspect_ns = kSuspect, .tenure_ns = kTenure, .gather_ns = kGather, .version = "1.0", .job = "JOB", .mutant = mutant};
    MakeNodes();
    Elect();
  }

  // "" or what is wrong.
  std::string Run() {
    for (uint32_t tick = 0; tick < kFaultTicks + kQuietTicks && wrong_.empty() && !Over(); ++tick) {
      now_ += kSecond;
      if (tick < kFaultTicks) Fault();
      if (tick == kFaultTicks) EndFaults();
      Wake();
      Lead();
      for (auto& [name, node] : nodes_) Work(name, node);
    }
    if (wrong_.empty()) CheckEnd();
    return wrong_;
  }
  uint64_t assignments() const { return assignments_; }
  bool finished() const { return ledger_.done; }
  bool failed() const { return failed_; }
  const std::set<std::string>& paths() const { return paths_; }

 private:
  uint32_t Dice(uint32_t sides) { return static_cast<uint32_t>(rng_() % sides); }
  bool Over() const { return ledger_.done || failed_; }
  void Wrong(const std::string& what) {
    if (wrong_.empty()) wrong_ = "seed " + std::to_string(seed_) + " at " + std::to_string(now_ / kSecond) + " s: " + what;
  }

  CountingLedger MakeLedger();
  void MakeNodes();
  void MayBeGpu(NodeView* node, uint32_t number) const;
  void Fault();
  void EndFaults();
  void Wake();
  void Elect();
  void Lead();
  void Deliver(const CoordinatorEvent& event);
  void Tell(const BeatSeen& beat);
  void Tell(const JobSeen& job);
  void Tell(const Assigned& assigned);
  void Tell(const Tick&) {}
  void Beat(const std::string& name, SimNode& node);
  void Work(const std::string& name, SimNode& node);
  void WorkOn(const std::string& name, SimNode& node, const StagePlan& stage);
  void Merge(const std::string& name, SimNode& node);
  std::vector<StagePlan> Running(const std::string& name, const SimNode& node) const;
  TaskView Task(const SimNode& node, const StagePlan& stage) const;

  void Hear(const std::string& said);
  void CheckAssign(const Assign& assign);
  void CheckGiven(const std::string& name, const LayerRange& range, const Assign& assign);
  void CheckTaken(const StagePlan& stage, const std::string& from, const std::string& to, const Assign& assign);
  void CheckFailed(const std::string& detail);
  void CheckEnd();
  void CheckWaiting(const StagePlan& stage);
  bool MayWork(const SimNode& n) const;
  bool Fits(const LayerRange& range, const NodeView& n) const { return ledger_.Needs().Fits(n, range, n.memory_bytes); }
  size_t StagesKept(const std::string& name, const Assign& assign) const;

  const uint32_t seed_;
  const bool aloud_;
  std::mt19937 rng_;
  CountingLedger ledger_;
  CoordinatorPolicy policy_;
  std::map<std::string, SimNode> nodes_;
  TimeNs now_ = 1000 * kSecond;
  uint64_t lives_ = 0, faults_ = 0, assignments_ = 0, merged_ = 0, seals_ = 0, words_ = 0;
  std::string host_;
  TimeNs leaderless_until_ = 0;
  std::unique_ptr<Coordinator> coordinator_;
  struct Mail {
    TimeNs at;
    NodeView view;
  };
  std::vector<Mail> mail_;
  Told told_;
  std::map<std::string, NodeView> files_;   // the last beat of everyone, dead or not
  std::map<std::string, TimeNs> steady_;    // since when a node speaks without a fault
  bool failed_ = false;
  std::string wrong_;
  std::set<std::string> paths_;
};

CountingLedger Sim::MakeLedger() {
  const uint32_t layers = 4 + Dice(7), samples = 2 + Dice(4);
  std::vector<uint32_t> cut;
  const bool given = Dice(2) == 0;
  if (given) {
    for (uint32_t left = layers; left > 0;) {
      cut.push_back(1 + Dice(std::min(left, 5u)));
      left -= cut.back();
    }
  } else {
    cut = {layers};
  }
  CountingLedger ledger(layers, samples, cut);
  ledger.stages_given = given;
  ledger.reproducible = Dice(6) == 0;
  if (given && Dice(3) == 0) {
    for (size_t i = 0; i < cut.size(); ++i) ledger.on.push_back("n" + std::string(1, static_cast<char>('0' + Dice(6))));
  }
  return ledger;
}

void Sim::MakeNodes() {
  const uint32_t count = 1 + Dice(4);
  for (uint32_t i = 0; i < count; ++i) {
    const std::string name = std::string("n") + static_cast<char>('0' + i);
    SimNode& n = nodes_[name];
    n.view.name = name;
    n.view.incarnation = NonceOf(++lives_);
    n.view.memory_bytes = (1 + Dice(8)) * kGb + kGb / 2;
    n.view.speed = 1 + Dice(3);
    n.view.version = Dice(20) == 0 && i > 0 ? "0.9" : "1.0";
    n.view.numerics = std::string(ledger_.reproducible && Dice(3) == 0 ? "cuda/sm_86" : "cpu/bf16") + (Dice(25) == 0 ? "/libtorch-2.1.0" : "/libtorch-1.13.1");
    if (Dice(20) == 0) n.refuses = true;
    if (Dice(20) == 0) n.view.paused = true;
    steady_[name] = now_;
    MayBeGpu(&n.view, i);
    for (uint32_t first = 0; first < ledger_.layers(); ++first) {
      for (uint32_t last = first + 1; last <= ledger_.layers(); ++last) {
        if (Dice(25) == 0) n.cannot.insert({first, last});
      }
    }
  }
}

// In half of the clusters, half of the nodes: GPUs with memory of their own. By numbers of their own: the other half are what they were without.
void Sim::MayBeGpu(NodeView* node, uint32_t number) const {
  std::mt19937 rng(seed_ * 31 + number);
  if (seed_ % 2 == 0 || rng() % 2 == 0) return;
  node->memory_bytes = (1 + rng() % 6) * kGb;
  node->host_bytes = (1 + rng() % 6) * kGb / 4;
}

// ---- what happens to nodes ----

void Sim::Fault() {
  if (Dice(12) != 0) return;
  ++faults_;
  auto it = nodes_.begin();
  std::advance(it, Dice(static_cast<uint32_t>(nodes_.size())));
  SimNode& n = it->second;
  steady_[it->first] = UINT64_MAX;
  switch (Dice(7)) {
    case 0:
      n.alive = false;
      break;
    case 1:
    case 2:  // kill -9 and a restart, or a dead one that is switched on
      n.alive = true;
      n.stopped = false;
      n.view.incarnation = NonceOf(++lives_);
      n.view.count = 0;
      if (Dice(2) == 0) n.refuses = false;
      break;
    case 3:
      n.stopped = n.alive;
      n.stopped_until = now_ + (1 + Dice(40)) * kSecond;
      break;
    case 4:
      n.cut_off = true;
      n.cut_until = now_ + (1 + Dice(40)) * kSecond;
      break;
    case 5:
      n.view.draining = !n.view.draining;
      break;
    default:
      host_.clear();  // the coordinator's process forgets everything
  }
}

void Sim::EndFaults() {
  for (auto& [name, n] : nodes_) n.stopped_until = n.cut_until = now_;
}

void Sim::Wake() {
  for (auto& [name, n] : nodes_) {
    if (n.stopped && now_ >= n.stopped_until) n.stopped = false;
    if (n.cut_off && now_ >= n.cut_until) n.cut_off = false;
    if (!n.Speaks()) steady_[name] = UINT64_MAX;
    else if (steady_[name] == UINT64_MAX) steady_[name] = now_;
  }
}

// ---- what nodes do ----

TaskView Sim::Task(const SimNode& node, const StagePlan& stage) const {
  TaskView t{.stage = stage.stage, .merge = false, .state = "running", .error_code = "", .error = ""};
  if (node.refuses) t.state = "refused", t.error = "source is missing";
  else if (node.cannot.contains({stage.first_layer, stage.last_layer})) t.state = "failed", t.error_code = "resource_exhausted", t.error = "out of memory";
  return t;
}

void Sim::Beat(const std::string& name, SimNode& node) {
  ++node.view.count;
  node.view.tasks.clear();
  for (const StagePlan& s : ledger_.stages()) {
    if (ledger_.NodeOf(s) == name && !ledger_.Sealed(s)) node.view.tasks.push_back(Task(node, s));
  }
  files_[name] = node.view;
  if (name != host_ && (node.cut_off || Dice(10) == 0)) return;
  mail_.push_back({now_ + (name == host_ ? 0 : Dice(3)) * kSecond, node.view});
}

std::vector<StagePlan> Sim::Running(const std::string& name, const SimNode& node) const {
  std::vector<LocalStage> local;
  std::vector<StagePlan> running;
  for (const StagePlan& s : ledger_.stages()) {
    if (ledger_.NodeOf(s) == name && !ledger_.Sealed(s) && Task(node, s).state == "running") {
      local.push_back({s.stage, s.first_layer, ledger_.Needs().Of(node.view)(s.first_layer, s.last_layer)});
    }
  }
  for (const StageId id : ChooseRunning(local, node.view.memory_bytes)) {
    running.push_back(*std::find_if(ledger_.stages().begin(), ledger_.stages().end(), [&](const StagePlan& s) { return s.stage == id; }));
  }
  return running;
}

void Sim::WorkOn(const std::string& name, SimNode& node, const StagePlan& stage) {
  const JobView view = ledger_.View();
  const auto seen = std::find_if(view.stages.begin(), view.stages.end(), [&](const StageView& s) { return s.stage == stage.stage; });
  if (ledger_.numerics.empty()) ledger_.numerics = node.view.numerics;  // of the first claim
  if (seen->owner != name) return ledger_.Claim(stage.stage, name);
  for (uint64_t i = 0; i < node.view.speed && ledger_.CanWork(stage); ++i) ledger_.Work(stage);
  seals_ += ledger_.Sealed(stage);
}

void Sim::Merge(const std::string& name, SimNode& node) {
  if (!ledger_.AllSealed() || !ledger_.assignment() || ledger_.assignment()->merge_node != name || node.view.draining) return;
  if (++merged_ >= 5) ledger_.done = true;
}

void Sim::Work(const std::string& name, SimNode& node) {
  if (!node.Works()) return;
  Beat(name, node);
  if (node.view.draining || Dice(4) == 0) return;
  for (const StagePlan& s : Running(name, node)) WorkOn(name, node, s);
  Merge(name, node);
}

// ---- the coordinator of the moment ----

void Sim::Elect() {
  std::vector<std::string> able;
  for (const auto& [name, n] : nodes_) {
    if (n.Works()) able.push_back(name);
  }
  coordinator_.reset();
  host_.clear();
  if (able.empty()) return;
  host_ = able[Dice(static_cast<uint32_t>(able.size()))];
  coordinator_ = std::make_unique<Coordinator>(policy_);
  mail_.clear();
  told_ = {.born = now_, .nodes = {}, .seats = {}, .tails = {}, .moved = {}};
  ++faults_;
  for (const auto& [name, view] : files_) mail_.push_back({now_, view});  // what lies in the directory, old or not
}

void Sim::Lead() {
  const auto host = nodes_.find(host_);
  const bool dead = host == nodes_.end() || !host->second.alive;
  if (!dead && host->second.stopped && Dice(4) != 0) return;  // silent, and nobody has taken over yet
  if (dead || host->second.stopped) {
    if (leaderless_until_ == 0) leaderless_until_ = now_ + (1 + Dice(4)) * kSecond;
    if (now_ < leaderless_until_) return;
    leaderless_until_ = 0;
    Elect();
    if (!coordinator_) return;
  }
  if (ledger_.assignment()) Deliver(Assigned{*ledger_.assignment()});
  Deliver(JobSeen{ledger_.View()});
  const auto due = std::stable_partition(mail_.begin(), mail_.end(), [&](const Mail& m) { return m.at <= now_; });
  const std::vector<Mail> today(mail_.begin(), due);
  mail_.erase(mail_.begin(), due);
  for (const Mail& m : today) {
    Deliver(BeatSeen{m.view});
  }
  Deliver(Tick{});
}

void Sim::Tell(const BeatSeen& beat) {
  const NodeView& view = beat.node;
  Told::Life& l = told_.nodes[view.name];
  const auto [count, first] = l.counts.try_emplace(view.incarnation, view.count);
  if (first || view.count <= count->second) return;  // of no use: it may be what a dead one left
  count->second = view.count;
  if (l.incarnation != view.incarnation) l.refuses = false, l.gave_up.clear();
  if (!view.paused || l.sign < told_.born) l.unpaused = now_;
  l.incarnation = view.incarnation;
  l.sign = now_;
  l.draining = view.draining;
  for (const TaskView& t : view.tasks) {
    words_ += (t.state == "refused" && !l.refuses) || (t.state == "failed" && !l.gave_up.contains(t.stage));
    l.refuses = l.refuses || t.state == "refused";
    if (t.state == "failed") l.gave_up.insert(t.stage);
  }
}

void Sim::Tell(const JobSeen& job) {
  for (const StageView& s : job.job.stages) {
    const auto [tail, first] = told_.tails.try_emplace(s.stage, s.tail);
    if (s.tail > tail->second && !s.owner.empty()) told_.nodes[s.owner].sign = now_;
    if (first || s.tail > tail->second) told_.moved[s.stage] = now_;
    tail->second = s.tail;
  }
}

void Sim::Tell(const Assigned& assigned) {
  for (const Assignment::Entry& e : assigned.assignment.stages) {
    auto& [node, since] = told_.seats[e.stage];
    if (node != e.node || since == 0) since = now_;
    node = e.node;
  }
}

void Sim::Deliver(const CoordinatorEvent& event) {
  if (Over() || !wrong_.empty()) return;
  std::visit([this](const auto& e) { Tell(e); }, event);
  for (const CoordinatorAction& action : coordinator_->Step(event, now_)) {
    if (const auto* fail = std::get_if<FailJob>(&action)) CheckFailed(fail->detail);
    if (const auto* say = std::get_if<Say>(&action)) Hear(say->text);
    const auto* assign = std::get_if<Assign>(&action);
    if (!assign) continue;
    CheckAssign(*assign);
    if (!wrong_.empty() || Dice(10) == 0) continue;  // the commit fails: the coordinator has to ask again
    ledger_.Commit(*assign);
    ++assignments_;
    Deliver(Assigned{*ledger_.assignment()});
    Deliver(JobSeen{ledger_.View()});
  }
}

void Sim::Hear(const std::string& said) {
  if (aloud_) std::printf("%6llu s, %s: %s\n", static_cast<unsigned long long>(now_ / kSecond), host_.c_str(), said.c_str());
  for (const char* path : kPaths) {
    if (said.find(path) != std::string::npos) paths_.insert(path);
  }
}

// ---- the checkers ----

// Stages that a node has and that an assignment with the same ranges leaves to it.
size_t Sim::StagesKept(const std::string& name, const Assign& assign) const {
  size_t kept = 0;
  for (size_t i = 0; i < ledger_.stages().size() && assign.ranges.empty(); ++i) {
    const StagePlan& s = ledger_.stages()[i];
    kept += !ledger_.Sealed(s) && ledger_.NodeOf(s) == name && assign.places[i].node == name;
  }
  return kept;
}

void Sim::CheckAssign(const Assign& assign) {
  std::vector<LayerRange> now_are, ranges = assign.ranges;
  for (const StagePlan& s : ledger_.stages()) now_are.emplace_back(s.first_layer, s.last_layer);
  if (ranges.empty()) ranges = now_are;
  if (ranges.size() != assign.places.size()) return Wrong("as many places as ranges were expected");
  uint32_t at = 0;
  for (size_t i = 0; i < ranges.size(); ++i) {
    if (ranges[i].first != at || ranges[i].second <= at) return Wrong("ranges do not follow each other");
    at = ranges[i].second;
    const auto old = std::find(now_are.begin(), now_are.end(), ranges[i]);
    const StagePlan* stage = old == now_are.end() ? nullptr : &ledger_.stages()[static_cast<size_t>(old - now_are.begin())];
    const std::string& node = assign.places[i].node;
    const bool sealed = stage && ledger_.Sealed(*stage);
    if (sealed && !node.empty()) Wrong("a sealed stage was given to " + node);
    if (!node.empty() && !(stage && ledger_.NodeOf(*stage) == node)) CheckGiven(node, ranges[i], assign);
  }
  if (at != ledger_.layers()) return Wrong("the ranges do not cover the model");
  for (size_t i = 0; i < now_are.size(); ++i) {
    const StagePlan& s = ledger_.stages()[i];
    const auto still = std::find(ranges.begin(), ranges.end(), now_are[i]);
    if (ledger_.Sealed(s) && still == ranges.end()) Wrong("a sealed range was cut");
    const std::string from = ledger_.NodeOf(s), to = still == ranges.end() ? "" : assign.places[static_cast<size_t>(still - ranges.begin())].node;
    if (!ledger_.Sealed(s) && !from.empty() && from != to) CheckTaken(s, from, to, assign);
  }
  if (!assign.merge_node.empty() && !ledger_.AllSealed()) Wrong("a merge before its time");
  if (ledger_.assignment() && !ledger_.assignment()->merge_node.empty() && ledger_.assignment()->merge_node != assign.merge_node && ledger_.AllSealed()) {
    const Told::Life& l = told_.nodes[ledger_.assignment()->merge_node];
    if (now_ - std::max(l.sign, told_.born) < kSuspect && !l.draining && !l.refuses) Wrong("the merge was taken from a healthy node");
  }
}

void Sim::CheckGiven(const std::string& name, const LayerRange& range, const Assign& assign) {
  if (!nodes_.contains(name)) return Wrong("a stage for " + name + ", which does not exist");
  const SimNode& n = nodes_[name];
  const Told::Life& l = told_.nodes[name];
  const std::string what = LayersText(range) + " for " + name + ", which ";
  if (!Fits(range, n.view)) Wrong(what + "is too small");
  if (n.view.version != "1.0") Wrong(what + "has another version");
  if (!assign.numerics.empty() && assign.numerics != n.view.numerics) Wrong(what + "has other numerics");
  if (!ledger_.numerics.empty() && TorchOf(ledger_.numerics) != TorchOf(n.view.numerics)) Wrong(what + "has another libtorch");
  if (l.draining || l.refuses) Wrong(what + "drains or refused");
  if (l.sign < told_.born || now_ - l.sign > kSuspect) Wrong(what + "was not heard of late");
  for (const StagePlan& s : ledger_.stages()) {
    if (s.first_layer == range.first && s.last_layer == range.second && l.gave_up.contains(s.stage)) Wrong(what + "gave up on it");
  }
}

void Sim::CheckTaken(const StagePlan& stage, const std::string& from, const std::string& to, const Assign& assign) {
  const Told::Life& l = told_.nodes[from];
  if (now_ - std::max(l.sign, told_.born) >= kSuspect || l.draining || l.refuses || l.gave_up.contains(stage.stage)) return;
  if (!to.empty() && now_ - std::max({l.unpaused, told_.moved[stage.stage], told_.born}) >= kSuspect) return;  // short of memory, and no progress
  const auto seat = told_.seats.find(stage.stage);
  const bool tenure_over = seat != told_.seats.end() && now_ - seat->second.second >= kTenure;
  const bool several = std::any_of(assign.places.begin(), assign.places.end(), [&](const StagePlace& p) { return p.node == from; });
  if (!to.empty() && StagesKept(to, assign) == 0 && several && tenure_over) return;  // an idle one takes from one with several
  Wrong("stage " + std::to_string(stage.stage.value) + " was taken from " + from + " without cause (for " + (to.empty() ? "nobody" : to) + ")");
}

bool Sim::MayWork(const SimNode& n) const {
  const std::string pin = ledger_.assignment() ? ledger_.assignment()->numerics : "";
  std::string torch = TorchOf(ledger_.numerics);
  for (const auto& e : ledger_.assignment() ? ledger_.assignment()->stages : std::vector<Assignment::Entry>{}) {
    if (torch.empty() && !e.node.empty()) torch = TorchOf(nodes_.at(e.node).view.numerics);  // nobody has begun, but somebody is about to
  }
  return n.Speaks() && !n.view.draining && !n.refuses && n.view.version == "1.0" && (pin.empty() || n.view.numerics == pin) &&
         (torch.empty() || TorchOf(n.view.numerics) == torch);
}

// Some stage was given up by three, or by everyone who could have taken it and was there all the time.
void Sim::CheckFailed(const std::string& detail) {
  failed_ = true;
  if (detail.find("given up by") == std::string::npos) return Wrong("failed: " + detail);
  for (const StagePlan& s : ledger_.stages()) {
    size_t gave_up = 0;
    bool hope = false;
    for (const auto& [name, n] : nodes_) {
      const bool gave = told_.nodes[name].gave_up.contains(s.stage);
      gave_up += gave;
      const bool steady = steady_[name] != UINT64_MAX && now_ - steady_[name] >= 2 * kSuspect;
      hope = hope || (!gave && steady && MayWork(n) && Fits({s.first_layer, s.last_layer}, n.view));
    }
    if (!ledger_.Sealed(s) && (gave_up >= kGiveUpsMax || (gave_up > 0 && !hope))) return;
  }
  Wrong("failed although someone could go on: " + detail);
}

void Sim::CheckWaiting(const StagePlan& stage) {
  const std::string note = ledger_.EntryOf(stage).note;
  std::vector<NodeView> able;
  for (const auto& [name, n] : nodes_) {
    if (MayWork(n)) able.push_back(n.view);
  }
  const LayerRange range{stage.first_layer, stage.last_layer};
  if (SplitRange(range, able, ledger_.Needs())) return Wrong(LayersText(range) + " waits (" + note + "), but there are nodes that it fits");
  if (able.empty()) return;
  // What was never cut waits for the first layer that fits nobody.
  const auto fits_nobody = [&](const LayerRange& r) { return std::none_of(able.begin(), able.end(), [&](const NodeView& n) { return Fits(r, n); }); };
  LayerRange alone{range.first, range.first + 1};
  while (alone.second < range.second && !fits_nobody(alone)) alone = {alone.second, alone.second + 1};
  const auto says = [&](const LayerRange& r) { return note.find(ShortfallText(r, able, ledger_.Needs())) != std::string::npos; };
  if (!says(range) && !says(alone)) Wrong(LayersText(range) + " waits with a wrong note: " + note);
}

void Sim::CheckEnd() {
  const uint64_t bound = 3 + faults_ + seals_ / 2 + words_;
  if (assignments_ > bound) Wrong(std::to_string(assignments_) + " assignments, expected at most " + std::to_string(bound));
  const bool anyone = std::any_of(nodes_.begin(), nodes_.end(), [this](const auto& n) { return MayWork(n.second); });
  if (Over() || !anyone) return;
  if (ledger_.AllSealed()) return Wrong("all is sealed, and nobody merges");
  if (!ledger_.assignment()) return Wrong("nothing was ever assigned");
  bool waits = false;
  for (const StagePlan& s : ledger_.stages()) {
    const std::string node = ledger_.NodeOf(s);
    if (ledger_.Sealed(s)) continue;
    if (node.empty()) waits = true, CheckWaiting(s);
    else if (!MayWork(nodes_[node])) Wrong("stage " + std::to_string(s.stage.value) + " was left with " + node);
  }
  if (!waits) Wrong("no stage waits, and the job does not end");
}

// ---- runs ----

struct Outcome {
  uint32_t wrong = 0, finished = 0, failed = 0;
  uint64_t assignments = 0;
  std::string first;
  std::map<std::string, uint32_t> paths;   // and how many seeds reached them
};

Outcome RunSeeds(uint32_t seeds, CoordinatorPolicy::Mutant mutant) {
  Outcome o;
  for (uint32_t seed = 0; seed < seeds; ++seed) {
    Sim sim(seed, mutant);
    const std::string wrong = sim.Run();
    o.wrong += !wrong.empty();
    if (o.first.empty()) o.first = wrong;
    o.finished += sim.finished();
    o.failed += sim.failed();
    o.assignments += sim.assignments();
    for (const std::string& path : sim.paths()) ++o.paths[path];
  }
  return o;
}

TEST(CoordinatorSim, HoldsOnEverySeed) {
  const Outcome o = RunSeeds(2500, CoordinatorPolicy::Mutant::kNone);
  EXPECT_EQ(o.wrong, 0u) << o.first << " (HOLDFAST_SIM_SEED and --gtest_filter=CoordinatorSim.OneSeedAloud show it)";
  std::printf("2500 seeds: %u finished, %u failed for want of nodes, %llu assignments\n", o.finished, o.failed,
              static_cast<unsigned long long>(o.assignments));
  EXPECT_GT(o.finished, 1000u);
  EXPECT_GT(o.failed, 10u);
  for (const char* path : kPaths) EXPECT_GE(o.paths.contains(path) ? o.paths.at(path) : 0, 1u) << "never: \"" << path << "\"";
}

// HOLDFAST_SIM_SEED=N shows what happened in seed N.
TEST(CoordinatorSim, OneSeedAloud) {
  const char* seed = ::getenv("HOLDFAST_SIM_SEED");
  Sim sim(seed == nullptr ? 0 : static_cast<uint32_t>(std::strtoul(seed, nullptr, 10)), CoordinatorPolicy::Mutant::kNone, seed != nullptr);
  EXPECT_EQ(sim.Run(), "");
}

TEST(CoordinatorSim, EveryMutantIsNoticed) {
  using Mutant = CoordinatorPolicy::Mutant;
  for (const Mutant m : {Mutant::kNoDoubt, Mutant::kNoTenure, Mutant::kForgetsBars, Mutant::kMovesTheHealthy, Mutant::kLeavesTheWaiting,
                         Mutant::kRepeatsItself}) {
    const Outcome o = RunSeeds(500, m);
    EXPECT_GE(o.wrong, 3u) << "mutant " << static_cast<int>(m);
    std::printf("mutant %d: noticed on %u of 500 seeds, first by: %s\n", static_cast<int>(m), o.wrong, o.first.c_str());
  }
}

}  // namespace
}  // namespace holdfast
