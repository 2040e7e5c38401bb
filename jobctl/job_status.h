// SPDX-License-Identifier: Apache-2.0
//
// What `jobctl status` knows of a root: values without I/O, their rules (state, rate, what to type next, the summary of a night), and
// their JSON (docs/status-json.md, schema 2). Who fills them in: job_fold.h. How they look to people: status_text.h.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "jobctl/node_watch.h"
#include "ledger/base/json.h"
#include "ledger/cluster/queue.h"

namespace holdfast {

inline constexpr int kRootStatusSchema = 2;

struct ClaimNote {                       // one life of a stage's worker
  uint64_t epoch = 0, pid = 0;
  std::string reason, node;
};

struct StageStatus {
  uint16_t stage = 0;
  uint32_t first_layer = 0, last_layer = 0;      // [first, last)
  std::string node, note;                        // of the latest assignment; node "" = waits, the note says for what
  std::string device;                            // of that node: what its worker says that it computes on, or is to; "" = not known
  std::string phase = "waiting";                 // waiting, start, load, calibrate, evict, seal, done
  std::string task;                              // TaskBeat::state; "" = nobody says
  std::string last_death, error;
  bool node_alive = false;
  uint64_t samples_done = 0, samples_total = 0, units_done = 0, units_total = 0, bytes_evicted = 0;
  uint64_t rss_bytes = 0, last_commit_wall_ns = 0;
  uint32_t window = 0, threads = 0;
  int64_t pid = 0;
  std::vector<ClaimNote> claims;                 // the first is the start, each further one a restart
  std::optional<uint64_t> eta_seconds;           // of this phase, from the latest commits
};

struct MergeStatus {
  std::string node;                              // "" until every stage is sealed
  uint64_t files_written = 0, files_total = 0, bytes_done = 0, bytes_total = 0;
  uint64_t lives = 0;                            // claims so far
  std::string reason;                            // of the latest claim
  bool published = false;
  bool node_alive = false;
};

struct Move {                            // one assignment: the first says "start", others why work was given out anew
  uint32_t number = 0;
  uint64_t wall_ns = 0;
  std::string why, merge_node;
};

struct NodeShare {                       // what counts of what one node did, in one numerics class
  std::string node, numerics;
  uint64_t samples = 0, units = 0;
};

struct JobStatus {
  std::string id, name, source, out;
  std::string state;                             // queued, waiting, running, merging, done, failed, cancelled, refused
  std::string detail;                            // why it is held, waits, failed or was refused
  std::string recipe, numerics;
  std::vector<std::string> after;                // names
  std::vector<uint32_t> shard_layers;
  std::vector<std::string> on;
  int priority = 0;
  uint32_t retries = 0, samples = 0, seq_len = 0, skip_samples = 0;
  Json omitted = Json::array();                  // samples left out: [{sample, stage, why}]
  uint64_t submitted_wall_ns = 0, ended_wall_ns = 0;
  bool folded = false;                           // its ledger was read: what follows is known
  std::vector<Move> moves;                       // every assignment so far
  std::vector<StageStatus> stages;               // by layer
  MergeStatus merge;
  std::vector<NodeShare> shares;
  std::map<std::string, uint64_t> restarts;      // by reason, over all stages and plans
  std::optional<uint64_t> eta_seconds;           // of the phase that it is in
  uint32_t stale_records = 0, nondeterminism = 0;
  Json report;                                   // of a finished job
  std::string next;                              // what to type, when somebody has to or may
};

struct RootStatus {
  std::string root;
  NodesSeen nodes;
  std::vector<JobStatus> jobs;                   // in order of submission
};

// ---- rules ----

// Of the stages and the merge of a job that the queue holds and that may run.
std::string RunningState(const JobStatus& job);
// The phase that a job as a whole is in: "calibrate" while any stage does, else that of the stage furthest behind; "merge" behind them.
std::string JobPhase(const JobStatus& job);
std::string NextCommand(const JobStatus& job, const std::string& root, bool daemon_alive);
// The ETA of the job's phase: that of its slowest stage; none while a stage that has not passed the phase has none.
std::optional<uint64_t> JobEta(const JobStatus& job);

struct CommitPoint {                             // one slot of a stage's stream
  uint32_t seq = 0;
  uint64_t epoch = 0, wall_ns = 0;
};
// Seconds until `remaining` further slots, at the pace between two slots of one owner (its wall clock with itself). nullopt: cannot be told.
std::optional<uint64_t> SecondsLeft(const CommitPoint& earlier, const CommitPoint& later, uint64_t remaining);

struct NightSummary {
  std::map<std::string, uint32_t> states;        // number of jobs by state
  std::vector<std::pair<std::string, std::string>> failed;   // name, detail: failed and refused, in order of submission
  std::map<std::string, uint64_t> restarts;      // by reason
  uint64_t elapsed_seconds = 0;                  // first submission to last end (or `now` while one is under way)
};
NightSummary Summarize(const RootStatus& status, uint64_t now_wall_ns);

Json ToJson(const JobStatus& job);
Json ToJson(const NodeStatus& node);
std::string CommitText(const NodesSeen& nodes);   // "link" or "rename"
Json ToJson(const RootStatus& status, const NightSummary& summary);

}  // namespace holdfast
