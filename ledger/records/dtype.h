// SPDX-License-Identifier: Apache-2.0
//
// Element types of tensors, spelt as in safetensors headers.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace holdfast {

enum class DType : uint8_t { kBool, kU8, kI8, kF8E4M3, kF8E5M2, kI16, kU16, kF16, kBF16, kI32, kU32, kF32, kI64, kU64, kF64 };

uint32_t DTypeBytes(DType t);                                // size of one element
const char* DTypeName(DType t);                              // "BF16"
std::optional<DType> DTypeFromName(std::string_view name);   // nullopt: a type that we do not know

}  // namespace holdfast
