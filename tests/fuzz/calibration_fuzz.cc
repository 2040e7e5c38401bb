// SPDX-License-Identifier: Apache-2.0
//
// A calibration file: cut into lines, each line judged. Ids are of the vocabulary; no byte is lost between the lines.
#include "calib/tokens/jsonl.h"
#include "ledger/base/sim_file_system.h"
#include "tests/fuzz/fuzz.h"

namespace holdfast {
namespace {

constexpr uint64_t kVocab = 1000;

void CheckLine(std::string_view text) {
  const auto line = ParseCalibrationLine(text, kVocab, "f, line 1");
  if (!line.ok()) return fuzz::CheckRefusal(line);
  if (const auto* tokens = std::get_if<TokenLine>(&*line)) {
    HOLDFAST_CHECK(tokens->ids.size() <= text.size());
    for (const int32_t id : tokens->ids) HOLDFAST_CHECK(id >= 0 && id < static_cast<int32_t>(kVocab));
  } else if (const auto* t = std::get_if<TextLine>(&*line)) {
    HOLDFAST_CHECK(FindInvalidUtf8(t->text) == t->text.size());
  } else {
    HOLDFAST_CHECK(std::get<MessagesLine>(*line).json == text);
  }
}

}  // namespace
}  // namespace holdfast

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace holdfast;
  SimFileSystem fs;
  fuzz::PutFile(fs, "/calib.jsonl", {data, size});
  const auto file = fs.Open("/calib.jsonl");
  HOLDFAST_CHECK(file.ok());
  uint64_t seen = 0, lines = 0, in_lines = 0;
  const Status s = ForEachLine(**file, "/calib.jsonl", [&](ByteSpan b) { seen += b.size(); }, [&](uint64_t number, std::string_view line) {
    HOLDFAST_CHECK(number == ++lines && line.find('\n') == std::string_view::npos);
    in_lines += line.size();
    CheckLine(line);
    return OkStatus();
  });
  // Between the lines are at most LF, CR and one byte order mark.
  HOLDFAST_CHECK(s.ok() && seen == size && in_lines <= size && in_lines + 2 * lines + kByteOrderMark.size() >= size);
  HOLDFAST_CHECK(FindInvalidUtf8(AsText({data, size})) <= size);
  return 0;
}
