// SPDX-License-Identifier: Apache-2.0
#include "jobctl/node_watch.h"

#include <algorithm>

#include "daemon/node/process.h"
#include "daemon/transport/control_link.h"
#include "daemon/transport/keys.h"

namespace holdfast {
namespace {

constexpr uint64_t kPollMs = 250;
constexpr uint64_t kNsPerMs = 1'000'000;

bool Undecided(const NodeStatus& n) {
  if (n.life != NodeLife::kSilent) return false;
  const Liveness life = ProbeIncarnation(n.known.incarnation);
  return life == Liveness::kElsewhere || life == Liveness::kRebooted;
}

}  // namespace

const char* NodeLifeName(NodeLife life) {
  switch (life) {
    case NodeLife::kAlive: return "alive";
    case NodeLife::kSilent: return "silent";
    case NodeLife::kReleased: return "released";
  }
  return "?";
}

const NodeStatus* NodesSeen::Find(const std::string& name) const {
  const auto it = std::find_if(nodes.begin(), nodes.end(), [&](const NodeStatus& n) { return n.known.name == name; });
  return it == nodes.end() ? nullptr : &*it;
}

uint32_t NodesSeen::alive() const {
  return static_cast<uint32_t>(std::count_if(nodes.begin(), nodes.end(), [](const NodeStatus& n) { return n.life == NodeLife::kAlive; }));
}

void NodeWatch::ReadBeats(std::vector<NodeStatus>* nodes) {
  const uint64_t now = session_.clock().MonotonicNs();
  for (NodeStatus& n : *nodes) {
    const Nonce& who = n.known.incarnation.nonce;
    const auto bytes = session_.fs().ReadFile(session_.layout().Beat(who), kBeatBytesMax);
    if (!bytes.ok()) continue;
    auto beat = Beat::Decode(AsText(*bytes));
    if (!beat.ok() || beat->incarnation != who) continue;
    const auto [it, first] = moved_.try_emplace(who, Moved{beat->count, 0});
    if (!first && beat->count > it->second.count) it->second = {beat->count, now};
    if (!n.beat || n.beat->count < beat->count) n.beat = std::move(*beat);
  }
}

// The first that answers speaks for all that it hears.
bool NodeWatch::Ask(std::vector<NodeStatus>* nodes, NodesSeen* seen) {
  const auto keys = ReadKeys(session_.layout().KeysDir(), "jobctl");
  std::vector<const NodeStatus*> candidates;
  for (const NodeStatus& n : *nodes) {
    if (n.life == NodeLife::kReleased || n.known.incarnation.endpoint.empty()) continue;
    if (ProbeIncarnation(n.known.incarnation) != Liveness::kDead) candidates.push_back(&n);
  }
  std::stable_partition(candidates.begin(), candidates.end(), [](const NodeStatus* n) { return n->life == NodeLife::kAlive; });
  int asked = 0;
  for (const NodeStatus* n : candidates) {
    const Incarnation& i = n->known.incarnation;
    CurveKeys self;
    if (!i.public_key.empty()) {
      if (!keys.ok() || !*keys) {
        seen->warnings.push_back("the daemons cannot be asked: " + (keys.ok() ? "there are no keys" : keys.error().message) + "; make ours with `" +
                                 AtRoot(session_.layout().root()) + " keygen`");
        return false;
      }
      self = **keys;
    }
    if (asked++ == kAsksMax) return false;
    const auto beats = AskBeats(session_.info().uuid, {n->known.name, i.endpoint, i.public_key}, self, kAskMs);
    if (!beats.ok()) continue;
    seen->answered_by = n->known.name;
    for (NodeStatus& node : *nodes) {
      for (const Beat& b : *beats) {
        if (b.incarnation != node.known.incarnation.nonce) continue;
        node.beat = b;
        if (node.life != NodeLife::kReleased && ProbeIncarnation(node.known.incarnation) != Liveness::kDead) node.life = NodeLife::kAlive;
      }
    }
    return true;
  }
  return false;
}

// Nodes of other hosts whose beat files move.
void NodeWatch::JudgeByBeats(std::vector<NodeStatus>* nodes) {
  const uint64_t deadline = session_.clock().MonotonicNs() + (looked_ ? 0 : kBeatWaitMs * kNsPerMs);
  const auto judge = [&] {
    const uint64_t now = session_.clock().MonotonicNs();
    bool open = false;
    for (NodeStatus& n : *nodes) {
      if (!n.beat || !Undecided(n)) continue;
      const auto it = moved_.find(n.known.incarnation.nonce);
      const bool moved = it != moved_.end() && it->second.at_ns != 0 && now - it->second.at_ns < kBeatSilentMs * kNsPerMs;
      if (moved) n.life = NodeLife::kAlive;
      else open = true;
    }
    return open;
  };
  while (judge() && session_.clock().MonotonicNs() < deadline) {
    session_.clock().SleepMs(kPollMs);
    ReadBeats(nodes);
  }
}

NodesSeen NodeWatch::Look() {
  NodesSeen seen;
  seen.renames = session_.info().commit == RootInfo::Commit::kRename;
  for (const auto& [name, known] : session_.roster().nodes()) {
    NodeStatus n{.known = known, .life = NodeLife::kSilent, .drained = session_.queue().drained().contains(name), .beat = {}};
    if (known.released) n.life = NodeLife::kReleased;
    else if (ProbeIncarnation(known.incarnation) == Liveness::kAlive) n.life = NodeLife::kAlive;
    seen.nodes.push_back(std::move(n));
  }
  ReadBeats(&seen.nodes);
  if (!Ask(&seen.nodes, &seen)) JudgeByBeats(&seen.nodes);
  looked_ = true;
  return seen;
}

}  // namespace holdfast
