// SPDX-License-Identifier: Apache-2.0
//
// How payloads lie at rest. zstd frames carry content size and checksum. A chunk that a codec does not shrink by 2 % is stored.
#pragma once

#include <cstdint>

#include "ledger/base/coding.h"
#include "ledger/base/result.h"

namespace holdfast {

enum class Codec : uint8_t {
  kStored = 0,
  kZstd = 1,         // level 1
  kBf16Planes = 2,   // exponent plane (8 bits of each value) | sign+mantissa plane, each half, then zstd level 1
  kF32Planes = 3,    // four byte planes, then zstd level 1
};
// (Codec 4, a bundle of NVFP4 codes and scales, is reserved: codes and scales are separate tensors here.)

struct Encoded {
  Codec codec = Codec::kStored;  // kStored when `wanted` did not help
  Bytes bytes;                   // empty when codec == kStored: use the input
};

// Encodes `raw` as `wanted`, or reports kStored. Deterministic for one zstd version.
Encoded Encode(Codec wanted, ByteSpan raw);

// Decodes exactly `raw_len` bytes into `out` (out.size() == raw_len). Anything else is kCorrupt: wrong content size,
// trailing bytes, checksum, odd length for planes. Never allocates more than out.size() besides.
Status Decode(Codec codec, ByteSpan encoded, std::span<uint8_t> out);

// The part of Decode that needs no room for the result: whether `encoded` claims to be `raw_len` bytes of `codec`. For callers
// that must not allocate on the word of a header alone.
Status CheckEncoded(Codec codec, ByteSpan encoded, uint64_t raw_len);

}  // namespace holdfast
