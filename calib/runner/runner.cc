// SPDX-License-Identifier: Apache-2.0
#include "calib/runner/runner.h"

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>
#include <dlfcn.h>
#include <torch/version.h>

#include <algorithm>

#include "calib/runner/cuda_names.h"
#include "calib/runner/device_session.h"
#include "calib/runner/forward.h"
#ifdef HOLDFAST_HAVE_CUDA
#include "calib/runner/gpu_resident.h"
#endif
#include "ledger/base/clock.h"

namespace holdfast {
namespace {

// The one place where exceptions of torch end.
template <class F>
auto Guarded(const std::string& doing, F f) -> decltype(f()) {
  try {
    return f();
  } catch (const std::bad_alloc&) {
    return Error{ErrorCode::kResourceExhausted, doing + ": out of memory"};
  } catch (const std::exception& e) {
    return DeviceError(doing, e.what());
  }
}

// One thread per sample: torch, oneDNN (both through OpenMP, which counts per calling thread) and BLAS must not start their own.
void ComputeSingleThreaded() {
  thread_local bool done = false;
  if (done) return;
  done = true;
  at::set_num_threads(1);
  // A BLAS with a pool of its own does not listen to torch; asked for by name, since torch may be linked to another.
  for (const char* name : {"openblas_set_num_threads", "MKL_Set_Num_Threads", "bli_thread_set_num_threads"}) {
    if (void* symbol = dlsym(RTLD_DEFAULT, name)) reinterpret_cast<void (*)(int)>(symbol)(1);
  }
}

// The bits of a GPU matmul depend on these.
void PinNumerics() {
  at::globalContext().setAllowTF32CuBLAS(false);
#if TORCH_VERSION_MAJOR < 2
  at::globalContext().setAllowFP16ReductionCuBLAS(false);
#else
  at::globalContext().setAllowBF16ReductionCuBLAS(false);
#endif
#if TORCH_VERSION_MAJOR > 2 || (TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR >= 5)
  at::globalContext().setSDPUseCuDNN(false);   // libtorch itself does not count cuDNN's attention among deterministic algorithms; flash attention's forward is one
#endif
}

bool IsCpu(const std::string& device) {   // "cpu", "cpu:1"
  return device == "cpu" || (device.starts_with("cpu:") && device.find_first_not_of("0123456789", 4) == std::string::npos);
}

enum class Path : uint8_t { kCpu, kGpu, kOps };   // CpuForward, ...

struct Target {
  at::Device device = at::kCPU;
  Path path = Path::kCpu;
  MatmulDtype matmul = MatmulDtype::kBf16;
};

// "cpu:ops" is the CPU by the path of other devices, for tests.
Result<Target> ParseDevice(const std::string& name) {
  Target t;
  t.matmul = CpuMatmulDtype();
  if (IsCpu(name)) return t;
  t.path = Path::kOps;
  if (name == "cpu:ops") return t;
  t.matmul = MatmulDtype::kBf16;
  if (!name.starts_with("cuda")) return InvalidArgument("device \"" + name + "\" is not known; devices are cpu, cuda, cuda:N");
  HOLDFAST_TRY(CheckDevice(name));
  t.device = at::Device(name);
#ifdef HOLDFAST_HAVE_CUDA
  t.path = Path::kGpu;
#endif
  return t;
}

Path PathFor(const Target& target, const DecoderSpec& spec) {
  if (!IsPlain(spec)) return Path::kOps;
#ifdef HOLDFAST_HAVE_CUDA
  if (target.path == Path::kGpu && !GpuForwardFits(spec)) return Path::kOps;
#endif
  return target.path;
}

class Runner final : public LayerRangeRunner {
 public:
  Runner(Range range, Path path) : range_(std::move(range)), path_(path) {
#ifdef HOLDFAST_HAVE_CUDA
    if (!range_.weights.source_values.empty()) resident_ = HeldOnGpu(range_.weights, std::max<int>(0, range_.device.index()), range_.session);
#endif
  }

  Result<ForwardResult> ForwardTokens(const std::vector<int32_t>& ids, Output output) override {
    HOLDFAST_CHECK(range_.first_layer == 0);
    if (ids.empty()) return InvalidArgument("a sample without tokens");
    return Forward({.ids = &ids, .hidden = {}, .tokens = ids.size(), .want_hidden = output == Output::kHidden});
  }
  Result<ForwardResult> ForwardHidden(ByteSpan hidden, uint64_t tokens, Output output) override {
    if (tokens == 0 || hidden.size() / 2 / range_.spec.hidden != tokens || hidden.size() % (2 * range_.spec.hidden) != 0) {
      return Error{ErrorCode::kCorrupt, "a cut of " + std::to_string(hidden.size()) + " bytes is not " + std::to_string(tokens) + " x " +
                                            std::to_string(range_.spec.hidden) + " bf16 values"};
    }
    return Forward({.ids = nullptr, .hidden = hidden, .tokens = tokens, .want_hidden = output == Output::kHidden});
  }
  ResidentWeights* Resident() override { return resident_.get(); }

 private:
  Result<ForwardResult> Forward(const ForwardInput& input) {
    const std::string doing = "forward of layers " + std::to_string(range_.first_layer) + " to " + std::to_string(range_.last_layer - 1) +
                              ", " + std::to_string(input.tokens) + " tokens";
    return Guarded(doing, [&]() -> Result<ForwardResult> {
      const c10::InferenceMode guard;
      ComputeSingleThreaded();
#ifdef HOLDFAST_HAVE_CUDA
      if (path_ == Path::kGpu) return GpuForward(range_, input);
#endif
      return path_ == Path::kCpu ? CpuForward(range_, input) : OpsForward(range_, input);
    });
  }

