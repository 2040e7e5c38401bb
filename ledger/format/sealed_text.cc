// SPDX-License-Identifier: Apache-2.0
#include "ledger/format/sealed_text.h"

#include <cstdio>
#include <sstream>

#include "ledger/base/checksum.h"

namespace holdfast {
namespace {

constexpr uint64_t kBytesMax = 4096;

std::string ChecksumLine(const std::string& body) {
  char line[32];
  std::snprintf(line, sizeof line, "crc32c %08x\n", Crc32c(AsBytes(body)));
  return line;
}

}  // namespace

std::string RenderSealedText(const std::string& first_line, const SealedText& t) {
  char head[120];
  std::snprintf(head, sizeof head, "\nformat %u\ncompat %08x\nro_compat %08x\nincompat %08x\n", t.number, t.compat, t.ro_compat, t.incompat);
  std::string body = first_line + head;
  for (const auto& [key, value] : t.more) body.append(key).append(" ").append(value).append("\n");
  return body + ChecksumLine(body);
}

Result<SealedText> ParseSealedText(const std::string& first_line, const std::string& text, const std::string& path) {
  if (text.rfind(first_line + "\n", 0) != 0) {
    return Corrupt(path + ": does not begin with \"" + first_line + "\": another program's file, or damaged; `jobctl fsck " + DirName(path) + "` says more");
  }
  const size_t end = text.rfind("crc32c ");
  if (end == std::string::npos || text.substr(end) != ChecksumLine(text.substr(0, end))) {
    return Corrupt(path + ": its checksum line does not fit; restore the file from a backup (it never changes after the first start)");
  }
  SealedText t;
  std::istringstream in(text.substr(0, end));
  std::string line;
  std::getline(in, line);
  while (std::getline(in, line)) {
    const bool known = std::sscanf(line.c_str(), "format %u", &t.number) == 1 || std::sscanf(line.c_str(), "compat %x", &t.compat) == 1 ||
                       std::sscanf(line.c_str(), "ro_compat %x", &t.ro_compat) == 1 || std::sscanf(line.c_str(), "incompat %x", &t.incompat) == 1;
    const size_t space = line.find(' ');
    if (!known && space != std::string::npos) t.more[line.substr(0, space)] = line.substr(space + 1);
  }
  return t;
}

Result<SealedText> ReadSealedText(FileSystem& fs, const std::string& path, const std::string& first_line) {
  const auto bytes = fs.ReadFile(path, kBytesMax);
  if (bytes.code() == ErrorCode::kResourceExhausted) return Corrupt(path + ": far too long for such a file");
  if (!bytes.ok()) return bytes.error();
  return ParseSealedText(first_line, std::string(AsText(*bytes)), path);
}

}  // namespace holdfast
