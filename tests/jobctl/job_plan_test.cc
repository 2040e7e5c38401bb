// SPDX-License-Identifier: Apache-2.0
//
// What a submission says it will need, against memory plans and nodes made by hand.
#include "jobctl/job_plan.h"

#include <gtest/gtest.h>

namespace holdfast {
namespace {

constexpr char kConfig[] = R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 1024, "intermediate_size": 4096,
  "num_hidden_layers": 8, "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 32000, "max_position_embeddings": 2048,
  "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": false, "torch_dtype": "bfloat16"})";

class JobPlanTest : public testing::Test {
 protected:
  void SetUp() override {
    const auto config = ParseJson(kConfig, "config");
    ASSERT_TRUE(config.ok());
    auto spec = ParseDecoder(*config, "config");
    ASSERT_TRUE(spec.ok()) << spec.error().message;
    decoder_ = *spec;
    auto plan = DescribeModel(decoder_, Recipe::kNvfp4);
    ASSERT_TRUE(plan.ok()) << plan.error().message;
    plan_ = *plan;
    demand_ = {&decoder_, &plan_, 64, 512, 5'000'000'000};
  }
  uint64_t Least(uint32_t first, uint32_t last) const { return PlanMemory(decoder_, plan_, first, last, 512, MatmulDtype::kBf16).Total(1, 1, last - first); }
  static NodeView Node(const std::string& name, uint64_t memory, uint64_t mflops) {
    NodeView n;
    n.name = name;
    n.memory_bytes = memory;
    n.speed = mflops;
    n.numerics = "cpu/bf16/avx512_bf16/libtorch-1.13.0";
    return n;
  }
  DecoderSpec decoder_;
  Plan plan_;
  JobDemand demand_;
};

TEST_F(JobPlanTest, WithoutNodesItIsOneStageOfNobody) {
  const auto plan = PlanJob(demand_, {}, {}, {});
  ASSERT_TRUE(plan.ok()) << plan.error().message;
  ASSERT_EQ(plan->stages.size(), 1u);
  EXPECT_EQ(plan->stages[0].layers, LayerRange(0, 8));
  EXPECT_EQ(plan->stages[0].memory_bytes, Least(0, 8));
  EXPECT_EQ(plan->seconds, std::nullopt);
}

TEST_F(JobPlanTest, TheSplitThatWasAskedForIsKeptAndCostsItsCuts) {
  const std::vector<NodeView> nodes = {Node("a", 64'000'000'000, 1000), Node("b", 64'000'000'000, 1000)};
  const auto one = PlanJob(demand_, {{0, 8}}, {}, nodes), two = PlanJob(demand_, {{0, 5}, {5, 8}}, {"b", "a"}, nodes);
  ASSERT_TRUE(one.ok() && two.ok());
  EXPECT_EQ(two->stages[0].node, "b");
  EXPECT_EQ(two->stages[1].node, "a");
  EXPECT_EQ(two->bytes_written - one->bytes_written, 64u * 512 * 1024 * 2);
}

TEST_F(JobPlanTest, ANodeThatWasAskedForMustHaveTheRoom) {
  std::vector<NodeView> nodes = {Node("small", Least(0, 4) - 1000, 1000), Node("big", 64'000'000'000, 1000)};
  auto plan = PlanJob(demand_, {{0, 4}, {4, 8}}, {"small", "big"}, nodes);
  ASSERT_TRUE(plan.ok()) << plan.error().message;
  EXPECT_TRUE(plan->stages[0].streamed);
  EXPECT_EQ(plan->stages[0].memory_bytes, Least(0, 1));
  EXPECT_FALSE(plan->stages[1].streamed);
  nodes[0].memory_bytes = Least(0, 1) - 1000;
  plan = PlanJob(demand_, {{0, 4}, {4, 8}}, {"small", "big"}, nodes);
  ASSERT_EQ(plan.code(), ErrorCode::kInvalidArgument);
  EXPECT_NE(plan.error().message.find("1000 bytes"), std::string::npos) << plan.error().message;
  EXPECT_NE(plan.error().message.find("--on small"), std::string::npos) << plan.error().message;
}

TEST_F(JobPlanTest, WhatFitsWholeNowhereIsStreamed) {
  const std::vector<NodeView> nodes = {Node("small", Least(0, 3), 1000)};
  for (const std::vector<LayerRange>& ranges : {std::vector<LayerRange>{}, std::vector<LayerRange>{{0, 8}}}) {
    const auto plan = PlanJob(demand_, ranges, {}, nodes);
    ASSERT_TRUE(plan.ok()) << plan.error().message;
    ASSERT_EQ(plan->stages.size(), 1u);
    EXPECT_EQ(plan->stages[0].node, "small");
    EXPECT_TRUE(plan->stages[0].streamed);
    EXPECT_NE(RenderPlan(*plan, 64, 512).find("on small, streamed"), std::string::npos);
  }
}

TEST_F(JobPlanTest, WhatFitsNowhereIsRefusedSayingByHowMuch) {
  const std::vector<NodeView> nodes = {Node("tiny", 100'000'000, 1000)};
  for (const std::vector<LayerRange>& ranges : {std::vector<LayerRange>{}, std::vector<LayerRange>{{0, 8}}}) {
    const auto plan = PlanJob(demand_, ranges, {}, nodes);
    ASSERT_EQ(plan.code(), ErrorCode::kInvalidArgument);
    EXPECT_NE(plan.error().message.find("tiny"), std::string::npos) << plan.error().message;
  }
}

TEST_F(JobPlanTest, AGpuIsReckonedAsOne) {
  const MemoryPlan on_gpu = PlanMemory(decoder_, plan_, 0, 8, 512, MatmulDtype::kBf16, Processor::kGpu);
  NodeView gpu = Node("gpu", on_gpu.Total(1, 1, 8), 1'000'000);
  gpu.numerics = "cuda/bf16/some/libtorch-2.11.0";
  gpu.host_bytes = on_gpu.Host(1, 1, 0);
  const NodeView cpu = Node("cpu", 64'000'000'000, 1);
  auto plan = PlanJob(demand_, {}, {}, {cpu, gpu});
  ASSERT_TRUE(plan.ok()) << plan.error().message;
  ASSERT_EQ(plan->stages.size(), 1u);
  EXPECT_EQ(plan->stages[0].node, "gpu");
  EXPECT_FALSE(plan->stages[0].streamed);
  EXPECT_EQ(plan->stages[0].memory_bytes, on_gpu.Total(1, 1, 8));
  gpu.host_bytes -= 1000;
  plan = PlanJob(demand_, {{0, 8}}, {}, {cpu, gpu});
  ASSERT_TRUE(plan.ok()) << plan.error().message;
  EXPECT_EQ(plan->stages[0].node, "cpu");
  plan = PlanJob(demand_, {{0, 8}}, {"gpu"}, {cpu, gpu});
  ASSERT_EQ(plan.code(), ErrorCode::kInvalidArgument);
  EXPECT_NE(plan.error().message.find("of the host's memory, it needs"), std::string::npos) << plan.error().message;
}

TEST_F(JobPlanTest, ANodeThatComputesInF32DoesNotMakeTheOthersLarger) {
  NodeView wide = Node("wide", 64'000'000'000, 1);
  wide.numerics = "cpu/f32/avx2/libtorch-1.13.0";
  const NodeView narrow = Node("narrow", Least(0, 8), 1'000'000);
  const auto plan = PlanJob(demand_, {{0, 8}}, {"narrow"}, {wide, narrow});
  ASSERT_TRUE(plan.ok()) << plan.error().message;
  EXPECT_FALSE(plan->stages[0].streamed);
  EXPECT_EQ(plan->stages[0].memory_bytes, Least(0, 8));
}

TEST_F(JobPlanTest, ASlowerNodeTakesLonger) {
  const auto fast = PlanJob(demand_, {{0, 8}}, {}, {Node("a", 64'000'000'000, 1'000'000)}), slow = PlanJob(demand_, {{0, 8}}, {}, {Node("a", 64'000'000'000, 1000)});
  ASSERT_TRUE(fast.ok() && slow.ok() && fast->seconds && slow->seconds);
  EXPECT_NEAR(static_cast<double>(*slow->seconds - *fast->seconds), FlopsOf(decoder_, 8, 512) * 64 * (1e-9 - 1e-12), 2.0);
}

TEST_F(JobPlanTest, FlopsAreTwoPerWeightAndTokenAndAttention) {
  const double linears = 4.0 * 1024 * 1024 + 3.0 * 1024 * 4096;
  EXPECT_DOUBLE_EQ(FlopsOf(decoder_, 1, 512), 2 * (linears * 512 + 512.0 * 512 * 1024));
}

TEST(MatmulOf, IsReadFromTheNumericsClass) {
  EXPECT_EQ(MatmulOf("cpu/f32/avx2/libtorch-1.13.0"), MatmulDtype::kF32);
  EXPECT_EQ(MatmulOf("cpu/bf16/amx_bf16/libtorch-1.13.0"), MatmulDtype::kBf16);
  EXPECT_EQ(MatmulOf("cuda/bf16/sm_121/libtorch-2.11"), MatmulDtype::kBf16);
}

}  // namespace
}  // namespace holdfast
