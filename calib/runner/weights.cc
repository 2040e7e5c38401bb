// SPDX-License-Identifier: Apache-2.0
#include "calib/runner/weights.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <atomic>
#include <cstring>
#include <mutex>
#include <thread>

#include "calib/model/device_probe.h"
#include "calib/runner/device_session.h"
#include "calib/runner/kernels.h"
#include "export/nvfp4/nvfp4.h"

namespace holdfast {
namespace {

// One source tensor and where its values go: `target` is a contiguous view.
struct Job {
  const TensorPlan* tensor;
  at::Tensor target;
  size_t unit, index;   // where the digest goes
};

// Allocates fused tensors and says which rows of them each source tensor fills.
class Builder {
 public:
  Builder(const DecoderSpec& spec, const Plan& plan, at::Device device, MatmulDtype matmul)
      : spec_(spec), plan_(plan), device_(device), weight_type_(matmul == MatmulDtype::kBf16 ? at::kBFloat16 : at::kFloat) {}

  LayerWeights Layer(uint32_t layer) {
    unit_ = &plan_.units.at(layer);
    prefix_ = LayerPrefix(layer);
    const std::vector<LinearSpec> linears = LayerLinears(spec_);
    LayerWeights w;
    w.qkv = Fuse(linears, LinearInput::kAttention);
    w.o = Fuse(linears, LinearInput::kAttentionOut);
    w.gate_up = Fuse(linears, LinearInput::kMlp);
    w.down = Fuse(linears, LinearInput::kMlpOut);
    w.input_norm = Norm(kInputNormName);
    w.mlp_norm = Norm(kMlpNormName);
    ++unit_index_;
    return w;
  }
  at::Tensor Embedding() {
    unit_ = &plan_.units.at(spec_.layers);
    prefix_.clear();
    at::Tensor t = Empty({Dim(spec_.vocab), Dim(spec_.hidden)}, at::kBFloat16);
    Add(kEmbeddingName, t);
    ++unit_index_;
    return t;
  }
  std::vector<Job> TakeJobs() { return std::move(jobs_); }

 private:
  static int64_t Dim(uint64_t n) { return static_cast<int64_t>(n); }
  at::Tensor Empty(std::vector<int64_t> shape, at::ScalarType type) {
    return at::empty(shape, at::TensorOptions().dtype(type).device(device_));
  }
  void Add(const std::string& name, at::Tensor target) {
    for (size_t i = 0; i < unit_->tensors.size(); ++i) {
      if (unit_->tensors[i].name == prefix_ + name) {
        jobs_.push_back({&unit_->tensors[i], std::move(target), unit_index_, i});
        return;
      }
    }
    HOLDFAST_CHECK(!"a tensor of the decoder that the plan does not have");
  }
  LayerWeights::Linear Fuse(const std::vector<LinearSpec>& linears, LinearInput input) {
    uint64_t rows = 0, cols = 0;
    bool bias = false;
    for (const LinearSpec& l : linears) {
      if (l.input != input) continue;
      rows += l.rows;
      cols = l.cols;
      bias = l.bias;
    }
    LayerWeights::Linear out;
    out.weight = Empty({Dim(rows), Dim(cols)}, weight_type_);
    if (bias) out.bias = Empty({Dim(rows)}, weight_type_);
    int64_t row = 0;
    for (const LinearSpec& l : linears) {
      if (l.input != input) continue;
      Add(l.module + ".weight", out.weight.narrow(0, row, Dim(l.rows)));
      if (bias) Add(l.module + ".bias", out.bias.narrow(0, row, Dim(l.rows)));
      row += Dim(l.rows);
    }
    return out;
  }
  at::Tensor Norm(const char* name) {
    at::Tensor t = Empty({Dim(spec_.hidden)}, at::kBFloat16);
    Add(name, t);
    return t;
  }

