// SPDX-License-Identifier: Apache-2.0
//
// F001-F031: FORMAT, and every slot of every stream. A slot that ReadSlot accepts is taken; one that it refuses is taken apart to say
// why. Behind damage the chain cannot be checked for one step, and an epoch may begin without its claim: both are taken as they come.
#include <algorithm>
#include <cstdio>

#include "fsck/context.h"
#include "fsck/quarantine.h"
#include "fsck/trial.h"
#include "ledger/cluster/root.h"
#include "ledger/records/value.h"
#include "ledger/segment/segment.h"

namespace holdfast::fsck {
namespace {

constexpr uint64_t kFormatBytesMax = 4096;
// What to do about a slot that is gone or damaged.
std::string SlotAdvice(const Context& c, const std::string& stream, uint32_t seq) {
  const std::string copy = "restore the file from a copy of the directory if there is one (slots never change); without one ";
  if (!c.is_root && stream == RunLayout::JobStream() && seq == 0) return copy + c.BeginAgain();
  return copy + "`" + c.Repair() + "` puts a tombstone in its place" + (c.is_root ? "" : ", and " + c.Resume() + " does again what is missing");
}

std::string SlotName(const std::string& stream, uint32_t seq) {
  char text[24];
  std::snprintf(text, sizeof(text), "/%08x.seg", seq);
  return "log/" + stream + text;
}

bool IsStream(const Context& c, const std::string& name) {
  if (c.is_root) return name == RootLayout::QueueStream() || (name.starts_with("node.") && IsPlainName(name.substr(5)));
  StageId stage;
  return name == RunLayout::JobStream() || name == RunLayout::MergeStream() || (name.starts_with("node.") && name.size() > 5) ||
         RunLayout::ParseStageStream(name, &stage);
}

// Downstream before upstream, the job's records before everything: a record found is never younger than what it refers to.
std::vector<std::string> ReadingOrder(std::vector<std::string> streams) {
  const auto rank = [](const std::string& s) -> int64_t {
    StageId stage;
    if (s == RunLayout::JobStream()) return -2;
    if (s == RunLayout::MergeStream()) return -1;
    return RunLayout::ParseStageStream(s, &stage) ? 65536 - int64_t{stage.value} : 65537;
  };
  std::stable_sort(streams.begin(), streams.end(), [&](const auto& a, const auto& b) { return rank(a) < rank(b); });
  return streams;
}

void Foreign(Context* c, const std::string& object) {
  if (BaseName(object).starts_with(".nfs")) {
    c->Add("F003", FsckSeverity::kInfo, object, "a file that an NFS client removed while it was open; it goes away by itself", "");
  } else {
    c->Error("F003", object, "nothing of Holdfast's has this name", "find out who wrote it; `" + c->Repair() + "` moves it to the quarantine",
             Remedy::MoveAway(JoinPath(c->layout.root(), object)));
  }
}

// ---- why a slot was refused ----

struct Fault {
  const char* code;
  std::string why;
};

// The record that is broken inside a sound environment.
std::optional<Fault> DiagnoseEnv(ByteSpan env, const SegmentTrailer& t) {
  std::vector<std::pair<Bytes, Bytes>> entries;
  const Status read = ReadEnv(env, [&](ByteSpan key, ByteSpan value) {
    entries.emplace_back(Bytes(key.begin(), key.end()), Bytes(value.begin(), value.end()));
    return OkStatus();
  });
  if (!read.ok()) return Fault{"F015", read.error().message};
  if (entries.size() != t.records) return Fault{"F015", std::to_string(entries.size()) + " records, the trailer says " + std::to_string(t.records)};
  for (size_t i = 0; i < entries.size(); ++i) {
    const std::string which = "record " + std::to_string(i) + ": ";
    if (i > 0 && !(entries[i - 1].first < entries[i].first)) return Fault{"F015", which + "keys do not ascend"};
    const auto key = RecordKey::Decode(entries[i].first);
    if (!key.ok()) return Fault{"F021", which + key.error().message};
    const auto header = DecodeValueHeader(entries[i].second);
    if (!header.ok()) return Fault{"F020", which + header.error().message};
    if (header->cls != static_cast<uint8_t>(key->cls)) return Fault{"F021", which + "its key and its header name different classes"};
    if (header->epoch != t.epoch) return Fault{"F021", which + "its epoch is not its slot's"};
    const auto record = DecodeRecordValue(*key, entries[i].second);
    if (!record.ok()) return Fault{"F020", which + record.error().message};
  }
  return std::nullopt;
}

Fault Diagnose(ByteSpan file, const std::string& stream, uint32_t seq, const std::optional<Nonce>& job) {
  if (file.size() < kTrailerBytes) return {"F011", "only " + std::to_string(file.size()) + " bytes, shorter than a trailer"};
  const auto trailer = SegmentTrailer::Decode(file.last(kTrailerBytes));
  if (!trailer.ok()) return {"F011", trailer.error().message};
  const ByteSpan env = file.first(file.size() - kTrailerBytes);
  if (trailer->env_len != env.size()) {
    return {"F011", std::to_string(file.size()) + " bytes, its trailer wants " + std::to_string(trailer->env_len + kTrailerBytes)};
  }
  if (job && trailer->job != *job) return {"F013", "belongs to another job, " + trailer->job.Hex()};
  if (trailer->stream != StreamId(stream)) return {"F013", "belongs to another stream, where it is slot " + std::to_string(trailer->seq)};
  if (trailer->seq != seq) return {"F013", "is slot " + std::to_string(trailer->seq) + " of this stream"};
  if (Sha256(env) != trailer->env_sha256) return {"F012", "content fails its SHA-256"};
  return DiagnoseEnv(env, *trailer).value_or(Fault{"F015", "refused by the reader"});
}

// ---- one stream ----

class StreamChecker {
 public:
  StreamChecker(Context* c, std::string stream) : c_(*c), stream_(std::move(stream)) {}

