// SPDX-License-Identifier: Apache-2.0
#include "daemon/worker/unit_pool.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

namespace holdfast {
namespace {

constexpr std::chrono::milliseconds kTick{200};

struct Ready {
  uint32_t unit = 0;
  LayerRecord record;
};

// What the pool's threads and the caller share.
class Board {
 public:
  explicit Board(const std::vector<uint32_t>& units) : units_(units) {}

  std::optional<uint32_t> Begin() {
    const std::lock_guard lock(mutex_);
    if (next_ == units_.size() || error_) return std::nullopt;
    ++under_way_;
    return units_[next_++];
  }
  void End(uint32_t unit, Result<LayerRecord> result) {
    {
      const std::lock_guard lock(mutex_);
      --under_way_;
      if (result.ok()) ready_.push_back({unit, std::move(*result)});
      else if (!error_) error_ = result.error();
    }
    changed_.notify_one();
  }
  void Fail(const Error& error) {
    const std::lock_guard lock(mutex_);
    if (!error_) error_ = error;
  }
  // The next that is ready; nothing after a tick without one, or when all is over.
  std::optional<Ready> Take() {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, kTick, [this] { return !ready_.empty() || Over(); });
    if (ready_.empty()) return std::nullopt;
    Ready one = std::move(ready_.front());
    ready_.pop_front();
    return one;
  }
  bool Done() {
    const std::lock_guard lock(mutex_);
    return ready_.empty() && Over();
  }
  Status status() const { return error_ ? Status(*error_) : OkStatus(); }

 private:
  bool Over() const { return under_way_ == 0 && (next_ == units_.size() || error_); }

  const std::vector<uint32_t>& units_;
  std::mutex mutex_;
  std::condition_variable changed_;
  size_t next_ = 0, under_way_ = 0;   // all below: guarded by mutex_
  std::deque<Ready> ready_;
  std::optional<Error> error_;
};

}  // namespace

Status EvictUnits(const std::vector<uint32_t>& units, uint32_t at_once, const UnitWork& work) {
  Board board(units);
  std::vector<std::jthread> threads;
  for (size_t t = 0; t < std::min<size_t>(std::max<uint32_t>(1, at_once), units.size()); ++t) {
    threads.emplace_back([&] {
      while (const std::optional<uint32_t> unit = board.Begin()) board.End(*unit, work.evict(*unit));
    });
  }
  while (!board.Done()) {
    if (const std::optional<Ready> one = board.Take()) {
      if (const Status committed = work.commit(one->unit, one->record); !committed.ok()) board.Fail(committed.error());
    }
    work.tick();
  }
  threads.clear();
  return board.status();
}

uint32_t UnitsAtOnce(uint32_t threads, uint64_t spare, uint64_t eviction) {
  const uint64_t fit = 1 + spare / std::max<uint64_t>(1, eviction);
  return static_cast<uint32_t>(std::clamp<uint64_t>(fit, 1, std::max<uint32_t>(1, threads)));
}

}  // namespace holdfast
