// SPDX-License-Identifier: Apache-2.0
//
// Eviction: what it refuses and how it says so, that threads do not change a byte, and the arithmetic of output files.
#include "export/shard/evict.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <functional>
#include <limits>
#include <tuple>

#include "export/nvfp4/nvfp4.h"
#include "ledger/base/parallel.h"
#include "tests/export/export_run.h"

namespace holdfast {
namespace {

using testing::HasSubstr;

class Evict : public testing::Test {
 protected:
  Evict() : run_(fs_, "/w", LlamaPlan({})) {
    run_.AddWeights(ReadGolden("a_llama_nvfp4_src/model.safetensors"));
    run_.Begin();
  }
  const UnitPlan& Layer0() const { return run_.plan().units[0]; }
  std::vector<float> Amax(float v = 1.0f) const {
    return std::vector<float>(Layer0().sites.size(), v);
  }
  Result<LayerRecord> EvictWith(const EvictOptions& options, const UnitPlan& unit) {
    const auto source = SourceModel::Open(fs_, run_.job().source);
    EXPECT_TRUE(source.ok());
    return EvictUnit(fs_, run_.layout(), **source, run_.plan(), unit,
                     std::vector<float>(unit.sites.size(), 1.0f), options);
  }
  // Overwrites one element of a tensor of the source.
  void Poke(const std::string& tensor, uint64_t element, uint16_t bits) {
    const auto source = SourceModel::Open(fs_, run_.job().source);
    const uint64_t at = (*source)->Find(tensor)->tensor->offset + 2 * element;
    Bytes file = *fs_.ReadFile(run_.job().source + "/model.safetensors");
    file[at] = static_cast<uint8_t>(bits);
    file[at + 1] = static_cast<uint8_t>(bits >> 8);
    run_.AddWeights(file);
  }
  void ExpectRefused(const Result<LayerRecord>& r, const std::string& why) {
    ASSERT_EQ(r.code(), ErrorCode::kInvalidArgument);
    EXPECT_THAT(r.error().message, HasSubstr(why));
  }
  SimFileSystem fs_;
  ExportRun run_;
};

TEST_F(Evict, ThreadsDoNotChangeTheRecord) {
  const auto one = run_.Evict(Layer0(), Amax(), 1);
  ASSERT_TRUE(one.ok());
  for (const uint32_t threads : {2u, 5u, 16u}) {
    const auto many = run_.Evict(Layer0(), Amax(), threads);
    ASSERT_TRUE(many.ok());
    EXPECT_EQ(many->ToJson(), one->ToJson());
  }
}

// A device that holds some tensors, by reading them from the source and counting how often it is asked.
class HeldWeights final : public ResidentWeights {
 public:
  HeldWeights(const SourceModel& source, std::function<bool(const std::string&)> holds) : source_(source), holds_(std::move(holds)) {}
  bool Holds(const std::string& tensor) const override { return holds_(tensor); }
  Result<float> Amax(const std::string& tensor) override {
    return WeightAmax(source_.Find(tensor)->tensor->dtype, Read(tensor), tensor);
  }
  Status Quantize(const std::string& tensor, float scale2, std::span<uint8_t> packed, std::span<uint8_t> scales) override {
    ++quantized;
    const TensorInfo& info = *source_.Find(tensor)->tensor;
    QuantizeNvfp4(info.dtype, Read(tensor), info.shape[0], info.shape[1], scale2, packed, scales);
    return OkStatus();
  }
  int quantized = 0;

