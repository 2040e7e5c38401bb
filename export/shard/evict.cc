// SPDX-License-Identifier: Apache-2.0
//
// Works set by set: all weights of a set are read and hashed, their common amax found, each quantized in row ranges, and the results
// go into the packs. Everything else is copied through in chunks. What goes into a pack, and in which order, depends on the plan
// alone, so a second eviction of a unit makes the same packs.
#include "export/shard/evict.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <future>
#include <map>
#include <memory>
#include <set>

#include "export/nvfp4/nvfp4.h"
#include "export/shard/output_plan.h"
#include "ledger/base/fail_point.h"
#include "ledger/base/parallel.h"
#include "ledger/base/tensor_digest.h"
#include "ledger/base/trace.h"

namespace holdfast {
namespace {

constexpr uint64_t kSliceBytes = 1u << 20;               // work of one thread at a time

struct Site {
  const SitePlan* plan = nullptr;
  const TensorPlan* tensor = nullptr;
  size_t index = 0;  // in UnitPlan::sites
};

// Shape and dtype of a site must be what quantization needs, before any byte is read.
Status CheckSite(const SitePlan& s, const TensorPlan& t) {
  if (t.shape != std::vector<uint64_t>{s.rows, s.cols}) {
    return InvalidArgument(t.name + ": the plan expects a matrix of " + std::to_string(s.rows) +
                           " x " + std::to_string(s.cols));
  }
  if (s.cols % kNvfp4Block != 0) {
    return InvalidArgument(t.name + ": " + std::to_string(s.cols) + " columns are no multiple of " +
                           std::to_string(kNvfp4Block) +
                           "; this layer cannot be NVFP4. Use a recipe that leaves it out");
  }
  if (t.dtype != DType::kBF16 && t.dtype != DType::kF16 && t.dtype != DType::kF32) {
    return InvalidArgument(t.name + ": weights of type " + DTypeName(t.dtype) +
                           " cannot be quantized; expected BF16, F16 or F32");
  }
  return OkStatus();
}

class Eviction {
 public:
  Eviction(FileSystem& fs, const RunLayout& layout, const SourceModel& source, const Plan& plan,
           const UnitPlan& unit, const std::vector<float>& input_amax, const EvictOptions& options)
      : source_(source),
        plan_(plan),
        unit_(unit),
        input_amax_(input_amax),
        options_(options),
        packs_(fs, layout, options.incarnation, unit.label, std::max(1u, options.threads)),
        weight_amax_(unit.sites.size()) {}

  Result<LayerRecord> Run() {
    HOLDFAST_TRY(CheckInputs());
    for (const TensorPlan& t : unit_.tensors) {
      const auto site = sites_.find(t.name);
      if (site == sites_.end()) {
        HOLDFAST_TRY(CopyThrough(t));
      } else if (!quantized_.contains(site->second.plan->module)) {
        HOLDFAST_TRY(QuantizeSet(site->second.plan->set));
      }
    }
    return Finish();
  }

 private:
  struct Loaded {
    Bytes bytes;
    Digest digest;
    float amax = 0;
  };

  Status CheckInputs() {
    if (plan_.input_scales && input_amax_.size() != unit_.sites.size()) {
      return InvalidArgument(unit_.label + ": " + std::to_string(input_amax_.size()) +
                             " input amax for " + std::to_string(unit_.sites.size()) + " sites");
    }
    std::map<std::string, const TensorPlan*> tensors;
    for (const TensorPlan& t : unit_.tensors) tensors[t.name] = &t;
    for (size_t i = 0; i < unit_.sites.size(); ++i) {
      const SitePlan& s = unit_.sites[i];
      const auto t = tensors.find(s.module + ".weight");
      if (t == tensors.end())
        return InvalidArgument(s.module + ": the plan of " + unit_.label + " has no weight for it");
      HOLDFAST_TRY(CheckSite(s, *t->second));
      sites_[t->second->name] = {&s, t->second, i};
      if (plan_.input_scales && !(std::isfinite(input_amax_[i]) && input_amax_[i] >= 0)) {
        return InvalidArgument(
            s.module + ": its input amax is " +
            (std::isnan(input_amax_[i]) ? "NaN" : "infinite or negative") +
            "; some calibration sample overflows in this layer. Remove that sample and run again");
      }
    }
    return OkStatus();
  }

