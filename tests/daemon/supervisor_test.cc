// SPDX-License-Identifier: Apache-2.0
//
// How a supervisor reads the end of a child and what it does then. The children are scripts: no model, no ledger.
#include "daemon/node/supervisor.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "daemon/transport/sockets.h"

namespace holdfast {
namespace {

class SupervisorTest : public ::testing::Test {
 protected:
  SupervisorTest() {
    char name[] = "/tmp/holdfast-supervisor-XXXXXX";
    dir_ = ::mkdtemp(name);
  }
  ~SupervisorTest() override { std::filesystem::remove_all(dir_); }

  // `life` is what the child does, with $n the number of its life, from 1.
  void Script(const std::string& binary, const std::string& life) {
    const std::string path = dir_ + "/" + binary;
    std::ofstream(path) << "#!/bin/sh\necho x >> " << dir_ << "/lives\nn=$(wc -l < " << dir_ << "/lives)\n" << life << "\n";
    ::chmod(path.c_str(), 0755);
  }
  std::unique_ptr<Supervisor> Make() {
    Supervisor::Options o;
    o.bin_dir = dir_;
    o.node = "n";
    o.drain_ms_max = 300;
    o.last_words_ms = last_words_ms_;
    o.incarnation = incarnation_ = Nonce::Random();
    o.on_event = [this](const Task&, const std::string& text) { events_.push_back(text); };
    auto made = Supervisor::Make(clock_, o);
    EXPECT_TRUE(made.ok());
    return std::move(*made);
  }
  TaskSpec Spec(bool merge = false) {
    TaskSpec spec;
    spec.key = {dir_, merge, StageId(3)};
    spec.plan = {StageId(3), 0, 2};
    spec.size = {.window = 4, .threads = 2};
    spec.device = "cpu";
    spec.reason = "start";
    return spec;
  }
  const Task* RunToEnd(Supervisor& s, const TaskSpec& spec) {
    EXPECT_TRUE(s.Start(spec).ok());
    for (int i = 0; i < 1000 && s.AnyRunning(); ++i) s.Poll(10);
    EXPECT_FALSE(s.AnyRunning());
    return s.Find(spec.key);
  }

