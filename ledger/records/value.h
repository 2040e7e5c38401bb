// SPDX-License-Identifier: Apache-2.0
//
// Value bytes at rest, shared by records in segments and chunks in packs: a 48-byte little-endian header + encoded payload.
//   magic u16 "HF" | hdr_ver u8 = 1 | class u8 | codec u8 | flags u8 = 0 | schema u16 | epoch u64 | raw_len u64 | enc_len u64 |
//   wall_ns u64 | crc32c(payload as stored) u32 | crc32c(the 44 bytes before) u32
#pragma once

#include "ledger/codec/codec.h"
#include "ledger/records/records.h"

namespace holdfast {

inline constexpr uint8_t kChunkClass = 'c';  // a chunk of a pack; epoch and wall_ns are 0, so that equal content gives equal bytes

struct ValueHeader {
  uint8_t cls = 0;
  Codec codec = Codec::kStored;
  uint16_t schema = 1;
  uint64_t epoch = 0;
  uint64_t raw_len = 0;
  uint64_t enc_len = 0;
  uint64_t wall_ns = 0;
  uint32_t payload_crc = 0;
};

// Header + payload, encoded as `header.codec` where that helps; codec, lengths and checksums are filled in.
Bytes EncodeValue(ValueHeader header, ByteSpan raw);

// Checks everything about the header, the payload's length and its CRC. What remains is Decode(codec, payload, raw_len bytes).
Result<ValueHeader> DecodeValueHeader(ByteSpan value);
inline ByteSpan ValuePayload(ByteSpan value) { return value.subspan(kRecordHeaderBytes); }

// No record of ours is larger; a header that claims more is damage (or a decompression bomb).
inline constexpr uint64_t kControlBytesMax = 16u << 20;   // claims, phases, seals, merge steps ...
inline constexpr uint64_t kBigRecordBytesMax = 256u << 20;  // job, plan, sample, layer, source digests
uint64_t RawBytesMax(uint8_t cls);

}  // namespace holdfast