  Status Arrive(const std::string& tensor) {
    if (options_.stop != nullptr && options_.stop->load())
      return Stopped("eviction of " + unit_.label + " was asked to stop");
    return FailPoint("evict.tensor", tensor);
  }

  // The tensor as it lies in the source, if it still is what the plan says.
  Result<const SourceModel::Place*> Find(const TensorPlan& t) const {
    const SourceModel::Place* place = source_.Find(t.name);
    if (place == nullptr)
      return InvalidArgument("source changed: " + source_.dir() + " has no tensor " + t.name +
                             " any more");
    if (place->tensor->dtype != t.dtype || place->tensor->shape != t.shape) {
      return InvalidArgument("source changed: " + place->file->path() + ": tensor " + t.name +
                             " has another dtype or shape than when the job began");
    }
    return place;
  }

  Status CheckDigest(const TensorPlan& t, const SourceModel::Place& place,
                     const Digest& digest) const {
    const auto expected = options_.expected ? options_.expected(t.name) : std::nullopt;
    if (!expected || *expected == digest) return OkStatus();
    return InvalidArgument("source changed: " + place.file->path() + ": tensor " + t.name +
                           " has SHA-256 " + digest.Hex() + ", not " + expected->Hex() +
                           " as when the job began. Restore the file, or begin a new job");
  }

  Status CopyThrough(const TensorPlan& t) {
    HOLDFAST_TRY(Arrive(t.name));
    HOLDFAST_ASSIGN(const SourceModel::Place* place, Find(t));
    StoredTensor stored;
    TensorHasher hasher;
    std::vector<Bytes> parts(std::max(1u, options_.threads));
    std::vector<ByteSpan> chunks;
    for (uint64_t at = 0; at < place->tensor->bytes; at += chunks.size() * kCopyBytes) {
      chunks.clear();
      for (uint64_t next = at; next < place->tensor->bytes && chunks.size() < parts.size(); next += kCopyBytes) {
        Bytes& part = parts[chunks.size()];
        part.resize(std::min(kCopyBytes, place->tensor->bytes - next));
        chunks.emplace_back(part);
      }
      HOLDFAST_TRY(ParallelFor(options_.threads, chunks.size(), [&](size_t i) { return place->file->file().Read(place->tensor->offset + at + i * kCopyBytes, parts[i]); }));
      // One thread hashes what the others encode.
      const auto hash = std::async(chunks.size() > 1 ? std::launch::async : std::launch::deferred, [&] {
        for (const ByteSpan chunk : chunks) hasher.Update(chunk);
      });
      const Status added = packs_.AddAll(CopyCodec(t.dtype), chunks, &stored.pieces);
      hash.wait();
      HOLDFAST_TRY(added);
    }
    place->file->file().DropCache(place->tensor->offset, place->tensor->bytes);
    stored.digest = hasher.Finish();
    HOLDFAST_TRY(CheckDigest(t, *place, stored.digest));
    source_digest_[t.name] = stored.digest;
    done_[t.name] = std::move(stored);
    return OkStatus();
  }

