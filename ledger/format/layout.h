// SPDX-License-Identifier: Apache-2.0
//
// The only place that spells the names of a run directory, and the FORMAT file at its top.
//   FORMAT  log/<stream>/%08x.seg  pack/<2hex>/<sha256>.pack  tmp/<incarnation>/<nonce>  quarantine/<id>/
#pragma once

#include <string>

#include "ledger/base/checksum.h"
#include "ledger/base/file_system.h"
#include "ledger/base/ids.h"
#include "ledger/base/result.h"

namespace holdfast {

inline constexpr uint32_t kFormatNumber = 1;

class RunLayout {
 public:
  explicit RunLayout(std::string root) : root_(std::move(root)) {}
  const std::string& root() const { return root_; }
  std::string FormatFile() const { return root_ + "/FORMAT"; }
  std::string LogDir() const { return root_ + "/log"; }
  std::string StreamDir(const std::string& stream) const { return LogDir() + "/" + stream; }
  std::string Slot(const std::string& stream, uint32_t seq) const;
  std::string PackDir() const { return root_ + "/pack"; }
  std::string Pack(const Digest& root) const;
  std::string TmpDir() const { return root_ + "/tmp"; }
  std::string TmpDir(const Nonce& incarnation) const { return TmpDir() + "/" + incarnation.Hex(); }
  std::string QuarantineDir() const { return root_ + "/quarantine"; }

  static std::string JobStream() { return "job"; }
  static std::string MergeStream() { return "merge"; }
  static std::string StageStream(StageId stage);                 // "stage.07"
  static std::string NodeStream(const std::string& node);        // "node.<name>", name filtered to [A-Za-z0-9_.-]
  // Parses "%08x.seg"; false for anything else.
  static bool ParseSlotName(const std::string& name, uint32_t* seq);
  static bool ParseStageStream(const std::string& stream, StageId* stage);

 private:
  std::string root_;
};

// Reads FORMAT: magic, number, feature bits, its own checksum line. kNotFound: not a run directory (or an empty one).
// kUnsupported: a newer number or an unknown incompat bit ("needs a newer holdfast"). kCorrupt: unreadable.
Status CheckFormat(FileSystem& fs, const RunLayout& layout);
// The same for a process that is going to write: also kUnsupported on an unknown ro_compat bit.
Status CheckFormatForWriting(FileSystem& fs, const RunLayout& layout);
// Feature bit (incompat): the job may leave samples out. A reader that does not know the records that say so takes its layers for others.
inline constexpr uint32_t kIncompatOmissions = 1;
// Feature bit (incompat): the job names the layout of its output. A merge that does not know it would write another one.
inline constexpr uint32_t kIncompatLayout = 2;
// Publishes FORMAT if there is none yet (through Publish, so two starters cannot tear it), with these incompat bits. kInvalidArgument: one is
// there that lacks some of them.
Status EnsureFormat(FileSystem& fs, const RunLayout& layout, const Nonce& incarnation, uint32_t incompat = 0);

}  // namespace holdfast
