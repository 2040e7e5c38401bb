// SPDX-License-Identifier: Apache-2.0
//
// Plain torch matmuls of given shapes, and copies, timed: what bench_forward measures itself against and what bench_limits prints. Keeps torch's
// headers out of their mains.
#pragma once

#include <cstdint>
#include <string>

namespace holdfast {

// CPU seconds of this thread for one bf16 product [m, k] x [n, k]^T by torch, averaged over `repeats`.
double TimeTorchMatmul(int64_t m, int64_t k, int64_t n, int repeats);

// Seconds by the clock of the same on a GPU ("cuda:0"), many of them queued at once.
double TimeTorchMatmulOn(const std::string& device, int64_t m, int64_t k, int64_t n, int repeats);

// Seconds by the clock of one copy of so many random bytes within the memory of a GPU, and from pinned memory of the host to it.
double TimeDeviceCopy(const std::string& device, int64_t bytes, int repeats);
double TimeHostToDevice(const std::string& device, int64_t bytes, int repeats);

double ThreadCpuSeconds();

}  // namespace holdfast
