// SPDX-License-Identifier: Apache-2.0
#include "export/merge/side_hasher.h"

namespace holdfast {
namespace {

constexpr size_t kWorthAThread = 64u << 10;

}  // namespace

SideHasher::SideHasher() : thread_([this] { Work(); }) {}

SideHasher::~SideHasher() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    closed_ = true;
  }
  changed_.notify_all();
}

void SideHasher::Begin(ByteSpan bytes) {
  if (bytes.size() < kWorthAThread) {
    hasher_.Update(bytes);
    return;
  }
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    todo_ = bytes;
    busy_ = true;
  }
  changed_.notify_all();
}

void SideHasher::Wait() {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [&] { return !busy_; });
}

Digest SideHasher::Finish() {
  Wait();
  return hasher_.Finish();
}

void SideHasher::Work() {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return busy_ || closed_; });
    if (!busy_) return;
    const ByteSpan bytes = todo_;
    lock.unlock();
    hasher_.Update(bytes);
    lock.lock();
    busy_ = false;
    changed_.notify_all();
  }
}

}  // namespace holdfast
