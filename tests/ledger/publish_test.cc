// SPDX-License-Identifier: Apache-2.0
//
// The one write path: what is left when it ends at each of its points, on the simulated disk (power cut) and on a real one (kill).
#include "ledger/log/publish.h"

#include <sys/wait.h>

#include <cerrno>
#include <cstdio>

#include "ledger/base/sim_file_system.h"
#include "ledger/log/stream.h"
#include "tests/ledger/ledger_testing.h"

namespace holdfast {
namespace {

TEST(Publish, PublishesOnceReadOnlyAndTidiesUp) {
  const TempDir dir;
  PosixFileSystem fs;
  HOLDFAST_ASSERT_OK(fs.MakeDirs(dir.path() + "/tmp"));
  PublishOptions options;
  options.tmp_dir = dir.path() + "/tmp";
  options.cache = PublishOptions::Cache::kDrop;
  const Bytes a = RandomBytes(100000, 1), b = RandomBytes(10, 2);
  const std::string path = dir.path() + "/x";
  HOLDFAST_ASSERT_OK(Publish(fs, path, {a, b}, options));
  Bytes want = a;
  want.insert(want.end(), b.begin(), b.end());
  EXPECT_EQ(*fs.ReadFile(path), want);
  EXPECT_TRUE(fs.List(options.tmp_dir)->empty());
  EXPECT_EQ(fs.Stat(path)->nlink, 1u);
  EXPECT_EQ(std::filesystem::status(path).permissions(), std::filesystem::perms(0444));
  bool tried = false;
  options.reached_link = &tried;
  EXPECT_EQ(Publish(fs, path, {b}, options).code(), ErrorCode::kAlreadyExists);
  EXPECT_TRUE(tried);
  EXPECT_EQ(*fs.ReadFile(path), want);
  options.replace = true;
  HOLDFAST_ASSERT_OK(Publish(fs, path, {b}, options));
  EXPECT_EQ(*fs.ReadFile(path), b);
  EXPECT_TRUE(fs.List(options.tmp_dir)->empty());
}

TEST(Publish, ErrorsBeforeTheLinkAreToldApart) {
  for (const char* op : {"create", "append", "sync", "close"}) {
    SimFileSystem fs;
    HOLDFAST_ASSERT_OK(fs.MakeDirs("/d/tmp"));
    fs.FailOperation(op, 1, ENOSPC);
    bool tried = false;
    PublishOptions options;
    options.tmp_dir = "/d/tmp";
    options.reached_link = &tried;
    EXPECT_EQ(Publish(fs, "/d/x", {AsBytes("abc")}, options).code(), ErrorCode::kResourceExhausted) << op;
    EXPECT_FALSE(tried);
    EXPECT_EQ(*fs.List("/d"), (std::vector<std::string>{"tmp"}));
    EXPECT_TRUE(fs.List("/d/tmp")->empty());
  }
}

// Publishes four files, is cut off at operation `cut`, loses power. Returns what is wrong with what is left, or "".
std::string CutAt(uint64_t cut, uint64_t seed, bool skip_sync, uint64_t* ops) {
  SimFileSystem fs(seed);
  HOLDFAST_EXPECT_OK(fs.MakeDirs("/d/tmp"));
  HOLDFAST_EXPECT_OK(fs.SyncDir("/d"));
  HOLDFAST_EXPECT_OK(fs.SyncDir("/"));
  const uint64_t before = fs.ops();
  uint64_t n = 0;
  fs.SetHook([&](const std::string&, const std::string&) -> Status { return ++n >= cut ? Status(Internal("dead")) : OkStatus(); });
  PublishOptions options;
  options.tmp_dir = "/d/tmp";
  options.skip_sync_for_test = skip_sync;
  const Bytes content = RandomBytes(5000, 3);
  int acknowledged = 0;
  while (acknowledged < 4 && Publish(fs, "/d/" + std::to_string(acknowledged), {content}, options).ok()) ++acknowledged;
  *ops = fs.ops() - before;
  fs.SetHook(nullptr);
  fs.Crash();
  for (int i = 0; i < 4; ++i) {
    const auto file = fs.ReadFile("/d/" + std::to_string(i));
    if (file.code() == ErrorCode::kNotFound && i < acknowledged) return "an acknowledged file is gone";
    if (file.ok() && *file != content) return "a file is there, but not whole";
  }
  return "";
}

TEST(PublishCrash, PowerCutLeavesNoNameOrAWholeFile) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    uint64_t ops = 1;
    for (uint64_t cut = 1; cut <= ops + 1; ++cut) ASSERT_EQ(CutAt(cut, seed, false, &ops), "") << "seed " << seed << ", cut at " << cut;
  }
}

