// SPDX-License-Identifier: Apache-2.0
#include "daemon/node/device.h"

#include <unistd.h>

#include <algorithm>

#include "calib/tokens/helper_process.h"
#include "ledger/base/file_system.h"
#include "ledger/base/json.h"

namespace holdfast {
namespace {

Result<Json> AskWorker(const std::string& question, const std::string& device) {
  const std::string worker = JoinPath(BinaryDir(), "holdfast-worker");
  HOLDFAST_ASSIGN(const ProcessOutput answer, RunProcess({worker, question, device}, "", 1 << 20));
  if (answer.exit_code != 0) return Internal(worker + " " + question + " " + device + " failed: is the build complete? " + answer.err);
  return ParseJson(answer.out, "worker probe", 1 << 20);
}

}  // namespace

std::string BinaryDir() {
  char self[4096];
  const ssize_t n = ::readlink("/proc/self/exe", self, sizeof self - 1);
  return n > 0 ? DirName(std::string(self, static_cast<size_t>(n))) : ".";
}

Result<Device> ChooseDevice(const std::string& wanted) {
  const bool cuda_wanted = wanted == "cuda" || wanted.starts_with("cuda:");
  if (wanted != "auto" && wanted != "cpu" && !cuda_wanted) {
    return InvalidArgument("--device " + wanted + ": say auto, cpu, cuda or cuda:N");
  }
  if (wanted.find_first_not_of("abcdefghijklmnopqrstuvwxyz:0123456789") != std::string::npos) return InvalidArgument("--device: odd characters");
  const bool driver = ::access("/dev/nvidiactl", F_OK) == 0;
  if (cuda_wanted || (wanted == "auto" && driver)) {
    const std::string name = cuda_wanted && wanted != "cuda" ? wanted : "cuda:0";
    HOLDFAST_ASSIGN(const Json probe, AskWorker("--probe", name));
    HOLDFAST_ASSIGN(const std::string numerics, GetString(probe, "numerics", "worker probe"));
    HOLDFAST_ASSIGN(const uint64_t memory, GetUint(probe, "memory_bytes", "worker probe"));
    HOLDFAST_ASSIGN(const Json* devices, GetArray(probe, "devices", "worker probe"));
    const bool seen = std::any_of(devices->begin(), devices->end(), [&](const Json& d) {
      return d.is_string() && (d.get<std::string>() == name || d.get<std::string>().starts_with(name + " "));
    });
    if (seen) return Device{name, numerics, MatmulDtype::kBf16, memory};
    if (cuda_wanted) return InvalidArgument("--device " + wanted + ": this build's libtorch sees no such device; use --device cpu, or build against a CUDA libtorch");
  }
  return Device{"cpu", CpuNumericsClass(), CpuMatmulDtype(), 0};
}

Result<DevicePower> MeasureDevice(const std::string& device) {
  HOLDFAST_ASSIGN(const Json answer, AskWorker("--measure", device));
  DevicePower power;
  HOLDFAST_ASSIGN(power.memory_bytes, GetUint(answer, "memory_bytes", "worker probe"));
  HOLDFAST_ASSIGN(power.speed, GetUint(answer, "speed", "worker probe"));
  power.speed = std::max<uint64_t>(power.speed, 1);
  return power;
}

}  // namespace holdfast
