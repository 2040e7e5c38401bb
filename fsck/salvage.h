// SPDX-License-Identifier: Apache-2.0
//
// What can still be believed of a slot that fails as a whole. Its digest says no more than that some bit of it is wrong; its records
// have checksums of their own. LMDB takes the slot apart in a child process, and this process believes a record only if
//   - the slot's trailer is sound: it says which job, stream, number and epoch the record belongs to;
//   - header and payload of the record hold by their own CRC-32C, and the payload decodes;
//   - the payload itself says what it is about, and that is what its key says. Of an amax vector, which does not say it, the whole slot must
//     have been walked, with no two values in one place;
//   - the packs that it refers to are there.
// Results are believed (P W S E Z M D), and what is left out (O). Who owned, ran or waited (C R L B N A) is not said again: the repair's claim is later than all
// that. Nor is a VOID: what was said again behind it would be struck with it.
#pragma once

#include <string>
#include <vector>

#include "ledger/base/file_system.h"
#include "ledger/format/layout.h"
#include "ledger/records/records.h"

namespace holdfast::fsck {

struct Salvage {
  std::string stream;
  uint32_t seq = 0;
  std::string code;               // of what is wrong with the slot
  uint64_t epoch = 0;             // of the slot, as its trailer says
  std::vector<Record> records;    // in key order; of a sample both parts, one behind the other
  bool complete = false;          // every result that was in the slot is among `records`
  bool may_void = true;           // it may have held a VOID
};

// `file`: the bytes of the slot. Without a sound trailer of this very place nothing is believed. Forks, as trial.h says.
Salvage SalvageSlot(FileSystem& fs, const RunLayout& layout, const std::string& stream, uint32_t seq, const Nonce& job, ByteSpan file);

// The samples that a layer or a seal was made without: of one key, those that differ in it are different statements, and one of them at most
// counts. Empty for all other classes.
std::vector<uint32_t> MadeWithout(const Record& record);

// Statements among records: a sample's two parts are one.
uint64_t Statements(const std::vector<Record>& records);

}  // namespace holdfast::fsck
