// SPDX-License-Identifier: Apache-2.0
//
// One job: fsck's own reading of it, what may go, the question who is alive, the claim and the X record, the removals.
#include "fsck/gc.h"

#include <algorithm>
#include <map>
#include <set>

#include "export/merge/merge.h"
#include "fsck/alive.h"
#include "fsck/context.h"
#include "fsck/quarantine.h"
#include "ledger/base/fail_point.h"
#include "ledger/base/hash_file.h"
#include "ledger/base/parallel.h"
#include "ledger/base/printable.h"
#include "ledger/base/units.h"
#include "ledger/cluster/queue.h"
#include "ledger/cluster/root.h"
#include "ledger/records/this_process.h"

namespace holdfast {

namespace {

GcTally Sum(std::initializer_list<GcTally> all) {
  GcTally sum;
  for (const GcTally& t : all) sum.files += t.files, sum.bytes += t.bytes;
  return sum;
}

}  // namespace

GcTally GcJob::total() const { return Sum({packs, cuts, orphans, staging, tmp, quarantine}); }

GcTally GcReport::total() const {
  GcTally sum;
  for (const GcJob& job : jobs) sum = Sum({sum, job.total()});
  return sum;
}

bool GcReport::refused() const {
  return std::any_of(jobs.begin(), jobs.end(), [](const GcJob& j) { return j.refused; });
}

namespace fsck {
namespace {

constexpr const char* kNode = "gc";
constexpr const char* kAll = "all";

enum class State : uint8_t { kOpen, kCancelled, kDone };

struct Item {
  std::string path;
  GcTally GcJob::*what = nullptr;
  GcTally size;
  bool tree = false;
};

void Measure(FileSystem& fs, const std::string& path, uint32_t depth, GcTally* tally) {
  const auto info = fs.Stat(path);
  if (!info.ok()) return;   // gone meanwhile
  if (!info->is_directory) {
    ++tally->files;
    tally->bytes += info->size;
    return;
  }
  const auto names = depth > 0 ? fs.List(path) : Result<std::vector<std::string>>(NotFound(path));
  for (size_t i = 0; names.ok() && i < names->size(); ++i) Measure(fs, JoinPath(path, (*names)[i]), depth - 1, tally);
}

class Collector {
 public:
  Collector(FileSystem& fs, Clock& clock, const std::string& dir, const std::string& root, bool cancelled, const GcOptions& options, GcJob* job)
      : fs_(fs), clock_(clock), options_(options), check_{}, c_(fs, dir, check_), job_(*job), self_(DescribeThisProcess(kNode, "gc", "cpu")), cancelled_(cancelled) {
    c_.root_dir = root;
    c_.report.state = "unknown";
  }

  Status Run() {
    CheckRun(&c_);
    if (c_.log.slots == 0) return job_.state = "nothing here", OkStatus();
    if (c_.report.exit_status != 0) return Refuse("fsck finds errors, so that nobody can say what is needed: `jobctl fsck " + c_.layout.root() + "` names them; nothing was removed");
    state_ = c_.log.done && c_.log.published ? State::kDone : cancelled_ ? State::kCancelled : State::kOpen;
    constexpr const char* kNames[] = {"open", "cancelled", "done"};
    job_.state = kNames[static_cast<size_t>(state_)];
    Choose();
    if (state_ == State::kOpen) job_.kept = "it is neither done nor cancelled: only cuts and layers go that nobody reads again; " + Finish();
    if (items_.empty()) return OkStatus();
    if (options_.dry_run) return Count(), OkStatus();
    const bool only_packs = std::all_of(items_.begin(), items_.end(), [](const Item& i) { return i.what == &GcJob::cuts || i.what == &GcJob::packs; });
    if (state_ != State::kOpen || !only_packs) {
      const Status quiet = WaitForQuiet();
      if (quiet.code() == ErrorCode::kInvalidArgument) return Refuse(quiet.error().message);
      HOLDFAST_TRY(quiet);
    }
    HOLDFAST_TRY(Justify());
    if (job_.refused) return OkStatus();
    const Status removed = RemoveAll();
    Release();
    return removed;
  }