  const DecoderSpec& spec_;
  const Plan& plan_;
  const at::Device device_;
  const at::ScalarType weight_type_;
  const UnitPlan* unit_ = nullptr;
  std::string prefix_;
  size_t unit_index_ = 0;
  std::vector<Job> jobs_;
};

// Values of any source dtype as bf16.
void ConvertToBf16(DType dtype, ByteSpan raw, uint16_t* out) {
  if (dtype == DType::kBF16) {
    std::memcpy(out, raw.data(), raw.size());
  } else if (dtype == DType::kF32) {
    kernels::ToBf16(reinterpret_cast<const float*>(raw.data()), raw.size() / 4, out);
  } else {
    const auto* half = reinterpret_cast<const uint16_t*>(raw.data());
    for (size_t i = 0; i < raw.size() / 2; ++i) out[i] = FloatToBf16(F16ToFloat(half[i]));
  }
}

void Fill(DType dtype, ByteSpan raw, const at::Tensor& target) {
  const size_t count = static_cast<size_t>(target.numel());
  if (target.is_cpu() && target.scalar_type() == at::kBFloat16) {
    ConvertToBf16(dtype, raw, static_cast<uint16_t*>(target.data_ptr()));
    return;
  }
  at::Tensor bf16 = at::empty(target.sizes(), at::kBFloat16);
  ConvertToBf16(dtype, raw, static_cast<uint16_t*>(bf16.data_ptr()));
  if (target.is_cpu()) {
    kernels::ToF32(static_cast<const uint16_t*>(bf16.data_ptr()), count, static_cast<float*>(target.data_ptr()));
  } else {
    target.copy_(bf16);
  }
}

Status CheckUnchanged(const SourceModel::Place* place, const TensorPlan& t, const std::string& dir) {
  if (place == nullptr) return InvalidArgument(dir + ": source changed: tensor " + t.name + " is gone");
  const TensorInfo& info = *place->tensor;
  if (info.shape == t.shape && info.dtype == t.dtype) return {};
  return InvalidArgument(place->file->path() + ": source changed: tensor " + t.name + " is not the one that was planned (shape or dtype)");
}

Status CheckExpected(const RunnerOptions& options, const TensorPlan& t, const std::string& file, const Digest& digest) {
  const std::optional<Digest> expected = options.expected ? options.expected(t.name) : std::nullopt;
  if (!expected.has_value() || *expected == digest) return OkStatus();
  return InvalidArgument(file + ": source changed: tensor " + t.name + " has SHA-256 " + digest.Hex() + ", this job began with " + expected->Hex() +
                         ". Restore the file, or submit a new job");
}

// To host memory, whole. A file that changed explains any value, so its digest is judged before the values are.
Result<Digest> LoadWhole(const SourceModel::Place& place, const TensorPlan& t, const RunnerOptions& options, const at::Tensor& target) {
  const bool in_place = t.dtype == DType::kBF16 && target.is_cpu() && target.scalar_type() == at::kBFloat16;
  Bytes staging(in_place ? 0 : place.tensor->bytes);
  const std::span<uint8_t> raw = in_place ? std::span(static_cast<uint8_t*>(target.data_ptr()), place.tensor->bytes) : std::span(staging);
  HOLDFAST_TRY(place.file->Read(*place.tensor, raw));
  const Digest digest = Sha256(raw);
  HOLDFAST_TRY(CheckExpected(options, t, place.file->path(), digest));
  HOLDFAST_TRY(WeightAmax(t.dtype, raw, place.file->path() + ": tensor " + t.name));
  if (!in_place) Fill(t.dtype, raw, target);
  return digest;
}

#ifdef HOLDFAST_HAVE_CUDA
// Which element is not finite, said by its place in the tensor.
Error NonFinite(const SourceModel::Place& place, const TensorPlan& t) {
  Bytes raw(place.tensor->bytes);
  if (const Status read = place.file->Read(*place.tensor, raw); !read.ok()) return read.error();
  const std::string what = place.file->path() + ": tensor " + t.name;
  const auto amax = WeightAmax(t.dtype, raw, what);
  return amax.ok() ? InvalidArgument(what + " changed while it was read; begin again when nobody writes to it") : amax.error();
}

constexpr uint64_t kSliceBytes = 1u << 20;   // what a core's cache holds

// To a GPU, piece by piece: while one is copied there, the next is read, hashed and looked through, slice by slice, while a slice is in the CPU's
// cache. Pinned memory is only written.
Result<Digest> LoadInPieces(const SourceModel::Place& place, const TensorPlan& t, const RunnerOptions& options, const at::Tensor& target,
                            device::Uploader& uploader) {
  const uint64_t values = device::Uploader::kBytes / 2, all = static_cast<uint64_t>(target.numel()), width = DTypeBytes(t.dtype);
  auto* to = static_cast<uint16_t*>(target.data_ptr());
  Bytes slice(std::min(kSliceBytes, all * width));
  Sha256Hasher hasher;
  bool finite = true;
  for (uint64_t at = 0; at < all; at += values) {
    const uint64_t piece = std::min(values, all - at);
    HOLDFAST_ASSIGN(const std::span<uint8_t> pinned, uploader.Buffer());
    for (uint64_t i = 0; i < piece; i += kSliceBytes / width) {
      const uint64_t n = std::min(kSliceBytes / width, piece - i);
      const std::span<uint8_t> raw = std::span(slice).first(n * width);
      HOLDFAST_TRY(place.file->file().Read(place.tensor->offset + (at + i) * width, raw));
      hasher.Update(raw);
      finite = finite && WeightAmax(t.dtype, raw, t.name).ok();
      ConvertToBf16(t.dtype, raw, reinterpret_cast<uint16_t*>(pinned.data()) + i);
    }
    HOLDFAST_TRY(uploader.Send(to + at, piece * 2));
  }
  const Digest digest = hasher.Finish();
  HOLDFAST_TRY(CheckExpected(options, t, place.file->path(), digest));
  if (!finite) return NonFinite(place, t);
  return digest;
}
#endif

// One loading thread.
class Loader {
 public:
  Loader(const SourceModel& source, const RunnerOptions& options) : source_(source), options_(options) {}

