// SPDX-License-Identifier: Apache-2.0
//
// Architectures beyond Llama's block against transformers' own forward pass, on tiny models that use all of their features; and each feature left out,
// which must be noticed.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdlib>
#include <functional>

#include "calib/model/rope.h"
#include "tests/calib/golden_model.h"

namespace holdfast {
namespace {

constexpr double kTolerance = 0.025;
constexpr const char* kFolder = "architectures";

double Worst(const GoldenModel& m, const DecoderSpec& spec, const std::string& device, bool f32 = false) {
  const auto runner = LoadRunner(m, spec, 0, spec.layers, device);
  double worst = 0;
  for (const GoldenSample& s : m.samples) {
    const ForwardResult r = Must(runner->ForwardTokens(s.ids, LayerRangeRunner::Output::kNone));
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

class Architecture : public testing::TestWithParam<const char*> {
 protected:
  const GoldenModel m_{GetParam(), kFolder};
};

TEST_P(Architecture, AgreesWithTransformers) {
  const double worst = Worst(m_, m_.spec, "cpu");
  RecordProperty("worst_percent", std::to_string(100 * worst));
  EXPECT_LT(worst, kTolerance);
  EXPECT_LT(Worst(m_, m_.spec, "cpu", /*f32=*/true), kTolerance);
}

TEST_P(Architecture, CudaAgreesWithTransformers) {
  if (TorchDevices().size() == 1) GTEST_SKIP() << "no CUDA device, or a libtorch without CUDA";
  const double worst = Worst(m_, m_.spec, "cuda");
  RecordProperty("worst_percent", std::to_string(100 * worst));
  EXPECT_LT(worst, kTolerance);
}

TEST_P(Architecture, F32MatmulsAgreeWithTransformers) {
  setenv("HOLDFAST_MATMUL", "f32", 1);
  EXPECT_LT(Worst(m_, m_.spec, "cpu"), kTolerance);
  unsetenv("HOLDFAST_MATMUL");
}

// Through the layers one at a time, as through stages: the same bits as in one go, and hidden states of the size that transformers has.
TEST_P(Architecture, CutAnywhereGivesTheSameBits) {
  for (const GoldenSample& s : m_.samples) {
    const auto whole = LoadRunner(m_, m_.spec, 0, m_.spec.layers);
    const ForwardResult all = Must(whole->ForwardTokens(s.ids, LayerRangeRunner::Output::kHidden));
    EXPECT_NEAR(Rms(all.hidden) / s.rms_bf16, 1.0, 0.01);
    ForwardResult now = Must(LoadRunner(m_, m_.spec, 0, 1)->ForwardTokens(s.ids, LayerRangeRunner::Output::kHidden));
    std::vector<float> amax = now.amax;
    for (uint32_t layer = 1; layer < m_.spec.layers; ++layer) {
      now = Must(LoadRunner(m_, m_.spec, layer, layer + 1)->ForwardHidden(now.hidden, s.ids.size(), LayerRangeRunner::Output::kHidden));
      amax.insert(amax.end(), now.amax.begin(), now.amax.end());
    }
    EXPECT_EQ(now.hidden, all.hidden);
    EXPECT_EQ(amax, all.amax);
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, Architecture,
                         testing::Values("cohere", "cohere_qk_norm", "cohere2", "gemma2", "gemma3", "gemma3_layer_types", "phi3", "phi3_longrope",
                                         "phi3_partial", "qwen3"),
                         [](const auto& info) { return std::string(info.param); });

struct Ablation {
  const char* model;
  const char* what;
  std::function<void(DecoderSpec*)> remove;
};
void PrintTo(const Ablation& a, std::ostream* out) { *out << a.model << " without " << a.what; }

class ArchitectureWithout : public testing::TestWithParam<Ablation> {};

TEST_P(ArchitectureWithout, IsNoticed) {
  const GoldenModel m(GetParam().model, kFolder);
  DecoderSpec spec = m.spec;
  GetParam().remove(&spec);
  const double worst = Worst(m, spec, "cpu:ops");
  RecordProperty("worst_percent", std::to_string(100 * worst));
  EXPECT_GT(worst, kTolerance * 1.5);
}

void NoWindow(DecoderSpec* s) { s->window.assign(s->layers, 0); }
void NoQkNorm(DecoderSpec* s) { s->qk_norm = QkNorm::kNone; }
void OneRope(DecoderSpec* s) { s->rope_of.assign(s->layers, RopeUse::kGlobal); }
void Halves(DecoderSpec* s) { s->rope.interleaved = false; }
void PlainScale(DecoderSpec* s) { s->attention_scale = 1.0 / std::sqrt(static_cast<double>(s->head_dim)); }
void PlainWeights(DecoderSpec* s) { s->norm = NormKind::kRms; }

INSTANTIATE_TEST_SUITE_P(
    Golden, ArchitectureWithout,
    testing::Values(Ablation{"qwen3", "norms of queries and keys", NoQkNorm}, Ablation{"cohere", "centred norms", PlainWeights},
                    Ablation{"cohere", "pairs", Halves}, Ablation{"cohere_qk_norm", "norms of queries and keys", NoQkNorm},
                    Ablation{"cohere2", "layers without rope", OneRope}, Ablation{"cohere2", "windows", NoWindow},
                    Ablation{"gemma2", "soft cap", [](DecoderSpec* s) { s->attention_softcap = 0; }}, Ablation{"gemma2", "query scale", PlainScale},
                    Ablation{"gemma2", "windows", NoWindow}, Ablation{"gemma2", "embedding scale", [](DecoderSpec* s) { s->embedding_scale = 1; }},
                    Ablation{"gemma2", "one plus weight", PlainWeights}, Ablation{"gemma3", "norms of queries and keys", NoQkNorm},
                    Ablation{"gemma3", "local rope", OneRope}, Ablation{"gemma3", "windows", NoWindow},
                    Ablation{"gemma3", "scaling of the global rope", [](DecoderSpec* s) { s->rope.kind = RopeSpec::Kind::kDefault; }},
                    Ablation{"phi3", "windows", NoWindow},
                    Ablation{"phi3_longrope", "long factors", [](DecoderSpec* s) { s->rope.long_factors = s->rope.short_factors; }},
                    Ablation{"phi3_longrope", "attention factor", [](DecoderSpec* s) { s->rope.attention_factor = 1; }},
                    Ablation{"phi3_partial", "dimensions that stay", [](DecoderSpec* s) {
                               s->rope.dims = s->head_dim;
                               s->rope.kind = RopeSpec::Kind::kDefault;
                             }}),
    [](const auto& info) {
      std::string name = std::string(info.param.model) + "_without_" + info.param.what;
      for (char& c : name) c = std::isalnum(static_cast<unsigned char>(c)) ? c : '_';
      return name;
    });

}  // namespace
}  // namespace holdfast
