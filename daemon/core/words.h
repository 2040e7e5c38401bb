// SPDX-License-Identifier: Apache-2.0
//
// How the pure part of a daemon spells amounts and ranges in notes, reasons and errors. People read them; nothing parses them.
#pragma once

#include <cstdint>
#include <string>

#include "daemon/core/cluster.h"

namespace holdfast {

std::string SecondsText(uint64_t ns);              // "120 s", "0.5 s"
std::string LayersText(const LayerRange& layers);  // "layer 4", "layers 28-29" (the last one counts)
// "needs 1.20 GB, the largest node n1 has 1.00 GB (200 MB short)"
std::string ShortfallText(uint64_t needs, const NodeView& largest);

}  // namespace holdfast
