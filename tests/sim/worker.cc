// SPDX-License-Identifier: Apache-2.0
//
// The children of a daemon: one life of a stage, one life of the merge, in the order in which holdfast-worker and holdfast-merge do things.
// One fiber does what their threads do, so compute and commits take turns; forward passes are ComputeLayer.
#include <algorithm>
#include <limits>
#include <map>
#include <set>

#include "daemon/core/stage_scheduler.h"
#include "daemon/worker/commit_queue.h"
#include "daemon/worker/cut_writer.h"
#include "daemon/worker/poison.h"
#include "daemon/worker/todo.h"
#include "export/format/safetensors.h"
#include "export/merge/merge.h"
#include "export/shard/evict.h"
#include "ledger/fold/seal.h"
#include "tests/sim/cluster.h"

namespace holdfast::sim {
namespace {

constexpr uint64_t kTickNs = 100 * kMs, kDrainNs = 20 * kSecond;
constexpr uint32_t kWindow = 3, kAwaitingMax = 2;

StreamWriter::Options ClaimAs(const RunState& state, const Incarnation& self, const std::string& reason, Clock& clock) {
  StreamWriter::Options o;
  o.job = state.job().uuid;
  o.claim = {.epoch = 0, .incarnation = self.nonce, .node = self.node, .reason = reason, .pid = self.pid, .numerics = self.numerics};
  o.wait = [&clock](uint64_t ms) { clock.SleepMs(ms); };
  return o;
}

class Worker {
 public:
  Worker(Process& self, SimNode& node, SimTask& task)
      : self_(self), node_(node), task_(task), tape_(task.tape.get()), files_(node, self, tape_), fs_(files_.fs()),
        clock_(node.cluster.world, self, node.options.wall_skew_s, tape_),
        state_(fs_, RunLayout(kRunDir)) {}

  Status Run() {
    Status status = Open();
    if (status.ok()) status = Work();
    if (!status.ok() && writer_ != nullptr && status.code() == ErrorCode::kStopped && !self_.dead()) {
      if (const Status r = writer_->ReleaseStream("drain"); !r.ok()) status = r;
    }
    return status;
  }

 private:
  bool Stopping() const {
    const bool asked = task_.stop.load();
    return (tape_ == nullptr ? asked : tape_->Number('x', asked) != 0) || self_.dead();
  }
  bool Replaying() const { return tape_ != nullptr && tape_->replaying(); }   // a clone that is still becoming what its original is
  void Sleep(uint64_t ns) {
    if (!Replaying()) self_.Sleep(ns);
  }
  std::string Stream() const { return RunLayout::StageStream(stage_.stage); }
  void Acknowledge(RecordKey key) {
    if (Replaying()) return;
    ++task_.commits;
    key.stage = stage_.stage.value;
    node_.cluster.Acknowledged({Stream(), writer_->epoch(), key});
  }

  Status Open() {
    HOLDFAST_TRY(state_.Refresh());
    const auto& stages = state_.plan().stages;
    const auto it = std::find_if(stages.begin(), stages.end(), [&](const StagePlan& s) { return s.stage == task_.plan.stage; });
    if (it == stages.end()) return InvalidArgument("the stage is not in the latest plan");
    stage_ = *it;
    me_.node = task_.as_node.empty() ? node_.name() : task_.as_node;
    me_.nonce = task_.incarnation = Nonce::Random();
    me_.numerics = kNumerics;
    if (stage_.first_layer > 0 && node_.cluster.options.edges && tape_ == nullptr) me_.endpoint = "sim://" + me_.nonce.Hex();
    HOLDFAST_TRY(fs_.MakeDirs(state_.layout().TmpDir(me_.nonce)));
    const std::string stream = Stream();
    HOLDFAST_ASSIGN(writer_, StreamWriter::Open(fs_, state_.layout(), clock_, state_.ReaderOf(stream),
                                                [this, stream](const Record& r, const Slot& s) { return state_.Apply(stream, r, s); },
                                                ClaimAs(state_, me_, task_.reason, clock_),
                                                {MakeControl({.cls = RecordClass::kIncarnation, .stage = stage_.stage.value}, me_.ToJson())}));
    Acknowledge({.cls = RecordClass::kClaim, .stage = 0, .a = static_cast<uint32_t>(writer_->epoch())});
    task_.commits = 0;
    return OkStatus();
  }

