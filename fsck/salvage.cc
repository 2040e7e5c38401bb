// SPDX-License-Identifier: Apache-2.0
#include "fsck/salvage.h"

#include <algorithm>
#include <string_view>

#include "fsck/trial.h"
#include "ledger/segment/segment.h"

namespace holdfast::fsck {
namespace {

// Records by which nothing is lost that the claim of a repair, or the next owner, does not say anew.
bool IsAct(RecordClass cls) { return std::string_view("CRLBNA").find(static_cast<char>(cls)) != std::string_view::npos; }

template <class T>
Result<T> Parse(const Record& record) {
  HOLDFAST_ASSIGN(const Json j, ControlPayload(record));
  return T::FromJson(j);
}

class Judge {
 public:
  Judge(FileSystem& fs, const RunLayout& layout, const std::string& stream) : fs_(fs), layout_(layout) {
    staged_ = RunLayout::ParseStageStream(stream, &stage_);
    job_ = stream == RunLayout::JobStream();
    merge_ = stream == RunLayout::MergeStream();
  }

  bool Placed(const RecordKey& key) const { return key.stage == (staged_ ? stage_.value : 0); }

  // Does the payload say what the key says? Not for samples.
  bool Holds(const Record& r) const {
    const RecordKey& k = r.key;
    const bool plain = k.b == 0 && k.part == 0;
    switch (k.cls) {
      case RecordClass::kPlan: {
        const auto plan = Parse<Plan>(r);
        return job_ && plain && plan.ok() && plan->number == k.a;
      }
      case RecordClass::kOmit: {
        const auto omit = Parse<OmitRecord>(r);
        return job_ && plain && omit.ok() && omit->sample == k.a;
      }
      case RecordClass::kSource: {
        const auto read = Parse<SourceRead>(r);
        return staged_ && plain && read.ok() && read->unit == k.a;
      }
      case RecordClass::kLayer: {
        const auto layer = Parse<LayerRecord>(r);
        return staged_ && plain && layer.ok() && layer->unit == k.a && There(layer->packs);
      }
      case RecordClass::kSeal: return staged_ && plain && k.a == 0 && Parse<SealRecord>(r).ok();
      case RecordClass::kMerge: {
        const auto step = Parse<MergeRecord>(r);
        return merge_ && k.b == 0 && step.ok() && step->file == k.a && static_cast<uint32_t>(step->state) == k.part;
      }
      case RecordClass::kDone: return merge_ && plain && k.a == 0 && Parse<DoneRecord>(r).ok();
      default: return false;
    }
  }

  bool HoldsSample(const Record& control, const Record& amax) const {
    const auto sample = SampleRecord::FromRecords(control, amax);
    return staged_ && sample.ok() && (!sample->output || There(sample->output->packs));
  }

 private:
  bool There(const std::vector<PackManifest>& packs) const {
    return std::all_of(packs.begin(), packs.end(), [&](const PackManifest& m) {
      const auto info = fs_.Stat(layout_.Pack(m.root));
      return info.ok() && info->size == m.file_size;
    });
  }

  FileSystem& fs_;
  const RunLayout& layout_;
  StageId stage_;
  bool staged_ = false, job_ = false, merge_ = false;
};

// Two keys that lead to one value: one of them was led astray.
bool Overlap(const std::vector<RawEntry>& entries) {
  std::vector<std::pair<uint64_t, uint64_t>> places;
  for (const RawEntry& e : entries) places.emplace_back(e.at, e.at + e.value.size());
  std::sort(places.begin(), places.end());
  for (size_t i = 1; i < places.size(); ++i) {
    if (places[i].first < places[i - 1].second) return true;
  }
  return false;
}

std::optional<Record> Decoded(const RawEntry& entry, uint64_t epoch) {
  const auto key = RecordKey::Decode(entry.key);
  if (!key.ok()) return std::nullopt;
  auto record = DecodeRecordValue(*key, entry.value);
  if (!record.ok() || record->epoch != epoch) return std::nullopt;
  return std::move(*record);
}

}  // namespace

std::vector<uint32_t> MadeWithout(const Record& record) {
  if (record.key.cls == RecordClass::kLayer) {
    const auto layer = Parse<LayerRecord>(record);
    if (layer.ok()) return layer->omitted;
  } else if (record.key.cls == RecordClass::kSeal) {
    const auto seal = Parse<SealRecord>(record);
    if (seal.ok()) return seal->omitted;
  }
  return {};
}

uint64_t Statements(const std::vector<Record>& records) {
  return static_cast<uint64_t>(std::count_if(records.begin(), records.end(), [](const Record& r) { return r.key.cls != RecordClass::kSample || r.key.part == 0; }));
}

Salvage SalvageSlot(FileSystem& fs, const RunLayout& layout, const std::string& stream, uint32_t seq, const Nonce& job, ByteSpan file) {
  Salvage out{.stream = stream, .seq = seq, .code = {}, .records = {}};
  if (file.size() < kTrailerBytes) return out;
  const auto t = SegmentTrailer::Decode(file.last(kTrailerBytes));
  const bool here = t.ok() && t->job == job && t->stream == StreamId(stream) && t->seq == seq && t->flags == 0 && t->env_len == file.size() - kTrailerBytes;
  if (!here) return out;
  out.epoch = t->epoch;
  bool walked = false;
  const std::vector<RawEntry> entries = WalkInChild(file.first(t->env_len), t->records, &walked);
  const bool whole = walked && entries.size() == t->records && !Overlap(entries);
  const Judge judge(fs, layout, stream);
  out.complete = whole;
  out.may_void = !whole;
  std::optional<Record> control;   // of a sample, until its amax comes
  for (const RawEntry& entry : entries) {
    auto record = Decoded(entry, t->epoch);
    if (!record || !judge.Placed(record->key)) {
      out.complete = false;
      out.may_void = true;
      control.reset();
    } else if (IsAct(record->key.cls)) {
      control.reset();
    } else if (record->key.cls == RecordClass::kSample && record->key.part == 0) {
      control = std::move(record);
    } else if (record->key.cls == RecordClass::kSample) {
      if (whole && control && judge.HoldsSample(*control, *record)) {
        out.records.push_back(*std::exchange(control, std::nullopt));
        out.records.push_back(std::move(*record));
      } else {
        out.complete = false;
      }
    } else if (judge.Holds(*record)) {
      control.reset();
      out.records.push_back(std::move(*record));
    } else {
      out.complete = false;
      out.may_void |= record->key.cls == RecordClass::kVoid;
    }
  }
  return out;
}

}  // namespace holdfast::fsck
