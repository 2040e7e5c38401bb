// SPDX-License-Identifier: Apache-2.0
#include "daemon/worker/cut_writer.h"

#include <algorithm>

namespace holdfast {

constexpr uint32_t kTryTheOtherEvery = 64;

Codec CodecChoice::Next() {
  ++chosen_;
  auto& [planes, stored] = rates_;
  if (planes.ns_per_byte == 0) return planes.codec;
  if (stored.ns_per_byte == 0) return stored.codec;
  const bool stored_first = (stored.ns_per_byte < planes.ns_per_byte) != (chosen_ % kTryTheOtherEvery == 0);
  return stored_first ? stored.codec : planes.codec;
}

void CodecChoice::Took(Codec codec, uint64_t bytes, uint64_t ns) {
  const double now = std::max(1.0, static_cast<double>(ns)) / static_cast<double>(std::max<uint64_t>(1, bytes));
  for (Rate& r : rates_) {
    if (r.codec == codec) r.ns_per_byte = r.ns_per_byte == 0 ? now : (r.ns_per_byte + now) / 2;
  }
}

std::optional<Codec> WrittenAs(const RunState& state, uint32_t sample, uint32_t last_layer) {
  const Cut* cut = state.CutBefore(sample, last_layer);
  if (cut == nullptr) return std::nullopt;
  uint64_t raw = 0, stored = 0;
  for (const PackManifest& m : cut->packs) {
    for (const ChunkRef& c : m.chunks) raw += c.raw_len, stored += c.stored_len;
  }
  return stored < raw ? Codec::kBf16Planes : Codec::kStored;   // planes that save nothing are stored, too
}

Result<std::vector<PackManifest>> CutWriter::Write(ByteSpan hidden, std::optional<Codec> as) {
  Codec codec;
  {
    const std::lock_guard lock(mutex_);
    codec = as ? *as : choice_.Next();
  }
  const uint64_t begin_ns = clock_.MonotonicNs();
  PackWriter packs(fs_, layout_, incarnation_, stream_);
  for (ByteSpan rest = hidden; !rest.empty();) {
    const size_t len = std::min<uint64_t>(rest.size(), kChunkRawMax);
    HOLDFAST_TRY(packs.Add(codec, rest.first(len)));
    rest = rest.subspan(len);
  }
  HOLDFAST_ASSIGN(std::vector<PackManifest> written, packs.Finish());
  const std::lock_guard lock(mutex_);
  choice_.Took(codec, hidden.size(), clock_.MonotonicNs() - begin_ns);
  return written;
}

}  // namespace holdfast
