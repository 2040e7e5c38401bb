// SPDX-License-Identifier: Apache-2.0
//
// The one way a durable name comes into being in this program: steps P1-P5 of ledger.md 1.4.
//   P0 nothing but memory   P1 create tmp/<incarnation>/<nonce>   P2 write   P3 fsync, close   P4 link(2) to the final name = the commit point
//   P5 fsync of the directory             P7 unlink of the temporary name, lazily
// Any error before P4 abandons the file; fsync is never retried. Fail-points publish.P0 .. publish.P7, with `subject`.
#pragma once

#include <string>
#include <vector>

#include "ledger/base/file_system.h"
#include "ledger/base/ids.h"

namespace holdfast {

struct PublishOptions {
  std::string tmp_dir;                       // exists
  std::string subject;                       // stream or pack, for fail-points and messages
  enum class Cache : uint8_t { kKeep, kDrop } cache = Cache::kKeep;  // kDrop: POSIX_FADV_DONTNEED after the fsync
  bool replace = false;                      // P4 renames over the name instead (tombstones, damaged packs); then P7 has nothing to do
  bool skip_sync_for_test = false;           // leaves P3's fsync out, so that a test can prove that it would notice
  bool* reached_link = nullptr;              // set to true when P4 was tried: before that, nothing can have been committed
};

// Publishes the concatenation of `parts` (mode 0444) as `path`. OK: durable under that name.
// kAlreadyExists: the name was taken by something else; kTransient / others: unknown, the caller compares what lies there.
Status Publish(FileSystem& fs, const std::string& path, const std::vector<ByteSpan>& parts, const PublishOptions& options);

}  // namespace holdfast
