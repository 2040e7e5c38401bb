// SPDX-License-Identifier: Apache-2.0
//
// The JSON files beside the weights, byte for byte as Model-Optimizer writes them (key order, indentation); of a compressed-tensors output only
// config.json says how it is quantized, with the keys and values of its library 0.18.
#pragma once

#include <string>
#include <vector>

#include "export/format/output_layout.h"
#include "ledger/base/json.h"

namespace holdfast {

inline constexpr char kCompressedMethod[] = "compressed-tensors";       // quant_method
inline constexpr char kCompressedFormat[] = "nvfp4-pack-quantized";

struct QuantDescription {
  bool input_activations = true;           // false: W4A16_NVFP4
  std::vector<std::string> exclude;        // exclude_modules / ignore, sorted
  OutputLayout layout = OutputLayout::kModelopt;
};

// modelopt excludes by patterns, as the plan has them; compressed-tensors by name: every matrix of a layer that is not quantized, and lm_head.
QuantDescription DescribeQuant(const struct Plan& plan, OutputLayout layout = OutputLayout::kModelopt);

// config.json of the output: the source's text with quantization_config put (or replaced) last, indent 4, other keys and number
// spellings as they were.
Result<std::string> MakeConfigJson(const std::string& source_text, const QuantDescription& q);
std::string MakeHfQuantConfigJson(const QuantDescription& q);   // modelopt alone has one
// {"metadata": {"total_parameters", "total_size"}, "weight_map"}: indent 2, names sorted, trailing newline.
std::string MakeIndexJson(uint64_t total_parameters, uint64_t total_size, const std::vector<std::pair<std::string, std::string>>& weight_map);

// What a loader would understand of an output's config.json / hf_quant_config.json.
struct ParsedQuantConfig {
  OutputLayout layout = OutputLayout::kModelopt;   // compressed-tensors where quant_method says so
  std::string quant_method, quant_algo;    // "modelopt", "NVFP4" / "W4A16_NVFP4"; compressed-tensors has no algorithm: the one that it amounts to
  uint64_t group_size = 0;
  std::vector<std::string> exclude;
};
Result<ParsedQuantConfig> ParseConfigQuant(const Json& config, const std::string& what);         // config.json
Result<ParsedQuantConfig> ParseHfQuantConfig(const Json& hf_quant, const std::string& what);     // hf_quant_config.json
// vLLM's rules: exact names (fused shards together), substring, fnmatch with a trailing '*'.
bool IsExcluded(const std::vector<std::string>& exclude, const std::string& module);
// The rules of compressed-tensors: exact names, and "re:" with an expression that matches from the first letter on.
bool IsIgnored(const std::vector<std::string>& ignore, const std::string& module);
inline bool IsLeftOut(OutputLayout layout, const std::vector<std::string>& names, const std::string& module) {
  return layout == OutputLayout::kModelopt ? IsExcluded(names, module) : IsIgnored(names, module);
}

}  // namespace holdfast
