// SPDX-License-Identifier: Apache-2.0
//
// Streams whose slots are sound and whose records say anything: what a fold meets behind checksums, from a newer or a hostile writer.
// Input: items {stream u8, flags u8, class u8, a u8, b u8, part u8, length u16, payload}. Flag 1: the item begins a new slot of its
// stream; flag 2: of a stale epoch.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "ledger/base/sim_file_system.h"
#include "ledger/format/layout.h"
#include "ledger/segment/segment.h"
#include "tests/fuzz/fuzz.h"

namespace holdfast::fuzz {

inline constexpr size_t kItemsMax = 24;
inline constexpr uint64_t kEpoch = 2;

inline Nonce FixedNonce(uint8_t fill) {
  Nonce n;
  n.bytes.fill(fill);
  return n;
}

// Writes slots behind everybody's back, each stream begun by a claim.
class StreamForger {
 public:
  StreamForger(FileSystem& fs, RunLayout layout, Nonce job) : fs_(fs), layout_(std::move(layout)), job_(job) {}

  void Add(const std::string& stream, Record record, bool new_slot) {
    Tail& t = tails_[stream];
    if (t.seq == 0) Claimed(stream, &t);
    if (new_slot) Flush(stream, &t);
    t.pending[record.key] = std::move(record);  // of equal keys the latter: a segment cannot hold both
  }
  void FlushAll() {
    for (auto& [stream, t] : tails_) Flush(stream, &t);
  }

 private:
  struct Tail {
    uint32_t seq = 0;
    Digest prev;
    std::map<RecordKey, Record> pending;
  };
  void Claimed(const std::string& stream, Tail* t) {
    Claim claim;
    claim.epoch = kEpoch;
    claim.incarnation = FixedNonce(3);
    claim.node = "n1";
    claim.reason = "start";
    claim.numerics = "cpu/test";
    const Record r = MakeControl({RecordClass::kClaim, 0, static_cast<uint32_t>(kEpoch), 0, 0}, claim.ToJson());
    t->pending[r.key] = r;
    t->pending[r.key].epoch = kEpoch;
    Flush(stream, t);
  }
  void Flush(const std::string& stream, Tail* t) {
    if (t->pending.empty()) return;
    SegmentTrailer trailer;
    trailer.seq = t->seq;
    trailer.epoch = kEpoch;
    trailer.job = job_;
    trailer.incarnation = FixedNonce(3);
    trailer.commit = FixedNonce(static_cast<uint8_t>(t->seq));
    trailer.stream = StreamId(stream);
    trailer.prev = t->prev;
    std::vector<Record> records;
    for (auto& [key, record] : t->pending) records.push_back(std::move(record));
    t->pending.clear();
    const auto segment = BuildSegment(trailer, records);
    HOLDFAST_CHECK(segment.ok());
    Bytes file;
    for (const ByteSpan part : segment->parts()) file.insert(file.end(), part.begin(), part.end());
    PutFile(fs_, layout_.Slot(stream, t->seq), file);
    t->prev = segment->digest;
    ++t->seq;
  }

  FileSystem& fs_;
  RunLayout layout_;
  Nonce job_;
  std::map<std::string, Tail> tails_;
};

// Forges what the input says into `streams`.
inline void Forge(Cursor* in, const std::vector<std::string>& streams, StreamForger* forger) {
  for (size_t i = 0; i < kItemsMax && !in->rest().empty(); ++i) {
    const std::string& stream = streams[Take<uint8_t>(in) % streams.size()];
    const auto flags = Take<uint8_t>(in);
    Record r;
    r.key.cls = static_cast<RecordClass>(Take<uint8_t>(in));
    StageId stage;
    if (RunLayout::ParseStageStream(stream, &stage)) r.key.stage = stage.value;
    r.key.a = Take<uint8_t>(in), r.key.b = Take<uint8_t>(in), r.key.part = Take<uint8_t>(in);
    r.epoch = (flags & 2) != 0 ? kEpoch - 1 : kEpoch;
    r.wall_ns = 1700000000000000000 + i;
    r.payload = TakeBytes(in, Take<uint16_t>(in));
    if (!RecordKey::Decode(r.key.Encode()).ok()) continue;
    forger->Add(stream, std::move(r), (flags & 1) != 0);
  }
  forger->FlushAll();
}

}  // namespace holdfast::fuzz
