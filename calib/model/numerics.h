// SPDX-License-Identifier: Apache-2.0
//
// The numerics class of a run: everything besides weights and tokens that decides the bits of a sample record.
#pragma once

#include <string>
#include <string_view>

#include "ledger/base/result.h"

namespace holdfast {

enum class MatmulDtype : uint8_t { kBf16, kF32 };

// CPU: bf16 where the CPU multiplies bf16 natively (avx512_bf16, amx_bf16), else f32 matmuls with bf16 rounding of results.
MatmulDtype CpuMatmulDtype();
// e.g. "cpu/bf16/avx512_bf16/libtorch-1.13.0": device class, matmul dtype, instruction set, library. HOLDFAST_MATMUL=f32|bf16 overrides
// (a different class then).
std::string CpuNumericsClass();
// Of any class, this machine's or another's: "cpu/f32/..." holds f32 weights, everything else bf16.
constexpr MatmulDtype MatmulOf(std::string_view numerics) { return numerics.find("/f32/") != std::string_view::npos ? MatmulDtype::kF32 : MatmulDtype::kBf16; }
// kInvalidArgument when HOLDFAST_MATMUL is set to something else; the two functions above then behave as if it were not set.
Status CheckMatmulOverride();

// The widest instruction set that the matmuls of this CPU use: "amx_bf16", "avx512_bf16", "avx512", "avx2", "sse", or "neon".
const char* CpuInstructionSet();

}  // namespace holdfast
