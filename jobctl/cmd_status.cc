// SPDX-License-Identifier: Apache-2.0
//
// jobctl status: what a run (a directory) or the jobs of a root have done. Folded from the ledger; works from any shell or host, also when
// nothing runs any more. Daemons, where they answer, only make it fresher.
#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "daemon/node/job_report.h"
#include "daemon/node/process.h"
#include "jobctl/job_fold.h"
#include "jobctl/options.h"
#include "jobctl/preflight.h"
#include "jobctl/report.h"
#include "jobctl/status_text.h"
#include "ledger/base/printable.h"
#include "ledger/fold/run_state.h"
#include "ledger/fold/seal.h"

namespace holdfast {
namespace {

constexpr int kStatusSchema = 1;
constexpr uint64_t kFollowMs = 1000;

struct Activity {
  bool alive = false;
  std::string who;          // "process 12 on host"
  std::string state;        // "running", "stopped", "interrupted", "running elsewhere"
};

Activity ActivityOf(const RunState& state) {
  Activity a;
  const StreamState& job = state.job_stream();
  if (job.released) {
    a.state = "stopped";
    return a;
  }
  for (const Incarnation& i : state.incarnations()) {
    if (i.nonce != job.claim.incarnation) continue;
    a.who = "process " + std::to_string(i.pid) + " on " + i.hostname;
    switch (ProbeIncarnation(i)) {
      case Liveness::kAlive: a.alive = true; a.state = "running"; break;
      case Liveness::kDead:
      case Liveness::kRebooted: a.state = "interrupted"; break;
      case Liveness::kElsewhere: a.alive = true; a.state = "running elsewhere"; break;
    }
  }
  if (a.state.empty()) a.state = "interrupted";
  return a;
}

std::string StageLabel(const RunState& state, const StagePlan& plan, uint64_t samples_done, uint64_t units_done, uint64_t units) {
  const auto it = state.stages().find(plan.stage);
  if (it == state.stages().end()) return "waiting";
  if (it->second.seal) return "done";
  if (samples_done == state.samples_in()) return units_done == units ? "seal" : "evict";
  return it->second.phase ? it->second.phase->phase : "start";
}

Json StageOfRun(const RunState& state, const StagePlan& plan) {
  const uint64_t samples = state.SamplesThrough(plan.first_layer, plan.last_layer);
  uint64_t units_done = 0, bytes = 0;
  const std::vector<uint32_t> units = UnitsOf(state.plan(), plan);
  for (uint32_t u : units) {
    const LayerRecord* e = state.Layer(u);
    units_done += e != nullptr;
    for (size_t i = 0; e != nullptr && i < e->packs.size(); ++i) bytes += e->packs[i].file_size;
  }
  Json claims = Json::array();
  uint64_t restarts = 0, last_wall = 0;
  std::string node, device;
  if (const auto it = state.stages().find(plan.stage); it != state.stages().end()) {
    for (const Claim& c : it->second.claims) {
      claims.push_back({{"epoch", c.epoch}, {"reason", c.reason}, {"node", c.node}, {"pid", c.pid}});
      node = c.node;
      if (const Incarnation* worker = state.IncarnationOf(c.incarnation)) device = worker->device;
    }
    restarts = it->second.claims.empty() ? 0 : it->second.claims.size() - 1;
    last_wall = it->second.last_wall_ns;
  }
  return {{"stage", plan.stage.value}, {"first_layer", plan.first_layer}, {"last_layer", plan.last_layer}, {"node", node}, {"device", device},
          {"phase", StageLabel(state, plan, samples, units_done, units.size())}, {"samples_done", samples}, {"samples_total", state.samples_in()},
          {"units_done", units_done}, {"units_total", units.size()}, {"bytes_evicted", bytes}, {"restarts", restarts}, {"claims", claims},
          {"last_commit_wall_ns", last_wall}};
}

Json StatusJson(const RunState& state) {
  const JobSpec& job = state.job();
  const Activity activity = ActivityOf(state);
  Json stages = Json::array();
  for (const StagePlan& s : state.plan().stages) stages.push_back(StageOfRun(state, s));
  Json doc{{"schema", kStatusSchema}, {"job", job.uuid.Hex()}, {"run_dir", state.layout().root()}, {"source", job.source}, {"out", job.out},
           {"recipe", job.recipe}, {"numerics", job.numerics}, {"samples", job.samples}, {"skip_samples", job.skip_samples}, {"omitted", OmittedJson(state)}, {"seq_len", job.seq_len},
           {"state", state.done() ? "done" : activity.state}, {"owner", activity.who}, {"stages", stages},
           {"merge", {{"files_written", state.merge_written().size()}, {"published", state.published().has_value()}}},
           {"stale_records", state.stale_records()}, {"nondeterminism", state.nondeterminism()}};
  if (state.done()) doc["report"] = state.done()->report;
  if (!state.done() && !activity.alive) doc["next"] = "jobctl resume " + state.layout().root();
  return doc;
}

std::string Render(const Json& d) {
  std::string out = d["state"].get<std::string>();
  if (!d["owner"].get<std::string>().empty() && d["state"] != "done") out += " (" + d["owner"].get<std::string>() + ")";
  out += ": " + d["source"].get<std::string>() + " -> " + d["out"].get<std::string>() + ", " + d["recipe"].get<std::string>() + "\n";
  if (!d["omitted"].empty()) out += "  " + RenderOmitted(d["omitted"], d["samples"].get<uint64_t>()) + "\n";
  for (const Json& s : d["stages"]) {
    char line[256];
    std::snprintf(line, sizeof line, "  stage %-3u layers %u-%u  %-9s  samples %llu/%llu  layers evicted %llu/%llu  restarts %llu", s["stage"].get<unsigned>(),
                  s["first_layer"].get<unsigned>(), s["last_layer"].get<unsigned>() - 1, s["phase"].get<std::string>().c_str(),
                  s["samples_done"].get<unsigned long long>(), s["samples_total"].get<unsigned long long>(), s["units_done"].get<unsigned long long>(),
                  s["units_total"].get<unsigned long long>(), s["restarts"].get<unsigned long long>());
    out += line;
    const std::string device = s["device"].get<std::string>();
    if (device != "" && device != "cpu") out += "  on " + device;
    std::string why;
    for (size_t i = 1; i < s["claims"].size(); ++i) why += (why.empty() ? " (" : ", ") + s["claims"][i]["reason"].get<std::string>();
    out += why.empty() ? "\n" : why + ")\n";
  }
  out += "  merge: " + std::to_string(d["merge"]["files_written"].get<uint64_t>()) + " file(s) written" +
         (d["merge"]["published"].get<bool>() ? ", published\n" : "\n");
  if (d.contains("next")) out += "next: " + d["next"].get<std::string>() + "\n";
  return out;
}

// ---- a root ----

constexpr size_t kEndedJobsRead = 16;      // how many that have ended are folded when all are shown

bool HasEnded(const JobStatus& job) { return job.state == "done" || job.state == "failed" || job.state == "cancelled" || job.state == "refused"; }

// The watch and the folds are kept while following.
class RootWatch {
 public:
  RootWatch(RootSession* session, std::string job) : session_(session), job_(std::move(job)), watch_(*session), fold_(*session) {}

