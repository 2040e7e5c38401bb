// SPDX-License-Identifier: Apache-2.0
//
// Sound outputs pass without a single finding, whatever their shape; and what engines take without harm is at most a warning.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "export/nvfp4/nvfp4.h"
#include "export/verify/rules.h"
#include "tests/verify/tiny_output.h"

namespace holdfast::testing {
namespace {

using ::testing::IsEmpty;
constexpr OutputLayout kCompressed = OutputLayout::kCompressedTensors;

std::vector<std::string> Lines(const VerifyReport& report) {
  std::vector<std::string> lines;
  for (const VerifyFinding& f : report.findings) lines.push_back(f.code + " " + f.object + ": " + f.message);
  return lines;
}

struct Shape {
  const char* name;
  TinyOptions options;
};
void PrintTo(const Shape& s, std::ostream* out) { *out << s.name; }

class Sound : public ::testing::TestWithParam<Shape> {};

TEST_P(Sound, HasNoFindingsAlone) {
  TinyOutput out(GetParam().options);
  const VerifyReport report = out.Verify();
  EXPECT_THAT(Lines(report), IsEmpty());
  EXPECT_TRUE(report.ok());
  EXPECT_EQ(report.tensors, out.tensors.size());
  EXPECT_FALSE(report.compared_with_source);
}

TEST_P(Sound, HasNoFindingsAgainstItsSource) {
  TinyOutput out(GetParam().options);
  const VerifyReport report = out.VerifyWithSource();
  EXPECT_THAT(Lines(report), IsEmpty());
  EXPECT_TRUE(report.compared_with_source);
}

TEST_P(Sound, WithoutAPlanOnlySaysSo) {
  TinyOutput out(GetParam().options);
  const VerifyReport report = out.VerifyWithoutPlan();
  ASSERT_EQ(report.findings.size(), 1u) << ::testing::PrintToString(Lines(report));
  EXPECT_EQ(report.findings[0].code, "V036");
  EXPECT_TRUE(report.ok());
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, Sound,
    ::testing::Values(Shape{"plain", {}}, Shape{"tied", {.tied = true}}, Shape{"mlp_only", {.mlp_only = true}},
                      Shape{"weight_only", {.weight_only = true}}, Shape{"sharded", {.layers = 4, .shards = 3}},
                      Shape{"bias", {.bias = true}}, Shape{"wide", {.layers = 1, .hidden = 256, .intermediate = 704, .kv = 64}},
                      Shape{"float16", {.dtype = DType::kF16}}, Shape{"float32", {.dtype = DType::kF32, .seed = 7}},
                      Shape{"tied_mlp_only_sharded", {.layers = 3, .tied = true, .mlp_only = true, .shards = 2, .seed = 3}},
                      Shape{"compressed", {.layout = kCompressed}}, Shape{"compressed_tied", {.tied = true, .layout = kCompressed}},
                      Shape{"compressed_mlp_only", {.mlp_only = true, .bias = true, .shards = 2, .layout = kCompressed}},
                      Shape{"compressed_weight_only", {.weight_only = true, .layout = kCompressed}},
                      Shape{"compressed_float32", {.dtype = DType::kF32, .seed = 11, .layout = kCompressed}}),
    [](const auto& info) { return std::string(info.param.name); });

// The derivation above the block rule, tried on random data of every scale: no false alarm.
TEST(Sound, ManySeedsOfAllMagnitudes) {
  for (uint64_t seed = 100; seed < 140; ++seed) {
    TinyOutput out({.layers = 1, .dtype = DType::kF32, .seed = seed});
    EXPECT_THAT(Lines(out.Verify()), IsEmpty()) << "seed " << seed;
  }
}

// Blocks from far below the smallest scale up to the amax, zero blocks and the lower clamp among them.
TEST(Sound, BlocksOfVeryDifferentMagnitude) {
  TinyOutput out({.layers = 1, .dtype = DType::kF32});
  StoredBytes& w = out.source.at("model.layers.0.mlp.down_proj.weight");
  const uint64_t blocks = w.bytes.size() / 64;
  for (uint64_t b = 0; b < blocks; ++b) {
    for (uint64_t i = 0; i < 16; ++i) {
      float v;
      std::memcpy(&v, &w.bytes[b * 64 + i * 4], 4);
      v = b % 37 == 5 ? (b % 2 == 0 ? 0.0f : -0.0f) : std::ldexp(v, -static_cast<int>(b % 30));
      std::memcpy(&w.bytes[b * 64 + i * 4], &v, 4);
    }
  }
  const float scale2 = GlobalScale(*WeightAmax(DType::kF32, w.bytes, "w"));
  const std::string m = "model.layers.0.mlp.down_proj";
  QuantizeNvfp4(DType::kF32, w.bytes, 64, 128, scale2, out.tensors.at(m + ".weight").bytes, out.tensors.at(m + ".weight_scale").bytes);
  out.SetScalar(m + ".weight_scale_2", scale2);
  EXPECT_THAT(Lines(out.VerifyWithSource()), IsEmpty());
}

TEST(Sound, ThreadsDoNotMatter) {
  TinyOutput out({.layers = 3, .shards = 2});
  const std::string dir = out.Write(), source = out.WriteSource();
  for (const uint32_t threads : {1u, 3u, 64u}) EXPECT_THAT(Lines(VerifyDir(dir, &out.plan, source, threads)), IsEmpty());
}

TEST(Sound, ProgressEndsAtTheTotal) {
  TinyOutput out;
  const std::string dir = out.Write();
  PosixFileSystem fs;
  VerifyOptions options;
  options.expected = &out.plan;
  uint64_t done = 0, total = 0;
  options.on_progress = [&](uint64_t d, uint64_t t) { done = d, total = t; };
  ASSERT_TRUE(VerifyOutput(fs, dir, options).ok());
  EXPECT_GT(total, 0u);
  EXPECT_EQ(done, total);
}

TEST(Sound, AMissingDirectoryIsAnErrorAndNoFinding) {
  PosixFileSystem fs;
  EXPECT_EQ(VerifyOutput(fs, "/nonexistent/holdfast", {}).code(), ErrorCode::kNotFound);
}

// ---- harmless: at most a warning ----

void ExpectWarned(const VerifyReport& report, const std::string& code) {
  EXPECT_TRUE(report.ok()) << ::testing::PrintToString(Lines(report));
  bool found = false;
  for (const VerifyFinding& f : report.findings) found |= f.code == code && f.severity == Severity::kWarning;
  EXPECT_TRUE(found) << code << " is not among " << ::testing::PrintToString(Lines(report));
}

TEST(Harmless, WeightScale2OfShapeOne) {
  TinyOutput out;
  out.tensors.at("model.layers.0.mlp.down_proj.weight_scale_2").shape = {1};
  ExpectWarned(out.VerifyWithSource(), "V044");
}

TEST(Harmless, ExtraTiedLmHead) {
  TinyOutput out({.tied = true});
  out.tensors["lm_head.weight"] = out.tensors.at("model.embed_tokens.weight");
  ExpectWarned(out.VerifyWithSource(), "V046");
}

TEST(Harmless, KvScalesPresent) {
  TinyOutput out;
  out.tensors["model.layers.0.self_attn.k_proj.k_scale"] = {DType::kF32, {}, Bytes{0, 0, 0x80, 0x3f}};
  out.tensors["model.layers.0.self_attn.v_proj.v_scale"] = {DType::kF32, {}, Bytes{0, 0, 0x80, 0x3f}};
  ExpectWarned(out.Verify(), "V032");
}

TEST(Harmless, HfQuantConfigMissing) {
  TinyOutput out;
  out.with_hf_quant = false;
  ExpectWarned(out.Verify(), "V030");
}

TEST(Harmless, HfQuantConfigWithoutKvAlgo) {
  TinyOutput out;
  out.hf_quant["quantization"].erase("kv_cache_quant_algo");
  ExpectWarned(out.Verify(), "V030");
}

TEST(Harmless, HfQuantConfigWrong) {
  TinyOutput out;
  out.hf_quant["quantization"]["quant_algo"] = "FP8";
  ExpectWarned(out.Verify(), "V031");
  TinyOutput excludes;
  excludes.hf_quant["quantization"]["exclude_modules"] = {"lm_head"};
  ExpectWarned(excludes.Verify(), "V031");
}

TEST(Harmless, HfQuantConfigAlone) {
  TinyOutput out;
  out.config.erase("quantization_config");
  ExpectWarned(out.Verify(), "V022");
}

TEST(Harmless, ExcludeModulesInsteadOfIgnore) {
  TinyOutput out;
  out.quant()["exclude_modules"] = out.quant()["ignore"];
  out.quant().erase("ignore");
  EXPECT_THAT(Lines(out.Verify()), IsEmpty());
}

TEST(Harmless, InvFreqBuffer) {
  TinyOutput out;
  out.tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = {DType::kF32, {8}, Bytes(32, 1)};
  ExpectWarned(out.Verify(), "V049");
}

TEST(Harmless, NarrowShapes) {
  TinyOutput out({.hidden = 48, .intermediate = 80, .kv = 16});
  ExpectWarned(out.VerifyWithSource(), "V048");
}

TEST(Harmless, ZeroMatrixOfTheSource) {
  TinyOutput out;
  const std::string m = "model.layers.1.mlp.down_proj";
  auto& w = out.source.at(m + ".weight").bytes;
  std::fill(w.begin(), w.end(), 0);
  auto& codes = out.tensors.at(m + ".weight").bytes;
  std::fill(codes.begin(), codes.end(), 0);
  auto& scales = out.tensors.at(m + ".weight_scale").bytes;
  std::fill(scales.begin(), scales.end(), 0x38);
  out.SetScalar(m + ".weight_scale_2", 1.0f);
  ExpectWarned(out.VerifyWithSource(), "V067");
}

TEST(Harmless, DeadInput) {
  TinyOutput out;
  out.SetScalar("model.layers.1.mlp.down_proj.input_scale", 1.0f);
  EXPECT_THAT(Lines(out.Verify()), IsEmpty());
}

// ---- the register ----

TEST(Rules, DocsAndRegisterAgree) {
  const Bytes page = Slurp(std::string(HOLDFAST_SOURCE_DIR) + "/docs/verify.md");
  const std::string text(AsText(page));
  size_t rows = 0;
  for (const VerifyRule& rule : VerifyRules()) {
    const std::string row = std::string("| ") + rule.code + " | " + (rule.severity == Severity::kError ? "error" : "warning") + " | ";
    EXPECT_NE(text.find(row), std::string::npos) << rule.code << " has no row in docs/verify.md";
  }
  for (size_t at = text.find("\n| V"); at != std::string::npos; at = text.find("\n| V", at + 1)) ++rows;
  EXPECT_EQ(rows, VerifyRules().size());
}

}  // namespace
}  // namespace holdfast::testing
