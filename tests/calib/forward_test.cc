// SPDX-License-Identifier: Apache-2.0
//
// Our forward pass against transformers', on tiny models that use one feature each. What shows that the tolerance means something: the
// same comparison with the feature left out must fail.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <functional>

#include "calib/model/rope.h"
#include "tests/calib/golden_model.h"

namespace holdfast {
namespace {

constexpr double kTolerance = 0.025;

double Worst(const GoldenModel& m, const DecoderSpec& spec, const std::string& device, bool f32 = false) {
  const auto runner = LoadRunner(m, spec, 0, spec.layers, device);
  double worst = 0;
  for (const GoldenSample& s : m.samples) {
    const ForwardResult r = Must(runner->ForwardTokens(s.ids, LayerRangeRunner::Output::kNone));
    EXPECT_TRUE(r.hidden.empty());
    worst = std::max(worst, WorstDifference(m.plan, r.amax, f32 ? s.amax_f32 : s.amax_bf16));
  }
  return worst;
}

double Rms(const Bytes& hidden) {
  double sum = 0;
  for (size_t i = 0; i < hidden.size(); i += 2) {
    const uint32_t bits = static_cast<uint32_t>(hidden[i] | hidden[i + 1] << 8) << 16;
    sum += std::pow(static_cast<double>(std::bit_cast<float>(bits)), 2);
  }
  return std::sqrt(sum / static_cast<double>(hidden.size() / 2));
}

class Forward : public testing::TestWithParam<std::string> {};

TEST_P(Forward, AgreesWithTransformers) {
  const GoldenModel m(GetParam());
  const double worst = Worst(m, m.spec, "cpu");
  RecordProperty("worst_percent", std::to_string(100 * worst));
  EXPECT_LT(worst, kTolerance);
  EXPECT_LT(Worst(m, m.spec, "cpu", /*f32=*/true), kTolerance);
}

TEST_P(Forward, TorchOperationsAgreeWithTransformers) {
  const GoldenModel m(GetParam());
  EXPECT_LT(Worst(m, m.spec, "cpu:ops"), kTolerance);
}

TEST_P(Forward, CudaAgreesWithTransformers) {
  if (TorchDevices().size() == 1) GTEST_SKIP() << "no CUDA device, or a libtorch without CUDA";
  const GoldenModel m(GetParam());
  const double worst = Worst(m, m.spec, "cuda");
  RecordProperty("worst_percent", std::to_string(100 * worst));
  EXPECT_LT(worst, kTolerance);
  EXPECT_LT(Worst(m, m.spec, "cuda:0", /*f32=*/true), kTolerance);
}

TEST_P(Forward, F32MatmulsAgreeWithTransformers) {
  const GoldenModel m(GetParam());
  setenv("HOLDFAST_MATMUL", "f32", 1);
  EXPECT_LT(Worst(m, m.spec, "cpu"), kTolerance);
  EXPECT_LT(Worst(m, m.spec, "cpu", /*f32=*/true), kTolerance);
  unsetenv("HOLDFAST_MATMUL");
}

TEST_P(Forward, HiddenStateHasTheSameSize) {
  const GoldenModel m(GetParam());
  const auto runner = LoadRunner(m, m.spec, 0, m.spec.layers);
  for (const GoldenSample& s : m.samples) {
    const ForwardResult r = Must(runner->ForwardTokens(s.ids, LayerRangeRunner::Output::kHidden));
    ASSERT_EQ(r.hidden.size(), s.ids.size() * m.spec.hidden * 2);
    EXPECT_NEAR(Rms(r.hidden) / s.rms_bf16, 1.0, 0.01);
  }
}

TEST_P(Forward, RotaryFrequencies) {
  const GoldenModel m(GetParam());
  for (const GoldenSample& s : m.samples) {
    const std::vector<float> ours = RopeInverseFrequencies(m.spec.rope, m.spec.max_positions, s.ids.size());
    ASSERT_EQ(ours.size(), s.inv_freq.size());
    for (size_t i = 0; i < ours.size(); ++i) EXPECT_NEAR(ours[i] / s.inv_freq[i], 1.0, 1e-6) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, Forward, testing::ValuesIn(GoldenModel::Names()), [](const auto& info) { return info.param; });

// ---- the tolerance is tight enough to notice a feature that is missing ----

struct Ablation {
  const char* model;
  const char* what;
  std::function<void(DecoderSpec*)> remove;
};
void PrintTo(const Ablation& a, std::ostream* out) { *out << a.model << " without " << a.what; }

class Without : public testing::TestWithParam<Ablation> {};

TEST_P(Without, IsNoticed) {
  const GoldenModel m(GetParam().model);
  DecoderSpec spec = m.spec;
  GetParam().remove(&spec);
  for (const char* device : {"cpu", "cpu:ops"}) {
    const double worst = Worst(m, spec, device);
    RecordProperty("worst_percent", std::to_string(100 * worst));
    EXPECT_GT(worst, 2 * kTolerance) << device;
  }
}

void PlainRope(DecoderSpec* s) { s->rope.kind = RopeSpec::Kind::kDefault, s->rope.attention_factor = 1; }
void NoWindow(DecoderSpec* s) { s->window.assign(s->layers, 0); }

INSTANTIATE_TEST_SUITE_P(
    Golden, Without,
    testing::Values(Ablation{"llama_llama3", "rope scaling", PlainRope}, Ablation{"llama_linear", "rope scaling", PlainRope},
                    Ablation{"llama_dynamic", "rope scaling", PlainRope}, Ablation{"llama_yarn", "rope scaling", PlainRope},
                    Ablation{"llama_yarn", "attention factor", [](DecoderSpec* s) { s->rope.attention_factor = 1; }},
                    Ablation{"llama_yarn_mscale", "rope scaling", PlainRope},
                    Ablation{"llama_default", "rope theta", [](DecoderSpec* s) { s->rope.theta = 500000; }},
                    Ablation{"llama_bias", "biases", [](DecoderSpec* s) { s->qkv_bias = s->o_bias = s->mlp_bias = false; }},
                    Ablation{"llama_bias", "bias of o_proj", [](DecoderSpec* s) { s->o_bias = false; }},
                    Ablation{"qwen2_window", "bias of q, k, v", [](DecoderSpec* s) { s->qkv_bias = false; }},
                    Ablation{"llama_gelu", "gelu", [](DecoderSpec* s) { s->activation = DecoderSpec::Activation::kSilu; }},
                    Ablation{"mistral_window", "window", NoWindow}, Ablation{"mistral_layer_types", "window", NoWindow},
                    Ablation{"mistral_layer_types", "full layers", [](DecoderSpec* s) { s->window.assign(s->layers, 12); }},
                    Ablation{"mistral_window", "the last token of the window", [](DecoderSpec* s) { s->window.assign(s->layers, 15); }},
                    Ablation{"qwen2_window", "window", NoWindow},
                    Ablation{"qwen2_window", "max_window_layers", [](DecoderSpec* s) { s->window.assign(s->layers, 16); }}),
    [](const auto& info) {
      std::string name = std::string(info.param.model) + "_without_" + info.param.what;
      for (char& c : name) c = std::isalnum(static_cast<unsigned char>(c)) ? c : '_';
      return name;
    });

}  // namespace
}  // namespace holdfast
