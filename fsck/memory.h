// SPDX-License-Identifier: Apache-2.0
//
// What a deep check has read and found right, so that one that was interrupted goes on where it stopped. Lies in the user's cache, not in the
// directory that is checked, is believed for a day, and only of files that have kept inode, size and time of change. Losing it costs time.
#pragma once

#include <mutex>
#include <set>
#include <string>

#include "ledger/base/file_system.h"
#include "ledger/base/ids.h"

namespace holdfast::fsck {

inline constexpr uint64_t kMemoryAgeNs = 24ull * 3600 * 1'000'000'000;

class DeepMemory {
 public:
  // `dir`/fsck-<id>.json is read if it is there and young. Errors count as an empty memory.
  DeepMemory(FileSystem& fs, const std::string& dir, const Nonce& id, uint64_t now_wall_ns);
  // A file as it lies there now, as part of what is learnt: another one has another stamp. "" where there is none.
  std::string Stamp(const std::string& path) const;
  // From any thread. `bytes`: that need not be read; counted when it is known.
  bool Knows(const std::string& what, uint64_t bytes);
  void Learn(const std::string& what, uint64_t bytes);
  uint64_t bytes_known() const { return bytes_known_; }
  const std::string& file() const { return file_; }
  void Keep();      // writes what was learnt
  void Forget();    // the check came to its end

 private:
  FileSystem& fs_;
  std::string file_;
  uint64_t began_ns_;
  mutable std::mutex mutex_;   // guards what follows
  std::set<std::string> known_;
  uint64_t bytes_known_ = 0, unkept_ = 0;
};

}  // namespace holdfast::fsck
