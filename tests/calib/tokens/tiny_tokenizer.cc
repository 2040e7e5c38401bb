// SPDX-License-Identifier: Apache-2.0
//
// Byte-level BPE without merges, built by hand.
#include "tests/calib/tokens/tiny_tokenizer.h"

#include "ledger/base/json.h"

namespace holdfast {
namespace {

const char* const kSpecial[] = {"<s>", "<|im_start|>", "<|im_end|>"};

// The printable stand-in of a byte that byte-level tokenizers use: itself where it is a visible Latin-1 character,
// else the next free code point from U+0100 on.
std::string StandIn(int byte) {
  const auto visible = [](int b) { return (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae; };
  int code = byte;
  if (!visible(byte)) {
    code = 0x100;
    for (int b = 0; b < byte; ++b) code += visible(b) ? 0 : 1;
  }
  if (code < 0x80) return std::string(1, static_cast<char>(code));
  return {static_cast<char>(0xc0 | (code >> 6)), static_cast<char>(0x80 | (code & 0x3f))};
}

Json AddedTokens() {
  Json added = Json::array();
  for (int i = 0; i < 3; ++i) {
    added.push_back({{"id", kBos + i}, {"content", kSpecial[i]}, {"special", true}, {"normalized", false}, {"lstrip", false},
                     {"rstrip", false}, {"single_word", false}});
  }
  return added;
}

}  // namespace

std::string TinyTokenizerJson() {
  Json vocab = Json::object();
  for (int byte = 0; byte < 256; ++byte) vocab[StandIn(byte)] = byte;
  const Json byte_level = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}};
  const Json bos = {{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}};
  const Json first = {{"Sequence", {{"id", "A"}, {"type_id", 0}}}}, second = {{"Sequence", {{"id", "B"}, {"type_id", 1}}}};
  const Json post = {{"type", "TemplateProcessing"},
                     {"single", Json::array({bos, first})},
                     {"pair", Json::array({bos, first, second})},
                     {"special_tokens", {{"<s>", {{"id", "<s>"}, {"ids", {kBos}}, {"tokens", {"<s>"}}}}}}};
  const Json model = {{"type", "BPE"}, {"dropout", nullptr}, {"unk_token", nullptr}, {"continuing_subword_prefix", nullptr},
                      {"end_of_word_suffix", nullptr}, {"fuse_unk", false}, {"byte_fallback", false}, {"vocab", vocab},
                      {"merges", Json::array()}};
  // Truncation and padding inside the file must not matter.
  const Json truncation = {{"direction", "Right"}, {"max_length", 3}, {"strategy", "LongestFirst"}, {"stride", 0}};
  return Json{{"version", "1.0"}, {"truncation", truncation}, {"padding", nullptr}, {"added_tokens", AddedTokens()},
              {"normalizer", nullptr}, {"pre_tokenizer", byte_level}, {"post_processor", post}, {"decoder", byte_level},
              {"model", model}}
      .dump();
}

std::string TextOf(const std::vector<int32_t>& ids) {
  std::string text;
  for (const int32_t id : ids) {
    if (id < kBos) {
      text.push_back(static_cast<char>(id));
    } else {
      text += kSpecial[id - kBos];
    }
  }
  return text;
}

}  // namespace holdfast
