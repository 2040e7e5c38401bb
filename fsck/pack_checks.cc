// SPDX-License-Identifier: Apache-2.0
//
// F050-F052, F060, F061: packs, and the evicted layers in them. Shallow: names, sizes, and all that the records themselves say;
// deep: every byte, and the scales against the amax that they were made from.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "export/nvfp4/nvfp4.h"
#include "export/verify/parallel.h"
#include "fsck/context.h"
#include "ledger/pack/pack.h"

namespace holdfast::fsck {
namespace {

// A pack that records refer to, and what depends on it.
struct PackUse {
  PackManifest manifest;
  std::string first_user;
  bool needed = false;     // false: only cuts that are consumed refer to it, and layers that were made again without a sample
  std::vector<std::pair<std::string, RecordKey>> needed_by;
};

// A cut is consumed when everything behind it has been computed from it, or is not to be.
bool Consumed(const Log& log, const SampleRecord& s) {
  const Plan* plan = log.plan();
  if (log.Omitted(s.sample)) return true;
  return plan != nullptr && (s.last_layer >= plan->layers || log.Sample(s.sample, s.last_layer) != nullptr);
}

std::map<std::string, PackUse> CollectPacks(const Log& log) {
  std::map<std::string, PackUse> packs;
  const auto use = [&](const PackManifest& m, const std::string& user, const auto& said, bool needed) {
    PackUse& p = packs[m.root.Hex()];
    if (needed) p.needed_by.emplace_back(said.stream, said.key);
    if (p.first_user.empty()) p.manifest = m, p.first_user = user;
    p.needed |= needed;
  };
  for (const auto& [sample, all] : log.samples) {
    for (const auto& s : all) {
      if (!s.value.output) continue;
      for (const PackManifest& m : s.value.output->packs) {
        use(m, "the cut of sample " + std::to_string(sample) + " behind layer " + std::to_string(s.value.last_layer - 1), s, !Consumed(log, s.value));
      }
    }
  }
  for (const auto& [unit, all] : log.layers) {
    for (const auto& e : all) {
      for (const PackManifest& m : e.value.packs) use(m, "unit " + std::to_string(unit), e, &e == log.Layer(unit));
    }
  }
  return packs;
}

std::string PackName(const std::string& hex) { return "pack/" + hex.substr(0, 2) + "/" + hex + ".pack"; }

// What refers to it counts as not said and is made again; what is left of the file goes to the quarantine.
Remedies Renounce(Context* c, const PackUse& p, bool there) {
  Remedies all;
  if (there) all.push_back(Remedy::MoveAway(c->layout.Pack(p.manifest.root)));
  for (const auto& [stream, key] : p.needed_by) all.push_back(Remedy::Void(stream, key));
  return all;
}

std::string PackAdvice(Context* c, const std::string& hex) {
  return "restore " + PackName(hex) + " from a copy of the run directory (a pack's name says its content), or `" + c->Repair() + "`, then " + c->Resume() + " makes it again";
}

// F050 for one pack. kGone: it is not there, and nobody needs it; CheckPacks says so once for all.
enum class Presence : uint8_t { kThere, kGone, kBad };
Presence CheckPresence(Context* c, const std::string& hex, const PackUse& p) {
  const auto info = c->fs.Stat(c->layout.Pack(p.manifest.root));
  if (info.code() == ErrorCode::kNotFound && (c->log.expired || !p.needed)) return Presence::kGone;
  if (info.code() == ErrorCode::kNotFound) {
    c->Error("F050", PackName(hex), "the pack is missing; it holds " + p.first_user, PackAdvice(c, hex), Renounce(c, p, /*there=*/false));
  } else if (!info.ok()) {
    c->Unreadable(PackName(hex), info.error());
  } else if (info->size != p.manifest.file_size) {
    c->Error("F050", PackName(hex), std::to_string(info->size) + " bytes instead of " + std::to_string(p.manifest.file_size) + "; it holds " + p.first_user, PackAdvice(c, hex), Renounce(c, p, /*there=*/true));
  } else {
    return Presence::kThere;
  }
  return Presence::kBad;
}

// F052: names that no pack has, and packs out of their place.
void CheckName(Context* c, const std::string& object) {
  const std::string name = BaseName(object);
  Digest root;
  const bool sound = name.size() == 69 && name.ends_with(".pack") && Digest::FromHex(name.substr(0, 64), &root) && PackName(root.Hex()) == object;
  if (sound || name.starts_with(".nfs")) return;
  c->Error("F052", object, "not the name of a pack in its place: a pack is called by its digest", "find out who put it there; `" + c->Repair() + "` moves it to the quarantine",
           Remedy::MoveAway(JoinPath(c->layout.root(), object)));
}

void CheckNames(Context* c) {
  const auto dirs = c->fs.List(c->layout.PackDir());
  for (size_t d = 0; dirs.ok() && d < dirs->size(); ++d) {
    const std::string object = "pack/" + (*dirs)[d];
    const auto files = c->fs.List(JoinPath(c->layout.root(), object));
    if (!files.ok()) CheckName(c, object);
    for (size_t i = 0; files.ok() && i < files->size(); ++i) CheckName(c, object + "/" + (*files)[i]);
  }
}

void VerifyAll(Context* c, const std::vector<const PackUse*>& readable) {
  const auto verify = [&](size_t i) -> Status {
    const PackUse& p = *readable[i];
    const std::string stamp = c->Stamp(c->layout.Pack(p.manifest.root));
    if (c->Knows(stamp, p.manifest.file_size)) return OkStatus();
    const Status s = VerifyPack(c->fs, c->layout, p.manifest);
    c->bytes_done += p.manifest.file_size;
    const std::string object = PackName(p.manifest.root.Hex());
    if (s.code() == ErrorCode::kCorrupt) {
      c->Error("F051", object, s.error().message, "it holds " + p.first_user + "; " + PackAdvice(c, p.manifest.root.Hex()), Renounce(c, p, /*there=*/true));
    } else if (!s.ok()) {
      c->Unreadable(object, s.error());
    } else {
      c->Learn(stamp, p.manifest.file_size);
    }
    return OkStatus();
  };
  (void)ParallelFor(c->threads(), readable.size(), verify, [&] { c->Tick(); });
}

// ---- evicted layers ----

struct Expected {
  DType dtype;
  std::vector<uint64_t> shape;
};

std::map<std::string, Expected> ExpectedTensors(const Plan& plan, const UnitPlan& unit) {
  std::map<std::string, Expected> out;
  for (const TensorPlan& t : unit.tensors) out[t.name] = {t.dtype, t.shape};
  for (const SitePlan& s : unit.sites) {
    out[s.module + ".weight"] = {DType::kU8, {s.rows, s.cols / 2}};
    out[s.module + ".weight_scale"] = {DType::kF8E4M3, {s.rows, s.cols / 16}};
    out[s.module + ".weight_scale_2"] = {DType::kF32, {}};
    if (plan.input_scales) out[s.module + ".input_scale"] = {DType::kF32, {}};
  }
  return out;
}

const StoredTensor* Find(const LayerRecord& e, const std::string& name) {
  const auto it = std::find_if(e.tensors.begin(), e.tensors.end(), [&](const StoredTensor& t) { return t.name == name; });
  return it == e.tensors.end() ? nullptr : &*it;
}

class LayerChecker {
 public:
  LayerChecker(Context* c, const Plan& plan, const Said<LayerRecord>& said)
      : c_(*c), plan_(plan), said_(said), e_(said.value), unit_(plan.units[said.value.unit]) {}