  Status Begin(const char* phase) {
    PhaseBegin b;
    b.phase = phase;
    const RecordKey key{.cls = RecordClass::kPhase, .stage = stage_.stage.value, .a = static_cast<uint32_t>(phase[0]), .b = static_cast<uint32_t>(writer_->epoch())};
    return writer_->Append({MakeControl(key, b.ToJson())});
  }

  // StageWorker's.
  Status Work() {
    for (;;) {
      HOLDFAST_TRY(Calibrate());
      HOLDFAST_TRY(Evict());
      HOLDFAST_ASSIGN(const bool sealed, Seal());
      if (sealed) return writer_->ReleaseStream("done");
    }
  }

  Status Calibrate() {
    for (;;) {
      const uint32_t some = node_.cluster.nodes.at(me_.node)->options.layers_at_once, at_once = some == 0 ? stage_.last_layer : some;
      const auto todo = NextGroup(state_, stage_, at_once, [this](const Cut& cut) { return CutIsThere(fs_, state_.layout(), cut); },
                                  [this](uint32_t sample, uint32_t layer) { return layer == held_before_ && held_.contains(sample); });
      if (!todo) return OkStatus();
      Caution caution;
      if (state_.job().skip_samples > 0) {     // elsewhere samples do no harm here, and other seeds' histories stay what they were
        const StageState& known = state_.stages().at(stage_.stage);
        caution = CautionFor(known, task_.reason, {.window = kWindow, .threads = 1}, todo->samples);
        task_.tries = TriesThatCount(known, caution, todo->samples.size(), state_.skips_left());
        if (const auto poison = FindPoison(known, caution, todo->samples)) {
          HOLDFAST_TRY(AwaitOmission(*poison));
          continue;
        }
      }
      HOLDFAST_TRY(Begin("calibrate"));
      HOLDFAST_TRY(Loop(*todo, caution));
      held_ = std::exchange(held_next_, {});
      held_before_ = todo->last_layer;
      HOLDFAST_TRY(DropConsumedCuts());
    }
  }

  Status DropConsumedCuts() {
    const ConsumedCuts consumed = FindConsumedCuts(state_, stage_, cuts_kept_from_);
    for (const PackManifest& m : consumed.packs) {
      node_.cluster.world.Trace(self_.name(), "drops a consumed cut");
      if (const Status gone = fs_.Unlink(state_.layout().Pack(m.root)); !gone.ok() && gone.code() != ErrorCode::kNotFound) return OkStatus();
    }
    cuts_kept_from_ = consumed.below;
    return OkStatus();
  }

  Status AwaitOmission(const Blame& blame) {
    if (state_.skips_left() == 0) {
      HOLDFAST_TRY(writer_->ReleaseStream(kReleasePoison));
      return CannotDoWithout(state_, blame);
    }
    HOLDFAST_TRY(writer_->Append({BlameRecord(stage_.stage, writer_->epoch(), blame)}));
    while (!state_.Omitted(blame.sample)) {
      if (self_.dead() || Stopping()) return Stopped("stopped while a sample is to be left out");
      Sleep(kTickNs);
      HOLDFAST_TRY(state_.RefreshLayers({{stage_.first_layer, stage_.last_layer}}));
      if (state_.skips_left() > 0 || state_.Omitted(blame.sample)) continue;
      HOLDFAST_TRY(writer_->ReleaseStream(kReleasePoison));
      return CannotDoWithout(state_, blame);
    }
    return OkStatus();
  }

  bool Is(const std::vector<uint32_t>& samples, uint32_t sample) const { return std::find(samples.begin(), samples.end(), sample) != samples.end(); }

