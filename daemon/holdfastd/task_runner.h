// SPDX-License-Identifier: Apache-2.0
//
// The tasks of this node: what the assignments give it, in order of jobs and layers, as much as each of its devices holds at a time.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "daemon/core/pressure_gate.h"
#include "daemon/holdfastd/node_log.h"
#include "daemon/node/device.h"
#include "daemon/node/job_driver.h"
#include "daemon/node/supervisor.h"
#include "daemon/wire/beat.h"

namespace holdfast {

class TaskRunner {
 public:
  struct Seat {
    Device device;
    uint64_t memory_bytes = 0;       // what all tasks on it together may plan with
  };
  struct Options {
    std::vector<Seat> seats;         // at least one. Of several, an assignment names the device; tasks on different ones run at the same time
    uint32_t threads = 1;            // of each stage
    std::string node;
  };
  TaskRunner(FileSystem& fs, const Clock& clock, Supervisor& supervisor, const NodeLog& log, Options options)
      : fs_(fs), clock_(clock), supervisor_(supervisor), log_(log), options_(std::move(options)) {}

  struct Job {
    std::string id;
    JobDriver* driver = nullptr;
    uint32_t retries = 0;            // of the queue: a retry forgets what failed
  };
  // Starts, stops and forgets, until this node does what the assignments say. Jobs in order of the night; `intake` = false: nothing new is
  // started and everything is drained (the node is being drained).
  void Reconcile(const std::vector<Job>& jobs, bool intake);
  void Watch();                      // memory pressure: pauses intake before the machine wedges
  void Fill(Beat* beat) const;

 private:
  struct Wish {                      // a task that the assignments name us for
    const Job* job;
    TaskKey key;
    StagePlan plan;
    uint64_t minimum_bytes = 0;
    const Seat* seat = nullptr;      // null: on a device that this life of the node does not have; it waits for a better assignment
  };
  struct Setback {                   // why a task is not running although it should
    std::string state, error_code, error;
    uint64_t until_ns = 0;           // when to try again; UINT64_MAX: when the assignment or the queue says so
    uint32_t assignment = 0, retries = 0;
  };
  std::vector<Wish> WishesOf(const Job& job);
  std::string Objection(const Job& job) const;       // "" or why this node cannot work on it at all
  void StopOthers(const std::vector<Wish>& wanted);
  void Learn(const std::vector<Wish>& wanted);       // from tasks that ended
  void Launch(const Wish& wish, uint64_t reserve);
  void ShrinkNeighbour(const Seat& seat);
  const Seat* FindSeat(const std::string& device) const;
  WorkerSize SizeFor(const MemoryPlan& memory, const Seat& seat, uint32_t samples, uint64_t room, Neighbours neighbours) const;
  uint64_t PlannedOn(const Seat& seat) const;
  TaskBeat BeatOf(const Wish& wish) const;

  FileSystem& fs_;
  const Clock& clock_;
  Supervisor& supervisor_;
  const NodeLog& log_;
  Options options_;
  PressureGate gate_;
  bool paused_ = false;
  uint64_t watched_ns_ = 0;
  std::map<TaskKey, Setback> setbacks_;
  std::vector<TaskBeat> beats_;      // of the latest Reconcile; what runs is read off the supervisor
  std::map<TaskKey, std::string> job_ids_;
  std::map<TaskKey, std::string> ended_;   // why a life that this daemon saw ended may have left its stream claimed; of the claim that follows
};

}  // namespace holdfast
