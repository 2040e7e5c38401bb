// SPDX-License-Identifier: Apache-2.0
//
// A node's supervisor: starts one holdfast-worker per unfinished stage, listens to them, and when one ends decides by its wait status
// and the kernel's OOM counters what to do (restart_ladder.h). Holds no torch and no results: everything that counts is in the ledger.
// Embedded in `jobctl run`, later in holdfastd. Runs on the main thread.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "daemon/core/restart_ladder.h"
#include "ledger/base/clock.h"
#include "ledger/fold/run_state.h"

namespace holdfast {

struct StageProgress {
  StageId stage;
  uint32_t first_layer = 0, last_layer = 0;
  std::string phase = "waiting";     // waiting, start, load, calibrate, evict, seal, done
  uint64_t samples_done = 0, samples_total = 0;
  uint64_t units_done = 0, units_total = 0;
  uint64_t bytes_read = 0, bytes_written = 0, rss_bytes = 0, rss_peak_bytes = 0;
  uint64_t cuts_received = 0, cuts_from_packs = 0, chunks_dropped = 0;
  uint32_t restarts = 0, out_of_memory = 0;
  std::string last_death;            // "out of memory", "signal 9", "exit 1", or empty
  WorkerSize size;
  int64_t pid = 0;                   // 0: not running
};

struct SupervisorOptions {
  std::string worker_binary;
  std::string node;
  std::string device;                // as for LayerRangeRunner
  std::string reason;                // of the first claims: "start" or "resume"
  Nonce incarnation;
  std::map<StageId, WorkerSize> sizes;
  const std::atomic<int>* stop_signal = nullptr;   // a signal number when asked to stop
  uint64_t drain_ms_max = 28000;                   // how long workers may take to finish their commit after a stop
  std::function<void(const std::vector<StageProgress>&)> on_progress;
  std::function<void(const std::string&)> on_event;   // one line per state transition (a death, a restart)
  std::function<Status()> on_tick;                    // about once a second; an error ends the run with it (a lost job stream)
};

// Works until every stage of the latest plan is sealed. Errors: kStopped (signal; workers have drained), kFenced, kResourceExhausted
// (no space), kInvalidArgument (a worker refused its input), kInternal (a stage gave up, with advice).
// No worker is left running when it returns, whatever the outcome.
Result<std::vector<StageProgress>> RunStages(RunState& state, const Clock& clock, const SupervisorOptions& options);

}  // namespace holdfast