  RealClock clock_;
  Nonce incarnation_;             // of the supervisor made last
  uint64_t last_words_ms_ = 50;   // scripts have none
  std::string dir_;
  std::vector<std::string> events_;
};

TEST_F(SupervisorTest, ExitCodesBecomeStates) {
  const std::pair<int, TaskState> cases[] = {{0, TaskState::kDone}, {2, TaskState::kRefused}, {75, TaskState::kFenced}, {1, TaskState::kGaveUp}};
  for (const auto& [code, state] : cases) {
    Script("holdfast-worker", "exit " + std::to_string(code));
    const auto s = Make();
    const Task* t = RunToEnd(*s, Spec());
    ASSERT_NE(t, nullptr);
    EXPECT_EQ(t->state, state) << "exit " << code;
    EXPECT_EQ(t->error.has_value(), state != TaskState::kDone);
  }
}

// On a busy machine the kernel tells of a child's end before the socket has its words.
TEST_F(SupervisorTest, LastWordsThatComeLateAreHeard) {
  Script("holdfast-worker", "exit 2");
  last_words_ms_ = 60'000;
  const auto s = Make();
  ASSERT_TRUE(s->Start(Spec()).ok());
  for (int i = 0; i < 20; ++i) s->Poll(10);
  EXPECT_TRUE(s->AnyRunning()) << "not yet: nobody knows why";
  Context context;
  auto socket = Socket::Open(context, Socket::Kind::kDealer, ControlEndpoint(incarnation_), kControlBytesMax, 1000);
  ASSERT_TRUE(socket.ok());
  WorkerReport words;
  words.kind = WorkerReport::Kind::kFailed;
  words.stage = 3;
  words.error_code = ErrorCodeName(ErrorCode::kInvalidArgument);
  words.error = "model.safetensors: truncated";
  const std::string text = words.Encode();
  for (int i = 0; i < 6000 && s->AnyRunning(); ++i) {
    if (i % 50 == 0) (*socket)->Send({AsBytes(text)});
    s->Poll(10);
  }
  const Task* t = s->Find(Spec().key);
  ASSERT_NE(t, nullptr);
  EXPECT_EQ(t->state, TaskState::kRefused);
  ASSERT_TRUE(t->error.has_value());
  EXPECT_EQ(t->error->message, "model.safetensors: truncated");
}

TEST_F(SupervisorTest, AMergeRunsItsOwnProgram) {
  Script("holdfast-worker", "exit 1");
  Script("holdfast-merge", "exit 0");
  const auto s = Make();
  EXPECT_EQ(RunToEnd(*s, Spec(/*merge=*/true))->state, TaskState::kDone);
}

TEST_F(SupervisorTest, ACrashIsRestartedAtTheSameSizeAndThreeWithoutProgressEndIt) {
  Script("holdfast-worker", "[ $n -ge 3 ] && exit 0; exit 1");
  const auto s = Make();
  const Task* t = RunToEnd(*s, Spec());
  EXPECT_EQ(t->state, TaskState::kDone);
  EXPECT_EQ(t->view.restarts, 2u);
  EXPECT_EQ(t->view.size.window, 4u);
  EXPECT_EQ(t->view.last_death, "exit 1");

  std::filesystem::remove(dir_ + "/lives");
  Script("holdfast-worker", "exit 1");
  const auto other = Make();
  t = RunToEnd(*other, Spec());
  EXPECT_EQ(t->state, TaskState::kGaveUp);
  EXPECT_NE(t->error->message.find("3 times in a row"), std::string::npos) << t->error->message;
}

// A life may commit and be killed before it can say so; what the next one finds in the ledger was progress.
TEST_F(SupervisorTest, WhatALifeCommittedAndDidNotSayCountsWhenTheNextOneSaysIt) {
  Script("holdfast-worker", "while [ $n -eq 2 -a ! -e " + dir_ + "/said ]; do sleep 0.01; done\n[ $n -ge 5 ] && exit 0\nkill -9 $$");
  const auto s = Make();
  ASSERT_TRUE(s->Start(Spec()).ok());
  Context context;
  auto socket = Socket::Open(context, Socket::Kind::kDealer, ControlEndpoint(incarnation_), kControlBytesMax, 1000);
  ASSERT_TRUE(socket.ok());
  WorkerReport report;
  report.stage = 3;
  report.attempt = 1;   // the second life
  report.passed = 5;
  report.samples_total = 77;
  const std::string text = report.Encode();
  for (int i = 0; i < 6000 && s->AnyRunning(); ++i) {
    if (i % 20 == 0) (*socket)->Send({AsBytes(text)});
    s->Poll(10);
    if (s->Find(Spec().key)->view.samples_total == 77) std::ofstream(dir_ + "/said") << "x";
  }
  const Task* t = s->Find(Spec().key);
  EXPECT_EQ(t->state, TaskState::kDone) << (t->error ? t->error->message : "");
  EXPECT_EQ(t->view.restarts, 4u);
}

TEST_F(SupervisorTest, OutOfMemoryMakesTheNextLifeSmaller) {
  Script("holdfast-worker", "[ $n -ge 3 ] && exit 0; exit 71");
  const auto s = Make();
  const Task* t = RunToEnd(*s, Spec());
  EXPECT_EQ(t->state, TaskState::kDone);
  EXPECT_EQ(t->view.out_of_memory, 2u);
  EXPECT_EQ(t->view.size, (WorkerSize{.window = 1, .threads = 1}));
  ASSERT_EQ(events_.size(), 2u);
  EXPECT_NE(events_[0].find("one step smaller"), std::string::npos);
}

TEST_F(SupervisorTest, AStopEndsInStoppedAndOneThatDoesNotListenIsKilled) {
  Script("holdfast-worker", "trap 'exit 75' TERM; while :; do sleep 0.01; done");
  auto s = Make();
  ASSERT_TRUE(s->Start(Spec()).ok());
  while (!std::filesystem::exists(dir_ + "/lives")) s->Poll(10);
  s->Stop(Spec().key);
  for (int i = 0; i < 1000 && s->AnyRunning(); ++i) s->Poll(10);
  EXPECT_EQ(s->Find(Spec().key)->state, TaskState::kStopped);

  Script("holdfast-worker", "trap '' TERM; while :; do sleep 0.01; done");
  std::filesystem::remove(dir_ + "/lives");
  ASSERT_TRUE(s->Start(Spec()).ok());
  while (!std::filesystem::exists(dir_ + "/lives")) s->Poll(10);
  s->StopAll();
  EXPECT_EQ(s->Find(Spec().key)->state, TaskState::kStopped);
  s->Forget(Spec().key);
  EXPECT_EQ(s->Find(Spec().key), nullptr);
}

TEST_F(SupervisorTest, NobodyIsLeftBehind) {
  Script("holdfast-worker", "echo $$ > " + dir_ + "/pid; while :; do sleep 0.01; done");
  {
    const auto s = Make();
    ASSERT_TRUE(s->Start(Spec()).ok());
    EXPECT_EQ(s->Start(Spec()).code(), ErrorCode::kAlreadyExists);
    while (!std::filesystem::exists(dir_ + "/pid") || std::filesystem::file_size(dir_ + "/pid") == 0) s->Poll(10);
  }
  int pid = 0;
  std::ifstream(dir_ + "/pid") >> pid;
  ASSERT_GT(pid, 0);
  EXPECT_EQ(::kill(pid, 0), -1);
}

TEST_F(SupervisorTest, AProgramThatIsNotThereIsSaidSo) {
  const auto s = Make();
  const Task* t = RunToEnd(*s, Spec());
  EXPECT_EQ(t->state, TaskState::kGaveUp);
  EXPECT_NE(t->error->message.find("cannot run"), std::string::npos);
}

TEST_F(SupervisorTest, TheChildsWordsGoToItsLog) {
  Script("holdfast-worker", "echo out; echo err >&2; exit 0");
  const auto s = Make();
  TaskSpec spec = Spec();
  spec.log = dir_ + "/log";
  RunToEnd(*s, spec);
  std::ifstream log(spec.log);
  const std::string text{std::istreambuf_iterator<char>(log), {}};
  EXPECT_EQ(text, "out\nerr\n");
}

}  // namespace
}  // namespace holdfast
