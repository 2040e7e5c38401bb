// SPDX-License-Identifier: Apache-2.0
//
// The header of a safetensors file. Input: size of the data section (u64), then the header's JSON; both ways of a file are tried, the
// one with a true header length and the input as it is.
#include "export/format/safetensors.h"

#include <utility>

#include "tests/fuzz/fuzz.h"

namespace holdfast {
namespace {

void CheckTensors(const std::vector<TensorInfo>& tensors, uint64_t data_begin, uint64_t file_size) {
  uint64_t at = data_begin;
  for (const TensorInfo& t : tensors) {
    HOLDFAST_CHECK(t.offset == at && t.bytes <= file_size - at);
    at += t.bytes;
  }
  HOLDFAST_CHECK(at == file_size);
}

// Written again, a header is read as what it was.
void CheckWriter(const std::vector<TensorInfo>& tensors) {
  const SafetensorsLayout layout = LayOutSafetensors(tensors);
  const auto again = ParseSafetensorsHeader(layout.header, layout.file_size, "again");
  HOLDFAST_CHECK(again.ok() && again->size() == tensors.size());
  std::map<std::string, TensorInfo> by_name;
  for (const TensorInfo& t : *again) by_name[t.name] = t;
  for (const TensorInfo& t : tensors) {
    const TensorInfo& back = by_name[t.name];
    HOLDFAST_CHECK(back.dtype == t.dtype && back.shape == t.shape && back.bytes == t.bytes);
  }
}

void Try(ByteSpan header, uint64_t file_size) {
  const auto tensors = ParseSafetensorsHeader(header, file_size, "f");
  if (!tensors.ok()) return fuzz::CheckRefusal(tensors);
  uint64_t length = 0;
  Cursor(header).Le(&length);
  CheckTensors(*tensors, length + 8, file_size);
  CheckWriter(*tensors);
}

}  // namespace
}  // namespace holdfast

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace holdfast;
  Try({data, size}, size);
  Cursor in({data, size});
  const auto data_bytes = fuzz::Take<uint64_t>(&in);
  Bytes header;
  PutLe<uint64_t>(&header, in.rest().size());
  header.insert(header.end(), in.rest().begin(), in.rest().end());
  uint64_t file_size = 0;
  if (!__builtin_add_overflow(data_bytes, header.size(), &file_size)) Try(header, file_size);
  return 0;
}
