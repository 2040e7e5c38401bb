// SPDX-License-Identifier: Apache-2.0
//
// How the pure part of a daemon spells amounts and ranges in notes, reasons and errors. People read them; nothing parses them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "daemon/core/cluster.h"

namespace holdfast {

std::string SecondsText(uint64_t ns);              // "120 s", "0.5 s"
std::string LayersText(const LayerRange& layers);  // "layer 4", "layers 28-29" (the last one counts)
// "needs 1.20 GB on n1, which comes closest with 1.00 GB (200 MB short)": of the seat that lacks the least for these layers, all resident. `seats` is not empty.
std::string ShortfallText(const LayerRange& layers, const std::vector<NodeView>& seats, const SeatMemory& memory);
// Of what it has in all, streamed if need be: "n1 has 1.00 GB, it needs 1.20 GB (200000000 bytes more)".
std::string LackText(const LayerRange& layers, const std::vector<NodeView>& seats, const SeatMemory& memory);

}  // namespace holdfast
