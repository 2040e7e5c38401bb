// SPDX-License-Identifier: Apache-2.0
//
// What the fuzzers share. A fuzzer is one LLVMFuzzerTestOneInput over one decoder; what the decoder promises beyond "no crash" is said
// with HOLDFAST_CHECK, whose abort is a finding. Inputs that a checksum would stop are repaired first: damage that a checksum catches
// is the business of ordinary tests, a fuzzer wants to see the code behind it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "ledger/base/checksum.h"
#include "ledger/base/coding.h"
#include "ledger/base/file_system.h"
#include "ledger/base/json.h"
#include "ledger/base/result.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace holdfast::fuzz {

// The first sizeof(T) bytes, little-endian; 0 when there are not enough.
template <class T>
T Take(Cursor* in) {
  T v{};
  in->Le(&v);
  return v;
}

// Up to `n` bytes off the front.
inline Bytes TakeBytes(Cursor* in, size_t n) {
  Bytes b(n < in->rest().size() ? n : in->rest().size());
  if (!b.empty()) in->Raw(b);
  return b;
}

// A refusal says why.
template <class R>
void CheckRefusal(const R& result) {
  HOLDFAST_CHECK(!result.ok());
  HOLDFAST_CHECK(!result.error().message.empty());
}

// A file in a simulated file system. Cannot fail there.
inline void PutFile(FileSystem& fs, const std::string& path, ByteSpan content) {
  HOLDFAST_CHECK(fs.MakeDirs(DirName(path)).ok());
  auto file = fs.Create(path, 0644);
  HOLDFAST_CHECK(file.ok() && (*file)->Append(content).ok() && (*file)->Close().ok());
}

// What decodes is a value: encoded and decoded again it is the same one.
template <class T>
void CheckJsonRoundTrip(const Json& j) {
  const auto value = T::FromJson(j);
  if (!value.ok()) return CheckRefusal(value);
  const std::string text = CanonicalJson(value->ToJson());
  const auto parsed = ParseJson(text, "again");
  HOLDFAST_CHECK(parsed.ok());
  const auto again = T::FromJson(*parsed);
  HOLDFAST_CHECK(again.ok());
  HOLDFAST_CHECK(CanonicalJson(again->ToJson()) == text);
}

}  // namespace holdfast::fuzz
