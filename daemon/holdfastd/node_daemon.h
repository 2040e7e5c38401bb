// SPDX-License-Identifier: Apache-2.0
//
// holdfastd: one per node. Joins the root, says what it is, follows the jobs, works on what it is given, coordinates when it is elected.
// Small on purpose (no torch): the kernel must never want to kill it. Everything that counts is in the ledger.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>
#include <string>

#include "ledger/base/clock.h"
#include "ledger/base/result.h"

namespace holdfast {

struct DaemonOptions {
  std::string root, name;
  std::string listen = "127.0.0.1";      // "off": no ZeroMQ at all
  std::string device = "auto";
  std::optional<uint64_t> memory_bytes;  // nullopt: what is available
  uint32_t threads = 0;                  // 0: all cores
  uint64_t suspect_s = 120;
  bool takeover = false, notify = true;
};

// Until it is stopped. kStopped: asked to by `stop` (its workers have drained); kFenced: its name was taken over; kInvalidArgument and others:
// it could not begin.
Status RunDaemon(const Clock& clock, const DaemonOptions& options, const std::atomic<int>& stop);

}  // namespace holdfast
