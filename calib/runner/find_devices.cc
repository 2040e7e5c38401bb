// SPDX-License-Identifier: Apache-2.0
//
// What there is to compute on: the driver's devices, and whether this build's libtorch can use them.
#include <ATen/Context.h>
#include <dlfcn.h>

#include <algorithm>

#include "calib/runner/cuda_names.h"
#ifdef HOLDFAST_HAVE_CUDA
#include "calib/runner/device_kernels.h"
#endif
#include "calib/runner/runner.h"

namespace holdfast {
namespace {

bool TorchSeesCuda() {
  try {
    return at::hasCUDA();
  } catch (const std::exception&) {   // a driver that is too old
    return false;
  }
}

// The CUDA that libtorch needs, and our kernels where they came from a newer one. 0: a libtorch without CUDA.
int NeededRuntime() {
  using Version = int (*)(int*);
  int needed = 0;
  if (const auto of_torch = reinterpret_cast<Version>(dlsym(RTLD_DEFAULT, "cudaRuntimeGetVersion"))) of_torch(&needed);
#ifdef HOLDFAST_HAVE_CUDA
  if (needed != 0) needed = std::max(needed, device::RuntimeVersion());
#endif
  return needed;
}

CudaStanding Standing() {
  const CudaDriver driver = FindCudaDriver();
  return {.library = driver.library, .init = driver.init, .driver = driver.version, .runtime = NeededRuntime(), .count = driver.count, .torch = TorchSeesCuda()};
}

bool Names(const std::string& list, const std::string& name) {
  return ("," + list + ",").find("," + name + ",") != std::string::npos || list == "cuda:all";
}

}  // namespace

DeviceProbe FindDevices(const std::string& ask) {
  DeviceProbe probe;
  probe.cuda = Standing();
  size_t index = 0;
  for (const CudaName& gpu : CudaNames()) {
    const std::string name = "cuda:" + std::to_string(index);
    CudaDevice d{.label = gpu.name, .numerics = NumericsClass(name), .total_bytes = gpu.memory_bytes, .integrated = gpu.integrated};
    if (Names(ask, name)) {
      const CudaMemory memory = AskCudaMemory(index);
      d.asked = true;
      d.error = memory.error;
      d.free_bytes = memory.free_bytes;
    }
    probe.devices.push_back(std::move(d));
    ++index;
  }
  return probe;
}

Status CheckDevice(const std::string& device) {
  if (!device.starts_with("cuda")) return OkStatus();
  const CudaStanding cuda = Standing();
  if (const std::string why = WhyNoCuda(cuda); !why.empty()) return Internal("device " + device + " cannot be used: " + why);
  if (CudaIndex(device) < cuda.count) return OkStatus();
  return Internal("device " + device + " is gone: there are " + CudaDevicesText(FindDevices("")) + " now; see `nvidia-smi` and the kernel's messages (Xid)");
}

}  // namespace holdfast
