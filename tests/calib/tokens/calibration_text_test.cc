// SPDX-License-Identifier: Apache-2.0
//
// Calibration files that need the tokenizer helper, with a tokenizer made by hand. Needs a Python with tokenizers and jinja2:
// $HOLDFAST_PYTHON, or the virtual environment that ./check makes beside the binaries.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "calib/tokens/calibration_set.h"
#include "calib/tokens/helper_process.h"
#include "ledger/base/json.h"
#include "tests/calib/tokens/tiny_tokenizer.h"

namespace holdfast {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

// The template of SmolLM2, as the model has it.
const char kChatMl[] =
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

class CalibrationText : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string venv = HOLDFAST_BIN_DIR "/../venv/bin/python";
    const char* chosen = ::getenv("HOLDFAST_PYTHON");
    python_ = chosen != nullptr ? chosen : fs_.Exists(venv).value() ? venv : "python3";
    const auto probe = RunProcess({python_, "-I", "-c", "import tokenizers, jinja2"}, "", 1000);
    if (!probe.ok() || probe->exit_code != 0) {
      GTEST_SKIP() << python_ << " has no tokenizers and jinja2; ./check makes one that has, or set HOLDFAST_PYTHON";
    }
    char dir[] = "/tmp/holdfast-text-XXXXXX";
    ASSERT_NE(::mkdtemp(dir), nullptr);
    dir_ = dir;
    Write("tokenizer.json", TinyTokenizerJson());
  }
  void TearDown() override {
    if (!dir_.empty()) (void)fs_.RemoveTree(dir_);
  }

  std::string Write(const std::string& name, std::string_view content) {
    const std::string path = JoinPath(dir_, name);
    auto file = fs_.Create(path, 0644);
    EXPECT_TRUE(file.ok() && (*file)->Append(AsBytes(content)).ok() && (*file)->Close().ok());
    return path;
  }
  void WriteTemplate(const std::string& source) {
    Write("tokenizer_config.json", Json{{"bos_token", "<s>"}, {"eos_token", {{"content", "<|im_end|>"}}}, {"chat_template", source}}.dump());
  }
  CalibrationRequest Request(const std::string& file) {
    CalibrationRequest request;
    request.file = file;
    request.model_dir = dir_;
    request.vocab = kTinyVocab;
    request.seq_len = 512;
    request.python = python_;
    request.helper = HOLDFAST_BIN_DIR "/holdfast-tokenize";
    return request;
  }
  Result<CalibrationSet> Read(std::string_view content) { return ReadCalibration(fs_, Request(Write("c.jsonl", content))); }
  std::string RefusalOf(const CalibrationRequest& request) {
    const auto set = ReadCalibration(fs_, request);
    if (set.ok()) return "(accepted)";
    EXPECT_EQ(set.code(), ErrorCode::kInvalidArgument) << set.error().message;
    return set.error().message;
  }
  std::string Refusal(std::string_view content) { return RefusalOf(Request(Write("c.jsonl", content))); }
  // What the model's template makes of one line with these messages.
  std::string Rendered(const std::string& messages) {
    const auto set = Read("{\"messages\": " + messages + "}\n");
    return set.ok() ? TextOf(set->samples.at(0)) : "refused: " + set.error().message;
  }

  PosixFileSystem fs_;
  std::string dir_, python_;
};

TEST_F(CalibrationText, TextGetsTheTokenizersSpecialTokens) {
  const auto set = Read("{\"text\": \"Hi \\u00e9\"}\n{\"text\": \"\"}\n{\"input_ids\": [65]}\n{\"text\": \"two\"}\n");
  ASSERT_TRUE(set.ok()) << set.error().message;
  EXPECT_THAT(set->samples, ElementsAre(ElementsAre(kBos, 'H', 'i', ' ', 0xc3, 0xa9), ElementsAre(65), ElementsAre(kBos, 't', 'w', 'o')));
  EXPECT_TRUE(set->used_helper);
}

TEST_F(CalibrationText, SpecialTokensInATextAreSingleIds) {
  const auto set = Read("{\"text\": \"a<|im_end|>b\"}\n");
  ASSERT_TRUE(set.ok()) << set.error().message;
  EXPECT_THAT(set->samples, ElementsAre(ElementsAre(kBos, 'a', kImEnd, 'b')));
}

