// SPDX-License-Identifier: Apache-2.0
#include "daemon/worker/stage_worker.h"

#include <malloc.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <mutex>
#include <optional>
#include <set>

#include "calib/model/decoder.h"
#include "calib/model/memory_plan.h"
#include "calib/runner/runner.h"
#include "daemon/core/stage_scheduler.h"
#include "daemon/node/process.h"
#include "daemon/transport/cut_edge.h"
#include "daemon/worker/committer.h"
#include "daemon/worker/compute_pool.h"
#include "daemon/worker/poison.h"
#include "daemon/worker/todo.h"
#include "daemon/worker/unit_pool.h"
#include "export/format/safetensors.h"
#include "export/shard/evict.h"
#include "ledger/base/fail_point.h"
#include "ledger/fold/seal.h"

namespace holdfast {
namespace {

constexpr int kTickMs = 100;
constexpr uint64_t kReportNs = 200'000'000;
constexpr uint64_t kDrainMs = 20'000;          // of the 30 s that a stop may take
constexpr size_t kHashBytes = 4u << 20;
constexpr uint32_t kUnitsAtOnceMax = 8;        // beyond it, disks and memory are what eviction waits for
constexpr uint32_t kEdgeQueueCuts = 4;         // cuts that a producer keeps for a slow consumer before it leaves them to the packs

struct Computed {
  uint32_t sample = 0;
  uint64_t held_bytes = 0;                     // of the edge's memory, to release
  Result<ComputedSample> result = Error{};
};

}  // namespace

struct StageWorker::Impl {
  FileSystem& fs;
  const Clock& clock;
  const WorkerArgs args;
  const StopFlag& stop;

  RunState state;
  StagePlan stage;
  std::unique_ptr<StreamWriter> writer;
  std::unique_ptr<SourceModel> source;
  DecoderSpec spec;
  std::unique_ptr<LayerRangeRunner> runner;    // kept for eviction if it holds weights that need not be read again
  Incarnation self;

  Context context;
  std::unique_ptr<Socket> control;
  SocketSecurity security;                     // of the data edges
  std::unique_ptr<Socket> cut_router;          // where cuts arrive; bound before the claim, which says where. Null for the first stage
  WorkerReport report;
  uint64_t report_ns = 0;
  bool paused = false;                         // by the supervisor: no new samples for now
  std::vector<uint32_t> evicted_without;       // the samples that were left out when units were last evicted

  int event_fd = ::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  std::mutex computed_mutex;
  std::vector<Computed> computed;              // guarded by computed_mutex

  Impl(FileSystem& f, const Clock& c, WorkerArgs a, const StopFlag& s)
      : fs(f), clock(c), args(std::move(a)), stop(s), state(f, RunLayout(args.run_dir)) {}
  ~Impl() { ::close(event_fd); }

  bool Stopping() const { return stop.raised.load(); }
  void Wake() const {
    const uint64_t one = 1;
    if (::write(event_fd, &one, sizeof one) < 0) {
      // Full counter: the loop is awake anyway.
    }
  }
  void ClearWake() const {
    uint64_t n = 0;
    if (::read(event_fd, &n, sizeof n) < 0) {
      // Nothing to clear.
    }
  }

  void Report(bool force = false) {
    const uint64_t now = clock.MonotonicNs();
    if (!force && now - report_ns < kReportNs) return;
    report_ns = now;
    report.rss_bytes = RssBytes(::getpid()).value_or(0);
    const std::string text = report.Encode();
    control->Send({AsBytes(text)});
  }
  void EnterPhase(const char* phase) {
    report.phase = phase;
    Report(/*force=*/true);
  }

