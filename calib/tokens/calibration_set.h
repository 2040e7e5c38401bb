// SPDX-License-Identifier: Apache-2.0
//
// A calibration file becomes token ids, once: .jsonl with "input_ids" (used as they are: no Python), "text" or "messages" (the model's own
// chat template), or .txt (cut into windows of seq_len tokens). Text goes through Hugging Face's tokenizers in a small Python helper.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "ledger/base/checksum.h"
#include "ledger/base/file_system.h"
#include "ledger/base/result.h"

namespace holdfast {

struct CalibrationRequest {
  std::string file;               // .jsonl or .txt
  std::string model_dir;          // tokenizer.json, tokenizer_config.json, chat_template.jinja: read as data, nothing executed
  std::optional<uint32_t> samples;  // nullopt: up to 512, or what the file has; given: exactly that many or a refusal
  uint32_t seq_len = 512;
  uint64_t vocab = 0;             // every id must be below
  std::string python;             // interpreter for the helper; empty: $HOLDFAST_PYTHON, then python3
  std::string helper;             // path of the helper script; empty: beside this binary
};

struct CalibrationSet {
  std::vector<std::vector<int32_t>> samples;   // each 1..seq_len ids
  Digest file_sha256;                          // of the calibration file
  Digest tokens_sha256;                        // as JobSpec::tokens_sha256
  bool used_helper = false;
};

// .jsonl: a line is a sample, cut to seq_len ids. Where it has several fields, input_ids goes before messages before text. Blank
// lines, blank texts and lines without tokens do not count. Every line is judged, also those beyond the samples asked for.
// text: with the special tokens that the tokenizer adds; messages: only what the template writes (no generation prompt), its
// strftime_now always answers 2024-07-26, so that the same file gives the same tokens on any day.
// .txt: tokenized once as a whole, consecutive windows of seq_len; a short last one only where it is the only one.
// Limits: a file of 4 GiB (.txt 256 MiB), a line of 64 MiB.
// Errors (kInvalidArgument) name the file, the line and the field: empty file, fewer samples than asked for, a line that is not JSON
// or has none of the three fields, an id below 0 or beyond the vocabulary (with line and position), a helper that is missing a module
// (with the pip line to type).
Result<CalibrationSet> ReadCalibration(FileSystem& fs, const CalibrationRequest& request);

Digest TokensDigest(const std::vector<std::vector<int32_t>>& samples);

}  // namespace holdfast