  Result<ComputedSample> Compute(const StartSample& start, const Todo& group, const std::map<uint32_t, Cut>& packs) {
    if (Is(node_.cluster.options.poison, start.sample)) {
      node_.cluster.world.faults.Add(Fault::kPoisonSample);
      node_.cluster.world.Trace(self_.name(), "dies of sample " + std::to_string(start.sample));
      self_.Kill();
      return Stopped("killed");
    }
    if (!Replaying() && !task_.device.empty() && task_.device == node_.broken) {
      node_.cluster.world.faults.Add(Fault::kDeviceBroken);
      return Internal("unspecified launch failure on " + task_.device);
    }
    ComputedSample done;
    SampleRecord& r = done.record;
    r.sample = start.sample;
    r.first_layer = group.first_layer;
    r.last_layer = group.last_layer;
    r.numerics = kNumerics;
    const std::vector<int32_t>& ids = state_.tokens()[start.sample];
    Bytes hidden = start.cut;
    if (start.input == InputKind::kTokens) {
      r.input = Sha256(EncodeTokens(ids));
      hidden = Embed(ids, state_.plan().hidden_size);
    } else {
      if (const auto held = held_.find(start.sample); group.first_layer == held_before_ && held != held_.end()) {
        hidden = *held->second;
        done.from_memory = true;
      } else if (start.input == InputKind::kPack) {
        HOLDFAST_ASSIGN(hidden, ReadCut(fs_, state_.layout(), packs.at(start.sample)));
      }
      r.input = Sha256(hidden);
    }
    for (uint32_t layer = group.first_layer; layer < group.last_layer; ++layer) {
      LayerResult result = ComputeLayer(hidden, layer, state_.plan().units[layer].sites.size());
      if (layer + 1 == state_.plan().layers && Is(node_.cluster.options.infinite, start.sample)) {
        node_.cluster.world.faults.Add(Fault::kSampleNotFinite);
        result.amax.back() = std::numeric_limits<float>::infinity();
      }
      r.amax.insert(r.amax.end(), result.amax.begin(), result.amax.end());
      hidden = std::move(result.hidden);
    }
    if (group.last_layer < state_.plan().layers) {
      r.output = Cut{.tokens = ids.size(), .hidden = state_.plan().hidden_size, .digest = Sha256(hidden), .packs = {}};
      done.hidden = std::make_shared<const Bytes>(std::move(hidden));
    }
    return done;
  }

  Status Loop(const Todo& todo, const Caution& caution) {
    const uint64_t cut_bytes = static_cast<uint64_t>(state_.job().seq_len) * state_.plan().hidden_size * 2;
    const bool from_tokens = todo.first_layer == 0;
    StageScheduler scheduler({.todo = todo.samples, .from_tokens = from_tokens, .window = kWindow, .awaiting_max = kAwaitingMax, .awaiting_after = caution.after_death ? kAwaitingMax : 0, .memory_bytes_max = kWindow * cut_bytes,
                              .alone = caution.alone, .suspects = caution.suspects});
    std::map<uint32_t, Cut> packs = todo.cuts;
    for (const auto& [sample, cut] : packs) scheduler.OnCutCommitted(sample);
    for (const uint32_t sample : todo.held) scheduler.OnCutCommitted(sample);
    const uint32_t share = node_.cluster.nodes.at(me_.node)->options.cuts_kept;
    const bool kept = todo.last_layer == stage_.last_layer || PassedBefore(state_, todo) || Random(Mix(share, todo.last_layer)).Chance(share);   // a clone comes to the same
    CutWriter cuts(fs_, clock_, state_.layout(), me_.nonce, Stream());
    std::vector<CommitEvent> events;
    CommitQueue queue({.fs = &fs_, .clock = &clock_, .state = &state_, .writer = writer_.get(), .incarnation = me_.nonce, .stage = stage_.stage,
                       .first_layer = stage_.first_layer, .last_layer = stage_.last_layer, .upstream_wanted = todo.upstream_wanted,
                       .omitted = state_.OmittedSamples(), .on_event = [&](CommitEvent e) { events.push_back(std::move(e)); }});
    std::vector<StartSample> computing;
    uint64_t drain_until = 0;
    while (!scheduler.done()) {
      if (self_.dead()) return Stopped("killed");
      if (Stopping() && drain_until == 0) drain_until = clock_.MonotonicNs() + kDrainNs;
      if (drain_until != 0 && (scheduler.in_flight() == 0 || clock_.MonotonicNs() > drain_until)) return Stopped("drained");
      for (const CutMessage& m : std::exchange(task_.mail, {})) {
        if (todo.first_layer == stage_.first_layer) (void)scheduler.OnCutReceived(m.sample, m.tokens, m.cut);
      }
      while (drain_until == 0) {
        auto start = scheduler.Next();
        if (!start) break;
        if (start->alone) HOLDFAST_TRY(queue.Announce(start->sample));
        computing.push_back(std::move(*start));
      }
      std::optional<ComputedSample> computed;
      if (!computing.empty()) {
        Sleep(node_.options.compute_ns);
        HOLDFAST_ASSIGN(computed, Compute(computing.front(), todo, packs));
        computing.erase(computing.begin());
        if (!consumer_.empty() && computed->hidden != nullptr && todo.last_layer == stage_.last_layer) {
          node_.cluster.SendCut(node_, consumer_, {computed->record.sample, computed->record.output->tokens, *computed->hidden});
        }
        last_[computed->record.sample] = computed->record;
      } else {
        Sleep(kTickNs);
      }
      if (computed && computed->hidden != nullptr) {
        held_next_[computed->record.sample] = computed->hidden;
        if (kept) {
          HOLDFAST_ASSIGN(computed->record.output->packs, cuts.Write(*computed->hidden, WrittenAs(state_, computed->record.sample, todo.last_layer)));
        }
      }
      if (computed) {
        scheduler.OnWritten(computed->record.sample);
        queue.Add(std::move(*computed));
      }
      const Status stepped = queue.Step(CommitQueue::Look::kWhenDue);
      for (CommitEvent& e : std::exchange(events, {})) HOLDFAST_TRY(Take(std::move(e), &scheduler, &packs));
      HOLDFAST_TRY(stepped);
    }
    return OkStatus();
  }

