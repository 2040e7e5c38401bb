// SPDX-License-Identifier: Apache-2.0
//
// The forward pass of a contiguous layer range in libtorch, with the input amax of every site as a by-product. The only box that
// includes torch; torch exceptions end here (out of memory -> kResourceExhausted).
//
// A sample's result is a function of weights, tokens and numerics class alone: one sample per call, kernels single-threaded
// (at::set_num_threads(1) in each calling thread), no dependence on other samples. Forward may be called from several threads at once.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "calib/model/decoder.h"
#include "calib/model/device_probe.h"
#include "calib/model/numerics.h"
#include "export/shard/evict.h"

namespace holdfast {

// What the runners of one worker share on its device; see device_session.h.
class DeviceSession;
std::shared_ptr<DeviceSession> MakeDeviceSession();
// What a pass yielded, for several readers; with the last of them its memory goes back to the session, for what the next pass yields.
std::shared_ptr<const Bytes> ShareHidden(const std::shared_ptr<DeviceSession>& session, Bytes hidden);
// Gives back what no reader holds.
void DropSharedMemory(DeviceSession& session);

struct RunnerOptions {
  uint32_t first_layer = 0, last_layer = 0;
  uint32_t load_threads = 1;
  std::string device = "cpu";                       // "cpu" (also "cpu:1": one of several that share it), "cuda", "cuda:1"
  // Digest that a source tensor must have, if known; a difference is kInvalidArgument "source changed", naming file and tensor.
  std::function<std::optional<Digest>(const std::string& tensor)> expected;
  const std::atomic<bool>* stop = nullptr;          // kStopped between tensors when it turns true
  std::shared_ptr<DeviceSession> session = nullptr; // null: one of its own
};

struct LoadedDigest { uint32_t unit; std::vector<std::pair<std::string, Digest>> tensors; };

struct ForwardResult {
  std::vector<float> amax;                          // one per site of the range, in plan order; NaN if any input was NaN
  Bytes hidden;                                     // [tokens, hidden] bf16, little-endian; empty when not wanted
};

class LayerRangeRunner {
 public:
  // Loads the weights of the range (and the embedding, if it begins at layer 0) tensor by tensor by pread. `digests` receives what was read.
  static Result<std::unique_ptr<LayerRangeRunner>> Load(const SourceModel& source, const DecoderSpec& spec, const Plan& plan,
                                                        const RunnerOptions& options, std::vector<LoadedDigest>* digests);
  virtual ~LayerRangeRunner() = default;
  enum class Output : uint8_t { kHidden, kNone };
  // Layer 0: token ids (each < vocab, CHECKed by the caller's validation of the calibration set).
  virtual Result<ForwardResult> ForwardTokens(const std::vector<int32_t>& ids, Output output) = 0;
  // Later ranges: the cut that enters, [tokens, hidden] bf16.
  virtual Result<ForwardResult> ForwardHidden(ByteSpan hidden, uint64_t tokens, Output output) = 0;
  // The weights as eviction may take them; lives as long as this. Null: it must read them from the source.
  virtual ResidentWeights* Resident() { return nullptr; }
};

// Devices that libtorch sees: "cpu", "cuda:0 NVIDIA H200 ..."; numerics class per device name. Loads torch.
std::vector<std::string> TorchDevices();
std::string NumericsClass(const std::string& device);
// MFLOP/s of a matmul as the forward pass does them, on one thread of a CPU or on a GPU; takes a fraction of a second. 0: no such device.
uint64_t MeasureSpeed(const std::string& device);
size_t CudaIndex(const std::string& device);   // of "cuda", "cuda:1"
// Every CUDA device, and why there is none. `ask`: names ("cuda:0,cuda:1"), or "cuda:all", of those whose free memory is wanted; that takes a moment each.
DeviceProbe FindDevices(const std::string& ask);
// kInternal: it cannot be used as of now, or is gone. To be asked by a process that was told to use it.
Status CheckDevice(const std::string& device);

}  // namespace holdfast
