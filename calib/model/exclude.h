// SPDX-License-Identifier: Apache-2.0
//
// The exclude list of a quantized checkpoint, summarized with wildcards exactly as Model-Optimizer does it: loaders read the list
// as patterns, and a checkpoint of ours must not differ from one of theirs.
#pragma once

#include <string>
#include <vector>

namespace holdfast {

// Names of modules in, patterns out (sorted by code point, no duplicates). For each unquantized name, at every '.' from the left:
// `prefix*`, then `prefix.*` (which stands for `prefix` too), at last the whole name; the first that touches no quantized name wins.
std::vector<std::string> SummarizeExcludes(const std::vector<std::string>& quantized, const std::vector<std::string>& unquantized);

}  // namespace holdfast
