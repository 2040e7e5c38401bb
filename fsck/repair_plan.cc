// SPDX-License-Identifier: Apache-2.0
//
// From remedies to a plan: each once, and with each what follows from it.
#include "fsck/repair_plan.h"

#include <algorithm>
#include <tuple>

#include "export/shard/output_plan.h"
#include "fsck/context.h"
#include "ledger/fold/seal.h"

namespace holdfast {

const char* RemedyName(Remedy::What what) {
  constexpr const char* kNames[] = {"", "tombstone", "void", "void", "quarantine", "rewrite"};
  return kNames[static_cast<size_t>(what)];
}

std::string KeyText(const RecordKey& key) {
  const std::string a = std::to_string(key.a);
  switch (key.cls) {
    case RecordClass::kSample: return "sample " + a + " from layer " + std::to_string(key.b);
    case RecordClass::kLayer: return "unit " + a;
    case RecordClass::kSeal: return "the seal";
    case RecordClass::kOmit: return "that sample " + a + " is left out";
    case RecordClass::kDone: return "the end of the job";
    case RecordClass::kMerge: return key.a == kWholeOutput ? "the publication of the output" : "output file " + a;
    default: return std::string("record ") + static_cast<char>(key.cls) + " " + a;
  }
}

namespace {

// A sample's second part belongs to its first.
bool IsStatement(const RecordKey& key) { return key.cls != RecordClass::kSample || key.part == 0; }

}  // namespace

uint64_t RepairPlan::Salvaged() const {
  return static_cast<uint64_t>(std::count_if(sayings.begin(), sayings.end(), [](const Saying& s) { return IsStatement(s.record.key); }));
}

std::vector<std::string> RepairPlan::Lines() const {
  std::vector<std::string> lines;
  for (const Burial& b : burials) lines.push_back(b.code + ": a tombstone over " + RunLayout(dir).Slot(b.stream, b.seq) + " (" + b.why + ")");
  for (const Strike& s : strikes) lines.push_back(s.code + ": void " + KeyText(s.key) + " of " + s.stream + " (" + s.why + ")");
  for (const Saying& s : sayings) {
    if (IsStatement(s.record.key)) lines.push_back(s.code + ": say " + KeyText(s.record.key) + " of " + s.stream + " again (out of slot " + std::to_string(s.seq) + ": its own checksums hold)");
  }
  for (const Move& m : moves) lines.push_back(m.code + ": move " + m.path + " to the quarantine (" + m.why + ")");
  return lines;
}

namespace fsck {
namespace {

class Planner {
 public:
  explicit Planner(const Context& c) : c_(c), log_(c.log) {
    plan_.dir = c.layout.root();
    plan_.root = c.root_dir;
    plan_.is_root = c.is_root;
    plan_.job = c.log.job_id.value_or(Nonce{});
  }

  RepairPlan Make() {
    if (!log_.job_id) return std::move(plan_);   // nobody knows what trailers have to say
    FindOwners();
    for (const FsckFinding& f : c_.report.findings) {
      for (const Remedy& r : f.remedies) {
        if (!f.planned) Take(f, r);
      }
    }
    if (!c_.is_root && !log_.job) return Leftovers();
    RenewUnclearOutput();
    StrikeGone();
    StrikeSources();
    StrikeSeals();
    SayAgain();
    Sort();
    return std::move(plan_);
  }

 private:
  // Without its job record a job can be neither claimed nor resumed: what is there stays as it is.
  RepairPlan Leftovers() {
    RepairPlan none;
    none.dir = plan_.dir;
    return none;
  }

  void FindOwners() {
    for (const auto& [stream, state] : log_.streams) {
      if (state.epoch == 0 || state.released || state.claim.incarnation == Nonce{}) continue;
      RepairPlan::Owner owner{stream, state.claim, std::nullopt};
      if (const auto life = log_.lives.find(state.claim.incarnation); life != log_.lives.end()) owner.who = life->second;
      plan_.owners.push_back(std::move(owner));
    }
  }

  void Take(const FsckFinding& f, const Remedy& r) {
    plan_.corrects |= f.severity == FsckSeverity::kError;
    switch (r.what) {
      case Remedy::What::kNone: return;
      case Remedy::What::kBury:
        if (Once("b" + r.stream + std::to_string(r.seq))) plan_.burials.push_back({r.stream, r.seq, f.code, f.message});
        plan_.reopens |= !c_.is_root && !Finished() && !AllSaved(r.stream, r.seq);
        return;
      case Remedy::What::kVoid: return Strike(r.stream, r.key, f.code, f.message);
      case Remedy::What::kVoidWrong:
        Strike(r.stream, r.key, f.code, f.message);
        if (r.key.cls == RecordClass::kSample) StrikeBehind(r.key, f.code);
        return Renew(f.code, "it was made from " + KeyText(r.key));
      case Remedy::What::kMoveAway:
        for (const std::string& path : r.paths) Move(path, f.code, f.message);
        return;
      case Remedy::What::kRenewOutput: return Renew(f.code, f.message);
    }
  }

