// SPDX-License-Identifier: Apache-2.0
//
// The CUDA driver and its devices. Asked from libcuda by name at run time: the runner includes no CUDA header, so that one source
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
  bool integrated = false;    // its memory is the machine's
};
std::vector<CudaName> CudaNames();   // in the order of cuda:0, cuda:1, ...; empty without a driver

struct CudaDriver {
  bool library = false;       // libcuda.so.1 is there
  int init = 0, version = 0;  // what it said to cuInit, or when asked for its devices; the CUDA that it serves (12040)
  uint32_t count = 0;
};
CudaDriver FindCudaDriver();

struct CudaMemory {
  int error = 0;              // the driver's, when no context could be made there
  uint64_t free_bytes = 0, total_bytes = 0;
};
// What is free on a device beside everybody's use and the context that a worker needs there, as of now. Makes that context, and drops it.
CudaMemory AskCudaMemory(size_t index);

}  // namespace holdfast
