// SPDX-License-Identifier: Apache-2.0
//
// A pack: its table as a record keeps it, and the chunks behind it. Input: length of the pack file (u16), the file, then the manifest's
// JSON. Digests are repaired, so that bounds, overlaps and chunk headers are what decides.
#include "ledger/pack/pack.h"

#include <algorithm>

#include "ledger/base/sim_file_system.h"
#include "tests/fuzz/fuzz.h"

namespace holdfast {
namespace {

void CheckManifest(const Json& j) {
  const auto m = ManifestFromJson(j, "pack");
  if (!m.ok()) return fuzz::CheckRefusal(m);
  std::vector<std::pair<uint64_t, uint64_t>> ranges;
  for (const ChunkRef& c : m->chunks) {
    HOLDFAST_CHECK(c.stored_len <= m->file_size && c.offset <= m->file_size - c.stored_len);
    ranges.emplace_back(c.offset, c.offset + c.stored_len);
  }
  std::sort(ranges.begin(), ranges.end());
  for (size_t i = 1; i < ranges.size(); ++i) HOLDFAST_CHECK(ranges[i - 1].second <= ranges[i].first);
  HOLDFAST_CHECK(ManifestToJson(*m) == ManifestToJson(*ManifestFromJson(ManifestToJson(*m), "again")));
}

Bytes OutsideOf(const std::vector<ChunkRef>& chunks, const Bytes& file) {
  Bytes gaps;
  for (size_t at = 0; at < file.size(); ++at) {
    const bool inside = std::ranges::any_of(chunks, [&](const ChunkRef& c) { return at >= c.offset && at - c.offset < c.stored_len; });
    if (!inside) gaps.push_back(file[at]);
  }
  return gaps;
}

// What the table says of numbers, with the digests that `file` has: as if the writer had made it so.
PackManifest Repaired(const Json& j, const Bytes& file) {
  PackManifest m;
  m.file_size = file.size();
  const auto chunks = GetArray(j, "chunks", "pack");
  if (chunks.ok()) {
    for (const Json& c : **chunks) {
      ChunkRef ref;
      if (!c.is_array() || c.size() < 3) continue;
      if (!c[0].is_number_unsigned() || !c[1].is_number_unsigned() || !c[2].is_number_unsigned()) continue;
      ref.offset = c[0].get<uint64_t>(), ref.stored_len = c[1].get<uint64_t>(), ref.raw_len = c[2].get<uint64_t>();
      if (ref.stored_len <= file.size() && ref.offset <= file.size() - ref.stored_len) {
        ref.digest = Sha256(ByteSpan(file).subspan(ref.offset, ref.stored_len));
      }
      m.chunks.push_back(ref);
    }
  }
  m.skeleton = Sha256(OutsideOf(m.chunks, file));
  m.root = PackRoot(m);
  return m;
}

void CheckReading(const PackManifest& m, const Bytes& file) {
  SimFileSystem fs;
  const RunLayout layout("/run");
  fuzz::PutFile(fs, layout.Pack(m.root), file);
  const PackReader reader(fs, layout, {m});
  bool all_read = true;
  for (uint32_t i = 0; i < m.chunks.size(); ++i) {
    Bytes out(reader.RawLen(0, i));
    const Status s = reader.ReadChunk(0, i, out);
    if (!s.ok()) fuzz::CheckRefusal(s);
    all_read &= s.ok();
  }
  const Status s = VerifyPack(fs, layout, m);
  if (!s.ok()) fuzz::CheckRefusal(s);
  HOLDFAST_CHECK(s.ok() == all_read);  // the digests are right by construction
}

}  // namespace
}  // namespace holdfast

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace holdfast;
  Cursor in({data, size});
  const Bytes file = fuzz::TakeBytes(&in, fuzz::Take<uint16_t>(&in));
  const auto json = ParseJson(AsText(in.rest()), "pack");
  if (!json.ok()) return 0;
  CheckManifest(*json);
  const PackManifest repaired = Repaired(*json, file);
  CheckManifest(ManifestToJson(repaired));
  if (ManifestFromJson(ManifestToJson(repaired), "pack").ok()) CheckReading(repaired, file);
  return 0;
}
