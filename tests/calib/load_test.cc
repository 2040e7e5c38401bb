// SPDX-License-Identifier: Apache-2.0
//
// Loading a range: digests of what was read, refusals of sources that changed or cannot be used, dtypes of sources.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "calib/runner/runner.h"
#include "export/nvfp4/nvfp4.h"
#include "tests/calib/random_model.h"

namespace holdfast {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using Output = LayerRangeRunner::Output;

template <class T>
T Must(Result<T> r) {
  EXPECT_TRUE(r.ok()) << (r.ok() ? "" : r.error().message);
  return std::move(r).value();
}

class Load : public testing::Test {
 protected:
  void Open(const RandomShape& shape) {
    model_ = std::make_unique<RandomModel>(shape);
    Reopen();
    plan_ = Must(BindModel(spec_, Recipe::kNvfp4, *source_));
    options_ = {};
    options_.last_layer = spec_.layers;
  }
  void Reopen() {
    spec_ = Must(ParseDecoder(model_->config, "config"));
    source_ = Must(SourceModel::Open(fs_, model_->dir));
  }
  Result<std::unique_ptr<LayerRangeRunner>> Try() { return LayerRangeRunner::Load(*source_, spec_, plan_, options_, &digests_); }
  // Overwrites one value of a tensor on disk.
  void Poke(const std::string& tensor, uint64_t element, uint16_t bits) {
    Bytes file = Must(fs_.ReadFile(model_->dir + "/model.safetensors"));
    const uint64_t at = source_->Find(tensor)->tensor->offset + element * 2;
    file[at] = static_cast<uint8_t>(bits);
    file[at + 1] = static_cast<uint8_t>(bits >> 8);
    auto out = fs_.Create(model_->dir + "/model.safetensors", 0644);
    EXPECT_TRUE((*out)->Append(file).ok() && (*out)->Close().ok());
    Reopen();
  }