  Status Take(CommitEvent event, StageScheduler* scheduler, std::map<uint32_t, Cut>* packs) {
    if (const auto* c = std::get_if<SampleCommitted>(&event)) {
      scheduler->OnCommitted(c->sample);
      Acknowledge({.cls = RecordClass::kSample, .stage = 0, .a = c->sample, .b = last_.at(c->sample).first_layer});
      if (self_.random().Chance(node_.options.recompute)) return OnceMore(c->sample);
    } else if (auto* u = std::get_if<UpstreamCommitted>(&event)) {
      for (auto& [sample, cut] : u->cuts) {
        packs->emplace(sample, std::move(cut));
        scheduler->OnCutCommitted(sample);
      }
    } else if (const auto* r = std::get_if<SampleRedo>(&event)) {
      scheduler->OnFailed(r->sample);
      scheduler->OnCutCommitted(r->sample);
    } else if (const auto* o = std::get_if<SamplesOmitted>(&event)) {
      for (const uint32_t sample : o->samples) (void)scheduler->OnOmitted(sample);
    } else if (const auto* d = std::get_if<SampleDropped>(&event)) {
      scheduler->OnDropped(d->sample);
    } else if (const auto* f = std::get_if<ConsumerFound>(&event)) {
      consumer_ = f->consumer.endpoint;
    }
    return OkStatus();
  }

  // Execution is at least once, and another device class may come to other bits: the first record must stay the one that counts.
  Status OnceMore(uint32_t sample) {
    SampleRecord again = last_.at(sample);
    again.output.reset();
    for (float& a : again.amax) a *= 1.25f;
    node_.cluster.world.faults.Add(Fault::kRecomputedOtherwise);
    node_.cluster.world.Trace(self_.name(), "computes sample " + std::to_string(sample) + " once more, with other bits");
    return writer_->Append(again.ToRecords(stage_.stage));
  }

  Status Evict() {
    HOLDFAST_TRY(state_.RefreshLayers({{stage_.first_layer, stage_.last_layer}}));
    while (const auto blame = FindNotFinite(state_, stage_)) HOLDFAST_TRY(AwaitOmission(*blame));
    evicted_without_ = state_.OmittedSamples();
    std::vector<uint32_t> missing;
    for (const uint32_t unit : UnitsOf(state_.plan(), stage_)) {
      if (state_.Layer(unit) == nullptr) missing.push_back(unit);
    }
    if (missing.empty()) return OkStatus();
    HOLDFAST_ASSIGN(const auto source, SourceModel::Open(fs_, state_.job().source));
    HOLDFAST_TRY(Begin("evict"));
    EvictOptions options;
    options.incarnation = me_.nonce;
    for (const uint32_t unit : missing) {
      if (Stopping()) return Stopped("drained during eviction");
      std::vector<float> amax;
      if (unit < state_.plan().layers) {
        HOLDFAST_ASSIGN(amax, state_.ReducedAmax(unit));
      }
      Sleep(node_.options.compute_ns);
      HOLDFAST_ASSIGN(LayerRecord e, EvictUnit(fs_, state_.layout(), *source, state_.plan(), state_.plan().units[unit], amax, options));
      if (!amax.empty()) e.omitted = evicted_without_;
      const RecordKey key{.cls = RecordClass::kLayer, .stage = stage_.stage.value, .a = unit};
      HOLDFAST_TRY(writer_->Append({MakeControl(key, e.ToJson())}));
      Acknowledge(key);
    }
    return OkStatus();
  }