  Result<RootStatus> Look() {
    HOLDFAST_TRY(session_->Refresh());
    RootStatus status{.root = session_->layout().root(), .nodes = watch_.Look(), .jobs = {}};
    if (!session_->warning().empty()) status.nodes.warnings.push_back(session_->warning());
    const std::vector<QueuedJob>& all = session_->queue().jobs();
    if (!job_.empty()) {
      HOLDFAST_ASSIGN(const QueuedJob* job, session_->queue().Find(job_));
      status.jobs.push_back(fold_.Describe(*job, status.nodes, Depth::kLedger));
      return status;
    }
    size_t ended = 0;
    std::vector<Depth> depths(all.size(), Depth::kLedger);
    for (size_t i = all.size(); i-- > 0;) {
      if (all[i].state != QueuedJob::State::kQueued && ++ended > kEndedJobsRead) depths[i] = Depth::kQueueOnly;
    }
    for (size_t i = 0; i < all.size(); ++i) status.jobs.push_back(fold_.Describe(all[i], status.nodes, depths[i]));
    return status;
  }

 private:
  RootSession* session_;
  std::string job_;
  NodeWatch watch_;
  JobFold fold_;
};

std::string Show(const RootStatus& status, const RootStatusOptions& o, uint64_t now_wall_ns) {
  const NightSummary summary = Summarize(status, now_wall_ns);
  if (o.json) return ToJson(status, summary).dump(o.follow ? -1 : 2, ' ', false, Json::error_handler_t::replace) + "\n";
  if (o.job.empty()) return RenderStatus(status, summary, now_wall_ns, UseColours());
  return RenderJob(status.jobs[0], UseColours()) + "Seen     " + RenderSource(status.nodes) + "\n" + RenderNodesLine(status.nodes, now_wall_ns, UseColours());
}

}  // namespace

int RootStatusCommand(const RootStatusOptions& options) {
  RealClock clock;
  auto session = RootSession::Open(options.root, RootUse::kRead, clock);
  if (!session.ok()) return Fail(session.error(), options.json);
  RootWatch watch(session->get(), options.job);
  const bool redraw = options.follow && !options.json && ::isatty(STDOUT_FILENO) == 1;
  std::string shown;
  for (;;) {
    const auto status = watch.Look();
    if (!status.ok()) return Fail(status.error(), options.json);
    const std::string text = Show(*status, options, (*session)->clock().WallNs());
    if (text != shown) std::printf("%s%s", redraw ? "\033[H\033[J" : "", text.c_str());
    shown = text;
    std::fflush(stdout);
    const bool over = std::all_of(status->jobs.begin(), status->jobs.end(), HasEnded);
    if (!options.follow || over || std::ferror(stdout) != 0) return kExitOk;
    (*session)->clock().SleepMs(kFollowMs);
  }
}

int StatusCommand(const StatusOptions& options) {
  PosixFileSystem fs;
  RealClock clock;
  RunState state(fs, RunLayout(AbsolutePath(options.dir)));
  const bool redraw = options.follow && !options.json && ::isatty(STDOUT_FILENO) == 1;
  for (;;) {
    const Status read = state.Refresh();
    if (!read.ok()) {
      if (read.code() == ErrorCode::kNotFound) return Fail(NotFound(options.dir + ": no run here (" + read.error().message + ")"), options.json);
      return Fail(read.error(), options.json);
    }
    const Json doc = StatusJson(state);
    if (redraw) std::printf("\033[H\033[J");
    if (options.json) std::printf("%s\n", doc.dump(options.follow ? -1 : 2, ' ', false, Json::error_handler_t::replace).c_str());
    else std::printf("%s", Printable(Render(doc), LineBreaks::kKeep).c_str());
    const std::string now = doc["state"].get<std::string>();
    if (now == "done" && !options.json) std::printf("%s", RenderReport(doc["report"]).c_str());
    std::fflush(stdout);
    if (!options.follow || now == "done" || now == "stopped" || now == "interrupted") return kExitOk;
    clock.SleepMs(kFollowMs);
  }
}

}  // namespace holdfast
