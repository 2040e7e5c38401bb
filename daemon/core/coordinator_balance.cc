// SPDX-License-Identifier: Apache-2.0
//
// The part of the coordinator that gives work to a node that has nothing to do: one that came back, a new one, or one whose stages are
// sealed. Taken from are nodes with more than one stage: first what queues there, then what shares the node.
#include <algorithm>
#include <map>
#include <tuple>
#include <utility>

#include "daemon/core/coordinator.h"
#include "daemon/core/cutter.h"
#include "daemon/core/words.h"

namespace holdfast {

namespace {

// A move costs the loading of weights: what moves must be done earlier by a tenth than if it stayed.
constexpr double kGain = 0.9;

}  // namespace

void Coordinator::Rebalance(std::vector<Item>& items, const std::vector<NodeView>& usable) const {
  std::map<std::string, std::vector<Item*>> at;
  for (Item& item : items) {
    if (!item.sealed && !item.place.node.empty()) at[item.place.node].push_back(&item);
  }
  const auto find = [&](const std::string& name) -> const NodeView* {
    const auto it = std::find_if(usable.begin(), usable.end(), [&](const NodeView& n) { return n.name == name; });
    return it == usable.end() ? nullptr : &*it;
  };
  const auto needs = [&](const Item& i) { return job_->memory(i.layers.first, i.layers.second); };
  const auto load = [&](const NodeView& n) {
    double sum = 0;
    for (const Item* i : at[n.name]) sum += static_cast<double>(WorkLeft(*i));
    return sum / static_cast<double>(std::max<uint64_t>(n.speed, 1));
  };
  const auto runs = [&](const NodeView& n, const Item& item) {
    std::vector<LocalStage> local;
    for (const Item* i : at[n.name]) local.push_back({StageId(static_cast<uint16_t>(i - items.data())), i->layers.first, needs(*i)});
    const std::vector<StageId> chosen = ChooseRunning(std::move(local), RoomOf(n));
    return std::find(chosen.begin(), chosen.end(), StageId(static_cast<uint16_t>(&item - items.data()))) != chosen.end();
  };
  const auto settled = [&](const Item& i) {
    if (Is(CoordinatorPolicy::Mutant::kNoTenure)) return true;
    const auto seat = i.stage ? seats_.find(*i.stage) : seats_.end();
    return i.pinned && seat != seats_.end() && now_ - seat->second.since >= policy_.tenure_ns;
  };
  const auto asked = [&](const Item& i) {
    return job_->on.size() == items.size() && job_->on[static_cast<size_t>(&i - items.data())] == i.place.node;
  };
  const bool takes_all = Is(CoordinatorPolicy::Mutant::kMovesTheHealthy);

  std::vector<const NodeView*> idle;
  for (const NodeView& n : usable) {
    const bool steady = now_ - heard_.Find(n.name)->present >= policy_.tenure_ns || Is(CoordinatorPolicy::Mutant::kNoTenure);
    if (at[n.name].empty() && !n.paused && steady) idle.push_back(&n);
  }
  std::stable_sort(idle.begin(), idle.end(), [](const NodeView* a, const NodeView* b) { return a->speed > b->speed; });
  for (const NodeView* to : idle) {
    for (;;) {
      Item* best = nullptr;
      std::tuple<bool, double, uint32_t> best_rank{};
      for (Item& i : items) {
        const NodeView* from = i.sealed ? nullptr : find(i.place.node);
        if (!from || from == to || (at[from->name].size() < 2 && !takes_all) || !settled(i) || asked(i)) continue;
        if (needs(i) > RoomOf(*to) || (i.stage && heard_.GaveUp(*heard_.Find(to->name), *i.stage))) continue;
        const double there = load(*to) + static_cast<double>(WorkLeft(i)) / static_cast<double>(std::max<uint64_t>(to->speed, 1));
        if (there > kGain * load(*from) && !takes_all) continue;
        const std::tuple rank(!runs(*from, i), load(*from), i.layers.first);
        if (!best || rank > best_rank) best = &i, best_rank = rank;
      }
      if (!best) break;
      std::erase(at[best->place.node], best);
      best->reason = to->name + " has nothing to do";
      best->place = {to->name, ""};
      best->pinned = false;
      at[to->name].push_back(best);
    }
  }
}

}  // namespace holdfast
