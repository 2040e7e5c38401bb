// SPDX-License-Identifier: Apache-2.0
#include "ledger/base/hash_file.h"

#include <algorithm>

namespace holdfast {

Result<Digest> HashFile(const ReadableFile& file, PageCache pages) {
  constexpr uint64_t kStep = 4u << 20;
  Sha256Hasher hasher;
  Bytes buffer;
  for (uint64_t at = 0; at < file.size(); at += buffer.size()) {
    buffer.resize(std::min(kStep, file.size() - at));
    HOLDFAST_TRY(file.Read(at, buffer));
    if (pages == PageCache::kDrop) file.DropCache(at, buffer.size());
    hasher.Update(buffer);
  }
  return hasher.Finish();
}

Result<Digest> HashFile(FileSystem& fs, const std::string& path, PageCache pages) {
  HOLDFAST_ASSIGN(const auto file, fs.Open(path));
  return HashFile(*file, pages);
}

}  // namespace holdfast
