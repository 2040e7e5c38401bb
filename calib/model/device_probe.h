// SPDX-License-Identifier: Apache-2.0
//
// What a machine has to compute on, as holdfast-worker finds it (calib/runner) and whoever has no torch chooses from it (daemon/node), and why
// something cannot be used, in words. Pure.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ledger/base/json.h"
#include "ledger/base/result.h"

namespace holdfast {

struct CudaStanding {
  bool library = false;            // libcuda.so.1, the driver's, is there
  int init = 0;                    // what cuInit or counting devices said; 0: all is well
  int driver = 0;                  // the newest CUDA that it serves, as CUDA counts: 12040 is 12.4
  int runtime = 0;                 // the CUDA that this build needs; 0: its libtorch has none
  uint32_t count = 0;              // devices that the driver shows
  bool torch = false;              // libtorch sees some
};

struct CudaDevice {
  std::string label, numerics;     // "NVIDIA H200"; numerics class
  uint64_t total_bytes = 0, free_bytes = 0;   // free: of everybody, when it was asked; meaningless without `asked`
  bool asked = false;              // its memory was, which takes a context on it
  bool integrated = false;         // its memory is the machine's
  int error = 0;                   // why it cannot be used: what the driver said when a context was made there
};

struct DeviceProbe {
  CudaStanding cuda;
  std::vector<CudaDevice> devices;   // cuda:0, cuda:1, ...
  Json ToJson() const;
  static Result<DeviceProbe> FromJson(const Json& j);
};

// "12.4" of 12040.
std::string CudaVersionText(int version);
// Why there is no CUDA to be had; "" when there is.
std::string WhyNoCuda(const CudaStanding& cuda);
// What the driver's error means, with its number: "out of memory (2)".
std::string CudaErrorText(int error);
// "cuda:0 NVIDIA H200, cuda:1 NVIDIA H200"
std::string CudaDevicesText(const DeviceProbe& probe);

// An error that torch or CUDA put into words, of whatever was being done. kResourceExhausted: memory of the device or of the host ran out, so that less of
// it would do. kInternal: everything else; what a device is wrong with does not get better in this process.
Error DeviceError(const std::string& doing, const std::string& what);

}  // namespace holdfast
