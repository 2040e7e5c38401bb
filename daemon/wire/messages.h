// SPDX-License-Identifier: Apache-2.0
//
// What processes of one run say to each other. Pure encoding, no sockets. Every message begins with the wire version; an unknown
// version or type is an error that the receiver counts and drops. Nothing here is authority: the ledger is (docs/wire-protocol.md).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "ledger/base/checksum.h"
#include "ledger/base/ids.h"
#include "ledger/base/json.h"
#include "ledger/base/result.h"

namespace holdfast {

inline constexpr uint32_t kWireVersion = 2;
inline constexpr size_t kControlBytesMax = 1u << 20;
inline constexpr size_t kCutChunkBytes = 4u << 20;     // payload of one data message
inline constexpr size_t kDataBytesMax = kCutChunkBytes + 4096;   // of one frame on the wire, where CURVE adds a few bytes

// Worker -> supervisor. Canonical JSON on the control socket.
struct WorkerReport {
  enum class Kind : uint8_t { kProgress, kFailed, kFinished };
  Kind kind = Kind::kProgress;
  uint16_t stage = 0;
  uint32_t attempt = 0;
  std::string phase;                 // "start", "load", "calibrate", "evict", "waiting" (for a sample to be left out), "seal", "merge", "done" (merged: only records are missing)
  uint64_t samples_done = 0, samples_total = 0;
  uint64_t commits = 0;              // results made durable since this process began: samples (through a group of layers), units
  uint64_t passed = 0;               // layers that samples have passed, in all lives so far, as the ledger said when it was looked at last
  uint64_t tries = 0;                // of samples alone, in all lives so far, where that tells (TriesThatCount)
  uint64_t units_done = 0, units_total = 0;
  uint64_t bytes_read = 0, bytes_written = 0;  // source weights read; packs and slots published; merge: of the output
  uint64_t bytes_total = 0;                    // merge: to be written in all
  uint64_t rss_bytes = 0;
  uint64_t cuts_received = 0, cuts_from_packs = 0, chunks_dropped = 0;
  std::string error_code, error;     // kFailed
  std::string Encode() const;
  static Result<WorkerReport> Decode(std::string_view text);
};

// Supervisor -> worker, one frame: take no new samples for now; go on.
inline constexpr char kPauseWord[] = "pause", kContinueWord[] = "continue";

// Producer of a cut -> its consumer, on the data edge. A binary header frame, then a payload frame for kChunk.
struct EdgeMessage {
  enum class Kind : uint8_t { kHello = 1, kChunk = 2, kCommitted = 3 };
  Kind kind = Kind::kHello;
  Nonce job, producer;               // producer: its incarnation
  uint32_t boundary = 0;             // layer at which the cut is taken
  uint32_t sample = 0;
  uint32_t chunk = 0, chunks = 0;    // of this cut
  uint64_t tokens = 0, total_bytes = 0;
  Digest digest;                     // SHA-256 of this chunk's payload
  uint64_t sent_bytes = 0;           // payload that this producer has sent to this consumer so far, this message's included
  Bytes Encode() const;
  static Result<EdgeMessage> Decode(ByteSpan bytes);
};

// Consumer -> producer: how many payload bytes this consumer has granted since it was born.
struct EdgeCredit {
  Nonce consumer;
  uint64_t granted_bytes = 0;
  Bytes Encode() const;
  static Result<EdgeCredit> Decode(ByteSpan bytes);
};

}  // namespace holdfast