  Status Run();
  Status Open();
  Status OpenEdge();
  void HearSupervisor();
  Status CheckSource();
  Status CheckFile(const SourceFile& pinned);
  Status Begin(const char* phase, uint64_t planned_bytes);
  Status Work();
  Status Calibrate();
  Status AwaitOmission(const Blame& blame);
  Status Load();
  Status Loop(const Todo& todo, const Caution& caution);
  Result<ComputedSample> Compute(const StartSample& start, const std::optional<Cut>& cut);
  Status Retarget(const Incarnation& consumer, uint64_t cut_bytes, std::unique_ptr<CutSender>* sender);
  Status Evict();
  Status EvictMissing(const std::vector<uint32_t>& missing);
  uint32_t EvictedAtOnce() const;
  enum class Sealed : uint8_t { kNo, kYes };
  Result<Sealed> Seal();
};

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
  report.samples_total = state.samples_in();
  report.units_total = UnitsOf(state.plan(), stage).size();
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
  return OkStatus();
}

Status StageWorker::Impl::Begin(const char* phase, uint64_t planned_bytes) {
  EnterPhase(phase);
  PhaseBegin b;
  b.phase = phase;
  b.attempt = args.attempt;
  b.window = args.size.window;
  b.threads = args.size.threads;
  b.planned_bytes = planned_bytes;
  b.available_bytes = MemAvailableBytes();
  const RecordKey key{.cls = RecordClass::kPhase, .stage = args.stage, .a = static_cast<uint32_t>(phase[0]),
                      .b = static_cast<uint32_t>(writer->epoch())};
  HOLDFAST_TRY(writer->Append({MakeControl(key, b.ToJson())}));
  return FailPoint(std::string("phase.") + phase, RunLayout::StageStream(stage.stage));
}

