// SPDX-License-Identifier: Apache-2.0
#include "daemon/worker/committer.h"

#include <chrono>
#include <utility>

namespace holdfast {

static CommitQueue::Options With(CommitQueue::Options options, std::function<void(CommitEvent)> on_event) {
  options.on_event = std::move(on_event);
  return options;
}

Committer::Committer(CommitQueue::Options queue, std::function<void()> notify)
    : clock_(*queue.clock), notify_(std::move(notify)), queue_(With(std::move(queue), [this](CommitEvent e) { OnEvent(std::move(e)); })) {
  thread_ = std::thread([this] { Loop(); });
}

Committer::~Committer() { Stop(); }

void Committer::Submit(ComputedSample sample) {
  {
    std::lock_guard lock(mutex_);
    submitted_.push_back(std::move(sample));
  }
  wake_.notify_all();
}

void Committer::Submit(LayerRecord unit) {
  {
    std::lock_guard lock(mutex_);
    units_.push_back(std::move(unit));
  }
  wake_.notify_all();
}

void Committer::Announce(uint32_t sample) {
  {
    std::lock_guard lock(mutex_);
    to_announce_.push_back(sample);
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
  events_.announced.clear();
  events_.committed.clear();
  events_.units.clear();
  events_.upstream.clear();
  events_.redo.clear();
  events_.omitted.clear();
  events_.dropped.clear();
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
    if (stop_ && (!status.ok() || (submitted_.empty() && units_.empty()))) break;   // what was handed over is not lost
    wake_.wait_for(lock, std::chrono::nanoseconds(queue_.PollNs()), [this] { return stop_ || look_ || !submitted_.empty() || !units_.empty() || !to_announce_.empty(); });
  }
  notify_();
  wake_.notify_all();
}

// Everything that is submitted, until nothing is; what was computed while a slot was written shares the next one.
Status Committer::Step() {
  for (;;) {
    std::deque<ComputedSample> samples;
    std::deque<LayerRecord> units;
    std::deque<uint32_t> announce;
    bool asked = false;
    {
      std::lock_guard lock(mutex_);
      asked = std::exchange(look_, false);
      samples = std::exchange(submitted_, {});
      units = std::exchange(units_, {});
      announce = std::exchange(to_announce_, {});
    }
    for (const uint32_t sample : announce) HOLDFAST_TRY(queue_.Announce(sample));
    for (const LayerRecord& unit : units) HOLDFAST_TRY(queue_.Commit(unit));
    const bool more = !samples.empty();
    for (ComputedSample& sample : samples) queue_.Add(std::move(sample));
    HOLDFAST_TRY(queue_.Step(asked ? CommitQueue::Look::kNow : CommitQueue::Look::kWhenDue));
    if (!more) return OkStatus();
  }
}

// From inside a step, on the committer's thread.
void Committer::OnEvent(CommitEvent event) {
  const bool quiet = std::holds_alternative<PacksWritten>(event);
  {
    std::lock_guard lock(mutex_);
    std::visit([this](auto& e) { Note(std::move(e)); }, event);
  }
  if (quiet) return;
  notify_();
  wake_.notify_all();
}

void Committer::Note(SampleAnnounced e) { events_.announced.push_back(e.sample); }
void Committer::Note(SampleCommitted e) { events_.committed.push_back(e.sample); }
void Committer::Note(UpstreamCommitted e) {
  for (auto& [sample, cut] : e.cuts) events_.upstream.emplace_back(sample, std::move(cut));
}
void Committer::Note(SampleRedo e) { events_.redo.push_back(e.sample); }
void Committer::Note(SamplesOmitted e) { events_.omitted.insert(events_.omitted.end(), e.samples.begin(), e.samples.end()); }
void Committer::Note(SampleDropped e) { events_.dropped.push_back(e.sample); }
void Committer::Note(ConsumerFound e) { events_.consumer = std::move(e.consumer); }
void Committer::Note(PacksWritten e) { events_.bytes_written += e.bytes; }
void Committer::Note(UnitCommitted e) { events_.units.push_back(e.unit); }

}  // namespace holdfast
