// SPDX-License-Identifier: Apache-2.0
#include "export/merge/paged_writer.h"

#include <algorithm>

namespace holdfast {

Status PagedWriter::Append(std::span<uint8_t> bytes) {
  const size_t rest = offset_ % kPastCacheAlign;
  HOLDFAST_CHECK(reinterpret_cast<uintptr_t>(bytes.data()) % kPastCacheAlign == rest);
  uint8_t* const begin = bytes.data() - rest;
  std::copy_n(rest_.begin(), rest, begin);
  const size_t all = rest + bytes.size(), whole = all / kPastCacheAlign * kPastCacheAlign;
  if (whole > 0) HOLDFAST_TRY(file_.Append({begin, whole}));
  std::copy_n(begin + whole, all - whole, rest_.begin());
  offset_ += bytes.size();
  return OkStatus();
}

Status PagedWriter::AppendCopy(ByteSpan bytes) {
  const size_t rest = offset_ % kPastCacheAlign;
  const AlignedBuffer room(rest + bytes.size() + 1);  // + 1: no bytes at all are fine too
  if (room.get() == nullptr) return Exhausted("out of memory in the merge");
  std::copy(bytes.begin(), bytes.end(), room.get() + rest);
  return Append({room.get() + rest, bytes.size()});
}

Status PagedWriter::Finish() {
  const size_t rest = offset_ % kPastCacheAlign;
  return rest == 0 ? OkStatus() : file_.Append({rest_.data(), rest});
}

}  // namespace holdfast
