// SPDX-License-Identifier: Apache-2.0
//
// Writing streams: claims and commits. What a failed or doubtful publication means is decided here (P6):
//   our commit nonce in the slot                  committed: only the reply was lost
//   a nonce that we gave up on earlier            also ours: fold it, try the next number
//   owner; a claim of a newer epoch               FENCED, for good
//   owner; our incarnation and epoch, other nonce FORKED: a resumed twin of this process
//   owner; a slot of an older epoch               a zombie writing blindly: fold it (its records do not count), next number
//   claimant; anything                            fold it, next number, ask again whether to take over
//   nothing there                                 publish once more, then report the storage fault
// Before and after a commit that a reboot of the server may have come between, the slot before it is looked at: LEDGER_REGRESSION.
#include <algorithm>

#include "ledger/base/mutant.h"
#include "ledger/log/publish.h"
#include "ledger/log/stream.h"
#include "ledger/segment/segment.h"

namespace holdfast {

constexpr int kRoundsMax = 1000;  // slots that may be lost to others in one call
constexpr uint64_t kHiddenStepMs = 500, kHiddenMaxMs = 35'000;   // a negative lookup lives for 30 s
constexpr uint64_t kRebootNs = 5'000'000'000;  // no machine is back sooner; within it the server remembers what it acknowledged

struct StreamWriter::Landing {
  bool ours = false;
  Slot slot;
  Digest prev;
};

StreamWriter::StreamWriter(FileSystem& fs, const RunLayout& layout, const Clock& clock, StreamReader* reader, const Options& options)
    : fs_(fs), layout_(layout), clock_(clock), stream_(reader->stream()), reader_(reader), options_(options) {}

static uint16_t StageNumber(const std::string& stream) {
  StageId stage;
  return RunLayout::ParseStageStream(stream, &stage) ? stage.value : 0;
}

Result<std::unique_ptr<StreamWriter>> StreamWriter::Open(FileSystem& fs, const RunLayout& layout, const Clock& clock, StreamReader* reader,
                                                         const std::function<Status(const Record&, const Slot&)>& on_record,
                                                         const Options& options, std::vector<Record> with_claim) {
  const Status format = CheckFormatForWriting(fs, layout);
  if (!format.ok() && format.code() != ErrorCode::kNotFound) return format.error();
  // The directories must be durable before anything in them is acknowledged.
  HOLDFAST_TRY(fs.MakeDirs(layout.StreamDir(reader->stream())));
  HOLDFAST_TRY(fs.MakeDirs(layout.TmpDir(options.claim.incarnation)));
  HOLDFAST_TRY(fs.SyncDir(layout.LogDir()));
  HOLDFAST_TRY(fs.SyncDir(layout.root()));
  std::unique_ptr<StreamWriter> writer(new StreamWriter(fs, layout, clock, reader, options));
  HOLDFAST_TRY(writer->TakeOver(on_record ? on_record : reader->sink_, with_claim));
  return writer;
}

Status StreamWriter::TakeOver(const std::function<Status(const Record&, const Slot&)>& on_record, const std::vector<Record>& with_claim) {
  HOLDFAST_TRY(reader_->Poll(on_record));
  for (int round = 0; round < kRoundsMax; ++round) {
    const StreamState& seen = reader_->state();
    const bool held = seen.epoch != 0 && !seen.released && seen.claim.incarnation != options_.claim.incarnation;
    if (held && options_.may_take_over) HOLDFAST_TRY(options_.may_take_over(seen.claim));
    if (options_.before_try) HOLDFAST_TRY(options_.before_try());
    state_ = seen;
    sure_ns_ = clock_.MonotonicNs();
    Claim claim = options_.claim;
    claim.epoch = seen.epoch + 1;
    std::vector<Record> records = with_claim;
    records.push_back(MakeControl({RecordClass::kClaim, StageNumber(stream_), static_cast<uint32_t>(claim.epoch), 0, 0}, claim.ToJson()));
    HOLDFAST_ASSIGN(const Landing landing, CommitOnce(std::move(records), claim.epoch));
    if (landing.ours) HOLDFAST_TRY(LookBack());
    HOLDFAST_TRY(reader_->Take(landing.slot, landing.prev, on_record));
    state_ = reader_->state();
    if (landing.ours) return OkStatus();
  }
  return MakeError(ErrorCode::kTransient, "claiming stream " + stream_ + ": lost " + std::to_string(kRoundsMax) + " races in a row");
}

Status StreamWriter::Append(std::vector<Record> records) {
  if (fenced_) return Fenced("stream " + stream_ + ": this owner was fenced before");
  for (int round = 0; round < kRoundsMax; ++round) {
    HOLDFAST_TRY(LookBack());
    HOLDFAST_ASSIGN(const Landing landing, CommitOnce(records, state_.epoch));
    if (!landing.ours && HOLDFAST_MUTANT("skip-taken-slot")) {
      ++state_.next_seq;
      continue;
    }
    HOLDFAST_TRY(landing.ours ? LookBack() : Yield(landing));
    HOLDFAST_TRY(Advance(landing));
    if (landing.ours) return OkStatus();
  }
  return MakeError(ErrorCode::kTransient, "stream " + stream_ + ": lost " + std::to_string(kRoundsMax) + " slots in a row to stale writers");
}

Status StreamWriter::ReleaseStream(const std::string& reason) {
  const Release release{state_.epoch, reason};
  return Append({MakeControl({RecordClass::kRelease, StageNumber(stream_), static_cast<uint32_t>(state_.epoch), 0, 0}, release.ToJson())});
}

// Decides about a slot that this owner lost. OK: it may be folded and passed.
Status StreamWriter::Yield(const Landing& landing) {
  if (HOLDFAST_MUTANT("ignore-foreign-claim")) return OkStatus();
  const Slot& slot = landing.slot;
  const std::string what = "stream " + stream_ + ", slot " + std::to_string(slot.seq) + ": ";
  if (std::find(abandoned_.begin(), abandoned_.end(), slot.commit) != abandoned_.end()) return OkStatus();
  if (slot.epoch < state_.epoch) return OkStatus();
  fenced_ = true;
  if (slot.epoch == state_.epoch && slot.incarnation == options_.claim.incarnation) {
    return Internal(what + "FORKED: a twin of this process (same incarnation, a resumed snapshot?) has committed there; stop one of them");
  }
  return Fenced(what + "incarnation " + slot.incarnation.Hex() + " has taken over with epoch " + std::to_string(slot.epoch) + "; this process must stop");
}

Status StreamWriter::Advance(const Landing& landing) {
  const bool behind = reader_->state().next_seq == landing.slot.seq;
  const auto applied = ApplySlot(landing.slot, landing.prev, &state_);
  if (!applied.ok()) return Annotate(applied.error(), "stream " + stream_);
  abandoned_.clear();
  sure_ns_ = clock_.MonotonicNs();
  if (reader_->sink_ && behind) return reader_->Take(landing.slot, landing.prev, reader_->sink_);
  return OkStatus();
}

// Is the slot before the next one still what it was? Whoever was replaced finds that out by his commit. No answer is no finding.
Status StreamWriter::LookBack() {
  const uint64_t now = clock_.MonotonicNs();
  if (state_.next_seq == 0 || now - sure_ns_ < kRebootNs) return OkStatus();
  const uint32_t seq = state_.next_seq - 1;
  Digest prev;
  const auto last = LookAt(seq, &prev);
  const bool lost = last.ok() ? last->digest != state_.tail : last.code() == ErrorCode::kNotFound || last.code() == ErrorCode::kCorrupt;
  if (!lost) {
    sure_ns_ = now;
    return OkStatus();
  }
  const auto next = LookAt(state_.next_seq, &prev);
  if (next.ok() && next->incarnation != options_.claim.incarnation) return OkStatus();
  return LedgerRegression(layout_, stream_, seq, last.ok() ? "is another one than before" : last.code() == ErrorCode::kCorrupt ? "was whole and is damaged" : "was there and is gone");
}

// What lies at `seq`. A name that is listed but cannot be opened is there all the same: kTransient, when waiting did not help.
Result<Slot> StreamWriter::LookAt(uint32_t seq, Digest* prev) {
  const std::string name = BaseName(layout_.Slot(stream_, seq));
  for (uint64_t waited_ms = 0;; waited_ms += kHiddenStepMs) {
    auto slot = ReadSlot(fs_, layout_, stream_, seq, options_.job, prev);
    if (slot.code() != ErrorCode::kNotFound) return slot;
    HOLDFAST_ASSIGN(const auto names, fs_.List(layout_.StreamDir(stream_)));
    if (!std::binary_search(names.begin(), names.end(), name)) return slot;
    if (!options_.wait || waited_ms >= kHiddenMaxMs) break;
    options_.wait(kHiddenStepMs);
  }
  return MakeError(ErrorCode::kTransient, layout_.Slot(stream_, seq) + ": is listed but cannot be opened yet; try again");
}

// One number, P0 to P6. Errors: nothing of ours is known to be committed.
Result<StreamWriter::Landing> StreamWriter::CommitOnce(std::vector<Record> records, uint64_t epoch) {
  Landing mine;
  mine.ours = true;
  mine.prev = state_.tail;
  const uint64_t now = clock_.WallNs();
  for (Record& r : records) r.epoch = epoch, r.wall_ns = now;
  SegmentTrailer trailer;
  trailer.seq = mine.slot.seq = state_.next_seq;
  trailer.epoch = mine.slot.epoch = epoch;
  trailer.job = options_.job;
  trailer.incarnation = mine.slot.incarnation = options_.claim.incarnation;
  trailer.commit = mine.slot.commit = Nonce::Random();  // drawn now, so that a twin resumed from a snapshot draws another
  trailer.stream = StreamId(stream_);
  trailer.prev = state_.tail;
  HOLDFAST_ASSIGN(const Segment segment, BuildSegment(trailer, records));
  std::sort(records.begin(), records.end(), [](const Record& a, const Record& b) { return a.key < b.key; });
  mine.slot.records = std::move(records);
  mine.slot.digest = segment.digest;

  const std::string path = layout_.Slot(stream_, trailer.seq);
  bool tried = false;
  PublishOptions options;
  options.tmp_dir = layout_.TmpDir(options_.claim.incarnation);
  options.subject = stream_;
  options.reached_link = &tried;
  Status published;
  for (int attempt = 0; attempt < 2; ++attempt) {
    published = Publish(fs_, path, segment.parts(), options);
    if (published.ok()) return mine;
    if (!tried) return published.error();
    Landing there;
    auto slot = LookAt(trailer.seq, &there.prev);
    if (slot.ok() && slot->commit == trailer.commit) {
      abandoned_.push_back(trailer.commit);  // ours, but not acknowledged unless its name is durable too
      HOLDFAST_TRY(fs_.SyncDir(DirName(path)));
      return mine;
    }
    if (slot.ok()) {
      there.slot = std::move(slot).value();
      return there;
    }
    if (slot.code() != ErrorCode::kNotFound) {
      abandoned_.push_back(trailer.commit);
      return slot.error();
    }
    if (published.code() == ErrorCode::kResourceExhausted) break;
  }
  abandoned_.push_back(trailer.commit);  // a delayed LINK may still arrive
  if (published.code() == ErrorCode::kResourceExhausted) return published.error();
  return MakeError(ErrorCode::kTransient, published.error().message + " (twice, and nothing is there: a storage fault; check the file server, then type the same line again)");
}

}  // namespace holdfast
