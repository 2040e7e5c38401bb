// SPDX-License-Identifier: Apache-2.0
//
// Who works on which layers. Pure and deterministic: the same nodes and layers give the same answer on every daemon. What is called a node here is a
// seat (cluster.h): a node, or one device of a node that has several. Each is judged by what the layers take there, see SeatMemory.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "daemon/core/cluster.h"
#include "ledger/base/result.h"

namespace holdfast {

struct PlacedRange {
  LayerRange layers;
  std::string node;
};

// Cuts [0, layers) into one contiguous range per node (nodes may be left out), so that the slowest node is as fast as can be: the time of a
// node is its layers / its speed, its range must fit its memory (less memory_elsewhere). All orders of nodes are tried for up to six
// nodes, beyond that those by memory. Where the model does not fit all nodes at once, nodes get further ranges, which they work on one after
// the other (the lowest first), as few as possible; neighbouring ones of one node are one, which it streams. kResourceExhausted, saying for which layer how many bytes
// the node lacks that comes closest, when one fits nowhere.
Result<std::vector<PlacedRange>> CutAndPlace(uint32_t layers, const std::vector<NodeView>& nodes, const SeatMemory& memory);

// The same for ranges that are given: each gets a seat. A stage prefers, in this order: the node that is asked for (`asked`, "" = any; there it may be
// streamed), its present owner (weights are warm), a seat with room beside what it already has, the least loaded by layers / speed. Every
// seat that fits alone is acceptable: stages on one seat run one after the other if they must. Where a seat of it is barred, a node comes last. Entries
// that fit nowhere come back with node "" and a note saying by how much.
struct StageWish {
  LayerRange layers;
  std::string asked, owner;            // a seat, or a node: then the best of its seats
  bool pinned = false;                 // already placed on `owner` and healthy: stays, counts as load
  std::vector<std::string> barred;     // seats that refused or gave up on it
};
struct StagePlace {
  std::string node, note;
};
std::vector<StagePlace> PlaceStages(const std::vector<StageWish>& wishes, const std::vector<NodeView>& nodes, const SeatMemory& memory);

// Cuts one range that fits no single node into as few as fit some node each, with their nodes; neighbouring ones of one node are one, which it
// streams. nullopt when one layer fits none.
std::optional<std::vector<PlacedRange>> SplitRange(LayerRange range, const std::vector<NodeView>& nodes, const SeatMemory& memory);

// Which of a seat's stages run now: in order of layers, as many as fit `budget` together. The lowest unfinished stage always can run in the
// end, so that nothing waits for what waits for it. `running`: would keep running if they are chosen.
struct LocalStage {
  StageId stage;
  uint32_t first_layer = 0;
  uint64_t minimum_bytes = 0;
};
std::vector<StageId> ChooseRunning(std::vector<LocalStage> stages, uint64_t budget);

}  // namespace holdfast
