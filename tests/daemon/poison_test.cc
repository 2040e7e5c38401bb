// SPDX-License-Identifier: Apache-2.0
//
// Which samples a worker is careful with, by what the lives before it left in the ledger.
#include "daemon/worker/poison.h"

#include <gtest/gtest.h>

namespace holdfast {
namespace {

constexpr WorkerSize kSize{.window = 8, .threads = 2};
const std::vector<uint32_t> kTodo = {3, 5, 9};

StageState DiedCalibrating() {
  StageState s;
  s.suspicion.before = {.calibrating = true, .progress = false, .released = false};
  return s;
}

TEST(Poison, NothingIsSuspectAtFirst) {
  const Caution c = CautionFor(StageState{}, "start", kSize, kTodo);
  EXPECT_EQ(c.alone, 0u);
  EXPECT_TRUE(c.suspects.empty());
}

TEST(Poison, AfterABarrenDeathWhatMayHaveBeenInFlightIsAlone) {
  EXPECT_EQ(CautionFor(DiedCalibrating(), "signal 11", kSize, kTodo).alone, kSize.window);
}

TEST(Poison, WantOfMemoryMakesTheWorkerSmallerFirst) {
  EXPECT_EQ(CautionFor(DiedCalibrating(), kReasonOutOfMemory, kSize, kTodo).alone, 0u);
  EXPECT_EQ(CautionFor(DiedCalibrating(), kReasonOutOfMemory, {.window = 1, .threads = 1}, kTodo).alone, 1u);
}

TEST(Poison, SuspectsAreThoseThatWereTriedAndAreStillToDo) {
  StageState s;
  s.suspicion.tries = {{5, 1}, {7, 3}};
  EXPECT_EQ(CautionFor(s, "signal 11", kSize, kTodo).suspects, (std::set<uint32_t>{5}));
}

TEST(Poison, ASampleIsBlamedOnlyWhenNothingElseIsLeft) {
  StageState s;
  s.suspicion.tries = {{5, kTriesMax}};
  EXPECT_FALSE(FindPoison(s, CautionFor(s, "signal 11", kSize, kTodo), kTodo));
  const std::vector<uint32_t> last = {5};
  const auto blamed = FindPoison(s, CautionFor(s, "signal 11", kSize, last), last);
  ASSERT_TRUE(blamed);
  EXPECT_EQ(blamed->sample, 5u);
  EXPECT_EQ(blamed->why, "ended 2 workers");
  s.suspicion.tries[5] = kTriesMax - 1;
  EXPECT_FALSE(FindPoison(s, CautionFor(s, "signal 11", kSize, last), last));
  s.suspicion = {};
  s.suspicion.before = {.calibrating = true, .progress = true, .released = false};
  EXPECT_EQ(CautionFor(s, "signal 11", kSize, last).alone, 1u);   // it is alone anyhow: said, so that the next life knows
  EXPECT_EQ(CautionFor(s, "signal 11", kSize, kTodo).alone, 0u);
}

TEST(Poison, TriesCountWhereWhatIsLeftCouldBeLeftOut) {
  StageState s;
  s.suspicion.tries = {{5, 2}, {9, 1}};
  const Caution two{.alone = 0, .suspects = {5, 9}};
  EXPECT_EQ(TriesThatCount(s, two, 2, 1), 3u);
  EXPECT_EQ(TriesThatCount(s, two, 3, 1), 0u);   // a crash that has nothing to do with samples must not go on for long
  EXPECT_EQ(TriesThatCount(s, two, 3, 2), 3u);   // both could be left out
  EXPECT_EQ(TriesThatCount(s, {.alone = 0, .suspects = {9}}, 1, 0), 3u);
  EXPECT_EQ(TriesThatCount(s, two, 2, 0), 0u);
}

TEST(Poison, ABlameIsARecordThatTheFoldKnows) {
  const Record r = BlameRecord(StageId(2), 7, {.sample = 5, .why = "ended 2 workers"});
  const auto json = ControlPayload(r);
  ASSERT_TRUE(json.ok());
  const auto b = PhaseBegin::FromJson(*json);
  ASSERT_TRUE(b.ok());
  EXPECT_EQ(b->phase, kPhaseBlame);
  EXPECT_EQ(b->sample, 5u);
  EXPECT_EQ(b->why, "ended 2 workers");
}

}  // namespace
}  // namespace holdfast
