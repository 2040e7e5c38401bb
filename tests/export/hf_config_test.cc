// SPDX-License-Identifier: Apache-2.0
//
// config.json, hf_quant_config.json and the index against what Model-Optimizer wrote, and the readers of the first two.
#include "export/format/hf_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <regex>

#include "ledger/base/file_system.h"

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
