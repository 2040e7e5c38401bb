// SPDX-License-Identifier: Apache-2.0
//
// Reading a run directory and answering questions about it. The fold of single records is in run_state_fold.cc.
#include "ledger/fold/run_state.h"

#include <algorithm>

#include "ledger/fold/seal.h"

namespace holdfast {

RunState::RunState(FileSystem& fs, RunLayout layout) : fs_(fs), layout_(std::move(layout)) {}
RunState::~RunState() = default;

static bool IsStream(const std::string& name) {
  StageId stage;
  return name == RunLayout::JobStream() || name == RunLayout::MergeStream() || name.rfind("node.", 0) == 0 ||
         RunLayout::ParseStageStream(name, &stage);
}

Status RunState::Refresh() {
  return RefreshIf([](const std::string&) { return true; });
}

// By the plans as of now: the job's stream was read before the others.
Status RunState::RefreshLayers(const std::vector<Layers>& layers) {
  return RefreshIf([&](const std::string& stream) {
    StageId stage;
    if (!RunLayout::ParseStageStream(stream, &stage)) return true;
    const auto ranges = RangesOf(stage);
    const auto touches = [&](const Layers& r) {
      return std::any_of(layers.begin(), layers.end(), [&](const Layers& l) { return r.first < l.second && l.first < r.second; });
    };
    return ranges.empty() || std::any_of(ranges.begin(), ranges.end(), touches);
  });
}

Status RunState::RefreshCutsBefore(uint32_t layer) {
  for (const auto& [stage, known] : stages_) {
    const auto ranges = RangesOf(stage);
    const bool ends = std::any_of(ranges.begin(), ranges.end(), [&](const Layers& r) { return r.second == layer; });
    if (ends) HOLDFAST_TRY(RefreshStream(RunLayout::StageStream(stage)));
  }
  return OkStatus();
}

// What the plans let a stage cover: one range, unless somebody numbers stages otherwise than we do.
std::vector<RunState::Layers> RunState::RangesOf(StageId stage) const {
  std::vector<Layers> ranges;
  for (const auto& [number, plan] : plans_) {
    for (const StagePlan& s : plan.stages) {
      if (s.stage == stage) ranges.emplace_back(s.first_layer, s.last_layer);
    }
  }
  return ranges;
}

Status RunState::RefreshIf(const std::function<bool(const std::string&)>& wanted) {
  if (!job_id_) {
    HOLDFAST_TRY(CheckFormat(fs_, layout_));
    HOLDFAST_ASSIGN(job_id_, ReadJobId(fs_, layout_));
  }
  HOLDFAST_TRY(RefreshStream(RunLayout::JobStream()));
  if (!job_) return Corrupt(layout_.StreamDir(RunLayout::JobStream()) + ": holds no job record; run `jobctl fsck " + layout_.root() + "`");
  if (job_->uuid != *job_id_) return Corrupt(layout_.Slot(RunLayout::JobStream(), 0) + ": job record and trailer name different jobs");
  HOLDFAST_ASSIGN(const auto names, fs_.List(layout_.LogDir()));
  for (const std::string& name : names) {
    if (name != RunLayout::JobStream() && IsStream(name) && wanted(name)) HOLDFAST_TRY(RefreshStream(name));
  }
  if (seals_open_) ViewSeals();
  return CheckTokens();
}

Status RunState::RefreshStream(const std::string& stream) {
  StreamReader* reader = ReaderOf(stream);
  HOLDFAST_TRY(reader->Poll([&](const Record& r, const Slot& s) { return Apply(stream, r, s); }));
  StageId stage;
  if (RunLayout::ParseStageStream(stream, &stage)) {
    stages_[stage].stage = stage;
    stages_[stage].stream = reader->state();
  }
  return OkStatus();
}

StreamReader* RunState::ReaderOf(const std::string& stream) {
  if (!job_id_) return nullptr;
  std::unique_ptr<StreamReader>& reader = readers_[stream];
  if (reader == nullptr) {
    reader = std::make_unique<StreamReader>(fs_, layout_, stream, *job_id_);
    reader->set_sink([this, stream](const Record& r, const Slot& s) { return Apply(stream, r, s); });
  }
  return reader.get();
}

// Once, as soon as all samples are there.
Status RunState::CheckTokens() {
  if (tokens_checked_ || job_->tokens_sha256.IsZero() || said_tokens_.size() != job_->samples || tokens_.size() != job_->samples) return OkStatus();
  Sha256Hasher hasher;
  for (const std::vector<int32_t>& ids : tokens_) {
    Bytes length;
    PutLe<uint32_t>(&length, static_cast<uint32_t>(ids.size()));
    hasher.Update(length);
    hasher.Update(EncodeTokens(ids));
  }
  if (hasher.Finish() != job_->tokens_sha256) return Corrupt(layout_.StreamDir(RunLayout::JobStream()) + ": the token ids are not those that the job record pins; run `jobctl fsck " + layout_.root() + "`");
  tokens_checked_ = true;
  return OkStatus();
}

// ---- questions ----

const SampleRecord* RunState::Sample(uint32_t sample, uint32_t layer) const {
  const auto it = samples_.find(sample);
  if (it == samples_.end()) return nullptr;
  for (const auto& said : it->second) {
    if (said.value.first_layer <= layer && layer < said.value.last_layer) return &said.value;
  }
  return nullptr;
}

const Cut* RunState::CutBefore(uint32_t sample, uint32_t layer) const {
  const auto it = samples_.find(sample);
  if (it == samples_.end()) return nullptr;
  for (const auto& said : it->second) {
    const SampleRecord& r = said.value;
    if (r.last_layer == layer && r.output && !r.output->packs.empty()) return &*r.output;
  }
  return nullptr;
}

bool RunState::SampleCovers(uint32_t sample, uint32_t first_layer, uint32_t last_layer) const {
  uint32_t layer = first_layer;
  while (layer < last_layer) {
    const SampleRecord* r = Sample(sample, layer);
    if (r == nullptr) return false;
    layer = r->last_layer;
  }
  return true;
}

uint64_t RunState::SamplesThrough(uint32_t first_layer, uint32_t last_layer) const {
  uint64_t layers = 0;
  for (uint32_t sample = 0; sample < job_->samples; ++sample) {
    for (uint32_t layer = first_layer; !Omitted(sample) && layer < last_layer; ++layer) layers += Sample(sample, layer) != nullptr;
  }
  return first_layer < last_layer ? layers / (last_layer - first_layer) : 0;
}

// Where no input amax went into a unit (embedding, head, weight-only recipes), no sample did.
const RunState::Said<LayerRecord>* RunState::LayerSaid(uint32_t unit) const {
  const auto it = layers_.find(unit);
  if (it == layers_.end()) return nullptr;
  const std::vector<uint32_t> omitted = OmittedSamples();
  const auto counts = [&](const Said<LayerRecord>& s) { return s.value.input_amax.empty() || s.value.omitted == omitted; };
  const auto said = std::find_if(it->second.begin(), it->second.end(), counts);
  return said == it->second.end() ? nullptr : &*said;
}

const LayerRecord* RunState::Layer(uint32_t unit) const {
  const auto* said = LayerSaid(unit);
  return said == nullptr ? nullptr : &said->value;
}

std::vector<uint32_t> RunState::OmittedSamples() const {
  std::vector<uint32_t> samples;
  for (const auto& [sample, omit] : omitted_) samples.push_back(sample);
  return samples;
}

uint32_t RunState::samples_in() const { return job_->samples - static_cast<uint32_t>(omitted_.size()); }

uint32_t RunState::skips_left() const {
  return merge_given_ || !job_ ? 0 : job_->skip_samples - static_cast<uint32_t>(omitted_.size());
}

Result<std::vector<float>> RunState::ReducedAmax(uint32_t layer) const {
  if (!job_ || plans_.empty() || layer >= plan().layers) return InvalidArgument("amax of layer " + std::to_string(layer) + ": no plan knows it");
  const size_t count = plan().units[layer].sites.size();
  std::vector<float> joined(count, 0.0f);
  for (uint32_t sample = 0; sample < job_->samples; ++sample) {
    if (Omitted(sample)) continue;
    const SampleRecord* r = Sample(sample, layer);
    if (r == nullptr) return NotFound("sample " + std::to_string(sample) + " of layer " + std::to_string(layer) + " is not committed");
    const size_t skip = plan().SitesOf(r->first_layer, layer).size();
    if (r->amax.size() < skip + count) return Corrupt("sample " + std::to_string(sample) + ": its amax vector is too short for the plan; run `jobctl fsck " + layout_.root() + "`");
    for (size_t i = 0; i < count; ++i) joined[i] = JoinAmax(joined[i], r->amax[skip + i]);
  }
  return joined;
}

const Incarnation* RunState::IncarnationOf(const Nonce& nonce) const {
  const auto it = std::find_if(incarnations_.begin(), incarnations_.end(), [&](const Incarnation& i) { return i.nonce == nonce; });
  return it == incarnations_.end() ? nullptr : &*it;
}

// ---- who did what ----

void RunState::EachSample(const std::function<void(const Said<SampleRecord>&)>& visit) const {
  for (const auto& [sample, all] : samples_) {
    if (Omitted(sample)) continue;
    std::set<const Said<SampleRecord>*> seen;
    for (uint32_t layer = 0; !plans_.empty() && layer < plan().layers; ++layer) {
      const auto it = std::find_if(all.begin(), all.end(), [&](const Said<SampleRecord>& s) { return s.value.first_layer <= layer && layer < s.value.last_layer; });
      if (it != all.end() && seen.insert(&*it).second) visit(*it);
    }
  }
}

const Claim* RunState::ClaimOf(const Origin& origin) const {
  StageId stage;
  if (!RunLayout::ParseStageStream(origin.stream, &stage)) return nullptr;
  const auto it = stages_.find(stage);
  if (it == stages_.end()) return nullptr;
  const auto& claims = it->second.claims;
  const auto claim = std::find_if(claims.begin(), claims.end(), [&](const Claim& c) { return c.epoch == origin.epoch; });
  return claim == claims.end() ? nullptr : &*claim;
}

std::map<std::pair<std::string, std::string>, Share> RunState::Shares() const {
  std::map<std::pair<std::string, std::string>, Share> shares;
  EachSample([&](const Said<SampleRecord>& said) {
    const Claim* claim = ClaimOf(said.origin);
    ++shares[{claim == nullptr ? "" : claim->node, said.value.numerics}].samples;
  });
  for (const auto& [unit, all] : layers_) {
    const auto* said = LayerSaid(unit);
    const Claim* claim = said == nullptr ? nullptr : ClaimOf(said->origin);
    if (claim != nullptr) ++shares[{claim->node, claim->numerics}].units;
  }
  return shares;
}

std::set<std::string> RunState::SampleNumerics() const {
  std::set<std::string> classes;
  EachSample([&](const Said<SampleRecord>& said) { classes.insert(said.value.numerics); });
  return classes;
}

std::string EffectiveNumerics(const RunState& state) {
  const std::set<std::string> classes = state.SampleNumerics();
  if (classes.empty()) return state.job().numerics;
  if (classes.size() == 1) return *classes.begin();
  std::string mixed = "mixed: ";
  for (const std::string& c : classes) mixed += (c == *classes.begin() ? "" : ", ") + c;
  return mixed;
}

static const StreamState& StateOf(const std::map<std::string, std::unique_ptr<StreamReader>>& readers, const std::string& stream) {
  static const StreamState kEmpty;
  const auto it = readers.find(stream);
  return it == readers.end() ? kEmpty : it->second->state();
}

const StreamState& RunState::job_stream() const { return StateOf(readers_, RunLayout::JobStream()); }
const StreamState& RunState::merge_stream() const { return StateOf(readers_, RunLayout::MergeStream()); }

uint32_t RunState::stale_records() const {
  uint32_t n = 0;
  for (const auto& [name, reader] : readers_) n += reader->state().stale;
  return n;
}

bool RunState::Holds(const SealRecord& seal) const {
  if (plans_.empty() || seal.last_layer > plan().layers) return false;
  for (uint32_t sample = 0; sample < seal.samples; ++sample) {
    if (!Omitted(sample) && !SampleCovers(sample, seal.first_layer, seal.last_layer)) return false;
  }
  for (const uint32_t unit : UnitsOf(plan(), {StageId(), seal.first_layer, seal.last_layer})) {
    if (Layer(unit) == nullptr) return false;
  }
  return true;
}

}  // namespace holdfast
