// SPDX-License-Identifier: Apache-2.0
//
// When to stop taking new samples because the machine runs out of memory, and when to go on. Pure, with hysteresis: pauses when little is
// available or tasks stall on memory, goes on after things were well for a while.
#pragma once

#include <algorithm>
#include <cstdint>

namespace holdfast {

class PressureGate {
 public:
  // available, total: bytes; stall: PSI memory "some avg10" in hundredths of a percent. Returns whether to pause.
  bool Step(uint64_t available, uint64_t total, uint32_t stall, uint64_t now_ns) {
    const uint64_t low = std::min<uint64_t>(total / 32, kLowBytesMax);
    const bool tight = available < low || stall > kStallPause;
    const bool well = available > 2 * low && stall < kStallPause / 2;
    if (tight) paused_ = true;
    if (!well) well_since_ns_ = now_ns;
    if (paused_ && now_ns - well_since_ns_ >= kWellNs) paused_ = false;
    return paused_;
  }

 private:
  static constexpr uint64_t kLowBytesMax = 1ull << 30;
  static constexpr uint32_t kStallPause = 4000;            // 40 % of the last ten seconds
  static constexpr uint64_t kWellNs = 5'000'000'000;
  bool paused_ = false;
  uint64_t well_since_ns_ = 0;
};

}  // namespace holdfast
