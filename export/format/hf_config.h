// SPDX-License-Identifier: Apache-2.0
//
// The JSON files beside the weights, byte for byte as Model-Optimizer writes them (key order, indentation).
#pragma once

#include <string>
#include <vector>

#include "ledger/base/json.h"

namespace holdfast {

struct QuantDescription {
  bool input_activations = true;           // false: W4A16_NVFP4
  std::vector<std::string> exclude;        // exclude_modules / ignore, sorted
};

QuantDescription DescribeQuant(const struct Plan& plan);

// config.json of the output: the source's text with quantization_config put (or replaced) last, indent 4, other keys and number
// spellings as they were.
Result<std::string> MakeConfigJson(const std::string& source_text, const QuantDescription& q);
std::string MakeHfQuantConfigJson(const QuantDescription& q);
// {"metadata": {"total_parameters", "total_size"}, "weight_map"}: indent 2, names sorted, trailing newline.
std::string MakeIndexJson(uint64_t total_parameters, uint64_t total_size, const std::vector<std::pair<std::string, std::string>>& weight_map);

// What a loader would understand of an output's config.json / hf_quant_config.json.
struct ParsedQuantConfig {
  std::string quant_method, quant_algo;    // "modelopt", "NVFP4" / "W4A16_NVFP4"
  uint64_t group_size = 0;
  std::vector<std::string> exclude;
};
Result<ParsedQuantConfig> ParseConfigQuant(const Json& config, const std::string& what);         // config.json
Result<ParsedQuantConfig> ParseHfQuantConfig(const Json& hf_quant, const std::string& what);     // hf_quant_config.json
// vLLM's rules: exact names (fused shards together), substring, fnmatch with a trailing '*'.
bool IsExcluded(const std::vector<std::string>& exclude, const std::string& module);

}  // namespace holdfast
