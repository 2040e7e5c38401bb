// SPDX-License-Identifier: Apache-2.0
//
// From Model-Optimizer's own source weights and amax to whole output directories: byte for byte its export.
#include <gtest/gtest.h>

#include <bit>
#include <regex>

#include "export/nvfp4/nvfp4.h"
#include "tests/export/export_run.h"

namespace holdfast {
namespace {

std::string OurVersion(const Bytes& golden) {
  return std::regex_replace(std::string(golden.begin(), golden.end()),
                            std::regex("0\\.47\\.0\\.dev0"), "0.47.0");
}

// config.json as it was before the export appended to it.
Bytes SourceConfig(const std::string& dir) {
  const Bytes golden = ReadGolden(dir + "/config.json");
  const std::string text(golden.begin(), golden.end());
  return ToBytes(text.substr(0, text.find(",\n    \"quantization_config\"")) + "\n}\n");
}

Json GoldenAmax(const std::string& dir) {
  const auto json = ParseJson(AsText(ReadGolden(dir + "_src/input_amax.json")), "input_amax.json");
  EXPECT_TRUE(json.ok());
  return json.ok() ? *json : Json();
}

// Evicts and merges `dir`'s source in memory and returns the output directory.
std::map<std::string, Bytes> Export(const std::string& dir, const LlamaShape& shape, const std::string& layout = "") {
  SimFileSystem fs;
  ExportRun run(fs, "/w", LlamaPlan(shape));
  run.job().layout = layout;
  run.AddWeights(ReadGolden(dir + "_src/model.safetensors"));
  run.AddSidecar("config.json", SourceConfig(dir));
  run.AddSidecar("generation_config.json", ReadGolden(dir + "/generation_config.json"));
  run.Begin();
  run.EvictAll(GoldenAmax(dir));
  const auto manifest = run.Merge();
  EXPECT_TRUE(manifest.ok()) << manifest.error().message;
  return ReadTree(fs, "/w/out");
}

void ExpectEqualsGolden(const std::string& dir, const LlamaShape& shape) {
  std::map<std::string, Bytes> out = Export(dir, shape);
  EXPECT_TRUE(out["model.safetensors"] == ReadGolden(dir + "/model.safetensors")) << dir;
  for (const char* name : {"config.json", "hf_quant_config.json", "generation_config.json"}) {
    EXPECT_EQ(std::string(AsText(out[name])), OurVersion(ReadGolden(dir + "/" + name))) << dir;
  }
  EXPECT_FALSE(out.contains("model.safetensors.index.json"));
}

TEST(GoldenExport, Llama) { ExpectEqualsGolden("a_llama_nvfp4", {}); }
TEST(GoldenExport, WeightOnly) {
  ExpectEqualsGolden("g_llama_w4a16", {.layers = 1, .input_scales = false});
}
TEST(GoldenExport, Float16) {
  ExpectEqualsGolden("n_float16", {.layers = 1, .dtype = DType::kF16});
}

struct Tensors {
  Bytes file;
  std::map<std::string, TensorInfo> infos;
  explicit Tensors(Bytes bytes) : file(std::move(bytes)) {
    const auto parsed = ParseSafetensorsHeader(file, file.size(), "f");
    EXPECT_TRUE(parsed.ok());
    if (!parsed.ok()) return;
    for (const TensorInfo& t : *parsed) infos[t.name] = t;
  }
  ByteSpan operator[](const std::string& name) const {
    return ByteSpan(file).subspan(infos.at(name).offset, infos.at(name).bytes);
  }
  bool Has(const std::string& name) const { return infos.contains(name); }
};

bool SameBytes(ByteSpan a, ByteSpan b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end());
}

float ScalarOf(ByteSpan bytes) {
  uint32_t bits = 0;
  EXPECT_TRUE(bytes.size() == 4 && Cursor(bytes).Le(&bits));
  return std::bit_cast<float>(bits);
}

// The same run in the other layout: codes and block scales byte for byte those of Model-Optimizer, exact reciprocals of its scalars, and nothing else.
void ExpectSameAsModelopt(const std::string& dir, const LlamaShape& shape) {
  std::map<std::string, Bytes> out = Export(dir, shape, "compressed-tensors");
  EXPECT_FALSE(out.contains("hf_quant_config.json"));
  const Tensors ours(out["model.safetensors"]), golden(ReadGolden(dir + "/model.safetensors"));
  const SiteNames &from = NamesIn(OutputLayout::kModelopt), &to = NamesIn(OutputLayout::kCompressedTensors);
  EXPECT_EQ(ours.infos.size(), golden.infos.size());
  size_t inverted = 0;
  for (const auto& [name, info] : golden.infos) {
    const std::string module = name.substr(0, name.rfind('.')), part = name.substr(module.size());
    const bool quantized = golden.Has(module + from.global), scalar = part == from.global || part == from.input;
    const std::string as = !quantized ? name : module + (part == from.codes ? to.codes : part == from.scales ? to.scales : part == from.global ? to.global : to.input);
    ASSERT_TRUE(ours.Has(as)) << as;
    EXPECT_EQ(ours.infos.at(as).dtype, info.dtype) << as;
    EXPECT_EQ(ours.infos.at(as).shape, scalar ? std::vector<uint64_t>{1} : info.shape) << as;
    if (scalar) {
      EXPECT_EQ(std::bit_cast<uint32_t>(ScalarOf(ours[as])), std::bit_cast<uint32_t>(1.0f / ScalarOf(golden[name]))) << as;
      ++inverted;
    } else {
      EXPECT_TRUE(SameBytes(ours[as], golden[name])) << as;
    }
  }
  EXPECT_EQ(inverted, shape.layers * 7 * (shape.input_scales ? 2u : 1u));
}

TEST(GoldenExport, LlamaAsCompressedTensors) { ExpectSameAsModelopt("a_llama_nvfp4", {}); }
TEST(GoldenExport, WeightOnlyAsCompressedTensors) { ExpectSameAsModelopt("g_llama_w4a16", {.layers = 1, .input_scales = false}); }
TEST(GoldenExport, Float16AsCompressedTensors) { ExpectSameAsModelopt("n_float16", {.layers = 1, .dtype = DType::kF16}); }

// The KV scales that this export carries are outside our recipes; everything else must agree.
TEST(GoldenExport, TiedEmbeddings) {
  const Tensors ours(Export("b_llama_tied_fp8kv", {.tied = true})["model.safetensors"]);
  const Tensors golden(ReadGolden("b_llama_tied_fp8kv/model.safetensors"));
  size_t kv = 0;
  for (const auto& [name, info] : golden.infos) {
    if (name.ends_with(".k_scale") || name.ends_with(".v_scale")) {
      ++kv;
      continue;
    }
    ASSERT_TRUE(ours.Has(name)) << name;
    EXPECT_EQ(ours.infos.at(name).shape, info.shape) << name;
    EXPECT_EQ(ours.infos.at(name).dtype, info.dtype) << name;
    EXPECT_TRUE(SameBytes(ours[name], golden[name])) << name;
  }
  EXPECT_EQ(kv, 4u);
  EXPECT_EQ(ours.infos.size() + kv, golden.infos.size());
}

// Where Model-Optimizer writes NaN scales for an all-zero matrix we write zeros; the rest is the same.
TEST(GoldenExport, ZeroWeightIsRepaired) {
  const Tensors ours(Export("m_zero_weight", {.layers = 1})["model.safetensors"]);
  const Tensors golden(ReadGolden("m_zero_weight/model.safetensors"));
  size_t repaired = 0;
  for (const auto& [name, info] : golden.infos) {
    if (!name.ends_with(".weight_scale") || golden[name][0] != 0x7f) continue;
    const std::string weight = name.substr(0, name.size() - 6);
    ++repaired;
    EXPECT_EQ(golden[weight][0], 0x77);
    for (const uint8_t b : ours[name]) ASSERT_EQ(b, 0x38);
    for (const uint8_t b : ours[weight]) ASSERT_EQ(b, 0);
    EXPECT_EQ(HexEncode(ours[name + "_2"]), "0000803f");
  }
  EXPECT_EQ(repaired, 1u);
  size_t same = 0;
  for (const auto& [name, info] : golden.infos) same += SameBytes(ours[name], golden[name]);
  EXPECT_EQ(same, golden.infos.size() - 3);
}

// The tiny limit of this export forces four files. Its source was not kept, so its own tensors go through packs and merge.
TEST(GoldenExport, FourFilesAndIndex) {
  const std::string dir = "l_llama_mlponly";
  SimFileSystem fs;
  ExportRun run(fs, "/w", LlamaPlan({.layers = 3, .attention = false}), 60000);
  run.AddSidecar("config.json", SourceConfig(dir));
  run.Begin();
  std::map<std::string, Bytes> golden;
  std::map<std::string, Bytes> tensors;
  for (int i = 1; i <= 4; ++i) {
    const std::string name = "model-0000" + std::to_string(i) + "-of-00004.safetensors";
    golden[name] = ReadGolden(dir + "/" + name);
    const Tensors file(golden[name]);
    for (const auto& [tensor, info] : file.infos)
      tensors[tensor] = Bytes(file[tensor].begin(), file[tensor].end());
  }
  for (const UnitPlan& unit : run.plan().units) {
    PackWriter packs(fs, run.layout(), Nonce{}, unit.label);
    LayerRecord record;
    record.unit = unit.id;
    for (const OutputTensor& t : OutputTensorsOf(run.plan(), unit)) {
      StoredTensor stored{t.info.name, t.info.dtype, t.info.shape, {}, {}};
      ASSERT_TRUE(tensors.contains(t.info.name)) << t.info.name;
      ASSERT_TRUE(packs.AddTensor(Codec::kZstd, tensors[t.info.name], &stored).ok());
      record.tensors.push_back(stored);
    }
    auto manifests = packs.Finish();
    ASSERT_TRUE(manifests.ok());
    record.packs = *manifests;
    run.CommitLayer(record);
  }
  const auto manifest = run.Merge(3);
  ASSERT_TRUE(manifest.ok()) << manifest.error().message;
  std::map<std::string, Bytes> out = ReadTree(fs, "/w/out");
  for (const auto& [name, bytes] : golden) EXPECT_TRUE(out[name] == bytes) << name;
  EXPECT_EQ(AsText(out["model.safetensors.index.json"]),
            AsText(ReadGolden(dir + "/model.safetensors.index.json")));
  EXPECT_EQ(std::string(AsText(out["config.json"])), OurVersion(ReadGolden(dir + "/config.json")));
  EXPECT_EQ(std::string(AsText(out["hf_quant_config.json"])),
            OurVersion(ReadGolden(dir + "/hf_quant_config.json")));
}

// ---- experts: weight bytes of one Qwen3-MoE layer by layer, fused in the source ----

void ExpectWeight(const Tensors& golden, const std::string& module, ByteSpan weight, uint64_t rows,
                  uint64_t cols, float amax) {
  const float scale2 = GlobalScale(amax);
  Bytes packed(rows * cols / 2), scales(rows * cols / 16), global;
  QuantizeNvfp4(DType::kBF16, weight, rows, cols, scale2, packed, scales);
  PutLe(&global, std::bit_cast<uint32_t>(scale2));
  EXPECT_TRUE(SameBytes(packed, golden[module + ".weight"])) << module;
  EXPECT_TRUE(SameBytes(scales, golden[module + ".weight_scale"])) << module;
  EXPECT_TRUE(SameBytes(global, golden[module + ".weight_scale_2"])) << module;
}

TEST(GoldenExport, Qwen3MoeExperts) {
  const Tensors golden(ReadGolden("h_qwen3moe/model.safetensors")),
      source(ReadGolden("h_qwen3moe_src/model.safetensors"));
  const Json amax = GoldenAmax("h_qwen3moe");
  size_t checked = 0;
  for (const auto& [name, info] : source.infos) {
    const size_t at = name.find(".experts.");
    if (at == std::string::npos) continue;
    const std::string layer = name.substr(0, at + 9);
    const uint64_t experts = info.shape[0], rows = info.shape[1], cols = info.shape[2],
                   bytes = rows * cols * 2;
    for (uint64_t e = 0; e < experts; ++e) {
      const ByteSpan expert = source[name].subspan(e * bytes, bytes);
      const float top = *WeightAmax(DType::kBF16, expert, name);
      const std::string prefix = layer + std::to_string(e) + ".";
      const bool down = name.ends_with("down_proj");
      const float scale =
          GlobalScale(amax.at(layer + (down ? "down_proj" : "gate_up_proj") + "_input_quantizer")
                          .at(0)
                          .get<float>());
      if (down) {
        ExpectWeight(golden, prefix + "down_proj", expert, rows, cols, top);
      } else {
        ExpectWeight(golden, prefix + "gate_proj", expert.first(bytes / 2), rows / 2, cols, top);
        ExpectWeight(golden, prefix + "up_proj", expert.subspan(bytes / 2), rows / 2, cols, top);
      }
      Bytes stored;
      PutLe(&stored, std::bit_cast<uint32_t>(scale));
      EXPECT_TRUE(
          SameBytes(stored, golden[prefix + (down ? "down_proj" : "gate_proj") + ".input_scale"]))
          << prefix;
      ++checked;
    }
  }
  EXPECT_GE(checked, 8u);
}

}  // namespace
}  // namespace holdfast