  // false: what was evicted is not what counts any more.
  Result<bool> Seal() {
    HOLDFAST_TRY(state_.RefreshLayers({{stage_.first_layer, stage_.last_layer}}));
    if (state_.OmittedSamples() != evicted_without_) return false;
    const auto known = state_.stages().find(stage_.stage);
    if (known == state_.stages().end() || !known->second.seal) {
      SealRecord z;
      z.samples = state_.job().samples;
      z.first_layer = stage_.first_layer;
      z.last_layer = stage_.last_layer;
      z.omitted = evicted_without_;
      HOLDFAST_ASSIGN(z.root, SealRoot(state_, stage_.first_layer, stage_.last_layer, UnitsOf(state_.plan(), stage_)));
      HOLDFAST_TRY(writer_->Append({MakeControl({.cls = RecordClass::kSeal, .stage = stage_.stage.value}, z.ToJson())}));
      Acknowledge({.cls = RecordClass::kSeal});
    }
    return true;
  }

  Process& self_;
  SimNode& node_;
  SimTask& task_;
  Tape* tape_;
  ProcessFiles files_;
  FileSystem& fs_;
  NodeClock clock_;
  RunState state_;
  StagePlan stage_;
  std::map<uint32_t, std::shared_ptr<const Bytes>> held_, held_next_;   // what leaves a group stays in memory for the next one
  uint32_t held_before_ = 0;
  Incarnation me_;
  std::unique_ptr<StreamWriter> writer_;
  uint32_t cuts_kept_from_ = 0;                 // cuts inside the stage below this layer are gone
  std::vector<uint32_t> evicted_without_;       // samples that were left out when units were last evicted
  std::string consumer_;                        // endpoint of whoever takes our cuts
  std::map<uint32_t, SampleRecord> last_;
};

}  // namespace

Status WorkerMain(Process& self, SimNode& node, SimTask& task) { return Worker(self, node, task).Run(); }

Status MergeMain(Process& self, SimNode& node, SimTask& task) {
  ProcessFiles files(node, self);
  FileSystem& fs = files.fs();
  NodeClock clock(node.cluster.world, self, node.options.wall_skew_s);
  RunState state(fs, RunLayout(kRunDir));
  HOLDFAST_TRY(state.Refresh());
  Incarnation me;
  me.node = node.name();
  me.nonce = Nonce::Random();
  HOLDFAST_TRY(fs.MakeDirs(state.layout().TmpDir(me.nonce)));
  const std::string stream = RunLayout::MergeStream();
  HOLDFAST_ASSIGN(const auto writer, StreamWriter::Open(fs, state.layout(), clock, state.ReaderOf(stream),
                                                        [&](const Record& r, const Slot& s) { return state.Apply(stream, r, s); },
                                                        ClaimAs(state, me, task.reason, clock), {MakeControl({.cls = RecordClass::kIncarnation}, me.ToJson())}));
  const auto acknowledge = [&](const RecordKey& key) { ++task.commits, node.cluster.Acknowledged({stream, writer->epoch(), key}); };
  acknowledge({.cls = RecordClass::kClaim, .stage = 0, .a = static_cast<uint32_t>(writer->epoch())});
  MergeOptions options;
  options.incarnation = me.nonce;
  options.stop = &task.stop;
  const auto merged = RunMerge(fs, state, *writer, options);
  if (merged.code() == ErrorCode::kStopped && !self.dead()) HOLDFAST_TRY(writer->ReleaseStream("drain"));
  if (!merged.ok()) return merged.error();
  HOLDFAST_TRY(state.Refresh());
  if (!state.done()) {
    DoneRecord done{.manifest = *merged, .report = Json::object()};
    HOLDFAST_TRY(writer->Append({MakeControl({.cls = RecordClass::kDone}, done.ToJson())}));
    acknowledge({.cls = RecordClass::kDone});
  }
  return writer->ReleaseStream("done");
}

}  // namespace holdfast::sim
