// SPDX-License-Identifier: Apache-2.0
//
// Pieces of any length, written to a file in whole pages, as a write past the page cache wants them. Nothing is copied but the pages at
// the seams: a piece lies in memory where it would lie in a page of the file, and what is left of the piece before is put in front of it.
#pragma once

#include <array>

#include "ledger/base/file_system.h"
#include "ledger/base/past_cache.h"

namespace holdfast {

class PagedWriter {
 public:
  explicit PagedWriter(WritableFile& file) : file_(file) {}  // new and empty
  uint64_t offset() const { return offset_; }                // appended so far
  // `bytes.data()` is offset() modulo kPastCacheAlign; the bytes in front of it, back to the multiple, are overwritten.
  Status Append(std::span<uint8_t> bytes);
  Status AppendCopy(ByteSpan bytes);  // from anywhere
  Status Finish();                    // the last page, as far as it goes

 private:
  WritableFile& file_;
  uint64_t offset_ = 0;
  std::array<uint8_t, kPastCacheAlign> rest_;  // the first offset_ % kPastCacheAlign bytes are not written yet
};

}  // namespace holdfast
