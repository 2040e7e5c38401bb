// SPDX-License-Identifier: Apache-2.0
//
// jobctl export: the output of a finished run once more, in either layout, from the packs that are there. The run directory is only read. Each
// attempt writes in a hidden sibling of the output; a small file beside that says whose it is, from before the sibling exists until after it is
// published or removed, so that whoever types the line again can tell the remains of a dead process from the work of a living one.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <thread>

#include "daemon/node/process.h"
#include "export/merge/merge.h"
#include "fsck/command.h"
#include "jobctl/options.h"
#include "jobctl/preflight.h"
#include "jobctl/progress.h"
#include "ledger/base/fail_point.h"

namespace holdfast {
namespace {

constexpr char kOwnerSuffix[] = ".owner";
constexpr uint64_t kOwnerBytesMax = 64u << 10;
constexpr uint32_t kOwnerMode = 0644;

Progress::Mode ModeOf(const ExportOptionsCli& o) {
  if (o.json) return Progress::Mode::kJson;
  if (o.quiet) return Progress::Mode::kQuiet;
  return ::isatty(STDERR_FILENO) == 1 ? Progress::Mode::kTerminal : Progress::Mode::kPlain;
}

bool IsInside(const std::string& path, const std::string& dir) { return path == dir || path.starts_with(dir + "/"); }

class ExportJob {
 public:
  explicit ExportJob(const ExportOptionsCli& options)
      : options_(options), state_(fs_, RunLayout(options.run_dir)), progress_(clock_, ModeOf(options)), self_(DescribeThisProcess("export", "jobctl", "cpu")) {
    target_.out = options.out;
    target_.staging_prefix = "." + BaseName(options.out) + ".holdfast-export-";
    for (size_t i = 0; i < 8; ++i) target_.attempt = target_.attempt << 8 | self_.nonce.bytes[i];
  }
  Result<int> Run();

 private:
  std::string Sibling(const std::string& name) const { return JoinPath(DirName(target_.out), name); }
  std::string StagingPath() const { return Sibling(target_.staging_prefix + std::to_string(target_.attempt)); }
  std::string OwnerPath() const { return StagingPath() + kOwnerSuffix; }
  std::string Dir() const { return state_.layout().root(); }

  Status CheckJob();
  Status CheckPlace() const;
  Status CheckRoom(const OutputPlan& output);
  Status ClearDead();
  Status ClearOne(const std::string& owner);
  Status SayWhose();
  Result<Digest> Write();

