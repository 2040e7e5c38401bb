// SPDX-License-Identifier: Apache-2.0
#include "daemon/transport/cut_edge.h"

#include <algorithm>
#include <cstring>

namespace holdfast {
namespace {

constexpr uint64_t kHelloNs = 250'000'000;

uint32_t ChunkCount(uint64_t bytes) { return static_cast<uint32_t>((bytes + kCutChunkBytes - 1) / kCutChunkBytes); }

}  // namespace

CutSender::CutSender(std::unique_ptr<Socket> dealer, const Clock& clock, const Nonce& job, uint32_t boundary, uint64_t queue_bytes_max)
    : dealer_(std::move(dealer)), clock_(clock), queue_bytes_max_(queue_bytes_max) {
  base_.job = job;
  base_.producer = Nonce::Random();
  base_.boundary = boundary;
}

void CutSender::Retarget(std::unique_ptr<Socket> dealer) {
  dealer_ = std::move(dealer);
  base_.producer = Nonce::Random();   // the new consumer must not take this for the edge that it never saw
  consumer_ = Nonce{};
  sent_ = granted_ = hello_ns_ = 0;
  if (!queue_.empty()) queue_.front().next_chunk = 0;
}

void CutSender::Offer(uint32_t sample, uint64_t tokens, std::shared_ptr<const Bytes> hidden) {
  if (hidden->empty() || queue_bytes_ + hidden->size() > queue_bytes_max_) return;
  queue_bytes_ += hidden->size();
  queue_.push_back({sample, tokens, std::move(hidden)});
}

void CutSender::Committed(uint32_t sample) {
  EdgeMessage m = base_;
  m.kind = EdgeMessage::Kind::kCommitted;
  m.sample = sample;
  const Bytes header = m.Encode();
  dealer_->Send({header});
}

void CutSender::Poll() {
  while (auto frames = dealer_->Receive()) {
    if (frames->size() != 1) continue;
    const auto credit = EdgeCredit::Decode((*frames)[0]);
    if (!credit.ok()) continue;
    if (credit->consumer != consumer_) {  // a new life of the consumer: it has seen nothing of ours
      consumer_ = credit->consumer;
      sent_ = granted_ = 0;
      if (!queue_.empty()) queue_.front().next_chunk = 0;
    }
    granted_ = std::max(granted_, credit->granted_bytes);
  }
  while (!queue_.empty() && SendChunk(&queue_.front())) {
    if (queue_.front().next_chunk < ChunkCount(queue_.front().hidden->size())) continue;
    queue_bytes_ -= queue_.front().hidden->size();
    queue_.pop_front();
  }
  if (clock_.MonotonicNs() - hello_ns_ >= kHelloNs) {
    hello_ns_ = clock_.MonotonicNs();
    const Bytes header = base_.Encode();
    dealer_->Send({header});
  }
}

bool CutSender::SendChunk(Pending* p) {
  const uint64_t begin = static_cast<uint64_t>(p->next_chunk) * kCutChunkBytes;
  const uint64_t len = std::min<uint64_t>(kCutChunkBytes, p->hidden->size() - begin);
  if (sent_ + len > granted_) return false;
  const ByteSpan payload = ByteSpan(*p->hidden).subspan(begin, len);
  EdgeMessage m = base_;
  m.kind = EdgeMessage::Kind::kChunk;
  m.sample = p->sample;
  m.chunk = p->next_chunk;
  m.chunks = ChunkCount(p->hidden->size());
  m.tokens = p->tokens;
  m.total_bytes = p->hidden->size();
  m.digest = Sha256(payload);
  const Bytes header = m.Encode();
  if (!dealer_->Send({header, payload})) return false;
  sent_ += len;
  ++p->next_chunk;
  return true;
}

CutReceiver::CutReceiver(std::unique_ptr<Socket> router, Options options) : router_(std::move(router)), options_(options) {}

void CutReceiver::Poll(const std::function<bool(uint32_t, uint64_t, Bytes)>& on_cut, const std::function<void(uint32_t)>& on_committed) {
  while (auto frames = router_->Receive()) {
    if (frames->size() < 2) continue;
    const auto m = EdgeMessage::Decode((*frames)[1]);
    if (!m.ok() || m->job != options_.job || m->boundary != options_.boundary) {
      ++dropped_;
      continue;
    }
    peer_ = (*frames)[0];
    if (m->producer != producer_) {  // a new life of the producer: what it had begun will never be finished
      producer_ = m->producer;
      for (const auto& [sample, a] : assembling_) outstanding_ -= a.bytes.size();
      assembling_.clear();
      granted_ = charged_ = 0;
    }
    if (m->kind == EdgeMessage::Kind::kCommitted) on_committed(m->sample);
    if (m->kind == EdgeMessage::Kind::kChunk && frames->size() == 3) OnChunk(*m, (*frames)[2], on_cut);
    Grant();
  }
}

void CutReceiver::OnChunk(const EdgeMessage& m, ByteSpan payload, const std::function<bool(uint32_t, uint64_t, Bytes)>& on_cut) {
  charged_ += payload.size();
  const uint64_t begin = static_cast<uint64_t>(m.chunk) * kCutChunkBytes;
  const bool shape_ok = m.tokens > 0 && m.tokens <= (1u << 24) && m.total_bytes == m.tokens * options_.hidden_size * 2 &&
                        m.chunks == ChunkCount(m.total_bytes) && begin + payload.size() <= m.total_bytes &&
                        payload.size() == std::min<uint64_t>(kCutChunkBytes, m.total_bytes - begin);
  if (!shape_ok || Sha256(payload) != m.digest) {
    ++dropped_;
    return;
  }
  auto it = assembling_.find(m.sample);
  if (it == assembling_.end()) {
    // A peer that ignores credit is not given memory for it.
    if (outstanding_ + m.total_bytes > std::max(options_.capacity_bytes, m.total_bytes) + m.total_bytes) {
      ++dropped_;
      return;
    }
    it = assembling_.emplace(m.sample, Assembly{m.tokens, Bytes(m.total_bytes), {}}).first;
    outstanding_ += m.total_bytes;
  }
  Assembly& a = it->second;
  if (a.bytes.size() != m.total_bytes || !a.have.insert(m.chunk).second) {
    ++dropped_;
    return;
  }
  std::memcpy(a.bytes.data() + begin, payload.data(), payload.size());
  if (a.have.size() < m.chunks) return;
  auto whole = assembling_.extract(it);
  const uint64_t bytes = whole.mapped().bytes.size();
  ++received_;
  if (!on_cut(m.sample, whole.mapped().tokens, std::move(whole.mapped().bytes))) outstanding_ -= bytes;
}

void CutReceiver::Release(uint64_t bytes) {
  HOLDFAST_CHECK(bytes <= outstanding_);
  outstanding_ -= bytes;
  Grant();
}

void CutReceiver::Grant() {
  if (peer_.empty()) return;
  // What has arrived is charged; what may still come is the capacity less what is held.
  const uint64_t room = options_.capacity_bytes > outstanding_ ? options_.capacity_bytes - outstanding_ : 0;
  granted_ = std::max(granted_, charged_ + room);
  const Bytes credit = EdgeCredit{self_, granted_}.Encode();
  router_->Send({peer_, credit});
}

}  // namespace holdfast
