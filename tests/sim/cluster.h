// SPDX-License-Identifier: Apache-2.0
//
// The simulated cluster: nodes around one file server, one job. What each process does is production code (JobDriver with its coordinator,
// Election, RestartLadder, StreamWriter, RunState, Todo, StageScheduler, CommitQueue, EvictUnit, SealRoot, RunMerge); what is written here
// is only what sockets, threads and wait(2) do for it elsewhere.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "daemon/core/cluster.h"
#include "daemon/core/restart_ladder.h"
#include "ledger/base/clock.h"
#include "ledger/records/records.h"
#include "tests/sim/model.h"
#include "tests/sim/nfs_client.h"
#include "tests/sim/tape.h"

namespace holdfast::sim {

class Cluster;

// The clock of one node: monotonic since its boot, and a wall clock that is anybody's guess.
class NodeClock final : public Clock {
 public:
  // `wall_skew_s` may change while it runs.
  NodeClock(World& world, Process& process, const int64_t& wall_skew_s, Tape* tape = nullptr) : world_(world), process_(process), wall_skew_s_(wall_skew_s), tape_(tape) {}
  uint64_t MonotonicNs() const override { return tape_ == nullptr ? world_.now() : tape_->Number('t', world_.now()); }
  uint64_t WallNs() const override {
    const uint64_t now = world_.now() + 1'700'000'000ull * kSecond + static_cast<uint64_t>(wall_skew_s_) * kSecond;
    return tape_ == nullptr ? now : tape_->Number('w', now);
  }
  void SleepMs(uint64_t ms) override { process_.Sleep(ms * kMs); }

 private:
  World& world_;
  Process& process_;
  const int64_t& wall_skew_s_;
  Tape* tape_;
};

// What one acknowledged commit promised.
struct Ack {
  std::string stream;
  uint64_t epoch = 0;
  RecordKey key;
};

struct CutMessage {               // over the data edge; unreliable
  uint32_t sample = 0;
  uint64_t tokens = 0;
  Bytes cut;
};

enum class TaskState : uint8_t { kRunning, kDone, kRefused, kGaveUp, kFenced, kNoSpace, kStopped };

// One child of a node's daemon: a stage worker or the merge.
struct SimTask {
  bool merge = false;
  StagePlan plan;
  std::string device;             // of a node that has several
  std::string reason = "start";
  std::shared_ptr<Process> process;
  TaskState state = TaskState::kRunning;
  RestartLadder ladder{WorkerSize{.window = 3, .threads = 1}};
  std::atomic<bool> stop{false};  // SIGTERM
  uint64_t commits = 0;           // of this life
  uint32_t tries = 0, tries_before = 0;   // TriesThatCount of this life and of the one before
  uint64_t retry_at = 0;
  Status ended;
  Nonce incarnation;              // of the worker, for the edge
  std::vector<CutMessage> mail;
  std::shared_ptr<Tape> tape;     // records it, or makes it a clone; null: neither
  std::string as_node;            // a clone believes that it is where its original was
};

struct NodeOptions {
  std::string name;
  uint64_t speed = 1, compute_ns = 500 * kMs, memory_bytes = 1ull << 40;
  int64_t wall_skew_s = 0;
  uint32_t layers_at_once = 0;    // of a stage that are resident; 0: all
  uint32_t cuts_kept = 1000;      // per mille of the boundaries between groups whose cuts go into packs; behind the others they stay in memory alone
  uint32_t devices = 1;           // stages on different ones run at the same time
  uint32_t recompute = 0;         // per mille: a worker does a committed sample once more, as another device would
};

// What dies with the machine, and its processes.
class SimNode {
 public:
  SimNode(Cluster& cluster, NodeOptions options, uint64_t seed);
  void PowerOn();
  void PowerOff();
  void RestartDaemon();           // kill -9 of daemon and children, and a new start
  void KillTask(size_t index);
  void LoseDaemon();              // kill -9 of the daemon alone; its children live on as nobody's, beside those of the next one
  void PauseTask(size_t index, uint64_t ns);
  void CloneTask(size_t index, SimNode& host);    // memory and all, to run beside the original on `host`
  void Pause(bool on);            // the machine: daemon and children
  bool on() const { return on_; }
  const std::string& name() const { return options.name; }