  Result<Digest> Load(const Job& job) {
    const TensorPlan& t = *job.tensor;
    const SourceModel::Place* place = source_.Find(t.name);
    HOLDFAST_TRY(CheckUnchanged(place, t, source_.dir()));
    HOLDFAST_CHECK(static_cast<uint64_t>(job.target.numel()) * DTypeBytes(t.dtype) == place->tensor->bytes);
    return Read(*place, t, job.target);
  }
  // When this returns, everything is where it belongs.
  Status Finish() {
#ifdef HOLDFAST_HAVE_CUDA
    if (uploader_ != nullptr) return uploader_->Finish();
#endif
    return OkStatus();
  }

 private:
  Result<Digest> Read(const SourceModel::Place& place, const TensorPlan& t, const at::Tensor& target) {
#ifdef HOLDFAST_HAVE_CUDA
    if (!target.is_cpu()) {
      HOLDFAST_CHECK(target.scalar_type() == at::kBFloat16 && target.is_contiguous());
      if (uploader_ == nullptr) {
        const int device = std::max<int>(0, target.device().index());
        HOLDFAST_ASSIGN(uploader_, options_.session->uploaders.Borrow([device] { return device::Uploader::New(device); }));
      }
      return LoadInPieces(place, t, options_, target, *uploader_);
    }
#endif
    return LoadWhole(place, t, options_, target);
  }

  const SourceModel& source_;
  const RunnerOptions& options_;
#ifdef HOLDFAST_HAVE_CUDA
  LendingPool<device::Uploader>::Loan uploader_;
#endif
};

// Runs all jobs on `threads` threads. Of several errors the one of the earliest tensor is reported.
Status RunJobs(const SourceModel& source, const RunnerOptions& options, const std::vector<Job>& jobs, std::vector<LoadedDigest>* digests) {
  std::atomic<size_t> next{0};
  std::mutex mutex;
  size_t first_failure = jobs.size();
  std::optional<Error> failure;
  const auto fail = [&](size_t i, Error error) {
    const std::lock_guard lock(mutex);
    if (i < first_failure) {
      first_failure = i;
      failure = std::move(error);
    }
  };
  const auto work = [&] {
    c10::InferenceMode guard;
    Loader loader(source, options);
    size_t last = jobs.size();
    for (size_t i = next++; i < jobs.size(); i = next++) {
      try {
        last = i;
        if (options.stop != nullptr && options.stop->load()) return fail(i, Stopped("stopped while loading tensor " + jobs[i].tensor->name));
        Result<Digest> digest = loader.Load(jobs[i]);
        if (!digest.ok()) {
          fail(i, digest.error());
          return;
        }
        (*digests)[jobs[i].unit].tensors[jobs[i].index] = {jobs[i].tensor->name, *digest};
      } catch (const std::exception& e) {
        fail(i, DeviceError("loading tensor " + jobs[i].tensor->name, e.what()));
        return;
      }
    }
    if (const Status done = loader.Finish(); !done.ok()) fail(last, done.error());
  };
  std::vector<std::thread> threads;
  for (uint32_t t = 1; t < options.load_threads; ++t) threads.emplace_back(work);
  work();
  for (std::thread& t : threads) t.join();
  if (failure.has_value()) return *failure;
  return {};
}

LoadedDigest EmptyDigests(const UnitPlan& unit) {
  LoadedDigest d;
  d.unit = unit.id;
  d.tensors.resize(unit.tensors.size());
  return d;
}

}  // namespace

Result<RangeWeights> LoadWeights(const SourceModel& source, const DecoderSpec& spec, const Plan& plan, const RunnerOptions& options,
                                 at::Device device, MatmulDtype matmul, std::vector<LoadedDigest>* digests) {
  RangeWeights weights;
  std::vector<LoadedDigest> read;
  Builder builder(spec, plan, device, matmul);
  for (uint32_t layer = options.first_layer; layer < options.last_layer; ++layer) {
    read.push_back(EmptyDigests(plan.units.at(layer)));
    weights.layers.push_back(builder.Layer(layer));
  }
  if (options.first_layer == 0) {
    read.push_back(EmptyDigests(plan.units.at(spec.layers)));
    weights.embedding = builder.Embedding();
  }
  const std::vector<Job> jobs = builder.TakeJobs();
  HOLDFAST_TRY(RunJobs(source, options, jobs, &read));
  for (const Job& job : jobs) {
    if (!job.target.is_cpu() && job.tensor->dtype == DType::kBF16 && job.target.dim() == 2) weights.source_values[job.tensor->name] = job.target;
  }
  if (digests != nullptr) *digests = std::move(read);
  return weights;
}

std::vector<SiteSlots> FindSlots(const DecoderSpec& spec, const Plan& plan, uint32_t first_layer, uint32_t last_layer) {
  const std::vector<LinearSpec> linears = LayerLinears(spec);
  std::vector<SiteSlots> slots(last_layer - first_layer);
  uint32_t next = 0;
  for (uint32_t layer = first_layer; layer < last_layer; ++layer) {
    for (const SitePlan& site : plan.units.at(layer).sites) {
      for (const LinearSpec& l : linears) {
        if (site.module == LayerPrefix(layer) + l.module) slots[layer - first_layer][static_cast<size_t>(l.input)].push_back(next);
      }
      ++next;
    }
  }
  return slots;
}

}  // namespace holdfast
