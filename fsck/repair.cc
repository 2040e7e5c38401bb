// SPDX-License-Identifier: Apache-2.0
//
// One directory after the other; each step asks again whether it is still to be done.
#include "fsck/repair.h"

#include <algorithm>
#include <map>
#include <set>

#include "fsck/alive.h"
#include "fsck/context.h"
#include "fsck/quarantine.h"
#include "ledger/base/fail_point.h"
#include "ledger/base/hash_file.h"
#include "ledger/base/units.h"
#include "ledger/log/publish.h"
#include "ledger/log/tombstone.h"
#include "ledger/records/this_process.h"
#include "ledger/segment/segment.h"

namespace holdfast {
namespace fsck {
namespace {

constexpr const char* kNode = "fsck";

uint32_t LengthOf(FileSystem& fs, const RunLayout& layout, const std::string& stream) {
  const auto names = fs.List(layout.StreamDir(stream));
  uint32_t next = 0, seq = 0;
  for (size_t i = 0; names.ok() && i < names->size(); ++i) {
    if (RunLayout::ParseSlotName((*names)[i], &seq)) next = std::max(next, seq + 1);
  }
  return next;
}

class Repairer {
 public:
  Repairer(FileSystem& fs, Clock& clock, const RepairPlan& plan, const RepairOptions& options)
      : fs_(fs), clock_(clock), plan_(plan), options_(options), layout_(plan.dir), self_(DescribeThisProcess(kNode, "fsck", "cpu")),
        id_(FormatUtc(clock.WallNs(), "%Y%m%dT%H%M%SZ") + "-" + self_.nonce.Hex().substr(0, 8)), quarantine_(layout_, id_) {}

  const std::string& quarantine() const { return quarantine_.dir(); }
  bool acted() const { return acted_; }   // there is something to take back, or to go on with

  Status Run() {
    HOLDFAST_TRY(DropYoungOrphans());
    if (plan_.empty()) return OkStatus();
    HOLDFAST_TRY(fs_.MakeDirs(layout_.TmpDir(self_.nonce)));
    HOLDFAST_TRY(Prepare());
    const Status done = Act();
    // Of a repair that was killed this directory is a leftover like others; of one that ended it is nothing.
    if (done.ok()) (void)fs_.RemoveTree(layout_.TmpDir(self_.nonce));
    return done;
  }

 private:
  void Say(const std::string& line) const {
    if (options_.on_line) options_.on_line(line);
  }
  Status Pause(const char* point, const std::string& subject) const {
    HOLDFAST_TRY(FailPoint(point, subject));
    return options_.stop != nullptr && *options_.stop ? Stopped("stopped between two steps; the same line again goes on") : OkStatus();
  }

  // Somebody may have made a directory in tmp/ a moment ago and said nothing yet.
  Status DropYoungOrphans() {
    const uint64_t now = clock_.WallNs();
    std::erase_if(plan_.moves, [&](const RepairPlan::Move& m) {
      if (m.code != "F090" || DirName(m.path) != layout_.TmpDir()) return false;
      const auto info = fs_.Stat(m.path);
      return info.ok() && info->mtime_ns + options_.orphan_age_ms * 1'000'000 > now;
    });
    return OkStatus();
  }

  // Streams that get slots of ours. A root's streams have owners of a moment only: their tombstones need no claim.
  std::vector<std::string> Touched() const {
    std::set<std::string> streams;
    for (const auto& b : plan_.burials) streams.insert(b.stream);
    for (const auto& s : plan_.strikes) streams.insert(s.stream);
    for (const auto& s : plan_.sayings) streams.insert(s.stream);
    if (!plan_.is_root) streams.erase(RunLayout::JobStream());
    std::vector<std::string> order(streams.begin(), streams.end());
    if (!plan_.is_root) order.insert(order.begin(), RunLayout::JobStream());
    return order;
  }

