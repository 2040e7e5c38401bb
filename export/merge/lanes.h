// SPDX-License-Identifier: Apache-2.0
//
// Several files in the making at a time. Each goes through three steps: it is streamed (the heavy part, so many at a time), settled (waits
// for the disk, while the next one is streamed) and committed (on the calling thread, which alone touches the ledger).
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <vector>

#include "ledger/base/result.h"

namespace holdfast {

class Lanes {
 public:
  struct Steps {
    std::function<Status(uint32_t file)> stream, settle, commit;
    std::function<void()> progress;  // on the calling thread, some time after Wake
  };
  // `lanes`: files streamed at a time; 0: one after another, everything on the calling thread, in one order always.
  Lanes(uint32_t lanes, uint32_t files, Steps steps) : lanes_(lanes), files_(files), steps_(std::move(steps)) {}

  // Files 0 to `files` - 1, begun in that order. The first error ends it: no other file is begun, streams are to give up (`failed`), what
  // is past its stream is settled and committed still, unless it was a commit that failed. Without memory: kResourceExhausted.
  Status Run();
  bool failed() const;
  void Wake();  // from any step

 private:
  Status RunInOrder();
  void Produce();  // files, until there are no more
  void CommitReady(std::unique_lock<std::mutex>* lock);
  bool Ended() const { return failed_ || next_ == files_; }

  const uint32_t lanes_, files_;
  const Steps steps_;
  mutable std::mutex mutex_;  // guards everything below
  std::condition_variable changed_;
  std::vector<uint32_t> ready_;  // settled, to be committed
  uint32_t next_ = 0, streaming_ = 0, alive_ = 0;
  bool failed_ = false, commits_end_ = false, woken_ = false;
  Status status_;
};

}  // namespace holdfast