  // Asked for by name: the job's part of --quarantine.
  bool found_quarantine() const { return found_quarantine_; }

 private:
  Status Refuse(const std::string& why) {
    job_.refused = true;
    job_.kept = why;
    return OkStatus();
  }
  void Say(const std::string& line) const {
    if (options_.on_line) options_.on_line(line);
  }
  std::string Finish() const { return c_.root_dir.empty() ? "`" + c_.Resume() + "` finishes it" : "`jobctl --root " + c_.root_dir + " status " + BaseName(c_.layout.root()) + "` says how far it is"; }

  // ---- what may go ----

  void Choose() {
    ChoosePacks();
    if (state_ != State::kOpen) {
      ChooseTmp();
      ChooseStaging();
    }
    if (!options_.quarantine.empty()) ChooseQuarantine();
  }

  // Which packs somebody may still want to read.
  std::set<std::string> Wanted(std::set<std::string>* cuts) const {
    std::set<std::string> wanted;
    for (const auto& [sample, all] : c_.log.samples) {
      for (const auto& s : all) {
        for (const PackManifest& m : s.value.output ? s.value.output->packs : std::vector<PackManifest>()) {
          cuts->insert(m.root.Hex());
          if (!Consumed(s.value)) wanted.insert(m.root.Hex());
        }
      }
    }
    for (const auto& [unit, all] : c_.log.layers) {
      for (const auto& e : all) {
        const bool superseded = Superseded(e.value);
        for (const PackManifest& m : e.value.packs) {
          if (!superseded) wanted.insert(m.root.Hex());
          cuts->erase(m.root.Hex());
        }
      }
    }
    return wanted;
  }

  // Everything behind it is sealed, with this sample or without it, and for all others. The stage behind alone would not do: a later plan may
  // join that with one that is not sealed, and begin at this very cut.
  bool Consumed(const SampleRecord& s) const {
    const Plan* plan = c_.log.plan();
    if (plan == nullptr) return false;
    for (uint32_t layer = s.last_layer; layer < plan->layers; ++layer) {
      const bool computed = c_.log.Sample(s.sample, layer) != nullptr;
      const auto sealed = [&](const auto& z) {
        const bool here = z.value.first_layer <= layer && layer < z.value.last_layer;
        return here && (computed || std::binary_search(z.value.omitted.begin(), z.value.omitted.end(), s.sample));
      };
      if (std::none_of(c_.log.seals.begin(), c_.log.seals.end(), sealed)) return false;
    }
    return true;
  }

  // Made when fewer samples were left out, and made again since. What is left out only grows, so it never counts again. And nobody makes its
  // packs once more: with still fewer samples amax can only shrink, and what is equal to these was equal to those in between, which stay.
  bool Superseded(const LayerRecord& e) const {
    const std::vector<uint32_t>& now = c_.log.omitted;
    return !c_.log.Counts(e) && std::includes(now.begin(), now.end(), e.omitted.begin(), e.omitted.end()) && c_.log.Layer(e.unit) != nullptr;
  }

  void ChoosePacks() {
    std::set<std::string> cuts;
    const std::set<std::string> wanted = Wanted(&cuts);
    const auto dirs = fs_.List(c_.layout.PackDir());
    for (size_t d = 0; dirs.ok() && d < dirs->size(); ++d) {
      const std::string dir = JoinPath(c_.layout.PackDir(), (*dirs)[d]);
      const auto files = fs_.List(dir);
      for (size_t i = 0; files.ok() && i < files->size(); ++i) {
        Digest root;
        const std::string& name = (*files)[i];
        if (name.size() != 69 || !name.ends_with(".pack") || !Digest::FromHex(name.substr(0, 64), &root)) continue;
        const std::string hex = root.Hex();
        const bool cut = cuts.contains(hex), needed = wanted.contains(hex), orphan = !c_.packs_referenced.contains(hex);
        if (orphan ? state_ == State::kOpen : needed && state_ != State::kDone) continue;
        Add(JoinPath(dir, name), orphan ? &GcJob::orphans : cut ? &GcJob::cuts : &GcJob::packs, /*tree=*/false);
      }
    }
  }