  void Run(bool packs_readable) {
    if (!CheckShape()) return;
    CheckAmax();
    if (c_.options.deep && packs_readable) CheckScales();
  }

 private:
  void Bad(const char* code, const std::string& message) {
    ++bad_;
    c_.Error(code, unit_.label + " (" + said_.Where() + ")", message, "`" + c_.Repair() + "` has this layer evicted again; restore log/ and pack/ from a copy if there is one",
             Remedy::VoidWrong(said_.stream, said_.key));
  }

  // F060.
  bool CheckShape() {
    const auto expected = ExpectedTensors(plan_, unit_);
    std::set<std::string> seen;
    for (const StoredTensor& t : e_.tensors) {
      const auto it = expected.find(t.name);
      if (it == expected.end() || !seen.insert(t.name).second) return Bad("F060", "tensor " + t.name + " is not in the plan, or twice"), false;
      if (t.dtype != it->second.dtype || t.shape != it->second.shape) return Bad("F060", "tensor " + t.name + " has another dtype or shape than the plan says"), false;
    }
    if (seen.size() != expected.size()) return Bad("F060", std::to_string(seen.size()) + " tensors, the plan has " + std::to_string(expected.size())), false;
    const size_t inputs = plan_.input_scales ? unit_.sites.size() : 0;
    if (e_.weight_amax.size() != unit_.sites.size() || e_.input_amax.size() != inputs) return Bad("F060", "amax of another number of linears than the plan has"), false;
    return true;
  }

