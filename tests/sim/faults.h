// SPDX-License-Identifier: Apache-2.0
//
// Every kind of fault that a history may bring, and how often it really did something: a stale listing is counted when it lacks a name that is
// there, a late LINK when it arrives. A kind that never happens in a thousand seeds is a hole in the simulator; `holdfast-sim --all-faults`
// fails then.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace holdfast::sim {

enum class Fault : uint8_t {
  // machines and processes
  kPowerLoss, kRoomPowerLoss, kDaemonAndChildrenKilled, kDaemonKilled, kTaskKilled, kDiesAtCall, kPausesAtCall, kMachinePaused, kTaskPaused, kSleeperSucceeded,
  kClone, kDrain, kRecomputedOtherwise, kDeviceBroken,
  // samples
  kPoisonSample, kSampleNotFinite,
  // clocks
  kWallClockForward, kWallClockBack,
  // the file server
  kServerCrash, kServerForgetsData, kServerForgetsName, kReplay, kFullAtCreate, kFullAtWrite, kFullAtFsync, kFullAtClose, kReadOnly,
  // what a kernel makes of it
  kCutOff, kEio, kEstaleAtOpen, kEstaleAtRead, kLinkReplyLost, kLinkGivenUp, kLateLinkLands, kLateLinkTaken, kLateLinkOfTheDead, kStaleListing, kTornListing,
  kNegativeDentry, kCachedAttributes,
  // the network
  kMessageLost, kMessageTwice, kMessageOvertaken, kMute, kDeaf, kCoordinatorMute, kCoordinatorDeaf, kCoordinatorCutOff,
  // what it came to
  kFenced, kForked, kWaitedForSpace, kDaemonRestarted,
  kCount_,
};
inline constexpr size_t kFaults = static_cast<size_t>(Fault::kCount_);

const char* FaultName(Fault fault);

class FaultCounts {
 public:
  void Add(Fault fault, uint64_t n = 1) { counts_[static_cast<size_t>(fault)] += n; }
  uint64_t Of(Fault fault) const { return counts_[static_cast<size_t>(fault)]; }
  FaultCounts& operator+=(const FaultCounts& other) {
    for (size_t i = 0; i < kFaults; ++i) counts_[i] += other.counts_[i];
    return *this;
  }

 private:
  std::array<uint64_t, kFaults> counts_{};
};

}  // namespace holdfast::sim
