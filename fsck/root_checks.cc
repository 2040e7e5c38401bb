// SPDX-License-Identifier: Apache-2.0
//
// A root: ROOT, the queue and the streams of the nodes, then every job below jobs/, each with all its own checks. F032-F034 look across:
// who claimed, under which name, and whether what was submitted is there.
#include "fsck/context.h"
#include "ledger/cluster/queue.h"

namespace holdfast::fsck {
namespace {

constexpr const char* kNodePrefix = "node.";
constexpr const char* kNotChecked = "not checked";   // a deep check was interrupted before its turn

const char* Spelled(QueuedJob::State state) {
  constexpr const char* kNames[] = {"queued", "done", "failed", "cancelled", "refused"};
  return kNames[static_cast<size_t>(state)];
}

template <class T>
Result<T> Parse(const Record& record) {
  HOLDFAST_ASSIGN(const Json j, ControlPayload(record));
  return T::FromJson(j);
}

// F020 for the records of the root's own streams.
Status FoldOne(Log* log, const SaidRecord& said) {
  switch (said.record.key.cls) {
    case RecordClass::kIncarnation: {
      HOLDFAST_ASSIGN(Incarnation life, Parse<Incarnation>(said.record));
      log->lives.emplace(life.nonce, std::move(life));
      return OkStatus();
    }
    case RecordClass::kClaim: {
      HOLDFAST_ASSIGN(Claim claim, Parse<Claim>(said.record));
      log->claims.push_back({said.stream, said.seq, said.record.key, std::move(claim)});
      return OkStatus();
    }
    case RecordClass::kQueue: {
      HOLDFAST_ASSIGN(const QueueRecord q, Parse<QueueRecord>(said.record));
      return OkStatus();
    }
    default: return OkStatus();
  }
}

void FoldRootRecords(Context* c) {
  for (const SaidRecord& said : c->log.records) {
    const Status s = FoldOne(&c->log, said);
    if (s.ok()) continue;
    c->Error("F020", "log/" + said.stream + " slot " + std::to_string(said.seq) + ", record " + static_cast<char>(said.record.key.cls), s.error().message, "it counts as not said");
  }
  c->log.records = {};
}

// ---- F033 ----

struct Life {
  std::string node;
  size_t number = 0;   // of this name's lives, in the order of their first claims
};

std::map<Nonce, Life> LivesOf(const Log& log) {
  std::map<Nonce, Life> lives;
  std::map<std::string, size_t> count;
  for (const Said<Claim>& claim : log.claims) {
    if (!claim.stream.starts_with(kNodePrefix)) continue;
    const std::string node = claim.stream.substr(std::string(kNodePrefix).size());
    if (lives.emplace(claim.value.incarnation, Life{node, count[node]}).second) ++count[node];
  }
  return lives;
}

std::string Describe(const Log& log, const Nonce& nonce) {
  const auto it = log.lives.find(nonce);
  return it == log.lives.end() ? nonce.Hex().substr(0, 8) : "pid " + std::to_string(it->second.pid) + " on " + it->second.hostname;
}

// Within one stream, order is certain: a life that writes behind a later life of its own name was not dead when that one began.
class TwinFinder {
 public:
  explicit TwinFinder(Context* root) : root_(*root), lives_(LivesOf(root->log)) {}

  void Look(const std::vector<Writer>& writers, const std::string& where) {
    std::map<std::pair<std::string, std::string>, std::pair<size_t, Nonce>> newest;   // by stream and name
    for (const Writer& w : writers) {
      const auto life = lives_.find(w.incarnation);
      if (life == lives_.end()) continue;
      auto& last = newest[{w.stream, life->second.node}];
      if (life->second.number >= last.first) {
        last = {life->second.number, w.incarnation};
      } else if (told_.insert({w.incarnation, last.second}).second) {
        Tell(life->second.node, w, last.second, where);
      }
    }
  }

