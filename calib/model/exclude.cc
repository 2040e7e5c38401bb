// SPDX-License-Identifier: Apache-2.0
#include "calib/model/exclude.h"

#include <set>

namespace holdfast {
namespace {

// Quantized names in order, so that "is X a prefix of one of them" is one search.
using Names = std::set<std::string>;

bool IsPrefixOfOne(const Names& names, const std::string& prefix) {
  const auto it = names.lower_bound(prefix);
  return it != names.end() && it->compare(0, prefix.size(), prefix) == 0;
}

std::string Pattern(const Names& quantized, const std::string& name) {
  for (size_t dot = name.find('.'); dot != std::string::npos; dot = name.find('.', dot + 1)) {
    const std::string prefix = name.substr(0, dot);
    if (!IsPrefixOfOne(quantized, prefix)) return prefix + "*";
    if (!quantized.contains(prefix) && !IsPrefixOfOne(quantized, prefix + ".")) return prefix + ".*";
  }
  return name;
}

}  // namespace

std::vector<std::string> SummarizeExcludes(const std::vector<std::string>& quantized, const std::vector<std::string>& unquantized) {
  const Names names(quantized.begin(), quantized.end());
  std::set<std::string> patterns;
  for (const std::string& name : unquantized) patterns.insert(Pattern(names, name));
  return {patterns.begin(), patterns.end()};
}

}  // namespace holdfast
