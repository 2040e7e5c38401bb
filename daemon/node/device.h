// SPDX-License-Identifier: Apache-2.0
//
// The device that a node computes on, asked from holdfast-worker (whoever includes this has no torch).
#pragma once

#include <cstdint>
#include <string>

#include "calib/model/numerics.h"
#include "ledger/base/result.h"

namespace holdfast {

struct Device {
  std::string name;       // "cpu", "cuda:0"
  std::string numerics;   // numerics class
  MatmulDtype matmul = MatmulDtype::kBf16;
  uint64_t memory_bytes = 0;   // of the device itself; 0: it lives in the machine's memory
};

// Directory of the running program; holdfast-worker and holdfast-merge lie beside it.
std::string BinaryDir();
// auto, cpu, cuda, cuda:N. auto takes cuda:0 where there is a driver and libtorch sees it.
Result<Device> ChooseDevice(const std::string& wanted);

inline constexpr uint64_t kMemoryShare = 95;   // percent of memory that workers may plan with where nobody says how much

struct DevicePower {
  uint64_t memory_bytes = 0;   // of the device itself; 0: it lives in the machine's memory
  uint64_t speed = 1;          // MFLOP/s of a bf16 matmul, of one thread on a CPU
};
// Measures for a fraction of a second.
Result<DevicePower> MeasureDevice(const std::string& device);

}  // namespace holdfast