  // Of somebody who has introduced himself and is dead, or that is old.
  void ChooseTmp() {
    const auto names = fs_.List(c_.layout.TmpDir());
    for (size_t i = 0; names.ok() && i < names->size(); ++i) {
      const std::string path = JoinPath(c_.layout.TmpDir(), (*names)[i]);
      const auto info = fs_.Stat(path);
      Nonce owner;
      const auto life = Nonce::FromHex((*names)[i], &owner) ? c_.log.lives.find(owner) : c_.log.lives.end();
      const bool dead = life != c_.log.lives.end() && ProbeIncarnation(life->second) == Liveness::kDead;
      const bool old = info.ok() && info->mtime_ns + options_.orphan_age_ms * 1'000'000 <= clock_.WallNs();
      if (info.ok() && (dead || old)) Add(path, &GcJob::tmp, /*tree=*/true);
    }
  }

  // Hidden siblings of the output. Of a cancelled job those stay in which the merge has finished a file: a resume takes it from there.
  void ChooseStaging() {
    const std::string& out = c_.log.job->out;
    const auto prefix = StagingPrefix(fs_, c_.layout, *c_.log.job);
    if (!prefix.ok()) return;
    std::set<std::string> in_use;
    for (const auto& [file, m] : c_.log.written) {
      if (state_ != State::kDone) in_use.insert(BaseName(m.staging));
    }
    const auto names = fs_.List(DirName(out));
    for (size_t i = 0; names.ok() && i < names->size(); ++i) {
      if ((*names)[i].starts_with(*prefix) && !in_use.contains((*names)[i])) Add(JoinPath(DirName(out), (*names)[i]), &GcJob::staging, /*tree=*/true);
    }
  }

  // The manifest goes first, by a rename: half a quarantine must not be put back. What it moved away beside the directory goes with it.
  void ChooseQuarantine() {
    const auto names = fs_.List(c_.layout.QuarantineDir());
    for (size_t i = 0; names.ok() && i < names->size(); ++i) {
      const std::string& id = (*names)[i];
      if (options_.quarantine != kAll && options_.quarantine != id) continue;
      found_quarantine_ = true;
      const auto manifest = ReadManifest(fs_, c_.layout, id);
      for (size_t m = 0; manifest.ok() && m < manifest->moves.size(); ++m) {
        if (manifest->moves[m].to.starts_with("/")) Add(manifest->moves[m].to, &GcJob::quarantine, /*tree=*/true);
      }
      Add(Quarantine(c_.layout, id).dir(), &GcJob::quarantine, /*tree=*/true);
    }
  }

  void Add(const std::string& path, GcTally GcJob::*what, bool tree) {
    Item item{path, what, {}, tree};
    Measure(fs_, path, tree ? 8 : 1, &item.size);
    const auto there = fs_.Exists(path);
    if (there.ok() && *there) items_.push_back(std::move(item));
  }

  void Count() {
    for (const Item& i : items_) job_.*i.what = Sum({job_.*i.what, i.size});
  }

  // ---- what must be true first ----

  RepairOptions Watching() const {
    RepairOptions o;
    o.watch_ms = options_.watch_ms;
    o.stop = options_.stop;
    o.on_line = options_.on_line;
    return o;
  }
  Status WaitForQuiet() { return RefuseWhileAlive(fs_, clock_, plan_ = MakeOwners(), Watching()); }

