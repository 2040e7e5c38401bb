// SPDX-License-Identifier: Apache-2.0
//
// config.json, hf_quant_config.json and the index against what Model-Optimizer wrote, and the readers of the first two.
#include "export/format/hf_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <regex>

#include "ledger/base/file_system.h"
#include "ledger/records/records.h"

namespace holdfast {
namespace {

using testing::HasSubstr;

std::string Golden(const std::string& name) {
  PosixFileSystem fs;
  const auto bytes = fs.ReadFile(std::string(HOLDFAST_SOURCE_DIR "/tests/golden/exports/") + name);
  EXPECT_TRUE(bytes.ok()) << name;
  return bytes.ok() ? std::string(bytes->begin(), bytes->end()) : "";
}

std::string OurVersion(const std::string& golden) {
  return std::regex_replace(golden, std::regex("0\\.47\\.0\\.dev0"), "0.47.0");
}

// The source's config.json: the golden one before quantization_config was appended.
std::string WithoutQuantization(const std::string& config) {
  const size_t at = config.find(",\n    \"quantization_config\"");
  return config.substr(0, at) + "\n}\n";
}

struct Case {
  const char* dir;
  QuantDescription quant;
};

const Case kCases[] = {
    {"a_llama_nvfp4", {true, {"lm_head", "model.embed_tokens"}}},
    {"g_llama_w4a16", {false, {"lm_head", "model.embed_tokens"}}},
    {"l_llama_mlponly",
     {true,
      {"lm_head", "model.embed_tokens", "model.layers.0.self_attn*", "model.layers.1.self_attn*",
       "model.layers.2.self_attn*"}}},
    {"n_float16", {true, {"lm_head", "model.embed_tokens"}}},
    {"h_qwen3moe",
     {true,
      {"lm_head", "model.embed_tokens", "model.layers.0.mlp.gate", "model.layers.1.mlp.gate"}}},
};

TEST(HfConfig, EqualsModelOptimizer) {
  for (const Case& c : kCases) {
    const std::string golden = Golden(std::string(c.dir) + "/config.json");
    const auto ours = MakeConfigJson(WithoutQuantization(golden), c.quant);
    ASSERT_TRUE(ours.ok()) << ours.error().message;
    EXPECT_EQ(*ours, OurVersion(golden)) << c.dir;
    EXPECT_EQ(MakeHfQuantConfigJson(c.quant),
              OurVersion(Golden(std::string(c.dir) + "/hf_quant_config.json")))
        << c.dir;
  }
}

// The literal form of the library's own exports (0.18), with our names.
TEST(HfConfig, CompressedTensors) {
  const auto full = MakeConfigJson("{}", {true, {"lm_head", "model.layers.0.mlp.gate"}, OutputLayout::kCompressedTensors});
  ASSERT_TRUE(full.ok()) << full.error().message;
  const OrderedJson expected = OrderedJson::parse(R"({"config_groups": {"group_0": {"format": "nvfp4-pack-quantized",
    "input_activations": {"actorder": null, "block_structure": null, "dynamic": "local", "group_size": 16, "num_bits": 4, "observer": "static_minmax",
      "observer_kwargs": {}, "scale_dtype": "torch.float8_e4m3fn", "strategy": "tensor_group", "symmetric": true, "type": "float", "zp_dtype": null},
    "output_activations": null, "targets": ["Linear"],
    "weights": {"actorder": null, "block_structure": null, "dynamic": false, "group_size": 16, "num_bits": 4, "observer": "memoryless_minmax",
      "observer_kwargs": {}, "scale_dtype": "torch.float8_e4m3fn", "strategy": "tensor_group", "symmetric": true, "type": "float", "zp_dtype": null}}},
    "format": "nvfp4-pack-quantized", "global_compression_ratio": null, "ignore": ["lm_head", "model.layers.0.mlp.gate"], "kv_cache_scheme": null,
    "quant_method": "compressed-tensors", "quantization_status": "compressed", "sparsity_config": {}, "transform_config": {}, "version": "0.18.0"})");
  EXPECT_EQ(OrderedJson::parse(*full)["quantization_config"].dump(1), expected.dump(1));
  const auto weights = MakeConfigJson("{}", {false, {"lm_head"}, OutputLayout::kCompressedTensors});
  ASSERT_TRUE(weights.ok());
  EXPECT_TRUE(OrderedJson::parse(*weights)["quantization_config"]["config_groups"]["group_0"]["input_activations"].is_null());
  for (const auto* text : {&*full, &*weights}) {
    const auto back = ParseConfigQuant(Json::parse(*text), "config.json");
    ASSERT_TRUE(back.ok()) << back.error().message;
    EXPECT_EQ(back->layout, OutputLayout::kCompressedTensors);
    EXPECT_EQ(back->quant_algo, text == &*full ? "NVFP4" : "W4A16_NVFP4");
    EXPECT_EQ(back->group_size, 16u);
    EXPECT_EQ(back->exclude.front(), "lm_head");
  }
}