  const Range range_;
  const Path path_;
  std::unique_ptr<ResidentWeights> resident_;
};

Result<std::unique_ptr<LayerRangeRunner>> LoadRange(const SourceModel& source, const DecoderSpec& spec, const Plan& plan, RunnerOptions options,
                                                    const Target& target,
                                                    std::vector<LoadedDigest>* digests) {
  const c10::InferenceMode guard;
  ComputeSingleThreaded();
  PinNumerics();
  if (options.session == nullptr) options.session = MakeDeviceSession();
  Range range;
  range.session = options.session;
  range.spec = spec;
  range.first_layer = options.first_layer;
  range.last_layer = options.last_layer;
  range.device = target.device;
  range.matmul = target.matmul;
  const Path path = PathFor(target, spec);
  const WeightLayout layout = path == Path::kOps ? WeightLayout::kSeparate : WeightLayout::kFused;
  HOLDFAST_ASSIGN(range.weights, LoadWeights(source, spec, plan, options, target.device, target.matmul, layout, digests));
  range.slots = FindSlots(spec, plan, options.first_layer, options.last_layer);
  range.sites = plan.SitesOf(options.first_layer, options.last_layer).size();
  return std::unique_ptr<LayerRangeRunner>(new Runner(std::move(range), path));
}

}  // namespace

Result<std::unique_ptr<LayerRangeRunner>> LayerRangeRunner::Load(const SourceModel& source, const DecoderSpec& spec, const Plan& plan,
                                                                 const RunnerOptions& options, std::vector<LoadedDigest>* digests) {
  if (options.first_layer >= options.last_layer || options.last_layer > spec.layers) {
    return InvalidArgument("no layers " + std::to_string(options.first_layer) + " to " + std::to_string(options.last_layer) +
                           " in a model of " + std::to_string(spec.layers));
  }
  HOLDFAST_TRY(CheckMatmulOverride());
  const std::string doing = "loading layers " + std::to_string(options.first_layer) + " to " + std::to_string(options.last_layer - 1);
  return Guarded(doing, [&]() -> Result<std::unique_ptr<LayerRangeRunner>> {
    HOLDFAST_ASSIGN(const Target target, ParseDevice(options.device));
    return LoadRange(source, spec, plan, options, target, digests);
  });
}

std::shared_ptr<DeviceSession> MakeDeviceSession() { return std::make_shared<DeviceSession>(); }

std::shared_ptr<const Bytes> ShareHidden(const std::shared_ptr<DeviceSession>& session, Bytes hidden) {
  return {new Bytes(std::move(hidden)), [session](Bytes* back) {
            session->hidden.Give(std::move(*back));
            delete back;
          }};
}
void DropSharedMemory(DeviceSession& session) { session.hidden.Drop(); }

std::vector<std::string> TorchDevices() {
  std::vector<std::string> names = {"cpu"};
  if (!at::hasCUDA()) return names;
  int index = 0;
  for (const CudaName& gpu : CudaNames()) names.push_back("cuda:" + std::to_string(index++) + " " + gpu.name);
  return names;
}

uint64_t MeasureSpeed(const std::string& device) {
  constexpr int64_t kRows = 512, kSide = 1024;
  constexpr uint64_t kBudgetNs = 200'000'000;
  const RealClock clock;
  const auto measured = Guarded("measuring " + device, [&]() -> Result<uint64_t> {
    HOLDFAST_ASSIGN(const Target target, ParseDevice(device));
    at::set_num_threads(1);
    const auto options = at::TensorOptions().device(target.device).dtype(target.matmul == MatmulDtype::kF32 ? at::kFloat : at::kBFloat16);
    const at::Tensor x = at::ones({kRows, kSide}, options), w = at::ones({kSide, kSide}, options);
    const auto multiply = [&] { return at::matmul(x, w).select(0, 0).select(0, 0).item<float>(); };   // item() waits for a GPU
    multiply();
    uint64_t best = UINT64_MAX;
    for (const uint64_t begin = clock.MonotonicNs(); clock.MonotonicNs() - begin < kBudgetNs;) {
      const uint64_t start = clock.MonotonicNs();
      multiply();
      best = std::min(best, std::max<uint64_t>(1, clock.MonotonicNs() - start));
    }
    return static_cast<uint64_t>(2e3 * kRows * kSide * kSide / static_cast<double>(best));
  });
  return measured.ok() ? *measured : 0;
}

size_t CudaIndex(const std::string& device) {
  const size_t colon = device.find(':');
  return colon == std::string::npos ? 0 : static_cast<size_t>(std::atoi(device.c_str() + colon + 1));
}

std::string NumericsClass(const std::string& device) {
  if (IsCpu(device)) return CpuNumericsClass();
  if (device == "cpu:ops") return CpuNumericsClass() + "/ops";
  const std::vector<CudaName> gpus = CudaNames();
  const size_t index = CudaIndex(device);
  const std::string chip = index < gpus.size() ? gpus[index].name + "/" + gpus[index].architecture : "unknown";
#ifdef HOLDFAST_HAVE_CUDA
  const char* path = "/fused";   // GpuForward, wherever the model's shapes let it
#else
  const char* path = "";
#endif
  return "cuda/bf16/" + chip + path + "/libtorch-" TORCH_VERSION;
}

}  // namespace holdfast
