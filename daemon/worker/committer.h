// SPDX-License-Identifier: Apache-2.0
//
// The thread that makes samples durable: writes the output cut into packs, waits until the cut that the sample was computed from is
// committed upstream, then appends the S slot. Commits overlap compute; one thread owns the stream.
#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "ledger/base/clock.h"
#include "ledger/fold/run_state.h"
#include "ledger/pack/pack.h"

namespace holdfast {

struct ComputedSample {
  SampleRecord record;                          // output packs not yet filled in
  std::shared_ptr<const Bytes> hidden;          // null when no cut is kept; shared with the data edge
};

class Committer {
 public:
  struct Options {
    FileSystem* fs = nullptr;
    const Clock* clock = nullptr;
    RunState* state = nullptr;                  // used by this thread alone from Start to Stop
    StreamWriter* writer = nullptr;             // likewise
    Nonce incarnation;
    StageId stage;
    uint32_t first_layer = 0, last_layer = 0;   // 0: no upstream
    std::vector<uint32_t> upstream_wanted;      // samples whose cut is not committed yet
    std::function<void()> notify;               // wakes the event loop
  };
  explicit Committer(Options options);
  ~Committer();                                 // stops and joins

  void Submit(ComputedSample sample);
  void PollUpstreamSoon();                      // a hint arrived
  // Waits until all submitted samples are durable, failed, or `timeout_ms` is over. true: all durable.
  bool Flush(uint64_t timeout_ms);
  void Stop();

  // What happened since the last call.
  struct Events {
    std::vector<uint32_t> committed;
    std::vector<std::pair<uint32_t, Cut>> upstream;  // cuts that the upstream stage has committed
    std::vector<uint32_t> redo;                      // were computed from a cut that upstream then committed otherwise
    std::optional<Incarnation> consumer;             // who takes our cuts now, when that changed
    std::optional<Error> failure;                    // permanent: the stage must stop
    uint64_t bytes_written = 0;                      // in all
  };
  Events TakeEvents();

 private:
  void Loop();
  Status Step();                                // one round of the loop, outside the lock where it does I/O
  Status PrepareOne(ComputedSample sample);
  Status CommitReady();
  void LookUpstream();
  void LookDownstream();
  std::chrono::milliseconds PollInterval() const;

  Options options_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<ComputedSample> submitted_;        // guarded by mutex_
  Events events_;                               // guarded by mutex_
  size_t open_ = 0;                             // guarded by mutex_: submitted and not yet durable
  bool stop_ = false, look_ = false;            // guarded by mutex_
  std::map<uint32_t, Digest> upstream_known_;   // this thread only
  std::vector<ComputedSample> prepared_;        // this thread only: pack written, waiting for upstream
  std::vector<uint32_t> upstream_wanted_;       // this thread only
  Nonce consumer_;                              // this thread only: the latest that was reported
  uint64_t looked_ns_ = 0;                      // this thread only: when the ledger was last folded
  uint32_t idle_looks_ = 0;                     // this thread only: in a row, that brought nothing
  std::thread thread_;
};

}  // namespace holdfast
