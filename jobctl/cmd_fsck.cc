// SPDX-License-Identifier: Apache-2.0
//
// jobctl fsck: the command line of the fsck library. The exit code is its bit mask.
#include <algorithm>
#include <thread>

#include "fsck/command.h"
#include "jobctl/options.h"
#include "jobctl/preflight.h"

namespace holdfast {

int FsckCommand(const FsckOptionsCli& options) {
  FsckRequest request;
  request.dir = AbsolutePath(options.dir);
  request.json = options.json;
  request.repair = options.repair;
  request.dry_run = options.dry_run;
  request.undo = options.undo;
  request.options.check.reproduce = options.reproduce;
  request.options.check.deep = options.deep;
  request.options.check.rate = options.rate;
  request.options.check.salvage = options.salvage;
  request.options.check.threads = std::max(1u, std::thread::hardware_concurrency());
  return RunFsckCommand(std::move(request));
}

}  // namespace holdfast
