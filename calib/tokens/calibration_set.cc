// SPDX-License-Identifier: Apache-2.0
//
// Reads a calibration file once, front to back: every line is judged, even those beyond the samples asked for, and every byte goes
// into the file's digest. Lines that need the tokenizer wait until enough of them are there for one call of the helper.
#include "calib/tokens/calibration_set.h"

#include <algorithm>
#include <variant>

#include "calib/tokens/helper_process.h"
#include "calib/tokens/jsonl.h"

namespace holdfast {
namespace {

constexpr uint32_t kDefaultSamples = 512;
constexpr uint32_t kBatchLinesMin = 64;               // a later call of the helper asks for at least that many lines
constexpr size_t kBatchBytesMax = 256u << 20;         // text of one call
constexpr uint64_t kDocumentBytesMax = 256ull << 20;  // a .txt is tokenized in one piece
constexpr size_t kAnswerBytesMax = 1u << 30;

std::string Count(uint64_t n, const char* noun) { return std::to_string(n) + " " + noun + (n == 1 ? "" : "s"); }

bool EndsWith(std::string_view s, std::string_view tail) { return s.size() >= tail.size() && s.substr(s.size() - tail.size()) == tail; }

std::string LastLines(const std::string& text) {
  constexpr size_t kBytes = 600;
  return text.size() <= kBytes ? text : "..." + text.substr(text.size() - kBytes);
}

// Calls the helper for one calibration request.
class Tokenizer {
 public:
  Tokenizer(FileSystem& fs, const CalibrationRequest& request) : fs_(fs), request_(request) {}

  struct Answer {
    std::vector<std::vector<int32_t>> samples;
    uint64_t available = 0;
  };

  // `work` has either "items" or "document"; `items` is how many answers are due (0: any number).
  Result<Answer> Run(Json work, size_t items) {
    HOLDFAST_TRY(CheckModel());
    work["model_dir"] = request_.model_dir;
    work["seq_len"] = request_.seq_len;
    HOLDFAST_ASSIGN(const Json answer, Call(work.dump(-1, ' ', false, Json::error_handler_t::replace)));
    return Decode(answer, items);
  }
  bool used() const { return used_; }

 private:
  Status CheckModel() {
    const std::string path = JoinPath(request_.model_dir, "tokenizer.json");
    HOLDFAST_ASSIGN(const bool there, fs_.Exists(path));
    if (there) return OkStatus();
    return InvalidArgument(path + ": no such file, so text cannot be tokenized. Save the model's fast tokenizer there (transformers: "
                           "AutoTokenizer.from_pretrained(...).save_pretrained(DIR)), or give a .jsonl with \"input_ids\"");
  }

  Result<Json> Call(const std::string& input) {
    used_ = true;
    std::string helper = request_.helper;
    if (helper.empty()) {
      HOLDFAST_ASSIGN(helper, DefaultHelper());
    }
    HOLDFAST_ASSIGN(const bool there, fs_.Exists(helper));
    if (!there) return InvalidArgument(helper + ": the tokenizer helper is missing; build again, or copy it beside the binary");
    const std::string python = request_.python.empty() ? DefaultPython() : request_.python;
    auto ran = RunProcess({python, "-I", helper}, input, kAnswerBytesMax);
    if (!ran.ok()) {
      if (ran.code() != ErrorCode::kNotFound) return Internal("tokenizing " + request_.file + ": " + ran.error().message);
      return InvalidArgument(python + ": no such Python interpreter, and " + request_.file +
                             " holds text. Install python3, or type: export HOLDFAST_PYTHON=/path/to/python3");
    }
    return Judge(*ran, python);
  }

