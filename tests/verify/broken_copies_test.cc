// SPDX-License-Identifier: Apache-2.0
//
// Every broken copy that was tried on an unpatched vLLM, rebuilt here with fresh checksums so that only the damage itself can give it
// away. Each is refused by the exact code; "alone" where the directory shows it, "against its source" where only the numbers do.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "export/nvfp4/nvfp4.h"
#include "tests/verify/tiny_output.h"

namespace holdfast::testing {
namespace {

using ::testing::ElementsAreArray;

constexpr char kQ[] = "model.layers.1.self_attn.q_proj";
constexpr char kK[] = "model.layers.1.self_attn.k_proj";
constexpr char kDown[] = "model.layers.0.mlp.down_proj";

std::string Of(const char* module, const char* part) { return std::string(module) + part; }

std::string Text(const VerifyReport& report) {
  std::string out;
  for (const VerifyFinding& f : report.findings) out += f.code + " " + f.object + ": " + f.message + "\n";
  return out;
}

// The error codes of the report, each once, are exactly `codes`.
void ExpectCodes(const VerifyReport& report, const std::vector<std::string>& codes) {
  std::vector<std::string> got;
  for (const VerifyFinding& f : report.findings) {
    if (f.severity == Severity::kError && (got.empty() || got.back() != f.code)) got.push_back(f.code);
  }
  EXPECT_FALSE(report.ok());
  EXPECT_THAT(got, ElementsAreArray(codes)) << Text(report);
}

void ExpectObject(const VerifyReport& report, const std::string& object) {
  for (const VerifyFinding& f : report.findings) {
    if (f.severity == Severity::kError && f.object == object) return;
  }
  ADD_FAILURE() << "no error names " << object << ":\n" << Text(report);
}

class Broken : public ::testing::Test {
 protected:
  void Refused(const std::vector<std::string>& codes, const std::string& object) {
    const VerifyReport report = out.Verify();
    ExpectCodes(report, codes);
    ExpectObject(report, object);
  }
  void RefusedAgainstSource(const std::vector<std::string>& codes, const std::string& object) {
    EXPECT_TRUE(out.Verify().ok()) << "the directory alone shows it; expect that instead:\n" << Text(out.Verify());
    const VerifyReport report = out.VerifyWithSource();
    ExpectCodes(report, codes);
    ExpectObject(report, object);
  }
  StoredBytes& At(const std::string& name) { return out.tensors.at(name); }

