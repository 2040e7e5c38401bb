// SPDX-License-Identifier: Apache-2.0
//
// F090-F092: what no record refers to, and whether the rest of the job will fit. Leftovers are normal after a crash and harmless; a
// worker that is alive may own some of them, so they are only counted.
#include "export/merge/merge.h"
#include "fsck/context.h"

namespace holdfast::fsck {
namespace {

struct Tally {
  uint64_t files = 0, bytes = 0;
};

void CountBelow(Context* c, const std::string& dir, uint32_t depth, Tally* tally) {
  const auto names = c->fs.List(dir);
  for (size_t i = 0; names.ok() && i < names->size(); ++i) {
    const std::string path = JoinPath(dir, (*names)[i]);
    const auto info = c->fs.Stat(path);
    if (!info.ok()) continue;  // gone meanwhile
    if (info->is_directory && depth > 0) {
      CountBelow(c, path, depth - 1, tally);
    } else if (!info->is_directory) {
      ++tally->files;
      tally->bytes += info->size;
    }
  }
}

void Orphans(Context* c, const std::string& object, const Tally& tally, const std::string& what, const std::string& advice, Remedies remedies) {
  if (tally.files == 0) return;
  c->Add("F090", FsckSeverity::kInfo, object, std::to_string(tally.files) + " files, " + std::to_string(tally.bytes) + " bytes: " + what, advice, std::move(remedies));
}

void CheckUnreferencedPacks(Context* c) {
  Tally tally;
  Remedies away;
  const auto dirs = c->fs.List(c->layout.PackDir());
  for (size_t d = 0; dirs.ok() && d < dirs->size(); ++d) {
    const std::string dir = JoinPath(c->layout.PackDir(), (*dirs)[d]);
    const auto files = c->fs.List(dir);
    for (size_t i = 0; files.ok() && i < files->size(); ++i) {
      const std::string& name = (*files)[i];
      if (name.size() != 69 || c->packs_referenced.contains(name.substr(0, 64))) continue;
      const auto info = c->fs.Stat(JoinPath(dir, name));
      ++tally.files;
      tally.bytes += info.ok() ? info->size : 0;
      away.push_back(Remedy::MoveAway(JoinPath(dir, name)));
    }
  }
  if (c->log.damaged) away.clear();   // whoever does the lost work again finds them there
  Orphans(c, "pack", tally, c->log.damaged ? "no readable record refers to these packs; lost slots may have" : "no record refers to these packs: their writer died before it committed, or was fenced", "", std::move(away));
}

// Hidden siblings of the output, one per claim of the merge stream.
void CheckStaging(Context* c) {
  if (!c->log.job) return;
  const std::string& out = c->log.job->out;
  const auto prefix = StagingPrefix(c->fs, c->layout, *c->log.job);
  if (!prefix.ok()) return;   // no FORMAT: said elsewhere
  std::set<std::string> in_use;
  for (const auto& [file, m] : c->log.written) {
    if (!c->log.published && !c->log.done) in_use.insert(BaseName(m.staging));
  }
  const auto names = c->fs.List(DirName(out));
  for (size_t i = 0; names.ok() && i < names->size(); ++i) {
    if (!(*names)[i].starts_with(*prefix) || in_use.contains((*names)[i])) continue;
    Tally tally;
    const std::string path = JoinPath(DirName(out), (*names)[i]);
    CountBelow(c, path, 4, &tally);
    Orphans(c, path, tally, "an unfinished output of this job", "a merge that goes on takes over what it can; afterwards the directory may be deleted",
            c->log.done ? Remedy::MoveAway(path) : Remedy{});
  }
}

uint64_t UnitBytes(const UnitPlan& unit) {
  uint64_t bytes = 0;
  for (const TensorPlan& t : unit.tensors) bytes += t.bytes;
  for (const SitePlan& s : unit.sites) bytes -= std::min(bytes, s.rows * s.cols - s.rows * s.cols / 2 - s.rows * s.cols / 16);  // at least a byte an element shrinks away
  return bytes;
}

// F092. An upper estimate: evicted layers that are still to come, and the output once.
void CheckSpace(Context* c) {
  const Plan* plan = c->log.plan();
  if (plan == nullptr || !c->log.job || c->log.published || c->log.done) return;
  uint64_t run = 0, out = 0;
  for (const UnitPlan& unit : plan->units) {
    const uint64_t bytes = UnitBytes(unit);
    out += bytes;
    if (c->log.Layer(unit.id) == nullptr) run += bytes;
  }
  for (const auto& [file, m] : c->log.written) out -= std::min(out, m.size);
  const auto warn = [&](const std::string& path, uint64_t need) {
    const auto space = c->fs.Space(path);
    if (!space.ok() || space->free_bytes >= need) return;
    c->Add("F092", FsckSeverity::kWarning, path, std::to_string(space->free_bytes) + " bytes free, the rest of the job may need " + std::to_string(need),
           "free some space; a job that runs out of it stops without losing anything");
  };
  warn(c->layout.root(), run);
  warn(DirName(c->log.job->out), out);
}

}  // namespace

void CheckTmp(Context* c) {
  const auto names = c->fs.List(c->layout.TmpDir());
  for (size_t i = 0; names.ok() && i < names->size(); ++i) {
    Tally tally;
    const std::string path = JoinPath(c->layout.TmpDir(), (*names)[i]);
    const auto info = c->fs.Stat(path);
    if (!info.ok()) continue;
    if (info->is_directory) {
      CountBelow(c, path, 2, &tally);
    } else {
      tally = {1, info->size};
    }
    Orphans(c, "tmp/" + (*names)[i], tally, "private files of one process; if it is dead nobody needs them", "", Remedy::MoveAway(path));
  }
}

void CheckLeftovers(Context* c) {
  CheckTmp(c);
  CheckUnreferencedPacks(c);
  CheckStaging(c);
  CheckSpace(c);
}

}  // namespace holdfast::fsck