  Result<Json> Judge(const ProcessOutput& ran, const std::string& python) {
    auto answer = ParseJson(ran.out, "the tokenizer helper's answer", kAnswerBytesMax);
    if (answer.ok() && answer->is_object() && answer->contains("error")) {
      HOLDFAST_ASSIGN(const std::string message, GetString(*answer, "error", "the tokenizer helper's answer"));
      HOLDFAST_ASSIGN(const uint64_t line, GetUint(*answer, "line", "the tokenizer helper's answer"));
      return InvalidArgument(line == 0 ? request_.file + ": " + message : At(line) + ": " + message);
    }
    if (ran.exit_code == 0) return answer;
    const std::string how = ran.signal != 0 ? "was ended by signal " + std::to_string(ran.signal)
                                            : "ended with status " + std::to_string(ran.exit_code);
    return Internal("tokenizing " + request_.file + ": the helper (" + python + ") " + how + ": " + LastLines(ran.err));
  }

  Result<Answer> Decode(const Json& answer, size_t items) {
    const std::string what = "the tokenizer helper's answer";
    Answer result;
    HOLDFAST_ASSIGN(result.available, GetUint(answer, "available", what));
    HOLDFAST_ASSIGN(const Json* samples, GetArray(answer, "samples", what));
    if (items != 0 && samples->size() != items) return Internal(what + ": " + Count(samples->size(), "sample") + " for " + Count(items, "item"));
    for (const Json& sample : *samples) {
      HOLDFAST_ASSIGN(std::vector<int32_t> ids, DecodeSample(sample));
      result.samples.push_back(std::move(ids));
    }
    return result;
  }

  Result<std::vector<int32_t>> DecodeSample(const Json& sample) {
    if (!sample.is_array() || sample.size() > request_.seq_len) return Internal("the tokenizer helper's answer: not a sample");
    std::vector<int32_t> ids;
    ids.reserve(sample.size());
    for (const Json& id : sample) {
      if (!id.is_number_unsigned()) return Internal("the tokenizer helper's answer: not a token id: " + id.dump());
      const uint64_t value = id.get<uint64_t>();
      if (value >= request_.vocab || value > static_cast<uint64_t>(INT32_MAX)) {
        return InvalidArgument(request_.file + ": the tokenizer of " + request_.model_dir + " gives token id " + std::to_string(value) +
                               ", beyond the model's vocabulary of " + std::to_string(request_.vocab) +
                               "; tokenizer.json and config.json (vocab_size) do not belong together");
      }
      ids.push_back(static_cast<int32_t>(value));
    }
    return ids;
  }

  std::string At(uint64_t line) const { return request_.file + ", line " + std::to_string(line); }

  FileSystem& fs_;
  const CalibrationRequest& request_;
  bool used_ = false;
};

// Takes lines in order and keeps the first `wanted` that have tokens.
class LineCollector {
 public:
  LineCollector(const CalibrationRequest& request, Tokenizer& tokenizer, uint32_t wanted)
      : request_(request), tokenizer_(tokenizer), wanted_(wanted) {}

  Status Add(uint64_t number, CalibrationLine line) {
    if (samples_.size() >= wanted_) return OkStatus();
    if (auto* tokens = std::get_if<TokenLine>(&line)) {
      tokens->ids.resize(std::min<size_t>(tokens->ids.size(), request_.seq_len));
      if (!tokens->ids.empty()) pending_.push_back({std::move(tokens->ids), Json()});
    } else if (auto* text = std::get_if<TextLine>(&line)) {
      // Blank texts are common in data sets, and a sample of one BOS token is of no use to anybody.
      if (text->text.find_first_not_of(" \t\r\n") != std::string::npos) Wait(number, "text", std::move(text->text));
    } else {
      Wait(number, "json", std::move(std::get<MessagesLine>(line).json));
    }
    const size_t missing = wanted_ - samples_.size();
    const size_t batch = calls_ == 0 ? missing : std::max<size_t>(missing, kBatchLinesMin);
    return pending_.size() >= batch || pending_bytes_ >= kBatchBytesMax ? Flush() : OkStatus();
  }

  Result<std::vector<std::vector<int32_t>>> Finish() {
    HOLDFAST_TRY(Flush());
    return std::move(samples_);
  }

