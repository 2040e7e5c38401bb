// SPDX-License-Identifier: Apache-2.0
#include "daemon/core/election.h"

#include <algorithm>

namespace holdfast {

void Election::OnBeat(const std::string& node, const Nonce& incarnation, uint64_t count, bool draining, TimeNs now) {
  const auto [it, is_new] = nodes_.try_emplace(node);
  Node& n = it->second;
  const bool another = is_new || n.incarnation != incarnation;
  if (!another && count <= n.count) return;
  n = {incarnation, count, draining, now};
  if (another || !known_ || node != owner_) return;  // the first beat seen of an incarnation may be what a dead one left behind
  if (incarnation == owner_incarnation_) {
    owner_sign_ = now;
    stalled_.reset();
  } else if (!vacant_) {
    vacant_ = true;
    vacant_since_ = now;
  }
}

// Not at once: where all waited, each hears of the others' waiting when it is over.
void Election::OnStalledBeat(const std::string& node, const Nonce& incarnation, uint64_t count, TimeNs now) {
  const auto n = nodes_.find(node);
  if (n == nodes_.end() || n->second.incarnation != incarnation || count <= n->second.count) return;
  n->second.count = count;
  if (!known_ || node != owner_ || incarnation != owner_incarnation_) return;
  if (!stalled_) stalled_ = now;
  if (now - *stalled_ < silence_ns_) owner_sign_ = now;
}

void Election::OnJob(const std::string& owner, const Nonce& incarnation, bool released, uint32_t tail, TimeNs now) {
  const bool claimed_anew = !known_ || owner != owner_ || incarnation != owner_incarnation_;
  const bool was_vacant = known_ && vacant_;
  if (claimed_anew || tail > tail_) {
    owner_sign_ = now;
    stalled_.reset();
    vacant_ = false;
  }
  if (!known_) born_ = now;
  known_ = true;
  owner_ = owner;
  owner_incarnation_ = incarnation;
  tail_ = std::max(tail, tail_);
  if (!owner.empty() && !released) return;
  vacant_ = true;
  if (!was_vacant || claimed_anew) vacant_since_ = now;
}

bool Election::OwnerLives(TimeNs now) const { return !vacant_ && now - owner_sign_ < silence_ns_; }

uint64_t Election::Rank(TimeNs now) const {
  return static_cast<uint64_t>(std::count_if(nodes_.begin(), nodes_.end(), [&](const auto& entry) {
    const auto& [name, n] = entry;
    return name < self_ && !n.draining && now - n.alive < silence_ns_;
  }));
}

// Who has just come has not heard everybody yet, and would think too much of itself.
bool Election::IsDeputy(TimeNs now) const { return known_ && now - born_ >= silence_ns_ && Rank(now) < kDeputies; }

bool Election::ShouldClaim(TimeNs now) {
  const auto self = nodes_.find(self_);
  if (!known_ || OwnerLives(now) || (self != nodes_.end() && self->second.draining)) return false;
  return now - (vacant_ ? vacant_since_ : owner_sign_ + silence_ns_) >= Rank(now) * step_ns_;
}

}  // namespace holdfast
