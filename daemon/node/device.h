// SPDX-License-Identifier: Apache-2.0
//
// The devices that a node computes on: what a user may ask for, and what is there, asked from holdfast-worker (whoever includes this has no torch).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "calib/model/device_probe.h"
#include "calib/model/numerics.h"
#include "ledger/base/result.h"

namespace holdfast {

struct Device {
  std::string name;       // "cpu", "cuda:0"; of several that are the CPU "cpu:0", "cpu:1"
  std::string numerics;   // numerics class
  MatmulDtype matmul = MatmulDtype::kBf16;
  uint64_t memory_bytes = 0;   // of the device itself: what of it is free now. 0: it lives in the machine's memory, with all others that do
  uint64_t total_bytes = 0;    // of the device itself, used or not
  std::string label = {};      // "NVIDIA H200"
  std::string note = {};       // "auto" took the CPU although a driver is there: why
  bool is_cpu() const { return name.starts_with("cpu"); }
};

inline constexpr size_t kDevicesMax = 64;
inline constexpr const char* kDeviceHelp = "auto, cpu, cuda, cuda:N, cuda:all, or several as cuda:0,cuda:1 (default auto)";

// Directory of the running program; holdfast-worker and holdfast-merge lie beside it.
std::string BinaryDir();

// What --device asks for, one name each: "cuda" is "cuda:0", of several "cpu" each gets a number; "auto" and "cuda:all" stay as they are.
// kInvalidArgument: not a device, the same GPU twice, or "auto" or "cuda:all" beside others that it may be.
Result<std::vector<std::string>> ParseDevices(const std::string& wanted);
// Of what is there. kInvalidArgument: which of them is not there or cannot be used, and why.
Result<std::vector<Device>> PickDevices(const std::vector<std::string>& names, const DeviceProbe& probe);

// auto, cpu, cuda, cuda:N, cuda:all, and lists of them. auto takes cuda:0 where there is a driver and libtorch sees it.
Result<std::vector<Device>> ChooseDevices(const std::string& wanted);
Result<Device> ChooseDevice(const std::string& wanted);   // where one is meant
std::string NamesOf(const std::vector<Device>& devices);  // "cuda:0,cuda:1"

inline constexpr uint64_t kMemoryShare = 95;   // percent of memory that workers may plan with where nobody says how much

// What each may be given to plan with. `said` (--memory) is for each device with memory of its own, and for the machine; the machine's (that, or kMemoryShare
// of what is `available`) is shared in equal parts by the devices that live in it.
std::vector<uint64_t> ShareMemory(const std::vector<Device>& devices, std::optional<uint64_t> said, uint64_t available);

// What of the host's memory, `available` now, each of so many devices may be given beside memory of its own.
constexpr uint64_t HostShare(uint64_t available, size_t devices) { return available / 100 * kMemoryShare / devices; }

// The speed of each device as a whole, from that of one thread: a CPU's `threads` compute side by side, as far as there are `cores` for those of all devices
// that are the CPU.
std::vector<uint64_t> SpeedsOf(const std::vector<Device>& devices, const std::vector<uint64_t>& measured, uint32_t threads, uint32_t cores);
// The same in MFLOP/s of a bf16 matmul, on this machine. All measured at the same time, for a fraction of a second.
Result<std::vector<uint64_t>> MeasureSpeeds(const std::vector<Device>& devices, uint32_t threads);

}  // namespace holdfast