  TinyOutput out;
};

// ---- what vLLM refuses itself ----

TEST_F(Broken, WeightScaleMissing) {
  out.tensors.erase(Of(kQ, ".weight_scale"));
  Refused({"V040"}, Of(kQ, ".weight_scale"));
}
TEST_F(Broken, WeightScaleRenamed) {
  out.Rename(Of(kQ, ".weight_scale"), Of(kQ, ".weight_scales"));
  Refused({"V040", "V041"}, Of(kQ, ".weight_scales"));
}
TEST_F(Broken, WeightScale2Renamed) {
  out.Rename(Of(kQ, ".weight_scale_2"), Of(kQ, ".weight_global_scale"));
  Refused({"V040", "V041"}, Of(kQ, ".weight_scale_2"));
}
TEST_F(Broken, QProjWeightMissing) {
  out.tensors.erase(Of(kQ, ".weight"));
  Refused({"V040"}, Of(kQ, ".weight"));
}
TEST_F(Broken, QProjWeightRenamed) {
  out.Rename(Of(kQ, ".weight"), Of(kQ, ".weight_packed"));
  Refused({"V040", "V041"}, Of(kQ, ".weight"));
}
TEST_F(Broken, FinalNormMissing) {
  out.tensors.erase("model.norm.weight");
  Refused({"V040"}, "model.norm.weight");
}
TEST_F(Broken, FinalNormRenamed) {
  out.Rename("model.norm.weight", "model.final_norm.weight");
  Refused({"V040", "V041"}, "model.final_norm.weight");
}
TEST_F(Broken, WeightScaleOfBlocksOf32) {
  StoredBytes& s = At(Of(kDown, ".weight_scale"));
  s.shape = {64, 4};
  s.bytes.resize(64 * 4);
  Refused({"V043"}, Of(kDown, ".weight_scale"));
}
TEST_F(Broken, WeightScaleTransposed) {
  StoredBytes& s = At(Of(kDown, ".weight_scale"));
  const Bytes old = s.bytes;
  for (size_t r = 0; r < 64; ++r) {
    for (size_t c = 0; c < 8; ++c) s.bytes[c * 64 + r] = old[r * 8 + c];
  }
  s.shape = {8, 64};
  Refused({"V043"}, Of(kDown, ".weight_scale"));
}
TEST_F(Broken, WeightScaleOneDimensional) {
  At(Of(kDown, ".weight_scale")).shape = {512};
  Refused({"V043"}, Of(kDown, ".weight_scale"));
}
TEST_F(Broken, WeightScaleSwizzledAndPadded) {
  StoredBytes& s = At(Of(kDown, ".weight_scale"));
  s.shape = {128, 8};
  s.bytes.resize(128 * 8);
  Refused({"V043"}, Of(kDown, ".weight_scale"));
}
TEST_F(Broken, NanInWeightScale) {
  At(Of(kDown, ".weight_scale")).bytes[77] = 0x7f;
  Refused({"V061"}, Of(kDown, ".weight_scale"));
}
TEST_F(Broken, WeightScale2OfShapeTwo) {
  StoredBytes& s = At(Of(kDown, ".weight_scale_2"));
  s.shape = {2};
  s.bytes.insert(s.bytes.end(), s.bytes.begin(), s.bytes.begin() + 4);
  Refused({"V043"}, Of(kDown, ".weight_scale_2"));
}
TEST_F(Broken, LayerMissing) {
  std::erase_if(out.tensors, [](const auto& t) { return t.first.starts_with("model.layers.1."); });
  Refused({"V040"}, "model.layers.1.input_layernorm.weight");
}
TEST_F(Broken, UnknownExtraTensor) {
  out.tensors["model.layers.0.mlp.extra"] = At("model.norm.weight");
  Refused({"V041"}, "model.layers.0.mlp.extra");
}
TEST_F(Broken, PreQuantScaleLeft) {
  out.tensors[Of(kDown, ".pre_quant_scale")] = {DType::kBF16, {128}, Bytes(256, 0x3f)};
  Refused({"V041"}, Of(kDown, ".pre_quant_scale"));
}
TEST_F(Broken, ExcludeListWithoutLmHead) {
  out.SetExclude({"model.embed_tokens"});
  Refused({"V028"}, "config.json");
}
TEST_F(Broken, ExcludeListWithoutTiedLmHead) {
  TinyOutput tied({.tied = true});
  tied.SetExclude({"model.embed_tokens"});
  ExpectCodes(tied.Verify(), {"V028"});
}
TEST_F(Broken, EmptyExcludeLists) {
  out.SetExclude({});
  Refused({"V028"}, "config.json");
}
TEST_F(Broken, ExcludeListMissing) {
  out.quant().erase("ignore");
  Refused({"V026"}, "config.json");
}
TEST_F(Broken, ExcludesAQuantizedLinear) {
  out.SetExclude({"lm_head", "model.embed_tokens", kDown});
  Refused({"V033"}, kDown);
}
TEST_F(Broken, ExcludesQuantizedLinearsByShortPattern) {  // substring: "gate" hits gate_proj, and engines fuse it with up_proj
  out.SetExclude({"lm_head", "model.embed_tokens", "down"});
  Refused({"V033"}, kDown);
}
TEST_F(Broken, ExcludesOneMemberOfAFusedSet) {
  out.SetExclude({"lm_head", "model.embed_tokens", kQ});
  Refused({"V034"}, "model.layers.1.self_attn.qkv_proj");
}
TEST_F(Broken, QuantAlgoMissing) {
  out.quant().erase("quant_algo");
  Refused({"V024"}, "config.json");
}
TEST_F(Broken, QuantAlgoFp8) {
  out.quant()["quant_algo"] = "FP8";
  Refused({"V024"}, "config.json");
}
TEST_F(Broken, QuantAlgoUnknown) {
  out.quant()["quant_algo"] = "NVFP5";
  Refused({"V024"}, "config.json");
}
TEST_F(Broken, QuantMethodMissing) {
  out.quant().erase("quant_method");
  Refused({"V023"}, "config.json");
}
TEST_F(Broken, QuantMethodNvfp4) {
  out.quant()["quant_method"] = "nvfp4";
  Refused({"V023"}, "config.json");
}
TEST_F(Broken, TopLevelGroupSize32) {
  out.quant()["group_size"] = 32;
  Refused({"V025"}, "config.json");
}
TEST_F(Broken, GroupSize32InsideAGroup) {
  out.quant()["config_groups"]["group_0"]["weights"]["group_size"] = 32;
  Refused({"V025"}, "config.json");
}
TEST_F(Broken, NoQuantizationConfigAtAll) {
  out.config.erase("quantization_config");
  out.with_hf_quant = false;
  Refused({"V021"}, "config.json");
}
TEST_F(Broken, ConfigMissing) {
  out.with_config = false;
  ExpectCodes(out.Verify(), {"V020"});
}
TEST_F(Broken, TruncatedFile) {
  const std::string dir = out.Write();
  Bytes file = Slurp(dir + "/model.safetensors");
  for (const size_t keep : {file.size() - 1, file.size() / 2, size_t{8}, size_t{3}, size_t{0}}) {
    Spill(dir + "/model.safetensors", ByteSpan(file).first(keep));
    WriteSums(dir);
    ExpectCodes(VerifyDir(dir, &out.plan), {"V006"});
  }
}

// ---- what vLLM accepts by default, with garbage inside ----

TEST_F(Broken, InputScaleMissing) {
  out.tensors.erase(Of(kDown, ".input_scale"));
  Refused({"V040"}, Of(kDown, ".input_scale"));
}
TEST_F(Broken, WeightScale2Missing) {
  out.tensors.erase(Of(kDown, ".weight_scale_2"));
  Refused({"V040"}, Of(kDown, ".weight_scale_2"));
}
TEST_F(Broken, LayerNormMissing) {
  out.tensors.erase("model.layers.0.input_layernorm.weight");
  Refused({"V040"}, "model.layers.0.input_layernorm.weight");
}

// ---- what vLLM accepts always ----

TEST_F(Broken, WeightScaleStoredAsU8) {
  At(Of(kDown, ".weight_scale")).dtype = DType::kU8;
  Refused({"V042"}, Of(kDown, ".weight_scale"));
}
TEST_F(Broken, WeightScaleStoredAsE5m2) {
  At(Of(kDown, ".weight_scale")).dtype = DType::kF8E5M2;
  Refused({"V042"}, Of(kDown, ".weight_scale"));
}
TEST_F(Broken, WeightScaleSwizzledInTheSameShape) {
  StoredBytes& s = At("model.layers.0.mlp.gate_proj.weight_scale");  // [128, 4]: one tile of 128 x 4, as kernels want it
  const Bytes old = s.bytes;
  for (size_t r = 0; r < 128; ++r) {
    for (size_t c = 0; c < 4; ++c) s.bytes[(r % 32) * 16 + (r / 32) * 4 + c] = old[r * 4 + c];
  }
  RefusedAgainstSource({"V081"}, "model.layers.0.mlp.gate_proj.weight_scale");
}
TEST_F(Broken, WeightScale2Reciprocal) {
  for (auto& [name, t] : out.tensors) {
    if (name.ends_with(".weight_scale_2")) out.SetScalar(name, 1.0f / out.Scalar(name));
  }
  Refused({"V068"}, Of(kDown, ".weight_scale_2"));
}
TEST_F(Broken, OneWeightScale2Reciprocal) {
  out.SetScalar(Of(kDown, ".weight_scale_2"), 1.0f / out.Scalar(Of(kDown, ".weight_scale_2")));
  Refused({"V068"}, Of(kDown, ".weight_scale_2"));
}
TEST_F(Broken, InputScaleReciprocal) {
  for (auto& [name, t] : out.tensors) {
    if (name.ends_with(".input_scale")) out.SetScalar(name, 1.0f / out.Scalar(name));
  }
  Refused({"V069"}, "input_scale");
}
TEST_F(Broken, NibblesSwapped) {
  for (auto& [name, t] : out.tensors) {
    if (t.dtype != DType::kU8) continue;
    for (uint8_t& b : t.bytes) b = static_cast<uint8_t>(b << 4 | b >> 4);
  }
  RefusedAgainstSource({"V081"}, Of(kDown, ".weight"));
}
TEST_F(Broken, WeightScale2InBf16) {
  StoredBytes& s = At(Of(kDown, ".weight_scale_2"));
  s.dtype = DType::kBF16;
  s.bytes = {s.bytes[2], s.bytes[3]};
  Refused({"V042"}, Of(kDown, ".weight_scale_2"));
}
TEST_F(Broken, QWeightScale2DiffersFromKAndV) {
  out.SetScalar(Of(kQ, ".weight_scale_2"), out.Scalar(Of(kQ, ".weight_scale_2")) * 0.5f);
  Refused({"V064"}, Of(kK, ".weight_scale_2"));  // against the first member
}
TEST_F(Broken, QInputScaleDiffersByOneUlp) {
  out.SetScalar(Of(kQ, ".input_scale"), std::nextafter(out.Scalar(Of(kQ, ".input_scale")), 1.0f));
  const VerifyReport report = out.Verify();
  ExpectCodes(report, {"V064"});
}
TEST_F(Broken, OneInputScaleMissingInQkv) {
  out.tensors.erase(Of(kK, ".input_scale"));
  Refused({"V040"}, Of(kK, ".input_scale"));
}
TEST_F(Broken, KProjWeightMissing) {
  out.tensors.erase(Of(kK, ".weight"));
  Refused({"V040"}, Of(kK, ".weight"));
}
TEST_F(Broken, DownProjNotPacked) {
  StoredBytes& w = At(Of(kDown, ".weight"));
  Bytes codes;
  for (const uint8_t b : w.bytes) {
    codes.push_back(b & 15);
    codes.push_back(b >> 4);
  }
  w.bytes = codes;
  w.shape = {64, 128};
  Refused({"V043"}, Of(kDown, ".weight"));
}
TEST_F(Broken, DownProjInBf16ButNotExcluded) {
  At(Of(kDown, ".weight")) = out.source.at(Of(kDown, ".weight"));
  Refused({"V035"}, kDown);
}
TEST_F(Broken, DownProjInBf16WithoutScalesNotExcluded) {
  At(Of(kDown, ".weight")) = out.source.at(Of(kDown, ".weight"));
  for (const char* part : {".weight_scale", ".weight_scale_2", ".input_scale"}) out.tensors.erase(Of(kDown, part));
  Refused({"V035"}, kDown);
}
TEST_F(Broken, OneInputScaleZero) {
  out.SetScalar(Of(kDown, ".input_scale"), 0.0f);
  Refused({"V060"}, Of(kDown, ".input_scale"));
}
TEST_F(Broken, WeightAsInt8) {
  At(Of(kDown, ".weight")).dtype = DType::kI8;
  Refused({"V042"}, Of(kDown, ".weight"));
}
TEST_F(Broken, WeightScaleStoredAsF32) {
  StoredBytes& s = At(Of(kDown, ".weight_scale"));
  Bytes wide;
  for (const uint8_t b : s.bytes) {
    const float v = E4m3ToFloat(b);
    wide.resize(wide.size() + 4);
    std::memcpy(&wide[wide.size() - 4], &v, 4);
  }
  s = {DType::kF32, s.shape, wide};
  Refused({"V042"}, Of(kDown, ".weight_scale"));
}
TEST_F(Broken, WeightScaleStoredAsBf16) {
  StoredBytes& s = At(Of(kDown, ".weight_scale"));
  Bytes wide;
  for (const uint8_t b : s.bytes) {
    const uint16_t v = FloatToBf16(E4m3ToFloat(b));
    wide.push_back(v & 0xff);
    wide.push_back(v >> 8);
  }
  s = {DType::kBF16, s.shape, wide};
  Refused({"V042"}, Of(kDown, ".weight_scale"));
}

// ---- from the list of the other loader, as far as it applies to this layout ----

TEST_F(Broken, WeightZeroPointLeft) {
  out.tensors[Of(kDown, ".weight_zero_point")] = {DType::kI8, {64, 8}, Bytes(512)};
  Refused({"V041"}, Of(kDown, ".weight_zero_point"));
}
TEST_F(Broken, PackedCopyBesideTheWeight) {
  out.tensors[Of(kDown, ".weight_packed")] = At(Of(kDown, ".weight"));
  Refused({"V041"}, Of(kDown, ".weight_packed"));
}
TEST_F(Broken, WeightScaleFlattened) {
  At("model.layers.0.mlp.up_proj.weight_scale").shape = {1, 512};
  Refused({"V043"}, "model.layers.0.mlp.up_proj.weight_scale");
}
TEST_F(Broken, ScaleRowsShifted) {
  Bytes& s = At(Of(kDown, ".weight_scale")).bytes;
  std::rotate(s.begin(), s.begin() + 8, s.end());
  RefusedAgainstSource({"V081"}, Of(kDown, ".weight_scale"));
}
TEST_F(Broken, LmHeadInputScaleLeft) {
  out.tensors["lm_head.input_scale"] = At(Of(kDown, ".input_scale"));
  Refused({"V041"}, "lm_head.input_scale");
}

// ---- other ways to be wrong ----

TEST_F(Broken, NegativeBlockScale) {
  At(Of(kDown, ".weight_scale")).bytes[3] |= 0x80;
  Refused({"V061"}, Of(kDown, ".weight_scale"));
}
TEST_F(Broken, ZeroBlockScale) {
  At(Of(kDown, ".weight_scale")).bytes[3] = 0;
  Refused({"V061"}, Of(kDown, ".weight_scale"));
}
TEST_F(Broken, WeightScale2NanInfSubnormal) {
  for (const float v : {NAN, INFINITY, -1.0f, 1e-40f, 0.0f}) {
    out.SetScalar(Of(kDown, ".weight_scale_2"), v);
    Refused({"V060"}, Of(kDown, ".weight_scale_2"));
  }
}
TEST_F(Broken, WrongAmax) {  // quantized with twice the amax: legal bytes, half of the range
  const StoredBytes& w = out.source.at(Of(kDown, ".weight"));
  const float scale2 = 2 * out.Scalar(Of(kDown, ".weight_scale_2"));
  QuantizeNvfp4(w.dtype, w.bytes, 64, 128, scale2, At(Of(kDown, ".weight")).bytes, At(Of(kDown, ".weight_scale")).bytes);
  out.SetScalar(Of(kDown, ".weight_scale_2"), scale2);
  Refused({"V062"}, kDown);
}
TEST_F(Broken, WeightScale2OfAWholeSetDoubled) {
  for (const char* p : {"q_proj", "k_proj", "v_proj"}) {
    const std::string name = std::string("model.layers.0.self_attn.") + p + ".weight_scale_2";
    out.SetScalar(name, out.Scalar(name) * 2);
  }
  RefusedAgainstSource({"V081"}, "model.layers.0.self_attn.k_proj.weight_scale_2");
}
TEST_F(Broken, CodesLost) {  // an offloaded tensor that was never written
  auto& codes = At(Of(kDown, ".weight")).bytes;
  std::fill(codes.begin(), codes.end(), 0);
  Refused({"V063"}, Of(kDown, ".weight"));
}
TEST_F(Broken, CodesOfAnotherShape) {  // one row short, shifted from there on by half a block
  auto& codes = At(Of(kDown, ".weight")).bytes;
  std::rotate(codes.begin() + 64, codes.begin() + 68, codes.end());
  const VerifyReport report = out.Verify();
  ExpectCodes(report, {"V063"});
}
TEST_F(Broken, NormAllZero) {
  auto& b = At("model.layers.0.input_layernorm.weight").bytes;
  std::fill(b.begin(), b.end(), 0);
  Refused({"V066"}, "model.layers.0.input_layernorm.weight");
}
TEST_F(Broken, EmbeddingAllZero) {
  auto& b = At("model.embed_tokens.weight").bytes;
  std::fill(b.begin(), b.end(), 0);
  Refused({"V066"}, "model.embed_tokens.weight");
}
TEST_F(Broken, NanInLmHead) {
  At("lm_head.weight").bytes[100] = 0xc0;
  At("lm_head.weight").bytes[101] = 0x7f;
  Refused({"V065"}, "lm_head.weight");
}
TEST_F(Broken, NormOfAnotherDtypeClass) {
  At("model.norm.weight") = {DType::kU8, {64}, Bytes(64, 1)};
  Refused({"V042"}, "model.norm.weight");
}
TEST_F(Broken, NormOfWrongShape) {
  At("model.norm.weight").shape = {1, 64};
  Refused({"V043"}, "model.norm.weight");
}
TEST_F(Broken, UntiedModelWithTiedDifferentHead) {
  TinyOutput tied({.tied = true});
  tied.tensors["lm_head.weight"] = tied.tensors.at("model.embed_tokens.weight");
  tied.tensors["lm_head.weight"].bytes[8] ^= 1;
  ExpectCodes(tied.Verify(), {"V047"});
}
TEST_F(Broken, AttentionNotExcludedInMlpOnly) {
  TinyOutput mlp({.mlp_only = true});
  mlp.SetExclude({"lm_head", "model.embed_tokens", "model.layers.0.self_attn*"});
  const VerifyReport report = mlp.Verify();
  ExpectCodes(report, {"V035"});
  ExpectObject(report, "model.layers.1.self_attn.o_proj");
}
TEST_F(Broken, WeightOnlyWithInputScale) {
  TinyOutput w4({.weight_only = true});
  w4.tensors[Of(kDown, ".input_scale")] = {DType::kF32, {}, Bytes{0, 0, 0x80, 0x3f}};
  ExpectCodes(w4.Verify(), {"V041"});
}
TEST_F(Broken, GroupsDescribeAnotherAlgorithm) {
  out.quant()["config_groups"]["group_0"].erase("input_activations");
  Refused({"V027"}, "config.json");
}
TEST_F(Broken, PassthroughTensorDiffersFromSource) {
  At("model.embed_tokens.weight").bytes[1000] ^= 1;
  RefusedAgainstSource({"V082"}, "model.embed_tokens.weight");
}
TEST_F(Broken, OneCodeDiffersFromSource) {
  auto& codes = At(Of(kDown, ".weight")).bytes;
  for (size_t i = 0; i < codes.size(); ++i) {
    if ((codes[i] & 7) > 5) continue;  // keep the block's largest code
    codes[i] ^= 8;                     // flip a sign
    break;
  }
  RefusedAgainstSource({"V081"}, Of(kDown, ".weight"));
}
TEST_F(Broken, SourceOfAnotherModel) {
  out.source.erase("model.norm.weight");
  RefusedAgainstSource({"V080"}, "model.norm.weight");
}

// ---- without a plan ----

TEST_F(Broken, WithoutPlanStructureIsStillJudged) {
  out.tensors.erase(Of(kQ, ".weight_scale_2"));
  ExpectCodes(out.VerifyWithoutPlan(), {"V040"});
}
TEST_F(Broken, WithoutPlanLayerMissing) {
  std::erase_if(out.tensors, [](const auto& t) { return t.first.starts_with("model.layers.1."); });
  ExpectCodes(out.VerifyWithoutPlan(), {"V040"});
}
TEST_F(Broken, WithoutPlanNotPacked) {
  StoredBytes& w = At(Of(kDown, ".weight"));
  w.bytes.resize(w.bytes.size() * 2);
  w.shape = {64, 128};
  ExpectCodes(out.VerifyWithoutPlan(), {"V043"});
}
TEST_F(Broken, WithoutPlanQDiffers) {
  out.SetScalar(Of(kQ, ".weight_scale_2"), out.Scalar(Of(kQ, ".weight_scale_2")) * 0.5f);
  const VerifyReport report = out.VerifyWithoutPlan();
  EXPECT_NE(Text(report).find("V064"), std::string::npos);
}

}  // namespace
}  // namespace holdfast::testing
