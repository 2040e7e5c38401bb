// SPDX-License-Identifier: Apache-2.0
#include "jobctl/job_status.h"

#include <algorithm>

namespace holdfast {
namespace {

constexpr uint64_t kNsPerSecond = 1'000'000'000;

int Rank(const std::string& phase) {
  static const std::map<std::string, int> kRank = {{"waiting", 0}, {"start", 0}, {"load", 1}, {"calibrate", 2}, {"evict", 3}, {"seal", 4}, {"done", 5}};
  const auto it = kRank.find(phase);
  return it == kRank.end() ? 0 : it->second;
}

bool AllDone(const JobStatus& job) {
  return !job.stages.empty() && std::all_of(job.stages.begin(), job.stages.end(), [](const StageStatus& s) { return s.phase == "done"; });
}

Json Optional(const std::optional<uint64_t>& value) { return value ? Json(*value) : Json(nullptr); }

Json ToJson(const StageStatus& s) {
  Json claims = Json::array();
  for (const ClaimNote& c : s.claims) claims.push_back({{"epoch", c.epoch}, {"reason", c.reason}, {"node", c.node}, {"pid", c.pid}});
  return {{"stage", s.stage}, {"first_layer", s.first_layer}, {"last_layer", s.last_layer}, {"node", s.node}, {"device", s.device}, {"node_alive", s.node_alive},
          {"note", s.note}, {"phase", s.phase}, {"task", s.task}, {"samples_done", s.samples_done}, {"samples_total", s.samples_total},
          {"units_done", s.units_done}, {"units_total", s.units_total}, {"bytes_evicted", s.bytes_evicted},
          {"restarts", s.claims.empty() ? 0 : s.claims.size() - 1}, {"claims", std::move(claims)}, {"last_death", s.last_death}, {"error", s.error},
          {"rss_bytes", s.rss_bytes}, {"window", s.window}, {"threads", s.threads}, {"pid", s.pid}, {"eta_seconds", Optional(s.eta_seconds)},
          {"last_commit_wall_ns", s.last_commit_wall_ns}};
}

Json ToJson(const MergeStatus& m) {
  return {{"node", m.node}, {"node_alive", m.node_alive}, {"files_written", m.files_written}, {"files_total", m.files_total},
          {"bytes_done", m.bytes_done}, {"bytes_total", m.bytes_total}, {"lives", m.lives}, {"reason", m.reason}, {"published", m.published}};
}

Json ToJson(const NightSummary& s) {
  Json failed = Json::array();
  for (const auto& [name, detail] : s.failed) failed.push_back({{"name", name}, {"detail", detail}});
  return {{"states", s.states}, {"failed", std::move(failed)}, {"restarts", s.restarts}, {"elapsed_seconds", s.elapsed_seconds}};
}

}  // namespace

std::string RunningState(const JobStatus& job) {
  if (AllDone(job)) return job.merge.node.empty() || job.merge.node_alive ? "merging" : "waiting";
  const bool works = std::any_of(job.stages.begin(), job.stages.end(), [](const StageStatus& s) {
    return s.phase != "done" && !s.node.empty() && s.node_alive && s.task != "refused" && s.task != "failed" && s.task != "fenced";
  });
  return works ? "running" : "waiting";
}

std::string JobPhase(const JobStatus& job) {
  if (job.stages.empty()) return "waiting";
  if (AllDone(job)) return job.state == "done" ? "done" : "merge";
  if (std::any_of(job.stages.begin(), job.stages.end(), [](const StageStatus& s) { return s.phase == "calibrate"; })) return "calibrate";
  return std::min_element(job.stages.begin(), job.stages.end(), [](const auto& a, const auto& b) { return Rank(a.phase) < Rank(b.phase); })->phase;
}

std::optional<uint64_t> JobEta(const JobStatus& job) {
  const std::string phase = JobPhase(job);
  if (job.state != "running" || (phase != "calibrate" && phase != "evict")) return std::nullopt;
  uint64_t slowest = 0;
  for (const StageStatus& s : job.stages) {
    if (Rank(s.phase) > Rank(phase)) continue;
    if (!s.eta_seconds) return std::nullopt;
    slowest = std::max(slowest, *s.eta_seconds);
  }
  return slowest;
}

std::optional<uint64_t> SecondsLeft(const CommitPoint& earlier, const CommitPoint& later, uint64_t remaining) {
  if (earlier.epoch != later.epoch || earlier.seq >= later.seq || earlier.wall_ns >= later.wall_ns) return std::nullopt;
  const double each = static_cast<double>(later.wall_ns - earlier.wall_ns) / static_cast<double>(kNsPerSecond) / (later.seq - earlier.seq);
  return static_cast<uint64_t>(each * static_cast<double>(remaining) + 0.5);
}

std::string NextCommand(const JobStatus& job, const std::string& root, bool daemon_alive) {
  const std::string at = "jobctl --root " + root;
  if (job.state == "done") return job.out.empty() ? "" : "jobctl verify " + job.out + " --source " + job.source;
  if (job.state == "failed" || job.state == "cancelled") return at + " resume " + job.name;
  if (job.state == "refused") return "mend what it says and submit it again";
  if (!daemon_alive) return "holdfastd --root " + root + " --name NAME, on a node";
  return "";
}

NightSummary Summarize(const RootStatus& status, uint64_t now_wall_ns) {
  NightSummary s;
  uint64_t first = 0, last = 0;
  bool open = false;
  for (const JobStatus& job : status.jobs) {
    ++s.states[job.state];
    if (job.state == "failed" || job.state == "refused") s.failed.emplace_back(job.name, job.detail);
    for (const auto& [reason, count] : job.restarts) s.restarts[reason] += count;
    if (first == 0 || job.submitted_wall_ns < first) first = job.submitted_wall_ns;
    if (job.ended_wall_ns == 0) open = true;
    last = std::max(last, job.ended_wall_ns);
  }
  if (open) last = std::max(last, now_wall_ns);
  s.elapsed_seconds = last > first ? (last - first) / kNsPerSecond : 0;
  return s;
}

Json ToJson(const JobStatus& job) {
  Json stages = Json::array();
  Json shares = Json::array(), moves = Json::array();
  for (const StageStatus& s : job.stages) stages.push_back(ToJson(s));
  for (const NodeShare& s : job.shares) shares.push_back({{"node", s.node}, {"numerics", s.numerics}, {"samples", s.samples}, {"units", s.units}});
  for (const Move& m : job.moves) moves.push_back({{"number", m.number}, {"wall_ns", m.wall_ns}, {"why", m.why}, {"merge_node", m.merge_node}});
  Json doc{{"job", job.id}, {"name", job.name}, {"state", job.state}, {"detail", job.detail}, {"source", job.source}, {"out", job.out},
           {"priority", job.priority}, {"after", job.after}, {"shard_layers", job.shard_layers}, {"on", job.on}, {"retries", job.retries},
           {"submitted_wall_ns", job.submitted_wall_ns}, {"ended_wall_ns", job.ended_wall_ns}, {"next", job.next}, {"folded", job.folded}, {"stages", std::move(stages)}};
  if (!job.folded) return doc;
  doc.update({{"recipe", job.recipe}, {"numerics", job.numerics}, {"samples", job.samples}, {"seq_len", job.seq_len}, {"skip_samples", job.skip_samples}, {"omitted", job.omitted}, {"phase", JobPhase(job)},
              {"moves", std::move(moves)}, {"merge", ToJson(job.merge)}, {"shares", std::move(shares)}, {"restarts", job.restarts},
              {"eta_seconds", Optional(job.eta_seconds)}, {"stale_records", job.stale_records}, {"nondeterminism", job.nondeterminism}});
  if (!job.report.is_null()) doc["report"] = job.report;
  return doc;
}

Json ToJson(const NodeStatus& node) {
  const Incarnation& i = node.known.incarnation;
  Json doc{{"node", node.known.name}, {"life", NodeLifeName(node.life)}, {"drained", node.drained}, {"host", i.hostname}, {"endpoint", i.endpoint},
           {"device", i.device}, {"numerics", i.numerics}, {"version", i.version}, {"memory_bytes", i.memory_bytes}, {"speed_mflops", i.speed},
           {"threads", i.threads}, {"pid", i.pid}, {"incarnation", i.nonce.Hex()}, {"lives", node.known.lives}};
  if (!node.beat) return doc;
  const Beat& b = *node.beat;
  Json tasks = Json::array();
  for (const TaskBeat& t : b.tasks) {
    tasks.push_back({{"job", t.job}, {"stage", t.stage == kMergeTask ? Json("merge") : Json(t.stage)}, {"state", t.state}, {"phase", t.phase}, {"device", t.device},
                     {"planned_bytes", t.planned_bytes}, {"rss_bytes", t.rss_bytes}, {"last_death", t.last_death}, {"error", t.error}});
  }
  Json devices = Json::array();
  for (const DeviceBeat& d : b.devices) devices.push_back({{"device", d.name}, {"numerics", d.numerics}, {"memory_bytes", d.memory_bytes}, {"host_bytes", d.host_bytes}, {"speed_mflops", d.speed}});
  doc.update({{"devices", std::move(devices)}, {"memory_bytes", b.memory_bytes}, {"memory_planned", b.memory_planned}, {"memory_available", b.memory_available}, {"host_bytes", b.host_bytes},
              {"rss_bytes", b.rss_bytes}, {"pressure_centi_percent", b.pressure}, {"draining", b.draining}, {"paused", b.paused},
              {"storage_stalled_ms", b.storage_stalled_ms}, {"last_beat_wall_ns", b.wall_ns}, {"coordinates", b.coordinates},
              {"warnings", b.warnings}, {"tasks", std::move(tasks)}});
  return doc;
}

std::string CommitText(const NodesSeen& nodes) { return nodes.renames ? "rename" : "link"; }

Json ToJson(const RootStatus& status, const NightSummary& summary) {
  Json jobs = Json::array(), nodes = Json::array();
  for (const JobStatus& job : status.jobs) jobs.push_back(ToJson(job));
  for (const NodeStatus& node : status.nodes.nodes) nodes.push_back(ToJson(node));
  return {{"schema", kRootStatusSchema}, {"root", status.root}, {"answered_by", status.nodes.answered_by}, {"commit", CommitText(status.nodes)},
          {"warnings", status.nodes.warnings}, {"jobs", std::move(jobs)}, {"nodes", std::move(nodes)}, {"summary", ToJson(summary)}};
}

}  // namespace holdfast
