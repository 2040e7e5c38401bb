// SPDX-License-Identifier: Apache-2.0
//
// Lines of a calibration file: splitting, and judging one of them.
#include "calib/tokens/jsonl.h"

#include <algorithm>

namespace holdfast {
namespace {

constexpr size_t kBufferBytes = 4u << 20;

Result<CalibrationLine> ParseIds(const Json& ids, uint64_t vocab, const std::string& where) {
  if (!ids.is_array()) return InvalidArgument(where + ": field \"input_ids\" is not an array of token ids");
  TokenLine line;
  line.ids.reserve(ids.size());
  for (size_t i = 0; i < ids.size(); ++i) {
    const std::string position = where + ": input_ids[" + std::to_string(i) + "]";
    if (ids[i].is_array()) {
      return InvalidArgument(position + " is an array; one line is one sample, write each inner array on a line of its own");
    }
    if (!ids[i].is_number_integer()) return InvalidArgument(position + " is not an integer: " + ids[i].dump());
    if (!ids[i].is_number_unsigned() && ids[i].get<int64_t>() < 0) {
      return InvalidArgument(position + " = " + ids[i].dump() + " is negative");
    }
    const uint64_t id = ids[i].get<uint64_t>();
    if (id >= vocab || id > static_cast<uint64_t>(INT32_MAX)) {
      return InvalidArgument(position + " = " + std::to_string(id) + " is beyond the vocabulary of " + std::to_string(vocab) +
                             " tokens; was the file made with another model's tokenizer?");
    }
    line.ids.push_back(static_cast<int32_t>(id));
  }
  return CalibrationLine(std::move(line));
}

Status CheckMessages(const Json& messages, const std::string& where) {
  if (!messages.is_array()) return InvalidArgument(where + ": field \"messages\" is not an array");
  if (messages.empty()) return InvalidArgument(where + ": field \"messages\" is an empty array");
  for (size_t i = 0; i < messages.size(); ++i) {
    if (!messages[i].is_object()) {
      return InvalidArgument(where + ": messages[" + std::to_string(i) + "] is not an object with \"role\" and \"content\"");
    }
  }
  return OkStatus();
}

// Length of the UTF-8 sequence that starts `s`, 0 if it is not valid (also: overlong, surrogates, beyond U+10FFFF).
size_t SequenceLength(std::string_view s) {
  const auto byte = [&](size_t i) { return i < s.size() ? static_cast<uint8_t>(s[i]) : 0u; };
  const auto tail = [&](size_t i) { return (byte(i) & 0xc0u) == 0x80u; };
  const uint32_t lead = byte(0);
  if (lead < 0x80) return 1;
  if (lead >= 0xc2 && lead <= 0xdf) return tail(1) ? 2 : 0;
  if (lead >= 0xe0 && lead <= 0xef) {
    const bool in_range = lead == 0xe0 ? byte(1) >= 0xa0 : lead == 0xed ? byte(1) <= 0x9f : true;
    return tail(1) && tail(2) && in_range ? 3 : 0;
  }
  if (lead >= 0xf0 && lead <= 0xf4) {
    const bool in_range = lead == 0xf0 ? byte(1) >= 0x90 : lead == 0xf4 ? byte(1) <= 0x8f : true;
    return tail(1) && tail(2) && tail(3) && in_range ? 4 : 0;
  }
  return 0;
}

// Collects bytes into lines and hands each on.
class LineSplitter {
 public:
  LineSplitter(const std::string& path, const std::function<Status(uint64_t, std::string_view)>& on_line)
      : path_(path), on_line_(on_line) {}

  Status Add(std::string_view data) {
    while (!data.empty()) {
      const size_t end = data.find('\n');
      const std::string_view part = data.substr(0, end);
      if (partial_.size() + part.size() > kCalibrationLineBytesMax) {
        return InvalidArgument(path_ + ", line " + std::to_string(number_ + 1) + ": longer than " +
                               std::to_string(kCalibrationLineBytesMax >> 20) + " MiB; a sample is one line, cut it into several");
      }
      if (end == std::string_view::npos) {
        partial_.append(part);
        return OkStatus();
      }
      HOLDFAST_TRY(partial_.empty() ? Emit(part) : Emit(partial_.append(part)));
      partial_.clear();
      data.remove_prefix(end + 1);
    }
    return OkStatus();
  }
  Status Finish() { return partial_.empty() ? OkStatus() : Emit(partial_); }

 private:
  Status Emit(std::string_view line) {
    ++number_;
    if (number_ == 1 && line.substr(0, kByteOrderMark.size()) == kByteOrderMark) line.remove_prefix(kByteOrderMark.size());
    if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
    return on_line_(number_, line);
  }
  const std::string& path_;
  const std::function<Status(uint64_t, std::string_view)>& on_line_;
  std::string partial_;
  uint64_t number_ = 0;
};

}  // namespace

Result<CalibrationLine> ParseCalibrationLine(std::string_view line, uint64_t vocab, const std::string& where) {
  HOLDFAST_ASSIGN(Json value, ParseJson(line, where));
  if (!value.is_object()) return InvalidArgument(where + ": not a JSON object; a line looks like {\"text\": \"...\"}");
  if (const auto ids = value.find("input_ids"); ids != value.end()) return ParseIds(*ids, vocab, where);
  if (const auto messages = value.find("messages"); messages != value.end()) {
    HOLDFAST_TRY(CheckMessages(*messages, where));
    return CalibrationLine(MessagesLine{std::string(line)});
  }
  if (const auto text = value.find("text"); text != value.end()) {
    if (!text->is_string()) return InvalidArgument(where + ": field \"text\" is not a string");
    return CalibrationLine(TextLine{std::move(text->get_ref<std::string&>())});
  }
  return InvalidArgument(where + ": has none of the fields \"text\", \"messages\", \"input_ids\"");
}

Status ForEachLine(const ReadableFile& file, const std::string& path, const std::function<void(ByteSpan)>& on_bytes,
                   const std::function<Status(uint64_t, std::string_view)>& on_line) {
  LineSplitter splitter(path, on_line);
  Bytes buffer;
  for (uint64_t offset = 0; offset < file.size(); offset += buffer.size()) {
    buffer.resize(std::min<uint64_t>(kBufferBytes, file.size() - offset));
    HOLDFAST_TRY(file.Read(offset, buffer));
    on_bytes(buffer);
    HOLDFAST_TRY(splitter.Add(AsText(buffer)));
  }
  return splitter.Finish();
}

size_t FindInvalidUtf8(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    const size_t length = SequenceLength(text.substr(at));
    if (length == 0) return at;
    at += length;
  }
  return at;
}

}  // namespace holdfast