  std::vector<SaidRecord> Run() {
    const std::vector<uint32_t> slots = List();
    length_ = slots.empty() ? 0 : slots.back() + 1;
    deadly_ = DeadlySlots(c_.fs, c_.layout, stream_, slots);
    for (const uint32_t seq : slots) {
      while (state_.next_seq < seq) Missing();
      // A slot that was linked this moment may be listed and not yet open for another host: it does not exist yet.
      if (seq == slots.back() && c_.fs.Stat(c_.layout.Slot(stream_, seq)).code() == ErrorCode::kNotFound) break;
      Take(seq);
    }
    if (stale_ != 0) {
      c_.Add("F031", FsckSeverity::kInfo, "log/" + stream_, std::to_string(stale_) + " records of owners that had been replaced; they do not count", "");
    }
    Distrust();
    Strike();
    KeepSalvaged();
    c_.log.streams[stream_] = state_;
    return std::move(records_);
  }

 private:
  std::vector<uint32_t> List() {
    std::vector<uint32_t> slots;
    const auto names = c_.fs.List(c_.layout.StreamDir(stream_));
    if (!names.ok()) {
      c_.Unreadable("log/" + stream_, names.error());
      return slots;
    }
    for (const std::string& name : *names) {
      uint32_t seq = 0;
      if (RunLayout::ParseSlotName(name, &seq)) {
        slots.push_back(seq);
      } else {
        Foreign(&c_, "log/" + stream_ + "/" + name);
      }
    }
    std::sort(slots.begin(), slots.end());
    return slots;
  }

  // Of slot 0 of a job hangs everything: without its records no tombstone makes a job of it again.
  Remedy Bury(uint32_t seq) const { return !c_.is_root && stream_ == RunLayout::JobStream() && seq == 0 ? Remedy{} : Remedy::Bury(stream_, seq); }

  void Skip() {
    broken_ = damaged_ = true;
    may_void_.try_emplace(state_.next_seq, true);
    ++state_.next_seq;
  }

  // A slot that the listing did not show. A listing is no snapshot, so the name is asked for once more.
  void Missing() {
    const uint32_t seq = state_.next_seq;
    const auto there = c_.fs.Exists(c_.layout.Slot(stream_, seq));
    if (there.ok() && *there) return Take(seq);
    c_.Lost("F010", SlotName(stream_, seq), "the slot is missing, though later ones are there: it was deleted, or the server lost what it had acknowledged",
            SlotAdvice(c_, stream_, seq) + "; check that the export is `sync`", Bury(seq));
    Skip();
  }

