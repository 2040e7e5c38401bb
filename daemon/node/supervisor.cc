// SPDX-License-Identifier: Apache-2.0
#include "daemon/node/supervisor.h"

#include <signal.h>

#include <memory>
#include <optional>

#include "daemon/node/process.h"
#include "daemon/node/worker_args.h"
#include "daemon/transport/sockets.h"

namespace holdfast {
namespace {

constexpr int kTickMs = 50;
constexpr uint64_t kProgressNs = 200'000'000, kSecondNs = 1'000'000'000;

struct Worker {
  StagePlan plan;
  StageProgress view;
  RestartLadder ladder{WorkerSize{}};
  OomCounters oom_at_start;
  uint64_t commits_at_start = 0;       // samples + units done when it was started: its yardstick of progress
  uint32_t attempt = 0;
  bool sealed = false;
  std::optional<WorkerReport> failure;  // its last words
};

class Supervisor {
 public:
  Supervisor(RunState& state, const Clock& clock, const SupervisorOptions& options)
      : state_(state), clock_(clock), options_(options) {}

  Result<std::vector<StageProgress>> Run() {
    HOLDFAST_ASSIGN(control_, Socket::Open(context_, Socket::Kind::kRouter, ControlEndpoint(options_.incarnation), kControlBytesMax));
    Prepare();
    Status outcome = StartAll();
    while (outcome.ok() && !AllSealed()) outcome = Turn();
    if (!outcome.ok()) StopAll();
    Publish(/*force=*/true);
    if (!outcome.ok()) return outcome.error();
    return Views();
  }

 private:
  void Prepare() {
    for (const StagePlan& plan : state_.plan().stages) {
      Worker w;
      w.plan = plan;
      w.ladder = RestartLadder(options_.sizes.at(plan.stage));
      w.view.stage = plan.stage;
      w.view.first_layer = plan.first_layer;
      w.view.last_layer = plan.last_layer;
      w.view.samples_total = state_.job().samples;
      w.view.size = w.ladder.size();
      const auto known = state_.stages().find(plan.stage);
      w.sealed = known != state_.stages().end() && known->second.seal.has_value();
      if (w.sealed) {
        w.view.phase = "done";
        w.view.samples_done = w.view.samples_total;
      }
      workers_.push_back(std::move(w));
    }
  }

  Status StartAll() {
    for (Worker& w : workers_) {
      if (!w.sealed) HOLDFAST_TRY(Start(&w, options_.reason));
    }
    return OkStatus();
  }

  Status Start(Worker* w, const std::string& reason) {
    WorkerArgs args;
    args.run_dir = state_.layout().root();
    args.stage = w->plan.stage.value;
    args.attempt = w->attempt;
    args.reason = reason;
    args.node = options_.node;
    args.supervisor = options_.incarnation;
    args.device = options_.device;
    args.size = w->ladder.size();
    // A fail-point set from outside fires in the first life of a worker only, or it would fire in every one.
    const std::vector<std::string> drop = w->attempt == 0 ? std::vector<std::string>{} : std::vector<std::string>{"HOLDFAST_FAIL"};
    w->oom_at_start = ReadOomCounters();
    w->commits_at_start = w->view.samples_done + w->view.units_done;
    w->failure.reset();
    HOLDFAST_ASSIGN(const pid_t pid, SpawnChild(options_.worker_binary, args.Encode(), drop));
    w->view.pid = pid;
    w->view.size = args.size;
    w->view.phase = "start";
    return OkStatus();
  }

  Status Turn() {
    WaitReadable({control_.get()}, -1, kTickMs);
    DrainReports();
    if (options_.stop_signal != nullptr && options_.stop_signal->load() != 0) {
      return Stopped("asked to stop by signal " + std::to_string(options_.stop_signal->load()));
    }
    for (Worker& w : workers_) {
      if (w.view.pid == 0) continue;
      if (const auto end = ReapChild(static_cast<pid_t>(w.view.pid))) {
        DrainReports();  // its last words may lie in the socket
        HOLDFAST_TRY(OnEnd(&w, *end));
      }
    }
    if (options_.on_tick && clock_.MonotonicNs() - last_tick_ns_ >= kSecondNs) {
      last_tick_ns_ = clock_.MonotonicNs();
      HOLDFAST_TRY(options_.on_tick());
    }
    Publish(/*force=*/false);
    return OkStatus();
  }

  void DrainReports() {
    while (auto frames = control_->Receive()) {
      if (frames->size() != 2) continue;
      auto report = WorkerReport::Decode(AsText((*frames)[1]));
      if (!report.ok()) continue;
      for (Worker& w : workers_) {
        if (w.plan.stage.value == report->stage && w.attempt == report->attempt) Take(&w, *report);
      }
    }
  }

