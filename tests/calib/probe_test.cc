// SPDX-License-Identifier: Apache-2.0
//
// A layer that is measured: every number there and read back, nothing written, and an error where the source cannot be read. Times are not judged.
#include <gtest/gtest.h>

#include <algorithm>

#include "calib/probe/probe.h"
#include "ledger/base/forwarding_file_system.h"
#include "tests/calib/random_model.h"

namespace holdfast {
namespace {

// Any attempt to write is remembered and refused.
class ReadOnly final : public ForwardingFileSystem {
 public:
  using ForwardingFileSystem::ForwardingFileSystem;
  Result<std::unique_ptr<WritableFile>> Create(const std::string& path, uint32_t) override { return Refuse(path); }
  Status Link(const std::string&, const std::string& to) override { return Refuse(to); }
  Status MakeDirs(const std::string& path) override { return Refuse(path); }
  bool tried = false;

 private:
  Error Refuse(const std::string& path) {
    tried = true;
    return Internal("a probe writes " + path);
  }
};

class ProbeTest : public ::testing::TestWithParam<uint32_t> {};

TEST_P(ProbeTest, MeasuresEverythingAndWritesNothing) {
  RandomShape shape;
  shape.layers = GetParam();
  const RandomModel model(shape);
  PosixFileSystem posix;
  ReadOnly fs(posix);
  const RealClock clock;
  const auto probe = ProbeLayer(fs, clock, {.source = model.dir, .device = "cpu", .tokens = 16, .threads = 2, .at_once = 3});
  ASSERT_TRUE(probe.ok()) << probe.error().message;
  EXPECT_FALSE(fs.tried);
  EXPECT_GE(probe->forward_ns.size(), 3u * 3u);
  EXPECT_TRUE(std::is_sorted(probe->forward_ns.begin(), probe->forward_ns.end()));
  const uint64_t linears = 128 * (128 + 2 * 64) + 128 * 128 + 3 * 128 * 256, norms = 2 * 128;
  EXPECT_EQ(probe->layer_bytes, 2 * (linears + norms));
  EXPECT_GT(probe->evict_bytes, linears / 2);
  EXPECT_GT(probe->rss_peak_bytes, probe->layer_bytes);
  const auto back = LayerProbe::FromJson(probe->ToJson(), "probe");
  ASSERT_TRUE(back.ok()) << back.error().message;
  EXPECT_EQ(back->ToJson(), probe->ToJson());
}

INSTANTIATE_TEST_SUITE_P(Layers, ProbeTest, ::testing::Values(1u, 2u, 5u));   // of one layer it is the first, which takes tokens

TEST(ProbeErrors, SayWhatCannotBeRead) {
  PosixFileSystem fs;
  const RealClock clock;
  const auto probe = ProbeLayer(fs, clock, {.source = "/nowhere", .device = "cpu", .tokens = 16, .threads = 1, .at_once = 1});
  ASSERT_FALSE(probe.ok());
  EXPECT_NE(probe.error().message.find("/nowhere"), std::string::npos);
}

TEST(ProbeErrors, SayWhichDeviceThereIsNot) {
  const RandomModel model({});
  PosixFileSystem fs;
  const RealClock clock;
  EXPECT_EQ(ProbeLayer(fs, clock, {.source = model.dir, .device = "tpu", .tokens = 16, .threads = 1, .at_once = 1}).code(), ErrorCode::kInvalidArgument);
}

}  // namespace
}  // namespace holdfast