  void Take(uint32_t seq) {
    const std::string object = SlotName(stream_, seq);
    ++c_.log.slots;
    const auto file = c_.fs.ReadFile(c_.layout.Slot(stream_, seq), kSegmentBytesMax);
    if (!file.ok() && file.code() != ErrorCode::kResourceExhausted) {
      c_.Unreadable(object, file.error());
      return Skip();
    }
    if (file.ok()) c_.report.bytes_read += file->size();
    if (const auto dead = deadly_.find(seq); dead != deadly_.end()) {
      c_.Lost("F015", object, "LMDB dies on it (signal " + std::to_string(dead->second) + "), although its digest is right: its writer was out of order", SlotAdvice(c_, stream_, seq), Bury(seq));
      if (file.ok()) Rescue(seq, *file, "F015");
      return Skip();
    }
    Digest prev;
    auto slot = ReadSlot(c_.fs, c_.layout, stream_, seq, c_.log.job_id.value_or(Nonce{}), &prev);
    if (!slot.ok()) {
      const Fault fault = file.ok() ? Diagnose(*file, stream_, seq, c_.log.job_id) : Fault{"F011", "larger than any segment"};
      c_.Lost(fault.code, object, fault.why, SlotAdvice(c_, stream_, seq), Bury(seq));
      if (file.ok()) Rescue(seq, *file, fault.code);
      return Skip();
    }
    NoteLinks(seq);
    Apply(*slot, prev, object);
  }

  void NoteLinks(uint32_t seq) {
    const auto info = c_.fs.Stat(c_.layout.Slot(stream_, seq));
    if (info.ok() && info->nlink > 1) {
      c_.Add("F091", FsckSeverity::kInfo, SlotName(stream_, seq), "has a second name in tmp/: its writer died between link and unlink", "");
    }
  }

  void Apply(const Slot& slot, const Digest& prev, const std::string& object) {
    if (broken_) {
      state_.tail = prev;  // nobody can say what the lost slot's digest was
    } else if (prev != state_.tail) {
      c_.Lost("F014", object, "does not follow the slot before it: its chain names another predecessor", SlotAdvice(c_, stream_, slot.seq), Bury(slot.seq));
      state_.tail = prev;
    }
    CheckEpochs(slot, object);
    const auto counting = ApplySlot(slot, prev, &state_);
    broken_ = false;
    if (!counting.ok()) {
      c_.Lost("F014", object, counting.error().message, SlotAdvice(c_, stream_, slot.seq), Bury(slot.seq));
      return Skip();
    }
    c_.log.reopened |= slot.tombstone;
    sound_[slot.seq] = slot.epoch;
    if (slot.tombstone) RescueCopy(slot, object);
    c_.log.writers.push_back({stream_, slot.seq, slot.incarnation});
    stale_ += slot.records.size() - counting->size();
    for (const Record* r : *counting) records_.push_back({stream_, slot.seq, *r});
    c_.report.records += counting->size();
  }

  // Claims rise by one. A claim inside a lost slot is not to be seen: then the first record of its epoch stands for it.
  void CheckEpochs(const Slot& slot, const std::string& object) {
    bool claimed = slot.tombstone;
    for (const Record& r : slot.records) {
      if (r.key.cls != RecordClass::kClaim) continue;
      claimed = true;
      const bool expected = r.epoch == state_.epoch + 1 || (damaged_ && r.epoch > state_.epoch);
      if (!expected && r.epoch > state_.epoch) {
        c_.Error("F030", object, "claims epoch " + std::to_string(r.epoch) + " after epoch " + std::to_string(state_.epoch), c_.Resume() + " goes on with the newest claim");
      }
    }
    if (state_.epoch == 0 && !claimed && !damaged_) {
      c_.Error("F030", object, "the first slot of the stream claims nothing", "");
    }
    if (!claimed && slot.epoch > state_.epoch && damaged_) state_.epoch = slot.epoch;
  }

  // ---- salvage ----

  // Takes over what can be believed of a lost slot. Its epoch must have been in force there: what a replaced owner said never counted.
  void Rescue(uint32_t seq, ByteSpan file, const char* code) {
    constexpr std::string_view kRotten[] = {"F012", "F015", "F020", "F021"};
    const bool wanted = c_.options.salvage && !c_.is_root && c_.log.job_id && Bury(seq).what != Remedy::What::kNone;
    if (!wanted || std::find(std::begin(kRotten), std::end(kRotten), code) == std::end(kRotten)) return;
    Salvage s = SalvageSlot(c_.fs, c_.layout, stream_, seq, *c_.log.job_id, file);
    may_void_[seq] = s.may_void;
    if (s.epoch < state_.epoch) return;
    s.code = code;
    for (const Record& r : s.records) records_.push_back({stream_, seq, r, /*salvaged=*/true});
    salvages_.push_back(std::move(s));
  }

