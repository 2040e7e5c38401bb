// SPDX-License-Identifier: Apache-2.0
//
// The ladder: out of memory shrinks step by step and then gives up with advice; other deaths restart the same size.
#include "daemon/core/restart_ladder.h"

#include <gtest/gtest.h>

namespace holdfast {
namespace {

TEST(RestartLadder, OutOfMemoryGoesDownStepByStepThenStops) {
  RestartLadder ladder({.window = 4, .threads = 2});
  auto d = ladder.OnDeath(DeathCause::kOutOfMemory, false);
  EXPECT_EQ(d.size, (WorkerSize{2, 2}));
  d = ladder.OnDeath(DeathCause::kOutOfMemory, false);
  EXPECT_EQ(d.size, (WorkerSize{1, 1}));
  EXPECT_TRUE(d.restart);
  EXPECT_TRUE(ladder.OnDeath(DeathCause::kOutOfMemory, false).restart);
  EXPECT_TRUE(ladder.OnDeath(DeathCause::kOutOfMemory, false).restart);
  d = ladder.OnDeath(DeathCause::kOutOfMemory, false);
  EXPECT_FALSE(d.restart);
  EXPECT_NE(d.advice.find("--stages"), std::string::npos);
}

TEST(RestartLadder, SignalsKeepTheSize) {
  RestartLadder ladder({.window = 4, .threads = 2});
  const auto d = ladder.OnDeath(DeathCause::kSignal, true);
  EXPECT_TRUE(d.restart);
  EXPECT_EQ(d.size, (WorkerSize{4, 2}));
}

TEST(RestartLadder, ProgressForgivesAnyNumberOfDeaths) {
  RestartLadder ladder({.window = 1, .threads = 1});
  for (int i = 0; i < 50; ++i) ASSERT_TRUE(ladder.OnDeath(DeathCause::kSignal, true).restart);
  EXPECT_EQ(ladder.restarts(), 50u);
}

TEST(RestartLadder, ThreeBarrenCrashesStop) {
  RestartLadder ladder({.window = 1, .threads = 1});
  EXPECT_TRUE(ladder.OnDeath(DeathCause::kCrash, false).restart);
  EXPECT_TRUE(ladder.OnDeath(DeathCause::kCrash, false).restart);
  EXPECT_FALSE(ladder.OnDeath(DeathCause::kCrash, false).restart);
}

}  // namespace
}  // namespace holdfast
