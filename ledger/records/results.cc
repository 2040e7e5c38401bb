// SPDX-License-Identifier: Apache-2.0
//
// Records of finished work, and what re-opens it.
#include <algorithm>
#include <bit>
#include <functional>

#include "ledger/records/fields.h"
#include "ledger/records/records.h"

namespace holdfast {
namespace {

Json PacksToJson(const std::vector<PackManifest>& packs) {
  Json all = Json::array();
  for (const PackManifest& m : packs) all.push_back(ManifestToJson(m));
  return all;
}

auto PackOf(const char* what) {
  return [what](const Json& v, PackManifest* m) -> Status {
    HOLDFAST_ASSIGN(*m, ManifestFromJson(v, what));
    return OkStatus();
  };
}

Json TensorToJson(const StoredTensor& t) {
  Json pieces = Json::array();
  for (const StoredTensor::Piece& p : t.pieces) pieces.push_back(Json::array({p.pack, p.chunk}));
  return {{"name", t.name}, {"dtype", DTypeName(t.dtype)}, {"shape", t.shape}, {"digest", t.digest.Hex()}, {"pieces", std::move(pieces)}};
}

Status ReadStoredTensor(const Json& v, StoredTensor* t) {
  Fields f(v, "layer record, tensor");
  f.Get("name", &t->name).Get("dtype", &t->dtype).Array("shape", &t->shape).Get("digest", &t->digest);
  f.Array("pieces", &t->pieces, [&](const Json& p, StoredTensor::Piece* piece) {
    if (!p.is_array() || p.size() != 2) return f.Fail("field \"pieces\" is not a list of [pack, chunk]").status();
    f.Value(p[0], "pieces", &piece->pack);
    f.Value(p[1], "pieces", &piece->chunk);
    return f.status();
  });
  return f.status();
}

// Every piece exists, and the pieces' raw lengths add up to what shape and dtype say.
Status CheckPieces(const StoredTensor& t, const std::vector<PackManifest>& packs) {
  const std::string what = "layer record: tensor " + t.name;
  uint64_t want = DTypeBytes(t.dtype), have = 0;
  for (uint64_t d : t.shape) {
    if (__builtin_mul_overflow(want, d, &want)) return Corrupt(what + " has an impossible shape");
  }
  for (const StoredTensor::Piece& p : t.pieces) {
    if (p.pack >= packs.size() || p.chunk >= packs[p.pack].chunks.size()) return Corrupt(what + " refers to a chunk that is not listed");
    have += packs[p.pack].chunks[p.chunk].raw_len;
  }
  if (have != want) return Corrupt(what + " has pieces of " + std::to_string(have) + " bytes, its shape needs " + std::to_string(want));
  return OkStatus();
}

Json CutToJson(const Cut& c) {
  return {{"tokens", c.tokens}, {"hidden", c.hidden}, {"digest", c.digest.Hex()}, {"packs", PacksToJson(c.packs)}};
}

Result<Cut> CutFromJson(const Json& j) {
  Cut c;
  HOLDFAST_TRY(Fields(j, "sample record, output").Get("tokens", &c.tokens).Get("hidden", &c.hidden).Get("digest", &c.digest)
      .Array("packs", &c.packs, PackOf("sample record, output pack")).status());
  uint64_t want = 0, have = 0;
  for (const PackManifest& m : c.packs) {
    for (const ChunkRef& r : m.chunks) have += r.raw_len;
  }
  if (__builtin_mul_overflow(c.tokens, c.hidden, &want) || __builtin_mul_overflow(want, uint64_t{2}, &want) || (!c.packs.empty() && have != want)) {
    return Corrupt("sample record, output: packs of " + std::to_string(have) + " bytes for another shape");
  }
  return c;
}

// Samples that were left out: missing, or ascending without repetition, so that two lists of the same samples are the same list.
Status ReadOmitted(const Json& j, const char* what, std::vector<uint32_t>* omitted) {
  Fields f(j, what);
  if (!f.Has("omitted")) return OkStatus();
  f.Array("omitted", omitted);
  if (f.status().ok() && std::adjacent_find(omitted->begin(), omitted->end(), std::greater_equal<>()) != omitted->end()) f.Fail("field \"omitted\" does not ascend");
  return f.status();
}

Bytes EncodeAmax(const std::vector<float>& amax) {
  Bytes out;
  out.reserve(amax.size() * 4);
  for (float v : amax) PutLe<uint32_t>(&out, std::bit_cast<uint32_t>(v));
  return out;
}

}  // namespace

std::vector<Record> SampleRecord::ToRecords(StageId stage) const {
  Json j = {{"sample", sample}, {"first_layer", first_layer}, {"last_layer", last_layer}, {"input", input.Hex()},
            {"output", output ? CutToJson(*output) : Json()}, {"numerics", numerics}, {"sites", amax.size()}};
  const RecordKey key{RecordClass::kSample, stage.value, sample, first_layer, 0};
  Record vector;
  vector.key = key;
  vector.key.part = 1;
  vector.codec = Codec::kF32Planes;
  vector.payload = EncodeAmax(amax);
  return {MakeControl(key, j), std::move(vector)};
}

Result<SampleRecord> SampleRecord::FromRecords(const Record& control, const Record& amax) {
  HOLDFAST_ASSIGN(const Json j, ControlPayload(control));
  SampleRecord s;
  uint64_t sites = 0;
  Fields f(j, "sample record");
  f.Get("sample", &s.sample).Get("first_layer", &s.first_layer).Get("last_layer", &s.last_layer).Get("input", &s.input);
  f.Get("numerics", &s.numerics).Get("sites", &sites);
  const Json* output = f.Member("output");
  HOLDFAST_TRY(f.status());
  if (!output->is_null()) {
    HOLDFAST_ASSIGN(s.output, CutFromJson(*output));
  }
  if (s.sample != control.key.a || s.first_layer != control.key.b || s.first_layer >= s.last_layer) return Corrupt("sample record: sample or layers differ from the key's, or an empty range");
  RecordKey second = control.key;
  second.part = 1;
  if (control.key.part != 0 || amax.key != second) return Corrupt("sample record: amax vector of another record");
  if (amax.payload.size() % 4 != 0 || amax.payload.size() / 4 != sites) return Corrupt("sample record: amax vector of " + std::to_string(amax.payload.size()) + " bytes for " + std::to_string(sites) + " sites");
  s.amax.resize(sites);
  Cursor in(amax.payload);
  for (float& v : s.amax) {
    uint32_t bits = 0;
    in.Le(&bits);
    v = std::bit_cast<float>(bits);
  }
  return s;
}

Json LayerRecord::ToJson() const {
  Json all = Json::array();
  for (const StoredTensor& t : tensors) all.push_back(TensorToJson(t));
  Json j{{"unit", unit}, {"tensors", std::move(all)}, {"packs", PacksToJson(packs)}, {"input_amax", input_amax}, {"weight_amax", weight_amax}, {"source", source.Hex()}};
  if (!omitted.empty()) j["omitted"] = omitted;
  return j;
}

Result<LayerRecord> LayerRecord::FromJson(const Json& j) {
  LayerRecord l;
  HOLDFAST_TRY(Fields(j, "layer record").Get("unit", &l.unit).Array("tensors", &l.tensors, ReadStoredTensor)
      .Array("packs", &l.packs, PackOf("layer record, pack")).Array("input_amax", &l.input_amax)
      .Array("weight_amax", &l.weight_amax).Get("source", &l.source).status());
  HOLDFAST_TRY(ReadOmitted(j, "layer record", &l.omitted));
  for (const StoredTensor& t : l.tensors) HOLDFAST_TRY(CheckPieces(t, l.packs));
  return l;
}

Json SealRecord::ToJson() const {
  Json j{{"samples", samples}, {"first_layer", first_layer}, {"last_layer", last_layer}, {"root", root.Hex()}};
  if (!omitted.empty()) j["omitted"] = omitted;
  return j;
}
Result<SealRecord> SealRecord::FromJson(const Json& j) {
  SealRecord s;
  HOLDFAST_TRY(Fields(j, "seal record").Get("samples", &s.samples).Get("first_layer", &s.first_layer).Get("last_layer", &s.last_layer)
      .Get("root", &s.root).status());
  HOLDFAST_TRY(ReadOmitted(j, "seal record", &s.omitted));
  return s;
}

Json MergeRecord::ToJson() const {
  return {{"file", file}, {"state", static_cast<uint8_t>(state)}, {"name", name}, {"staging", staging}, {"size", size}, {"sha256", sha256.Hex()}};
}
Result<MergeRecord> MergeRecord::FromJson(const Json& j) {
  MergeRecord m;
  uint8_t state = 0;
  Fields f(j, "merge record");
  f.Get("file", &m.file).Get("state", &state).Get("name", &m.name).Get("staging", &m.staging).Get("size", &m.size).Get("sha256", &m.sha256);
  if (state > static_cast<uint8_t>(MergeRecord::State::kPublished)) f.Fail("field \"state\" is unknown");
  HOLDFAST_TRY(f.status());
  m.state = static_cast<MergeRecord::State>(state);
  return m;
}

Json DoneRecord::ToJson() const { return {{"manifest", manifest.Hex()}, {"report", report}}; }
Result<DoneRecord> DoneRecord::FromJson(const Json& j) {
  DoneRecord d;
  Fields f(j, "done record");
  f.Get("manifest", &d.manifest);
  const Json* report = f.Member("report");
  HOLDFAST_TRY(f.status());
  d.report = *report;
  return d;
}

Json VoidRecord::ToJson() const {
  return {{"target", target}, {"seq", seq}, {"key", HexEncode(key)}, {"reason", reason}, {"evidence", evidence}};
}
Result<VoidRecord> VoidRecord::FromJson(const Json& j) {
  VoidRecord v;
  std::string key;
  Fields f(j, "void record");
  f.Get("target", &v.target).Get("seq", &v.seq).Get("key", &key).Get("reason", &v.reason).Get("evidence", &v.evidence);
  if (f.status().ok() && v.target != "slot" && v.target != "key") f.Fail("field \"target\" is neither slot nor key");
  v.key.resize(key.size() / 2);
  if (!HexDecode(key, v.key) || (v.target == "key" && !RecordKey::Decode(v.key).ok())) f.Fail("field \"key\" is not an encoded key");
  HOLDFAST_TRY(f.status());
  return v;
}

}  // namespace holdfast
