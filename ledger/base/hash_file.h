// SPDX-License-Identifier: Apache-2.0
//
// SHA-256 of a whole file, read in order and once, with a say in what becomes of its pages in the cache.
#pragma once

#include "ledger/base/checksum.h"
#include "ledger/base/file_system.h"

namespace holdfast {

// What becomes of the file's pages in the cache: who reads it again soon keeps them.
enum class PageCache : uint8_t { kKeep, kDrop };
Result<Digest> HashFile(const ReadableFile& file, PageCache pages);
Result<Digest> HashFile(FileSystem& fs, const std::string& path, PageCache pages);

}  // namespace holdfast
