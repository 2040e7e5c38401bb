// SPDX-License-Identifier: Apache-2.0
//
// Small text files that say once what a directory is and never change: a first line of their own, "format N", feature bits as in
// ext4 (compat, ro_compat, incompat), lines of their own, and the CRC-32C of all of it as the last line.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "ledger/base/file_system.h"
#include "ledger/base/result.h"

namespace holdfast {

// Unknown compat bits are ignored, unknown ro_compat bits allow reading only, unknown incompat bits allow nothing.
struct SealedText {
  uint32_t number = 1, compat = 0, ro_compat = 0, incompat = 0;
  std::map<std::string, std::string> more;   // further lines, "key value"
};

std::string RenderSealedText(const std::string& first_line, const SealedText& text);
// kCorrupt: another first line, or the checksum does not fit. `path` names the file in messages.
Result<SealedText> ParseSealedText(const std::string& first_line, const std::string& text, const std::string& path);
// Reads and parses; kNotFound stays kNotFound.
Result<SealedText> ReadSealedText(FileSystem& fs, const std::string& path, const std::string& first_line);

}  // namespace holdfast
