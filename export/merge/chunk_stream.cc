// SPDX-License-Identifier: Apache-2.0
#include "export/merge/chunk_stream.h"

#include <algorithm>
#include <array>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <new>
#include <thread>

#include "ledger/base/past_cache.h"

namespace holdfast {
namespace {

constexpr uint32_t kWaiting = 2;  // threads beyond the cores, waiting for reads

// Slot i % size of the ring belongs to job i from the moment that both sinks are through with job i - size until they are with job i.
class Ring {
 public:
  Ring(const std::vector<ChunkJob>& jobs, uint64_t first_offset, const ChunkReader& read, size_t size)
      : jobs_(jobs), read_(read), slots_(size) {
    for (Slot& s : slots_) s.room = AlignedBuffer(kPastCacheAlign + kChunkRawMax);
    uint64_t offset = first_offset;
    for (const ChunkJob& j : jobs) offsets_.push_back(std::exchange(offset, offset + j.raw_len));
  }

  // Decodes whatever is next, until there is nothing more to do.
  void Work() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      const size_t i = next_++;
      changed_.wait(lock, [&] { return Ended(i) || i < FirstHeld() + slots_.size(); });
      if (Ended(i)) return;
      lock.unlock();
      Status status = Read(i);
      lock.lock();
      Slot& slot = slots_[i % slots_.size()];
      slot.status = std::move(status);
      slot.holds = i + 1;
      changed_.notify_all();
    }
  }

  // Gives every chunk to the first sink. It alone says how the stream ends, so that what it saw by then does not hang on timing.
  Status Lead(const std::function<Status()>& proceed, const ChunkSink& sink) {
    for (size_t i = 0; i < jobs_.size(); ++i) {
      const Status decoded = Await(i);
      HOLDFAST_TRY(decoded);
      HOLDFAST_TRY(proceed());
      HOLDFAST_TRY(sink(BytesOf(i)));
      Took(0, i);
    }
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return closed_ || FirstHeld() == jobs_.size(); });
    return OkStatus();
  }
  // Gives every chunk to another sink, as long as all goes well.
  void Follow(size_t number, const std::function<void(ByteSpan)>& sink) {
    for (size_t i = 0; i < jobs_.size(); ++i) {
      if (!Await(i).ok()) return;
      sink(BytesOf(i));
      Took(number, i);
    }
  }

  void Close() {
    const std::lock_guard<std::mutex> lock(mutex_);
    closed_ = true;
    changed_.notify_all();
  }

 private:
  struct Slot {
    AlignedBuffer room;
    Status status;
    size_t holds = 0;  // number of the job whose bytes are ready, plus one
  };
  Status Read(size_t i) {
    if (slots_[i % slots_.size()].room.get() == nullptr) return Exhausted("out of memory in the merge");
    try {
      return read_(jobs_[i], BytesOf(i));
    } catch (const std::bad_alloc&) {  // nobody above this thread could catch it
      return Exhausted("out of memory in the merge");
    }
  }
  std::span<uint8_t> BytesOf(size_t i) {
    return {slots_[i % slots_.size()].room.get() + offsets_[i] % kPastCacheAlign, jobs_[i].raw_len};
  }
  bool Ended(size_t i) const { return closed_ || i >= jobs_.size(); }
  size_t FirstHeld() const { return *std::min_element(taken_.begin(), taken_.end()); }
  Status Await(size_t i) {
    const Slot& slot = slots_[i % slots_.size()];
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return closed_ || slot.holds == i + 1; });
    return closed_ ? Stopped("the stream of chunks has ended") : slot.status;
  }
  void Took(size_t sink, size_t i) {
    const std::lock_guard<std::mutex> lock(mutex_);
    taken_[sink] = i + 1;
    changed_.notify_all();
  }

  const std::vector<ChunkJob>& jobs_;
  std::vector<uint64_t> offsets_;
  const ChunkReader& read_;
  std::mutex mutex_;  // guards everything below, and `status`, `holds` of the slots
  std::condition_variable changed_;
  std::vector<Slot> slots_;
  std::array<size_t, 2> taken_{};  // by sink: chunks that it is through with
  size_t next_ = 0;
  bool closed_ = false;
};

struct CloseRing {
  void operator()(Ring* ring) const { ring->Close(); }
};

}  // namespace

Status StreamChunks(const std::vector<ChunkJob>& jobs, uint64_t first_offset, const ChunkReader& read, uint32_t threads,
                    const std::function<Status()>& proceed, const ChunkSink& sink, const std::function<void(ByteSpan)>& follower) {
  const size_t wanted = std::min(threads, kDecodeThreadsMax) + kWaiting;
  const size_t workers = std::min({wanted, size_t{kDecodeThreadsMax}, jobs.size()});
  if (workers == 0) return OkStatus();
  for (const ChunkJob& j : jobs) {
    if (j.raw_len > kChunkRawMax)
      return Corrupt("a chunk claims " + std::to_string(j.raw_len) +
                     " bytes, more than chunks have");
  }
  Ring ring(jobs, first_offset, read, workers + kSpareBuffers);
  std::vector<std::jthread> pool;
  for (size_t t = 0; t < workers; ++t) pool.emplace_back([&ring] { ring.Work(); });
  pool.emplace_back([&] { ring.Follow(1, follower); });
  const std::unique_ptr<Ring, CloseRing> closed(&ring);  // before the pool is joined
  return ring.Lead(proceed, sink);
}

}  // namespace holdfast
