// SPDX-License-Identifier: Apache-2.0
#include "daemon/node/device.h"

#include <unistd.h>

#include <algorithm>
#include <future>
#include <map>
#include <thread>

#include "calib/tokens/helper_process.h"
#include "ledger/base/file_system.h"
#include "ledger/base/json.h"
#include "ledger/base/units.h"

namespace holdfast {
namespace {

constexpr char kAll[] = "cuda:all", kAuto[] = "auto", kCpu[] = "cpu";

Result<Json> AskWorker(const std::string& question, const std::string& device) {
  const std::string worker = JoinPath(BinaryDir(), "holdfast-worker");
  HOLDFAST_ASSIGN(const ProcessOutput answer, RunProcess({worker, question, device}, "", 1 << 20));
  if (answer.exit_code != 0) return Internal(worker + " " + question + " " + device + " failed: is the build complete? " + answer.err);
  return ParseJson(answer.out, "worker probe", 1 << 20);
}

std::string Joined(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& n : names) text += (text.empty() ? "" : ",") + n;
  return text;
}

Device Cpu(const std::string& name) { return {.name = name, .numerics = CpuNumericsClass(), .matmul = CpuMatmulDtype()}; }

// "cuda:7" and nothing like "cuda:07".
bool IsCuda(const std::string& name) {
  const std::string digits = name.starts_with("cuda:") ? name.substr(5) : "";
  return !digits.empty() && digits.size() <= 3 && digits.find_first_not_of("0123456789") == std::string::npos && (digits[0] != '0' || digits.size() == 1);
}

Result<Device> PickCuda(size_t index, const DeviceProbe& probe) {
  const std::string name = "cuda:" + std::to_string(index), option = "--device " + name + ": ";
  if (const std::string why = WhyNoCuda(probe.cuda); !why.empty()) return InvalidArgument(option + why + ". --device cpu computes without");
  if (index >= probe.devices.size()) return InvalidArgument(option + "there is no such device; there are " + CudaDevicesText(probe));
  const CudaDevice& d = probe.devices[index];
  const std::string who = option + d.label + " cannot be used: ";
  if (d.error == 2) return InvalidArgument(who + "its memory of " + FormatSize(d.total_bytes) + " is used up by others (see `nvidia-smi`)");
  if (d.error != 0) return InvalidArgument(who + CudaErrorText(d.error) + "; see `nvidia-smi`, or leave it out");
  Device out{.name = name, .numerics = d.numerics, .matmul = MatmulDtype::kBf16, .memory_bytes = 0, .total_bytes = 0, .label = d.label};
  if (d.integrated) return out;
  out.total_bytes = d.total_bytes;
  out.memory_bytes = std::max<uint64_t>(1, d.asked ? std::min(d.free_bytes, d.total_bytes) : d.total_bytes);
  return out;
}

Device PickAuto(const DeviceProbe& probe) {
  auto gpu = PickCuda(0, probe);
  if (gpu.ok()) return std::move(*gpu);
  Device cpu = Cpu(kCpu);
  const bool meant = probe.cuda.library && probe.cuda.runtime != 0;   // a CPU build does not wonder
  if (meant) cpu.note = "the CPU computes, not the GPU: " + gpu.error().message.substr(0, gpu.error().message.rfind(". --device cpu"));
  return cpu;
}

}  // namespace

std::string BinaryDir() {
  char self[4096];
  const ssize_t n = ::readlink("/proc/self/exe", self, sizeof self - 1);
  return n > 0 ? DirName(std::string(self, static_cast<size_t>(n))) : ".";
}

Result<std::vector<std::string>> ParseDevices(const std::string& wanted) {
  const auto wrong = [&](const std::string& why) { return InvalidArgument("--device " + wanted + ": " + why); };
  std::vector<std::string> names;
  for (size_t at = 0; at <= wanted.size();) {
    const size_t comma = std::min(wanted.find(',', at), wanted.size());
    std::string name = wanted.substr(at, comma - at);
    if (name == "cuda") name = "cuda:0";
    if (name != kAuto && name != kCpu && name != kAll && !IsCuda(name)) return wrong("say auto, cpu, cuda, cuda:N or cuda:all, several with commas between them");
    names.push_back(name);
    at = comma + 1;
  }
  if (names.size() > kDevicesMax) return wrong("at most " + std::to_string(kDevicesMax) + " devices");
  const auto count = [&](const std::string& name) { return std::count(names.begin(), names.end(), name); };
  if (count(kAuto) > 0 && names.size() > 1) return wrong("auto stands alone");
  if (count(kAll) > 0 && names.size() - static_cast<size_t>(count(kCpu)) > 1) return wrong("cuda:all is every GPU that is there, also those that are named beside it");
  for (const std::string& name : names) {
    if (name != kCpu && count(name) > 1) return wrong(name + " is named twice; one device works on one stage at a time faster than on two");
  }
  if (count(kCpu) > 1) {
    size_t number = 0;
    for (std::string& name : names) {
      if (name == kCpu) name += ":" + std::to_string(number++);
    }
  }
  return names;
}

