// SPDX-License-Identifier: Apache-2.0
//
// One segment = one commit: the bytes of a small LMDB environment, then a trailer. Born sealed: built in memory, published once,
// never written again. `mdb_stat -n FILE` and `mdb_dump -n FILE` open it; the bytes behind the last page do not disturb them.
//
// Trailer, 192 bytes, little-endian, the last bytes of the file:
//   0 magic "LSEG0001" | 8 trailer_len u32 = 192 | 12 seq u32 | 16 epoch u64 | 24 env_len u64 | 32 records u32 | 36 flags u32 |
//   40 job 16 | 56 incarnation 16 | 72 commit 16 | 88 stream = SHA-256(name) 32 | 120 prev 32 | 152 SHA-256(env) 32 |
//   184 reserved u32 = 0 | 188 crc32c of bytes 0..187 u32
// The digest of a slot is the SHA-256 of its trailer, which covers everything; `prev` chains those. docs/ledger-format.md.
#pragma once

#include <string>
#include <vector>

#include "ledger/base/checksum.h"
#include "ledger/base/ids.h"
#include "ledger/records/records.h"
#include "ledger/segment/lmdb_env.h"

namespace holdfast {

inline constexpr size_t kTrailerBytes = 192;
inline constexpr uint64_t kSegmentBytesMax = 1ull << 30;
inline constexpr uint32_t kFlagTombstone = 1;  // stands in the place of a slot that was lost; see log/tombstone.h

struct SegmentTrailer {
  uint32_t seq = 0;
  uint64_t epoch = 0;
  uint64_t env_len = 0;
  uint32_t records = 0;
  uint32_t flags = 0;
  Nonce job, incarnation, commit;
  Digest stream;       // StreamId(name)
  Digest prev;         // digest of the slot before; zero for slot 0
  Digest env_sha256;

  Bytes Encode() const;
  // kCorrupt: length, magic, CRC, reserved bits. kUnsupported: flags of a newer format.
  static Result<SegmentTrailer> Decode(ByteSpan bytes);
};

inline Digest StreamId(const std::string& stream) { return Sha256(AsBytes(stream)); }
inline Digest SlotDigest(ByteSpan trailer) { return Sha256(trailer); }

struct Segment {           // ready to be published: env.bytes() then trailer
  EnvImage env;
  Bytes trailer;
  Digest digest;
  std::vector<ByteSpan> parts() const { return {env.bytes(), trailer}; }
};

// Builds a segment; env_len, records and env_sha256 of `trailer` are filled in. Sorts by key; equal keys are kInvalidArgument.
// Equal input gives equal bytes. kResourceExhausted: no memory for it.
Result<Segment> BuildSegment(SegmentTrailer trailer, const std::vector<Record>& records);

// Checks size, trailer, CRC and the env's SHA-256: no byte has been parsed by LMDB when this returns OK.
Result<SegmentTrailer> CheckSegment(ByteSpan file);

// Records of a checked environment in key order. kCorrupt: bounds of the meta pages, count, order, a record's own checks.
// LMDB parses here: only after CheckSegment, or in a child process that may die.
Result<std::vector<Record>> DecodeEnv(ByteSpan env, uint32_t records);

}  // namespace holdfast
