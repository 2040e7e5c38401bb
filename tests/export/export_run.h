// SPDX-License-Identifier: Apache-2.0
//
// A run directory for the tests of eviction and merge: a source model, a job, a hand-made plan of a tiny Llama, and the streams.
// Works on any FileSystem.
#pragma once

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "export/merge/merge.h"
#include "export/shard/evict.h"
#include "ledger/base/file_system.h"
#include "ledger/base/sim_file_system.h"
#include "ledger/fold/run_state.h"

namespace holdfast {

inline std::string GoldenPath(const std::string& name) {
  return std::string(HOLDFAST_SOURCE_DIR "/tests/golden/exports/") + name;
}

inline Bytes ReadGolden(const std::string& name) {
  PosixFileSystem fs;
  const auto bytes = fs.ReadFile(GoldenPath(name));
  EXPECT_TRUE(bytes.ok()) << name;
  return bytes.ok() ? *bytes : Bytes{};
}

inline Bytes ToBytes(const std::string& s) { return {s.begin(), s.end()}; }

class TestClock final : public Clock {
 public:
  uint64_t MonotonicNs() const override { return 1; }
  uint64_t WallNs() const override { return 2; }
  void SleepMs(uint64_t) override {}
};

struct LlamaShape {
  uint32_t layers = 2;
  DType dtype = DType::kBF16;
  bool tied = false, attention = true;  // attention: its projections are quantized too
  bool input_scales = true;
};

// The plan of the golden Llamas: hidden 64, intermediate 128, vocabulary 256, 4 heads of 16, 2 key/value heads.
inline Plan LlamaPlan(const LlamaShape& shape) {
  Plan plan;
  plan.layers = shape.layers;
  plan.hidden_size = 64;
  plan.input_scales = shape.input_scales;
  plan.ignore = {"lm_head", "model.embed_tokens"};
  plan.stages = {{StageId(0), 0, shape.layers}};
  const auto tensor = [&](UnitPlan* unit, const std::string& name, std::vector<uint64_t> dims) {
    TensorPlan t;
    t.name = name;
    t.dtype = shape.dtype;
    t.shape = dims;
    t.bytes = DTypeBytes(shape.dtype);
    for (const uint64_t d : dims) t.bytes *= d;
    unit->tensors.push_back(t);
  };
  struct Linear {
    const char* name;
    uint32_t set;
    uint64_t rows, cols;
  };
  const Linear linears[] = {{"self_attn.q_proj", 0, 64, 64}, {"self_attn.k_proj", 0, 32, 64},
                            {"self_attn.v_proj", 0, 32, 64}, {"self_attn.o_proj", 1, 64, 64},
                            {"mlp.gate_proj", 2, 128, 64},   {"mlp.up_proj", 2, 128, 64},
                            {"mlp.down_proj", 3, 64, 128}};
  for (uint32_t l = 0; l < shape.layers; ++l) {
    UnitPlan unit;
    unit.id = l;
    unit.label = "layer " + std::to_string(l);
    const std::string prefix = "model.layers." + std::to_string(l) + ".";
    for (const Linear& x : linears) {
      tensor(&unit, prefix + x.name + ".weight", {x.rows, x.cols});
      if (shape.attention || std::string(x.name).starts_with("mlp"))
        unit.sites.push_back({prefix + x.name, x.set, x.rows, x.cols});
    }
    tensor(&unit, prefix + "input_layernorm.weight", {64});
    tensor(&unit, prefix + "post_attention_layernorm.weight", {64});
    plan.units.push_back(unit);
    if (!shape.attention) plan.ignore.push_back(prefix + "self_attn*");
  }
  UnitPlan embed, head;
  embed.id = shape.layers;
  embed.label = "embed";
  tensor(&embed, "model.embed_tokens.weight", {256, 64});
  head.id = shape.layers + 1;
  head.label = "head";
  tensor(&head, "model.norm.weight", {64});
  if (!shape.tied) tensor(&head, "lm_head.weight", {256, 64});
  plan.units.push_back(embed);
  plan.units.push_back(head);
  return plan;
}

// Input amax of one unit's sites, from an input_amax.json of the golden exports.
inline std::vector<float> InputAmax(const Json& all, const UnitPlan& unit) {
  std::vector<float> amax;
  for (const SitePlan& s : unit.sites)
    amax.push_back(all.at(s.module + ".input_quantizer").at(0).get<float>());
  return amax;
}

inline void WriteFile(FileSystem& fs, const std::string& path, const Bytes& bytes) {
  ASSERT_TRUE(fs.MakeDirs(DirName(path)).ok());
  auto file = fs.Create(path, 0644);
  ASSERT_TRUE(file.ok()) << file.error().message;
  ASSERT_TRUE((*file)->Append(bytes).ok());
  ASSERT_TRUE((*file)->Sync().ok());
  ASSERT_TRUE((*file)->Close().ok());
  ASSERT_TRUE(fs.SyncDir(DirName(path)).ok());
}

// Every file below `dir`: relative name -> content.
inline std::map<std::string, Bytes> ReadTree(FileSystem& fs, const std::string& dir,
                                             const std::string& prefix = "") {
  std::map<std::string, Bytes> out;
  const auto names = fs.List(dir);
  if (!names.ok()) return out;
  for (const std::string& name : *names) {
    const std::string path = JoinPath(dir, name);
    const auto info = fs.Stat(path);
    if (info.ok() && info->is_directory) {
      out.merge(ReadTree(fs, path, prefix + name + "/"));
    } else if (const auto bytes = fs.ReadFile(path); bytes.ok()) {
      out[prefix + name] = *bytes;
    }
  }
  return out;
}

class ExportRun {
 public:
  // `root` holds the run (root/run), the source (root/src) and the output (root/out).
  ExportRun(FileSystem& fs, std::string root, const Plan& plan,
            uint64_t shard_bytes = 10'000'000'000)
      : fs_(fs), root_(std::move(root)), layout_(root_ + "/run"), plan_(plan) {
    job_.uuid.bytes.fill(0x42);
    job_.source = root_ + "/src";
    job_.out = root_ + "/out";
    job_.calib = root_ + "/calib.jsonl";
    job_.recipe = "nvfp4";
    job_.architecture = "LlamaForCausalLM";
    job_.numerics = "test";
    job_.shard_bytes = shard_bytes;
  }

  void AddSidecar(const std::string& name, const Bytes& bytes) {
    WriteFile(fs_, job_.source + "/" + name, bytes);
    SourceFile file;
    file.name = name;
    file.size = bytes.size();
    file.sha256 = Sha256(bytes);
    job_.sidecars.push_back(file);
  }
  void AddWeights(const Bytes& bytes) { WriteFile(fs_, job_.source + "/model.safetensors", bytes); }

  // FORMAT and the job stream.
  void Begin() {
    const Status made = EnsureFormat(fs_, layout_, NextNonce());
    ASSERT_TRUE(made.ok()) << made.error().message;
    Append("job", {},
           {MakeControl({RecordClass::kJob, 0, 0, 0, 0}, job_.ToJson()),
            MakeControl({RecordClass::kPlan, 0, 0, 0, 0}, plan_.ToJson())});
  }

  Result<LayerRecord> Evict(const UnitPlan& unit, const std::vector<float>& input_amax,
                            uint32_t threads = 2) {
    HOLDFAST_ASSIGN(const auto source, SourceModel::Open(fs_, job_.source));
    EvictOptions options;
    options.threads = threads;
    options.incarnation = NextNonce();
    return EvictUnit(fs_, layout_, *source, plan_, unit, input_amax, options);
  }
  void CommitLayer(const LayerRecord& record) {
    Append("stage.00", {MakeControl({RecordClass::kLayer, 0, record.unit, 0, 0}, record.ToJson())});
  }
  // One sample through all layers, as a node of the class `numerics` computes it.
  void CommitSample(uint32_t sample, const std::string& numerics) {
    SampleRecord s;
    s.sample = sample;
    s.last_layer = plan_.layers;
    s.amax.resize(plan_.SitesOf(0, plan_.layers).size(), 1.0f);
    s.numerics = numerics;
    Append("stage.00", s.ToRecords(StageId(0)));
  }
  void EvictAll(const Json& amax) {
    for (const UnitPlan& unit : plan_.units) {
      const auto record =
          Evict(unit, plan_.input_scales ? InputAmax(amax, unit) : std::vector<float>{});
      ASSERT_TRUE(record.ok()) << record.error().message;
      CommitLayer(*record);
    }
  }

  // A new owner of the merge stream runs merge once.
  Result<Digest> Merge(uint32_t threads = 2, const std::atomic<bool>* stop = nullptr) {
    RunState state(fs_, layout_);
    HOLDFAST_TRY(state.Refresh());
    StreamWriter::Options options;
    options.job = job_.uuid;
    options.claim.incarnation = NextNonce();
    options.claim.node = "test";
    options.claim.reason = "test";
    HOLDFAST_ASSIGN(
        const auto writer,
        StreamWriter::Open(
            fs_, layout_, clock_, state.ReaderOf("merge"),
            [&](const Record& r, const Slot& s) { return state.Apply("merge", r, s); }, options));
    MergeOptions merge;
    merge.threads = threads;
    merge.incarnation = options.claim.incarnation;
    merge.stop = stop;
    return RunMerge(fs_, state, *writer, merge);
  }

  // What `jobctl export` does, once its attempt has a number.
  Result<Digest> Export(const std::string& out, OutputLayout layout, uint64_t attempt = 1, uint32_t threads = 2) {
    RunState state(fs_, layout_);
    HOLDFAST_TRY(state.Refresh());
    MergeOptions merge;
    merge.threads = threads;
    return RunExport(fs_, state, {.out = out, .layout = layout, .staging_prefix = ".again.", .attempt = attempt}, merge);
  }

  FileSystem& fs() { return fs_; }
  JobSpec& job() { return job_; }
  const Plan& plan() const { return plan_; }
  const RunLayout& layout() const { return layout_; }
  const std::string& root() const { return root_; }

 private:
  Nonce NextNonce() {
    Nonce n;
    n.bytes.fill(1);
    n.bytes[0] = static_cast<uint8_t>(++lives_);
    n.bytes[1] = static_cast<uint8_t>(lives_ >> 8);
    return n;
  }
  void Append(const std::string& stream, std::vector<Record> records,
              std::vector<Record> with_claim = {}) {
    StreamReader reader(fs_, layout_, stream, job_.uuid);
    StreamWriter::Options options;
    options.job = job_.uuid;
    options.claim.incarnation = NextNonce();
    options.claim.node = "test";
    auto writer =
        StreamWriter::Open(fs_, layout_, clock_, &reader, nullptr, options, std::move(with_claim));
    ASSERT_TRUE(writer.ok()) << writer.error().message;
    if (records.empty()) return;
    const Status s = (*writer)->Append(std::move(records));
    ASSERT_TRUE(s.ok()) << s.error().message;
  }

  FileSystem& fs_;
  std::string root_;
  RunLayout layout_;
  Plan plan_;
  JobSpec job_;
  TestClock clock_;
  uint32_t lives_ = 0;
};

}  // namespace holdfast
