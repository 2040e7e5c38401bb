// SPDX-License-Identifier: Apache-2.0
#include "daemon/core/placement.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <tuple>

#include "daemon/core/cutter.h"
#include "daemon/core/words.h"

namespace holdfast {

namespace {

const NodeView* Largest(const std::vector<NodeView>& nodes) {
  const auto less = [](const NodeView& a, const NodeView& b) { return std::pair(RoomOf(a), b.name) < std::pair(RoomOf(b), a.name); };
  const auto it = std::max_element(nodes.begin(), nodes.end(), less);
  return it == nodes.end() ? nullptr : &*it;
}

// What the nodes have been given so far, and what a further range would mean.
class Loads {
 public:
  Loads(const std::vector<NodeView>& nodes, const StageMemory& memory) : memory_(memory) {
    for (const NodeView& n : nodes) {
      if (!n.draining) nodes_.emplace(n.name, n);
    }
  }
  void Add(const std::string& node, const LayerRange& r) {
    used_[node] += memory_(r.first, r.second);
    layers_[node] += r.second - r.first;
  }
  bool Fits(const std::string& node, const StageWish& w) const { return FitsIn(memory_(w.layers.first, w.layers.second), node, w); }
  // The best seat for a wish, "" when it fits none: of them all, or of those of this node (or this seat alone).
  std::string Choose(const StageWish& w) const {
    return Best(w, [&](const std::string& seat) { return Fits(seat, w); });
  }
  std::string ChooseAt(const std::string& node, const StageWish& w) const {
    return Best(w, [&](const std::string& seat) { return IsAt(seat, node) && Fits(seat, w); });
  }
  std::string ChooseStreamedAt(const std::string& node, const StageWish& w) const {
    const uint64_t least = memory_.Least(w.layers.first, w.layers.second);
    return Best(w, [&](const std::string& seat) { return IsAt(seat, node) && FitsIn(least, seat, w); });
  }
  std::string WhyNone(const StageWish& w) const;

 private:
  bool FitsIn(uint64_t needs, const std::string& node, const StageWish& w) const {
    const auto n = nodes_.find(node);
    return n != nodes_.end() && !Barred(node, w) && needs <= RoomOf(n->second);
  }
  static bool IsAt(const std::string& seat, const std::string& node) { return seat == node || NodeOfSeat(seat) == node; }
  static bool Barred(const std::string& node, const StageWish& w) { return std::find(w.barred.begin(), w.barred.end(), node) != w.barred.end(); }
  template <class F>
  std::string Best(const StageWish& w, F may) const;
  uint64_t Get(const std::map<std::string, uint64_t>& of, const std::string& node) const {
    const auto it = of.find(node);
    return it == of.end() ? 0 : it->second;
  }

