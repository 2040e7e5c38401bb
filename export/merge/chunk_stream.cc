// SPDX-License-Identifier: Apache-2.0
#include "export/merge/chunk_stream.h"

#include <algorithm>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <new>
#include <thread>

#include "ledger/base/past_cache.h"
#include "ledger/base/sha256_pair.h"

namespace holdfast {
namespace {

constexpr uint32_t kWaiting = 2;  // threads beyond the cores, waiting for reads
constexpr size_t kWorthAsking = 64u << 10;

// Slot i % size of the ring belongs to job i from the moment that both sinks are through with job i - size until they are with job i.
class Ring {
 public:
  Ring(const std::vector<ChunkJob>& jobs, uint64_t first_offset, const ChunkReader& read, size_t size, bool pairs)
      : jobs_(jobs), read_(read), pairs_(pairs), slots_(size) {
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
      const std::lock_guard<std::mutex> lock(mutex_);
      led_ = i + 1;
      changed_.notify_all();
    }
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return followed_ == jobs_.size(); });
    return OkStatus();
  }
  // Gives every chunk to the follower, as long as all goes well, and what readers ask for beside it.
  void Follow(const ChunkFollower& follower) {
    std::unique_lock<std::mutex> lock(mutex_);
    while (!closed_ && followed_ < jobs_.size()) {
      changed_.wait(lock, [&] { return closed_ || Holds(followed_) || asked_ != nullptr; });
      const bool next = Holds(followed_);
      if (next && !slots_[followed_ % slots_.size()].status.ok()) return;   // the first sink will say so
      Question* const question = std::exchange(asked_, nullptr);
      lock.unlock();
      const Digest digest = follower(next ? ByteSpan(BytesOf(followed_)) : ByteSpan(), question != nullptr ? question->value : ByteSpan());
      lock.lock();
      if (question != nullptr) question->digest = digest, question->answered = true;
      followed_ += next;
      changed_.notify_all();
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
  // What a reader wants to know of the follower; one at a time.
  struct Question {
    ByteSpan value;
    Digest digest;
    bool answered = false;
  };
  Digest DigestOf(ByteSpan value) {
    if (!pairs_ || value.size() < kWorthAsking) return Sha256(value);
    Question question{value, {}, false};
    std::unique_lock<std::mutex> lock(mutex_);
    if (closed_ || asked_ != nullptr) {
      lock.unlock();
      return Sha256(value);
    }
    asked_ = &question;
    changed_.notify_all();
    changed_.wait(lock, [&] { return question.answered || (closed_ && asked_ == &question); });
    if (question.answered) return question.digest;
    asked_ = nullptr;
    lock.unlock();
    return Sha256(value);
  }
  Status Read(size_t i) {
    if (slots_[i % slots_.size()].room.get() == nullptr) return Exhausted("out of memory in the merge");
    try {
      return read_(jobs_[i], BytesOf(i), [this](ByteSpan value) { return DigestOf(value); });
    } catch (const std::bad_alloc&) {  // nobody above this thread could catch it
      return Exhausted("out of memory in the merge");
    }
  }
  std::span<uint8_t> BytesOf(size_t i) {
    return {slots_[i % slots_.size()].room.get() + offsets_[i] % kPastCacheAlign, jobs_[i].raw_len};
  }
  bool Ended(size_t i) const { return closed_ || i >= jobs_.size(); }
  size_t FirstHeld() const { return std::min(led_, followed_); }
  bool Holds(size_t i) const { return slots_[i % slots_.size()].holds == i + 1; }
  Status Await(size_t i) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return Holds(i); });
    return slots_[i % slots_.size()].status;
  }

  const std::vector<ChunkJob>& jobs_;
  std::vector<uint64_t> offsets_;
  const ChunkReader& read_;
  const bool pairs_;
  std::mutex mutex_;  // guards everything below, and `status`, `holds` of the slots
  std::condition_variable changed_;
  std::vector<Slot> slots_;
  Question* asked_ = nullptr;
  size_t next_ = 0, led_ = 0, followed_ = 0;  // chunks that were begun; that the first sink, the follower is through with
  bool closed_ = false;
};

struct CloseRing {
  void operator()(Ring* ring) const { ring->Close(); }
};

}  // namespace

Status StreamChunks(const std::vector<ChunkJob>& jobs, uint64_t first_offset, const ChunkReader& read, uint32_t threads,
                    const std::function<Status()>& proceed, const ChunkSink& sink, const ChunkFollower& follower) {
  const size_t wanted = std::min(threads, kDecodeThreadsMax) + kWaiting;
  const size_t workers = std::min({wanted, size_t{kDecodeThreadsMax}, jobs.size()});
  if (workers == 0) return OkStatus();
  for (const ChunkJob& j : jobs) {
    if (j.raw_len > kChunkRawMax)
      return Corrupt("a chunk claims " + std::to_string(j.raw_len) +
                     " bytes, more than chunks have");
  }
  Ring ring(jobs, first_offset, read, workers + kSpareBuffers, threads <= kPairThreadsMax && HasFastSha256Pair());
  std::vector<std::jthread> pool;
  for (size_t t = 0; t < workers; ++t) pool.emplace_back([&ring] { ring.Work(); });
  pool.emplace_back([&] { ring.Follow(follower); });
  const std::unique_ptr<Ring, CloseRing> closed(&ring);  // before the pool is joined
  return ring.Lead(proceed, sink);
}

}  // namespace holdfast