  static void Take(Worker* w, const WorkerReport& r) {
    StageProgress& v = w->view;
    v.phase = r.phase;
    v.samples_done = r.samples_done;
    v.units_done = r.units_done;
    v.units_total = r.units_total;
    v.bytes_read = r.bytes_read;
    v.bytes_written = r.bytes_written;
    v.rss_bytes = r.rss_bytes;
    v.rss_peak_bytes = std::max(v.rss_peak_bytes, r.rss_bytes);
    v.cuts_received = r.cuts_received;
    v.cuts_from_packs = r.cuts_from_packs;
    v.chunks_dropped = r.chunks_dropped;
    if (r.kind == WorkerReport::Kind::kFailed) w->failure = r;
  }

  Status OnEnd(Worker* w, const ChildEnd& end) {
    w->view.pid = 0;
    if (end.exited && end.code == kExitDone) {
      w->sealed = true;
      w->view.phase = "done";
      return OkStatus();
    }
    const std::string stage = "stage " + std::to_string(w->plan.stage.value);
    const std::string said = w->failure ? w->failure->error : "";
    if (end.exited && end.code == kExitRefused) return InvalidArgument(said.empty() ? stage + " refused its input" : said);
    if (end.exited && end.code == kExitStopped) {
      if (w->failure && w->failure->error_code == ErrorCodeName(ErrorCode::kResourceExhausted)) return Exhausted(said);
      return Fenced(said.empty() ? stage + " was stopped from outside" : said);
    }
    return Restart(w, stage, end, said);
  }

  Status Restart(Worker* w, const std::string& stage, const ChildEnd& end, const std::string& said) {
    const bool oom = (end.exited && end.code == kExitOutOfMemory) ||
                     (!end.exited && end.code == SIGKILL && ReadOomCounters() != w->oom_at_start);
    const DeathCause cause = oom ? DeathCause::kOutOfMemory : end.exited ? DeathCause::kCrash : DeathCause::kSignal;
    w->view.last_death = oom ? "out of memory" : (end.exited ? "exit " : "signal ") + std::to_string(end.code);
    if (end.exited && end.code == 127) return Internal("cannot run " + options_.worker_binary + ": build it, or reinstall holdfast");
    const bool progress = w->view.samples_done + w->view.units_done > w->commits_at_start;
    const WorkerSize before = w->ladder.size();
    const RestartLadder::Decision d = w->ladder.OnDeath(cause, progress);
    w->view.restarts = w->ladder.restarts();
    w->view.out_of_memory = w->ladder.out_of_memory();
    const std::string death = stage + " worker died (" + w->view.last_death + (said.empty() ? "" : ": " + said) + ")";
    if (!d.restart) return Internal(death + "; " + d.advice);
    std::string how = "restarting";
    if (d.size != before) {
      how += " one step smaller: " + std::to_string(d.size.window) + " samples in flight, " + std::to_string(d.size.threads) + " threads";
    }
    if (options_.on_event) options_.on_event(death + "; " + how);
    ++w->attempt;
    return Start(w, oom ? "out_of_memory" : w->view.last_death);
  }

  // Asks every worker to finish its commit; those that do not within the bound are killed (the ledger does not mind).
  void StopAll() {
    for (Worker& w : workers_) {
      if (w.view.pid != 0) ::kill(static_cast<pid_t>(w.view.pid), SIGTERM);
    }
    const uint64_t deadline = clock_.MonotonicNs() + options_.drain_ms_max * 1'000'000;
    while (AnyRunning() && clock_.MonotonicNs() < deadline) {
      WaitReadable({control_.get()}, -1, kTickMs);
      DrainReports();
      ReapAll();
    }
    for (Worker& w : workers_) {
      if (w.view.pid != 0) ::kill(static_cast<pid_t>(w.view.pid), SIGKILL);
    }
    while (AnyRunning()) {
      WaitReadable({control_.get()}, -1, kTickMs);
      ReapAll();
    }
  }

  void ReapAll() {
    for (Worker& w : workers_) {
      if (w.view.pid != 0 && ReapChild(static_cast<pid_t>(w.view.pid))) w.view.pid = 0;
    }
  }

  bool AnyRunning() const {
    for (const Worker& w : workers_) {
      if (w.view.pid != 0) return true;
    }
    return false;
  }

  bool AllSealed() const {
    for (const Worker& w : workers_) {
      if (!w.sealed) return false;
    }
    return true;
  }

  std::vector<StageProgress> Views() const {
    std::vector<StageProgress> views;
    for (const Worker& w : workers_) views.push_back(w.view);
    return views;
  }

  void Publish(bool force) {
    const uint64_t now = clock_.MonotonicNs();
    if (!options_.on_progress || (!force && now - last_publish_ns_ < kProgressNs)) return;
    last_publish_ns_ = now;
    options_.on_progress(Views());
  }

  RunState& state_;
  const Clock& clock_;
  const SupervisorOptions& options_;
  Context context_;
  std::unique_ptr<Socket> control_;
  std::vector<Worker> workers_;
  uint64_t last_tick_ns_ = 0, last_publish_ns_ = 0;
};

}  // namespace

Result<std::vector<StageProgress>> RunStages(RunState& state, const Clock& clock, const SupervisorOptions& options) {
  Supervisor supervisor(state, clock, options);
  return supervisor.Run();
}

}  // namespace holdfast