Status StageWorker::Impl::Calibrate() {
  for (;;) {
    const Todo todo = TodoOf(state, stage);
    report.samples_total = state.samples_in();
    report.samples_done = report.samples_total - todo.samples.size();
    if (todo.samples.empty()) return OkStatus();
    const StageState& known = state.stages().at(stage.stage);
    const Caution caution = CautionFor(known, args.reason, args.size, todo.samples);
    report.tries = TriesThatCount(known, caution, todo.samples.size(), state.skips_left());
    if (const auto poison = FindPoison(known, caution, todo.samples)) {
      HOLDFAST_TRY(AwaitOmission(*poison));
      continue;
    }
    HOLDFAST_TRY(CheckSource());
    HOLDFAST_TRY(Load());
    HOLDFAST_TRY(Begin("calibrate", 0));
    HOLDFAST_TRY(Loop(todo, caution));
    if (runner->Resident() == nullptr) {                  // its memory is eviction's
      runner.reset();
      ::malloc_trim(0);
    }
    return OkStatus();
  }
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

Status StageWorker::Impl::Load() {
  runner.reset();
  uint64_t bytes = 0;
  for (uint32_t unit : UnitsOf(state.plan(), stage)) {
    for (const TensorPlan& t : state.plan().units[unit].tensors) bytes += t.bytes;
  }
  HOLDFAST_TRY(Begin("load", bytes));
  RunnerOptions options;
  options.first_layer = stage.first_layer;
  options.last_layer = stage.last_layer;
  options.load_threads = args.size.threads;
  options.device = args.device;
  options.expected = KnownDigests(state);
  std::vector<LoadedDigest> digests;
  HOLDFAST_ASSIGN(runner, LayerRangeRunner::Load(*source, spec, state.plan(), options, &digests));
  std::vector<Record> records;
  for (LoadedDigest& d : digests) {
    if (state.source_reads().contains(d.unit)) continue;
    SourceRead w;
    w.unit = d.unit;
    w.tensors = std::move(d.tensors);
    records.push_back(MakeControl({.cls = RecordClass::kSource, .stage = args.stage, .a = d.unit}, w.ToJson()));
  }
  if (!records.empty()) HOLDFAST_TRY(writer->Append(std::move(records)));
  report.bytes_read = bytes;
  return OkStatus();
}

Result<ComputedSample> StageWorker::Impl::Compute(const StartSample& start, const std::optional<Cut>& cut) {
  const auto output = stage.last_layer == state.plan().layers ? LayerRangeRunner::Output::kNone : LayerRangeRunner::Output::kHidden;
  HOLDFAST_TRY(FailPoint("compute.sample", std::to_string(start.sample)));
  ComputedSample done;
  SampleRecord& r = done.record;
  r.sample = start.sample;
  r.first_layer = stage.first_layer;
  r.last_layer = stage.last_layer;
  r.numerics = self.numerics;
  ForwardResult forward;
  uint64_t tokens = start.tokens;
  if (start.input == InputKind::kTokens) {
    const std::vector<int32_t>& ids = state.tokens()[start.sample];
    tokens = ids.size();
    r.input = Sha256(EncodeTokens(ids));
    HOLDFAST_ASSIGN(forward, runner->ForwardTokens(ids, output));
  } else {
    Bytes hidden = start.cut;
    if (start.input == InputKind::kPack) {
      HOLDFAST_ASSIGN(hidden, ReadCut(fs, state.layout(), *cut));
      tokens = cut->tokens;
    }
    r.input = Sha256(hidden);
    HOLDFAST_ASSIGN(forward, runner->ForwardHidden(hidden, tokens, output));
  }
  r.amax = std::move(forward.amax);
  if (output == LayerRangeRunner::Output::kHidden) {
    r.output = Cut{.tokens = tokens, .hidden = state.plan().hidden_size, .digest = Sha256(forward.hidden), .packs = {}};
    done.hidden = std::make_shared<const Bytes>(std::move(forward.hidden));
  }
  return done;
}

Status StageWorker::Impl::Loop(const Todo& todo, const Caution& caution) {
  const uint64_t cut_bytes = static_cast<uint64_t>(state.job().seq_len) * state.plan().hidden_size * 2;
  const bool from_tokens = stage.first_layer == 0;
  StageScheduler scheduler({.todo = todo.samples, .from_tokens = from_tokens, .window = args.size.window,
                            .memory_bytes_max = args.size.window * cut_bytes, .alone = caution.alone, .suspects = caution.suspects});
  const bool last = stage.last_layer == state.plan().layers;
  std::unique_ptr<CutReceiver> receiver;
  std::unique_ptr<CutSender> sender;           // once the ledger says who takes our cuts
  if (cut_router != nullptr) {                 // only the first time round: after that, the packs have what there is
    receiver = std::make_unique<CutReceiver>(std::move(cut_router), CutReceiver::Options{.job = state.job().uuid, .boundary = stage.first_layer,
                                             .hidden_size = state.plan().hidden_size, .capacity_bytes = args.size.window * cut_bytes});
  }
  std::map<uint32_t, Cut> packs = todo.cuts;
  for (const auto& [sample, cut] : packs) scheduler.OnCutCommitted(sample);
  Committer committer({.fs = &fs, .clock = &clock, .state = &state, .writer = writer.get(), .incarnation = self.nonce, .stage = stage.stage,
                       .first_layer = stage.first_layer, .last_layer = stage.last_layer, .upstream_wanted = todo.upstream_wanted, .omitted = state.OmittedSamples(), .on_event = {}},
                      [this] { Wake(); });
  ComputePool pool(std::min(args.size.threads, args.size.window));

  std::set<uint32_t> open(todo.samples.begin(), todo.samples.end());
  std::function<void()> announced;             // waits for its announcement to be durable
  uint64_t drain_deadline = 0;
  while (!scheduler.done()) {
    if (Stopping() && drain_deadline == 0) drain_deadline = clock.MonotonicNs() + kDrainMs * 1'000'000;
    if (drain_deadline != 0 && (scheduler.in_flight() == 0 || clock.MonotonicNs() > drain_deadline)) {
      return Stopped("stage " + std::to_string(args.stage) + " drained after signal " + std::to_string(stop.signal.load()));
    }
    while (drain_deadline == 0 && !paused) {
      auto start = scheduler.Next();
      if (!start) break;
      std::optional<Cut> cut;
      if (start->input == InputKind::kPack) cut = packs.at(start->sample);
      auto work = std::make_shared<StartSample>(std::move(*start));
      const auto compute = [this, work, cut] {
        Computed c{.sample = work->sample, .held_bytes = work->cut.size(), .result = Compute(*work, cut)};
        {
          std::lock_guard lock(computed_mutex);
          computed.push_back(std::move(c));
        }
        Wake();
      };
      if (!work->alone) {
        pool.Submit(compute);
      } else {
        announced = compute;
        committer.Announce(work->sample);
      }
    }
    Report();
    std::vector<Socket*> sockets = {control.get()};
    if (receiver != nullptr) sockets.push_back(receiver->socket());
    if (sender != nullptr) sockets.push_back(sender->socket());
    // A sender always has something to say soon; its socket's readiness alone would not wake us.
    WaitReadable(sockets, event_fd, kTickMs);
    ClearWake();
    HearSupervisor();

    std::vector<Computed> finished;
    {
      std::lock_guard lock(computed_mutex);
      finished.swap(computed);
    }
    for (Computed& c : finished) {
      if (receiver != nullptr && c.held_bytes > 0) receiver->Release(c.held_bytes);
      if (!c.result.ok()) return c.result.error();
      if (sender != nullptr) sender->Offer(c.sample, c.result->record.output->tokens, c.result->hidden);
      committer.Submit(std::move(*c.result));
    }
    const Committer::Events events = committer.TakeEvents();
    report.bytes_written = events.bytes_written;
    if (!events.announced.empty()) pool.Submit(std::exchange(announced, nullptr));
    for (uint32_t sample : events.committed) {
      scheduler.OnCommitted(sample);
      if (sender != nullptr) sender->Committed(sample);
      ++report.samples_done;
      open.erase(sample);
    }
    for (uint32_t sample : events.omitted) {
      const uint64_t held = scheduler.OnOmitted(sample);
      if (receiver != nullptr && held > 0) receiver->Release(held);
      --report.samples_total;
      if (open.erase(sample) == 0) --report.samples_done;
    }
    for (uint32_t sample : events.dropped) scheduler.OnDropped(sample);
    if (!events.committed.empty()) Report(/*force=*/true);   // the supervisor judges deaths by it
    for (const auto& [sample, cut] : events.upstream) {
      packs.emplace(sample, cut);
      scheduler.OnCutCommitted(sample);
    }
    for (uint32_t sample : events.redo) {        // from the packs this time
      scheduler.OnFailed(sample);
      scheduler.OnCutCommitted(sample);
    }
    if (events.failure) return *events.failure;
    if (events.consumer && !last) HOLDFAST_TRY(Retarget(*events.consumer, cut_bytes, &sender));
    if (receiver != nullptr) {
      receiver->Poll([&](uint32_t sample, uint64_t tokens, Bytes cut) {
        const uint64_t bytes = cut.size();
        if (!scheduler.OnCutReceived(sample, tokens, std::move(cut))) return false;
        report.cuts_received += bytes > 0;
        return true;
      }, [&](uint32_t) { committer.PollUpstreamSoon(); });
      report.chunks_dropped = receiver->dropped_chunks();
    }
    if (sender != nullptr) sender->Poll();
  }
  committer.Stop();
  report.cuts_from_packs = todo.samples.size() - std::min<uint64_t>(report.cuts_received, todo.samples.size());
  if (from_tokens) report.cuts_from_packs = 0;
  return OkStatus();
}

// The consumer of our cuts lives somewhere new: a first start, a restart, another node.
Status StageWorker::Impl::Retarget(const Incarnation& consumer, uint64_t cut_bytes, std::unique_ptr<CutSender>* sender) {
  SocketSecurity s = security;
  s.server_key = consumer.public_key;
  if (s.server_key.empty()) s = {};
  auto dealer = Socket::Open(context, Socket::Kind::kDealer, consumer.endpoint, kDataBytesMax, 0, s);
  if (!dealer.ok()) return OkStatus();         // an address that cannot be used: it reads our cuts from the packs
  if (*sender != nullptr) {
    (*sender)->Retarget(std::move(*dealer));
  } else {
    *sender = std::make_unique<CutSender>(std::move(*dealer), clock, state.job().uuid, stage.last_layer, kEdgeQueueCuts * cut_bytes);
  }
  return OkStatus();
}

Status StageWorker::Impl::Evict() {
  HOLDFAST_TRY(state.RefreshLayers({{stage.first_layer, stage.last_layer}}));
  while (const auto blame = FindNotFinite(state, stage)) HOLDFAST_TRY(AwaitOmission(*blame));
  evicted_without = state.OmittedSamples();
  std::vector<uint32_t> missing;
  for (uint32_t unit : UnitsOf(state.plan(), stage)) {
    if (state.Layer(unit) == nullptr) missing.push_back(unit);
  }
  report.units_done = report.units_total - missing.size();
  if (missing.empty()) return OkStatus();
  if (source == nullptr) HOLDFAST_TRY(CheckSource());
  HOLDFAST_TRY(Begin("evict", 0));
  return EvictMissing(missing);
}

Status StageWorker::Impl::EvictMissing(const std::vector<uint32_t>& missing) {
  const Plan& plan = state.plan();
  const uint32_t at_once = EvictedAtOnce();
  std::map<uint32_t, std::vector<float>> amax;   // taken from the fold now: commits change it while other units are under way
  for (const uint32_t unit : missing) {
    std::vector<float>& reduced = amax[unit];
    if (unit >= plan.layers || !plan.input_scales) continue;
    HOLDFAST_ASSIGN(reduced, state.ReducedAmax(unit));
  }
  EvictOptions options;
  options.threads = std::max<uint32_t>(1, args.size.threads / at_once);
  options.incarnation = self.nonce;
  options.stop = &stop.raised;
  options.resident = runner == nullptr ? nullptr : runner->Resident();
  options.expected = KnownDigests(state);
  UnitWork work;
  work.evict = [&](uint32_t unit) -> Result<LayerRecord> {
    if (Stopping()) return Stopped("stage " + std::to_string(args.stage) + " drained during eviction");
    HOLDFAST_ASSIGN(LayerRecord e, EvictUnit(fs, state.layout(), *source, plan, plan.units[unit], amax.at(unit), options));
    if (!amax.at(unit).empty()) e.omitted = evicted_without;
    return e;
  };
  work.commit = [&](uint32_t unit, const LayerRecord& e) -> Status {
    for (const PackManifest& p : e.packs) report.bytes_written += p.file_size;
    HOLDFAST_TRY(writer->Append({MakeControl({.cls = RecordClass::kLayer, .stage = args.stage, .a = unit}, e.ToJson())}));
    ++report.units_done;
    return OkStatus();
  };
  work.tick = [this] { Report(); };
  return EvictUnits(missing, at_once, work);
}

// Calibration's memory is free by now, or on a GPU was never the host's.
uint32_t StageWorker::Impl::EvictedAtOnce() const {
  const MemoryPlan m = PlanMemory(spec, state.plan(), stage.first_layer, stage.last_layer, state.job().seq_len, CpuMatmulDtype());
  return UnitsAtOnce(std::min(args.size.threads, kUnitsAtOnceMax), m.Total(args.size.threads, args.size.window) - m.fixed, m.eviction);
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
    HOLDFAST_ASSIGN(z.root, SealRoot(state, stage.first_layer, stage.last_layer, UnitsOf(state.plan(), stage)));
    HOLDFAST_TRY(writer->Append({MakeControl({.cls = RecordClass::kSeal, .stage = args.stage}, z.ToJson())}));
  }
  return Sealed::kYes;
}

StageWorker::StageWorker(FileSystem& fs, const Clock& clock, WorkerArgs args, const StopFlag& stop)
    : impl_(std::make_unique<Impl>(fs, clock, std::move(args), stop)) {}
StageWorker::~StageWorker() = default;
Status StageWorker::Run() { return impl_->Run(); }

}  // namespace holdfast
