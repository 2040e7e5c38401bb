// SPDX-License-Identifier: Apache-2.0
#include "calib/model/numerics.h"

#include <cstdlib>
#include <string_view>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#ifndef HOLDFAST_TORCH_VERSION
#define HOLDFAST_TORCH_VERSION "unknown"
#endif

namespace holdfast {
namespace {

#if defined(__x86_64__)
bool HasAmxBf16() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & (1u << 22)) != 0;
}
bool HasAvx512Bf16() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a & (1u << 5)) != 0;
}
#endif

std::string_view Override() {
  const char* value = std::getenv("HOLDFAST_MATMUL");
  return value == nullptr ? std::string_view() : std::string_view(value);
}

bool MultipliesBf16() {
  const std::string_view isa = CpuInstructionSet();
  return isa.ends_with("_bf16");
}

}  // namespace

const char* CpuInstructionSet() {
#if defined(__x86_64__)
  // The builtin also asks the operating system whether it saves the wide registers; cpuid alone would not tell.
  if (!__builtin_cpu_supports("avx2")) return "sse";
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw")) return "avx2";
  if (HasAmxBf16() && HasAvx512Bf16()) return "amx_bf16";
  return HasAvx512Bf16() ? "avx512_bf16" : "avx512";
#else
  return "neon";
#endif
}

Status CheckMatmulOverride() {
  const std::string_view value = Override();
  if (value.empty() || value == "f32" || value == "bf16") return {};
  return InvalidArgument("HOLDFAST_MATMUL=" + std::string(value) + " is neither f32 nor bf16; unset it");
}

MatmulDtype CpuMatmulDtype() {
  const std::string_view value = Override();
  if (value == "f32") return MatmulDtype::kF32;
  if (value == "bf16") return MatmulDtype::kBf16;
  return MultipliesBf16() ? MatmulDtype::kBf16 : MatmulDtype::kF32;
}

std::string CpuNumericsClass() {
  const char* dtype = CpuMatmulDtype() == MatmulDtype::kBf16 ? "bf16" : "f32";
  return std::string("cpu/") + dtype + "/" + CpuInstructionSet() + "/libtorch-" HOLDFAST_TORCH_VERSION;
}

}  // namespace holdfast
