// SPDX-License-Identifier: Apache-2.0
#include "ledger/base/process_identity.h"

#include <unistd.h>

#include <fstream>
#include <iterator>
#include <optional>
#include <sstream>

namespace holdfast {
namespace {

constexpr char kInitialPidNamespace[] = "pid:[4026531836]";   // PROC_PID_INIT_INO of the kernel

// Field 22 of /proc/<pid>/stat, counted behind the command name, which may contain anything.
std::optional<uint64_t> StartTicks(uint64_t pid) {
  const std::string stat = ReadSystemText("/proc/" + std::to_string(pid) + "/stat");
  const size_t paren = stat.rfind(')');
  if (paren == std::string::npos) return std::nullopt;
  std::istringstream fields(stat.substr(paren + 1));
  std::string field, state;
  fields >> state;
  if (state == "Z" || state == "X") return std::nullopt;  // dead, only not yet reaped
  for (int i = 4; i <= 22; ++i) fields >> field;
  return std::strtoull(field.c_str(), nullptr, 10);
}

// Names the boot and the process namespace that pids are counted in: in a container of its own, our pids mean nothing outside.
std::string BootId() {
  const std::string boot = SystemLine("/proc/sys/kernel/random/boot_id");
  char ours[64] = {};
  const ssize_t n = ::readlink("/proc/self/ns/pid", ours, sizeof ours - 1);
  const std::string ns = n > 0 ? std::string(ours, static_cast<size_t>(n)) : "";
  return ns.empty() || ns == kInitialPidNamespace ? boot : boot + "/" + ns;
}

}  // namespace

std::string HostName() {
  char name[256] = {};
  if (::gethostname(name, sizeof name - 1) != 0) return "unknown";
  return name;
}

std::string ReadSystemText(const std::string& path) {
  std::ifstream in(path);
  return {std::istreambuf_iterator<char>(in), {}};
}

std::string SystemLine(const std::string& path) {
  std::string text = ReadSystemText(path);
  return text.substr(0, text.find('\n'));
}

ProcessIdentity ThisProcess() {
  ProcessIdentity who;
  who.hostname = HostName();
  who.machine_id = SystemLine("/etc/machine-id");
  who.boot_id = BootId();
  who.pid = static_cast<uint64_t>(::getpid());
  who.start_ticks = StartTicks(who.pid).value_or(0);
  return who;
}

Liveness ProbeProcess(const ProcessIdentity& who) {
  const std::string boot_id = BootId();
  const auto boot_of = [](const std::string& id) { return id.substr(0, id.find('/')); };
  if (who.boot_id != boot_id && boot_of(who.boot_id) == boot_of(boot_id)) return Liveness::kElsewhere;  // another container of this machine
  if (who.boot_id == boot_id) {
    const auto ticks = StartTicks(who.pid);
    return ticks.has_value() && *ticks == who.start_ticks ? Liveness::kAlive : Liveness::kDead;
  }
  const std::string machine_id = SystemLine("/etc/machine-id");
  const bool same_machine = who.hostname == HostName() && who.machine_id == machine_id;
  return same_machine ? Liveness::kRebooted : Liveness::kElsewhere;
}

}  // namespace holdfast
