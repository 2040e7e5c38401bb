// SPDX-License-Identifier: Apache-2.0
//
// jobctl run / resume: check everything, claim the job, supervise the stages, merge, report. One path for a first start, a resume and
// "already done": fold the ledger, then do whatever is not there yet.
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <memory>
#include <set>
#include <thread>

#include "daemon/node/job_driver.h"
#include "daemon/node/process.h"
#include "daemon/node/supervisor.h"
#include "jobctl/options.h"
#include "jobctl/preflight.h"
#include "jobctl/progress.h"
#include "jobctl/report.h"
#include "jobctl/run_plan.h"

namespace holdfast {
namespace {

constexpr uint64_t kLookNs = 1'000'000'000;          // how often the ledger is folded while nothing happens
constexpr int kTickMs = 50, kStartTickMs = 5;
constexpr uint64_t kForeignWatchMs = 150'000;        // how long an owner on another machine may be silent

std::atomic<int> g_signal{0};          // a signal handler can reach nothing but globals
std::atomic<bool> g_stop{false};
void OnSignal(int sig) {
  g_signal.store(sig);
  g_stop.store(true);
}

void CatchSignals() {
  struct sigaction action {};
  action.sa_handler = OnSignal;
  ::sigaction(SIGINT, &action, nullptr);
  ::sigaction(SIGTERM, &action, nullptr);
  ::sigaction(SIGHUP, &action, nullptr);
  ::signal(SIGPIPE, SIG_IGN);
}

// The same work can simply be asked for again.
bool IsResumable(ErrorCode code) { return ExitStatusOf(code) == kExitResumable; }

Progress::Mode ModeOf(const RunOptions& o) {
  if (o.json) return Progress::Mode::kJson;
  if (o.quiet) return Progress::Mode::kQuiet;
  return ::isatty(STDERR_FILENO) == 1 ? Progress::Mode::kTerminal : Progress::Mode::kPlain;
}

// Nothing to gather, nobody to suspect: the one node is this process.
CoordinatorPolicy OneNode(const std::string& run_dir) {
  CoordinatorPolicy policy;
  policy.job = run_dir;
  policy.gather_ns = 0;
  policy.version = HOLDFAST_VERSION;
  return policy;
}

class RunJob {
 public:
  explicit RunJob(const RunOptions& options)
      : options_(options), progress_(clock_, ModeOf(options)),
        driver_(fs_, clock_, RunLayout(options.run_dir), {.self = {}, .policy = OneNode(options.run_dir), .stages_given = true, .on = {}, .reproducible = false,
                .on_say = {}}) {
    threads_ = options.threads > 0 ? options.threads : std::max(1u, std::thread::hardware_concurrency());
  }
  Result<int> Run();
  bool recorded() const { return recorded_; }   // the job record is in the ledger

 private:
  Status Fold(bool* exists);
  Status RefuseWhileOthersWork();
  Status MayTakeOver(const Claim& current);
  Result<int> AlreadyDone();
  bool OutputIsOurs();
  Status RefuseWithoutPacks();
  Status ChooseDevicesFor(bool exists);
  Status PrepareNew();
  Status PrepareResume();
  StreamWriter::Options ClaimOptions(const Nonce& job) const;
  Status ClaimJob(std::vector<Record> records);
  Status Begin();
  void ShowPlan(uint64_t checked_ms);
  Status Work();
  Status Turn(Supervisor& node);
  Status Judge(const Supervisor& node) const;
  Status StartMine(Supervisor& node);
  NodeView Self();
  void TellOmissions();
  void CleanUp();

