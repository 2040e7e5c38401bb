// SPDX-License-Identifier: Apache-2.0
//
// What a run plans with: resident or streamed, within --memory, within the device, or not at all.
#include <gtest/gtest.h>

#include "export/format/hf_config.h"
#include "jobctl/preflight.h"
#include "jobctl/run_plan.h"
#include "ledger/base/json.h"

namespace holdfast {
namespace {

constexpr uint32_t kLayers = 8, kSeqLen = 512, kSamples = 16;

class ResourcesTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto config = ParseJson(R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192,
      "num_hidden_layers": 8, "num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": 4096, "max_position_embeddings": 2048,
      "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": false, "torch_dtype": "bfloat16"})", "config");
    ASSERT_TRUE(config.ok());
    const auto spec = ParseDecoder(*config, "config");
    ASSERT_TRUE(spec.ok()) << spec.error().message;
    decoder_ = *spec;
    const auto plan = DescribeModel(decoder_, Recipe::kNvfp4);
    ASSERT_TRUE(plan.ok()) << plan.error().message;
    plan_ = *plan;
    plan_.stages = {{StageId(0), 0, kLayers}};
    job_.samples = kSamples;
    job_.seq_len = kSeqLen;
    job_.shard_bytes = 5'000'000'000;
    memory_ = PlanMemory(decoder_, plan_, 0, kLayers, kSeqLen, MatmulDtype::kBf16);
  }
  Result<ResourcePlan> Plan(std::optional<uint64_t> memory, const Device& device = {"cpu", "cpu/bf16/test", MatmulDtype::kBf16, 0}) const {
    RunOptions options;
    options.memory = memory;
    return PlanResources(options, decoder_, plan_, job_, {device}, 2);
  }

  DecoderSpec decoder_;
  holdfast::Plan plan_;
  JobSpec job_;
  MemoryPlan memory_;
};

TEST_F(ResourcesTest, WhatFitsIsResident) {
  const auto r = Plan(uint64_t{64} << 30);
  ASSERT_TRUE(r.ok()) << r.error().message;
  EXPECT_FALSE(r->stages[0].streamed());
  EXPECT_EQ(r->stages[0].size, PreferredSize(2, kLayers, 0));
  EXPECT_EQ(r->memory_needed, r->stages[0].memory_bytes());
}

TEST_F(ResourcesTest, WhatDoesNotFitIsStreamedAndNeedsDiskForItsCuts) {
  const auto resident = Plan(uint64_t{64} << 30), streamed = Plan(memory_.Total(2, 2, 4));
  ASSERT_TRUE(resident.ok() && streamed.ok());
  EXPECT_TRUE(streamed->stages[0].streamed());
  EXPECT_EQ(streamed->stages[0].size, (WorkerSize{2, 2, 4}));
  EXPECT_LE(streamed->memory_needed, streamed->memory_allowed);
  EXPECT_EQ(streamed->disk_run - resident->disk_run, 2u * kSamples * kSeqLen * 2048 * 2);   // before and behind one group
}

TEST_F(ResourcesTest, TheFloorIsOneLayerAndTheRefusalNamesIt) {
  const uint64_t floor = memory_.Total(1, 1, 1);
  const auto least = Plan(floor);
  ASSERT_TRUE(least.ok()) << least.error().message;
  EXPECT_EQ(least->stages[0].size, (WorkerSize{1, 1, 1}));
  const auto below = Plan(floor - 1);
  ASSERT_EQ(below.code(), ErrorCode::kInvalidArgument);
  EXPECT_NE(below.error().message.find(std::to_string(floor) + " bytes"), std::string::npos) << below.error().message;
}

TEST_F(ResourcesTest, WhereTheCutsOfAllSamplesFitTheyStayInMemory) {
  const auto r = Plan(memory_.Total(2, 2, 4, kSamples));
  ASSERT_TRUE(r.ok()) << r.error().message;
  EXPECT_GE(r->stages[0].size.layers, 4u);
  EXPECT_LE(r->memory_needed, r->memory_allowed);
  const auto wide = Plan(memory_.Total(2, 2, kLayers - 1, kSamples));
  ASSERT_TRUE(wide.ok()) << wide.error().message;
  EXPECT_EQ(wide->stages[0].size.cuts, wide->stages[0].streamed() ? kSamples : 0u);
}

