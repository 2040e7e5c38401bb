// SPDX-License-Identifier: Apache-2.0
//
// The plan of a model (units, sites, sets, exclude list), and its binding to a source checkpoint.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "calib/model/decoder.h"
#include "calib/model/exclude.h"
#include "calib/runner/runner.h"
#include "tests/calib/random_model.h"

namespace holdfast {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

template <class T>
T Must(Result<T> r) {
  EXPECT_TRUE(r.ok()) << (r.ok() ? "" : r.error().message);
  return std::move(r).value();
}

DecoderSpec Spec(uint32_t layers = 3) {
  DecoderSpec s;
  s.architecture = "LlamaForCausalLM";
  s.hidden = 64, s.intermediate = 128, s.vocab = 256, s.layers = layers, s.heads = 4, s.kv_heads = 2, s.head_dim = 16;
  s.window.assign(layers, 0);
  return s;
}

TEST(Describe, UnitsSitesAndSets) {
  const Plan plan = Must(DescribeModel(Spec(), Recipe::kNvfp4));
  EXPECT_EQ(plan.layers, 3u);
  EXPECT_EQ(plan.hidden_size, 64u);
  EXPECT_TRUE(plan.input_scales);
  ASSERT_EQ(plan.units.size(), 5u);
  const UnitPlan& layer = plan.units[1];
  EXPECT_EQ(layer.label, "layer 1");
  std::vector<std::string> modules;
  for (const SitePlan& s : layer.sites) modules.push_back(s.module);
  EXPECT_THAT(modules, ElementsAre("model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.k_proj", "model.layers.1.self_attn.v_proj",
                                   "model.layers.1.self_attn.o_proj", "model.layers.1.mlp.gate_proj", "model.layers.1.mlp.up_proj",
                                   "model.layers.1.mlp.down_proj"));
  const auto set = [&](size_t i) { return layer.sites[i].set; };
  EXPECT_TRUE(set(0) == set(1) && set(1) == set(2) && set(4) == set(5));
  EXPECT_TRUE(set(0) != set(3) && set(3) != set(4) && set(4) != set(6) && set(0) != set(4) && set(3) != set(6) && set(0) != set(6));
  EXPECT_EQ(layer.sites[1].rows, 32u);
  EXPECT_EQ(layer.sites[1].cols, 64u);
  std::vector<std::string> tensors;
  for (const TensorPlan& t : plan.units[4].tensors) tensors.push_back(t.name);
  EXPECT_THAT(tensors, ElementsAre("model.norm.weight", "lm_head.weight"));
  EXPECT_EQ(plan.units[3].label, "embed");
  EXPECT_EQ(layer.tensors.back().name, "model.layers.1.post_attention_layernorm.weight");
}

TEST(Describe, TiedHeadHasNoTensor) {
  DecoderSpec s = Spec();
  s.tied_embeddings = true;
  EXPECT_EQ(Must(DescribeModel(s, Recipe::kNvfp4)).units.back().tensors.size(), 1u);
}

TEST(Describe, WeightOnlyKeepsItsSites) {
  const Plan plan = Must(DescribeModel(Spec(), Recipe::kNvfp4W4A16));
  EXPECT_FALSE(plan.input_scales);
  EXPECT_EQ(plan.units[0].sites.size(), 7u);
}

TEST(Describe, MlpOnly) {
  const Plan plan = Must(DescribeModel(Spec(), Recipe::kNvfp4MlpOnly));
  EXPECT_EQ(plan.units[0].sites.size(), 3u);
  EXPECT_EQ(plan.units[0].sites[2].module, "model.layers.0.mlp.down_proj");
}

TEST(Describe, InputsThatAreNoMultipleOf16) {
  DecoderSpec s = Spec();
  s.intermediate = 136;
  const Result<Plan> r = DescribeModel(s, Recipe::kNvfp4);
  ASSERT_FALSE(r.ok());
  EXPECT_THAT(r.error().message, AllOf(HasSubstr("model.layers.0.mlp.down_proj"), HasSubstr("136"), HasSubstr("multiple of 16")));
}

// As in the golden exports of Model-Optimizer.
TEST(Excludes, OfTheRecipes) {
  EXPECT_THAT(Must(DescribeModel(Spec(), Recipe::kNvfp4)).ignore, ElementsAre("lm_head", "model.embed_tokens"));
  EXPECT_THAT(Must(DescribeModel(Spec(), Recipe::kNvfp4W4A16)).ignore, ElementsAre("lm_head", "model.embed_tokens"));
  EXPECT_THAT(Must(DescribeModel(Spec(), Recipe::kNvfp4MlpOnly)).ignore,
              ElementsAre("lm_head", "model.embed_tokens", "model.layers.0.self_attn*", "model.layers.1.self_attn*",
                          "model.layers.2.self_attn*"));
}
TEST(Excludes, SortedByCodePoint) {
  const std::vector<std::string> ignore = Must(DescribeModel(Spec(12), Recipe::kNvfp4MlpOnly)).ignore;
  EXPECT_EQ(ignore.size(), 14u);
  EXPECT_EQ(ignore[3], "model.layers.1.self_attn*");
  EXPECT_EQ(ignore[4], "model.layers.10.self_attn*");
}
TEST(Excludes, AWholeNameWhereEveryPatternTouchesAQuantizedOne) {
  // Routers beside experts: "mlp.gate*" would touch mlp.gate_proj.
  EXPECT_THAT(SummarizeExcludes({"m.0.mlp.gate_proj", "m.0.mlp.up"}, {"m.0.mlp.gate", "m.0.attn.q", "m.0.attn.k"}),
              ElementsAre("m.0.attn*", "m.0.mlp.gate"));
  // "a.b*" touches a.bc.x, "a.b.*" does not.
  EXPECT_THAT(SummarizeExcludes({"a.bc.x"}, {"a.b.y"}), ElementsAre("a.b.*"));
  EXPECT_THAT(SummarizeExcludes({}, {"lm_head", "m.e"}), ElementsAre("lm_head", "m*"));
}

TEST(Recipes, AreKnownByName) {
  EXPECT_EQ(Must(ParseRecipe("nvfp4-mlp-only")), Recipe::kNvfp4MlpOnly);
  const Result<Recipe> r = ParseRecipe("int4");
  ASSERT_FALSE(r.ok());
  EXPECT_THAT(r.error().message, AllOf(HasSubstr("int4"), HasSubstr("nvfp4, nvfp4-mlp-only, nvfp4-w4a16")));
}

TEST(Stages, CutsAddUp) {
  using Cuts = std::vector<std::pair<uint32_t, uint32_t>>;
  EXPECT_EQ(Must(CutStages(30, {14, 14, 2}, 1)), (Cuts{{0, 14}, {14, 28}, {28, 30}}));
  EXPECT_EQ(Must(CutStages(7, {}, 3)), (Cuts{{0, 3}, {3, 5}, {5, 7}}));
  EXPECT_EQ(Must(CutStages(2, {}, 1)), (Cuts{{0, 2}}));
  EXPECT_THAT(CutStages(30, {14, 14}, 1).error().message, AllOf(HasSubstr("28"), HasSubstr("30")));
  EXPECT_FALSE(CutStages(30, {14, 0, 16}, 1).ok());
  EXPECT_FALSE(CutStages(30, {4294967295u, 31}, 1).ok());
  EXPECT_FALSE(CutStages(2, {}, 3).ok());
  EXPECT_FALSE(CutStages(2, {}, 0).ok());
}

// ---- binding ----

class Bind : public testing::Test {
 protected:
  using Edit = std::function<void(std::vector<TensorInfo>*)>;
  // Writes a checkpoint of zeros whose tensors are those of the plan after `edit`, and binds the plan to it.
  Result<Plan> BindAfter(const DecoderSpec& spec, const Edit& edit) {
    std::vector<TensorInfo> tensors;
    for (const UnitPlan& unit : Must(DescribeModel(spec, Recipe::kNvfp4)).units) {
      for (const TensorPlan& t : unit.tensors) tensors.push_back({t.name, DType::kBF16, t.shape, 0, 0});
    }
    edit(&tensors);
    const SafetensorsLayout layout = LayOutSafetensors(std::move(tensors));
    Bytes file = layout.header;
    file.resize(layout.file_size);
    const std::string dir = testing::TempDir() + "holdfast_bind_" + std::to_string(getpid());   // tests run side by side
    EXPECT_TRUE(fs_.MakeDirs(dir).ok());
    auto out = fs_.Create(dir + "/model.safetensors", 0644);
    EXPECT_TRUE((*out)->Append(file).ok() && (*out)->Close().ok());
    source_ = Must(SourceModel::Open(fs_, dir));
    return BindModel(spec, Recipe::kNvfp4, *source_);
  }
  void ExpectRefusal(const Edit& edit, const std::string& tensor, const std::string& says) {
    const Result<Plan> r = BindAfter(Spec(), edit);
    ASSERT_FALSE(r.ok());
    EXPECT_EQ(r.error().code, ErrorCode::kInvalidArgument);
    EXPECT_THAT(r.error().message, AllOf(HasSubstr("holdfast_bind"), HasSubstr(tensor), HasSubstr(says)));
  }
  static TensorInfo* FindTensor(std::vector<TensorInfo>* tensors, const std::string& name) {
    for (TensorInfo& t : *tensors) {
      if (t.name == name) return &t;
    }
    return nullptr;
  }
  PosixFileSystem fs_;
  std::unique_ptr<SourceModel> source_;
};

constexpr const char* kVictim = "model.layers.1.mlp.up_proj.weight";

TEST_F(Bind, FindsEveryTensorWhereItLies) {
  const Plan plan = Must(BindAfter(Spec(), [](auto* tensors) { FindTensor(tensors, kVictim)->dtype = DType::kF32; }));
  for (const UnitPlan& unit : plan.units) {
    for (const TensorPlan& t : unit.tensors) {
      const SourceModel::Place* place = source_->Find(t.name);
      EXPECT_EQ(t.offset, place->tensor->offset);
      EXPECT_EQ(t.bytes, place->tensor->bytes);
      EXPECT_EQ(t.dtype, t.name == kVictim ? DType::kF32 : DType::kBF16);
    }
  }
}
TEST_F(Bind, MissingTensor) {
  ExpectRefusal([](auto* ts) { std::erase_if(*ts, [](const TensorInfo& t) { return t.name == kVictim; }); }, kVictim, "missing");
}
TEST_F(Bind, WrongShape) {
  ExpectRefusal([](auto* ts) { FindTensor(ts, kVictim)->shape = {64, 128}; }, kVictim, "[64, 128], config.json asks for [128, 64]");
}
TEST_F(Bind, WrongDtype) {
  ExpectRefusal([](auto* ts) { FindTensor(ts, kVictim)->dtype = DType::kF8E4M3; }, kVictim, "F8_E4M3");
}
TEST_F(Bind, TensorThatNobodyAskedFor) {
  ExpectRefusal([](auto* ts) { ts->push_back({"model.layers.0.self_attn.q_proj.bias", DType::kBF16, {64}, 0, 0}); },
                "model.layers.0.self_attn.q_proj.bias", "does not belong");
  ExpectRefusal([](auto* ts) { ts->push_back({"model.layers.3.mlp.up_proj.weight", DType::kBF16, {128, 64}, 0, 0}); },
                "model.layers.3.mlp.up_proj.weight", "does not belong");
}
TEST_F(Bind, LetsPassWhatOldCheckpointsCarry) {
  DecoderSpec tied = Spec();
  tied.tied_embeddings = true;
  EXPECT_TRUE(BindAfter(tied, [](auto* ts) {
                ts->push_back({"model.layers.0.self_attn.rotary_emb.inv_freq", DType::kF32, {8}, 0, 0});
                ts->push_back({"lm_head.weight", DType::kBF16, {256, 64}, 0, 0});
              }).ok());
}

}  // namespace
}  // namespace holdfast
