// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/cluster.h"

#include <algorithm>

#include "daemon/worker/exit_code.h"
#include "ledger/format/layout.h"
#include "ledger/log/stream.h"

namespace holdfast::sim {
namespace {

constexpr uint64_t kFencedRetryNs = 5 * kSecond, kSpaceRetryNs = 5 * kSecond, kRestartNs = 500 * kMs, kDaemonRestartNs = 2 * kSecond;

}  // namespace

ProcessFiles::ProcessFiles(SimNode& node, Process& process, Tape* tape) : plain_(node.kernel, process) {
  if (node.cluster.options.wrap) wrapped_ = node.cluster.options.wrap(plain_);
  if (tape != nullptr) taped_ = MakeTapeFs(fs(), *tape);
}

// ---- cluster ----

Cluster::Cluster(ClusterOptions o) : world(o.seed, o.trace), server(o.kind, Mix(o.seed, 2)), options(std::move(o)) {
  server.faults = &world.faults;
  for (const NodeOptions& n : options.nodes) nodes[n.name] = std::make_unique<SimNode>(*this, n, Mix(options.seed, 100 + nodes.size()));
}

Cluster::~Cluster() {
  for (auto& [name, node] : nodes) node->PowerOff();
}

// By hand of an operator whose machine does not fail.
void Cluster::Submit() {
  NfsFs fs(server);
  HOLDFAST_CHECK(fs.MakeDirs("/nfs/out").ok());
  MakeSource(fs, options.shape);
  Incarnation self;
  Random random(Mix(options.seed, 3));
  Nonce uuid;
  for (uint8_t& b : uuid.bytes) b = static_cast<uint8_t>(random.Next());
  for (uint8_t& b : self.nonce.bytes) b = static_cast<uint8_t>(random.Next());
  self.node = "operator";
  const RunLayout layout{kRunDir};
  HOLDFAST_CHECK(fs.MakeDirs(layout.TmpDir(self.nonce)).ok());
  // In a process, so that the nonces that it draws are this seed's.
  const auto operator_process = world.Spawn("operator", [&](Process& process) {
    const int64_t exact = 0;
    NodeClock clock(world, process, exact);
    HOLDFAST_CHECK(EnsureFormat(fs, layout, self.nonce, options.shape.skip > 0 ? kIncompatOmissions : 0).ok());
    NewJob job = DescribeJob(fs, options.shape, uuid);
    job.records.push_back(MakeControl({RecordClass::kIncarnation, 0, 0, 0, 0}, self.ToJson()));
    StreamWriter::Options o;
    o.job = uuid;
    o.claim = {.epoch = 0, .incarnation = self.nonce, .node = "operator", .reason = "submit", .pid = 0, .numerics = {}};
    StreamReader reader(fs, layout, RunLayout::JobStream(), uuid);
    const auto writer = StreamWriter::Open(fs, layout, clock, &reader, [](const Record&, const Slot&) { return OkStatus(); }, o, job.records);
    HOLDFAST_CHECK(writer.ok() && (*writer)->ReleaseStream("submitted").ok());
  }, [] {});
  while (!operator_process->finished()) HOLDFAST_CHECK(world.Step());
  server.WriteBack();
}

void Cluster::Acknowledged(Ack ack) {
  world.Trace("ack", ack.stream + " epoch " + std::to_string(ack.epoch) + " class " + std::to_string(static_cast<int>(ack.key.cls)) + " a " + std::to_string(ack.key.a) +
                         " b " + std::to_string(ack.key.b));
  claims += ack.key.cls == RecordClass::kClaim;
  acks_.push_back(std::move(ack));
}

void Cluster::JobFailed(const std::string& why) {
  if (failed_.empty()) failed_ = why;
  world.Trace("job", "failed: " + why);
}

void Cluster::Damaged(const std::string& who, const Error& error) {
  world.Trace(who, "reads damage: " + error.message);
  if (server.kind() == NfsServer::Export::kSync) world.Violation(who + " was told of damage that nothing explains: " + error.message);
}

// ---- network ----

bool Cluster::Lost() {
  const bool lost = world.random().Chance(net.loss);
  if (lost) world.faults.Add(Fault::kMessageLost);
  return lost;
}

uint64_t Cluster::Copies() {
  const bool twice = world.random().Chance(net.duplicate);
  if (twice) world.faults.Add(Fault::kMessageTwice);
  return twice ? 2 : 1;
}

void Cluster::Deliver(uint64_t count, const std::function<void()>& what) {
  for (; count > 0; --count) {
    ++messages;
    world.After(world.random().Below(net.delay_ns_max) + 100'000, what);
  }
}

void Cluster::SendBeat(SimNode& from, const NodeView& view) {
  for (auto& [name, to] : nodes) {
    if (name == from.name() || !from.net_out || Lost()) continue;
    Deliver(Copies(), [this, node = to.get(), view] {
      if (!node->on() || !node->net_in) return;
      ++node->beats_heard;
      const auto it = node->heard.find(view.name);
      if (it != node->heard.end() && it->second.incarnation == view.incarnation && it->second.count >= view.count) {
        if (it->second.count > view.count) world.faults.Add(Fault::kMessageOvertaken);
        return;
      }
      node->heard[view.name] = view;
      node->heard_at[view.name] = world.now();
    });
  }
}

void Cluster::SendCut(SimNode& from, const std::string& endpoint, CutMessage message) {
  if (!from.net_out || Lost()) return;
  Deliver(Copies(), [this, endpoint, message = std::move(message)] {
    for (auto& [name, node] : nodes) {
      if (!node->on() || !node->net_in) continue;
      for (const auto& task : node->tasks) {
        if ("sim://" + task->incarnation.Hex() == endpoint && task->state == TaskState::kRunning) task->mail.push_back(message);
      }
    }
  });
}

// ---- node ----

SimNode::SimNode(Cluster& c, NodeOptions o, uint64_t seed) : cluster(c), options(std::move(o)), kernel(c.world, c.server, seed) {}

void SimNode::StartDaemon() {
  const uint64_t life = ++life_;
  daemon_ = cluster.world.Spawn(name() + "/daemon", [this](Process& p) { DaemonMain(p, *this); }, [this, life] {
    if (life != life_) return;
    cluster.world.After(kDaemonRestartNs, [this, life] {   // as its unit says
      if (life != life_ || !on_) return;
      cluster.world.faults.Add(Fault::kDaemonRestarted);
      LoseDaemon();
    });
  });
}

void SimNode::PowerOn() {
  if (on_) return;
  on_ = true;
  cluster.world.Trace(name(), "power on");
  StartDaemon();
}

void SimNode::KillAll() {
  ++life_;
  if (daemon_) daemon_->Kill();
  for (const auto& list : {tasks, orphans}) {
    for (const auto& task : list) {
      if (task->process) task->process->Kill();
    }
  }
  tasks.clear();
  orphans.clear();
  heard.clear();
  heard_at.clear();
}

void SimNode::PowerOff() {
  if (!on_) return;
  cluster.world.Trace(name(), "power off");
  on_ = false;
  kernel.PowerOff();              // first: what dying processes leave is not written
  KillAll();
  kernel.cut_off = draining = coordinates = false;
  ++cluster.deaths;
}

void SimNode::RestartDaemon() {
  if (!on_) return;
  cluster.world.Trace(name(), "daemon killed and restarted");
  KillAll();
  StartDaemon();
  ++cluster.deaths;
}

void SimNode::LoseDaemon() {
  if (!on_) return;
  cluster.world.Trace(name(), "daemon killed; its children live on");
  ++life_;
  if (daemon_) daemon_->Kill();
  for (auto& task : std::exchange(tasks, {})) orphans.push_back(std::move(task));
  heard.clear();
  heard_at.clear();
  StartDaemon();
  ++cluster.deaths;
}

void SimNode::PauseTask(size_t index, uint64_t ns) {
  if (index >= tasks.size() || !tasks[index]->process || tasks[index]->process->finished()) return;
  cluster.world.Trace(tasks[index]->process->name(), "paused for " + std::to_string(ns / kMs) + " ms");
  cluster.world.faults.Add(Fault::kTaskPaused);
  tasks[index]->process->Pause(true);
  cluster.world.After(ns, [p = tasks[index]->process] { p->Pause(false); });
}

void SimNode::CloneTask(size_t index, SimNode& host) {
  if (index >= tasks.size() || !host.on()) return;
  const SimTask& original = *tasks[index];
  // Whoever has done nothing yet has no memory to clone; nor would the clone ever come to where it gets random numbers of its own.
  if (original.tape == nullptr || original.tape->empty() || original.tape->open_files > 0 || original.tape->replaying() || original.process->finished()) return;
  auto clone = std::make_shared<SimTask>();
  clone->plan = original.plan;
  clone->reason = original.reason;
  clone->as_node = name();
  clone->tape = original.tape->Copy();
  cluster.world.Trace(original.process->name(), "cloned to " + host.name());
  host.orphans.push_back(clone);
  ++cluster.clones;
  cluster.world.faults.Add(Fault::kClone);
  clone->process = cluster.world.Spawn(
      host.name() + "/clone-of-" + original.process->name(),
      [&host, clone](Process& p) {
        clone->tape->on_live = [&p] { p.random() = Random(p.world().random().Next()); };   // getrandom knows that it was resumed
        const Status status = WorkerMain(p, host, *clone);
        host.cluster.world.Trace(p.name(), status.ok() ? "ends well" : "ends: " + status.error().message);
        if (clone->tape->astray()) host.cluster.world.Violation(p.name() + " did not repeat what its original did");
        if (!p.dead() && status.code() == ErrorCode::kInternal && status.error().message.find("FORKED") != std::string::npos) host.cluster.Forked();
      },
      [] {}, original.process->seed());
}

void SimNode::KillTask(size_t index) {
  if (index >= tasks.size() || !tasks[index]->process || tasks[index]->process->finished()) return;
  cluster.world.Trace(name(), "kill -9 of " + tasks[index]->process->name());
  cluster.world.faults.Add(Fault::kTaskKilled);
  ++cluster.deaths;
  tasks[index]->process->Kill();
}

void SimNode::Pause(bool on) {
  cluster.world.Trace(name(), on ? "paused" : "goes on");
  if (daemon_) daemon_->Pause(on);
  for (const auto& list : {tasks, orphans}) {
    for (const auto& task : list) {
      if (task->process) task->process->Pause(on);
    }
  }
}

// ---- children, as a supervisor sees them ----

void StartTask(SimNode& node, const std::shared_ptr<SimTask>& task) {
  task->state = TaskState::kRunning;
  task->commits = 0;
  task->tries_before = task->tries;
  task->stop.store(false);
  task->ended = Stopped("killed");
  task->mail.clear();
  task->tape = node.cluster.options.clonable && !task->merge ? std::make_shared<Tape>() : nullptr;
  const std::string what = task->merge ? "merge" : "stage" + std::to_string(task->plan.stage.value);
  task->process = node.cluster.world.Spawn(
      node.name() + "/" + what,
      [&node, task](Process& p) {
        const Status status = task->merge ? MergeMain(p, node, *task) : WorkerMain(p, node, *task);
        if (p.dead()) return;
        task->ended = status;
        node.cluster.world.Trace(p.name(), status.ok() ? "ends well" : "ends: " + status.error().message);
        if (status.code() == ErrorCode::kInternal && status.error().message.find("FORKED") != std::string::npos) node.cluster.Forked();
        if (status.code() == ErrorCode::kFenced) node.cluster.world.faults.Add(Fault::kFenced);
        if (status.code() == ErrorCode::kCorrupt) node.cluster.Damaged(p.name(), status.error());
      },
      [&node, task] { EndTask(node, task); });
}

// Supervisor::OnEnd and TaskRunner::Learn, without processes.
void EndTask(SimNode& node, const std::shared_ptr<SimTask>& task) {
  if (std::find(node.tasks.begin(), node.tasks.end(), task) == node.tasks.end()) return;   // its daemon is gone
  const uint64_t now = node.cluster.world.now();
  const bool killed = task->process->dead();
  const int code = killed ? -9 : ExitCodeOf(task->ended);
  if (code == kExitDone) return void(task->state = TaskState::kDone);
  if (code == kExitRefused) return void(task->state = TaskState::kRefused);
  if (code == kExitStopped) {
    const bool space = task->ended.code() == ErrorCode::kResourceExhausted, asked = task->stop.load() && task->ended.code() != ErrorCode::kFenced;
    if (space) node.cluster.world.faults.Add(Fault::kWaitedForSpace);
    task->state = space ? TaskState::kNoSpace : asked ? TaskState::kStopped : TaskState::kFenced;
    task->retry_at = now + (space ? kSpaceRetryNs : kFencedRetryNs);
    return;
  }
  if (task->stop.load()) return void(task->state = TaskState::kStopped);
  const DeathCause cause = code == kExitOutOfMemory ? DeathCause::kOutOfMemory : killed ? DeathCause::kSignal : DeathCause::kCrash;
  const RestartLadder::Decision d = task->ladder.OnDeath(cause, task->commits > 0 || task->tries > task->tries_before);
  if (!d.restart) return void(task->state = TaskState::kGaveUp);
  task->reason = killed ? "signal 9" : "exit " + std::to_string(code);
  node.cluster.world.After(kRestartNs, [&node, task] {
    const bool still = std::find(node.tasks.begin(), node.tasks.end(), task) != node.tasks.end();
    if (still && !task->stop.load() && task->state == TaskState::kRunning && task->process->finished()) StartTask(node, task);
  });
}

}  // namespace holdfast::sim
