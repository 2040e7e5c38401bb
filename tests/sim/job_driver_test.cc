// SPDX-License-Identifier: Apache-2.0
//
// What simulated histories found in the I/O around the coordinator, each as the smallest case of its own.
#include "daemon/node/job_driver.h"

#include <gtest/gtest.h>

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

}  // namespace
}  // namespace holdfast::sim
