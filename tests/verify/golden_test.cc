// SPDX-License-Identifier: Apache-2.0
//
// Exports that NVIDIA Model-Optimizer itself made: sound by definition, so every rule that a max-calibrated one breaks is a wrong rule.
// Its NaN export of a zero matrix is refused.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/verify/tiny_output.h"

namespace holdfast::testing {
namespace {

std::string Root() { return std::string(HOLDFAST_SOURCE_DIR) + "/tests/golden/exports/"; }

// The findings in a copy with checksums; V036 (no plan) and V048 (tiny shapes) are expected and left out.
std::string Judge(const std::string& name, bool with_source) {
  TempDir temp;
  PosixFileSystem fs;
  const std::vector<std::string> files = *fs.List(Root() + name);
  for (const std::string& file : files) Spill(temp.path() + "/" + file, Slurp(Root() + name + "/" + file));
  WriteSums(temp.path());
  const VerifyReport report = VerifyDir(temp.path(), nullptr, with_source ? Root() + name + "_src" : "");
  std::string out;
  for (const VerifyFinding& f : report.findings) {
    if (f.code != "V036" && f.code != "V048") out += f.code + " " + f.object + ": " + f.message + "\n";
  }
  return out;
}

class GoldenExport : public ::testing::TestWithParam<const char*> {};

TEST_P(GoldenExport, IsSoundAgainstItsSource) { EXPECT_EQ(Judge(GetParam(), true), ""); }

INSTANTIATE_TEST_SUITE_P(Exports, GoldenExport,
                         ::testing::Values("a_llama_nvfp4", "b_llama_tied_fp8kv", "g_llama_w4a16", "n_float16"),
                         [](const auto& info) { return std::string(info.param); });

TEST(Golden, MlpOnlyInFourShardsIsSound) { EXPECT_EQ(Judge("l_llama_mlponly", false), ""); }

TEST(Golden, ExpertsAreSound) { EXPECT_EQ(Judge("h_qwen3moe", false), ""); }  // the source has its experts fused

TEST(Golden, ZeroMatrixAsNanIsRefused) {
  const std::string found = Judge("m_zero_weight", false);
  EXPECT_THAT(found, ::testing::HasSubstr("V060 "));
  EXPECT_THAT(found, ::testing::HasSubstr("V061 "));
}

}  // namespace
}  // namespace holdfast::testing