 private:
  struct Pending {
    std::vector<int32_t> ids;
    Json item;  // null: `ids` are known
  };

  void Wait(uint64_t number, const char* field, std::string content) {
    pending_bytes_ += content.size();
    pending_.push_back({{}, Json{{"line", number}, {field, std::move(content)}}});
  }

  Status Flush() {
    Json items = Json::array();
    for (Pending& p : pending_) {
      if (!p.item.is_null()) items.push_back(std::move(p.item));
    }
    const size_t asked = items.size();
    Tokenizer::Answer answer;
    if (asked != 0) {
      ++calls_;
      HOLDFAST_ASSIGN(answer, tokenizer_.Run(Json{{"items", std::move(items)}}, asked));
    }
    auto next = answer.samples.begin();
    for (Pending& p : pending_) {
      std::vector<int32_t> ids = p.ids.empty() ? std::move(*next++) : std::move(p.ids);
      if (!ids.empty() && samples_.size() < wanted_) samples_.push_back(std::move(ids));
    }
    pending_.clear();
    pending_bytes_ = 0;
    return OkStatus();
  }

  const CalibrationRequest& request_;
  Tokenizer& tokenizer_;
  const uint32_t wanted_;
  std::vector<std::vector<int32_t>> samples_;
  std::vector<Pending> pending_;
  size_t pending_bytes_ = 0;
  uint32_t calls_ = 0;
};

Error TooFew(const CalibrationRequest& request, uint64_t available, bool windows) {
  const std::string unit = windows ? "window of " + std::to_string(request.seq_len) + " tokens" : "sample";
  if (available == 0) {
    return InvalidArgument(request.file + ": no " + unit + " in it (" +
                           (windows ? "the text gives no tokens" : "empty lines and lines without tokens do not count") +
                           "); give a file with text");
  }
  return InvalidArgument(request.file + ": holds " + std::to_string(available) + " " + unit + (available == 1 ? "" : "s") + ", but " +
                         std::to_string(*request.samples) + " were asked for; type --samples " + std::to_string(available) +
                         ", leave --samples away to take what is there, or give a longer file");
}

uint32_t Wanted(const CalibrationRequest& request) { return request.samples.value_or(kDefaultSamples); }

Status ReadLines(const ReadableFile& file, const CalibrationRequest& request, Tokenizer& tokenizer, CalibrationSet* set) {
  Sha256Hasher hasher;
  LineCollector collector(request, tokenizer, Wanted(request));
  HOLDFAST_TRY(ForEachLine(
      file, request.file, [&](ByteSpan bytes) { hasher.Update(bytes); },
      [&](uint64_t number, std::string_view line) -> Status {
        if (line.find_first_not_of(" \t\r") == std::string_view::npos) return OkStatus();
        HOLDFAST_ASSIGN(CalibrationLine parsed,
                        ParseCalibrationLine(line, request.vocab, request.file + ", line " + std::to_string(number)));
        return collector.Add(number, std::move(parsed));
      }));
  HOLDFAST_ASSIGN(set->samples, collector.Finish());
  set->file_sha256 = hasher.Finish();
  if (set->samples.empty() || (request.samples && set->samples.size() < *request.samples)) {
    return TooFew(request, set->samples.size(), /*windows=*/false);
  }
  return OkStatus();
}

// CRLF and a byte order mark are a matter of the file, not of the text.
Result<std::string> PlainText(const Bytes& bytes, const std::string& path) {
  std::string_view raw = AsText(bytes);
  if (const size_t bad = FindInvalidUtf8(raw); bad < raw.size()) {
    return InvalidArgument(path + ": not UTF-8 text (byte " + std::to_string(bad) + "); convert it, e.g. iconv -f latin1 -t utf-8");
  }
  if (raw.substr(0, kByteOrderMark.size()) == kByteOrderMark) raw.remove_prefix(kByteOrderMark.size());
  std::string text;
  text.reserve(raw.size());
  for (size_t i = 0; i < raw.size(); ++i) {
    if (raw[i] != '\r' || i + 1 == raw.size() || raw[i + 1] != '\n') text.push_back(raw[i]);
  }
  return text;
}

Status ReadDocument(const ReadableFile& file, const CalibrationRequest& request, Tokenizer& tokenizer, CalibrationSet* set) {
  if (file.size() > kDocumentBytesMax) {
    return InvalidArgument(request.file + ": " + std::to_string(file.size() >> 20) + " MiB; a .txt is tokenized in one piece and may have " +
                           std::to_string(kDocumentBytesMax >> 20) + " MiB; cut it, or make it a .jsonl with one \"text\" a line");
  }
  Bytes bytes(file.size());
  HOLDFAST_TRY(file.Read(0, bytes));
  set->file_sha256 = Sha256(bytes);
  HOLDFAST_ASSIGN(std::string text, PlainText(bytes, request.file));
  HOLDFAST_ASSIGN(Tokenizer::Answer answer, tokenizer.Run(Json{{"document", std::move(text)}, {"windows_max", Wanted(request)}}, 0));
  set->samples = std::move(answer.samples);
  if (set->samples.empty() || (request.samples && answer.available < *request.samples)) {
    return TooFew(request, answer.available, /*windows=*/true);
  }
  return OkStatus();
}

Status CheckRequest(const CalibrationRequest& request) {
  if (request.samples && *request.samples == 0) return InvalidArgument("--samples 0: nothing to calibrate with; give 1 or more");
  if (request.seq_len == 0) return InvalidArgument("--seq-len 0: a sample without tokens; give 1 or more");
  return OkStatus();
}

// The file, or a refusal that an unreadable path deserves.
Result<std::unique_ptr<ReadableFile>> OpenFile(FileSystem& fs, const std::string& path) {
  auto file = fs.Open(path);
  if (!file.ok()) {
    if (file.code() == ErrorCode::kTransient) return file.error();
    return InvalidArgument("calibration file: " + file.error().message);
  }
  if ((*file)->size() == 0) return InvalidArgument(path + ": the calibration file is empty; give a file with text");
  if ((*file)->size() > kCalibrationFileBytesMax) {
    return InvalidArgument(path + ": " + std::to_string((*file)->size() >> 20) + " MiB, more than the " +
                           std::to_string(kCalibrationFileBytesMax >> 20) + " MiB that a calibration file may have; a few hundred "
                           "samples are enough, e.g. head -n 1000 " + path + " > smaller.jsonl");
  }
  return file;
}

}  // namespace

Result<CalibrationSet> ReadCalibration(FileSystem& fs, const CalibrationRequest& request) {
  HOLDFAST_TRY(CheckRequest(request));
  const bool lines = EndsWith(request.file, ".jsonl");
  if (!lines && !EndsWith(request.file, ".txt")) {
    return InvalidArgument(request.file + ": the name ends neither in .jsonl (one sample a line: \"text\", \"messages\" or \"input_ids\") "
                           "nor in .txt (plain text)");
  }
  HOLDFAST_ASSIGN(auto file, OpenFile(fs, request.file));
  Tokenizer tokenizer(fs, request);
  CalibrationSet set;
  HOLDFAST_TRY(lines ? ReadLines(*file, request, tokenizer, &set) : ReadDocument(*file, request, tokenizer, &set));
  set.tokens_sha256 = TokensDigest(set.samples);
  set.used_helper = tokenizer.used();
  return set;
}

Digest TokensDigest(const std::vector<std::vector<int32_t>>& samples) {
  Sha256Hasher hasher;
  Bytes bytes;
  for (const std::vector<int32_t>& ids : samples) {
    bytes.clear();
    PutLe(&bytes, static_cast<uint32_t>(ids.size()));
    for (const int32_t id : ids) PutLe(&bytes, static_cast<uint32_t>(id));
    hasher.Update(bytes);
  }
  return hasher.Finish();
}

}  // namespace holdfast
