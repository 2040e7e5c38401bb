// SPDX-License-Identifier: Apache-2.0
//
// The data edge between two stages: hidden states in chunks of 4 MiB with a digest each, under credit that the consumer grants in
// bytes. Best effort by design: what is dropped here is read from the packs. Both ends live on one thread with their socket.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <optional>

#include "daemon/transport/sockets.h"
#include "ledger/base/clock.h"

namespace holdfast {

class CutSender {
 public:
  CutSender(std::unique_ptr<Socket> dealer, const Clock& clock, const Nonce& job, uint32_t boundary, uint64_t queue_bytes_max);
  // Queues a cut. Dropped at once if the queue is over its bound (the consumer is slow, absent or restarted).
  void Offer(uint32_t sample, uint64_t tokens, std::shared_ptr<const Bytes> hidden);  // shared: the committer holds it too
  void Committed(uint32_t sample);   // hint: the cut is in the ledger now
  void Poll();                       // takes credit, sends what it allows, says hello now and then
  // The consumer lives elsewhere now, or was not heard for long: goes on there with what is queued, under the credit that it grants.
  void Retarget(std::unique_ptr<Socket> dealer);
  uint64_t silent_ms() const;        // since the consumer last said anything (it answers every hello, four a second)
  Socket* socket() { return dealer_.get(); }

 private:
  struct Pending {
    uint32_t sample;
    uint64_t tokens;
    std::shared_ptr<const Bytes> hidden;
    uint32_t next_chunk = 0;
  };
  void TakeCredit();
  void SendHints();
  void StartAfresh();                // for a consumer that has seen nothing
  bool SendChunk(Pending* p);
  std::unique_ptr<Socket> dealer_;
  const Clock& clock_;
  EdgeMessage base_;
  uint64_t queue_bytes_max_, queue_bytes_ = 0;
  std::deque<Pending> queue_;
  std::deque<uint32_t> hints_;       // committed samples to tell of
  Nonce consumer_;
  uint64_t granted_ = 0, sent_ = 0, hello_ns_ = 0, heard_ns_ = 0;
};

class CutReceiver {
 public:
  struct Options {
    Nonce job;
    uint32_t boundary = 0;
    uint64_t hidden_size = 0;       // a cut has tokens * hidden_size * 2 bytes
    uint64_t capacity_bytes = 0;    // credit: bytes that may be under way or held at a time, whatever a peer sends; at least one cut
  };
  CutReceiver(std::unique_ptr<Socket> router, Options options);
  // Hands over whole cuts; `on_cut` answers true if it keeps the bytes (Release gives them back later), false if they are dropped.
  void Poll(const std::function<bool(uint32_t sample, uint64_t tokens, Bytes cut)>& on_cut,
            const std::function<void(uint32_t sample)>& on_committed);
  void Release(uint64_t bytes);     // kept bytes are free again: grants new credit
  Socket* socket() { return router_.get(); }
  uint64_t received() const { return received_; }
  uint64_t dropped_chunks() const { return dropped_; }   // and other messages that were corrupt or for another job or boundary
  uint64_t held_bytes() const { return outstanding_; }   // assembling or kept: never more than the capacity

 private:
  struct Assembly {
    uint32_t sample;
    uint64_t tokens, total_bytes;
    Bytes bytes;                    // chunks so far, in order
  };
  // false: the chunk is dropped, and with it the cut that it belongs to.
  bool OnChunk(const EdgeMessage& m, ByteSpan payload, const std::function<bool(uint32_t, uint64_t, Bytes)>& on_cut);
  void Abandon();
  void Grant();
  std::unique_ptr<Socket> router_;
  Options options_;
  Nonce self_ = Nonce::Random(), producer_;
  Bytes peer_;                      // routing id of the producer
  std::optional<Assembly> assembly_;
  uint64_t outstanding_ = 0;        // bytes assembling or kept
  uint64_t granted_ = 0, charged_ = 0;   // to this producer; bytes that it has sent
  uint64_t received_ = 0, dropped_ = 0;
};

}  // namespace holdfast
