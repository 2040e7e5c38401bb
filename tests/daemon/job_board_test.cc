// SPDX-License-Identifier: Apache-2.0
//
// What a coordinator is told of the nodes, and when a node takes the role of another.
#include "daemon/holdfastd/job_board.h"

#include <gtest/gtest.h>

#include "ledger/base/forwarding_file_system.h"
#include "ledger/base/sim_file_system.h"
#include "ledger/records/this_process.h"
#include "tests/ledger/ledger_testing.h"

namespace holdfast {
namespace {

Beat SomeBeat() {
  Beat b;
  b.node = "n1";
  b.incarnation = Nonce::Random();
  b.count = 7;
  b.memory_bytes = 1 << 20;
  b.speed = 3;
  b.version = "1.2";
  b.numerics = "cpu/f32";
  return b;
}

TEST(JobBoard, ABeatIsToldAsItIs) {
  const Beat b = SomeBeat();
  const NodeView v = ViewOf(b);
  EXPECT_EQ(v.name, b.node);
  EXPECT_EQ(v.incarnation, b.incarnation);
  EXPECT_EQ(v.count, b.count);
  EXPECT_EQ(v.memory_bytes, b.memory_bytes);
  EXPECT_EQ(v.speed, b.speed);
  EXPECT_EQ(v.version, b.version);
  EXPECT_EQ(v.numerics, b.numerics);
  EXPECT_FALSE(v.draining || v.paused || v.storage_stalled);
}

TEST(JobBoard, DevicesAreToldWithWhatTheyMayTakeOfTheirHost) {
  Beat b = SomeBeat();
  b.host_bytes = 5;
  b.devices = {{"cpu", "cpu/f32", 100, 0, 0}, {"cuda:0", "cuda/bf16", 200, 7, 5}};
  const NodeView v = ViewOf(b);
  EXPECT_EQ(v.host_bytes, 5u);
  const std::vector<NodeView> seats = SeatsOf(v);
  ASSERT_EQ(seats.size(), 2u);
  EXPECT_EQ(seats[0].speed, 1u);
  EXPECT_EQ(seats[0].host_bytes, 0u);
  EXPECT_EQ(seats[1].numerics, "cuda/bf16");
  EXPECT_EQ(seats[1].memory_bytes, 200u);
  EXPECT_EQ(seats[1].host_bytes, 5u);
}

// A node that speaks but waits for the directory cannot commit: the coordinator must hear of it, or its stage stays there.
TEST(JobBoard, ANodeThatWaitsForTheDirectoryIsToldAsStalled) {
  Beat b = SomeBeat();
  b.storage_stalled_ms = 15'000;
  EXPECT_TRUE(ViewOf(b).storage_stalled);
  b = SomeBeat();
  b.draining = true;
  EXPECT_TRUE(ViewOf(b).draining);
  b = SomeBeat();
  b.paused = true;
  EXPECT_TRUE(ViewOf(b).paused);
}

constexpr uint64_t kSecondNs = 1'000'000'000;
constexpr char kConfig[] = R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "vocab_size": 256,
  "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5})";

class HandClock final : public Clock {
 public:
  uint64_t MonotonicNs() const override { return now; }
  uint64_t WallNs() const override { return now; }
  void SleepMs(uint64_t) override {}
  uint64_t now = 100 * kSecondNs;
};

// A directory in which each look at a job takes eight seconds: longer than the silence after which a coordinator may be replaced.
class SlowJobs final : public ForwardingFileSystem {
 public:
  SlowJobs(FileSystem& fs, HandClock& clock, std::string jobs) : ForwardingFileSystem(fs), clock_(clock), jobs_(std::move(jobs)) {}
  Result<FileInfo> Stat(const std::string& path) override { return Slow(path), fs_.Stat(path); }
  Result<std::vector<std::string>> List(const std::string& path) override { return Slow(path), fs_.List(path); }
  Result<std::unique_ptr<ReadableFile>> Open(const std::string& path) override { return Slow(path), fs_.Open(path); }
  void NextLook() { slow_ = true; }

