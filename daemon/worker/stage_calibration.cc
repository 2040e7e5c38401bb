// SPDX-License-Identifier: Apache-2.0
//
// The samples' way through a stage's layers. Those that fit in memory together are one group; a stage of several groups is streamed: all samples
// pass one group before the next, the cuts between them lie in packs, and beside the group that is computed the last one is evicted and the next
// one loaded.
#include <malloc.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <set>
#include <utility>

#include "daemon/worker/stage_worker_impl.h"
#include "daemon/worker/unit_pool.h"
#include "ledger/base/fail_point.h"

namespace holdfast {
namespace {

constexpr int kTickMs = 100;
constexpr uint64_t kDrainMs = 20'000;          // of the 30 s that a stop may take
constexpr uint32_t kEdgeQueueCuts = 4;         // cuts that a producer keeps for a slow consumer before it leaves them to the packs

}  // namespace

Status StageWorker::Impl::Calibrate() {
  bool begun = false;
  for (;;) {
    const auto usable = [this](const Cut& cut) { return CutIsThere(fs, state.layout(), cut); };
    const std::optional<Todo> todo = NextGroup(state, stage, GroupMax(), usable);
    report.samples_total = state.samples_in();
    report.samples_done = state.SamplesThrough(stage.first_layer, stage.last_layer);
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
    HOLDFAST_TRY(Loop(*todo, caution));
    HOLDFAST_TRY(DropConsumedCuts());
  }
  HOLDFAST_TRY(JoinAhead());
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
  HOLDFAST_TRY(JoinAhead());                   // which may have loaded the next group
  if (finished.runner != nullptr && finished.runner->Resident() == nullptr) finished.runner.reset();
  if (!group.Is(todo)) {
    group = {};
    if (finished.runner != nullptr) {          // on a GPU without room for two groups: evicted from there before it makes room
      if (const auto in = Evictable(finished)) HOLDFAST_TRY(EvictMissing(in->units, finished));
      finished = {};
    }
    HOLDFAST_TRY(LoadNow(todo));
  }
  HOLDFAST_TRY(NoteDigests());
  return StartAhead(std::move(finished), todo);
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

// Waits until what goes on beside the groups is done; a group that it loaded becomes ours.
Status StageWorker::Impl::JoinAhead() {
  while (ahead.valid()) {
    const bool ready = ahead.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
    HOLDFAST_TRY(CommitEvicted());
    if (ready) {
      HOLDFAST_ASSIGN(group, ahead.get());
      return CommitEvicted();
    }
    if (Stopping()) return Stopped("stage " + std::to_string(args.stage) + " drained between two groups of layers");
    Report();
    WaitReadable({control.get()}, event_fd, kTickMs);
    ClearWake();
    HearSupervisor();
  }
  return OkStatus();
}

// Units of this group that all samples have passed and that nobody evicted yet. Those with an amax that is not finite wait for Evict, which knows what
// to do then.
std::optional<StageWorker::Impl::EvictInputs> StageWorker::Impl::Evictable(const LoadedGroup& finished) {
  std::vector<uint32_t> units;
  for (uint32_t unit = finished.first_layer; unit < finished.last_layer; ++unit) {
    if (state.Layer(unit) == nullptr) units.push_back(unit);
  }
  const auto in = InputsOf(std::move(units), finished, std::max(1u, args.size.threads / 2));   // the others compute
  if (!in.ok()) return std::nullopt;
  for (const auto& [unit, amax] : in->amax) {
    if (!std::all_of(amax.begin(), amax.end(), [](float a) { return std::isfinite(a); })) return std::nullopt;
  }
  return *in;
}

Status StageWorker::Impl::StartAhead(LoadedGroup finished, const Todo& todo) {
  const uint32_t next = todo.last_layer, next_end = std::min(stage.last_layer, next + GroupMax());
  const bool load = RoomForTwo() && next < stage.last_layer;
  auto in = finished.first_layer < finished.last_layer ? Evictable(finished) : std::nullopt;
  if (!load && !in) return OkStatus();
  const auto work = [this, in = std::move(in), load, next, next_end, expected = KnownDigests(state)](LoadedGroup from) -> Result<LoadedGroup> {
    for (size_t i = 0; in && i < in->units.size(); ++i) {
      HOLDFAST_ASSIGN(LayerRecord e, EvictOne(*in, in->units[i]));
      {
        const std::lock_guard lock(results_mutex);
        evicted.push_back(std::move(e));
      }
      Wake();
    }
    from = {};                                 // its memory is the next group's
    return load ? Load(next, next_end, expected) : LoadedGroup{};
  };
  ahead = std::async(std::launch::async, [this, work, from = std::move(finished)]() mutable {
    Result<LoadedGroup> result = work(std::move(from));
    Wake();
    return result;
  });
  return OkStatus();
}

// Between groups, where the stream is ours.
Status StageWorker::Impl::CommitEvicted() {
  std::vector<LayerRecord> units;
  {
    const std::lock_guard lock(results_mutex);
    units.swap(evicted);
  }
  for (const LayerRecord& unit : units) HOLDFAST_TRY(CommitUnit(unit));
  return OkStatus();
}

// Cuts between groups are large, and nobody goes on from them once all samples have passed the group behind them.
Status StageWorker::Impl::DropConsumedCuts() {
  if (GroupMax() == stage.last_layer - stage.first_layer) return OkStatus();
  const ConsumedCuts consumed = FindConsumedCuts(state, stage, cuts_kept_from);
  for (const PackManifest& m : consumed.packs) {
    HOLDFAST_TRY(FailPoint("cut.drop", RunLayout::StageStream(stage.stage)));
    const Status gone = fs.Unlink(state.layout().Pack(m.root));
    if (!gone.ok() && gone.code() != ErrorCode::kNotFound) return OkStatus();   // no harm: `jobctl gc` takes what stays
  }
  cuts_kept_from = consumed.below;
  return OkStatus();
}

Result<ComputedSample> StageWorker::Impl::Compute(const StartSample& start, const std::optional<Cut>& cut) {
  const auto output = group.last_layer == plan.layers ? LayerRangeRunner::Output::kNone : LayerRangeRunner::Output::kHidden;
  HOLDFAST_TRY(FailPoint("compute.sample", std::to_string(start.sample)));
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
  } else {
    Bytes hidden = start.cut;
    if (start.input == InputKind::kPack) {
      HOLDFAST_ASSIGN(hidden, ReadCut(fs, state.layout(), *cut));
      tokens = cut->tokens;
    }
    r.input = Sha256(hidden);
    HOLDFAST_ASSIGN(forward, group.runner->ForwardHidden(hidden, tokens, output));
  }
  r.amax = std::move(forward.amax);
  if (output == LayerRangeRunner::Output::kHidden) {
    r.output = Cut{.tokens = tokens, .hidden = plan.hidden_size, .digest = Sha256(forward.hidden), .packs = {}};
    done.hidden = std::make_shared<const Bytes>(std::move(forward.hidden));
  }
  return done;
}

Status StageWorker::Impl::Loop(const Todo& todo, const Caution& caution) {
  const uint64_t cut_bytes = static_cast<uint64_t>(state.job().seq_len) * plan.hidden_size * 2;
  const bool from_tokens = todo.first_layer == 0;
  const bool last = todo.last_layer == plan.layers;            // nothing comes behind it
  const bool feeds = todo.last_layer == stage.last_layer && !last;   // the next stage
  StageScheduler scheduler({.todo = todo.samples, .from_tokens = from_tokens, .window = args.size.window,
                            .memory_bytes_max = args.size.window * cut_bytes, .alone = caution.alone, .suspects = caution.suspects});
  std::unique_ptr<CutReceiver> receiver;
  std::unique_ptr<CutSender> sender;           // once the ledger says who takes our cuts
  if (cut_router != nullptr && todo.first_layer == stage.first_layer) {   // only the first time round: after that, the packs have what there is
    receiver = std::make_unique<CutReceiver>(std::move(cut_router), CutReceiver::Options{.job = state.job().uuid, .boundary = stage.first_layer,
                                             .hidden_size = plan.hidden_size, .capacity_bytes = args.size.window * cut_bytes});
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
  const uint64_t done_before = report.samples_done, written_before = report.bytes_written;
  uint64_t layers_passed = 0;                  // all samples together
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
    std::vector<LayerRecord> units;
    {
      const std::lock_guard lock(results_mutex);
      finished.swap(computed);
      units.swap(evicted);
    }
    for (LayerRecord& unit : units) committer.Submit(std::move(unit));
    for (Computed& c : finished) {
      if (receiver != nullptr && c.held_bytes > 0) receiver->Release(c.held_bytes);
      if (!c.result.ok()) return c.result.error();
      if (sender != nullptr) sender->Offer(c.sample, c.result->record.output->tokens, c.result->hidden);
      committer.Submit(std::move(*c.result));
    }
    const Committer::Events events = committer.TakeEvents();
    report.bytes_written = written_before + events.bytes_written;
    report.units_done += events.units.size();
    report.commits += events.committed.size() + events.units.size();
    if (!events.announced.empty()) pool.Submit(std::exchange(announced, nullptr));
    for (uint32_t sample : events.committed) {
      scheduler.OnCommitted(sample);
      if (sender != nullptr) sender->Committed(sample);
      layers_passed += todo.last_layer - todo.first_layer;
      open.erase(sample);
    }
    for (uint32_t sample : events.omitted) {
      const uint64_t held = scheduler.OnOmitted(sample);
      if (receiver != nullptr && held > 0) receiver->Release(held);
      --report.samples_total;
      open.erase(sample);
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
