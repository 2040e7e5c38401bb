// SPDX-License-Identifier: Apache-2.0
//
// Which process this is, told so that any other process can judge later whether it still runs. Linux only.
#pragma once

#include <cstdint>
#include <string>

namespace holdfast {

struct ProcessIdentity {
  std::string hostname, machine_id;
  std::string boot_id;                     // of the boot, and of the process namespace that `pid` is counted in
  uint64_t pid = 0, start_ticks = 0;       // field 22 of /proc/<pid>/stat: tells a reused pid apart
};

std::string HostName();
ProcessIdentity ThisProcess();

// A file of /proc, /sys or /etc, or its first line; "" where there is none.
std::string ReadSystemText(const std::string& path);
std::string SystemLine(const std::string& path);

enum class Liveness : uint8_t {
  kAlive,      // same machine and boot, the pid runs and started when the record says
  kDead,       // same machine, and it does not
  kRebooted,   // same host name and machine-id, another boot: dead, unless a clone of this machine lives; where it matters, beats tell
  kElsewhere,  // another machine: cannot be told from here
};
Liveness ProbeProcess(const ProcessIdentity& who);

}  // namespace holdfast
