// SPDX-License-Identifier: Apache-2.0
//
// Streams: totally ordered logs of born-sealed segments, log/<stream>/%08x.seg, and the fencing of their owners.
// Rules F1-F6 and the decision table P6 of ledger.md are implemented here and nowhere else.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "ledger/base/clock.h"
#include "ledger/base/file_system.h"
#include "ledger/format/layout.h"
#include "ledger/records/records.h"

namespace holdfast {

struct Slot {                      // one decoded and verified segment
  uint32_t seq = 0;
  uint64_t epoch = 0;              // of the trailer
  Nonce incarnation, commit;       // who, and the nonce of this very commit
  Digest digest;                   // SHA-256 of its trailer: what the next slot's `prev` must be
  std::vector<Record> records;     // in key order
  bool tombstone = false;          // stands for a lost slot: `digest` is then what the chain had there, see log/tombstone.h
};

// The job's uuid, as the trailer of job/0 says it. kNotFound: nothing has been submitted in this run directory.
Result<Nonce> ReadJobId(FileSystem& fs, const RunLayout& layout);

// Reads slot `seq` whole and checks trailer, digest, job, stream and seq against where it lies, before LMDB parses a byte.
// kNotFound, or kCorrupt with the reason. The chain is the caller's to check (prev is returned through `prev`).
Result<Slot> ReadSlot(FileSystem& fs, const RunLayout& layout, const std::string& stream, uint32_t seq, const Nonce& job, Digest* prev);

// kCorrupt "LEDGER_REGRESSION ...": slot `seq`, once seen whole, `what` ("was there and is gone"). The message says what to type.
Error LedgerRegression(const RunLayout& layout, const std::string& stream, uint32_t seq, const std::string& what);

struct StreamState {               // what a fold over the slots of one stream knows about ownership
  uint32_t next_seq = 0;           // the number that the next commit must take
  Digest tail;                     // digest of the last slot, zero when empty
  uint64_t epoch = 0;              // current epoch, 0 = never claimed
  Claim claim;                     // of the current epoch
  bool released = true;            // by R, or never claimed
  uint32_t stale = 0;              // records of stale epochs met (F3)
};

// Applies one slot to `state` and returns those of its records that count (current epoch). Chain breaks are kCorrupt.
Result<std::vector<const Record*>> ApplySlot(const Slot& slot, const Digest& prev, StreamState* state);

// Follows one stream: lists the directory once a call, reads what is new. Keeps the state between calls.
class StreamReader {
 public:
  StreamReader(FileSystem& fs, RunLayout layout, std::string stream, Nonce job);
  // Calls `on_record` for every counting record of every new slot, in order. A gap or a bad slot: kCorrupt, naming the path and
  // "jobctl fsck"; so does a slot that was folded and has vanished (LEDGER_REGRESSION). A stream whose directory does not exist yet is empty.
  Status Poll(const std::function<Status(const Record&, const Slot&)>& on_record);
  const StreamState& state() const { return state_; }
  const std::string& stream() const { return stream_; }
  // With a sink, a StreamWriter opened through this reader hands over its own commits at once, on its own thread, and Poll
  // need not read them back. Without one, Poll reads them like everybody else's.
  void set_sink(std::function<Status(const Record&, const Slot&)> sink) { sink_ = std::move(sink); }

 private:
  friend class StreamWriter;
  // Applies the next slot and delivers what counts. An error of `on_record` leaves the state as it was.
  Status Take(const Slot& slot, const Digest& prev, const std::function<Status(const Record&, const Slot&)>& on_record);
  Status LookForLost();
  FileSystem& fs_;
  RunLayout layout_;
  std::string stream_;
  Nonce job_;
  StreamState state_;
  std::function<Status(const Record&, const Slot&)> sink_;
};

// Owns one stream under one epoch. Single-threaded: one writer belongs to one thread. Must not outlive the reader it was opened
// through.
class StreamWriter {
 public:
  struct Options {
    Nonce job;
    Claim claim;                   // incarnation, node, reason ...; the epoch is filled in
    // Called with the current owner when the stream is claimed and not released, also again after losing a race for a slot.
    // Returns OK to take over, an error to give up with it. Null: always take over.
    std::function<Status(const Claim& current)> may_take_over;
    // Called right before each try to claim, whoever holds the stream and even if nobody ever did: what was folded so far is what
    // the claim will stand on. An error gives up with it, and nothing was said. Null: always try.
    std::function<Status()> before_try;
    // Waits. A slot that is listed may be hidden behind a negative lookup for as long as the kernel keeps one (30 s); who has nothing better
    // to do waits for it. Null: kTransient at once.
    std::function<void(uint64_t ms)> wait;
  };
  // Folds the stream through `reader` (every record goes to `on_record`, to the reader's sink if that is null), then appends a CLAIM (plus `with_claim` records in
  // the same slot: J and so on for a new job). First slot of a new stream: seq 0.
  static Result<std::unique_ptr<StreamWriter>> Open(FileSystem& fs, const RunLayout& layout, const Clock& clock, StreamReader* reader,
                                                    const std::function<Status(const Record&, const Slot&)>& on_record,
                                                    const Options& options, std::vector<Record> with_claim = {});
  // Commits the records as one slot. OK = durable. kFenced: a newer claim is there, this writer is dead for good (exit 75).
  // kInternal "FORKED": a twin with our identity wrote this slot (exit 1). kCorrupt "LEDGER_REGRESSION": the slot before this one is not what
  // it was; looked at after a while without commits, and after a commit that took long: a server that forgets has rebooted in between, and
  // that takes longer. These records are not acknowledged, the stream needs fsck. kResourceExhausted: no space; nothing was committed, the
  // writer may go on. kTransient: storage gave no clear answer; append the same records again later - if they were committed after
  // all, the fold counts them once. Epoch and wall time of the records are filled in here.
  Status Append(std::vector<Record> records);
  Status ReleaseStream(const std::string& reason);   // appends R
  uint64_t epoch() const { return state_.epoch; }
  uint32_t next_seq() const { return state_.next_seq; }

 private:
  struct Landing;  // what lies in the slot after a try, and whether it is ours
  StreamWriter(FileSystem& fs, const RunLayout& layout, const Clock& clock, StreamReader* reader, const Options& options);
  Status TakeOver(const std::function<Status(const Record&, const Slot&)>& on_record, const std::vector<Record>& with_claim);
  Result<Landing> CommitOnce(std::vector<Record> records, uint64_t epoch);
  Result<Slot> LookAt(uint32_t seq, Digest* prev);
  Status Advance(const Landing& landing);
  Status LookBack();
  Status Yield(const Landing& landing);
  FileSystem& fs_;
  RunLayout layout_;
  const Clock& clock_;
  std::string stream_;
  StreamReader* reader_;
  Options options_;
  StreamState state_;
  std::vector<Nonce> abandoned_;   // nonces of our tries at the current slot whose outcome is unknown
  bool fenced_ = false;
  uint64_t sure_ns_ = 0;           // when the slot before the next one was known to be there
};

}  // namespace holdfast
