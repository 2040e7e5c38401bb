// SPDX-License-Identifier: Apache-2.0
//
// What simulated histories found in the I/O around the coordinator, each as the smallest case of its own.
#include "daemon/node/job_driver.h"

#include <gtest/gtest.h>

#include <set>

#include "ledger/base/sim_file_system.h"
#include "tests/sim/model.h"

namespace holdfast::sim {
namespace {

constexpr uint64_t kSecondNs = 1'000'000'000;

class HandClock final : public Clock {
 public:
  uint64_t MonotonicNs() const override { return now; }
  uint64_t WallNs() const override { return now; }
  void SleepMs(uint64_t ms) override { now += ms * 1'000'000; }
  uint64_t now = 1000 * kSecondNs;
};

NodeView NodeOf(const std::string& name, uint64_t count) {
  NodeView v;
  v.name = name;
  v.incarnation.bytes.fill(static_cast<uint8_t>(name.back()));
  v.count = count;
  v.memory_bytes = (uint64_t{1} << 40) + count;   // each beat brings news
  v.version = "sim";
  v.numerics = kNumerics;
  return v;
}

void Submit(FileSystem& fs, const Clock& clock, const RunLayout& layout) {
  MakeSource(fs, {.layers = 2, .samples = 2, .cut = {}});
  Nonce uuid = Nonce::Random(), self = Nonce::Random();
  ASSERT_TRUE(fs.MakeDirs(layout.TmpDir(self)).ok());
  ASSERT_TRUE(EnsureFormat(fs, layout, self).ok());
  NewJob job = DescribeJob(fs, {.layers = 2, .samples = 2, .cut = {}}, uuid);
  StreamWriter::Options o;
  o.job = uuid;
  o.claim = {.epoch = 0, .incarnation = self, .node = "operator", .reason = "submit", .pid = 0, .numerics = {}};
  StreamReader reader(fs, layout, RunLayout::JobStream(), uuid);
  const auto writer = StreamWriter::Open(fs, layout, clock, &reader, [](const Record&, const Slot&) { return OkStatus(); }, o, job.records);
  ASSERT_TRUE(writer.ok() && (*writer)->ReleaseStream("submitted").ok());
}

// The first cut takes longer to commit than the coordinator waits before it proposes again, and beats of other nodes wait behind it: they are
// heard only after the coordinator knows its new plan.
TEST(JobDriver, ASlowCommitOfANewCutIsKnownBeforeTheNextBeat) {
  SimFileSystem fs;
  HandClock clock;
  const RunLayout layout("/run");
  Submit(fs, clock, layout);
  JobDriver::Options o;
  o.self.node = "n0";
  o.self.nonce = Nonce::Random();
  o.policy.version = "sim";
  o.policy.gather_ns = kSecondNs;
  JobDriver driver(fs, clock, layout, o);
  ASSERT_TRUE(driver.Refresh().ok());
  ASSERT_TRUE(driver.Claim("coordinate", nullptr).ok());
  const auto nodes = [](uint64_t count) { return std::vector<NodeView>{NodeOf("n0", count), NodeOf("n1", count), NodeOf("n2", count)}; };
  ASSERT_TRUE(driver.Coordinate(nodes(1)).ok());
  ASSERT_TRUE(driver.Coordinate(nodes(2)).ok());
  clock.now += 2 * kSecondNs;
  fs.SetHook([&](const std::string& op, const std::string&) {
    if (op == "link") clock.now += 6 * kSecondNs;
    return OkStatus();
  });
  const auto coordinated = driver.Coordinate(nodes(3));
  ASSERT_TRUE(coordinated.ok()) << coordinated.error().message;
  ASSERT_TRUE(driver.state().assignment().has_value());
  EXPECT_EQ(driver.state().plan().stages.size(), 2u);
  EXPECT_EQ(driver.state().assignment()->number, 0u);
  EXPECT_EQ(driver.state().assignment()->plan, driver.state().plan().number);
}

// Claims a stage's stream as a worker of `node` would, and commits one sample.
void CommitSample(FileSystem& fs, const Clock& clock, const JobDriver& of, const StagePlan& stage, const std::string& node) {
  const RunLayout layout("/run");
  const std::string stream = RunLayout::StageStream(stage.stage);
  StreamReader reader(fs, layout, stream, of.state().job().uuid);
  StreamWriter::Options o;
  o.job = of.state().job().uuid;
  o.claim = {.epoch = 0, .incarnation = Nonce::Random(), .node = node, .reason = "start", .pid = 0, .numerics = kNumerics};
  ASSERT_TRUE(fs.MakeDirs(layout.TmpDir(o.claim.incarnation)).ok());
  const auto writer = StreamWriter::Open(fs, layout, clock, &reader, [](const Record&, const Slot&) { return OkStatus(); }, o);
  ASSERT_TRUE(writer.ok());
  SampleRecord r;
  r.first_layer = stage.first_layer;
  r.last_layer = stage.last_layer;
  r.numerics = kNumerics;
  r.amax.assign(of.state().plan().SitesOf(stage.first_layer, stage.last_layer).size(), 1.0f);
  ASSERT_TRUE((*writer)->Append(r.ToRecords(stage.stage)).ok());
}

JobDriver::Options OptionsOf(const std::string& node) {
  JobDriver::Options o;
  o.self.node = node;
  o.self.nonce = Nonce::Random();
  o.policy.version = "sim";
  o.policy.gather_ns = kSecondNs;
  return o;
}

// Who neither coordinates nor is a deputy reads its own stages only; if it is elected all the same, it reads everything before it decides anything.
TEST(JobDriver, WhoIsElectedOutOfTurnReadsTheWholeJobFirst) {
  SimFileSystem fs;
  HandClock clock;
  const RunLayout layout("/run");
  Submit(fs, clock, layout);
  JobDriver first(fs, clock, layout, OptionsOf("n0")), cold(fs, clock, layout, OptionsOf("n1"));
  ASSERT_TRUE(first.Refresh().ok());
  ASSERT_TRUE(first.Claim("coordinate", nullptr).ok());
  for (uint64_t count = 1; count <= 3; ++count) {
    ASSERT_TRUE(first.Coordinate({NodeOf("n0", count), NodeOf("n1", count)}).ok());
    clock.now += 2 * kSecondNs;
  }
  ASSERT_TRUE(cold.Refresh(JobDriver::Scope::kOwn).ok());
  ASSERT_TRUE(cold.state().assignment().has_value());
  const std::vector<StagePlan> mine = cold.StagesOf("n1"), theirs = cold.StagesOf("n0");
  ASSERT_TRUE(mine.size() == 1 && theirs.size() == 1);
  CommitSample(fs, clock, cold, mine[0], "n1");
  CommitSample(fs, clock, cold, theirs[0], "n0");
  ASSERT_TRUE(cold.Refresh(JobDriver::Scope::kOwn).ok());
  EXPECT_EQ(cold.SamplesDone(mine[0]), 1u);
  EXPECT_EQ(cold.SamplesDone(theirs[0]), 0u);
  JobDriver late(fs, clock, layout, OptionsOf("n1"));
  ASSERT_TRUE(late.Refresh(JobDriver::Scope::kOwn).ok());
  EXPECT_EQ(late.SamplesDone(mine[0]), 1u) << "the first look finds out what is its own, and reads that";
  EXPECT_FALSE(late.state().stages().contains(theirs[0].stage));
  ASSERT_TRUE(cold.Claim("n0 is silent", nullptr).ok());
  ASSERT_TRUE(cold.Coordinate({NodeOf("n1", 4)}).ok());
  EXPECT_EQ(cold.SamplesDone(theirs[0]), 1u);
}

// A job of two layers, and the seats that they are given to by a coordinator that hears these nodes.
std::set<std::string> SeatsGiven(std::vector<NodeView> nodes) {
  SimFileSystem fs;
  HandClock clock;
  const RunLayout layout("/run");
  Submit(fs, clock, layout);
  JobDriver driver(fs, clock, layout, OptionsOf("n0"));
  EXPECT_TRUE(driver.Refresh().ok());
  EXPECT_TRUE(driver.Claim("coordinate", nullptr).ok());
  for (uint64_t count = 1; count <= 4; ++count) {
    for (NodeView& n : nodes) n.count = count;
    EXPECT_TRUE(driver.Coordinate(nodes).ok());
    clock.now += 2 * kSecondNs;
  }
  std::set<std::string> seats;
  for (const Assignment::Entry& e : driver.state().assignment()->stages) seats.insert(SeatName(e.node, e.device));
  return seats;
}

// The model is tiny: what counts is the program, some 0.4 GB on a CPU; on a GPU its context, some 1.3 GB there and as much of the host's.
TEST(JobDriver, EachSeatIsJudgedByTheMemoryModelOfItsProcessor) {
  constexpr uint64_t kMb = 1'000'000;
  const auto node = [](const std::string& name, uint64_t memory) {
    NodeView v = NodeOf(name, 0);
    v.memory_bytes = memory;
    return v;
  };
  const auto gpu = [&](uint64_t memory, uint64_t host) {
    NodeView v = node("gpu", memory);
    v.numerics = "cuda/bf16/sim/libtorch-0";
    v.host_bytes = host;
    v.speed = 100;
    return v;
  };
  using Seats = std::set<std::string>;
  EXPECT_EQ(SeatsGiven({node("cpu", 2000 * kMb), gpu(2000 * kMb, 2000 * kMb)}), Seats{"gpu"});
  EXPECT_EQ(SeatsGiven({node("cpu", 2000 * kMb), gpu(1000 * kMb, 64'000 * kMb)}), Seats{"cpu"}) << "by the CPU's figures it would fit";
  EXPECT_EQ(SeatsGiven({node("cpu", 2000 * kMb), gpu(64'000 * kMb, 1000 * kMb)}), Seats{"cpu"}) << "its host is too small";
  EXPECT_EQ(SeatsGiven({gpu(2000 * kMb, 0)}), Seats{""}) << "both parts lie in the same memory";
  EXPECT_EQ(SeatsGiven({gpu(4000 * kMb, 0)}), Seats{"gpu"});
  NodeView box = node("box", 66'000 * kMb);
  box.devices = {{.name = "cpu", .numerics = kNumerics, .memory_bytes = 300 * kMb}, {.name = "cuda:0", .numerics = "cuda/bf16/sim/libtorch-0", .memory_bytes = 2000 * kMb, .host_bytes = 2000 * kMb}};
  EXPECT_EQ(SeatsGiven({box}), Seats{"box/cuda:0"});
}

}  // namespace
}  // namespace holdfast::sim
