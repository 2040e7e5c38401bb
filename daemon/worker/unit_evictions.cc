// SPDX-License-Identifier: Apache-2.0
#include "daemon/worker/unit_evictions.h"

#include <new>
#include <optional>
#include <string>
#include <utility>

namespace holdfast {

UnitEvictions::UnitEvictions(uint32_t at_once, std::function<void()> wake) : wake_(std::move(wake)), pool_(at_once) {}

std::shared_future<void> UnitEvictions::Begin(const std::vector<uint32_t>& units, Evict evict) {
  const auto group = std::make_shared<Group>();
  group->evict = std::move(evict);
  group->left = units.size();
  std::shared_future<void> done = group->done.get_future().share();
  {
    const std::lock_guard lock(mutex_);
    begun_.insert(units.begin(), units.end());
    running_ += units.size();
  }
  for (const uint32_t unit : units) pool_.Submit([this, group, unit] { One(*group, unit); });
  return done;
}

void UnitEvictions::One(Group& group, uint32_t unit) {
  std::optional<Result<LayerRecord>> result;
  try {
    if (status().ok()) result = group.evict(unit);
  } catch (const std::bad_alloc&) {
    result = Exhausted("out of memory while evicting unit " + std::to_string(unit));
  }
  bool last = false;
  {
    const std::lock_guard lock(mutex_);
    last = --group.left == 0;
    if (result && result->ok()) evicted_.push_back(std::move(**result));
    else if (result && status_.ok()) status_ = result->error();
  }
  if (last) {
    group.evict = nullptr;
    group.done.set_value();
  }
  {
    const std::lock_guard lock(mutex_);
    --running_;
  }
  wake_();
}

bool UnitEvictions::Begun(uint32_t unit) const {
  const std::lock_guard lock(mutex_);
  return begun_.contains(unit);
}
bool UnitEvictions::idle() const {
  const std::lock_guard lock(mutex_);
  return running_ == 0;
}
Status UnitEvictions::status() const {
  const std::lock_guard lock(mutex_);
  return status_;
}
std::vector<LayerRecord> UnitEvictions::TakeEvicted() {
  const std::lock_guard lock(mutex_);
  return std::exchange(evicted_, {});
}
void UnitEvictions::Forget() {
  const std::lock_guard lock(mutex_);
  begun_.clear();
}

}  // namespace holdfast
