// SPDX-License-Identifier: Apache-2.0
//
// A node's daemon, one round a second: what holdfastd's job board and task runner do for one job.
#include <algorithm>

#include "daemon/core/election.h"
#include "daemon/core/placement.h"
#include "daemon/node/job_driver.h"
#include "daemon/wire/beat_pace.h"
#include "tests/sim/cluster.h"

namespace holdfast::sim {
namespace {

constexpr uint64_t kRoundNs = kSecond, kStepNs = 2 * kSecond, kHearNs = 15 * kSecond;

const char* Word(TaskState state) {
  switch (state) {
    case TaskState::kGaveUp:
    case TaskState::kRefused: return "failed";   // its error's code tells whether another node could do better
    case TaskState::kFenced: return "fenced";
    case TaskState::kNoSpace: return "paused";
    default: return "running";
  }
}

class Daemon {
 public:
  Daemon(Process& self, SimNode& node)
      : self_(self), node_(node), files_(node, self), clock_(node.cluster.world, self, node.options.wall_skew_s), pace_(BeatPaceOf(node.cluster.nodes.size())),
        driver_(files_.fs(), clock_, RunLayout(kRunDir), Options()), election_(node.name(), pace_.silence_ns, kStepNs) {}

  void Run() {
    self_.Sleep(node_.kernel.random.Below(kRoundNs));
    while (!self_.dead()) {
      const Status status = Round();
      if (self_.dead()) return;
      if (status.code() == ErrorCode::kCorrupt) node_.cluster.Damaged(self_.name(), status.error());
      if (!status.ok()) node_.cluster.world.Trace(self_.name(), "round: " + status.error().message);
      self_.Sleep(kRoundNs);
    }
  }

 private:
  JobDriver::Options Options() {
    JobDriver::Options o;
    o.self.node = node_.name();
    o.self.nonce = Nonce::Random();
    o.self.numerics = kNumerics;
    o.self.version = "sim";
    const ClusterOptions& c = node_.cluster.options;
    o.policy = {.suspect_ns = c.suspect_ns, .tenure_ns = c.tenure_ns, .gather_ns = std::max(c.gather_ns, pace_.gather_ns), .version = "sim", .job = "JOB"};
    o.stages_given = !c.shape.cut.empty();
    o.on_say = [this](const std::string& text) { node_.cluster.world.Trace(self_.name(), text); };
    return o;
  }

  Status Round() {
    Beat();
    const auto news = driver_.Refresh(election_.IsDeputy(clock_.MonotonicNs()) ? JobDriver::Scope::kAll : JobDriver::Scope::kOwn);
    if (news.code() == ErrorCode::kNotFound) return OkStatus();   // hidden by a negative dentry
    if (!news.ok()) return news.error();
    if (!driver_.state().has_plan()) return OkStatus();
    if (driver_.Done()) return Finish();
    if (!driver_.coordinates()) HOLDFAST_TRY(Elect());
    if (driver_.coordinates()) HOLDFAST_TRY(Coordinate());
    node_.coordinates = driver_.coordinates();
    Reconcile();
    return OkStatus();
  }

  Status Finish() {
    node_.cluster.JobDone();
    if (driver_.coordinates()) (void)driver_.Release("done");
    return OkStatus();
  }

  void Beat() {
    NodeView v;
    v.name = node_.name();
    v.incarnation = driver_.self().nonce;
    v.count = ++count_;
    v.draining = node_.draining;
    v.memory_bytes = node_.options.memory_bytes;
    v.speed = node_.options.speed;
    v.version = "sim";
    v.numerics = kNumerics;
    for (uint32_t i = 0; node_.options.devices > 1 && i < node_.options.devices; ++i) {
      v.devices.push_back({"gpu:" + std::to_string(i), kNumerics, node_.options.memory_bytes, 0, node_.options.speed});
    }
    for (const auto& t : node_.tasks) {
      TaskView task{.stage = t->merge ? StageId(0) : t->plan.stage, .merge = t->merge, .state = Word(t->state), .error_code = "", .error = "", .device = t->device};
      if (!t->ended.ok() && t->state != TaskState::kRunning) task.error_code = ErrorCodeName(t->ended.code()), task.error = t->ended.error().message;
      v.tasks.push_back(task);
    }
    node_.heard[v.name] = v;
    node_.heard_at[v.name] = node_.cluster.world.now();
    if (count_ % (pace_.period_ns / kRoundNs) == 0) node_.cluster.SendBeat(node_, v);
  }

