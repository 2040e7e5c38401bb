// SPDX-License-Identifier: Apache-2.0
#include "jobctl/probe_cache.h"

#include <cstdlib>

#include "ledger/base/checksum.h"
#include "ledger/base/ids.h"
#include "ledger/base/process_identity.h"

namespace holdfast {
namespace {

constexpr uint64_t kFormat = 1;

// Of the first processor; the numerics class in the question says what it can do.
std::string Processor() {
  const std::string text = ReadSystemText("/proc/cpuinfo");
  for (const char* field : {"model name", "Processor", "CPU part"}) {
    const size_t at = text.find(field);
    if (at != std::string::npos) return text.substr(at, text.find('\n', at) - at);
  }
  return "";
}

}  // namespace

MachineName MachineName::This() {
  const ProcessIdentity self = ThisProcess();
  return {self.hostname, self.machine_id, Processor()};
}

std::string ProbeCache::DefaultDir() {
  const char* const cache = std::getenv("XDG_CACHE_HOME");
  if (cache != nullptr && cache[0] == '/') return JoinPath(cache, "holdfast");
  const char* const home = std::getenv("HOME");
  return home != nullptr && home[0] == '/' ? JoinPath(home, ".cache/holdfast") : "";
}

Json ProbeCache::MachineJson() const { return {{"host", machine_.host}, {"machine_id", machine_.machine_id}, {"processor", machine_.processor}}; }

std::string ProbeCache::PathOf(const Json& question) const {
  return JoinPath(dir_, "probe-" + Sha256(AsBytes(CanonicalJson(question))).Hex().substr(0, 32) + ".json");
}

ProbeCache::Found ProbeCache::Find(const Json& question) const {
  if (dir_.empty()) return {};
  const std::string path = PathOf(question);
  const auto bytes = fs_.ReadFile(path, kProbeEntryBytesMax);
  if (bytes.code() == ErrorCode::kNotFound) return {};
  const auto unused = [&](const std::string& why) { return Found{std::nullopt, path + " is not used: " + why}; };
  if (!bytes.ok()) return unused(bytes.error().message);
  const auto entry = ParseJson(AsText(*bytes), "entry", kProbeEntryBytesMax);
  if (!entry.ok()) return unused(entry.error().message);
  const auto format = GetUint(*entry, "holdfast_probe", "entry");
  if (!format.ok()) return unused(format.error().message);
  if (*format != kFormat) return unused("it is of format " + std::to_string(*format));
  const auto machine = GetObject(*entry, "machine", "entry"), asked = GetObject(*entry, "question", "entry"), answer = GetObject(*entry, "answer", "entry");
  if (!machine.ok() || !asked.ok() || !answer.ok()) return unused("machine, question or answer is missing");
  if (**machine != MachineJson()) return unused("it was measured on another machine");
  if (**asked != question) return unused("it answers another question");
  return {**answer, ""};
}

Status ProbeCache::Keep(const Json& question, const Json& answer) const {
  if (dir_.empty()) return OkStatus();
  const Json entry{{"holdfast_probe", kFormat}, {"machine", MachineJson()}, {"question", question}, {"answer", answer}};
  HOLDFAST_TRY(fs_.MakeDirs(dir_));
  const std::string tmp = JoinPath(dir_, ".probe-" + Nonce::Random().Hex());
  const auto write = [&]() -> Status {
    HOLDFAST_ASSIGN(const auto file, fs_.Create(tmp, 0644));
    HOLDFAST_TRY(file->Append(AsBytes(CanonicalJson(entry) + "\n")));
    HOLDFAST_TRY(file->Close());
    return fs_.Replace(tmp, PathOf(question));
  };
  const Status written = write();
  if (!written.ok()) (void)fs_.Unlink(tmp);
  return written;
}

}  // namespace holdfast
