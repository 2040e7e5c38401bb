// SPDX-License-Identifier: Apache-2.0
#include "ledger/records/records.h"

#include <algorithm>
#include <bit>

#include "ledger/records/fields.h"

namespace holdfast {
namespace {

bool HasFloat(const Json& v) {
  if (v.is_number_float()) return true;
  return v.is_structured() && std::any_of(v.begin(), v.end(), HasFloat);
}

}  // namespace

Record MakeControl(const RecordKey& key, const Json& payload) {
  Record r;
  r.key = key;
  r.codec = Codec::kZstd;
  const std::string text = CanonicalJson(payload);
  r.payload.assign(text.begin(), text.end());
  return r;
}

Result<Json> ControlPayload(const Record& r) {
  const std::string what = std::string("record of class ") + static_cast<char>(r.key.cls);
  auto json = ParseJson(AsText(r.payload), what);
  if (!json.ok()) return Corrupt(json.error().message);
  if (HasFloat(*json)) return Corrupt(what + ": holds a floating-point number");
  return json;
}

float JoinAmax(float a, float b) {
  const uint32_t x = std::bit_cast<uint32_t>(a) & 0x7fffffffu, y = std::bit_cast<uint32_t>(b) & 0x7fffffffu;
  return std::bit_cast<float>(std::max(x, y));
}

Bytes EncodeTokens(const std::vector<int32_t>& ids) {
  Bytes out;
  out.reserve(ids.size() * 4);
  for (int32_t id : ids) PutLe<uint32_t>(&out, static_cast<uint32_t>(id));
  return out;
}

Result<std::vector<int32_t>> DecodeTokens(ByteSpan payload) {
  if (payload.size() % 4 != 0) return Corrupt("tokens: " + std::to_string(payload.size()) + " bytes, no multiple of 4");
  std::vector<int32_t> ids(payload.size() / 4);
  Cursor in(payload);
  for (int32_t& id : ids) {
    uint32_t v = 0;
    in.Le(&v);
    if (v > INT32_MAX) return Corrupt("tokens: an id above 2^31");
    id = static_cast<int32_t>(v);
  }
  return ids;
}

// ---- tensors and packs ----

uint64_t StoredTensor::bytes() const {
  uint64_t n = DTypeBytes(dtype);
  for (uint64_t d : shape) n *= d;
  return n;
}

Digest PackRoot(const PackManifest& m) {
  Bytes text;
  const ByteSpan magic = AsBytes("holdfast pack 1\n");
  text.insert(text.end(), magic.begin(), magic.end());
  PutLe<uint64_t>(&text, m.file_size);
  text.insert(text.end(), m.skeleton.bytes.begin(), m.skeleton.bytes.end());
  PutLe<uint32_t>(&text, static_cast<uint32_t>(m.chunks.size()));
  for (const ChunkRef& c : m.chunks) {
    PutLe<uint64_t>(&text, c.offset);
    PutLe<uint64_t>(&text, c.stored_len);
    PutLe<uint64_t>(&text, c.raw_len);
    text.insert(text.end(), c.digest.bytes.begin(), c.digest.bytes.end());
  }
  return Sha256(text);
}

Json ManifestToJson(const PackManifest& m) {
  Json chunks = Json::array();
  for (const ChunkRef& c : m.chunks) chunks.push_back(Json::array({c.offset, c.stored_len, c.raw_len, c.digest.Hex()}));
  return {{"root", m.root.Hex()}, {"file_size", m.file_size}, {"skeleton", m.skeleton.Hex()}, {"chunks", std::move(chunks)}};
}

static Status ReadChunkRef(Fields* f, const Json& v, ChunkRef* c) {
  if (!v.is_array() || v.size() != 4) return f->Fail("field \"chunks\" is not a list of [offset, stored, raw, digest]").status();
  f->Value(v[0], "chunks", &c->offset);
  f->Value(v[1], "chunks", &c->stored_len);
  f->Value(v[2], "chunks", &c->raw_len);
  f->Value(v[3], "chunks", &c->digest);
  return f->status();
}

// Chunks lie inside the file, in ascending order without overlap, and are no larger than any chunk of ours.
static bool PlausibleChunks(const PackManifest& m) {
  uint64_t end = 0;
  for (const ChunkRef& c : m.chunks) {
    if (c.stored_len < kRecordHeaderBytes || c.stored_len > (4u << 20) || c.raw_len > (4u << 20)) return false;
    if (c.offset < end || c.offset > m.file_size || c.stored_len > m.file_size - c.offset) return false;
    end = c.offset + c.stored_len;
  }
  return true;
}

Result<PackManifest> ManifestFromJson(const Json& j, const std::string& what) {
  Fields f(j, what);
  PackManifest m;
  f.Get("root", &m.root).Get("file_size", &m.file_size).Get("skeleton", &m.skeleton);
  f.Array("chunks", &m.chunks, [&](const Json& v, ChunkRef* c) { return ReadChunkRef(&f, v, c); });
  HOLDFAST_TRY(f.status());
  if (PackRoot(m) != m.root) return Corrupt(what + ": the pack's fields do not give its root " + m.root.Hex());
  PackManifest sorted = m;
  std::sort(sorted.chunks.begin(), sorted.chunks.end(), [](const ChunkRef& a, const ChunkRef& b) { return a.offset < b.offset; });
  if (!PlausibleChunks(sorted)) return Corrupt(what + ": chunks of pack " + m.root.Hex() + " overlap or leave the file");
  return m;
}

}  // namespace holdfast
