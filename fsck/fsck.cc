// SPDX-License-Identifier: Apache-2.0
#include "fsck/fsck.h"

#include <tuple>

#include "fsck/context.h"

namespace holdfast {
namespace {

void RunChecks(fsck::Context* c) {
  if (!fsck::CheckFormatFile(c)) return;
  fsck::ReadLog(c);
  fsck::FoldRecords(c);
  fsck::CheckSamples(c);
  fsck::CheckSeals(c);
  fsck::CheckPacks(c);
  fsck::CheckLayers(c);
  fsck::CheckSource(c);
  fsck::CheckOutput(c);
  fsck::CheckLeftovers(c);
}

// Whether this is a run directory at all, or could have been one.
bool LooksLikeARun(FileSystem& fs, const RunLayout& layout) {
  for (const std::string& path : {layout.FormatFile(), layout.LogDir(), layout.PackDir()}) {
    const auto there = fs.Exists(path);
    if (!there.ok() || *there) return true;
  }
  return false;
}

}  // namespace

FsckReport RunFsck(FileSystem& fs, const std::string& run_dir, const FsckOptions& options) {
  fsck::Context c(fs, run_dir, options);
  c.report.deep = options.deep;
  c.report.state = "unknown";
  const auto info = fs.Stat(run_dir);
  if (!info.ok()) {
    c.Unreadable(run_dir, info.error());
  } else if (!info->is_directory || !LooksLikeARun(fs, c.layout)) {
    c.Unreadable(run_dir, InvalidArgument("not a run directory: it has neither FORMAT nor log/; give the directory of --run-dir (default: OUT.run)"));
  } else {
    RunChecks(&c);
  }
  c.report.bytes_read += c.bytes_done;
  std::stable_sort(c.report.findings.begin(), c.report.findings.end(), [](const FsckFinding& a, const FsckFinding& b) {
    return std::tie(a.severity, a.code, a.object, a.message) < std::tie(b.severity, b.code, b.object, b.message);
  });
  return std::move(c.report);
}

}  // namespace holdfast
