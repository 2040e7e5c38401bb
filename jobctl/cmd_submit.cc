// SPDX-License-Identifier: Apache-2.0
//
// jobctl submit: checks everything, writes the job's run directory, and only then says so in the queue. Until that one commit the job does
// not exist: a crash before it leaves a directory that nothing refers to.
#include <algorithm>
#include <cstdio>
#include <thread>

#include "jobctl/job_plan.h"
#include "jobctl/options.h"
#include "jobctl/preflight.h"
#include "jobctl/root_session.h"

namespace holdfast {
namespace {

constexpr int kPriorityNeutral = 1000;
constexpr uint64_t kJoinPatienceNs = 5'000'000'000;
constexpr uint64_t kJoinPollMs = 250;

struct Prepared {
  NewJob job;
  JobPlan plan;
  std::vector<std::string> after;          // ids
  std::vector<std::string> notes;          // for the terminal
};

// A name belongs to one job, unless that was refused; an output directory too, until its job is cancelled.
Status CheckFree(const Queue& queue, const std::string& root, const std::string& name, const std::string& out) {
  for (const QueuedJob& job : queue.jobs()) {
    if (job.state == QueuedJob::State::kRefused) continue;
    const std::string who = "job \"" + job.submit.name + "\" (" + job.submit.job + ")";
    if (job.submit.name == name) {
      const std::string look = AtRoot(root) + (job.state == QueuedJob::State::kCancelled ? " resume " : " status ") + name;
      return Error{ErrorCode::kAlreadyExists, "--name: there is a " + who + " already; choose another --name, or `" + look + "`"};
    }
    if (job.submit.out == out && job.state != QueuedJob::State::kCancelled) {
      return Error{ErrorCode::kAlreadyExists, "--out " + out + " is that of " + who + "; choose another --out"};
    }
  }
  return OkStatus();
}

Result<std::vector<std::string>> ResolveAfter(const Queue& queue, const std::vector<std::string>& after) {
  std::vector<std::string> ids;
  for (const std::string& one : after) {
    const auto job = queue.Find(one);
    if (!job.ok()) return InvalidArgument("--after " + one + ": " + job.error().message);
    if ((*job)->state == QueuedJob::State::kRefused || (*job)->state == QueuedJob::State::kCancelled) {
      return InvalidArgument("--after " + one + ": that job was " + ((*job)->state == QueuedJob::State::kRefused ? "refused" : "cancelled") +
                             " and will not be done; leave --after out, or name another");
    }
    ids.push_back((*job)->submit.job);
  }
  return ids;
}

// A daemon that was started a moment ago may not have joined yet, or a directory listing may be stale: looked for a while.
Result<bool> IsKnown(RootSession* session, const std::string& node) {
  const uint64_t deadline = session->clock().MonotonicNs() + kJoinPatienceNs;
  while (!session->roster().nodes().contains(node)) {
    if (session->clock().MonotonicNs() >= deadline) return false;
    session->clock().SleepMs(kJoinPollMs);
    HOLDFAST_TRY(session->Refresh());
  }
  return true;
}

Status CheckOn(RootSession* session, const SubmitOptions& o) {
  if (o.on.empty()) return OkStatus();
  if (o.on.size() != o.shard_layers.size()) {
    return InvalidArgument("--on names " + std::to_string(o.on.size()) + " node(s), --shard-layers " + std::to_string(o.shard_layers.size()) +
                           " stage(s): give one node for each stage, e.g. --shard-layers 41,41,6 --on n1,n2,n3");
  }
  for (const std::string& node : o.on) {
    HOLDFAST_ASSIGN(const bool known, IsKnown(session, node));
    if (known) continue;
    return InvalidArgument("--on " + node + ": no node of that name was ever seen here (known: " + KnownNodesText(session->roster()) +
                           "); is the root shared? Start `holdfastd --root " + o.root + " --name " + node + "` there");
  }
  return OkStatus();
}

// Those that would work now; where there is none, all that were ever here.
std::vector<NodeView> NodesToPlanWith(const NodesSeen& seen, bool living) {
  std::vector<NodeView> nodes;
  for (const NodeStatus& n : seen.nodes) {
    if (!living || (n.life == NodeLife::kAlive && !n.drained)) nodes.push_back(ViewOf(n));
  }
  return nodes;
}

RunOptions ForPreflight(const SubmitOptions& o) {
  RunOptions r;
  r.source = o.source;
  r.calib = o.calib;
  r.out = o.out;
  r.samples = o.samples;
  r.skip_samples = o.skip_samples;
  r.seq_len = o.seq_len;
  r.recipe = o.recipe;
  r.layout = o.layout;
  r.max_shard_size = o.max_shard_size;
  return r;
}

Status PlanFor(RootSession* session, const SubmitOptions& o, const std::vector<LayerRange>& ranges, Prepared* p) {
  const NodesSeen seen = NodeWatch(*session).Look();
  const JobDemand demand{&p->job.decoder, &p->job.plan, p->job.spec.samples, p->job.spec.seq_len, p->job.spec.shard_bytes};
  const std::vector<NodeView> living = NodesToPlanWith(seen, true), known = NodesToPlanWith(seen, false);
  auto plan = PlanJob(demand, ranges, o.on, living.empty() ? known : living);
  if (!plan.ok() && living.size() < known.size()) {
    plan = PlanJob(demand, ranges, o.on, known);
    if (plan.ok()) p->notes.push_back("the nodes that are alive are too small for it: it waits for the others");
  }
  HOLDFAST_TRY(plan);
  p->plan = std::move(*plan);
  if (seen.alive() == 0) p->notes.push_back("no daemon is alive: the job waits; start `holdfastd --root " + o.root + " --name NAME` on a node");
  return OkStatus();
}

// Everything that can be refused, and nothing written.
Result<Prepared> Prepare(RootSession* session, const SubmitOptions& o) {
  Prepared p;
  HOLDFAST_ASSIGN(p.after, ResolveAfter(session->queue(), o.after));
  HOLDFAST_TRY(CheckOn(session, o));
  HOLDFAST_ASSIGN(const bool taken, session->fs().Exists(o.out));
  if (taken) return Error{ErrorCode::kAlreadyExists, "--out " + o.out + " exists; move it away, or choose another --out"};
  HOLDFAST_ASSIGN(p.job, PrepareNewJob(session->fs(), ForPreflight(o), kAnyNumerics, std::max(1u, std::thread::hardware_concurrency()),
                                       o.plan_only ? WeightScan::kLater : WeightScan::kNow));
  p.job.spec.name = o.name;
  std::vector<LayerRange> ranges;
  if (!o.shard_layers.empty()) {
    HOLDFAST_ASSIGN(ranges, CutStages(p.job.plan.layers, o.shard_layers, 1));
  }
  HOLDFAST_TRY(PlanFor(session, o, ranges, &p));
  if (ranges.empty()) ranges = {{0, p.job.plan.layers}};   // the coordinator cuts again, for the nodes that it finds
  for (const LayerRange& r : ranges) p.job.plan.stages.push_back({StageId(static_cast<uint16_t>(p.job.plan.stages.size())), r.first, r.second});
  ResourcePlan disk;
  const uint64_t output = p.plan.bytes_written / 2;
  disk.disk_run = p.plan.bytes_written - output;
  disk.disk_out = output;
  HOLDFAST_TRY(CheckSpace(session->fs(), disk, session->layout().JobsDir(), o.out));
  return p;
}

std::vector<Record> JobRecords(const Prepared& p, const Incarnation& self) {
  std::vector<Record> records = {MakeControl({.cls = RecordClass::kJob}, p.job.spec.ToJson()),
                                 MakeControl({.cls = RecordClass::kPlan, .a = p.job.plan.number}, p.job.plan.ToJson()),
                                 MakeControl({.cls = RecordClass::kIncarnation}, self.ToJson())};
  for (uint32_t i = 0; i < p.job.tokens.size(); ++i) {
    Record tokens;
    tokens.key = {.cls = RecordClass::kJob, .a = i, .part = 1};
    tokens.codec = Codec::kZstd;
    tokens.payload = EncodeTokens(p.job.tokens[i]);
    records.push_back(std::move(tokens));
  }
  return records;
}

Status WriteRunDirectory(RootSession* session, const Prepared& p) {
  FileSystem& fs = session->fs();
  const RunLayout run(session->layout().JobDir(JobIdOf(p.job.spec.uuid)));
  const Incarnation& self = session->self();
  HOLDFAST_TRY(fs.MakeDirs(run.TmpDir(self.nonce)));
  HOLDFAST_TRY(EnsureFormat(fs, run, self.nonce, FeaturesOf(p.job.spec)));
  HOLDFAST_TRY(fs.SyncDir(session->layout().JobsDir()));
  StreamWriter::Options options;
  options.job = p.job.spec.uuid;
  options.claim = {.epoch = 0, .incarnation = self.nonce, .node = self.node, .reason = "submit", .pid = self.pid, .numerics = p.job.spec.numerics};
  StreamReader reader(fs, run, RunLayout::JobStream(), p.job.spec.uuid);
  const auto ignore = [](const Record&, const Slot&) { return OkStatus(); };
  HOLDFAST_ASSIGN(const auto writer, StreamWriter::Open(fs, run, session->clock(), &reader, ignore, options, JobRecords(p, self)));
  HOLDFAST_TRY(writer->ReleaseStream("submitted"));
  (void)fs.RemoveTree(run.TmpDir(self.nonce));   // empty by now; a leftover does no harm
  return OkStatus();
}

QueueRecord RecordOf(const SubmitOptions& o, QueueRecord::Op op, const std::string& id) {
  QueueRecord q;
  q.op = op;
  q.job = id;
  q.name = o.name;
  q.source = o.source;
  q.out = o.out;
  return q;
}

// So that whoever looks in the morning sees that there was such a job, and why it is not there.
void RememberRefusal(RootSession* session, const SubmitOptions& o, const Error& why) {
  if (why.code == ErrorCode::kTransient || why.code == ErrorCode::kStopped || !CheckName("--name", o.name).ok()) return;
  QueueRecord q = RecordOf(o, QueueRecord::Op::kRefuse, JobIdOf(Nonce::Random()));
  q.detail = why.message;
  const Status said = session->Say(q, [&](const Queue& queue) { return CheckFree(queue, o.root, o.name, ""); });
  if (!said.ok()) std::fprintf(stderr, "jobctl: the refusal could not be noted in the queue: %s\n", said.error().message.c_str());
}

Status Enqueue(RootSession* session, const SubmitOptions& o, const Prepared& p) {
  const std::string id = JobIdOf(p.job.spec.uuid);
  HOLDFAST_TRY(WriteRunDirectory(session, p));
  QueueRecord q = RecordOf(o, QueueRecord::Op::kSubmit, id);
  q.after = p.after;
  q.priority = static_cast<uint32_t>(kPriorityNeutral + o.priority);
  q.shard_layers = o.shard_layers;
  q.on = o.on;
  q.reproducible = o.reproducible;
  q.notify = o.notify;
  const Status said = session->Say(q, [&](const Queue& queue) { return CheckFree(queue, o.root, o.name, o.out); });
  // Somebody was faster with the same name: nothing refers to our directory, and nothing ever will.
  if (said.code() == ErrorCode::kAlreadyExists && !session->queue().Find(id).ok()) (void)session->fs().RemoveTree(session->layout().JobDir(id));
  return said;
}

Json PlanJson(const JobPlan& plan) {
  Json stages = Json::array();
  for (const PlannedStage& s : plan.stages) {
    stages.push_back({{"first_layer", s.layers.first}, {"last_layer", s.layers.second}, {"node", NodeOfSeat(s.node)}, {"device", DeviceOfSeat(s.node)}, {"streamed", s.streamed}, {"memory_bytes", s.memory_bytes}});
  }
  return {{"stages", std::move(stages)}, {"bytes_read", plan.bytes_read}, {"bytes_written", plan.bytes_written},
          {"network_bytes", plan.network_bytes}, {"seconds", plan.seconds ? Json(*plan.seconds) : Json(nullptr)}};
}

void Show(const SubmitOptions& o, const Prepared& p) {
  const std::string id = JobIdOf(p.job.spec.uuid);
  if (o.json) {
    const Json doc{{"event", "submitted"}, {"job", id}, {"name", o.name}, {"root", o.root}, {"run_dir", RootLayout(o.root).JobDir(id)},
                   {"samples", p.job.spec.samples}, {"seq_len", p.job.spec.seq_len}, {"plan", PlanJson(p.plan)}, {"notes", p.notes}};
    std::printf("%s\n", doc.dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
    return;
  }
  if (!o.quiet) {
    std::fprintf(stderr, "%s", RenderPlan(p.plan, p.job.spec.samples, p.job.spec.seq_len).c_str());
    for (const std::string& note : p.notes) std::fprintf(stderr, "note: %s\n", note.c_str());
    std::fprintf(stderr, "job \"%s\" is in the queue; watch it with `%s status %s --follow`\n", o.name.c_str(), AtRoot(o.root).c_str(), o.name.c_str());
  }
  std::printf("%s\n", id.c_str());
}

// What a submission would say; nothing of it was written.
int ShowPlanOnly(const SubmitOptions& o, const Prepared& p) {
  if (o.json) {
    const Json doc{{"event", "plan"}, {"root", o.root}, {"samples", p.job.spec.samples}, {"seq_len", p.job.spec.seq_len}, {"plan", PlanJson(p.plan)}, {"notes", p.notes}};
    std::printf("%s\n", doc.dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
    return kExitOk;
  }
  std::printf("%s", RenderPlan(p.plan, p.job.spec.samples, p.job.spec.seq_len).c_str());
  for (const std::string& note : p.notes) std::printf("note: %s\n", note.c_str());
  return kExitOk;
}

}  // namespace

int SubmitCommand(const SubmitOptions& options) {
  SubmitOptions o = options;
  o.source = AbsolutePath(o.source);
  o.calib = AbsolutePath(o.calib);
  o.out = AbsolutePath(o.out);
  if (o.name.empty()) o.name = BaseName(o.out);
  const Status named = CheckName("--name", o.name);
  if (!named.ok()) return Fail(named.error(), o.json);
  RealClock clock;
  auto opened = RootSession::Open(o.root, o.plan_only ? RootUse::kRead : RootUse::kWrite, clock);
  if (!opened.ok()) return Fail(opened.error(), o.json);
  RootSession* session = opened->get();
  if (o.plan_only) {
    const auto planned = Prepare(session, o);
    return planned.ok() ? ShowPlanOnly(o, *planned) : Fail(planned.error(), o.json);
  }
  const Status unused = CheckFree(session->queue(), o.root, o.name, o.out);
  if (!unused.ok()) return Fail(unused.error(), o.json);
  const auto prepared = Prepare(session, o);
  if (!prepared.ok()) {
    RememberRefusal(session, o, prepared.error());
    return Fail(prepared.error(), o.json);
  }
  const Status queued = Enqueue(session, o, *prepared);
  if (!queued.ok()) return Fail(queued.error(), o.json);
  Show(o, *prepared);
  return kExitOk;
}

}  // namespace holdfast
