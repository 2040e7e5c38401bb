// SPDX-License-Identifier: Apache-2.0
//
// Who lives, judged from beat files alone: the root is real, the clock and the nodes are ours. Nothing listens anywhere.
#include "jobctl/node_watch.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <functional>

#include "daemon/node/process.h"
#include "ledger/log/stream.h"

namespace holdfast {
namespace {

constexpr uint64_t kMs = 1'000'000;

class HookClock final : public Clock {
 public:
  uint64_t MonotonicNs() const override { return now_; }
  uint64_t WallNs() const override { return now_; }
  void SleepMs(uint64_t ms) override {
    now_ += ms * kMs;
    if (on_sleep) on_sleep();
  }
  std::function<void()> on_sleep;

 private:
  uint64_t now_ = 1'000'000'000;
};

class NodeWatchTest : public testing::Test {
 protected:
  void SetUp() override {
    char dir[] = "/tmp/holdfast-watch-XXXXXX";
    ASSERT_NE(::mkdtemp(dir), nullptr);
    dir_ = dir;
    root_ = dir_ + "/root";
    auto opened = RootSession::Open(root_, RootUse::kWrite, clock_);
    ASSERT_TRUE(opened.ok()) << opened.error().message;
    session_ = std::move(*opened);
  }
  void TearDown() override {
    session_.reset();
    PosixFileSystem fs;
    (void)fs.RemoveTree(dir_);
  }

  // A node of another machine, whose process cannot be looked at from here.
  Incarnation Stranger(const std::string& name) {
    Incarnation i = DescribeThisProcess(name, "holdfastd", "cpu");
    i.hostname = "elsewhere";
    i.machine_id = "0123456789abcdef0123456789abcdef";
    i.boot_id = "another-boot";
    return i;
  }
  void Join(const Incarnation& who, const std::string& release) {
    Roster roster(session_->fs(), session_->layout(), session_->info().uuid);
    ASSERT_TRUE(roster.Refresh().ok());
    StreamWriter::Options o;
    o.job = session_->info().uuid;
    o.claim.incarnation = who.nonce;
    o.claim.node = who.node;
    o.claim.reason = "start";
    auto writer = StreamWriter::Open(session_->fs(), session_->layout().streams(), clock_, roster.ReaderOf(who.node),
                                     [](const Record&, const Slot&) { return OkStatus(); }, o,
                                     {MakeControl({.cls = RecordClass::kIncarnation}, who.ToJson())});
    ASSERT_TRUE(writer.ok()) << writer.error().message;
    if (!release.empty()) {
      ASSERT_TRUE((*writer)->ReleaseStream(release).ok());
    }
    ASSERT_TRUE(session_->Refresh().ok());
  }
  void Beats(const Incarnation& who, uint64_t count) {
    Beat b;
    b.root = session_->info().uuid;
    b.node = who.node;
    b.incarnation = who.nonce;
    b.count = count;
    const std::string path = session_->layout().Beat(who.nonce), text = b.Encode();
    const auto file = session_->fs().Create(path + ".new", 0644);
    ASSERT_TRUE(file.ok());
    ASSERT_TRUE((*file)->Append(AsBytes(text)).ok() && (*file)->Close().ok());
    ASSERT_TRUE(session_->fs().Replace(path + ".new", path).ok());
  }

  HookClock clock_;
  std::string dir_, root_;
  std::unique_ptr<RootSession> session_;
};

TEST_F(NodeWatchTest, ACountThatMovesIsLifeAndOneThatStandsIsNot) {
  const Incarnation moving = Stranger("moving"), standing = Stranger("standing"), mute = Stranger("mute");
  Join(moving, "");
  Join(standing, "");
  Join(mute, "");
  Beats(moving, 7);
  Beats(standing, 100);
  int sleeps = 0;
  clock_.on_sleep = [&] { if (++sleeps == 4) Beats(moving, 8); };
  NodeWatch watch(*session_);
  const NodesSeen seen = watch.Look();
  EXPECT_EQ(seen.answered_by, "");
  ASSERT_EQ(seen.nodes.size(), 3u);
  EXPECT_EQ(seen.Find("moving")->life, NodeLife::kAlive);
  EXPECT_EQ(seen.Find("standing")->life, NodeLife::kSilent);
  EXPECT_EQ(seen.Find("standing")->beat->count, 100u) << "what it said last is known all the same";
  EXPECT_EQ(seen.Find("mute")->life, NodeLife::kSilent);
  EXPECT_EQ(seen.alive(), 1u);
}

TEST_F(NodeWatchTest, FollowingForgetsALifeAfterAWhileAndNeverWaitsAgain) {
  const Incarnation who = Stranger("n1");
  Join(who, "");
  Beats(who, 1);
  clock_.on_sleep = [&] { Beats(who, 2); };
  NodeWatch watch(*session_);
  EXPECT_EQ(watch.Look().alive(), 1u);
  clock_.on_sleep = [] { FAIL() << "only the first look may wait"; };
  EXPECT_EQ(watch.Look().alive(), 1u) << "it moved a moment ago";
  clock_.on_sleep = nullptr;
  clock_.SleepMs(kBeatSilentMs + 1);
  EXPECT_EQ(watch.Look().alive(), 0u);
  Beats(who, 3);
  EXPECT_EQ(watch.Look().alive(), 1u);
}

TEST_F(NodeWatchTest, OnThisMachineTheProcessTableDecidesAtOnce) {
  clock_.on_sleep = [] { FAIL() << "nothing to wait for"; };
  const Incarnation us = DescribeThisProcess("us", "holdfastd", "cpu");
  Incarnation dead = DescribeThisProcess("dead", "holdfastd", "cpu");
  dead.start_ticks += 1;   // the pid was given to another process
  Join(us, "");
  Join(dead, "");
  Beats(dead, 5);
  NodeWatch watch(*session_);
  const NodesSeen seen = watch.Look();
  EXPECT_EQ(seen.Find("us")->life, NodeLife::kAlive);
  EXPECT_EQ(seen.Find("dead")->life, NodeLife::kSilent);
}

TEST_F(NodeWatchTest, GoodbyeIsNotSilence) {
  const Incarnation who = Stranger("n1");
  Join(who, "drain");
  Beats(who, 1);
  clock_.on_sleep = [] { FAIL() << "nothing to wait for"; };
  const NodesSeen seen = NodeWatch(*session_).Look();
  EXPECT_EQ(seen.nodes[0].life, NodeLife::kReleased);
  EXPECT_EQ(seen.nodes[0].known.reason, "drain");
}

TEST_F(NodeWatchTest, ABeatOfAnotherLifeOrGarbageSaysNothing) {
  const Incarnation who = Stranger("n1"), before = Stranger("n1");
  Join(who, "");
  Beats(before, 9);
  const auto file = session_->fs().Create(session_->layout().Beat(who.nonce), 0644);
  ASSERT_TRUE(file.ok() && (*file)->Append(AsBytes("{\"node\":")).ok() && (*file)->Close().ok());
  const NodesSeen seen = NodeWatch(*session_).Look();
  EXPECT_FALSE(seen.nodes[0].beat.has_value());
  EXPECT_EQ(seen.nodes[0].life, NodeLife::kSilent);
}

}  // namespace
}  // namespace holdfast
