// SPDX-License-Identifier: Apache-2.0
#include "tests/verify/tiny_output.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "export/nvfp4/nvfp4.h"

namespace holdfast::testing {
namespace {

uint64_t Count(const std::vector<uint64_t>& shape) {
  uint64_t n = 1;
  for (const uint64_t d : shape) n *= d;
  return n;
}

std::string ShardName(uint32_t i, uint32_t n) {
  if (n == 1) return "model.safetensors";
  char name[64];
  snprintf(name, sizeof(name), "model-%05u-of-%05u.safetensors", i + 1, n);
  return name;
}

void PutFloat(DType dtype, float v, uint8_t* out) {
  if (dtype == DType::kF32) {
    std::memcpy(out, &v, 4);
  } else if (dtype == DType::kBF16) {
    const uint16_t b = FloatToBf16(v);
    std::memcpy(out, &b, 2);
  } else {  // half precision, by truncation of a value in its normal range
    uint32_t f;
    std::memcpy(&f, &v, 4);
    const int exponent = static_cast<int>((f >> 23) & 0xff) - 127 + 15;
    const uint16_t h = exponent <= 0 ? 0 : static_cast<uint16_t>(((f >> 16) & 0x8000) | (exponent << 10) | ((f >> 13) & 0x3ff));
    std::memcpy(out, &h, 2);
  }
}

StoredBytes Scalar32(float v) {
  StoredBytes s{DType::kF32, {}, Bytes(4)};
  std::memcpy(s.bytes.data(), &v, 4);
  return s;
}

}  // namespace

TempDir::TempDir() {
  const char* base = getenv("TMPDIR");
  path_ = std::string(base != nullptr ? base : "/tmp") + "/holdfast-verify-XXXXXX";
  HOLDFAST_CHECK(mkdtemp(path_.data()) != nullptr);
}
TempDir::~TempDir() { (void)PosixFileSystem().RemoveTree(path_); }

Bytes Slurp(const std::string& path) {
  auto bytes = PosixFileSystem().ReadFile(path);
  HOLDFAST_CHECK(bytes.ok());
  return std::move(*bytes);
}

void Spill(const std::string& path, ByteSpan bytes) {
  auto file = PosixFileSystem().Create(path, 0644);
  HOLDFAST_CHECK(file.ok());
  HOLDFAST_CHECK((*file)->Append(bytes).ok() && (*file)->Close().ok());
}

void WriteSums(const std::string& dir) {
  PosixFileSystem fs;
  std::string text;
  const std::vector<std::string> names = *fs.List(dir);
  for (const std::string& name : names) {
    if (name == "SHA256SUMS") continue;
    text += Sha256(Slurp(dir + "/" + name)).Hex() + "  " + name + "\n";
  }
  Spill(dir + "/SHA256SUMS", AsBytes(text));
}

void WriteSafetensors(const std::string& path, const std::map<std::string, StoredBytes>& tensors) {
  std::vector<TensorInfo> infos;
  for (const auto& [name, t] : tensors) {
    TensorInfo info;
    info.name = name;
    info.dtype = t.dtype;
    info.shape = t.shape;
    info.bytes = t.bytes.size();
    infos.push_back(info);
  }
  const SafetensorsLayout layout = LayOutSafetensors(infos);
  Bytes file(layout.header.begin(), layout.header.end());
  for (const TensorInfo& t : layout.tensors) {
    HOLDFAST_CHECK(t.offset == file.size());
    const Bytes& bytes = tensors.at(t.name).bytes;
    HOLDFAST_CHECK(bytes.size() == t.bytes);
    file.insert(file.end(), bytes.begin(), bytes.end());
  }
  Spill(path, file);
}

VerifyReport VerifyDir(const std::string& dir, const Plan* plan, const std::string& source, uint32_t threads) {
  PosixFileSystem fs;
  VerifyOptions options;
  options.threads = threads;
  options.expected = plan;
  options.source = source;
  auto report = VerifyOutput(fs, dir, options);
  EXPECT_TRUE(report.ok()) << report.error().message;
  return report.ok() ? *report : VerifyReport();
}

TinyOutput::TinyOutput(const TinyOptions& options) : options_(options), state_(options.seed * 0x9e3779b97f4a7c15ull + 1) {
  const TinyOptions& o = options_;
  plan.layers = o.layers;
  plan.hidden_size = o.hidden;
  plan.input_scales = !o.weight_only;
  for (uint32_t i = 0; i < o.layers; ++i) {
    UnitPlan unit;
    unit.id = i;
    unit.label = "layer " + std::to_string(i);
    const std::string p = "model.layers." + std::to_string(i) + ".";
    AddLinear(&unit, p + "self_attn.q_proj", 0, o.hidden, o.hidden, !o.mlp_only);
    AddLinear(&unit, p + "self_attn.k_proj", 0, o.kv, o.hidden, !o.mlp_only);
    AddLinear(&unit, p + "self_attn.v_proj", 0, o.kv, o.hidden, !o.mlp_only);
    AddLinear(&unit, p + "self_attn.o_proj", 1, o.hidden, o.hidden, !o.mlp_only);
    AddLinear(&unit, p + "mlp.gate_proj", 2, o.intermediate, o.hidden, true);
    AddLinear(&unit, p + "mlp.up_proj", 2, o.intermediate, o.hidden, true);
    AddLinear(&unit, p + "mlp.down_proj", 3, o.hidden, o.intermediate, true);
    AddPlain(&unit, p + "input_layernorm.weight", {o.hidden});
    AddPlain(&unit, p + "post_attention_layernorm.weight", {o.hidden});
    plan.units.push_back(unit);
  }
  UnitPlan embed{o.layers, "embed", {}, {}}, head{o.layers + 1, "head", {}, {}};
  AddPlain(&embed, "model.embed_tokens.weight", {o.vocab, o.hidden});
  AddPlain(&head, "model.norm.weight", {o.hidden});
  if (!o.tied) AddPlain(&head, "lm_head.weight", {o.vocab, o.hidden});
  plan.units.push_back(embed);
  plan.units.push_back(head);
  for (const UnitPlan& unit : plan.units) Quantize(unit);
  MakeConfigs();
}

// Uniform bits summed to something bell-shaped.
float TinyOutput::Random() {
  float sum = 0;
  for (int i = 0; i < 4; ++i) {
    state_ = state_ * 6364136223846793005ull + 1442695040888963407ull;
    sum += static_cast<float>(state_ >> 40) / 16777216.0f - 0.5f;
  }
  return sum * 0.1f;
}

void TinyOutput::AddPlain(UnitPlan* unit, const std::string& name, const std::vector<uint64_t>& shape) {
  StoredBytes t{options_.dtype, shape, {}};
  const uint64_t width = DTypeBytes(t.dtype);
  t.bytes.resize(Count(shape) * width);
  for (uint64_t i = 0; i < Count(shape); ++i) PutFloat(t.dtype, Random() + (shape.size() == 1 ? 1.0f : 0.0f), &t.bytes[i * width]);
  TensorPlan p;
  p.name = name;
  p.shape = shape;
  unit->tensors.push_back(p);
  source[name] = t;
}

void TinyOutput::AddLinear(UnitPlan* unit, const std::string& module, uint32_t set, uint64_t rows, uint64_t cols, bool quantized) {
  AddPlain(unit, module + ".weight", {rows, cols});
  if (options_.bias) AddPlain(unit, module + ".bias", {rows});
  if (!quantized) return;
  SitePlan site;
  site.module = module;
  site.set = set;
  site.rows = rows;
  site.cols = cols;
  unit->sites.push_back(site);
}

void TinyOutput::Quantize(const UnitPlan& unit) {
  std::map<uint32_t, float> amax;
  for (const SitePlan& s : unit.sites) {
    const StoredBytes& w = source[s.module + ".weight"];
    amax[s.set] = std::max(amax[s.set], *WeightAmax(w.dtype, w.bytes, s.module));
  }
  for (const TensorPlan& t : unit.tensors) tensors[t.name] = source[t.name];
  for (const SitePlan& s : unit.sites) {
    const StoredBytes& w = source[s.module + ".weight"];
    const float scale2 = GlobalScale(amax[s.set]);
    StoredBytes codes{DType::kU8, {s.rows, s.cols / 2}, Bytes(s.rows * s.cols / 2)};
    StoredBytes scales{DType::kF8E4M3, {s.rows, s.cols / 16}, Bytes(s.rows * s.cols / 16)};
    QuantizeNvfp4(w.dtype, w.bytes, s.rows, s.cols, scale2, codes.bytes, scales.bytes);
    const SiteNames& as = NamesIn(options_.layout);
    const auto scalar = [&](float v) {
      StoredBytes t = Scalar32(options_.layout == OutputLayout::kModelopt ? v : 1.0f / v);
      if (options_.layout == OutputLayout::kCompressedTensors) t.shape = {1};
      return t;
    };
    tensors.erase(s.module + ".weight");
    tensors[s.module + as.codes] = codes;
    tensors[s.module + as.scales] = scales;
    tensors[s.module + as.global] = scalar(scale2);
    if (!options_.weight_only) tensors[s.module + as.input] = scalar(GlobalScale(4.0f + s.set));
  }
}

// As transformers and compressed-tensors 0.18 write it; names, not patterns.
void TinyOutput::MakeCompressedConfig() {
  const OrderedJson args = {{"actorder", nullptr}, {"block_structure", nullptr}, {"dynamic", false}, {"group_size", 16}, {"num_bits", 4},
                            {"observer", "memoryless_minmax"}, {"observer_kwargs", OrderedJson::object()}, {"scale_dtype", "torch.float8_e4m3fn"},
                            {"strategy", "tensor_group"}, {"symmetric", true}, {"type", "float"}, {"zp_dtype", nullptr}};
  OrderedJson group;
  group["format"] = "nvfp4-pack-quantized";
  group["input_activations"] = nullptr;
  if (!options_.weight_only) {
    group["input_activations"] = args;
    group["input_activations"]["dynamic"] = "local";
  }
  group["output_activations"] = nullptr;
  group["targets"] = {"Linear"};
  group["weights"] = args;
  std::vector<std::string> ignore = {"lm_head"};
  for (uint32_t i = 0; options_.mlp_only && i < options_.layers; ++i) {
    for (const char* p : {"q_proj", "k_proj", "v_proj", "o_proj"}) ignore.push_back("model.layers." + std::to_string(i) + ".self_attn." + p);
  }
  quant()["config_groups"]["group_0"] = group;
  quant()["format"] = "nvfp4-pack-quantized";
  quant()["global_compression_ratio"] = nullptr;
  quant()["ignore"] = ignore;
  quant()["kv_cache_scheme"] = nullptr;
  quant()["quant_method"] = "compressed-tensors";
  quant()["quantization_status"] = "compressed";
  quant()["sparsity_config"] = OrderedJson::object();
  quant()["transform_config"] = OrderedJson::object();
  quant()["version"] = "0.18.0";
  with_hf_quant = false;
}

void TinyOutput::MakeConfigs() {
  std::vector<std::string> exclude = {"lm_head", "model.embed_tokens"};
  for (uint32_t i = 0; options_.mlp_only && i < options_.layers; ++i) exclude.push_back("model.layers." + std::to_string(i) + ".self_attn*");
  const char* algo = options_.weight_only ? "W4A16_NVFP4" : "NVFP4";
  const OrderedJson args = {{"dynamic", false}, {"num_bits", 4}, {"type", "float"}, {"group_size", 16}};
  OrderedJson group;
  if (!options_.weight_only) group["input_activations"] = args;
  group["weights"] = args;
  group["targets"] = {"Linear"};
  const OrderedJson producer = {{"name", "modelopt"}, {"version", "0.47.0"}};
  config["architectures"] = {"LlamaForCausalLM"};
  config["num_hidden_layers"] = options_.layers;
  config["tie_word_embeddings"] = options_.tied;
  if (options_.layout == OutputLayout::kCompressedTensors) return MakeCompressedConfig();
  quant()["config_groups"]["group_0"] = group;
  quant()["ignore"] = exclude;
  quant()["quant_algo"] = algo;
  quant()["producer"] = producer;
  quant()["quant_method"] = "modelopt";
  hf_quant["producer"] = producer;
  hf_quant["quantization"]["quant_algo"] = algo;
  hf_quant["quantization"]["kv_cache_quant_algo"] = nullptr;
  hf_quant["quantization"]["group_size"] = 16;
  hf_quant["quantization"]["exclude_modules"] = exclude;
  plan.ignore = exclude;
}

void TinyOutput::SetExclude(const std::vector<std::string>& names) {
  quant()["ignore"] = names;
  hf_quant["quantization"]["exclude_modules"] = names;
}

float TinyOutput::Scalar(const std::string& name) const {
  float v;
  std::memcpy(&v, tensors.at(name).bytes.data(), 4);
  return v;
}
void TinyOutput::SetScalar(const std::string& name, float value) {
  StoredBytes scalar = Scalar32(value);
  scalar.shape = tensors.at(name).shape;
  tensors.at(name) = scalar;
}

void TinyOutput::Rename(const std::string& from, const std::string& to) {
  auto node = tensors.extract(from);
  HOLDFAST_CHECK(!node.empty());
  node.key() = to;
  tensors.insert(std::move(node));
}

std::string TinyOutput::Write() {
  PosixFileSystem fs;
  const std::string dir = temp_.path() + "/out";
  (void)fs.RemoveTree(dir);
  HOLDFAST_CHECK(fs.MakeDirs(dir).ok());
  std::vector<std::map<std::string, StoredBytes>> shards(options_.shards);
  OrderedJson map = OrderedJson::object();
  uint64_t total = 0;
  size_t next = 0;
  for (const auto& [name, t] : tensors) {
    const uint32_t shard = shard_of.contains(name) ? shard_of.at(name) : static_cast<uint32_t>(next++ * options_.shards / tensors.size());
    shards[shard][name] = t;
    map[name] = ShardName(shard, options_.shards);
    total += t.bytes.size();
  }
  for (uint32_t i = 0; i < options_.shards; ++i) WriteSafetensors(dir + "/" + ShardName(i, options_.shards), shards[i]);
  if (options_.shards > 1) {
    const OrderedJson index = {{"metadata", {{"total_parameters", 1}, {"total_size", total}}}, {"weight_map", map}};
    Spill(dir + "/model.safetensors.index.json", AsBytes(index.dump(2)));
  }
  if (with_config) Spill(dir + "/config.json", AsBytes(config.dump(4)));
  if (with_hf_quant) Spill(dir + "/hf_quant_config.json", AsBytes(hf_quant.dump(4)));
  WriteSums(dir);
  return dir;
}

std::string TinyOutput::WriteSource() {
  PosixFileSystem fs;
  const std::string dir = temp_.path() + "/source";
  HOLDFAST_CHECK(fs.MakeDirs(dir).ok());
  WriteSafetensors(dir + "/model.safetensors", source);
  return dir;
}

VerifyReport TinyOutput::Verify() { return VerifyDir(Write(), &plan); }
VerifyReport TinyOutput::VerifyWithSource() { return VerifyDir(Write(), &plan, WriteSource()); }
VerifyReport TinyOutput::VerifyWithoutPlan() { return VerifyDir(Write(), nullptr); }

}  // namespace holdfast::testing
