// SPDX-License-Identifier: Apache-2.0
#include "daemon/node/supervisor.h"

#include <signal.h>

#include <algorithm>
#include <utility>

#include "daemon/node/process.h"
#include "daemon/transport/sockets.h"
#include "ledger/base/fail_point.h"

namespace holdfast {
namespace {

constexpr int kStopTickMs = 50;

bool IsGpu(const Task& t) { return !t.spec.key.merge && t.spec.device.starts_with("cuda"); }
std::string NameOf(const Task& t) { return t.spec.key.merge ? "merge" : "stage " + std::to_string(t.spec.plan.stage.value); }

struct Child {
  Task task;
  RestartLadder ladder{WorkerSize{}};
  OomCounters oom_at_start;
  uint64_t files_at_start = 0;          // of a merge: done when it was started
  uint64_t passed = 0, passed_at_start = 0; // WorkerReport::passed, likewise: what a life committed just before its end is heard from the next one
  uint64_t tries = 0, tries_at_start = 0;   // WorkerReport::tries of this life, and of the one before: what that one died of may have been a step
  uint32_t attempt = 0;
  uint64_t kill_at_ns = 0;              // when stopping
  std::optional<WorkerReport> failure;  // its last words
  bool told_pause = false;              // what it was last told
  std::optional<ChildEnd> ended;        // reaped, its last words not heard yet
  uint64_t ended_ns = 0;
  pid_t pid() const { return static_cast<pid_t>(task.view.pid); }
};

}  // namespace

struct Supervisor::Impl {
  const Clock& clock;
  Options options;
  Context context;
  std::unique_ptr<Socket> control;
  std::map<TaskKey, Child> children;
  bool changed = false, paused = false;
  std::map<TaskKey, size_t> lives;      // of each task, also over restarts that its owner asked for: whose fail-points hold
  uint32_t attempts = 0;                // numbers the lives of all children, so that a dead one's late report is known as such

  Impl(const Clock& c, Options o) : clock(c), options(std::move(o)) {}

