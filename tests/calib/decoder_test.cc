// SPDX-License-Identifier: Apache-2.0
//
// config.json in, a description or a refusal that names the field out.
#include "calib/model/decoder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

namespace holdfast {
namespace {

using testing::AllOf;
using testing::HasSubstr;

Json Hub() {
  return Json::parse(R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256, "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5, "hidden_act": "silu", "rope_theta": 500000.0, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
    "attention_bias": false, "mlp_bias": false, "head_dim": null,
    "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
                     "rope_type": "llama3"}})");
}
Json V5() {
  Json c = Hub();
  c["rope_parameters"] = c["rope_scaling"];
  c["rope_parameters"]["rope_theta"] = c["rope_theta"];
  c["dtype"] = c["torch_dtype"];
  c["layer_types"] = {"full_attention", "full_attention"};
  for (const char* key : {"rope_scaling", "rope_theta", "torch_dtype"}) c.erase(key);
  return c;
}
Json Mistral() {
  Json c = Hub();
  c["architectures"] = {"MistralForCausalLM"};
  c["model_type"] = "mistral";
  c["sliding_window"] = 16;
  c["rope_scaling"] = nullptr;
  return c;
}
Json Qwen2() {
  Json c = Hub();
  c["architectures"] = {"Qwen2ForCausalLM"};
  c["model_type"] = "qwen2";
  c["rope_scaling"] = nullptr;
  return c;
}

DecoderSpec Parse(const Json& c) {
  Result<DecoderSpec> r = ParseDecoder(c, "config.json");
  EXPECT_TRUE(r.ok()) << (r.ok() ? "" : r.error().message);
  return r.ok() ? *r : DecoderSpec{};
}

TEST(Decoder, BothStylesSayTheSame) {
  for (const Json& c : {Hub(), V5()}) {
    const DecoderSpec s = Parse(c);
    EXPECT_EQ(s.architecture, "LlamaForCausalLM");
    EXPECT_EQ(s.layers, 2u);
    EXPECT_EQ(s.head_dim, 16u);
    EXPECT_EQ(s.dtype, DType::kBF16);
    EXPECT_EQ(s.rope.kind, RopeSpec::Kind::kLlama3);
    EXPECT_EQ(s.rope.theta, 500000.0);
    EXPECT_EQ(s.rope.factor, 8.0);
    EXPECT_EQ(s.rope.original_max_positions, 32u);
    EXPECT_EQ(s.window, (std::vector<uint64_t>{0, 0}));
  }
}

TEST(Decoder, DefaultsAreThoseOfTheArchitecture) {
  Json c = Hub();
  for (const char* key : {"num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "hidden_act", "rope_theta", "rope_scaling",
                          "tie_word_embeddings", "torch_dtype", "attention_bias", "mlp_bias", "head_dim", "model_type"}) {
    c.erase(key);
  }
  const DecoderSpec s = Parse(c);
  EXPECT_EQ(s.kv_heads, 4u);
  EXPECT_EQ(s.max_positions, 2048u);
  EXPECT_EQ(s.norm_eps, 1e-6);
  EXPECT_EQ(s.rope.theta, 10000.0);
  EXPECT_EQ(s.rope.kind, RopeSpec::Kind::kDefault);
  EXPECT_FALSE(s.tied_embeddings);
}

TEST(Decoder, OldKeyForTheRopeType) {
  Json c = Hub();
  c["rope_scaling"] = {{"type", "linear"}, {"factor", 4}};
  EXPECT_EQ(Parse(c).rope.kind, RopeSpec::Kind::kLinear);
  EXPECT_EQ(Parse(c).rope.factor, 4.0);
}

TEST(Decoder, YarnResolvesItsAttentionFactor) {
  Json c = Hub();
  c["rope_scaling"] = {{"rope_type", "yarn"}, {"factor", 8.0}, {"original_max_position_embeddings", 16}};
  EXPECT_DOUBLE_EQ(Parse(c).rope.attention_factor, 0.1 * std::log(8.0) + 1);
  c["rope_scaling"]["mscale"] = 1.0;
  c["rope_scaling"]["mscale_all_dim"] = 0.5;
  EXPECT_DOUBLE_EQ(Parse(c).rope.attention_factor, (0.1 * std::log(8.0) + 1) / (0.05 * std::log(8.0) + 1));
  c["rope_scaling"]["attention_factor"] = 1.5;
  EXPECT_DOUBLE_EQ(Parse(c).rope.attention_factor, 1.5);
  c["rope_scaling"] = {{"rope_type", "yarn"}, {"factor", nullptr}, {"original_max_position_embeddings", 16}};
  EXPECT_DOUBLE_EQ(Parse(c).rope.factor, 8.0);   // 128 / 16
}

