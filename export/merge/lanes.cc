// SPDX-License-Identifier: Apache-2.0
#include "export/merge/lanes.h"

#include <algorithm>
#include <new>
#include <thread>

namespace holdfast {
namespace {

// Threads of a lane are ours alone: what would end the process there is a value here.
Status WithinMemory(const std::function<Status(uint32_t)>& step, uint32_t file) {
  try {
    return step(file);
  } catch (const std::bad_alloc&) {
    return Exhausted("out of memory in the merge");
  }
}

}  // namespace

bool Lanes::failed() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return failed_;
}

void Lanes::Wake() {
  if (lanes_ == 0) return steps_.progress();
  const std::lock_guard<std::mutex> lock(mutex_);
  woken_ = true;
  changed_.notify_all();
}

Status Lanes::RunInOrder() {
  for (uint32_t i = 0; i < files_; ++i) {
    HOLDFAST_TRY(steps_.stream(i));
    HOLDFAST_TRY(steps_.settle(i));
    HOLDFAST_TRY(steps_.commit(i));
  }
  return OkStatus();
}

Status Lanes::Run() {
  if (lanes_ == 0) return RunInOrder();
  alive_ = std::min(lanes_ + 1, files_);  // one settles while all lanes stream
  std::vector<std::jthread> threads;
  for (uint32_t t = alive_; t > 0; --t) threads.emplace_back([this] { Produce(); });
  std::unique_lock<std::mutex> lock(mutex_);
  while (alive_ > 0 || !ready_.empty()) {
    changed_.wait(lock, [&] { return alive_ == 0 || !ready_.empty() || woken_; });
    if (std::exchange(woken_, false)) {
      lock.unlock();
      steps_.progress();
      lock.lock();
    }
    CommitReady(&lock);
  }
  return status_;
}

void Lanes::CommitReady(std::unique_lock<std::mutex>* lock) {
  for (const uint32_t file : std::exchange(ready_, {})) {
    if (commits_end_) return;
    lock->unlock();
    Status status = steps_.commit(file);
    lock->lock();
    if (status.ok()) continue;
    commits_end_ = true;
    if (!std::exchange(failed_, true)) status_ = std::move(status);
  }
}

void Lanes::Produce() {
  std::unique_lock<std::mutex> lock(mutex_);
  Status status;
  while (status.ok()) {
    changed_.wait(lock, [&] { return Ended() || streaming_ < lanes_; });
    if (Ended()) break;
    const uint32_t file = next_++;
    ++streaming_;
    lock.unlock();
    status = WithinMemory(steps_.stream, file);
    lock.lock();
    --streaming_;
    changed_.notify_all();
    if (!status.ok()) break;
    lock.unlock();
    status = WithinMemory(steps_.settle, file);
    lock.lock();
    if (status.ok()) ready_.push_back(file);
    changed_.notify_all();
  }
  if (!status.ok() && !std::exchange(failed_, true)) status_ = std::move(status);
  --alive_;
  changed_.notify_all();
}

}  // namespace holdfast