// By name, as the loader compares them: no patterns, the embedding is no linear, and a tied model has a head too.
TEST(HfConfig, WhatCompressedTensorsIgnores) {
  Plan plan;
  plan.layers = 1;
  plan.ignore = {"lm_head", "model.embed_tokens", "model.layers.0.self_attn*"};
  plan.units.resize(3);
  const auto tensor = [](const std::string& name, std::vector<uint64_t> shape) {
    TensorPlan t;
    t.name = name;
    t.shape = std::move(shape);
    return t;
  };
  for (uint32_t i = 0; i < 3; ++i) plan.units[i].id = i;
  const std::string layer = "model.layers.0.";
  plan.units[0].tensors = {tensor(layer + "self_attn.q_proj.weight", {4, 4}), tensor(layer + "self_attn.q_proj.bias", {4}), tensor(layer + "mlp.down_proj.weight", {4, 4}),
                           tensor(layer + "input_layernorm.weight", {4})};
  plan.units[0].sites = {{layer + "mlp.down_proj", 0, 4, 4}};
  plan.units[1].tensors = {tensor("model.embed_tokens.weight", {8, 4})};
  EXPECT_EQ(DescribeQuant(plan).exclude, plan.ignore);
  EXPECT_THAT(DescribeQuant(plan, OutputLayout::kCompressedTensors).exclude, testing::ElementsAre("lm_head", layer + "self_attn.q_proj"));
}

TEST(HfConfig, IgnoredByNameOrByExpression) {
  const std::vector<std::string> ignore = {"lm_head", "re:.*self_attn.*", "re:model\\.layers\\.1\\.", "re:(", "mlp"};
  for (const char* hit : {"lm_head", "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"}) EXPECT_TRUE(IsIgnored(ignore, hit)) << hit;
  for (const char* miss : {"lm_head2", "x.lm_head", "model.layers.0.mlp.up_proj", "a.model.layers.1.mlp"}) EXPECT_FALSE(IsIgnored(ignore, miss)) << miss;
}

TEST(HfConfig, KeepsSpellingsAndReplacesAnOldQuantization) {
  const auto r = MakeConfigJson(
      "{\"quantization_config\":{\"a\":[1,2]},\"eps\" : "
      "1e-06,\n\"theta\":10000.0,\"big\":12345678901234567890123,"
      "\"e\":1E5,\"l\":[],\"o\":{ },\"s\":\"a\\\"}\\u00e9\\\\\",\"n\":[null,[1,2.50]]}",
      {false, {"lm_head"}});
  ASSERT_TRUE(r.ok()) << r.error().message;
  EXPECT_THAT(
      *r,
      testing::StartsWith(
          "{\n    \"eps\": 1e-06,\n    \"theta\": 10000.0,\n    \"big\": "
          "12345678901234567890123,\n    \"e\": 1E5,\n"
          "    \"l\": [],\n    \"o\": {},\n    \"s\": \"a\\\"}\\u00e9\\\\\",\n    \"n\": [\n       "
          " null,\n        [\n"
          "            1,\n            2.50\n        ]\n    ],\n    \"quantization_config\": {"));
  EXPECT_EQ(r->find("\"a\": ["), std::string::npos);
}

TEST(HfConfig, EmptySourceObject) {
  const auto r = MakeConfigJson("{}", {});
  ASSERT_TRUE(r.ok());
  EXPECT_THAT(*r,
              testing::StartsWith("{\n    \"quantization_config\": {\n        \"config_groups\""));
  EXPECT_THAT(*r, HasSubstr("\"ignore\": [],"));
}

TEST(HfConfig, RefusesWhatIsNoObject) {
  EXPECT_EQ(MakeConfigJson("[1]", {}).code(), ErrorCode::kInvalidArgument);
  EXPECT_EQ(MakeConfigJson("{\"a\":1,\"a\":2}", {}).code(), ErrorCode::kInvalidArgument);
}

// The library lets a byte order mark pass, and what spells the members anew began in the middle of it. Found by hf_config_fuzz.
TEST(HfConfig, AByteOrderMarkIsRefused) {
  const auto made = MakeConfigJson("\xef\xbb\xbf{\"a\": 1}", {});
  ASSERT_EQ(made.code(), ErrorCode::kInvalidArgument);
  EXPECT_NE(made.error().message.find("byte order mark"), std::string::npos) << made.error().message;
}

