// SPDX-License-Identifier: Apache-2.0
//
// Which nodes live, and what they say of themselves. One live daemon is asked first, it hears all others; where none answers, the beat files
// in the root tell, judged by their count moving against our own clock, and on this host the process table.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "daemon/wire/beat.h"
#include "jobctl/root_session.h"

namespace holdfast {

enum class NodeLife : uint8_t { kAlive, kSilent, kReleased };   // released: it said goodbye
const char* NodeLifeName(NodeLife life);

struct NodeStatus {
  KnownNode known;
  NodeLife life = NodeLife::kSilent;
  bool drained = false;
  std::optional<Beat> beat;              // of this incarnation, the last that is known
};

struct NodesSeen {
  std::vector<NodeStatus> nodes;         // by name
  std::string answered_by;               // the daemon that answered; "" = beat files and process table alone
  std::vector<std::string> warnings;
  bool renames = false;                  // the root's server has no hard links: commits are renames (RootInfo::Commit::kRename)
  const NodeStatus* Find(const std::string& name) const;
  uint32_t alive() const;
};

class NodeWatch {
 public:
  explicit NodeWatch(RootSession& session) : session_(session) {}
  // Takes up to kAskMs for each of kAsksMax daemons, and up to kBeatWaitMs on the first call where beat files have to be watched.
  NodesSeen Look();

 private:
  struct Moved {
    uint64_t count = 0;
    uint64_t at_ns = 0;                  // our clock, when we saw it move; 0: not seen to move yet
  };
  bool Ask(std::vector<NodeStatus>* nodes, NodesSeen* seen);
  void ReadBeats(std::vector<NodeStatus>* nodes);
  void JudgeByBeats(std::vector<NodeStatus>* nodes);
  RootSession& session_;
  std::map<Nonce, Moved> moved_;
  bool looked_ = false;
};

inline constexpr uint64_t kAskMs = 700, kBeatWaitMs = 3000, kBeatSilentMs = 15000;
inline constexpr int kAsksMax = 3;

}  // namespace holdfast
