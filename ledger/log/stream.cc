// SPDX-License-Identifier: Apache-2.0
//
// Reading streams: verification of a slot, the fold of ownership, following a directory.
#include "ledger/log/stream.h"

#include <algorithm>

#include "ledger/segment/segment.h"

namespace holdfast {
namespace {

Error BadSlot(const RunLayout& layout, const std::string& stream, uint32_t seq, const std::string& why) {
  return Corrupt(layout.Slot(stream, seq) + ": " + why + "; run `jobctl fsck " + layout.root() + "`");
}

Result<Bytes> ReadSlotFile(FileSystem& fs, const RunLayout& layout, const std::string& stream, uint32_t seq) {
  auto file = fs.ReadFile(layout.Slot(stream, seq), kSegmentBytesMax);
  if (file.code() == ErrorCode::kResourceExhausted) return BadSlot(layout, stream, seq, "larger than any segment");
  return file;
}

// The digest that a tombstone carries on: what the lost slot's successor has as `prev`. Part 1 of its V record.
const Record* CarriedDigest(const Slot& slot) {
  const auto it = std::find_if(slot.records.begin(), slot.records.end(), [](const Record& r) {
    return r.key.cls == RecordClass::kVoid && r.key.part == 1 && r.payload.size() == Digest{}.bytes.size();
  });
  return it == slot.records.end() ? nullptr : &*it;
}

Result<Slot> DecodeSlot(ByteSpan file, const std::string& stream, uint32_t seq, const Nonce& job, Digest* prev) {
  HOLDFAST_ASSIGN(const SegmentTrailer t, CheckSegment(file));
  if (t.job != job) return Corrupt("belongs to another job, " + t.job.Hex());
  if (t.stream != StreamId(stream) || t.seq != seq) return Corrupt("belongs to another place: slot " + std::to_string(t.seq) + (t.stream == StreamId(stream) ? "" : " of another stream"));
  Slot slot;
  slot.seq = seq;
  slot.epoch = t.epoch;
  slot.incarnation = t.incarnation;
  slot.commit = t.commit;
  slot.digest = SlotDigest(file.last(kTrailerBytes));
  slot.tombstone = (t.flags & kFlagTombstone) != 0;
  HOLDFAST_ASSIGN(slot.records, DecodeEnv(file.first(t.env_len), t.records));
  for (const Record& r : slot.records) {
    if (r.epoch != t.epoch) return Corrupt("holds a record of another epoch than its trailer");
  }
  if (slot.tombstone) {
    if (const Record* carried = CarriedDigest(slot)) std::copy(carried->payload.begin(), carried->payload.end(), slot.digest.bytes.begin());
  }
  *prev = t.prev;
  return slot;
}

// The newest claim in a slot, if it is newer than `epoch`.
Result<std::optional<Claim>> NewerClaim(const Slot& slot, uint64_t epoch) {
  std::optional<Claim> newest;
  for (const Record& r : slot.records) {
    if (r.key.cls != RecordClass::kClaim) continue;
    HOLDFAST_ASSIGN(const Json j, ControlPayload(r));
    HOLDFAST_ASSIGN(Claim c, Claim::FromJson(j));
    if (c.epoch != r.epoch) return Corrupt("claim record: its epoch is not its record's");
    if (c.epoch > epoch) {
      epoch = c.epoch;
      newest = std::move(c);
    }
  }
  return newest;
}

}  // namespace

Result<Nonce> ReadJobId(FileSystem& fs, const RunLayout& layout) {
  const std::string stream = RunLayout::JobStream();
  const auto file = ReadSlotFile(fs, layout, stream, 0);
  if (file.code() == ErrorCode::kNotFound) return NotFound(layout.root() + ": holds no job yet; start one with `jobctl run`");
  if (!file.ok()) return file.error();
  const auto trailer = CheckSegment(*file);
  if (!trailer.ok()) return BadSlot(layout, stream, 0, trailer.error().message);
  return trailer->job;
}

Result<Slot> ReadSlot(FileSystem& fs, const RunLayout& layout, const std::string& stream, uint32_t seq, const Nonce& job, Digest* prev) {
  HOLDFAST_ASSIGN(const Bytes file, ReadSlotFile(fs, layout, stream, seq));
  auto slot = DecodeSlot(file, stream, seq, job, prev);
  if (slot.code() == ErrorCode::kCorrupt) return BadSlot(layout, stream, seq, slot.error().message);
  if (!slot.ok()) return Annotate(slot.error(), layout.Slot(stream, seq));
  return slot;
}

Result<std::vector<const Record*>> ApplySlot(const Slot& slot, const Digest& prev, StreamState* state) {
  if (slot.seq != state->next_seq) return Corrupt("slot " + std::to_string(slot.seq) + " where " + std::to_string(state->next_seq) + " is due");
  if (prev != state->tail) return Corrupt("slot " + std::to_string(slot.seq) + " does not follow the slot before it (chain broken)");
  HOLDFAST_ASSIGN(auto claim, NewerClaim(slot, state->epoch));
  if (slot.tombstone && !claim && slot.epoch > state->epoch) {  // the claim itself was lost; its epoch lives on
    claim = Claim{};
    claim->epoch = slot.epoch;
    claim->node = "(lost)";
    claim->reason = "lost";
  }
  if (claim) {
    state->epoch = claim->epoch;
    state->claim = std::move(*claim);
    state->released = false;
  }
  std::vector<const Record*> counting;
  for (const Record& r : slot.records) {
    if (r.epoch != state->epoch) {
      ++state->stale;
      continue;
    }
    if (r.key.cls == RecordClass::kRelease) state->released = true;
    counting.push_back(&r);
  }
  state->next_seq = slot.seq + 1;
  state->tail = slot.digest;
  return counting;
}

StreamReader::StreamReader(FileSystem& fs, RunLayout layout, std::string stream, Nonce job)
    : fs_(fs), layout_(std::move(layout)), stream_(std::move(stream)), job_(job) {}

Status StreamReader::Take(const Slot& slot, const Digest& prev, const std::function<Status(const Record&, const Slot&)>& on_record) {
  StreamState next = state_;
  const auto counting = ApplySlot(slot, prev, &next);
  if (!counting.ok()) return BadSlot(layout_, stream_, slot.seq, counting.error().message);
  if (on_record) {
    for (const Record* r : *counting) HOLDFAST_TRY(on_record(*r, slot));
  }
  state_ = std::move(next);
  return OkStatus();
}

namespace {

struct Listed {
  uint32_t folded = 0;            // slots below the next one: as many as were folded, unless some are gone
  std::vector<uint32_t> fresh;    // numbers that have not been folded yet, ascending
};

Result<Listed> ListSlots(FileSystem& fs, const std::string& dir, uint32_t next) {
  Listed listed;
  const auto names = fs.List(dir);
  if (names.code() == ErrorCode::kNotFound) return listed;
  if (!names.ok()) return names.error();
  for (const std::string& name : *names) {
    uint32_t seq = 0;
    if (!RunLayout::ParseSlotName(name, &seq)) continue;
    if (seq < next) ++listed.folded;
    else listed.fresh.push_back(seq);
  }
  std::sort(listed.fresh.begin(), listed.fresh.end());
  return listed;
}

}  // namespace

Error LedgerRegression(const RunLayout& layout, const std::string& stream, uint32_t seq, const std::string& what) {
  return Corrupt("LEDGER_REGRESSION: " + layout.Slot(stream, seq) + " " + what + ": the file server lost what it had acknowledged (an `async` export, a disk that lies?). " +
                 "Stop who works on it, then `jobctl fsck " + layout.root() + " --repair`, then resume: what was lost is computed again");
}

// A listing may lack names that are there, so it is not believed: what cannot be opened either is gone.
Status StreamReader::LookForLost() {
  const auto names = fs_.List(layout_.StreamDir(stream_));
  if (!names.ok() && names.code() != ErrorCode::kNotFound) return names.error();
  for (uint32_t seq = 0; seq < state_.next_seq; ++seq) {
    const std::string path = layout_.Slot(stream_, seq);
    if (names.ok() && std::binary_search(names->begin(), names->end(), BaseName(path))) continue;
    if (fs_.Open(path).code() == ErrorCode::kNotFound) return LedgerRegression(layout_, stream_, seq, "was there and is gone");
  }
  return OkStatus();
}

Status StreamReader::Poll(const std::function<Status(const Record&, const Slot&)>& on_record) {
  const std::string dir = layout_.StreamDir(stream_);
  HOLDFAST_ASSIGN(Listed listed, ListSlots(fs_, dir, state_.next_seq));
  if (listed.folded < state_.next_seq) HOLDFAST_TRY(LookForLost());
  std::vector<uint32_t>& fresh = listed.fresh;
  while (!fresh.empty() && state_.next_seq <= fresh.back()) {
    if (!std::binary_search(fresh.begin(), fresh.end(), state_.next_seq)) {
      // A listing is no snapshot: it may miss a name and yet show a later one. A second one that begins now cannot, unless the kernel
      // answers from its cache; so a name counts as missing only if it cannot be opened either.
      const uint32_t last = fresh.back();
      HOLDFAST_ASSIGN(listed, ListSlots(fs_, dir, state_.next_seq));
      if (fresh.empty()) fresh.push_back(last);
    }
    const bool is_listed = std::binary_search(fresh.begin(), fresh.end(), state_.next_seq);
    Digest prev;
    const auto slot = ReadSlot(fs_, layout_, stream_, state_.next_seq, job_, &prev);
    if (slot.code() == ErrorCode::kNotFound && !is_listed) return BadSlot(layout_, stream_, state_.next_seq, "missing, though later slots exist");
    if (slot.code() == ErrorCode::kNotFound) return OkStatus();  // listed, but still hidden by a negative dentry: next time
    if (!slot.ok()) return slot.error();
    HOLDFAST_TRY(Take(*slot, prev, on_record));
  }
  return OkStatus();
}

}  // namespace holdfast
