// SPDX-License-Identifier: Apache-2.0
//
// The lines of a calibration file, as data: splitting a file into lines while it is hashed, and what one JSON line asks for.
// Knows nothing of tokenizers; a line is judged completely here except for what only the tokenizer can say.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "ledger/base/file_system.h"
#include "ledger/base/json.h"
#include "ledger/base/result.h"

namespace holdfast {

inline constexpr uint64_t kCalibrationFileBytesMax = 4ull << 30;
inline constexpr uint64_t kCalibrationLineBytesMax = 64ull << 20;

// What a line of a .jsonl file holds. Where a line has several of the fields, input_ids goes before messages, messages before text.
struct TokenLine {
  std::vector<int32_t> ids;  // all of them checked; may be empty
};
struct TextLine {
  std::string text;
};
struct MessagesLine {
  std::string json;  // the whole line: templates may ask for the keys in the order of the file
};
using CalibrationLine = std::variant<TokenLine, TextLine, MessagesLine>;

// Parses one line. `where` ("FILE, line 7") starts every message. Every id must be in [0, vocab).
Result<CalibrationLine> ParseCalibrationLine(std::string_view line, uint64_t vocab, const std::string& where);

// Calls `on_bytes` with every byte of the file in order and `on_line` with every line (without its LF or CRLF, numbered from 1; a
// byte order mark at the start of the file is not part of line 1). Stops at the first error. A line longer than
// kCalibrationLineBytesMax is refused. Needs memory for one line and one buffer.
Status ForEachLine(const ReadableFile& file, const std::string& path, const std::function<void(ByteSpan)>& on_bytes,
                   const std::function<Status(uint64_t, std::string_view)>& on_line);

// Offset of the first byte that is not part of valid UTF-8; text.size() when all of it is.
size_t FindInvalidUtf8(std::string_view text);

inline constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";

}  // namespace holdfast