  Status Elect() {
    if (!node_.cluster.failed().empty()) return OkStatus();
    const uint64_t now = clock_.MonotonicNs();
    for (const auto& [name, view] : node_.heard) {
      if (now - node_.heard_at[name] < pace_.silence_ns) election_.OnBeat(name, view.incarnation, view.count, view.draining, now);
    }
    const StreamState& stream = driver_.state().job_stream();
    election_.OnJob(stream.claim.node, stream.claim.incarnation, stream.released, stream.next_seq, now);
    if (!election_.ShouldClaim(now)) return OkStatus();
    const Nonce expected = stream.claim.incarnation;
    const Status claimed = driver_.Claim("coordinate", [&](const Claim& current) -> Status {
      if (current.incarnation == expected) return OkStatus();
      return Fenced("node " + current.node + " was elected a moment ago");
    });
    if (claimed.code() == ErrorCode::kFenced) return OkStatus();
    HOLDFAST_TRY(claimed);
    claimed_at_ = now;
    const RecordKey key{.cls = RecordClass::kClaim, .stage = 0, .a = static_cast<uint32_t>(driver_.epoch())};
    node_.cluster.Acknowledged({RunLayout::JobStream(), driver_.epoch(), key});
    return OkStatus();
  }

  std::vector<NodeView> Nodes() {
    std::vector<NodeView> views;
    const uint64_t now = clock_.MonotonicNs();
    for (const auto& [name, view] : node_.heard) {
      if (now - node_.heard_at[name] >= kHearNs) continue;
      views.push_back(view);
      if (now - claimed_at_ < pace_.stale_words_ns) std::erase_if(views.back().tasks, [](const TaskView& t) { return t.state != "running"; });
    }
    return views;
  }

  Status Coordinate() {
    const auto number = [this] { return driver_.state().assignment() ? driver_.state().assignment()->number + 1 : 0; };
    const uint32_t before = number();
    const uint64_t epoch = driver_.epoch();
    const auto failed = driver_.Coordinate(Nodes());
    if (failed.code() == ErrorCode::kFenced) return OkStatus();
    if (!failed.ok()) return failed.error();
    // Ours has the number that was next before; what lies behind it was read on the way, and is somebody else's.
    if (number() != before) node_.cluster.Acknowledged({RunLayout::JobStream(), epoch, {.cls = RecordClass::kAssignment, .stage = 0, .a = before}});
    if (!*failed) return OkStatus();
    node_.cluster.JobFailed(**failed);
    return driver_.Release("failed");
  }

  // Starts what is this node's and does not run; stops what is not.
  void Reconcile() {
    std::vector<StagePlan> stages = node_.draining ? std::vector<StagePlan>{} : driver_.StagesOf(node_.name());
    const bool merge = !node_.draining && driver_.MergeOf(node_.name());
    const uint32_t assignment = driver_.state().assignment() ? driver_.state().assignment()->number : 0;
    const uint64_t now = clock_.MonotonicNs();
    for (auto& t : node_.tasks) {
      const auto is_its = [&](const StagePlan& s) { return s.stage == t->plan.stage && driver_.DeviceOf(s.stage) == t->device; };
      const bool wanted = t->merge ? merge : std::any_of(stages.begin(), stages.end(), is_its);
      if (!wanted) t->stop.store(true);
    }
    std::erase_if(node_.tasks, [&](const auto& t) {
      if (t->process && !t->process->finished()) return false;
      if (t->stop.load()) return true;
      const bool waits = t->state == TaskState::kFenced || t->state == TaskState::kNoSpace;
      if (waits) return now >= t->retry_at;
      if (t->state == TaskState::kDone || t->state == TaskState::kStopped) return true;
      return (t->state == TaskState::kGaveUp || t->state == TaskState::kRefused) && assignment != given_up_at_[t->plan.stage];
    });
    for (const auto& t : node_.tasks) {
      if (t->state == TaskState::kGaveUp || t->state == TaskState::kRefused) given_up_at_[t->plan.stage] = assignment;
    }
    for (const StagePlan& s : stages) Ensure(s, false);
    if (merge) Ensure({}, true);
  }

  bool HasDevice(const std::string& device) const {
    const bool one = node_.options.devices < 2;
    if (one || device.empty()) return one && device.empty();
    return std::stoul(device.substr(4)) < node_.options.devices;
  }

  void Ensure(const StagePlan& stage, bool merge) {
    for (const auto& t : node_.tasks) {
      if (t->merge == merge && (merge || t->plan.stage == stage.stage)) return;
    }
    auto task = std::make_shared<SimTask>();
    task->merge = merge;
    task->plan = stage;
    if (!merge) task->device = driver_.DeviceOf(stage.stage);
    if (!merge && !HasDevice(task->device)) return;      // of a life with others; it is placed anew
    node_.tasks.push_back(task);
    StartTask(node_, task);
  }

  Process& self_;
  SimNode& node_;
  ProcessFiles files_;
  NodeClock clock_;
  BeatPace pace_;
  JobDriver driver_;
  Election election_;
  uint64_t count_ = 0, claimed_at_ = 0;
  std::map<StageId, uint32_t> given_up_at_;
};

}  // namespace

void DaemonMain(Process& self, SimNode& node) { Daemon(self, node).Run(); }

}  // namespace holdfast::sim