  Cluster& cluster;
  NodeOptions options;
  NfsClient kernel;
  std::map<std::string, NodeView> heard;             // beats that arrived, by node
  std::map<std::string, uint64_t> heard_at;
  std::vector<std::shared_ptr<SimTask>> tasks;
  std::vector<std::shared_ptr<SimTask>> orphans;
  bool draining = false, coordinates = false;
  uint64_t beats_heard = 0;
  bool net_out = true, net_in = true;                // one-way partitions
  std::string broken;                                // whoever computes on this device dies of it

 private:
  void StartDaemon();
  void KillAll();
  std::shared_ptr<Process> daemon_;
  bool on_ = false;
  uint64_t life_ = 0;             // of daemon_
  friend class Cluster;
};

struct ClusterOptions {
  uint64_t seed = 1;
  bool trace = false;
  JobShape shape;
  NfsServer::Export kind = NfsServer::Export::kSync;
  std::vector<NodeOptions> nodes;
  uint64_t suspect_ns = 12 * kSecond, tenure_ns = 6 * kSecond, gather_ns = 1 * kSecond;
  bool edges = true;              // cuts also travel between workers
  std::vector<uint32_t> poison = {};     // samples that end whoever computes them
  std::vector<uint32_t> infinite = {};   // samples whose amax is not finite, in the last layer
  bool clonable = false;          // workers are recorded (and use no edges)
  // Wraps what processes are handed, for mutants. Null: nothing.
  std::function<std::unique_ptr<FileSystem>(FileSystem&)> wrap;
};

class Cluster {
 public:
  explicit Cluster(ClusterOptions options);
  ~Cluster();

  World world;
  NfsServer server;
  const ClusterOptions options;
  std::map<std::string, std::unique_ptr<SimNode>> nodes;

  void Submit();                                     // writes source and job, as a user's command does
  bool Done() const { return done_; }
  const std::string& failed() const { return failed_; }
  void ForgetFailure() { failed_.clear(); }          // `jobctl resume`
  const std::vector<Ack>& acks() const { return acks_; }

  // ---- for processes ----
  void Acknowledged(Ack ack);
  void JobDone() { done_ = true; }
  void JobFailed(const std::string& why);
  // A reader was told that the ledger is damaged. That is a lie unless the server lost what it had promised.
  void Damaged(const std::string& who, const Error& error);
  void SendBeat(SimNode& from, const NodeView& view);
  void SendCut(SimNode& from, const std::string& endpoint, CutMessage message);
  struct NetTroubles {
    uint32_t loss = 0, duplicate = 0;                // per mille
    uint64_t delay_ns_max = 20 * kMs;
  } net;
  uint64_t messages = 0, claims = 0, deaths = 0, clones = 0, forked = 0;
  void Forked() { ++forked, world.faults.Add(Fault::kForked); }

 private:
  void Deliver(uint64_t count, const std::function<void()>& what);
  bool Lost();
  uint64_t Copies();
  std::vector<Ack> acks_;
  bool done_ = false;
  std::string failed_;
};

// Bodies of the processes.
void DaemonMain(Process& self, SimNode& node);
Status WorkerMain(Process& self, SimNode& node, SimTask& task);
Status MergeMain(Process& self, SimNode& node, SimTask& task);
void EndTask(SimNode& node, const std::shared_ptr<SimTask>& task);
void StartTask(SimNode& node, const std::shared_ptr<SimTask>& task);

// The file system of a process of `node`, mutant or not.
class ProcessFiles {
 public:
  ProcessFiles(SimNode& node, Process& process, Tape* tape = nullptr);
  FileSystem& fs() { return taped_ != nullptr ? *taped_ : wrapped_ != nullptr ? *wrapped_ : static_cast<FileSystem&>(plain_); }

 private:
  NfsFs plain_;
  std::unique_ptr<FileSystem> wrapped_, taped_;
};

}  // namespace holdfast::sim
