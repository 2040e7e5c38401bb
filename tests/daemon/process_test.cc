// SPDX-License-Identifier: Apache-2.0
//
// Processes as a node sees them: who lives, how a child ended, whose OOM kills count.
#include "daemon/node/process.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

namespace holdfast {
namespace {

std::optional<ChildEnd> WaitFor(pid_t pid) {
  for (int i = 0; i < 1000; ++i) {
    if (auto end = ReapChild(pid)) return end;
    ::usleep(10'000);
  }
  return std::nullopt;
}

TEST(Process, ThisProcessIsAliveAndAnOlderPidOfTheSameNumberIsNot) {
  Incarnation me = DescribeThisProcess("n", "test", "cpu");
  EXPECT_EQ(ProbeIncarnation(me), Liveness::kAlive);
  me.start_ticks -= 1;
  EXPECT_EQ(ProbeIncarnation(me), Liveness::kDead);
}

TEST(Process, AnotherBootOfThisMachineMayBeItsCloneAndAnotherMachineCannotBeTold) {
  Incarnation me = DescribeThisProcess("n", "test", "cpu");
  me.boot_id = "another boot";
  EXPECT_EQ(ProbeIncarnation(me), Liveness::kRebooted);
  me.hostname = "another-host";
  me.machine_id = "another machine";
  EXPECT_EQ(ProbeIncarnation(me), Liveness::kElsewhere);
}

TEST(Process, ChildrenEndWithCodeOrSignal) {
  const auto ok = SpawnChild("/bin/true", "x", {});
  ASSERT_TRUE(ok.ok());
  const auto end = WaitFor(*ok);
  ASSERT_TRUE(end.has_value());
  EXPECT_TRUE(end->exited);
  EXPECT_EQ(end->code, 0);
  const auto sleeper = SpawnChild("/bin/sleep", "60", {});
  ASSERT_TRUE(sleeper.ok());
  ::kill(*sleeper, SIGKILL);
  const auto killed = WaitFor(*sleeper);
  ASSERT_TRUE(killed.has_value());
  EXPECT_FALSE(killed->exited);
  EXPECT_EQ(killed->code, SIGKILL);
}

TEST(Process, AMissingProgramIsExitCode127) {
  const auto pid = SpawnChild("/no/such/program", "x", {});
  ASSERT_TRUE(pid.ok());
  EXPECT_EQ(WaitFor(*pid)->code, 127);
}

// A stranger's OOM kill elsewhere on the machine once made a plain SIGKILL look like one of ours: where the own cgroup has a counter,
// the machine's is not looked at.
TEST(Process, OomKillsOfStrangersDoNotCount) {
  const OomCounters c = ReadOomCounters();
  EXPECT_TRUE(c.cgroup == 0 || c.machine == 0);
  EXPECT_EQ(c, ReadOomCounters());
}

}  // namespace
}  // namespace holdfast