  PosixFileSystem fs_;
  std::unique_ptr<RandomModel> model_;
  DecoderSpec spec_;
  std::unique_ptr<SourceModel> source_;
  Plan plan_;
  RunnerOptions options_;
  std::vector<LoadedDigest> digests_;
};

TEST_F(Load, ReportsDigestsOfAllUnitsRead) {
  Open({.layers = 3});
  options_.last_layer = 2;
  options_.load_threads = 2;
  Must(Try());
  ASSERT_EQ(digests_.size(), 3u);   // two layers and the embedding
  EXPECT_EQ(digests_[2].unit, 3u);
  for (const LoadedDigest& d : digests_) {
    const UnitPlan& unit = plan_.units[d.unit];
    ASSERT_EQ(d.tensors.size(), unit.tensors.size());
    for (size_t i = 0; i < d.tensors.size(); ++i) {
      EXPECT_EQ(d.tensors[i].first, unit.tensors[i].name);
      const SourceModel::Place* place = source_->Find(unit.tensors[i].name);
      Bytes raw(place->tensor->bytes);
      ASSERT_TRUE(place->file->Read(*place->tensor, raw).ok());
      EXPECT_EQ(d.tensors[i].second, Sha256(raw));
    }
  }
  options_.first_layer = 2;
  options_.last_layer = 3;
  Must(Try());
  EXPECT_EQ(digests_.size(), 1u);
}

TEST_F(Load, RefusesASourceThatChanged) {
  Open({});
  options_.expected = [](const std::string& tensor) {
    return tensor == "model.layers.1.mlp.up_proj.weight" ? std::optional<Digest>(Sha256(AsBytes("other"))) : std::nullopt;
  };
  const auto r = Try();
  ASSERT_FALSE(r.ok());
  EXPECT_EQ(r.error().code, ErrorCode::kInvalidArgument);
  EXPECT_THAT(r.error().message, AllOf(HasSubstr("model.safetensors"), HasSubstr("source changed"), HasSubstr("model.layers.1.mlp.up_proj.weight")));
}

TEST_F(Load, RefusesWeightsThatAreNotFinite) {
  Open({});
  for (const uint16_t bits : {0x7fc0, 0xff80}) {
    Poke("model.layers.0.self_attn.k_proj.weight", 100, bits);
    const auto r = Try();
    ASSERT_FALSE(r.ok());
    EXPECT_EQ(r.error().code, ErrorCode::kInvalidArgument);
    EXPECT_THAT(r.error().message, HasSubstr("model.layers.0.self_attn.k_proj.weight"));
  }
}

TEST_F(Load, RefusesWhatDoesNotExist) {
  Open({});
  options_.device = "tpu";
  EXPECT_THAT(Try().error().message, HasSubstr("tpu"));
  options_.device = "cuda:99";                 // it may have been there when this was begun
  EXPECT_EQ(Try().error().code, ErrorCode::kInternal);
  EXPECT_THAT(Try().error().message, HasSubstr("cuda:99"));
  options_.device = "cpu";
  options_.last_layer = 3;
  EXPECT_EQ(Try().error().code, ErrorCode::kInvalidArgument);
  options_.last_layer = 2;
  setenv("HOLDFAST_MATMUL", "int8", 1);
  EXPECT_THAT(Try().error().message, HasSubstr("HOLDFAST_MATMUL=int8"));
  unsetenv("HOLDFAST_MATMUL");
}

TEST_F(Load, ACutOfTheWrongSizeIsCorrupt) {
  Open({});
  options_.first_layer = 1;
  const auto runner = Must(Try());
  const Bytes cut(3 * spec_.hidden * 2 - 2);
  EXPECT_EQ(runner->ForwardHidden(cut, 3, Output::kNone).code(), ErrorCode::kCorrupt);
  EXPECT_EQ(runner->ForwardHidden({}, 0, Output::kNone).code(), ErrorCode::kCorrupt);
  EXPECT_EQ(runner->ForwardHidden(Bytes(spec_.hidden * 2), 1, Output::kNone).code(), ErrorCode::kOk);
}

TEST_F(Load, ANanInTheCutReachesEverySite) {
  Open({});
  options_.first_layer = 1;
  const auto runner = Must(Try());
  Bytes cut(4 * spec_.hidden * 2);
  cut[spec_.hidden * 2] = 0xc0;      // token 1
  cut[spec_.hidden * 2 + 1] = 0x7f;
  const ForwardResult r = Must(runner->ForwardHidden(cut, 4, Output::kNone));
  for (const float a : r.amax) EXPECT_TRUE(std::isnan(a));
}

// F16 and F32 checkpoints run with weights rounded to bf16: within the tolerance of two correct forward passes.
TEST_F(Load, OtherDtypesOfTheSource) {
  Open({.seed = 5});
  const std::vector<int32_t> ids = RandomIds(1, 64, spec_.vocab);
  const ForwardResult bf16 = Must(Must(Try())->ForwardTokens(ids, Output::kHidden));
  for (const DType dtype : {DType::kF16, DType::kF32}) {
    Open({.dtype = dtype, .seed = 5});
    const ForwardResult other = Must(Must(Try())->ForwardTokens(ids, Output::kHidden));
    ASSERT_EQ(other.amax.size(), bf16.amax.size());
    for (size_t i = 0; i < bf16.amax.size(); ++i) EXPECT_NEAR(other.amax[i] / bf16.amax[i], 1.0, 0.025) << DTypeName(dtype) << " " << i;
  }
}

TEST_F(Load, SitesThatAreNotQuantizedAreNotObserved) {
  Open({});
  const std::vector<int32_t> ids = RandomIds(1, 64, spec_.vocab);
  const ForwardResult all = Must(Must(Try())->ForwardTokens(ids, Output::kHidden));
  plan_ = Must(BindModel(spec_, Recipe::kNvfp4MlpOnly, *source_));
  const ForwardResult mlp = Must(Must(Try())->ForwardTokens(ids, Output::kHidden));
  EXPECT_EQ(mlp.amax, (std::vector<float>{all.amax[4], all.amax[5], all.amax[6], all.amax[11], all.amax[12], all.amax[13]}));
  EXPECT_EQ(mlp.hidden, all.hidden);
}

TEST(Devices, CpuIsAlwaysThere) {
  EXPECT_EQ(TorchDevices().front(), "cpu");
  EXPECT_THAT(NumericsClass("cpu"), AllOf(HasSubstr("cpu/"), HasSubstr("/libtorch-")));
  setenv("HOLDFAST_MATMUL", "f32", 1);
  EXPECT_THAT(NumericsClass("cpu"), HasSubstr("cpu/f32/"));
  unsetenv("HOLDFAST_MATMUL");
  EXPECT_THAT(NumericsClass("cuda:0"), HasSubstr("cuda/bf16/"));
}

// A file that changed explains any value in it: that is what is said, not what the value is.
TEST_F(Load, AChangedSourceIsNamedBeforeItsValuesAre) {
  Open({.layers = 1});
  Poke("model.layers.0.mlp.up_proj.weight", 3, 0x7fc0);
  options_.expected = [](const std::string&) { return std::optional(Sha256(Bytes{1})); };
  for (size_t device = 0; device < std::min<size_t>(2, TorchDevices().size()); ++device) {
    options_.device = device == 0 ? "cpu" : "cuda";
    const auto r = Try();
    ASSERT_EQ(r.code(), ErrorCode::kInvalidArgument);
    EXPECT_THAT(r.error().message, HasSubstr("source changed"));
  }
}

// ---- on a GPU ----

class LoadOnGpu : public Load {
 protected:
  void SetUp() override {
    if (TorchDevices().size() == 1) GTEST_SKIP() << "no CUDA device, or a libtorch without CUDA";
  }
};

TEST_F(LoadOnGpu, DigestsAreThoseOfTheFileWhateverItsDtype) {
  for (const DType dtype : {DType::kBF16, DType::kF16, DType::kF32}) {
    Open({.layers = 2, .hidden = 2048, .intermediate = 6144, .vocab = 9000, .dtype = dtype});   // matrices of several pieces
    Must(Try());
    const auto on_cpu = digests_;
    options_.device = "cuda";
    options_.load_threads = 3;
    Must(Try());
    ASSERT_EQ(digests_.size(), on_cpu.size());
    for (size_t i = 0; i < digests_.size(); ++i) EXPECT_EQ(digests_[i].tensors, on_cpu[i].tensors) << DTypeName(dtype);
  }
}

TEST_F(LoadOnGpu, QuantizesWhatItHoldsToTheBytesOfTheCpu) {
  Open({.layers = 1, .hidden = 2048, .intermediate = 6144});
  options_.device = "cuda";
  const auto runner = Must(Try());
  ResidentWeights* held = runner->Resident();
  ASSERT_NE(held, nullptr);
  EXPECT_FALSE(held->Holds("model.layers.0.input_layernorm.weight"));
  for (const SitePlan& site : plan_.units[0].sites) {
    const std::string name = site.module + ".weight";
    ASSERT_TRUE(held->Holds(name));
    const auto* place = source_->Find(name);
    Bytes raw(place->tensor->bytes), packed(site.rows * site.cols / 2), scales(packed.size() / 8), packed2(packed.size()), scales2(scales.size());
    ASSERT_TRUE(place->file->Read(*place->tensor, raw).ok());
    const float amax = Must(WeightAmax(DType::kBF16, raw, name));
    EXPECT_EQ(Must(held->Amax(name)), amax);
    QuantizeNvfp4(DType::kBF16, raw, site.rows, site.cols, GlobalScale(amax), packed, scales);
    ASSERT_TRUE(held->Quantize(name, GlobalScale(amax), packed2, scales2).ok());
    EXPECT_TRUE(packed == packed2 && scales == scales2) << name;
  }
}

TEST_F(LoadOnGpu, WeightsThatWereRoundedAreNotTheSourcesOwn) {
  Open({.layers = 1, .dtype = DType::kF16});
  options_.device = "cuda";
  EXPECT_EQ(Must(Try())->Resident(), nullptr);
}

TEST_F(LoadOnGpu, RefusesNonFiniteWeightsByTheirPlaceInTheTensor) {
  Open({.layers = 1, .hidden = 2048, .intermediate = 6144});
  Poke("model.layers.0.mlp.up_proj.weight", 9'000'000, 0x7f80);   // in the third piece
  options_.device = "cuda";
  const auto r = Try();
  ASSERT_EQ(r.code(), ErrorCode::kInvalidArgument);
  EXPECT_THAT(r.error().message, AllOf(HasSubstr("model.layers.0.mlp.up_proj.weight"), HasSubstr("element 9000000 is infinite")));
}

}  // namespace
}  // namespace holdfast
