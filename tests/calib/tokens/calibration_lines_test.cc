// SPDX-License-Identifier: Apache-2.0
//
// Calibration files that need no tokenizer: input_ids, every refusal of a line or file, line splitting, and mutated lines.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include "calib/tokens/calibration_set.h"
#include "calib/tokens/helper_process.h"
#include "calib/tokens/jsonl.h"

namespace holdfast {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class CalibrationLines : public ::testing::Test {
 protected:
  void SetUp() override {
    char dir[] = "/tmp/holdfast-calib-XXXXXX";
    ASSERT_NE(::mkdtemp(dir), nullptr);
    dir_ = dir;
  }
  void TearDown() override { (void)fs_.RemoveTree(dir_); }

  std::string Write(const std::string& name, std::string_view content) {
    const std::string path = JoinPath(dir_, name);
    auto file = fs_.Create(path, 0644);
    EXPECT_TRUE(file.ok() && (*file)->Append(AsBytes(content)).ok() && (*file)->Close().ok());
    return path;
  }
  CalibrationRequest Request(const std::string& file) {
    CalibrationRequest request;
    request.file = file;
    request.model_dir = dir_;
    request.vocab = 100;
    request.seq_len = 4;
    request.python = "/nonexistent/python";  // nothing here may need it
    return request;
  }
  Result<CalibrationSet> Read(std::string_view content) { return ReadCalibration(fs_, Request(Write("c.jsonl", content))); }
  std::string Refusal(std::string_view content) { return RefusalOf(Request(Write("c.jsonl", content))); }
  std::string RefusalOf(const CalibrationRequest& request) {
    const auto set = ReadCalibration(fs_, request);
    if (set.ok()) return "(accepted)";
    EXPECT_EQ(set.code(), ErrorCode::kInvalidArgument) << set.error().message;
    return set.error().message;
  }