TEST_F(ResourcesTest, ADeviceWithMemoryOfItsOwnIsTheLimit) {
  const MemoryPlan on_gpu = PlanMemory(decoder_, plan_, 0, kLayers, kSeqLen, MatmulDtype::kBf16, Processor::kGpu);
  const Device gpu{"cuda:0", "cuda/bf16/test", MatmulDtype::kBf16, on_gpu.Total(2, 2, 5) / kMemoryShare * 100 + 100};
  const auto r = Plan(std::nullopt, gpu);
  ASSERT_TRUE(r.ok()) << r.error().message;
  EXPECT_TRUE(r->stages[0].streamed());
  EXPECT_LE(r->memory_needed, gpu.memory_bytes);
  EXPECT_GT(r->memory_host, 0u);
}

TEST_F(ResourcesTest, ADeviceBelowTheFloorIsRefusedWithTheFloor) {
  const uint64_t floor = PlanMemory(decoder_, plan_, 0, kLayers, kSeqLen, MatmulDtype::kBf16, Processor::kGpu).Total(1, 1, 1);
  const Device gpu{.name = "cuda:1", .numerics = "cuda/bf16/test", .matmul = MatmulDtype::kBf16, .memory_bytes = floor - 1, .total_bytes = 2 * floor};
  const auto r = Plan(std::nullopt, gpu);
  ASSERT_EQ(r.code(), ErrorCode::kInvalidArgument);
  EXPECT_NE(r.error().message.find("--device cuda:1"), std::string::npos) << r.error().message;
  EXPECT_NE(r.error().message.find(std::to_string(floor) + " bytes"), std::string::npos) << r.error().message;
  EXPECT_NE(r.error().message.find("free of"), std::string::npos) << r.error().message;
}

TEST_F(ResourcesTest, EachDeviceHasItsOwnMemory) {
  plan_.stages = {{StageId(0), 0, 4}, {StageId(1), 4, 8}};
  const uint64_t need = PlanMemory(decoder_, plan_, 0, 4, kSeqLen, MatmulDtype::kBf16, Processor::kGpu).Total(2, 2, 4) / 95 * 100 + 100;
  const uint64_t least = PlanMemory(decoder_, plan_, 4, 8, kSeqLen, MatmulDtype::kBf16, Processor::kGpu).Total(1, 1, 2) / 95 * 100 + 100;
  const std::vector<Device> gpus = {{.name = "cuda:0", .numerics = "n", .matmul = MatmulDtype::kBf16, .memory_bytes = need, .total_bytes = need},
                                    {.name = "cuda:1", .numerics = "n", .matmul = MatmulDtype::kBf16, .memory_bytes = least, .total_bytes = need}};
  const auto r = PlanResources({}, decoder_, plan_, job_, gpus, 2);
  ASSERT_TRUE(r.ok()) << r.error().message;
  EXPECT_EQ(r->stages[0].device, "cuda:0");
  EXPECT_EQ(r->stages[1].device, "cuda:1");
  EXPECT_FALSE(r->stages[0].streamed());      // the room that the other lacks is not its loss
  EXPECT_TRUE(r->stages[1].streamed());
  EXPECT_FALSE(r->tight);
}

TEST_F(ResourcesTest, DevicesOfTheMachineShareItsMemory) {
  plan_.stages = {{StageId(0), 0, 4}, {StageId(1), 4, 8}};
  const std::vector<Device> cpus = {{.name = "cpu:0", .numerics = "n", .matmul = MatmulDtype::kBf16}, {.name = "cpu:1", .numerics = "n", .matmul = MatmulDtype::kBf16}};
  RunOptions options;
  options.memory = PlanMemory(decoder_, plan_, 0, 4, kSeqLen, MatmulDtype::kBf16).Total(2, 2, 4) * 3 / 2;
  const auto r = PlanResources(options, decoder_, plan_, job_, cpus, 2);
  ASSERT_TRUE(r.ok()) << r.error().message;
  EXPECT_LE(r->memory_needed, *options.memory);
  EXPECT_EQ(r->memory_allowed, *options.memory);
  EXPECT_EQ(r->stages[0].size, r->stages[1].size);
}