  Status QuantizeSet(uint32_t set) {
    std::vector<Site> members;
    for (const SitePlan& s : unit_.sites) {
      if (s.set == set) members.push_back(sites_[s.module + ".weight"]);
    }
    for (const Site& m : members) HOLDFAST_TRY(Arrive(m.tensor->name));
    std::vector<Loaded> weights(members.size());
    const bool resident = std::all_of(members.begin(), members.end(), [&](const Site& m) { return IsResident(*m.tensor); });
    HOLDFAST_TRY(ParallelFor(options_.threads, members.size(), [&](size_t i) {
      return resident ? FromDevice(*members[i].tensor, &weights[i]) : Load(*members[i].tensor, &weights[i]);
    }));
    float weight_amax = 0, input_amax = 0;
    for (size_t i = 0; i < members.size(); ++i) {
      weight_amax_[members[i].index] = std::bit_cast<uint32_t>(weights[i].amax);
      source_digest_[members[i].tensor->name] = weights[i].digest;
      weight_amax = std::max(weight_amax, weights[i].amax);
      if (plan_.input_scales) input_amax = std::max(input_amax, input_amax_[members[i].index]);
    }
    const float scale2 = GlobalScale(weight_amax), input_scale = GlobalScale(input_amax);
    // On a device all members at once; here one after the other, each on all threads, for their memory.
    std::vector<Quantized> on_device(members.size());
    if (resident) {
      HOLDFAST_TRY(ParallelFor(options_.threads, members.size(), [&](size_t i) { return Quantize(members[i], {}, true, scale2, &on_device[i]); }));
    }
    for (size_t i = 0; i < members.size(); ++i) {
      Quantized q = std::move(on_device[i]);
      if (!resident) HOLDFAST_TRY(Quantize(members[i], weights[i].bytes, false, scale2, &q));
      HOLDFAST_TRY(StoreQuantized(members[i], std::make_shared<const Quantized>(std::move(q)), resident, scale2, input_scale));
      weights[i].bytes = {};
    }
    return OkStatus();
  }

  bool IsResident(const TensorPlan& t) const {
    return options_.resident != nullptr && options_.resident->Holds(t.name) && options_.expected && options_.expected(t.name).has_value();
  }
  // Its digest was checked when it was loaded.
  Status FromDevice(const TensorPlan& t, Loaded* out) const {
    out->digest = *options_.expected(t.name);
    HOLDFAST_ASSIGN(out->amax, options_.resident->Amax(t.name));
    return OkStatus();
  }

  // Read, hashed and looked through slice by slice, while a slice is in the CPU's cache.
  Status Load(const TensorPlan& t, Loaded* out) const {
    HOLDFAST_ASSIGN(const SourceModel::Place* place, Find(t));
    out->bytes.resize(place->tensor->bytes);
    TensorHasher hasher;
    bool finite = true;
    for (uint64_t at = 0; at < out->bytes.size(); at += kSliceBytes) {
      const auto slice = std::span(out->bytes).subspan(at, std::min(kSliceBytes, out->bytes.size() - at));
      HOLDFAST_TRY(place->file->file().Read(place->tensor->offset + at, slice));
      hasher.Update(slice);
      const Result<float> amax = WeightAmax(t.dtype, slice, t.name);
      finite = finite && amax.ok();
      if (amax.ok()) out->amax = std::max(out->amax, *amax);
    }
    place->file->file().DropCache(place->tensor->offset, place->tensor->bytes);
    out->digest = hasher.Finish();
    HOLDFAST_TRY(CheckDigest(t, *place, out->digest));   // first: a changed file explains any value
    if (finite) return OkStatus();
    const Result<float> whole = WeightAmax(t.dtype, out->bytes, t.name);   // again, to name the element by its place in the tensor
    HOLDFAST_CHECK(!whole.ok());
    return whole.error();
  }

