// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/model.h"

#include <algorithm>

#include "calib/model/decoder.h"
#include "export/format/safetensors.h"
#include "ledger/base/json.h"
#include "tests/sim/random.h"

namespace holdfast::sim {
namespace {

constexpr uint64_t kHidden = 32;
constexpr uint32_t kTokens = 4;

template <class T>
T Must(Result<T> r) {
  if (!r.ok()) std::fprintf(stderr, "setting up: %s\n", r.error().message.c_str());
  HOLDFAST_CHECK(r.ok());
  return std::move(*r);
}
void Must(const Status& s) {
  if (!s.ok()) std::fprintf(stderr, "setting up: %s\n", s.error().message.c_str());
  HOLDFAST_CHECK(s.ok());
}

std::string Config(uint32_t layers) {
  const OrderedJson config = {{"architectures", {"LlamaForCausalLM"}}, {"model_type", "llama"}, {"hidden_size", kHidden}, {"intermediate_size", kHidden},
                              {"num_hidden_layers", layers}, {"num_attention_heads", 2}, {"num_key_value_heads", 2}, {"head_dim", 16},
                              {"vocab_size", 16}, {"max_position_embeddings", 64}, {"rms_norm_eps", 1e-5}, {"hidden_act", "silu"},
                              {"tie_word_embeddings", false}, {"torch_dtype", "bfloat16"}, {"eos_token_id", 1}};
  return config.dump(2) + "\n";
}

DecoderSpec Decoder(const std::string& config) { return Must(ParseDecoder(Must(ParseJson(config, "config.json")), "config.json")); }

void Spill(FileSystem& fs, const std::string& path, const std::vector<ByteSpan>& parts) {
  const auto file = Must(fs.Create(path, 0644));
  for (const ByteSpan p : parts) Must(file->Append(p));
  Must(file->Sync());
  Must(file->Close());
}

// A normal bf16 number around one hundredth.
uint16_t Weight(Random& random) {
  const uint64_t bits = random.Next();
  return static_cast<uint16_t>((bits & 0x807f) | ((0x78 + (bits >> 16) % 4) << 7));
}

}  // namespace

void MakeSource(FileSystem& fs, const JobShape& shape) {
  const std::string config = Config(shape.layers);
  const Plan plan = Must(DescribeModel(Decoder(config), Recipe::kNvfp4));
  std::vector<TensorInfo> infos;
  for (const UnitPlan& unit : plan.units) {
    for (const TensorPlan& t : unit.tensors) {
      TensorInfo info{.name = t.name, .dtype = DType::kBF16, .shape = t.shape, .offset = 0, .bytes = 2};
      for (const uint64_t d : t.shape) info.bytes *= d;
      infos.push_back(info);
    }
  }
  const SafetensorsLayout layout = LayOutSafetensors(infos);
  Random random(shape.layers);
  Bytes data;
  for (const TensorInfo& t : layout.tensors) {
    for (uint64_t i = 0; i < t.bytes / 2; ++i) PutLe<uint16_t>(&data, Weight(random));
  }
  Must(fs.MakeDirs(kSourceDir));
  Spill(fs, JoinPath(kSourceDir, "model.safetensors"), {layout.header, data});
  Spill(fs, JoinPath(kSourceDir, "config.json"), {AsBytes(config)});
}

NewJob DescribeJob(FileSystem& fs, const JobShape& shape, const Nonce& uuid) {
  const auto source = Must(SourceModel::Open(fs, kSourceDir));
  const Bytes config = Must(fs.ReadFile(JoinPath(kSourceDir, "config.json")));
  NewJob job;
  job.plan = Must(BindModel(Decoder(std::string(AsText(config))), Recipe::kNvfp4, *source));
  const auto ranges = Must(CutStages(shape.layers, shape.cut, 1));
  for (size_t i = 0; i < ranges.size(); ++i) job.plan.stages.push_back({StageId(static_cast<uint16_t>(i)), ranges[i].first, ranges[i].second});
  const auto pin = [&](const std::string& name, const Digest& header) {
    const std::string path = JoinPath(kSourceDir, name);
    const FileInfo info = Must(fs.Stat(path));
    return SourceFile{name, info.size, info.mtime_ns, Sha256(Must(fs.ReadFile(path))), header};
  };
  JobSpec& spec = job.spec;
  spec.uuid = uuid;
  spec.source = kSourceDir;
  spec.out = kOutDir;
  spec.calib = "calib.jsonl";
  spec.recipe = "nvfp4";
  spec.architecture = "LlamaForCausalLM";
  spec.numerics = kNumerics;
  spec.config = std::string(AsText(config));
  spec.samples = shape.samples - static_cast<uint32_t>(shape.without.size());
  spec.skip_samples = shape.skip;
  spec.seq_len = kTokens;
  spec.shard_bytes = 12'000;
  spec.weights = {pin("model.safetensors", source->files()[0]->header_sha256())};
  spec.sidecars = {pin("config.json", Digest{})};
  Sha256Hasher hasher;
  uint32_t number = 0;
  for (uint32_t s = 0; s < shape.samples; ++s) {
    if (std::find(shape.without.begin(), shape.without.end(), s) != shape.without.end()) continue;
    const std::vector<int32_t> tokens = {1, 2, static_cast<int32_t>(s % 16), static_cast<int32_t>(s / 16)};
    Bytes length;
    PutLe<uint32_t>(&length, kTokens);
    hasher.Update(length);
    hasher.Update(EncodeTokens(tokens));
    Record r;
    r.key = {RecordClass::kJob, 0, number++, 0, 1};
    r.payload = EncodeTokens(tokens);
    job.records.push_back(std::move(r));
  }
  spec.tokens_sha256 = hasher.Finish();
  job.records.push_back(MakeControl({RecordClass::kJob, 0, 0, 0, 0}, spec.ToJson()));
  job.records.push_back(MakeControl({RecordClass::kPlan, 0, 0, 0, 0}, job.plan.ToJson()));
  return job;
}

Bytes Embed(const std::vector<int32_t>& tokens, uint64_t hidden) {
  Bytes out;
  for (const int32_t token : tokens) {
    Random random(static_cast<uint64_t>(token) + 77);
    for (uint64_t i = 0; i < hidden; ++i) PutLe<uint16_t>(&out, Weight(random));
  }
  return out;
}

LayerResult ComputeLayer(const Bytes& hidden, uint32_t layer, size_t sites) {
  uint64_t seed = layer + 1;
  for (const uint8_t b : hidden) seed = seed * 1099511628211ull ^ b;
  Random random(seed);
  LayerResult result;
  for (size_t i = 0; i < sites; ++i) result.amax.push_back(1.0f + static_cast<float>(random.Below(1000)) / 8.0f);
  for (size_t i = 0; i < hidden.size() / 2; ++i) PutLe<uint16_t>(&result.hidden, Weight(random));
  return result;
}

}  // namespace holdfast::sim