TEST_F(ResourcesTest, MoreStagesThanDevicesAreSpread) {
  plan_.stages = {{StageId(0), 0, 3}, {StageId(1), 3, 6}, {StageId(2), 6, 8}};
  const std::vector<Device> gpus = {{.name = "cuda:0", .numerics = "n", .matmul = MatmulDtype::kBf16, .memory_bytes = uint64_t{64} << 30, .total_bytes = uint64_t{64} << 30},
                                    {.name = "cuda:1", .numerics = "n", .matmul = MatmulDtype::kBf16, .memory_bytes = uint64_t{64} << 30, .total_bytes = uint64_t{64} << 30}};
  const auto r = PlanResources({}, decoder_, plan_, job_, gpus, 2);
  ASSERT_TRUE(r.ok()) << r.error().message;
  EXPECT_EQ(r->stages[0].device + " " + r->stages[1].device + " " + r->stages[2].device, "cuda:0 cuda:1 cuda:0");
}

// The time of two stages on one CPU is that of one with all layers; on two GPUs it is not.
TEST_F(ResourcesTest, SeatsOfOneCpuShareItsCores) {
  plan_.stages = {{StageId(0), 0, 4}, {StageId(1), 4, 8}};
  const std::vector<std::vector<int32_t>> tokens(kSamples, std::vector<int32_t>(kSeqLen, 1));
  LayerProbe layer;
  layer.forward_ns = {1'000'000'000};
  layer.layer_bytes = layer.copy_bytes = 1;
  const auto processors = [&](const std::string& first, const std::string& second, uint64_t memory) {
    const std::vector<Device> devices = {{.name = first, .numerics = "n", .memory_bytes = memory}, {.name = second, .numerics = "n", .memory_bytes = memory}};
    const auto r = PlanResources({}, decoder_, plan_, job_, devices, 2);
    EXPECT_TRUE(r.ok()) << r.error().message;
    const PlanSubject subject{.decoder = &decoder_, .plan = &plan_, .job = &job_, .tokens = &tokens, .device = &devices.front(), .devices = &devices, .threads = 2, .run_dir = "/"};
    const MeasuredLayers layers = {{"n", layer}};
    const JobWork work = WorkOf(subject, *r, layers);
    return std::pair(work.stages[0].processor, work.stages[1].processor);
  };
  EXPECT_EQ(processors("cpu:0", "cpu:1", 0), std::pair(std::string("cpu"), std::string("cpu")));
  EXPECT_EQ(processors("cuda:0", "cuda:1", uint64_t{64} << 30), std::pair(std::string("cuda:0"), std::string("cuda:1")));
}

TEST_F(ResourcesTest, AlikeDevicesGetEqualStagesAndUnlikeOnesMakeTheJobAnyNumerics) {
  std::vector<Device> gpus = {{.name = "cuda:0", .numerics = "n", .matmul = MatmulDtype::kBf16, .memory_bytes = 1000, .total_bytes = 1100},
                              {.name = "cuda:1", .numerics = "n", .matmul = MatmulDtype::kBf16, .memory_bytes = 990, .total_bytes = 1100}};
  const auto cut = CutForDevices({}, decoder_, plan_, kSeqLen, gpus, 2);
  ASSERT_TRUE(cut.ok()) << cut.error().message;
  EXPECT_EQ(cut->ranges, (std::vector<LayerRange>{{0, 4}, {4, 8}}));
  EXPECT_EQ(NumericsOf(gpus), "n");
  gpus[1].numerics = "m";
  EXPECT_EQ(NumericsOf(gpus), kAnyNumerics);
}

}  // namespace
}  // namespace holdfast
