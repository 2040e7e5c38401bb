// SPDX-License-Identifier: Apache-2.0
//
// Undo goes back over the manifest: what was moved returns, slots that were appended are moved away (from the tail on, so that a stream
// never has a hole), buried slots get their old bytes. Each step looks first whether it was done already.
#include <algorithm>
#include <optional>

#include "fsck/alive.h"
#include "fsck/context.h"
#include "fsck/quarantine.h"
#include "fsck/repair.h"
#include "ledger/base/fail_point.h"
#include "ledger/log/publish.h"
#include "ledger/segment/segment.h"

namespace holdfast {
namespace fsck {
namespace {

class Undoer {
 public:
  Undoer(FileSystem& fs, const RunLayout& layout, QuarantineManifest manifest, UndoReport* report)
      : fs_(fs), layout_(layout), m_(std::move(manifest)), q_(layout, m_.id), report_(*report) {}

  // kInvalidArgument: somebody has gone on since.
  Status CheckTails() {
    for (const auto& s : m_.streams) {
      for (const uint32_t seq : Slots(s)) {
        const auto trailer = TrailerOf(layout_.Slot(s.stream, seq));
        if (trailer.ok() && trailer->incarnation == m_.incarnation) continue;
        return InvalidArgument(layout_.Slot(s.stream, seq) + ": was written after the repair " + m_.id + ", which can not be taken back any more" + LaterRepair());
      }
    }
    return OkStatus();
  }

  Status Run() {
    tmp_ = layout_.TmpDir(Nonce::Random());
    HOLDFAST_TRY(fs_.MakeDirs(tmp_));
    for (auto it = m_.moves.rbegin(); it != m_.moves.rend(); ++it) HOLDFAST_TRY(PutBack(*it));
    for (auto it = m_.streams.rbegin(); it != m_.streams.rend(); ++it) HOLDFAST_TRY(TakeBackSlots(*it));
    for (const auto& b : m_.burials) HOLDFAST_TRY(Unbury(b));
    PublishOptions publish;
    publish.tmp_dir = tmp_;
    publish.subject = "UNDONE";
    const Status marked = Publish(fs_, q_.UndoneFile(), {AsBytes(std::string_view("undone\n"))}, publish);
    if (!marked.ok() && marked.code() != ErrorCode::kAlreadyExists) return marked;
    (void)fs_.RemoveTree(tmp_);
    return OkStatus();
  }

 private:
  void Say(const std::string& line) { report_.lines.push_back(line); }

  // Numbers of the slots behind the old tail, the last one first.
  std::vector<uint32_t> Slots(const QuarantineManifest::Stream& s) {
    std::vector<uint32_t> slots;
    const auto names = fs_.List(layout_.StreamDir(s.stream));
    uint32_t seq = 0;
    for (size_t i = 0; names.ok() && i < names->size(); ++i) {
      if (RunLayout::ParseSlotName((*names)[i], &seq) && seq >= s.next_seq) slots.push_back(seq);
    }
    std::sort(slots.rbegin(), slots.rend());
    return slots;
  }

  Result<SegmentTrailer> TrailerOf(const std::string& path) {
    HOLDFAST_ASSIGN(const Bytes file, fs_.ReadFile(path, kSegmentBytesMax));
    return CheckSegment(file);
  }

  std::string LaterRepair() {
    std::string later;
    for (const std::string& id : QuarantineIds(fs_, layout_)) {
      const auto undone = fs_.Exists(Quarantine(layout_, id).UndoneFile());
      if (id > m_.id && undone.ok() && !*undone) later = id;
    }
    return later.empty() ? "; `jobctl resume` goes on from here" : "; there is a later repair, take that back first: `jobctl fsck " + layout_.root() + " --undo " + later + "`";
  }

