// SPDX-License-Identifier: Apache-2.0
//
// Processes as a node sees them: who we are, whether somebody else still lives, how a child ended. Linux only.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "ledger/base/ids.h"
#include "ledger/base/result.h"
#include "ledger/records/this_process.h"

namespace holdfast {

// Starts `binary` with one argument. The child dies with this process (PR_SET_PDEATHSIG, SIGKILL) and offers itself first to the
// kernel's OOM killer. Call from the main thread: the death signal is bound to the thread that forks.
// `env`: environment variables that differ from ours; "" = not set. `log`: file that gets its standard output and error appended; "" = ours.
Result<pid_t> SpawnChild(const std::string& binary, const std::string& argument, const std::map<std::string, std::string>& env,
                         const std::string& log = "");
// For a daemon that must outlive its workers: asks the kernel to kill others first. Best effort: lowering needs CAP_SYS_RESOURCE.
void PreferOthersForOomKill();

struct ChildEnd {
  bool exited = false;       // else signalled
  int code = 0;              // exit code or signal number
};
// Non-blocking; nullopt: still running.
std::optional<ChildEnd> ReapChild(pid_t pid);

// The kernel's counter of OOM kills that could have hit our children: of this process's cgroup (v1 or v2), or of the whole machine where
// no cgroup can be read. A SIGKILL while it rose is an OOM kill; otherwise somebody else sent it.
struct OomCounters {
  uint64_t cgroup = 0, machine = 0;
  friend bool operator==(const OomCounters&, const OomCounters&) = default;
};
OomCounters ReadOomCounters();

uint64_t MemTotalBytes();                       // MemTotal, or the cgroup's limit where that is lower
uint32_t MemoryPressure();                      // PSI: memory "some avg10" in hundredths of a percent; 0 where the kernel has none
uint64_t MemAvailableBytes();                   // MemAvailable, lowered to the free part of the cgroup's limit if there is one
std::optional<uint64_t> RssBytes(pid_t pid);

}  // namespace holdfast
