// SPDX-License-Identifier: Apache-2.0
//
// Who becomes coordinator of a job that has none. Pure. A live owner of the job stream is left alone. Otherwise the first live, not draining
// node by name claims at once, the second after `step_ns`, and so on: a dead first one costs seconds, and two at once cost one lost race.
//
// An owner lives as long as its claim is new, its incarnation's beats rise or the stream's tail moves, and for `silence_ns` after; no
// longer, when its node is heard under another incarnation: then the one that claimed is dead. One that says for `silence_ns` that it waits for
// the directory is as good as silent: it cannot say what it decides.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>

#include "daemon/core/cluster.h"
#include "ledger/base/ids.h"

namespace holdfast {

class Election {
 public:
  Election(std::string self, uint64_t silence_ns, uint64_t step_ns) : self_(std::move(self)), silence_ns_(silence_ns), step_ns_(step_ns) {}
  void set_silence(uint64_t ns) { silence_ns_ = ns; }
  // Also for the own node: a coordinator lives by its beats as everyone does.
  void OnBeat(const std::string& node, const Nonce& incarnation, uint64_t count, bool draining, TimeNs now);
  // A beat that says that its node waits for the shared directory.
  void OnStalledBeat(const std::string& node, const Nonce& incarnation, uint64_t count, TimeNs now);
  // The job stream as last folded: who claimed it (the daemon's incarnation), whether it was released, its tail.
  void OnJob(const std::string& owner, const Nonce& incarnation, bool released, uint32_t tail, TimeNs now);
  bool ShouldClaim(TimeNs now);            // true again and again until OnJob says that it was done
  // Whether this node is among the first to be elected when the coordinator ends: such a one keeps the whole job in mind beforehand.
  bool IsDeputy(TimeNs now) const;
  static constexpr uint64_t kDeputies = 2;

 private:
  struct Node {
    Nonce incarnation;
    uint64_t count = 0;
    bool draining = false;
    TimeNs alive = 0;                      // when it was first heard or its count last rose
  };
  bool OwnerLives(TimeNs now) const;
  uint64_t Rank(TimeNs now) const;         // how many live nodes come before this one

  std::string self_;
  uint64_t silence_ns_, step_ns_;          // silence: how long an owner without any sign of life is still believed to live
  std::map<std::string, Node> nodes_;
  bool known_ = false;                     // OnJob was called
  TimeNs born_ = 0;                        // the first time
  std::string owner_;
  Nonce owner_incarnation_;
  uint32_t tail_ = 0;
  bool vacant_ = false;                    // released, never claimed, or claimed by a life that is over
  TimeNs vacant_since_ = 0, owner_sign_ = 0;
  std::optional<TimeNs> stalled_;          // since when the owner says so
};

}  // namespace holdfast