  RepairPlan MakeOwners() const {
    RepairPlan plan = MakeRepairPlan(c_);
    plan.dir = c_.layout.root();
    plan.root = c_.root_dir;
    return plan;
  }

  Status Justify() {
    const bool packs = std::any_of(items_.begin(), items_.end(), [](const Item& i) { return i.what == &GcJob::packs || i.what == &GcJob::orphans || i.what == &GcJob::cuts; });
    const bool others = std::any_of(items_.begin(), items_.end(), [](const Item& i) { return i.what == &GcJob::orphans || i.what == &GcJob::staging; });
    if (state_ == State::kDone && packs) {
      const Status same = CompareOutput();
      if (same.code() == ErrorCode::kCorrupt) return Refuse(same.error().message);
      HOLDFAST_TRY(same);
      if (!c_.log.expired) HOLDFAST_TRY(Claim(RunLayout::JobStream(), /*expire=*/true, "done"));
    } else if (state_ == State::kCancelled && others) {
      HOLDFAST_TRY(Claim(RunLayout::JobStream(), /*expire=*/false, "gc"));
      for (const auto& [stream, state] : c_.log.streams) {
        if (stream != RunLayout::JobStream() && state.epoch > 0 && !state.released) HOLDFAST_TRY(Claim(stream, /*expire=*/false, "gc"));
      }
    }
    return OkStatus();
  }

  // Afterwards nothing but the output holds these bytes.
  Status CompareOutput() {
    std::vector<const MergeRecord*> files;
    for (const auto& [number, m] : c_.log.written) files.push_back(&m);
    Say("comparing " + c_.log.job->out + " with what the merge wrote");
    return ParallelFor(std::max(options_.threads, 1u), files.size(), [&](size_t i) -> Status {
      if (options_.stop != nullptr && *options_.stop) return Stopped("stopped; nothing was removed");
      const std::string path = JoinPath(c_.log.job->out, files[i]->name);
      HOLDFAST_ASSIGN(const Digest digest, HashFile(fs_, path, PageCache::kDrop));
      if (digest == files[i]->sha256) return OkStatus();
      return Corrupt(path + ": not the bytes that the merge wrote; nothing was removed: `jobctl fsck " + c_.layout.root() + " --deep` says more, with --repair the file is written again");
    });
  }

  Status Claim(const std::string& stream, bool expire, const std::string& release) {
    HOLDFAST_TRY(fs_.MakeDirs(c_.layout.TmpDir(self_.nonce)));
    auto reader = std::make_unique<StreamReader>(fs_, c_.layout, stream, *c_.log.job_id);
    StreamWriter::Options options;
    options.job = *c_.log.job_id;
    options.claim.incarnation = self_.nonce;
    options.claim.node = kNode;
    options.claim.reason = "gc";
    options.claim.pid = self_.pid;
    options.may_take_over = [this](const holdfast::Claim& current) -> Status {
      const auto judged = [&](const auto& o) { return o.claim.incarnation == current.incarnation; };
      if (current.incarnation == Nonce{} || std::any_of(plan_.owners.begin(), plan_.owners.end(), judged)) return OkStatus();
      return InvalidArgument(c_.layout.root() + ": somebody began to work on it this moment; type the same line again when that has ended");
    };
    std::vector<Record> records = {MakeControl({RecordClass::kIncarnation, 0, 0xffffffffu, 0, 0}, self_.ToJson())};
    if (expire) records.push_back(MakeControl({RecordClass::kExport, 0, 0, 0, 0}, Json{{"what", "packs"}, {"why", "the job is done and its output stands"}}));
    const auto ignore = [](const Record&, const Slot&) { return OkStatus(); };
    HOLDFAST_ASSIGN(auto writer, StreamWriter::Open(fs_, c_.layout, clock_, reader.get(), ignore, options, std::move(records)));
    held_.push_back({std::move(reader), std::move(writer), release});
    return FailPoint("gc.claimed", stream);
  }

