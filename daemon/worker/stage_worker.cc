// SPDX-License-Identifier: Apache-2.0
#include "daemon/worker/stage_worker.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <set>

#include "calib/model/memory_plan.h"
#include "daemon/node/process.h"
#include "daemon/worker/stage_worker_impl.h"
#include "daemon/worker/unit_pool.h"
#include "ledger/base/fail_point.h"
#include "ledger/base/trace.h"
#include "ledger/fold/seal.h"

namespace holdfast {
namespace {

constexpr int kTickMs = 100;
constexpr uint64_t kReportNs = 200'000'000;
constexpr size_t kHashBytes = 4u << 20;
constexpr uint32_t kUnitsAtOnceMax = 8;        // beyond it, disks and memory are what eviction waits for

}  // namespace

StageWorker::Impl::Impl(FileSystem& f, const Clock& c, WorkerArgs a, const StopFlag& s)
    : fs(f), clock(c), args(std::move(a)), stop(s), state(f, RunLayout(args.run_dir)), session(MakeDeviceSession()), event_fd(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {}
StageWorker::Impl::~Impl() {
  evictions.reset();                           // they wake us through the event
  if (ahead.valid()) ahead.wait();
  ::close(event_fd);
}

void StageWorker::Impl::Wake() const {
  const uint64_t one = 1;
  if (::write(event_fd, &one, sizeof one) < 0) {
    // Full counter: the loop is awake anyway.
  }
}
void StageWorker::Impl::ClearWake() const {
  uint64_t n = 0;
  if (::read(event_fd, &n, sizeof n) < 0) {
    // Nothing to clear.
  }
}

void StageWorker::Impl::Report(bool force) {
  const uint64_t now = clock.MonotonicNs();
  if (!force && now - report_ns < kReportNs) return;
  report_ns = now;
  report.rss_bytes = RssBytes(::getpid()).value_or(0);
  const std::string text = report.Encode();
  control->Send({AsBytes(text)});
}

void StageWorker::Impl::EnterPhase(const char* phase) {
  report.phase = phase;
  Report(/*force=*/true);
}

Status StageWorker::Impl::Run() {
  HOLDFAST_ASSIGN(control, Socket::Open(context, Socket::Kind::kDealer, ControlEndpoint(args.supervisor), kControlBytesMax, kLastWordsMs));
  report.stage = args.stage;
  report.attempt = args.attempt;
  EnterPhase("start");
  Status status = Open();
  if (status.ok()) status = Work();
  if (!status.ok()) {
    if (writer != nullptr && status.code() == ErrorCode::kStopped) {
      if (const Status r = writer->ReleaseStream("drain"); !r.ok()) status = r;
    }
    report.kind = WorkerReport::Kind::kFailed;
    report.error_code = ErrorCodeName(status.code());
    report.error = status.error().message;
  } else {
    report.kind = WorkerReport::Kind::kFinished;
  }
  Report(/*force=*/true);
  return status;
}

// Another time round when samples were left out meanwhile: the layers are made again, without them.
Status StageWorker::Impl::Work() {
  for (;;) {
    HOLDFAST_TRY(Calibrate());
    HOLDFAST_TRY(Evict());
    HOLDFAST_ASSIGN(const Sealed sealed, Seal());
    if (sealed == Sealed::kYes) return writer->ReleaseStream("done");
  }
}

// Folds the ledger and claims the stage's stream.
Status StageWorker::Impl::Open() {
  HOLDFAST_TRY(state.Refresh());
  const auto& stages = state.plan().stages;
  const auto it = std::find_if(stages.begin(), stages.end(), [&](const StagePlan& s) { return s.stage.value == args.stage; });
  if (it == stages.end()) return InvalidArgument("stage " + std::to_string(args.stage) + " is not in the latest plan of " + args.run_dir);
  stage = *it;
  plan = state.plan();
  report.samples_total = state.samples_in();
  report.units_total = UnitsOf(plan, stage).size();
  HOLDFAST_TRY(CheckDevice(args.device));
  self = DescribeThisProcess(args.node, "holdfast-worker", args.device);
  self.numerics = NumericsClass(args.device);
  if (state.job().numerics != kAnyNumerics && state.job().numerics != self.numerics) {
    return InvalidArgument("this job computes in the numerics class " + state.job().numerics + ", device " + args.device + " of node " + args.node +
                           " is " + self.numerics + "; use the device it was begun on, or begin a new job with another --out");
  }
  HOLDFAST_TRY(OpenEdge());

  StreamWriter::Options options;
  options.job = state.job().uuid;
  options.claim.incarnation = self.nonce;
  options.claim.node = args.node;
  options.claim.reason = args.reason;
  options.claim.pid = self.pid;
  options.claim.numerics = self.numerics;
  options.wait = [](uint64_t ms) { RealClock().SleepMs(ms); };
  const std::string stream = RunLayout::StageStream(stage.stage);
  HOLDFAST_TRY(fs.MakeDirs(state.layout().TmpDir(self.nonce)));
  HOLDFAST_ASSIGN(writer, StreamWriter::Open(
                              fs, state.layout(), clock, state.ReaderOf(stream),
                              [&](const Record& r, const Slot& s) { return state.Apply(stream, r, s); }, options,
                              {MakeControl({.cls = RecordClass::kIncarnation, .stage = args.stage}, self.ToJson())}));
  return OkStatus();
}

// Where this stage takes cuts. Its address stands in the incarnation record beside the claim: that is how the producer finds it.
Status StageWorker::Impl::OpenEdge() {
  if (!args.keys_dir.empty()) {
    HOLDFAST_ASSIGN(const auto keys, ReadKeys(args.keys_dir, args.node));
    if (keys) security = {.self = *keys, .server_key = {}, .keys_dir = args.keys_dir};
  }
  if (stage.first_layer == 0) return OkStatus();
  const std::string where = args.edge_listen.empty() ? EdgeEndpoint(self.nonce) : args.edge_listen;
  HOLDFAST_ASSIGN(cut_router, Socket::Open(context, Socket::Kind::kRouter, where, kDataBytesMax, 0, security));
  self.endpoint = cut_router->endpoint();
  self.public_key = security.self.public_key;
  return OkStatus();
}

void StageWorker::Impl::HearSupervisor() {
  while (const auto frames = control->Receive()) {
    if (frames->size() != 1) continue;
    const std::string_view word = AsText((*frames)[0]);
    if (word == kPauseWord) paused = true;
    if (word == kContinueWord) paused = false;
  }
}

// A file whose time stamp moved since it was pinned is read whole; without a pinned digest the tensors' own must do, as they are read.
Status StageWorker::Impl::CheckFile(const SourceFile& pinned) {
  const std::string path = JoinPath(state.job().source, pinned.name);
  HOLDFAST_ASSIGN(const FileInfo info, fs.Stat(path));
  if (info.mtime_ns == pinned.mtime_ns || pinned.sha256.IsZero()) return OkStatus();
  HOLDFAST_ASSIGN(const auto file, fs.Open(path));
  Sha256Hasher hasher;
  Bytes buffer(kHashBytes);
  for (uint64_t at = 0; at < file->size() && !Stopping(); at += buffer.size()) {
    const auto part = std::span(buffer).first(std::min<uint64_t>(buffer.size(), file->size() - at));
    HOLDFAST_TRY(file->Read(at, part));
    hasher.Update(part);
    Report();
  }
  if (Stopping()) return Stopped("stopped while reading " + path);
  if (hasher.Finish() == pinned.sha256) return OkStatus();
  return InvalidArgument(path + ": source changed since the job began (other bytes); restore it, or begin a new job with another --out");
}

// The weights must be those that the job began with. Cheap part: sizes and headers; the tensors' digests are checked as they are read.
Status StageWorker::Impl::CheckSource() {
  const JobSpec& job = state.job();
  HOLDFAST_ASSIGN(source, SourceModel::Open(fs, job.source));
  for (const SourceFile& pinned : job.weights) {
    const std::string path = JoinPath(job.source, pinned.name);
    const auto& files = source->files();
    const auto file = std::find_if(files.begin(), files.end(), [&](const auto& f) { return BaseName(f->path()) == BaseName(pinned.name); });
    if (file == files.end() || (*file)->size() != pinned.size || (*file)->header_sha256() != pinned.header_sha256) {
      return InvalidArgument(path + ": source changed since the job began (size or header); restore it, or begin a new job with another --out");
    }
    HOLDFAST_TRY(CheckFile(pinned));
  }
  const std::string config_path = JoinPath(job.source, "config.json");
  HOLDFAST_ASSIGN(const Bytes config, fs.ReadFile(config_path, 64u << 20));
  for (const SourceFile& pinned : job.sidecars) {
    if (pinned.name == "config.json" && Sha256(config) != pinned.sha256) {
      return InvalidArgument(config_path + ": source changed since the job began; restore it, or begin a new job with another --out");
    }
  }
  HOLDFAST_ASSIGN(const Json json, ParseJson(AsText(config), config_path));
  HOLDFAST_ASSIGN(spec, ParseDecoder(json, config_path));
  evictions = std::make_unique<UnitEvictions>(EvictedAtOnce(), [this] { Wake(); });
  return OkStatus();
}

Status StageWorker::Impl::Begin(const char* phase, uint64_t planned_bytes) {
  EnterPhase(phase);
  PhaseBegin b;
  b.phase = phase;
  b.attempt = args.attempt;
  b.window = args.size.window;
  b.threads = args.size.threads;
  b.layers = args.size.layers;
  b.planned_bytes = planned_bytes;
  b.available_bytes = MemAvailableBytes();
  const RecordKey key{.cls = RecordClass::kPhase, .stage = args.stage, .a = static_cast<uint32_t>(phase[0]),
                      .b = static_cast<uint32_t>(writer->epoch())};
  HOLDFAST_TRY(writer->Append({MakeControl(key, b.ToJson())}));
  return FailPoint(std::string("phase.") + phase, RunLayout::StageStream(stage.stage));
}

// Says that the stage can do nothing without this sample, and waits until the owner of the job has left it out. OK: he has.
Status StageWorker::Impl::AwaitOmission(const Blame& blame) {
  const auto refused = [&]() -> Status {
    HOLDFAST_TRY(writer->ReleaseStream(kReleasePoison));   // whoever resumes it begins its tries anew
    return CannotDoWithout(state, blame);
  };
  if (state.skips_left() == 0) return refused();
  HOLDFAST_TRY(writer->Append({BlameRecord(stage.stage, writer->epoch(), blame)}));
  HOLDFAST_TRY(FailPoint("blame", std::to_string(blame.sample)));
  EnterPhase("waiting");
  while (!state.Omitted(blame.sample)) {
    if (Stopping()) return Stopped("stage " + std::to_string(args.stage) + " stopped while sample " + std::to_string(blame.sample) + " is to be left out");
    Report();
    WaitReadable({control.get()}, event_fd, kTickMs);
    HearSupervisor();
    HOLDFAST_TRY(state.RefreshLayers({{stage.first_layer, stage.last_layer}}));
    if (state.skips_left() == 0 && !state.Omitted(blame.sample)) return refused();   // another sample was faster
  }
  return OkStatus();
}

Status StageWorker::Impl::Evict() {
  HOLDFAST_TRY(state.RefreshLayers({{stage.first_layer, stage.last_layer}}));
  while (const auto blame = FindNotFinite(state, stage)) HOLDFAST_TRY(AwaitOmission(*blame));
  evicted_without = state.OmittedSamples();
  std::vector<uint32_t> missing;
  for (uint32_t unit : UnitsOf(plan, stage)) {
    if (state.Layer(unit) == nullptr) missing.push_back(unit);
  }
  report.units_done = report.units_total - missing.size();
  if (missing.empty()) return OkStatus();
  if (source == nullptr) HOLDFAST_TRY(CheckSource());
  HOLDFAST_TRY(Begin("evict", 0));
  return EvictMissing(missing, group);
}

// Taken from the fold at once: commits change it while units are under way. kNotFound: some sample has not passed some unit.
Result<StageWorker::Impl::EvictInputs> StageWorker::Impl::InputsOf(std::vector<uint32_t> units, const LoadedGroup& from, uint32_t threads) {
  EvictInputs in;
  in.units = std::move(units);
  in.omitted = state.OmittedSamples();
  for (const uint32_t unit : in.units) {
    std::vector<float>& reduced = in.amax[unit];
    if (unit >= plan.layers || !plan.input_scales) continue;
    HOLDFAST_ASSIGN(reduced, state.ReducedAmax(unit));
  }
  in.options.threads = threads;
  in.options.incarnation = self.nonce;
  in.options.stop = &stop.raised;
  in.options.resident = from.runner == nullptr ? nullptr : from.runner->Resident();
  in.options.expected = KnownDigests(state);
  return in;
}

Result<LayerRecord> StageWorker::Impl::EvictOne(const EvictInputs& in, uint32_t unit) {
  if (Stopping()) return Stopped("stage " + std::to_string(args.stage) + " drained during eviction");
  const TraceSpan span("evict a unit");
  const std::vector<float>& amax = in.amax.at(unit);
  HOLDFAST_ASSIGN(LayerRecord e, EvictUnit(fs, state.layout(), *source, plan, plan.units[unit], amax, in.options));
  if (!amax.empty()) e.omitted = in.omitted;
  return e;
}

Status StageWorker::Impl::CommitUnit(const LayerRecord& unit) {
  for (const PackManifest& p : unit.packs) report.bytes_written += p.file_size;
  HOLDFAST_TRY(writer->Append({MakeControl({.cls = RecordClass::kLayer, .stage = args.stage, .a = unit.unit}, unit.ToJson())}));
  ++report.units_done;
  ++report.commits;
  return OkStatus();
}

Status StageWorker::Impl::EvictMissing(const std::vector<uint32_t>& missing, const LoadedGroup& from) {
  const uint32_t at_once = EvictedAtOnce();
  HOLDFAST_ASSIGN(const EvictInputs in, InputsOf(missing, from, std::max<uint32_t>(1, args.size.threads / at_once)));
  UnitWork work;
  work.evict = [&](uint32_t unit) { return EvictOne(in, unit); };
  work.commit = [&](uint32_t, const LayerRecord& e) { return CommitUnit(e); };
  work.tick = [this] { Report(); };
  return EvictUnits(missing, at_once, work);
}

// Calibration's memory is free by now, or on a GPU was never the host's.
uint32_t StageWorker::Impl::EvictedAtOnce() const {
  const Processor processor = ProcessorOf(args.device);
  if (processor == Processor::kGpu) return std::min(args.size.threads, kGpuUnitsMax);
  const MemoryPlan m = PlanMemory(spec, plan, stage.first_layer, stage.last_layer, state.job().seq_len, CpuMatmulDtype(), processor);
  return UnitsAtOnce(std::min(args.size.threads, kUnitsAtOnceMax), m.Total(args.size.threads, args.size.window, args.size.layers, args.size.cuts) - m.fixed, m.eviction);
}

// kNo: what was evicted is not what counts any more.
Result<StageWorker::Impl::Sealed> StageWorker::Impl::Seal() {
  EnterPhase("seal");
  HOLDFAST_TRY(state.RefreshLayers({{stage.first_layer, stage.last_layer}}));
  if (state.OmittedSamples() != evicted_without) return Sealed::kNo;
  const auto known = state.stages().find(stage.stage);
  if (known == state.stages().end() || !known->second.seal) {
    SealRecord z;
    z.samples = state.job().samples;
    z.first_layer = stage.first_layer;
    z.last_layer = stage.last_layer;
    z.omitted = evicted_without;
    HOLDFAST_ASSIGN(z.root, SealRoot(state, stage.first_layer, stage.last_layer, UnitsOf(plan, stage)));
    HOLDFAST_TRY(writer->Append({MakeControl({.cls = RecordClass::kSeal, .stage = args.stage}, z.ToJson())}));
  }
  return Sealed::kYes;
}

StageWorker::StageWorker(FileSystem& fs, const Clock& clock, WorkerArgs args, const StopFlag& stop)
    : impl_(std::make_unique<Impl>(fs, clock, std::move(args), stop)) {}
StageWorker::~StageWorker() = default;
Status StageWorker::Run() { return impl_->Run(); }

}  // namespace holdfast
