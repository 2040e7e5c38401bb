// SPDX-License-Identifier: Apache-2.0
//
// The part of the coordinator that gives work to a seat (a node, or one of its devices) that has nothing to do: one that came back, a new one, or one
// whose stages are sealed. Taken from are seats with more than one stage: first what queues there, then what shares the seat.
#include <algorithm>
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

// Layers times samples left, by the node's speed.
double Coordinator::LoadOf(const NodeView& node, const std::vector<Item*>& items) const {
  double sum = 0;
  for (const Item* i : items) sum += static_cast<double>(WorkLeft(*i));
  return sum / static_cast<double>(std::max<uint64_t>(node.speed, 1));
}

// Nodes without any stage that were there for the tenure, the fastest first.
std::vector<const NodeView*> Coordinator::Idle(const Lying& at, const std::vector<NodeView>& usable) const {
  std::vector<const NodeView*> idle;
  for (const NodeView& n : usable) {
    const bool steady = now_ - heard_.Find(NodeOfSeat(n.name))->present >= policy_.tenure_ns || Is(CoordinatorPolicy::Mutant::kNoTenure);
    if (!at.contains(n.name) && !n.paused && steady) idle.push_back(&n);
  }
  std::stable_sort(idle.begin(), idle.end(), [](const NodeView* a, const NodeView* b) { return a->speed > b->speed; });
  return idle;
}

// Whether its place may change for the sake of balance: it is settled there, and --on does not ask for that node.
bool Coordinator::Movable(const Item& item, size_t index, size_t items) const {
  if (item.sealed || item.place.node.empty() || (job_->on.size() == items && job_->on[index] == NodeOfSeat(item.place.node))) return false;
  if (Is(CoordinatorPolicy::Mutant::kNoTenure)) return true;
  const auto seat = item.stage ? seats_.find(*item.stage) : seats_.end();
  return item.pinned && seat != seats_.end() && now_ - seat->second.since >= policy_.tenure_ns;
}

// Whether a stage runs now on the node that it shares with others, rather than queue.
bool Coordinator::RunsBeside(const Item& item, const NodeView& node, const std::vector<Item*>& others) const {
  std::vector<LocalStage> local;
  const StageMemory memory = job_->memory.Of(node);
  for (const Item* i : others) local.push_back({*i->stage, i->layers.first, memory.Within(node.memory_bytes, i->layers.first, i->layers.second)});
  const std::vector<StageId> chosen = ChooseRunning(std::move(local), RoomOf(node));
  return std::find(chosen.begin(), chosen.end(), *item.stage) != chosen.end();
}

// What `to` should take: what queues before what runs, from the most loaded node, the last layers first. nullptr: nothing is worth it.
Coordinator::Item* Coordinator::BestMove(std::vector<Item>& items, const Lying& at, const NodeView& to, const std::vector<NodeView>& usable) const {
  Item* best = nullptr;
  std::tuple<bool, double, uint32_t> best_rank{};
  const bool takes_all = Is(CoordinatorPolicy::Mutant::kMovesTheHealthy);
  const auto already = at.find(to.name);
  const double own = already == at.end() ? 0 : LoadOf(to, already->second);
  for (size_t i = 0; i < items.size(); ++i) {
    Item& item = items[i];
    const auto from = std::find_if(usable.begin(), usable.end(), [&](const NodeView& n) { return n.name == item.place.node; });
    if (from == usable.end() || from->name == to.name || !item.stage || !Movable(item, i, items.size())) continue;
    const std::vector<Item*>& beside = at.at(from->name);
    if (beside.size() < 2 && !takes_all) continue;
    if (!job_->memory.Fits(to, item.layers, RoomOf(to)) || GaveUp(to.name, *item.stage)) continue;
    const double there = own + LoadOf(to, {&item}), here = LoadOf(*from, beside);
    if (there > kGain * here && !takes_all) continue;
    const std::tuple rank(!RunsBeside(item, *from, beside), here, item.layers.first);
    if (!best || rank > best_rank) best = &item, best_rank = rank;
  }
  return best;
}

void Coordinator::Rebalance(std::vector<Item>& items, const std::vector<NodeView>& usable) const {
  Lying at;
  for (Item& item : items) {
    if (!item.sealed && !item.place.node.empty()) at[item.place.node].push_back(&item);
  }
  for (const NodeView* to : Idle(at, usable)) {
    while (Item* item = BestMove(items, at, *to, usable)) {
      std::erase(at[item->place.node], item);
      at[to->name].push_back(item);
      item->place = {to->name, ""};
      item->reason = to->name + " has nothing to do";
      item->pinned = false;
    }
  }
}

}  // namespace holdfast
