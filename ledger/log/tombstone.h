// SPDX-License-Identifier: Apache-2.0
//
// Tombstones: what repair puts in the place of a slot that is missing or unreadable, so that the stream can be read again and its
// number stays taken. A tombstone holds one V record (target "slot", its own seq) and carries on the chain: its successor's `prev`
// is stored in part 1, so that ReadSlot and ApplySlot pass it like any slot. The lost slot's work is simply not there, hence open.
// Only fsck does this, and only under a claim of its own, so that the former owner is fenced first.
#pragma once

#include <string>

#include "ledger/base/clock.h"
#include "ledger/base/file_system.h"
#include "ledger/format/layout.h"
#include "ledger/records/records.h"

namespace holdfast {

struct Tombstone {
  Nonce job, incarnation;
  std::string stream;
  uint32_t seq = 0;
  uint64_t epoch = 0;      // in force at the lost slot; if the slot itself was the claim (its successor has a newer epoch and is no
                           // claim), the successor's epoch
  Digest prev;             // digest of the slot before it, zero for slot 0
  Digest carries;          // `prev` of the slot behind it; zero if it was the last: then the chain goes on from the tombstone
  std::string reason, evidence;
};

// Missing slot: published like any other (exclusive). `replace`: renamed over a damaged file, of which a copy must be safe already.
Status PlaceTombstone(FileSystem& fs, const RunLayout& layout, const Clock& clock, const Tombstone& tombstone, bool replace);

}  // namespace holdfast
