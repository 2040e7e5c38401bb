// SPDX-License-Identifier: Apache-2.0
#include "ledger/format/layout.h"

#include <cstdio>

#include "ledger/format/sealed_text.h"
#include "ledger/log/publish.h"

namespace holdfast {
namespace {

constexpr const char* kFirstLine = "holdfast run directory";
constexpr uint32_t kKnownRoCompat = 0, kKnownIncompat = kIncompatOmissions | kIncompatLayout;   // feature bits

Result<SealedText> Load(FileSystem& fs, const RunLayout& layout) {
  auto format = ReadSealedText(fs, layout.FormatFile(), kFirstLine);
  if (format.code() == ErrorCode::kNotFound) return NotFound(layout.root() + ": no FORMAT file, so no run directory (or nothing was started in it yet)");
  return format;
}

Status Judge(const SealedText& f, const RunLayout& layout, bool write) {
  if (f.number > kFormatNumber || (f.incompat & ~kKnownIncompat) != 0) {
    return Unsupported(layout.FormatFile() + ": format " + std::to_string(f.number) + " or features of a newer holdfast; use the version that made it");
  }
  if (write && (f.ro_compat & ~kKnownRoCompat) != 0) {
    return Unsupported(layout.FormatFile() + ": made by a newer holdfast, this version may only read it; use the newer one to go on");
  }
  return OkStatus();
}

// What is there can be written to, and says at least this.
Status Suits(FileSystem& fs, const RunLayout& layout, uint32_t incompat) {
  HOLDFAST_ASSIGN(const SealedText f, Load(fs, layout));
  HOLDFAST_TRY(Judge(f, layout, /*write=*/true));
  if ((f.incompat & incompat) == incompat) return OkStatus();
  return InvalidArgument(layout.FormatFile() + ": was made for a job of other options (--skip-samples); remove " + layout.root() + ", or choose another directory");
}

}  // namespace

std::string RunLayout::Slot(const std::string& stream, uint32_t seq) const {
  char name[16];
  std::snprintf(name, sizeof name, "/%08x.seg", seq);
  return StreamDir(stream) + name;
}

std::string RunLayout::Pack(const Digest& root) const {
  const std::string hex = root.Hex();
  return PackDir() + "/" + hex.substr(0, 2) + "/" + hex + ".pack";
}

std::string RunLayout::StageStream(StageId stage) {
  char name[16];
  std::snprintf(name, sizeof name, "stage.%02u", unsigned{stage.value});
  return name;
}

std::string RunLayout::NodeStream(const std::string& node) {
  std::string name = "node.";
  for (const char c : node) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '.' || c == '-';
    name.push_back(plain ? c : '_');
  }
  return name;
}

bool RunLayout::ParseSlotName(const std::string& name, uint32_t* seq) {
  if (name.size() != 12 || name.compare(8, 4, ".seg") != 0) return false;
  uint32_t v = 0;
  for (size_t i = 0; i < 8; ++i) {
    const char c = name[i];
    if (!((c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'))) return false;
    v = v << 4 | static_cast<uint32_t>(c <= '9' ? c - '0' : c - 'a' + 10);
  }
  *seq = v;
  return true;
}

bool RunLayout::ParseStageStream(const std::string& stream, StageId* stage) {
  unsigned v = 0;
  if (stream.size() > 11 || std::sscanf(stream.c_str(), "stage.%u", &v) != 1 || v > UINT16_MAX) return false;
  *stage = StageId(static_cast<uint16_t>(v));
  return StageStream(*stage) == stream;
}

Status CheckFormat(FileSystem& fs, const RunLayout& layout) {
  HOLDFAST_ASSIGN(const SealedText f, Load(fs, layout));
  return Judge(f, layout, /*write=*/false);
}

Status CheckFormatForWriting(FileSystem& fs, const RunLayout& layout) {
  HOLDFAST_ASSIGN(const SealedText f, Load(fs, layout));
  return Judge(f, layout, /*write=*/true);
}

Status EnsureFormat(FileSystem& fs, const RunLayout& layout, const Nonce& incarnation, uint32_t incompat) {
  const Status there = Suits(fs, layout, incompat);
  if (there.code() != ErrorCode::kNotFound) return there;
  for (const std::string& dir : {layout.LogDir(), layout.PackDir(), layout.TmpDir(incarnation)}) HOLDFAST_TRY(fs.MakeDirs(dir));
  HOLDFAST_TRY(fs.SyncDir(layout.root()));
  HOLDFAST_TRY(fs.SyncDir(DirName(layout.root())));
  SealedText format;
  format.number = kFormatNumber;
  format.incompat = incompat;
  const std::string text = RenderSealedText(kFirstLine, format);
  PublishOptions options;
  options.tmp_dir = layout.TmpDir(incarnation);
  options.subject = "FORMAT";
  const Status published = Publish(fs, layout.FormatFile(), {AsBytes(text)}, options);
  if (published.ok()) return published;
  const Status now = Suits(fs, layout, incompat);  // another starter won, or the reply was lost
  return now.code() == ErrorCode::kNotFound ? published : now;
}

}  // namespace holdfast
