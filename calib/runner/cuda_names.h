// SPDX-License-Identifier: Apache-2.0
//
// What the CUDA driver calls its devices. Asked from libcuda by name at run time: the runner includes no CUDA header, so that one source
// builds with and without CUDA.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace holdfast {

struct CudaName {
  std::string name;           // "NVIDIA H200"
  std::string architecture;   // "sm_90"
  uint64_t memory_bytes = 0;
};
std::vector<CudaName> CudaNames();   // in the order of cuda:0, cuda:1, ...; empty without a driver

}  // namespace holdfast
