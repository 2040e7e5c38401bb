// SPDX-License-Identifier: Apache-2.0
#include "export/verify/parallel.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

namespace holdfast {
namespace {

constexpr std::chrono::milliseconds kTick{200};

struct Shared {
  std::atomic<size_t> next{0};
  std::atomic<bool> failed{false};
  std::mutex mutex;
  std::condition_variable finished;
  size_t running = 0;              // guarded by mutex
  std::map<size_t, Error> errors;  // guarded by mutex
};

void Work(Shared* shared, size_t n, const std::function<Status(size_t)>& fn) {
  for (size_t i = shared->next++; i < n && !shared->failed; i = shared->next++) {
    const Status s = fn(i);
    if (s.ok()) continue;
    shared->failed = true;
    const std::lock_guard lock(shared->mutex);
    shared->errors.emplace(i, s.error());
  }
  const std::lock_guard lock(shared->mutex);
  --shared->running;
  shared->finished.notify_all();
}

}  // namespace

Status ParallelFor(uint32_t threads, size_t n, const std::function<Status(size_t)>& fn, const std::function<void()>& tick) {
  if (n == 0) return OkStatus();
  Shared shared;
  shared.running = std::min<size_t>(std::max(threads, 1u), n);
  std::vector<std::thread> pool;
  for (size_t t = shared.running; t > 0; --t) pool.emplace_back([&] { Work(&shared, n, fn); });
  {
    std::unique_lock lock(shared.mutex);
    while (!shared.finished.wait_for(lock, kTick, [&] { return shared.running == 0; })) {
      if (!tick) continue;
      lock.unlock();
      tick();
      lock.lock();
    }
  }
  for (std::thread& t : pool) t.join();
  if (tick) tick();
  if (!shared.errors.empty()) return shared.errors.begin()->second;
  return OkStatus();
}

}  // namespace holdfast
