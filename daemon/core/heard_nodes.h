// SPDX-License-Identifier: Apache-2.0
//
// The nodes as a coordinator knows them: who is there, since when, who is lost, and who refused or gave up on what. Pure bookkeeping over
// beats; what follows from it is decided in coordinator.cc.
//
//   fresh   heard a moment ago (FreshFor): may get something new
//   silent  known, no sign of life for that long: keeps what it has, gets nothing
//   lost    no sign of life (beat, or progress of a stage that it owns) for `suspect`, counted from the doubt at the earliest: what it
//           has goes elsewhere, until it is heard again
// The doubt: a coordinator that was just born, or that heard nobody at all for a while (it was itself paused or cut off), knows nothing
// about anyone, and everyone gets `suspect` from then.
#pragma once

#include <algorithm>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "daemon/core/cluster.h"

namespace holdfast {

struct Bar {                     // holds as long as the node's incarnation is the one that it speaks of
  Nonce incarnation;
  std::string error;
};

struct HeardNode {
  NodeView view;                 // of the latest beat; only the name when never heard
  bool heard = false, lost = false;
  TimeNs beat = 0, alive = 0;    // the last beat that counted; the last sign of life of any kind
  TimeNs present = 0;            // since when this incarnation is fresh without a gap
  TimeNs paused = 0;             // since when it says so, if it does
  std::map<Nonce, uint64_t> counts;
  std::optional<Bar> refused;                  // the whole job
  std::map<std::pair<StageId, std::string>, Bar> gave_up;   // of a stage on a device ("": the only one); kMergeStage: the merge
};
inline constexpr StageId kMergeStage{0xffff};

class HeardNodes {
 public:
  explicit HeardNodes(uint64_t suspect_ns) : suspect_ns_(suspect_ns) {}

  // Before the event of a step is looked at. Starts the doubt anew when nobody is fresh.
  void Begin(TimeNs now);
  // Every name that the job speaks of is known, though perhaps never heard.
  void Name(const std::string& node, TimeNs now);
  enum class Heard : uint8_t { kOld, kSame, kNews, kBack };  // seen before; alive and nothing else new; something is; it was lost
  Heard OnBeat(const NodeView& view, TimeNs now);
  // true: it was lost and is back.
  bool OnProgress(const std::string& node, TimeNs now);
  // Names of those that are lost as of now and were not before.
  std::vector<std::string> MarkLost(TimeNs now);

  const HeardNode* Find(const std::string& node) const;
  HeardNode* Find(const std::string& node);
  const std::map<std::string, HeardNode>& nodes() const { return nodes_; }
  bool Fresh(const HeardNode& n, TimeNs now) const { return n.heard && now - n.beat <= FreshFor(); }
  bool AnyFresh(TimeNs now) const;
  bool Refused(const HeardNode& n) const { return n.refused && n.refused->incarnation == n.view.incarnation; }
  // Why it gave up on that; null: it did not, in this life.
  const std::string* GaveUp(const HeardNode& n, StageId stage, const std::string& device = "") const;
  // Every node that is alive has had its chance to say so.
  bool KnowsAll(TimeNs now) const { return now - doubt_ >= suspect_ns_; }
  TimeNs born() const { return born_; }
  void ForgetDoubt() { doubt_ = 0; }   // CoordinatorPolicy::Mutant only

 private:
  static constexpr size_t kIncarnationsMax = 64;  // remembered per node

  // An eighth of suspect, but several beats of a node that is only heard through the directory, if suspect is that long.
  uint64_t FreshFor() const { return std::max(suspect_ns_ / 8, std::min<uint64_t>(suspect_ns_ / 2, 10'000'000'000)); }

  uint64_t suspect_ns_;
  bool begun_ = false;
  TimeNs born_ = 0, doubt_ = 0;
  std::map<std::string, HeardNode> nodes_;
};

}  // namespace holdfast
