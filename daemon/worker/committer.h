// SPDX-License-Identifier: Apache-2.0
//
// The thread around a CommitQueue: commits overlap compute, and one thread owns the stream.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "daemon/worker/commit_queue.h"

namespace holdfast {

class Committer {
 public:
  // `queue`: state and writer are used by this thread alone from the constructor to Stop; on_event is not the caller's.
  // `notify` wakes the event loop.
  Committer(CommitQueue::Options queue, std::function<void()> notify);
  ~Committer();                                 // stops and joins

  void Submit(ComputedSample sample);
  void Submit(LayerRecord unit);
  void Announce(uint32_t sample);               // see CommitQueue
  void PollUpstreamSoon();                      // a hint arrived
  void Stop();

  // What happened since the last call.
  struct Events {
    std::vector<uint32_t> announced, committed, units;
    std::vector<std::pair<uint32_t, Cut>> upstream;  // cuts that the upstream stage has committed
    std::vector<uint32_t> redo;                      // were computed from a cut that upstream then committed otherwise
    std::vector<uint32_t> omitted;                   // are left out from now on
    std::vector<uint32_t> dropped;                   // were submitted, are left out, and will not be durable
    std::optional<Incarnation> consumer;             // who takes our cuts now, when that changed
    std::optional<Error> failure;                    // permanent: the stage must stop
    uint64_t bytes_written = 0;                      // in all
  };
  Events TakeEvents();

 private:
  void Loop();
  Status Step();                                // one round of the loop, outside the lock where it does I/O
  void OnEvent(CommitEvent event);
  void Note(SampleAnnounced e);
  void Note(SampleCommitted e);
  void Note(UpstreamCommitted e);
  void Note(SampleRedo e);
  void Note(SamplesOmitted e);
  void Note(SampleDropped e);
  void Note(ConsumerFound e);
  void Note(PacksWritten e);
  void Note(UnitCommitted e);

  const Clock& clock_;
  std::function<void()> notify_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<ComputedSample> submitted_;        // guarded by mutex_
  std::deque<LayerRecord> units_;               // guarded by mutex_
  std::deque<uint32_t> to_announce_;            // guarded by mutex_
  Events events_;                               // guarded by mutex_
  bool stop_ = false, look_ = false;            // guarded by mutex_
  CommitQueue queue_;                           // this thread only
  std::thread thread_;
};

}  // namespace holdfast
