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

// What the nodes have been given so far, and what a further range would mean.
class Loads {
 public:
  Loads(const std::vector<NodeView>& nodes, const SeatMemory& memory) : memory_(memory) {
    for (const NodeView& n : nodes) {
      if (!n.draining) nodes_.emplace(n.name, n);
    }
  }
  void Add(const std::string& node, const LayerRange& r) {
    if (const auto n = nodes_.find(node); n != nodes_.end()) used_[node] += Needs(n->second, r);
    layers_[node] += r.second - r.first;
  }
  bool Fits(const std::string& node, const StageWish& w) const {
    const auto n = Open(node, w);
    return n != nodes_.end() && memory_.Fits(n->second, w.layers, RoomOf(n->second));
  }
  // The best seat for a wish, "" when it fits none: of them all, or of those of this node (or this seat alone).
  std::string Choose(const StageWish& w) const {
    return Best(w, [&](const std::string& seat) { return Fits(seat, w); });
  }
  std::string ChooseAt(const std::string& node, const StageWish& w) const {
    return Best(w, [&](const std::string& seat) { return IsAt(seat, node) && Fits(seat, w); });
  }
  std::string ChooseStreamedAt(const std::string& node, const StageWish& w) const {
    return Best(w, [&](const std::string& seat) {
      const auto n = Open(seat, w);
      return IsAt(seat, node) && n != nodes_.end() && memory_.FitsStreamed(n->second, w.layers, RoomOf(n->second));
    });
  }
  std::string WhyNone(const StageWish& w) const;
  // The most that it takes on any of them, all resident.
  uint64_t MostOf(const StageWish& w) const {
    uint64_t most = 0;
    for (const auto& [name, node] : nodes_) most = std::max(most, Needs(node, w.layers));
    return most;
  }

 private:
  using Nodes = std::map<std::string, NodeView>;
  Nodes::const_iterator Open(const std::string& node, const StageWish& w) const { return Barred(node, w) ? nodes_.end() : nodes_.find(node); }
  uint64_t Needs(const NodeView& n, const LayerRange& r) const { return memory_.Of(n)(r.first, r.second); }
  static bool IsAt(const std::string& seat, const std::string& node) { return seat == node || NodeOfSeat(seat) == node; }
  static bool Barred(const std::string& node, const StageWish& w) { return std::find(w.barred.begin(), w.barred.end(), node) != w.barred.end(); }
  template <class F>
  std::string Best(const StageWish& w, F may) const;
  uint64_t Get(const std::map<std::string, uint64_t>& of, const std::string& node) const {
    const auto it = of.find(node);
    return it == of.end() ? 0 : it->second;
  }

  const SeatMemory& memory_;
  Nodes nodes_;
  std::map<std::string, uint64_t> used_, layers_;
};

// Where one device of a node failed, the others are tried after other nodes: the node itself may be what is wrong.
template <class F>
std::string Loads::Best(const StageWish& w, F may) const {
  const auto rank = [&](const NodeView& n) {
    const bool doubtful = std::any_of(w.barred.begin(), w.barred.end(), [&](const std::string& b) { return NodeOfSeat(b) == NodeOfSeat(n.name); });
    const bool no_room = Get(used_, n.name) + Needs(n, w.layers) > RoomOf(n);
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
  if (!open.empty()) return ShortfallText(w.layers, open, memory_);
  return nodes_.empty() ? "no node is there to take it" : "every node that is there refused it or gave up on it";
}

// Neighbouring ranges of one node would be worked on one after the other: streamed they share a process, and the next layers load meanwhile.
std::vector<PlacedRange> Joined(const std::vector<PlacedRange>& ranges, const SeatMemory& memory, const std::vector<NodeView>& nodes) {
  std::vector<PlacedRange> joined;
  for (const PlacedRange& r : ranges) {
    PlacedRange* before = joined.empty() || joined.back().node != r.node ? nullptr : &joined.back();
    const auto node = std::find_if(nodes.begin(), nodes.end(), [&](const NodeView& n) { return n.name == r.node; });
    const bool one = before != nullptr && node != nodes.end() && memory.Of(*node).streams() &&
                     memory.FitsStreamed(*node, {before->layers.first, r.layers.second}, RoomOf(*node));
    if (one) before->layers.second = r.layers.second;
    else joined.push_back(r);
  }
  return joined;
}

}  // namespace

Result<std::vector<PlacedRange>> CutAndPlace(uint32_t layers, const std::vector<NodeView>& nodes, const SeatMemory& memory) {
  const Cutter cutter({0, layers}, nodes, memory);
  if (layers == 0 || cutter.nodes().empty()) return Exhausted(layers == 0 ? "a model of no layers cannot be cut" : "no node is there to take a stage");
  for (uint32_t layer = 0; layer < layers; ++layer) {
    const LayerRange alone{layer, layer + 1};
    const auto fits = [&](const NodeView& n) { return memory.Fits(n, alone, RoomOf(n)); };
    if (std::none_of(cutter.nodes().begin(), cutter.nodes().end(), fits)) {
      return Exhausted("layer " + std::to_string(layer) + " alone, one sample on one thread, " + ShortfallText(alone, cutter.nodes(), memory) +
                       ": give a node more memory (holdfastd --memory), add a node, or submit with a shorter --seq-len");
    }
  }
  // Every layer fits some node, so each round takes one layer at least.
  auto best = cutter.Best(cutter.RoundsNeeded(), cutter.nodes().size());
  HOLDFAST_CHECK(best.has_value());
  return Joined(*best, memory, nodes);
}

std::vector<StagePlace> PlaceStages(const std::vector<StageWish>& wishes, const std::vector<NodeView>& nodes, const SeatMemory& memory) {
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
  std::vector<uint64_t> needs;
  for (const StageWish& w : wishes) needs.push_back(loads.MostOf(w));
  std::stable_sort(rest.begin(), rest.end(), [&](size_t a, size_t b) { return needs[a] > needs[b]; });
  for (const size_t i : rest) {
    const std::string node = loads.Choose(wishes[i]);
    if (node.empty()) places[i].note = loads.WhyNone(wishes[i]);
    else give(i, node);
  }
  return places;
}

std::optional<std::vector<PlacedRange>> SplitRange(LayerRange range, const std::vector<NodeView>& nodes, const SeatMemory& memory) {
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