  Status PutBack(const QuarantineManifest::Move& move) {
    const std::string from = q_.Absolute(move.from), to = q_.Absolute(move.to);
    HOLDFAST_ASSIGN(const bool kept, fs_.Exists(to));
    if (!kept) return OkStatus();   // never moved, or put back before
    HOLDFAST_TRY(FailPoint("undo.move", BaseName(from)));
    HOLDFAST_TRY(MoveTo(fs_, to, from));
    Say("put back: " + from);
    return OkStatus();
  }

  Status TakeBackSlots(const QuarantineManifest::Stream& s) {
    for (const uint32_t seq : Slots(s)) {
      HOLDFAST_TRY(FailPoint("undo.slot", s.stream));
      HOLDFAST_TRY(MoveTo(fs_, layout_.Slot(s.stream, seq), q_.UndoneSlot(s.stream, seq)));
      Say("taken back: " + layout_.Slot(s.stream, seq));
    }
    return OkStatus();
  }

  Status Unbury(const QuarantineManifest::Burial& b) {
    const std::string slot = layout_.Slot(b.stream, b.seq);
    const auto trailer = TrailerOf(slot);
    const bool ours = trailer.ok() && (trailer->flags & kFlagTombstone) != 0 && trailer->incarnation == m_.incarnation;
    if (!ours) return OkStatus();   // never buried, or dug out before
    HOLDFAST_TRY(FailPoint("undo.tombstone", b.stream));
    if (b.missing) {
      HOLDFAST_TRY(MoveTo(fs_, slot, q_.UndoneSlot(b.stream, b.seq)));
      Say("taken back: " + slot);
      return OkStatus();
    }
    Digest sha256;
    uint64_t size = 0;
    const std::string copy = JoinPath(tmp_, Nonce::Random().Hex());
    HOLDFAST_TRY(CopyFile(fs_, q_.SlotCopy(b.stream, b.seq), copy, &sha256, &size));
    if (sha256 != b.sha256 || size != b.size) return Corrupt(q_.SlotCopy(b.stream, b.seq) + ": not the bytes that the manifest names; the slot stays as it is");
    HOLDFAST_TRY(fs_.Replace(copy, slot));
    HOLDFAST_TRY(fs_.SyncDir(DirName(slot)));
    Say("put back: " + slot);
    return OkStatus();
  }

  FileSystem& fs_;
  const RunLayout layout_;
  const QuarantineManifest m_;
  const Quarantine q_;
  UndoReport& report_;
  std::string tmp_;
};

int StatusOf(const Error& e) {
  switch (e.code) {
    case ErrorCode::kNotFound: return kFsckUsage;
    case ErrorCode::kInvalidArgument: return kFsckErrorsLeft;
    case ErrorCode::kStopped: return kFsckInterrupted;
    default: return kFsckOperational;
  }
}

Status Undo(FileSystem& fs, Clock& clock, const std::string& dir, const std::string& id, const RepairOptions& options, UndoReport* report) {
  const RunLayout layout(dir);
  HOLDFAST_ASSIGN(const QuarantineManifest manifest, ReadManifest(fs, layout, id));
  Undoer undoer(fs, layout, manifest, report);
  HOLDFAST_TRY(undoer.CheckTails());
  HOLDFAST_TRY(RefuseWhileAlive(fs, clock, WhoWorks(fs, dir), options));
  HOLDFAST_TRY(undoer.Run());
  report->lines.push_back("repair " + id + " is undone: `jobctl fsck " + dir + "` shows what it had found");
  return OkStatus();
}

}  // namespace
}  // namespace fsck

UndoReport RunUndo(FileSystem& fs, Clock& clock, const std::string& dir, const std::string& id, const RepairOptions& options) {
  UndoReport report;
  const auto renaming = fsck::FileSystemOf(fs, dir);
  const Status undone = fsck::Undo(renaming != nullptr ? *renaming : fs, clock, dir, id, options, &report);
  if (undone.ok()) return report;
  report.lines.push_back(undone.error().message);
  report.exit_status = fsck::StatusOf(undone.error());
  return report;
}

}  // namespace holdfast
