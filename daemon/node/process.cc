// SPDX-License-Identifier: Apache-2.0
#include "daemon/node/process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <sstream>

namespace holdfast {
namespace {

// Adjusts how readily the kernel kills a worker instead of its supervisor when memory runs out.
constexpr char kWorkerOomScoreAdj[] = "1000";   // less, and in a tight cgroup a small merge weighs less than the files that its supervisor maps
constexpr char kDaemonOomScoreAdj[] = "-900";
// Buffers of megabytes in huge pages, where the kernel lets a program ask for them: fewer page faults when they are touched first.
constexpr char kHugePages[] = "GLIBC_TUNABLES=glibc.malloc.hugetlb=1";

uint64_t Keyword(const std::string& text, const std::string& key) {
  std::istringstream in(text);
  std::string word;
  while (in >> word) {
    if (word == key) {
      uint64_t v = 0;
      in >> v;
      return v;
    }
  }
  return 0;
}

// Directories of this process's memory cgroup, v1 and v2, as far as they can be seen.
std::vector<std::string> CgroupDirs() {
  std::vector<std::string> dirs;
  std::istringstream lines(ReadSystemText("/proc/self/cgroup"));
  for (std::string line; std::getline(lines, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1), path = line.substr(second + 1);
    if (controllers.empty()) dirs.push_back("/sys/fs/cgroup" + path);
    if (controllers.find("memory") != std::string::npos) {
      dirs.push_back("/sys/fs/cgroup/memory" + path);
      dirs.push_back("/sys/fs/cgroup/memory");
    }
  }
  return dirs;
}

}  // namespace

Result<pid_t> SpawnChild(const std::string& binary, const std::string& argument, const std::map<std::string, std::string>& env,
                         const std::string& log) {
  std::vector<std::string> entries = {kHugePages};   // of two settings of one name, glibc takes the last: the user's
  for (char** e = environ; *e != nullptr; ++e) {
    const std::string entry = *e;
    if (!env.contains(entry.substr(0, entry.find('=')))) entries.push_back(entry);
  }
  for (const auto& [name, value] : env) {
    if (!value.empty()) entries.push_back(name + "=" + value);
  }
  std::vector<char*> envp;
  for (std::string& e : entries) envp.push_back(e.data());
  envp.push_back(nullptr);
  std::string bin = binary, arg = argument;
  char* argv[] = {bin.data(), arg.data(), nullptr};
  const pid_t parent = ::getpid();
  const int log_fd = log.empty() ? -1 : ::open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  const pid_t pid = ::fork();
  if (pid != 0 && log_fd >= 0) ::close(log_fd);
  if (pid < 0) return ErrnoError(errno, "starting " + binary);
  if (pid == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::getppid() != parent) ::_exit(75);  // the parent died before the line above
    // Between fork and exec only async-signal-safe calls: another thread may hold the allocator's lock.
    const int fd = ::open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (fd >= 0 && ::write(fd, kWorkerOomScoreAdj, sizeof kWorkerOomScoreAdj - 1) < 0) {
      // Not allowed here: the kernel then chooses without our advice.
    }
    if (log_fd >= 0) {
      ::dup2(log_fd, STDOUT_FILENO);
      ::dup2(log_fd, STDERR_FILENO);
    }
    ::execve(bin.c_str(), argv, envp.data());
    ::_exit(127);
  }
  return pid;
}

std::optional<ChildEnd> ReapChild(pid_t pid) {
  int status = 0;
  const pid_t got = ::waitpid(pid, &status, WNOHANG);
  if (got == 0) return std::nullopt;
  if (got < 0) return ChildEnd{.exited = true, .code = 1};
  if (WIFEXITED(status)) return ChildEnd{.exited = true, .code = WEXITSTATUS(status)};
  if (WIFSIGNALED(status)) return ChildEnd{.exited = false, .code = WTERMSIG(status)};
  return std::nullopt;
}

OomCounters ReadOomCounters() {
  // The counter of our own cgroup counts kills of our own family and nobody else's. Only where none can be read does the whole
  // machine's counter have to do: it also moves when a stranger is killed.
  for (const std::string& dir : CgroupDirs()) {
    for (const char* file : {"/memory.events", "/memory.oom_control"}) {
      const std::string text = ReadSystemText(dir + file);
      if (text.find("oom_kill ") != std::string::npos) return {.cgroup = Keyword(text, "oom_kill"), .machine = 0};
    }
  }
  return {.cgroup = 0, .machine = Keyword(ReadSystemText("/proc/vmstat"), "oom_kill")};
}

void PreferOthersForOomKill() {
  std::ofstream("/proc/self/oom_score_adj") << kDaemonOomScoreAdj;
}

uint64_t MemTotalBytes() {
  uint64_t total = Keyword(ReadSystemText("/proc/meminfo"), "MemTotal:") * 1024;
  for (const std::string& dir : CgroupDirs()) {
    for (const char* file : {"/memory.max", "/memory.limit_in_bytes"}) {
      const std::string limit = SystemLine(dir + file);
      if (!limit.empty() && limit != "max") total = std::min<uint64_t>(total, std::strtoull(limit.c_str(), nullptr, 10));
    }
  }
  return total;
}

uint32_t MemoryPressure() {
  const std::string line = SystemLine("/proc/pressure/memory");   // "some avg10=1.23 avg60=..."
  const size_t at = line.find("avg10=");
  return at == std::string::npos ? 0 : static_cast<uint32_t>(std::strtod(line.c_str() + at + 6, nullptr) * 100);
}

uint64_t MemAvailableBytes() {
  uint64_t available = Keyword(ReadSystemText("/proc/meminfo"), "MemAvailable:") * 1024;
  for (const std::string& dir : CgroupDirs()) {
    for (const auto& [limit_file, usage_file] : {std::pair{"/memory.max", "/memory.current"},
                                                 std::pair{"/memory.limit_in_bytes", "/memory.usage_in_bytes"}}) {
      const std::string limit_text = SystemLine(dir + limit_file);
      if (limit_text.empty() || limit_text == "max") continue;
      const uint64_t limit = std::strtoull(limit_text.c_str(), nullptr, 10);
      const uint64_t used = std::strtoull(SystemLine(dir + usage_file).c_str(), nullptr, 10);
      const uint64_t reclaimable = Keyword(ReadSystemText(dir + "/memory.stat"), "inactive_file");
      const uint64_t busy = used > reclaimable ? used - reclaimable : 0;
      available = std::min(available, limit > busy ? limit - busy : 0);
    }
  }
  return available;
}

std::optional<uint64_t> RssBytes(pid_t pid) {
  const uint64_t kb = Keyword(ReadSystemText("/proc/" + std::to_string(pid) + "/status"), "VmRSS:");
  if (kb == 0) return std::nullopt;
  return kb * 1024;
}

}  // namespace holdfast