  struct Quantized {
    Bytes packed, scales;
  };
  // `weight`: empty when it is resident.
  Status Quantize(const Site& site, ByteSpan weight, bool resident, float scale2, Quantized* q) const {
    const TraceSpan span("quantize a tensor");
    const SitePlan& s = *site.plan;
    q->packed.resize(s.rows * s.cols / 2);
    q->scales.resize(s.rows * s.cols / kNvfp4Block);
    return resident ? options_.resident->Quantize(site.tensor->name, scale2, q->packed, q->scales) : QuantizeRows(site, weight, scale2, q->packed, q->scales);
  }
  Status StoreQuantized(const Site& site, const std::shared_ptr<const Quantized>& q, bool resident, float scale2, float input_scale) {
    const TraceSpan span("store a tensor");
    const std::string weight_name = site.plan->module + ".weight";
    HOLDFAST_TRY(resident ? StoreBeside(weight_name, q) : Store(weight_name, Codec::kStored, q->packed));
    HOLDFAST_TRY(Store(weight_name + "_scale", Codec::kZstd, q->scales));
    HOLDFAST_TRY(StoreScalar(weight_name + "_scale_2", scale2));
    if (plan_.input_scales) HOLDFAST_TRY(StoreScalar(site.plan->module + ".input_scale", input_scale));
    quantized_.insert(site.plan->module);
    return OkStatus();
  }
  // The codes of a device come faster than one thread hashes them: the digest of the whole is ready when the unit is.
  Status StoreBeside(const std::string& name, const std::shared_ptr<const Quantized>& q) {
    digests_[name] = std::async(std::launch::async, [q] {
      const TraceSpan span("digest of a tensor");
      return TensorDigest(q->packed);
    });
    return packs_.AddAll(Codec::kStored, TensorChunks(q->packed), &done_[name].pieces);
  }
  Status QuantizeRows(const Site& site, ByteSpan weight, float scale2, std::span<uint8_t> packed, std::span<uint8_t> scales) const {
    const uint64_t cols = site.plan->cols, row_bytes = cols * DTypeBytes(site.tensor->dtype);
    const uint64_t step = std::max<uint64_t>(1, kSliceBytes / std::max<uint64_t>(1, row_bytes));
    return ParallelFor(options_.threads, (site.plan->rows + step - 1) / step, [&](size_t i) -> Status {
      const uint64_t row = i * step, rows = std::min(step, site.plan->rows - row);
      QuantizeNvfp4(site.tensor->dtype, weight.subspan(row * row_bytes, rows * row_bytes), rows, cols, scale2,
                    packed.subspan(row * cols / 2, rows * cols / 2), scales.subspan(row * cols / kNvfp4Block, rows * cols / kNvfp4Block));
      return OkStatus();
    });
  }

  Status Store(const std::string& name, Codec codec, ByteSpan raw) {
    return packs_.AddTensor(codec, raw, &done_[name]);
  }
  Status StoreScalar(const std::string& name, float value) {
    Bytes raw;
    PutLe(&raw, std::bit_cast<uint32_t>(value));
    return Store(name, Codec::kStored, raw);
  }

  Result<LayerRecord> Finish() {
    for (auto& [name, digest] : digests_) done_.at(name).digest = digest.get();
    LayerRecord record;
    record.unit = unit_.id;
    for (OutputTensor& t : OutputTensorsOf(plan_, unit_)) {
      StoredTensor& stored = done_.at(t.info.name);
      stored.name = t.info.name;
      stored.dtype = t.info.dtype;
      stored.shape = t.info.shape;
      record.tensors.push_back(std::move(stored));
    }
    Sha256Hasher all;
    for (const TensorPlan& t : unit_.tensors) all.Update(source_digest_.at(t.name).bytes);
    record.source = all.Finish();
    if (plan_.input_scales) {
      for (const float a : input_amax_) record.input_amax.push_back(std::bit_cast<uint32_t>(a));
    }
    record.weight_amax = weight_amax_;
    HOLDFAST_ASSIGN(record.packs, packs_.Finish());
    return record;
  }

  const SourceModel& source_;
  const Plan& plan_;
  const UnitPlan& unit_;
  const std::vector<float>& input_amax_;
  const EvictOptions& options_;
  PackWriter packs_;
  std::map<std::string, Site> sites_;            // by name of the weight
  std::set<std::string> quantized_;              // modules that are done
  std::map<std::string, StoredTensor> done_;     // by name of the output tensor
  std::map<std::string, std::future<Digest>> digests_;   // of those, the ones that are still being hashed
  std::map<std::string, Digest> source_digest_;  // by name of the source tensor
  std::vector<uint32_t> weight_amax_;
};

}  // namespace

Result<LayerRecord> EvictUnit(FileSystem& fs, const RunLayout& layout, const SourceModel& source,
                              const Plan& plan, const UnitPlan& unit,
                              const std::vector<float>& input_amax, const EvictOptions& options) {
  return Eviction(fs, layout, source, plan, unit, input_amax, options).Run();
}

}  // namespace holdfast
