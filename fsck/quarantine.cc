// SPDX-License-Identifier: Apache-2.0
#include "fsck/quarantine.h"

#include <algorithm>

#include "ledger/records/fields.h"

namespace holdfast::fsck {
namespace {

constexpr uint64_t kManifestBytesMax = 256u << 20;
constexpr uint64_t kCopyStep = 4u << 20;

Status ReadStream(const Json& v, QuarantineManifest::Stream* s) {
  return Fields(v, "manifest, stream").Get("stream", &s->stream).Get("next_seq", &s->next_seq).status();
}
Status ReadBurial(const Json& v, QuarantineManifest::Burial* b) {
  return Fields(v, "manifest, slot").Get("stream", &b->stream).Get("seq", &b->seq).Get("missing", &b->missing).Get("size", &b->size)
      .Get("sha256", &b->sha256).Get("code", &b->code).Get("reason", &b->reason).status();
}
Status ReadMove(const Json& v, QuarantineManifest::Move* m) {
  return Fields(v, "manifest, move").Get("from", &m->from).Get("to", &m->to).Get("size", &m->size).Get("sha256", &m->sha256)
      .Get("code", &m->code).Get("reason", &m->reason).status();
}

}  // namespace

Json QuarantineManifest::ToJson() const {
  Json s = Json::array(), b = Json::array(), m = Json::array();
  for (const Stream& one : streams) s.push_back({{"stream", one.stream}, {"next_seq", one.next_seq}});
  for (const Burial& one : burials) {
    b.push_back({{"stream", one.stream}, {"seq", one.seq}, {"missing", one.missing}, {"size", one.size}, {"sha256", one.sha256.Hex()},
                 {"code", one.code}, {"reason", one.reason}});
  }
  for (const Move& one : moves) {
    m.push_back({{"from", one.from}, {"to", one.to}, {"size", one.size}, {"sha256", one.sha256.Hex()}, {"code", one.code}, {"reason", one.reason}});
  }
  Json j = {{"schema", 1}, {"id", id}, {"incarnation", incarnation.Hex()}, {"job", job.Hex()}, {"wall_ns", wall_ns}, {"by", by},
          {"streams", std::move(s)}, {"slots", std::move(b)}, {"moves", std::move(m)}, {"voids", voids}};
  if (!salvaged.empty()) j["salvaged"] = salvaged;
  return j;
}

Result<QuarantineManifest> QuarantineManifest::FromJson(const Json& j) {
  QuarantineManifest m;
  uint32_t schema = 0;
  Fields f(j, "quarantine manifest");
  f.Get("schema", &schema).Get("id", &m.id).Get("incarnation", &m.incarnation).Get("job", &m.job).Get("wall_ns", &m.wall_ns).Get("by", &m.by)
      .Array("streams", &m.streams, ReadStream).Array("slots", &m.burials, ReadBurial).Array("moves", &m.moves, ReadMove).Array("voids", &m.voids);
  if (f.Has("salvaged")) f.Array("salvaged", &m.salvaged);
  HOLDFAST_TRY(f.status());
  if (schema != 1) return Unsupported("quarantine manifest of schema " + std::to_string(schema) + "; use the holdfast that wrote it");
  return m;
}

std::string Quarantine::Relative(const std::string& path) const { return path.starts_with(root_ + "/") ? path.substr(root_.size() + 1) : path; }

std::vector<std::string> QuarantineIds(FileSystem& fs, const RunLayout& layout) {
  std::vector<std::string> ids;
  const auto names = fs.List(layout.QuarantineDir());
  for (size_t i = 0; names.ok() && i < names->size(); ++i) {
    const auto there = fs.Exists(Quarantine(layout, (*names)[i]).ManifestFile());
    if (there.ok() && *there) ids.push_back((*names)[i]);
  }
  return ids;
}

Result<QuarantineManifest> ReadManifest(FileSystem& fs, const RunLayout& layout, const std::string& id) {
  const Quarantine q(layout, id);
  const bool plain = !id.empty() && id.find('/') == std::string::npos && id[0] != '.';
  const auto bytes = plain ? fs.ReadFile(q.ManifestFile(), kManifestBytesMax) : Result<Bytes>(NotFound(id));
  if (bytes.code() == ErrorCode::kNotFound) {
    std::string known;
    for (const std::string& one : QuarantineIds(fs, layout)) known += " " + one;
    return NotFound(layout.QuarantineDir() + ": no repair \"" + id + "\" there; " + (known.empty() ? "nothing was ever repaired in this directory" : "there are:" + known));
  }
  if (!bytes.ok()) return bytes.error();
  HOLDFAST_ASSIGN(const Json json, ParseJson(AsText(*bytes), q.ManifestFile()));
  return QuarantineManifest::FromJson(json);
}

Status CopyFile(FileSystem& fs, const std::string& from, const std::string& to, Digest* sha256, uint64_t* size) {
  HOLDFAST_ASSIGN(const auto in, fs.Open(from));
  HOLDFAST_TRY(fs.MakeDirs(DirName(to)));
  (void)fs.Unlink(to);   // of an earlier try: a slot's copy is read-only
  HOLDFAST_ASSIGN(const auto out, fs.Create(to, 0444));
  Sha256Hasher hasher;
  Bytes buffer;
  for (uint64_t at = 0; at < in->size(); at += buffer.size()) {
    buffer.resize(std::min(kCopyStep, in->size() - at));
    HOLDFAST_TRY(in->Read(at, buffer));
    hasher.Update(buffer);
    HOLDFAST_TRY(out->Append(buffer));
  }
  HOLDFAST_TRY(out->Sync());
  HOLDFAST_TRY(out->Close());
  *sha256 = hasher.Finish();
  *size = in->size();
  return fs.SyncDir(DirName(to));
}

Status MoveTo(FileSystem& fs, const std::string& from, const std::string& to) {
  HOLDFAST_ASSIGN(const bool taken, fs.Exists(to));
  if (taken) return Error{ErrorCode::kAlreadyExists, to + ": exists already, so that " + from + " cannot be moved there"};
  HOLDFAST_TRY(fs.MakeDirs(DirName(to)));
  HOLDFAST_TRY(fs.Replace(from, to));
  HOLDFAST_TRY(fs.SyncDir(DirName(to)));
  return fs.SyncDir(DirName(from));
}

}  // namespace holdfast::fsck
