// SPDX-License-Identifier: Apache-2.0
#include "export/merge/unit_reader.h"

#include <algorithm>

namespace holdfast {
namespace {

constexpr size_t kOpenUnits = 8;  // two for each file that is written at a time

}  // namespace

void UnitReader::Add(LayerRecord record) {
  Unit& unit = units_[record.unit];
  unit.record = std::move(record);
  for (size_t i = 0; i < unit.record.tensors.size(); ++i)
    unit.tensors[unit.record.tensors[i].name] = i;
}

const StoredTensor* UnitReader::Find(uint32_t unit, const std::string& name) const {
  const Unit& u = units_.at(unit);
  const auto it = u.tensors.find(name);
  return it == u.tensors.end() ? nullptr : &u.record.tensors[it->second];
}

uint64_t UnitReader::RawLen(uint32_t unit, const StoredTensor::Piece& piece) const {
  const std::vector<PackManifest>& packs = units_.at(unit).record.packs;
  if (piece.pack >= packs.size() || piece.chunk >= packs[piece.pack].chunks.size()) return 0;
  return packs[piece.pack].chunks[piece.chunk].raw_len;
}

std::shared_ptr<const PackReader> UnitReader::ReaderOf(uint32_t unit) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto it =
      std::find_if(open_.begin(), open_.end(), [&](const auto& o) { return o.first == unit; });
  if (it != open_.end()) {
    std::rotate(it, it + 1, open_.end());
    return open_.back().second;
  }
  if (open_.size() == kOpenUnits) open_.erase(open_.begin());
  open_.emplace_back(unit,
                     std::make_shared<PackReader>(fs_, layout_, units_.at(unit).record.packs, PageCache::kDrop));
  return open_.back().second;
}

Status UnitReader::Read(uint32_t unit, uint32_t pack, uint32_t chunk,
                        std::span<uint8_t> out, const DigestFunction& sha256) const {
  return ReaderOf(unit)->ReadChunk(pack, chunk, out, sha256);
}

}  // namespace holdfast