 private:
  void Tell(const std::string& node, const Writer& w, const Nonce& newer, const std::string& where) {
    root_.Add("F033", FsckSeverity::kWarning, "log/node." + node,
              "two daemons ran under the name " + node + " at once: " + Describe(root_.log, w.incarnation) + " wrote slot " + std::to_string(w.seq) + " of " + where + w.stream +
                  " after " + Describe(root_.log, newer) + " had taken the name over",
              "nothing is lost, but work may have been done twice: give every daemon its own --name");
  }

  Context& root_;
  const std::map<Nonce, Life> lives_;
  std::set<std::pair<Nonce, Nonce>> told_;
};

// ---- jobs ----

class JobChecker {
 public:
  explicit JobChecker(Context* root) : root_(*root), dir_(root->layout.root()), twins_(root) {}

  void Run() {
    ReadQueue();
    twins_.Look(root_.log.writers, "");
    std::vector<std::string> there = Listed();
    for (FsckJob& job : queued_) {
      const auto at = std::find(there.begin(), there.end(), job.id);
      if (Interrupted()) {
        job.state = kNotChecked;
        if (at != there.end()) there.erase(at);
      } else if (at == there.end()) {
        Missing(&job);
      } else {
        Check(&job);
        there.erase(at);
      }
      root_.report.jobs.push_back(job);
    }
    for (const std::string& id : there) {
      FsckJob job;
      job.id = id;
      if (Interrupted()) {
        job.state = kNotChecked;
      } else {
        Check(&job);
      }
      root_.report.jobs.push_back(job);
      if (queue_read_) root_.Add("F090", FsckSeverity::kInfo, "jobs/" + id, "no submission refers to it: `jobctl submit` is at work, or died before it was said", "");
    }
  }

 private:
  bool Interrupted() const { return (root_.report.exit_status & kFsckInterrupted) != 0; }

  void ReadQueue() {
    if (!root_.log.job_id) return;
    Queue queue(root_.fs, RootLayout(dir_), *root_.log.job_id);
    queue_read_ = queue.Refresh().ok();   // what is wrong with it has been said
    for (const QueuedJob& q : queue.jobs()) {
      FsckJob job;
      job.id = q.submit.job;
      job.name = q.submit.name;
      job.queued_as = Spelled(q.state);
      queued_.push_back(std::move(job));
    }
  }

  std::vector<std::string> Listed() {
    std::vector<std::string> ids;
    const auto names = root_.fs.List(RootLayout(dir_).JobsDir());
    if (!names.ok() && names.code() != ErrorCode::kNotFound) root_.Unreadable("jobs", names.error());
    for (size_t i = 0; names.ok() && i < names->size(); ++i) {
      if (IsJobId((*names)[i])) {
        ids.push_back((*names)[i]);
      } else {
        root_.Error("F003", "jobs/" + (*names)[i], "nothing of Holdfast's has this name", "find out who wrote it; `" + root_.Repair() + "` moves it to the quarantine",
                    Remedy::MoveAway(JoinPath(RootLayout(dir_).JobsDir(), (*names)[i])));
      }
    }
    return ids;
  }

  // Submission writes the run directory first. Of a job that is over it may be deleted.
  void Missing(FsckJob* job) {
    job->state = "missing";
    if (job->queued_as == "refused") return;
    const std::string object = "jobs/" + job->id;
    if (job->queued_as == "queued") {
      root_.Error("F034", object, "the job" + (job->name.empty() ? "" : " " + job->name) + " is queued, but its run directory is not there",
                  "restore it from a copy, or `jobctl --root " + dir_ + " cancel " + job->id + "`");
      job->exit_status = kFsckErrorsLeft;
      job->findings = 1;
    } else {
      root_.Add("F034", FsckSeverity::kInfo, object, "the run directory is gone; the job was " + job->queued_as, "");
    }
  }

