// SPDX-License-Identifier: Apache-2.0
//
// The numerics class of a run: everything besides weights and tokens that decides the bits of a sample record.
#pragma once

#include <string>

#include "ledger/base/result.h"

namespace holdfast {

enum class MatmulDtype : uint8_t { kBf16, kF32 };

// CPU: bf16 where the CPU multiplies bf16 natively (avx512_bf16, amx_bf16), else f32 matmuls with bf16 rounding of results.
MatmulDtype CpuMatmulDtype();
// e.g. "cpu/bf16/avx512_bf16/libtorch-1.13.1": device class, matmul dtype, instruction set, library. HOLDFAST_MATMUL=f32|bf16 overrides
// (a different class then).
std::string CpuNumericsClass();

}  // namespace holdfast
