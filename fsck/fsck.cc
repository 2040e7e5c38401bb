// SPDX-License-Identifier: Apache-2.0
#include "fsck/fsck.h"

#include <tuple>

#include "fsck/context.h"
#include "ledger/cluster/root.h"

namespace holdfast {

void fsck::CheckRun(Context* c) {
  if (!CheckFormatFile(c)) return;
  ReadLog(c);
  FoldRecords(c);
  CheckClaims(c);
  CheckSamples(c);
  CheckSeals(c);
  CheckPacks(c);
  CheckLayers(c);
  Reproduce(c);
  CheckSource(c);
  CheckOutput(c);
  CheckLeftovers(c);
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

namespace {

// Whether this is a run directory at all, or could have been one.
bool LooksLikeARun(FileSystem& fs, const RunLayout& layout) {
  for (const std::string& path : {layout.FormatFile(), layout.LogDir(), layout.PackDir()}) {
    const auto there = fs.Exists(path);
    if (!there.ok() || *there) return true;
  }
  return false;
}

// The root that `dir` lies in as jobs/<id>, or "".
std::string RootOf(FileSystem& fs, const std::string& dir) {
  const std::string jobs = DirName(dir), root = DirName(jobs);
  return BaseName(jobs) == "jobs" && IsJobId(BaseName(dir)) && fsck::LooksLikeARoot(fs, root) ? root : "";
}

}  // namespace

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
  fsck::Context c(renaming != nullptr ? *renaming : fs, dir, options);
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
    c.root_dir = RootOf(c.fs, dir);
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
