// SPDX-License-Identifier: Apache-2.0
//
// F002, F020, F040-F044: what the records say, and whether it fits together. The fold here is a second, plainer one than RunState's:
// everything that was said is kept in order, and the first valid statement counts.
#include <algorithm>
#include <bit>
#include <cmath>

#include "fsck/context.h"
#include "ledger/fold/run_state.h"
#include "ledger/fold/seal.h"

namespace holdfast::fsck {

template <class T>
std::string Said<T>::Where() const {
  return stream + " slot " + std::to_string(seq);
}
template struct Said<SampleRecord>;
template struct Said<LayerRecord>;
template struct Said<SealRecord>;
template struct Said<Claim>;

const Said<SampleRecord>* Log::Sample(uint32_t sample, uint32_t layer) const {
  const auto it = samples.find(sample);
  if (it == samples.end()) return nullptr;
  for (const auto& said : it->second) {
    if (said.value.first_layer <= layer && layer < said.value.last_layer) return &said;
  }
  return nullptr;
}

const Said<LayerRecord>* Log::Layer(uint32_t unit) const {
  const auto it = layers.find(unit);
  if (it == layers.end()) return nullptr;
  const auto said = std::find_if(it->second.begin(), it->second.end(), [this](const auto& s) { return Counts(s.value); });
  return said == it->second.end() ? nullptr : &*said;
}

bool Log::Omitted(uint32_t sample) const { return std::binary_search(omitted.begin(), omitted.end(), sample); }
bool Log::Counts(const LayerRecord& layer) const { return layer.input_amax.empty() || layer.omitted == omitted; }

namespace {

template <class T>
Result<T> Parse(const Record& record) {
  HOLDFAST_ASSIGN(const Json j, ControlPayload(record));
  return T::FromJson(j);
}

std::string RecordName(const SaidRecord& r) {
  return std::string("log/") + r.stream + " slot " + std::to_string(r.seq) + ", record " + static_cast<char>(r.record.key.cls);
}

// ---- fold ----

Status FoldMerge(Context* c, const SaidRecord& said) {
  HOLDFAST_ASSIGN(MergeRecord m, Parse<MergeRecord>(said.record));
  if (m.state == MergeRecord::State::kWritten) c->log.written.insert_or_assign(m.file, m);
  if (m.state == MergeRecord::State::kPublished && !c->log.published) c->log.published = std::move(m);
  return OkStatus();
}

Status FoldJob(Context* c, const SaidRecord& said) {
  if (said.record.key.part == 0) {
    HOLDFAST_ASSIGN(JobSpec job, Parse<JobSpec>(said.record));
    if (!c->log.job) c->log.job = std::move(job);
  } else {
    HOLDFAST_ASSIGN(auto ids, DecodeTokens(said.record.payload));
    c->log.tokens.emplace(said.record.key.a, std::move(ids));
  }
  return OkStatus();
}

// `next` is the record behind `said`, which carries a sample's amax; null at the end.
Status FoldSample(Context* c, const SaidRecord& said, const SaidRecord* next) {
  if (said.record.key.part != 0) return OkStatus();  // taken with its control part
  if (next == nullptr || next->seq != said.seq || next->stream != said.stream) return Corrupt("sample record without its amax vector");
  HOLDFAST_ASSIGN(SampleRecord sample, SampleRecord::FromRecords(said.record, next->record));
  c->log.samples[sample.sample].push_back({said.stream, said.seq, said.record.key, std::move(sample)});
  return OkStatus();
}

Status FoldOmission(Context* c, const SaidRecord& said) {
  HOLDFAST_ASSIGN(const OmitRecord omit, Parse<OmitRecord>(said.record));
  if (omit.sample != said.record.key.a) return Corrupt("its sample differs from its key's");
  Log& log = c->log;
  if (said.stream != RunLayout::JobStream() || !log.job || omit.sample >= log.job->samples || log.Omitted(omit.sample)) return OkStatus();
  const std::string object = "sample " + std::to_string(omit.sample);
  if (log.omitted.size() >= log.job->skip_samples) {
    c->Add("F043", FsckSeverity::kWarning, object, "left out although the job allows only " + std::to_string(log.job->skip_samples) + "; it counts as not said", "");
    return OkStatus();
  }
  log.omitted.insert(std::lower_bound(log.omitted.begin(), log.omitted.end(), omit.sample), omit.sample);
  c->Add("F043", FsckSeverity::kInfo, object, "is left out: " + omit.why, "");
  return OkStatus();
}

// Layers and seals remember what they were made without, also when the record that left it out is lost.
void NoteLostOmissions(Context* c) {
  const Log& log = c->log;
  std::set<uint32_t> lost;
  const auto note = [&](const std::vector<uint32_t>& omitted) {
    for (const uint32_t sample : omitted) {
      if (!log.Omitted(sample)) lost.insert(sample);
    }
  };
  for (const auto& [unit, all] : log.layers) {
    for (const auto& e : all) note(e.value.omitted);
  }
  for (const auto& z : log.seals) note(z.value.omitted);
  for (const uint32_t sample : lost) {
    const std::string what = "layers were made without it, and no record that can be read leaves it out: ";
    const std::string object = "sample " + std::to_string(sample);
    if (log.done && log.published) {
      c->Add("F043", FsckSeverity::kInfo, object, what + "the output was made without it, too, and stands", "");
    } else {
      c->Add("F043", log.damaged ? FsckSeverity::kWarning : FsckSeverity::kInfo, object, what + "the sample counts again, and what was made without it does not",
             log.damaged && !c->options.salvage ? "`" + c->Repair() + " --salvage` says it again if its own checksums hold" : "");
    }
  }
}

Status FoldOne(Context* c, const SaidRecord& said, const SaidRecord* next) {
  switch (said.record.key.cls) {
    case RecordClass::kJob: return FoldJob(c, said);
    case RecordClass::kSample: return FoldSample(c, said, next);
    case RecordClass::kOmit: return FoldOmission(c, said);
    case RecordClass::kMerge: return FoldMerge(c, said);
    case RecordClass::kPlan: {
      HOLDFAST_ASSIGN(Plan plan, Parse<Plan>(said.record));
      c->log.plans.emplace(plan.number, std::move(plan));
      return OkStatus();
    }
    case RecordClass::kLayer: {
      HOLDFAST_ASSIGN(LayerRecord layer, Parse<LayerRecord>(said.record));
      if (layer.unit != said.record.key.a) return Corrupt("its unit differs from its key's");
      c->log.layers[layer.unit].push_back({said.stream, said.seq, said.record.key, std::move(layer)});
      return OkStatus();
    }
    case RecordClass::kSeal: {
      HOLDFAST_ASSIGN(SealRecord seal, Parse<SealRecord>(said.record));
      c->log.seals.push_back({said.stream, said.seq, said.record.key, std::move(seal)});
      return OkStatus();
    }
    case RecordClass::kSource: {
      HOLDFAST_ASSIGN(SourceRead read, Parse<SourceRead>(said.record));
      c->log.source_reads.emplace(read.unit, std::move(read));
      return OkStatus();
    }
    case RecordClass::kDone: {
      HOLDFAST_ASSIGN(DoneRecord done, Parse<DoneRecord>(said.record));
      if (!c->log.done) c->log.done = std::move(done);
      return OkStatus();
    }
    case RecordClass::kIncarnation: {
      HOLDFAST_ASSIGN(Incarnation life, Parse<Incarnation>(said.record));
      c->log.lives.emplace(life.nonce, std::move(life));
      return OkStatus();
    }
    case RecordClass::kClaim: {
      HOLDFAST_ASSIGN(Claim claim, Parse<Claim>(said.record));
      c->log.claims.push_back({said.stream, said.seq, said.record.key, std::move(claim)});
      return OkStatus();
    }
    case RecordClass::kExport: return c->log.expired |= said.stream == RunLayout::JobStream(), OkStatus();
    case RecordClass::kAssignment: {
      HOLDFAST_ASSIGN(const Assignment assignment, Parse<Assignment>(said.record));
      return OkStatus();
    }
    default: return OkStatus();
  }
}

// F002: the job record, the plan and the pinned tokens.
void CheckJob(Context* c) {
  Log& log = c->log;
  if (log.slots == 0) return;  // FORMAT alone: nothing was submitted yet
  if (!log.job) {
    c->Lost("F002", "log/job", "no job record can be read: nothing says what this run directory is for", "restore log/job/00000000.seg from a copy of the directory; without one " + c->BeginAgain());
    return;
  }
  if (log.job_id && log.job->uuid != *log.job_id) c->Error("F002", "log/job", "job record and trailers name different jobs", "restore log/job from a copy");
  if (log.plans.empty()) c->Error("F002", "log/job", "no plan can be read", "restore log/job from a copy");
  if (log.damaged || log.job->tokens_sha256.IsZero()) return;
  Sha256Hasher hasher;
  for (uint32_t sample = 0; sample < log.job->samples; ++sample) {
    const auto ids = log.tokens.find(sample);
    if (ids == log.tokens.end()) {
      c->Error("F002", "log/job", "the token ids of sample " + std::to_string(sample) + " are missing", "restore log/job from a copy");
      return;
    }
    Bytes length;
    PutLe<uint32_t>(&length, static_cast<uint32_t>(ids->second.size()));
    hasher.Update(length);
    hasher.Update(EncodeTokens(ids->second));
  }
  if (hasher.Finish() != log.job->tokens_sha256) c->Error("F002", "log/job", "the token ids are not those that the job record pins", "restore log/job from a copy");
}

std::string StateOf(const Log& log) {
  if (!log.job) return log.slots == 0 ? "no job yet" : "unknown";
  if (log.done) return "done";
  return log.published ? "published" : "running or stopped";
}

// ---- samples ----

bool SameResult(const SampleRecord& a, const SampleRecord& b) {
  const auto bits = [](float x, float y) { return std::bit_cast<uint32_t>(x) == std::bit_cast<uint32_t>(y); };
  return a.first_layer == b.first_layer && a.last_layer == b.last_layer && a.output.has_value() == b.output.has_value() &&
         (!a.output || a.output->digest == b.output->digest) && std::equal(a.amax.begin(), a.amax.end(), b.amax.begin(), b.amax.end(), bits);
}

std::string SampleName(const Said<SampleRecord>& s) {
  return "sample " + std::to_string(s.value.sample) + ", layers " + std::to_string(s.value.first_layer) + "-" +
         std::to_string(s.value.last_layer - 1) + " (" + s.Where() + ")";
}

// F040. Only the first statement about a (stream, sample, first layer) counts.
void CheckRepeated(Context* c, const std::vector<Said<SampleRecord>>& all) {
  for (size_t i = 0; i < all.size(); ++i) {
    const auto first = std::find_if(all.begin(), all.begin() + i, [&](const auto& s) { return s.stream == all[i].stream && s.key == all[i].key; });
    if (first == all.begin() + i) continue;
    if (SameResult(first->value, all[i].value)) {
      c->Add("F040", FsckSeverity::kInfo, SampleName(all[i]), "committed twice with the same result; counted once", "");
    } else {
      c->Add("F040", FsckSeverity::kWarning, SampleName(all[i]), "committed twice with different results; the first one counts",
             "the devices that computed it do not agree to the bit: look at `numerics` in jobctl status");
    }
  }
}

// F041.
void CheckAmax(Context* c, const Plan& plan, const Said<SampleRecord>& s) {
  const std::string advice = "`" + c->Repair() + "` has this sample computed again; if it happens again the sample or the model is at fault";
  if (s.value.last_layer > plan.layers) {
    c->Error("F041", SampleName(s), "the plan has only " + std::to_string(plan.layers) + " layers", advice, Remedy::VoidWrong(s.stream, s.key));
    return;
  }
  const auto sites = plan.SitesOf(s.value.first_layer, s.value.last_layer);
  if (sites.size() != s.value.amax.size()) {
    c->Error("F041", SampleName(s), std::to_string(s.value.amax.size()) + " amax values for " + std::to_string(sites.size()) + " quantized linears", advice, Remedy::VoidWrong(s.stream, s.key));
    return;
  }
  for (size_t i = 0; i < sites.size(); ++i) {
    const float v = s.value.amax[i];
    if (std::isfinite(v) && !std::signbit(v)) continue;
    c->Error("F041", SampleName(s), "the amax of " + sites[i]->module + " is " + (std::isnan(v) ? "NaN" : std::isinf(v) ? "infinite" : "negative"), advice, Remedy::VoidWrong(s.stream, s.key));
    return;
  }
}

// F044: what went in is what the stage before committed, or the pinned tokens.
void CheckInput(Context* c, const Said<SampleRecord>& s) {
  const Log& log = c->log;
  const std::string advice = "`" + c->Repair() + "` has this sample computed again from here on";
  if (s.value.first_layer == 0) {
    const auto ids = log.tokens.find(s.value.sample);
    if (ids != log.tokens.end() && Sha256(EncodeTokens(ids->second)) != s.value.input) {
      c->Error("F044", SampleName(s), "computed from other token ids than the job pins", advice, Remedy::VoidWrong(s.stream, s.key));
    }
    return;
  }
  bool any = false;
  for (const auto& up : log.samples.at(s.value.sample)) {
    if (up.value.last_layer != s.value.first_layer || !up.value.output) continue;
    if (up.value.output->digest == s.value.input) return;
    any = true;
  }
  if (any) {
    c->Error("F044", SampleName(s), "its input is not the cut that was committed before layer " + std::to_string(s.value.first_layer), advice, Remedy::VoidWrong(s.stream, s.key));
  } else if (log.reopened) {
    c->Add("F044", FsckSeverity::kInfo, SampleName(s), "the cut before layer " + std::to_string(s.value.first_layer) + " was lost and is to be computed again", "");
  } else if (!log.damaged) {
    c->Error("F044", SampleName(s), "the cut before layer " + std::to_string(s.value.first_layer) + " was never committed", advice, Remedy::VoidWrong(s.stream, s.key));
  }
}

// F042: a linear whose input was zero in every sample gets input_scale 1.
void CheckDeadSites(Context* c, const Plan& plan) {
  if (!plan.input_scales) return;
  for (uint32_t layer = 0; layer < plan.layers; ++layer) {
    const auto& sites = plan.units[layer].sites;
    std::vector<float> joined(sites.size(), 0.0f);
    bool complete = c->log.job->samples > 0;
    for (uint32_t sample = 0; complete && sample < c->log.job->samples; ++sample) {
      if (c->log.Omitted(sample)) continue;
      const auto* s = c->log.Sample(sample, layer);
      const size_t skip = s == nullptr ? 0 : plan.SitesOf(s->value.first_layer, layer).size();
      complete = s != nullptr && s->value.amax.size() >= skip + sites.size();
      for (size_t i = 0; complete && i < sites.size(); ++i) joined[i] = JoinAmax(joined[i], s->value.amax[skip + i]);
    }
    for (size_t i = 0; complete && i < sites.size(); ++i) {
      if (joined[i] == 0) {
        c->Add("F042", FsckSeverity::kWarning, sites[i].module, "its input was zero in every calibration sample; input_scale is 1",
               "calibrate with more, or more varied, samples if this part of the model matters");
      }
    }
  }
}

}  // namespace

void FoldRecords(Context* c) {
  const auto& all = c->log.records;
  for (size_t i = 0; i < all.size(); ++i) {
    const Status s = FoldOne(c, all[i], i + 1 < all.size() ? &all[i + 1] : nullptr);
    if (s.ok()) continue;
    RecordKey key = all[i].record.key;
    if (key.cls == RecordClass::kSample) key.part = 0;  // both parts are one statement
    c->Error("F020", RecordName(all[i]), s.error().message, "it counts as not said; " + c->Resume() + " does the work again", Remedy::Void(all[i].stream, key));
  }
  c->log.records = {};  // everything that counts is in its typed place now
  c->log.expired &= c->log.done && c->log.published;   // for a job that was opened again it means nothing
  CheckJob(c);
  NoteLostOmissions(c);
  c->report.state = StateOf(c->log);
}

void CheckSamples(Context* c) {
  const Plan* plan = c->log.plan();
  if (plan == nullptr || !c->log.job) return;
  for (const auto& [sample, all] : c->log.samples) {
    CheckRepeated(c, all);
    if (c->log.Omitted(sample)) continue;   // what it is left out for is no damage
    for (const auto& s : all) {
      CheckAmax(c, *plan, s);
      CheckInput(c, s);
    }
  }
  CheckDeadSites(c, *plan);
}

// F043. The root is recomputed by the fold's own code over the fold's own state, so only when the fold can read the log at all.
void CheckSeals(Context* c) {
  const Log& log = c->log;
  const Plan* plan = log.plan();
  if (plan == nullptr || !log.job) return;
  RunState state(c->fs, c->layout);
  const bool folded = !log.damaged && !log.seals.empty() && state.Refresh().ok();
  for (const auto& z : log.seals) {
    const SealRecord& seal = z.value;
    if (seal.omitted != log.omitted) continue;   // sealed with other samples: it says nothing about these
    const std::string object = "seal of " + z.stream + " (slot " + std::to_string(z.seq) + ")";
    if (seal.samples != log.job->samples || seal.last_layer > plan->layers || seal.first_layer >= seal.last_layer) {
      c->Error("F043", object, "seals " + std::to_string(seal.samples) + " samples of layers " + std::to_string(seal.first_layer) + "-" +
                                   std::to_string(seal.last_layer) + "; the job has other ones", "`" + c->Repair() + "` opens the stage again, " + c->Resume() + " seals it", Remedy::Void(z.stream, z.key));
      continue;
    }
    std::string missing;
    for (uint32_t sample = 0; missing.empty() && sample < seal.samples; ++sample) {
      if (log.Omitted(sample)) continue;
      for (uint32_t layer = seal.first_layer; missing.empty() && layer < seal.last_layer; ++layer) {
        if (log.Sample(sample, layer) == nullptr) missing = "sample " + std::to_string(sample) + " of layer " + std::to_string(layer);
      }
    }
    const std::vector<uint32_t> units = UnitsOf(*plan, {StageId(), seal.first_layer, seal.last_layer});
    for (size_t i = 0; missing.empty() && i < units.size(); ++i) {
      if (log.Layer(units[i]) == nullptr) missing = plan->units[units[i]].label + " (evicted)";
    }
    if (!missing.empty()) {
      c->Error("F043", object, "sealed although " + missing + " is not committed", c->Resume() + " computes what is missing", Remedy::Void(z.stream, z.key));
      continue;
    }
    const auto root = folded ? SealRoot(state, seal.first_layer, seal.last_layer, units) : Result<Digest>(seal.root);
    const bool resealed = std::any_of(log.seals.begin(), log.seals.end(), [&](const auto& o) { return o.stream == z.stream && o.seq > z.seq; });
    if (!resealed && root.ok() && *root != seal.root) {
      c->Error("F043", object, "its root does not recompute: samples or layers are not those that were sealed", "`" + c->Repair() + "` opens the stage again, " + c->Resume() + " seals it", Remedy::Void(z.stream, z.key));
    }
  }
}

}  // namespace holdfast::fsck
