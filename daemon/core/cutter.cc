// SPDX-License-Identifier: Apache-2.0
#include "daemon/core/cutter.h"

#include <algorithm>
#include <bit>
#include <numeric>

namespace holdfast {

namespace {

constexpr uint64_t kSpeedMax = uint64_t{1} << 32;  // speeds come from other machines: layers * speed must not overflow

uint64_t SpeedOf(const NodeView& n) { return std::clamp<uint64_t>(n.speed, 1, kSpeedMax); }

// The furthest last for which [first, last) fits the seat; `known` is a last that does.
uint32_t Furthest(uint32_t first, uint32_t known, uint32_t end, const NodeView& seat, const StageMemory& memory) {
  uint32_t low = known, high = end;
  while (low < high) {
    const uint32_t mid = low + (high - low + 1) / 2;
    if (memory(first, mid) <= RoomOf(seat) && memory.Host(first, mid) <= seat.host_bytes) low = mid;
    else high = mid - 1;
  }
  return low;
}

}  // namespace

Cutter::Cutter(LayerRange range, std::vector<NodeView> nodes, const SeatMemory& memory) : range_(range), nodes_(std::move(nodes)) {
  std::erase_if(nodes_, [](const NodeView& n) { return n.draining; });
  std::sort(nodes_.begin(), nodes_.end(), [](const NodeView& a, const NodeView& b) { return a.name < b.name; });
  if (!exact()) std::stable_sort(nodes_.begin(), nodes_.end(), [](const NodeView& a, const NodeView& b) { return RoomOf(a) > RoomOf(b); });
  for (const NodeView& n : nodes_) {
    const StageMemory needs = memory.Of(n);
    std::vector<uint32_t>& reach = by_memory_.emplace_back();
    uint32_t last = range_.first;
    for (uint32_t first = range_.first; first < range_.second; ++first) {
      last = Furthest(first, std::max(last, first), range_.second, n, needs);  // monotone: never less than one layer earlier
      reach.push_back(last);
    }
  }
}

std::vector<Cutter::Set> Cutter::SetsBySize(size_t nodes_max) const {
  std::vector<Set> sets;
  if (!exact()) {
    sets.resize(std::min(nodes_max, nodes_.size()));
    std::iota(sets.begin(), sets.end(), Set{1});
    return sets;
  }
  for (Set s = 1; s <= All(); ++s) {
    if (static_cast<size_t>(std::popcount(s)) <= nodes_max) sets.push_back(s);
  }
  std::stable_sort(sets.begin(), sets.end(), [](Set a, Set b) { return std::popcount(a) < std::popcount(b); });
  return sets;
}

uint32_t Cutter::ReachOfOne(size_t node, uint32_t first, const std::optional<Time>& time) const {
  if (first >= range_.second) return range_.second;
  const uint32_t fits = by_memory_[node][first - range_.first];
  if (!time) return fits;
  const uint64_t layers = time->layers * SpeedOf(nodes_[node]) / time->speed;
  return static_cast<uint32_t>(std::min<uint64_t>(fits, first + layers));
}

// How far one round gets from `first`, and with which ranges.
uint32_t Cutter::Reach(uint32_t first, Set set, const std::optional<Time>& time, std::vector<PlacedRange>* ranges) const {
  std::vector<std::pair<size_t, LayerRange>> steps;
  if (!exact()) {
    for (size_t i = 0; i < set; ++i) {
      const uint32_t last = ReachOfOne(i, first, time);
      steps.push_back({i, {first, last}});
      first = last;
    }
  } else {
    std::vector<uint32_t> far(set + 1, first);  // by subset; the entries of other sets stay unused
    std::vector<size_t> behind(set + 1, 0);     // the node that goes last in the best order of the subset
    for (Set s = (0u - set) & set; s != 0; s = (s - set) & set) {  // every subset, the smaller before the larger
      behind[s] = static_cast<size_t>(std::countr_zero(s));
      for (size_t i = 0; i < nodes_.size(); ++i) {
        if (!(s >> i & 1u)) continue;
        const uint32_t last = ReachOfOne(i, far[s & ~(1u << i)], time);
        if (last >= far[s]) far[s] = last, behind[s] = i;
      }
    }
    for (Set s = set; s != 0; s &= ~(1u << behind[s])) steps.insert(steps.begin(), {behind[s], {far[s & ~(1u << behind[s])], far[s]}});
    first = far[set];
  }
  for (const auto& [i, layers] : steps) {
    if (ranges && layers.first < layers.second) ranges->push_back({layers, nodes_[i].name});
  }
  return first;
}

bool Cutter::Covers(uint32_t rounds, Set set, const std::optional<Time>& time) const {
  uint32_t at = range_.first;
  for (uint32_t r = 0; r < rounds && at < range_.second; ++r) at = Reach(at, set, time, nullptr);
  return at >= range_.second;
}

uint32_t Cutter::RoundsNeeded() const {
  uint32_t rounds = 0;
  for (uint32_t at = range_.first; at < range_.second; ++rounds) {
    const uint32_t next = nodes_.empty() ? at : Reach(at, All(), std::nullopt, nullptr);
    if (next == at) return 0;
    at = next;
  }
  return rounds;
}

// Every time that a range of some node can take, ascending.
std::vector<Cutter::Time> Cutter::Times() const {
  std::vector<Time> times;
  for (const NodeView& n : nodes_) {
    for (uint32_t k = 1; k <= range_.second - range_.first; ++k) times.push_back({k, SpeedOf(n)});
  }
  std::sort(times.begin(), times.end(), [](const Time& a, const Time& b) { return a.layers * b.speed < b.layers * a.speed; });
  return times;
}

std::optional<std::vector<PlacedRange>> Cutter::Best(uint32_t rounds, size_t nodes_max) const {
  const std::vector<Set> sets = SetsBySize(nodes_max);
  const auto covering = [&](const std::optional<Time>& time) {
    return std::find_if(sets.begin(), sets.end(), [&](Set s) { return Covers(rounds, s, time); });
  };
  // With every node allowed the full set is as good as any: one look instead of one per set.
  const auto possible = [&](const std::optional<Time>& time) {
    return nodes_max >= nodes_.size() ? !sets.empty() && Covers(rounds, All(), time) : covering(time) != sets.end();
  };
  if (!possible(std::nullopt)) return std::nullopt;
  const std::vector<Time> times = Times();
  const auto best = std::partition_point(times.begin(), times.end(), [&](const Time& t) { return !possible(t); });
  HOLDFAST_CHECK(best != times.end());
  std::vector<PlacedRange> ranges;
  const Set set = *covering(*best);
  for (uint32_t at = range_.first; at < range_.second;) at = Reach(at, set, *best, &ranges);
  ranges.back().layers.second = range_.second;
  return ranges;
}

std::vector<LayerRange> Cutter::FewestPieces() const {
  std::vector<LayerRange> pieces;
  for (uint32_t at = range_.first; at < range_.second;) {
    uint32_t last = at;
    for (size_t i = 0; i < nodes_.size(); ++i) last = std::max(last, ReachOfOne(i, at, std::nullopt));
    if (last == at) return {};
    pieces.emplace_back(at, last);
    at = last;
  }
  return pieces;
}

}  // namespace holdfast
