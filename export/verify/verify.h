// SPDX-License-Identifier: Apache-2.0
//
// Judges a finished output directory alone, or against its source. Refuses everything that vLLM refuses and everything that it loads
// without a word. Findings carry stable codes; the rule behind each code stands in docs/verify.md.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "export/format/safetensors.h"
#include "ledger/records/records.h"

namespace holdfast {

enum class Severity : uint8_t { kError, kWarning };

struct VerifyFinding {
  std::string code;      // "V011"
  Severity severity = Severity::kError;
  std::string object;    // file, tensor or field
  std::string message;   // what is wrong, what was expected, what to do
};

struct VerifyOptions {
  uint32_t threads = 1;
  std::string source;     // model directory to re-quantize from and compare bytes; empty: judge alone
  // What the architecture says the directory must hold: the units that calib/model derives from the output's own config.json
  // (offsets and dtypes of the source unused). Null: unknown architecture, structure rules only, with a warning.
  const Plan* expected = nullptr;
  std::function<void(uint64_t bytes_done, uint64_t bytes_total)> on_progress;
};

struct VerifyReport {
  std::vector<VerifyFinding> findings;
  uint64_t tensors = 0, quantized_linears = 0, bytes = 0;
  bool compared_with_source = false;
  bool ok() const;        // no errors; warnings are fine
};

// kNotFound / I/O errors only; everything wrong with the directory is a finding.
Result<VerifyReport> VerifyOutput(FileSystem& fs, const std::string& dir, const VerifyOptions& options);

}  // namespace holdfast
