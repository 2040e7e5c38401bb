// SPDX-License-Identifier: Apache-2.0
//
// The search behind CutAndPlace and SplitRange: how far nodes get, one contiguous range each, within a time and within their memory.
//
// Reaching further with a set of nodes is never worse (memory and time are monotone in the range), so the best way to use a set is known
// once the best way to use each set with one node less is: that covers every order of up to kExactNodesMax nodes without trying n! of
// them. More nodes are taken in one order only, by memory.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "daemon/core/placement.h"

namespace holdfast {

class Cutter {
 public:
  static constexpr size_t kExactNodesMax = 8;

  // Nodes that drain are left out.
  Cutter(LayerRange range, std::vector<NodeView> nodes, const SeatMemory& memory);

  // Rounds that are needed when every node takes a range as large as its memory in each; 0: a layer fits nowhere.
  uint32_t RoundsNeeded() const;
  // The cut in `rounds` rounds by at most `nodes_max` nodes whose slowest range is as fast as can be; of those with the fewest
  // nodes. nullopt: not possible.
  std::optional<std::vector<PlacedRange>> Best(uint32_t rounds, size_t nodes_max) const;

  // Ranges as long as any node can hold: no cut of fewer pieces exists. Empty: a layer does not fit.
  std::vector<LayerRange> FewestPieces() const;

  const std::vector<NodeView>& nodes() const { return nodes_; }  // by name, or by memory when there are many

 private:
  struct Time {                              // layers / speed
    uint64_t layers = 1, speed = 1;
  };
  using Set = uint32_t;                      // exact: a bit per node; else: how many of nodes_, from the first

  bool exact() const { return nodes_.size() <= kExactNodesMax; }
  Set All() const { return static_cast<Set>(exact() ? (1u << nodes_.size()) - 1 : nodes_.size()); }
  std::vector<Set> SetsBySize(size_t nodes_max) const;
  uint32_t ReachOfOne(size_t node, uint32_t first, const std::optional<Time>& time) const;
  uint32_t Reach(uint32_t first, Set set, const std::optional<Time>& time, std::vector<PlacedRange>* ranges) const;
  bool Covers(uint32_t rounds, Set set, const std::optional<Time>& time) const;
  std::vector<Time> Times() const;

  LayerRange range_;
  std::vector<NodeView> nodes_;
  std::vector<std::vector<uint32_t>> by_memory_;  // [node][first - range_.first]: the furthest last that fits
};

}  // namespace holdfast
