// SPDX-License-Identifier: Apache-2.0
#include "daemon/transport/cut_edge.h"

#include <algorithm>
#include <utility>

namespace holdfast {
namespace {

constexpr uint64_t kHelloNs = 250'000'000, kMsNs = 1'000'000;
constexpr size_t kHintsMax = 4096;      // waiting for a slow consumer, which will find the rest in the ledger
constexpr int kMessagesATurn = 64;      // then the owner looks at its other work, whoever floods
constexpr uint64_t kTokensMax = 1u << 24;

uint32_t ChunkCount(uint64_t bytes) { return static_cast<uint32_t>((bytes + kCutChunkBytes - 1) / kCutChunkBytes); }

}  // namespace

CutSender::CutSender(std::unique_ptr<Socket> dealer, const Clock& clock, const Nonce& job, uint32_t boundary, uint64_t queue_bytes_max)
    : dealer_(std::move(dealer)), clock_(clock), queue_bytes_max_(queue_bytes_max) {
  heard_ns_ = clock_.MonotonicNs();
  base_.job = job;
  base_.producer = Nonce::Random();
  base_.boundary = boundary;
}

void CutSender::Offer(uint32_t sample, uint64_t tokens, std::shared_ptr<const Bytes> hidden) {
  if (hidden->empty() || queue_bytes_ + hidden->size() > queue_bytes_max_) return;
  queue_bytes_ += hidden->size();
  queue_.push_back({sample, tokens, std::move(hidden)});
}

void CutSender::Committed(uint32_t sample) {
  if (hints_.size() < kHintsMax) hints_.push_back(sample);
  SendHints();
}

void CutSender::SendHints() {
  for (; !hints_.empty(); hints_.pop_front()) {
    EdgeMessage m = base_;
    m.kind = EdgeMessage::Kind::kCommitted;
    m.sample = hints_.front();
    m.sent_bytes = sent_;
    const Bytes header = m.Encode();
    if (!dealer_->Send({header})) return;
  }
}

void CutSender::Retarget(std::unique_ptr<Socket> dealer) {
  dealer_ = std::move(dealer);
  base_.producer = Nonce::Random();  // to this consumer we are new, even if it is the old one
  consumer_ = Nonce();
  StartAfresh();
  hello_ns_ = 0;
  heard_ns_ = clock_.MonotonicNs();
}

void CutSender::StartAfresh() {
  sent_ = granted_ = 0;
  if (!queue_.empty()) queue_.front().next_chunk = 0;
}

uint64_t CutSender::silent_ms() const { return (clock_.MonotonicNs() - heard_ns_) / kMsNs; }

void CutSender::TakeCredit() {
  for (int i = 0; i < kMessagesATurn; ++i) {
    const auto frames = dealer_->Receive(1);
    if (!frames) return;
    if (frames->size() != 1) continue;
    const auto credit = EdgeCredit::Decode((*frames)[0]);
    if (!credit.ok()) continue;
    heard_ns_ = clock_.MonotonicNs();
    if (credit->consumer != consumer_) {  // a new life of the consumer: it has seen nothing of ours
      consumer_ = credit->consumer;
      StartAfresh();
    }
    granted_ = std::max(granted_, credit->granted_bytes);
  }
}

void CutSender::Poll() {
  TakeCredit();
  SendHints();
  while (!queue_.empty() && SendChunk(&queue_.front())) {
    if (queue_.front().next_chunk < ChunkCount(queue_.front().hidden->size())) continue;
    queue_bytes_ -= queue_.front().hidden->size();
    queue_.pop_front();
  }
  if (clock_.MonotonicNs() - hello_ns_ >= kHelloNs) {
    hello_ns_ = clock_.MonotonicNs();
    EdgeMessage m = base_;
    m.sent_bytes = sent_;
    const Bytes header = m.Encode();
    dealer_->Send({header});
  }
}

bool CutSender::SendChunk(Pending* p) {
  const uint64_t begin = static_cast<uint64_t>(p->next_chunk) * kCutChunkBytes;
  const uint64_t len = std::min<uint64_t>(kCutChunkBytes, p->hidden->size() - begin);
  // A cut is begun with credit for all of it: the consumer keeps room for the whole from its first chunk on.
  if (sent_ + (p->hidden->size() - begin) > granted_) return false;
  const ByteSpan payload = ByteSpan(*p->hidden).subspan(begin, len);
  EdgeMessage m = base_;
  m.kind = EdgeMessage::Kind::kChunk;
  m.sample = p->sample;
  m.chunk = p->next_chunk;
  m.chunks = ChunkCount(p->hidden->size());
  m.tokens = p->tokens;
  m.total_bytes = p->hidden->size();
  m.digest = Sha256(payload);
  m.sent_bytes = sent_ + len;
  const Bytes header = m.Encode();
  if (!dealer_->Send({header, payload})) return false;
  sent_ += len;
  ++p->next_chunk;
  return true;
}

CutReceiver::CutReceiver(std::unique_ptr<Socket> router, Options options) : router_(std::move(router)), options_(options) {}

void CutReceiver::Poll(const std::function<bool(uint32_t, uint64_t, Bytes)>& on_cut, const std::function<void(uint32_t)>& on_committed) {
  for (int i = 0; i < kMessagesATurn; ++i) {
    const auto frames = router_->Receive(3);
    if (!frames) return;
    const auto m = frames->size() >= 2 ? EdgeMessage::Decode((*frames)[1]) : Corrupt("edge message: no header");
    const size_t frames_wanted = m.ok() && m->kind == EdgeMessage::Kind::kChunk ? 3 : 2;
    if (!m.ok() || frames->size() != frames_wanted || m->job != options_.job || m->boundary != options_.boundary) {
      ++dropped_;
      continue;
    }
    peer_ = (*frames)[0];
    if (m->producer != producer_) {  // a new life of the producer: what it had begun will never be finished
      producer_ = m->producer;
      Abandon();
      granted_ = charged_ = 0;
    }
    charged_ = std::max(charged_, m->sent_bytes);  // as the producer counts it: what was lost on the way is paid for too
    if (m->kind == EdgeMessage::Kind::kCommitted) on_committed(m->sample);
    if (m->kind == EdgeMessage::Kind::kChunk && !OnChunk(*m, (*frames)[2], on_cut)) {
      ++dropped_;
      Abandon();
    }
    Grant();
  }
}

// The chunks of a cut come in order and cuts come one after the other, so a cut that misses one is not worth its memory any more.
bool CutReceiver::OnChunk(const EdgeMessage& m, ByteSpan payload, const std::function<bool(uint32_t, uint64_t, Bytes)>& on_cut) {
  const uint64_t begin = static_cast<uint64_t>(m.chunk) * kCutChunkBytes;
  const bool shape_ok = m.tokens > 0 && m.tokens <= kTokensMax && m.total_bytes == m.tokens * options_.hidden_size * 2 &&
                        m.chunks == ChunkCount(m.total_bytes) && payload.size() == std::min<uint64_t>(kCutChunkBytes, m.total_bytes - begin);
  if (!shape_ok || Sha256(payload) != m.digest) return false;
  if (m.chunk == 0) {
    Abandon();
    // A peer that ignores credit is not given memory for it.
    if (outstanding_ > options_.capacity_bytes || m.total_bytes > options_.capacity_bytes - outstanding_) return false;
    assembly_.emplace(Assembly{.sample = m.sample, .tokens = m.tokens, .total_bytes = m.total_bytes, .bytes = {}});
    assembly_->bytes.reserve(m.total_bytes);
    outstanding_ += m.total_bytes;
  }
  if (!assembly_ || assembly_->sample != m.sample || assembly_->total_bytes != m.total_bytes || assembly_->bytes.size() != begin) return false;
  assembly_->bytes.insert(assembly_->bytes.end(), payload.begin(), payload.end());
  if (assembly_->bytes.size() < m.total_bytes) return true;
  Assembly whole = std::move(*assembly_);
  assembly_.reset();
  ++received_;
  if (!on_cut(whole.sample, whole.tokens, std::move(whole.bytes))) outstanding_ -= whole.total_bytes;
  return true;
}

void CutReceiver::Abandon() {
  if (assembly_) outstanding_ -= assembly_->total_bytes;
  assembly_.reset();
}

void CutReceiver::Release(uint64_t bytes) {
  HOLDFAST_CHECK(bytes <= outstanding_);
  outstanding_ -= bytes;
  Grant();
}

void CutReceiver::Grant() {
  if (peer_.empty()) return;
  // What was sent is charged; what may still come is the capacity less what is held.
  const uint64_t room = options_.capacity_bytes > outstanding_ ? options_.capacity_bytes - outstanding_ : 0;
  granted_ = std::max(granted_, charged_ + std::min(room, UINT64_MAX - charged_));
  const Bytes credit = EdgeCredit{self_, granted_}.Encode();
  router_->Send({peer_, credit});
}

}  // namespace holdfast