  // Everything that undo needs, stable before anything is changed.
  Status Prepare() {
    acted_ = true;
    HOLDFAST_TRY(fs_.MakeDirs(quarantine_.dir()));
    QuarantineManifest m;
    m.id = id_;
    m.incarnation = self_.nonce;
    m.job = plan_.job;
    m.wall_ns = clock_.WallNs();
    m.by = "process " + std::to_string(self_.pid) + " on " + self_.hostname;
    for (const std::string& stream : Touched()) m.streams.push_back({stream, LengthOf(fs_, layout_, stream)});
    for (const auto& b : plan_.burials) {
      QuarantineManifest::Burial kept{b.stream, b.seq, false, 0, {}, b.code, b.why};
      const Status copied = CopyFile(fs_, layout_.Slot(b.stream, b.seq), quarantine_.SlotCopy(b.stream, b.seq), &kept.sha256, &kept.size);
      if (copied.code() == ErrorCode::kNotFound) kept.missing = true;
      else HOLDFAST_TRY(copied);
      m.burials.push_back(std::move(kept));
      HOLDFAST_TRY(Pause("repair.copied", b.stream));
    }
    size_t number = 0;
    for (const auto& move : plan_.moves) {
      HOLDFAST_ASSIGN(auto kept, Kept(move, number++));
      m.moves.push_back(std::move(kept));
    }
    for (const auto& s : plan_.strikes) m.voids.push_back(s.code + ": " + KeyText(s.key) + " of " + s.stream);
    for (const auto& s : plan_.sayings) {
      if (Statements({s.record}) > 0) m.salvaged.push_back(s.code + ": " + KeyText(s.record.key) + " of " + s.stream + ", slot " + std::to_string(s.seq));
    }
    HOLDFAST_TRY(SyncDirsTo(quarantine_.dir()));
    HOLDFAST_TRY(Pause("repair.prepared", id_));
    const std::string text = m.ToJson().dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
    PublishOptions publish;
    publish.tmp_dir = layout_.TmpDir(self_.nonce);
    publish.subject = "manifest";
    HOLDFAST_TRY(Publish(fs_, quarantine_.ManifestFile(), {AsBytes(text)}, publish));
    moves_ = std::move(m.moves);
    Say("quarantine: " + quarantine_.dir());
    return Pause("repair.manifest", id_);
  }

  Status SyncDirsTo(const std::string& dir) {
    HOLDFAST_TRY(fs_.SyncDir(dir));
    HOLDFAST_TRY(fs_.SyncDir(layout_.QuarantineDir()));
    return fs_.SyncDir(layout_.root());
  }

  // Where a thing goes. What does not lie in this directory stays beside its place, under a hidden name: a rename cannot leave a file system.
  Result<QuarantineManifest::Move> Kept(const RepairPlan::Move& move, size_t number) {
    QuarantineManifest::Move kept;
    kept.from = quarantine_.Relative(move.path);
    kept.code = move.code;
    kept.reason = move.why;
    const std::string name = std::to_string(number) + "-" + BaseName(move.path);
    const bool inside = kept.from != move.path;
    kept.to = inside ? quarantine_.Relative(quarantine_.dir() + "/files/" + name)
                     : JoinPath(DirName(move.path), std::string(".").append(BaseName(move.path)).append(".quarantine-").append(id_));
    const auto info = fs_.Stat(move.path);
    if (!info.ok()) return info.code() == ErrorCode::kNotFound ? Result<QuarantineManifest::Move>(std::move(kept)) : info.error();
    if (info->is_directory) return kept;
    kept.size = info->size;
    HOLDFAST_ASSIGN(kept.sha256, HashFile(fs_, move.path, PageCache::kKeep));
    return kept;
  }

  Status Act() {
    if (!plan_.is_root) {
      HOLDFAST_TRY(BuryAll(RunLayout::JobStream()));
      HOLDFAST_TRY(ClaimAndVoid(RunLayout::JobStream()));
    }
    for (const std::string& stream : Touched()) {
      if (!plan_.is_root && stream == RunLayout::JobStream()) continue;
      HOLDFAST_TRY(BuryAll(stream));
      if (!plan_.is_root) HOLDFAST_TRY(ClaimAndVoid(stream));
    }
    for (const auto& move : moves_) HOLDFAST_TRY(MoveAway(move));
    for (auto it = writers_.rbegin(); it != writers_.rend(); ++it) {
      HOLDFAST_TRY(Pause("repair.release", it->reader->stream()));
      HOLDFAST_TRY(it->writer->ReleaseStream("repair"));
    }
    return Pause("repair.done", id_);
  }

  // ---- tombstones ----

  Status BuryAll(const std::string& stream) {
    std::set<uint32_t> lost;
    for (const auto& b : plan_.burials) {
      if (b.stream == stream) lost.insert(b.seq);
    }
    if (lost.empty()) return OkStatus();
    Digest tail;
    uint64_t epoch = 0;
    const uint32_t length = std::max(LengthOf(fs_, layout_, stream), *lost.rbegin() + 1);
    for (uint32_t seq = 0; seq < length; ++seq) {
      if (lost.contains(seq)) HOLDFAST_TRY(Bury(stream, seq, lost, length, tail, epoch));
      Digest prev;
      const auto slot = ReadSlot(fs_, layout_, stream, seq, plan_.job, &prev);
      if (!slot.ok()) return slot.error();
      tail = slot->digest;
      epoch = std::max(epoch, slot->epoch);
    }
    return OkStatus();
  }

