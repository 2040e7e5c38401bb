// SPDX-License-Identifier: Apache-2.0
//
// Evicts the units of groups that all samples have passed, beside the group that is computed: so many at a time, of all groups together, those of older
// groups first. After a first failure nothing more is evicted. Its own thread safe, but for construction and destruction, which waits for units that
// are under way and leaves the others.
#pragma once

#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <set>
#include <vector>

#include "daemon/worker/compute_pool.h"
#include "ledger/records/records.h"

namespace holdfast {

class UnitEvictions {
 public:
  using Evict = std::function<Result<LayerRecord>(uint32_t unit)>;
  // `wake` is called on threads of this object whenever there is something to take.
  UnitEvictions(uint32_t at_once, std::function<void()> wake);

  // Ready when all of them are done and `evict`, with whatever it keeps alive, is gone.
  std::shared_future<void> Begin(const std::vector<uint32_t>& units, Evict evict);
  bool Begun(uint32_t unit) const;         // since the last Forget
  bool idle() const;
  Status status() const;                   // the first failure
  std::vector<LayerRecord> TakeEvicted();  // since the last call
  void Forget();                           // what was begun; only when idle

 private:
  struct Group {
    Evict evict;
    size_t left = 0;                       // guarded by mutex_
    std::promise<void> done;
  };
  void One(Group& group, uint32_t unit);

  const std::function<void()> wake_;
  mutable std::mutex mutex_;
  std::set<uint32_t> begun_;               // guarded by mutex_, as is all that follows
  std::vector<LayerRecord> evicted_;
  Status status_;
  size_t running_ = 0;
  ComputePool pool_;                       // last: its threads use the rest
};

}  // namespace holdfast