  const StageMemory& memory_;
  std::map<std::string, NodeView> nodes_;
  std::map<std::string, uint64_t> used_, layers_;
};

// Where one device of a node failed, the others are tried after other nodes: the node itself may be what is wrong.
template <class F>
std::string Loads::Best(const StageWish& w, F may) const {
  const uint64_t needs = memory_(w.layers.first, w.layers.second);
  const auto rank = [&](const NodeView& n) {
    const bool doubtful = std::any_of(w.barred.begin(), w.barred.end(), [&](const std::string& b) { return NodeOfSeat(b) == NodeOfSeat(n.name); });
    const bool no_room = Get(used_, n.name) + needs > RoomOf(n);
    const uint64_t layers = Get(layers_, n.name) + w.layers.second - w.layers.first;
    return std::tuple(doubtful, n.paused, no_room, static_cast<double>(layers) / static_cast<double>(std::max<uint64_t>(n.speed, 1)), n.name);
  };
  const NodeView* best = nullptr;
  for (const auto& [name, node] : nodes_) {
    if (may(name) && (!best || rank(node) < rank(*best))) best = &node;
  }
  return best ? best->name : "";
}

std::string Loads::WhyNone(const StageWish& w) const {
  std::vector<NodeView> open;
  for (const auto& [name, node] : nodes_) {
    if (!Barred(name, w)) open.push_back(node);
  }
  if (const NodeView* largest = Largest(open)) return ShortfallText(memory_(w.layers.first, w.layers.second), *largest);
  return nodes_.empty() ? "no node is there to take it" : "every node that is there refused it or gave up on it";
}

// Neighbouring ranges of one node would be worked on one after the other: streamed they share a process, and the next layers load meanwhile.
std::vector<PlacedRange> Joined(const std::vector<PlacedRange>& ranges, const StageMemory& memory, const std::vector<NodeView>& nodes) {
  if (!memory.streams()) return ranges;
  std::vector<PlacedRange> joined;
  for (const PlacedRange& r : ranges) {
    PlacedRange* before = joined.empty() || joined.back().node != r.node ? nullptr : &joined.back();
    const auto node = std::find_if(nodes.begin(), nodes.end(), [&](const NodeView& n) { return n.name == r.node; });
    if (before != nullptr && node != nodes.end() && memory.Least(before->layers.first, r.layers.second) <= RoomOf(*node)) before->layers.second = r.layers.second;
    else joined.push_back(r);
  }
  return joined;
}

}  // namespace

Result<std::vector<PlacedRange>> CutAndPlace(uint32_t layers, const std::vector<NodeView>& nodes, const StageMemory& memory) {
  const Cutter cutter({0, layers}, nodes, memory);
  if (layers == 0 || cutter.nodes().empty()) return Exhausted(layers == 0 ? "a model of no layers cannot be cut" : "no node is there to take a stage");
  const NodeView* largest = Largest(cutter.nodes());
  for (uint32_t layer = 0; layer < layers; ++layer) {
    const uint64_t needs = memory(layer, layer + 1);
    if (needs > RoomOf(*largest)) {
      return Exhausted("layer " + std::to_string(layer) + " alone, one sample on one thread, " + ShortfallText(needs, *largest) +
                       ": give a node more memory (holdfastd --memory), add a node, or submit with a shorter --seq-len");
    }
  }
  // Every layer fits the largest node, so each round takes one layer at least.
  auto best = cutter.Best(cutter.RoundsNeeded(), cutter.nodes().size());
  HOLDFAST_CHECK(best.has_value());
  return Joined(*best, memory, nodes);
}

std::vector<StagePlace> PlaceStages(const std::vector<StageWish>& wishes, const std::vector<NodeView>& nodes, const StageMemory& memory) {
  Loads loads(nodes, memory);
  std::vector<StagePlace> places(wishes.size());
  const auto give = [&](size_t i, const std::string& node) {
    places[i].node = node;
    loads.Add(node, wishes[i].layers);
  };
  const auto pass = [&](const auto& choose) {
    for (size_t i = 0; i < wishes.size(); ++i) {
      if (!places[i].node.empty()) continue;
      const std::string node = choose(wishes[i]);
      if (!node.empty()) give(i, node);
    }
  };
  pass([](const StageWish& w) { return w.pinned ? w.owner : ""; });
  pass([&](const StageWish& w) { return w.asked.empty() ? "" : loads.ChooseStreamedAt(w.asked, w); });
  pass([&](const StageWish& w) { return w.owner.empty() ? "" : loads.ChooseAt(w.owner, w); });
  // The rest: the largest first, while there is room beside others.
  std::vector<size_t> rest;
  for (size_t i = 0; i < wishes.size(); ++i) {
    if (places[i].node.empty()) rest.push_back(i);
  }
  const auto needs = [&](size_t i) { return memory(wishes[i].layers.first, wishes[i].layers.second); };
  std::stable_sort(rest.begin(), rest.end(), [&](size_t a, size_t b) { return needs(a) > needs(b); });
  for (const size_t i : rest) {
    const std::string node = loads.Choose(wishes[i]);
    if (node.empty()) places[i].note = loads.WhyNone(wishes[i]);
    else give(i, node);
  }
  return places;
}

std::optional<std::vector<PlacedRange>> SplitRange(LayerRange range, const std::vector<NodeView>& nodes, const StageMemory& memory) {
  const Cutter cutter(range, nodes, memory);
  const std::vector<LayerRange> pieces = cutter.FewestPieces();
  if (pieces.empty()) return std::nullopt;
  // As many nodes as pieces, one each, is both the fewest pieces and work for the most nodes. Best may need fewer nodes, never fewer pieces.
  if (auto best = cutter.Best(1, pieces.size())) return best;
  std::vector<StageWish> wishes;
  for (const LayerRange& p : pieces) wishes.push_back({.layers = p, .asked = "", .owner = "", .pinned = false, .barred = {}});
  const std::vector<StagePlace> places = PlaceStages(wishes, cutter.nodes(), memory);
  std::vector<PlacedRange> placed;
  for (size_t i = 0; i < pieces.size(); ++i) placed.push_back({pieces[i], places[i].node});
  return Joined(placed, memory, nodes);
}

std::vector<StageId> ChooseRunning(std::vector<LocalStage> stages, uint64_t budget) {
  std::sort(stages.begin(), stages.end(), [](const LocalStage& a, const LocalStage& b) {
    return std::tie(a.first_layer, a.stage) < std::tie(b.first_layer, b.stage);
  });
  std::vector<StageId> chosen;
  for (const LocalStage& s : stages) {
    if (s.minimum_bytes > budget) continue;
    budget -= s.minimum_bytes;
    chosen.push_back(s.stage);
  }
  return chosen;
}

}  // namespace holdfast
