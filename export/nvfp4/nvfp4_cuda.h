// SPDX-License-Identifier: Apache-2.0
//
// NVFP4 on the GPU: the contract of nvfp4.h on device pointers, bit for bit. Exists only in builds with HOLDFAST_HAVE_CUDA.
// Plain C++: no CUDA and no torch headers. `stream` is a cudaStream_t (null: the default stream).
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "ledger/base/result.h"
#include "ledger/records/dtype.h"

namespace holdfast {

// As WeightAmax, for `elements` values at `weight` (device). Waits for the stream. Errors: kInvalidArgument when a value is not
// finite (names `name`; which element: WeightAmax on the host tells) or the dtype is wrong; kResourceExhausted, kInternal from CUDA.
Result<float> WeightAmaxCuda(DType dtype, const void* weight, uint64_t elements,
                             const std::string& name, void* stream);

// As QuantizeNvfp4 with every pointer on the device; 16-byte aligned `weight`, 8-byte aligned `packed`. Asynchronous in `stream`:
// launch errors are returned, later ones appear at the next synchronization.
Status QuantizeNvfp4Cuda(DType dtype, const void* weight, uint64_t rows, uint64_t cols,
                         float weight_scale_2, uint8_t* packed, uint8_t* weight_scale,
                         void* stream);

// Quantizes weights that lie on a device into host memory: rows piece by piece, the kernel of one piece beside the copy of the last,
// through pinned memory of its own (40 MiB). For one thread.
class CudaQuantizer {
 public:
  static Result<std::unique_ptr<CudaQuantizer>> New(int device);
  virtual ~CudaQuantizer() = default;
  virtual Result<float> Amax(DType dtype, const void* weight, uint64_t elements, const std::string& name) = 0;
  // As QuantizeNvfp4, `weight` on the device and 16-byte aligned. The result is there when it returns.
  virtual Status Quantize(DType dtype, const void* weight, uint64_t rows, uint64_t cols, float weight_scale_2, std::span<uint8_t> packed,
                          std::span<uint8_t> weight_scale) = 0;
};

}  // namespace holdfast
