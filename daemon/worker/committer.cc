// SPDX-License-Identifier: Apache-2.0
#include "daemon/worker/committer.h"

#include <algorithm>
#include <utility>

namespace holdfast {
namespace {

// How often the ledger is looked at without a hint: soon at first, rarer when nothing came for a while.
constexpr auto kPollMin = std::chrono::milliseconds(100), kPollMax = std::chrono::milliseconds(1000);
constexpr uint32_t kSoonLooks = 30;

}  // namespace

Committer::Committer(Options options) : options_(std::move(options)), upstream_wanted_(options_.upstream_wanted) {
  thread_ = std::thread([this] { Loop(); });
}

Committer::~Committer() { Stop(); }

void Committer::Submit(ComputedSample sample) {
  {
    std::lock_guard lock(mutex_);
    submitted_.push_back(std::move(sample));
    ++open_;
  }
  wake_.notify_all();
}

void Committer::PollUpstreamSoon() {
  {
    std::lock_guard lock(mutex_);
    look_ = true;
  }
  wake_.notify_all();
}

bool Committer::Flush(uint64_t timeout_ms) {
  std::unique_lock lock(mutex_);
  wake_.wait_for(lock, std::chrono::milliseconds(timeout_ms), [this] { return open_ == 0 || events_.failure.has_value(); });
  return open_ == 0;
}

void Committer::Stop() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  if (thread_.joinable()) thread_.join();
}

Committer::Events Committer::TakeEvents() {
  std::lock_guard lock(mutex_);
  Events out = events_;
  events_.committed.clear();
  events_.upstream.clear();
  events_.redo.clear();
  events_.consumer.reset();
  return out;
}

void Committer::Loop() {
  for (;;) {
    const Status status = Step();
    if (!status.ok()) {
      std::lock_guard lock(mutex_);
      events_.failure = status.error();
      stop_ = true;
    }
    std::unique_lock lock(mutex_);
    wake_.wait_for(lock, PollInterval(), [this] { return stop_ || look_ || !submitted_.empty(); });
    if (stop_) break;
  }
  options_.notify();
  wake_.notify_all();
}

Status Committer::Step() {
  for (;;) {
    std::optional<ComputedSample> next;
    bool asked = false;
    {
      std::lock_guard lock(mutex_);
      asked = std::exchange(look_, false);
      if (!submitted_.empty()) {
        next = std::move(submitted_.front());
        submitted_.pop_front();
      }
    }
    if (next) HOLDFAST_TRY(PrepareOne(std::move(*next)));
    const uint64_t now = options_.clock->MonotonicNs();
    if (asked || now - looked_ns_ >= static_cast<uint64_t>(std::chrono::nanoseconds(PollInterval()).count())) {
      looked_ns_ = now;
      HOLDFAST_TRY(options_.state->Refresh());
      const size_t wanted = upstream_wanted_.size();
      LookUpstream();
      LookDownstream();
      const bool waits = !upstream_wanted_.empty() || !prepared_.empty() || consumer_ == Nonce{};
      idle_looks_ = !waits ? kSoonLooks : wanted == upstream_wanted_.size() ? idle_looks_ + 1 : 0;
    }
    HOLDFAST_TRY(CommitReady());
    if (!next) return OkStatus();
  }
}

Status Committer::PrepareOne(ComputedSample sample) {
  if (sample.hidden != nullptr) {
    PackWriter packs(*options_.fs, options_.state->layout(), options_.incarnation, RunLayout::StageStream(options_.stage));
    ByteSpan rest(*sample.hidden);
    while (!rest.empty()) {
      const size_t len = std::min<uint64_t>(rest.size(), kChunkRawMax);
      HOLDFAST_TRY(packs.Add(Codec::kBf16Planes, rest.first(len)));
      rest = rest.subspan(len);
    }
    HOLDFAST_ASSIGN(sample.record.output->packs, packs.Finish());
    uint64_t bytes = 0;
    for (const PackManifest& p : sample.record.output->packs) bytes += p.file_size;
    std::lock_guard lock(mutex_);
    events_.bytes_written += bytes;
  }
  prepared_.push_back(std::move(sample));
  return OkStatus();
}

void Committer::LookUpstream() {
  std::vector<std::pair<uint32_t, Cut>> found;
  std::erase_if(upstream_wanted_, [&](uint32_t sample) {
    const Cut* cut = options_.state->CutBefore(sample, options_.first_layer);
    if (cut == nullptr) return false;
    found.emplace_back(sample, *cut);
    return true;
  });
  if (found.empty()) return;
  {
    std::lock_guard lock(mutex_);
    for (auto& f : found) events_.upstream.push_back(std::move(f));
  }
  options_.notify();
}

// The stage behind ours in the latest plan: its claim names an incarnation, whose record says where it listens.
void Committer::LookDownstream() {
  const RunState& state = *options_.state;
  for (const StagePlan& next : state.plan().stages) {
    const auto it = state.stages().find(next.stage);
    if (next.first_layer != options_.last_layer || it == state.stages().end() || it->second.claims.empty()) continue;
    const Nonce& who = it->second.claims.back().incarnation;
    const Incarnation* consumer = who == consumer_ ? nullptr : state.IncarnationOf(who);
    if (consumer == nullptr || consumer->endpoint.empty()) continue;
    consumer_ = who;
    {
      std::lock_guard lock(mutex_);
      events_.consumer = *consumer;
    }
    options_.notify();
  }
}

std::chrono::milliseconds Committer::PollInterval() const {
  return idle_looks_ < kSoonLooks ? kPollMin : kPollMax;
}

Status Committer::CommitReady() {
  for (size_t i = 0; i < prepared_.size();) {
    SampleRecord& record = prepared_[i].record;
    if (options_.first_layer > 0) {
      const Cut* cut = options_.state->CutBefore(record.sample, options_.first_layer);
      if (cut == nullptr) {  // a downstream commit waits for its upstream cut
        ++i;
        continue;
      }
      if (cut->digest != record.input) {  // its producer died before the commit, and another device computed other bits
        std::lock_guard lock(mutex_);
        events_.redo.push_back(record.sample);
        --open_;
        prepared_.erase(prepared_.begin() + static_cast<std::ptrdiff_t>(i));
        options_.notify();
        continue;
      }
    }
    HOLDFAST_TRY(options_.writer->Append(record.ToRecords(options_.stage)));
    {
      std::lock_guard lock(mutex_);
      events_.committed.push_back(record.sample);
      --open_;
    }
    prepared_.erase(prepared_.begin() + static_cast<std::ptrdiff_t>(i));
    options_.notify();
    wake_.notify_all();
  }
  return OkStatus();
}

}  // namespace holdfast