  PosixFileSystem fs_;
  std::string dir_;
};

TEST_F(CalibrationLines, TakesInputIdsAsTheyAre) {
  const auto set = Read("{\"input_ids\": [1, 2, 3]}\n{\"input_ids\": [99, 0]}\n");
  ASSERT_TRUE(set.ok()) << set.error().message;
  EXPECT_THAT(set->samples, ElementsAre(ElementsAre(1, 2, 3), ElementsAre(99, 0)));
  EXPECT_FALSE(set->used_helper);
  EXPECT_EQ(set->file_sha256, Sha256(AsBytes("{\"input_ids\": [1, 2, 3]}\n{\"input_ids\": [99, 0]}\n")));
}

TEST_F(CalibrationLines, CutsToSeqLenAndSkipsWhatHasNoTokens) {
  const auto set = Read("\n{\"input_ids\": [1, 2, 3, 4, 5, 6]}\r\n   \n{\"input_ids\": []}\n{\"text\": \" \\n\"}\n{\"input_ids\": [7]}");
  ASSERT_TRUE(set.ok()) << set.error().message;
  EXPECT_THAT(set->samples, ElementsAre(ElementsAre(1, 2, 3, 4), ElementsAre(7)));
}

TEST_F(CalibrationLines, InputIdsGoBeforeOtherFields) {
  const auto set = Read("{\"text\": \"no tokenizer here\", \"messages\": 3, \"input_ids\": [5]}\n");
  ASSERT_TRUE(set.ok()) << set.error().message;
  EXPECT_THAT(set->samples, ElementsAre(ElementsAre(5)));
}

TEST_F(CalibrationLines, IgnoresAByteOrderMark) {
  EXPECT_TRUE(Read("\xef\xbb\xbf{\"input_ids\": [5]}\n").ok());
}

TEST_F(CalibrationLines, DefaultIsAtMost512Samples) {
  std::string content;
  for (int i = 0; i < 600; ++i) content += "{\"input_ids\": [" + std::to_string(i % 100) + "]}\n";
  CalibrationRequest request = Request(Write("c.jsonl", content));
  auto set = ReadCalibration(fs_, request);
  ASSERT_TRUE(set.ok());
  EXPECT_EQ(set->samples.size(), 512u);
  request.samples = 600;
  set = ReadCalibration(fs_, request);
  ASSERT_TRUE(set.ok());
  EXPECT_EQ(set->samples.size(), 600u);
}

TEST_F(CalibrationLines, DigestCoversLengthsAndIds) {
  EXPECT_EQ(TokensDigest({{1, 2}, {3}}), Sha256(Bytes{2, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0}));
  EXPECT_NE(TokensDigest({{1, 2}, {3}}), TokensDigest({{1}, {2, 3}}));
}

TEST_F(CalibrationLines, RefusesIdsNamingLineAndPosition) {
  EXPECT_THAT(Refusal("{\"input_ids\": [1]}\n{\"input_ids\": [1, 100]}\n"),
              AllOf(HasSubstr("c.jsonl, line 2: input_ids[1] = 100"), HasSubstr("vocabulary of 100")));
  EXPECT_THAT(Refusal("{\"input_ids\": [-1]}"), AllOf(HasSubstr("line 1: input_ids[0]"), HasSubstr("negative")));
  EXPECT_THAT(Refusal("{\"input_ids\": [18446744073709551615]}"), HasSubstr("beyond the vocabulary"));
  EXPECT_THAT(Refusal("{\"input_ids\": [1.0]}"), HasSubstr("input_ids[0] is not an integer: 1.0"));
  EXPECT_THAT(Refusal("{\"input_ids\": [\"1\"]}"), HasSubstr("not an integer"));
  EXPECT_THAT(Refusal("{\"input_ids\": [[1, 2]]}"), HasSubstr("one line is one sample"));
  EXPECT_THAT(Refusal("{\"input_ids\": {\"0\": 1}}"), HasSubstr("\"input_ids\" is not an array"));
}

TEST_F(CalibrationLines, RefusesIdsBeyondSeqLenToo) {
  EXPECT_THAT(Refusal("{\"input_ids\": [1, 1, 1, 1, 1, 1, 100]}"), HasSubstr("input_ids[6] = 100"));
}

TEST_F(CalibrationLines, RefusesBadLinesNamingThem) {
  EXPECT_THAT(Refusal("{\"input_ids\": [1]}\n\n{\"input_ids\": [1\n"), AllOf(HasSubstr("c.jsonl, line 3"), HasSubstr("not valid JSON")));
  EXPECT_THAT(Refusal("{\"input_ids\": [1], \"input_ids\": [2]}"), HasSubstr("duplicate key"));
  EXPECT_THAT(Refusal("[1, 2]"), HasSubstr("line 1: not a JSON object"));
  EXPECT_THAT(Refusal("{\"content\": \"x\"}"), HasSubstr("none of the fields \"text\", \"messages\", \"input_ids\""));
  EXPECT_THAT(Refusal("{\"text\": 3}"), HasSubstr("\"text\" is not a string"));
  EXPECT_THAT(Refusal("{\"text\": \"\xff\"}"), HasSubstr("line 1"));
  EXPECT_THAT(Refusal("{\"messages\": []}"), HasSubstr("\"messages\" is an empty array"));
  EXPECT_THAT(Refusal("{\"messages\": \"hi\"}"), HasSubstr("\"messages\" is not an array"));
  EXPECT_THAT(Refusal("{\"messages\": [{}, \"hi\"]}"), HasSubstr("messages[1] is not an object"));
}

TEST_F(CalibrationLines, RefusesABadLineBeyondTheSamplesAskedFor) {
  CalibrationRequest request = Request(Write("c.jsonl", "{\"input_ids\": [1]}\n{\"input_ids\": [1}\n"));
  request.samples = 1;
  EXPECT_THAT(RefusalOf(request), HasSubstr("line 2"));
}

TEST_F(CalibrationLines, RefusesTooFewSamplesSayingWhatToType) {
  CalibrationRequest request = Request(Write("c.jsonl", "{\"input_ids\": [1]}\n{\"input_ids\": []}\n{\"input_ids\": [2]}\n"));
  request.samples = 3;
  EXPECT_THAT(RefusalOf(request), AllOf(HasSubstr("holds 2 samples"), HasSubstr("--samples 2")));
  request.samples = 0;
  EXPECT_THAT(RefusalOf(request), HasSubstr("--samples 0"));
  request.samples = 2;
  request.seq_len = 0;
  EXPECT_THAT(RefusalOf(request), HasSubstr("--seq-len 0"));
}

TEST_F(CalibrationLines, RefusesFilesThatAreNone) {
  EXPECT_THAT(Refusal(""), HasSubstr("is empty"));
  EXPECT_THAT(Refusal("\n\n \n"), HasSubstr("no sample in it"));
  EXPECT_THAT(RefusalOf(Request(Write("c.json", "{}"))), HasSubstr("neither in .jsonl"));
  EXPECT_THAT(RefusalOf(Request(JoinPath(dir_, "absent.jsonl"))), HasSubstr("absent.jsonl"));
  ASSERT_TRUE(fs_.MakeDirs(JoinPath(dir_, "d.jsonl")).ok());
  EXPECT_THAT(RefusalOf(Request(JoinPath(dir_, "d.jsonl"))), HasSubstr("d.jsonl"));
}

TEST_F(CalibrationLines, RefusesHugeFiles) {
  const std::string path = Write("huge.jsonl", "");
  ASSERT_EQ(::truncate(path.c_str(), static_cast<off_t>(kCalibrationFileBytesMax + 1)), 0);  // sparse
  EXPECT_THAT(RefusalOf(Request(path)), AllOf(HasSubstr("huge.jsonl"), HasSubstr("4096 MiB")));
  const std::string text = Write("huge.txt", "");
  ASSERT_EQ(::truncate(text.c_str(), 300 << 20), 0);
  EXPECT_THAT(RefusalOf(Request(text)), HasSubstr("256 MiB"));
}

TEST_F(CalibrationLines, RefusesAHugeLine) {
  const std::string path = Write("line.jsonl", "{\"input_ids\": [1]}\n");
  ASSERT_EQ(::truncate(path.c_str(), static_cast<off_t>(kCalibrationLineBytesMax + 100)), 0);  // a second line of NULs
  EXPECT_THAT(RefusalOf(Request(path)), AllOf(HasSubstr("line 2: longer than 64 MiB")));
}

TEST_F(CalibrationLines, TextWithoutTokenizerOrPythonIsRefused) {
  const std::string path = Write("c.jsonl", "{\"text\": \"hello\"}\n");
  EXPECT_THAT(RefusalOf(Request(path)), AllOf(HasSubstr("tokenizer.json: no such file"), HasSubstr("input_ids")));
  Write("tokenizer.json", "{}");
  CalibrationRequest request = Request(path);
  request.helper = JoinPath(dir_, "no-helper");
  EXPECT_THAT(RefusalOf(request), HasSubstr("no-helper: the tokenizer helper is missing"));
  request.helper = Write("helper", "");
  EXPECT_THAT(RefusalOf(request), AllOf(HasSubstr("/nonexistent/python: no such Python"), HasSubstr("HOLDFAST_PYTHON")));
}

TEST_F(CalibrationLines, RefusesTextThatIsNotUtf8) {
  EXPECT_THAT(RefusalOf(Request(Write("latin1.txt", "caf\xe9 au lait"))), AllOf(HasSubstr("latin1.txt: not UTF-8 text (byte 3)")));
}

TEST(Utf8, FindsTheFirstBadByte) {
  EXPECT_EQ(FindInvalidUtf8("a\xc3\xa9\xe2\x82\xac\xf0\x9f\x9a\x80"), 10u);
  EXPECT_EQ(FindInvalidUtf8("ab\xc0\x80"), 2u);          // overlong
  EXPECT_EQ(FindInvalidUtf8("\xed\xa0\x80"), 0u);        // surrogate
  EXPECT_EQ(FindInvalidUtf8("\xf4\x90\x80\x80"), 0u);    // beyond U+10FFFF
  EXPECT_EQ(FindInvalidUtf8("x\xe2\x82"), 1u);           // cut off
  EXPECT_EQ(FindInvalidUtf8(""), 0u);
}

TEST(RunProcess, MovesMoreThanAPipeHoldsBothWays) {
  const std::string input(9u << 20, 'x');
  const auto ran = RunProcess({"cat"}, input, 64u << 20);
  ASSERT_TRUE(ran.ok()) << ran.error().message;
  EXPECT_EQ(ran->exit_code, 0);
  EXPECT_TRUE(ran->out == input);
}

TEST(RunProcess, IsGivenUpWhenAsked) {
  const std::atomic<bool> stop{true};
  EXPECT_EQ(RunProcess({"sleep", "600"}, "", 1000, &stop).code(), ErrorCode::kStopped);
}

TEST(RunProcess, TellsHowItEnded) {
  auto ran = RunProcess({"sh", "-c", "echo out; echo err >&2; exit 3"}, "never read", 1000);
  ASSERT_TRUE(ran.ok());
  EXPECT_EQ(ran->out, "out\n");
  EXPECT_EQ(ran->err, "err\n");
  EXPECT_EQ(ran->exit_code, 3);
  ran = RunProcess({"sh", "-c", "kill -9 $$"}, std::string(1 << 20, 'x'), 1000);
  ASSERT_TRUE(ran.ok());
  EXPECT_EQ(ran->signal, 9);
  EXPECT_EQ(RunProcess({"/nonexistent/program"}, "", 1000).code(), ErrorCode::kNotFound);
  EXPECT_EQ(RunProcess({"cat"}, std::string(1 << 20, 'x'), 1000).code(), ErrorCode::kResourceExhausted);
}

// Mutates valid lines; whatever comes out, the parser answers and keeps its promises.
TEST(Fuzz, MutatedLinesNeverBreakThePromise) {
  const std::vector<std::string> seeds = {
      R"({"input_ids": [1, 2, 3, 99, 0, 57]})", R"({"text": "hello \u00e9 \"quoted\" world"})",
      R"({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": null}]})",
      R"({"input_ids": [], "text": "", "other": {"a": [true, 1e5, -7]}})"};
  const std::string_view alphabet = "{}[]\",:0123456789eE+-.\\utrnfalsx \x00\xff\xc3";
  uint64_t state = 20261121;
  const auto next = [&](uint64_t bound) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return (state >> 33) % bound;
  };
  int accepted = 0;
  for (int round = 0; round < 30000; ++round) {
    std::string line = seeds[next(seeds.size())];
    for (uint64_t edits = 1 + next(4); edits > 0 && !line.empty(); --edits) {
      const size_t at = next(line.size());
      switch (next(4)) {
        case 0: line[at] = alphabet[next(alphabet.size())]; break;
        case 1: line.insert(at, 1, alphabet[next(alphabet.size())]); break;
        case 2: line.erase(at, 1 + next(5)); break;
        default: line.insert(at, line.substr(next(line.size()), next(20)));
      }
    }
    const auto parsed = ParseCalibrationLine(line, 100, "fuzz, line 1");
    if (!parsed.ok()) {
      EXPECT_EQ(parsed.code(), ErrorCode::kInvalidArgument);
      EXPECT_THAT(parsed.error().message, HasSubstr("fuzz, line 1"));
      continue;
    }
    ++accepted;
    if (const auto* tokens = std::get_if<TokenLine>(&*parsed)) {
      for (const int32_t id : tokens->ids) ASSERT_TRUE(id >= 0 && id < 100) << line;
    }
    if (const auto* text = std::get_if<TextLine>(&*parsed)) {
      ASSERT_EQ(FindInvalidUtf8(text->text), text->text.size()) << line;
    }
  }
  EXPECT_GT(accepted, 1000);
}

}  // namespace
}  // namespace holdfast
