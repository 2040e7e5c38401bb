// SPDX-License-Identifier: Apache-2.0
//
// Which sample a stage computes next, and from what. Pure: events in, decisions out; no I/O, no threads, no clock.
// A sample of a stage becomes runnable when its input is at hand: token ids (first stage), a cut that arrived over the edge (held in
// memory, bounded), or a cut that the upstream stage committed (read from packs by whoever computes). Order is free; the lowest runnable sample
// goes first so that a run looks orderly. Two bounds on what is in flight, started and not yet committed: at most `window` samples hold memory, and
// at most `awaiting_max` more are done and wait for their commit, which waits for that of the stage before, and so on up the pipeline.
// Samples that may have ended a worker are computed alone, so that the next death has one cause: the first few of a life that follows such a
// death (`alone`), and suspects, which come last.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <vector>

#include "ledger/base/coding.h"

namespace holdfast {

enum class InputKind : uint8_t { kTokens, kMemory, kPack };

struct StartSample {
  uint32_t sample = 0;
  InputKind input = InputKind::kTokens;
  Bytes cut;            // kMemory: the raw hidden states
  uint64_t tokens = 0;  // kMemory
  bool alone = false;   // nothing else is in flight: to be announced before it is computed
};

class StageScheduler {
 public:
  struct Options {
    std::vector<uint32_t> todo;       // samples without a record, ascending
    bool from_tokens = false;         // first stage
    uint32_t window = 2;
    uint32_t awaiting_max = 0;
    uint32_t awaiting_after = 0;      // none of them before so many commits: what they lose when a sample ends the worker, they lose once
    uint64_t memory_bytes_max = 0;    // of cuts held in memory
    uint32_t alone = 0;               // so many are to be committed one at a time first
    std::set<uint32_t> suspects;      // last and one at a time
  };
  explicit StageScheduler(Options options);

  // Events.
  // A whole cut arrived. false: not wanted (done, in flight, already held) or no room; the bytes are dropped.
  bool OnCutReceived(uint32_t sample, uint64_t tokens, Bytes cut);
  void OnCutCommitted(uint32_t sample);          // it is in packs now
  void OnWritten(uint32_t sample);               // it is computed, what leaves it is where it belongs: only its commit is missing
  void OnCommitted(uint32_t sample);             // our own record is durable
  void OnFailed(uint32_t sample);                // back to todo
  // It is left out: not to be started any more. Returns the bytes of its cut that were held. What is in flight stays so until OnDropped.
  uint64_t OnOmitted(uint32_t sample);
  void OnDropped(uint32_t sample) { OnCommitted(sample); }   // it was computed, and is left out

  // Decision: the next sample to start, if the window has room and one is runnable.
  std::optional<StartSample> Next();

  bool done() const { return todo_.empty() && in_flight() == 0; }
  size_t in_flight() const { return computing_.size() + awaiting_.size(); }
  size_t waiting() const { return todo_.size(); }
  uint64_t memory_bytes() const { return memory_bytes_; }
  uint64_t memory_bytes_free() const { return options_.memory_bytes_max - memory_bytes_; }

 private:
  struct Held {
    uint64_t tokens;
    Bytes cut;
  };
  bool OnlySuspectsLeft() const;
  Options options_;
  uint32_t committed_ = 0;
  std::set<uint32_t> todo_, computing_, awaiting_, in_packs_;
  std::map<uint32_t, Held> held_;
  uint64_t memory_bytes_ = 0;
};

}  // namespace holdfast
