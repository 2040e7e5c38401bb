// SPDX-License-Identifier: Apache-2.0
//
// The jobs of a root as one daemon follows them: which are active, who coordinates them (perhaps this daemon), how they end.
// One job is active at a time; where it only waits for nodes, or merges, the next one starts beside it.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "daemon/holdfastd/membership.h"
#include "daemon/holdfastd/node_log.h"
#include "daemon/holdfastd/task_runner.h"
#include "daemon/node/job_driver.h"
#include "ledger/cluster/queue.h"

namespace holdfast {

// What a coordinator is told of a node, from its beat; its tasks aside, which are told by job.
NodeView ViewOf(const Beat& b);

class JobBoard {
 public:
  struct Options {
    CoordinatorPolicy policy;
    bool notify = true;              // run --notify commands
  };
  JobBoard(FileSystem& fs, const Clock& clock, RootLayout layout, Nonce root, Membership& others, const NodeLog& log, Options options);
  // Folds queue and active jobs, elects, coordinates, ends what is done. Storage errors are for the caller to log and to try again.
  Status Look();
  std::vector<TaskRunner::Job> Active() const;      // in the order of the night
  bool Drained(const std::string& node) const { return queue_.drained().contains(node); }
  std::vector<std::string> Coordinates() const;     // ids of jobs that this daemon coordinates
  void ReleaseAll(const std::string& reason);

 private:
  struct Job {
    QueueRecord submit;
    uint32_t retries = 0;
    std::unique_ptr<JobDriver> driver;
    Election election;
    uint64_t claimed_ns = 0;
    std::string trouble;             // the last thing that was logged about it, to say it once
  };
  Status LookAt(Job* job);
  Status Elect(Job* job);
  Status Coordinate(Job* job);
  Status Finish(Job* job, const std::string& outcome, const std::string& detail);
  void Notify(const Job& job, const std::string& outcome, const std::string& detail) const;
  std::vector<NodeView> NodesFor(const Job& job) const;
  Job MakeJob(const QueuedJob& queued) const;
  void Trouble(Job* job, const Error& error);

  FileSystem& fs_;
  const Clock& clock_;
  RootLayout layout_;
  Membership& others_;
  const NodeLog& log_;
  Options options_;
  Queue queue_;
  std::map<std::string, Job> jobs_;  // by id: active ones
  std::vector<std::string> order_;
};

}  // namespace holdfast
