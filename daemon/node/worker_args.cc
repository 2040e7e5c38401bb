// SPDX-License-Identifier: Apache-2.0
#include "daemon/node/worker_args.h"

#include "ledger/base/json.h"

namespace holdfast {

std::string WorkerArgs::Encode() const {
  return CanonicalJson(Json{{"v", 1},
                            {"run_dir", run_dir},
                            {"stage", stage},
                            {"attempt", attempt},
                            {"reason", reason},
                            {"node", node},
                            {"supervisor", supervisor.Hex()},
                            {"device", device},
                            {"window", size.window},
                            {"threads", size.threads},
                            {"layers", size.layers},
                            {"cuts", size.cuts},
                            {"edge_listen", edge_listen},
                            {"keys_dir", keys_dir},
                            {"renaming", renaming},
                            {"phase_ms", phase_ms},
                            {"rss_peak_bytes", rss_peak_bytes}});
}

Result<WorkerArgs> WorkerArgs::Decode(const std::string& text) {
  const std::string what = "worker arguments";
  HOLDFAST_ASSIGN(const Json j, ParseJson(text, what, 1 << 20));
  WorkerArgs a;
  HOLDFAST_ASSIGN(const uint64_t version, GetUint(j, "v", what));
  if (version != 1) return Unsupported(what + " of version " + std::to_string(version) + ": jobctl and holdfast-worker are not of one build");
  HOLDFAST_ASSIGN(a.run_dir, GetString(j, "run_dir", what));
  HOLDFAST_ASSIGN(const uint64_t stage, GetUint(j, "stage", what));
  HOLDFAST_ASSIGN(const uint64_t attempt, GetUint(j, "attempt", what));
  HOLDFAST_ASSIGN(const uint64_t window, GetUint(j, "window", what));
  HOLDFAST_ASSIGN(const uint64_t threads, GetUint(j, "threads", what));
  HOLDFAST_ASSIGN(const uint64_t layers, GetUint(j, "layers", what));
  HOLDFAST_ASSIGN(const uint64_t cuts, GetUint(j, "cuts", what));
  HOLDFAST_ASSIGN(a.reason, GetString(j, "reason", what));
  HOLDFAST_ASSIGN(a.node, GetString(j, "node", what));
  HOLDFAST_ASSIGN(a.device, GetString(j, "device", what));
  HOLDFAST_ASSIGN(a.edge_listen, GetString(j, "edge_listen", what));
  HOLDFAST_ASSIGN(a.keys_dir, GetString(j, "keys_dir", what));
  HOLDFAST_ASSIGN(a.rss_peak_bytes, GetUint(j, "rss_peak_bytes", what));
  a.renaming = j.contains("renaming") && j["renaming"] == true;
  if (j.contains("phase_ms") && j["phase_ms"].is_object()) {
    for (const auto& [phase, ms] : j["phase_ms"].items()) a.phase_ms[phase] = ms.is_number_unsigned() ? ms.get<uint64_t>() : 0;
  }
  HOLDFAST_ASSIGN(const std::string supervisor, GetString(j, "supervisor", what));
  if (!Nonce::FromHex(supervisor, &a.supervisor)) return InvalidArgument(what + ": field \"supervisor\" is not 32 hex digits");
  if (stage > 0xffff || window == 0 || window > 4096 || threads == 0 || threads > 4096 || layers == 0 || layers > 0xffff || cuts > UINT32_MAX) {
    return InvalidArgument(what + ": stage, window, threads, layers or cuts out of range");
  }
  a.stage = static_cast<uint16_t>(stage);
  a.attempt = static_cast<uint32_t>(attempt);
  a.size = {.window = static_cast<uint32_t>(window), .threads = static_cast<uint32_t>(threads), .layers = static_cast<uint32_t>(layers),
            .cuts = static_cast<uint32_t>(cuts)};
  return a;
}

std::string ControlEndpoint(const Nonce& supervisor) { return "ipc://@holdfast-" + supervisor.Hex() + "-control"; }
std::string EdgeEndpoint(const Nonce& worker) { return "ipc://@holdfast-" + worker.Hex() + "-cut"; }

}  // namespace holdfast
