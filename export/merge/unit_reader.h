// SPDX-License-Identifier: Apache-2.0
//
// The packs of all evicted units behind one call, with few of them open at a time: a large model has thousands of packs, a process
// a thousand file handles. Each file of the output walks through the units one after another, so a handful of open units is enough.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "ledger/pack/pack.h"

namespace holdfast {

class UnitReader {
 public:
  UnitReader(FileSystem& fs, const RunLayout& layout) : fs_(fs), layout_(layout) {}
  void Add(LayerRecord record);
  // The tensor `name` of `unit`, or null.
  const StoredTensor* Find(uint32_t unit, const std::string& name) const;
  uint64_t RawLen(uint32_t unit, const StoredTensor::Piece& piece) const;  // 0: no such chunk
  // Reads and decodes one chunk, digest checked. Thread safe.
  Status Read(uint32_t unit, uint32_t pack, uint32_t chunk, std::span<uint8_t> out, const DigestFunction& sha256) const;

 private:
  struct Unit {
    LayerRecord record;
    std::map<std::string, size_t> tensors;  // name -> index in the record
  };
  std::shared_ptr<const PackReader> ReaderOf(uint32_t unit) const;

  FileSystem& fs_;
  RunLayout layout_;
  std::map<uint32_t, Unit> units_;
  mutable std::mutex mutex_;  // guards `open_`
  mutable std::vector<std::pair<uint32_t, std::shared_ptr<const PackReader>>>
      open_;  // least recently used first
};

}  // namespace holdfast
