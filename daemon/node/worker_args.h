// SPDX-License-Identifier: Apache-2.0
//
// What a supervisor tells a child (holdfast-worker, holdfast-merge): one JSON argument on its command line.
#pragma once

#include <map>
#include <string>

#include "daemon/core/restart_ladder.h"
#include "ledger/base/ids.h"
#include "ledger/base/result.h"

namespace holdfast {

struct WorkerArgs {
  std::string run_dir;
  uint16_t stage = 0;         // number of its stream; of no meaning to a merge
  uint32_t attempt = 0;       // 0 = first start by this supervisor
  std::string reason;         // goes into the CLAIM: "start", "out_of_memory", "signal 9", ...
  std::string node;
  Nonce supervisor;           // incarnation of the supervisor: names its control socket
  std::string device = "cpu";
  WorkerSize size;
  // Data edges: where this worker takes cuts. "" = on this machine alone (ipc); else a tcp endpoint to bind, "tcp://10.0.0.2:*".
  std::string edge_listen;
  std::string keys_dir;       // CURVE keys of the edges, under the name `node`; "" = plain
  bool renaming = false;      // the directory's server has no hard links (ROOT says so)
  std::map<std::string, uint64_t> phase_ms;   // merge: what went before, for the report
  uint64_t rss_peak_bytes = 0;                // merge: likewise
  std::string Encode() const;
  static Result<WorkerArgs> Decode(const std::string& text);
};

inline constexpr uint32_t kLastWordsMs = 5000;   // how long a child's reason may be on its way after its end: it lingers, its supervisor waits
std::string ControlEndpoint(const Nonce& supervisor);
std::string EdgeEndpoint(const Nonce& worker);

// Exit codes of a worker.
inline constexpr int kExitDone = 0, kExitFailed = 1, kExitRefused = 2, kExitOutOfMemory = 71, kExitStopped = 75;
// (SIGTERM: finish the commit, release, exit 75.)

}  // namespace holdfast
