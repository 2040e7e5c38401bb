// SPDX-License-Identifier: Apache-2.0
//
// Time comes in through this interface. Deadlines use MonotonicNs of the node that judges them; wall time is for people.
#pragma once

#include <cstdint>

namespace holdfast {

class Clock {
 public:
  virtual ~Clock() = default;
  virtual uint64_t MonotonicNs() const = 0;  // CLOCK_BOOTTIME: also advances while the machine sleeps
  virtual uint64_t WallNs() const = 0;       // since 1970, informational only: never compared
  virtual void SleepMs(uint64_t ms) = 0;
};

class RealClock final : public Clock {
 public:
  uint64_t MonotonicNs() const override;
  uint64_t WallNs() const override;
  void SleepMs(uint64_t ms) override;
};

}  // namespace holdfast
