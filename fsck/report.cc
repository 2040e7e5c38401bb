// SPDX-License-Identifier: Apache-2.0
//
// The register of codes, and the report as text and JSON.
#include <algorithm>
#include <tuple>

#include "fsck/context.h"
#include "ledger/base/printable.h"
#include "ledger/base/units.h"

namespace holdfast {
namespace {

constexpr struct { const char* code; const char* name; } kCodes[] = {
    {"F000", "UNREADABLE"},     {"F001", "FATAL_FORMAT"}, {"F002", "FATAL_JOB"},     {"F003", "FOREIGN"},
    {"F010", "GAP"},            {"F011", "SHORT"},        {"F012", "BITROT"},        {"F013", "MISPLACED"},
    {"F014", "CHAIN"},          {"F015", "LMDB_BAD"},     {"F020", "RECORD_BAD"},    {"F021", "RECORD_KEY"},
    {"F030", "EPOCH"},          {"F031", "ZOMBIE"},       {"F032", "STRANGER"},
    {"F033", "TWINS"},        {"F034", "JOB_MISSING"},    {"F040", "DUPLICATE"},     {"F041", "AMAX_BAD"},
    {"F042", "DEAD_SITE"},      {"F043", "COVERAGE"},     {"F044", "PROVENANCE"},    {"F050", "PACK_MISSING"},
    {"F051", "PACK_ROT"},       {"F052", "MISNAMED"},     {"F060", "LAYER_BAD"},     {"F061", "SCALE"},
    {"F062", "REPRO"},          {"F070", "SOURCE_CHANGED"}, {"F071", "SOURCE_TRUNCATED"}, {"F080", "OUTPUT_BAD"}, {"F081", "PUBLISH"},
    {"F090", "ORPHAN"},         {"F091", "LEFTOVER"},     {"F092", "SPACE"},           {"F093", "ENV"},
};

constexpr const char* kSeverityNames[] = {"error", "warning", "info"};

const char* NameOf(FsckSeverity s) { return kSeverityNames[static_cast<size_t>(s)]; }

constexpr const char* kRootState = "root";

// What the bits of the exit status say, in words.
std::string Verdict(const FsckReport& r) {
  if (r.exit_status == 0) return "clean";
  std::string out;
  const auto add = [&](int bit, const char* text) {
    if ((r.exit_status & bit) != 0) out += (out.empty() ? "" : ", ") + std::string(text);
  };
  add(kFsckCorrected, "errors corrected");
  add(kFsckReopened, "work is open again");
  add(kFsckDataLost, "committed data lost");
  add(kFsckErrorsLeft, "errors");
  add(kFsckOperational, "not everything could be read");
  add(kFsckInterrupted, "interrupted");
  return out + " (exit status " + std::to_string(r.exit_status) + ")";
}

}  // namespace

const char* FsckCodeName(const std::string& code) {
  for (const auto& c : kCodes) {
    if (code == c.code) return c.name;
  }
  return nullptr;
}

std::vector<std::string> FsckCodes() {
  std::vector<std::string> codes;
  for (const auto& c : kCodes) codes.push_back(c.code);
  return codes;
}

Json FsckReportToJson(const std::string& run_dir, const FsckReport& r) {
  Json findings = Json::array();
  for (const FsckFinding& f : r.findings) {
    findings.push_back({{"code", f.code}, {"name", FsckCodeName(f.code)}, {"severity", NameOf(f.severity)},
                        {"object", f.object}, {"message", f.message}, {"advice", f.advice}, {"repair", f.remedies.empty() ? "" : RemedyName(f.remedies.front().what)}});
  }
  Json j = {{"schema", 1}, {"run", run_dir}, {"deep", r.deep}, {"state", r.state}, {"exit_status", r.exit_status},
            {"checked", {{"streams", r.streams}, {"slots", r.slots}, {"records", r.records}, {"packs", r.packs}, {"reproduced", r.reproduced}, {"bytes_read", r.bytes_read}, {"bytes_known", r.bytes_known}}},
            {"findings", std::move(findings)}};
  if (r.state != kRootState) return j;
  j["jobs"] = Json::array();
  for (const FsckJob& job : r.jobs) {
    j["jobs"].push_back({{"id", job.id}, {"name", job.name}, {"state", job.state}, {"queue", job.queued_as}, {"exit_status", job.exit_status}, {"findings", job.findings}});
  }
  return j;
}

std::string FsckReportToText(const std::string& run_dir, const FsckReport& r) {
  std::string out;
  for (const FsckFinding& f : r.findings) {
    out += f.code + " " + FsckCodeName(f.code) + " " + NameOf(f.severity) + ": " + Printable(f.object) + ": " + Printable(f.message) + "\n";
    if (!f.advice.empty()) out += "    " + Printable(f.advice) + "\n";
  }
  for (const FsckJob& job : r.jobs) {
    out += "job " + job.id + (job.name.empty() ? "" : " (" + Printable(job.name) + ")") + ": " + job.state + (job.queued_as.empty() ? ", not in the queue" : ", " + job.queued_as + " in the queue") +
           "; " + (job.findings == 0 ? "nothing to say" : std::to_string(job.findings) + " errors and warnings above") + "\n";
  }
  const std::string what = r.state == kRootState ? "root of " + std::to_string(r.jobs.size()) + " jobs" : "job: " + r.state;
  out += Printable(run_dir) + ": " + std::to_string(r.slots) + " slots in " + std::to_string(r.streams) + " streams, " + std::to_string(r.records) +
         " records, " + std::to_string(r.packs) + " packs" + (r.deep ? " read and checked" : "") + "; " + what + "; " + Verdict(r) + "\n";
  if (r.bytes_known > 0) out += FormatSize(r.bytes_known) + " of it were read by a check that was interrupted, and have not changed since\n";
  if ((r.exit_status & kFsckInterrupted) != 0 && r.deep) {
    out += r.memories.empty() ? "interrupted: not everything was read; the same line again begins anew\n"
                              : "interrupted: not everything was read; the same line again goes on from here, for 24 hours (remembered in " + Printable(DirName(r.memories.front())) + ")\n";
  }
  return out;
}

namespace fsck {

void Context::Add(const char* code, FsckSeverity severity, std::string object, std::string message, std::string advice, Remedies remedies) {
  HOLDFAST_CHECK(FsckCodeName(code) != nullptr);
  const std::lock_guard lock(mutex_);
  if (severity == FsckSeverity::kError) report.exit_status |= kFsckErrorsLeft;
  report.findings.push_back({code, severity, std::move(object), std::move(message), std::move(advice), std::move(remedies), false});
}

void Context::Lost(const char* code, std::string object, std::string message, std::string advice, Remedies remedies) {
  Error(code, std::move(object), std::move(message), std::move(advice), std::move(remedies));
  const std::lock_guard lock(mutex_);
  report.exit_status |= kFsckDataLost;
  log.damaged = true;
}

void Context::Unreadable(const std::string& object, const holdfast::Error& error) {
  const std::lock_guard lock(mutex_);
  if (error.code == ErrorCode::kStopped) {
    report.exit_status |= kFsckInterrupted;
    return;
  }
  report.exit_status |= kFsckOperational;
  report.findings.push_back({"F000", FsckSeverity::kError, object, error.message, "make it readable, then run fsck again", {}, false});
}

Result<Digest> Context::HashFile(const std::string& path) {
  constexpr uint64_t kStep = 4u << 20;
  HOLDFAST_ASSIGN(const auto file, fs.Open(path));
  Sha256Hasher hasher;
  Bytes buffer(std::min(kStep, std::max<uint64_t>(file->size(), 1)));
  for (uint64_t at = 0; at < file->size(); at += kStep) {
    const std::span<uint8_t> part(buffer.data(), std::min(kStep, file->size() - at));
    HOLDFAST_TRY(file->Read(at, part));
    hasher.Update(part);
    bytes_done += part.size();
  }
  return hasher.Finish();
}

}  // namespace fsck
}  // namespace holdfast