TEST(PublishCrash, TheAlarmRingsWithoutTheFsync) {
  int alarms = 0;
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    uint64_t ops = 1;
    for (uint64_t cut = 1; cut <= ops + 1; ++cut) alarms += CutAt(cut, seed, true, &ops).empty() ? 0 : 1;
  }
  EXPECT_GT(alarms, 50);
}

// ---- a real process, killed at each point of the protocol ----

// Runs the victim; returns how many slots it saw acknowledged (it prints one line each).
int RunVictim(const std::string& run_dir, int slots, const std::string& fail, int* status) {
  const std::string command = "HOLDFAST_FAIL='" + fail + "' " HOLDFAST_LEDGER_VICTIM " " + run_dir + " " + std::to_string(slots);
  FILE* pipe = ::popen(("exec sh -c \"exec env " + command + "\"").c_str(), "r");
  int lines = 0;
  for (int c; (c = std::fgetc(pipe)) != EOF;) lines += c == '\n' ? 1 : 0;
  *status = ::pclose(pipe);
  return lines;
}

struct Left {
  uint32_t notes = 0, slots = 0;
};

Left Look(const std::string& run_dir) {
  PosixFileSystem fs;
  StreamReader reader(fs, RunLayout(run_dir), "stage.00", NonceOf(0x77));
  Left left;
  HOLDFAST_EXPECT_OK(reader.Poll([&](const Record& r, const Slot&) {
    left.notes += r.key.cls == RecordClass::kPhase ? 1 : 0;
    return OkStatus();
  }));
  left.slots = reader.state().next_seq;
  return left;
}

class PublishKill : public testing::TestWithParam<const char*> {};

TEST_P(PublishKill, EachHitLeavesNoSlotOrAWholeOne) {
  for (int hit = 1; hit <= 4; ++hit) {
    const TempDir dir;
    int status = 0;
    const int acknowledged = RunVictim(dir.path(), 5, std::string("publish.") + GetParam() + "@stage.00:" + std::to_string(hit), &status);
    ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << status;
    const Left left = Look(dir.path());
    // Hit 1 is the claim, hit h the note h-1. Linked or not: from P5 on the slot is there, acknowledged or not.
    const bool linked = std::string(GetParam()) >= "P5";
    EXPECT_EQ(left.slots, static_cast<uint32_t>(hit - 1 + (linked ? 1 : 0)));
    EXPECT_EQ(acknowledged, std::max(0, hit - 2));
    EXPECT_GE(left.notes, static_cast<uint32_t>(acknowledged));
    ASSERT_EQ(RunVictim(dir.path(), 3, "", &status), 3) << "another life goes on";
    EXPECT_EQ(status, 0);
    EXPECT_EQ(Look(dir.path()).notes, left.notes + 3);
  }
}

INSTANTIATE_TEST_SUITE_P(Points, PublishKill, testing::Values("P0", "P1", "P2", "P3", "P4", "P5", "P6", "P7"),
                         [](const auto& info) { return std::string(info.param); });

TEST(PublishFail, NoSpaceAtAnyPointIsSurvivedByTheSameProcess) {
  for (const char* point : {"P0", "P1", "P2", "P3", "P4", "P5", "P6", "P7"}) {
    for (const char* error : {"enospc", "eio"}) {
      const TempDir dir;
      int status = 0;
      RunVictim(dir.path(), 5, std::string("publish.") + point + "@stage.00:3=" + error, &status);
      EXPECT_EQ(status, 0) << point << error;
      EXPECT_GE(Look(dir.path()).notes, 5u);
    }
  }
}

}  // namespace
}  // namespace holdfast