TEST(Decoder, WindowsOfMistral) {
  Json c = Mistral();
  EXPECT_EQ(Parse(c).window, (std::vector<uint64_t>{16, 16}));
  c["sliding_window"] = nullptr;
  EXPECT_EQ(Parse(c).window, (std::vector<uint64_t>{0, 0}));
  c.erase("sliding_window");
  EXPECT_EQ(Parse(c).window, (std::vector<uint64_t>{4096, 4096}));   // MistralConfig's default
  c["sliding_window"] = 16;
  c["layer_types"] = {"sliding_attention", "full_attention"};
  EXPECT_EQ(Parse(c).window, (std::vector<uint64_t>{16, 0}));
}

TEST(Decoder, WindowsAndBiasesOfQwen2) {
  Json c = Qwen2();
  c["sliding_window"] = 16;
  EXPECT_EQ(Parse(c).window, (std::vector<uint64_t>{0, 0}));
  c["use_sliding_window"] = true;
  EXPECT_EQ(Parse(c).window, (std::vector<uint64_t>{0, 0}));   // max_window_layers is 28 by default
  c["max_window_layers"] = 1;
  EXPECT_EQ(Parse(c).window, (std::vector<uint64_t>{0, 16}));
  c["max_window_layers"] = 0;
  EXPECT_EQ(Parse(c).window, (std::vector<uint64_t>{16, 16}));
  EXPECT_TRUE(Parse(c).qkv_bias);
  EXPECT_FALSE(Parse(c).o_bias);
  EXPECT_FALSE(Parse(c).mlp_bias);
}

// ---- refusals ----

struct Refusal {
  const char* name;
  Json base;
  const char* patch;      // RFC 7396; null removes
  ErrorCode code;
  const char* says;
};
void PrintTo(const Refusal& r, std::ostream* out) { *out << r.name; }

class Refuses : public testing::TestWithParam<Refusal> {};

TEST_P(Refuses, NamingTheField) {
  Json c = GetParam().base;
  c.merge_patch(Json::parse(GetParam().patch));
  const Result<DecoderSpec> r = ParseDecoder(c, "M/config.json");
  ASSERT_FALSE(r.ok());
  EXPECT_EQ(r.error().code, GetParam().code) << r.error().message;
  EXPECT_THAT(r.error().message, AllOf(HasSubstr("M/config.json"), HasSubstr(GetParam().says)));
}

constexpr ErrorCode kBad = ErrorCode::kInvalidArgument, kNo = ErrorCode::kUnsupported;

