// SPDX-License-Identifier: Apache-2.0
//
// A node's supervisor: starts one child per task (holdfast-worker for a stage, holdfast-merge for the merge), listens to them, and when one
// ends decides by its wait status and the kernel's OOM counters what to do (restart_ladder.h). Holds no torch and no results: everything
// that counts is in the ledger. The same in `jobctl run` and in holdfastd. Belongs to the main thread.
#pragma once

#include <compare>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "daemon/core/restart_ladder.h"
#include "daemon/node/worker_args.h"
#include "ledger/base/clock.h"
#include "ledger/records/records.h"

namespace holdfast {

struct StageProgress {
  StageId stage;
  uint32_t first_layer = 0, last_layer = 0;
  std::string phase = "waiting";     // waiting, start, load, calibrate, evict, seal, merge, done
  uint64_t samples_done = 0, samples_total = 0;
  uint64_t units_done = 0, units_total = 0;   // merge: files
  uint64_t bytes_read = 0, bytes_written = 0, bytes_total = 0, rss_bytes = 0, rss_peak_bytes = 0;
  uint64_t cuts_received = 0, cuts_from_packs = 0, chunks_dropped = 0;
  uint64_t commits = 0;              // results that this life made durable
  uint32_t restarts = 0, out_of_memory = 0;
  std::string last_death;            // "out of memory", "signal 9", "exit 1", or empty
  WorkerSize size;
  int64_t pid = 0;                   // 0: not running
};

struct TaskKey {
  std::string run_dir;
  bool merge = false;
  StageId stage;                     // of no meaning to a merge
  friend auto operator<=>(const TaskKey&, const TaskKey&) = default;
};

struct TaskSpec {
  TaskKey key;
  StagePlan plan;
  uint64_t samples_total = 0, samples_done = 0;
  std::vector<uint32_t> omitted;     // samples left out as of its start: when others are, a stage that was done is not
  WorkerSize size;
  uint64_t planned_bytes = 0;        // of memory, for whoever adds them up
  std::string device;
  std::string reason;                // of the first claim
  std::string log;                   // file for the child's own words; "" = ours
  std::map<std::string, uint64_t> phase_ms;   // merge: for the report
  uint64_t rss_peak_bytes = 0;
};

enum class TaskState : uint8_t {
  kRunning,
  kDone,         // exit 0: sealed, or merged
  kRefused,      // exit 2: its input is bad
  kGaveUp,       // the ladder ended, or the program cannot be started
  kFenced,       // exit 75: somebody else owns the stream now
  kNoSpace,      // exit 75: the directory is full
  kStopped,      // we asked it to stop and it did
};

struct Task {
  TaskSpec spec;
  TaskState state = TaskState::kRunning;
  bool stopping = false;
  StageProgress view;
  std::optional<Error> error;        // of kRefused, kGaveUp, kFenced, kNoSpace
};

class Supervisor {
 public:
  struct Options {
    std::string bin_dir;             // of holdfast-worker and holdfast-merge
    std::string node;
    Nonce incarnation;
    std::string edge_listen, keys_dir;      // as in WorkerArgs
    bool renaming = false;
    uint64_t last_words_ms = kLastWordsMs;   // how long after its end the reason of a child may still be on its way
    uint64_t drain_ms_max = 28000;   // how long a child may take to finish its commit after it was asked to stop
    std::function<void(const Task&, const std::string& text)> on_event;   // one line per state transition (a death, a restart)
  };
  static Result<std::unique_ptr<Supervisor>> Make(const Clock& clock, Options options);
  ~Supervisor();                     // kills what is left

  Status Start(const TaskSpec& spec);         // kAlreadyExists while a child of that key runs; a task that ended is started anew
  void Stop(const TaskKey& key);              // asks; the state follows
  void Pause(bool on);                        // all workers: no new samples for now
  void Forget(const TaskKey& key);            // of a task that ended
  // Takes reports, reaps, restarts, kills what outstays its drain. Waits up to `timeout_ms` for something to happen, also on `event_fd`.
  // true: some task changed its state.
  bool Poll(int timeout_ms, int event_fd = -1);
  // Asks all to stop and waits; those that outstay the drain are killed (the ledger does not mind).
  void StopAll();
  std::vector<const Task*> tasks() const;      // in order of their keys; valid until the next call that is not const
  const Task* Find(const TaskKey& key) const;  // null: unknown or forgotten
  bool AnyRunning() const;
  std::vector<StageProgress> Views() const;   // of stages, in order of layers

 private:
  struct Impl;
  explicit Supervisor(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace holdfast