  bool Once(const std::string& what) { return taken_.insert(what).second; }

  // A job whose output stands needs nothing any more of what was lost on the way.
  bool Finished() const { return log_.done && log_.published && !renewed_; }

  void Strike(const std::string& stream, const RecordKey& key, const std::string& code, const std::string& why) {
    if (!Once("k" + stream + std::string(AsText(key.Encode())))) return;
    plan_.strikes.push_back({stream, key, code, why});
    plan_.reopens |= !Finished() || key.cls == RecordClass::kMerge || key.cls == RecordClass::kDone;
  }

  void Move(const std::string& path, const std::string& code, const std::string& why) {
    if (Once("m" + path)) plan_.moves.push_back({path, code, why});
  }

  // What came out of a wrong sample: the same sample behind it, and the layers whose amax it went into.
  void StrikeBehind(const RecordKey& key, const std::string& code) {
    const std::string why = "made from sample " + std::to_string(key.a);
    if (const auto it = log_.samples.find(key.a); it != log_.samples.end()) {
      for (const auto& s : it->second) {
        if (s.value.first_layer > key.b) Strike(s.stream, s.key, code, why);
      }
    }
    for (const auto& [unit, all] : log_.layers) {
      if (log_.plan() == nullptr || unit < key.b || unit >= log_.plan()->layers) continue;
      for (const auto& e : all) Strike(e.stream, e.key, code, why);
    }
  }

  // The output goes, and with it all that the merge stream says about it.
  void Renew(const std::string& code, const std::string& why) {
    if (!log_.job || std::exchange(renewed_, true)) return;
    const std::string stream = RunLayout::MergeStream();
    const auto key = [](uint32_t file, MergeRecord::State state) { return RecordKey{RecordClass::kMerge, 0, file, 0, static_cast<uint32_t>(state)}; };
    for (const auto& [file, m] : log_.written) Strike(stream, key(file, MergeRecord::State::kWritten), code, why);
    if (log_.published) Strike(stream, key(kWholeOutput, MergeRecord::State::kPublished), code, why);
    if (log_.done) Strike(stream, {RecordClass::kDone, 0, 0, 0, 0}, code, why);
    const auto there = c_.fs.Exists(log_.job->out);
    if ((log_.published || log_.done) && there.ok() && *there) Move(log_.job->out, code, why);
  }

  bool There(const std::vector<PackManifest>& packs) const {
    return std::all_of(packs.begin(), packs.end(), [&](const PackManifest& m) { return c_.fs.Stat(c_.layout.Pack(m.root)).ok(); });
  }

  // An output that is written again needs the packs of every layer. Those that `jobctl gc` removed are made again, and its word is void.
  void StrikeGone() {
    if (!renewed_ || !log_.expired) return;
    Strike(RunLayout::JobStream(), {RecordClass::kExport, 0, 0, 0, 0}, "F050", "the job is open again");
    for (const auto& [unit, all] : log_.layers) {
      for (const auto& e : all) {
        if (log_.Counts(e.value) && !There(e.value.packs)) Strike(e.stream, e.key, "F050", "its packs were removed by `jobctl gc`");
      }
    }
  }

  // A sample that is to be computed again begins at a cut. Where that was consumed, and is gone since, it has to be made again as well.
  void StrikeSources() {
    for (size_t i = 0; i < plan_.strikes.size(); ++i) {   // grows while it is gone through
      const RecordKey key = plan_.strikes[i].key;
      const auto all = key.cls == RecordClass::kSample && key.b > 0 ? log_.samples.find(key.a) : log_.samples.end();
      if (all == log_.samples.end()) continue;
      for (const auto& up : all->second) {
        if (up.value.last_layer != key.b || !up.value.output || There(up.value.output->packs)) continue;
        Strike(up.stream, up.key, "F050", "the cut that sample " + std::to_string(key.a) + " begins from is gone");
      }
    }
  }

