// SPDX-License-Identifier: Apache-2.0
//
// When a node stops taking new samples for want of memory, and when it goes on.
#include "daemon/core/pressure_gate.h"

#include <gtest/gtest.h>

namespace holdfast {
namespace {

constexpr uint64_t kGiB = 1ull << 30, kSecond = 1'000'000'000;

TEST(PressureGate, PausesWhenLittleIsLeftAndGoesOnWhenThatIsOverForAWhile) {
  PressureGate gate;
  EXPECT_FALSE(gate.Step(8 * kGiB, 24 * kGiB, 0, 1 * kSecond));
  EXPECT_TRUE(gate.Step(kGiB / 2, 24 * kGiB, 0, 2 * kSecond));
  EXPECT_TRUE(gate.Step(8 * kGiB, 24 * kGiB, 0, 3 * kSecond)) << "one good second is not enough";
  EXPECT_TRUE(gate.Step(8 * kGiB, 24 * kGiB, 0, 6 * kSecond));
  EXPECT_FALSE(gate.Step(8 * kGiB, 24 * kGiB, 0, 7 * kSecond));
}

TEST(PressureGate, StallsPauseToo) {
  PressureGate gate;
  EXPECT_TRUE(gate.Step(20 * kGiB, 24 * kGiB, 5000, 1 * kSecond));
  EXPECT_TRUE(gate.Step(20 * kGiB, 24 * kGiB, 3000, 20 * kSecond)) << "still half as bad as what paused it";
  EXPECT_TRUE(gate.Step(20 * kGiB, 24 * kGiB, 100, 21 * kSecond));
  EXPECT_FALSE(gate.Step(20 * kGiB, 24 * kGiB, 100, 25 * kSecond));
}

TEST(PressureGate, AThirtySecondOfASmallMachineIsEnough) {
  PressureGate gate;
  EXPECT_FALSE(gate.Step(kGiB / 16, kGiB, 0, kSecond)) << "1 GiB in all: 32 MiB is little, 64 MiB is not";
  EXPECT_TRUE(gate.Step(kGiB / 64, kGiB, 0, 2 * kSecond));
}

}  // namespace
}  // namespace holdfast
