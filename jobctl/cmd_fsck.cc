// SPDX-License-Identifier: Apache-2.0
//
// jobctl fsck: the command line of the fsck library. The exit code is its bit mask.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <thread>

#include "fsck/fsck.h"
#include "jobctl/options.h"
#include "jobctl/preflight.h"

namespace holdfast {

int FsckCommand(const FsckOptionsCli& options) {
  PosixFileSystem fs;
  const std::string dir = AbsolutePath(options.dir);
  FsckOptions o;
  o.deep = options.deep;
  o.threads = std::max(1u, std::thread::hardware_concurrency());
  const bool terminal = !options.json && ::isatty(STDERR_FILENO) == 1;
  o.on_progress = [&](uint64_t done, uint64_t total) {
    if (terminal) std::fprintf(stderr, "\r\033[Kfsck %s of %s", FormatSize(done).c_str(), FormatSize(total).c_str());
  };
  const FsckReport report = RunFsck(fs, dir, o);
  if (terminal) std::fprintf(stderr, "\r\033[K");
  if (options.json) {
    std::printf("%s\n", FsckReportToJson(dir, report).dump(2, ' ', false, Json::error_handler_t::replace).c_str());
  } else {
    std::printf("%s", FsckReportToText(dir, report).c_str());
  }
  return report.exit_status;
}

}  // namespace holdfast