  void Check(FsckJob* job) {
    const std::string prefix = "jobs/" + job->id + "/";
    FsckOptions options = root_.options;
    if (options.on_progress) {
      options.on_progress = [this](uint64_t done, uint64_t total) { root_.options.on_progress(root_.bytes_done + done, root_.bytes_done + total); };
    }
    Context c(root_.fs, RootLayout(dir_).JobDir(job->id), options);
    c.root_dir = dir_;
    c.paced = root_.paced;
    c.report.state = "unknown";
    CheckRun(&c);
    if (auto plan = MakeRepairPlan(c); !plan.empty()) root_.report.plans.push_back(std::move(plan));
    twins_.Look(c.log.writers, prefix);
    job->state = c.report.state;
    job->exit_status = c.report.exit_status;
    for (FsckFinding& f : c.report.findings) {
      job->findings += f.severity == FsckSeverity::kInfo ? 0 : 1;
      if (!f.object.starts_with("/")) f.object = prefix + f.object;
      f.planned = true;
      root_.report.findings.push_back(std::move(f));
    }
    FsckReport& all = root_.report;
    all.exit_status |= c.report.exit_status;
    all.streams += c.report.streams;
    all.slots += c.report.slots;
    all.records += c.report.records;
    all.packs += c.report.packs;
    all.bytes_read += c.report.bytes_read;
    all.bytes_known += c.report.bytes_known;
    all.memories.insert(all.memories.end(), c.report.memories.begin(), c.report.memories.end());
    root_.bytes_done += c.bytes_done;
  }

  Context& root_;
  const std::string dir_;
  TwinFinder twins_;
  bool queue_read_ = false;
  std::vector<FsckJob> queued_;
};

}  // namespace

bool LooksLikeARoot(FileSystem& fs, const std::string& dir) {
  const RootLayout layout(dir);
  const auto root = fs.Exists(layout.RootFile()), queue = fs.Exists(layout.streams().StreamDir(RootLayout::QueueStream()));
  return (root.ok() && *root) || (queue.ok() && *queue);
}

bool CheckRootFile(Context* c) {
  const auto root = ReadRoot(c->fs, RootLayout(c->layout.root()));
  if (root.ok()) {
    c->log.job_id = root->uuid;
  } else if (root.code() == ErrorCode::kUnsupported) {
    c->Error("F001", "ROOT", root.error().message, "use the holdfast that made this root");
    return false;
  } else if (root.code() == ErrorCode::kCorrupt || root.code() == ErrorCode::kNotFound) {
    c->Error("F001", "ROOT", root.error().message, "restore ROOT from a copy; it never changes after the first start. Without one stop the daemons, finish each job alone with `jobctl resume " + c->layout.root() + "/jobs/ID`, and make a new root");
  } else {
    c->Unreadable("ROOT", root.error());
  }
  return true;
}

void CheckClaims(Context* c) {
  const auto stranger = [&](const Said<Claim>& claim, const Log& log) { return !log.lives.contains(claim.value.incarnation); };
  Log root;   // read now: whoever claimed had introduced himself by then
  const bool ask = !c->root_dir.empty() && std::any_of(c->log.claims.begin(), c->log.claims.end(), [&](const auto& claim) { return stranger(claim, c->log); });
  if (ask) {
    FsckOptions quiet;
    Context r(c->fs, c->root_dir, quiet);
    r.is_root = true;
    if (CheckRootFile(&r)) ReadLog(&r), FoldRootRecords(&r);
    root = std::move(r.log);
  }
  for (const Said<Claim>& claim : c->log.claims) {
    if (!stranger(claim, c->log) || !stranger(claim, root)) continue;
    c->Add("F032", FsckSeverity::kWarning, "log/" + claim.stream + " slot " + std::to_string(claim.seq),
           "claimed by incarnation " + claim.value.incarnation.Hex() + " of node " + claim.value.node + ", which introduced itself nowhere",
           "its work counts; an older version wrote it, or the node's stream was moved away");
  }
}

void CheckRoot(Context* c) {
  c->is_root = true;
  c->report.state = "root";
  if (!CheckRootFile(c)) return;
  ReadLog(c);
  FoldRootRecords(c);
  CheckClaims(c);
  CheckEnvironment(c);
  JobChecker(c).Run();
  CheckTmp(c);
}

}  // namespace holdfast::fsck
