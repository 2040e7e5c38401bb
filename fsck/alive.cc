// SPDX-License-Identifier: Apache-2.0
#include "fsck/alive.h"

#include <map>

#include "ledger/cluster/queue.h"
#include "ledger/records/this_process.h"

namespace holdfast::fsck {
namespace {

constexpr uint64_t kLookMs = 1000;

std::string Where(const Incarnation& who) { return "process " + std::to_string(who.pid) + " on " + who.hostname; }

// What moves while somebody works: the lengths of the streams, and the beats of a root.
std::map<std::string, std::string> Signs(FileSystem& fs, const RepairPlan& plan) {
  std::map<std::string, std::string> signs;
  const RunLayout layout(plan.dir);
  const auto streams = fs.List(layout.LogDir());
  for (size_t i = 0; streams.ok() && i < streams->size(); ++i) {
    const auto slots = fs.List(layout.StreamDir((*streams)[i]));
    signs[(*streams)[i]] = slots.ok() ? std::to_string(slots->size()) : "";
  }
  const std::string root = plan.is_root ? plan.dir : plan.root;
  if (root.empty()) return signs;
  const std::string beats = RootLayout(root).BeatsDir();
  const auto names = fs.List(beats);
  for (size_t i = 0; names.ok() && i < names->size(); ++i) {
    const auto info = fs.Stat(JoinPath(beats, (*names)[i]));
    if (info.ok()) signs["beat " + (*names)[i]] = std::to_string(info->inode) + " " + std::to_string(info->mtime_ns);
  }
  return signs;
}

// Of a root: a daemon on this machine that lives; `unsure`: there is one elsewhere that has not said goodbye.
std::optional<Incarnation> DaemonHere(FileSystem& fs, const std::string& root, bool* unsure) {
  const auto info = ReadRoot(fs, RootLayout(root));
  if (!info.ok()) return std::nullopt;
  Roster roster(fs, RootLayout(root), info->uuid);
  (void)roster.Refresh();   // a damaged stream hides its own node only
  for (const auto& [name, node] : roster.nodes()) {
    if (node.released) continue;
    const Liveness life = ProbeIncarnation(node.incarnation);
    if (life == Liveness::kAlive) return node.incarnation;
    *unsure |= life == Liveness::kElsewhere;
  }
  return std::nullopt;
}

// May a daemon take this job up at any moment?
bool Queued(FileSystem& fs, const RepairPlan& plan) {
  const auto info = ReadRoot(fs, RootLayout(plan.root));
  if (!info.ok()) return true;
  Queue queue(fs, RootLayout(plan.root), info->uuid);
  if (!queue.Refresh().ok()) return true;
  const auto job = queue.Find(BaseName(plan.dir));
  return job.ok() && (*job)->state == QueuedJob::State::kQueued;
}

Status CheckOwners(const RepairPlan& plan, bool* unsure) {
  for (const RepairPlan::Owner& owner : plan.owners) {
    if (plan.is_root || !owner.who) continue;   // of a root the daemons are asked for below; whoever introduced himself nowhere leaves only his tail
    const Liveness life = ProbeIncarnation(*owner.who);
    *unsure |= life == Liveness::kElsewhere;
    if (life != Liveness::kAlive) continue;
    const std::string how = plan.root.empty() ? "stop it with `kill -TERM " + std::to_string(owner.who->pid) + "`"
                                              : "`jobctl --root " + plan.root + " cancel " + BaseName(plan.dir) + "` stops work on it";
    return InvalidArgument(plan.dir + ": " + Where(*owner.who) + " is working on it (stream " + owner.stream + "); nothing is repaired meanwhile: " + how +
                           ", then the same line again");
  }
  return OkStatus();
}

}  // namespace

Status RefuseWhileAlive(FileSystem& fs, Clock& clock, const RepairPlan& plan, const RepairOptions& options) {
  bool unsure = false;
  HOLDFAST_TRY(CheckOwners(plan, &unsure));
  if (plan.is_root || (!plan.root.empty() && Queued(fs, plan))) {
    const std::string root = plan.is_root ? plan.dir : plan.root;
    const auto daemon = DaemonHere(fs, root, &unsure);
    const std::string first = plan.is_root ? "stop all daemons" : "`jobctl --root " + root + " cancel " + BaseName(plan.dir) + "`";
    if (daemon) return InvalidArgument(plan.dir + ": the daemon " + daemon->node + " (" + Where(*daemon) + ") lives and may take it up; " + first + ", then the same line again");
  }
  if (!unsure) return OkStatus();
  if (options.on_line) options.on_line("somebody on another machine may work on " + plan.dir + ": watching for " + std::to_string(options.watch_ms / 1000) + " s");
  const auto signs = Signs(fs, plan);
  for (uint64_t waited = 0; waited < options.watch_ms; waited += kLookMs) {
    if (options.stop != nullptr && *options.stop) return Stopped("stopped while watching " + plan.dir);
    clock.SleepMs(kLookMs);
    if (Signs(fs, plan) != signs) return InvalidArgument(plan.dir + ": somebody on another machine is working on it; stop that first, then the same line again");
  }
  return OkStatus();
}

}  // namespace holdfast::fsck