 private:
  Bytes Read(const std::string& tensor) const {
    const SourceModel::Place* place = source_.Find(tensor);
    Bytes bytes(place->tensor->bytes);
    EXPECT_TRUE(place->file->Read(*place->tensor, bytes).ok());
    return bytes;
  }
  const SourceModel& source_;
  std::function<bool(const std::string&)> holds_;
};

TEST_F(Evict, ResidentWeightsGiveTheSameRecordAndAreNotReadAgain) {
  const auto whole = run_.Evict(Layer0(), Amax(), 1);
  ASSERT_TRUE(whole.ok());
  const auto source = SourceModel::Open(fs_, run_.job().source);
  ASSERT_TRUE(source.ok());
  const auto digest = [&](const std::string& tensor) -> std::optional<Digest> {
    const auto* place = (*source)->Find(tensor);
    Bytes bytes(place->tensor->bytes);
    EXPECT_TRUE(place->file->Read(*place->tensor, bytes).ok());
    return Sha256(bytes);
  };
  const auto all = [](const std::string&) { return true; };
  const auto no_gate = [](const std::string& t) { return t.find("gate_proj") == std::string::npos; };   // its set is read, then
  for (const auto& [holds, known, quantized] : std::vector<std::tuple<std::function<bool(const std::string&)>, bool, int>>{
           {all, true, 7}, {no_gate, true, 5}, {all, false, 0}}) {
    HeldWeights held(**source, holds);
    EvictOptions options;
    options.threads = 3;
    options.resident = &held;
    if (known) options.expected = digest;
    const auto r = EvictWith(options, Layer0());
    ASSERT_TRUE(r.ok()) << r.error().message;
    EXPECT_EQ(r->ToJson(), whole->ToJson());
    EXPECT_EQ(held.quantized, quantized);
  }
}

TEST_F(Evict, RecordSaysWhatWentIn) {
  const auto r = run_.Evict(Layer0(), Amax(2.5f));
  ASSERT_TRUE(r.ok());
  EXPECT_EQ(r->input_amax, std::vector<uint32_t>(7, std::bit_cast<uint32_t>(2.5f)));
  ASSERT_EQ(r->weight_amax.size(), 7u);
  const auto source = SourceModel::Open(fs_, run_.job().source);
  Sha256Hasher all;
  size_t site = 0;
  for (const TensorPlan& t : Layer0().tensors) {
    const auto* place = (*source)->Find(t.name);
    Bytes bytes(t.bytes);
    ASSERT_TRUE(place->file->Read(*place->tensor, bytes).ok());
    all.Update(Sha256(bytes).bytes);
    if (t.shape.size() != 2) continue;
    EXPECT_EQ(r->weight_amax[site++], std::bit_cast<uint32_t>(*WeightAmax(t.dtype, bytes, t.name)))
        << t.name;
  }
  EXPECT_EQ(r->source, all.Finish());
  const auto names = OutputTensorsOf(run_.plan(), Layer0());
  ASSERT_EQ(r->tensors.size(), names.size());
  for (size_t i = 0; i < names.size(); ++i) EXPECT_EQ(r->tensors[i].name, names[i].info.name);
}

TEST_F(Evict, NanInAWeightNamesTensorAndElement) {
  Poke("model.layers.0.mlp.up_proj.weight", 777, 0x7fc0);
  ExpectRefused(run_.Evict(Layer0(), Amax()),
                "model.layers.0.mlp.up_proj.weight: element 777 is NaN");
  Poke("model.layers.0.mlp.up_proj.weight", 777, 0xff80);
  ExpectRefused(run_.Evict(Layer0(), Amax()),
                "model.layers.0.mlp.up_proj.weight: element 777 is infinite");
}

TEST_F(Evict, NanInAnInputAmaxNamesTheSite) {
  auto amax = Amax();
  amax[3] = std::numeric_limits<float>::quiet_NaN();
  ExpectRefused(run_.Evict(Layer0(), amax),
                "model.layers.0.self_attn.o_proj: its input amax is NaN");
  amax[3] = std::numeric_limits<float>::infinity();
  ExpectRefused(run_.Evict(Layer0(), amax), "infinite");
  amax.pop_back();
  ExpectRefused(run_.Evict(Layer0(), amax), "6 input amax for 7 sites");
}

TEST_F(Evict, ZeroInputAmaxGivesScaleOne) {
  const auto r = run_.Evict(Layer0(), Amax(0));
  ASSERT_TRUE(r.ok());
  PackReader packs(fs_, run_.layout(), r->packs);
  for (const StoredTensor& t : r->tensors) {
    if (!t.name.ends_with(".input_scale")) continue;
    Bytes bytes(4);
    ASSERT_TRUE(packs.ReadTensor(t, bytes).ok());
    EXPECT_EQ(HexEncode(bytes), "0000803f") << t.name;
  }
}

TEST_F(Evict, SourceChanged) {
  EvictOptions options;
  options.expected = [](const std::string& tensor) -> std::optional<Digest> {
    if (tensor == "model.layers.0.input_layernorm.weight") return Digest{};
    return std::nullopt;
  };
  ExpectRefused(
      EvictWith(options, Layer0()),
      "source changed: /w/src/model.safetensors: tensor model.layers.0.input_layernorm.weight");
  options.expected = [](const std::string& tensor) -> std::optional<Digest> {
    if (tensor == "model.layers.0.self_attn.k_proj.weight") return Digest{};
    return std::nullopt;
  };
  ExpectRefused(EvictWith(options, Layer0()),
                "tensor model.layers.0.self_attn.k_proj.weight has SHA-256");
}

TEST_F(Evict, PlanAndSourceDisagree) {
  UnitPlan unit = Layer0();
  unit.tensors[0].shape = {32, 128};
  ExpectRefused(EvictWith({}, unit), "the plan expects a matrix of 64 x 64");
  unit = Layer0();
  unit.tensors[7].shape = {65};
  ExpectRefused(EvictWith({}, unit), "source changed");
  unit = Layer0();
  unit.tensors[7].name = "model.layers.0.gone.weight";
  ExpectRefused(EvictWith({}, unit), "has no tensor model.layers.0.gone.weight");
  unit = Layer0();
  unit.sites[0].module = "model.layers.0.nothing";
  ExpectRefused(EvictWith({}, unit), "has no weight for it");
  unit = Layer0();
  unit.tensors[0].shape = {64, 40};
  unit.sites[0].cols = 40;
  ExpectRefused(EvictWith({}, unit), "40 columns are no multiple of 16");
  unit = Layer0();
  unit.tensors[0].dtype = DType::kF8E4M3;
  ExpectRefused(EvictWith({}, unit), "weights of type F8_E4M3 cannot be quantized");
}

TEST_F(Evict, Stops) {
  std::atomic<bool> stop{true};
  EvictOptions options;
  options.stop = &stop;
  EXPECT_EQ(EvictWith(options, Layer0()).code(), ErrorCode::kStopped);
}

// ---- files of the output ----

Plan OneUnitPlan(const std::vector<uint64_t>& sizes) {
  Plan plan;
  plan.units.resize(2);
  for (size_t i = 0; i < sizes.size(); ++i) {
    TensorPlan t;
    t.name = "t" + std::to_string(i);
    t.dtype = DType::kU8;
    t.shape = {sizes[i]};
    plan.units[0].tensors.push_back(t);
  }
  plan.units[1].id = 1;
  return plan;
}

std::vector<std::vector<std::string>> Names(const OutputPlan& plan) {
  std::vector<std::vector<std::string>> names;
  for (const OutputFile& f : plan.files) {
    names.emplace_back();
    for (const TensorInfo& t : f.layout.tensors) names.back().push_back(t.name);
  }
  return names;
}

TEST(OutputPlan, GreedyFillingAndOversizedTensors) {
  using V = std::vector<std::vector<std::string>>;
  EXPECT_EQ(Names(PlanOutput(OneUnitPlan({40, 60, 1}), 100)), (V{{"t0", "t1"}, {"t2"}}));
  EXPECT_EQ(Names(PlanOutput(OneUnitPlan({100, 100}), 100)), (V{{"t0"}, {"t1"}}));
  // An oversized tensor becomes a file at once, before the one being filled.
  EXPECT_EQ(Names(PlanOutput(OneUnitPlan({40, 500, 50, 20}), 100)),
            (V{{"t1"}, {"t0", "t2"}, {"t3"}}));
  const OutputPlan plan = PlanOutput(OneUnitPlan({40, 500, 50, 20}), 100);
  EXPECT_EQ(plan.files[2].name, "model-00003-of-00003.safetensors");
  EXPECT_EQ(plan.total_size, 610u);
  EXPECT_EQ(PlanOutput(OneUnitPlan({40}), 100).files[0].name, "model.safetensors");
}

TEST(OutputPlan, SitesBecomeFourTensors) {
  const Plan plan = LlamaPlan({});
  const auto tensors = OutputTensorsOf(plan, plan.units[0]);
  ASSERT_EQ(tensors.size(), 7 * 4 + 2u);
  EXPECT_EQ(tensors[0].info.name, "model.layers.0.self_attn.q_proj.weight");
  EXPECT_EQ(tensors[0].info.shape, (std::vector<uint64_t>{64, 32}));
  EXPECT_EQ(tensors[1].info.name, "model.layers.0.self_attn.q_proj.weight_scale");
  EXPECT_EQ(tensors[1].info.shape, (std::vector<uint64_t>{64, 4}));
  EXPECT_EQ(tensors[2].info.name, "model.layers.0.self_attn.q_proj.weight_scale_2");
  EXPECT_EQ(tensors[3].info.name, "model.layers.0.self_attn.q_proj.input_scale");
}

// Packs know one spelling; the other is what the output plan makes of it.
TEST(OutputPlan, CompressedTensorsSpellsThemOtherwise) {
  const Plan plan = LlamaPlan({});
  const auto stored = OutputTensorsOf(plan, plan.units[0]), tensors = OutputTensorsOf(plan, plan.units[0], OutputLayout::kCompressedTensors);
  ASSERT_EQ(tensors.size(), stored.size());
  const std::string q = "model.layers.0.self_attn.q_proj";
  const char* const names[] = {".weight_packed", ".weight_scale", ".weight_global_scale", ".input_global_scale"};
  for (size_t i = 0; i < tensors.size(); ++i) {
    EXPECT_EQ(tensors[i].origin.name, stored[i].info.name);
    EXPECT_EQ(tensors[i].info.bytes, stored[i].info.bytes);
    const bool scalar = i < 28 && i % 4 >= 2;
    EXPECT_EQ(tensors[i].origin.change == Change::kReciprocal, scalar) << tensors[i].info.name;
    EXPECT_EQ(tensors[i].info.shape, scalar ? std::vector<uint64_t>{1} : stored[i].info.shape);
    if (i < 4) {
      EXPECT_EQ(tensors[i].info.name, q + names[i]);
    }
    if (i >= 28) {
      EXPECT_EQ(tensors[i].info.name, stored[i].info.name);
    }
  }
  for (const uint64_t limit : {5'000ull, 60'000ull, 1'000'000'000ull}) {
    const OutputPlan a = PlanOutput(plan, limit), b = PlanOutput(plan, limit, OutputLayout::kCompressedTensors);
    EXPECT_EQ(a.files.size(), b.files.size());
    EXPECT_EQ(a.total_size, b.total_size);
    EXPECT_EQ(a.total_parameters, b.total_parameters);
  }
}

// ---- ParallelFor ----

TEST(ParallelFor, VisitsEachIndexOnce) {
  for (const uint32_t threads : {0u, 1u, 3u, 40u}) {
    std::vector<std::atomic<int>> seen(100);
    ASSERT_TRUE(ParallelFor(threads, seen.size(), [&](size_t i) {
                  seen[i]++;
                  return OkStatus();
                }).ok());
    for (const auto& s : seen) EXPECT_EQ(s, 1);
  }
}

TEST(ParallelFor, LowestFailureWins) {
  for (int round = 0; round < 200; ++round) {
    const Status s = ParallelFor(4, 50, [&](size_t i) -> Status {
      if (i == 7 || i == 9 || i == 30) return Internal("at " + std::to_string(i));
      return OkStatus();
    });
    ASSERT_EQ(s.error().message, "at 7");
  }
}

}  // namespace
}  // namespace holdfast
