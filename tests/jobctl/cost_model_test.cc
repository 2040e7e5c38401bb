// SPDX-License-Identifier: Apache-2.0
//
// What a job is expected to take: that the ranges are in order, what overlaps and what does not. Numbers are made up, so that each phase can be told.
#include <gtest/gtest.h>

#include "jobctl/cost_model.h"

namespace holdfast {
namespace {

constexpr uint64_t kMs = 1'000'000, kMB = 1'000'000;

LayerProbe SomeLayer() {
  LayerProbe p;
  p.layer_bytes = 100 * kMB;
  p.load_cold_ns = 400 * kMs;
  p.load_ns = 100 * kMs;
  p.load_cpu_ns = 200 * kMs;
  p.forward_ns = {190 * kMs, 200 * kMs, 200 * kMs, 210 * kMs};
  p.evict_ns = 150 * kMs;
  p.evict_cpu_ns = 200 * kMs;
  p.evict_bytes = 28 * kMB;
  p.copy_bytes = 10 * kMB;
  p.copy_ns = 100 * kMs;
  p.start_ns = 500 * kMs;
  return p;
}
const DiskProbe kDisk{1'000 * kMB, 2'000 * kMB, 1'700 * kMB};

class CostModelTest : public ::testing::Test {
 protected:
  StageWork Stage(uint32_t layers, uint32_t samples) const {
    StageWork w;
    w.layer = &layer_;
    w.threads = w.at_once = 2;
    w.layers = w.group = w.evict_layers = layers;
    w.passes = static_cast<double>(layers) * samples;
    w.copy_bytes = w.load_besides = 10 * kMB;
    w.cut_bytes = samples * kMB;
    return w;
  }
  JobWork Job(std::vector<StageWork> stages) const {
    JobWork j;
    j.stages = std::move(stages);
    j.cores = 2;
    j.source = SourcePages::kCached;
    j.merge_bytes = 280 * kMB;
    j.merge_threads = 2;
    return j;
  }
  LayerProbe layer_ = SomeLayer();
};

void ExpectInOrder(const PhaseTimes& t) {
  for (const auto& [phase, s] : t.phases()) {
    EXPECT_LE(0, s.low) << phase;
    EXPECT_LE(s.low, s.high) << phase;
  }
}

TEST_F(CostModelTest, ComputingIsSharedByThoseThatCompute) {
  const PhaseTimes t = EstimateTimes(Job({Stage(10, 64)}), kDisk);
  ExpectInOrder(t);
  EXPECT_LE(t.calibrate.low, 640 * 0.2 / 2);
  EXPECT_GE(t.calibrate.high, 640 * 0.2 / 2);
  EXPECT_LT(t.calibrate.high, 1.5 * 640 * 0.2 / 2);
}

TEST_F(CostModelTest, TwiceTheSamplesTakeTwiceAsLong) {
  const PhaseTimes one = EstimateTimes(Job({Stage(10, 64)}), kDisk), two = EstimateTimes(Job({Stage(10, 128)}), kDisk);
  EXPECT_NEAR(two.calibrate.low / one.calibrate.low, 2, 0.01);
  EXPECT_DOUBLE_EQ(two.evict.high, one.evict.high);
  EXPECT_DOUBLE_EQ(two.load.high, one.load.high);
}

TEST_F(CostModelTest, StagesOnTheSameCoresShareThem) {
  const PhaseTimes whole = EstimateTimes(Job({Stage(10, 64)}), kDisk), halves = EstimateTimes(Job({Stage(5, 64), Stage(5, 64)}), kDisk);
  ExpectInOrder(halves);
  EXPECT_NEAR(halves.calibrate.low, whole.calibrate.low, 1e-9);
  EXPECT_LE(halves.calibrate.high, whole.calibrate.high * 1.1);
}

TEST_F(CostModelTest, StagesOnDevicesOfTheirOwnDoNot) {
  StageWork a = Stage(5, 64), b = Stage(5, 64);
  a.processor = "cuda:0", b.processor = "cuda:1";
  a.own_processor = b.own_processor = true;
  const PhaseTimes whole = EstimateTimes(Job({Stage(10, 64)}), kDisk), apart = EstimateTimes(Job({a, b}), kDisk);
  EXPECT_NEAR(apart.calibrate.low, whole.calibrate.low / 2, 1e-9);
}

TEST_F(CostModelTest, OfAStreamedStageAllButTheFirstGroupIsLoadedBesideComputing) {
  StageWork w = Stage(10, 64);
  const PhaseTimes resident = EstimateTimes(Job({w}), kDisk);
  w.group = 1, w.room_for_two = true;
  const PhaseTimes streamed = EstimateTimes(Job({w}), kDisk);
  ExpectInOrder(streamed);
  EXPECT_LT(streamed.load.high, resident.load.high);
  EXPECT_LT(streamed.evict.high, resident.evict.high);
  EXPECT_NEAR(streamed.calibrate.low, resident.calibrate.low, 1e-9);       // all of it may hide behind computing
  EXPECT_GT(streamed.calibrate.high, resident.calibrate.high);             // or on these cores take its time
  w.own_processor = true;
  const PhaseTimes apart = EstimateTimes(Job({w}), kDisk);
  EXPECT_LT(apart.calibrate.high, streamed.calibrate.high);
}

TEST_F(CostModelTest, WhatIsDoneBesideComputingIsNeitherWaitedForNorLeftForTheEnd) {
  StageWork w = Stage(10, 64);
  w.group = 1, w.room_for_two = true;
  const PhaseTimes loaded = EstimateTimes(Job({w}), kDisk);
  w.copies_early = true;
  const PhaseTimes copied = EstimateTimes(Job({w}), kDisk);
  EXPECT_LT(copied.evict.high, loaded.evict.high);
  EXPECT_GT(copied.calibrate.high, loaded.calibrate.high);
  w.copies_early = w.room_for_two = false;
  EXPECT_GT(EstimateTimes(Job({w}), kDisk).calibrate.low, loaded.calibrate.low);
}

TEST_F(CostModelTest, WhatIsDoneTakesNoTime) {
  StageWork w = Stage(10, 64);
  w.passes = 0;
  w.evict_layers = 0;
  w.copy_bytes = 0;
  const PhaseTimes t = EstimateTimes(Job({w}), kDisk);
  EXPECT_EQ(t.load.high, 0);
  EXPECT_EQ(t.calibrate.high, 0);
  EXPECT_EQ(t.evict.high, 0);
  EXPECT_GT(t.merge.high, 0);
  EXPECT_EQ(PhaseTimesJson(t).size(), 1u);
}

TEST_F(CostModelTest, ASourceOnDiskIsReadFromThere) {
  JobWork j = Job({Stage(10, 64)});
  const double cached = EstimateTimes(j, kDisk).load.low;
  j.source = SourcePages::kOnDisk;
  EXPECT_GT(EstimateTimes(j, kDisk).load.low, cached + 1);
}

TEST_F(CostModelTest, ASlowDiskIsTheMergesLimit) {
  const DiskProbe slow{10 * kMB, 2'000 * kMB, 1'700 * kMB};
  EXPECT_GT(EstimateTimes(Job({Stage(10, 64)}), slow).merge.low, 0.5 * 28);
}

TEST_F(CostModelTest, TheScanOfTheCheckIsPartOfIt) {
  JobWork j = Job({Stage(10, 64)});
  j.checked = {2, 2};
  EXPECT_EQ(EstimateTimes(j, kDisk).check.high, 2);
  j.scan_bytes = j.scan_largest_file = 1000 * kMB;
  EXPECT_GT(EstimateTimes(j, kDisk).check.low, 2);
}

TEST(FormatRangeTest, SaysBothEndsOnce) {
  EXPECT_EQ(FormatRange({100, 130}), "1 min 40 s to 2 min 10 s");
  EXPECT_EQ(FormatRange({0.62, 0.91}), "0.6 s to 0.9 s");
  EXPECT_EQ(FormatRange({0.5, 0.5}), "0.5 s");
  EXPECT_EQ(FormatRange({9.9, 12.3}), "9.9 s to 12 s");
}

// ---- what a probe says, as it is read back ----

TEST(LayerProbeTest, ComesBackAsItWas) {
  const LayerProbe p = SomeLayer();
  const auto back = LayerProbe::FromJson(p.ToJson(), "p");
  ASSERT_TRUE(back.ok()) << back.error().message;
  EXPECT_EQ(back->ToJson(), p.ToJson());
}

TEST(LayerProbeTest, NothingThatIsNoMeasureIsBelieved) {
  const Json good = SomeLayer().ToJson();
  for (const auto& [field, value] : good.items()) {
    Json j = good;
    j.erase(field);
    EXPECT_FALSE(LayerProbe::FromJson(j, "p").ok()) << field << " missing";
    for (const Json& bad : {Json(-1), Json(1.5), Json("7"), Json(nullptr), Json(UINT64_MAX), Json(std::nan(""))}) {
      j[field] = bad;
      EXPECT_FALSE(LayerProbe::FromJson(j, "p").ok()) << field << " = " << bad;
    }
  }
  for (const char* field : {"layer_bytes", "load_ns", "evict_ns", "copy_ns"}) {   // divided by
    Json j = good;
    j[field] = 0;
    EXPECT_FALSE(LayerProbe::FromJson(j, "p").ok()) << field;
  }
  for (const Json& bad : {Json::array(), Json::array({0}), Json::array({"1"}), Json(std::vector<int>(kForwardTimesMax + 1, 5))}) {
    Json j = good;
    j["forward_ns"] = bad;
    EXPECT_FALSE(LayerProbe::FromJson(j, "p").ok());
  }
  EXPECT_FALSE(LayerProbe::FromJson(Json(), "p").ok());
}

TEST(DiskProbeTest, NothingThatIsNoRateIsBelieved) {
  const Json good = kDisk.ToJson();
  ASSERT_TRUE(DiskProbe::FromJson(good, "d").ok());
  for (const auto& [field, value] : good.items()) {
    for (const Json& bad : {Json(0), Json(-1), Json(1.5), Json(UINT64_MAX), Json(std::nan("")), Json("1")}) {
      Json j = good;
      j[field] = bad;
      EXPECT_FALSE(DiskProbe::FromJson(j, "d").ok()) << field << " = " << bad;
    }
  }
}

TEST(LayerQuestionTest, IsReadBackAndChecked) {
  const LayerQuestion q{.source = "/m", .device = "cuda:1", .tokens = 512, .threads = 16, .at_once = 4};
  const auto back = LayerQuestion::Decode(q.Encode());
  ASSERT_TRUE(back.ok()) << back.error().message;
  EXPECT_EQ(back->Encode(), q.Encode());
  LayerQuestion none = q;
  none.tokens = 0;
  EXPECT_FALSE(LayerQuestion::Decode(none.Encode()).ok());
  EXPECT_FALSE(LayerQuestion::Decode("{}").ok());
  EXPECT_FALSE(LayerQuestion::Decode("not JSON").ok());
}

}  // namespace
}  // namespace holdfast
