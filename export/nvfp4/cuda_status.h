// SPDX-License-Identifier: Apache-2.0
//
// CUDA's errors as values, for .cu files. Running out of memory is kResourceExhausted, everything else kInternal.
#pragma once

#include <cuda_runtime.h>

#include <string>

#include "ledger/base/result.h"

namespace holdfast {

inline Status FromCuda(cudaError_t err, const char* doing) {
  if (err == cudaSuccess) return OkStatus();
  const std::string message = std::string("CUDA: ") + doing + ": " + cudaGetErrorString(err);
  return err == cudaErrorMemoryAllocation ? Exhausted(message) : Internal(message);
}

}  // namespace holdfast
