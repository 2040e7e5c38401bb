// SPDX-License-Identifier: Apache-2.0
//
// The samples' way through a stage's layers. Those that fit in memory together are one group; a stage of several groups is streamed: all samples
// pass one group before the next, the cuts between them lie in memory or in packs, and beside the group that is computed the last one is evicted
// and the next one loaded.
#include <malloc.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <set>
#include <utility>

#include "daemon/worker/stage_worker_impl.h"
#include "daemon/worker/unit_pool.h"
#include "ledger/base/fail_point.h"
#include "ledger/base/parallel.h"
#include "ledger/base/trace.h"
#include "ledger/fold/seal.h"

namespace holdfast {
namespace {

constexpr int kTickMs = 100;
constexpr uint64_t kDrainMs = 20'000;          // of the 30 s that a stop may take
constexpr uint64_t kRedoNs = 20'000'000'000;   // of computing that a kill may cost, where cuts between groups need not be written
constexpr uint32_t kAwaitingMax = 256;         // samples that only wait for commits: their own, and those of all stages before
constexpr uint32_t kEdgeQueueCuts = 4;         // cuts that a producer keeps for a slow consumer before it leaves them to the packs

}  // namespace

Status StageWorker::Impl::Calibrate() {
  bool begun = false;
  kept_ns = clock.MonotonicNs();
  for (;;) {
    const auto usable = [this](const Cut& cut) { return CutIsThere(fs, state.layout(), cut); };
    const auto in_memory = [this](uint32_t sample, uint32_t layer) { return layer == held.before && held.of.contains(sample); };
    const std::optional<Todo> todo = NextGroup(state, stage, Groups().layers, usable, in_memory);
    report.samples_total = state.samples_in();
    report.samples_done = state.SamplesThrough(stage.first_layer, stage.last_layer);
    report.passed = LayersPassed(state, stage);
    if (!todo) break;
    const StageState& known = state.stages().at(stage.stage);
    const Caution caution = CautionFor(known, args.reason, args.size, todo->samples);
    report.tries = TriesThatCount(known, caution, todo->samples.size(), state.skips_left());
    if (const auto poison = FindPoison(known, caution, todo->samples)) {
      HOLDFAST_TRY(AwaitOmission(*poison));
      continue;
    }
    HOLDFAST_TRY(Enter(*todo));
    if (!begun) HOLDFAST_TRY(Begin("calibrate", 0));
    begun = true;
    EnterPhase("calibrate");
    const bool kept = KeepsCuts(*todo);
    const uint64_t begin_ns = clock.MonotonicNs();
    HOLDFAST_TRY(Loop(*todo, caution, kept));
    held = std::exchange(held_next, {});
    group_ns = clock.MonotonicNs() - begin_ns;
    if (kept) kept_ns = clock.MonotonicNs();
    HOLDFAST_TRY(DropConsumedCuts());
  }
  if (evictions != nullptr) {
    HOLDFAST_TRY(Join(Await::kEverything));
    evictions->Forget();
  }
  held = {};
  DropSharedMemory(*session);
  if (group.runner != nullptr && group.runner->Resident() == nullptr) {   // its memory is eviction's
    group = {};
    ::malloc_trim(0);
  }
  return OkStatus();
}

// Makes `todo` the group that is computed; what was it before is evicted, now or beside it.
Status StageWorker::Impl::Enter(const Todo& todo) {
  if (group.Is(todo)) return OkStatus();
  if (source == nullptr) HOLDFAST_TRY(CheckSource());
  LoadedGroup finished = std::exchange(group, {});
  HOLDFAST_TRY(Join(Await::kNextGroup));
  if (finished.runner != nullptr && finished.runner->Resident() == nullptr) finished.runner.reset();
  if (!group.Is(todo)) {
    HOLDFAST_TRY(Join(Await::kEverything));    // they hold memory
    group = {};
    if (finished.runner != nullptr) {          // on a GPU without room for two groups: evicted from there before it makes room
      if (const auto in = Evictable(finished)) HOLDFAST_TRY(EvictMissing(in->units, finished));
      finished = {};
    }
    HOLDFAST_TRY(LoadNow(todo));
  }
  HOLDFAST_TRY(NoteDigests());
  StartAhead(std::move(finished), todo);
  return OkStatus();
}

// Whether what leaves this group goes into packs. A stage's own must, for the next one reads them there. Between groups it is the price of going on
// where a kill found us, so it is paid when doing the same again would take long, or when it has been done again already, or when there is no room to
// keep them in memory.
bool StageWorker::Impl::KeepsCuts(const Todo& todo) const {
  if (todo.last_layer == stage.last_layer || args.size.cuts < todo.samples.size() || PassedBefore(state, todo)) return true;
  return clock.MonotonicNs() - kept_ns + group_ns > kRedoNs;
}

Result<LoadedGroup> StageWorker::Impl::Load(uint32_t first_layer, uint32_t last_layer,
                                            std::function<std::optional<Digest>(const std::string&)> expected) const {
  RunnerOptions options;
  options.first_layer = first_layer;
  options.last_layer = last_layer;
  options.load_threads = args.size.threads;
  options.device = args.device;
  options.expected = std::move(expected);
  options.stop = &stop.raised;
  options.session = session;
  const TraceSpan span("load a group");
  LoadedGroup loaded{.first_layer = first_layer, .last_layer = last_layer, .runner = nullptr, .digests = {}};
  HOLDFAST_ASSIGN(loaded.runner, LayerRangeRunner::Load(*source, spec, plan, options, &loaded.digests));
  return loaded;
}

Status StageWorker::Impl::LoadNow(const Todo& todo) {
  uint64_t bytes = 0;
  for (uint32_t unit = todo.first_layer; unit < todo.last_layer; ++unit) {
    for (const TensorPlan& t : plan.units[unit].tensors) bytes += t.bytes;
  }
  if (load_begun) EnterPhase("load");
  else HOLDFAST_TRY(Begin("load", bytes));
  load_begun = true;
  HOLDFAST_ASSIGN(group, Load(todo.first_layer, todo.last_layer, KnownDigests(state)));
  return OkStatus();
}

// What the weights were goes into the ledger once: whoever reads them after us compares.
Status StageWorker::Impl::NoteDigests() {
  std::vector<Record> records;
  for (LoadedDigest& d : std::exchange(group.digests, {})) {
    for (const TensorPlan& t : plan.units[d.unit].tensors) report.bytes_read += t.bytes;
    if (state.source_reads().contains(d.unit)) continue;
    SourceRead w;
    w.unit = d.unit;
    w.tensors = std::move(d.tensors);
    records.push_back(MakeControl({.cls = RecordClass::kSource, .stage = args.stage, .a = d.unit}, w.ToJson()));
  }
  return records.empty() ? OkStatus() : writer->Append(std::move(records));
}

// Waits for what goes on beside the groups; a group that was loaded becomes ours.
Status StageWorker::Impl::Join(Await what) {
  const TraceSpan span("wait between groups");
  const auto done = [&] {
    const bool loaded = !ahead.valid() || ahead.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
    return loaded && (what == Await::kNextGroup || evictions->idle());
  };
  while (!done()) {
    HOLDFAST_TRY(CommitEvicted());
    if (Stopping()) return Stopped("stage " + std::to_string(args.stage) + " drained between two groups of layers");
    Report();
    WaitReadable({control.get()}, event_fd, kTickMs);
    ClearWake();
    HearSupervisor();
  }
  HOLDFAST_TRY(CommitEvicted());
  HOLDFAST_TRY(evictions->status());
  if (ahead.valid()) {
    HOLDFAST_ASSIGN(group, ahead.get());
  }
  return OkStatus();
}

// What can be evicted beside the group at hand: units of the group before it, which all samples have passed, and where there is a group on the way in,
// one computed and one on the way out, what lies around the layers and waits for no sample; all of it unless somebody did it before. Units with an
// amax that is not finite wait for Evict, which knows what to do then.
std::optional<StageWorker::Impl::EvictInputs> StageWorker::Impl::Evictable(const LoadedGroup& finished) {
  std::vector<uint32_t> units;
  for (uint32_t unit = finished.first_layer; unit < finished.last_layer; ++unit) units.push_back(unit);
  if (Groups().at_once > 2) {
    for (const uint32_t unit : UnitsOf(plan, stage)) {
      if (unit >= plan.layers) units.push_back(unit);
    }
  }
  std::erase_if(units, [this](uint32_t unit) { return state.Layer(unit) != nullptr || evictions->Begun(unit); });
  if (units.empty()) return std::nullopt;
  const uint32_t at_once = std::min<uint32_t>(EvictedAtOnce(), static_cast<uint32_t>(units.size()));
  const auto in = InputsOf(std::move(units), finished, std::max(1u, args.size.threads / (2 * at_once)));   // the others compute
  if (!in.ok()) return std::nullopt;
  for (const auto& [unit, amax] : in->amax) {
    if (!std::all_of(amax.begin(), amax.end(), [](float a) { return std::isfinite(a); })) return std::nullopt;
  }
  return *in;
}

void StageWorker::Impl::StartAhead(LoadedGroup finished, const Todo& todo) {
  const Grouping groups = Groups();
  const uint32_t next = todo.last_layer, next_end = std::min(stage.last_layer, next + groups.layers);
  // Its weights are dropped with the last reference, when it is evicted.
  auto from = std::make_shared<LoadedGroup>(std::move(finished));
  std::shared_future<void> room = groups.at_once < 3 ? std::shared_future<void>() : evicting;   // of the group whose memory is the next one's
  if (auto in = Evictable(*from)) {
    const std::vector<uint32_t> units = in->units;
    const bool holds_weights = from->runner != nullptr;
    auto done = evictions->Begin(units, [this, in = std::make_shared<const EvictInputs>(std::move(*in)), from](uint32_t unit) { return EvictOne(*in, unit); });
    if (holds_weights) evicting = done;
    if (groups.at_once < 3) room = std::move(done);
  }
  from.reset();
  if (groups.at_once < 2 || next >= stage.last_layer) return;
  ahead = std::async(std::launch::async, [this, room = std::move(room), next, next_end, expected = KnownDigests(state)]() -> Result<LoadedGroup> {
    if (room.valid()) room.wait();
    Result<LoadedGroup> result = Load(next, next_end, expected);
    Wake();
    return result;
  });
}

// Between groups, where the stream is ours.
Status StageWorker::Impl::CommitEvicted() {
  for (const LayerRecord& unit : evictions->TakeEvicted()) HOLDFAST_TRY(CommitUnit(unit));
  return OkStatus();
}

// Cuts between groups are large, and nobody goes on from them once all samples have passed the group behind them.
Status StageWorker::Impl::DropConsumedCuts() {
  if (!Streams()) return OkStatus();
  const ConsumedCuts consumed = FindConsumedCuts(state, stage, cuts_kept_from);
  for (const PackManifest& m : consumed.packs) {
    HOLDFAST_TRY(FailPoint("cut.drop", RunLayout::StageStream(stage.stage)));
    const Status gone = fs.Unlink(state.layout().Pack(m.root));
    if (!gone.ok() && gone.code() != ErrorCode::kNotFound) return OkStatus();   // no harm: `jobctl gc` takes what stays
  }
  cuts_kept_from = consumed.below;
  return OkStatus();
}

Result<ComputedSample> StageWorker::Impl::Compute(const StartSample& start, const Input& input) {
  const auto output = group.last_layer == plan.layers ? LayerRangeRunner::Output::kNone : LayerRangeRunner::Output::kHidden;
  HOLDFAST_TRY(FailPoint("compute.sample", std::to_string(start.sample)));
  const TraceSpan span("compute a sample");
  ComputedSample done;
  SampleRecord& r = done.record;
  r.sample = start.sample;
  r.first_layer = group.first_layer;
  r.last_layer = group.last_layer;
  r.numerics = self.numerics;
  ForwardResult forward;
  uint64_t tokens = start.tokens;
  if (start.input == InputKind::kTokens) {
    const std::vector<int32_t>& ids = state.tokens()[start.sample];
    tokens = ids.size();
    r.input = Sha256(EncodeTokens(ids));
    HOLDFAST_ASSIGN(forward, group.runner->ForwardTokens(ids, output));
  } else if (const auto* kept = std::get_if<HeldCut>(&input)) {
    tokens = kept->tokens;
    r.input = kept->digest;
    done.from_memory = true;
    HOLDFAST_ASSIGN(forward, group.runner->ForwardHidden(*kept->hidden, tokens, output));
  } else {
    Bytes read;
    if (const auto* cut = std::get_if<Cut>(&input)) {
      const TraceSpan reading("read a cut");
      HOLDFAST_ASSIGN(read, ReadCut(fs, state.layout(), *cut));
      tokens = cut->tokens;
    }
    const Bytes& hidden = read.empty() ? start.cut : read;
    r.input = Sha256(hidden);
    HOLDFAST_ASSIGN(forward, group.runner->ForwardHidden(hidden, tokens, output));
  }
  r.amax = std::move(forward.amax);
  if (output == LayerRangeRunner::Output::kHidden) {
    r.output = Cut{.tokens = tokens, .hidden = plan.hidden_size, .digest = {}, .packs = {}};
    done.hidden = ShareHidden(session, std::move(forward.hidden));
  }
  return done;
}

// The second half of a sample: what leaves it gets its digest, and its packs where it is kept.
Result<ComputedSample> StageWorker::Impl::WriteCut(ComputedSample done, bool kept, std::optional<Codec> as, CutWriter* writer) const {
  if (done.hidden == nullptr) return done;
  {
    const TraceSpan span("digest of a cut");
    done.record.output->digest = Sha256(*done.hidden);
  }
  if (kept) {
    const TraceSpan span("write a cut");
    HOLDFAST_ASSIGN(done.record.output->packs, writer->Write(*done.hidden, as));
  }
  return done;
}

void StageWorker::Impl::Written(Result<ComputedSample> done) {
  {
    const std::lock_guard lock(results_mutex);
    written.push_back(std::move(done));
  }
  Wake();
}

Status StageWorker::Impl::Loop(const Todo& todo, const Caution& caution, bool kept) {
  const uint64_t cut_bytes = static_cast<uint64_t>(state.job().seq_len) * plan.hidden_size * 2;
  const bool from_tokens = todo.first_layer == 0;
  const bool last = todo.last_layer == plan.layers;            // nothing comes behind it
  const bool feeds = todo.last_layer == stage.last_layer && !last;   // the next stage
  StageScheduler scheduler({.todo = todo.samples, .from_tokens = from_tokens, .window = args.size.window, .awaiting_max = kAwaitingMax, .awaiting_after = caution.after_death ? kAwaitingMax : 0,
                            .memory_bytes_max = args.size.window * cut_bytes, .alone = caution.alone, .suspects = caution.suspects});
  std::unique_ptr<CutReceiver> receiver;
  std::unique_ptr<CutSender> sender;           // once the ledger says who takes our cuts
  if (cut_router != nullptr && todo.first_layer == stage.first_layer) {   // only the first time round: after that, the packs have what there is
    receiver = std::make_unique<CutReceiver>(std::move(cut_router), CutReceiver::Options{.job = state.job().uuid, .boundary = stage.first_layer,
                                             .hidden_size = plan.hidden_size, .capacity_bytes = args.size.window * cut_bytes});
  }
  std::map<uint32_t, Cut> packs = todo.cuts;
  for (const auto& [sample, cut] : packs) scheduler.OnCutCommitted(sample);
  for (const uint32_t sample : todo.held) scheduler.OnCutCommitted(sample);
  const bool holds = todo.samples.size() <= args.size.cuts && todo.last_layer < stage.last_layer;
  held_next.before = todo.last_layer;
  std::map<uint32_t, std::optional<Codec>> again;   // samples that have passed before, and how their cuts were written
  for (const uint32_t sample : todo.samples) {
    if (state.SampleCovers(sample, todo.first_layer, todo.last_layer)) again[sample] = WrittenAs(state, sample, todo.last_layer);
  }
  CutWriter cut_writer(fs, clock, state.layout(), self.nonce, RunLayout::StageStream(stage.stage));
  Committer committer({.fs = &fs, .clock = &clock, .state = &state, .writer = writer.get(), .incarnation = self.nonce, .stage = stage.stage,
                       .first_layer = stage.first_layer, .last_layer = stage.last_layer, .upstream_wanted = todo.upstream_wanted, .omitted = state.OmittedSamples(), .on_event = {}},
                      [this] { Wake(); });
  ComputePool writers(CutWriters(args.size.threads));
  ComputePool pool(std::min(SamplesAtOnce(ProcessorOf(args.device), args.size.threads), args.size.window));

  std::function<void()> announced;             // waits for its announcement to be durable
  uint64_t drain_deadline = 0;
  const uint64_t done_before = report.samples_done, written_before = report.bytes_written;
  uint64_t layers_passed = 0;                  // by all samples together, but for `again`
  while (!scheduler.done()) {
    if (Stopping() && drain_deadline == 0) drain_deadline = clock.MonotonicNs() + kDrainMs * 1'000'000;
    if (drain_deadline != 0 && (scheduler.in_flight() == 0 || clock.MonotonicNs() > drain_deadline)) {
      return Stopped("stage " + std::to_string(args.stage) + " drained after signal " + std::to_string(stop.signal.load()));
    }
    while (drain_deadline == 0 && !paused) {
      auto start = scheduler.Next();
      if (!start) break;
      Input input;
      if (const auto in_memory = held.of.find(start->sample); held.before == todo.first_layer && in_memory != held.of.end()) {
        input = in_memory->second;
      } else if (start->input == InputKind::kPack) {
        input = packs.at(start->sample);
      }
      auto work = std::make_shared<StartSample>(std::move(*start));
      const auto compute = [this, work, input = std::move(input)] {
        Computed c{.sample = work->sample, .held_bytes = work->cut.size(), .result = Compute(*work, input)};
        {
          const std::lock_guard lock(results_mutex);
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
    std::vector<Result<ComputedSample>> ready;
    {
      const std::lock_guard lock(results_mutex);
      finished.swap(computed);
      ready.swap(written);
    }
    for (LayerRecord& unit : evictions->TakeEvicted()) committer.Submit(std::move(unit));
    for (Computed& c : finished) {
      if (receiver != nullptr && c.held_bytes > 0) receiver->Release(c.held_bytes);
      if (!c.result.ok()) return c.result.error();
      if (sender != nullptr) sender->Offer(c.sample, c.result->record.output->tokens, c.result->hidden);
      auto done = std::make_shared<ComputedSample>(std::move(*c.result));
      const auto before = again.find(c.sample);
      writers.Submit([this, done, kept, as = before == again.end() ? std::nullopt : before->second, &cut_writer] {
        Written(WriteCut(std::move(*done), kept, as, &cut_writer));
      });
    }
    for (Result<ComputedSample>& done : ready) {
      if (!done.ok()) return done.error();
      const SampleRecord& r = done->record;
      if (holds && done->hidden != nullptr) held_next.of[r.sample] = {r.output->tokens, r.output->digest, done->hidden};
      done->hidden.reset();
      scheduler.OnWritten(r.sample);
      committer.Submit(std::move(*done));
    }
    const Committer::Events events = committer.TakeEvents();
    report.bytes_written = written_before + events.bytes_written;
    report.units_done += events.units.size();
    report.commits += events.committed.size() + events.units.size();
    if (!events.announced.empty()) pool.Submit(std::exchange(announced, nullptr));
    for (uint32_t sample : events.committed) {
      scheduler.OnCommitted(sample);
      if (sender != nullptr) sender->Committed(sample);
      if (!again.contains(sample)) layers_passed += todo.last_layer - todo.first_layer;
      held.of.erase(sample);
    }
    for (uint32_t sample : events.omitted) {
      const uint64_t held = scheduler.OnOmitted(sample);
      if (receiver != nullptr && held > 0) receiver->Release(held);
      --report.samples_total;
    }
    for (uint32_t sample : events.dropped) scheduler.OnDropped(sample);
    report.samples_done = std::min(report.samples_total, done_before + layers_passed / (stage.last_layer - stage.first_layer));
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
    if (events.consumer && feeds) HOLDFAST_TRY(Retarget(*events.consumer, cut_bytes, &sender));
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
  const Committer::Events rest = committer.TakeEvents();   // units that were evicted meanwhile
  if (rest.failure) return *rest.failure;
  report.units_done += rest.units.size();
  report.commits += rest.units.size();
  report.bytes_written = written_before + rest.bytes_written;
  if (todo.first_layer == stage.first_layer && !from_tokens) {
    report.cuts_from_packs = todo.samples.size() - std::min<uint64_t>(report.cuts_received, todo.samples.size());
  }
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

}  // namespace holdfast