  // F061, from the records alone: the layer was quantized with the amax that the samples say.
  void CheckAmax() {
    for (size_t i = 0; i < e_.weight_amax.size(); ++i) {
      const float w = std::bit_cast<float>(e_.weight_amax[i]);
      if (!std::isfinite(w) || std::signbit(w)) return Bad("F061", "the weight amax of " + unit_.sites[i].module + " is not a finite maximum");
    }
    if (!plan_.input_scales || unit_.id >= plan_.layers || !c_.log.job) return;
    std::vector<float> joined(unit_.sites.size(), 0.0f);
    for (uint32_t sample = 0; sample < c_.log.job->samples; ++sample) {
      if (std::binary_search(e_.omitted.begin(), e_.omitted.end(), sample)) continue;
      const auto* s = c_.log.Sample(sample, unit_.id);
      if (s == nullptr) return;  // lost or voided: F010-F015 and F043 say so
      const size_t skip = plan_.SitesOf(s->value.first_layer, unit_.id).size();
      if (s->value.amax.size() < skip + joined.size()) return;  // F041 says so
      for (size_t i = 0; i < joined.size(); ++i) joined[i] = JoinAmax(joined[i], s->value.amax[skip + i]);
    }
    for (size_t i = 0; i < joined.size(); ++i) {
      if (std::bit_cast<uint32_t>(joined[i]) != e_.input_amax[i]) return Bad("F061", "the input amax of " + unit_.sites[i].module + " is not the maximum over the committed samples");
    }
  }

  Result<Bytes> Read(const PackReader& reader, const std::string& name) {
    const StoredTensor* t = Find(e_, name);
    Bytes out(t->bytes());
    HOLDFAST_TRY(reader.ReadTensor(*t, out));
    if (Sha256(out) != t->digest) return Corrupt("tensor " + name + " fails its SHA-256");
    return out;
  }

  Result<float> ReadScalar(const PackReader& reader, const std::string& name) {
    HOLDFAST_ASSIGN(const Bytes raw, Read(reader, name));
    float v;
    std::memcpy(&v, raw.data(), 4);
    return v;
  }

  float SetMaximum(const std::vector<uint32_t>& amax, uint32_t set) const {
    float top = 0;
    for (size_t i = 0; i < unit_.sites.size(); ++i) {
      if (unit_.sites[i].set == set) top = JoinAmax(top, std::bit_cast<float>(amax[i]));
    }
    return top;
  }

  // F061 over the bytes: global scales are those of the set's amax, block scales are positive numbers.
  Status CheckSite(const PackReader& reader, const SitePlan& site) {
    HOLDFAST_ASSIGN(const float scale2, ReadScalar(reader, site.module + ".weight_scale_2"));
    const auto equal = [](float a, float b) { return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b); };
    if (!std::isfinite(scale2) || scale2 <= 0 || !equal(scale2, GlobalScale(SetMaximum(e_.weight_amax, site.set)))) {
      Bad("F061", site.module + ".weight_scale_2 does not follow from the weight amax of its set");
    }
    if (plan_.input_scales) {
      HOLDFAST_ASSIGN(const float input, ReadScalar(reader, site.module + ".input_scale"));
      if (!std::isfinite(input) || input <= 0 || !equal(input, GlobalScale(SetMaximum(e_.input_amax, site.set)))) {
        Bad("F061", site.module + ".input_scale does not follow from the input amax of its set");
      }
    }
    HOLDFAST_ASSIGN(const Bytes scales, Read(reader, site.module + ".weight_scale"));
    if (std::any_of(scales.begin(), scales.end(), [](uint8_t b) { return b == 0 || b >= 0x7f; })) {
      Bad("F061", site.module + ".weight_scale holds a NaN, a zero or a negative block scale");
    }
    return OkStatus();
  }

