// SPDX-License-Identifier: Apache-2.0
#include "ledger/records/dtype.h"

#include <iterator>

namespace holdfast {
namespace {

struct Row {
  DType type;
  const char* name;
  uint32_t bytes;
};
constexpr Row kRows[] = {
    {DType::kBool, "BOOL", 1},       {DType::kU8, "U8", 1},   {DType::kI8, "I8", 1},   {DType::kF8E4M3, "F8_E4M3", 1},
    {DType::kF8E5M2, "F8_E5M2", 1},  {DType::kI16, "I16", 2}, {DType::kU16, "U16", 2}, {DType::kF16, "F16", 2},
    {DType::kBF16, "BF16", 2},       {DType::kI32, "I32", 4}, {DType::kU32, "U32", 4}, {DType::kF32, "F32", 4},
    {DType::kI64, "I64", 8},         {DType::kU64, "U64", 8}, {DType::kF64, "F64", 8},
};

}  // namespace

uint32_t DTypeBytes(DType t) { return kRows[static_cast<size_t>(t)].bytes; }
const char* DTypeName(DType t) { return kRows[static_cast<size_t>(t)].name; }
std::optional<DType> DTypeFromName(std::string_view name) {
  for (const Row& row : kRows) {
    if (name == row.name) return row.type;
  }
  return std::nullopt;
}

static_assert([] {
  for (size_t i = 0; i < std::size(kRows); ++i) {
    if (static_cast<size_t>(kRows[i].type) != i) return false;
  }
  return true;
}());

}  // namespace holdfast