INSTANTIATE_TEST_SUITE_P(
    Config, Refuses,
    testing::Values(
        Refusal{"no_architecture", Hub(), R"({"architectures": null})", kBad, "architectures"},
        Refusal{"two_architectures", Hub(), R"({"architectures": ["A", "B"]})", kBad, "architectures"},
        Refusal{"architecture_not_text", Hub(), R"({"architectures": [1]})", kBad, "architectures"},
        Refusal{"other_architecture", Hub(), R"({"architectures": ["GPT2LMHeadModel"]})", kNo, "GPT2LMHeadModel is not supported; supported are LlamaForCausalLM, MistralForCausalLM"},
        Refusal{"other_model_type", Hub(), R"({"model_type": "mistral"})", kBad, "model_type"},
        Refusal{"quantized", Hub(), R"({"quantization_config": {"quant_method": "fp8"}})", kNo, "already quantized (quantization_config, quant_method \"fp8\"); give the original"},
        Refusal{"no_hidden", Hub(), R"({"hidden_size": null})", kBad, "hidden_size"},
        Refusal{"hidden_text", Hub(), R"({"hidden_size": "64"})", kBad, "hidden_size"},
        Refusal{"hidden_negative", Hub(), R"({"hidden_size": -64})", kBad, "hidden_size"},
        Refusal{"hidden_zero", Hub(), R"({"hidden_size": 0})", kBad, "hidden_size"},
        Refusal{"hidden_huge", Hub(), R"({"hidden_size": 18446744073709551615})", kBad, "hidden_size"},
        Refusal{"hidden_fraction", Hub(), R"({"hidden_size": 64.5})", kBad, "hidden_size"},
        Refusal{"layers_huge", Hub(), R"({"num_hidden_layers": 1000000000})", kBad, "num_hidden_layers"},
        Refusal{"vocab_huge", Hub(), R"({"vocab_size": 1000000000000})", kBad, "vocab_size"},
        Refusal{"inner_missing", Hub(), R"({"intermediate_size": null})", kBad, "intermediate_size"},
        Refusal{"kv_heads", Hub(), R"({"num_key_value_heads": 3})", kBad, "num_key_value_heads"},
        Refusal{"more_kv_heads", Hub(), R"({"num_key_value_heads": 8})", kBad, "num_key_value_heads"},
        Refusal{"heads_do_not_divide", Hub(), R"({"num_attention_heads": 6, "num_key_value_heads": 6})", kBad, "head_dim is not given"},
        Refusal{"odd_head_dim", Hub(), R"({"head_dim": 15})", kBad, "head_dim 15"},
        Refusal{"heads_times_dim", Hub(), R"({"num_attention_heads": 4096, "num_key_value_heads": 4096, "head_dim": 1024})", kBad, "num_attention_heads * head_dim"},
        Refusal{"eps_zero", Hub(), R"({"rms_norm_eps": 0})", kBad, "rms_norm_eps"},
        Refusal{"activation", Hub(), R"({"hidden_act": "relu2"})", kNo, "activation \"relu2\""},
        Refusal{"dtype", Hub(), R"({"torch_dtype": "float8_e4m3fn"})", kNo, "dtype \"float8_e4m3fn\""},
        Refusal{"bias_not_flag", Hub(), R"({"attention_bias": 1})", kBad, "attention_bias"},
        Refusal{"tied_not_flag", Hub(), R"({"tie_word_embeddings": "yes"})", kBad, "tie_word_embeddings"},
        Refusal{"theta_zero", Hub(), R"({"rope_theta": 0})", kBad, "rope_theta"},
        Refusal{"rope_not_object", Hub(), R"({"rope_scaling": 3})", kBad, "rope_scaling"},
        Refusal{"rope_type", Hub(), R"({"rope_scaling": {"rope_type": "longrope"}})", kNo, "rope type \"longrope\" is not supported; supported are default, linear"},
        Refusal{"rope_factor_missing", Hub(), R"({"rope_scaling": {"rope_type": "linear", "factor": null}})", kBad, "factor"},
        Refusal{"rope_factor_zero", Hub(), R"({"rope_scaling": {"factor": 0}})", kBad, "\"factor\" is 0"},
        Refusal{"rope_factor_negative", V5(), R"({"rope_parameters": {"factor": -2}})", kBad, "\"factor\" is -2"},
        Refusal{"llama3_without_low", Hub(), R"({"rope_scaling": {"low_freq_factor": null}})", kBad, "low_freq_factor"},
        Refusal{"llama3_swapped", Hub(), R"({"rope_scaling": {"low_freq_factor": 4, "high_freq_factor": 1}})", kBad, "high_freq_factor is not above"},
        Refusal{"yarn_theta_one", Hub(), R"({"rope_theta": 1, "rope_scaling": {"rope_type": "yarn"}})", kBad, "rope_theta above 1"},
        Refusal{"rope_twice_differently", Hub(), R"({"rope_parameters": {"rope_type": "llama3", "factor": 4.0}})", kBad, "disagree about \"factor\""},
        Refusal{"partial_rotary", Hub(), R"({"partial_rotary_factor": 0.5})", kNo, "partial_rotary_factor"},
        Refusal{"llama_slides", V5(), R"({"layer_types": ["full_attention", "sliding_attention"]})", kNo, "sliding_attention"},
        Refusal{"layer_types_short", V5(), R"({"layer_types": ["full_attention"]})", kBad, "layer_types"},
        Refusal{"layer_types_other", Mistral(), R"({"layer_types": ["full_attention", "linear_attention"]})", kNo, "linear_attention"},
        Refusal{"window_zero", Mistral(), R"({"sliding_window": 0})", kBad, "sliding_window"},
        Refusal{"max_window_layers", Qwen2(), R"({"use_sliding_window": true, "max_window_layers": -1})", kBad, "max_window_layers"}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(Decoder, NotAnObject) { EXPECT_FALSE(ParseDecoder(Json::array(), "config.json").ok()); }

TEST(Decoder, AnExplicitNull) {   // merge_patch above removes on null
  Json c = Hub();
  c["hidden_size"] = nullptr;
  EXPECT_THAT(ParseDecoder(c, "config.json").error().message, HasSubstr("\"hidden_size\" is missing"));
  c = Mistral();
  c["sliding_window"] = nullptr;
  c["layer_types"] = {"sliding_attention", "full_attention"};
  EXPECT_THAT(ParseDecoder(c, "config.json").error().message, HasSubstr("layer 0 slides, but there is no sliding_window"));
}

// ---- whatever the file says, there is an answer, and an accepted description is one that the forward pass can run ----

class Mutator {
 public:
  explicit Mutator(uint64_t seed) : state_(seed) {}
  uint64_t Next(uint64_t below) {
    state_ ^= state_ << 13, state_ ^= state_ >> 7, state_ ^= state_ << 17;
    return state_ % below;
  }
  Json Hostile() {
    static const std::vector<Json> kValues = {
        nullptr, true, false, 0, 1, 2, 3, 7, -1, 16, 64, 4096, 1u << 31, INT64_MIN, UINT64_MAX, 0.0, -0.0, 0.5, 1e308, -1e308, 1e-308, "",
        "llama3", "yarn", "dynamic", "linear", "default", "sliding_attention", "bfloat16", Json::array(), Json::object(),
        {"full_attention", "sliding_attention"}, {{"rope_type", "yarn"}, {"factor", 1e-300}}, {{"type", "dynamic"}, {"factor", 3}}};
    return kValues[Next(kValues.size())];
  }
  void Mutate(Json* c) {
    for (uint64_t n = 1 + Next(3); n > 0; --n) {
      Json* object = c;
      for (const char* inner : {"rope_scaling", "rope_parameters"}) {
        if (c->contains(inner) && (*c)[inner].is_object() && Next(3) == 0) object = &(*c)[inner];
      }
      const std::string key = Key(*object);
      if (Next(6) == 0) object->erase(key);
      else (*object)[key] = Hostile();
    }
  }

 private:
  std::string Key(const Json& object) {
    static const std::vector<std::string> kExtra = {"sliding_window", "layer_types", "use_sliding_window", "max_window_layers",
        "original_max_position_embeddings", "attention_factor", "mscale", "mscale_all_dim", "truncate", "beta_fast", "beta_slow",
        "rope_parameters", "partial_rotary_factor", "dtype", "rope_type", "type"};
    const uint64_t i = Next(object.size() + kExtra.size());
    if (i >= object.size()) return kExtra[i - object.size()];
    return std::next(object.begin(), static_cast<int64_t>(i)).key();
  }
  uint64_t state_;
};

void ExpectRunnable(const DecoderSpec& s) {
  ASSERT_GE(s.layers, 1u);
  ASSERT_EQ(s.window.size(), s.layers);
  ASSERT_GE(s.kv_heads, 1u);
  ASSERT_EQ(s.heads % s.kv_heads, 0u);
  ASSERT_EQ(s.head_dim % 2, 0u);
  ASSERT_GT(s.norm_eps, 0.0);
  ASSERT_GT(s.rope.factor, 0.0);
  ASSERT_TRUE(std::isfinite(s.rope.attention_factor) && s.rope.attention_factor > 0);
  for (const LinearSpec& l : LayerLinears(s)) {
    ASSERT_GT(l.rows, 0u);
    ASSERT_LE(l.rows, 1u << 21);
    ASSERT_LE(l.cols, 1u << 21);
  }
}

TEST(DecoderFuzz, MutatedConfigs) {
  Mutator mutator(20261121);
  int accepted = 0;
  for (int i = 0; i < 60000; ++i) {
    const Json bases[] = {Hub(), V5(), Mistral(), Qwen2()};
    Json c = bases[i % 4];
    mutator.Mutate(&c);
    const Result<DecoderSpec> r = ParseDecoder(c, "config.json");
    if (!r.ok()) {
      ASSERT_THAT(r.error().message, HasSubstr("config.json"));
      continue;
    }
    ++accepted;
    ExpectRunnable(*r);
    if (HasFatalFailure()) FAIL() << c.dump();
    if (r->layers <= 4) (void)DescribeModel(*r, Recipe::kNvfp4);
  }
  EXPECT_GT(accepted, 5000);
}

TEST(DecoderFuzz, MutatedText) {
  const std::string text = V5().dump();
  Mutator mutator(7);
  for (int i = 0; i < 20000; ++i) {
    std::string t = text;
    for (uint64_t n = 1 + mutator.Next(4); n > 0; --n) t[mutator.Next(t.size())] = static_cast<char>(mutator.Next(128));
    const Result<Json> json = ParseJson(t, "config.json");
    if (json.ok()) (void)ParseDecoder(*json, "config.json");
  }
}

}  // namespace
}  // namespace holdfast
