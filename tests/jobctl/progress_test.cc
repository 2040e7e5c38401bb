// SPDX-License-Identifier: Apache-2.0
//
// Which phase time is put down to, with a clock that only moves when told.
#include <gtest/gtest.h>

#include "jobctl/progress.h"

namespace holdfast {
namespace {

class StillClock final : public Clock {
 public:
  uint64_t MonotonicNs() const override { return now_ms * 1'000'000; }
  uint64_t WallNs() const override { return 0; }
  void SleepMs(uint64_t ms) override { now_ms += ms; }
  uint64_t now_ms = 1000;
};

StageProgress In(const char* phase) {
  StageProgress s;
  s.phase = phase;
  return s;
}

// The time of the checks before the start once stood in "check" and again in "load".
TEST(ProgressTest, NoTimeCountsTwice) {
  StillClock clock;
  Progress progress(clock, Progress::Mode::kQuiet);
  clock.SleepMs(500);
  progress.AddPhase("check", 500);
  clock.SleepMs(20);
  progress.Stages({In("load")});
  clock.SleepMs(300);
  progress.Stages({In("calibrate")});
  clock.SleepMs(10);
  progress.Stages({In("evict")});
  const std::map<std::string, uint64_t> expected = {{"check", 500}, {"load", 20}, {"calibrate", 300}, {"evict", 10}};
  EXPECT_EQ(progress.phase_ms(), expected);
}

}  // namespace
}  // namespace holdfast
