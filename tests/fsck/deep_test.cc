// SPDX-License-Identifier: Apache-2.0
//
// A deep check that is interrupted goes on, does not write into what it checks, and reads no faster than it was told.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "tests/fsck/mending.h"

namespace holdfast::testing {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kHourNs = 3600ull * 1'000'000'000;

// Time passes only where somebody sleeps.
class SlowClock final : public Clock {
 public:
  uint64_t MonotonicNs() const override { return now_ns; }
  uint64_t WallNs() const override { return wall_ns; }
  void SleepMs(uint64_t ms) override { now_ns += ms * 1'000'000; }
  uint64_t now_ns = 1, wall_ns = 1'700'000'000ull * 1'000'000'000;
};

struct Checker {
  explicit Checker(TinyRun& r) : run(r) {}
  // `stop_after`: bytes; 0 = never.
  FsckReport Check(uint64_t stop_after = 0) {
    stop = false;
    FsckOptions o;
    o.deep = true;
    o.threads = 1;
    o.clock = &clock;
    o.stop = &stop;
    o.cache_dir = cache.path() + "/cache";
    o.rate = rate;
    o.on_progress = [this, stop_after](uint64_t done, uint64_t) { stop = stop || (stop_after > 0 && done >= stop_after); };
    return RunFsck(run.fs, run.dir, o);
  }
  bool Remembers() {
    const auto names = run.fs.List(cache.path() + "/cache");
    return names.ok() && !names->empty();
  }
  TinyRun& run;
  TempDir cache;
  SlowClock clock;
  uint64_t rate = 0;
  std::atomic<bool> stop{false};
};

TEST(DeepCheck, GoesOnWhereItWasInterrupted) {
  TinyRun run;
  Checker c(run);
  const auto before = Tree(run);
  const FsckReport first = c.Check(/*stop_after=*/1);
  EXPECT_EQ(first.exit_status, kFsckInterrupted) << Text(first);
  EXPECT_THAT(Text(first), HasSubstr("the same line again goes on"));
  EXPECT_TRUE(c.Remembers());
  EXPECT_EQ(Tree(run), before) << "what is checked only is not written to";
  const FsckReport second = c.Check();
  EXPECT_EQ(second.exit_status, 0) << Text(second);
  EXPECT_GT(second.bytes_known, 0u);
  EXPECT_THAT(Text(second), HasSubstr("read by a check that was interrupted"));
  EXPECT_FALSE(c.Remembers());
  const FsckReport third = c.Check();
  EXPECT_EQ(third.bytes_known, 0u) << "a check that came to its end is not gone on with";
  EXPECT_GT(third.bytes_read, second.bytes_read);
}

// Piece by piece up to the output, which is one piece.
TEST(DeepCheck, InterruptedAgainAndAgainItComesFurtherEachTime) {
  TinyRun run;
  Checker c(run);
  int tries = 0;
  uint64_t known = 0;
  for (FsckReport r = c.Check(1); tries == 0 || r.bytes_known > known; r = c.Check(1), ++tries) {
    ASSERT_EQ(r.exit_status, kFsckInterrupted) << Text(r);
    known = r.bytes_known;
    ASSERT_LT(tries, 100);
  }
  EXPECT_GT(tries, 2);
  const FsckReport last = c.Check();
  EXPECT_EQ(last.exit_status, 0) << Text(last);
  EXPECT_GE(last.bytes_known, known);
}

TEST(DeepCheck, WhatChangedMeanwhileIsReadAgain) {
  TinyRun run({.until = Until::kSealed});
  Checker c(run);
  const FsckReport first = c.Check(1);
  ASSERT_EQ(first.exit_status, kFsckInterrupted);
  for (const std::string& pack : run.PackFiles()) Flip(run, pack, 9000);
  EXPECT_TRUE(Has(c.Check(), "F051"));
}

TEST(DeepCheck, DamageIsFoundAlsoByTheOneThatGoesOn) {
  TinyRun run({.until = Until::kSealed});
  Flip(run, run.PackFiles().front(), 9000);
  Checker c(run);
  FsckReport r = c.Check(1);
  for (int i = 0; i < 100 && (r.exit_status & kFsckInterrupted) != 0; ++i) r = c.Check(1);
  EXPECT_TRUE(Has(r, "F051")) << Text(r);
}

TEST(DeepCheck, AfterADayItBeginsAnew) {
  TinyRun run;
  Checker c(run);
  ASSERT_EQ(c.Check(1).exit_status, kFsckInterrupted);
  c.clock.wall_ns += 25 * kHourNs;
  EXPECT_EQ(c.Check().bytes_known, 0u);
}

TEST(DeepCheck, ADamagedMemoryIsNone) {
  TinyRun run;
  Checker c(run);
  ASSERT_EQ(c.Check(1).exit_status, kFsckInterrupted);
  const std::string dir = c.cache.path() + "/cache";
  for (const std::string text : {"", "{", "[]", "{\"began_ns\": \"x\", \"known\": {}}"}) {
    const auto names = *run.fs.List(dir);
    for (const std::string& name : names) Spill(dir + "/" + name, AsBytes(text));
    EXPECT_EQ(c.Check(1).bytes_known, 0u) << text;
  }
}

TEST(DeepCheck, ReadsNoFasterThanItWasTold) {
  TinyRun run;
  Checker c(run);
  c.rate = 100'000;
  const uint64_t began = c.clock.now_ns;
  const FsckReport r = c.Check();
  EXPECT_EQ(r.exit_status, 0) << Text(r);
  uint64_t packs = 0;
  for (const std::string& path : run.PackFiles()) packs += run.fs.Stat(path)->size;
  EXPECT_GE((c.clock.now_ns - began) / 1'000'000, packs * 1000 / c.rate / 2) << "ms for " << packs << " bytes of packs alone";
}

TEST(DeepCheck, ARepairThatWasInterruptedWhileItLookedDoesNothing) {
  TinyRun run({.until = Until::kSealed});
  Flip(run, run.PackFiles().front(), 9000);
  Checker c(run);
  const auto before = Tree(run);
  RepairOptions o = Options(/*deep=*/true);
  o.check.threads = 1;
  o.check.stop = &c.stop;
  c.stop = true;
  RealClock clock;
  const RepairReport r = RunRepair(run.fs, clock, run.dir, o);
  EXPECT_EQ(r.exit_status, kFsckInterrupted) << Text(r);
  EXPECT_FALSE(r.acted);
  EXPECT_EQ(Tree(run), before);
}

int Program(const std::string& command) {
  const int status = std::system(command.c_str());
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

// The real program at a byte a second, ended by a real signal.
TEST(DeepCheck, ASignalEndsItWithItsBit) {
  TinyRun run;
  TempDir cache;
  const std::string fsck = "XDG_CACHE_HOME=" + cache.path() + " timeout --preserve-status -s INT 20 " HOLDFAST_BIN_DIR "/fsck.holdfast --deep --threads=1 ";
  EXPECT_EQ(Program(fsck + "--rate=1 " + run.dir + " > " + cache.path() + "/said"), kFsckInterrupted);
  EXPECT_THAT(std::string(AsText(Slurp(cache.path() + "/said"))), HasSubstr("goes on from here, for 24 hours"));
  EXPECT_EQ(Program(fsck + run.dir + " > " + cache.path() + "/said"), 0);
  EXPECT_EQ(Program(HOLDFAST_BIN_DIR "/fsck.holdfast --rate=1GB " + run.dir + " 2> /dev/null"), kFsckUsage);
  EXPECT_EQ(Program(HOLDFAST_BIN_DIR "/fsck.holdfast --deep --rate=fast " + run.dir + " 2> /dev/null"), kFsckUsage);
}

}  // namespace
}  // namespace holdfast::testing