TEST_F(CalibrationText, TextIsCutToSeqLen) {
  CalibrationRequest request = Request(Write("c.jsonl", "{\"text\": \"abcdefgh\"}\n"));
  request.seq_len = 4;
  const auto set = ReadCalibration(fs_, request);
  ASSERT_TRUE(set.ok()) << set.error().message;
  EXPECT_THAT(set->samples, ElementsAre(ElementsAre(kBos, 'a', 'b', 'c')));
}

TEST_F(CalibrationText, LinesWithoutTokensAreMadeUpForByLaterOnes) {
  WriteTemplate("{{ messages[0].content }}");
  std::string content;
  for (int i = 0; i < 200; ++i) {
    const std::string text = i % 3 == 0 ? std::to_string(i) : "";
    content += Json{{"messages", {{{"role", "user"}, {"content", text}}}}}.dump() + "\n";
  }
  CalibrationRequest request = Request(Write("c.jsonl", content));
  request.samples = 60;
  auto set = ReadCalibration(fs_, request);
  ASSERT_TRUE(set.ok()) << set.error().message;
  ASSERT_EQ(set->samples.size(), 60u);
  for (int i = 0; i < 60; ++i) EXPECT_EQ(TextOf(set->samples[static_cast<size_t>(i)]), std::to_string(3 * i));
  request.samples = 68;
  EXPECT_THAT(RefusalOf(request), HasSubstr("holds 67 samples"));
}

