// SPDX-License-Identifier: Apache-2.0
//
// How costs grow with nodes and cells, with file-system and network costs as in the design (a round trip of 0.3 to 1.2 ms, 1.3 s of compute a
// cell): the same cluster without faults, and twice more with one death in the middle.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace holdfast::sim {

struct ScaleRow {
  uint32_t nodes = 1, stages = 1, samples = 1;
  double commits_a_cell = 0, rpcs_a_cell = 0, beats_a_second = 0, beats_at_coordinator_a_second = 0;   // beats as heard
  double fold_rpcs = 0, fold_seconds = 0, fold_real_seconds = 0;   // of one process that starts when all is done
  double hours = 0;                                               // of virtual time
  std::optional<double> lost_seconds, lost_with_coordinator_seconds;   // by one death: of the node of the last stage, of the one that coordinates
  uint64_t cells() const { return uint64_t{stages} * samples; }
};

enum class Deaths : uint8_t { kNotMeasured, kMeasured };
ScaleRow MeasureScale(uint32_t nodes, uint32_t samples, Deaths deaths);
std::string ScaleHeader();
std::string ScaleText(const ScaleRow& row);      // one line of a Markdown table
// RPCs a cell, beats and the start of a process against nodes, on logarithmic axes.
std::string ScaleSvg(const std::vector<ScaleRow>& rows);

}  // namespace holdfast::sim