  // A tombstone of a repair that was killed before it appended anything to this stream: the slot's copy is the slot.
  void RescueCopy(const Slot& tombstone, const std::string& object) {
    if (!c_.options.salvage || c_.is_root) return;
    for (const std::string& id : QuarantineIds(c_.fs, c_.layout)) {
      const auto manifest = ReadManifest(c_.fs, c_.layout, id);
      if (!manifest.ok() || manifest->incarnation != tombstone.incarnation) continue;
      const auto before = std::find_if(manifest->streams.begin(), manifest->streams.end(), [&](const auto& s) { return s.stream == stream_; });
      const auto burial = std::find_if(manifest->burials.begin(), manifest->burials.end(), [&](const auto& b) { return b.stream == stream_ && b.seq == tombstone.seq; });
      if (before == manifest->streams.end() || burial == manifest->burials.end() || before->next_seq != length_) continue;
      const auto copy = c_.fs.ReadFile(Quarantine(c_.layout, id).SlotCopy(stream_, tombstone.seq), kSegmentBytesMax);
      const size_t had = salvages_.size();
      if (copy.ok()) Rescue(tombstone.seq, *copy, burial->code.c_str());
      if (salvages_.size() == had || salvages_.back().records.empty()) continue;
      c_.Add(FsckCodeName(burial->code) == nullptr ? "F012" : burial->code.c_str(), FsckSeverity::kInfo, object,
             "a repair that was killed put a tombstone here; some of what the slot said is to be had from quarantine/" + id, "`" + c_.Repair() + " --salvage` says it again");
    }
  }

  // Drops what nobody can vouch for: records before a lost slot that may have voided them, and of a slot whose successor is older.
  void Distrust() {
    const auto trusted = [&](const Salvage& s) {
      const auto behind = sound_.upper_bound(s.seq);
      if (behind != sound_.end() && behind->second < s.epoch) return false;
      for (auto lost = may_void_.upper_bound(s.seq); lost != may_void_.end(); ++lost) {
        const auto next = sound_.upper_bound(lost->first);
        const bool same_owner = next != sound_.end() && next->second <= s.epoch;   // owners void nothing, only repairs do
        if (lost->second && !same_owner) return false;
      }
      return true;
    };
    for (Salvage& s : salvages_) {
      if (trusted(s)) continue;
      std::erase_if(records_, [&](const SaidRecord& r) { return r.salvaged && r.seq == s.seq; });
    }
  }

  // After all voids: what the stream says elsewhere is not said again; of the merge's steps the latest counts.
  void KeepSalvaged() {
    for (Salvage& s : salvages_) {
      const size_t had = s.records.size();
      std::erase_if(s.records, [&](const Record& r) {
        const auto stands = [&](const SaidRecord& k) { return k.salvaged && k.seq == s.seq && k.record.key == r.key; };
        return std::none_of(records_.begin(), records_.end(), stands);
      });
      s.complete &= s.records.size() == had;   // what is said elsewhere is not lost
      std::erase_if(s.records, [&](const Record& r) { return SaidElsewhere(r, s.seq); });
      std::erase_if(records_, [&](const SaidRecord& k) { return k.salvaged && k.seq == s.seq && SaidElsewhere(k.record, s.seq); });
      c_.log.salvages.push_back(std::move(s));
    }
  }

  bool SaidElsewhere(const Record& record, uint32_t seq) const {
    return std::any_of(records_.begin(), records_.end(), [&](const SaidRecord& k) {
      return !k.salvaged && k.record.key == record.key && (record.key.cls != RecordClass::kMerge || k.seq > seq) && MadeWithout(k.record) == MadeWithout(record);
    });
  }

  // VOID records: what they name in earlier slots of this stream was never said.
  void Strike() {
    std::vector<SaidRecord> kept;
    for (SaidRecord& one : records_) {
      if (one.record.key.cls == RecordClass::kVoid && one.record.key.part == 0) StrikeOne(one, &kept);
      kept.push_back(std::move(one));
    }
    records_ = std::move(kept);
  }

  void StrikeOne(const SaidRecord& said, std::vector<SaidRecord>* kept) {
    const auto json = ControlPayload(said.record);
    const auto v = json.ok() ? VoidRecord::FromJson(*json) : Result<VoidRecord>(json.error());
    if (!v.ok()) return c_.Error("F020", SlotName(stream_, said.seq), "void record: " + v.error().message, "");
    c_.log.reopened = true;
    std::erase_if(*kept, [&](const SaidRecord& k) {
      if (k.seq >= said.seq) return false;
      if (v->target == "slot") return k.seq == v->seq;
      RecordKey key = k.record.key;
      if (key.cls == RecordClass::kSample) key.part = 0;  // both parts are one statement
      return key.Encode() == v->key;
    });
  }

