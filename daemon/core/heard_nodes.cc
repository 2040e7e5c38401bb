// SPDX-License-Identifier: Apache-2.0
#include "daemon/core/heard_nodes.h"

#include <algorithm>
#include <tuple>
#include <utility>

namespace holdfast {

namespace {

// Whether two beats differ in nothing that a decision could depend on.
bool SameWords(const NodeView& a, const NodeView& b) {
  const auto words = [](const NodeView& v) {
    return std::tie(v.draining, v.paused, v.storage_stalled, v.memory_bytes, v.memory_elsewhere, v.host_bytes, v.speed, v.version, v.numerics);
  };
  const auto same = [](const TaskView& s, const TaskView& t) {
    return std::tie(s.stage, s.merge, s.state, s.error_code, s.error, s.device) == std::tie(t.stage, t.merge, t.state, t.error_code, t.error, t.device);
  };
  const auto same_device = [](const DeviceView& s, const DeviceView& t) {
    return std::tie(s.name, s.numerics, s.memory_bytes, s.memory_elsewhere, s.host_bytes, s.speed) ==
           std::tie(t.name, t.numerics, t.memory_bytes, t.memory_elsewhere, t.host_bytes, t.speed);
  };
  return words(a) == words(b) && std::equal(a.tasks.begin(), a.tasks.end(), b.tasks.begin(), b.tasks.end(), same) &&
         std::equal(a.devices.begin(), a.devices.end(), b.devices.begin(), b.devices.end(), same_device);
}

}  // namespace

void HeardNodes::Begin(TimeNs now) {
  if (!begun_) {
    begun_ = true;
    born_ = doubt_ = now;
  }
  const bool heard_anyone = std::any_of(nodes_.begin(), nodes_.end(), [](const auto& n) { return n.second.heard; });
  if (heard_anyone && !AnyFresh(now)) doubt_ = now;
}

void HeardNodes::Name(const std::string& node, TimeNs now) {
  if (node.empty()) return;
  const auto [it, is_new] = nodes_.try_emplace(node);
  if (is_new) {
    it->second.view.name = node;
    it->second.alive = now;
  }
}

HeardNodes::Heard HeardNodes::OnBeat(const NodeView& view, TimeNs now) {
  Name(view.name, now);
  HeardNode& n = nodes_.at(view.name);
  // Only a count that rises is a sign of life: the first beat of an incarnation may be what a dead one left lying about.
  if (n.counts.size() >= kIncarnationsMax && !n.counts.contains(view.incarnation)) n.counts.clear();
  const auto [count, first] = n.counts.try_emplace(view.incarnation, view.count);
  if (first || view.count <= count->second) return Heard::kOld;
  count->second = view.count;
  const bool present = Fresh(n, now) && n.view.incarnation == view.incarnation;
  const bool same = present && SameWords(n.view, view);
  if (!present) n.present = now;
  if (!n.view.paused || !n.heard) n.paused = now;
  n.view = view;
  n.heard = true;
  if (view.storage_stalled) return Heard::kNews;  // it speaks, but cannot commit: as good as silent
  n.beat = n.alive = now;
  return std::exchange(n.lost, false) ? Heard::kBack : same ? Heard::kSame : Heard::kNews;
}

bool HeardNodes::OnProgress(const std::string& node, TimeNs now) {
  Name(node, now);
  HeardNode& n = nodes_.at(node);
  n.alive = now;
  return std::exchange(n.lost, false);
}

std::vector<std::string> HeardNodes::MarkLost(TimeNs now) {
  std::vector<std::string> lost;
  for (auto& [name, n] : nodes_) {
    if (n.lost || now - std::max(n.alive, doubt_) < suspect_ns_) continue;
    n.lost = true;
    lost.push_back(name);
  }
  return lost;
}

const HeardNode* HeardNodes::Find(const std::string& node) const {
  const auto it = nodes_.find(node);
  return it == nodes_.end() ? nullptr : &it->second;
}

HeardNode* HeardNodes::Find(const std::string& node) {
  const auto it = nodes_.find(node);
  return it == nodes_.end() ? nullptr : &it->second;
}

bool HeardNodes::AnyFresh(TimeNs now) const {
  return std::any_of(nodes_.begin(), nodes_.end(), [&](const auto& n) { return Fresh(n.second, now); });
}

const std::string* HeardNodes::GaveUp(const HeardNode& n, StageId stage, const std::string& device) const {
  const auto bar = n.gave_up.find({stage, device});
  return bar != n.gave_up.end() && bar->second.incarnation == n.view.incarnation ? &bar->second.error : nullptr;
}

}  // namespace holdfast
