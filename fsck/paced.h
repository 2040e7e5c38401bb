// SPDX-License-Identifier: Apache-2.0
//
// How a deep check reads: no faster than it was told, and until it is told to stop.
#pragma once

#include <atomic>
#include <mutex>

#include "ledger/base/clock.h"
#include "ledger/base/forwarding_file_system.h"

namespace holdfast::fsck {

// Unless it is armed, like what it forwards to. Armed, each Read of a file waits for its turn (`rate` bytes a second over all threads; 0: at once)
// and fails with kStopped once `stop` is true. Neither clock nor stop may be needed: null.
class PacedFileSystem final : public ForwardingFileSystem {
 public:
  PacedFileSystem(FileSystem& fs, Clock* clock, uint64_t rate, const std::atomic<bool>* stop) : ForwardingFileSystem(fs), clock_(clock), rate_(rate), stop_(stop) {}
  Result<std::unique_ptr<ReadableFile>> Open(const std::string& path) override;
  void Arm() { armed_ = true; }
  void Disarm() { armed_ = false; }
  bool stopped() const { return armed_ && stop_ != nullptr && *stop_; }
  Status Wait(uint64_t bytes);

 private:
  Clock* const clock_;
  const uint64_t rate_;
  const std::atomic<bool>* const stop_;
  std::atomic<bool> armed_{false};
  std::mutex mutex_;       // guards free_at_ns_
  uint64_t free_at_ns_ = 0;
};

}  // namespace holdfast::fsck
