// SPDX-License-Identifier: Apache-2.0
//
// SHA-256 on a thread of its own, so that a chunk is hashed while it is being written: hashing and write(2) cost about the same.
#pragma once

#include <condition_variable>
#include <mutex>
#include <thread>

#include "ledger/base/checksum.h"

namespace holdfast {

class SideHasher {
 public:
  SideHasher();
  ~SideHasher();
  // Begins to hash `bytes`, which must stay as they are until the next Wait. Small pieces are hashed at once.
  void Begin(ByteSpan bytes);
  void Wait();
  Digest Finish();  // once

 private:
  void Work();
  Sha256Hasher hasher_;
  std::mutex mutex_;  // guards the three below
  std::condition_variable changed_;
  ByteSpan todo_;
  bool busy_ = false, closed_ = false;
  std::jthread thread_;
};

}  // namespace holdfast