  Context& c_;
  const std::string stream_;
  StreamState state_;
  uint32_t length_ = 0;              // of the stream, as listed
  std::vector<Salvage> salvages_;
  std::map<uint32_t, bool> may_void_;       // lost slots: may there have been a VOID in it?
  std::map<uint32_t, uint64_t> sound_;      // slots that could be read, with their epochs
  std::map<uint32_t, int> deadly_;   // slots that must not be parsed here, with the signal that they send
  bool broken_ = false;    // the slot before the next one was lost
  bool damaged_ = false;   // some slot of the stream was
  uint64_t stale_ = 0;
  std::vector<SaidRecord> records_;
};

// The job's id: from job/0, or when that is damaged from any trailer that is sound by itself.
void FindJobId(Context* c, const std::vector<std::string>& streams) {
  if (auto id = ReadJobId(c->fs, c->layout); id.ok()) {
    c->log.job_id = *id;
    return;
  }
  for (const std::string& stream : streams) {
    const auto names = c->fs.List(c->layout.StreamDir(stream));
    for (size_t i = 0; names.ok() && i < names->size(); ++i) {
      const auto file = c->fs.ReadFile(c->layout.StreamDir(stream) + "/" + (*names)[i], kSegmentBytesMax);
      const auto trailer = file.ok() ? CheckSegment(*file) : Result<SegmentTrailer>(file.error());
      if (!trailer.ok()) continue;
      c->log.job_id = trailer->job;
      return;
    }
  }
}

}  // namespace

bool CheckFormatFile(Context* c) {
  const auto bytes = c->fs.ReadFile(c->layout.FormatFile(), kFormatBytesMax);
  const Status status = CheckFormat(c->fs, c->layout);
  const std::string advice = "copy FORMAT from any other run directory of the same version: it is the same in all of them that were begun alike, with --skip-samples or without";
  if (status.code() == ErrorCode::kUnsupported) {
    c->Error("F001", "FORMAT", status.error().message, "use the holdfast that made this directory");
    return false;
  }
  if (!status.ok() && status.code() != ErrorCode::kCorrupt && status.code() != ErrorCode::kNotFound) {
    c->Unreadable("FORMAT", status.error());
  } else if (!status.ok()) {
    c->Error("F001", "FORMAT", status.error().message, advice);
  } else if (bytes.ok()) {
    // The checksum line itself, to the letter.
    const std::string text(AsText(*bytes));
    const size_t at = text.rfind("crc32c ");
    char line[32];
    std::snprintf(line, sizeof(line), "crc32c %08x\n", Crc32c(AsBytes(std::string_view(text).substr(0, at))));
    if (text.substr(at) != line) c->Error("F001", "FORMAT", "its checksum line is damaged", advice);
  }
  return true;
}

void ReadLog(Context* c) {
  std::vector<std::string> streams;
  const auto names = c->fs.List(c->layout.LogDir());
  if (!names.ok() && names.code() != ErrorCode::kNotFound) return c->Unreadable("log", names.error());
  for (size_t i = 0; names.ok() && i < names->size(); ++i) {
    const auto info = c->fs.Stat(JoinPath(c->layout.LogDir(), (*names)[i]));
    if (IsStream(*c, (*names)[i]) && info.ok() && info->is_directory) {
      streams.push_back((*names)[i]);
    } else {
      Foreign(c, "log/" + (*names)[i]);
    }
  }
  streams = ReadingOrder(std::move(streams));
  if (!c->log.job_id) FindJobId(c, streams);
  std::map<std::string, std::vector<SaidRecord>> by_stream;
  for (const std::string& stream : streams) by_stream[stream] = StreamChecker(c, stream).Run();
  // In the order of the fold: names sort the stages rightly up to 99, the number beyond.
  std::stable_sort(streams.begin(), streams.end(), [](const std::string& a, const std::string& b) {
    StageId x, y;
    const bool sa = RunLayout::ParseStageStream(a, &x), sb = RunLayout::ParseStageStream(b, &y);
    return sa && sb ? x < y : sa && !sb;
  });
  for (const std::string& stream : streams) {
    for (SaidRecord& r : by_stream[stream]) c->log.records.push_back(std::move(r));
  }
  c->report.streams = streams.size();
  c->report.slots = c->log.slots;
}

}  // namespace holdfast::fsck
