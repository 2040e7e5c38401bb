// SPDX-License-Identifier: Apache-2.0
//
// LMDB parses slots first in a child process that may crash. Digests are checked before LMDB sees a byte, so that bit rot never gets that
// far; what does is a slot whose writer was mad or malicious, and it must end a child and not the check of everything else.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "ledger/base/file_system.h"
#include "ledger/format/layout.h"

namespace holdfast::fsck {

// Those of `slots` on which the parser dies, with the signal. Slots that fail their digests are not parsed. Forks: call while no other
// thread of this process holds a lock. Where no child can be had, nobody is accused.
std::map<uint32_t, int> DeadlySlots(FileSystem& fs, const RunLayout& layout, const std::string& stream, const std::vector<uint32_t>& slots);

// An entry of an environment as LMDB found it; nothing about it has been checked.
struct RawEntry {
  Bytes key, value;
  uint64_t at = 0;   // of the value in the child's memory: two entries of one place overlap
};

// What LMDB finds in an environment whose digest is wrong, walked in a child that may die of it: at most `limit` entries with ascending
// keys, those that it found before its end. `whole`: it came to the end of the walk by itself.
std::vector<RawEntry> WalkInChild(ByteSpan env, uint32_t limit, bool* whole);

}  // namespace holdfast::fsck
