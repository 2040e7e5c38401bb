// SPDX-License-Identifier: Apache-2.0
//
// What a supervisor tells a worker: one JSON argument on its command line.
#pragma once

#include <string>

#include "daemon/core/restart_ladder.h"
#include "ledger/base/ids.h"
#include "ledger/base/result.h"

namespace holdfast {

struct WorkerArgs {
  std::string run_dir;
  uint16_t stage = 0;         // number of its stream
  uint32_t attempt = 0;       // 0 = first start by this supervisor
  std::string reason;         // goes into the CLAIM: "start", "out_of_memory", "signal 9", ...
  std::string node;
  Nonce supervisor;           // incarnation of the supervisor: names endpoints
  std::string device = "cpu";
  WorkerSize size;
  std::string Encode() const;
  static Result<WorkerArgs> Decode(const std::string& text);
};

std::string ControlEndpoint(const Nonce& supervisor);
std::string EdgeEndpoint(const Nonce& supervisor, uint32_t boundary_layer);

// Exit codes of a worker.
inline constexpr int kExitDone = 0, kExitFailed = 1, kExitRefused = 2, kExitOutOfMemory = 71, kExitStopped = 75;

}  // namespace holdfast
