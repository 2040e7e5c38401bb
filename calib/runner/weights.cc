// SPDX-License-Identifier: Apache-2.0
#include "calib/runner/weights.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <atomic>
#include <cstring>
#include <deque>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "calib/model/device_probe.h"
#include "calib/runner/device_session.h"
#include "calib/runner/kernels.h"
#include "export/nvfp4/nvfp4.h"
#include "ledger/base/tensor_digest.h"
#include "ledger/base/trace.h"

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
  SeparateWeights Separate(uint32_t layer) {
    unit_ = &plan_.units.at(layer);
    prefix_ = LayerPrefix(layer);
    SeparateWeights w;
    for (const LinearSpec& l : LayerLinears(spec_)) {
      LayerWeights::Linear& linear = w.linears[static_cast<size_t>(l.role)];
      linear.weight = Empty({Dim(l.rows), Dim(l.cols)}, weight_type_);
      Add(l.module + ".weight", linear.weight);
      if (!l.bias) continue;
      linear.bias = Empty({Dim(l.rows)}, weight_type_);
      Add(l.module + ".bias", linear.bias);
    }
    for (const NormTensor& norm : LayerNorms(spec_)) {
      at::Tensor& t = w.norms[static_cast<size_t>(norm.role)];
      t = Empty(std::vector<int64_t>(norm.shape.begin(), norm.shape.end()), at::kBFloat16);
      Add(norm.name, t);
    }
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
  const Digest digest = TensorDigest(raw);
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
static_assert(kDigestPieceBytes <= device::Uploader::kBytes);

struct Piece {
  Digest digest;
  bool finite = true;
};

// Bytes [at, at + bytes) of a tensor to a GPU: read, hashed and looked through slice by slice, while a slice is in the CPU's cache; the piece
// before is copied meanwhile. Pinned memory is only written.
Result<Piece> LoadPiece(const SourceModel::Place& place, const TensorPlan& t, uint64_t at, uint64_t bytes, const at::Tensor& target, device::Uploader& uploader) {
  const uint64_t width = DTypeBytes(t.dtype);
  HOLDFAST_ASSIGN(const std::span<uint8_t> pinned, uploader.Buffer());
  Bytes slice(std::min(kSliceBytes, bytes));
  Sha256Hasher hasher;
  Piece piece;
  for (uint64_t done = 0; done < bytes; done += slice.size()) {
    const std::span<uint8_t> raw = std::span(slice).first(std::min<uint64_t>(slice.size(), bytes - done));
    HOLDFAST_TRY(place.file->file().Read(place.tensor->offset + at + done, raw));
    hasher.Update(raw);
    piece.finite = piece.finite && WeightAmax(t.dtype, raw, t.name).ok();
    ConvertToBf16(t.dtype, raw, reinterpret_cast<uint16_t*>(pinned.data()) + done / width);
  }
  HOLDFAST_TRY(uploader.Send(static_cast<uint16_t*>(target.data_ptr()) + at / width, bytes / width * 2));
  piece.digest = hasher.Finish();
  return piece;
}
#endif

// A tensor on its way in. What goes to a GPU does so in pieces, on as many threads as there are: one tensor of a large model would keep one core busy
// for as long as the whole group may take.
struct Arrival {
  Job job;
  std::vector<Digest> pieces;
  std::atomic<size_t> left = 1;      // pieces
  std::atomic<bool> finite = true;
  explicit Arrival(Job j) : job(std::move(j)) {
#ifdef HOLDFAST_HAVE_CUDA
    if (!job.target.is_cpu()) left = DigestPieces(job.tensor->bytes);
#endif
    pieces.resize(left);
  }
};

// One loading thread.
class Loader {
 public:
  Loader(const SourceModel& source, const RunnerOptions& options) : source_(source), options_(options) {}

  // A piece of a tensor. The tensor's digest, if it is the last one to arrive.
  Result<std::optional<Digest>> Load(Arrival* arrival, size_t piece) {
    const TraceSpan span("load a tensor");
    const Job& job = arrival->job;
    const TensorPlan& t = *job.tensor;
    const SourceModel::Place* place = source_.Find(t.name);
    HOLDFAST_TRY(CheckUnchanged(place, t, source_.dir()));
    HOLDFAST_CHECK(static_cast<uint64_t>(job.target.numel()) * DTypeBytes(t.dtype) == place->tensor->bytes);
#ifdef HOLDFAST_HAVE_CUDA
    if (!job.target.is_cpu()) return ToGpu(arrival, *place, piece);
#endif
    HOLDFAST_CHECK(piece == 0 && arrival->pieces.size() == 1);
    HOLDFAST_ASSIGN(const Digest digest, LoadWhole(*place, t, options_, job.target));
    return std::optional(digest);
  }
  // When this returns, everything is where it belongs.
  Status Finish() {
#ifdef HOLDFAST_HAVE_CUDA
    if (uploader_ != nullptr) return uploader_->Finish();
#endif
    return OkStatus();
  }

 private:
#ifdef HOLDFAST_HAVE_CUDA
  Result<std::optional<Digest>> ToGpu(Arrival* arrival, const SourceModel::Place& place, size_t number) {
    const at::Tensor& target = arrival->job.target;
    const TensorPlan& t = *arrival->job.tensor;
    HOLDFAST_CHECK(target.scalar_type() == at::kBFloat16 && target.is_contiguous());
    if (uploader_ == nullptr) {
      const int device = std::max<int>(0, target.device().index());
      HOLDFAST_ASSIGN(uploader_, options_.session->uploaders.Borrow([device] { return device::Uploader::New(device); }));
    }
    const uint64_t at = number * kDigestPieceBytes, bytes = std::min(kDigestPieceBytes, place.tensor->bytes - at);
    HOLDFAST_ASSIGN(const Piece piece, LoadPiece(place, t, at, bytes, target, *uploader_));
    arrival->pieces[number] = piece.digest;
    if (!piece.finite) arrival->finite = false;
    if (--arrival->left > 0) return std::optional<Digest>();
    const Digest digest = TensorDigestOf(arrival->pieces);
    HOLDFAST_TRY(CheckExpected(options_, t, place.file->path(), digest));
    if (!arrival->finite) return NonFinite(place, t);
    return std::optional(digest);
  }
  LendingPool<device::Uploader>::Loan uploader_;
#endif

  const SourceModel& source_;
  const RunnerOptions& options_;
};

// Runs all jobs on `threads` threads. Of several errors the one of the earliest tensor is reported.
Status RunJobs(const SourceModel& source, const RunnerOptions& options, const std::vector<Job>& jobs, std::vector<LoadedDigest>* digests) {
  std::deque<Arrival> arrivals;
  std::vector<std::pair<Arrival*, size_t>> tasks;
  for (const Job& job : jobs) {
    Arrival& arrival = arrivals.emplace_back(job);
    for (size_t piece = 0; piece < arrival.pieces.size(); ++piece) tasks.emplace_back(&arrival, piece);
  }
  std::atomic<size_t> next{0};
  std::mutex mutex;
  size_t first_failure = tasks.size();
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
    size_t last = tasks.size();
    for (size_t i = next++; i < tasks.size(); i = next++) {
      const Job& job = tasks[i].first->job;
      try {
        last = i;
        if (options.stop != nullptr && options.stop->load()) return fail(i, Stopped("stopped while loading tensor " + job.tensor->name));
        Result<std::optional<Digest>> digest = loader.Load(tasks[i].first, tasks[i].second);
        if (!digest.ok()) return fail(i, digest.error());
        if (*digest) (*digests)[job.unit].tensors[job.index] = {job.tensor->name, **digest};
      } catch (const std::exception& e) {
        return fail(i, DeviceError("loading tensor " + job.tensor->name, e.what()));
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
                                 at::Device device, MatmulDtype matmul, WeightLayout layout, std::vector<LoadedDigest>* digests) {
  RangeWeights weights;
  std::vector<LoadedDigest> read;
  Builder builder(spec, plan, device, matmul);
  for (uint32_t layer = options.first_layer; layer < options.last_layer; ++layer) {
    read.push_back(EmptyDigests(plan.units.at(layer)));
    if (layout == WeightLayout::kFused) weights.layers.push_back(builder.Layer(layer));
    else weights.separate.push_back(builder.Separate(layer));
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
