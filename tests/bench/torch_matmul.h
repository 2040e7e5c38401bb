// SPDX-License-Identifier: Apache-2.0
//
// Plain torch matmuls of given shapes, timed: what bench_forward measures itself against. Keeps torch's headers out of its main.
#pragma once

#include <cstdint>
#include <string>

namespace holdfast {

// CPU seconds of this thread for one bf16 product [m, k] x [n, k]^T by torch, averaged over `repeats`.
double TimeTorchMatmul(int64_t m, int64_t k, int64_t n, int repeats);

// Seconds by the clock of the same on a GPU ("cuda:0"), many of them queued at once.
double TimeTorchMatmulOn(const std::string& device, int64_t m, int64_t k, int64_t n, int repeats);

double ThreadCpuSeconds();

}  // namespace holdfast
