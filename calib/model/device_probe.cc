// SPDX-License-Identifier: Apache-2.0
#include "calib/model/device_probe.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <utility>

namespace holdfast {
namespace {

constexpr size_t kDevicesMax = 256;

int Small(uint64_t value) { return static_cast<int>(std::min<uint64_t>(value, 1'000'000)); }

}  // namespace

Json DeviceProbe::ToJson() const {
  Json list = Json::array();
  for (const CudaDevice& d : devices) {
    list.push_back({{"label", d.label}, {"numerics", d.numerics}, {"total_bytes", d.total_bytes}, {"free_bytes", d.free_bytes}, {"asked", d.asked},
                    {"integrated", d.integrated}, {"error", d.error}});
  }
  return {{"cuda", {{"library", cuda.library}, {"init", cuda.init}, {"driver", cuda.driver}, {"runtime", cuda.runtime}, {"count", cuda.count}, {"torch", cuda.torch}}},
          {"devices", std::move(list)}};
}

Result<DeviceProbe> DeviceProbe::FromJson(const Json& j) {
  const std::string what = "worker probe";
  DeviceProbe p;
  if (!j.contains("cuda")) return Internal(what + ": no \"cuda\" in it: jobctl and holdfast-worker are not of one build");
  const Json& c = j["cuda"];
  HOLDFAST_ASSIGN(p.cuda.library, GetBool(c, "library", what));
  HOLDFAST_ASSIGN(p.cuda.torch, GetBool(c, "torch", what));
  HOLDFAST_ASSIGN(const uint64_t init, GetUint(c, "init", what));
  HOLDFAST_ASSIGN(const uint64_t driver, GetUint(c, "driver", what));
  HOLDFAST_ASSIGN(const uint64_t runtime, GetUint(c, "runtime", what));
  HOLDFAST_ASSIGN(const uint64_t count, GetUint(c, "count", what));
  p.cuda.init = Small(init);
  p.cuda.driver = Small(driver);
  p.cuda.runtime = Small(runtime);
  p.cuda.count = static_cast<uint32_t>(Small(count));
  HOLDFAST_ASSIGN(const Json* list, GetArray(j, "devices", what));
  for (size_t i = 0; i < std::min(list->size(), kDevicesMax); ++i) {
    const Json& d = (*list)[i];
    CudaDevice& out = p.devices.emplace_back();
    HOLDFAST_ASSIGN(out.label, GetString(d, "label", what));
    HOLDFAST_ASSIGN(out.numerics, GetString(d, "numerics", what));
    HOLDFAST_ASSIGN(out.total_bytes, GetUint(d, "total_bytes", what));
    HOLDFAST_ASSIGN(out.free_bytes, GetUint(d, "free_bytes", what));
    HOLDFAST_ASSIGN(out.asked, GetBool(d, "asked", what));
    HOLDFAST_ASSIGN(out.integrated, GetBool(d, "integrated", what));
    HOLDFAST_ASSIGN(const uint64_t error, GetUint(d, "error", what));
    out.error = Small(error);
  }
  return p;
}

std::string CudaVersionText(int version) { return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10); }

std::string CudaErrorText(int error) {
  static constexpr std::array<std::pair<int, const char*>, 14> kWords = {{
      {2, "out of memory"}, {3, "the driver is shutting down"}, {35, "the driver is too old"}, {46, "the device is busy or forbidden"},
      {100, "no device"}, {101, "no such device"}, {214, "an ECC error that cannot be corrected"}, {216, "another process has the device to itself"},
      {304, "the operating system refused"}, {719, "a kernel failed"}, {802, "the machine is not ready yet (is nvidia-fabricmanager running?)"},
      {803, "driver and its libraries are not of one version (was it updated without a reboot?)"}, {804, "this device does not take newer libraries than its driver"},
      {999, "unknown error"}}};
  const auto* known = std::find_if(kWords.begin(), kWords.end(), [&](const auto& w) { return w.first == error; });
  return known == kWords.end() ? "CUDA error " + std::to_string(error) : std::string(known->second) + " (CUDA error " + std::to_string(error) + ")";
}

// Within one major version the newer needs no newer driver.
std::string WhyNoCuda(const CudaStanding& cuda) {
  if (!cuda.library) return "no NVIDIA driver is installed here (libcuda.so.1 is missing)";
  if (cuda.runtime == 0) return "the libtorch of this build has no CUDA; build against one that has (cmake --preset pip-torch)";
  const bool older = cuda.driver < cuda.runtime, major = cuda.driver / 1000 < cuda.runtime / 1000;
  if (cuda.driver > 0 && (major || (older && (cuda.init == 35 || (cuda.init == 0 && cuda.count > 0 && !cuda.torch))))) {
    return "the NVIDIA driver is too old for this build: it serves CUDA " + CudaVersionText(cuda.driver) + ", this build needs CUDA " +
           CudaVersionText(cuda.runtime) + "; update the driver, or build with CUDA " + std::to_string(cuda.driver / 1000);
  }
  if (cuda.init != 0) return "the NVIDIA driver does not start: " + CudaErrorText(cuda.init) + "; see `nvidia-smi`";
  if (cuda.count == 0) return "the NVIDIA driver shows no device (what is CUDA_VISIBLE_DEVICES?); see `nvidia-smi`";
  if (!cuda.torch) return "libtorch sees none of the devices that the driver shows; see `nvidia-smi`";
  return "";
}

std::string CudaDevicesText(const DeviceProbe& probe) {
  std::string text;
  for (size_t i = 0; i < probe.devices.size(); ++i) text += (text.empty() ? "" : ", ") + ("cuda:" + std::to_string(i)) + " " + probe.devices[i].label;
  return text.empty() ? "none" : text;
}

Error DeviceError(const std::string& doing, const std::string& what) {
  const std::string line = what.substr(0, what.find('\n'));
  std::string lower = line;
  std::transform(lower.begin(), lower.end(), lower.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  const auto says = [&](const char* words) { return lower.find(words) != std::string::npos; };
  // A cuBLAS that finds no memory for its workspace says no more than that it is not initialized.
  const bool memory = says("out of memory") || says("allocate memory") || says("bad_alloc") || says("memoryallocation") || says("alloc_failed") ||
                      (says("cublas_status_not_initialized") && says("create"));
  return {memory ? ErrorCode::kResourceExhausted : ErrorCode::kInternal, doing + ": " + line};
}

}  // namespace holdfast