  // ---- removals ----

  Status RemoveAll() {
    Status result;
    for (const Item& item : items_) {
      if (options_.stop != nullptr && *options_.stop) return Stopped("stopped between two files; the same line again goes on");
      HOLDFAST_TRY(FailPoint("gc.remove", BaseName(item.path)));
      const Status removed = item.tree ? RemoveTree(item.path) : fs_.Unlink(item.path);
      if (removed.ok() || removed.code() == ErrorCode::kNotFound) {
        job_.*item.what = Sum({job_.*item.what, item.size});
      } else if (result.ok()) {
        result = removed;
      }
    }
    return result;
  }

  Status RemoveTree(const std::string& path) {
    const std::string manifest = path + "/manifest.json";
    const auto there = DirName(path) == c_.layout.QuarantineDir() ? fs_.Exists(manifest) : Result<bool>(false);
    if (there.ok() && *there) {
      HOLDFAST_TRY(fs_.Replace(manifest, manifest + ".removed"));
      HOLDFAST_TRY(fs_.SyncDir(path));
    }
    HOLDFAST_TRY(FailPoint("gc.tree", BaseName(path)));
    return fs_.RemoveTree(path);
  }

  void Release() {
    for (auto it = held_.rbegin(); it != held_.rend(); ++it) (void)it->writer->ReleaseStream(it->release);   // without it the next one looks whether we live
    if (!held_.empty()) (void)fs_.RemoveTree(c_.layout.TmpDir(self_.nonce));
  }

  FileSystem& fs_;
  Clock& clock_;
  const GcOptions& options_;
  const FsckOptions check_;
  Context c_;
  GcJob& job_;
  const Incarnation self_;
  const bool cancelled_;
  State state_ = State::kOpen;
  bool found_quarantine_ = false;
  std::vector<Item> items_;
  RepairPlan plan_;
  struct Held {
    std::unique_ptr<StreamReader> reader;   // outlives the writer
    std::unique_ptr<StreamWriter> writer;
    std::string release;
  };
  std::vector<Held> held_;
};

class GcRun {
 public:
  GcRun(FileSystem& fs, Clock& clock, const GcOptions& options) : fs_(fs), clock_(clock), options_(options) {}

  Result<GcReport> Run(const std::string& dir) {
    const auto renaming = FileSystemOf(fs_, dir);
    FileSystem& mine = renaming != nullptr ? *renaming : fs_;
    const bool is_root = LooksLikeARoot(mine, dir);
    const auto format = fs_.Exists(RunLayout(dir).FormatFile());
    if (!is_root && !(format.ok() && *format)) return InvalidArgument(dir + ": neither a run directory nor a root: give the directory of --run-dir (default: OUT.run), or of --root");
    if (is_root) {
      HOLDFAST_TRY(All(mine, dir));
    } else {
      const std::string root = RootOf(mine, dir);
      bool cancelled = false;
      if (!root.empty()) {
        HOLDFAST_ASSIGN(const auto queue, ReadQueue(mine, root));
        const auto job = queue->Find(BaseName(dir));
        cancelled = job.ok() && (*job)->state == QueuedJob::State::kCancelled;
      }
      One(mine, dir, root, "", "", cancelled);
    }
    const bool asked = !options_.quarantine.empty() && options_.quarantine != kAll;
    if (asked && !found_quarantine_ && !report_.refused()) return NotFound(dir + ": no repair \"" + options_.quarantine + "\" in its quarantine; `--quarantine all` takes whatever is there");
    return std::move(report_);
  }

 private:
  Result<std::unique_ptr<Queue>> ReadQueue(FileSystem& fs, const std::string& root) {
    HOLDFAST_ASSIGN(const auto info, ReadRoot(fs, RootLayout(root)));
    auto queue = std::make_unique<Queue>(fs, RootLayout(root), info.uuid);
    HOLDFAST_TRY(queue->Refresh());
    return queue;
  }

