// SPDX-License-Identifier: Apache-2.0
//
// Fills a JobStatus from what there is: the queue, the job's own ledger, and what nodes say of its tasks. Beats only make it fresher; with
// none at all everything that was committed is still shown.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "jobctl/job_status.h"
#include "ledger/fold/run_state.h"

namespace holdfast {

// How much of a job is read: a finished one need not be folded to be listed.
enum class Depth : uint8_t { kQueueOnly, kLedger };

// Keeps each fold between calls, so that following a job reads what is new and no more.
class JobFold {
 public:
  explicit JobFold(RootSession& session) : session_(session) {}
  JobStatus Describe(const QueuedJob& job, const NodesSeen& nodes, Depth depth);

 private:
  struct Kept {
    std::unique_ptr<RunState> state;
    std::unique_ptr<StreamReader> job_stream;   // for the history of assignments, of which the fold keeps the latest
    std::vector<Move> moves;
  };
  Status Fold(const QueuedJob& job, const NodesSeen& nodes, JobStatus* out);
  Status FollowMoves(Kept* kept);
  RootSession& session_;
  std::map<std::string, Kept> folds_;           // by job id
};

}  // namespace holdfast
