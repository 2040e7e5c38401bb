// SPDX-License-Identifier: Apache-2.0
#include "tests/calib/random_model.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>

#include "export/nvfp4/nvfp4.h"

namespace holdfast {
namespace {

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15ull + 1) {}
  uint32_t Next() {
    state_ = state_ * 6364136223846793005ull + 1442695040888963407ull;
    return static_cast<uint32_t>(state_ >> 32);
  }
  float Uniform() { return static_cast<float>(Next()) * 0x1p-31f - 1.0f; }   // [-1, 1)

 private:
  uint64_t state_;
};

uint16_t FloatToF16(float x) {   // normal values only: enough for weights made here
  const uint32_t u = std::bit_cast<uint32_t>(x);
  const uint32_t sign = (u >> 16) & 0x8000;
  const int exponent = static_cast<int>((u >> 23) & 0xff) - 127 + 15;
  if (exponent <= 0) return static_cast<uint16_t>(sign);
  return static_cast<uint16_t>(sign | static_cast<uint32_t>(exponent << 10) | ((u >> 13) & 0x3ff));
}

Bytes Values(DType dtype, const TensorInfo& t, Random* random) {
  const bool norm = t.name.find("norm") != std::string::npos;
  const float scale = norm ? 0.1f : t.name == kEmbeddingName ? 1.0f : 1.7f / std::sqrt(static_cast<float>(t.shape.back()));
  Bytes out;
  out.reserve(t.bytes);
  for (uint64_t i = 0; i < t.bytes / DTypeBytes(dtype); ++i) {
    const float x = random->Uniform() * scale + (norm ? 1.0f : 0.0f);
    if (dtype == DType::kF32) PutLe(&out, std::bit_cast<uint32_t>(x));
    else PutLe(&out, dtype == DType::kF16 ? FloatToF16(x) : FloatToBf16(x));
  }
  return out;
}

Json MakeConfig(const RandomShape& s) {
  Json c = {{"architectures", {s.architecture != nullptr ? s.architecture : s.window == 0 ? "LlamaForCausalLM" : "MistralForCausalLM"}},
            {"hidden_size", s.hidden}, {"intermediate_size", s.intermediate}, {"num_hidden_layers", s.layers},
            {"num_attention_heads", s.heads}, {"num_key_value_heads", s.kv_heads}, {"head_dim", s.head_dim},
            {"vocab_size", s.vocab}, {"max_position_embeddings", 4096}, {"rms_norm_eps", 1e-5}, {"tie_word_embeddings", true},
            {"torch_dtype", s.dtype == DType::kF32 ? "float32" : s.dtype == DType::kF16 ? "float16" : "bfloat16"}};
  if (s.window != 0) c["sliding_window"] = s.window;
  return c;
}

void Write(FileSystem& fs, const std::string& path, ByteSpan bytes) {
  auto file = fs.Create(path, 0644);
  ASSERT_TRUE(file.ok() && (*file)->Append(bytes).ok() && (*file)->Close().ok()) << path;
}

}  // namespace

RandomModel::RandomModel(const RandomShape& shape) : config(MakeConfig(shape)) {
  static int count = 0;
  dir = testing::TempDir() + "holdfast_model_" + std::to_string(getpid()) + "_" + std::to_string(count++);
  PosixFileSystem fs;
  EXPECT_TRUE(fs.MakeDirs(dir).ok());
  Write(fs, dir + "/config.json", AsBytes(config.dump()));
  const Result<DecoderSpec> spec = ParseDecoder(config, "config");
  const Result<Plan> plan = DescribeModel(spec.value(), Recipe::kNvfp4);
  std::vector<TensorInfo> tensors;
  for (const UnitPlan& unit : plan->units) {
    for (const TensorPlan& t : unit.tensors) tensors.push_back({t.name, shape.dtype, t.shape, 0, 0});
  }
  const SafetensorsLayout layout = LayOutSafetensors(std::move(tensors));
  auto file = fs.Create(dir + "/model.safetensors", 0644);
  EXPECT_TRUE((*file)->Append(layout.header).ok());
  Random random(shape.seed);
  for (const TensorInfo& t : layout.tensors) EXPECT_TRUE((*file)->Append(Values(shape.dtype, t, &random)).ok());
  EXPECT_TRUE((*file)->Close().ok());
}

RandomModel::~RandomModel() { (void)PosixFileSystem().RemoveTree(dir); }

std::vector<int32_t> RandomIds(uint64_t seed, size_t count, uint64_t vocab) {
  Random random(seed + 77);
  std::vector<int32_t> ids(count);
  for (int32_t& id : ids) id = static_cast<int32_t>(random.Next() % vocab);
  return ids;
}

}  // namespace holdfast
