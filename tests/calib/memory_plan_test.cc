// SPDX-License-Identifier: Apache-2.0
//
// The memory plan is an upper bound that holds and is not wasteful: measured against a real forward pass.
#include "calib/model/memory_plan.h"

#include <gtest/gtest.h>

#include <malloc.h>

#include <cstdio>
#include <fstream>
#include <thread>

#include "calib/runner/runner.h"
#include "tests/calib/random_model.h"

namespace holdfast {
namespace {

using Output = LayerRangeRunner::Output;

template <class T>
T Must(Result<T> r) {
  EXPECT_TRUE(r.ok()) << (r.ok() ? "" : r.error().message);
  return std::move(r).value();
}

// Peak of the resident memory that is this process's own (file pages of libraries included), since the last reset.
uint64_t PeakResident() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmHWM:")) return std::stoull(line.substr(6)) * 1024;
  }
  return 0;
}
void ResetPeak() { std::ofstream("/proc/self/clear_refs") << "5"; }

struct Case {
  const char* name;
  const char* matmul;
  uint32_t threads, tokens;
  RandomShape shape;
};
void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

class MemoryPlanBound : public testing::TestWithParam<Case> {};

TEST_P(MemoryPlanBound, HoldsAndIsTight) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "AddressSanitizer keeps freed memory and a shadow of all of it";
#endif
  const Case& c = GetParam();
  const RandomModel model(c.shape);
  PosixFileSystem fs;
  const DecoderSpec spec = Must(ParseDecoder(model.config, "config"));
  const auto source = Must(SourceModel::Open(fs, model.dir));
  const Plan plan = Must(BindModel(spec, Recipe::kNvfp4, *source));
  setenv("HOLDFAST_MATMUL", c.matmul, 1);
  RunnerOptions options;
  options.last_layer = spec.layers;
  malloc_trim(0);   // what earlier tests of this process left behind is not this one's
  ResetPeak();
  const auto runner = Must(LayerRangeRunner::Load(*source, spec, plan, options, nullptr));
  const uint64_t loaded = PeakResident();
  std::vector<std::thread> pool;
  std::vector<Bytes> cuts(c.threads);
  for (uint32_t t = 0; t < c.threads; ++t) {
    pool.emplace_back([&, t] {
      for (uint64_t i = 0; i < 3; ++i) {
        cuts[t] = Must(runner->ForwardTokens(RandomIds(t * 10 + i, c.tokens, spec.vocab), Output::kHidden)).hidden;
      }
    });
  }
  for (std::thread& t : pool) t.join();
  const uint64_t measured = PeakResident();

  const MemoryPlan m = PlanMemory(spec, plan, 0, spec.layers, c.tokens, CpuMatmulDtype());
  unsetenv("HOLDFAST_MATMUL");
  const uint64_t planned = m.Total(c.threads, c.threads, spec.layers) - m.eviction;
  std::printf("%s: planned %.0f MB (weights %.0f, sample %.1f x %u, fixed %.0f), after loading %.0f MB, peak %.0f MB\n", c.name,
              static_cast<double>(planned) * 1e-6, static_cast<double>(m.Weights(spec.layers)) * 1e-6, static_cast<double>(m.per_sample) * 1e-6,
              c.threads, static_cast<double>(m.fixed - m.eviction) * 1e-6, static_cast<double>(loaded) * 1e-6,
              static_cast<double>(measured) * 1e-6);
  EXPECT_GE(planned, measured);
  // What torch keeps of each operation's result differs from run to run.
  EXPECT_LE(static_cast<double>(planned), (IsPlain(spec) ? 1.3 : 1.8) * static_cast<double>(measured));
}

INSTANTIATE_TEST_SUITE_P(
    Cpu, MemoryPlanBound,
    testing::Values(Case{"small_model", "bf16", 2, 256, {}},
                    Case{"weights", "bf16", 1, 256, {.layers = 6, .heads = 16, .kv_heads = 4, .head_dim = 64, .hidden = 1024,
                                                     .intermediate = 4096, .vocab = 4096}},
                    Case{"weights_f32", "f32", 1, 256, {.layers = 4, .heads = 16, .kv_heads = 4, .head_dim = 64, .hidden = 1024,
                                                        .intermediate = 4096, .vocab = 4096}},
                    Case{"activations", "bf16", 2, 2048, {.layers = 2, .heads = 16, .kv_heads = 2, .head_dim = 64, .hidden = 1024,
                                                          .intermediate = 4096, .vocab = 4096}},
                    Case{"gemma2", "bf16", 2, 2048, {.layers = 2, .heads = 16, .kv_heads = 2, .head_dim = 64, .hidden = 1024,
                                                          .intermediate = 4096, .vocab = 4096, .architecture = "Gemma2ForCausalLM"}},
                    Case{"gemma2_f32", "f32", 2, 1024, {.layers = 2, .heads = 16, .kv_heads = 2, .head_dim = 64, .hidden = 1024,
                                                          .intermediate = 4096, .vocab = 4096, .architecture = "Gemma2ForCausalLM"}},
                    Case{"qwen3", "bf16", 2, 1024, {.layers = 2, .heads = 16, .kv_heads = 2, .head_dim = 64, .hidden = 1024,
                                                          .intermediate = 4096, .vocab = 4096, .architecture = "Qwen3ForCausalLM"}},
                    Case{"cohere", "bf16", 2, 2048, {.layers = 2, .heads = 16, .kv_heads = 2, .head_dim = 64, .hidden = 1024,
                                                          .intermediate = 4096, .vocab = 4096, .architecture = "CohereForCausalLM"}},
                    Case{"phi3", "bf16", 1, 512, {.layers = 2, .heads = 16, .kv_heads = 2, .head_dim = 64, .hidden = 1024,
                                                          .intermediate = 4096, .vocab = 4096, .architecture = "Phi3ForCausalLM"}}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(MemoryPlan, CountsTheEmbeddingOnlyWhereItIsLoaded) {
  const RandomModel model({.layers = 4});
  const DecoderSpec spec = Must(ParseDecoder(model.config, "config"));
  const Plan plan = Must(DescribeModel(spec, Recipe::kNvfp4));
  const MemoryPlan first = PlanMemory(spec, plan, 0, 2, 128, MatmulDtype::kBf16), second = PlanMemory(spec, plan, 2, 4, 128, MatmulDtype::kBf16);
  EXPECT_EQ(first.Weights(2), second.Weights(2) + spec.vocab * spec.hidden * 2);
  EXPECT_EQ(second.Weights(9), second.Weights(2));   // never more than the stage has
  EXPECT_EQ(first.Weights(1), first.embedding + first.layer);
  EXPECT_EQ(first.Total(1, 1, 2) - first.Total(1, 1, 1), first.layer);
  EXPECT_EQ(first.per_cut, 128 * spec.hidden * 2);
  EXPECT_EQ(PlanMemory(spec, plan, 2, 4, 128, MatmulDtype::kF32).layer, 2 * second.layer - 2 * spec.hidden * 2);
}

}  // namespace
}  // namespace holdfast