  void CheckScales() {
    std::string stamp = "scales ";
    uint64_t bytes = 0;
    for (const PackManifest& m : e_.packs) stamp += c_.Stamp(c_.layout.Pack(m.root)), bytes += m.file_size;
    if (c_.Knows(stamp, bytes)) return;
    const size_t wrong = bad_;
    const PackReader reader(c_.fs, c_.layout, e_.packs);
    for (const SitePlan& site : unit_.sites) {
      const Status s = CheckSite(reader, site);
      if (s.ok()) continue;
      if (s.code() == ErrorCode::kCorrupt) {
        Bad("F061", s.error().message);
      } else {
        ++bad_;
        c_.Unreadable(unit_.label, s.error());
        if (s.code() == ErrorCode::kStopped) return;
      }
    }
    if (bad_ == wrong) c_.Learn(stamp, bytes);
  }

  Context& c_;
  const Plan& plan_;
  const Said<LayerRecord>& said_;
  const LayerRecord& e_;
  const UnitPlan& unit_;
  size_t bad_ = 0;
};

}  // namespace

void CheckPacks(Context* c) {
  const auto packs = CollectPacks(c->log);
  std::vector<const PackUse*> readable;
  size_t gone = 0;
  for (const auto& [hex, p] : packs) {
    c->packs_referenced.insert(hex);
    const Presence found = CheckPresence(c, hex, p);
    if (found == Presence::kThere) readable.push_back(&p);
    gone += found == Presence::kGone ? 1 : 0;
  }
  if (gone > 0) {
    const std::string why = c->log.expired ? "as `jobctl gc` said: the job is done and its output stands" : "they held cuts that nobody needs any more";
    c->Add("F050", FsckSeverity::kInfo, "pack", std::to_string(gone) + (gone == 1 ? " pack is gone, " : " packs are gone, ") + why, "");
  }
  c->report.packs = readable.size();
  CheckNames(c);
  if (!c->options.deep) return;
  for (const PackUse* p : readable) c->bytes_total += p->manifest.file_size;
  VerifyAll(c, readable);
}

void CheckLayers(Context* c) {
  const Plan* plan = c->log.plan();
  if (plan == nullptr) return;
  std::set<std::string> bad;   // packs of which something is wrong already
  for (const FsckFinding& f : c->report.findings) {
    if (f.code == "F050" || f.code == "F051" || f.code == "F000") bad.insert(f.object);
  }
  std::vector<const Said<LayerRecord>*> layers;
  for (const auto& [unit, all] : c->log.layers) {
    if (unit < plan->units.size()) {
      const Said<LayerRecord>* counting = c->log.Layer(unit);
      layers.push_back(counting != nullptr ? counting : &all.front());   // made with other samples, to be made again: it may be wrong all the same
    } else {
      c->Error("F060", "unit " + std::to_string(unit), "the plan has no such unit", "`" + c->Repair() + "` voids it", Remedy::Void(all.front().stream, all.front().key));
    }
  }
  (void)ParallelFor(c->threads(), layers.size(), [&](size_t i) {
    const auto& packs = layers[i]->value.packs;
    const auto unreadable = [&](const PackManifest& m) {
      return bad.contains(PackName(m.root.Hex())) || (c->log.expired && !c->fs.Stat(c->layout.Pack(m.root)).ok());
    };
    const bool readable = std::none_of(packs.begin(), packs.end(), unreadable);
    LayerChecker(c, *plan, *layers[i]).Run(readable);
    return OkStatus();
  }, [&] { c->Tick(); });
}

}  // namespace holdfast::fsck
