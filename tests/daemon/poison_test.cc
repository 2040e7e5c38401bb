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
  EXPECT_TRUE(CheckPoison(s, CautionFor(s, "signal 11", kSize, kTodo), kTodo).ok());
  const std::vector<uint32_t> last = {5};
  const Status blamed = CheckPoison(s, CautionFor(s, "signal 11", kSize, last), last);
  ASSERT_EQ(blamed.code(), ErrorCode::kInvalidArgument);
  EXPECT_NE(blamed.error().message.find("sample 5 "), std::string::npos) << blamed.error().message;
  s.suspicion.tries[5] = kTriesMax - 1;
  EXPECT_TRUE(CheckPoison(s, CautionFor(s, "signal 11", kSize, last), last).ok());
  s.suspicion = {};
  s.suspicion.before = {.calibrating = true, .progress = true, .released = false};
  EXPECT_EQ(CautionFor(s, "signal 11", kSize, last).alone, 1u);   // it is alone anyhow: said, so that the next life knows
  EXPECT_EQ(CautionFor(s, "signal 11", kSize, kTodo).alone, 0u);
}

}  // namespace
}  // namespace holdfast