  // The next sound slot behind `seq`, and whether it begins an epoch by a claim of its own.
  struct Successor {
    bool there = false;
    uint32_t seq = 0;
    Digest prev;
    uint64_t epoch = 0;
    bool claims = false;
  };
  Successor Behind(const std::string& stream, uint32_t seq, const std::set<uint32_t>& lost, uint32_t length) {
    Successor s;
    for (uint32_t next = seq + 1; next < length; ++next) {
      const auto slot = lost.contains(next) ? Result<Slot>(NotFound("")) : ReadSlot(fs_, layout_, stream, next, plan_.job, &s.prev);
      if (!slot.ok()) continue;
      s.there = true;
      s.seq = next;
      s.epoch = slot->epoch;
      s.claims = slot->tombstone || std::any_of(slot->records.begin(), slot->records.end(), [](const Record& r) { return r.key.cls == RecordClass::kClaim; });
      break;
    }
    return s;
  }

  Status Bury(const std::string& stream, uint32_t seq, const std::set<uint32_t>& lost, uint32_t length, const Digest& tail, uint64_t epoch) {
    const auto plan = std::find_if(plan_.burials.begin(), plan_.burials.end(), [&](const auto& b) { return b.stream == stream && b.seq == seq; });
    const Successor behind = Behind(stream, seq, lost, length);
    Tombstone t;
    t.job = plan_.job;
    t.incarnation = self_.nonce;
    t.stream = stream;
    t.seq = seq;
    // Claims rise by one: what lies behind tells whether a claim was lost here.
    const uint64_t begins = behind.there && behind.epoch > epoch ? behind.epoch - (behind.claims ? 1 : 0) : epoch;
    t.epoch = std::max(epoch, begins);
    t.prev = tail;
    if (behind.there && behind.seq == seq + 1) t.carries = behind.prev;
    t.reason = plan->code;
    t.evidence = plan->why;
    const auto there = fs_.Stat(layout_.Slot(stream, seq));
    if (!there.ok() && there.code() != ErrorCode::kNotFound) return there.error();
    HOLDFAST_TRY(PlaceTombstone(fs_, layout_, clock_, t, /*replace=*/there.ok()));
    Say("tombstone: " + layout_.Slot(stream, seq));
    return Pause("repair.tombstone", stream);
  }

  // ---- claims, voids ----

  Status ClaimAndVoid(const std::string& stream) {
    auto reader = std::make_unique<StreamReader>(fs_, layout_, stream, plan_.job);
    StreamWriter::Options options;
    options.job = plan_.job;
    options.claim.incarnation = self_.nonce;
    options.claim.node = kNode;
    options.claim.reason = "repair";
    options.claim.pid = self_.pid;
    options.may_take_over = [this](const Claim& current) { return MayTakeOver(current); };
    std::vector<Record> records = {MakeControl({RecordClass::kIncarnation, 0, 0xffffffffu, 0, 0}, self_.ToJson())};
    StageId stage;
    if (!RunLayout::ParseStageStream(stream, &stage)) stage = StageId(0);
    uint32_t number = 0;
    for (const auto& strike : plan_.strikes) {
      if (strike.stream != stream) continue;
      VoidRecord v;
      v.target = "key";
      v.key = strike.key.Encode();
      v.reason = strike.code;
      v.evidence = strike.why + "; quarantine " + id_;
      records.push_back(MakeControl({RecordClass::kVoid, stage.value, number++, 1, 0}, v.ToJson()));
    }
    uint64_t again = 0;
    for (const auto& saying : plan_.sayings) {
      if (saying.stream != stream) continue;
      again += Statements({saying.record});
      records.push_back(saying.record);
    }
    const auto ignore = [](const Record&, const Slot&) { return OkStatus(); };
    HOLDFAST_ASSIGN(auto writer, StreamWriter::Open(fs_, layout_, clock_, reader.get(), ignore, options, std::move(records)));
    writers_.push_back({std::move(reader), std::move(writer)});
    if (number > 0) Say("void: " + std::to_string(number) + " records of " + stream);
    if (again > 0) Say("salvaged: " + std::to_string(again) + " records of " + stream);
    return Pause("repair.claimed", stream);
  }

