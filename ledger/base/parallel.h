// SPDX-License-Identifier: Apache-2.0
//
// A loop whose iterations are independent, on several threads. The threads live for one loop only: for work of a millisecond and
// more per call.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "ledger/base/result.h"

namespace holdfast {

// Calls body(i) for i in [0, count) on up to `threads` threads, the calling one included, indices handed out in ascending order.
// After an error no further index is handed out; the error of the lowest failing index is returned, whatever the timing.
template <class Body>  // Status(size_t)
Status ParallelFor(uint32_t threads, size_t count, const Body& body) {
  std::atomic<size_t> next{0};
  std::atomic<bool> failed{false};
  std::mutex mutex;  // guards the two below
  size_t first_failure = count;
  Status result;
  const auto work = [&] {
    for (size_t i; !failed.load(std::memory_order_relaxed) && (i = next.fetch_add(1)) < count;) {
      Status s = body(i);
      if (s.ok()) continue;
      failed.store(true, std::memory_order_relaxed);
      const std::lock_guard<std::mutex> lock(mutex);
      if (i < first_failure) {
        first_failure = i;
        result = std::move(s);
      }
    }
  };
  {
    std::vector<std::jthread> helpers;
    for (size_t t = 1; t < threads && t < count; ++t) helpers.emplace_back(work);
    work();
  }
  return result;
}

}  // namespace holdfast