TEST_F(CalibrationText, MessagesAreRenderedAsTheModelWants) {
  WriteTemplate(kChatMl);
  EXPECT_EQ(Rendered(R"([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}])"),
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n");
  EXPECT_EQ(Rendered(R"([{"role": "system", "content": "S"}])"), "<|im_start|>system\nS<|im_end|>\n");
}

TEST_F(CalibrationText, TemplatesSeeWhatTheyExpect) {
  WriteTemplate("{{ bos_token }}|{{ eos_token }}|{{ tools is none }}|{{ add_generation_prompt }}|{{ strftime_now('%d %b %Y') }}\n"
                "  {% if true %}\n"
                "trimmed\n"
                "  {% endif %}\n"
                "{% generation %}G{% endgeneration %}{% for i in [1, 2, 3] %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}{% endfor %}"
                "{{ messages[0] | tojson }}");
  EXPECT_EQ(Rendered(R"([{"role": "user", "content": "é<", "a": 1}])"),
            "<s>|<|im_end|>|True|False|26 Jul 2024\ntrimmed\nG13{\"role\": \"user\", \"content\": \"é<\", \"a\": 1}");
}

TEST_F(CalibrationText, TemplateFileGoesBeforeConfigAndNamedOnesNeedADefault) {
  Write("tokenizer_config.json", R"({"chat_template": [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]})");
  EXPECT_EQ(Rendered(R"([{"role": "user"}])"), "D");
  Write("chat_template.jinja", "F");
  EXPECT_EQ(Rendered(R"([{"role": "user"}])"), "F");
  ASSERT_TRUE(fs_.Unlink(JoinPath(dir_, "chat_template.jinja")).ok());
  Write("tokenizer_config.json", R"({"chat_template": [{"name": "tool_use", "template": "T"}]})");
  EXPECT_THAT(Rendered(R"([{"role": "user"}])"), AllOf(HasSubstr("refused: "), HasSubstr("none named \"default\"")));
  Write("tokenizer_config.json", "{}");
  EXPECT_THAT(Rendered(R"([{"role": "user"}])"), HasSubstr("has no chat template"));
}

TEST_F(CalibrationText, ATemplateCannotLeaveTheSandbox) {
  const std::string witness = JoinPath(dir_, "escaped");
  const std::vector<std::string> sources = {
      "{{ ''.__class__.__mro__[1].__subclasses__() }}",
      "{{ cycler.__init__.__globals__.os.system('touch " + witness + "') }}",
      "{{ raise_exception.__globals__['os'].system('touch " + witness + "') }}",
      "{{ strftime_now.__self__.__class__.__subclasses__() }}",
      "{{ messages.append(1) }}",
      "{{ '{0.__class__}'.format(messages) }}{{ messages.__class__.__base__.__subclasses__() }}",
  };
  for (const std::string& source : sources) {
    WriteTemplate(source);
    EXPECT_THAT(Rendered(R"([{"role": "user", "content": "x"}])"), AllOf(HasSubstr("refused: "), HasSubstr("c.jsonl, line 1"))) << source;
  }
  EXPECT_FALSE(fs_.Exists(witness).value());
}

TEST_F(CalibrationText, RefusalsOfTheTemplateNameTheLine) {
  WriteTemplate("{% if messages[0].role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}x");
  EXPECT_THAT(Refusal("{\"messages\": [{\"role\": \"user\"}]}\n\n{\"messages\": [{\"role\": \"tool\"}]}\n"),
              AllOf(HasSubstr("c.jsonl, line 3"), HasSubstr("no tools here")));
  WriteTemplate("{% if %}");
  EXPECT_THAT(Refusal("{\"messages\": [{\"role\": \"user\"}]}\n"), HasSubstr("the chat template is not valid"));
}

TEST_F(CalibrationText, PlainTextIsCutIntoWindows) {
  CalibrationRequest request = Request(Write("c.txt", "\xef\xbb\xbf" "abcdefgh\r\nij"));
  request.seq_len = 4;  // <s>abc defg h\nij
  auto set = ReadCalibration(fs_, request);
  ASSERT_TRUE(set.ok()) << set.error().message;
  EXPECT_THAT(set->samples, ElementsAre(ElementsAre(kBos, 'a', 'b', 'c'), ElementsAre('d', 'e', 'f', 'g'), ElementsAre('h', '\n', 'i', 'j')));
  request.seq_len = 5;  // a short last window does not count
  set = ReadCalibration(fs_, request);
  ASSERT_TRUE(set.ok());
  EXPECT_EQ(set->samples.size(), 2u);
  request.seq_len = 100;  // but it does where it is the only one
  set = ReadCalibration(fs_, request);
  ASSERT_TRUE(set.ok());
  EXPECT_THAT(set->samples, ElementsAre(::testing::SizeIs(12)));
  request.samples = 2;
  EXPECT_THAT(RefusalOf(request), AllOf(HasSubstr("holds 1 window of 100 tokens"), HasSubstr("--samples 1")));
  request.seq_len = 4;
  set = ReadCalibration(fs_, request);
  ASSERT_TRUE(set.ok());
  EXPECT_EQ(set->samples.size(), 2u);
}

TEST_F(CalibrationText, TokensDoNotDependOnHowTheyAreAskedFor) {
  const std::string content = "{\"text\": \"one\"}\n{\"text\": \"two\"}\n";
  const auto a = Read(content), b = Read(content);
  ASSERT_TRUE(a.ok() && b.ok());
  EXPECT_EQ(a->tokens_sha256, b->tokens_sha256);
}

TEST_F(CalibrationText, RefusesATokenizerThatDoesNotBelongToTheModel) {
  CalibrationRequest request = Request(Write("c.jsonl", "{\"text\": \"x\"}\n"));
  request.vocab = 256;
  EXPECT_THAT(RefusalOf(request), AllOf(HasSubstr("token id 256"), HasSubstr("vocab_size")));
  Write("tokenizer.json", "{\"version\": \"1.0\"}");
  EXPECT_THAT(RefusalOf(Request(request.file)), AllOf(HasSubstr("tokenizer.json"), HasSubstr("cannot read it")));
}

TEST_F(CalibrationText, AMissingModuleSaysWhatToType) {
  const std::string bare = Write("python-without-modules", "#!/bin/sh\nexec " + python_ + " -I -S \"$2\"\n");
  ASSERT_EQ(::chmod(bare.c_str(), 0755), 0);
  CalibrationRequest request = Request(Write("c.jsonl", "{\"text\": \"x\"}\n"));
  request.python = bare;
  EXPECT_THAT(RefusalOf(request), AllOf(HasSubstr("tokenizers is missing"), HasSubstr("pip install tokenizers jinja2"),
                                        HasSubstr("export HOLDFAST_PYTHON=")));
}

TEST_F(CalibrationText, AHelperThatBreaksIsReportedWithItsLastWords) {
  CalibrationRequest request = Request(Write("c.jsonl", "{\"text\": \"x\"}\n"));
  request.helper = Write("broken.py", "raise SystemError('last words')\n");
  const auto set = ReadCalibration(fs_, request);
  ASSERT_FALSE(set.ok());
  EXPECT_THAT(set.error().message, AllOf(HasSubstr("ended with status 1"), HasSubstr("last words")));
}

TEST_F(CalibrationText, PythonSettingsOfTheUserDoNotReachTheHelper) {
  Write("tokenizers.py", "raise SystemError('hijacked')\n");
  ASSERT_EQ(::setenv("PYTHONPATH", dir_.c_str(), 1), 0);
  const std::string refusal = Refusal("{\"text\": \"x\"}\n");
  ::unsetenv("PYTHONPATH");
  EXPECT_EQ(refusal, "(accepted)");
}

}  // namespace
}  // namespace holdfast
