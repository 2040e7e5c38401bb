// SPDX-License-Identifier: Apache-2.0
#include "ledger/records/value.h"

namespace holdfast {
namespace {

constexpr uint16_t kMagic = 0x4648;  // "HF"
constexpr uint8_t kHeaderVersion = 1;
constexpr size_t kHeaderCrcAt = kRecordHeaderBytes - 4;

}  // namespace

uint64_t RawBytesMax(uint8_t cls) {
  switch (cls) {
    case 'J': case 'P': case 'S': case 'E': case 'W': case 'X': case 'K': return kBigRecordBytesMax;
    case kChunkClass: return 4u << 20;
    default: return kControlBytesMax;
  }
}

Bytes EncodeValue(ValueHeader header, ByteSpan raw) {
  const Encoded encoded = Encode(header.codec, raw);
  const ByteSpan payload = encoded.codec == Codec::kStored ? raw : ByteSpan(encoded.bytes);
  Bytes out;
  out.reserve(kRecordHeaderBytes + payload.size());
  PutLe<uint16_t>(&out, kMagic);
  out.push_back(kHeaderVersion);
  out.push_back(header.cls);
  out.push_back(static_cast<uint8_t>(encoded.codec));
  out.push_back(0);
  PutLe<uint16_t>(&out, header.schema);
  PutLe<uint64_t>(&out, header.epoch);
  PutLe<uint64_t>(&out, raw.size());
  PutLe<uint64_t>(&out, payload.size());
  PutLe<uint64_t>(&out, header.wall_ns);
  PutLe<uint32_t>(&out, Crc32c(payload));
  PutLe<uint32_t>(&out, Crc32c(out));
  out.insert(out.end(), payload.begin(), payload.end());
  return out;
}

Result<ValueHeader> DecodeValueHeader(ByteSpan value) {
  if (value.size() < kRecordHeaderBytes) return Corrupt("value of " + std::to_string(value.size()) + " bytes, shorter than its header");
  ValueHeader h;
  Cursor in(value);
  uint16_t magic = 0;
  uint8_t version = 0, codec = 0, flags = 0;
  uint32_t header_crc = 0;
  in.Le(&magic), in.Le(&version), in.Le(&h.cls), in.Le(&codec), in.Le(&flags), in.Le(&h.schema), in.Le(&h.epoch);
  in.Le(&h.raw_len), in.Le(&h.enc_len), in.Le(&h.wall_ns), in.Le(&h.payload_crc), in.Le(&header_crc);
  if (magic != kMagic) return Corrupt("value without the magic of a record");
  if (header_crc != Crc32c(value.first(kHeaderCrcAt))) return Corrupt("record header fails its CRC");
  if (version != kHeaderVersion || flags != 0) return Corrupt("record header of version " + std::to_string(version) + ", flags " + std::to_string(flags));
  h.codec = static_cast<Codec>(codec);
  if (h.enc_len != value.size() - kRecordHeaderBytes) return Corrupt("record of another length than its header says");
  if (h.raw_len > RawBytesMax(h.cls)) return Corrupt("record claims " + std::to_string(h.raw_len) + " bytes, more than its class may have");
  const ByteSpan payload = ValuePayload(value);
  if (h.payload_crc != Crc32c(payload)) return Corrupt("record payload fails its CRC");
  HOLDFAST_TRY(CheckEncoded(h.codec, payload, h.raw_len));
  return h;
}

Bytes EncodeRecordValue(const Record& r) {
  ValueHeader h;
  h.cls = static_cast<uint8_t>(r.key.cls);
  h.codec = r.codec;
  h.schema = r.schema;
  h.epoch = r.epoch;
  h.wall_ns = r.wall_ns;
  return EncodeValue(h, r.payload);
}

Result<Record> DecodeRecordValue(const RecordKey& key, ByteSpan value) {
  HOLDFAST_ASSIGN(const ValueHeader h, DecodeValueHeader(value));
  if (h.cls != static_cast<uint8_t>(key.cls)) return Corrupt("record of another class than its key");
  Record r;
  r.key = key;
  r.schema = h.schema;
  r.epoch = h.epoch;
  r.wall_ns = h.wall_ns;
  r.codec = h.codec;
  r.payload.resize(h.raw_len);
  HOLDFAST_TRY(Decode(h.codec, ValuePayload(value), r.payload));
  return r;
}

Bytes RecordKey::Encode() const {
  Bytes out;
  out.reserve(kRecordKeyBytes);
  out.push_back(static_cast<uint8_t>(cls));
  PutBe<uint16_t>(&out, stage);
  PutBe<uint32_t>(&out, a);
  PutBe<uint32_t>(&out, b);
  PutBe<uint32_t>(&out, part);
  return out;
}

Result<RecordKey> RecordKey::Decode(ByteSpan bytes) {
  if (bytes.size() != kRecordKeyBytes) return Corrupt("record key of " + std::to_string(bytes.size()) + " bytes");
  RecordKey k;
  Cursor in(bytes);
  uint8_t cls = 0;
  in.Be(&cls), in.Be(&k.stage), in.Be(&k.a), in.Be(&k.b), in.Be(&k.part);
  k.cls = static_cast<RecordClass>(cls);
  return k;
}

}  // namespace holdfast
