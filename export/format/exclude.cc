// SPDX-License-Identifier: Apache-2.0
//
// Whether a loader takes a module for excluded. modelopt: vLLM asks under the name of the layer that it builds, in which q, k and v (gate and
// up, ...) are one; exact names are asked of each member. A pattern also hits as a mere substring, so "gate" hits gate_up_proj.
#include <algorithm>
#include <array>
#include <regex>
#include <string_view>

#include "export/format/hf_config.h"

namespace holdfast {
namespace {

struct Fusion {
  std::string_view member, layer;
};
constexpr Fusion kFusions[] = {{"q_proj", "qkv_proj"},
                               {"k_proj", "qkv_proj"},
                               {"v_proj", "qkv_proj"},
                               {"gate_proj", "gate_up_proj"},
                               {"up_proj", "gate_up_proj"},
                               {"q_a_proj", "fused_qkv_a_proj"},
                               {"kv_a_proj_with_mqa", "fused_qkv_a_proj"}};
constexpr std::string_view kAlwaysSkipped[] = {"vision_tower", "vision_model", "visual"};

// fnmatch with '*' and '?'.
bool Glob(std::string_view pattern, std::string_view name) {
  size_t p = 0, n = 0, star = std::string_view::npos, mark = 0;
  while (n < name.size()) {
    if (p < pattern.size() && (pattern[p] == '?' || pattern[p] == name[n]) && pattern[p] != '*') {
      ++p;
      ++n;
    } else if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      mark = n;
    } else if (star != std::string_view::npos) {
      p = star + 1;
      n = ++mark;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

// The layer that holds `module`: its experts' container, the fused projection, or itself.
std::string LayerOf(const std::string& module) {
  if (const size_t experts = module.find(".experts."); experts != std::string::npos)
    return module.substr(0, experts + 8);
  const size_t dot = module.rfind('.') + 1;  // 0 when there is none
  const std::string_view last = std::string_view(module).substr(dot);
  for (const Fusion& f : kFusions) {
    if (last == f.member) return module.substr(0, dot) + std::string(f.layer);
  }
  return module;
}

}  // namespace

bool IsExcluded(const std::vector<std::string>& exclude, const std::string& module) {
  const std::string layer = LayerOf(module);
  for (const std::string_view skipped : kAlwaysSkipped) {
    if (layer.find(skipped) != std::string::npos) return true;
  }
  constexpr std::string_view kInner = "language_model.";
  const size_t inner = layer.find(kInner);
  const std::string stripped =
      inner == std::string::npos ? layer : std::string(layer).erase(inner, kInner.size());
  for (const std::string& pattern : exclude) {
    if (pattern == module) return true;
    if (pattern.empty()) continue;
    if (layer.find(pattern) != std::string::npos || stripped.find(pattern) != std::string::npos)
      return true;
    if (Glob(pattern, layer)) return true;
  }
  return false;
}

bool IsIgnored(const std::vector<std::string>& ignore, const std::string& module) {
  constexpr std::string_view kExpression = "re:";
  const auto hits = [&](const std::string& entry) {
    if (!entry.starts_with(kExpression)) return entry == module;
    try {
      const std::regex expression(entry.substr(kExpression.size()));
      return std::regex_search(module, expression, std::regex_constants::match_continuous);
    } catch (const std::regex_error&) {
      return false;  // loaders stop at it; what it was to leave out is then quantized for nobody
    }
  };
  return std::any_of(ignore.begin(), ignore.end(), hits);
}

}  // namespace holdfast
