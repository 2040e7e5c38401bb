// SPDX-License-Identifier: Apache-2.0
#include "daemon/holdfastd/job_board.h"

#include <algorithm>
#include <thread>

#include "calib/tokens/helper_process.h"
#include "daemon/node/process.h"

namespace holdfast {
namespace {

constexpr uint64_t kSecondNs = 1'000'000'000;
constexpr uint64_t kStepNs = 2 * kSecondNs;
constexpr uint64_t kHearNs = 15 * kSecondNs;       // beats of this age are still told to the coordinator, which judges by their count

TaskView ViewOf(const TaskBeat& t) {
  TaskView v;
  v.merge = t.stage == kMergeTask;
  v.stage = StageId(v.merge ? uint16_t{0} : t.stage);
  v.state = t.state;
  v.error_code = t.error_code;
  v.error = t.error;
  v.device = t.device;
  return v;
}

// What a task of another job takes, of its node and of its device.
void AddElsewhere(const TaskBeat& t, NodeView* node) {
  node->memory_elsewhere += t.planned_bytes;
  for (DeviceView& d : node->devices) {
    if (d.name == t.device) d.memory_elsewhere += t.planned_bytes;
  }
}

}  // namespace

NodeView ViewOf(const Beat& b) {
  NodeView v;
  v.name = b.node;
  v.incarnation = b.incarnation;
  v.count = b.count;
  v.draining = b.draining;
  v.paused = b.paused;
  v.storage_stalled = b.storage_stalled_ms > 0;
  v.memory_bytes = b.memory_bytes;
  v.host_bytes = b.host_bytes;
  v.speed = std::max<uint64_t>(1, b.speed);
  v.version = b.version;
  v.numerics = b.numerics;
  for (const DeviceBeat& d : b.devices) v.devices.push_back({d.name, d.numerics, d.memory_bytes, 0, std::max<uint64_t>(1, d.speed), d.host_bytes});
  return v;
}

JobBoard::JobBoard(FileSystem& fs, const Clock& clock, RootLayout layout, Nonce root, Membership& others, const NodeLog& log, Options options)
    : fs_(fs), clock_(clock), layout_(layout), others_(others), log_(log), options_(std::move(options)), queue_(fs, layout, root) {}

JobBoard::Job JobBoard::MakeJob(const QueuedJob& queued) const {
  const std::string id = queued.submit.job;
  JobDriver::Options o;
  o.self = others_.self();
  o.policy = options_.policy;
  o.policy.job = id;
  o.policy.gather_ns = std::max(o.policy.gather_ns, others_.Pace().gather_ns);
  o.stages_given = !queued.submit.shard_layers.empty();
  o.on = queued.submit.on;
  o.reproducible = queued.submit.reproducible;
  o.on_say = [this, id](const std::string& text) { log_.Say(id, text); };
  return {queued.submit, queued.retries, std::make_unique<JobDriver>(fs_, clock_, RunLayout(layout_.JobDir(id)), o),
          Election(others_.self().node, others_.Pace().silence_ns, kStepNs), 0, {}};
}

Status JobBoard::Look() {
  HOLDFAST_TRY(queue_.Refresh());
  order_.clear();
  bool next_too = true;
  for (const QueuedJob* queued : queue_.Runnable()) {
    if (!next_too) break;
    const std::string& id = queued->submit.job;
    auto it = jobs_.find(id);
    if (it == jobs_.end()) it = jobs_.emplace(id, MakeJob(*queued)).first;
    Job& job = it->second;
    job.retries = queued->retries;
    order_.push_back(id);
    const Status looked = LookAt(&job);
    if (!looked.ok()) Trouble(&job, looked.error());
    // A job that waits for nodes, merges, or cannot be read does not hold up the next one.
    const RunState& state = job.driver->state();
    next_too = !looked.ok() || (state.has_plan() && (job.driver->Blocked() || job.driver->Merging()));
  }
  for (auto it = jobs_.begin(); it != jobs_.end();) {
    const bool active = std::find(order_.begin(), order_.end(), it->first) != order_.end();
    if (!active && it->second.driver->coordinates()) (void)it->second.driver->Release("queue");
    it = active ? std::next(it) : jobs_.erase(it);
  }
  return OkStatus();
}

void JobBoard::Trouble(Job* job, const Error& error) {
  if (job->trouble == error.message) return;
  job->trouble = error.message;
  log_.Say(job->submit.job, error.message);
}

Status JobBoard::LookAt(Job* job) {
  // The coordinator, and whoever would be the next one, keep the whole job in mind; the others what they work on themselves.
  const auto scope = job->election.IsDeputy(others_.listened_ns()) ? JobDriver::Scope::kAll : JobDriver::Scope::kOwn;
  const auto news = job->driver->Refresh(scope);
  if (news.code() == ErrorCode::kCorrupt || news.code() == ErrorCode::kUnsupported || news.code() == ErrorCode::kNotFound) {
    return Finish(job, "failed", news.error().message);   // its ledger cannot be used as it is: somebody has to look
  }
  if (!news.ok()) return news.error();
  if (!job->driver->coordinates()) HOLDFAST_TRY(Elect(job));
  if (job->driver->coordinates()) return Coordinate(job);
  return OkStatus();
}

Status JobBoard::Elect(Job* job) {
  const uint64_t now = others_.listened_ns();   // the look at the job may have taken longer than the silence that counts
  const uint64_t silence_ns = others_.Pace().silence_ns;
  job->election.set_silence(silence_ns);
  for (const Beat* b : others_.Live(silence_ns)) {
    if (b->storage_stalled_ms > 0) job->election.OnStalledBeat(b->node, b->incarnation, b->count, now);
    else job->election.OnBeat(b->node, b->incarnation, b->count, b->draining, now);
  }
  const RunState& state = job->driver->state();
  const StreamState& stream = state.job_stream();
  const Incarnation* owner = state.IncarnationOf(stream.claim.incarnation);
  const bool dead = owner != nullptr && ProbeIncarnation(*owner) == Liveness::kDead;
  job->election.OnJob(stream.claim.node, stream.claim.incarnation, stream.released || dead, stream.next_seq, now);
  if (!job->election.ShouldClaim(now)) return OkStatus();
  const Nonce expected = stream.claim.incarnation;
  const auto still = [&](const Claim& current) -> Status {
    if (current.incarnation == expected) return OkStatus();
    return Fenced("node " + current.node + " was elected a moment ago");
  };
  const Status claimed = job->driver->Claim(stream.released ? "coordinate" : "coordinator " + stream.claim.node + " is silent", still);
  if (claimed.code() == ErrorCode::kFenced) return OkStatus();
  HOLDFAST_TRY(claimed);
  job->claimed_ns = clock_.MonotonicNs();
  log_.Say(job->submit.job, "this node coordinates job " + job->submit.name + " (epoch " + std::to_string(job->driver->epoch()) + ")");
  return OkStatus();
}

// What the coordinator is told of the nodes: those that move. What they say of this job's tasks, and how much memory others' take.
std::vector<NodeView> JobBoard::NodesFor(const Job& job) const {
  std::vector<NodeView> views;
  const bool early = clock_.MonotonicNs() - job.claimed_ns < others_.Pace().stale_words_ns;
  for (const Beat* b : others_.Live(kHearNs)) {
    NodeView v = ViewOf(*b);
    v.draining |= queue_.drained().contains(b->node);
    for (const TaskBeat& t : b->tasks) {
      if (t.job != job.submit.job) AddElsewhere(t, &v);
      else if (!early || t.state == "running") v.tasks.push_back(ViewOf(t));
    }
    views.push_back(std::move(v));
  }
  return views;
}

Status JobBoard::Coordinate(Job* job) {
  if (job->driver->Done()) {
    const std::string detail = "finished: " + job->driver->state().job().out;
    return Finish(job, "done", detail);
  }
  const auto& before = job->driver->state().assignment();
  const uint32_t number = before ? before->number + 1 : 0;
  const auto failed = job->driver->Coordinate(NodesFor(*job));
  if (failed.code() == ErrorCode::kFenced) {
    log_.Say(job->submit.job, failed.error().message + "; another node coordinates this job now");
    return OkStatus();
  }
  HOLDFAST_TRY(failed.ok() ? OkStatus() : Status(failed.error()));
  const auto& after = job->driver->state().assignment();
  if (after && after->number + 1 != number) others_.Hint(job->submit.job);
  return *failed ? Finish(job, "failed", **failed) : OkStatus();
}

// The end of a job is said once in the queue; whoever says it also runs the user's command.
Status JobBoard::Finish(Job* job, const std::string& outcome, const std::string& detail) {
  QueueRecord record;
  record.op = QueueRecord::Op::kFinish;
  record.job = job->submit.job;
  record.outcome = outcome;
  record.detail = detail;
  record.by = others_.self().node;
  const std::string id = job->submit.job;
  const Status said = queue_.Append(clock_, others_.self(), record, [&](const Queue& queue) -> Status {
    const auto now = queue.Find(id);
    if (now.ok() && (*now)->state == QueuedJob::State::kQueued && (*now)->retries == job->retries) return OkStatus();
    return Error{ErrorCode::kAlreadyExists, "job " + id + " has ended already"};
  });
  if (said.code() == ErrorCode::kAlreadyExists) return OkStatus();
  HOLDFAST_TRY(said);
  log_.Say(id, "job " + job->submit.name + " " + outcome + ": " + detail);
  (void)job->driver->Release(outcome);
  if (outcome == "done") (void)fs_.RemoveTree(RunLayout(layout_.JobDir(id)).TmpDir());   // nothing in it can be wanted any more
  others_.Hint("");
  Notify(*job, outcome, detail);
  return OkStatus();
}

// The user's own command, as given to `jobctl submit`, with a summary on its standard input. It may take its time: nobody waits for it.
void JobBoard::Notify(const Job& job, const std::string& outcome, const std::string& detail) const {
  if (job.submit.notify.empty() || !options_.notify) return;
  std::string summary = "job " + job.submit.name + " (" + job.submit.job + "): " + outcome + "\n" + detail + "\n\nsource  " + job.submit.source +
                        "\noutput  " + job.submit.out + "\nroot    " + layout_.root() + "\n";
  const RunState& state = job.driver->state();
  if (state.done()) summary += "report  " + CanonicalJson(state.done()->report) + "\n";
  summary += "\nmore: jobctl --root " + layout_.root() + " status " + job.submit.name + "\n";
  std::thread([command = job.submit.notify, summary = std::move(summary)] {
    const auto ran = RunProcess({"/bin/sh", "-c", command}, summary, 1 << 20);
    if (!ran.ok() || ran->exit_code != 0) std::fprintf(stderr, "--notify command failed: %s\n", ran.ok() ? ran->err.c_str() : ran.error().message.c_str());
  }).detach();
}

std::vector<TaskRunner::Job> JobBoard::Active() const {
  std::vector<TaskRunner::Job> active;
  for (const std::string& id : order_) {
    const auto it = jobs_.find(id);
    if (it != jobs_.end() && it->second.driver->state().has_plan()) active.push_back({id, it->second.driver.get(), it->second.retries});
  }
  return active;
}

std::vector<std::string> JobBoard::Coordinates() const {
  std::vector<std::string> ids;
  for (const auto& [id, job] : jobs_) {
    if (job.driver->coordinates()) ids.push_back(id);
  }
  return ids;
}

void JobBoard::ReleaseAll(const std::string& reason) {
  for (auto& [id, job] : jobs_) (void)job.driver->Release(reason);
}

}  // namespace holdfast
