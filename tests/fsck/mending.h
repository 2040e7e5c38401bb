// SPDX-License-Identifier: Apache-2.0
//
// What the tests of repair share: damaging a tiny run, mending it in this process, comparing its bytes.
#pragma once

#include <algorithm>
#include <map>
#include <string>

#include "fsck/repair.h"
#include "tests/fsck/tiny_run.h"

namespace holdfast::testing {

inline std::string Text(const FsckReport& r) { return FsckReportToText("RUN", r); }

inline std::string Text(const RepairReport& r) {
  std::string text = "before:\n" + Text(r.before) + "after:\n" + Text(r.after);
  for (const std::string& why : r.refusals) text += "refused: " + why + "\n";
  for (const RepairPlan& plan : r.before.plans) {
    for (const std::string& line : plan.Lines()) text += "plan: " + line + "\n";
  }
  return text;
}

inline bool Has(const FsckReport& r, const std::string& code) {
  return std::any_of(r.findings.begin(), r.findings.end(), [&](const FsckFinding& f) { return f.code == code; });
}

// Every file below `dir` with its bytes; what belongs to repair itself aside.
inline void Collect(FileSystem& fs, const std::string& dir, std::map<std::string, std::string>* tree) {
  const auto names = fs.List(dir);
  for (size_t i = 0; names.ok() && i < names->size(); ++i) {
    const std::string path = JoinPath(dir, (*names)[i]);
    if ((*names)[i] == "quarantine" || (*names)[i] == "tmp") continue;
    const auto info = fs.Stat(path);
    if (info.ok() && info->is_directory) {
      Collect(fs, path, tree);
    } else if (info.ok()) {
      (*tree)[path] = Sha256(Slurp(path)).Hex().substr(0, 12);
    }
  }
}

inline std::map<std::string, std::string> Tree(TinyRun& run) {
  std::map<std::string, std::string> tree;
  Collect(run.fs, run.dir, &tree);
  Collect(run.fs, run.out, &tree);
  return tree;
}

inline RepairOptions Options(bool deep = false) {
  RepairOptions o;
  o.check.deep = deep;
  o.check.threads = 2;
  o.watch_ms = 0;
  o.orphan_age_ms = 0;
  return o;
}

inline RepairReport Repair(TinyRun& run, bool deep = false) {
  RealClock clock;
  return RunRepair(run.fs, clock, run.dir, Options(deep));
}

inline std::string IdOf(const RepairReport& r) { return r.quarantines.empty() ? "" : BaseName(r.quarantines.front()); }

inline UndoReport Undo(TinyRun& run, const std::string& id) {
  RealClock clock;
  return RunUndo(run.fs, clock, run.dir, id, Options());
}

inline bool Folds(TinyRun& run) {
  RunState state(run.fs, run.layout);
  const Status s = state.Refresh();
  if (!s.ok()) fprintf(stderr, "%s\n", s.error().message.c_str());
  return s.ok();
}

inline void Flip(TinyRun& run, const std::string& path, size_t at) {
  Bytes bytes = Slurp(path);
  bytes[at < bytes.size() ? at : bytes.size() - 1] ^= 0x10;
  run.Rewrite(path, bytes);
}

}  // namespace holdfast::testing
