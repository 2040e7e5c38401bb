// SPDX-License-Identifier: Apache-2.0
#include "export/merge/chunk_stream.h"

#include <algorithm>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>

namespace holdfast {
namespace {

constexpr size_t kSpareBuffers = 2;  // one being written, one ready
constexpr uint32_t kWaiting = 2;     // threads beyond the cores, waiting for reads

// Slot i % size of the ring belongs to job i from the moment that job i - size was consumed until job i is.
class Ring {
 public:
  Ring(const std::vector<ChunkJob>& jobs, const ChunkReader& read, size_t size)
      : jobs_(jobs), read_(read), slots_(size) {
    for (Slot& s : slots_) s.bytes = std::make_unique_for_overwrite<uint8_t[]>(kChunkRawMax);
  }

  void Work() {
    for (;;) {
      std::unique_lock<std::mutex> lock(mutex_);
      const size_t i = next_++;
      free_.wait(lock,
                 [&] { return closed_ || i >= jobs_.size() || i < consumed_ + slots_.size(); });
      if (closed_ || i >= jobs_.size()) return;
      lock.unlock();
      const ChunkJob& job = jobs_[i];
      Slot& slot = slots_[i % slots_.size()];
      Status status = read_(job, {slot.bytes.get(), job.raw_len});
      lock.lock();
      slot.status = std::move(status);
      slot.ready = true;
      ready_.notify_one();
    }
  }

  Status Consume(size_t i, const std::function<Status(ByteSpan)>& sink) {
    Slot& slot = slots_[i % slots_.size()];
    {
      std::unique_lock<std::mutex> lock(mutex_);
      ready_.wait(lock, [&] { return slot.ready; });
    }
    HOLDFAST_TRY(slot.status);
    HOLDFAST_TRY(sink({slot.bytes.get(), jobs_[i].raw_len}));
    const std::lock_guard<std::mutex> lock(mutex_);
    slot.ready = false;
    consumed_ = i + 1;
    free_.notify_all();
    return OkStatus();
  }

  void Close() {
    const std::lock_guard<std::mutex> lock(mutex_);
    closed_ = true;
    free_.notify_all();
  }

 private:
  struct Slot {
    std::unique_ptr<uint8_t[]> bytes;
    Status status;
    bool ready = false;
  };
  const std::vector<ChunkJob>& jobs_;
  const ChunkReader& read_;
  std::mutex mutex_;  // guards everything below, and `status`, `ready` of the slots
  std::condition_variable ready_, free_;
  std::vector<Slot> slots_;
  size_t next_ = 0, consumed_ = 0;
  bool closed_ = false;
};

}  // namespace

Status StreamChunks(const std::vector<ChunkJob>& jobs, const ChunkReader& read, uint32_t threads,
                    const std::atomic<bool>* stop, const std::function<Status(ByteSpan)>& sink) {
  const size_t wanted = std::min(threads, kDecodeThreadsMax) + kWaiting;
  const size_t workers = std::min({wanted, size_t{kDecodeThreadsMax}, jobs.size()});
  if (workers == 0) return OkStatus();
  for (const ChunkJob& j : jobs) {
    if (j.raw_len > kChunkRawMax)
      return Corrupt("a chunk claims " + std::to_string(j.raw_len) +
                     " bytes, more than chunks have");
  }
  Ring ring(jobs, read, workers + kSpareBuffers);
  std::vector<std::jthread> pool;
  for (size_t t = 0; t < workers; ++t) pool.emplace_back([&ring] { ring.Work(); });
  Status status;
  for (size_t i = 0; i < jobs.size() && status.ok(); ++i) {
    if (stop != nullptr && stop->load()) {
      status = Stopped("merge was asked to stop");
    } else {
      status = ring.Consume(i, sink);
    }
  }
  ring.Close();
  return status;
}

}  // namespace holdfast
