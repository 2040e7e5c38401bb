// SPDX-License-Identifier: Apache-2.0
//
// jobctl gc: removes what finished and cancelled jobs no longer need. What may go is decided in fsck/gc.h.
#include <algorithm>
#include <cstdio>
#include <thread>

#include "fsck/command.h"
#include "fsck/gc.h"
#include "jobctl/options.h"
#include "jobctl/preflight.h"
#include "ledger/base/printable.h"

namespace holdfast {
int GcCommand(const GcOptionsCli& options) {
  PosixFileSystem fs;
  RealClock clock;
  GcOptions o;
  o.dry_run = options.dry_run;
  o.quarantine = options.quarantine;
  o.threads = std::max(1u, std::thread::hardware_concurrency());
  o.stop = StopOnSignals();
  if (!options.json) o.on_line = [](const std::string& line) { std::printf("%s\n", Printable(line).c_str()), std::fflush(stdout); };
  const std::string dir = AbsolutePath(options.dir);
  const auto report = RunGc(fs, clock, dir, o);
  if (!report.ok()) return Fail(report.error(), options.json);
  if (options.json) {
    std::printf("%s\n", GcReportToJson(dir, o.dry_run, *report).dump(2, ' ', false, Json::error_handler_t::replace).c_str());
  } else {
    std::fputs(GcReportToText(o.dry_run, *report).c_str(), stdout);
  }
  return report->stopped ? kExitResumable : report->failed ? kExitFailure : report->refused() ? kExitUsage : kExitOk;
}

}  // namespace holdfast
