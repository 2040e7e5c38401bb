// SPDX-License-Identifier: Apache-2.0
//
// Every broken copy of a compressed-tensors output that was tried on an unpatched transformers, and what vLLM refuses of that layout: the exact
// code for each. Most of them load there without a word.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "export/nvfp4/nvfp4.h"
#include "tests/verify/tiny_output.h"

namespace holdfast::testing {
namespace {

using ::testing::ElementsAreArray;

const std::string kQ = "model.layers.1.self_attn.q_proj";
const std::string kK = "model.layers.1.self_attn.k_proj";
const std::string kDown = "model.layers.0.mlp.down_proj";

std::string Text(const VerifyReport& report) {
  std::string out;
  for (const VerifyFinding& f : report.findings) out += f.code + " " + f.object + ": " + f.message + "\n";
  return out;
}

class BrokenCompressed : public ::testing::Test {
 protected:
  static void Expect(const VerifyReport& report, const std::vector<std::string>& codes, const std::string& object) {
    std::vector<std::string> got;
    bool named = false;
    for (const VerifyFinding& f : report.findings) {
      if (f.severity != Severity::kError) continue;
      if (got.empty() || got.back() != f.code) got.push_back(f.code);
      named |= f.object == object;
    }
    EXPECT_FALSE(report.ok());
    EXPECT_THAT(got, ElementsAreArray(codes)) << Text(report);
    EXPECT_TRUE(named) << "no error names " << object << ":\n" << Text(report);
  }
  void Refused(const std::vector<std::string>& codes, const std::string& object) { Expect(out.Verify(), codes, object); }
  void RefusedAgainstSource(const std::vector<std::string>& codes, const std::string& object) {
    EXPECT_TRUE(out.Verify().ok()) << "the directory alone shows it; expect that instead:\n" << Text(out.Verify());
    Expect(out.VerifyWithSource(), codes, object);
  }
  StoredBytes& At(const std::string& name) { return out.tensors.at(name); }
  OrderedJson& Group() { return out.quant()["config_groups"]["group_0"]; }
  void Invert(const std::string& suffix) {
    for (auto& [name, t] : out.tensors) {
      if (name.ends_with(suffix)) out.SetScalar(name, 1.0f / out.Scalar(name));
    }
  }