  const ExportOptionsCli options_;
  PosixFileSystem fs_;
  RealClock clock_;
  RunState state_;
  Progress progress_;
  const Incarnation self_;
  ExportTarget target_;
};

// The job is done, and what its output was made of is still there.
Status ExportJob::CheckJob() {
  const std::vector<UnitPlan>& units = state_.plan().units;
  const auto missing = std::count_if(units.begin(), units.end(), [&](const UnitPlan& u) { return state_.Layer(u.id) == nullptr; });
  if (missing > 0 || !state_.done()) {
    const std::string what = missing > 0 ? std::to_string(missing) + " of " + std::to_string(units.size()) + " layers are not quantized yet" : "the job is not done yet";
    return InvalidArgument(Dir() + ": " + what + "; `jobctl resume " + Dir() + "` finishes it (a job of a root: its nodes do), then type this line again");
  }
  uint64_t gone = 0;
  for (const UnitPlan& u : units) {
    for (const PackManifest& m : state_.Layer(u.id)->packs) gone += fs_.Stat(state_.layout().Pack(m.root)).code() == ErrorCode::kNotFound ? 1 : 0;
  }
  if (gone == 0) return OkStatus();
  return InvalidArgument(Dir() + ": " + std::to_string(gone) + " packs that the output would be written from are gone (`jobctl gc`?); `jobctl fsck " + Dir() +
                         " --repair` opens the work on them again, and `jobctl resume " + Dir() + "` does it");
}

Status ExportJob::CheckPlace() const {
  const std::string& own = state_.job().out;
  if (target_.out == own) return InvalidArgument("--out " + own + " is the job's own output, which `jobctl resume " + Dir() + "` writes if it is gone; choose another --out");
  for (const std::string& dir : {own, Dir()}) {
    if (IsInside(target_.out, dir)) return InvalidArgument("--out " + target_.out + " lies in " + dir + ", where nothing but the job's own files may be; choose another --out");
  }
  return OkStatus();
}

Status ExportJob::CheckRoom(const OutputPlan& output) {
  const std::string parent = DirName(target_.out);
  HOLDFAST_TRY(fs_.MakeDirs(parent));
  HOLDFAST_ASSIGN(const SpaceInfo space, fs_.Space(parent));
  const uint64_t need = OutputBytes(output);
  if (space.free_bytes >= need) return OkStatus();
  return InvalidArgument("not enough space in " + parent + ": " + FormatSize(need) + " to be written, " + FormatSize(space.free_bytes) + " free; make room for " +
                         FormatSize(need - space.free_bytes) + " more, or choose another --out");
}

Status ExportJob::ClearOne(const std::string& owner) {
  const std::string path = Sibling(owner), staging = path.substr(0, path.size() - std::string(kOwnerSuffix).size());
  const auto text = fs_.ReadFile(path, kOwnerBytesMax);
  if (text.code() == ErrorCode::kNotFound) return OkStatus();   // it ended a moment ago
  if (!text.ok()) return text.error();
  const auto json = ParseJson(AsText(*text), path);
  const auto who = json.ok() ? Incarnation::FromJson(*json) : Result<Incarnation>(json.error());
  const Liveness life = who.ok() ? ProbeIncarnation(*who) : Liveness::kDead;   // torn: its writer died before it began
  if (life == Liveness::kAlive) {
    return InvalidArgument(target_.out + ": process " + std::to_string(who->pid) + " on " + who->hostname + " is writing it; wait for it, or stop it with `kill -TERM " +
                           std::to_string(who->pid) + "`");
  }
  if (life != Liveness::kDead && life != Liveness::kRebooted) {
    progress_.Event("note: " + staging + " is an unfinished export of " + who->hostname + ", another machine; if nobody works there any more, remove it and " + path);
    return OkStatus();
  }
  // Aside first: should its owner live after all (a clone of this machine), it can no longer publish what is being removed.
  const std::string dead = staging + ".dead";
  HOLDFAST_ASSIGN(const bool begun, fs_.Exists(dead));
  if (begun) HOLDFAST_TRY(fs_.RemoveTree(dead));
  const Status aside = fs_.RenameExclusive(staging, dead);
  if (!aside.ok() && aside.code() != ErrorCode::kNotFound) return aside;
  HOLDFAST_TRY(FailPoint("export.aside", target_.out));
  if (aside.ok()) HOLDFAST_TRY(fs_.RemoveTree(dead));
  return fs_.Unlink(path);
}

// What dead attempts at this output left.
Status ExportJob::ClearDead() {
  const auto names = fs_.List(DirName(target_.out));
  if (names.code() == ErrorCode::kNotFound) return OkStatus();
  if (!names.ok()) return names.error();
  for (const std::string& name : *names) {
    if (name.starts_with(target_.staging_prefix) && name.ends_with(kOwnerSuffix)) HOLDFAST_TRY(ClearOne(name));
  }
  return OkStatus();
}

Status ExportJob::SayWhose() {
  HOLDFAST_ASSIGN(const auto file, fs_.Create(OwnerPath(), kOwnerMode));
  HOLDFAST_TRY(file->Append(AsBytes(self_.ToJson().dump() + "\n")));
  HOLDFAST_TRY(file->Sync());
  HOLDFAST_TRY(file->Close());
  HOLDFAST_TRY(fs_.SyncDir(DirName(target_.out)));
  return FailPoint("export.owner", target_.out);
}

// Ends without a staging, published or not, unless the process itself ends.
Result<Digest> ExportJob::Write() {
  MergeOptions merge;
  merge.threads = options_.threads > 0 ? options_.threads : std::max(1u, std::thread::hardware_concurrency());
  merge.incarnation = self_.nonce;
  merge.stop = StopOnSignals();
  merge.on_progress = [this](const MergeProgress& p) { progress_.Merge(p); };
  const Status said = SayWhose();
  const auto manifest = said.ok() ? RunExport(fs_, state_, target_, merge) : Result<Digest>(said.error());
  const auto left = fs_.Exists(StagingPath());
  const Status removed = left.ok() && *left ? fs_.RemoveTree(StagingPath()) : Status(OkStatus());
  if (removed.ok()) (void)fs_.Unlink(OwnerPath()).ok();   // else the next attempt removes both
  return manifest;
}

Result<int> ExportJob::Run() {
  HOLDFAST_ASSIGN(target_.layout, LayoutAsked(options_.layout));
  const Status read = state_.Refresh();
  if (read.code() == ErrorCode::kNotFound) return NotFound(Dir() + ": no run here; give the run directory of a job, OUT.run unless it was named with --run-dir");
  HOLDFAST_TRY(read);
  if (!state_.has_plan()) return InvalidArgument(Dir() + ": nothing is planned yet; `jobctl resume " + Dir() + "`");
  HOLDFAST_TRY(CheckJob());
  HOLDFAST_TRY(CheckPlace());
  HOLDFAST_TRY(ClearDead());
  const OutputPlan output = PlanOutput(state_.plan(), state_.job().shard_bytes, target_.layout);
  HOLDFAST_ASSIGN(const bool already, fs_.Exists(target_.out));
  if (!already) HOLDFAST_TRY(CheckRoom(output));
  HOLDFAST_ASSIGN(const Digest manifest, already ? RunExport(fs_, state_, target_, {}) : Write());
  progress_.EventJson({{"event", "exported"}, {"run_dir", Dir()}, {"out", target_.out}, {"layout", LayoutName(target_.layout)}, {"already", already},
                       {"files", output.files.size()}, {"bytes", output.total_size}, {"manifest", manifest.Hex()}});
  if (!options_.json) {
    std::printf("%s%s: %s in the layout of %s, %zu file(s) of weights%s\n", progress_.mode() == Progress::Mode::kTerminal ? "\n" : "", target_.out.c_str(),
                FormatSize(output.total_size).c_str(), LayoutName(target_.layout), output.files.size(), already ? "; already there" : "");
  }
  return kExitOk;
}

// Nothing of an attempt that ended is used by the next one.
Error WithNextCommand(const Error& e) {
  if (ExitStatusOf(e.code) != kExitResumable) return e;
  return Annotate(e, "stopped; the same line again writes it from the beginning");
}

}  // namespace

int ExportCommand(const ExportOptionsCli& options) {
  ExportOptionsCli o = options;
  o.run_dir = AbsolutePath(o.run_dir);
  o.out = AbsolutePath(o.out);
  const auto result = ExportJob(o).Run();
  return result.ok() ? *result : Fail(WithNextCommand(result.error()), o.json);
}

}  // namespace holdfast
