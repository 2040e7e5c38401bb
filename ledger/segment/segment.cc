// SPDX-License-Identifier: Apache-2.0
#include "ledger/segment/segment.h"

#include <algorithm>

#include "ledger/records/value.h"

namespace holdfast {
namespace {

constexpr std::string_view kMagic = "LSEG0001";
constexpr size_t kCrcAt = kTrailerBytes - 4;

template <class Fixed>
void PutRaw(Bytes* out, const Fixed& value) {
  out->insert(out->end(), value.bytes.begin(), value.bytes.end());
}

std::string Count(uint64_t n) { return std::to_string(n); }

}  // namespace

Bytes SegmentTrailer::Encode() const {
  Bytes out(kMagic.begin(), kMagic.end());
  out.reserve(kTrailerBytes);
  PutLe<uint32_t>(&out, kTrailerBytes);
  PutLe<uint32_t>(&out, seq);
  PutLe<uint64_t>(&out, epoch);
  PutLe<uint64_t>(&out, env_len);
  PutLe<uint32_t>(&out, records);
  PutLe<uint32_t>(&out, flags);
  PutRaw(&out, job);
  PutRaw(&out, incarnation);
  PutRaw(&out, commit);
  PutRaw(&out, stream);
  PutRaw(&out, prev);
  PutRaw(&out, env_sha256);
  PutLe<uint32_t>(&out, 0);
  PutLe<uint32_t>(&out, Crc32c(out));
  HOLDFAST_CHECK(out.size() == kTrailerBytes);
  return out;
}

Result<SegmentTrailer> SegmentTrailer::Decode(ByteSpan bytes) {
  if (bytes.size() != kTrailerBytes) return Corrupt("trailer of " + Count(bytes.size()) + " bytes");
  if (!std::equal(kMagic.begin(), kMagic.end(), bytes.begin())) return Corrupt("no trailer at the end of the file: short or torn");
  SegmentTrailer t;
  Cursor in(bytes.subspan(kMagic.size()));
  uint32_t length = 0, reserved = 0, crc = 0;
  in.Le(&length), in.Le(&t.seq), in.Le(&t.epoch), in.Le(&t.env_len), in.Le(&t.records), in.Le(&t.flags);
  in.Raw(t.job.bytes), in.Raw(t.incarnation.bytes), in.Raw(t.commit.bytes);
  in.Raw(t.stream.bytes), in.Raw(t.prev.bytes), in.Raw(t.env_sha256.bytes);
  in.Le(&reserved), in.Le(&crc);
  if (crc != Crc32c(bytes.first(kCrcAt))) return Corrupt("trailer fails its CRC");
  if (length != kTrailerBytes || reserved != 0) return Corrupt("trailer of another version");
  if ((t.flags & ~kFlagTombstone) != 0) return Unsupported("segment with flags " + Count(t.flags) + ": needs a newer holdfast");
  return t;
}

Result<Segment> BuildSegment(SegmentTrailer trailer, const std::vector<Record>& records) {
  std::vector<const Record*> sorted;
  uint64_t bytes = 0;
  for (const Record& r : records) {
    if (r.payload.size() > RawBytesMax(static_cast<uint8_t>(r.key.cls))) {
      return InvalidArgument(std::string("record of class ") + static_cast<char>(r.key.cls) + " has " + Count(r.payload.size()) + " bytes, more than its class may have");
    }
    sorted.push_back(&r);
    bytes += r.payload.size() + kRecordHeaderBytes + kRecordKeyBytes;
  }
  std::sort(sorted.begin(), sorted.end(), [](const Record* a, const Record* b) { return a->key < b->key; });
  HOLDFAST_ASSIGN(EnvBuilder env, EnvBuilder::Create(EnvMapBytes(bytes, sorted.size())));
  for (const Record* r : sorted) HOLDFAST_TRY(env.Append(r->key.Encode(), EncodeRecordValue(*r)));
  Segment s;
  HOLDFAST_ASSIGN(s.env, std::move(env).Seal(/*want_places=*/false));
  trailer.env_len = s.env.bytes().size();
  trailer.records = static_cast<uint32_t>(sorted.size());
  trailer.env_sha256 = Sha256(s.env.bytes());
  s.trailer = trailer.Encode();
  s.digest = SlotDigest(s.trailer);
  return s;
}

Result<SegmentTrailer> CheckSegment(ByteSpan file) {
  if (file.size() < kTrailerBytes) return Corrupt("only " + Count(file.size()) + " bytes, shorter than a trailer");
  HOLDFAST_ASSIGN(const SegmentTrailer t, SegmentTrailer::Decode(file.last(kTrailerBytes)));
  const ByteSpan env = file.first(file.size() - kTrailerBytes);
  if (t.env_len != env.size()) return Corrupt("file of " + Count(file.size()) + " bytes, its trailer wants " + Count(t.env_len + kTrailerBytes));
  if (Sha256(env) != t.env_sha256) return Corrupt("content fails its SHA-256");
  return t;
}

Result<std::vector<Record>> DecodeEnv(ByteSpan env, uint32_t records) {
  std::vector<Record> out;
  HOLDFAST_TRY(ReadEnv(env, [&](ByteSpan key_bytes, ByteSpan value) -> Status {
    HOLDFAST_ASSIGN(const RecordKey key, RecordKey::Decode(key_bytes));
    if (!out.empty() && !(out.back().key < key)) return Corrupt("keys do not ascend");
    if (out.size() >= records) return Corrupt("more records than the trailer says");
    HOLDFAST_ASSIGN(Record r, DecodeRecordValue(key, value));
    out.push_back(std::move(r));
    return OkStatus();
  }));
  if (out.size() != records) return Corrupt(Count(out.size()) + " records, the trailer says " + Count(records));
  return out;
}

}  // namespace holdfast
