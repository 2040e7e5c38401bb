// SPDX-License-Identifier: Apache-2.0
#include "fsck/fsck.h"

#include <tuple>

#include "fsck/context.h"
#include "ledger/cluster/root.h"

namespace holdfast {

namespace {

// From here on reading takes its time and can be stopped: the log has been read whole.
void BeginDeep(fsck::Context* c) {
  if (c->paced == nullptr) return;
  c->paced->Arm();
  const FsckOptions& o = c->options;
  if (o.clock != nullptr && !o.cache_dir.empty() && c->log.job_id) c->memory = std::make_unique<fsck::DeepMemory>(c->fs, o.cache_dir, *c->log.job_id, o.clock->WallNs());
}

void EndDeep(fsck::Context* c) {
  if (c->paced != nullptr) c->paced->Disarm();   // the next job's log is read whole again
  if (c->memory == nullptr) return;
  c->report.bytes_known += c->memory->bytes_known();
  if ((c->report.exit_status & kFsckInterrupted) != 0) {
    c->memory->Keep();
    c->report.memories.push_back(c->memory->file());
  } else {
    c->memory->Forget();
  }
}

}  // namespace

void fsck::CheckRun(Context* c) {
  if (!CheckFormatFile(c)) return;
  ReadLog(c);
  FoldRecords(c);
  CheckClaims(c);
  BeginDeep(c);
  CheckSamples(c);
  CheckSeals(c);
  CheckPacks(c);
  CheckLayers(c);
  Reproduce(c);
  CheckSource(c);
  CheckOutput(c);
  CheckLeftovers(c);
  EndDeep(c);
  if (c->root_dir.empty()) CheckEnvironment(c);   // of a root it was said once
}

// Commits by rename (servers without hard links) look like directories to anybody else.
std::unique_ptr<FileSystem> fsck::FileSystemOf(FileSystem& fs, const std::string& dir) {
  for (const char* name : {"FORMAT", "ROOT"}) {
    const auto info = fs.Stat(JoinPath(dir, name));
    if (info.ok() && info->is_directory) return MakeRenamingFileSystem(fs);
  }
  return nullptr;
}

std::string fsck::Context::Resume() const {
  if (is_root) return "a daemon (`holdfastd --root " + layout.root() + "`)";
  return root_dir.empty() ? "jobctl resume " + layout.root() : "jobctl --root " + root_dir + " resume " + BaseName(layout.root());
}

std::string fsck::Context::BeginAgain() const {
  const std::string dir = layout.root();
  if (root_dir.empty()) return "nothing says any more what the job was: `mv " + dir + " " + dir + ".lost`, then the `jobctl run` line that began it begins it anew";
  return "nothing says any more what the job was: `jobctl --root " + root_dir + " cancel " + BaseName(dir) + "`, then submit it again under another --name";
}

namespace {

// Whether this is a run directory at all, or could have been one.
bool LooksLikeARun(FileSystem& fs, const RunLayout& layout) {
  for (const std::string& path : {layout.FormatFile(), layout.LogDir(), layout.PackDir()}) {
    const auto there = fs.Exists(path);
    if (!there.ok() || *there) return true;
  }
  return false;
}

}  // namespace

std::string fsck::RootOf(FileSystem& fs, const std::string& dir) {
  const std::string jobs = DirName(dir), root = DirName(jobs);
  return BaseName(jobs) == "jobs" && IsJobId(BaseName(dir)) && LooksLikeARoot(fs, root) ? root : "";
}

RepairPlan fsck::WhoWorks(FileSystem& fs, const std::string& dir) {
  const FsckOptions quiet;
  Context c(fs, dir, quiet);
  c.is_root = LooksLikeARoot(fs, dir);
  if (!c.is_root) c.root_dir = RootOf(fs, dir);
  if (c.is_root ? CheckRootFile(&c) : CheckFormatFile(&c)) ReadLog(&c);
  if (!c.is_root) FoldRecords(&c);
  c.report.findings.clear();
  return MakeRepairPlan(c);
}

FsckReport RunFsck(FileSystem& fs, const std::string& dir, const FsckOptions& options) {
  const auto renaming = fsck::FileSystemOf(fs, dir);
  fsck::PacedFileSystem paced(renaming != nullptr ? *renaming : fs, options.clock, options.rate, options.stop);
  fsck::Context c(paced, dir, options);
  if (options.deep) c.paced = &paced;
  c.report.deep = options.deep;
  c.report.state = "unknown";
  const auto info = fs.Stat(dir);
  if (!info.ok()) {
    c.Unreadable(dir, info.error());
  } else if (info->is_directory && fsck::LooksLikeARoot(c.fs, dir)) {
    fsck::CheckRoot(&c);
  } else if (!info->is_directory || !LooksLikeARun(c.fs, c.layout)) {
    c.Unreadable(dir, InvalidArgument("neither a run directory nor a root: it has no FORMAT, ROOT or log/; give the directory of --run-dir (default: OUT.run), or of --root"));
  } else {
    c.root_dir = fsck::RootOf(c.fs, dir);
    fsck::CheckRun(&c);
  }
  if (auto plan = fsck::MakeRepairPlan(c); !plan.empty()) c.report.plans.insert(c.report.plans.begin(), std::move(plan));
  c.report.bytes_read += c.bytes_done;
  std::stable_sort(c.report.findings.begin(), c.report.findings.end(), [](const FsckFinding& a, const FsckFinding& b) {
    return std::tie(a.severity, a.code, a.object, a.message) < std::tie(b.severity, b.code, b.object, b.message);
  });
  return std::move(c.report);
}

}  // namespace holdfast