TEST(HfConfig, ReadsBackWhatItWrites) {
  for (const Case& c : kCases) {
    const auto text = MakeConfigJson("{}", c.quant);
    const auto config = ParseConfigQuant(*ParseJson(*text, "config.json"), "config.json");
    const auto hf = ParseHfQuantConfig(*ParseJson(MakeHfQuantConfigJson(c.quant), "hf"), "hf");
    ASSERT_TRUE(config.ok() && hf.ok());
    for (const auto* parsed : {&*config, &*hf}) {
      EXPECT_EQ(parsed->quant_method, "modelopt");
      EXPECT_EQ(parsed->quant_algo, c.quant.input_activations ? "NVFP4" : "W4A16_NVFP4");
      EXPECT_EQ(parsed->group_size, 16u);
      EXPECT_EQ(parsed->exclude, c.quant.exclude);
    }
  }
}

TEST(HfConfig, ReaderErrorsNameTheField) {
  const auto parse = [](const char* text) {
    return ParseConfigQuant(*ParseJson(text, "t"), "out/config.json");
  };
  EXPECT_EQ(parse("{}").code(), ErrorCode::kNotFound);
  EXPECT_THAT(parse(R"({"quantization_config":3})").error().message,
              HasSubstr("out/config.json: field \"quantization_config\""));
  EXPECT_THAT(parse(R"({"quantization_config":{"quant_algo":4}})").error().message,
              HasSubstr("\"quant_algo\" is not a string"));
  EXPECT_THAT(parse(R"({"quantization_config":{"ignore":"x"}})").error().message,
              HasSubstr("\"ignore\" is not a list"));
  EXPECT_THAT(parse(R"({"quantization_config":{"ignore":[1]}})").error().message,
              HasSubstr("not a string"));
  EXPECT_EQ(
      parse(R"({"quantization_config":{"exclude_modules":["a"],"group_size":32}})")->group_size,
      32u);
  EXPECT_EQ(parse(R"({"quantization_config":{"exclude_modules":["a"]}})")->exclude,
            std::vector<std::string>{"a"});
}

TEST(IndexJson, SortedAndIndented) {
  EXPECT_EQ(MakeIndexJson(5, 10, {{"b", "f2"}, {"a", "f1"}}),
            "{\n  \"metadata\": {\n    \"total_parameters\": 5,\n    \"total_size\": 10\n  },\n  "
            "\"weight_map\": {\n    \"a\": \"f1\",\n"
            "    \"b\": \"f2\"\n  }\n}\n");
}

TEST(IsExcluded, VllmRules) {
  const std::vector<std::string> list = {"lm_head", "model.layers.0.self_attn*",
                                         "model.layers.3.self_attn.q_proj",
                                         "model.layers.1.mlp.gate"};
  EXPECT_TRUE(IsExcluded(list, "lm_head"));
  EXPECT_TRUE(IsExcluded(list, "model.layers.0.self_attn.q_proj"));
  EXPECT_TRUE(IsExcluded(list, "model.layers.0.self_attn.o_proj"));
  EXPECT_FALSE(IsExcluded(list, "model.layers.10.self_attn.q_proj"));
  EXPECT_TRUE(IsExcluded(list, "model.layers.3.self_attn.q_proj"));
  EXPECT_FALSE(IsExcluded(list, "model.layers.3.self_attn.k_proj"));
  EXPECT_TRUE(IsExcluded(list, "model.layers.1.mlp.gate"));
  EXPECT_TRUE(
      IsExcluded(list, "model.layers.1.mlp.up_proj"));  // substring of gate_up_proj: the trap
  EXPECT_FALSE(IsExcluded(list, "model.layers.1.mlp.experts.7.gate_proj"));
  EXPECT_FALSE(IsExcluded(list, "model.layers.2.mlp.down_proj"));
  EXPECT_TRUE(IsExcluded({}, "model.visual.blocks.0.attn.qkv"));
  EXPECT_TRUE(IsExcluded({"model.layers.*.mlp.down?proj"}, "model.layers.12.mlp.down_proj"));
  EXPECT_TRUE(
      IsExcluded({"model.layers.0.mlp.down_proj"}, "model.language_model.layers.0.mlp.down_proj"));
  EXPECT_FALSE(IsExcluded({"a*b*d"}, "axxbxxc"));
}

}  // namespace
}  // namespace holdfast
