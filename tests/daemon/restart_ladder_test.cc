// SPDX-License-Identifier: Apache-2.0
//
// How large a worker is: what fits, and the ladder: out of memory shrinks step by step and then gives up with advice; other deaths restart the same
// size.
#include "daemon/core/restart_ladder.h"

#include <gtest/gtest.h>

namespace holdfast {
namespace {

TEST(RestartLadder, OutOfMemoryGoesDownStepByStepThenStops) {
  RestartLadder ladder({.window = 10, .threads = 2, .layers = 5, .cuts = 7});
  const WorkerSize steps[] = {{10, 2, 5}, {5, 2, 5}, {2, 2, 5}, {2, 2, 2}, {2, 2, 1}, {1, 1, 1}};   // cuts kept in memory, samples in flight, resident layers, threads
  for (const WorkerSize& step : steps) EXPECT_EQ(ladder.OnDeath(DeathCause::kOutOfMemory, false).size, step);
  EXPECT_TRUE(ladder.OnDeath(DeathCause::kOutOfMemory, false).restart);
  EXPECT_TRUE(ladder.OnDeath(DeathCause::kOutOfMemory, false).restart);
  const auto d = ladder.OnDeath(DeathCause::kOutOfMemory, false);
  EXPECT_FALSE(d.restart);
  EXPECT_NE(d.advice.find("--seq-len"), std::string::npos);
}

// Memory as in a stage of 40 layers of 3 beside samples of 2 on each thread and cuts of 1.
uint64_t Needs(const WorkerSize& s) { return 10 + 3 * s.layers + 2 * s.threads + s.window + s.cuts; }

TEST(WorkerSize, TheLargestThatFitsStreamsBeforeItGivesUpThreads) {
  const WorkerSize preferred = PreferredSize(4, 40, 5);
  const auto within = [&](uint64_t room, Neighbours n) { return LargestThatFits(preferred, 40, n, [room](const WorkerSize& s) { return Needs(s) <= room; }); };
  EXPECT_EQ(within(1000, Neighbours::kNone), (WorkerSize{14, 4, 40}));     // nothing streamed: no cuts to keep
  EXPECT_EQ(within(145, Neighbours::kNone), (WorkerSize{7, 4, 40}));       // fewer samples in flight first
  EXPECT_EQ(within(141, Neighbours::kNone), (WorkerSize{4, 4, 39}));       // then fewer layers
  EXPECT_EQ(within(25, Neighbours::kNone), (WorkerSize{4, 4, 1}));
  EXPECT_EQ(LargestThatFits({4, 4, 3, 5}, 40, Neighbours::kNone, [](const WorkerSize& s) { return Needs(s) <= 36; }), (WorkerSize{4, 4, 3, 5}));   // the cuts of all
  EXPECT_EQ(LargestThatFits({4, 4, 3, 5}, 40, Neighbours::kNone, [](const WorkerSize& s) { return Needs(s) <= 35; }), (WorkerSize{4, 4, 3}));      // or none
  EXPECT_EQ(within(24, Neighbours::kNone), (WorkerSize{2, 2, 2}));         // then fewer threads, and as many layers as there is room for then
  EXPECT_EQ(within(16, Neighbours::kNone), (WorkerSize{1, 1, 1}));
  EXPECT_EQ(within(0, Neighbours::kNone), (WorkerSize{1, 1, 1}));          // the smallest, where none fits
  EXPECT_EQ(within(141, Neighbours::kSome), (WorkerSize{2, 2, 40}));       // resident as long as one sample on one thread fits
  EXPECT_EQ(within(133, Neighbours::kSome), (WorkerSize{1, 1, 40}));
  EXPECT_EQ(within(132, Neighbours::kSome), (WorkerSize{4, 4, 36}));
}

TEST(WorkerSize, WhateverTheLadderStepsDownToIsSmaller) {
  WorkerSize size = PreferredSize(16, 88, 128);
  for (int steps = 0; StepDown(size) != size; ++steps) {
    ASSERT_LT(steps, 40);
    const WorkerSize next = StepDown(size);
    EXPECT_LT(Needs(next), Needs(size));
    EXPECT_GE(next.window, next.threads);
    size = next;
  }
  EXPECT_EQ(size, (WorkerSize{1, 1, 1}));
}

TEST(WorkerSize, AGroupLeavesRoomForTheNextOneAndOnAGpuForTheLastOne) {
  const auto is = [](Grouping g, uint32_t layers, uint32_t at_once) { return g.layers == layers && g.at_once == at_once; };
  EXPECT_TRUE(is(GroupLayers(40, 40, 2), 40, 1));
  EXPECT_TRUE(is(GroupLayers(99, 40, 3), 40, 1));
  EXPECT_TRUE(is(GroupLayers(39, 40, 2), 19, 2));
  EXPECT_TRUE(is(GroupLayers(39, 40, 3), 13, 3));
  EXPECT_TRUE(is(GroupLayers(2, 40, 3), 1, 2));
  EXPECT_TRUE(is(GroupLayers(1, 40, 3), 1, 1));
  EXPECT_TRUE(is(GroupLayers(1, 1, 2), 1, 1));
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