  TinyOutput out{{.layout = OutputLayout::kCompressedTensors}};
};

// ---- loads in transformers, garbage inside; only its loading report lists the keys ----

TEST_F(BrokenCompressed, WeightPackedRenamed) {
  out.Rename(kQ + ".weight_packed", kQ + ".weight_codes");
  Refused({"V040", "V041"}, kQ + ".weight_packed");
}
TEST_F(BrokenCompressed, AScaleMissing) {
  for (const char* part : {".input_global_scale", ".weight_scale", ".weight_global_scale"}) {
    TinyOutput one({.layout = OutputLayout::kCompressedTensors});
    one.tensors.erase(kDown + part);
    Expect(one.Verify(), {"V040"}, kDown + part);
  }
}
TEST_F(BrokenCompressed, WeightZeroPointLeft) {
  out.tensors[kDown + ".weight_zero_point"] = {DType::kI8, {64, 8}, Bytes(512)};
  Refused({"V041"}, kDown + ".weight_zero_point");
}
TEST_F(BrokenCompressed, PlainWeightLeftBesideThePackedOne) {
  out.tensors[kDown + ".weight"] = out.source.at(kDown + ".weight");
  Refused({"V041"}, kDown + ".weight");
  Expect(out.VerifyWithoutPlan(), {"V041"}, kDown + ".weight");
}
TEST_F(BrokenCompressed, GroupIndexLeft) {
  out.tensors[kDown + ".weight_g_idx"] = {DType::kI32, {128}, Bytes(512)};
  Refused({"V041"}, kDown + ".weight_g_idx");
}
TEST_F(BrokenCompressed, StatusFrozen) {
  out.quant()["quantization_status"] = "frozen";
  Refused({"V038"}, "config.json");
}

// ---- transformers refuses ----

TEST_F(BrokenCompressed, WeightScaleTransposedOrFlattened) {
  At(kDown + ".weight_scale").shape = {8, 64};
  Refused({"V043"}, kDown + ".weight_scale");
  At(kDown + ".weight_scale").shape = {512};
  Refused({"V043"}, kDown + ".weight_scale");
}
TEST_F(BrokenCompressed, ScalarsWithoutAShape) {
  At(kDown + ".weight_global_scale").shape = {};
  Refused({"V043"}, kDown + ".weight_global_scale");
  At(kDown + ".weight_global_scale").shape = {1};
  At(kDown + ".input_global_scale").shape = {};
  Refused({"V043"}, kDown + ".input_global_scale");
}
TEST_F(BrokenCompressed, IgnoreListWithoutLmHead) {
  out.quant()["ignore"] = OrderedJson::array();
  Refused({"V028"}, "config.json");
}
TEST_F(BrokenCompressed, IgnoreListMissing) {
  out.quant().erase("ignore");
  Refused({"V026"}, "config.json");
}
TEST_F(BrokenCompressed, WrongFormatInTheGroup) {
  Group()["format"] = "pack-quantized";
  Refused({"V037"}, "config.json");
}

// ---- loads in silence ----

TEST_F(BrokenCompressed, WeightGlobalScalesInverted) {
  Invert(".weight_global_scale");
  Refused({"V068"}, kDown + ".weight_global_scale");
}
TEST_F(BrokenCompressed, OneWeightGlobalScaleInverted) {
  out.SetScalar(kDown + ".weight_global_scale", 1.0f / out.Scalar(kDown + ".weight_global_scale"));
  Refused({"V068"}, kDown + ".weight_global_scale");
}
TEST_F(BrokenCompressed, InputGlobalScalesInverted) {
  Invert(".input_global_scale");
  Refused({"V069"}, "input_global_scale");
}
TEST_F(BrokenCompressed, WrongFormatAtTheTopOnly) {
  out.quant()["format"] = "float-quantized";
  Refused({"V037"}, "config.json");
}
TEST_F(BrokenCompressed, WeightScaleStoredAsU8) {
  At(kDown + ".weight_scale").dtype = DType::kU8;
  Refused({"V042"}, kDown + ".weight_scale");
}
TEST_F(BrokenCompressed, WeightScaleStoredAsBf16) {
  StoredBytes& s = At(kDown + ".weight_scale");
  Bytes wide;
  for (const uint8_t b : s.bytes) {
    const uint16_t v = FloatToBf16(E4m3ToFloat(b));
    wide.push_back(v & 0xff);
    wide.push_back(v >> 8);
  }
  s = {DType::kBF16, s.shape, wide};
  Refused({"V042"}, kDown + ".weight_scale");
}
TEST_F(BrokenCompressed, NibblesSwapped) {
  for (auto& [name, t] : out.tensors) {
    if (t.dtype != DType::kU8) continue;
    for (uint8_t& b : t.bytes) b = static_cast<uint8_t>(b << 4 | b >> 4);
  }
  RefusedAgainstSource({"V081"}, kDown + ".weight_packed");
}
TEST_F(BrokenCompressed, ScaleRowsShifted) {
  Bytes& s = At(kDown + ".weight_scale").bytes;
  std::rotate(s.begin(), s.begin() + 8, s.end());
  RefusedAgainstSource({"V081"}, kDown + ".weight_scale");
}
TEST_F(BrokenCompressed, NanScaleByte) {
  At(kDown + ".weight_scale").bytes[77] = 0x7f;
  Refused({"V061"}, kDown + ".weight_scale");
}

// ---- the scales themselves ----

TEST_F(BrokenCompressed, GlobalScaleOfNoUse) {
  for (const float v : {NAN, INFINITY, -1.0f, 1e-40f, 0.0f}) {
    out.SetScalar(kDown + ".weight_global_scale", v);
    Refused({"V060"}, kDown + ".weight_global_scale");
  }
}
// The exact reciprocal, and not the value that two roundings give.
TEST_F(BrokenCompressed, GlobalScaleOneUlpOff) {
  for (const char* p : {"q_proj", "k_proj", "v_proj"}) {
    const std::string name = std::string("model.layers.0.self_attn.") + p + ".weight_global_scale";
    out.SetScalar(name, std::nextafter(out.Scalar(name), 1e30f));
  }
  RefusedAgainstSource({"V081"}, "model.layers.0.self_attn.q_proj.weight_global_scale");
}
TEST_F(BrokenCompressed, AFusedSetDiffers) {
  out.SetScalar(kQ + ".input_global_scale", std::nextafter(out.Scalar(kQ + ".input_global_scale"), 1e30f));
  Refused({"V064"}, kK + ".input_global_scale");
}
TEST_F(BrokenCompressed, ScalarInBf16) {
  StoredBytes& s = At(kDown + ".weight_global_scale");
  s.dtype = DType::kBF16;
  s.bytes = {s.bytes[2], s.bytes[3]};
  Refused({"V042"}, kDown + ".weight_global_scale");
}
TEST_F(BrokenCompressed, ModeloptsNames) {
  out.Rename(kDown + ".weight_global_scale", kDown + ".weight_scale_2");
  Refused({"V040", "V041"}, kDown + ".weight_scale_2");
}

// ---- the config ----

TEST_F(BrokenCompressed, QuantMethodMissingOrOfAnother) {
  out.quant().erase("quant_method");
  Refused({"V023"}, "config.json");
  out.quant()["quant_method"] = "nvfp4";
  Refused({"V023"}, "config.json");
}
TEST_F(BrokenCompressed, GroupSize32) {
  Group()["weights"]["group_size"] = 32;
  Refused({"V025"}, "config.json");
}
TEST_F(BrokenCompressed, ArgumentsOfAnotherScheme) {
  const std::pair<const char*, OrderedJson> changes[] = {{"num_bits", 8}, {"type", "int"}, {"strategy", "group"}, {"symmetric", false}, {"dynamic", true}};
  for (const auto& [key, value] : changes) {
    for (const char* part : {"weights", "input_activations"}) {
      TinyOutput one({.layout = OutputLayout::kCompressedTensors});
      one.quant()["config_groups"]["group_0"][part][key] = value;
      Expect(one.Verify(), {"V027"}, "config.json");
    }
  }
}
TEST_F(BrokenCompressed, NotAllLinears) {
  Group()["targets"] = {"re:.*mlp.*"};
  Refused({"V027"}, "config.json");
}
TEST_F(BrokenCompressed, TwoGroups) {
  const OrderedJson group = Group();
  out.quant()["config_groups"]["group_1"] = group;
  Refused({"V027"}, "config.json");
}
TEST_F(BrokenCompressed, UnknownKeys) {
  Group()["weights"]["bits"] = 4;
  Refused({"V039"}, "config.json");
  Group()["weights"].erase("bits");
  Group()["scheme"] = "NVFP4";
  Refused({"V039"}, "config.json");
}
TEST_F(BrokenCompressed, SparseTransformedOrReordered) {
  out.quant()["sparsity_config"]["format"] = "dense";
  Refused({"V039"}, "config.json");
  out.quant()["sparsity_config"] = OrderedJson::object();
  out.quant()["transform_config"]["config_groups"] = OrderedJson::object();
  Refused({"V039"}, "config.json");
  out.quant()["transform_config"] = OrderedJson::object();
  Group()["weights"]["actorder"] = "group";
  Refused({"V039"}, "config.json");
}
TEST_F(BrokenCompressed, IgnoresAQuantizedLinear) {
  out.quant()["ignore"].push_back(kDown);
  Refused({"V033"}, kDown);
}
TEST_F(BrokenCompressed, IgnoresOneMemberOfAFusedSet) {
  out.quant()["ignore"].push_back("re:.*layers.1.*q_proj");
  Refused({"V034"}, "model.layers.1.self_attn.qkv_proj");
}
// Names, not patterns: what excludes in the other layout does nothing here.
TEST_F(BrokenCompressed, DownProjInBf16UnderAPatternOfTheOtherLayout) {
  for (const char* part : {".weight_packed", ".weight_scale", ".weight_global_scale", ".input_global_scale"}) out.tensors.erase(kDown + part);
  out.tensors[kDown + ".weight"] = out.source.at(kDown + ".weight");
  out.quant()["ignore"].push_back("model.layers.0.mlp.down*");
  Refused({"V035"}, kDown);
}
TEST_F(BrokenCompressed, WeightOnlyWithInputScales) {
  Group()["input_activations"] = nullptr;
  Refused({"V041"}, kDown + ".input_global_scale");
}

// ---- warnings ----

TEST_F(BrokenCompressed, HfQuantConfigBesideIt) {
  out.with_hf_quant = true;
  const VerifyReport report = out.Verify();
  EXPECT_TRUE(report.ok()) << Text(report);
  EXPECT_THAT(Text(report), ::testing::StartsWith("V031 hf_quant_config.json"));
}

}  // namespace
}  // namespace holdfast::testing
