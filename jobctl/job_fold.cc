// SPDX-License-Identifier: Apache-2.0
#include "jobctl/job_fold.h"

#include <algorithm>

#include "daemon/node/job_report.h"
#include "export/shard/output_plan.h"
#include "ledger/fold/seal.h"

namespace holdfast {
namespace {

constexpr uint32_t kRateSlots = 24;      // the pace is that of the latest commits
constexpr uint32_t kPriorityNeutral = 1000;

std::string StateName(QueuedJob::State state) {
  switch (state) {
    case QueuedJob::State::kQueued: return "queued";
    case QueuedJob::State::kDone: return "done";
    case QueuedJob::State::kFailed: return "failed";
    case QueuedJob::State::kCancelled: return "cancelled";
    case QueuedJob::State::kRefused: return "refused";
  }
  return "?";
}

JobStatus FromQueue(const QueuedJob& job, const Queue& queue) {
  const QueueRecord& q = job.submit;
  JobStatus out;
  out.id = q.job;
  out.name = q.name;
  out.source = q.source;
  out.out = q.out;
  out.state = StateName(job.state);
  out.detail = job.detail;
  for (const std::string& id : q.after) {
    const auto before = queue.Find(id);
    out.after.push_back(before.ok() ? (*before)->submit.name : id);
  }
  out.shard_layers = q.shard_layers;
  out.on = q.on;
  out.priority = static_cast<int>(q.priority) - static_cast<int>(kPriorityNeutral);
  out.retries = job.retries;
  out.submitted_wall_ns = job.submitted_wall_ns;
  out.ended_wall_ns = job.ended_wall_ns;
  return out;
}

void CountResults(const RunState& state, const StagePlan& plan, StageStatus* out) {
  out->samples_done = state.SamplesThrough(plan.first_layer, plan.last_layer);
  out->samples_total = state.samples_in();
  const std::vector<uint32_t> units = UnitsOf(state.plan(), plan);
  out->units_total = units.size();
  for (const uint32_t u : units) {
    const LayerRecord* e = state.Layer(u);
    out->units_done += e != nullptr;
    for (size_t i = 0; e != nullptr && i < e->packs.size(); ++i) out->bytes_evicted += e->packs[i].file_size;
  }
}

std::string PhaseOf(const StageState* state, const StageStatus& s) {
  if (state != nullptr && state->seal) return "done";
  if (s.samples_total > 0 && s.samples_done == s.samples_total) return s.units_done == s.units_total ? "seal" : "evict";
  if (state == nullptr || state->claims.empty()) return s.samples_done > 0 ? "calibrate" : "waiting";
  return state->phase ? state->phase->phase : "start";
}

// What the node that works on it says: fresher than the ledger by the commits in flight.
void AddBeat(const TaskBeat& t, StageStatus* s) {
  s->task = t.state;
  s->last_death = t.last_death;
  s->error = t.error;
  s->rss_bytes = t.rss_bytes;
  s->window = t.window;
  s->threads = t.threads;
  s->pid = t.pid;
  if (t.state != "running") return;
  if (s->phase != "done" && !t.phase.empty()) s->phase = t.phase;
  s->samples_done = std::min(s->samples_total, std::max(s->samples_done, t.samples_done));
  s->units_done = std::min(s->units_total, std::max(s->units_done, t.units_done));
}

const TaskBeat* TaskOf(const NodesSeen& nodes, const std::string& node, const std::string& job, uint16_t stage) {
  const NodeStatus* n = nodes.Find(node);
  if (n == nullptr || !n->beat || n->life != NodeLife::kAlive) return nullptr;
  for (const TaskBeat& t : n->beat->tasks) {
    if (t.job == job && t.stage == stage) return &t;
  }
  return nullptr;
}

// Two slots of the stage's stream tell its pace, whoever asks and whenever.
std::optional<uint64_t> PaceOf(RootSession& session, const RunState& state, const StageState& stage, uint64_t remaining) {
  const uint32_t next = stage.stream.next_seq;
  if (next < 3 || remaining == 0) return std::nullopt;
  const std::string stream = RunLayout::StageStream(stage.stage);
  const auto point = [&](uint32_t seq) -> std::optional<CommitPoint> {
    Digest prev;
    const auto slot = ReadSlot(session.fs(), state.layout(), stream, seq, state.job().uuid, &prev);
    if (!slot.ok() || slot->records.empty()) return std::nullopt;
    return CommitPoint{seq, slot->epoch, slot->records.front().wall_ns};
  };
  const auto last = point(next - 1);
  for (uint32_t back = std::min(kRateSlots, next - 1); last && back >= 2; back /= 2) {
    const auto first = point(next - 1 - back);
    if (first && first->epoch == last->epoch) return SecondsLeft(*first, *last, remaining);
  }
  return std::nullopt;
}

// As its latest worker said when it claimed the stage.
std::string DeviceOf(const RunState& state, const StageState& stage) {
  const Incarnation* worker = stage.claims.empty() ? nullptr : state.IncarnationOf(stage.claims.back().incarnation);
  return worker == nullptr ? "" : worker->device;
}

StageStatus DescribeStage(RootSession& session, const RunState& state, const StagePlan& plan, const std::string& job, const NodesSeen& nodes) {
  StageStatus s;
  s.stage = plan.stage.value;
  s.first_layer = plan.first_layer;
  s.last_layer = plan.last_layer;
  const auto it = state.stages().find(plan.stage);
  const StageState* stage = it == state.stages().end() ? nullptr : &it->second;
  CountResults(state, plan, &s);
  s.phase = PhaseOf(stage, s);
  for (size_t i = 0; stage != nullptr && i < stage->claims.size(); ++i) {
    const Claim& c = stage->claims[i];
    s.claims.push_back({c.epoch, c.pid, c.reason, c.node});
  }
  if (stage != nullptr) s.last_commit_wall_ns = stage->last_wall_ns;
  if (!s.claims.empty()) {
    s.node = s.claims.back().node;
    s.device = DeviceOf(state, *stage);
  }
  if (s.phase == "done") return s;
  if (state.assignment()) {
    for (const Assignment::Entry& e : state.assignment()->stages) {
      if (e.stage != plan.stage) continue;
      if (s.node != e.node || !e.device.empty()) s.device = e.device;
      s.node = e.node;
      s.note = e.note;
    }
  }
  const NodeStatus* node = nodes.Find(s.node);
  s.node_alive = node != nullptr && node->life == NodeLife::kAlive;
  if (const TaskBeat* t = TaskOf(nodes, s.node, job, s.stage)) AddBeat(*t, &s);
  if (!s.node_alive || stage == nullptr) return s;
  if (s.phase == "calibrate") s.eta_seconds = PaceOf(session, state, *stage, s.samples_total - s.samples_done);
  if (s.phase == "evict") s.eta_seconds = PaceOf(session, state, *stage, s.units_total - s.units_done);
  return s;
}

MergeStatus DescribeMerge(const RunState& state, const std::string& job, const NodesSeen& nodes) {
  MergeStatus m;
  const OutputPlan output = PlanOutput(state.plan(), state.job().shard_bytes);
  m.files_total = output.files.size();
  m.bytes_total = output.total_size;
  m.files_written = state.merge_written().size();
  for (const auto& [file, record] : state.merge_written()) m.bytes_done += record.size;
  m.published = state.published().has_value();
  m.lives = state.merge_stream().epoch;
  m.reason = state.merge_stream().claim.reason;
  if (state.assignment()) m.node = state.assignment()->merge_node;
  const NodeStatus* node = nodes.Find(m.node);
  m.node_alive = node != nullptr && node->life == NodeLife::kAlive;
  if (const TaskBeat* t = TaskOf(nodes, m.node, job, kMergeTask); t != nullptr && t->bytes_total > 0) {
    m.bytes_done = std::max(m.bytes_done, t->bytes_written);
    m.bytes_total = t->bytes_total;
  }
  m.bytes_done = std::min(m.bytes_done, m.bytes_total);
  return m;
}

// Why a job that may run does not, in the words of what stands in its way.
std::string WaitReason(const JobStatus& job, const NodesSeen& nodes) {
  if (nodes.alive() == 0) return nodes.nodes.empty() ? "no daemon was ever here" : "no daemon is alive";
  for (const StageStatus& s : job.stages) {
    if (s.phase == "done") continue;
    const std::string which = "stage " + std::to_string(s.stage) + ": ";
    if (!s.error.empty()) return which + s.error;
    if (s.node.empty() && !s.note.empty()) return which + s.note;
    if (!s.node.empty() && !s.node_alive) return which + "its node " + s.node + " is silent; another one takes over soon";
  }
  return "for nodes";
}

// Of a job that may run and was not begun.
std::string TurnOf(const QueuedJob& job, const Queue& queue) {
  const std::vector<const QueuedJob*> line = queue.Runnable();
  for (size_t i = 0; i + 1 < line.size(); ++i) {
    if (line[i + 1]->submit.job == job.submit.job) return "waits for its turn, behind " + line[i]->submit.name;
  }
  return "is next: a daemon takes it in a moment";
}

}  // namespace

Status JobFold::FollowMoves(Kept* kept) {
  if (kept->job_stream == nullptr) {
    kept->job_stream = std::make_unique<StreamReader>(session_.fs(), kept->state->layout(), RunLayout::JobStream(), kept->state->job().uuid);
  }
  return kept->job_stream->Poll([&](const Record& r, const Slot&) -> Status {
    if (r.key.cls != RecordClass::kAssignment) return OkStatus();
    const auto json = ControlPayload(r);
    const auto a = json.ok() ? Assignment::FromJson(*json) : Result<Assignment>(json.error());
    if (a.ok()) kept->moves.push_back({a->number, r.wall_ns, a->why, a->merge_node});
    return OkStatus();
  });
}

Status JobFold::Fold(const QueuedJob& job, const NodesSeen& nodes, JobStatus* out) {
  Kept& kept = folds_[job.submit.job];
  std::unique_ptr<RunState>& state = kept.state;
  if (state == nullptr) state = std::make_unique<RunState>(session_.fs(), RunLayout(session_.layout().JobDir(job.submit.job)));
  HOLDFAST_TRY(state->Refresh());
  HOLDFAST_TRY(FollowMoves(&kept));
  out->moves = kept.moves;
  const JobSpec& spec = state->job();
  out->folded = true;
  out->recipe = spec.recipe;
  out->numerics = EffectiveNumerics(*state);
  for (const auto& [who, share] : state->Shares()) out->shares.push_back({who.first, who.second, share.samples, share.units});
  out->samples = spec.samples;
  out->skip_samples = spec.skip_samples;
  out->omitted = OmittedJson(*state);
  out->seq_len = spec.seq_len;
  for (const StagePlan& plan : state->plan().stages) out->stages.push_back(DescribeStage(session_, *state, plan, job.submit.job, nodes));
  out->merge = DescribeMerge(*state, job.submit.job, nodes);
  for (const auto& [id, stage] : state->stages()) {
    for (size_t i = 1; i < stage.claims.size(); ++i) ++out->restarts[stage.claims[i].reason];
  }
  out->stale_records = state->stale_records();
  out->nondeterminism = state->nondeterminism();
  if (state->done()) {
    out->report = state->done()->report;
    if (job.state == QueuedJob::State::kQueued) out->state = "done";   // the queue will say so in a moment
  }
  return OkStatus();
}

JobStatus JobFold::Describe(const QueuedJob& job, const NodesSeen& nodes, Depth depth) {
  const Queue& queue = session_.queue();
  JobStatus out = FromQueue(job, queue);
  const bool refused = job.state == QueuedJob::State::kRefused;   // has no ledger
  if (!refused && depth == Depth::kLedger) {
    const Status folded = Fold(job, nodes, &out);
    if (!folded.ok()) {
      out.detail += (out.detail.empty() ? "" : "; ") + ("its ledger cannot be read: " + folded.error().message);
      return out;
    }
  }
  if (out.state == "queued") {
    const std::string held = queue.Held(job);
    const bool begun = std::any_of(out.stages.begin(), out.stages.end(), [](const StageStatus& s) { return !s.node.empty(); });
    if (!held.empty()) {
      out.detail = held.starts_with("waits") ? held : "waits: " + held;
    } else if (out.folded && (begun || !out.moves.empty())) {
      out.state = RunningState(out);
      if (out.state == "waiting") out.detail = WaitReason(out, nodes);
    } else if (nodes.alive() == 0) {
      out.detail = "waits for a daemon";
    } else {
      out.detail = TurnOf(job, queue);
    }
  }
  out.eta_seconds = JobEta(out);
  out.next = NextCommand(out, session_.layout().root(), nodes.alive() > 0);
  return out;
}

}  // namespace holdfast
