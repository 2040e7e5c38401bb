// SPDX-License-Identifier: Apache-2.0
//
// One life of one stage: claim, load, calibrate, evict, seal. Whatever the ledger already holds is not done again; there is no other
// code for recovery. The event loop (sockets, scheduler) runs on the calling thread, compute on a pool, commits on their own thread.
#pragma once

#include <atomic>
#include <memory>

#include "daemon/node/worker_args.h"
#include "ledger/base/clock.h"
#include "ledger/fold/run_state.h"

namespace holdfast {

struct StopFlag {                 // raised by a signal handler
  std::atomic<int> signal{0};     // which one
  std::atomic<bool> raised{false};
};

class StageWorker {
 public:
  StageWorker(FileSystem& fs, const Clock& clock, WorkerArgs args, const StopFlag& stop);
  ~StageWorker();
  // OK: the stage is sealed. kStopped: drained and released, resumable. Others as they come; the last words are sent to the supervisor.
  Status Run();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace holdfast