  Status MayTakeOver(const Claim& current) const {
    const auto owner = std::find_if(plan_.owners.begin(), plan_.owners.end(), [&](const auto& o) { return o.claim.incarnation == current.incarnation; });
    // Judged before: dead, or silent all the time that it was watched. Of a claim that was lost nobody knows whose it was.
    if (owner != plan_.owners.end() || current.incarnation == Nonce{}) return OkStatus();
    return InvalidArgument(plan_.dir + ": somebody began to work on it this moment; type the same line again when that has ended");
  }

  // ---- moves ----

  Status MoveAway(const QuarantineManifest::Move& move) {
    const std::string from = quarantine_.Absolute(move.from), to = quarantine_.Absolute(move.to);
    const auto there = fs_.Stat(from);
    if (there.code() == ErrorCode::kNotFound) return OkStatus();   // gone meanwhile
    HOLDFAST_TRY(MoveTo(fs_, from, to));
    Say("moved: " + from + " to " + to);
    return Pause("repair.moved", BaseName(from));
  }

  FileSystem& fs_;
  Clock& clock_;
  RepairPlan plan_;
  const RepairOptions& options_;
  const RunLayout layout_;
  const Incarnation self_;
  const std::string id_;
  const Quarantine quarantine_;
  std::vector<QuarantineManifest::Move> moves_;
  struct Held {
    std::unique_ptr<StreamReader> reader;   // outlives the writer
    std::unique_ptr<StreamWriter> writer;
  };
  std::vector<Held> writers_;
  bool acted_ = false;
};

}  // namespace
}  // namespace fsck

RepairReport RunRepair(FileSystem& fs, Clock& clock, const std::string& dir, const RepairOptions& options) {
  RepairReport report;
  report.before = RunFsck(fs, dir, options.check);
  report.exit_status = report.before.exit_status;
  if ((report.exit_status & kFsckInterrupted) != 0) return report;   // not all damage is known
  const auto say = [&](const std::string& line) {
    if (options.on_line) options.on_line(line);
  };
  for (const RepairPlan& plan : report.before.plans) {
    for (const std::string& line : plan.Lines()) say("plan: " + line);
  }
  if (options.dry_run) {
    for (const RepairPlan& plan : report.before.plans) report.salvaged += plan.Salvaged();
  }
  if (options.dry_run || report.before.plans.empty()) return report;
  bool corrected = false, reopened = false;
  int trouble = 0;
  for (const RepairPlan& plan : report.before.plans) {
    const auto renaming = fsck::FileSystemOf(fs, plan.dir);
    FileSystem& mine = renaming != nullptr ? *renaming : fs;
    Status status = fsck::RefuseWhileAlive(mine, clock, plan, options);
    if (!status.ok() && status.code() != ErrorCode::kStopped) {
      report.refusals.push_back(status.error().message);
      trouble |= kFsckErrorsLeft;
      continue;
    }
    fsck::Repairer repairer(mine, clock, plan, options);
    if (status.ok()) {
      status = repairer.Run();
      report.acted |= repairer.acted();
      if (repairer.acted()) report.quarantines.push_back(repairer.quarantine());
    }
    if (!status.ok()) {
      report.refusals.push_back(status.error().message);
      trouble |= status.code() == ErrorCode::kStopped ? kFsckInterrupted : status.code() == ErrorCode::kInvalidArgument ? kFsckErrorsLeft : kFsckOperational;
      if (status.code() == ErrorCode::kStopped) break;
      continue;
    }
    report.salvaged += repairer.acted() ? plan.Salvaged() : 0;
    corrected |= repairer.acted() && plan.corrects;
    reopened |= repairer.acted() && plan.reopens;
    if (repairer.acted() && plan.reopens) report.next.push_back(plan.root.empty() ? "jobctl resume " + plan.dir : "jobctl --root " + plan.root + " resume " + BaseName(plan.dir));
  }
  if (!report.acted) {
    report.exit_status |= trouble;
    return report;
  }
  report.after = RunFsck(fs, dir, options.check);
  // Lost stays lost, also when its place is mended.
  report.exit_status = report.after.exit_status | (report.before.exit_status & kFsckDataLost) | trouble;
  if (corrected) report.exit_status |= kFsckCorrected;
  if (reopened) report.exit_status |= kFsckReopened;
  return report;
}

}  // namespace holdfast
