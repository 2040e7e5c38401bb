// SPDX-License-Identifier: Apache-2.0
#include "daemon/worker/commit_queue.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "ledger/base/trace.h"

namespace holdfast {
namespace {

// How often there is a look for cuts without a hint: soon at first, rarer when nothing came for a while.
constexpr uint64_t kPollMinNs = 100'000'000, kPollMaxNs = 1'000'000'000;
constexpr uint32_t kSoonLooks = 30;
constexpr size_t kSlotRecordsMax = 64;          // of samples that share a slot

}  // namespace

CommitQueue::CommitQueue(Options options) : options_(std::move(options)), upstream_wanted_(options_.upstream_wanted), omitted_(options_.omitted) {}

uint64_t CommitQueue::PollNs() const { return idle_looks_ < kSoonLooks ? kPollMinNs : kPollMaxNs; }

Status CommitQueue::Step(Look look) {
  const uint64_t now = options_.clock->MonotonicNs();
  if (look == Look::kNow || now - looked_ns_ >= PollNs()) {
    HOLDFAST_TRY(LookAround(now));
    LookForOmissions();
    const size_t wanted = upstream_wanted_.size();
    LookUpstream();
    LookDownstream();
    const bool waits = !upstream_wanted_.empty() || !prepared_.empty() || consumer_ == Nonce{};
    idle_looks_ = !waits ? kSoonLooks : wanted == upstream_wanted_.size() ? idle_looks_ + 1 : 0;
  }
  return CommitReady();
}

// Often: are there new cuts? Rarely: what else is new with this stage and its neighbours, of all plans.
Status CommitQueue::LookAround(uint64_t now) {
  const TraceSpan span("look around");
  looked_ns_ = now;
  if (looked_wide_ns_ != 0 && now - looked_wide_ns_ < kPollMaxNs) return options_.state->RefreshCutsBefore(options_.first_layer);
  looked_wide_ns_ = now;
  return options_.state->RefreshLayers({{std::max(options_.first_layer, 1u) - 1, options_.last_layer + 1}});
}

Status CommitQueue::Announce(uint32_t sample) {
  PhaseBegin b;
  b.phase = kPhaseSample;
  b.sample = sample;
  b.window = b.threads = 1;
  const RecordKey key{.cls = RecordClass::kPhase, .stage = options_.stage.value, .a = static_cast<uint32_t>('s'), .b = sample};
  HOLDFAST_TRY(options_.writer->Append({MakeControl(key, b.ToJson())}));
  options_.on_event(SampleAnnounced{sample});
  return OkStatus();
}

Status CommitQueue::Commit(const LayerRecord& unit) {
  uint64_t bytes = 0;
  for (const PackManifest& p : unit.packs) bytes += p.file_size;
  HOLDFAST_TRY(options_.writer->Append({MakeControl({.cls = RecordClass::kLayer, .stage = options_.stage.value, .a = unit.unit}, unit.ToJson())}));
  options_.on_event(PacksWritten{bytes});
  options_.on_event(UnitCommitted{unit.unit});
  return OkStatus();
}

void CommitQueue::Add(ComputedSample sample) {
  uint64_t bytes = 0;
  for (size_t i = 0; sample.record.output && i < sample.record.output->packs.size(); ++i) bytes += sample.record.output->packs[i].file_size;
  if (bytes > 0) options_.on_event(PacksWritten{bytes});
  sample.hidden.reset();
  prepared_.push_back(std::move(sample));
}

// Their cuts will never come.
void CommitQueue::LookForOmissions() {
  const std::vector<uint32_t> now = options_.state->OmittedSamples();
  std::vector<uint32_t> news;
  std::set_difference(now.begin(), now.end(), omitted_.begin(), omitted_.end(), std::back_inserter(news));
  omitted_ = now;
  if (news.empty()) return;
  std::erase_if(upstream_wanted_, [&](uint32_t sample) { return options_.state->Omitted(sample); });
  options_.on_event(SamplesOmitted{std::move(news)});
}

void CommitQueue::LookUpstream() {
  UpstreamCommitted found;
  std::erase_if(upstream_wanted_, [&](uint32_t sample) {
    const Cut* cut = options_.state->CutBefore(sample, options_.first_layer);
    if (cut != nullptr) found.cuts.emplace(sample, *cut);
    return cut != nullptr;
  });
  if (!found.cuts.empty()) options_.on_event(std::move(found));
}

// The stage behind ours in the latest plan: its claim names an incarnation, whose record says where it listens.
void CommitQueue::LookDownstream() {
  const RunState& state = *options_.state;
  for (const StagePlan& next : state.plan().stages) {
    const auto it = state.stages().find(next.stage);
    if (next.first_layer != options_.last_layer || it == state.stages().end() || it->second.claims.empty()) continue;
    const Nonce& who = it->second.claims.back().incarnation;
    const Incarnation* consumer = who == consumer_ ? nullptr : state.IncarnationOf(who);
    if (consumer == nullptr || consumer->endpoint.empty()) continue;
    consumer_ = who;
    options_.on_event(ConsumerFound{*consumer});
  }
}

// A sample is committed behind the cut that it was computed from (or the group before it did, then that one's record stands in an earlier slot).
CommitQueue::Verdict CommitQueue::Judge(const ComputedSample& sample) const {
  const SampleRecord& record = sample.record;
  const RunState& state = *options_.state;
  if (state.Omitted(record.sample)) return Verdict::kDrop;
  if (record.first_layer == 0 || sample.from_memory) return Verdict::kAppend;
  const Cut* input = state.CutBefore(record.sample, record.first_layer);
  if (input == nullptr) return Verdict::kWait;
  return input->digest == record.input ? Verdict::kAppend : Verdict::kRedo;   // its producer died before the commit, and another device computed other bits
}

Status CommitQueue::CommitReady() {
  std::vector<Record> slot;
  std::vector<uint32_t> committed;
  std::vector<ComputedSample> waiting;
  for (ComputedSample& sample : prepared_) {
    const uint32_t number = sample.record.sample;
    const Verdict verdict = committed.size() == kSlotRecordsMax ? Verdict::kWait : Judge(sample);
    if (verdict == Verdict::kDrop) options_.on_event(SampleDropped{number});
    if (verdict == Verdict::kRedo) options_.on_event(SampleRedo{number});
    if (verdict == Verdict::kWait) waiting.push_back(std::move(sample));
    if (verdict != Verdict::kAppend) continue;
    for (Record& r : sample.record.ToRecords(options_.stage)) slot.push_back(std::move(r));
    committed.push_back(number);
  }
  prepared_ = std::move(waiting);
  if (committed.empty()) return OkStatus();
  {
    const TraceSpan span("commit a slot");
    HOLDFAST_TRY(options_.writer->Append(std::move(slot)));
  }
  for (const uint32_t sample : committed) options_.on_event(SampleCommitted{sample});
  return committed.size() == kSlotRecordsMax ? CommitReady() : OkStatus();
}

}  // namespace holdfast