Result<std::vector<Device>> PickDevices(const std::vector<std::string>& names, const DeviceProbe& probe) {
  std::vector<Device> devices;
  for (const std::string& name : names) {
    if (name == kAuto) {
      devices.push_back(PickAuto(probe));
    } else if (name.starts_with(kCpu)) {
      devices.push_back(Cpu(name));
    } else if (name != kAll) {
      HOLDFAST_ASSIGN(Device gpu, PickCuda(std::stoul(name.substr(5)), probe));
      devices.push_back(std::move(gpu));
    } else {
      for (size_t i = 0; i < std::max<size_t>(1, probe.devices.size()); ++i) {
        HOLDFAST_ASSIGN(Device gpu, PickCuda(i, probe));
        devices.push_back(std::move(gpu));
      }
    }
  }
  return devices;
}

Result<std::vector<Device>> ChooseDevices(const std::string& wanted) {
  HOLDFAST_ASSIGN(const std::vector<std::string> names, ParseDevices(wanted));
  const bool driver = ::access("/dev/nvidiactl", F_OK) == 0;
  const auto needs_probe = [&](const std::string& name) { return name == kAuto ? driver : !name.starts_with(kCpu); };
  DeviceProbe probe;
  if (std::any_of(names.begin(), names.end(), needs_probe)) {
    HOLDFAST_ASSIGN(const Json answer, AskWorker("--probe", names.size() > 1 && std::count(names.begin(), names.end(), kAll) > 0 ? kAll : names[0] == kAuto ? "cuda:0" : Joined(names)));
    HOLDFAST_ASSIGN(probe, DeviceProbe::FromJson(answer));
  }
  return PickDevices(names, probe);
}

Result<Device> ChooseDevice(const std::string& wanted) {
  HOLDFAST_ASSIGN(std::vector<Device> devices, ChooseDevices(wanted));
  if (devices.size() > 1) return InvalidArgument("--device " + wanted + ": one device is meant here");
  return std::move(devices.front());
}

std::string NamesOf(const std::vector<Device>& devices) {
  std::vector<std::string> names;
  for (const Device& d : devices) names.push_back(d.name);
  return Joined(names);
}

std::vector<uint64_t> ShareMemory(const std::vector<Device>& devices, std::optional<uint64_t> said, uint64_t available) {
  const auto in_machine = static_cast<uint64_t>(std::count_if(devices.begin(), devices.end(), [](const Device& d) { return d.memory_bytes == 0; }));
  std::vector<uint64_t> shares;
  for (const Device& d : devices) {
    const bool own = d.memory_bytes > 0;
    const uint64_t most = said.value_or((own ? d.memory_bytes : available) / 100 * kMemoryShare);
    shares.push_back(own ? most : most / in_machine);
  }
  return shares;
}

std::vector<uint64_t> SpeedsOf(const std::vector<Device>& devices, const std::vector<uint64_t>& measured, uint32_t threads, uint32_t cores) {
  const auto cpus = static_cast<uint64_t>(std::count_if(devices.begin(), devices.end(), [](const Device& d) { return d.is_cpu(); }));
  std::vector<uint64_t> speeds;
  for (size_t i = 0; i < devices.size(); ++i) {
    speeds.push_back(devices[i].is_cpu() ? std::max<uint64_t>(1, measured[i] * std::min<uint64_t>(threads * cpus, cores) / cpus) : measured[i]);
  }
  return speeds;
}

Result<std::vector<uint64_t>> MeasureSpeeds(const std::vector<Device>& devices, uint32_t threads) {
  std::map<std::string, std::future<Result<Json>>> asked;   // several that are the CPU are measured once
  std::map<std::string, uint64_t> speeds;
  const auto what = [](const Device& d) { return d.is_cpu() ? std::string(kCpu) : d.name; };
  for (const Device& d : devices) {
    if (!asked.contains(what(d))) asked.emplace(what(d), std::async(std::launch::async, [name = what(d)] { return AskWorker("--measure", name); }));
  }
  Status status = OkStatus();
  for (auto& [name, answer] : asked) {
    const Result<Json> got = answer.get();
    const auto speed = got.ok() ? GetUint(*got, "speed", "worker probe") : Result<uint64_t>(got.error());
    if (speed.ok()) speeds[name] = std::max<uint64_t>(1, *speed);
    else if (status.ok()) status = speed.error();
  }
  HOLDFAST_TRY(status);
  std::vector<uint64_t> measured;
  for (const Device& d : devices) measured.push_back(speeds.at(what(d)));
  return SpeedsOf(devices, measured, threads, std::max(1u, std::thread::hardware_concurrency()));
}

}  // namespace holdfast