  const RunOptions options_;
  PosixFileSystem fs_;
  RealClock clock_;
  Progress progress_;
  JobDriver driver_;
  RunState& state_ = driver_.state();
  uint32_t threads_ = 1;
  std::vector<Device> devices_;
  uint32_t stage_threads_ = 1;
  bool fresh_ = false;
  bool recorded_ = false;
  NewJob new_job_;
  DecoderSpec decoder_;
  Plan plan_;
  bool plan_changed_ = false;
  ResourcePlan resources_;
  RunPlan planned_;
  Incarnation self_;
  std::unique_ptr<StreamReader> fresh_reader_;   // of a new job: its uuid is not in any fold yet. Outlives the writer
  std::unique_ptr<StreamWriter> job_writer_;
  uint64_t looked_ns_ = 0, beats_ = 0;
  std::set<uint32_t> told_omitted_;
  Json report_;
};

// Reads what is there. `exists` = there is a job. A directory that is not ours is refused.
Status RunJob::Fold(bool* exists) {
  *exists = false;
  const auto names = fs_.List(options_.run_dir);
  if (!names.ok()) {
    if (names.code() == ErrorCode::kNotFound) return OkStatus();
    return InvalidArgument("--run-dir " + options_.run_dir + ": " + names.error().message);
  }
  const bool ours = std::find(names->begin(), names->end(), "FORMAT") != names->end();
  const bool only_ours = std::all_of(names->begin(), names->end(), [](const std::string& n) { return n == "tmp" || n == "log" || n == "pack"; });
  if (!ours && !only_ours) {
    return InvalidArgument("--run-dir " + options_.run_dir + " exists and is not a run directory of holdfast; choose another with --run-dir");
  }
  if (!ours) return OkStatus();
  const Status read = state_.Refresh();
  if (read.code() == ErrorCode::kNotFound) return OkStatus();
  HOLDFAST_TRY(read);
  *exists = true;
  return OkStatus();
}

Status RunJob::MayTakeOver(const Claim& current) {
  const auto& all = state_.incarnations();
  const auto who = std::find_if(all.begin(), all.end(), [&](const Incarnation& i) { return i.nonce == current.incarnation; });
  if (who == all.end()) return OkStatus();
  const Liveness life = ProbeIncarnation(*who);
  if (life == Liveness::kDead || life == Liveness::kRebooted) return OkStatus();
  const std::string where = "process " + std::to_string(who->pid) + " on " + who->hostname;
  if (life == Liveness::kAlive) {
    return InvalidArgument(options_.run_dir + ": " + where + " is working on this run; watch it with `jobctl status " + options_.run_dir +
                           " --follow`, or stop it with `kill -TERM " + std::to_string(who->pid) + "`");
  }
  progress_.Event("owner was " + where + ", another machine: watching for " + std::to_string(kForeignWatchMs / 1000) + " s whether it still works");
  StreamReader watch(fs_, state_.layout(), RunLayout::JobStream(), state_.job().uuid);
  const auto ignore = [](const Record&, const Slot&) { return OkStatus(); };
  HOLDFAST_TRY(watch.Poll(ignore));
  const uint32_t tail = watch.state().next_seq;
  for (uint64_t waited = 0; waited < kForeignWatchMs; waited += 1000) {
    if (g_stop) return Stopped("asked to stop");
    clock_.SleepMs(1000);
    HOLDFAST_TRY(watch.Poll(ignore));
    if (watch.state().next_seq != tail) return InvalidArgument(options_.run_dir + ": " + where + " is working on this run; stop it there first");
  }
  return OkStatus();
}

Status RunJob::RefuseWhileOthersWork() {
  const StreamState& job = state_.job_stream();
  return job.epoch == 0 || job.released ? OkStatus() : MayTakeOver(job.claim);
}

bool RunJob::OutputIsOurs() {
  const auto sums = fs_.ReadFile(JoinPath(state_.job().out, "SHA256SUMS"), 64u << 20);
  return sums.ok() && state_.done() && Sha256(*sums) == state_.done()->manifest;
}

// A job that is done, whose output is gone or changed, is written again from its packs. `jobctl gc` may have removed those.
Status RunJob::RefuseWithoutPacks() {
  uint64_t missing = 0;
  for (const UnitPlan& u : state_.plan().units) {
    const LayerRecord* e = state_.Layer(u.id);
    for (size_t i = 0; e != nullptr && i < e->packs.size(); ++i) missing += fs_.Stat(state_.layout().Pack(e->packs[i].root)).code() == ErrorCode::kNotFound ? 1 : 0;
  }
  if (missing == 0) return OkStatus();
  return InvalidArgument(state_.job().out + " is not there as it was published, and " + std::to_string(missing) + " packs from which it would be written again are gone (`jobctl gc`?): put the output back, or `jobctl fsck " +
                         options_.run_dir + " --repair` opens the work on them again, and `jobctl resume " + options_.run_dir + "` does it");
}

Result<int> RunJob::AlreadyDone() {
  report_ = state_.done()->report;
  progress_.EventJson({{"event", "done"}, {"already", true}, {"report", report_}});
  if (!options_.json) std::printf("already done\n%s", RenderReport(report_).c_str());
  return kExitOk;
}

Status RunJob::PrepareNew() {
  if (options_.resume) return NotFound(options_.run_dir + ": no job here; begin one with `jobctl run --source ... --calib ... --out ...`");
  HOLDFAST_ASSIGN(const bool taken, fs_.Exists(options_.out));
  if (taken) {
    return Error{ErrorCode::kAlreadyExists, "--out " + options_.out + " exists and was not made by this run; move it away, or choose another --out"};
  }
  fresh_ = true;
  HOLDFAST_ASSIGN(new_job_, PrepareNewJob(fs_, options_, NumericsOf(devices_), threads_));
  decoder_ = new_job_.decoder;
  plan_ = new_job_.plan;
  HOLDFAST_ASSIGN(const auto ranges, CutFor(options_, decoder_, plan_, new_job_.spec.seq_len, stage_threads_, &devices_));
  plan_.stages = NumberStages(nullptr, ranges);
  HOLDFAST_ASSIGN(resources_, PlanResources(options_, decoder_, plan_, new_job_.spec, devices_, stage_threads_));
  return CheckSpace(fs_, resources_, options_.run_dir, options_.out);
}

Status RunJob::PrepareResume() {
  const JobSpec& job = state_.job();
  if (!driver_.AllSealed()) HOLDFAST_TRY(CheckSourceUnchanged(fs_, job, threads_));
  const std::string config_path = JoinPath(job.source, "config.json");
  HOLDFAST_ASSIGN(const Bytes config_bytes, fs_.ReadFile(config_path, 64u << 20));
  HOLDFAST_ASSIGN(const Json config, ParseJson(AsText(config_bytes), config_path));
  HOLDFAST_ASSIGN(decoder_, ParseDecoder(config, config_path));
  plan_ = state_.plan();
  if (options_.stages || !options_.shard_layers.empty()) {
    HOLDFAST_ASSIGN(const auto ranges, CutStages(plan_.layers, options_.shard_layers, options_.stages.value_or(1)));
    const auto stages = NumberStages(&state_, ranges);
    plan_changed_ = stages.size() != plan_.stages.size() ||
                    !std::equal(stages.begin(), stages.end(), plan_.stages.begin(), [](const StagePlan& a, const StagePlan& b) { return a.stage == b.stage; });
    plan_.stages = stages;
    if (plan_changed_) ++plan_.number;
  }
  HOLDFAST_ASSIGN(resources_, PlanResources(options_, decoder_, plan_, job, devices_, stage_threads_));
  uint64_t have = 0;
  for (const UnitPlan& u : plan_.units) {
    const LayerRecord* e = state_.Layer(u.id);
    for (size_t i = 0; e != nullptr && i < e->packs.size(); ++i) have += e->packs[i].file_size;
  }
  resources_.disk_run -= std::min(resources_.disk_run, have);
  if (plan_.stages.size() < devices_.size() && !driver_.AllSealed()) {
    progress_.Event("note: this job was cut into " + std::to_string(plan_.stages.size()) + " stage(s), there are " + std::to_string(devices_.size()) + " devices; --stages " +
                    std::to_string(devices_.size()) + " cuts what is left anew");
  }
  return CheckSpace(fs_, resources_, options_.run_dir, job.out);
}

// What every claim of this process says.
StreamWriter::Options RunJob::ClaimOptions(const Nonce& job) const {
  StreamWriter::Options options;
  options.job = job;
  options.claim.incarnation = self_.nonce;
  options.claim.node = self_.node;
  options.claim.reason = fresh_ ? "start" : "resume";
  options.claim.pid = self_.pid;
  options.claim.numerics = NumericsOf(devices_);
  return options;
}

// Claims the job stream with `records` in the same slot: J, tokens and P for a new job, P for a new cut of an old one.
Status RunJob::ClaimJob(std::vector<Record> records) {
  const Nonce uuid = fresh_ ? new_job_.spec.uuid : state_.job().uuid;
  records.push_back(MakeControl({.cls = RecordClass::kIncarnation, .a = static_cast<uint32_t>(state_.incarnations().size())}, self_.ToJson()));
  StreamWriter::Options options = ClaimOptions(uuid);
  options.may_take_over = [this](const Claim& current) -> Status {
    HOLDFAST_TRY(state_.Refresh());
    return MayTakeOver(current);
  };
  if (fresh_) fresh_reader_ = std::make_unique<StreamReader>(fs_, state_.layout(), RunLayout::JobStream(), uuid);
  StreamReader* known = fresh_ ? fresh_reader_.get() : state_.ReaderOf(RunLayout::JobStream());
  auto writer = StreamWriter::Open(fs_, state_.layout(), clock_, known, [this](const Record& r, const Slot& s) -> Status {
    return fresh_ ? OkStatus() : state_.Apply(RunLayout::JobStream(), r, s);
  }, options, std::move(records));
  if (!writer.ok() && fresh_) {   // somebody else may have begun a job here a moment ago
    RunState other(fs_, state_.layout());
    if (other.Refresh().ok()) return InvalidArgument(options_.run_dir + ": another jobctl began a job here at the same moment; look at `jobctl status " + options_.run_dir + "`");
  }
  if (!writer.ok()) return writer.error();
  job_writer_ = std::move(*writer);
  return OkStatus();
}

Status RunJob::Begin() {
  self_ = DescribeThisProcess(HostName(), "jobctl", NamesOf(devices_));
  self_.version = HOLDFAST_VERSION;
  self_.numerics = NumericsOf(devices_);
  driver_.set_self(self_);
  const Status made = fs_.MakeDirs(state_.layout().TmpDir(self_.nonce));
  if (!made.ok()) return InvalidArgument("--run-dir " + options_.run_dir + ": cannot write there (" + made.error().message + ")");
  const Status format = EnsureFormat(fs_, state_.layout(), self_.nonce, FeaturesOf(fresh_ ? new_job_.spec : state_.job()));
  if (!format.ok()) {
    if (format.code() == ErrorCode::kUnsupported || format.code() == ErrorCode::kInvalidArgument || format.code() == ErrorCode::kResourceExhausted) return format;
    return InvalidArgument("--run-dir " + options_.run_dir + ": cannot write there (" + format.error().message + ")");
  }
  std::vector<Record> records;
  if (fresh_) {
    records.push_back(MakeControl({.cls = RecordClass::kJob}, new_job_.spec.ToJson()));
    for (uint32_t i = 0; i < new_job_.tokens.size(); ++i) {
      Record tokens;
      tokens.key = {.cls = RecordClass::kJob, .a = i, .part = 1};
      tokens.codec = Codec::kZstd;
      tokens.payload = EncodeTokens(new_job_.tokens[i]);
      records.push_back(std::move(tokens));
    }
  }
  if (fresh_ || plan_changed_) records.push_back(MakeControl({.cls = RecordClass::kPlan, .a = plan_.number}, plan_.ToJson()));
  HOLDFAST_TRY(ClaimJob(std::move(records)));
  recorded_ = true;
  driver_.Adopt(std::move(job_writer_));
  return state_.Refresh();
}

// Times only from what was measured before, unless the job is so long that a few seconds more are nothing.
void RunJob::ShowPlan(uint64_t checked_ms) {
  const uint64_t begin_ns = clock_.MonotonicNs();
  const PlanSubject subject{.decoder = &decoder_, .plan = &plan_, .job = &state_.job(), .tokens = &state_.tokens(), .done = fresh_ ? nullptr : &state_,
                            .device = &devices_.front(), .devices = &devices_, .threads = threads_, .run_dir = options_.run_dir, .scan_bytes = 0, .checked_ms = checked_ms};
  planned_ = DescribeRun(subject, resources_);
  AddTimes(fs_, clock_, ProbeCache(fs_, ProbeCache::DefaultDir(), MachineName::This()), subject,
           {.measure = Measure::kIfLong, .version = HOLDFAST_VERSION, .stop = &g_stop}, &planned_);
  for (const std::string& line : RenderRunPlan(planned_)) progress_.Event(line);
  Json event = RunPlanJson(planned_);
  event["job"] = state_.job().uuid.Hex();
  progress_.EventJson(event);
  progress_.AddPhase("plan", (clock_.MonotonicNs() - begin_ns) / 1'000'000);
}

NodeView RunJob::Self() {
  NodeView self;
  self.name = self_.node;
  self.incarnation = self_.nonce;
  self.count = ++beats_;
  self.memory_bytes = UINT64_MAX;   // sizes were chosen before the start, see PlanResources
  self.version = self_.version;
  self.numerics = self_.numerics;
  return self;
}

Status RunJob::StartMine(Supervisor& node) {
  const auto task = [&](const StagePlan& plan, bool merge) {
    TaskSpec spec;
    spec.key = {state_.layout().root(), merge, plan.stage};
    spec.plan = plan;
    spec.samples_total = state_.samples_in();
    spec.omitted = state_.OmittedSamples();
    spec.size = {.window = threads_, .threads = threads_};
    spec.device = devices_.front().name;
    spec.reason = fresh_ ? "start" : "resume";
    return spec;
  };
  for (const StagePlan& plan : driver_.StagesOf(self_.node)) {
    TaskSpec spec = task(plan, /*merge=*/false);
    const Task* had = node.Find(spec.key);
    const bool again = had != nullptr && had->state == TaskState::kDone && had->spec.omitted != spec.omitted;   // done with other samples
    if (had != nullptr && !again) continue;
    for (const auto& s : resources_.stages) {
      if (s.plan.stage != plan.stage) continue;
      spec.size = s.size;
      spec.device = s.device;
    }
    HOLDFAST_TRY(node.Start(spec));
  }
  if (!driver_.AllSealed() || node.AnyRunning()) return OkStatus();
  TaskSpec merge = task({}, /*merge=*/true);
  if (node.Find(merge.key) != nullptr) return OkStatus();
  merge.phase_ms = progress_.phase_ms();
  for (const StageProgress& s : node.Views()) merge.rss_peak_bytes += s.rss_peak_bytes;
  return node.Start(merge);
}

// What a task that ended means for the run.
Status RunJob::Judge(const Supervisor& node) const {
  for (const Task* t : node.tasks()) {
    if (t->state == TaskState::kRunning || t->state == TaskState::kDone) continue;
    return t->error ? Status(*t->error) : Fenced("a worker was stopped from outside");
  }
  return OkStatus();
}

void RunJob::TellOmissions() {
  for (const auto& [sample, omit] : state_.omitted()) {
    if (!told_omitted_.insert(sample).second) continue;
    progress_.Event("sample " + std::to_string(sample) + " is left out: " + omit.why + " (stage " + std::to_string(omit.stage.value) + "); " +
                    std::to_string(state_.skips_left()) + " more may be");
    progress_.EventJson({{"event", "omitted"}, {"sample", sample}, {"stage", omit.stage.value}, {"why", omit.why}});
  }
}

Status RunJob::Turn(Supervisor& node) {
  const bool changed = node.Poll(node.AnyRunning() ? kTickMs : kStartTickMs);
  if (g_signal != 0) return Stopped("asked to stop by signal " + std::to_string(g_signal.load()));
  HOLDFAST_TRY(Judge(node));
  const bool idle = !node.AnyRunning();   // something has to begin
  if (changed || idle || clock_.MonotonicNs() - looked_ns_ >= kLookNs) {
    looked_ns_ = clock_.MonotonicNs();
    HOLDFAST_TRY(driver_.Refresh());
    HOLDFAST_ASSIGN(const auto failed, driver_.Coordinate({Self()}));
    if (failed) return Internal(*failed);
    TellOmissions();
    HOLDFAST_TRY(StartMine(node));
  }
  const Task* merge = node.Find({state_.layout().root(), true, {}});
  if (merge == nullptr) {
    progress_.Stages(node.Views());
  } else if (merge->view.bytes_total > 0) {
    progress_.Merge({.bytes_done = merge->view.bytes_written, .bytes_total = merge->view.bytes_total,
                     .files_done = static_cast<uint32_t>(merge->view.units_done), .files_total = static_cast<uint32_t>(merge->view.units_total)});
  }
  return OkStatus();
}

// From whatever the ledger holds to the merged output.
Status RunJob::Work() {
  Supervisor::Options o;
  o.bin_dir = BinaryDir();
  o.node = self_.node;
  o.incarnation = self_.nonce;
  o.on_event = [this](const Task&, const std::string& text) { progress_.Event(text); };
  HOLDFAST_ASSIGN(const auto node, Supervisor::Make(clock_, o));
  Status status = OkStatus();
  const auto merged = [&] {
    const Task* merge = node->Find({state_.layout().root(), true, {}});
    return merge != nullptr && merge->state == TaskState::kDone;
  };
  while (status.ok() && !merged()) status = Turn(*node);
  if (!status.ok()) node->StopAll();
  HOLDFAST_TRY(status);
  HOLDFAST_TRY(state_.Refresh());
  if (!state_.done()) return Internal(options_.run_dir + ": merged, but the ledger does not say so; run `jobctl fsck " + options_.run_dir + "`");
  report_ = state_.done()->report;
  return driver_.Release("done");
}

// The job is done: nothing in tmp/ can be wanted any more.
void RunJob::CleanUp() {
  const Status removed = fs_.RemoveTree(state_.layout().TmpDir());
  if (!removed.ok()) progress_.Event("note: " + removed.error().message);
}

// A job that was begun on the CPU goes on there, unless somebody says otherwise.
Status RunJob::ChooseDevicesFor(bool exists) {
  const bool of_cpu = exists && options_.resume && options_.device == "auto" && state_.job().numerics.starts_with("cpu");
  HOLDFAST_ASSIGN(devices_, ChooseDevices(of_cpu ? "cpu" : options_.device));
  if (!devices_[0].note.empty()) progress_.Event(devices_[0].note);
  stage_threads_ = ThreadsOfStages(options_, threads_, devices_);
  return OkStatus();
}

Result<int> RunJob::Run() {
  const uint64_t begin_ns = clock_.MonotonicNs();
  bool exists = false;
  HOLDFAST_TRY(Fold(&exists));
  if (exists) HOLDFAST_TRY(RefuseWhileOthersWork());
  HOLDFAST_TRY(ChooseDevicesFor(exists));
  recorded_ = exists;
  if (exists) {
    HOLDFAST_TRY(CompareWithJob(fs_, options_, state_.job(), devices_));
    if (state_.done() && OutputIsOurs()) return AlreadyDone();
    if (state_.done()) HOLDFAST_TRY(RefuseWithoutPacks());
    HOLDFAST_TRY(PrepareResume());
  } else {
    HOLDFAST_TRY(PrepareNew());
  }
  if (g_stop) return Error{ErrorCode::kStopped, "stopped before anything was started"};
  HOLDFAST_TRY(Begin());
  const uint64_t checked_ms = (clock_.MonotonicNs() - begin_ns) / 1'000'000;
  progress_.AddPhase("check", checked_ms);
  ShowPlan(checked_ms);
  const Status status = Work();
  if (!status.ok()) {
    const ErrorCode code = status.code();
    const Status released = driver_.Release(code == ErrorCode::kStopped ? "drain" : code == ErrorCode::kResourceExhausted ? "no_space" : "failed");
    if (!released.ok() && released.code() != ErrorCode::kFenced) progress_.Event("note: " + released.error().message);
    // Past the start a refusal is a failure: exit code 2 promises that nothing was started.
    return Error{IsResumable(code) ? code : ErrorCode::kInternal, status.error().message};
  }
  CleanUp();
  AddPlanned(planned_, &report_);
  progress_.EventJson({{"event", "done"}, {"already", false}, {"report", report_}});
  if (!options_.json) std::printf("%s%s", progress_.mode() == Progress::Mode::kTerminal ? "\n" : "", RenderReport(report_).c_str());
  return kExitOk;
}

// What to type after an end that is neither the job's nor a refusal, unless the message says it. Before the job record is certain, only the
// line that was typed can be typed again.
Error WithNextCommand(const Error& e, const std::string& run_dir, bool recorded) {
  if (!(IsResumable(e.code) || e.code == ErrorCode::kInternal) || e.message.find("`jobctl ") != std::string::npos) return e;
  const std::string next = (recorded ? "`jobctl resume " + run_dir + "` or " : "") + std::string("the same line again ");
  return Annotate(e, IsResumable(e.code) ? "stopped; " + next + "continues" : "failed; what is committed stays, " + next + "tries the rest");
}

// `jobctl resume DIR`: source, calibration and output are the job record's.
Status FillFromJob(RunOptions* o) {
  o->run_dir = AbsolutePath(o->run_dir);
  PosixFileSystem fs;
  RunState state(fs, RunLayout(o->run_dir));
  const Status read = state.Refresh();
  if (read.code() == ErrorCode::kNotFound) return NotFound(o->run_dir + ": no run here; begin one with `jobctl run --source ... --calib ... --out ...`");
  HOLDFAST_TRY(read);
  o->source = state.job().source;
  o->calib = state.job().calib;
  o->out = state.job().out;
  return OkStatus();
}

}  // namespace

int RunCommand(const RunOptions& options) {
  CatchSignals();
  RunOptions o = options;
  if (o.resume) {
    const Status filled = FillFromJob(&o);
    if (!filled.ok()) return Fail(WithNextCommand(filled.error(), o.run_dir, /*recorded=*/true), o.json);
  } else {
    o.source = AbsolutePath(o.source);
    o.calib = AbsolutePath(o.calib);
    o.out = AbsolutePath(o.out);
    o.run_dir = AbsolutePath(o.run_dir.empty() ? o.out + ".run" : o.run_dir);
  }
  RunJob job(o);
  const auto result = job.Run();
  return result.ok() ? *result : Fail(WithNextCommand(result.error(), o.run_dir, job.recorded()), o.json);
}

}  // namespace holdfast