  Status Launch(Child* c, const std::string& reason);
  void DrainReports();
  static void Take(Child* c, const WorkerReport& r);
  void OnEnd(Child* c, const ChildEnd& end);
  void Restart(Child* c, const ChildEnd& end, const std::string& said);
  void End(Child* c, TaskState state, std::optional<Error> error);
  void Reap();
  void Ask(Child* c);
  bool AnyRunning() const;
  void Say(const Child& c, const std::string& text) const {
    if (options.on_event) options.on_event(c.task, text);
  }
};

Status Supervisor::Impl::Launch(Child* c, const std::string& reason) {
  WorkerArgs args;
  args.run_dir = c->task.spec.key.run_dir;
  args.stage = c->task.spec.plan.stage.value;
  args.attempt = c->attempt = attempts++;
  args.reason = reason;
  args.node = options.node;
  args.supervisor = options.incarnation;
  args.device = c->task.spec.device;
  args.size = c->ladder.size();
  args.edge_listen = options.edge_listen;
  args.keys_dir = options.keys_dir;
  args.renaming = options.renaming;
  args.phase_ms = c->task.spec.phase_ms;
  args.rss_peak_bytes = c->task.spec.rss_peak_bytes;
  c->oom_at_start = ReadOomCounters();
  c->task.view.commits = 0;
  c->files_at_start = c->task.spec.key.merge ? c->task.view.units_done : UINT64_MAX;
  c->tries_at_start = c->tries;
  c->passed_at_start = c->passed;
  c->failure.reset();
  c->told_pause = false;
  const char* binary = c->task.spec.key.merge ? "/holdfast-merge" : "/holdfast-worker";
  HOLDFAST_ASSIGN(const pid_t pid, SpawnChild(options.bin_dir + binary, args.Encode(), {{"HOLDFAST_FAIL", FailPointsAfter(lives[c->task.spec.key]++)}}, c->task.spec.log));
  c->task.view.pid = pid;
  c->task.view.size = args.size;
  c->task.view.phase = "start";
  c->task.state = TaskState::kRunning;
  changed = true;
  return OkStatus();
}

void Supervisor::Impl::DrainReports() {
  while (auto frames = control->Receive()) {
    if (frames->size() != 2) continue;
    auto report = WorkerReport::Decode(AsText((*frames)[1]));
    if (!report.ok()) continue;
    for (auto& [key, c] : children) {
      if (c.attempt != report->attempt || c.task.view.pid == 0) continue;
      Take(&c, *report);
      if (c.told_pause == paused) continue;
      const std::string word = paused ? kPauseWord : kContinueWord;
      if (control->Send({(*frames)[0], AsBytes(word)})) c.told_pause = paused;
    }
  }
}

void Supervisor::Impl::Take(Child* c, const WorkerReport& r) {
  StageProgress& v = c->task.view;
  v.phase = r.phase;
  v.samples_done = r.samples_done;
  if (r.samples_total > 0) v.samples_total = r.samples_total;
  v.commits = r.commits;
  c->tries = r.tries;
  c->passed = r.passed;
  v.units_done = r.units_done;
  v.units_total = r.units_total;
  v.bytes_read = r.bytes_read;
  v.bytes_written = r.bytes_written;
  v.bytes_total = r.bytes_total;
  v.rss_bytes = r.rss_bytes;
  v.rss_peak_bytes = std::max(v.rss_peak_bytes, r.rss_bytes);
  v.cuts_received = r.cuts_received;
  v.cuts_from_packs = r.cuts_from_packs;
  v.chunks_dropped = r.chunks_dropped;
  if (r.kind == WorkerReport::Kind::kFailed) c->failure = r;
}

void Supervisor::Impl::End(Child* c, TaskState state, std::optional<Error> error) {
  c->task.state = state;
  c->task.error = std::move(error);
  c->task.stopping = false;
  changed = true;
}

void Supervisor::Impl::OnEnd(Child* c, const ChildEnd& end) {
  c->task.view.pid = 0;
  if (end.exited && end.code == kExitDone) {
    c->task.view.phase = "done";
    return End(c, TaskState::kDone, std::nullopt);
  }
  const std::string said = c->failure ? c->failure->error : "";
  const std::string code = c->failure ? c->failure->error_code : "";
  if (end.exited && end.code == kExitRefused) {
    ErrorCode kind = ErrorCode::kInvalidArgument;
    for (const ErrorCode k : {ErrorCode::kUnsupported, ErrorCode::kNotFound}) kind = code == ErrorCodeName(k) ? k : kind;
    return End(c, TaskState::kRefused, Error{kind, said.empty() ? NameOf(c->task) + " refused its input" : said});
  }
  if (end.exited && end.code == kExitStopped) {
    if (code == ErrorCodeName(ErrorCode::kResourceExhausted)) return End(c, TaskState::kNoSpace, Exhausted(said));
    if (c->task.stopping && code != ErrorCodeName(ErrorCode::kFenced)) return End(c, TaskState::kStopped, std::nullopt);
    return End(c, TaskState::kFenced, Fenced(said.empty() ? NameOf(c->task) + " was stopped from outside" : said));
  }
  if (c->task.stopping) return End(c, TaskState::kStopped, std::nullopt);
  Restart(c, end, said);
}

void Supervisor::Impl::Restart(Child* c, const ChildEnd& end, const std::string& said) {
  const bool oom = (end.exited && end.code == kExitOutOfMemory) ||
                   (!end.exited && end.code == SIGKILL && ReadOomCounters() != c->oom_at_start);
  const DeathCause cause = oom ? DeathCause::kOutOfMemory : end.exited ? DeathCause::kCrash : DeathCause::kSignal;
  c->task.view.last_death = oom ? "out of memory" : (end.exited ? "exit " : "signal ") + std::to_string(end.code);
  if (end.exited && end.code == 127) {
    return End(c, TaskState::kGaveUp, Internal("cannot run " + options.bin_dir + (c->task.spec.key.merge ? "/holdfast-merge" : "/holdfast-worker") + ": build it, or reinstall holdfast"));
  }
  const bool progress = c->task.view.commits > 0 || c->task.view.units_done > c->files_at_start || c->tries > c->tries_at_start || c->passed > c->passed_at_start;
  const WorkerSize before = c->ladder.size();
  const RestartLadder::Decision d = c->ladder.OnDeath(cause, progress);
  c->task.view.restarts = c->ladder.restarts();
  c->task.view.out_of_memory = c->ladder.out_of_memory();
  const std::string& device = c->task.spec.device;
  const bool one_of_some = !c->task.spec.key.merge && device != "cpu" && !device.empty();
  const std::string death = NameOf(c->task) + " worker" + (one_of_some ? " on " + device : "") + " died (" + c->task.view.last_death + (said.empty() ? "" : ": " + said) + ")";
  if (!d.restart) {
    const std::string blame = IsGpu(c->task) && !oom ? "; where the device is at fault (`nvidia-smi`, Xid among the kernel's messages), leave " + device + " out of --device" : "";
    return End(c, TaskState::kGaveUp, Internal(death + "; " + d.advice + blame));
  }
  std::string how = "restarting";
  if (d.size != before) {
    how += " one step smaller: " + std::to_string(d.size.window) + " samples in flight, " + std::to_string(d.size.threads) + " threads";
    const StagePlan& stage = c->task.spec.plan;
    if (d.size.layers < stage.last_layer - stage.first_layer) how += ", at most " + std::to_string(d.size.layers) + " layers at once";
  }
  Say(*c, death + "; " + how);
  const Status started = Launch(c, oom ? kReasonOutOfMemory : c->task.view.last_death);
  if (!started.ok()) End(c, TaskState::kGaveUp, started.error());
}

void Supervisor::Impl::Ask(Child* c) {
  if (c->task.stopping || c->task.view.pid == 0) return;
  c->task.stopping = true;
  c->kill_at_ns = clock.MonotonicNs() + options.drain_ms_max * 1'000'000;
  if (!c->ended) ::kill(c->pid(), SIGTERM);
}

void Supervisor::Impl::Reap() {
  for (auto& [key, c] : children) {
    if (c.task.view.pid == 0) continue;
    if (!c.ended) {
      if (c.task.stopping && clock.MonotonicNs() > c.kill_at_ns) ::kill(c.pid(), SIGKILL);
      c.ended = ReapChild(c.pid());
      c.ended_ns = clock.MonotonicNs();
    }
    if (!c.ended) continue;
    DrainReports();
    // Who ends by itself for a reason says it; on a busy machine the kernel tells of the end before the socket has the words.
    const bool speaks = c.ended->exited && c.ended->code != kExitDone && c.ended->code != kExitOutOfMemory && c.ended->code != 127;
    if (speaks && !c.failure && clock.MonotonicNs() - c.ended_ns < options.last_words_ms * 1'000'000) continue;
    OnEnd(&c, *std::exchange(c.ended, std::nullopt));
  }
}

bool Supervisor::Impl::AnyRunning() const {
  return std::any_of(children.begin(), children.end(), [](const auto& c) { return c.second.task.view.pid != 0; });
}

Supervisor::Supervisor(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Result<std::unique_ptr<Supervisor>> Supervisor::Make(const Clock& clock, Options options) {
  auto impl = std::make_unique<Impl>(clock, std::move(options));
  HOLDFAST_ASSIGN(impl->control, Socket::Open(impl->context, Socket::Kind::kRouter, ControlEndpoint(impl->options.incarnation), kControlBytesMax));
  return std::unique_ptr<Supervisor>(new Supervisor(std::move(impl)));
}

Supervisor::~Supervisor() {
  for (auto& [key, c] : impl_->children) {
    if (c.task.view.pid != 0 && !c.ended) ::kill(c.pid(), SIGKILL);
  }
  while (impl_->AnyRunning()) {
    for (auto& [key, c] : impl_->children) c.task.stopping = true;
    WaitReadable({impl_->control.get()}, -1, kStopTickMs);
    impl_->Reap();
  }
}

Status Supervisor::Start(const TaskSpec& spec) {
  Child& c = impl_->children[spec.key];
  if (c.task.view.pid != 0) return Error{ErrorCode::kAlreadyExists, NameOf(c.task) + " is running already"};
  const bool same_size = c.task.spec.size == spec.size;
  const StageProgress before = c.task.view;
  c.task = Task{};
  c.task.spec = spec;
  // What the ladder learned on this node stays true for the same size.
  if (!same_size || c.ladder.size() == WorkerSize{}) c.ladder = RestartLadder(spec.size);
  StageProgress& v = c.task.view;
  v.stage = spec.plan.stage;
  v.first_layer = spec.plan.first_layer;
  v.last_layer = spec.plan.last_layer;
  v.samples_total = spec.samples_total;
  v.samples_done = spec.samples_done;
  v.restarts = before.restarts;
  v.out_of_memory = before.out_of_memory;
  v.last_death = before.last_death;
  v.rss_peak_bytes = before.rss_peak_bytes;
  return impl_->Launch(&c, spec.reason);
}

void Supervisor::Stop(const TaskKey& key) {
  const auto it = impl_->children.find(key);
  if (it != impl_->children.end()) impl_->Ask(&it->second);
}

void Supervisor::Pause(bool on) { impl_->paused = on; }   // each hears it in answer to its next report

void Supervisor::Forget(const TaskKey& key) {
  const auto it = impl_->children.find(key);
  if (it != impl_->children.end() && it->second.task.view.pid == 0) impl_->children.erase(it);
}

bool Supervisor::Poll(int timeout_ms, int event_fd) {
  impl_->changed = false;
  WaitReadable({impl_->control.get()}, event_fd, timeout_ms);
  impl_->DrainReports();
  impl_->Reap();
  return impl_->changed;
}

void Supervisor::StopAll() {
  for (auto& [key, c] : impl_->children) impl_->Ask(&c);
  while (impl_->AnyRunning()) Poll(kStopTickMs);
}

std::vector<const Task*> Supervisor::tasks() const {
  std::vector<const Task*> all;
  for (const auto& [key, c] : impl_->children) all.push_back(&c.task);
  return all;
}

const Task* Supervisor::Find(const TaskKey& key) const {
  const auto it = impl_->children.find(key);
  return it == impl_->children.end() ? nullptr : &it->second.task;
}

bool Supervisor::AnyRunning() const { return impl_->AnyRunning(); }

std::vector<StageProgress> Supervisor::Views() const {
  std::vector<StageProgress> views;
  for (const auto& [key, c] : impl_->children) {
    if (!key.merge) views.push_back(c.task.view);
  }
  std::sort(views.begin(), views.end(), [](const auto& a, const auto& b) { return a.first_layer < b.first_layer; });
  return views;
}

}  // namespace holdfast