  Status All(FileSystem& fs, const std::string& root) {
    HOLDFAST_ASSIGN(const auto queue, ReadQueue(fs, root));
    for (const QueuedJob& job : queue->jobs()) {
      if (report_.stopped) break;
      const std::string dir = RootLayout(root).JobDir(job.submit.job);
      const auto there = fs.Exists(dir);
      if (there.ok() && *there) One(fs, dir, root, job.submit.job, job.submit.name, job.state == QueuedJob::State::kCancelled);
    }
    return OkStatus();
  }

  void One(FileSystem& fs, const std::string& dir, const std::string& root, const std::string& id, const std::string& name, bool cancelled) {
    GcJob job;
    job.dir = dir;
    job.id = id;
    job.name = name;
    Collector collector(fs, clock_, dir, root, cancelled, options_, &job);
    const Status done = collector.Run();
    found_quarantine_ |= collector.found_quarantine();
    report_.stopped |= done.code() == ErrorCode::kStopped;
    report_.failed |= !done.ok() && done.code() != ErrorCode::kStopped;
    if (!done.ok()) job.kept = done.error().message;
    report_.jobs.push_back(std::move(job));
  }

  FileSystem& fs_;
  Clock& clock_;
  const GcOptions& options_;
  GcReport report_;
  bool found_quarantine_ = false;
};

struct Part {
  const char* key;
  const char* text;
  GcTally GcJob::*tally;
};
constexpr Part kParts[] = {{"packs", "packs of layers", &GcJob::packs}, {"cuts", "packs of cuts", &GcJob::cuts}, {"orphans", "packs that no record refers to", &GcJob::orphans},
                           {"staging", "files of unfinished outputs", &GcJob::staging}, {"tmp", "private files", &GcJob::tmp}, {"quarantine", "files in quarantine", &GcJob::quarantine}};

std::string Amount(const GcTally& t) { return FormatSize(t.bytes); }

}  // namespace
}  // namespace fsck

Result<GcReport> RunGc(FileSystem& fs, Clock& clock, const std::string& dir, const GcOptions& options) { return fsck::GcRun(fs, clock, options).Run(dir); }

Json GcReportToJson(const std::string& dir, bool dry_run, const GcReport& report) {
  Json jobs = Json::array();
  for (const GcJob& job : report.jobs) {
    Json j = {{"dir", job.dir}, {"id", job.id}, {"name", job.name}, {"state", job.state}, {"kept", job.kept}, {"refused", job.refused}};
    for (const fsck::Part& part : fsck::kParts) j[part.key] = {{"files", (job.*part.tally).files}, {"bytes", (job.*part.tally).bytes}};
    jobs.push_back(std::move(j));
  }
  const GcTally total = report.total();
  return {{"schema", 1}, {"dir", dir}, {"dry_run", dry_run}, {"files", total.files}, {"bytes", total.bytes}, {"jobs", std::move(jobs)}};
}

std::string GcReportToText(bool dry_run, const GcReport& report) {
  std::string out;
  for (const GcJob& job : report.jobs) {
    out += Printable(job.dir) + (job.name.empty() ? "" : " (" + Printable(job.name) + ")") + ": " + (job.state.empty() ? "left alone" : job.state) + "\n";
    for (const fsck::Part& part : fsck::kParts) {
      const GcTally& t = job.*part.tally;
      if (t.files > 0) out += "    " + std::to_string(t.files) + " " + part.text + ", " + fsck::Amount(t) + "\n";
    }
    if (!job.kept.empty()) out += "    " + Printable(job.kept) + "\n";
  }
  const GcTally total = report.total();
  out += std::to_string(total.files) + " files, " + fsck::Amount(total) + (dry_run ? " would be removed\n" : " removed\n");
  return out;
}

}  // namespace holdfast
