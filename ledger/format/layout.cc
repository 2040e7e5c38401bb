// SPDX-License-Identifier: Apache-2.0
#include "ledger/format/layout.h"

#include <cstdio>
#include <sstream>

#include "ledger/log/publish.h"

namespace holdfast {
namespace {

constexpr const char* kFirstLine = "holdfast run directory";
constexpr uint64_t kFormatBytesMax = 4096;

// Feature bits, as in ext4: unknown compat bits are ignored, unknown ro_compat bits allow reading only, unknown incompat bits
// allow nothing. None is in use yet.
struct Format {
  uint32_t number = kFormatNumber, compat = 0, ro_compat = 0, incompat = 0;
};
constexpr uint32_t kKnownRoCompat = 0, kKnownIncompat = 0;

std::string Render(const Format& f) {
  char text[160];
  std::snprintf(text, sizeof text, "%s\nformat %u\ncompat %08x\nro_compat %08x\nincompat %08x\n", kFirstLine, f.number, f.compat, f.ro_compat, f.incompat);
  std::string out = text;
  std::snprintf(text, sizeof text, "crc32c %08x\n", Crc32c(AsBytes(out)));
  return out + text;
}

Result<Format> Parse(const std::string& text, const std::string& path) {
  Format f;
  const size_t crc_line = text.rfind("crc32c ");
  if (text.rfind(kFirstLine, 0) != 0) return Corrupt(path + ": does not begin with \"" + kFirstLine + "\"; is this a run directory?");
  char expected[32] = "";
  if (crc_line != std::string::npos) {
    std::snprintf(expected, sizeof expected, "crc32c %08x\n", Crc32c(AsBytes(std::string_view(text).substr(0, crc_line))));
  }
  if (crc_line == std::string::npos || text.substr(crc_line) != expected) {
    return Corrupt(path + ": its checksum line does not fit; restore the file from a backup (it never changes after the first start)");
  }
  std::istringstream in(text.substr(0, crc_line));
  std::string line;
  while (std::getline(in, line)) {
    std::sscanf(line.c_str(), "format %u", &f.number);
    std::sscanf(line.c_str(), "compat %x", &f.compat);
    std::sscanf(line.c_str(), "ro_compat %x", &f.ro_compat);
    std::sscanf(line.c_str(), "incompat %x", &f.incompat);
  }
  return f;
}

Result<Format> Load(FileSystem& fs, const RunLayout& layout) {
  const std::string path = layout.FormatFile();
  auto bytes = fs.ReadFile(path, kFormatBytesMax);
  if (bytes.code() == ErrorCode::kResourceExhausted) return Corrupt(path + ": far too long for a FORMAT file");
  if (bytes.code() == ErrorCode::kNotFound) return NotFound(layout.root() + ": no FORMAT file, so no run directory (or nothing was started in it yet)");
  if (!bytes.ok()) return bytes.error();
  return Parse(std::string(AsText(*bytes)), path);
}

Status Judge(const Format& f, const RunLayout& layout, bool write) {
  if (f.number > kFormatNumber || (f.incompat & ~kKnownIncompat) != 0) {
    return Unsupported(layout.FormatFile() + ": format " + std::to_string(f.number) + " or features of a newer holdfast; use the version that made it");
  }
  if (write && (f.ro_compat & ~kKnownRoCompat) != 0) {
    return Unsupported(layout.FormatFile() + ": made by a newer holdfast, this version may only read it; use the newer one to go on");
  }
  return OkStatus();
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
  HOLDFAST_ASSIGN(const Format f, Load(fs, layout));
  return Judge(f, layout, /*write=*/false);
}

Status CheckFormatForWriting(FileSystem& fs, const RunLayout& layout) {
  HOLDFAST_ASSIGN(const Format f, Load(fs, layout));
  return Judge(f, layout, /*write=*/true);
}

Status EnsureFormat(FileSystem& fs, const RunLayout& layout, const Nonce& incarnation) {
  const Status there = CheckFormatForWriting(fs, layout);
  if (there.code() != ErrorCode::kNotFound) return there;
  for (const std::string& dir : {layout.LogDir(), layout.PackDir(), layout.TmpDir(incarnation)}) HOLDFAST_TRY(fs.MakeDirs(dir));
  HOLDFAST_TRY(fs.SyncDir(layout.root()));
  HOLDFAST_TRY(fs.SyncDir(DirName(layout.root())));
  const std::string text = Render(Format{});
  PublishOptions options;
  options.tmp_dir = layout.TmpDir(incarnation);
  options.subject = "FORMAT";
  const Status published = Publish(fs, layout.FormatFile(), {AsBytes(text)}, options);
  if (published.ok()) return published;
  const Status now = CheckFormatForWriting(fs, layout);  // another starter won, or the reply was lost
  return now.code() == ErrorCode::kNotFound ? published : now;
}

}  // namespace holdfast
