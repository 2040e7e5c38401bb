// SPDX-License-Identifier: Apache-2.0
//
// A tokenizer.json whose ids are the bytes of the text: what a helper made of a file can be read back as a string.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace holdfast {

inline constexpr int32_t kBos = 256;     // "<s>": written before every text, but not into rendered messages
inline constexpr int32_t kImStart = 257; // "<|im_start|>"
inline constexpr int32_t kImEnd = 258;   // "<|im_end|>"
inline constexpr uint64_t kTinyVocab = 259;

std::string TinyTokenizerJson();

// The text of ids; special tokens in their written form.
std::string TextOf(const std::vector<int32_t>& ids);

}  // namespace holdfast
