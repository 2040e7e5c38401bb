// SPDX-License-Identifier: Apache-2.0
//
// What one record does to the state. A record that does not decode is as good as not there: first *valid* wins.
#include <algorithm>

#include "ledger/base/mutant.h"
#include "ledger/fold/run_state.h"

namespace holdfast {
namespace {

constexpr uint32_t kNoStage = 0x10000;

template <class T>
Result<T> Parse(const Record& record) {
  HOLDFAST_ASSIGN(const Json j, ControlPayload(record));
  return T::FromJson(j);
}

// Whether two statements about one key should be the same. A layer made with other samples is another layer.
template <class T>
bool SpeakOfTheSame(const T&, const T&) { return true; }
bool SpeakOfTheSame(const LayerRecord& a, const LayerRecord& b) { return a.omitted == b.omitted; }

// The value that counts, or null.
template <class K, class V>
auto* First(const std::map<K, std::vector<V>>& ledger, const K& key) {
  const auto it = ledger.find(key);
  return it == ledger.end() ? nullptr : &it->second.front().value;
}

}  // namespace

Status RunState::Apply(const std::string& stream, const Record& record, const Slot& slot) {
  StageId stage;
  const bool staged = RunLayout::ParseStageStream(stream, &stage);
  const Origin origin{staged ? stage.value : kNoStage, slot.seq, stream, record.key, Sha256(record.payload), record.epoch};
  if (staged) {
    StageState& s = stages_[stage];
    s.stage = stage;
    s.last_wall_ns = std::max(s.last_wall_ns, record.wall_ns);
  }
  if (stream == RunLayout::JobStream()) FoldJobStream(record);
  const Status folded = Fold(origin, record);
  if (!folded.ok() && folded.code() != ErrorCode::kCorrupt) return folded;
  if (!folded.ok()) ++invalid_;
  return OkStatus();
}

// Where each class belongs; a class that this version does not know is kept in the log and ignored here (R8).
Status RunState::Fold(const Origin& origin, const Record& record) {
  if (record.key.cls != RecordClass::kSample) sample_control_.reset();
  switch (record.key.cls) {
    case RecordClass::kJob:
      if (record.key.part == 0) {
        HOLDFAST_ASSIGN(JobSpec job, Parse<JobSpec>(record));
        Add(&said_job_, uint8_t{0}, origin, std::move(job), true);
        if (!job_) ViewJob(), ViewOmitted();  // what counts already is left alone: others may be reading it
      } else if (record.key.part == 1) {
        HOLDFAST_ASSIGN(auto ids, DecodeTokens(record.payload));
        Add(&said_tokens_, record.key.a, origin, std::move(ids), true);
        if (record.key.a >= tokens_.size() || tokens_[record.key.a].empty()) ViewTokens(record.key.a);
      }
      return OkStatus();
    case RecordClass::kPlan: {
      HOLDFAST_ASSIGN(Plan plan, Parse<Plan>(record));
      const uint32_t number = plan.number;
      Add(&said_plans_, number, origin, std::move(plan), true);
      if (!plans_.contains(number)) ViewPlan(number);
      return OkStatus();
    }
    case RecordClass::kIncarnation: {
      HOLDFAST_ASSIGN(Incarnation life, Parse<Incarnation>(record));
      const bool known = std::any_of(incarnations_.begin(), incarnations_.end(), [&](const Incarnation& i) { return i.nonce == life.nonce; });
      if (!known) incarnations_.push_back(std::move(life));
      return OkStatus();
    }
    case RecordClass::kAssignment: {
      if (origin.stream != RunLayout::JobStream()) return OkStatus();
      HOLDFAST_ASSIGN(Assignment assignment, Parse<Assignment>(record));
      const uint32_t number = assignment.number;
      Add(&said_assignments_, number, origin, std::move(assignment), false);
      ViewAssignment();
      ViewOmitted();
      return OkStatus();
    }
    case RecordClass::kOmit: {
      if (origin.stream != RunLayout::JobStream()) return OkStatus();
      HOLDFAST_ASSIGN(OmitRecord omit, Parse<OmitRecord>(record));
      if (omit.sample != record.key.a) return Corrupt("omission record: its sample differs from its key's");
      Add(&said_omits_, record.key.a, origin, std::move(omit), false);
      ViewOmitted();
      return OkStatus();
    }
    case RecordClass::kClaim:
    case RecordClass::kPhase:
    case RecordClass::kRelease:
    case RecordClass::kSeal: return origin.order == kNoStage ? OkStatus() : FoldStage(origin, record);
    case RecordClass::kSource:
    case RecordClass::kLayer: return FoldResult(origin, record);
    case RecordClass::kSample: return FoldSample(origin, record);
    case RecordClass::kMerge:
    case RecordClass::kDone: return FoldMerge(origin, record);
    case RecordClass::kVoid: return FoldVoid(origin, record);
    default: return OkStatus();
  }
}

// Who drives the job: a claim takes it up, a release says why it was laid down.
void RunState::FoldJobStream(const Record& record) {
  if (record.key.cls == RecordClass::kClaim) job_release_reason_.clear();
  if (record.key.cls != RecordClass::kRelease) return;
  const auto release = Parse<Release>(record);
  job_release_reason_ = release.ok() ? release->reason : "released";
}

Status RunState::FoldStage(const Origin& origin, const Record& record) {
  const StageId stage(static_cast<uint16_t>(origin.order));
  StageState& state = stages_[stage];
  if (record.key.cls == RecordClass::kClaim) {
    HOLDFAST_ASSIGN(Claim claim, Parse<Claim>(record));
    if (state.claims.empty() || state.claims.back().epoch < claim.epoch) state.claims.push_back(std::move(claim));
    state.suspicion.before = std::exchange(state.suspicion.now, {});
    state.blame.reset();
  } else if (record.key.cls == RecordClass::kPhase) {
    HOLDFAST_ASSIGN(PhaseBegin phase, Parse<PhaseBegin>(record));
    if (phase.phase == "calibrate") state.suspicion.now.calibrating = true;
    if (phase.phase == kPhaseBlame && phase.sample) state.blame = Blame{*phase.sample, phase.why};
    else if (phase.sample) ++state.suspicion.tries[*phase.sample];
    else state.phase = std::move(phase);
  } else if (record.key.cls == RecordClass::kRelease) {
    HOLDFAST_ASSIGN(const Release release, Parse<Release>(record));
    state.suspicion.now.released = true;
    if (release.reason == kReleasePoison) state.suspicion.tries.clear();
  } else {
    HOLDFAST_ASSIGN(SealRecord seal, Parse<SealRecord>(record));
    Add(&said_seals_, stage, origin, std::move(seal), false);
    ViewSeals();
  }
  return OkStatus();
}

Status RunState::FoldResult(const Origin& origin, const Record& record) {
  if (record.key.cls == RecordClass::kSource) {
    HOLDFAST_ASSIGN(SourceRead read, Parse<SourceRead>(record));
    const uint32_t unit = read.unit;
    Add(&said_sources_, unit, origin, std::move(read), true);
    if (!source_reads_.contains(unit)) ViewSource(unit);
  } else {
    HOLDFAST_ASSIGN(LayerRecord layer, Parse<LayerRecord>(record));
    if (layer.unit != record.key.a) return Corrupt("layer record: its unit differs from its key's");
    Add(&layers_, record.key.a, origin, std::move(layer), true);
    NoteProgress(origin);
  }
  return OkStatus();
}

// Part 0 comes right before part 1: both lie in one slot, and keys ascend.
Status RunState::FoldSample(Origin origin, const Record& record) {
  if (record.key.part == 0) {
    sample_control_ = record;
    return OkStatus();
  }
  if (record.key.part != 1 || !sample_control_) return Corrupt("sample record: amax without its control part");
  const Record control = *std::exchange(sample_control_, std::nullopt);
  HOLDFAST_ASSIGN(SampleRecord sample, SampleRecord::FromRecords(control, record));
  Sha256Hasher both;
  both.Update(control.payload);
  both.Update(record.payload);
  origin.payload = both.Finish();
  origin.key = control.key;
  const uint32_t number = sample.sample;
  Add(&samples_, number, origin, std::move(sample), true);
  NoteProgress(origin);
  if (origin.order != kNoStage) stages_[StageId(static_cast<uint16_t>(origin.order))].suspicion.tries.erase(number);   // it came through
  return OkStatus();
}

void RunState::NoteProgress(const Origin& origin) {
  if (origin.order != kNoStage) stages_[StageId(static_cast<uint16_t>(origin.order))].suspicion.now.progress = true;
}

Status RunState::FoldMerge(const Origin& origin, const Record& record) {
  if (record.key.cls == RecordClass::kDone) {
    HOLDFAST_ASSIGN(DoneRecord done, Parse<DoneRecord>(record));
    Add(&said_done_, uint8_t{0}, origin, std::move(done), false);
  } else {
    HOLDFAST_ASSIGN(MergeRecord m, Parse<MergeRecord>(record));
    const uint32_t file = m.file;
    if (m.state == MergeRecord::State::kWritten) Add(&said_merges_, file, origin, std::move(m), false);
    if (m.state == MergeRecord::State::kPublished) Add(&said_published_, uint8_t{0}, origin, std::move(m), false);
  }
  ViewMerge();
  return OkStatus();
}

// R5: what the record names, in earlier slots of its own stream, was never said. The work is open again; if it had been said twice,
// the second time counts now.
Status RunState::FoldVoid(const Origin& origin, const Record& record) {
  if (record.key.part != 0) return OkStatus();  // part 1 of a tombstone belongs to the chain
  HOLDFAST_ASSIGN(const VoidRecord v, Parse<VoidRecord>(record));
  RecordKey key;
  if (v.target == "key") {
    HOLDFAST_ASSIGN(key, RecordKey::Decode(v.key));
    if (key.cls == RecordClass::kSample) key.part = 0;  // both parts are one statement
  }
  const auto hit = [&](const auto& said) {
    const Origin& o = said.origin;
    return o.stream == origin.stream && o.seq < origin.seq && (v.target == "slot" ? o.seq == v.seq : o.key == key);
  };
  const auto strike = [&](auto* ledger) {
    for (auto it = ledger->begin(); it != ledger->end();) {
      std::erase_if(it->second, hit);
      it = it->second.empty() ? ledger->erase(it) : std::next(it);
    }
  };
  if (origin.stream == RunLayout::JobStream()) {
    strike(&said_job_), strike(&said_plans_), strike(&said_tokens_), strike(&said_assignments_), strike(&said_omits_);
    ViewJob();
    ViewAssignment();
    ViewOmitted();
    std::vector<uint32_t> numbers;
    for (const auto& [number, plan] : plans_) numbers.push_back(number);
    for (const uint32_t number : numbers) ViewPlan(number);
    for (uint32_t sample = 0; sample < tokens_.size(); ++sample) ViewTokens(sample);
  }
  strike(&samples_), strike(&layers_), strike(&said_seals_), strike(&said_merges_), strike(&said_published_), strike(&said_done_), strike(&said_sources_);
  std::vector<uint32_t> units;
  for (const auto& [unit, read] : source_reads_) units.push_back(unit);
  for (const uint32_t unit : units) ViewSource(unit);
  ViewMerge();
  ViewSeals();
  return OkStatus();
}

// Keeps `value` in its place; the same slot delivered again changes nothing. `must_repeat`: a second statement about the same key
// in one stream should equal the first, and is counted as nondeterminism if it does not.
template <class K, class T>
void RunState::Add(Ledger<K, T>* ledger, const K& key, const Origin& origin, T value, bool must_repeat) {
  std::vector<Said<T>>& all = (*ledger)[key];
  const auto same_key = [&](const Said<T>& s) {
    return s.origin.stream == origin.stream && s.origin.key == origin.key && SpeakOfTheSame(s.value, value);
  };
  const auto first = std::find_if(all.begin(), all.end(), same_key);
  const auto at = std::find_if(all.begin(), all.end(), [&](const Said<T>& s) { return !s.origin.Before(origin); });
  if (at != all.end() && !origin.Before(at->origin)) return;
  if (must_repeat && first != all.end() && first->origin.payload != origin.payload) ++nondeterminism_;
  all.insert(HOLDFAST_MUTANT("fold-last-wins") ? all.begin() : at, Said<T>{origin, std::move(value)});
}

// ---- views: what counts ----

void RunState::ViewJob() {
  const JobSpec* job = First(said_job_, uint8_t{0});
  job_ = job == nullptr ? std::nullopt : std::optional<JobSpec>(*job);
}

void RunState::ViewPlan(uint32_t number) {
  if (const Plan* plan = First(said_plans_, number)) {
    plans_.insert_or_assign(number, *plan);
  } else {
    plans_.erase(number);
  }
}

void RunState::ViewAssignment() {
  assignment_.reset();
  if (!said_assignments_.empty()) assignment_ = said_assignments_.rbegin()->second.front().value;
}

// In the order in which they were said. One too many was said by nobody who follows the rules: it does not count.
void RunState::ViewOmitted() {
  merge_given_ = false;
  for (const auto& [number, all] : said_assignments_) {
    merge_given_ |= std::any_of(all.begin(), all.end(), [](const Said<Assignment>& s) { return !s.value.merge_node.empty(); });
  }
  std::vector<const Said<OmitRecord>*> said;
  for (const auto& [sample, all] : said_omits_) {
    if (job_ && sample < job_->samples) said.push_back(&all.front());
  }
  std::sort(said.begin(), said.end(), [](const auto* a, const auto* b) { return a->origin.Before(b->origin); });
  const size_t most = job_ ? std::min(job_->skip_samples, job_->samples) : 0;
  if (said.size() > most) said.resize(most);
  omitted_.clear();
  for (const auto* s : said) omitted_.emplace(s->value.sample, s->value);
  ViewSeals();
}

void RunState::ViewTokens(uint32_t sample) {
  constexpr uint32_t kSamplesMax = 1u << 24;
  if (sample >= kSamplesMax) return;
  if (sample >= tokens_.size()) tokens_.resize(sample + 1);
  const std::vector<int32_t>* ids = First(said_tokens_, sample);
  tokens_[sample] = ids == nullptr ? std::vector<int32_t>() : *ids;
}

void RunState::ViewSource(uint32_t unit) {
  if (const SourceRead* read = First(said_sources_, unit)) {
    source_reads_.insert_or_assign(unit, *read);
  } else {
    source_reads_.erase(unit);
  }
}

// Steps of the merge may be repeated with another staging directory: the latest counts. Done is said once.
void RunState::ViewMerge() {
  merge_written_.clear();
  for (const auto& [file, said] : said_merges_) merge_written_.emplace(file, said.back().value);
  published_.reset();
  if (const auto it = said_published_.find(0); it != said_published_.end()) published_ = it->second.back().value;
  const DoneRecord* done = First(said_done_, uint8_t{0});
  done_ = done == nullptr ? std::nullopt : std::optional<DoneRecord>(*done);
}

void RunState::ViewSeals() {
  seals_open_ = false;
  const std::vector<uint32_t> omitted = OmittedSamples();
  for (auto& [stage, state] : stages_) {
    const SealRecord* seal = nullptr;
    if (const auto said = said_seals_.find(stage); said != said_seals_.end()) {
      const auto counts = [&](const Said<SealRecord>& s) { return s.value.omitted == omitted; };
      const auto it = std::find_if(said->second.begin(), said->second.end(), counts);
      if (it != said->second.end()) seal = &it->value;
    }
    const bool holds = seal != nullptr && Holds(*seal);
    if (seal != nullptr && !holds) seals_open_ = true;
    state.seal = holds ? std::optional<SealRecord>(*seal) : std::nullopt;
  }
}

}  // namespace holdfast
