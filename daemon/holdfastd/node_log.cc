// SPDX-License-Identifier: Apache-2.0
#include "daemon/holdfastd/node_log.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>

#include "ledger/base/printable.h"
#include "ledger/base/units.h"

namespace holdfast {
namespace {

std::string Stamp(uint64_t wall_ns) { return FormatUtc(wall_ns, "%Y-%m-%dT%H:%M:%SZ"); }

}  // namespace

std::string NodeLog::PathOf(const std::string& job) const {
  const std::string path = layout_.JobLog(job, node_);
  ::mkdir(DirName(path).c_str(), 0755);
  return path;
}

void NodeLog::Say(const std::string& text) const {
  std::fprintf(stderr, "%s %s\n", Stamp(clock_.WallNs()).c_str(), Printable(text).c_str());
}

void NodeLog::Say(const std::string& job, const std::string& text) const {
  const std::string shown = Printable(text), line = Stamp(clock_.WallNs()) + " " + shown + "\n";
  std::fprintf(stderr, "%s %s: %s\n", Stamp(clock_.WallNs()).c_str(), job.c_str(), shown.c_str());
  // One write, so that it does not mix with what a child says. Best effort: the ledger tells the same story.
  const int fd = ::open(PathOf(job).c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (fd < 0) return;
  if (::write(fd, line.data(), line.size()) < 0) std::fprintf(stderr, "cannot write %s\n", PathOf(job).c_str());
  ::close(fd);
}

}  // namespace holdfast
