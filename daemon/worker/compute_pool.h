// SPDX-License-Identifier: Apache-2.0
//
// Threads that compute samples, one sample a thread with single-threaded kernels: what a sample yields cannot depend on the others.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "ledger/base/result.h"

namespace holdfast {

class ComputePool {
 public:
  explicit ComputePool(uint32_t threads);
  ~ComputePool();   // lets running tasks end, drops queued ones
  void Submit(std::function<void()> task);

 private:
  void Loop();
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> tasks_;   // guarded by mutex_
  bool stop_ = false;                         // guarded by mutex_
  std::vector<std::thread> threads_;
};

}  // namespace holdfast
