// SPDX-License-Identifier: Apache-2.0
//
// The scheduler of a stage: windows, memory bounds, sources of input, and a random walk that must always finish.
#include "daemon/core/stage_scheduler.h"

#include <gtest/gtest.h>

#include <numeric>
#include <random>
#include <set>

namespace holdfast {
namespace {

std::vector<uint32_t> Range(uint32_t n) {
  std::vector<uint32_t> v(n);
  std::iota(v.begin(), v.end(), 0u);
  return v;
}

TEST(StageScheduler, FirstStageStartsInOrderUpToTheWindow) {
  StageScheduler s({.todo = Range(5), .from_tokens = true, .window = 2, .memory_bytes_max = 0});
  EXPECT_EQ(s.Next()->sample, 0u);
  EXPECT_EQ(s.Next()->sample, 1u);
  EXPECT_FALSE(s.Next().has_value());
  s.OnCommitted(1);
  const auto third = s.Next();
  ASSERT_TRUE(third.has_value());
  EXPECT_EQ(third->sample, 2u);
  EXPECT_EQ(third->input, InputKind::kTokens);
}

TEST(StageScheduler, WhatOnlyWaitsForItsCommitLeavesRoomInTheWindow) {
  StageScheduler s({.todo = Range(5), .from_tokens = true, .window = 1, .awaiting_max = 2, .memory_bytes_max = 0});
  EXPECT_EQ(s.Next()->sample, 0u);
  EXPECT_FALSE(s.Next().has_value());
  s.OnWritten(0);
  EXPECT_EQ(s.Next()->sample, 1u);
  s.OnWritten(1);
  EXPECT_EQ(s.Next()->sample, 2u);
  s.OnWritten(2);
  EXPECT_FALSE(s.Next().has_value());   // three wait: enough
  s.OnFailed(0);                        // its producer died and computed other bits: once more, but not now
  EXPECT_EQ(s.Next()->sample, 0u);
  EXPECT_FALSE(s.Next().has_value());
  for (const uint32_t sample : {1u, 2u, 0u}) s.OnCommitted(sample);
  EXPECT_EQ(s.Next()->sample, 3u);
  EXPECT_FALSE(s.done());
}

TEST(StageScheduler, AfterADeathNothingWaitsForCommitsAtFirst) {
  StageScheduler s({.todo = Range(6), .from_tokens = true, .window = 1, .awaiting_max = 4, .awaiting_after = 2, .memory_bytes_max = 0});
  for (const uint32_t sample : {0u, 1u}) {
    EXPECT_EQ(s.Next()->sample, sample);
    s.OnWritten(sample);
    EXPECT_FALSE(s.Next().has_value());
    s.OnCommitted(sample);
  }
  for (const uint32_t sample : {2u, 3u, 4u}) {
    EXPECT_EQ(s.Next()->sample, sample);
    s.OnWritten(sample);
  }
}

// One at a time is one at a time: nothing of another may be lost with it either.
TEST(StageScheduler, AloneMeansThatNothingWaitsForItsCommitEither) {
  StageScheduler s({.todo = Range(3), .from_tokens = true, .window = 3, .awaiting_max = 3, .memory_bytes_max = 0, .alone = 1, .suspects = {}});
  EXPECT_TRUE(s.Next()->alone);
  s.OnWritten(0);
  EXPECT_FALSE(s.Next().has_value());
  s.OnCommitted(0);
  EXPECT_FALSE(s.Next()->alone);
}

TEST(StageScheduler, LaterStageWaitsForInput) {
  StageScheduler s({.todo = Range(3), .from_tokens = false, .window = 4, .memory_bytes_max = 100});
  EXPECT_FALSE(s.Next().has_value());
  s.OnCutCommitted(2);
  const auto from_pack = s.Next();
  ASSERT_TRUE(from_pack.has_value());
  EXPECT_EQ(from_pack->sample, 2u);
  EXPECT_EQ(from_pack->input, InputKind::kPack);
  EXPECT_TRUE(s.OnCutReceived(1, 7, Bytes(60)));
  const auto from_memory = s.Next();
  ASSERT_TRUE(from_memory.has_value());
  EXPECT_EQ(from_memory->input, InputKind::kMemory);
  EXPECT_EQ(from_memory->tokens, 7u);
  EXPECT_EQ(from_memory->cut.size(), 60u);
  EXPECT_EQ(s.memory_bytes(), 0u);
}

TEST(StageScheduler, MemoryOfTheEdgeIsBounded) {
  StageScheduler s({.todo = Range(3), .from_tokens = false, .window = 1, .memory_bytes_max = 100});
  EXPECT_TRUE(s.OnCutReceived(0, 1, Bytes(60)));
  EXPECT_FALSE(s.OnCutReceived(1, 1, Bytes(60)));  // no room
  EXPECT_FALSE(s.OnCutReceived(0, 1, Bytes(10)));  // held already
  EXPECT_FALSE(s.OnCutReceived(9, 1, Bytes(10)));  // not ours
  EXPECT_EQ(s.memory_bytes(), 60u);
}

TEST(StageScheduler, FailedSampleComesBack) {
  StageScheduler s({.todo = Range(1), .from_tokens = true, .window = 1, .memory_bytes_max = 0});
  EXPECT_EQ(s.Next()->sample, 0u);
  EXPECT_FALSE(s.done());
  s.OnFailed(0);
  EXPECT_EQ(s.Next()->sample, 0u);
  s.OnCommitted(0);
  EXPECT_TRUE(s.done());
}

TEST(StageScheduler, TheFirstFewAreAloneAfterADeath) {
  StageScheduler s({.todo = Range(5), .from_tokens = true, .window = 3, .memory_bytes_max = 0, .alone = 2, .suspects = {}});
  for (uint32_t i = 0; i < 2; ++i) {
    const auto start = s.Next();
    ASSERT_TRUE(start.has_value());
    EXPECT_TRUE(start->alone);
    EXPECT_FALSE(s.Next().has_value());
    s.OnCommitted(start->sample);
  }
  for (uint32_t i = 0; i < 3; ++i) {
    const auto start = s.Next();
    ASSERT_TRUE(start.has_value());
    EXPECT_FALSE(start->alone);
  }
}

TEST(StageScheduler, SuspectsComeLastAndAlone) {
  StageScheduler s({.todo = Range(4), .from_tokens = false, .window = 4, .memory_bytes_max = 100, .alone = 0, .suspects = {0, 2}});
  for (uint32_t i = 0; i < 4; ++i) s.OnCutCommitted(i);
  EXPECT_FALSE(s.OnCutReceived(0, 1, Bytes(10)));   // it would only lie there
  EXPECT_TRUE(s.OnCutReceived(3, 1, Bytes(10)));
  EXPECT_EQ(s.Next()->sample, 3u);
  EXPECT_EQ(s.Next()->sample, 1u);
  EXPECT_FALSE(s.Next().has_value());
  s.OnCommitted(1);
  EXPECT_FALSE(s.Next().has_value());
  s.OnCommitted(3);
  const auto first = s.Next();
  ASSERT_TRUE(first.has_value());
  EXPECT_EQ(first->sample, 0u);
  EXPECT_TRUE(first->alone);
  EXPECT_FALSE(s.Next().has_value());
  s.OnCommitted(0);
  EXPECT_EQ(s.Next()->sample, 2u);
  s.OnCommitted(2);
  EXPECT_TRUE(s.done());
}

// Any order of arrivals, drops and commits ends with every sample committed exactly once, within the bounds.
TEST(StageScheduler, RandomWalkFinishesWithinBounds) {
  for (uint32_t seed = 0; seed < 200; ++seed) {
    std::mt19937 rng(seed);
    const uint32_t n = 1 + rng() % 20, window = 1 + rng() % 5, awaiting = rng() % 4;
    StageScheduler s({.todo = Range(n), .from_tokens = false, .window = window, .awaiting_max = awaiting, .memory_bytes_max = 30});
    std::vector<uint32_t> flying;
    std::set<uint32_t> written;
    std::vector<int> commits(n, 0);
    for (int step = 0; step < 20000 && !s.done(); ++step) {
      const uint32_t sample = rng() % n;
      switch (rng() % 5) {
        case 0: s.OnCutReceived(sample, 1, Bytes(10)); break;
        case 1: s.OnCutCommitted(sample); break;
        case 2:
          if (auto start = s.Next()) flying.push_back(start->sample);
          break;
        case 3:
          if (!flying.empty()) s.OnWritten(*written.insert(flying[rng() % flying.size()]).first);
          break;
        default:
          if (!flying.empty()) {
            const size_t i = rng() % flying.size();
            ++commits[flying[i]];
            s.OnCommitted(flying[i]);
            written.erase(flying[i]);
            flying.erase(flying.begin() + static_cast<long>(i));
          }
      }
      ASSERT_LE(s.in_flight(), window + awaiting) << "seed " << seed;
      ASSERT_LE(s.in_flight() - written.size(), window) << "seed " << seed;
      ASSERT_LE(s.memory_bytes(), 30u) << "seed " << seed;
    }
    ASSERT_TRUE(s.done()) << "seed " << seed;
    for (uint32_t i = 0; i < n; ++i) ASSERT_EQ(commits[i], 1) << "seed " << seed;
  }
}

TEST(StageScheduler, WhatIsLeftOutIsNotStartedAndItsMemoryIsFree) {
  StageScheduler s({.todo = {0, 1, 2, 3}, .from_tokens = false, .window = 2, .memory_bytes_max = 30, .alone = 0, .suspects = {}});
  EXPECT_TRUE(s.OnCutReceived(1, 1, Bytes(10)));
  EXPECT_TRUE(s.OnCutReceived(2, 1, Bytes(10)));
  s.OnCutCommitted(3);
  EXPECT_EQ(s.OnOmitted(1), 10u);                       // for the sender's credit
  EXPECT_EQ(s.OnOmitted(3), 0u);
  EXPECT_EQ(s.OnOmitted(0), 0u);                        // its cut never came, and never will
  EXPECT_FALSE(s.OnCutReceived(1, 1, Bytes(10)));       // it comes once more
  s.OnCutCommitted(1);
  const auto start = s.Next();
  ASSERT_TRUE(start);
  EXPECT_EQ(start->sample, 2u);
  EXPECT_FALSE(s.Next());
  EXPECT_EQ(s.OnOmitted(2), 0u);                        // in flight: it stays so until it was computed
  EXPECT_FALSE(s.done());
  s.OnDropped(2);
  EXPECT_TRUE(s.done());
  EXPECT_EQ(s.memory_bytes(), 0u);
}

}  // namespace
}  // namespace holdfast