 private:
  void Slow(const std::string& path) {
    if (slow_ && path.starts_with(jobs_)) clock_.now += 8 * kSecondNs;
    slow_ = slow_ && !path.starts_with(jobs_);
  }
  HandClock& clock_;
  std::string jobs_;
  bool slow_ = false;
};

// n1 coordinates a job; n2 looks at it through a slow directory.
struct TwoNodes {
  SimFileSystem fs{1};
  HandClock clock;
  RootLayout layout{"/root"};
  SlowJobs slow{fs, clock, layout.JobsDir()};
  Nonce root, job = NonceOf(7);
  std::unique_ptr<Membership> n1, n2;
  NodeLog log{clock, layout, "n2"};
  std::unique_ptr<JobBoard> board;

  TwoNodes() {
    root = EnsureRoot(fs, layout, NonceOf(1))->uuid;
    n1 = Join("n1");
    n2 = Join("n2");
    Submit();
    board = std::make_unique<JobBoard>(slow, clock, layout, root, *n2, log, JobBoard::Options{.policy = {}, .notify = false});
  }
  std::unique_ptr<Membership> Join(const std::string& name) {
    auto joined = Membership::Join(fs, clock, {.layout = layout, .root = root, .self = DescribeThisProcess(name, "holdfastd", "cpu")});
    HOLDFAST_EXPECT_OK(joined);
    return std::move(joined).value();
  }
  void Submit() {
    const RunLayout run(layout.JobDir(JobIdOf(job)));
    const Incarnation& self = n1->self();
    HOLDFAST_EXPECT_OK(fs.MakeDirs(run.TmpDir(self.nonce)));
    HOLDFAST_EXPECT_OK(EnsureFormat(fs, run, self.nonce));
    StreamWriter::Options o;
    o.job = job;
    o.claim = {.epoch = 0, .incarnation = self.nonce, .node = "n1", .reason = "coordinate", .pid = self.pid, .numerics = {}};
    StreamReader reader(fs, run, RunLayout::JobStream(), job);
    JobSpec spec = SmallJob(job, 1);
    spec.config = kConfig;
    HOLDFAST_EXPECT_OK(StreamWriter::Open(fs, run, clock, &reader, nullptr, o,
                                          {MakeControl({.cls = RecordClass::kJob}, spec.ToJson()),
                                           MakeControl({.cls = RecordClass::kPlan}, SmallPlan(1, {{StageId(0), 0, 1}}).ToJson()),
                                           MakeControl({.cls = RecordClass::kIncarnation}, self.ToJson())}));
    QueueRecord q;
    q.job = JobIdOf(job);
    q.name = "night";
    Queue queue(fs, layout, root);
    HOLDFAST_EXPECT_OK(queue.Refresh());
    HOLDFAST_EXPECT_OK(queue.Append(clock, self, q, [](const Queue&) { return OkStatus(); }));
  }
  std::string Owner() {
    StreamReader reader(fs, RunLayout(layout.JobDir(JobIdOf(job))), RunLayout::JobStream(), job);
    HOLDFAST_EXPECT_OK(reader.Poll(nullptr));
    return reader.state().claim.node;
  }
  void TurnOfN2() {
    clock.now += kSecondNs;
    n2->Listen();
    n2->Speak({});
    slow.NextLook();
    HOLDFAST_EXPECT_OK(board->Look());
  }
};

// Over a real NFS server, a node took the role from a coordinator that was alive: what that one had said during a long look at the job was
// waiting to be heard.
TEST(JobBoard, WhoIsHeldUpByTheDirectoryDoesNotTakeOthersForSilent) {
  TwoNodes t;
  for (int turn = 0; turn < 10; ++turn) {
    t.n1->Speak({});
    t.TurnOfN2();
    ASSERT_EQ(t.Owner(), "n1") << "turn " << turn;
  }
  for (int turn = 0; turn < 10 && t.Owner() == "n1"; ++turn) t.TurnOfN2();
  EXPECT_EQ(t.Owner(), "n2") << "n1 is silent for long";
}

TEST(JobBoard, ACoordinatorThatWaitsForTheDirectoryIsReplaced) {
  TwoNodes t;
  const auto turn = [&](uint64_t stalled_ms) {
    Beat beat;
    beat.storage_stalled_ms = stalled_ms;
    t.n1->Speak(beat);
    t.TurnOfN2();
  };
  for (int i = 0; i < 4; ++i) turn(0);
  ASSERT_EQ(t.Owner(), "n1");
  for (int i = 0; i < 10 && t.Owner() == "n1"; ++i) turn(20'000);
  EXPECT_EQ(t.Owner(), "n2");
}

}  // namespace
}  // namespace holdfast