  // Was the record struck, or is it not there at all?
  bool Struck(const std::string& stream, const RecordKey& key) const {
    return std::any_of(plan_.strikes.begin(), plan_.strikes.end(), [&](const auto& s) { return s.stream == stream && s.key == key; });
  }
  bool SampleStands(uint32_t sample, uint32_t layer) const {
    const auto it = log_.samples.find(sample);
    if (it == log_.samples.end()) return false;
    return std::any_of(it->second.begin(), it->second.end(), [&](const auto& s) {
      return s.value.first_layer <= layer && layer < s.value.last_layer && !Struck(s.stream, s.key);
    });
  }

  bool Holds(const Plan& plan, const SealRecord& seal) const {
    for (uint32_t sample = 0; sample < seal.samples; ++sample) {
      if (log_.Omitted(sample)) continue;
      for (uint32_t layer = seal.first_layer; layer < seal.last_layer; ++layer) {
        if (!SampleStands(sample, layer)) return false;
      }
    }
    const auto units = UnitsOf(plan, {StageId(), seal.first_layer, seal.last_layer});
    return std::all_of(units.begin(), units.end(), [&](uint32_t unit) {
      const auto it = log_.layers.find(unit);
      return it != log_.layers.end() && std::any_of(it->second.begin(), it->second.end(), [&](const auto& s) { return log_.Counts(s.value) && !Struck(s.stream, s.key); });
    });
  }

  void StrikeSeals() {
    const Plan* plan = log_.plan();
    for (const auto& z : log_.seals) {
      if (plan == nullptr || z.value.last_layer > plan->layers || z.value.omitted != log_.omitted || Holds(*plan, z.value)) continue;
      Strike(z.stream, z.key, "F043", "not all that it sealed is there any more");
    }
  }

  // An output under its name about which the merge stream no longer says enough to be known again: resume would take it for somebody
  // else's.
  void RenewUnclearOutput() {
    const bool lost = std::any_of(plan_.burials.begin(), plan_.burials.end(), [](const auto& b) { return b.stream == RunLayout::MergeStream(); });
    const Plan* plan = log_.plan();
    if (!lost || plan == nullptr || !log_.job || log_.published || renewed_) return;
    const size_t files = PlanOutput(*plan, log_.job->shard_bytes).files.size();
    const auto sums = c_.fs.Exists(JoinPath(log_.job->out, "SHA256SUMS"));
    if (log_.written.size() == files || !sums.ok() || !*sums) return;
    Renew("F081", "what was said about it is lost");
    Move(log_.job->out, "F081", "what was said about it is lost");
  }

  bool AllSaved(const std::string& stream, uint32_t seq) const {
    return std::any_of(log_.salvages.begin(), log_.salvages.end(), [&](const Salvage& s) { return s.stream == stream && s.seq == seq && s.complete; });
  }

  // Layers and seals that were made with other samples than those that are in now do not count, and one that does may have the same key.
  bool MayCount(const Record& r) const {
    if (r.key.cls == RecordClass::kLayer) {
      const auto json = ControlPayload(r);
      const auto layer = json.ok() ? LayerRecord::FromJson(*json) : Result<LayerRecord>(json.error());
      return layer.ok() && log_.Counts(*layer);
    }
    return r.key.cls != RecordClass::kSeal || MadeWithout(r) == log_.omitted;
  }

  // What was struck stays struck. The first statement counts, of the merge's steps the last.
  void SayAgain() {
    std::vector<const Salvage*> order;
    for (const Salvage& s : log_.salvages) order.push_back(&s);
    std::stable_sort(order.begin(), order.end(), [](const Salvage* a, const Salvage* b) { return a->stream == RunLayout::MergeStream() && b->stream == a->stream && a->seq > b->seq; });
    for (const Salvage* s : order) {
      for (const Record& r : s->records) {
        RecordKey key = r.key;
        if (key.cls == RecordClass::kSample) key.part = 0;
        if (!MayCount(r)) continue;
        if (!Struck(s->stream, key) && Once("s" + s->stream + std::string(AsText(r.key.Encode())))) plan_.sayings.push_back({s->stream, s->seq, s->code, r});
      }
    }
  }

  void Sort() {
    std::sort(plan_.burials.begin(), plan_.burials.end(), [](const auto& a, const auto& b) { return std::tie(a.stream, a.seq) < std::tie(b.stream, b.seq); });
    std::stable_sort(plan_.strikes.begin(), plan_.strikes.end(), [](const auto& a, const auto& b) { return std::tie(a.stream, a.key) < std::tie(b.stream, b.key); });
  }

  const Context& c_;
  const Log& log_;
  RepairPlan plan_;
  std::set<std::string> taken_;
  bool renewed_ = false;
};

}  // namespace

RepairPlan MakeRepairPlan(const Context& c) { return Planner(c).Make(); }

}  // namespace fsck
}  // namespace holdfast
