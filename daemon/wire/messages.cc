// SPDX-License-Identifier: Apache-2.0
#include "daemon/wire/messages.h"

#include "ledger/base/coding.h"

namespace holdfast {
namespace {

constexpr uint32_t kEdgeMagic = 0x45444648;    // "HFDE"
constexpr uint32_t kCreditMagic = 0x52434648;  // "HFCR"

const char* const kKinds[] = {"progress", "failed", "finished"};

void PutNonce(Bytes* out, const Nonce& n) { out->insert(out->end(), n.bytes.begin(), n.bytes.end()); }

Result<uint64_t> Count(const Json& j, const char* key) { return GetUint(j, key, "worker report"); }

}  // namespace

std::string WorkerReport::Encode() const {
  return CanonicalJson(Json{{"v", kWireVersion},
                            {"kind", kKinds[static_cast<int>(kind)]},
                            {"stage", stage},
                            {"attempt", attempt},
                            {"phase", phase},
                            {"samples_done", samples_done},
                            {"commits", commits},
                            {"samples_total", samples_total},
                            {"passed", passed},
                            {"tries", tries},
                            {"units_done", units_done},
                            {"units_total", units_total},
                            {"bytes_read", bytes_read},
                            {"bytes_written", bytes_written},
                            {"bytes_total", bytes_total},
                            {"rss_bytes", rss_bytes},
                            {"cuts_received", cuts_received},
                            {"cuts_from_packs", cuts_from_packs},
                            {"chunks_dropped", chunks_dropped},
                            {"error_code", error_code},
                            {"error", error}});
}

Result<WorkerReport> WorkerReport::Decode(std::string_view text) {
  HOLDFAST_ASSIGN(const Json j, ParseJson(text, "worker report", kControlBytesMax));
  HOLDFAST_ASSIGN(const uint64_t version, Count(j, "v"));
  if (version != kWireVersion) return Unsupported("worker report of wire version " + std::to_string(version));
  WorkerReport r;
  HOLDFAST_ASSIGN(const std::string kind, GetString(j, "kind", "worker report"));
  if (kind == kKinds[0]) r.kind = Kind::kProgress;
  else if (kind == kKinds[1]) r.kind = Kind::kFailed;
  else if (kind == kKinds[2]) r.kind = Kind::kFinished;
  else return Unsupported("worker report of unknown kind \"" + kind + "\"");
  HOLDFAST_ASSIGN(const uint64_t stage, Count(j, "stage"));
  if (stage > UINT16_MAX) return Corrupt("worker report: stage " + std::to_string(stage) + " is out of range");
  r.stage = static_cast<uint16_t>(stage);
  HOLDFAST_ASSIGN(const uint64_t attempt, Count(j, "attempt"));
  if (attempt > UINT32_MAX) return Corrupt("worker report: attempt " + std::to_string(attempt) + " is out of range");
  r.attempt = static_cast<uint32_t>(attempt);
  HOLDFAST_ASSIGN(r.phase, GetString(j, "phase", "worker report"));
  HOLDFAST_ASSIGN(r.samples_done, Count(j, "samples_done"));
  HOLDFAST_ASSIGN(r.commits, Count(j, "commits"));
  HOLDFAST_ASSIGN(r.samples_total, Count(j, "samples_total"));
  HOLDFAST_ASSIGN(r.passed, Count(j, "passed"));
  HOLDFAST_ASSIGN(r.tries, Count(j, "tries"));
  HOLDFAST_ASSIGN(r.units_done, Count(j, "units_done"));
  HOLDFAST_ASSIGN(r.units_total, Count(j, "units_total"));
  HOLDFAST_ASSIGN(r.bytes_read, Count(j, "bytes_read"));
  HOLDFAST_ASSIGN(r.bytes_written, Count(j, "bytes_written"));
  HOLDFAST_ASSIGN(r.bytes_total, Count(j, "bytes_total"));
  HOLDFAST_ASSIGN(r.rss_bytes, Count(j, "rss_bytes"));
  HOLDFAST_ASSIGN(r.cuts_received, Count(j, "cuts_received"));
  HOLDFAST_ASSIGN(r.cuts_from_packs, Count(j, "cuts_from_packs"));
  HOLDFAST_ASSIGN(r.chunks_dropped, Count(j, "chunks_dropped"));
  HOLDFAST_ASSIGN(r.error_code, GetString(j, "error_code", "worker report"));
  HOLDFAST_ASSIGN(r.error, GetString(j, "error", "worker report"));
  return r;
}

Bytes EdgeMessage::Encode() const {
  Bytes b;
  PutLe<uint32_t>(&b, kEdgeMagic);
  PutLe<uint32_t>(&b, kWireVersion);
  PutLe<uint8_t>(&b, static_cast<uint8_t>(kind));
  PutNonce(&b, job);
  PutNonce(&b, producer);
  PutLe<uint32_t>(&b, boundary);
  PutLe<uint32_t>(&b, sample);
  PutLe<uint32_t>(&b, chunk);
  PutLe<uint32_t>(&b, chunks);
  PutLe<uint64_t>(&b, tokens);
  PutLe<uint64_t>(&b, total_bytes);
  b.insert(b.end(), digest.bytes.begin(), digest.bytes.end());
  PutLe<uint64_t>(&b, sent_bytes);
  return b;
}

Result<EdgeMessage> EdgeMessage::Decode(ByteSpan bytes) {
  Cursor c(bytes);
  uint32_t magic = 0, version = 0;
  uint8_t kind = 0;
  EdgeMessage m;
  const bool whole = c.Le(&magic) && c.Le(&version) && c.Le(&kind) && c.Raw(m.job.bytes) && c.Raw(m.producer.bytes) &&
                     c.Le(&m.boundary) && c.Le(&m.sample) && c.Le(&m.chunk) && c.Le(&m.chunks) && c.Le(&m.tokens) &&
                     c.Le(&m.total_bytes) && c.Raw(m.digest.bytes) && c.Le(&m.sent_bytes) && c.rest().empty();
  if (!whole || magic != kEdgeMagic) return Corrupt("edge message: wrong length or magic");
  if (version != kWireVersion || kind < 1 || kind > 3) return Unsupported("edge message: unknown version or kind");
  m.kind = static_cast<Kind>(kind);
  if (m.kind == Kind::kChunk && (m.chunks == 0 || m.chunk >= m.chunks)) return Corrupt("edge message: chunk number out of range");
  return m;
}

Bytes EdgeCredit::Encode() const {
  Bytes b;
  PutLe<uint32_t>(&b, kCreditMagic);
  PutLe<uint32_t>(&b, kWireVersion);
  PutNonce(&b, consumer);
  PutLe<uint64_t>(&b, granted_bytes);
  return b;
}

Result<EdgeCredit> EdgeCredit::Decode(ByteSpan bytes) {
  Cursor c(bytes);
  uint32_t magic = 0, version = 0;
  EdgeCredit m;
  const bool whole = c.Le(&magic) && c.Le(&version) && c.Raw(m.consumer.bytes) && c.Le(&m.granted_bytes) && c.rest().empty();
  if (!whole || magic != kCreditMagic || version != kWireVersion) return Corrupt("edge credit: wrong length, magic or version");
  return m;
}

}  // namespace holdfast
